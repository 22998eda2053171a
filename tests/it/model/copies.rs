//! Copies in the model test: snapshots that are to be in a repository, with instant access and without, copied as the
//! vault does it, and what has left the pool.
//!
//! Invariants: what is sent is what changed since the base, block by block, and with the base it is the snapshot;
//! what the engine refuses, it refuses for the reason the model knows.
//! Absent: the repository itself (`vault/` of the tests); here it is a map that no power cut reaches.

use std::collections::BTreeMap;
use std::rc::Rc;

use rowd::disk::lane::Lane;
use rowd::engine::Pin;
use rowd::engine::api::{Access, KeepSpec, SnapshotChange, SnapshotSpec, Tags};
use rowd::engine::repos::RepoRecord;
use rowd::error::ErrorKind;
use rowd::units::{BLOCK_BYTES, BLOCK_SIZE, ByteRange, CopyId, DiskId, RepoId, SnapshotId};

use super::compare::equal;
use super::machine::{BY, Machine, Outcome, QUOTA, SNAPSHOTS_MAX, text};
use super::reference::{Reference, Snapshot, Stored};

pub const REPO: &str = "repo";

/// A snapshot as a repository keeps it.
#[derive(Debug)]
pub struct Kept {
    snapshot: SnapshotId,
    pub blocks: BTreeMap<u64, Stored>,
}

pub type Repository = BTreeMap<CopyId, Kept>;

/// Where a snapshot is that is to be in the repository.
#[derive(Clone, Debug)]
pub struct Presence {
    pub copy: CopyId,
    pub complete: bool,
    pub access: bool,
    pub gone: bool,
}

impl Snapshot {
    /// Whether its blocks are in the pool.
    pub fn held(&self) -> bool {
        self.presence.as_ref().is_none_or(|presence| !presence.gone)
    }

    /// Whether disks, images and exports can be made of it.
    pub fn usable(&self) -> bool {
        self.presence.as_ref().is_none_or(|presence| presence.access)
    }
}

impl Reference {
    /// Whether a snapshot of the disk is being copied that cannot be used yet.
    pub fn waits(&self, disk: &DiskId) -> bool {
        let waiting = |s: &&Snapshot| s.presence.as_ref().is_some_and(|p| !p.complete && !p.access);
        self.snapshots.iter().filter(|s| s.disk == *disk).any(|s| waiting(&s))
    }

    /// Instant access ends with the disk.
    pub fn end_access(&mut self, disk: &DiskId) {
        let of_disk = self.snapshots.iter_mut().filter(|s| s.disk == *disk);
        for presence in of_disk.filter_map(|s| s.presence.as_mut()) {
            presence.access = false;
        }
    }

    fn leave(&mut self) {
        for at in 0..self.snapshots.len() {
            let pinned = self.pinned(&self.snapshots[at].id);
            let node = self.snapshots[at].node;
            let Some(presence) = &mut self.snapshots[at].presence else { continue };
            if presence.complete && !presence.access && !presence.gone && !pinned {
                presence.gone = true;
                self.release(node);
            }
        }
        self.end_needless();
    }
}

impl Machine {
    /// Makes the repository known.
    pub fn add_repository(&self) -> Outcome {
        let repo = RepoRecord {
            name: REPO.to_owned(),
            url: "file:///nowhere".to_owned(),
            id: RepoId::from("r-model"),
            endpoint: None,
            region: None,
            credentials: "env".to_owned(),
            allow_http: false,
            bandwidth: 0,
            added_at: 0,
            default: false,
        };
        self.engine().repo_add(BY, repo).map_err(text)
    }

    /// Makes a snapshot that is to be in the repository.
    pub fn keep(&mut self, disk: u8, access: bool) -> Outcome {
        let Some(at) = self.disk(disk) else { return Ok(()) };
        if self.reference.snapshots.len() >= SNAPSHOTS_MAX {
            return self.shed();
        }
        let (id, name) = (self.reference.disks[at].id.clone(), self.new_name());
        let manual = self.reference.snapshots.iter().filter(|s| s.disk == id && !s.undo).count();
        let waits = self.reference.waits(&id);
        let access = access.then_some(Access::Endless);
        let spec = SnapshotSpec {
            disk: id,
            name: Some(name.clone()),
            description: String::new(),
            tags: Tags::new(),
            copy: Some(KeepSpec { repo: REPO.to_owned(), access }),
        };
        match self.engine().snapshot_create(BY, spec) {
            Ok(made) if !waits && manual < QUOTA => {
                let told = made.presence.ok_or("a snapshot that is in no repository")?;
                let node = self.reference.freeze(at, made.id, &name, false);
                let presence = Presence {
                    copy: told.copy,
                    complete: false,
                    access: access.is_some(),
                    gone: false,
                };
                let last = self.reference.snapshots.last_mut().expect("just frozen");
                last.presence = Some(presence);
                self.reference.go_on(at, Some(node));
                self.compare_disk(at)
            }
            Err(error) if error.kind() == ErrorKind::StillCopying && waits => Ok(()),
            Err(error) if error.kind() == ErrorKind::Quota && !waits && manual >= QUOTA => Ok(()),
            other => Err(format!("waits: {waits}, {manual} snapshots: {other:?}")),
        }
    }

    /// Makes one of the copies that are under way, as the vault would.
    pub fn copy(&mut self, number: u8) -> Outcome {
        let under_way = |s: &&Snapshot| s.presence.as_ref().is_some_and(|p| !p.complete);
        let all: Vec<&Snapshot> = self.reference.snapshots.iter().filter(under_way).collect();
        let Some(snapshot) = all.get(usize::from(number) % all.len().max(1)) else { return Ok(()) };
        let snapshot = (*snapshot).clone();
        let lacks = self.reference.lacks(snapshot.node).is_some();
        equal("whether it waits", self.engine().snapshot_waits(&snapshot.id).is_some(), lacks)?;
        if lacks {
            return Ok(());
        }
        let copy = snapshot.presence.as_ref().expect("chosen so").copy.clone();
        let among: Vec<SnapshotId> =
            self.repository.values().map(|kept| kept.snapshot.clone()).collect();
        let engine = self.engine();
        let target = engine.pin_snapshot(&snapshot.id, "model", Pin::Yields, Box::new(|| {}));
        let target = target.map_err(text)?;
        let base = engine.copy_base(&snapshot.id, &among);
        let changes = engine.changes(base.as_ref(), &snapshot.id).map_err(text)?;
        let old = base.map_or_else(BTreeMap::new, |base| {
            let kept = self.repository.values().find(|kept| kept.snapshot == base.snapshot);
            kept.expect("a base is in the repository").blocks.clone()
        });
        let truth = Rc::clone(&self.reference.nodes[&snapshot.node].blocks);
        let mut blocks = old.clone();
        blocks.retain(|lba, _| *lba < snapshot.size / BLOCK_SIZE);
        let mut sent = Vec::new();
        let mut lane = Lane::new(&target.disk);
        for change in changes.iter().filter(|change| change.offset < snapshot.size) {
            let end = (change.offset + change.length).min(snapshot.size);
            for lba in change.offset / BLOCK_SIZE..end / BLOCK_SIZE {
                blocks.remove(&lba);
                if change.zero {
                    continue;
                }
                let mut bytes = vec![0; BLOCK_BYTES];
                let range = ByteRange { start: lba * BLOCK_SIZE, end: (lba + 1) * BLOCK_SIZE };
                lane.read(range, &mut bytes).map_err(text)?;
                let identity = truth.get(&lba).ok_or("a hole is told as data")?.identity;
                blocks.insert(lba, Stored { identity, here: true, bytes: bytes.into() });
                sent.push(lba);
            }
        }
        drop((lane, target));
        compare_copy(&snapshot, &blocks, &truth)?;
        let is_new = |(lba, stored): &(&u64, &Stored)| {
            old.get(lba).is_none_or(|before| before.identity != stored.identity)
        };
        let new: Vec<u64> = truth.iter().filter(is_new).map(|(lba, _)| *lba).collect();
        equal("blocks that were sent", sent, new)?;
        self.repository.insert(copy.clone(), Kept { snapshot: snapshot.id.clone(), blocks });
        self.engine().copy_done(&copy, "copied".to_owned()).map_err(text)?;
        let found = self.reference.snapshots.iter_mut().find(|s| s.id == snapshot.id);
        found.and_then(|s| s.presence.as_mut()).expect("chosen so").complete = true;
        self.leave()
    }

    /// Begins or ends instant access of one of the snapshots.
    pub fn access(&mut self, number: u8, on: bool) -> Outcome {
        let kept = self.reference.snapshots.iter().filter(|s| s.presence.is_some());
        let kept: Vec<SnapshotId> = kept.map(|s| s.id.clone()).collect();
        let Some(id) = kept.get(usize::from(number) % kept.len().max(1)) else { return Ok(()) };
        let access = Some(on.then_some(Access::Endless));
        let change = SnapshotChange { access, ..SnapshotChange::default() };
        let outcome = self.engine().snapshot_change(BY, id, change);
        let found = self.reference.snapshots.iter_mut().find(|s| s.id == *id);
        let presence = found.and_then(|s| s.presence.as_mut()).expect("chosen so");
        let refused = if on { presence.gone } else { presence.access && !presence.complete };
        match outcome {
            Ok(_) if !refused => {
                presence.access = on;
                self.leave()
            }
            Err(error) if refused && error.kind() == ErrorKind::WrongState => Ok(()),
            other => Err(format!("instant access on: {on}, refused: {refused}: {other:?}")),
        }
    }

    /// Lets go what has no more reason to be in the pool, or in the repository.
    pub fn leave(&mut self) -> Outcome {
        self.engine().leave_all_due().map_err(text)?;
        self.reference.leave();
        for copy in self.engine().copies_leaving() {
            let gone = self.engine().copy_end(BY, &copy.id, "copy.delete", "deleted".to_owned());
            gone.map_err(text)?;
            self.repository.remove(&copy.id);
        }
        Ok(())
    }

    /// Where the engine says that a snapshot is.
    pub fn compare_presence(&self, snapshot: &Snapshot) -> Outcome {
        let told = self.engine().snapshot(&snapshot.id).map_err(text)?.presence;
        let told = told.map(|p| (p.copy, p.complete, p.access.is_some(), !p.held));
        let truth = snapshot.presence.clone();
        let truth = truth.map(|p| (p.copy, p.complete, p.access, p.gone));
        equal(&format!("where {} is", snapshot.name), told, truth)
    }
}

fn compare_copy(
    snapshot: &Snapshot,
    copy: &BTreeMap<u64, Stored>,
    truth: &BTreeMap<u64, Stored>,
) -> Outcome {
    let bytes = |map: &BTreeMap<u64, Stored>, lba| map.get(&lba).map(|s| Rc::clone(&s.bytes));
    let wrong = (0..snapshot.size / BLOCK_SIZE).find(|lba| bytes(copy, *lba) != bytes(truth, *lba));
    match wrong {
        None => Ok(()),
        Some(lba) => Err(format!("block {lba} of the copy of {} is wrong", snapshot.name)),
    }
}
