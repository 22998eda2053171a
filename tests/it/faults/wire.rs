//! Scenarios that need the daemon: system calls seen from outside, and the wire.
//!
//! Invariants: the daemon is the one with faults; strace makes or counts the failures, and the process
//! started is the daemon itself, so that its pid is the one the harness ends.
//! Absent: judging; `faults.rs` runs each with and without its guard.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use rowd::nbd::wire::command;
use rowd_tests::client::{Ask, Client};
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::wait;
use tempfile::TempDir;

use super::Outcome;

pub const FAULTY: &str = env!("CARGO_BIN_EXE_rowd-faulty");
const PAGE: [u8; 4096] = [7; 4096];
/// The sync that fails: the daemon has started by then, and a loop of flushes soon gets there.
const FAILING_SYNC: usize = 60;

pub fn seeded(setup: Setup) -> Setup {
    match std::env::var("ROWD_SEEDED_FAULT") {
        Ok(name) => setup.env("ROWD_SEEDED_FAULT", &name),
        Err(_) => setup,
    }
}

/// A daemon under strace, and where the trace goes.
fn traced(options: &str) -> Result<(TempDir, PathBuf, Daemon), String> {
    let found = Command::new("strace").arg("--version").output();
    found.map_err(|e| format!("strace does not run ({e}): install the package strace"))?;
    let home = tempfile::tempdir().map_err(|e| e.to_string())?;
    let (script, trace) = (home.path().join("traced"), home.path().join("trace"));
    // -D: strace is the grandchild, the daemon keeps the pid that the harness knows.
    let text = format!(
        "#!/bin/sh\nexec strace -D -f -y -o {} {options} {FAULTY} \"$@\"\n",
        trace.display()
    );
    fs::write(&script, text).map_err(|e| e.to_string())?;
    let mode = fs::Permissions::from_mode(0o700);
    fs::set_permissions(&script, mode).map_err(|e| e.to_string())?;
    let daemon = seeded(Setup::default().program(&script)).start();
    Ok((home, trace, daemon))
}

fn with_disk(daemon: &Daemon) -> Client {
    daemon.ctl(&["disk", "create", "disk", "--size", "1MiB"]);
    Client::connect(&daemon.nbd_socket(), "disk")
}

fn ask(client: &mut Client, command: u16, payload: &'static [u8]) -> Result<u32, String> {
    let length = u32::try_from(payload.len()).expect("short");
    let ask = Ask { command, length, payload, ..Ask::default() };
    Ok(client.ask(ask).error)
}

/// The syncs of the pool file in a trace that have returned success.
fn pool_syncs(trace: &PathBuf) -> Result<usize, String> {
    let text = fs::read_to_string(trace).map_err(|e| e.to_string())?;
    Ok(text.lines().filter(|line| line.contains("fdatasync(") && line.contains("/pool>")).count())
}

/// H1: a flush is answered after an `fdatasync` of the pool file, and not without one.
pub fn a_flush_reaches_the_device() -> Outcome {
    let (_home, trace, daemon) = traced("-e trace=fdatasync")?;
    let mut client = with_disk(&daemon);
    let before = pool_syncs(&trace)?;
    for _ in 0..5 {
        ask(&mut client, command::WRITE, &PAGE)?;
        ask(&mut client, command::FLUSH, &[])?;
    }
    // The line is written by another process, a moment later.
    let seen = wait::try_until(wait::PATIENCE / 12, || {
        pool_syncs(&trace).ok().filter(|now| *now >= before + 5)
    });
    seen.map(|_| ()).ok_or_else(|| "five flushes were answered without five syncs".to_owned())
}

/// H8: many requests in one batch; each answer names the request it is for.
pub fn each_reply_names_its_request() -> Outcome {
    let daemon = seeded(Setup::default().program(FAULTY)).start();
    let mut client = with_disk(&daemon);
    let mut left: Vec<u64> = (1000..1016).collect();
    for cookie in &left {
        let offset = (cookie - 1000) * 4096;
        let ask = Ask {
            command: command::WRITE,
            cookie: *cookie,
            offset,
            length: 4096,
            ..Ask::default()
        };
        client.send(&Ask { payload: &PAGE, ..ask }).map_err(|e| e.to_string())?;
    }
    while !left.is_empty() {
        let answer = client.receive(0).map_err(|e| e.to_string())?;
        let at = left.iter().position(|cookie| *cookie == answer.cookie);
        let at = at.ok_or_else(|| format!("an answer for {}, asked once", answer.cookie))?;
        left.swap_remove(at);
    }
    Ok(())
}

/// H9: one `fdatasync` fails; from then on no flush succeeds, although the next sync would.
pub fn a_failed_sync_is_never_forgotten() -> Outcome {
    let options = format!("-e trace=fdatasync -e inject=fdatasync:error=EIO:when={FAILING_SYNC}");
    let (_home, trace, daemon) = traced(&options)?;
    let mut client = with_disk(&daemon);
    let mut failed = None;
    for round in 0..4 * FAILING_SYNC {
        let wrote = ask(&mut client, command::WRITE, &PAGE)?;
        let flushed = ask(&mut client, command::FLUSH, &[])?;
        if let Some(first) = failed.filter(|_| flushed == 0) {
            return Err(format!("flush {round} succeeded, although flush {first} had failed"));
        }
        if wrote != 0 || flushed != 0 {
            failed = failed.or(Some(round));
        }
        if failed.is_some_and(|first| round > first + 20) {
            return Ok(());
        }
    }
    let text = fs::read_to_string(&trace).map_err(|e| e.to_string())?;
    let injected = text.contains("(INJECTED)");
    Err(format!("no flush failed (a sync was made to fail: {injected})"))
}

/// H10: the directory that holds a new pool file is synced, or its name could be lost.
pub fn a_new_pool_is_in_its_directory() -> Outcome {
    let (_home, trace, daemon) = traced("-e trace=fsync,/^rename")?;
    let synced = format!("<{}>", daemon.dir().display());
    let seen = wait::try_until(wait::PATIENCE / 12, || {
        let text = fs::read_to_string(&trace).ok()?;
        // Only a sync behind the renaming covers it.
        let renamed = text.find("pool.new\"")?;
        text[renamed..].lines().find(|l| l.contains("fsync(") && l.contains(&synced)).map(|_| ())
    });
    seen.ok_or_else(|| "the pool's directory was not synced after the pool was made".to_owned())
}
