//! The methods of images.
//!
//! Invariants: as in `handlers.rs`.
//! Absent: what the other methods do.

use std::sync::Arc;

use rowd_proto as proto;
use rowd_proto::Time;

use super::convert::disk;
use super::resolve;
use crate::engine::Engine;
use crate::engine::api::{
    Actor, ImageChange, ImageDeploy, ImageDiskInfo, ImageInfo, ImageSource, ImageSpec,
};
use crate::error::{Error, Result};
use crate::units::DiskId;

pub(super) fn create(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::ImageCreate,
) -> Result<proto::Image> {
    let source = source(engine, &ask)?;
    let proto::ImageCreate { name, description, family, blank, tags, .. } = ask;
    engine.image_create(by, ImageSpec { name, description, family, source, blank, tags }).map(image)
}

/// What an image is to be made of, with names turned into ids.
fn source(engine: &Engine, ask: &proto::ImageCreate) -> Result<ImageSource> {
    match (&ask.from, &ask.instance) {
        (Some(from), None) if ask.system.is_none() => Ok(ImageSource::Snapshots {
            system: resolve::snapshot(engine, from)?,
            data: ask
                .data
                .iter()
                .map(|name| resolve::snapshot(engine, name))
                .collect::<Result<_>>()?,
        }),
        (None, Some(instance)) if ask.data.is_empty() => Ok(ImageSource::Instance {
            instance: resolve::instance(engine, instance)?,
            system: ask.system.as_ref().map(|name| resolve::disk(engine, name)).transpose()?,
        }),
        (None, None) => Err(Error::invalid("an image needs a snapshot of a system disk")
            .hint("name it as `from`, or an `instance` whose disks are all taken")),
        _ => Err(Error::invalid("an image is made either of snapshots or of an instance")
            .hint("`data` goes with `from`, `system` goes with `instance`")),
    }
}

pub(super) fn list(engine: &Arc<Engine>, _: Actor, _: proto::ImageList) -> Result<proto::Images> {
    Ok(proto::Images { images: engine.images().into_iter().map(image).collect() })
}

pub(super) fn show(engine: &Arc<Engine>, _: Actor, ask: proto::ImageShow) -> Result<proto::Image> {
    engine.image(&resolve::image_or_family(engine, &ask.image)?).map(image)
}

pub(super) fn set(engine: &Arc<Engine>, by: Actor, ask: proto::ImageSet) -> Result<proto::Image> {
    let id = resolve::image(engine, &ask.image)?;
    let family = ask.family.map(|family| Some(family).filter(|family| !family.is_empty()));
    let proto::ImageSet { name, description, deprecated, .. } = ask;
    engine.image_change(by, &id, ImageChange { name, description, family, deprecated }).map(image)
}

pub(super) fn delete(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::ImageDelete,
) -> Result<proto::ImageDeleted> {
    let id = resolve::image(engine, &ask.image)?;
    let name = engine.image(&id)?.name;
    let snapshots = engine.image_delete(by, &id, ask.snapshots, ask.force)?;
    Ok(proto::ImageDeleted { id: id.to_string(), name, snapshots })
}

pub(super) fn deploy(
    engine: &Arc<Engine>,
    by: Actor,
    ask: proto::ImageDeploy,
) -> Result<proto::Disks> {
    let image = resolve::image_or_family(engine, &ask.image)?;
    let instance = ask.instance.map(|name| resolve::instance(engine, &name)).transpose()?;
    let proto::ImageDeploy { name, description, tags, .. } = ask;
    let deploy = ImageDeploy { image, name, description, tags, instance };
    let disks = engine.image_deploy(by, deploy)?.into_iter().map(disk).collect();
    Ok(proto::Disks { disks })
}

fn image(info: ImageInfo) -> proto::Image {
    let part = |(number, ImageDiskInfo { size, snapshot, encrypted })| {
        let role = if number == 0 { proto::ImageRole::System } else { proto::ImageRole::Data };
        let (snapshot_id, snapshot_name) =
            snapshot.map(|(id, name)| (id.to_string(), name)).unzip();
        proto::ImageDisk { role, size, snapshot_id, snapshot_name, encrypted }
    };
    proto::Image {
        id: info.id.to_string(),
        name: info.name,
        description: info.description,
        family: info.family,
        deprecated: info.deprecated,
        current: info.current,
        created_at: Time::from_unix(info.created_at),
        total_size: info.disks.iter().fold(0, |sum, disk| sum.saturating_add(disk.size)),
        disks: info.disks.into_iter().enumerate().map(part).collect(),
        made_disks: info.made_disks.iter().map(DiskId::to_string).collect(),
        tags: info.tags,
    }
}
