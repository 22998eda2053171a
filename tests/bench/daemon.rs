//! rowd under measurement: one pool in a directory of its own.
//!
//! Invariants: the configuration is the default one but for the quota of snapshots; the highest memory
//! use of every daemon that ran is remembered; the pool is removed when its owner goes.
//! Absent: NBD and fio, which get an address.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rowd_proto::{
    Disk, DiskCreate, GroupCreate, PoolShow, PoolStatus, Snapshot, SnapshotCreate, SnapshotDelete,
    SnapshotList,
};
use rowd_tests::wait;
use tempfile::TempDir;

use crate::control::Control;
use crate::guard::{Running, wait_for};
use crate::machine;
use crate::nbd::Client;

/// 1256 snapshots are measured, 200 and more are made under load.
const CONFIG: &str = "[quota]\nmanual_snapshots = 4000\n";
/// Freeing tens of gigabytes under load takes minutes.
const RECLAIM_LIMIT: Duration = Duration::from_secs(900);

/// The most memory any daemon used, in bytes.
static MEMORY_MAX: AtomicU64 = AtomicU64::new(0);
/// What the daemon says of its cache.
static CACHE_LIMIT: AtomicU64 = AtomicU64::new(0);

/// The most memory any daemon used that has been looked at, in bytes.
pub fn memory_max() -> u64 {
    MEMORY_MAX.load(Ordering::Relaxed)
}

/// The cache the daemon was configured with, in bytes.
pub fn cache_limit() -> u64 {
    CACHE_LIMIT.load(Ordering::Relaxed)
}

#[derive(Debug)]
pub struct Daemon {
    pub control: Control,
    program: PathBuf,
    running: Option<Running>,
    home: TempDir,
}

impl Daemon {
    /// Starts a daemon on a new pool below `dir`.
    pub fn start(program: &Path, dir: &Path) -> Daemon {
        let home = TempDir::with_prefix_in("pool-", dir).expect("make a directory");
        fs::write(home.path().join("rowd.toml"), CONFIG).expect("write a configuration");
        let (running, control, _) = launch(program, home.path());
        Daemon { control, program: program.to_owned(), running: Some(running), home }
    }

    /// `kill -9`, and the time from the next start until the control socket answers a question.
    pub fn crash(&mut self) -> Duration {
        self.note_memory();
        if let Some(running) = self.running.take() {
            running.kill();
        }
        self.relaunch()
    }

    /// Ends it in order and starts it again, with no map in memory and none in the page cache.
    pub fn restart_without_map(&mut self) {
        self.stop();
        machine::evict(&self.pool_dir(), Some(&self.pool_dir().join("pool")));
        self.relaunch();
    }

    /// Ends it in order and starts it again, with neither map nor data in memory.
    pub fn restart_cold(&mut self) {
        self.stop();
        machine::evict(&self.pool_dir(), None);
        self.relaunch();
    }

    /// Ends it in order.
    pub fn stop(&mut self) {
        self.note_memory();
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }

    /// Starts it again after [`Daemon::stop`].
    pub fn relaunch(&mut self) -> Duration {
        assert!(self.running.is_none(), "the daemon runs");
        let (running, control, took) = launch(&self.program, self.home.path());
        self.running = Some(running);
        self.control = control;
        took
    }

    /// What `rowctl --dir` takes.
    pub fn pool_dir(&self) -> PathBuf {
        self.home.path().join("dir")
    }

    /// Where a load on it keeps its files.
    pub fn files(&self) -> &Path {
        self.home.path()
    }

    pub fn nbd_socket(&self) -> PathBuf {
        self.pool_dir().join("nbd.sock")
    }

    /// The address of an export.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.nbd_socket().display())
    }

    /// An NBD connection to an export.
    pub fn connect(&self, export: &str) -> Client {
        Client::connect(&self.nbd_socket(), export)
    }

    /// Makes an empty disk.
    pub fn disk(&mut self, name: &str, size: u64) -> Disk {
        let params =
            DiskCreate { name: name.to_owned(), size: Some(size), ..DiskCreate::default() };
        self.control.call(&params)
    }

    /// Makes a disk and writes all of it, once.
    pub fn full_disk(&mut self, name: &str, size: u64) {
        self.disk(name, size);
        self.connect(name).fill(0, size, 1);
        machine::settle(self.files());
    }

    pub fn snapshot(&mut self, disk: &str) -> (Snapshot, Duration) {
        let params = SnapshotCreate { disk: disk.to_owned(), ..SnapshotCreate::default() };
        let (made, took) = self.control.timed(&params);
        (made.snapshot, took)
    }

    /// Makes a group of these disks.
    pub fn group(&mut self, disks: &[String]) -> Duration {
        let params = GroupCreate { disks: disks.to_vec(), ..GroupCreate::default() };
        self.control.timed(&params).1
    }

    /// How long the heads of disks were held for each cut so far, in milliseconds, as the log has it.
    pub fn cuts(&self) -> Vec<f64> {
        let log = fs::read_to_string(self.home.path().join("rowd.log")).expect("read the log");
        let held = |line: &str| line.rsplit_once("held_us=")?.1.trim().parse::<f64>().ok();
        log.lines().filter_map(held).map(|us| us / 1000.0).collect()
    }

    pub fn delete_snapshot(&mut self, id: &str) {
        self.control.call(&SnapshotDelete { snapshot: id.to_owned(), force: true });
    }

    /// Deletes all snapshots and waits until their space is free.
    pub fn delete_all_snapshots(&mut self) {
        for snapshot in self.control.call(&SnapshotList::default()).snapshots {
            self.delete_snapshot(&snapshot.id);
        }
        self.wait_reclaimed();
    }

    pub fn status(&mut self) -> PoolStatus {
        self.control.call(&PoolShow {})
    }

    pub fn wait_reclaimed(&mut self) {
        wait_for("the end of reclaim", RECLAIM_LIMIT, || {
            (self.status().reclaiming == 0).then_some(())
        });
    }

    /// Waits until everything that was written so far is in the map on disk.
    pub fn wait_checkpointed(&mut self) {
        let last = self.status().last_seq;
        wait_for("a checkpoint", wait::PATIENCE, || {
            (self.status().checkpoint_seq >= last).then_some(())
        });
    }

    /// Waits until a load writes.
    pub fn wait_busy(&mut self) {
        let first = self.status().last_seq;
        wait_for("a load", wait::PATIENCE, || (self.status().last_seq > first + 500).then_some(()));
    }

    /// Bytes it has passed to `write` and its relatives.
    pub fn written(&self) -> u64 {
        machine::field(&format!("/proc/{}/io", self.pid()), "wchar").parse().expect("a number")
    }

    /// Looks at its memory use, for [`memory_max`].
    pub fn note_memory(&self) {
        if self.running.is_none() {
            return;
        }
        let text = self.status_field("VmHWM");
        let kib: u64 = text.trim_end_matches(" kB").parse().expect("a number of KiB");
        MEMORY_MAX.fetch_max(kib << 10, Ordering::Relaxed);
    }

    /// A field of what the kernel says of it.
    pub fn status_field(&self, name: &str) -> String {
        machine::field(&self.proc().join("status").display().to_string(), name)
    }

    pub fn proc(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.pid()))
    }

    fn pid(&self) -> u32 {
        self.running.as_ref().expect("the daemon runs").pid()
    }
}

fn launch(program: &Path, home: &Path) -> (Running, Control, Duration) {
    let dir = home.join("dir");
    let mut command = Command::new(program);
    command.arg("--dir").arg(&dir).arg("--config").arg(home.join("rowd.toml"));
    let socket = dir.join("control.sock");
    let began = Instant::now();
    let mut running = Running::start(&mut command, &home.join("rowd.log"));
    let control = wait_for("the daemon", wait::PATIENCE, || {
        running.check_alive();
        let mut control = Control::connect(&socket)?;
        let status = control.call(&PoolShow {});
        CACHE_LIMIT.store(status.cache_limit, Ordering::Relaxed);
        Some(control)
    });
    (running, control, began.elapsed())
}
