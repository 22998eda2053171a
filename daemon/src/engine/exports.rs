//! Exports: which names clients may open, and what opening one gives.
//!
//! Invariants: an open export is in the list of clients until its target is dropped; a snapshot opened by
//! several clients is opened once.
//! Absent: the protocol (`nbd/`).

use std::sync::Arc;

use super::api::ClientInfo;
use super::catalogue::{DiskRecord, SnapshotRecord};
use super::clients::{ClientGuard, Hangup, Pin, Subject};
use super::copies::Source;
use super::{Engine, now};
use crate::crypt::Sealing;
use crate::disk::lazy::{Lazy, Origin};
use crate::disk::meter::Meter;
use crate::disk::{Disk, Extent, Witness};
use crate::error::{Error, ErrorKind, Result};
use crate::map::tree::Tree;
use crate::map::view::View;
use crate::units::{ByteRange, DiskId, Epoch, SnapshotId, TreeId};

/// The tree of what has no blocks in the pool: none is kept under this number.
const NO_TREE: TreeId = TreeId(0);

/// Makes origins of copies, without asking a repository.
pub trait Origins: std::fmt::Debug + Send + Sync {
    /// What has the blocks of a copy.
    ///
    /// # Errors
    /// `ShuttingDown`.
    fn origin(&self, source: &Source) -> Result<Arc<dyn Origin>>;
}

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
        // A hole of what lacks blocks is not what it is going to be.
        let (disk, lacks) = match self.export(name)?.subject {
            Subject::Disk(id) => {
                let lacks = self.disk_lacking(&id).is_some();
                (id, lacks)
            }
            Subject::Snapshot(id) => {
                let snapshot = self.snapshot_record(&id)?;
                let away = snapshot.presence.is_some() && self.check_usable(&snapshot).is_err();
                let lacks = away || self.snapshot_lacking(&snapshot).is_some();
                (snapshot.disk, lacks)
            }
        };
        if lacks {
            return Ok(Vec::new());
        }
        let catalogue = self.catalogue.read();
        let held = catalogue.snapshots_of(&disk).filter(|s| s.is_held());
        let held = held.filter(|s| self.lacking(&catalogue, s.tree, s.node).is_none());
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
                match (self.source_of(id)?, self.origins.get()) {
                    (Some(source), Some(origins)) => {
                        self.open_away(&snapshot, || origins.origin(&source))?
                    }
                    _ => {
                        self.check_usable(&snapshot)?;
                        self.open_snapshot(&snapshot)
                    }
                }
            }
        };
        let engine = Arc::clone(self);
        Ok(Target { disk, engine, subject: export.subject, _listed: listed })
    }

    /// Says who makes origins of copies. The first one counts.
    pub fn set_origins(&self, origins: Box<dyn Origins>) {
        self.origins.get_or_init(|| origins);
    }

    /// A snapshot as a read-only disk.
    pub(super) fn open_snapshot(&self, snapshot: &SnapshotRecord) -> Arc<Disk> {
        let mut opened = self.opened.lock();
        opened.retain(|_, disk| disk.strong_count() > 0);
        if let Some(disk) = opened.get(&snapshot.id).and_then(std::sync::Weak::upgrade) {
            return disk;
        }
        let tree = self.tree(snapshot.tree);
        let sealing = self.sealing(&self.catalogue.read(), snapshot.tree);
        let disk = self.read_only(snapshot, &tree, snapshot.node, sealing);
        self.snapshot_joins_family(snapshot, &disk);
        opened.insert(snapshot.id.clone(), Arc::downgrade(&disk));
        disk
    }

    /// The same of one that is only in a repository: all of it is holes, which are asked of its copy. Nothing that
    /// is fetched is stored.
    fn open_away(
        &self,
        snapshot: &SnapshotRecord,
        origin: impl FnOnce() -> Result<Arc<dyn Origin>>,
    ) -> Result<Arc<Disk>> {
        let mut opened = self.opened.lock();
        opened.retain(|_, disk| disk.strong_count() > 0);
        // Not the one of a time when it was in the pool.
        let found = opened.get(&snapshot.id).and_then(std::sync::Weak::upgrade);
        if let Some(disk) = found.filter(|disk| disk.lazy().is_some()) {
            return Ok(disk);
        }
        let tree = Tree::new(NO_TREE);
        let disk = self.read_only(snapshot, &tree, Epoch(0), Sealing::Plain);
        let lazy = Arc::new(Lazy::default());
        lazy.connect(origin()?);
        disk.fill_from(&lazy);
        opened.insert(snapshot.id.clone(), Arc::downgrade(&disk));
        Ok(disk)
    }

    /// The views of snapshots that have no blocks in the pool.
    pub(super) fn views_of_no_tree(&self) -> Vec<Arc<View>> {
        let opened = self.opened.lock();
        let disks = opened.values().filter_map(std::sync::Weak::upgrade);
        let views = disks.map(|disk| Arc::clone(&disk.view));
        views.filter(|view| view.tree.id == NO_TREE).collect()
    }

    fn read_only(
        &self,
        snapshot: &SnapshotRecord,
        tree: &Arc<Tree>,
        node: Epoch,
        sealing: Sealing,
    ) -> Arc<Disk> {
        let view = View::new(tree, &self.shared.budget, node, false);
        let witness = Arc::clone(&self.corrupt) as Arc<dyn Witness>;
        let label = self.of_snapshot(snapshot).name;
        let shared = Arc::clone(&self.shared);
        Disk::new(label, snapshot.size, view, shared, sealing, witness)
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
