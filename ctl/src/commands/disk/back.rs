//! `rowctl disk rollback` and `reinit`: a disk returns to an earlier state.
//!
//! Invariants: both ask first; what the disk was is told, with the way back.
//! Absent: groups, which return several disks at once.

use clap::Args;
use rowd_proto::{DiskReinit, DiskRollback, DiskUndo, RolledBack};

use super::show;
use crate::commands::args::Consent;
use crate::commands::{Context, clients};
use crate::confirm::{confirm, confirm_by_name};
use crate::error::Result;

#[derive(Args, Debug)]
pub struct Reinit {
    /// Name or id
    disk: String,
    #[command(flatten)]
    consent: Consent,
    /// Disconnect its clients
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
pub struct Rollback {
    /// Name or id
    disk: String,
    /// Name of a snapshot of the disk, disk@snapshot, or id
    #[arg(required_unless_present = "undo", conflicts_with = "undo")]
    snapshot: Option<String>,
    /// Return to the state before the last rollback or reinit
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    consent: Consent,
    /// Disconnect its clients
    #[arg(long)]
    force: bool,
}

pub(super) fn reinit(args: Reinit, context: &Context) -> Result<()> {
    let mut client = context.client()?;
    let disk = show(&mut client, &args.disk)?;
    let what = format!("return disk {} to its first contents", disk.name);
    confirm_by_name(args.consent.yes, &what, &disk.name)?;
    let done = client.call(&DiskReinit { disk: disk.id, force: args.force })?;
    print_rolled_back(&done, context)
}

pub(super) fn rollback(args: Rollback, context: &Context) -> Result<()> {
    let mut client = context.client()?;
    let disk = show(&mut client, &args.disk)?;
    let force = args.force;
    let done = match args.snapshot {
        Some(snapshot) => {
            confirm(args.consent.yes, &format!("return disk {} to {snapshot}", disk.name))?;
            client.call(&DiskRollback { disk: disk.id, snapshot, force })?
        }
        None => {
            confirm(args.consent.yes, &format!("undo the last rollback of disk {}", disk.name))?;
            client.call(&DiskUndo { disk: disk.id, force })?
        }
    };
    print_rolled_back(&done, context)
}

fn print_rolled_back(done: &RolledBack, context: &Context) -> Result<()> {
    context.output.object(done, &done.disk.id, |_| rolled_back_text(done))
}

pub fn rolled_back_text(done: &RolledBack) -> String {
    let name = &done.disk.name;
    let mut lines = vec![match &done.to_name {
        Some(to) => format!("{name} is back at {to}"),
        None => format!("{name} is blank"),
    }];
    lines.push(format!(
        "the state before is kept as {name}@{}: rowctl disk rollback --undo {name}",
        done.undo_name
    ));
    if !done.disconnected.is_empty() {
        lines.push(format!("disconnected: {}", clients(&done.disconnected)));
    }
    if done.grown_since {
        lines.push("the disk has grown since: extend its file system again".to_owned());
    }
    lines.join("\n")
}
