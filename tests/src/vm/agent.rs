//! The host's end of the port through which a machine is told what to do; `guest/agent.sh` is the other.
//!
//! Invariants: every answer is waited for with a deadline; an answer belongs to the command with its
//! number, so that one that came late is never taken for another's.
//! Absent: several commands at a time; a script may start programs and leave them running.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::tool::Outcome;
use crate::wait;

/// What the guest may need beyond the time limit of a command, to end it and to answer.
const GRACE: Duration = Duration::from_secs(20);

/// Why there is no answer.
#[derive(Debug)]
pub enum Silence {
    /// The machine has ended.
    Gone,
    /// Nothing came in time.
    Late,
    /// The agent was started anew, and what it was doing is lost.
    Reborn,
}

/// The port of one machine.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    /// What has come and is not a whole line yet.
    pending: Vec<u8>,
    last: u64,
}

impl Agent {
    /// Connects to the socket of a machine that is starting.
    ///
    /// # Panics
    /// It does not listen in time.
    #[must_use]
    pub fn connect(socket: &Path) -> Agent {
        let stream = wait::until("the socket of the VM", || UnixStream::connect(socket).ok());
        Agent { stream, pending: Vec::new(), last: 0 }
    }

    /// Waits until the guest has started.
    ///
    /// # Errors
    /// It has not in time, or the machine ended.
    pub fn hello(&mut self, limit: Duration) -> Result<(), Silence> {
        let deadline = Instant::now() + limit;
        while !self.line(deadline)?.starts_with("HELLO ") {}
        Ok(())
    }

    /// Sends a script without waiting for what it does.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn send(&mut self, script: &str, limit: Duration) -> Result<(), Silence> {
        self.last += 1;
        let line = format!("{} {} {}\n", self.last, limit.as_secs().max(1), hex(script.as_bytes()));
        self.stream.write_all(line.as_bytes()).map_err(|_| Silence::Gone)
    }

    /// Runs a script in the guest.
    ///
    /// # Errors
    /// There is no answer.
    pub fn run(&mut self, script: &str, limit: Duration) -> Result<Outcome, Silence> {
        self.send(script, limit)?;
        let deadline = Instant::now() + limit + GRACE;
        loop {
            let line = self.line(deadline)?;
            if line.starts_with("HELLO ") {
                return Err(Silence::Reborn);
            }
            if let Some(outcome) = answer(&line, self.last, script) {
                return Ok(outcome);
            }
        }
    }

    fn line(&mut self, deadline: Instant) -> Result<String, Silence> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Silence::Late);
            }
            self.stream.set_read_timeout(Some(left)).expect("a time that is not zero");
            let mut buffer = [0; 65536];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Silence::Gone),
                Ok(bytes) => self.pending.extend_from_slice(&buffer[..bytes]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return Err(Silence::Gone),
            }
        }
    }
}

/// What a line says about this command, if it is about this one.
fn answer(line: &str, id: u64, script: &str) -> Option<Outcome> {
    let words: Vec<&str> = line.strip_prefix("DONE ")?.split(' ').collect();
    let [number, code, stdout, stderr] = words[..] else { panic!("not an answer: {line}") };
    if number.parse() != Ok(id) {
        return None;
    }
    let code = code.parse().unwrap_or_else(|_| panic!("not an exit code: {line}"));
    let text = |word: &str| unhex(word).unwrap_or_else(|| panic!("not base 16: {line}"));
    let (stdout, stderr) = (text(stdout), text(stderr));
    Some(Outcome { line: format!("(in the guest) {}", script.trim()), code, stdout, stderr })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02X}").expect("writing to a string");
        text
    })
}

fn unhex(text: &str) -> Option<String> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = pairs.map(byte).collect::<Option<_>>()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_pass_whatever_is_in_them() {
        let text = "a b\n\"$x\" \u{fc}\t\0";
        assert_eq!(unhex(&hex(text.as_bytes())).as_deref(), Some(text));
        assert_eq!(unhex("zz"), None);
    }

    /// Empty outputs leave nothing but the spaces between them.
    #[test]
    fn a_line_ends_at_its_end_and_not_before() {
        let (host, mut guest) = UnixStream::pair().unwrap();
        let mut agent = Agent { stream: host, pending: Vec::new(), last: 0 };
        guest.write_all(b"HELLO x\nDONE 1 0  \n").unwrap();
        agent.hello(Duration::from_secs(1)).unwrap();
        assert_eq!(agent.run("true", Duration::from_secs(1)).unwrap().code, 0);
        drop(guest);
        assert!(matches!(agent.run("true", Duration::from_secs(1)), Err(Silence::Gone)));
    }

    #[test]
    fn an_answer_belongs_to_its_command() {
        let outcome = answer("DONE 7 3 6F 65", 7, "x").unwrap();
        assert_eq!((outcome.code, &*outcome.stdout, &*outcome.stderr), (3, "o", "e"));
        assert!(answer("DONE 6 3 6F 65", 7, "x").is_none());
        let silent = answer("DONE 7 0  ", 7, "x").unwrap();
        assert_eq!((&*silent.stdout, &*silent.stderr), ("", ""));
    }
}
