//! Policies and holds in the catalogue.
//!
//! Invariants: a disk names at most one policy, which exists, and so does an instance; a disk has one of its own or that
//! of its instance, and not both.
//! Absent: the verbs (`engine/policies.rs`), and when anything is due (`policy/`).

use serde::{Deserialize, Serialize};

use super::{Applied, Catalogue, DiskRecord, InstanceRecord, Op};
use crate::engine::api::policy::{Hold, LastRun, PolicySpec};
use crate::error::{Error, Result};
use crate::units::PolicyId;

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    pub id: PolicyId,
    pub created_at: u64,
    #[serde(flatten)]
    pub spec: PolicySpec,
    /// Slots up to here are done with.
    pub handled: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<LastRun>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<u64>,
}

impl Catalogue {
    /// Does what an entry about policies says.
    ///
    /// # Errors
    /// It names what does not exist.
    pub fn apply_policy(&mut self, op: Op) -> Result<()> {
        let missing = || Error::corrupt("a catalogue record names what does not exist");
        match op {
            Op::PolicyPut { policy, .. } => self.put_policy(policy),
            Op::PolicyDelete { id, disks, instances } => {
                self.dirty.insert(format!("policy/{id}"));
                self.policies.remove(&id).ok_or_else(missing)?;
                for disk in disks {
                    let mut disk = self.disks.get(&disk).cloned().ok_or_else(missing)?;
                    disk.policy = None;
                    self.put_disk(disk);
                }
                for instance in instances {
                    let found = self.instances.get(&instance).cloned();
                    let mut instance = found.ok_or_else(missing)?;
                    instance.policy = None;
                    self.put_instance(instance);
                }
            }
            Op::PolicyInstance { instance, disks, .. } => {
                self.put_instance(instance);
                for disk in disks {
                    let mut disk = self.disks.get(&disk).cloned().ok_or_else(missing)?;
                    disk.policy = None;
                    self.put_disk(disk);
                }
            }
            Op::PolicyHold { hold } => self.put_hold(hold),
            Op::PolicyResume { object } => {
                self.dirty.insert(format!("hold/{object}"));
                self.holds.remove(&object).ok_or_else(missing)?;
            }
            _ => return Err(Error::internal("this is no change of policies")),
        }
        Ok(())
    }

    /// The policy of a disk, and the instance whose policy that is, if it is not the disk's own.
    #[must_use]
    pub fn policy_of(&self, disk: &DiskRecord) -> Option<(Applied, Option<InstanceRecord>)> {
        if let Some(own) = &disk.policy {
            return Some((own.clone(), None));
        }
        let instance = self.instance_of(disk);
        let applied = instance.policy.clone().filter(|_| !disk.is_passing())?;
        Some((applied, Some(instance)))
    }

    /// A policy as others name it.
    #[must_use]
    pub fn policy_name(&self, id: &PolicyId) -> Option<(PolicyId, String)> {
        self.policies.get(id).map(|policy| (id.clone(), policy.spec.name.clone()))
    }

    pub fn put_policy(&mut self, policy: PolicyRecord) {
        self.dirty.insert(format!("policy/{}", policy.id));
        self.policies.insert(policy.id.clone(), policy);
    }

    pub fn put_hold(&mut self, hold: Hold) {
        self.dirty.insert(format!("hold/{}", hold.object));
        self.holds.insert(hold.object.clone(), hold);
    }
}
