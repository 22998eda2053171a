//! Freeze and thaw scripts as real processes, the ill-behaved ones above all.

use super::super::testing::{end, home, owner, pids, read, runs, wait_for, wait_line, write};
use super::*;

const LONG: Duration = Duration::from_secs(60);
/// Enough for a script to begin on a busy machine, little enough to wait for.
const SHORT: Duration = Duration::from_secs(3);

/// A pair whose freeze script is this one.
fn pair(dir: &Path, text: &str) -> Pair {
    let pre = write(dir, "pre.sh", "700", text);
    let post = write(dir, "post.sh", "700", text);
    Pair::check_owned_by(owner(), &pre, &post).unwrap()
}

fn told() -> Surroundings {
    Surroundings {
        disks: vec!["data".to_owned(), "log".to_owned()],
        snapshot: String::new(),
        group: "evening".to_owned(),
        level: "app".to_owned(),
        result: None,
    }
}

#[track_caller]
fn fails(script: &Script, limit: Duration, parts: &[&str]) -> Error {
    let error = script.run(&told(), limit).unwrap_err();
    for part in parts {
        assert!(error.message().contains(part), "{part:?} is missing: {error}");
    }
    error
}

/// APP-11, 12, 14: each rule makes a pair unusable, and says which file and why.
#[test]
fn a_pair_is_usable_only_if_both_are_regular_files_of_root_with_mode_0700() {
    let home = home();
    let dir = home.path();
    let good = write(dir, "good.sh", "700", "exit 0\n");
    Pair::check_owned_by(owner(), &good, &good).unwrap();
    std::os::unix::fs::symlink(&good, dir.join("link.sh")).unwrap();
    std::fs::create_dir(dir.join("directory")).unwrap();
    nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for mode in ["755", "600", "770", "500", "707"] {
        write(dir, mode, mode, "exit 0\n");
    }
    let bad = [
        ("missing.sh", "does not exist"),
        ("link.sh", "is a symbolic link"),
        ("directory", "is not a regular file"),
        ("fifo", "is not a regular file"),
        ("755", "has mode 0755, not 0700"),
        ("600", "has mode 0600, not 0700"),
        ("770", "has mode 0770, not 0700"),
        ("500", "has mode 0500, not 0700"),
        ("707", "has mode 0707, not 0700"),
    ];
    for (name, why) in bad {
        let path = dir.join(name);
        let check = |pre, post| Pair::check_owned_by(owner(), pre, post).unwrap_err().to_string();
        assert_eq!(check(&path, &good), format!("the freeze script {} {why}", path.display()));
        assert_eq!(check(&good, &path), format!("the thaw script {} {why}", path.display()));
    }
    let others = Pair::check_owned_by(owner() + 1, &good, &good).unwrap_err().to_string();
    assert!(others.ends_with(&format!("belongs to user {}, not to root", owner())), "{others}");
    let (real, checked) = (owner() == 0, Pair::check(&good, &good));
    assert_eq!(checked.is_ok(), real, "the owner that counts is root");
}

/// Somebody who replaces the file between check and run gains nothing.
#[test]
fn the_file_that_was_checked_is_the_one_that_runs() {
    let home = home();
    let dir = home.path();
    let pair = pair(dir, "#!/bin/sh\necho checked > $D/ran\n");
    std::fs::remove_file(dir.join("pre.sh")).unwrap();
    write(dir, "pre.sh", "700", "#!/bin/sh\necho another > $D/ran\n");
    pair.pre.run(&told(), LONG).unwrap();
    assert_eq!(read(dir, "ran"), "checked\n");
}

/// MYSQL-11.
#[test]
fn a_script_without_a_first_line_is_for_bash_and_one_with_it_for_whom_it_says() {
    let home = home();
    let dir = home.path();
    let text = "function f { echo \"$BASH\" > $D/ran; }\nf\n";
    pair(dir, text).pre.run(&told(), LONG).unwrap();
    assert_eq!(read(dir, "ran"), "/bin/bash\n");
    let text = "#!/usr/bin/awk -f\nBEGIN { print \"awk\" > \"$D/ran\" }\n";
    pair(dir, text).pre.run(&told(), LONG).unwrap();
    assert_eq!(read(dir, "ran"), "awk\n");
}

/// A program that is no script at all is executed as it is.
#[test]
fn a_binary_program_may_be_a_script() {
    let home = home();
    let path = home.path().join("program");
    let mut install = std::process::Command::new("install");
    assert!(install.args(["-m", "700", "/bin/false"]).arg(&path).status().unwrap().success());
    let pair = Pair::check_owned_by(owner(), &path, &path).unwrap();
    fails(&pair.pre, LONG, &["ended with exit code 1"]);
}

#[test]
fn a_script_is_told_what_happens_and_nothing_of_the_daemons_own_environment() {
    let home = home();
    let dir = home.path();
    let text = "#!/bin/sh\nread line && exit 1\n/usr/bin/env > $D/env; pwd > $D/cwd\n";
    let pair = pair(dir, text);
    pair.pre.run(&told(), LONG).unwrap();
    let mut told_pre: Vec<String> = read(dir, "env").lines().map(str::to_owned).collect();
    told_pre.retain(|line| !line.starts_with("PWD=") && !line.starts_with("_="));
    told_pre.sort();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut wanted = vec![
        path,
        "ROWD_DISKS=data log",
        "ROWD_GROUP=evening",
        "ROWD_HOOK=pre",
        "ROWD_LEVEL=app",
        "ROWD_SNAPSHOT=",
    ];
    assert_eq!(told_pre, wanted);
    assert_eq!(read(dir, "cwd"), "/\n");
    let mut surroundings = told();
    surroundings.result = Some("done".to_owned());
    pair.post.run(&surroundings, LONG).unwrap();
    wanted = vec!["ROWD_HOOK=post", "ROWD_RESULT=done"];
    let env = read(dir, "env");
    assert!(wanted.iter().all(|line| env.lines().any(|found| found == *line)), "{env}");
}

#[test]
fn a_failed_script_is_an_error_with_its_last_words() {
    let home = home();
    let pair = pair(home.path(), "echo one; echo 'a \x1b[1mbell' >&2; no-such-program; exit 3\n");
    let path = home.path().join("pre.sh").display().to_string();
    let said = format!("{path}: line 1: no-such-program: command not found");
    let parts =
        [&path, "freeze script", "ended with exit code 3; it said: one | a [1mbell | ", &said];
    let error = fails(&pair.pre, LONG, &parts);
    assert_eq!(error.kind(), ErrorKind::FreezeScript);
    assert_eq!(fails(&pair.post, LONG, &["thaw script"]).kind(), ErrorKind::ThawScript);
    let pair = self::pair(home.path(), "kill -SEGV $$\n");
    fails(&pair.pre, LONG, &["was ended by signal 11 SIGSEGV"]);
}

/// APP-19. Bash does not end on SIGTERM here, and its children would survive it.
#[test]
fn at_the_limit_the_whole_group_is_killed_whatever_it_ignores() {
    let home = home();
    let dir = home.path();
    let text = "trap '' TERM INT HUP\n\
                for i in {1..50}; do sleep 1000 & echo $! >> $D/made; done\n\
                echo begun; mv $D/made $D/pids; sleep 1000\n";
    let begun = Instant::now();
    let parts = ["did not end within 3 s and was killed; it said: begun"];
    let error = fails(&pair(dir, text).pre, SHORT, &parts);
    assert_eq!(error.kind(), ErrorKind::FreezeScript);
    assert!(begun.elapsed() >= SHORT && begun.elapsed() < LONG, "{:?}", begun.elapsed());
    let bombs = pids(dir, "pids");
    assert_eq!(bombs.len(), 50);
    wait_for("the end of its children", || !bombs.iter().any(|pid| runs(*pid)));
}

/// MYSQL-06: it holds the outputs of the script, and goes on all the same.
#[test]
fn a_background_child_is_neither_waited_for_nor_killed() {
    let home = home();
    let dir = home.path();
    let took = pair(dir, "sleep 1000 &\necho $! > $D/pid\n").pre.run(&told(), LONG).unwrap();
    assert!(took < LONG);
    end(&pids(dir, "pid"));
}

/// More than a pipe holds, after the script has ended: neither stopped nor ended by SIGPIPE.
#[test]
fn a_background_child_may_go_on_talking() {
    let home = home();
    let dir = home.path();
    let text = "( read -t 60 < $D/go; head -c 1000000 /dev/zero; echo $? > $D/wrote ) &\n";
    nix::unistd::mkfifo(&dir.join("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    pair(dir, text).pre.run(&told(), LONG).unwrap();
    assert_eq!(read(dir, "wrote"), "");
    std::fs::write(dir.join("go"), "go\n").unwrap();
    assert_eq!(wait_line(dir, "wrote"), "0");
}

/// Background children in any number, each with the outputs of the script.
#[test]
fn many_background_children_that_talk_are_left_alone_too() {
    let home = home();
    let dir = home.path();
    let text = "for i in {1..40}; do sleep 1000 & echo $! >> $D/made; done; mv $D/made $D/pids\n";
    for _ in 0..3 {
        pair(dir, text).pre.run(&told(), LONG).unwrap();
        end(&pids(dir, "pids"));
    }
}

#[test]
fn a_flood_of_output_fills_nothing_and_blocks_nothing() {
    let home = home();
    let dir = home.path();
    let flood = "head -c 100000000 /dev/zero | tr '\\0' x; echo; echo the end; exit";
    pair(dir, &format!("{flood} 0\n")).pre.run(&told(), LONG).unwrap();
    let error = fails(&pair(dir, &format!("{flood} 7\n")).pre, LONG, &["code 7", " | the end"]);
    assert!(error.message().len() < 2000, "{}", error.message().len());
    // One without an end is killed at the limit as any other.
    fails(&pair(dir, "yes & yes >&2\n").pre, SHORT, &["was killed; it said: y | y"]);
}

#[test]
fn a_script_may_close_its_outputs() {
    let home = home();
    let pair = pair(home.path(), "exec >&- 2>&-\nread -t 0.3 < <(sleep 5)\nexit 4\n");
    let error = fails(&pair.pre, LONG, &["ended with exit code 4"]);
    assert!(!error.message().contains("it said"), "{error}");
}

#[test]
fn what_the_kernel_refuses_to_execute_is_explained() {
    let home = home();
    let dir = home.path();
    let dos = ["its lines end as on DOS", "sed -i"];
    fails(&pair(dir, "#!/bin/bash\r\necho hello\r\n").pre, LONG, &dos);
    fails(&pair(dir, "echo hello\r\n").pre, LONG, &dos);
    let nobody = "#! /usr/bin/no-such-shell -e\n";
    let why = "its first line asks for /usr/bin/no-such-shell: No such file";
    let error = fails(&pair(dir, nobody).pre, LONG, &["could not be started", why]);
    assert_eq!(error.kind(), ErrorKind::FreezeScript);
    write(dir, "plain", "600", "");
    fails(&pair(dir, "#!$D/plain\n").pre, LONG, &["plain, which is no program"]);
}
