//! The JSON output of every verb, held against files in `golden/`: which fields there are, and of which types.
//!
//! After a change that is meant: `ROWD_GOLDEN=write cargo test -p rowd-tests --test it -- golden`, for the verbs of
//! [`IN_A_MACHINE`] with `--test vm -- golden`; and look at the difference.
//!
//! Absent: how shapes are made and held against the files (`rowd_tests::golden`); values, which the tests of each subject
//! check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use rowd_tests::client::Client;
use rowd_tests::golden::{self, Shapes};
use rowd_tests::mount::Device;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::tool;
use rowd_tests::wait;

use super::policies::World;

/// Verbs that print no JSON, each with what it does instead.
const WITHOUT: &[(&str, &str)] = &[("completion", "prints a script"), ("man", "writes pages")];

/// Verbs that are held against their files in a virtual machine: they need the kernel's NBD client (`vm/attach.rs`).
const IN_A_MACHINE: &[&str] = &["disk attach", "disk detach", "snapshot mount"];

/// Verbs that need something out of order, and have a test of their own below.
const APART: &[&str] = &["policy resume", "copy retry"];

const MASTER: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// What is run, in this order: the verb, and its arguments. `$REPO` and the like are files of the test.
const SCENARIO: &[(&str, &str)] = &[
    ("disk create", "disk create data1 --size 64MiB --tag env=test --description words"),
    ("disk create", "disk create secret1 --size 8MiB --encrypted"),
    ("snapshot create", "snapshot create data1 first --tag a=b"),
    ("snapshot create", "snapshot create secret1 first"),
    ("disk create", "disk create clone1 --from data1@first"),
    ("disk list", "disk list"),
    ("disk show", "disk show clone1"),
    ("disk show", "disk show data1"),
    ("disk rename", "disk rename clone1 clone2"),
    ("disk resize", "disk resize clone2 128MiB"),
    ("disk set", "disk set clone2 --description other"),
    ("disk rollback", "disk rollback data1 first --yes --force"),
    ("disk rollback", "disk rollback --undo data1 --yes --force"),
    ("disk reinit", "disk reinit clone2 --yes"),
    ("snapshot create", "snapshot create data1 second"),
    ("snapshot list", "snapshot list"),
    ("snapshot show", "snapshot show data1@first"),
    ("snapshot set", "snapshot set data1@first --description other"),
    ("snapshot diff", "snapshot diff --from-empty data1@second"),
    ("snapshot wait", "snapshot wait data1@second"),
    ("chain list", "chain list"),
    ("chain show", "chain show data1"),
    ("group create", "group create data1 clone2 --name both"),
    ("group list", "group list"),
    ("group show", "group show both"),
    ("group set", "group set both --description other"),
    ("group rollback", "group rollback both --yes --force"),
    ("instance add", "instance add web1 --tag a=b"),
    ("instance set", "instance set web1 --description other"),
    ("instance list", "instance list"),
    ("instance show", "instance show local"),
    ("instance show", "instance show web1"),
    ("instance remove", "instance remove web1 --yes"),
    ("image create", "image create template1 --from data1@first"),
    ("image list", "image list"),
    ("image show", "image show template1"),
    ("image set", "image set template1 --family templates"),
    ("image deprecate", "image deprecate template1"),
    ("image restore", "image restore template1"),
    ("image export", "image export template1 $EXPORTED"),
    ("image import", "image import $RAW template2 --format raw"),
    ("image delete", "image delete template2 --yes"),
    ("policy create", "policy create nightly --at 2 --keep 30d --tag a=b"),
    ("policy create", "policy create often --every 15m --keep last=8,daily=7"),
    ("policy apply", "policy apply nightly data1"),
    ("instance add", "instance add web2"),
    ("disk create", "disk create vm1 --size 8MiB --instance web2"),
    ("policy apply", "policy apply often --instance web2"),
    ("policy cancel", "policy cancel --instance web2"),
    ("policy apply", "policy apply nightly --instance web2"),
    ("instance show", "instance show web2"),
    ("instance list", "instance list"),
    ("disk show", "disk show vm1"),
    ("disk list", "disk list"),
    ("policy set", "policy set nightly --at 3 --timezone Europe/Berlin"),
    ("policy list", "policy list"),
    ("policy show", "policy show nightly"),
    ("policy preview", "policy preview nightly"),
    ("policy cancel", "policy cancel data1"),
    ("policy delete", "policy delete nightly --yes"),
    ("tag set", "tag set data1 k=v"),
    ("tag remove", "tag remove data1 k"),
    ("key show", "key show"),
    ("key rotate", "key rotate"),
    ("pool resize", "pool resize 1TiB"),
    ("repo add", "repo add away file://$REPO"),
    ("repo list", "repo list"),
    ("repo show", "repo show away"),
    ("repo check", "repo check away"),
    ("policy create", "policy create copied --at 4 --copy-to away --copy-keep 90d"),
    ("policy set", "policy set copied --copy-keep daily=7"),
    ("policy show", "policy show copied"),
    ("snapshot copy", "snapshot copy data1@first --to away --wait"),
    ("copy list", "copy list"),
    ("copy show", "copy show $COPY"),
    ("copy wait", "copy wait $COPY"),
    ("copy verify", "copy verify $COPY"),
    ("copy delete", "copy delete $COPY --yes"),
    ("image copy", "image copy template1 --to away"),
    ("repo set", "repo set away --no-default"),
    ("snapshot create", "snapshot create data1 kept --repo away"),
    ("snapshot wait", "snapshot wait data1@kept"),
    ("snapshot verify", "snapshot verify data1@kept"),
    ("snapshot list", "snapshot list"),
    ("repo add", "repo add other file://$OTHER"),
    ("repo remove", "repo remove other --yes"),
    ("scrub", "scrub --rate 1GiB"),
    ("job list", "job list"),
    ("job wait", "job wait $JOB"),
    ("job show", "job show $JOB"),
    ("scrub", "scrub --rate 4KiB"),
    ("job list", "job list"),
    ("job cancel", "job cancel $JOB"),
    ("disk export", "disk export data1@first $FILE"),
    ("disk import", "disk import imported1 $FILE"),
    ("freeze status", "freeze status"),
    ("freeze check", "freeze check imported1 --consistency app --mount $MOUNTED"),
    ("freeze thaw", "freeze thaw"),
    ("events", "events"),
    ("audit", "audit"),
    ("usage", "usage"),
    ("metrics", "metrics"),
    ("top", "top --once --interval 1"),
    ("status", "status"),
    ("check", "check --plugin"),
    ("doctor", "doctor"),
    ("snapshot delete", "snapshot delete data1@second --yes"),
    ("group delete", "group delete both --yes"),
    ("disk delete", "disk delete clone2 --yes"),
    ("trash list", "trash list"),
    ("trash restore", "trash restore clone2"),
    ("disk delete", "disk delete clone2 --yes"),
    ("trash purge", "trash purge clone2 --yes"),
];

/// All verbs of the command line, from its help.
fn verbs(daemon: &Daemon, path: &[&str]) -> Vec<String> {
    let help = daemon.ctl(&[path, &["--help"]].concat());
    let list = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next());
    let Some(list) = list else { return vec![path.join(" ")] };
    let names = list.lines().filter_map(|line| {
        let name = line.strip_prefix("  ")?;
        name.starts_with(|c: char| c.is_ascii_lowercase()).then(|| name.split(' ').next()).flatten()
    });
    names.flat_map(|name| verbs(daemon, &[path, &[name]].concat())).collect()
}

/// Runs the scenario; the shape of what each verb printed.
fn played(daemon: &Daemon) -> Shapes {
    let files = ["REPO", "OTHER", "EXPORTED", "RAW", "FILE"].map(|name| (name, daemon.path(name)));
    for repo in ["REPO", "OTHER"] {
        fs::create_dir(daemon.file(repo)).unwrap();
    }
    fs::write(daemon.file("RAW"), vec![7u8; 8192]).unwrap();
    let mut names: BTreeMap<&str, String> = files.into_iter().collect();
    let mut shapes = Shapes::default();
    let mut clients = Vec::new();
    // Unmounted before the daemon ends.
    let mut held = None;
    for (verb, line) in SCENARIO {
        if *verb == "freeze check" {
            let device = Device::attach(daemon, "imported1");
            tool::run("mkfs.ext4", &["-q", "-E", "nodiscard", device.path()]).ok();
            let mounted = device.mount("noatime");
            names.insert("MOUNTED", mounted.path().display().to_string());
            held = Some(mounted);
        }
        if *verb == "group rollback" {
            // So that somebody is disconnected.
            clients.push(Client::connect(&daemon.nbd_socket(), "data1"));
        }
        let words: Vec<String> = line
            .split(' ')
            .map(|word| {
                names.iter().fold(word.to_owned(), |word, (name, value)| {
                    word.replace(&format!("${name}"), value)
                })
            })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let printed = daemon.try_ctl(&[&["-o", "json"], &words[..]].concat());
        // What `doctor` advises depends on the host.
        assert!(printed.code == 0 || *verb == "doctor", "{printed}");
        let printed = printed.json();
        match *verb {
            "scrub" => drop(names.insert("JOB", printed["id"].as_str().unwrap().to_owned())),
            "snapshot copy" => {
                drop(names.insert("COPY", printed["id"].as_str().unwrap().to_owned()))
            }
            _ => {}
        }
        shapes.add(verb, &printed);
    }
    drop(held);
    shapes
}

/// Promise: every verb prints what its golden file says: the same fields, of the same types.
#[test]
fn the_json_of_every_verb_has_the_shape_of_its_file() {
    let daemon = Setup::default()
        .config(&SMALL.replace("hours = 0", "hours = 24"))
        .master_key(MASTER)
        .start();
    wait::until("the first sample of usage", || {
        (!daemon.json(&["usage"])["samples"].as_array()?.is_empty()).then_some(())
    });
    played(&daemon).hold();
}

/// The same of `policy resume`, for which something has to stand still.
#[test]
fn the_json_of_policy_resume_has_the_shape_of_its_file() {
    let mut world = World::new();
    world.set_wall(40 * 86_400);
    world.wait_event("policy.hold", "the clock went ahead by");
    let mut shapes = Shapes::default();
    shapes.add("policy resume", &world.daemon.json(&["policy", "resume", "--yes"]));
    shapes.hold();
}

/// The same of `copy retry`, for which a copy has to have failed.
#[test]
fn the_json_of_copy_retry_has_the_shape_of_its_file() {
    let daemon = Daemon::new();
    fs::create_dir(daemon.file("away")).unwrap();
    daemon.ctl(&["disk", "create", "data1", "--size", "64MiB"]);
    let data: Vec<u8> =
        (0..1 << 20).map(|at: u32| at.wrapping_mul(0x9E37_79B9).to_be_bytes()[0]).collect();
    for part in 0..8 {
        Client::connect(&daemon.nbd_socket(), "data1").write(part << 23, &data);
    }
    daemon.ctl(&["snapshot", "create", "data1", "first"]);
    // Slow enough that the copy is still under way when the answer comes.
    let url = format!("file://{}", daemon.path("away"));
    daemon.ctl(&["repo", "add", "away", &url, "--bandwidth", "4KiB"]);
    fs::rename(daemon.file("away"), daemon.file("hidden")).unwrap();
    let copy = daemon.json(&["snapshot", "copy", "data1@first", "--to", "away"]);
    let copy = copy["id"].as_str().unwrap();
    daemon.try_ctl(&["copy", "wait", copy]).fails_with(24);
    fs::rename(daemon.file("hidden"), daemon.file("away")).unwrap();
    let mut shapes = Shapes::default();
    shapes.add("copy retry", &daemon.json(&["copy", "retry", copy]));
    shapes.hold();
}

/// Promise: no verb is forgotten: each prints JSON that is held against a file of its own, or is in the list of those that
/// print none, with the reason; and each has an example in its help.
#[test]
fn every_verb_is_covered_and_has_an_example() {
    let daemon = Daemon::new();
    let all: BTreeSet<String> = verbs(&daemon, &[]).into_iter().collect();
    let played = SCENARIO.iter().map(|(verb, _)| *verb);
    let held: BTreeSet<&str> =
        played.chain(IN_A_MACHINE.iter().copied()).chain(APART.iter().copied()).collect();
    for verb in &all {
        let prints_none = WITHOUT.iter().any(|(other, _)| other == verb);
        assert_ne!(prints_none, held.contains(verb.as_str()), "`rowctl {verb}` has no golden test");
        let file = golden::file(verb);
        assert_ne!(
            prints_none,
            file.exists(),
            "`rowctl {verb}` has no golden file {}",
            file.display()
        );
        let words: Vec<&str> = verb.split(' ').chain(["--help"]).collect();
        let help = tool::finish(&mut daemon.ctl_command(&words)).ok().stdout;
        assert!(help.contains(&format!("rowctl {verb}")) && help.contains("Example"), "{help}");
    }
    for verb in held.into_iter().chain(WITHOUT.iter().map(|(verb, _)| *verb)) {
        assert!(all.contains(verb), "there is no verb `rowctl {verb}` any more");
    }
    for file in fs::read_dir(golden::directory()).unwrap() {
        let path = file.unwrap().path();
        let known = all.iter().any(|verb| golden::file(verb) == path);
        assert!(known, "{} is of no verb", path.display());
    }
}
