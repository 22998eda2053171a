//! Other people's programs: NBD clients, file system checkers, rowctl.
//!
//! Invariants: a program that is not installed fails the test and names the package; none is skipped;
//! none outlives the call.
//! Absent: programs that stay (see `process`, `mount`).

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

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
        "mkfs.xfs" | "xfs_repair" => "xfsprogs",
        "mkfs.ext4" | "e2fsck" | "resize2fs" | "dumpe2fs" => "e2fsprogs",
        "fusermount3" => "fuse3",
        "losetup" | "mount" | "umount" => "mount",
        "qemu-system-x86_64" => "qemu-system-x86",
        "objcopy" => "binutils",
        "chroot" => "coreutils",
        "bash" | "cpio" | "debootstrap" | "make" | "tar" => "bash cpio debootstrap make tar",
        "fsfreeze" | "setpriv" => "util-linux",
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

/// Runs a command to its end.
///
/// # Panics
/// It cannot be started.
#[track_caller]
pub fn finish(command: &mut Command) -> Outcome {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let output = command.output().unwrap_or_else(|e| panic!("{line}: {e}"));
    Outcome {
        line,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
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
