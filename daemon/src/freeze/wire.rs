//! What the daemon and the freeze helper say to each other.
//!
//! Invariants: one message per packet of a `SOCK_SEQPACKET` pair; the daemon orders, the helper reports;
//! the other side closing means that it is gone.
//! Absent: paths. File systems are known by open directories and by their place in the order. What only one of
//! the two programs needs, since both are built of this file: the daemon's is in `helpers.rs`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::kernel;

/// From the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Comes with an open directory of each file system, and how deep each lies in others by loop devices.
    Hold {
        depths: Vec<usize>,
    },
    /// Write out what can be written out before.
    Sync {
        limit_ms: u64,
    },
    /// Freeze all, the deepest first, and thaw all when the limit is over.
    Freeze {
        limit_ms: u64,
    },
    Thaw,
}

/// From the helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It runs; `locked` when its memory cannot be paged out.
    Ready { version: String, locked: bool },
    /// It has the directories.
    Held { count: usize },
    /// Everything is written out.
    Synced,
    /// A file system does not answer; the helper goes on waiting for it, the others are thawed.
    Late { member: usize },
    /// Everything is frozen; for how long each took.
    Frozen { micros: Vec<u64> },
    /// The kernel refused to freeze one; the others are thawed.
    Refused { member: usize, errno: i32 },
    /// The limit is over; thawing has begun.
    Expired,
    /// Nothing is frozen any more, or cannot be thawed: the errno of each, 0 for none. `EINVAL` is for
    /// one that somebody else had thawed.
    Thawed { errnos: Vec<i32> },
}

/// From a helper that has a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestReport {
    /// The agent answers, and nothing is frozen; what will be.
    Ready { targets: Vec<GuestTarget> },
    /// It cannot be asked, or nothing was frozen; `late` when it did not answer in time. A thaw follows a
    /// freeze that failed.
    Failed { why: String, late: bool },
    /// So many file systems are frozen.
    Frozen { count: u64 },
    /// The limit is over; thawing has begun.
    Expired,
    /// Nothing is frozen any more; how many were until now.
    Thawed { count: u64 },
    /// Something may still be frozen; it goes on trying.
    NotThawed { why: String },
}

/// A file system in a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestTarget {
    pub mount_point: String,
    pub file_system: String,
    pub device: String,
}

/// Sends one message, with open directories.
pub fn send<T: Serialize>(to: &OwnedFd, message: &T, with: &[BorrowedFd<'_>]) -> nix::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(|_| Errno::EINVAL)?;
    kernel::send(to.as_fd(), &bytes, with)
}

/// Waits for a message; nothing when the other side has gone.
pub fn receive<T: DeserializeOwned>(from: &OwnedFd) -> nix::Result<Option<(T, Vec<OwnedFd>)>> {
    loop {
        match kernel::receive(from.as_fd()) {
            Err(Errno::EINTR) => {}
            // A packet that was never read when the other side died.
            Err(Errno::ECONNRESET) | Ok(None) => return Ok(None),
            Err(other) => return Err(other),
            Ok(Some((bytes, descriptors))) => {
                let message = serde_json::from_slice(&bytes).map_err(|_| Errno::EBADMSG)?;
                return Ok(Some((message, descriptors)));
            }
        }
    }
}
