//! The control connection: one request at a time, or a stream of events.
//!
//! Invariants: a daemon that speaks another major version is refused before anything is asked;
//! every wait has an end, except the wait for the next event; a reply is matched to its request by
//! id.
//! Absent: NBD, which has its own client.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rowd_proto::{
    Call, ErrorBody, ErrorKind, Event, Greeting, Id, LineBuffer, PROTOCOL, REPLY_BYTES_MAX,
    Request, Response, ServerInfo, ServerLine, Version2, parse_reply, parse_server_line, to_line,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Failure, Result};

/// The longest a daemon may take to answer. Engine calls are an fdatasync or two: five minutes mean
/// that it hangs, and a script must not hang with it.
const REPLY_DEADLINE: Duration = Duration::from_secs(300);
/// The longest limits of a freeze script, a thaw script and their hooks together.
const SCRIPTS_DEADLINE: Duration = Duration::from_secs(4 * 86_400);
/// The greeting needs no disk.
const GREETING_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    lines: LineBuffer,
    last_id: u64,
    pub server: ServerInfo,
}

impl Client {
    /// Connects and checks that both sides speak the same language.
    pub fn connect(socket: &Path) -> Result<Self> {
        Client::connect_within(socket, GREETING_DEADLINE)
    }

    /// As [`Client::connect`], for who cannot wait.
    pub fn connect_within(socket: &Path, limit: Duration) -> Result<Self> {
        let stream = UnixStream::connect(socket).map_err(|e| unreachable(socket, &e))?;
        let mut lines = LineBuffer::new(REPLY_BYTES_MAX);
        set_deadline(&stream, Some(limit))?;
        let line = read_line(&stream, &mut lines)?;
        let server = greeted(&line)?;
        if server.protocol.major != PROTOCOL.major {
            let message = format!(
                "the daemon is rowd {} and speaks protocol {}; this is rowctl {} with protocol \
                 {PROTOCOL}",
                server.version,
                server.protocol,
                env!("CARGO_PKG_VERSION"),
            );
            return Err(Failure::new(ErrorKind::Unsupported, message)
                .hint("install rowd and rowctl of the same version"));
        }
        Ok(Client { stream, lines, last_id: 0, server })
    }

    /// Calls a method and waits for its reply.
    pub fn call<C: Call>(&mut self, params: &C) -> Result<C::Reply> {
        self.call_within(params, REPLY_DEADLINE)
    }

    /// As [`Client::call`], for what runs scripts of the user: they have limits of their own.
    pub fn call_patiently<C: Call>(&mut self, params: &C) -> Result<C::Reply> {
        self.call_within(params, SCRIPTS_DEADLINE)
    }

    pub fn call_within<C: Call>(&mut self, params: &C, limit: Duration) -> Result<C::Reply> {
        let internal = |e: serde_json::Error| {
            let message = format!("{}: the reply makes no sense: {e}", C::METHOD.name());
            Failure::new(ErrorKind::Internal, message)
        };
        let params = match serde_json::to_value(params).map_err(internal)? {
            Value::Object(params) => params,
            other => return Err(Failure::invalid(format!("parameters are no object: {other}"))),
        };
        self.last_id += 1;
        let id = Id::Number(self.last_id);
        let method = C::METHOD.name().to_owned();
        let request = Request { jsonrpc: Version2::V2, id: id.clone(), method, params };
        set_deadline(&self.stream, Some(limit))?;
        self.stream.write_all(&to_line(&request)?).map_err(|e| lost(&e))?;
        let value = match self.reply(&id)? {
            Answer::Whole(reply) => return Ok(reply),
            Answer::Other(value) => value,
        };
        serde_json::from_value(value).map_err(internal)
    }

    /// The next event of a subscription, however long it takes.
    pub fn next_event(&mut self) -> Result<Event> {
        set_deadline(&self.stream, None)?;
        loop {
            let line = read_line(&self.stream, &mut self.lines)?;
            if let ServerLine::Notification(notification) = parse_server_line(&line)? {
                return serde_json::from_value(notification.params).map_err(|e| {
                    let message = format!("an event makes no sense: {e}");
                    Failure::new(ErrorKind::Internal, message)
                });
            }
        }
    }

    /// The reply with this id, or without one: that is the daemon's last word.
    fn reply<T: DeserializeOwned>(&mut self, id: &Id) -> Result<Answer<T>> {
        loop {
            let line = read_line(&self.stream, &mut self.lines)?;
            if let Some(reply) = parse_reply(&line, id) {
                return Ok(Answer::Whole(reply));
            }
            let ServerLine::Response(response) = parse_server_line(&line)? else { continue };
            if response.id.is_some() && response.id.as_ref() != Some(id) {
                continue;
            }
            return match response {
                Response { error: Some(error), .. } => Err(ErrorBody::from(error).into()),
                Response { result, .. } => Ok(Answer::Other(result.unwrap_or(Value::Null))),
            };
        }
    }
}

/// What came of a call.
enum Answer<T> {
    Whole(T),
    /// A result that has not the form that was expected.
    Other(Value),
}

/// The daemon's introduction, or its reason for refusing us.
fn greeted(line: &[u8]) -> Result<ServerInfo> {
    if let Ok(greeting) = serde_json::from_slice::<Greeting>(line) {
        return Ok(greeting.rowd);
    }
    if let Ok(ServerLine::Response(Response { error: Some(error), .. })) = parse_server_line(line) {
        return Err(ErrorBody::from(error).into());
    }
    Err(not_rowd())
}

fn not_rowd() -> Failure {
    Failure::new(ErrorKind::Unreachable, "what listens on the socket is not the control of rowd")
        .hint("its path ends in control.sock; nbd.sock is for NBD clients")
}

fn read_line(mut stream: &UnixStream, lines: &mut LineBuffer) -> Result<Vec<u8>> {
    let mut piece = [0u8; 128 << 10];
    loop {
        let next = lines.next_line();
        if let Some(line) = next.map_err(|e| Failure::new(ErrorKind::Internal, e.to_string()))? {
            return Ok(line);
        }
        match stream.read(&mut piece) {
            Ok(0) => return Err(Failure::new(ErrorKind::Unreachable, "the daemon hung up")),
            Ok(count) => {
                lines.push(&piece[..count]);
                // A line is an object. Who begins otherwise may never end a line: an NBD server waits.
                if lines.first().is_some_and(|byte| byte != b'{') {
                    return Err(not_rowd());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(&error)),
        }
    }
}

fn set_deadline(stream: &UnixStream, deadline: Option<Duration>) -> Result<()> {
    stream
        .set_read_timeout(deadline)
        .and_then(|()| stream.set_write_timeout(Some(REPLY_DEADLINE)))
        .map_err(|e| Failure::io("cannot set a deadline on the socket", &e))
}

/// The connection broke while it was in use.
fn lost(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Failure::new(ErrorKind::TimedOut, "the daemon does not answer")
                .hint("look at its log: it may be waiting for a slow disk")
        }
        _ => Failure::new(ErrorKind::Unreachable, format!("the daemon is gone: {error}")),
    }
}

/// Nobody is there to talk to.
fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Failure::new(ErrorKind::NotPermitted, format!("you may not open {socket}"))
                .hint("run as root, or join the group of the socket")
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            let message = format!("no daemon listens on {socket}");
            Failure::new(ErrorKind::Unreachable, message)
                .hint("start rowd, or name its directory with --dir or ROWD_DIR")
        }
        _ => Failure::new(ErrorKind::Unreachable, format!("cannot connect to {socket}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    /// A daemon that says these lines: the first at once, each other one after a request.
    fn daemon(dir: &Path, lines: &[&str]) -> JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(dir.join("s")).unwrap();
        let lines: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(lines[0].as_bytes()).unwrap();
            let mut requests = io::BufReader::new(stream.try_clone().unwrap()).lines();
            let mut heard = Vec::new();
            for line in &lines[1..] {
                heard.push(requests.next().unwrap().unwrap());
                stream.write_all(line.as_bytes()).unwrap();
            }
            heard
        })
    }

    const GREETING: &str = concat!(
        r#"{"rowd":{"version":"9","protocol":{"major":1,"minor":7},"#,
        r#""role":"admin","features":[],"new":1}}"#
    );

    fn kind_of<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
        result.unwrap_err().kind().unwrap()
    }

    #[test]
    fn a_call_goes_out_by_name_and_its_reply_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let reply = r#"{"jsonrpc":"2.0","id":1,"result":{"disks":[]}}"#;
        let daemon = daemon(dir.path(), &[GREETING, reply]);
        let mut client = Client::connect(&dir.path().join("s")).unwrap();
        assert!(client.call(&rowd_proto::DiskList {}).unwrap().disks.is_empty());
        let heard = daemon.join().unwrap();
        assert_eq!(heard[0], r#"{"jsonrpc":"2.0","id":1,"method":"disk.list","params":{}}"#);
    }

    #[test]
    fn an_error_keeps_its_kind_and_hint() {
        let dir = tempfile::tempdir().unwrap();
        let reply = concat!(
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"m","#,
            r#""data":{"kind":"quota","hint":"h"}}}"#
        );
        let daemon = daemon(dir.path(), &[GREETING, reply]);
        let mut client = Client::connect(&dir.path().join("s")).unwrap();
        let failure = client.call(&rowd_proto::DiskList {}).unwrap_err();
        assert_eq!(failure, ErrorBody::new(ErrorKind::Quota, "m").hint("h").into());
        daemon.join().unwrap();
    }

    #[test]
    fn another_major_version_is_refused_with_both_versions_named() {
        let dir = tempfile::tempdir().unwrap();
        let greeting = GREETING.replace("\"major\":1", "\"major\":2");
        let daemon = daemon(dir.path(), &[&greeting]);
        let failure = Client::connect(&dir.path().join("s")).unwrap_err();
        let Failure::Told(body) = failure else { panic!("{failure:?}") };
        assert_eq!(body.kind, ErrorKind::Unsupported);
        assert!(body.message.contains("2.7") && body.message.contains("1.0"), "{}", body.message);
        daemon.join().unwrap();
    }

    #[test]
    fn a_refusal_in_place_of_the_greeting_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = concat!(
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"no","#,
            r#""data":{"kind":"not_permitted","hint":null}}}"#
        );
        let daemon = daemon(dir.path(), &[refusal]);
        assert_eq!(kind_of(Client::connect(&dir.path().join("s"))), ErrorKind::NotPermitted);
        daemon.join().unwrap();
    }

    #[test]
    fn a_daemon_that_is_not_there_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kind_of(Client::connect(&dir.path().join("s"))), ErrorKind::Unreachable);
        drop(UnixListener::bind(dir.path().join("s")).unwrap());
        assert_eq!(kind_of(Client::connect(&dir.path().join("s"))), ErrorKind::Unreachable);
    }

    #[test]
    fn a_daemon_that_hangs_up_half_way_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = daemon(dir.path(), &[GREETING, r#"{"jsonrpc":"2.0","#]);
        let mut client = Client::connect(&dir.path().join("s")).unwrap();
        // The half line is ended by the harness, so it is a line that makes no sense.
        assert_eq!(kind_of(client.call(&rowd_proto::DiskList {})), ErrorKind::Internal);
        assert_eq!(kind_of(client.call(&rowd_proto::DiskList {})), ErrorKind::Unreachable);
        daemon.join().unwrap();
    }
}
