//! `rowctl snapshot`: read-only states of a disk.
//!
//! Invariants: nothing is deleted before all the names given are known and the user agrees; a dry
//! run changes nothing.
//! Absent: copies beside the one that a snapshot is (`copy.rs`).

use std::time::Duration;

use clap::{Args, Subcommand};
use rowd_proto::{
    Consistency, DIFF_PAGE_MAX, DiffRange, ErrorKind, Snapshot, SnapshotCreate, SnapshotDelete,
    SnapshotDeleted, SnapshotDiff, SnapshotFreed, SnapshotKind, SnapshotList, SnapshotSet,
    SnapshotShow, SnapshotStatus,
};

use crate::client::Client;
use crate::confirm::confirm;
use crate::error::{Failure, Outcome, Result};
use crate::render::{self, Columns, Fields, Heading, Output, Text};
use rowd_proto::size;

use super::args::{About, Consent, protected};
use super::copy::{Begin, begin};
use super::filter::Filter;
use super::freeze::{FreezeArgs, report_text};
use super::{Context, clients};

mod mount;
mod presence;

use presence::{Change, settle, verify};
pub use presence::{Keep, copy_meant};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a snapshot of a disk
    #[command(after_help = "Examples:
  rowctl snapshot create data1
  rowctl snapshot create data1 before-upgrade --tag keep=yes
  rowctl snapshot create data1 --repo backup --wait
  rowctl snapshot create data1 before-upgrade --repo backup --instant-access 3
  rowctl snapshot create data1 --consistency fs
  rowctl snapshot create db1 --consistency app
  rowctl snapshot create db1 --consistency app --pre-script ./freeze.sh --post-script ./thaw.sh

Without a repository a snapshot is in the pool, and can be used until it is deleted. With --repo, or
a default repository (rowctl repo set R --default), it is copied in the background; then it leaves the
pool, and disks are made of its copy. Until then it cannot be used, nor another one of the disk be made (exit
code 16), except with --instant-access.")]
    Create(Create),
    /// List snapshots, oldest first
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  rowctl snapshot list data1
  rowctl snapshot list --filter tag:keep=long -q | xargs -n 1 rowctl snapshot copy --to backup"
    )]
    List {
        /// Only those of this disk; for a deleted disk its id
        disk: Option<String>,
        #[command(flatten)]
        filter: Filter,
    },
    /// Show one snapshot
    #[command(after_help = "Example:\n  rowctl snapshot show data1@before-upgrade")]
    Show {
        /// Id, disk@snapshot, or a name that only one snapshot has
        snapshot: String,
    },
    /// Delete snapshots
    #[command(
        visible_alias = "rm",
        after_help = "Examples:
  rowctl snapshot delete data1@before-upgrade
  rowctl snapshot delete data1@mon data1@tue --dry-run
  rowctl snapshot delete data1@mon data1@tue --yes"
    )]
    Delete(Delete),
    /// Change properties of a snapshot
    #[command(after_help = "Examples:
  rowctl snapshot set data1@monday --name before-upgrade
  rowctl snapshot set data1@monday --instant-access 7
  rowctl snapshot set data1@monday --no-instant-access")]
    Set(Set),
    /// List the ranges that differ between two snapshots
    #[command(after_help = "Examples:
  rowctl snapshot diff data1@mon data1@tue
  rowctl snapshot diff --from-empty data1@mon -o json")]
    Diff(Diff),
    /// Mount the files of a snapshot, read-only
    #[command(after_help = "Examples:
  rowctl snapshot mount data1@monday /mnt
  rowctl snapshot mount --unmount /mnt
  rowctl snapshot mount vm1@monday /mnt --partition 1

A throw-away clone is mounted, so that the journal of the file system can be replayed; the
snapshot stays as it is. Needs root, and the kernel's NBD client: modprobe nbd.")]
    Mount(mount::Mount),
    /// Copy a snapshot to a repository, or a copy to another one; what it has already is not sent again
    #[command(after_help = "Examples:
  rowctl snapshot copy data1@monday --to backup
  rowctl snapshot copy data1@monday --to backup --tag keep=long --wait
  rowctl snapshot copy c-4f2a --to offsite --name monday-offsite

The copy is made in the background and goes on after a restart: rowctl copy list")]
    Copy(Begin),
    /// Read back what a repository holds of a snapshot: exit code 24 when it is damaged
    #[command(after_help = "Example:\n  rowctl snapshot verify data1@monday")]
    Verify {
        /// Id, disk@snapshot, or a name that only one snapshot has
        snapshot: String,
    },
    /// Wait until a snapshot is accomplished, or a deleted one is gone
    #[command(after_help = "Example:\n  rowctl snapshot wait data1@before-upgrade --timeout 60")]
    Wait(Wait),
}

#[derive(Args, Debug)]
pub struct Create {
    /// Name or id
    disk: String,
    /// Left out: a name made from the time
    name: Option<String>,
    #[command(flatten)]
    freeze: FreezeArgs,
    #[command(flatten)]
    keep: Keep,
    #[command(flatten)]
    about: About,
    /// Return when the snapshot is accomplished
    #[arg(long)]
    wait: bool,
}

#[derive(Args, Debug)]
pub struct Delete {
    /// Ids, disk@snapshot, or names that only one snapshot has
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    #[command(flatten)]
    consent: Consent,
    /// Delete it although disks were made from it or clients read it
    #[arg(long)]
    force: bool,
    /// Only show what would be freed
    #[arg(short = 'n', long)]
    dry_run: bool,
}

#[derive(Args, Debug)]
pub struct Set {
    /// Id, disk@snapshot, or a name that only one snapshot has
    snapshot: String,
    #[command(flatten)]
    change: Change,
}

#[derive(Args, Debug)]
pub struct Diff {
    /// The older and the newer snapshot; only the newer with --from-empty
    #[arg(required = true, num_args = 1..=2, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    /// Compare with an empty disk: everything the snapshot holds
    #[arg(long)]
    from_empty: bool,
}

#[derive(Args, Debug)]
pub struct Wait {
    /// Id, disk@snapshot, or a name that only one snapshot has
    snapshot: String,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    match verb {
        Verb::Create(args) => create(args, context)?,
        Verb::List { disk, filter } => list(disk, &filter, context)?,
        Verb::Mount(args) => mount::run(args, context)?,
        Verb::Show { snapshot } => print(&show(&mut context.client()?, &snapshot)?, context)?,
        Verb::Delete(args) => delete(&args, context)?,
        Verb::Set(Set { snapshot, change }) => {
            let instant_access = change.access();
            let protected = protected(change.protect, change.no_protect);
            let Change { name, description, .. } = change;
            let request = SnapshotSet { snapshot, name, description, instant_access, protected };
            print(&context.client()?.call(&request)?, context)?;
        }
        Verb::Diff(args) => diff(args, context)?,
        Verb::Copy(args) => return begin(args, context),
        Verb::Verify { snapshot } => return verify(&snapshot, context),
        Verb::Wait(args) => {
            let limit = args.timeout.map(Duration::from_secs);
            let mut client = context.client()?;
            let snapshot = show(&mut client, &args.snapshot)?;
            let settled = settle(&mut client, snapshot, limit)?;
            print(&settled, context)?;
        }
    }
    Ok(Outcome::Done)
}

fn create(args: Create, context: &Context) -> Result<()> {
    let Create { disk, name, freeze, keep, about, wait } = args;
    let (consistency, freeze) = freeze.parts()?;
    let (description, tags) = about.parts();
    let mut client = context.client()?;
    let (repo, local, instant_access) = keep.parts();
    let request = SnapshotCreate {
        disk,
        name,
        consistency,
        freeze,
        description,
        tags,
        repo,
        local,
        instant_access,
    };
    let mut made = client.call_patiently(&request)?;
    if wait {
        made.snapshot = settle(&mut client, made.snapshot, None)?;
    }
    context.output.object(&made, &made.snapshot.id, |output| {
        let text = fields(&made.snapshot, output);
        match &made.freeze {
            Some(report) => format!("{text}\n\n{}", report_text(report, output)),
            None => text,
        }
    })
}

fn list(disk: Option<String>, filter: &Filter, context: &Context) -> Result<()> {
    let mut snapshots = context.client()?.call(&SnapshotList { disk })?.snapshots;
    filter.leave(&mut snapshots, |one| Some(&one.tags));
    context.output.list(&snapshots, |one| one.id.clone(), |output| table(&snapshots, output))
}

fn delete(args: &Delete, context: &Context) -> Result<()> {
    let mut client = context.client()?;
    let mut snapshots: Vec<Snapshot> = Vec::new();
    for name in &args.snapshots {
        let snapshot = show(&mut client, name)?;
        if snapshots.iter().all(|known| known.id != snapshot.id) {
            snapshots.push(snapshot);
        }
    }
    if args.dry_run {
        let snapshots = snapshots.into_iter().map(|one| one.id).collect();
        return would_free(snapshots, &mut client, context);
    }
    let names: Vec<String> = snapshots.iter().map(full_name).collect();
    let noun = if names.len() == 1 { "snapshot" } else { "snapshots" };
    confirm(args.consent.yes, &format!("delete {noun} {}", names.join(", ")))?;
    let mut deleted: Vec<SnapshotDeleted> = Vec::new();
    for (snapshot, name) in snapshots.into_iter().zip(&names) {
        let request = SnapshotDelete { snapshot: snapshot.id, force: args.force };
        deleted.push(client.call(&request).map_err(|failure| {
            if deleted.is_empty() {
                return failure;
            }
            let done: Vec<&str> = deleted.iter().map(|one| one.name.as_str()).collect();
            failure.context(format!("deleted {}, but not {name}", done.join(", ")))
        })?);
    }
    print_deleted(&deleted, false, context)
}

/// Shows what deleting these snapshots would free.
pub fn would_free(snapshots: Vec<String>, client: &mut Client, context: &Context) -> Result<()> {
    let freed = client.call(&SnapshotFreed { snapshots })?.snapshots;
    print_deleted(&freed, true, context)
}

fn print_deleted(deleted: &[SnapshotDeleted], dry_run: bool, context: &Context) -> Result<()> {
    context.output.list(
        deleted,
        |one| one.id.clone(),
        |output| {
            let mut columns = Columns::new(&[
                Heading::Left("SNAPSHOT"),
                Heading::Left("ID"),
                Heading::Right("FREED"),
            ]);
            for one in deleted {
                let (name, id) = (one.name.clone(), one.id.clone());
                columns.row([name.into(), id.into(), render::bytes(one.freed_bytes)]);
            }
            let total = size::human(deleted.iter().map(|one| one.freed_bytes).sum());
            let total = match dry_run {
                true => format!("would free {total}; nothing was deleted"),
                false => format!("{total} will be free shortly"),
            };
            format!("{}\n{total}", columns.render(output))
        },
    )
}

fn diff(args: Diff, context: &Context) -> Result<()> {
    let mut snapshots = args.snapshots.into_iter();
    let (from, to) = match (snapshots.next(), snapshots.next(), args.from_empty) {
        (Some(from), Some(to), false) => (Some(from), to),
        (Some(to), None, true) => (None, to),
        (_, None, false) => {
            return Err(Failure::invalid("a diff needs two snapshots")
                .hint("add the newer one, or --from-empty"));
        }
        _ => return Err(Failure::invalid("--from-empty takes only the newer snapshot")),
    };
    let mut client = context.client()?;
    let (mut ranges, mut resume): (Vec<DiffRange>, u64) = (Vec::new(), 0);
    loop {
        let (from, to) = (from.clone(), to.clone());
        let page = client.call(&SnapshotDiff { from, to, resume, limit: Some(DIFF_PAGE_MAX) })?;
        ranges.extend(page.ranges);
        match page.resume {
            Some(next) if next > resume => resume = next,
            Some(_) => return Err(Failure::new(ErrorKind::Internal, "the diff does not go on")),
            None => break,
        }
    }
    let id = |range: &DiffRange| format!("{} {}", range.offset, range.length);
    context.output.list(&ranges, id, |output| diff_table(&ranges, output))
}

fn diff_table(ranges: &[DiffRange], output: &Output) -> String {
    let mut columns =
        Columns::new(&[Heading::Right("OFFSET"), Heading::Right("LENGTH"), Heading::Left("NOW")]);
    for range in ranges {
        let now = if range.zero { "zero" } else { "data" };
        columns.row([range.offset.to_string().into(), range.length.to_string().into(), now.into()]);
    }
    let total = size::human(ranges.iter().map(|range| range.length).sum());
    let zero = ranges.iter().filter(|range| range.zero).map(|range| range.length).sum();
    let summary = match (ranges.len(), zero) {
        (0, _) => return "no difference".to_owned(),
        (count, 0) => format!("{count} ranges, {total}"),
        (count, zero) => {
            format!("{count} ranges, {total}, of which {} are zeros now", size::human(zero))
        }
    };
    format!("{}\n{summary}", columns.render(output))
}

/// Asks the daemon about a snapshot.
fn show(client: &mut Client, snapshot: &str) -> Result<Snapshot> {
    client.call(&SnapshotShow { snapshot: snapshot.to_owned() })
}

fn print(snapshot: &Snapshot, context: &Context) -> Result<()> {
    context.output.object(snapshot, &snapshot.id, |output| fields(snapshot, output))
}

/// `disk@snapshot`, with the id of a disk that is gone.
pub fn full_name(snapshot: &Snapshot) -> String {
    let disk = snapshot.disk_name.as_ref().unwrap_or(&snapshot.disk_id);
    format!("{disk}@{}", snapshot.name)
}

fn fields(snapshot: &Snapshot, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("name", snapshot.name.clone());
    fields.add("id", snapshot.id.clone());
    fields.add(
        "disk",
        match &snapshot.disk_name {
            Some(name) => format!("{name} ({})", snapshot.disk_id),
            None => format!("{} (deleted since)", snapshot.disk_id),
        },
    );
    fields.add_some("description", Some(snapshot.description.clone()));
    fields.add("size", render::bytes(snapshot.size));
    fields.add("exclusive", render::bytes(snapshot.exclusive_bytes));
    fields.add("stored", render::bytes(snapshot.stored_bytes));
    fields.add("created", output.full_time(snapshot.created_at));
    fields.add("kind", kind(snapshot.kind));
    fields.add("consistency", snapshot.consistency.name());
    fields.add("status", status(snapshot));
    presence::fields(snapshot, &mut fields, output);
    fields.add_some("filling", snapshot.filling.as_ref().map(super::disk::filling));
    fields.add_some("protected", snapshot.protected.then_some("yes"));
    fields.add_some("encrypted", snapshot.encrypted.then_some("yes"));
    let actions: Vec<&str> = snapshot.actions.iter().map(|action| action.name()).collect();
    fields.add_some("can be used for", Some(actions.join(", ")));
    fields.add_some("parent", snapshot.parent.clone());
    fields.add_some("expires", snapshot.expires_at.map(|at| output.full_time(at)));
    fields.add_some("disks made", Some(snapshot.made_disks.join(", ")));
    fields.add_some("images", Some(snapshot.images.join(", ")));
    fields.add_some("tags", Some(render::tags(&snapshot.tags)));
    fields.add_some("clients", Some(clients(&snapshot.clients)));
    fields.render(output)
}

fn kind(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::Manual => "manual",
        SnapshotKind::Auto => "auto",
        SnapshotKind::Undo => "undo",
    }
}

fn status(snapshot: &Snapshot) -> Text {
    match snapshot.status {
        SnapshotStatus::Accomplished => "accomplished".into(),
        SnapshotStatus::Progressing => format!("progressing, {} %", snapshot.progress).into(),
        SnapshotStatus::Deleting => "deleting".into(),
        SnapshotStatus::Failed => Text::Alarm("failed".to_owned()),
    }
}

/// A table of snapshots; what is normal (manual, accomplished, unused) is not mentioned.
pub fn table(snapshots: &[Snapshot], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("SNAPSHOT"),
        Heading::Left("ID"),
        Heading::Right("SIZE"),
        Heading::Right("EXCLUSIVE"),
        Heading::Right("STORED"),
        Heading::Left("CREATED"),
        Heading::Left("KIND"),
        Heading::Left("LEVEL"),
        Heading::Left("STATUS"),
        Heading::Left("NOTE"),
    ]);
    for snapshot in snapshots {
        let is_crash = snapshot.consistency == Consistency::Crash;
        let is_manual = snapshot.kind == SnapshotKind::Manual;
        let is_usable = snapshot.status == SnapshotStatus::Accomplished;
        columns.row([
            full_name(snapshot).into(),
            snapshot.id.clone().into(),
            render::bytes(snapshot.size),
            render::bytes(snapshot.exclusive_bytes),
            render::bytes(snapshot.stored_bytes),
            output.time(snapshot.created_at).into(),
            if is_manual { "" } else { kind(snapshot.kind) }.into(),
            if is_crash { "" } else { snapshot.consistency.name() }.into(),
            if is_usable { "".into() } else { status(snapshot) },
            note(snapshot, output).into(),
        ]);
    }
    columns.render(output)
}

fn note(snapshot: &Snapshot, output: &Output) -> String {
    let mut notes = Vec::new();
    if snapshot.encrypted {
        notes.push("encrypted".to_owned());
    }
    notes.extend(snapshot.filling.as_ref().map(|one| format!("filling, {} %", one.percent)));
    notes.extend(presence::note(snapshot, output));
    if let Some(at) = snapshot.expires_at {
        notes.push(format!("expires {}", output.time(at)));
    }
    match snapshot.made_disks.len() {
        0 => {}
        1 => notes.push("1 disk made from it".to_owned()),
        count => notes.push(format!("{count} disks made from it")),
    }
    match snapshot.images.len() {
        0 => {}
        1 => notes.push("in 1 image".to_owned()),
        count => notes.push(format!("in {count} images")),
    }
    match snapshot.clients.len() {
        0 => {}
        count => notes.push(format!("in use by {count}")),
    }
    notes.join(", ")
}

#[cfg(test)]
mod tests;
