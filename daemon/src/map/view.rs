//! A view: the blocks of one disk or snapshot, with a bounded cache of leaves.
//!
//! Invariants: a leaf is dirty, or clean, or not in memory; dirty leaves belong to the view's own node
//! and stay until a checkpoint cuts them; a look-up overtaken by a checkpoint is repeated. A change is
//! appended to the journal and applied under one lock, so journal order is the order of effects. The rule
//! of freeing: a replaced block is free when it was born in the view's own node, else it stays for the
//! ancestor that owns it.
//! Absent: data, bytes and requests (`disk/`), and which view a name means (`engine/`).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock, RwLockWriteGuard};
use rustc_hash::FxHashMap;

use super::apply::{Applied, apply};
use super::cache::{CLEAN_FLOOR, Clean};
use super::leaf::{Entry, LEAF_MEMORY, Leaf};
use super::lineage::Lineage;
use super::record::{Change, Staged, changes};
use super::signal::Signal;
use super::tree::Tree;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::meta::Meta;
use crate::pool::Pool;
use crate::pool::journal::{Kind, Reservation};
use crate::units::{BlockRange, Epoch, Lba, LeafIndex, Seq};

/// Up to this many leaves a range is walked leaf by leaf; a longer one only where something is mapped.
const SMALL_RANGE: u64 = 64;

/// What all views share: the store, the pool, and the bounds of the cache.
#[derive(Debug)]
pub struct Shared {
    pub meta: Meta,
    pub pool: Pool,
    /// Held for reading while a record is appended and applied; a checkpoint cuts under the write lock.
    pub barrier: RwLock<()>,
    pub budget: Arc<Budget>,
    /// Set to ask for a checkpoint soon.
    pub checkpoint_wanted: Signal,
    /// The checkpointer does not look for now: whoever writes next wakes it.
    pub resting: AtomicBool,
}

impl Shared {
    /// Waits until there is room for a record and for the leaves it dirties.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation<'_>> {
        if self.resting.load(Ordering::Relaxed) && self.resting.swap(false, Ordering::Relaxed) {
            self.checkpoint_wanted.wake();
        }
        while self.budget.dirty.load(Ordering::Relaxed) > self.budget.dirty_limit {
            self.pool.file.check_running()?;
            self.checkpoint_wanted.raise();
            self.budget.wait_for_clean();
        }
        self.pool.journal.reserve(&self.pool.file, bytes, || {
            self.checkpoint_wanted.raise();
            self.pool.file.check_running()
        })
    }
}

/// Bounds and use of the leaf cache, in leaves.
#[derive(Debug)]
pub struct Budget {
    pub clean_limit: usize,
    pub dirty_limit: usize,
    pub clean: AtomicUsize,
    pub dirty: AtomicUsize,
    /// Leaves that were wanted and not in memory.
    pub misses: AtomicU64,
    cleaned: (Mutex<()>, Condvar),
}

impl Budget {
    /// Bounds for `bytes` of memory, a quarter of it for dirty leaves.
    #[must_use]
    pub fn new(bytes: usize) -> Budget {
        let leaves = (bytes / LEAF_MEMORY).max(4 * CLEAN_FLOOR);
        let (clean, dirty) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (misses, cleaned) = (AtomicU64::new(0), Default::default());
        let (clean_limit, dirty_limit) = (leaves - leaves / 4, leaves / 4);
        Budget { clean_limit, dirty_limit, clean, dirty, misses, cleaned }
    }

    /// Notes that dirty leaves were written by a checkpoint.
    pub fn cleaned(&self, leaves: usize) {
        self.dirty.fetch_sub(leaves, Ordering::Relaxed);
        self.cleaned.1.notify_all();
    }

    fn wait_for_clean(&self) {
        let mut guard = self.cleaned.0.lock();
        self.cleaned.1.wait_for(&mut guard, Duration::from_millis(20));
    }

    /// Memory the cached leaves take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let leaves = self.clean.load(Ordering::Relaxed) + self.dirty.load(Ordering::Relaxed);
        leaves * LEAF_MEMORY
    }
}

/// What a view is now.
#[derive(Debug)]
pub struct State {
    pub node: Epoch,
    pub lineage: Arc<Lineage>,
    /// Blocks born in the node and allocated.
    pub live: u64,
    /// Blocks born in ancestors that the parent sees and this view no longer does.
    pub dead: BTreeMap<Epoch, u64>,
    /// A deleted parent whose blocks below the leaf are this node's by now (`reclaim.rs`).
    pub absorbing: Option<(Epoch, u64)>,
    pub(super) dirty: FxHashMap<u64, Arc<Leaf>>,
    pub(super) clean: FxHashMap<u64, Clean>,
    pub(super) clock: VecDeque<u64>,
    /// Counts the times dirty leaves were moved out.
    cuts: u64,
    /// No further changes: the disk was rolled back or deleted.
    closed: bool,
}

/// Who has to free a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    This,
    Ancestor(Epoch),
}

/// The blocks of one disk or snapshot.
#[derive(Debug)]
pub struct View {
    pub tree: Arc<Tree>,
    pub writable: bool,
    budget: Arc<Budget>,
    state: RwLock<State>,
}

/// Leaves loaded without the lock, and at which point.
#[derive(Debug)]
pub struct Loaded {
    /// Node, cuts and retirements when it was loaded: if one has changed since, load again.
    moment: (Epoch, u64, u64),
    /// All leaves the changes may touch, ascending.
    needed: Vec<u64>,
    /// Those of them that were not in memory.
    leaves: BTreeMap<u64, (Arc<Leaf>, Epoch)>,
}

impl View {
    /// A view of a node; `writable` makes it the node's head.
    #[must_use]
    pub fn new(tree: &Arc<Tree>, budget: &Arc<Budget>, node: Epoch, writable: bool) -> Arc<View> {
        let mut nodes = tree.nodes.lock();
        let lineage = Arc::new(nodes.lineage(node));
        let kept = nodes.all.get(&node);
        let state = State {
            node,
            lineage,
            live: kept.map_or(0, |n| n.live),
            dead: kept.map(|n| n.dead.clone()).unwrap_or_default(),
            absorbing: nodes.absorbed_by(node).filter(|_| writable),
            dirty: FxHashMap::default(),
            clean: FxHashMap::default(),
            clock: VecDeque::new(),
            cuts: 0,
            closed: false,
        };
        let (tree_ref, budget) = (Arc::clone(tree), Arc::clone(budget));
        let state = RwLock::new(state);
        let view = Arc::new(View { tree: tree_ref, writable, budget, state });
        nodes.views.push(Arc::downgrade(&view));
        view
    }

    /// The entries of a range of blocks, through `each`, in order. The caller is inside a
    /// [`crate::pool::readers::Reading`] if it goes on to use the addresses.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn look_up(
        &self,
        shared: &Shared,
        range: BlockRange,
        mut each: impl FnMut(Lba, Entry),
    ) -> Result<()> {
        let mut leaves = range.leaves();
        let mut next = leaves.next();
        while let Some(index) = next {
            let state = self.state.read();
            let mut here = Some(index);
            // As many leaves as are in memory under one lock.
            while let Some(index) = here {
                let Some(leaf) = state.find(index) else { break };
                let part = LeafIndex(index).blocks().clip(range);
                for lba in part.start..part.end {
                    let (_, slot) = Lba(lba).split();
                    each(Lba(lba), leaf.get(slot));
                }
                here = leaves.next();
            }
            drop(state);
            if let Some(missing) = here {
                self.load(shared, missing)?;
            }
            next = here;
        }
        Ok(())
    }

    /// Whether all leaves of a range are in memory.
    #[must_use]
    pub fn is_cached(&self, range: BlockRange) -> bool {
        let state = self.state.read();
        range.leaves().all(|index| state.find(index).is_some())
    }

    /// The leaves that may be mapped in a range: all of a small one, else those some version exists of.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn mapped_leaves(&self, shared: &Shared, range: BlockRange) -> Result<Vec<u64>> {
        let leaves = range.leaves();
        if leaves.end - leaves.start <= SMALL_RANGE {
            return Ok(leaves.collect());
        }
        // Dirty leaves first: they can only move on to where we look next.
        let mut found: Vec<u64> = {
            let state = self.state.read();
            state.dirty.keys().copied().filter(|leaf| leaves.contains(leaf)).collect()
        };
        found.extend(self.tree.mapped_leaves(&shared.meta, leaves.start, leaves.end)?);
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Appends what is staged to the journal and applies it, if the blocks in `expect` are still what
    /// the caller read; `Ok(None)` when one is not, and nothing happened.
    ///
    /// # Errors
    /// The view is closed, the pool has stopped, or the store cannot be read.
    pub fn commit(
        &self,
        shared: &Shared,
        staged: &mut Staged,
        expect: &[(Lba, Entry)],
    ) -> Result<Option<Seq>> {
        loop {
            let loaded = self.prepare(shared, staged.bytes())?;
            let _whole = shared.barrier.read();
            let mut state = self.state.write();
            if !state.has_all(&loaded, self.tree.retired()) {
                continue;
            }
            state.check_open()?;
            if !faults::seeded("h5-no-recheck-of-merged-block")
                && expect.iter().any(|(lba, entry)| state.entry(&loaded, *lba) != *entry)
            {
                return Ok(None);
            }
            let body = staged.addressed(self.tree.id, state.node);
            let seq = shared.pool.append(Kind::Data, body)?;
            faults::fail_point("write.journaled");
            self.apply_locked(shared, &mut state, &loaded, seq, body)?;
            return Ok(Some(seq));
        }
    }

    /// Applies a data record again, at start.
    ///
    /// # Errors
    /// `Corrupt` when the record does not fit the map.
    pub fn replay(&self, shared: &Shared, seq: Seq, body: &[u8]) -> Result<()> {
        let loaded = self.prepare(shared, body)?;
        let mut state = self.state.write();
        self.apply_locked(shared, &mut state, &loaded, seq, body)
    }

    /// Moves the dirty leaves out for a checkpoint or because the node is frozen.
    pub fn cut(&self, state: &mut State) {
        state.cuts += 1;
        self.tree.freeze(state.node, std::mem::take(&mut state.dirty));
    }

    /// Freezes the node of this head as it is and goes on as the head of `next`, its new child.
    pub fn advance(&self, state: &mut State, next: Epoch) {
        self.cut(state);
        self.store_counters(state);
        self.tree.add(next, Some(state.node));
        state.node = next;
        state.lineage = self.tree.lineage(next);
        state.live = 0;
        state.dead.clear();
        state.absorbing = None;
    }

    /// Copies the counters of a head to its node, where a checkpoint finds them.
    pub fn store_counters(&self, state: &State) {
        let mut nodes = self.tree.nodes.lock();
        if let Some(node) = nodes.all.get_mut(&state.node)
            && (node.live != state.live || node.dead != state.dead)
        {
            node.live = state.live;
            node.dead.clone_from(&state.dead);
            nodes.touched.insert(state.node);
        }
    }

    /// The view's state, locked against changes.
    pub fn lock(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write()
    }

    /// As [`View::lock`], if it is free now.
    pub fn try_lock(&self) -> Option<RwLockWriteGuard<'_, State>> {
        self.state.try_write()
    }

    /// Runs `look` on the state.
    pub fn with<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read())
    }

    /// Whether this is the head of its node and takes changes.
    #[must_use]
    pub fn is_open_head(&self, node: Epoch) -> bool {
        self.writable && self.with(|state| state.node == node && !state.closed)
    }

    /// Refuses all further changes.
    pub fn close(&self, state: &mut State) {
        self.cut(state);
        self.store_counters(state);
        state.closed = true;
    }

    /// Puts leaves that a checkpoint has written into the clean cache, if they are still the newest.
    pub fn keep_clean(&self, owner: Epoch, leaves: &[(u64, Arc<Leaf>)]) {
        let mut state = self.state.write();
        if state.node != owner {
            return;
        }
        for (index, leaf) in leaves {
            if state.find(*index).is_none() {
                state.insert_clean(&self.budget, *index, Arc::clone(leaf), owner);
            }
        }
    }

    /// The node this is a view of.
    #[must_use]
    pub fn node(&self) -> Epoch {
        self.with(|state| state.node)
    }

    /// The leaves that changed since the last checkpoint or snapshot.
    #[must_use]
    pub fn dirty_leaves(&self) -> Vec<u64> {
        self.with(|state| state.dirty.keys().copied().collect())
    }

    /// A leaf that changed since the last checkpoint or snapshot.
    #[must_use]
    pub fn dirty_leaf(&self, index: u64) -> Option<Arc<Leaf>> {
        self.with(|state| state.dirty.get(&index).cloned())
    }

    /// Changes a leaf where it is in memory: a dirty one is changed, a clean one forgotten.
    pub(super) fn revise(&self, index: u64, change: impl FnOnce(&mut Leaf)) {
        let mut state = self.state.write();
        state.remove_clean(&self.budget, index);
        if let Some(leaf) = state.dirty.get_mut(&index) {
            change(Arc::make_mut(leaf));
        }
    }

    /// As [`View::dirty_leaf`], with the node it is of.
    pub(super) fn dirty_version(&self, index: u64) -> Option<(Epoch, Arc<Leaf>)> {
        self.with(|state| Some((state.node, state.dirty.get(&index).cloned()?)))
    }

    /// Drops clean leaves until at most `keep` are left.
    pub fn shrink(&self, keep: usize) {
        let mut state = self.state.write();
        while state.clean.len() > keep && state.evict_one(&self.budget) {}
    }

    /// Number of clean leaves in memory.
    #[must_use]
    pub fn clean_count(&self) -> usize {
        self.state.read().clean.len()
    }

    fn load(&self, shared: &Shared, index: u64) -> Result<()> {
        self.budget.misses.fetch_add(1, Ordering::Relaxed);
        let retired = self.tree.retired();
        let (lineage, cuts) = self.with(|state| (Arc::clone(&state.lineage), state.cuts));
        let found = self.tree.newest(&shared.meta, LeafIndex(index), &*lineage)?;
        let (epoch, leaf) = found.unwrap_or_default();
        let mut state = self.state.write();
        // A cut too: the leaf may have become dirty and left memory again since it was looked up.
        let overtaken = self.tree.retired() != retired
            || state.cuts != cuts
            || !Arc::ptr_eq(&lineage, &state.lineage);
        if !overtaken && state.find(index).is_none() {
            state.insert_clean(&self.budget, index, leaf, epoch);
        }
        Ok(())
    }

    /// Loads what the changes need and is not in memory, without the lock.
    fn prepare(&self, shared: &Shared, body: &[u8]) -> Result<Loaded> {
        let (moment, lineage) = self.with(|state| {
            ((state.node, state.cuts, self.tree.retired()), Arc::clone(&state.lineage))
        });
        let mut needed = Vec::new();
        for change in changes(body) {
            let change = change?;
            match visits_all(&change) {
                true => needed.extend(change.range().leaves()),
                false => needed.extend(self.mapped_leaves(shared, change.range())?),
            }
        }
        needed.sort_unstable();
        needed.dedup();
        let mut missing = Vec::new();
        self.with(|state| missing.extend(needed.iter().filter(|i| state.find(**i).is_none())));
        self.budget.misses.fetch_add(missing.len() as u64, Ordering::Relaxed);
        let mut leaves = BTreeMap::new();
        for index in missing {
            let found = self.tree.newest(&shared.meta, LeafIndex(index), &*lineage)?;
            let (epoch, leaf) = found.unwrap_or_default();
            leaves.insert(index, (leaf, epoch));
        }
        Ok(Loaded { moment, needed, leaves })
    }

    fn apply_locked(
        &self,
        shared: &Shared,
        state: &mut State,
        loaded: &Loaded,
        seq: Seq,
        body: &[u8],
    ) -> Result<()> {
        let mut applied = Applied::default();
        for change in changes(body) {
            let change = change?;
            let leaves = change.range().leaves();
            if visits_all(&change) {
                apply(state, &self.budget, loaded, change, leaves, &mut applied)?;
            } else {
                let leaves = state.leaves_of(loaded, leaves).into_iter();
                apply(state, &self.budget, loaded, change, leaves, &mut applied)?;
            }
        }
        if !applied.dropped.is_empty() {
            self.tree.nodes.lock().dropped.append(&mut applied.dropped);
        }
        let era = shared.pool.readers.now();
        let settled =
            shared.pool.with_allocator(|a| a.apply(seq, era, &applied.taken, &applied.freed));
        settled.inspect_err(|error| shared.pool.file.stop(error.message()))
    }
}

/// Whether a change has to visit all leaves of its range, not only the mapped ones: data makes its leaves
/// mapped, and for few leaves asking which are mapped costs more than visiting them.
fn visits_all(change: &Change<'_>) -> bool {
    let leaves = change.range().leaves();
    let maps = matches!(change, Change::Write { .. } | Change::Blank(_));
    maps || leaves.end - leaves.start <= SMALL_RANGE
}

impl Loaded {
    pub(super) fn take(&self, index: u64) -> Option<(Arc<Leaf>, Epoch)> {
        self.leaves.get(&index).map(|(leaf, epoch)| (Arc::clone(leaf), *epoch))
    }
}

impl State {
    pub(super) fn find(&self, index: u64) -> Option<&Leaf> {
        if let Some(leaf) = self.dirty.get(&index) {
            return Some(leaf);
        }
        let clean = self.clean.get(&index)?;
        if !clean.recent.load(Ordering::Relaxed) {
            clean.recent.store(true, Ordering::Relaxed);
        }
        Some(&clean.leaf)
    }

    /// Whose blocks of this birth, met in this leaf, are.
    pub(super) fn owner(&self, birth: Epoch, leaf: u64) -> Owner {
        let owner = self.lineage.owner(birth).unwrap_or_default();
        let absorbed = self.absorbing.is_some_and(|(node, below)| owner == node && leaf < below);
        if owner == self.node || absorbed { Owner::This } else { Owner::Ancestor(owner) }
    }

    /// Whether further changes are refused.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// How often dirty leaves were moved out.
    pub(super) fn cuts(&self) -> u64 {
        self.cuts
    }

    /// Whether everything the changes need is in memory or was loaded, and nothing moved since.
    fn has_all(&self, loaded: &Loaded, retired: u64) -> bool {
        loaded.moment == (self.node, self.cuts, retired)
            && loaded.needed.iter().all(|index| {
                self.dirty.contains_key(index)
                    || self.clean.contains_key(index)
                    || loaded.leaves.contains_key(index)
            })
    }

    fn check_open(&self) -> Result<()> {
        if self.closed {
            return Err(Error::new(ErrorKind::ShuttingDown, "the disk was rolled back or deleted"));
        }
        Ok(())
    }

    fn entry(&self, loaded: &Loaded, lba: Lba) -> Entry {
        let (index, slot) = lba.split();
        if let Some(leaf) = self.find(index.0) {
            return leaf.get(slot);
        }
        loaded.leaves.get(&index.0).map_or(Entry::Hole, |(leaf, _)| leaf.get(slot))
    }

    /// Those of many leaves that are mapped: what a change of a long range has to visit.
    fn leaves_of(&self, loaded: &Loaded, leaves: Range<u64>) -> Vec<u64> {
        let from = loaded.needed.partition_point(|index| *index < leaves.start);
        let to = loaded.needed.partition_point(|index| *index < leaves.end);
        let mut found = loaded.needed[from..to].to_vec();
        // Mapped since the leaves were loaded.
        found.extend(self.dirty.keys().copied().filter(|index| leaves.contains(index)));
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let clean = self.state.get_mut().clean.len();
        self.budget.clean.fetch_sub(clean, Ordering::Relaxed);
    }
}
