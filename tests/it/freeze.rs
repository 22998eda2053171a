//! Snapshots whose file systems stood still: nothing to repair or replay in them, and no file system that
//! stays frozen, whoever dies.
//!
//! The file systems are mounted on this host, on loop devices over nbdfuse, and named with --mount: the
//! kernel cannot tell the daemon whose they are. Devices of the kernel's own NBD client are for the tests
//! in virtual machines.
//! Absent: databases; `tests/acceptance` has them.

mod applications;
mod exits;
mod levels;
mod outlive;
mod world;
