//! Events on the wire: what happened, who asked for it, in one order.
//!
//! Invariants: `seq` grows by one with each event, also across restarts, so a client that sees a
//! step of more than one knows that it missed some.
//! Absent: filters; a client drops what it does not want.

use serde::{Deserialize, Serialize};

use crate::Time;

/// Lists events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsList {
    /// Only events with a greater `seq`.
    #[serde(default)]
    pub after: u64,
    /// The most events to return, at most 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Asks for `event` notifications on this connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsSubscribe {
    /// Start with the event after this one; left out: with the next that happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// The reply to `events.list`, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsPage {
    pub events: Vec<Event>,
}

/// The reply to `events.subscribe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsFrom {
    /// Notifications carry events with a greater `seq`.
    pub after: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub seq: u64,
    pub at: Time,
    /// Who asked for it; pid 0 is the daemon itself.
    pub uid: u32,
    pub pid: i32,
    /// `disk.create`, `snapshot.delete`, `pool.corrupt-block`, and so on.
    pub kind: String,
    /// The id or name of what it is about.
    pub object: String,
    pub message: String,
}
