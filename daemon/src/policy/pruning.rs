//! Removing the snapshots that have had their time, and their copies.
//!
//! Invariants: looked at are the disks that are concerned, however many there are; one of which something was in use is
//! looked at again; whoever removes holds `pruning`.
//! Absent: what has had its time, which is a function (`retention.rs`); deleting copies, which the vault does.

use std::collections::BTreeSet;
use std::fmt::Display;

use super::retention::{Prune, Reason, evict, prune};
use super::scheduler::Policies;
use crate::engine::api::policy::Kept;
use crate::error::Result;
use crate::units::{CopyId, DiskId, GroupId, InstanceId, SnapshotId};

/// What a look at a disk came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pruning {
    pub removed: u64,
    /// Something is to go when it is no longer in use, or when somebody agrees.
    pub again: bool,
}

/// Whose snapshots are to be looked at again, because something of them was in use.
#[derive(Debug, Default)]
pub(super) struct Again {
    disks: BTreeSet<DiskId>,
    instances: BTreeSet<InstanceId>,
}

/// The object of the hold on the copies of a disk.
pub(super) fn copies_of(disk: &DiskId, repo: &str) -> String {
    format!("{disk}/{repo}")
}

impl Policies {
    /// Removes the oldest automatic snapshots beyond the quota.
    pub(super) fn evict(&self, name: &str, all: &[Kept]) -> Result<()> {
        let _pruning = self.pruning.lock();
        for id in evict(all, self.engine.settings().quota_auto) {
            tracing::info!(disk = name, %id, "the oldest automatic snapshot goes: quota");
            let group =
                all.iter().find(|one| one.id == id).and_then(|one| one.automatic.group.as_ref());
            match group {
                Some(group) => self.remove_group(group, Reason::Quota)?,
                None => self.remove(&id, Reason::Quota)?,
            };
        }
        Ok(())
    }

    /// Removes what has had its time; `again` is to be looked at although nothing has changed about it.
    pub(super) fn prune_all(&self, at: u64, again: &mut Again) -> Result<()> {
        let Again { disks, instances } = again;
        disks.append(&mut self.engine.disks_to_prune(at));
        instances.append(&mut self.engine.instances_grouped_with(disks));
        for id in instances.clone() {
            if !self.prune_groups(&id, at, false)?.again {
                instances.remove(&id);
            }
        }
        for id in disks.clone() {
            if !self.prune(&id, at, false)?.again {
                disks.remove(&id);
            }
        }
        Ok(())
    }

    /// Removes those groups of an instance that have had their time, as [`Policies::prune`] the snapshots of a disk.
    pub(super) fn prune_groups(&self, id: &InstanceId, at: u64, agreed: bool) -> Result<Pruning> {
        let _pruning = self.pruning.lock();
        let mut done = Pruning::default();
        let there = self.engine.automatic_groups(id);
        let name = there.name.as_deref().unwrap_or(id.as_str());
        let found = prune(at, there.name.is_some(), &there.groups, agreed);
        let what = format!("automatic groups of instance {name}");
        let what = (id.as_str(), what, there.groups.len());
        let resume = format!("--instance {name}");
        let remove = |id: &GroupId, reason| self.remove_group(id, reason);
        self.carry_out(&mut done, found, what, (&resume, agreed), remove)?;
        Ok(done)
    }

    /// Removes those snapshots and copies of a disk that have had their time. What is held stays, unless somebody
    /// `agreed`.
    pub(super) fn prune(&self, id: &DiskId, at: u64, agreed: bool) -> Result<Pruning> {
        let _pruning = self.pruning.lock();
        let mut done = Pruning::default();
        let there = self.engine.automatics(id);
        let exists = there.name.is_some();
        let name = there.name.as_deref().unwrap_or(id.as_str());
        let found = prune(at, exists, &there.snapshots, agreed);
        let what = (id.as_str(), format!("automatic snapshots of {name}"), there.snapshots.len());
        self.carry_out(&mut done, found, what, (name, agreed), |id, reason| {
            self.remove(id, reason)
        })?;
        for kept in self.engine.policy_copies(id) {
            let found = prune(at, exists, &kept.copies, agreed);
            let object = copies_of(id, &kept.repo);
            let what = format!("copies of {name} in {}", kept.repo);
            let what = (object.as_str(), what, kept.copies.len());
            let remove = |id: &CopyId, reason| self.remove_copy(id, reason);
            self.carry_out(&mut done, found, what, (name, agreed), remove)?;
        }
        Ok(done)
    }

    /// Does what was found, unless it is too much.
    fn carry_out<I: Display>(
        &self,
        done: &mut Pruning,
        found: Prune<I>,
        (object, what, of): (&str, String, usize),
        (resume, agreed): (&str, bool),
        remove: impl Fn(&I, Reason) -> Result<bool>,
    ) -> Result<()> {
        let Prune { remove: gone, too_many, in_use } = found;
        done.again |= in_use;
        if !agreed && self.engine.is_held(object) {
            done.again = true;
            return Ok(());
        }
        if too_many {
            let why = format!(
                "{} of {of} {what} would go at once: none does until `rowctl policy resume {resume}` agrees",
                gone.len(),
            );
            done.again = true;
            return self.engine.policy_hold(object, &why);
        }
        for (id, reason) in gone {
            match remove(&id, reason)? {
                true => done.removed += 1,
                false => done.again = true,
            }
        }
        Ok(())
    }

    fn remove(&self, id: &SnapshotId, reason: Reason) -> Result<bool> {
        let kind = match reason {
            Reason::Expired | Reason::Counted => "snapshot.expire",
            Reason::Quota => "snapshot.evict",
        };
        self.engine.automatic_remove(id, kind, told(reason))
    }

    fn remove_group(&self, id: &GroupId, reason: Reason) -> Result<bool> {
        let kind = match reason {
            Reason::Expired | Reason::Counted => "group.expire",
            Reason::Quota => "group.evict",
        };
        self.engine.automatic_group_remove(id, kind, told(reason))
    }

    fn remove_copy(&self, id: &CopyId, reason: Reason) -> Result<bool> {
        self.engine.policy_copy_remove(id, told(reason))
    }
}

fn told(reason: Reason) -> &'static str {
    match reason {
        Reason::Expired => "expired: its time is over",
        Reason::Counted => "expired: there are enough newer ones",
        Reason::Quota => "removed: it was the oldest beyond the quota",
    }
}
