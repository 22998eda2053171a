//! `rowctl disk export` and `import`: the bytes of a disk, through NBD.
//!
//! Invariants: as in `commands/file.rs`.
//! Absent: files and formats (`commands/file.rs`).

use rowd_proto::{DiskCreate, DiskShow, ErrorKind, SnapshotShow};

use super::super::{Context, file};
use super::{Export, Import};
use crate::client::Client;
use crate::error::Result;

pub(super) fn export(args: &Export, context: &Context) -> Result<()> {
    let name = export_name(&mut context.client()?, &args.source)?;
    file::export(&name, &args.to, context)
}

/// The name under which the daemon exports a disk or snapshot over NBD.
fn export_name(client: &mut Client, source: &str) -> Result<String> {
    if !source.contains('@') {
        let disk = client.call(&DiskShow { disk: source.to_owned() });
        match disk {
            // Perhaps the id of a snapshot; if it is not, the words about disks are the better
            // ones.
            Err(failure) if failure.kind() == Some(ErrorKind::NotFound) => {
                return snapshot_export(client, source).map_err(|_| failure);
            }
            disk => return disk.map(|disk| disk.name),
        }
    }
    snapshot_export(client, source)
}

fn snapshot_export(client: &mut Client, source: &str) -> Result<String> {
    let snapshot = client.call(&SnapshotShow { snapshot: source.to_owned() })?;
    let disk = snapshot.disk_name.unwrap_or(snapshot.disk_id);
    Ok(format!("{disk}@{}", snapshot.name))
}

pub(super) fn import(args: Import, context: &Context) -> Result<()> {
    let Import { name, file, format, size, about, encrypted } = args;
    let source = file::Import::open(&file, format)?;
    let (description, tags) = about.parts();
    let request = DiskCreate { name, description, tags, encrypted, ..DiskCreate::default() };
    let disk = source.make_disk(request, size.map(|size| size.0), context)?;
    super::print(&super::show(&mut context.client()?, &disk.id)?, context)
}
