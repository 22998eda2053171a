//! `rowctl snapshot mount`: the files of a snapshot, read-only, in a directory.
//!
//! A snapshot of a running disk is what a power cut leaves: the file system's journal has to be replayed
//! before it can be read, and a snapshot cannot be written. So a throw-away clone is mounted, always: it
//! costs one record, whatever the size, and the kernel replays the journal into it.
//!
//! Invariants: what a failed mount has made is taken away again; the clone carries the directory as a
//! tag, so that an unmount finds it, also one by another process or after a reboot; mount(8) runs as
//! whoever asks.
//! Absent: LVM and md inside a snapshot, which want new identities first; the message says how.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use rowd_proto::{
    CopyRestore, Disk, DiskAttach, DiskCreate, DiskDelete, DiskDetach, DiskList, ErrorKind, Place,
    Snapshot, SnapshotShow, Tags,
};
use serde::Serialize;

use crate::client::Client;
use crate::error::{Failure, Result};

use super::super::Context;

/// The tag of a clone that is mounted: its directory.
const TAG: &str = "rowd.mount";

#[derive(Args, Debug)]
pub struct Mount {
    /// Id, disk@snapshot, or a name that only one snapshot has
    #[arg(required_unless_present = "unmount")]
    snapshot: Option<String>,
    // Not called `dir`: that is the daemon's directory, an option of all commands.
    /// An empty directory
    #[arg(required_unless_present = "unmount", value_name = "DIR")]
    place: Option<PathBuf>,
    /// Mount this partition instead of the whole disk
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=128))]
    partition: Option<u32>,
    /// Unmount what was mounted at this directory, and remove the clone
    #[arg(long, value_name = "DIR", conflicts_with_all = ["snapshot", "place", "partition"])]
    unmount: Option<PathBuf>,
}

/// What was mounted.
#[derive(Debug, Serialize)]
struct Mounted<'a> {
    snapshot: &'a str,
    directory: &'a Path,
    device: &'a str,
    /// The clone that is mounted; gone after `--unmount`.
    disk: &'a str,
    file_system: &'a str,
}

pub(super) fn run(args: Mount, context: &Context) -> Result<()> {
    match args {
        Mount { unmount: Some(dir), .. } => unmount(&dir, context),
        Mount { snapshot: Some(snapshot), place: Some(dir), partition, .. } => {
            mount(&snapshot, &dir, partition, context)
        }
        Mount { .. } => Err(Failure::invalid("a snapshot and a directory are needed")),
    }
}

fn mount(snapshot: &str, dir: &Path, partition: Option<u32>, context: &Context) -> Result<()> {
    let dir = directory(dir)?;
    let mut client = context.client()?;
    let snapshot = client.call(&SnapshotShow { snapshot: snapshot.to_owned() })?;
    let clone = make_clone(&mut client, &snapshot, &dir)?;
    match mount_clone(&mut client, &clone, &dir, partition) {
        Ok((device, kind)) => {
            let name = full_name(&snapshot);
            let mounted = Mounted {
                snapshot: &name,
                directory: &dir,
                device: &device,
                disk: &clone.name,
                file_system: &kind,
            };
            let shown = dir.display();
            context.output.object(&mounted, &clone.id, |_| {
                format!(
                    "{name} is mounted at {shown}, read-only ({kind} on {device})\n\
                     afterwards: rowctl snapshot mount --unmount {shown}"
                )
            })
        }
        Err(failure) => {
            // The failure of the mount is what matters; that of a clean-up is told beside it.
            if let Err(Failure::Told(body)) = remove_clone(&mut client, &clone) {
                let message = body.message;
                context.output.remark(&format!("the clone {} is left: {message}", clone.name));
            }
            Err(failure)
        }
    }
}

/// The directory by its full path, as the kernel will show it.
fn directory(dir: &Path) -> Result<PathBuf> {
    let failed = |e| Failure::io(dir.display(), &e);
    let dir = fs::canonicalize(dir).map_err(failed)?;
    if !dir.is_dir() {
        return Err(Failure::invalid(format!("{} is not a directory", dir.display())));
    }
    if is_mounted(&dir)? {
        let message = format!("something is mounted at {} already", dir.display());
        return Err(Failure::new(ErrorKind::InUse, message));
    }
    Ok(dir)
}

fn make_clone(client: &mut Client, snapshot: &Snapshot, dir: &Path) -> Result<Disk> {
    let text = dir.display().to_string();
    let random = snapshot.id.rsplit('-').next().unwrap_or_default();
    // Unique without asking: two mounts of one snapshot are at two directories.
    let name = format!("mount-{random}-{:08x}", fnv1a(text.as_bytes()));
    let description = format!("{} as mounted at {text}", full_name(snapshot));
    let tags = Tags::from([(TAG.to_owned(), text)]);
    if let (Some(copy), [Place::Repository]) = (&snapshot.copy, snapshot.presence.as_slice()) {
        // It is filled while it is mounted.
        let (copy, repo) = (copy.clone(), snapshot.repo.clone());
        let ask = CopyRestore { copy, repo, name, description, tags, ..CopyRestore::default() };
        return client.call_patiently(&ask).map(|made| made.disk);
    }
    let from = Some(snapshot.id.clone());
    client.call(&DiskCreate { name, from, description, tags, ..DiskCreate::default() })
}

/// Attaches and mounts a clone; the device, and what kind of file system it has.
fn mount_clone(
    client: &mut Client,
    clone: &Disk,
    dir: &Path,
    partition: Option<u32>,
) -> Result<(String, String)> {
    let ask = DiskAttach { disk: clone.id.clone(), device: None, read_only: false };
    let attached = client.call(&ask)?.attachment;
    let whole = attached.map(|attachment| attachment.device).ok_or_else(|| {
        Failure::new(ErrorKind::Internal, "the clone was attached, and has no device")
    })?;
    let device = match partition {
        Some(number) => partition_of(&whole, number)?,
        None => whole,
    };
    let kind = probe(&device)?;
    let options = options(&kind, &device)?;
    let mut mount = Command::new("mount");
    mount.args(["-t", &kind, "-o", options, &device]).arg(dir);
    run_tool(&mut mount).map_err(|failure| failure.context("mount"))?;
    Ok((device, kind))
}

/// The device of a partition, once the kernel has found it.
fn partition_of(whole: &str, number: u32) -> Result<String> {
    let device = format!("{whole}p{number}");
    // The kernel reads the partition table when somebody opens the device.
    run_tool(Command::new("blockdev").args(["--rereadpt", whole]))?;
    if Path::new(&device).exists() {
        return Ok(device);
    }
    Err(Failure::new(ErrorKind::NotFound, format!("the snapshot has no partition {number}"))
        .hint("leave --partition out where the file system takes the whole disk"))
}

/// What is on a device, by blkid(8).
fn probe(device: &str) -> Result<String> {
    let mut blkid = Command::new("blkid");
    let known = ["-p", "-o", "export", device];
    let output = blkid.args(known).stdin(Stdio::null()).output();
    let output = output.map_err(|e| Failure::io("blkid", &e))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key).map(str::to_owned));
    match (value("TYPE="), value("PTTYPE=")) {
        (Some(kind), _) => Ok(kind),
        (None, Some(table)) => Err(Failure::new(
            ErrorKind::Condition,
            format!("the snapshot holds a partition table ({table})"),
        )
        .hint("name a partition: --partition 1")),
        (None, None) => Err(Failure::new(
            ErrorKind::Condition,
            "the snapshot holds no file system that blkid knows",
        )
        .hint("make a disk of it and attach that: rowctl disk create NAME --from SNAPSHOT")),
    }
}

/// How a file system is mounted beside the one it is a copy of.
fn options(kind: &str, device: &str) -> Result<&'static str> {
    match kind {
        // With the identity of the original, which XFS would refuse.
        "xfs" => Ok("ro,nouuid"),
        "btrfs" if btrfs_is_known(device)? => Err(Failure::new(
            ErrorKind::Condition,
            "a btrfs file system of this identity is in use on this host",
        )
        .hint("the kernel would mix the two: unmount the original, or mount the snapshot on another host")),
        "LVM2_member" => Err(elsewhere("an LVM volume", "vgimportclone --basevgname restored")),
        "linux_raid_member" => Err(elsewhere("a member of an md array", "mdadm --assemble /dev/md/restored --update=uuid")),
        "crypto_LUKS" => Err(elsewhere("an encrypted volume", "cryptsetup open --readonly")),
        "swap" => Err(Failure::new(ErrorKind::Condition, "the snapshot holds swap space")),
        _ => Ok("ro"),
    }
}

/// Something that needs more than a mount.
fn elsewhere(what: &str, tool: &str) -> Failure {
    Failure::new(ErrorKind::Condition, format!("the snapshot holds {what}")).hint(format!(
        "make a disk of it, attach it, and give it a new identity: rowctl disk create NAME --from \
         SNAPSHOT; rowctl disk attach NAME; {tool} /dev/nbdN"
    ))
}

/// Whether the kernel has a btrfs of the same identity mounted.
fn btrfs_is_known(device: &str) -> Result<bool> {
    let mut blkid = Command::new("blkid");
    let uuid = run_tool(blkid.args(["-p", "-o", "value", "-s", "UUID", device]))?;
    Ok(Path::new("/sys/fs/btrfs").join(uuid.trim()).exists())
}

fn unmount(dir: &Path, context: &Context) -> Result<()> {
    let dir = fs::canonicalize(dir).map_err(|e| Failure::io(dir.display(), &e))?;
    let text = dir.display().to_string();
    let mut client = context.client()?;
    let disks = client.call(&DiskList {})?.disks;
    let clone = disks.into_iter().find(|disk| disk.tags.get(TAG) == Some(&text));
    let clone = clone.ok_or_else(|| {
        Failure::new(ErrorKind::NotFound, format!("no snapshot was mounted at {text}"))
            .hint("see the tag rowd.mount in: rowctl disk list -o json")
    })?;
    // Somebody may have unmounted it by hand already.
    if is_mounted(&dir)? {
        run_tool(Command::new("umount").arg(&dir)).map_err(|failure| failure.context("umount"))?;
    }
    remove_clone(&mut client, &clone)?;
    context.output.object(&clone, &clone.id, |_| format!("{text} is unmounted"))
}

fn remove_clone(client: &mut Client, clone: &Disk) -> Result<()> {
    match client.call(&DiskDetach { disk: clone.id.clone(), force: false }) {
        Err(Failure::Told(body)) if body.kind == ErrorKind::WrongState => {}
        other => drop(other?),
    }
    client.call(&DiskDelete { disk: clone.id.clone(), force: false, now: true })?;
    Ok(())
}

/// Whether a directory is a mount point.
fn is_mounted(dir: &Path) -> Result<bool> {
    let mut mountpoint = Command::new("mountpoint");
    let status = mountpoint.arg("-q").arg(dir).stdin(Stdio::null()).status();
    status.map(|status| status.success()).map_err(|e| Failure::io("mountpoint", &e))
}

/// Runs a program of the system; what it prints.
fn run_tool(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.map_err(|e| Failure::io(&name, &e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let said = if said.is_empty() { output.status.to_string() } else { said };
    Err(Failure::new(ErrorKind::Io, said))
}

fn full_name(snapshot: &Snapshot) -> String {
    let disk = snapshot.disk_name.as_deref().unwrap_or(&snapshot.disk_id);
    format!("{disk}@{}", snapshot.name)
}

fn fnv1a(bytes: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_mounted_beside_their_originals() {
        assert_eq!(options("ext4", "/dev/nbd0").unwrap(), "ro");
        assert_eq!(options("xfs", "/dev/nbd0").unwrap(), "ro,nouuid");
        for (kind, tool) in [("LVM2_member", "vgimportclone"), ("linux_raid_member", "mdadm")] {
            let Failure::Told(body) = options(kind, "/dev/nbd0").unwrap_err() else {
                panic!("told")
            };
            assert_eq!(body.kind, ErrorKind::Condition);
            assert!(body.hint.unwrap_or_default().contains(tool));
        }
    }

    #[test]
    fn directories_give_different_names() {
        assert_ne!(fnv1a(b"/mnt/a"), fnv1a(b"/mnt/b"));
        assert_eq!(fnv1a(b""), 0x811c_9dc5);
    }
}
