//! Verbs of snapshots: create, delete, change.
//!
//! Invariants: a snapshot is one record, appended while the disk's view is locked: exactly the writes
//! before it are in it; manual snapshots go only when somebody deletes them.
//! Absent: freezing of file systems, copies, policies.

use super::api::{Actor, Consistency, SnapshotChange, SnapshotInfo, SnapshotSpec, Tags};
use super::catalogue::{Cut, DiskRecord, Kind, Op, SnapshotRecord};
use super::disks::{change_tags, check_tags};
use super::names::{check_manual_name, timed_name};
use super::{Engine, now};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, Epoch, SnapshotId};

impl Engine {
    /// Keeps the state of a disk at one instant between the call and the return.
    ///
    /// # Errors
    /// The name will not do, or the quota is reached.
    pub fn snapshot_create(&self, by: Actor, spec: SnapshotSpec) -> Result<SnapshotInfo> {
        check_tags(&spec.tags)?;
        let _shape = self.shape.lock();
        let disk = self.record(&spec.disk)?;
        let head = self.tree(disk.tree).next_epoch()?;
        let cut = self.new_cut(&disk, spec, head, now())?;
        let id = cut.snapshot.id.clone();
        let message = format!("snapshot {}@{} made", disk.name, cut.snapshot.name);
        self.change(by, Op::SnapshotCreate(cut), message)?;
        self.snapshot(&id)
    }

    /// The present of a disk as a snapshot that can be made: its name is free, the quota not reached.
    pub(super) fn new_cut(
        &self,
        disk: &DiskRecord,
        spec: SnapshotSpec,
        head: Epoch,
        at: u64,
    ) -> Result<Cut> {
        self.prepare_family(&disk.id)?;
        self.making.refuse_during_automatic(disk)?;
        self.check_previous(disk)?;
        let name = self.new_snapshot_name(&disk.id, spec.name, at)?;
        self.check_quota(&disk.id, &disk.name)?;
        let presence = spec.copy.map(|copy| self.new_presence(disk, &copy, at)).transpose()?;
        let snapshot = SnapshotRecord {
            id: SnapshotId::random()?,
            name,
            description: spec.description,
            disk: disk.id.clone(),
            size: disk.size,
            created_at: at,
            kind: Kind::Manual,
            expires_at: None,
            tree: disk.tree,
            node: disk.head,
            tags: spec.tags,
            consistency: Consistency::Crash,
            automatic: None,
            presence,
        };
        Ok(Cut { snapshot, head, copy: None })
    }

    /// Deletes a snapshot; its blocks are freed in the background, and so is the copy that is its presence in a
    /// repository. Returns how many bytes of the pool that will be.
    ///
    /// # Errors
    /// `InUse` when disks were made from it or it is open as an export, and `force` is not given; when a disk is
    /// filled from its copy.
    pub fn snapshot_delete(&self, by: Actor, id: &SnapshotId, force: bool) -> Result<u64> {
        let _shape = self.shape.lock();
        let snapshot = self.snapshot_record(id)?;
        self.check_unpinned(&snapshot)?;
        self.check_unused(&snapshot, force)?;
        let _alone = self.clients.exclude_snapshot(id, &snapshot.name, force)?;
        let freed = match snapshot.is_held() {
            true => self.exclusive_bytes(snapshot.tree, snapshot.node)?,
            false => 0,
        };
        let message = format!("snapshot {} deleted", self.snapshot_label(&snapshot));
        let kind = "snapshot.delete".to_owned();
        self.change(by, Op::SnapshotDelete { id: id.clone(), kind }, message)?;
        self.opened.lock().remove(id);
        Ok(freed)
    }

    /// Refuses a snapshot that disks were made from, unless `force` says to go on; and one that a disk is being
    /// filled from.
    pub(super) fn check_unused(&self, snapshot: &SnapshotRecord, force: bool) -> Result<()> {
        self.check_no_filling(snapshot)?;
        let made = self.catalogue.read().made_from(&snapshot.id);
        if made.is_empty() || force {
            return Ok(());
        }
        let made: Vec<String> = made.iter().map(|id| self.disk_name(id)).collect();
        Err(Error::new(
            ErrorKind::InUse,
            format!("{} was made from {}", made.join(", "), snapshot.name),
        )
        .hint("use --force; these disks stay whole, but can no longer be reinitialised"))
    }

    /// Changes name, description or instant access of a snapshot.
    ///
    /// # Errors
    /// The name will not do or is taken; `WrongState` when its instant access cannot begin or end now.
    pub fn snapshot_change(
        &self,
        by: Actor,
        id: &SnapshotId,
        change: SnapshotChange,
    ) -> Result<SnapshotInfo> {
        let shape = self.shape.lock();
        let mut snapshot = self.snapshot_record(id)?;
        if let Some(name) = change.name.filter(|name| *name != snapshot.name) {
            snapshot.name = self.new_snapshot_name(&snapshot.disk, Some(name), 0)?;
        }
        if let Some(description) = change.description {
            snapshot.description = description;
        }
        if let Some(access) = change.access {
            self.change_access(&mut snapshot, access)?;
        }
        self.update_snapshot(by, snapshot, "snapshot.set")?;
        drop(shape);
        self.leave_if_due(by, id)?;
        self.snapshot(id)
    }

    /// Sets and removes tags of a snapshot.
    ///
    /// # Errors
    /// There is no such snapshot, or a tag will not do.
    pub fn tag_snapshot(
        &self,
        by: Actor,
        id: &SnapshotId,
        set: &Tags,
        remove: &[String],
    ) -> Result<SnapshotInfo> {
        let _shape = self.shape.lock();
        let mut snapshot = self.snapshot_record(id)?;
        change_tags(&mut snapshot.tags, set, remove)?;
        self.update_snapshot(by, snapshot, "snapshot.tag")
    }

    /// Deletes snapshots whose time is over, but for those of policies, which have rules of their own. Background
    /// work.
    pub(super) fn expire(&self) -> Result<()> {
        let at = now();
        let due: Vec<SnapshotRecord> = {
            let catalogue = self.catalogue.read();
            let due = |s: &&SnapshotRecord| {
                // What a disk can be taken back to that does not have its contents yet is not its snapshot alone.
                let needed = s.kind == Kind::Undo && catalogue.fillings.contains_key(&s.disk);
                s.kind != Kind::Auto && !needed && catalogue.images_with(&s.id).next().is_none()
            };
            catalogue.ended(at).filter(due).cloned().collect()
        };
        for snapshot in due {
            let _shape = self.shape.lock();
            if self.check_unpinned(&snapshot).and(self.check_no_filling(&snapshot)).is_err() {
                // An image is made of it this instant, or a disk: it goes after that.
                continue;
            }
            // Held until the snapshot is gone, or a client could open it between.
            let alone = self.clients.exclude_snapshot(&snapshot.id, &snapshot.name, false);
            if alone.is_err() {
                // Somebody reads it: the next round comes.
                continue;
            }
            let message = format!("snapshot {} expired", self.snapshot_label(&snapshot));
            let kind = "snapshot.expire".to_owned();
            let op = Op::SnapshotDelete { id: snapshot.id, kind };
            self.change(Actor::DAEMON, op, message)?;
        }
        Ok(())
    }

    fn update_snapshot(
        &self,
        by: Actor,
        snapshot: SnapshotRecord,
        kind: &str,
    ) -> Result<SnapshotInfo> {
        let (id, label) = (snapshot.id.clone(), self.snapshot_label(&snapshot));
        let op = Op::SnapshotUpdate { snapshot, kind: kind.to_owned() };
        self.change(by, op, format!("snapshot {label} changed"))?;
        self.snapshot(&id)
    }

    pub(super) fn new_snapshot_name(
        &self,
        disk: &DiskId,
        name: Option<String>,
        at: u64,
    ) -> Result<String> {
        let catalogue = self.catalogue.read();
        let Some(name) = name else { return Ok(timed_name(&catalogue, disk, "snap", at)) };
        check_manual_name(&name)?;
        if catalogue.snapshot_named(disk, &name).is_some() {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("the disk has a snapshot {name:?} already"),
            )
            .hint("choose another name, or leave it out to get one from the time"));
        }
        Ok(name)
    }

    pub(super) fn check_quota(&self, disk: &DiskId, name: &str) -> Result<()> {
        let manual = self.catalogue.read().counts_of(disk).manual;
        let quota = self.settings.quota_manual;
        if manual < quota {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Quota,
            format!("{name} has {manual} manual snapshots, the quota is {quota}"),
        )
        .hint("delete some (`rowctl snapshot list`), or raise `manual_snapshots` in rowd.toml"))
    }

    pub(super) fn snapshot_label(&self, snapshot: &SnapshotRecord) -> String {
        format!("{}@{}", self.disk_name(&snapshot.disk), snapshot.name)
    }

    pub(super) fn disk_name(&self, id: &DiskId) -> String {
        let catalogue = self.catalogue.read();
        catalogue.disks.get(id).map_or_else(|| id.to_string(), |disk| disk.name.clone())
    }
}
