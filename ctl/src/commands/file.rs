//! Files of disks: the formats, and their way from and to an export.
//!
//! Invariants: files are opened by this process or a child of it, so the caller's own permissions decide; a
//! format is what the caller says and never guessed; a disk whose import failed is gone again.
//! Absent: the copying itself (`transfer`).

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use rowd_proto::{Disk, DiskCreate, DiskDelete, ErrorKind, size};
use serde::Serialize;

use super::Context;
use crate::error::{Failure, Result};
use crate::nbd::Nbd;
use crate::progress::Progress;
use crate::transfer::{self, Interrupt, Source, Target, qcow2};

/// Disks are made of whole blocks.
const BLOCK: u64 = 4096;

/// File formats of disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// The bytes of the disk, with holes for zeros
    #[default]
    Raw,
    /// The format of QEMU; needs qemu-img
    Qcow2,
}

/// Where an export goes.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The file to make; - is the standard output, for raw
    file: PathBuf,
    #[arg(long, default_value = "raw")]
    format: FileFormat,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

/// The result of an export.
#[derive(Debug, Serialize)]
struct Exported<'a> {
    export: &'a str,
    file: &'a Path,
    format: FileFormat,
    size: u64,
    /// Bytes that are not zeros; qemu-img does not tell.
    data_bytes: Option<u64>,
}

/// Copies an export to a file.
pub fn export(name: &str, args: &ExportArgs, context: &Context) -> Result<()> {
    let ExportArgs { file, format, force } = args;
    let to_stdout = file.as_os_str() == "-";
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::invalid("a disk on the terminal is of no use")
            .hint("name a file, or pipe the output into something"));
    }
    if to_stdout && *format == FileFormat::Qcow2 {
        return Err(Failure::invalid("qcow2 is not written from start to end")
            .hint("name a file, or use --format raw"));
    }
    let interrupt = Interrupt::install()?;
    // Held to the end: a client that is connected keeps what it reads from being deleted.
    let mut nbd = Nbd::connect(&context.sockets.nbd, name)?;
    let mut progress = Progress::new(format!("exporting {name}"), context.output.quiet);
    let target =
        if to_stdout { Target::Stdout } else { Target::File { path: file.clone(), force: *force } };
    let data_bytes = match format {
        FileFormat::Raw => Some(transfer::export(&mut nbd, &target, &mut progress, &interrupt)?),
        FileFormat::Qcow2 => {
            let from = qcow2::Export { socket: &context.sockets.nbd, name, size: nbd.size() };
            qcow2::export(&from, file, *force, &mut progress, &interrupt)?;
            None
        }
    };
    drop(progress);
    let size = nbd.size();
    nbd.close();
    if to_stdout {
        return Ok(());
    }
    let done = Exported { export: name, file, format: *format, size, data_bytes };
    context.output.object(&done, name, |_| {
        let (size, file) = (size::human(size), file.display());
        match data_bytes {
            Some(data) => {
                format!("{name} is in {file}: {size}, of which {} are data", size::human(data))
            }
            None => format!("{name} is in {file}: {size}"),
        }
    })
}

/// A file to import, opened and looked at.
#[derive(Debug)]
pub enum Import {
    Raw(Source),
    Qcow2(qcow2::Source),
}

impl Import {
    pub fn open(path: &Path, format: FileFormat) -> Result<Self> {
        match format {
            FileFormat::Raw => Source::open(path).map(Import::Raw),
            FileFormat::Qcow2 => qcow2::Source::open(path).map(Import::Qcow2),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Import::Raw(source) => source.size,
            Import::Qcow2(source) => source.size,
        }
    }

    /// Makes a disk as `request` says, of this size or that of the file, and fills it.
    pub fn make_disk(
        &self,
        request: DiskCreate,
        asked: Option<u64>,
        context: &Context,
    ) -> Result<Disk> {
        let size = Some(disk_size(self.size(), asked)?);
        let interrupt = Interrupt::install()?;
        let disk = context.client()?.call(&DiskCreate { size, ..request })?;
        match self.fill(&disk, context, &interrupt) {
            Ok(()) => Ok(disk),
            Err(failure) => Err(take_back(&disk, context, failure)),
        }
    }

    fn fill(&self, disk: &Disk, context: &Context, interrupt: &Interrupt) -> Result<()> {
        let mut nbd = Nbd::connect(&context.sockets.nbd, &disk.name)?;
        if nbd.size() < self.size() || nbd.is_read_only() {
            let message = format!("the export of {} does not take the file", disk.name);
            return Err(Failure::new(ErrorKind::Internal, message));
        }
        let mut progress = Progress::new(format!("importing {}", disk.name), context.output.quiet);
        match self {
            Import::Raw(source) => {
                transfer::import(source, &mut nbd, &mut progress, interrupt)?;
            }
            Import::Qcow2(source) => {
                let to = qcow2::Export {
                    socket: &context.sockets.nbd,
                    name: &disk.name,
                    size: disk.size,
                };
                qcow2::import(source, &to, &mut progress, interrupt)?;
                // A flush covers the writes of all connections.
                nbd.flush()?;
            }
        }
        nbd.close();
        Ok(())
    }
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

/// Deletes the disk of a failed import, by a new connection: the old one may be part of the
/// failure.
pub fn take_back(disk: &Disk, context: &Context, failure: Failure) -> Failure {
    let request = DiskDelete { disk: disk.id.clone(), force: true, now: true };
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
