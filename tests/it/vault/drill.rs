//! The recovery drill of `examples/`: it says of every disk whether its newest copy comes back.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use rowd_tests::mount::{Device, Mounted};
use rowd_tests::process::Daemon;
use rowd_tests::tool::{self, Outcome};
use rowd_tests::wait;

use super::copies::{copied, id};
use super::server::{BUCKET, S3Server, add, files};

/// Runs it for the copies below `host` on a server.
fn drill(daemon: &Daemon, server: &S3Server) -> Outcome {
    let programs = tool::built("rowd").parent().unwrap().to_owned();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/recovery-drill/drill.sh");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut command = tool::command("bash");
    command.env("PATH", path).env("DRILL_DIR", daemon.path("")).arg(script);
    command.arg(format!("s3://{BUCKET}/host")).args(["--endpoint", &server.endpoint()]);
    command.args(["--credentials", &format!("file:{}", daemon.path("s3.keys"))]);
    tool::finish(&mut command)
}

/// A file system that was in use when its snapshot was made: the drill finds a journal to replay.
fn file_system(daemon: &Daemon, disk: &str, make: &[&str]) -> Mounted {
    daemon.ctl(&["disk", "create", disk, "--size", "320MiB"]);
    let device = Device::attach(daemon, disk);
    tool::finish(tool::command(make[0]).args(&make[1..]).arg(device.path())).ok();
    let mounted = device.mount("rw");
    fs::write(mounted.path().join("file"), vec![7; 1 << 20]).unwrap();
    mounted
}

/// Snapshots tell the second they were made in: waits for the next.
fn later_second() {
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let began = now();
    wait::until("the next second", || (now() > began).then_some(()));
}

/// Each disk has its line; a damaged copy is named and fails the drill, and the others are drilled all the same.
#[test]
fn the_recovery_drill_finds_the_copy_that_does_not_come_back() {
    let server = S3Server::start();
    let daemon = Daemon::new();
    add(&daemon, "backup", "host", &server.endpoint());
    let mounts = [
        file_system(&daemon, "letters", &["mkfs.ext4", "-q", "-E", "nodiscard"]),
        file_system(&daemon, "numbers", &["mkfs.xfs", "-q", "-K"]),
    ];
    let mut copies = Vec::new();
    for disk in ["letters", "numbers"] {
        for snapshot in ["old", "new"] {
            later_second();
            daemon.ctl(&["snapshot", "create", disk, snapshot]);
            copies.push(copied(&daemon, &format!("{disk}@{snapshot}"), "backup"));
        }
    }
    drop(mounts);
    let before = files(&server.objects());
    let done = drill(&daemon, &server).ok();
    let done = done.says(&["letters@new of", "ext4 is sound", "numbers@new of", "xfs is sound"]);
    assert!(!done.stdout.contains("@old"), "only the newest of each disk:\n{}", done.stdout);
    assert_eq!(files(&server.objects()), before, "the drill changes nothing");

    // The newest copy of a disk needs the objects of the one before.
    let chunks = format!("chunks/{}/", id(&copies[0]));
    let lost = before.iter().find(|path| path.display().to_string().contains(&chunks)).unwrap();
    fs::remove_file(lost).unwrap();
    let done = drill(&daemon, &server).fails_with(1);
    let failed = done.stdout.lines().find(|line| line.starts_with("FAILED")).unwrap();
    let object = lost.file_name().unwrap().to_str().unwrap();
    assert!(failed.contains("letters@new") && failed.contains(object), "{failed}");
    done.says(&["xfs is sound"]);
}
