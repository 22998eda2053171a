//! `rowctl trash`: deleted disks that can be brought back.
//!
//! Invariants: nothing goes for good before the user agrees.
//! Absent: snapshots, which do not come back.

use clap::{Args, Subcommand};
use rowd_proto::{ErrorKind, TrashList, TrashPurge, TrashRestore, TrashedDisk};

use crate::client::Client;
use crate::confirm::confirm;
use crate::error::{Failure, Outcome, Result};
use crate::render::{self, Columns, Heading, Output};

use super::args::Consent;
use super::{Context, disk};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List disks in the trash
    #[command(visible_alias = "ls", after_help = "Example:\n  rowctl trash list")]
    List,
    /// Bring a disk back as it was when it was deleted
    #[command(after_help = "Examples:
  rowctl trash restore data1
  rowctl trash restore d-4f2a9k --name data1-old")]
    Restore {
        /// The name it had, or its id
        disk: String,
        /// The name it gets
        #[arg(long)]
        name: Option<String>,
    },
    /// Delete disks in the trash for good
    #[command(after_help = "Examples:
  rowctl trash purge data1
  rowctl trash purge --all --yes

A disk goes for good by itself after trash.hours of rowd.toml, 24 unless it says something else, and
before that when the pool is short of space.")]
    Purge(Purge),
}

#[derive(Args, Debug)]
pub struct Purge {
    /// Names they had, or ids
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "DISK")]
    disks: Vec<String>,
    /// All disks in the trash
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    consent: Consent,
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    match verb {
        Verb::List => {
            let disks = client.call(&TrashList {})?.disks;
            context.output.list(&disks, |one| one.id.clone(), |output| table(&disks, output))?;
        }
        Verb::Restore { disk, name } => {
            disk::print(&client.call(&TrashRestore { disk, name })?, context)?;
        }
        Verb::Purge(args) => purge(args, &mut client, context)?,
    }
    Ok(Outcome::Done)
}

fn purge(args: Purge, client: &mut Client, context: &Context) -> Result<()> {
    let all = client.call(&TrashList {})?.disks;
    let mut chosen: Vec<TrashedDisk> = Vec::new();
    for name in &args.disks {
        let fits: Vec<&TrashedDisk> =
            all.iter().filter(|one| one.id == *name || one.name == *name).collect();
        match fits.as_slice() {
            [one] => chosen.push((*one).clone()),
            [] => {
                let message = format!("no disk {name:?} is in the trash");
                return Err(
                    Failure::new(ErrorKind::NotFound, message).hint("see rowctl trash list")
                );
            }
            _ => {
                let message = format!("several disks in the trash were called {name:?}");
                return Err(
                    Failure::invalid(message).hint("name them by their ids: rowctl trash list")
                );
            }
        }
    }
    if args.all {
        chosen = all;
    }
    let names: Vec<&str> = chosen.iter().map(|one| one.name.as_str()).collect();
    if !chosen.is_empty() {
        confirm(args.consent.yes, &format!("delete {} for good", names.join(", ")))?;
    }
    let mut done = Vec::new();
    for one in &chosen {
        done.push(client.call(&TrashPurge { disk: one.id.clone() })?);
    }
    context.output.list(
        &done,
        |one| one.id.clone(),
        |output| {
            let mut columns = Columns::new(&[
                Heading::Left("DELETED FOR GOOD"),
                Heading::Left("ID"),
                Heading::Right("AUTOMATIC SNAPSHOTS"),
            ]);
            for one in &done {
                let (name, id) = (one.name.clone(), one.id.clone());
                columns.row([name.into(), id.into(), render::count(one.snapshots)]);
            }
            columns.render(output)
        },
    )
}

fn table(disks: &[TrashedDisk], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("DISK"),
        Heading::Left("ID"),
        Heading::Right("SIZE"),
        Heading::Right("EXCLUSIVE"),
        Heading::Right("SNAPSHOTS"),
        Heading::Left("DELETED"),
        Heading::Left("GOES FOR GOOD"),
    ]);
    for one in disks {
        columns.row([
            one.name.clone().into(),
            one.id.clone().into(),
            render::bytes(one.size),
            render::bytes(one.exclusive_bytes),
            render::count(one.snapshot_count),
            output.time(one.deleted_at).into(),
            output.time(one.expires_at).into(),
        ]);
    }
    columns.render(output)
}
