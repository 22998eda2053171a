//! Instances on the wire: who uses which disks, and where their guest agent listens.
//!
//! Invariants: an `instance` parameter takes an id, a unique prefix of one, or a name; `local` is this
//! host and always there.
//! Absent: what happens inside an instance.

use serde::{Deserialize, Serialize};

use crate::params::params;
use crate::{Tags, Time};

/// The name of this host among the instances.
pub const LOCAL_INSTANCE: &str = "local";

params! {
    /// Adds an instance: a virtual machine that uses disks of this daemon.
    InstanceAdd {
        name: String,
        /// The absolute path of the socket of its QEMU guest agent, on this host. Left out: file systems
        /// in it cannot be frozen.
        qga?: String,
        description: String = default,
        tags: Tags = default,
    }

    /// Lists instances: this host first.
    InstanceList {}

    /// Describes one instance.
    InstanceShow {
        instance: String,
    }

    /// Changes properties of an instance; those left out stay.
    InstanceSet {
        instance: String,
        name?: String,
        /// The empty text: it has no guest agent any more.
        qga?: String,
        description?: String,
    }

    /// Removes an instance.
    InstanceRemove {
        instance: String,
        /// Give the disks it has to `local`; without it a disk means `in_use`.
        force: bool = default,
    }
}

/// The reply to `instance.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instances {
    pub instances: Vec<Instance>,
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub id: String,
    pub name: String,
    pub description: String,
    /// `null` for this host, which is there from the start.
    pub created_at: Option<Time>,
    pub qga: Option<String>,
    pub disks: Vec<InstanceDisk>,
    pub tags: Tags,
    /// The policy that makes groups of all its disks, if any.
    #[serde(default)]
    pub policy: Option<InstancePolicy>,
}

/// The policy of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstancePolicy {
    pub id: String,
    pub name: String,
}

/// A disk of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceDisk {
    pub id: String,
    pub name: String,
}

/// The reply to `instance.remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRemoved {
    pub id: String,
    pub name: String,
    /// Disks that are `local` now.
    pub disks: u64,
}
