//! Writing: allocate, write the data, then append and apply one record for as many requests as fit.
//!
//! Invariants: a request's blocks become visible together, after their data is written (hazard H4); a
//! request that covers part of a block is merged with the rest of it and committed only if the block is
//! still the one that was read (hazard H5); results are in the order of the requests.
//! Absent: replies and flushes.

use std::cell::OnceCell;
use std::io::IoSlice;
use std::sync::Arc;

use super::lane::Lane;
use super::read::Stored;
use crate::crypt::{Cipher, Place, Sealing};
use crate::error::{Error, Result};
use crate::faults;
use crate::map::leaf::Entry;
use crate::pool::allocator::Run;
use crate::pool::crc32c;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, BlockRange, ByteRange, Lba, LeafIndex, Pbn};

/// Mapped leaves that are zeroed or trimmed under one lock: 256 MiB of data.
pub(super) const CLEAR_LEAVES: usize = 1024;
/// No piece crosses a multiple of this many leaves (512 GiB), or its count would not fit its record.
const CLEAR_SPAN: u64 = 1 << 21;
/// Zero blocks written at a time when zeros have to take space.
const ZERO_BYTES: usize = 1 << 20;
/// Bytes of buffers for ciphertext that a lane keeps.
const SPARE_BYTES: usize = 4 << 20;

/// A change a client asks for. Ranges lie within the disk: the session has checked.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    Write {
        offset: u64,
        data: &'a [u8],
    },
    /// Zeros that need not take space.
    Zero {
        range: ByteRange,
    },
    /// Zeros that take space, as any written data does.
    ZeroStored {
        range: ByteRange,
    },
    /// Contents no longer needed; whole blocks read as zeros afterwards, parts of blocks stay.
    Trim {
        range: ByteRange,
    },
}

/// Data to write, in stretches that are contiguous in the pool.
#[derive(Default)]
pub(super) struct Gather<'a> {
    stretches: Vec<Stretch>,
    buffers: Vec<IoSlice<'a>>,
}

/// Where the ciphertext of one request is until it is written.
pub(super) type Sealed = OnceCell<Vec<u8>>;

/// Whole blocks to write.
#[derive(Clone, Copy)]
pub(super) struct Whole<'a> {
    pub(super) offset: u64,
    pub(super) data: &'a [u8],
    /// Empty; of an encrypted disk only.
    pub(super) sealed: Option<&'a Sealed>,
}

struct Stretch {
    offset: u64,
    length: u64,
    buffers: usize,
}

impl<'a> Gather<'a> {
    fn add(&mut self, offset: u64, piece: &'a [u8]) {
        let length = piece.len() as u64;
        match self.stretches.last_mut() {
            Some(last) if last.offset + last.length == offset => {
                last.length += length;
                last.buffers += 1;
            }
            _ => self.stretches.push(Stretch { offset, length, buffers: 1 }),
        }
        self.buffers.push(IoSlice::new(piece));
    }
}

impl Lane {
    /// Does the changes in order and puts one result for each into `results`.
    pub fn submit<'a>(&mut self, ops: &[Op<'a>], results: &mut Vec<Result<()>>) {
        let first = results.len();
        self.perform(ops, results);
        // One wait for all records of the batch; nothing is answered before they are in the file.
        if let Some(seq) = self.unsettled.take()
            && let Err(error) = self.disk.shared.pool.settle(seq)
        {
            results[first..].fill(Err(error));
        }
    }

    fn perform<'a>(&mut self, ops: &[Op<'a>], results: &mut Vec<Result<()>>) {
        let sealed: Vec<Sealed> = match self.disk.sealing {
            Sealing::Plain => Vec::new(),
            _ => ops.iter().map(|_| Sealed::new()).collect(),
        };
        self.perform_with(&sealed, ops, results);
        let mut kept: usize = self.spare.iter().map(Vec::capacity).sum();
        for buffer in sealed.into_iter().filter_map(Sealed::into_inner) {
            kept += buffer.capacity();
            if kept > SPARE_BYTES {
                break;
            }
            self.spare.push(buffer);
        }
    }

    fn perform_with<'a>(
        &mut self,
        sealed: &'a [Sealed],
        ops: &[Op<'a>],
        results: &mut Vec<Result<()>>,
    ) {
        let mut gather = Gather::default();
        let mut open = 0;
        for (at, op) in ops.iter().enumerate() {
            let staged = match *op {
                Op::Write { offset, data } if is_aligned(offset, data.len()) => {
                    let whole = Whole { offset, data, sealed: sealed.get(at) };
                    self.stage(&mut gather, whole, &mut open, results)
                }
                other => {
                    self.settle(&mut gather, &mut open, results);
                    results.push(self.single(other));
                    continue;
                }
            };
            match staged {
                Ok(()) => open += 1,
                Err(error) => {
                    self.settle(&mut gather, &mut open, results);
                    results.push(Err(error));
                }
            }
        }
        self.settle(&mut gather, &mut open, results);
    }

    /// Stages whole blocks: their data is in `gather` or written, their change in the record.
    pub(super) fn stage<'a>(
        &mut self,
        gather: &mut Gather<'a>,
        Whole { offset, data, sealed }: Whole<'a>,
        open: &mut usize,
        results: &mut Vec<Result<()>>,
    ) -> Result<()> {
        let blocks = data.len() / BLOCK_BYTES;
        // At worst every block lands in a run of its own.
        if !self.staged.has_room(blocks, blocks) {
            self.settle(gather, open, results);
        }
        // All space first: a request that does not fit must leave nothing behind.
        let cipher = match (self.disk.sealing.cipher()?, sealed) {
            (None, _) => None,
            (Some(cipher), Some(sealed)) => Some((Arc::clone(cipher), sealed)),
            // Never as it is.
            (Some(_), None) => return Err(Error::internal("no buffer to encrypt into")),
        };
        let runs = self.allocate_all(blocks)?;
        let mut lba = offset / BLOCK_SIZE;
        let (mut rest, mut salt) = (data, 0);
        if let Some((cipher, sealed)) = cipher {
            salt = cipher.salts.next();
            rest = sealed.get_or_init(|| self.seal(&cipher, salt, Lba(lba), &runs, data));
        }
        for run in runs {
            let (piece, behind) = rest.split_at(run.len as usize * BLOCK_BYTES);
            self.crcs.clear();
            self.crcs.extend(piece.chunks_exact(BLOCK_BYTES).map(crc32c));
            self.staged.write(Lba(lba), run.start, salt, &self.crcs);
            gather.add(run.start.offset(), piece);
            lba += u64::from(run.len);
            rest = behind;
        }
        Ok(())
    }

    /// The ciphertext of whole blocks that go to these runs.
    fn seal(
        &mut self,
        cipher: &Cipher,
        salt: u32,
        first: Lba,
        runs: &[Run],
        data: &[u8],
    ) -> Vec<u8> {
        let mut out = self.spare.pop().unwrap_or_default();
        out.resize(data.len(), 0);
        let places = runs.iter().flat_map(|run| (0..u64::from(run.len)).map(|at| run.start.0 + at));
        let blocks = data.chunks_exact(BLOCK_BYTES).zip(out.chunks_exact_mut(BLOCK_BYTES));
        for (((plain, out), pbn), lba) in blocks.zip(places).zip(first.0..) {
            cipher.seal(Place { lba: Lba(lba), pbn: Pbn(pbn), salt }, plain, out);
        }
        out
    }

    fn allocate_all(&mut self, blocks: usize) -> Result<Vec<Run>> {
        let mut runs = Vec::with_capacity(1);
        let mut left = u32::try_from(blocks).map_err(|_| Error::invalid("an impossible length"))?;
        while left > 0 {
            match self.allocate(left) {
                Ok(run) => {
                    left -= run.len;
                    runs.push(run);
                }
                Err(error) => {
                    let pool = &self.disk.shared.pool;
                    pool.with_allocator(|a| runs.iter().for_each(|run| a.give_back(*run)));
                    return Err(error);
                }
            }
        }
        Ok(runs)
    }

    pub(super) fn write_gathered(&mut self, gather: &mut Gather<'_>) -> Result<()> {
        let stretches = gather.stretches.iter().map(|stretch| (stretch.offset, stretch.buffers));
        self.disk.shared.pool.file.write_stretches(stretches, &mut gather.buffers)?;
        for stretch in &gather.stretches {
            self.wrote(stretch.offset, stretch.length);
        }
        *gather = Gather::default();
        Ok(())
    }

    /// Writes what is gathered and commits what is staged; answers the open requests.
    fn settle(&mut self, gather: &mut Gather<'_>, open: &mut usize, results: &mut Vec<Result<()>>) {
        if *open == 0 && self.staged.is_empty() {
            return;
        }
        let late = faults::seeded("h4-map-before-data");
        let mut result = if late { Ok(()) } else { self.write_gathered(gather) };
        if result.is_ok() {
            result = self.commit(&[]).map(|_| ());
            // Blocks whose data could not be written are not given back: they may be bad.
            self.give_back_unless(result.is_ok());
        }
        if late {
            faults::fail_point("write.journaled");
            result = result.and(self.write_gathered(gather));
        }
        self.staged.clear();
        *gather = Gather::default();
        results.extend(std::iter::repeat_n(result, *open));
        *open = 0;
    }

    pub(super) fn commit(&mut self, expect: &[(Lba, Entry)]) -> Result<bool> {
        faults::fail_point("write.staged");
        let shared = &self.disk.shared;
        let _room = shared.reserve(self.staged.bytes().len())?;
        let seq = self.disk.view.commit(shared, &mut self.staged, expect)?;
        self.unsettled = self.unsettled.max(seq);
        Ok(seq.is_some())
    }

    fn single(&mut self, op: Op<'_>) -> Result<()> {
        match op {
            Op::Write { offset, data } => self.write_ragged(offset, data),
            Op::Zero { range } => {
                self.clear(range.inner_blocks(), true)?;
                self.zero_edges(range)
            }
            Op::ZeroStored { range } => self.write_zeros(range),
            Op::Trim { range } => self.clear(range.inner_blocks(), false),
        }
    }

    /// Zeroes or trims whole blocks, in pieces. What is not mapped reads as zeros already, so the cost
    /// follows what is mapped and not the length of the range.
    fn clear(&mut self, range: BlockRange, zero: bool) -> Result<()> {
        if let Some(lazy) = self.disk.lazy().cloned() {
            return self.clear_lazily(&lazy, range);
        }
        let mapped = self.disk.view.mapped_leaves(&self.disk.shared, range)?;
        let near = |a: &u64, b: &u64| a / CLEAR_SPAN == b / CLEAR_SPAN;
        for leaves in mapped.chunks(CLEAR_LEAVES).flat_map(|some| some.chunk_by(near)) {
            let first = LeafIndex(leaves[0]).blocks();
            let last = LeafIndex(leaves[leaves.len() - 1]).blocks();
            let piece = BlockRange::new(first.start, last.end).clip(range);
            self.staged.clear();
            match zero {
                true => self.staged.zero(piece),
                false => self.staged.hole(piece),
            }
            let done = self.commit(&[]);
            self.staged.clear();
            done?;
        }
        Ok(())
    }

    fn zero_edges(&mut self, range: ByteRange) -> Result<()> {
        let inner = range.inner_blocks();
        let zeros = [0u8; BLOCK_BYTES];
        if inner.is_empty() {
            return self.write_zeros(range);
        }
        for (start, end) in
            [(range.start, inner.start * BLOCK_SIZE), (inner.end * BLOCK_SIZE, range.end)]
        {
            if start < end {
                let len = usize::try_from(end - start).expect("below a block");
                self.write_ragged(start, &zeros[..len])?;
            }
        }
        Ok(())
    }

    fn write_zeros(&mut self, range: ByteRange) -> Result<()> {
        let zeros = vec![0u8; ZERO_BYTES];
        let mut start = range.start;
        let mut results = Vec::new();
        while start < range.end {
            // Up to the next multiple of the piece, so that all but the edges are whole blocks.
            let end = range.end.min((start / ZERO_BYTES as u64 + 1) * ZERO_BYTES as u64);
            let data = &zeros[..usize::try_from(end - start).expect("at most a piece")];
            self.submit(&[Op::Write { offset: start, data }], &mut results);
            results.pop().unwrap_or(Ok(()))?;
            start = end;
        }
        Ok(())
    }

    /// A write whose first or last block is covered in part: merges with what is there.
    fn write_ragged(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let range = ByteRange::new(offset, data.len() as u64)
            .ok_or_else(|| Error::invalid("a range beyond 64 bits"))?;
        if range.is_empty() {
            return Ok(());
        }
        let outer = range.outer_blocks();
        let bytes = ByteRange { start: outer.start * BLOCK_SIZE, end: outer.end * BLOCK_SIZE };
        let mut whole = vec![0u8; usize::try_from(bytes.len()).expect("a request fits in memory")];
        let skip = usize::try_from(offset - bytes.start).expect("below a block");
        loop {
            let expect = self.read_edges(range, bytes, &mut whole)?;
            whole[skip..skip + data.len()].copy_from_slice(data);
            let sealed = Sealed::new();
            let mut gather = Gather::default();
            self.staged.clear();
            let blocks = Whole { offset: bytes.start, data: &whole, sealed: Some(&sealed) };
            let written = self
                .stage(&mut gather, blocks, &mut 0, &mut Vec::new())
                .and_then(|()| self.write_gathered(&mut gather));
            let outcome = written.and_then(|()| self.commit(&expect));
            self.give_back_unless(outcome.as_ref().is_ok_and(|done| *done));
            self.staged.clear();
            self.release();
            if outcome? {
                return Ok(());
            }
        }
    }

    /// Reads the blocks at the edges of a ragged range and tells what they were. The reading era goes on
    /// until the commit, so that an unchanged address means an unchanged block.
    fn read_edges(
        &mut self,
        range: ByteRange,
        bytes: ByteRange,
        whole: &mut [u8],
    ) -> Result<Vec<(Lba, Entry)>> {
        let outer = range.outer_blocks();
        let mut edges = Vec::with_capacity(2);
        if !range.start.is_multiple_of(BLOCK_SIZE) || range.len() < BLOCK_SIZE {
            edges.push(outer.start);
        }
        if !range.end.is_multiple_of(BLOCK_SIZE) && !edges.contains(&(outer.end - 1)) {
            edges.push(outer.end - 1);
        }
        let mut expect = Vec::with_capacity(2);
        let reading = self.reader.enter_new(&self.disk.shared.pool.readers);
        for lba in edges {
            let block = BlockRange::new(lba, lba + 1);
            self.disk.view.look_up(&self.disk.shared, block, |lba, entry| {
                expect.push((lba, entry));
            })?;
            let at = usize::try_from(lba * BLOCK_SIZE - bytes.start).expect("within the request");
            let out = &mut whole[at..at + BLOCK_BYTES];
            self.read_entry(expect.last().copied(), out)?;
        }
        self.reading = Some(reading);
        Ok(expect)
    }

    fn read_entry(&self, found: Option<(Lba, Entry)>, out: &mut [u8]) -> Result<()> {
        let stored = found.and_then(|(lba, entry)| Some((lba, Stored::of(entry)?)));
        let Some((lba, stored)) = stored else {
            return match found {
                Some((lba, Entry::Hole)) => self.read_hole(lba, out),
                _ => {
                    out.fill(0);
                    Ok(())
                }
            };
        };
        self.disk.shared.pool.file.read(stored.pbn.offset(), out)?;
        self.disk.verify(lba, stored, out)
    }

    /// Returns the blocks of a record that was not committed.
    pub(super) fn give_back_unless(&mut self, committed: bool) {
        if !committed {
            let runs = self.staged.runs();
            self.disk.shared.pool.with_allocator(|a| {
                runs.into_iter().for_each(|run| a.give_back(run));
            });
        }
    }
}

fn is_aligned(offset: u64, length: usize) -> bool {
    offset.is_multiple_of(BLOCK_SIZE) && length.is_multiple_of(BLOCK_BYTES)
}
