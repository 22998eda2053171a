//! Usage: bytes that disks, snapshots and repositories hold, now and over the last fifteen days.
//!
//! Invariants: a block counts once, where it was written: with the disk while no snapshot has it, then with the first
//! snapshot that does.
//! Absent: prices.

use serde::{Deserialize, Serialize};

use crate::params::params;
use crate::{Tags, Time};

params! {
    /// What is held now, and what was sampled hourly.
    UsageShow {
        /// Samples from here on; left out: as far back as they are kept.
        from?: Time,
        /// Samples up to here; left out: now.
        to?: Time,
        /// Only disks and snapshots with this tag, `key=value` or `key`. Samples have no tags: there are none then.
        tag?: String,
    }
}

/// The reply to `usage.show`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub at: Time,
    /// Bytes of the pool in use, what is being freed included.
    pub used_bytes: u64,
    pub total: Held,
    /// Of the bytes of snapshots, those of snapshots with instant access.
    pub instant_access_bytes: u64,
    /// Disks, and deleted ones that have snapshots; the largest first.
    pub disks: Vec<DiskUsage>,
    /// As of the last sample.
    pub repos: Vec<RepoUsage>,
    /// Oldest first.
    pub samples: Vec<UsageSample>,
    /// Bytes of snapshots times hours over the samples; a sample counts until the next one, an hour at most.
    pub snapshot_byte_hours: u64,
    /// The same of snapshots with instant access.
    pub instant_access_byte_hours: u64,
}

/// What is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Written since the last snapshot.
    pub data_bytes: u64,
    pub snapshot_bytes: u64,
    /// Kept so that a rollback can be undone.
    pub undo_bytes: u64,
    pub snapshots: u64,
}

/// A disk and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    pub disk_id: String,
    /// `null` when the disk has been deleted.
    pub disk_name: Option<String>,
    pub size: u64,
    pub tags: Tags,
    #[serde(flatten)]
    pub held: Held,
    /// Of the bytes of snapshots, those of snapshots with instant access.
    pub instant_access_bytes: u64,
}

/// A repository and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoUsage {
    pub name: String,
    pub copies: u64,
    /// After compression.
    pub stored_bytes: u64,
}

/// Usage at an earlier moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageSample {
    pub at: Time,
    pub used_bytes: u64,
    #[serde(flatten)]
    pub total: Held,
    /// Of the bytes of snapshots, those of snapshots with instant access.
    pub instant_access_bytes: u64,
    /// By disk id, the largest.
    pub disks: std::collections::BTreeMap<String, Held>,
    pub repos: Vec<RepoUsage>,
}
