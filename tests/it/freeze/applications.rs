//! Applications that take part: scripts, hooks, and the level that comes of them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rowd_tests::mount::Device;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::tool;
use serde_json::{Value, json};

use super::world::{EXT4, Load, World, phases};

/// A world whose daemon looks for hooks in a directory of the test.
fn world() -> World {
    let mut daemon = Setup::default().prepare();
    let (hooks, dir) = (daemon.path("hooks.d"), daemon.file("hooks.d"));
    daemon.change_setup(|setup| setup.config(&format!("{SMALL}[freeze]\nhooks = \"{hooks}\"\n")));
    fs::create_dir(dir).unwrap();
    daemon.start();
    World::on(&EXT4, daemon)
}

/// Writes a program of root with this mode.
fn program(path: &Path, mode: u32, text: &str) -> String {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    path.display().to_string()
}

/// A pair of scripts in a file system that is not frozen.
struct Pair {
    pre: String,
    post: String,
}

impl Pair {
    fn new(daemon: &Daemon, pre: &str, post: &str) -> Pair {
        Pair {
            pre: program(&daemon.file("pre.sh"), 0o700, pre),
            post: program(&daemon.file("post.sh"), 0o700, post),
        }
    }

    fn args(&self) -> [&str; 4] {
        ["--pre-script", &self.pre, "--post-script", &self.post]
    }
}

/// `rowctl snapshot create db NAME --consistency app …`, as arguments.
fn app<'a>(name: &'a str, dir: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let head = ["snapshot", "create", "db", name, "--consistency", "app", "--mount", dir];
    [&head[..], more].concat()
}

#[track_caller]
fn made(world: &World, name: &str, more: &[&str]) -> Value {
    world.daemon.json(&app(name, &world.dir_text(), more))
}

#[track_caller]
fn fails(world: &World, code: i32, name: &str, more: &[&str]) -> Value {
    world.daemon.json_error(code, &app(name, &world.dir_text(), more))
}

fn log(world: &World) -> Vec<String> {
    let text = fs::read_to_string(world.daemon.file("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn level(snapshot: &Value) -> (&str, Value) {
    (snapshot["consistency"].as_str().expect("a level"), snapshot["tags"].clone())
}

/// APP-02, 03, 15, 16, EXIT-00: freeze script, hooks, freeze, cut, thaw, hooks released, thaw script, tag. What
/// the freeze script wrote is in the snapshot, what the thaw script wrote is not.
#[test]
fn scripts_and_hooks_run_around_the_freeze_in_their_order() {
    let world = world();
    let (log_file, dir) = (world.daemon.path("log"), world.dir_text());
    let pre = format!(
        "echo pre $ROWD_SNAPSHOT $ROWD_DISKS $ROWD_LEVEL >> {log_file}; echo x > {dir}/before"
    );
    let post = format!("echo post $ROWD_RESULT >> {log_file}; echo x > {dir}/after");
    let pair = Pair::new(&world.daemon, &pre, &post);
    let hook = |name: &str| {
        let text = format!(
            "echo hold {name} >> {log_file}; echo READY; read -r line; echo let go {name} >> {log_file}"
        );
        program(&world.daemon.file("hooks.d").join(name), 0o755, &text)
    };
    hook("10-one");
    hook("20-two");
    let snapshot = made(&world, "quiet", &pair.args());
    assert_eq!(level(&snapshot), ("app", json!({"APPConsistent": "True"})));
    let report = &snapshot["freeze"];
    assert_eq!((&report["wanted"], &report["reached"]), (&json!("app"), &json!("app")));
    let order = "prepare prescript hooks freeze cut thaw release postscript tag";
    assert_eq!(phases(report).join(" "), order);
    let order = [
        "pre quiet db app",
        "hold 10-one",
        "hold 20-two",
        "let go 20-two",
        "let go 10-one",
        "post made",
    ];
    assert_eq!(log(&world), order);
    EXT4.is_clean(&world.daemon, "db@quiet");
    let seen = Device::attach(&world.daemon, "db@quiet").mount("ro,noload");
    assert!(seen.path().join("before").exists());
    assert!(!seen.path().join("after").exists());
    assert!(world.dir().join("after").exists());
}

/// APP-07, 08, 11, 12, 14, 17, PLUG-08: scripts that cannot be used give the file system level and the reason.
#[test]
fn scripts_that_cannot_be_used_give_the_fs_level_and_the_reason() {
    let world = world();
    let good = program(&world.daemon.file("good.sh"), 0o700, "true");
    let file = |name: &str| world.daemon.file(name);
    let open = program(&file("open.sh"), 0o755, "true");
    let foreign = program(&file("foreign.sh"), 0o700, "true");
    chown(&foreign, Some(1), None).unwrap();
    symlink(&good, file("link.sh")).unwrap();
    fs::create_dir(file("dir.sh")).unwrap();
    let (link, dir, gone) = (file("link.sh"), file("dir.sh"), file("gone.sh"));
    let text = |path: &PathBuf| path.display().to_string();
    let cases: [(&str, Vec<String>, &str); 8] = [
        ("none", vec![], "no scripts are given"),
        ("mode", vec![open, good.clone()], "mode 0755"),
        ("owner", vec![good.clone(), foreign], "belongs to user 1"),
        ("link", vec![text(&link), good.clone()], "symbolic link"),
        ("dir", vec![good.clone(), text(&dir)], "not a regular file"),
        ("gone", vec![good.clone(), text(&gone)], "does not exist"),
        ("alone", vec![good.clone()], "no thaw script"),
        ("asked", vec!["--no-scripts".to_owned()], "left out"),
    ];
    for (name, scripts, reason) in cases {
        let mut args = Vec::new();
        let flags = ["--pre-script", "--post-script"];
        match scripts.first().map(String::as_str) {
            Some("--no-scripts") => args.push("--no-scripts"),
            _ => args.extend(flags.iter().zip(&scripts).flat_map(|(flag, path)| [*flag, path])),
        }
        let snapshot = made(&world, name, &args);
        assert_eq!(level(&snapshot), ("fs", json!({"FsConsistent": "True"})), "{name}");
        let notes = snapshot["freeze"]["notes"].to_string();
        assert!(notes.contains(reason), "{name}: {notes}");
        assert_eq!(phases(&snapshot["freeze"]).join(" "), "prepare freeze cut thaw tag", "{name}");
    }
}

/// SQL-06: hooks that cannot be used are left out by name and reason; the others make the level.
#[test]
fn a_hook_that_cannot_be_used_is_skipped_and_the_others_take_part() {
    let world = world();
    let dir = world.daemon.file("hooks.d");
    program(&dir.join("10-good"), 0o755, "echo READY; cat");
    program(&dir.join("20-writable"), 0o777, "true");
    program(&dir.join("30-old.bak"), 0o755, "true");
    let dir = world.dir_text();
    let check = ["freeze", "check", "db", "--consistency", "app", "--mount", &dir];
    let preview = world.daemon.json(&check);
    assert_eq!(
        (&preview["consistency"], &preview["applications"]),
        (&json!("app"), &json!(["10-good"]))
    );
    assert_eq!(preview["targets"][0]["mount_point"], dir);
    let snapshot = made(&world, "hooks", &[]);
    assert_eq!(level(&snapshot).0, "app");
    assert_eq!(snapshot["freeze"]["notes"], preview["notes"]);
    let notes = snapshot["freeze"]["notes"].to_string();
    assert!(notes.contains("20-writable") && notes.contains("30-old.bak"), "{notes}");
    assert!(!notes.contains("10-good"), "{notes}");
}

/// APP-13, 19, EXIT-09, 10, PLUG-09, 12, MYSQL-08: a script that fails or takes too long is an error. The thaw
/// script runs whenever the freeze script ran; a snapshot is kept only if the failure came after it.
#[test]
fn a_script_that_fails_or_hangs_has_its_exit_code_and_the_thaw_script_runs() {
    let world = world();
    let log_file = world.daemon.path("log");
    let say = |word: &str, then: &str| format!("echo {word} >> {log_file}; {then}");
    let limit = ["--script-timeout", "1"];
    for (name, pre, post, code, kept) in [
        ("pre-fails", "exit 3", "true", 9, false),
        ("pre-hangs", "sleep 1000", "true", 9, false),
        ("post-fails", "true", "exit 3", 10, true),
        ("post-hangs", "true", "sleep 1000", 10, true),
        ("both-fail", "exit 3", "exit 4", 9, false),
    ] {
        let before = log(&world).len();
        let pair = Pair::new(&world.daemon, &say("pre", pre), &say("post", post));
        let error = fails(&world, code, name, &[&pair.args()[..], &limit].concat());
        assert_eq!(log(&world)[before..], ["pre", "post"], "{name}");
        let found =
            world.daemon.try_ctl(&["-o", "json", "snapshot", "show", &format!("db@{name}")]);
        let message = error["message"].as_str().unwrap();
        if kept {
            // Its file systems stood still all the same.
            assert_eq!(
                level(&found.ok().json()),
                ("fs", json!({"FsConsistent": "True"})),
                "{name}"
            );
            assert!(message.contains("is made and kept"), "{message}");
        } else {
            found.fails_with(20);
            assert!(!message.contains("kept"), "{message}");
        }
    }
    assert_eq!(world.daemon.json(&["freeze", "status"]), json!({"running": null, "left": []}));
}

/// A hook that fails, hangs, dies early or does not let go: never is anything left frozen or held.
#[test]
fn a_hook_that_fails_or_hangs_has_its_exit_code_and_nothing_stays_frozen() {
    let world = world();
    let dir = world.daemon.file("hooks.d");
    let (log_file, load) = (world.daemon.path("log"), Load::start(world.dir().to_owned()));
    let first = format!("echo READY; read -r line; echo let go >> {log_file}");
    program(&dir.join("10-first"), 0o755, &first);
    let limit = ["--script-timeout", "1"];
    for (name, text, code, kept) in [
        ("fails", "exit 1", 9, false),
        ("hangs", "sleep 1000", 9, false),
        ("no-release", "echo READY; sleep 1000", 10, true),
        ("dies-later", "echo READY; read -r line; exit 4", 10, true),
    ] {
        let before = log(&world).len();
        program(&dir.join("20-second"), 0o755, text);
        fails(&world, code, name, &limit);
        load.goes_on();
        assert_eq!(log(&world)[before..], ["let go"], "{name}");
        let found =
            world.daemon.try_ctl(&["-o", "json", "snapshot", "show", &format!("db@{name}")]);
        if kept {
            assert_eq!(level(&found.ok().json()).0, "fs", "{name}");
        } else {
            found.fails_with(20);
        }
    }
}

/// MYSQL-06: what a script or hook leaves in the background is neither waited for nor killed, and freezes nothing.
#[test]
fn what_a_hook_leaves_in_the_background_does_not_hold_anything_up() {
    let world = world();
    let pids = world.daemon.path("pids");
    let background = format!("for n in 1 2 3 4 5; do sleep 1000 & echo $! >> {pids}; done");
    let pair = Pair::new(&world.daemon, &background, "true");
    let hook = format!("{background}; echo READY; cat");
    program(&world.daemon.file("hooks.d").join("10-bomb"), 0o755, &hook);
    let load = Load::start(world.dir().to_owned());
    let snapshot = made(&world, "bomb", &[&pair.args()[..], &["--script-timeout", "20"]].concat());
    assert_eq!(level(&snapshot).0, "app");
    load.goes_on();
    let left = fs::read_to_string(&pids).unwrap();
    let left: Vec<&str> = left.lines().collect();
    assert_eq!(left.len(), 10);
    for pid in left {
        tool::run("sh", &["-c", &format!("kill {pid}")]).ok();
    }
}

/// APP-34, PLUG-10: without freezing, scripts alone make the level; with neither it is crash.
#[test]
fn without_freezing_the_scripts_make_the_level_or_nothing_does() {
    let world = world();
    let pair = Pair::new(&world.daemon, "true", "true");
    let create = ["snapshot", "create", "db", "scripts", "--consistency", "app", "--no-freeze"];
    let snapshot = world.daemon.json(&[&create[..], &pair.args()].concat());
    assert_eq!(level(&snapshot), ("app", json!({"APPConsistent": "True"})));
    assert_eq!(snapshot["freeze"]["frozen_at"], json!(null));
    let create = ["snapshot", "create", "db", "neither", "--consistency", "app", "--no-freeze"];
    let snapshot = world.daemon.json(&[&create[..], &["--no-scripts"]].concat());
    assert_eq!(level(&snapshot), ("crash", json!({})));
    let wrong = ["snapshot", "create", "db", "wrong", "--consistency", "fs"];
    world.daemon.json_error(2, &[&wrong[..], &pair.args()].concat());
    world.daemon.json_error(2, &[&create[..], &["--no-scripts"], &pair.args()].concat());
}

/// APP-06, 28: every member of a group has the level and the tag; a disk that is left out has none.
#[test]
fn every_member_of_a_group_has_the_level_and_the_tag() {
    let daemon = Daemon::new();
    let (data, wal) = (EXT4.made(&daemon, "data"), EXT4.made(&daemon, "wal"));
    daemon.ctl(&["disk", "create", "other", "--size", "64MiB"]);
    let loads = [Load::start(data.path().to_owned()), Load::start(wal.path().to_owned())];
    loads.iter().for_each(Load::goes_on);
    let pair = Pair::new(&daemon, "test -n \"$ROWD_GROUP\"", "true");
    let dirs = [data.path().display().to_string(), wal.path().display().to_string()];
    let create = [
        "group", "create", "data", "wal", "--name", "evening", "--mount", &dirs[0], "--mount",
        &dirs[1],
    ];
    let group = daemon.json(&[&create[..], &["--consistency", "app"], &pair.args()].concat());
    assert_eq!(group["freeze"]["reached"], "app");
    assert_eq!(group["freeze"]["targets"].as_array().map(Vec::len), Some(2));
    let shown = daemon.json(&["group", "show", "evening"]);
    let members = shown["members"].as_array().expect("members");
    assert_eq!(members.len(), 2);
    for member in members {
        assert_eq!(level(&member["snapshot"]), ("app", json!({"APPConsistent": "True"})));
    }
    drop(loads);
    EXT4.is_clean(&daemon, "data@evening");
    EXT4.is_clean(&daemon, "wal@evening");
    // One with a disk that nobody has mounted is refused as a whole: APP-35.
    let create = ["group", "create", "data", "other", "--name", "night", "--consistency", "fs"];
    daemon.json_error(1, &create);
    assert_eq!(daemon.json(&["group", "list"]).as_array().map(Vec::len), Some(1));
}

/// The scripts of the configuration run when a request names none.
#[test]
fn the_scripts_of_the_configuration_are_the_default() {
    let mut daemon = Setup::default().prepare();
    let [pre, post] = ["pre.sh", "post.sh"].map(|name| daemon.path(name));
    let config = format!("{SMALL}[freeze]\npre_script = \"{pre}\"\npost_script = \"{post}\"\n");
    daemon.change_setup(|setup| setup.config(&config));
    daemon.start();
    let world = World::on(&EXT4, daemon);
    let log_file = world.daemon.path("log");
    Pair::new(
        &world.daemon,
        &format!("echo pre >> {log_file}"),
        &format!("echo post >> {log_file}"),
    );
    assert_eq!(level(&made(&world, "configured", &[])).0, "app");
    assert_eq!(log(&world), ["pre", "post"]);
}
