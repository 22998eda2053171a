//! Scripts for the unit tests of this module, and looks at the processes they start.
//!
//! Invariants: a script is written by another process. If this one wrote it, a child that another test starts
//! at that moment would hold it open for writing, and the kernel would not execute it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longer than anything that works takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn owner() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// A directory of root alone, as the one of hooks is.
pub fn home() -> TempDir {
    TempDir::with_prefix("rowd-freeze-").unwrap()
}

/// Writes a file with this mode; its text may use `$D` for the directory.
pub fn write(dir: &Path, name: &str, mode: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    let mut command = Command::new("install");
    command.args(["-m", mode, "/dev/stdin"]).arg(&path).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let text = text.replace("$D", &dir.display().to_string());
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    path
}

pub fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap_or_default()
}

#[track_caller]
pub fn wait_for(what: &str, mut look: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !look() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Waits until a file that a script writes has a line, and gives it.
#[track_caller]
pub fn wait_line(dir: &Path, name: &str) -> String {
    wait_for(name, || read(dir, name).ends_with('\n'));
    read(dir, name).trim().to_owned()
}

/// The processes whose ids a script wrote to a file.
#[track_caller]
pub fn pids(dir: &Path, name: &str) -> Vec<Pid> {
    wait_line(dir, name).lines().map(|line| Pid::from_raw(line.parse().unwrap())).collect()
}

/// Whether a process runs; one that has ended and waits to be reaped does not.
pub fn runs(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Ends processes a test left running on purpose.
pub fn end(pids: &[Pid]) {
    for pid in pids {
        assert!(runs(*pid), "{pid} ended by itself");
        kill(*pid, Signal::SIGKILL).unwrap();
    }
}
