//! Copies to an S3 server on this machine: what they send, how fast, and what clients feel of it.
//!
//! Invariants: the server is the same for copies and for the plain upload they are compared with, and so are
//! client library, size of the objects, how many are on the way, and the bytes: none of them compress. (Those of the
//! second copy do: its blocks are much alike. What is judged there is counted before compression.)
//! Absent: stores that are far away, where the network decides.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::aws::AmazonS3Builder;
use object_store::{ClientOptions, ObjectStoreExt, PutPayload};
use rowd_proto::{Copy, CopyCreate, CopyShow, CopyStatus, JobShow, RepoAdd};
use rowd_tests::s3::{BUCKET, KEY, S3Server, SECRET, write_keys};
use serde_json::json;

use super::{Bench, Finding, human};
use crate::daemon::Daemon;
use crate::fio::{Job, Length, Load, Stretch};
use crate::guard::{pause, wait_for};
use crate::machine;
use crate::nbd::{Ask, random};
use crate::report::number;

const DISK: &str = "copied";
/// The disk that has clients meanwhile.
const LIVE: &str = "live";
const LIVE_BYTES: u64 = 1 << 30;
const REPO: &str = "store";
/// Bytes of an object of the plain upload, and how many are on the way: as in a copy.
const OBJECT_BYTES: usize = 4 << 20;
const PARALLEL: usize = 6;
const COPY_LIMIT: Duration = Duration::from_secs(1800);
/// Bytes sent for a byte that changed.
const SENT_MAX: f64 = 1.02;
/// Of the speed of the plain upload.
const SPEED_MIN: f64 = 0.7;
/// Of what clients had before the copy.
const KEPT_MIN: f64 = 0.90;

struct Copied {
    copy: Copy,
    took: Duration,
}

pub fn curve(bench: Bench<'_>) -> Vec<Finding> {
    let (size, changed) =
        if bench.options.quick { (64 << 20, 4 << 20) } else { (4u64 << 30, 100u64 << 20) };
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
    daemon.full_disk(DISK, size);
    let plain = upload(bench.dir, &server, size);
    machine::settle(bench.dir);
    let first = copy(&mut daemon);
    change(&daemon, size, changed);
    machine::settle(bench.dir);
    let second = copy(&mut daemon);
    let mut findings = vec![
        sent("the first copy", size, &first),
        sent("a copy after random 4K changes", changed, &second),
        speed(size, plain, &first),
        follows(size, changed, &first, &second),
    ];
    findings.extend(under_load(bench, &mut daemon, size));
    daemon.note_memory();
    findings
}

/// Writes the same number of incompressible bytes as plain objects.
fn upload(dir: &Path, server: &S3Server, size: u64) -> Duration {
    machine::settle(dir);
    // Done already when this is not the first upload.
    drop(rustls::crypto::ring::default_provider().install_default());
    let store = AmazonS3Builder::new()
        .with_bucket_name(BUCKET)
        .with_region("us-east-1")
        .with_endpoint(server.endpoint())
        .with_access_key_id(KEY)
        .with_secret_access_key(SECRET)
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .build()
        .expect("a client of the store");
    let store = Arc::new(store);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio");
    let mut state = 1;
    let noise: Vec<u8> =
        (0..OBJECT_BYTES / 8).flat_map(|_| random(&mut state).to_le_bytes()).collect();
    let began = Instant::now();
    runtime.block_on(async {
        let mut under_way = tokio::task::JoinSet::new();
        for object in 0..size / OBJECT_BYTES as u64 {
            while under_way.len() >= PARALLEL {
                under_way.join_next().await.expect("an upload").expect("it ends");
            }
            let (store, bytes) = (Arc::clone(&store), noise.clone());
            under_way.spawn(async move {
                let path = object_store::path::Path::from(format!("plain/{object}"));
                store.put(&path, PutPayload::from(bytes)).await.expect("the store takes it");
            });
        }
        while let Some(done) = under_way.join_next().await {
            done.expect("an upload ends");
        }
    });
    began.elapsed()
}

/// Begins to copy the disk as it is now.
fn begin(daemon: &mut Daemon) -> Copy {
    let (snapshot, _) = daemon.snapshot(DISK);
    let repo = REPO.to_owned();
    daemon.control.call(&CopyCreate { snapshot: snapshot.id, repo, ..CopyCreate::default() })
}

fn copy(daemon: &mut Daemon) -> Copied {
    let began = Instant::now();
    let begun = begin(daemon);
    let copy = wait_for("a copy", COPY_LIMIT, || done(daemon, &begun.id));
    Copied { copy, took: began.elapsed() }
}

/// The copy, once it is complete.
fn done(daemon: &mut Daemon, id: &str) -> Option<Copy> {
    let copy = daemon.control.call(&CopyShow { copy: id.to_owned(), repo: None });
    match copy.status {
        CopyStatus::Accomplished => Some(copy),
        CopyStatus::Progressing => None,
        status => panic!("the copy is {status:?}: {:?}", copy.reason),
    }
}

/// Overwrites so many bytes of different blocks, spread over the disk.
fn change(daemon: &Daemon, size: u64, changed: u64) {
    let (blocks, count) = (size / 4096, changed / 4096);
    let writes = (0..count).map(|n| Ask::Write(n * (blocks / count) * 4096, 4096, n + 7));
    let mut client = daemon.connect(DISK);
    client.drive(32, writes);
    client.drive(1, [Ask::Flush]);
}

fn sent(what: &str, changed: u64, copied: &Copied) -> Finding {
    let detail = copied.copy.detail.as_ref().expect("a complete copy");
    let ratio = detail.new_bytes as f64 / changed as f64;
    let text = format!(
        "{} before compression for {}: {ratio:.3}; {} as sent; {:.1} s",
        human(detail.new_bytes),
        human(changed),
        human(detail.sent_bytes),
        copied.took.as_secs_f64()
    );
    let numbers = json!({ "changed": changed, "new": detail.new_bytes, "sent": detail.sent_bytes });
    Finding::told(format!("{what}, bytes"), text, numbers)
        .target(format!("≤ {SENT_MAX}"), ratio <= SENT_MAX)
}

fn speed(size: u64, plain: Duration, first: &Copied) -> Finding {
    let rate = |took: Duration| size as f64 / took.as_secs_f64() / f64::from(1 << 20);
    let (ours, theirs) = (rate(first.took), rate(plain));
    let text = format!("{ours:.0} and {theirs:.0} MiB/s: {:.2}", ours / theirs);
    let numbers = json!({ "copy": ours, "plain": theirs });
    Finding::told("the first copy against a plain upload of as much", text, numbers)
        .target(format!("≥ {SPEED_MIN}"), ours / theirs >= SPEED_MIN)
}

/// A part of the data should take that part of the time, and what a copy costs at least.
fn follows(size: u64, changed: u64, first: &Copied, second: &Copied) -> Finding {
    let share = second.took.as_secs_f64() / first.took.as_secs_f64();
    let text =
        format!("{share:.3} of the time for {:.3} of the bytes", changed as f64 / size as f64);
    Finding::told("the second copy against the first", text, json!({ "share": share }))
}

/// The same load before a copy of everything and while it runs.
fn under_load(bench: Bench<'_>, daemon: &mut Daemon, size: u64) -> [Finding; 3] {
    let window = u64::from(bench.options.window);
    daemon.full_disk(LIVE, LIVE_BYTES.min(size));
    // Everything is new again.
    daemon.connect(DISK).fill(0, size, 3);
    machine::settle(daemon.files());
    let load = Load::random("randwrite", 32);
    let length = Length::Seconds { ramp: 0, measured: 600 };
    let job = Job::start(daemon.files(), &daemon.uri(LIVE), load, LIVE_BYTES.min(size), length);
    daemon.wait_busy();
    pause(Duration::from_secs(window + window / 2));
    let asked = super::live::millis();
    let begun = begin(daemon);
    pause(Duration::from_secs(window));
    let until = super::live::millis();
    let complete = done(daemon, &begun.id).is_some();
    let sent = if complete { size } else { bytes_done(daemon, &begun.id) };
    let history = job.end();
    let before = history.between(asked - window * 1000, asked);
    let during = history.between(asked, until);
    wait_for("a copy", COPY_LIMIT, || done(daemon, &begun.id));
    let [throughput, latency] = told(&before, &during, complete);
    let rate = sent as f64 / f64::from(1 << 20) / window as f64;
    let text = format!("{rate:.1} MiB/s");
    let pace = Finding::told("the copy meanwhile", text, json!({ "mib_per_second": rate }));
    [throughput, latency, pace]
}

/// What of a copy under way has been sent.
fn bytes_done(daemon: &mut Daemon, id: &str) -> u64 {
    let copy = daemon.control.call(&CopyShow { copy: id.to_owned(), repo: None });
    let job = copy.job.map(|job| daemon.control.call(&JobShow { job }));
    job.map_or(0, |job| job.done)
}

fn told(before: &Stretch, during: &Stretch, complete: bool) -> [Finding; 2] {
    let kept = during.per_second / before.per_second;
    let text = format!(
        "{} before, {} during{}: {kept:.3}",
        number(before.per_second),
        number(during.per_second),
        if complete { " (the copy ended before)" } else { "" },
    );
    let numbers = json!({ "before": before.per_second, "during": during.per_second });
    let throughput = Finding::told("writes/s at depth 32 during a copy", text, numbers)
        .target(format!("≥ {KEPT_MIN}"), kept >= KEPT_MIN);
    let text = format!("{:.0} µs before, {:.0} µs during", before.p99_us, during.p99_us);
    let numbers = json!({ "before_us": before.p99_us, "during_us": during.p99_us });
    [throughput, Finding::told("p99 write latency during a copy", text, numbers)]
}
