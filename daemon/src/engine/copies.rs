//! Copies of snapshots as the engine sees them: those under way, what is needed to make one, and disks that are
//! being filled from one.
//!
//! Invariants: a copy that is under way is a record, so that it goes on after any end of the daemon; a snapshot
//! that is being copied is in use.
//! Absent: disks that are being filled (`filling.rs`); finished copies, which their repository knows; talking to repositories (`vault/`).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Engine;
use super::api::{Actor, Change, ClientInfo, DiskInfo, DiskSpec, Tags};
use super::catalogue::Op;
use super::clients::{Hangup, Pin, Subject};
use super::disks::check_tags;
use super::exports::Target;
use super::families::Root;
use super::jobs::Job;
use super::names::check_manual_name;
use super::now;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{CopyId, DiskId, Epoch, SnapshotId};

/// Copies under way or failed; more wait for a decision.
const COPIES_MAX: usize = 1024;
/// Changes asked for at a time.
const CHANGES_AT_ONCE: usize = 64 << 10;

/// A copy that is under way, or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRecord {
    pub id: CopyId,
    pub snapshot: SnapshotId,
    /// The name of the repository.
    pub repo: String,
    /// The copy it is made of; nothing when it is made of the snapshot, which is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Place>,
    /// What the snapshot is called there; nothing: as here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default)]
    pub description: String,
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    pub started_at: u64,
    /// Why it failed; it goes on when somebody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// It is to be deleted, be it complete or not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleting: bool,
}

/// A copy in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The name of the repository.
    pub repo: String,
    pub copy: CopyId,
}

/// Where the contents of a disk come from that does not have them yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filling {
    pub disk: DiskId,
    /// The name of the repository.
    pub repo: String,
    pub copy: CopyId,
    pub snapshot: SnapshotId,
    /// The disk is used while it is filled: what it lacks is fetched when it is asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lazy: bool,
    /// The disk returned to the copy: what changed after this epoch has to become holes before anybody uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clear: Option<Epoch>,
    /// Since the disk was kept as a snapshot meanwhile: the node that was. What descends from it lacks blocks too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
}

/// A copy to fill a disk from.
#[derive(Clone, Debug)]
pub struct Source {
    pub repo: String,
    pub copy: CopyId,
    pub snapshot: SnapshotId,
    /// See [`Filling::lazy`].
    pub lazy: bool,
}

/// What a copy is made as changes of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    pub snapshot: SnapshotId,
    /// It is an ancestor: its last epoch.
    pub since: Option<Epoch>,
}

impl Source {
    pub(super) fn of(self, disk: &DiskId) -> Filling {
        let Source { repo, copy, snapshot, lazy } = self;
        Filling { disk: disk.clone(), repo, copy, snapshot, lazy, clear: None, root: None }
    }
}

impl Engine {
    /// Copies under way or failed.
    #[must_use]
    pub fn copies(&self) -> Vec<CopyRecord> {
        let catalogue = self.catalogue.read();
        catalogue.copies.values().filter(|copy| !copy.deleting).cloned().collect()
    }

    /// Remembers a copy that begins.
    ///
    /// # Errors
    /// `InUse` when this snapshot is being copied there; there is no such snapshot or repository.
    pub fn copy_begin(&self, by: Actor, copy: CopyRecord) -> Result<()> {
        let _shape = self.shape.lock();
        self.repo(&copy.repo)?;
        check_tags(&copy.tags)?;
        copy.name.as_ref().map(|name| check_manual_name(name)).transpose()?;
        let label = match &copy.from {
            Some(from) => format!("copy {} in {}", from.copy, self.repo(&from.repo)?.name),
            None => {
                let snapshot = self.snapshot_record(&copy.snapshot)?;
                self.check_held(&snapshot)?;
                self.copy_key(&copy.snapshot)?;
                self.snapshot_label(&snapshot)
            }
        };
        let copies = self.copies();
        let same = |other: &&CopyRecord| other.snapshot == copy.snapshot && other.repo == copy.repo;
        if let Some(other) = copies.iter().find(same) {
            let (verb, hint) = match other.failed {
                None => {
                    ("is being copied", format!("wait for it: `rowctl copy wait {}`", other.id))
                }
                Some(_) => {
                    ("has failed to be copied", format!("try `rowctl copy retry {}`", other.id))
                }
            };
            let message = format!("{label} {verb} to {} already", copy.repo);
            return Err(Error::new(ErrorKind::InUse, message).hint(hint));
        }
        self.check_room_for_copy()?;
        let message = format!("copy of {label} to {} began", copy.repo);
        self.change(by, Op::CopyPut { copy, kind: "copy.start".to_owned() }, message)
    }

    pub(super) fn check_room_for_copy(&self) -> Result<()> {
        if self.catalogue.read().copies.len() >= COPIES_MAX {
            let message = format!("{COPIES_MAX} copies are under way or failed");
            return Err(Error::new(ErrorKind::Quota, message).hint("see `rowctl copy list`"));
        }
        Ok(())
    }

    /// Takes note that a copy failed, or that it is tried again (`None`).
    ///
    /// # Errors
    /// It is no longer there.
    pub fn copy_failed(&self, by: Actor, id: &CopyId, why: Option<String>) -> Result<CopyRecord> {
        let _shape = self.shape.lock();
        let found = self.catalogue.read().copies.get(id).cloned();
        let found = found.filter(|copy| !copy.deleting || why.is_some());
        let mut copy =
            found.ok_or_else(|| Error::not_found(format!("no copy {id} is under way")))?;
        let (kind, message) = match &why {
            Some(why) => ("copy.fail", format!("copy {id} to {} failed: {why}", copy.repo)),
            None => ("copy.retry", format!("copy {id} to {} is tried again", copy.repo)),
        };
        copy.failed = why;
        self.change(by, Op::CopyPut { copy: copy.clone(), kind: kind.to_owned() }, message)?;
        Ok(copy)
    }

    /// Forgets a copy: it is complete, or given up. `kind` and `message` are for its event.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn copy_end(&self, by: Actor, id: &CopyId, kind: &str, message: String) -> Result<()> {
        let _shape = self.shape.lock();
        if !self.catalogue.read().copies.contains_key(id) {
            return Ok(());
        }
        self.change(by, Op::CopyRemove { id: id.clone(), kind: kind.to_owned() }, message)
    }

    /// Which of some snapshots has most in common with another one: its nearest ancestor, or else the
    /// latest of its family. An ancestor serves when its blocks have left the pool too; others do not.
    #[must_use]
    pub fn copy_base(&self, of: &SnapshotId, among: &[SnapshotId]) -> Option<Base> {
        let catalogue = self.catalogue.read();
        let target = catalogue.snapshots.get(of)?;
        let lineage = self.tree(target.tree).lineage(target.node);
        let family = among.iter().filter_map(|id| catalogue.snapshots.get(id));
        family
            .filter(|other| other.tree == target.tree && other.id != target.id)
            .map(|other| (lineage.owner(other.node).is_some(), other))
            .filter(|(is_ancestor, other)| *is_ancestor || other.is_held())
            .max_by_key(|(is_ancestor, other)| (*is_ancestor, other.node))
            .map(|(is_ancestor, other)| Base {
                snapshot: other.id.clone(),
                since: is_ancestor.then_some(other.node),
            })
    }

    /// All that changed from one snapshot (`None`: an empty disk) to another, in order. Of an ancestor nothing
    /// need be there any more: what is as old as that is the same. Zeros may be told that were there before.
    /// The caller holds on to `to`.
    ///
    /// # Errors
    /// As [`Engine::diff`]; the base has left the pool or is being deleted.
    pub fn changes(self: &Arc<Self>, from: Option<&Base>, to: &SnapshotId) -> Result<Vec<Change>> {
        let _pin = match from {
            None => None,
            Some(Base { since: Some(since), .. }) => return self.changes_since(*since, to),
            Some(Base { snapshot, since: None }) => Some(self.pin_snapshot(
                snapshot,
                "a copy that is begun",
                Pin::Held,
                Box::new(|| {}),
            )?),
        };
        let from = from.map(|base| &base.snapshot);
        let (mut all, mut at): (Vec<Change>, u64) = (Vec::new(), 0);
        loop {
            let (found, next) = self.diff(from, to, at, CHANGES_AT_ONCE)?;
            all.extend(found);
            match next {
                Some(next) if next > at => at = next,
                Some(_) => return Err(Error::internal("a diff does not go on")),
                None => return Ok(all),
            }
        }
    }

    /// Opens a snapshot for reading, and keeps it until the target is dropped: `user` is who it is in use
    /// by, `hangup` is called when somebody deletes it, by force or not as `pin` says.
    ///
    /// # Errors
    /// `NotFound`; `WrongState` when it has left the pool; `ShuttingDown` while it is being deleted.
    pub fn pin_snapshot(
        self: &Arc<Self>,
        id: &SnapshotId,
        user: &str,
        pin: Pin,
        hangup: Hangup,
    ) -> Result<Target> {
        let snapshot = self.snapshot_record(id)?;
        let export = self.snapshot_label(&snapshot);
        let info = ClientInfo { export, pid: None, peer: user.to_owned(), connected_at: now() };
        let subject = Subject::Snapshot(id.clone());
        let listed = self.clients.add(subject.clone(), info, pin, hangup)?;
        // Again: it may have been deleted, or have left the pool, just before it was listed.
        let snapshot = self.snapshot_record(id)?;
        self.check_held(&snapshot)?;
        let disk = self.open_snapshot(&snapshot);
        Ok(Target::new(disk, Arc::clone(self), subject, listed))
    }

    /// Begins a job of the vault.
    ///
    /// # Errors
    /// There are no random numbers for its id.
    pub fn job_begin(&self, kind: &'static str, object: &str) -> Result<Arc<Job>> {
        self.jobs.begin(kind, object, false)
    }

    /// The disks and families that are being filled.
    #[must_use]
    pub fn fillings(&self) -> Vec<Filling> {
        self.catalogue.read().fillings.values().cloned().collect()
    }

    /// Makes a disk that is to be filled.
    ///
    /// # Errors
    /// The name or size will not do.
    pub fn fill_begin(&self, by: Actor, spec: DiskSpec, source: Source) -> Result<DiskInfo> {
        self.disk_made(by, spec, Some(source))
    }
}
