//! The methods of policies.
//!
//! Invariants: as in `handlers.rs`.
//! Absent: what the other methods do.

use rowd_proto as proto;
use rowd_proto::Time;

use super::convert::{consistency, disk, level};
use super::{Services, resolve};
use crate::engine::api::Actor;
use crate::engine::api::policy::{
    CatchUp, CopyRule, Counts, Hold, Keep, LastRun, PolicyChange, PolicyInfo, PolicySpec, Schedule,
};
use crate::error::{Error, Result};
use crate::policy::retention::Reason;
use crate::policy::{CopyPruned, Policies, Pruned};
use crate::units::{DiskId, InstanceId, PolicyId};

/// Runs that a preview tells unless the client asks for more.
const RUNS_DEFAULT: u32 = 5;

pub(super) fn create(
    services: &Services,
    by: Actor,
    ask: proto::PolicyCreate,
) -> Result<proto::Policy> {
    let wanted = keep(ask.keep);
    let spec = PolicySpec {
        name: ask.name,
        description: ask.description,
        schedule: schedule(ask.schedule)?,
        zone: ask.timezone.unwrap_or_else(|| "UTC".to_owned()),
        keep: wanted.clone(),
        tags: ask.tags,
        consistency: level(ask.consistency),
        catch_up: catch_up(ask.catch_up),
        copy: first_rule(ask.copy_to, ask.copy_keep, &wanted)?,
        jitter: ask.jitter,
    };
    services.policies.create(by, spec).map(|made| policy(&services.policies, made))
}

pub(super) fn list(services: &Services, _: Actor, _: proto::PolicyList) -> Result<proto::Policies> {
    let all = services.engine.policies().into_iter();
    let hold = |Hold { object, since, why }| {
        let since = Time::from_unix(since);
        proto::PolicyHold { object, since, why }
    };
    Ok(proto::Policies {
        policies: all.map(|one| policy(&services.policies, one)).collect(),
        holds: services.policies.holds().into_iter().map(hold).collect(),
    })
}

pub(super) fn show(services: &Services, _: Actor, ask: proto::PolicyShow) -> Result<proto::Policy> {
    let id = resolve::policy(&services.engine, &ask.policy)?;
    services.engine.policy(&id).map(|found| policy(&services.policies, found))
}

pub(super) fn set(services: &Services, by: Actor, ask: proto::PolicySet) -> Result<proto::Policy> {
    let id = resolve::policy(&services.engine, &ask.policy)?;
    let copy = next_rule(services, &id, &ask)?;
    let change = PolicyChange {
        name: ask.name,
        description: ask.description,
        schedule: ask.schedule.map(schedule).transpose()?,
        zone: ask.timezone,
        keep: ask.keep.map(keep),
        tags: ask.tags,
        consistency: ask.consistency.map(level),
        catch_up: ask.catch_up.map(catch_up),
        copy,
        jitter: ask.jitter,
    };
    services.policies.change(by, &id, change).map(|made| policy(&services.policies, made))
}

pub(super) fn delete(
    services: &Services,
    by: Actor,
    ask: proto::PolicyDelete,
) -> Result<proto::PolicyDeleted> {
    let id = resolve::policy(&services.engine, &ask.policy)?;
    let PolicyInfo { spec, instances, .. } = services.engine.policy(&id)?;
    let disks = services.policies.delete(by, &id)?.into_iter().map(policy_disk).collect();
    let instances = instances.into_iter().map(owner).collect();
    Ok(proto::PolicyDeleted { id: id.to_string(), name: spec.name, disks, instances })
}

pub(super) fn apply(
    services: &Services,
    by: Actor,
    ask: proto::PolicyApply,
) -> Result<proto::Disk> {
    let id = resolve::policy(&services.engine, &ask.policy)?;
    let of = resolve::disk(&services.engine, &ask.disk)?;
    services.policies.apply(by, &id, &of, ask.replace).map(disk)
}

pub(super) fn cancel(
    services: &Services,
    by: Actor,
    ask: proto::PolicyCancel,
) -> Result<proto::Disk> {
    let of = resolve::disk(&services.engine, &ask.disk)?;
    services.engine.policy_cancel(by, &of).map(disk)
}

pub(super) fn instance(
    services: &Services,
    by: Actor,
    ask: proto::PolicyInstance,
) -> Result<proto::Instance> {
    let engine = &services.engine;
    let of = resolve::instance(engine, &ask.instance)?;
    let done = match ask.policy {
        Some(policy) => {
            let id = resolve::policy(engine, &policy)?;
            services.policies.apply_instance(by, &id, &of, ask.replace)?
        }
        None if ask.replace => {
            return Err(Error::invalid("to take a policy away replaces none")
                .hint("leave `replace` out, or name a policy"));
        }
        None => engine.policy_cancel_instance(by, &of)?,
    };
    Ok(super::instances::instance(done))
}

pub(super) fn preview(
    services: &Services,
    _: Actor,
    ask: proto::PolicyPreview,
) -> Result<proto::PolicyPreviewed> {
    let id = resolve::policy(&services.engine, &ask.policy)?;
    let runs = usize::try_from(ask.runs.unwrap_or(RUNS_DEFAULT));
    let runs = runs.map_err(|e| Error::internal(e.to_string()))?;
    let found = services.policies.preview(&id, runs)?;
    let told = |reason| match reason {
        Reason::Expired => proto::PolicyPruneReason::Expired,
        Reason::Counted => proto::PolicyPruneReason::Counted,
        Reason::Quota => proto::PolicyPruneReason::Quota,
    };
    let pruned = |Pruned { id, name, reason }: Pruned| {
        let (id, reason) = (id.to_string(), told(reason));
        proto::PolicyPruned { id, name, reason }
    };
    let copy = |CopyPruned { id, name, repo, reason }: CopyPruned| {
        let (id, reason) = (id.to_string(), told(reason));
        proto::PolicyPrunedCopy { id, name, repo, reason }
    };
    Ok(proto::PolicyPreviewed {
        policy: policy(&services.policies, found.policy),
        runs: found.runs.into_iter().map(Time::from_unix).collect(),
        pruned: found.pruned.into_iter().map(pruned).collect(),
        pruned_copies: found.copies.into_iter().map(copy).collect(),
    })
}

pub(super) fn resume(
    services: &Services,
    by: Actor,
    ask: proto::PolicyResume,
) -> Result<proto::PolicyResumed> {
    if let Some(name) = ask.instance {
        if ask.disk.is_some() {
            return Err(Error::invalid("a disk or an instance, not both"));
        }
        // One that is gone is known by its id.
        let gone = InstanceId::from(name.as_str());
        let of = match resolve::instance(&services.engine, &name) {
            Err(_) if services.engine.is_held(gone.as_str()) => gone,
            found => found?,
        };
        let removed = services.policies.resume_instance(by, &of)?;
        return Ok(proto::PolicyResumed { removed });
    }
    // A disk that is gone is known by its id.
    let of = ask.disk.map(|name| resolve::chain(&services.engine, &name)).transpose()?;
    let removed = services.policies.resume(by, of.as_ref())?;
    Ok(proto::PolicyResumed { removed })
}

/// What a new policy does about copies.
fn first_rule(
    repo: Option<String>,
    asked: Option<proto::PolicyKeep>,
    of_snapshots: &Keep,
) -> Result<Option<CopyRule>> {
    match (repo, asked) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(no_repo()),
        (Some(repo), asked) => {
            let keep = asked.map_or_else(|| of_snapshots.clone(), keep);
            Ok(Some(CopyRule { repo, keep }))
        }
    }
}

/// What changes about the copies of a policy.
fn next_rule(
    services: &Services,
    id: &PolicyId,
    ask: &proto::PolicySet,
) -> Result<Option<Option<CopyRule>>> {
    let proto::PolicySet { copy_to, copy_keep, no_copy, .. } = ask;
    match (no_copy, copy_to, copy_keep) {
        (true, None, None) => return Ok(Some(None)),
        (true, ..) => {
            return Err(Error::invalid("a policy copies somewhere, or nowhere: not both"));
        }
        (false, None, None) => return Ok(None),
        (false, ..) => {}
    }
    let spec = services.engine.policy(id)?.spec;
    let asked = copy_keep.clone().map(keep);
    let rule = match (copy_to.clone(), spec.copy) {
        (None, None) => return Err(no_repo()),
        (None, Some(old)) => CopyRule { keep: asked.unwrap_or(old.keep), ..old },
        (Some(repo), old) => {
            let before = old.map_or(spec.keep, |old| old.keep);
            CopyRule { repo, keep: asked.unwrap_or(before) }
        }
    };
    Ok(Some(Some(rule)))
}

fn no_repo() -> Error {
    Error::invalid("it is said how long copies stay, and not where they are")
        .hint("name a repository: --copy-to R")
}

fn schedule(asked: proto::PolicySchedule) -> Result<Schedule> {
    let proto::PolicySchedule { at, on, cron, every } = asked;
    match (at.is_empty(), cron, every) {
        (false, None, None) => {
            let days = if on.is_empty() { (1..=7).collect() } else { on.into_iter().collect() };
            Ok(Schedule::At { hours: at.into_iter().collect(), days })
        }
        (true, Some(expression), None) if on.is_empty() => Ok(Schedule::Cron { expression }),
        (true, None, Some(seconds)) if on.is_empty() => Ok(Schedule::Every { seconds }),
        (true, None, None) => Err(Error::invalid("a policy needs a schedule")
            .hint("hours (--at 2,14 --on mon,fri), --cron \"30 2 * * *\", or --every 15m")),
        _ => Err(Error::invalid("a schedule is one of hours, a cron expression and an interval")
            .hint("--on goes with --at only")),
    }
}

fn keep(asked: proto::PolicyKeep) -> Keep {
    match asked {
        proto::PolicyKeep::For { seconds } => Keep::For { seconds },
        proto::PolicyKeep::Forever => Keep::Forever,
        proto::PolicyKeep::Counts { last, hourly, daily, weekly, monthly, yearly } => {
            Keep::Counts(Counts { last, hourly, daily, weekly, monthly, yearly })
        }
    }
}

fn catch_up(asked: proto::PolicyCatchUp) -> CatchUp {
    match asked {
        proto::PolicyCatchUp::None => CatchUp::None,
        proto::PolicyCatchUp::Once => CatchUp::Once,
    }
}

fn policy_disk((id, name): (DiskId, String)) -> proto::PolicyDisk {
    proto::PolicyDisk { id: id.to_string(), name }
}

fn owner((id, name): (InstanceId, String)) -> proto::PolicyOwner {
    proto::PolicyOwner { id: id.to_string(), name }
}

fn policy(policies: &Policies, info: PolicyInfo) -> proto::Policy {
    let next_run_at = policies.next_run(&info).map(Time::from_unix);
    let PolicySpec { name, description, schedule, zone, keep, tags, .. } = info.spec;
    let PolicySpec { consistency: level, catch_up, copy, jitter, .. } = info.spec;
    let copy =
        copy.map(|CopyRule { repo, keep }| proto::PolicyCopy { repo, keep: told_keep(keep) });
    let run = |LastRun { slot, at, made, skipped }| proto::PolicyRun {
        scheduled_at: Time::from_unix(slot),
        ended_at: Time::from_unix(at),
        made,
        skipped,
    };
    proto::Policy {
        id: info.id.to_string(),
        name,
        description,
        created_at: Time::from_unix(info.created_at),
        schedule: told_schedule(schedule),
        timezone: zone,
        keep: told_keep(keep),
        tags,
        consistency: consistency(level),
        catch_up: match catch_up {
            CatchUp::None => proto::PolicyCatchUp::None,
            CatchUp::Once => proto::PolicyCatchUp::Once,
        },
        copy,
        jitter,
        instances: info.instances.into_iter().map(owner).collect(),
        disks: info.disks.into_iter().map(policy_disk).collect(),
        next_run_at,
        last_run: info.last_run.map(run),
        last_success_at: info.last_success.map(Time::from_unix),
    }
}

fn told_schedule(schedule: Schedule) -> proto::PolicySchedule {
    let none = proto::PolicySchedule::default();
    match schedule {
        Schedule::At { hours, days } => {
            let (at, on) = (hours.into_iter().collect(), days.into_iter().collect());
            proto::PolicySchedule { at, on, ..none }
        }
        Schedule::Cron { expression } => proto::PolicySchedule { cron: Some(expression), ..none },
        Schedule::Every { seconds } => proto::PolicySchedule { every: Some(seconds), ..none },
    }
}

fn told_keep(keep: Keep) -> proto::PolicyKeep {
    match keep {
        Keep::For { seconds } => proto::PolicyKeep::For { seconds },
        Keep::Forever => proto::PolicyKeep::Forever,
        Keep::Counts(Counts { last, hourly, daily, weekly, monthly, yearly }) => {
            proto::PolicyKeep::Counts { last, hourly, daily, weekly, monthly, yearly }
        }
    }
}
