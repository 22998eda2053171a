//! Disks that are used while they are filled from a copy: at once, right in every byte, and whole in the end.
//!
//! Absent: clients that write meanwhile (`lazy_clients.rs`).

use std::fs;
use std::time::{Duration, Instant};

use rowd::nbd::wire::{chunk, command};
use rowd_tests::client::{Ask, Client};
use rowd_tests::mount::Device;
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::{tool, wait};
use serde_json::{Value, json};

use super::copies::{MIB, contents, copied, id, noise, write};
use super::proxy::{Mode, Proxy};
use super::server::{S3Server, add};

/// What the data of [`world`] is made of.
pub const DATA: u64 = 24 * MIB;
pub const SIZE: u64 = 64 * MIB;

/// A daemon with a copy of `data@one` behind a proxy: 24 MiB at the start, and single blocks behind.
pub struct World {
    pub daemon: Daemon,
    pub proxy: Proxy,
    pub copy: String,
    _server: S3Server,
}

pub fn world_with(setup: Setup) -> World {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address);
    let daemon = setup.start();
    add(&daemon, "s3", "host", &proxy.endpoint());
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    write(&daemon, "data", 0, &noise(3, 24 << 20));
    for at in 0..40 {
        write(&daemon, "data", 30 * MIB + at * 100 * 4096, &noise(at + 50, 4096));
    }
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let copy = id(&copied(&daemon, "data@one", "s3")).to_owned();
    World { daemon, proxy, copy, _server: server }
}

pub fn world() -> World {
    world_with(Setup::default())
}

impl World {
    #[track_caller]
    pub fn make(&self, name: &str) -> Value {
        self.daemon.json(&["disk", "create", name, "--from", &self.copy])
    }

    pub fn client(&self, export: &str) -> Client {
        Client::connect(&self.daemon.nbd_socket(), export)
    }
}

#[track_caller]
pub fn wait_filled(daemon: &Daemon, disk: &str) {
    wait::until("the end of the filling", || {
        daemon.json(&["disk", "show", disk])["filling"].is_null().then_some(())
    });
}

fn read(offset: u64, length: u32, cookie: u64) -> Ask<'static> {
    Ask { command: command::READ, offset, length, cookie, ..Ask::default() }
}

/// Promise: a disk of a copy is an ordinary one from the first second, and the copy can go when it is filled.
#[test]
fn a_disk_of_a_copy_is_read_at_once_and_is_an_ordinary_one_in_the_end() {
    let world = world();
    let made = world.make("again");
    assert_eq!(
        (&made["filling"]["copy"], &made["filling"]["usable"]),
        (&json!(world.copy), &json!(true))
    );
    let expected = contents(&world.daemon, "data@one", SIZE);
    assert!(contents(&world.daemon, "again", SIZE) == expected);
    wait_filled(&world.daemon, "again");
    let daemon = &world.daemon;
    daemon.ctl(&["copy", "delete", &world.copy, "--yes"]);
    assert!(contents(daemon, "again", SIZE) == expected);
    let shown = daemon.json(&["disk", "show", "again"]);
    assert_eq!(shown["mapped_bytes"], DATA + 40 * 4096);
    daemon.ctl(&["snapshot", "create", "again", "own"]);
    daemon.ctl(&["scrub", "--wait"]);
}

/// Promise: the first read is answered within 100 ms of the creation, whatever the size of the disk.
#[test]
fn the_first_read_of_a_disk_of_64_tib_comes_within_100_ms() {
    let server = S3Server::start();
    let daemon = Daemon::new();
    add(&daemon, "s3", "host", &server.endpoint());
    daemon.ctl(&["disk", "create", "data", "--size", "64TiB"]);
    // Scattered, so that the table is large for what it holds.
    let mut client = Client::connect(&daemon.nbd_socket(), "data");
    let block = noise(1, 4096);
    for at in 0..4000u64 {
        client.write(at * 16 * 1024 * MIB, &block);
    }
    client.disconnect();
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let copy = copied(&daemon, "data@one", "s3");
    // The best of several: other tests run beside this one.
    let times: Vec<Duration> = (0..6)
        .map(|number| {
            let name = format!("again{number}");
            daemon.ctl(&["disk", "create", &name, "--from", id(&copy)]);
            let began = Instant::now();
            let mut client = Client::connect(&daemon.nbd_socket(), &name);
            assert!(client.read(3999 * 16 * 1024 * MIB, 4096) == block);
            let took = began.elapsed();
            client.disconnect();
            took
        })
        .collect();
    println!("first reads: {times:?}");
    assert!(times.iter().min().unwrap() < &Duration::from_millis(100), "{times:?}");
}

/// Promise: who waits for the repository keeps nobody else waiting: not on another connection, not on the same.
#[test]
fn a_read_that_waits_for_the_repository_holds_up_no_other_request() {
    let world = world();
    world.make("again");
    let mut client = world.client("again");
    let first = client.read(0, 4096);
    world.proxy.set(Mode::Held);
    // More than there are helpers, and more than one connection may hand to them.
    for cookie in 1..=120 {
        client.send(&read(30 * MIB + (cookie % 40) * 100 * 4096, 4096, cookie)).unwrap();
    }
    client.send(&read(0, 4096, 1000)).unwrap();
    let answer = client.receive(4096).unwrap();
    // What the background has fetched already is answered too; nothing of it comes after the last.
    let mut answered = vec![answer.cookie];
    while answered.last() != Some(&1000) {
        let answer = client.receive(4096).unwrap();
        assert_eq!(answer.error, 0);
        answered.push(answer.cookie);
    }
    let mut other = world.client("again");
    assert!(other.read(0, 4096) == first);
    other.write(0, &noise(9, 4096));
    other.flush();
    other.disconnect();
    world.proxy.set(Mode::Passes);
    for _ in answered.len()..121 {
        assert_eq!(client.receive(4096).unwrap().error, 0);
    }
    client.disconnect();
}

/// Promise: trouble with the repository is an I/O error of the requests that need it, and of no others; it is told,
/// and it passes.
#[test]
fn a_repository_that_is_down_fails_what_needs_it_until_it_is_back() {
    let world = world();
    world.proxy.set(Mode::Down);
    // Its header has been read when the copy was made; the creation reads it again.
    world.daemon.json_error(24, &["disk", "create", "never", "--from", &world.copy]);
    world.proxy.set(Mode::Passes);
    world.make("again");
    let mut client = world.client("again");
    let first = client.read(0, 4096);
    world.proxy.set(Mode::Down);
    let mut late = world.client("again");
    late.send(&read(60 * MIB, 4096, 1)).unwrap();
    let zeros = late.receive(4096).unwrap();
    assert_eq!(zeros.error, 0, "what the copy does not have needs no repository");
    let missing = (0..40).map(|at| 30 * MIB + at * 100 * 4096);
    let failed = missing.clone().find(|offset| late.ask(read(*offset, 4096, 2)).error != 0);
    if let Some(offset) = failed {
        assert!(client.read(0, 4096) == first, "what is here is read");
        client.write(offset, &noise(8, 4096));
        assert!(client.read(offset, 4096) == noise(8, 4096), "what is written is read");
        let events = world.daemon.json(&["events"]).to_string();
        assert!(events.contains("fill.trouble"), "{events}");
    }
    world.proxy.set(Mode::Passes);
    wait_filled(&world.daemon, "again");
    if failed.is_some() {
        let events = world.daemon.json(&["events"]).to_string();
        assert!(events.contains("fill.recover"), "{events}");
    }
    let mut expected = contents(&world.daemon, "data@one", SIZE);
    if let Some(offset) = failed {
        let at = usize::try_from(offset).unwrap();
        expected[at..at + 4096].copy_from_slice(&noise(8, 4096));
    }
    client.disconnect();
    late.disconnect();
    assert!(contents(&world.daemon, "again", SIZE) == expected);
}

/// Promise: what cannot be done to a disk without all its contents is refused with how far it is; the rest works.
#[test]
fn every_verb_works_on_a_disk_that_is_being_filled_or_says_why_not() {
    let world = world();
    let daemon = &world.daemon;
    world.proxy.set(Mode::Slow);
    world.make("again");
    let shown = daemon.json(&["disk", "show", "again"]);
    let job = shown["filling"]["job"].as_str().unwrap();
    for (code, args) in [
        (15, &["disk", "rollback", "--undo", "again", "--yes"][..]),
        (15, &["job", "cancel", job]),
        (21, &["copy", "delete", &world.copy, "--yes"]),
        (21, &["repo", "remove", "s3", "--yes"]),
    ] {
        daemon.json_error(code, args);
    }
    daemon.ctl(&["snapshot", "create", "again", "early"]);
    daemon.ctl(&["snapshot", "create", "again", "later"]);
    let diff = daemon.json_error(15, &["snapshot", "diff", "again@early", "again@later"]);
    assert!(diff["message"].as_str().unwrap().contains('%'), "{diff}");
    assert!(diff["hint"].as_str().unwrap().contains(job), "{diff}");
    daemon.ctl(&["disk", "reinit", "again", "--yes"]);
    daemon.ctl(&["disk", "rollback", "--undo", "again", "--yes"]);
    daemon.ctl(&["disk", "rename", "again", "other"]);
    daemon.ctl(&["disk", "resize", "other", "80MiB"]);
    daemon.ctl(&["disk", "resize", "other", "20MiB", "--yes"]);
    daemon.ctl(&["disk", "resize", "other", "64MiB"]);
    daemon.ctl(&["tag", "set", "other", "a=b"]);
    world.proxy.set(Mode::Passes);
    wait_filled(daemon, "other");
    let mut expected = contents(daemon, "data@one", SIZE);
    expected[20 << 20..].fill(0);
    assert!(contents(daemon, "other", SIZE) == expected, "what was cut off does not come back");
    world.make("gone");
    world.proxy.set(Mode::Held);
    let mut client = world.client("gone");
    client.send(&read(23 * MIB, 4096, 1)).unwrap();
    daemon.ctl(&["disk", "delete", "gone", "--yes", "--force"]);
    assert!(client.is_closed_by_server());
    world.proxy.set(Mode::Passes);
    daemon.wait_reclaimed();
}

/// Promise: block status tells what the disk has and what the copy has, and that zeros are zeros.
#[test]
fn block_status_counts_what_is_not_fetched_yet() {
    let world = world();
    world.proxy.set(Mode::Slow);
    world.make("again");
    world.proxy.set(Mode::Held);
    let socket = world.daemon.nbd_socket();
    let mut client = Client::with_contexts(&socket, "again", &["base:allocation"]);
    let status = |client: &mut Client, offset: u64, length: u32| {
        let ask = Ask { command: command::BLOCK_STATUS, offset, length, ..Ask::default() };
        let answer = client.ask(ask);
        assert_eq!(answer.error, 0);
        let (kind, payload) = &answer.chunks[0];
        assert_eq!(*kind, chunk::BLOCK_STATUS);
        let numbers = payload[4..].chunks_exact(4);
        let numbers: Vec<u32> =
            numbers.map(|four| u32::from_be_bytes(four.try_into().unwrap())).collect();
        numbers.chunks_exact(2).map(|pair| (pair[0], pair[1] == 0)).collect::<Vec<_>>()
    };
    world.proxy.set(Mode::Slow);
    client.trim(8 * MIB, 1 << 20);
    world.proxy.set(Mode::Held);
    client.write(26 * MIB, &noise(1, 4096));
    let (mib, block) = (1u32 << 20, 4096);
    assert_eq!(
        status(&mut client, 0, 31 * mib),
        [
            (8 * mib, true),
            (mib, false),
            (15 * mib, true),
            (2 * mib, false),
            (block, true),
            (4 * mib - block, false),
            (block, true),
            (99 * block, false),
            (block, true),
            (99 * block, false),
            (block, true),
            (mib - 201 * block, false)
        ]
    );
    client.disconnect();
    world.proxy.set(Mode::Passes);
}

/// Promise: a file system on such a disk mounts and is read while its chunks are still being fetched.
#[test]
fn ext4_mounts_while_chunks_are_still_being_fetched() {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address);
    let daemon = Daemon::new();
    add(&daemon, "s3", "host", &proxy.endpoint());
    daemon.ctl(&["disk", "create", "data", "--size", "256MiB"]);
    let device = Device::attach(&daemon, "data");
    tool::run("mkfs.ext4", &["-q", "-E", "nodiscard", device.path()]).ok();
    let mounted = device.mount("noatime");
    for number in 0..60u64 {
        let file = mounted.path().join(number.to_string());
        fs::write(file, noise(number, 1 << 20)).unwrap();
    }
    drop(mounted);
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let copy = copied(&daemon, "data@one", "s3");
    proxy.set(Mode::Slow);
    daemon.ctl(&["disk", "create", "again", "--from", id(&copy)]);
    let mounted = Device::attach(&daemon, "again").mount("noatime");
    assert!(!daemon.json(&["disk", "show", "again"])["filling"].is_null(), "it is not filled yet");
    assert!(fs::read(mounted.path().join("31")).unwrap() == noise(31, 1 << 20));
    fs::write(mounted.path().join("new"), noise(99, 3 << 20)).unwrap();
    assert!(!daemon.json(&["disk", "show", "again"])["filling"].is_null(), "it is not filled yet");
    proxy.set(Mode::Passes);
    for number in 0..60u64 {
        let found = fs::read(mounted.path().join(number.to_string())).unwrap();
        assert!(found == noise(number, 1 << 20), "file {number}");
    }
    let device = mounted.unmount();
    wait_filled(&daemon, "again");
    tool::run("e2fsck", &["-fn", device.path()]).ok();
    drop(device);
    let mounted = Device::attach(&daemon, "again").mount("noatime");
    assert!(fs::read(mounted.path().join("new")).unwrap() == noise(99, 3 << 20));
}

/// Promise: a copy that is damaged returns nothing wrong: what cannot be had is an error.
#[test]
fn a_damaged_chunk_is_an_error_to_who_needs_it_and_is_named() {
    let daemon = super::copies::daemon();
    write(&daemon, "data", 0, &noise(1, 9 << 20));
    daemon.ctl(&["snapshot", "create", "data", "one"]);
    let copy = copied(&daemon, "data@one", "backup");
    let chunks = super::server::files(&daemon.file("vault").join("chunks"));
    assert_eq!(chunks.len(), 3);
    for file in &chunks {
        let mut bytes = fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(file, bytes).unwrap();
    }
    daemon.ctl(&["disk", "create", "again", "--from", id(&copy)]);
    let mut client = Client::connect(&daemon.nbd_socket(), "again");
    for offset in [0, 5 * MIB, 8 * MIB] {
        assert_ne!(client.ask(read(offset, 4096, 7)).error, 0, "at {offset}");
    }
    assert!(client.read(20 * MIB, 4096) == vec![0; 4096]);
    let events = daemon.json(&["events"]).to_string();
    assert!(events.contains("fill.trouble") && events.contains("chunks/"), "{events}");
    client.disconnect();
    daemon.ctl(&["disk", "delete", "again", "--yes"]);
}
