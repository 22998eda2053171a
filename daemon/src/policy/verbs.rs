//! What people ask of policies.
//!
//! Invariants: a schedule and its zone are checked before a record has them; a preview changes nothing and says what
//! the scheduler would do.
//! Absent: the records (`engine/policies.rs`), and the wire.

use super::pruning::copies_of;
use super::retention::{Reason, evict, prune};
use super::schedule::{Timetable, zone};
use super::scheduler::Policies;
use crate::engine::api::policy::{
    CLOCK, CopyRule, Counts, Hold, Keep, Kept, KeptInRepo, PolicyChange, PolicyInfo, PolicySpec,
};
use crate::engine::api::{Actor, DiskInfo};
use crate::engine::now;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{CopyId, DiskId, PolicyId, SnapshotId};

/// The longest retention, 65536 days; beyond it is forever.
const KEEP_MAX: u64 = 65_536 * 86_400;
/// The shortest: what is kept for less is not worth making.
const KEEP_MIN: u64 = 60;
/// The most that a rule counts of each kind.
const COUNT_MAX: u32 = 100_000;
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

    /// When a policy is due next, and why not if it is not.
    #[must_use]
    pub fn next_run(&self, policy: &PolicyInfo) -> Option<u64> {
        let table = Timetable::new(&policy.spec.schedule, &policy.spec.zone).ok()?;
        table.next(policy.handled.max(now()))
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
        let mut at = policy.handled.max(now());
        let next = std::iter::from_fn(|| {
            at = table.next(at)?;
            Some(at)
        });
        let runs = next.take(runs).collect();
        let mut pruned = Vec::new();
        for disk in self.engine.disks_served_by(id) {
            let of_disk = self.engine.automatics(&disk);
            let label = of_disk.name.clone().unwrap_or_else(|| disk.to_string());
            let all = of_disk.snapshots;
            let gone = prune(now(), of_disk.name.is_some(), &all, true).remove;
            let evicted = evict(&all, self.engine.settings().quota_auto).into_iter();
            for (id, reason) in gone.into_iter().chain(evicted.map(|id| (id, Reason::Quota))) {
                let Some(one) = all.iter().find(|one| one.id == id) else { continue };
                if one.automatic.policy == policy.id {
                    let name = format!("{label}@{}", one.name);
                    pruned.push(Pruned { id, name, reason });
                }
            }
        }
        let copies = self.copies_pruned(&policy.id);
        Ok(Preview { policy, runs, pruned, copies })
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
