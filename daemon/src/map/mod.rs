//! The map: from blocks of disks and snapshots to blocks of the pool.
//!
//! Invariants: the map knows neither requests nor names; it is changed only by records of the journal.
//! Absent: data I/O (`pool/`), bytes on disk of RocksDB (`meta/`), who may do what (`engine/`).

mod apply;
mod cache;
pub mod fill;
pub mod heal;
pub mod leaf;
pub mod lineage;
pub mod reclaim;
pub mod record;
pub mod signal;
pub mod tree;
pub mod view;
