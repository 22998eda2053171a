//! Who can make what runs on disks stand still: the file systems of this host, or a virtual machine.
//!
//! Invariants: a provider freezes everything it has, or nothing; what it froze it thaws by itself at its
//! deadline, whatever becomes of the daemon.
//! Absent: the order of the phases around it (`operation.rs`).

use std::fmt;
use std::time::Duration;

use crate::error::Result;

/// Something that will stand still, in words for the log and the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where it is mounted, on this host or in the machine.
    pub mount_point: String,
    /// `ext4`, `xfs`.
    pub file_system: String,
    /// `/dev/nbd0`, or whatever tells it from others.
    pub device: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} on {})", self.mount_point, self.file_system, self.device)
    }
}

/// How well a freeze held until it was ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Everything was frozen until now.
    Throughout,
    /// Somebody else thawed before: what was cut is an instant under live I/O. Says who or what.
    Interrupted(String),
    /// The deadline passed before, this long ago.
    Expired(Duration),
}

/// Freezes and thaws. Made for one operation, by something that has checked that it can.
pub trait Provider: fmt::Debug + Send {
    /// What it freezes.
    fn targets(&self) -> Vec<Target>;

    /// Freezes everything, or nothing. The deadline begins to run here.
    ///
    /// # Errors
    /// `FreezeFailed`, or `TimedOut` when the deadline passed; nothing stays frozen then.
    fn freeze(&mut self) -> Result<()>;

    /// Whether everything is still frozen; asked right before the cut.
    ///
    /// # Errors
    /// `TimedOut` when the deadline has passed, `Cancelled` when somebody asked to thaw.
    fn holds(&self) -> Result<()>;

    /// Thaws everything. Calling it again does nothing.
    ///
    /// # Errors
    /// `ThawFailed`: something may still be frozen; the provider goes on trying.
    fn thaw(&mut self) -> Result<Held>;
}
