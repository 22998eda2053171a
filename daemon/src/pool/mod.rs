//! The pool: one file that holds data blocks and the journal, and the rules for when bytes are durable.
//!
//! Invariants: this is the only module with data I/O; a block is written before the record that names it
//! is appended; one sync covers both, because they share a file.
//! Absent: what blocks mean. Disks, snapshots and the metadata store are above.

pub mod aligned;
pub mod allocator;
pub mod behind;
pub mod bitmap;
mod direct;
pub mod file;
pub mod journal;
mod outbox;
pub mod readers;
mod recycling;
mod ring;
pub mod superblock;

use std::cell::Cell;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Pbn, Seq};
use aligned::Pages;
use allocator::{Allocator, Geometry, Lease, Run};
use behind::Behind;
use file::{IoMode, PoolFile};
use journal::{Journal, Kind, Ring};
use readers::Readers;
use superblock::Superblock;

/// CRC32C, the checksum of blocks, records and superblocks.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(sum).expect("a 32-bit checksum")
}

/// How long a writer on a full pool waits for readers to let freed blocks go before it gets `NoSpace`.
const FULL_WAIT: Duration = Duration::from_millis(200);

/// Sizes that are fixed when a pool is made.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub segment_blocks: u32,
    pub journal_bytes: u64,
    pub max_bytes: u64,
}

/// The open pool.
#[derive(Debug)]
pub struct Pool {
    pub file: PoolFile,
    pub journal: Journal,
    pub readers: Readers,
    allocator: Mutex<Allocator>,
    superblock: Mutex<Superblock>,
    growing: Mutex<()>,
    behind: Behind,
    /// Bytes that growth of the pool file leaves free on the host's file system, for the metadata store.
    host_reserve: u64,
}

/// A pool whose journal has not been replayed yet.
#[derive(Debug)]
pub struct Closed {
    pub file: PoolFile,
    pub superblock: Superblock,
}

impl Closed {
    /// Makes a new pool file (or takes over a zeroed block device) and its first superblocks.
    ///
    /// # Errors
    /// The file exists, or the host has no space.
    pub fn create(path: &Path, uuid: [u8; 16], layout: Layout, io: IoMode) -> Result<Closed> {
        let device = path.exists();
        // Under another name until it is whole: a cut while it is made leaves no half pool behind.
        let draft = path.with_extension("new");
        if draft.exists() && !device {
            std::fs::remove_file(&draft).map_err(|e| Error::io("remove an old draft", &e))?;
        }
        let file = PoolFile::open(if device { path } else { &draft }, !device, io)?;
        let mut superblock = Superblock {
            version: superblock::VERSION,
            uuid,
            generation: 0,
            opening: 0,
            segment_blocks: layout.segment_blocks,
            journal_bytes: layout.journal_bytes,
            max_blocks: layout.max_bytes / BLOCK_SIZE,
            checkpoint: Seq(0),
            tail: 0,
            tail_opening: 0,
        };
        if !device {
            file.grow(superblock.data_start() * BLOCK_SIZE)?;
        }
        // Written, not only allocated: the first use of an unwritten extent costs a flush of its own.
        let zeros = Pages::zeroed(zeros_at_once(io));
        for at in (0..superblock.data_start() * BLOCK_SIZE).step_by(zeros.len()) {
            let left = superblock.data_start() * BLOCK_SIZE - at;
            let piece = zeros.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.write(at, &zeros[..piece])?;
        }
        superblock.store(&file)?;
        superblock.store(&file)?;
        if !device {
            std::fs::rename(&draft, path).map_err(|e| Error::io("name the pool file", &e))?;
        }
        if let Some(parent) = path.parent() {
            file::sync_directory(parent)?;
        }
        Ok(Closed { file, superblock })
    }

    /// Checks that a new pool may be made at `path`: nothing is there, or an empty block device.
    ///
    /// # Errors
    /// `Exists`, saying what is there.
    pub fn check_target(path: &Path, io: IoMode) -> Result<()> {
        if path.exists() {
            return check_unused_device(path, &PoolFile::open(path, false, io)?);
        }
        match (io, path.parent()) {
            (IoMode::Direct, Some(dir)) => direct::check_directory(dir),
            _ => Ok(()),
        }
    }

    /// Opens an existing pool file and reads its superblock.
    ///
    /// # Errors
    /// It is missing, locked or not a pool.
    pub fn open(path: &Path, io: IoMode) -> Result<Closed> {
        let file = PoolFile::open(path, false, io)?;
        let superblock = Superblock::load(&file)?;
        Ok(Closed { file, superblock })
    }

    /// The ring of the journal.
    #[must_use]
    pub fn ring(&self) -> Ring {
        let tag = u64::from_le_bytes(self.superblock.uuid[..8].try_into().expect("8 bytes"));
        Ring { tag, bytes: self.superblock.journal_bytes }
    }

    /// An allocator that knows the size of the file and nothing in use yet.
    ///
    /// # Errors
    /// The file cannot be measured.
    pub fn allocator(&self) -> Result<Allocator> {
        let start = self.superblock.data_start();
        let per = u64::from(self.superblock.segment_blocks);
        let have = (self.file.length()? / BLOCK_SIZE).saturating_sub(start) / per;
        let most = self.superblock.max_blocks / per;
        let max = if self.file.is_device() { have.min(most) } else { most };
        let geometry = Geometry {
            start,
            segment_blocks: self.superblock.segment_blocks,
            max_segments: u32::try_from(max).unwrap_or(u32::MAX),
        };
        let mut allocator = Allocator::new(geometry);
        allocator.grown(u32::try_from(have.min(max)).unwrap_or(u32::MAX));
        Ok(allocator)
    }

    /// Goes on behind the last record that was replayed.
    #[must_use]
    pub fn start(self, position: u64, last: Seq, allocator: Allocator, host_reserve: u64) -> Pool {
        let ring = self.ring();
        let opening = self.superblock.opening;
        let (tail, io) = (self.superblock.tail, self.file.mode());
        let journal = Journal::new(ring, opening, position, tail, last, io);
        Pool {
            file: self.file,
            journal,
            readers: Readers::default(),
            allocator: Mutex::new(allocator),
            superblock: Mutex::new(self.superblock),
            growing: Mutex::new(()),
            behind: Behind::default(),
            host_reserve,
        }
    }
}

/// How many zeros are written in one piece, where small writes will follow: little, because the page cache keeps a file
/// in units as large as the writes that made it, and a small write into a large unit makes the file system walk all of
/// its blocks.
fn zeros_at_once(io: IoMode) -> usize {
    match io {
        IoMode::Buffered => BLOCK_BYTES,
        IoMode::Direct => 256 * BLOCK_BYTES,
    }
}

fn check_unused_device(path: &Path, file: &PoolFile) -> Result<()> {
    let name = path.display();
    if !file.is_device() {
        return Err(Error::new(ErrorKind::Exists, format!("{name} exists and is not a pool's")));
    }
    let mut first = vec![0u8; 64 << 10];
    file.read(0, &mut first)?;
    if first.starts_with(&superblock::MAGIC) {
        return Err(Error::new(
            ErrorKind::Exists,
            format!("{name} holds a pool, but its map is missing"),
        )
        .hint("restore the map directory from the same moment"));
    }
    if first.iter().any(|byte| *byte != 0) {
        return Err(Error::new(ErrorKind::Exists, format!("{name} is not empty"))
            .hint(format!("if nothing on it is needed: wipefs -a {name}, then zero its start")));
    }
    Ok(())
}

impl Pool {
    /// Runs `act` on the allocator under its lock, which is never held across I/O.
    pub fn with_allocator<T>(&self, act: impl FnOnce(&mut Allocator) -> T) -> T {
        act(&mut self.allocator.lock())
    }

    /// Up to `want` contiguous free blocks, and whether they were never written.
    ///
    /// # Errors
    /// `NoSpace` when nothing is free, after what was freed has been made durable and readers had time.
    pub fn lease(&self, want: u32) -> Result<(Run, bool)> {
        let deadline = Instant::now() + FULL_WAIT;
        if self.with_allocator(|a| a.has_young_pending()) {
            let (oldest, written) = (self.readers.oldest(), self.journal.written());
            self.with_allocator(|a| a.reuse_young(written, oldest));
        }
        loop {
            let answer = self.with_allocator(|a| a.lease(want));
            match answer {
                Lease::Run { run, fresh } => return Ok((run, fresh)),
                Lease::Grow(count) => self.grow(count)?,
                Lease::Full => {
                    let waiting = self.with_allocator(|a| a.pending_blocks());
                    if waiting == 0 || Instant::now() > deadline {
                        return Err(Error::new(ErrorKind::NoSpace, "the pool is full")
                            .hint("delete snapshots or disks, trim, or `rowctl pool resize`"));
                    }
                    self.sync()?;
                    std::thread::yield_now();
                }
            }
        }
    }

    /// Writes zeros over leased blocks, so that a flush of data in them need not convert extents.
    ///
    /// # Errors
    /// The device refuses.
    pub fn prewrite(&self, run: Run) -> Result<()> {
        static ZEROS: LazyLock<Pages> = LazyLock::new(|| Pages::zeroed(256 * BLOCK_BYTES));
        let end = run.start.offset() + u64::from(run.len) * BLOCK_SIZE;
        let piece = zeros_at_once(self.file.mode());
        for at in (run.start.offset()..end).step_by(piece) {
            let length = piece.min(usize::try_from(end - at).unwrap_or(piece));
            self.file.write(at, &ZEROS[..length])?;
        }
        Ok(())
    }

    /// Makes everything appended so far durable and lets what it freed be used again.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn sync(&self) -> Result<Seq> {
        self.behind.asked(Instant::now());
        self.sync_unasked()
    }

    /// As [`Pool::sync`], for the daemon's own rounds: no client and no verb waits for it.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn sync_unasked(&self) -> Result<Seq> {
        let began = Cell::new(None);
        let begin = |last| {
            let now = Instant::now();
            let window = self.with_allocator(|a| a.capture(last));
            self.behind.sync_begins(window, now);
            began.set(Some(now));
        };
        let result = self.journal.sync(&self.file, begin);
        if let Some(began) = began.get() {
            let now = Instant::now();
            self.behind.sync_ended(now - began, now);
        }
        if result.is_err() {
            self.journal.wake_all();
        }
        let durable = result?;
        faults::fail_point("flush.synced");
        let (oldest, written) = (self.readers.oldest(), self.journal.written());
        self.with_allocator(|a| {
            a.reuse(durable, oldest);
            a.reuse_young(written, oldest);
        });
        Ok(durable)
    }

    /// Has the device begin with a sync that is likely to come: the data of this range and the records that are not
    /// durable yet. Nothing is waited for, nothing promised.
    pub fn begin_sync(&self, offset: u64, length: u64) {
        if let Some((at, bytes)) = self.journal.unsynced() {
            self.file.start_writeback(offset, length);
            self.file.start_writeback(at, bytes);
        }
    }

    /// Takes note of written data, for [`Pool::write_back`].
    pub fn wrote(&self, offset: u64, length: u64) {
        if self.file.mode() == IoMode::Direct {
            return;
        }
        self.behind.wrote((offset, length), || self.with_allocator(|a| a.window()));
    }

    /// Has the kernel begin to write back what should be on its way. Waits up to `timeout` for something. Background work.
    pub fn write_back(&self, timeout: Duration) {
        for (offset, length) in self.behind.take(timeout) {
            self.file.start_writeback(offset, length);
        }
    }

    /// Whether data waits for the next sync, which will take its time.
    #[must_use]
    pub fn holds_back(&self) -> bool {
        self.file.mode() == IoMode::Buffered && self.behind.is_held()
    }

    /// Nobody waits in [`Pool::write_back`] any more.
    pub fn end_write_back(&self) {
        self.behind.end();
    }

    /// Appends a record; see [`Journal::append`].
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn append(&self, kind: Kind, body: &[u8]) -> Result<Seq> {
        self.journal.append(&self.file, kind, body)
    }

    /// Returns when a record cannot be lost by the end of the process; see [`Journal::settle`].
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn settle(&self, seq: Seq) -> Result<()> {
        faults::fail_point("write.applied");
        self.journal.settle(&self.file, seq)
    }

    /// Changes the superblock and stores it.
    ///
    /// # Errors
    /// The pool stops on any error.
    pub fn store_superblock(&self, change: impl FnOnce(&mut Superblock)) -> Result<()> {
        let mut superblock = self.superblock.lock();
        change(&mut superblock);
        superblock.store(&self.file).inspect_err(|e| self.file.stop(e.message()))
    }

    /// Marks the pool as one that only a rowd of this format or a later one may open.
    ///
    /// # Errors
    /// The pool stops on any error.
    pub fn require_version(&self, version: u32) -> Result<()> {
        if self.superblock().version >= version {
            return Ok(());
        }
        self.store_superblock(|sb| sb.version = sb.version.max(version))
    }

    /// A copy of the superblock as last stored.
    #[must_use]
    pub fn superblock(&self) -> Superblock {
        self.superblock.lock().clone()
    }

    /// Gives wholly free segments back to the host. Background work.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn punch_free_segments(&self) -> Result<()> {
        let per = u64::from(self.superblock.lock().segment_blocks);
        let (segments, start) = self.with_allocator(|a| (a.take_punchable(), a.geometry().start));
        for segment in segments {
            let offset = Pbn(start + u64::from(segment) * per).offset();
            let outcome = self.file.punch(offset, per * BLOCK_SIZE);
            self.with_allocator(|a| a.punched(segment, outcome.is_ok()));
            if let Err(error) = outcome {
                tracing::debug!(%error, segment, "segment not punched");
            }
        }
        self.file.check_running()
    }

    fn grow(&self, count: u32) -> Result<()> {
        let _one_at_a_time = self.growing.lock();
        if self.with_allocator(|a| a.segment_count()) >= count {
            return Ok(());
        }
        let superblock = self.superblock();
        let per = u64::from(superblock.segment_blocks) * BLOCK_SIZE;
        let length = superblock.data_start() * BLOCK_SIZE + u64::from(count) * per;
        let outcome = self.check_host_space(per).and_then(|()| self.file.grow(length));
        match outcome {
            Ok(()) => {
                faults::fail_point("grow.allocated");
                self.with_allocator(|a| a.grown(count));
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                tracing::warn!(%error, "the pool file cannot grow");
                self.with_allocator(|a| a.block_growth(true));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn check_host_space(&self, bytes: u64) -> Result<()> {
        let Some(free) = self.file.host_free_bytes() else { return Ok(()) };
        if free >= bytes + self.host_reserve {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NoSpace, "the host's file system is nearly full"))
    }
}
