//! Other people's NBD clients on a disk: libnbd's tools, QEMU's, fio, nbdkit.
//!
//! Absent: file systems (`filesystems.rs`), and clients that do what no tool does (`protocol.rs`).

use std::fs;
use std::net::TcpListener;

use rowd_tests::client::Client;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::tool;
use serde_json::{Value, json};

const SIZE: u64 = 64 << 20;

/// A daemon with one disk called `disk`.
fn daemon() -> Daemon {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    daemon
}

/// A file of the size of the disk, with data, zeroes and holes.
fn image(daemon: &Daemon, name: &str) -> String {
    let mut data = vec![0u8; usize::try_from(SIZE).unwrap()];
    let mut state = 0x2545_F491_4F6C_DD1Du64;
    println!("seed {state:#x}");
    for piece in data.chunks_mut(1 << 20).step_by(3) {
        for word in piece.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_be_bytes());
        }
    }
    fs::write(daemon.file(name), data).unwrap();
    daemon.path(name)
}

fn same_files(one: &str, other: &str) {
    tool::run("cmp", &[one, other]).ok();
}

/// What is advertised, and nothing else: each flag here has its test in this directory.
#[test]
fn nbdinfo_sees_the_flags_and_contexts_of_a_disk_and_of_a_snapshot() {
    let daemon = daemon();
    daemon.ctl(&["disk", "set", "disk", "--description", "for tests"]);
    daemon.ctl(&["snapshot", "create", "disk", "first"]);
    let shown = tool::run("nbdinfo", &["--json", &daemon.uri("disk")]).ok().json();
    assert_eq!(shown["protocol"], "newstyle-fixed");
    assert_eq!(shown["structured"], true);
    let disk = &shown["exports"][0];
    let expected = json!({
        "export-name": "disk", "description": "for tests", "export-size": SIZE,
        "is_read_only": false, "is_rotational": false, "can_flush": true, "can_fua": true,
        "can_trim": true, "can_zero": true, "can_fast_zero": true, "can_df": true,
        "can_cache": true, "can_multi_conn": true, "block_size_minimum": 1, "block_size_preferred": 4096,
        "block_size_maximum": 33_554_432, "contexts": ["base:allocation", "rowd:dirty:first"],
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(disk[key], *value, "{key} of {disk}");
    }
    let uri = daemon.uri("disk@first");
    let shown = tool::run("nbdinfo", &["--json", &uri]).ok().json();
    let snapshot = &shown["exports"][0];
    for key in ["can_trim", "can_zero", "can_fast_zero"] {
        assert_eq!(snapshot[key], false, "{key} of {snapshot}");
    }
    assert_eq!(snapshot["is_read_only"], true);
    assert_eq!(snapshot["can_multi_conn"], true);
}

#[test]
fn nbdinfo_lists_the_exports_and_takes_the_only_disk_as_default() {
    let daemon = daemon();
    let base = daemon.uri("");
    let size = tool::run("nbdinfo", &["--size", &base]).ok().stdout;
    assert_eq!(size.trim(), SIZE.to_string());
    daemon.ctl(&["disk", "create", "second", "--size", "1GiB"]);
    let failed = tool::run("nbdinfo", &["--size", &base]);
    assert_ne!(failed.code, 0, "two disks have no default");
    let list = tool::run("nbdinfo", &["--list", "--json", &base]).ok().json();
    let names: Vec<&Value> =
        list["exports"].as_array().unwrap().iter().map(|e| &e["export-name"]).collect();
    assert!(names.contains(&&json!("disk")) && names.contains(&&json!("second")), "{names:?}");
}

/// Any backup client gets the changed blocks.
#[test]
fn nbdinfo_maps_holes_and_what_changed_since_a_snapshot() {
    let daemon = daemon();
    let mut client = Client::connect(&daemon.nbd_socket(), "disk");
    client.write(0, &[1; 131_072]);
    daemon.ctl(&["snapshot", "create", "disk", "first"]);
    client.write(4096, &[2; 4096]);
    client.trim(65536, 65536);
    client.write(1 << 20, &[3; 8192]);
    let map = |context: &str| {
        let option = format!("--map={context}");
        let map = tool::run("nbdinfo", &[&option, "--json", &daemon.uri("disk")]).ok().json();
        let extents = map.as_array().unwrap().clone();
        extents
            .iter()
            .map(|e| ["offset", "length", "type"].map(|key| e[key].as_u64().unwrap()))
            .collect::<Vec<_>>()
    };
    let rest = |from: u64| SIZE - from;
    assert_eq!(
        map("base:allocation"),
        [[0, 65536, 0], [65536, 983_040, 3], [1 << 20, 8192, 0], [1_056_768, rest(1_056_768), 3]]
    );
    assert_eq!(
        map("rowd:dirty:first"),
        [
            [0, 4096, 0],
            [4096, 4096, 1],
            [8192, 57344, 0],
            [65536, 65536, 1],
            [131_072, 917_504, 0],
            [1 << 20, 8192, 1],
            [1_056_768, rest(1_056_768), 0],
        ]
    );
    let diff = |from: &str, to: &str| daemon.json(&["snapshot", "diff", from, to]);
    daemon.ctl(&["snapshot", "create", "disk", "second"]);
    assert_eq!(
        diff("disk@first", "disk@second"),
        json!([
            {"offset": 4096, "length": 4096, "zero": false},
            {"offset": 65536, "length": 65536, "zero": true},
            {"offset": 1 << 20, "length": 8192, "zero": false},
        ])
    );
}

#[test]
fn nbdcopy_copies_in_and_out() {
    let daemon = daemon();
    let (image, uri, back) = (image(&daemon, "image"), daemon.uri("disk"), daemon.path("back"));
    tool::run("nbdcopy", &["--flush", &image, &uri]).ok();
    tool::run("nbdcopy", &[&uri, &back]).ok();
    same_files(&image, &back);
    // Holes of the file are not stored.
    let used = daemon.status("used_bytes");
    assert_eq!(used, 22 << 20, "every third of 64 pieces of 1 MiB");
    daemon.ctl(&["snapshot", "create", "disk", "first"]);
    daemon.ctl(&["disk", "create", "copy", "--size", "64MiB"]);
    let snapshot = daemon.uri("disk@first");
    tool::run("nbdcopy", &["--flush", &snapshot, &daemon.uri("copy")]).ok();
    fs::remove_file(&back).unwrap();
    tool::run("nbdcopy", &[&daemon.uri("copy"), &back]).ok();
    same_files(&image, &back);
    assert_ne!(tool::run("nbdcopy", &[&image, &snapshot]).code, 0, "a snapshot is read-only");
}

#[test]
fn nbdsh_reads_what_it_wrote_with_every_command() {
    let daemon = daemon();
    let script = r#"
import errno
h.pwrite(b"a" * 70000, 1000)
h.pwrite(b"b" * 512, 0, nbd.CMD_FLAG_FUA)
assert h.pread(512, 0) == b"b" * 512
assert h.pread(488, 512) == b"\0" * 488
assert h.pread(70000, 1000) == b"a" * 70000
h.zero(4096, 8192)
h.zero(4096, 16384, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 20480, nbd.CMD_FLAG_FAST_ZERO)
h.trim(4096, 32768, nbd.CMD_FLAG_FUA)
for at in (8192, 16384, 20480, 32768):
    assert h.pread(4096, at) == b"\0" * 4096, at
h.cache(1048576, 0)
h.flush()
h.set_strict_mode(0)
for call, number in (
    (lambda: h.pwrite(b"x", h.get_size()), errno.ENOSPC),
    (lambda: h.pread(1, h.get_size()), errno.EINVAL),
    (lambda: h.trim(4096, 0, nbd.CMD_FLAG_NO_HOLE), errno.EINVAL),
):
    try:
        call()
        assert False, number
    except nbd.Error as e:
        assert e.errnum == number, (e, number)
"#;
    tool::run("nbdsh", &["-u", &daemon.uri("disk"), "-c", script]).ok();
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let daemon = daemon();
    let (image, uri, back) = (image(&daemon, "image"), daemon.uri("disk"), daemon.path("back"));
    tool::run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image, &uri]).ok();
    let compare = ["compare", "-f", "raw", "-F", "raw", &image, &uri];
    tool::run("qemu-img", &compare).ok().says(&["Images are identical"]);
    let qcow2 = daemon.path("qcow2");
    tool::run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &qcow2]).ok();
    tool::run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &qcow2, &back]).ok();
    same_files(&image, &back);
    let map = tool::run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).ok().json();
    assert_eq!(map.as_array().unwrap().len(), 43, "22 pieces of data and 21 holes between them");
    for (number, extent) in map.as_array().unwrap().iter().enumerate() {
        assert_eq!(extent["data"], number % 2 == 0, "{extent}");
        assert_eq!(extent["zero"], number % 2 == 1, "{extent}");
    }
    Client::connect(&daemon.nbd_socket(), "disk").write(12345, b"x");
    tool::run("qemu-img", &compare).fails_with(1).says(&["mismatch at offset"]);
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    let daemon = daemon();
    let commands = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 4k 4k",
        "write -z 64k 64k",
        "write -z -u 128k 64k",
        "write -P 0x33 1000 333",
        "discard 512k 64k",
        "flush",
        "read -P 0x22 4k 4k",
        "read -P 0x33 1000 333",
        "read -P 0 64k 128k",
        "read -P 0 512k 64k",
        "read -P 0x11 576k 448k",
        "aio_write -P 0x44 2M 1M",
        "aio_write -P 0x55 3M 1M",
        "aio_flush",
        "read -P 0x44 2M 1M",
        "read -P 0x55 3M 1M",
    ];
    let uri = daemon.uri("disk");
    let mut args = vec!["-f", "raw", "-t", "writeback", "-d", "unmap"];
    for command in &commands {
        args.extend(["-c", command]);
    }
    args.push(&uri);
    let done = tool::run("qemu-io", &args).ok();
    assert!(!done.stdout.contains("failed"), "{done}");
}

/// Four writers at once, each block checked by fio afterwards.
#[test]
fn fio_finds_every_block_that_four_jobs_wrote() {
    let daemon = daemon();
    let uri = format!("--uri={}", daemon.uri("disk"));
    let fixed = [
        "--name=verify",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bsrange=512-64k",
        "--size=16m",
        "--offset_increment=16m",
        "--numjobs=4",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--verify_backlog=256",
        "--fsync=64",
        "--randseed=4711",
        "--group_reporting",
        "--output-format=terse",
    ];
    let done = tool::finish(tool::command("fio").args(fixed).arg(uri).current_dir(daemon.file("")));
    done.ok();
}

/// nbdkit's filter reads back what each write would change, and fails if anything is different.
#[test]
fn nbdkit_checkwrite_agrees_that_the_disk_holds_the_image() {
    let daemon = daemon();
    let image = image(&daemon, "image");
    tool::run("nbdcopy", &[&image, &daemon.uri("disk")]).ok();
    let check = || {
        let uri = format!("uri={}", daemon.uri("disk"));
        let copy = format!("nbdcopy {image} \"$uri\"");
        tool::run("nbdkit", &["-U", "-", "--filter=checkwrite", "nbd", &uri, "--run", &copy])
    };
    check().ok();
    Client::connect(&daemon.nbd_socket(), "disk").write((3 << 20) + 77, b"?");
    assert_ne!(check().code, 0, "one byte differs");
}

/// Multi-conn: a flush on one connection covers what was answered on all others.
#[test]
fn a_flush_on_one_connection_makes_the_writes_of_all_durable() {
    let config = format!("{SMALL}\n[background]\nflush_ms = 1000\ncheckpoint_s = 3600\n");
    let daemon = Setup::default().config(&config).start();
    daemon.ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    let mut writer = Client::connect(&daemon.nbd_socket(), "disk");
    let mut flusher = Client::connect(&daemon.nbd_socket(), "disk");
    for round in 0..20u64 {
        writer.write(round * 8192, &[1; 4096]);
        let written = daemon.status("last_seq");
        flusher.flush();
        let durable = daemon.status("durable_seq");
        assert!(durable >= written, "round {round}: {durable} of {written} are durable");
    }
}

/// Both protocols of the address, the same disk.
#[test]
fn a_disk_is_served_over_tcp_on_loopback_when_configured() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!("{SMALL}\n[nbd]\ntcp = [\"127.0.0.1:{port}\"]\n");
    let daemon = Setup::default().config(&config).start();
    daemon.ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    let image = image(&daemon, "image");
    let uri = format!("nbd://127.0.0.1:{port}/disk");
    tool::run("nbdcopy", &[&image, &uri]).ok();
    let back = daemon.path("back");
    tool::run("nbdcopy", &[&daemon.uri("disk"), &back]).ok();
    same_files(&image, &back);
}

/// `nbdinfo [ rowd ... ]`: the client starts the daemon and hands it a listening socket.
#[test]
fn a_client_can_start_the_daemon_by_socket_activation() {
    let mut daemon = daemon();
    Client::connect(&daemon.nbd_socket(), "disk").write(0, &[0x61; 4096]);
    daemon.stop();
    let (rowd, dir) = (tool::built("rowd"), daemon.dir());
    let (rowd, dir) = (rowd.to_str().unwrap(), dir.to_str().unwrap());
    let config = daemon.path("rowd.toml");
    let command = ["[", rowd, "--dir", dir, "--config", &config, "]"];
    let size = tool::run("nbdinfo", &[&["--size", "--"], &command[..]].concat()).ok();
    assert_eq!(size.stdout.trim(), SIZE.to_string());
    let back = daemon.path("back");
    tool::run("nbdcopy", &[&["--"], &command[..], &[&back]].concat()).ok();
    let data = fs::read(&back).unwrap();
    assert_eq!((data.len() as u64, &data[..4096]), (SIZE, &[0x61; 4096][..]));
    daemon.start();
}
