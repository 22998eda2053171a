//! A daemon, a disk, a mounted file system, and somebody who writes to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rowd_tests::mount::{Device, Mounted};
use rowd_tests::process::{Daemon, Setup};
use rowd_tests::tool::{self, Outcome};
use serde_json::Value;

/// A kind of file system, and how to make, mount and check it.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    pub size: &'static str,
    make: &'static [&'static str],
    mount: &'static str,
    check: &'static [&'static str],
}

pub const EXT4: Kind = Kind {
    name: "ext4",
    size: "256MiB",
    make: &["mkfs.ext4", "-q", "-E", "nodiscard"],
    mount: "noatime",
    check: &["e2fsck", "-fn"],
};

pub const XFS: Kind = Kind {
    name: "xfs",
    size: "320MiB",
    make: &["mkfs.xfs", "-q", "-K"],
    mount: "noatime,nouuid",
    check: &["xfs_repair", "-n"],
};

impl Kind {
    /// Makes it on a new disk and mounts it.
    #[track_caller]
    pub fn made(&self, daemon: &Daemon, disk: &str) -> Mounted {
        daemon.ctl(&["disk", "create", disk, "--size", self.size]);
        let device = Device::attach(daemon, disk);
        on(&device, self.make).ok();
        device.mount(self.mount)
    }

    /// A snapshot of it has a whole file system, and nothing to replay: nobody has mounted it before.
    #[track_caller]
    pub fn is_clean(&self, daemon: &Daemon, export: &str) {
        let device = Device::attach(daemon, export);
        if self.name == "ext4" {
            on(&device, self.check).ok();
            let head = on(&device, &["dumpe2fs", "-h"]).ok().stdout;
            let features = head.lines().find(|line| line.starts_with("Filesystem features"));
            let features = features.expect("dumpe2fs tells features");
            assert!(features.contains("has_journal"), "{features}");
            assert!(!features.contains("needs_recovery"), "{features}");
            return;
        }
        // The kernel leaves a copy of the superblock in the log of a frozen XFS, on purpose, so that the
        // next mount looks after files that were deleted while open. Nothing else may be in it.
        let log = on(&device, &["xfs_logprint", "-t"]).ok().stdout;
        let count = |word: &str| log.lines().filter(|line| line.contains(word)).count();
        assert_eq!(count("TRANS:"), count("SUPER Block Buffer:"), "{log}");
        assert_eq!(count("BUF: cnt"), count("TRANS:"), "{log}");
        assert_eq!(count("INODE") + count("INO:") + count("EFI"), 0, "{log}");
        drop(device);
        let clone = format!("clone-{}", export.replace('@', "-"));
        daemon.ctl(&["disk", "create", &clone, "--from", export]);
        let device = Device::attach(daemon, &clone).mount(self.mount).unmount();
        on(&device, self.check).ok();
    }
}

pub fn on(device: &Device, command: &[&str]) -> Outcome {
    tool::run(command[0], &[&command[1..], &[device.path()]].concat())
}

/// A daemon with a mounted file system.
pub struct World {
    pub mounted: Mounted,
    pub daemon: Daemon,
}

impl World {
    #[track_caller]
    pub fn new(kind: &Kind) -> World {
        World::on(kind, Setup::default().start())
    }

    /// With hold points compiled in: the daemon waits at `point` while a file is there.
    #[track_caller]
    pub fn held_at(kind: &Kind, point: &str) -> World {
        let setup = Setup::default().program(tool::built("rowd-faulty"));
        let mut daemon = setup.prepare();
        let hold = format!("{point}:{}", daemon.path("hold"));
        daemon.change_setup(|setup| setup.env("ROWD_HOLD_POINT", &hold));
        daemon.start();
        World::on(kind, daemon)
    }

    #[track_caller]
    pub fn on(kind: &Kind, daemon: Daemon) -> World {
        World { mounted: kind.made(&daemon, "db"), daemon }
    }

    pub fn dir(&self) -> &Path {
        self.mounted.path()
    }

    pub fn dir_text(&self) -> String {
        self.dir().display().to_string()
    }

    /// `rowctl snapshot create db NAME --consistency fs --mount …`.
    pub fn create_args(&self, name: &str, more: &[&str]) -> Vec<String> {
        let dir = self.dir_text();
        let args = ["snapshot", "create", "db", name, "--consistency", "fs", "--mount", &dir];
        args.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    }

    /// Makes a snapshot of the file system level; what rowctl says as JSON.
    #[track_caller]
    pub fn create(&self, name: &str, more: &[&str]) -> Value {
        let args = self.create_args(name, more);
        self.daemon.json(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// As [`World::create`], which has to fail with this code.
    #[track_caller]
    pub fn create_fails(&self, code: i32, name: &str, more: &[&str]) -> Value {
        let args = self.create_args(name, more);
        self.daemon.json_error(code, &args.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// Seconds of a phase in a report.
#[track_caller]
pub fn seconds(report: &Value, phase: &str) -> f64 {
    let phases = report["phases"].as_array().expect("a list of phases");
    let found = phases.iter().find(|one| one["name"] == phase);
    found
        .and_then(|one| one["seconds"].as_f64())
        .unwrap_or_else(|| panic!("no {phase} in {report}"))
}

/// The names of the phases of a report.
pub fn phases(report: &Value) -> Vec<String> {
    let phases = report["phases"].as_array().expect("a list of phases");
    phases.iter().map(|one| one["name"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Somebody who writes and syncs files all the time.
pub struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    pub fn start(dir: PathBuf) -> Load {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let work = move || {
            while !stopped.load(Ordering::SeqCst) {
                let number = count.load(Ordering::SeqCst);
                let file = dir.join(format!("file-{}", number % 40));
                fs::write(&file, vec![u8::try_from(number % 251).unwrap(); 60_000]).unwrap();
                if number % 7 == 0 {
                    fs::File::open(&file).and_then(|file| file.sync_all()).unwrap();
                    fs::remove_file(&file).unwrap();
                }
                count.fetch_add(1, Ordering::SeqCst);
            }
        };
        Load { stop, written, thread: Some(std::thread::spawn(work)) }
    }

    /// Waits until it has gone on writing.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.written.load(Ordering::SeqCst);
        rowd_tests::wait::until("more writes", || {
            (self.written.load(Ordering::SeqCst) > before + 3).then_some(())
        });
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.expect("started").expect("it writes without errors");
        }
    }
}
