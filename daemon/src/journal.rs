//! The log in the journal of the system: each line as it is on a terminal, and its fields beside it, to be searched by
//! (`journalctl -u rowd DISK=d-…`).
//!
//! Invariants: only when the standard error is connected to the journal (`$JOURNAL_STREAM`, systemd.exec(5)). The text
//! says everything that the fields say. Nothing waits for the journal, and what it does not take at once goes to the
//! standard error as text.
//! Absent: entries of more than a datagram, which go to the standard error too.

use std::fmt;
use std::os::unix::net::UnixDatagram;

use nix::sys::stat::fstat;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Where journald listens for entries with fields (systemd's "Native Journal Protocol").
const SOCKET: &str = "/run/systemd/journal/socket";

/// The way to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// The journal, if the standard error goes there and it takes entries.
    #[must_use]
    pub fn of_stderr() -> Option<Journal> {
        let told = std::env::var("JOURNAL_STREAM").ok()?;
        let stat = fstat(std::io::stderr()).ok()?;
        if told != format!("{}:{}", stat.st_dev, stat.st_ino) {
            return None;
        }
        let socket = UnixDatagram::unbound().ok()?;
        // Without it the log is the text on the standard error, which journald takes as well.
        socket.connect(SOCKET).and_then(|()| socket.set_nonblocking(true)).ok()?;
        Some(Journal { socket })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::new(event.metadata().level(), event.metadata().target());
        event.record(&mut entry);
        if self.socket.send(&entry.datagram()).is_err() {
            eprintln!("{}", entry.text);
        }
    }
}

/// One line of the log.
#[derive(Debug)]
struct Entry {
    priority: &'static str,
    target: String,
    /// As `tracing_subscriber::fmt` writes it, without the time.
    text: String,
    fields: Vec<(String, String)>,
}

impl Entry {
    fn new(level: &Level, target: &str) -> Entry {
        let priority = match *level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            _ => "7",
        };
        let (target, text) = (target.to_owned(), format!("{level} {target}:"));
        Entry { priority, target, text, fields: Vec::new() }
    }

    fn add(&mut self, field: &Field, plain: String, shown: &str) {
        let name = field.name();
        self.text.push(' ');
        if name == "message" {
            self.text.push_str(shown);
            return;
        }
        self.text.push_str(&format!("{name}={shown}"));
        self.fields.push((name.to_ascii_uppercase(), plain));
    }

    fn datagram(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        let own =
            [("SYSLOG_IDENTIFIER", "rowd"), ("PRIORITY", self.priority), ("TARGET", &*self.target)];
        let all = own.into_iter().chain([("MESSAGE", &*self.text)]);
        let fields = self.fields.iter().map(|(name, value)| (&**name, &**value));
        all.chain(fields).for_each(|(name, value)| put(&mut bytes, name, value));
        bytes
    }
}

/// Adds a field; a value of several lines has its length before it.
fn put(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        bytes.push(b'\n');
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(b'\n');
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        let shown = if field.name() == "message" { value.to_owned() } else { format!("{value:?}") };
        self.add(field, value.to_owned(), &shown);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let plain = format!("{value:?}");
        self.add(field, plain.clone(), &plain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    /// What is sent for what is logged.
    fn sent(log: impl FnOnce()) -> String {
        let (socket, journald) = UnixDatagram::pair().unwrap();
        let subscriber = tracing_subscriber::registry().with(Journal { socket });
        tracing::subscriber::with_default(subscriber, log);
        let mut bytes = [0; 4096];
        let length = journald.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn an_entry_has_its_text_its_level_and_its_fields() {
        let none: Option<&str> = None;
        let text = sent(|| {
            tracing::warn!(target: "rowd::event", disk = "d-1", snapshot = none, uid = 7, "it is {}", "full");
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "SYSLOG_IDENTIFIER=rowd",
                "PRIORITY=4",
                "TARGET=rowd::event",
                "MESSAGE=WARN rowd::event: it is full disk=\"d-1\" uid=7",
                "DISK=d-1",
                "UID=7",
            ]
        );
    }

    /// A line in a value would be taken for a field otherwise.
    #[test]
    fn a_value_of_several_lines_stays_one_value() {
        let text = sent(|| tracing::error!(target: "t", error = %"a\nDISK=b", "failed"));
        let error = format!("ERROR\n{}a\nDISK=b\n", "\u{8}\0\0\0\0\0\0\0");
        assert!(text.ends_with(&error), "{text:?}");
        assert!(text.contains("PRIORITY=3\n"), "{text:?}");
    }

    #[test]
    fn a_log_that_goes_elsewhere_is_not_the_journal() {
        assert!(Journal::of_stderr().is_none());
    }
}
