//! The recorded run: a daemon on the recorded device, clients with a history, an administrator.
//!
//! Invariants: the run is over before any state is made of it; every name is used once, so that what
//! is found in a state can be looked up.
//! Absent: judgement.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rowd_proto::{DiskCreate, SnapshotCreate, SnapshotDelete};
use tempfile::TempDir;

use super::device::{Device, Entry};
use super::{CONFIG, DEVICE_BYTES};
use crate::client::Client;
use crate::crash::control::Control;
use crate::crash::history::{Clock, Log};
use crate::crash::load::{Lane, Style, lock};
use crate::crash::rng::Rng;
use crate::crash::stamp::{SECTOR, Value};
use crate::crash::{Modes, with_mode};
use crate::mount;
use crate::process::{Daemon, Setup};
use crate::tool;

/// Size of each disk.
pub const DISK_BYTES: u64 = 2 << 20;
/// Disks and how many requests each has in flight: the first is a writer that waits for each answer.
const DISKS: [(&str, usize); 3] = [("one", 1), ("four", 4), ("many", 16)];
/// Requests to each disk between two kills of the daemon.
const REQUESTS: u64 = 900;
/// Lives of the daemon: each but the last ends with `kill -9`, so that cuts meet recoveries too.
const LIVES: usize = 3;
/// Snapshots alive at a time.
const SNAPSHOTS_MAX: usize = 6;

/// From when to when something was being done.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub asked: u64,
    pub answered: Option<u64>,
}

/// A disk of the run.
#[derive(Debug)]
pub struct Disk {
    pub name: String,
    pub made: Span,
    pub log: Arc<Mutex<Log>>,
}

/// A snapshot of the run.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub name: String,
    /// Index of its disk.
    pub disk: usize,
    pub made: Span,
    pub deleted: Option<Span>,
}

/// Everything that happened.
#[derive(Debug)]
pub struct Recording {
    pub entries: Vec<Entry>,
    pub disks: Vec<Disk>,
    pub snapshots: Vec<Snapshot>,
    /// The number at which there was a file system, and nothing in it.
    pub begin: u64,
    /// The number at which the first daemon was ready.
    pub ready: u64,
    pub end: u64,
}

/// The recorded disk with its file system, and the daemon that lives there.
struct Rig {
    // Dropped in this order: who uses something goes before what is used.
    daemon: Daemon,
    _mounted: mount::Mounted,
    device: Device,
    _home: TempDir,
}

/// Records a run.
///
/// # Panics
/// A tool is missing, or the daemon refuses something.
#[must_use]
pub fn record(program: &Path, modes: Modes, rng: &mut Rng) -> Recording {
    let clock = Arc::new(Clock::default());
    let (mut rig, begin) = Rig::new(program, &clock);
    rig.choose_mode(modes, rng);
    rig.daemon.start();
    let ready = clock.tick();
    let disks = make_disks(&rig.daemon, &clock);
    let mut snapshots = Vec::new();
    for life in 0..LIVES {
        live(&rig.daemon, &clock, &disks, &mut snapshots, rng);
        if life + 1 < LIVES {
            rig.daemon.kill();
            rig.choose_mode(modes, rng);
            rig.daemon.start();
        }
    }
    rig.daemon.kill();
    let (entries, end) = (rig.device.entries(), clock.tick());
    Recording { entries, disks, snapshots, begin, ready, end }
}

impl Rig {
    fn new(program: &Path, clock: &Arc<Clock>) -> (Rig, u64) {
        let home = TempDir::with_prefix("rowd-power-").expect("a temporary directory");
        let socket = home.path().join("device.sock");
        let device = Device::serve(&socket, DEVICE_BYTES, Arc::clone(clock));
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let attached = mount::Device::attach_uri(&uri);
        let mut mkfs = tool::command("mkfs.ext4");
        mkfs.args(["-q", "-F", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
        tool::finish(mkfs.arg(attached.path())).ok();
        let mounted = attached.mount("noatime");
        let pool: PathBuf = mounted.path().join("pool");
        std::fs::create_dir(&pool).expect("a directory for the pool");
        tool::finish(tool::command("sync").arg("-f").arg(&pool)).ok();
        let begin = clock.tick();
        let daemon = Setup::default().program(program).config(CONFIG).prepare();
        symlink(&pool, daemon.dir()).expect("the daemon's directory on the recorded disk");
        (Rig { daemon, _mounted: mounted, device, _home: home }, begin)
    }

    fn choose_mode(&mut self, modes: Modes, rng: &mut Rng) {
        let config = with_mode(CONFIG, *rng.pick(modes));
        self.daemon.change_setup(|setup| setup.config(&config));
    }
}

fn make_disks(daemon: &Daemon, clock: &Clock) -> Vec<Disk> {
    let mut control = Control::connect(&daemon.control_socket()).expect("the daemon answers");
    let make = |(name, number): (&str, u32)| {
        let asked = clock.tick();
        let params =
            DiskCreate { name: name.to_owned(), size: Some(DISK_BYTES), ..Default::default() };
        control.call(&params).expect("a new disk");
        let made = Span { asked, answered: Some(clock.tick()) };
        let sectors = usize::try_from(DISK_BYTES).expect("small") / SECTOR;
        let log = Arc::new(Mutex::new(Log::new(number, vec![Value::ZERO; sectors])));
        Disk { name: name.to_owned(), made, log }
    };
    DISKS.iter().map(|(name, _)| *name).zip(1..).map(make).collect()
}

/// Traffic on all disks until each has had its requests; snapshots meanwhile.
fn live(
    daemon: &Daemon,
    clock: &Clock,
    disks: &[Disk],
    snapshots: &mut Vec<Snapshot>,
    rng: &mut Rng,
) {
    let socket = daemon.nbd_socket();
    let mut control = Control::connect(&daemon.control_socket()).expect("the daemon answers");
    std::thread::scope(|scope| {
        let writers: Vec<_> = disks
            .iter()
            .zip(DISKS)
            .map(|(disk, (_, depth))| {
                let style = Style { depth, requests: Some(REQUESTS), ragged: true, flushes: 3 };
                let (rng, socket) = (rng.fork(), &socket);
                scope.spawn(move || {
                    let mut client = Client::connect(socket, &disk.name);
                    let done = Lane::new(&disk.log, clock, style, rng).run(&mut client);
                    assert!(!done.cut_off, "the daemon hung up");
                })
            })
            .collect();
        while !writers.iter().all(|writer| writer.is_finished()) {
            administer(&mut control, clock, disks, snapshots, rng);
            std::thread::yield_now();
        }
    });
}

/// Makes or deletes a snapshot.
fn administer(
    control: &mut Control,
    clock: &Clock,
    disks: &[Disk],
    snapshots: &mut Vec<Snapshot>,
    rng: &mut Rng,
) {
    let alive: Vec<usize> =
        (0..snapshots.len()).filter(|at| snapshots[*at].deleted.is_none()).collect();
    let asked = clock.tick();
    if alive.len() >= SNAPSHOTS_MAX {
        let at = *rng.pick(&alive);
        let Snapshot { name, disk, .. } = &snapshots[at];
        let snapshot = format!("{}@{name}", disks[*disk].name);
        control.call(&SnapshotDelete { snapshot, force: true }).expect("a deleted snapshot");
        snapshots[at].deleted = Some(Span { asked, answered: Some(clock.tick()) });
        return;
    }
    let disk = usize::try_from(rng.below(disks.len() as u64)).expect("an index");
    let name = format!("snap{}", snapshots.len());
    let params = SnapshotCreate {
        disk: disks[disk].name.clone(),
        name: Some(name.clone()),
        ..Default::default()
    };
    control.call(&params).expect("a snapshot");
    let made = Span { asked, answered: Some(clock.tick()) };
    snapshots.push(Snapshot { name, disk, made, deleted: None });
}

impl Recording {
    /// The newest moment that is durable at a cut because a flush or a snapshot that was asked for
    /// then was answered before the cut.
    #[must_use]
    pub fn durable_at(&self, cut: u64) -> u64 {
        let flushes = self.disks.iter().flat_map(|disk| lock(&disk.log).flushes.clone());
        let spans = self.snapshots.iter().flat_map(|s| [Some(s.made), s.deleted]).flatten();
        let spans = spans.filter_map(|span| Some((span.asked, span.answered?)));
        let answered = flushes.chain(spans).filter(|(_, answered)| *answered < cut);
        answered.map(|(asked, _)| asked).max().unwrap_or(0)
    }
}
