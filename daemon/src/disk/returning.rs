//! A head forgets what changed since an epoch of its own line: it becomes holes, to be filled from elsewhere.
//!
//! Invariants: what is as old as that, and what has no newer version, stays; doing it again changes nothing.
//! Absent: why (`engine/returning.rs`).

use super::lane::Lane;
use super::write::CLEAR_LEAVES;
use crate::error::Result;
use crate::faults;
use crate::map::leaf::Entry;
use crate::map::view::View;
use crate::units::{BlockRange, Epoch, LEAF_BLOCKS, LeafIndex};

/// Leaves that are looked for at once.
const LEAVES_AT_ONCE: usize = 16 << 10;
/// Ranges of one leaf at most.
const RANGES_MAX: usize = 32;
const _: () = assert!(RANGES_MAX as u64 * 2 == LEAF_BLOCKS, "every second block of a leaf");

impl Lane {
    /// Makes holes of all blocks that were written, zeroed or trimmed after `since`. Nobody else writes to the head.
    ///
    /// # Errors
    /// The map cannot be read; the pool has stopped; the disk was deleted.
    pub fn forget_since(&mut self, since: Epoch) -> Result<()> {
        let disk = std::sync::Arc::clone(&self.disk);
        let (view, meta) = (&disk.view, &disk.shared.meta);
        let newer = view.tree.lineage(view.node()).after(since);
        let mut next = 0;
        self.staged.clear();
        loop {
            let leaves = view.tree.touched_leaves(meta, &newer, next, LEAVES_AT_ONCE)?;
            for some in leaves.chunks(CLEAR_LEAVES) {
                for leaf in some {
                    if !self.staged.has_room(0, RANGES_MAX) {
                        self.forget_staged()?;
                    }
                    for range in self.changed_in(view, LeafIndex(*leaf), since)? {
                        self.staged.hole(range);
                    }
                }
                self.forget_staged()?;
            }
            match leaves.last() {
                Some(last) if leaves.len() >= LEAVES_AT_ONCE => next = last + 1,
                _ => break,
            }
        }
        match self.unsettled.take() {
            Some(seq) => disk.shared.pool.settle(seq),
            None => Ok(()),
        }
    }

    /// The blocks of a leaf that are not as they were.
    fn changed_in(&self, view: &View, leaf: LeafIndex, since: Epoch) -> Result<Vec<BlockRange>> {
        let mut found: Vec<BlockRange> = Vec::new();
        view.look_up(&self.disk.shared, leaf.blocks(), |lba, entry| {
            match entry {
                Entry::Hole => return,
                Entry::Data { birth, .. } if birth <= since => return,
                Entry::Data { .. } | Entry::Zero => {}
            }
            match found.last_mut() {
                Some(last) if last.end == lba.0 => last.end += 1,
                _ => found.push(BlockRange::new(lba.0, lba.0 + 1)),
            }
        })?;
        Ok(found)
    }

    fn forget_staged(&mut self) -> Result<()> {
        let done = match self.staged.is_empty() {
            true => Ok(true),
            false => self.commit(&[]),
        };
        self.staged.clear();
        done?;
        faults::fail_point("return.step");
        Ok(())
    }
}
