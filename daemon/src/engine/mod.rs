//! The engine: owner of the pool, the map and the catalogue; the only writer of the catalogue.
//!
//! Invariants: each change of the catalogue is one journal record, made durable before the caller gets
//! its answer; changes of the shape of trees happen one at a time; what a record does is done by
//! [`Engine::apply`], live and at replay alike.
//! Absent: protocols. `nbd/` opens disks here, `control/` calls the verbs.

pub mod api;
pub mod attachments;
mod background;
pub mod catalogue;
pub mod check;
mod checkpoint;
mod clients;
mod consistency;
pub mod copies;
mod diff;
mod disks;
mod exports;
mod families;
pub mod filled;
pub mod filling;
mod freed;
pub mod groups;
pub mod heal;
pub mod images;
mod info;
pub mod instances;
pub mod jobs;
pub mod keys;
mod making;
pub mod meters;
mod names;
pub mod policies;
mod policy_copies;
mod policy_groups;
mod policy_instances;
pub mod presence;
pub mod protect;
mod recovery;
pub mod repos;
pub mod returning;
mod scrub;
mod snapshots;
mod tail;
mod trash;
pub mod usage;
mod warm;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex, RwLock, RwLockWriteGuard};

use crate::crypt;
use crate::disk::{Disk, Witness};
use crate::error::{Error, Result};
use crate::faults;
use crate::map::signal::Signal;
use crate::map::tree::Tree;
use crate::map::view::{Shared, State, View};
use crate::pool::file::IoMode;
use crate::pool::journal::{HEADER_BYTES, Kind, MAX_RECORD};
use crate::units::{DiskId, Lba, Pbn, SnapshotId, TreeId};
use api::{Actor, ScrubReport};
use catalogue::{Catalogue, Cut, DiskRecord, Entry, NewDisk, Op, SnapshotRecord, Turn};
pub use clients::{ClientGuard, Hangup, Pin};
pub use disks::{RETURNED, TAGS_MAX};
pub use exports::{Origins, Target};
pub use families::FillTarget;
pub use names::SnapshotName;

/// The largest pool: block numbers have 40 bits, and the journal takes some of them.
pub const MAX_POOL_BYTES: u64 = 1 << 51;

/// What the engine needs to know from the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Holds `pool` (unless that is elsewhere) and `map/`.
    pub dir: PathBuf,
    /// The pool file or block device.
    pub pool: PathBuf,
    /// How the pool file is read and written.
    pub io: IoMode,
    pub segment_bytes: u64,
    pub journal_bytes: u64,
    /// Bytes of data the pool may grow to; for a new pool only.
    pub max_bytes: u64,
    /// Bytes left free on the host's file system.
    pub host_reserve: u64,
    /// Memory for cached leaves.
    pub map_cache: usize,
    pub quota_manual: usize,
    pub quota_auto: usize,
    pub quota_policies: usize,
    /// How long the state before a rollback is kept.
    pub undo_kept: Duration,
    /// How long a deleted disk can be brought back.
    pub trash_kept: Duration,
    /// The longest time that acknowledged writes stay without a flush.
    pub flush_every: Duration,
    pub checkpoint_every: Duration,
    /// Bytes per second a scrub reads unless told otherwise.
    pub scrub_rate: u64,
    /// The part of what clients do that uploads may cost them; 1 for all of it.
    pub copy_cost: f64,
    /// Where master keys are.
    pub encryption: crypt::master::Settings,
    /// Whether background threads run; tests drive the work themselves.
    pub background: bool,
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    shared: Arc<Shared>,
    catalogue: RwLock<Catalogue>,
    trees: RwLock<BTreeMap<TreeId, Arc<Tree>>>,
    disks: RwLock<HashMap<DiskId, Arc<Disk>>>,
    families: Mutex<families::Families>,
    keys: keys::Keys,
    /// Snapshots opened as exports.
    opened: Mutex<HashMap<SnapshotId, Weak<Disk>>>,
    /// Who has the blocks of those that are only in a repository.
    origins: OnceLock<Box<dyn Origins>>,
    /// Held by whoever changes the shape of trees.
    shape: Mutex<()>,
    checkpointing: Mutex<()>,
    meters: meters::Meters,
    clients: clients::Clients,
    /// How the kernel devices are, as far as anybody has told.
    device_states: Mutex<HashMap<DiskId, api::AttachmentState>>,
    jobs: jobs::Jobs,
    making: making::Makings,
    corrupt: Arc<CorruptBlocks>,
    /// Blocks that were stored anew since the start.
    healed: AtomicU64,
    reclaim_wanted: Signal,
    new_event: (Mutex<()>, Condvar),
    last_scrub: Mutex<Option<ScrubReport>>,
    recovery: Recovery,
    stopping: Signal,
    closing: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the last start had to do.
#[derive(Clone, Copy, Debug, Default)]
struct Recovery {
    seconds: f64,
    records: u64,
}

/// Blocks that failed their checksum since the start, those not yet told as events, and those to be healed.
#[derive(Debug, Default)]
struct CorruptBlocks {
    count: AtomicU64,
    untold: Mutex<Vec<(String, Lba, Pbn)>>,
    damages: heal::Damages,
}

/// More corrupt blocks than this wait for their event; the count goes on.
const UNTOLD_MAX: usize = 1000;

impl Witness for CorruptBlocks {
    fn corrupt_block(&self, disk: &str, tree: TreeId, lba: Lba, pbn: Pbn) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.damages.add(heal::Damage { tree, lba, pbn });
        tracing::error!(disk, %lba, %pbn, "a block is not what was written");
        let mut untold = self.untold.lock();
        let found = (disk.to_owned(), lba, pbn);
        if untold.len() < UNTOLD_MAX && !untold.contains(&found) {
            untold.push(found);
        }
    }
}

/// Tries to lock several heads together before they are taken one by one. Heads that are written to all
/// the time are free most of it.
const LOCK_TRIES: usize = 100;

/// The present of a disk, locked against changes.
type Head<'a> = RwLockWriteGuard<'a, State>;

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    time_of_day(faults::clock())
}

/// Seconds since 1970 on a clock that a test has moved.
#[must_use]
pub fn time_of_day(shift: faults::ClockShift) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    now.saturating_add_signed(shift.wall)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Engine {
    /// What was configured.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Makes every acknowledged write durable, writes a last checkpoint and ends background work.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn close(&self) -> Result<()> {
        self.closing.store(true, Ordering::SeqCst);
        self.stopping.raise();
        self.reclaim_wanted.raise();
        self.shared.checkpoint_wanted.raise();
        self.shared.pool.end_write_back();
        self.jobs.cancel_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                self.shared.pool.file.stop("a background thread panicked");
            }
        }
        self.checkpoint()
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Appends a change to the journal, applies it and makes it durable. The caller holds `shape`.
    fn change(&self, by: Actor, op: Op, message: String) -> Result<()> {
        let heads = self.heads_of(&op)?;
        let entry = Entry { at: now(), uid: by.uid, pid: by.pid, op, message };
        let body = catalogue::encode(&entry)?;
        if body.len() > MAX_RECORD - HEADER_BYTES {
            return Err(Error::invalid("the description and tags are too long for one record"));
        }
        self.sync_before_release(&entry.op)?;
        let held = {
            let _room = self.shared.reserve(body.len())?;
            let _whole = self.shared.barrier.read();
            // Before the heads: somebody who only asks must not keep writers waiting with us.
            let mut catalogue = self.catalogue.write();
            let op = entry.op.clone();
            // All heads at once: nothing is written to any of these disks between append and apply, so
            // the record is the same instant for all of them.
            let (mut states, began) = lock_all(&heads);
            self.shared.pool.append(Kind::Catalogue, &body)?;
            self.apply(&mut catalogue, &entry, op, &mut states)
                .inspect_err(|e| self.shared.pool.file.stop(e.message()))?;
            drop(states);
            began.elapsed()
        };
        match entry.op {
            Op::SnapshotCreate(_) | Op::GroupCreate { .. } | Op::ImageCreate { .. } => {
                faults::fail_point("snapshot.journaled");
                // What a writer may have waited for the cut, without the sync that follows. An image of
                // snapshots cuts nothing.
                if !heads.is_empty() {
                    tracing::info!(disks = heads.len(), held_us = held.as_micros(), "cut");
                }
            }
            Op::Rollback { .. } | Op::GroupRollback { .. } => {
                faults::fail_point("rollback.journaled");
            }
            Op::DiskReturn { .. } => faults::fail_point("return.journaled"),
            Op::DiskReturned { .. } => faults::fail_point("return.ready"),
            Op::DiskAbandon { .. } => faults::fail_point("return.abandoned"),
            Op::SnapshotCopied { .. } => faults::fail_point("life.copied"),
            Op::SnapshotLeave { .. } => faults::fail_point("life.left"),
            Op::SnapshotDelete { .. } => faults::fail_point("life.deleted"),
            _ => {}
        }
        self.shared.pool.sync()?;
        self.new_event.1.notify_all();
        log_event(&entry);
        Ok(())
    }

    /// The views whose state a change needs, in the order in which it names their disks.
    fn heads_of(&self, op: &Op) -> Result<Vec<Arc<View>>> {
        let disks = self.disks.read();
        op.heads().into_iter().map(|id| Ok(Arc::clone(&known(disks.get(id))?.view))).collect()
    }

    /// Applies an entry again, at start.
    fn apply_locked(&self, entry: &Entry, heads: &[Arc<View>]) -> Result<()> {
        let (mut states, _) = lock_all(heads);
        self.apply(&mut self.catalogue.write(), entry, entry.op.clone(), &mut states)
    }

    /// Does what an entry says, which is `op`. `heads` are the locked states of the disks it names.
    fn apply(
        &self,
        catalogue: &mut Catalogue,
        entry: &Entry,
        op: Op,
        heads: &mut [Head<'_>],
    ) -> Result<()> {
        catalogue.add_event(entry);
        match op {
            Op::DiskCreate(disk) => self.apply_new_disk(catalogue, disk),
            Op::DiskUpdate { disk, .. } => {
                if let Some(live) = self.disks.read().get(&disk.id) {
                    live.set_size(disk.size);
                    live.set_read_only(disk.read_only);
                }
                catalogue.put_disk(disk);
            }
            Op::DiskDelete { id, snapshots } => {
                self.apply_disk_delete(catalogue, (&id, &snapshots), known(heads.first_mut())?)?;
            }
            Op::DiskTrash { id, until } => {
                let head = known(heads.first_mut())?;
                self.apply_trash(catalogue, (&id, entry.at, until), head)?;
            }
            Op::DiskRestore { disk } => self.apply_restore(catalogue, disk)?,
            Op::DiskPurge { id, snapshots } => self.apply_purge(catalogue, &id, &snapshots)?,
            Op::SnapshotCreate(cut) => self.apply_cuts(catalogue, vec![cut], heads)?,
            Op::SnapshotUpdate { snapshot, .. } => catalogue.put_snapshot(snapshot),
            Op::SnapshotDelete { id, .. } => self.apply_snapshot_delete(catalogue, &id)?,
            Op::SnapshotLeave { id } => self.apply_leave(catalogue, &id)?,
            Op::Rollback { turn, .. } => {
                self.apply_way_back(catalogue, (vec![turn], vec![]), heads)?
            }
            Op::GroupCreate { group, cuts } => {
                self.apply_cuts(catalogue, cuts, heads)?;
                catalogue.put_group(group);
            }
            Op::GroupDelete { id, snapshots, .. } => {
                known(catalogue.remove_group(&id))?;
                self.apply_snapshot_deletes(catalogue, &snapshots)?;
            }
            Op::GroupRollback { turns, fillings, .. } => {
                self.apply_way_back(catalogue, (turns, fillings), heads)?;
            }
            Op::GroupUpdate { group, .. } => catalogue.put_group(group),
            Op::InstanceRemove { id, disks } => {
                known(catalogue.remove_instance(&id))?;
                for disk in disks {
                    let mut disk = known(catalogue.disks.get(&disk).cloned())?;
                    disk.instance = None;
                    catalogue.put_disk(disk);
                }
            }
            Op::ImageCreate { image, cuts } => {
                self.apply_cuts(catalogue, cuts, heads)?;
                catalogue.put_image(image);
            }
            Op::ImageUpdate { image, .. } => catalogue.put_image(image),
            Op::ImageDelete { id, snapshots } => {
                known(catalogue.remove_image(&id))?;
                self.apply_snapshot_deletes(catalogue, &snapshots)?;
            }
            Op::ImageDeploy { disks, .. } => {
                disks.into_iter().for_each(|disk| self.apply_new_disk(catalogue, disk));
            }
            op @ (Op::DiskFill { .. } | Op::DiskFilled { .. }) => {
                self.apply_filling(catalogue, op)?
            }
            op @ (Op::DiskReturn { .. } | Op::DiskAbandon { .. }) => {
                self.apply_return(catalogue, op, heads)?
            }
            Op::KeyRotate { keys } => catalogue.put_keys(keys),
            Op::Note { .. } => {}
            op => catalogue.apply_records(op)?,
        }
        Ok(())
    }

    fn apply_new_disk(&self, catalogue: &mut Catalogue, NewDisk { disk, parent, key }: NewDisk) {
        let tree = self.tree(disk.tree);
        tree.add(disk.head, parent);
        if let Some(key) = key {
            catalogue.put_key(disk.tree, key);
        }
        self.go_live(catalogue, &disk, &tree);
        catalogue.put_disk(disk);
    }

    fn apply_cuts(
        &self,
        catalogue: &mut Catalogue,
        cuts: Vec<Cut>,
        heads: &mut [Head<'_>],
    ) -> Result<()> {
        for (Cut { snapshot, head: next, copy }, head) in cuts.into_iter().zip(heads) {
            let mut disk = known(catalogue.disks.get(&snapshot.disk).cloned())?;
            let view = Arc::clone(&known(self.disks.read().get(&disk.id))?.view);
            self.found_family(catalogue, &disk, snapshot.node);
            view.advance(head, next);
            disk.head = next;
            catalogue.put_disk(disk);
            catalogue.begin_copy(&snapshot);
            if let Some(copy) = copy {
                catalogue.begin_policy_copy(&snapshot, copy);
            }
            catalogue.put_snapshot(snapshot);
        }
        Ok(())
    }

    fn apply_turns(
        &self,
        catalogue: &mut Catalogue,
        turns: Vec<Turn>,
        heads: &mut [Head<'_>],
    ) -> Result<()> {
        for (Turn { disk, head: next, parent, size, undo }, head) in turns.into_iter().zip(heads) {
            let mut disk = known(catalogue.disks.get(&disk).cloned())?;
            let old = Arc::clone(&known(self.disks.read().get(&disk.id))?.view);
            old.close(head);
            let tree = self.tree(disk.tree);
            tree.add(next, parent);
            disk.head = next;
            disk.size = size;
            self.go_live(catalogue, &disk, &tree);
            catalogue.put_disk(disk);
            catalogue.put_snapshot(undo);
        }
        Ok(())
    }

    fn apply_snapshot_deletes(&self, catalogue: &mut Catalogue, ids: &[SnapshotId]) -> Result<()> {
        ids.iter().try_for_each(|id| self.apply_snapshot_delete(catalogue, id))
    }

    fn apply_snapshot_delete(&self, catalogue: &mut Catalogue, id: &SnapshotId) -> Result<()> {
        let snapshot = known(catalogue.remove_snapshot(id))?;
        catalogue.begin_delete_of_copy(&snapshot);
        catalogue.give_up_policy_copies(&snapshot);
        if snapshot.is_held() {
            self.tree(snapshot.tree).release(snapshot.node);
        }
        self.end_needless_families(catalogue);
        self.forget_unused_key(catalogue, snapshot.tree);
        self.reclaim_wanted.raise();
        Ok(())
    }

    fn apply_leave(&self, catalogue: &mut Catalogue, id: &SnapshotId) -> Result<()> {
        let mut snapshot = known(catalogue.snapshots.get(id).cloned())?;
        known(snapshot.presence.as_mut())?.pool = presence::InPool::Gone;
        self.tree(snapshot.tree).release(snapshot.node);
        catalogue.put_snapshot(snapshot);
        self.end_needless_families(catalogue);
        self.reclaim_wanted.raise();
        Ok(())
    }

    fn apply_disk_delete(
        &self,
        catalogue: &mut Catalogue,
        (id, snapshots): (&DiskId, &[SnapshotId]),
        head: &mut State,
    ) -> Result<()> {
        let disk = known(catalogue.remove_disk(id))?;
        catalogue.end_access_of(id);
        let live = known(self.disks.write().remove(id))?;
        live.view.close(head);
        self.tree(disk.tree).release(disk.head);
        self.forget_with_disk(catalogue, &disk, snapshots)
    }

    /// Makes a disk's head usable.
    fn go_live(&self, catalogue: &Catalogue, disk: &DiskRecord, tree: &Arc<Tree>) {
        let view = View::new(tree, &self.shared.budget, disk.head, true);
        let witness = Arc::clone(&self.corrupt) as Arc<dyn Witness>;
        let shared = Arc::clone(&self.shared);
        let sealing = self.sealing(catalogue, disk.tree);
        let live = Disk::new(disk.name.clone(), disk.size, view, shared, sealing, witness);
        self.join_family(catalogue, disk, &live);
        live.set_read_only(disk.read_only);
        self.disks.write().insert(disk.id.clone(), live);
    }

    /// The tree of this id, made if it does not exist yet.
    fn tree(&self, id: TreeId) -> Arc<Tree> {
        if let Some(found) = self.trees.read().get(&id) {
            return Arc::clone(found);
        }
        Arc::clone(self.trees.write().entry(id).or_insert_with(|| Tree::new(id)))
    }

    fn all_trees(&self) -> Vec<Arc<Tree>> {
        self.trees.read().values().cloned().collect()
    }

    fn live(&self, id: &DiskId) -> Result<Arc<Disk>> {
        let found = self.disks.read().get(id).cloned();
        found.ok_or_else(|| Error::not_found(format!("no disk {id}")))
    }

    fn record(&self, id: &DiskId) -> Result<DiskRecord> {
        let found = self.catalogue.read().disks.get(id).cloned();
        found
            .ok_or_else(|| Error::not_found(format!("no disk {id}")).hint("see `rowctl disk list`"))
    }

    fn snapshot_record(&self, id: &SnapshotId) -> Result<SnapshotRecord> {
        let found = self.catalogue.read().snapshots.get(id).cloned();
        found.ok_or_else(|| {
            Error::not_found(format!("no snapshot {id}")).hint("see `rowctl snapshot list`")
        })
    }
}

/// Locks heads, all at one time, and since when. One that is busy is waited for alone: whoever holds up one
/// disk holds up no other because of us.
fn lock_all(views: &[Arc<View>]) -> (Vec<Head<'_>>, Instant) {
    let mut busy = 0;
    for _ in 0..LOCK_TRIES {
        let Some(view) = views.get(busy) else { break };
        let mut first = Some(view.lock());
        let began = Instant::now();
        let mut states = Vec::with_capacity(views.len());
        let free = views.iter().enumerate().all(|(at, view)| {
            let state = if at == busy { first.take() } else { view.try_lock() };
            busy = if state.is_none() { at } else { busy };
            state.map(|state| states.push(state)).is_some()
        });
        if free {
            return (states, began);
        }
    }
    let began = Instant::now();
    (views.iter().map(|view| view.lock()).collect(), began)
}

/// The system log has every event too, where it can be searched by its fields.
fn log_event(entry: &Entry) {
    let (kind, object) = entry.op.event();
    if entry.op.is_told() {
        let Entry { uid, pid, message, .. } = entry;
        let of = |prefix: &str| Some(object).filter(|id| id.starts_with(prefix));
        tracing::info!(
            target: "rowd::event",
            event = kind,
            object,
            disk = entry.op.disk().map(DiskId::as_str).or(of("d-")),
            snapshot = of("s-"),
            group = of("ssg-"),
            image = of("m-"),
            policy = of("sp-"),
            copy = of("c-"),
            actor_uid = uid,
            actor_pid = pid,
            "{message}"
        );
    }
}

/// A record names something that must exist.
fn known<T>(found: Option<T>) -> Result<T> {
    found.ok_or_else(|| Error::corrupt("a catalogue record names what does not exist"))
}
