//! The methods of instances.
//!
//! Invariants: as in `handlers.rs`.
//! Absent: what the other methods do.

use std::sync::Arc;

use rowd_proto as proto;
use rowd_proto::Time;

use crate::engine::Engine;
use crate::engine::api::{Actor, InstanceChange, InstanceInfo, InstanceSpec};
use crate::error::Result;
use crate::units::DiskId;

use super::resolve;

pub(super) fn add(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::InstanceAdd,
) -> Result<proto::Instance> {
    let proto::InstanceAdd { name, qga, description, tags } = ask;
    engine.instance_add(by, InstanceSpec { name, description, agent: qga, tags }).map(instance)
}

pub(super) fn list(
    engine: &Arc<Engine>,
    _: Actor,
    _: proto::InstanceList,
) -> Result<proto::Instances> {
    Ok(proto::Instances { instances: engine.instances().into_iter().map(instance).collect() })
}

pub(super) fn show(
    engine: &Arc<Engine>,
    _: Actor,
    ask: proto::InstanceShow,
) -> Result<proto::Instance> {
    engine.instance(&resolve::instance(engine, &ask.instance)?).map(instance)
}

pub(super) fn set(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::InstanceSet,
) -> Result<proto::Instance> {
    let id = resolve::instance(engine, &ask.instance)?;
    let agent = ask.qga.map(|path| Some(path).filter(|path| !path.is_empty()));
    let change = InstanceChange { name: ask.name, description: ask.description, agent };
    engine.instance_change(by, &id, change).map(instance)
}

pub(super) fn remove(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::InstanceRemove,
) -> Result<proto::InstanceRemoved> {
    let id = resolve::instance(engine, &ask.instance)?;
    let name = engine.instance(&id)?.name;
    let disks = engine.instance_remove(by, &id, ask.force)?;
    Ok(proto::InstanceRemoved { id: id.to_string(), name, disks })
}

pub(super) fn instance(info: InstanceInfo) -> proto::Instance {
    let disk = |(id, name): (DiskId, String)| proto::InstanceDisk { id: id.to_string(), name };
    proto::Instance {
        id: info.id.to_string(),
        name: info.name,
        description: info.description,
        created_at: info.created_at.map(Time::from_unix),
        qga: info.agent,
        disks: info.disks.into_iter().map(disk).collect(),
        tags: info.tags,
        policy: info.policy.map(|(id, name)| proto::InstancePolicy { id: id.to_string(), name }),
    }
}
