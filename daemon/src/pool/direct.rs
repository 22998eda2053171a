//! Direct I/O: the pool file past the page cache, so that writing never waits for memory.
//!
//! Invariants: what reaches the file are whole blocks at multiples of 4096, from memory the device can
//! take; memory that it cannot take is copied through a bounce buffer; a transfer that has returned is in
//! the file, as a write to the page cache is: a killed process loses nothing of it.
//! Absent: durability, which needs a sync here as there.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::aligned::{BOUNCE_BYTES, Borrowed, Bounce, is_aligned};
use super::ring::{self, Transfer};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BLOCK_BYTES, BLOCK_SIZE};

/// How transfers have to look, and the memory for those that do not.
#[derive(Debug)]
pub struct Direct {
    /// Memory begins and ends at multiples of this.
    memory: usize,
    bounce: Bounce,
}

/// A piece of a bounce buffer and its place in the file.
struct Piece {
    offset: u64,
    from: usize,
    length: usize,
}

impl Direct {
    /// Direct I/O on a file that was opened for it.
    ///
    /// # Errors
    /// `Unsupported` when the file system does it on this file not at all, or in other units.
    pub fn new(file: &File, path: &Path) -> Result<Direct> {
        let (memory, offset) = alignment(file);
        if memory == 0 || offset as usize > BLOCK_BYTES || memory as usize > BLOCK_BYTES {
            let units = match memory {
                0 => "goes through the page cache all the same".to_owned(),
                _ => format!("has units of {} bytes, not 4096", memory.max(offset)),
            };
            return Err(refused(path, &format!("direct I/O on this file {units}")));
        }
        ring::probe();
        Ok(Direct { memory: memory as usize, bounce: Bounce::default() })
    }

    /// Reads exactly `out.len()` bytes from anywhere.
    ///
    /// # Errors
    /// The device refuses, or the file ends before.
    pub fn read(&self, file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.is_multiple_of(BLOCK_SIZE) && out.len().is_multiple_of(BLOCK_BYTES) {
            return self.read_many(file, &mut [(offset, out)]);
        }
        let mut bounce = self.bounce.take();
        let (mut at, mut rest) = (offset, out);
        while !rest.is_empty() {
            let start = at / BLOCK_SIZE * BLOCK_SIZE;
            let skip = usize::try_from(at - start).expect("below a block");
            let now = rest.len().min(BOUNCE_BYTES - skip);
            let whole = &mut bounce[..(skip + now).next_multiple_of(BLOCK_BYTES)];
            ring::transfer(file, &mut [Transfer::Read(start, whole)])?;
            let (out, behind) = rest.split_at_mut(now);
            out.copy_from_slice(&bounce[skip..skip + now]);
            (at, rest) = (at + now as u64, behind);
        }
        Ok(())
    }

    /// Reads whole blocks from several places at once.
    ///
    /// # Errors
    /// As [`Direct::read`].
    pub fn read_many(&self, file: &File, list: &mut [(u64, &mut [u8])]) -> io::Result<()> {
        if list.iter().all(|(_, out)| is_aligned(out, self.memory)) {
            if let [(offset, out)] = list {
                return ring::transfer(file, &mut [Transfer::Read(*offset, out)]);
            }
            let mut all: Vec<_> =
                list.iter_mut().map(|(offset, out)| Transfer::Read(*offset, out)).collect();
            return ring::transfer(file, &mut all);
        }
        let mut bounce = self.bounce.take();
        let (mut wanted, mut pieces) = (Vec::with_capacity(list.len()), Vec::new());
        let mut used = 0;
        for (offset, out) in list {
            for (out, at) in out.chunks_mut(BOUNCE_BYTES).zip((*offset..).step_by(BOUNCE_BYTES)) {
                if used + out.len() > BOUNCE_BYTES {
                    fetch(file, &mut bounce, &mut pieces, &mut wanted)?;
                    used = 0;
                }
                pieces.push(Piece { offset: at, from: used, length: out.len() });
                used += out.len();
                wanted.push(out);
            }
        }
        fetch(file, &mut bounce, &mut pieces, &mut wanted)
    }

    /// Writes the buffers to stretches of whole blocks, each told by its offset and its number of
    /// buffers.
    ///
    /// # Errors
    /// The device refuses, or a stretch is not made of whole blocks.
    pub fn write(
        &self,
        file: &File,
        stretches: impl Iterator<Item = (u64, usize)>,
        buffers: &[IoSlice<'_>],
    ) -> io::Result<()> {
        let straight = buffers.iter().all(|buffer| {
            is_aligned(buffer, self.memory) && buffer.len().is_multiple_of(BLOCK_BYTES)
        });
        let mut rest = buffers;
        if straight {
            let mut all = Vec::with_capacity(buffers.len());
            for (mut offset, count) in stretches {
                let (now, behind) = rest.split_at(count);
                for buffer in now.iter().filter(|buffer| !buffer.is_empty()) {
                    all.push(Transfer::Write(offset, buffer));
                    offset += buffer.len() as u64;
                }
                rest = behind;
            }
            return ring::transfer(file, &mut all);
        }
        let mut copy = Copy { file, bounce: self.bounce.take(), pieces: Vec::new(), used: 0 };
        for (offset, count) in stretches {
            let (now, behind) = rest.split_at(count);
            copy.stretch(offset, now)?;
            rest = behind;
        }
        copy.write()
    }
}

/// Fills the pieces from the file and copies them to where they are wanted.
fn fetch(
    file: &File,
    bounce: &mut Borrowed<'_>,
    pieces: &mut Vec<Piece>,
    wanted: &mut Vec<&mut [u8]>,
) -> io::Result<()> {
    let mut memory = &mut bounce[..];
    let mut all = Vec::with_capacity(pieces.len());
    for piece in pieces.iter() {
        let (now, behind) = memory.split_at_mut(piece.length);
        all.push(Transfer::Read(piece.offset, now));
        memory = behind;
    }
    ring::transfer(file, &mut all)?;
    for (piece, out) in pieces.drain(..).zip(wanted.drain(..)) {
        out.copy_from_slice(&bounce[piece.from..piece.from + piece.length]);
    }
    Ok(())
}

/// Data on its way to the file through a bounce buffer.
struct Copy<'a> {
    file: &'a File,
    bounce: Borrowed<'a>,
    pieces: Vec<Piece>,
    used: usize,
}

impl Copy<'_> {
    fn stretch(&mut self, mut offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let length: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        if !offset.is_multiple_of(BLOCK_SIZE) || !length.is_multiple_of(BLOCK_BYTES) {
            let what = format!("direct I/O of {length} bytes at {offset}: no whole blocks");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mut from = self.used;
        for buffer in buffers {
            let mut rest = &buffer[..];
            while !rest.is_empty() {
                if self.used == BOUNCE_BYTES {
                    offset += self.cut(offset, from);
                    self.write()?;
                    from = 0;
                }
                let (now, behind) = rest.split_at(rest.len().min(BOUNCE_BYTES - self.used));
                self.bounce[self.used..self.used + now.len()].copy_from_slice(now);
                self.used += now.len();
                rest = behind;
            }
        }
        self.cut(offset, from);
        Ok(())
    }

    /// Makes a piece of what was copied since `from`, and tells its length.
    fn cut(&mut self, offset: u64, from: usize) -> u64 {
        let length = self.used - from;
        if length > 0 {
            self.pieces.push(Piece { offset, from, length });
        }
        length as u64
    }

    fn write(&mut self) -> io::Result<()> {
        let memory = &self.bounce[..];
        let of = |piece: &Piece| &memory[piece.from..piece.from + piece.length];
        let written = match &self.pieces[..] {
            [one] => ring::transfer(self.file, &mut [Transfer::Write(one.offset, of(one))]),
            many => {
                let mut all: Vec<_> =
                    many.iter().map(|piece| Transfer::Write(piece.offset, of(piece))).collect();
                ring::transfer(self.file, &mut all)
            }
        };
        self.pieces.clear();
        self.used = 0;
        written
    }
}

/// The units of memory and of offsets that direct I/O on a file needs; (0, 0) when it is not done.
fn alignment(file: &File) -> (u32, u32) {
    // SAFETY: zeros are a valid value of this plain structure.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let (fd, flags) = (file.as_raw_fd(), libc::AT_EMPTY_PATH);
    // SAFETY: the path is an empty C string, and the exclusive borrow of `stat` outlives the call.
    let done = unsafe { libc::statx(fd, c"".as_ptr(), flags, libc::STATX_DIOALIGN, &raw mut stat) };
    if done != 0 || stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        // The kernel or the file system cannot tell: a page suits all.
        return (4096, 4096);
    }
    (stat.stx_dio_mem_align, stat.stx_dio_offset_align)
}

/// The error that a pool cannot be used with direct I/O.
fn refused(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{}: {why}", path.display())).hint(
        "set io = \"buffered\" in section [pool], or keep the pool on ext4, XFS or a block device",
    )
}

/// The error of opening a file for direct I/O.
#[must_use]
pub fn open_error(path: &Path, error: &io::Error) -> Error {
    if error.raw_os_error() == Some(libc::EINVAL) {
        return refused(path, "the file system does no direct I/O");
    }
    Error::io(format!("open {}", path.display()), error)
}

/// Checks that files for direct I/O can be made in a directory; nothing is left behind.
///
/// # Errors
/// `Unsupported` when the file system refuses.
pub fn check_directory(dir: &Path) -> Result<()> {
    let flags = libc::O_TMPFILE | libc::O_DIRECT;
    match OpenOptions::new().read(true).write(true).custom_flags(flags).open(dir) {
        Ok(file) => Direct::new(&file, dir).map(|_| ()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(open_error(dir, &error)),
        // Files without a name are not known here: making the pool will tell.
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// A file opened for direct I/O, and the same file through the page cache.
    fn files(bytes: u64) -> (tempfile::TempDir, File, File) {
        // Not the usual place for temporary files, which may be in memory.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("file");
        let cached = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        cached.set_len(bytes).unwrap();
        let mut options = File::options();
        let direct = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(&path);
        (dir, direct.unwrap(), cached)
    }

    fn pattern(seed: usize, length: usize) -> Vec<u8> {
        (0..251u8).cycle().skip(seed * 7).step_by(31).take(length).collect()
    }

    #[test]
    fn any_part_of_the_file_can_be_read() {
        let (_dir, file, cached) = files(1 << 20);
        let all = pattern(1, 1 << 20);
        cached.write_all_at(&all, 0).unwrap();
        let direct = Direct::new(&file, Path::new("file")).unwrap();
        for (offset, length) in
            [(0, 48), (4095, 2), (4096, 4096), (5000, 300_000), (12288, 1 << 19), (1048575, 1)]
        {
            let mut out = vec![0; length];
            direct.read(&file, offset, &mut out).unwrap();
            let from = usize::try_from(offset).unwrap();
            assert_eq!(out, all[from..from + length], "{length} bytes at {offset}");
        }
        let error = direct.read(&file, 1 << 20, &mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn scattered_blocks_of_unaligned_memory_are_written_and_read_at_once() {
        let (_dir, file, cached) = files(2 << 20);
        let direct = Direct::new(&file, Path::new("file")).unwrap();
        let lengths = [4096, 8192, 300 << 10, 4096, 260 << 10];
        let data: Vec<Vec<u8>> = (0..).zip(lengths).map(|(n, len)| pattern(n, len + 1)).collect();
        let offsets = [8192, 0, 1 << 20, 65536, 512 << 10];
        let buffers: Vec<_> = data.iter().map(|d| IoSlice::new(&d[1..])).collect();
        direct.write(&file, offsets.into_iter().map(|at| (at, 1)), &buffers).unwrap();
        for ((offset, data), length) in offsets.into_iter().zip(&data).zip(lengths) {
            let mut found = vec![0; length];
            cached.read_exact_at(&mut found, offset).unwrap();
            assert!(found == data[1..], "{length} bytes at {offset}");
        }
        let mut found: Vec<Vec<u8>> = lengths.iter().map(|len| vec![0; len + 1]).collect();
        let wanted = found.iter_mut().map(|out| &mut out[1..]);
        let mut list: Vec<_> = offsets.into_iter().zip(wanted).collect();
        direct.read_many(&file, &mut list).unwrap();
        assert!(found.iter().zip(&data).all(|(found, data)| found[1..] == data[1..]));
    }

    #[test]
    fn buffers_of_any_length_make_a_stretch_and_parts_of_blocks_do_not() {
        let (_dir, file, cached) = files(1 << 20);
        let direct = Direct::new(&file, Path::new("file")).unwrap();
        let data = pattern(3, 280 << 10);
        let buffers: Vec<_> = data.chunks(1000).map(IoSlice::new).collect();
        direct.write(&file, [(4096, buffers.len())].into_iter(), &buffers).unwrap();
        let mut found = vec![0; data.len()];
        cached.read_exact_at(&mut found, 4096).unwrap();
        assert!(found == data);
        let part = [IoSlice::new(&data[..1000])];
        assert!(direct.write(&file, [(0, 1)].into_iter(), &part).is_err());
    }
}
