//! Device numbers, and opening a directory that has to be on a certain device.
//!
//! Invariants: what [`open`] returns is on the device that was asked for, whatever the path means now.
//! Absent: where devices come from (`devices.rs`, `mounts.rs`).

use std::fmt;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dev {
    pub major: u32,
    pub minor: u32,
}

impl Dev {
    /// From `st_dev` or `st_rdev`.
    #[must_use]
    pub fn of(number: u64) -> Dev {
        Dev { major: libc::major(number), minor: libc::minor(number) }
    }

    /// From `7:0`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Dev> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Dev { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for Dev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A directory, if it is on this device.
#[must_use]
pub fn open(path: &Path, dev: Dev) -> Option<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let directory = File::options().read(true).custom_flags(flags).open(path).ok()?;
    (Dev::of(directory.metadata().ok()?.dev()) == dev).then_some(directory)
}
