//! Exit codes of commands that freeze, each from a real cause.
//!
//! Elsewhere: 0, 9 and 10 in `applications`, 1 and 2 in `levels`, 6, 11, 23 and 25 in `outlive`, 4, 5 and 7 in
//! `groups`, 15 and 21 in `rollback`. Absent: 13, which has no meaning here, and 16, which comes with
//! repositories.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;

use nix::sys::signal::Signal;
use rowd_tests::process::{SMALL, Setup};
use rowd_tests::wait;
use serde_json::json;

use super::outlive::{Making, held, is_frozen, let_go, record};
use super::world::{EXT4, World};

/// 3: the socket for those who only look.
#[test]
fn a_snapshot_through_the_read_only_socket_is_not_permitted() {
    let world = World::new(&EXT4);
    let socket = world.daemon.dir().join("control-ro.sock").display().to_string();
    let dir = world.dir_text();
    let create = ["snapshot", "create", "db", "xx", "--consistency", "fs", "--mount", &dir];
    let mut command = std::process::Command::new(rowd_tests::tool::built("rowctl"));
    command.args(["--socket", &socket]).args(create);
    rowd_tests::tool::finish(&mut command).fails_with(3);
}

/// 6 and a file system that hangs: FIFREEZE itself does not return. It is given up at the deadline, and as soon
/// as the device answers again the file system is thawed.
#[test]
fn a_file_system_that_hangs_while_it_is_frozen_is_thawed_when_it_answers() {
    let world = World::held_at(&EXT4, "freeze.prepared");
    let making = Making::start(&world, "hung", &["--freeze-timeout", "1"]);
    held(&world);
    // Something to write out when it is frozen.
    std::fs::write(world.dir().join("dirty"), vec![1; 100_000]).unwrap();
    world.mounted.signal_server(Signal::SIGSTOP);
    let_go(&world);
    let (code, error) = making.ended();
    assert_eq!((code, &error["error"]["kind"]), (6, &json!("timed_out")), "{error}");
    // The helper still waits, so nothing else may freeze, and the record says what may be frozen.
    assert!(record(&world));
    world.create_fails(21, "other", &[]);
    assert!(world.daemon.json(&["freeze", "status"])["running"].is_object());
    world.mounted.signal_server(Signal::SIGCONT);
    wait::until("the end of the freeze", || {
        world.daemon.json(&["freeze", "status"])["running"].is_null().then_some(())
    });
    assert!(!record(&world));
    std::fs::write(world.dir().join("again"), "x").unwrap();
    assert_eq!(world.daemon.json(&["snapshot", "list"]), json!([]));
}

/// 6, and the file system hangs already when it is written out before the freeze: nothing is frozen at all.
#[test]
fn a_file_system_that_hangs_before_it_is_frozen_is_given_up_in_time() {
    let world = World::new(&EXT4);
    std::fs::write(world.dir().join("dirty"), vec![1; 100_000]).unwrap();
    world.mounted.signal_server(Signal::SIGSTOP);
    let begun = std::time::Instant::now();
    world.create_fails(6, "hung", &["--freeze-timeout", "1"]);
    assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(!record(&world));
    world.mounted.signal_server(Signal::SIGCONT);
    wait::until("the end of the freeze", || {
        world.daemon.json(&["freeze", "status"])["running"].is_null().then_some(())
    });
    world.create("again", &[]);
}

/// A snapshot that fails while everything is frozen, as its name was taken meanwhile: thawed at once.
#[test]
fn a_snapshot_that_fails_while_everything_is_frozen_leaves_nothing_frozen() {
    let world = World::held_at(&EXT4, "freeze.frozen");
    let making = Making::start(&world, "taken", &[]);
    held(&world);
    let writer = is_frozen(&world);
    world.daemon.ctl(&["snapshot", "create", "db", "taken"]);
    let_go(&world);
    let (code, error) = making.ended();
    assert_eq!((code, &error["error"]["kind"]), (21, &json!("exists")), "{error}");
    writer.gets_through();
    assert!(!record(&world));
    assert!(world.daemon.json(&["events"]).to_string().contains("freeze.failed"));
}

/// 12: the device hangs when it is thawed. The snapshot is kept, untagged; the thaw ends when the device answers.
#[test]
fn a_file_system_that_cannot_be_thawed_is_told_and_thawed_later() {
    let world = World::held_at(&EXT4, "freeze.cut");
    let making = Making::start(&world, "stuck", &[]);
    held(&world);
    let writer = is_frozen(&world);
    world.mounted.signal_server(Signal::SIGSTOP);
    let_go(&world);
    let (code, error) = making.ended();
    assert_eq!((code, &error["error"]["kind"]), (12, &json!("thaw_failed")), "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("made and kept"), "{error}");
    let kept = world.daemon.json(&["snapshot", "show", "db@stuck"]);
    assert_eq!((&kept["consistency"], &kept["tags"]), (&json!("crash"), &json!({})));
    assert!(world.daemon.json(&["events"]).to_string().contains("freeze.trouble"));
    world.mounted.signal_server(Signal::SIGCONT);
    writer.gets_through();
    wait::until("the end of the record", || (!record(&world)).then_some(()));
}

/// 8: the tag does not fit any more. The snapshot is kept, and its level is right.
#[test]
fn a_snapshot_that_cannot_be_tagged_is_kept() {
    let world = World::new(&EXT4);
    let tags: Vec<String> = (0..TAGS_MAX).map(|n| format!("--tag=t{n}=x")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    let error = world.create_fails(8, "full", &tags);
    assert!(error["message"].as_str().unwrap().contains("made and kept"), "{error}");
    let kept = world.daemon.json(&["snapshot", "show", "db@full"]);
    assert_eq!(kept["consistency"], "fs");
    assert_eq!(kept["tags"]["FsConsistent"], json!(null));
}

/// The most tags an object has.
const TAGS_MAX: usize = rowd::engine::TAGS_MAX;

/// 14: the quota is reached; it is seen before anything is frozen.
#[test]
fn a_quota_that_is_reached_is_told_before_the_freeze() {
    let config = format!("{SMALL}[quota]\nmanual_snapshots = 1\n");
    let world = World::on(&EXT4, Setup::default().config(&config).start());
    world.create("first", &[]);
    world.create_fails(14, "second", &[]);
    assert!(!world.daemon.log().contains("what=\"db@second\" target"), "it went on to freeze");
}

/// 255: a daemon of another major version.
#[test]
fn a_daemon_of_another_version_is_something_else() {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let greeting = json!({"rowd": {"version": "9.0.0", "protocol": {"major": 9, "minor": 0}, "role": "admin", "features": []}});
        stream.write_all(format!("{greeting}\n").as_bytes()).unwrap();
        BufReader::new(stream).lines().count()
    });
    let mut command = std::process::Command::new(rowd_tests::tool::built("rowctl"));
    command.arg("--socket").arg(&socket).args(["freeze", "status"]);
    rowd_tests::tool::finish(&mut command).fails_with(255);
    assert_eq!(server.join().unwrap(), 0);
}
