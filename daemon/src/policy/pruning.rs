//! Removing the snapshots that have had their time.
//!
//! Invariants: looked at are the disks that are concerned, however many there are; one whose snapshots were in use is
//! looked at again; whoever removes holds `pruning`.
//! Absent: what has had its time, which is a function (`retention.rs`).

use std::collections::BTreeSet;

use super::retention::{Reason, evict, prune};
use super::scheduler::Policies;
use crate::engine::api::policy::{Kept, KeptOfDisk};
use crate::error::Result;
use crate::units::{DiskId, SnapshotId};

/// What a look at the snapshots of a disk came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pruning {
    pub removed: u64,
    /// Something is to go when it is no longer in use, or when somebody agrees.
    pub again: bool,
}

impl Policies {
    /// Removes the oldest automatic snapshots beyond the quota.
    pub(super) fn evict(&self, name: &str, all: &[Kept]) -> Result<()> {
        let _pruning = self.pruning.lock();
        for id in evict(all, self.engine.settings().quota_auto) {
            tracing::info!(disk = name, %id, "the oldest automatic snapshot goes: quota");
            self.remove(&id, Reason::Quota)?;
        }
        Ok(())
    }

    /// Removes what has had its time; `again` are disks to look at although nothing has changed about them.
    pub(super) fn prune_all(&self, at: u64, again: &mut BTreeSet<DiskId>) -> Result<()> {
        again.append(&mut self.engine.disks_to_prune(at));
        for id in again.clone() {
            let held = self.engine.is_held(id.as_str());
            let stays = held || self.prune(&id, &self.engine.automatics(&id), at, false)?.again;
            if !stays {
                again.remove(&id);
            }
        }
        Ok(())
    }

    /// Removes those snapshots of a disk that have had their time.
    pub(super) fn prune(
        &self,
        id: &DiskId,
        disk: &KeptOfDisk,
        at: u64,
        agreed: bool,
    ) -> Result<Pruning> {
        let _pruning = self.pruning.lock();
        let found = prune(at, disk.name.is_some(), &disk.snapshots, agreed);
        if found.too_many {
            let name = disk.name.as_deref().unwrap_or(id.as_str());
            let why = format!(
                "{} of {} automatic snapshots of {name} would go at once: none does until \
                 `rowctl policy resume {name}` agrees",
                found.remove.len(),
                disk.snapshots.len()
            );
            self.engine.policy_hold(id.as_str(), &why)?;
            return Ok(Pruning { removed: 0, again: true });
        }
        let mut done = Pruning { removed: 0, again: found.in_use };
        for (snapshot, reason) in found.remove {
            match self.remove(&snapshot, reason)? {
                true => done.removed += 1,
                false => done.again = true,
            }
        }
        Ok(done)
    }

    fn remove(&self, id: &SnapshotId, reason: Reason) -> Result<bool> {
        let (kind, why) = match reason {
            Reason::Expired => ("snapshot.expire", "expired: its time is over"),
            Reason::Counted => ("snapshot.expire", "expired: there are enough newer ones"),
            Reason::Quota => ("snapshot.evict", "removed: it was the oldest beyond the quota"),
        };
        self.engine.automatic_remove(id, kind, why)
    }
}
