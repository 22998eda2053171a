//! The numbers of the NBD protocol, and the messages of its transmission phase.
//!
//! Sections named here are those of the "NBD protocol", doc/proto.md.
//!
//! Invariants:
//! - integers on the wire are big-endian;
//! - an encoder appends one whole message, or its whole head where the data follows, to the buffer;
//! - a decoder takes exactly the bytes of a message and accepts every value the format can carry:
//!   what an unknown command or flag means is for the caller to decide.
//!
//! Absent: I/O; the messages of the handshake (`wire_option`); extended headers, which no client at
//! hand could test.

/// `NBDMAGIC`, the first eight bytes a server sends ("Newstyle negotiation").
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, the second eight, and the start of each option ("Newstyle negotiation").
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The start of each option reply ("Fixed newstyle negotiation").
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// The start of each request ("Compact request message").
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// The start of a simple reply ("Simple reply message").
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// The start of each chunk ("Structured reply chunk message").
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The longest string either side may send: names, descriptions, messages ("Values": strings).
pub const STRING_MAX: usize = 4096;

/// The smallest unit a request may address ("Size constraints"): no client has to align anything.
pub const BLOCK_MIN: u32 = 1;
/// The unit a client does best to address ("Size constraints"): the block of the map.
pub const BLOCK_PREFERRED: u32 = 4096;
/// The longest payload of a request or a reply ("Size constraints"). The specification forbids to
/// treat less as an attack, and clients rely on this very number.
pub const PAYLOAD_MAX: u32 = 32 << 20;

/// Extents one block status chunk may hold ("Structured reply types": at most 2^20 are advised, and
/// clients disconnect above it).
pub const EXTENTS_MAX: usize = 1 << 20;

/// "Handshake phase": "Flag fields", both directions use the same two bits.
pub mod handshake_flag {
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// "Option types".
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// "Option reply types". Errors have bit 31 set and may carry a message for people.
pub mod option_reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;

    const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_POLICY: u32 = ERROR | 2;
    pub const ERR_INVALID: u32 = ERROR | 3;
    pub const ERR_PLATFORM: u32 = ERROR | 4;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// "Option types": the information `INFO` and `GO` ask for and `NBD_REP_INFO` gives.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// "Transmission flags": what an export can do.
pub mod transmission_flag {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// "Request types".
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// "Command flags".
pub mod command_flag {
    use super::command;

    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;

    /// The flags the specification documents for a command. Any other is to be answered `EINVAL`.
    ///
    /// FUA is valid everywhere, even where it means nothing. DF is valid only on a connection that
    /// negotiated structured replies, which is not known here.
    #[must_use]
    pub fn allowed(command: u16) -> u16 {
        match command {
            command::READ => FUA | DF,
            command::WRITE_ZEROES => FUA | NO_HOLE | FAST_ZERO,
            command::BLOCK_STATUS => FUA | REQ_ONE,
            _ => FUA,
        }
    }
}

/// "Structured reply flags".
pub mod chunk_flag {
    /// No further chunk of this reply follows.
    pub const DONE: u16 = 1 << 0;
}

/// "Structured reply types".
pub mod chunk {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) | 1;
    pub const ERROR_OFFSET: u16 = (1 << 15) | 2;
}

/// "Error values": the only ones that may cross the wire, whatever `errno` is here.
pub mod error {
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const ENOMEM: u32 = 12;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    /// Only for a DF read, or a command without payload, that is too long.
    pub const EOVERFLOW: u32 = 75;
    /// Only for `WRITE_ZEROES` with `FAST_ZERO` that would not be fast.
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
}

/// "Metadata querying": the flags of an extent in the context `base:allocation`.
pub mod allocation {
    pub const HOLE: u32 = 1 << 0;
    pub const ZERO: u32 = 1 << 1;
}

/// Bytes of a request before its payload ("Compact request message").
pub const REQUEST_LEN: usize = 28;
/// Bytes of a simple reply before its data ("Simple reply message").
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Bytes of a chunk before its payload ("Structured reply chunk message").
pub const CHUNK_HEADER_LEN: usize = 20;

/// A request as it came, nothing checked but the magic ("Compact request message").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    /// Chosen by the client; its reply carries the same.
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl Request {
    /// `None` when the magic is wrong: the stream is out of step and cannot be used further.
    #[must_use]
    pub fn decode(bytes: &[u8; REQUEST_LEN]) -> Option<Request> {
        if u32::from_be_bytes(field(bytes, 0)) != REQUEST_MAGIC {
            return None;
        }
        Some(Request {
            flags: u16::from_be_bytes(field(bytes, 4)),
            command: u16::from_be_bytes(field(bytes, 6)),
            cookie: u64::from_be_bytes(field(bytes, 8)),
            offset: u64::from_be_bytes(field(bytes, 16)),
            length: u32::from_be_bytes(field(bytes, 24)),
        })
    }

    /// The request as it came.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Bytes that follow the request on the wire, also when it is going to be refused.
    #[must_use]
    pub fn payload_len(&self) -> u32 {
        if self.command == command::WRITE { self.length } else { 0 }
    }
}

/// A simple reply, error 0 for success ("Simple reply message"). The data of a read follows it.
pub fn put_simple_reply(out: &mut Vec<u8>, cookie: u64, error: u32) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

/// The head of a chunk of any type ("Structured reply chunk message").
pub fn put_chunk_header(out: &mut Vec<u8>, flags: u16, chunk_type: u16, cookie: u64, length: u32) {
    out.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&chunk_type.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

/// The whole reply to a command that succeeded and returns no data (`NBD_REPLY_TYPE_NONE`).
pub fn put_none_chunk(out: &mut Vec<u8>, cookie: u64) {
    put_chunk_header(out, chunk_flag::DONE, chunk::NONE, cookie, 0);
}

/// The head of a chunk of data (`NBD_REPLY_TYPE_OFFSET_DATA`); `length` bytes of data follow it.
///
/// # Panics
/// `length` is 0 or above [`PAYLOAD_MAX`], which the check of the request excludes.
pub fn put_data_chunk_header(out: &mut Vec<u8>, flags: u16, cookie: u64, offset: u64, length: u32) {
    assert!((1..=PAYLOAD_MAX).contains(&length), "a data chunk of {length} bytes");
    put_chunk_header(out, flags, chunk::OFFSET_DATA, cookie, length + 8);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// A stretch that reads as zeros (`NBD_REPLY_TYPE_OFFSET_HOLE`). `length` must not be 0.
pub fn put_hole_chunk(out: &mut Vec<u8>, flags: u16, cookie: u64, offset: u64, length: u32) {
    debug_assert!(length > 0, "an empty hole");
    put_chunk_header(out, flags, chunk::OFFSET_HOLE, cookie, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

/// One descriptor of a block status chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, not 0.
    pub length: u32,
    /// What the metadata context says about them.
    pub flags: u32,
}

/// Consecutive extents of one metadata context (`NBD_REPLY_TYPE_BLOCK_STATUS`).
///
/// At most [`EXTENTS_MAX`] are sent; the specification lets a reply cover less than was asked.
pub fn put_block_status_chunk(
    out: &mut Vec<u8>,
    flags: u16,
    cookie: u64,
    context_id: u32,
    extents: &[Extent],
) {
    debug_assert!(!extents.is_empty(), "a block status without extents");
    let extents = &extents[..extents.len().min(EXTENTS_MAX)];
    let count = u32::try_from(extents.len()).expect("EXTENTS_MAX fits 32 bits");
    put_chunk_header(out, flags, chunk::BLOCK_STATUS, cookie, 4 + 8 * count);
    out.extend_from_slice(&context_id.to_be_bytes());
    for extent in extents {
        out.extend_from_slice(&extent.length.to_be_bytes());
        out.extend_from_slice(&extent.flags.to_be_bytes());
    }
}

/// The last chunk of a reply that failed, with words for people (`NBD_REPLY_TYPE_ERROR`).
pub fn put_error_chunk(out: &mut Vec<u8>, cookie: u64, error: u32, message: &str) {
    let (message, length) = error_message(error, message);
    put_chunk_header(out, chunk_flag::DONE, chunk::ERROR, cookie, 6 + u32::from(length));
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(message.as_bytes());
}

/// A chunk that says where a request failed (`NBD_REPLY_TYPE_ERROR_OFFSET`); content of other
/// offsets, sent before or after it, stays valid.
pub fn put_error_offset_chunk(
    out: &mut Vec<u8>,
    flags: u16,
    cookie: u64,
    error: u32,
    message: &str,
    offset: u64,
) {
    let (message, length) = error_message(error, message);
    put_chunk_header(out, flags, chunk::ERROR_OFFSET, cookie, 14 + u32::from(length));
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(message.as_bytes());
    out.extend_from_slice(&offset.to_be_bytes());
}

fn error_message(error: u32, message: &str) -> (&str, u16) {
    debug_assert!(error != 0, "an error chunk that reports success");
    let message = clip(message);
    (message, u16::try_from(message.len()).expect("STRING_MAX fits 16 bits"))
}

/// The start of a text that fits a string of the protocol, cut between characters.
#[must_use]
pub fn clip(text: &str) -> &str {
    if text.len() <= STRING_MAX {
        return text;
    }
    let end = (0..=STRING_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text[..end]
}

/// The bytes of a fixed-size field. The caller's types prove that it lies inside.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request_bytes(magic: u32) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[0..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..6].copy_from_slice(&0x0102u16.to_be_bytes());
        bytes[6..8].copy_from_slice(&0xfffeu16.to_be_bytes());
        bytes[8..16].copy_from_slice(&0x1122_3344_5566_7788u64.to_be_bytes());
        bytes[16..24].copy_from_slice(&0x8000_0000_0000_0001u64.to_be_bytes());
        bytes[24..28].copy_from_slice(&0xffff_ffffu32.to_be_bytes());
        bytes
    }

    #[test]
    fn a_request_keeps_unknown_commands_and_flags_as_values() {
        let request = Request::decode(&request_bytes(REQUEST_MAGIC)).unwrap();
        assert_eq!(request.encode(), request_bytes(REQUEST_MAGIC));
        assert_eq!(
            request,
            Request {
                flags: 0x0102,
                command: 0xfffe,
                cookie: 0x1122_3344_5566_7788,
                offset: 0x8000_0000_0000_0001,
                length: u32::MAX,
            }
        );
        assert_eq!(request.payload_len(), 0);
        assert_eq!(Request { command: command::WRITE, ..request }.payload_len(), u32::MAX);
    }

    #[test]
    fn a_request_with_another_magic_is_none() {
        assert_eq!(Request::decode(&request_bytes(REQUEST_MAGIC ^ 1)), None);
        assert_eq!(Request::decode(&request_bytes(SIMPLE_REPLY_MAGIC)), None);
    }

    #[test]
    fn a_simple_reply_is_magic_error_cookie() {
        let mut out = Vec::new();
        put_simple_reply(&mut out, 0x0102_0304_0506_0708, error::ENOSPC);
        assert_eq!(out, b"\x67\x44\x66\x98\0\0\0\x1c\x01\x02\x03\x04\x05\x06\x07\x08");
        assert_eq!(out.len(), SIMPLE_REPLY_LEN);
    }

    /// What a client would read: flags, type, payload; the cookie is checked on the way.
    fn parse_chunk(bytes: &[u8], cookie: u64) -> (u16, u16, &[u8]) {
        assert_eq!(u32::from_be_bytes(field(bytes, 0)), STRUCTURED_REPLY_MAGIC);
        assert_eq!(u64::from_be_bytes(field(bytes, 8)), cookie);
        let payload = &bytes[CHUNK_HEADER_LEN..];
        let length = u32::from_be_bytes(field(bytes, 16));
        assert_eq!(usize::try_from(length).unwrap(), payload.len());
        (u16::from_be_bytes(field(bytes, 4)), u16::from_be_bytes(field(bytes, 6)), payload)
    }

    #[test]
    fn chunks_announce_the_length_they_have() {
        let mut out = Vec::new();
        put_none_chunk(&mut out, 7);
        assert_eq!(parse_chunk(&out, 7), (chunk_flag::DONE, chunk::NONE, &[][..]));

        out.clear();
        put_data_chunk_header(&mut out, 0, 7, 0x1000, 3);
        out.extend_from_slice(b"abc");
        assert_eq!(parse_chunk(&out, 7), (0, chunk::OFFSET_DATA, &b"\0\0\0\0\0\0\x10\0abc"[..]));

        out.clear();
        put_hole_chunk(&mut out, chunk_flag::DONE, 7, 0x1000, 0x200);
        let payload = &b"\0\0\0\0\0\0\x10\0\0\0\x02\0"[..];
        assert_eq!(parse_chunk(&out, 7), (chunk_flag::DONE, chunk::OFFSET_HOLE, payload));

        out.clear();
        put_error_chunk(&mut out, 7, error::EINVAL, "no");
        assert_eq!(parse_chunk(&out, 7), (1, chunk::ERROR, &b"\0\0\0\x16\0\x02no"[..]));

        out.clear();
        put_error_offset_chunk(&mut out, 0, 7, error::EIO, "", 9);
        let payload = &b"\0\0\0\x05\0\0\0\0\0\0\0\0\0\x09"[..];
        assert_eq!(parse_chunk(&out, 7), (0, chunk::ERROR_OFFSET, payload));
    }

    #[test]
    fn block_status_lists_the_extents_of_one_context() {
        let mut out = Vec::new();
        let extents = [
            Extent { length: 4096, flags: 0 },
            Extent { length: 512, flags: allocation::HOLE | allocation::ZERO },
        ];
        put_block_status_chunk(&mut out, chunk_flag::DONE, 7, 2, &extents);
        let payload = &b"\0\0\0\x02\0\0\x10\0\0\0\0\0\0\0\x02\0\0\0\0\x03"[..];
        assert_eq!(parse_chunk(&out, 7), (1, chunk::BLOCK_STATUS, payload));
    }

    #[test]
    fn block_status_never_sends_more_extents_than_clients_take() {
        let mut out = Vec::new();
        let extents = vec![Extent { length: 1, flags: 0 }; EXTENTS_MAX + 5];
        put_block_status_chunk(&mut out, 0, 7, 2, &extents);
        assert_eq!(parse_chunk(&out, 7).2.len(), 4 + 8 * EXTENTS_MAX);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let message = format!("{}é", "x".repeat(STRING_MAX - 1));
        let mut out = Vec::new();
        put_error_chunk(&mut out, 7, error::EIO, &message);
        let (_, _, payload) = parse_chunk(&out, 7);
        assert_eq!(payload.len(), 6 + STRING_MAX - 1);
        assert!(std::str::from_utf8(&payload[6..]).is_ok());
    }

    #[test]
    fn each_command_allows_its_own_flags_and_fua() {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
        let table = [
            (command::READ, FUA | DF),
            (command::WRITE, FUA),
            (command::DISC, FUA),
            (command::FLUSH, FUA),
            (command::TRIM, FUA),
            (command::CACHE, FUA),
            (command::WRITE_ZEROES, FUA | NO_HOLE | FAST_ZERO),
            (command::BLOCK_STATUS, FUA | REQ_ONE),
            (99, FUA),
        ];
        for (command, flags) in table {
            assert_eq!(command_flag::allowed(command), flags, "command {command}");
        }
    }
}
