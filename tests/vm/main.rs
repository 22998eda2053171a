//! rowd on a host with systemd and a kernel that has an NBD client: one file per story, each in a
//! virtual machine of its own.
//!
//! Absent: the harness (`tests/src/vm`), and what a host without these can show (`it/`).

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test may fail the test as the test itself may"
)]

mod applications;
mod attach;
mod boot;
mod clients;
mod freeze;
mod guest_agent;
mod lvm;
mod memory;
mod packages;
mod restart;
mod service;
mod tour;
