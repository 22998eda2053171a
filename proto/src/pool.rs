//! The pool on the wire.
//!
//! Invariants: all amounts are bytes; `used_bytes + pending_bytes <= file_bytes <= max_bytes` as
//! long as nothing is broken.
//! Absent: I/O rates.

use serde::{Deserialize, Serialize};

use crate::Time;

/// Describes the pool and the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolShow {}

/// Changes how far the pool may grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolResize {
    pub max_bytes: u64,
}

/// The pool and the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Version of the daemon.
    pub version: String,
    pub uuid: String,
    pub dir: String,
    /// Why the pool accepts no writes, if it stopped.
    pub stopped: Option<String>,
    pub block_size: u64,
    /// Bytes of data blocks the pool file has now.
    pub file_bytes: u64,
    /// Bytes of data blocks it may grow to.
    pub max_bytes: u64,
    /// Bytes of blocks some disk or snapshot holds.
    pub used_bytes: u64,
    /// Bytes freed but not yet reusable.
    pub pending_bytes: u64,
    pub journal_bytes: u64,
    pub journal_used_bytes: u64,
    /// Memory of the map cache.
    pub cache_bytes: u64,
    pub cache_limit: u64,
    /// Journal positions: the last record, the last durable one, the last one in the map.
    pub last_seq: u64,
    pub durable_seq: u64,
    pub checkpoint_seq: u64,
    pub disks: u64,
    pub snapshots: u64,
    pub clients: u64,
    /// Deleted snapshots and disks whose blocks are still being freed.
    pub reclaiming: u64,
    pub corrupt_blocks: u64,
    /// Damaged blocks that were stored anew since the start, from copies.
    #[serde(default)]
    pub healed_blocks: u64,
    pub last_scrub: Option<ScrubReport>,
    /// What the last start needed.
    pub recovery_seconds: f64,
    pub recovered_records: u64,
    /// How the pool file is read and written: `buffered` or `direct`.
    pub io_mode: String,
    /// Whether the daemon is marked as an I/O flusher, its memory locked, and how ready the kernel is to
    /// end it when memory is short.
    pub io_flusher: bool,
    pub memory_locked: bool,
    pub oom_score_adj: i32,
}

/// The result of the last scrub that ran to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    pub started_at: Time,
    pub ended_at: Time,
    pub bytes: u64,
    /// One line per bad block: disk, offset, snapshots.
    pub bad: Vec<String>,
}
