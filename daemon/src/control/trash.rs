//! The methods of deleting disks, and of bringing them back.
//!
//! Invariants: as in `handlers.rs`.
//! Absent: what the other methods do.

use std::sync::Arc;

use rowd_proto as proto;
use rowd_proto::Time;

use super::{convert, resolve};
use crate::engine::Engine;
use crate::engine::api::{Actor, TrashInfo};
use crate::error::Result;

pub(super) fn delete(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::DiskDelete,
) -> Result<proto::DiskDeleted> {
    let id = resolve::disk(engine, &ask.disk)?;
    let name = engine.disk(&id)?.name;
    let done = engine.disk_release(by, &id, ask.force, ask.now)?;
    Ok(proto::DiskDeleted {
        id: id.to_string(),
        name,
        restorable_until: done.until.map(Time::from_unix),
        snapshots: done.snapshots,
    })
}

pub(super) fn list(engine: &Arc<Engine>, _: Actor, _: proto::TrashList) -> Result<proto::Trash> {
    Ok(proto::Trash { disks: engine.trash().into_iter().map(trashed).collect() })
}

pub(super) fn restore(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::TrashRestore,
) -> Result<proto::Disk> {
    let id = engine.find_trashed(&ask.disk)?;
    engine.trash_restore(by, &id, ask.name.as_deref()).map(convert::disk)
}

pub(super) fn purge(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::TrashPurge,
) -> Result<proto::TrashPurged> {
    let id = engine.find_trashed(&ask.disk)?;
    let found = engine.trash().into_iter().find(|one| one.id == id);
    let name = found.map_or_else(String::new, |one| one.name);
    let snapshots = engine.trash_purge(by, &id, "somebody said so")?;
    Ok(proto::TrashPurged { id: id.to_string(), name, snapshots })
}

pub(super) fn freed(
    engine: &Arc<Engine>,
    _: Actor,
    ask: proto::DiskFreed,
) -> Result<proto::DiskFreedBytes> {
    let id = resolve::disk(engine, &ask.disk)?;
    let name = engine.disk(&id)?.name;
    let freed_bytes = engine.freed_with_disk(&id)?;
    Ok(proto::DiskFreedBytes { id: id.to_string(), name, freed_bytes })
}

fn trashed(info: TrashInfo) -> proto::TrashedDisk {
    proto::TrashedDisk {
        id: info.id.to_string(),
        name: info.name,
        size: info.size,
        deleted_at: Time::from_unix(info.deleted_at),
        expires_at: Time::from_unix(info.until),
        exclusive_bytes: info.exclusive_bytes,
        snapshot_count: info.snapshots,
    }
}
