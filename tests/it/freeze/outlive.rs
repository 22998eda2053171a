//! A file system never stays frozen: not when the daemon dies, nor its helper, nor both; not when a file
//! system hangs, nor when the snapshot fails or takes too long.
//!
//! The daemon is held up between two steps, so that what a user meets once in a thousand freezes is met
//! every time.

use std::fs;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rowd::freeze::hurry;
use rowd::freeze::record::{Record, boot};
use rowd_tests::process::Daemon;
use rowd_tests::{tool, wait};
use serde_json::{Value, json};

use super::world::{EXT4, Kind, World, XFS};

/// rowctl, making a snapshot in the background.
pub struct Making(Option<Child>);

impl Making {
    #[track_caller]
    pub fn start(world: &World, name: &str, more: &[&str]) -> Making {
        let args = world.create_args(name, more);
        let args: Vec<&str> =
            ["-o", "json"].into_iter().chain(args.iter().map(String::as_str)).collect();
        let mut command = world.daemon.ctl_command(&args);
        Making(Some(piped(&mut command).spawn().expect("start rowctl")))
    }

    /// Its exit code and what it printed.
    #[track_caller]
    pub fn ended(mut self) -> (i32, Value) {
        let child = self.0.take().expect("taken only here");
        let output = child.wait_with_output().expect("wait for rowctl");
        let code = output.status.code().expect("an exit code");
        let text = if code == 0 { output.stdout } else { output.stderr };
        (code, serde_json::from_slice(&text).expect("JSON"))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().and_then(|()| child.wait()).expect("end rowctl");
        }
    }
}

fn piped(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// Waits until the daemon is held up.
#[track_caller]
pub fn held(world: &World) {
    wait::until("the hold point", || world.daemon.file("hold").exists().then_some(()));
}

pub fn let_go(world: &World) {
    fs::remove_file(world.daemon.file("hold")).unwrap();
}

/// Whether a write to the file system gets through; a process of its own waits while it is frozen.
pub struct Writer(Child);

impl Writer {
    fn start(world: &World) -> Writer {
        let file = world.dir().join("written");
        Writer(tool::command("touch").arg(file).spawn().unwrap())
    }

    fn is_done(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// It got through, so the file system is not frozen.
    #[track_caller]
    pub fn gets_through(mut self) {
        wait::until("a write to the file system", || self.is_done().then_some(()));
    }
}

/// The file system is frozen: somebody who writes waits.
#[track_caller]
pub fn is_frozen(world: &World) -> Writer {
    let mut writer = Writer::start(world);
    let proc = format!("/proc/{}/wchan", writer.0.id());
    wait::until("a writer that waits", || {
        assert!(!writer.is_done(), "the file system is not frozen");
        let waits = fs::read_to_string(&proc).unwrap_or_default();
        (waits.contains("freeze") || waits.contains("percpu_rwsem")).then_some(())
    });
    writer
}

/// The helper of the daemon, from the process list.
fn helper(world: &World) -> Pid {
    let daemon = world.daemon.pid();
    let children =
        fs::read_dir(format!("/proc/{daemon}/task")).unwrap().flatten().flat_map(|task| {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            text.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()).collect::<Vec<_>>()
        });
    let is_helper = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim() == "rowd-freeze")
    };
    Pid::from_raw(children.filter(|pid| is_helper(pid)).last().expect("the daemon has a helper"))
}

pub fn record(world: &World) -> bool {
    world.daemon.dir().join("frozen.json").exists()
}

/// The daemon is killed while everything is frozen: the helper sees it and thaws at once; the next start
/// finds nothing left to do.
#[test]
fn the_helper_thaws_when_the_daemon_is_killed() {
    let mut world = World::held_at(&EXT4, "freeze.frozen");
    let making = Making::start(&world, "cut-off", &[]);
    held(&world);
    let writer = is_frozen(&world);
    assert!(record(&world));
    world.daemon.kill();
    writer.gets_through();
    assert_eq!(making.ended().0, 23);
    let_go(&world);
    world.daemon.start();
    wait::until("the end of the record", || (!record(&world)).then_some(()));
    assert_eq!(world.daemon.json(&["snapshot", "list"]), json!([]));
}

/// The helper is killed: the daemon thaws by itself, and makes no snapshot.
#[test]
fn the_daemon_thaws_when_the_helper_is_killed() {
    let world = World::held_at(&EXT4, "freeze.frozen");
    let making = Making::start(&world, "cut-off", &[]);
    held(&world);
    let writer = is_frozen(&world);
    kill(helper(&world), Signal::SIGKILL).unwrap();
    writer.gets_through();
    let_go(&world);
    let (code, error) = making.ended();
    assert_eq!((code, &error["error"]["kind"]), (11, &json!("freeze_failed")), "{error}");
    assert_eq!(world.daemon.json(&["snapshot", "list"]), json!([]));
    assert!(!record(&world));
}

/// A helper that is stopped does not keep the deadline: the daemon steps in.
#[test]
fn the_daemon_thaws_when_the_helper_hangs() {
    let world = World::held_at(&EXT4, "freeze.frozen");
    let making = Making::start(&world, "too-late", &["--freeze-timeout", "1"]);
    held(&world);
    kill(helper(&world), Signal::SIGSTOP).unwrap();
    is_frozen(&world).gets_through();
    let_go(&world);
    let (code, error) = making.ended();
    assert_eq!((code, &error["error"]["kind"]), (6, &json!("timed_out")), "{error}");
}

/// A world whose file system stays frozen: daemon and helper were killed while it was, the helper first so that
/// it cannot thaw.
#[track_caller]
fn both_killed(kind: &Kind, more: &[&str]) -> (World, Making) {
    let mut world = World::held_at(kind, "freeze.frozen");
    let making = Making::start(&world, "cut-off", more);
    held(&world);
    let helper = helper(&world);
    // Neither may see the other die.
    world.daemon.signal(Signal::SIGSTOP);
    kill(helper, Signal::SIGKILL).unwrap();
    world.daemon.kill();
    (world, making)
}

/// Both are killed, the helper first so that it cannot thaw: the next start of the daemon does.
#[test]
fn the_next_start_thaws_when_both_are_killed() {
    let (mut world, making) = both_killed(&EXT4, &[]);
    assert_eq!(making.ended().0, 23);
    assert!(record(&world));
    let writer = is_frozen(&world);
    let_go(&world);
    world.daemon.start();
    writer.gets_through();
    wait::until("the end of the record", || (!record(&world)).then_some(()));
    wait::until("the event", || {
        world.daemon.json(&["events"]).to_string().contains("freeze.recovered").then_some(())
    });
}

/// Who died while the kernel was in a hurry for a freeze has left that in the record.
#[test]
fn the_hurry_of_the_kernel_ends_with_the_record_of_the_freeze() {
    let home = tempfile::TempDir::with_prefix("rowd-hurry-").unwrap();
    let file = home.path().join("frozen.json");
    let record = Record { boot: boot(), hurried: true, ..Record::default() };
    fs::write(&file, serde_json::to_string(&record).unwrap()).unwrap();
    fs::write("/sys/kernel/rcu_expedited", "1").unwrap();
    let program = tool::built("rowd-freeze");
    let mut thaw = Command::new(program);
    tool::finish(thaw.args(["thaw", "--recorded"]).arg(&file)).ok();
    // Freezes of other tests may have it on for a moment.
    wait::until("the kernel takes its time again", || hurry::is_off().then_some(()));
    assert!(!file.exists());
}

/// The same without a next start: `rowctl freeze thaw` works by the record alone.
#[test]
fn rowctl_thaws_without_a_daemon() {
    let (world, making) = both_killed(&XFS, &[]);
    drop(making);
    let writer = is_frozen(&world);
    let said = world.daemon.try_ctl(&["freeze", "thaw"]).ok();
    assert!(said.stdout.contains(&world.dir_text()), "{said}");
    writer.gets_through();
    assert!(!record(&world));
}

/// The worst case: both are killed, and the frozen file system is unmounted, which the kernel allows once
/// nobody holds it. It is still frozen when it is mounted again. The next start says so until it is thawed.
#[test]
fn what_was_unmounted_while_frozen_is_remembered_until_it_is_thawed() {
    let other = Daemon::new();
    let elsewhere = EXT4.made(&other, "elsewhere");
    let dir = elsewhere.path().display().to_string();
    let (mut world, making) = both_killed(&EXT4, &["--mount", &dir]);
    drop(making);
    let device = elsewhere.unmount();
    let_go(&world);
    world.daemon.start();
    wait::until("the first try", || {
        world.daemon.json(&["events"]).to_string().contains("mount it and thaw again").then_some(())
    });
    let found = world.daemon.try_ctl(&["-o", "json", "check"]).fails_with(1).json();
    assert!(found.to_string().contains("\"frozen\""), "{found}");
    world.daemon.try_ctl(&["doctor"]).fails_with(1).says(&["frozen file systems", "freeze thaw"]);
    let error = world.create_fails(1, "refused", &[]);
    assert!(error["hint"].as_str().unwrap().contains("freeze thaw"), "{error}");
    let mounted = device.mount("noatime");
    world.daemon.ctl(&["freeze", "thaw"]);
    fs::write(mounted.path().join("written"), "x").unwrap();
    world.daemon.ctl(&["check"]);
    assert!(!record(&world));
}

/// PLUG-11, APP-18, EXIT-06: what takes too long is thawed at the deadline, and there is no snapshot.
#[test]
fn the_deadline_thaws_when_the_snapshot_takes_too_long() {
    let world = World::held_at(&EXT4, "freeze.frozen");
    let making = Making::start(&world, "too-late", &["--freeze-timeout", "1"]);
    held(&world);
    is_frozen(&world).gets_through();
    let_go(&world);
    let (code, error) = making.ended();
    assert_eq!((code, &error["error"]["kind"]), (6, &json!("timed_out")), "{error}");
    assert_eq!(world.daemon.json(&["snapshot", "list"]), json!([]));
    assert!(!record(&world));
    let events = world.daemon.json(&["events"]).to_string();
    assert!(events.contains("freeze.failed"), "{events}");
}

/// A deadline that passes after the cut and before the thaw takes nothing from the snapshot.
#[test]
fn a_deadline_after_the_cut_changes_nothing() {
    let world = World::held_at(&EXT4, "freeze.cut");
    let making = Making::start(&world, "in-time", &["--freeze-timeout", "1"]);
    held(&world);
    is_frozen(&world).gets_through();
    let_go(&world);
    let (code, made) = making.ended();
    assert_eq!((code, &made["consistency"]), (0, &json!("fs")), "{made}");
    EXT4.is_clean(&world.daemon, "db@in-time");
}

/// `rowctl freeze thaw` ends a freeze that runs; the snapshot is not made. Another freeze has to wait.
#[test]
fn a_freeze_can_be_called_off_and_is_alone() {
    let world = World::held_at(&EXT4, "freeze.frozen");
    let making = Making::start(&world, "called-off", &[]);
    held(&world);
    let status = world.daemon.json(&["freeze", "status"]);
    assert_eq!(status["running"]["what"], "db@called-off");
    assert_eq!(status["running"]["phase"], "freeze");
    assert_eq!(status["running"]["targets"][0]["mount_point"], world.dir_text());
    let error = world.create_fails(21, "second", &[]);
    assert!(error["message"].as_str().unwrap().contains("db@called-off"), "{error}");
    world.daemon.ctl(&["snapshot", "create", "db", "plain"]);
    let writer = is_frozen(&world);
    world.daemon.ctl(&["freeze", "thaw"]);
    writer.gets_through();
    let_go(&world);
    assert_eq!(making.ended().0, 25);
    let left = world.daemon.json(&["snapshot", "list"]);
    assert_eq!(left.as_array().map(Vec::len), Some(1), "{left}");
}

/// Somebody else thaws between: the snapshot stays and counts as crash-consistent, with the reason.
#[test]
fn a_thaw_by_somebody_else_costs_the_level_and_is_told() {
    let world = World::held_at(&EXT4, "freeze.frozen");
    let making = Making::start(&world, "disturbed", &[]);
    held(&world);
    tool::run("fsfreeze", &["--unfreeze", &world.dir_text()]).ok();
    let_go(&world);
    let (code, made) = making.ended();
    assert_eq!((code, &made["consistency"], &made["tags"]), (0, &json!("crash"), &json!({})));
    let notes = made["freeze"]["notes"].to_string();
    assert!(notes.contains("somebody else thawed"), "{notes}");
}

/// EXIT-11: what somebody else has frozen cannot be frozen, and stays as it is.
#[test]
fn a_file_system_that_is_frozen_already_is_left_alone() {
    let world = World::new(&XFS);
    tool::run("fsfreeze", &["--freeze", &world.dir_text()]).ok();
    let error = world.create_fails(11, "frozen", &[]);
    assert!(error["hint"].as_str().unwrap().contains("fsfreeze"), "{error}");
    let writer = is_frozen(&world);
    tool::run("fsfreeze", &["--unfreeze", &world.dir_text()]).ok();
    writer.gets_through();
    assert_eq!(world.daemon.json(&["snapshot", "list"]), json!([]));
    world.create("thawed", &[]);
}
