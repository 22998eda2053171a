//! Copies beside busy clients: they let clients go first, and come to their end all the same.
//!
//! Absent: how much clients keep, which depends on the machine (`rowd-bench --only copy`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rowd_tests::client::Client;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::wait;
use serde_json::Value;

use super::copies::{contents, copied, id, noise, url, write};

/// What a metric says that has no labels.
fn metric(daemon: &Daemon, name: &str) -> f64 {
    let text = daemon.ctl(&["metrics"]);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}

fn waited(daemon: &Daemon) -> f64 {
    metric(daemon, "rowd_copy_wait_seconds_total")
}

/// Does something while a client writes one block after the other to the disk `live`.
fn beside_a_client<T>(daemon: &Daemon, work: impl FnOnce() -> T) -> T {
    let (end, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client::connect(&daemon.nbd_socket(), "live");
            while !end.load(Ordering::Relaxed) {
                let block = written.fetch_add(1, Ordering::Relaxed) % 1024;
                client.write(block * 4096, &[1; 4096]);
            }
            client.disconnect();
        });
        wait::until("a busy client", || (written.load(Ordering::Relaxed) > 500).then_some(()));
        let done = work();
        end.store(true, Ordering::Relaxed);
        done
    })
}

fn with_live_disk(config: &str) -> Daemon {
    let daemon = Setup::default().config(config).start();
    std::fs::create_dir(daemon.file("vault")).unwrap();
    // So that a copy takes a while, and clients are looked at more than once, however busy this machine is.
    daemon.ctl(&["repo", "add", "backup", &url(&daemon), "--bandwidth", "16MiB"]);
    for disk in ["data", "live"] {
        daemon.ctl(&["disk", "create", disk, "--size", "64MiB"]);
    }
    daemon
}

/// Promise: a copy never waits where nobody is disturbed; beside a busy client it waits, and arrives whole.
#[test]
fn copies_let_busy_clients_go_first_and_arrive_all_the_same() {
    let daemon = with_live_disk(SMALL);
    write(&daemon, "data", 0, &noise(1, 40 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    copied(&daemon, "data@one", "backup");
    assert!(waited(&daemon) == 0.0, "{}", waited(&daemon));
    write(&daemon, "data", 0, &noise(2, 40 << 20));
    daemon.ctl(&["snapshot", "create", "data", "two"]);
    let second = beside_a_client(&daemon, || copied(&daemon, "data@two", "backup"));
    assert!(waited(&daemon) > 0.0);
    daemon.ctl(&["copy", "verify", id(&second)]);
    daemon.ctl(&["disk", "create", "again", "--from", id(&second), "--full"]);
    assert!(contents(&daemon, "again", 64 << 20)[..40 << 20] == noise(2, 40 << 20)[..]);
    // A copy of a copy gives way too.
    std::fs::create_dir(daemon.file("other")).unwrap();
    let other = format!("file://{}", daemon.path("other"));
    daemon.ctl(&["repo", "add", "other", &other, "--bandwidth", "16MiB"]);
    let before = waited(&daemon);
    let third = beside_a_client(&daemon, || copied(&daemon, id(&second), "other"));
    assert!(waited(&daemon) > before);
    daemon.ctl(&["copy", "verify", id(&third)]);
}

/// Promise: who has said that copies may cost everything has copies that wait for nobody.
#[test]
fn copies_that_may_cost_everything_wait_for_nobody() {
    let daemon = with_live_disk(&format!("{SMALL}\n[background]\ncopy_cost = 100\n"));
    write(&daemon, "data", 0, &noise(1, 40 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    beside_a_client(&daemon, || copied(&daemon, "data@one", "backup"));
    assert!(waited(&daemon) == 0.0, "{}", waited(&daemon));
}

/// Promise: a chunk that waits for the bandwidth of its repository keeps no other copy from its turn.
#[test]
fn a_copy_to_a_slow_repository_holds_up_no_other() {
    let daemon = with_live_disk(SMALL);
    std::fs::create_dir(daemon.file("far")).unwrap();
    let far = format!("file://{}", daemon.path("far"));
    // The first chunk takes four minutes.
    daemon.ctl(&["repo", "add", "far", &far, "--bandwidth", "16KiB"]);
    write(&daemon, "data", 0, &noise(1, 24 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let slow = daemon.json(&["snapshot", "copy", "data@one", "--to", "far"]);
    let job = || {
        let jobs = daemon.json(&["job", "list"]);
        let is_its = |job: &&Value| job["object"] == slow["id"];
        jobs.as_array().unwrap().iter().find(is_its).cloned()
    };
    wait::until("the slow copy to begin", || job().filter(|job| job["total"] != 0));
    beside_a_client(&daemon, || copied(&daemon, "data@one", "backup"));
    assert_eq!(job().unwrap()["done"], 0, "the fast copy waited for the slow one");
    daemon.ctl(&["copy", "delete", id(&slow), "--yes"]);
}
