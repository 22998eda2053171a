//! What the engine has done and holds, in numbers for those who watch it.
//!
//! Invariants: asking costs what the catalogue is long, and never reads the store; counters only grow while the
//! daemon runs, and a disk keeps its counters over a rollback.
//! Absent: names and texts of metrics (`metrics/`), history (`usage.rs`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Engine;
use super::api::{AttachmentState, JobState};
use super::catalogue::Kind;
use super::clients::Subject;
use super::info::{mapped_blocks, refresh};
use super::now;
use crate::disk::meter::Meter;
pub use crate::disk::meter::{Done, Operation, Totals};
use crate::histogram::{Counted, Histogram};
use crate::units::{BLOCK_SIZE, DiskId, TreeId};

/// The counters of the engine.
#[derive(Debug)]
pub(super) struct Meters {
    since: (u64, Instant),
    disks: Mutex<HashMap<(DiskId, bool), Arc<Meter>>>,
    checkpoints: Histogram,
    last_checkpoint: AtomicU64,
    pub(super) reclaim_steps: AtomicU64,
    uploads_waited: AtomicU64,
}

impl Default for Meters {
    fn default() -> Self {
        Meters {
            since: (now(), Instant::now()),
            disks: Mutex::default(),
            checkpoints: Histogram::default(),
            last_checkpoint: AtomicU64::new(0),
            reclaim_steps: AtomicU64::new(0),
            uploads_waited: AtomicU64::new(0),
        }
    }
}

impl Meters {
    pub(super) fn checkpointed(&self, took: Duration) {
        self.checkpoints.add(1, took);
        self.last_checkpoint.store(now(), Ordering::Relaxed);
    }
}

/// What all clients together have got done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    pub requests: u64,
    /// From receipt to reply, added up over the requests.
    pub nanos: u64,
}

/// What clients did with a disk, or with its snapshots.
#[derive(Clone, Debug)]
pub struct DiskIo {
    /// The name of the disk, or the id of one that is gone.
    pub disk: String,
    /// Through exports of its snapshots.
    pub snapshots: bool,
    pub totals: Totals,
}

/// A disk in numbers.
#[derive(Clone, Debug)]
pub struct DiskNumbers {
    pub id: DiskId,
    pub name: String,
    pub size: u64,
    pub mapped_bytes: u64,
    /// Snapshots of it, without those that only undo a rollback.
    pub snapshots: u64,
    /// Bytes of its chain, shared blocks once.
    pub snapshot_bytes: u64,
    pub clients: u64,
    /// Whether its kernel device is there, if it is to have one.
    pub attached: Option<bool>,
}

/// What the engine has done since it was opened.
#[derive(Clone, Debug)]
pub struct Work {
    pub checkpoints: Counted,
    /// Zero before the first.
    pub last_checkpoint: u64,
    pub syncs: Counted,
    pub cache_misses: u64,
    pub reclaim_steps: u64,
    /// How long uploads waited to let clients go first.
    pub uploads_waited: Duration,
    /// The number of the last event.
    pub last_event: u64,
    pub copies_under_way: u64,
    pub copies_failed: u64,
    /// Policies that have made snapshots, by name, and when they last did.
    pub policies: Vec<(String, u64)>,
    /// What of policies stands still until somebody agrees.
    pub held: u64,
    /// Running jobs by kind.
    pub jobs: BTreeMap<String, u64>,
}

impl Engine {
    /// Where requests on an export are counted.
    pub(super) fn meter(&self, subject: &Subject) -> Arc<Meter> {
        let key = match subject {
            Subject::Disk(id) => (id.clone(), false),
            Subject::Snapshot(id) => {
                let catalogue = self.catalogue.read();
                let disk = catalogue.snapshots.get(id).map(|snapshot| snapshot.disk.clone());
                (disk.unwrap_or_else(|| DiskId::from(id.as_str())), true)
            }
        };
        Arc::clone(self.meters.disks.lock().entry(key).or_default())
    }

    /// Since when the counters count, in seconds since 1970, and for how long by now.
    #[must_use]
    pub fn counting_since(&self) -> (u64, Duration) {
        (self.meters.since.0, self.meters.since.1.elapsed())
    }

    /// What all clients together have got done since the daemon started. Less when a disk is gone.
    #[must_use]
    pub fn served(&self) -> Served {
        let mut served = Served::default();
        for meter in self.meters.disks.lock().values() {
            for done in meter.totals() {
                served.requests += done.took.count();
                served.nanos = served.nanos.saturating_add(done.took.nanos);
            }
        }
        served
    }

    /// An upload waited so long to let clients go first.
    pub fn upload_waited(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.meters.uploads_waited.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What clients did with each disk that had any since the daemon started, by name. A disk that is gone is
    /// forgotten when its last client is.
    #[must_use]
    pub fn disk_io(&self) -> Vec<DiskIo> {
        let catalogue = self.catalogue.read();
        let mut meters = self.meters.disks.lock();
        let chains: std::collections::BTreeSet<&DiskId> =
            catalogue.snapshots.values().map(|snapshot| &snapshot.disk).collect();
        let known = |id: &DiskId| catalogue.disks.contains_key(id) || chains.contains(id);
        meters.retain(|(id, _), meter| known(id) || Arc::strong_count(meter) > 1);
        let mut all: Vec<DiskIo> = meters
            .iter()
            .map(|((id, snapshots), meter)| DiskIo {
                disk: catalogue.disks.get(id).map_or_else(|| id.to_string(), |d| d.name.clone()),
                snapshots: *snapshots,
                totals: meter.totals(),
            })
            .collect();
        all.sort_by(|a, b| (&a.disk, a.snapshots).cmp(&(&b.disk, b.snapshots)));
        all
    }

    /// All disks in numbers, by name.
    #[must_use]
    pub fn disk_numbers(&self) -> Vec<DiskNumbers> {
        self.all_trees().iter().for_each(|tree| refresh(tree));
        let chains = self.chain_bytes();
        let connected = self.clients.connected();
        let states = self.device_states.lock().clone();
        let catalogue = self.catalogue.read();
        let mut all: Vec<DiskNumbers> = catalogue
            .disks
            .values()
            .map(|disk| {
                let mapped = mapped_blocks(&self.tree(disk.tree).nodes.lock(), disk.head);
                let (snapshots, snapshot_bytes) = chains.get(&disk.id).copied().unwrap_or_default();
                let attached = disk
                    .attachment
                    .map(|_| matches!(states.get(&disk.id), Some(AttachmentState::Attached)));
                DiskNumbers {
                    id: disk.id.clone(),
                    name: disk.name.clone(),
                    size: disk.size,
                    mapped_bytes: mapped * BLOCK_SIZE,
                    snapshots,
                    snapshot_bytes,
                    clients: connected.get(&disk.id).copied().unwrap_or(0),
                    attached,
                }
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Of each chain the number of its snapshots and the bytes they hold together.
    pub(super) fn chain_bytes(&self) -> BTreeMap<DiskId, (u64, u64)> {
        let mut by_tree: BTreeMap<TreeId, Vec<_>> = BTreeMap::new();
        for snapshot in self.catalogue.read().snapshots.values() {
            let counts = snapshot.kind != Kind::Undo;
            let one = (snapshot.node, snapshot.disk.clone(), counts);
            by_tree.entry(snapshot.tree).or_default().push(one);
        }
        let mut chains: BTreeMap<DiskId, (u64, u64)> = BTreeMap::new();
        for (tree, snapshots) in by_tree {
            let tree = self.tree(tree);
            let nodes = tree.nodes.lock();
            for (node, disk, counts) in snapshots {
                let chain = chains.entry(disk).or_default();
                chain.0 += u64::from(counts);
                chain.1 += nodes.all.get(&node).map_or(0, |node| node.live) * BLOCK_SIZE;
            }
        }
        chains
    }

    /// When each policy last made its snapshots, and how much of them stands still.
    fn policies_at_work(&self) -> (Vec<(String, u64)>, u64) {
        let catalogue = self.catalogue.read();
        let policies = catalogue.policies.values();
        let last = policies.filter_map(|one| Some((one.spec.name.clone(), one.last_success?)));
        (last.collect(), catalogue.holds.len() as u64)
    }

    /// What the engine has done since it was opened.
    #[must_use]
    pub fn work(&self) -> Work {
        let mut jobs = BTreeMap::new();
        for job in self.jobs().into_iter().filter(|job| job.state == JobState::Running) {
            *jobs.entry(job.kind).or_default() += 1;
        }
        let (policies, held) = self.policies_at_work();
        let (copies_failed, copies, last_event) = {
            let catalogue = self.catalogue.read();
            let failed = catalogue.copies.values().filter(|copy| copy.failed.is_some()).count();
            let last_event = catalogue.events.back().map_or(0, |event| event.seq);
            (failed as u64, catalogue.copies.len() as u64, last_event)
        };
        Work {
            checkpoints: self.meters.checkpoints.counted(),
            last_checkpoint: self.meters.last_checkpoint.load(Ordering::Relaxed),
            syncs: self.shared.pool.file.syncs.counted(),
            cache_misses: self.shared.budget.misses.load(Ordering::Relaxed),
            reclaim_steps: self.meters.reclaim_steps.load(Ordering::Relaxed),
            uploads_waited: Duration::from_nanos(
                self.meters.uploads_waited.load(Ordering::Relaxed),
            ),
            last_event,
            copies_under_way: copies - copies_failed,
            copies_failed,
            policies,
            held,
            jobs,
        }
    }
}
