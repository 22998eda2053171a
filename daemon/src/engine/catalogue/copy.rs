//! Repositories, copies under way and disks that are being filled, in the catalogue.
//!
//! Invariants: a filling goes through [`Engine::end_family`](crate::engine::Engine) alone.
//! Absent: the verbs (`engine/copies.rs`), and how long a filling is needed (`engine/families.rs`).

use super::{Catalogue, Op};
use crate::engine::copies::{CopyRecord, Filling};
use crate::engine::repos::RepoRecord;
use crate::error::{Error, Result};
use crate::units::{CopyId, DiskId};

impl Catalogue {
    /// Does what an entry of the vault says that changes nothing but records.
    ///
    /// # Errors
    /// It names what does not exist.
    pub fn apply_vault(&mut self, op: Op) -> Result<()> {
        let there = match op {
            Op::RepoAdd { repo } => {
                self.put_repo(repo);
                true
            }
            Op::RepoDefault { name } => {
                self.set_default_repo(name.as_deref());
                true
            }
            Op::RepoRemove { name } => {
                self.forget_deletes_in(&name);
                self.forget_policy_copies_in(&name);
                self.remove_repo(&name).is_some()
            }
            Op::CopyPut { copy, .. } => {
                if copy.deleting {
                    self.remove_policy_copy(&copy.id);
                }
                self.put_copy(copy);
                true
            }
            Op::CopyRemove { id, kind } => {
                let known = self.remove_copy(&id).is_some();
                self.end_policy_copy(&id, &kind) || known
            }
            Op::DiskReturned { id } => match self.fillings.get(&id).cloned() {
                Some(filling) => {
                    self.put_filling(Filling { clear: None, ..filling });
                    true
                }
                None => false,
            },
            _ => return Err(Error::internal("this is no change of the vault's records")),
        };
        match there {
            true => Ok(()),
            false => Err(Error::corrupt("a catalogue record names what does not exist")),
        }
    }

    /// What was still to be deleted in a repository stays there.
    fn forget_deletes_in(&mut self, repo: &str) {
        let there = self.copies.values().filter(|copy| copy.deleting && copy.repo == repo);
        let ids: Vec<CopyId> = there.map(|copy| copy.id.clone()).collect();
        for id in &ids {
            self.remove_copy(id);
        }
    }

    fn set_default_repo(&mut self, name: Option<&str>) {
        let changed = |repo: &&RepoRecord| repo.default != (Some(repo.name.as_str()) == name);
        let changed: Vec<RepoRecord> = self.repos.values().filter(changed).cloned().collect();
        for mut repo in changed {
            repo.default = !repo.default;
            self.put_repo(repo);
        }
    }

    pub fn put_copy(&mut self, copy: CopyRecord) {
        self.dirty.insert(format!("copy/{}", copy.id));
        if let Some(old) = self.copies.get(&copy.id) {
            self.index.remove_copy(old);
        }
        self.index.add_copy(&copy);
        self.copies.insert(copy.id.clone(), copy);
    }

    pub fn remove_copy(&mut self, id: &CopyId) -> Option<CopyRecord> {
        let copy = self.copies.remove(id)?;
        self.dirty.insert(format!("copy/{id}"));
        self.index.remove_copy(&copy);
        Some(copy)
    }

    pub fn put_filling(&mut self, filling: Filling) {
        self.dirty.insert(format!("filling/{}", filling.disk));
        self.fillings.insert(filling.disk.clone(), filling);
    }

    pub fn remove_filling(&mut self, disk: &DiskId) {
        if self.fillings.remove(disk).is_some() {
            self.dirty.insert(format!("filling/{disk}"));
        }
    }
}
