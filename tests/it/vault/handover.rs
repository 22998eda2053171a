//! Disks that are filled while they are used, over a restart that hands the connections over.
//!
//! Absent: kernel devices, which the VM tests have.

use rowd::nbd::wire::command;
use rowd_tests::client::{Ask, Client};
use rowd_tests::manager::Manager;
use rowd_tests::process::Setup;
use rowd_tests::wait;
use serde_json::json;

use super::copies::{copied, id, noise, write};
use super::proxy::{Mode, Proxy};
use super::server::{S3Server, add};

/// Promise: what waits for a repository while the daemon is restarted is answered by the next one, once and right: as
/// many reads as may wait, a write to a part of a block, zeros and a trim.
#[test]
fn requests_that_wait_for_a_repository_are_answered_after_a_restart() {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address);
    let mut manager = Manager::start(Setup::default());
    let daemon = manager.daemon();
    add(daemon, "s3", "host", &proxy.endpoint());
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    let mut expected = noise(1, 24 << 20);
    write(daemon, "data", 0, &expected);
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let copy = copied(daemon, "data@one", "s3");
    proxy.set(Mode::Slow);
    daemon.ctl(&["disk", "create", "again", "--from", id(&copy)]);
    proxy.set(Mode::Held);
    let mut client = Client::connect(&daemon.nbd_socket(), "again");
    let payload = [7; 512];
    let read = |block: u64| Ask {
        command: command::READ,
        cookie: block,
        offset: block * 24 * 4096,
        length: 4096,
        ..Ask::default()
    };
    let change = |command, cookie, offset, payload, length| Ask {
        command,
        cookie,
        offset,
        length,
        payload,
        ..Ask::default()
    };
    let changes = [
        change(command::WRITE, 1000, 5 * 4096 + 512, &payload[..], 512),
        change(command::WRITE_ZEROES, 1001, 9 * 4096 + 100, &[], 5000),
        change(command::TRIM, 1002, 13 * 4096 + 1, &[], 8192),
    ];
    // From the second block of those on: they and the changes do not meet.
    let reads: Vec<Ask<'_>> = (1..241).map(read).collect();
    for ask in reads.iter().chain(&changes) {
        client.send(ask).unwrap();
    }
    // Told by the job: the daemon has met what it waits for.
    wait::until("a job that fills the disk", || {
        let jobs = daemon.json(&["job", "list"]);
        jobs.as_array().unwrap().iter().any(|job| job["kind"] == "fetch").then_some(())
    });
    manager.restart();
    assert_eq!(manager.stored(), 0, "what was taken over is out of the store");
    proxy.set(Mode::Passes);
    let mut open: Vec<u64> = reads.iter().chain(&changes).map(|ask| ask.cookie).collect();
    while !open.is_empty() {
        // Structured replies say themselves how long they are.
        let answer = client.receive(0).unwrap();
        let at = open.iter().position(|cookie| *cookie == answer.cookie);
        open.swap_remove(at.unwrap_or_else(|| panic!("{} was not asked", answer.cookie)));
        assert_eq!(answer.error, 0, "{answer:?}");
        if answer.cookie < 1000 {
            let from = usize::try_from(answer.cookie).unwrap() * 24 * 4096;
            assert!(answer.chunks[0].1[8..] == expected[from..from + 4096], "{}", answer.cookie);
        }
    }
    expected[5 * 4096 + 512..5 * 4096 + 1024].fill(7);
    expected[9 * 4096 + 100..9 * 4096 + 5100].fill(0);
    assert!(client.read(0, 13 * 4096) == expected[..13 * 4096]);
    client.disconnect();
    let daemon = manager.daemon();
    wait::until("the end of the filling", || {
        daemon.json(&["disk", "show", "again"])["filling"].is_null().then_some(())
    });
    assert_eq!(daemon.json(&["disk", "show", "again"])["size"], json!(64 << 20));
}
