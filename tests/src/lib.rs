//! The test harness: daemons, clients and other people's programs, each cleaned up by its owner.
//!
//! Invariants: nothing here outlives the test that started it, and nothing waits without a deadline.
//! Absent: what is promised; the tests in `it/` say that.

pub mod client;
pub mod crash;
pub mod dense;
pub mod golden;
pub mod manager;
pub mod moto;
pub mod mount;
pub mod order;
pub mod process;
pub mod s3;
pub mod tool;
pub mod vm;
pub mod wait;
