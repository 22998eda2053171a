//! Databases on rowd disks: the runs of `tests/acceptance`, which people can read and run by themselves.
//!
//! Absent: what the runs do and check; they say so line by line.

use std::path::{Path, PathBuf};

use rowd_tests::tool::{self, Outcome};

/// The scripts that people are given, from the root of the repository.
const SCRIPTS: &[&str] = &[
    "examples/file-writer/50-file-writer",
    "examples/file-writer/writer.sh",
    "examples/mariadb/50-mariadb",
    "examples/mariadb/postscript.sh",
    "examples/mariadb/prescript.sh",
    "examples/postgresql/50-postgresql",
    "examples/recovery-drill/drill.sh",
    "tests/acceptance/common.sh",
    "tests/acceptance/file-writer.sh",
    "tests/acceptance/mariadb.sh",
    "tests/acceptance/postgresql.sh",
    "tests/demo/demo.sh",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Runs a script of `tests/acceptance` with the programs that are tested.
fn accept(script: &str, args: &[&str]) -> Outcome {
    let programs = tool::built("rowd").parent().unwrap().to_owned();
    let mut command = tool::command("bash");
    command.arg(root().join("tests/acceptance").join(script)).arg(programs).args(args);
    tool::finish(&mut command)
}

/// GRP-02, and what a snapshot without any freezing is worth to a database.
#[test]
fn postgresql_recovers_from_an_exact_cut_and_has_every_committed_row() {
    let done = accept("postgresql.sh", &[]).ok();
    done.says(&["redo done", "pg_amcheck: tables and indexes are sound", "Bad checksums:  0"]);
}

/// MYSQL-01 to 05, 07 to 09, 14 to 23, with a coprocess hook.
#[test]
fn mariadb_kept_quiet_by_a_hook_has_nothing_to_recover_after_a_rollback() {
    let done = accept("mariadb.sh", &["hook"]).ok();
    done.says(&["reached the level app", "The server had nothing to recover."]);
}

/// MYSQL-06, 11 and others: the lock is held by a session in the background.
#[test]
fn mariadb_kept_quiet_by_scripts_has_nothing_to_recover_either() {
    let done = accept("mariadb.sh", &["scripts"]).ok();
    done.says(&["reached the level app", "The server had nothing to recover."]);
}

/// MYSQL-23: an application of one's own.
#[test]
fn a_writer_that_is_asked_to_pause_has_no_half_line_in_a_snapshot() {
    accept("file-writer.sh", &[]).ok().says(&["No snapshot has half a line."]);
}

/// Every script is among those that are checked, and none has a fault that a machine finds.
#[test]
fn the_scripts_and_examples_are_sound() {
    let mut command = tool::command("shellcheck");
    command.current_dir(root()).args(["--external-sources", "--severity=style"]).args(SCRIPTS);
    tool::finish(&mut command).ok();
    for dir in ["file-writer", "mariadb", "postgresql", "recovery-drill"] {
        let dir = format!("examples/{dir}");
        for entry in std::fs::read_dir(root().join(dir)).unwrap() {
            let path = entry.unwrap().path();
            let path = path.strip_prefix(root()).unwrap().display().to_string();
            assert!(path.ends_with(".md") || SCRIPTS.contains(&path.as_str()), "{path}");
        }
    }
}
