//! The control socket of the daemon, asked without starting a program: only the daemon's time counts.
//!
//! Invariants: a call that fails ends the benchmark with the daemon's own words.
//! Absent: events and deadlines.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rowd_proto::{Call, ErrorBody, Id, Request, ServerLine, Version2, parse_server_line, to_line};
use serde_json::Value;

#[derive(Debug)]
pub struct Control {
    input: BufReader<UnixStream>,
    output: UnixStream,
}

impl Control {
    /// Connects; `None` when nobody answers.
    pub fn connect(socket: &Path) -> Option<Control> {
        let output = UnixStream::connect(socket).ok()?;
        let mut input = BufReader::new(output.try_clone().ok()?);
        let mut greeting = String::new();
        let bytes = input.read_line(&mut greeting).ok()?;
        (bytes > 0).then_some(Control { input, output })
    }

    /// Calls a method.
    pub fn call<C: Call>(&mut self, params: &C) -> C::Reply {
        self.timed(params).0
    }

    /// Calls a method; the time from the request to its reply.
    pub fn timed<C: Call>(&mut self, params: &C) -> (C::Reply, Duration) {
        let name = C::METHOD.name();
        let Ok(Value::Object(params)) = serde_json::to_value(params) else {
            panic!("{name}: parameters are an object");
        };
        let id = Id::Number(1);
        let request = Request { jsonrpc: Version2::V2, id, method: name.to_owned(), params };
        let line = to_line(&request).expect("encode a request");
        let mut reply = Vec::new();
        let began = Instant::now();
        self.output.write_all(&line).expect("send to the daemon");
        self.input.read_until(b'\n', &mut reply).expect("a reply of the daemon");
        let took = began.elapsed();
        let ServerLine::Response(response) = parse_server_line(&reply).expect("a reply") else {
            panic!("{name}: nobody subscribed to notifications");
        };
        if let Some(error) = response.error {
            panic!("{name}: {}", ErrorBody::from(error));
        }
        let result = response.result.unwrap_or_default();
        (serde_json::from_value(result).expect("the reply has its form"), took)
    }
}
