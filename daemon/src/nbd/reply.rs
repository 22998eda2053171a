//! Replies in either style, simple or structured.
//!
//! Invariants: a reply begins only when everything it promises has been read; stretches without data are
//! sent as holes unless the client forbade fragments.
//! Absent: sending.

use super::exports::SelectedContext;
use super::wire::{self, EXTENTS_MAX, Request, allocation, chunk_flag, command_flag};
use crate::disk::Extent;
use crate::disk::lane::Lane;
use crate::disk::read::Wait;
use crate::engine::Target;
use crate::error::Result;
use crate::pool::file::Nowait;
use crate::units::ByteRange;

/// Chunks in the reply to one read; a range that is cut up more comes as data throughout.
const CHUNKS_MAX: usize = 64;
/// Extents in one reply to a block status request: 512 KiB of reply.
const STATUS_EXTENTS_MAX: usize = EXTENTS_MAX / 16;
/// A changed extent in a `rowd:dirty:` context.
const DIRTY: u32 = 1;

/// How a request is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Simple,
    Structured,
    /// Structured, in one chunk of data.
    Unfragmented,
}

/// Puts the reply to a request that succeeded and returns nothing.
pub fn done(out: &mut Vec<u8>, style: Style, request: &Request) {
    match style {
        Style::Simple => wire::put_simple_reply(out, request.cookie, 0),
        Style::Structured | Style::Unfragmented => wire::put_none_chunk(out, request.cookie),
    }
}

/// Puts the reply to a request that failed.
pub fn error(out: &mut Vec<u8>, style: Style, request: &Request, number: u32, message: &str) {
    match style {
        Style::Simple => wire::put_simple_reply(out, request.cookie, number),
        Style::Structured | Style::Unfragmented => {
            wire::put_error_chunk(out, request.cookie, number, message);
        }
    }
}

/// Puts what comes before the data of a read that is sent whole.
pub fn data_header(out: &mut Vec<u8>, style: Style, request: &Request) {
    match style {
        Style::Simple => wire::put_simple_reply(out, request.cookie, 0),
        Style::Structured | Style::Unfragmented => wire::put_data_chunk_header(
            out,
            chunk_flag::DONE,
            request.cookie,
            request.offset,
            request.length,
        ),
    }
}

/// Reads a range and puts the reply. After `WouldBlock` or an error `out` holds rubbish at its end.
///
/// # Errors
/// The data is damaged or cannot be read.
pub fn read(
    lane: &mut Lane,
    style: Style,
    request: &Request,
    range: ByteRange,
    out: &mut Vec<u8>,
    wait: Wait,
) -> Result<Nowait> {
    if range.is_empty() {
        done(out, style, request);
        return Ok(Nowait::Done);
    }
    let mut outcome = lane.locate(range, wait);
    if matches!(outcome, Ok(Nowait::Done)) {
        outcome = read_located(lane, style, request, range, out, wait);
    }
    lane.release();
    outcome
}

fn read_located(
    lane: &mut Lane,
    style: Style,
    request: &Request,
    range: ByteRange,
    out: &mut Vec<u8>,
    wait: Wait,
) -> Result<Nowait> {
    let alike = lane.located_alike();
    if style != Style::Structured || alike == Some(true) {
        data_header(out, style, request);
        return put_data(lane, range, out, wait);
    }
    let extents = lane.located_extents(range);
    if extents.len() > CHUNKS_MAX {
        data_header(out, style, request);
        return put_data(lane, range, out, wait);
    }
    let last = extents.len() - 1;
    for (number, extent) in extents.iter().enumerate() {
        let flags = if number == last { chunk_flag::DONE } else { 0 };
        let (start, length) = (extent.range.start, length_of(extent));
        if extent.stored {
            wire::put_data_chunk_header(out, flags, request.cookie, start, length);
            if put_data(lane, extent.range, out, wait)? == Nowait::WouldBlock {
                return Ok(Nowait::WouldBlock);
            }
        } else {
            wire::put_hole_chunk(out, flags, request.cookie, start, length);
        }
    }
    Ok(Nowait::Done)
}

fn put_data(lane: &mut Lane, range: ByteRange, out: &mut Vec<u8>, wait: Wait) -> Result<Nowait> {
    let at = out.len();
    out.resize(at + usize::try_from(range.len()).expect("at most 32 MiB"), 0);
    lane.fetch(range, &mut out[at..], wait)
}

/// Puts one chunk of extents for each context.
///
/// # Errors
/// The map cannot be read, or the snapshot of a context is gone.
pub fn block_status(
    out: &mut Vec<u8>,
    target: &Target,
    contexts: &[SelectedContext],
    request: &Request,
    range: ByteRange,
) -> Result<()> {
    let one = request.flags & command_flag::REQ_ONE != 0;
    let limit = if one { 1 } else { STATUS_EXTENTS_MAX };
    for (number, context) in contexts.iter().enumerate() {
        let last = number + 1 == contexts.len();
        let flags = if last { chunk_flag::DONE } else { 0 };
        let (extents, stored, other) = match context.dirty_base() {
            Some(base) => (target.changed_since(base, range, limit)?, DIRTY, 0),
            None => {
                let hole = allocation::HOLE | allocation::ZERO;
                (target.disk.extents(range, limit)?, 0, hole)
            }
        };
        let list: Vec<wire::Extent> = extents
            .iter()
            .map(|e| wire::Extent {
                length: length_of(e),
                flags: if e.stored { stored } else { other },
            })
            .collect();
        wire::put_block_status_chunk(out, flags, request.cookie, context.id, &list);
    }
    Ok(())
}

fn length_of(extent: &Extent) -> u32 {
    u32::try_from(extent.range.len()).expect("within a request, whose length has 32 bits")
}
