//! The look at everything after a restart, through the same sockets that clients use.
//!
//! Invariants: every sector of every disk and snapshot is read and explained; afterwards the world is
//! what was found.
//! Absent: the rules (`judge`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use rowd_proto::{DiskList, SnapshotKind, SnapshotList};

use super::control::Control;
use super::judge::{Expect, Found, Window, judge};
use super::load::lock;
use super::stamp::{SECTOR, Value, parse_all};
use super::world::{Image, Pending, Snapshot, World};
use crate::client::Client;

/// Bytes read at a time.
const PIECE: u64 = 1 << 20;

/// Compares what a daemon shows with what should exist. Returns the number of sectors looked at.
///
/// # Errors
/// What cannot have come about.
///
/// # Panics
/// The daemon refuses a read, or goes away.
pub fn verify(world: &mut World, control: &Path, nbd: &Path) -> Result<u64, String> {
    let mut control = Control::connect(control).expect("the daemon answers");
    let disks = control.call(&DiskList {}).expect("a list of disks").disks;
    let snapshots = control.call(&SnapshotList { disk: None }).expect("a list of snapshots");
    settle(world, &disks, &snapshots.snapshots);
    let listed: BTreeSet<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
    let known: BTreeSet<&str> = world.disks.keys().map(String::as_str).collect();
    if listed != known {
        return Err(format!("the disks are {listed:?}, should be {known:?}"));
    }
    let listed: BTreeSet<&str> = snapshots.snapshots.iter().map(|s| s.id.as_str()).collect();
    let known: BTreeSet<&str> = world.snapshots.keys().map(String::as_str).collect();
    if listed != known {
        return Err(format!("the snapshots are {listed:?}, should be {known:?}"));
    }
    look_at_all(world, nbd)
}

/// Finds out whether the pending change was done.
fn settle(world: &mut World, disks: &[rowd_proto::Disk], snapshots: &[rowd_proto::Snapshot]) {
    match world.pending.take() {
        None => {}
        Some(Pending::SnapshotCreate { disk, name, image }) => {
            if let Some(made) = snapshots.iter().find(|s| s.name == name) {
                let disk_id = made.disk_id.clone();
                let snapshot = Snapshot { name, disk, disk_id, image, undo: false };
                world.snapshots.insert(made.id.clone(), snapshot);
            }
        }
        Some(Pending::SnapshotDelete { id }) => {
            world.snapshots.retain(|known, _| *known != id || snapshots.iter().any(|s| s.id == id));
        }
        Some(Pending::DiskCreate { name, image }) => {
            if let Some(made) = disks.iter().find(|disk| disk.name == name) {
                let sectors = usize::try_from(made.size).expect("a small disk") / SECTOR;
                world.add_disk(&name, &made.id, sectors, Some(image));
            }
        }
        Some(Pending::DiskDelete { name }) if disks.iter().any(|disk| disk.name == name) => {}
        Some(Pending::DiskDelete { name }) => world.forget_disk(&name),
        Some(Pending::Rollback { disk, image, before }) => {
            let new = |s: &&rowd_proto::Snapshot| {
                s.kind == SnapshotKind::Undo && !world.snapshots.contains_key(&s.id)
            };
            if let Some(undo) = snapshots.iter().find(new) {
                let (name, disk_id) = (undo.name.clone(), undo.disk_id.clone());
                let model = world.disks.get_mut(&disk).expect("it was there");
                model.born = Some(image);
                let snapshot = Snapshot { name, disk, disk_id, image: before, undo: true };
                world.snapshots.insert(undo.id.clone(), snapshot);
            }
        }
    }
}

/// What the cuts of one look have shown.
#[derive(Default)]
struct Cuts {
    /// By disk and beginning of the window: snapshots and clones of one instant are alike.
    seen: BTreeMap<(String, u64), Arc<Vec<Value>>>,
    /// Writes that some snapshot shows: its disk has them too, for it came later.
    shown: HashSet<Value>,
}

fn look_at_all(world: &mut World, nbd: &Path) -> Result<u64, String> {
    let mut cuts = Cuts::default();
    let mut sectors = 0;
    let mut images: BTreeMap<String, Arc<Vec<Value>>> = BTreeMap::new();
    for (id, snapshot) in &world.snapshots {
        let export = format!("{}@{}", snapshot.disk_id, snapshot.name);
        let label = format!("snapshot {} of {}", snapshot.name, snapshot.disk);
        let image = Arc::new(read_all(nbd, &export).map_err(|e| format!("{label}: {e}"))?);
        sectors += image.len() as u64;
        compare(world, &mut cuts, &label, &snapshot.image, &image)?;
        images.insert(id.clone(), image);
    }
    let mut heads: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (name, disk) in &world.disks {
        let image = Arc::new(read_all(nbd, name).map_err(|e| format!("disk {name}: {e}"))?);
        sectors += image.len() as u64;
        if let Some(born) = &disk.born {
            compare(world, &mut cuts, &format!("disk {name}"), born, &image)?;
        }
        heads.insert(name.clone(), image.to_vec());
    }
    for (name, image) in &heads {
        let disk = &world.disks[name];
        if disk.born.is_some() {
            continue;
        }
        let log = lock(&disk.log);
        judge(&[Found { name, log: &log, image }], |op| {
            let shown = op.value != Value::ZERO && cuts.shown.contains(&op.value);
            if shown { Expect::Must } else { Window::ALL_ANSWERED.expect(op) }
        })?;
    }
    for (id, image) in images {
        if let Some(snapshot) = world.snapshots.get_mut(&id) {
            snapshot.image = Image::Exact(image);
        }
    }
    for (name, image) in heads {
        if let Some(disk) = world.disks.get_mut(&name) {
            disk.born = None;
            lock(&disk.log).collapse(image);
        }
    }
    Ok(sectors)
}

/// Whether an image is what it should be.
fn compare(
    world: &World,
    cuts: &mut Cuts,
    label: &str,
    expected: &Image,
    image: &Arc<Vec<Value>>,
) -> Result<(), String> {
    match expected {
        Image::Exact(exact) => same(label, exact, image),
        Image::Cut { disk, window } => {
            let log = lock(&world.disks[disk].log);
            judge(&[Found { name: label, log: &log, image }], |op| window.expect(op))?;
            cuts.shown.extend(image.iter().filter(|value| **value != Value::ZERO));
            let key = (disk.clone(), window.must);
            let first = cuts.seen.entry(key).or_insert_with(|| Arc::clone(image));
            same(&format!("{label}, of the same instant as another"), first, image)
        }
    }
}

fn same(label: &str, expected: &[Value], found: &[Value]) -> Result<(), String> {
    if expected.len() != found.len() {
        return Err(format!("{label}: {} sectors, not {}", found.len(), expected.len()));
    }
    let differs = |at: &usize| expected[*at] != found[*at];
    let Some(at) = (0..found.len()).find(differs) else { return Ok(()) };
    let count = (0..found.len()).filter(differs).count();
    Err(format!(
        "{label}: sector {at} shows {}, should be {}; {count} sectors differ",
        found[at], expected[at]
    ))
}

/// Reads a whole export.
fn read_all(nbd: &Path, export: &str) -> Result<Vec<Value>, String> {
    let mut client =
        Client::try_connect(nbd, export, true, &[]).map_err(|e| format!("not opened: {e}"))?;
    let mut bytes = Vec::with_capacity(usize::try_from(client.size).expect("a small disk"));
    for offset in (0..client.size).step_by(1 << 20) {
        let length = PIECE.min(client.size - offset);
        bytes.extend(client.read(offset, u32::try_from(length).expect("at most 1 MiB")));
    }
    client.disconnect();
    parse_all(&bytes)
}
