//! What a snapshot at the file system level is worth, and what is refused.

use std::path::PathBuf;

use rowd::freeze::hurry;
use rowd_tests::mount::unmount;
use rowd_tests::process::Daemon;
use rowd_tests::{tool, wait};
use serde_json::json;

use super::world::{EXT4, Kind, Load, World, XFS, phases, seconds};

/// APP-04, LOG-12, SQL-07: under writes, a snapshot at the file system level has nothing to repair and
/// nothing to replay; the report says what was frozen, when, and for how long.
fn is_clean_under_load(kind: &Kind) {
    let world = World::new(kind);
    let load = Load::start(world.dir().to_owned());
    for name in ["one", "two", "three"] {
        load.goes_on();
        let made = world.create(name, &[]);
        load.goes_on();
        assert_eq!(made["consistency"], "fs");
        assert_eq!(made["tags"], json!({"FsConsistent": "True"}));
        let report = &made["freeze"];
        assert_eq!(report["reached"], "fs");
        assert_eq!(report["notes"], json!([]));
        assert_eq!(phases(report), ["prepare", "freeze", "cut", "thaw", "tag"]);
        assert_eq!(report["targets"][0]["mount_point"], world.dir_text());
        assert_eq!(report["targets"][0]["file_system"], kind.name);
        let at = |field: &str| report[field].as_str().expect("an instant").to_owned();
        assert!(at("frozen_at") < at("thawed_at"), "{report}");
        assert!(report["frozen_seconds"].as_f64().unwrap() < 10.0, "{report}");
    }
    drop(load);
    for name in ["one", "two", "three"] {
        kind.is_clean(&world.daemon, &format!("db@{name}"));
    }
    let log = world.daemon.log();
    assert!(log.contains("freeze phase") && log.contains("frozen_at"), "{log}");
    let events = world.daemon.json(&["events"]).to_string();
    assert!(events.contains("freeze.done") && events.contains("frozen from"), "{events}");
}

#[test]
fn an_ext4_snapshot_at_the_fs_level_has_nothing_to_replay() {
    is_clean_under_load(&EXT4);
}

#[test]
fn an_xfs_snapshot_at_the_fs_level_has_nothing_to_replay() {
    is_clean_under_load(&XFS);
}

/// The numbers a user sees on a mount that does nothing: frozen for at most 50 ms, the cut at most 5 ms.
/// The bounds here are wider, for machines with every core taken; the medians are printed.
#[test]
fn an_idle_file_system_is_frozen_for_milliseconds() {
    let world = World::new(&EXT4);
    let mut frozen = Vec::new();
    let mut cuts = Vec::new();
    for number in 0..15 {
        let report = world.create(&format!("s{number}"), &[])["freeze"].clone();
        frozen.push(report["frozen_seconds"].as_f64().unwrap() * 1000.0);
        cuts.push(seconds(&report, "cut") * 1000.0);
    }
    frozen.sort_by(f64::total_cmp);
    cuts.sort_by(f64::total_cmp);
    println!("frozen: median {:.2} ms, worst {:.2} ms", frozen[7], frozen[14]);
    println!("cut: median {:.2} ms, worst {:.2} ms", cuts[7], cuts[14]);
    assert!(frozen[7] < 500.0, "{frozen:?}");
    assert!(cuts[7] < 50.0, "{cuts:?}");
    // What makes it short is over with the freeze; those of other tests may go on.
    wait::until("the kernel takes its time again", || hurry::is_off().then_some(()));
}

/// SQL-05: a file system in an image file on a frozen one is frozen with it, and first. A second mount of the same
/// file system is no second file system.
#[test]
fn a_file_system_in_an_image_is_frozen_before_the_one_that_holds_it() {
    let world = World::new(&EXT4);
    let (image, inner) = (world.dir().join("image"), world.daemon.file("inner"));
    let bound = world.daemon.file("bound mount");
    std::fs::create_dir(&inner).and_then(|()| std::fs::create_dir(&bound)).unwrap();
    let text = |path: &std::path::Path| path.display().to_string();
    tool::run("truncate", &["-s", "32M", &text(&image)]).ok();
    tool::run("mkfs.ext4", &["-q", &text(&image)]).ok();
    let _inner = Mount::new(&["-o", "loop", &text(&image)], inner.clone());
    let _bound = Mount::new(&["--bind", &world.dir_text()], bound);
    let made = world.create("nested", &[]);
    let targets = made["freeze"]["targets"].as_array().expect("targets");
    let points: Vec<_> = targets.iter().map(|one| one["mount_point"].as_str().unwrap()).collect();
    assert_eq!(points, [&text(&inner), &world.dir_text()]);
    std::fs::write(inner.join("written"), "x").unwrap();
}

/// A mount of this test, gone with it.
struct Mount(PathBuf);

impl Mount {
    #[track_caller]
    fn new(args: &[&str], point: PathBuf) -> Mount {
        tool::run("mount", &[args, &[&point.display().to_string()]].concat()).ok();
        Mount(point)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let done = unmount(&self.0);
        assert!(done.code == 0 || std::thread::panicking(), "{done}");
    }
}

/// APP-34, 35 and the level that is the default.
#[test]
fn without_freezing_a_snapshot_is_of_the_crash_level() {
    let world = World::new(&EXT4);
    let plain = world.daemon.json(&["snapshot", "create", "db", "plain"]);
    assert_eq!((&plain["consistency"], &plain["freeze"]), (&json!("crash"), &json!(null)));
    let create = ["snapshot", "create", "db", "xx", "--consistency", "fs"];
    let made = world.daemon.json(&[&create[..], &["--no-freeze"]].concat());
    assert_eq!((&made["consistency"], &made["tags"]), (&json!("crash"), &json!({})));
    assert_eq!(phases(&made["freeze"]), ["prepare", "cut"]);
}

/// APP-20 to 22, 33, 35: what is in the way is named, exit code 1, and nothing is made or frozen.
#[test]
fn what_cannot_be_frozen_is_refused_before_anything_is_touched() {
    let world = World::new(&EXT4);
    let daemon = &world.daemon;
    let refused = |more: &[&str], part: &str| {
        let create = ["snapshot", "create", "db", "xx", "--consistency", "fs"];
        let error = daemon.json_error(1, &[&create[..], more].concat());
        assert_eq!(error["kind"], "condition", "{error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{part}: {error}");
        assert!(error["hint"].is_string(), "{error}");
    };
    refused(&[], "no file system of db is mounted");
    refused(&["--mount", "/proc"], "type proc");
    refused(&["--mount", "/"], "on a file system to be frozen");
    refused(&["--mount", &format!("{}/lost+found", world.dir_text())], "not a mount point");
    refused(&["--mount", &format!("{}/missing", world.dir_text())], "is not there");
    daemon.json_error(1, &["freeze", "check", "db"]);
    let status = daemon.json(&["freeze", "status"]);
    assert_eq!(status, json!({"running": null, "left": []}));
    assert_eq!(daemon.json(&["snapshot", "list"]), json!([]));
    world.create("xx", &[]);
}

/// A name that is taken, a full quota and a limit out of range stop it before the file system is touched.
#[test]
fn what_the_snapshot_itself_would_refuse_is_refused_first() {
    let world = World::new(&EXT4);
    world.create("xx", &[]);
    world.create_fails(21, "xx", &[]);
    world.create_fails(2, "auto-xx", &[]);
    world.create_fails(2, "yy", &["--freeze-timeout", "0"]);
    world.create_fails(2, "yy", &["--freeze-timeout", "301"]);
    world.create_fails(2, "yy", &["--no-freeze"]);
    let crash = ["snapshot", "create", "db", "yy", "--consistency", "crash", "--no-freeze"];
    world.daemon.json_error(2, &crash);
    assert_eq!(world.daemon.json(&["snapshot", "list"]).as_array().map(Vec::len), Some(1));
}

/// Without a mounted file system there is nothing to thaw, and that is said.
#[test]
fn freeze_status_and_thaw_say_that_nothing_is_frozen() {
    let mut daemon = Daemon::new();
    assert_eq!(daemon.ctl(&["freeze", "status"]).trim(), "nothing is frozen");
    assert_eq!(daemon.ctl(&["freeze", "thaw"]).trim(), "nothing was frozen");
    daemon.stop();
    daemon.try_ctl(&["freeze", "thaw"]).ok().says(&["nothing is recorded as frozen"]);
    daemon.try_ctl(&["freeze", "status"]).fails_with(23);
}
