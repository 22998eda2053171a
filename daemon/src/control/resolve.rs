//! From the names people type to ids, with advice when there is no such thing.
//!
//! Invariants: an exact match by the engine wins over the lookups here; a name that fits several
//! objects is an error that lists them, never a guess.
//! Absent: the index of names; the engine has it.

use crate::engine::Engine;
use crate::engine::SnapshotName;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, GroupId, ImageId, InstanceId, PolicyId, SnapshotId};

/// Candidates named in the message about an ambiguous name: enough to see the pattern.
const CANDIDATES_SHOWN: usize = 4;

/// Something that has tags.
pub(super) enum Object {
    Disk(DiskId),
    Snapshot(SnapshotId),
    Group(GroupId),
    Instance(InstanceId),
    Image(ImageId),
}

/// What a disk can begin as.
pub(super) enum Origin {
    Snapshot(SnapshotId),
    Image(ImageId),
}

/// The disk of that id, id prefix or name.
pub(super) fn disk(engine: &Engine, name: &str) -> Result<DiskId> {
    engine.find_disk(name).map_err(|error| {
        advise(error, || match engine.find_snapshot(name) {
            Ok(_) => Some(format!("'{name}' is a snapshot, not a disk")),
            Err(_) => closest(name, engine.disk_names().into_iter()),
        })
    })
}

/// The disk of that name, or the id of a deleted disk whose snapshots are still there.
pub(super) fn chain(engine: &Engine, name: &str) -> Result<DiskId> {
    match disk(engine, name) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let id = DiskId::from(name);
            if engine.has_chain(&id) { Ok(id) } else { Err(error) }
        }
        found => found,
    }
}

/// The snapshot of that id, id prefix, `disk@snapshot`, or bare name if only one has it.
pub(super) fn snapshot(engine: &Engine, name: &str) -> Result<SnapshotId> {
    let error = match engine.find_snapshot(name) {
        Err(error) if error.kind() == ErrorKind::NotFound => error,
        found => return found,
    };
    if !name.contains('@') {
        match engine.snapshots_called(Some(name)).as_slice() {
            [] => {}
            [one] => return Ok(one.id.clone()),
            several => return Err(ambiguous(name, several)),
        }
    }
    let all = || engine.snapshots_called(None).into_iter();
    Err(advise(error, || match engine.find_disk(name) {
        Ok(_) => Some(format!(
            "'{name}' is a disk, not a snapshot; snapshots of it: rowctl snapshot list {name}"
        )),
        Err(_) if name.contains('@') => closest(name, all().map(|one| one.full)),
        Err(_) => closest(name, all().map(|one| one.name)),
    }))
}

/// The snapshot that a name means when it is said about one disk: a name of its own snapshots
/// first.
pub(super) fn snapshot_of(engine: &Engine, disk: &DiskId, name: &str) -> Result<SnapshotId> {
    if !name.contains('@')
        && let Some(own) = engine.snapshot_called(disk, name)
    {
        return Ok(own);
    }
    snapshot(engine, name)
}

/// The group of that id, id prefix or name.
pub(super) fn group(engine: &Engine, name: &str) -> Result<GroupId> {
    engine.find_group(name).map_err(|error| {
        advise(error, || closest(name, engine.groups().into_iter().map(|group| group.name)))
    })
}

/// The instance of that id, id prefix or name.
pub(super) fn instance(engine: &Engine, name: &str) -> Result<InstanceId> {
    engine.find_instance(name).map_err(|error| {
        advise(error, || closest(name, engine.instances().into_iter().map(|one| one.name)))
    })
}

/// The policy of that id, id prefix or name.
pub(super) fn policy(engine: &Engine, name: &str) -> Result<PolicyId> {
    engine.find_policy(name).map_err(|error| {
        advise(error, || closest(name, engine.policies().into_iter().map(|one| one.spec.name)))
    })
}

/// The image of that id, id prefix or name.
pub(super) fn image(engine: &Engine, name: &str) -> Result<ImageId> {
    engine.find_image(name).map_err(|error| suggest_image(engine, name, error))
}

/// As `image`; a family means its newest image that is not deprecated.
pub(super) fn image_or_family(engine: &Engine, name: &str) -> Result<ImageId> {
    engine.find_image_or_family(name).map_err(|error| suggest_image(engine, name, error))
}

fn suggest_image(engine: &Engine, name: &str, error: Error) -> Error {
    let names = || {
        let images = engine.images().into_iter();
        images.flat_map(|image| std::iter::once(image.name).chain(image.family))
    };
    advise(error, || closest(name, names()))
}

/// The snapshot or image that a disk is to begin as. A bare name that is both is an error.
pub(super) fn origin(engine: &Engine, name: &str) -> Result<Origin> {
    let image = match engine.find_image_or_family(name) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return snapshot(engine, name).map(Origin::Snapshot).map_err(|error| {
                advise(error, || {
                    let images = engine.images().into_iter().map(|image| image.name);
                    closest(name, images)
                })
            });
        }
        image => image?,
    };
    if !name.starts_with(ImageId::PREFIX)
        && let Some(other) = engine.snapshots_called(Some(name)).first()
    {
        return Err(Error::invalid(format!("'{name}' is an image and a snapshot"))
            .hint(format!("the image is {image}, the snapshot {}", other.full)));
    }
    Ok(Origin::Image(image))
}

/// What a name means among all that has tags: `disk@snapshot` is a snapshot; otherwise a disk of that
/// name comes first, then a group, an instance, an image, and a snapshot whose name no other has.
pub(super) fn object(engine: &Engine, name: &str) -> Result<Object> {
    let looks_like_one = name.contains('@') || name.starts_with(SnapshotId::PREFIX);
    if looks_like_one && let Ok(found) = snapshot(engine, name) {
        return Ok(Object::Snapshot(found));
    }
    let error = match disk(engine, name) {
        Ok(found) => return Ok(Object::Disk(found)),
        Err(error) => error,
    };
    // The snapshots of a group have its name, so the group has to come before them.
    if let Ok(found) = engine.find_group(name) {
        return Ok(Object::Group(found));
    }
    if let Ok(found) = engine.find_instance(name) {
        return Ok(Object::Instance(found));
    }
    if let Ok(found) = engine.find_image(name) {
        return Ok(Object::Image(found));
    }
    match snapshot(engine, name) {
        Ok(found) => Ok(Object::Snapshot(found)),
        Err(other) if name.contains('@') || other.kind() != ErrorKind::NotFound => Err(other),
        Err(_) => Err(error),
    }
}

fn ambiguous(name: &str, several: &[SnapshotName]) -> Error {
    let mut shown: Vec<String> =
        several.iter().take(CANDIDATES_SHOWN).map(|one| one.full.clone()).collect();
    if several.len() > CANDIDATES_SHOWN {
        shown.push("...".to_owned());
    }
    Error::invalid(format!("{} snapshots are called '{name}'", several.len()))
        .hint(format!("name the disk too: {}", shown.join(", ")))
}

/// Gives a failed lookup advice that knows the other names; without any, the engine's stays.
fn advise(error: Error, advice: impl FnOnce() -> Option<String>) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    match advice() {
        Some(advice) => error.hint(advice),
        None => error,
    }
}

/// "did you mean", if some name is close enough to be a slip of the fingers.
fn closest(typed: &str, names: impl Iterator<Item = String>) -> Option<String> {
    // A third of the letters: one slip in a short name, two or three in a long one.
    let limit = (typed.chars().count() / 3).max(1);
    names
        .map(|name| (distance(typed, &name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| format!("did you mean '{name}'?"))
}

/// Letters to insert, delete or replace to get from one to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_slips() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("data1", "data1"), 0);
        assert_eq!(distance("dat1", "data1"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn only_a_near_name_is_suggested_and_the_nearest_first() {
        let names = || ["data1", "data22", "logs"].map(str::to_owned).into_iter();
        assert_eq!(closest("dat1", names()).unwrap(), "did you mean 'data1'?");
        assert_eq!(closest("data2", names()).unwrap(), "did you mean 'data1'?");
        assert_eq!(closest("mysql", names()), None);
    }
}
