//! Groups that the policies of instances make and remove.
//!
//! Invariants: such a group is whole or not made, and is one journal record; it goes with all of its snapshots or stays
//! with all of them, unless somebody deletes one; it stays while one of them is in use, and while it has the newest
//! automatic snapshot of a disk that exists.
//! Absent: when a policy is due and what has had its time (`policy/`); groups that people make (`groups.rs`).

use std::collections::BTreeSet;

use super::api::policy::{AutomaticGroup, AutomaticSpec, Kept, KeptOfInstance};
use super::api::{Actor, GroupInfo, GroupSpec};
use super::catalogue::{Catalogue, Cut, GroupRecord, Kind, MemberRecord, Op, SnapshotRecord};
use super::groups::not_made;
use super::policies::free_name;
use super::{Engine, now};
use crate::error::Result;
use crate::units::{DiskId, GroupId, InstanceId, PolicyId};

impl Engine {
    /// Makes snapshots of all these disks of an instance at one instant, or of none.
    ///
    /// # Errors
    /// One of the disks is gone or cannot be used, or they are too many for a group; the pool cannot keep it.
    pub fn automatic_group_create(
        &self,
        by: Actor,
        instance: &InstanceId,
        disks: &[DiskId],
        spec: AutomaticSpec,
    ) -> Result<GroupInfo> {
        let _shape = self.shape.lock();
        let of = self.instance_record(instance)?.name;
        let disks =
            self.group_disks(&GroupSpec { disks: disks.to_vec(), ..GroupSpec::default() })?;
        let heads = self.new_heads(&disks)?;
        let id = GroupId::random()?;
        let mut spec = spec;
        spec.automatic.group = Some(id.clone());
        let name = {
            let catalogue = self.catalogue.read();
            let of_a_disk = |name: &str| {
                disks.iter().any(|disk| catalogue.snapshot_named(&disk.id, name).is_some())
            };
            let taken = |name: &str| catalogue.group_named(name).is_some() || of_a_disk(name);
            free_name(taken, &spec.name, &spec.time)
        };
        let (mut cuts, mut uncopied) = (Vec::with_capacity(disks.len()), Vec::new());
        for (disk, head) in disks.iter().zip(heads) {
            let cut = self.automatic_cut(disk, head, name.clone(), spec.clone());
            let (cut, why) = cut.map_err(|error| error.context(&disk.name))?;
            uncopied.push((cut.snapshot.id.clone(), why));
            cuts.push(cut);
        }
        let member = |cut: &Cut| MemberRecord {
            disk: cut.snapshot.disk.clone(),
            snapshot: cut.snapshot.id.clone(),
        };
        let group = GroupRecord {
            id: id.clone(),
            name,
            description: String::new(),
            created_at: now(),
            members: cuts.iter().map(member).collect(),
            tags: spec.tags,
            automatic: Some(AutomaticGroup {
                instance: instance.clone(),
                expires_at: spec.expires_at,
                automatic: super::api::policy::Automatic { group: None, ..spec.automatic },
            }),
        };
        let (name, count) = (&group.name, cuts.len());
        let message = format!("group {name} made of {count} disks of instance {of} by a policy");
        self.change(by, Op::GroupCreate { group, cuts }, message).map_err(not_made)?;
        uncopied.into_iter().try_for_each(|(id, why)| self.tell_uncopied(by, &id, why))?;
        self.group(&id)
    }

    /// Removes a group that a policy has made, with those of its snapshots that are still there, unless somebody uses
    /// one; `kind` and `why` are told. Whether it is gone.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn automatic_group_remove(&self, id: &GroupId, kind: &str, why: &str) -> Result<bool> {
        let _shape = self.shape.lock();
        let Ok(group) = self.group_record(id) else { return Ok(false) };
        if group.automatic.is_none()
            || self.group_held(&self.catalogue.read(), &group, &[]).is_some()
        {
            return Ok(false);
        }
        let (mut alone, mut snapshots) = (Vec::new(), Vec::new());
        for member in &group.members {
            let Ok(snapshot) = self.snapshot_record(&member.snapshot) else { continue };
            if self.check_no_filling(&snapshot).is_err() {
                return Ok(false);
            }
            // Held until all are gone, or a client could open one between.
            let exclusion = self.clients.exclude_snapshot(&snapshot.id, &snapshot.name, false);
            let Ok(exclusion) = exclusion else { return Ok(false) };
            alone.push(exclusion);
            snapshots.push(snapshot.id);
        }
        let message = format!("group {} with {} snapshots {why}", group.name, snapshots.len());
        let gone = snapshots.clone();
        let op = Op::GroupDelete { id: id.clone(), snapshots, kind: Some(kind.to_owned()) };
        self.change(Actor::DAEMON, op, message)?;
        let mut opened = self.opened.lock();
        gone.iter().for_each(|snapshot| drop(opened.remove(snapshot)));
        Ok(true)
    }

    /// The groups that policies have made of an instance, which may be gone. One of which nothing is left has had its
    /// time.
    #[must_use]
    pub fn automatic_groups(&self, instance: &InstanceId) -> KeptOfInstance {
        let catalogue = self.catalogue.read();
        let kept = |group: &GroupRecord| {
            let made = group.automatic.as_ref().filter(|made| made.instance == *instance)?;
            let is_empty = members(&catalogue, group).next().is_none();
            Some(Kept {
                id: group.id.clone(),
                name: group.name.clone(),
                created_at: group.created_at,
                expires_at: if is_empty { Some(0) } else { made.expires_at },
                automatic: made.automatic.clone(),
                held: self.group_held(&catalogue, group, &[]),
            })
        };
        KeptOfInstance {
            name: catalogue.instance(instance).map(|one| one.name),
            groups: catalogue.groups.values().filter_map(kept).collect(),
        }
    }

    /// How many snapshots a policy has made of an instance at a slot, if it has.
    #[must_use]
    pub fn automatic_group_at(
        &self,
        instance: &InstanceId,
        policy: &PolicyId,
        slot: u64,
    ) -> Option<u64> {
        let catalogue = self.catalogue.read();
        let own = |group: &&GroupRecord| {
            group.automatic.as_ref().is_some_and(|made| {
                let AutomaticGroup { automatic, .. } = made;
                made.instance == *instance && automatic.policy == *policy && automatic.slot == slot
            })
        };
        catalogue.groups.values().find(own).map(|group| group.members.len() as u64)
    }

    /// The instances of which policies have made groups with one of these disks.
    #[must_use]
    pub fn instances_grouped_with(&self, disks: &BTreeSet<DiskId>) -> BTreeSet<InstanceId> {
        let catalogue = self.catalogue.read();
        let concerned =
            |group: &&GroupRecord| group.members.iter().any(|one| disks.contains(&one.disk));
        let made = catalogue.groups.values().filter(|group| group.automatic.is_some());
        let of = |group: &GroupRecord| Some(group.automatic.as_ref()?.instance.clone());
        made.filter(concerned).filter_map(of).collect()
    }

    /// The instances of which there are groups that a policy has made.
    #[must_use]
    pub fn instances_served_by(&self, policy: &PolicyId) -> BTreeSet<InstanceId> {
        let catalogue = self.catalogue.read();
        let made = catalogue.groups.values().filter_map(|group| group.automatic.as_ref());
        made.filter(|made| made.automatic.policy == *policy)
            .map(|made| made.instance.clone())
            .collect()
    }

    /// How many automatic snapshots a disk has.
    #[must_use]
    pub fn count_automatic(&self, disk: &DiskId) -> usize {
        self.catalogue.read().counts_of(disk).auto
    }

    /// Why a group cannot go now, or when the `renewed` disks have newer snapshots.
    pub(super) fn group_held(
        &self,
        catalogue: &Catalogue,
        group: &GroupRecord,
        renewed: &[DiskId],
    ) -> Option<String> {
        members(catalogue, group).find_map(|snapshot| {
            if let Some(why) = self.in_use(catalogue, snapshot) {
                return Some(why);
            }
            // The newest of a disk that exists never goes by itself; the newest group has those of its disks anyway.
            let disk = catalogue.disk_or_trash(&snapshot.disk)?;
            if renewed.contains(&disk.id) {
                return None;
            }
            let mut newer = catalogue.snapshots_of(&snapshot.disk).rev();
            let newest = newer.find(|one| one.kind == Kind::Auto)?;
            (newest.id == snapshot.id)
                .then(|| format!("it has the newest automatic snapshot of {}", disk.name))
        })
    }
}

/// Those snapshots of a group that are still there.
fn members<'a>(
    catalogue: &'a Catalogue,
    group: &'a GroupRecord,
) -> impl Iterator<Item = &'a SnapshotRecord> {
    group.members.iter().filter_map(|member| catalogue.snapshots.get(&member.snapshot))
}
