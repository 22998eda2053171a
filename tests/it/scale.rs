//! Many disks and snapshots: what is asked about one costs what it costs where there are no others, and a list what it
//! is long.
//!
//! Measured is the processor time of the daemon, which does not depend on what else runs, and judged by a wide margin:
//! a walk over everything there is costs ten times as much.
//!
//! Absent: how long it takes a user (`tests/bench`, the curve `scale`).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use rowd_tests::process::Daemon;
use serde_json::{Value, json};

/// Disks beside the one that is asked about, and how many groups are made of them.
const OTHERS: usize = 160;
const GROUPS: usize = 30;
const GROUP: usize = 16;
/// How often a question is asked.
const TIMES: usize = 25;
/// How much more it may cost among many others.
const MARGIN: u32 = 3;

/// The control socket, without the start of a program for each question.
struct Wire {
    input: BufReader<UnixStream>,
    output: UnixStream,
}

impl Wire {
    fn connect(daemon: &Daemon) -> Wire {
        let output = UnixStream::connect(daemon.control_socket()).unwrap();
        let mut input = BufReader::new(output.try_clone().unwrap());
        input.read_line(&mut String::new()).unwrap();
        Wire { input, output }
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        writeln!(self.output, "{request}").unwrap();
        let mut line = String::new();
        self.input.read_line(&mut line).unwrap();
        let mut reply: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(reply.get("error"), None, "{method}");
        reply["result"].take()
    }
}

/// What the daemon has used of processors so far.
fn used(daemon: &Daemon) -> Duration {
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    Duration::from(clock_getcpuclockid(pid).unwrap().now().unwrap())
}

/// What the daemon uses for some work: the least of three times, so that its other work does not count.
fn cost(daemon: &Daemon, mut work: impl FnMut()) -> Duration {
    let mut once = || {
        let before = used(daemon);
        work();
        used(daemon) - before
    };
    (0..3).map(|_| once()).min().unwrap()
}

/// What questions about one disk, and changes of it, cost; each with its name.
fn costs(daemon: &Daemon, wire: &mut Wire) -> Vec<(&'static str, Duration)> {
    let one = json!({"disk": "mine"});
    let snapshot = json!({"snapshot": "mine@first"});
    let mut all = Vec::new();
    for (method, params) in [
        ("snapshot.list", &one),
        ("snapshot.show", &snapshot),
        ("disk.show", &one),
        ("chain.show", &one),
    ] {
        let spent = cost(daemon, || {
            for _ in 0..TIMES {
                wire.ask(method, params.clone());
            }
        });
        all.push((method, spent));
    }
    let spent = cost(daemon, || {
        for _ in 0..TIMES {
            wire.ask("snapshot.create", json!({"disk": "mine", "name": "passing"}));
            wire.ask("snapshot.delete", json!({"snapshot": "mine@passing"}));
        }
    });
    all.push(("snapshot.create and snapshot.delete", spent));
    all
}

/// Promise: questions about one disk, and its snapshots, do not take longer because there are others.
#[test]
fn one_disk_costs_the_same_among_many() {
    let daemon = Daemon::new();
    let mut wire = Wire::connect(&daemon);
    wire.ask("disk.create", json!({"name": "mine", "size": 1 << 20}));
    for name in ["first", "second", "third"] {
        wire.ask("snapshot.create", json!({"disk": "mine", "name": name}));
    }
    let alone = costs(&daemon, &mut wire);
    let names: Vec<String> = (0..OTHERS).map(|number| format!("other{number}")).collect();
    for name in &names {
        wire.ask("disk.create", json!({"name": name, "size": 1 << 20}));
    }
    let mut per_item = Vec::new();
    for round in 0..GROUPS {
        for disks in names.chunks(GROUP) {
            wire.ask("group.create", json!({"disks": disks}));
        }
        if round == 2 || round + 1 == GROUPS {
            let mut count = 0;
            let spent = cost(&daemon, || {
                let all = wire.ask("snapshot.list", json!({}));
                count = all["snapshots"].as_array().unwrap().len();
            });
            per_item.push(spent / u32::try_from(count).unwrap());
        }
    }
    assert!(
        per_item[1] <= per_item[0] * MARGIN,
        "a snapshot in a list: {:?} of {}, {:?} of ten times as many",
        per_item[0],
        OTHERS * 3,
        per_item[1]
    );
    let among = costs(&daemon, &mut wire);
    for ((what, alone), (_, among)) in alone.into_iter().zip(among) {
        assert!(
            among <= alone * MARGIN,
            "{what} {TIMES} times: {alone:?} alone, {among:?} among {OTHERS} disks"
        );
    }
}
