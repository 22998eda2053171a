//! Who may do what, what nobody does by mistake, and what is written down of it.
//!
//! Absent: the permissions of NBD sockets (`clients.rs`).

use std::fs::{self, Permissions};
use std::io::{Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rowd_tests::client::Client;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::tool::{self, Outcome};
use serde_json::Value;

/// A daemon with a disk that was written to before and after its snapshot `first`, and a group of it.
fn daemon() -> Daemon {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "data1", "--size", "64MiB"]);
    let mut client = Client::connect(&daemon.nbd_socket(), "data1");
    client.write(0, &[1; 4096]);
    daemon.ctl(&["snapshot", "create", "data1", "first"]);
    daemon.ctl(&["group", "create", "data1", "--name", "both"]);
    client.write(0, &[2; 4096]);
    client.disconnect();
    daemon
}

/// Promise: a protected disk is lost by no verb and no force; what takes nothing away goes on.
#[test]
fn a_protected_disk_is_lost_by_no_verb() {
    let mut daemon = daemon();
    daemon.ctl(&["disk", "rollback", "data1", "first", "--yes"]);
    let disk = daemon.json(&["disk", "set", "data1", "--protect"]);
    assert_eq!(disk["protected"], true);
    daemon.crash();
    let mut client = Client::connect(&daemon.nbd_socket(), "data1");
    for verb in [
        "disk delete data1 --yes --force",
        "disk rollback data1 first --yes --force",
        "disk rollback --undo data1 --yes --force",
        "disk reinit data1 --yes --force",
        "disk resize data1 32MiB --yes",
        "group rollback both --yes --force",
    ] {
        let words: Vec<&str> = verb.split(' ').collect();
        let error = daemon.json_error(15, &words);
        assert!(error["message"].as_str().unwrap().contains("disk data1 is protected"), "{error}");
        assert!(error["hint"].as_str().unwrap().contains("--no-protect"), "{error}");
    }
    assert_eq!(client.read(0, 4096), [1; 4096], "nobody was disconnected, nothing has changed");
    client.disconnect();
    daemon.ctl(&["disk", "resize", "data1", "128MiB"]);
    daemon.ctl(&["snapshot", "create", "data1", "second"]);
    daemon.ctl(&["disk", "set", "data1", "--no-protect"]);
    daemon.ctl(&["disk", "delete", "data1", "--yes", "--force"]);
    daemon.try_ctl(&["events"]).ok().says(&["disk.protect", "disk.unprotect"]);
}

/// Promise: a protected snapshot stays, alone, in its group, and with force; the disk may go.
#[test]
fn a_protected_snapshot_stays() {
    let mut daemon = daemon();
    daemon.ctl(&["snapshot", "set", "data1@first", "--protect"]);
    daemon.ctl(&["snapshot", "set", "data1@both", "--protect"]);
    daemon.crash();
    assert_eq!(daemon.json(&["snapshot", "show", "data1@first"])["protected"], true);
    for verb in ["snapshot delete data1@first --yes --force", "group delete both --yes --force"] {
        let error = daemon.json_error(15, &verb.split(' ').collect::<Vec<_>>());
        assert!(error["hint"].as_str().unwrap().contains("snapshot set data1@"), "{error}");
    }
    daemon.ctl(&["disk", "rollback", "data1", "first", "--yes"]);
    daemon.ctl(&["disk", "delete", "data1", "--yes"]);
    daemon.ctl(&["snapshot", "set", "first", "--no-protect"]);
    daemon.ctl(&["snapshot", "delete", "first", "--yes"]);
    daemon.json_error(2, &["snapshot", "set", "both", "--protect", "--no-protect"]);
    daemon.json_error(2, &["snapshot", "set", "both"]);
}

/// rowctl on a terminal of its own, with this typed into it.
fn typed(daemon: &Daemon, args: &[&str], answer: &str) -> Outcome {
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(answer.as_bytes()).unwrap();
    input.rewind().unwrap();
    let line = daemon.ctl_command(args);
    let words = std::iter::once(line.get_program()).chain(line.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let mut script = tool::command("script");
    tool::finish(script.args(["-qec", &line.join(" "), "/dev/null"]).stdin(input))
}

/// Promise: on a terminal, what is gone for good wants its name; anything else changes nothing.
#[test]
fn what_is_gone_for_good_wants_its_name() {
    let daemon = daemon();
    for answer in ["y\n", "yes\n", "data\n", "\n"] {
        let told = typed(&daemon, &["disk", "delete", "data1"], answer).fails_with(25);
        told.says(&["Delete disk data1 (64 MiB)? Type data1 to go on:", "nothing was changed"]);
    }
    typed(&daemon, &["disk", "reinit", "data1"], "y\n").fails_with(25);
    typed(&daemon, &["disk", "resize", "data1", "32MiB"], "y\n").fails_with(25);
    typed(&daemon, &["disk", "rollback", "data1", "first"], "y\n").ok();
    typed(&daemon, &["disk", "delete", "data1"], "data1\n").ok().says(&["data1 is deleted"]);
}

/// rowctl as a user who is in this group only.
fn as_member(home: &Path, group: &str, socket: &Path, args: &[&str]) -> Outcome {
    // The program itself is in a directory of root's.
    let program = home.join("rowctl");
    if !program.exists() {
        fs::copy(tool::built("rowctl"), &program).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    }
    let mut setpriv: Command = tool::command("setpriv");
    setpriv.args(["--reuid", "nobody", "--regid", group, "--clear-groups", "--"]);
    setpriv.arg(program).arg("--socket").arg(socket).args(args);
    tool::finish(&mut setpriv)
}

/// Promise: members of a read-only group may look through the read-only socket, and that is all.
#[test]
fn a_read_only_group_may_look_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    let (admin, observer) = (home.path().join("control.sock"), home.path().join("observer.sock"));
    let control = format!(
        "[control]\nsocket = {admin:?}\nread_only_socket = {observer:?}\nread_only_groups = [\"games\"]"
    );
    let mut daemon = Setup::default().config(&format!("{SMALL}\n{control}")).prepare();
    let mut command = daemon.command();
    let mut child = command.spawn().unwrap();
    let looks =
        |group: &str, socket: &Path, args: &[&str]| as_member(home.path(), group, socket, args);
    rowd_tests::wait::until("the daemon", || {
        (looks("games", &observer, &["status"]).code == 0).then_some(())
    });
    looks("games", &observer, &["disk", "create", "data1", "--size", "1GiB"])
        .fails_with(3)
        .says(&["read-only"]);
    // The file of the admin socket is not for them; where it is, the kernel's answer is.
    assert_ne!(looks("games", &admin, &["status"]).code, 0);
    fs::set_permissions(&admin, Permissions::from_mode(0o666)).unwrap();
    looks("games", &admin, &["status"]).fails_with(3).says(&["may not use this socket"]);
    looks("mail", &observer, &["status"]).fails_with(3).says(&["may not use this socket"]);
    let refused = fs::read_to_string(daemon.dir().join("audit.jsonl")).unwrap();
    assert!(refused.contains("\"observer\"") && refused.contains("not_permitted"), "{refused}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(daemon.ended().is_none());
}

/// Promise: every call that would change something is written down with who, what and the result, the refused ones
/// too, and stays over a crash; what only reads is not.
#[test]
fn the_audit_log_has_every_change_and_every_refusal() {
    let mut daemon = daemon();
    daemon.ctl(&["disk", "list"]);
    daemon.json_error(20, &["disk", "delete", "nothing", "--yes"]);
    daemon.ctl(&[
        "disk",
        "create",
        "data2",
        "--size",
        "8MiB",
        "--description",
        "hush",
        "--tag",
        "a=hush",
    ]);
    daemon.json_error(21, &["disk", "create", "data2", "--size", "8MiB"]);
    let socket = daemon.dir().join("control-ro.sock");
    let mut observer = Command::new(tool::built("rowctl"));
    observer.arg("--socket").arg(&socket).args(["disk", "rename", "data2", "data3"]);
    tool::finish(&mut observer).fails_with(3);
    daemon.crash();
    let entries = daemon.json(&["audit"]);
    let entries: Vec<&Value> = entries.as_array().unwrap().iter().collect();
    let told: Vec<(&str, &str, &str)> = entries
        .iter()
        .map(|one| {
            let text = |field: &str| one[field].as_str().unwrap();
            (text("role"), text("method"), text("result"))
        })
        .collect();
    assert_eq!(
        told,
        [
            ("admin", "disk.create", "ok"),
            ("admin", "snapshot.create", "ok"),
            ("admin", "group.create", "ok"),
            ("admin", "disk.create", "ok"),
            ("admin", "disk.create", "exists"),
            ("observer", "disk.rename", "not_permitted"),
        ]
    );
    let last = entries[5];
    assert_eq!((&last["params"]["disk"], &last["uid"]), (&"data2".into(), &0.into()), "{last}");
    assert!(last["pid"].as_i64().unwrap() > 1, "{last}");
    assert!(last["message"].as_str().unwrap().contains("read-only"), "{last}");
    let file = daemon.dir().join("audit.jsonl");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!fs::read_to_string(&file).unwrap().contains("hush"), "free text is left out");
    assert_eq!(daemon.json(&["audit", "-n", "2"]).as_array().unwrap().len(), 2);
    daemon.try_ctl(&["audit", "-n", "1"]).ok().says(&["disk.rename disk=data2", "not_permitted"]);
}

/// Promise: events say who asked, also in the system log.
#[test]
fn events_are_in_the_system_log_with_who_asked() {
    let daemon = daemon();
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("snapshot.create")).expect("a line");
    assert!(line.contains("rowd::event") && line.contains("uid=0"), "{line}");
}
