//! The values of the metrics, as they are at the moment of the question.
//!
//! Invariants: each row of the table is written once, in its order, with the labels it says.
//! Absent: who asks (`mod.rs`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::table::{self, Kind, Metric};
use crate::engine::Engine;
use crate::engine::api::PoolStatus;
use crate::engine::meters::{DiskIo, DiskNumbers, Done, Operation, Work};
use crate::freeze::Freezer;
use crate::histogram::{BOUNDS_US, Counted};

/// Where the values come from.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) engine: Arc<Engine>,
    pub(super) freezer: Arc<Freezer>,
}

type Labels = Vec<(&'static str, String)>;

/// One sample's value.
enum Value {
    Whole(u64),
    Real(f64),
    Timed(Counted),
}

struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// Writes a metric with a sample for each row; a metric without rows is left out.
    fn write(&mut self, metric: Metric, rows: Vec<(Labels, Value)>) -> fmt::Result {
        if rows.is_empty() {
            return Ok(());
        }
        let kind = match metric.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        };
        let mut encoder = self.0.encode_descriptor(metric.name, metric.help, None, kind)?;
        for (labels, value) in rows {
            debug_assert!(labels.iter().map(|(name, _)| name).eq(metric.labels), "{}", metric.name);
            if labels.is_empty() {
                sample(&mut encoder, metric.kind, &value)?;
            } else {
                sample(&mut encoder.encode_family(&labels)?, metric.kind, &value)?;
            }
        }
        Ok(())
    }

    fn one(&mut self, metric: Metric, value: Value) -> fmt::Result {
        self.write(metric, vec![(Vec::new(), value)])
    }

    fn whole(&mut self, metric: Metric, value: u64) -> fmt::Result {
        self.one(metric, Value::Whole(value))
    }

    /// Nothing at all when there is no value.
    fn some(&mut self, metric: Metric, value: Option<u64>) -> fmt::Result {
        value.map_or(Ok(()), |value| self.whole(metric, value))
    }
}

fn sample(encoder: &mut MetricEncoder<'_>, kind: Kind, value: &Value) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Whole(value)) => {
            encoder.encode_counter::<NoLabelSet, _, f64>(value, None)
        }
        (Kind::Counter, Value::Real(value)) => {
            encoder.encode_counter::<NoLabelSet, _, f64>(value, None)
        }
        (_, Value::Whole(value)) => encoder.encode_gauge(value),
        (_, Value::Real(value)) => encoder.encode_gauge(value),
        (_, Value::Timed(counted)) => {
            let bounds = BOUNDS_US.iter().map(|us| Duration::from_micros(*us).as_secs_f64());
            let bounds = bounds.chain(std::iter::once(f64::INFINITY));
            let buckets: Vec<(f64, u64)> = bounds.zip(counted.buckets).collect();
            let (sum, count) = (counted.seconds(), counted.count());
            encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        }
    }
}

impl Collector for Sources {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let pool = self.engine.status();
        let work = self.engine.work();
        self.process(&mut page, &pool)?;
        requests(&mut page, &self.engine.disk_io())?;
        disks(&mut page, &self.engine.disk_numbers())?;
        of_pool(&mut page, &pool, &work)?;
        of_journal(&mut page, &pool, &work)?;
        of_upkeep(&mut page, &pool, &work)?;
        self.freezes(&mut page)
    }
}

impl Sources {
    fn process(&self, page: &mut Page<'_>, pool: &PoolStatus) -> fmt::Result {
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        page.write(table::BUILD_INFO, vec![(version, Value::Whole(1))])?;
        page.whole(table::START_TIME, self.engine.counting_since().0)?;
        page.one(table::RECOVERY, Value::Real(pool.recovery_seconds))?;
        page.some(table::RESIDENT, resident_bytes())?;
        match getrusage(UsageWho::RUSAGE_SELF) {
            Ok(usage) => {
                let seconds = |time: nix::sys::time::TimeVal| {
                    #[expect(clippy::cast_precision_loss, reason = "seconds have microseconds")]
                    let (whole, micros) = (time.tv_sec() as f64, time.tv_usec() as f64);
                    whole + micros / 1e6
                };
                let used = seconds(usage.user_time()) + seconds(usage.system_time());
                page.one(table::CPU, Value::Real(used))
            }
            Err(_) => Ok(()),
        }
    }

    fn freezes(&self, page: &mut Page<'_>) -> fmt::Result {
        page.one(table::FROZEN, Value::Timed(self.freezer.frozen.counted()))?;
        // A record that cannot be read is one that was left.
        let (running, left) = match self.freezer.status() {
            Ok(status) => (status.running.is_some(), status.left.is_some()),
            Err(_) => (false, true),
        };
        page.whole(table::FROZEN_NOW, u64::from(running))?;
        page.whole(table::FROZEN_LEFT, u64::from(left))
    }
}

fn requests(page: &mut Page<'_>, disks: &[DiskIo]) -> fmt::Result {
    let rows = |value: fn(&Done) -> Value| -> Vec<(Labels, Value)> {
        let each = disks.iter().flat_map(|io| Operation::ALL.into_iter().map(move |op| (io, op)));
        // What never happened takes no lines.
        let seen = each.filter(|(io, op)| io.totals[*op as usize] != Done::default());
        seen.map(|(io, op)| {
            let export = if io.snapshots { "snapshot" } else { "disk" };
            let labels = [("disk", io.disk.as_str()), ("export", export), ("op", op.name())];
            let labels = labels.map(|(name, value)| (name, value.to_owned())).to_vec();
            (labels, value(&io.totals[op as usize]))
        })
        .collect()
    };
    page.write(table::DISK_REQUEST, rows(|done| Value::Timed(done.took)))?;
    page.write(table::DISK_BYTES, rows(|done| Value::Whole(done.bytes)))?;
    page.write(table::DISK_ERRORS, rows(|done| Value::Whole(done.errors)))
}

fn disks(page: &mut Page<'_>, disks: &[DiskNumbers]) -> fmt::Result {
    let rows = |value: fn(&DiskNumbers) -> Option<u64>| -> Vec<(Labels, Value)> {
        let labels = |disk: &DiskNumbers| vec![("disk", disk.name.clone())];
        let row = |disk: &DiskNumbers| value(disk).map(|it| (labels(disk), Value::Whole(it)));
        disks.iter().filter_map(row).collect()
    };
    page.write(table::DISK_SIZE, rows(|disk| Some(disk.size)))?;
    page.write(table::DISK_MAPPED, rows(|disk| Some(disk.mapped_bytes)))?;
    page.write(table::DISK_SNAPSHOTS, rows(|disk| Some(disk.snapshots)))?;
    page.write(table::DISK_SNAPSHOT_BYTES, rows(|disk| Some(disk.snapshot_bytes)))?;
    page.write(table::DISK_CLIENTS, rows(|disk| Some(disk.clients)))?;
    page.write(table::DISK_ATTACHED, rows(|disk| disk.attached.map(u64::from)))
}

fn of_pool(page: &mut Page<'_>, pool: &PoolStatus, work: &Work) -> fmt::Result {
    page.whole(table::POOL_STOPPED, u64::from(pool.stopped.is_some()))?;
    page.whole(table::POOL_USED, pool.used_bytes)?;
    page.whole(table::POOL_PENDING, pool.pending_bytes)?;
    page.whole(table::POOL_FILE, pool.file_bytes)?;
    page.whole(table::POOL_MAX, pool.max_bytes)?;
    page.whole(table::POOL_CORRUPT, pool.corrupt_blocks)?;
    page.whole(table::POOL_HEALED, pool.healed_blocks)?;
    page.one(table::POOL_SYNC, Value::Timed(work.syncs))?;
    page.whole(table::DISKS, pool.disks)?;
    page.whole(table::SNAPSHOTS, pool.snapshots)?;
    page.whole(table::CLIENTS, pool.clients)
}

fn of_journal(page: &mut Page<'_>, pool: &PoolStatus, work: &Work) -> fmt::Result {
    page.whole(table::JOURNAL_SIZE, pool.journal_bytes)?;
    page.whole(table::JOURNAL_USED, pool.journal_used_bytes)?;
    page.whole(table::JOURNAL_RECORDS, pool.last_seq)?;
    page.whole(table::JOURNAL_LAG, pool.last_seq.saturating_sub(pool.durable_seq))?;
    page.one(table::CHECKPOINT, Value::Timed(work.checkpoints))?;
    let last = (work.last_checkpoint > 0).then_some(work.last_checkpoint);
    page.some(table::CHECKPOINT_LAST, last)?;
    page.whole(table::CHECKPOINT_LAG, pool.last_seq.saturating_sub(pool.checkpoint_seq))
}

fn of_upkeep(page: &mut Page<'_>, pool: &PoolStatus, work: &Work) -> fmt::Result {
    page.whole(table::CACHE, pool.cache_bytes)?;
    page.whole(table::CACHE_LIMIT, pool.cache_limit)?;
    page.whole(table::CACHE_MISSES, work.cache_misses)?;
    page.whole(table::RECLAIM_WAITING, pool.reclaiming)?;
    page.whole(table::RECLAIM_STEPS, work.reclaim_steps)?;
    let scrub = pool.last_scrub.as_ref();
    page.some(table::SCRUB_LAST, scrub.map(|report| report.ended_at))?;
    page.some(table::SCRUB_BAD, scrub.map(|report| report.bad.len() as u64))?;
    page.some(table::SCRUB_BYTES, scrub.map(|report| report.bytes))?;
    let state = |name: &str, count| (vec![("state", name.to_owned())], Value::Whole(count));
    let copies =
        vec![state("progressing", work.copies_under_way), state("failed", work.copies_failed)];
    page.write(table::COPIES, copies)?;
    page.one(table::COPY_WAIT, Value::Real(work.uploads_waited.as_secs_f64()))?;
    let jobs = work.jobs.iter();
    let jobs = jobs.map(|(kind, count)| (vec![("kind", kind.clone())], Value::Whole(*count)));
    page.write(table::JOBS, jobs.collect())?;
    page.whole(table::EVENTS, work.last_event)?;
    let policies = work.policies.iter();
    let policies = policies.map(|(name, at)| (vec![("policy", name.clone())], Value::Whole(*at)));
    page.write(table::POLICY_LAST, policies.collect())?;
    page.whole(table::POLICY_HELD, work.held)
}

/// Memory in use, as the kernel counts it; nothing where it does not tell.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten()?;
    Some(pages * u64::try_from(page).ok()?)
}
