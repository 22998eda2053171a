//! `rowctl metrics`: all metrics of the daemon as text.
//!
//! Invariants: the text is the daemon's, as it is.
//! Absent: rates, which are `rowctl top`.

use rowd_proto::MetricsShow;

use crate::error::{Outcome, Result};

use super::Context;

pub const EXAMPLES: &str = "Examples:
  rowctl metrics | grep rowd_pool_
  rowctl metrics > /var/lib/prometheus/node-exporter/rowd.prom

The daemon can keep such a file itself, or answer scrapes: [metrics] in rowd.toml. What each metric
means is in docs/metrics.md.";

pub fn run(context: &Context) -> Result<Outcome> {
    let page = context.client()?.call(&MetricsShow {})?;
    let text = page.text.trim_end();
    context.output.object(&page, text, |_| text.to_owned())?;
    Ok(Outcome::Done)
}
