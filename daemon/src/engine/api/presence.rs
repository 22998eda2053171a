//! Where a snapshot should be, and where it is.
//!
//! Absent: the rules (`engine/presence.rs`).

use super::JobInfo;
use crate::units::CopyId;

/// Where a snapshot is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepSpec {
    /// The name of the repository.
    pub repo: String,
    /// Usable at once from the pool, and for how long; else only when it is copied, and only from there.
    pub access: Option<Access>,
}

/// How long instant access lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Days(u32),
    /// Until somebody ends it.
    Endless,
}

/// Where a snapshot is that is kept in a repository.
#[derive(Clone, Debug)]
pub struct PresenceInfo {
    pub repo: String,
    pub copy: CopyId,
    /// The copy has all of it.
    pub complete: bool,
    /// Its blocks are in the pool.
    pub held: bool,
    /// It can be used from the pool, until then if there is an end.
    pub access: Option<Option<u64>>,
    /// The copying.
    pub job: Option<JobInfo>,
    /// Why it does not go on.
    pub failed: Option<String>,
}
