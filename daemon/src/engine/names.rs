//! Names: what a disk or snapshot may be called, and which object a name means.
//!
//! Invariants: a name has 2 to 128 characters and none that the CLI or a file name needs for itself;
//! `disk@snapshot` is unambiguous because `@` is in no name.
//! Absent: suggestions for misspelt names (the CLI makes them).

use jiff::Timestamp;

use super::Engine;
use super::catalogue::{Catalogue, SnapshotRecord};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, SnapshotId};

/// Characters a name has at least and at most.
const LENGTH: std::ops::RangeInclusive<usize> = 2..=128;
/// Fewer characters than this of an id (its prefix not counted) are taken for a name.
const ID_CHARACTERS_MIN: usize = 4;

/// Checks the name of a disk or a snapshot.
///
/// # Errors
/// `Invalid`, saying what is wrong with it.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let count = name.chars().count();
    let trouble = if !LENGTH.contains(&count) {
        let noun = if count == 1 { "character" } else { "characters" };
        format!("has {count} {noun}; 2 to 128 are allowed")
    } else if let Some(bad) = name.chars().find(|c| is_reserved(*c)) {
        format!("contains {bad:?}; letters, digits, '.', '_', ':' and '-' are safe")
    } else if name.starts_with('-') || name.starts_with('.') {
        "begins with '-' or '.'".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!("the {what} name {name:?} {trouble}")))
}

/// Checks the name that a person gives a snapshot.
///
/// # Errors
/// As [`check_name`]; and `auto…`, which marks snapshots made by policies.
pub fn check_manual_name(name: &str) -> Result<()> {
    if name.starts_with("auto") {
        return Err(Error::invalid(format!("the snapshot name {name:?} begins with \"auto\""))
            .hint("names of automatic snapshots begin so; choose another"));
    }
    check_name("snapshot", name)
}

/// A name made of a word and the time, unique among the snapshots of a disk.
#[must_use]
pub fn timed_name(catalogue: &Catalogue, disk: &DiskId, word: &str, at: u64) -> String {
    timed(word, at, |name| catalogue.snapshot_named(disk, name).is_some())
}

/// A name made of a word and the time that is not taken.
pub(super) fn timed(word: &str, at: u64, taken: impl Fn(&str) -> bool) -> String {
    let seconds = i64::try_from(at).unwrap_or(0);
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    let name = format!("{word}-{}", time.strftime("%Y%m%d-%H%M%S"));
    let mut candidate = name.clone();
    let mut number = 2;
    while taken(&candidate) {
        candidate = format!("{name}-{number}");
        number += 1;
    }
    candidate
}

fn is_reserved(c: char) -> bool {
    c.is_control() || c.is_whitespace() || matches!(c, '@' | '/' | '\\' | '"' | '\'')
}

/// A snapshot by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotName {
    pub id: SnapshotId,
    pub name: String,
    /// `disk@snapshot`, with the id of a disk that is gone.
    pub full: String,
}

impl Engine {
    /// The disk that an id, a name or a unique beginning of an id means.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when several ids begin so.
    pub fn find_disk(&self, name: &str) -> Result<DiskId> {
        let catalogue = self.catalogue.read();
        let id = DiskId::from(name);
        if catalogue.disks.contains_key(&id) {
            return Ok(id);
        }
        if let Some(disk) = catalogue.disk_named(name) {
            return Ok(disk.id.clone());
        }
        by_prefix(DiskId::PREFIX, name, catalogue.disks.keys().map(DiskId::as_str))?
            .map(DiskId::from)
            .ok_or_else(|| {
                Error::not_found(format!("no disk is called {name:?}"))
                    .hint("see `rowctl disk list`")
            })
    }

    /// The snapshot that an id, `disk@name` or a unique beginning of an id means. The disk may be given
    /// by its id too, so that snapshots of deleted disks can be named.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when several ids begin so.
    pub fn find_snapshot(&self, name: &str) -> Result<SnapshotId> {
        let catalogue = self.catalogue.read();
        let id = SnapshotId::from(name);
        if catalogue.snapshots.contains_key(&id) {
            return Ok(id);
        }
        if let Some((disk, snapshot)) = name.split_once('@') {
            return find_of_disk(&catalogue, disk, snapshot).map(|found| found.id.clone());
        }
        by_prefix(SnapshotId::PREFIX, name, catalogue.snapshots.keys().map(SnapshotId::as_str))?
            .map(SnapshotId::from)
            .ok_or_else(|| {
                Error::not_found(format!("no snapshot is called {name:?}"))
                    .hint("a snapshot is named disk@snapshot, or by its id")
            })
    }

    /// The snapshot of a disk with that name. Unlike [`Engine::snapshots`] it works out no sizes, which
    /// takes a walk over the map where a snapshot has several children: a rollback must not wait for one.
    #[must_use]
    pub fn snapshot_called(&self, disk: &DiskId, name: &str) -> Option<SnapshotId> {
        self.catalogue.read().snapshot_named(disk, name).map(|found| found.id.clone())
    }

    /// The snapshots of that name, of whatever disks, with their full names; with none named all there are. It works
    /// out no sizes.
    #[must_use]
    pub fn snapshots_called(&self, name: Option<&str>) -> Vec<SnapshotName> {
        let catalogue = self.catalogue.read();
        let fits = |one: &&SnapshotRecord| name.is_none_or(|name| one.name == name);
        let told = |one: &SnapshotRecord| {
            let disk = catalogue.disks.get(&one.disk);
            let disk = disk.map_or(one.disk.as_str(), |disk| disk.name.as_str());
            let full = format!("{disk}@{}", one.name);
            SnapshotName { id: one.id.clone(), name: one.name.clone(), full }
        };
        let mut found: Vec<&SnapshotRecord> = catalogue.snapshots.values().filter(fits).collect();
        found.sort_by_key(|one| (one.created_at, one.tree, one.node));
        found.into_iter().map(told).collect()
    }

    /// The names of all disks.
    #[must_use]
    pub fn disk_names(&self) -> Vec<String> {
        self.catalogue.read().disks.values().map(|disk| disk.name.clone()).collect()
    }

    /// Whether a disk is there, or snapshots of it, or copies by policies.
    #[must_use]
    pub fn has_chain(&self, id: &DiskId) -> bool {
        let catalogue = self.catalogue.read();
        catalogue.disks.contains_key(id)
            || catalogue.snapshots_of(id).next().is_some()
            || catalogue.policy_copies_of(id).next().is_some()
    }

    /// `disk@snapshot`, with the id of a disk that is gone. It works out no sizes either.
    ///
    /// # Errors
    /// There is no such snapshot.
    pub fn snapshot_full_name(&self, id: &SnapshotId) -> Result<String> {
        self.snapshot_record(id).map(|record| self.snapshot_label(&record))
    }

    pub(super) fn check_new_disk_name(&self, name: &str) -> Result<()> {
        check_name("disk", name)?;
        match self.catalogue.read().disk_named(name) {
            None => Ok(()),
            Some(_) => Err(Error::new(ErrorKind::Exists, format!("a disk {name:?} exists"))
                .hint(format!("choose another name, or `rowctl disk delete {name}`"))),
        }
    }
}

fn find_of_disk<'a>(
    catalogue: &'a Catalogue,
    disk: &str,
    name: &str,
) -> Result<&'a SnapshotRecord> {
    let id = catalogue.disk_named(disk).map_or_else(|| DiskId::from(disk), |d| d.id.clone());
    if let Some(found) = catalogue.snapshot_named(&id, name) {
        return Ok(found);
    }
    let known = catalogue.disks.contains_key(&id) || catalogue.snapshots_of(&id).next().is_some();
    if !known {
        return Err(Error::not_found(format!("no disk is called {disk:?}"))
            .hint("see `rowctl disk list`; snapshots of deleted disks: `rowctl chain list`"));
    }
    let count = catalogue.counts_of(&id).kept();
    let hint = match count {
        0 => format!("{disk} has no snapshots; `rowctl snapshot create {disk}` makes one"),
        _ => format!("see `rowctl snapshot list {disk}`"),
    };
    Err(Error::not_found(format!("disk {disk} has no snapshot {name:?}")).hint(hint))
}

pub(super) fn by_prefix<'a>(
    kind: &str,
    text: &str,
    mut ids: impl Iterator<Item = &'a str>,
) -> Result<Option<&'a str>> {
    if !text.starts_with(kind) || text.len() < kind.len() + ID_CHARACTERS_MIN {
        return Ok(None);
    }
    let first = ids.find(|id| id.starts_with(text));
    match ids.find(|id| id.starts_with(text)) {
        None => Ok(first),
        Some(_) => Err(Error::invalid(format!("several ids begin with {text}"))
            .hint("give more characters of the id")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_in_characters_and_bounded() {
        assert!(check_name("disk", "a").is_err());
        assert!(check_name("disk", "ab").is_ok());
        assert!(check_name("snapshot", &"\u{5feb}".repeat(128)).is_ok());
        assert!(check_name("snapshot", &"\u{5feb}".repeat(129)).is_err());
        for bad in ["a b", "a@b", "a/b", "-ab", "a\nb", ".ab"] {
            assert!(check_name("disk", bad).is_err(), "{bad:?}");
        }
        assert!(check_manual_name("automatic").is_err());
        assert!(check_manual_name("my-auto").is_ok());
    }

    #[test]
    fn a_beginning_of_an_id_must_be_long_enough_and_unique() {
        let ids = ["d-aaaa1", "d-aaaa2", "d-bbbb1"];
        assert_eq!(by_prefix("d-", "d-bbbb", ids.into_iter()).unwrap(), Some("d-bbbb1"));
        assert_eq!(by_prefix("d-", "d-bbb", ids.into_iter()).unwrap(), None);
        assert!(by_prefix("d-", "d-aaaa", ids.into_iter()).is_err());
    }
}
