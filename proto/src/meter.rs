//! Numbers for those who watch: metrics as text, and the counters of requests.
//!
//! Invariants: counters only grow while the daemon runs; a client takes two replies and the time between them.
//! Absent: rates and quantiles, which the client works out; the names of metrics (`docs/metrics.md`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Time;
use crate::params::params;

params! {
    /// All metrics as text.
    MetricsShow {}

    /// What clients have done with each disk since the daemon started.
    StatsShow {}

    /// The configuration in force. It names where secrets are, and has none.
    ConfigShow {}
}

/// The reply to `metrics.show`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsPage {
    /// In the OpenMetrics text format.
    pub text: String,
}

/// The reply to `config.show`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigPage {
    /// For people; its form may change.
    pub text: String,
}

/// The reply to `stats.show`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Since when the counters count: another value means another daemon.
    pub since: Time,
    /// Nanoseconds on a clock that does not jump, to tell the time between two replies.
    pub clock_ns: u64,
    /// Upper bounds of the buckets of latencies, in microseconds; one more bucket has what is longer.
    pub bounds_us: Vec<u64>,
    /// Those that any client used.
    pub disks: Vec<RequestStats>,
}

/// What clients did with one disk, or with its snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestStats {
    /// The name of the disk, or the id of one that is gone.
    pub disk: String,
    /// `disk` or `snapshot`.
    pub export: String,
    /// By operation: `read`, `write`, `discard`, `flush`.
    pub operations: BTreeMap<String, OperationStats>,
}

/// Requests of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStats {
    pub requests: u64,
    pub bytes: u64,
    pub errors: u64,
    /// Nanoseconds that all of them took together.
    pub took_ns: u64,
    /// Requests by latency; not cumulative.
    pub buckets: Vec<u64>,
}
