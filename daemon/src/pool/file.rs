//! The pool file: every byte of data and journal is read and written here.
//!
//! Invariants: offsets are multiples of 4096 for data; a failed sync stops the pool for good, because
//! the kernel marks the pages clean and a second sync would lie; a short read or write is continued;
//! callers need not know whether the page cache is used, except that direct I/O writes whole blocks and
//! has nothing in memory to read without waiting.
//! Absent: meaning. This file knows bytes and offsets, nothing of journals or blocks.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::aligned::Pages;
use super::direct::{self, Direct};
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::histogram::Histogram;
use crate::units::BLOCK_BYTES;

/// Blocks that [`PoolFile::read_each`] reads at once.
const EACH_AT_ONCE: usize = 64;
/// How long to wait for the lock, in any mode: direct transfers of a process that was killed hold it until
/// they are done.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Between two attempts to lock.
const LOCK_AGAIN: Duration = Duration::from_millis(5);

/// How the pool file is read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoMode {
    /// Through the page cache.
    #[default]
    Buffered,
    /// Past it (`O_DIRECT`): nothing waits for memory, and nothing is kept in memory.
    Direct,
}

impl IoMode {
    /// As the configuration writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            IoMode::Buffered => "buffered",
            IoMode::Direct => "direct",
        }
    }
}

/// Buffers that one `pwritev` takes at most (the kernel's `UIO_MAXIOV`).
pub const IOV_MAX: usize = 1024;

/// What a read that must not wait found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nowait {
    /// The buffer is filled.
    Done,
    /// Some of it is not in the page cache: somebody else should read it.
    WouldBlock,
}

/// The open pool file, locked against a second daemon.
#[derive(Debug)]
pub struct PoolFile {
    file: Flock<File>,
    direct: Option<Direct>,
    device: bool,
    stopped: AtomicBool,
    reason: OnceLock<String>,
    /// How long the device took to make things durable.
    pub syncs: Histogram,
}

impl PoolFile {
    /// Opens the file at `path` and locks it; `create` makes it and must not find one.
    ///
    /// # Errors
    /// `InUse` when another process holds the lock; `Unsupported` when the file system has no direct I/O.
    pub fn open(path: &Path, create: bool, io: IoMode) -> Result<PoolFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(create);
        if io == IoMode::Direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let file = options.open(path).map_err(|error| match io {
            IoMode::Buffered => Error::io(format!("open {}", path.display()), &error),
            IoMode::Direct => direct::open_error(path, &error),
        })?;
        let device = file.metadata().is_ok_and(|m| m.file_type().is_block_device());
        let file = lock(file, path)?;
        let direct = match io {
            IoMode::Buffered => None,
            IoMode::Direct => Some(Direct::new(&file, path)?),
        };
        let (stopped, reason) = (AtomicBool::new(false), OnceLock::new());
        let syncs = Histogram::default();
        Ok(PoolFile { file, direct, device, stopped, reason, syncs })
    }

    /// How it is read and written.
    #[must_use]
    pub fn mode(&self) -> IoMode {
        if self.direct.is_some() { IoMode::Direct } else { IoMode::Buffered }
    }

    /// Whether the pool lives on a block device, which cannot grow.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.device
    }

    /// Length in bytes.
    ///
    /// # Errors
    /// The file cannot be asked.
    pub fn length(&self) -> Result<u64> {
        use std::io::{Seek, SeekFrom};
        let mut file: &File = &self.file;
        file.seek(SeekFrom::End(0)).map_err(|e| Error::io("measure the pool file", &e))
    }

    /// Refuses all further writes and syncs, for `reason`. The first reason stays.
    pub fn stop(&self, reason: &str) {
        if self.reason.set(reason.to_owned()).is_ok() {
            tracing::error!(reason, "the pool accepts no more writes");
        }
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Why the pool stopped, if it did.
    #[must_use]
    pub fn stopped(&self) -> Option<&str> {
        if !self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        self.reason.get().map(String::as_str)
    }

    /// Fails when the pool has stopped.
    ///
    /// # Errors
    /// `Stopped`, with the first reason.
    pub fn check_running(&self) -> Result<()> {
        match self.stopped() {
            None => Ok(()),
            Some(reason) => {
                Err(Error::new(ErrorKind::Stopped, format!("the pool has stopped: {reason}"))
                    .hint("look at the device, restart rowd, then run `rowd check`"))
            }
        }
    }

    /// Reads exactly `out.len()` bytes, waiting for the device if need be.
    ///
    /// # Errors
    /// The device refuses, or the file ends before.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let done = match &self.direct {
            None => self.file.read_exact_at(out, offset),
            Some(direct) => direct.read(&self.file, offset, out),
        };
        done.map_err(|e| Error::io(format!("read pool bytes at {offset}"), &e))
    }

    /// Reads whole blocks from several places, at once where the mode allows it.
    ///
    /// # Errors
    /// As [`PoolFile::read`].
    pub fn read_many(&self, list: &mut [(u64, &mut [u8])]) -> Result<()> {
        match (&self.direct, &list) {
            (Some(direct), [(first, _), ..]) => {
                let first = *first;
                direct
                    .read_many(&self.file, list)
                    .map_err(|e| Error::io(format!("read pool bytes from {first} on"), &e))
            }
            _ => list.iter_mut().try_for_each(|(offset, out)| self.read(*offset, out)),
        }
    }

    /// Reads the 4096 bytes at each offset, several at once where the mode allows it, and shows what was
    /// read to `look`, in order.
    pub fn read_each(
        &self,
        offsets: impl IntoIterator<Item = u64>,
        mut look: impl FnMut(Result<&[u8]>),
    ) {
        let mut pages = Pages::zeroed(EACH_AT_ONCE * BLOCK_BYTES);
        let mut offsets = offsets.into_iter().peekable();
        while offsets.peek().is_some() {
            let some = offsets.by_ref().take(EACH_AT_ONCE).zip(pages.chunks_exact_mut(BLOCK_BYTES));
            let mut list: Vec<_> = some.collect();
            let together = self.read_many(&mut list).is_ok();
            for (offset, page) in list {
                // Which of them failed is found out one by one.
                let read = if together { Ok(()) } else { self.read(offset, page) };
                look(read.map(|()| &*page));
            }
        }
    }

    /// Reads without waiting for the device: only what the page cache holds.
    ///
    /// # Errors
    /// The device refuses.
    pub fn read_nowait(&self, offset: u64, out: &mut [u8]) -> Result<Nowait> {
        if self.direct.is_some() {
            return Ok(Nowait::WouldBlock);
        }
        let iov = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
        let at = i64::try_from(offset).map_err(|_| Error::internal("offset beyond 63 bits"))?;
        // SAFETY: `iov` describes the exclusive borrow `out`, which outlives the call.
        let got = unsafe {
            libc::preadv2(self.file.as_raw_fd(), &raw const iov, 1, at, libc::RWF_NOWAIT)
        };
        if usize::try_from(got).is_ok_and(|n| n == out.len()) {
            return Ok(Nowait::Done);
        }
        if got >= 0 {
            return Ok(Nowait::WouldBlock);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EOPNOTSUPP | libc::EINTR) => Ok(Nowait::WouldBlock),
            _ => Err(Error::io(format!("read pool bytes at {offset}"), &error)),
        }
    }

    /// Writes all of `data`; whole blocks in direct mode.
    ///
    /// # Errors
    /// The pool has stopped, or the device refuses.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_running()?;
        let done = match &self.direct {
            None => self.file.write_all_at(data, offset),
            Some(direct) => {
                direct.write(&self.file, std::iter::once((offset, 1)), &[IoSlice::new(data)])
            }
        };
        done.map_err(|e| Error::io(format!("write pool bytes at {offset}"), &e))
    }

    /// Writes the buffers one after the other to stretches of the file, each told by its offset and its
    /// number of buffers; whole blocks in direct mode, and all stretches at once.
    ///
    /// # Errors
    /// As [`PoolFile::write`].
    pub fn write_stretches(
        &self,
        stretches: impl Iterator<Item = (u64, usize)>,
        buffers: &mut [IoSlice<'_>],
    ) -> Result<()> {
        self.check_running()?;
        if let Some(direct) = &self.direct {
            return direct
                .write(&self.file, stretches, buffers)
                .map_err(|e| Error::io("write to the pool", &e));
        }
        let mut rest = buffers;
        for (offset, count) in stretches {
            let (now, behind) = rest.split_at_mut(count);
            self.write_vectored(offset, now)?;
            rest = behind;
        }
        Ok(())
    }

    fn write_vectored(&self, mut offset: u64, buffers: &mut [IoSlice<'_>]) -> Result<()> {
        let mut rest = buffers;
        while !rest.is_empty() {
            let take = rest.len().min(IOV_MAX);
            let at = i64::try_from(offset).map_err(|_| Error::internal("offset beyond 63 bits"))?;
            let wrote = match nix::sys::uio::pwritev(&*self.file, &rest[..take], at) {
                Ok(wrote) => wrote,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => {
                    return Err(Error::io(format!("write pool bytes at {offset}"), &errno.into()));
                }
            };
            if wrote == 0 {
                return Err(Error::new(ErrorKind::Io, format!("wrote nothing at {offset}")));
            }
            offset += wrote as u64;
            IoSlice::advance_slices(&mut rest, wrote);
        }
        Ok(())
    }

    /// Makes every completed write durable (`fdatasync`). An error stops the pool.
    ///
    /// # Errors
    /// The pool has stopped, now or before.
    pub fn sync(&self) -> Result<()> {
        self.check_running()?;
        if faults::seeded("h1-flush-skips-sync") {
            return Ok(());
        }
        let began = Instant::now();
        let outcome = nix::unistd::fdatasync(&*self.file);
        self.syncs.add(1, began.elapsed());
        match outcome {
            Ok(()) => Ok(()),
            Err(errno) if faults::seeded("h9-retry-after-failed-sync") => {
                tracing::warn!(%errno, "sync failed, trying again");
                Ok(())
            }
            Err(errno) => {
                self.stop(&format!("fdatasync of the pool file failed: {errno}"));
                self.check_running()
            }
        }
    }

    /// Asks the kernel to begin writing a range back, so that the next sync finds less to do.
    pub fn start_writeback(&self, offset: u64, length: u64) {
        if self.direct.is_some() {
            return;
        }
        let (Ok(at), Ok(len)) = (i64::try_from(offset), i64::try_from(length)) else { return };
        // SAFETY: a plain system call on an owned descriptor; it gives no guarantee and needs none.
        let result = unsafe {
            libc::sync_file_range(self.file.as_raw_fd(), at, len, libc::SYNC_FILE_RANGE_WRITE)
        };
        if result != 0 {
            tracing::debug!(error = %io::Error::last_os_error(), "sync_file_range");
        }
    }

    /// Makes the file at least `length` bytes long, with space allocated.
    ///
    /// # Errors
    /// `NoSpace` when the file system is full, or the pool is a device.
    pub fn grow(&self, length: u64) -> Result<()> {
        self.check_running()?;
        if self.device {
            return Err(Error::new(ErrorKind::NoSpace, "the pool's block device is full"));
        }
        let len = i64::try_from(length).map_err(|_| Error::internal("length beyond 63 bits"))?;
        let flags = nix::fcntl::FallocateFlags::empty();
        nix::fcntl::fallocate(&*self.file, flags, 0, len)
            .map_err(|e| Error::io(format!("grow the pool file to {length} bytes"), &e.into()))
    }

    /// Bytes free on the file system that holds the pool file, where there is one.
    #[must_use]
    pub fn host_free_bytes(&self) -> Option<u64> {
        if self.device {
            return None;
        }
        let stat = nix::sys::statvfs::fstatvfs(&*self.file).ok()?;
        Some(stat.blocks_available() * stat.fragment_size())
    }

    /// Gives a range back to the file system or device below; it reads as zeros or old bytes afterwards.
    ///
    /// # Errors
    /// The file system cannot punch holes.
    pub fn punch(&self, offset: u64, length: u64) -> Result<()> {
        self.check_running()?;
        use nix::fcntl::FallocateFlags as F;
        let at = i64::try_from(offset).map_err(|_| Error::internal("offset beyond 63 bits"))?;
        let len = i64::try_from(length).map_err(|_| Error::internal("length beyond 63 bits"))?;
        let flags = F::FALLOC_FL_PUNCH_HOLE | F::FALLOC_FL_KEEP_SIZE;
        nix::fcntl::fallocate(&*self.file, flags, at, len)
            .map_err(|e| Error::io(format!("punch a hole at {offset}"), &e.into()))
    }
}

/// Locks the pool file against other daemons.
fn lock(mut file: File, path: &Path) -> Result<Flock<File>> {
    let began = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((back, _)) if began.elapsed() < LOCK_WAIT => {
                file = back;
                std::thread::sleep(LOCK_AGAIN);
            }
            Err((_, errno)) => {
                let what = format!("{} is in use: {errno}", path.display());
                return Err(Error::new(ErrorKind::InUse, what)
                    .hint("another rowd serves this pool; end it first"));
            }
        }
    }
}

/// Makes the entries of a directory durable, as after creating a file in it.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_directory(path: &Path) -> Result<()> {
    if faults::seeded("h10-directory-not-synced") {
        return Ok(());
    }
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io(format!("sync directory {}", path.display()), &e))
}
