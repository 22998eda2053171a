//! File systems in a virtual machine, frozen through its guest agent by a rowd on the host.
//!
//! The machine's disk is an export of that rowd. The daemon is held up while everything is frozen, so that
//! what a user meets once in a thousand freezes is met every time.
//!
//! Absent: agents that are not there at all (`it/guest_agent.rs`).

use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rowd::freeze::qga::Agent;
use rowd_tests::mount::Device;
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::vm::{Spec, Vm};
use rowd_tests::{tool, wait};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Writes and renames files, and syncs at times: the journal is never empty.
const LOAD: &str = "systemd-run --unit load bash -c 'i=0; while :; do i=$((i+1)); \
    head -c $((i%9*1000)) /dev/urandom > /srv/new; mv /srv/new /srv/f$((i%50)); \
    [ $((i%20)) = 0 ] && sync -f /srv; done'";

/// A daemon, a machine with its disk `data` mounted and written to, and its agent.
struct World {
    vm: Vm,
    daemon: Daemon,
    home: TempDir,
}

impl World {
    fn new() -> World {
        let home = tempfile::tempdir().unwrap();
        let hold = format!("freeze.frozen:{}", home.path().join("hold").display());
        let setup = Setup::default().program(tool::built("rowd-faulty"));
        let daemon = setup.env("ROWD_HOLD_POINT", &hold).start();
        let agent = home.path().join("qga.sock");
        let socket = agent.display().to_string();
        daemon.ctl(&["instance", "add", "web", "--qga", &socket]);
        daemon.ctl(&["disk", "create", "data", "--size", "256MiB", "--instance", "web"]);
        let spec = Spec::default().bare().drive("data", &daemon.uri("data")).guest_agent(&agent);
        let mut vm = spec.boot();
        let device = "/dev/disk/by-id/virtio-data";
        vm.sh(&format!("mkfs.ext4 -q {device}; mkdir -p /srv; mount {device} /srv")).ok();
        vm.sh(LOAD).ok();
        vm.until("the agent in the machine", "systemctl is-active qemu-guest-agent");
        World { vm, daemon, home }
    }

    fn agent(&self) -> PathBuf {
        self.home.path().join("qga.sock")
    }

    fn hold(&self) -> PathBuf {
        self.home.path().join("hold")
    }

    /// Begins a snapshot, up to where everything is frozen.
    fn begin(&self, name: &str) -> Child {
        let args = ["-o", "json", "snapshot", "create", "data", name, "--consistency", "fs"];
        let mut command = self.daemon.ctl_command(&args);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait::until("the freeze", || self.hold().exists().then_some(()));
        child
    }

    fn let_go(&self) {
        std::fs::remove_file(self.hold()).unwrap();
    }

    /// The processes that hold the agent's connection for the daemon.
    fn helpers(&self) -> Vec<Pid> {
        let socket = self.agent().display().to_string();
        let found = tool::run("pgrep", &["-f", &format!("rowd-freeze guest {socket}")]);
        found.stdout.lines().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }

    /// Kills it, and waits until it is gone: its end of the daemon's socket is closed then.
    fn kill_helper(&self) {
        self.helpers().into_iter().for_each(|pid| kill(pid, Signal::SIGKILL).unwrap());
        wait::until("the end of the helper", || self.helpers().is_empty().then_some(()));
    }

    fn is_frozen(&self) -> bool {
        let mut agent = wait::until("the agent's socket", || Agent::connect(&self.agent()).ok());
        agent.is_frozen().expect("the agent's answer")
    }

    /// What the file system on a snapshot has in its head.
    fn features(&self, snapshot: &str) -> String {
        self.daemon.ctl(&["disk", "create", snapshot, "--from", &format!("data@{snapshot}")]);
        let device = Device::attach(&self.daemon, snapshot);
        let head = tool::run("dumpe2fs", &["-h", device.path()]).ok().stdout;
        if !head.contains("needs_recovery") {
            tool::run("e2fsck", &["-fn", device.path()]).ok();
        }
        head
    }
}

fn ended(child: Child) -> (i32, Value) {
    let output = child.wait_with_output().unwrap();
    let code = output.status.code().unwrap();
    let text = if code == 0 { output.stdout } else { output.stderr };
    (code, serde_json::from_slice(&text).unwrap())
}

#[test]
fn file_systems_of_a_machine_are_frozen_through_its_agent_and_never_stay_so() {
    let mut world = World::new();
    // A cut without a freeze leaves a journal to replay; one with it does not.
    world.daemon.ctl(&["snapshot", "create", "data", "plain"]);
    assert!(world.features("plain").contains("needs_recovery"), "the load was not there");
    for name in ["one", "two", "three"] {
        let making = world.begin(name);
        assert_eq!(world.helpers().len(), 1);
        world.let_go();
        let (code, made) = ended(making);
        assert_eq!((code, &made["consistency"]), (0, &json!("fs")), "{made}");
        assert!(!world.features(name).contains("needs_recovery"), "{name}");
    }
    assert!(!world.is_frozen());
    world.vm.sh("sync -f /srv; systemctl is-active load").ok();

    // An agent that is stopped, and one that hangs.
    for (stop, start) in [
        ("systemctl stop qemu-guest-agent", "systemctl start qemu-guest-agent"),
        ("kill -STOP $(pidof qemu-ga)", "kill -CONT $(pidof qemu-ga)"),
    ] {
        world.vm.sh(stop).ok();
        let args = ["snapshot", "create", "data", "none", "--consistency", "fs"];
        let error = world.daemon.json_error(1, &args);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("does not answer within 5 s"), "{message}");
        world.vm.sh(start).ok();
        assert!(!world.is_frozen());
    }
    let all = world.daemon.json(&["snapshot", "list", "data"]);
    assert_eq!(all.as_array().map(Vec::len), Some(4), "{all}");

    helper_and_daemon_die(&mut world);
}

/// Whoever dies, the machine is thawed.
fn helper_and_daemon_die(world: &mut World) {
    let making = world.begin("helper-dies");
    world.kill_helper();
    world.let_go();
    let (code, error) = ended(making);
    assert_eq!((code, &error["error"]["kind"]), (11, &json!("freeze_failed")), "{error}");
    assert!(!world.is_frozen());

    let making = world.begin("daemon-dies");
    world.daemon.kill();
    assert_eq!(ended(making).0, 23);
    wait::until("the end of the helper", || world.helpers().is_empty().then_some(()));
    assert!(!world.is_frozen());

    // Both: the next start thaws. The machine's disk does not come back: only its own stay mounted.
    world.let_go();
    world.vm.sh("systemctl stop load; umount -l /srv").ok();
    world.daemon.start();
    nothing_is_left(world);
    let making = world.begin("both-die");
    world.kill_helper();
    world.daemon.kill();
    assert_eq!(ended(making).0, 23);
    assert!(world.is_frozen());
    world.let_go();
    world.daemon.start();
    nothing_is_left(world);
    assert!(!world.is_frozen());
}

/// Waits until the start has dealt with what the daemon before left.
#[track_caller]
fn nothing_is_left(world: &World) {
    wait::until("the end of the record", || {
        (world.daemon.json(&["freeze", "status"])["left"] == json!([])).then_some(())
    });
}
