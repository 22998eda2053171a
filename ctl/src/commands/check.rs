//! `rowctl check`: what is wrong, for monitoring.
//!
//! Invariants: exit code 0 means that every condition holds; one line per condition that does not.
//! Absent: advice, which is `rowctl doctor`.

mod plugin;

use clap::Args;
use rowd_proto::{FreezeShow, FreezeStatus, Key, KeyShow, PoolShow, PoolStatus};
use serde::Serialize;

use crate::error::{Outcome, Result};
use rowd_proto::size::human;

use super::Context;
use super::status::{FULL_PERCENT, filled};

pub const EXAMPLES: &str = "Examples:
  rowctl check || mail -s 'rowd has a problem' root
  rowctl check --plugin --warn 75 --critical 85      for Nagios, Icinga and the like

Exit codes: 0 all is well, 1 a condition does not hold, 23 the daemon is not reachable. With
--plugin they are those of monitoring plugins: 0 ok, 1 warning, 2 critical (also when the daemon
is not reachable), 3 unknown; and the output is one line.";

#[derive(Args, Debug)]
pub struct Check {
    /// One line, and the exit codes of monitoring plugins
    #[arg(long)]
    plugin: bool,
    /// Percent of the pool in use from which on it is a warning
    #[arg(long, value_name = "PERCENT", requires = "plugin", default_value_t = 80)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100))]
    warn: u64,
    /// Percent of the pool in use from which on it is critical
    #[arg(long, value_name = "PERCENT", requires = "plugin", default_value_t = 90)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100))]
    critical: u64,
}

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `stopped`, `corrupt`, `scrub`, `full`, `frozen`, `locked`: stable names for programs.
    pub condition: &'static str,
    pub message: String,
}

/// What there was to see.
#[derive(Debug)]
struct Seen {
    pool: PoolStatus,
    findings: Vec<Finding>,
}

pub fn run(args: &Check, context: &Context) -> Result<Outcome> {
    if args.plugin {
        let limits = plugin::Limits { warn: args.warn, critical: args.critical };
        return plugin::run(limits, context);
    }
    let Seen { pool, findings } = look(context)?;
    let condition = |finding: &Finding| finding.condition.to_owned();
    context.output.list(&findings, condition, |_| text(&pool, &findings))?;
    Ok(if findings.is_empty() { Outcome::Done } else { Outcome::ConditionFails })
}

fn look(context: &Context) -> Result<Seen> {
    let mut client = context.client()?;
    let pool = client.call(&PoolShow {})?;
    let mut findings = findings(&pool);
    findings.extend(left_frozen(&client.call(&FreezeShow {})?));
    findings.extend(client.call(&KeyShow {})?.keys.iter().filter_map(locked));
    Ok(Seen { pool, findings })
}

/// Everything about the pool that is not as it should be.
pub fn findings(pool: &PoolStatus) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |condition, message| findings.push(Finding { condition, message });
    if let Some(why) = &pool.stopped {
        found("stopped", format!("the pool accepts no writes: {why}"));
    }
    if pool.corrupt_blocks > 0 {
        found("corrupt", format!("{} blocks do not hold what was written", pool.corrupt_blocks));
    }
    if let Some(report) = pool.last_scrub.as_ref().filter(|report| !report.bad.is_empty()) {
        found("scrub", format!("the last scrub found {} bad blocks", report.bad.len()));
    }
    let percent = filled(pool);
    if percent > FULL_PERCENT {
        let (used, max) = (human(pool.used_bytes), human(pool.max_bytes));
        found("full", format!("the pool is {percent} % full: {used} of {max}"));
    }
    findings
}

/// File systems that an earlier freeze may have left frozen.
pub fn left_frozen(status: &FreezeStatus) -> Option<Finding> {
    let message = format!("{} may still be frozen: `rowctl freeze thaw`", status.left.join(", "));
    (!status.left.is_empty()).then_some(Finding { condition: "frozen", message })
}

/// Encrypted disks and snapshots whose key cannot be had.
fn locked(key: &Key) -> Option<Finding> {
    let why = key.locked.as_ref()?;
    let names: Vec<&str> = key.disks.iter().map(|disk| disk.name.as_str()).collect();
    let what = match names.as_slice() {
        [] => format!("{} snapshots of a deleted disk", key.snapshots),
        names => names.join(", "),
    };
    Some(Finding { condition: "locked", message: format!("{what}: encrypted, and {why}") })
}

fn all_is_well(pool: &PoolStatus) -> String {
    let (disks, snapshots) = (pool.disks, pool.snapshots);
    format!("{disks} disks, {snapshots} snapshots, pool {} % full", filled(pool))
}

fn text(pool: &PoolStatus, findings: &[Finding]) -> String {
    if findings.is_empty() {
        return format!("ok: {}", all_is_well(pool));
    }
    let lines = findings.iter().map(|one| format!("{}: {}", one.condition, one.message));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use rowd_proto::{ScrubReport, Time};

    pub fn healthy() -> PoolStatus {
        PoolStatus {
            version: "0.1.0".to_owned(),
            uuid: "u".to_owned(),
            dir: "/var/lib/rowd".to_owned(),
            stopped: None,
            block_size: 4096,
            file_bytes: 1 << 30,
            max_bytes: 1 << 40,
            used_bytes: 1 << 29,
            pending_bytes: 0,
            journal_bytes: 64 << 20,
            journal_used_bytes: 1 << 20,
            cache_bytes: 1 << 20,
            cache_limit: 64 << 20,
            last_seq: 10,
            durable_seq: 10,
            checkpoint_seq: 5,
            disks: 2,
            snapshots: 3,
            clients: 1,
            reclaiming: 0,
            corrupt_blocks: 0,
            healed_blocks: 0,
            last_scrub: None,
            recovery_seconds: 0.5,
            recovered_records: 7,
            io_mode: "buffered".to_owned(),
            io_flusher: false,
            memory_locked: false,
            oom_score_adj: 0,
        }
    }

    #[test]
    fn a_healthy_pool_has_no_findings() {
        let pool = healthy();
        assert_eq!(findings(&pool), []);
        assert_eq!(text(&pool, &[]), "ok: 2 disks, 3 snapshots, pool 0 % full");
    }

    #[test]
    fn every_condition_is_found() {
        let (started_at, ended_at) = (Time::from_unix(1), Time::from_unix(2));
        let report = ScrubReport { started_at, ended_at, bytes: 1, bad: vec!["x".to_owned()] };
        let pool = PoolStatus {
            stopped: Some("fsync failed".to_owned()),
            corrupt_blocks: 2,
            healed_blocks: 0,
            last_scrub: Some(report),
            used_bytes: 95 << 30,
            max_bytes: 100 << 30,
            ..healthy()
        };
        let findings = findings(&pool);
        let conditions: Vec<&str> = findings.iter().map(|one| one.condition).collect();
        assert_eq!(conditions, ["stopped", "corrupt", "scrub", "full"]);
        assert_eq!(text(&pool, &findings).lines().count(), 4);
    }

    #[test]
    fn full_begins_above_ninety_per_cent_and_counts_what_is_being_freed() {
        let at = |used: u64, pending: u64| {
            let pool = PoolStatus {
                used_bytes: used,
                pending_bytes: pending,
                max_bytes: 100,
                ..healthy()
            };
            findings(&pool).len()
        };
        assert_eq!((at(90, 0), at(91, 0), at(80, 11), at(0, 0)), (0, 1, 1, 0));
    }
}
