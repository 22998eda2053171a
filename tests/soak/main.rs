//! Long runs of tests: `rowd-soak KIND COUNT [SEED]`, or `make soak`.
//!
//! Invariants: what was done is printed as one JSON object on standard output; a broken promise ends
//! the run with a message that names the seed.
//! Absent: promises of its own; the tests in `make test` are the same code with smaller numbers.

use std::process::ExitCode;
use std::time::Duration;

use rowd::pool::file::IoMode;
use rowd_tests::crash::{Modes, kill, power};
use rowd_tests::order::{self, Shape};
use rowd_tests::process::Daemon;
use rowd_tests::tool;

const USAGE: &str = "usage: rowd-soak KIND COUNT [SEED]
  kill          COUNT kills of a daemon under load, on ageing pools
  power         COUNT states of a disk whose power was cut
  kill-direct   as kill, with pools in direct mode
  power-direct  as power, with pools in direct mode
  order         COUNT seconds of groups of 16 disks under load; the seed does not matter";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<u64>().ok();
    let (kind, count, seed) = match words[..] {
        [kind, count] => (kind, number(count), Some(1)),
        [kind, count, seed] => (kind, number(count), number(seed)),
        _ => ("", None, None),
    };
    let (Some(count), Some(seed)) = (count, seed) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    eprintln!("seed {seed}; replay: rowd-soak {kind} {count} {seed}");
    let daemon = tool::built("rowd-faulty");
    let (buffered, direct): (Modes, Modes) = (&[IoMode::Buffered], &[IoMode::Direct]);
    let told = match kind {
        "kill" => serde_json::to_string_pretty(&kill::run(daemon, buffered, seed, count)),
        "kill-direct" => serde_json::to_string_pretty(&kill::run(daemon, direct, seed, count)),
        "power" => serde_json::to_string_pretty(&power::run(&daemon, buffered, seed, count)),
        "power-direct" => serde_json::to_string_pretty(&power::run(&daemon, direct, seed, count)),
        "order" => {
            let time = Duration::from_secs(count);
            let shape = Shape { disks: 16, writers: 3, groups: u64::MAX, time };
            serde_json::to_string_pretty(&order::run(&Daemon::new(), shape))
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    println!("{}", told.expect("totals can be encoded"));
    ExitCode::SUCCESS
}
