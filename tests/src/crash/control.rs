//! The control socket as a program uses it: typed calls, and an honest answer to "was it done?".
//!
//! Invariants: a call either was answered, or the daemon is gone and nobody can tell.
//! Absent: words for people (`rowctl` has those).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rowd_proto::{
    Call, ErrorBody, Id, LineBuffer, REPLY_BYTES_MAX, Request, ServerLine, Version2,
    parse_server_line, to_line,
};
use serde_json::Value;

/// A daemon that does not answer within this hangs, and that fails the test.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why a call brought no reply.
#[derive(Debug)]
pub enum Failure {
    /// The daemon refused: nothing was done.
    Refused(ErrorBody),
    /// The daemon is gone: it was done or it was not.
    CutOff,
}

/// A connection to the control socket.
#[derive(Debug)]
pub struct Control {
    stream: UnixStream,
    lines: LineBuffer,
    last_id: u64,
}

impl Control {
    /// Connects; `None` when the daemon is gone.
    #[must_use]
    pub fn connect(socket: &Path) -> Option<Control> {
        let stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(TIMEOUT)).ok()?;
        let lines = LineBuffer::new(REPLY_BYTES_MAX);
        let mut control = Control { stream, lines, last_id: 0 };
        control.line().map(|_greeting| control)
    }

    /// Calls a method.
    ///
    /// # Errors
    /// The daemon refuses, or is gone.
    ///
    /// # Panics
    /// The reply is not one to this call.
    pub fn call<C: Call>(&mut self, params: &C) -> Result<C::Reply, Failure> {
        let Ok(Value::Object(params)) = serde_json::to_value(params) else {
            panic!("parameters are an object");
        };
        self.last_id += 1;
        let id = Id::Number(self.last_id);
        let method = C::METHOD.name().to_owned();
        let request = Request { jsonrpc: Version2::V2, id: id.clone(), method, params };
        let line = to_line(&request).expect("a request can be encoded");
        self.stream.write_all(&line).map_err(|_| Failure::CutOff)?;
        let line = self.line().ok_or(Failure::CutOff)?;
        let Ok(ServerLine::Response(response)) = parse_server_line(&line) else {
            panic!("not a response: {}", String::from_utf8_lossy(&line));
        };
        assert_eq!(response.id, Some(id), "the reply to another request");
        match response.error {
            Some(error) => Err(Failure::Refused(error.into())),
            None => serde_json::from_value(response.result.unwrap_or_default())
                .map_err(|e| panic!("{}: the reply makes no sense: {e}", C::METHOD.name())),
        }
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        let mut piece = [0u8; 16 << 10];
        loop {
            if let Some(line) = self.lines.next_line().expect("lines of sensible length") {
                return Some(line);
            }
            match self.stream.read(&mut piece) {
                Ok(count @ 1..) => self.lines.push(&piece[..count]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("the daemon does not answer on its control socket")
                }
                Ok(_) | Err(_) => return None,
            }
        }
    }
}
