//! The allocator: which blocks of the pool file are in use, and long runs of free ones for writers.
//!
//! Invariants: `used` changes only together with a journal record, `available` is a subset of not used;
//! a freed block becomes available when the record that freed it is durable and no reader from before
//! is left (hazard H2), or without waiting for durability when it is young: written and freed between two
//! syncs, so that no sync can cover its writing without its freeing, and both records are in the file, so
//! that no end of the process can keep the one without the other; runs leased and never used are forgotten at a restart, since only `used` is kept.
//! Absent: I/O, except that the owner is told what to grow and punch.

use std::collections::{BTreeSet, VecDeque};

use super::behind::Window;
use super::bitmap::Bitmap;
use super::recycling::Recycling;
use crate::error::{Error, Result};
use crate::faults;
use crate::units::{Pbn, Seq};

/// Available runs shorter than this are passed over while the segment has longer ones to offer.
const SHORT_RUN: u32 = 4;
/// Looks at the segments, five seconds apart, that find one wholly free before it is punched.
const IDLE_LOOKS: u8 = 6;
/// Wholly free segments that stay allocated, ready for the next writers; the others are punched.
const WARM_SEGMENTS: usize = 4;
/// The pool file may be half as large again as what is in use, and this much (256 MiB), before
/// fragmented segments are reused. More room means longer runs, but memory of the page cache that was
/// never touched costs more than short runs do (ARCHITECTURE.md, "What was tried").
const SLACK_BLOCKS: u64 = 1 << 16;

/// A contiguous run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub start: Pbn,
    pub len: u32,
}

/// What a lease can bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Blocks to write to. `fresh`: never written since the file grew or a hole was punched.
    Run { run: Run, fresh: bool },
    /// The file should grow to this many segments first; then ask again.
    Grow(u32),
    /// Nothing is available.
    Full,
}

#[derive(Clone, Debug)]
struct Segment {
    available: u32,
    used: u32,
    /// Never written since it was allocated or punched.
    fresh: bool,
    /// How often it was found wholly free since it was last leased from.
    idle: u8,
}

/// The segment that leases come from, how far they have got, and the shortest run worth taking.
#[derive(Clone, Copy, Debug)]
struct Active {
    segment: u32,
    next: u64,
    shortest: u32,
}

#[derive(Debug)]
struct Freed {
    seq: Seq,
    era: u64,
    run: Run,
}

/// Sizes of the data area.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// The first data block.
    pub start: u64,
    pub segment_blocks: u32,
    /// Segments the pool may grow to.
    pub max_segments: u32,
}

/// The state of all data blocks.
#[derive(Debug)]
pub struct Allocator {
    geometry: Geometry,
    used: Bitmap,
    available: Bitmap,
    segments: Vec<Segment>,
    /// Where leases come from.
    active: Option<Active>,
    /// The host refused to let the file grow; asked again once [`Allocator::block_growth`] clears it.
    growth_blocked: bool,
    pending: VecDeque<Freed>,
    /// Freed while young: they wait for readers only.
    young_pending: VecDeque<Freed>,
    pending_blocks: u64,
    /// Blocks taken by records behind `captured`.
    young: Bitmap,
    /// The young blocks, so that forgetting them costs no more than there are.
    young_runs: Vec<Run>,
    recycling: Recycling,
    /// The record up to which the last sync that began reaches.
    captured: Seq,
    /// Blocks taken by records behind `captured`, and those of them that were freed.
    window: Window,
    used_blocks: u64,
    dirty: BTreeSet<u32>,
}

impl Allocator {
    #[must_use]
    pub fn new(geometry: Geometry) -> Allocator {
        Allocator {
            geometry,
            used: Bitmap::default(),
            available: Bitmap::default(),
            segments: Vec::new(),
            active: None,
            growth_blocked: false,
            pending: VecDeque::new(),
            young_pending: VecDeque::new(),
            pending_blocks: 0,
            young: Bitmap::default(),
            young_runs: Vec::new(),
            recycling: Recycling::default(),
            // Until the first sync begins, as in a replay, nothing is young.
            captured: Seq(u64::MAX),
            window: Window::default(),
            used_blocks: 0,
            dirty: BTreeSet::new(),
        }
    }

    /// Tells that the file now has `count` segments.
    pub fn grown(&mut self, count: u32) {
        let per = self.geometry.segment_blocks;
        while self.segment_count() < count {
            let first = u64::from(self.segment_count()) * u64::from(per);
            self.used.grow(first + u64::from(per));
            self.available.grow(first + u64::from(per));
            self.young.grow(first + u64::from(per));
            self.available.set_range(first, u64::from(per));
            self.segments.push(Segment { available: per, used: 0, fresh: true, idle: 0 });
        }
    }

    /// Loads the kept bitmap of a segment, at start.
    ///
    /// # Errors
    /// `Corrupt` when the segment was loaded before.
    pub fn load(&mut self, segment: u32, words: &[u64]) -> Result<()> {
        let per = u64::from(self.geometry.segment_blocks);
        self.grown(segment + 1);
        let first = u64::from(segment) * per;
        let info = &mut self.segments[segment as usize];
        if info.used > 0 || words.len() as u64 * 64 != per {
            return Err(Error::corrupt(format!("the bitmap of segment {segment} does not fit")));
        }
        self.used.load(first, words);
        self.available.load(first, &words.iter().map(|word| !word).collect::<Vec<_>>());
        info.used = words.iter().map(|word| word.count_ones()).sum();
        info.available = self.geometry.segment_blocks - info.used;
        info.fresh = false;
        self.used_blocks += u64::from(info.used);
        Ok(())
    }

    /// Forgets what is in use and takes exactly these blocks: for repair.
    ///
    /// # Errors
    /// `Corrupt` when one is named twice.
    pub fn rebuild(&mut self, used: &[Pbn]) -> Result<()> {
        let count = self.segment_count();
        *self = Allocator::new(self.geometry);
        self.grown(count);
        used.iter().try_for_each(|block| self.take(*block))?;
        self.segments.iter_mut().for_each(|segment| segment.fresh = false);
        self.dirty.extend(0..count);
        Ok(())
    }

    /// Number of segments in the file.
    #[must_use]
    pub fn segment_count(&self) -> u32 {
        u32::try_from(self.segments.len()).expect("segments are counted in 32 bits")
    }

    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The first block that the file has no room for.
    #[must_use]
    pub fn limit(&self) -> Pbn {
        let blocks = u64::from(self.segment_count()) * u64::from(self.geometry.segment_blocks);
        Pbn(self.geometry.start + blocks)
    }

    /// Changes how far the pool may grow.
    pub fn set_max_segments(&mut self, count: u32) {
        self.geometry.max_segments = count;
    }

    /// Notes that the host has no space for a larger file, or (`false`) that it is worth asking again.
    pub fn block_growth(&mut self, blocked: bool) {
        self.growth_blocked = blocked;
    }

    /// Blocks that some disk or snapshot holds.
    #[must_use]
    pub fn used_blocks(&self) -> u64 {
        self.used_blocks
    }

    /// Blocks freed but not yet available.
    #[must_use]
    pub fn pending_blocks(&self) -> u64 {
        self.pending_blocks
    }

    /// Blocks of the file that no one holds: available, leased or pending.
    #[must_use]
    pub fn free_blocks(&self) -> u64 {
        u64::from(self.segment_count()) * u64::from(self.geometry.segment_blocks) - self.used_blocks
    }

    /// Blocks that can still be written before the pool is full: those no one holds, and those the file
    /// may grow by.
    #[must_use]
    pub fn room(&self) -> u64 {
        let growth = match self.growth_blocked {
            true => 0,
            false => self.geometry.max_segments.saturating_sub(self.segment_count()),
        };
        self.free_blocks() + u64::from(growth) * u64::from(self.geometry.segment_blocks)
    }

    /// Whether a block is in use.
    #[must_use]
    pub fn is_used(&self, block: Pbn) -> bool {
        block.0.checked_sub(self.geometry.start).is_some_and(|index| self.used.get(index))
    }

    /// Takes up to `want` contiguous blocks out of what is available.
    pub fn lease(&mut self, want: u32) -> Lease {
        loop {
            let Some(active) = self.active else {
                match self.choose() {
                    Choice::Segment(segment) => self.active = Some(self.activate(segment)),
                    Choice::Grow(count) => return Lease::Grow(count),
                    Choice::Full => return Lease::Full,
                }
                continue;
            };
            let end = u64::from(active.segment + 1) * u64::from(self.geometry.segment_blocks);
            let shortest = active.shortest.min(want);
            match self.available.next_run(active.next, end, want, shortest) {
                Some((start, len)) => {
                    self.available.clear_range(start, u64::from(len));
                    let info = &mut self.segments[active.segment as usize];
                    info.available -= len;
                    info.idle = 0;
                    self.active = Some(Active { next: start + u64::from(len), ..active });
                    let run = Run { start: Pbn(self.geometry.start + start), len };
                    return Lease::Run { run, fresh: info.fresh };
                }
                None => {
                    self.segments[active.segment as usize].fresh = false;
                    let again = Active { shortest: 1, ..self.activate(active.segment) };
                    self.active = (active.shortest > 1).then_some(again);
                }
            }
        }
    }

    /// Puts the unused rest of a lease back.
    pub fn give_back(&mut self, run: Run) {
        let first = run.start.0 - self.geometry.start;
        self.available.set_range(first, u64::from(run.len));
        let segment = usize::try_from(first / u64::from(self.geometry.segment_blocks));
        self.segments[segment.expect("fits")].available += run.len;
    }

    /// Records what the journal record `seq` took and freed.
    ///
    /// # Errors
    /// `Corrupt` when a block is taken or freed twice: the map and the allocator disagree.
    pub fn apply(&mut self, seq: Seq, era: u64, taken: &[Run], freed: &[Pbn]) -> Result<()> {
        for run in taken {
            for block in 0..u64::from(run.len) {
                self.take(Pbn(run.start.0 + block))?;
            }
            if seq > self.captured {
                self.young.set_range(run.start.0 - self.geometry.start, u64::from(run.len));
                self.young_runs.push(*run);
                self.window.written += u64::from(run.len);
            }
        }
        for block in freed {
            self.release(*block)?;
            self.pending_blocks += 1;
            let young = self.young.get(block.0 - self.geometry.start);
            self.window.replaced += u64::from(young);
            let queue = if young { &mut self.young_pending } else { &mut self.pending };
            match queue.back_mut() {
                Some(last) if last.joins(seq, era, *block) => last.run.len += 1,
                _ => queue.push_back(Freed { seq, era, run: Run { start: *block, len: 1 } }),
            }
        }
        if faults::seeded("h2-reuse-before-durable") {
            self.reuse(Seq(u64::MAX), u64::MAX);
        }
        Ok(())
    }

    /// Makes freed blocks available whose record is durable and that no reader can still reach.
    pub fn reuse(&mut self, durable: Seq, oldest_reader: u64) {
        let oldest_reader =
            if faults::seeded("h2-reuse-under-reader") { u64::MAX } else { oldest_reader };
        while let Some(front) = self.pending.front() {
            if front.seq > durable || front.era >= oldest_reader {
                return;
            }
            let run = front.run;
            self.pending.pop_front();
            self.pending_blocks -= u64::from(run.len);
            self.give_back_each(run);
        }
    }

    /// Makes young freed blocks available that no reader can still reach, once the record that freed them
    /// is `written`: until then the end of the process would bring back the record that needs them.
    pub fn reuse_young(&mut self, written: Seq, oldest_reader: u64) {
        let free = |f: &&Freed| f.era < oldest_reader && f.seq <= written;
        while let Some(front) = self.young_pending.front().filter(free) {
            let run = front.run;
            self.young_pending.pop_front();
            self.pending_blocks -= u64::from(run.len);
            self.give_back_each(run);
            self.recycle(run);
        }
    }

    /// Whether young freed blocks wait for readers.
    #[must_use]
    pub fn has_young_pending(&self) -> bool {
        !self.young_pending.is_empty()
    }

    /// What became of blocks since the last sync began.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// Notes that a sync begins that will cover the records up to `last`: blocks they took are young no
    /// longer. Called while no record can be appended. Returns what became of blocks since the sync before.
    pub fn capture(&mut self, last: Seq) -> Window {
        self.captured = last;
        for run in std::mem::take(&mut self.young_runs) {
            self.young.clear_range(run.start.0 - self.geometry.start, u64::from(run.len));
        }
        self.recycling.forget();
        std::mem::take(&mut self.window)
    }

    /// Takes wholly free segments out of use that should be punched; [`Allocator::punched`] returns them.
    pub fn take_punchable(&mut self) -> Vec<u32> {
        let per = self.geometry.segment_blocks;
        let active = self.active.map(|active| active.segment);
        let mut idle = Vec::new();
        for (index, segment) in (0..).zip(&mut self.segments) {
            let free = segment.available == per && !segment.fresh && Some(index) != active;
            segment.idle = if free { segment.idle.saturating_add(1) } else { 0 };
            if segment.idle >= IDLE_LOOKS {
                idle.push(index);
            }
        }
        let punch = idle.split_off(idle.len().min(WARM_SEGMENTS));
        for segment in &punch {
            let first = u64::from(*segment) * u64::from(per);
            self.available.clear_range(first, u64::from(per));
            self.segments[*segment as usize].available = 0;
        }
        punch
    }

    /// Puts a segment back after its space was punched (or could not be).
    pub fn punched(&mut self, segment: u32, fresh: bool) {
        let per = self.geometry.segment_blocks;
        self.available.set_range(u64::from(segment) * u64::from(per), u64::from(per));
        let info = &mut self.segments[segment as usize];
        info.available = per;
        info.fresh = fresh;
    }

    /// The bitmaps of the segments that changed since the last call: what a checkpoint keeps.
    pub fn take_dirty(&mut self) -> Vec<(u32, Vec<u64>)> {
        let per = u64::from(self.geometry.segment_blocks);
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|s| (s, self.used.words(u64::from(s) * per, per).to_vec())).collect()
    }

    fn choose(&mut self) -> Choice {
        while let Some(segment) = self.recycling.next() {
            if self.is_plentiful(segment) {
                return Choice::Segment(segment);
            }
        }
        let best = (0..self.segment_count()).max_by_key(|s| self.segments[*s as usize].available);
        let best = best.filter(|s| self.segments[*s as usize].available > 0);
        let count = self.segment_count();
        let per = u64::from(self.geometry.segment_blocks);
        let may_grow = count < self.geometry.max_segments && !self.growth_blocked;
        // Growing keeps writes sequential; the bound keeps a busy small disk from filling the host.
        let lean = u64::from(count) * per < self.used_blocks / 2 * 3 + SLACK_BLOCKS;
        match best {
            Some(s) if !may_grow || self.is_plentiful(s) || !lean => Choice::Segment(s),
            _ if may_grow => Choice::Grow(count + 1),
            Some(s) => Choice::Segment(s),
            None => Choice::Full,
        }
    }

    fn activate(&self, segment: u32) -> Active {
        let next = u64::from(segment) * u64::from(self.geometry.segment_blocks);
        let shortest = if self.is_plentiful(segment) { SHORT_RUN } else { 1 };
        Active { segment, next, shortest }
    }

    fn is_plentiful(&self, segment: u32) -> bool {
        self.segments[segment as usize].available >= self.plenty()
    }

    fn plenty(&self) -> u32 {
        self.geometry.segment_blocks - self.geometry.segment_blocks / 4
    }

    /// Takes note of young blocks that are available again; a run is counted where it begins.
    fn recycle(&mut self, run: Run) {
        let index = run.start.0 - self.geometry.start;
        let segment = index / u64::from(self.geometry.segment_blocks);
        let segment = u32::try_from(segment).expect("segments are counted in 32 bits");
        self.recycling.freed(segment, run.len, self.plenty());
    }

    fn take(&mut self, block: Pbn) -> Result<()> {
        let index = self.index(block)?;
        if self.used.get(index) {
            return Err(Error::corrupt(format!("pool block {block} is taken twice")));
        }
        if self.available.get(index) {
            // Replay takes blocks that nobody leased in this life of the daemon.
            self.available.clear_range(index, 1);
            self.segment_of(index).available -= 1;
        }
        self.used.set_range(index, 1);
        self.used_blocks += 1;
        self.segment_of(index).used += 1;
        self.touch(index);
        Ok(())
    }

    fn release(&mut self, block: Pbn) -> Result<()> {
        let index = self.index(block)?;
        if !self.used.get(index) {
            return Err(Error::corrupt(format!("pool block {block} is freed twice")));
        }
        self.used.clear_range(index, 1);
        self.used_blocks -= 1;
        self.segment_of(index).used -= 1;
        self.touch(index);
        Ok(())
    }

    fn index(&self, block: Pbn) -> Result<u64> {
        let blocks = u64::from(self.segment_count()) * u64::from(self.geometry.segment_blocks);
        let index = block.0.checked_sub(self.geometry.start).filter(|index| *index < blocks);
        index.ok_or_else(|| Error::corrupt(format!("pool block {block} does not exist")))
    }

    fn give_back_each(&mut self, run: Run) {
        let first = run.start.0 - self.geometry.start;
        for index in first..first + u64::from(run.len) {
            self.available.set_range(index, 1);
            self.segment_of(index).available += 1;
        }
    }

    fn segment_of(&mut self, index: u64) -> &mut Segment {
        let segment = index / u64::from(self.geometry.segment_blocks);
        &mut self.segments[usize::try_from(segment).expect("fits")]
    }

    fn touch(&mut self, index: u64) {
        let segment = index / u64::from(self.geometry.segment_blocks);
        self.dirty.insert(u32::try_from(segment).expect("segments are counted in 32 bits"));
    }
}

enum Choice {
    Segment(u32),
    Grow(u32),
    Full,
}

impl Freed {
    fn joins(&self, seq: Seq, era: u64, block: Pbn) -> bool {
        self.seq == seq && self.era == era && self.run.start.0 + u64::from(self.run.len) == block.0
    }
}

#[cfg(test)]
mod tests;
