//! A disk that is used before it has all its contents: what it lacks comes from an origin, block by block.
//!
//! Of such a disk a *hole* means that nobody has written the block and that it was not fetched: the origin says
//! what is in it. What is zeroed or trimmed is stored as zero, so a block that is no hole never becomes one
//! again, and what a client wrote always wins over what comes from the origin.
//!
//! Invariants: a block of the origin is stored only where there still is a hole, decided under the lock of the
//! leaf; who reads never waits here: it is told what is lacking and asks for it.
//! Absent: where origins get their blocks from (`vault/`).

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use parking_lot::Mutex;

use super::lane::Lane;
use super::write::{CLEAR_LEAVES, Gather, Op, Sealed, Whole};
use super::{Disk, Extents};
use crate::error::{Error, ErrorKind, Result};
use crate::map::leaf::Entry;
use crate::map::record::Staged;
use crate::units::{
    BLOCK_BYTES, BLOCK_SIZE, BlockRange, ByteRange, LEAF_BLOCKS, Lba, LeafIndex, Seq,
};

/// Blocks of one run that are stored at once: small enough for a record to hold several.
const ADOPT_BLOCKS: usize = 256;
/// Leaves of one record that fills a family of disks and snapshots: nobody writes meanwhile.
const BENEATH_LEAVES: usize = 16;
/// A lacking range is looked at in pieces of this size.
const WINDOW: u64 = 1 << 20;

/// Blocks that came together from an origin.
#[derive(Debug)]
pub struct Fetched {
    /// In order, and none overlaps another.
    pub spans: Vec<Span>,
    pub bytes: Vec<u8>,
}

/// Consecutive blocks among those fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first block of the disk.
    pub start: u64,
    pub blocks: u32,
    /// The first block among the bytes.
    pub at: u32,
}

impl Fetched {
    /// A block of the disk, if it is among them.
    #[must_use]
    pub fn block(&self, lba: Lba) -> Option<&[u8]> {
        let next = self.spans.partition_point(|span| span.start <= lba.0);
        let span = self.spans.get(next.checked_sub(1)?)?;
        let within = lba.0 - span.start;
        if within >= u64::from(span.blocks) {
            return None;
        }
        let at = (u64::from(span.at) + within) * BLOCK_SIZE;
        let at = usize::try_from(at).ok()?;
        self.bytes.get(at..at + BLOCK_BYTES)
    }
}

/// What somebody cannot go on without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To know which blocks the origin has, all of them.
    Index,
    /// A block, or to know that the origin does not have it.
    Block(Lba),
}

/// What an answer brings: blocks to go on with, or nothing but the advice to look again.
pub type Answer = Result<Option<Arc<Fetched>>>;
/// Is told, once, on any thread and perhaps at once, that what was asked for is there or cannot be had.
pub type Wake = Box<dyn FnOnce(Answer) + Send>;

/// Where the blocks of a disk come from.
pub trait Origin: fmt::Debug + Send + Sync {
    /// Whether it knows by now which blocks it has, all of them.
    fn is_known(&self) -> bool;
    /// Whether it has a block, if it knows that by now.
    fn has(&self, lba: Lba) -> Option<bool>;
    /// The first blocks at or behind `from` that it has, without those before `from`.
    fn next(&self, from: u64) -> Option<BlockRange>;
    /// Gets what is needed, or what it takes to get it or to know that there is none: who is told to look again
    /// may ask again. It answers within bounded time.
    fn ask(&self, need: Need, wake: Wake);
}

/// What a disk is being filled from. The origin may come later than the first request.
#[derive(Debug, Default)]
pub struct Lazy {
    origin: OnceLock<Arc<dyn Origin>>,
    early: Mutex<Early>,
    filled: AtomicBool,
}

/// Who asked before there was an origin.
#[derive(Default)]
struct Early(Vec<(Need, Wake)>);

impl fmt::Debug for Early {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Early({})", self.0.len())
    }
}

impl Lazy {
    /// Says where blocks come from. The first one counts.
    pub fn connect(&self, origin: Arc<dyn Origin>) {
        let mut early = self.early.lock();
        let origin = Arc::clone(self.origin.get_or_init(|| origin));
        let waiting = std::mem::take(&mut early.0);
        drop(early);
        waiting.into_iter().for_each(|(need, wake)| origin.ask(need, wake));
    }

    /// The disk has all its contents: a hole is a hole from now on.
    pub fn fill(&self) {
        self.filled.store(true, Ordering::SeqCst);
        let waiting = std::mem::take(&mut self.early.lock().0);
        waiting.into_iter().for_each(|(_, wake)| wake(Ok(None)));
    }

    /// Asks for what is needed; `wake` is told.
    pub fn ask(&self, need: Need, wake: Wake) {
        if self.is_filled() {
            return wake(Ok(None));
        }
        let mut early = self.early.lock();
        match self.origin.get().cloned() {
            Some(origin) => {
                drop(early);
                origin.ask(need, wake);
            }
            None => early.0.push((need, wake)),
        }
    }

    /// As [`Lazy::ask`], and waits for the answer.
    ///
    /// # Errors
    /// What is needed cannot be had.
    pub fn wait(&self, need: Need) -> Answer {
        let (told, answer) = mpsc::channel();
        self.ask(
            need,
            Box::new(move |answer| {
                if told.send(answer).is_err() {
                    tracing::debug!("nobody waits for a block any more");
                }
            }),
        );
        let gone = || Error::new(ErrorKind::ShuttingDown, "what is lacking is fetched no more");
        answer.recv().unwrap_or_else(|_| Err(gone()))
    }

    fn is_filled(&self) -> bool {
        self.filled.load(Ordering::SeqCst)
    }

    /// Whether it is known by now which blocks the origin has.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.origin.get().is_some_and(|origin| origin.is_known())
    }

    /// The first blocks at or behind `from` that the origin has.
    #[must_use]
    pub fn next(&self, from: u64) -> Option<BlockRange> {
        self.origin.get().and_then(|origin| origin.next(from))
    }

    fn has(&self, lba: Lba) -> Option<bool> {
        self.origin.get().and_then(|origin| origin.has(lba))
    }

    /// What is needed to know the contents of a block that is a hole; nothing if it is zeros.
    pub(super) fn need(&self, lba: Lba) -> Option<Need> {
        (self.has(lba) != Some(false)).then_some(Need::Block(lba))
    }

    /// What the origin has in a range of holes, as stretches that differ, until `found` is full.
    fn stretches(&self, found: &mut Extents, from: u64, to: u64, limit: usize) {
        let mut at = from;
        while at < to && found.list.len() <= limit {
            let part = match self.next(at) {
                Some(part) if part.start < to => part,
                _ => break,
            };
            let end = part.end.min(to);
            found.push(at, part.start, false);
            found.push(part.start, end, true);
            at = end;
        }
        if found.list.len() <= limit {
            found.push(at, to, false);
        }
    }
}

impl Disk {
    /// What this disk is being filled from; nothing when it has all its contents.
    #[must_use]
    pub fn lazy(&self) -> Option<&Arc<Lazy>> {
        self.lazy.get().filter(|lazy| !lazy.is_filled())
    }

    /// As [`Disk::extents`], of a disk that is being filled: what the origin has counts as stored.
    pub(super) fn lazy_extents(
        &self,
        lazy: &Lazy,
        range: ByteRange,
        limit: usize,
    ) -> Result<Vec<super::Extent>> {
        while self.lazy().is_some() && !lazy.is_known() {
            lazy.wait(Need::Index)?;
        }
        let blocks = range.outer_blocks();
        let mut found = Extents { range, list: Vec::new() };
        let mut next = blocks.start;
        for leaf in self.view.mapped_leaves(&self.shared, blocks)? {
            let part = LeafIndex(leaf).blocks().clip(blocks);
            lazy.stretches(&mut found, next, part.start, limit);
            self.view.look_up(&self.shared, part, |lba, entry| {
                let stored = match entry {
                    Entry::Data { .. } => true,
                    Entry::Zero => false,
                    Entry::Hole => lazy.has(lba) == Some(true),
                };
                if found.list.len() <= limit {
                    found.push(lba.0, lba.0 + 1, stored);
                }
            })?;
            next = part.end;
            if found.list.len() > limit {
                break;
            }
        }
        lazy.stretches(&mut found, next, blocks.end, limit);
        found.list.truncate(limit);
        Ok(found.list)
    }
}

impl Lane {
    /// Gives the lane blocks to go on with that the disk may not have stored yet; the last two count.
    pub fn carry(&mut self, fetched: Option<Arc<Fetched>>) {
        if let Some(fetched) = fetched {
            if self.carried.len() > 1 {
                self.carried.remove(0);
            }
            self.carried.push(fetched);
        }
    }

    /// Forgets what it carries.
    pub fn carry_nothing(&mut self) {
        self.carried.clear();
    }

    pub(super) fn carried(&self, lba: Lba) -> Option<&[u8]> {
        self.carried.iter().rev().find_map(|fetched| fetched.block(lba))
    }

    /// Marks the located blocks that the disk lacks; keeps what the first of them needs that is not carried.
    pub(super) fn mark_absent(&mut self, lazy: &Lazy) {
        self.need = None;
        for at in 0..self.located.len() {
            if !self.located[at].absent {
                continue;
            }
            let lba = self.located[at].lba;
            if self.carried(lba).is_some() {
                continue;
            }
            let need = lazy.need(lba);
            self.located[at].absent = need.is_some();
            if self.need.is_none() {
                self.need = need.map(|need| (lba, need));
            }
        }
    }

    /// Reads a range from byte `done` of it on, as far as it is there. Returns what is needed to go on, and
    /// nothing when all is read. After a look at what [`Lane::carry`] got it always gets further.
    ///
    /// # Errors
    /// As [`Lane::read`].
    pub fn read_some(
        &mut self,
        range: ByteRange,
        out: &mut [u8],
        done: &mut u64,
    ) -> Result<Option<Need>> {
        while *done < range.len() {
            let start = range.start + *done;
            let end = range.end.min((start / WINDOW + 1) * WINDOW);
            let need = self.read_window(ByteRange { start, end }, range, out, done);
            self.release();
            if let Some(need) = need? {
                return Ok(Some(need));
            }
        }
        Ok(None)
    }

    fn read_window(
        &mut self,
        window: ByteRange,
        range: ByteRange,
        out: &mut [u8],
        done: &mut u64,
    ) -> Result<Option<Need>> {
        self.locate(window, super::read::Wait::Yes)?;
        let need = self.need;
        let stop = need.map_or(window.end, |(lba, _)| (lba.0 * BLOCK_SIZE).max(window.start));
        if stop > window.start {
            let index = |at: u64| usize::try_from(at - range.start).expect("within the request");
            let part = ByteRange { start: window.start, end: stop };
            let out = &mut out[index(window.start)..index(stop)];
            self.fetch(part, out, super::read::Wait::Yes)?;
            *done = stop - range.start;
        }
        Ok(need.map(|(_, need)| need))
    }

    /// What has to be there before the first byte of a range can be read.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn first_need(&self, range: ByteRange) -> Result<Option<Need>> {
        self.need_of(range.outer_blocks().start)
    }

    /// What has to be there before a change can be made: the rest of blocks that it covers in part.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn need_for(&self, op: &Op<'_>) -> Result<Option<Need>> {
        let Some(lazy) = self.disk.lazy() else { return Ok(None) };
        let range = match *op {
            Op::Write { offset, data } => ByteRange::new(offset, data.len() as u64),
            Op::ZeroStored { range } => Some(range),
            Op::Zero { range } | Op::Trim { range } => {
                if !lazy.is_known() {
                    return Ok(Some(Need::Index));
                }
                Some(range).filter(|_| matches!(op, Op::Zero { .. }))
            }
        };
        let Some(range) = range.filter(|range| !range.is_empty()) else { return Ok(None) };
        for edge in
            [range.start, range.end].into_iter().filter(|edge| !edge.is_multiple_of(BLOCK_SIZE))
        {
            if let Some(need) = self.need_of(edge / BLOCK_SIZE)? {
                return Ok(Some(need));
            }
        }
        Ok(None)
    }

    fn need_of(&self, block: u64) -> Result<Option<Need>> {
        let Some(lazy) = self.disk.lazy() else { return Ok(None) };
        let mut hole = false;
        let range = BlockRange::new(block, block + 1);
        self.disk.view.look_up(&self.disk.shared, range, |_, entry| hole = entry == Entry::Hole)?;
        match hole && self.carried(Lba(block)).is_none() {
            true => Ok(lazy.need(Lba(block))),
            false => Ok(None),
        }
    }

    /// The contents of a block that is a hole: zeros, or what the origin has.
    pub(super) fn read_hole(&self, lba: Lba, out: &mut [u8]) -> Result<()> {
        let Some(lazy) = self.disk.lazy() else {
            out.fill(0);
            return Ok(());
        };
        if let Some(bytes) = self.carried(lba) {
            out.copy_from_slice(bytes);
            return Ok(());
        }
        while let Some(need) = lazy.need(lba).filter(|_| self.disk.lazy().is_some()) {
            if let Some(fetched) = lazy.wait(need)?
                && let Some(bytes) = fetched.block(lba)
            {
                out.copy_from_slice(bytes);
                return Ok(());
            }
        }
        out.fill(0);
        Ok(())
    }

    /// Zeroes whole blocks so that it is known that they are zero: where something is mapped, and where the
    /// origin has something that would come back otherwise.
    pub(super) fn clear_lazily(&mut self, lazy: &Lazy, range: BlockRange) -> Result<()> {
        while self.disk.lazy().is_some() && !lazy.is_known() {
            lazy.wait(Need::Index)?;
        }
        self.staged.clear();
        let mut staged = 0;
        for leaf in self.disk.view.mapped_leaves(&self.disk.shared, range)? {
            self.blank(LeafIndex(leaf).blocks().clip(range), &mut staged)?;
        }
        let mut at = range.start;
        while let Some(part) = lazy.next(at).filter(|part| part.start < range.end) {
            let part = part.clip(range);
            self.blank(part, &mut staged)?;
            at = part.end;
        }
        self.blank_staged(&mut staged)
    }

    /// Stages blocks to be blank, and commits what is staged when that is enough for one lock.
    fn blank(&mut self, range: BlockRange, staged: &mut u64) -> Result<()> {
        let most = CLEAR_LEAVES as u64 * LEAF_BLOCKS;
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min((start / most + 1) * most);
            let part = BlockRange::new(start, end);
            self.staged.blank(part);
            *staged += part.leaves().end - part.leaves().start;
            if *staged >= CLEAR_LEAVES as u64 {
                self.blank_staged(staged)?;
            }
            start = end;
        }
        Ok(())
    }

    fn blank_staged(&mut self, staged: &mut u64) -> Result<()> {
        let done = match *staged {
            0 => Ok(true),
            _ => self.commit(&[]),
        };
        *staged = 0;
        self.staged.clear();
        done.map(|_| ())
    }

    /// Stores blocks of the origin where there is nothing yet. Returns how many it stored.
    ///
    /// # Errors
    /// The pool is full or has stopped; the disk was deleted.
    pub fn adopt(&mut self, fetched: &Fetched) -> Result<u64> {
        self.adopt_by(fetched, usize::MAX, |lane, holes| {
            let expect: Vec<(Lba, Entry)> = holes.iter().map(|lba| (*lba, Entry::Hole)).collect();
            lane.commit(&expect)
        })
    }

    /// As [`Lane::adopt`], of a disk that is not written to: `commit` says at which record what is staged was stored,
    /// nothing if one of the blocks is no hole any more. It gets blocks of few leaves, for the locks it may hold.
    ///
    /// # Errors
    /// As [`Lane::adopt`].
    pub fn adopt_beneath(
        &mut self,
        fetched: &Fetched,
        mut commit: impl FnMut(&mut Staged, &[Lba]) -> Result<Option<Seq>>,
    ) -> Result<u64> {
        self.adopt_by(fetched, BENEATH_LEAVES, |lane, holes| {
            let seq = commit(&mut lane.staged, holes)?;
            lane.unsettled = lane.unsettled.max(seq);
            Ok(seq.is_some())
        })
    }

    fn adopt_by(
        &mut self,
        fetched: &Fetched,
        leaves: usize,
        mut commit: impl FnMut(&mut Lane, &[Lba]) -> Result<bool>,
    ) -> Result<u64> {
        let mut stored = 0;
        loop {
            let holes = self.holes(fetched)?;
            let batch = holes.get(..holes.len().min(ADOPT_BLOCKS * 4)).unwrap_or_default();
            let same = |a: &Lba, b: &Lba| a.split().0 == b.split().0;
            let some = batch.chunk_by(same).take(leaves).map(<[Lba]>::len).sum();
            let batch = &batch[..some];
            if batch.is_empty() {
                break;
            }
            // A client may have written meanwhile: then all is looked at again.
            if self.adopt_batch(fetched, batch, &mut commit)? {
                stored += batch.len() as u64;
            }
        }
        match self.unsettled.take() {
            Some(seq) => self.disk.shared.pool.settle(seq).map(|()| stored),
            None => Ok(stored),
        }
    }

    /// The blocks that the disk has not yet.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn holes(&self, fetched: &Fetched) -> Result<Vec<Lba>> {
        holes_of(&self.disk, &fetched.spans)
    }

    fn adopt_batch(
        &mut self,
        fetched: &Fetched,
        holes: &[Lba],
        commit: &mut impl FnMut(&mut Lane, &[Lba]) -> Result<bool>,
    ) -> Result<bool> {
        let mut runs: Vec<(Lba, Vec<u8>)> = Vec::new();
        for lba in holes {
            let bytes = fetched.block(*lba).ok_or_else(|| Error::internal("a block is lost"))?;
            match runs.last_mut() {
                Some((first, run))
                    if first.0 + (run.len() / BLOCK_BYTES) as u64 == lba.0
                        && run.len() < ADOPT_BLOCKS * BLOCK_BYTES =>
                {
                    run.extend_from_slice(bytes);
                }
                _ => runs.push((*lba, bytes.to_vec())),
            }
        }
        let sealed: Vec<Sealed> = runs.iter().map(|_| Sealed::new()).collect();
        let mut gather = Gather::default();
        self.staged.clear();
        let mut written = Ok(());
        for ((first, data), sealed) in runs.iter().zip(&sealed) {
            let whole = Whole { offset: first.0 * BLOCK_SIZE, data, sealed: Some(sealed) };
            written =
                written.and_then(|()| self.stage(&mut gather, whole, &mut 0, &mut Vec::new()));
        }
        let written = written.and_then(|()| self.write_gathered(&mut gather));
        let outcome = written.and_then(|()| commit(self, holes));
        self.give_back_unless(outcome.as_ref().is_ok_and(|done| *done));
        self.staged.clear();
        outcome
    }
}

/// Those of some blocks that are holes.
///
/// # Errors
/// The map cannot be read.
pub fn holes_of(disk: &Disk, spans: &[Span]) -> Result<Vec<Lba>> {
    let mut holes = Vec::new();
    for span in spans {
        let range = BlockRange::new(span.start, span.start + u64::from(span.blocks));
        disk.view.look_up(&disk.shared, range, |lba, entry| {
            if entry == Entry::Hole {
                holes.push(lba);
            }
        })?;
    }
    Ok(holes)
}

const _: () = {
    // Four runs and, at worst, each block alone: a batch fits one record.
    let worst = ADOPT_BLOCKS * 4 * 32;
    assert!(worst + 4096 < crate::pool::journal::MAX_RECORD, "a batch fits one record");
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_found_among_those_fetched_and_no_other() {
        let spans = vec![Span { start: 5, blocks: 2, at: 1 }, Span { start: 9, blocks: 1, at: 0 }];
        let bytes: Vec<u8> = (0..3u8).flat_map(|n| [n; BLOCK_BYTES]).collect();
        let fetched = Fetched { spans, bytes };
        let first = |lba| fetched.block(Lba(lba)).map(|block| block[0]);
        assert_eq!((first(5), first(6), first(9)), (Some(1), Some(2), Some(0)));
        assert_eq!((first(4), first(7), first(8), first(10)), (None, None, None, None));
    }
}
