//! A thousand disks and 20,000 snapshots: what people wait for, and what an idle daemon costs.
//!
//! Invariants: commands are timed as they are typed, with the start of the program and with all of their output; each
//! snapshot holds a block of its own, so that the map has something to say about each.
//! Absent: load, which the other curves have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rowd_proto::{PolicyApply, PolicyCreate, PolicySchedule, PolicyShow};
use serde_json::json;

use super::{Bench, Finding, human};
use crate::daemon::Daemon;
use crate::guard::{pause, wait_for};
use crate::report::{median, ms};

/// Disks, snapshots of each, seconds of idleness.
const FULL: (usize, usize, u64) = (1000, 20, 15);
const QUICK: (usize, usize, u64) = (20, 5, 2);
const DISK_BYTES: u64 = 16 << 20;
/// How often each command is timed.
const TIMES: usize = 7;
/// What a list may take.
const TARGET_MS: f64 = 200.0;
/// Percent of a processor that an idle daemon may take.
const TARGET_IDLE: f64 = 1.0;
/// How often an idle daemon may wake in a second.
const TARGET_WAKEUPS: f64 = 10.0;
/// A run of a policy that is due each minute, and what 1000 snapshots may take.
const RUN_LIMIT: Duration = Duration::from_secs(180);

/// What is typed, and whether it has a target.
const COMMANDS: &[(&[&str], bool)] = &[
    (&["disk", "list"], true),
    (&["disk", "list", "-o", "json"], true),
    (&["snapshot", "list", "disk7"], true),
    (&["snapshot", "list"], true),
    (&["snapshot", "list", "-o", "json"], true),
    (&["snapshot", "list", "-q"], true),
    (&["chain", "list"], true),
    (&["chain", "show", "disk7"], false),
    (&["usage"], false),
    (&["metrics"], false),
    (&["status"], false),
];

pub fn curve(bench: Bench<'_>) -> Vec<Finding> {
    let (disks, each, idle) = if bench.options.quick { QUICK } else { FULL };
    let mut daemon = Daemon::start(&bench.options.rowd, bench.dir);
    let empty = daemon.resident();
    let (made, took) = fill(&mut daemon, disks, each);
    let what = format!("{disks} disks and {made} snapshots");
    let per = ms(took) / made as f64;
    let numbers = json!({ "ms": per });
    let mut findings =
        vec![Finding::told(format!("{what}: making a snapshot"), format!("{per:.2} ms"), numbers)];
    daemon.wait_checkpointed();
    let rowctl = bench.options.rowd.with_file_name("rowctl");
    for (args, has_target) in COMMANDS {
        findings.push(typed(&rowctl, &daemon, args, *has_target, &what));
    }
    let one = daemon.snapshot("disk7").1;
    let seen = format!("{:.1} ms", ms(one));
    findings.push(Finding::told(format!("{what}: one more"), seen, json!({ "ms": ms(one) })));
    findings.push(idleness(&daemon, Duration::from_secs(idle), &what));
    let full = daemon.resident();
    let seen = format!("{}; {} without any", human(full), human(empty));
    let numbers = json!({ "bytes": full, "empty_bytes": empty });
    findings.push(Finding::told(format!("{what}: memory in use"), seen, numbers));
    daemon.stop();
    let (clean, killed) = (daemon.relaunch(), daemon.crash());
    let seen = format!("{:.0} ms after an end, {:.0} ms after a kill", ms(clean), ms(killed));
    let numbers = json!({ "clean_ms": ms(clean), "killed_ms": ms(killed) });
    findings.push(Finding::told(format!("{what}: a start"), seen, numbers));
    findings.push(run_of_policy(&mut daemon, disks));
    findings
}

/// Makes the disks, and the snapshots one after the other with a write before each. How many, and the time for them
/// alone.
fn fill(daemon: &mut Daemon, disks: usize, each: usize) -> (usize, Duration) {
    let mut took = Duration::ZERO;
    for number in 0..disks {
        let name = format!("disk{number}");
        daemon.disk(&name, DISK_BYTES);
        let mut client = daemon.connect(&name);
        for round in 0..each as u64 {
            client.fill(round << 18, 4096, round);
            took += daemon.snapshot(&name).1;
        }
    }
    (disks * each, took)
}

/// The time of a command from its start to its end, with all of its output.
fn typed(rowctl: &Path, daemon: &Daemon, args: &[&str], has_target: bool, what: &str) -> Finding {
    let mut bytes = 0;
    let mut once = || {
        let began = Instant::now();
        let mut command = Command::new(rowctl);
        command.arg("--dir").arg(daemon.pool_dir()).args(args).stdin(Stdio::null());
        let done = command.output().expect("run rowctl");
        let took = began.elapsed();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        bytes = done.stdout.len() as u64;
        ms(took)
    };
    let times: Vec<f64> = (0..TIMES).map(|_| once()).collect();
    let (middle, most) = (median(&times), times.iter().copied().fold(0.0, f64::max));
    let seen = format!("{middle:.0} ms, {most:.0} at most; {} of text", human(bytes));
    let numbers = json!({ "ms": middle, "max_ms": most, "bytes": bytes });
    let finding = Finding::told(format!("{what}: `rowctl {}`", args.join(" ")), seen, numbers);
    if has_target {
        finding.target(format!("≤ {TARGET_MS:.0} ms"), middle <= TARGET_MS)
    } else {
        finding
    }
}

/// What an idle daemon takes of a processor, and how often it wakes.
fn idleness(daemon: &Daemon, length: Duration, what: &str) -> Finding {
    // What the last command has left to do.
    pause(Duration::from_secs(2));
    let before = (daemon.processor_time(), daemon.wakeups(), Instant::now());
    pause(length);
    let busy = daemon.processor_time() - before.0;
    // Of the threads that are there still.
    let more = |(task, count): (String, u64)| count - before.1.get(&task).copied().unwrap_or(0);
    let woken: u64 = daemon.wakeups().into_iter().map(more).sum();
    let elapsed = before.2.elapsed().as_secs_f64();
    let percent = busy.as_secs_f64() / elapsed * 100.0;
    let per_second = woken as f64 / elapsed;
    let seen = format!("{percent:.2} % of a processor, {per_second:.0} wake-ups a second");
    let numbers = json!({ "percent": percent, "wakeups_per_s": per_second });
    Finding::told(format!("{what}: an idle daemon"), seen, numbers).target(
        format!("< {TARGET_IDLE:.0} %, ≤ {TARGET_WAKEUPS:.0}"),
        percent < TARGET_IDLE && per_second <= TARGET_WAKEUPS,
    )
}

/// A policy that makes a snapshot of each disk at the next full minute.
fn run_of_policy(daemon: &mut Daemon, disks: usize) -> Finding {
    let schedule = PolicySchedule { every: Some(60), ..PolicySchedule::default() };
    let policy = daemon
        .control
        .call(&PolicyCreate { name: "all".to_owned(), schedule, ..PolicyCreate::default() })
        .id;
    for number in 0..disks {
        let disk = format!("disk{number}");
        daemon.control.call(&PolicyApply { policy: policy.clone(), disk, replace: false });
    }
    let before = daemon.processor_time();
    let run = wait_for("a run of the policy", RUN_LIMIT, || {
        let params = PolicyShow { policy: policy.clone() };
        daemon.control.call(&params).last_run.filter(|run| run.made == disks as u64)
    });
    let busy = (daemon.processor_time() - before).as_secs_f64();
    let took = run.ended_at.unix().saturating_sub(run.scheduled_at.unix());
    let seen = format!("{took} s, {busy:.1} s of a processor");
    let numbers = json!({ "seconds": took, "processor_seconds": busy });
    Finding::told(format!("a policy makes snapshots of {disks} disks"), seen, numbers)
}

impl Daemon {
    fn resident(&self) -> u64 {
        let text = self.status_field("VmRSS");
        text.trim_end_matches(" kB").parse::<u64>().expect("a number of KiB") << 10
    }

    /// What it has used of processors so far.
    fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(self.proc().join("stat")).expect("read its times");
        // The name may hold blanks; it ends at the last parenthesis. User and system time are fields 14 and 15.
        let rest = stat.rsplit_once(')').expect("a name in parentheses").1;
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|field| field.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(ticks * 10)
    }

    /// How often each of its threads has gone to sleep so far.
    fn wakeups(&self) -> BTreeMap<String, u64> {
        let tasks = std::fs::read_dir(self.proc().join("task")).expect("list its threads");
        let of = |task: PathBuf| {
            let path = task.join("status").display().to_string();
            let field = crate::machine::field(&path, "voluntary_ctxt_switches");
            (path, field.parse::<u64>().expect("a number"))
        };
        tasks.map(|task| of(task.expect("list its threads").path())).collect()
    }
}
