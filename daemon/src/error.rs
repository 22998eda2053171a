//! The one error type: what kind of trouble, in whose words, and what to do about it.
//!
//! Invariants: the kind alone decides the errno on the wire and the exit code of the CLI; the message is
//! lower case and complete in itself; the hint, where there is one, names the next command or setting.
//! Absent: an error enum per layer. Callers act on the kind, people read the message.

use std::fmt;
use std::io;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller has to know to act. Each kind says whose move it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request makes no sense as put: the caller has to change it.
    Invalid,
    /// The caller may not do this: ask the owner of the daemon.
    NotPermitted,
    /// No object has that name or id.
    NotFound,
    /// The name is taken: choose another.
    Exists,
    /// Somebody uses the object: end that use, or force.
    InUse,
    /// The object is in a state that does not allow this now.
    WrongState,
    /// An earlier snapshot of the disk is still being copied: wait for it.
    StillCopying,
    /// A member of a group is in a state that does not allow this: choose others.
    MemberState,
    /// A configured number of objects is reached: delete some, or raise the quota.
    Quota,
    /// The pool has no space left: delete, trim, or enlarge it.
    NoSpace,
    /// Stored bytes are not what was written: restore from elsewhere.
    Corrupt,
    /// The system below refused I/O: look at the device.
    Io,
    /// The pool stopped after an I/O error: restart the daemon and check.
    Stopped,
    /// The daemon is going down: try again later.
    ShuttingDown,
    /// The operation was cancelled.
    Cancelled,
    /// The operation took longer than it may.
    TimedOut,
    /// Something on this host has to be otherwise: the message says what.
    Condition,
    /// No disk is left that this applies to: choose others.
    NoEligibleDisk,
    /// The group could not be made: the cause says why.
    GroupFailed,
    /// The group is in a state that does not allow this.
    GroupState,
    /// The snapshots are made, their tags are not: set them.
    TagFailed,
    /// A freeze script or hook failed, no snapshot was made: mend the script.
    FreezeScript,
    /// A thaw script or hook failed after the snapshots: look at the application.
    ThawScript,
    /// A file system could not be frozen, no snapshot was made: look at it.
    FreezeFailed,
    /// A file system could not be thawed: thaw it (`rowctl freeze thaw`).
    ThawFailed,
    /// This cannot be done, by design or not yet.
    Unsupported,
    /// A fault of rowd itself: report it.
    Internal,
}

/// An error with its context. Cheap to clone, so that one failure can answer many requests.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), hint: None }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::NotFound, message)
    }

    pub fn corrupt(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Corrupt, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Internal, message)
    }

    /// An I/O error with what was being done. `ENOSPC` keeps its own kind.
    pub fn io(doing: impl fmt::Display, source: &io::Error) -> Self {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("{doing}: {source}"))
    }

    /// The same error with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same error with what was being done put in front.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
