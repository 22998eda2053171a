//! What people ask of policies.
//!
//! Invariants: a schedule and its zone are checked before a record has them; a preview changes nothing and says what
//! the scheduler would do.
//! Absent: the records (`engine/policies.rs`), and the wire.

use std::collections::BTreeMap;

use super::due::delay;
use super::pruning::copies_of;
use super::retention::{Reason, evict, prune};
use super::schedule::{Timetable, zone};
use super::scheduler::Policies;
use crate::engine::api::policy::{
    CLOCK, CopyRule, Counts, Hold, Keep, Kept, KeptInRepo, KeptOfDisk, PolicyChange, PolicyInfo,
    PolicySpec,
};
use crate::engine::api::{Actor, DiskInfo, InstanceInfo};
use crate::engine::now;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{CopyId, DiskId, InstanceId, PolicyId, SnapshotId};

/// The longest retention, 65536 days; beyond it is forever.
const KEEP_MAX: u64 = 65_536 * 86_400;
/// The shortest: what is kept for less is not worth making.
const KEEP_MIN: u64 = 60;
/// The most that a rule counts of each kind.
const COUNT_MAX: u32 = 100_000;
/// The longest time that a run may begin after its slot.
const JITTER_MAX: u64 = 12 * 3600;
/// Runs that a preview tells at most.
const RUNS_MAX: usize = 1000;

/// What a policy would do.
#[derive(Clone, Debug)]
pub struct Preview {
    pub policy: PolicyInfo,
    /// The next slots.
    pub runs: Vec<u64>,
    /// Snapshots of its disks that would go now.
    pub pruned: Vec<Pruned>,
    /// Copies that would go.
    pub copies: Vec<CopyPruned>,
}

/// A copy that would go.
#[derive(Clone, Debug)]
pub struct CopyPruned {
    pub id: CopyId,
    /// `disk@snapshot`, as it was called when it was made.
    pub name: String,
    pub repo: String,
    pub reason: Reason,
}

/// A snapshot that would go.
#[derive(Clone, Debug)]
pub struct Pruned {
    pub id: SnapshotId,
    /// `disk@snapshot`.
    pub name: String,
    pub reason: Reason,
}

impl Policies {
    /// # Errors
    /// The schedule, the zone or the retention will not do; else as [`crate::engine::Engine::policy_create`].
    pub fn create(&self, by: Actor, spec: PolicySpec) -> Result<PolicyInfo> {
        let mut spec = spec;
        Timetable::new(&spec.schedule, &spec.zone)?;
        spec.zone = proper_name(&spec.zone)?;
        check_keep(&spec.keep)?;
        check_copy(spec.copy.as_ref())?;
        check_jitter(spec.jitter)?;
        let made = self.engine.policy_create(by, spec)?;
        self.look_again();
        Ok(made)
    }

    /// # Errors
    /// As [`Policies::create`].
    pub fn change(&self, by: Actor, id: &PolicyId, change: PolicyChange) -> Result<PolicyInfo> {
        let mut change = change;
        let old = self.engine.policy(id)?.spec;
        let zone = change.zone.as_ref().unwrap_or(&old.zone);
        Timetable::new(change.schedule.as_ref().unwrap_or(&old.schedule), zone)?;
        change.zone = change.zone.as_deref().map(proper_name).transpose()?;
        change.keep.as_ref().map(check_keep).transpose()?;
        check_copy(change.copy.as_ref().and_then(Option::as_ref))?;
        check_jitter(change.jitter.unwrap_or(0))?;
        let changed = self.engine.policy_change(by, id, change)?;
        self.look_again();
        Ok(changed)
    }

    /// # Errors
    /// As [`crate::engine::Engine::policy_delete`].
    pub fn delete(&self, by: Actor, id: &PolicyId) -> Result<Vec<(DiskId, String)>> {
        let disks = self.engine.policy_delete(by, id)?;
        self.look_again();
        Ok(disks)
    }

    /// # Errors
    /// As [`crate::engine::Engine::policy_apply`].
    pub fn apply(
        &self,
        by: Actor,
        id: &PolicyId,
        disk: &DiskId,
        replace: bool,
    ) -> Result<DiskInfo> {
        let disk = self.engine.policy_apply(by, id, disk, replace)?;
        self.look_again();
        Ok(disk)
    }

    /// # Errors
    /// As [`crate::engine::Engine::policy_apply_instance`].
    pub fn apply_instance(
        &self,
        by: Actor,
        id: &PolicyId,
        instance: &InstanceId,
        replace: bool,
    ) -> Result<InstanceInfo> {
        let instance = self.engine.policy_apply_instance(by, id, instance, replace)?;
        self.look_again();
        Ok(instance)
    }

    /// When a policy is due next, and why not if it is not.
    #[must_use]
    pub fn next_run(&self, policy: &PolicyInfo) -> Option<u64> {
        let table = Timetable::new(&policy.spec.schedule, &policy.spec.zone).ok()?;
        next_runs(policy, &table).next()
    }

    /// What a policy would do: its next runs, and which snapshots would go now.
    ///
    /// # Errors
    /// There is no such policy.
    pub fn preview(&self, id: &PolicyId, runs: usize) -> Result<Preview> {
        if runs == 0 || runs > RUNS_MAX {
            return Err(Error::invalid(format!("{runs} runs: 1 to {RUNS_MAX} can be foretold")));
        }
        let policy = self.engine.policy(id)?;
        let table = Timetable::new(&policy.spec.schedule, &policy.spec.zone)?;
        let runs = next_runs(&policy, &table).take(runs).collect();
        let pruned = self.snapshots_pruned(id);
        let copies = self.copies_pruned(&policy.id);
        Ok(Preview { policy, runs, pruned, copies })
    }

    /// The snapshots by a policy that would go now, each once: alone, or with the groups they were made in.
    fn snapshots_pruned(&self, policy: &PolicyId) -> Vec<Pruned> {
        let mut groups = BTreeMap::new();
        for instance in self.engine.instances_served_by(policy) {
            let there = self.engine.automatic_groups(&instance);
            groups.extend(prune(now(), there.name.is_some(), &there.groups, true).remove);
        }
        let (mut alone, mut all) = (BTreeMap::new(), Vec::new());
        for disk in self.engine.disks_served_by(policy) {
            let KeptOfDisk { name, snapshots } = self.engine.automatics(&disk);
            alone.extend(prune(now(), name.is_some(), &snapshots, true).remove);
            for id in evict(&snapshots, self.engine.settings().quota_auto) {
                let one = snapshots.iter().find(|one| one.id == id);
                match one.and_then(|one| one.automatic.group.clone()) {
                    Some(group) => drop(groups.entry(group).or_insert(Reason::Quota)),
                    None => drop(alone.entry(id).or_insert(Reason::Quota)),
                }
            }
            let label = name.unwrap_or_else(|| disk.to_string());
            all.extend(snapshots.into_iter().map(|one| (format!("{label}@{}", one.name), one)));
        }
        let told = |(name, one): (String, Kept)| {
            let of_group = one.automatic.group.as_ref().and_then(|group| groups.get(group));
            let reason = *alone.get(&one.id).or(of_group)?;
            (one.automatic.policy == *policy).then_some(Pruned { id: one.id, name, reason })
        };
        all.into_iter().filter_map(told).collect()
    }

    /// The copies by a policy that would go now.
    fn copies_pruned(&self, policy: &PolicyId) -> Vec<CopyPruned> {
        let mut pruned = Vec::new();
        for disk in self.engine.disks_copied_by(policy) {
            let exists = self.engine.automatics(&disk).name.is_some();
            for KeptInRepo { repo, copies } in self.engine.policy_copies(&disk) {
                for (id, reason) in prune(now(), exists, &copies, true).remove {
                    let own = |one: &&Kept<CopyId>| one.id == id && one.automatic.policy == *policy;
                    let Some(one) = copies.iter().find(own) else { continue };
                    let (name, repo) = (one.name.clone(), repo.clone());
                    pruned.push(CopyPruned { id, name, repo, reason });
                }
            }
        }
        pruned
    }

    /// What stands still.
    #[must_use]
    pub fn holds(&self) -> Vec<Hold> {
        self.engine.holds()
    }

    /// Agrees to what stands still of the groups of an instance. Returns how many groups went.
    ///
    /// # Errors
    /// `WrongState` when nothing stands still there.
    pub fn resume_instance(&self, by: Actor, instance: &InstanceId) -> Result<u64> {
        if !self.engine.is_held(instance.as_str()) {
            let message = "no removals of automatic groups of this instance wait for anybody";
            return Err(Error::new(ErrorKind::WrongState, message)
                .hint("`rowctl policy list` tells what stands still"));
        }
        let gone = self.prune_groups(instance, now(), true)?.removed;
        self.engine.policy_resume(by, instance.as_str())?;
        Ok(gone)
    }

    /// Agrees to what stands still: the clock, or what has had its time of a disk. Returns how many snapshots went.
    ///
    /// # Errors
    /// `WrongState` when nothing stands still there.
    pub fn resume(&self, by: Actor, disk: Option<&DiskId>) -> Result<u64> {
        let held = self.engine.holds().into_iter().map(|hold| hold.object);
        let held: Vec<String> = match disk {
            None => held.filter(|object| object == CLOCK).collect(),
            Some(disk) => {
                let copies = copies_of(disk, "");
                held.filter(|one| one == disk.as_str() || one.starts_with(&copies)).collect()
            }
        };
        if held.is_empty() {
            let message = match disk {
                Some(_) => "no removals of automatic snapshots of this disk wait for anybody",
                None => "the clock holds nothing up",
            };
            return Err(Error::new(ErrorKind::WrongState, message)
                .hint("`rowctl policy list` tells what stands still"));
        }
        let gone = match disk {
            Some(disk) => self.prune(disk, now(), true)?.removed,
            None => {
                self.trust_clock();
                0
            }
        };
        held.iter().try_for_each(|object| self.engine.policy_resume(by, object).map(drop))?;
        Ok(gone)
    }
}

/// When runs of a policy begin from now on.
fn next_runs(policy: &PolicyInfo, table: &Timetable) -> impl Iterator<Item = u64> + use<> {
    let delay = delay(&policy.id, policy.spec.jitter);
    let mut at = policy.handled.max(now().saturating_sub(delay));
    let table = table.clone();
    std::iter::from_fn(move || {
        at = table.next(at)?;
        Some(at.saturating_add(delay))
    })
}

fn check_jitter(seconds: u64) -> Result<()> {
    match seconds {
        0..=JITTER_MAX => Ok(()),
        _ => Err(Error::invalid(format!("runs cannot begin {seconds} seconds after their times"))
            .hint("at most 12 hours; a schedule can name later hours")),
    }
}

/// A zone as it is written.
fn proper_name(name: &str) -> Result<String> {
    let zone = zone(name)?;
    Ok(zone.iana_name().unwrap_or(name).to_owned())
}

fn check_copy(rule: Option<&CopyRule>) -> Result<()> {
    rule.map_or(Ok(()), |rule| check_keep(&rule.keep).map_err(|e| e.context("the copies")))
}

fn check_keep(keep: &Keep) -> Result<()> {
    match keep {
        Keep::For { seconds } if !(KEEP_MIN..=KEEP_MAX).contains(seconds) => {
            Err(Error::invalid(format!("snapshots cannot be kept for {seconds} seconds"))
                .hint("one minute to 65536 days are possible, or `forever`"))
        }
        Keep::Counts(counts) => check_counts(counts),
        Keep::For { .. } | Keep::Forever => Ok(()),
    }
}

fn check_counts(counts: &Counts) -> Result<()> {
    let Counts { last, hourly, daily, weekly, monthly, yearly } = *counts;
    let all = [last, hourly, daily, weekly, monthly, yearly];
    if all.iter().all(|count| *count == 0) {
        return Err(Error::invalid("a retention that counts nothing keeps nothing")
            .hint("say how many to keep, as in last=7,daily=30"));
    }
    if let Some(bad) = all.iter().find(|count| **count > COUNT_MAX) {
        return Err(Error::invalid(format!("{bad} snapshots of one kind: at most {COUNT_MAX}")));
    }
    Ok(())
}
