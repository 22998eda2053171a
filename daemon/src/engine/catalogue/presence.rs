//! Where snapshots are, in the catalogue.
//!
//! Invariants: a copy that is to be made or deleted is there from the same change on as its snapshot is, or is gone.
//! Absent: the rules (`engine/presence.rs`).

use super::{Catalogue, Op, SnapshotRecord};
use crate::engine::presence::InPool;
use crate::error::{Error, Result};
use crate::units::DiskId;

impl Catalogue {
    /// Does what an entry says about where a snapshot is that changes nothing but records.
    ///
    /// # Errors
    /// It names what does not exist.
    pub fn apply_presence(&mut self, op: Op) -> Result<()> {
        let done = match op {
            Op::SnapshotCopied { id, copy } => {
                self.remove_copy(&copy);
                self.snapshots.get(&id).cloned().and_then(|mut snapshot| {
                    snapshot.presence.as_mut()?.complete = true;
                    Some(snapshot)
                })
            }
            Op::SnapshotStay { id, .. } => self.snapshots.get(&id).cloned().map(|mut snapshot| {
                self.begin_delete_of_copy(&snapshot);
                snapshot.presence = None;
                snapshot
            }),
            _ => return Err(Error::internal("this is no change of where a snapshot is")),
        };
        let snapshot =
            done.ok_or_else(|| Error::corrupt("a catalogue record names what does not exist"))?;
        self.put_snapshot(snapshot);
        Ok(())
    }

    /// A new snapshot that is to be in a repository: from now on its copy is under way.
    pub fn begin_copy(&mut self, snapshot: &SnapshotRecord) {
        if let Some(presence) = &snapshot.presence {
            self.put_copy(presence.copy_of(snapshot));
        }
    }

    /// The copy of a snapshot is no longer wanted: from now on it is to be deleted.
    pub fn begin_delete_of_copy(&mut self, snapshot: &SnapshotRecord) {
        if let Some(presence) = &snapshot.presence {
            let mut copy = presence.copy_of(snapshot);
            copy.deleting = true;
            self.put_copy(copy);
        }
    }

    /// The disk goes: its snapshots stay in the pool only until they are copied.
    pub fn end_access_of(&mut self, disk: &DiskId) {
        let with = |s: &&SnapshotRecord| {
            let pool = s.presence.as_ref().map(|presence| &presence.pool);
            matches!(pool, Some(InPool::Access { .. }))
        };
        let found: Vec<SnapshotRecord> = self.snapshots_of(disk).filter(with).cloned().collect();
        for mut snapshot in found {
            if let Some(presence) = &mut snapshot.presence {
                presence.pool = InPool::UntilCopied;
            }
            self.put_snapshot(snapshot);
        }
    }
}
