//! The methods that concern kernel devices: attach and detach, and what changes a disk under its device.
//!
//! Invariants: as in `handlers.rs`.
//! Absent: what the other methods do.

use rowd_proto as proto;

use super::Services;
use super::convert::{disk, rolled_back};
use super::resolve;
use crate::attach::Wish;
use crate::engine::RETURNED;
use crate::engine::api::Actor;
use crate::error::{ErrorKind, Result};
use crate::units::CopyId;

pub(super) fn attach(
    services: &Services,
    by: Actor,
    ask: proto::DiskAttach,
) -> Result<proto::Disk> {
    let id = resolve::disk(&services.engine, &ask.disk)?;
    let wish = Wish { device: ask.device, read_only: ask.read_only };
    services.attach.attach(by, &id, &wish).map(disk)
}

pub(super) fn detach(
    services: &Services,
    by: Actor,
    ask: proto::DiskDetach,
) -> Result<proto::Disk> {
    let id = resolve::disk(&services.engine, &ask.disk)?;
    services.attach.detach(by, &id, ask.force).map(disk)
}

pub(super) fn resize(
    services: &Services,
    by: Actor,
    ask: proto::DiskResize,
) -> Result<proto::Disk> {
    let id = resolve::disk(&services.engine, &ask.disk)?;
    let done = services.engine.disk_resize(by, &id, ask.size, ask.shrink)?;
    services.attach.resized(&id)?;
    Ok(disk(done))
}

pub(super) fn reinit(
    services: &Services,
    by: Actor,
    ask: proto::DiskReinit,
) -> Result<proto::RolledBack> {
    let Services { engine, attach, .. } = services;
    let id = resolve::disk(engine, &ask.disk)?;
    // Before anything happens to its device.
    engine.refuse_return(&id)?;
    let change = || engine.disk_reinit(by, &id, ask.force);
    let done = attach.around(by, std::slice::from_ref(&id), ask.force, change)?;
    rolled_back(engine, &id, done)
}

pub(super) fn rollback(
    services: &Services,
    by: Actor,
    ask: proto::DiskRollback,
) -> Result<proto::RolledBack> {
    let Services { engine, attach, vault, .. } = services;
    let id = resolve::disk(engine, &ask.disk)?;
    let to = match resolve::snapshot_of(engine, &id, &ask.snapshot) {
        Err(error) if error.kind() == ErrorKind::NotFound && is_copy(&ask.snapshot) => None,
        found => Some(found?),
    };
    engine.refuse_return(&id)?;
    // Before anything happens to its device: a repository may take its time.
    let way = match &to {
        Some(to) => vault.way_back(&id, to)?,
        None => vault.way_back_to_copy(&id, &ask.snapshot)?,
    };
    let change = || vault.go_back(by, &id, way, ask.force);
    let done = attach.around(by, std::slice::from_ref(&id), ask.force, change)?;
    rolled_back(engine, &id, done)
}

fn is_copy(name: &str) -> bool {
    name.starts_with(CopyId::PREFIX)
}

pub(super) fn undo(
    services: &Services,
    by: Actor,
    ask: proto::DiskUndo,
) -> Result<proto::RolledBack> {
    let Services { engine, attach, .. } = services;
    let id = resolve::disk(engine, &ask.disk)?;
    engine.refuse_protected(&id, RETURNED)?;
    let change = || engine.disk_undo(by, &id, ask.force);
    let done = attach.around(by, std::slice::from_ref(&id), ask.force, change)?;
    rolled_back(engine, &id, done)
}
