//! `rowctl complete`: what the completion scripts ask at each Tab. Verbs, options and values come from the command line
//! itself, names from the daemon.
//!
//! Invariants: nothing but candidates is ever said. A daemon that is away, does not answer soon, or does not let this user
//! in means that there are no names: a completion has no place for errors.
//! Absent: the scripts (`completion/`); the quoting of candidates, which is the shell's.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Command};
use clap_complete::engine::{self, ArgValueCompleter, CompletionCandidate};
use rowd_proto::{
    Call, ChainList, CopyList, DiskList, GroupList, ImageList, InstanceList, JobList, PolicyList,
    RepoList, SnapshotList, TrashList, size,
};

use crate::cli::{self, Sockets};
use crate::client::Client;
use crate::error::{Failure, Outcome, Result};

/// A Tab that takes longer is felt; names of a daemon this slow are of no use.
const PATIENCE: Duration = Duration::from_millis(500);

pub const EXAMPLES: &str = "Example:\n  rowctl complete -- rowctl disk show da";

#[derive(Args, Debug)]
pub struct Complete {
    /// The command line so far; its last word is to be completed, and may be empty
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "WORD")]
    words: Vec<OsString>,
}

/// Prints one candidate per line, after a tab what it is.
pub fn run(args: &Complete) -> Result<Outcome> {
    let mut text = String::new();
    for candidate in candidates(&args.words) {
        let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.lines().next().unwrap_or_default();
        text.push_str(&format!("{}\t{help}\n", candidate.get_value().to_string_lossy()));
    }
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::ReaderGone),
        Err(error) => Err(Failure::io("cannot write the candidates", &error)),
        Ok(()) => Ok(Outcome::Done),
    }
}

fn candidates(words: &[OsString]) -> Vec<CompletionCandidate> {
    let Some(last) = words.last() else { return Vec::new() };
    let names = Arc::new(Names { sockets: cli::sockets_of(words), words: words.to_vec() });
    let mut command = with_names(cli::command(), &[], &names);
    let here = std::env::current_dir().ok();
    let found = engine::complete(&mut command, words.to_vec(), words.len() - 1, here.as_deref());
    // Arguments that make no sense have no completion.
    let mut found = found.unwrap_or_default();
    // Options are for who has begun one; beside names they only hide them.
    if !last.as_encoded_bytes().starts_with(b"-") {
        found.retain(|one| !one.get_value().as_encoded_bytes().starts_with(b"-"));
    }
    found
}

/// What the value of an argument names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Disk,
    DeletedDisk,
    Chain,
    Snapshot,
    /// Of the disk that is the word before.
    SnapshotOfDisk,
    DiskOrSnapshot,
    SnapshotOrImage,
    Policy,
    Group,
    Image,
    Instance,
    Repository,
    Job,
    Copy,
    /// Whatever can have tags.
    Tagged,
}

impl Named {
    /// By where the argument is and what it is called.
    fn by(path: &[String], argument: &str) -> Option<Named> {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        Some(match (&path[..], argument) {
            (["trash", ..], "disk" | "disks") => Named::DeletedDisk,
            (["chain", ..], "disk") => Named::Chain,
            (["disk", "rollback"], "snapshot") => Named::SnapshotOfDisk,
            (["disk", "export"], "source") => Named::DiskOrSnapshot,
            (["disk", "create"], "from") => Named::SnapshotOrImage,
            (["image", "create"], "from" | "data") => Named::Snapshot,
            (["snapshot", "copy"], "to" | "from") | (["image", "copy"], "to") => Named::Repository,
            (["tag", ..], "object") => Named::Tagged,
            (_, "disk" | "disks" | "exclude" | "system") => Named::Disk,
            (_, "snapshot" | "snapshots") => Named::Snapshot,
            (_, "policy") => Named::Policy,
            (_, "group") => Named::Group,
            (_, "image") => Named::Image,
            (_, "instance" | "instances") => Named::Instance,
            (_, "repo" | "copy_to") => Named::Repository,
            (_, "job") => Named::Job,
            (_, "copy") => Named::Copy,
            _ => return None,
        })
    }
}

/// The command with names for its arguments, and those of its verbs.
fn with_names(command: Command, path: &[String], names: &Arc<Names>) -> Command {
    let command = command.mut_args(|argument| {
        let takes_value = argument.get_action().takes_values();
        match Named::by(path, argument.get_id().as_str()).filter(|_| takes_value) {
            Some(named) => {
                let names = Arc::clone(names);
                let like = move |typed: &OsStr| names.like(named, typed);
                argument.add(ArgValueCompleter::new(like))
            }
            None => argument,
        }
    });
    command.mut_subcommands(|verb| {
        let path = [path, &[verb.get_name().to_owned()]].concat();
        with_names(verb, &path, names)
    })
}

/// The names that the daemon knows.
#[derive(Debug)]
struct Names {
    sockets: Sockets,
    words: Vec<OsString>,
}

/// A name, and what to say about it.
type Name = (String, String);

impl Names {
    fn like(&self, named: Named, typed: &OsStr) -> Vec<CompletionCandidate> {
        let Some(typed) = typed.to_str() else { return Vec::new() };
        let all = self.all(named, typed).unwrap_or_default();
        all.into_iter()
            .filter(|(name, _)| name.starts_with(typed))
            .map(|(name, about)| CompletionCandidate::new(name).help(Some(about.into())))
            .collect()
    }

    /// `None` when there is nobody to ask.
    fn all(&self, named: Named, typed: &str) -> Option<Vec<Name>> {
        let sized = |name: String, bytes: u64| (name, size::human(bytes));
        let only = |name: String| (name, String::new());
        Some(match named {
            Named::Disk => {
                self.ask(&DiskList {})?.disks.into_iter().map(|d| sized(d.name, d.size)).collect()
            }
            Named::DeletedDisk => {
                self.ask(&TrashList {})?.disks.into_iter().map(|d| sized(d.name, d.size)).collect()
            }
            Named::Chain => {
                let chains = self.ask(&ChainList {})?.chains.into_iter();
                chains.map(|c| sized(c.disk_name.unwrap_or(c.disk_id), c.disk_size)).collect()
            }
            Named::Snapshot => self.snapshots(typed)?,
            Named::SnapshotOfDisk => self.of_the_disk_before()?,
            Named::DiskOrSnapshot => self.both(Named::Disk, Named::Snapshot, typed)?,
            Named::SnapshotOrImage => self.both(Named::Image, Named::Snapshot, typed)?,
            Named::Policy => {
                let policies = self.ask(&PolicyList {})?.policies.into_iter();
                policies.map(|policy| only(policy.name)).collect()
            }
            Named::Group => {
                self.ask(&GroupList {})?.groups.into_iter().map(|g| only(g.name)).collect()
            }
            Named::Image => {
                self.ask(&ImageList {})?.images.into_iter().map(|i| only(i.name)).collect()
            }
            Named::Instance => {
                let instances = self.ask(&InstanceList {})?.instances.into_iter();
                instances.map(|instance| only(instance.name)).collect()
            }
            Named::Repository => {
                self.ask(&RepoList {})?.repos.into_iter().map(|r| (r.name, r.url)).collect()
            }
            Named::Job => self.ask(&JobList {})?.jobs.into_iter().map(|j| (j.id, j.kind)).collect(),
            Named::Copy => {
                let copies = self.ask(&CopyList { repo: None })?.copies.into_iter();
                let name = |detail: rowd_proto::CopyDetail| {
                    format!("{}@{}", detail.disk_name, detail.snapshot_name)
                };
                copies.map(|c| (c.id, c.detail.map(name).unwrap_or(c.snapshot_id))).collect()
            }
            Named::Tagged => {
                let mut all = self.both(Named::Disk, Named::Snapshot, typed)?;
                for more in [Named::Group, Named::Instance, Named::Image] {
                    all.extend(self.all(more, typed)?);
                }
                all
            }
        })
    }

    fn both(&self, one: Named, other: Named, typed: &str) -> Option<Vec<Name>> {
        let mut all = self.all(one, typed)?;
        all.extend(self.all(other, typed)?);
        Some(all)
    }

    /// `disk@snapshot`: the disks first, since there may be very many snapshots, and the snapshots of one that was typed.
    fn snapshots(&self, typed: &str) -> Option<Vec<Name>> {
        let Some((disk, _)) = typed.split_once('@') else {
            let disks = self.ask(&DiskList {})?.disks.into_iter();
            let with = disks.filter(|disk| disk.snapshot_count > 0);
            return Some(with.map(|d| (format!("{}@", d.name), size::human(d.size))).collect());
        };
        let named = self.of(disk)?.into_iter();
        Some(named.map(|(name, about)| (format!("{disk}@{name}"), about)).collect())
    }

    fn of(&self, disk: &str) -> Option<Vec<Name>> {
        let all = self.ask(&SnapshotList { disk: Some(disk.to_owned()) })?.snapshots.into_iter();
        Some(all.map(|snapshot| (snapshot.name, snapshot.created_at.to_string())).collect())
    }

    fn of_the_disk_before(&self) -> Option<Vec<Name>> {
        let before = self.words.split_last()?.1.iter().rev().filter_map(|word| word.to_str());
        self.of(before.into_iter().find(|word| !word.starts_with('-'))?)
    }

    fn ask<C: Call>(&self, what: &C) -> Option<C::Reply> {
        // Whatever is wrong is told by the command itself, when it is run.
        let mut client = Client::connect_within(&self.sockets.control, PATIENCE).ok()?;
        client.call_within(what, PATIENCE).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arguments that are not names of something the daemon has.
    const FREE: &[&str] = &["name", "keys", "size", "tags", "url", "words"];

    /// The arguments that are neither names nor free, and how many are names.
    fn undecided(command: &Command, path: &[String]) -> (Vec<String>, usize) {
        let (mut missing, mut completed) = (Vec::new(), 0);
        for argument in command.get_positionals() {
            let id = argument.get_id().as_str();
            let is_file = argument.get_value_hint() != clap::ValueHint::Unknown;
            let is_free =
                FREE.contains(&id) || is_file || !argument.get_possible_values().is_empty();
            let is_name = Named::by(path, id).is_some();
            if !is_name && !is_free {
                missing.push(format!("{} {id}", path.join(" ")));
            }
            completed += usize::from(is_name);
        }
        for verb in command.get_subcommands() {
            let inner = undecided(verb, &[path, &[verb.get_name().to_owned()]].concat());
            missing.extend(inner.0);
            completed += inner.1;
        }
        (missing, completed)
    }

    /// Whoever adds an argument decides whether it is a name: those of one kind are called alike.
    #[test]
    fn every_name_of_an_object_is_completed() {
        let mut command = cli::command();
        command.build();
        let (missing, completed) = undecided(&command, &[]);
        assert_eq!(missing, Vec::<String>::new(), "these are neither names nor free");
        assert!(completed > 40, "only {completed} arguments are completed");
    }

    #[test]
    fn without_a_daemon_there_are_verbs_and_no_names() {
        let ask = |line: &str| -> Vec<String> {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let found = candidates(&words);
            found.iter().map(|one| one.get_value().to_string_lossy().into_owned()).collect()
        };
        assert!(ask("rowctl --dir /none dis").contains(&"disk".to_owned()));
        assert_eq!(ask("rowctl --dir /none disk roll"), ["rollback"]);
        assert_eq!(ask("rowctl --dir /none disk rollback --for"), ["--force"]);
        assert!(ask("rowctl --dir /none disk show ").is_empty());
        assert!(ask("rowctl --dir /none disk set d --read-only o").contains(&"off".to_owned()));
        assert!(ask("rowctl --dir /none complete --no-such x ").is_empty());
    }
}
