//! Completion at the prompt: verbs, options, and the names that the daemon knows, in the shells themselves.
//!
//! Absent: which argument takes which names, which a unit test of rowctl says.

use std::fs::{self, File};
use std::path::PathBuf;

use rowd_tests::process::Daemon;
use rowd_tests::tool::{self, Outcome};
use tempfile::TempDir;

/// A daemon with disks, one of them with a name that a shell would run.
fn daemon() -> Daemon {
    let daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "data1", "--size", "8MiB"]);
    daemon.ctl(&["disk", "create", "x$(>ran);y", "--size", "8MiB"]);
    daemon.ctl(&["snapshot", "create", "data1", "before-upgrade"]);
    daemon.ctl(&["snapshot", "create", "data1", "evening"]);
    daemon.ctl(&["policy", "create", "nightly", "--at", "2"]);
    daemon
}

/// The candidates for a command line.
fn complete(daemon: &Daemon, line: &str) -> Vec<String> {
    let mut rowctl = std::process::Command::new(tool::built("rowctl"));
    rowctl.env("ROWD_DIR", daemon.dir()).args(["complete", "--"]).args(line.split(' '));
    let told = tool::finish(&mut rowctl).ok();
    assert_eq!(told.stderr, "", "{told}");
    let value = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
    told.stdout.lines().map(value).collect()
}

#[test]
fn names_come_from_the_daemon_and_nothing_when_there_is_none() {
    let daemon = daemon();
    let names = |line: &str| complete(&daemon, line);
    assert_eq!(names("rowctl disk show d"), ["data1"]);
    assert_eq!(names("rowctl snapshot show "), ["data1@"]);
    assert_eq!(names("rowctl snapshot delete data1@evening data1@b"), ["data1@before-upgrade"]);
    assert_eq!(names("rowctl disk rollback data1 --yes ev"), ["evening"]);
    assert_eq!(names("rowctl disk create new --from data1@e"), ["data1@evening"]);
    assert_eq!(names("rowctl policy apply n"), ["nightly"]);
    assert_eq!(names("rowctl policy apply nightly dat"), ["data1"]);
    assert_eq!(names("rowctl group create data1 --instance l"), ["local"]);
    assert_eq!(names("rowctl snapshot cr"), ["create"]);
    assert_eq!(names("rowctl disk roll"), ["rollback"]);
    assert_eq!(names("rowctl snapshot create data1 --cons"), ["--consistency"]);
    assert_eq!(
        names(&format!("rowctl --dir {} disk show data", daemon.dir().display())),
        ["data1"]
    );
    assert!(names("rowctl --dir /nowhere disk show ").is_empty());
    assert!(names("rowctl disk create ").is_empty(), "a new name is nobody's");
    drop(daemon);
}

/// A shell on a terminal of its own, into which somebody types.
fn typed(daemon: &Daemon, shell: &str, lines: &str) -> (TempDir, Outcome) {
    let home = TempDir::with_prefix("rowd-completion-").unwrap();
    let input = home.path().join("typed");
    fs::write(&input, format!("{lines}exit\n")).unwrap();
    let programs = tool::built("rowctl").parent().unwrap().display().to_string();
    let mut script = tool::command("script");
    script.args(["-qec", shell]).arg(home.path().join("seen")).current_dir(home.path());
    script.env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap()));
    script.env("ROWD_DIR", daemon.dir()).env("TERM", "dumb").env("HOME", home.path());
    let told = tool::finish(script.stdin(File::open(input).unwrap()));
    (home, told)
}

/// The script for a shell, as it is installed.
fn script(home: &Daemon, shell: &str) -> PathBuf {
    let text = home.ctl(&["completion", shell]);
    let path = home.dir().join(format!("rowctl.{shell}"));
    fs::write(&path, text).unwrap();
    path
}

/// What is typed with Tabs in it is a command that runs. A name with a command in it is a name.
#[test]
fn bash_and_zsh_complete_what_is_typed() {
    let daemon = daemon();
    for (shell, load) in [
        ("bash --norc --noprofile -i", format!("source {}", script(&daemon, "bash").display())),
        (
            "zsh -f -i",
            format!(
                "autoload -Uz compinit; compinit -u; source {}",
                script(&daemon, "zsh").display()
            ),
        ),
    ] {
        let lines = format!(
            "{load}\nrowctl disk sh\tdata\t>one\nrowctl snapshot show data1@before-u\t>two\n\
             rowctl disk rollback data1 ev\t --yes >three\nrowctl disk show x\t>four\n"
        );
        let (home, told) = typed(&daemon, shell, &lines);
        let read = |name: &str| {
            let text = fs::read_to_string(home.path().join(name));
            text.unwrap_or_else(|e| panic!("{shell}: {name}: {e}\n{told}"))
        };
        assert!(read("one").contains("data1"), "{shell}: {told}");
        assert!(read("two").contains("before-upgrade"), "{shell}: {told}");
        assert!(read("three").contains("data1 is back at data1@evening"), "{shell}: {told}");
        assert!(read("four").contains("x$(>ran);y"), "{shell}: {told}");
        assert!(!home.path().join("ran").exists(), "{shell}: a name was run\n{told}");
    }
}

#[test]
fn fish_completes_names() {
    let daemon = daemon();
    let programs = tool::built("rowctl").parent().unwrap().display().to_string();
    let ask = |line: &str| {
        let script = script(&daemon, "fish");
        let mut fish = tool::command("fish");
        fish.env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap()));
        fish.env("ROWD_DIR", daemon.dir()).env("HOME", daemon.dir());
        fish.args([
            "--no-config",
            "-c",
            &format!("source {}; complete -C '{line}'", script.display()),
        ]);
        tool::finish(&mut fish).ok().stdout
    };
    assert_eq!(ask("rowctl disk show da"), "data1\t8 MiB\n");
    assert!(ask("rowctl snapshot show data1@").starts_with("data1@before-upgrade\t"));
    assert!(ask("rowctl disk ro").starts_with("rollback\t"));
}
