//! `rowctl disk delete`: into the trash, or for good.
//!
//! Invariants: asks first; a dry run changes nothing.
//! Absent: bringing a disk back (`trash.rs`).

use clap::Args;
use rowd_proto::{DiskDelete, DiskFreed, size};

use crate::confirm::confirm_by_name;
use crate::error::Result;

use super::super::Context;
use super::super::args::Consent;
use super::show;

#[derive(Args, Debug)]
pub struct Delete {
    /// Name or id
    disk: String,
    #[command(flatten)]
    consent: Consent,
    /// Disconnect its clients
    #[arg(long)]
    force: bool,
    /// For good, not into the trash
    #[arg(long)]
    now: bool,
    /// Only show what would be freed
    #[arg(short = 'n', long)]
    dry_run: bool,
}

pub fn run(args: &Delete, context: &Context) -> Result<()> {
    let mut client = context.client()?;
    let disk = show(&mut client, &args.disk)?;
    if args.dry_run {
        let found = client.call(&DiskFreed { disk: disk.id })?;
        return context.output.object(&found, &found.id, |_| {
            let freed = size::human(found.freed_bytes);
            format!("would free {freed} once it is gone for good; nothing was deleted")
        });
    }
    let what = format!("delete disk {} ({})", disk.name, size::human(disk.size));
    confirm_by_name(args.consent.yes, &what, &disk.name)?;
    let request = DiskDelete { disk: disk.id.clone(), force: args.force, now: args.now };
    let done = client.call(&request)?;
    context.output.object(&done, &done.id, |output| match done.restorable_until {
        None => format!("{} is deleted", done.name),
        Some(until) => format!(
            "{} is in the trash until {}: rowctl trash restore {}",
            done.name,
            output.time(until),
            done.name
        ),
    })?;
    let kept = disk.snapshot_count - done.snapshots.min(disk.snapshot_count);
    if kept > 0 {
        context
            .output
            .remark(&format!("its {kept} snapshots are kept: rowctl chain show {}", disk.id));
    }
    Ok(())
}
