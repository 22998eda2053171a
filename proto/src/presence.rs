//! Where a snapshot is, and for how long, on the wire.
//!
//! Absent: copies as such (`copy.rs`).

use serde::{Deserialize, Serialize};

/// How long a snapshot that is kept in a repository can be used from the pool as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstantAccess {
    /// Not at all: it leaves the pool when its copy is complete.
    #[default]
    Off,
    /// 1 to 65536 days from now.
    Days(u32),
    /// Until somebody ends it.
    Endless,
}

impl InstantAccess {
    /// The most days there can be.
    pub const DAYS_MAX: u32 = 65_536;
}

/// A place where all of a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Pool,
    Repository,
}
