//! From a fresh connection to transmission: fixed newstyle with `NBD_OPT_GO`.
//!
//! Invariants: an option's replies are read to their end before the next option; a refusal keeps
//! the words of the server; structured replies and `base:allocation` are asked for and done without
//! when refused.
//! Absent: `NBD_OPT_EXPORT_NAME`, which cannot report an error.

use std::io::Write;
use std::os::unix::net::UnixStream;

use rowd_proto::ErrorKind;

use crate::error::{Failure, Result};

use super::{Export, Wire, broken, lost, to_usize};

const SERVER_MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// The longest payload of an option reply that makes sense: names and messages have at most 4096
/// bytes.
const OPTION_BYTES_MAX: u32 = 8192;
/// Replies to one option; a server that sends more is not coming to an end.
const REPLIES_MAX: usize = 64;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPT_ABORT: u32 = 2;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;

const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
/// Set in the type of every reply that is a refusal.
const REP_ERROR: u32 = 1 << 31;
const REP_ERR_POLICY: u32 = REP_ERROR | 2;
const REP_ERR_TLS: u32 = REP_ERROR | 5;
const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;
const REP_ERR_SHUTDOWN: u32 = REP_ERROR | 7;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const ALLOCATION: &str = "base:allocation";

/// One reply to an option.
struct OptionReply {
    kind: u32,
    payload: Vec<u8>,
}

/// Greets the server and opens the export.
pub(super) fn negotiate(stream: &UnixStream, name: &str) -> Result<Export> {
    greet(stream)?;
    let replies = ask(stream, OPT_STRUCTURED_REPLY, &[])?;
    let structured = replies.iter().any(|reply| reply.kind == REP_ACK);
    let mut export = Export { structured, ..Export::default() };
    if export.structured {
        export.allocation = allocation_context(stream, name)?;
    }
    let mut request = text(name)?;
    request.extend_from_slice(&1u16.to_be_bytes());
    request.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    let mut told = false;
    for reply in ask(stream, OPT_GO, &request)? {
        match reply.kind {
            REP_INFO => told |= take_info(&mut export, &reply.payload),
            kind if kind & REP_ERROR != 0 => return Err(refused(name, &reply)),
            _ => {}
        }
    }
    if told { Ok(export) } else { Err(broken("an export without a size")) }
}

/// Greets the server and leaves.
pub(super) fn probe(stream: &UnixStream) -> Result<()> {
    greet(stream)?;
    // Servers need not answer this one, and a connection that ends is answer enough.
    send_option(stream, OPT_ABORT, &[])
}

fn greet(mut stream: &UnixStream) -> Result<()> {
    let mut wire = Wire(stream);
    let (server, option) = (wire.array::<8>()?, wire.array::<8>()?);
    if &server != SERVER_MAGIC || &option != OPTION_MAGIC {
        return Err(broken("its greeting is not that of a newstyle server"));
    }
    let flags = wire.u16()?;
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(broken("it is not a fixed newstyle server"));
    }
    let answer = u32::from(FIXED_NEWSTYLE | (flags & NO_ZEROES));
    stream.write_all(&answer.to_be_bytes()).map_err(|e| lost(&e))
}

/// The id under which the server will tell holes from data.
fn allocation_context(stream: &UnixStream, name: &str) -> Result<Option<u32>> {
    let mut request = text(name)?;
    request.extend_from_slice(&1u32.to_be_bytes());
    request.extend(text(ALLOCATION)?);
    let replies = ask(stream, OPT_SET_META_CONTEXT, &request)?;
    let found = replies.iter().find_map(|reply| {
        let (id, context) = reply.payload.split_first_chunk::<4>()?;
        let ours = reply.kind == REP_META_CONTEXT && context == ALLOCATION.as_bytes();
        ours.then(|| u32::from_be_bytes(*id))
    });
    Ok(found)
}

/// Sends an option and collects its replies, the last of which is an acknowledgement or a refusal.
fn ask(stream: &UnixStream, option: u32, data: &[u8]) -> Result<Vec<OptionReply>> {
    send_option(stream, option, data)?;
    let mut replies = Vec::new();
    while replies.len() < REPLIES_MAX {
        let reply = read_reply(stream, option)?;
        let last = reply.kind == REP_ACK || reply.kind & REP_ERROR != 0;
        replies.push(reply);
        if last {
            return Ok(replies);
        }
    }
    Err(broken("more replies to an option than make sense"))
}

fn send_option(mut stream: &UnixStream, option: u32, data: &[u8]) -> Result<()> {
    let length = u32::try_from(data.len()).map_err(|_| broken("an option of over 4 GiB"))?;
    let mut message = OPTION_MAGIC.to_vec();
    message.extend_from_slice(&option.to_be_bytes());
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(data);
    stream.write_all(&message).map_err(|e| lost(&e))
}

fn read_reply(stream: &UnixStream, option: u32) -> Result<OptionReply> {
    let mut wire = Wire(stream);
    let (magic, answered) = (wire.u64()?, wire.u32()?);
    let (kind, length) = (wire.u32()?, wire.u32()?);
    if magic != REPLY_MAGIC || answered != option || length > OPTION_BYTES_MAX {
        return Err(broken("a reply to no option"));
    }
    let mut payload = vec![0; to_usize(length)?];
    wire.fill(&mut payload)?;
    Ok(OptionReply { kind, payload })
}

/// Takes one piece of information about the export; true when it was its size.
fn take_info(export: &mut Export, payload: &[u8]) -> bool {
    let Some((kind, rest)) = payload.split_first_chunk::<2>() else { return false };
    match (u16::from_be_bytes(*kind), rest) {
        (INFO_EXPORT, [size @ .., high, low]) => {
            let Ok(size) = <[u8; 8]>::try_from(size) else { return false };
            export.size = u64::from_be_bytes(size);
            export.flags = u16::from_be_bytes([*high, *low]);
            true
        }
        (INFO_BLOCK_SIZE, rest) if rest.len() == 12 => {
            export.request_max = rest.last_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes));
            false
        }
        _ => false,
    }
}

/// The server does not open the export.
fn refused(name: &str, reply: &OptionReply) -> Failure {
    let words = String::from_utf8_lossy(&reply.payload);
    let words = if words.is_empty() { "no reason given" } else { &words };
    let kind = match reply.kind {
        REP_ERR_UNKNOWN => ErrorKind::NotFound,
        REP_ERR_POLICY | REP_ERR_TLS => ErrorKind::NotPermitted,
        REP_ERR_SHUTDOWN => ErrorKind::ShuttingDown,
        _ => ErrorKind::Io,
    };
    Failure::new(kind, format!("the NBD server does not open export '{name}': {words}"))
}

/// A text with its length in front.
fn text(text: &str) -> Result<Vec<u8>> {
    let length = u32::try_from(text.len()).map_err(|_| broken("a name of over 4 GiB"))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    Ok(bytes)
}
