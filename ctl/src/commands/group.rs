//! `rowctl group`: snapshots of several disks at exactly one instant.
//!
//! Invariants: nothing is deleted or rolled back before the group is known and the user agrees; the
//! question names every disk that is meant.
//! Absent: the member snapshots, which `snapshot` handles like any other.

use clap::{Args, Subcommand};
use rowd_proto::{
    Group, GroupCreate, GroupDelete, GroupList, GroupMember, GroupRollback, GroupRolledBack,
    GroupSet, GroupShow,
};

use crate::client::Client;
use crate::confirm::confirm;
use crate::error::{Outcome, Result};
use crate::render::{self, Columns, Fields, Heading, Output, Text};
use rowd_proto::size;

use super::Context;
use super::args::{About, Change, Consent};
use super::disk::back::rolled_back_text;
use super::filter::Filter;
use super::freeze::{FreezeArgs, report_text};
use super::snapshot::{Keep, would_free};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make snapshots of several disks at one instant
    #[command(after_help = "Examples:
  rowctl group create data1 log1
  rowctl group create data1 log1 --name before-upgrade
  rowctl group create data1 log1 --consistency fs
  rowctl group create --instance local --consistency app
  rowctl group create --instance web1 --exclude scratch1
  rowctl group create data1 log1 --repo backup --instant-access

A group is what others call an instance snapshot. It is kept until somebody deletes it. Its
first snapshot of a disk holds all of it, later ones what changed.")]
    Create(Box<Create>),
    /// List groups, oldest first
    #[command(visible_alias = "ls", after_help = "Example:\n  rowctl group list")]
    List {
        #[command(flatten)]
        filter: Filter,
    },
    /// Show one group and its snapshots
    #[command(after_help = "Example:\n  rowctl group show before-upgrade")]
    Show {
        /// Id or name
        group: String,
    },
    /// Change name or description of a group; its snapshots keep their names
    #[command(after_help = "Example:\n  rowctl group set before-upgrade --name kept")]
    Set(Set),
    /// Delete a group with its snapshots
    #[command(
        visible_alias = "rm",
        after_help = "Examples:
  rowctl group delete before-upgrade --dry-run
  rowctl group delete before-upgrade --yes"
    )]
    Delete(Delete),
    /// Return all disks of a group, or some, to its instant; all of them go back, or none
    #[command(after_help = "Examples:
  rowctl group rollback before-upgrade
  rowctl group rollback before-upgrade log1 --yes
  rowctl group rollback before-upgrade --group-first before-return

What was written since the group was made is gone from the disks afterwards. Each keeps the
state before as a snapshot for a while (rowctl disk rollback --undo); --group-first keeps it
for all of them, as a group, until you delete it. Nothing is stopped or started: unmount, or
stop the machine, first; with --force connected clients are disconnected.")]
    Rollback(Rollback),
}

#[derive(Args, Debug)]
pub struct Create {
    /// Names or ids; at most 16, of 32 TiB together
    #[arg(required_unless_present = "instances", value_name = "DISK")]
    disks: Vec<String>,
    /// All disks of an instance; may be given several times
    #[arg(long = "instance", value_name = "INSTANCE")]
    instances: Vec<String>,
    /// But not this disk of it; may be given several times
    #[arg(long, value_name = "DISK", requires = "instances")]
    exclude: Vec<String>,
    /// Also the name of each snapshot; left out: a name made from the time
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    freeze: FreezeArgs,
    #[command(flatten)]
    keep: Keep,
    #[command(flatten)]
    about: About,
}

#[derive(Args, Debug)]
pub struct Set {
    /// Id or name
    group: String,
    #[command(flatten)]
    change: Change,
}

#[derive(Args, Debug)]
pub struct Delete {
    /// Id or name
    group: String,
    #[command(flatten)]
    consent: Consent,
    /// Delete it although disks were made from a snapshot of it or clients read one
    #[arg(long)]
    force: bool,
    /// Only show what would be freed
    #[arg(short = 'n', long)]
    dry_run: bool,
}

#[derive(Args, Debug)]
pub struct Rollback {
    /// Id or name
    group: String,
    /// Only these disks of the group
    #[arg(value_name = "DISK")]
    disks: Vec<String>,
    #[command(flatten)]
    consent: Consent,
    /// Disconnect clients of the disks
    #[arg(long)]
    force: bool,
    /// Make a group of this name of the same disks first
    #[arg(long, value_name = "NAME")]
    group_first: Option<String>,
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    match verb {
        Verb::Create(args) => create(*args, &mut client, context)?,
        Verb::List { filter } => {
            let mut groups = client.call(&GroupList {})?.groups;
            filter.leave(&mut groups, |one| Some(&one.tags));
            context.output.list(&groups, |one| one.id.clone(), |output| table(&groups, output))?;
        }
        Verb::Show { group } => print(&show(&mut client, &group)?, context)?,
        Verb::Set(Set { group, change: Change { name, description } }) => {
            print(&client.call(&GroupSet { group, name, description })?, context)?;
        }
        Verb::Delete(args) => delete(&args, &mut client, context)?,
        Verb::Rollback(args) => rollback(args, &mut client, context)?,
    }
    Ok(Outcome::Done)
}

fn create(args: Create, client: &mut Client, context: &Context) -> Result<()> {
    let Create { disks, instances, exclude, name, freeze, keep, about } = args;
    let (consistency, freeze) = freeze.parts()?;
    let (description, tags) = about.parts();
    let (repo, local, instant_access) = keep.parts();
    let request = GroupCreate {
        disks,
        instances,
        exclude,
        name,
        consistency,
        freeze,
        description,
        tags,
        repo,
        local,
        instant_access,
    };
    let made = client.call_patiently(&request)?;
    context.output.object(&made, &made.group.id, |output| {
        let text = full(&made.group, output);
        match &made.freeze {
            Some(report) => format!("{text}\n\n{}", report_text(report, output)),
            None => text,
        }
    })
}

fn delete(args: &Delete, client: &mut Client, context: &Context) -> Result<()> {
    let group = show(client, &args.group)?;
    if args.dry_run {
        let there = group.members.into_iter().filter(|member| member.snapshot.is_some());
        return would_free(there.map(|member| member.snapshot_id).collect(), client, context);
    }
    let left = group.members.iter().filter(|member| member.snapshot.is_some()).count();
    confirm(
        args.consent.yes,
        &format!("delete group {} with {}", group.name, snapshots(left as u64)),
    )?;
    let done = client.call(&GroupDelete { group: group.id, force: args.force })?;
    context.output.object(&done, &done.id, |_| {
        format!("group {} is deleted with {}", done.name, snapshots(done.snapshots))
    })
}

fn rollback(args: Rollback, client: &mut Client, context: &Context) -> Result<()> {
    let Rollback { group, disks, consent, force, group_first } = args;
    let group = show(client, &group)?;
    let named = if disks.is_empty() { names(&group) } else { disks.join(", ") };
    confirm(consent.yes, &format!("return {named} to group {}", group.name))?;
    let request = GroupRollback { group: group.id, disks, force, group_first };
    let GroupRolledBack { first, disks: done } = client.call_patiently(&request)?;
    context.output.list(
        &done,
        |one| one.disk.id.clone(),
        |_| done.iter().map(rolled_back_text).collect::<Vec<_>>().join("\n"),
    )?;
    if let Some(first) = first {
        context.output.remark(&format!("the state before is kept as group {}", first.name));
    }
    for disk in done.iter().map(|one| &one.disk) {
        if let Some(job) = disk.filling.as_ref().and_then(|filling| filling.job.as_ref()) {
            let name = &disk.name;
            context
                .output
                .remark(&format!("{name} is filled while it is used: rowctl job wait {job}"));
        }
    }
    Ok(())
}

/// Asks the daemon about a group.
fn show(client: &mut Client, group: &str) -> Result<Group> {
    client.call(&GroupShow { group: group.to_owned() })
}

fn print(group: &Group, context: &Context) -> Result<()> {
    context.output.object(group, &group.id, |output| full(group, output))
}

fn snapshots(count: u64) -> String {
    if count == 1 { "1 snapshot".to_owned() } else { format!("{count} snapshots") }
}

fn disk(member: &GroupMember) -> String {
    member.disk_name.clone().unwrap_or_else(|| format!("{} (deleted since)", member.disk_id))
}

fn count_and_size(group: &Group) -> String {
    format!("{}, {}", group.members.len(), size::human(group.total_size))
}

fn names(group: &Group) -> String {
    group.members.iter().map(disk).collect::<Vec<_>>().join(", ")
}

/// What is normal (every snapshot is there) is not mentioned.
fn table(groups: &[Group], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("GROUP"),
        Heading::Left("ID"),
        Heading::Left("CREATED"),
        Heading::Left("DISKS"),
        Heading::Left("NOTE"),
    ]);
    for group in groups {
        let gone = group.members.iter().filter(|member| member.snapshot.is_none()).count();
        let note = if gone == 0 { String::new() } else { format!("{gone} deleted since") };
        columns.row([
            group.name.clone().into(),
            group.id.clone().into(),
            output.time(group.created_at).into(),
            names(group).into(),
            note.into(),
        ]);
    }
    columns.render(output)
}

fn full(group: &Group, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("name", group.name.clone());
    fields.add("id", group.id.clone());
    fields.add_some("description", Some(group.description.clone()));
    fields.add("created", output.full_time(group.created_at));
    fields.add_some("made by policy", group.policy_id.clone());
    fields.add_some("expires", group.expires_at.map(|at| output.full_time(at)));
    fields.add("disks", count_and_size(group));
    fields.add_some("tags", Some(render::tags(&group.tags)));
    let mut columns = Columns::new(&[
        Heading::Left("DISK"),
        Heading::Left("SNAPSHOT"),
        Heading::Left("ID"),
        Heading::Right("SIZE"),
        Heading::Right("EXCLUSIVE"),
    ]);
    for member in &group.members {
        let row = match &member.snapshot {
            Some(snapshot) => [
                disk(member).into(),
                snapshot.name.clone().into(),
                snapshot.id.clone().into(),
                render::bytes(snapshot.size),
                render::bytes(snapshot.exclusive_bytes),
            ],
            None => [
                disk(member).into(),
                Text::Alarm("deleted since".to_owned()),
                member.snapshot_id.clone().into(),
                "".into(),
                "".into(),
            ],
        };
        columns.row(row);
    }
    format!("{}\n\n{}", fields.render(output), columns.render(output))
}
