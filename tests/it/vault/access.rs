//! Instant access for some days: its length, its end, and a restart between.
//!
//! Absent: the second at which it ends (`engine/presence.rs` has that as a unit test).

use std::fs;

use rowd_tests::process::Setup;
use rowd_tests::{tool, wait};
use serde_json::{Value, json};

use super::copies::{contents, noise, url, write};

const DAY: u64 = 24 * 3600;

/// A moment told as `2026-01-31T09:00:00Z`, as seconds since the day it is in began, and that day.
fn day_and_second(time: &Value) -> (&str, &str) {
    time.as_str().unwrap().split_once('T').unwrap()
}

/// IA-10, 13, 15: 1 to 65536 days from the cut on, one unless it is said; at its end the blocks leave the pool, also when
/// the daemon was killed meanwhile, and the snapshot stays.
#[test]
fn instant_access_ends_by_itself_after_its_days() {
    let mut daemon = Setup::default().program(tool::built("rowd-faulty")).prepare();
    let clock = daemon.path("clock");
    daemon.change_setup(|setup| setup.env("ROWD_CLOCK", &clock));
    fs::write(&clock, "0").unwrap();
    daemon.start();
    fs::create_dir(daemon.file("vault")).unwrap();
    daemon.ctl(&["repo", "add", "backup", &url(&daemon)]);
    daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
    let bytes = noise(1, 6 << 20);
    write(&daemon, "data", 0, &bytes);
    let create = |name: &str, days: &str| {
        let days = format!("--instant-access{days}");
        daemon.json(&["snapshot", "create", "data", name, "--repo", "backup", &days])
    };
    for days in ["0", "65537"] {
        let wish = format!("--instant-access={days}");
        let args = ["snapshot", "create", "data", "never", "--repo", "backup", &wish];
        let error = daemon.json_error(2, &args);
        assert!(error["message"].as_str().unwrap().contains("65536"), "{error}");
    }
    let (short, long) = (create("short", ""), create("long", "=65536"));
    let (made, until) = (&short["created_at"], &short["instant_access_until"]);
    assert_eq!(day_and_second(made).1, day_and_second(until).1, "whole days");
    assert_ne!(day_and_second(made).0, day_and_second(until).0, "one day");
    assert!(long["instant_access_until"].as_str().unwrap().starts_with("22"), "{long}");
    for name in ["data@short", "data@long"] {
        let told = daemon.json(&["snapshot", "wait", name]);
        assert_eq!(told["presence"], json!(["pool", "repository"]), "{told}");
    }
    daemon.kill();
    fs::write(&clock, (DAY + 60).to_string()).unwrap();
    daemon.start();
    let told = wait::until("the end of instant access", || {
        let told = daemon.json(&["snapshot", "show", "data@short"]);
        (told["presence"] == json!(["repository"])).then_some(told)
    });
    assert_eq!((&told["instant_access"], &told["status"]), (&json!(false), &json!("accomplished")));
    let told = daemon.json(&["snapshot", "show", "data@long"]);
    assert_eq!(told["presence"], json!(["pool", "repository"]), "{told}");
    daemon.ctl(&["disk", "create", "again", "--from", "data@short", "--full"]);
    assert!(contents(&daemon, "again", 64 << 20)[..6 << 20] == bytes[..]);
}
