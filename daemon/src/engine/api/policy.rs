//! Policies as values: when snapshots are made, and how long they stay.
//!
//! Invariants: hours are 0 to 23, days 1 (Monday) to 7; an interval and a retention are whole seconds and not
//! zero; the time zone and the cron expression have been checked by whoever made the value (`policy/`).
//! Absent: what follows from them (`policy/`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Consistency, Tags};
use crate::units::{CopyId, DiskId, GroupId, InstanceId, PolicyId, SnapshotId};

/// When snapshots are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Schedule {
    /// At these full hours of these days of the week.
    At { hours: BTreeSet<u8>, days: BTreeSet<u8> },
    /// A cron expression of five fields.
    Cron { expression: String },
    /// At all multiples of so many seconds since 1970.
    Every { seconds: u64 },
}

/// How long a snapshot stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Keep {
    /// So long.
    For { seconds: u64 },
    /// Until the quota of the disk is reached and it is the oldest.
    Forever,
    /// As long as it is one of those counted.
    Counts(Counts),
}

/// How many snapshots stay: of all, and the newest of each hour, day and so on that has any. One snapshot may
/// be counted several times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
}

/// What happens after a time in which runs were missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// Nothing: the next run is the next of the schedule.
    #[default]
    None,
    /// One run, however many were missed.
    Once,
}

/// Where an automatic snapshot comes from, and the rule it was made under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Automatic {
    pub policy: PolicyId,
    /// The instant it was due at.
    pub slot: u64,
    /// What it is kept by, where that is no time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// The time zone whose hours and days are counted.
    pub zone: String,
    /// The group that a snapshot was made with by the policy of an instance: it goes with that, and not before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupId>,
}

/// What a group is that the policy of an instance has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutomaticGroup {
    /// Whose disks they were.
    pub instance: InstanceId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    #[serde(flatten)]
    pub automatic: Automatic,
}

/// An automatic snapshot or group, or a copy of a snapshot, as far as its end is concerned.
#[derive(Clone, Debug)]
pub struct Kept<I = SnapshotId> {
    pub id: I,
    pub name: String,
    pub created_at: u64,
    pub expires_at: Option<u64>,
    pub automatic: Automatic,
    /// Why it cannot go now.
    pub held: Option<String>,
}

/// The automatic snapshots of a disk.
#[derive(Clone, Debug)]
pub struct KeptOfDisk {
    /// Its name, if it exists.
    pub name: Option<String>,
    pub snapshots: Vec<Kept>,
}

/// The groups that policies have made of an instance.
#[derive(Clone, Debug)]
pub struct KeptOfInstance {
    /// Its name, if it exists.
    pub name: Option<String>,
    pub groups: Vec<Kept<GroupId>>,
}

/// A copy that a policy has made of a snapshot, or is making.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCopy {
    pub id: CopyId,
    /// The name of the repository.
    pub repo: String,
    pub disk: DiskId,
    pub snapshot: SnapshotId,
    /// `disk@snapshot`, as it was called then.
    pub name: String,
    /// When the snapshot was made.
    pub created_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    pub automatic: Automatic,
    /// The repository has all of it.
    #[serde(default)]
    pub complete: bool,
}

/// The copies of a disk in one repository that policies have made, as far as they are complete.
#[derive(Clone, Debug)]
pub struct KeptInRepo {
    pub repo: String,
    pub copies: Vec<Kept<CopyId>>,
}

/// Where each snapshot is copied to, and how long the copy stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRule {
    /// The name of the repository.
    pub repo: String,
    pub keep: Keep,
}

/// A copy to make with an automatic snapshot.
#[derive(Clone, Debug)]
pub struct CopyOrder {
    pub repo: String,
    pub expires_at: Option<u64>,
    pub counts: Option<Counts>,
}

/// An automatic snapshot to make, or a group of them.
#[derive(Clone, Debug)]
pub struct AutomaticSpec {
    /// Made longer where it is taken.
    pub name: String,
    /// What is added to a name that is taken.
    pub time: String,
    pub tags: Tags,
    pub expires_at: Option<u64>,
    pub automatic: Automatic,
    pub copy: Option<CopyOrder>,
}

/// Something that stands still until somebody agrees to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// [`CLOCK`], the id of a disk whose automatic snapshots are not removed, or with a slash and the name of a
    /// repository behind it its copies there; the id of an instance whose groups are not removed.
    pub object: String,
    pub since: u64,
    pub why: String,
}

/// The object of the hold that stops all policies.
pub const CLOCK: &str = "clock";

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySpec {
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub schedule: Schedule,
    pub zone: String,
    pub keep: Keep,
    /// Given to each snapshot.
    #[serde(default)]
    pub tags: Tags,
    #[serde(default)]
    pub consistency: Consistency,
    #[serde(default)]
    pub catch_up: CatchUp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyRule>,
    /// Runs begin up to so many seconds after their slots, each policy always so long after them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub jitter: u64,
}

/// For records: whether there is nothing to say.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Changes to a policy; `None` leaves a property as it is.
#[derive(Clone, Debug, Default)]
pub struct PolicyChange {
    pub name: Option<String>,
    pub description: Option<String>,
    pub schedule: Option<Schedule>,
    pub zone: Option<String>,
    pub keep: Option<Keep>,
    pub tags: Option<Tags>,
    pub consistency: Option<Consistency>,
    pub catch_up: Option<CatchUp>,
    /// Another rule, or none any more.
    pub copy: Option<Option<CopyRule>>,
    pub jitter: Option<u64>,
}

/// What came of the last slot of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    pub slot: u64,
    pub at: u64,
    pub made: u64,
    pub skipped: u64,
}

/// A policy and what is known of it.
#[derive(Clone, Debug)]
pub struct PolicyInfo {
    pub id: PolicyId,
    pub created_at: u64,
    pub spec: PolicySpec,
    /// Slots up to here are done with.
    pub handled: u64,
    /// By name: those that have it themselves, and those of the instances.
    pub disks: Vec<(DiskId, String)>,
    /// By name.
    pub instances: Vec<(InstanceId, String)>,
    pub last_run: Option<LastRun>,
    /// When a snapshot was last made.
    pub last_success: Option<u64>,
}
