//! Reclaim: freeing the blocks of nodes that no disk and no snapshot names any more, in bounded steps.
//!
//! A released node without children gives up all blocks born in it. One with a single child is merged
//! into that child: where both have a version of a leaf, blocks born in the node that the child does not
//! hold are freed and the node's version goes; where the child has none, the node's version serves on
//! and its blocks become the child's. One with several children waits.
//!
//! Invariants: each step is one journal record and covers the leaves below a cursor that only rises
//! (hazard H7). Below the cursor the node's blocks are the child's to free, above it they are not, and
//! a step moves the cursor under the child's lock: no block has two owners or none.
//! Absent: when steps run and how fast (`engine/reclaim.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::leaf::{Entry, Leaf};
use super::lineage::EpochSet;
use super::tree::{Nodes, Tree};
use super::view::{Shared, State, View};
use crate::error::{Error, Result};
use crate::faults;
use crate::pool::journal::Kind;
use crate::units::{Epoch, LeafIndex, Pbn, Seq, TreeId};

/// The cursor of a node whose last leaf is done.
const DONE: u64 = u64::MAX;

/// One step, as the journal keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub tree: TreeId,
    pub node: Epoch,
    /// The only child, if there is one.
    pub child: Option<Epoch>,
    pub from: u64,
    /// The leaf after the last one of the step; `u64::MAX` ends the work on the node.
    pub to: u64,
}

impl Step {
    /// Length of an encoded step.
    pub const BYTES: usize = 28;

    /// The body of its record.
    #[must_use]
    pub fn encode(&self) -> [u8; Step::BYTES] {
        let mut body = [0; Step::BYTES];
        body[..4].copy_from_slice(&self.tree.0.to_le_bytes());
        body[4..8].copy_from_slice(&self.node.0.to_le_bytes());
        body[8..12].copy_from_slice(&self.child.unwrap_or_default().0.to_le_bytes());
        body[12..20].copy_from_slice(&self.from.to_le_bytes());
        body[20..].copy_from_slice(&self.to.to_le_bytes());
        body
    }

    /// Reads the body of a record.
    ///
    /// # Errors
    /// `Corrupt` when it is no step.
    pub fn decode(body: &[u8]) -> Result<Step> {
        let body: &[u8; Step::BYTES] =
            body.try_into().map_err(|_| Error::corrupt("a reclaim record cannot be decoded"))?;
        let u32_at = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("8 bytes"));
        let child = Some(Epoch(u32_at(8))).filter(|epoch| epoch.0 != 0);
        let (tree, node) = (TreeId(u32_at(0)), Epoch(u32_at(4)));
        Ok(Step { tree, node, child, from: u64_at(12), to: u64_at(20) })
    }
}

/// The next node of a tree to work on, with its only child: one already begun, else the oldest.
#[must_use]
pub fn next_node(tree: &Tree) -> Option<(Epoch, Option<Epoch>)> {
    let nodes = tree.nodes.lock();
    let begun = |epoch: &Epoch| nodes.all.get(epoch).is_some_and(|node| node.cursor > 0);
    let mut oldest = None;
    for (node, child) in nodes.reclaimable() {
        if begun(&node) {
            return Some((node, child));
        }
        oldest = oldest.or(Some((node, child)));
    }
    oldest
}

/// Frees up to `limit` leaves' worth of a node. Returns whether the node is gone now.
///
/// # Errors
/// The pool has stopped, or the store cannot be read.
pub fn run_step(
    shared: &Shared,
    tree: &Tree,
    node: Epoch,
    child: Option<Epoch>,
    limit: usize,
) -> Result<bool> {
    loop {
        // Looked up each time: the child may have been frozen or closed since the last round.
        let head = child.and_then(|child| head_of(tree, child));
        let (own, from) = tree.own_and_cursor(node)?;
        let (moment, retired) = (head.as_ref().map(|view| view.moment()), tree.retired());
        let leaves = tree.touched_leaves(&shared.meta, &own, from, limit)?;
        let to = leaves.last().filter(|_| leaves.len() == limit).map_or(DONE, |leaf| leaf + 1);
        let step = Step { tree: tree.id, node, child, from, to };
        let versions = load(shared, tree, &step, &own, &leaves)?;
        let _room = shared.reserve(Step::BYTES)?;
        let _whole = shared.barrier.read();
        let mut locked = head.as_ref().map(|view| view.lock());
        // The child is no longer a head: its counters are those of its node from now on.
        if locked.as_ref().is_some_and(|state| Some(state.node) != child || state.is_closed()) {
            continue;
        }
        // The child took a checkpoint since its leaves were loaded, or a block was moved: load them again.
        let now = head.as_ref().zip(locked.as_ref()).map(|(view, state)| view.moment_of(state));
        if now != moment || tree.retired() != retired {
            continue;
        }
        let seq = shared.pool.append(Kind::Reclaim, &step.encode())?;
        faults::fail_point("reclaim.step");
        // Done in part, with its record in the journal: a checkpoint of this would make blocks leak.
        apply(shared, tree, &step, seq, &versions, locked.as_deref_mut())
            .inspect_err(|error| shared.pool.file.stop(error.message()))?;
        drop(locked);
        finish(tree, &step);
        return Ok(to == DONE);
    }
}

/// Applies a step again, at start.
///
/// # Errors
/// `Corrupt` when the step does not fit the map.
pub fn replay(shared: &Shared, tree: &Tree, seq: Seq, step: &Step) -> Result<()> {
    let head = step.child.and_then(|child| head_of(tree, child));
    let (own, _) = tree.own_and_cursor(step.node)?;
    let mut leaves = tree.touched_leaves(&shared.meta, &own, step.from, usize::MAX)?;
    leaves.retain(|leaf| *leaf < step.to);
    let versions = load(shared, tree, step, &own, &leaves)?;
    let mut locked = head.as_ref().map(|view| view.lock());
    apply(shared, tree, step, seq, &versions, locked.as_deref_mut())?;
    drop(locked);
    finish(tree, step);
    Ok(())
}

/// A leaf's version in the node, and in the child where that has one of its own.
struct Versions {
    leaf: u64,
    epoch: Epoch,
    of_node: Arc<Leaf>,
    of_child: Option<Arc<Leaf>>,
}

fn load(
    shared: &Shared,
    tree: &Tree,
    step: &Step,
    own: &EpochSet,
    leaves: &[u64],
) -> Result<Vec<Versions>> {
    let childs = step.child.map(|child| tree.own_and_cursor(child)).transpose()?;
    let mut found = Vec::with_capacity(leaves.len());
    for leaf in leaves {
        let index = LeafIndex(*leaf);
        let Some((epoch, of_node)) = tree.newest(&shared.meta, index, own)? else { continue };
        let of_child = match &childs {
            Some((own, _)) => tree.newest(&shared.meta, index, own)?.map(|(_, leaf)| leaf),
            None => None,
        };
        found.push(Versions { leaf: *leaf, epoch, of_node, of_child });
    }
    Ok(found)
}

#[derive(Default)]
struct Settled {
    born: u64,
    kept: u64,
    freed: Vec<Pbn>,
    dropped: Vec<(LeafIndex, Epoch)>,
}

fn apply(
    shared: &Shared,
    tree: &Tree,
    step: &Step,
    seq: Seq,
    versions: &[Versions],
    mut head: Option<&mut State>,
) -> Result<()> {
    let (own, _) = tree.own_and_cursor(step.node)?;
    let mut settled = Settled::default();
    for version in versions {
        let dirty = head.as_ref().and_then(|state| state.dirty.get(&version.leaf)).cloned();
        let of_child = dirty.or_else(|| version.of_child.clone());
        settled.settle(version, of_child.as_deref(), step.child.is_some(), &own);
    }
    let freed = settled.freed.len() as u64;
    let mut nodes = tree.nodes.lock();
    nodes.dropped.append(&mut settled.dropped);
    nodes.touched.extend([step.node].into_iter().chain(step.child));
    let node = nodes.all.get_mut(&step.node).ok_or_else(|| gone(step.node))?;
    node.live = node.live.checked_sub(settled.born).ok_or_else(|| miscounted(step.node))?;
    node.cursor = if faults::seeded("h7-reclaim-forgets-cursor") { step.from } else { step.to };
    if let Some(child) = step.child {
        let (live, dead) = match head.as_deref_mut() {
            Some(state) => {
                state.absorbing = Some((step.node, step.to));
                (&mut state.live, &mut state.dead)
            }
            None => {
                let child = nodes.all.get_mut(&child).ok_or_else(|| gone(child))?;
                (&mut child.live, &mut child.dead)
            }
        };
        *live += settled.kept;
        subtract(dead, step.node, freed).ok_or_else(|| miscounted(step.node))?;
    }
    if step.to == DONE {
        dissolve(&mut nodes, step.node, step.child, head)?;
    }
    drop(nodes);
    let era = shared.pool.readers.now();
    shared.pool.with_allocator(|a| a.apply(seq, era, &[], &settled.freed))
}

impl Settled {
    fn settle(
        &mut self,
        version: &Versions,
        child: Option<&Leaf>,
        has_child: bool,
        own: &EpochSet,
    ) {
        for (slot, pbn, birth, _) in version.of_node.data() {
            if !own.contains(birth) {
                continue;
            }
            self.born += 1;
            let kept = match child {
                Some(leaf) => matches!(leaf.get(slot), Entry::Data { pbn: p, .. } if p == pbn),
                None => has_child,
            };
            if kept { self.kept += 1 } else { self.freed.push(pbn) }
        }
        if child.is_some() || !has_child {
            self.dropped.push((LeafIndex(version.leaf), version.epoch));
        }
    }
}

/// Takes a finished node out of the tree and hands what it owned to its child.
fn dissolve(
    nodes: &mut Nodes,
    node: Epoch,
    child: Option<Epoch>,
    head: Option<&mut State>,
) -> Result<()> {
    let gone_node = nodes.remove(node).ok_or_else(|| gone(node))?;
    if gone_node.live != 0 {
        return Err(miscounted(node));
    }
    let Some(child) = child else { return Ok(()) };
    nodes.adopt(child, gone_node.parent);
    let heir = nodes.all.get_mut(&child).ok_or_else(|| gone(child))?;
    heir.own.absorb(&gone_node.own);
    let lineage = Arc::new(nodes.lineage(child));
    let heir = nodes.all.get_mut(&child).ok_or_else(|| gone(child))?;
    let is_head = head.is_some();
    let dead = match head {
        Some(state) => {
            state.absorbing = None;
            // Under the same lock: a write between would take these blocks for the gone node's.
            state.lineage = Arc::clone(&lineage);
            &mut state.dead
        }
        None => &mut heir.dead,
    };
    if dead.remove(&node).is_some_and(|count| count != 0) {
        return Err(miscounted(node));
    }
    for (ancestor, count) in gone_node.dead {
        *dead.entry(ancestor).or_default() += count;
    }
    for (epoch, other) in &mut nodes.all {
        if other.dead.contains_key(&node) && (*epoch != child || !is_head) {
            relabel(&mut other.dead, node, child);
            nodes.touched.insert(*epoch);
        }
    }
    Ok(())
}

/// Brings the views of a tree up to date after a node has dissolved.
fn finish(tree: &Tree, step: &Step) {
    if step.to != DONE {
        return;
    }
    for view in tree.views() {
        let mut state = view.lock();
        if let Some(child) = step.child.filter(|child| *child != state.node) {
            relabel(&mut state.dead, step.node, child);
        }
        state.lineage = tree.lineage(state.node);
    }
    // A head that was frozen or closed since the node dissolved left its counters with the old name;
    // from here on no view has that name any more.
    let Some(child) = step.child else { return };
    let nodes = &mut *tree.nodes.lock();
    for (epoch, other) in &mut nodes.all {
        if *epoch != child && other.dead.contains_key(&step.node) {
            relabel(&mut other.dead, step.node, child);
            nodes.touched.insert(*epoch);
        }
    }
}

fn relabel(dead: &mut BTreeMap<Epoch, u64>, from: Epoch, to: Epoch) {
    if let Some(count) = dead.remove(&from) {
        *dead.entry(to).or_default() += count;
    }
}

fn subtract(dead: &mut BTreeMap<Epoch, u64>, node: Epoch, count: u64) -> Option<()> {
    if count > 0 {
        let left = dead.get_mut(&node)?;
        *left = left.checked_sub(count)?;
    }
    Some(())
}

fn head_of(tree: &Tree, node: Epoch) -> Option<Arc<View>> {
    tree.views().into_iter().find(|view| view.is_open_head(node))
}

fn gone(node: Epoch) -> Error {
    Error::corrupt(format!("node {node} does not exist"))
}

fn miscounted(node: Epoch) -> Error {
    Error::corrupt(format!("the counters of node {node} do not add up"))
}

impl Tree {
    /// The epochs a node owns, and how far its freeing has got.
    fn own_and_cursor(&self, node: Epoch) -> Result<(EpochSet, u64)> {
        let nodes = self.nodes.lock();
        let found = nodes.all.get(&node).ok_or_else(|| gone(node))?;
        Ok((found.own.clone(), found.cursor))
    }
}

impl View {
    /// What changes when leaves loaded for a step are out of date.
    fn moment(&self) -> (Epoch, u64, u64) {
        self.with(|state| self.moment_of(state))
    }

    fn moment_of(&self, state: &State) -> (Epoch, u64, u64) {
        (state.node, state.cuts(), self.tree.retired())
    }
}
