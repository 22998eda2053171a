//! A tree: the lineage of one family of disks and snapshots, as nodes that own epochs.
//!
//! Invariants: a node's epoch is larger than its parent's; heads have no children; `live` is the number
//! of allocated blocks born in a node, `dead[a]` of a node the number of blocks born in ancestor `a` that
//! its parent still sees and it does not. The sum of all `live` is what the allocator has in use.
//! Absent: look-ups and changes of leaves (`view.rs`), deletion (`reclaim.rs`), names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::leaf::{Leaf, MAX_EPOCH};
use super::lineage::{EpochSet, Lineage, Sees};
use super::view::View;
use crate::error::{Error, ErrorKind, Result};
use crate::meta::Meta;
use crate::units::{Epoch, LeafIndex, TreeId};

/// A node with more epochs than this (many deleted snapshots were merged into it) is looked up leaf by leaf:
/// one walk costs less than a seek for each epoch.
const SEEKS_MAX: usize = 32;

/// One point in the lineage: a frozen state, or the head of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub parent: Option<Epoch>,
    pub own: EpochSet,
    pub live: u64,
    pub dead: BTreeMap<Epoch, u64>,
    /// No disk and no snapshot names it any more: its blocks are to be freed.
    pub released: bool,
    /// How far the freeing of a released node has got: all leaves below are done.
    pub cursor: u64,
}

impl Node {
    fn new(epoch: Epoch, parent: Option<Epoch>) -> Node {
        let own = EpochSet::one(epoch);
        Node { parent, own, live: 0, dead: BTreeMap::new(), released: false, cursor: 0 }
    }
}

/// Leaf versions that were dirty when a head was frozen or a checkpoint cut; they no longer change.
#[derive(Debug)]
pub struct Frozen {
    pub owner: Epoch,
    pub leaves: FxHashMap<u64, Arc<Leaf>>,
}

/// The nodes of a tree and what a checkpoint must know about them.
#[derive(Debug, Default)]
pub struct Nodes {
    /// Nodes come, go and change their parents through [`Nodes::insert`] and its neighbours, which know who is whose
    /// child.
    pub all: BTreeMap<Epoch, Node>,
    /// Parent and child.
    children: BTreeSet<(Epoch, Epoch)>,
    released: BTreeSet<Epoch>,
    pub next: u32,
    /// `next` as the store has it.
    pub kept_next: u32,
    /// Versions of leaves that newer ones have replaced, to be deleted with the next checkpoint.
    pub dropped: Vec<(LeafIndex, Epoch)>,
    /// Nodes that changed since the last checkpoint, those that are gone included.
    pub touched: BTreeSet<Epoch>,
    pub views: Vec<Weak<View>>,
    /// Nodes that lack blocks, and are filled beneath all that come after them (`fill.rs`).
    pub filling: BTreeSet<Epoch>,
}

/// A family of disks and snapshots that share blocks.
#[derive(Debug)]
pub struct Tree {
    pub id: TreeId,
    pub nodes: Mutex<Nodes>,
    /// Oldest first: of two tables of one lineage the later is the newer.
    frozen: RwLock<Vec<Arc<Frozen>>>,
    /// Counts the times frozen tables went to the store, so that a look-up can tell it was overtaken.
    retired: AtomicU64,
}

impl Tree {
    #[must_use]
    pub fn new(id: TreeId) -> Arc<Tree> {
        let nodes = Mutex::new(Nodes { next: 1, ..Nodes::default() });
        Arc::new(Tree { id, nodes, frozen: RwLock::default(), retired: AtomicU64::new(0) })
    }

    /// Puts a kept node back, at start.
    pub fn load(&self, epoch: Epoch, node: Node) {
        let mut nodes = self.nodes.lock();
        nodes.next = nodes.next.max(epoch.0 + 1);
        nodes.insert(epoch, node);
    }

    /// The epoch that the next node will have.
    ///
    /// # Errors
    /// `Quota` when the tree has used its 16 million epochs.
    pub fn next_epoch(&self) -> Result<Epoch> {
        self.epoch_ahead(0)
    }

    /// The epoch that a node will have after `ahead` others were added.
    ///
    /// # Errors
    /// As [`Tree::next_epoch`].
    pub fn epoch_ahead(&self, ahead: u32) -> Result<Epoch> {
        let next = self.nodes.lock().next.saturating_add(ahead);
        if next > MAX_EPOCH {
            return Err(Error::new(ErrorKind::Quota, "this disk's family used all its epochs")
                .hint("export the disk and import it as a new one"));
        }
        Ok(Epoch(next))
    }

    /// Adds a node with the epoch that [`Tree::next_epoch`] told.
    pub fn add(&self, epoch: Epoch, parent: Option<Epoch>) {
        let mut nodes = self.nodes.lock();
        nodes.next = nodes.next.max(epoch.0 + 1);
        nodes.insert(epoch, Node::new(epoch, parent));
        nodes.touched.insert(epoch);
    }

    /// Marks a node that no disk and no snapshot names any more.
    pub fn release(&self, epoch: Epoch) {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.all.get_mut(&epoch) {
            node.released = true;
            nodes.released.insert(epoch);
            nodes.touched.insert(epoch);
        }
    }

    /// What a node sees.
    #[must_use]
    pub fn lineage(&self, node: Epoch) -> Arc<Lineage> {
        Arc::new(self.nodes.lock().lineage(node))
    }

    /// The newest version of a leaf among the epochs `sees` allows, and its epoch.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn newest(
        &self,
        meta: &Meta,
        leaf: LeafIndex,
        sees: &impl Sees,
    ) -> Result<Option<(Epoch, Arc<Leaf>)>> {
        for table in self.frozen.read().iter().rev().filter(|table| sees.sees(table.owner)) {
            if let Some(found) = table.leaves.get(&leaf.0) {
                return Ok(Some((table.owner, Arc::clone(found))));
            }
        }
        Ok(meta.newest(self.id, leaf, sees)?.map(|(epoch, leaf)| (epoch, Arc::new(leaf))))
    }

    /// Leaves in `from..to` that some node of the tree may map, frozen tables included; ascending.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn mapped_leaves(&self, meta: &Meta, from: u64, to: u64) -> Result<Vec<u64>> {
        let mut found = self.frozen_leaves(from, to, |_| true);
        found.extend(meta.leaves(self.id, from, to, usize::MAX)?);
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Up to `limit` leaves from `from` on that have a version in an epoch of `own`, ascending.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn touched_leaves(
        &self,
        meta: &Meta,
        own: &EpochSet,
        from: u64,
        limit: usize,
    ) -> Result<Vec<u64>> {
        let mut found = self.frozen_leaves(from, u64::MAX, |owner| own.contains(owner));
        if own.iter().nth(SEEKS_MAX).is_some() {
            found.extend(meta.leaves_seen(self.id, own, from, limit)?);
        } else {
            for epoch in own.iter() {
                found.extend(meta.touched(self.id, epoch, from, limit)?);
            }
        }
        found.sort_unstable();
        found.dedup();
        found.truncate(limit);
        Ok(found)
    }

    /// Keeps a table of versions that will not change any more.
    pub fn freeze(&self, owner: Epoch, leaves: FxHashMap<u64, Arc<Leaf>>) {
        if !leaves.is_empty() {
            self.frozen.write().push(Arc::new(Frozen { owner, leaves }));
        }
    }

    /// The tables a checkpoint has to write, oldest first.
    #[must_use]
    pub fn frozen(&self) -> Vec<Arc<Frozen>> {
        self.frozen.read().clone()
    }

    /// Forgets tables that are in the store now.
    pub fn retire(&self, written: &[Arc<Frozen>]) {
        let mut frozen = self.frozen.write();
        frozen.retain(|table| !written.iter().any(|gone| Arc::ptr_eq(gone, table)));
        self.overtake();
    }

    /// What was looked up so far may be out of date.
    pub fn overtake(&self) {
        self.retired.fetch_add(1, Ordering::SeqCst);
    }

    /// How often tables were retired; see the field.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.retired.load(Ordering::SeqCst)
    }

    /// The live views of this tree.
    #[must_use]
    pub fn views(&self) -> Vec<Arc<View>> {
        let mut nodes = self.nodes.lock();
        nodes.views.retain(|view| view.strong_count() > 0);
        nodes.views.iter().filter_map(Weak::upgrade).collect()
    }

    fn frozen_leaves(&self, from: u64, to: u64, wanted: impl Fn(Epoch) -> bool) -> Vec<u64> {
        let frozen = self.frozen.read();
        let tables = frozen.iter().filter(|table| wanted(table.owner));
        let leaves = tables.flat_map(|table| table.leaves.keys().copied());
        leaves.filter(|leaf| (from..to).contains(leaf)).collect()
    }
}

impl Nodes {
    /// What a node sees: itself and its ancestors.
    #[must_use]
    pub fn lineage(&self, node: Epoch) -> Lineage {
        Lineage::new(self.ancestry(node).map(|(epoch, node)| (epoch, &node.own)))
    }

    /// A node and its ancestors, youngest first.
    pub fn ancestry(&self, node: Epoch) -> impl Iterator<Item = (Epoch, &Node)> {
        let mut next = Some(node);
        std::iter::from_fn(move || {
            let (epoch, node) = self.all.get_key_value(&next?)?;
            next = node.parent;
            Some((*epoch, node))
        })
    }

    /// The released parent that is being merged into a node, and up to which leaf that has got.
    #[must_use]
    pub fn absorbed_by(&self, node: Epoch) -> Option<(Epoch, u64)> {
        let parent = self.all.get(&node)?.parent?;
        let found = self.all.get(&parent)?;
        (found.released && found.cursor > 0).then_some((parent, found.cursor))
    }

    /// The node that a node lacks blocks with: itself or an ancestor.
    #[must_use]
    pub fn filled_beneath(&self, node: Epoch) -> Option<Epoch> {
        if self.filling.is_empty() {
            return None;
        }
        self.ancestry(node).map(|(epoch, _)| epoch).find(|epoch| self.filling.contains(epoch))
    }

    /// The released nodes that can be freed now, each with its only child if it has one; ascending. One
    /// with several children waits, and so does one with a child that lacks blocks with it: whose a block is that
    /// comes must not change meanwhile.
    pub fn reclaimable(&self) -> impl Iterator<Item = (Epoch, Option<Epoch>)> + '_ {
        self.released.iter().filter_map(|epoch| {
            let mut children = self.children(*epoch);
            match (children.next(), children.next()) {
                (Some(_), None) if self.filled_beneath(*epoch).is_some() => None,
                (child, None) => Some((*epoch, child)),
                _ => None,
            }
        })
    }

    /// The nodes whose parent this is, ascending.
    pub fn children(&self, node: Epoch) -> impl Iterator<Item = Epoch> + '_ {
        let all = (node, Epoch(0))..=(node, Epoch(u32::MAX));
        self.children.range(all).map(|(_, child)| *child)
    }

    /// Puts a node there.
    pub fn insert(&mut self, epoch: Epoch, node: Node) {
        if let Some(parent) = node.parent {
            self.children.insert((parent, epoch));
        }
        if node.released {
            self.released.insert(epoch);
        }
        self.all.insert(epoch, node);
    }

    /// Takes a node out.
    pub fn remove(&mut self, epoch: Epoch) -> Option<Node> {
        let node = self.all.remove(&epoch)?;
        if let Some(parent) = node.parent {
            self.children.remove(&(parent, epoch));
        }
        self.released.remove(&epoch);
        Some(node)
    }

    /// Gives a node another parent.
    pub fn adopt(&mut self, epoch: Epoch, parent: Option<Epoch>) {
        let Some(node) = self.all.get_mut(&epoch) else { return };
        if let Some(old) = std::mem::replace(&mut node.parent, parent) {
            self.children.remove(&(old, epoch));
        }
        if let Some(parent) = parent {
            self.children.insert((parent, epoch));
        }
    }
}
