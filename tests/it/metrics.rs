//! What the daemon tells those who watch it: metrics, `rowctl top`, and the check for monitoring systems.
//!
//! Absent: history, which is `usage.rs`.

pub mod contrib;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rowd::metrics::table::{ALL, Kind};
use rowd::nbd::wire::{command, error};
use rowd_tests::client::{Ask, Client};
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::tool::{self, Outcome};
use rowd_tests::wait;

/// A daemon that has done at least once everything there is a metric for.
pub fn busy(config: &str) -> Daemon {
    let daemon = Setup::default().config(&format!("{SMALL}\n{config}")).start();
    daemon.ctl(&["disk", "create", "data1", "--size", "64MiB"]);
    let mut client = Client::connect(&daemon.nbd_socket(), "data1");
    client.write(0, &[1; 8192]);
    client.flush();
    client.trim(4096, 4096);
    client.read(0, 4096);
    daemon.ctl(&["snapshot", "create", "data1", "first"]);
    Client::connect(&daemon.nbd_socket(), "data1@first").read(0, 4096);
    daemon.ctl(&["scrub", "--rate", "1GiB", "--wait"]);
    wait::until("a checkpoint", || {
        let text = daemon.ctl(&["metrics"]);
        text.contains("rowd_checkpoint_last_success_timestamp_seconds ").then_some(())
    });
    daemon
}

/// The samples of a page: name with labels, and value.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let split = lines.map(|line| line.rsplit_once(' ').expect("a name and a value"));
    split.map(|(name, value)| (name.to_owned(), value.parse().expect("a number"))).collect()
}

#[track_caller]
fn value(daemon: &Daemon, sample: &str) -> f64 {
    let all = samples(&daemon.ctl(&["metrics"]));
    *all.get(sample).unwrap_or_else(|| panic!("no {sample} in {all:#?}"))
}

/// Only differences of whole numbers are compared.
#[track_caller]
fn is(daemon: &Daemon, sample: &str, expected: f64) {
    let found = value(daemon, sample);
    assert!((found - expected).abs() < 1e-9, "{sample} is {found}, not {expected}");
}

/// Promise: the document lists what the code has, with names, kinds, labels and meanings.
#[test]
fn the_documented_metrics_are_those_of_the_code() {
    let document = std::fs::read_to_string(contrib::root().join("docs/metrics.md")).unwrap();
    let written: Vec<String> =
        document.lines().filter(|line| line.starts_with("| `rowd_")).map(str::to_owned).collect();
    let coded: Vec<String> = ALL
        .iter()
        .map(|metric| {
            let labels: Vec<String> = metric.labels.iter().map(|one| format!("`{one}`")).collect();
            let labels = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
            let name = match metric.kind {
                Kind::Histogram => metric.name.to_owned(),
                _ => metric.samples().remove(0),
            };
            format!("| `{name}` | {} | {labels} | {} |", metric.kind.name(), metric.help)
        })
        .collect();
    assert_eq!(written, coded);
}

/// Promise: a metric of the table is told by a daemon that has something to tell of it, and no other is.
#[test]
fn every_metric_of_the_table_is_told() {
    let daemon = busy("");
    let text = daemon.ctl(&["metrics"]);
    let told: BTreeSet<(String, String)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect();
    // Kernel devices and long jobs are for the VM and for chance; no policy has run.
    let absent =
        ["rowd_disk_attached", "rowd_jobs_running", "rowd_policy_last_success_timestamp_seconds"];
    let expected: BTreeSet<(String, String)> = ALL
        .iter()
        .filter(|metric| !absent.contains(&metric.name))
        .map(|metric| (metric.name.to_owned(), metric.kind.name().to_owned()))
        .collect();
    assert_eq!(&expected - &told, BTreeSet::new(), "not told");
    let possible: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
    let unknown: Vec<_> = told.iter().filter(|(name, _)| !possible.contains(&**name)).collect();
    assert!(unknown.is_empty(), "not in the table: {unknown:?}");
    for (sample, _) in samples(&text) {
        let name = sample.split('{').next().unwrap_or_default();
        let known = ALL.iter().any(|metric| metric.samples().iter().any(|one| one == name));
        assert!(known, "{sample}");
    }
    assert!(text.trim_end().ends_with("# EOF"), "{text}");
}

/// Promise: each answered request is counted once, whatever its size, and stays counted when its connection ends.
#[test]
fn requests_are_counted_one_by_one() {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "data1", "--size", "64MiB"]);
    let mut client = Client::connect(&daemon.nbd_socket(), "data1");
    let metric = |name: &str, op: &str| {
        format!("rowd_disk_request_{name}{{disk=\"data1\",export=\"disk\",op=\"{op}\"}}")
    };
    for at in 0..3 {
        client.write(at * 4096, &[1; 4096]);
    }
    client.write(1 << 20, &vec![2; 1 << 20]);
    client.read(0, 8192);
    client.read(1 << 20, 1 << 20);
    client.flush();
    client.trim(0, 4096);
    let beyond = Ask { command: command::READ, offset: 64 << 20, length: 512, ..Ask::default() };
    assert_eq!(client.ask(beyond).error, error::EINVAL);
    client.disconnect();
    wait::until("the end of the connection", || {
        (daemon.json(&["disk", "show", "data1"])["clients"].as_array()?.is_empty()).then_some(())
    });
    is(&daemon, &metric("seconds_count", "write"), 4.0);
    is(&daemon, &metric("bytes_total", "write"), 3.0 * 4096.0 + 1_048_576.0);
    is(&daemon, &metric("seconds_count", "read"), 2.0);
    is(&daemon, &metric("bytes_total", "read"), 8192.0 + 1_048_576.0);
    is(&daemon, &metric("errors_total", "read"), 1.0);
    is(&daemon, &metric("errors_total", "write"), 0.0);
    is(&daemon, &metric("seconds_count", "flush"), 1.0);
    is(&daemon, &metric("seconds_count", "discard"), 1.0);
    is(&daemon, &metric("bytes_total", "discard"), 4096.0);
    assert!(value(&daemon, &metric("seconds_sum", "write")) > 0.0);
    let all = samples(&daemon.ctl(&["metrics"]));
    let of_writes: Vec<&String> = all
        .keys()
        .filter(|name| name.contains("_bucket") && name.contains(r#"op="write""#))
        .collect();
    let last = of_writes.iter().find(|name| name.contains("+Inf"));
    let last = last.unwrap_or_else(|| panic!("no last bucket in {of_writes:#?}"));
    assert!((all[last.as_str()] - 4.0).abs() < 1e-9, "the last bucket has all requests");
}

/// A rollback gives the disk another head; it is the same disk for those who watch.
#[test]
fn counters_survive_a_rollback_and_a_rename() {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "data1", "--size", "64MiB"]);
    Client::connect(&daemon.nbd_socket(), "data1").write(0, &[1; 4096]);
    daemon.ctl(&["snapshot", "create", "data1", "first"]);
    daemon.ctl(&["disk", "rollback", "data1", "first", "--yes", "--force"]);
    daemon.ctl(&["disk", "rename", "data1", "data2"]);
    Client::connect(&daemon.nbd_socket(), "data2").write(0, &[1; 4096]);
    let name = r#"rowd_disk_request_seconds_count{disk="data2",export="disk",op="write"}"#;
    is(&daemon, name, 2.0);
    is(&daemon, r#"rowd_disk_snapshots{disk="data2"}"#, 1.0);
    is(&daemon, r#"rowd_disk_snapshot_bytes{disk="data2"}"#, 4096.0);
    // What is deleted is not told any more.
    daemon.ctl(&["disk", "delete", "data2", "--yes", "--force"]);
    daemon.ctl(&["snapshot", "delete", "first", "--yes"]);
    assert!(!daemon.ctl(&["metrics"]).contains("data2"));
}

/// Promise: who may only look may look at this.
#[test]
fn the_read_only_socket_tells_metrics_and_rates() {
    let daemon = busy("");
    let socket = daemon.dir().join("control-ro.sock").display().to_string();
    for args in [vec!["metrics"], vec!["top", "--once", "--interval", "1"], vec!["check"]] {
        let mut command = std::process::Command::new(tool::built("rowctl"));
        tool::finish(command.args(["--socket", &socket]).args(&args)).ok();
    }
}

/// `GET` and the rest over HTTP; the status line and the body.
pub fn http(address: &str, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{request} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer.as_str(), ""));
    (head.to_owned(), body.to_owned())
}

/// The address that a daemon with `metrics.listen = "127.0.0.1:0"` chose.
#[track_caller]
pub fn scraped_at(daemon: &Daemon) -> String {
    let log = daemon.log();
    let line = log.lines().rfind(|line| line.contains("serving metrics")).expect("it says where");
    line.rsplit_once("address=").expect("an address").1.trim().to_owned()
}

/// Promise: `/metrics` answers scrapes; everything else is refused, and nobody who is silent is waited for.
#[test]
fn the_listener_answers_scrapes_and_nothing_else() {
    let mut daemon = busy("[metrics]\nlisten = \"127.0.0.1:0\"");
    let address = scraped_at(&daemon);
    let _silent = TcpStream::connect(&address).unwrap();
    let (head, body) = http(&address, "GET /metrics");
    assert!(head.starts_with("HTTP/1.0 200") && head.contains("openmetrics-text"), "{head}");
    let there = samples(&body);
    assert!(there.contains_key("rowd_disks") && body.ends_with("# EOF\n"), "{body}");
    for (request, status) in
        [("GET /", "404"), ("GET /metrics/x", "404"), ("POST /metrics", "405"), ("!", "400")]
    {
        let (head, _) = http(&address, request);
        assert!(head.contains(status), "{request}: {head}");
    }
    daemon.stop();
    assert!(TcpStream::connect(&address).is_err(), "nothing listens any more");
}

#[test]
fn a_listener_for_the_whole_network_is_refused() {
    for address in ["0.0.0.0:9750", "192.0.2.1:9750", "[::]:9750"] {
        let config = format!("{SMALL}\n[metrics]\nlisten = \"{address}\"");
        let mut daemon = Setup::default().config(&config).prepare();
        assert!(!daemon.try_start(), "{address}");
        let log = daemon.log();
        assert!(log.contains("metrics.listen") && log.contains("loopback"), "{log}");
    }
}

/// Promise: a collector of files finds a whole and readable file, and none when the daemon has ended.
#[test]
fn the_textfile_is_whole_readable_and_gone_at_the_end() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("rowd.prom");
    let config = format!("[metrics]\ntextfile = {:?}\ninterval_s = 1", path.display().to_string());
    let mut daemon = busy(&config);
    let text = wait::until("the file with the disk", || {
        let text = std::fs::read_to_string(&path).ok()?;
        text.contains("rowd_disk_size_bytes{disk=\"data1\"}").then_some(text)
    });
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    daemon.stop();
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

/// Promise: `rowctl top` tells what clients do while it looks.
#[test]
fn top_tells_what_goes_on() {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "data1", "--size", "64MiB"]);
    daemon.ctl(&["disk", "create", "idle1", "--size", "64MiB"]);
    let mut idle = Client::connect(&daemon.nbd_socket(), "idle1");
    idle.read(0, 4096);
    let ended = AtomicBool::new(false);
    let (rows, table) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client::connect(&daemon.nbd_socket(), "data1");
            while !ended.load(Ordering::Relaxed) {
                client.write(0, &[1; 4096]);
                client.read(0, 4096);
            }
        });
        let rows = daemon.json(&["top", "--once", "--interval", "1"]);
        let table = daemon.ctl(&["top", "--once", "--interval", "1"]);
        ended.store(true, Ordering::Relaxed);
        (rows, table)
    });
    let row = &rows[0];
    assert_eq!((&row["disk"], &row["export"]), (&"data1".into(), &"disk".into()), "{rows}");
    let write = &row["operations"]["write"];
    let (requests, rate) = (write["requests"].as_u64().unwrap(), &write["requests_per_s"]);
    assert!(requests > 0 && rate.as_f64().unwrap() > 0.0, "{row}");
    assert!(write["bytes_per_s"].as_u64().unwrap() >= 4096 && write["mean_us"].is_u64(), "{row}");
    assert_eq!(rows[1]["operations"]["read"]["requests"], 0, "before it looked: {rows}");
    assert!(table.contains("data1") && !table.contains("idle1"), "{table}");
}

/// Promise: with `--plugin` there is one line, and the exit code is the plugins', whatever happens.
#[test]
fn the_plugin_says_one_line_with_the_codes_of_plugins() {
    let mut daemon =
        Setup::default().config(&SMALL.replace("[pool]", "[pool]\nmax_size = \"16MiB\"")).start();
    let plugin = |daemon: &Daemon, args: &[&str], code: i32, word: &str| -> Outcome {
        let told = daemon.try_ctl(&[&["check", "--plugin"], args].concat()).fails_with(code);
        assert_eq!(told.stdout.lines().count(), 1, "{told}");
        assert!(told.stdout.starts_with(&format!("ROWD {word}: ")), "{told}");
        told
    };
    daemon.ctl(&["disk", "create", "data1", "--size", "64MiB"]);
    plugin(&daemon, &[], 0, "OK").says(&["1 disks", " | used=0B;"]);
    Client::connect(&daemon.nbd_socket(), "data1").write(0, &vec![1; 4 << 20]);
    plugin(&daemon, &["--warn", "20"], 1, "WARNING").says(&["% full"]);
    plugin(&daemon, &["--warn", "10", "--critical", "20"], 2, "CRITICAL");
    plugin(&daemon, &["--warn", "90", "--critical", "20"], 3, "UNKNOWN").says(&["--warn 90"]);
    let report = daemon.try_ctl(&["-o", "json", "check", "--plugin", "--warn", "20"]);
    let report = report.fails_with(1).json();
    assert_eq!(
        (&report["state"], &report["findings"][0]["condition"]),
        (&"warning".into(), &"full".into())
    );
    daemon.try_ctl(&["check", "--warn", "20"]).fails_with(2).says(&["--plugin"]);
    daemon.stop();
    plugin(&daemon, &[], 2, "CRITICAL").says(&["no daemon listens"]);
}
