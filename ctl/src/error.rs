//! How a command ends: done, a condition that does not hold, or a failure with words for it.
//!
//! Invariants: a failure carries the kind that decides the exit code; messages are lower case and
//! say what was being done.
//! Absent: printing, which `main` does once.

use std::fmt::Display;
use std::io;

use rowd_proto::{ErrorBody, ErrorKind, exit};

pub type Result<T> = std::result::Result<T, Failure>;

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// What the command was asked to verify does not hold; it has said so.
    ConditionFails,
    /// Work ended with a result that has its own exit code; it has said so.
    Ended(ErrorKind),
    /// The exit code of somebody else's table, which was asked for.
    Said(u8),
}

impl Outcome {
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Done => exit::DONE,
            Outcome::ConditionFails => exit::CONDITION,
            Outcome::Ended(kind) => kind.exit_code(),
            Outcome::Said(code) => code,
        }
    }
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    Told(ErrorBody),
    /// Whoever read the output has gone (`rowctl … | head`): nothing to say, nobody to say it to.
    ReaderGone,
}

impl From<ErrorBody> for Failure {
    fn from(body: ErrorBody) -> Self {
        Failure::Told(body)
    }
}

impl Failure {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Failure::Told(ErrorBody::new(kind, message))
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Failure::new(ErrorKind::Invalid, message)
    }

    /// An I/O error of a local file with what was being done.
    pub fn io(doing: impl Display, source: &io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::NotPermitted,
            io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => ErrorKind::NoSpace,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ErrorKind::TimedOut,
            _ => ErrorKind::Io,
        };
        Failure::new(kind, format!("{doing}: {source}"))
    }

    /// The same failure with advice.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        match self {
            Failure::Told(body) => Failure::Told(body.hint(hint)),
            Failure::ReaderGone => Failure::ReaderGone,
        }
    }

    /// The same failure with what was being done put in front.
    #[must_use]
    pub fn context(self, doing: impl Display) -> Self {
        match self {
            Failure::Told(mut body) => {
                body.message = format!("{doing}: {}", body.message);
                Failure::Told(body)
            }
            Failure::ReaderGone => Failure::ReaderGone,
        }
    }

    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Failure::Told(body) => Some(body.kind),
            Failure::ReaderGone => None,
        }
    }
}
