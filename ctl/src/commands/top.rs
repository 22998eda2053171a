//! `rowctl top`: what clients do with each disk right now.
//!
//! Invariants: rates are differences of the daemon's counters over the time that the daemon measured between them;
//! a disk without requests in that time takes no line of the table.
//! Absent: history; that is for `rowctl metrics` and who collects it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use clap::Args;
use rowd_proto::size::human;
use rowd_proto::{ErrorKind, OperationStats, RequestStats, Stats, StatsShow};
use serde::Serialize;

use crate::error::{Failure, Outcome, Result};
use crate::render::{Columns, Heading, Output, Text};

use super::Context;

pub const EXAMPLES: &str = "Examples:
  rowctl top                        every two seconds, until it is interrupted
  rowctl top --interval 10
  rowctl top --once -o json         one measurement of two seconds, for scripts

Latencies are from the receipt of a request to its reply: the mean, and the 99th percentile as the
upper bound of its bucket.";

/// Clears the terminal and goes to its top.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

#[derive(Args, Debug)]
pub struct Top {
    /// Seconds to measure over
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Measure once and end
    #[arg(long)]
    once: bool,
}

/// One disk, or its snapshots, over the interval.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    disk: String,
    /// `disk` or `snapshot`.
    export: String,
    seconds: f64,
    errors: u64,
    /// By operation.
    operations: BTreeMap<String, Rates>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Rates {
    requests: u64,
    requests_per_s: f64,
    bytes_per_s: u64,
    /// Absent without requests.
    mean_us: Option<u64>,
    /// The bound below which 99 of 100 requests were; absent without requests, and beyond the last bound.
    p99_us: Option<u64>,
}

pub fn run(args: &Top, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    let mut before = client.call(&StatsShow {})?;
    loop {
        sleep(Duration::from_secs(args.interval));
        let now = client.call(&StatsShow {})?;
        let rows = rows(&before, &now)?;
        let id = |row: &Row| row.disk.clone();
        let clear = context.output.terminal && !args.once;
        context.output.list(&rows, id, |output| {
            let text = table(&rows, output);
            let idle = format!("no requests in {} s", args.interval);
            let text = if text.is_empty() { idle } else { text };
            if clear { format!("{CLEAR}{text}") } else { text }
        })?;
        if args.once {
            return Ok(Outcome::Done);
        }
        before = now;
    }
}

/// What happened between two replies, the busiest disk first.
fn rows(before: &Stats, now: &Stats) -> Result<Vec<Row>> {
    let elapsed = now.clock_ns.checked_sub(before.clock_ns).filter(|nanos| *nanos > 0);
    let Some(elapsed) = elapsed.filter(|_| before.since == now.since) else {
        let message = "the daemon was restarted while it was measured";
        return Err(Failure::new(ErrorKind::WrongState, message).hint("try again"));
    };
    let seconds = Duration::from_nanos(elapsed).as_secs_f64();
    let mut rows: Vec<Row> = now
        .disks
        .iter()
        .map(|disk| {
            let same =
                |other: &&RequestStats| (&other.disk, &other.export) == (&disk.disk, &disk.export);
            let old = before.disks.iter().find(same);
            row(old, disk, &now.bounds_us, seconds)
        })
        .collect();
    let requests = |row: &Row| row.operations.values().map(|rates| rates.requests).sum::<u64>();
    rows.sort_by_key(|row| Reverse(requests(row)));
    Ok(rows)
}

fn row(old: Option<&RequestStats>, new: &RequestStats, bounds: &[u64], seconds: f64) -> Row {
    let nothing = OperationStats::default();
    let mut errors = 0;
    let operations = new.operations.iter().map(|(name, after)| {
        let before = old.and_then(|old| old.operations.get(name)).unwrap_or(&nothing);
        errors += after.errors.saturating_sub(before.errors);
        (name.clone(), rates(before, after, bounds, seconds))
    });
    let operations = operations.collect();
    Row { disk: new.disk.clone(), export: new.export.clone(), seconds, errors, operations }
}

fn rates(before: &OperationStats, after: &OperationStats, bounds: &[u64], seconds: f64) -> Rates {
    let requests = after.requests.saturating_sub(before.requests);
    let bytes = after.bytes.saturating_sub(before.bytes);
    let took = after.took_ns.saturating_sub(before.took_ns);
    let old = before.buckets.iter().copied().chain(std::iter::repeat(0));
    let buckets: Vec<u64> =
        after.buckets.iter().zip(old).map(|(new, old)| new.saturating_sub(old)).collect();
    Rates {
        requests,
        requests_per_s: per_second(requests, seconds),
        bytes_per_s: bytes_per_second(bytes, seconds),
        mean_us: took.checked_div(requests).map(|nanos| nanos / 1000),
        p99_us: percentile(&buckets, bounds, 99),
    }
}

/// With one digit behind the point, which is as exact as such a measurement is.
fn per_second(count: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate to look at")]
    let rate = count as f64 / seconds;
    (rate * 10.0).round() / 10.0
}

fn bytes_per_second(bytes: u64, seconds: f64) -> u64 {
    let nanos = Duration::from_secs_f64(seconds).as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

/// The upper bound of the bucket that has the request at this place among a hundred.
fn percentile(buckets: &[u64], bounds: &[u64], percent: u64) -> Option<u64> {
    let total: u64 = buckets.iter().sum();
    let wanted = total.checked_mul(percent)?.div_ceil(100);
    let mut seen = 0;
    let found = buckets.iter().position(|count| {
        seen += count;
        seen >= wanted && seen > 0
    })?;
    bounds.get(found).copied()
}

fn table(rows: &[Row], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("DISK"),
        Heading::Left("EXPORT"),
        Heading::Right("READ/S"),
        Heading::Right("READ"),
        Heading::Right("MEAN"),
        Heading::Right("P99"),
        Heading::Right("WRITE/S"),
        Heading::Right("WRITTEN"),
        Heading::Right("MEAN"),
        Heading::Right("P99"),
        Heading::Right("FLUSH/S"),
        Heading::Right("MEAN"),
        Heading::Right("DISCARD/S"),
        Heading::Right("ERRORS"),
    ]);
    let nothing = Rates::default();
    let busy = |row: &&Row| row.errors > 0 || row.operations.values().any(|one| one.requests > 0);
    for row in rows.iter().filter(busy) {
        let of = |name: &str| row.operations.get(name).unwrap_or(&nothing);
        let (read, write, flush, discard) = (of("read"), of("write"), of("flush"), of("discard"));
        let export = if row.export == "disk" { "" } else { row.export.as_str() };
        let errors = match row.errors {
            0 => Text::Plain(String::new()),
            count => Text::Alarm(count.to_string()),
        };
        columns.row([
            row.disk.as_str().into(),
            export.into(),
            rate(read),
            speed(read),
            latency(read.mean_us, read),
            latency(read.p99_us, read),
            rate(write),
            speed(write),
            latency(write.mean_us, write),
            latency(write.p99_us, write),
            rate(flush),
            latency(flush.mean_us, flush),
            rate(discard),
            errors,
        ]);
    }
    columns.render(output)
}

fn rate(rates: &Rates) -> Text {
    if rates.requests == 0 { "".into() } else { format!("{}", rates.requests_per_s).into() }
}

fn speed(rates: &Rates) -> Text {
    match rates.bytes_per_s {
        0 => "".into(),
        bytes => format!("{}/s", human(bytes)).into(),
    }
}

fn latency(micros: Option<u64>, rates: &Rates) -> Text {
    match micros {
        None if rates.requests > 0 => "> 30 s".into(),
        None => "".into(),
        Some(micros) if micros < 1000 => format!("{micros} µs").into(),
        Some(micros) if micros < 1_000_000 => {
            format!("{}.{} ms", micros / 1000, micros % 1000 / 100).into()
        }
        Some(micros) => format!("{}.{} s", micros / 1_000_000, micros % 1_000_000 / 100_000).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::Format;
    use rowd_proto::Time;

    fn stats(clock_ns: u64, requests: u64) -> Stats {
        let read = OperationStats {
            requests,
            bytes: requests * 4096,
            errors: 0,
            took_ns: requests * 80_000,
            buckets: vec![requests - requests / 200, requests / 200, 0],
        };
        let operations = BTreeMap::from([("read".to_owned(), read)]);
        let disk = RequestStats { disk: "data1".to_owned(), export: "disk".to_owned(), operations };
        let since = Time::from_unix(1);
        Stats { since, clock_ns, bounds_us: vec![100, 1000], disks: vec![disk] }
    }

    #[test]
    fn rates_are_differences_over_the_daemon_s_own_time() {
        let rows = rows(&stats(1_000_000_000, 1000), &stats(3_000_000_000, 11_000)).unwrap();
        let read = &rows[0].operations["read"];
        assert_eq!((read.requests, read.bytes_per_s), (10_000, 20_480_000));
        assert!((read.requests_per_s - 5000.0).abs() < 0.1, "{read:?}");
        assert_eq!((read.mean_us, read.p99_us), (Some(80), Some(100)));
        let output =
            Output { format: Format::Table, quiet: false, color: false, terminal: false, now: 0 };
        let text = table(&rows, &output);
        assert!(
            text.contains("data1") && text.contains("5000") && text.contains("80 µs"),
            "{text}"
        );
    }

    #[test]
    fn an_idle_disk_takes_no_line_and_has_no_latency() {
        let rows = rows(&stats(1, 1000), &stats(2_000_000_001, 1000)).unwrap();
        assert_eq!(rows[0].operations["read"], Rates { bytes_per_s: 0, ..Rates::default() });
        let output =
            Output { format: Format::Table, quiet: false, color: false, terminal: false, now: 0 };
        assert_eq!(table(&rows, &output), "");
    }

    #[test]
    fn counters_of_another_daemon_are_not_compared() {
        let other = Stats { since: Time::from_unix(2), ..stats(5, 1) };
        let failure = rows(&stats(1, 1000), &other).unwrap_err();
        assert_eq!(failure.kind(), Some(ErrorKind::WrongState));
    }

    #[test]
    fn a_percentile_is_the_bound_of_its_bucket() {
        assert_eq!(percentile(&[99, 1, 0], &[50, 100], 99), Some(50));
        assert_eq!(percentile(&[98, 2, 0], &[50, 100], 99), Some(100));
        assert_eq!(percentile(&[0, 0, 5], &[50, 100], 99), None);
        assert_eq!(percentile(&[0, 0, 0], &[50, 100], 99), None);
    }
}
