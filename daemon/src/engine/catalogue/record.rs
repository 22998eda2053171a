//! The records of the catalogue: disks, snapshots, groups, instances, events, and the parts of changes.
//!
//! Invariants: a field that was added later has a default, and no field changes its meaning.
//! Absent: images, repositories and copies, which have files of their own.

use serde::{Deserialize, Serialize};

use crate::crypt::master::Wrapped;
use crate::engine::api::policy::{Automatic, AutomaticGroup, PolicyCopy};
use crate::engine::api::{Consistency, SnapshotKind, Tags};
use crate::engine::filled::Filled;
use crate::engine::presence::Presence;
use crate::units::{DiskId, Epoch, GroupId, ImageId, InstanceId, PolicyId, SnapshotId, TreeId};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    pub id: DiskId,
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub size: u64,
    pub created_at: u64,
    #[serde(default)]
    pub read_only: bool,
    /// The snapshot it was made from.
    pub origin: Option<SnapshotId>,
    /// The image that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
    pub tree: TreeId,
    pub head: Epoch,
    #[serde(default)]
    pub tags: Tags,
    /// Whose disk it is; nobody named means this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// The kernel device it is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// The policy that makes its automatic snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Applied>,
    /// Its automatic snapshots go with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_auto: bool,
    /// What it was filled from last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filled: Option<Filled>,
}

/// The tag of a disk that `rowctl snapshot mount` has made and throws away again: where it is mounted.
const MOUNTED: &str = "rowd.mount";

impl DiskRecord {
    /// Whether it is no disk of its instance to be protected: it goes when somebody has read its files.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.tags.contains_key(MOUNTED)
    }
}

/// A policy, and since when a disk or an instance has it: slots before are none of its.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub id: PolicyId,
    pub since: u64,
}

/// The kernel device of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// N of `/dev/nbdN`.
    pub index: u32,
    #[serde(default)]
    pub read_only: bool,
    /// It was asked for by its number: no other will do.
    #[serde(default)]
    pub pinned: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    pub id: SnapshotId,
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub disk: DiskId,
    pub size: u64,
    pub created_at: u64,
    pub kind: Kind,
    pub expires_at: Option<u64>,
    pub tree: TreeId,
    pub node: Epoch,
    #[serde(default)]
    pub tags: Tags,
    /// The level it was made at; `crash` until everything is thawed.
    #[serde(default)]
    pub consistency: Consistency,
    /// What made it, if that was a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic: Option<Automatic>,
    /// Where else it is or will be than in the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence: Option<Presence>,
}

/// Snapshots of several disks at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    pub id: GroupId,
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub created_at: u64,
    /// The snapshots it was made with; some may be gone.
    pub members: Vec<MemberRecord>,
    #[serde(default)]
    pub tags: Tags,
    /// What made it, if that was the policy of an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic: Option<AutomaticGroup>,
}

/// A user of disks: this host, or a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    pub id: InstanceId,
    pub name: String,
    #[serde(default)]
    pub description: String,
    /// Zero for this host, which was never added.
    #[serde(default)]
    pub created_at: u64,
    /// The socket of its guest agent; none for this host and for a machine without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    #[serde(default)]
    pub tags: Tags,
    /// The policy that makes groups of all its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Applied>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    pub disk: DiskId,
    pub snapshot: SnapshotId,
}

/// A disk with a new head under `parent`, nothing for an empty disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDisk {
    pub disk: DiskRecord,
    pub parent: Option<Epoch>,
    /// The key of a new family of encrypted disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Wrapped>,
}

/// A head that is frozen as a snapshot; the disk goes on under the new head `head`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    pub snapshot: SnapshotRecord,
    pub head: Epoch,
    /// The copy that a policy wants of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<PolicyCopy>,
}

/// A head that is frozen as `undo`; the disk goes on under a new head below `parent`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub disk: DiskId,
    pub head: Epoch,
    /// Nothing for an empty disk.
    pub parent: Option<Epoch>,
    pub size: u64,
    pub undo: SnapshotRecord,
}

/// [`SnapshotKind`] as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Manual,
    Auto,
    Undo,
}

impl From<Kind> for SnapshotKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Manual => SnapshotKind::Manual,
            Kind::Auto => SnapshotKind::Auto,
            Kind::Undo => SnapshotKind::Undo,
        }
    }
}

/// The key of a family of disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    pub tree: TreeId,
    pub wrapped: Wrapped,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    pub seq: u64,
    pub at: u64,
    pub uid: u32,
    pub pid: i32,
    pub kind: String,
    pub object: String,
    pub message: String,
}
