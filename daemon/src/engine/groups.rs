//! Verbs of groups: snapshots of several disks at exactly one instant, and the way back to them.
//!
//! Invariants: a group is one journal record, appended while the views of all its disks are locked: a
//! write that was sent after another was answered is in no group that lacks the other. A rollback of
//! several disks is one record too: all of them go back, or none.
//! Absent: freezing of file systems; groups by policies of instances (`policy_groups.rs`); members are snapshots like any
//! other, and only those that policies have made know their group.

use std::collections::BTreeMap;

use super::api::{
    Actor, ClientInfo, GroupChange, GroupInfo, GroupReturn, GroupReturned, GroupSpec, MemberInfo,
    MemberRollback, SnapshotSpec, Tags,
};
use super::catalogue::{Cut, DiskRecord, GroupRecord, MemberRecord, Op, SnapshotRecord, Turn};
use super::copies::Filling;
use super::disks::{change_tags, check_tags, told};
use super::names::{by_prefix, check_name, timed};
use super::returning::Goal;
use super::{Engine, now};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::superblock;
use crate::units::{DiskId, Epoch, GroupId, TreeId};

/// Disks of one group.
pub const DISKS_MAX: usize = 16;
/// Bytes of all disks of a group together: 32 TiB.
pub const BYTES_MAX: u64 = 32 << 40;

/// A group that can be made.
struct Plan {
    group: GroupRecord,
    cuts: Vec<Cut>,
}

/// The ways back of several disks.
#[derive(Default)]
struct Turns {
    turns: Vec<Turn>,
    done: Vec<MemberRollback>,
    /// Of those that go to copies.
    fillings: Vec<Filling>,
}

impl Engine {
    /// Keeps the state of several disks at one instant between the call and the return, the same for all.
    ///
    /// # Errors
    /// `Quota` for too many disks or bytes; `NoEligibleDisk` when none is left; a name is taken; nothing is
    /// made then. `GroupFailed` when the pool cannot keep it.
    pub fn group_create(&self, by: Actor, spec: GroupSpec) -> Result<GroupInfo> {
        let _shape = self.shape.lock();
        let plan = self.plan_group(spec)?;
        self.make_group(by, plan)
    }

    /// The disks that a group would have: those named, and those of the instances less those left out.
    ///
    /// # Errors
    /// As [`Engine::group_create`].
    pub fn group_choice(&self, spec: &GroupSpec) -> Result<Vec<DiskId>> {
        Ok(self.group_disks(spec)?.into_iter().map(|disk| disk.id).collect())
    }

    /// Whether a group could be made now.
    ///
    /// # Errors
    /// What [`Engine::group_create`] would say.
    pub fn group_check(&self, spec: &GroupSpec) -> Result<()> {
        let _shape = self.shape.lock();
        self.plan_group(spec.clone()).map(drop)
    }

    /// A group that can be made: every name is free, no quota reached. The caller holds `shape`.
    fn plan_group(&self, spec: GroupSpec) -> Result<Plan> {
        check_tags(&spec.tags)?;
        let disks = self.group_disks(&spec)?;
        let at = now();
        let name = match spec.name {
            Some(name) => self.new_group_name(name)?,
            None => self.timed_group_name(at),
        };
        let heads = self.new_heads(&disks)?;
        let keep = spec.copy;
        let mut cuts = Vec::with_capacity(disks.len());
        for (disk, head) in disks.iter().zip(heads) {
            let spec = SnapshotSpec {
                disk: disk.id.clone(),
                name: Some(name.clone()),
                description: String::new(),
                tags: Tags::new(),
                copy: keep.clone(),
            };
            let cut = self.new_cut(disk, spec, head, at);
            cuts.push(cut.map_err(|error| error.context(&disk.name))?);
        }
        let member = |cut: &Cut| MemberRecord {
            disk: cut.snapshot.disk.clone(),
            snapshot: cut.snapshot.id.clone(),
        };
        let group = GroupRecord {
            id: GroupId::random()?,
            name,
            description: spec.description,
            created_at: at,
            members: cuts.iter().map(member).collect(),
            tags: spec.tags,
            automatic: None,
        };
        Ok(Plan { group, cuts })
    }

    /// Does what was planned, with the shape of trees as it was then.
    fn make_group(&self, by: Actor, plan: Plan) -> Result<GroupInfo> {
        let Plan { group, cuts } = plan;
        let id = group.id.clone();
        let message = format!("group {} made of {} disks", group.name, cuts.len());
        self.change(by, Op::GroupCreate { group, cuts }, message).map_err(not_made)?;
        self.group(&id)
    }

    /// Deletes a group and those of its snapshots that are still there. Returns how many snapshots went.
    ///
    /// # Errors
    /// `InUse` when disks were made from a member or one is open as an export, and `force` is not given;
    /// nothing is deleted then.
    pub fn group_delete(&self, by: Actor, id: &GroupId, force: bool) -> Result<u64> {
        let _shape = self.shape.lock();
        let group = self.group_record(id)?;
        let mut alone = Vec::new();
        let mut snapshots = Vec::new();
        for member in &group.members {
            let Ok(snapshot) = self.snapshot_record(&member.snapshot) else { continue };
            self.check_unpinned(&snapshot)?;
            self.check_unused(&snapshot, force)?;
            alone.push(self.clients.exclude_snapshot(&snapshot.id, &snapshot.name, force)?);
            snapshots.push(snapshot.id);
        }
        let message = format!("group {} deleted with {} snapshots", group.name, snapshots.len());
        let count = snapshots.len() as u64;
        for snapshot in &snapshots {
            self.opened.lock().remove(snapshot);
        }
        let op = Op::GroupDelete { id: id.clone(), snapshots, kind: None };
        self.change(by, op, message)?;
        Ok(count)
    }

    /// Returns disks of a group to its instant: those named, or all. All go back, or none.
    ///
    /// # Errors
    /// `GroupState` when no disk of it can go back; `MemberState` when the snapshot or the disk of a chosen
    /// member is gone; `NotFound` for a disk that is not in the group; `InUse` when clients are connected.
    /// Of a group that should be made first as [`Engine::group_create`]; nothing goes back then.
    pub fn group_rollback(
        &self,
        by: Actor,
        id: &GroupId,
        how: GroupReturn,
    ) -> Result<GroupReturned> {
        self.group_return(by, id, how, &BTreeMap::new()).map(|(done, _)| done)
    }

    /// As [`Engine::group_rollback`], with members that are in a repository only: they find their snapshots where `away`
    /// says. All disks can be used when this returns; whoever asked fills them.
    ///
    /// # Errors
    /// As [`Engine::group_rollback`] and [`Engine::disk_return`].
    pub fn group_return(
        &self,
        by: Actor,
        id: &GroupId,
        how: GroupReturn,
        away: &BTreeMap<DiskId, Goal>,
    ) -> Result<(GroupReturned, Vec<Filling>)> {
        let shape = self.shape.lock();
        let group = self.group_record(id)?;
        let pairs = self.chosen_members(&group, &how.disks, away)?;
        let first =
            how.group_first.map(|name| self.plan_first(name, &group, &pairs)).transpose()?;
        let mut alone = Vec::with_capacity(pairs.len());
        for (disk, _) in &pairs {
            self.refuse_return(&disk.id)?;
            if let Some(goal) = away.get(&disk.id) {
                self.refuse_second_filling(&disk.id)?;
                self.still_there(disk, goal)?;
            }
        }
        for (disk, _) in &pairs {
            alone.push(self.clients.exclude(&disk.id, &disk.name, how.force)?);
        }
        let first = first.map(|plan| self.make_group(by, plan)).transpose()?;
        // Read again: the cut of the group before has moved their heads.
        let disks: Vec<DiskRecord> =
            pairs.iter().map(|(disk, _)| self.record(&disk.id)).collect::<Result<_>>()?;
        let ended: Vec<_> = alone.iter().map(|one| one.ended.clone()).collect();
        let targets: Vec<_> = disks.iter().zip(&pairs).map(|(disk, (_, to))| (disk, to)).collect();
        let Turns { turns, done, mut fillings } = self.turns(&targets, ended, away)?;
        if !fillings.is_empty() {
            // An older rowd would not see them in the record of a group.
            self.shared.pool.require_version(superblock::FAMILY_VERSION)?;
        }
        let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        let message = format!("{} rolled back to group {}", names.join(", "), group.name);
        let op = Op::GroupRollback { id: id.clone(), turns, fillings: fillings.clone() };
        self.change(by, op, message)?;
        drop(shape);
        // Nobody is let in before all of them can be used.
        fillings.iter().try_for_each(|filling| self.clear_changes(&filling.disk))?;
        drop(alone);
        fillings.iter_mut().for_each(|filling| filling.clear = None);
        Ok((GroupReturned { first, disks: done }, fillings))
    }

    /// The ways back of disks to their snapshots, which are in the pool unless `away` has them.
    fn turns(
        &self,
        targets: &[(&DiskRecord, &SnapshotRecord)],
        ended: Vec<Vec<ClientInfo>>,
        away: &BTreeMap<DiskId, Goal>,
    ) -> Result<Turns> {
        let disks: Vec<DiskRecord> = targets.iter().map(|(disk, _)| (*disk).clone()).collect();
        let heads = self.new_heads(&disks)?;
        let mut all = Turns::default();
        for (((disk, target), head), ended) in targets.iter().zip(heads).zip(ended) {
            let (turn, told) = match away.get(&disk.id) {
                Some(goal) => {
                    let (turn, filling, told) = self.turn_away(disk, goal, head, ended)?;
                    all.fillings.push(filling);
                    (turn, told)
                }
                None => {
                    let turn = self.turn(disk, Some(target), head, "before-rollback")?;
                    let told = told(&turn, Some(target), ended);
                    (turn, told)
                }
            };
            all.done.push(MemberRollback { disk: disk.id.clone(), done: told });
            all.turns.push(turn);
        }
        Ok(all)
    }

    /// The group of the same disks that is made before they go back.
    fn plan_first(
        &self,
        name: String,
        group: &GroupRecord,
        pairs: &[(DiskRecord, SnapshotRecord)],
    ) -> Result<Plan> {
        let disks = pairs.iter().map(|(disk, _)| disk.id.clone()).collect();
        let description = format!("before the return to group {}", group.name);
        let spec = GroupSpec { disks, name: Some(name), description, ..GroupSpec::default() };
        self.plan_group(spec)
    }

    /// Changes name or description of a group; its snapshots keep their names.
    ///
    /// # Errors
    /// The name will not do or is taken.
    pub fn group_change(&self, by: Actor, id: &GroupId, change: GroupChange) -> Result<GroupInfo> {
        let _shape = self.shape.lock();
        let mut group = self.group_record(id)?;
        if let Some(name) = change.name.filter(|name| *name != group.name) {
            group.name = self.new_group_name(name)?;
        }
        if let Some(description) = change.description {
            group.description = description;
        }
        self.update_group(by, group, "group.set")
    }

    /// Sets and removes tags of a group; its snapshots have their own.
    ///
    /// # Errors
    /// There is no such group, or a tag will not do.
    pub fn tag_group(
        &self,
        by: Actor,
        id: &GroupId,
        set: &Tags,
        remove: &[String],
    ) -> Result<GroupInfo> {
        let _shape = self.shape.lock();
        let mut group = self.group_record(id)?;
        change_tags(&mut group.tags, set, remove)?;
        self.update_group(by, group, "group.tag")
    }

    fn update_group(&self, by: Actor, group: GroupRecord, kind: &str) -> Result<GroupInfo> {
        let (id, message) = (group.id.clone(), format!("group {} changed", group.name));
        self.change(by, Op::GroupUpdate { group, kind: kind.to_owned() }, message)?;
        self.group(&id)
    }

    /// # Errors
    /// There is no such group.
    pub fn group(&self, id: &GroupId) -> Result<GroupInfo> {
        self.group_record(id).map(|record| self.group_info(record))
    }

    /// All groups, oldest first.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupInfo> {
        let mut records: Vec<_> = self.catalogue.read().groups.values().cloned().collect();
        records.sort_by(|a, b| (a.created_at, &a.name).cmp(&(b.created_at, &b.name)));
        records.into_iter().map(|record| self.group_info(record)).collect()
    }

    /// The group that an id, a name or a unique beginning of an id means.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when several ids begin so.
    pub fn find_group(&self, name: &str) -> Result<GroupId> {
        let catalogue = self.catalogue.read();
        let id = GroupId::from(name);
        if catalogue.groups.contains_key(&id) {
            return Ok(id);
        }
        if let Some(group) = catalogue.group_named(name) {
            return Ok(group.id.clone());
        }
        by_prefix(GroupId::PREFIX, name, catalogue.groups.keys().map(GroupId::as_str))?
            .map(GroupId::from)
            .ok_or_else(|| {
                Error::not_found(format!("no group is called {name:?}"))
                    .hint("see `rowctl group list`")
            })
    }

    /// The disks of a new group, checked.
    pub(super) fn group_disks(&self, spec: &GroupSpec) -> Result<Vec<DiskRecord>> {
        let disks = self.disks_asked_for(spec)?;
        if disks.len() > DISKS_MAX {
            let count = disks.len();
            return Err(Error::new(
                ErrorKind::Quota,
                format!("{count} disks; a group has at most {DISKS_MAX}"),
            )
            .hint("make several groups; each is one instant of its own"));
        }
        let bytes = disks.iter().fold(0u64, |sum, disk| sum.saturating_add(disk.size));
        if bytes > BYTES_MAX {
            return Err(Error::new(
                ErrorKind::Quota,
                format!("the disks have {bytes} bytes together; a group has at most 32 TiB"),
            )
            .hint("make several groups; each is one instant of its own"));
        }
        Ok(disks)
    }

    /// The disks that are named, then those of the instances less those left out; each once.
    fn disks_asked_for(&self, spec: &GroupSpec) -> Result<Vec<DiskRecord>> {
        let GroupSpec { disks: named, instances, exclude, .. } = spec;
        if named.is_empty() && instances.is_empty() {
            return Err(Error::invalid("a group needs at least one disk or instance"));
        }
        let mut disks: Vec<DiskRecord> =
            named.iter().map(|id| self.record(id)).collect::<Result<_>>()?;
        for (at, disk) in disks.iter().enumerate() {
            if disks[..at].iter().any(|other| other.id == disk.id) {
                return Err(Error::invalid(format!("{} is named twice", disk.name)));
            }
        }
        let mut of_instances = Vec::new();
        for id in instances {
            self.owner(id)?;
            of_instances.extend(self.catalogue.read().disks_of_instance(id));
        }
        for id in exclude {
            let name = self.record(id)?.name;
            if disks.iter().any(|disk| disk.id == *id) {
                return Err(Error::invalid(format!("{name} is both named and left out")));
            }
            if of_instances.iter().all(|disk| disk.id != *id) {
                return Err(Error::invalid(format!(
                    "{name} cannot be left out: it is no disk of the instances that are named"
                ))
                .hint("see `rowctl instance list`"));
            }
        }
        for disk in of_instances {
            let known = exclude.contains(&disk.id) || disks.iter().any(|other| other.id == disk.id);
            if !known {
                disks.push(disk);
            }
        }
        if disks.is_empty() {
            let why = match exclude.len() {
                0 => "the instances have no disks",
                _ => "all disks of the instances are left out",
            };
            return Err(Error::new(ErrorKind::NoEligibleDisk, format!("no disk is left: {why}"))
                .hint(
                    "see `rowctl instance list`; `rowctl disk set D --instance I` gives one a disk",
                ));
        }
        Ok(disks)
    }

    fn timed_group_name(&self, at: u64) -> String {
        let catalogue = self.catalogue.read();
        timed("group", at, |name| catalogue.group_named(name).is_some())
    }

    fn new_group_name(&self, name: String) -> Result<String> {
        check_name("group", &name)?;
        match self.catalogue.read().group_named(&name) {
            None => Ok(name),
            Some(_) => Err(Error::new(ErrorKind::Exists, format!("a group {name:?} exists"))
                .hint("choose another name, or leave it out to get one from the time")),
        }
    }

    /// The epochs of new heads of these disks, of which several may be of one tree.
    pub(super) fn new_heads(&self, disks: &[DiskRecord]) -> Result<Vec<Epoch>> {
        let mut given: BTreeMap<TreeId, u32> = BTreeMap::new();
        let mut heads = Vec::with_capacity(disks.len());
        for disk in disks {
            let ahead = given.entry(disk.tree).or_default();
            heads.push(self.tree(disk.tree).epoch_ahead(*ahead)?);
            *ahead += 1;
        }
        Ok(heads)
    }

    /// The disks to roll back and the snapshots they go to.
    fn chosen_members(
        &self,
        group: &GroupRecord,
        chosen: &[DiskId],
        away: &BTreeMap<DiskId, Goal>,
    ) -> Result<Vec<(DiskRecord, SnapshotRecord)>> {
        if let Some(other) = chosen.iter().find(|id| group.members.iter().all(|m| m.disk != **id)) {
            let name = self.disk_name(other);
            return Err(Error::not_found(format!("{name} is not in group {}", group.name))
                .hint(format!("see `rowctl group show {}`", group.name)));
        }
        let whole = |m: &MemberRecord| {
            self.record(&m.disk).is_ok() && self.snapshot_record(&m.snapshot).is_ok()
        };
        if chosen.is_empty() && !group.members.iter().any(whole) {
            return Err(Error::new(
                ErrorKind::GroupState,
                format!(
                    "nothing of group {} can go back: all its disks or snapshots are deleted",
                    group.name
                ),
            )
            .hint(format!("delete it: `rowctl group delete {}`", group.name)));
        }
        let wanted = group.members.iter().filter(|m| chosen.is_empty() || chosen.contains(&m.disk));
        let mut pairs = Vec::new();
        for member in wanted {
            let gone = |what: &str| {
                let name = self.disk_name(&member.disk);
                Error::new(
                    ErrorKind::MemberState,
                    format!("{name} cannot be rolled back to group {}: {what}", group.name),
                )
                .hint("name the disks that should go back; the others of the group can")
            };
            let disk = self.record(&member.disk).map_err(|_| gone("the disk was deleted"))?;
            let snapshot = self
                .snapshot_record(&member.snapshot)
                .map_err(|_| gone("its snapshot was deleted"))?;
            if !away.contains_key(&disk.id) {
                self.check_usable(&snapshot).map_err(|error| gone(error.message()))?;
            }
            pairs.push((disk, snapshot));
        }
        Ok(pairs)
    }

    pub(super) fn group_record(&self, id: &GroupId) -> Result<GroupRecord> {
        let found = self.catalogue.read().groups.get(id).cloned();
        found.ok_or_else(|| {
            Error::not_found(format!("no group {id}")).hint("see `rowctl group list`")
        })
    }

    fn group_info(&self, record: GroupRecord) -> GroupInfo {
        let member = |MemberRecord { disk, snapshot }: MemberRecord| MemberInfo {
            disk_name: self.record(&disk).ok().map(|disk| disk.name),
            disk_id: disk,
            snapshot: self.snapshot(&snapshot).ok(),
            snapshot_id: snapshot,
        };
        let GroupRecord { id, name, description, created_at, members, tags, automatic } = record;
        let members = members.into_iter().map(member).collect();
        GroupInfo { id, name, description, created_at, members, tags, automatic }
    }
}

/// A group that the pool could not keep. What the caller can change keeps its own kind.
pub(super) fn not_made(error: Error) -> Error {
    use ErrorKind::{Corrupt, Internal, Io, Stopped};
    match error.kind() {
        Io | Stopped | Corrupt | Internal => {
            let why = format!("the group could not be made: {}", error.message());
            Error::new(ErrorKind::GroupFailed, why).hint(
                "no snapshot of it can be relied on; look at `rowctl status` and `rowctl doctor`",
            )
        }
        _ => error,
    }
}
