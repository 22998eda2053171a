//! Restarts that clients do not notice: their connections go from one daemon to the next.
//!
//! Absent: kernel devices, which the VM tests have, and a real service manager.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rowd::nbd::wire::command;
use rowd_tests::client::{Ask, Client};
use rowd_tests::manager::Manager;
use rowd_tests::process::Setup;
use rowd_tests::{tool, wait};

const BLOCK: u32 = 4096;

fn manager() -> Manager {
    let manager = Manager::start(Setup::default());
    manager.daemon().ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    manager
}

fn connect(manager: &Manager) -> Client {
    Client::connect(&manager.daemon().nbd_socket(), "disk")
}

/// Promise: a connection outlives any number of restarts, with what was negotiated on it.
#[test]
fn a_connection_goes_on_over_restarts_with_its_contexts() {
    let mut manager = manager();
    let contexts = ["base:allocation"];
    let socket = manager.daemon().nbd_socket();
    let mut client = Client::with_contexts(&socket, "disk", &contexts);
    let mut simple = Client::simple(&socket, "disk");
    for round in 1..=3u8 {
        client.write(u64::from(round) * 4096, &[round; 4096]);
        manager.restart();
        assert_eq!(manager.stored(), 0, "what was taken over is out of the store");
        assert_eq!(simple.read(u64::from(round) * 4096, BLOCK), [round; 4096]);
        let ask =
            Ask { command: command::BLOCK_STATUS, cookie: 9, length: 1 << 20, ..Ask::default() };
        let answer = client.ask(ask);
        assert_eq!(answer.error, 0, "{answer:?}");
        assert_eq!(answer.chunks.len(), 1, "one chunk for the one context");
    }
    // Two sockets and the description of them, each time.
    assert_eq!(manager.stored_in_all(), 3 * 3);
    assert_eq!(manager.daemon().status("clients"), 2);
}

/// Promise: a message that was half sent when the daemon was asked to end is taken whole, done once, and
/// answered once.
#[test]
fn a_half_sent_write_is_completed_before_the_restart() {
    let mut manager = manager();
    let mut client = connect(&manager);
    let mut twin = client.try_clone().unwrap();
    let payload = vec![7; 1 << 20];
    let length = 1 << 20;
    // The header and a part of the payload: an Ask sends what it is given.
    let ask = Ask {
        command: command::WRITE,
        cookie: 5,
        length,
        payload: &payload[..1000],
        ..Ask::default()
    };
    client.send(&ask).unwrap();
    manager.ask_to_end();
    client.send_raw(&payload[1000..]).unwrap();
    let answer = twin.receive(0).unwrap();
    assert_eq!((answer.cookie, answer.error), (5, 0));
    manager.start_next();
    assert_eq!(client.read(0, length), payload);
}

/// Promise: every request of a deep queue is answered once, by one daemon or the other.
#[test]
fn a_queue_in_flight_is_answered_once_each() {
    const DEPTH: u64 = 400;
    let mut manager = manager();
    let mut client = connect(&manager);
    let mut receiver = client.try_clone().unwrap();
    for round in 0..3u64 {
        let data = [3; 4096];
        let base = round * DEPTH;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for cookie in base..base + DEPTH {
                    let offset = cookie % 1000 * 4096;
                    let write = Ask { command: command::WRITE, payload: &data, ..Ask::default() };
                    let read = Ask { command: command::READ, ..Ask::default() };
                    let ask = if cookie % 2 == 0 { write } else { read };
                    client.send(&Ask { cookie, offset, length: BLOCK, ..ask }).unwrap();
                }
            });
            let answers = scope.spawn(|| {
                let mut cookies: Vec<u64> = (0..DEPTH)
                    .map(|_| {
                        let answer = receiver.receive(BLOCK).unwrap();
                        assert_eq!(answer.error, 0);
                        answer.cookie
                    })
                    .collect();
                cookies.sort_unstable();
                cookies
            });
            manager.restart();
            assert_eq!(answers.join().unwrap(), (base..base + DEPTH).collect::<Vec<_>>());
        });
    }
}

/// Promise: a client that stops in the middle of a message does not keep the others waiting.
#[test]
fn a_client_that_never_finishes_its_message_is_cut_off_and_others_go_on() {
    let mut manager = manager();
    let mut stuck = connect(&manager);
    let mut well = connect(&manager);
    let ask = Ask { command: command::WRITE, length: BLOCK, payload: &[1; 10], ..Ask::default() };
    stuck.send(&ask).unwrap();
    well.write(0, &[2; 4096]);
    let began = Instant::now();
    manager.restart();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(stuck.is_closed_by_server());
    assert_eq!(well.read(0, BLOCK), [2; 4096]);
}

/// Promise: after `kill -9` nothing is in a store, and clients see at once that they are cut off.
#[test]
fn a_killed_daemon_leaves_nothing_behind() {
    let mut manager = manager();
    let mut client = connect(&manager);
    client.write(0, &[4; 4096]);
    manager.crash();
    assert_eq!(manager.stored_in_all(), 0);
    assert!(client.is_closed_by_server());
    assert_eq!(connect(&manager).read(0, BLOCK), [4; 4096]);
}

/// Promise: a restart is a pause of less than a second. The best of a few counts: other tests keep the
/// processors busy.
#[test]
fn a_restart_is_a_pause_of_less_than_a_second() {
    let mut manager = manager();
    let mut client = connect(&manager);
    let pauses: Vec<Duration> = (0..5)
        .map(|_| {
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let longest = scope.spawn(|| {
                    let mut longest = Duration::ZERO;
                    while !over.load(Ordering::SeqCst) {
                        let asked = Instant::now();
                        client.write(0, &[1; 4096]);
                        longest = longest.max(asked.elapsed());
                    }
                    longest
                });
                manager.restart();
                over.store(true, Ordering::SeqCst);
                longest.join().unwrap()
            })
        })
        .collect();
    println!("pauses: {pauses:?}");
    assert!(*pauses.iter().min().unwrap() < Duration::from_secs(1), "{pauses:?}");
}

/// Promise: fio sees no error and no wrong byte over restarts under load.
#[test]
fn fio_writes_and_verifies_over_restarts() {
    let mut manager = manager();
    let uri = format!("--uri={}", manager.daemon().uri("disk"));
    let mut fio = tool::command("fio");
    fio.args(["--name=load", "--ioengine=nbd", "--rw=randrw", "--bs=4k", "--iodepth=16"]);
    fio.args(["--size=64M", "--io_size=256M", "--verify=crc32c", "--verify_backlog=64"]);
    fio.args(["--verify_fatal=1", "--output-format=json", "--randseed=7", &uri]);
    // Its standard output begins with a remark.
    let report = manager.daemon().file("fio.json");
    fio.arg(format!("--output={}", report.display())).current_dir(manager.daemon().file(""));
    let load = std::thread::spawn(move || tool::finish(&mut fio));
    wait::until("the load", || {
        let mapped = manager.daemon().json(&["disk", "show", "disk"])["mapped_bytes"].clone();
        (load.is_finished() || mapped.as_u64().unwrap() > 1 << 20).then_some(())
    });
    let mut restarts = 0;
    while !load.is_finished() && restarts < 20 {
        manager.restart();
        restarts += 1;
    }
    let done = load.join().unwrap().ok();
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{done}");
    let worst = ["read", "write"].map(|way| job[way]["clat_ns"]["max"].as_u64().unwrap_or(0));
    let worst = Duration::from_nanos(worst.into_iter().max().unwrap_or(0));
    println!("{restarts} restarts, longest wait {worst:?}");
    assert!(restarts > 0 && manager.stored_in_all() >= 2, "the load met a restart");
}
