//! The copies that policies make of their snapshots, and have deleted when their time is over.
//!
//! Invariants: a copy that is wanted is under way from the same record on as its snapshot is; a snapshot whose copy
//! cannot be begun is made all the same, and it is told why; only complete copies are ever deleted here, and none that
//! a disk is filled from or that is being copied on.
//! Absent: making and deleting copies (`vault/`); which have had their time (`policy/`).

use std::collections::BTreeMap;

use super::api::Actor;
use super::api::policy::{CopyOrder, CopyRule, Kept, KeptInRepo, PolicyCopy};
use super::catalogue::{Catalogue, DiskRecord, Op, SnapshotRecord};
use super::copies::CopyRecord;
use super::{Engine, now};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{CopyId, DiskId, PolicyId};

impl Engine {
    /// The copy of a snapshot that is to be made.
    pub(super) fn new_policy_copy(
        &self,
        disk: &DiskRecord,
        snapshot: &SnapshotRecord,
        order: CopyOrder,
    ) -> Result<PolicyCopy> {
        let CopyOrder { repo, expires_at, counts } = order;
        self.repo(&repo)?;
        let key = self.copy_key_of(disk.tree);
        key.map_err(|error| error.context(format!("{} is encrypted", disk.name)))?;
        self.check_room_for_copy()?;
        let Some(automatic) = snapshot.automatic.clone() else {
            return Err(Error::internal("a copy by a policy of a snapshot that no policy made"));
        };
        Ok(PolicyCopy {
            id: CopyId::random()?,
            repo,
            disk: disk.id.clone(),
            snapshot: snapshot.id.clone(),
            name: format!("{}@{}", disk.name, snapshot.name),
            created_at: snapshot.created_at,
            expires_at,
            // A copy goes alone, by a rule of its own.
            automatic: super::api::policy::Automatic { counts, group: None, ..automatic },
            complete: false,
        })
    }

    /// Refuses a repository that there is not.
    pub(super) fn check_copy_rule(&self, rule: Option<&CopyRule>) -> Result<()> {
        rule.map_or(Ok(()), |rule| self.repo(&rule.repo).map(drop))
    }

    /// The complete copies of a disk that policies have made, by repository.
    #[must_use]
    pub fn policy_copies(&self, disk: &DiskId) -> Vec<KeptInRepo> {
        let catalogue = self.catalogue.read();
        let mut all: BTreeMap<&str, Vec<Kept<CopyId>>> = BTreeMap::new();
        for copy in catalogue.policy_copies_of(disk).filter(|copy| copy.complete) {
            all.entry(&copy.repo).or_default().push(Kept {
                id: copy.id.clone(),
                name: copy.name.clone(),
                created_at: copy.created_at,
                expires_at: copy.expires_at,
                automatic: copy.automatic.clone(),
                held: copy_held(&catalogue, &copy.id),
            });
        }
        let told = |(repo, copies): (&str, _)| KeptInRepo { repo: repo.to_owned(), copies };
        all.into_iter().map(told).collect()
    }

    /// A copy that a policy has made or is making, if it is one.
    #[must_use]
    pub fn policy_copy(&self, id: &CopyId) -> Option<PolicyCopy> {
        self.catalogue.read().policy_copies.get(id).cloned()
    }

    /// The disks of which a policy has made copies.
    #[must_use]
    pub fn disks_copied_by(&self, policy: &PolicyId) -> Vec<DiskId> {
        let catalogue = self.catalogue.read();
        let own = catalogue.policy_copies.values().filter(|copy| copy.automatic.policy == *policy);
        let mut disks: Vec<DiskId> = own.map(|copy| copy.disk.clone()).collect();
        disks.sort();
        disks.dedup();
        disks
    }

    /// The policy that copies to a repository, if one does.
    #[must_use]
    pub fn policy_copying_to(&self, repo: &str) -> Option<String> {
        let catalogue = self.catalogue.read();
        let copies = |rule: &CopyRule| rule.repo == repo;
        let mut policies = catalogue.policies.values();
        let found = policies.find(|policy| policy.spec.copy.as_ref().is_some_and(copies));
        found.map(|policy| policy.spec.name.clone())
    }

    /// Has a copy deleted that a policy has made, unless somebody needs it; `why` is told. Whether it goes.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn policy_copy_remove(&self, id: &CopyId, why: &str) -> Result<bool> {
        let _shape = self.shape.lock();
        let (copy, snapshot) = {
            let catalogue = self.catalogue.read();
            let Some(copy) = catalogue.policy_copies.get(id).filter(|copy| copy.complete) else {
                return Ok(false);
            };
            if copy_held(&catalogue, id).is_some() {
                return Ok(false);
            }
            (copy.clone(), copy.snapshot.clone())
        };
        let PolicyCopy { repo, name, .. } = copy;
        let message = format!("copy {id} of {name} in {repo} {why}");
        let copy = CopyRecord {
            id: id.clone(),
            snapshot,
            repo,
            from: None,
            name: None,
            description: String::new(),
            tags: BTreeMap::new(),
            started_at: now(),
            failed: None,
            deleting: true,
        };
        let op = Op::CopyPut { copy, kind: "copy.expire".to_owned() };
        self.change(Actor::DAEMON, op, message)?;
        Ok(true)
    }

    /// Tells that a complete copy has been deleted, and forgets it if a policy had made it.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn copy_deleted(&self, by: Actor, id: &CopyId, message: String) -> Result<()> {
        let _shape = self.shape.lock();
        let kind = "copy.delete";
        let known = self.catalogue.read().policy_copies.contains_key(id);
        match known {
            true => {
                self.change(by, Op::CopyRemove { id: id.clone(), kind: kind.to_owned() }, message)
            }
            false => self.note(by, kind, id.as_str(), message),
        }
    }

    /// Tries those copies of policies again that have failed, and whose snapshots are still there.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn policy_copies_retry(&self) -> Result<()> {
        let failed: Vec<CopyId> = {
            let catalogue = self.catalogue.read();
            let failed = |copy: &&CopyRecord| {
                copy.failed.is_some()
                    && !copy.deleting
                    && catalogue.policy_copies.contains_key(&copy.id)
                    && catalogue.snapshots.contains_key(&copy.snapshot)
            };
            catalogue.copies.values().filter(failed).map(|copy| copy.id.clone()).collect()
        };
        for id in failed {
            match self.copy_failed(Actor::DAEMON, &id, None) {
                // Given up this instant.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                tried => drop(tried?),
            }
        }
        Ok(())
    }
}

/// Why a copy cannot be deleted now.
fn copy_held(catalogue: &Catalogue, id: &CopyId) -> Option<String> {
    if catalogue.fillings.values().any(|filling| filling.copy == *id) {
        return Some("a disk is being filled from it".to_owned());
    }
    let from_it = |copy: &&CopyRecord| copy.from.as_ref().is_some_and(|from| from.copy == *id);
    let onward = catalogue.copies.values().find(from_it)?;
    Some(format!("it is being copied to {}", onward.repo))
}
