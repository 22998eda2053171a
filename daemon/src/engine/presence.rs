//! Where a snapshot is: in the pool, in a repository, or on its way from one to the other.
//!
//! Invariants: a snapshot that is to be in a repository has its copy from the same record on; its blocks leave the
//! pool only after the copy is complete, and never while a client or an image needs them; what cannot be used now
//! says why, and what to do.
//! Absent: making the copy (`vault/`), copies that somebody asks for beside (`copies.rs`).

use serde::{Deserialize, Serialize};

use super::api::{Access, Actor, JobInfo, KeepSpec, PresenceInfo};
use super::catalogue::{DONE, DiskRecord, Op, SnapshotRecord};
use super::clients::Subject;
use super::copies::{CopyRecord, Source};
use super::{Engine, jobs, now};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{CopyId, SnapshotId};

const DAY: u64 = 24 * 3600;

/// A snapshot that is kept in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// The name of the repository.
    pub repo: String,
    /// The copy that is this snapshot there, and goes with it.
    pub copy: CopyId,
    /// The copy has all of it.
    #[serde(default)]
    pub complete: bool,
    pub pool: InPool,
}

/// How long the blocks of a snapshot stay in the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InPool {
    /// Until the copy is complete; meanwhile for that alone.
    UntilCopied,
    /// For use at once, until then if a time is given, and until the copy is complete in any case.
    Access { until: Option<u64> },
    /// They are no longer there.
    Gone,
}

impl Presence {
    /// Whether the blocks should leave the pool now.
    fn is_due(&self, at: u64) -> bool {
        let over = match self.pool {
            InPool::UntilCopied => true,
            InPool::Access { until } => until.is_some_and(|end| end <= at),
            InPool::Gone => false,
        };
        self.complete && over
    }

    /// The copy that has to be made.
    pub(super) fn copy_of(&self, snapshot: &SnapshotRecord) -> CopyRecord {
        CopyRecord {
            id: self.copy.clone(),
            snapshot: snapshot.id.clone(),
            repo: self.repo.clone(),
            from: None,
            name: None,
            tags: snapshot.tags.clone(),
            description: snapshot.description.clone(),
            started_at: snapshot.created_at,
            failed: None,
            deleting: false,
        }
    }
}

impl Access {
    fn until(self, from: u64) -> Option<u64> {
        match self {
            Access::Days(days) => Some(from + u64::from(days) * DAY),
            Access::Endless => None,
        }
    }
}

/// What a copy is to the snapshot it was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the snapshot's presence in its repository.
    Own,
    /// Somebody asked for it beside.
    Beside,
    /// It is to be deleted, or no longer known.
    Leaving,
}

impl Engine {
    /// Where the contents of a snapshot have to come from: nothing said, from the pool; else from this copy,
    /// because the pool does not have them any more.
    ///
    /// # Errors
    /// `NotFound`; `WrongState` while it is only being copied, and can be used neither here nor there.
    pub fn source_of(&self, id: &SnapshotId) -> Result<Option<Source>> {
        let snapshot = self.snapshot_record(id)?;
        match &snapshot.presence {
            Some(Presence { repo, copy, complete: true, pool })
                if !matches!(pool, InPool::Access { .. }) =>
            {
                let (repo, copy) = (repo.clone(), copy.clone());
                Ok(Some(Source { repo, copy, snapshot: id.clone(), lazy: true }))
            }
            _ => self.check_usable(&snapshot).map(|()| None),
        }
    }

    /// The copy that is all there is of a snapshot whose blocks have left the pool.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn away(&self, id: &SnapshotId) -> Result<Option<Source>> {
        let gone = self.snapshot_record(id)?.presence.filter(|one| one.pool == InPool::Gone);
        let source = |Presence { repo, copy, .. }| {
            let snapshot = id.clone();
            Source { repo, copy, snapshot, lazy: true }
        };
        Ok(gone.map(source))
    }

    /// Refuses a snapshot that the pool cannot serve.
    pub(super) fn check_usable(&self, snapshot: &SnapshotRecord) -> Result<()> {
        let Some(presence) = &snapshot.presence else { return Ok(()) };
        let (label, repo) = (self.snapshot_label(snapshot), &presence.repo);
        let (message, hint) = match presence {
            Presence { pool: InPool::Access { .. }, .. } => return Ok(()),
            Presence { complete: true, copy, .. } => (
                format!("{label} is only in repository {repo}"),
                format!("make a disk of its copy: `rowctl disk create NAME --from {copy}`"),
            ),
            Presence { copy, .. } => match self.copy_trouble(copy) {
                Some(why) => (
                    format!("{label} could not be copied to {repo}: {why}"),
                    format!(
                        "try again: `rowctl copy retry {copy}`; or use it from the pool: `rowctl snapshot set {label} --instant-access`"
                    ),
                ),
                None => (
                    format!("{label} is being copied to {repo}, {} %", self.copy_percent(copy)),
                    format!(
                        "wait for it: `rowctl snapshot wait {label}`; or use it at once: `rowctl snapshot set {label} --instant-access`"
                    ),
                ),
            },
        };
        Err(Error::new(ErrorKind::WrongState, message).hint(hint))
    }

    /// Refuses a snapshot whose blocks are no longer in the pool.
    pub(super) fn check_held(&self, snapshot: &SnapshotRecord) -> Result<()> {
        if snapshot.is_held() { Ok(()) } else { self.check_usable(snapshot) }
    }

    /// Refuses another snapshot of a disk while the one before it cannot be used yet.
    pub(super) fn check_previous(&self, disk: &DiskRecord) -> Result<()> {
        let found = {
            let catalogue = self.catalogue.read();
            let mut of_disk = catalogue.snapshots_of(&disk.id);
            of_disk.find_map(|snapshot| {
                let presence = snapshot.presence.as_ref()?;
                let copy = catalogue.copies.get(&presence.copy)?;
                let waits = !presence.complete
                    && presence.pool == InPool::UntilCopied
                    && copy.failed.is_none();
                waits.then(|| (snapshot.name.clone(), presence.clone()))
            })
        };
        let Some((name, Presence { repo, copy, .. })) = found else { return Ok(()) };
        let (disk, percent) = (&disk.name, self.copy_percent(&copy));
        let message = format!("{disk}@{name} is still being copied to {repo}, {percent} %");
        Err(Error::new(ErrorKind::StillCopying, message).hint(format!(
            "wait for it: `rowctl snapshot wait {disk}@{name}`; with --instant-access the next can be made at once"
        )))
    }

    /// The presence of a snapshot that is to be made.
    pub(super) fn new_presence(
        &self,
        disk: &DiskRecord,
        spec: &KeepSpec,
        at: u64,
    ) -> Result<Presence> {
        let repo = self.repo(&spec.repo)?.name;
        let key = self.copy_key_of(disk.tree);
        key.map_err(|error| error.context(format!("{} is encrypted", disk.name)))?;
        self.check_room_for_copy()?;
        let pool = match spec.access {
            None => InPool::UntilCopied,
            Some(access) => InPool::Access { until: access.until(at) },
        };
        Ok(Presence { repo, copy: CopyId::random()?, complete: false, pool })
    }

    /// Gives a snapshot instant access, changes its end, or (`None`) ends it.
    pub(super) fn change_access(
        &self,
        snapshot: &mut SnapshotRecord,
        access: Option<Access>,
    ) -> Result<()> {
        let label = self.snapshot_label(snapshot);
        let Some(presence) = &mut snapshot.presence else {
            let message = format!("{label} is in no repository: it stays in the pool");
            return Err(Error::new(ErrorKind::WrongState, message)
                .hint("copy it: `rowctl snapshot copy`; or delete it"));
        };
        presence.pool = match (access, &presence.pool) {
            (Some(_), InPool::Gone) => {
                let message = format!("{label} is only in repository {}", presence.repo);
                return Err(Error::new(ErrorKind::WrongState, message).hint(format!(
                    "make a disk of its copy: `rowctl disk create NAME --from {}`",
                    presence.copy
                )));
            }
            (Some(access), _) => InPool::Access { until: access.until(now()) },
            (None, InPool::Access { .. }) if !presence.complete => {
                let Presence { repo, copy, .. } = presence;
                let (how, hint) = match self.copy_trouble(copy) {
                    None => (
                        format!("is still being copied to {repo}, {} %", self.copy_percent(copy)),
                        format!("wait for it: `rowctl snapshot wait {label}`"),
                    ),
                    Some(why) => (
                        format!("could not be copied to {repo} ({why})"),
                        format!("try again: `rowctl copy retry {copy}`"),
                    ),
                };
                let message = format!("{label} {how}: its instant access cannot end yet");
                return Err(Error::new(ErrorKind::WrongState, message).hint(hint));
            }
            (None, InPool::Access { .. }) => InPool::UntilCopied,
            (None, other) => other.clone(),
        };
        Ok(())
    }

    /// What a copy is to its snapshot.
    #[must_use]
    pub fn copy_standing(&self, copy: &CopyId) -> Standing {
        let catalogue = self.catalogue.read();
        match catalogue.copies.get(copy) {
            Some(record) if !record.deleting => match catalogue.snapshot_with(copy) {
                Some(_) => Standing::Own,
                None => Standing::Beside,
            },
            _ => Standing::Leaving,
        }
    }

    /// Takes note that a copy is complete. A snapshot of which it is the presence leaves the pool, unless it has
    /// instant access.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn copy_done(&self, copy: &CopyId, message: String) -> Result<()> {
        let shape = self.shape.lock();
        let (known, own) = {
            let catalogue = self.catalogue.read();
            let known = catalogue.copies.get(copy).is_some_and(|record| !record.deleting);
            (known, catalogue.snapshot_with(copy).map(|snapshot| snapshot.id.clone()))
        };
        if !known {
            return Ok(());
        }
        let Some(snapshot) = own else {
            let op = Op::CopyRemove { id: copy.clone(), kind: DONE.to_owned() };
            return self.change(Actor::DAEMON, op, message);
        };
        let op = Op::SnapshotCopied { id: snapshot.clone(), copy: copy.clone() };
        self.change(Actor::DAEMON, op, message)?;
        drop(shape);
        self.leave_if_due(Actor::DAEMON, &snapshot)
    }

    /// Lets the snapshots leave the pool whose time there is over. Background work.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn leave_all_due(&self) -> Result<()> {
        let at = now();
        let due: Vec<SnapshotId> = {
            let catalogue = self.catalogue.read();
            let due = |s: &&SnapshotRecord| s.presence.as_ref().is_some_and(|p| p.is_due(at));
            catalogue.leaving().filter(due).map(|s| s.id.clone()).collect()
        };
        due.iter().try_for_each(|id| self.leave_if_due(Actor::DAEMON, id))
    }

    /// Lets a snapshot leave the pool, if its time there is over and nobody needs it. Else its turn comes later.
    pub(super) fn leave_if_due(&self, by: Actor, id: &SnapshotId) -> Result<()> {
        let _shape = self.shape.lock();
        let Ok(snapshot) = self.snapshot_record(id) else { return Ok(()) };
        let Some(presence) = snapshot.presence.as_ref().filter(|one| one.is_due(now())) else {
            return Ok(());
        };
        let in_use = !self.clients.of(&Subject::Snapshot(id.clone())).is_empty();
        if in_use || self.check_unpinned(&snapshot).is_err() {
            return Ok(());
        }
        // Held until it has left, or a client could open it between.
        let Ok(_alone) = self.clients.exclude_snapshot(id, &snapshot.name, false) else {
            return Ok(());
        };
        let label = self.snapshot_label(&snapshot);
        let message = format!("snapshot {label} left the pool, it is in {}", presence.repo);
        self.change(by, Op::SnapshotLeave { id: id.clone() }, message)?;
        self.opened.lock().remove(id);
        Ok(())
    }

    /// Keeps a snapshot in the pool for good, because its copy is to be deleted. `false` when this is no copy that
    /// is a snapshot's presence.
    ///
    /// # Errors
    /// `InUse` when the copy is all there is of the snapshot.
    pub fn snapshot_stay(&self, by: Actor, copy: &CopyId) -> Result<bool> {
        let _shape = self.shape.lock();
        let found = self.catalogue.read().snapshot_with(copy).cloned();
        let Some(snapshot) = found else { return Ok(false) };
        let label = self.snapshot_label(&snapshot);
        if !snapshot.is_held() {
            let message = format!("copy {copy} is all there is of snapshot {label}");
            return Err(Error::new(ErrorKind::InUse, message)
                .hint(format!("delete both: `rowctl snapshot delete {label}`")));
        }
        let message = format!("copy {copy} of {label} goes, the snapshot stays in the pool");
        self.change(by, Op::SnapshotStay { id: snapshot.id, copy: copy.clone() }, message)?;
        Ok(true)
    }

    /// Copies that are to be deleted, with their snapshots or as somebody asked.
    #[must_use]
    pub fn copies_leaving(&self) -> Vec<CopyRecord> {
        let catalogue = self.catalogue.read();
        catalogue.copies.values().filter(|copy| copy.deleting).cloned().collect()
    }

    /// A copy that is under way, failed or to be deleted, as it is now.
    #[must_use]
    pub fn copy_record(&self, copy: &CopyId) -> Option<CopyRecord> {
        self.catalogue.read().copies.get(copy).cloned()
    }

    /// A snapshot that is in a repository, or will be.
    #[must_use]
    pub fn snapshot_in_repo(&self, repo: &str) -> Option<String> {
        let found = {
            let catalogue = self.catalogue.read();
            let here = |s: &&SnapshotRecord| s.presence.as_ref().is_some_and(|p| p.repo == repo);
            catalogue.snapshots.values().find(here).cloned()
        };
        found.map(|snapshot| self.snapshot_label(&snapshot))
    }

    /// What is told of where a snapshot is.
    pub(super) fn presence_info(&self, snapshot: &SnapshotRecord) -> Option<PresenceInfo> {
        let Presence { repo, copy, complete, pool } = snapshot.presence.clone()?;
        Some(PresenceInfo {
            failed: self.copy_trouble(&copy).filter(|_| !complete),
            job: if complete { None } else { self.copy_job(&copy) },
            repo,
            copy,
            complete,
            held: pool != InPool::Gone,
            access: match pool {
                InPool::Access { until } => Some(until),
                InPool::UntilCopied | InPool::Gone => None,
            },
        })
    }

    /// Refuses to part with a snapshot whose copy a disk is still filled from.
    pub(super) fn check_no_filling(&self, snapshot: &SnapshotRecord) -> Result<()> {
        let Some(presence) = &snapshot.presence else { return Ok(()) };
        let disk = {
            let catalogue = self.catalogue.read();
            let filling = catalogue.fillings.values().find(|one| one.copy == presence.copy);
            filling.map(|filling| filling.disk.clone())
        };
        let Some(disk) = disk else { return Ok(()) };
        let disk = self.disk_name(&disk);
        let message = format!("disk {disk} is being filled from {}", self.snapshot_label(snapshot));
        Err(Error::new(ErrorKind::InUse, message)
            .hint("wait, or delete the disk and the snapshots of it that lack blocks"))
    }

    fn copy_trouble(&self, copy: &CopyId) -> Option<String> {
        self.catalogue.read().copies.get(copy)?.failed.clone()
    }

    fn copy_job(&self, copy: &CopyId) -> Option<JobInfo> {
        self.jobs.running("copy", copy.as_str())
    }

    fn copy_percent(&self, copy: &CopyId) -> u8 {
        self.copy_job(copy).map_or(0, |job| jobs::progress(&job).0)
    }
}

impl SnapshotRecord {
    /// Whether its blocks are in the pool.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.presence.as_ref().is_none_or(|presence| presence.pool != InPool::Gone)
    }

    /// Whether it stays in the pool for use at once, though it goes to a repository.
    #[must_use]
    pub fn has_access(&self) -> bool {
        let kept = |presence: &Presence| matches!(presence.pool, InPool::Access { .. });
        self.presence.as_ref().is_some_and(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instant_access_ends_to_the_second_and_never_before_the_copy_is_complete() {
        let copy = CopyId::from("c-1");
        let pool = InPool::Access { until: Access::Days(2).until(1000) };
        let mut one = Presence { repo: "r".to_owned(), copy, complete: false, pool };
        let end = 1000 + 2 * 24 * 3600;
        assert!(!one.is_due(end));
        one.complete = true;
        assert!(!one.is_due(end - 1) && one.is_due(end));
        one.pool = InPool::Access { until: Access::Endless.until(1000) };
        assert!(!one.is_due(u64::MAX));
        one.pool = InPool::UntilCopied;
        assert!(one.is_due(0));
        one.complete = false;
        assert!(!one.is_due(u64::MAX));
    }
}
