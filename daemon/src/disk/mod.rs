//! A disk as an export sees it: bytes in ranges, on top of a view of the map and the blocks of the pool.
//!
//! Invariants: a read returns what was written or an error, never other bytes: each block's CRC32C is
//! checked on every read; a request that ends in the middle of a block changes no byte outside its range.
//! What is stored of an encrypted disk is ciphertext, and checksums are of what is stored.
//! Absent: names, ids and policies (`engine/`), and the protocol (`nbd/`).

pub mod habit;
pub mod lane;
pub mod lazy;
pub mod meter;
pub mod read;
mod returning;
pub mod write;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use lazy::Lazy;

use crate::crypt::Sealing;
use crate::error::Result;
use crate::map::leaf::Entry;
use crate::map::view::{Shared, View};
use crate::pool::file::IoMode;
use crate::pool::journal::flush_is_partial;
use crate::units::{BLOCK_SIZE, BlockRange, ByteRange, Lba, Pbn, TreeId};

/// Told of every block that is not what was written.
pub trait Witness: fmt::Debug + Send + Sync {
    /// Block `lba` of the export `disk`, of this family, stored at `pbn`, fails its checksum.
    fn corrupt_block(&self, disk: &str, tree: TreeId, lba: Lba, pbn: Pbn);
}

/// One exported disk or snapshot, shared by all its connections.
#[derive(Debug)]
pub struct Disk {
    /// `disk` or `disk@snapshot`, for messages.
    pub label: String,
    pub view: Arc<View>,
    pub shared: Arc<Shared>,
    pub sealing: Sealing,
    witness: Arc<dyn Witness>,
    /// Of a disk that is filled while it is used.
    lazy: OnceLock<Arc<Lazy>>,
    size: AtomicU64,
    read_only: AtomicBool,
}

/// A stretch of a disk that is stored, or is not and reads as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub range: ByteRange,
    pub stored: bool,
}

impl Disk {
    #[must_use]
    pub fn new(
        label: String,
        size: u64,
        view: Arc<View>,
        shared: Arc<Shared>,
        sealing: Sealing,
        witness: Arc<dyn Witness>,
    ) -> Arc<Disk> {
        let read_only = AtomicBool::new(!view.writable);
        let size = AtomicU64::new(size);
        let lazy = OnceLock::new();
        Arc::new(Disk { label, view, shared, sealing, witness, lazy, size, read_only })
    }

    /// The same disk, with another sealing, for those who open it from now on.
    #[must_use]
    pub fn with_sealing(&self, sealing: Sealing) -> Arc<Disk> {
        let (view, shared) = (Arc::clone(&self.view), Arc::clone(&self.shared));
        let (label, witness) = (self.label.clone(), Arc::clone(&self.witness));
        let disk = Disk::new(label, self.size(), view, shared, sealing, witness);
        disk.set_read_only(self.is_read_only());
        if let Some(lazy) = self.lazy.get() {
            disk.fill_from(lazy);
        }
        disk
    }

    /// It does not have all its contents yet: what it lacks comes from elsewhere. Said before anybody uses it.
    pub fn fill_from(&self, lazy: &Arc<Lazy>) {
        self.lazy.get_or_init(|| Arc::clone(lazy));
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Changes the size; connected clients learn of it when they connect again.
    pub fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// Whether every read of what is stored waits for the device, because nothing is kept in memory.
    #[must_use]
    pub fn is_uncached(&self) -> bool {
        self.shared.pool.file.mode() == IoMode::Direct
    }

    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Refuses writes, or takes them again; a snapshot stays read-only.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only || !self.view.writable, Ordering::Relaxed);
    }

    /// Makes every write acknowledged so far, on any connection and disk, durable.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn flush(&self, wrote_here: bool) -> Result<()> {
        if flush_is_partial() && !wrote_here {
            return Ok(());
        }
        self.shared.pool.sync().map(|_| ())
    }

    /// What is stored in a range, as stretches that differ from their neighbours, at most `limit`.
    /// They cover the range from its start, and all of it when fewer than `limit` are returned.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn extents(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>> {
        if let Some(lazy) = self.lazy() {
            return self.lazy_extents(lazy, range, limit);
        }
        let blocks = range.outer_blocks();
        let mut found = Extents { range, list: Vec::new() };
        let mut next = blocks.start;
        for leaf in self.view.mapped_leaves(&self.shared, blocks)? {
            let part = crate::units::LeafIndex(leaf).blocks().clip(blocks);
            found.push(next, part.start, false);
            self.view.look_up(&self.shared, part, |lba, entry| {
                found.push(lba.0, lba.0 + 1, matches!(entry, Entry::Data { .. }));
            })?;
            next = part.end;
            if found.list.len() > limit {
                found.list.truncate(limit);
                return Ok(found.list);
            }
        }
        found.push(next, blocks.end, false);
        found.list.truncate(limit);
        Ok(found.list)
    }

    pub(crate) fn report_corrupt(&self, lba: Lba, pbn: Pbn) {
        self.witness.corrupt_block(&self.label, self.view.tree.id, lba, pbn);
    }
}

struct Extents {
    range: ByteRange,
    list: Vec<Extent>,
}

impl Extents {
    fn push(&mut self, from: u64, to: u64, stored: bool) {
        let start = (from * BLOCK_SIZE).max(self.range.start);
        let end = (to * BLOCK_SIZE).min(self.range.end);
        if start >= end {
            return;
        }
        match self.list.last_mut() {
            Some(last) if last.stored == stored => last.range.end = end,
            _ => self.list.push(Extent { range: ByteRange { start, end }, stored }),
        }
    }
}

/// The blocks of a byte range, as a map look-up wants them.
pub(crate) fn blocks_of(range: ByteRange) -> BlockRange {
    range.outer_blocks()
}
