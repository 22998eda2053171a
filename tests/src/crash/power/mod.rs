//! The power cut: what a disk with a volatile cache may hold when the power goes, and what rowd makes
//! of it.
//!
//! The daemon's directory lies on a real ext4 on a loop device on a network block device that we serve
//! ourselves (`device`): below the file system, so that creating, renaming and syncing of files and
//! directories are cut like data. Each write and flush gets a number of the clock that also numbers
//! what clients ask and are answered (`record`). A state at a number keeps everything up to the last
//! flush before it, and of what came later each write wholly, in part, or not at all (`state`). The
//! kernel mounts it, the engine opens it, and the judge compares (`check`).
//!
//! Invariants: the recording is one run; any number of states come from it.
//! Absent: failing devices, which report errors instead of forgetting.

pub mod check;
pub mod device;
pub mod record;
pub mod run;
pub mod state;

pub use run::{Totals, run};

/// Bytes of the recorded device: a file system with its journal, a full pool and its map.
pub const DEVICE_BYTES: u64 = 96 << 20;

/// A pool that a few seconds fill; the map goes to RocksDB every second.
pub const CONFIG: &str = r#"
[pool]
segment = "1MiB"
journal = "2MiB"
max_size = "24MiB"
host_reserve = "0B"

[background]
checkpoint_s = 1
flush_ms = 200
"#;
