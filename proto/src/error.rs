//! Errors as a client sees them, and the one table of exit codes.
//!
//! Invariants: the kind alone decides the exit code; every exit code rowctl can end with is in
//! [`EXIT_CODES`]; a code never changes its meaning.
//! Absent: errno values, which belong to the data path.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, in the terms of the one who has to act. `snake_case` on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request makes no sense as put.
    Invalid,
    /// The caller may not do this.
    NotPermitted,
    /// No object has that name or id.
    NotFound,
    /// The name is taken.
    Exists,
    /// Somebody uses the object.
    InUse,
    /// The object is in a state that does not allow this now.
    WrongState,
    /// An earlier snapshot of the disk is still being copied.
    StillCopying,
    /// A member of a group is in a state that does not allow this.
    MemberState,
    /// A configured number of objects is reached.
    Quota,
    /// The pool, or the file system of the target file, has no space left.
    NoSpace,
    /// Stored bytes are not what was written.
    Corrupt,
    /// The system below refused I/O.
    Io,
    /// The pool stopped after an I/O error.
    Stopped,
    /// The daemon is going down.
    ShuttingDown,
    /// The operation was cancelled.
    Cancelled,
    /// The operation took longer than it may.
    TimedOut,
    /// Something on this host has to be otherwise for this: the caller is told what.
    Condition,
    /// No disk is left that this applies to.
    NoEligibleDisk,
    /// The group could not be made.
    GroupFailed,
    /// The group is in a state that does not allow this.
    GroupState,
    /// The snapshots are made; their tags could not be set.
    TagFailed,
    /// A freeze script or hook failed; no snapshot was made.
    FreezeScript,
    /// A thaw script or hook failed; the snapshots are made.
    ThawScript,
    /// A file system could not be frozen; no snapshot was made.
    FreezeFailed,
    /// A file system could not be thawed; the snapshots are made.
    ThawFailed,
    /// This cannot be done, by design or not yet.
    Unsupported,
    /// A fault of rowd itself.
    Internal,
    /// The daemon does not answer. Only a client says this.
    Unreachable,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: &'static [ErrorKind] = &[
        ErrorKind::Invalid,
        ErrorKind::NotPermitted,
        ErrorKind::NotFound,
        ErrorKind::Exists,
        ErrorKind::InUse,
        ErrorKind::WrongState,
        ErrorKind::StillCopying,
        ErrorKind::MemberState,
        ErrorKind::Quota,
        ErrorKind::NoSpace,
        ErrorKind::Corrupt,
        ErrorKind::Io,
        ErrorKind::Stopped,
        ErrorKind::ShuttingDown,
        ErrorKind::Cancelled,
        ErrorKind::TimedOut,
        ErrorKind::Condition,
        ErrorKind::NoEligibleDisk,
        ErrorKind::GroupFailed,
        ErrorKind::GroupState,
        ErrorKind::TagFailed,
        ErrorKind::FreezeScript,
        ErrorKind::ThawScript,
        ErrorKind::FreezeFailed,
        ErrorKind::ThawFailed,
        ErrorKind::Unsupported,
        ErrorKind::Internal,
        ErrorKind::Unreachable,
    ];

    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Invalid => "invalid",
            ErrorKind::NotPermitted => "not_permitted",
            ErrorKind::NotFound => "not_found",
            ErrorKind::Exists => "exists",
            ErrorKind::InUse => "in_use",
            ErrorKind::WrongState => "wrong_state",
            ErrorKind::StillCopying => "still_copying",
            ErrorKind::MemberState => "member_state",
            ErrorKind::Quota => "quota",
            ErrorKind::NoSpace => "no_space",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Io => "io",
            ErrorKind::Stopped => "stopped",
            ErrorKind::ShuttingDown => "shutting_down",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::TimedOut => "timed_out",
            ErrorKind::Condition => "condition",
            ErrorKind::NoEligibleDisk => "no_eligible_disk",
            ErrorKind::GroupFailed => "group_failed",
            ErrorKind::GroupState => "group_state",
            ErrorKind::TagFailed => "tag_failed",
            ErrorKind::FreezeScript => "freeze_script",
            ErrorKind::ThawScript => "thaw_script",
            ErrorKind::FreezeFailed => "freeze_failed",
            ErrorKind::ThawFailed => "thaw_failed",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Internal => "internal",
            ErrorKind::Unreachable => "unreachable",
        }
    }

    /// The exit code rowctl ends with when this error ends it.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Invalid => exit::USAGE,
            ErrorKind::NotPermitted | ErrorKind::NoEligibleDisk => exit::NOT_PERMITTED,
            ErrorKind::NotFound => exit::NOT_FOUND,
            // A name that is taken is a name in use: the same advice, another name or another
            // object.
            ErrorKind::Exists | ErrorKind::InUse => exit::IN_USE,
            ErrorKind::WrongState => exit::WRONG_STATE,
            ErrorKind::StillCopying => exit::STILL_COPYING,
            ErrorKind::MemberState => exit::MEMBER_STATE,
            ErrorKind::Quota => exit::QUOTA,
            ErrorKind::NoSpace => exit::NO_SPACE,
            // A stopped pool is the aftermath of an I/O error and is cured in the same way.
            ErrorKind::Corrupt | ErrorKind::Io | ErrorKind::Stopped => exit::IO,
            // A daemon that is going down will not be reachable by the time anybody reads this.
            ErrorKind::ShuttingDown | ErrorKind::Unreachable => exit::UNREACHABLE,
            ErrorKind::Cancelled => exit::CANCELLED,
            ErrorKind::TimedOut => exit::TIMED_OUT,
            ErrorKind::Condition => exit::CONDITION,
            ErrorKind::GroupFailed => exit::GROUP_FAILED,
            ErrorKind::GroupState => exit::GROUP_STATE,
            ErrorKind::TagFailed => exit::TAG_FAILED,
            ErrorKind::FreezeScript => exit::FREEZE_SCRIPT,
            ErrorKind::ThawScript => exit::THAW_SCRIPT,
            ErrorKind::FreezeFailed => exit::FREEZE_FAILED,
            ErrorKind::ThawFailed => exit::THAW_FAILED,
            ErrorKind::Unsupported | ErrorKind::Internal => exit::OTHER,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An error in full: `{"kind":…,"message":…,"hint":…}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub kind: ErrorKind,
    /// Lower case, complete in itself.
    pub message: String,
    /// The next command or setting, where there is one.
    #[serde(default)]
    pub hint: Option<String>,
}

impl ErrorBody {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        ErrorBody { kind, message: message.into(), hint: None }
    }

    /// The same error with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ErrorBody {}

/// The exit codes that this version can produce, by name.
pub mod exit {
    pub const DONE: u8 = 0;
    pub const CONDITION: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const NOT_PERMITTED: u8 = 3;
    pub const GROUP_FAILED: u8 = 4;
    pub const GROUP_STATE: u8 = 5;
    pub const TIMED_OUT: u8 = 6;
    pub const MEMBER_STATE: u8 = 7;
    pub const TAG_FAILED: u8 = 8;
    pub const FREEZE_SCRIPT: u8 = 9;
    pub const THAW_SCRIPT: u8 = 10;
    pub const FREEZE_FAILED: u8 = 11;
    pub const THAW_FAILED: u8 = 12;
    pub const QUOTA: u8 = 14;
    pub const WRONG_STATE: u8 = 15;
    pub const STILL_COPYING: u8 = 16;
    pub const NOT_FOUND: u8 = 20;
    pub const IN_USE: u8 = 21;
    pub const NO_SPACE: u8 = 22;
    pub const UNREACHABLE: u8 = 23;
    pub const IO: u8 = 24;
    pub const CANCELLED: u8 = 25;
    pub const OTHER: u8 = 255;
}

/// One row of the table of exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitMeaning {
    pub code: u8,
    pub meaning: &'static str,
}

/// What each exit code means, for all commands, in rising order. Codes that are not listed are
/// never used.
pub const EXIT_CODES: &[ExitMeaning] = &[
    ExitMeaning { code: exit::DONE, meaning: "done" },
    ExitMeaning { code: exit::CONDITION, meaning: "a condition does not hold" },
    ExitMeaning { code: exit::USAGE, meaning: "wrong usage" },
    ExitMeaning { code: exit::NOT_PERMITTED, meaning: "not permitted, or no eligible disk" },
    ExitMeaning { code: exit::GROUP_FAILED, meaning: "creating the group failed" },
    ExitMeaning { code: exit::GROUP_STATE, meaning: "group in a wrong state" },
    ExitMeaning { code: exit::TIMED_OUT, meaning: "timed out" },
    ExitMeaning { code: exit::MEMBER_STATE, meaning: "a member snapshot in a wrong state" },
    ExitMeaning { code: exit::TAG_FAILED, meaning: "tagging failed" },
    ExitMeaning { code: exit::FREEZE_SCRIPT, meaning: "freeze script failed" },
    ExitMeaning { code: exit::THAW_SCRIPT, meaning: "thaw script failed" },
    ExitMeaning { code: exit::FREEZE_FAILED, meaning: "freezing the file system failed" },
    ExitMeaning { code: exit::THAW_FAILED, meaning: "thawing the file system failed" },
    ExitMeaning { code: exit::QUOTA, meaning: "quota exceeded" },
    ExitMeaning { code: exit::WRONG_STATE, meaning: "snapshot or disk in a wrong state" },
    ExitMeaning { code: exit::STILL_COPYING, meaning: "an earlier snapshot is still being copied" },
    ExitMeaning { code: exit::NOT_FOUND, meaning: "not found" },
    ExitMeaning { code: exit::IN_USE, meaning: "in use, or the name is taken" },
    ExitMeaning { code: exit::NO_SPACE, meaning: "no space" },
    ExitMeaning { code: exit::UNREACHABLE, meaning: "daemon not reachable" },
    ExitMeaning { code: exit::IO, meaning: "I/O or integrity error" },
    ExitMeaning { code: exit::CANCELLED, meaning: "cancelled" },
    ExitMeaning { code: exit::OTHER, meaning: "anything else" },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_wire_name_and_a_listed_exit_code() {
        for &kind in ErrorKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert!(EXIT_CODES.iter().any(|row| row.code == kind.exit_code()), "{kind}");
            assert_ne!(kind.exit_code(), exit::DONE, "{kind}");
        }
    }

    #[test]
    fn exit_codes_rise_and_are_the_contract() {
        let codes: Vec<u8> = EXIT_CODES.iter().map(|row| row.code).collect();
        assert_eq!(
            codes,
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 20, 21, 22, 23, 24, 25, 255]
        );
        let of = |kind: ErrorKind| kind.exit_code();
        assert_eq!(of(ErrorKind::Invalid), 2);
        assert_eq!(of(ErrorKind::NotPermitted), 3);
        assert_eq!(of(ErrorKind::Condition), 1);
        assert_eq!(of(ErrorKind::NoEligibleDisk), 3);
        assert_eq!(of(ErrorKind::GroupFailed), 4);
        assert_eq!(of(ErrorKind::GroupState), 5);
        assert_eq!(of(ErrorKind::TagFailed), 8);
        assert_eq!(of(ErrorKind::FreezeScript), 9);
        assert_eq!(of(ErrorKind::ThawScript), 10);
        assert_eq!(of(ErrorKind::FreezeFailed), 11);
        assert_eq!(of(ErrorKind::ThawFailed), 12);
        assert_eq!(of(ErrorKind::TimedOut), 6);
        assert_eq!(of(ErrorKind::MemberState), 7);
        assert_eq!(of(ErrorKind::Quota), 14);
        assert_eq!(of(ErrorKind::WrongState), 15);
        assert_eq!(of(ErrorKind::StillCopying), 16);
        assert_eq!(of(ErrorKind::NotFound), 20);
        assert_eq!(of(ErrorKind::Exists), 21);
        assert_eq!(of(ErrorKind::InUse), 21);
        assert_eq!(of(ErrorKind::NoSpace), 22);
        assert_eq!(of(ErrorKind::Unreachable), 23);
        assert_eq!(of(ErrorKind::ShuttingDown), 23);
        assert_eq!(of(ErrorKind::Corrupt), 24);
        assert_eq!(of(ErrorKind::Io), 24);
        assert_eq!(of(ErrorKind::Stopped), 24);
        assert_eq!(of(ErrorKind::Cancelled), 25);
        assert_eq!(of(ErrorKind::Unsupported), 255);
        assert_eq!(of(ErrorKind::Internal), 255);
    }
}
