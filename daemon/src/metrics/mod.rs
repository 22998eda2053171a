//! Metrics: what the daemon does and holds, as text that Prometheus and its relatives read.
//!
//! Invariants: the text is made when somebody asks, from counters that exist anyway; asking changes nothing and never
//! waits for the disks; nothing secret and no data is in it, but the names of disks are.
//! Absent: history and alarms, which the monitoring system has; pushing.

mod gather;
pub mod listen;
pub mod table;
pub mod textfile;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::freeze::Freezer;
use gather::Sources;

/// What the configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A loopback address to answer scrapes on.
    pub listen: Option<SocketAddr>,
    /// A file to keep up to date.
    pub textfile: Option<PathBuf>,
    pub interval: Duration,
}

/// The metrics of a daemon.
pub struct Metrics {
    registry: Registry,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    #[must_use]
    pub fn new(engine: &Arc<Engine>, freezer: &Arc<Freezer>) -> Arc<Metrics> {
        let mut registry = Registry::default();
        let (engine, freezer) = (Arc::clone(engine), Arc::clone(freezer));
        registry.register_collector(Box::new(Sources { engine, freezer }));
        Arc::new(Metrics { registry })
    }

    /// All metrics in the `OpenMetrics` text format, which readers of the older Prometheus format take too. Takes locks:
    /// not for a thread of the runtime.
    ///
    /// # Errors
    /// The text cannot be made, which does not happen.
    pub fn text(&self) -> Result<String> {
        let mut text = String::new();
        encode(&mut text, &self.registry)
            .map_err(|e| Error::internal(format!("the metrics cannot be written: {e}")))?;
        Ok(text)
    }
}
