//! The catalogue: which disks, snapshots, groups, instances and images exist, as records that the journal and the
//! store keep.
//!
//! Invariants: it changes through [`Op`]s only, which are journal records; names of disks are unique,
//! names of snapshots are unique per disk; ids are never reused.
//! Absent: live state such as views and clients (`engine/mod.rs`), and rules about who may do what.

mod copy;
mod image;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::api::{Actor, Consistency, SnapshotKind, Tags};
use super::copies::{CopyRecord, Filling};
use super::repos::RepoRecord;
use crate::crypt::master::Wrapped;
use crate::error::{Error, Result};
use crate::units::{CopyId, DiskId, Epoch, GroupId, ImageId, InstanceId, SnapshotId, TreeId};
pub use image::{DataRecord, ImageRecord};

/// Events kept; older ones go.
const EVENTS_KEPT: usize = 10_000;

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
    /// The disk goes, with its undo snapshots; its other snapshots stay.
    DiskDelete {
        id: DiskId,
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
    },
    /// Several disks go back together.
    GroupRollback {
        id: GroupId,
        turns: Vec<Turn>,
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
    /// The repository is forgotten; what is in it stays.
    RepoRemove {
        name: String,
    },
    /// The keys of families of disks, wrapped anew.
    KeyRotate {
        keys: Vec<KeyRecord>,
    },
    /// Something happened that is told and changes nothing.
    Note {
        kind: String,
        object: String,
    },
}

impl Op {
    /// The kind and the object of the event of this change.
    #[must_use]
    pub fn event(&self) -> (&str, &str) {
        match self {
            Op::DiskCreate(new) => ("disk.create", new.disk.id.as_str()),
            Op::DiskUpdate { disk, kind } => (kind, disk.id.as_str()),
            Op::DiskDelete { id } => ("disk.delete", id.as_str()),
            Op::SnapshotCreate(cut) => ("snapshot.create", cut.snapshot.id.as_str()),
            Op::SnapshotUpdate { snapshot, kind } => (kind, snapshot.id.as_str()),
            Op::SnapshotDelete { id, kind } => (kind, id.as_str()),
            Op::Rollback { turn, kind } => (kind, turn.disk.as_str()),
            Op::GroupCreate { group, .. } => ("group.create", group.id.as_str()),
            Op::GroupDelete { id, .. } => ("group.delete", id.as_str()),
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
            Op::RepoAdd { repo } => ("repo.add", repo.name.as_str()),
            Op::RepoRemove { name } => ("repo.remove", name.as_str()),
            Op::KeyRotate { .. } => ("key.rotate", "pool"),
            Op::Note { kind, object } => (kind, object),
        }
    }

    /// The disks whose heads a change freezes or closes, in the order in which it names them.
    #[must_use]
    pub fn heads(&self) -> Vec<&DiskId> {
        match self {
            Op::DiskDelete { id } => vec![id],
            Op::SnapshotCreate(cut) => vec![&cut.snapshot.disk],
            Op::Rollback { turn, .. } => vec![&turn.disk],
            Op::GroupCreate { cuts, .. } | Op::ImageCreate { cuts, .. } => {
                cuts.iter().map(|cut| &cut.snapshot.disk).collect()
            }
            Op::GroupRollback { turns, .. } => turns.iter().map(|turn| &turn.disk).collect(),
            _ => Vec::new(),
        }
    }
}

/// All records.
#[derive(Debug, Default)]
pub struct Catalogue {
    pub disks: BTreeMap<DiskId, DiskRecord>,
    pub snapshots: BTreeMap<SnapshotId, SnapshotRecord>,
    pub groups: BTreeMap<GroupId, GroupRecord>,
    pub instances: BTreeMap<InstanceId, InstanceRecord>,
    pub images: BTreeMap<ImageId, ImageRecord>,
    pub repos: BTreeMap<String, RepoRecord>,
    /// Wrapped, of the families of encrypted disks.
    pub keys: BTreeMap<TreeId, Wrapped>,
    pub copies: BTreeMap<CopyId, CopyRecord>,
    pub fillings: BTreeMap<DiskId, Filling>,
    pub events: VecDeque<EventRecord>,
    pub next_tree: u32,
    names: HashMap<String, DiskId>,
    dirty: BTreeSet<String>,
}

impl Catalogue {
    /// Puts kept records back, at start.
    ///
    /// # Errors
    /// `Corrupt` when one cannot be decoded.
    pub fn load(&mut self, rows: Vec<(String, Vec<u8>)>) -> Result<()> {
        for (key, value) in rows {
            match key.split_once('/').map_or("", |(kind, _)| kind) {
                "disk" => self.put_disk(decode(&key, &value)?),
                "snapshot" => self.put_snapshot(decode(&key, &value)?),
                "group" => self.put_group(decode(&key, &value)?),
                "instance" => self.put_instance(decode(&key, &value)?),
                "image" => self.put_image(decode(&key, &value)?),
                "repo" => self.put_repo(decode(&key, &value)?),
                "key" => {
                    let tree = key.split_once('/').and_then(|(_, id)| id.parse().ok());
                    let tree =
                        tree.ok_or_else(|| Error::corrupt(format!("catalogue key {key}")))?;
                    self.keys.insert(TreeId(tree), decode(&key, &value)?);
                }
                "copy" => self.put_copy(decode(&key, &value)?),
                "filling" => self.put_filling(decode(&key, &value)?),
                "event" => self.events.push_back(decode(&key, &value)?),
                _ => {}
            }
        }
        self.dirty.clear();
        Ok(())
    }

    pub fn put_disk(&mut self, disk: DiskRecord) {
        self.dirty.insert(format!("disk/{}", disk.id));
        self.next_tree = self.next_tree.max(disk.tree.0 + 1);
        if let Some(old) = self.disks.get(&disk.id) {
            self.names.remove(&old.name);
        }
        self.names.insert(disk.name.clone(), disk.id.clone());
        self.disks.insert(disk.id.clone(), disk);
    }

    pub fn put_snapshot(&mut self, snapshot: SnapshotRecord) {
        self.dirty.insert(format!("snapshot/{}", snapshot.id));
        self.next_tree = self.next_tree.max(snapshot.tree.0 + 1);
        self.snapshots.insert(snapshot.id.clone(), snapshot);
    }

    pub fn remove_disk(&mut self, id: &DiskId) -> Option<DiskRecord> {
        let disk = self.disks.remove(id)?;
        self.names.remove(&disk.name);
        self.dirty.insert(format!("disk/{id}"));
        Some(disk)
    }

    pub fn remove_snapshot(&mut self, id: &SnapshotId) -> Option<SnapshotRecord> {
        self.dirty.insert(format!("snapshot/{id}"));
        self.snapshots.remove(id)
    }

    pub fn put_group(&mut self, group: GroupRecord) {
        self.dirty.insert(format!("group/{}", group.id));
        self.groups.insert(group.id.clone(), group);
    }

    pub fn remove_group(&mut self, id: &GroupId) -> Option<GroupRecord> {
        self.dirty.insert(format!("group/{id}"));
        self.groups.remove(id)
    }

    pub fn put_instance(&mut self, instance: InstanceRecord) {
        self.dirty.insert(format!("instance/{}", instance.id));
        self.instances.insert(instance.id.clone(), instance);
    }

    pub fn remove_instance(&mut self, id: &InstanceId) -> Option<InstanceRecord> {
        self.dirty.insert(format!("instance/{id}"));
        self.instances.remove(id)
    }

    pub fn put_repo(&mut self, repo: RepoRecord) {
        self.dirty.insert(format!("repo/{}", repo.name));
        self.repos.insert(repo.name.clone(), repo);
    }

    pub fn remove_repo(&mut self, name: &str) -> Option<RepoRecord> {
        self.dirty.insert(format!("repo/{name}"));
        self.repos.remove(name)
    }

    pub fn put_key(&mut self, tree: TreeId, key: Wrapped) {
        self.dirty.insert(format!("key/{tree}"));
        self.keys.insert(tree, key);
    }

    /// Forgets the key of a family that has no disk and no snapshot left; whether it did.
    pub fn drop_unused_key(&mut self, tree: TreeId) -> bool {
        let used = self.disks.values().any(|disk| disk.tree == tree)
            || self.snapshots.values().any(|snapshot| snapshot.tree == tree);
        if used || self.keys.remove(&tree).is_none() {
            return false;
        }
        self.dirty.insert(format!("key/{tree}"));
        true
    }

    /// Adds the event of an entry.
    pub fn add_event(&mut self, entry: &Entry) {
        let seq = self.events.back().map_or(1, |last| last.seq + 1);
        let (kind, object) = entry.op.event();
        self.dirty.insert(event_key(seq));
        self.events.push_back(EventRecord {
            seq,
            at: entry.at,
            uid: entry.uid,
            pid: entry.pid,
            kind: kind.to_owned(),
            object: object.to_owned(),
            message: entry.message.clone(),
        });
        if self.events.len() > EVENTS_KEPT
            && let Some(old) = self.events.pop_front()
        {
            self.dirty.insert(event_key(old.seq));
        }
    }

    #[must_use]
    pub fn disk_named(&self, name: &str) -> Option<&DiskRecord> {
        self.disks.get(self.names.get(name)?)
    }

    /// The snapshots of a disk, oldest first.
    #[must_use]
    pub fn snapshots_of(&self, disk: &DiskId) -> Vec<&SnapshotRecord> {
        let mut found: Vec<_> = self.snapshots.values().filter(|s| s.disk == *disk).collect();
        found.sort_by_key(|s| (s.tree, s.node));
        found
    }

    #[must_use]
    pub fn group_named(&self, name: &str) -> Option<&GroupRecord> {
        self.groups.values().find(|group| group.name == name)
    }

    #[must_use]
    pub fn snapshot_named(&self, disk: &DiskId, name: &str) -> Option<&SnapshotRecord> {
        self.snapshots.values().find(|s| s.disk == *disk && s.name == name)
    }

    /// The disks that were made from a snapshot and still exist.
    #[must_use]
    pub fn made_from(&self, snapshot: &SnapshotId) -> Vec<DiskId> {
        let made = self.disks.values().filter(|d| d.origin.as_ref() == Some(snapshot));
        made.map(|d| d.id.clone()).collect()
    }

    /// The records that changed since the last call, for a checkpoint.
    ///
    /// # Errors
    /// A record cannot be encoded.
    pub fn take_changes(&mut self) -> Result<Vec<(String, Option<Vec<u8>>)>> {
        let first = self.events.front().map_or(0, |event| event.seq);
        let mut changes = Vec::with_capacity(self.dirty.len());
        for key in std::mem::take(&mut self.dirty) {
            let (kind, id) = key.split_once('/').unwrap_or_default();
            let value = match kind {
                "disk" => self.disks.get(&DiskId::from(id)).map(encode).transpose()?,
                "snapshot" => self.snapshots.get(&SnapshotId::from(id)).map(encode).transpose()?,
                "group" => self.groups.get(&GroupId::from(id)).map(encode).transpose()?,
                "instance" => self.instances.get(&InstanceId::from(id)).map(encode).transpose()?,
                "image" => self.images.get(&ImageId::from(id)).map(encode).transpose()?,
                "repo" => self.repos.get(id).map(encode).transpose()?,
                "key" => {
                    let tree = id.parse().map(TreeId).ok();
                    tree.and_then(|tree| self.keys.get(&tree)).map(encode).transpose()?
                }
                "copy" => self.copies.get(&CopyId::from(id)).map(encode).transpose()?,
                "filling" => self.fillings.get(&DiskId::from(id)).map(encode).transpose()?,
                _ => {
                    let seq: u64 = id.parse().unwrap_or(0);
                    let at = seq.checked_sub(first).and_then(|at| usize::try_from(at).ok());
                    at.and_then(|at| self.events.get(at)).map(encode).transpose()?
                }
            };
            changes.push((key, value));
        }
        Ok(changes)
    }
}

fn event_key(seq: u64) -> String {
    format!("event/{seq:020}")
}

/// Encodes a record for the store or the journal.
///
/// # Errors
/// It cannot be encoded, which is a fault of ours.
pub fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|e| Error::internal(format!("encode a record: {e}")))
}

/// Decodes a record.
///
/// # Errors
/// `Corrupt`, naming the key.
pub fn decode<'a, T: Deserialize<'a>>(key: &str, value: &'a [u8]) -> Result<T> {
    serde_json::from_slice(value)
        .map_err(|e| Error::corrupt(format!("catalogue record {key}: {e}")))
}
