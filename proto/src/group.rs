//! Groups on the wire: snapshots of several disks at one instant.
//!
//! Invariants: a `group` parameter takes an id, a unique prefix of one, or the name of a group.
//! Absent: the member snapshots themselves, which are snapshots like any other.

use serde::{Deserialize, Serialize};

use crate::{Consistency, FreezeOptions, RolledBack, Snapshot, Tags, Time};

/// Makes snapshots of several disks at exactly one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupCreate {
    /// At most 16, of 32 TiB together, with those of the instances.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
    /// All disks of these instances.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<String>,
    /// Disks of the instances that are left out; an empty text names none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Also the name of each member snapshot. Left out: a name made from the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of every member.
    #[serde(default)]
    pub consistency: Consistency,
    /// How to freeze; only for levels above `crash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeOptions>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
}

/// Lists groups, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupList {}

/// Describes one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupShow {
    pub group: String,
}

/// Changes properties of a group; those left out stay. Its snapshots keep their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSet {
    pub group: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Deletes a group with its snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupDelete {
    pub group: String,
    /// Delete it although disks were made from a member or clients read one.
    #[serde(default)]
    pub force: bool,
}

/// Returns disks of a group to its instant. All of them go back, or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRollback {
    pub group: String,
    /// Only these; left out: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
    /// Disconnect clients.
    #[serde(default)]
    pub force: bool,
    /// Make a group of this name of the same disks first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_first: Option<String>,
}

/// The reply to `group.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    pub groups: Vec<Group>,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub id: String,
    pub name: String,
    pub description: String,
    pub created_at: Time,
    /// Bytes of the disks, those whose snapshots are still there.
    pub total_size: u64,
    pub members: Vec<GroupMember>,
    pub tags: Tags,
}

/// One disk of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMember {
    pub disk_id: String,
    /// `null` when the disk has been deleted since.
    pub disk_name: Option<String>,
    pub snapshot_id: String,
    /// `null` when the snapshot has been deleted since.
    pub snapshot: Option<Snapshot>,
}

/// The reply to `group.delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDeleted {
    pub id: String,
    pub name: String,
    /// Snapshots that went with it.
    pub snapshots: u64,
}

/// The reply to `group.rollback`: one entry for each disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRolledBack {
    /// The group that was made before, if asked for.
    pub first: Option<Group>,
    pub disks: Vec<RolledBack>,
}
