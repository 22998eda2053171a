//! The method of usage.
//!
//! Invariants: as in `handlers.rs`.
//! Absent: sampling (`crate::usage`).

use std::collections::BTreeMap;
use std::sync::Arc;

use rowd_proto as proto;
use rowd_proto::Time;

use super::resolve;
use crate::engine::Engine;
use crate::engine::api::Actor;
use crate::engine::usage::{EVERY, Held, Stored, UsageRecord};
use crate::error::{Error, Result};

pub(super) fn show(engine: &Arc<Engine>, _: Actor, ask: proto::UsageShow) -> Result<proto::Usage> {
    let tag = ask.tag.as_deref().map(parse_tag).transpose()?;
    let usage = engine.usage(ask.from.map(Time::unix), ask.to.map(Time::unix), tag)?;
    let samples = if tag.is_some() { Vec::new() } else { usage.samples };
    let disks = usage.disks.into_iter().map(|disk| proto::DiskUsage {
        disk_id: disk.id.to_string(),
        disk_name: disk.name,
        size: disk.size,
        tags: disk.tags,
        instant_access_bytes: disk.held.access,
        held: held(&disk.held),
    });
    Ok(proto::Usage {
        at: Time::from_unix(usage.at),
        used_bytes: usage.used,
        total: held(&usage.total),
        instant_access_bytes: usage.total.access,
        disks: disks.collect(),
        repos: repos(usage.repos),
        snapshot_byte_hours: byte_hours(&samples, usage.at, |sample| sample.total.snapshots),
        instant_access_byte_hours: byte_hours(&samples, usage.at, |sample| sample.access),
        samples: samples.into_iter().map(sample).collect(),
    })
}

/// What deleting snapshots would free.
pub(super) fn freed(
    engine: &Arc<Engine>,
    _: Actor,
    ask: proto::SnapshotFreed,
) -> Result<proto::SnapshotsFreed> {
    let named = ask.snapshots.iter().map(|name| resolve::snapshot(engine, name));
    let ids = named.collect::<Result<Vec<_>>>()?;
    let freed = engine.freed_in_order(&ids)?;
    let told = ids.iter().zip(freed).map(|(id, freed_bytes)| {
        let name = engine.snapshot(id)?.name;
        Ok(proto::SnapshotDeleted { id: id.to_string(), name, freed_bytes })
    });
    Ok(proto::SnapshotsFreed { snapshots: told.collect::<Result<_>>()? })
}

/// `key=value`, or a key alone.
fn parse_tag(text: &str) -> Result<(&str, Option<&str>)> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (text, None),
    };
    if key.is_empty() {
        return Err(Error::invalid(format!("{text:?} names no tag")).hint("write key=value or key"));
    }
    Ok((key, value))
}

fn held(held: &Held) -> proto::Held {
    proto::Held {
        data_bytes: held.data,
        snapshot_bytes: held.snapshots,
        undo_bytes: held.undo,
        snapshots: held.count,
    }
}

fn repos(all: BTreeMap<String, Stored>) -> Vec<proto::RepoUsage> {
    let one = |(name, stored): (String, Stored)| proto::RepoUsage {
        name,
        copies: stored.copies,
        stored_bytes: stored.bytes,
    };
    all.into_iter().map(one).collect()
}

fn sample(record: UsageRecord) -> proto::UsageSample {
    proto::UsageSample {
        at: Time::from_unix(record.at),
        used_bytes: record.used,
        total: held(&record.total),
        instant_access_bytes: record.access,
        disks: record.disks.iter().map(|(id, one)| (id.to_string(), held(one))).collect(),
        repos: repos(record.repos),
    }
}

/// Bytes times hours. A sample holds until the next one or until now, but for an hour at most: what was
/// while the daemon was down is not known.
fn byte_hours(samples: &[UsageRecord], now: u64, bytes: impl Fn(&UsageRecord) -> u64) -> u64 {
    let ends = samples.iter().skip(1).map(|next| next.at).chain(std::iter::once(now));
    let parts = samples.iter().zip(ends).map(|(sample, end)| {
        let seconds = end.saturating_sub(sample.at).min(EVERY);
        u128::from(bytes(sample)) * u128::from(seconds)
    });
    u64::try_from(parts.sum::<u128>() / u128::from(EVERY)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: u64, snapshots: u64) -> UsageRecord {
        let total = Held { snapshots, ..Held::default() };
        UsageRecord { at, total, access: snapshots / 2, ..UsageRecord::default() }
    }

    #[test]
    fn byte_hours_end_where_nothing_is_known() {
        // Two whole hours, one of which nobody watched the end, and half an hour.
        let samples = [at(0, 100), at(3600, 200), at(36_000, 50)];
        let snapshots = |sample: &UsageRecord| sample.total.snapshots;
        assert_eq!(byte_hours(&samples, 36_000 + 1800, snapshots), 100 + 200 + 25);
        assert_eq!(byte_hours(&samples, 36_000, |sample| sample.access), 50 + 100);
        assert_eq!(byte_hours(&[], 5, snapshots), 0);
    }

    #[test]
    fn a_tag_is_a_key_with_or_without_a_value() {
        assert_eq!(parse_tag("env=test").unwrap(), ("env", Some("test")));
        assert_eq!(parse_tag("env").unwrap(), ("env", None));
        assert!(parse_tag("=x").is_err());
    }
}
