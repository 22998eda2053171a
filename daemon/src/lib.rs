//! rowd: virtual disks over NBD, with every write redirected to fresh space, so that a snapshot, a
//! rollback or a clone is a change of metadata.
//!
//! The path of a request reads downwards: `nbd` (protocol), `disk` (bytes), `map` (blocks), `pool`
//! (the file). `engine` owns them and the catalogue; `control` serves `rowctl`. ARCHITECTURE.md draws it.
//! Absent here: everything but the list of modules.

pub mod attach;
pub mod cli;
pub mod config;
pub mod control;
pub mod crypt;
pub mod daemon;
pub mod disk;
pub mod engine;
pub mod error;
pub mod faults;
pub mod freeze;
mod handover;
pub mod histogram;
pub mod journal;
pub mod map;
pub mod memory;
pub mod meta;
pub mod metrics;
pub mod nbd;
pub mod policy;
pub mod pool;
pub mod units;
pub mod usage;
pub mod vault;
pub mod watchdog;
