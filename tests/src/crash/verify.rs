//! The look at everything after a restart, through the same sockets that clients use.
//!
//! Invariants: every sector of every disk and snapshot is read and explained, those of a group of disks
//! under load together; afterwards the world is what was found.
//! Absent: the rules (`judge`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use rowd_proto::{DiskList, GroupList, ImageList, SnapshotKind, SnapshotList};

use super::control::Control;
use super::judge::{Expect, Found, Window, judge};
use super::load::lock;
use super::stamp::{SECTOR, Value, parse_all};
use super::world::{Group, Image, Pending, Snapshot, Turn, World};
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
    let groups = control.call(&GroupList {}).expect("a list of groups").groups;
    let images = control.call(&ImageList {}).expect("a list of images").images;
    let snapshots = snapshots.snapshots;
    settle(
        world,
        &Listed { disks: &disks, snapshots: &snapshots, groups: &groups, images: &images },
    )?;
    let listed: BTreeSet<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
    let known: BTreeSet<&str> = world.disks.keys().map(String::as_str).collect();
    if listed != known {
        return Err(format!("the disks are {listed:?}, should be {known:?}"));
    }
    let listed: BTreeSet<&str> = snapshots.iter().map(|s| s.id.as_str()).collect();
    let known: BTreeSet<&str> = world.snapshots.keys().map(String::as_str).collect();
    if listed != known {
        return Err(format!("the snapshots are {listed:?}, should be {known:?}"));
    }
    compare_groups(world, &groups)?;
    compare_templates(world, &images)?;
    look_at_all(world, nbd)
}

/// What the daemon lists.
struct Listed<'a> {
    disks: &'a [rowd_proto::Disk],
    snapshots: &'a [rowd_proto::Snapshot],
    groups: &'a [rowd_proto::Group],
    images: &'a [rowd_proto::Image],
}

/// Finds out whether the pending change was done: all of it or nothing.
fn settle(world: &mut World, listed: &Listed<'_>) -> Result<(), String> {
    let Listed { disks, snapshots, groups, images } = *listed;
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
        Some(Pending::Rollback(turn)) => settle_turns(world, vec![turn], snapshots)?,
        Some(Pending::GroupRollback { turns }) => settle_turns(world, turns, snapshots)?,
        Some(Pending::GroupCreate { name, members }) => {
            if let Some(made) = groups.iter().find(|group| group.name == name) {
                settle_group(world, made, members)?;
            }
        }
        Some(Pending::GroupDelete { id }) if groups.iter().any(|group| group.id == id) => {}
        Some(Pending::GroupDelete { id }) => world.forget_group(&id),
        Some(Pending::TemplateCreate(template)) => {
            if let Some(made) = images.iter().find(|image| image.name == template.name) {
                world.templates.insert(made.id.clone(), template);
            }
        }
        Some(Pending::TemplateDelete { id }) => {
            world.templates.retain(|known, _| *known != id || images.iter().any(|i| i.id == id));
        }
    }
    Ok(())
}

/// A group that was made, with a snapshot of each of its disks.
fn settle_group(
    world: &mut World,
    made: &rowd_proto::Group,
    members: Vec<(String, Image)>,
) -> Result<(), String> {
    let name = made.name.clone();
    let snapshots: Vec<String> = made.members.iter().map(|m| m.snapshot_id.clone()).collect();
    if snapshots.len() != members.len() || made.members.iter().any(|m| m.snapshot.is_none()) {
        return Err(format!("group {name} is there in part: {:?}", made.members));
    }
    for ((disk, image), member) in members.into_iter().zip(&made.members) {
        let (name, disk_id) = (name.clone(), member.disk_id.clone());
        let snapshot = Snapshot { name, disk, disk_id, image, undo: false };
        world.snapshots.insert(member.snapshot_id.clone(), snapshot);
    }
    world.groups.insert(made.id.clone(), Group { name, snapshots });
    Ok(())
}

/// Disks that went back together, or not at all: each has a new snapshot for undo.
fn settle_turns(
    world: &mut World,
    turns: Vec<Turn>,
    snapshots: &[rowd_proto::Snapshot],
) -> Result<(), String> {
    let new = |s: &&rowd_proto::Snapshot| {
        s.kind == SnapshotKind::Undo && !world.snapshots.contains_key(&s.id)
    };
    let undo: Vec<&rowd_proto::Snapshot> = snapshots.iter().filter(new).collect();
    if !undo.is_empty() && undo.len() != turns.len() {
        return Err(format!("{} of {} disks went back", undo.len(), turns.len()));
    }
    for undo in undo {
        let of = |turn: &&Turn| world.disks[&turn.disk].id == undo.disk_id;
        let Turn { disk, image, before } =
            turns.iter().find(of).cloned().ok_or("a disk went back that nobody named")?;
        let (name, disk_id) = (undo.name.clone(), undo.disk_id.clone());
        world.disks.get_mut(&disk).expect("it was there").born = Some(image);
        let snapshot = Snapshot { name, disk, disk_id, image: before, undo: true };
        world.snapshots.insert(undo.id.clone(), snapshot);
    }
    Ok(())
}

/// The groups are those that should exist, and say which of their snapshots are gone.
fn compare_groups(world: &World, groups: &[rowd_proto::Group]) -> Result<(), String> {
    let told: BTreeMap<&str, Vec<(&str, bool)>> = groups
        .iter()
        .map(|group| {
            let there = |m: &'_ rowd_proto::GroupMember| m.snapshot.is_some();
            let pairs = group.members.iter().map(|m| (m.snapshot_id.as_str(), there(m)));
            (group.id.as_str(), pairs.collect())
        })
        .collect();
    let known: BTreeMap<&str, Vec<(&str, bool)>> = world
        .groups
        .iter()
        .map(|(id, group)| {
            let there = |id: &String| world.snapshots.contains_key(id);
            (id.as_str(), group.snapshots.iter().map(|id| (id.as_str(), there(id))).collect())
        })
        .collect();
    if told == known {
        Ok(())
    } else {
        Err(format!("the groups are {told:?}, should be {known:?}"))
    }
}

/// The images are the templates that should exist, each of its snapshots.
fn compare_templates(world: &World, images: &[rowd_proto::Image]) -> Result<(), String> {
    let told: BTreeMap<&str, Vec<Option<&str>>> = images
        .iter()
        .map(|image| {
            let snapshots = image.disks.iter().map(|disk| disk.snapshot_id.as_deref());
            (image.id.as_str(), snapshots.collect())
        })
        .collect();
    let known: BTreeMap<&str, Vec<Option<&str>>> = world
        .templates
        .iter()
        .map(|(id, template)| {
            (id.as_str(), template.snapshots.iter().map(|id| Some(id.as_str())).collect())
        })
        .collect();
    if told == known {
        Ok(())
    } else {
        Err(format!("the images are {told:?}, should be {known:?}"))
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
    judge_groups(world, &images)?;
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

/// The disks under load that a new group has show one instant: of the writes to all of them a prefix.
fn judge_groups(world: &World, images: &BTreeMap<String, Arc<Vec<Value>>>) -> Result<(), String> {
    for group in world.groups.values() {
        let (mut members, mut instant) = (Vec::new(), None);
        for id in &group.snapshots {
            let Some(snapshot) = world.snapshots.get(id) else { continue };
            // The image of a clone may be a cut too, of its origin at another time.
            if let Image::Cut { disk, window } = &snapshot.image
                && *disk == snapshot.disk
            {
                members.push((disk, lock(&world.disks[disk].log), &images[id]));
                instant = Some(*window);
            }
        }
        let found: Vec<Found<'_>> =
            members.iter().map(|(name, log, image)| Found { name, log, image }).collect();
        if let Some(window) = instant {
            judge(&found, |op| window.expect(op))
                .map_err(|e| format!("group {}: {e}", group.name))?;
        }
    }
    Ok(())
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
