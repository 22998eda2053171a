//! Exports: which names clients may open, and what opening one gives.
//!
//! Invariants: an open export is in the list of clients until its target is dropped; a snapshot opened by
//! several clients is opened once.
//! Absent: the protocol (`nbd/`).

use std::sync::Arc;

use super::api::ClientInfo;
use super::catalogue::{DiskRecord, SnapshotRecord};
use super::clients::{ClientGuard, Hangup, Pin, Subject};
use super::{Engine, now};
use crate::disk::meter::Meter;
use crate::disk::{Disk, Extent, Witness};
use crate::error::{Error, ErrorKind, Result};
use crate::map::view::View;
use crate::units::{ByteRange, DiskId, SnapshotId};

/// An export as one connection holds it.
#[derive(Debug)]
pub struct Target {
    pub disk: Arc<Disk>,
    engine: Arc<Engine>,
    subject: Subject,
    _listed: ClientGuard,
}

/// What a name means.
#[derive(Clone, Debug)]
pub struct ExportRecord {
    /// `disk` or `disk@snapshot`.
    pub name: String,
    pub description: String,
    pub size: u64,
    pub read_only: bool,
    pub(super) subject: Subject,
}

impl Engine {
    /// Ends all connections, at shutdown.
    pub fn hang_up_all(&self) {
        self.clients.hang_up_all();
    }

    /// All disks, by name.
    #[must_use]
    pub fn exports(&self) -> Vec<ExportRecord> {
        let catalogue = self.catalogue.read();
        let mut found: Vec<_> = catalogue.disks.values().map(of_disk).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// What an export name means.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn export(&self, name: &str) -> Result<ExportRecord> {
        if name.contains('@') {
            let snapshot = self.snapshot_record(&self.find_snapshot(name)?)?;
            return Ok(self.of_snapshot(&snapshot));
        }
        Ok(of_disk(&self.record(&self.find_disk(name)?)?))
    }

    /// The export of an id that [`Target::export_id`] has told.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn export_of_id(&self, id: &str) -> Result<ExportRecord> {
        if id.starts_with(SnapshotId::PREFIX) {
            let snapshot = self.snapshot_record(&SnapshotId::from(id))?;
            return Ok(self.of_snapshot(&snapshot));
        }
        Ok(of_disk(&self.record(&DiskId::from(id))?))
    }

    /// The names of the snapshots that changes of an export can be told against.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn dirty_bases(&self, name: &str) -> Result<Vec<String>> {
        let disk = match self.export(name)?.subject {
            Subject::Disk(id) => id,
            Subject::Snapshot(id) => self.snapshot_record(&id)?.disk,
        };
        let catalogue = self.catalogue.read();
        if catalogue.fillings.contains_key(&disk) {
            // A hole is not yet what it is going to be.
            return Ok(Vec::new());
        }
        let held = catalogue.snapshots_of(&disk).filter(|s| s.is_held());
        Ok(held.map(|s| s.name.clone()).collect())
    }

    /// Opens an export for a client. `hangup` ends the connection from outside.
    ///
    /// # Errors
    /// `NotFound`; `ShuttingDown` while the disk is rolled back or deleted.
    pub fn open_export(
        self: &Arc<Self>,
        name: &str,
        peer: &str,
        pid: Option<i32>,
        hangup: Hangup,
    ) -> Result<Target> {
        let export = self.export(name)?;
        self.check_unlocked(&export)?;
        let info =
            ClientInfo { export: export.name, pid, peer: peer.to_owned(), connected_at: now() };
        // Listed first: from here on nobody changes the disk under us.
        let listed = self.clients.add(export.subject.clone(), info, Pin::Held, hangup)?;
        let disk = match &export.subject {
            Subject::Disk(id) => {
                self.refuse_unfilled(id)?;
                self.live(id)?
            }
            Subject::Snapshot(id) => {
                let snapshot = self.snapshot_record(id)?;
                self.check_usable(&snapshot)?;
                self.open_snapshot(&snapshot)
            }
        };
        let engine = Arc::clone(self);
        Ok(Target { disk, engine, subject: export.subject, _listed: listed })
    }

    /// A snapshot as a read-only disk.
    pub(super) fn open_snapshot(&self, snapshot: &SnapshotRecord) -> Arc<Disk> {
        let mut opened = self.opened.lock();
        opened.retain(|_, disk| disk.strong_count() > 0);
        if let Some(disk) = opened.get(&snapshot.id).and_then(std::sync::Weak::upgrade) {
            return disk;
        }
        let tree = self.tree(snapshot.tree);
        let view = View::new(&tree, &self.shared.budget, snapshot.node, false);
        let witness = Arc::clone(&self.corrupt) as Arc<dyn Witness>;
        let label = self.of_snapshot(snapshot).name;
        let shared = Arc::clone(&self.shared);
        let sealing = self.sealing(&self.catalogue.read(), snapshot.tree);
        let disk = Disk::new(label, snapshot.size, view, shared, sealing, witness);
        opened.insert(snapshot.id.clone(), Arc::downgrade(&disk));
        disk
    }

    fn of_snapshot(&self, snapshot: &SnapshotRecord) -> ExportRecord {
        let catalogue = self.catalogue.read();
        let disk = catalogue.disks.get(&snapshot.disk);
        let disk = disk.map_or_else(|| snapshot.disk.to_string(), |disk| disk.name.clone());
        ExportRecord {
            name: format!("{disk}@{}", snapshot.name),
            description: snapshot.description.clone(),
            size: snapshot.size,
            read_only: true,
            subject: Subject::Snapshot(snapshot.id.clone()),
        }
    }
}

fn of_disk(disk: &DiskRecord) -> ExportRecord {
    ExportRecord {
        name: disk.name.clone(),
        description: disk.description.clone(),
        size: disk.size,
        read_only: disk.read_only,
        subject: Subject::Disk(disk.id.clone()),
    }
}

impl Target {
    pub(super) fn new(
        disk: Arc<Disk>,
        engine: Arc<Engine>,
        subject: Subject,
        listed: ClientGuard,
    ) -> Target {
        Target { disk, engine, subject, _listed: listed }
    }

    /// Where requests on this export are counted.
    #[must_use]
    pub fn meter(&self) -> Arc<Meter> {
        self.engine.meter(&self.subject)
    }

    /// The id of the disk or snapshot.
    #[must_use]
    pub fn export_id(&self) -> &str {
        match &self.subject {
            Subject::Disk(id) => id.as_str(),
            Subject::Snapshot(id) => id.as_str(),
        }
    }

    /// The stretches of a range that changed (`stored`) or did not since the snapshot `base` of the
    /// same disk; as [`Disk::extents`].
    ///
    /// # Errors
    /// `NotFound` when the snapshot has been deleted meanwhile.
    pub fn changed_since(&self, base: &str, range: ByteRange, limit: usize) -> Result<Vec<Extent>> {
        let disk = match &self.subject {
            Subject::Disk(id) => id.clone(),
            Subject::Snapshot(id) => self.engine.snapshot_record(id)?.disk,
        };
        let base = {
            let catalogue = self.engine.catalogue.read();
            let found = catalogue.snapshot_named(&disk, base).cloned();
            found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no snapshot {base}")))?
        };
        if self.disk.lazy().is_some() {
            let message = format!("{} does not have its contents yet", self.disk.label);
            return Err(Error::new(ErrorKind::WrongState, message));
        }
        // Held on to: what is freed under a comparison would look unchanged.
        let base =
            self.engine.pin_snapshot(&base.id, "a comparison", Pin::Yields, Box::new(|| {}))?;
        super::diff::extents(&base.disk, &self.disk, range, limit)
    }
}
