//! The methods of groups.
//!
//! Invariants: as in `handlers.rs`.
//! Absent: what the other methods do.

use std::sync::Arc;

use rowd_proto as proto;
use rowd_proto::Time;

use super::convert::{rolled_back, snapshot};
use super::{Services, presence, resolve};
use crate::engine::Engine;
use crate::engine::api::{
    Actor, GroupChange, GroupInfo, GroupReturn, GroupSpec, MemberInfo, MemberRollback,
};
use crate::error::Result;
use crate::units::DiskId;

/// What is asked for, with names turned into ids.
pub(super) fn spec(engine: &Engine, ask: proto::GroupCreate) -> Result<GroupSpec> {
    let copy = presence::wanted(engine, ask.repo.clone(), ask.local, ask.instant_access)?;
    let proto::GroupCreate { disks, instances, mut exclude, name, description, tags, .. } = ask;
    exclude.retain(|name| !name.is_empty());
    Ok(GroupSpec {
        disks: disks_of(engine, &disks)?,
        instances: instances
            .iter()
            .map(|name| resolve::instance(engine, name))
            .collect::<Result<_>>()?,
        exclude: disks_of(engine, &exclude)?,
        name,
        description,
        tags,
        copy,
    })
}

pub(super) fn list(engine: &Arc<Engine>, _: Actor, _: proto::GroupList) -> Result<proto::Groups> {
    Ok(proto::Groups { groups: engine.groups().into_iter().map(group).collect() })
}

pub(super) fn show(engine: &Arc<Engine>, _: Actor, ask: proto::GroupShow) -> Result<proto::Group> {
    engine.group(&resolve::group(engine, &ask.group)?).map(group)
}

pub(super) fn set(engine: &Arc<Engine>, by: Actor, ask: proto::GroupSet) -> Result<proto::Group> {
    let id = resolve::group(engine, &ask.group)?;
    let change = GroupChange { name: ask.name, description: ask.description };
    engine.group_change(by, &id, change).map(group)
}

pub(super) fn delete(
    services: &Services,
    by: Actor,
    ask: proto::GroupDelete,
) -> Result<proto::GroupDeleted> {
    let engine = &services.engine;
    let id = resolve::group(engine, &ask.group)?;
    let name = engine.group(&id)?.name;
    let snapshots = engine.group_delete(by, &id, ask.force)?;
    services.vault.look_after_copies()?;
    Ok(proto::GroupDeleted { id: id.to_string(), name, snapshots })
}

pub(super) fn rollback(
    services: &Services,
    by: Actor,
    ask: proto::GroupRollback,
) -> Result<proto::GroupRolledBack> {
    let Services { engine, attach, vault, .. } = services;
    let id = resolve::group(engine, &ask.group)?;
    let members = engine.group(&id)?;
    let disks = members_of(engine, &members, &ask.disks)?;
    let all = || members.members.iter().map(|member| member.disk_id.clone()).collect();
    let concerned: Vec<DiskId> = if disks.is_empty() { all() } else { disks.clone() };
    concerned.iter().try_for_each(|id| engine.refuse_return(id))?;
    let how = GroupReturn { disks, force: ask.force, group_first: ask.group_first };
    // Before anything happens to their devices: a repository may take its time.
    let chosen = members.members.iter().filter(|member| concerned.contains(&member.disk_id));
    let ways = vault.ways_back(chosen.map(|one| (one.disk_id.clone(), one.snapshot_id.clone())))?;
    let change = || vault.go_back_together(by, &id, how, ways);
    let done = attach.around(by, &concerned, ask.force, change)?;
    let told = |MemberRollback { disk, done }| rolled_back(engine, &disk, done);
    let disks = done.disks.into_iter().map(told).collect::<Result<_>>()?;
    Ok(proto::GroupRolledBack { first: done.first.map(group), disks })
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

pub(super) fn group(info: GroupInfo) -> proto::Group {
    let member = |MemberInfo { disk_id, disk_name, snapshot_id, snapshot: found }| {
        let (disk_id, snapshot_id) = (DiskId::to_string(&disk_id), snapshot_id.to_string());
        proto::GroupMember { disk_id, disk_name, snapshot_id, snapshot: found.map(snapshot) }
    };
    let sizes = info.members.iter().filter_map(|member| Some(member.snapshot.as_ref()?.size));
    let made = info.automatic;
    proto::Group {
        policy_id: made.as_ref().map(|made| made.automatic.policy.to_string()),
        instance_id: made.as_ref().map(|made| made.instance.to_string()),
        scheduled_at: made.as_ref().map(|made| Time::from_unix(made.automatic.slot)),
        expires_at: made.and_then(|made| made.expires_at).map(Time::from_unix),
        total_size: sizes.sum(),
        id: info.id.to_string(),
        name: info.name,
        description: info.description,
        created_at: Time::from_unix(info.created_at),
        members: info.members.into_iter().map(member).collect(),
        tags: info.tags,
    }
}
