//! Crash tests: a real daemon is killed, or the power of its disk cut, and what it promised is checked.
//!
//! Every sector a client writes says which write it is from (`stamp`). The client notes when it asked
//! and when it was answered (`history`), and the judge compares what a restarted daemon shows with
//! everything that could have happened (`judge`). `load` and `actor` make the traffic, `kill` ends
//! the daemon, `power` cuts what reached its disk.
//!
//! Invariants: a run is chosen by its seed, which every failure prints; what was found after a crash is
//! what the next round starts from.
//! Absent: the tests themselves (`tests/it/crash_*.rs`) and long runs (`tests/soak`).

pub mod actor;
pub mod control;
pub mod history;
pub mod judge;
pub mod kill;
pub mod load;
pub mod power;
pub mod rng;
pub mod stamp;
pub mod verify;
pub mod world;

use rowd::pool::file::IoMode;

/// The modes of the pool that the daemons of a run use, one of them at each start.
pub type Modes = &'static [IoMode];

/// A configuration with the mode of the pool set.
#[must_use]
pub fn with_mode(config: &str, mode: IoMode) -> String {
    config.replacen("[pool]", &format!("[pool]\nio = \"{}\"", mode.name()), 1)
}
