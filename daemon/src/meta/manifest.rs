//! The manifest of the store after a power cut: dropping a torn end.
//!
//! RocksDB appends to its manifest and syncs it. When the power goes in between, the file may be as long as
//! the append made it and hold only some of its sectors. RocksDB takes an end that is missing or zero for
//! what it is, and refuses one that is torn. Nothing after the last sync counts: the superblock names a
//! checkpoint only after the manifest that holds it is durable.
//!
//! Invariants: this is done only when RocksDB has refused, and undone when what is left is older than what
//! the superblock names, because the damage is elsewhere then; the manifest as it was is kept beside it.
//! Absent: the meaning of the records. The format is that of RocksDB's logs: blocks of 32 KiB with records of
//! CRC, length, type and payload.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::pool::crc32c;
use crate::pool::file::sync_directory;

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;
/// Types of records: a whole one, or the first, a middle or the last part.
const FULL: u8 = 1;
const LAST: u8 = 4;
/// Where the manifest as it was found is kept.
const KEPT: &str = "torn-manifest";

/// A manifest that was cut.
pub struct Torn {
    path: PathBuf,
    before: Vec<u8>,
    /// Bytes that were cut off.
    pub dropped: usize,
}

/// Cuts the manifest of the store at `dir` behind its last whole record, if anything is there.
///
/// # Errors
/// The files cannot be read or written.
pub fn drop_torn_end(dir: &Path) -> Result<Option<Torn>> {
    let current =
        fs::read_to_string(dir.join("CURRENT")).map_err(failed("read the map's CURRENT"))?;
    let path = dir.join(current.trim());
    let bytes = fs::read(&path).map_err(failed("read the map's manifest"))?;
    let whole = whole_records(&bytes);
    if bytes[whole..].iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    store(&dir.join(KEPT), &bytes).map_err(failed("keep the map's manifest"))?;
    sync_directory(dir)?;
    store(&path, &bytes[..whole]).map_err(failed("cut the map's manifest"))?;
    let dropped = bytes.len() - whole;
    Ok(Some(Torn { path, before: bytes, dropped }))
}

impl Torn {
    /// Puts the manifest back as it was.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn restore(&self) -> Result<()> {
        store(&self.path, &self.before).map_err(failed("put the map's manifest back"))
    }
}

/// Makes a file exactly these bytes. It is not empty in between: a manifest that is cut is its own prefix.
fn store(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(bytes, 0)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::io(what, &error)
}

/// Length of the leading whole records.
fn whole_records(bytes: &[u8]) -> usize {
    let (mut at, mut whole) = (0, 0);
    loop {
        let left = BLOCK - at % BLOCK;
        if left < HEADER {
            // Too little for a header: the writer fills it with zeros.
            at += left;
            continue;
        }
        let Some((kind, length)) = record_at(bytes, at, left) else { return whole };
        at += HEADER + length;
        if kind == FULL || kind == LAST {
            whole = at;
        }
    }
}

/// Type and length of the payload of the record here, if it is valid and fits into what is left of the
/// block.
fn record_at(bytes: &[u8], at: usize, left: usize) -> Option<(u8, usize)> {
    let header = bytes.get(at..at + HEADER)?;
    let sum = u32::from_le_bytes(header[..4].try_into().ok()?);
    let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let kind = header[6];
    let checked = bytes.get(at + 6..at + HEADER + length)?;
    let fits = HEADER + length <= left && (FULL..=LAST).contains(&kind);
    (fits && masked(crc32c(checked)) == sum).then_some((kind, length))
}

/// A checksum as RocksDB stores it, so that one over bytes that hold checksums is not trivial.
fn masked(sum: u32) -> u32 {
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
        let checked = [&[kind], payload].concat();
        let length = u16::try_from(payload.len()).unwrap().to_le_bytes();
        [&masked(crc32c(&checked)).to_le_bytes()[..], &length, &checked].concat()
    }

    #[test]
    fn records_are_whole_up_to_the_first_that_is_torn() {
        let first = record(FULL, &[7; 300]);
        let second = record(FULL, &[8; 900]);
        let both = [first.clone(), second].concat();
        assert_eq!(whole_records(&both), both.len());
        for hole in [first.len() + 100, 1024] {
            let mut torn = both.clone();
            torn[hole..].fill(0);
            assert_eq!(whole_records(&torn), first.len(), "zeros from {hole} on");
        }
        assert_eq!(whole_records(&both[..both.len() - 1]), first.len());
        assert_eq!(whole_records(&[]), 0);
    }

    #[test]
    fn a_record_in_parts_counts_when_its_last_part_is_there() {
        let mut log = record(2, &vec![1; BLOCK - HEADER]);
        assert_eq!(whole_records(&log), 0);
        log.extend(record(LAST, &[2; 10]));
        assert_eq!(whole_records(&log), log.len());
        // Fewer bytes than a header are left in the block: the next record begins in the next.
        let mut log = record(FULL, &vec![3; BLOCK - HEADER - 3]);
        log.extend([0; 3]);
        log.extend(record(FULL, &[4; 10]));
        assert_eq!(whole_records(&log), log.len());
    }
}
