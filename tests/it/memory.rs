//! Memory pressure: what the daemon asks of the system, and what it tells when it is refused.
//!
//! Absent: pressure itself, which needs a kernel with an NBD client (`tests/vm`).

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rowd::pool::file::IoMode;
use rowd_tests::crash::with_mode;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::tool;
use serde_json::Value;

/// `PF_MEMALLOC_NOIO` and `PF_LOCAL_THROTTLE` in the flags of a task: what marks an I/O flusher.
const IO_FLUSHER: u64 = 0x0008_0000 | 0x0010_0000;

/// Bits of capabilities.
const IPC_LOCK: u32 = 14;
const SYS_RESOURCE: u32 = 24;

fn locking() -> String {
    format!("{SMALL}\n[memory]\nlock = true\n")
}

/// The flags of each thread of the daemon.
fn flags_of_threads(daemon: &Daemon) -> Vec<u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let flags = |path: std::path::PathBuf| {
        // A thread may end meanwhile.
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let behind_name = stat.rsplit(')').next()?;
        behind_name.split_whitespace().nth(6)?.parse().ok()
    };
    tasks.filter_map(|task| flags(task.unwrap().path())).collect()
}

fn memory(examinations: &Value) -> &Value {
    let all = examinations.as_array().unwrap();
    all.iter().find(|one| one["subject"] == "memory").expect("doctor looks at memory")
}

/// Whether a process started here has a capability: containers often lack some, root or not.
fn may(capability: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(set.trim(), 16).unwrap() & (1 << capability) != 0
}

/// With `lock = true` all memory is locked, every thread is an I/O flusher and the kernel spares the
/// daemon, as far as its rights go; and what it tells is what the kernel says.
#[test]
fn a_daemon_that_asks_for_it_is_kept_from_memory_pressure() {
    assert!(may(IPC_LOCK), "run the tests as root");
    let daemon = Setup::default().config(&with_mode(&locking(), IoMode::Direct)).start();
    daemon.ctl(&["disk", "create", "data", "--size", "1MiB"]);
    let status = daemon.json(&["status"]);
    assert_eq!((&status["io_mode"], &status["memory_locked"]), (&"direct".into(), &true.into()));
    let own = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let locked = own.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    let locked: u64 = locked.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(locked > 1024, "{locked} KiB are locked");
    let marks = flags_of_threads(&daemon);
    let marked = marks.iter().filter(|flags| *flags & IO_FLUSHER == IO_FLUSHER).count();
    let whole = may(SYS_RESOURCE);
    assert_eq!(status["io_flusher"], whole);
    assert_eq!(marked, if whole { marks.len() } else { 0 }, "of {} threads", marks.len());
    assert_eq!(status["oom_score_adj"], if whole { -1000 } else { 0 });
    let verdict = if whole { "ok" } else { "advice" };
    assert_eq!(memory(&daemon.json(&["doctor"]))["state"], verdict);
}

/// What a user's script starts, a database for example, is neither an I/O flusher nor spared.
#[test]
fn a_script_of_such_a_daemon_is_an_ordinary_process() {
    let daemon = Setup::default().config(&with_mode(&locking(), IoMode::Direct)).start();
    daemon.ctl(&["disk", "create", "data", "--size", "1MiB"]);
    let spared = if may(SYS_RESOURCE) { -1000 } else { 0 };
    assert_eq!(daemon.json(&["status"])["oom_score_adj"], spared);
    let (script, told) = (daemon.file("script"), daemon.path("told"));
    let text = format!("(sleep 0.2; cat /proc/self/oom_score_adj /proc/self/stat) > {told}\n");
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    let script = script.display().to_string();
    let scripts = ["--no-freeze", "--pre-script", &script, "--post-script", &script];
    let create = ["snapshot", "create", "data", "quiet", "--consistency", "app"];
    daemon.ctl(&[&create[..], &scripts].concat());
    let told = fs::read_to_string(told).unwrap();
    let (score, stat) = told.split_once('\n').unwrap();
    let flags = stat.rsplit(')').next().unwrap().split_whitespace().nth(6).unwrap();
    assert_eq!(score, "0");
    assert_eq!(flags.parse::<u64>().unwrap() & IO_FLUSHER, 0, "{stat}");
}

/// A daemon without the rights says once what it lacks and what to do, and works.
#[test]
fn a_daemon_that_may_not_says_what_it_lacks_and_works() {
    let home = tempfile::tempdir().unwrap();
    let script = home.path().join("unprivileged");
    let rowd = tool::built("rowd");
    let text = format!(
        "#!/bin/sh\nexec prlimit --memlock=65536:65536 \
         setpriv --bounding-set=-all --inh-caps=-all {} \"$@\"\n",
        rowd.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    let daemon = Setup::default().config(&locking()).program(script).start();
    let status = daemon.json(&["status"]);
    assert_eq!((&status["io_flusher"], &status["memory_locked"]), (&false.into(), &false.into()));
    let log = daemon.log();
    for part in ["PR_SET_IO_FLUSHER", "RLIMIT_MEMLOCK", "OOMScoreAdjust", "LimitMEMLOCK"] {
        assert_eq!(log.matches(part).count(), 1, "{part} in\n{log}");
    }
    daemon.ctl(&["disk", "create", "data", "--size", "1MiB"]);
}

/// Who serves no kernel device of this host is not bothered: nothing is locked, nothing is said.
#[test]
fn by_default_nothing_is_locked_and_nothing_is_said() {
    let daemon = Daemon::new();
    let status = daemon.json(&["status"]);
    assert_eq!((&status["io_mode"], &status["memory_locked"]), (&"buffered".into(), &false.into()));
    assert!(!daemon.log().contains("memory"), "{}", daemon.log());
    assert_eq!(memory(&daemon.json(&["doctor"]))["state"], "ok");
}
