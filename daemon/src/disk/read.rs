//! Reading: locate the blocks of a range, then fetch and verify them.
//!
//! Invariants: between locating and the last fetch the lane is inside a reading era, so no located block
//! is reused (hazard H2); every block is checked against its CRC32C before a byte of it is returned.
//! Absent: replies.

use std::sync::Arc;

use super::lane::Lane;
use super::{Disk, Extent, blocks_of};
use crate::crypt::Place;
use crate::error::{Error, Result};
use crate::map::leaf::Entry;
use crate::pool::crc32c;
use crate::pool::file::{IoMode, Nowait};
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, ByteRange, Lba, Pbn};

/// A block of the range being read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Located {
    pub(super) lba: Lba,
    /// `None` reads as zeros, unless it is absent.
    stored: Option<Stored>,
    /// The disk does not have it yet.
    pub(super) absent: bool,
}

impl Located {
    /// Whether it holds data, here or where the disk is filled from.
    fn is_data(&self) -> bool {
        self.stored.is_some() || self.absent
    }
}

/// Where a block is, and how to tell and read it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) pbn: Pbn,
    pub(super) crc: u32,
    pub(super) salt: u32,
}

impl Stored {
    pub(super) fn of(entry: Entry) -> Option<Stored> {
        match entry {
            Entry::Data { pbn, crc, salt, .. } => Some(Stored { pbn, crc, salt }),
            Entry::Hole | Entry::Zero => None,
        }
    }
}

/// One of several ranges that are read together.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub range: ByteRange,
    /// As long as the range.
    pub out: &'a mut [u8],
    /// `None` when it was not read.
    pub outcome: Option<Result<()>>,
}

/// Whether a read may wait for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Yes,
    /// Give up at once if something is not in memory.
    No,
}

impl Lane {
    /// Finds where a range is stored; [`Lane::fetch`] reads it, [`Lane::release`] ends it.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn locate(&mut self, range: ByteRange, wait: Wait) -> Result<Nowait> {
        let disk = &self.disk;
        let blocks = blocks_of(range);
        if wait == Wait::No && !disk.view.is_cached(blocks) {
            return Ok(Nowait::WouldBlock);
        }
        self.reading = Some(self.reader.enter(&disk.shared.pool.readers));
        self.located.clear();
        let lazy = disk.lazy().cloned();
        let located = &mut self.located;
        disk.view.look_up(&disk.shared, blocks, |lba, entry| {
            let absent = lazy.is_some() && entry == Entry::Hole;
            located.push(Located { lba, stored: Stored::of(entry), absent });
        })?;
        self.need = None;
        if let Some(lazy) = lazy {
            self.mark_absent(&lazy);
            if wait == Wait::No && self.need.is_some() {
                return Ok(Nowait::WouldBlock);
            }
        }
        Ok(Nowait::Done)
    }

    /// Ends the reading era that [`Lane::locate`] began.
    pub fn release(&mut self) {
        self.reading = None;
    }

    /// Whether all of the located range, or none of it, is stored; `None` when some is.
    #[must_use]
    pub fn located_alike(&self) -> Option<bool> {
        let first = self.located.first()?.is_data();
        self.located.iter().all(|block| block.is_data() == first).then_some(first)
    }

    /// The located range as stretches that are stored or not.
    #[must_use]
    pub fn located_extents(&self, range: ByteRange) -> Vec<Extent> {
        let mut list: Vec<Extent> = Vec::new();
        for block in &self.located {
            let start = (block.lba.0 * BLOCK_SIZE).max(range.start);
            let end = ((block.lba.0 + 1) * BLOCK_SIZE).min(range.end);
            let stored = block.is_data();
            match list.last_mut() {
                Some(last) if last.stored == stored => last.range.end = end,
                _ => list.push(Extent { range: ByteRange { start, end }, stored }),
            }
        }
        list
    }

    /// Reads a part of the located range into `out`, which is as long as `range`.
    ///
    /// # Errors
    /// `Corrupt` when a block is not what was written; the device refuses.
    pub fn fetch(&mut self, range: ByteRange, out: &mut [u8], wait: Wait) -> Result<Nowait> {
        debug_assert_eq!(out.len() as u64, range.len(), "the buffer fits the range");
        let Some(first) = self.located.first().map(|block| block.lba.0) else {
            return Ok(Nowait::Done);
        };
        let whole = range.inner_blocks();
        if whole.is_empty() || whole.len() * BLOCK_SIZE != range.len() {
            return self.fetch_ragged(range, out, wait);
        }
        let from = usize::try_from(whole.start - first).expect("located");
        let to = usize::try_from(whole.end - first).expect("located");
        if wait == Wait::Yes && self.disk.shared.pool.file.mode() == IoMode::Direct {
            return self.fetch_together(from, to, out).map(|()| Nowait::Done);
        }
        let mut at = from;
        while at < to {
            let run = self.run_at(at, to);
            let piece = &mut out[(at - from) * BLOCK_BYTES..(at + run - from) * BLOCK_BYTES];
            if self.fetch_run(at, piece, wait)? == Nowait::WouldBlock {
                return Ok(Nowait::WouldBlock);
            }
            at += run;
        }
        Ok(Nowait::Done)
    }

    /// Locates and reads a range, waiting as long as it takes.
    ///
    /// # Errors
    /// As [`Lane::locate`] and [`Lane::fetch`].
    pub fn read(&mut self, range: ByteRange, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while let Some(lazy) = self.disk.lazy().cloned() {
            let Some(need) = self.read_some(range, out, &mut done)? else {
                self.carry_nothing();
                return Ok(());
            };
            let got = lazy.wait(need)?;
            self.carry(got);
        }
        let result = self.locate(range, Wait::Yes).and_then(|_| self.fetch(range, out, Wait::Yes));
        self.release();
        result.map(|_| ())
    }

    /// Reads several ranges from the device at once. Those that are not whole blocks, or not stored
    /// throughout, are left without an outcome.
    pub fn read_together(&mut self, wanted: &mut [Wanted<'_>]) {
        let disk = Arc::clone(&self.disk);
        self.reading = Some(self.reader.enter(&disk.shared.pool.readers));
        self.located.clear();
        let mut spans = Vec::with_capacity(wanted.len());
        for one in &mut *wanted {
            let from = self.located.len();
            one.outcome = self.locate_stored(one.range);
            spans.push(from..self.located.len());
        }
        let mut list = Vec::with_capacity(wanted.len());
        for (one, span) in wanted.iter_mut().zip(&spans) {
            let (mut at, mut rest) = (span.start, &mut *one.out);
            while at < span.end {
                let run = self.run_at(at, span.end);
                let (now, behind) = rest.split_at_mut(run * BLOCK_BYTES);
                list.extend(self.located[at].stored.map(|stored| (stored.pbn.offset(), now)));
                (at, rest) = (at + run, behind);
            }
        }
        let done = disk.shared.pool.file.read_many(&mut list);
        for (one, span) in wanted.iter_mut().zip(spans).filter(|(_, span)| !span.is_empty()) {
            // Which of them failed is found out one by one.
            one.outcome = done.is_ok().then(|| self.verify(span.start, one.out));
        }
        self.release();
    }

    /// Locates a range behind those located before, or nothing if it is not stored in whole blocks.
    fn locate_stored(&mut self, range: ByteRange) -> Option<Result<()>> {
        let blocks = range.inner_blocks();
        if blocks.is_empty() || blocks.len() * BLOCK_SIZE != range.len() {
            return None;
        }
        let (from, mut holes) = (self.located.len(), false);
        let located = &mut self.located;
        let found = self.disk.view.look_up(&self.disk.shared, blocks, |lba, entry| {
            let stored = Stored::of(entry);
            holes |= stored.is_none();
            located.push(Located { lba, stored, absent: false });
        });
        if found.is_err() || holes {
            self.located.truncate(from);
        }
        found.err().map(Err)
    }

    /// A range that does not begin and end with a block: whole blocks are verified, a part is returned.
    fn fetch_ragged(&mut self, range: ByteRange, out: &mut [u8], wait: Wait) -> Result<Nowait> {
        let outer = range.outer_blocks();
        let bytes = ByteRange { start: outer.start * BLOCK_SIZE, end: outer.end * BLOCK_SIZE };
        let mut whole = vec![0u8; usize::try_from(bytes.len()).expect("a request fits in memory")];
        let outcome = self.fetch(bytes, &mut whole, wait)?;
        let skip = usize::try_from(range.start - bytes.start).expect("below a block");
        out.copy_from_slice(&whole[skip..skip + out.len()]);
        Ok(outcome)
    }

    /// Number of located blocks from `at` that can be read at once.
    fn run_at(&self, at: usize, to: usize) -> usize {
        let mut expected = self.located[at].stored.map(|stored| stored.pbn);
        let absent = self.located[at].absent;
        let rest = self.located[at..to].iter();
        rest.take_while(|block| {
            let alike = block.stored.map(|stored| stored.pbn) == expected && block.absent == absent;
            expected = expected.map(|pbn| Pbn(pbn.0 + 1));
            alike
        })
        .count()
    }

    /// Reads located blocks past the page cache: all runs at once.
    fn fetch_together(&self, from: usize, to: usize, out: &mut [u8]) -> Result<()> {
        let mut list = Vec::with_capacity(1);
        let (mut at, mut rest) = (from, &mut *out);
        while at < to {
            let run = self.run_at(at, to);
            let (now, behind) = rest.split_at_mut(run * BLOCK_BYTES);
            match self.located[at].stored {
                Some(stored) => list.push((stored.pbn.offset(), now)),
                None => self.fetch_hole(at, now)?,
            }
            (at, rest) = (at + run, behind);
        }
        self.disk.shared.pool.file.read_many(&mut list)?;
        self.verify(from, out)
    }

    /// Located blocks that are not stored, from `at` on: zeros, or what the lane carries of them.
    fn fetch_hole(&self, at: usize, out: &mut [u8]) -> Result<()> {
        for (block, bytes) in self.located[at..].iter().zip(out.chunks_exact_mut(BLOCK_BYTES)) {
            match (block.absent, self.carried(block.lba)) {
                (false, _) => bytes.fill(0),
                (true, Some(carried)) => bytes.copy_from_slice(carried),
                (true, None) => return Err(Error::internal("a block was not fetched")),
            }
        }
        Ok(())
    }

    fn fetch_run(&self, at: usize, out: &mut [u8], wait: Wait) -> Result<Nowait> {
        let Some(Stored { pbn, .. }) = self.located[at].stored else {
            return self.fetch_hole(at, out).map(|()| Nowait::Done);
        };
        let file = &self.disk.shared.pool.file;
        match wait {
            Wait::Yes => file.read(pbn.offset(), out)?,
            Wait::No => {
                if file.read_nowait(pbn.offset(), out)? == Nowait::WouldBlock {
                    return Ok(Nowait::WouldBlock);
                }
            }
        }
        self.verify(at, out).map(|()| Nowait::Done)
    }

    /// Compares blocks with their checksums, from the located one `at` on, and decrypts them.
    fn verify(&self, at: usize, out: &mut [u8]) -> Result<()> {
        for (block, bytes) in self.located[at..].iter().zip(out.chunks_exact_mut(BLOCK_BYTES)) {
            if let Some(stored) = block.stored {
                self.disk.verify(block.lba, stored, bytes)?;
            }
        }
        Ok(())
    }
}

impl Disk {
    /// Compares a block as it is stored with its checksum, and decrypts it if it is encrypted.
    #[inline]
    pub(super) fn verify(&self, lba: Lba, stored: Stored, bytes: &mut [u8]) -> Result<()> {
        let Stored { pbn, crc, salt } = stored;
        if crc32c(bytes) != crc {
            self.report_corrupt(lba, pbn);
            let message = format!("block {lba} of {} is not what was written", self.label);
            return Err(Error::corrupt(message));
        }
        match (self.sealing.cipher()?, salt) {
            (None, 0) => Ok(()),
            (Some(cipher), 1..) => {
                cipher.open(Place { lba, pbn, salt }, bytes);
                Ok(())
            }
            // Never the wrong bytes: a key without its block, or a block without its key.
            _ => Err(Error::corrupt(format!("block {lba} of {} is not of its key", self.label))),
        }
    }
}
