//! Groups in the model test: made of any disks, those that share blocks too, deleted, and returned to.
//!
//! Invariants: what the engine refuses, it refuses for the reason the model knows, and changes nothing.
//! Absent: the order of writes on several disks, which takes writers beside the cut (`groups.rs` of the
//! tests, `crash`).

use rowd::engine::api::{GroupInfo, GroupReturn, GroupSpec};
use rowd::error::ErrorKind;
use rowd::units::{DiskId, SnapshotId};

use super::compare::equal;
use super::machine::{BY, Machine, Outcome, QUOTA, SNAPSHOTS_MAX, text};
use super::reference::{Group, Reference};

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
    pub fn make_group(&mut self, mask: u8) -> Outcome {
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
        let spec = GroupSpec { disks: disks.clone(), name, ..GroupSpec::default() };
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
        let refusal = self.refusal(&members, &disks, &chosen, first, busy);
        if refusal.is_none() {
            chosen.iter().for_each(|disk| drop(self.sessions.remove(disk)));
        }
        let group_first = first.then(|| self.new_name());
        let how = GroupReturn { disks, force: false, group_first };
        match (self.engine().group_rollback(BY, &id, how), refusal) {
            (Ok(done), None) => {
                if let Some(made) = &done.first {
                    self.reference.make_group(made);
                }
                equal("disks that went back", done.disks.len(), chosen.len())?;
                for one in done.disks {
                    let disk = self.reference.disk_of(&one.disk).expect("a disk of the model");
                    let to = one.done.to.as_ref().ok_or("a disk is empty")?;
                    let to = self.reference.snapshot_of(to).expect("a member");
                    let (node, size) =
                        (self.reference.snapshots[to].node, self.reference.snapshots[to].size);
                    self.switched(disk, &one.done, Some(node), size)?;
                }
                Ok(())
            }
            (Err(error), Some(kind)) if error.kind() == kind => Ok(()),
            (outcome, refusal) => {
                Err(format!("return to a group, expected {refusal:?}: {outcome:?}"))
            }
        }
    }

    /// Why the engine has to refuse a return, if it has to.
    fn refusal(
        &self,
        members: &[(DiskId, SnapshotId)],
        named: &[DiskId],
        chosen: &[DiskId],
        first: bool,
        busy: bool,
    ) -> Option<ErrorKind> {
        let whole = |(disk, snapshot): &(DiskId, SnapshotId)| {
            self.reference.disk_of(disk).is_some() && self.reference.snapshot_of(snapshot).is_some()
        };
        let full = |disk: &DiskId| self.reference.manual_snapshots(disk) >= QUOTA;
        let first_fails = |(disk, _): &(DiskId, SnapshotId)| match chosen.contains(disk) {
            true if self.reference.waits(disk) => Some(ErrorKind::StillCopying),
            true if full(disk) => Some(ErrorKind::Quota),
            _ => None,
        };
        if named.is_empty() && !members.iter().any(whole) {
            Some(ErrorKind::GroupState)
        } else if members.iter().any(|one| chosen.contains(&one.0) && !whole(one)) {
            Some(ErrorKind::MemberState)
        } else if let Some(kind) = members.iter().find_map(first_fails).filter(|_| first) {
            Some(kind)
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
