//! Groups on the wire: snapshots of several disks at one instant.
//!
//! Invariants: a `group` parameter takes an id, a unique prefix of one, or the name of a group.
//! Absent: the member snapshots themselves, which are snapshots like any other.

use serde::{Deserialize, Serialize};

use crate::params::params;
use crate::{Consistency, FreezeOptions, InstantAccess, RolledBack, Snapshot, Tags, Time};

params! {
    /// Makes snapshots of several disks at exactly one instant.
    GroupCreate {
        /// At most 16, of 32 TiB together, with those of the instances.
        disks: Vec<String> = default,
        /// All disks of these instances.
        instances: Vec<String> = default,
        /// Disks of the instances that are left out; an empty text names none.
        exclude: Vec<String> = default,
        /// Also the name of each member snapshot. Left out: a name made from the time.
        name?: String,
        /// Of every member.
        consistency: Consistency = default,
        /// How to freeze; only for levels above `crash`.
        freeze?: FreezeOptions,
        description: String = default,
        tags: Tags = default,
        /// Keep every member in this repository; left out: in the default repository, if there is one.
        repo?: String,
        /// Keep them in the pool only, whatever the default is.
        local: bool = default,
        /// Of every member that is kept in a repository.
        instant_access: InstantAccess = default,
    }

    /// Lists groups, oldest first.
    GroupList {}

    /// Describes one group.
    GroupShow {
        group: String,
    }

    /// Changes properties of a group; those left out stay. Its snapshots keep their names.
    GroupSet {
        group: String,
        name?: String,
        description?: String,
    }

    /// Deletes a group with its snapshots.
    GroupDelete {
        group: String,
        /// Delete it although disks were made from a member or clients read one.
        force: bool = default,
    }

    /// Returns disks of a group to its instant. All of them go back, or none.
    GroupRollback {
        group: String,
        /// Only these; left out: all.
        disks: Vec<String> = default,
        /// Disconnect clients.
        force: bool = default,
        /// Make a group of this name of the same disks first.
        group_first?: String,
    }
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
    /// The policy of an instance that made it, if one did.
    #[serde(default)]
    pub policy_id: Option<String>,
    /// The instance whose disks these were, if a policy made it.
    #[serde(default)]
    pub instance_id: Option<String>,
    /// When it was due, if a policy made it.
    #[serde(default)]
    pub scheduled_at: Option<Time>,
    /// When it goes by itself, if its time is fixed.
    #[serde(default)]
    pub expires_at: Option<Time>,
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
