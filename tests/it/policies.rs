//! Policies: snapshots that are made, kept and removed by themselves, on a clock that the tests move.
//!
//! Absent: ten years of schedules (`daemon/src/policy/simulation.rs`).

mod copies;
mod instances;
mod rows;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::{SystemTime, UNIX_EPOCH};

use rowd_tests::client::Client;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::{tool, wait};
use serde_json::{Value, json};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Monday, 7 January 2030, 00:10 UTC.
const START: i64 = 1_893_975_000;

/// A daemon whose clock stands still for nobody but the test.
pub struct World {
    pub daemon: Daemon,
    /// What the clock is moved by.
    ahead: i64,
}

impl World {
    pub fn new() -> World {
        World::with("")
    }

    /// A daemon with more configuration, and the disk `data`.
    fn with(config: &str) -> World {
        let config = format!("{SMALL}\n{config}");
        let mut daemon =
            Setup::default().program(tool::built("rowd-faulty")).config(&config).prepare();
        let clock = daemon.path("clock");
        daemon.change_setup(|setup| setup.env("ROWD_CLOCK", &clock));
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let ahead = START - i64::try_from(real).unwrap();
        let mut world = World { daemon, ahead };
        world.move_clock(0);
        world.daemon.start();
        world.daemon.ctl(&["disk", "create", "data", "--size", "64MiB"]);
        world
    }

    /// Lets time pass.
    fn move_clock(&mut self, seconds: i64) {
        self.ahead += seconds;
        self.set_clock(&self.ahead.to_string());
    }

    /// Sets the time of day alone.
    pub fn set_wall(&mut self, seconds: i64) {
        self.set_clock(&format!("{} {}", self.ahead + seconds, self.ahead));
    }

    fn set_clock(&self, text: &str) {
        let next = self.daemon.file("clock.next");
        fs::write(&next, text).unwrap();
        fs::rename(next, self.daemon.file("clock")).unwrap();
    }

    fn snapshots(&self) -> Vec<Value> {
        self.daemon.json(&["snapshot", "list", "data"]).as_array().unwrap().clone()
    }

    /// Names without the id of the policy: `20300107`, `20300107_0130`.
    fn times(&self) -> Vec<String> {
        let name = |one: &Value| {
            let name = one["name"].as_str().unwrap();
            let mut parts = name.strip_prefix("auto2.0_").unwrap().split('_');
            let day = parts.next().unwrap().to_owned();
            assert!(parts.next().unwrap().starts_with("sp-"), "{name}");
            parts.next().map_or(day.clone(), |time| format!("{day}_{time}"))
        };
        let automatic = |one: &&Value| one["kind"] == "auto";
        self.snapshots().iter().filter(automatic).map(name).collect()
    }

    #[track_caller]
    fn wait_times(&self, wanted: &[&str]) {
        let mut last = Vec::new();
        let found = wait::try_until(std::time::Duration::from_secs(20), || {
            last = self.times();
            (last == wanted).then_some(())
        });
        assert!(found.is_some(), "{last:?} instead of {wanted:?}\n{:?}", self.events(""));
    }

    /// The messages of the events of a kind.
    fn events(&self, kind: &str) -> Vec<String> {
        let all = self.daemon.json(&["events"]);
        let of_kind = |one: &&Value| one["kind"] == kind || kind.is_empty();
        let text = |one: &Value| one["message"].as_str().unwrap().to_owned();
        all.as_array().unwrap().iter().filter(of_kind).map(text).collect()
    }

    #[track_caller]
    pub fn wait_event(&self, kind: &str, part: &str) -> String {
        wait::until(&format!("{kind} with {part:?}"), || {
            self.events(kind).into_iter().find(|message| message.contains(part))
        })
    }

    fn policy(&self, name: &str, more: &[&str]) -> Value {
        let made = self.daemon.json(&[&["policy", "create", name], more].concat());
        self.daemon.ctl(&["policy", "apply", name, "data"]);
        made
    }
}

/// POL-01, 21, 22, 23, 31, 41, TAG-08: at its time the disk gets a snapshot with the policy's name, tags and end.
/// Promise: the name has the day, and the time where the day alone is taken.
#[test]
fn a_policy_makes_snapshots_at_its_times() {
    let mut world = World::new();
    let policy = world.policy("often", &["--every", "30m", "--keep", "2h", "--tag", "app=db"]);
    assert_eq!(policy["next_run_at"], "2030-01-07T00:30:00Z");
    world.move_clock(20 * 60);
    world.wait_times(&["20300107"]);
    let first = world.snapshots().remove(0);
    assert_eq!(first["name"], format!("auto2.0_20300107_{}", policy["id"].as_str().unwrap()));
    assert_eq!((&first["kind"], &first["policy_id"]), (&json!("auto"), &policy["id"]));
    assert_eq!(first["scheduled_at"], "2030-01-07T00:30:00Z");
    assert_eq!(first["tags"], json!({"app": "db"}));
    assert_eq!(first["instant_access"], true);
    world.move_clock(30 * 60);
    world.wait_times(&["20300107", "20300107_0100"]);
    let shown = world.daemon.json(&["policy", "show", "often"]);
    assert_eq!(shown["last_run"]["made"], 1);
    assert_eq!(shown["last_run"]["scheduled_at"], "2030-01-07T01:00:00Z");
    assert_eq!(shown["disks"][0]["name"], "data");
    // POL-10: what is older than two hours goes.
    for time in ["0130", "0200", "0230"] {
        world.move_clock(30 * 60);
        wait::until(time, || world.times().last()?.ends_with(time).then_some(()));
    }
    world.wait_times(&["20300107_0100", "20300107_0130", "20300107_0200", "20300107_0230"]);
    assert_eq!(world.events("snapshot.expire").len(), 1);
    assert!(world.events("policy.missed").is_empty());
}

/// POL-05, 49: after an absence nothing is made up for, or one run is, and it is told what was missed.
#[test]
fn missed_times_are_told_and_made_up_for_once_if_wanted() {
    for (catch_up, made) in [("none", 1), ("once", 2)] {
        let mut world = World::new();
        world.policy("often", &["--every", "30m", "--catch-up", catch_up]);
        world.move_clock(20 * 60);
        world.wait_times(&["20300107"]);
        wait::until("the end of the run", || world.events("policy.run").pop());
        world.daemon.kill();
        world.move_clock(2 * HOUR + 8 * 60);
        world.daemon.start();
        let told = world.wait_event("policy.missed", "4 times");
        assert!(told.contains("2030-01-07 01:00 to 2030-01-07 02:30 were missed"), "{told}");
        assert!(told.contains("rowd was not running"), "{told}");
        wait::until("the policy to be done", || {
            (world.events("policy.run").len() == 2).then_some(())
        });
        assert_eq!(world.times().len(), made, "{catch_up}");
        // The next of the schedule is run in any case, and no missed one is told again.
        world.move_clock(22 * 60);
        wait::until("the next run", || world.times().last()?.ends_with("_0300").then_some(()));
        assert_eq!(world.events("policy.missed").len(), 1);
    }
}

/// POL-26, 27, EDN-11, SNAP-15: at a slot at which a snapshot of the disk is being made none is made, with the reason;
/// and what would change a disk under a snapshot is refused.
#[test]
fn a_slot_is_left_out_while_a_snapshot_is_being_made() {
    let mut world = World::new();
    world.policy("often", &["--every", "30m"]);
    let (script, held, begun) =
        (world.daemon.file("slow.sh"), world.daemon.file("held"), world.daemon.file("begun"));
    fs::write(&held, "").unwrap();
    let text = format!(
        "#!/bin/sh\ntouch {}\nwhile [ -e {} ]; do sleep 0.05; done\n",
        begun.display(),
        held.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    let script = script.display().to_string();
    let create = ["snapshot", "create", "data", "slow", "--consistency", "app", "--no-freeze"];
    let scripts = ["--pre-script", &script, "--post-script", &script];
    let mut command = world.daemon.ctl_command(&[&create[..], &scripts].concat());
    let mut making = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    wait::until("the script", || begun.exists().then_some(()));
    world.move_clock(20 * 60);
    let told = world.wait_event("policy.skip", "a manual snapshot of data is being made");
    assert!(told.starts_with("policy often left data out at 2030-01-07 00:30"), "{told}");
    for args in [
        &["disk", "delete", "data", "--yes"][..],
        &["disk", "resize", "data", "128MiB"],
        &["disk", "reinit", "data", "--yes"],
        &["disk", "detach", "data"],
    ] {
        let error = world.daemon.json_error(15, args);
        assert!(error["message"].as_str().unwrap().contains("is being made"), "{error}");
    }
    fs::remove_file(&held).unwrap();
    assert!(making.wait().unwrap().success());
    assert!(world.times().is_empty(), "the slot is not made up for");
    let run = world.daemon.json(&["policy", "show", "often"])["last_run"].clone();
    assert_eq!((&run["made"], &run["skipped"]), (&json!(0), &json!(1)));
    world.move_clock(30 * 60);
    world.wait_times(&["20300107"]);
}

/// POL-27, SNAP-19: while an automatic snapshot is being made a manual one is refused, and after that it is not.
#[test]
fn a_manual_snapshot_waits_for_an_automatic_one() {
    let mut world = World::new();
    // A guest agent that never answers is waited for at each slot.
    let _silent = UnixListener::bind(world.daemon.file("qga.sock")).unwrap();
    world.daemon.ctl(&["instance", "add", "web", "--qga", &world.daemon.path("qga.sock")]);
    world.daemon.ctl(&["disk", "set", "data", "--instance", "web"]);
    world.policy("often", &["--every", "30m", "--consistency", "fs"]);
    world.move_clock(20 * 60);
    let mut slots = 0;
    let refused = wait::until("a refusal", || {
        let tried = world.daemon.try_ctl(&["snapshot", "create", "data", "mine"]);
        if tried.code != 0 {
            return Some(tried.fails_with(15));
        }
        world.daemon.ctl(&["snapshot", "delete", "data@mine", "--yes"]);
        // This slot was over before anybody asked: the next one.
        let left_out = world.events("policy.skip").len();
        if left_out > slots {
            slots = left_out;
            world.move_clock(30 * 60);
        }
        None
    });
    assert!(refused.stderr.contains("an automatic snapshot of data is being made"), "{refused:?}");
    world.wait_event("policy.skip", "does not answer within 5 s");
    wait::until("the end of the run", || {
        world.daemon.try_ctl(&["snapshot", "create", "data", "mine"]).code.eq(&0).then_some(())
    });
}

/// POL-08, 09, 11, 46, 47, IMG-28, SNAP-16: at the quota the oldest automatic one that is free goes, and no manual one.
#[test]
fn at_the_quota_the_oldest_automatic_snapshot_goes() {
    let mut world = World::with("[quota]\nautomatic_snapshots = 3\n");
    world.policy("often", &["--every", "30m", "--keep", "forever"]);
    world.daemon.ctl(&["snapshot", "create", "data", "mine"]);
    world.move_clock(20 * 60);
    world.wait_times(&["20300107"]);
    let first = world.snapshots().iter().find(|one| one["kind"] == "auto").unwrap()["id"].clone();
    world.daemon.ctl(&["image", "create", "kept", "--from", first.as_str().unwrap()]);
    for time in ["0100", "0130", "0200"] {
        world.move_clock(30 * 60);
        wait::until(time, || world.times().last()?.ends_with(time).then_some(()));
    }
    world.wait_times(&["20300107", "20300107_0130", "20300107_0200"]);
    let told = world.wait_event("snapshot.evict", "the oldest beyond the quota");
    assert!(told.contains("_0100"), "{told}");
    assert_eq!(world.daemon.json(&["snapshot", "show", "data@mine"])["kind"], "manual");
    // FAQ-08: forever is forever but for the quota.
    world.move_clock(10 * 365 * DAY);
    world.wait_event("policy.missed", "more than");
    assert_eq!(world.times().len(), 3);
}

/// POL-28, 29, DEL: a change of the retention is for new snapshots; the newest never goes by itself.
#[test]
fn a_change_touches_new_snapshots_only_and_the_newest_stays() {
    let mut world = World::new();
    world.policy("often", &["--every", "30m", "--keep", "1h"]);
    world.move_clock(20 * 60);
    world.wait_times(&["20300107"]);
    let end = world.snapshots()[0]["expires_at"].clone();
    let set = world.daemon.json(&["policy", "set", "often", "--keep", "10d", "--every", "1h"]);
    assert_eq!(set["keep"], json!({"kind": "for", "seconds": 10 * DAY}));
    assert_eq!(world.snapshots()[0]["expires_at"], end);
    world.daemon.crash();
    assert_eq!(world.snapshots()[0]["expires_at"], end);
    world.move_clock(30 * 60);
    world.wait_times(&["20300107", "20300107_0100"]);
    // The first goes at its time; the second after ten days would, but is the newest.
    world.daemon.ctl(&["policy", "cancel", "data"]);
    world.move_clock(HOUR);
    world.wait_times(&["20300107_0100"]);
    world.move_clock(20 * DAY);
    world.daemon.ctl(&["policy", "create", "other", "--every", "1h"]);
    let preview = world.daemon.json(&["policy", "preview", "often"]);
    assert_eq!(preview["pruned"], json!([]), "the newest stays");
    assert_eq!(world.times(), ["20300107_0100"]);
}

/// Promise: many do not go at once unless somebody agrees.
#[test]
fn a_mass_of_removals_waits_for_somebody_to_agree() {
    let mut world = World::new();
    world.policy("often", &["--every", "30m", "--keep", "1d"]);
    for run in 0..14 {
        world.move_clock(if run == 0 { 20 } else { 30 } * 60);
        wait::until("a run", || (world.times().len() > run).then_some(()));
    }
    world.daemon.ctl(&["policy", "cancel", "data"]);
    world.move_clock(3 * DAY);
    let told = world.wait_event("policy.hold", "13 of 14 automatic snapshots of data");
    assert!(told.contains("rowctl policy resume data"), "{told}");
    let preview = world.daemon.json(&["policy", "preview", "often"]);
    assert_eq!(preview["pruned"].as_array().unwrap().len(), 13);
    world.daemon.crash();
    assert_eq!(world.times().len(), 14);
    world.daemon.json_error(2, &["policy", "resume", "data"]);
    let done = world.daemon.json(&["policy", "resume", "data", "--yes"]);
    assert_eq!(done["removed"], 13);
    assert_eq!(world.times().len(), 1);
    world.daemon.json_error(15, &["policy", "resume", "data", "--yes"]);
}

/// Promise: nothing is made or removed by a clock that was set, until it is right again or somebody says that it is.
#[test]
fn a_clock_that_was_set_stops_policies() {
    let mut world = World::new();
    world.policy("often", &["--every", "30m", "--keep", "2h"]);
    world.move_clock(20 * 60);
    world.wait_times(&["20300107"]);
    world.set_wall(-2 * HOUR);
    let told = world.wait_event("policy.hold", "the clock went back by");
    assert!(told.contains("rowctl policy resume"), "{told}");
    world.set_wall(0);
    world.wait_event("policy.resume", "clock");
    world.set_wall(40 * DAY);
    world.wait_event("policy.hold", "the clock went ahead by");
    assert_eq!(world.times(), ["20300107"], "nothing is made");
    let seen = world.daemon.try_ctl(&["policy", "list"]);
    assert!(seen.ok().stderr.contains("the clock went ahead"));
    world.ahead += 40 * DAY;
    world.set_clock(&world.ahead.to_string());
    world.daemon.ctl(&["policy", "resume", "--yes"]);
    world.wait_event("policy.missed", "times from 2030-01-07 01:00");
    world.move_clock(30 * 60);
    wait::until("a run", || world.times().last()?.starts_with("20300216").then_some(()));
}

/// POL-02, 12 to 16, 18, 19, 20, 30, 51, DISK-24, FAQ-11: the verbs.
#[test]
fn policies_are_made_applied_shown_and_deleted() {
    let world = World::with("[quota]\npolicies = 2\n");
    let daemon = &world.daemon;
    let made = daemon.try_ctl(&["policy", "create", "office", "--at", "8,12", "--on", "mon-fri"]);
    assert!(made.ok().stderr.contains("rowctl policy apply office"));
    let office = daemon.json(&["policy", "show", "office"]);
    assert!(office["id"].as_str().unwrap().starts_with("sp-"));
    assert_eq!(office["keep"], json!({"kind": "for", "seconds": 30 * DAY}));
    assert_eq!(office["schedule"], json!({"at": [8, 12], "on": [1, 2, 3, 4, 5]}));
    assert_eq!((&office["timezone"], &office["consistency"]), (&json!("UTC"), &json!("crash")));
    let zone = ["--timezone", "europe/berlin", "--cron", "30 2 * * 7", "--keep", "daily=7,last=3"];
    let sunday = daemon.json(&[&["policy", "create", "sunday"], &zone[..]].concat());
    assert_eq!(sunday["timezone"], "Europe/Berlin");
    let error = daemon.json_error(14, &["policy", "create", "third", "--every", "1h"]);
    assert!(error["hint"].as_str().unwrap().contains("`policies` in rowd.toml"), "{error}");
    daemon.ctl(&["disk", "create", "log", "--size", "1MiB", "--policy", "sunday"]);
    let all = daemon.try_ctl(&["policy", "apply", "office", "data", "log", "nothing"]);
    let all = all.fails_with(21);
    assert!(all.stderr.contains("log: log has the policy sunday"), "{}", all.stderr);
    assert!(all.stderr.contains("nothing: no disk is called"), "{}", all.stderr);
    let names = |args: &[&str]| -> Vec<String> {
        let disks = daemon.json(args);
        disks.as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&["disk", "list", "--policy", "office"]), ["data"]);
    assert_eq!(names(&["disk", "list", "--policy", "any"]), ["data", "log"]);
    daemon.ctl(&["policy", "apply", "office", "log", "--replace"]);
    assert_eq!(daemon.json(&["policy", "list"])[0]["disks"].as_array().unwrap().len(), 2);
    daemon.ctl(&["policy", "cancel", "log"]);
    daemon.json_error(15, &["policy", "cancel", "log"]);
    assert_eq!(names(&["disk", "list", "--policy", "none"]), ["log"]);
    let preview = daemon.json(&["policy", "preview", "office", "--runs", "3"]);
    let runs = ["2030-01-07T08:00:00Z", "2030-01-07T12:00:00Z", "2030-01-08T08:00:00Z"];
    assert_eq!(preview["runs"], json!(runs));
    daemon.json_error(2, &["policy", "delete", "office"]);
    let done = daemon.json(&["policy", "delete", "office", "--yes"]);
    assert_eq!(done["disks"][0]["name"], "data");
    assert_eq!(daemon.json(&["disk", "show", "data"])["policy"], Value::Null);
    let kinds = daemon.json(&["events"]).to_string();
    for kind in ["policy.create", "policy.apply", "policy.cancel", "policy.delete"] {
        assert!(kinds.contains(kind), "{kind}");
    }
}

/// POL-03, 04, 07, 24: what makes no sense is refused, with what would be right, and changes nothing.
#[test]
fn a_policy_that_makes_no_sense_is_refused() {
    let world = World::new();
    let daemon = &world.daemon;
    daemon.ctl(&["policy", "create", "good", "--at", "0", "--keep", "65536d"]);
    daemon.ctl(&["policy", "set", "good", "--keep", "1d"]);
    for (code, args) in [
        (2, &["--at", "7:30"][..]),
        (2, &["--at", "24"]),
        (2, &["--at", "1", "--on", "0"]),
        (2, &["--on", "mon"]),
        (2, &[]),
        (2, &["--at", "1", "--every", "1h"]),
        (2, &["--at", "1", "--keep", "0d"]),
        (2, &["--at", "1", "--keep", "65537d"]),
        (2, &["--at", "1", "--keep", "1.5d"]),
        (2, &["--at", "1", "--keep", "last=0"]),
        (2, &["--every", "30s"]),
        (2, &["--cron", "0 0 30 2 *"]),
        (2, &["--cron", "nonsense"]),
        (2, &["--at", "1", "--timezone", "Mars/Olympus"]),
        (2, &["--at", "1", "--consistency", "perfect"]),
    ] {
        daemon.json_error(code, &[&["policy", "create", "bad"], args].concat());
    }
    daemon.json_error(21, &["policy", "create", "good", "--at", "1"]);
    daemon.json_error(2, &["policy", "create", "a b", "--at", "1"]);
    daemon.json_error(2, &["policy", "set", "good"]);
    daemon.json_error(2, &["policy", "set", "good", "--keep", "0d"]);
    daemon.json_error(2, &["policy", "preview", "good", "--runs", "0"]);
    daemon.json_error(20, &["disk", "create", "new", "--size", "1MiB", "--policy", "goood"]);
    let error = daemon.json_error(20, &["policy", "apply", "goo", "data"]);
    assert_eq!(error["hint"], "did you mean 'good'?");
    daemon.json_error(15, &["policy", "resume", "--yes"]);
    assert_eq!(daemon.json(&["policy", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(daemon.json(&["disk", "list"]).as_array().unwrap().len(), 1);
}

/// POL-44: after a destructive change the disk goes back to the newest automatic snapshot.
#[test]
fn a_disk_goes_back_to_its_newest_automatic_snapshot() {
    let mut world = World::new();
    world.policy("often", &["--every", "30m"]);
    let mut client = Client::connect(&world.daemon.nbd_socket(), "data");
    client.write(0, &[1; 4096]);
    world.move_clock(20 * 60);
    world.wait_times(&["20300107"]);
    client.write(0, &[2; 4096]);
    client.disconnect();
    let name = world.snapshots()[0]["name"].as_str().unwrap().to_owned();
    world.daemon.ctl(&["disk", "rollback", "data", &name, "--yes", "--force"]);
    let mut client = Client::connect(&world.daemon.nbd_socket(), "data");
    assert_eq!(client.read(0, 4096), [1; 4096]);
}
