//! `rowctl image export` and `import`: the disks of an image as files.
//!
//! Invariants: an import that fails leaves neither a disk nor a snapshot behind, or says what it leaves.
//! Absent: files and formats (`commands/file.rs`).

use rowd_proto::{
    Disk, DiskCreate, DiskDelete, ErrorKind, Image, ImageCreate, ImageList, SnapshotCreate,
    SnapshotDelete,
};

use super::super::{Context, file};
use super::{Export, Import};
use crate::client::Client;
use crate::error::{Failure, Result};

/// The snapshot that an import leaves, of a disk that is gone.
const SNAPSHOT: &str = "imported";

pub(super) fn export(args: Export, client: &mut Client, context: &Context) -> Result<()> {
    let image = super::show(client, args.image)?;
    let number = args.data.map_or(0, usize::from);
    let Some(disk) = image.disks.get(number) else {
        let message = format!("image {} has no data disk {number}", image.name);
        return Err(Failure::new(ErrorKind::NotFound, message)
            .hint(format!("see: rowctl image show {}", image.name)));
    };
    let Some(name) = &disk.snapshot_name else {
        let message = format!("data disk {number} of image {} begins empty", image.name);
        return Err(Failure::invalid(message).hint("there is nothing in it to export"));
    };
    file::export(name, &args.to, context)?;
    let others = image.disks.iter().skip(1).filter(|disk| disk.snapshot_id.is_some()).count();
    if number == 0 && others > 0 {
        context.output.remark(&format!("its data disks ({others}) are exported with --data N"));
    }
    Ok(())
}

pub(super) fn import(args: Import, client: &mut Client, context: &Context) -> Result<()> {
    let Import { file, name, format, encrypted, family, about } = args;
    let source = file::Import::open(&file, format)?;
    refuse_taken(&name, client)?;
    let (description, tags) = about.parts();
    // Named after the image: what is left if this process is killed can be recognised.
    let request = DiskCreate {
        name: format!("{name}-import"),
        description: format!("image {name} is being imported; to be deleted if that has ended"),
        encrypted,
        ..DiskCreate::default()
    };
    let disk = source.make_disk(request, None, context)?;
    let request = ImageCreate { name, family, description, tags, ..ImageCreate::default() };
    let image = match of_disk(&disk, request, context) {
        Ok(image) => image,
        Err(failure) => return Err(file::take_back(&disk, context, failure)),
    };
    context.client()?.call(&DiskDelete { disk: disk.id, force: true, now: true }).map_err(
        |failure| {
            failure
                .context(format!("image {} is made, but not rid of disk {}", image.name, disk.name))
        },
    )?;
    // Its snapshot is called differently now that the disk is gone.
    super::print(&super::show(client, image.id)?, context)
}

/// Found out before a long copy, not after it.
fn refuse_taken(name: &str, client: &mut Client) -> Result<()> {
    let images = client.call(&ImageList {})?.images;
    if images.iter().any(|image| image.name == name || image.family.as_deref() == Some(name)) {
        let message = format!("an image or a family {name:?} exists");
        return Err(Failure::new(ErrorKind::Exists, message).hint("choose another name"));
    }
    Ok(())
}

/// Makes the image of a disk that has been filled; on failure the disk has no snapshot.
fn of_disk(disk: &Disk, request: ImageCreate, context: &Context) -> Result<Image> {
    // A new connection: the copy may have taken hours.
    let mut client = context.client()?;
    let snapshot = client.call(&SnapshotCreate {
        disk: disk.id.clone(),
        name: Some(SNAPSHOT.to_owned()),
        description: format!("image {} was made of it", request.name),
        ..SnapshotCreate::default()
    })?;
    let snapshot = snapshot.snapshot.id;
    client.call(&ImageCreate { from: Some(snapshot.clone()), ..request }).map_err(|failure| {
        let taken_back = client.call(&SnapshotDelete { snapshot: snapshot.clone(), force: true });
        match taken_back {
            Ok(_) => failure,
            Err(_) => {
                failure.hint(format!("its snapshot is left: rowctl snapshot delete {snapshot}"))
            }
        }
    })
}
