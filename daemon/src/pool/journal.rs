//! The journal: a ring of records that makes effects durable with one sync, in the order they happened.
//!
//! Invariants: sequence numbers have no gaps; a record is appended whole under one lock, so a killed
//! process leaves a prefix; a page that holds a durable record is never written again, since each sync
//! moves the head to the next page; a record never wraps and never overwrites one after the tail; every
//! record tells the highest sequence known durable, so that damage to acknowledged records is told from
//! a torn tail. Positions grow for ever; the place in the ring is the position modulo its length.
//! In direct mode `append` puts the record into memory and `settle` writes it, for all who wait at once:
//! no lock is held while the device works, and records reach the file in their order.
//! Absent: what records mean (`map/record.rs`), and when the tail moves (`engine/checkpoint.rs`).

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::aligned::Pages;
use super::file::{IoMode, PoolFile};
use super::outbox::{Outbox, Parcel};
use super::superblock::{JOURNAL_START, Superblock};
use crate::error::{Error, Result};
use crate::faults;
use crate::units::{BLOCK_SIZE, Seq};

/// `ROWJ`, the first bytes of a record.
const MAGIC: u32 = u32::from_le_bytes(*b"ROWJ");
/// Bytes before the body of a record.
pub const HEADER_BYTES: usize = 48;
/// The largest record, header included: 32 MiB of single blocks need 8192 times 24 bytes.
pub const MAX_RECORD: usize = 256 << 10;
/// The smallest ring: eight of the largest records.
pub const MIN_BYTES: u64 = 8 * MAX_RECORD as u64;
/// How long a writer waits for room before it looks whether the pool still runs.
const FULL_WAIT: Duration = Duration::from_millis(100);
/// Ring space never handed out: one record of wrap padding, and one page of padding per sync in flight.
const MARGIN: u64 = MAX_RECORD as u64 + 16 * BLOCK_SIZE;
/// Bytes of records that may wait in memory before those who bring more write them out first.
const WAITING_MAX: u64 = 4 * MAX_RECORD as u64;
/// Bytes that a reader of the journal reads at a time: the largest record fits wherever it begins.
const WINDOW: usize = 2 * MAX_RECORD;

/// What the body of a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The pool was opened: everything after it belongs to that opening.
    Open = 1,
    /// Nothing but the watermark in the header.
    Mark = 2,
    /// Block changes of one disk.
    Data = 3,
    /// A change of the catalogue.
    Catalogue = 4,
    /// A bounded step of freeing a deleted node.
    Reclaim = 5,
    /// One block is at another place.
    Move = 6,
    /// Blocks of a frozen node that it lacked.
    Fill = 7,
}

impl Kind {
    fn from_wire(value: u32) -> Option<Kind> {
        use Kind::{Catalogue, Data, Fill, Mark, Move, Open, Reclaim};
        [Open, Mark, Data, Catalogue, Reclaim, Move, Fill].into_iter().find(|k| *k as u32 == value)
    }
}

/// A record read back.
#[derive(Clone, Debug)]
pub struct Record {
    pub seq: Seq,
    pub kind: Kind,
    pub opening: u32,
    /// The highest sequence that was durable when this was written.
    pub durable: Seq,
    pub body: Vec<u8>,
    /// Position behind the record.
    pub end: u64,
}

/// Where and under which identity the ring lives.
#[derive(Clone, Debug)]
pub struct Ring {
    /// First eight bytes of the pool's uuid.
    pub tag: u64,
    pub bytes: u64,
}

#[derive(Debug)]
struct Head {
    position: u64,
    tail: u64,
    last: Seq,
    reserved: u64,
    scratch: Vec<u8>,
    /// In direct mode: the records that are not in the file yet.
    outbox: Option<Outbox>,
}

#[derive(Debug)]
struct Syncing {
    running: bool,
    durable: Seq,
}

/// Who writes the outbox to the file, and how far the file has got.
#[derive(Debug)]
struct Writing {
    running: bool,
    written: Seq,
    /// What was written last, for its memory.
    spare: Parcel,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    ring: Ring,
    opening: u32,
    /// In direct mode: records reach the file by `settle`, not by `append`.
    staged: bool,
    head: Mutex<Head>,
    room: Condvar,
    writing: Mutex<Writing>,
    wrote: Condvar,
    syncing: Mutex<Syncing>,
    synced: Condvar,
}

/// Ring space promised to one record; gives it back when dropped.
#[derive(Debug)]
pub struct Reservation<'a> {
    journal: &'a Journal,
    bytes: u64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.journal.head.lock().reserved -= self.bytes;
    }
}

impl Journal {
    /// A journal that goes on after record `last` at `position`, with `tail` as its oldest needed record.
    #[must_use]
    pub fn new(
        ring: Ring,
        opening: u32,
        position: u64,
        tail: u64,
        last: Seq,
        io: IoMode,
    ) -> Journal {
        let position = position.next_multiple_of(BLOCK_SIZE);
        let scratch = Vec::with_capacity(MAX_RECORD);
        let outbox = (io == IoMode::Direct).then(|| Outbox::new(position));
        Journal {
            ring,
            opening,
            staged: outbox.is_some(),
            head: Mutex::new(Head { position, tail, last, reserved: 0, scratch, outbox }),
            room: Condvar::new(),
            writing: Mutex::new(Writing {
                running: false,
                written: last,
                spare: Parcel::default(),
            }),
            wrote: Condvar::new(),
            syncing: Mutex::new(Syncing { running: false, durable: last }),
            synced: Condvar::new(),
        }
    }

    /// Waits for room for a record with a body of `bytes`, before any lock of the map is taken.
    /// `full` is called each time the ring is too full: it has a checkpoint make room.
    ///
    /// # Errors
    /// What `full` says, as when the pool has stopped.
    pub fn reserve(
        &self,
        file: &PoolFile,
        bytes: usize,
        full: impl Fn() -> Result<()>,
    ) -> Result<Reservation<'_>> {
        debug_assert!(bytes + HEADER_BYTES <= MAX_RECORD, "callers split larger records");
        let bytes = (bytes + HEADER_BYTES) as u64 + BLOCK_SIZE;
        let mut head = self.head.lock();
        if head.outbox.as_ref().is_some_and(|outbox| outbox.waiting() > WAITING_MAX) {
            let last = head.last;
            drop(head);
            self.settle(file, last)?;
            head = self.head.lock();
        }
        while head.position - head.tail + head.reserved + bytes > self.ring.bytes - MARGIN {
            full()?;
            self.room.wait_for(&mut head, FULL_WAIT);
        }
        head.reserved += bytes;
        Ok(Reservation { journal: self, bytes })
    }

    /// Appends a record. The caller holds the locks of what the record changes until it has changed it.
    ///
    /// # Errors
    /// The pool stops on any error: a gap in the journal would hide what follows.
    pub fn append(&self, file: &PoolFile, kind: Kind, body: &[u8]) -> Result<Seq> {
        let length = HEADER_BYTES + body.len();
        assert!(length <= MAX_RECORD, "callers split larger records");
        let durable = self.syncing.lock().durable;
        let mut head = self.head.lock();
        let seq = head.last.next();
        let position = place(head.position, length as u64, self.ring.bytes);
        let mut scratch = std::mem::take(&mut head.scratch);
        let header = Header { opening: self.opening, seq, durable, kind };
        encode(&mut scratch, &self.ring, &header, body);
        let written = match &mut head.outbox {
            None => {
                fill_page(&mut scratch, head.position, position);
                file.write(JOURNAL_START + position % self.ring.bytes, &scratch)
            }
            Some(outbox) => file.check_running().inspect(|()| outbox.put(position, &scratch)),
        };
        head.scratch = scratch;
        if let Err(error) = written {
            file.stop(&format!("the journal cannot be written: {}", error.message()));
            return Err(error);
        }
        head.position = position + length as u64;
        head.last = seq;
        Ok(seq)
    }

    /// Returns when the record `seq` and all before it are in the file, so that the end of the process
    /// cannot lose them. At once where the page cache is used. Who waits holds no lock of the map.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn settle(&self, file: &PoolFile, seq: Seq) -> Result<()> {
        if !self.staged {
            return Ok(());
        }
        let mut state = self.writing.lock();
        while state.written < seq {
            file.check_running()?;
            if state.running {
                self.wrote.wait(&mut state);
                continue;
            }
            state.running = true;
            let spare = std::mem::take(&mut state.spare);
            drop(state);
            let (parcel, last) = self.take_out(spare);
            let done = self.write_out(file, &parcel);
            state = self.writing.lock();
            state.running = false;
            state.spare = parcel;
            if done.is_ok() {
                state.written = last;
            }
            self.wrote.notify_all();
            done?;
        }
        Ok(())
    }

    /// The pages to be written, and the last record in them.
    fn take_out(&self, spare: Parcel) -> (Parcel, Seq) {
        let mut head = self.head.lock();
        let last = head.last;
        let parcel = head.outbox.as_mut().and_then(|outbox| outbox.take(spare));
        (parcel.unwrap_or_default(), last)
    }

    fn write_out(&self, file: &PoolFile, parcel: &Parcel) -> Result<()> {
        let (mut position, mut rest) = (parcel.position, parcel.bytes());
        while !rest.is_empty() {
            let place = position % self.ring.bytes;
            let room = usize::try_from(self.ring.bytes - place).unwrap_or(usize::MAX);
            let (now, behind) = rest.split_at(rest.len().min(room));
            file.write(JOURNAL_START + place, now).inspect_err(|error| {
                file.stop(&format!("the journal cannot be written: {}", error.message()));
            })?;
            (position, rest) = (position + now.len() as u64, behind);
        }
        Ok(())
    }

    /// The highest record that the end of the process cannot lose.
    #[must_use]
    pub fn written(&self) -> Seq {
        // What is appended to the page cache is in the file.
        if self.staged { self.writing.lock().written } else { Seq(u64::MAX) }
    }

    /// Makes everything appended before the call durable, sharing one sync among all who ask. Whoever
    /// begins a sync first tells `begin` which record it reaches, while nothing can be appended.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn sync(&self, file: &PoolFile, begin: impl Fn(Seq)) -> Result<Seq> {
        let target = self.head.lock().last;
        let mut state = self.syncing.lock();
        loop {
            if state.durable >= target {
                // A pool that stopped has lost pages it once called clean: no more promises.
                file.check_running()?;
                return Ok(state.durable);
            }
            if !state.running {
                break;
            }
            self.synced.wait(&mut state);
        }
        state.running = true;
        drop(state);
        let covered = self.close_page(begin);
        let result = self.settle(file, covered).and_then(|()| file.sync());
        let mut state = self.syncing.lock();
        state.running = false;
        if result.is_ok() {
            state.durable = covered;
        }
        self.synced.notify_all();
        result.map(|()| covered)
    }

    /// Where in the file the page with the latest record is, if it is there and no sync is taking it along already.
    pub fn unsynced(&self) -> Option<(u64, u64)> {
        if self.staged || self.syncing.try_lock().is_none_or(|syncing| syncing.running) {
            return None;
        }
        let end = self.head.lock().position.next_multiple_of(BLOCK_SIZE);
        Some((JOURNAL_START + (end - BLOCK_SIZE) % self.ring.bytes, BLOCK_SIZE))
    }

    fn close_page(&self, begin: impl Fn(Seq)) -> Seq {
        let mut head = self.head.lock();
        head.position = head.position.next_multiple_of(BLOCK_SIZE);
        begin(head.last);
        head.last
    }

    /// The highest sequence number given out.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.head.lock().last
    }

    /// The highest sequence number known durable.
    #[must_use]
    pub fn durable(&self) -> Seq {
        self.syncing.lock().durable
    }

    /// The record that comes next would begin at or behind this position.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.head.lock().position
    }

    /// Bytes between tail and head.
    #[must_use]
    pub fn used(&self) -> u64 {
        let head = self.head.lock();
        head.position - head.tail
    }

    /// Length of the ring in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.ring.bytes
    }

    /// Lets the space before `position` be used again.
    pub fn advance_tail(&self, position: u64) {
        self.head.lock().tail = position;
        self.room.notify_all();
    }

    /// Wakes everybody who waits for room, as when the pool has stopped.
    pub fn wake_all(&self) {
        self.room.notify_all();
    }
}

/// The first position at or behind `position` where `length` bytes do not wrap.
fn place(position: u64, length: u64, ring: u64) -> u64 {
    if position % ring + length <= ring { position } else { position.next_multiple_of(ring) }
}

/// Lengthens a record that begins a page by zeros to the end of it. Part of a page that is not in memory would have to
/// be read from the device first. What lies there belongs to nobody: it is less than the margin behind the head.
fn fill_page(record: &mut Vec<u8>, head: u64, position: u64) {
    let begun = head.next_multiple_of(BLOCK_SIZE);
    let end = position + record.len() as u64;
    if end > begun {
        let whole = end.next_multiple_of(BLOCK_SIZE) - position;
        record.resize(usize::try_from(whole).expect("a record and a page"), 0);
    }
}

/// What a record says of itself.
struct Header {
    opening: u32,
    seq: Seq,
    durable: Seq,
    kind: Kind,
}

fn encode(out: &mut Vec<u8>, ring: &Ring, header: &Header, body: &[u8]) {
    let Header { opening, seq, durable, kind } = header;
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("below MAX_RECORD");
    out.clear();
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&opening.to_le_bytes());
    out.extend_from_slice(&seq.0.to_le_bytes());
    out.extend_from_slice(&durable.0.to_le_bytes());
    out.extend_from_slice(&ring.tag.to_le_bytes());
    out.extend_from_slice(&(*kind as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(body);
    let crc = super::crc32c(&out[8..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Reads the record at the start of `bytes`, if a whole and valid one of this ring is there.
fn decode(bytes: &[u8], ring: &Ring) -> Option<Record> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let length = usize::try_from(u32_at(8)?).ok()?;
    let plausible = u32_at(0)? == MAGIC
        && u64_at(32)? == ring.tag
        && (HEADER_BYTES..=MAX_RECORD).contains(&length);
    if !plausible || super::crc32c(bytes.get(8..length)?) != u32_at(4)? {
        return None;
    }
    Some(Record {
        seq: Seq(u64_at(16)?),
        kind: Kind::from_wire(u32_at(40)?)?,
        opening: u32_at(12)?,
        durable: Seq(u64_at(24)?),
        body: bytes[HEADER_BYTES..length].to_vec(),
        end: 0,
    })
}

/// The journal as found on disk: walks the records behind the tail.
#[derive(Debug)]
pub struct Reader<'a> {
    file: &'a PoolFile,
    ring: Ring,
    position: u64,
    limit: u64,
    last: Seq,
    opening: u32,
    /// A part of the ring, and its place: records are small, and each read of the device is not.
    window: Pages,
    place: u64,
    filled: usize,
}

impl<'a> Reader<'a> {
    /// A reader of the records behind the tail that a superblock names.
    #[must_use]
    pub fn new(file: &'a PoolFile, ring: Ring, superblock: &Superblock) -> Reader<'a> {
        let (position, last) = (superblock.tail, superblock.checkpoint);
        let (limit, opening) = (position + ring.bytes, superblock.tail_opening);
        let window = Pages::zeroed(WINDOW);
        Reader { file, ring, position, limit, last, opening, window, place: 0, filled: 0 }
    }

    /// The next record, or `None` at the end of what is valid.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next_record(&mut self) -> Result<Option<Record>> {
        let page = self.position.next_multiple_of(BLOCK_SIZE);
        let lap = self.position.next_multiple_of(self.ring.bytes);
        for candidate in [self.position, page, lap] {
            if candidate >= self.limit {
                continue;
            }
            let Some(mut record) = self.record_at(candidate)? else { continue };
            // Records of an earlier opening that were once dropped must not come back to life.
            if record.seq != self.last.next() || record.opening < self.opening {
                continue;
            }
            record.end = candidate + (HEADER_BYTES + record.body.len()) as u64;
            self.position = record.end;
            self.last = record.seq;
            self.opening = record.opening;
            return Ok(Some(record));
        }
        Ok(None)
    }

    /// The position behind the last record returned.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    fn record_at(&mut self, position: u64) -> Result<Option<Record>> {
        let place = position % self.ring.bytes;
        let room = usize::try_from(self.ring.bytes - place).unwrap_or(usize::MAX);
        if room < HEADER_BYTES {
            return Ok(None);
        }
        let header = self.bytes(place, HEADER_BYTES)?;
        let length = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes")) as usize;
        if header[..4] != MAGIC.to_le_bytes() || length > MAX_RECORD.min(room) {
            return Ok(None);
        }
        let ring = self.ring.clone();
        Ok(decode(self.bytes(place, length.max(HEADER_BYTES))?, &ring))
    }

    /// A part of the ring, no longer than a record, from the window or moving it there.
    fn bytes(&mut self, place: u64, length: usize) -> Result<&[u8]> {
        let within = |at: u64| usize::try_from(place.checked_sub(at)?).ok();
        let mut skip = within(self.place).filter(|skip| skip + length <= self.filled);
        if skip.is_none() {
            let start = place / BLOCK_SIZE * BLOCK_SIZE;
            let room = usize::try_from(self.ring.bytes - start).unwrap_or(usize::MAX);
            (self.place, self.filled) = (start, 0);
            let window = &mut self.window[..WINDOW.min(room)];
            self.file.read(JOURNAL_START + start, window)?;
            self.filled = window.len();
            skip = within(start);
        }
        let skip = skip.expect("the window begins at the page of the place");
        Ok(&self.window[skip..skip + length])
    }

    /// Looks through the whole ring for proof that a record behind the end was once durable: then the
    /// end is damage, not a torn tail.
    ///
    /// # Errors
    /// `Corrupt` when there is such proof.
    pub fn check_end(&mut self) -> Result<()> {
        let mut proof = None;
        // The first record after each sync starts a page, and only that one can raise the watermark.
        for page in 0..self.ring.bytes / BLOCK_SIZE {
            let found = self.record_at(page * BLOCK_SIZE)?;
            if let Some(record) = found.filter(|r| r.durable > self.last && r.seq > self.last) {
                proof = proof.max(Some(record.durable));
            }
        }
        match proof {
            None => Ok(()),
            Some(durable) => Err(Error::corrupt(format!(
                "journal record {} cannot be read, but records up to {durable} were durable",
                self.last.next()
            ))
            .hint("the pool file is damaged; restore it, or see `rowd check --help`")),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Whether this build lets a flush cover only its own connection (hazard H6).
#[must_use]
pub fn flush_is_partial() -> bool {
    faults::seeded("h6-flush-own-connection-only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_fills_the_page_that_it_begins() {
        let filled = |head, position, bytes: usize| {
            let mut record = vec![1; bytes];
            fill_page(&mut record, head, position);
            (record.len(), record.iter().filter(|byte| **byte == 1).count())
        };
        assert_eq!(filled(0, 0, 72), (4096, 72), "a new page");
        assert_eq!(filled(72, 72, 72), (72, 72), "the page is begun");
        assert_eq!(filled(4000, 4000, 96), (96, 96), "up to its end");
        assert_eq!(filled(4000, 4000, 97), (4192, 97), "the next one begins");
        assert_eq!(filled(4000, 8192, 72), (4096, 72), "the ring begins again");
    }
}
