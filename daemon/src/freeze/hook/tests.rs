//! Hooks as real processes: those that keep their word, and all the ways in which they do not.

use std::process::{Command, Stdio};

use super::super::testing::{home, owner, pids, read, runs, wait_for, wait_line, write};
use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(3);
/// Quiet while its input is open, then says so.
const GOOD: &str = "#!/bin/sh\necho hello; echo READY; cat > $D/in; echo released >> $D/log\n";

fn names(hooks: &[Hook]) -> Vec<&str> {
    hooks.iter().map(Hook::name).collect()
}

/// The one hook of a directory.
fn hook(dir: &Path, text: &str) -> Hook {
    write(dir, "50-hook", "755", text);
    let (mut hooks, skipped) = discover_owned_by(owner(), dir);
    assert!(skipped.iter().all(|s| s.reason.starts_with("its name is not")), "{skipped:?}");
    hooks.pop().unwrap()
}

fn begin(dir: &Path, text: &str) -> Held {
    hook(dir, text).begin(&Surroundings::default(), LONG).unwrap()
}

#[track_caller]
fn fails<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    for part in parts {
        assert!(error.message().contains(part), "{part:?} is missing: {error}");
    }
}

/// SQL-06.
#[test]
fn hooks_are_found_in_the_order_of_their_names_and_the_rest_is_skipped_with_the_reason() {
    let home = home();
    let dir = home.path();
    for name in ["50-mariadb", "10-first", "90-last.sh", "50-b.pre", "50-b.post"] {
        write(dir, name, "755", "");
    }
    let leftovers = ["50-mariadb~", ".50-x.swp", "50-x.bak", "50-x.dpkg-dist", "50-x.rpmsave"];
    for name in leftovers.iter().chain(&["50-x.sample", "README", "5-x", "20-", "notes.txt"]) {
        write(dir, name, "755", "");
    }
    write(dir, "60-group", "775", "");
    write(dir, "60-world", "757", "");
    write(dir, "60-plain", "644", "");
    write(dir, "61-half.pre", "755", "");
    write(dir, "62-half.post", "755", "");
    write(dir, "63-bad.pre", "755", "");
    write(dir, "63-bad.post", "644", "");
    std::fs::create_dir(dir.join("64-directory")).unwrap();
    std::os::unix::fs::symlink("10-first", dir.join("20-link")).unwrap();
    std::os::unix::fs::symlink("/dev/null", dir.join("65-masked")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.join("66-broken")).unwrap();
    let (hooks, skipped) = discover_owned_by(owner(), dir);
    assert_eq!(names(&hooks), ["10-first", "20-link", "50-b", "50-mariadb", "90-last.sh"]);
    let why = |name: &str| {
        let found: Vec<_> = skipped.iter().filter(|s| s.name == name).collect();
        assert_eq!(found.len(), 1, "{name} in {skipped:?}");
        found[0].reason.clone()
    };
    for name in leftovers.iter().chain(&["50-x.sample"]) {
        assert_eq!(why(name), "is what an editor or a package left behind");
    }
    for name in ["README", "5-x", "20-", "notes.txt"] {
        assert!(why(name).starts_with("its name is not two digits, a hyphen"), "{name}");
    }
    assert!(why("60-group").contains("has mode 0775: others than root may write"));
    assert!(why("60-world").contains("has mode 0757: others than root may write"));
    assert_eq!(why("60-plain"), "is not executable by root");
    assert!(why("61-half.pre").contains("there is no usable 61-half.post"));
    assert!(why("62-half.post").contains("there is no usable 62-half.pre"));
    assert!(why("63-bad.pre").contains("there is no usable 63-bad.post"));
    assert_eq!(why("63-bad.post"), "is not executable by root");
    assert_eq!(why("64-directory"), "is not a regular file");
    assert_eq!(why("65-masked"), "is not a regular file");
    assert!(why("66-broken").contains("cannot be opened"));
    assert_eq!(skipped.len(), 20);
}

#[test]
fn a_directory_that_others_may_write_to_has_no_hooks_and_one_that_is_missing_neither() {
    let home = home();
    let dir = home.path();
    write(dir, "10-first", "755", "");
    let (hooks, skipped) = discover_owned_by(owner() + 1, dir);
    assert!(hooks.is_empty() && skipped[0].reason.contains("not to root"), "{skipped:?}");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(dir, open).unwrap();
    let (hooks, skipped) = discover_owned_by(owner(), dir);
    assert!(hooks.is_empty() && skipped[0].reason.contains("has mode 0777"), "{skipped:?}");
    let (hooks, skipped) = discover(&dir.join("missing"));
    assert!(hooks.is_empty() && skipped.is_empty());
    let (hooks, skipped) = discover(&dir.join("10-first"));
    assert!(hooks.is_empty() && skipped[0].reason.contains("cannot be read"), "{skipped:?}");
}

#[test]
fn a_hook_holds_from_ready_until_it_is_released() {
    let home = home();
    let dir = home.path();
    let held = begin(dir, GOOD);
    assert!(held.is_holding() && held.took() > Duration::ZERO);
    assert_eq!((held.name(), read(dir, "log").as_str()), ("50-hook", ""));
    held.release(LONG).unwrap();
    assert_eq!(read(dir, "log"), "released\n");
}

#[test]
fn a_hook_that_is_given_up_lets_go_too() {
    let home = home();
    let dir = home.path();
    drop(begin(dir, GOOD));
    assert_eq!(read(dir, "log"), "released\n");
}

/// The input of one must not be open in the other, or neither would see its end.
#[test]
fn hooks_that_hold_at_the_same_time_let_go_one_by_one() {
    let home = home();
    let dir = home.path();
    let first = begin(dir, &GOOD.replace("released", "first"));
    let second = begin(dir, &GOOD.replace("released", "second"));
    let third = begin(dir, &GOOD.replace("released", "third"));
    first.release(LONG).unwrap();
    assert!(second.is_holding() && third.is_holding());
    third.release(LONG).unwrap();
    second.release(LONG).unwrap();
    assert_eq!(read(dir, "log"), "first\nthird\nsecond\n");
}

#[test]
fn a_hook_that_ends_before_ready_fails_and_what_it_started_ends_with_it() {
    let home = home();
    let dir = home.path();
    let text = "#!/bin/sh\nsleep 1000 &\necho $! > $D/pid\necho no lock; exit";
    for (code, end) in [(0, "ended with exit code 0"), (3, "ended with exit code 3")] {
        let hook = hook(dir, &format!("{text} {code}\n"));
        let begun = hook.begin(&Surroundings::default(), LONG);
        let said = "before it said READY; it said: no lock";
        fails(begun, ErrorKind::FreezeScript, &["the hook 50-hook", end, said]);
        let left = pids(dir, "pid")[0];
        wait_for("the end of its child", || !runs(left));
    }
}

/// Whether that is seen at once or a moment later, it is not taken for a hook that holds.
#[test]
fn a_hook_that_says_ready_and_ends_is_never_released_well() {
    let home = home();
    let begun = hook(home.path(), "#!/bin/sh\necho READY\n").begin(&Surroundings::default(), LONG);
    let error = begun.and_then(|held| {
        wait_for("its end", || !held.is_holding());
        held.release(LONG)
    });
    assert!(error.unwrap_err().message().contains("ended with exit code 0"));
}

#[test]
fn a_late_hook_is_asked_to_let_go_and_then_killed() {
    let home = home();
    let dir = home.path();
    let polite = hook(dir, "#!/bin/sh\necho NOT READY; cat; echo undone > $D/log\n");
    let late = "did not say READY within 3 s and was ended; it said: NOT READY";
    fails(polite.begin(&Surroundings::default(), SHORT), ErrorKind::FreezeScript, &[late]);
    assert_eq!(read(dir, "log"), "undone\n");
    let rude = "trap '' TERM INT\necho $$ > $D/made; sleep 1000 & echo $! >> $D/made\n\
                mv $D/made $D/pids; wait\n";
    let rude = hook(dir, rude);
    fails(rude.begin(&Surroundings::default(), SHORT), ErrorKind::FreezeScript, &["within 3 s"]);
    let group = pids(dir, "pids");
    wait_for("the end of its group", || !group.iter().any(|pid| runs(*pid)));
}

#[test]
fn a_hook_that_closes_its_output_before_ready_is_not_waited_for() {
    let home = home();
    let hook = hook(home.path(), "#!/bin/sh\nexec >&-\nread line\n");
    let begun = hook.begin(&Surroundings::default(), LONG);
    fails(begun, ErrorKind::FreezeScript, &["closed its output before it said READY"]);
}

/// Only a line of its own on the standard output counts.
#[test]
fn ready_is_a_line_and_on_the_standard_output() {
    let home = home();
    let text = "#!/bin/sh\necho READY >&2; echo ALREADY; echo READY or not; printf READY; cat\n";
    let begun = hook(home.path(), text).begin(&Surroundings::default(), SHORT);
    fails(begun, ErrorKind::FreezeScript, &["did not say READY", "READY or not | READY"]);
}

#[test]
fn a_hook_that_ends_while_it_should_hold_is_noticed() {
    let home = home();
    let dir = home.path();
    nix::unistd::mkfifo(&dir.join("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let text = "sleep 1000 &\necho $! > $D/pid\necho READY; read line < $D/go\n\
                echo session lost >&2; exit 0\n";
    let held = begin(dir, text);
    std::fs::write(dir.join("go"), "go\n").unwrap();
    wait_for("its end", || !held.is_holding());
    let why = "ended with exit code 0 while it had to keep its application quiet";
    fails(held.release(LONG), ErrorKind::ThawScript, &[why, "session lost"]);
    let left = pids(dir, "pid")[0];
    wait_for("the end of its child", || !runs(left));
}

#[test]
fn a_hook_that_does_not_release_well_is_an_error_and_ends_with_its_group() {
    let home = home();
    let dir = home.path();
    let start = "sleep 1000 &\necho $! > $D/pid\necho READY; cat\n";
    let held = begin(dir, &format!("{start}echo cannot unlock >&2; exit 5\n"));
    let parts = ["the hook 50-hook ended with exit code 5", "cannot unlock"];
    fails(held.release(LONG), ErrorKind::ThawScript, &parts);
    let first = pids(dir, "pid")[0];
    let held = begin(dir, &format!("{start}trap '' TERM; wait\n"));
    let killed = "did not let go within 3 s and was killed";
    fails(held.release(SHORT), ErrorKind::ThawScript, &[killed]);
    let second = pids(dir, "pid")[0];
    wait_for("the end of their children", || !runs(first) && !runs(second));
}

/// What it starts while it releases well, a service for example, is left alone.
#[test]
fn a_hook_that_releases_well_may_leave_something_running() {
    let home = home();
    let dir = home.path();
    let text = "echo READY; cat; sleep 1000 & echo $! > $D/pid\n";
    begin(dir, text).release(LONG).unwrap();
    super::super::testing::end(&pids(dir, "pid"));
}

#[test]
fn a_hook_may_talk_while_it_holds() {
    let home = home();
    let dir = home.path();
    let text = "echo READY; head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; cat\n\
                echo released > $D/log\n";
    let held = begin(dir, text);
    assert!(held.is_holding());
    held.release(LONG).unwrap();
    assert_eq!(read(dir, "log"), "released\n");
}

#[test]
fn a_pair_runs_before_and_after_and_hears_the_result() {
    let home = home();
    let dir = home.path();
    let note = "echo \"$ROWD_HOOK $ROWD_DISKS $ROWD_RESULT\" >> $D/log\n";
    write(dir, "50-pair.pre", "700", note);
    write(dir, "50-pair.post", "700", note);
    let (hooks, skipped) = discover_owned_by(owner(), dir);
    assert!(skipped.is_empty() && hooks.len() == 1, "{skipped:?}");
    let about = Surroundings { disks: vec!["data".to_owned()], ..Surroundings::default() };
    let mut held = hooks[0].begin(&about, LONG).unwrap();
    assert!(held.is_holding());
    held.tell("done");
    held.release(LONG).unwrap();
    assert_eq!(read(dir, "log"), "pre data \npost data done\n");
    drop(hooks[0].begin(&about, LONG).unwrap());
    assert!(read(dir, "log").ends_with("post data failed\n"));
}

/// APP-14, 19: the thaw script runs whenever the freeze script did.
#[test]
fn the_thaw_script_of_a_pair_runs_when_its_freeze_script_failed() {
    let home = home();
    let dir = home.path();
    write(dir, "50-pair.pre", "700", "echo pre >> $D/log; exit 2\n");
    write(dir, "50-pair.post", "700", "echo post $ROWD_RESULT >> $D/log; exit 3\n");
    let (hooks, _) = discover_owned_by(owner(), dir);
    let begun = hooks[0].begin(&Surroundings::default(), LONG);
    fails(begun, ErrorKind::FreezeScript, &["50-pair.pre ended with exit code 2"]);
    assert_eq!(read(dir, "log"), "pre\npost failed\n");
    write(dir, "50-pair.pre", "700", "exit 0\n");
    let (hooks, _) = discover_owned_by(owner(), dir);
    let held = hooks[0].begin(&Surroundings::default(), LONG).unwrap();
    fails(held.release(LONG), ErrorKind::ThawScript, &["50-pair.post ended with exit code 3"]);
}

#[test]
fn a_hook_lets_go_when_the_daemon_is_killed() {
    let home = home();
    let dir = home.path();
    write(dir, "50-hook", "755", GOOD);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "freeze::hook::tests::holds_until_it_is_killed"]);
    command.env("HOOKS", dir).stdout(Stdio::null());
    let mut daemon = command.spawn().unwrap();
    assert_eq!(wait_line(dir, "holding"), "50-hook");
    assert_eq!(read(dir, "log"), "");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(wait_line(dir, "log"), "released");
}

#[test]
#[ignore = "a part of a_hook_lets_go_when_the_daemon_is_killed, which starts it"]
fn holds_until_it_is_killed() {
    let dir = std::env::var_os("HOOKS").map(std::path::PathBuf::from).unwrap();
    let (hooks, _) = discover_owned_by(owner(), &dir);
    let held = hooks[0].begin(&Surroundings::default(), LONG).unwrap();
    std::fs::write(dir.join("holding"), format!("{}\n", held.name())).unwrap();
    loop {
        std::thread::park();
    }
}
