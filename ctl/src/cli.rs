//! The command line: global options, nouns, and where the sockets are.
//!
//! Invariants: options on the command line win over the environment, the environment over the
//! default; the help of every verb has an example.
//! Absent: the verbs, which are with their nouns in `commands/`.

use std::env;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use rowd_proto::EXIT_CODES;

use crate::commands::{
    audit, chain, check, complete, copy, disk, doctor, events, freeze, generate, group, image,
    instance, job, key, metrics, policy, pool, repo, scrub, snapshot, status, tag, top, trash,
    usage,
};
use crate::render::Format;

/// Where the service keeps its sockets.
const DEFAULT_DIR: &str = "/run/rowd";

/// Controls rowd: virtual disks over NBD with instant snapshots, rollback and clones.
#[derive(Debug, Parser)]
#[command(name = "rowctl", version, propagate_version = false, arg_required_else_help = true)]
#[command(subcommand_required = true, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Directory with the daemon's sockets [env: ROWD_DIR] [default: /run/rowd]
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "socket")]
    dir: Option<PathBuf>,
    /// Control socket of the daemon [env: ROWD_SOCKET]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// NBD socket, for export and import [default: nbd.sock beside the control socket]
    #[arg(long, global = true, value_name = "PATH")]
    nbd_socket: Option<PathBuf>,
    /// Shape of the output: table, json (one value), or jsonl (one object per line)
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    #[arg(hide_possible_values = true)]
    pub output: Format,
    /// Print only ids, and no remarks or progress
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Virtual disks
    #[command(subcommand, visible_alias = "disks")]
    Disk(disk::Verb),
    /// Read-only states of a disk at one instant
    #[command(subcommand, visible_alias = "snap")]
    Snapshot(snapshot::Verb),
    /// Snapshots of several disks at exactly one instant
    #[command(subcommand)]
    Group(group::Verb),
    /// Templates of disks, made of snapshots
    #[command(subcommand, visible_alias = "images")]
    Image(image::Verb),
    /// Who uses the disks: this host and virtual machines
    #[command(subcommand)]
    Instance(instance::Verb),
    /// What is frozen now, and the way out
    #[command(subcommand)]
    Freeze(freeze::Verb),
    /// Snapshots that are made by themselves, and how long they stay
    #[command(subcommand, visible_alias = "policies")]
    Policy(policy::Verb),
    /// Deleted disks that can be brought back
    #[command(subcommand)]
    Trash(trash::Verb),
    /// All snapshots of a disk, which outlive it
    #[command(subcommand)]
    Chain(chain::Verb),
    /// Tags of disks, snapshots, groups, instances and images
    #[command(subcommand)]
    Tag(tag::Verb),
    /// The keys of encrypted disks
    #[command(subcommand)]
    Key(key::Verb),
    /// The pool that holds all blocks
    #[command(subcommand)]
    Pool(pool::Verb),
    /// Snapshots as they are kept in repositories
    #[command(subcommand, visible_alias = "copies")]
    Copy(copy::Verb),
    /// Object stores that hold copies of snapshots
    #[command(subcommand)]
    Repo(repo::Verb),
    /// Show the daemon and its pool
    #[command(after_help = status::EXAMPLES)]
    Status,
    /// Show what happened, and who asked for it
    #[command(after_help = events::EXAMPLES)]
    Events(events::Events),
    /// Long pieces of work
    #[command(subcommand)]
    Job(job::Verb),
    /// Read and verify every block in use
    #[command(after_help = scrub::EXAMPLES)]
    Scrub(scrub::Scrub),
    /// Show who holds how many bytes, now and over the last 15 days
    #[command(after_help = usage::EXAMPLES)]
    Usage(usage::UsageArgs),
    /// Show who asked for what, and what came of it
    #[command(after_help = audit::EXAMPLES)]
    Audit(audit::Audit),
    /// Show what clients do with each disk right now
    #[command(after_help = top::EXAMPLES)]
    Top(top::Top),
    /// Print all metrics as text
    #[command(after_help = metrics::EXAMPLES)]
    Metrics,
    /// Say what is wrong, for monitoring: exit code 1 when something is
    #[command(after_help = check::EXAMPLES)]
    Check(check::Check),
    /// Look for the cause of trouble and advise: exit code 1 when there is a problem
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::Doctor),
    /// Print a completion script for a shell
    #[command(after_help = generate::COMPLETION_EXAMPLES)]
    Completion(generate::Completion),
    /// Write the man pages into a directory
    #[command(after_help = generate::MAN_EXAMPLES)]
    Man(generate::Man),
    /// Print what may come next, for completion scripts
    #[command(hide = true, after_help = complete::EXAMPLES)]
    Complete(complete::Complete),
}

/// The sockets of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    pub control: PathBuf,
    pub nbd: PathBuf,
}

impl Global {
    /// The sockets as told by the options and the environment.
    pub fn sockets(&self) -> Sockets {
        self.sockets_with(env::var_os("ROWD_DIR"), env::var_os("ROWD_SOCKET"))
    }

    fn sockets_with(&self, env_dir: Option<OsString>, env_socket: Option<OsString>) -> Sockets {
        let set =
            |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
        // The options exclude each other; one of them hides both variables.
        let (dir, socket) = match (&self.dir, &self.socket) {
            (None, None) => (set(env_dir), set(env_socket)),
            (dir, socket) => (dir.clone(), socket.clone()),
        };
        let dir = dir.unwrap_or_else(|| PathBuf::from(DEFAULT_DIR));
        let control = socket.unwrap_or_else(|| dir.join("control.sock"));
        let nbd = self.nbd_socket.clone().unwrap_or_else(|| control.with_file_name("nbd.sock"));
        Sockets { control, nbd }
    }
}

/// The sockets that a command line names which is not complete yet.
pub fn sockets_of(words: &[OsString]) -> Sockets {
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let named = |option: &str| {
        let found =
            words.iter().enumerate().find_map(|(i, word)| match word.strip_prefix(option)? {
                "" => words.get(i + 1).copied(),
                value => value.strip_prefix('='),
            });
        found.map(PathBuf::from)
    };
    Global { dir: named("--dir"), socket: named("--socket"), ..Global::default() }.sockets()
}

/// The whole command line, with the table of exit codes in its help.
pub fn command() -> clap::Command {
    let mut codes = String::from("Exit codes:\n");
    for row in EXIT_CODES {
        // Writing to a String does not fail.
        writeln!(codes, "  {:>3}  {}", row.code, row.meaning).ok();
    }
    Cli::command().after_long_help(codes)
}

/// Whether errors in the arguments themselves should be told as JSON: the arguments cannot be
/// parsed then.
pub fn wants_json(args: &[OsString]) -> bool {
    let text: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    text.iter().enumerate().any(|(i, arg)| {
        let value = match *arg {
            "-o" | "--output" => text.get(i + 1).copied(),
            arg => arg.strip_prefix("--output=").or_else(|| arg.strip_prefix("-o")),
        };
        matches!(value.map(|value| value.trim_start_matches('=')), Some("json" | "jsonl"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(args: &[&str], dir: Option<&str>, socket: Option<&str>) -> (String, String) {
        let cli = Cli::try_parse_from([&["rowctl", "status"], args].concat()).unwrap();
        let found = cli.global.sockets_with(dir.map(OsString::from), socket.map(OsString::from));
        (found.control.display().to_string(), found.nbd.display().to_string())
    }

    fn pair(control: &str, nbd: &str) -> (String, String) {
        (control.to_owned(), nbd.to_owned())
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn options_win_over_the_environment_and_that_over_the_default() {
        let default = pair("/run/rowd/control.sock", "/run/rowd/nbd.sock");
        assert_eq!(sockets(&[], None, None), default);
        assert_eq!(sockets(&[], Some(""), Some("")), default);
        assert_eq!(sockets(&[], Some("/d"), None), pair("/d/control.sock", "/d/nbd.sock"));
        assert_eq!(sockets(&[], Some("/d"), Some("/s/c")), pair("/s/c", "/s/nbd.sock"));
        let dir = pair("/x/control.sock", "/x/nbd.sock");
        assert_eq!(sockets(&["--dir", "/x"], Some("/d"), Some("/s/c")), dir);
        assert_eq!(
            sockets(&["--socket", "/y/c"], Some("/d"), Some("/s")),
            pair("/y/c", "/y/nbd.sock")
        );
        let both = pair("/x/control.sock", "/n");
        assert_eq!(sockets(&["--dir", "/x", "--nbd-socket", "/n"], None, None), both);
    }

    #[test]
    fn a_wish_for_json_is_heard_in_arguments_that_make_no_sense() {
        let wants =
            |line: &str| wants_json(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in ["disk -o json", "-ojson x", "--output=json", "--output json", "-o=jsonl frob"]
        {
            assert!(wants(line), "{line}");
        }
        for line in ["disk list", "-o table", "json -o", "--output table json"] {
            assert!(!wants(line), "{line}");
        }
    }

    /// The help teaches: a verb without an example does not.
    #[test]
    fn every_verb_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let mut verbs = command.get_subcommands().peekable();
            if verbs.peek().is_none() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{path} has no example");
                assert!(help.contains(path.trim()), "{path}: its example shows something else");
            }
            verbs.for_each(|verb| check(verb, &path));
        }
        check(&command(), "");
    }

    /// Scripts read JSON: of each verb that prints some a file says what, and a test of `tests/` holds the verb to it.
    #[test]
    fn every_verb_that_prints_json_has_a_golden_file() {
        const PRINT_NONE: &[&str] = &["complete", "completion", "man"];
        fn collect(command: &clap::Command, path: &[&str], found: &mut Vec<String>) {
            if !command.has_subcommands() {
                found.push(path.join("-"));
            }
            for verb in command.get_subcommands() {
                collect(verb, &[path, &[verb.get_name()]].concat(), found);
            }
        }
        let mut verbs = Vec::new();
        collect(&command(), &[], &mut verbs);
        assert!(verbs.len() > 90, "only {} verbs were found", verbs.len());
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/it/golden");
        let has_file = |verb: &&String| golden.join(format!("{verb}.json")).exists();
        verbs.retain(|verb| !PRINT_NONE.contains(&verb.as_str()));
        let without: Vec<&String> = verbs.iter().filter(|verb| !has_file(verb)).collect();
        assert_eq!(
            without,
            Vec::<&String>::new(),
            "these have no golden file: see tests/it/golden.rs"
        );
    }
}
