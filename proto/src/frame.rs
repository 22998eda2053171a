//! Lines: greeting, requests, replies, notifications, and the buffer that cuts a stream into lines.
//!
//! Invariants: a line is one JSON object and ends with a line feed; a buffer never holds more than
//! its limit; what cannot be understood becomes an error with the id of its request where one can
//! be read.
//! Absent: sockets; both ends bring their own.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{ErrorBody, ErrorKind};

/// The longest request line. The largest sensible request (64 tags of full length) is far below it.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// The longest line a client has to take: 100 disks with all the snapshots their quotas allow are
/// 60 MiB.
pub const REPLY_BYTES_MAX: usize = 64 << 20;
/// The version of this protocol.
pub const PROTOCOL: ProtocolVersion = ProtocolVersion { major: 1, minor: 0 };

/// The same major: a client and a daemon understand each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolVersion {
    pub major: u32,
    /// Grows when methods, parameters or fields are added.
    pub minor: u32,
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The first line the daemon sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    pub rowd: ServerInfo,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Version of the daemon.
    pub version: String,
    pub protocol: ProtocolVersion,
    /// `admin` or `observer`: whether this socket takes changes.
    pub role: String,
    /// The nouns this daemon has methods for.
    pub features: Vec<String>,
}

/// The `"jsonrpc":"2.0"` that every message carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version2 {
    #[default]
    #[serde(rename = "2.0")]
    V2,
}

/// The id a client gives a request and finds in the reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    Number(u64),
    Text(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub jsonrpc: Version2,
    pub id: Id,
    pub method: String,
    /// An object; left out means `{}`.
    #[serde(default)]
    pub params: serde_json::Map<String, Value>,
}

/// A reply: `result` or `error`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    pub jsonrpc: Version2,
    /// `null` when the id of the request could not be read.
    pub id: Option<Id>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<WireError>,
}

/// A reply as it is written: its result goes from its type to the line without a tree of values between.
#[derive(Debug, Serialize)]
pub struct Reply<'a, T> {
    jsonrpc: Version2,
    id: &'a Id,
    result: &'a T,
}

impl<'a, T: Serialize> Reply<'a, T> {
    #[must_use]
    pub fn new(id: &'a Id, result: &'a T) -> Self {
        Reply { jsonrpc: Version2::V2, id, result }
    }
}

/// A reply as it is read, likewise.
#[derive(Debug, Deserialize)]
struct Answer<T> {
    #[serde(rename = "jsonrpc")]
    _jsonrpc: Version2,
    id: Id,
    result: T,
}

/// An error in the shape JSON-RPC asks for; the code is for generic clients, `data.kind` for ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    pub code: i32,
    pub message: String,
    pub data: WireErrorData,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireErrorData {
    pub kind: ErrorKind,
    #[serde(default)]
    pub hint: Option<String>,
}

/// A message of the daemon that answers no request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notification {
    pub jsonrpc: Version2,
    /// `event`.
    pub method: String,
    pub params: Value,
}

/// A request that cannot be passed on, and how to say so.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    pub id: Option<Id>,
    pub code: i32,
    pub body: ErrorBody,
}

impl Rejection {
    /// The line is not JSON.
    pub const PARSE: i32 = -32700;
    /// It is JSON, but not a request.
    pub const REQUEST: i32 = -32600;
    /// No such method.
    pub const METHOD: i32 = -32601;
    /// The parameters do not fit the method.
    pub const PARAMS: i32 = -32602;
    /// The method was understood and failed.
    pub const FAILED: i32 = -32000;

    fn new(id: Option<Id>, code: i32, message: impl Into<String>) -> Self {
        Rejection { id, code, body: ErrorBody::new(ErrorKind::Invalid, message) }
    }

    #[must_use]
    pub fn no_method(id: Id, name: &str) -> Self {
        let mut rejection =
            Rejection::new(Some(id), Self::METHOD, format!("no method is called '{name}'"));
        rejection.body = rejection.body.hint("this daemon may be older than its client");
        rejection
    }

    #[must_use]
    pub fn bad_params(id: Id, method: &str, why: impl fmt::Display) -> Self {
        Rejection::new(Some(id), Self::PARAMS, format!("parameters of {method}: {why}"))
    }

    #[must_use]
    pub fn failed(id: Option<Id>, body: ErrorBody) -> Self {
        Rejection { id, code: Self::FAILED, body }
    }
}

impl From<Rejection> for Response {
    fn from(rejection: Rejection) -> Self {
        let ErrorBody { kind, message, hint } = rejection.body;
        let data = WireErrorData { kind, hint };
        let error = WireError { code: rejection.code, message, data };
        Response { jsonrpc: Version2::V2, id: rejection.id, result: None, error: Some(error) }
    }
}

impl From<WireError> for ErrorBody {
    fn from(error: WireError) -> Self {
        ErrorBody { kind: error.data.kind, message: error.message, hint: error.data.hint }
    }
}

/// Reads one request line.
///
/// # Errors
/// What to answer instead, with the id of the request where it can be read.
pub fn parse_request(line: &[u8]) -> Result<Request, Rejection> {
    let value: Value = serde_json::from_slice(line)
        .map_err(|e| Rejection::new(None, Rejection::PARSE, format!("not a JSON line: {e}")))?;
    let id = value.get("id").and_then(|id| serde_json::from_value::<Id>(id.clone()).ok());
    if !value.is_object() {
        let why = "a request is a JSON object, one per line; batches are not taken";
        return Err(Rejection::new(None, Rejection::REQUEST, why));
    }
    if id.is_none() {
        let why = "a request needs an id, a number or a text: nothing is done without an answer";
        return Err(Rejection::new(None, Rejection::REQUEST, why));
    }
    if value.get("params").is_some_and(|params| !params.is_object()) {
        return Err(Rejection::new(id, Rejection::PARAMS, "parameters are a JSON object, by name"));
    }
    serde_json::from_value(value)
        .map_err(|e| Rejection::new(id, Rejection::REQUEST, format!("not a request: {e}")))
}

/// A line from the daemon after the greeting.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerLine {
    Response(Response),
    Notification(Notification),
}

/// Reads one line of the daemon.
///
/// # Errors
/// The line is neither a reply nor a notification.
pub fn parse_server_line(line: &[u8]) -> Result<ServerLine, ErrorBody> {
    let broken = |e: serde_json::Error| {
        ErrorBody::new(
            ErrorKind::Internal,
            format!("the daemon sent a line that makes no sense: {e}"),
        )
    };
    let value: Value = serde_json::from_slice(line).map_err(broken)?;
    if value.get("method").is_some() {
        serde_json::from_value(value).map(ServerLine::Notification).map_err(broken)
    } else {
        serde_json::from_value(value).map(ServerLine::Response).map_err(broken)
    }
}

/// Reads a line that is most likely the reply with this id, whose result has this form; nothing if it is another
/// line, or another form.
#[must_use]
pub fn parse_reply<T: DeserializeOwned>(line: &[u8], id: &Id) -> Option<T> {
    let answer: Answer<T> = serde_json::from_slice(line).ok()?;
    (answer.id == *id).then_some(answer.result)
}

/// A message as a line, with its line feed.
///
/// # Errors
/// A fault in one of the types: a number that JSON has no form for.
pub fn to_line<T: Serialize>(message: &T) -> Result<Vec<u8>, ErrorBody> {
    let mut line = serde_json::to_vec(message)
        .map_err(|e| ErrorBody::new(ErrorKind::Internal, format!("cannot encode: {e}")))?;
    line.push(b'\n');
    Ok(line)
}

/// More bytes arrived than a line may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineTooLong {
    pub limit: usize,
}

impl fmt::Display for LineTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a line is longer than {} bytes", self.limit)
    }
}

impl std::error::Error for LineTooLong {}

/// Cuts a stream of bytes into lines.
#[derive(Debug)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// Bytes at the front that are known to hold no line feed, so that they are scanned only once.
    scanned: usize,
    limit: usize,
}

impl LineBuffer {
    #[must_use]
    pub fn new(limit: usize) -> Self {
        LineBuffer { bytes: Vec::new(), scanned: 0, limit }
    }

    /// Whether a line has begun and not ended.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// The first byte that is not taken yet.
    #[must_use]
    pub fn first(&self) -> Option<u8> {
        self.bytes.first().copied()
    }

    /// Takes bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line without its line feed.
    ///
    /// # Errors
    /// The line is, or will be, longer than the limit. The stream cannot be used any further.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineTooLong> {
        let fresh = &self.bytes[self.scanned..];
        // `contains` looks at many bytes at a time, which `position` does not: lines may have megabytes.
        let end = if fresh.contains(&b'\n') {
            fresh.iter().position(|&byte| byte == b'\n')
        } else {
            None
        };
        let Some(end) = end.map(|end| end + self.scanned) else {
            self.scanned = self.bytes.len();
            return if self.scanned > self.limit { Err(self.too_long()) } else { Ok(None) };
        };
        if end > self.limit {
            return Err(self.too_long());
        }
        let rest = self.bytes.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.pop();
        self.scanned = 0;
        Ok(Some(line))
    }

    fn too_long(&self) -> LineTooLong {
        LineTooLong { limit: self.limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(line: &str) -> Rejection {
        parse_request(line.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_request_is_read_with_and_without_parameters() {
        let full = br#"{"jsonrpc":"2.0","id":7,"method":"disk.show","params":{"disk":"a"}}"#;
        let request = parse_request(full).unwrap();
        assert_eq!((request.id, request.method.as_str()), (Id::Number(7), "disk.show"));
        assert_eq!(request.params["disk"], "a");
        let bare = parse_request(br#"{"jsonrpc":"2.0","id":"x","method":"disk.list"}"#).unwrap();
        assert_eq!(bare.id, Id::Text("x".into()));
        assert!(bare.params.is_empty());
    }

    #[test]
    fn a_malformed_line_is_answered_in_the_terms_of_json_rpc() {
        for (line, code, id) in [
            ("", Rejection::PARSE, None),
            ("{", Rejection::PARSE, None),
            ("\u{0}\u{1}", Rejection::PARSE, None),
            ("[]", Rejection::REQUEST, None),
            ("42", Rejection::REQUEST, None),
            ("{}", Rejection::REQUEST, None),
            (r#"{"jsonrpc":"2.0","method":"disk.list"}"#, Rejection::REQUEST, None),
            (r#"{"jsonrpc":"2.0","id":-1,"method":"disk.list"}"#, Rejection::REQUEST, None),
            (r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#, Rejection::REQUEST, Some(1)),
            (r#"{"id":1,"method":"x"}"#, Rejection::REQUEST, Some(1)),
            (r#"{"jsonrpc":"2.0","id":1,"method":5}"#, Rejection::REQUEST, Some(1)),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x","extra":0}"#, Rejection::REQUEST, Some(1)),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x","params":[1]}"#, Rejection::PARAMS, Some(1)),
        ] {
            let rejection = rejected(line);
            assert_eq!(rejection.code, code, "{line}");
            assert_eq!(rejection.id, id.map(Id::Number), "{line}");
            assert_eq!(rejection.body.kind, ErrorKind::Invalid, "{line}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed() {
        let rejection = rejected(&"[".repeat(100_000));
        assert_eq!(rejection.code, Rejection::PARSE);
    }

    #[test]
    fn an_error_survives_the_wire() {
        let body = ErrorBody::new(ErrorKind::InUse, "disk is in use").hint("detach it");
        let line = to_line(&Response::from(Rejection::failed(Some(Id::Number(3)), body.clone())));
        let ServerLine::Response(response) = parse_server_line(&line.unwrap()).unwrap() else {
            panic!("a reply became a notification");
        };
        assert_eq!(response.id, Some(Id::Number(3)));
        assert_eq!(ErrorBody::from(response.error.unwrap()), body);
    }

    #[test]
    fn a_reply_is_read_as_what_it_was_written_from() {
        let (id, result) = (Id::Number(3), vec!["a".to_owned()]);
        let line = to_line(&Reply::new(&id, &result)).unwrap();
        assert_eq!(line, b"{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":[\"a\"]}\n");
        assert_eq!(parse_reply::<Vec<String>>(&line, &id), Some(result));
        assert_eq!(parse_reply::<Vec<String>>(&line, &Id::Number(4)), None);
        assert_eq!(parse_reply::<Vec<u8>>(&line, &id), None);
        assert!(matches!(parse_server_line(&line), Ok(ServerLine::Response(_))));
    }

    #[test]
    fn lines_are_cut_wherever_the_pieces_fall() {
        let stream = b"one\ntwo\n\nfour";
        for step in 1..=stream.len() {
            let (mut buffer, mut lines) = (LineBuffer::new(16), Vec::new());
            for piece in stream.chunks(step) {
                buffer.push(piece);
                while let Some(line) = buffer.next_line().unwrap() {
                    lines.push(line);
                }
            }
            assert_eq!(lines, [b"one".to_vec(), b"two".to_vec(), Vec::new()], "step {step}");
            assert!(buffer.is_partial());
        }
    }

    #[test]
    fn a_line_beyond_the_limit_is_refused_before_it_ends() {
        let mut buffer = LineBuffer::new(4);
        buffer.push(b"1234");
        assert_eq!(buffer.next_line(), Ok(None));
        buffer.push(b"5");
        assert_eq!(buffer.next_line(), Err(LineTooLong { limit: 4 }));
        let mut whole = LineBuffer::new(4);
        whole.push(b"1234\n12345\n");
        assert_eq!(whole.next_line(), Ok(Some(b"1234".to_vec())));
        assert_eq!(whole.next_line(), Err(LineTooLong { limit: 4 }));
    }
}
