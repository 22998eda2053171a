//! Usage: how many bytes disks, snapshots and repositories hold, now and over the last days.
//!
//! Invariants: a sample is a record of the journal, so that history outlives the daemon; there is one for an hour at
//! most, and samples older than [`KEPT`] go; a block counts once, where it was written.
//! Absent: prices; asking repositories (`crate::usage` does that and hands the numbers in).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Engine;
use super::api::{Actor, Tags};
use super::catalogue::{Kind, Op};
use super::info::refresh;
use super::now;
use crate::error::{Error, Result};
use crate::units::{BLOCK_SIZE, DiskId, Epoch, TreeId};

/// Seconds between two samples.
pub const EVERY: u64 = 3600;
/// Seconds for which samples are kept: fifteen days.
pub const KEPT: u64 = 15 * 24 * 3600;
/// Disks that a sample names, the largest; a record of the journal has to hold them.
const NAMED_MAX: usize = 2000;

/// What a disk and its snapshots hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Bytes written since the last snapshot, which no snapshot holds.
    #[serde(default)]
    pub data: u64,
    /// Bytes of all snapshots, shared blocks once.
    #[serde(default)]
    pub snapshots: u64,
    /// Bytes kept so that a rollback can be undone.
    #[serde(default)]
    pub undo: u64,
    /// Number of snapshots, without those that undo a rollback.
    #[serde(default)]
    pub count: u64,
    /// Of the bytes of snapshots, those of snapshots with instant access. A sample has them in its sum only.
    #[serde(skip)]
    pub access: u64,
}

impl Held {
    fn total(&self) -> u64 {
        self.data + self.snapshots + self.undo
    }

    fn add(&mut self, other: &Held) {
        self.data += other.data;
        self.snapshots += other.snapshots;
        self.undo += other.undo;
        self.count += other.count;
        self.access += other.access;
    }
}

/// What a repository holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Copies that are complete.
    #[serde(default)]
    pub copies: u64,
    /// Bytes that they take there, after compression.
    #[serde(default)]
    pub bytes: u64,
}

/// Usage at one moment, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    pub at: u64,
    /// Bytes of the pool in use, what is being freed included.
    #[serde(default)]
    pub used: u64,
    #[serde(default)]
    pub total: Held,
    /// Of the bytes of snapshots, those of snapshots with instant access.
    #[serde(default)]
    pub access: u64,
    /// The largest disks, deleted ones with snapshots included.
    #[serde(default)]
    pub disks: BTreeMap<DiskId, Held>,
    /// Repositories that answered.
    #[serde(default)]
    pub repos: BTreeMap<String, Stored>,
}

/// A disk, or what is left of one, and what it holds now.
#[derive(Clone, Debug)]
pub struct DiskUsage {
    pub id: DiskId,
    /// Nothing when the disk has been deleted.
    pub name: Option<String>,
    pub size: u64,
    pub tags: Tags,
    pub held: Held,
}

/// Usage now, and what was sampled in a stretch of time.
#[derive(Clone, Debug)]
pub struct Usage {
    pub at: u64,
    pub used: u64,
    pub total: Held,
    /// The largest first.
    pub disks: Vec<DiskUsage>,
    /// As of the last sample.
    pub repos: BTreeMap<String, Stored>,
    /// Oldest first.
    pub samples: Vec<UsageRecord>,
}

/// What holds blocks: a disk and its head; or a snapshot of it, of a kind, and whether it has instant access.
type Part = (DiskId, Epoch, Option<(Kind, bool)>);

impl Engine {
    /// Whether it is time for a sample. A clock that was put back waits until it has caught up.
    #[must_use]
    pub fn usage_due(&self) -> bool {
        let last = self.catalogue.read().usage.back().map(|sample| sample.at);
        last.is_none_or(|last| now() / EVERY > last / EVERY)
    }

    /// Takes a sample, with what repositories hold.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn usage_sample(&self, repos: BTreeMap<String, Stored>) -> Result<()> {
        let _shape = self.shape.lock();
        let all = self.held_now(|_| true);
        let mut total = Held::default();
        all.values().for_each(|held| total.add(held));
        let mut largest: Vec<(DiskId, Held)> = all.into_iter().collect();
        largest.sort_by_key(|(_, held)| Reverse(held.total()));
        largest.truncate(NAMED_MAX);
        let disks = largest.into_iter().collect();
        let (used, access) = (self.used_bytes(), total.access);
        let sample = UsageRecord { at: now(), used, total, access, disks, repos };
        self.change(Actor::DAEMON, Op::UsageSample { sample }, String::new())
    }

    /// Usage now, and the samples of a stretch of time. With a tag, only disks and snapshots that have it.
    ///
    /// # Errors
    /// The stretch is longer than what is kept, or ends before it begins.
    pub fn usage(
        &self,
        from: Option<u64>,
        to: Option<u64>,
        tag: Option<(&str, Option<&str>)>,
    ) -> Result<Usage> {
        let at = now();
        let to = to.unwrap_or(at);
        let from = from.unwrap_or_else(|| to.saturating_sub(KEPT));
        if from > to {
            return Err(Error::invalid("the time range ends before it begins"));
        }
        if to - from > KEPT {
            return Err(Error::invalid("the time range is longer than 15 days")
                .hint("usage is kept for 15 days; collect metrics for more"));
        }
        let has = |tags: &Tags| {
            tag.is_none_or(|(key, value)| {
                tags.get(key).is_some_and(|found| value.is_none_or(|value| value == found))
            })
        };
        let held = self.held_now(has);
        let mut total = Held::default();
        held.values().for_each(|held| total.add(held));
        let used = self.used_bytes();
        let catalogue = self.catalogue.read();
        let mut disks: Vec<DiskUsage> = held
            .into_iter()
            .map(|(id, held)| {
                let disk = catalogue.disks.get(&id);
                DiskUsage {
                    name: disk.map(|disk| disk.name.clone()),
                    size: disk.map_or(0, |disk| disk.size),
                    tags: disk.map(|disk| disk.tags.clone()).unwrap_or_default(),
                    id,
                    held,
                }
            })
            .collect();
        disks.sort_by_key(|disk| Reverse(disk.held.total()));
        let samples = catalogue.usage.iter().filter(|sample| (from..=to).contains(&sample.at));
        Ok(Usage {
            at,
            used,
            total,
            disks,
            repos: catalogue.usage.back().map(|last| last.repos.clone()).unwrap_or_default(),
            samples: samples.cloned().collect(),
        })
    }

    fn used_bytes(&self) -> u64 {
        self.shared.pool.with_allocator(|a| a.used_blocks() + a.pending_blocks()) * BLOCK_SIZE
    }

    /// What disks, and snapshots of disks that are gone, hold now. Only what the question is about: a disk counts its
    /// data, and each snapshot its own, where their tags say so.
    fn held_now(&self, wanted: impl Fn(&Tags) -> bool) -> BTreeMap<DiskId, Held> {
        self.all_trees().iter().for_each(|tree| refresh(tree));
        // What a node holds is asked of its tree, tree by tree.
        let mut parts: BTreeMap<TreeId, Vec<Part>> = BTreeMap::new();
        {
            let catalogue = self.catalogue.read();
            for disk in catalogue.disks.values().filter(|disk| wanted(&disk.tags)) {
                let part = (disk.id.clone(), disk.head, None);
                parts.entry(disk.tree).or_default().push(part);
            }
            for snapshot in catalogue.snapshots.values().filter(|one| wanted(&one.tags)) {
                let kind = (snapshot.kind, snapshot.has_access());
                let part = (snapshot.disk.clone(), snapshot.node, Some(kind));
                parts.entry(snapshot.tree).or_default().push(part);
            }
        }
        let mut all: BTreeMap<DiskId, Held> = BTreeMap::new();
        for (tree, parts) in parts {
            let tree = self.tree(tree);
            let nodes = tree.nodes.lock();
            for (disk, node, kind) in parts {
                let bytes = nodes.all.get(&node).map_or(0, |node| node.live) * BLOCK_SIZE;
                let held = all.entry(disk).or_default();
                match kind {
                    None => held.data += bytes,
                    Some((Kind::Undo, _)) => held.undo += bytes,
                    Some((_, access)) => {
                        held.snapshots += bytes;
                        held.count += 1;
                        held.access += if access { bytes } else { 0 };
                    }
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an older or newer daemon wrote is read as far as it is understood.
    #[test]
    fn a_sample_is_read_with_fields_missing_and_added() {
        let read: UsageRecord = serde_json::from_str(r#"{"at":5,"used":7,"moons":2}"#).unwrap();
        assert_eq!(read, UsageRecord { at: 5, used: 7, ..UsageRecord::default() });
    }

    /// The largest sample fits into a record of the journal.
    #[test]
    fn a_sample_of_the_largest_pool_fits_into_a_record() {
        let bytes = u64::MAX >> 12;
        let held = Held { data: bytes, snapshots: bytes, count: 1000, ..Held::default() };
        let disks =
            (0..NAMED_MAX).map(|n| (DiskId::from(format!("d-{n:016x}").as_str()), held.clone()));
        let record = UsageRecord { disks: disks.collect(), ..UsageRecord::default() };
        let bytes = serde_json::to_vec(&record).unwrap().len();
        assert!(bytes < crate::pool::journal::MAX_RECORD - 4096, "{bytes}");
    }
}
