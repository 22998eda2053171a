//! `rowctl usage`: who holds how many bytes, now and over the last fifteen days.
//!
//! Invariants: bytes are counted once; what is shown for a day is the mean of its samples.
//! Absent: prices.

use std::collections::BTreeMap;

use clap::Args;
use rowd_proto::size::human;
use rowd_proto::{DiskUsage, Held, Time, Usage, UsageShow};

use crate::error::{Failure, Outcome, Result};
use crate::render::{self, Columns, Fields, Heading, Output};

use super::Context;

pub const EXAMPLES: &str = "Examples:
  rowctl usage
  rowctl usage --top                                  the largest chains first
  rowctl usage --tag env=test                         what is tagged so
  rowctl usage --from 2026-01-10 --to 2026-01-12T12:00:00Z -o json

Samples are taken hourly and kept for 15 days. A block counts once: with the disk until a snapshot
has it, then with the first snapshot that does.";

/// Lines of `--top`.
const TOP: usize = 20;

#[derive(Args, Debug)]
pub struct UsageArgs {
    /// Samples from this time on, as 2026-01-31 or 2026-01-31T09:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<Time>,
    /// Samples up to this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to: Option<Time>,
    /// Only the disks that hold most, by the bytes of their snapshots
    #[arg(long)]
    top: bool,
    /// Only disks and snapshots with this tag
    #[arg(long, value_name = "K=V", conflicts_with_all = ["from", "to"])]
    tag: Option<String>,
}

/// A time, or the beginning of a day in UTC.
fn parse_time(text: &str) -> std::result::Result<Time, String> {
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    serde_json::from_value(serde_json::Value::String(whole))
        .map_err(|_| "a time is written 2026-01-31 or 2026-01-31T09:00:00Z, in UTC".to_owned())
}

pub fn run(args: &UsageArgs, context: &Context) -> Result<Outcome> {
    let ask = UsageShow { from: args.from, to: args.to, tag: args.tag.clone() };
    let mut usage = context.client()?.call(&ask)?;
    if args.top {
        usage.disks.sort_by_key(|disk| std::cmp::Reverse(disk.held.snapshot_bytes));
        usage.disks.truncate(TOP);
        let id = |disk: &DiskUsage| disk.disk_id.clone();
        context.output.list(&usage.disks, id, |output| table(&usage.disks, output))?;
        return Ok(Outcome::Done);
    }
    let ids: Vec<&str> = usage.disks.iter().map(|disk| disk.disk_id.as_str()).collect();
    context.output.object(&usage, &ids.join("\n"), |output| text(args, &usage, output))?;
    if usage.samples.is_empty() && (args.from.is_some() || args.to.is_some()) {
        return Err(Failure::new(rowd_proto::ErrorKind::NotFound, "no samples in this time range")
            .hint("samples are taken hourly while rowd runs, and kept for 15 days"));
    }
    Ok(Outcome::Done)
}

fn text(args: &UsageArgs, usage: &Usage, output: &Output) -> String {
    let Held { data_bytes, snapshot_bytes, undo_bytes, snapshots } = usage.total;
    let mut fields = Fields::new();
    if args.tag.is_none() {
        fields.add("pool in use", render::bytes(usage.used_bytes));
    }
    fields.add("data of disks", render::bytes(data_bytes));
    fields.add("snapshots", format!("{} in {snapshots}", human(snapshot_bytes)));
    let (access, access_hours) = (usage.instant_access_bytes, usage.instant_access_byte_hours);
    fields.add_some("of which by instant access", (access > 0).then(|| render::bytes(access)));
    fields.add_some("kept for undo", (undo_bytes > 0).then(|| render::bytes(undo_bytes)));
    for repo in &usage.repos {
        let (stored, copies) = (human(repo.stored_bytes), repo.copies);
        fields.add("repository", format!("{}: {stored} in {copies} copies", repo.name));
    }
    if args.tag.is_none() {
        let over = format!(
            "{} hours over {} samples",
            human(usage.snapshot_byte_hours),
            usage.samples.len()
        );
        fields.add("snapshots × time", over);
        let over = (access_hours > 0).then(|| format!("{} hours", human(access_hours)));
        fields.add_some("instant access × time", over);
    }
    let parts = [fields.render(output), table(&usage.disks, output), days(usage, output)];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
}

fn table(disks: &[DiskUsage], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("DISK"),
        Heading::Left("ID"),
        Heading::Right("SIZE"),
        Heading::Right("DATA"),
        Heading::Right("SNAPSHOTS"),
        Heading::Right("HELD BY THEM"),
        Heading::Right("FOR UNDO"),
        Heading::Left("TAGS"),
    ]);
    for disk in disks {
        let undo = disk.held.undo_bytes;
        columns.row([
            disk.disk_name.clone().unwrap_or_else(|| "(deleted)".to_owned()).into(),
            disk.disk_id.clone().into(),
            if disk.size == 0 { "".into() } else { render::bytes(disk.size) },
            render::bytes(disk.held.data_bytes),
            render::count(disk.held.snapshots),
            render::bytes(disk.held.snapshot_bytes),
            if undo == 0 { "".into() } else { render::bytes(undo) },
            render::tags(&disk.tags).into(),
        ]);
    }
    columns.render(output)
}

/// One line for each day of the samples, with the means of that day.
fn days(usage: &Usage, output: &Output) -> String {
    let mut days: BTreeMap<String, Vec<(u64, u64, u64)>> = BTreeMap::new();
    for sample in &usage.samples {
        let day = sample.at.to_string()[..10].to_owned();
        let one = (sample.used_bytes, sample.total.snapshot_bytes, sample.total.snapshots);
        days.entry(day).or_default().push(one);
    }
    let mut columns = Columns::new(&[
        Heading::Left("DAY (UTC)"),
        Heading::Right("SAMPLES"),
        Heading::Right("POOL IN USE"),
        Heading::Right("HELD BY SNAPSHOTS"),
        Heading::Right("SNAPSHOTS"),
    ]);
    for (day, samples) in days {
        let count = u64::try_from(samples.len()).unwrap_or(u64::MAX);
        let mean = |part: fn(&(u64, u64, u64)) -> u64| {
            samples.iter().map(part).fold(0u64, u64::saturating_add) / count.max(1)
        };
        columns.row([
            day.into(),
            count.to_string().into(),
            render::bytes(mean(|one| one.0)),
            render::bytes(mean(|one| one.1)),
            mean(|one| one.2).to_string().into(),
        ]);
    }
    columns.render(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_its_first_second_in_utc() {
        assert_eq!(parse_time("2026-01-31").unwrap().to_string(), "2026-01-31T00:00:00Z");
        assert_eq!(parse_time("2026-01-31T09:10:11Z").unwrap().to_string(), "2026-01-31T09:10:11Z");
        assert!(parse_time("yesterday").is_err() && parse_time("2026-02-30").is_err());
    }
}
