//! Freezing on the wire: how to make snapshots above the crash level, and what came of it.
//!
//! Invariants: durations are seconds with a fraction, limits whole seconds; the report of a freeze is in
//! the reply of the call that froze, and nowhere else.
//! Absent: the level and the tags of a snapshot, which it has for good.

use serde::{Deserialize, Serialize};

use crate::{Consistency, Group, Moment, Snapshot};

/// How to freeze, for levels above `crash`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FreezeOptions {
    /// Mount points to freeze besides those the daemon finds. Only root may name any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<String>,
    /// Seconds that file systems may be frozen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// A freeze script in place of the configured one, with its thaw script. Only root may name them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_script: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_script: Option<String>,
    /// Seconds that each script or hook may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script_timeout: Option<u64>,
    /// Run neither scripts nor hooks.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_scripts: bool,
    /// Leave file systems alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_freeze: bool,
}

/// Tells what a freeze of disks would do, and changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeCheck {
    pub disks: Vec<String>,
    /// `fs` or `app`.
    pub consistency: Consistency,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeOptions>,
}

/// The reply to `freeze.check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezePreview {
    /// The level that would be reached.
    pub consistency: Consistency,
    /// What would be left out, and why the level is lower than wanted.
    pub notes: Vec<String>,
    pub targets: Vec<FreezeTarget>,
    /// Freeze scripts and hooks that would run, in their order.
    pub applications: Vec<String>,
}

/// Tells what is frozen now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeShow {}

/// Ends the freeze that runs, and thaws what an earlier one left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeThaw {}

/// The reply to `freeze.show` and `freeze.thaw`: the state before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeStatus {
    /// `null` when nothing is frozen.
    pub running: Option<FreezeRunning>,
    /// Mount points that an earlier freeze may have left frozen.
    pub left: Vec<String>,
}

/// A freeze that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeRunning {
    /// `data1@before-upgrade`, or `group before-upgrade`.
    pub what: String,
    pub wanted: Consistency,
    pub since: Moment,
    /// The phase it is in, by the names of [`FreezePhase`].
    pub phase: String,
    pub targets: Vec<FreezeTarget>,
}

/// Something that is frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeTarget {
    pub mount_point: String,
    pub file_system: String,
    pub device: String,
}

/// One phase of a freeze: `prepare`, `prescript`, `hooks`, `freeze`, `cut`, `thaw`, `release`,
/// `postscript`, `tag`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FreezePhase {
    pub name: String,
    pub seconds: f64,
}

/// What a freeze came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FreezeReport {
    pub wanted: Consistency,
    pub reached: Consistency,
    /// What was left out, and why the level is lower than wanted.
    pub notes: Vec<String>,
    pub targets: Vec<FreezeTarget>,
    /// Those that ran, in order.
    pub phases: Vec<FreezePhase>,
    /// When freezing of file systems began; `null` when none was frozen.
    pub frozen_at: Option<Moment>,
    /// When the last one was thawed.
    pub thawed_at: Option<Moment>,
    /// From the one to the other.
    pub frozen_seconds: f64,
}

/// The reply to `snapshot.create`: the snapshot, and how it was frozen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotMade {
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// Only for a level above `crash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeReport>,
}

/// The reply to `group.create`: the group, and how it was frozen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupMade {
    #[serde(flatten)]
    pub group: Group,
    /// Only for a level above `crash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeReport>,
}
