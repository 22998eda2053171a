//! What the engine tells of disks, snapshots, chains and the pool.
//!
//! Invariants: byte counts come from the counters of the nodes, exact at the instant of the question.
//! Absent: changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Engine;
use super::api::{Actor, ChainInfo, DiskInfo, Event, PoolStatus, SnapshotInfo, SnapshotStatus};
use super::catalogue::{DiskRecord, SnapshotRecord};
use super::clients::Subject;
use crate::crypt::Sealing;
use crate::error::{Error, Result};
use crate::map::leaf::Entry;
use crate::map::lineage::Lineage;
use crate::map::tree::{Nodes, Tree};
use crate::units::{BLOCK_SIZE, DiskId, Epoch, LeafIndex, SnapshotId, TreeId};

impl Engine {
    /// # Errors
    /// There is no such disk.
    pub fn disk(&self, id: &DiskId) -> Result<DiskInfo> {
        self.disk_info(self.record(id)?)
    }

    /// All disks, by name.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskInfo> {
        let mut records: Vec<_> = self.catalogue.read().disks.values().cloned().collect();
        records.sort_by(|a, b| a.name.cmp(&b.name));
        let trees = self.refreshed(records.iter().map(|record| record.tree));
        // One that is deleted this instant is left out.
        let told = |record: DiskRecord| self.disk_told(trees.get(&record.tree)?, record).ok();
        records.into_iter().filter_map(told).collect()
    }

    /// # Errors
    /// There is no such snapshot.
    pub fn snapshot(&self, id: &SnapshotId) -> Result<SnapshotInfo> {
        self.snapshot_info(self.snapshot_record(id)?)
    }

    /// The snapshots of a disk, or all, oldest first.
    #[must_use]
    pub fn snapshots(&self, disk: Option<&DiskId>) -> Vec<SnapshotInfo> {
        let mut records: Vec<SnapshotRecord> = {
            let catalogue = self.catalogue.read();
            match disk {
                Some(disk) => catalogue.snapshots_of(disk).cloned().collect(),
                None => catalogue.snapshots.values().cloned().collect(),
            }
        };
        records.sort_by_key(|record| (record.created_at, record.tree, record.node));
        let trees = self.refreshed(records.iter().map(|record| record.tree));
        let told = |record: SnapshotRecord| {
            let tree = trees.get(&record.tree)?;
            self.snapshot_told(tree, record).ok()
        };
        records.into_iter().filter_map(told).collect()
    }

    /// The snapshots of one disk with their sizes.
    ///
    /// # Errors
    /// There is neither such a disk nor a snapshot of it.
    pub fn chain(&self, id: &DiskId) -> Result<ChainInfo> {
        let snapshots = self.snapshots(Some(id));
        let record = self.catalogue.read().disks.get(id).cloned();
        if record.is_none() && snapshots.is_empty() {
            return Err(Error::not_found(format!("no disk {id}, and no snapshots of one")));
        }
        let largest = snapshots.iter().map(|s| s.size).max().unwrap_or(0);
        Ok(ChainInfo {
            disk_id: id.clone(),
            disk_name: record.as_ref().map(|disk| disk.name.clone()),
            disk_size: record.map_or(largest, |disk| disk.size),
            snapshot_bytes: snapshots.iter().map(|s| s.stored_bytes).sum(),
            quota_manual: self.settings.quota_manual as u64,
            quota_auto: self.settings.quota_auto as u64,
            snapshots,
        })
    }

    /// The chains of all disks that have or had snapshots.
    #[must_use]
    pub fn chains(&self) -> Vec<ChainInfo> {
        let mut ids: Vec<DiskId> = self.catalogue.read().disks_with_snapshots().cloned().collect();
        ids.sort();
        ids.into_iter().filter_map(|id| self.chain(&id).ok()).collect()
    }

    /// The state of the pool.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let pool = &self.shared.pool;
        let superblock = pool.superblock();
        let (segments, max, used, pending) = pool.with_allocator(|a| {
            let (segments, max) = (a.segment_count(), a.geometry().max_segments);
            (u64::from(segments), u64::from(max), a.used_blocks(), a.pending_blocks())
        });
        let segment = u64::from(superblock.segment_blocks) * BLOCK_SIZE;
        let free = pool.file.host_free_bytes().unwrap_or(0);
        let reachable = segments * segment + free.saturating_sub(self.settings.host_reserve);
        let (disks, snapshots) = {
            let catalogue = self.catalogue.read();
            (catalogue.disks.len() as u64, catalogue.snapshots.len() as u64)
        };
        PoolStatus {
            uuid: super::hex(&superblock.uuid),
            dir: self.settings.dir.display().to_string(),
            stopped: pool.file.stopped().map(str::to_owned),
            block_size: BLOCK_SIZE,
            file_bytes: segments * segment,
            max_bytes: max.saturating_mul(segment).min(reachable),
            used_bytes: used * BLOCK_SIZE,
            pending_bytes: pending * BLOCK_SIZE,
            journal_bytes: pool.journal.capacity(),
            journal_used_bytes: pool.journal.used(),
            cache_bytes: self.shared.budget.bytes() as u64,
            cache_limit: self.settings.map_cache as u64,
            last_seq: pool.journal.last().0,
            durable_seq: pool.journal.durable().0,
            checkpoint_seq: superblock.checkpoint.0,
            disks,
            snapshots,
            clients: self.clients.count(),
            reclaiming: self.reclaiming(),
            corrupt_blocks: self.corrupt.count.load(std::sync::atomic::Ordering::Relaxed),
            healed_blocks: self.healed.load(std::sync::atomic::Ordering::Relaxed),
            last_scrub: self.last_scrub.lock().clone(),
            recovery_seconds: self.recovery.seconds,
            recovered_records: self.recovery.records,
            io: pool.file.mode(),
        }
    }

    /// Changes how far the pool may grow.
    ///
    /// # Errors
    /// `Invalid` when it is less than the pool file has already.
    pub fn pool_resize(&self, by: Actor, max_bytes: u64) -> Result<()> {
        if max_bytes > super::MAX_POOL_BYTES {
            return Err(Error::invalid("a pool has at most 2 PiB"));
        }
        let _shape = self.shape.lock();
        let pool = &self.shared.pool;
        let segment = u64::from(pool.superblock().segment_blocks) * BLOCK_SIZE;
        let segments = u32::try_from(max_bytes / segment).unwrap_or(u32::MAX);
        let have = pool.with_allocator(|a| a.segment_count());
        if segments == 0 {
            return Err(Error::invalid(format!("a pool of {max_bytes} bytes could hold nothing"))
                .hint(format!("the smallest has one segment, {segment} bytes")));
        }
        if segments < have {
            let least = u64::from(have) * segment;
            return Err(Error::invalid(format!("the pool file holds {least} bytes already"))
                .hint("a pool file does not shrink; free space in it is given back to the host"));
        }
        pool.store_superblock(|sb| sb.max_blocks = max_bytes / BLOCK_SIZE)?;
        pool.with_allocator(|a| a.set_max_segments(segments));
        self.note(by, "pool.resize", "pool", format!("the pool may grow to {max_bytes} bytes"))
    }

    /// The events behind `after`, oldest first.
    #[must_use]
    pub fn events(&self, after: u64, limit: usize) -> Vec<Event> {
        let catalogue = self.catalogue.read();
        let first = catalogue.events.partition_point(|event| event.seq <= after);
        let wanted = catalogue.events.iter().skip(first).take(limit);
        wanted
            .map(|event| Event {
                seq: event.seq,
                at: event.at,
                actor: Actor { uid: event.uid, pid: event.pid },
                kind: event.kind.clone(),
                object: event.object.clone(),
                message: event.message.clone(),
            })
            .collect()
    }

    /// Waits until there is an event behind `after`; `false` when the time is over.
    #[must_use]
    pub fn wait_events(&self, after: u64, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut guard = self.new_event.0.lock();
        while self.catalogue.read().events.back().is_none_or(|last| last.seq <= after) {
            if self.new_event.1.wait_until(&mut guard, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// Bytes that deleting a node would free, if nothing else is deleted.
    pub(super) fn exclusive_bytes(&self, tree: TreeId, node: Epoch) -> Result<u64> {
        let tree = self.tree(tree);
        refresh(&tree);
        self.exclusive_of(&tree, node)
    }

    /// Trees by their ids, with counters as they are now.
    fn refreshed(&self, ids: impl Iterator<Item = TreeId>) -> BTreeMap<TreeId, Arc<Tree>> {
        let ids: BTreeSet<TreeId> = ids.collect();
        let trees = ids.into_iter().map(|id| (id, self.tree(id)));
        trees.inspect(|(_, tree)| refresh(tree)).collect()
    }

    fn exclusive_of(&self, tree: &Tree, node: Epoch) -> Result<u64> {
        let (children, lineages, own) = {
            let nodes = tree.nodes.lock();
            let Some(found) = nodes.all.get(&node) else { return Ok(0) };
            let children: Vec<Epoch> = nodes.children(node).collect();
            if let Some(blocks) = counted(&nodes, node, &children) {
                return Ok(blocks * BLOCK_SIZE);
            }
            let lineages: Vec<Lineage> = children.iter().map(|c| nodes.lineage(*c)).collect();
            (children, lineages, found.own.clone())
        };
        // Several children: only a walk tells which blocks none of them holds.
        let heads: Vec<_> = tree.views().into_iter().filter(|v| v.writable).collect();
        let meta = &self.shared.meta;
        let mut blocks = 0;
        for leaf in tree.touched_leaves(meta, &own, 0, usize::MAX)? {
            let index = LeafIndex(leaf);
            let Some((_, of_node)) = tree.newest(meta, index, &own)? else { continue };
            let mut of_children = Vec::new();
            for (child, lineage) in children.iter().zip(&lineages) {
                let dirty = heads.iter().find(|v| v.is_open_head(*child));
                let dirty = dirty.and_then(|view| view.dirty_leaf(leaf));
                let found = match dirty {
                    Some(leaf) => Some(leaf),
                    None => tree.newest(meta, index, lineage)?.map(|(_, leaf)| leaf),
                };
                of_children.extend(found);
            }
            blocks += of_node
                .data()
                .filter(|(_, _, birth, _)| own.contains(*birth))
                .filter(|(slot, pbn, _, _)| {
                    !of_children.iter().any(
                        |leaf| matches!(leaf.get(*slot), Entry::Data { pbn: p, .. } if p == *pbn),
                    )
                })
                .count() as u64;
        }
        Ok(blocks * BLOCK_SIZE)
    }

    fn disk_info(&self, record: DiskRecord) -> Result<DiskInfo> {
        let tree = self.tree(record.tree);
        refresh(&tree);
        self.disk_told(&tree, record)
    }

    fn disk_told(&self, tree: &Tree, record: DiskRecord) -> Result<DiskInfo> {
        let exclusive_bytes = self.exclusive_of(tree, record.head)?;
        let mapped = mapped_blocks(&tree.nodes.lock(), record.head);
        let attachment = self.attachment_info(&record);
        let filling = self.filling_info(&record.id);
        let catalogue = self.catalogue.read();
        let kept = catalogue.counts_of(&record.id).kept() as u64;
        let instance = catalogue.instance_of(&record);
        let (policy, policy_instance) = match catalogue.policy_of(&record) {
            Some((applied, of)) => (catalogue.policy_name(&applied.id), of.map(|one| one.name)),
            None => (None, None),
        };
        let origin = record.origin.map(|id| {
            let exists = catalogue.snapshots.contains_key(&id);
            (id, exists)
        });
        let image = record.image.map(|id| {
            let name = catalogue.images.get(&id).map(|image| image.name.clone());
            (id, name)
        });
        let sealing = self.sealing(&catalogue, record.tree);
        Ok(DiskInfo {
            encrypted: !matches!(sealing, Sealing::Plain),
            protected: catalogue.is_protected(record.id.as_str()),
            locked: sealing.cipher().err().map(|error| error.message().to_owned()),
            clients: self.clients.of(&Subject::Disk(record.id.clone())),
            id: record.id,
            name: record.name,
            description: record.description,
            size: record.size,
            created_at: record.created_at,
            read_only: record.read_only,
            origin,
            image,
            exclusive_bytes,
            mapped_bytes: mapped * BLOCK_SIZE,
            snapshot_count: kept,
            instance: (instance.id, instance.name),
            policy,
            policy_instance,
            delete_auto: record.delete_auto,
            tags: record.tags,
            attachment,
            filling,
        })
    }

    fn snapshot_info(&self, record: SnapshotRecord) -> Result<SnapshotInfo> {
        let tree = self.tree(record.tree);
        refresh(&tree);
        self.snapshot_told(&tree, record)
    }

    fn snapshot_told(&self, tree: &Tree, record: SnapshotRecord) -> Result<SnapshotInfo> {
        let held = record.is_held();
        let exclusive_bytes = if held { self.exclusive_of(tree, record.node)? } else { 0 };
        let presence = self.presence_info(&record);
        let filling = self.snapshot_lacking(&record).map(|filling| self.filling_told(filling));
        let catalogue = self.catalogue.read();
        let nodes = tree.nodes.lock();
        let stored = nodes.all.get(&record.node).filter(|_| held).map_or(0, |node| node.live);
        let mut above = nodes.ancestry(record.node).skip(1);
        let parent =
            above.find_map(|(epoch, _)| catalogue.snapshot_at(record.tree, epoch)).cloned();
        drop(above);
        Ok(SnapshotInfo {
            encrypted: catalogue.keys.contains_key(&record.tree),
            protected: catalogue.is_protected(record.id.as_str()),
            clients: self.clients.of(&Subject::Snapshot(record.id.clone())),
            made_disks: catalogue.made_from(&record.id),
            images: catalogue.images_with(&record.id).map(|one| one.id.clone()).collect(),
            disk_name: catalogue.disks.get(&record.disk).map(|disk| disk.name.clone()),
            id: record.id,
            name: record.name,
            description: record.description,
            disk_id: record.disk,
            size: record.size,
            created_at: record.created_at,
            kind: record.kind.into(),
            consistency: record.consistency,
            automatic: record.automatic.map(|automatic| (automatic.policy, automatic.slot)),
            status: SnapshotStatus::Accomplished,
            exclusive_bytes,
            stored_bytes: stored * BLOCK_SIZE,
            parent,
            expires_at: record.expires_at,
            presence,
            filling,
            tags: record.tags,
        })
    }
}

/// Copies the counters of heads to their nodes.
pub(super) fn refresh(tree: &Tree) {
    for view in tree.views().iter().filter(|view| view.writable) {
        view.with(|state| {
            if !state.is_closed() {
                view.store_counters(state);
            }
        });
    }
}

/// The exclusive blocks of a node with at most one child, from the counters alone.
fn counted(nodes: &Nodes, node: Epoch, children: &[Epoch]) -> Option<u64> {
    let found = nodes.all.get(&node)?;
    match children {
        [] => Some(found.live + handed_down(nodes, node)),
        [child] => nodes.all.get(child).map(|c| c.dead.get(&node).copied().unwrap_or(0)),
        _ => None,
    }
}

/// What a deleted parent would free in addition, were this one of its two children gone.
fn handed_down(nodes: &Nodes, node: Epoch) -> u64 {
    let Some(parent) = nodes.all.get(&node).and_then(|n| n.parent) else { return 0 };
    if !nodes.all.get(&parent).is_some_and(|p| p.released) {
        return 0;
    }
    let others: Vec<Epoch> = nodes.children(parent).filter(|c| *c != node).collect();
    match others[..] {
        [other] => nodes.all.get(&other).and_then(|o| o.dead.get(&parent).copied()).unwrap_or(0),
        _ => 0,
    }
}

/// Blocks that a node maps: what its parent maps, less what it replaced, and its own.
pub(super) fn mapped_blocks(nodes: &Nodes, node: Epoch) -> u64 {
    let path: Vec<_> = nodes.ancestry(node).collect();
    path.into_iter().rev().fold(0u64, |mapped, (_, node)| {
        (mapped + node.live).saturating_sub(node.dead.values().sum())
    })
}

impl Engine {
    /// Tells an event that changes nothing.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn note(&self, by: Actor, kind: &str, object: &str, message: String) -> Result<()> {
        let op = super::Op::Note { kind: kind.to_owned(), object: object.to_owned() };
        self.change(by, op, message)
    }

    /// Number of released nodes whose blocks are still being freed.
    pub(super) fn reclaiming(&self) -> u64 {
        let reclaimable = |tree: &Tree| tree.nodes.lock().reclaimable().count();
        self.all_trees().iter().map(|tree| reclaimable(tree) as u64).sum()
    }
}
