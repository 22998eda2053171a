//! Snapshots that are only in a repository, read where they are.
//!
//! Absent: disks of them (`lazy.rs`), and returning to them (`returning.rs`).

use std::fs;

use rowd::nbd::wire::{chunk, command};
use rowd_tests::client::{Ask, Client};
use rowd_tests::process::{Daemon, Setup};
use serde_json::{Value, json};

use super::copies::{MIB, contents, noise, url, write};
use super::life::gone;
use super::proxy::{Mode, Proxy};
use super::server::{S3Server, add};

const SIZE: u64 = 64 * MIB;

/// A daemon with `data@one`, which is only in the repository, and a disk `other`.
struct World {
    daemon: Daemon,
    proxy: Proxy,
    first: Vec<u8>,
    _server: S3Server,
}

fn world() -> World {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address);
    let daemon = Daemon::new();
    add(&daemon, "s3", "host", &proxy.endpoint());
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    daemon.ctl(&["disk", "create", "other", "--size", "64MiB"]);
    write(&daemon, "other", 0, &noise(5, 1 << 20));
    write(&daemon, "data", 0, &noise(1, 12 << 20));
    write(&daemon, "data", 40 * MIB, &noise(2, 4096));
    let first = contents(&daemon, "data", SIZE);
    daemon.ctl(&["snapshot", "create", "data", "one", "--repo", "s3"]);
    gone(&daemon, "data@one");
    write(&daemon, "data", 0, &noise(3, 4 << 20));
    daemon.wait_reclaimed();
    World { daemon, proxy, first, _server: server }
}

fn ask(command: u16, offset: u64, length: u32, cookie: u64) -> Ask<'static> {
    Ask { command, offset, length, cookie, ..Ask::default() }
}

/// Promise: such a snapshot is an export like any other: read-only, byte by byte what it was, its holes told; reading
/// it stores nothing.
#[test]
fn a_snapshot_in_a_repository_is_an_export() {
    let world = world();
    let daemon = &world.daemon;
    let used = daemon.status("used_bytes");
    assert!(contents(daemon, "data@one", SIZE) == world.first);
    let socket = daemon.nbd_socket();
    let mut client = Client::with_contexts(&socket, "data@one", &["base:allocation"]);
    assert_eq!(client.size, SIZE);
    let answer = client.ask(ask(command::BLOCK_STATUS, 0, 1 << 26, 1));
    let (kind, payload) = &answer.chunks[0];
    assert_eq!((answer.error, *kind), (0, chunk::BLOCK_STATUS));
    let numbers: Vec<u32> = payload[4..]
        .chunks_exact(4)
        .map(|four| u32::from_be_bytes(four.try_into().unwrap()))
        .collect();
    let mib = 1 << 20;
    assert_eq!(numbers, [12 * mib, 0, 28 * mib, 3, 4096, 0, 24 * mib - 4096, 3]);
    assert_ne!(client.ask(Ask { payload: &[1; 4096], ..ask(command::WRITE, 0, 4096, 2) }).error, 0);
    let error = daemon.json_error(21, &["snapshot", "delete", "data@one", "--yes"]);
    assert!(error["message"].as_str().unwrap().contains("export data@one"), "{error}");
    client.disconnect();
    let file = daemon.path("file");
    daemon.ctl(&["disk", "export", "data@one", &file]);
    assert!(fs::read(&file).unwrap() == world.first);
    assert_eq!(daemon.status("used_bytes"), used, "nothing is stored");
    assert_eq!(daemon.json(&["snapshot", "show", "data@one"])["presence"], json!(["repository"]));
    let mut client = Client::connect(&socket, "data@one");
    assert!(client.read(0, 4096) == world.first[..4096]);
    daemon.ctl(&["snapshot", "delete", "data@one", "--yes", "--force"]);
    assert!(client.is_closed_by_server());
    assert!(Client::try_connect(&socket, "data@one", true, &[]).is_err());
}

/// Promise: opening it asks no repository; who waits for one keeps nobody else waiting.
#[test]
fn a_reader_that_waits_for_the_repository_holds_up_nobody() {
    let world = world();
    let socket = world.daemon.nbd_socket();
    world.proxy.set(Mode::Held);
    let mut reader = Client::with_contexts(&socket, "data@one", &["base:allocation"]);
    // More than there are helpers.
    for cookie in 0..40 {
        reader.send(&ask(command::READ, cookie * 65536, 4096, cookie)).unwrap();
        reader.send(&ask(command::BLOCK_STATUS, cookie * 65536, 4096, 100 + cookie)).unwrap();
    }
    let mut other = Client::with_contexts(&socket, "other", &["base:allocation"]);
    assert!(other.read(0, 1 << 20) == noise(5, 1 << 20));
    assert_eq!(other.ask(ask(command::BLOCK_STATUS, 0, 1 << 20, 1)).error, 0);
    other.write(8192, &noise(6, 4096));
    other.flush();
    other.disconnect();
    let mut second = Client::connect(&socket, "data@one");
    second.send(&ask(command::READ, 0, 4096, 1)).unwrap();
    world.daemon.ctl(&["snapshot", "create", "other", "beside", "--local"]);
    world.proxy.set(Mode::Passes);
    for _ in 0..80 {
        assert_eq!(reader.receive(4096).unwrap().error, 0);
    }
    assert_eq!(second.receive(4096).unwrap().error, 0);
    reader.disconnect();
    second.disconnect();
}

/// Promise: while the repository does not answer, what needs it is an I/O error, and nothing else is.
#[test]
fn a_repository_that_is_down_is_an_error_of_what_needs_it() {
    let world = world();
    let socket = world.daemon.nbd_socket();
    let mut client = Client::connect(&socket, "data@one");
    assert!(client.read(0, 4096) == world.first[..4096]);
    world.proxy.set(Mode::Down);
    assert!(client.read(8192, 4096) == world.first[8192..12288], "its chunk is in memory");
    assert!(client.read(30 * MIB, 4096) == [0; 4096], "the copy has nothing there");
    assert_ne!(client.ask(ask(command::READ, 40 * MIB, 4096, 1)).error, 0);
    let mut other = Client::connect(&socket, "other");
    assert!(other.read(0, 4096) == noise(5, 4096));
    let mut late = Client::connect(&socket, "data@one");
    assert!(late.read(0, 4096) == world.first[..4096], "they share what is in memory");
    world.proxy.set(Mode::Passes);
    assert!(client.read(40 * MIB, 4096) == noise(2, 4096));
    for client in [client, other, late] {
        client.disconnect();
    }
}

/// Promise: the snapshot of an encrypted disk is read with its key, after a start too.
#[test]
fn an_encrypted_snapshot_in_a_repository_is_read_with_its_key() {
    let mut daemon = Setup::default().master_key(&"1".repeat(64)).start();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB", "--encrypted"]);
    write(&daemon, "data", 0, &noise(1, 9 << 20));
    let first = contents(&daemon, "data", SIZE);
    daemon.ctl(&["snapshot", "create", "data", "one", "--repo", "backup"]);
    gone(&daemon, "data@one");
    write(&daemon, "data", 0, &noise(2, 9 << 20));
    assert!(contents(&daemon, "data@one", SIZE) == first);
    daemon.crash();
    assert!(contents(&daemon, "data@one", SIZE) == first);
    assert_eq!(daemon.json(&["disk", "show", "data"])["filling"], Value::Null);
}
