//! Policies: when snapshots are due, and which have had their time.
//!
//! Invariants: what is decided is a function of the time, the policies and the snapshots that are passed in, so
//! that ten years can be tested in seconds; a decision to remove is about automatic snapshots only, and never
//! about the newest one of a disk.
//! Absent: the records (`engine/policies.rs`).

pub mod clock;
pub mod due;
mod grouped;
mod pruning;
pub mod retention;
pub mod schedule;
mod scheduler;
#[cfg(test)]
mod simulation;
mod verbs;

pub use scheduler::Policies;
pub use verbs::{CopyPruned, Preview, Pruned};
