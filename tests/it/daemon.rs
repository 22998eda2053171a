//! The daemon as a process: start, stop, kill, and where it looks for its things.

use nix::sys::signal::Signal;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::{tool, wait};

/// A disk and its snapshots outlive an orderly stop and a kill.
#[test]
fn disks_and_snapshots_are_there_after_a_stop_and_after_a_kill() {
    let mut daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    daemon.ctl(&["snapshot", "create", "data", "first"]);
    daemon.stop();
    daemon.start();
    assert_eq!(daemon.json(&["snapshot", "show", "data@first"])["size"], 64 << 20);
    daemon.ctl(&["snapshot", "create", "data", "second"]);
    daemon.crash();
    let snapshots = daemon.json(&["snapshot", "list", "data"]);
    let names: Vec<_> = snapshots.as_array().unwrap().iter().map(|s| s["name"].clone()).collect();
    assert_eq!(names, ["first", "second"]);
}

/// The sockets of a killed daemon do not keep the next one from starting; those of a living one do.
#[test]
fn a_second_daemon_on_the_same_directory_is_refused() {
    let daemon = Daemon::new();
    tool::finish(&mut daemon.command()).fails_with(21);
    daemon.ctl(&["status"]);
}

/// The daemon with faults compiled in is the same daemon.
#[test]
fn the_faulty_daemon_works_when_no_fault_is_asked_for() {
    let faulty = env!("CARGO_BIN_EXE_rowd-faulty");
    let mut daemon = Setup::default().program(faulty).start();
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    daemon.stop();
}

/// A mistake in the configuration is named, with what would be right.
#[test]
fn a_mistake_in_the_configuration_ends_the_start_with_words() {
    for (config, part) in [
        ("[pool]\nsgement = \"1MiB\"\n", "sgement"),
        ("[pool]\nsegment = \"1\"\n", "256 KiB"),
        ("[background]\nflush_ms = 5000\n", "10 to 1000"),
        ("no equals sign", "rowd.toml"),
    ] {
        let mut daemon = Setup::default().config(config).prepare();
        assert!(!daemon.try_start(), "{config} was accepted");
        assert!(daemon.log().contains(part), "{part:?} is missing in {}", daemon.log());
    }
}

/// Fail points and removed guards are for tests; the program that is installed has none.
#[test]
fn the_daemon_proper_has_no_faults_compiled_in() {
    let nonsense = ("ROWD_SEEDED_FAULT", "no-such-fault");
    let daemon = Setup::default().env(nonsense.0, nonsense.1).prepare();
    let mut with_faults = Setup::default().program(env!("CARGO_BIN_EXE_rowd-faulty"));
    with_faults = with_faults.env(nonsense.0, nonsense.1);
    assert!(!started(with_faults.prepare()), "the faulty daemon should refuse an unknown fault");
    assert!(
        started(daemon),
        "this rowd was built together with the tests and has their faults: make build, or \
         cargo build --release -p rowd -p rowctl"
    );
}

/// Whether it comes as far as to serve a disk.
fn started(mut daemon: Daemon) -> bool {
    daemon.try_start() && daemon.try_ctl(&["disk", "create", "data", "--size", "1MiB"]).code == 0
}

/// Without TLS only this machine may connect.
/// Promise: from the moment it says that it is ready the daemon ends in order when it is asked to.
#[test]
fn a_daemon_that_has_just_become_ready_ends_in_order() {
    let mut daemon = Setup::default().program(tool::built("rowd-faulty")).prepare();
    let (held, point) = (daemon.file("hold"), "daemon.ready");
    let hold = format!("{point}:{}", held.display());
    daemon.change_setup(|setup| setup.env("ROWD_HOLD_POINT", &hold));
    daemon.start();
    wait::until("the hold point", || held.exists().then_some(()));
    daemon.signal(Signal::SIGTERM);
    std::fs::remove_file(held).unwrap();
    let status = daemon.wait_ended();
    assert!(status.success(), "{status}");
}

#[test]
fn tcp_beyond_loopback_is_refused() {
    let config = format!("{SMALL}\n[nbd]\ntcp = [\"0.0.0.0:0\"]\n");
    let mut daemon = Setup::default().config(&config).prepare();
    assert!(!daemon.try_start(), "it serves the world");
    assert!(daemon.log().contains("loopback"), "{}", daemon.log());
}
