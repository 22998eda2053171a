//! Indexes of the catalogue: what is found otherwise than by its id, without a look at everything there is.
//!
//! Invariants: they follow the records of snapshots, disks and images, through whom alone they change; nothing of them
//! is kept.
//! Absent: names of disks, which the catalogue has itself; rules.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use super::{Catalogue, DiskRecord, ImageRecord, Kind, SnapshotRecord};
use crate::engine::api::policy::PolicyCopy;
use crate::engine::copies::CopyRecord;
use crate::engine::presence::InPool;
use crate::units::{CopyId, DiskId, Epoch, ImageId, SnapshotId, TreeId};

/// Where records are found.
#[derive(Debug, Default)]
pub struct Index {
    chains: HashMap<DiskId, Shelf>,
    nodes: BTreeMap<(TreeId, Epoch), SnapshotId>,
    copies: HashMap<CopyId, SnapshotId>,
    /// In the pool, and in a repository or on their way there.
    leaving: BTreeSet<SnapshotId>,
    ends: BTreeSet<(u64, SnapshotId)>,
    made: HashMap<SnapshotId, BTreeSet<DiskId>>,
    images: HashMap<SnapshotId, BTreeSet<ImageId>>,
    /// Copies under way, failed or to be deleted.
    copying: HashMap<SnapshotId, BTreeSet<CopyId>>,
    /// Copies that policies have made of a disk, or are making.
    policy_copies: HashMap<DiskId, BTreeSet<CopyId>>,
    copy_ends: BTreeSet<(u64, CopyId)>,
    stirred: BTreeSet<DiskId>,
}

/// The snapshots of a disk, which may be gone.
#[derive(Debug, Default)]
struct Shelf {
    nodes: BTreeSet<(TreeId, Epoch)>,
    counts: Counts,
}

/// How many snapshots of each kind a disk has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub manual: usize,
    pub auto: usize,
    pub undo: usize,
}

impl Counts {
    /// Without those that only undo a rollback.
    #[must_use]
    pub fn kept(self) -> usize {
        self.manual + self.auto
    }

    fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Manual => &mut self.manual,
            Kind::Auto => &mut self.auto,
            Kind::Undo => &mut self.undo,
        }
    }
}

impl Index {
    pub(super) fn add_snapshot(&mut self, snapshot: &SnapshotRecord) {
        let (id, node) = (&snapshot.id, (snapshot.tree, snapshot.node));
        let shelf = self.chains.entry(snapshot.disk.clone()).or_default();
        shelf.nodes.insert(node);
        *shelf.counts.of(snapshot.kind) += 1;
        self.nodes.insert(node, id.clone());
        if let Some(end) = snapshot.expires_at {
            self.ends.insert((end, id.clone()));
        }
        if let Some(presence) = &snapshot.presence {
            self.copies.insert(presence.copy.clone(), id.clone());
            if presence.pool != InPool::Gone {
                self.leaving.insert(id.clone());
            }
        }
        self.stir(snapshot);
    }

    pub(super) fn remove_snapshot(&mut self, snapshot: &SnapshotRecord) {
        let (id, node) = (&snapshot.id, (snapshot.tree, snapshot.node));
        if let Some(shelf) = self.chains.get_mut(&snapshot.disk) {
            shelf.nodes.remove(&node);
            *shelf.counts.of(snapshot.kind) -= 1;
            if shelf.nodes.is_empty() {
                self.chains.remove(&snapshot.disk);
            }
        }
        self.nodes.remove(&node);
        if let Some(end) = snapshot.expires_at {
            self.ends.remove(&(end, id.clone()));
        }
        if let Some(presence) = &snapshot.presence {
            self.copies.remove(&presence.copy);
            self.leaving.remove(id);
        }
        self.stir(snapshot);
    }

    /// What rules that count keep of a disk may have changed.
    fn stir(&mut self, snapshot: &SnapshotRecord) {
        if snapshot.kind == Kind::Auto && !self.stirred.contains(&snapshot.disk) {
            self.stirred.insert(snapshot.disk.clone());
        }
    }

    pub(super) fn add_disk(&mut self, disk: &DiskRecord) {
        if let Some(origin) = &disk.origin {
            self.made.entry(origin.clone()).or_default().insert(disk.id.clone());
        }
    }

    pub(super) fn remove_disk(&mut self, disk: &DiskRecord) {
        if let Some(origin) = &disk.origin {
            forget(&mut self.made, origin, &disk.id);
        }
        // The newest of a disk that is gone need not stay.
        self.stirred.insert(disk.id.clone());
    }

    pub(super) fn add_copy(&mut self, copy: &CopyRecord) {
        self.copying.entry(copy.snapshot.clone()).or_default().insert(copy.id.clone());
    }

    pub(super) fn remove_copy(&mut self, copy: &CopyRecord) {
        forget(&mut self.copying, &copy.snapshot, &copy.id);
    }

    pub(super) fn add_policy_copy(&mut self, copy: &PolicyCopy) {
        self.policy_copies.entry(copy.disk.clone()).or_default().insert(copy.id.clone());
        if let Some(end) = copy.expires_at {
            self.copy_ends.insert((end, copy.id.clone()));
        }
        self.stirred.insert(copy.disk.clone());
    }

    pub(super) fn remove_policy_copy(&mut self, copy: &PolicyCopy) {
        forget(&mut self.policy_copies, &copy.disk, &copy.id);
        if let Some(end) = copy.expires_at {
            self.copy_ends.remove(&(end, copy.id.clone()));
        }
        self.stirred.insert(copy.disk.clone());
    }

    /// The copies of a snapshot that are under way, have failed, or are to be deleted.
    pub(super) fn copies_under_way(&self, snapshot: &SnapshotId) -> Vec<CopyId> {
        self.copying.get(snapshot).into_iter().flatten().cloned().collect()
    }

    pub(super) fn policy_copies_of(&self, disk: &DiskId) -> impl Iterator<Item = &CopyId> {
        self.policy_copies.get(disk).into_iter().flatten()
    }

    pub(super) fn add_image(&mut self, image: &ImageRecord) {
        for snapshot in image.snapshots() {
            self.images.entry(snapshot.clone()).or_default().insert(image.id.clone());
        }
    }

    pub(super) fn remove_image(&mut self, image: &ImageRecord) {
        image.snapshots().for_each(|snapshot| forget(&mut self.images, snapshot, &image.id));
    }
}

/// Takes one out of a set, and the set out if it is empty then.
fn forget<K: Eq + Hash, T: Ord>(all: &mut HashMap<K, BTreeSet<T>>, key: &K, one: &T) {
    if let Some(found) = all.get_mut(key) {
        found.remove(one);
        if found.is_empty() {
            all.remove(key);
        }
    }
}

impl Catalogue {
    /// The snapshots of a disk, in the order of their lineage: oldest first.
    pub fn snapshots_of(&self, disk: &DiskId) -> impl DoubleEndedIterator<Item = &SnapshotRecord> {
        let shelf = self.index.chains.get(disk).into_iter();
        let nodes = shelf.flat_map(|shelf| shelf.nodes.iter());
        nodes.filter_map(|node| self.snapshots.get(self.index.nodes.get(node)?))
    }

    /// How many of them there are.
    #[must_use]
    pub fn counts_of(&self, disk: &DiskId) -> Counts {
        self.index.chains.get(disk).map_or_else(Counts::default, |shelf| shelf.counts)
    }

    /// Disks that have snapshots, those that are gone included.
    pub fn disks_with_snapshots(&self) -> impl Iterator<Item = &DiskId> {
        self.index.chains.keys()
    }

    /// The snapshot that a node is.
    #[must_use]
    pub fn snapshot_at(&self, tree: TreeId, node: Epoch) -> Option<&SnapshotId> {
        self.index.nodes.get(&(tree, node))
    }

    /// Whether a family of disks has snapshots.
    #[must_use]
    pub(super) fn has_snapshots(&self, tree: TreeId) -> bool {
        let all = (tree, Epoch(0))..=(tree, Epoch(u32::MAX));
        self.index.nodes.range(all).next().is_some()
    }

    #[must_use]
    pub fn snapshot_named(&self, disk: &DiskId, name: &str) -> Option<&SnapshotRecord> {
        self.snapshots_of(disk).find(|snapshot| snapshot.name == name)
    }

    /// The snapshot whose presence in a repository a copy is.
    #[must_use]
    pub fn snapshot_with(&self, copy: &CopyId) -> Option<&SnapshotRecord> {
        self.snapshots.get(self.index.copies.get(copy)?)
    }

    /// Whether a copy of a snapshot is under way, has failed, or is to be deleted.
    #[must_use]
    pub fn is_being_copied(&self, snapshot: &SnapshotId) -> bool {
        self.index.copying.contains_key(snapshot)
    }

    /// Snapshots that are to leave the pool at some time.
    pub fn leaving(&self) -> impl Iterator<Item = &SnapshotRecord> {
        self.index.leaving.iter().filter_map(|id| self.snapshots.get(id))
    }

    /// Snapshots whose time is over, the longest one first.
    pub fn ended(&self, at: u64) -> impl Iterator<Item = &SnapshotRecord> {
        let over = self.index.ends.iter().take_while(move |(end, _)| *end <= at);
        over.filter_map(|(_, id)| self.snapshots.get(id))
    }

    /// Copies of policies whose time is over, the longest one first.
    pub fn ended_copies(&self, at: u64) -> impl Iterator<Item = &PolicyCopy> {
        let over = self.index.copy_ends.iter().take_while(move |(end, _)| *end <= at);
        over.filter_map(|(_, id)| self.policy_copies.get(id))
    }

    /// The disks that were made from a snapshot and still exist.
    #[must_use]
    pub fn made_from(&self, snapshot: &SnapshotId) -> Vec<DiskId> {
        self.index.made.get(snapshot).into_iter().flatten().cloned().collect()
    }

    /// The images that are made of a snapshot: it stays as long as they do.
    pub fn images_with(&self, snapshot: &SnapshotId) -> impl Iterator<Item = &ImageRecord> {
        let ids = self.index.images.get(snapshot).into_iter().flatten();
        ids.filter_map(|id| self.images.get(id))
    }

    /// The disks whose automatic snapshots, or copies by policies, have changed since the last call; all after a start.
    #[must_use]
    pub fn take_stirred(&mut self) -> BTreeSet<DiskId> {
        std::mem::take(&mut self.index.stirred)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::api::Consistency;
    use crate::engine::presence::Presence;

    fn snapshot(id: &str, disk: &str, node: u32) -> SnapshotRecord {
        SnapshotRecord {
            id: id.into(),
            name: format!("of-{node}"),
            description: String::new(),
            disk: disk.into(),
            size: 0,
            created_at: 0,
            kind: Kind::Auto,
            expires_at: Some(100 - u64::from(node)),
            tree: TreeId(7),
            node: Epoch(node),
            tags: std::collections::BTreeMap::default(),
            consistency: Consistency::Crash,
            automatic: None,
            presence: None,
        }
    }

    /// Promise: the indexes say what a walk over all records would, whatever comes and goes.
    #[test]
    fn indexes_follow_the_records() {
        let mut all = Catalogue::default();
        for (id, disk, node) in [("s-1", "d-a", 3), ("s-2", "d-a", 1), ("s-3", "d-b", 2)] {
            all.put_snapshot(snapshot(id, disk, node));
        }
        let ids = |all: &Catalogue, disk: &str| -> Vec<String> {
            all.snapshots_of(&disk.into()).map(|one| one.id.to_string()).collect()
        };
        assert_eq!(ids(&all, "d-a"), ["s-2", "s-1"]);
        assert_eq!(all.counts_of(&"d-a".into()), Counts { auto: 2, ..Counts::default() });
        assert_eq!(all.snapshot_at(TreeId(7), Epoch(2)), Some(&"s-3".into()));
        let ended: Vec<&str> = all.ended(98).map(|one| one.id.as_str()).collect();
        assert_eq!(ended, ["s-1", "s-3"]);
        assert_eq!(all.take_stirred().len(), 2);
        assert!(all.take_stirred().is_empty());
        // A record that replaces another leaves nothing of it behind.
        let (copy, repo) = (CopyId::from("c-1"), "r".to_owned());
        let pool = InPool::UntilCopied;
        let presence = Presence { repo, copy: copy.clone(), complete: true, pool };
        let mut changed = snapshot("s-1", "d-a", 3);
        (changed.kind, changed.expires_at) = (Kind::Manual, None);
        changed.presence = Some(presence.clone());
        all.put_snapshot(changed.clone());
        assert_eq!(all.counts_of(&"d-a".into()), Counts { auto: 1, manual: 1, undo: 0 });
        assert_eq!(all.ended(98).count(), 1);
        assert_eq!(all.leaving().count(), 1);
        assert_eq!(all.snapshot_with(&copy).map(|one| one.id.as_str()), Some("s-1"));
        changed.presence = Some(Presence { pool: InPool::Gone, ..presence });
        all.put_snapshot(changed);
        assert_eq!((all.leaving().count(), all.snapshot_with(&copy).is_some()), (0, true));
        all.remove_snapshot(&"s-1".into());
        all.remove_snapshot(&"s-2".into());
        assert!(ids(&all, "d-a").is_empty() && all.snapshot_with(&copy).is_none());
        assert_eq!(all.counts_of(&"d-a".into()), Counts::default());
        assert_eq!(all.disks_with_snapshots().count(), 1);
        assert!(all.has_snapshots(TreeId(7)));
        all.remove_snapshot(&"s-3".into());
        assert!(!all.has_snapshots(TreeId(7)) && all.ended(u64::MAX).next().is_none());
    }
}
