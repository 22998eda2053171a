//! Instances on the wire: who uses which disks, and where their guest agent listens.
//!
//! Invariants: an `instance` parameter takes an id, a unique prefix of one, or a name; `local` is this
//! host and always there.
//! Absent: what happens inside an instance.

use serde::{Deserialize, Serialize};

use crate::{Tags, Time};

/// The name of this host among the instances.
pub const LOCAL_INSTANCE: &str = "local";

/// Adds an instance: a virtual machine that uses disks of this daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceAdd {
    pub name: String,
    /// The absolute path of the socket of its QEMU guest agent, on this host. Left out: file systems
    /// in it cannot be frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qga: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
}

/// Lists instances: this host first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceList {}

/// Describes one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceShow {
    pub instance: String,
}

/// Changes properties of an instance; those left out stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceSet {
    pub instance: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The empty text: it has no guest agent any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qga: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Removes an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceRemove {
    pub instance: String,
    /// Give the disks it has to `local`; without it a disk means `in_use`.
    #[serde(default)]
    pub force: bool,
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
