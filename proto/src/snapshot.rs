//! Snapshots and chains on the wire.
//!
//! Invariants: a `snapshot` parameter takes an id, a unique prefix of one, `disk@snapshot`, or a
//! snapshot name that only one snapshot has.
//! Absent: copies in repositories and groups.

use serde::{Deserialize, Serialize};

use crate::params::params;
use crate::{Client, DiskFilling, FreezeOptions, InstantAccess, Place, Tags, Time};

/// The most ranges one `snapshot.diff` reply holds: 10 000 of them are about 600 KiB of JSON.
pub const DIFF_PAGE_MAX: u32 = 10_000;

/// How much the file systems and applications on the disk take part in a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// One exact instant under live I/O, as a power failure would leave it.
    #[default]
    Crash,
    /// The file systems were frozen: nothing to repair or replay.
    Fs,
    /// The applications stood still too, by scripts or hooks.
    App,
}

impl Consistency {
    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Consistency::Crash => "crash",
            Consistency::Fs => "fs",
            Consistency::App => "app",
        }
    }
}

/// Who made a snapshot, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    Manual,
    Auto,
    /// The state of a disk before a rollback or reinit, kept so that it can be undone. Goes away by
    /// itself.
    Undo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotStatus {
    /// Being copied to its repository.
    Progressing,
    /// Complete.
    Accomplished,
    /// Could not be copied to its repository.
    Failed,
    /// Deleted; its blocks are being freed in the background.
    Deleting,
}

params! {
    /// Makes a snapshot of a disk.
    SnapshotCreate {
        disk: String,
        /// Left out: a name made from the time.
        name?: String,
        consistency: Consistency = default,
        /// How to freeze; only for levels above `crash`.
        freeze?: FreezeOptions,
        description: String = default,
        tags: Tags = default,
        /// Keep it in this repository; left out: in the default repository, if there is one.
        repo?: String,
        /// Keep it in the pool only, whatever the default is.
        local: bool = default,
        /// Only for one that is kept in a repository; others can always be used.
        instant_access: InstantAccess = default,
    }

    /// Lists snapshots, oldest first.
    SnapshotList {
        /// Only those of this disk; also the id of a deleted disk that left snapshots.
        disk?: String,
    }

    /// Describes one snapshot.
    SnapshotShow {
        snapshot: String,
    }

    /// Deletes a snapshot; its space is freed in the background.
    SnapshotDelete {
        snapshot: String,
        /// Delete it although disks were made from it or clients read it.
        force: bool = default,
    }

    /// What deleting these snapshots in this order would free. Nothing is changed.
    SnapshotFreed {
        snapshots: Vec<String>,
    }

    /// Changes properties of a snapshot; those left out stay.
    SnapshotSet {
        snapshot: String,
        name?: String,
        description?: String,
        /// Begins or changes instant access, or ends it, which needs a complete copy.
        instant_access?: InstantAccess,
        /// Refuse to delete it.
        protected?: bool,
    }

    /// The ranges that differ between two snapshots, one page at a time.
    SnapshotDiff {
        /// The older side; left out: an empty disk, so that everything the snapshot holds is listed.
        from?: String,
        to: String,
        /// The byte offset to go on at, from the `resume` of the page before.
        resume: u64 = default,
        /// The most ranges to return, at most [`DIFF_PAGE_MAX`].
        limit?: u32,
    }
}

/// What a snapshot can be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotAction {
    /// Its disk goes back to it: `disk.rollback`.
    Rollback,
    /// A disk is made of it: `disk.create`, or `copy.restore` of its copy.
    Disk,
    /// An image is made of it: `image.create`.
    Image,
    /// It is copied to a repository, or to another one: `copy.create`.
    Copy,
    /// Its instant access is ended: `snapshot.set`.
    EndAccess,
}

impl SnapshotAction {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SnapshotAction::Rollback => "rollback",
            SnapshotAction::Disk => "disk",
            SnapshotAction::Image => "image",
            SnapshotAction::Copy => "copy",
            SnapshotAction::EndAccess => "end of instant access",
        }
    }
}

/// The reply to `snapshot.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshots {
    pub snapshots: Vec<Snapshot>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub id: String,
    pub name: String,
    pub description: String,
    pub disk_id: String,
    /// `null` when the disk has been deleted since.
    pub disk_name: Option<String>,
    /// Size of the disk at the instant of the snapshot.
    pub size: u64,
    pub created_at: Time,
    pub kind: SnapshotKind,
    pub consistency: Consistency,
    pub status: SnapshotStatus,
    /// Per cent; 100 only when it is accomplished.
    pub progress: u8,
    /// Seconds left while it is progressing, as far as can be told.
    #[serde(default)]
    pub remaining_s: Option<u64>,
    /// Why it failed; `copy.retry` of its copy goes on.
    #[serde(default)]
    pub reason: Option<String>,
    /// It can be used at once, from the pool.
    pub instant_access: bool,
    /// When that ends; never before its copy is complete.
    #[serde(default)]
    pub instant_access_until: Option<Time>,
    /// Where all of it is.
    #[serde(default)]
    pub presence: Vec<Place>,
    /// The repository it is in, or is being copied to.
    #[serde(default)]
    pub repo: Option<String>,
    /// The copy that it is there.
    #[serde(default)]
    pub copy: Option<String>,
    /// What it can be used for as it is now. The disk itself may be in the way: in use, or protected.
    #[serde(default)]
    pub actions: Vec<SnapshotAction>,
    /// Bytes that deleting just this snapshot would free.
    pub exclusive_bytes: u64,
    /// Bytes it adds to its chain.
    pub stored_bytes: u64,
    /// The snapshot before it in its lineage.
    pub parent: Option<String>,
    /// When it goes away by itself.
    pub expires_at: Option<Time>,
    /// Ids of disks that were made from it and still exist.
    pub made_disks: Vec<String>,
    /// Images that are made of it; while there are any it cannot be deleted.
    #[serde(default)]
    pub images: Vec<String>,
    pub tags: Tags,
    pub clients: Vec<Client>,
    /// Whether it is stored as ciphertext, as its disk is.
    #[serde(default)]
    pub encrypted: bool,
    /// The id of the policy that made it, if one did.
    #[serde(default)]
    pub policy_id: Option<String>,
    /// When it was due, if a policy made it.
    #[serde(default)]
    pub scheduled_at: Option<Time>,
    /// It is not deleted, whatever the force.
    #[serde(default)]
    pub protected: bool,
    /// Where the contents come from that it does not have yet, as of its disk; only while it lacks some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filling: Option<DiskFilling>,
}

/// The reply to `snapshot.freed`: one for each snapshot, in the order in which they were named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotsFreed {
    pub snapshots: Vec<SnapshotDeleted>,
}

/// The reply to `snapshot.delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDeleted {
    pub id: String,
    pub name: String,
    /// Bytes that will be free once the background work is done.
    pub freed_bytes: u64,
}

/// One page of a diff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffPage {
    pub ranges: Vec<DiffRange>,
    /// Where to go on; `null` at the end.
    pub resume: Option<u64>,
}

/// A stretch of bytes that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffRange {
    pub offset: u64,
    pub length: u64,
    /// The newer side reads as zeros there.
    pub zero: bool,
}

params! {
    /// Lists the chains of all disks.
    ChainList {}

    /// Describes the chain of one disk.
    ChainShow {
        /// Also the id of a deleted disk that left snapshots.
        disk: String,
    }
}

/// The reply to `chain.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chains {
    pub chains: Vec<Chain>,
}

/// The snapshots of one disk, which outlive it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    pub disk_id: String,
    pub disk_name: Option<String>,
    pub disk_size: u64,
    /// Bytes that deleting all of its snapshots would free; only told by `chain.show`.
    #[serde(default)]
    pub exclusive_bytes: Option<u64>,
    /// Bytes of all snapshots of the chain, shared blocks counted once.
    pub snapshot_bytes: u64,
    pub quota_manual: u64,
    pub quota_auto: u64,
    /// Oldest first.
    pub snapshots: Vec<Snapshot>,
}
