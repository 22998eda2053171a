//! The catalogue: which disks, snapshots, groups, instances and images exist, as records that the journal and the
//! store keep.
//!
//! Invariants: it changes through [`Op`]s only, which are journal records; names of disks are unique,
//! names of snapshots are unique per disk; ids are never reused.
//! Absent: live state such as views and clients (`engine/mod.rs`), and rules about who may do what.

mod copy;
mod image;
mod index;
mod kept;
mod op;
mod policy;
mod presence;
mod protect;
mod record;
mod trash;
mod usage;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::api::policy::{Hold, PolicyCopy};
use super::copies::{CopyRecord, Filling};
use super::repos::RepoRecord;
use super::usage::UsageRecord;
use crate::crypt::master::Wrapped;
use crate::error::{Error, Result};
use crate::units::{CopyId, DiskId, GroupId, ImageId, InstanceId, PolicyId, SnapshotId, TreeId};
pub use image::{DataRecord, ImageRecord};
pub use index::Counts;
pub use kept::DONE;
pub use op::{Entry, Op};
pub use policy::PolicyRecord;
pub use record::{
    Applied, Attachment, Cut, DiskRecord, EventRecord, GroupRecord, InstanceRecord, KeyRecord,
    Kind, MemberRecord, NewDisk, SnapshotRecord, Turn,
};
pub use trash::TrashRecord;

/// Events kept; older ones go.
const EVENTS_KEPT: usize = 10_000;
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
    pub policy_copies: BTreeMap<CopyId, PolicyCopy>,
    pub policies: BTreeMap<PolicyId, PolicyRecord>,
    pub holds: BTreeMap<String, Hold>,
    pub trash: BTreeMap<DiskId, TrashRecord>,
    pub events: VecDeque<EventRecord>,
    /// Oldest first.
    pub usage: VecDeque<UsageRecord>,
    /// Ids of disks and snapshots.
    pub protected: BTreeSet<String>,
    pub next_tree: u32,
    names: HashMap<String, DiskId>,
    index: index::Index,
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
                "kept" => self.put_policy_copy(decode(&key, &value)?),
                "policy" => self.put_policy(decode(&key, &value)?),
                "hold" => self.put_hold(decode(&key, &value)?),
                "usage" => self.usage.push_back(decode(&key, &value)?),
                "protect" => {
                    self.protected.extend(key.split_once('/').map(|(_, id)| id.to_owned()));
                }
                "trash" => self.put_trash(decode(&key, &value)?),
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
            self.index.remove_disk(old);
        }
        self.index.add_disk(&disk);
        self.names.insert(disk.name.clone(), disk.id.clone());
        self.disks.insert(disk.id.clone(), disk);
    }

    pub fn put_snapshot(&mut self, snapshot: SnapshotRecord) {
        self.dirty.insert(format!("snapshot/{}", snapshot.id));
        self.next_tree = self.next_tree.max(snapshot.tree.0 + 1);
        if let Some(old) = self.snapshots.get(&snapshot.id) {
            self.index.remove_snapshot(old);
        }
        self.index.add_snapshot(&snapshot);
        self.snapshots.insert(snapshot.id.clone(), snapshot);
    }

    pub fn remove_disk(&mut self, id: &DiskId) -> Option<DiskRecord> {
        let disk = self.disks.remove(id)?;
        self.names.remove(&disk.name);
        self.index.remove_disk(&disk);
        self.dirty.insert(format!("disk/{id}"));
        Some(disk)
    }

    pub fn remove_snapshot(&mut self, id: &SnapshotId) -> Option<SnapshotRecord> {
        let snapshot = self.snapshots.remove(id)?;
        self.dirty.insert(format!("snapshot/{id}"));
        self.index.remove_snapshot(&snapshot);
        Some(snapshot)
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

    pub fn put_keys(&mut self, keys: Vec<KeyRecord>) {
        keys.into_iter().for_each(|key| self.put_key(key.tree, key.wrapped));
    }

    pub fn put_key(&mut self, tree: TreeId, key: Wrapped) {
        self.dirty.insert(format!("key/{tree}"));
        self.keys.insert(tree, key);
    }

    /// Forgets the key of a family that has no disk and no snapshot left; whether it did.
    pub fn drop_unused_key(&mut self, tree: TreeId) -> bool {
        if !self.keys.contains_key(&tree) {
            return false;
        }
        let used = self.has_snapshots(tree)
            || self.disks.values().any(|disk| disk.tree == tree)
            || self.trash.values().any(|one| one.disk.tree == tree);
        if used {
            return false;
        }
        self.keys.remove(&tree);
        self.dirty.insert(format!("key/{tree}"));
        true
    }

    /// Adds the event of an entry, if it has one.
    pub fn add_event(&mut self, entry: &Entry) {
        if !entry.op.is_told() {
            return;
        }
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

    #[must_use]
    pub fn group_named(&self, name: &str) -> Option<&GroupRecord> {
        self.groups.values().find(|group| group.name == name)
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
                "kept" => self.policy_copies.get(&CopyId::from(id)).map(encode).transpose()?,
                "policy" => self.policies.get(&PolicyId::from(id)).map(encode).transpose()?,
                "hold" => self.holds.get(id).map(encode).transpose()?,
                "usage" => self.usage_at(id).map(encode).transpose()?,
                "protect" => self.is_protected(id).then(|| encode(&true)).transpose()?,
                "trash" => self.trash.get(&DiskId::from(id)).map(encode).transpose()?,
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
