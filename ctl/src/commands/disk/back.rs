//! `rowctl disk rollback` and `reinit`: a disk returns to an earlier state.
//!
//! Invariants: both ask first; what the disk was is told, with the way back.
//! Absent: groups, which return several disks at once.

use clap::Args;
use rowd_proto::{DiskReinit, DiskRollback, DiskUndo, RolledBack};

use super::show;
use crate::commands::args::Consent;
use crate::commands::{Context, clients, job};
use crate::confirm::{confirm, confirm_by_name};
use crate::error::{Outcome, Result};

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
    /// Name of a snapshot of the disk, disk@snapshot, or id; or the id of a copy of the disk
    #[arg(required_unless_present = "undo", conflicts_with = "undo")]
    snapshot: Option<String>,
    /// Return to the state before the last rollback or reinit
    #[arg(long)]
    undo: bool,
    /// Of a snapshot that is only in a repository: return when the disk has all its contents
    #[arg(long, conflicts_with = "undo")]
    full: bool,
    #[command(flatten)]
    consent: Consent,
    /// Disconnect its clients; with --undo, drop a state that is not complete
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

pub(super) fn rollback(args: Rollback, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    let disk = show(&mut client, &args.disk)?;
    let force = args.force;
    let done = match args.snapshot {
        Some(snapshot) => {
            confirm(args.consent.yes, &format!("return disk {} to {snapshot}", disk.name))?;
            client.call_patiently(&DiskRollback { disk: disk.id, snapshot, force })?
        }
        None => {
            confirm(args.consent.yes, &format!("undo the last rollback of disk {}", disk.name))?;
            client.call(&DiskUndo { disk: disk.id, force })?
        }
    };
    print_rolled_back(&done, context)?;
    let Some(job) = done.disk.filling.and_then(|filling| filling.job) else {
        return Ok(Outcome::Done);
    };
    if !args.full {
        context.output.remark(&format!("it is filled while it is used: rowctl job wait {job}"));
        return Ok(Outcome::Done);
    }
    let ended = job::finish(&mut client, &job, None, context)?;
    let outcome = job::outcome(&ended);
    if !matches!(outcome, Outcome::Done) {
        job::print(&ended, context)?;
    }
    Ok(outcome)
}

fn print_rolled_back(done: &RolledBack, context: &Context) -> Result<()> {
    context.output.object(done, &done.disk.id, |_| rolled_back_text(done))
}

pub fn rolled_back_text(done: &RolledBack) -> String {
    let name = &done.disk.name;
    let mut lines = vec![match done.to_name.as_ref().or(done.to.as_ref()) {
        Some(to) => format!("{name} is back at {to}"),
        None => format!("{name} is blank"),
    }];
    lines.push(match &done.undo_name {
        Some(undo) => {
            format!("the state before is kept as {name}@{undo}: rowctl disk rollback --undo {name}")
        }
        None => "the state before was not complete and is dropped".to_owned(),
    });
    if !done.disconnected.is_empty() {
        lines.push(format!("disconnected: {}", clients(&done.disconnected)));
    }
    if done.grown_since {
        lines.push("the disk has grown since: extend its file system again".to_owned());
    }
    lines.join("\n")
}
