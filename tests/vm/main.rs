//! rowd on a host with systemd and a kernel that has an NBD client: one file per story, each in a
//! virtual machine of its own.
//!
//! Absent: the harness (`tests/src/vm`), and what a host without these can show (`it/`).

mod attach;
mod boot;
mod clients;
mod restart;
mod service;
