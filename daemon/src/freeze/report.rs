//! What a freeze came to: levels, phases with their durations, and when it began and ended.
//!
//! Invariants: phases are in the order in which they ran; the two instants are on the wall clock, the
//! durations are not.
//! Absent: how it is shown.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::provider::Target;
use crate::engine::api::Consistency;

/// A step of a snapshot above the crash level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Prepare,
    Prescript,
    Hooks,
    Freeze,
    Cut,
    Thaw,
    Release,
    Postscript,
    Tag,
}

impl Phase {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Prepare => "prepare",
            Phase::Prescript => "prescript",
            Phase::Hooks => "hooks",
            Phase::Freeze => "freeze",
            Phase::Cut => "cut",
            Phase::Thaw => "thaw",
            Phase::Release => "release",
            Phase::Postscript => "postscript",
            Phase::Tag => "tag",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What was asked for and what came of it.
#[derive(Clone, Debug)]
pub struct Report {
    pub wanted: Consistency,
    pub reached: Consistency,
    /// What was found, and why the level is lower than wanted.
    pub notes: Vec<String>,
    pub targets: Vec<Target>,
    pub phases: Vec<(Phase, Duration)>,
    /// When freezing began.
    pub frozen_at: Option<SystemTime>,
    /// When the last file system was thawed.
    pub thawed_at: Option<SystemTime>,
}

impl Report {
    #[must_use]
    pub fn new(wanted: Consistency) -> Report {
        Report {
            wanted,
            reached: Consistency::Crash,
            notes: Vec::new(),
            targets: Vec::new(),
            phases: Vec::new(),
            frozen_at: None,
            thawed_at: None,
        }
    }

    /// How long a phase took, if it ran.
    #[must_use]
    pub fn took(&self, phase: Phase) -> Option<Duration> {
        self.phases.iter().find(|(other, _)| *other == phase).map(|(_, took)| *took)
    }

    /// From the first freeze to the last thaw.
    #[must_use]
    pub fn frozen_for(&self) -> Duration {
        let part = |phase| self.took(phase).unwrap_or_default();
        part(Phase::Freeze) + part(Phase::Cut) + part(Phase::Thaw)
    }
}

/// All phases on one line: `freeze 8.8 ms, cut 1.3 ms`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (phase, took) in &self.phases {
            write!(f, "{between}{phase} {:.1} ms", took.as_secs_f64() * 1000.0)?;
            between = ", ";
        }
        Ok(())
    }
}
