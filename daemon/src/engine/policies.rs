//! Verbs of policies, and the snapshots that policies make and remove.
//!
//! Invariants: a disk has at most one policy; what a policy makes carries the rule it was made under, so that a
//! change of the policy touches new snapshots only; only automatic snapshots are ever removed here, and none that
//! is in use.
//! Absent: when a policy is due and what has had its time (`policy/`).

use std::collections::BTreeSet;

use super::api::policy::{
    AutomaticSpec, Hold, Kept, KeptOfDisk, LastRun, PolicyChange, PolicyInfo, PolicySpec,
};
use super::api::{Actor, Consistency, DiskInfo, SnapshotInfo};
use super::catalogue::{Applied, Catalogue, Cut, Kind, Op, PolicyRecord, SnapshotRecord};
use super::clients::Subject;
use super::disks::check_tags;
use super::names::{by_prefix, check_name};
use super::{Engine, now};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, PolicyId, SnapshotId};

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
        if change.schedule.is_some() || change.zone.is_some() {
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
        let disks = policy.disks.iter().map(|(disk, _)| disk.clone()).collect();
        let message = format!("policy {} deleted", policy.spec.name);
        self.change(by, Op::PolicyDelete { id: id.clone(), disks }, message)?;
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
        match &record.policy {
            Some(applied) if applied.id == *id => return self.disk(disk),
            Some(applied) if !replace => {
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
            return Err(Error::new(
                ErrorKind::WrongState,
                format!("{} has no policy", record.name),
            )
            .hint("see `rowctl disk list --policy any`"));
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

    /// The disks that have a policy, and since when.
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
    pub fn automatic_create(&self, by: Actor, spec: AutomaticSpec) -> Result<SnapshotInfo> {
        let _shape = self.shape.lock();
        let disk = self.record(&spec.disk)?;
        self.refuse_filling(&disk.id)?;
        self.check_previous(&disk)?;
        let head = self.tree(disk.tree).next_epoch()?;
        let name = free_name(&self.catalogue.read(), &disk.id, &spec.name, &spec.time);
        let id = SnapshotId::random()?;
        let message = format!("snapshot {}@{name} made by a policy", disk.name);
        let snapshot = SnapshotRecord {
            id: id.clone(),
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
        let copy = spec.copy.map(|order| self.new_policy_copy(&disk, &snapshot, order)).transpose();
        let (copy, trouble) = match copy {
            Ok(copy) => (copy, None),
            Err(error) => (None, Some(format!("{message}, and not copied: {}", error.message()))),
        };
        self.change(by, Op::SnapshotCreate(Cut { snapshot, head, copy }), message)?;
        if let Some(trouble) = trouble {
            self.note(by, "policy.uncopied", id.as_str(), trouble)?;
        }
        self.snapshot(&id)
    }

    /// Removes an automatic snapshot, unless somebody uses it; `kind` and `why` are told. Whether it is gone.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn automatic_remove(&self, id: &SnapshotId, kind: &str, why: &str) -> Result<bool> {
        let _shape = self.shape.lock();
        let Ok(snapshot) = self.snapshot_record(id) else { return Ok(false) };
        let in_use = self.held(&self.catalogue.read(), &snapshot).is_some();
        if snapshot.kind != Kind::Auto || in_use || self.check_no_filling(&snapshot).is_err() {
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
        let catalogue = self.catalogue.read();
        let kept = |snapshot: &SnapshotRecord| {
            let automatic = snapshot.automatic.as_ref().filter(|_| snapshot.kind == Kind::Auto)?;
            Some(Kept {
                id: snapshot.id.clone(),
                name: snapshot.name.clone(),
                created_at: snapshot.created_at,
                expires_at: snapshot.expires_at,
                automatic: automatic.clone(),
                held: self.held(&catalogue, snapshot),
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

    /// Why an automatic snapshot cannot go.
    fn held(&self, catalogue: &Catalogue, snapshot: &SnapshotRecord) -> Option<String> {
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

    fn policy_record(&self, id: &PolicyId) -> Result<PolicyRecord> {
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
    let has = |applied: &Applied| applied.id == record.id;
    let having = catalogue.disks.values().filter(|disk| disk.policy.as_ref().is_some_and(has));
    let mut disks: Vec<(DiskId, String)> =
        having.map(|disk| (disk.id.clone(), disk.name.clone())).collect();
    disks.sort_by(|a, b| a.1.cmp(&b.1));
    let PolicyRecord { id, created_at, spec, handled, last_run, last_success } = record;
    PolicyInfo { id, created_at, spec, handled, disks, last_run, last_success }
}

/// A name that no snapshot of the disk has: with the time where the day alone is taken.
fn free_name(catalogue: &Catalogue, disk: &DiskId, day: &str, time: &str) -> String {
    let taken = |name: &str| catalogue.snapshot_named(disk, name).is_some();
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
