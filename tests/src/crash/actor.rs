//! The administrator: snapshots, rollbacks, clones, templates and deletes beside the traffic, one at a time.
//!
//! Invariants: it writes only to disks that nobody else writes to, and drains them before it changes
//! them; every change is noted before it is asked for.
//! Absent: wrong use, but for deletes of what a template is made of.

use std::path::Path;

use rowd_proto::{
    Call, DiskCreate, DiskDelete, DiskRollback, ErrorKind, GroupCreate, GroupDelete, GroupRollback,
    ImageCreate, ImageDelete, RolledBack, SnapshotCreate, SnapshotDelete,
};

use super::control::{Control, Failure};
use super::judge::Window;
use super::load::{Lane, Style};
use super::rng::Rng;
use super::world::{Group, Image, Pending, Snapshot, Template, Turn, World};
use crate::client::Client;

/// Snapshots kept: enough for long lineages, few enough that the pool is only nearly full.
const SNAPSHOTS_MAX: usize = 8;
const CLONES_MAX: usize = 2;
const GROUPS_MAX: usize = 3;
/// Each holds on to as many as two snapshots.
const TEMPLATES_MAX: usize = 2;

/// What it did, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deeds {
    pub snapshots: u64,
    pub snapshot_deletes: u64,
    pub rollbacks: u64,
    pub groups: u64,
    pub group_deletes: u64,
    /// Disks that went back with their group.
    pub group_returns: u64,
    pub templates: u64,
    pub template_deletes: u64,
    /// Deletes that a template was in the way of.
    pub refusals: u64,
    pub clones: u64,
    pub disk_deletes: u64,
    pub writes: u64,
}

/// The daemon is gone.
struct CutOff;

/// The administrator at work.
#[derive(Debug)]
pub struct Actor<'a> {
    pub world: &'a mut World,
    pub nbd: &'a Path,
    pub control: Control,
    pub rng: Rng,
    pub deeds: Deeds,
}

impl Actor<'_> {
    /// Works until the daemon is gone.
    pub fn run(mut self) -> Deeds {
        while self.act().is_ok() {}
        self.deeds
    }

    fn act(&mut self) -> Result<(), CutOff> {
        match self.rng.below(100) {
            ..20 => self.snapshot(),
            20..32 => self.make_group(),
            32..46 => self.delete_snapshot(),
            46..50 => self.delete_group(),
            50..58 => self.roll_back(),
            58..66 => self.return_to_group(),
            66..75 => self.make_clone(),
            75..80 => self.delete_clone(),
            80..83 => self.make_template(),
            83..85 => self.delete_template(),
            _ => self.write(),
        }
    }

    /// Asks, with what is pending noted; `None` when refused for want of space.
    fn ask<C: Call>(&mut self, params: &C, pending: Pending) -> Result<Option<C::Reply>, CutOff> {
        self.world.pending = Some(pending);
        let reply = match self.control.call(params) {
            Ok(reply) => Some(reply),
            Err(Failure::CutOff) => return Err(CutOff),
            Err(Failure::Refused(error)) => {
                assert_eq!(error.kind, ErrorKind::NoSpace, "refused: {error:?}");
                None
            }
        };
        self.world.pending = None;
        Ok(reply)
    }

    /// Asks for something that has to be refused, because a template is in the way.
    fn ask_in_vain<C: Call>(&mut self, params: &C) -> Result<(), CutOff> {
        match self.control.call(params) {
            Ok(_) => panic!("{} took what a template is made of", C::METHOD.name()),
            Err(Failure::CutOff) => Err(CutOff),
            Err(Failure::Refused(error)) => {
                assert_eq!(error.kind, ErrorKind::InUse, "refused: {error:?}");
                self.deeds.refusals += 1;
                Ok(())
            }
        }
    }

    fn snapshot(&mut self) -> Result<(), CutOff> {
        if self.world.snapshots.len() >= SNAPSHOTS_MAX {
            return Ok(());
        }
        let disk = self.pick_disk(|_| true).expect("there are disks");
        let name = format!("s{}", self.world.fresh());
        let asked = self.world.clock.tick();
        let mut image = self.image_asked_for(&disk, asked);
        let params =
            SnapshotCreate { disk: disk.clone(), name: Some(name.clone()), ..Default::default() };
        let pending = Pending::SnapshotCreate {
            disk: disk.clone(),
            name: name.clone(),
            image: image.clone(),
        };
        let Some(made) = self.ask(&params, pending)? else { return Ok(()) };
        if let Image::Cut { window, .. } = &mut image {
            window.may = self.world.clock.tick();
        }
        let snapshot = Snapshot { name, disk, disk_id: made.snapshot.disk_id, image, undo: false };
        self.world.snapshots.insert(made.snapshot.id, snapshot);
        self.deeds.snapshots += 1;
        Ok(())
    }

    fn delete_snapshot(&mut self) -> Result<(), CutOff> {
        let ids: Vec<String> = self.world.snapshots.keys().cloned().collect();
        if ids.len() < 2 {
            return Ok(());
        }
        let id = self.rng.pick(&ids).clone();
        let params = SnapshotDelete { snapshot: id.clone(), force: true };
        if self.world.pinned(&id) {
            return self.ask_in_vain(&params);
        }
        if self.ask(&params, Pending::SnapshotDelete { id: id.clone() })?.is_some() {
            self.world.snapshots.remove(&id);
            self.deeds.snapshot_deletes += 1;
        }
        Ok(())
    }

    fn roll_back(&mut self) -> Result<(), CutOff> {
        let targets: Vec<(String, Snapshot)> = self
            .world
            .snapshots
            .iter()
            .filter(|(_, s)| self.world.disks.get(&s.disk).is_some_and(|d| !d.busy))
            .filter(|(_, s)| matches!(s.image, Image::Exact(_)))
            .map(|(id, s)| (id.clone(), s.clone()))
            .collect();
        // Each rollback leaves a snapshot of its own.
        if targets.is_empty() || self.world.snapshots.len() > SNAPSHOTS_MAX {
            return self.delete_snapshot();
        }
        let (id, snapshot) = self.rng.pick(&targets).clone();
        let (disk, before) = (snapshot.disk.clone(), self.world.image_now(&snapshot.disk));
        let params = DiskRollback { disk: disk.clone(), snapshot: id, force: true };
        let turn = Turn { disk, image: snapshot.image.clone(), before };
        let Some(done) = self.ask(&params, Pending::Rollback(turn.clone()))? else { return Ok(()) };
        self.went_back(turn, done);
        self.deeds.rollbacks += 1;
        Ok(())
    }

    /// A disk that nobody writes to holds what it went back to.
    fn went_back(&mut self, turn: Turn, done: RolledBack) {
        let Turn { disk, image, before } = turn;
        let model = self.world.disks.get_mut(&disk).expect("it was there");
        let Image::Exact(after) = image else { unreachable!("chosen so") };
        model.born = None;
        super::load::lock(&model.log).collapse(after.to_vec());
        let name = done.undo_name.expect("the state before is kept");
        let name = name.rsplit('@').next().unwrap_or_default().to_owned();
        let undo = Snapshot { name, disk, disk_id: done.disk.id, image: before, undo: true };
        self.world.snapshots.insert(done.undo.expect("the state before is kept"), undo);
    }

    /// What a snapshot that is asked for now will hold.
    fn image_asked_for(&self, disk: &str, asked: u64) -> Image {
        if self.world.disks[disk].busy {
            let window = Window { must: asked, may: u64::MAX };
            return Image::Cut { disk: disk.to_owned(), window };
        }
        self.world.image_now(disk)
    }

    /// A group of some disks, those under load among them.
    fn make_group(&mut self) -> Result<(), CutOff> {
        let names: Vec<String> = self.world.disks.keys().cloned().collect();
        let disks: Vec<String> = names.into_iter().filter(|_| self.rng.chance(70)).collect();
        let full = self.world.snapshots.len() + disks.len() > SNAPSHOTS_MAX + 2;
        if disks.is_empty() || self.world.groups.len() >= GROUPS_MAX || full {
            return Ok(());
        }
        let name = format!("g{}", self.world.fresh());
        let asked = self.world.clock.tick();
        let image = |disk: &String| (disk.clone(), self.image_asked_for(disk, asked));
        let mut members: Vec<(String, Image)> = disks.iter().map(image).collect();
        let params = GroupCreate { disks, name: Some(name.clone()), ..Default::default() };
        let pending = Pending::GroupCreate { name: name.clone(), members: members.clone() };
        let Some(made) = self.ask(&params, pending)?.map(|made| made.group) else { return Ok(()) };
        let answered = self.world.clock.tick();
        for (_, image) in &mut members {
            if let Image::Cut { window, .. } = image {
                window.may = answered;
            }
        }
        let snapshots = made.members.iter().map(|member| member.snapshot_id.clone()).collect();
        for ((disk, image), member) in members.into_iter().zip(made.members) {
            let (name, disk_id) = (name.clone(), member.disk_id);
            let snapshot = Snapshot { name, disk, disk_id, image, undo: false };
            self.world.snapshots.insert(member.snapshot_id, snapshot);
        }
        self.world.groups.insert(made.id, Group { name, snapshots });
        self.deeds.groups += 1;
        Ok(())
    }

    fn delete_group(&mut self) -> Result<(), CutOff> {
        let ids: Vec<String> = self.world.groups.keys().cloned().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let id = self.rng.pick(&ids).clone();
        let params = GroupDelete { group: id.clone(), force: true };
        if self.world.groups[&id].snapshots.iter().any(|snapshot| self.world.pinned(snapshot)) {
            return self.ask_in_vain(&params);
        }
        if self.ask(&params, Pending::GroupDelete { id: id.clone() })?.is_some() {
            self.world.forget_group(&id);
            self.deeds.group_deletes += 1;
        }
        Ok(())
    }

    /// All disks of a group that are not under load go back.
    fn return_to_group(&mut self) -> Result<(), CutOff> {
        let ids: Vec<String> = self.world.groups.keys().cloned().collect();
        // Each disk that goes back leaves a snapshot of its own.
        if ids.is_empty() || self.world.snapshots.len() > SNAPSHOTS_MAX {
            return Ok(());
        }
        let group = self.rng.pick(&ids).clone();
        let quiet = |id: &String| {
            let snapshot = self.world.snapshots.get(id)?;
            let disk = self.world.disks.get(&snapshot.disk)?;
            let known = !disk.busy && matches!(snapshot.image, Image::Exact(_));
            let (disk, image) = (snapshot.disk.clone(), snapshot.image.clone());
            let before = || self.world.image_now(&disk);
            known.then(|| Turn { before: before(), disk: disk.clone(), image })
        };
        let turns: Vec<Turn> =
            self.world.groups[&group].snapshots.iter().filter_map(quiet).collect();
        if turns.is_empty() {
            return self.delete_group();
        }
        let disks = turns.iter().map(|turn| turn.disk.clone()).collect();
        let params = GroupRollback { group, disks, force: true, group_first: None };
        let pending = Pending::GroupRollback { turns: turns.clone() };
        let Some(done) = self.ask(&params, pending)? else { return Ok(()) };
        assert_eq!(done.disks.len(), turns.len(), "every disk that was named goes back");
        for (turn, done) in turns.into_iter().zip(done.disks) {
            self.went_back(turn, done);
            self.deeds.group_returns += 1;
        }
        Ok(())
    }

    fn make_clone(&mut self) -> Result<(), CutOff> {
        let clones = self.world.disks.keys().filter(|name| name.starts_with("clone")).count();
        let ids: Vec<String> = self.world.snapshots.keys().cloned().collect();
        if clones >= CLONES_MAX || ids.is_empty() {
            return Ok(());
        }
        let mut from = self.rng.pick(&ids).clone();
        let image = self.world.snapshots[&from].image.clone();
        let of = |template: &Template| template.snapshots[0] == from;
        if let Some((id, _)) = self.world.templates.iter().find(|(_, template)| of(template)) {
            from.clone_from(id);
        }
        let name = format!("clone{}", self.world.fresh());
        let params = DiskCreate { name: name.clone(), from: Some(from), ..Default::default() };
        let pending = Pending::DiskCreate { name: name.clone(), image: image.clone() };
        let Some(made) = self.ask(&params, pending)? else { return Ok(()) };
        let sectors = usize::try_from(made.size).expect("small") / super::stamp::SECTOR;
        self.world.add_disk(&name, &made.id, sectors, Some(image));
        self.deeds.clones += 1;
        Ok(())
    }

    fn delete_clone(&mut self) -> Result<(), CutOff> {
        let Some(name) = self.pick_disk(|name| name.starts_with("clone")) else { return Ok(()) };
        let params = DiskDelete { disk: name.clone(), force: true, now: true };
        let disk = self.world.disks[&name].id.clone();
        let undo = self.world.snapshots.iter().filter(|(_, s)| s.undo && s.disk_id == disk);
        if undo.into_iter().any(|(id, _)| self.world.pinned(id)) {
            return self.ask_in_vain(&params);
        }
        if self.ask(&params, Pending::DiskDelete { name: name.clone() })?.is_some() {
            self.world.forget_disk(&name);
            self.deeds.disk_deletes += 1;
        }
        Ok(())
    }

    /// A template of one or two snapshots.
    fn make_template(&mut self) -> Result<(), CutOff> {
        let ids: Vec<String> = self.world.snapshots.keys().cloned().collect();
        if ids.is_empty() || self.world.templates.len() >= TEMPLATES_MAX {
            return self.delete_template();
        }
        let system = self.rng.pick(&ids).clone();
        let other = self.rng.pick(&ids).clone();
        let data = if self.rng.chance(50) { vec![other] } else { Vec::new() };
        let name = format!("t{}", self.world.fresh());
        let snapshots = [vec![system.clone()], data.clone()].concat();
        let from = Some(system);
        let params = ImageCreate { name: name.clone(), from, data, ..Default::default() };
        let template = Template { name, snapshots };
        let pending = Pending::TemplateCreate(template.clone());
        let Some(made) = self.ask(&params, pending)? else { return Ok(()) };
        self.world.templates.insert(made.id, template);
        self.deeds.templates += 1;
        Ok(())
    }

    fn delete_template(&mut self) -> Result<(), CutOff> {
        let ids: Vec<String> = self.world.templates.keys().cloned().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let id = self.rng.pick(&ids).clone();
        let params = ImageDelete { image: id.clone(), ..Default::default() };
        if self.ask(&params, Pending::TemplateDelete { id: id.clone() })?.is_some() {
            self.world.templates.remove(&id);
            self.deeds.template_deletes += 1;
        }
        Ok(())
    }

    /// A burst of writes to a disk of its own, answered to the last.
    fn write(&mut self) -> Result<(), CutOff> {
        let Some(name) = self.pick_disk(|_| true) else { return Ok(()) };
        let disk = &self.world.disks[&name];
        if disk.busy || disk.born.is_some() {
            return Ok(());
        }
        let style = Style {
            depth: usize::try_from(self.rng.between(1, 8)).expect("small"),
            requests: Some(self.rng.between(1, 200)),
            ragged: true,
            flushes: 2,
        };
        let Ok(mut client) = Client::try_connect(self.nbd, &name, true, &[]) else {
            // Perhaps it is gone; the next request to the control socket will tell.
            return Ok(());
        };
        let rng = self.rng.fork();
        let lane = Lane::new(&disk.log, &self.world.clock, style, rng);
        let done = lane.run(&mut client);
        self.deeds.writes += done.answered;
        if done.cut_off { Err(CutOff) } else { Ok(()) }
    }

    fn pick_disk(&mut self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let names: Vec<String> =
            self.world.disks.keys().filter(|name| wanted(name)).cloned().collect();
        (!names.is_empty()).then(|| self.rng.pick(&names).clone())
    }
}
