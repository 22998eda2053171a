//! The methods of images in repositories.
//!
//! Invariants: as in `handlers.rs`.
//! Absent: images of this host (`images.rs`).

use rowd_proto as proto;
use rowd_proto::Time;

use super::{Services, resolve};
use crate::engine::api::Actor;
use crate::error::{ErrorKind, Result};
use crate::units::{CopyId, ImageId, SnapshotId};
use crate::vault::images::{Assembly, Part, PartOf, RepoImage};

pub(super) fn publish(
    services: &Services,
    by: Actor,
    ask: proto::ImagePublish,
) -> Result<proto::RepoImage> {
    let id = resolve::image(&services.engine, &ask.image)?;
    let made = services.vault.image_publish(by, &id, &ask.repo)?;
    Ok(image(made, &ask.repo))
}

pub(super) fn list(
    services: &Services,
    _: Actor,
    ask: proto::ImagePublished,
) -> Result<proto::RepoImages> {
    let found = services.vault.images(&ask.repo)?;
    Ok(proto::RepoImages { images: found.into_iter().map(|one| image(one, &ask.repo)).collect() })
}

pub(super) fn withdraw(
    services: &Services,
    by: Actor,
    ask: proto::ImageWithdraw,
) -> Result<proto::Done> {
    let id = ImageId::from(ask.image.as_str());
    services.vault.image_withdraw(by, &id, &ask.repo)?;
    Ok(proto::Done {})
}

pub(super) fn assemble(
    services: &Services,
    by: Actor,
    ask: proto::ImageAssemble,
) -> Result<proto::RepoImage> {
    let proto::ImageAssemble { repo, name, from, data, blank, family, description, tags } = ask;
    let parts = std::iter::once(from).chain(data).map(|name| part(services, name));
    let parts = parts.collect::<Result<_>>()?;
    let spec = Assembly { repo, name, parts, blank, family, description, tags };
    let made = services.vault.image_assemble(by, &spec)?;
    Ok(image(made, &spec.repo))
}

/// What a name means among copies: a copy, or a snapshot, which need not be known here.
fn part(services: &Services, name: String) -> Result<PartOf> {
    if name.starts_with(CopyId::PREFIX) {
        return Ok(PartOf::Copy(name));
    }
    match resolve::snapshot(&services.engine, &name) {
        Err(error)
            if error.kind() == ErrorKind::NotFound && name.starts_with(SnapshotId::PREFIX) =>
        {
            Ok(PartOf::Snapshot(SnapshotId::from(name.as_str())))
        }
        found => found.map(PartOf::Snapshot),
    }
}

fn image(image: RepoImage, repo: &str) -> proto::RepoImage {
    let disk = |Part { size, encrypted, contents }: Part| {
        let (copy, snapshot_name) =
            contents.map(|contents| (contents.copy.to_string(), contents.name)).unzip();
        proto::RepoImageDisk { size, encrypted, copy, snapshot_name }
    };
    proto::RepoImage {
        id: image.id.to_string(),
        repo: repo.to_owned(),
        name: image.name,
        description: image.description,
        family: image.family,
        deprecated: image.deprecated,
        created_at: Time::from_unix(image.created_at),
        writer: image.writer,
        disks: image.disks.into_iter().map(disk).collect(),
        tags: image.tags,
    }
}
