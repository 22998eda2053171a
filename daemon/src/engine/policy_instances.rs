//! Policies of instances: all disks of one, as many as it has at each time.
//!
//! Invariants: an instance has at most one policy; a disk has one of its own or that of its instance, and not both, whoever
//! comes to whom.
//! Absent: what such a policy makes (`policy_groups.rs`).

use super::Engine;
use super::api::{Actor, GroupSpec, InstanceInfo};
use super::catalogue::{Applied, DiskRecord, InstanceRecord, Op};
use super::now;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, InstanceId, PolicyId};

impl Engine {
    /// Gives an instance a policy: its disks, and those that join it, are snapshotted together.
    ///
    /// # Errors
    /// `InUse` when it has another one, or a disk of it has, and `replace` is not given; `Quota` when it has more disks
    /// than a group can have.
    pub fn policy_apply_instance(
        &self,
        by: Actor,
        id: &PolicyId,
        instance: &InstanceId,
        replace: bool,
    ) -> Result<InstanceInfo> {
        let _shape = self.shape.lock();
        let policy = self.policy_record(id)?;
        let mut record = self.instance_record(instance)?;
        match &record.policy {
            Some(applied) if applied.id == *id => return self.instance(instance),
            Some(applied) if !replace => {
                let other = self.policy_record(&applied.id)?.spec.name;
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!(
                        "instance {} has the policy {other}, and an instance has one at most",
                        record.name
                    ),
                )
                .hint("use --replace, or `rowctl policy cancel --instance` first"));
            }
            _ => {}
        }
        let disks = self.catalogue.read().disks_of_instance(instance);
        if !replace {
            self.refuse_own_policies(id, &record, &disks)?;
        }
        let members: Vec<DiskId> =
            disks.iter().filter(|disk| !disk.is_passing()).map(|disk| disk.id.clone()).collect();
        if !members.is_empty() {
            self.group_disks(&GroupSpec { disks: members, ..GroupSpec::default() })?;
        }
        record.policy = Some(Applied { id: id.clone(), since: now() });
        let message = format!("instance {} has the policy {}", record.name, policy.spec.name);
        let own = disks.into_iter().filter(|disk| disk.policy.is_some()).map(|disk| disk.id);
        let op = Op::PolicyInstance {
            instance: record,
            disks: own.collect(),
            kind: "policy.apply".to_owned(),
        };
        self.change(by, op, message)?;
        self.instance(instance)
    }

    /// Disks that have policies of their own cannot get that of their instance too; the same one is no other.
    fn refuse_own_policies(
        &self,
        id: &PolicyId,
        instance: &InstanceRecord,
        disks: &[DiskRecord],
    ) -> Result<()> {
        let mut having = Vec::new();
        for disk in disks {
            if let Some(own) = disk.policy.as_ref().filter(|own| own.id != *id) {
                having.push(format!(
                    "{} has the policy {}",
                    disk.name,
                    self.policy_record(&own.id)?.spec.name
                ));
            }
        }
        if having.is_empty() {
            return Ok(());
        }
        let message = format!(
            "of instance {} {}, and a disk has one at most",
            instance.name,
            having.join(", ")
        );
        Err(Error::new(ErrorKind::InUse, message)
            .hint("use --replace, or `rowctl policy cancel` of these disks first"))
    }

    /// Takes its policy from an instance; what that has made stays as long as it would have.
    ///
    /// # Errors
    /// `WrongState` when it has none.
    pub fn policy_cancel_instance(&self, by: Actor, instance: &InstanceId) -> Result<InstanceInfo> {
        let _shape = self.shape.lock();
        let mut record = self.instance_record(instance)?;
        if record.policy.take().is_none() {
            let message = format!("instance {} has no policy", record.name);
            return Err(Error::new(ErrorKind::WrongState, message)
                .hint("see `rowctl policy list`; its disks may have policies of their own"));
        }
        let message = format!("instance {} has no policy any more", record.name);
        let kind = "policy.cancel".to_owned();
        self.change(by, Op::PolicyInstance { instance: record, disks: Vec::new(), kind }, message)?;
        self.instance(instance)
    }

    /// Refuses a disk that would have two policies: its own, and that of the instance it would belong to.
    pub(super) fn check_one_policy(&self, disk: &DiskRecord) -> Result<()> {
        let Some(own) = &disk.policy else { return Ok(()) };
        let instance = self.catalogue.read().instance_of(disk);
        let Some(other) = &instance.policy else { return Ok(()) };
        let (own, other) = (self.policy_record(&own.id)?, self.policy_record(&other.id)?);
        let (name, of) = (&disk.name, &instance.name);
        Err(Error::new(
            ErrorKind::InUse,
            format!(
                "{name} would have the policy {} and, with instance {of}, the policy {}: a disk has one at most",
                own.spec.name, other.spec.name
            ),
        )
        .hint(format!("a disk of {of} needs no policy of its own: leave it out, or `rowctl policy cancel {name}`")))
    }

    /// The instances that have a policy, and since when.
    #[must_use]
    pub fn policy_instances(&self, id: &PolicyId) -> Vec<(InstanceId, String, u64)> {
        let catalogue = self.catalogue.read();
        let of = |applied: &Applied| (applied.id == *id).then_some(applied.since);
        let instances = catalogue.instances.values();
        let having = instances.filter_map(|one| {
            let since = one.policy.as_ref().and_then(of)?;
            Some((one.id.clone(), one.name.clone(), since))
        });
        having.collect()
    }

    /// The disks that the policy of an instance is for, by name: all but those that only show the files of a snapshot.
    #[must_use]
    pub fn disks_with(&self, instance: &InstanceId) -> Vec<(DiskId, String)> {
        let disks = self.catalogue.read().disks_of_instance(instance).into_iter();
        disks.filter(|disk| !disk.is_passing()).map(|disk| (disk.id, disk.name)).collect()
    }
}
