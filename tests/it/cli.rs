//! rowctl as a person or a script meets it: exit codes, messages, files in and out.
//!
//! Absent: what the commands do to disks (`chains.rs`, `rollback.rs`).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rowd_tests::client::Client;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::tool;
use rowd_tests::wait;
use serde_json::Value;

const MIB: usize = 1 << 20;

/// A daemon with two disks, each with a snapshot called `first`.
fn daemon() -> Daemon {
    let daemon = Daemon::new();
    for disk in ["data", "logs"] {
        daemon.ctl(&["disk", "create", disk, "--size", "64MiB"]);
        daemon.ctl(&["snapshot", "create", disk, "first"]);
    }
    daemon
}

/// Bytes that are different everywhere, so that no block is like another.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    println!("seed {state:#x}");
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    };
    (0..bytes.div_ceil(8)).flat_map(|_| word()).take(bytes).collect()
}

/// Wrong usage, wrong names, wrong states: each says what is wrong and what would be right.
#[test]
fn twenty_mistakes_are_told_so_that_a_newcomer_can_act() {
    let daemon = daemon();
    let table: &[(i32, &str, &[&str])] = &[
        (2, "frobnicate", &["unrecognized subcommand 'frobnicate'", "--help"]),
        (2, "disk lits", &["a similar subcommand exists: 'list'"]),
        (2, "disk create new", &["--size <SIZE>"]),
        (2, "disk create new --size lots", &["'lots' is no unit", "KiB to EiB"]),
        (2, "disk create new --size 20", &["not a multiple of 4096", "hint: 4096 would do"]),
        (2, "disk create x --size 1GiB", &["2 to 128 are allowed"]),
        (2, "disk create a/b --size 1GiB", &["contains '/'", "are safe"]),
        (21, "disk create data --size 1GiB", &["a disk \"data\" exists", "choose another name"]),
        (20, "disk create new --from data", &["'data' is a disk, not a snapshot"]),
        (2, "disk create new --from first", &["2 snapshots are called", "data@first, logs@first"]),
        (2, "disk create new --from data@first --size 4096", &["fewer than", "leave --size out"]),
        (20, "disk show dat", &["did you mean 'data'?"]),
        (20, "disk show mysql", &["no disk is called \"mysql\"", "rowctl disk list"]),
        (20, "disk show data@first", &["is a snapshot, not a disk"]),
        (2, "disk delete data", &["needs a confirmation", "hint: add --yes"]),
        (2, "disk resize data 32MiB", &["losing what lies beyond", "--yes"]),
        (2, "disk rollback data", &["<SNAPSHOT>"]),
        (15, "disk rollback data logs@first --yes", &["another disk", "disk create NAME --from"]),
        (15, "disk rollback --undo data --yes", &["no rollback of data to undo", "undo_hours"]),
        (2, "snapshot create data auto1", &["begins with \"auto\"", "choose another"]),
        (21, "snapshot create data first", &["has a snapshot \"first\" already"]),
        (20, "snapshot delete data@frist --yes", &["did you mean 'data@first'?"]),
        (20, "snapshot show data", &["is a disk, not a snapshot", "snapshot list data"]),
        (2, "snapshot diff data@first", &["a diff needs two snapshots", "--from-empty"]),
        (2, "tag set data novalue", &["a tag is written key=value"]),
        (2, "pool resize 4096", &["could hold nothing", "one segment"]),
        (20, "job wait j-nope", &["no job j-nope", "rowctl job list"]),
        (20, "disk import new /nonexistent", &["cannot read /nonexistent"]),
        (20, "disk export data /nonexistent/x", &["/nonexistent/", "No such file"]),
        (2, "-o yaml disk list", &["table, json, jsonl"]),
    ];
    for (code, line, parts) in table {
        let words: Vec<&str> = line.split(' ').collect();
        let told = daemon.try_ctl(&words).fails_with(*code).says(parts);
        assert_eq!(told.stdout, "", "a mistake prints nothing to the standard output: {told}");
        if *line != "-o yaml disk list" {
            let error = daemon.json_error(*code, &words);
            assert!(!error["message"].as_str().unwrap().is_empty(), "{error}");
            assert!(error["kind"].is_string() && error.get("hint").is_some(), "{error}");
        }
    }
    let disks = daemon.json(&["disk", "list"]);
    assert_eq!(disks.as_array().unwrap().len(), 2, "no mistake made or lost a disk");
}

/// 23: nothing listens there, or not the control socket.
#[test]
fn a_daemon_that_cannot_be_reached_is_exit_23() {
    let mut daemon = daemon();
    daemon.stop();
    daemon.try_ctl(&["status"]).fails_with(23).says(&["no daemon listens", "start rowd"]);
    let error = daemon.json_error(23, &["disk", "list"]);
    assert_eq!(error["kind"], "unreachable");
    daemon.try_ctl(&["doctor"]).fails_with(1).says(&["no daemon listens"]);
}

/// 3: the read-only socket shows and does not change.
#[test]
fn the_read_only_socket_refuses_changes_with_exit_3() {
    let daemon = daemon();
    let socket = daemon.dir().join("control-ro.sock");
    let ctl = |args: &[&str]| {
        let mut command = std::process::Command::new(tool::built("rowctl"));
        tool::finish(command.arg("--socket").arg(&socket).args(args))
    };
    ctl(&["disk", "list"]).ok().says(&["data", "logs"]);
    ctl(&["events"]).ok().says(&["disk.create"]);
    ctl(&["disk", "create", "new", "--size", "1GiB"]).fails_with(3).says(&["read-only"]);
    ctl(&["disk", "delete", "data", "--yes"]).fails_with(3);
}

/// 6 and 25: a job that takes too long, and one that was cancelled.
#[test]
fn waiting_for_a_job_tells_a_timeout_from_a_cancellation() {
    let daemon = daemon();
    Client::connect(&daemon.nbd_socket(), "data").write(0, &noise(8 * MIB));
    let job = daemon.json(&["scrub", "--rate", "64KiB"])["id"].as_str().unwrap().to_owned();
    daemon.json_error(6, &["job", "wait", &job, "--timeout", "1"]);
    daemon.json_error(21, &["scrub"]);
    daemon.ctl(&["job", "cancel", &job]);
    daemon.try_ctl(&["job", "wait", &job]).fails_with(25);
    assert_eq!(daemon.json(&["job", "show", &job])["state"], "cancelled");
    daemon.ctl(&["scrub", "--rate", "1GiB", "--wait"]);
    assert_eq!(daemon.json(&["status"])["last_scrub"]["bad"], Value::Array(vec![]));
}

/// 22: the pool is full; what failed leaves no disk, and what was there is still readable.
#[test]
fn an_import_into_a_full_pool_is_exit_22_and_leaves_nothing() {
    let config = SMALL.replace("[pool]", "[pool]\nmax_size = \"16MiB\"");
    let daemon = Setup::default().config(&config).start();
    fs::write(daemon.file("fits"), noise(4 * MIB)).unwrap();
    fs::write(daemon.file("large"), noise(32 * MIB)).unwrap();
    daemon.ctl(&["disk", "import", "fits", &daemon.path("fits")]);
    let error = daemon.json_error(22, &["disk", "import", "large", &daemon.path("large")]);
    assert!(error["message"].as_str().unwrap().contains("deleted again"), "{error}");
    assert_eq!(daemon.json(&["disk", "list"]).as_array().unwrap().len(), 1);
    daemon.wait_reclaimed();
    daemon.ctl(&["disk", "export", "fits", &daemon.path("back")]);
    tool::run("cmp", &[&daemon.path("fits"), &daemon.path("back")]).ok();
    daemon.ctl(&["disk", "import", "again", &daemon.path("fits")]);
}

/// 24 and 1: a block that is not what was written is never handed out, and is found and told.
#[test]
fn bit_rot_is_exit_24_for_who_reads_it_and_exit_1_for_monitoring() {
    let mut daemon = daemon();
    Client::connect(&daemon.nbd_socket(), "data").write(0, &noise(4096 * 10));
    daemon.ctl(&["snapshot", "create", "data", "rotten"]);
    daemon.try_ctl(&["check"]).ok().says(&["ok: 2 disks"]);
    daemon.stop();
    let pool = daemon.dir().join("pool");
    let mut bytes = fs::read(&pool).unwrap();
    let wanted = &noise(4096 * 10)[4096 * 5..4096 * 5 + 64];
    let at = bytes.chunks(4096).position(|block| block.starts_with(wanted)).unwrap() * 4096;
    bytes[at + 1000] ^= 1;
    fs::write(&pool, bytes).unwrap();
    daemon.start();
    let mut client = Client::connect(&daemon.nbd_socket(), "data");
    assert_eq!(client.read(0, 4096 * 5), noise(4096 * 5), "the blocks around it are good");
    daemon.json_error(24, &["disk", "export", "data", &daemon.path("out")]);
    assert!(!daemon.file("out").exists(), "half a copy is no copy");
    let scrubbed = daemon.try_ctl(&["scrub", "--rate", "1GiB", "--wait"]).fails_with(24);
    scrubbed.says(&["data", "20480"]);
    daemon.try_ctl(&["check"]).fails_with(1).says(&["corrupt", "scrub"]);
    daemon.try_ctl(&["doctor"]).fails_with(1);
    wait::until("an event about the block", || {
        daemon.ctl(&["events"]).contains("pool.corrupt-block").then_some(())
    });
    // What is overwritten is good again; the snapshot still has the bad one.
    client.write(4096 * 5, &[1; 4096]);
    assert_eq!(client.read(4096 * 5, 4096), [1; 4096]);
}

/// An NBD server says something without ending a line and waits for an answer.
#[test]
fn the_nbd_socket_in_place_of_the_control_socket_is_exit_23_at_once() {
    let daemon = Daemon::new();
    let socket = daemon.nbd_socket().display().to_string();
    let began = Instant::now();
    let mut status = std::process::Command::new(tool::built("rowctl"));
    let told = tool::finish(status.args(["--socket", &socket, "status"])).fails_with(23);
    assert!(told.stderr.contains("nbd.sock is for NBD clients"), "{told}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

/// 255: something answers that is not rowd, or not this version of it.
#[test]
fn a_stranger_on_the_control_socket_is_exit_255_or_23() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").unwrap();
    });
    let mut command = std::process::Command::new(tool::built("rowctl"));
    let told = tool::finish(command.arg("--socket").arg(&path).arg("status"));
    stranger.join().unwrap();
    assert!([23, 255].contains(&told.code), "{told}");
    assert!(told.stderr.starts_with("rowctl: "), "{told}");
}

/// A file becomes a disk and a file again; holes stay holes on both sides.
#[test]
fn an_exported_disk_is_the_imported_file() {
    let daemon = daemon();
    let (image, back) = (daemon.path("image"), daemon.path("back"));
    let mut data = noise(3 * MIB + 512);
    data[MIB..2 * MIB].fill(0);
    fs::write(&image, &data).unwrap();
    let disk = daemon.json(&["disk", "import", "image", &image, "--tag", "from=file"]);
    assert_eq!(disk["size"], 3 * MIB + 4096, "whole blocks");
    assert_eq!(disk["mapped_bytes"], 2 * MIB + 4096, "zeros are not stored");
    assert_eq!(disk["tags"]["from"], "file");
    let done = daemon.json(&["disk", "export", "image", &back]);
    assert_eq!(done["size"], 3 * MIB + 4096);
    let exported = fs::read(&back).unwrap();
    assert_eq!(exported[..data.len()], data[..]);
    assert!(exported[data.len()..].iter().all(|byte| *byte == 0));
    let error = daemon.json_error(21, &["disk", "export", "image", &back]);
    assert!(error["hint"].as_str().unwrap().contains("--force"), "{error}");
    daemon.ctl(&["disk", "export", "image", &back, "--force"]);
    daemon.ctl(&["snapshot", "create", "image", "first"]);
    Client::connect(&daemon.nbd_socket(), "image").write(0, &[0xAA; 8192]);
    daemon.ctl(&["disk", "export", "image@first", &back, "--force"]);
    assert_eq!(fs::read(&back).unwrap(), exported, "a snapshot, whatever the disk is now");
}

/// `rowctl disk export big - | head -c 1000`: a reader that has enough is no error.
#[test]
fn an_export_to_a_pipe_ends_quietly_when_the_reader_does() {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "big", "--size", "1TiB"]);
    Client::connect(&daemon.nbd_socket(), "big").write(0, &[0x61; 4096]);
    let mut command = daemon.ctl_command(&["disk", "export", "big", "-"]);
    let mut export = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut begin = [0u8; 1000];
    export.stdout.take().unwrap().read_exact(&mut begin).unwrap();
    assert_eq!(begin, [0x61; 1000]);
    let ended = export.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}

/// Scripts read arrays, integers and RFC 3339 times, one object per line if they like.
#[test]
fn lists_are_arrays_of_plain_values() {
    let daemon = daemon();
    let disks = daemon.json(&["disk", "list"]);
    assert!(disks[0]["size"].is_u64() && disks[0]["id"].as_str().unwrap().starts_with("d-"));
    let snapshot = &daemon.json(&["snapshot", "list"])[0];
    let created = snapshot["created_at"].as_str().unwrap();
    assert!(created.len() == 20 && created.ends_with('Z'), "{created}");
    for field in ["id", "name", "disk_id", "kind", "consistency", "status", "progress", "tags"] {
        assert!(!snapshot[field].is_null(), "{field} of {snapshot}");
    }
    let lines = daemon.ctl(&["-o", "jsonl", "snapshot", "list"]);
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    let ids = daemon.ctl(&["--quiet", "disk", "list"]);
    assert!(ids.lines().all(|line| line.starts_with("d-")) && ids.lines().count() == 2, "{ids}");
    let id = disks[0]["id"].as_str().unwrap();
    assert_eq!(daemon.json(&["disk", "show", &id[..9]])["id"], *id, "a beginning of an id will do");
}

/// What packages install comes from the program itself.
#[test]
fn man_pages_are_generated() {
    let daemon = Daemon::new();
    let pages = daemon.path("man");
    daemon.ctl(&["--quiet", "man", &pages]);
    let page = fs::read_to_string(daemon.file("man").join("rowctl-disk-rollback.1")).unwrap();
    assert!(page.contains("before"), "{page}");
}
