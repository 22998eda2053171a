//! Pools with `io = "direct"`: the same promises, past the page cache.
//!
//! Absent: crashes in this mode (`crash_kill.rs`, `crash_power.rs`) and random histories (`model.rs`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rowd::pool::file::IoMode;
use rowd_tests::crash::with_mode;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::{mount, tool};

/// `O_DIRECT` in the flags of an open file, as the kernel shows them.
const O_DIRECT: u32 = 0o40000;

fn setup(mode: IoMode) -> Setup {
    Setup::default().config(&with_mode(SMALL, mode))
}

/// Writes requests of all sizes with several in flight, or only reads and verifies them.
fn fio(daemon: &Daemon, more: &[&str]) {
    let mut fio = tool::command("fio");
    fio.args(["--name=job", "--ioengine=nbd", "--rw=randwrite", "--size=24M", "--iodepth=16"]);
    fio.args(["--bsrange=512-256k", "--blockalign=512", "--randseed=7", "--fsync=50"]);
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
    fio.arg(format!("--uri={}", daemon.uri("data"))).args(more);
    tool::finish(fio.current_dir(daemon.file(""))).ok();
}

/// Whether the pool file is open past the page cache.
fn is_direct(daemon: &Daemon) -> bool {
    let of = |what: &str| PathBuf::from(format!("/proc/{}/{what}", daemon.pid()));
    let is_pool = |fd: &PathBuf| fs::read_link(fd).is_ok_and(|to| to.ends_with("dir/pool"));
    let fds = fs::read_dir(of("fd")).unwrap().map(|entry| entry.unwrap().path());
    let fd = fds.filter(|fd| is_pool(fd)).last().expect("the pool file is open");
    let info = fs::read_to_string(of("fdinfo").join(fd.file_name().unwrap())).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap() & O_DIRECT != 0
}

fn scrubbed(daemon: &Daemon) {
    daemon.ctl(&["scrub", "--wait"]);
    assert_eq!(daemon.json(&["status"])["last_scrub"]["bad"].as_array().unwrap().len(), 0);
}

/// Requests of any size and alignment read back as written, and everything verifies.
#[test]
fn what_is_written_in_direct_mode_reads_back() {
    let mut daemon = setup(IoMode::Direct).start();
    assert!(is_direct(&daemon), "the pool file goes through the page cache");
    daemon.ctl(&["disk", "create", "data", "--size", "24MiB"]);
    fio(&daemon, &[]);
    daemon.ctl(&["snapshot", "create", "data", "first"]);
    fio(&daemon, &[]);
    scrubbed(&daemon);
    daemon.crash();
    fio(&daemon, &["--verify_only=1"]);
    daemon.stop();
    tool::finish(daemon.command().arg("check")).ok();
}

/// The mode is one of the daemon, not of the pool: any start may change it, after a kill too.
#[test]
fn a_pool_goes_from_one_mode_to_the_other_and_back() {
    let mut daemon = setup(IoMode::Buffered).start();
    daemon.ctl(&["disk", "create", "data", "--size", "24MiB"]);
    for mode in [IoMode::Direct, IoMode::Buffered, IoMode::Direct] {
        fio(&daemon, &[]);
        daemon.kill();
        daemon.change_setup(|_| setup(mode));
        daemon.start();
        assert_eq!(is_direct(&daemon), mode == IoMode::Direct);
        fio(&daemon, &["--verify_only=1"]);
    }
    scrubbed(&daemon);
    daemon.kill();
    for mode in [IoMode::Direct, IoMode::Buffered] {
        daemon.change_setup(|_| setup(mode));
        tool::finish(daemon.command().arg("check")).ok();
    }
}

/// Where the system grants no io_uring the daemon says so once, and works.
#[test]
fn without_io_uring_direct_mode_works_and_the_log_says_why() {
    let home = tempfile::tempdir().unwrap();
    let script = home.path().join("without-uring");
    let rowd = tool::built("rowd");
    let text = format!(
        "#!/bin/sh\nexec strace -D -f -o /dev/null -e trace=io_uring_setup \
         -e inject=io_uring_setup:error=EPERM {} \"$@\"\n",
        rowd.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    let daemon = setup(IoMode::Direct).program(script).start();
    daemon.ctl(&["disk", "create", "data", "--size", "24MiB"]);
    fio(&daemon, &[]);
    assert_eq!(daemon.log().matches("io_uring is not permitted").count(), 1, "{}", daemon.log());
}

/// A file system of its own, in memory, without direct I/O.
struct Ramfs<'a>(&'a Path);

impl Drop for Ramfs<'_> {
    fn drop(&mut self) {
        let done = mount::unmount(self.0);
        if done.code != 0 {
            eprintln!("{done}");
        }
    }
}

/// A file system that does no direct I/O is named before anything is made.
#[test]
fn a_file_system_without_direct_io_is_refused_with_a_hint() {
    let home = tempfile::tempdir().unwrap();
    tool::finish(tool::command("mount").args(["-t", "ramfs", "ramfs"]).arg(home.path())).ok();
    let ramfs = Ramfs(home.path());
    let text = format!("{SMALL}path = \"{}\"\n", home.path().join("pool").display());
    let mut daemon = Setup::default().config(&with_mode(&text, IoMode::Direct)).prepare();
    assert!(!daemon.try_start(), "ramfs has learnt direct I/O");
    let log = daemon.log();
    assert!(log.contains("does no direct I/O") && log.contains("io = \"buffered\""), "{log}");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "something was made");
    assert!(!daemon.dir().join("map").exists(), "a map was made");
    drop((daemon, ramfs));
}
