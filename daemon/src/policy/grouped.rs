//! Runs of policies that instances have: all disks of one at one instant, or none of them.
//!
//! Invariants: the disks are those that the instance has when it is its turn; when one of them stands in the way nothing is
//! made of the others either, and it is told why.
//! Absent: what has had its time (`pruning.rs`).

use super::retention::has_room;
use super::schedule::Timetable;
use super::scheduler::{Policies, Tally, automatic, in_turn};
use crate::engine::api::policy::PolicyInfo;
use crate::engine::api::{Actor, Consistency, GroupInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::freeze::Options;
use crate::units::{DiskId, InstanceId};

impl Policies {
    /// Makes the group of an instance, or tells why not.
    pub(super) fn run_instance(
        &self,
        policy: &PolicyInfo,
        (table, slot): (&Timetable, u64),
        (instance, name): (&InstanceId, &str),
        tally: &mut Tally,
    ) -> Result<()> {
        if let Some(made) = self.engine.automatic_group_at(instance, &policy.id, slot) {
            // Made before the daemon was interrupted.
            tally.made += made;
            return Ok(());
        }
        let disks = self.engine.disks_with(instance);
        let made = self
            .check_room(&disks)
            .and_then(|()| self.make_group(policy, (table, slot), instance, &disks));
        match made {
            Ok(made) => {
                tally.made += made.members.len() as u64;
                disks.iter().try_for_each(|(disk, name)| self.evict_beyond_quota(disk, name))
            }
            Err(error) if error.kind() == ErrorKind::Stopped => Err(error),
            Err(error) => {
                tally.skipped += disks.len() as u64;
                let message = format!(
                    "policy {} left instance {name} out at {}: {}",
                    policy.spec.name,
                    table.civil(slot).strftime("%Y-%m-%d %H:%M"),
                    error.message()
                );
                self.engine.policy_note("policy.skip", instance.as_str(), message)
            }
        }
    }

    /// Refuses when a disk has its full number of automatic snapshots and none of them can go.
    fn check_room(&self, disks: &[(DiskId, String)]) -> Result<()> {
        let quota = self.engine.settings().quota_auto;
        let renewed: Vec<DiskId> = disks.iter().map(|(disk, _)| disk.clone()).collect();
        let full = |(disk, _): &&(DiskId, String)| self.engine.count_automatic(disk) >= quota;
        for (disk, name) in disks.iter().filter(full) {
            let there = self.engine.automatics_when(disk, &renewed).snapshots;
            if !has_room(&there, quota) {
                let message = format!(
                    "{name} has {} automatic snapshots, all of them in use; the quota is {quota}",
                    there.len()
                );
                return Err(Error::new(ErrorKind::Quota, message));
            }
        }
        Ok(())
    }

    fn evict_beyond_quota(&self, disk: &DiskId, name: &str) -> Result<()> {
        if self.engine.count_automatic(disk) <= self.engine.settings().quota_auto {
            return Ok(());
        }
        self.evict(name, &self.engine.automatics(disk).snapshots)
    }

    fn make_group(
        &self,
        policy: &PolicyInfo,
        (table, slot): (&Timetable, u64),
        instance: &InstanceId,
        disks: &[(DiskId, String)],
    ) -> Result<GroupInfo> {
        let disks: Vec<DiskId> = disks.iter().map(|(disk, _)| disk.clone()).collect();
        let _making = self.engine.snapshot_begins(&disks, true)?;
        let spec = automatic(policy, table, slot);
        let (name, by) = (spec.name.clone(), Actor::DAEMON);
        let cut = || self.engine.automatic_group_create(by, instance, &disks, spec.clone());
        if policy.spec.consistency == Consistency::Crash {
            return cut();
        }
        in_turn(|| {
            let how = (policy.spec.consistency, &Options::default());
            let of = (&disks[..], Some(name.clone()));
            self.freezer.group_around(&self.engine, by, of, how, cut).map(|(made, _)| made)
        })
    }
}
