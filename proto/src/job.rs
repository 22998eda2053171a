//! Long pieces of work on the wire.
//!
//! Invariants: a job that ended keeps its state; a `job` parameter takes an id or a unique prefix
//! of one.
//! Absent: waiting, which is polling `job.show`.

use serde::{Deserialize, Serialize};

use crate::Time;

/// Lists jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobList {}

/// Describes one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobShow {
    pub job: String,
}

/// Asks a job to end early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobCancel {
    pub job: String,
}

/// Starts to read and check every block in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrubStart {
    /// Left out or 0: the configured rate.
    #[serde(default)]
    pub bytes_per_second: u64,
}

/// The reply to `job.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jobs {
    pub jobs: Vec<Job>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Running,
    Done,
    Failed,
    Cancelled,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub id: String,
    /// `scrub`, `reclaim`.
    pub kind: String,
    pub object: String,
    pub state: JobState,
    /// Units done and in total (bytes for a scrub); total 0 means not known yet.
    pub done: u64,
    pub total: u64,
    pub started_at: Time,
    pub ended_at: Option<Time>,
    /// The outcome in words once it ended.
    pub message: String,
}
