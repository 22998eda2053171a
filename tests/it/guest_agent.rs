//! Instances whose guest agent is not there or does not answer: what is told, and that nothing is made.
//!
//! Absent: agents that answer; a machine with a real one is in `vm/guest_agent.rs`. One of this host is
//! never asked to freeze: it would freeze this host.

use std::os::unix::net::UnixListener;

use rowd_tests::process::Daemon;
use serde_json::json;

/// A daemon with the disk `data` of the instance `web`, whose agent's socket is the file `qga.sock`.
fn daemon() -> Daemon {
    let daemon = Daemon::new();
    daemon.ctl(&["instance", "add", "web", "--qga", &daemon.path("qga.sock")]);
    daemon.ctl(&["disk", "create", "data", "--size", "1GiB", "--instance", "web"]);
    daemon
}

#[track_caller]
fn refused(daemon: &Daemon, why: &str) {
    for args in [
        &["snapshot", "create", "data", "--consistency", "fs"][..],
        &["group", "create", "--instance", "web", "--consistency", "fs"],
    ] {
        let error = daemon.json_error(1, args);
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains("web") && message.contains(why), "{message}");
        assert!(error["hint"].is_string(), "{error}");
    }
    assert_eq!(daemon.json(&["snapshot", "list"]), json!([]));
    assert_eq!(daemon.json(&["group", "list"]), json!([]));
}

#[test]
fn an_agent_that_is_not_there_is_told_and_nothing_is_made() {
    let daemon = daemon();
    refused(&daemon, "No such file");
    daemon.ctl(&["instance", "set", "web", "--qga", ""]);
    refused(&daemon, "has no guest agent");
    daemon.ctl(&["snapshot", "create", "data", "plain"]);
}

/// The socket is there, as the hypervisor keeps it, and no agent runs behind it.
#[test]
fn an_agent_that_does_not_answer_is_given_up_and_nothing_is_made() {
    let daemon = daemon();
    let _silent = UnixListener::bind(daemon.file("qga.sock")).unwrap();
    refused(&daemon, "does not answer within 5 s");
}

/// GRP-15: applications stand still for one instance; a crash-level group may have several.
#[test]
fn applications_of_two_instances_are_not_frozen_together() {
    let daemon = daemon();
    daemon.ctl(&["disk", "create", "host", "--size", "1GiB"]);
    let both = ["group", "create", "data", "host"];
    let error = daemon.json_error(2, &[&both[..], &["--consistency", "app"]].concat());
    assert_eq!(error["message"], "the level app is for the disks of one instance");
    daemon.ctl(&both);
}
