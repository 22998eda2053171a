//! The messages of the NBD handshake as bytes.
//!
//! Sections named here are those of the "NBD protocol", doc/proto.md.
//!
//! Invariants:
//! - a decoder consumes its input to the last byte or reports what is wrong with it;
//! - every string it returns is UTF-8 without NUL, at most [`STRING_MAX`] bytes;
//! - no length read from the wire is used before it was compared with the bytes that are there.
//!
//! Absent: I/O; what an option means (`options`); limits on the number or size of options
//! (`handshake`).

use std::fmt;

use super::wire::{
    BLOCK_MIN, BLOCK_PREFERRED, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_MAX,
    STRING_MAX, clip, field, handshake_flag, info, option, option_reply,
};

/// Bytes of an option before its data ("Newstyle negotiation").
pub const OPTION_HEADER_LEN: usize = 16;

/// Bytes of padding after the answer to `EXPORT_NAME`, unless both sides agreed to leave it out
/// ("Newstyle negotiation").
const EXPORT_NAME_PADDING: usize = 124;

/// What is wrong with the data of an option, in words for the client's user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What the client said it can do ("Client flags").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientFlags {
    /// It understands option replies; without it only `EXPORT_NAME` can be answered.
    pub fixed_newstyle: bool,
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// `None` for a flag that was not offered, upon which the connection must be dropped.
    #[must_use]
    pub fn decode(bytes: [u8; 4]) -> Option<ClientFlags> {
        let flags = u32::from_be_bytes(bytes);
        let fixed_newstyle = u32::from(handshake_flag::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
        (flags & !(fixed_newstyle | no_zeroes) == 0).then_some(ClientFlags {
            fixed_newstyle: flags & fixed_newstyle != 0,
            no_zeroes: flags & no_zeroes != 0,
        })
    }
}

/// The head of an option ("Newstyle negotiation").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    pub option: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    /// `None` when the magic is wrong: the stream is out of step and cannot be used further.
    #[must_use]
    pub fn decode(bytes: &[u8; OPTION_HEADER_LEN]) -> Option<OptionHeader> {
        if u64::from_be_bytes(field(bytes, 0)) != OPTION_MAGIC {
            return None;
        }
        Some(OptionHeader {
            option: u32::from_be_bytes(field(bytes, 8)),
            length: u32::from_be_bytes(field(bytes, 12)),
        })
    }
}

/// The data of `INFO` and `GO` ("Option types").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// Empty for the default export.
    pub export: &'a str,
    /// The information asked for, unknown kinds and repetitions included.
    pub wanted: Vec<u16>,
}

impl<'a> InfoRequest<'a> {
    pub fn decode(data: &'a [u8]) -> Result<InfoRequest<'a>, Malformed> {
        let mut fields = Fields(data);
        let export = fields.string()?;
        let count = fields.u16()?;
        // Compared before anything is reserved for it.
        if fields.0.len() != usize::from(count) * 2 {
            return Err(Malformed("the number of information requests does not match the length"));
        }
        let wanted = (0..count).map(|_| fields.u16()).collect::<Result<_, _>>()?;
        Ok(InfoRequest { export, wanted })
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT` ("Option types").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRequest<'a> {
    /// Empty for the default export.
    pub export: &'a str,
    pub queries: Vec<&'a str>,
}

impl<'a> ContextRequest<'a> {
    pub fn decode(data: &'a [u8]) -> Result<ContextRequest<'a>, Malformed> {
        let mut fields = Fields(data);
        let export = fields.string()?;
        let count = fields.u32()?;
        let mut queries = Vec::new();
        // A false count ends at the first query that is not there.
        for _ in 0..count {
            queries.push(fields.string()?);
        }
        fields.end()?;
        Ok(ContextRequest { export, queries })
    }
}

/// A name that makes up the whole data of an option, as in `EXPORT_NAME`.
pub fn decode_string(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > STRING_MAX {
        return Err(Malformed("a string is longer than 4096 bytes"));
    }
    if bytes.contains(&0) {
        return Err(Malformed("a string contains a NUL byte"));
    }
    std::str::from_utf8(bytes).map_err(|_| Malformed("a string is not UTF-8"))
}

/// The part of an option's data that has not been read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Malformed("the data is too short"))?;
        self.0 = rest;
        Ok(*array)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// A string behind its length.
    fn string(&mut self) -> Result<&'a str, Malformed> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        let (string, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Malformed("a string is longer than the data that holds it"))?;
        self.0 = rest;
        decode_string(string)
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("the data is too long")) }
    }
}

/// What the server says first ("Newstyle negotiation").
pub fn put_greeting(out: &mut Vec<u8>) {
    out.extend_from_slice(&INIT_MAGIC.to_be_bytes());
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    out.extend_from_slice(&flags.to_be_bytes());
}

/// The answer to `EXPORT_NAME`, which ends the handshake ("Newstyle negotiation").
pub fn put_export_name_reply(out: &mut Vec<u8>, size: u64, flags: u16, no_zeroes: bool) {
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    if !no_zeroes {
        out.extend_from_slice(&[0; EXPORT_NAME_PADDING]);
    }
}

/// The end of a successful answer (`NBD_REP_ACK`).
pub fn put_ack(out: &mut Vec<u8>, option: u32) {
    put_reply(out, option, option_reply::ACK, &[]);
}

/// An error reply with words for people ("Option reply types").
pub fn put_error(out: &mut Vec<u8>, option: u32, code: u32, message: &str) {
    put_reply(out, option, code, &[clip(message).as_bytes()]);
}

/// One export in the answer to `LIST` (`NBD_REP_SERVER`).
pub fn put_server(out: &mut Vec<u8>, name: &str, description: &str) {
    let name = clip(name).as_bytes();
    let length = length_field(name.len()).to_be_bytes();
    let parts: [&[u8]; 3] = [&length, name, clip(description).as_bytes()];
    put_reply(out, option::LIST, option_reply::SERVER, &parts);
}

/// Size and abilities of an export (`NBD_INFO_EXPORT`).
pub fn put_info_export(out: &mut Vec<u8>, option: u32, size: u64, flags: u16) {
    put_info(out, option, info::EXPORT, &[&size.to_be_bytes(), &flags.to_be_bytes()]);
}

/// A name or description (`NBD_INFO_NAME`, `NBD_INFO_DESCRIPTION`).
pub fn put_info_string(out: &mut Vec<u8>, option: u32, kind: u16, text: &str) {
    put_info(out, option, kind, &[clip(text).as_bytes()]);
}

/// The size constraints, the same for every export (`NBD_INFO_BLOCK_SIZE`).
pub fn put_info_block_size(out: &mut Vec<u8>, option: u32) {
    let sizes = [BLOCK_MIN, BLOCK_PREFERRED, PAYLOAD_MAX].map(u32::to_be_bytes);
    put_info(out, option, info::BLOCK_SIZE, &[sizes.as_flattened()]);
}

/// One metadata context (`NBD_REP_META_CONTEXT`).
pub fn put_meta_context(out: &mut Vec<u8>, option: u32, id: u32, name: &str) {
    let id = id.to_be_bytes();
    put_reply(out, option, option_reply::META_CONTEXT, &[&id, clip(name).as_bytes()]);
}

fn put_info(out: &mut Vec<u8>, option: u32, kind: u16, parts: &[&[u8]]) {
    let kind = kind.to_be_bytes();
    put_reply(out, option, option_reply::INFO, &[&[&kind[..]], parts].concat());
}

/// A reply of any type ("Fixed newstyle negotiation").
fn put_reply(out: &mut Vec<u8>, option: u32, reply: u32, parts: &[&[u8]]) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&reply.to_be_bytes());
    let length = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&length_field(length).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

fn length_field(length: usize) -> u32 {
    u32::try_from(length).expect("a reply holds at most two strings of STRING_MAX bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info_request(name_length: u32, name: &[u8], count: u16, tail: &[u8]) -> Vec<u8> {
        [&name_length.to_be_bytes(), name, &count.to_be_bytes(), tail].concat()
    }

    #[test]
    fn client_flags_that_were_not_offered_are_refused() {
        let flags = ClientFlags { fixed_newstyle: true, no_zeroes: false };
        assert_eq!(ClientFlags::decode([0, 0, 0, 1]), Some(flags));
        assert_eq!(ClientFlags::decode([0, 0, 0, 4]), None);
        assert_eq!(ClientFlags::decode([0x80, 0, 0, 3]), None);
    }

    #[test]
    fn an_info_request_yields_name_and_kinds() {
        let data = info_request(3, b"abc", 2, &[0, 3, 0xff, 0xff]);
        let request = InfoRequest::decode(&data).unwrap();
        assert_eq!(request, InfoRequest { export: "abc", wanted: vec![3, 0xffff] });
    }

    #[test]
    fn an_info_request_that_lies_about_its_lengths_is_malformed() {
        let long_name = vec![b'x'; STRING_MAX + 1];
        let cases = [
            Vec::new(),
            vec![0, 0, 0],
            info_request(u32::MAX, b"abc", 0, &[]),
            info_request(6, b"abc", 0, &[]),
            info_request(4, b"abc", 0, &[]),
            info_request(2, b"abc", 0, &[]),
            info_request(3, b"abc", 1, &[]),
            info_request(3, b"abc", 1, &[0]),
            info_request(3, b"abc", 0, &[0]),
            info_request(3, b"abc", u16::MAX, &[0, 1]),
            info_request(3, b"a\0c", 0, &[]),
            info_request(3, b"a\xffc", 0, &[]),
            info_request(4097, &long_name, 0, &[]),
        ];
        for data in cases {
            assert!(InfoRequest::decode(&data).is_err(), "{data:x?}");
        }
        assert!(InfoRequest::decode(&info_request(4096, &long_name[1..], 0, &[])).is_ok());
    }

    #[test]
    fn a_context_request_yields_its_queries() {
        let data = b"\0\0\0\x01d\0\0\0\x02\0\0\0\x05base:\0\0\0\0";
        let request = ContextRequest::decode(data).unwrap();
        assert_eq!(request, ContextRequest { export: "d", queries: vec!["base:", ""] });
    }

    #[test]
    fn a_context_request_that_lies_about_its_lengths_is_malformed() {
        let cases: [&[u8]; 6] = [
            b"",
            b"\0\0\0\x01d",
            b"\0\0\0\x01d\0\0\0\x01",
            b"\0\0\0\x01d\xff\xff\xff\xff\0\0\0\x01q",
            b"\0\0\0\x01d\0\0\0\x01\xff\xff\xff\xffq",
            b"\0\0\0\x01d\0\0\0\0junk",
        ];
        for data in cases {
            assert!(ContextRequest::decode(data).is_err(), "{data:x?}");
        }
    }

    #[test]
    fn replies_announce_the_length_they_have() {
        let mut out = Vec::new();
        put_server(&mut out, "ab", "c");
        let expected = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03\0\0\0\x02\0\0\0\x07\0\0\0\x02abc";
        assert_eq!(out, expected);

        out.clear();
        put_info_export(&mut out, option::GO, 0x1234, 0x0501);
        assert_eq!(&out[16..], b"\0\0\0\x0c\0\0\0\0\0\0\0\0\x12\x34\x05\x01");

        out.clear();
        put_info_block_size(&mut out, option::GO);
        assert_eq!(&out[16..], b"\0\0\0\x0e\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0");

        out.clear();
        put_meta_context(&mut out, option::SET_META_CONTEXT, 5, "x:y");
        assert_eq!(&out[16..], b"\0\0\0\x07\0\0\0\x05x:y");
    }

    #[test]
    fn the_answer_to_export_name_is_padded_unless_agreed_otherwise() {
        let (mut padded, mut short) = (Vec::new(), Vec::new());
        put_export_name_reply(&mut padded, 1, 2, false);
        put_export_name_reply(&mut short, 1, 2, true);
        assert_eq!(padded.len(), 134);
        assert_eq!(short, b"\0\0\0\0\0\0\0\x01\0\x02");
        assert_eq!(padded[..10], short);
    }
}
