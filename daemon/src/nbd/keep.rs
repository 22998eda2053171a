//! A connection between two processes of the daemon: what one has to write down, and the other to know,
//! to go on with it.
//!
//! Invariants: a connection is kept only at a message boundary, with every reply sent but those to requests that are
//! written here, of which nothing was done; what is written here names exports by id, because a name may have changed
//! since the client used it.
//! Absent: where connections are kept (`handover.rs` of the daemon).

use serde::{Deserialize, Serialize};

/// What the transmission phase of a connection depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The id of the disk or snapshot.
    pub export: String,
    /// Who is at the other end, for people.
    pub peer: String,
    pub pid: Option<i32>,
    pub structured: bool,
    /// Metadata contexts, with the numbers they were given.
    #[serde(default)]
    pub contexts: Vec<(u32, String)>,
    /// The number of the kernel device whose connection it is.
    #[serde(default)]
    pub device: Option<u32>,
    /// Requests that waited for what comes from elsewhere, as they were received.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<u8>,
}
