//! Filling beneath: blocks that a frozen node lacks are stored in it, and all who came after it have them too.
//!
//! A disk that lacks blocks may have snapshots, and these clones: a family below its *root*, the first node that lacks
//! them. In all of them a hole means that the block is still elsewhere. A block that comes is born in the root, and
//! every version of its leaf that has a hole there gets it.
//!
//! Invariants: what is a hole below the root is one in the root, so what the root has nobody lacks; a version that is
//! no hole stays what it is, and its node counts the block as one of the root's that it no longer sees; what happens
//! depends on the map and the record alone, so replay repeats it exactly.
//! Absent: which nodes lack blocks (`engine/families.rs`), and where these come from (`vault/`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustc_hash::FxHashMap;

use super::leaf::{Entry, Leaf};
use super::lineage::{EpochSet, Lineage};
use super::record::{Change, Staged, changes};
use super::tree::{Nodes, Tree};
use super::view::{Shared, View};
use crate::error::{Error, Result};
use crate::faults;
use crate::pool::allocator::Run;
use crate::pool::journal::Kind;
use crate::units::{Epoch, Lba, LeafIndex, Pbn, Seq};

/// What becomes of one leaf: its slots that are filled.
type Slots = Vec<(usize, Entry)>;

/// Stores what is staged beneath, if all of `lacking` are still holes of the root; `None` when one is not, and nothing
/// happened. The caller holds the barrier for writing and sees to it that no checkpoint runs.
///
/// # Errors
/// The pool has stopped, or the store cannot be read.
pub fn run(
    shared: &Shared,
    tree: &Tree,
    root: Epoch,
    staged: &mut Staged,
    lacking: &[Lba],
) -> Result<Option<Seq>> {
    let body = staged.addressed(tree.id, root);
    let family = Family::of(tree, root)?;
    let plan = family.plan(shared, tree, filled(body, root)?.0)?;
    let holes = lacking.iter().all(|lba| {
        let (leaf, slot) = lba.split();
        plan.get(&leaf.0).is_some_and(|part| part.of_root.get(slot) == Entry::Hole)
    });
    if !holes {
        return Ok(None);
    }
    let seq = shared.pool.append(Kind::Fill, body)?;
    faults::fail_point("fill.journaled");
    family
        .apply(shared, tree, seq, (&plan, &filled(body, root)?.1))
        .inspect_err(|error| shared.pool.file.stop(error.message()))?;
    Ok(Some(seq))
}

/// Does it again, at start.
///
/// # Errors
/// `Corrupt` when the record does not fit the map.
pub fn replay(shared: &Shared, tree: &Tree, root: Epoch, seq: Seq, body: &[u8]) -> Result<()> {
    let (slots, runs) = filled(body, root)?;
    let family = Family::of(tree, root)?;
    let plan = family.plan(shared, tree, slots)?;
    family.apply(shared, tree, seq, (&plan, &runs))
}

/// What a record fills, by leaf, and the runs of the pool that it takes.
fn filled(body: &[u8], birth: Epoch) -> Result<(BTreeMap<u64, Slots>, Vec<Run>)> {
    let (mut slots, mut runs): (BTreeMap<u64, Slots>, _) = (BTreeMap::new(), Vec::new());
    for change in changes(body) {
        let Change::Write { lba, pbn, salt, crcs } = change? else {
            return Err(Error::corrupt("a record that fills holes changes something else"));
        };
        let len = u32::try_from(crcs.len()).map_err(|_| Error::corrupt("an impossible run"))?;
        runs.push(Run { start: pbn, len });
        for ((lba, pbn), crc) in (lba.0..).zip(pbn.0..).zip(crcs) {
            let (leaf, slot) = Lba(lba).split();
            let crc = u32::from_le_bytes(*crc);
            let entry = Entry::Data { pbn: Pbn(pbn), birth, crc, salt };
            slots.entry(leaf.0).or_default().push((slot, entry));
        }
    }
    Ok((slots, runs))
}

/// The root and those below it that somebody still sees.
struct Family {
    root: Epoch,
    lineage: Lineage,
    /// What the root owns.
    own: EpochSet,
    /// A deleted parent of the root that is being merged into it, its epochs, and up to which leaf.
    absorbed: Option<(EpochSet, u64)>,
    /// Parents come before their children.
    members: Vec<Member>,
    heads: HashMap<Epoch, Arc<View>>,
}

struct Member {
    node: Epoch,
    parent: Epoch,
    own: EpochSet,
}

/// A version of a leaf.
struct Version {
    epoch: Epoch,
    leaf: Arc<Leaf>,
    /// It is in the view of a head only.
    dirty: bool,
}

/// What is there of a leaf, and what is to be filled.
struct Part {
    slots: Slots,
    of_root: Arc<Leaf>,
    /// A version of the root's own that the new one replaces.
    replaced: Option<Epoch>,
    /// Those of members.
    versions: HashMap<Epoch, Version>,
}

/// What changes in the map.
#[derive(Default)]
struct Effects {
    tables: BTreeMap<Epoch, FxHashMap<u64, Arc<Leaf>>>,
    dead: HashMap<Epoch, u64>,
    dropped: Vec<(LeafIndex, Epoch)>,
}

impl Family {
    fn of(tree: &Tree, root: Epoch) -> Result<Family> {
        let heads = tree.views().into_iter().filter(|view| view.is_open_head(view.node()));
        let heads = heads.map(|view| (view.node(), view)).collect();
        let nodes = tree.nodes.lock();
        let found = nodes.all.get(&root).ok_or_else(|| {
            Error::corrupt(format!("node {root}, which is being filled, does not exist"))
        })?;
        let absorbed = nodes.absorbed_by(root);
        let absorbed = absorbed.and_then(|(parent, end)| Some((nodes.all.get(&parent)?, end)));
        Ok(Family {
            root,
            lineage: nodes.lineage(root),
            own: found.own.clone(),
            absorbed: absorbed.map(|(parent, end)| (parent.own.clone(), end)),
            members: members(&nodes, root),
            heads,
        })
    }

    /// Looks up what there is of the leaves that are filled.
    fn plan(
        &self,
        shared: &Shared,
        tree: &Tree,
        slots: BTreeMap<u64, Slots>,
    ) -> Result<BTreeMap<u64, Part>> {
        let frozen = tree.frozen();
        let mut plan = BTreeMap::new();
        for (index, slots) in slots {
            let leaf = LeafIndex(index);
            let mut found: BTreeMap<Epoch, Version> = BTreeMap::new();
            for (epoch, leaf) in shared.meta.versions(tree.id, leaf)? {
                found.insert(epoch, Version { epoch, leaf: Arc::new(leaf), dirty: false });
            }
            for table in &frozen {
                if let Some(leaf) = table.leaves.get(&index).cloned() {
                    let epoch = table.owner;
                    found.insert(epoch, Version { epoch, leaf, dirty: false });
                }
            }
            // What the store has of the same epoch is out of date.
            for (epoch, view) in &self.heads {
                if let Some(leaf) = view.dirty_leaf(index) {
                    found.insert(*epoch, Version { epoch: *epoch, leaf, dirty: true });
                }
            }
            plan.insert(index, self.part(index, slots, found));
        }
        Ok(plan)
    }

    fn part(&self, index: u64, slots: Slots, mut found: BTreeMap<Epoch, Version>) -> Part {
        let newest =
            |own: &EpochSet| found.keys().rev().find(|epoch| own.contains(**epoch)).copied();
        let of_members: Vec<(Epoch, Epoch)> = self
            .members
            .iter()
            .filter_map(|member| Some((member.node, newest(&member.own)?)))
            .collect();
        let seen = found.iter().rev().find(|(epoch, _)| self.lineage.owner(**epoch).is_some());
        let (epoch, of_root) =
            seen.map(|(epoch, version)| (*epoch, Arc::clone(&version.leaf))).unwrap_or_default();
        let absorbed = self.absorbed.as_ref().filter(|(_, end)| index < *end);
        let own = self.own.contains(epoch)
            || absorbed.is_some_and(|(parents, _)| parents.contains(epoch));
        Part {
            slots,
            of_root,
            replaced: Some(epoch).filter(|epoch| own && *epoch != self.root),
            versions: of_members
                .into_iter()
                .filter_map(|(node, epoch)| Some((node, found.remove(&epoch)?)))
                .collect(),
        }
    }

    fn apply(
        &self,
        shared: &Shared,
        tree: &Tree,
        seq: Seq,
        (plan, runs): (&BTreeMap<u64, Part>, &[Run]),
    ) -> Result<()> {
        let mut effects = Effects::default();
        for (index, part) in plan {
            self.fill(*index, part, &mut effects)?;
        }
        for (owner, leaves) in effects.tables {
            shared.budget.dirty.fetch_add(leaves.len(), Ordering::Relaxed);
            tree.freeze(owner, leaves);
        }
        // Who looked a leaf up before now must not keep it.
        tree.overtake();
        for view in tree.views() {
            let node = view.node();
            let belongs = self.members.iter().any(|member| member.node == node);
            for (index, part) in plan {
                let slots = if belongs { part.slots.as_slice() } else { &[] };
                view.revise(*index, |leaf| slots.iter().for_each(|slot| fill_hole(leaf, slot)));
            }
        }
        self.count(tree, runs, effects.dead, effects.dropped)?;
        let era = shared.pool.readers.now();
        shared.pool.with_allocator(|a| a.apply(seq, era, runs, &[]))
    }

    /// Fills a leaf of the root, and then the versions that members have of it, in order: the last one that somebody
    /// sees counts, so all of them have to be in front of what the store has.
    fn fill(&self, index: u64, part: &Part, effects: &mut Effects) -> Result<()> {
        let mut of_root = (*part.of_root).clone();
        for (slot, entry) in &part.slots {
            if of_root.set(*slot, *entry) != Entry::Hole {
                let lba = LeafIndex(index).first().0 + *slot as u64;
                return Err(Error::corrupt(format!("block {lba} is filled, and is there")));
            }
        }
        effects.dropped.extend(part.replaced.map(|epoch| (LeafIndex(index), epoch)));
        let of_root = Arc::new(of_root);
        effects.tables.entry(self.root).or_default().insert(index, Arc::clone(&of_root));
        let mut seen: HashMap<Epoch, Arc<Leaf>> = HashMap::from([(self.root, of_root)]);
        for member in &self.members {
            let above = seen.get(&member.parent).cloned();
            let above = above.ok_or_else(|| Error::internal("a member without its parent"))?;
            let Some(version) = part.versions.get(&member.node) else {
                seen.insert(member.node, above);
                continue;
            };
            let mut leaf = (*version.leaf).clone();
            for (slot, entry) in &part.slots {
                let before = leaf.get(*slot);
                fill_hole(&mut leaf, &(*slot, *entry));
                if before != Entry::Hole && above.get(*slot) == *entry {
                    *effects.dead.entry(member.node).or_default() += 1;
                }
            }
            let leaf = Arc::new(leaf);
            if !version.dirty {
                let table = effects.tables.entry(version.epoch).or_default();
                table.insert(index, Arc::clone(&leaf));
            }
            seen.insert(member.node, leaf);
        }
        Ok(())
    }

    fn count(
        &self,
        tree: &Tree,
        runs: &[Run],
        mut dead: HashMap<Epoch, u64>,
        mut dropped: Vec<(LeafIndex, Epoch)>,
    ) -> Result<()> {
        for (node, view) in &self.heads {
            if let Some(count) = dead.remove(node) {
                *view.lock().dead.entry(self.root).or_default() += count;
            }
        }
        let mut nodes = tree.nodes.lock();
        nodes.dropped.append(&mut dropped);
        nodes.touched.insert(self.root);
        nodes.touched.extend(dead.keys());
        let gone = || Error::corrupt("a node that is being filled does not exist");
        let blocks: u64 = runs.iter().map(|run| u64::from(run.len)).sum();
        nodes.all.get_mut(&self.root).ok_or_else(gone)?.live += blocks;
        for (node, count) in dead {
            let found = nodes.all.get_mut(&node).ok_or_else(gone)?;
            *found.dead.entry(self.root).or_default() += count;
        }
        Ok(())
    }
}

fn fill_hole(leaf: &mut Leaf, (slot, entry): &(usize, Entry)) {
    if leaf.get(*slot) == Entry::Hole && !faults::seeded("h14-fill-leaves-holes-below") {
        leaf.set(*slot, *entry);
    }
}

/// The nodes below the root; what is deleted and has nothing below it is none any more.
fn members(nodes: &Nodes, root: Epoch) -> Vec<Member> {
    let mut found: BTreeMap<Epoch, Member> = BTreeMap::new();
    for (epoch, node) in nodes.all.range(root..).skip(1) {
        let Some(parent) = node.parent else { continue };
        let is_below = parent == root || found.contains_key(&parent);
        let is_seen = !node.released || nodes.children(*epoch).next().is_some();
        if is_below && is_seen {
            found.insert(*epoch, Member { node: *epoch, parent, own: node.own.clone() });
        }
    }
    found.into_values().collect()
}
