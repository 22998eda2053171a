//! The copies that policies have made, in the catalogue: which repository has them, and for how long.
//!
//! Invariants: a copy that a policy makes is there from the same change on as its snapshot is; it is complete once it
//! is no longer under way, and forgotten with the change that has it deleted.
//! Absent: copies that people ask for, which their repository alone knows once they are complete.

use super::{Catalogue, SnapshotRecord};
use crate::engine::api::policy::PolicyCopy;
use crate::engine::copies::CopyRecord;
use crate::units::{CopyId, DiskId};

impl Catalogue {
    /// A copy that a policy wants of a new snapshot: from now on it is under way.
    pub fn begin_policy_copy(&mut self, snapshot: &SnapshotRecord, copy: PolicyCopy) {
        self.put_copy(CopyRecord {
            id: copy.id.clone(),
            snapshot: snapshot.id.clone(),
            repo: copy.repo.clone(),
            from: None,
            name: None,
            description: String::new(),
            tags: std::collections::BTreeMap::default(),
            started_at: snapshot.created_at,
            failed: None,
            deleting: false,
        });
        self.put_policy_copy(copy);
    }

    pub fn put_policy_copy(&mut self, copy: PolicyCopy) {
        self.dirty.insert(format!("kept/{}", copy.id));
        if let Some(old) = self.policy_copies.get(&copy.id) {
            self.index.remove_policy_copy(old);
        }
        self.index.add_policy_copy(&copy);
        self.policy_copies.insert(copy.id.clone(), copy);
    }

    pub fn remove_policy_copy(&mut self, id: &CopyId) -> Option<PolicyCopy> {
        let copy = self.policy_copies.remove(id)?;
        self.dirty.insert(format!("kept/{id}"));
        self.index.remove_policy_copy(&copy);
        Some(copy)
    }

    /// A copy is no longer under way, for the reason that its event tells.
    pub(super) fn end_policy_copy(&mut self, id: &CopyId, event: &str) -> bool {
        match self.policy_copies.get(id).cloned() {
            Some(copy) if event == DONE => {
                self.put_policy_copy(PolicyCopy { complete: true, ..copy });
                true
            }
            _ => self.remove_policy_copy(id).is_some(),
        }
    }

    /// A snapshot goes: half a copy of it is of no use to anybody.
    pub fn give_up_policy_copies(&mut self, snapshot: &SnapshotRecord) {
        for id in self.index.copies_under_way(&snapshot.id) {
            let Some(copy) = self.copies.get(&id).cloned() else { continue };
            if self.remove_policy_copy(&id).is_some() {
                self.put_copy(CopyRecord { deleting: true, failed: None, ..copy });
            }
        }
    }

    /// What a repository has is no longer looked after.
    pub(super) fn forget_policy_copies_in(&mut self, repo: &str) {
        let there = self.policy_copies.values().filter(|copy| copy.repo == repo);
        let ids: Vec<CopyId> = there.map(|copy| copy.id.clone()).collect();
        for id in &ids {
            self.remove_policy_copy(id);
        }
    }

    /// The copies that policies have made of a disk, or are making.
    pub fn policy_copies_of(&self, disk: &DiskId) -> impl Iterator<Item = &PolicyCopy> {
        self.index.policy_copies_of(disk).filter_map(|id| self.policy_copies.get(id))
    }
}

/// The event of a copy that is complete.
pub const DONE: &str = "copy.done";
