//! The methods of those who watch.
//!
//! Invariants: as in `handlers.rs`; nothing here changes anything.
//! Absent: history.

use std::sync::Arc;

use rowd_proto as proto;
use rowd_proto::Time;

use super::Services;
use crate::engine::Engine;
use crate::engine::api::Actor;
use crate::engine::meters::{Done, Operation};
use crate::error::Result;
use crate::histogram::BOUNDS_US;

/// Entries in a reply: about 3 MiB of JSON.
const AUDIT_MAX: u32 = 10_000;

pub(super) fn metrics(
    services: &Services,
    _: Actor,
    _: proto::MetricsShow,
) -> Result<proto::MetricsPage> {
    Ok(proto::MetricsPage { text: services.metrics.text()? })
}

pub(super) fn config(
    services: &Services,
    _: Actor,
    _: proto::ConfigShow,
) -> Result<proto::ConfigPage> {
    Ok(proto::ConfigPage { text: services.config.to_string() })
}

pub(super) fn audit(
    services: &Services,
    _: Actor,
    ask: proto::AuditList,
) -> Result<proto::AuditPage> {
    let limit = usize::try_from(ask.limit.unwrap_or(AUDIT_MAX).min(AUDIT_MAX)).unwrap_or(0);
    Ok(proto::AuditPage { entries: services.audit.last(limit)? })
}

pub(super) fn stats(engine: &Arc<Engine>, _: Actor, _: proto::StatsShow) -> Result<proto::Stats> {
    let (since, elapsed) = engine.counting_since();
    let disks = engine.disk_io().into_iter().map(|io| proto::RequestStats {
        disk: io.disk,
        export: if io.snapshots { "snapshot" } else { "disk" }.to_owned(),
        operations: Operation::ALL
            .into_iter()
            .map(|operation| (operation.name().to_owned(), told(io.totals[operation as usize])))
            .collect(),
    });
    Ok(proto::Stats {
        since: Time::from_unix(since),
        clock_ns: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
        bounds_us: BOUNDS_US.to_vec(),
        disks: disks.collect(),
    })
}

fn told(done: Done) -> proto::OperationStats {
    proto::OperationStats {
        requests: done.took.count(),
        bytes: done.bytes,
        errors: done.errors,
        took_ns: done.took.nanos,
        buckets: done.took.buckets.to_vec(),
    }
}
