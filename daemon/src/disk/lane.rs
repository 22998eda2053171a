//! A lane: what one connection keeps between requests, so that requests need no shared locks.
//!
//! Invariants: leased blocks are this lane's alone until they are committed or given back.
//! Absent: the requests (`read.rs`, `write.rs`).

use std::sync::Arc;

use super::Disk;
use super::read::Located;
use crate::error::Result;
use crate::map::record::Staged;
use crate::pool::allocator::Run;
use crate::pool::readers::{Reader, Reading};
use crate::units::Pbn;

/// Blocks leased at a time (1 MiB): long enough for sequential writes, short enough to waste little.
const LEASE_BLOCKS: u32 = 256;
/// Written bytes after which the kernel is asked to begin writing back, so that a flush or snapshot
/// never finds more than a few milliseconds of work.
const WRITEBACK_BYTES: u64 = 1 << 20;
/// This many flushes within one lease make it worth writing zeros ahead of the data.
const EAGER_FLUSHES: u32 = 4;

/// The state of one connection to a disk.
#[derive(Debug)]
pub struct Lane {
    pub disk: Arc<Disk>,
    pub(super) reader: Reader,
    pub(super) reading: Option<Reading>,
    pub(super) located: Vec<Located>,
    pub(super) staged: Staged,
    pub(super) crcs: Vec<u32>,
    lease: Option<Run>,
    flushes_in_lease: u32,
    /// Written and not yet handed to writeback.
    behind: Option<(u64, u64)>,
}

impl Lane {
    #[must_use]
    pub fn new(disk: &Arc<Disk>) -> Lane {
        Lane {
            disk: Arc::clone(disk),
            reader: disk.shared.pool.readers.register(),
            reading: None,
            located: Vec::new(),
            staged: Staged::default(),
            crcs: Vec::new(),
            lease: None,
            flushes_in_lease: 0,
            behind: None,
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
        self.behind = match self.behind {
            Some((start, end)) if end == offset => Some((start, offset + length)),
            Some((start, end)) => {
                self.disk.shared.pool.wrote(start, end - start);
                Some((offset, offset + length))
            }
            None => Some((offset, offset + length)),
        };
        if let Some((start, end)) = self.behind.filter(|(s, e)| e - s >= WRITEBACK_BYTES) {
            self.disk.shared.pool.wrote(start, end - start);
            self.behind = None;
        }
    }

    /// Makes all acknowledged writes durable.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn flush(&mut self, wrote_here: bool) -> Result<()> {
        self.flushes_in_lease = self.flushes_in_lease.saturating_add(1);
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
