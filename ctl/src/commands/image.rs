//! `rowctl image`: templates of disks, made of snapshots.
//!
//! Invariants: nothing is deleted before the image is known and the user agrees; the question says whether
//! its snapshots go too.
//! Absent: making disks of an image, which is `rowctl disk create --from`; files (`copy.rs`).

use clap::{Args, Subcommand};
use rowd_proto::size::{self, Size};
use rowd_proto::{
    Image, ImageAssemble, ImageCreate, ImageDelete, ImageDisk, ImageList, ImageRole, ImageSet,
    ImageShow,
};

use super::Context;
use super::args::{About, Consent};
use super::filter::Filter;
use super::snapshot::would_free;
use crate::client::Client;
use crate::confirm::confirm;
use crate::error::{Failure, Outcome, Result};
use crate::render::{self, Columns, Fields, Heading, Output};

mod copy;
pub mod remote;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make an image of snapshots, or of an instance as it is now
    #[command(after_help = "Examples:
  rowctl image create debian-12 --from vm1@clean
  rowctl image create web-2 --from vm1@clean --data data1@clean --blank=20GiB --family web
  rowctl image create web-3 --instance web1 --system vm1
  rowctl image create web-4 --repo backup --from c-4k2m9 --data data1@clean

With --repo the image is made of copies, and in their repository only. Else the snapshots are not deleted, nor their blocks copied, as long as the image is there. For an
image at a higher consistency make a group first, and the image of its snapshots:
rowctl group create --instance web1 --consistency app")]
    Create(Create),
    /// List images, oldest first
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  rowctl image list
  rowctl image list --repo backup"
    )]
    List {
        /// Those in this repository
        #[arg(long)]
        repo: Option<String>,
        #[command(flatten)]
        filter: Filter,
    },
    /// Copy an image to a repository, with its snapshots as far as they are not there
    #[command(after_help = "Examples:
  rowctl image copy web-2 --to backup
  rowctl disk create vm1 --from web-2 --repo backup --with-data     on any host that knows the repository

Copying it again brings its name, family and tags there up to date.")]
    Copy(remote::Copy),
    /// Show one image, or the one that a family means
    #[command(after_help = "Example:\n  rowctl image show debian-12")]
    Show {
        /// Id or name, or a family
        image: String,
    },
    /// Change name, description or family of an image
    #[command(after_help = "Examples:
  rowctl image set web-2 --family web
  rowctl image set web-2 --family ''       it is in no family any more")]
    Set(Set),
    /// Leave an image out when its family is asked for; by its name it can still be used
    #[command(after_help = "Example:\n  rowctl image deprecate web-3

The family then means its newest image before that: rowctl disk create vm1 --from web")]
    Deprecate {
        /// Id or name
        image: String,
    },
    /// Take a deprecated image back
    #[command(after_help = "Example:\n  rowctl image restore web-3")]
    Restore {
        /// Id or name
        image: String,
    },
    /// Delete an image; disks that were made from it stay whole
    #[command(
        visible_alias = "rm",
        after_help = "Examples:
  rowctl image delete web-1
  rowctl image delete web-1 --with-snapshots --dry-run
  rowctl image delete web-1 --with-snapshots --yes
  rowctl image delete web-1 --repo backup --yes"
    )]
    Delete(Delete),
    /// Copy a disk of an image to a file
    #[command(after_help = "Examples:
  rowctl image export debian-12 debian-12.qcow2 --format qcow2
  rowctl image export web web-system.img
  rowctl image export web web-data1.img --data 1")]
    Export(Export),
    /// Make an image from a file
    #[command(after_help = "Examples:
  rowctl image import debian-12.qcow2 --format qcow2 debian-12 --family debian
  rowctl image import disk.img --format raw web-1

The format is never guessed. A qcow2 file that needs another one (a backing file or an external
data file) is refused.")]
    Import(Import),
}

#[derive(Args, Debug)]
pub struct Create {
    name: String,
    /// Snapshot of the system disk; with --repo, a copy of one
    #[arg(long, value_name = "SNAPSHOT|COPY", required_unless_present = "instance")]
    from: Option<String>,
    /// Snapshot of a data disk, or a copy of one; may be given several times
    #[arg(long, value_name = "SNAPSHOT|COPY", requires = "from")]
    data: Vec<String>,
    /// Make it in this repository, of copies that are there
    #[arg(long, value_name = "REPOSITORY", requires = "from")]
    repo: Option<String>,
    /// Take all disks of this instance as they are now
    #[arg(long, conflicts_with = "from")]
    instance: Option<String>,
    /// The system disk of the instance, if it has several
    #[arg(long, value_name = "DISK", requires = "instance")]
    system: Option<String>,
    /// One more data disk, which begins empty; may be given several times [default: 5GiB]
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "5GiB")]
    blank: Vec<Size>,
    /// Images that replace each other have one family
    #[arg(long)]
    family: Option<String>,
    #[command(flatten)]
    about: About,
}

#[derive(Args, Debug)]
pub struct Set {
    /// Id or name
    image: String,
    #[command(flatten)]
    change: Change,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
struct Change {
    #[arg(long)]
    name: Option<String>,
    #[arg(long)]
    description: Option<String>,
    /// Empty: in no family
    #[arg(long)]
    family: Option<String>,
}

#[derive(Args, Debug)]
pub struct Delete {
    /// Id or name
    image: String,
    /// Delete its snapshots too
    #[arg(long)]
    with_snapshots: bool,
    /// Its snapshots although disks were made from them or clients read them
    #[arg(long, requires = "with_snapshots")]
    force: bool,
    /// Take it out of this repository; its copies are kept
    #[arg(long, conflicts_with = "with_snapshots")]
    repo: Option<String>,
    /// Only show what would be freed
    #[arg(short = 'n', long, conflicts_with = "repo")]
    dry_run: bool,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Args, Debug)]
pub struct Export {
    /// Id or name, or a family
    image: String,
    #[command(flatten)]
    to: super::file::ExportArgs,
    /// This data disk of it, counted from 1; else the system disk
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    data: Option<u16>,
}

#[derive(Args, Debug)]
pub struct Import {
    /// The file or block device to read
    file: std::path::PathBuf,
    /// The name of the new image
    name: String,
    #[arg(long)]
    format: super::file::FileFormat,
    /// Store it as ciphertext, and so the disks made from it
    #[arg(long)]
    encrypted: bool,
    /// Images that replace each other have one family
    #[arg(long)]
    family: Option<String>,
    #[command(flatten)]
    about: About,
}

pub fn run(verb: Verb, context: &Context) -> Result<Outcome> {
    let client = &mut context.client()?;
    match verb {
        Verb::Create(args) => create(args, client, context)?,
        Verb::List { repo: Some(repo), filter } => remote::list(repo, &filter, client, context)?,
        Verb::Copy(args) => return remote::copy(args, client, context),
        Verb::List { repo: None, filter } => {
            let mut images = client.call(&ImageList {})?.images;
            filter.leave(&mut images, |one| Some(&one.tags));
            context.output.list(&images, |one| one.id.clone(), |output| table(&images, output))?;
        }
        Verb::Show { image } => print(&show(client, image)?, context)?,
        Verb::Set(Set { image, change: Change { name, description, family } }) => {
            let request = ImageSet { image, name, description, family, deprecated: None };
            print(&client.call(&request)?, context)?;
        }
        Verb::Deprecate { image } => mark(image, true, client, context)?,
        Verb::Restore { image } => mark(image, false, client, context)?,
        Verb::Delete(args) => delete(args, client, context)?,
        Verb::Export(args) => copy::export(args, client, context)?,
        Verb::Import(args) => copy::import(args, client, context)?,
    }
    Ok(Outcome::Done)
}

fn create(args: Create, client: &mut Client, context: &Context) -> Result<()> {
    let Create { name, from, data, repo, instance, system, blank, family, about } = args;
    let blank = blank.into_iter().map(|size| size.0).collect();
    let (description, tags) = about.parts();
    match (repo, from) {
        (Some(repo), Some(from)) => {
            let request =
                ImageAssemble { repo, name, from, data, blank, family, description, tags };
            remote::assemble(&request, client, context)?;
        }
        (_, from) => {
            let copy = from.iter().chain(&data).find(|name| super::copy::is_copy(name));
            if let Some(copy) = copy {
                let message = format!("{copy} is a copy: an image of it is made where it is");
                return Err(Failure::invalid(message).hint("name its repository: --repo R"));
            }
            let request = ImageCreate {
                name,
                from,
                data,
                instance,
                system,
                blank,
                family,
                description,
                tags,
            };
            print(&client.call(&request)?, context)?;
        }
    }
    context.output.remark(
        "everything on its disks is in the image: passwords, keys and network settings too",
    );
    Ok(())
}

fn mark(image: String, deprecated: bool, client: &mut Client, context: &Context) -> Result<()> {
    let request = ImageSet { image, deprecated: Some(deprecated), ..ImageSet::default() };
    print(&client.call(&request)?, context)
}

fn delete(args: Delete, client: &mut Client, context: &Context) -> Result<()> {
    let Delete { image, with_snapshots, force, repo, dry_run, consent } = args;
    if let Some(repo) = repo {
        return remote::delete(&image, repo, consent.yes, client, context);
    }
    let found = show(client, image.clone())?;
    if found.family.as_ref() == Some(&image) {
        let message = format!("{image} is a family of images, not one of them");
        return Err(Failure::invalid(message).hint("name the image: rowctl image list"));
    }
    if dry_run {
        let mut snapshots: Vec<String> = Vec::new();
        for id in found.disks.into_iter().filter_map(|disk| disk.snapshot_id) {
            if with_snapshots && !snapshots.contains(&id) {
                snapshots.push(id);
            }
        }
        return would_free(snapshots, client, context);
    }
    let question = match with_snapshots {
        true => format!("delete image {} with its snapshots", found.name),
        false => format!("delete image {}", found.name),
    };
    confirm(consent.yes, &question)?;
    let request = ImageDelete { image: found.id, snapshots: with_snapshots, force };
    let done = client.call(&request)?;
    context.output.object(&done, &done.id, |_| match done.snapshots {
        0 => format!("image {} is deleted; its snapshots are kept", done.name),
        1 => format!("image {} is deleted with its snapshot", done.name),
        count => format!("image {} is deleted with {count} snapshots", done.name),
    })
}

/// Asks the daemon about an image.
fn show(client: &mut Client, image: String) -> Result<Image> {
    client.call(&ImageShow { image })
}

fn print(image: &Image, context: &Context) -> Result<()> {
    context.output.object(image, &image.id, |output| full(image, output))
}

/// What is unusual about an image, or that its family means it.
fn note(image: &Image) -> &'static str {
    match (image.deprecated, image.current) {
        (true, _) => "deprecated",
        (false, true) => "current",
        (false, false) => "",
    }
}

fn table(images: &[Image], output: &Output) -> String {
    let mut columns = Columns::new(&[
        Heading::Left("IMAGE"),
        Heading::Left("ID"),
        Heading::Left("FAMILY"),
        Heading::Right("DISKS"),
        Heading::Right("SIZE"),
        Heading::Left("CREATED"),
        Heading::Left("NOTE"),
    ]);
    for image in images {
        columns.row([
            image.name.clone().into(),
            image.id.clone().into(),
            image.family.clone().unwrap_or_default().into(),
            image.disks.len().to_string().into(),
            render::bytes(image.total_size),
            output.time(image.created_at).into(),
            note(image).into(),
        ]);
    }
    columns.render(output)
}

fn full(image: &Image, output: &Output) -> String {
    let mut fields = Fields::new();
    fields.add("name", image.name.clone());
    fields.add("id", image.id.clone());
    fields.add_some("description", Some(image.description.clone()));
    fields.add_some(
        "family",
        image.family.as_ref().map(|family| match note(image) {
            "" => family.clone(),
            note => format!("{family} ({note})"),
        }),
    );
    fields.add("created", output.full_time(image.created_at));
    fields.add("size", size::human(image.total_size));
    fields.add_some("disks made", Some(image.made_disks.join(", ")));
    fields.add_some("tags", Some(render::tags(&image.tags)));
    let mut columns = Columns::new(&[
        Heading::Left("DISK"),
        Heading::Right("SIZE"),
        Heading::Left("SNAPSHOT"),
        Heading::Left("ID"),
        Heading::Left("NOTE"),
    ]);
    for (number, disk) in image.disks.iter().enumerate() {
        let ImageDisk { role, size, snapshot_id, snapshot_name, encrypted } = disk;
        let role = match role {
            ImageRole::System => "system".to_owned(),
            ImageRole::Data => format!("data {number}"),
        };
        let from = snapshot_name.clone().unwrap_or_else(|| "empty".to_owned());
        let id = snapshot_id.clone().unwrap_or_default();
        let note = if *encrypted { "encrypted" } else { "" };
        columns.row([role.into(), render::bytes(*size), from.into(), id.into(), note.into()]);
    }
    format!("{}\n\n{}", fields.render(output), columns.render(output))
}
