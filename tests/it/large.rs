//! Large things: requests as large as a client may send, a pool on a block device, and one that is full and grows.
//!
//! Absent: performance (`tests/bench`).

use std::path::Path;

use rowd_tests::client::{Ask, Client};
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::tool;

const WRITE: u16 = 1;
const ENOSPC: u32 = 28;

const LARGEST: usize = 32 << 20;

/// A loop device over a file; detached at the end.
struct Loop(String);

impl Loop {
    fn attach(image: &Path) -> Loop {
        let image = image.to_str().unwrap();
        Loop(tool::run("losetup", &["--find", "--show", image]).ok().stdout.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tool::run("losetup", &["--detach", &self.0]);
    }
}

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| seed.wrapping_add(u8::try_from(at / 4096 % 251).unwrap())).collect()
}

/// The largest request covers more leaves than any other, on space that was never written. It is there
/// whole after a kill, and a second one over it frees exactly what it replaces.
#[test]
fn a_write_of_32_mib_is_there_whole() {
    let mut daemon = Setup::default().start();
    daemon.ctl(&["disk", "create", "disk", "--size", "256MiB"]);
    let (first, second) = (pattern(1, LARGEST), pattern(7, LARGEST));
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    client.write(4096, &first);
    assert!(client.read(4096, 32 << 20) == first, "read back at once");
    client.write(16 << 20, &second);
    daemon.kill();
    daemon.start();
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    assert!(client.read(16 << 20, 32 << 20) == second, "the second write after a kill");
    assert!(client.read(4096, (16 << 20) - 4096) == first[..(16 << 20) - 4096]);
    client.disconnect();
    assert_eq!(daemon.status("used_bytes"), (48 << 20) - 4096, "what was replaced is free");
    check(daemon);
}

/// A block device serves as a pool: it is taken over when it is empty, found again after a kill, and
/// when it is full writes are refused and nothing is lost.
#[test]
fn a_pool_lives_on_a_block_device() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
    let device = Loop::attach(&image);
    let config = format!("[pool]\npath = \"{}\"\njournal = \"16MiB\"\n", device.0);
    let mut daemon = Setup::default().config(&config).start();
    daemon.ctl(&["disk", "create", "disk", "--size", "1GiB"]);
    let data = pattern(3, LARGEST);
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    client.write(0, &data);
    daemon.kill();
    daemon.start();
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    let mut at = LARGEST as u64;
    let refused = loop {
        let length = u32::try_from(LARGEST).unwrap();
        let ask = Ask { command: WRITE, offset: at, length, payload: &data, ..Ask::default() };
        let answer = client.ask(ask);
        if answer.error != 0 {
            break answer.error;
        }
        at += LARGEST as u64;
    };
    assert_eq!(refused, ENOSPC);
    assert!(client.read(0, 32 << 20) == data, "what was written first");
    assert!(client.read(at, 32 << 20).iter().all(|byte| *byte == 0), "nothing of what was refused");
    client.disconnect();
    check(daemon);
}

/// PERF-07, SVC-08: space is not set aside for snapshots; when the pool is full, and it is said that it may be larger,
/// the next write finds room, without a restart and for the client that was refused.
#[test]
fn a_full_pool_takes_writes_as_soon_as_it_may_be_larger() {
    let config = SMALL.replace("[pool]\n", "[pool]\nmax_size = \"64MiB\"\n");
    let daemon = Setup::default().config(&config).start();
    daemon.ctl(&["disk", "create", "disk", "--size", "1GiB"]);
    let data = pattern(5, 1 << 20);
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    let mut write = |at: u64| {
        let ask =
            Ask { command: WRITE, offset: at, length: 1 << 20, payload: &data, ..Ask::default() };
        client.ask(ask).error
    };
    let mut at = 0;
    let refused = loop {
        match write(at) {
            0 => at += 1 << 20,
            error => break error,
        }
        if at == 16 << 20 {
            daemon.ctl(&["snapshot", "create", "disk", "kept"]);
        }
    };
    assert_eq!(refused, ENOSPC);
    assert!((16 << 20..=64 << 20).contains(&at), "full at {at}");
    daemon.ctl(&["pool", "resize", "256MiB"]);
    for _ in 0..64 {
        assert_eq!(write(at), 0, "at {at}");
        at += 1 << 20;
    }
    client.disconnect();
    check(daemon);
}

fn check(mut daemon: Daemon) {
    daemon.stop();
    let done = tool::finish(daemon.command().arg("check"));
    done.ok();
}
