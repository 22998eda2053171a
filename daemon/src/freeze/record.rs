//! The record of a freeze: what is frozen, in a file that outlives the daemon and its helper.
//!
//! Invariants: it is written before the first file system is frozen and removed after the last is thawed;
//! it counts only in the boot it was written in.
//! Absent: writing it, which only the daemon does (`helpers.rs`), and acting on it (`helper/recorded.rs`). The helper
//! is built of this file too, without the library.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The device of a virtual machine; its mount point is the socket of its guest agent.
pub const AGENT: &str = "guest-agent";

/// What was about to be frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The boot of the kernel that froze.
    pub boot: String,
    /// What it is for: the name of a snapshot or group.
    pub what: String,
    pub members: Vec<Recorded>,
    /// The kernel may be in a hurry for it (`hurry.rs`) and was not before.
    #[serde(default)]
    pub hurried: bool,
}

/// One file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// `major:minor`, or [`AGENT`].
    pub device: String,
    pub mount_point: String,
}

impl Record {
    /// The record of this boot, if there is one.
    ///
    /// # Errors
    /// There is a file that cannot be read or understood.
    pub fn read(path: &Path) -> io::Result<Option<Record>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record: Record = serde_json::from_str(&text)?;
        Ok((record.boot == boot()).then_some(record))
    }

    /// The record of virtual machines that goes with one of file systems.
    #[must_use]
    pub fn guests(path: &Path) -> PathBuf {
        path.with_extension("guests.json")
    }

    /// # Errors
    /// It is there and cannot be removed.
    pub fn remove(path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The id of this boot; nothing where the kernel does not tell, which is the same for all.
#[must_use]
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
