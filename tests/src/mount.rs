//! A disk of the daemon as a block device of this host: nbdfuse makes a file of the export, losetup a
//! device of the file. Kernels without an NBD client can mount it all the same.
//!
//! Invariants: what was mounted, attached or started is gone when its owner is, also in a panic; the
//! device is detached only when it is unmounted.
//! Absent: kernels with an NBD client.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::process::Daemon;
use crate::tool::{self, Outcome};
use crate::wait;

/// An export as a block device.
#[derive(Debug)]
pub struct Device {
    nbdfuse: Child,
    /// Holds `nbd`, the file, and `mnt`, where a file system goes.
    home: TempDir,
    device: String,
}

impl Device {
    /// # Panics
    /// One of the tools is missing or fails.
    #[track_caller]
    #[must_use]
    pub fn attach(daemon: &Daemon, export: &str) -> Device {
        Device::attach_uri(&daemon.uri(export))
    }

    /// As [`Device::attach`], of any NBD server.
    ///
    /// # Panics
    /// One of the tools is missing or fails.
    #[track_caller]
    #[must_use]
    pub fn attach_uri(uri: &str) -> Device {
        let home = TempDir::with_prefix("rowd-mount-").expect("a temporary directory");
        let (fuse, point) = (home.path().join("fuse"), home.path().join("mnt"));
        std::fs::create_dir(&fuse).and_then(|()| std::fs::create_dir(point)).expect("mkdir");
        let file = fuse.join("nbd");
        let mut command = tool::command("nbdfuse");
        command.arg(&file).arg(uri).stdout(Stdio::null());
        let nbdfuse = command.spawn().expect("start nbdfuse");
        let mut made = Device { nbdfuse, home, device: String::new() };
        wait::until("the file of nbdfuse", || {
            let ended = made.nbdfuse.try_wait().expect("ask for a child");
            assert!(ended.is_none(), "nbdfuse ended: {ended:?}");
            file.is_file().then_some(())
        });
        let mut losetup = tool::command("losetup");
        let shown = tool::finish(losetup.args(["--find", "--show"]).arg(&file)).ok();
        shown.stdout.trim().clone_into(&mut made.device);
        made
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.device
    }

    /// Mounts its file system.
    ///
    /// # Panics
    /// mount fails.
    #[track_caller]
    #[must_use]
    pub fn mount(self, options: &str) -> Mounted {
        let point = self.home.path().join("mnt");
        tool::finish(tool::command("mount").args(["-o", options, &self.device]).arg(&point)).ok();
        Mounted { point, device: Some(self) }
    }

    fn release(&mut self) {
        if !self.device.is_empty() {
            tolerate(tool::command("losetup").args(["--detach", &self.device]));
        }
        let fuse = self.home.path().join("fuse");
        told(&unhurried(|| tool::finish(tool::command("fusermount3").arg("-u").arg(&fuse))));
        // It ends by itself once it is unmounted, and must: it has writes to pass on.
        if wait::try_until(wait::PATIENCE, || self.nbdfuse.try_wait().ok().flatten()).is_none() {
            eprintln!("nbdfuse did not end; it is killed");
            tolerate_result(self.nbdfuse.kill().and_then(|()| self.nbdfuse.wait()));
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.release();
    }
}

/// A mounted file system; unmounted and detached when dropped.
#[derive(Debug)]
pub struct Mounted {
    point: PathBuf,
    device: Option<Device>,
}

impl Mounted {
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Sends a signal to the server of the device: stopped, it answers no request.
    ///
    /// # Panics
    /// It is not running.
    pub fn signal_server(&self, signal: Signal) {
        let device = self.device.as_ref().expect("it is mounted");
        let pid = i32::try_from(device.nbdfuse.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("signal a child");
    }

    /// Unmounts it and keeps the device.
    ///
    /// # Panics
    /// umount fails.
    #[track_caller]
    #[must_use]
    pub fn unmount(mut self) -> Device {
        unmount(&self.point).ok();
        self.device.take().expect("taken only here")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.device.is_some() {
            told(&unmount(&self.point));
        }
    }
}

/// Unmounts a file system once nobody holds it.
pub fn unmount(point: &Path) -> Outcome {
    unhurried(|| tool::finish(tool::command("umount").arg(point)))
}

/// Tries again while something is busy. A child that another test is starting holds every file of this
/// process until it executes its program, and a loop device lets go of its file a moment late.
fn unhurried(run: impl Fn() -> Outcome) -> Outcome {
    let mut last = None;
    wait::try_until(wait::PATIENCE, || {
        let done = run();
        let busy = done.code != 0 && done.stderr.contains("busy");
        last = Some(done);
        (!busy).then_some(())
    });
    last.expect("it looks at least once")
}

/// Runs a command of a clean-up: a failure is told, and the rest goes on.
fn tolerate(command: &mut Command) {
    told(&tool::finish(command));
}

fn told(done: &Outcome) {
    if done.code != 0 {
        eprintln!("{done}");
    }
}

fn tolerate_result<T>(result: std::io::Result<T>) {
    if let Err(error) = result {
        eprintln!("{error}");
    }
}
