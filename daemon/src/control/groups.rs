//! The methods of groups.
//!
//! Invariants: as in `handlers.rs`.
//! Absent: what the other methods do.

use std::sync::Arc;

use rowd_proto as proto;
use rowd_proto::Time;

use super::convert::{rolled_back, snapshot};
use super::resolve;
use crate::engine::Engine;
use crate::engine::api::{Actor, GroupInfo, GroupSpec, MemberInfo, MemberRollback};
use crate::error::Result;
use crate::units::DiskId;

pub(super) fn create(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::GroupCreate,
) -> Result<proto::Group> {
    let proto::GroupCreate { disks, name, description, tags } = ask;
    let disks = disks_of(engine, &disks)?;
    engine.group_create(by, GroupSpec { disks, name, description, tags }).map(group)
}

pub(super) fn list(engine: &Arc<Engine>, _: Actor, _: proto::GroupList) -> Result<proto::Groups> {
    Ok(proto::Groups { groups: engine.groups().into_iter().map(group).collect() })
}

pub(super) fn show(engine: &Arc<Engine>, _: Actor, ask: proto::GroupShow) -> Result<proto::Group> {
    engine.group(&engine.find_group(&ask.group)?).map(group)
}

pub(super) fn delete(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::GroupDelete,
) -> Result<proto::GroupDeleted> {
    let id = engine.find_group(&ask.group)?;
    let name = engine.group(&id)?.name;
    let snapshots = engine.group_delete(by, &id, ask.force)?;
    Ok(proto::GroupDeleted { id: id.to_string(), name, snapshots })
}

pub(super) fn rollback(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::GroupRollback,
) -> Result<proto::GroupRolledBack> {
    let id = engine.find_group(&ask.group)?;
    let disks = members_of(engine, &engine.group(&id)?, &ask.disks)?;
    let done = engine.group_rollback(by, &id, &disks, ask.force)?;
    let told = |MemberRollback { disk, done }| rolled_back(engine, &disk, done);
    Ok(proto::GroupRolledBack { disks: done.into_iter().map(told).collect::<Result<_>>()? })
}

fn disks_of(engine: &Engine, names: &[String]) -> Result<Vec<DiskId>> {
    names.iter().map(|name| resolve::disk(engine, name)).collect()
}

/// The disks that names mean; a member that is deleted is found by its id.
fn members_of(engine: &Engine, group: &GroupInfo, names: &[String]) -> Result<Vec<DiskId>> {
    let of = |name: &String| match group.members.iter().find(|m| m.disk_id.as_str() == name) {
        Some(member) => Ok(member.disk_id.clone()),
        None => resolve::disk(engine, name),
    };
    names.iter().map(of).collect()
}

fn group(info: GroupInfo) -> proto::Group {
    let member = |MemberInfo { disk_id, disk_name, snapshot_id, snapshot: found }| {
        let (disk_id, snapshot_id) = (DiskId::to_string(&disk_id), snapshot_id.to_string());
        proto::GroupMember { disk_id, disk_name, snapshot_id, snapshot: found.map(snapshot) }
    };
    proto::Group {
        id: info.id.to_string(),
        name: info.name,
        description: info.description,
        created_at: Time::from_unix(info.created_at),
        members: info.members.into_iter().map(member).collect(),
        tags: info.tags,
    }
}
