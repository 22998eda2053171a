//! What the blocks of a disk came from that was filled from a copy: they need not be sent to where they are.
//!
//! Invariants: this is a hint and no promise: a client may have written to the disk in the same epoch.
//! Absent: comparing blocks with the copy (`vault/reuse.rs`).

use serde::{Deserialize, Serialize};

use super::Engine;
use super::api::Change;
use super::copies::{Base, Filling};
use crate::error::Result;
use crate::map::leaf::Entry;
use crate::units::{BLOCK_SIZE, BlockRange, ByteRange, CopyId, Epoch, LeafIndex, SnapshotId};

/// A copy that a disk was filled from last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// The epoch of the head that was filled.
    pub at: Epoch,
    /// The name of the repository.
    pub repo: String,
    pub copy: CopyId,
    pub snapshot: SnapshotId,
}

impl Filled {
    pub(super) fn from(filling: &Filling, at: Epoch) -> Filled {
        let Filling { repo, copy, snapshot, .. } = filling.clone();
        Filled { at, repo, copy, snapshot }
    }
}

impl Engine {
    /// The copy that blocks of a snapshot may have come from, unless they came before `base` already.
    #[must_use]
    pub fn filled(&self, of: &SnapshotId, base: Option<&Base>) -> Option<Filled> {
        let catalogue = self.catalogue.read();
        let snapshot = catalogue.snapshots.get(of)?;
        let disk = catalogue.disks.get(&snapshot.disk)?;
        let filled = disk.filled.clone().filter(|_| disk.tree == snapshot.tree)?;
        let before = base.and_then(|base| base.since).is_some_and(|since| since >= filled.at);
        let lineage = self.tree(snapshot.tree).lineage(snapshot.node);
        (!before && lineage.owner(filled.at).is_some()).then_some(filled)
    }

    /// Those of the changed blocks of a snapshot that were stored in an epoch, in order. The caller holds on to the
    /// snapshot.
    ///
    /// # Errors
    /// The map cannot be read; the snapshot has left the pool.
    pub fn born_in(
        &self,
        epoch: Epoch,
        of: &SnapshotId,
        changes: &[Change],
    ) -> Result<Vec<BlockRange>> {
        let disk = self.open_held(of)?;
        let mut found: Vec<BlockRange> = Vec::new();
        let all = ByteRange { start: 0, end: disk.size() }.outer_blocks();
        for Change { offset, length, .. } in changes.iter().filter(|change| !change.zero) {
            let first = offset / BLOCK_SIZE;
            let range = BlockRange::new(first, first + length / BLOCK_SIZE).clip(all);
            for leaf in range.leaves() {
                let part = LeafIndex(leaf).blocks().clip(range);
                disk.view.look_up(&disk.shared, part, |lba, entry| {
                    if !matches!(entry, Entry::Data { birth, .. } if birth == epoch) {
                        return;
                    }
                    match found.last_mut() {
                        Some(last) if last.end == lba.0 => last.end += 1,
                        _ => found.push(BlockRange::new(lba.0, lba.0 + 1)),
                    }
                })?;
            }
        }
        Ok(found)
    }
}
