//! `rowctl image copy`, and images in repositories: list, use, delete.
//!
//! Invariants: an image is put into a repository when all its snapshots are there; of the disks of an image all are
//! made or none.
//! Absent: what is done with one copy (`commands/copy.rs`).

use clap::Args;
use rowd_proto::{
    CopyCreate, CopyList, CopyRestore, CopyShow, CopyStatus, Disk, DiskCreate, DiskDelete,
    DiskShow, ErrorKind, ImageAssemble, ImagePublish, ImagePublished, ImageWithdraw, RepoImage,
    Tags,
};

use super::super::filter::Filter;
use super::super::{Context, job, wait};
use crate::client::Client;
use crate::confirm::confirm;
use crate::error::{Failure, Outcome, Result};
use crate::render::{self, Columns, Heading, Output};

#[derive(Args, Debug)]
pub struct Copy {
    /// Id or name
    image: String,
    /// The repository
    #[arg(long, value_name = "REPOSITORY")]
    to: String,
}

/// A disk, or all disks, to make of an image in a repository.
#[derive(Debug)]
pub struct Deploy {
    pub image: String,
    pub repo: String,
    pub name: String,
    pub with_data: bool,
    pub description: String,
    pub tags: Tags,
    pub instance: Option<String>,
}

pub(super) fn copy(args: Copy, client: &mut Client, context: &Context) -> Result<Outcome> {
    let Copy { image, to } = args;
    let found = super::show(client, image)?;
    let snapshots: Vec<String> =
        found.disks.iter().filter_map(|disk| disk.snapshot_id.clone()).collect();
    for snapshot in snapshots {
        let copies = client.call_patiently(&CopyList { repo: Some(to.clone()) })?.copies;
        let fits = |status: CopyStatus| {
            copies.iter().find(|one| one.snapshot_id == snapshot && one.status == status)
        };
        if fits(CopyStatus::Accomplished).is_some() {
            continue;
        }
        let under_way = match fits(CopyStatus::Progressing) {
            Some(copy) => copy.clone(),
            None => {
                let request = CopyCreate { snapshot, repo: to.clone(), ..CopyCreate::default() };
                client.call_patiently(&request)?
            }
        };
        let (id, repo) = (under_way.id.clone(), Some(to.clone()));
        let ended = wait::until(&format!("copy {id}"), None, || {
            let copy = client.call_patiently(&CopyShow { copy: id.clone(), repo: repo.clone() })?;
            Ok((copy.status != CopyStatus::Progressing).then_some(copy))
        })?;
        if ended.status != CopyStatus::Accomplished {
            context.output.remark(&format!("copy {id}: {}", ended.reason.unwrap_or_default()));
            return Ok(Outcome::Ended(ErrorKind::Io));
        }
    }
    let made = client.call_patiently(&ImagePublish { image: found.id, repo: to })?;
    context.output.object(&made, &made.id, |_| {
        format!(
            "image {} is in {}; its copies are kept as long as it is there",
            made.name, made.repo
        )
    })?;
    Ok(Outcome::Done)
}

pub(super) fn assemble(
    request: &ImageAssemble,
    client: &mut Client,
    context: &Context,
) -> Result<()> {
    let made = client.call_patiently(request)?;
    context.output.object(&made, &made.id, |_| {
        let (name, repo) = (&made.name, &made.repo);
        format!(
            "image {name} is in {repo}; its copies are kept as long as it is there\n\
             disks of it: rowctl disk create NAME --from {name} --repo {repo}"
        )
    })
}

pub(super) fn list(
    repo: String,
    filter: &Filter,
    client: &mut Client,
    context: &Context,
) -> Result<()> {
    let mut images = client.call_patiently(&ImagePublished { repo })?.images;
    filter.leave(&mut images, |one| Some(&one.tags));
    context.output.list(&images, |one| one.id.clone(), |output| table(&images, output))
}

pub(super) fn delete(
    image: &str,
    repo: String,
    yes: bool,
    client: &mut Client,
    context: &Context,
) -> Result<()> {
    let found = find(client, image, repo)?;
    confirm(yes, &format!("take image {} out of {}", found.name, found.repo))?;
    let request = ImageWithdraw { image: found.id.clone(), repo: found.repo.clone() };
    client.call_patiently(&request)?;
    context.output.object(&found, &found.id, |_| {
        format!("image {} is out of {}; its copies are kept", found.name, found.repo)
    })
}

/// Makes the system disk of an image in a repository, or all its disks, and waits until they have their contents.
pub fn deploy(deploy: &Deploy, context: &Context) -> Result<Outcome> {
    let mut client = context.client()?;
    let image = find(&mut client, &deploy.image, deploy.repo.clone())?;
    let count = if deploy.with_data { image.disks.len() } else { 1 };
    let mut made: Vec<Disk> = Vec::new();
    let mut jobs = Vec::new();
    for number in 0..count {
        match make(&mut client, deploy, &image, number) {
            Ok((disk, job)) => {
                made.push(disk);
                jobs.extend(job);
            }
            Err(failure) => return take_back(&mut client, &made).and(Err(failure)),
        }
    }
    for id in jobs {
        let ended = job::finish(&mut client, &id, None, context)?;
        if job::outcome(&ended) != Outcome::Done {
            let outcome = job::end(&ended, context)?;
            take_back(&mut client, &made)?;
            return Ok(outcome);
        }
    }
    let shown = made.iter().map(|disk| client.call(&DiskShow { disk: disk.id.clone() }));
    let shown = shown.collect::<Result<Vec<_>>>()?;
    match (&shown[..], deploy.with_data) {
        ([one], false) => super::super::disk::print(one, context)?,
        _ => context.output.list(
            &shown,
            |one| one.id.clone(),
            |_| {
                let names: Vec<&str> = shown.iter().map(|disk| disk.name.as_str()).collect();
                format!("disks of image {}: {}", image.name, names.join(", "))
            },
        )?,
    }
    Ok(Outcome::Done)
}

/// Makes one disk of an image; with the job that fills it.
fn make(
    client: &mut Client,
    deploy: &Deploy,
    image: &RepoImage,
    number: usize,
) -> Result<(Disk, Option<String>)> {
    let Deploy { description, tags, instance, .. } = deploy;
    let (description, tags, instance) = (description.clone(), tags.clone(), instance.clone());
    let name = match number {
        0 => deploy.name.clone(),
        _ => format!("{}-data{number}", deploy.name),
    };
    let part = &image.disks[number];
    let Some(copy) = part.copy.clone() else {
        let (size, encrypted) = (Some(part.size), part.encrypted);
        let request = DiskCreate {
            name,
            size,
            description,
            tags,
            instance,
            encrypted,
            ..DiskCreate::default()
        };
        return Ok((client.call(&request)?, None));
    };
    let repo = Some(image.repo.clone());
    let request = CopyRestore {
        copy,
        repo,
        name,
        description,
        tags,
        instance,
        full: true,
        ..CopyRestore::default()
    };
    let made = client.call_patiently(&request)?;
    Ok((made.disk, Some(made.job.id)))
}

/// Deletes disks of an image that is not made whole.
fn take_back(client: &mut Client, made: &[Disk]) -> Result<()> {
    for disk in made {
        let request = DiskDelete { disk: disk.id.clone(), force: false, now: true };
        match client.call(&request) {
            // One whose filling failed is gone already.
            Err(failure) if failure.kind() == Some(ErrorKind::NotFound) => {}
            done => drop(done?),
        }
    }
    Ok(())
}

/// The image of a repository that an id, a unique beginning of one, or a name means.
fn find(client: &mut Client, name: &str, repo: String) -> Result<RepoImage> {
    let mut images = client.call_patiently(&ImagePublished { repo: repo.clone() })?.images;
    let is_id = name.starts_with("m-") && name.len() > 3;
    images.retain(|one| one.name == name || (is_id && one.id.starts_with(name)));
    match (images.pop(), images.is_empty()) {
        (Some(image), true) => Ok(image),
        (Some(_), false) => {
            Err(Failure::invalid(format!("several images in {repo} are meant by {name:?}"))
                .hint("say its id"))
        }
        (None, _) => Err(Failure::new(ErrorKind::NotFound, format!("no image {name:?} in {repo}"))
            .hint(format!("see rowctl image list --repo {repo}"))),
    }
}

fn table(images: &[RepoImage], output: &Output) -> String {
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
        let size = image.disks.iter().fold(0u64, |sum, disk| sum.saturating_add(disk.size));
        let encrypted = image.disks.iter().any(|disk| disk.encrypted);
        let notes = [(image.deprecated, "deprecated"), (encrypted, "encrypted")];
        let notes: Vec<&str> = notes.iter().filter(|(is, _)| *is).map(|(_, note)| *note).collect();
        columns.row([
            image.name.clone().into(),
            image.id.clone().into(),
            image.family.clone().unwrap_or_default().into(),
            image.disks.len().to_string().into(),
            render::bytes(size),
            output.time(image.created_at).into(),
            notes.join(", ").into(),
        ]);
    }
    columns.render(output)
}
