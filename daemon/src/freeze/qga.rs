//! The QEMU guest agent: what is asked of it over its Unix socket, and what it answers.
//!
//! Invariants: every call has a time limit, connecting included; before the first call both sides agree
//! where answers begin (`guest-sync-delimited`), so that what an earlier client left unread is not taken
//! for an answer; nothing the agent sends makes this side wait or grow beyond its limits.
//! Absent: when to freeze and when to thaw (`guest.rs`, `helper/guest.rs`). The helper is built of this
//! file too, without the library.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde_json::{Value, json};

/// How long the agent may take to say that it is there. It answers in milliseconds when it runs.
pub const SYNC_LIMIT: Duration = Duration::from_secs(5);
/// The longest answer: a list of file systems is a few kilobytes.
const ANSWER_MAX: usize = 1 << 20;
/// What begins an answer to `guest-sync-delimited`; it is no part of UTF-8.
const DELIMITER: u8 = 0xFF;

/// Why the agent did not do what was asked.
#[derive(Debug)]
pub enum Trouble {
    /// Nobody listens on the socket.
    Absent(io::Error),
    /// No answer within this time.
    Silent(Duration),
    /// The connection ended.
    Gone,
    /// It refuses, in its words.
    Refused(String),
    /// What it says is no answer.
    Nonsense,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Absent(error) => write!(f, "the socket of the guest agent: {error}"),
            Trouble::Silent(limit) => {
                write!(f, "the guest agent does not answer within {} s", limit.as_secs_f64())
            }
            Trouble::Gone => f.write_str("the guest agent's socket was closed"),
            Trouble::Refused(why) => write!(f, "the guest agent refuses: {why}"),
            Trouble::Nonsense => f.write_str("the guest agent's answer makes no sense"),
        }
    }
}

/// A file system in a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    pub device: String,
    pub mount_point: String,
    pub file_system: String,
}

/// A connection to an agent that answers.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Agent {
    /// Connects, and waits until the agent answers.
    ///
    /// # Errors
    /// Nobody listens, or nobody answers within [`SYNC_LIMIT`]: no agent runs in the machine, or another
    /// client has its socket.
    pub fn connect(path: &Path) -> Result<Agent, Trouble> {
        let absent = |errno: Errno| Trouble::Absent(errno.into());
        let address = UnixAddr::new(path).map_err(absent)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(absent)?;
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => {}
            // Others wait for it already.
            Err(Errno::EAGAIN) => return Err(Trouble::Silent(Duration::ZERO)),
            Err(errno) => return Err(absent(errno)),
        }
        let stream = UnixStream::from(fd);
        stream.set_nonblocking(false).map_err(Trouble::Absent)?;
        let mut agent = Agent { stream, received: Vec::new() };
        agent.sync()?;
        Ok(agent)
    }

    fn sync(&mut self) -> Result<(), Trouble> {
        let until = Instant::now() + SYNC_LIMIT;
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
        let id = u64::try_from(now % (1 << 50)).unwrap_or(1);
        let ask = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
        let mut bytes = vec![DELIMITER];
        bytes.extend(ask.to_string().into_bytes());
        bytes.push(b'\n');
        self.send(&bytes, until, SYNC_LIMIT)?;
        loop {
            self.read_through(DELIMITER, until, SYNC_LIMIT)?;
            let line = self.read_through(b'\n', until, SYNC_LIMIT)?;
            let answer = serde_json::from_slice::<Value>(&line);
            if answer.is_ok_and(|answer| answer["return"].as_u64() == Some(id)) {
                return Ok(());
            }
        }
    }

    /// Runs a command.
    ///
    /// # Errors
    /// It refuses, or does not answer within the limit; the connection is of no further use then.
    pub fn call(&mut self, command: &str, limit: Duration) -> Result<Value, Trouble> {
        let until = Instant::now() + limit;
        let ask = format!("{}\n", json!({ "execute": command }));
        self.send(ask.as_bytes(), until, limit)?;
        let line = self.read_through(b'\n', until, limit)?;
        let answer: Value = serde_json::from_slice(&line).map_err(|_| Trouble::Nonsense)?;
        if let Some(error) = answer.get("error") {
            let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
            return Err(Trouble::Refused(format!("{} ({})", text("desc"), text("class"))));
        }
        answer.get("return").cloned().ok_or(Trouble::Nonsense)
    }

    /// Whether file systems are frozen.
    ///
    /// # Errors
    /// As [`Agent::call`].
    pub fn is_frozen(&mut self) -> Result<bool, Trouble> {
        match self.call("guest-fsfreeze-status", SYNC_LIMIT)?.as_str() {
            Some("frozen") => Ok(true),
            Some("thawed") => Ok(false),
            _ => Err(Trouble::Nonsense),
        }
    }

    /// Freezes all file systems of the machine; how many.
    ///
    /// # Errors
    /// As [`Agent::call`].
    pub fn freeze(&mut self, limit: Duration) -> Result<u64, Trouble> {
        self.call("guest-fsfreeze-freeze", limit)?.as_u64().ok_or(Trouble::Nonsense)
    }

    /// Thaws them; how many were frozen until now.
    ///
    /// # Errors
    /// As [`Agent::call`].
    pub fn thaw(&mut self, limit: Duration) -> Result<u64, Trouble> {
        self.call("guest-fsfreeze-thaw", limit)?.as_u64().ok_or(Trouble::Nonsense)
    }

    /// The file systems of the machine that lie on devices.
    ///
    /// # Errors
    /// As [`Agent::call`].
    pub fn file_systems(&mut self) -> Result<Vec<Mounted>, Trouble> {
        let told = self.call("guest-get-fsinfo", SYNC_LIMIT)?;
        let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let on_device = |one: &&Value| one["disk"].as_array().is_some_and(|all| !all.is_empty());
        let all = told.as_array().map(Vec::as_slice).unwrap_or_default();
        let one = |one: &Value| Mounted {
            device: text(one, "name"),
            mount_point: text(one, "mountpoint"),
            file_system: text(one, "type"),
        };
        Ok(all.iter().filter(on_device).map(one).collect())
    }

    fn send(&mut self, bytes: &[u8], until: Instant, limit: Duration) -> Result<(), Trouble> {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let sent =
            self.stream.set_write_timeout(Some(left)).and_then(|()| self.stream.write_all(bytes));
        sent.map_err(|error| trouble(&error, limit))
    }

    /// What comes before the next `end`, which is taken too.
    fn read_through(
        &mut self,
        end: u8,
        until: Instant,
        limit: Duration,
    ) -> Result<Vec<u8>, Trouble> {
        let mut piece = [0; 4096];
        loop {
            if let Some(at) = self.received.iter().position(|byte| *byte == end) {
                let mut line: Vec<u8> = self.received.drain(..=at).collect();
                line.pop();
                return Ok(line);
            }
            if self.received.len() > ANSWER_MAX {
                return Err(Trouble::Nonsense);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Trouble::Silent(limit));
            }
            let read = self
                .stream
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))
                .and_then(|()| self.stream.read(&mut piece));
            match read {
                Ok(0) => return Err(Trouble::Gone),
                Ok(count) => self.received.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(trouble(&error, limit)),
            }
        }
    }
}

fn trouble(error: &io::Error, limit: Duration) -> Trouble {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Trouble::Silent(limit),
        _ => Trouble::Gone,
    }
}
