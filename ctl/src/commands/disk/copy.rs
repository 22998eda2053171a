//! `rowctl disk export` and `import`: the bytes of a disk, through NBD.
//!
//! Invariants: the file is opened by this process, so the caller's own permissions decide; an
//! import that fails leaves no disk behind.
//! Absent: the copying itself (`transfer`).

use std::io::{self, IsTerminal};
use std::path::Path;

use rowd_proto::{Disk, DiskCreate, DiskDelete, DiskShow, ErrorKind, SnapshotShow};
use serde::Serialize;

use crate::client::Client;
use crate::error::{Failure, Result};
use crate::nbd::Nbd;
use crate::progress::Progress;
use crate::transfer::{self, Interrupt, Source, Target};
use rowd_proto::size;

use super::super::{Context, collect_tags};
use super::{Export, FileFormat, Import};

/// Disks are made of whole blocks.
const BLOCK: u64 = 4096;

/// The result of an export.
#[derive(Debug, Serialize)]
struct Exported<'a> {
    export: &'a str,
    file: &'a Path,
    size: u64,
    /// Bytes that are not zeros.
    data_bytes: u64,
}

pub(super) fn export(args: &Export, context: &Context) -> Result<()> {
    match args.format {
        FileFormat::Raw => {}
    }
    let to_stdout = args.file.as_os_str() == "-";
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::invalid("a disk on the terminal is of no use")
            .hint("name a file, or pipe the output into something"));
    }
    let name = export_name(&mut context.client()?, &args.source)?;
    let interrupt = Interrupt::install()?;
    let mut nbd = Nbd::connect(&context.sockets.nbd, &name)?;
    let mut progress = Progress::new(format!("exporting {name}"), context.output.quiet);
    let target = if to_stdout {
        Target::Stdout
    } else {
        Target::File { path: args.file.clone(), force: args.force }
    };
    let data_bytes = transfer::export(&mut nbd, &target, &mut progress, &interrupt)?;
    drop(progress);
    let size = nbd.size();
    nbd.close();
    if to_stdout {
        return Ok(());
    }
    let done = Exported { export: &name, file: &args.file, size, data_bytes };
    context.output.object(&done, &name, |_| {
        let (size, data) = (size::human(size), size::human(data_bytes));
        format!("{name} is in {}: {size}, of which {data} are data", args.file.display())
    })
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
    let source = Source::open(&args.file)?;
    let size = disk_size(source.size, args.size.map(|size| size.0))?;
    let interrupt = Interrupt::install()?;
    let mut client = context.client()?;
    let disk = client.call(&DiskCreate {
        name: args.name,
        size: Some(size),
        from: None,
        description: args.description,
        tags: collect_tags(args.tags),
        ..DiskCreate::default()
    })?;
    if let Err(failure) = fill(&disk, &source, context, &interrupt) {
        return Err(take_back(&disk, context, failure));
    }
    super::print(&super::show(&mut client, &disk.id)?, context)
}

/// Size of the disk for a file of this size.
fn disk_size(file: u64, asked: Option<u64>) -> Result<u64> {
    let needed = file.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
    match asked {
        Some(asked) if asked < needed => {
            let (asked, needed) = (size::human(asked), size::human(needed));
            Err(Failure::invalid(format!("a disk of {asked} does not hold a file of {needed}")))
        }
        Some(asked) => Ok(asked),
        None if needed == 0 => {
            Err(Failure::invalid("the file is empty").hint("give the disk a size with --size"))
        }
        None => Ok(needed),
    }
}

fn fill(disk: &Disk, source: &Source, context: &Context, interrupt: &Interrupt) -> Result<()> {
    let mut nbd = Nbd::connect(&context.sockets.nbd, &disk.name)?;
    if nbd.size() < source.size || nbd.is_read_only() {
        let message = format!("the export of {} does not take the file", disk.name);
        return Err(Failure::new(ErrorKind::Internal, message));
    }
    let mut progress = Progress::new(format!("importing {}", disk.name), context.output.quiet);
    transfer::import(source, &mut nbd, &mut progress, interrupt)?;
    nbd.close();
    Ok(())
}

/// Deletes the disk of a failed import, by a new connection: the old one may be part of the
/// failure.
fn take_back(disk: &Disk, context: &Context, failure: Failure) -> Failure {
    let request = DiskDelete { disk: disk.id.clone(), force: true };
    match context.client().and_then(|mut client| client.call(&request)) {
        Ok(_) => failure.context("the import failed, and its disk is deleted again"),
        Err(_) => failure
            .context("the import failed")
            .hint(format!("the half-filled disk is still there: rowctl disk delete {}", disk.id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_holds_its_file_in_whole_blocks() {
        assert_eq!(disk_size(1, None), Ok(4096));
        assert_eq!(disk_size(4096, None), Ok(4096));
        assert_eq!(disk_size(4097, Some(12288)), Ok(12288));
        assert_eq!(disk_size(0, Some(4096)), Ok(4096));
        assert_eq!(disk_size(4097, Some(4097)).unwrap_err().kind(), Some(ErrorKind::Invalid));
        assert_eq!(disk_size(0, None).unwrap_err().kind(), Some(ErrorKind::Invalid));
    }
}
