//! `rowctl instance`: who uses the disks: this host, or virtual machines with a guest agent.
//!
//! Invariants: an instance that has disks goes only when the user agrees that they become local.
//! Absent: what happens in a machine; giving it a disk, which is `rowctl disk set --instance`.

use clap::{Args, Subcommand};
use rowd_proto::{Instance, InstanceAdd, InstanceList, InstanceRemove, InstanceSet, InstanceShow};

use crate::client::Client;
use crate::confirm::confirm;
use crate::error::{Outcome, Result};
use crate::render::{self, Columns, Fields, Heading, Output};

use super::Context;
use super::args::About;
use super::filter::Filter;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Add a virtual machine that uses disks
    #[command(after_help = "Examples:
  rowctl instance add web1 --qga /run/web1/qga.sock
  rowctl disk set data1 --instance web1

The socket is that of its QEMU guest agent on this host. With it file systems in the machine
can be frozen for a snapshot. This host is the instance 'local', which has all other disks.")]
    Add(Add),
    /// List instances, with this host first
    #[command(visible_alias = "ls", after_help = "Example:\n  rowctl instance list")]
    List {
        #[command(flatten)]
        filter: Filter,
    },
    /// Show one instance and its disks
    #[command(after_help = "Example:\n  rowctl instance show web1")]
    Show {
        /// Name or id
        instance: String,
    },
    /// Change properties of an instance
    #[command(after_help = "Examples:
  rowctl instance set web1 --qga /run/web1-new/qga.sock
  rowctl instance set web1 --qga ''              it has no guest agent any more")]
    Set(Set),
    /// Remove an instance; it must have no disks
    #[command(
        visible_alias = "rm",
        after_help = "Examples:
  rowctl instance remove web1
  rowctl instance remove web1 --force --yes      its disks become local"
    )]
    Remove(Remove),
}

#[derive(Args, Debug)]
pub struct Add {
    name: String,
    /// Socket of the QEMU guest agent, an absolute path on this host
    #[arg(long, value_name = "SOCKET")]
    qga: Option<String>,
    #[command(flatten)]
    about: About,
}

#[derive(Args, Debug)]
pub struct Set {
    /// Name or id
    instance: String,
    #[command(flatten)]
    change: Change,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
struct Change {
    #[arg(long)]
    name: Option<String>,
    /// Socket of the QEMU guest agent; an empty text for none
    #[arg(long, value_name = "SOCKET")]
    qga: Option<String>,
    #[arg(long)]
    description: Option<String>,
}

#[derive(Args, Debug)]
pub struct Remove {
    /// Name or id
    instance: String,
    /// Give the disks it has to this host
    #[arg(long)]
    force: bool,
    /// Do not ask before that
    #[arg(short, long)]
    yes: bool,
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    match verb {
        Verb::Add(Add { name, qga, about }) => {
            let (description, tags) = about.parts();
            let request = InstanceAdd { name, qga, description, tags };
            print(&client.call(&request)?, context)?;
        }
        Verb::List { filter } => {
            let mut all = client.call(&InstanceList {})?.instances;
            filter.leave(&mut all, |one| Some(&one.tags));
            context.output.list(&all, |one| one.id.clone(), |output| table(&all, output))?;
        }
        Verb::Show { instance } => print(&show(&mut client, instance)?, context)?,
        Verb::Set(Set { instance, change: Change { name, qga, description } }) => {
            print(&client.call(&InstanceSet { instance, name, qga, description })?, context)?;
        }
        Verb::Remove(args) => remove(args, &mut client, context)?,
    }
    Ok(Outcome::Done)
}

fn remove(args: Remove, client: &mut Client, context: &Context) -> Result<()> {
    let instance = show(client, args.instance)?;
    if args.force && !instance.disks.is_empty() {
        let disks = names(&instance);
        confirm(args.yes, &format!("remove instance {} and make {disks} local", instance.name))?;
    }
    let done = client.call(&InstanceRemove { instance: instance.id, force: args.force })?;
    context.output.object(&done, &done.id, |_| match done.disks {
        0 => format!("instance {} is removed", done.name),
        count => format!("instance {} is removed; {count} disks are local now", done.name),
    })
}

/// Asks the daemon about an instance.
fn show(client: &mut Client, instance: String) -> Result<Instance> {
    client.call(&InstanceShow { instance })
}

fn print(instance: &Instance, context: &Context) -> Result<()> {
    context.output.object(instance, &instance.id, |output| fields(instance, output))
}

fn names(instance: &Instance) -> String {
    instance.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn fields(instance: &Instance, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("name", instance.name.clone());
    fields.add("id", instance.id.clone());
    fields.add_some("description", Some(instance.description.clone()));
    fields.add_some("created", instance.created_at.map(|at| output.full_time(at)));
    fields.add_some("guest agent", instance.qga.clone());
    fields.add_some("disks", Some(names(instance)));
    fields.add_some("policy", instance.policy.as_ref().map(|policy| policy.name.clone()));
    fields.add_some("tags", Some(render::tags(&instance.tags)));
    fields.render(output)
}

fn table(instances: &[Instance], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("INSTANCE"),
        Heading::Left("ID"),
        Heading::Left("GUEST AGENT"),
        Heading::Left("DISKS"),
    ]);
    for instance in instances {
        columns.row([
            instance.name.clone().into(),
            instance.id.clone().into(),
            instance.qga.clone().unwrap_or_default().into(),
            names(instance).into(),
        ]);
    }
    columns.render(output)
}
