//! Traffic: one connection that keeps several requests in flight and notes everything.
//!
//! Invariants: what is read is compared with what the disk holds; a request refused for want of space
//! is noted as having done nothing, any other refusal fails the test; when the connection ends, what was
//! in flight stays unanswered.
//! Absent: connections that send nonsense.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use rowd::nbd::wire::{chunk, command, command_flag, error};

use super::history::{Clock, Log};
use super::rng::Rng;
use super::stamp::{BLOCK_SECTORS, SECTOR, Value, fill, parse};
use crate::client::{Answer, Ask, Client};

/// Places tried for a request before the others in flight are waited for.
const TRIES: usize = 8;
/// The largest request: what the daemon promises not to tear.
const LARGEST_SECTORS: u64 = (1 << 20) / SECTOR as u64;
/// Half of the writes that cover parts of blocks meet here, so that some share a block.
const HOT_SECTORS: u32 = 4 * BLOCK_SECTORS;
/// Reads stay below what a socket buffers, for at the deepest queue nobody receives while sending.
const READ_SECTORS: u64 = 8;

/// How a connection behaves.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub depth: usize,
    /// Requests to send; without a limit the end of the daemon ends it.
    pub requests: Option<u64>,
    /// Writes that cover parts of blocks are among them.
    pub ragged: bool,
    /// Per cent of requests that are flushes.
    pub flushes: u64,
}

/// What a connection did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub answered: u64,
    pub refused: u64,
    /// The daemon went away.
    pub cut_off: bool,
}

/// Something in flight.
#[derive(Debug)]
enum Flight {
    Change(usize),
    Read(Range<u32>, Vec<Value>),
    Flush(u64),
}

/// A connection with its notes.
#[derive(Debug)]
pub struct Lane<'a> {
    pub log: &'a Mutex<Log>,
    pub clock: &'a Clock,
    pub style: Style,
    rng: Rng,
    flights: HashMap<u64, Flight>,
    sent: u64,
    token: u64,
    buffer: Vec<u8>,
    done: Done,
}

/// The log, also after another thread has panicked with it: that panic fails the test.
pub fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl<'a> Lane<'a> {
    #[must_use]
    pub fn new(log: &'a Arc<Mutex<Log>>, clock: &'a Clock, style: Style, rng: Rng) -> Lane<'a> {
        Lane {
            log,
            clock,
            style,
            // Cookies of different connections keep their ranges apart.
            token: rng.clone().bits() << 32,
            rng,
            flights: HashMap::new(),
            sent: 0,
            buffer: Vec::new(),
            done: Done::default(),
        }
    }

    /// Runs until the limit is reached and everything is answered, or the daemon is gone.
    ///
    /// # Panics
    /// The daemon answers what it may not.
    pub fn run(mut self, client: &mut Client) -> Done {
        if self.converse(client).is_err() {
            self.done.cut_off = true;
        }
        self.done
    }

    fn converse(&mut self, client: &mut Client) -> io::Result<()> {
        loop {
            let more = self.style.requests.is_none_or(|limit| self.sent < limit);
            if !more && self.flights.is_empty() {
                return Ok(());
            }
            if more && self.flights.len() < self.style.depth && self.send_one(client)? {
                continue;
            }
            // Every read here has the one length; other commands ignore it.
            let answer = client.receive(0)?;
            self.take(&answer);
        }
    }

    /// Sends a request, if there is room on the disk for one.
    fn send_one(&mut self, client: &mut Client) -> io::Result<bool> {
        self.token += 1;
        let choice = self.rng.below(100);
        if choice < self.style.flushes {
            let flight = Flight::Flush(self.clock.tick());
            self.flights.insert(self.token, flight);
            self.sent += 1;
            let ask = Ask { command: command::FLUSH, cookie: self.token, ..Ask::default() };
            return client.send(&ask).map(|()| true);
        }
        match choice {
            ..75 => self.send_write(client),
            75..87 => self.send_clear(client),
            _ => self.send_read(client),
        }
    }

    fn send_write(&mut self, client: &mut Client) -> io::Result<bool> {
        let Some(sectors) = self.reserve(false) else { return Ok(false) };
        let fua = self.rng.chance(3);
        let mut log = lock(self.log);
        let value = log.new_value();
        let index = log.invoke(self.clock, value, sectors.clone(), fua);
        drop(log);
        self.buffer.resize(sectors.len() * SECTOR, 0);
        fill(&mut self.buffer, sectors.start, value);
        self.flights.insert(self.token, Flight::Change(index));
        self.sent += 1;
        let flags = if fua { command_flag::FUA } else { 0 };
        let payload = &self.buffer;
        client.send(&Ask { flags, payload, ..ask(command::WRITE, self.token, &sectors) })?;
        Ok(true)
    }

    fn send_clear(&mut self, client: &mut Client) -> io::Result<bool> {
        let Some(sectors) = self.reserve(true) else { return Ok(false) };
        let index = lock(self.log).invoke(self.clock, Value::ZERO, sectors.clone(), false);
        self.flights.insert(self.token, Flight::Change(index));
        self.sent += 1;
        let command = *self.rng.pick(&[command::TRIM, command::WRITE_ZEROES]);
        // Zeros that take space are written in pieces that end at each MiB: one piece is one record.
        let piece = |sector: u32| u64::from(sector) / LARGEST_SECTORS;
        let whole = piece(sectors.start) == piece(sectors.end - 1);
        let stored = command == command::WRITE_ZEROES && whole && self.rng.chance(20);
        let flags = if stored { command_flag::NO_HOLE } else { 0 };
        client.send(&Ask { flags, ..ask(command, self.token, &sectors) })?;
        Ok(true)
    }

    fn send_read(&mut self, client: &mut Client) -> io::Result<bool> {
        let length = self.rng.between(1, READ_SECTORS);
        let Some(sectors) = self.place(length, 1, u32::MAX) else { return Ok(false) };
        let held = lock(self.log).current()[range(&sectors)].to_vec();
        self.flights.insert(self.token, Flight::Read(sectors.clone(), held));
        self.sent += 1;
        client.send(&ask(command::READ, self.token, &sectors))?;
        Ok(true)
    }

    /// A range for a change: mostly a block, at times up to 1 MiB, at times parts of blocks.
    fn reserve(&mut self, whole: bool) -> Option<Range<u32>> {
        if self.style.ragged && !whole && self.rng.chance(15) {
            // Short where they meet: two that overlap are never in flight together.
            let hot = self.rng.chance(50);
            let (longest, within) = if hot { (3, HOT_SECTORS) } else { (20, u32::MAX) };
            let length = self.rng.between(1, longest);
            return self.place(length, 1, within);
        }
        let blocks = match self.rng.below(100) {
            ..60 => 1,
            60..90 => self.rng.between(2, 16),
            90..99 => self.rng.between(16, 64),
            _ => LARGEST_SECTORS / u64::from(BLOCK_SECTORS),
        };
        self.place(blocks * u64::from(BLOCK_SECTORS), BLOCK_SECTORS, u32::MAX)
    }

    fn place(&mut self, length: u64, unit: u32, within: u32) -> Option<Range<u32>> {
        let mut log = lock(self.log);
        let end = log.sectors().min(within);
        let length = u32::try_from(length).expect("a short range").min(end);
        for _ in 0..TRIES {
            let places = (end - length) / unit + 1;
            let start = u32::try_from(self.rng.below(u64::from(places))).expect("fits") * unit;
            if log.try_lock(self.token, &(start..start + length)) {
                return Some(start..start + length);
            }
        }
        None
    }

    fn take(&mut self, answer: &Answer) {
        let flight = self.flights.remove(&answer.cookie).expect("the answer to a request");
        self.done.answered += 1;
        let refused = answer.error != 0;
        assert!(!refused || answer.error == error::ENOSPC, "refused: {answer:?}");
        self.done.refused += u64::from(refused);
        match flight {
            Flight::Flush(_) if refused => panic!("a flush was refused: {answer:?}"),
            Flight::Flush(asked) => {
                lock(self.log).flushes.push((asked, self.clock.tick()));
            }
            Flight::Read(sectors, held) => compare(answer, &sectors, &held),
            Flight::Change(index) if refused => lock(self.log).refuse(self.clock, index),
            Flight::Change(index) => lock(self.log).complete(self.clock, index),
        }
        lock(self.log).unlock(answer.cookie);
    }
}

fn ask<'a>(command: u16, cookie: u64, sectors: &Range<u32>) -> Ask<'a> {
    let length = u32::try_from(sectors.len() * SECTOR).expect("at most 1 MiB");
    let offset = u64::from(sectors.start) * SECTOR as u64;
    Ask { command, cookie, offset, length, ..Ask::default() }
}

fn range(sectors: &Range<u32>) -> Range<usize> {
    sectors.start as usize..sectors.end as usize
}

/// A read shows what the disk held: nothing else touched the range.
fn compare(answer: &Answer, sectors: &Range<u32>, held: &[Value]) {
    let mut shown = vec![Value::ZERO; held.len()];
    for (kind, payload) in &answer.chunks {
        if *kind != chunk::OFFSET_DATA {
            continue;
        }
        let (offset, data) = payload.split_first_chunk::<8>().expect("an offset");
        let first = u64::from_be_bytes(*offset) / SECTOR as u64 - u64::from(sectors.start);
        let first = usize::try_from(first).expect("within the read");
        for (index, sector) in (first..).zip(data.chunks_exact(SECTOR)) {
            let at = sectors.start + u32::try_from(index).expect("within the read");
            shown[index] =
                parse(sector, at).unwrap_or_else(|e| panic!("a read while running: {e}"));
        }
    }
    assert_eq!(shown, held, "a read of sectors {sectors:?} while running");
}
