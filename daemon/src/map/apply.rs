//! Applying one change to the leaves of a view: the same code for a client's write and for replay.
//!
//! Invariants: what happens depends on the leaves and the change alone, so replay repeats it exactly;
//! each replaced block is either freed or counted as dead for the ancestor that owns it.
//! Absent: locks, loading, the journal (`view.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::leaf::{Entry, Leaf};
use super::record::Change;
use super::view::{Budget, Loaded, Owner, State};
use crate::error::{Error, Result};
use crate::pool::allocator::Run;
use crate::units::{Epoch, Lba, LeafIndex, Pbn};

/// What changes did to the blocks of the pool.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) taken: Vec<Run>,
    pub(super) freed: Vec<Pbn>,
    /// Leaf versions that a newer one of the same node replaces.
    pub(super) dropped: Vec<(LeafIndex, Epoch)>,
}

/// Applies a change to the given leaves, which cover its range where anything is mapped.
pub(super) fn apply(
    state: &mut State,
    budget: &Budget,
    loaded: &Loaded,
    change: Change<'_>,
    leaves: impl Iterator<Item = u64>,
    applied: &mut Applied,
) -> Result<()> {
    if let Change::Write { pbn, crcs, .. } = change {
        let len = u32::try_from(crcs.len()).map_err(|_| Error::corrupt("an impossible run"))?;
        applied.taken.push(Run { start: pbn, len });
        state.live += u64::from(len);
    }
    let birth = state.node;
    for index in leaves {
        let part = LeafIndex(index).blocks().clip(change.range());
        if !changes_anything(state, loaded, change, index) {
            continue;
        }
        make_dirty(state, budget, loaded, index, applied)?;
        for lba in part.start..part.end {
            let entry = match change {
                Change::Write { lba: first, pbn, salt, crcs } => {
                    let at = lba - first.0;
                    let crc = crcs[usize::try_from(at).expect("within the run")];
                    let crc = u32::from_le_bytes(crc);
                    Entry::Data { pbn: Pbn(pbn.0 + at), birth, crc, salt }
                }
                Change::Zero(_) | Change::Blank(_) => Entry::Zero,
                Change::Hole(_) => Entry::Hole,
            };
            let (_, slot) = Lba(lba).split();
            let leaf = state.dirty.get_mut(&index).expect("made dirty above");
            let old = Arc::make_mut(leaf).set(slot, entry);
            state.replaced(old, index, applied);
        }
    }
    Ok(())
}

/// Zeroing or trimming what is not mapped changes nothing and must not cost a leaf; nor must what is zero
/// already become zero.
fn changes_anything(state: &State, loaded: &Loaded, change: Change<'_>, index: u64) -> bool {
    let (range, idle) = match change {
        Change::Write { .. } => return true,
        Change::Zero(range) | Change::Hole(range) => (range, Entry::Hole),
        Change::Blank(range) => (range, Entry::Zero),
    };
    let part = LeafIndex(index).blocks().clip(range);
    let changes =
        |leaf: &Leaf| (part.start..part.end).any(|lba| leaf.get(Lba(lba).split().1) != idle);
    match state.find(index) {
        Some(leaf) => changes(leaf),
        None => loaded.take(index).is_some_and(|(leaf, _)| changes(&leaf)),
    }
}

fn make_dirty(
    state: &mut State,
    budget: &Budget,
    loaded: &Loaded,
    index: u64,
    applied: &mut Applied,
) -> Result<()> {
    if state.dirty.contains_key(&index) {
        return Ok(());
    }
    let kept = state.remove_clean(budget, index).map(|clean| (clean.leaf, clean.epoch));
    let (leaf, epoch) = kept
        .or_else(|| loaded.take(index))
        .ok_or_else(|| Error::internal(format!("leaf {index} was not loaded")))?;
    let replaces_own = epoch != Epoch(0) && epoch != state.node;
    if replaces_own && state.owner(epoch, index) == Owner::This {
        applied.dropped.push((LeafIndex(index), epoch));
    }
    budget.dirty.fetch_add(1, Ordering::Relaxed);
    state.dirty.insert(index, leaf);
    Ok(())
}

impl State {
    fn replaced(&mut self, old: Entry, index: u64, applied: &mut Applied) {
        let Entry::Data { pbn, birth, .. } = old else { return };
        match self.owner(birth, index) {
            Owner::This => {
                self.live -= 1;
                applied.freed.push(pbn);
            }
            Owner::Ancestor(node) => *self.dead.entry(node).or_default() += 1,
        }
    }
}
