//! The trash on the wire: deleted disks that can be brought back, and what deleting would free.
//!
//! Invariants: a `disk` parameter of the trash takes the id of a disk in the trash, a unique prefix of it, or the name
//! it had, if only one there had it.
//! Absent: deleted snapshots, which do not come back.

use serde::{Deserialize, Serialize};

use crate::Time;
use crate::params::params;

params! {
    /// Lists disks in the trash, those deleted first before others.
    TrashList {}

    /// Brings a disk back.
    TrashRestore {
        disk: String,
        /// The name it gets; left out: the one it had.
        name?: String,
    }

    /// Deletes a disk in the trash for good.
    TrashPurge {
        disk: String,
    }

    /// What deleting a disk for good would free, with what goes with it.
    DiskFreed {
        disk: String,
    }
}

/// The reply to `trash.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trash {
    pub disks: Vec<TrashedDisk>,
}

/// A disk in the trash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashedDisk {
    pub id: String,
    /// The name it had.
    pub name: String,
    pub size: u64,
    pub deleted_at: Time,
    /// When it goes for good, if the pool is not short of space before.
    pub expires_at: Time,
    /// Bytes of blocks that only it holds.
    pub exclusive_bytes: u64,
    pub snapshot_count: u64,
}

/// The reply to `trash.purge`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashPurged {
    pub id: String,
    pub name: String,
    /// Automatic snapshots that went with it.
    pub snapshots: u64,
}

/// The reply to `disk.delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDeleted {
    pub id: String,
    pub name: String,
    /// When it goes for good; `null` when it is gone.
    pub restorable_until: Option<Time>,
    /// Automatic snapshots that went with it.
    pub snapshots: u64,
}

/// The reply to `disk.freed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFreedBytes {
    pub id: String,
    pub name: String,
    /// Bytes of the pool.
    pub freed_bytes: u64,
}
