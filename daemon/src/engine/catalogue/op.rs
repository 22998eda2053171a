//! The changes of the catalogue, as the journal keeps them.
//!
//! Invariants: a change that was added later does not alter how those before it are read.
//! Absent: what a change does (`Engine::apply`).

use serde::{Deserialize, Serialize};

use super::{
    Catalogue, Cut, DiskRecord, GroupRecord, ImageRecord, InstanceRecord, KeyRecord, NewDisk,
    PolicyRecord, SnapshotRecord, Turn,
};
use crate::engine::api::Actor;
use crate::engine::api::policy::Hold;
use crate::engine::copies::{CopyRecord, Filling};
use crate::engine::repos::RepoRecord;
use crate::engine::usage::UsageRecord;
use crate::error::Result;
use crate::units::{CopyId, DiskId, Epoch, GroupId, ImageId, InstanceId, PolicyId, SnapshotId};

impl Catalogue {
    /// Does what an entry says that changes nothing but records.
    ///
    /// # Errors
    /// It names what does not exist.
    pub fn apply_records(&mut self, op: Op) -> Result<()> {
        match op {
            Op::PolicyPut { .. }
            | Op::PolicyDelete { .. }
            | Op::PolicyInstance { .. }
            | Op::PolicyHold { .. }
            | Op::PolicyResume { .. } => self.apply_policy(op),
            Op::SnapshotCopied { .. } | Op::SnapshotStay { .. } => self.apply_presence(op),
            Op::UsageSample { sample } => {
                self.put_usage(sample);
                Ok(())
            }
            Op::Protect { object, on, .. } => {
                self.set_protected(&object, on);
                Ok(())
            }
            Op::InstanceAdd { instance } | Op::InstanceUpdate { instance, .. } => {
                self.put_instance(instance);
                Ok(())
            }
            op => self.apply_vault(op),
        }
    }
}

/// A change of the catalogue, as the journal keeps it, with who asked for it and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub at: u64,
    pub uid: u32,
    pub pid: i32,
    pub op: Op,
    /// What the event of this change says.
    pub message: String,
}

impl Entry {
    #[must_use]
    pub fn actor(&self) -> Actor {
        Actor { uid: self.uid, pid: self.pid }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    DiskCreate(NewDisk),
    /// Name, description, tags, size or switches of a disk.
    DiskUpdate {
        disk: DiskRecord,
        kind: String,
    },
    /// The disk goes, with its undo snapshots and those that are named; its other snapshots stay.
    DiskDelete {
        id: DiskId,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        snapshots: Vec<SnapshotId>,
    },
    /// The disk goes, and can be brought back for a time.
    DiskTrash {
        id: DiskId,
        until: u64,
    },
    /// It comes back, with a new head below the one it had.
    DiskRestore {
        disk: NewDisk,
    },
    /// It is gone for good, with its undo snapshots and those that are named.
    DiskPurge {
        id: DiskId,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        snapshots: Vec<SnapshotId>,
    },
    SnapshotCreate(Cut),
    SnapshotUpdate {
        snapshot: SnapshotRecord,
        kind: String,
    },
    SnapshotDelete {
        id: SnapshotId,
        kind: String,
    },
    /// The copy of a snapshot that is to be in a repository has all of it.
    SnapshotCopied {
        id: SnapshotId,
        copy: CopyId,
    },
    /// The blocks of a snapshot leave the pool; it is in its repository.
    SnapshotLeave {
        id: SnapshotId,
    },
    /// A snapshot stays in the pool, and its copy is to be deleted.
    SnapshotStay {
        id: SnapshotId,
        copy: CopyId,
    },
    Rollback {
        #[serde(flatten)]
        turn: Turn,
        kind: String,
    },
    /// The heads of several disks are frozen at this instant; the members are in the order of the cuts.
    GroupCreate {
        group: GroupRecord,
        cuts: Vec<Cut>,
    },
    /// The group goes, with those of its snapshots that are named.
    GroupDelete {
        id: GroupId,
        snapshots: Vec<SnapshotId>,
        /// How it is told; left out: as a deletion that somebody asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
    },
    /// Several disks go back together.
    GroupRollback {
        id: GroupId,
        turns: Vec<Turn>,
        /// From where the blocks of those come whose snapshots are in a repository, as with `DiskReturn`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        fillings: Vec<Filling>,
    },
    /// Name, description or tags of a group.
    GroupUpdate {
        group: GroupRecord,
        kind: String,
    },
    InstanceAdd {
        instance: InstanceRecord,
    },
    InstanceUpdate {
        instance: InstanceRecord,
        kind: String,
    },
    /// The instance goes; the disks it has are this host's from now on.
    InstanceRemove {
        id: InstanceId,
        disks: Vec<DiskId>,
    },
    /// An image, perhaps of heads that are frozen for it at this instant.
    ImageCreate {
        image: ImageRecord,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        cuts: Vec<Cut>,
    },
    /// Name, description, family, tags or state of an image.
    ImageUpdate {
        image: ImageRecord,
        kind: String,
    },
    /// The image goes, with those of its snapshots that are named.
    ImageDelete {
        id: ImageId,
        snapshots: Vec<SnapshotId>,
    },
    /// All disks of an image are made.
    ImageDeploy {
        id: ImageId,
        disks: Vec<NewDisk>,
    },
    RepoAdd {
        repo: RepoRecord,
    },
    /// A copy begins, fails, or is tried again.
    CopyPut {
        copy: CopyRecord,
        kind: String,
    },
    /// A copy is complete or given up: no longer under way.
    CopyRemove {
        id: CopyId,
        kind: String,
    },
    /// A disk that cannot be used until it has its contents.
    DiskFill {
        disk: NewDisk,
        filling: Filling,
    },
    /// It has them.
    DiskFilled {
        id: DiskId,
    },
    /// As `Rollback`, to a snapshot that is in a repository: the new head is filled from its copy.
    DiskReturn {
        #[serde(flatten)]
        turn: Turn,
        filling: Filling,
        kind: String,
    },
    /// What such a disk had and the snapshot has not is gone: it can be used. It has no event.
    DiskReturned {
        id: DiskId,
    },
    /// Such a disk goes on under a new head below `parent`; what it has become since the return is dropped.
    DiskAbandon {
        id: DiskId,
        head: Epoch,
        parent: Epoch,
        size: u64,
    },
    /// Snapshots are copied to this repository unless somebody says otherwise, or to none.
    RepoDefault {
        name: Option<String>,
    },
    /// The repository is forgotten; what is in it stays.
    RepoRemove {
        name: String,
    },
    /// A policy is made or changed, or a slot of it is done with.
    PolicyPut {
        policy: PolicyRecord,
        kind: String,
    },
    /// The policy goes; these disks and instances have none from now on.
    PolicyDelete {
        id: PolicyId,
        disks: Vec<DiskId>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        instances: Vec<InstanceId>,
    },
    /// An instance has another policy, or none any more; these disks of it have none of their own from now on.
    PolicyInstance {
        instance: InstanceRecord,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        disks: Vec<DiskId>,
        kind: String,
    },
    /// Something stands still until somebody agrees to it.
    PolicyHold {
        hold: Hold,
    },
    PolicyResume {
        object: String,
    },
    /// The keys of families of disks, wrapped anew.
    KeyRotate {
        keys: Vec<KeyRecord>,
    },
    /// Usage at one moment; it has no event.
    UsageSample {
        sample: UsageRecord,
    },
    /// A disk or snapshot is protected, or no longer.
    Protect {
        object: String,
        on: bool,
        kind: String,
    },
    /// Something happened that is told and changes nothing.
    Note {
        kind: String,
        object: String,
    },
}

impl Op {
    /// Whether the change has an event.
    #[must_use]
    pub fn is_told(&self) -> bool {
        !matches!(self, Op::UsageSample { .. } | Op::DiskReturned { .. })
    }

    /// The kind and the object of the event of this change.
    #[must_use]
    pub fn event(&self) -> (&str, &str) {
        match self {
            Op::DiskCreate(new) => ("disk.create", new.disk.id.as_str()),
            Op::DiskUpdate { disk, kind } => (kind, disk.id.as_str()),
            Op::DiskDelete { id, .. } => ("disk.delete", id.as_str()),
            Op::DiskTrash { id, .. } => ("disk.trash", id.as_str()),
            Op::DiskRestore { disk } => ("disk.restore", disk.disk.id.as_str()),
            Op::DiskPurge { id, .. } => ("disk.purge", id.as_str()),
            Op::SnapshotCreate(cut) => ("snapshot.create", cut.snapshot.id.as_str()),
            Op::SnapshotUpdate { snapshot, kind } => (kind, snapshot.id.as_str()),
            Op::SnapshotDelete { id, kind } => (kind, id.as_str()),
            Op::SnapshotCopied { copy, .. } => ("copy.done", copy.as_str()),
            Op::SnapshotLeave { id } => ("snapshot.leave", id.as_str()),
            Op::SnapshotStay { copy, .. } => ("copy.delete", copy.as_str()),
            Op::Rollback { turn, kind } => (kind, turn.disk.as_str()),
            Op::GroupCreate { group, .. } => ("group.create", group.id.as_str()),
            Op::GroupDelete { id, kind, .. } => {
                (kind.as_deref().unwrap_or("group.delete"), id.as_str())
            }
            Op::GroupRollback { id, .. } => ("group.rollback", id.as_str()),
            Op::GroupUpdate { group, kind } => (kind, group.id.as_str()),
            Op::InstanceAdd { instance } => ("instance.add", instance.id.as_str()),
            Op::InstanceUpdate { instance, kind } => (kind, instance.id.as_str()),
            Op::InstanceRemove { id, .. } => ("instance.remove", id.as_str()),
            Op::ImageCreate { image, .. } => ("image.create", image.id.as_str()),
            Op::ImageUpdate { image, kind } => (kind, image.id.as_str()),
            Op::ImageDelete { id, .. } => ("image.delete", id.as_str()),
            Op::ImageDeploy { id, .. } => ("image.deploy", id.as_str()),
            Op::CopyPut { copy, kind } => (kind, copy.id.as_str()),
            Op::CopyRemove { id, kind } => (kind, id.as_str()),
            Op::DiskFill { filling, .. } => ("disk.fill", filling.disk.as_str()),
            Op::DiskFilled { id } => ("disk.filled", id.as_str()),
            Op::DiskReturn { turn, kind, .. } => (kind, turn.disk.as_str()),
            Op::DiskReturned { id } => ("disk.returned", id.as_str()),
            Op::DiskAbandon { id, .. } => ("disk.undo", id.as_str()),
            Op::RepoAdd { repo } => ("repo.add", repo.name.as_str()),
            Op::RepoDefault { name } => ("repo.default", name.as_deref().unwrap_or("none")),
            Op::RepoRemove { name } => ("repo.remove", name.as_str()),
            Op::PolicyPut { policy, kind } => (kind, policy.id.as_str()),
            Op::PolicyDelete { id, .. } => ("policy.delete", id.as_str()),
            Op::PolicyInstance { instance, kind, .. } => (kind, instance.id.as_str()),
            Op::PolicyHold { hold } => ("policy.hold", hold.object.as_str()),
            Op::PolicyResume { object } => ("policy.resume", object),
            Op::KeyRotate { .. } => ("key.rotate", "pool"),
            Op::UsageSample { .. } => ("usage.sample", "pool"),
            Op::Protect { kind, object, .. } => (kind, object),
            Op::Note { kind, object } => (kind, object),
        }
    }

    /// The disk of the snapshot that a change is about.
    #[must_use]
    pub fn disk(&self) -> Option<&DiskId> {
        match self {
            Op::SnapshotCreate(cut) => Some(&cut.snapshot.disk),
            Op::SnapshotUpdate { snapshot, .. } => Some(&snapshot.disk),
            _ => None,
        }
    }

    /// The disks whose heads a change freezes or closes, in the order in which it names them.
    #[must_use]
    pub fn heads(&self) -> Vec<&DiskId> {
        match self {
            Op::DiskDelete { id, .. } | Op::DiskTrash { id, .. } | Op::DiskAbandon { id, .. } => {
                vec![id]
            }
            Op::SnapshotCreate(cut) => vec![&cut.snapshot.disk],
            Op::Rollback { turn, .. } | Op::DiskReturn { turn, .. } => vec![&turn.disk],
            Op::GroupCreate { cuts, .. } | Op::ImageCreate { cuts, .. } => {
                cuts.iter().map(|cut| &cut.snapshot.disk).collect()
            }
            Op::GroupRollback { turns, .. } => turns.iter().map(|turn| &turn.disk).collect(),
            _ => Vec::new(),
        }
    }
}
