//! What requests do: validate once, call the disk, put the reply.
//!
//! Invariants: bounds and flags are checked here and nowhere below; errors become NBD errors in
//! [`errno`] alone; all writes of a batch go to the disk together; a reply that needs the device is made
//! by a helper.
//! Absent: receiving and sending (`session.rs`), bytes of the protocol (`wire.rs`).

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::cold::Cold;
use super::remote::Change;
use super::reply::{self, Style};
use super::session::{BULK_BYTES, OUTPUT_BYTES, Received, Session};
use super::wire::{PAYLOAD_MAX, Request, command, command_flag as flag, error};
use crate::disk::lane::Lane;
use crate::disk::read::Wait;
use crate::disk::write::Op;
use crate::engine::Target;
use crate::error::{Error, ErrorKind};
use crate::faults;
use crate::pool::file::Nowait;
use crate::units::ByteRange;

/// A device is read ahead in pieces of this size for `CACHE`.
pub(super) const CACHE_BYTES: u64 = 1 << 20;

/// The number that tells a client of an error.
#[must_use]
pub fn errno(kind: ErrorKind) -> u32 {
    match kind {
        ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Exists => error::EINVAL,
        ErrorKind::NotPermitted => error::EPERM,
        ErrorKind::NoSpace | ErrorKind::Quota => error::ENOSPC,
        ErrorKind::ShuttingDown | ErrorKind::Cancelled => error::ESHUTDOWN,
        ErrorKind::Unsupported => error::ENOTSUP,
        ErrorKind::InUse
        | ErrorKind::WrongState
        | ErrorKind::StillCopying
        | ErrorKind::MemberState
        | ErrorKind::Corrupt
        | ErrorKind::Io
        | ErrorKind::Stopped
        | ErrorKind::TimedOut
        | ErrorKind::Condition
        | ErrorKind::NoEligibleDisk
        | ErrorKind::GroupFailed
        | ErrorKind::GroupState
        | ErrorKind::TagFailed
        | ErrorKind::FreezeScript
        | ErrorKind::ThawScript
        | ErrorKind::FreezeFailed
        | ErrorKind::ThawFailed
        | ErrorKind::Internal => error::EIO,
    }
}

impl Session {
    /// Does a batch of requests. Returns whether the client said it leaves.
    pub(super) fn execute(&mut self, batch: &[Received]) -> io::Result<bool> {
        let mut writes = Vec::new();
        let mut leaving = false;
        if !batch.is_empty() {
            self.bulk = batch.iter().all(Received::is_bulk);
        }
        for (number, received) in batch.iter().enumerate() {
            let request = &received.request;
            let range = match self.validate(request) {
                Ok(range) => range,
                Err((number, message)) => {
                    self.tally.refused(request);
                    self.refuse(request, number, &message);
                    continue;
                }
            };
            match request.command {
                command::READ => self.read(request, range, number + 1 < batch.len())?,
                command::WRITE | command::WRITE_ZEROES | command::TRIM => {
                    writes.push((*received, range));
                }
                command::FLUSH => self.flush(request, batch.len() == 1),
                command::CACHE => self.cache(request, range),
                command::BLOCK_STATUS => self.block_status(request, range),
                _ => {
                    leaving = true;
                    break;
                }
            }
            if self.output.len() >= OUTPUT_BYTES {
                self.flush_output()?;
            }
        }
        self.read_cold(batch.len() == 1);
        self.write(&writes);
        Ok(leaving)
    }

    /// Answers a write whose payload was too large to take.
    pub(super) fn refuse_oversized(&mut self, request: Request) -> io::Result<()> {
        self.tally.refused(&request);
        self.refuse(&request, error::EINVAL, "a payload of more than 32 MiB");
        self.flush_output()
    }

    pub(super) fn validate(&self, request: &Request) -> Result<ByteRange, (u32, String)> {
        let (size, read_only) = {
            let disk = &self.negotiated.target.disk;
            (disk.size(), disk.is_read_only() || self.negotiated.capabilities.read_only)
        };
        let changes =
            matches!(request.command, command::WRITE | command::WRITE_ZEROES | command::TRIM);
        let mut allowed = flag::allowed(request.command);
        if !self.negotiated.structured {
            allowed &= !flag::DF;
        }
        let known = request.command <= command::BLOCK_STATUS;
        if !known || request.flags & !allowed != 0 {
            let (command, flags) = (request.command, request.flags);
            return Err((error::EINVAL, format!("command {command} with flags {flags:#x}")));
        }
        if changes && read_only {
            return Err((error::EPERM, "the export is read-only".to_owned()));
        }
        if matches!(request.command, command::FLUSH | command::DISC) {
            return Ok(ByteRange { start: 0, end: 0 });
        }
        let range = ByteRange::new(request.offset, u64::from(request.length));
        let Some(range) = range.filter(|range| range.end <= size) else {
            let number = match request.command {
                command::WRITE | command::WRITE_ZEROES => error::ENOSPC,
                _ => error::EINVAL,
            };
            return Err((number, format!("beyond the end of the export, {size} bytes")));
        };
        if request.command == command::READ && request.length > PAYLOAD_MAX {
            return Err((error::EINVAL, "a read of more than 32 MiB".to_owned()));
        }
        let fast = request.flags & flag::FAST_ZERO != 0 && request.flags & flag::NO_HOLE != 0;
        if request.command == command::WRITE_ZEROES && fast {
            return Err((error::ENOTSUP, "zeros that take space are not fast".to_owned()));
        }
        Ok(range)
    }

    fn read(&mut self, request: &Request, range: ByteRange, more: bool) -> io::Result<()> {
        let style = self.style(request);
        if request.length as usize >= BULK_BYTES {
            return self.bulk_read(*request, range, style, more);
        }
        let mark = self.output.len();
        let outcome =
            reply::read(&mut self.lane, style, request, range, &mut self.output, Wait::No);
        if !matches!(outcome, Ok(Nowait::Done)) {
            self.output.truncate(mark);
        }
        match outcome {
            Ok(Nowait::Done) => self.tally.did(request, true),
            Ok(Nowait::WouldBlock) if self.is_lazy() => self.read_remote(*request, range, true),
            Ok(Nowait::WouldBlock) if self.negotiated.target.disk.is_uncached() => {
                self.cold.push(Cold { request: *request, range, style });
            }
            Ok(Nowait::WouldBlock) => self.read_by_helper(*request, range, style),
            Err(error) => {
                self.tally.did(request, false);
                self.fail(request, &error);
            }
        }
        Ok(())
    }

    pub(super) fn read_by_helper(&self, request: Request, range: ByteRange, style: Style) {
        let (target, socket) = (Arc::clone(&self.negotiated.target), Arc::clone(&self.socket));
        let budget = Arc::clone(&self.common.budget);
        let errand = self.tally.errand(&request);
        self.outstanding.run(move || {
            let _share = budget.take(request.length as usize);
            let mut out = Vec::with_capacity(request.length as usize + 64);
            let mut lane = Lane::new(&target.disk);
            let read = reply::read(&mut lane, style, &request, range, &mut out, Wait::Yes);
            if let Err(error) = &read {
                out.clear();
                reply::error(&mut out, style, &request, errno(error.kind()), error.message());
            }
            send(&socket, &mut [IoSlice::new(&out)]);
            errand.end(read.is_ok());
        });
    }

    fn write(&mut self, writes: &[(Received, ByteRange)]) {
        if writes.is_empty() {
            return;
        }
        let input = self.take_input();
        let mut ops: Vec<Op<'_>> =
            writes.iter().map(|(received, range)| to_op(received, *range, &input)).collect();
        let here;
        let mut writes = writes;
        if self.is_lazy() {
            (here, ops) = self.write_what_is_here(writes, &ops);
            writes = &here;
        }
        let mut results = Vec::with_capacity(ops.len());
        self.lane.submit(&ops, &mut results);
        self.put_input(input);
        self.wrote = true;
        let fua = writes.iter().any(|(received, _)| received.request.flags & flag::FUA != 0);
        let synced = if fua { self.lane.flush(true) } else { Ok(()) };
        let last = writes.last().map(|(received, _)| received.request);
        for ((received, _), result) in writes.iter().zip(results) {
            let mut request = received.request;
            if faults::seeded("h8-reply-with-last-cookie") {
                request = last.unwrap_or(request);
            }
            let wants_sync = request.flags & flag::FUA != 0;
            let result = result.and(if wants_sync { synced.clone() } else { Ok(()) });
            self.tally.did(&received.request, result.is_ok());
            match result {
                Ok(()) => self.done(&request),
                Err(error) => self.fail(&request, &error),
            }
        }
    }

    /// Of some changes those that can be made now. The others wait for what the disk lacks, or are refused.
    fn write_what_is_here<'a>(
        &mut self,
        writes: &[(Received, ByteRange)],
        ops: &[Op<'a>],
    ) -> (Vec<(Received, ByteRange)>, Vec<Op<'a>>) {
        let (mut here, mut now) = (Vec::new(), Vec::new());
        for (write, op) in writes.iter().zip(ops) {
            match self.lane.need_for(op) {
                Ok(None) => {
                    here.push(*write);
                    now.push(*op);
                }
                Ok(Some(_)) => {
                    self.write_remote(write.0.request, Change::of(op), self.busy.clone());
                }
                Err(error) => self.fail(&write.0.request, &error),
            }
        }
        (here, now)
    }

    fn flush(&mut self, request: &Request, alone: bool) {
        if alone && self.outstanding.count() == 0 {
            let flushed = self.lane.flush(self.wrote);
            self.tally.did(request, flushed.is_ok());
            match flushed {
                Ok(()) => self.done(request),
                Err(error) => self.fail(request, &error),
            }
            return;
        }
        let wrote = self.wrote;
        self.by_helper(*request, move |target| target.disk.flush(wrote));
    }

    /// Reads a range and forgets it: what is in the page cache afterwards is what was asked for.
    fn cache(&mut self, request: &Request, range: ByteRange) {
        if self.is_lazy() {
            return self.read_remote(*request, range, false);
        }
        self.by_helper(*request, move |target| {
            let mut lane = Lane::new(&target.disk);
            let mut scratch = vec![0u8; usize::try_from(CACHE_BYTES).expect("1 MiB")];
            let mut start = range.start;
            while start < range.end {
                let end = range.end.min(start + CACHE_BYTES);
                let length = usize::try_from(end - start).expect("at most 1 MiB");
                lane.read(ByteRange { start, end }, &mut scratch[..length])?;
                start = end;
            }
            Ok(())
        });
    }

    fn block_status(&mut self, request: &Request, range: ByteRange) {
        if self.negotiated.contexts.is_empty() || range.is_empty() {
            let why = if range.is_empty() { "an empty range" } else { "no context was negotiated" };
            self.refuse(request, error::EINVAL, why);
            return;
        }
        if self.negotiated.target.disk.lazy().is_some_and(|lazy| !lazy.is_known()) {
            return self.status_remote(*request, range);
        }
        let contexts = self.negotiated.contexts.clone();
        let target = Arc::clone(&self.negotiated.target);
        let (request, style, socket) = (*request, self.style(request), Arc::clone(&self.socket));
        self.outstanding.run(move || {
            let mut out = Vec::new();
            if let Err(error) = reply::block_status(&mut out, &target, &contexts, &request, range) {
                out.clear();
                reply::error(&mut out, style, &request, errno(error.kind()), error.message());
            }
            send(&socket, &mut [IoSlice::new(&out)]);
        });
    }

    fn by_helper(
        &self,
        request: Request,
        work: impl FnOnce(&Target) -> crate::error::Result<()> + Send + 'static,
    ) {
        let (target, socket) = (Arc::clone(&self.negotiated.target), Arc::clone(&self.socket));
        let style = self.style(&request);
        let errand = self.tally.errand(&request);
        self.outstanding.run(move || {
            let mut out = Vec::new();
            let worked = work(&target);
            match &worked {
                Ok(()) => reply::done(&mut out, style, &request),
                Err(e) => reply::error(&mut out, style, &request, errno(e.kind()), e.message()),
            }
            send(&socket, &mut [IoSlice::new(&out)]);
            errand.end(worked.is_ok());
        });
    }

    pub(super) fn style(&self, request: &Request) -> Style {
        match (self.negotiated.structured, request.flags & flag::DF != 0) {
            (false, _) => Style::Simple,
            (true, false) => Style::Structured,
            (true, true) => Style::Unfragmented,
        }
    }

    pub(super) fn done(&mut self, request: &Request) {
        let style = self.style(request);
        reply::done(&mut self.output, style, request);
    }

    pub(super) fn fail(&mut self, request: &Request, error: &Error) {
        self.refuse(request, errno(error.kind()), error.message());
    }

    pub(super) fn refuse(&mut self, request: &Request, number: u32, message: &str) {
        let style = self.style(request);
        reply::error(&mut self.output, style, request, number, message);
    }
}

fn to_op<'a>(received: &Received, range: ByteRange, input: &'a [u8]) -> Op<'a> {
    let request = &received.request;
    match request.command {
        command::WRITE => {
            let data = &input[received.payload.0..received.payload.1];
            Op::Write { offset: range.start, data }
        }
        command::TRIM => Op::Trim { range },
        _ if request.flags & flag::NO_HOLE != 0 => Op::ZeroStored { range },
        _ => Op::Zero { range },
    }
}

pub(super) fn send(socket: &super::socket::Socket, parts: &mut [IoSlice<'_>]) {
    if let Err(error) = socket.send(parts) {
        // The connection's own thread notices too and ends it.
        tracing::debug!(%error, "a helper's reply was not sent");
    }
}
