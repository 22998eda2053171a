//! Protection: disks and snapshots that nobody is to lose by mistake.
//!
//! Invariants: what is protected is not deleted, rolled back, reinitialised or made smaller, by nobody and with no
//! force, until the protection is taken away; that is a change of its own, with an event.
//! Absent: protection of data from writes, which is `read_only`.

use super::Engine;
use super::api::{Actor, DiskInfo, SnapshotInfo};
use super::catalogue::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, SnapshotId};

impl Engine {
    /// Protects a disk, or no longer.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn disk_protect(&self, by: Actor, id: &DiskId, on: bool) -> Result<DiskInfo> {
        let _shape = self.shape.lock();
        let name = self.record(id)?.name;
        self.protect(by, ("disk", id.as_str()), &name, on)?;
        self.disk(id)
    }

    /// Protects a snapshot, or no longer.
    ///
    /// # Errors
    /// There is no such snapshot.
    pub fn snapshot_protect(&self, by: Actor, id: &SnapshotId, on: bool) -> Result<SnapshotInfo> {
        let _shape = self.shape.lock();
        let label = self.snapshot_label(&self.snapshot_record(id)?);
        self.protect(by, ("snapshot", id.as_str()), &label, on)?;
        self.snapshot(id)
    }

    fn protect(&self, by: Actor, what: (&str, &str), name: &str, on: bool) -> Result<()> {
        let (noun, object) = what;
        if self.catalogue.read().is_protected(object) == on {
            return Ok(());
        }
        let (verb, state) =
            if on { ("protect", "protected") } else { ("unprotect", "no longer protected") };
        let kind = format!("{noun}.{verb}");
        let op = Op::Protect { object: object.to_owned(), on, kind };
        self.change(by, op, format!("{noun} {name} {state}"))
    }

    /// Refuses what would lose something of a disk that is protected. Callers that do something to its clients or
    /// device first ask first.
    ///
    /// # Errors
    /// `WrongState`.
    pub fn refuse_protected(&self, id: &DiskId, what: &str) -> Result<()> {
        if !self.catalogue.read().is_protected(id.as_str()) {
            return Ok(());
        }
        let name = self.disk_name(id);
        let message = format!("disk {name} is protected and cannot be {what}");
        Err(Error::new(ErrorKind::WrongState, message)
            .hint(format!("force does not help; first: rowctl disk set {name} --no-protect")))
    }

    pub(super) fn refuse_protected_snapshot(&self, id: &SnapshotId, label: &str) -> Result<()> {
        if !self.catalogue.read().is_protected(id.as_str()) {
            return Ok(());
        }
        let message = format!("snapshot {label} is protected and cannot be deleted");
        Err(Error::new(ErrorKind::WrongState, message)
            .hint(format!("force does not help; first: rowctl snapshot set {label} --no-protect")))
    }
}
