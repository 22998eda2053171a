//! Copies whole disks between NBD exports and files: `disk export` and `disk import`.
//!
//! Invariants: a file that is exported appears under its name only when it is complete and synced;
//! holes and zeros are neither sent nor written; an import ends with a flush; Ctrl-C ends either
//! between two requests.
//! Absent: how formats other than raw look (`qcow2.rs` has somebody else do that), and what happens to a disk whose import failed (the command's).

pub mod qcow2;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::{Whence, lseek64};
use rowd_proto::ErrorKind;

use crate::error::{Failure, Result};
use crate::nbd::{Finished, Nbd, WINDOW};
use crate::progress::Progress;

/// How finely zeros are looked for: the block of a disk, which is also that of most file systems.
const BLOCK: usize = 4096;
/// How much to ask about at a time. Extents are 32 bits long; a round number below that.
const STATUS_SPAN: u64 = 1 << 30;

/// Set by Ctrl-C and by a request to terminate.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over the two signals for the rest of the process.
    pub fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag))
                .map_err(|e| Failure::io("cannot take over Ctrl-C", &e))?;
        }
        Ok(Interrupt(flag))
    }

    fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(Failure::new(ErrorKind::Cancelled, "interrupted"));
        }
        Ok(())
    }
}

/// Where an export goes.
#[derive(Debug)]
pub enum Target {
    Stdout,
    File { path: PathBuf, force: bool },
}

/// Copies an export to its target. Returns the bytes of data among its bytes.
pub fn export(
    nbd: &mut Nbd,
    target: &Target,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<u64> {
    match target {
        Target::Stdout => {
            let mut sink = Stream { stdout: io::stdout().lock(), position: 0 };
            let data = read_all(nbd, &mut sink, progress, interrupt)?;
            sink.pad(nbd.size())?;
            sink.stdout.flush().map_err(|e| stream_failure(&e))?;
            Ok(data)
        }
        Target::File { path, force } => {
            refuse_existing(path, *force)?;
            let part = Part::create(path, nbd.size())?;
            let data = read_all(nbd, &mut &part.file, progress, interrupt)?;
            part.finish(path, *force)?;
            Ok(data)
        }
    }
}

/// Something that takes data at rising offsets; what is left out is zeros.
trait Sink {
    fn put(&mut self, offset: u64, data: &[u8]) -> Result<()>;
}

impl Sink for &File {
    fn put(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.write_all_at(data, offset).map_err(|e| Failure::io("cannot write the file", &e))
    }
}

/// A pipe, which has to be told every zero.
struct Stream<'a> {
    stdout: io::StdoutLock<'a>,
    position: u64,
}

impl Stream<'_> {
    fn pad(&mut self, until: u64) -> Result<()> {
        let gap = until.saturating_sub(self.position);
        io::copy(&mut io::repeat(0).take(gap), &mut self.stdout).map_err(|e| stream_failure(&e))?;
        self.position = self.position.max(until);
        Ok(())
    }
}

impl Sink for Stream<'_> {
    fn put(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.pad(offset)?;
        self.stdout.write_all(data).map_err(|e| stream_failure(&e))?;
        self.position += to_u64(data.len())?;
        Ok(())
    }
}

fn stream_failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::ReaderGone,
        _ => Failure::io("cannot write to the standard output", error),
    }
}

/// Reads everything that is not known to be zeros, many requests at a time.
fn read_all(
    nbd: &mut Nbd,
    sink: &mut dyn Sink,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<u64> {
    let (size, mut offset, mut data) = (nbd.size(), 0, 0);
    while offset < size {
        for (length, zero) in extents(nbd, offset)? {
            if !zero {
                data += read_extent(nbd, offset, length, sink, interrupt)?;
            }
            offset += length;
            progress.show(offset, size);
        }
        // The next question has to be alone on the wire.
        while nbd.in_flight() > 0 {
            data += finish_read(nbd, sink)?;
        }
        interrupt.check()?;
    }
    Ok(data)
}

/// The stretches from here on, and whether each reads as zeros.
fn extents(nbd: &mut Nbd, offset: u64) -> Result<Vec<(u64, bool)>> {
    let span = (nbd.size() - offset).min(STATUS_SPAN);
    if !nbd.knows_extents() {
        return Ok(vec![(span, false)]);
    }
    let span = u32::try_from(span).map_err(|e| Failure::invalid(e.to_string()))?;
    let extents = nbd.status(offset, span)?;
    Ok(extents.into_iter().map(|extent| (extent.length, extent.zero)).collect())
}

/// Starts the reads of one stretch, finishing older ones as the window fills. Returns the data put.
fn read_extent(
    nbd: &mut Nbd,
    mut offset: u64,
    length: u64,
    sink: &mut dyn Sink,
    interrupt: &Interrupt,
) -> Result<u64> {
    let (end, mut data) = (offset + length, 0);
    while offset < end {
        interrupt.check()?;
        if nbd.in_flight() >= WINDOW {
            data += finish_read(nbd, sink)?;
        }
        let left = u32::try_from(end - offset).unwrap_or(u32::MAX);
        let piece = left.min(nbd.request_max());
        nbd.start_read(offset, piece)?;
        offset += u64::from(piece);
    }
    Ok(data)
}

/// Puts the oldest read into the sink, without its zeros. Returns the bytes that were put.
fn finish_read(nbd: &mut Nbd, sink: &mut dyn Sink) -> Result<u64> {
    let Finished::Read { offset, data } = nbd.finish()? else {
        return Err(Failure::new(ErrorKind::Internal, "a read was answered by something else"));
    };
    let mut put = 0;
    for (from, run) in data_runs(&data) {
        sink.put(offset + to_u64(from)?, run)?;
        put += to_u64(run.len())?;
    }
    Ok(put)
}

/// The stretches of whole blocks that are not all zeros, with their positions.
fn data_runs(data: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let is_zero = |from: usize| {
        let block = &data[from..data.len().min(from + BLOCK)];
        // Wide steps let the compiler compare in vectors.
        let (wide, rest) = block.as_chunks::<64>();
        wide.iter().all(|piece| piece == &[0; 64]) && rest.iter().all(|&byte| byte == 0)
    };
    let mut next = 0;
    std::iter::from_fn(move || {
        while next < data.len() && is_zero(next) {
            next += BLOCK;
        }
        let from = next;
        while next < data.len() && !is_zero(next) {
            next += BLOCK;
        }
        (from < data.len()).then(|| (from, &data[from..next.min(data.len())]))
    })
}

/// A file that is being written beside its final name; gone again unless it is finished.
struct Part {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Part {
    fn create(target: &Path, size: u64) -> Result<Self> {
        let Some(name) = target.file_name() else {
            return Err(Failure::invalid(format!("{} is no file name", target.display())));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.part", std::process::id()));
        let path = target.with_file_name(hidden);
        let failed = |e: &io::Error| Failure::io(format!("cannot write {}", path.display()), e);
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let part = Part { file: file.map_err(|e| failed(&e))?, path: path.clone(), kept: false };
        part.file.set_len(size).map_err(|e| failed(&e))?;
        Ok(part)
    }

    /// Syncs the file, gives it its name, and syncs that.
    fn finish(mut self, target: &Path, force: bool) -> Result<()> {
        let failed = |e: &io::Error| Failure::io(format!("cannot finish {}", target.display()), e);
        self.file.sync_all().map_err(|e| failed(&e))?;
        rename(&self.path, target, force)?;
        self.kept = true;
        let dir = match target.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| failed(&e))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            eprintln!("rowctl: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Renames without replacing anything unless forced, also when a file has appeared in the meantime.
fn rename(from: &Path, to: &Path, force: bool) -> Result<()> {
    let flags = if force { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, flags) {
        // Not every file system knows the flag; those get the check without the atomicity.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            refuse_existing(to, force)?;
            fs::rename(from, to)
        }
        Err(Errno::EEXIST) => return Err(exists(to)),
        result => result.map_err(io::Error::from),
    }
    .map_err(|e| Failure::io(format!("cannot rename to {}", to.display()), &e))
}

fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::io(format!("cannot look at {}", path.display()), &error)),
        // A device or a directory is never what a regular file should replace.
        Ok(found) if !found.is_file() => {
            let message = format!("{} exists and is not a regular file", path.display());
            Err(Failure::new(ErrorKind::Exists, message))
        }
        Ok(_) if !force => Err(exists(path)),
        Ok(_) => Ok(()),
    }
}

fn exists(path: &Path) -> Failure {
    Failure::new(ErrorKind::Exists, format!("{} exists", path.display()))
        .hint("choose another name, or replace it with --force")
}

/// A file or block device to import.
#[derive(Debug)]
pub struct Source {
    file: File,
    name: PathBuf,
    pub size: u64,
}

impl Source {
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e: io::Error| Failure::io(format!("cannot read {}", path.display()), &e);
        let mut file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(Failure::invalid(format!("{} is a directory", path.display())));
        }
        // The end of a block device is found in this way too; a pipe has none and fails.
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Source { file, name: path.to_owned(), size })
    }

    /// The next stretch that may hold data at or after this offset.
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let seek = |from: u64, whence: Whence| -> nix::Result<u64> {
            let from = i64::try_from(from).map_err(|_| Errno::EOVERFLOW)?;
            let found = lseek64(&self.file, from, whence)?;
            u64::try_from(found).map_err(|_| Errno::EOVERFLOW)
        };
        let failed =
            |e: Errno| Failure::io(format!("cannot read {}", self.name.display()), &e.into());
        let start = match seek(offset, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(None),
            // Block devices and some file systems do not know holes: all of it may be data.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => offset,
            Err(error) => return Err(failed(error)),
        };
        let end = match seek(start, Whence::SeekHole) {
            Ok(end) => end,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => self.size,
            // The file has been cut off since its end was taken.
            Err(Errno::ENXIO) => return Err(self.shorter()),
            Err(error) => return Err(failed(error)),
        };
        Ok((start < self.size).then_some((start, end.min(self.size))))
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.shorter(),
            _ => Failure::io(format!("cannot read {}", self.name.display()), &error),
        })
    }

    fn shorter(&self) -> Failure {
        let message = format!("{} became shorter while it was read", self.name.display());
        Failure::new(ErrorKind::Io, message)
    }
}

/// Copies a source to an export that reads as zeros so far. Returns the bytes that were written.
pub fn import(
    source: &Source,
    nbd: &mut Nbd,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<u64> {
    let mut buffer = vec![0; usize::try_from(nbd.request_max()).unwrap_or(BLOCK)];
    let (mut offset, mut written) = (0, 0);
    while let Some((start, end)) = source.next_data(offset)? {
        // Whole blocks, so that a block with a hole in it is written once and in one piece.
        let block = to_u64(BLOCK)?;
        let end = end.next_multiple_of(block).min(source.size);
        offset = start - start % block;
        while offset < end {
            interrupt.check()?;
            let piece = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buffer.len());
            source.read(&mut buffer[..piece], offset)?;
            for (from, run) in data_runs(&buffer[..piece]) {
                if nbd.in_flight() >= WINDOW {
                    nbd.finish()?;
                }
                nbd.start_write(offset + to_u64(from)?, run)?;
                written += to_u64(run.len())?;
            }
            offset += to_u64(piece)?;
            progress.show(offset, source.size);
        }
    }
    nbd.flush()?;
    Ok(written)
}

fn to_u64(length: usize) -> Result<u64> {
    u64::try_from(length).map_err(|e| Failure::new(ErrorKind::Internal, e.to_string()))
}

#[cfg(test)]
mod tests;
