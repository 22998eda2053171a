//! The commands: one noun per file, and what they share.
//!
//! Invariants: a command prints its result only when it has it; names go to the daemon as they were
//! typed.
//! Absent: rules about names, sizes and states, which are the daemon's.

mod args;
pub mod audit;
pub mod chain;
pub mod check;
pub mod complete;
pub mod copy;
pub mod disk;
pub mod doctor;
pub mod events;
mod file;
mod filter;
pub mod freeze;
pub mod generate;
pub mod group;
pub mod image;
pub mod instance;
pub mod job;
pub mod key;
pub mod metrics;
pub mod policy;
pub mod pool;
pub mod repo;
pub mod scrub;
pub mod snapshot;
pub mod status;
pub mod tag;
pub mod top;
pub mod trash;
mod udev;
pub mod usage;
mod wait;

use rowd_proto::{Client as Connected, Tags};

use crate::cli::{Command, Sockets};
use crate::client::Client;
use crate::error::{Outcome, Result};
use crate::render::Output;

/// What every command needs to know.
#[derive(Debug)]
pub struct Context {
    pub sockets: Sockets,
    pub output: Output,
}

impl Context {
    /// A connection to the daemon.
    pub fn client(&self) -> Result<Client> {
        Client::connect(&self.sockets.control)
    }
}

pub fn run(command: Command, context: &Context) -> Result<Outcome> {
    match command {
        Command::Disk(verb) => disk::run(verb, context),
        Command::Snapshot(verb) => snapshot::run(verb, context),
        Command::Group(verb) => group::run(verb, context),
        Command::Image(verb) => image::run(verb, context),
        Command::Instance(verb) => instance::run(verb, context),
        Command::Freeze(verb) => freeze::run(verb, context),
        Command::Policy(verb) => policy::run(verb, context),
        Command::Trash(verb) => trash::run(verb, context),
        Command::Chain(verb) => chain::run(verb, context),
        Command::Tag(verb) => tag::run(verb, context),
        Command::Key(verb) => key::run(verb, context),
        Command::Pool(verb) => pool::run(verb, context),
        Command::Copy(verb) => copy::run(verb, context),
        Command::Repo(verb) => repo::run(verb, context),
        Command::Status => status::run(context),
        Command::Events(events) => events::run(&events, context),
        Command::Job(verb) => job::run(verb, context),
        Command::Scrub(scrub) => scrub::run(&scrub, context),
        Command::Usage(usage) => usage::run(&usage, context),
        Command::Audit(audit) => audit::run(&audit, context),
        Command::Metrics => metrics::run(context),
        Command::Top(top) => top::run(&top, context),
        Command::Check(check) => check::run(&check, context),
        Command::Doctor(doctor) => doctor::run(&doctor, context),
        Command::Completion(completion) => generate::completion(&completion),
        Command::Man(man) => generate::man(&man, context),
        Command::Complete(complete) => complete::run(&complete),
    }
}

/// A tag as it is written on the command line.
type Tag = (String, String);

/// Reads `key=value`; the value may be empty or contain `=`.
fn parse_tag(text: &str) -> std::result::Result<Tag, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a tag is written key=value".to_owned()),
    }
}

fn collect_tags(tags: Vec<Tag>) -> Tags {
    tags.into_iter().collect()
}

/// Who is connected, in a few words; each process once, however many connections it has.
fn clients(clients: &[Connected]) -> String {
    let one = |client: &Connected| match client.pid {
        Some(pid) => format!("{} (pid {pid})", client.peer),
        None => client.peer.clone(),
    };
    let mut names: Vec<String> = Vec::new();
    for name in clients.iter().map(one) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_a_key_and_a_value() {
        let tag = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(parse_tag("env=test"), tag("env", "test"));
        assert_eq!(parse_tag("a=b=c"), tag("a", "b=c"));
        assert_eq!(parse_tag("empty="), tag("empty", ""));
        assert!(parse_tag("=x").is_err() && parse_tag("env").is_err());
    }
}
