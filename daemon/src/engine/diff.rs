//! Diff: what changed between two states of one family, from the index of touched leaves.
//!
//! Invariants: only leaves that some node between the two states touched are compared, so the cost
//! follows the changes and not the size; two blocks are the same when they are the same block of the
//! pool, or both read as zeros.
//! Absent: comparing contents. Rewriting the same bytes counts as a change.

use std::sync::Arc;

use super::Engine;
use super::api::Change;
use super::clients::Pin;
use crate::disk::{Disk, Extent};
use crate::error::{Error, ErrorKind, Result};
use crate::map::leaf::Entry;
use crate::map::lineage::EpochSet;
use crate::map::tree::Tree;
use crate::units::{BLOCK_SIZE, BlockRange, ByteRange, Epoch, LeafIndex, SnapshotId};

/// Leaves compared for one answer at most; a caller asks again for the rest.
const LEAVES_AT_ONCE: usize = 16 << 10;

impl Engine {
    /// What changed from one snapshot (`None`: an empty disk) to another, from byte `resume` on: at most
    /// `limit` changes, and where to go on.
    ///
    /// # Errors
    /// `WrongState` when the two have no common history.
    pub fn diff(
        self: &Arc<Self>,
        from: Option<&SnapshotId>,
        to: &SnapshotId,
        resume: u64,
        limit: usize,
    ) -> Result<(Vec<Change>, Option<u64>)> {
        // Held on to: what is freed under a comparison would look the same on both sides.
        let hold = |id| self.pin_snapshot(id, "a comparison", Pin::Yields, Box::new(|| {}));
        let waits = from.into_iter().chain([to]).find_map(|id| self.snapshot_waits(id));
        // A hole of one that lacks blocks may be anything.
        waits.map_or(Ok(()), Err)?;
        let (to, from) = (hold(to)?, from.map(hold).transpose()?);
        let (to, from) = (&to.disk, from.as_ref().map(|from| &from.disk));
        if from.as_ref().is_some_and(|from| from.view.tree.id != to.view.tree.id) {
            return Err(Error::new(
                ErrorKind::WrongState,
                "these snapshots have no common history",
            )
            .hint("snapshots of one disk, or of disks made from its snapshots, can be compared"));
        }
        let end = to.size().max(from.as_ref().map_or(0, |from| from.size()));
        let range = ByteRange { start: resume.min(end), end };
        let mut walk = Walk { changes: Vec::new(), limit };
        let next = walk.compare(from.map(|from| &**from), to, range)?;
        Ok((walk.changes, next))
    }
}

impl Engine {
    /// What changed in a snapshot since an epoch of its own lineage. Whether anything of that time is still there
    /// does not matter: a leaf that has no version since then is as it was, and so is a block born before. Holes in
    /// other leaves are told as zeros, new or not. The caller holds on to the snapshot.
    pub(super) fn changes_since(&self, since: Epoch, to: &SnapshotId) -> Result<Vec<Change>> {
        let to = self.open_held(to)?;
        let all = ByteRange { start: 0, end: to.size() }.outer_blocks();
        let (tree, meta) = (&to.view.tree, &to.shared.meta);
        let newer = tree.lineage(to.view.node()).after(since);
        let mut walk = Walk { changes: Vec::new(), limit: usize::MAX };
        let mut next = 0;
        loop {
            let leaves = tree.touched_leaves(meta, &newer, next, LEAVES_AT_ONCE)?;
            for leaf in &leaves {
                let part = LeafIndex(*leaf).blocks().clip(all);
                to.view.look_up(&to.shared, part, |lba, entry| match entry {
                    Entry::Data { birth, .. } if birth <= since => {}
                    Entry::Data { .. } => walk.push(lba.0 * BLOCK_SIZE, false),
                    Entry::Hole | Entry::Zero => walk.push(lba.0 * BLOCK_SIZE, true),
                })?;
            }
            match leaves.last() {
                Some(last) if leaves.len() >= LEAVES_AT_ONCE => next = last + 1,
                _ => return Ok(walk.changes),
            }
        }
    }

    pub(super) fn open_held(&self, id: &SnapshotId) -> Result<Arc<Disk>> {
        let snapshot = self.snapshot_record(id)?;
        self.check_held(&snapshot)?;
        Ok(self.open_snapshot(&snapshot))
    }
}

/// The stretches of a range of `to` that differ from `from` (`stored`) or not, as [`Disk::extents`].
///
/// # Errors
/// The map cannot be read.
pub(super) fn extents(
    from: &Disk,
    to: &Disk,
    range: ByteRange,
    limit: usize,
) -> Result<Vec<Extent>> {
    let mut walk = Walk { changes: Vec::new(), limit };
    let next = walk.compare(Some(from), to, range)?;
    let covered = ByteRange { start: range.start, end: next.unwrap_or(range.end) };
    let mut list: Vec<Extent> = Vec::new();
    let mut at = covered.start;
    for change in walk.changes {
        let (start, end) = (change.offset.max(at), (change.offset + change.length).min(range.end));
        if at < start {
            list.push(Extent { range: ByteRange { start: at, end: start }, stored: false });
        }
        match list.last_mut() {
            Some(last) if last.stored => last.range.end = end,
            _ => list.push(Extent { range: ByteRange { start, end }, stored: true }),
        }
        at = end;
    }
    if at < covered.end {
        list.push(Extent { range: ByteRange { start: at, end: covered.end }, stored: false });
    }
    list.truncate(limit);
    Ok(list)
}

struct Walk {
    changes: Vec<Change>,
    limit: usize,
}

impl Walk {
    /// Compares leaf by leaf; returns where to go on when the limit is reached.
    fn compare(&mut self, from: Option<&Disk>, to: &Disk, range: ByteRange) -> Result<Option<u64>> {
        let blocks = range.outer_blocks();
        let leaves = touched_between(from, to, blocks)?;
        for leaf in &leaves {
            let part = LeafIndex(*leaf).blocks().clip(blocks);
            if self.changes.len() > self.limit {
                return Ok(Some(part.start * BLOCK_SIZE));
            }
            self.compare_leaf(from, to, part)?;
        }
        let more = leaves.last().filter(|_| leaves.len() >= LEAVES_AT_ONCE);
        Ok(more.map(|leaf| LeafIndex(leaf + 1).first().0 * BLOCK_SIZE).filter(|at| *at < range.end))
    }

    fn compare_leaf(&mut self, from: Option<&Disk>, to: &Disk, part: BlockRange) -> Result<()> {
        let mut old = vec![Entry::Hole; usize::try_from(part.len()).expect("within a leaf")];
        if let Some(from) = from {
            let mut at = 0;
            from.view.look_up(&from.shared, part, |_, entry| {
                old[at] = entry;
                at += 1;
            })?;
        }
        let mut old = old.into_iter();
        to.view.look_up(&to.shared, part, |lba, new| {
            if old.next().is_some_and(|old| place(old) != place(new)) {
                self.push(lba.0 * BLOCK_SIZE, place(new).is_none());
            }
        })
    }

    fn push(&mut self, offset: u64, zero: bool) {
        match self.changes.last_mut() {
            Some(last) if last.offset + last.length == offset && last.zero == zero => {
                last.length += BLOCK_SIZE;
            }
            _ => self.changes.push(Change { offset, length: BLOCK_SIZE, zero }),
        }
    }
}

fn place(entry: Entry) -> Option<u64> {
    match entry {
        Entry::Data { pbn, .. } => Some(pbn.0),
        Entry::Hole | Entry::Zero => None,
    }
}

/// The leaves of a range that a node on the way from one state to the other touched.
fn touched_between(from: Option<&Disk>, to: &Disk, blocks: BlockRange) -> Result<Vec<u64>> {
    let leaves = blocks.leaves();
    let tree = &to.view.tree;
    let own = between(tree, from.map(|from| from.view.node()), to.view.node());
    let mut found = to.view.dirty_leaves();
    let kept = tree.touched_leaves(&to.shared.meta, &own, leaves.start, LEAVES_AT_ONCE)?;
    // Where the index was cut short, dirty leaves behind the cut come with the next answer: going on
    // behind them would skip what lies between.
    let reach = kept.last().copied().filter(|_| kept.len() >= LEAVES_AT_ONCE);
    found.retain(|leaf| reach.is_none_or(|last| *leaf <= last));
    found.extend(kept);
    found.retain(|leaf| leaves.contains(leaf));
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The epochs owned by nodes that only one of two states descends from.
fn between(tree: &Tree, from: Option<Epoch>, to: Epoch) -> EpochSet {
    let nodes = tree.nodes.lock();
    let path = |node: Option<Epoch>| -> Vec<Epoch> {
        node.map(|node| nodes.ancestry(node).map(|(epoch, _)| epoch).collect()).unwrap_or_default()
    };
    let (old, new) = (path(from), path(Some(to)));
    let mut own = EpochSet::default();
    let old_only = old.iter().filter(|epoch| !new.contains(epoch));
    for epoch in new.iter().filter(|epoch| !old.contains(epoch)).chain(old_only) {
        if let Some(node) = nodes.all.get(epoch) {
            own.absorb(&node.own);
        }
    }
    own
}
