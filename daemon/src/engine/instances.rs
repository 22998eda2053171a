//! Verbs of instances: who uses which disks, and how their file systems are reached for a freeze.
//!
//! Invariants: this host is the instance `local`; it is there without a record, cannot be removed or
//! renamed, and has every disk that names no other. Names of instances are unique.
//! Absent: talking to guest agents (`freeze/`); here a socket is a text that has been checked.

use super::api::{Actor, InstanceChange, InstanceInfo, InstanceSpec, Tags};
use super::catalogue::{Catalogue, DiskRecord, InstanceRecord, Op};
use super::disks::{change_tags, check_tags};
use super::names::{by_prefix, check_name};
use super::{Engine, now};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, InstanceId};

/// The name of this host among the instances.
pub const LOCAL: &str = "local";
const LOCAL_ID: &str = "i-local";
/// Each is a record in memory; a host has few machines.
const INSTANCES_MAX: usize = 1024;
/// The longest path that fits a socket address.
const SOCKET_PATH_MAX: usize = 107;

impl Catalogue {
    /// This host, as it is unless somebody described or tagged it.
    fn local(&self) -> InstanceRecord {
        let id = InstanceId::from(LOCAL_ID);
        self.instances.get(&id).cloned().unwrap_or_else(|| InstanceRecord {
            id,
            name: LOCAL.to_owned(),
            description: String::new(),
            created_at: 0,
            agent: None,
            tags: Tags::new(),
            policy: None,
        })
    }

    /// The instance that has a disk.
    pub fn instance_of(&self, disk: &DiskRecord) -> InstanceRecord {
        let other = disk.instance.as_ref().and_then(|id| self.instances.get(id));
        other.cloned().unwrap_or_else(|| self.local())
    }

    pub(super) fn instance(&self, id: &InstanceId) -> Option<InstanceRecord> {
        match id.as_str() {
            LOCAL_ID => Some(self.local()),
            _ => self.instances.get(id).cloned(),
        }
    }

    fn instance_named(&self, name: &str) -> Option<InstanceRecord> {
        match name {
            LOCAL => Some(self.local()),
            _ => self.instances.values().find(|instance| instance.name == name).cloned(),
        }
    }

    /// The disks of an instance, by name.
    pub(super) fn disks_of_instance(&self, id: &InstanceId) -> Vec<DiskRecord> {
        let own = |disk: &&DiskRecord| match &disk.instance {
            Some(other) => other == id,
            None => id.as_str() == LOCAL_ID,
        };
        let mut found: Vec<DiskRecord> = self.disks.values().filter(own).cloned().collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }
}

impl Engine {
    /// Adds an instance, which has no disks yet.
    ///
    /// # Errors
    /// The name will not do or is taken; the socket is no path that a socket can have.
    pub fn instance_add(&self, by: Actor, spec: InstanceSpec) -> Result<InstanceInfo> {
        check_tags(&spec.tags)?;
        let agent = spec.agent.map(checked_socket).transpose()?;
        let _shape = self.shape.lock();
        self.check_new_instance_name(&spec.name)?;
        let count = self.catalogue.read().instances.len();
        if count >= INSTANCES_MAX {
            return Err(Error::new(
                ErrorKind::Quota,
                format!("there are {count} instances, which is the most there can be"),
            )
            .hint("remove those that are no longer used: `rowctl instance list`"));
        }
        let instance = InstanceRecord {
            id: InstanceId::random()?,
            name: spec.name,
            description: spec.description,
            created_at: now(),
            agent,
            tags: spec.tags,
            policy: None,
        };
        let (id, message) = (instance.id.clone(), format!("instance {} added", instance.name));
        self.change(by, Op::InstanceAdd { instance }, message)?;
        self.instance(&id)
    }

    /// Changes properties of an instance.
    ///
    /// # Errors
    /// As [`Engine::instance_add`]; and `Invalid` for another name or an agent of this host.
    pub fn instance_change(
        &self,
        by: Actor,
        id: &InstanceId,
        change: InstanceChange,
    ) -> Result<InstanceInfo> {
        let _shape = self.shape.lock();
        let mut instance = self.instance_record(id)?;
        let is_local = id.as_str() == LOCAL_ID;
        if let Some(name) = change.name.filter(|name| *name != instance.name) {
            if is_local {
                return Err(Error::invalid("this host is always the instance \"local\""));
            }
            self.check_new_instance_name(&name)?;
            instance.name = name;
        }
        if let Some(agent) = change.agent {
            if is_local && agent.is_some() {
                return Err(Error::invalid("this host needs no guest agent").hint(
                    "add an instance for the machine: `rowctl instance add NAME --qga SOCKET`",
                ));
            }
            instance.agent = agent.map(checked_socket).transpose()?;
        }
        if let Some(description) = change.description {
            instance.description = description;
        }
        self.update_instance(by, instance, "instance.set")
    }

    /// Sets and removes tags of an instance.
    ///
    /// # Errors
    /// There is no such instance, or a tag will not do.
    pub fn tag_instance(
        &self,
        by: Actor,
        id: &InstanceId,
        set: &Tags,
        remove: &[String],
    ) -> Result<InstanceInfo> {
        let _shape = self.shape.lock();
        let mut instance = self.instance_record(id)?;
        change_tags(&mut instance.tags, set, remove)?;
        self.update_instance(by, instance, "instance.tag")
    }

    /// Removes an instance. Returns how many disks became this host's.
    ///
    /// # Errors
    /// `InUse` while it has disks and `force` is not given; `Invalid` for this host.
    pub fn instance_remove(&self, by: Actor, id: &InstanceId, force: bool) -> Result<u64> {
        let _shape = self.shape.lock();
        let instance = self.instance_record(id)?;
        if id.as_str() == LOCAL_ID {
            return Err(Error::invalid("this host cannot be removed from the instances"));
        }
        let disks = self.catalogue.read().disks_of_instance(id);
        if !disks.is_empty() && !force {
            let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
            return Err(Error::new(
                ErrorKind::InUse,
                format!("{} has the disks {}", instance.name, names.join(", ")),
            )
            .hint("give them to another (`rowctl disk set D --instance I`), or use --force"));
        }
        let message = match disks.len() {
            0 => format!("instance {} removed", instance.name),
            count => format!("instance {} removed, its {count} disks are local", instance.name),
        };
        for disk in &disks {
            self.check_one_policy(&DiskRecord { instance: None, ..disk.clone() })?;
        }
        let disks: Vec<DiskId> = disks.into_iter().map(|disk| disk.id).collect();
        let count = disks.len() as u64;
        self.change(by, Op::InstanceRemove { id: id.clone(), disks }, message)?;
        Ok(count)
    }

    /// # Errors
    /// There is no such instance.
    pub fn instance(&self, id: &InstanceId) -> Result<InstanceInfo> {
        let record = self.instance_record(id)?;
        let disks = self.catalogue.read().disks_of_instance(id);
        let InstanceRecord { id, name, description, created_at, agent, tags, policy } = record;
        let created_at = Some(created_at).filter(|at| *at > 0);
        let disks = disks.into_iter().map(|disk| (disk.id, disk.name)).collect();
        let policy = policy.and_then(|applied| self.catalogue.read().policy_name(&applied.id));
        Ok(InstanceInfo { id, name, description, created_at, agent, disks, tags, policy })
    }

    /// This host first, then the others by name.
    #[must_use]
    pub fn instances(&self) -> Vec<InstanceInfo> {
        let mut records: Vec<_> = {
            let catalogue = self.catalogue.read();
            catalogue.instances.values().map(|one| (one.name.clone(), one.id.clone())).collect()
        };
        records.retain(|(_, id)| id.as_str() != LOCAL_ID);
        records.sort();
        let local = InstanceId::from(LOCAL_ID);
        let all = std::iter::once(local).chain(records.into_iter().map(|(_, id)| id));
        // One that is removed this instant is left out.
        all.filter_map(|id| self.instance(&id).ok()).collect()
    }

    /// The instance that an id, a name or a unique beginning of an id means.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when several ids begin so.
    pub fn find_instance(&self, name: &str) -> Result<InstanceId> {
        let catalogue = self.catalogue.read();
        let id = InstanceId::from(name);
        let found = catalogue.instance(&id).or_else(|| catalogue.instance_named(name));
        if let Some(found) = found {
            return Ok(found.id);
        }
        by_prefix(InstanceId::PREFIX, name, catalogue.instances.keys().map(InstanceId::as_str))?
            .map(InstanceId::from)
            .ok_or_else(|| {
                Error::not_found(format!("no instance is called {name:?}"))
                    .hint("see `rowctl instance list`")
            })
    }

    /// The instance that has a disk.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn instance_of(&self, disk: &DiskId) -> Result<InstanceInfo> {
        let record = self.record(disk)?;
        let id = self.catalogue.read().instance_of(&record).id;
        self.instance(&id)
    }

    /// An instance as disks keep it: this host is none.
    pub(super) fn owner(&self, id: &InstanceId) -> Result<Option<InstanceId>> {
        let record = self.instance_record(id)?;
        Ok(Some(record.id).filter(|id| id.as_str() != LOCAL_ID))
    }

    fn update_instance(
        &self,
        by: Actor,
        instance: InstanceRecord,
        kind: &str,
    ) -> Result<InstanceInfo> {
        let (id, message) = (instance.id.clone(), format!("instance {} changed", instance.name));
        self.change(by, Op::InstanceUpdate { instance, kind: kind.to_owned() }, message)?;
        self.instance(&id)
    }

    pub(super) fn instance_record(&self, id: &InstanceId) -> Result<InstanceRecord> {
        let found = self.catalogue.read().instance(id);
        found.ok_or_else(|| {
            Error::not_found(format!("no instance {id}")).hint("see `rowctl instance list`")
        })
    }

    fn check_new_instance_name(&self, name: &str) -> Result<()> {
        check_name("instance", name)?;
        match self.catalogue.read().instance_named(name) {
            None => Ok(()),
            Some(_) => Err(Error::new(ErrorKind::Exists, format!("an instance {name:?} exists"))
                .hint("choose another name, or change it: `rowctl instance set`")),
        }
    }
}

/// A path that a guest agent's socket can have. Whether anybody answers there is seen when it is needed:
/// the machine may be off now.
fn checked_socket(path: String) -> Result<String> {
    let trouble = if !path.starts_with('/') {
        "is not an absolute path"
    } else if path.len() > SOCKET_PATH_MAX {
        "is too long for a socket: at most 107 bytes"
    } else if path.contains('\0') {
        "contains a zero byte"
    } else {
        return Ok(path);
    };
    Err(Error::invalid(format!("the guest agent's socket {path:?} {trouble}")))
}
