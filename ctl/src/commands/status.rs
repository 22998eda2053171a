//! `rowctl status`: the daemon and its pool at a glance.
//!
//! Invariants: what is normal takes few lines; what is not is said in red.
//! Absent: advice, which is `rowctl doctor`.

use rowd_proto::{PoolShow, PoolStatus, ScrubReport};

use crate::error::{Outcome, Result};
use crate::render::{self, Fields, Output, Text};
use rowd_proto::size::{human, percent};

use super::Context;

pub const EXAMPLES: &str = "Example:\n  rowctl status -o json";

/// From here on a pool is nearly full, here and in `check` and `doctor`.
pub const FULL_PERCENT: u64 = 90;

pub fn run(context: &Context) -> Result<Outcome> {
    let pool = context.client()?.call(&PoolShow {})?;
    context.output.object(&pool, &pool.uuid, |output| text(&pool, output))?;
    Ok(Outcome::Done)
}

/// How full the pool is, in per cent.
pub fn filled(pool: &PoolStatus) -> u64 {
    percent(pool.used_bytes.saturating_add(pool.pending_bytes), pool.max_bytes)
}

pub fn text(pool: &PoolStatus, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("pool", format!("{} ({})", pool.dir, pool.uuid));
    fields.add("version", pool.version.clone());
    fields.add(
        "state",
        match &pool.stopped {
            None => Text::Plain("running".to_owned()),
            Some(why) => Text::Alarm(format!("stopped: {why}")),
        },
    );
    fields.add("space", space(pool));
    fields.add_some("freeing", (pool.pending_bytes > 0).then(|| render::bytes(pool.pending_bytes)));
    fields.add_some("I/O", (pool.io_mode == "direct").then_some("direct, past the page cache"));
    fields.add("disks", pool.disks.to_string());
    fields.add("snapshots", pool.snapshots.to_string());
    fields.add("clients", pool.clients.to_string());
    fields.add_some("reclaiming", Some(render::count(pool.reclaiming)));
    fields.add_some("corrupt", alarm(pool.corrupt_blocks, "blocks"));
    let healed = Some(pool.healed_blocks).filter(|count| *count > 0);
    fields.add_some("healed", healed.map(|count| format!("{count} blocks, from copies")));
    fields.add("journal", part_of(pool.journal_used_bytes, pool.journal_bytes));
    fields.add("map cache", part_of(pool.cache_bytes, pool.cache_limit));
    let lag = pool.last_seq.saturating_sub(pool.durable_seq);
    fields.add(
        "sequence",
        match lag {
            0 => format!("{}, all durable", pool.last_seq),
            lag => format!("{}, the last {lag} not flushed yet", pool.last_seq),
        },
    );
    fields.add("last scrub", scrub(pool.last_scrub.as_ref(), output));
    fields.add(
        "last start",
        format!("{:.2} s, {} records replayed", pool.recovery_seconds, pool.recovered_records),
    );
    fields.render(output)
}

fn space(pool: &PoolStatus) -> Text {
    let (used, file, max) = (human(pool.used_bytes), human(pool.file_bytes), human(pool.max_bytes));
    let text = format!("{used} of {max} used ({} %), pool file {file}", filled(pool));
    if filled(pool) > FULL_PERCENT { Text::Alarm(text) } else { Text::Plain(text) }
}

fn part_of(part: u64, whole: u64) -> String {
    format!("{} of {}", human(part), human(whole))
}

fn alarm(count: u64, what: &str) -> Option<Text> {
    (count > 0).then(|| Text::Alarm(format!("{count} {what}")))
}

fn scrub(report: Option<&ScrubReport>, output: &Output) -> Text {
    match report {
        None => "never".into(),
        Some(report) if report.bad.is_empty() => {
            format!("{}, {} good", output.full_time(report.ended_at), human(report.bytes)).into()
        }
        Some(report) => Text::Alarm(format!(
            "{}, {} bad blocks",
            output.full_time(report.ended_at),
            report.bad.len()
        )),
    }
}
