//! Disks that return to snapshots which are only in the repository, and are taken back from there, in the model test.
//!
//! Invariants: what is still to be fetched after a return is what differs between the copy and the nearest state in
//! the pool, block by block.
//! Absent: fetching (`lazy.rs`), ends of the daemon in the middle of a return (`vault/returning.rs` of the tests).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use rowd::engine::api::Rollback;
use rowd::units::{BLOCK_SIZE, LEAF_BLOCKS};

use super::lazy::Copied;
use super::machine::{BY, Machine, Outcome, refused, text, unusable};
use super::reference::{Filling, NodeId, Reference, Snapshot, Stored};

/// Leaves that a return may dirty at once: nobody makes checkpoints meanwhile.
pub const LEAVES_MAX: u64 = 60;

impl Reference {
    /// The state in the pool that came first after another one, in its line; that one may be gone.
    pub fn nearest(&self, disk: usize, to: NodeId) -> Option<NodeId> {
        let held = self.snapshots.iter().filter(|s| s.held()).map(|s| s.node);
        let held = held.filter(|node| self.lacks(*node).is_none());
        let head = self.disks[disk].head;
        let descends = |node: &NodeId| {
            let mut at = Some(*node);
            while let Some(id) = at {
                let node = &self.nodes[&id];
                if id == to || node.absorbed.contains(&to) {
                    return true;
                }
                at = node.parent;
            }
            false
        };
        held.chain([head]).filter(descends).min()
    }

    /// The disk goes on below `base` as a copy that is not here but for what that has of it.
    pub fn return_to(&mut self, disk: usize, base: Option<NodeId>, copy: &BTreeMap<u64, Stored>) {
        self.go_on(disk, base);
        let head = self.disks[disk].head;
        let here = Rc::clone(&self.nodes[&head].blocks);
        let same = |lba: &u64, stored: &Stored| {
            here.get(lba).filter(|found| found.identity == stored.identity).cloned()
        };
        let mut blocks = BTreeMap::new();
        for (lba, stored) in copy {
            let found = same(lba, stored).unwrap_or_else(|| {
                let bytes = Rc::clone(&stored.bytes);
                Stored { identity: self.fresh(), here: false, bytes }
            });
            blocks.insert(*lba, found);
        }
        self.nodes.get_mut(&head).expect("a head").blocks = Rc::new(blocks);
        self.fillings.push(Filling { disk: self.disks[disk].id.clone(), root: None });
    }
}

impl Machine {
    /// Returns a disk to one of its snapshots that is in the repository.
    pub fn return_away(&mut self, disk: u8, snapshot: u8, busy: bool) -> Outcome {
        let Some(at) = self.disk(disk) else { return Ok(()) };
        let id = self.reference.disks[at].id.clone();
        let is_away = |s: &&Snapshot| {
            s.disk == id && s.presence.as_ref().is_some_and(|p| p.complete && !p.access)
        };
        let away: Vec<&Snapshot> = self.reference.snapshots.iter().filter(is_away).collect();
        let Some(to) = away.get(usize::from(snapshot) % away.len().max(1)) else { return Ok(()) };
        let (to, size) = ((*to).clone(), self.reference.disks[at].size);
        if size.max(to.size) > LEAVES_MAX * LEAF_BLOCKS * BLOCK_SIZE {
            return Ok(());
        }
        let goal = self.engine().way_back(&id, &to.id).map_err(text)?.ok_or("it is here")?;
        if self.is_lazy(at) || self.reference.fillings.iter().any(|filling| filling.disk == id) {
            return unusable(self.engine().disk_return(BY, &id, &goal, false));
        }
        if busy && self.sessions.contains_key(&id) {
            return refused(self.engine().disk_return(BY, &id, &goal, false));
        }
        self.sessions.remove(&id);
        self.checkpoint()?;
        let base = self.reference.nearest(at, to.node);
        let (done, _) = self.engine().disk_return(BY, &id, &goal, false).map_err(text)?;
        self.went_away(at, &done, &to, base)?;
        self.connect()?;
        self.compare_stored(at)
    }

    /// Notes that a disk goes on below `base` as a snapshot that is in the repository only.
    pub fn went_away(
        &mut self,
        at: usize,
        done: &Rollback,
        to: &Snapshot,
        base: Option<NodeId>,
    ) -> Outcome {
        let copy = &to.presence.as_ref().ok_or("it is in no repository")?.copy;
        let blocks = self.repository[copy].blocks.clone();
        let undo = done.undo.clone().ok_or("the state before is not kept")?;
        self.reference.freeze(at, undo.id, &undo.name, true);
        self.reference.return_to(at, base, &blocks);
        let disk = &mut self.reference.disks[at];
        disk.size = disk.size.max(to.size);
        let id = disk.id.clone();
        let blocks = blocks.into_iter().map(|(lba, stored)| (lba, stored.bytes.to_vec())).collect();
        self.origins.insert(id, Arc::new(Copied::of(blocks)));
        Ok(())
    }

    /// Takes a disk back that returned to a copy and does not have all of it.
    pub fn abandon(&mut self, at: usize, to: Option<(NodeId, u64)>, force: bool) -> Outcome {
        let id = self.reference.disks[at].id.clone();
        let done = self.engine().disk_undo(BY, &id, force);
        let Some((node, size)) = to.filter(|_| force) else { return unusable(done) };
        let done = done.map_err(text)?;
        if done.undo.is_some() {
            return Err(format!("what was not complete is kept: {done:?}"));
        }
        let head = self.reference.disks[at].head;
        self.reference.release(head);
        self.reference.go_on(at, Some(node));
        let disk = &mut self.reference.disks[at];
        disk.size = disk.size.max(size);
        self.reference.fillings.retain(|filling| filling.disk != id);
        self.compare_disk(at)
    }

    /// Whether a disk is being filled from the copy that a snapshot is.
    pub fn fills_from(&self, snapshot: &Snapshot) -> bool {
        let copy = snapshot.presence.as_ref().map(|presence| &presence.copy);
        self.engine().fillings().iter().any(|filling| Some(&filling.copy) == copy)
    }
}
