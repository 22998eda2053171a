//! Verbs of disks: create, delete, rename, resize, reinit, roll back, undo.
//!
//! Invariants: a verb that would change a disk under a client refuses and names the client, or with
//! `force` disconnects it first and keeps others out until it is done; the state before a rollback or
//! reinit stays as a snapshot.
//! Absent: snapshots made on request (`snapshots.rs`).

use super::api::{
    Actor, ClientInfo, Consistency, DiskChange, DiskInfo, DiskSpec, Rollback, Tags, Undo,
};
use super::attachments::refuse_attached;
use super::catalogue::{DiskRecord, Kind, NewDisk, Op, SnapshotRecord, Turn};
use super::copies::Source;
use super::names::timed_name;
use super::trash::with;
use super::{Engine, now};
use crate::disk::lane::Lane;
use crate::disk::lazy::Need;
use crate::disk::write::Op as DataOp;
use crate::error::{Error, ErrorKind, Result};
use crate::map::leaf::MAX_EPOCH;
use crate::pool::superblock;
use crate::units::{BLOCK_SIZE, ByteRange, DiskId, Epoch, SnapshotId, TreeId};

/// The largest disk: leaf numbers have 40 bits, which is far more; this keeps sums below 63 bits.
pub const MAX_DISK_BYTES: u64 = 1 << 56;

impl Engine {
    /// Makes an empty disk, or one with the contents of a snapshot.
    ///
    /// # Errors
    /// The name or size will not do, or the snapshot does not exist.
    pub fn disk_create(&self, by: Actor, spec: DiskSpec) -> Result<DiskInfo> {
        self.disk_made(by, spec, None)
    }

    /// As [`Engine::disk_create`]; with `source` a disk that is to be filled.
    pub(super) fn disk_made(
        &self,
        by: Actor,
        spec: DiskSpec,
        source: Option<Source>,
    ) -> Result<DiskInfo> {
        check_tags(&spec.tags)?;
        let _shape = self.shape.lock();
        self.check_new_disk_name(&spec.name)?;
        let instance = spec.instance.as_ref().map(|id| self.owner(id)).transpose()?.flatten();
        let image = spec.image.as_ref().map(|id| self.image_record(id)).transpose()?;
        let from = image.map(|image| image.system).or(spec.from.clone());
        let origin = from.as_ref().map(|id| self.snapshot_record(id)).transpose()?;
        origin.as_ref().map_or(Ok(()), |origin| self.check_usable(origin))?;
        let size = disk_size(spec.size, origin.as_ref())?;
        let (tree, parent) = match &origin {
            Some(snapshot) => (snapshot.tree, Some(snapshot.node)),
            None => (TreeId(self.catalogue.read().next_tree.max(1)), None),
        };
        let key = self.key_of_new(&spec, origin.as_ref())?;
        let head = self.tree(tree).next_epoch()?;
        let id = DiskId::random()?;
        let message = match (&spec.image, &from) {
            (Some(image), _) => format!("disk {} made from image {image}", spec.name),
            (None, Some(from)) => format!("disk {} made from snapshot {from}", spec.name),
            (None, None) => format!("disk {} made", spec.name),
        };
        let disk = DiskRecord {
            id: id.clone(),
            name: spec.name,
            description: spec.description,
            size,
            created_at: now(),
            read_only: false,
            origin: from,
            image: spec.image,
            tree,
            head,
            tags: spec.tags,
            instance,
            attachment: None,
            policy: spec.policy.map(|id| self.applied(id)).transpose()?,
            delete_auto: spec.delete_auto,
            filled: None,
        };
        self.check_one_policy(&disk)?;
        let disk = NewDisk { disk, parent, key };
        if source.as_ref().is_some_and(|source| source.lazy) {
            // An older rowd must not take what is not fetched for zeros.
            self.shared.pool.require_version(superblock::LAZY_VERSION)?;
        }
        let op = match source {
            None => Op::DiskCreate(disk),
            Some(source) => Op::DiskFill { disk, filling: source.of(&id) },
        };
        self.change(by, op, message)?;
        self.disk(&id)
    }

    /// Deletes a disk for good; its snapshots stay, except those kept for undo, and automatic ones if that was set.
    /// Returns how many of these went.
    ///
    /// # Errors
    /// `InUse` when clients are connected and `force` is not given.
    pub fn disk_delete(&self, by: Actor, id: &DiskId, force: bool) -> Result<u64> {
        let _shape = self.shape.lock();
        let record = self.record(id)?;
        self.refuse_protected(id, "deleted")?;
        refuse_attached(&record, "deleted")?;
        self.making.refuse(&record, "deleted")?;
        self.check_undo_unpinned(&record)?;
        let _alone = self.clients.exclude(id, &record.name, force)?;
        let (snapshots, _snapshots_alone) = self.automatics_to_go(&record);
        // So that the record of the deletion says that all writes of the disk are durable: its blocks are
        // freed at once, and a tail of the journal must not ask for blocks that may be used again.
        self.shared.pool.sync()?;
        let count = snapshots.len() as u64;
        let message = format!("disk {} deleted{}", record.name, with(count));
        self.change(by, Op::DiskDelete { id: id.clone(), snapshots }, message)?;
        Ok(count)
    }

    /// Gives a disk another name; connected clients keep their connection.
    ///
    /// # Errors
    /// The name will not do or is taken.
    pub fn disk_rename(&self, by: Actor, id: &DiskId, name: &str) -> Result<DiskInfo> {
        let _shape = self.shape.lock();
        let mut disk = self.record(id)?;
        if disk.name != name {
            self.check_new_disk_name(name)?;
            let message = format!("disk {} renamed to {name}", disk.name);
            name.clone_into(&mut disk.name);
            self.update_disk(by, disk, "disk.rename", message)?;
        }
        self.disk(id)
    }

    /// Changes the size of a disk. What a larger disk gains reads as zeros; what a smaller one loses is
    /// gone from it, though not from its snapshots.
    ///
    /// # Errors
    /// `Invalid` for a smaller size without `force`; `InUse` for one while clients are connected.
    pub fn disk_resize(&self, by: Actor, id: &DiskId, size: u64, force: bool) -> Result<DiskInfo> {
        // What is cut off must not come back: it has to be known what there is. Nobody waits for us meanwhile.
        if let Some(lazy) = self.live(id)?.lazy() {
            lazy.wait(Need::Index)?;
        }
        let _shape = self.shape.lock();
        let mut disk = self.record(id)?;
        self.refuse_unfilled(id)?;
        self.making.refuse(&disk, "resized")?;
        check_size(size)?;
        if size < disk.size {
            self.refuse_protected(id, "made smaller")?;
            if !force {
                return Err(Error::invalid(format!(
                    "{} has {} bytes; {size} is smaller and would cut off its end",
                    disk.name, disk.size
                ))
                .hint("shrink the file system first, then use --force"));
            }
            let _alone = self.clients.exclude(id, &disk.name, false)?;
            self.trim_between(id, size, disk.size)?;
        } else {
            self.trim_between(id, disk.size, size)?;
        }
        let message = format!("disk {} resized from {} to {size} bytes", disk.name, disk.size);
        disk.size = size;
        self.update_disk(by, disk, "disk.resize", message)?;
        self.disk(id)
    }

    /// Changes properties of a disk.
    ///
    /// # Errors
    /// There is no such disk, or no such instance.
    pub fn disk_change(&self, by: Actor, id: &DiskId, change: DiskChange) -> Result<DiskInfo> {
        let _shape = self.shape.lock();
        let mut disk = self.record(id)?;
        if let Some(description) = change.description {
            disk.description = description;
        }
        if change.read_only == Some(true) && disk.attachment.is_some_and(|one| !one.read_only) {
            // The kernel would learn of it by failed writes.
            refuse_attached(&disk, "made read-only")?;
        }
        disk.read_only = change.read_only.unwrap_or(disk.read_only);
        disk.delete_auto = change.delete_auto.unwrap_or(disk.delete_auto);
        if let Some(instance) = change.instance {
            disk.instance = self.owner(&instance)?;
            self.check_one_policy(&disk)?;
        }
        let message = format!("disk {} changed", disk.name);
        self.update_disk(by, disk, "disk.set", message)?;
        self.disk(id)
    }

    /// Sets and removes tags of a disk.
    ///
    /// # Errors
    /// There is no such disk, or a tag will not do.
    pub fn tag_disk(
        &self,
        by: Actor,
        id: &DiskId,
        set: &Tags,
        remove: &[String],
    ) -> Result<DiskInfo> {
        let _shape = self.shape.lock();
        let mut disk = self.record(id)?;
        change_tags(&mut disk.tags, set, remove)?;
        let message = format!("tags of disk {} changed", disk.name);
        self.update_disk(by, disk, "disk.tag", message)?;
        self.disk(id)
    }

    /// Returns a disk to one of its snapshots. Newer snapshots stay, and so does the state before.
    ///
    /// # Errors
    /// `WrongState` when the snapshot is another disk's; `InUse` when clients are connected.
    pub fn disk_rollback(
        &self,
        by: Actor,
        id: &DiskId,
        to: &SnapshotId,
        force: bool,
    ) -> Result<Rollback> {
        let _shape = self.shape.lock();
        let disk = self.record(id)?;
        let snapshot = self.snapshot_of(id, to)?;
        self.check_usable(&snapshot)?;
        let message = format!("disk {} rolled back to {}", disk.name, snapshot.name);
        self.switch(by, &disk, Some(&snapshot), Switch { kind: "disk.rollback", message, force })
    }

    /// Returns a disk to the state before its last rollback or reinit. Doing it again returns once more.
    ///
    /// # Errors
    /// `WrongState` when there is nothing to undo, or what would be undone is not complete and `force` is not given.
    pub fn disk_undo(&self, by: Actor, id: &DiskId, force: bool) -> Result<Rollback> {
        let _shape = self.shape.lock();
        let disk = self.record(id)?;
        let newest = {
            let catalogue = self.catalogue.read();
            let of_disk = catalogue.snapshots_of(id);
            of_disk.filter(|s| s.kind == Kind::Undo).max_by_key(|s| s.node).cloned()
        };
        let Some(snapshot) = newest else {
            return Err(Error::new(
                ErrorKind::WrongState,
                format!("there is no rollback of {} to undo", disk.name),
            )
            .hint("the state before a rollback is kept for a limited time; see `undo_hours`"));
        };
        let filling = self.catalogue.read().fillings.get(id).cloned();
        // What lacks blocks alone can be dropped with them; where there are snapshots of it, it is kept as one.
        if filling.is_some_and(|filling| filling.root.is_none()) {
            return self.abandon(by, &disk, &snapshot, force);
        }
        let message = format!("disk {} returned to {}", disk.name, snapshot.name);
        self.switch(by, &disk, Some(&snapshot), Switch { kind: "disk.undo", message, force })
    }

    /// Returns a disk to what it was when it was made: a snapshot's contents, or nothing.
    ///
    /// # Errors
    /// `WrongState` when the snapshot it was made from is gone; `InUse` when clients are connected.
    pub fn disk_reinit(&self, by: Actor, id: &DiskId, force: bool) -> Result<Rollback> {
        let _shape = self.shape.lock();
        let disk = self.record(id)?;
        let origin = match &disk.origin {
            None => None,
            Some(origin) => Some(self.snapshot_record(origin).map_err(|_| {
                let what = match &disk.image {
                    Some(image) => format!("image {image}, whose snapshot is deleted"),
                    None => "a snapshot that is deleted".to_owned(),
                };
                Error::new(ErrorKind::WrongState, format!("{} was made from {what}", disk.name))
                    .hint("its first contents are gone; roll it back to a snapshot of its own")
            })?),
        };
        origin.as_ref().map_or(Ok(()), |origin| self.check_usable(origin))?;
        let message = format!("disk {} returned to its first contents", disk.name);
        self.switch(by, &disk, origin.as_ref(), Switch { kind: "disk.reinit", message, force })
    }

    /// Freezes the head as an undo snapshot and lets the disk go on below `target`, or empty.
    fn switch(
        &self,
        by: Actor,
        disk: &DiskRecord,
        target: Option<&SnapshotRecord>,
        what: Switch<'_>,
    ) -> Result<Rollback> {
        let Switch { kind, message, force } = what;
        // Before anybody is disconnected for it.
        self.refuse_return(&disk.id)?;
        let disconnected = self.clients.exclude(&disk.id, &disk.name, force)?;
        let head = self.tree(disk.tree).next_epoch()?;
        let word = if kind == "disk.reinit" { "before-reinit" } else { "before-rollback" };
        let turn = self.turn(disk, target, head, word)?;
        let result = told(&turn, target, disconnected.ended.clone());
        self.change(by, Op::Rollback { turn, kind: kind.to_owned() }, message)?;
        Ok(result)
    }

    /// What a disk's way back to `target` (or to nothing) is, with the state before kept under a name that
    /// begins with `word`.
    pub(super) fn turn(
        &self,
        disk: &DiskRecord,
        target: Option<&SnapshotRecord>,
        head: Epoch,
        word: &str,
    ) -> Result<Turn> {
        self.prepare_family(&disk.id)?;
        self.making.refuse(disk, "rolled back")?;
        let at = now();
        let to = target.map_or("its first contents", |target| &target.name);
        let undo = SnapshotRecord {
            id: SnapshotId::random()?,
            name: timed_name(&self.catalogue.read(), &disk.id, word, at),
            description: format!("{} as it was before it returned to {to}", disk.name),
            disk: disk.id.clone(),
            size: disk.size,
            created_at: at,
            kind: Kind::Undo,
            expires_at: Some(at + self.settings.undo_kept.as_secs()),
            tree: disk.tree,
            node: disk.head,
            tags: Tags::new(),
            consistency: Consistency::Crash,
            automatic: None,
            presence: None,
        };
        Ok(Turn {
            disk: disk.id.clone(),
            head,
            parent: target.map(|target| target.node),
            size: target.map_or(disk.size, |target| target.size.max(disk.size)),
            undo,
        })
    }

    fn update_disk(&self, by: Actor, disk: DiskRecord, kind: &str, message: String) -> Result<()> {
        self.change(by, Op::DiskUpdate { disk, kind: kind.to_owned() }, message)
    }

    fn trim_between(&self, id: &DiskId, start: u64, end: u64) -> Result<()> {
        let mut results = Vec::new();
        let range = ByteRange { start, end };
        Lane::new(&self.live(id)?).submit(&[DataOp::Trim { range }], &mut results);
        results.pop().unwrap_or(Ok(()))
    }
}

/// What a rollback, its undo and a reinit do.
pub const RETURNED: &str = "returned to an earlier state";

/// How a switch of heads is told, and whether clients are disconnected for it.
struct Switch<'a> {
    kind: &'a str,
    message: String,
    force: bool,
}

/// What a turn is told as.
pub(super) fn told(
    turn: &Turn,
    target: Option<&SnapshotRecord>,
    disconnected: Vec<ClientInfo>,
) -> Rollback {
    let undo = Undo { id: turn.undo.id.clone(), name: turn.undo.name.clone() };
    Rollback {
        undo: Some(undo),
        to: target.map(|target| target.id.clone()),
        disconnected,
        grown_since: target.is_some_and(|target| target.size < turn.size),
    }
}

fn disk_size(asked: Option<u64>, origin: Option<&SnapshotRecord>) -> Result<u64> {
    let size = match (asked, origin) {
        (Some(size), Some(origin)) if size < origin.size => {
            return Err(Error::invalid(format!(
                "{size} bytes are fewer than the {} of snapshot {}",
                origin.size, origin.name
            ))
            .hint("leave --size out, or give a larger one"));
        }
        (Some(size), _) => size,
        (None, Some(origin)) => origin.size,
        (None, None) => return Err(Error::invalid("an empty disk needs a size")),
    };
    check_size(size).map(|()| size)
}

pub(super) fn check_size(size: u64) -> Result<()> {
    if size == 0 || !size.is_multiple_of(BLOCK_SIZE) {
        return Err(Error::invalid(format!("a disk of {size} bytes: not a multiple of 4096"))
            .hint(format!("{} would do", size.max(1).next_multiple_of(BLOCK_SIZE))));
    }
    if size > MAX_DISK_BYTES {
        return Err(Error::invalid(format!("a disk of {size} bytes: at most {MAX_DISK_BYTES}")));
    }
    Ok(())
}

/// Tags per object, so that records stay small.
pub const TAGS_MAX: usize = 64;
/// Characters of a key or a value.
const TAG_CHARACTERS_MAX: usize = 128;

/// Sets and removes tags, checking them.
pub(super) fn change_tags(tags: &mut Tags, set: &Tags, remove: &[String]) -> Result<()> {
    check_tags(set)?;
    for key in remove {
        tags.remove(key);
    }
    tags.extend(set.iter().map(|(key, value)| (key.clone(), value.clone())));
    if tags.len() > TAGS_MAX {
        return Err(too_many_tags());
    }
    Ok(())
}

fn too_many_tags() -> Error {
    Error::new(ErrorKind::Quota, format!("more than {TAGS_MAX} tags"))
        .hint("remove some that are no longer used: `rowctl tag remove`")
}

/// Checks the tags of a new object.
pub(super) fn check_tags(tags: &Tags) -> Result<()> {
    if tags.len() > TAGS_MAX {
        return Err(too_many_tags());
    }
    for (key, value) in tags {
        let fits = |text: &str| text.chars().count() <= TAG_CHARACTERS_MAX;
        if key.is_empty() || !fits(key) || !fits(value) {
            return Err(Error::invalid(format!("the tag {key:?}={value:?}"))
                .hint("a key has 1 to 128 characters, a value at most 128"));
        }
    }
    Ok(())
}

/// Epochs end long before this is reached; see [`MAX_EPOCH`].
const _: () = assert!(MAX_EPOCH >= Epoch(1 << 20).0, "a tree has at least a million epochs");
