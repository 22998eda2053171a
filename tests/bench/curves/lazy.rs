//! The first read of a disk of a copy that is large and full, from an S3 server on this machine.
//!
//! Invariants: the time begins when the disk has been made, and includes connecting; each disk is read once, at its
//! end, and deleted before it is filled.
//! Absent: stores that are far away, where the network decides; all chunks of the copy but one.

use std::time::{Duration, Instant};

use rowd_proto::{Copy, CopyCreate, CopyRestore, CopyShow, CopyStatus, DiskDelete, RepoAdd};
use rowd_tests::dense::{CHUNK, DISK, Form, enlarge};
use rowd_tests::s3::{BUCKET, S3Server, SECRET, write_keys};
use rowd_tests::wait;
use serde_json::json;

use super::{Bench, Finding, human};
use crate::daemon::Daemon;
use crate::guard::{pause, wait_for};
use crate::nbd::Ask;
use crate::report::{median, ms};

const REPO: &str = "store";
/// Disks made one after another.
const DISKS: u32 = 20;
/// What is left of the last one has ended by then.
const BETWEEN: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_millis(100);

pub fn curve(bench: Bench<'_>) -> Vec<Finding> {
    let server = S3Server::start_in(bench.dir);
    let mut daemon = Daemon::start(&bench.options.rowd, bench.dir);
    let keys = daemon.files().join("s3.keys");
    write_keys(&keys, SECRET, 0o600);
    daemon.control.call(&RepoAdd {
        name: REPO.to_owned(),
        url: format!("s3://{BUCKET}/copies"),
        endpoint: Some(server.endpoint()),
        credentials: Some(format!("file:{}", keys.display())),
        ..RepoAdd::default()
    });
    daemon.full_disk("small", CHUNK);
    let (snapshot, _) = daemon.snapshot("small");
    let begun = daemon.control.call(&CopyCreate {
        snapshot: snapshot.id,
        repo: REPO.to_owned(),
        ..CopyCreate::default()
    });
    wait_for("a copy", wait::PATIENCE, || done(&mut daemon, &begun));
    let forms = [(Form::Parts, "in parts"), (Form::OnePiece, "in one piece, as it was before")];
    let findings = forms.map(|(form, told)| {
        let table = enlarge(&server.objects().join("copies"), &begun.id, form);
        let times: Vec<f64> =
            (0..DISKS).map(|number| ms(first_read(&mut daemon, &begun.id, number))).collect();
        let most = times.iter().copied().fold(0.0, f64::max);
        let what = format!("first read of a disk of a full copy of 1 TiB, table {told}");
        let seen = format!(
            "{:.0} ms, at most {most:.0} ms of {DISKS}; the table has {}",
            median(&times),
            human(table)
        );
        let finding = Finding::told(what, seen, json!({ "ms": times, "table_bytes": table }));
        match form {
            Form::Parts => finding.target("≤ 100 ms", most <= ms(LIMIT)),
            Form::OnePiece => finding,
        }
    });
    daemon.note_memory();
    findings.into()
}

fn done(daemon: &mut Daemon, begun: &Copy) -> Option<()> {
    let copy = daemon.control.call(&CopyShow { copy: begun.id.clone(), repo: None });
    (copy.status == CopyStatus::Accomplished).then_some(())
}

/// The time from the creation of a disk until a block of its end is read.
fn first_read(daemon: &mut Daemon, copy: &str, number: u32) -> Duration {
    let name = format!("lazy{number}");
    daemon.control.call(&CopyRestore {
        copy: copy.to_owned(),
        name: name.clone(),
        ..CopyRestore::default()
    });
    let began = Instant::now();
    let mut client = daemon.connect(&name);
    client.drive(1, [Ask::Read(DISK - CHUNK, 4096)]);
    let took = began.elapsed();
    drop(client);
    daemon.control.call(&DiskDelete { disk: name, force: true, now: true });
    pause(BETWEEN);
    took
}
