//! The word to all connections that they stop at the next message boundary.
//!
//! Invariants: once given, the word stays given, and who waits for requests wakes up at once.
//! Absent: what happens to the connections then (`keep.rs`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Shared by all connections of a server.
#[derive(Debug)]
pub struct Leave {
    given: AtomicBool,
    event: EventFd,
}

impl Leave {
    /// # Errors
    /// The system has no descriptor left.
    pub fn new() -> io::Result<Leave> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Leave { given: AtomicBool::new(false), event: EventFd::from_flags(flags)? })
    }

    /// Gives the word.
    ///
    /// # Errors
    /// Those asleep could not be woken.
    pub fn give(&self) -> io::Result<()> {
        self.given.store(true, Ordering::SeqCst);
        self.event.write(1)?;
        Ok(())
    }

    #[must_use]
    pub fn is_given(&self) -> bool {
        self.given.load(Ordering::Relaxed)
    }
}

impl AsFd for Leave {
    /// Readable from when the word is given.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
