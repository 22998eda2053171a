//! The guide for people from elsewhere: its commands are commands.
//!
//! Absent: what they do, which the tests of each verb show.

use std::collections::BTreeSet;
use std::fs;

use rowd_tests::tool;
use tempfile::TempDir;

const GUIDE: &str = include_str!("../../docs/from-elsewhere.md");

/// What `rowctl` says when it has understood and there is no daemon, also with exit codes that are a monitoring system's.
const UNREACHABLE: &str = "no daemon listens";

/// The commands in the text: in backquotes, and after a prompt.
fn commands() -> BTreeSet<&'static str> {
    let quoted = GUIDE
        .lines()
        .filter(|line| !line.starts_with('$'))
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    let typed = GUIDE.lines().filter_map(|line| line.strip_prefix("$ "));
    let alone = |text: &'static str| text.split(" | ").next().unwrap_or(text);
    let all = quoted.chain(typed).map(alone);
    all.filter(|text| text.starts_with("rowctl ") && !text.contains("NOUN")).collect()
}

/// Promise: whoever types what the guide says is understood: each command gets as far as looking for the daemon.
#[test]
fn every_command_of_the_guide_is_understood() {
    let home = TempDir::with_prefix("rowd-guide-").unwrap();
    for file in ["debian-12.qcow2", "web-1.qcow2"] {
        tool::run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", home.path().join(file).to_str().unwrap(), "1M"],
        )
        .ok();
    }
    fs::create_dir(home.path().join("rowd")).unwrap();
    let programs = tool::built("rowctl").parent().unwrap().display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let commands = commands();
    for command in &commands {
        // Devices of another system.
        let line = command.replace("/dev/zvol/tank/data1", "debian-12.qcow2");
        let line = line.replace("/dev/vg/data1", "debian-12.qcow2");
        let mut bash = tool::command("bash");
        bash.current_dir(home.path()).env("PATH", &path).env("ROWD_DIR", home.path().join("rowd"));
        tool::finish(bash.arg("-c").arg(&line)).says(&[UNREACHABLE]);
    }
    assert!(commands.len() > 100, "only {} commands were found", commands.len());
}

/// Operations of the cloud's interface that people look for by name.
#[test]
fn every_operation_is_found_by_its_name() {
    for name in [
        "CreateSnapshot",
        "DescribeSnapshots",
        "DescribeDisks",
        "DescribeInstances",
        "DeleteSnapshot",
        "ResetDisk",
        "CreateDisk",
        "CreateImage",
        "CopySnapshot",
        "ModifySnapshotAttribute",
        "ModifyDiskAttribute",
        "DescribeSnapshotLinks",
        "DescribeSnapshotsUsage",
        "CreateAutoSnapshotPolicy",
        "ApplyAutoSnapshotPolicy",
        "CancelAutoSnapshotPolicy",
        "ModifyAutoSnapshotPolicyEx",
        "DeleteAutoSnapshotPolicy",
        "RunInstances",
        "TagResources",
        "RunCommand",
        "DescribeInvocationResults",
        "AttachInstanceRamRole",
    ] {
        let row = GUIDE.lines().find(|line| line.starts_with("| ") && line.contains(name));
        assert!(row.is_some_and(|row| row.split(" | ").count() == 2), "{name} has no row");
    }
}
