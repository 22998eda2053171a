//! Clients that write while a disk is being filled, and daemons that end: what a client wrote always wins, and no
//! block of the copy is lost.
//!
//! Absent: the map under all of this, step by step (`model/`).

use std::thread;

use rowd::nbd::wire::command;
use rowd_tests::client::{Ask, Client};
use rowd_tests::process::Setup;
use serde_json::json;

use super::copies::{MIB, contents, noise};
use super::lazy::{SIZE, World, wait_filled, world, world_with};
use super::proxy::Mode;

/// A sequence of numbers that a seed decides.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Writes, trims and zeroes at random places of its own stripe, whole blocks and parts of blocks, and reads them
/// back. Returns what the stripe has to hold in the end.
fn writer(client: &mut Client, stripe: (u64, u64), mut own: Vec<u8>, rounds: u64) -> Vec<u8> {
    let (from, length) = stripe;
    let mut random = Random(from + 77);
    for round in 0..rounds {
        let at = random.below(length - (96 << 10));
        let len = 1 + random.below(if round % 5 == 0 { 90 << 10 } else { 9000 });
        let (at, len) = match round % 3 {
            0 => (at / 4096 * 4096, len.next_multiple_of(4096)),
            _ => (at, len),
        };
        let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        let (offset, size) = (from + at, u32::try_from(len).unwrap());
        match round % 7 {
            3 => {
                let ask =
                    Ask { command: command::WRITE_ZEROES, offset, length: size, ..Ask::default() };
                assert_eq!(client.ask(ask).error, 0);
                own[range.clone()].fill(0);
            }
            5 => {
                client.trim(offset, size);
                // Whole blocks only; the parts at the ends stay.
                let (first, last) = (at.next_multiple_of(4096), (at + len) / 4096 * 4096);
                if first < last {
                    let inner = usize::try_from(first).unwrap()..usize::try_from(last).unwrap();
                    own[inner].fill(0);
                }
            }
            _ => {
                let bytes = noise(round + from, range.len());
                client.write(offset, &bytes);
                own[range.clone()].copy_from_slice(&bytes);
            }
        }
        assert!(client.read(offset, size) == own[range], "round {round} at {offset}");
    }
    own
}

/// Writers on four stripes at once, each with a connection of its own. Returns what the disk has to hold.
fn write_everywhere(world: &World, disk: &str, expected: &[u8], rounds: u64) -> Vec<u8> {
    let stripe = SIZE / 4;
    let parts: Vec<Vec<u8>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4u64)
            .map(|number| {
                let from = number * stripe;
                let range = usize::try_from(from).unwrap()..usize::try_from(from + stripe).unwrap();
                let own = expected[range].to_vec();
                scope.spawn(move || {
                    let mut client = world.client(disk);
                    let own = writer(&mut client, (from, stripe), own, rounds);
                    client.flush();
                    client.disconnect();
                    own
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    parts.concat()
}

#[test]
fn what_clients_write_while_a_disk_is_filled_wins_and_nothing_else_is_lost() {
    let world = world();
    world.proxy.set(Mode::Slow);
    world.make("again");
    let expected = contents(&world.daemon, "data@one", SIZE);
    let expected = write_everywhere(&world, "again", &expected, 60);
    world.proxy.set(Mode::Passes);
    let expected = write_everywhere(&world, "again", &expected, 60);
    wait_filled(&world.daemon, "again");
    assert!(contents(&world.daemon, "again", SIZE) == expected);
    world.daemon.ctl(&["snapshot", "create", "again", "own"]);
    assert!(contents(&world.daemon, "again@own", SIZE) == expected);
}

#[test]
fn an_encrypted_disk_is_filled_under_writers_too() {
    let world = world_with(Setup::default().master_key(&format!("{}\n", "1".repeat(64))));
    world.proxy.set(Mode::Slow);
    let args = ["disk", "create", "again", "--from", &world.copy, "--encrypted"];
    assert_eq!(world.daemon.json(&args)["encrypted"], json!(true));
    let expected = contents(&world.daemon, "data@one", SIZE);
    let expected = write_everywhere(&world, "again", &expected, 40);
    world.proxy.set(Mode::Passes);
    wait_filled(&world.daemon, "again");
    assert!(contents(&world.daemon, "again", SIZE) == expected);
}

/// Promise: past the page cache the same holds.
#[test]
fn a_disk_is_filled_under_writers_in_direct_mode() {
    let world = world_with(Setup::default().config("[pool]\nio = \"direct\"\n"));
    world.proxy.set(Mode::Slow);
    world.make("again");
    let expected = contents(&world.daemon, "data@one", SIZE);
    let expected = write_everywhere(&world, "again", &expected, 40);
    world.proxy.set(Mode::Passes);
    wait_filled(&world.daemon, "again");
    assert!(contents(&world.daemon, "again", SIZE) == expected);
}

/// Killed again and again, with writes between: the filling goes on, and no acknowledged write is lost to it.
#[test]
fn a_disk_that_is_filled_survives_kills_with_all_that_was_written() {
    let mut world = world();
    let mut expected = contents(&world.daemon, "data@one", SIZE);
    world.proxy.set(Mode::Slow);
    world.make("again");
    for round in 0..4 {
        world.daemon.crash();
        let shown = world.daemon.json(&["disk", "show", "again"]);
        assert!(round > 0 || !shown["filling"].is_null(), "filled too soon to prove anything");
        expected = write_everywhere(&world, "again", &expected, 12);
        let mut client = world.client("again");
        let at = 23 * MIB + round * 4096;
        let whole = usize::try_from(at).unwrap();
        assert!(client.read(at, 4096) == expected[whole..whole + 4096]);
        client.disconnect();
    }
    world.daemon.stop();
    world.daemon.start();
    world.proxy.set(Mode::Passes);
    wait_filled(&world.daemon, "again");
    assert!(contents(&world.daemon, "again", SIZE) == expected);
    world.daemon.crash();
    assert!(contents(&world.daemon, "again", SIZE) == expected);
}

/// The end of the daemon after any chunk that was stored, and just when the last one was.
#[test]
fn a_filling_goes_on_wherever_the_daemon_was_killed() {
    for passage in [1, 3, 6] {
        let faulty = env!("CARGO_BIN_EXE_rowd-faulty");
        let mut world = world_with(Setup::default().program(faulty));
        world.daemon.stop();
        let point = format!("fill.written:{passage}");
        world.daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", &point));
        world.daemon.start();
        world.daemon.try_ctl(&["disk", "create", "again", "--from", &world.copy]);
        world.daemon.wait_ended();
        world.daemon.change_setup(|setup| setup.env("ROWD_FAIL_POINT", "copy.marked:1000000"));
        world.daemon.start();
        let expected = contents(&world.daemon, "data@one", SIZE);
        let expected = write_everywhere(&world, "again", &expected, 5);
        wait_filled(&world.daemon, "again");
        assert!(contents(&world.daemon, "again", SIZE) == expected, "passage {passage}");
    }
}
