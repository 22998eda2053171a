//! Snapshots that are being made above the crash level, or by a policy: which disks they are of.
//!
//! Invariants: an automatic snapshot begins only where none is being made; while one is, a manual one of its disk is
//! refused; what would change a disk under a snapshot is refused until that is made or has failed.
//! Absent: the snapshots. One at the crash level is made in an instant and never seen here.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Engine;
use super::catalogue::DiskRecord;
use crate::error::{Error, ErrorKind, Result};
use crate::units::DiskId;

/// Disks of which snapshots are being made, and whether by policies.
#[derive(Clone, Debug, Default)]
pub struct Makings {
    disks: Arc<Mutex<Vec<(DiskId, bool)>>>,
}

/// While this lives, snapshots of these disks are being made.
#[derive(Debug)]
pub struct Making {
    all: Makings,
    disks: Vec<DiskId>,
    automatic: bool,
}

impl Drop for Making {
    fn drop(&mut self) {
        let mut all = self.all.disks.lock();
        for disk in &self.disks {
            let own =
                |(other, automatic): &(DiskId, bool)| other == disk && *automatic == self.automatic;
            if let Some(at) = all.iter().position(own) {
                all.swap_remove(at);
            }
        }
    }
}

impl Makings {
    /// Refuses a manual snapshot while an automatic one of the disk is being made.
    pub(super) fn refuse_during_automatic(&self, disk: &DiskRecord) -> Result<()> {
        match self.disks.lock().iter().any(|(id, automatic)| *id == disk.id && *automatic) {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::WrongState,
                format!("an automatic snapshot of {} is being made", disk.name),
            )
            .hint("try again when it is done: `rowctl events --follow`")),
        }
    }

    /// Refuses to change a disk of which a snapshot is being made.
    pub(super) fn refuse(&self, disk: &DiskRecord, what: &str) -> Result<()> {
        match self.disks.lock().iter().any(|(id, _)| *id == disk.id) {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::WrongState,
                format!("{} cannot be {what}: a snapshot of it is being made", disk.name),
            )
            .hint("wait until it is done; `rowctl freeze status` tells how far it is")),
        }
    }
}

impl Engine {
    /// Refuses to do something to a disk of which a snapshot is being made.
    ///
    /// # Errors
    /// `WrongState`; there is no such disk.
    pub fn refuse_making(&self, disk: &DiskId, what: &str) -> Result<()> {
        self.making.refuse(&self.record(disk)?, what)
    }

    /// Snapshots of these disks are being made until the guard goes.
    ///
    /// # Errors
    /// `WrongState` when an automatic one is in the way, or anything is in the way of an automatic one.
    pub fn snapshot_begins(&self, disks: &[DiskId], automatic: bool) -> Result<Making> {
        let mut all = self.making.disks.lock();
        for disk in disks {
            let other = all.iter().find(|(id, other)| id == disk && (automatic || *other));
            if let Some((_, other)) = other {
                let kind = if *other { "an automatic" } else { "a manual" };
                let name = self.disk_name(disk);
                return Err(Error::new(
                    ErrorKind::WrongState,
                    format!("{kind} snapshot of {name} is being made"),
                )
                .hint("try again when it is done: `rowctl events --follow`"));
            }
        }
        all.extend(disks.iter().map(|disk| (disk.clone(), automatic)));
        Ok(Making { all: self.making.clone(), disks: disks.to_vec(), automatic })
    }
}
