//! Other people's programs: NBD clients, file system checkers, rowctl.
//!
//! Invariants: a program that is not installed fails the test and names the package; none is skipped;
//! none outlives the call: one that hangs is ended, and the test fails with what it has said.
//! Absent: programs that stay (see `process`, `mount`).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What a program did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// As typed, for messages.
    pub line: String,
    /// -1 when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// # Panics
    /// It failed.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        assert_eq!(self.code, 0, "{self}");
        self
    }

    /// # Panics
    /// It did not end with this code.
    #[track_caller]
    pub fn fails_with(self, code: i32) -> Outcome {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// The standard output as JSON.
    ///
    /// # Panics
    /// It is something else.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON: {e}\n{self}"))
    }

    /// Both outputs contain what was wanted somewhere.
    ///
    /// # Panics
    /// One does not.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Outcome {
        for part in parts {
            let said = self.stdout.contains(part) || self.stderr.contains(part);
            assert!(said, "{part:?} is missing\n{self}");
        }
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { line, code, stdout, stderr } = self;
        write!(f, "$ {line}\nexit {code}\n{stdout}\n{stderr}")
    }
}

/// The Debian package of a program.
fn package(program: &str) -> &'static str {
    match program {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "nbdfuse" => "libnbd-bin fuse3",
        "nbdsh" => "python3-libnbd",
        "qemu-img" | "qemu-io" => "qemu-utils",
        "fio" => "fio",
        "shellcheck" => "shellcheck",
        "nbdkit" => "nbdkit",
        "prometheus" | "promtool" => "prometheus",
        "mkfs.xfs" | "xfs_repair" => "xfsprogs",
        "mkfs.ext4" | "e2fsck" | "resize2fs" | "dumpe2fs" => "e2fsprogs",
        "fusermount3" => "fuse3",
        "losetup" | "mount" | "umount" => "mount",
        "qemu-system-x86_64" => "qemu-system-x86",
        "objcopy" => "binutils",
        "chroot" => "coreutils",
        "bash" | "cpio" | "debootstrap" | "make" | "tar" => "bash cpio debootstrap make tar",
        "fsfreeze" | "setpriv" => "util-linux",
        "script" => "bsdutils",
        _ => "the package that has it",
    }
}

/// A program as a command, with the system's directories first in the path: the Python that nbdsh
/// needs is the one the distribution built its module for.
///
/// # Panics
/// It is not installed.
#[track_caller]
#[must_use]
pub fn command(program: &str) -> Command {
    let path =
        format!("/usr/sbin:/usr/bin:/sbin:/bin:{}", std::env::var("PATH").unwrap_or_default());
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{program} is missing: apt-get install {}", package(program)));
    let mut command = Command::new(found);
    command.env("PATH", path).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// How long a program may take: many times what the longest takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(600);
/// How long a program may take to clean up that was asked to end.
const GRACE: Duration = Duration::from_secs(20);

/// Runs a command to its end and collects both outputs. They are files: what it leaves in the background
/// may keep them open.
///
/// # Panics
/// It cannot be started, or does not end in time.
#[track_caller]
pub fn finish(command: &mut Command) -> Outcome {
    finish_within(LIMIT, command)
}

#[track_caller]
fn finish_within(limit: Duration, command: &mut Command) -> Outcome {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let [stdout, stderr] = [(); 2].map(|()| tempfile::tempfile().expect("a file for an output"));
    let append = |file: &File| Stdio::from(file.try_clone().expect("a second descriptor"));
    command.stdout(append(&stdout)).stderr(append(&stderr));
    let child = command.spawn().unwrap_or_else(|e| panic!("{line}: {e}"));
    let status = wait_within(limit, child);
    let outcome = Outcome {
        line,
        code: status.and_then(|status| status.code()).unwrap_or(-1),
        stdout: contents(stdout),
        stderr: contents(stderr),
    };
    assert!(status.is_some(), "not at its end within {} s: {outcome}", limit.as_secs());
    outcome
}

/// How it ended by itself. In time is before it is asked to end; one that does not do that either is killed.
fn wait_within(limit: Duration, mut child: Child) -> Option<ExitStatus> {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    let (sender, ended) = mpsc::channel();
    // Nobody listens any more when not even a kill has ended it.
    std::thread::spawn(move || drop(sender.send(child.wait())));
    if let Ok(status) = ended.recv_timeout(limit) {
        return Some(status.expect("wait for a child"));
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if let Err(errno) = kill(pid, signal) {
            eprintln!("{signal} to {pid}: {errno}");
        }
        if ended.recv_timeout(GRACE).is_ok() {
            break;
        }
    }
    None
}

fn contents(mut file: File) -> String {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).expect("an output");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs a program with arguments to its end.
#[track_caller]
pub fn run(program: &str, args: &[&str]) -> Outcome {
    finish(command(program).args(args))
}

/// A program of this workspace, beside the test that runs.
///
/// # Panics
/// It has not been built.
#[must_use]
pub fn built(program: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a program knows its own path");
    // target/release/deps/it-0123 and target/release/rowd.
    let found = test.ancestors().skip(1).take(2).map(|dir| dir.join(program)).find(|p| p.is_file());
    found.unwrap_or_else(|| {
        panic!("{program} is not built: cargo build --release --workspace, or make test")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_outputs_are_collected_whatever_stays_behind() {
        let outcome = run("bash", &["-c", "read -t 1 <> <(:) & echo out; echo err >&2; exit 3"]);
        assert_eq!((outcome.code, &*outcome.stdout, &*outcome.stderr), (3, "out\n", "err\n"));
    }

    #[test]
    #[should_panic(expected = "not at its end within 0 s")]
    fn a_program_that_hangs_is_ended_and_fails_the_test() {
        finish_within(Duration::from_millis(50), command("sleep").arg("1000"));
    }
}
