//! The behaviour of rowd as its users see it: one file per subject.
//!
//! Absent: the harness (`tests/src`) and unit tests, which are with the code they test.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test may fail the test as the test itself may"
)]

mod acceptance;
mod attach;
mod bundle;
mod chains;
mod cli;
mod clients;
mod completion;
mod configuration;
mod crash_kill;
mod crash_power;
mod daemon;
mod direct;
mod encryption;
mod faults;
mod filesystems;
mod format;
mod freeze;
mod golden;
mod groups;
mod guest_agent;
mod guide;
mod handover;
mod images;
mod install;
mod instances;
mod large;
mod lists;
mod memory;
mod metrics;
mod model;
mod policies;
mod protocol;
mod rollback;
mod rows;
mod safety;
mod scale;
mod short_lived;
mod tidy;
mod trash;
mod usage;
mod vault;
