//! Returning a disk to a snapshot whose blocks are only in a repository, or to a copy of the disk.
//!
//! Invariants: what is needed of the copy before its first chunk is read and checked before anything is changed, and
//! without a lock.
//! Absent: what becomes of the disk (`engine/returning.rs`); fetching its blocks (`origin.rs`, `fill.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::copies::{CopyState, refuse_unfinished};
use super::header::{self, Header, missing};
use super::origin::{Known, Opened};
use super::seal::Seal;
use super::{Vault, open_repo};
use crate::engine::api::{Actor, GroupReturn, GroupReturned, Rollback};
use crate::engine::copies::Source;
use crate::engine::returning::Goal;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, GroupId, SnapshotId};

/// How a disk gets back to a snapshot of its own.
#[derive(Debug)]
pub enum Way {
    /// It is in the pool.
    Here(SnapshotId),
    /// It is in a repository.
    There { goal: Goal, opened: Box<Opened> },
}

impl Vault {
    /// The way of a disk to a snapshot.
    ///
    /// # Errors
    /// `WrongState` when the snapshot is another disk's, or can be used neither here nor there; what is wrong with
    /// its copy.
    pub fn way_back(&self, disk: &DiskId, to: &SnapshotId) -> Result<Way> {
        match self.engine.way_back(disk, to)? {
            None => Ok(Way::Here(to.clone())),
            Some(goal) => self.way_there(disk, goal),
        }
    }

    /// The way of a disk to a copy of itself, which may be all there is of its snapshot.
    ///
    /// # Errors
    /// As [`Vault::way_back`]; there is no such copy.
    pub fn way_back_to_copy(&self, disk: &DiskId, name: &str) -> Result<Way> {
        let info = self.copy(name, None)?;
        refuse_unfinished(&info)?;
        let CopyState::Accomplished(header) = info.state else {
            return Err(Error::internal("a copy is neither complete nor not"));
        };
        if header.disk != *disk {
            let (id, of) = (&info.id, &header.disk_name);
            let message = format!("copy {id} is of another disk: {of} ({})", header.disk);
            return Err(Error::new(ErrorKind::WrongState, message)
                .hint(format!("make a disk of it: `rowctl disk create NAME --from {id}`")));
        }
        match self.engine.way_back(disk, &info.snapshot) {
            // What is here is taken.
            Ok(None) => return Ok(Way::Here(info.snapshot)),
            Ok(Some(_)) => {}
            // It is gone, or waits for a copy that is not complete.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::WrongState) => {}
            Err(error) => return Err(error),
        }
        let name = format!("{}@{}", header.disk_name, header.snapshot_name);
        let source = Source { repo: info.repo, copy: info.id, snapshot: info.snapshot, lazy: true };
        self.way_there(disk, Goal { source, name, size: header.size, own: false })
    }

    fn way_there(&self, disk: &DiskId, goal: Goal) -> Result<Way> {
        self.engine.refuse_second_filling(disk)?;
        let Source { repo, copy, snapshot, .. } = &goal.source;
        let known = self.engine.repo(repo)?;
        let opened = self.wait(repo, async {
            let (store, _) = open_repo(&known).await?;
            let key = header::key(copy, snapshot);
            let header = Header::read(&store, &key).await.map_err(|e| missing(&key, e))?;
            let seal = Seal::of(&self.engine, &store, &header).await?;
            let known = Known::read(&store, &header, seal).await?;
            Ok(Opened::Whole(store, known))
        });
        let opened = opened.map_err(|error| error.context(format!("copy {copy} in {repo}")))?;
        Ok(Way::There { goal, opened: Box::new(opened) })
    }

    /// Takes a disk that way. Of a copy it is usable at once, and filled in the background.
    ///
    /// # Errors
    /// `InUse` when clients are connected and `force` is not given; what the engine says.
    pub fn go_back(
        self: &Arc<Self>,
        by: Actor,
        disk: &DiskId,
        way: Way,
        force: bool,
    ) -> Result<Rollback> {
        match way {
            Way::Here(snapshot) => self.engine.disk_rollback(by, disk, &snapshot, force),
            Way::There { goal, opened } => {
                let (done, filling) = self.engine.disk_return(by, disk, &goal, force)?;
                self.begin_lazy(&filling, Some(*opened))?;
                Ok(done)
            }
        }
    }

    /// The ways of those members of a group to their snapshots that are in a repository only.
    ///
    /// # Errors
    /// What is wrong with a copy.
    pub fn ways_back(
        &self,
        members: impl Iterator<Item = (DiskId, SnapshotId)>,
    ) -> Result<Vec<(DiskId, Goal, Opened)>> {
        let mut ways = Vec::new();
        for (disk, snapshot) in members {
            // What cannot be used at all is told with the others of the group.
            let Ok(Some(goal)) = self.engine.way_back(&disk, &snapshot) else { continue };
            if let Way::There { goal, opened } = self.way_there(&disk, goal)? {
                ways.push((disk, goal, *opened));
            }
        }
        Ok(ways)
    }

    /// Takes disks to a group. Those that go to a copy are usable at once, and filled in the background.
    ///
    /// # Errors
    /// What the engine says.
    pub fn go_back_together(
        self: &Arc<Self>,
        by: Actor,
        group: &GroupId,
        how: GroupReturn,
        ways: Vec<(DiskId, Goal, Opened)>,
    ) -> Result<GroupReturned> {
        let (mut goals, mut all) = (BTreeMap::new(), BTreeMap::new());
        for (disk, goal, opened) in ways {
            goals.insert(disk.clone(), goal);
            all.insert(disk, opened);
        }
        let (done, fillings) = self.engine.group_return(by, group, how, &goals)?;
        for filling in fillings {
            self.begin_lazy(&filling, all.remove(&filling.disk))?;
        }
        Ok(done)
    }
}
