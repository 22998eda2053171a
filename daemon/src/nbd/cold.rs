//! Small reads of a pool past the page cache: those of one batch go to the device together.
//!
//! Invariants: a read that is alone on its connection is made by the connection itself, since nobody
//! waits behind it; any other goes to a helper, with its neighbours; each request is answered once.
//! Absent: large reads (`bulk.rs`), and pools in the page cache, where most reads need no device.

use std::io::IoSlice;
use std::sync::Arc;

use super::execute::{errno, send};
use super::reply::{self, Style};
use super::session::{Common, Session};
use super::socket::Socket;
use super::tally::Errand;
use super::wire::Request;
use crate::disk::lane::Lane;
use crate::disk::read::{Wait, Wanted};
use crate::units::{BLOCK_BYTES, ByteRange};

/// Bytes that one helper reads at a time: enough to keep a device busy, and another helper has the rest.
const TOGETHER_BYTES: usize = 1 << 20;

/// A read that needs the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cold {
    pub request: Request,
    pub range: ByteRange,
    pub style: Style,
}

impl Cold {
    /// Its place in a buffer that several share, in whole blocks.
    fn room(&self) -> usize {
        (self.request.length as usize).next_multiple_of(BLOCK_BYTES)
    }
}

impl Session {
    /// Makes the reads of a batch that need the device; `alone` when nothing else came with it.
    pub(super) fn read_cold(&mut self, alone: bool) {
        let mut cold = std::mem::take(&mut self.cold);
        match cold[..] {
            [] => {}
            [one] if alone && self.outstanding.count() == 0 && !self.has_more() => {
                let ok = put(&mut self.lane, &one, &mut self.output);
                self.tally.did(&one.request, ok);
            }
            _ => {
                let mut rest = &cold[..];
                while !rest.is_empty() {
                    let mut bytes = 0;
                    let fits = rest.iter().take_while(|one| {
                        bytes += one.room();
                        bytes <= TOGETHER_BYTES
                    });
                    let (now, behind) = rest.split_at(fits.count().max(1));
                    self.read_together(now.to_vec());
                    rest = behind;
                }
            }
        }
        cold.clear();
        self.cold = cold;
    }

    fn read_together(&self, list: Vec<Cold>) {
        let (lanes, target) = (Arc::clone(&self.lanes), Arc::clone(&self.negotiated.target));
        let (common, socket) = (self.common.clone(), Arc::clone(&self.socket));
        let errands: Vec<Errand> = list.iter().map(|one| self.tally.errand(&one.request)).collect();
        self.outstanding.run(move || {
            let mut lane = lanes.lock().pop().unwrap_or_else(|| Lane::new(&target.disk));
            let answered = answer(&mut lane, &socket, &common, &list);
            lanes.lock().push(lane);
            errands.into_iter().zip(answered).for_each(|(errand, ok)| errand.end(ok));
        });
    }
}

/// Reads all of `list` and sends the replies at once. Tells of each whether it could be read.
fn answer(lane: &mut Lane, socket: &Socket, common: &Common, list: &[Cold]) -> Vec<bool> {
    let mut buffer =
        common.buffers.take(&common.budget, list.iter().map(Cold::room).sum::<usize>());
    let mut wanted = Vec::with_capacity(list.len());
    let mut rest = &mut buffer[..];
    for one in list {
        let (now, behind) = rest.split_at_mut(one.room());
        let out = &mut now[..one.request.length as usize];
        wanted.push(Wanted { range: one.range, out, outcome: None });
        rest = behind;
    }
    lane.read_together(&mut wanted);
    let mut heads = Vec::with_capacity(64 * list.len());
    let mut ends = Vec::with_capacity(list.len());
    let mut answered = Vec::with_capacity(list.len());
    for (one, wanted) in list.iter().zip(&wanted) {
        answered.push(match &wanted.outcome {
            Some(Ok(())) => {
                reply::data_header(&mut heads, one.style, &one.request);
                true
            }
            Some(Err(error)) => {
                let number = errno(error.kind());
                reply::error(&mut heads, one.style, &one.request, number, error.message());
                false
            }
            None => put(lane, one, &mut heads),
        });
        ends.push(heads.len());
    }
    let mut parts = Vec::with_capacity(2 * list.len());
    let mut start = 0;
    for (wanted, end) in wanted.iter().zip(ends) {
        parts.push(IoSlice::new(&heads[start..end]));
        if matches!(wanted.outcome, Some(Ok(()))) {
            parts.push(IoSlice::new(wanted.out));
        }
        start = end;
    }
    send(socket, &mut parts);
    answered
}

/// Makes one read, waiting for the device, and puts the reply; whether it could be read.
fn put(lane: &mut Lane, one: &Cold, out: &mut Vec<u8>) -> bool {
    let Cold { request, range, style } = one;
    let mark = out.len();
    let read = reply::read(lane, *style, request, *range, out, Wait::Yes);
    if let Err(error) = &read {
        out.truncate(mark);
        reply::error(out, *style, request, errno(error.kind()), error.message());
    }
    read.is_ok()
}
