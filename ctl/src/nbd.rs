//! A small NBD client: enough to read and write a whole export quickly.
//!
//! Invariants: every length from the server is checked before it is believed; a read is complete
//! only when each of its bytes has arrived; requests are finished in the order they were started,
//! however the replies come; a reply to nothing ends the connection.
//! Absent: TLS, extended headers, reconnecting, and any wish to be a block device.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rowd_proto::ErrorKind;

use crate::error::{Failure, Result};

mod handshake;

/// The largest payload of one request: large enough to keep a fast pool busy, small enough for any
/// server.
pub const REQUEST_MAX: u32 = 1 << 20;
/// Requests on the way at a time. Eight cover the latency of one; twice that covers the pauses of a
/// client that also reads or writes a file.
pub const WINDOW: usize = 16;
/// The longest wait for a reply. A flush of a slow disk takes seconds; this long means that it
/// hangs.
const REPLY_DEADLINE: Duration = Duration::from_secs(120);
/// The greeting needs no disk.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// Extents in a reply we are prepared to take: a 1 GiB question about alternating 4 KiB blocks.
const STATUS_BYTES_MAX: u32 = 4 + 8 * (1 << 18);
/// An error message longer than the specification allows is no message.
const MESSAGE_MAX: u32 = 4096 + 16;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_BLOCK_STATUS: u16 = 7;

const CHUNK_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_DATA: u16 = 1;
const CHUNK_HOLE: u16 = 2;
const CHUNK_STATUS: u16 = 5;
/// Set in the type of every chunk that reports an error.
const CHUNK_ERROR: u16 = 1 << 15;

const STATE_ZERO: u32 = 2;

/// What the server told about the export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Export {
    size: u64,
    /// Transmission flags.
    flags: u16,
    /// The largest request the server takes, if it said so.
    request_max: Option<u32>,
    structured: bool,
    /// The id of `base:allocation`, if the server has it.
    allocation: Option<u32>,
}

impl Export {
    const READ_ONLY: u16 = 1 << 1;
    const SEND_FLUSH: u16 = 1 << 2;
}

/// A connection in transmission.
#[derive(Debug)]
pub struct Nbd {
    stream: UnixStream,
    export: Export,
    pending: VecDeque<Pending>,
    last_cookie: u64,
}

/// A request on its way.
#[derive(Debug)]
struct Pending {
    cookie: u64,
    offset: u64,
    work: Work,
    done: bool,
    failure: Option<Failure>,
}

#[derive(Debug)]
enum Work {
    Read {
        data: Vec<u8>,
        missing: usize,
    },
    Status {
        length: u32,
        extents: Vec<Extent>,
    },
    /// A request whose reply carries nothing: write, flush.
    Plain(&'static str),
}

/// A stretch of the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub length: u64,
    /// Reads as zeros, and need not be read.
    pub zero: bool,
}

/// A request that was finished.
#[derive(Debug, PartialEq, Eq)]
pub enum Finished {
    Read { offset: u64, data: Vec<u8> },
    Status(Vec<Extent>),
    Plain,
}

/// Whether an NBD server answers on a socket; says goodbye without opening anything.
pub fn probe(socket: &Path) -> Result<()> {
    handshake::probe(&dial(socket, PROBE_DEADLINE)?)
}

fn dial(socket: &Path, deadline: Duration) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).map_err(|e| {
        let message = format!("cannot connect to {}: {e}", socket.display());
        Failure::new(ErrorKind::Unreachable, message)
            .hint("name the NBD socket of the daemon with --nbd-socket")
    })?;
    stream
        .set_read_timeout(Some(deadline))
        .and_then(|()| stream.set_write_timeout(Some(deadline)))
        .map_err(|e| Failure::io("cannot set a deadline on the NBD socket", &e))?;
    Ok(stream)
}

impl Nbd {
    /// Connects to an export.
    pub fn connect(socket: &Path, export: &str) -> Result<Self> {
        let stream = dial(socket, REPLY_DEADLINE)?;
        let export = handshake::negotiate(&stream, export)?;
        Ok(Nbd { stream, export, pending: VecDeque::new(), last_cookie: 0 })
    }

    pub fn size(&self) -> u64 {
        self.export.size
    }

    pub fn is_read_only(&self) -> bool {
        self.export.flags & Export::READ_ONLY != 0
    }

    /// The largest payload to put into one request.
    pub fn request_max(&self) -> u32 {
        self.export.request_max.unwrap_or(REQUEST_MAX).clamp(4096, REQUEST_MAX)
    }

    /// Whether [`Nbd::status`] tells anything.
    pub fn knows_extents(&self) -> bool {
        self.export.allocation.is_some()
    }

    /// Requests that were started and not finished.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    pub fn start_read(&mut self, offset: u64, length: u32) -> Result<()> {
        let bytes = to_usize(length)?;
        let work = Work::Read { data: vec![0; bytes], missing: bytes };
        self.start(CMD_READ, offset, length, work, &[])
    }

    pub fn start_write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let length = u32::try_from(data.len()).map_err(|_| broken("a write of over 4 GiB"))?;
        self.start(CMD_WRITE, offset, length, Work::Plain("write"), data)
    }

    /// Makes everything that was written durable; finishes all that is in flight first.
    pub fn flush(&mut self) -> Result<()> {
        while self.in_flight() > 0 {
            self.finish()?;
        }
        if self.export.flags & Export::SEND_FLUSH == 0 {
            return Ok(());
        }
        self.start(CMD_FLUSH, 0, 0, Work::Plain("flush"), &[])?;
        self.finish().map(drop)
    }

    /// Which parts of a range hold data. Nothing else may be in flight.
    pub fn status(&mut self, offset: u64, length: u32) -> Result<Vec<Extent>> {
        assert!(self.pending.is_empty(), "the answer to a question is the next to be finished");
        let work = Work::Status { length, extents: Vec::new() };
        self.start(CMD_BLOCK_STATUS, offset, length, work, &[])?;
        match self.finish()? {
            Finished::Status(extents) if !extents.is_empty() => Ok(extents),
            _ => Err(broken("no extents for a range that has some")),
        }
    }

    /// Says goodbye.
    pub fn close(mut self) {
        // All work is finished by now: a server that has hung up already changes nothing about it.
        self.start(CMD_DISC, 0, 0, Work::Plain("disconnect"), &[]).ok();
    }

    /// Waits until the oldest request is done.
    pub fn finish(&mut self) -> Result<Finished> {
        loop {
            match self.pending.front() {
                None => return Err(broken("waiting for a reply to nothing")),
                Some(front) if front.done => break,
                Some(_) => self.receive()?,
            }
        }
        let Some(Pending { offset, work, failure, .. }) = self.pending.pop_front() else {
            return Err(broken("waiting for a reply to nothing"));
        };
        if let Some(failure) = failure {
            return Err(failure.context(format!("NBD {} at offset {offset}", work.name())));
        }
        match work {
            Work::Read { data, missing: 0 } => Ok(Finished::Read { offset, data }),
            Work::Read { .. } => Err(broken("a read that ended without all of its bytes")),
            Work::Status { extents, .. } => Ok(Finished::Status(extents)),
            Work::Plain(_) => Ok(Finished::Plain),
        }
    }

    fn start(
        &mut self,
        command: u16,
        offset: u64,
        length: u32,
        work: Work,
        payload: &[u8],
    ) -> Result<()> {
        self.last_cookie += 1;
        let cookie = self.last_cookie;
        let mut header = Vec::with_capacity(28);
        header.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header.extend_from_slice(&0u16.to_be_bytes());
        header.extend_from_slice(&command.to_be_bytes());
        header.extend_from_slice(&cookie.to_be_bytes());
        header.extend_from_slice(&offset.to_be_bytes());
        header.extend_from_slice(&length.to_be_bytes());
        self.stream
            .write_all(&header)
            .and_then(|()| self.stream.write_all(payload))
            .map_err(|e| lost(&e))?;
        self.pending.push_back(Pending { cookie, offset, work, done: false, failure: None });
        Ok(())
    }

    /// Takes one reply, or one chunk of one.
    fn receive(&mut self) -> Result<()> {
        let mut wire = Wire(&self.stream);
        match wire.u32()? {
            SIMPLE_MAGIC => {
                let (error, cookie) = (wire.u32()?, wire.u64()?);
                let pending = find(&mut self.pending, cookie)?;
                pending.done = true;
                match (&mut pending.work, error) {
                    (_, error) if error != 0 => pending.failure = Some(errno(error, "")),
                    (Work::Read { .. }, _) if self.export.structured => {
                        return Err(broken("a simple reply to a read"));
                    }
                    (Work::Read { data, missing }, _) => {
                        wire.fill(data)?;
                        *missing = 0;
                    }
                    _ => {}
                }
                Ok(())
            }
            STRUCTURED_MAGIC if self.export.structured => {
                let (flags, kind) = (wire.u16()?, wire.u16()?);
                let (cookie, length) = (wire.u64()?, wire.u32()?);
                let pending = find(&mut self.pending, cookie)?;
                pending.done = flags & CHUNK_DONE != 0;
                pending.chunk(&mut wire, kind, length, self.export.allocation)
            }
            other => Err(broken(&format!("a reply that begins with {other:#x}"))),
        }
    }
}

impl Work {
    fn name(&self) -> &'static str {
        match self {
            Work::Read { .. } => "read",
            Work::Status { .. } => "block status",
            Work::Plain(name) => name,
        }
    }
}

impl Pending {
    /// Takes the payload of one chunk of a structured reply.
    fn chunk(
        &mut self,
        wire: &mut Wire<'_>,
        kind: u16,
        length: u32,
        context: Option<u32>,
    ) -> Result<()> {
        match (kind, &mut self.work) {
            (CHUNK_NONE, _) if length == 0 => Ok(()),
            (CHUNK_DATA, Work::Read { data, missing }) if length > 8 => {
                let part = part(self.offset, data, wire.u64()?, length - 8)?;
                *missing = missing.checked_sub(part.len()).ok_or_else(|| broken("data twice"))?;
                wire.fill(part)
            }
            (CHUNK_HOLE, Work::Read { data, missing }) if length == 12 => {
                let (at, hole) = (wire.u64()?, wire.u32()?);
                let part = part(self.offset, data, at, hole)?;
                *missing = missing.checked_sub(part.len()).ok_or_else(|| broken("data twice"))?;
                part.fill(0);
                Ok(())
            }
            (CHUNK_STATUS, Work::Status { length: asked, extents })
                if (12..=STATUS_BYTES_MAX).contains(&length) && length % 8 == 4 =>
            {
                let told = read_extents(wire, length, *asked)?;
                // Other contexts were not asked for; a server that sends them anyway is not
                // believed.
                if context == Some(told.0) {
                    *extents = told.1;
                }
                Ok(())
            }
            (kind, _) if kind & CHUNK_ERROR != 0 && (6..=MESSAGE_MAX).contains(&length) => {
                let mut payload = vec![0; to_usize(length)?];
                wire.fill(&mut payload)?;
                self.failure = Some(told_error(&payload));
                Ok(())
            }
            _ => Err(broken(&format!("a chunk of type {kind} with {length} bytes"))),
        }
    }
}

/// The part of a read's buffer that a chunk fills.
fn part(start: u64, data: &mut [u8], at: u64, length: u32) -> Result<&mut [u8]> {
    let from = at.checked_sub(start).and_then(|from| usize::try_from(from).ok());
    let until = from.and_then(|from| from.checked_add(usize::try_from(length).ok()?));
    from.zip(until)
        .and_then(|(from, until)| data.get_mut(from..until))
        .ok_or_else(|| broken("data outside of what was asked for"))
}

/// The context and its extents, cut to what was asked.
fn read_extents(wire: &mut Wire<'_>, length: u32, asked: u32) -> Result<(u32, Vec<Extent>)> {
    let context = wire.u32()?;
    let mut left = u64::from(asked);
    let mut extents = Vec::new();
    for _ in 0..(length - 4) / 8 {
        let (extent, state) = (u64::from(wire.u32()?), wire.u32()?);
        if extent == 0 {
            return Err(broken("an empty extent"));
        }
        // The last extent may reach beyond the question, and any after that are of no interest.
        let length = extent.min(left);
        left -= length;
        if length > 0 {
            extents.push(Extent { length, zero: state & STATE_ZERO != 0 });
        }
    }
    Ok((context, extents))
}

/// An error chunk: number, length of the message, message, and for some an offset that we do not
/// need.
fn told_error(payload: &[u8]) -> Failure {
    let number = payload.first_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    let length = payload.get(4..6).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let message = payload.get(6..6 + usize::from(length)).unwrap_or_default();
    errno(number, &String::from_utf8_lossy(message))
}

/// An error number of the NBD specification.
fn errno(number: u32, message: &str) -> Failure {
    let (kind, words) = match number {
        1 => (ErrorKind::NotPermitted, "not permitted"),
        5 => (ErrorKind::Io, "input/output error"),
        22 => (ErrorKind::Invalid, "invalid request"),
        28 => (ErrorKind::NoSpace, "no space left in the pool"),
        95 => (ErrorKind::Unsupported, "not supported"),
        108 => (ErrorKind::ShuttingDown, "the daemon is going down"),
        _ => (ErrorKind::Io, "failed"),
    };
    if message.is_empty() {
        Failure::new(kind, format!("{words} (error {number})"))
    } else {
        Failure::new(kind, format!("{words}: {message}"))
    }
}

fn find(pending: &mut VecDeque<Pending>, cookie: u64) -> Result<&mut Pending> {
    pending
        .iter_mut()
        .find(|one| one.cookie == cookie && !one.done)
        .ok_or_else(|| broken("a reply to no request"))
}

fn to_usize(length: u32) -> Result<usize> {
    usize::try_from(length).map_err(|_| broken("a length beyond this machine"))
}

/// The server does not keep to the protocol.
fn broken(what: &str) -> Failure {
    Failure::new(
        ErrorKind::Internal,
        format!("the NBD server does not keep to the protocol: {what}"),
    )
}

/// The connection broke.
fn lost(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Failure::new(ErrorKind::TimedOut, "the NBD server does not answer")
        }
        io::ErrorKind::UnexpectedEof => {
            Failure::new(ErrorKind::Unreachable, "the NBD server hung up")
        }
        _ => Failure::new(ErrorKind::Unreachable, format!("the NBD connection broke: {error}")),
    }
}

/// Numbers from the socket, in the byte order of the network.
struct Wire<'a>(&'a UnixStream);

impl Wire<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.0.read_exact(buffer).map_err(|e| lost(&e))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests;
