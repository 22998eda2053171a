//! A lane: what one connection keeps between requests, so that requests need no shared locks.
//!
//! Invariants: leased blocks are this lane's alone until they are committed or given back.
//! Absent: the requests (`read.rs`, `write.rs`).

use std::sync::Arc;

use super::Disk;
use super::habit::Habit;
use super::lazy::{Fetched, Need};
use super::read::Located;
use crate::error::Result;
use crate::map::record::Staged;
use crate::pool::allocator::Run;
use crate::pool::readers::{Reader, Reading};
use crate::units::{Lba, Pbn, Seq};

/// Blocks leased at a time (1 MiB): long enough for sequential writes, short enough to waste little.
const LEASE_BLOCKS: u32 = 256;
/// Written bytes after which the kernel is asked to begin writing back, so that a flush or snapshot
/// never finds more than a few milliseconds of work.
const WRITEBACK_BYTES: u64 = 1 << 20;
/// This many flushes within one lease make it worth writing zeros ahead of the data.
const EAGER_FLUSHES: u32 = 4;
/// Stretches up to this long are begun before the flush that is expected: the device has them written by then.
const AHEAD_BYTES: u64 = 256 << 10;
/// Stretch that is handed to writeback as one, though only parts of it may have been written.
const WRITEBACK_SPAN: u64 = 8 << 20;

/// A stretch of the pool in which data was written lately.
#[derive(Debug)]
struct Behind {
    start: u64,
    end: u64,
    bytes: u64,
}

impl Behind {
    /// Whether a write here still belongs to the stretch: allocation goes upwards through a segment,
    /// with gaps where blocks are in use.
    fn reaches(&self, offset: u64) -> bool {
        (self.start..self.start + WRITEBACK_SPAN).contains(&offset)
    }
}

/// The state of one connection to a disk.
#[derive(Debug)]
pub struct Lane {
    pub disk: Arc<Disk>,
    pub(super) reader: Reader,
    pub(super) reading: Option<Reading>,
    pub(super) located: Vec<Located>,
    /// Blocks of an origin that the disk may not have stored yet.
    pub(super) carried: Vec<Arc<Fetched>>,
    /// The first located block that the disk lacks, and what that needs.
    pub(super) need: Option<(Lba, Need)>,
    pub(super) staged: Staged,
    pub(super) crcs: Vec<u32>,
    /// Buffers for ciphertext, of an encrypted disk only.
    pub(super) spare: Vec<Vec<u8>>,
    /// The last record appended that the end of the process could still lose.
    pub(super) unsettled: Option<Seq>,
    lease: Option<Run>,
    flushes_in_lease: u32,
    /// Written and not yet handed to writeback.
    behind: Option<Behind>,
    habit: Habit,
    /// Something was written since [`Lane::look_ahead`].
    wrote: bool,
}

impl Lane {
    #[must_use]
    pub fn new(disk: &Arc<Disk>) -> Lane {
        Lane {
            disk: Arc::clone(disk),
            reader: disk.shared.pool.readers.register(),
            reading: None,
            located: Vec::new(),
            carried: Vec::new(),
            need: None,
            staged: Staged::default(),
            crcs: Vec::new(),
            spare: Vec::new(),
            unsettled: None,
            lease: None,
            flushes_in_lease: 0,
            behind: None,
            habit: Habit::default(),
            wrote: false,
        }
    }

    /// Up to `want` contiguous blocks of the pool to write to.
    pub(super) fn allocate(&mut self, want: u32) -> Result<Run> {
        let rest = match self.lease.take() {
            Some(rest) => rest,
            None => self.new_lease(want)?,
        };
        let taken = rest.len.min(want);
        if taken < rest.len {
            let start = Pbn(rest.start.0 + u64::from(taken));
            self.lease = Some(Run { start, len: rest.len - taken });
        }
        Ok(Run { start: rest.start, len: taken })
    }

    /// Takes note of data written, and has writeback begun when there is enough of it.
    pub(super) fn wrote(&mut self, offset: u64, length: u64) {
        self.wrote = true;
        let end = offset + length;
        match &mut self.behind {
            Some(behind) if behind.reaches(offset) => {
                behind.end = behind.end.max(end);
                behind.bytes += length;
            }
            other => {
                let before = other.replace(Behind { start: offset, end, bytes: length });
                self.hand_over(before);
            }
        }
        if self.behind.as_ref().is_some_and(|behind| behind.bytes >= WRITEBACK_BYTES) {
            let full = self.behind.take();
            self.hand_over(full);
        }
    }

    fn hand_over(&self, behind: Option<Behind>) {
        if let Some(Behind { start, end, .. }) = behind {
            self.disk.shared.pool.wrote(start, end - start);
        }
    }

    /// Called when a client has all its replies. If it is about to ask for a flush, the device begins at once with
    /// what the flush would wait for, while the reply and the request are on their way.
    pub fn look_ahead(&mut self) {
        if !std::mem::take(&mut self.wrote) || !self.habit.wrote() {
            return;
        }
        if let Some(Behind { start, end, .. }) = &self.behind
            && end - start <= AHEAD_BYTES
        {
            self.disk.shared.pool.begin_sync(*start, end - start);
        }
    }

    /// Makes all acknowledged writes durable.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn flush(&mut self, wrote_here: bool) -> Result<()> {
        self.flushes_in_lease = self.flushes_in_lease.saturating_add(1);
        // The flush writes it back itself; a second writer would only be in its way.
        self.behind = None;
        self.wrote = false;
        self.habit.flushed();
        self.disk.flush(wrote_here)
    }

    fn new_lease(&mut self, want: u32) -> Result<Run> {
        let eager = self.flushes_in_lease >= EAGER_FLUSHES;
        self.flushes_in_lease = 0;
        let pool = &self.disk.shared.pool;
        let (run, fresh) = pool.lease(want.max(LEASE_BLOCKS))?;
        if fresh && eager {
            // A flush of never-written extents costs the file system a journal commit each time.
            pool.prewrite(run)?;
        }
        Ok(run)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(run) = self.lease.take() {
            self.disk.shared.pool.with_allocator(|a| a.give_back(run));
        }
    }
}
