//! What is to be made at a level above `crash`, of which disks.
//!
//! Absent: how (`operation.rs`).

use super::discover::DiskUse;
use crate::engine::Engine;
use crate::engine::api::Consistency;
use crate::engine::instances::LOCAL;
use crate::error::Result;
use crate::units::DiskId;

/// What is to be made.
#[derive(Debug)]
pub(super) struct Plan {
    pub wanted: Consistency,
    pub disks: Vec<DiskUse>,
    /// As asked for; left out, it is made from the time of the cut.
    pub name: Option<String>,
    pub is_group: bool,
    /// In words.
    pub what: String,
}

impl Plan {
    pub fn new(
        wanted: Consistency,
        disks: Vec<DiskUse>,
        name: Option<String>,
        is_group: bool,
    ) -> Plan {
        let shown = name.as_deref().unwrap_or("(new)");
        let what = match disks.first() {
            Some(disk) if !is_group => format!("{}@{shown}", disk.name),
            _ => format!("group {shown}"),
        };
        Plan { wanted, disks, name, is_group, what }
    }
}

/// A disk as a freeze sees it.
pub(super) fn disk_use(engine: &Engine, id: &DiskId) -> Result<DiskUse> {
    let info = engine.disk(id)?;
    let pids = info.clients.iter().filter_map(|client| client.pid).collect();
    let owner = engine.instance_of(id)?;
    let instance = (owner.name != LOCAL).then_some((owner.name, owner.agent));
    Ok(DiskUse { id: id.to_string(), name: info.name, pids, instance })
}
