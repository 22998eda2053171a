//! Requests to a disk that is filled while it is used, as far as they need what the disk lacks.
//!
//! Invariants: while a request waits for blocks that come from elsewhere it holds no thread, and until the first
//! are there no buffer; requests behind it go on. A write that is parked counts as under way until it is answered
//! (hazard H11). What still waits when the connection is handed over goes to the next process as it came: none of it
//! has been done, and none of it answered.
//! Absent: requests that need nothing (`execute.rs`).

use std::io::IoSlice;
use std::sync::Arc;

use super::budget::{Budget, Share};
use super::execute::{CACHE_BYTES, errno, send};
use super::exports::SelectedContext;
use super::parking::{Parking, Place};
use super::reply::{self, Style};
use super::session::Session;
use super::siblings::Busy;
use super::socket::Socket;
use super::tally::Errand;
use super::wire::{Request, command_flag as flag};
use crate::disk::lane::Lane;
use crate::disk::lazy::{Answer, Fetched, Need};
use crate::disk::write::Op;
use crate::engine::Target;
use crate::error::{Error, ErrorKind, Result};
use crate::units::ByteRange;

/// What every parked request has.
struct Common {
    parking: Arc<Parking>,
    target: Arc<Target>,
    socket: Arc<Socket>,
    request: Request,
    style: Style,
    errand: Errand,
    _place: Place,
}

impl Common {
    fn reply(self, result: Result<()>) {
        let mut out = Vec::with_capacity(64);
        match &result {
            Ok(()) => reply::done(&mut out, self.style, &self.request),
            Err(error) => {
                let number = errno(error.kind());
                reply::error(&mut out, self.style, &self.request, number, error.message());
            }
        }
        send(&self.socket, &mut [IoSlice::new(&out)]);
        self.errand.end(result.is_ok());
    }

    /// What it needs cannot be had; where the connection is handed over, not here.
    fn give_up(self, error: Error, payload: &[u8]) {
        let is_over = error.kind() == ErrorKind::ShuttingDown;
        if !is_over || !self.parking.takes_along(&self.request, payload) {
            self.reply(Err(error));
        }
    }

    fn handle(&self) -> Handle {
        Handle { parking: Arc::clone(&self.parking), target: Arc::clone(&self.target) }
    }
}

/// A read on its way.
struct Read {
    common: Common,
    budget: Arc<Budget>,
    /// What is read now, and what comes after it: only of a range whose data is not wanted.
    range: ByteRange,
    rest: Option<ByteRange>,
    buffer: Option<(Share, Vec<u8>)>,
    done: u64,
}

impl Read {
    fn go(mut self, carried: Option<Arc<Fetched>>) {
        let mut lane = Lane::new(&self.common.target.disk);
        lane.carry(carried);
        match self.step(&mut lane) {
            Ok(Some(need)) => {
                let common = self.common.handle();
                common.ask(need, move |answer| match answer {
                    Ok(got) => self.go(got),
                    Err(error) => self.common.give_up(error, &[]),
                });
            }
            Ok(None) => self.finish(),
            Err(error) => self.common.reply(Err(error)),
        }
    }

    fn step(&mut self, lane: &mut Lane) -> Result<Option<Need>> {
        if self.range.is_empty() {
            return Ok(None);
        }
        if self.buffer.is_none()
            && let Some(need) = lane.first_need(self.range)?
        {
            return Ok(Some(need));
        }
        let (_, buffer) = self.buffer.get_or_insert_with(|| {
            let length = usize::try_from(self.range.len()).expect("at most 32 MiB");
            (self.budget.take(length), vec![0; length])
        });
        lane.read_some(self.range, buffer, &mut self.done)
    }

    fn finish(mut self) {
        if let Some(rest) = self.rest.take() {
            if rest.is_empty() {
                return self.common.reply(Ok(()));
            }
            (self.range, self.rest) = cut(rest);
            (self.buffer, self.done) = (None, 0);
            let parking = Arc::clone(&self.common.parking);
            return parking.run(move || self.go(None));
        }
        if self.range.is_empty() {
            return self.common.reply(Ok(()));
        }
        let mut head = Vec::with_capacity(64);
        reply::data_header(&mut head, self.common.style, &self.common.request);
        let buffer = self.buffer.as_ref().map_or(&[][..], |(_, buffer)| buffer);
        send(&self.common.socket, &mut [IoSlice::new(&head), IoSlice::new(buffer)]);
        self.common.errand.end(true);
    }
}

/// The first piece of a range, and the rest.
fn cut(range: ByteRange) -> (ByteRange, Option<ByteRange>) {
    let middle = range.end.min(range.start + CACHE_BYTES);
    let first = ByteRange { start: range.start, end: middle };
    (first, Some(ByteRange { start: middle, end: range.end }))
}

/// What an owned request changes.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(u64, Vec<u8>),
    Zero(ByteRange),
    ZeroStored(ByteRange),
    Trim(ByteRange),
}

impl Change {
    pub(super) fn of(op: &Op<'_>) -> Change {
        match *op {
            Op::Write { offset, data } => Change::Write(offset, data.to_vec()),
            Op::Zero { range } => Change::Zero(range),
            Op::ZeroStored { range } => Change::ZeroStored(range),
            Op::Trim { range } => Change::Trim(range),
        }
    }

    /// What came behind its request.
    fn payload(&self) -> &[u8] {
        match self {
            Change::Write(_, data) => data,
            Change::Zero(_) | Change::ZeroStored(_) | Change::Trim(_) => &[],
        }
    }

    fn op(&self) -> Op<'_> {
        match self {
            Change::Write(offset, data) => Op::Write { offset: *offset, data },
            Change::Zero(range) => Op::Zero { range: *range },
            Change::ZeroStored(range) => Op::ZeroStored { range: *range },
            Change::Trim(range) => Op::Trim { range: *range },
        }
    }
}

/// A change on its way.
struct Write {
    common: Common,
    change: Change,
    carried: Vec<Arc<Fetched>>,
    _busy: Option<Busy>,
}

impl Write {
    fn go(mut self, carried: Option<Arc<Fetched>>) {
        self.carried.extend(carried);
        let mut lane = Lane::new(&self.common.target.disk);
        self.carried.iter().for_each(|fetched| lane.carry(Some(Arc::clone(fetched))));
        match lane.need_for(&self.change.op()) {
            Ok(Some(need)) => {
                let common = self.common.handle();
                common.ask(need, move |answer| match answer {
                    Ok(got) => self.go(got),
                    Err(error) => self.common.give_up(error, self.change.payload()),
                });
            }
            Ok(None) => {
                let mut results = Vec::with_capacity(1);
                lane.submit(&[self.change.op()], &mut results);
                let mut result = results.pop().unwrap_or(Ok(()));
                if self.common.request.flags & flag::FUA != 0 {
                    result = result.and_then(|()| lane.flush(true));
                }
                self.common.reply(result);
            }
            Err(error) => self.common.reply(Err(error)),
        }
    }
}

/// A block status on its way: which blocks the disk is going to have is not known yet.
struct Status {
    common: Common,
    contexts: Vec<SelectedContext>,
    range: ByteRange,
}

impl Status {
    fn go(self) {
        let lazy = self.common.target.disk.lazy();
        if lazy.is_some_and(|lazy| !lazy.is_known()) {
            let common = self.common.handle();
            return common.ask(Need::Index, move |answer| match answer {
                Ok(_) => self.go(),
                Err(error) => self.common.give_up(error, &[]),
            });
        }
        let Common { target, request, .. } = &self.common;
        let mut out = Vec::new();
        if let Err(e) = reply::block_status(&mut out, target, &self.contexts, request, self.range) {
            return self.common.reply(Err(e));
        }
        send(&self.common.socket, &mut [IoSlice::new(&out)]);
        self.common.errand.end(true);
    }
}

/// Enough of a request to ask for it, while the rest waits.
struct Handle {
    parking: Arc<Parking>,
    target: Arc<Target>,
}

impl Handle {
    /// Asks for what is needed; `go` is told on a helper.
    fn ask(self, need: Need, go: impl FnOnce(Answer) + Send + 'static) {
        let wake = self.parking.park(go);
        match self.target.disk.lazy() {
            Some(lazy) => lazy.ask(need, wake),
            // It has all its contents by now.
            None => wake(Ok(None)),
        }
    }
}

impl Session {
    /// Whether requests may need what the disk lacks.
    pub(super) fn is_lazy(&self) -> bool {
        self.negotiated.target.disk.lazy().is_some()
    }

    fn parked(&self, request: Request) -> Common {
        let parking = Arc::clone(&self.parking);
        Common {
            _place: parking.enter(),
            parking,
            target: Arc::clone(&self.negotiated.target),
            socket: Arc::clone(&self.socket),
            style: self.style(&request),
            errand: self.tally.errand(&request),
            request,
        }
    }

    /// Reads what the disk may lack; without `wanted` only so that it is here afterwards.
    pub(super) fn read_remote(&self, request: Request, range: ByteRange, wanted: bool) {
        let (common, budget) = (self.parked(request), Arc::clone(&self.common.budget));
        let (range, rest) = if wanted { (range, None) } else { cut(range) };
        let read = Read { common, budget, range, rest, buffer: None, done: 0 };
        self.parking.run(move || read.go(None));
    }

    /// Tells what is stored when it is known what there is.
    pub(super) fn status_remote(&self, request: Request, range: ByteRange) {
        let (common, contexts) = (self.parked(request), self.negotiated.contexts.clone());
        let status = Status { common, contexts, range };
        self.parking.run(move || status.go());
    }

    /// Makes a change that needs what the disk may lack.
    pub(super) fn write_remote(&self, request: Request, change: Change, busy: Option<Busy>) {
        let common = self.parked(request);
        let write = Write { common, change, carried: Vec::new(), _busy: busy };
        self.parking.run(move || write.go(None));
    }
}
