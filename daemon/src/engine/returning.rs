//! A disk returns to a snapshot whose blocks are only in a repository, and may be taken back from there.
//!
//! The new head goes below the state in the pool that is nearest to the snapshot: what has not changed since is
//! there already. What has changed becomes holes, and the disk is filled from the copy while it is used.
//!
//! Invariants: one record makes the disk the snapshot, with the state before kept for undo; nobody uses it before
//! what changed is gone from it, which the next start finishes; until it has all its contents the state before does
//! not expire.
//! Absent: reading copies (`vault/returning.rs`); snapshots that are in the pool (`disks.rs`).

use std::collections::BTreeSet;

use super::api::{Actor, ClientInfo, Rollback};
use super::catalogue::{Catalogue, DiskRecord, Op, SnapshotRecord, Turn};
use super::copies::{Filling, Source};
use super::disks::told;
use super::filled::Filled;
use super::filling::FETCH;
use super::{Engine, Head, RETURNED, known};
use crate::disk::lane::Lane;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::pool::superblock;
use crate::units::{DiskId, Epoch, SnapshotId};

/// Where a disk returns to.
#[derive(Clone, Debug)]
pub struct Goal {
    pub source: Source,
    /// What the snapshot is called.
    pub name: String,
    /// Bytes of the disk then.
    pub size: u64,
    /// The copy is the snapshot, and goes with it.
    pub own: bool,
}

impl Engine {
    /// Where a disk finds a snapshot of its own: nothing said, in the pool; else in this copy.
    ///
    /// # Errors
    /// `WrongState` when it is another disk's, or cannot be used neither here nor there; `NotFound`.
    pub fn way_back(&self, disk: &DiskId, to: &SnapshotId) -> Result<Option<Goal>> {
        let snapshot = self.snapshot_of(disk, to)?;
        let (name, size) = (snapshot.name, snapshot.size);
        Ok(self.source_of(to)?.map(|source| Goal { source, name, size, own: true }))
    }

    /// Refuses what cannot return anywhere now.
    ///
    /// # Errors
    /// `NotPermitted` for a protected disk; `WrongState` for one that cannot be used yet.
    pub fn refuse_return(&self, disk: &DiskId) -> Result<()> {
        self.refuse_protected(disk, RETURNED)?;
        self.refuse_unfilled(disk)
    }

    /// A snapshot of this disk, which can return to no other.
    pub(super) fn snapshot_of(&self, disk: &DiskId, to: &SnapshotId) -> Result<SnapshotRecord> {
        let snapshot = self.snapshot_record(to)?;
        if snapshot.disk == *disk {
            return Ok(snapshot);
        }
        let message = format!(
            "{} is a snapshot of another disk, not of {}",
            snapshot.name,
            self.disk_name(disk)
        );
        Err(Error::new(ErrorKind::WrongState, message)
            .hint(format!("make a disk of it: `rowctl disk create NAME --from {to}`")))
    }

    /// Returns a disk to a snapshot that is in a repository. It can be used from now on; whoever asked fills it.
    ///
    /// # Errors
    /// As [`Engine::disk_rollback`]; the snapshot has been deleted meanwhile.
    pub fn disk_return(
        &self,
        by: Actor,
        id: &DiskId,
        goal: &Goal,
        force: bool,
    ) -> Result<(Rollback, Filling)> {
        let shape = self.shape.lock();
        let disk = self.record(id)?;
        self.refuse_return(id)?;
        self.refuse_second_filling(id)?;
        self.still_there(&disk, goal)?;
        let alone = self.clients.exclude(id, &disk.name, force)?;
        let head = self.tree(disk.tree).next_epoch()?;
        let (turn, filling, done) = self.turn_away(&disk, goal, head, alone.ended.clone())?;
        let Source { repo, copy, .. } = &goal.source;
        let message =
            format!("disk {} rolled back to {}, copy {copy} in {repo}", disk.name, goal.name);
        let kind = "disk.rollback".to_owned();
        self.change(by, Op::DiskReturn { turn, filling: filling.clone(), kind }, message)?;
        drop((alone, shape));
        self.clear_changes(id)?;
        Ok((done, Filling { clear: None, ..filling }))
    }

    /// What the way of a disk to a copy is, from where its blocks come then, and how it is told.
    pub(super) fn turn_away(
        &self,
        disk: &DiskRecord,
        goal: &Goal,
        head: Epoch,
        disconnected: Vec<ClientInfo>,
    ) -> Result<(Turn, Filling, Rollback)> {
        self.refuse_second_filling(&disk.id)?;
        let snapshot = self.still_there(disk, goal)?;
        let mut turn = self.turn(disk, None, head, "before-rollback")?;
        let nearest = snapshot.and_then(|old| Some((self.nearest(disk, old.node)?, old.node)));
        turn.parent = nearest.map(|(parent, _)| parent);
        turn.size = disk.size.max(goal.size);
        turn.undo.description =
            format!("{} as it was before it returned to {}", disk.name, goal.name);
        let mut done = told(&turn, None, disconnected);
        done.to = Some(goal.source.snapshot.clone());
        done.grown_since = goal.size < turn.size;
        // An older rowd would use the disk before what changed is gone.
        self.shared.pool.require_version(superblock::RETURN_VERSION)?;
        let clear = nearest.map(|(_, since)| since);
        let filling = Filling { clear, ..goal.source.clone().of(&disk.id) };
        Ok((turn, filling, done))
    }

    /// What is known of the snapshot a disk is to return to, if anything.
    pub(super) fn still_there(
        &self,
        disk: &DiskRecord,
        goal: &Goal,
    ) -> Result<Option<SnapshotRecord>> {
        let catalogue = self.catalogue.read();
        let Source { copy, snapshot, .. } = &goal.source;
        let found = catalogue.snapshots.get(snapshot).cloned();
        let found = found.filter(|one| one.disk == disk.id && one.tree == disk.tree);
        let leaves = catalogue.copies.get(copy).is_some_and(|copy| copy.deleting);
        if leaves || (goal.own && found.is_none()) {
            return Err(Error::not_found(format!("{} has been deleted meanwhile", goal.name)));
        }
        Ok(found)
    }

    /// The state in the pool that has most in common with a node which may no longer be there: of those that
    /// came after it, in its line, the first. The present counts, as it is going to be kept.
    fn nearest(&self, disk: &DiskRecord, to: Epoch) -> Option<Epoch> {
        let catalogue = self.catalogue.read();
        let held = catalogue.snapshots.values().filter(|s| s.tree == disk.tree && s.is_held());
        // What lacks blocks is no help to one that lacks others.
        let held = held.filter(|s| self.lacking(&catalogue, s.tree, s.node).is_none());
        let mut usable: BTreeSet<Epoch> = held.map(|snapshot| snapshot.node).collect();
        usable.insert(disk.head);
        let tree = self.tree(disk.tree);
        let nodes = tree.nodes.lock();
        // Its epoch is of the node it was merged into, if its own is gone.
        let (owner, _) = nodes.all.iter().find(|(_, node)| node.own.contains(to))?;
        let comes_after = |node: &Epoch| {
            nodes
                .ancestry(*node)
                .map(|(epoch, _)| epoch)
                .take_while(|e| e >= owner)
                .any(|e| e == *owner)
        };
        usable.range(*owner..).copied().find(comes_after)
    }

    /// Makes holes of what changed since the snapshot that a disk returned to, if that is not done yet.
    pub(super) fn clear_changes(&self, id: &DiskId) -> Result<()> {
        let clear = self.catalogue.read().fillings.get(id).and_then(|filling| filling.clear);
        let Some(since) = clear else { return Ok(()) };
        Lane::new(&self.live(id)?).forget_since(since)?;
        faults::fail_point("return.cleared");
        let _shape = self.shape.lock();
        let still = self.catalogue.read().fillings.get(id).and_then(|filling| filling.clear);
        if still != Some(since) {
            return Err(Error::new(ErrorKind::Cancelled, format!("disk {id} has been taken back")));
        }
        let op = Op::DiskReturned { id: id.clone() };
        self.change(Actor::DAEMON, op, format!("disk {id} can be used"))
    }

    /// Finishes the returns that the end of the daemon interrupted. Nobody is connected yet.
    pub(super) fn finish_returns(&self) -> Result<()> {
        self.fillings().iter().try_for_each(|filling| self.clear_changes(&filling.disk))
    }

    /// Takes a disk back from a snapshot whose contents it does not have yet. What it has become cannot be kept.
    pub(super) fn abandon(
        &self,
        by: Actor,
        disk: &DiskRecord,
        to: &SnapshotRecord,
        force: bool,
    ) -> Result<Rollback> {
        if let Some(why) = self.filling_trouble(&disk.id).filter(|_| !force) {
            let undo = format!("rowctl disk rollback --undo {} --force", disk.name);
            let hint = format!("wait; or drop what it has become since its rollback: `{undo}`");
            return Err(why.hint(hint));
        }
        self.refuse_protected(&disk.id, RETURNED)?;
        let alone = self.clients.exclude(&disk.id, &disk.name, true)?;
        let head = self.tree(disk.tree).next_epoch()?;
        let size = disk.size.max(to.size);
        // As for a disk that is deleted: the blocks it has got are freed.
        self.shared.pool.sync()?;
        let message = format!(
            "disk {} returned to {}; what it had become since was not complete, and is dropped",
            disk.name, to.name
        );
        let id = disk.id.clone();
        self.change(by, Op::DiskAbandon { id, head, parent: to.node, size }, message)?;
        self.jobs.cancel(FETCH, disk.id.as_str());
        Ok(Rollback {
            undo: None,
            to: Some(to.id.clone()),
            disconnected: alone.ended.clone(),
            grown_since: to.size < size,
        })
    }

    /// Does what [`Op::DiskReturn`] and [`Op::DiskAbandon`] say.
    pub(super) fn apply_return(
        &self,
        catalogue: &mut Catalogue,
        op: Op,
        heads: &mut [Head<'_>],
    ) -> Result<()> {
        match op {
            Op::DiskReturn { turn, filling, .. } => {
                // First, so that the disk goes live as one that is being filled.
                let (id, filled) = (turn.disk.clone(), Filled::from(&filling, turn.head));
                catalogue.put_filling(filling);
                self.apply_turns(catalogue, vec![turn], heads)?;
                let mut disk = known(catalogue.disks.get(&id).cloned())?;
                disk.filled = Some(filled);
                catalogue.put_disk(disk);
                Ok(())
            }
            Op::DiskAbandon { id, head: next, parent, size } => {
                self.end_family(catalogue, &id);
                let mut disk = known(catalogue.disks.get(&id).cloned())?;
                let old = known(self.disks.read().get(&id).cloned())?;
                old.view.close(known(heads.first_mut())?);
                let tree = self.tree(disk.tree);
                tree.release(disk.head);
                tree.add(next, Some(parent));
                (disk.head, disk.size) = (next, size);
                self.go_live(catalogue, &disk, &tree);
                catalogue.put_disk(disk);
                self.reclaim_wanted.raise();
                Ok(())
            }
            op => catalogue.apply_records(op),
        }
    }
}
