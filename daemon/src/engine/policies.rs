//! Verbs of policies, and the snapshots that policies make and remove.
//!
//! Invariants: a disk has at most one policy, its own or that of its instance; what a policy makes carries the rule it was
//! made under, so that a change of the policy touches new snapshots only; only automatic snapshots are ever removed here,
//! and none that is in use.
//! Absent: when a policy is due and what has had its time (`policy/`); policies of instances (`policy_instances.rs`) and
//! what they make (`policy_groups.rs`).

use std::collections::BTreeSet;

use super::api::policy::{
    AutomaticSpec, Hold, Kept, KeptOfDisk, LastRun, PolicyChange, PolicyInfo, PolicySpec,
};
use super::api::{Actor, Consistency, DiskInfo, SnapshotInfo};
use super::catalogue::{
    Applied, Catalogue, Cut, DiskRecord, InstanceRecord, Kind, Op, PolicyRecord, SnapshotRecord,
};
use super::clients::Subject;
use super::disks::check_tags;
use super::names::{by_prefix, check_name};
use super::{Engine, now};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, Epoch, InstanceId, PolicyId, SnapshotId};

impl Engine {
    /// Makes a policy, which no disk has yet. Its schedule has been checked.
    ///
    /// # Errors
    /// The name will not do or is taken, or there are too many policies.
    pub fn policy_create(&self, by: Actor, spec: PolicySpec) -> Result<PolicyInfo> {
        check_tags(&spec.tags)?;
        let _shape = self.shape.lock();
        self.check_copy_rule(spec.copy.as_ref())?;
        self.check_new_policy_name(&spec.name)?;
        let (count, quota) = (self.catalogue.read().policies.len(), self.settings.quota_policies);
        if count >= quota {
            return Err(Error::new(
                ErrorKind::Quota,
                format!("there are {count} policies, the quota is {quota}"),
            )
            .hint("delete one that no disk has (`rowctl policy list`), or raise `policies` in rowd.toml"));
        }
        let at = now();
        let (id, message) = (PolicyId::random()?, format!("policy {} made", spec.name));
        let policy = PolicyRecord {
            id: id.clone(),
            created_at: at,
            spec,
            handled: at,
            last_run: None,
            last_success: None,
        };
        self.change(by, Op::PolicyPut { policy, kind: "policy.create".to_owned() }, message)?;
        self.policy(&id)
    }

    /// Changes a policy, for snapshots that are made from now on.
    ///
    /// # Errors
    /// The name will not do or is taken.
    pub fn policy_change(
        &self,
        by: Actor,
        id: &PolicyId,
        change: PolicyChange,
    ) -> Result<PolicyInfo> {
        let _shape = self.shape.lock();
        let mut policy = self.policy_record(id)?;
        let spec = &mut policy.spec;
        if let Some(name) = change.name.filter(|name| *name != spec.name) {
            self.check_new_policy_name(&name)?;
            spec.name = name;
        }
        if let Some(tags) = change.tags {
            check_tags(&tags)?;
            spec.tags = tags;
        }
        if change.schedule.is_some() || change.zone.is_some() || change.jitter.is_some() {
            // What the new schedule had in the past is not missed.
            policy.handled = policy.handled.max(now());
        }
        if let Some(copy) = change.copy {
            self.check_copy_rule(copy.as_ref())?;
            spec.copy = copy;
        }
        spec.description = change.description.unwrap_or_else(|| spec.description.clone());
        spec.schedule = change.schedule.unwrap_or_else(|| spec.schedule.clone());
        spec.zone = change.zone.unwrap_or_else(|| spec.zone.clone());
        spec.keep = change.keep.unwrap_or_else(|| spec.keep.clone());
        spec.consistency = change.consistency.unwrap_or(spec.consistency);
        spec.catch_up = change.catch_up.unwrap_or(spec.catch_up);
        spec.jitter = change.jitter.unwrap_or(spec.jitter);
        let message = format!("policy {} changed", spec.name);
        self.change(by, Op::PolicyPut { policy, kind: "policy.set".to_owned() }, message)?;
        self.policy(id)
    }

    /// Deletes a policy; disks that have it have none from now on, and their snapshots stay as long as they would
    /// have. Returns those disks.
    ///
    /// # Errors
    /// There is no such policy.
    pub fn policy_delete(&self, by: Actor, id: &PolicyId) -> Result<Vec<(DiskId, String)>> {
        let _shape = self.shape.lock();
        let policy = self.policy(id)?;
        let disks = self.policy_disks(id).into_iter().map(|(disk, ..)| disk).collect();
        let instances = policy.instances.into_iter().map(|(instance, _)| instance).collect();
        let message = format!("policy {} deleted", policy.spec.name);
        self.change(by, Op::PolicyDelete { id: id.clone(), disks, instances }, message)?;
        Ok(policy.disks)
    }

    /// Gives a disk a policy.
    ///
    /// # Errors
    /// `InUse` when it has another one and `replace` is not given.
    pub fn policy_apply(
        &self,
        by: Actor,
        id: &PolicyId,
        disk: &DiskId,
        replace: bool,
    ) -> Result<DiskInfo> {
        let _shape = self.shape.lock();
        let policy = self.policy_record(id)?;
        let mut record = self.record(disk)?;
        let has = self.catalogue.read().policy_of(&record);
        match has {
            Some((applied, _)) if applied.id == *id => return self.disk(disk),
            Some((applied, Some(instance))) => {
                let other = self.policy_record(&applied.id)?.spec.name;
                let (name, of) = (&record.name, &instance.name);
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!("{name} has the policy {other} with its instance {of}, and a disk has one at most"),
                )
                .hint(format!(
                    "give {of} another one (`rowctl policy apply P --instance {of} --replace`), or the disk to \
                     another instance (`rowctl disk set {name} --instance I`)"
                )));
            }
            Some((applied, None)) if !replace => {
                let other = self.policy_record(&applied.id)?.spec.name;
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!("{} has the policy {other}, and a disk has one at most", record.name),
                )
                .hint("use --replace, or `rowctl policy cancel` first"));
            }
            _ => {}
        }
        record.policy = Some(Applied { id: id.clone(), since: now() });
        let message = format!("disk {} has the policy {}", record.name, policy.spec.name);
        self.change(by, Op::DiskUpdate { disk: record, kind: "policy.apply".to_owned() }, message)?;
        self.disk(disk)
    }

    /// Takes its policy from a disk; automatic snapshots stay as long as they would have.
    ///
    /// # Errors
    /// `WrongState` when it has none.
    pub fn policy_cancel(&self, by: Actor, disk: &DiskId) -> Result<DiskInfo> {
        let _shape = self.shape.lock();
        let mut record = self.record(disk)?;
        if record.policy.take().is_none() {
            let name = &record.name;
            let of_instance = self.catalogue.read().policy_of(&record).and_then(|(_, of)| of);
            return Err(match of_instance {
                None => Error::new(ErrorKind::WrongState, format!("{name} has no policy"))
                    .hint("see `rowctl disk list --policy any`"),
                Some(InstanceRecord { name: of, .. }) => Error::new(
                    ErrorKind::WrongState,
                    format!("the policy of {name} is that of its instance {of}"),
                )
                .hint(format!(
                    "`rowctl policy cancel --instance {of}` takes it from all its disks"
                )),
            });
        }
        let message = format!("disk {} has no policy any more", record.name);
        self.change(
            by,
            Op::DiskUpdate { disk: record, kind: "policy.cancel".to_owned() },
            message,
        )?;
        self.disk(disk)
    }

    /// Remembers that slots up to `handled` are done with, and what came of the last one.
    ///
    /// # Errors
    /// The pool has stopped. A policy that was deleted meanwhile is no error.
    pub fn policy_ran(&self, id: &PolicyId, handled: u64, run: Option<LastRun>) -> Result<()> {
        let _shape = self.shape.lock();
        let Ok(mut policy) = self.policy_record(id) else { return Ok(()) };
        policy.handled = policy.handled.max(handled);
        let message = match &run {
            Some(run) => {
                let LastRun { made, skipped, .. } = run;
                format!("policy {} made {made} snapshots and left {skipped} out", policy.spec.name)
            }
            None => format!("policy {} missed its time", policy.spec.name),
        };
        if let Some(run) = run {
            policy.last_success = Some(run.at).filter(|_| run.made > 0).or(policy.last_success);
            policy.last_run = Some(run);
        }
        let op = Op::PolicyPut { policy, kind: "policy.run".to_owned() };
        self.change(Actor::DAEMON, op, message)
    }

    /// # Errors
    /// There is no such policy.
    pub fn policy(&self, id: &PolicyId) -> Result<PolicyInfo> {
        let record = self.policy_record(id)?;
        Ok(policy_info(&self.catalogue.read(), record))
    }

    /// All policies, by name.
    #[must_use]
    pub fn policies(&self) -> Vec<PolicyInfo> {
        let catalogue = self.catalogue.read();
        let mut records: Vec<PolicyRecord> = catalogue.policies.values().cloned().collect();
        records.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        records.into_iter().map(|record| policy_info(&catalogue, record)).collect()
    }

    /// The policy that an id, a name or a unique beginning of an id means.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when several ids begin so.
    pub fn find_policy(&self, name: &str) -> Result<PolicyId> {
        let catalogue = self.catalogue.read();
        let id = PolicyId::from(name);
        if catalogue.policies.contains_key(&id) {
            return Ok(id);
        }
        if let Some(policy) = catalogue.policies.values().find(|policy| policy.spec.name == name) {
            return Ok(policy.id.clone());
        }
        by_prefix(PolicyId::PREFIX, name, catalogue.policies.keys().map(PolicyId::as_str))?
            .map(PolicyId::from)
            .ok_or_else(|| {
                Error::not_found(format!("no policy is called {name:?}"))
                    .hint("see `rowctl policy list`")
            })
    }

    /// The disks that have a policy of their own, and since when.
    #[must_use]
    pub fn policy_disks(&self, id: &PolicyId) -> Vec<(DiskId, String, u64)> {
        let catalogue = self.catalogue.read();
        let of = |applied: &Applied| (applied.id == *id).then_some(applied.since);
        let disks = catalogue.disks.values();
        disks
            .filter_map(|disk| {
                let since = disk.policy.as_ref().and_then(of)?;
                Some((disk.id.clone(), disk.name.clone(), since))
            })
            .collect()
    }

    /// A policy as a new disk has it.
    pub(super) fn applied(&self, id: PolicyId) -> Result<Applied> {
        self.policy_record(&id)?;
        Ok(Applied { id, since: now() })
    }

    /// Makes an automatic snapshot.
    ///
    /// # Errors
    /// The disk is gone or cannot be used, or the pool cannot keep the snapshot.
    pub fn automatic_create(
        &self,
        by: Actor,
        disk: &DiskId,
        spec: AutomaticSpec,
    ) -> Result<SnapshotInfo> {
        let _shape = self.shape.lock();
        let disk = self.record(disk)?;
        let head = self.tree(disk.tree).next_epoch()?;
        let name = {
            let catalogue = self.catalogue.read();
            let taken = |name: &str| catalogue.snapshot_named(&disk.id, name).is_some();
            free_name(taken, &spec.name, &spec.time)
        };
        let (cut, uncopied) = self.automatic_cut(&disk, head, name, spec)?;
        let id = cut.snapshot.id.clone();
        let message = format!("snapshot {}@{} made by a policy", disk.name, cut.snapshot.name);
        self.change(by, Op::SnapshotCreate(cut), message)?;
        self.tell_uncopied(by, &id, uncopied)?;
        self.snapshot(&id)
    }

    /// An automatic snapshot that can be made, and why it cannot be copied. The caller holds `shape`.
    pub(super) fn automatic_cut(
        &self,
        disk: &DiskRecord,
        head: Epoch,
        name: String,
        spec: AutomaticSpec,
    ) -> Result<(Cut, Option<Error>)> {
        self.prepare_family(&disk.id)?;
        self.check_previous(disk)?;
        let snapshot = SnapshotRecord {
            id: SnapshotId::random()?,
            name,
            description: String::new(),
            disk: disk.id.clone(),
            size: disk.size,
            created_at: now(),
            kind: Kind::Auto,
            expires_at: spec.expires_at,
            tree: disk.tree,
            node: disk.head,
            tags: spec.tags,
            consistency: Consistency::Crash,
            automatic: Some(spec.automatic),
            presence: None,
        };
        // A snapshot without its copy is better than none.
        let copy = spec.copy.map(|order| self.new_policy_copy(disk, &snapshot, order)).transpose();
        let (copy, uncopied) = match copy {
            Ok(copy) => (copy, None),
            Err(error) => (None, Some(error)),
        };
        Ok((Cut { snapshot, head, copy }, uncopied))
    }

    /// Tells why a snapshot that was made by a policy is not copied.
    pub(super) fn tell_uncopied(
        &self,
        by: Actor,
        id: &SnapshotId,
        why: Option<Error>,
    ) -> Result<()> {
        let Some(why) = why else { return Ok(()) };
        let name = self.snapshot_full_name(id)?;
        let message =
            format!("snapshot {name} made by a policy, and not copied: {}", why.message());
        self.note(by, "policy.uncopied", id.as_str(), message)
    }

    /// Removes an automatic snapshot, unless somebody uses it; `kind` and `why` are told. Whether it is gone.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn automatic_remove(&self, id: &SnapshotId, kind: &str, why: &str) -> Result<bool> {
        let _shape = self.shape.lock();
        let Ok(snapshot) = self.snapshot_record(id) else { return Ok(false) };
        let held = self.held(&self.catalogue.read(), &snapshot, &[]).is_some();
        if snapshot.kind != Kind::Auto || held || self.check_no_filling(&snapshot).is_err() {
            return Ok(false);
        }
        // Held until the snapshot is gone, or a client could open it between.
        let Ok(_alone) = self.clients.exclude_snapshot(id, &snapshot.name, false) else {
            return Ok(false);
        };
        let message = format!("snapshot {} {why}", self.snapshot_label(&snapshot));
        let op = Op::SnapshotDelete { id: id.clone(), kind: kind.to_owned() };
        self.change(Actor::DAEMON, op, message)?;
        self.opened.lock().remove(id);
        Ok(true)
    }

    /// The automatic snapshots of a disk, which may be gone.
    #[must_use]
    pub fn automatics(&self, disk: &DiskId) -> KeptOfDisk {
        self.automatics_when(disk, &[])
    }

    /// As [`Engine::automatics`], as if each of the `renewed` disks had a newer one: so it is when it gets one.
    #[must_use]
    pub fn automatics_when(&self, disk: &DiskId, renewed: &[DiskId]) -> KeptOfDisk {
        let catalogue = self.catalogue.read();
        let kept = |snapshot: &SnapshotRecord| {
            let automatic = snapshot.automatic.as_ref().filter(|_| snapshot.kind == Kind::Auto)?;
            Some(Kept {
                id: snapshot.id.clone(),
                name: snapshot.name.clone(),
                created_at: snapshot.created_at,
                expires_at: snapshot.expires_at,
                automatic: automatic.clone(),
                held: self.held(&catalogue, snapshot, renewed),
            })
        };
        KeptOfDisk {
            name: catalogue.disk_or_trash(disk).map(|disk| disk.name.clone()),
            snapshots: catalogue.snapshots_of(disk).filter_map(kept).collect(),
        }
    }

    /// The disks of which there are snapshots that a policy has made.
    #[must_use]
    pub fn disks_served_by(&self, policy: &PolicyId) -> BTreeSet<DiskId> {
        let catalogue = self.catalogue.read();
        let made =
            |one: &&SnapshotRecord| one.automatic.as_ref().is_some_and(|a| a.policy == *policy);
        catalogue.snapshots.values().filter(made).map(|one| one.disk.clone()).collect()
    }

    /// When the newest automatic snapshot was made.
    #[must_use]
    pub fn newest_automatic(&self) -> Option<u64> {
        let catalogue = self.catalogue.read();
        let automatic = catalogue.snapshots.values().filter(|one| one.kind == Kind::Auto);
        automatic.map(|one| one.created_at).max()
    }

    /// The disks some of whose automatic snapshots, or copies, may have to go: their time is over, or their number has changed
    /// since the last call.
    #[must_use]
    pub fn disks_to_prune(&self, at: u64) -> BTreeSet<DiskId> {
        let mut catalogue = self.catalogue.write();
        let mut disks = catalogue.take_stirred();
        let over = catalogue.ended(at).filter(|one| one.kind == Kind::Auto);
        disks.extend(over.map(|one| one.disk.clone()));
        disks.extend(catalogue.ended_copies(at).map(|one| one.disk.clone()));
        disks
    }

    /// Why an automatic snapshot cannot go: one that was made with others goes with them.
    fn held(
        &self,
        catalogue: &Catalogue,
        snapshot: &SnapshotRecord,
        renewed: &[DiskId],
    ) -> Option<String> {
        let group = snapshot.automatic.as_ref().and_then(|automatic| automatic.group.as_ref());
        match group.and_then(|id| catalogue.groups.get(id)) {
            Some(group) => self.group_held(catalogue, group, renewed),
            None => self.in_use(catalogue, snapshot),
        }
    }

    /// Why a snapshot cannot go, whatever becomes of those made with it.
    pub(super) fn in_use(
        &self,
        catalogue: &Catalogue,
        snapshot: &SnapshotRecord,
    ) -> Option<String> {
        if let Some(disk) = catalogue.made_from(&snapshot.id).first() {
            let name = catalogue.disks.get(disk).map_or(disk.as_str(), |disk| disk.name.as_str());
            return Some(format!("disk {name} was made from it"));
        }
        if let Some(image) = catalogue.images_with(&snapshot.id).next() {
            return Some(format!("image {} is made of it", image.name));
        }
        if catalogue.is_protected(snapshot.id.as_str()) {
            return Some("it is protected".to_owned());
        }
        if catalogue.is_being_copied(&snapshot.id) {
            return Some("it is being copied".to_owned());
        }
        if !self.clients.of(&Subject::Snapshot(snapshot.id.clone())).is_empty() {
            return Some("it is mounted or read by clients".to_owned());
        }
        None
    }

    /// What stands still until somebody agrees to it.
    #[must_use]
    pub fn holds(&self) -> Vec<Hold> {
        self.catalogue.read().holds.values().cloned().collect()
    }

    #[must_use]
    pub fn is_held(&self, object: &str) -> bool {
        self.catalogue.read().holds.contains_key(object)
    }

    /// Tells something about policies.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn policy_note(&self, kind: &str, object: &str, message: String) -> Result<()> {
        let _shape = self.shape.lock();
        self.note(Actor::DAEMON, kind, object, message)
    }

    /// Holds something, and tells so, unless that is known.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn policy_hold(&self, object: &str, why: &str) -> Result<()> {
        let _shape = self.shape.lock();
        if self.catalogue.read().holds.contains_key(object) {
            return Ok(());
        }
        let (object, message) = (object.to_owned(), why.to_owned());
        let hold = Hold { object, since: now(), why: message.clone() };
        self.change(Actor::DAEMON, Op::PolicyHold { hold }, message)
    }

    /// Lets something go on; whether it was held.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn policy_resume(&self, by: Actor, object: &str) -> Result<bool> {
        let _shape = self.shape.lock();
        if !self.catalogue.read().holds.contains_key(object) {
            return Ok(false);
        }
        let message = format!("policies go on: {object}");
        self.change(by, Op::PolicyResume { object: object.to_owned() }, message)?;
        Ok(true)
    }

    pub(super) fn policy_record(&self, id: &PolicyId) -> Result<PolicyRecord> {
        let found = self.catalogue.read().policies.get(id).cloned();
        found.ok_or_else(|| {
            Error::not_found(format!("no policy {id}")).hint("see `rowctl policy list`")
        })
    }

    fn check_new_policy_name(&self, name: &str) -> Result<()> {
        check_name("policy", name)?;
        if self.catalogue.read().policies.values().any(|policy| policy.spec.name == name) {
            return Err(Error::new(ErrorKind::Exists, format!("a policy {name:?} exists"))
                .hint("choose another name, or change it: `rowctl policy set`"));
        }
        Ok(())
    }
}

fn policy_info(catalogue: &Catalogue, record: PolicyRecord) -> PolicyInfo {
    let instances = catalogue.instances.values();
    let has = |applied: &Applied| applied.id == record.id;
    let mut instances: Vec<(InstanceId, String)> = instances
        .filter(|one| one.policy.as_ref().is_some_and(has))
        .map(|one| (one.id.clone(), one.name.clone()))
        .collect();
    instances.sort_by(|a, b| a.1.cmp(&b.1));
    let having = catalogue.disks.values().filter(|disk| match &disk.policy {
        Some(own) => has(own),
        None => {
            !instances.is_empty()
                && catalogue.policy_of(disk).is_some_and(|(applied, _)| has(&applied))
        }
    });
    let mut disks: Vec<(DiskId, String)> =
        having.map(|disk| (disk.id.clone(), disk.name.clone())).collect();
    disks.sort_by(|a, b| a.1.cmp(&b.1));
    let PolicyRecord { id, created_at, spec, handled, last_run, last_success } = record;
    PolicyInfo { id, created_at, spec, handled, disks, instances, last_run, last_success }
}

/// A name that is not taken: with the time where the day alone is.
pub(super) fn free_name(taken: impl Fn(&str) -> bool, day: &str, time: &str) -> String {
    if !taken(day) {
        return day.to_owned();
    }
    let timed = format!("{day}_{time}");
    let mut candidate = timed.clone();
    let mut number = 2;
    while taken(&candidate) {
        candidate = format!("{timed}-{number}");
        number += 1;
    }
    candidate
}
