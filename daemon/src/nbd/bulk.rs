//! Large reads and writes: copying dominates, so they use a second processor when there is a queue.
//!
//! Invariants: a connection does large requests itself unless more are waiting, because a hand-over costs
//! a wake-up; a payload is received into the buffer it is written from; each request is answered once.
//! Absent: small requests (`execute.rs`), which never leave the connection's thread.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::HELPERS;
use super::budget::Buffer;
use super::execute::{errno, send};
use super::remote::Change;
use super::reply::{self, Style};
use super::session::Session;
use super::socket::Socket;
use super::wire::{Request, command_flag as flag};
use crate::disk::lane::Lane;
use crate::disk::read::Wait;
use crate::disk::write::Op;
use crate::error::Result;
use crate::pool::file::Nowait;
use crate::units::ByteRange;

impl Session {
    /// Reads a large range and sends it from its own buffer.
    pub(super) fn bulk_read(
        &mut self,
        request: Request,
        range: ByteRange,
        style: Style,
        more: bool,
    ) -> io::Result<()> {
        if self.is_lazy() {
            // What has gathered leaves first: it is older.
            self.flush_output()?;
            self.read_remote(request, range, true);
            return Ok(());
        }
        let wants_help = (more || self.has_more()) && self.may_delegate();
        if wants_help {
            let (lanes, target) = (Arc::clone(&self.lanes), Arc::clone(&self.negotiated.target));
            let (common, socket) = (self.common.clone(), Arc::clone(&self.socket));
            let errand = self.tally.errand(&request);
            self.outstanding.run(move || {
                let mut lane = lanes.lock().pop().unwrap_or_else(|| Lane::new(&target.disk));
                let mut buffer = common.buffers.take(&common.budget, request.length as usize);
                let ok = read(&mut lane, &socket, &request, range, style, &mut buffer);
                lanes.lock().push(lane);
                errand.end(ok);
            });
            return Ok(());
        }
        // What has gathered leaves first: it is older.
        self.flush_output()?;
        let outcome = self.lane.locate(range, Wait::No);
        self.lane.release();
        if !matches!(outcome, Ok(Nowait::Done)) {
            self.read_by_helper(request, range, style);
            return Ok(());
        }
        let mut buffer = self.common.buffers.take(&self.common.budget, request.length as usize);
        let ok = read(&mut self.lane, &self.socket, &request, range, style, &mut buffer);
        self.tally.did(&request, ok);
        Ok(())
    }

    /// Receives the payload of a large write and writes it. `false` at the end of the stream.
    pub(super) fn bulk_write(&mut self, request: Request) -> io::Result<bool> {
        let mut buffer = self.common.buffers.take(&self.common.budget, request.length as usize);
        if !self.receive_exactly(&mut buffer)? {
            return Ok(false);
        }
        let range = match self.validate(&request) {
            Ok(range) => range,
            Err((number, message)) => {
                self.tally.refused(&request);
                self.refuse(&request, number, &message);
                return self.flush_output().map(|()| true);
            }
        };
        self.tally.begin();
        let Some(busy) = self.enter() else { return Ok(false) };
        self.wrote = true;
        if self.is_lazy() {
            let op = Op::Write { offset: range.start, data: &buffer };
            match self.lane.need_for(&op) {
                Ok(None) => {}
                Ok(Some(_)) => {
                    self.write_remote(request, Change::of(&op), busy);
                    return Ok(true);
                }
                Err(error) => {
                    self.fail(&request, &error);
                    return self.flush_output().map(|()| true);
                }
            }
        }
        let style = self.style(&request);
        if self.may_delegate() && self.has_more() {
            let (lanes, target) = (Arc::clone(&self.lanes), Arc::clone(&self.negotiated.target));
            let (socket, errand) = (Arc::clone(&self.socket), self.tally.errand(&request));
            self.outstanding.run(move || {
                let mut lane = lanes.lock().pop().unwrap_or_else(|| Lane::new(&target.disk));
                let result = write(&mut lane, &request, range, &buffer);
                drop((buffer, busy));
                lanes.lock().push(lane);
                let mut out = Vec::with_capacity(64);
                match &result {
                    Ok(()) => reply::done(&mut out, style, &request),
                    Err(e) => reply::error(&mut out, style, &request, errno(e.kind()), e.message()),
                }
                send(&socket, &mut [IoSlice::new(&out)]);
                errand.end(result.is_ok());
            });
            return Ok(true);
        }
        let result = write(&mut self.lane, &request, range, &buffer);
        self.tally.did(&request, result.is_ok());
        match result {
            Ok(()) => self.done(&request),
            Err(error) => self.fail(&request, &error),
        }
        self.flush_output()?;
        self.tally.end();
        Ok(true)
    }

    /// Whether a processor is likely to be free for a helper; past the page cache, where helpers wait for
    /// the device, whether a helper is.
    fn may_delegate(&self) -> bool {
        let uncached = self.negotiated.target.disk.is_uncached();
        let most = if uncached { HELPERS } else { self.common.processors };
        self.outstanding.count() + 1 < most
    }
}

fn write(lane: &mut Lane, request: &Request, range: ByteRange, data: &[u8]) -> Result<()> {
    let mut results = Vec::with_capacity(1);
    lane.submit(&[Op::Write { offset: range.start, data }], &mut results);
    results.pop().unwrap_or(Ok(()))?;
    if request.flags & flag::FUA != 0 { lane.flush(true) } else { Ok(()) }
}

/// Whether the range could be read.
fn read(
    lane: &mut Lane,
    socket: &Socket,
    request: &Request,
    range: ByteRange,
    style: Style,
    buffer: &mut Buffer,
) -> bool {
    let mut out = Vec::with_capacity(64);
    let outcome = lane.locate(range, Wait::Yes);
    let whole = lane.located_alike() == Some(true) || style != Style::Structured;
    if outcome.is_ok() && whole {
        let fetched = lane.fetch(range, buffer, Wait::Yes);
        lane.release();
        match &fetched {
            Ok(_) => {
                reply::data_header(&mut out, style, request);
                send(socket, &mut [IoSlice::new(&out), IoSlice::new(buffer)]);
            }
            Err(error) => {
                reply::error(&mut out, style, request, errno(error.kind()), error.message());
                send(socket, &mut [IoSlice::new(&out)]);
            }
        }
        return fetched.is_ok();
    }
    lane.release();
    let read = reply::read(lane, style, request, range, &mut out, Wait::Yes);
    if let Err(error) = &read {
        out.clear();
        reply::error(&mut out, style, request, errno(error.kind()), error.message());
    }
    send(socket, &mut [IoSlice::new(&out)]);
    read.is_ok()
}
