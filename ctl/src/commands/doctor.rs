//! `rowctl doctor`: looks for the cause of trouble and says what to do about it.
//!
//! Invariants: every finding comes with advice; a daemon that does not answer is a finding, not a
//! failure.
//! Absent: repairs; it changes nothing.

mod bundle;

use std::path::{Path, PathBuf};

use clap::Args;
use nix::sys::statvfs::statvfs;
use rowd_proto::{FreezeShow, PoolShow, PoolStatus};
use serde::Serialize;

use crate::error::{Failure, Outcome, Result};
use crate::nbd;
use crate::render::{Columns, Heading, Output, Text};
use rowd_proto::size::{human, percent};

use super::Context;
use super::check;
use super::status::filled;

pub const EXAMPLES: &str = "Examples:
  rowctl doctor
  rowctl doctor --bundle /tmp/rowd.tar     to go with a report: no data, no secrets

Exit codes: 0 no problem (there may be advice), 1 a problem.";

#[derive(Args, Debug)]
pub struct Doctor {
    /// Write what helps to find a cause into this tar file: no data, no secrets
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
}

/// A scrub older than this leaves bit rot undiscovered for too long: a month is the usual interval
/// for disks.
const SCRUB_INTERVAL_DAYS: u64 = 30;
/// Less free space than this is gone before anybody has read about it.
const FREE_MIN: u64 = 1 << 30;

/// The score of a process that the kernel never ends to free memory.
const OOM_NEVER: i32 = -1000;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Examination {
    pub subject: &'static str,
    pub state: State,
    pub message: String,
    /// What to do, unless it is well.
    pub advice: Option<String>,
}

/// How well it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Ok,
    /// Works, and could be better.
    Advice,
    /// Does not work, or will soon not.
    Problem,
}

fn well(subject: &'static str, message: impl Into<String>) -> Examination {
    Examination { subject, state: State::Ok, message: message.into(), advice: None }
}

fn could_be_better(
    subject: &'static str,
    message: impl Into<String>,
    advice: impl Into<String>,
) -> Examination {
    Examination { state: State::Advice, ..ill(subject, message, advice) }
}

fn ill(
    subject: &'static str,
    message: impl Into<String>,
    advice: impl Into<String>,
) -> Examination {
    Examination {
        subject,
        state: State::Problem,
        message: message.into(),
        advice: Some(advice.into()),
    }
}

pub fn run(args: &Doctor, context: &Context) -> Result<Outcome> {
    let examinations = examine(context);
    if let Some(path) = &args.bundle {
        return bundle::write(path, &examinations, context);
    }
    let subject = |one: &Examination| one.subject.to_owned();
    context.output.list(&examinations, subject, |output| table(&examinations, output))?;
    let problem = examinations.iter().any(|one| one.state == State::Problem);
    Ok(if problem { Outcome::ConditionFails } else { Outcome::Done })
}

fn examine(context: &Context) -> Vec<Examination> {
    let control = context.sockets.control.display();
    let mut client = match context.client() {
        Ok(client) => client,
        Err(failure) => return vec![from_failure("control socket", failure)],
    };
    let mut seen = vec![well("control socket", format!("{control} answers"))];
    seen.push(versions(&client.server.version));
    seen.push(nbd_socket(&context.sockets.nbd));
    match client.call(&PoolShow {}) {
        Ok(pool) => {
            seen.extend(pool_facts(&pool, context.output.now));
            seen.extend(directory(&pool));
        }
        Err(failure) => seen.push(from_failure("pool", failure)),
    }
    match client.call(&FreezeShow {}).map(|status| check::left_frozen(&status)) {
        Ok(None) => {}
        Ok(Some(found)) => {
            let advice = "`rowctl freeze thaw` thaws them; mount what was unmounted first";
            seen.push(ill("frozen file systems", found.message, advice));
        }
        Err(failure) => seen.push(from_failure("frozen file systems", failure)),
    }
    seen
}

/// What a failure to look tells.
fn from_failure(subject: &'static str, failure: Failure) -> Examination {
    match failure {
        Failure::Told(body) => ill(
            subject,
            body.message,
            body.hint.unwrap_or_else(|| "see the daemon's log".to_owned()),
        ),
        Failure::ReaderGone => ill(subject, "nobody reads the output", "try again"),
    }
}

fn versions(daemon: &str) -> Examination {
    let own = env!("CARGO_PKG_VERSION");
    if daemon == own {
        return well("versions", format!("rowd and rowctl are {own}"));
    }
    let message = format!("the running rowd is {daemon}, rowctl is {own}");
    ill("versions", message, "restart rowd after an upgrade, or install the same version of both")
}

/// Whether an NBD server greets on the socket.
fn nbd_socket(path: &Path) -> Examination {
    match nbd::probe(path) {
        Ok(()) => well("NBD socket", format!("{} answers", path.display())),
        Err(failure) => from_failure("NBD socket", failure),
    }
}

/// What the pool itself says.
fn pool_facts(pool: &PoolStatus, now: u64) -> Vec<Examination> {
    let mut seen: Vec<Examination> = check::findings(pool)
        .into_iter()
        .map(|finding| ill("pool", finding.message, advice_for(finding.condition)))
        .collect();
    if seen.is_empty() {
        seen.push(well("pool", format!("{} % full, no errors", filled(pool))));
    }
    seen.push(scrub_age(pool, now));
    seen.push(memory(pool));
    let journal = percent(pool.journal_used_bytes, pool.journal_bytes);
    if journal > 90 {
        let message = format!("the journal is {journal} % full");
        seen.push(ill(
            "journal",
            message,
            "checkpoints do not keep up: see the load on the device",
        ));
    }
    seen
}

/// Whether the daemon is fit for kernel devices of its own host, which matters when it is meant for them.
fn memory(pool: &PoolStatus) -> Examination {
    let lacks: Vec<&str> = [
        (!pool.io_flusher, "it is not an I/O flusher"),
        (!pool.memory_locked, "its memory is not locked"),
        (pool.oom_score_adj > OOM_NEVER, "the kernel may end it"),
    ]
    .into_iter()
    .filter_map(|(lacking, what)| lacking.then_some(what))
    .collect();
    let mode = format!("{} I/O", pool.io_mode);
    if lacks.is_empty() {
        return well("memory", format!("{mode}; kept from memory pressure"));
    }
    if pool.io_mode != "direct" && !pool.memory_locked {
        let message =
            format!("{mode}; not kept from memory pressure, as for kernel devices of this host");
        return well("memory", message);
    }
    could_be_better(
        "memory",
        format!("{mode}; when memory is short: {}", lacks.join(", ")),
        "set lock = true in section [memory], and run rowd with CAP_SYS_RESOURCE and CAP_IPC_LOCK",
    )
}

fn advice_for(condition: &str) -> &'static str {
    match condition {
        "stopped" => "look at the device and the kernel's log, then restart rowd and scrub",
        "corrupt" | "scrub" => {
            "rowctl events names the disks; restore the blocks from a backup, look at the device"
        }
        "full" => "delete snapshots, trim disks, or enlarge it: rowctl pool resize SIZE",
        _ => "see the daemon's log",
    }
}

fn scrub_age(pool: &PoolStatus, now: u64) -> Examination {
    let advice = "read and verify everything: rowctl scrub";
    let Some(report) = &pool.last_scrub else {
        // A pool without data has nothing to verify.
        return match pool.used_bytes {
            0 => well("scrub", "nothing to verify yet"),
            _ => could_be_better("scrub", "the blocks were never verified", advice),
        };
    };
    let days = now.saturating_sub(report.ended_at.unix()) / 86_400;
    if days > SCRUB_INTERVAL_DAYS {
        return could_be_better("scrub", format!("the last one was {days} days ago"), advice);
    }
    well("scrub", format!("the last one was {days} days ago"))
}

/// Whether the file system of the pool has room for what the pool may become.
fn directory(pool: &PoolStatus) -> Option<Examination> {
    // The directory may be out of sight for this user; then there is nothing to say.
    let found = statvfs(Path::new(&pool.dir)).ok()?;
    let free = found.blocks_available().saturating_mul(found.fragment_size());
    Some(room(pool, free))
}

fn room(pool: &PoolStatus, free: u64) -> Examination {
    let growth = pool.max_bytes.saturating_sub(pool.file_bytes);
    let dir = &pool.dir;
    if free >= growth {
        return well("file system", format!("{} free in {dir}", human(free)));
    }
    let message =
        format!("{} free in {dir}, and the pool may grow by {}", human(free), human(growth));
    let advice = "make room there, or lower the limit: rowctl pool resize SIZE";
    // A limit beyond the file system is a choice; that it is about to be reached is a problem.
    if free < FREE_MIN {
        ill("file system", message, advice)
    } else {
        could_be_better("file system", message, advice)
    }
}

fn table(examinations: &[Examination], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("SUBJECT"),
        Heading::Left("STATE"),
        Heading::Left("FINDING"),
        Heading::Left("ADVICE"),
    ]);
    for one in examinations {
        let advice = one.advice.clone().unwrap_or_default();
        let state = match one.state {
            State::Ok => "ok".into(),
            State::Advice => "advice".into(),
            State::Problem => Text::Alarm("problem".to_owned()),
        };
        columns.row([one.subject.into(), state, one.message.clone().into(), advice.into()]);
    }
    columns.render(output)
}

#[cfg(test)]
mod tests {
    use super::check::tests::healthy;
    use super::*;
    use rowd_proto::{ScrubReport, Time};

    #[test]
    fn a_healthy_pool_needs_nothing() {
        let (started_at, ended_at) = (Time::from_unix(1000), Time::from_unix(2000));
        let report = ScrubReport { started_at, ended_at, bytes: 1, bad: Vec::new() };
        let pool = PoolStatus { last_scrub: Some(report), ..healthy() };
        let seen = pool_facts(&pool, 3000);
        assert!(seen.iter().all(|one| one.state == State::Ok), "{seen:?}");
        let later = pool_facts(&pool, 2000 + 31 * 86_400);
        assert_eq!(later.iter().filter(|one| one.state == State::Advice).count(), 1, "{later:?}");
    }

    #[test]
    fn every_finding_comes_with_advice() {
        let pool = PoolStatus {
            stopped: Some("x".to_owned()),
            corrupt_blocks: 1,
            healed_blocks: 0,
            used_bytes: 1 << 40,
            journal_used_bytes: 64 << 20,
            ..healthy()
        };
        let seen = pool_facts(&pool, 0);
        let ill: Vec<&Examination> = seen.iter().filter(|one| one.state != State::Ok).collect();
        assert_eq!(ill.len(), 5, "{ill:?}");
        assert!(ill.iter().all(|one| one.advice.is_some()));
    }

    #[test]
    fn a_limit_beyond_the_file_system_is_noticed() {
        let pool = healthy();
        let state = |free: u64| room(&pool, free).state;
        assert_eq!(state(1 << 40), State::Ok);
        assert_eq!(state(1 << 35), State::Advice);
        assert_eq!(state(1 << 29), State::Problem);
    }

    #[test]
    fn a_daemon_for_kernel_devices_is_told_what_it_lacks() {
        let direct = PoolStatus { io_mode: "direct".to_owned(), ..healthy() };
        let seen = memory(&direct);
        assert_eq!(seen.state, State::Advice);
        assert!(seen.message.contains("flusher") && seen.message.contains("locked"), "{seen:?}");
        let kept =
            PoolStatus { io_flusher: true, memory_locked: true, oom_score_adj: -1000, ..direct };
        assert_eq!(memory(&kept).state, State::Ok);
        assert_eq!(memory(&healthy()).state, State::Ok, "nobody asked for it");
    }

    #[test]
    fn another_version_is_noticed() {
        assert_eq!(versions(env!("CARGO_PKG_VERSION")).state, State::Ok);
        assert_eq!(versions("99.0.0").state, State::Problem);
    }
}
