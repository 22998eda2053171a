//! Requests of every kind after the handshake, right and wrong, against the answers the NBD
//! specification asks for ("NBD protocol", doc/proto.md, "Transmission phase").
//!
//! Absent: the handshake, whose tests are beside it in `daemon/src/nbd/`.

use std::os::unix::net::UnixStream;

use rowd::nbd::wire::{chunk, command, command_flag as flag, error};
use rowd_tests::client::{Answer, Ask, Client};
use rowd_tests::process::Daemon;
use rowd_tests::wait;

const SIZE: u64 = 64 << 20;
const MIB: u32 = 1 << 20;

/// A daemon with one disk called `disk`.
fn daemon() -> Daemon {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    daemon
}

fn connect(daemon: &Daemon) -> Client {
    Client::connect(&daemon.nbd_socket(), "disk")
}

#[track_caller]
fn refused(client: &mut Client, ask: Ask<'_>, number: u32) -> Answer {
    let answer = client.ask(ask);
    assert_eq!(answer.error, number, "{ask:?} was answered {answer:?}");
    assert!(client.read(0, 512).len() == 512, "the connection is still in step");
    answer
}

/// A request without the magic means that both sides are out of step: nothing can be answered.
#[test]
fn a_wrong_magic_closes_the_connection() {
    let daemon = daemon();
    let mut client = connect(&daemon);
    client.send_raw(&[0x42; 28]).unwrap();
    assert!(client.is_closed_by_server());
    assert_eq!(connect(&daemon).size, SIZE, "others are still served");
}

#[test]
fn an_unknown_command_is_invalid() {
    let daemon = daemon();
    let mut client = connect(&daemon);
    for unknown in [8, 9, 99, u16::MAX] {
        let ask = Ask { command: unknown, cookie: 5, length: 512, ..Ask::default() };
        refused(&mut client, ask, error::EINVAL);
    }
}

#[test]
fn a_flag_that_the_command_does_not_have_is_invalid() {
    let daemon = daemon();
    let mut client = connect(&daemon);
    for (command, flags) in [
        (command::READ, flag::NO_HOLE),
        (command::READ, flag::REQ_ONE),
        (command::WRITE, flag::DF),
        (command::WRITE, flag::FAST_ZERO),
        (command::FLUSH, flag::DF),
        (command::TRIM, flag::NO_HOLE),
        (command::CACHE, flag::DF),
        (command::WRITE_ZEROES, flag::REQ_ONE),
        (command::BLOCK_STATUS, flag::DF),
        (command::READ, 1 << 15),
    ] {
        let data = [7u8; 512];
        let payload = if command == command::WRITE { &data[..] } else { &[] };
        let length = if command == command::FLUSH { 0 } else { 512 };
        let ask = Ask { flags, command, cookie: 6, length, payload, ..Ask::default() };
        refused(&mut client, ask, error::EINVAL);
    }
    assert_eq!(client.read(0, 512), [0; 512], "the refused write wrote nothing");
}

/// Past the end is ENOSPC for what would store, EINVAL for the rest, however far past it is.
#[test]
fn requests_past_the_end_are_refused_also_where_the_sum_overflows() {
    let daemon = daemon();
    let mut client = connect(&daemon);
    for offset in [SIZE - 511, SIZE, SIZE + (1 << 40), u64::MAX - 100, u64::MAX] {
        let data = [7u8; 512];
        for (command, number) in [
            (command::READ, error::EINVAL),
            (command::WRITE, error::ENOSPC),
            (command::TRIM, error::EINVAL),
            (command::CACHE, error::EINVAL),
            (command::WRITE_ZEROES, error::ENOSPC),
        ] {
            let payload = if command == command::WRITE { &data[..] } else { &[] };
            let ask = Ask { command, cookie: 7, offset, length: 512, payload, ..Ask::default() };
            refused(&mut client, ask, number);
        }
    }
    let zeroes = Ask { command: command::WRITE_ZEROES, offset: 4096, ..Ask::default() };
    refused(&mut client, Ask { length: u32::MAX, ..zeroes }, error::ENOSPC);
    assert_eq!(client.read(SIZE - 512, 512), [0; 512], "nothing was written at the end");
}

/// The largest payload is 32 MiB; one byte more is refused and skipped, and the next request is
/// understood.
#[test]
fn a_write_just_too_large_is_skipped_and_refused() {
    let daemon = daemon();
    let mut client = connect(&daemon);
    let data = vec![7u8; (32 << 20) + 1];
    client.write(0, &data[1..]);
    let length = 32 * MIB + 1;
    let ask = Ask { command: command::WRITE, cookie: 8, length, payload: &data, ..Ask::default() };
    refused(&mut client, ask, error::EINVAL);
    let ask = Ask { command: command::READ, cookie: 9, length, ..Ask::default() };
    refused(&mut client, ask, error::EINVAL);
    assert_eq!(client.read(31 << 20, MIB), vec![7; 1 << 20]);
}

/// Nobody is made to read hundreds of megabytes only to refuse them.
#[test]
fn a_write_far_too_large_closes_the_connection() {
    let daemon = daemon();
    let mut client = connect(&daemon);
    let ask = Ask { command: command::WRITE, length: 128 * MIB + 1, ..Ask::default() };
    client.send(&ask).unwrap();
    assert!(client.is_closed_by_server());
    assert_eq!(connect(&daemon).read(0, 512), [0; 512]);
}

#[test]
fn a_read_that_may_not_be_fragmented_is_one_chunk() {
    let daemon = daemon();
    let mut client = connect(&daemon);
    client.write(8192, &[1; 4096]);
    let ask = Ask { command: command::READ, length: 65536, cookie: 1, ..Ask::default() };
    let kinds = |answer: &Answer| answer.chunks.iter().map(|(kind, _)| *kind).collect::<Vec<_>>();
    let pieces = kinds(&client.ask(ask));
    assert_eq!(pieces, [chunk::OFFSET_HOLE, chunk::OFFSET_DATA, chunk::OFFSET_HOLE]);
    let whole = client.ask(Ask { flags: flag::DF, ..ask });
    assert_eq!(kinds(&whole), [chunk::OFFSET_DATA]);
    assert_eq!(whole.chunks[0].1.len(), 8 + 65536);
    let empty = client.ask(Ask { flags: flag::DF, offset: 1 << 20, ..ask });
    assert_eq!(kinds(&empty), [chunk::OFFSET_DATA]);
    let mut simple = Client::simple(&daemon.nbd_socket(), "disk");
    assert_eq!(simple.ask(Ask { flags: flag::DF, length: 512, ..ask }).error, error::EINVAL);
}

/// Zeroes that must take space cannot be had without writing them.
#[test]
fn fast_zeroes_are_refused_only_when_they_must_take_space() {
    let daemon = daemon();
    let mut client = connect(&daemon);
    client.write(0, &[9; 8192]);
    let zero = Ask { command: command::WRITE_ZEROES, length: 4096, ..Ask::default() };
    let flags = flag::FAST_ZERO | flag::NO_HOLE;
    refused(&mut client, Ask { flags, ..zero }, error::ENOTSUP);
    assert_eq!(client.read(0, 8192), [9; 8192], "the refused request zeroed nothing");
    assert_eq!(client.ask(Ask { flags: flag::FAST_ZERO, ..zero }).error, 0);
    assert_eq!(client.ask(Ask { flags: flag::NO_HOLE, offset: 4096, ..zero }).error, 0);
    assert_eq!(client.read(0, 8192), [0; 8192]);
}

#[test]
fn a_snapshot_and_a_read_only_disk_refuse_every_change() {
    let daemon = daemon();
    connect(&daemon).write(0, &[3; 4096]);
    daemon.ctl(&["snapshot", "create", "disk", "first"]);
    daemon.ctl(&["disk", "create", "copy", "--from", "disk@first"]);
    daemon.ctl(&["disk", "set", "copy", "--read-only", "on"]);
    for export in ["disk@first", "copy"] {
        let mut client = Client::connect(&daemon.nbd_socket(), export);
        for command in [command::WRITE, command::WRITE_ZEROES, command::TRIM] {
            let data = [7u8; 512];
            let payload = if command == command::WRITE { &data[..] } else { &[] };
            let ask = Ask { command, length: 512, payload, ..Ask::default() };
            refused(&mut client, ask, error::EPERM);
        }
        client.flush();
        assert_eq!(client.read(0, 4096), [3; 4096], "{export}");
    }
}

/// A length of zero does nothing, where the specification leaves open what it does.
#[test]
fn requests_of_no_bytes_do_nothing() {
    let daemon = daemon();
    let mut client = Client::with_contexts(&daemon.nbd_socket(), "disk", &["base:allocation"]);
    for command in [command::READ, command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        let answer = client.ask(Ask { command, cookie: 3, offset: 4096, ..Ask::default() });
        assert_eq!(answer.error, 0, "command {command}");
    }
    let status = Ask { command: command::BLOCK_STATUS, ..Ask::default() };
    refused(&mut client, status, error::EINVAL);
}

#[test]
fn block_status_tells_data_from_holes_and_one_extent_when_asked() {
    let daemon = daemon();
    let mut client = Client::with_contexts(&daemon.nbd_socket(), "disk", &["base:allocation"]);
    client.write(65536, &[1; 65536]);
    let status = Ask { command: command::BLOCK_STATUS, length: MIB, cookie: 2, ..Ask::default() };
    let extents = |answer: Answer| {
        assert_eq!(answer.chunks.len(), 1);
        let (kind, payload) = &answer.chunks[0];
        assert_eq!(*kind, chunk::BLOCK_STATUS);
        let words: Vec<u32> =
            payload.chunks(4).map(|w| u32::from_be_bytes(w.try_into().unwrap())).collect();
        words[1..].chunks(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>()
    };
    let all = extents(client.ask(status));
    assert_eq!(all, [(65536, 3), (65536, 0), (MIB - 131_072, 3)]);
    let one = extents(client.ask(Ask { flags: flag::REQ_ONE, ..status }));
    assert_eq!(one, [(65536, 3)]);
    let middle = Ask { flags: flag::REQ_ONE, offset: 70_000, length: 1000, ..status };
    assert_eq!(extents(client.ask(middle)), [(1000, 0)]);
    let mut without = connect(&daemon);
    refused(&mut without, status, error::EINVAL);
}

/// A client may send as much as it likes before it reads: all is answered, nothing is stuck.
#[test]
fn ten_thousand_requests_are_answered_although_no_reply_is_read_in_between() {
    const COUNT: u64 = 10_000;
    let daemon = daemon();
    let mut client = connect(&daemon);
    client.write(0, &[5; 4096]);
    let mut other = connect(&daemon);
    // The socket's buffers are smaller than the replies: the sender must not wait for the reader.
    let (sender, mut receiver) = (client.try_clone().unwrap(), client);
    let sending = std::thread::spawn(move || {
        let mut sender = sender;
        for cookie in 0..COUNT {
            let ask = Ask { command: command::READ, cookie, length: 4096, ..Ask::default() };
            sender.send(&ask).unwrap();
        }
    });
    // While that one is stuck, others are served.
    assert_eq!(other.read(0, 4096), [5; 4096]);
    let mut seen = vec![false; usize::try_from(COUNT).unwrap()];
    for _ in 0..COUNT {
        let answer = receiver.receive(4096).unwrap();
        assert_eq!((answer.error, answer.chunks.len()), (0, 1));
        let known = &mut seen[usize::try_from(answer.cookie).unwrap()];
        assert!(!*known, "cookie {} was answered twice", answer.cookie);
        *known = true;
    }
    sending.join().unwrap();
}

/// A connection that ends within a payload has written nothing of it and holds nothing.
#[test]
fn a_client_that_goes_in_the_middle_of_a_payload_leaves_nothing() {
    let daemon = daemon();
    for length in [4096, 8 * MIB] {
        let mut client = connect(&daemon);
        let ask = Ask { command: command::WRITE, length, payload: &[7; 1000], ..Ask::default() };
        client.send(&ask).unwrap();
        drop(client);
    }
    wait::until("the end of the connections", || {
        let clients = daemon.json(&["disk", "show", "disk"])["clients"].as_array().unwrap().len();
        (clients == 0).then_some(())
    });
    assert_eq!(connect(&daemon).read(0, 4096), [0; 4096]);
    assert_eq!(daemon.status("used_bytes"), 0);
}

/// DISC is answered by everything before it, each request under its own cookie, and nothing after.
#[test]
fn all_outstanding_requests_are_answered_before_a_disconnect() {
    const ROUNDS: u64 = 20;
    const REQUESTS: u64 = 8;
    let daemon = daemon();
    let data = vec![6u8; 1 << 20];
    connect(&daemon).write(0, &data);
    for round in 0..ROUNDS {
        let mut client = connect(&daemon);
        for cookie in 0..REQUESTS {
            // Some are done at once, some by helpers.
            let (command, length) = match (cookie + round) % 4 {
                0 => (command::READ, MIB),
                1 => (command::READ, 512),
                2 => (command::WRITE, 4096),
                _ => (command::FLUSH, 0),
            };
            let payload = if command == command::WRITE { &data[..4096] } else { &[] };
            let ask = Ask { command, cookie, length, payload, ..Ask::default() };
            client.send(&ask).unwrap();
        }
        client.send(&Ask { command: command::DISC, ..Ask::default() }).unwrap();
        let mut answered = Vec::new();
        while let Ok(answer) = client.receive(0) {
            assert_eq!(answer.error, 0, "round {round}: {answer:?}");
            answered.push(answer.cookie);
        }
        answered.sort_unstable();
        assert_eq!(answered, (0..REQUESTS).collect::<Vec<_>>(), "round {round}");
    }
}

/// Requests need no alignment, and the bytes around them stay.
#[test]
fn requests_of_any_length_at_any_offset_touch_their_bytes_only() {
    let daemon = daemon();
    let mut client = connect(&daemon);
    let mut expected = vec![0u8; 3 * 4096];
    for (value, offset, length) in
        [(1u8, 0, 12288), (2, 1, 1), (3, 511, 513), (4, 4095, 2), (5, 4000, 5000), (6, 12287, 1)]
    {
        client.write(offset as u64, &vec![value; length]);
        expected[offset..offset + length].fill(value);
        assert_eq!(client.read(0, 12288), expected, "after {length} bytes at {offset}");
    }
    for (offset, length) in [(100, 50), (4090, 10), (5000, 7000)] {
        let ask = Ask { command: command::WRITE_ZEROES, offset: offset as u64, ..Ask::default() };
        let length_on_wire = u32::try_from(length).unwrap();
        assert_eq!(client.ask(Ask { length: length_on_wire, ..ask }).error, 0);
        expected[offset..offset + length].fill(0);
        assert_eq!(client.read(0, 12288), expected, "after {length} zeroes at {offset}");
    }
    assert_eq!(client.read(4093, 7), expected[4093..4100]);
}

/// A client that never says anything holds no place for ever, and keeps nobody else out.
#[test]
fn silent_and_broken_connections_do_not_disturb_others() {
    let daemon = daemon();
    let silent: Vec<_> =
        (0..20).map(|_| UnixStream::connect(daemon.nbd_socket()).unwrap()).collect();
    let mut client = connect(&daemon);
    client.write(0, &[1; 4096]);
    drop(silent);
    assert_eq!(client.read(0, 4096), [1; 4096]);
}

/// The export `disk@snapshot` stays what it was, whatever is written to the disk meanwhile.
#[test]
fn an_open_snapshot_does_not_change_while_its_disk_does() {
    let daemon = daemon();
    let mut disk = connect(&daemon);
    disk.write(0, &[1; 65536]);
    daemon.ctl(&["snapshot", "create", "disk", "first"]);
    let mut snapshot = Client::connect(&daemon.nbd_socket(), "disk@first");
    disk.write(4096, &[2; 8192]);
    disk.trim(32768, 32768);
    disk.flush();
    assert_eq!(snapshot.read(0, 65536), [1; 65536]);
}
