//! The audit log: every call that would change something, the refused ones included.
//!
//! Invariants: entries are in the order in which the calls ended.
//! Absent: calls that only read; what happened to objects, which events tell.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Moment;
use crate::params::params;

params! {
    /// The last entries of the audit log.
    AuditList {
        /// At most 10000, which is also what leaving it out means.
        limit?: u32,
    }
}

/// The reply to `audit.list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    /// Oldest first.
    pub entries: Vec<AuditEntry>,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub at: Moment,
    pub uid: u32,
    pub pid: i32,
    /// `admin` or `observer`, by the socket.
    pub role: String,
    pub method: String,
    /// Names, ids, sizes and switches; no free text.
    pub params: Map<String, Value>,
    /// `ok`, or the kind of the error.
    pub result: String,
    pub message: Option<String>,
    pub millis: u64,
}
