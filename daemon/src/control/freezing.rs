//! The methods that freeze: snapshots and groups at any level, and what is frozen.
//!
//! Invariants: only root names paths, since what they mean is done with the daemon's privileges; as in
//! `handlers.rs` otherwise.
//! Absent: the phases of a freeze (`freeze/`).

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rowd_proto as proto;
use rowd_proto::Moment;

use super::convert::{self, consistency, snapshot};
use super::groups::{group, spec};
use super::{Services, presence, resolve};
use crate::engine::api::{Actor, Consistency, SnapshotSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::freeze::provider::Target;
use crate::freeze::report::Report;
use crate::freeze::{Options, Preview, Running, Status};

pub(super) fn snapshot_create(
    services: &Services,
    by: Actor,
    ask: proto::SnapshotCreate,
) -> Result<proto::SnapshotMade> {
    let engine = &services.engine;
    let disk = resolve::disk(engine, &ask.disk)?;
    let proto::SnapshotCreate { name, description, tags, consistency, freeze, .. } = ask;
    let (level, options) = how(by, consistency, freeze)?;
    let copy = presence::wanted(engine, ask.repo, ask.local, ask.instant_access)?;
    let spec = SnapshotSpec { disk, name, description, tags, copy };
    if level == Consistency::Crash {
        let snapshot = engine.snapshot_create(by, spec).map(snapshot)?;
        services.vault.look_after_copies()?;
        return Ok(proto::SnapshotMade { snapshot, freeze: None });
    }
    let (made, told) = services.freezer.snapshot_create(engine, by, spec, level, &options)?;
    services.vault.look_after_copies()?;
    Ok(proto::SnapshotMade { snapshot: snapshot(made), freeze: Some(report(told)) })
}

pub(super) fn group_create(
    services: &Services,
    by: Actor,
    ask: proto::GroupCreate,
) -> Result<proto::GroupMade> {
    let engine = &services.engine;
    let (level, options) = how(by, ask.consistency, ask.freeze.clone())?;
    let spec = spec(engine, ask)?;
    if level == Consistency::Crash {
        let group = engine.group_create(by, spec).map(group)?;
        services.vault.look_after_copies()?;
        return Ok(proto::GroupMade { group, freeze: None });
    }
    let (made, told) = services.freezer.group_create(engine, by, spec, level, &options)?;
    services.vault.look_after_copies()?;
    Ok(proto::GroupMade { group: group(made), freeze: Some(report(told)) })
}

pub(super) fn check(
    services: &Services,
    by: Actor,
    ask: proto::FreezeCheck,
) -> Result<proto::FreezePreview> {
    let engine = &services.engine;
    let (level, options) = how(by, ask.consistency, ask.freeze)?;
    if level == Consistency::Crash {
        return Err(Error::invalid("at the level crash nothing is frozen")
            .hint("ask for --consistency fs or app"));
    }
    let disks = ask.disks.iter().map(|disk| resolve::disk(engine, disk));
    let disks = disks.collect::<Result<Vec<_>>>()?;
    let Preview { level, notes, targets, applications } =
        services.freezer.check(engine, &disks, level, &options)?;
    let targets = targets.into_iter().map(target).collect();
    Ok(proto::FreezePreview { consistency: consistency(level), notes, targets, applications })
}

pub(super) fn show(
    services: &Services,
    _: Actor,
    _: proto::FreezeShow,
) -> Result<proto::FreezeStatus> {
    services.freezer.status().map(status)
}

pub(super) fn thaw(
    services: &Services,
    by: Actor,
    _: proto::FreezeThaw,
) -> Result<proto::FreezeStatus> {
    let before = services.freezer.thaw()?;
    services.engine.note(by, "freeze.thaw", "freeze", "asked to thaw".to_owned())?;
    Ok(status(before))
}

/// The level and the options of a request, if they fit together and to who asks.
fn how(
    by: Actor,
    level: proto::Consistency,
    freeze: Option<proto::FreezeOptions>,
) -> Result<(Consistency, Options)> {
    let level = convert::level(level);
    if level == Consistency::Crash && freeze.is_some() {
        return Err(Error::invalid("freeze options make sense above the crash level only")
            .hint("ask for --consistency fs or app"));
    }
    let proto::FreezeOptions { mounts, timeout, no_freeze, .. } =
        freeze.clone().unwrap_or_default();
    let proto::FreezeOptions { pre_script, post_script, script_timeout, no_scripts, .. } =
        freeze.unwrap_or_default();
    let scripts = pre_script.is_some() || post_script.is_some();
    if (scripts || !mounts.is_empty()) && by.uid != 0 {
        let message = "only root may name mount points and scripts";
        return Err(Error::new(ErrorKind::NotPermitted, message).hint(
            "what rowd finds by itself, and the scripts and hooks of its configuration, anybody may use \
             who controls it",
        ));
    }
    if level != Consistency::App && (scripts || script_timeout.is_some()) {
        return Err(Error::invalid("scripts take part at the level app only")
            .hint("ask for --consistency app"));
    }
    if no_scripts && scripts {
        return Err(Error::invalid("scripts are named, and none is to be run"));
    }
    if no_freeze && !mounts.is_empty() {
        return Err(Error::invalid("mount points are named, and nothing is to be frozen"));
    }
    let mounts = mounts.into_iter().map(PathBuf::from).collect();
    let options = Options {
        mounts,
        limit: timeout.map(Duration::from_secs),
        pre_script: pre_script.map(PathBuf::from),
        post_script: post_script.map(PathBuf::from),
        script_limit: script_timeout.map(Duration::from_secs),
        no_scripts,
        no_freeze,
    };
    Ok((level, options))
}

fn status(status: Status) -> proto::FreezeStatus {
    let running = status.running.map(|running| {
        let Running { what, wanted, since, phase, targets } = running;
        proto::FreezeRunning {
            what,
            wanted: consistency(wanted),
            since: moment(since),
            phase: phase.name().to_owned(),
            targets: targets.into_iter().map(target).collect(),
        }
    });
    let left = status.left.into_iter().flat_map(|record| record.members);
    proto::FreezeStatus { running, left: left.map(|member| member.mount_point).collect() }
}

fn report(report: Report) -> proto::FreezeReport {
    let frozen_seconds = report.frozen_for().as_secs_f64();
    let phases = report.phases.iter().map(|(phase, took)| proto::FreezePhase {
        name: phase.name().to_owned(),
        seconds: took.as_secs_f64(),
    });
    proto::FreezeReport {
        wanted: consistency(report.wanted),
        reached: consistency(report.reached),
        phases: phases.collect(),
        notes: report.notes,
        targets: report.targets.into_iter().map(target).collect(),
        frozen_at: report.frozen_at.map(moment),
        thawed_at: report.thawed_at.map(moment),
        frozen_seconds,
    }
}

fn target(target: Target) -> proto::FreezeTarget {
    let Target { mount_point, file_system, device } = target;
    proto::FreezeTarget { mount_point, file_system, device }
}

fn moment(at: SystemTime) -> Moment {
    let micros = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    Moment::from_unix_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}
