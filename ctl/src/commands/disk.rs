//! `rowctl disk`: virtual disks.
//!
//! Invariants: whatever loses data asks first; a disk whose import failed is gone again.
//! Absent: attaching a disk to the kernel.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use rowd_proto::{
    Attachment, AttachmentState, Disk, DiskAttach, DiskDetach, DiskFilling, DiskList, DiskRename,
    DiskResize, DiskSet, DiskShow, LOCAL_INSTANCE,
};

use crate::client::Client;
use crate::confirm::confirm_by_name;
use crate::error::{Outcome, Result};
use crate::render::{self, Columns, Fields, Heading, Output};
use rowd_proto::size::{self, Size};

use super::args::{About, protected};
use super::file::{ExportArgs, FileFormat};
use super::filter::Filter;
use super::policy;
use super::{Context, clients, udev};

pub mod back;
mod copy;
mod create;
mod delete;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a disk, blank or from a snapshot or image
    #[command(after_help = "Examples:
  rowctl disk create data1 --size 20GiB
  rowctl disk create secret1 --size 20GiB --encrypted
  rowctl disk create test1 --from data1@before-upgrade --tag env=test
  rowctl disk create vm1 --from debian-12
  rowctl disk create vm1 --from webserver --with-data
  rowctl disk create data2 --from c-4f2a9k
  rowctl disk create data3 --size 20GiB --policy nightly

The name of a family of images means its newest image that is not deprecated.

An encrypted disk needs a master key ([encryption] in rowd.toml, rowctl key show). Its snapshots,
and disks made from them, are encrypted with its key.

The id of a copy (rowctl copy list) makes a disk that can be used at once: what it lacks is fetched when
it is asked for, and the rest in the background. With --full all is fetched first.")]
    Create(create::Create),
    /// List all disks
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  rowctl disk list -o json
  rowctl disk list --policy none
  rowctl disk list --filter tag:env=test -q"
    )]
    List {
        /// Only disks with this policy, with any, or with none
        #[arg(long, value_name = "POLICY|any|none")]
        policy: Option<String>,
        #[command(flatten)]
        filter: Filter,
    },
    /// Show one disk
    #[command(after_help = "Example:\n  rowctl disk show data1")]
    Show {
        /// Name or id
        disk: String,
    },
    /// Delete a disk, which can be brought back for a while; its snapshots stay
    #[command(
        visible_alias = "rm",
        after_help = "Examples:
  rowctl disk delete data1 --yes
  rowctl disk delete data1 --now
  rowctl disk delete data1 --dry-run

It is in the trash for trash.hours of rowd.toml, 24 unless it says something else: rowctl trash list.
The snapshots of the disk are kept and found under its id: rowctl chain list. Automatic ones go with
it for good if that was set: rowctl disk set data1 --delete-auto-snapshot on"
    )]
    Delete(delete::Delete),
    /// Give a disk another name
    #[command(after_help = "Example:\n  rowctl disk rename data1 data2")]
    Rename {
        /// Name or id
        disk: String,
        #[arg(value_name = "NEW")]
        name: String,
    },
    /// Change the size of a disk
    #[command(after_help = "Example:\n  rowctl disk resize data1 40GiB

A smaller size cuts off data, and asks first.")]
    Resize(Resize),
    /// Return a disk to its first contents; the state before is kept for a while
    #[command(after_help = "Examples:
  rowctl disk reinit data1 --yes
  rowctl disk rollback --undo data1 --yes      takes it back

The first contents are those of the snapshot the disk was made from, or nothing.")]
    Reinit(back::Reinit),
    /// Change properties of a disk
    #[command(after_help = "Examples:
  rowctl disk set data1 --read-only on
  rowctl disk set data1 --protect          not deleted, rolled back, reinitialised or cut
  rowctl disk set data1 --instance web1
  rowctl disk set data1 --delete-auto-snapshot on

Its policy is set with: rowctl policy apply, rowctl policy cancel")]
    Set(Set),
    /// Return a disk to a snapshot; the state before is kept for a while
    #[command(after_help = "Examples:
  rowctl disk rollback data1 before-upgrade
  rowctl disk rollback data1 data1@before-upgrade --yes --force
  rowctl disk rollback data1 monthly --full    waits until all is fetched from the repository
  rowctl disk rollback --undo data1            takes the last rollback back

Newer snapshots stay. With --force connected clients are disconnected. A snapshot that is only in a
repository, or a copy of the disk (c-...), is fetched while the disk is used, and only what differs.")]
    Rollback(back::Rollback),
    /// Make a kernel device, /dev/nbdN, of a disk
    #[command(after_help = "Examples:
  rowctl disk attach data1
  rowctl disk attach data1 --device /dev/nbd7
  mount /dev/disk/by-id/rowd-data1 /srv

The daemon remembers it and attaches the disk again at each start. Needs root for the daemon,
and the kernel's NBD client: modprobe nbd.")]
    Attach(Attach),
    /// Take the kernel device of a disk away
    #[command(after_help = "Examples:
  rowctl disk detach data1
  rowctl disk detach data1 --force     whoever uses it gets I/O errors

A device that is mounted or otherwise in use is refused, and its users are named.")]
    Detach(Detach),
    /// Copy a disk or snapshot to a file
    #[command(after_help = "Examples:
  rowctl disk export data1@monday /backup/data1.img
  rowctl disk export data1@monday /backup/data1.qcow2 --format qcow2
  rowctl disk export data1@monday - | zstd > data1.img.zst

A disk is copied as it is while it is being read: no snapshot is made. Name a snapshot for
a copy of one instant. Parts that read as zeros become holes in the file.")]
    Export(Export),
    /// Make a disk from a file
    #[command(after_help = "Examples:
  rowctl disk import data1 /backup/data1.img
  rowctl disk import data1 /backup/data1.img --size 40GiB
  rowctl disk import vm1 debian-12.qcow2 --format qcow2

The disk has the size of the file, or of the disk in it, rounded up to 4096. It is deleted again
if the copy fails. The format is never guessed: without --format every byte is taken as it is.")]
    Import(Import),
}

#[derive(Args, Debug)]
pub struct Resize {
    /// Name or id
    disk: String,
    /// The new size, as in 40GiB
    size: Size,
    /// Do not ask before a smaller size
    #[arg(short, long)]
    yes: bool,
}

#[derive(Args, Debug)]
pub struct Set {
    /// Name or id
    disk: String,
    #[command(flatten)]
    change: Change,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
struct Change {
    #[arg(long)]
    description: Option<String>,
    /// Refuse writes
    #[arg(long, value_name = "ON|OFF")]
    read_only: Option<Switch>,
    /// The instance whose disk it is; local is this host
    #[arg(long)]
    instance: Option<String>,
    /// Delete its automatic snapshots with it
    #[arg(long, value_name = "ON|OFF")]
    delete_auto_snapshot: Option<Switch>,
    /// Refuse what would lose it, whatever the force, until --no-protect
    #[arg(long, conflicts_with = "no_protect")]
    protect: bool,
    /// Allow it again
    #[arg(long)]
    no_protect: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Args, Debug)]
pub struct Attach {
    /// Name or id
    disk: String,
    /// The device to make; without it the lowest one that is free
    #[arg(long, value_name = "/dev/nbdN")]
    device: Option<String>,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
}

#[derive(Args, Debug)]
pub struct Detach {
    /// Name or id
    disk: String,
    /// Even if it is in use
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
pub struct Export {
    /// A disk, or disk@snapshot
    #[arg(value_name = "DISK[@SNAPSHOT]")]
    source: String,
    #[command(flatten)]
    to: ExportArgs,
}

#[derive(Args, Debug)]
pub struct Import {
    /// The name of the new disk
    name: String,
    /// The file or block device to read
    file: PathBuf,
    #[arg(long, default_value = "raw")]
    format: FileFormat,
    /// Make the disk larger than the file
    #[arg(long)]
    size: Option<Size>,
    #[command(flatten)]
    about: About,
    /// Store the disk as ciphertext, with a key of its own
    #[arg(long)]
    encrypted: bool,
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    match verb {
        Verb::Create(args) => return create::create(args, context),
        Verb::List { policy, filter } => list(policy.as_deref(), &filter, context)?,
        Verb::Show { disk } => print(&show(&mut context.client()?, &disk)?, context)?,
        Verb::Delete(args) => delete::run(&args, context)?,
        Verb::Rename { disk, name } => {
            print(&context.client()?.call(&DiskRename { disk, name })?, context)?;
        }
        Verb::Resize(args) => resize(args, context)?,
        Verb::Reinit(args) => back::reinit(args, context)?,
        Verb::Set(Set { disk, change }) => {
            let Change { description, read_only, instance, .. } = change;
            let on = |switch| switch == Switch::On;
            let read_only = read_only.map(on);
            let delete_auto_snapshot = change.delete_auto_snapshot.map(on);
            let protected = protected(change.protect, change.no_protect);
            let request =
                DiskSet { disk, description, read_only, instance, delete_auto_snapshot, protected };
            let disk = context.client()?.call(&request)?;
            print(&disk, context)?;
            if delete_auto_snapshot == Some(true) {
                policy::warn_without(&disk, context);
            }
        }
        Verb::Rollback(args) => return back::rollback(args, context),
        Verb::Attach(Attach { disk, device, read_only }) => {
            let disk = context.client()?.call(&DiskAttach { disk, device, read_only })?;
            udev::wait_for_names(&disk.name);
            print(&disk, context)?;
        }
        Verb::Detach(Detach { disk, force }) => {
            print(&context.client()?.call(&DiskDetach { disk, force })?, context)?;
        }
        Verb::Export(args) => copy::export(&args, context)?,
        Verb::Import(args) => copy::import(args, context)?,
    }
    Ok(Outcome::Done)
}

fn list(policy: Option<&str>, filter: &Filter, context: &Context) -> Result<()> {
    let mut client = context.client()?;
    let mut disks = client.call(&DiskList {})?.disks;
    policy::filter(&mut disks, policy, &mut client)?;
    filter.leave(&mut disks, |disk| Some(&disk.tags));
    print_all(&disks, context)
}

fn print_all(disks: &[Disk], context: &Context) -> Result<()> {
    context.output.list(disks, |disk| disk.id.clone(), |output| table(disks, output))
}

fn resize(args: Resize, context: &Context) -> Result<()> {
    let mut client = context.client()?;
    let disk = show(&mut client, &args.disk)?;
    let shrink = args.size.0 < disk.size;
    if shrink {
        let (now, then) = (size::human(disk.size), size::human(args.size.0));
        let what = format!("cut {} from {now} to {then}, losing what lies beyond", disk.name);
        confirm_by_name(args.yes, &what, &disk.name)?;
    }
    let request = DiskResize { disk: disk.id, size: args.size.0, shrink };
    print(&client.call(&request)?, context)
}

/// Asks the daemon about a disk.
fn show(client: &mut Client, disk: &str) -> Result<Disk> {
    client.call(&DiskShow { disk: disk.to_owned() })
}

pub fn print(disk: &Disk, context: &Context) -> Result<()> {
    context.output.object(disk, &disk.id, |output| fields(disk, output))
}

fn fields(disk: &Disk, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("name", disk.name.clone());
    fields.add("id", disk.id.clone());
    fields.add_some("description", Some(disk.description.clone()));
    fields.add("size", render::bytes(disk.size));
    fields.add("data", render::bytes(disk.mapped_bytes));
    fields.add("exclusive", render::bytes(disk.exclusive_bytes));
    fields.add("created", output.full_time(disk.created_at));
    fields.add_some("mode", disk.read_only.then_some("read-only"));
    fields.add_some("protected", disk.protected.then_some("yes"));
    fields.add_some("encrypted", encrypted(disk));
    fields.add_some("filling", disk.filling.as_ref().map(filling));
    fields.add_some(
        "origin",
        disk.origin.as_ref().map(|origin| match origin.exists {
            true => origin.snapshot_id.clone(),
            false => format!("{} (deleted since)", origin.snapshot_id),
        }),
    );
    fields.add_some(
        "image",
        disk.image.as_ref().map(|image| match &image.name {
            Some(name) => format!("{name} ({})", image.id),
            None => format!("{} (deleted since)", image.id),
        }),
    );
    fields.add_some("snapshots", Some(render::count(disk.snapshot_count)));
    fields.add_some("instance", other_instance(disk));
    fields.add_some("policy", disk.policy.as_ref().map(policy::of_disk));
    fields.add_some("deleted with it", disk.delete_auto_snapshot.then_some("automatic snapshots"));
    fields.add_some("tags", Some(render::tags(&disk.tags)));
    fields.add_some("clients", Some(clients(&disk.clients)));
    fields.add_some("device", disk.attachment.as_ref().map(device));
    fields.render(output)
}

/// The instance of a disk; this host goes without saying.
fn other_instance(disk: &Disk) -> Option<String> {
    (disk.instance_name != LOCAL_INSTANCE).then(|| disk.instance_name.clone())
}

/// The kernel device in a few words.
fn device(attachment: &Attachment) -> String {
    let Attachment { device, read_only, state, message } = attachment;
    let read_only = if *read_only { ", read-only" } else { "" };
    match state {
        AttachmentState::Attached => format!("{device}{read_only}"),
        AttachmentState::Pending => format!("{device}{read_only} (not yet attached)"),
        AttachmentState::Failed => {
            let why = message.as_deref().unwrap_or("unknown reason");
            format!("none: {device} could not be attached: {why}")
        }
    }
}

/// What a disk or snapshot is being filled from, and how far that is.
pub fn filling(filling: &DiskFilling) -> String {
    let DiskFilling { copy, repo, usable, percent, .. } = filling;
    let usable = if *usable { "" } else { ", and it cannot be used before" };
    format!("from copy {copy} in {repo}, {percent} %{usable}")
}

/// Whether a disk is encrypted, and whether there is a key for it.
fn encrypted(disk: &Disk) -> Option<String> {
    disk.encrypted.then(|| match &disk.locked {
        None => "yes".to_owned(),
        Some(why) => format!("yes, and it cannot be used: {why}"),
    })
}

/// What is unusual about a disk.
fn note(disk: &Disk) -> String {
    let encrypted = disk.encrypted.then(|| match disk.locked {
        None => "encrypted".to_owned(),
        Some(_) => "encrypted, no key".to_owned(),
    });
    let read_only = disk.read_only.then(|| "read-only".to_owned());
    let attached = disk.attachment.as_ref().map(|attachment| match attachment.state {
        AttachmentState::Failed => format!("{} failed", attachment.device),
        AttachmentState::Attached | AttachmentState::Pending => attachment.device.clone(),
    });
    let filling = disk.filling.as_ref().map(|one| format!("filling, {} %", one.percent));
    encrypted
        .into_iter()
        .chain(filling)
        .chain(read_only)
        .chain(attached)
        .collect::<Vec<_>>()
        .join(", ")
}

fn table(disks: &[Disk], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("NAME"),
        Heading::Left("ID"),
        Heading::Right("SIZE"),
        Heading::Right("DATA"),
        Heading::Right("SNAPSHOTS"),
        Heading::Right("CLIENTS"),
        Heading::Left("INSTANCE"),
        Heading::Left("POLICY"),
        Heading::Left("CREATED"),
        Heading::Left("NOTE"),
    ]);
    for disk in disks {
        columns.row([
            disk.name.clone().into(),
            disk.id.clone().into(),
            render::bytes(disk.size),
            render::bytes(disk.mapped_bytes),
            render::count(disk.snapshot_count),
            render::count(u64::try_from(disk.clients.len()).unwrap_or(u64::MAX)),
            other_instance(disk).unwrap_or_default().into(),
            disk.policy.as_ref().map_or_else(String::new, |policy| policy.name.clone()).into(),
            output.time(disk.created_at).into(),
            note(disk).into(),
        ]);
    }
    columns.render(output)
}
