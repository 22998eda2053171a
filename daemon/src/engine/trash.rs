//! Deleted disks that can be brought back, and what goes with a disk.
//!
//! Invariants: a disk in the trash is what it was when it was deleted: its last node is frozen, its snapshots are
//! there; it goes for good when its time is over, when somebody says so, or when the pool is short of space, the one
//! deleted first before others. Automatic snapshots go with their disk only if that was set, and the instant access of all
//! its snapshots ends with it, both when it goes for good.
//! Absent: deleted snapshots, which do not come back.

use super::api::{Actor, DiskInfo, Released, TrashInfo};
use super::attachments::refuse_attached;
use super::catalogue::{Catalogue, DiskRecord, Kind, NewDisk, Op, SnapshotRecord, TrashRecord};
use super::clients::Subject;
use super::names::by_prefix;
use super::{Engine, known, now};
use crate::error::{Error, ErrorKind, Result};
use crate::map::view::State;
use crate::units::{BLOCK_SIZE, DiskId, SnapshotId};

/// With fewer blocks to write to than this (1 GiB), or than a tenth of the pool, disks in the trash go.
const SHORT_BLOCKS: u64 = (1 << 30) / BLOCK_SIZE;
const SHORT_SHARE: u64 = 10;

impl Engine {
    /// Deletes a disk: into the trash, unless `at_once` is given or there is no trash.
    ///
    /// # Errors
    /// `InUse` when it is attached, or clients are connected and `force` is not given.
    pub fn disk_release(
        &self,
        by: Actor,
        id: &DiskId,
        force: bool,
        at_once: bool,
    ) -> Result<Released> {
        let kept = self.settings.trash_kept.as_secs();
        if at_once || kept == 0 || self.disk_lacking(id).is_some() {
            let snapshots = self.disk_delete(by, id, force)?;
            return Ok(Released { until: None, snapshots });
        }
        let _shape = self.shape.lock();
        let record = self.record(id)?;
        self.refuse_protected(id, "deleted")?;
        refuse_attached(&record, "deleted")?;
        self.making.refuse(&record, "deleted")?;
        let _alone = self.clients.exclude(id, &record.name, force)?;
        self.shared.pool.sync()?;
        let until = now().saturating_add(kept);
        let message = format!("disk {} moved to the trash", record.name);
        self.change(by, Op::DiskTrash { id: id.clone(), until }, message)?;
        Ok(Released { until: Some(until), snapshots: 0 })
    }

    /// Disks in the trash, by when they were deleted.
    #[must_use]
    pub fn trash(&self) -> Vec<TrashInfo> {
        let mut records: Vec<TrashRecord> = self.catalogue.read().trash.values().cloned().collect();
        records.sort_by_key(|one| one.order);
        let info = |TrashRecord { disk, deleted_at, until, .. }: TrashRecord| {
            let snapshots = self.catalogue.read().counts_of(&disk.id).kept() as u64;
            // A node that cannot be looked at now is told without a size.
            let exclusive_bytes = self.exclusive_bytes(disk.tree, disk.head).unwrap_or(0);
            let (id, name, size) = (disk.id, disk.name, disk.size);
            TrashInfo { id, name, size, deleted_at, until, exclusive_bytes, snapshots }
        };
        records.into_iter().map(info).collect()
    }

    /// Brings a disk back, under its name or another one.
    ///
    /// # Errors
    /// The name is taken, or there is no such disk in the trash.
    pub fn trash_restore(&self, by: Actor, id: &DiskId, name: Option<&str>) -> Result<DiskInfo> {
        let _shape = self.shape.lock();
        let TrashRecord { mut disk, .. } = self.trashed(id)?;
        if let Some(name) = name {
            name.clone_into(&mut disk.name);
        }
        self.check_new_disk_name(&disk.name).map_err(|error| match error.kind() {
            ErrorKind::Exists => error.hint("bring it back under another one: --name NEW"),
            _ => error,
        })?;
        {
            let catalogue = self.catalogue.read();
            disk.policy = disk.policy.filter(|policy| catalogue.policies.contains_key(&policy.id));
            if let Some(policy) = &mut disk.policy {
                policy.since = now();
            }
            disk.instance = disk.instance.filter(|id| catalogue.instances.contains_key(id));
            // That of its instance counts, if that has one by now.
            if catalogue.instance_of(&disk).policy.is_some() {
                disk.policy = None;
            }
        }
        let parent = Some(disk.head);
        disk.head = self.tree(disk.tree).next_epoch()?;
        let message = format!("disk {} brought back from the trash", disk.name);
        let disk = NewDisk { disk, parent, key: None };
        self.change(by, Op::DiskRestore { disk }, message)?;
        self.disk(id)
    }

    /// Deletes a disk in the trash for good; returns how many automatic snapshots went with it.
    ///
    /// # Errors
    /// There is no such disk in the trash, or an image is made of a snapshot that would go with it.
    pub fn trash_purge(&self, by: Actor, id: &DiskId, why: &str) -> Result<u64> {
        let _shape = self.shape.lock();
        let TrashRecord { disk, .. } = self.trashed(id)?;
        self.check_undo_unpinned(&disk)?;
        let (snapshots, _alone) = self.automatics_to_go(&disk);
        self.shared.pool.sync()?;
        let count = snapshots.len() as u64;
        let message = format!("disk {} deleted for good: {why}{}", disk.name, with(count));
        self.change(by, Op::DiskPurge { id: id.clone(), snapshots }, message)?;
        Ok(count)
    }

    /// The name of a disk, also of one in the trash; the id of one that is gone.
    #[must_use]
    pub fn name_of_disk(&self, id: &DiskId) -> String {
        let catalogue = self.catalogue.read();
        catalogue.disk_or_trash(id).map_or_else(|| id.to_string(), |disk| disk.name.clone())
    }

    /// The disk in the trash that an id, a name or a unique beginning of an id means.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when several are meant.
    pub fn find_trashed(&self, name: &str) -> Result<DiskId> {
        let catalogue = self.catalogue.read();
        let id = DiskId::from(name);
        if catalogue.trash.contains_key(&id) {
            return Ok(id);
        }
        let named: Vec<&DiskId> = catalogue
            .trash
            .values()
            .filter(|one| one.disk.name == name)
            .map(|one| &one.disk.id)
            .collect();
        match named.as_slice() {
            [] => {}
            [one] => return Ok((*one).clone()),
            several => {
                let ids: Vec<&str> = several.iter().map(|id| id.as_str()).collect();
                return Err(Error::invalid(format!(
                    "{} disks in the trash were called {name:?}",
                    ids.len()
                ))
                .hint(format!("name one by its id: {}", ids.join(", "))));
            }
        }
        by_prefix(DiskId::PREFIX, name, catalogue.trash.keys().map(DiskId::as_str))?
            .map(DiskId::from)
            .ok_or_else(|| {
                Error::not_found(format!("no disk {name:?} is in the trash"))
                    .hint("see `rowctl trash list`")
            })
    }

    /// Deletes disks in the trash whose time is over. Background work.
    pub(super) fn empty_trash(&self) -> Result<()> {
        let at = now();
        let due = |one: &TrashRecord| one.until <= at;
        let due: Vec<DiskId> = {
            let catalogue = self.catalogue.read();
            let records = catalogue.trash.values().filter(|one| due(one));
            records.map(|one| one.disk.id.clone()).collect()
        };
        due.iter().try_for_each(|id| self.purge_unasked(id, "its time in the trash was over"))
    }

    /// Deletes the disk that was deleted first when the pool is short of space. Background work.
    pub(super) fn give_up_trash(&self) -> Result<()> {
        let oldest = {
            let catalogue = self.catalogue.read();
            let oldest = catalogue.trash.values().min_by_key(|one| one.order);
            oldest.map(|one| one.disk.id.clone())
        };
        let Some(oldest) = oldest else { return Ok(()) };
        let (room, whole) = self.shared.pool.with_allocator(|a| {
            let geometry = a.geometry();
            let whole = u64::from(geometry.max_segments) * u64::from(geometry.segment_blocks);
            (a.room(), whole)
        });
        // What is being freed already may be enough.
        if room >= SHORT_BLOCKS.min(whole / SHORT_SHARE) || self.reclaiming() > 0 {
            return Ok(());
        }
        self.purge_unasked(&oldest, "the pool was short of space")
    }

    fn purge_unasked(&self, id: &DiskId, why: &str) -> Result<()> {
        match self.trash_purge(Actor::DAEMON, id, why) {
            // Brought back this instant, or an image is made of it: it goes after the image.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InUse) => Ok(()),
            purged => purged.map(drop),
        }
    }

    /// The snapshots that go with a disk: those kept for undo, and automatic ones if that was set.
    pub(super) fn goes_with(&self, disk: &DiskRecord) -> Vec<SnapshotRecord> {
        let catalogue = self.catalogue.read();
        let all = catalogue.snapshots_of(&disk.id);
        let goes = |snapshot: &&SnapshotRecord| match snapshot.kind {
            Kind::Undo => true,
            Kind::Auto => disk.delete_auto && self.is_free(&catalogue, snapshot),
            Kind::Manual => false,
        };
        all.filter(goes).cloned().collect()
    }

    /// Automatic snapshots that go with a disk, and what keeps clients away from them.
    pub(super) fn automatics_to_go(
        &self,
        disk: &DiskRecord,
    ) -> (Vec<SnapshotId>, Vec<super::clients::Exclusion>) {
        let (mut ids, mut alone) = (Vec::new(), Vec::new());
        for snapshot in self.goes_with(disk).into_iter().filter(|one| one.kind == Kind::Auto) {
            // One that is opened this instant, or that a disk is filled from, stays, and goes at its time.
            if self.check_no_filling(&snapshot).is_ok()
                && let Ok(exclusion) =
                    self.clients.exclude_snapshot(&snapshot.id, &snapshot.name, false)
            {
                alone.push(exclusion);
                ids.push(snapshot.id);
            }
        }
        (ids, alone)
    }

    fn is_free(&self, catalogue: &Catalogue, snapshot: &SnapshotRecord) -> bool {
        catalogue.images_with(&snapshot.id).next().is_none()
            && catalogue.made_from(&snapshot.id).is_empty()
            && !catalogue.is_protected(snapshot.id.as_str())
            && !catalogue.is_being_copied(&snapshot.id)
            && self.clients.of(&Subject::Snapshot(snapshot.id.clone())).is_empty()
    }

    fn trashed(&self, id: &DiskId) -> Result<TrashRecord> {
        let found = self.catalogue.read().trash.get(id).cloned();
        found.ok_or_else(|| {
            Error::not_found(format!("no disk {id} is in the trash"))
                .hint("see `rowctl trash list`")
        })
    }

    pub(super) fn apply_trash(
        &self,
        catalogue: &mut Catalogue,
        record: (&DiskId, u64, u64),
        head: &mut State,
    ) -> Result<()> {
        let (id, deleted_at, until) = record;
        let disk = known(catalogue.remove_disk(id))?;
        let live = known(self.disks.write().remove(id))?;
        live.view.close(head);
        let order = catalogue.events.back().map_or(0, |event| event.seq);
        catalogue.put_trash(TrashRecord { disk, deleted_at, until, order });
        Ok(())
    }

    pub(super) fn apply_restore(&self, catalogue: &mut Catalogue, disk: NewDisk) -> Result<()> {
        let before = known(catalogue.remove_trash(&disk.disk.id))?.disk;
        self.apply_new_disk(catalogue, disk);
        // The new head has taken its place.
        self.tree(before.tree).release(before.head);
        self.reclaim_wanted.raise();
        Ok(())
    }

    pub(super) fn apply_purge(
        &self,
        catalogue: &mut Catalogue,
        id: &DiskId,
        snapshots: &[SnapshotId],
    ) -> Result<()> {
        let disk = known(catalogue.remove_trash(id))?.disk;
        catalogue.end_access_of(id);
        self.tree(disk.tree).release(disk.head);
        self.forget_with_disk(catalogue, &disk, snapshots)
    }

    /// Removes what goes with a disk that is gone for good.
    pub(super) fn forget_with_disk(
        &self,
        catalogue: &mut Catalogue,
        disk: &DiskRecord,
        snapshots: &[SnapshotId],
    ) -> Result<()> {
        let of_disk = catalogue.snapshots_of(&disk.id);
        let undo: Vec<SnapshotId> =
            of_disk.filter(|s| s.kind == Kind::Undo).map(|s| s.id.clone()).collect();
        for snapshot in undo.iter().chain(snapshots) {
            self.apply_snapshot_delete(catalogue, snapshot)?;
        }
        self.end_needless_families(catalogue);
        self.forget_unused_key(catalogue, disk.tree);
        self.reclaim_wanted.raise();
        Ok(())
    }
}

/// How automatic snapshots that go with a disk are told.
pub(super) fn with(count: u64) -> String {
    match count {
        0 => String::new(),
        1 => ", with 1 automatic snapshot".to_owned(),
        count => format!(", with {count} automatic snapshots"),
    }
}
