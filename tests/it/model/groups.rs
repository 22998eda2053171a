//! Groups in the model test: made of any disks, those that share blocks too, deleted, and returned to.
//!
//! Invariants: what the engine refuses, it refuses for the reason the model knows, and changes nothing.
//! Absent: the order of writes on several disks, which takes writers beside the cut (`groups.rs` of the
//! tests, `crash`).

use std::collections::BTreeMap;

use rowd::engine::api::{Access, GroupInfo, GroupReturn, GroupSpec, KeepSpec, MemberRollback};
use rowd::error::ErrorKind;
use rowd::units::{BLOCK_SIZE, DiskId, LEAF_BLOCKS, SnapshotId};

use super::compare::equal;
use super::copies::{Presence, REPO};
use super::machine::{BY, Machine, Outcome, QUOTA, SNAPSHOTS_MAX, refused, text};
use super::reference::{Group, Reference};
use super::returning::LEAVES_MAX;

const GROUPS_MAX: usize = 4;

impl Reference {
    fn disk_of(&self, id: &DiskId) -> Option<usize> {
        self.disks.iter().position(|disk| disk.id == *id)
    }

    fn snapshot_of(&self, id: &SnapshotId) -> Option<usize> {
        self.snapshots.iter().position(|snapshot| snapshot.id == *id)
    }

    fn manual_snapshots(&self, disk: &DiskId) -> usize {
        self.snapshots.iter().filter(|s| s.disk == *disk && !s.undo).count()
    }

    /// Notes a group as it was made: the heads of its disks are frozen.
    fn make_group(&mut self, made: &GroupInfo) {
        for member in &made.members {
            let disk = self.disk_of(&member.disk_id).expect("a disk of the model");
            let node = self.freeze(disk, member.snapshot_id.clone(), &made.name, false);
            let presence = member.snapshot.as_ref().and_then(|told| told.presence.as_ref());
            let last = self.snapshots.last_mut().expect("just frozen");
            last.presence = presence.map(|told| Presence {
                copy: told.copy.clone(),
                complete: false,
                access: told.access.is_some(),
                gone: false,
            });
            self.go_on(disk, Some(node));
        }
        let pair = |m: &rowd::engine::api::MemberInfo| (m.disk_id.clone(), m.snapshot_id.clone());
        let members = made.members.iter().map(pair).collect();
        self.groups.push(Group { id: made.id.clone(), name: made.name.clone(), members });
    }
}

/// Those whose bit is set, or the first.
pub fn masked<T: Clone>(all: &[T], mask: u8) -> Vec<T> {
    let set = |at: &usize| mask >> (at % 8) & 1 == 1;
    let chosen: Vec<T> = (0..all.len()).filter(set).map(|at| all[at].clone()).collect();
    if chosen.is_empty() { all.iter().take(1).cloned().collect() } else { chosen }
}

impl Machine {
    /// Makes a group, whose members are to be in the repository if `keep` says with which access.
    pub fn make_group(&mut self, mask: u8, keep: Option<bool>) -> Outcome {
        let all: Vec<DiskId> = self.reference.disks.iter().map(|disk| disk.id.clone()).collect();
        let disks = masked(&all, mask);
        if disks.is_empty() {
            return Ok(());
        }
        if self.reference.groups.len() >= GROUPS_MAX {
            return self.delete_group(0, true);
        }
        if self.reference.snapshots.len() + disks.len() > SNAPSHOTS_MAX {
            return self.shed();
        }
        let full = disks.iter().any(|disk| self.reference.manual_snapshots(disk) >= QUOTA);
        let waits = disks.iter().any(|disk| self.reference.waits(disk));
        let name = Some(self.new_name());
        let copy = keep.map(|access| KeepSpec {
            repo: REPO.to_owned(),
            access: access.then_some(Access::Endless),
        });
        let spec = GroupSpec { disks: disks.clone(), name, copy, ..GroupSpec::default() };
        match self.engine().group_create(BY, spec) {
            Err(error) if error.kind() == ErrorKind::Quota && full => Ok(()),
            Ok(_) if full => Err("the quota is not kept by a group".to_owned()),
            Ok(_) if waits => Err("a group beside a snapshot that cannot be used yet".to_owned()),
            Err(error) if error.kind() == ErrorKind::StillCopying && waits => Ok(()),
            Ok(made) => {
                equal("disks of a new group", made.members.len(), disks.len())?;
                self.reference.make_group(&made);
                self.compare_disks(&disks)
            }
            Err(error) => Err(text(error)),
        }
    }

    pub fn delete_group(&mut self, group: u8, force: bool) -> Outcome {
        let Some(at) = self.pick_group(group) else { return Ok(()) };
        let Group { id, members, .. } = self.reference.groups[at].clone();
        let left: Vec<SnapshotId> = members
            .into_iter()
            .map(|(_, snapshot)| snapshot)
            .filter(|snapshot| self.reference.snapshot_of(snapshot).is_some())
            .collect();
        let from_it = |id: &SnapshotId| left.contains(id);
        let made =
            self.reference.disks.iter().any(|disk| disk.origin.as_ref().is_some_and(from_it));
        let pinned = left.iter().any(|id| self.reference.pinned(id));
        let place = |id: &SnapshotId| self.reference.snapshot_of(id).expect("it is there");
        if left.iter().any(|id| self.fills_from(&self.reference.snapshots[place(id)])) {
            return refused(self.engine().group_delete(BY, &id, force));
        }
        match self.engine().group_delete(BY, &id, force) {
            Ok(_) if pinned => Err("a group took a snapshot of an image with it".to_owned()),
            Err(error) if error.kind() == ErrorKind::InUse && pinned => Ok(()),
            Ok(_) if made && !force => Err("a group with clones went without force".to_owned()),
            Ok(count) => {
                equal("snapshots that went", count, left.len() as u64)?;
                for snapshot in &left {
                    let at = self.reference.snapshot_of(snapshot).expect("it is there");
                    self.reference.delete_snapshot(at);
                }
                self.reference.groups.remove(at);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::InUse && made && !force => Ok(()),
            Err(error) => Err(text(error)),
        }
    }

    /// Returns the disks of a group whose bit is set, or all, perhaps after a group of the same disks.
    pub fn return_to_group(&mut self, group: u8, mask: u8, first: bool, busy: bool) -> Outcome {
        let Some(at) = self.pick_group(group) else { return Ok(()) };
        let Group { id, members, .. } = self.reference.groups[at].clone();
        let disks: Vec<DiskId> = match mask {
            0 => Vec::new(),
            _ => masked(&members, mask).into_iter().map(|(disk, _)| disk).collect(),
        };
        let all: Vec<DiskId> = members.iter().map(|(disk, _)| disk.clone()).collect();
        let chosen = if disks.is_empty() { all } else { disks.clone() };
        if self.reference.snapshots.len() + 2 * chosen.len() > SNAPSHOTS_MAX + 4 {
            return self.shed();
        }
        let away: Vec<(DiskId, SnapshotId)> = members
            .iter()
            .filter(|(disk, snapshot)| chosen.contains(disk) && self.is_away(disk, snapshot))
            .cloned()
            .collect();
        if self.leaves_of(&away) > LEAVES_MAX {
            return Ok(());
        }
        let refusal = self.refusal(&members, (&disks, &chosen), &away, first, busy);
        if refusal.is_none() {
            chosen.iter().for_each(|disk| drop(self.sessions.remove(disk)));
        }
        let mut goals = BTreeMap::new();
        for (disk, snapshot) in &away {
            let goal = self.engine().way_back(disk, snapshot).map_err(text)?;
            goals.insert(disk.clone(), goal.ok_or("it is here")?);
        }
        if !away.is_empty() {
            self.checkpoint()?;
        }
        let group_first = first.then(|| self.new_name());
        let how = GroupReturn { disks, force: false, group_first };
        match (self.engine().group_return(BY, &id, how, &goals), refusal) {
            (Ok((done, _)), None) => {
                if let Some(made) = &done.first {
                    self.reference.make_group(made);
                }
                equal("disks that went back", done.disks.len(), chosen.len())?;
                self.went_back(done.disks, &away)
            }
            (Err(error), Some(kind)) if error.kind() == kind => Ok(()),
            (outcome, refusal) => {
                Err(format!("return to a group, expected {refusal:?}: {outcome:?}"))
            }
        }
    }

    /// Notes what became of disks that went back, all in one record.
    fn went_back(&mut self, done: Vec<MemberRollback>, away: &[(DiskId, SnapshotId)]) -> Outcome {
        let mut turns = Vec::new();
        for one in done {
            let disk = self.reference.disk_of(&one.disk).ok_or("no disk of the model")?;
            let to = one.done.to.as_ref().ok_or("a disk is empty")?;
            let to = self.reference.snapshot_of(to).ok_or("no member")?;
            let to = self.reference.snapshots[to].clone();
            // As all of them were before the record.
            let base = self.reference.nearest(disk, to.node);
            turns.push((one, disk, to, base));
        }
        for (one, disk, to, base) in turns {
            if away.iter().all(|(id, _)| *id != one.disk) {
                let undo = one.done.undo.as_ref().ok_or("the state before is not kept")?;
                self.reference.freeze(disk, undo.id.clone(), &undo.name, true);
                self.reference.go_on(disk, Some(to.node));
                let found = &mut self.reference.disks[disk];
                found.size = found.size.max(to.size);
                continue;
            }
            self.went_away(disk, &one.done, &to, base)?;
        }
        self.connect()?;
        (0..self.reference.disks.len()).try_for_each(|disk| self.compare_stored(disk))
    }

    /// Whether a disk finds a snapshot in the repository only.
    fn is_away(&self, disk: &DiskId, snapshot: &SnapshotId) -> bool {
        let found = self.reference.snapshot_of(snapshot).map(|at| &self.reference.snapshots[at]);
        let presence = found.and_then(|snapshot| snapshot.presence.as_ref());
        let there = presence.is_some_and(|presence| presence.complete && !presence.access);
        there && self.reference.disk_of(disk).is_some()
    }

    /// Leaves that may become dirty when these disks go back.
    fn leaves_of(&self, away: &[(DiskId, SnapshotId)]) -> u64 {
        let size = |(disk, snapshot): &(DiskId, SnapshotId)| {
            let disk = self.reference.disk_of(disk).map_or(0, |at| self.reference.disks[at].size);
            let to = self.reference.snapshot_of(snapshot);
            disk.max(to.map_or(0, |at| self.reference.snapshots[at].size))
        };
        away.iter().map(|one| size(one).div_ceil(LEAF_BLOCKS * BLOCK_SIZE)).sum()
    }

    /// Why the engine has to refuse a return, if it has to.
    fn refusal(
        &self,
        members: &[(DiskId, SnapshotId)],
        (named, chosen): (&[DiskId], &[DiskId]),
        away: &[(DiskId, SnapshotId)],
        first: bool,
        busy: bool,
    ) -> Option<ErrorKind> {
        let whole = |(disk, snapshot): &(DiskId, SnapshotId)| {
            self.reference.disk_of(disk).is_some() && self.reference.snapshot_of(snapshot).is_some()
        };
        let usable = |one: &(DiskId, SnapshotId)| {
            let found = self.reference.snapshot_of(&one.1);
            found.is_some_and(|at| self.reference.snapshots[at].usable()) || away.contains(one)
        };
        // From one copy at a time.
        let filled = |(disk, _): &(DiskId, SnapshotId)| {
            let at = self.reference.disk_of(disk).expect("a disk of the model");
            self.is_lazy(at) || self.reference.fillings.iter().any(|one| one.disk == *disk)
        };
        let full = |disk: &DiskId| self.reference.manual_snapshots(disk) >= QUOTA;
        let first_fails = |(disk, _): &(DiskId, SnapshotId)| match chosen.contains(disk) {
            true if self.reference.waits(disk) => Some(ErrorKind::StillCopying),
            true if full(disk) => Some(ErrorKind::Quota),
            _ => None,
        };
        if named.is_empty() && !members.iter().any(whole) {
            Some(ErrorKind::GroupState)
        } else if members.iter().any(|one| chosen.contains(&one.0) && !(whole(one) && usable(one)))
        {
            Some(ErrorKind::MemberState)
        } else if let Some(kind) = members.iter().find_map(first_fails).filter(|_| first) {
            Some(kind)
        } else if away.iter().any(filled) {
            Some(ErrorKind::WrongState)
        } else if busy && chosen.iter().any(|disk| self.sessions.contains_key(disk)) {
            Some(ErrorKind::InUse)
        } else {
            None
        }
    }

    /// The groups are those of the model, and tell what is gone.
    pub fn compare_groups(&self, reference: &Reference) -> Outcome {
        let told = self.engine().groups();
        equal("groups", told.len(), reference.groups.len())?;
        for group in &reference.groups {
            let info = self.engine().group(&group.id).map_err(text)?;
            equal("the name of a group", &info.name, &group.name)?;
            let told: Vec<_> = info
                .members
                .iter()
                .map(|m| (&m.disk_id, &m.snapshot_id, m.disk_name.is_some(), m.snapshot.is_some()))
                .collect();
            let truth: Vec<_> = group
                .members
                .iter()
                .map(|(disk, snapshot)| {
                    let (has_disk, has_snapshot) =
                        (reference.disk_of(disk), reference.snapshot_of(snapshot));
                    (disk, snapshot, has_disk.is_some(), has_snapshot.is_some())
                })
                .collect();
            equal(&format!("members of {}", group.name), told, truth)?;
        }
        Ok(())
    }

    fn compare_disks(&mut self, disks: &[DiskId]) -> Outcome {
        for disk in disks {
            let at = self.reference.disk_of(disk).expect("a disk of the model");
            self.compare_disk(at)?;
        }
        Ok(())
    }

    fn pick_group(&self, number: u8) -> Option<usize> {
        let count = self.reference.groups.len();
        (count > 0).then(|| usize::from(number) % count)
    }
}
