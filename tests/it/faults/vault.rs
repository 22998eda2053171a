//! Scenarios of the vault: what is under way when it is given up.
//!
//! Invariants: as in `wire.rs`.
//! Absent: kills, which `vault/endings.rs` has.

use std::fs;
use std::sync::atomic::Ordering;

use nix::sys::signal::Signal;
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::wait;

use super::Outcome;
use super::wire::{FAULTY, seeded};
use crate::vault::copies::{copied, id, noise, url, write};
use crate::vault::proxy::{Mode, Proxy};
use crate::vault::server::{BUCKET, S3Server, SECRET, files, key_file};

/// H12: the daemon is told to end while a chunk of a disk is waited for, of a server that does not answer.
pub fn an_end_while_a_store_is_waited_for() -> Outcome {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address);
    let mut daemon = seeded(Setup::default().program(FAULTY)).start();
    let keys = format!("file:{}", key_file(&daemon, SECRET, 0o600));
    let (bucket, endpoint) = (format!("s3://{BUCKET}/host"), proxy.endpoint());
    let add = ["repo", "add", "s3", &bucket, "--endpoint", &endpoint, "--credentials", &keys];
    daemon.ctl(&[&add[..], &["--bandwidth", "4MiB"]].concat());
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    write(&daemon, "data", 0, &noise(1, 24 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let copy = copied(&daemon, "data@one", "s3");
    daemon.ctl(&["disk", "create", "again", "--from", id(&copy)]);
    daemon.kill();
    proxy.set(Mode::Held);
    let before = proxy.connections.load(Ordering::SeqCst);
    daemon.start();
    wait::until("a question to the server", || {
        (proxy.connections.load(Ordering::SeqCst) > before).then_some(())
    });
    daemon.signal(Signal::SIGTERM);
    let status = daemon.wait_ended();
    match status.success() {
        true => Ok(()),
        false => Err(format!("the daemon ended with {status}")),
    }
}

/// H13: a copy is cancelled while chunks of it wait for the bandwidth limit.
pub fn a_copy_cancelled_while_chunks_wait() -> Outcome {
    let daemon = seeded(Setup::default().program(FAULTY)).start();
    let vault = daemon.file("vault");
    fs::create_dir(&vault).map_err(|e| e.to_string())?;
    daemon.ctl(&["repo", "add", "slow", &url(&daemon), "--bandwidth", "2MiB"]);
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    write(&daemon, "data", 0, &noise(1, 40 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let begun = daemon.json(&["snapshot", "copy", "data@one", "--to", "slow"]);
    wait::until("the first chunk", || {
        let all = files(&vault);
        all.iter().any(|file| file.display().to_string().contains("chunks/")).then_some(())
    });
    daemon.ctl(&["copy", "delete", id(&begun), "--yes"]);
    wait::until("the end of the copy", || {
        let jobs = daemon.json(&["job", "list"]);
        let over = jobs.as_array().expect("a list").iter().all(|job| job["state"] != "running");
        over.then_some(())
    });
    // Whoever still could write is waited for.
    wait::until("the end of all senders", || (senders(&daemon) == 0).then_some(()));
    match files(&vault).len() {
        1 => Ok(()),
        left => Err(format!("{} objects of a cancelled copy are left", left - 1)),
    }
}

/// Threads of the daemon that send chunks.
fn senders(daemon: &Daemon) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("the daemon runs");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "vault-part").count()
}
