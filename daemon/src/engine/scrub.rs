//! Scrub: reads every stored block of every disk and snapshot and compares its checksum.
//!
//! Invariants: each stored block is read once per leaf version that owns it; the rate is bounded; a
//! block freed while the scrub looks at it is no finding.
//! Absent: repair, which is done beside it where a copy has the block (`vault/heal.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::api::{Actor, JobInfo, JobState, ScrubReport};
use super::heal::Damage;
use super::jobs::Job;
use super::{Engine, now};
use crate::error::{Error, ErrorKind, Result};
use crate::map::leaf::Leaf;
use crate::map::lineage::EpochSet;
use crate::map::tree::Tree;
use crate::pool::crc32c;
use crate::units::{BLOCK_SIZE, Epoch, Lba, LeafIndex, Pbn};

/// Findings told one by one; more are only counted.
const FINDINGS_MAX: usize = 1000;
/// A scrub that waits for its rate looks this often whether it is still wanted.
const CANCEL_NOTICED: Duration = Duration::from_millis(100);
/// Leaves of one node taken from the index at a time.
const LEAVES_AT_ONCE: usize = 64;

struct Scrub<'a> {
    engine: &'a Engine,
    job: &'a Job,
    rate: u64,
    began: Instant,
    bytes: u64,
    bad: Vec<String>,
    bad_count: u64,
}

impl Engine {
    /// Begins to read everything at `bytes_per_second` (0: as configured).
    ///
    /// # Errors
    /// `InUse` when a scrub runs.
    pub fn scrub_start(self: &Arc<Self>, by: Actor, bytes_per_second: u64) -> Result<JobInfo> {
        let job = self.jobs.begin("scrub", "pool", true)?;
        let rate = if bytes_per_second == 0 { self.settings.scrub_rate } else { bytes_per_second };
        {
            let _shape = self.shape.lock();
            self.note(by, "scrub.start", job.id.as_str(), "scrub of the pool began".to_owned())?;
        }
        let (engine, worker) = (Arc::clone(self), Arc::clone(&job));
        std::thread::Builder::new()
            .name("scrub".to_owned())
            .spawn(move || engine.scrub(&worker, rate))
            .map_err(|e| Error::io("start the scrub", &e))?;
        Ok(job.info())
    }

    fn scrub(&self, job: &Job, rate: u64) {
        let started_at = now();
        let total = self.shared.pool.with_allocator(|a| a.used_blocks()) * BLOCK_SIZE;
        job.total.store(total, Ordering::Relaxed);
        let (began, bad) = (Instant::now(), Vec::new());
        let mut scrub = Scrub { engine: self, job, rate, began, bytes: 0, bad, bad_count: 0 };
        let outcome = self.all_trees().iter().try_for_each(|tree| scrub.tree(tree));
        let (state, message) = match outcome {
            Ok(()) if scrub.bad_count == 0 => {
                (JobState::Done, format!("{} bytes read, no damage", scrub.bytes))
            }
            Ok(()) => {
                let count = scrub.bad_count;
                (JobState::Done, format!("{} bytes read, {count} damaged blocks", scrub.bytes))
            }
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                (JobState::Cancelled, format!("cancelled after {} bytes", scrub.bytes))
            }
            Err(error) => (JobState::Failed, error.to_string()),
        };
        if state == JobState::Done {
            *self.last_scrub.lock() = Some(ScrubReport {
                started_at,
                ended_at: now(),
                bytes: scrub.bytes,
                bad: scrub.bad,
            });
        }
        let told = {
            let _shape = self.shape.lock();
            self.note(Actor::DAEMON, "scrub.end", job.id.as_str(), message.clone())
        };
        if let Err(error) = told {
            tracing::warn!(%error, "the end of a scrub could not be noted");
        }
        job.finish(state, message);
    }
}

impl Scrub<'_> {
    fn tree(&mut self, tree: &Arc<Tree>) -> Result<()> {
        // Dirty leaves of heads are in memory only; a checkpoint brings them where they are found.
        self.engine.checkpoint()?;
        let nodes: Vec<Epoch> = tree.nodes.lock().all.keys().copied().collect();
        nodes.into_iter().try_for_each(|node| self.node(tree, node))
    }

    fn node(&mut self, tree: &Arc<Tree>, node: Epoch) -> Result<()> {
        let own = tree.nodes.lock().all.get(&node).map(|found| found.own.clone());
        let Some(own) = own else { return Ok(()) };
        let meta = &self.engine.shared.meta;
        let mut from = 0;
        loop {
            let leaves = tree.touched_leaves(meta, &own, from, LEAVES_AT_ONCE)?;
            let Some(last) = leaves.last() else { return Ok(()) };
            from = last + 1;
            for leaf in &leaves {
                self.version(tree, node, &own, *leaf)?;
                self.pace()?;
            }
        }
    }

    /// The blocks that one node wrote in one leaf.
    fn version(&mut self, tree: &Tree, node: Epoch, own: &EpochSet, leaf: u64) -> Result<()> {
        let shared = Arc::clone(&self.engine.shared);
        let reader = shared.pool.readers.register();
        let _reading = reader.enter(&shared.pool.readers);
        match tree.newest(&shared.meta, LeafIndex(leaf), own)? {
            Some((_, of_node)) => self.leaf(tree, node, leaf, &of_node, |b| own.contains(b)),
            None => Ok(()),
        }
    }

    fn leaf(
        &mut self,
        tree: &Tree,
        node: Epoch,
        index: u64,
        leaf: &Leaf,
        is_own: impl Fn(Epoch) -> bool,
    ) -> Result<()> {
        let own: Vec<_> = leaf.data().filter(|(_, _, birth, _)| is_own(*birth)).collect();
        let mut read = Vec::with_capacity(own.len());
        let shared = Arc::clone(&self.engine.shared);
        let pool = &shared.pool;
        pool.file.read_each(own.iter().map(|(_, pbn, ..)| pbn.offset()), |page| {
            read.push(page.map(crc32c));
        });
        for ((slot, pbn, birth, crc), found) in own.into_iter().zip(read) {
            let damaged = match found {
                Ok(found) => found != crc,
                Err(error) if error.kind() == ErrorKind::Io => true,
                Err(error) => return Err(error),
            };
            self.bytes += BLOCK_SIZE;
            self.job.done.store(self.bytes, Ordering::Relaxed);
            // Freed since the leaf was read: no longer anybody's.
            if damaged && pool.with_allocator(|a| a.is_used(pbn)) {
                let offset = (LeafIndex(index).first().0 + slot as u64) * BLOCK_SIZE;
                self.found(tree, node, birth, offset, pbn);
            }
        }
        Ok(())
    }

    fn found(&mut self, tree: &Tree, node: Epoch, birth: Epoch, offset: u64, pbn: Pbn) {
        self.bad_count += 1;
        let lba = Lba(offset / BLOCK_SIZE);
        self.engine.corrupt.damages.add(Damage { tree: tree.id, lba, pbn });
        self.engine.corrupt.count.fetch_add(1, Ordering::Relaxed);
        if self.bad.len() >= FINDINGS_MAX {
            return;
        }
        let holders = self.engine.holders(tree, node).join(", ");
        let line = format!("offset {offset}, written in epoch {birth}, held by {holders}");
        tracing::error!(line, "scrub found a damaged block");
        let told = {
            let _shape = self.engine.shape.lock();
            self.engine.note(Actor::DAEMON, "pool.corrupt-block", "pool", line.clone())
        };
        if let Err(error) = told {
            tracing::warn!(%error, "a finding could not be noted");
        }
        self.bad.push(line);
    }

    /// Waits until the bytes read so far fit the rate, or somebody cancels.
    fn pace(&self) -> Result<()> {
        loop {
            if self.job.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "the scrub was cancelled"));
            }
            if self.rate == 0 {
                return Ok(());
            }
            let due = Duration::from_secs_f64(self.bytes as f64 / self.rate as f64);
            let Some(early) = due.checked_sub(self.began.elapsed()) else { return Ok(()) };
            std::thread::sleep(early.min(CANCEL_NOTICED));
        }
    }
}

impl Engine {
    /// The disks and snapshots that may hold a block of a node: it and all that descend from it.
    pub(super) fn holders(&self, tree: &Tree, node: Epoch) -> Vec<String> {
        let catalogue = self.catalogue.read();
        let nodes = tree.nodes.lock();
        let descends = |of: Epoch| nodes.ancestry(of).any(|(epoch, _)| epoch == node);
        let disks = catalogue.disks.values().filter(|d| d.tree == tree.id && descends(d.head));
        let snapshots =
            catalogue.snapshots.values().filter(|s| s.tree == tree.id && descends(s.node));
        let named = |s: &super::SnapshotRecord| {
            let disk = catalogue.disks.get(&s.disk).map_or(s.disk.as_str(), |d| &d.name);
            format!("{disk}@{}", s.name)
        };
        disks.map(|d| d.name.clone()).chain(snapshots.map(named)).collect()
    }
}
