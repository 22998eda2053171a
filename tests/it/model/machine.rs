//! The machine: an engine over a tiny pool, the model beside it, and what each operation does to both.
//!
//! Invariants: the engine has no background threads, so a case does the same each time; checkpoints
//! come before the bounds of journal and dirty leaves are met, since nobody else would make them.
//! Absent: data requests (`data.rs`), comparisons (`compare.rs`), power cuts (`power.rs`).

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use rowd::crypt::master::{Settings as Keys, Source};
use rowd::disk::lane::Lane;
use rowd::engine::api::{Actor, DiskSpec, Rollback, SnapshotChange, SnapshotSpec, Tags};
use rowd::engine::{Engine, Settings, Target};
use rowd::error::{Error, ErrorKind};
use rowd::pool::file::IoMode;
use rowd::units::{BLOCK_SIZE, BlockRange, DiskId};
use tempfile::TempDir;

use super::copies::Repository;
use super::lazy::Copied;
use super::op::Op;
use super::power::Image;
use super::reference::{Effect, Reference};

pub const BY: Actor = Actor { uid: 0, pid: 1 };
/// Data blocks of the pool: ten segments.
pub const POOL_BLOCKS: u64 = 640;
pub const SEGMENT_BLOCKS: u64 = 64;
/// Manual snapshots a disk may have.
pub const QUOTA: usize = 6;
pub const DISKS_MAX: usize = 4;
pub const SNAPSHOTS_MAX: usize = 14;
/// Leaves that may be dirty without a checkpoint, less what one operation adds.
const DIRTY_MAX: u64 = 40;
const JOURNAL_MAX: u64 = 1 << 20;

pub type Outcome = Result<(), String>;

/// The settings of every pool of the model test. There is a master key only after [`make_master_key`].
pub fn settings(dir: &std::path::Path) -> Settings {
    Settings {
        dir: dir.to_owned(),
        pool: dir.join("pool"),
        io: IoMode::Buffered,
        segment_bytes: SEGMENT_BLOCKS * BLOCK_SIZE,
        journal_bytes: 2 << 20,
        max_bytes: POOL_BLOCKS * BLOCK_SIZE,
        host_reserve: 0,
        map_cache: 64 << 10,
        quota_manual: QUOTA,
        quota_auto: 4,
        quota_policies: 4,
        trash_kept: std::time::Duration::ZERO,
        undo_kept: Duration::from_secs(86_400),
        flush_every: Duration::from_secs(1),
        checkpoint_every: Duration::from_secs(5),
        scrub_rate: 0,
        copy_cost: 0.05,
        encryption: Keys { master: Source::File(dir.join("master.key")), ..Keys::default() },
        background: false,
    }
}

/// Makes the master key that [`settings`] names.
pub fn make_master_key(dir: &std::path::Path) -> Outcome {
    let file =
        File::options().write(true).create_new(true).mode(0o600).open(dir.join("master.key"));
    let written = file.and_then(|mut file| file.write_all(&[0x5a; 32]));
    written.map_err(|e| e.to_string())
}

/// A connection: the lane goes before the target.
pub struct Session {
    pub lane: Lane,
    pub target: Target,
}

pub struct Machine {
    pub dir: TempDir,
    io: IoMode,
    engine: Option<Arc<Engine>>,
    pub reference: Reference,
    pub sessions: HashMap<DiskId, Session>,
    /// What disks are filled from.
    pub origins: HashMap<DiskId, Arc<Copied>>,
    pub image: Image,
    pub repository: Repository,
    pub stamp: u64,
    names: u64,
    dirtied: u64,
}

impl Machine {
    pub fn new() -> Result<Machine, String> {
        Machine::in_mode(IoMode::Buffered)
    }

    pub fn in_mode(io: IoMode) -> Result<Machine, String> {
        // In memory: the model test is about states, not about devices. Not all kernels do direct I/O there.
        let place = match io {
            IoMode::Buffered => "/dev/shm",
            IoMode::Direct => "/var/tmp",
        };
        let dir = tempfile::Builder::new().prefix("rowd-model-").tempdir_in(place);
        let dir = dir.map_err(|e| e.to_string())?;
        make_master_key(dir.path())?;
        let engine = Engine::open(Settings { io, ..settings(dir.path()) }).map_err(text)?;
        let mut machine = Machine {
            dir,
            io,
            engine: Some(engine),
            reference: Reference::default(),
            sessions: HashMap::new(),
            origins: HashMap::new(),
            image: Image::default(),
            repository: Repository::new(),
            stamp: 0,
            names: 0,
            dirtied: 0,
        };
        machine.add_repository()?;
        // More than one: groups need company.
        machine.create(200)?;
        machine.create(70)?;
        machine.observe()?;
        Ok(machine)
    }

    pub fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().expect("open between operations")
    }

    /// Does one operation and compares what it touched.
    pub fn step(&mut self, op: &Op) -> Outcome {
        self.make_room()?;
        self.act(op)?;
        self.leave()?;
        self.observe()
    }

    fn act(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Data { disk, items } => match self.disk(*disk) {
                Some(disk) => self.data(disk, items),
                None => Ok(()),
            },
            Op::Flush { disk } => self.flush(*disk),
            Op::Snapshot { disk } => self.snapshot(*disk),
            Op::DeleteSnapshot { snapshot, force } => self.delete_snapshot(*snapshot, *force),
            Op::Rollback { disk, snapshot, busy } => self.rollback(*disk, *snapshot, *busy),
            Op::Undo { disk, force } => self.undo(*disk, *force),
            Op::Reinit { disk } => self.reinit(*disk),
            Op::Clone { snapshot, extra_blocks } => self.clone_of(*snapshot, *extra_blocks),
            Op::Create { blocks } => self.create(u64::from(*blocks)),
            Op::Lazy { blocks, seed } => self.make_lazy(u64::from(*blocks), *seed),
            Op::Fetch { disk, from, chunks } => self.fetch(*disk, *from, *chunks),
            Op::DeleteDisk { disk, busy } => self.delete_disk(*disk, *busy),
            Op::Resize { disk, blocks } => self.resize(*disk, u64::from(*blocks)),
            Op::Rename { disk } => self.rename(*disk),
            Op::Tag { disk } => self.tag(*disk),
            Op::RenameSnapshot { snapshot } => self.rename_snapshot(*snapshot),
            Op::Group { disks, keep } => self.make_group(*disks, *keep),
            Op::DeleteGroup { group, force } => self.delete_group(*group, *force),
            Op::ReturnToGroup { group, disks, first, busy } => {
                self.return_to_group(*group, *disks, *first, *busy)
            }
            Op::Image { snapshots } => self.make_image(*snapshots),
            Op::DeleteImage { image, snapshots, force } => {
                self.delete_image(*image, *snapshots, *force)
            }
            Op::Deploy { image } => self.deploy(*image),
            Op::Keep { disk, access } => self.keep(*disk, *access),
            Op::Copy { snapshot } => self.copy(*snapshot),
            Op::Access { snapshot, on } => self.access(*snapshot, *on),
            Op::Return { disk, snapshot, busy } => self.return_away(*disk, *snapshot, *busy),
            Op::Checkpoint => self.checkpoint(),
            Op::ReclaimStep { leaves, steps } => self.reclaim(*leaves, *steps),
            Op::ReclaimAll => self.engine().reclaim_all().map_err(text),
            Op::Reopen => self.reopen(true),
            Op::CrashReopen => self.reopen(false),
            Op::PowerCut { seed } => self.power_cut(*seed),
            Op::Verify => self.compare_all(),
        }
    }

    /// The end of a case: everything is compared, walked, and opened once more.
    pub fn finish(&mut self) -> Outcome {
        self.compare_all()?;
        self.check()?;
        self.reopen(true)?;
        self.compare_all()
    }

    pub fn disk(&self, number: u8) -> Option<usize> {
        let count = self.reference.disks.len();
        (count > 0).then(|| usize::from(number) % count)
    }

    fn pick_snapshot(&self, number: u8) -> Option<usize> {
        let count = self.reference.snapshots.len();
        (count > 0).then(|| usize::from(number) % count)
    }

    pub fn new_name(&mut self) -> String {
        self.names += 1;
        format!("name-{}", self.names)
    }

    /// The session of a disk, opened when first used.
    pub fn session(&mut self, disk: usize) -> Result<&mut Session, String> {
        let (id, name) = {
            let disk = &self.reference.disks[disk];
            (disk.id.clone(), disk.name.clone())
        };
        if !self.sessions.contains_key(&id) {
            let engine = self.engine();
            let target = engine.open_export(&name, "model", None, Box::new(|| {})).map_err(text)?;
            let lane = Lane::new(&target.disk);
            self.sessions.insert(id.clone(), Session { lane, target });
        }
        Ok(self.sessions.get_mut(&id).expect("just opened"))
    }

    fn flush(&mut self, disk: u8) -> Outcome {
        let Some(disk) = self.disk(disk) else { return Ok(()) };
        self.session(disk)?.lane.flush(true).map_err(text)
    }

    pub fn checkpoint(&mut self) -> Outcome {
        self.dirtied = 0;
        self.engine().checkpoint().map_err(text)
    }

    /// Notes leaves that an operation dirties.
    pub fn dirties(&mut self, leaves: u64) -> Outcome {
        if self.dirtied + leaves > DIRTY_MAX {
            self.checkpoint()?;
        }
        self.dirtied += leaves;
        Ok(())
    }

    fn make_room(&mut self) -> Outcome {
        if self.engine().status().journal_used_bytes > JOURNAL_MAX {
            self.checkpoint()?;
        }
        Ok(())
    }

    fn create(&mut self, blocks: u64) -> Outcome {
        if self.reference.disks.len() >= DISKS_MAX {
            return Ok(());
        }
        let name = self.new_name();
        self.make_disk(name, Some(blocks * BLOCK_SIZE), None)
    }

    fn clone_of(&mut self, snapshot: u8, extra: u8) -> Outcome {
        let Some(snapshot) = self.pick_snapshot(snapshot) else { return Ok(()) };
        if self.reference.disks.len() >= DISKS_MAX {
            return Ok(());
        }
        let name = self.new_name();
        let size = self.reference.snapshots[snapshot].size + u64::from(extra) * BLOCK_SIZE;
        if !self.reference.snapshots[snapshot].usable() {
            let from = Some(self.reference.snapshots[snapshot].id.clone());
            let spec = DiskSpec { name, from, ..DiskSpec::default() };
            return unusable(self.engine().disk_create(BY, spec));
        }
        self.make_disk(name, (extra > 0).then_some(size), Some(snapshot))
    }

    fn make_disk(&mut self, name: String, size: Option<u64>, from: Option<usize>) -> Outcome {
        let origin = from.map(|at| self.reference.snapshots[at].id.clone());
        // Every other family of disks is encrypted.
        let encrypted = origin.is_none() && self.names.is_multiple_of(2);
        let spec =
            DiskSpec { name: name.clone(), size, from: origin, encrypted, ..DiskSpec::default() };
        let made = self.engine().disk_create(BY, spec).map_err(text)?;
        self.reference.create_disk(made.id, &name, made.size, from);
        let last = self.reference.disks.len() - 1;
        self.compare_disk(last)
    }

    fn snapshot(&mut self, disk: u8) -> Outcome {
        let Some(disk) = self.disk(disk) else { return Ok(()) };
        if self.reference.snapshots.len() >= SNAPSHOTS_MAX {
            return self.shed();
        }
        let (id, name) = (self.reference.disks[disk].id.clone(), self.new_name());
        let manual = self.reference.snapshots.iter().filter(|s| s.disk == id && !s.undo).count();
        let spec = SnapshotSpec {
            disk: id,
            name: Some(name.clone()),
            description: String::new(),
            tags: Tags::new(),
            copy: None,
        };
        let waits = self.reference.waits(&self.reference.disks[disk].id);
        match self.engine().snapshot_create(BY, spec) {
            Err(error) if error.kind() == ErrorKind::StillCopying && waits => Ok(()),
            Ok(_) if waits => Err("a snapshot beside one that cannot be used yet".to_owned()),
            Ok(_) if manual >= QUOTA => Err("the quota is not kept".to_owned()),
            Ok(made) => {
                let node = self.reference.freeze(disk, made.id, &name, false);
                self.reference.go_on(disk, Some(node));
                self.compare_disk(disk)
            }
            Err(error) if error.kind() == ErrorKind::Quota && manual >= QUOTA => Ok(()),
            Err(error) => Err(text(error)),
        }
    }

    pub fn delete_snapshot(&mut self, snapshot: u8, force: bool) -> Outcome {
        let Some(at) = self.pick_snapshot(snapshot) else { return Ok(()) };
        let id = self.reference.snapshots[at].id.clone();
        let made = self.reference.disks.iter().any(|disk| disk.origin.as_ref() == Some(&id));
        let pinned = self.reference.pinned(&id);
        if self.fills_from(&self.reference.snapshots[at]) {
            return refused(self.engine().snapshot_delete(BY, &id, force));
        }
        match self.engine().snapshot_delete(BY, &id, force) {
            Ok(_) if pinned => Err("a snapshot of an image went".to_owned()),
            Err(error) if error.kind() == ErrorKind::InUse && pinned => Ok(()),
            Ok(_) if made && !force => Err("a snapshot with clones went without force".to_owned()),
            Ok(_) => {
                self.reference.delete_snapshot(at);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::InUse && made && !force => Ok(()),
            Err(error) => Err(text(error)),
        }
    }

    fn delete_disk(&mut self, disk: u8, busy: bool) -> Outcome {
        let Some(at) = self.disk(disk) else { return Ok(()) };
        let id = self.reference.disks[at].id.clone();
        if busy && self.sessions.contains_key(&id) {
            return refused(self.engine().disk_delete(BY, &id, false));
        }
        self.sessions.remove(&id);
        let undo = self.reference.snapshots.iter().filter(|s| s.undo && s.disk == id);
        if undo.into_iter().any(|s| self.reference.pinned(&s.id)) {
            return refused(self.engine().disk_delete(BY, &id, true));
        }
        self.engine().disk_delete(BY, &id, false).map_err(text)?;
        self.reference.delete_disk(at);
        Ok(())
    }

    fn rollback(&mut self, disk: u8, snapshot: u8, busy: bool) -> Outcome {
        let Some(at) = self.disk(disk) else { return Ok(()) };
        let id = self.reference.disks[at].id.clone();
        let own: Vec<_> = self.reference.snapshots.iter().filter(|s| s.disk == id).collect();
        let Some(to) = own.get(usize::from(snapshot) % own.len().max(1)) else { return Ok(()) };
        if !to.usable() {
            return unusable(self.engine().disk_rollback(BY, &id, &to.id, false));
        }
        let (to, node, size) = (to.id.clone(), to.node, to.size);
        if busy && self.sessions.contains_key(&id) {
            return refused(self.engine().disk_rollback(BY, &id, &to, false));
        }
        self.sessions.remove(&id);
        let done = self.engine().disk_rollback(BY, &id, &to, false).map_err(text)?;
        self.switched(at, &done, Some(node), size)
    }

    fn undo(&mut self, disk: u8, force: bool) -> Outcome {
        let Some(at) = self.disk(disk) else { return Ok(()) };
        let id = self.reference.disks[at].id.clone();
        let of_disk = self.reference.snapshots.iter().filter(|s| s.disk == id && s.undo);
        let newest = of_disk.max_by_key(|s| s.node).map(|s| (s.node, s.size));
        self.sessions.remove(&id);
        if self.is_alone(at) {
            return self.abandon(at, newest, force);
        }
        match (self.engine().disk_undo(BY, &id, false), newest) {
            (Ok(done), Some((node, size))) => self.switched(at, &done, Some(node), size),
            (Err(error), None) if error.kind() == ErrorKind::WrongState => Ok(()),
            (outcome, _) => Err(format!("undo: {outcome:?}")),
        }
    }

    fn reinit(&mut self, disk: u8) -> Outcome {
        let Some(at) = self.disk(disk) else { return Ok(()) };
        let (id, origin) = {
            let disk = &self.reference.disks[at];
            (disk.id.clone(), disk.origin.clone())
        };
        let target = origin.as_ref().map(|origin| {
            let found = self.reference.snapshots.iter().find(|s| s.id == *origin);
            found.filter(|s| s.usable()).map(|s| (s.node, s.size))
        });
        self.sessions.remove(&id);
        match (self.engine().disk_reinit(BY, &id, false), target) {
            (Ok(done), None) => self.switched(at, &done, None, 0),
            (Ok(done), Some(Some((node, size)))) => self.switched(at, &done, Some(node), size),
            (Err(error), Some(None)) if error.kind() == ErrorKind::WrongState => Ok(()),
            (outcome, _) => Err(format!("reinit: {outcome:?}")),
        }
    }

    pub fn switched(
        &mut self,
        at: usize,
        done: &Rollback,
        parent: Option<u64>,
        size: u64,
    ) -> Outcome {
        let undo = done.undo.as_ref().ok_or("the state before is not kept")?;
        self.reference.freeze(at, undo.id.clone(), &undo.name, true);
        self.reference.go_on(at, parent);
        let disk = &mut self.reference.disks[at];
        disk.size = disk.size.max(size);
        self.compare_disk(at)
    }

    fn resize(&mut self, disk: u8, blocks: u64) -> Outcome {
        let Some(at) = self.disk(disk) else { return Ok(()) };
        let (id, old) = (self.reference.disks[at].id.clone(), self.reference.disks[at].size);
        let size = blocks * BLOCK_SIZE;
        self.dirties(8)?;
        if size < old {
            if self.engine().disk_resize(BY, &id, size, false).is_ok() {
                return Err("a disk shrank without force".to_owned());
            }
            self.sessions.remove(&id);
        }
        self.engine().disk_resize(BY, &id, size, true).map_err(text)?;
        let beyond = BlockRange::new(blocks.min(old / BLOCK_SIZE), blocks.max(old / BLOCK_SIZE));
        self.reference.apply(at, &Effect::Clear(beyond));
        self.reference.disks[at].size = size;
        self.compare_disk(at)
    }

    fn rename(&mut self, disk: u8) -> Outcome {
        let Some(at) = self.disk(disk) else { return Ok(()) };
        let (id, name) = (self.reference.disks[at].id.clone(), self.new_name());
        self.engine().disk_rename(BY, &id, &name).map_err(text)?;
        self.reference.disks[at].name = name;
        Ok(())
    }

    fn tag(&mut self, disk: u8) -> Outcome {
        let Some(at) = self.disk(disk) else { return Ok(()) };
        let set = Tags::from([("key".to_owned(), self.new_name())]);
        let id = &self.reference.disks[at].id;
        let told = self.engine().tag_disk(BY, id, &set, &[]).map_err(text)?.tags;
        if told == set { Ok(()) } else { Err(format!("tags are {told:?}, not {set:?}")) }
    }

    fn rename_snapshot(&mut self, snapshot: u8) -> Outcome {
        let Some(at) = self.pick_snapshot(snapshot) else { return Ok(()) };
        let (id, name) = (self.reference.snapshots[at].id.clone(), self.new_name());
        let change = SnapshotChange { name: Some(name.clone()), ..SnapshotChange::default() };
        self.engine().snapshot_change(BY, &id, change).map_err(text)?;
        self.reference.snapshots[at].name = name;
        Ok(())
    }

    fn reclaim(&mut self, leaves: u8, steps: u8) -> Outcome {
        for _ in 0..steps {
            self.engine().reclaim_once(usize::from(leaves)).map_err(text)?;
        }
        Ok(())
    }

    fn reopen(&mut self, close: bool) -> Outcome {
        if close {
            self.engine().close().map_err(text)?;
        }
        self.shut()?;
        self.open()?;
        self.compare_contents(&self.reference)?;
        self.compare_all()
    }

    /// Drops the engine, as `kill -9` would.
    pub fn shut(&mut self) -> Outcome {
        self.sessions.clear();
        let engine = self.engine.take().expect("open between operations");
        match Arc::into_inner(engine) {
            Some(_) => Ok(()),
            None => Err("somebody still holds the engine".to_owned()),
        }
    }

    pub fn open(&mut self) -> Outcome {
        let opened = Engine::open(Settings { io: self.io, ..settings(self.dir.path()) });
        self.engine = Some(opened.map_err(|e| format!("open: {e}"))?);
        self.dirtied = 0;
        self.connect()
    }
}

pub fn unusable<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Outcome {
    match outcome {
        Err(error) if error.kind() == ErrorKind::WrongState => Ok(()),
        other => Err(format!("a snapshot that cannot be used should be refused: {other:?}")),
    }
}

pub fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Outcome {
    match outcome {
        Err(error) if error.kind() == ErrorKind::InUse => Ok(()),
        other => Err(format!("a busy disk should be refused: {other:?}")),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "fits map_err")]
pub fn text(error: Error) -> String {
    format!("{:?}: {error}", error.kind())
}
