//! The end of a freeze: the level on the snapshots, and what is told of it.
//!
//! Invariants: everything is thawed by now; an error that left a snapshot behind says so.
//! Absent: the phases before (`operation.rs`).

use std::time::{Instant, SystemTime};

use super::report::{Phase, Report};
use super::{APP_TAG, FS_TAG, TAG_VALUE};
use crate::engine::Engine;
use crate::engine::api::{Actor, Consistency};
use crate::error::{Error, Result};
use crate::units::SnapshotId;

/// Records the level on the snapshots, and tells what happened.
pub(super) fn finish(
    engine: &Engine,
    by: Actor,
    snapshots: &[SnapshotId],
    mut report: Report,
    trouble: Option<Error>,
    label: &str,
) -> Result<Report> {
    let tag = match report.reached {
        Consistency::Crash => None,
        Consistency::Fs => Some(FS_TAG),
        Consistency::App => Some(APP_TAG),
    };
    let begun = Instant::now();
    let tagged = tag.map_or(Ok(()), |tag| {
        let mark = |id| engine.snapshot_mark(by, id, report.reached, (tag, TAG_VALUE));
        // All of them, also when one fails.
        snapshots.iter().map(mark).fold(Ok(()), Result::and)
    });
    if tag.is_some() {
        report.phases.push((Phase::Tag, begun.elapsed()));
    }
    let (wanted, reached) = (report.wanted, report.reached);
    for note in &report.notes {
        tracing::warn!(what = label, note, "consistency");
    }
    for (phase, took) in &report.phases {
        tracing::info!(what = label, %phase, seconds = took.as_secs_f64(), "freeze phase");
    }
    let instant = |at: Option<SystemTime>| at.map(rfc3339).unwrap_or_default();
    let (from, to) = (instant(report.frozen_at), instant(report.thawed_at));
    tracing::info!(what = label, %wanted, %reached, frozen_at = from, thawed_at = to, "consistency");
    let object = snapshots.first().map_or(label, SnapshotId::as_str);
    let mut message = format!("{label}: level {reached}, {report}");
    if report.frozen_at.is_some() {
        message = format!("{message}; frozen from {from} to {to}");
    }
    engine.note(by, "freeze.done", object, message)?;
    if let Some(trouble) = trouble {
        engine.note(by, "freeze.trouble", object, trouble.message().to_owned())?;
        return Err(kept(trouble, label));
    }
    tagged.map_err(|error| kept(error, label))?;
    Ok(report)
}

/// An error that left the snapshot behind.
fn kept(error: Error, label: &str) -> Error {
    error.context(format!("{label} is made and kept"))
}

pub(super) fn told_failure(engine: &Engine, by: Actor, error: &Error) {
    let noted = engine.note(by, "freeze.failed", "freeze", error.message().to_owned());
    if let Err(other) = noted {
        tracing::warn!(%error, %other, "a freeze failed, and the event could not be kept");
    }
}

/// With microseconds.
fn rfc3339(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at)
        .ok()
        .and_then(|at| at.round(jiff::Unit::Microsecond).ok())
        .map(|at| format!("{at:.6}"))
        .unwrap_or_default()
}
