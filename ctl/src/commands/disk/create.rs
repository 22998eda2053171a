//! `rowctl disk create`: a disk, blank or of a snapshot, an image or a copy.
//!
//! Invariants: an option that does not fit what the disk is made of is refused.
//! Absent: making a disk of a file (`copy.rs`).

use clap::Args;
use rowd_proto::size::Size;
use rowd_proto::{CopyRestore, Disk, DiskCreate, ErrorKind, ImageDeploy, ImageShow};

use super::super::Context;
use super::super::args::About;
use super::super::image::remote;
use super::super::policy::{self, Protection};
use super::super::snapshot::copy_meant;
use super::{print, print_all};
use crate::client::Client;
use crate::error::{Failure, Outcome, Result};

#[derive(Args, Debug)]
pub struct Create {
    /// The name, which is also that of the NBD export
    name: String,
    /// Size, as in 20GiB; may be left out with --from
    #[arg(long, required_unless_present = "from")]
    size: Option<Size>,
    /// Start as this snapshot, or as the system disk of this image or family of images, or this copy
    #[arg(long, value_name = "SNAPSHOT|IMAGE|COPY")]
    from: Option<String>,
    /// Make the data disks of the image too, as NAME-data1 and so on
    #[arg(long, requires = "from", conflicts_with = "size")]
    with_data: bool,
    /// The repository that has the copy, or the image
    #[arg(long, value_name = "REPOSITORY", requires = "from")]
    repo: Option<String>,
    #[command(flatten)]
    about: About,
    /// The instance whose disk it is; left out: local, this host
    #[arg(long)]
    instance: Option<String>,
    /// Store it as ciphertext, with a key of its own
    #[arg(long, conflicts_with = "with_data")]
    encrypted: bool,
    #[command(flatten)]
    protection: Protection,
    /// Of a copy: fetch all of it, and return when the disk has all its contents
    #[arg(long, requires = "from")]
    full: bool,
}

pub fn create(args: Create, context: &Context) -> Result<Outcome> {
    let Create { name, size, from, repo, with_data, about, instance, encrypted, protection, full } =
        args;
    let (size, (description, tags)) = (size.map(|size| size.0), about.parts());
    let is_copy = from.as_deref().is_some_and(super::super::copy::is_copy);
    if let Some((image, repo)) = from.clone().zip(repo.clone()).filter(|_| !is_copy) {
        protection.refuse_for_copy()?;
        if full {
            let hint = "disks of an image in a repository always have all their contents";
            return Err(Failure::invalid("--full is for disks made of copies").hint(hint));
        }
        let deploy = remote::Deploy { image, repo, name, with_data, description, tags, instance };
        return remote::deploy(&deploy, context);
    }
    let mut client = context.client()?;
    let meant = match from.as_deref() {
        Some(copy) if is_copy => Some((copy.to_owned(), repo)),
        Some(it) => copy_meant(&mut client, it)?,
        None => None,
    };
    if let Some((copy, repo)) = meant {
        protection.refuse_for_copy()?;
        let request =
            CopyRestore { copy, repo, name, size, description, tags, instance, encrypted, full };
        return super::super::copy::restore(&request, context);
    }
    if full {
        let hint = "a disk of a snapshot or an image that is here has all its contents at once";
        return Err(Failure::invalid("--full is for disks made of copies").hint(hint));
    }
    if let Some(image) = from.clone().filter(|_| with_data) {
        let request = ImageDeploy { image, name, description, tags, instance };
        let disks = client.call(&request)?.disks;
        return print_all(&disks, context).map(|()| Outcome::Done);
    }
    let request = DiskCreate {
        name,
        size,
        from,
        description,
        tags,
        instance,
        encrypted,
        policy: protection.policy,
        delete_auto_snapshot: protection.delete_auto_snapshot,
    };
    let disk = client.call(&request)?;
    print(&disk, context)?;
    policy::warn_without(&disk, context);
    tell_of_data(&disk, &mut client, context)?;
    Ok(Outcome::Done)
}

/// That the image of a new disk has more disks than that.
fn tell_of_data(disk: &Disk, client: &mut Client, context: &Context) -> Result<()> {
    let Some(image) = &disk.image else { return Ok(()) };
    let image = match client.call(&ImageShow { image: image.id.clone() }) {
        // Deleted this instant.
        Err(failure) if failure.kind() == Some(ErrorKind::NotFound) => return Ok(()),
        image => image?,
    };
    let count = image.disks.len().saturating_sub(1);
    if count > 0 {
        context.output.remark(&format!(
            "image {} has data disks too ({count}); --with-data makes them",
            image.name
        ));
    }
    Ok(())
}
