//! The transmission phase of one connection: receive many requests, do them, send many replies.
//!
//! Invariants: every request that was received whole is answered once, under its own cookie (hazard H8),
//! `DISC` and the end of the stream included; replies of one receive leave in as few sends as fit; no
//! request can make the thread panic or take memory outside the budget.
//! Absent: the handshake, and what requests do (`execute.rs`).

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::budget::{Budget, Buffers, Share};
use super::cold::Cold;
use super::exports::Negotiated;
use super::gather::Gather;
use super::helpers::{Helpers, Outstanding};
use super::leave::Leave;
use super::parking::{Ending, Parking};
use super::siblings::{Busy, Membership};
use super::socket::{Socket, Spin};
use super::tally::Tally;
use super::wire::{PAYLOAD_MAX, REQUEST_LEN, Request, command};
use crate::disk::lane::Lane;
use crate::engine::Target;

/// Bytes taken in one receive: a hundred 4 KiB writes, and small enough to stay in the processor's cache.
const INPUT_BYTES: usize = 512 << 10;
/// Writes from this size on go to buffers of their own, and to a helper when more is waiting.
pub(super) const BULK_BYTES: usize = 64 << 10;
/// Replies are sent when this much has gathered, at the latest.
pub(super) const OUTPUT_BYTES: usize = 256 << 10;
/// A client that stops this long in the middle of a large payload is disconnected: its share of memory
/// keeps others waiting.
const PAYLOAD_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Payloads of refused writes are read and dropped up to this size; beyond, the connection ends.
const DRAIN_MAX: u64 = 128 << 20;

/// What all connections share.
#[derive(Clone, Debug)]
pub struct Common {
    pub helpers: Arc<Helpers>,
    pub budget: Arc<Budget>,
    pub buffers: Arc<Buffers>,
    pub leave: Arc<Leave>,
    pub spin: Duration,
    /// Asked once: the answer costs several system calls.
    pub processors: usize,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client said that it leaves.
    Left,
    /// The stream ended, or broke.
    Closed,
    /// The word to leave was given. All that was received is answered or written down, and nothing was received of
    /// what comes next: another process can go on.
    Boundary,
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct Session {
    /// Among the connections of a kernel device. Before `outstanding` is drained it must not go.
    member: Option<Membership>,
    pub(super) socket: Arc<Socket>,
    pub(super) negotiated: Negotiated<Arc<Target>>,
    pub(super) lane: Lane,
    pub(super) outstanding: Outstanding,
    /// Requests that wait for what the disk lacks.
    pub(super) parking: Arc<Parking>,
    /// While the requests of a batch are done, where connections need permission.
    pub(super) busy: Option<Busy>,
    pub(super) output: Vec<u8>,
    /// Reads of this batch that need the device.
    pub(super) cold: Vec<Cold>,
    /// Lanes for helpers, so that they keep their leases between jobs.
    pub(super) lanes: Arc<Mutex<Vec<Lane>>>,
    pub(super) common: Common,
    pub(super) tally: Tally,
    /// Something was written on this connection.
    pub(super) wrote: bool,
    spin: Spin,
    gather: Gather,
    /// Bytes received for one request, as of the last batch.
    request_bytes: usize,
    input: Vec<u8>,
    start: usize,
    end: usize,
    /// Held while the input buffer is larger than usual.
    share: Option<Share>,
    /// The last request was a large write: the next header is received alone, so that its payload can
    /// go to a buffer of its own without being copied.
    pub(super) bulk: bool,
}

/// A request with the place of its payload in the input buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    pub(super) request: Request,
    pub(super) payload: (usize, usize),
}

impl Received {
    /// Whether it brings a large payload.
    pub(super) fn is_bulk(&self) -> bool {
        self.payload.1 - self.payload.0 >= BULK_BYTES
    }

    /// What was received for it.
    fn bytes(&self) -> usize {
        REQUEST_LEN + self.payload.1 - self.payload.0
    }

    /// Whether it is quickly done, so that receiving it is a large part of its cost.
    fn is_small(&self) -> bool {
        (self.request.length as usize) < BULK_BYTES
    }
}

/// What lies at the start of the unread input.
enum Next {
    Whole(Received),
    /// So many bytes in all are needed for the next request.
    Needs(usize),
    /// A large write whose payload has not been received yet.
    Bulk(Request),
    /// A write too large to take: its payload has to be skipped.
    Oversized(Request),
    Broken,
}

/// What came of waiting for input.
enum Filled {
    Yes,
    Ended,
    Boundary,
}

impl Session {
    #[must_use]
    pub fn new(
        socket: Arc<Socket>,
        negotiated: Negotiated<Arc<Target>>,
        common: Common,
    ) -> Session {
        let lane = Lane::new(&negotiated.target.disk);
        let tally = Tally::new(negotiated.target.meter().tap());
        Session {
            member: None,
            socket,
            negotiated,
            lane,
            outstanding: Outstanding::new(&common.helpers),
            parking: Parking::new(&common.helpers),
            busy: None,
            output: Vec::with_capacity(OUTPUT_BYTES),
            cold: Vec::new(),
            lanes: Arc::default(),
            spin: Spin::new(common.spin, common.processors / 2),
            common,
            tally,
            wrote: false,
            gather: Gather::default(),
            request_bytes: REQUEST_LEN,
            input: vec![0; INPUT_BYTES],
            start: 0,
            end: 0,
            share: None,
            bulk: false,
        }
    }

    /// The same, as one connection of a kernel device.
    #[must_use]
    pub fn among(self, member: Membership) -> Session {
        Session { member: Some(member), ..self }
    }

    /// The same, with requests that came over the connection before: they are done first.
    #[must_use]
    pub fn after(mut self, unanswered: &[u8]) -> Session {
        self.make_room(unanswered.len());
        self.input[..unanswered.len()].copy_from_slice(unanswered);
        self.end = unanswered.len();
        self
    }

    /// Serves requests until the client leaves, or the daemon does. Returns the requests that another process has to
    /// answer.
    pub fn run(mut self) -> (End, Vec<u8>) {
        let result = self.serve();
        self.busy = None;
        self.outstanding.drain();
        let ending = match result {
            Ok(End::Left) => Ending::Stays,
            Ok(End::Boundary) => Ending::HandedOver,
            Ok(End::Closed) | Err(_) => Ending::Gone,
        };
        let unanswered = self.parking.drain(&self.socket, ending);
        let end = result.unwrap_or_else(|error| {
            tracing::debug!(%error, export = self.negotiated.export, "connection ended");
            End::Closed
        });
        (end, unanswered)
    }

    fn serve(&mut self) -> io::Result<End> {
        let mut batch = Vec::new();
        loop {
            batch.clear();
            let next = self.parse(&mut batch);
            self.learn(&batch);
            if !batch.is_empty() {
                self.tally.begin();
                let Some(busy) = self.enter() else { return Ok(End::Closed) };
                self.busy = busy;
                let leaving = self.execute(&batch)?;
                self.busy = None;
                self.flush_output()?;
                self.tally.end();
                self.lane.look_ahead();
                if leaving {
                    return Ok(End::Left);
                }
            }
            match next {
                Next::Broken => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "bad request magic"));
                }
                Next::Oversized(request) => self.skip_oversized(request)?,
                Next::Needs(bytes) => match self.fill(bytes)? {
                    Filled::Yes => self.gather_more()?,
                    Filled::Ended => return Ok(End::Closed),
                    Filled::Boundary => return Ok(End::Boundary),
                },
                Next::Bulk(request) => {
                    self.start += REQUEST_LEN;
                    if !self.bulk_write(request)? {
                        return Ok(End::Closed);
                    }
                }
                Next::Whole(_) => {}
            }
        }
    }

    /// Permission to change the disk, where connections need one; `None` when there is none any more.
    pub(super) fn enter(&self) -> Option<Option<Busy>> {
        match &self.member {
            None => Some(None),
            Some(member) => member.enter().map(Some),
        }
    }

    /// Takes every whole request out of the input.
    fn parse(&mut self, batch: &mut Vec<Received>) -> Next {
        loop {
            match self.next() {
                Next::Whole(received) => {
                    self.start = received.payload.1;
                    batch.push(received);
                }
                other => return other,
            }
        }
    }

    fn next(&self) -> Next {
        let unread = &self.input[self.start..self.end];
        let Some(header) = unread.first_chunk::<REQUEST_LEN>() else {
            return Next::Needs(REQUEST_LEN);
        };
        let Some(request) = Request::decode(header) else { return Next::Broken };
        let payload = usize::try_from(request.payload_len()).unwrap_or(usize::MAX);
        if request.command == command::WRITE && request.length > PAYLOAD_MAX {
            return Next::Oversized(request);
        }
        if self.bulk && unread.len() == REQUEST_LEN && payload >= BULK_BYTES {
            return Next::Bulk(request);
        }
        if unread.len() < REQUEST_LEN + payload {
            return Next::Needs(REQUEST_LEN + payload);
        }
        let from = self.start + REQUEST_LEN;
        Next::Whole(Received { request, payload: (from, from + payload) })
    }

    /// Receives until `bytes` unread ones are there.
    fn fill(&mut self, bytes: usize) -> io::Result<Filled> {
        self.make_room(bytes);
        while self.end - self.start < bytes {
            let leaving = self.common.leave.is_given();
            // Nothing of the next message has been received: here the connection may change hands.
            let between = self.end == self.start;
            if leaving && between {
                return Ok(Filled::Boundary);
            }
            // Who leaves takes no more than the message it has begun.
            let exactly = self.bulk || leaving;
            let limit = if exactly { self.start + bytes } else { self.input.len() };
            // Who has begun a large payload holds a share of the daemon's memory.
            let patience = self.share.as_ref().map(|_| PAYLOAD_PAUSE_MAX);
            let unread = &mut self.input[self.end..limit];
            let leave = between.then_some(&*self.common.leave);
            match self.spin.receive(&self.socket, unread, patience, leave)? {
                None => return Ok(Filled::Boundary),
                Some(0) => return Ok(Filled::Ended),
                Some(got) => self.end += got,
            }
        }
        Ok(Filled::Yes)
    }

    /// Receives what else the client is sending, if its queue is deep.
    fn gather_more(&mut self) -> io::Result<()> {
        let alone = self.bulk || self.share.is_some() || self.common.leave.is_given();
        let Some(hold) = self.gather.plan().filter(|_| !alone) else { return Ok(()) };
        let unread = self.end - self.start;
        let enough = hold.enough.saturating_mul(self.request_bytes).saturating_sub(unread);
        let room = &mut self.input[self.end..];
        self.end += self.spin.linger(&self.socket, room, enough, hold)?;
        Ok(())
    }

    /// Takes note of how many requests came together.
    fn learn(&mut self, batch: &[Received]) {
        if batch.is_empty() {
            return;
        }
        let bytes: usize = batch.iter().map(Received::bytes).sum();
        self.request_bytes = bytes / batch.len();
        let small = batch.iter().all(Received::is_small);
        self.gather.learn(if small { batch.len() } else { 0 });
    }

    /// Receives exactly what `out` takes; `false` at the end of the stream.
    pub(super) fn receive_exactly(&mut self, out: &mut [u8]) -> io::Result<bool> {
        let mut at = 0;
        while at < out.len() {
            let patience = Some(PAYLOAD_PAUSE_MAX);
            match self.spin.receive(&self.socket, &mut out[at..], patience, None)? {
                None | Some(0) => return Ok(false),
                Some(got) => at += got,
            }
        }
        Ok(true)
    }

    /// Whether the client has sent more than what is being done now.
    pub(super) fn has_more(&self) -> bool {
        self.start < self.end || self.socket.has_input()
    }

    fn make_room(&mut self, bytes: usize) {
        self.input.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if bytes > self.input.len() {
            // Let go before waiting for more, or two connections could wait for each other.
            self.share = None;
            self.share = Some(self.common.budget.take(bytes));
            self.input.resize(bytes, 0);
        } else if self.share.is_some() && bytes <= INPUT_BYTES && self.end <= INPUT_BYTES {
            self.input.truncate(INPUT_BYTES);
            self.input.shrink_to_fit();
            self.share = None;
        }
    }

    fn skip_oversized(&mut self, request: Request) -> io::Result<()> {
        let mut left = u64::from(request.length);
        if left > DRAIN_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a write of over 128 MiB"));
        }
        self.start += REQUEST_LEN;
        while left > 0 {
            if self.start == self.end && !self.fill_payload()? {
                return Ok(());
            }
            let unread = self.end - self.start;
            let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(unread);
            self.start += skipped;
            left -= skipped as u64;
        }
        self.refuse_oversized(request)
    }

    /// Receives some of a payload that is to be dropped; `false` at the end of the stream.
    fn fill_payload(&mut self) -> io::Result<bool> {
        self.make_room(1);
        let patience = Some(PAYLOAD_PAUSE_MAX);
        let got = self.spin.receive(&self.socket, &mut self.input[self.end..], patience, None)?;
        self.end += got.unwrap_or(0);
        Ok(self.end > self.start)
    }

    /// The unread input buffer, moved out so that it can be borrowed beside the rest of the session.
    pub(super) fn take_input(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.input)
    }

    /// Puts the input buffer back.
    pub(super) fn put_input(&mut self, input: Vec<u8>) {
        self.input = input;
    }

    /// Sends what has gathered.
    pub(super) fn flush_output(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let result = self.socket.send(&mut [IoSlice::new(&self.output)]);
        self.output.clear();
        result
    }
}
