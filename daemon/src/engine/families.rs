//! Families that lack blocks: a disk that is being filled, its snapshots meanwhile, and the disks made of these.
//!
//! A disk that is being filled is alone with its copy until it is kept as a snapshot for the first time. From then on
//! the node that was frozen is the root of a family: all that descends from it lacks blocks with it, and what comes is
//! stored beneath all of them (`map/fill.rs`).
//!
//! Invariants: who belongs to a family follows from the parents of nodes, so clones, rollbacks and the trash need no
//! rule of their own; a family is there as long as a disk, a snapshot or a disk in the trash belongs to it, and ends
//! for all of them with the record that says that nothing is lacking; a copy is not deleted while a family needs it.
//! Absent: fetching (`vault/`); what a disk may not do while it is filled (`filling.rs`).

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::api::Actor;
use super::catalogue::{Catalogue, DiskRecord, Op, SnapshotRecord, Turn};
use super::copies::Filling;
use super::filled::Filled;
use super::{Engine, Head, known};
use crate::disk::lane::Lane;
use crate::disk::lazy::{Fetched, Lazy};
use crate::disk::{Disk, Witness};
use crate::error::{Error, ErrorKind, Result};
use crate::map::fill;
use crate::map::record::Staged;
use crate::map::view::View;
use crate::pool::superblock;
use crate::units::{DiskId, Epoch, Lba, Seq, SnapshotId, TreeId};

/// The first node of a family that lacks blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    pub tree: TreeId,
    pub node: Epoch,
}

/// What is live of a family.
#[derive(Debug, Default)]
pub(super) struct Family {
    /// Where what is lacking comes from, for all who belong to it.
    lazy: Arc<Lazy>,
    /// The root, to be filled.
    base: Option<Arc<Disk>>,
}

/// Families by the disk that was made or returned to be filled, which may be gone.
pub(super) type Families = HashMap<DiskId, Family>;

/// What is to be filled.
#[derive(Clone, Debug)]
pub struct FillTarget {
    /// What it lacks is what is to be fetched.
    pub disk: Arc<Disk>,
    root: Option<Root>,
}

impl Engine {
    /// What a state lacks blocks of, if it does.
    pub(super) fn lacking(
        &self,
        catalogue: &Catalogue,
        tree: TreeId,
        node: Epoch,
    ) -> Option<Filling> {
        if catalogue.fillings.is_empty() {
            return None;
        }
        let root = self.tree(tree).nodes.lock().filled_beneath(node);
        let is_it = |filling: &&Filling| match filling.root {
            Some(found) => found.tree == tree && Some(found.node) == root,
            None => {
                let disk = catalogue.disks.get(&filling.disk);
                disk.is_some_and(|disk| disk.tree == tree && disk.head == node)
            }
        };
        catalogue.fillings.values().find(is_it).cloned()
    }

    /// The same of a disk.
    pub(super) fn disk_lacking(&self, id: &DiskId) -> Option<Filling> {
        let catalogue = self.catalogue.read();
        let disk = catalogue.disks.get(id)?;
        self.lacking(&catalogue, disk.tree, disk.head)
    }

    /// The same of a snapshot that is in the pool.
    pub(super) fn snapshot_lacking(&self, snapshot: &SnapshotRecord) -> Option<Filling> {
        let held = snapshot.is_held();
        let found = held.then(|| {
            let catalogue = self.catalogue.read();
            self.lacking(&catalogue, snapshot.tree, snapshot.node)
        });
        found.flatten()
    }

    /// Where what a family lacks comes from.
    ///
    /// # Errors
    /// It is filled, or gone.
    pub fn lazy(&self, filling: &Filling) -> Result<Arc<Lazy>> {
        let catalogue = self.catalogue.read();
        filled_so(&catalogue, filling)?;
        Ok(self.family_lazy(&filling.disk))
    }

    fn family_lazy(&self, id: &DiskId) -> Arc<Lazy> {
        Arc::clone(&self.families.lock().entry(id.clone()).or_default().lazy)
    }

    /// Lets a disk that goes live take what it lacks from where its family takes it.
    pub(super) fn join_family(&self, catalogue: &Catalogue, disk: &DiskRecord, live: &Disk) {
        // The record of its head may not be there yet.
        let alone = catalogue.fillings.get(&disk.id).filter(|filling| filling.root.is_none());
        let found = alone.cloned().or_else(|| self.lacking(catalogue, disk.tree, disk.head));
        if let Some(filling) = found.filter(|filling| filling.lazy) {
            live.fill_from(&self.family_lazy(&filling.disk));
        }
    }

    /// The same of a snapshot that is opened.
    pub(super) fn snapshot_joins_family(&self, snapshot: &SnapshotRecord, live: &Disk) {
        let catalogue = self.catalogue.read();
        if let Some(filling) = self.lacking(&catalogue, snapshot.tree, snapshot.node) {
            live.fill_from(&self.family_lazy(&filling.disk));
        }
    }

    /// A disk that is kept as a snapshot while it lacks blocks needs a pool that knows families.
    pub(super) fn prepare_family(&self, disk: &DiskId) -> Result<()> {
        self.refuse_unfilled(disk)?;
        match self.disk_lacking(disk) {
            // An older rowd would take what the snapshot lacks for zeros.
            Some(_) => self.shared.pool.require_version(superblock::FAMILY_VERSION),
            None => Ok(()),
        }
    }

    /// Founds the family of a disk whose head is frozen while it is being filled.
    pub(super) fn found_family(&self, catalogue: &mut Catalogue, disk: &DiskRecord, node: Epoch) {
        let alone = |filling: &&Filling| filling.lazy && filling.root.is_none();
        let Some(filling) = catalogue.fillings.get(&disk.id).filter(alone).cloned() else { return };
        let root = Root { tree: disk.tree, node };
        self.mark_root(root);
        catalogue.put_filling(Filling { root: Some(root), ..filling });
    }

    /// Makes the map know of a family.
    pub(super) fn mark_root(&self, root: Root) {
        self.tree(root.tree).nodes.lock().filling.insert(root.node);
    }

    /// Forgets a family, which nothing belongs to any more, or which has all its blocks.
    pub(super) fn end_family(&self, catalogue: &mut Catalogue, id: &DiskId) -> Option<Arc<Lazy>> {
        let filling = catalogue.fillings.get(id).cloned()?;
        catalogue.remove_filling(id);
        if let Some(root) = filling.root {
            self.tree(root.tree).nodes.lock().filling.remove(&root.node);
            self.reclaim_wanted.raise();
        }
        self.families.lock().remove(id).map(|family| family.lazy)
    }

    /// Ends the families that nothing belongs to any more.
    pub(super) fn end_needless_families(&self, catalogue: &mut Catalogue) {
        let needless: Vec<DiskId> = catalogue
            .fillings
            .values()
            .filter(|filling| !self.is_needed(catalogue, filling))
            .map(|filling| filling.disk.clone())
            .collect();
        for id in needless {
            self.end_family(catalogue, &id);
        }
    }

    fn is_needed(&self, catalogue: &Catalogue, filling: &Filling) -> bool {
        let Some(root) = filling.root else { return catalogue.disks.contains_key(&filling.disk) };
        let tree = self.tree(root.tree);
        let nodes = tree.nodes.lock();
        let belongs = |tree: TreeId, node: Epoch| {
            tree == root.tree && nodes.filled_beneath(node) == Some(root.node)
        };
        catalogue.disks.values().any(|disk| belongs(disk.tree, disk.head))
            || catalogue.trash.values().any(|one| belongs(one.disk.tree, one.disk.head))
            || catalogue.snapshots.values().any(|s| s.is_held() && belongs(s.tree, s.node))
    }

    /// What is being filled so, to look what it lacks.
    ///
    /// # Errors
    /// It has been deleted, is filled, or is something else by now.
    pub fn fill_target(&self, filling: &Filling) -> Result<FillTarget> {
        let catalogue = self.catalogue.read();
        let root = filled_so(&catalogue, filling)?.root;
        let disk = match root {
            Some(root) => self.base(&catalogue, &filling.disk, root),
            None => self.live(&filling.disk)?,
        };
        Ok(FillTarget { disk, root })
    }

    /// The root of a family as a disk that is filled.
    fn base(&self, catalogue: &Catalogue, id: &DiskId, root: Root) -> Arc<Disk> {
        let sealing = self.sealing(catalogue, root.tree);
        let mut families = self.families.lock();
        let family = families.entry(id.clone()).or_default();
        if let Some(base) = &family.base {
            return base.with_sealing(sealing);
        }
        let view = View::new(&self.tree(root.tree), &self.shared.budget, root.node, false);
        let witness = Arc::clone(&self.corrupt) as Arc<dyn Witness>;
        let shared = Arc::clone(&self.shared);
        let base = Disk::new(format!("what {id} lacks"), 0, view, shared, sealing, witness);
        Arc::clone(family.base.insert(base))
    }

    /// Stores blocks of a copy where there is nothing yet, for all who lack them. Returns how many it stored.
    ///
    /// # Errors
    /// The pool is full or has stopped; nothing lacks blocks of it any more.
    pub fn adopt(&self, filling: &Filling, fetched: &Fetched) -> Result<u64> {
        let FillTarget { disk, root } = self.fill_target(filling)?;
        let mut lane = Lane::new(&disk);
        match root {
            None => lane.adopt(fetched),
            Some(root) => lane.adopt_beneath(fetched, |staged, lacking| {
                self.commit_beneath(&filling.disk, root, (staged, lacking))
            }),
        }
    }

    fn commit_beneath(
        &self,
        id: &DiskId,
        root: Root,
        (staged, lacking): (&mut Staged, &[Lba]),
    ) -> Result<Option<Seq>> {
        let _room = self.shared.reserve(staged.bytes().len())?;
        let _no_checkpoint = self.checkpointing.lock();
        // Alone: neither a write nor a step of a reclaim may have looked at what changes here.
        let _alone = self.shared.barrier.write();
        let still = self.catalogue.read().fillings.get(id).and_then(|filling| filling.root);
        if still != Some(root) {
            let message = format!("what {id} lacked is needed no more");
            return Err(Error::new(ErrorKind::Cancelled, message));
        }
        fill::run(&self.shared, &self.tree(root.tree), root.node, staged, lacking)
    }

    /// Nothing is lacking any more, durably. `false` when there is more to fill by now than there was when the target
    /// was asked for.
    ///
    /// # Errors
    /// As [`Engine::fill_target`]; the pool has stopped.
    pub fn fill_end(&self, filling: &Filling, target: &FillTarget) -> Result<bool> {
        self.shared.pool.sync()?;
        let _shape = self.shape.lock();
        if self.fill_target(filling)?.root != target.root {
            return Ok(false);
        }
        let id = filling.disk.clone();
        let message = match self.record(&id) {
            Ok(disk) => format!("disk {} has all its contents", disk.name),
            Err(_) => format!("what was made of copy {} has all its contents", filling.copy),
        };
        self.change(Actor::DAEMON, Op::DiskFilled { id }, message).map(|()| true)
    }

    /// What keeps a snapshot that is in the pool from having all its contents, in words.
    #[must_use]
    pub fn snapshot_waits(&self, id: &SnapshotId) -> Option<Error> {
        let snapshot = self.snapshot_record(id).ok()?;
        let filling = self.snapshot_lacking(&snapshot)?;
        Some(self.filling_error(&self.snapshot_label(&snapshot), &filling))
    }
    /// Makes durable what was filled, if a change may free it: a tail of the journal must not ask for blocks that may
    /// be used again.
    pub(super) fn sync_before_release(&self, op: &Op) -> Result<()> {
        let releases = matches!(
            op,
            Op::SnapshotDelete { .. }
                | Op::SnapshotLeave { .. }
                | Op::GroupDelete { .. }
                | Op::ImageDelete { .. }
                | Op::DiskPurge { .. }
        );
        let filling = releases && !self.catalogue.read().fillings.is_empty();
        if filling { self.shared.pool.sync().map(|_| ()) } else { Ok(()) }
    }

    /// Does what [`Op::DiskFill`] and [`Op::DiskFilled`] say.
    pub(super) fn apply_filling(&self, catalogue: &mut Catalogue, op: Op) -> Result<()> {
        match op {
            Op::DiskFill { mut disk, filling } => {
                disk.disk.filled = Some(Filled::from(&filling, disk.disk.head));
                // First, so that the disk goes live as one that is being filled.
                catalogue.put_filling(filling);
                self.apply_new_disk(catalogue, disk);
                Ok(())
            }
            Op::DiskFilled { id } => {
                known(catalogue.fillings.get(&id))?;
                if let Some(lazy) = self.end_family(catalogue, &id) {
                    lazy.fill();
                }
                Ok(())
            }
            op => catalogue.apply_records(op),
        }
    }

    /// The heads of disks are kept, which may lack blocks, and the disks go on elsewhere, some as what is to be filled.
    pub(super) fn apply_way_back(
        &self,
        catalogue: &mut Catalogue,
        (turns, fillings): (Vec<Turn>, Vec<Filling>),
        heads: &mut [Head<'_>],
    ) -> Result<()> {
        for turn in &turns {
            let disk = known(catalogue.disks.get(&turn.disk).cloned())?;
            self.found_family(catalogue, &disk, turn.undo.node);
        }
        // Behind the families, which the heads before belong to, and before the new ones go live.
        fillings.iter().for_each(|filling| catalogue.put_filling(filling.clone()));
        self.apply_turns(catalogue, turns, heads)?;
        for filling in &fillings {
            let mut disk = known(catalogue.disks.get(&filling.disk).cloned())?;
            disk.filled = Some(Filled::from(filling, disk.head));
            catalogue.put_disk(disk);
        }
        Ok(())
    }
}

/// A filling as it is now.
fn filled_so<'a>(catalogue: &'a Catalogue, filling: &Filling) -> Result<&'a Filling> {
    let Filling { disk, copy, .. } = filling;
    let same = |found: &&Filling| Filling { root: filling.root, ..(*found).clone() } == *filling;
    catalogue.fillings.get(disk).filter(same).ok_or_else(|| {
        let message = format!("disk {disk} is no longer filled from copy {copy}");
        Error::new(ErrorKind::Cancelled, message)
    })
}
