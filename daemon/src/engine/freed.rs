//! What deleting several snapshots would free, to the byte.
//!
//! Invariants: the sum is what deleting all of them frees; each part goes to the last of them, in their order, that
//! sees the block. Where no clones are in the way the counters of the nodes tell, however large the disk is; else the
//! map is walked. Nothing is changed and no writer is held up. Writes meanwhile may change the answer.
//! Absent: deleting (`snapshots.rs`), and the quick answer for a single snapshot (`info.rs`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Engine;
use super::info::refresh;
use crate::error::Result;
use crate::map::leaf::Leaf;
use crate::map::lineage::{EpochSet, Lineage};
use crate::map::tree::{Nodes, Tree};
use crate::map::view::View;
use crate::units::{BLOCK_SIZE, DiskId, Epoch, LeafIndex, Pbn, SnapshotId, TreeId};

/// What a deletion does to the shape of a tree.
struct Shape {
    children: BTreeMap<Epoch, Vec<Epoch>>,
    /// What goes, with its place in the order: the snapshots, and deleted ancestors that only waited for them.
    going: BTreeMap<Epoch, usize>,
    /// What is still there afterwards; also what is deleted and has several branches below it, for its blocks are
    /// freed when one is left.
    staying: BTreeSet<Epoch>,
}

/// What a walk over the map needs of a tree.
struct Walk {
    tree: Arc<Tree>,
    heads: Vec<Arc<View>>,
    going: Vec<(usize, Lineage)>,
    /// The nearest nodes below that stay: what they do not see, nothing below them sees.
    staying: Vec<(Epoch, Lineage)>,
    /// Epochs of blocks that may go.
    own: Vec<EpochSet>,
}

impl Engine {
    /// Of each snapshot the bytes that go with it when all of these are deleted.
    ///
    /// # Errors
    /// There is no such snapshot, or the map cannot be read.
    pub fn freed_in_order(&self, ids: &[SnapshotId]) -> Result<Vec<u64>> {
        let nodes = ids.iter().map(|id| {
            let record = self.snapshot_record(id)?;
            Ok((record.tree, record.node))
        });
        self.freed_of_nodes(&nodes.collect::<Result<Vec<_>>>()?)
    }

    /// The bytes that are freed when a disk is deleted for good, with the snapshots that go with it.
    ///
    /// # Errors
    /// There is no such disk, or the map cannot be read.
    pub fn freed_with_disk(&self, id: &DiskId) -> Result<u64> {
        // The walk over the map sees of a head what is in the store.
        self.checkpoint()?;
        let disk = self.record(id)?;
        let mut nodes = vec![(disk.tree, disk.head)];
        nodes.extend(self.goes_with(&disk).into_iter().map(|one| (one.tree, one.node)));
        Ok(self.freed_of_nodes(&nodes)?.into_iter().sum())
    }

    fn freed_of_nodes(&self, nodes: &[(TreeId, Epoch)]) -> Result<Vec<u64>> {
        let mut by_tree: BTreeMap<TreeId, BTreeMap<Epoch, usize>> = BTreeMap::new();
        for (place, (tree, node)) in nodes.iter().enumerate() {
            by_tree.entry(*tree).or_default().entry(*node).or_insert(place);
        }
        let mut blocks = vec![0u64; nodes.len()];
        for (tree, snapshots) in by_tree {
            let tree = self.tree(tree);
            refresh(&tree);
            let heads = tree.views().into_iter().filter(|view| view.writable).collect();
            let walk = {
                let nodes = tree.nodes.lock();
                let shape = Shape::new(&nodes, &snapshots);
                if shape.is_plain() {
                    shape.count(&nodes, &mut blocks);
                    continue;
                }
                shape.walk(&nodes, Arc::clone(&tree), heads)
            };
            self.walk_freed(&walk, &mut blocks)?;
        }
        Ok(blocks.into_iter().map(|count| count * BLOCK_SIZE).collect())
    }

    fn walk_freed(&self, walk: &Walk, blocks: &mut [u64]) -> Result<()> {
        let meta = &self.shared.meta;
        let mut leaves = BTreeSet::new();
        for own in &walk.own {
            leaves.extend(walk.tree.touched_leaves(meta, own, 0, usize::MAX)?);
        }
        let mut last_seen: HashMap<Pbn, usize> = HashMap::new();
        for leaf in leaves {
            last_seen.clear();
            let index = LeafIndex(leaf);
            for (place, lineage) in &walk.going {
                let found = walk.tree.newest(meta, index, lineage)?;
                for (_, pbn, birth, _) in found.iter().flat_map(|(_, leaf)| leaf.data()) {
                    if walk.own.iter().any(|own| own.contains(birth)) {
                        let last = last_seen.entry(pbn).or_insert(*place);
                        *last = (*last).max(*place);
                    }
                }
            }
            for (node, lineage) in &walk.staying {
                if last_seen.is_empty() {
                    break;
                }
                if let Some(found) = self.present(walk, *node, lineage, leaf)? {
                    for (_, pbn, _, _) in found.data() {
                        last_seen.remove(&pbn);
                    }
                }
            }
            last_seen.values().for_each(|place| blocks[*place] += 1);
        }
        Ok(())
    }

    /// A leaf as a node that stays sees it, with what a head has in memory only.
    fn present(
        &self,
        walk: &Walk,
        node: Epoch,
        lineage: &Lineage,
        leaf: u64,
    ) -> Result<Option<Arc<Leaf>>> {
        let head = walk.heads.iter().find(|view| view.is_open_head(node));
        if let Some(dirty) = head.and_then(|view| view.dirty_leaf(leaf)) {
            return Ok(Some(dirty));
        }
        let found = walk.tree.newest(&self.shared.meta, LeafIndex(leaf), lineage)?;
        Ok(found.map(|(_, leaf)| leaf))
    }
}

impl Shape {
    fn new(nodes: &Nodes, snapshots: &BTreeMap<Epoch, usize>) -> Shape {
        let mut children: BTreeMap<Epoch, Vec<Epoch>> = BTreeMap::new();
        for (epoch, node) in &nodes.all {
            if let Some(parent) = node.parent {
                children.entry(parent).or_default().push(*epoch);
            }
        }
        // From the youngest on: children come before their parents.
        let (mut alive, mut staying) = (BTreeSet::new(), BTreeSet::new());
        for (epoch, node) in nodes.all.iter().rev() {
            let below = children.get(epoch).into_iter().flatten();
            let branches = below.filter(|child| alive.contains(*child)).count();
            let named = !node.released && !snapshots.contains_key(epoch);
            if named || branches > 0 {
                alive.insert(*epoch);
            }
            if named || branches > 1 {
                staying.insert(*epoch);
            }
        }
        let mut going: BTreeMap<Epoch, usize> = BTreeMap::new();
        for (snapshot, place) in snapshots {
            for (epoch, _) in nodes.ancestry(*snapshot) {
                let own = snapshots.get(&epoch).copied();
                if !staying.contains(&epoch) {
                    let last = going.entry(epoch).or_insert(own.unwrap_or(*place));
                    *last = own.unwrap_or((*last).max(*place));
                }
            }
        }
        Shape { children, going, staying }
    }

    fn below(&self, node: Epoch) -> &[Epoch] {
        self.children.get(&node).map_or(&[], Vec::as_slice)
    }

    /// Whether nothing that goes has more than one node below it.
    fn is_plain(&self) -> bool {
        self.going.keys().all(|epoch| self.below(*epoch).len() <= 1)
    }

    /// By the counters: where a node's blocks end, one after the other down the line.
    fn count(&self, nodes: &Nodes, blocks: &mut [u64]) {
        for (owner, place) in &self.going {
            let (mut last, mut at) = (*place, *owner);
            let mut left = nodes.all.get(owner).map_or(0, |node| node.live);
            loop {
                let Some(child) = self.below(at).first() else {
                    // Nothing below sees the rest.
                    blocks[last] += left;
                    break;
                };
                let dead = nodes.all.get(child).and_then(|node| node.dead.get(owner));
                let ended = dead.copied().unwrap_or(0).min(left);
                blocks[last] += ended;
                left -= ended;
                let Some(next) = self.going.get(child) else { break };
                (last, at) = (last.max(*next), *child);
            }
        }
    }

    fn walk(&self, nodes: &Nodes, tree: Arc<Tree>, heads: Vec<Arc<View>>) -> Walk {
        let own = self.going.keys().filter_map(|epoch| Some(nodes.all.get(epoch)?.own.clone()));
        let staying = self.frontier().into_iter();
        Walk {
            tree,
            heads,
            going: self.going.iter().map(|(epoch, at)| (*at, nodes.lineage(*epoch))).collect(),
            staying: staying.map(|epoch| (epoch, nodes.lineage(epoch))).collect(),
            own: own.collect(),
        }
    }

    /// The nearest nodes below what goes that stay.
    fn frontier(&self) -> BTreeSet<Epoch> {
        let (mut found, mut looked_at) = (BTreeSet::new(), BTreeSet::new());
        let mut next: Vec<Epoch> = self.going.keys().copied().collect();
        while let Some(node) = next.pop() {
            if !looked_at.insert(node) {
                continue;
            }
            for child in self.below(node) {
                if self.staying.contains(child) {
                    found.insert(*child);
                } else {
                    next.push(*child);
                }
            }
        }
        found
    }
}
