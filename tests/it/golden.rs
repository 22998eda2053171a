//! The JSON output of every verb, held against files in `golden/`: which fields there are, and of which types.
//!
//! After a change that is meant: `ROWD_GOLDEN=write cargo test -p rowd-tests --test it -- golden`, and look at the
//! difference. A field may be added within a version of the protocol; one that goes or changes its type breaks the
//! scripts of users.
//!
//! Absent: values, which the tests of each subject check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use rowd_tests::client::Client;
use rowd_tests::mount::Device;
use rowd_tests::process::{Daemon, SMALL, Setup};
use rowd_tests::tool;
use rowd_tests::wait;
use serde_json::{Map, Value, json};

/// Verbs that print no JSON, or need what this host does not have.
const WITHOUT: &[(&str, &str)] = &[
    ("completion", "prints a script"),
    ("man", "writes pages"),
    ("disk attach", "needs the kernel's NBD client: VM tests"),
    ("disk detach", "needs an attached disk: VM tests"),
    ("snapshot mount", "needs the kernel's NBD client: VM tests"),
    ("policy resume", "needs something that stands still: the tests of policies"),
    ("copy retry", "needs a copy that has failed: the tests of repositories"),
];

/// Fields whose names are data: all their values have one shape.
const MAPS: &[&str] = &["tags", "params", "operations"];

/// Fields that are null when there was no request in the second that was measured.
const LATENCIES: &[&str] = &["mean_us", "p99_us"];

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

/// Field names and types of a value; the elements of a list, and the values of a map, are put together.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(_) => json!("boolean"),
        Value::Number(number) if number.is_f64() => json!("number"),
        Value::Number(_) => json!("integer"),
        Value::String(text) if is_time(text) => json!("time"),
        Value::String(_) => json!("string"),
        Value::Array(list) => {
            let elements = list.iter().map(shape).reduce(|one, other| together(&one, &other));
            Value::Array(elements.into_iter().collect())
        }
        Value::Object(fields) => {
            let shaped = fields.iter().map(|(name, value)| (name.clone(), field(name, value)));
            Value::Object(shaped.collect())
        }
    }
}

fn field(name: &str, value: &Value) -> Value {
    match value {
        // Who is connected at this moment is chance; `disconnected` of a rollback has the fields.
        Value::Array(_) if name == "clients" => json!(["client"]),
        // There is a latency if there was a request in that second, which is chance too.
        Value::Null | Value::Number(_) if LATENCIES.contains(&name) => json!("integer or null"),
        Value::Object(entries) if MAPS.contains(&name) || has_ids(entries) => {
            let values = entries.values().map(shape).reduce(|one, other| together(&one, &other));
            json!({ "*": values.unwrap_or_else(|| json!("nothing")) })
        }
        other => shape(other),
    }
}

/// Whether the names of the fields are ids of objects.
fn has_ids(entries: &Map<String, Value>) -> bool {
    !entries.is_empty() && entries.keys().all(|name| name.starts_with("d-"))
}

fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 20 && bytes[4] == b'-' && bytes[10] == b'T' && bytes.ends_with(b"Z")
}

/// What fits both shapes.
fn together(one: &Value, other: &Value) -> Value {
    match (one, other) {
        (one, other) if one == other => one.clone(),
        (Value::Object(one), Value::Object(other)) if is_plain(one) && is_plain(other) => {
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            let merged = names.into_iter().map(|name| {
                let shape = match (one.get(name), other.get(name)) {
                    (Some(one), Some(other)) => together(one, other),
                    (Some(only), None) | (None, Some(only)) => together(only, &json!("absent")),
                    (None, None) => json!("absent"),
                };
                (name.clone(), shape)
            });
            Value::Object(merged.collect())
        }
        (Value::Array(one), Value::Array(other)) => {
            let elements = one.iter().chain(other).cloned();
            let merged = elements.reduce(|one, other| together(&one, &other));
            Value::Array(merged.into_iter().collect())
        }
        (one, other) => {
            // The empty map and the empty list fit what has something in it.
            let mut variants: Vec<Value> = Vec::new();
            for part in [one, other].into_iter().flat_map(variants_of) {
                let same_kind = |known: &Value| {
                    (known.is_object() && part.is_object()) || (known.is_array() && part.is_array())
                };
                match variants.iter().position(same_kind) {
                    Some(at) => variants[at] = together(&variants[at], &part),
                    None if !variants.contains(&part) => variants.push(part),
                    None => {}
                }
            }
            variants.sort_by_key(ToString::to_string);
            variants.retain(|variant| *variant != json!("nothing"));
            match variants.len() {
                1 => variants.remove(0),
                _ => json!({ "one of": variants }),
            }
        }
    }
}

fn is_plain(fields: &Map<String, Value>) -> bool {
    !fields.contains_key("one of")
}

fn variants_of(shape: &Value) -> Vec<Value> {
    match shape.get("one of").and_then(Value::as_array) {
        Some(variants) => variants.clone(),
        None => vec![shape.clone()],
    }
}

fn golden(verb: &str) -> PathBuf {
    let name = format!("tests/it/golden/{}.json", verb.replace(' ', "-"));
    super::metrics::contrib::root().join(name)
}

/// What the file of a verb says; nothing when there is none yet.
fn kept(verb: &str) -> Value {
    let text = fs::read_to_string(golden(verb)).unwrap_or_else(|_| "null".to_owned());
    serde_json::from_str(&text).unwrap()
}

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
fn played(daemon: &Daemon) -> BTreeMap<String, Value> {
    let files = ["REPO", "OTHER", "EXPORTED", "RAW", "FILE"].map(|name| (name, daemon.path(name)));
    for repo in ["REPO", "OTHER"] {
        fs::create_dir(daemon.file(repo)).unwrap();
    }
    fs::write(daemon.file("RAW"), vec![7u8; 8192]).unwrap();
    let mut names: BTreeMap<&str, String> = files.into_iter().collect();
    let mut shapes: BTreeMap<String, Value> = BTreeMap::new();
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
        let shape = shape(&printed);
        let merged = match shapes.get(*verb) {
            Some(known) => together(known, &shape),
            None => shape,
        };
        shapes.insert((*verb).to_owned(), merged);
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
    let shapes = played(&daemon);
    if std::env::var_os("ROWD_GOLDEN").is_some_and(|wish| wish == "write") {
        for (verb, shape) in &shapes {
            if together(&kept(verb), shape) != kept(verb) {
                let text = serde_json::to_string_pretty(shape).unwrap() + "\n";
                fs::write(golden(verb), text).unwrap();
            }
        }
    }
    let mut broken = Vec::new();
    for (verb, shape) in &shapes {
        let kept = kept(verb);
        // What is not there this time, such as an end that has not come yet, may be there another time.
        if together(&kept, shape) != kept {
            let (kept, now) = (format!("{kept:#}"), format!("{shape:#}"));
            broken.push(format!("{verb}:\n--- {}\n{kept}\n--- now\n{now}", golden(verb).display()));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Promise: no verb is forgotten: each is in the scenario, or in the list of those that print no JSON, with the
/// reason; and each has an example in its help.
#[test]
fn every_verb_is_covered_and_has_an_example() {
    let daemon = Daemon::new();
    let all: BTreeSet<String> = verbs(&daemon, &[]).into_iter().collect();
    let played: BTreeSet<String> = SCENARIO.iter().map(|(verb, _)| (*verb).to_owned()).collect();
    let without: BTreeSet<String> = WITHOUT.iter().map(|(verb, _)| (*verb).to_owned()).collect();
    let covered: BTreeSet<String> = &played | &without;
    assert_eq!(all, covered, "left: the verbs there are; right: scenario and list");
    assert_eq!(&played & &without, BTreeSet::new());
    for verb in &all {
        let words: Vec<&str> = verb.split(' ').chain(["--help"]).collect();
        let help = tool::finish(&mut daemon.ctl_command(&words)).ok().stdout;
        assert!(help.contains(&format!("rowctl {verb}")) && help.contains("Example"), "{help}");
    }
    let files = fs::read_dir(golden("x").parent().unwrap()).unwrap();
    let files: BTreeSet<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(files, played.iter().map(|verb| golden(verb)).collect(), "a file for each verb");
}

#[test]
fn shapes_are_put_together() {
    let one =
        shape(&json!([{"a": 1, "b": null, "tags": {}}, {"a": 2, "b": "x", "tags": {"k": "v"}}]));
    let expected = json!([{
        "a": "integer", "b": {"one of": ["null", "string"]}, "tags": {"*": "string"},
    }]);
    assert_eq!(one, expected);
    let more = together(&one, &shape(&json!([{"a": 1.5}])));
    let a = json!({"one of": ["integer", "number"]});
    assert_eq!(more[0]["a"], a);
    assert_eq!(more[0]["b"], json!({"one of": ["absent", "null", "string"]}));
    assert_eq!(shape(&json!("2026-01-31T09:00:00Z")), json!("time"));
}
