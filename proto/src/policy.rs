//! Policies on the wire: when snapshots are made by themselves, and how long they stay.
//!
//! Invariants: a `policy` parameter takes an id, a unique prefix of one, or a name; a schedule is exactly one of
//! hours, a cron expression and an interval.
//! Absent: what is due when, which the daemon knows.

use serde::{Deserialize, Serialize};

use crate::params::params;
use crate::{Consistency, Tags, Time};

/// When snapshots are made: exactly one of `at`, `cron` and `every`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicySchedule {
    /// Full hours, 0 to 23.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub at: Vec<u8>,
    /// Days of the week for `at`, 1 (Monday) to 7; none: every day.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<u8>,
    /// A cron expression of five fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// Seconds; due at all multiples of them since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
}

/// How long a snapshot stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum PolicyKeep {
    /// For so many seconds.
    For { seconds: u64 },
    /// Until the quota of the disk is reached and it is the oldest.
    Forever,
    /// As long as it is one of the last ones, or the newest of an hour, day and so on that counts.
    Counts {
        #[serde(default)]
        last: u32,
        #[serde(default)]
        hourly: u32,
        #[serde(default)]
        daily: u32,
        #[serde(default)]
        weekly: u32,
        #[serde(default)]
        monthly: u32,
        #[serde(default)]
        yearly: u32,
    },
}

impl Default for PolicyKeep {
    /// 30 days.
    fn default() -> Self {
        PolicyKeep::For { seconds: 30 * 86_400 }
    }
}

/// What happens after a time in which runs were missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyCatchUp {
    /// Nothing.
    #[default]
    None,
    /// One run, however many were missed.
    Once,
}

params! {
    /// Makes a policy; no disk has it yet.
    PolicyCreate {
        name: String,
        schedule: PolicySchedule,
        /// A name such as `Europe/Berlin`; left out: `UTC`.
        timezone?: String,
        /// Left out: 30 days.
        keep: PolicyKeep = default,
        /// Given to each snapshot.
        tags: Tags = default,
        consistency: Consistency = default,
        catch_up: PolicyCatchUp = default,
        description: String = default,
        /// Copy each snapshot to this repository too.
        copy_to?: String,
        /// How long the copies stay; left out: as long as the snapshots.
        copy_keep?: PolicyKeep,
        /// Seconds, at most 12 hours: runs begin up to so long after their times, this policy always equally long.
        jitter: u64 = default,
    }

    /// Lists all policies, by name.
    PolicyList {}

    /// Describes one policy.
    PolicyShow {
        policy: String,
    }

    /// Changes a policy, for snapshots made from now on; what is left out stays.
    PolicySet {
        policy: String,
        name?: String,
        schedule?: PolicySchedule,
        timezone?: String,
        keep?: PolicyKeep,
        /// All of them: those it had before are gone.
        tags?: Tags,
        consistency?: Consistency,
        catch_up?: PolicyCatchUp,
        description?: String,
        copy_to?: String,
        /// Only for a policy that copies, or with `copy_to`.
        copy_keep?: PolicyKeep,
        /// Copy no more; the copies there are stay as long as they would have.
        no_copy: bool = default,
        /// Zero: runs begin at their times.
        jitter?: u64,
    }

    /// Deletes a policy; its disks have none from now on, and their snapshots stay as long as they would have.
    PolicyDelete {
        policy: String,
    }

    /// Gives a disk a policy.
    PolicyApply {
        policy: String,
        disk: String,
        /// Although it has another one.
        replace: bool = default,
    }

    /// Takes its policy from a disk.
    PolicyCancel {
        disk: String,
    }

    /// Gives an instance a policy, or takes the one it has: its disks are snapshotted together, whichever it has then.
    PolicyInstance {
        instance: String,
        /// Left out: none any more.
        policy?: String,
        /// Although it, or a disk of it, has another one.
        replace: bool = default,
    }

    /// Foretells what a policy would do.
    PolicyPreview {
        policy: String,
        /// How many runs, at most 1000; left out: 5.
        runs?: u32,
    }

    /// Agrees to what stands still: removals of a disk, or the clock.
    PolicyResume {
        /// Left out, and no instance: the clock is right.
        disk?: String,
        /// Removals of groups of this instance.
        instance?: String,
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub id: String,
    pub name: String,
    pub description: String,
    pub created_at: Time,
    pub schedule: PolicySchedule,
    pub timezone: String,
    pub keep: PolicyKeep,
    pub tags: Tags,
    pub consistency: Consistency,
    pub catch_up: PolicyCatchUp,
    /// Where each snapshot is copied to, if it is.
    #[serde(default)]
    pub copy: Option<PolicyCopy>,
    /// Runs begin up to so many seconds after their times.
    #[serde(default)]
    pub jitter: u64,
    /// By name, those of the instances included.
    pub disks: Vec<PolicyDisk>,
    /// The instances that have it, by name.
    #[serde(default)]
    pub instances: Vec<PolicyOwner>,
    /// When it is due next, whether or not a disk has it.
    pub next_run_at: Option<Time>,
    pub last_run: Option<PolicyRun>,
    /// When it last made a snapshot.
    pub last_success_at: Option<Time>,
}

/// Where a policy copies its snapshots to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCopy {
    pub repo: String,
    /// How long the copies stay, which is nothing to the snapshots.
    pub keep: PolicyKeep,
}

/// A disk that has a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDisk {
    pub id: String,
    pub name: String,
}

/// An instance that has a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyOwner {
    pub id: String,
    pub name: String,
}

/// What came of the last time a policy was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRun {
    /// When it was due.
    pub scheduled_at: Time,
    pub ended_at: Time,
    /// Snapshots made.
    pub made: u64,
    /// Disks left out; an event tells why.
    pub skipped: u64,
}

/// The reply to `policy.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    pub policies: Vec<Policy>,
    /// What stands still until somebody agrees to it.
    pub holds: Vec<PolicyHold>,
}

/// Something that stands still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyHold {
    /// `clock`; the id of a disk whose automatic snapshots are not removed; `ID/REPOSITORY` for its copies there; or the
    /// id of an instance whose automatic groups are not removed.
    pub object: String,
    pub since: Time,
    pub why: String,
}

/// The reply to `policy.delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDeleted {
    pub id: String,
    pub name: String,
    /// Disks that have no policy now.
    pub disks: Vec<PolicyDisk>,
    /// Instances that have none.
    #[serde(default)]
    pub instances: Vec<PolicyOwner>,
}

/// The reply to `policy.preview`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPreviewed {
    pub policy: Policy,
    /// When it is due next.
    pub runs: Vec<Time>,
    /// Snapshots that would go now.
    pub pruned: Vec<PolicyPruned>,
    /// Copies that would go now.
    #[serde(default)]
    pub pruned_copies: Vec<PolicyPrunedCopy>,
}

/// A copy that would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPrunedCopy {
    pub id: String,
    /// `disk@snapshot`, as it was called when it was made.
    pub name: String,
    pub repo: String,
    pub reason: PolicyPruneReason,
}

/// A snapshot that would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPruned {
    pub id: String,
    /// `disk@snapshot`.
    pub name: String,
    pub reason: PolicyPruneReason,
}

/// Why a snapshot goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyPruneReason {
    /// Its time is over.
    Expired,
    /// There are enough newer ones.
    Counted,
    /// It is the oldest beyond the quota of its disk.
    Quota,
}

/// The reply to `policy.resume`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyResumed {
    /// Snapshots and copies that went; of an instance, groups.
    pub removed: u64,
}
