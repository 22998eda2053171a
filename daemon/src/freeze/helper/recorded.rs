//! Thawing what a record names: `rowd-freeze thaw --recorded FILE`, for the service manager, for the next
//! start of the daemon, and for an administrator without a daemon.
//!
//! Invariants: only a file system that is still the recorded device at the recorded place is thawed; the
//! record goes when everything it names is thawed; the program ends within its limit, as each ioctl runs
//! in a process of its own that may stay behind, waiting for a device whose server is away.
//! Absent: finding a file system that was unmounted while frozen. It has to be mounted again first.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::dev::{Dev, open};
use super::hurry;
use super::kernel;
use super::record::{AGENT, Record, Recorded};

/// How long to wait for the ioctls: a device whose server is away answers when it is back.
pub const LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at the children.
const PAUSE: Duration = Duration::from_millis(5);
/// Exit codes of one thaw; the first two leave nothing frozen.
const THAWED: u8 = 0;
const NOT_FROZEN: u8 = 1;
const NOT_THERE: u8 = 3;
const FAILED: u8 = 12;

/// Thaws everything that the records of file systems and of machines name, and removes them. Exit code 12
/// when something may still be frozen.
pub fn thaw(path: &Path, limit: Duration) -> ExitCode {
    let guests = Record::guests(path);
    let here = thaw_of(path, limit);
    let machines = !guests.exists() || thaw_of(&guests, limit);
    if here && machines { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn thaw_of(path: &Path, limit: Duration) -> bool {
    let record = match Record::read(path) {
        Ok(Some(record)) => record,
        Ok(None) => {
            println!("nothing is recorded as frozen");
            return remove(path);
        }
        Err(error) => {
            eprintln!("rowd-freeze: read {}: {error}", path.display());
            return false;
        }
    };
    if record.hurried
        && let Err(error) = hurry::undo()
    {
        eprintln!("rowd-freeze: the kernel stays in the hurry of a freeze: {error}");
    }
    let deadline = Instant::now() + limit;
    let started: Vec<_> = record.members.iter().map(|one| (one, start(one))).collect();
    let mut left = 0;
    for (one, child) in started {
        let ended = child.and_then(|mut child| wait(&mut child, deadline));
        let words = match ended {
            Ok(Some(THAWED)) => "thawed",
            Ok(Some(NOT_FROZEN)) => "was not frozen",
            Ok(Some(NOT_THERE)) => "is not mounted there any more; mount it and thaw again",
            Ok(Some(_)) => "cannot be thawed",
            Ok(None) => "does not answer; the thaw goes on in the background",
            Err(_) => "cannot be thawed: no process can be started",
        };
        println!("{} ({}): {words}", one.mount_point, one.device);
        left += u32::from(!matches!(ended, Ok(Some(THAWED | NOT_FROZEN))));
    }
    left == 0 && remove(path)
}

fn remove(path: &Path) -> bool {
    let removed = Record::remove(path);
    if let Err(error) = &removed {
        eprintln!("rowd-freeze: remove {}: {error}", path.display());
    }
    removed.is_ok()
}

/// This program again, for one file system, in a process group of its own.
fn start(one: &Recorded) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    match one.device.as_str() {
        AGENT => command.args(["thaw-guest", &one.mount_point]),
        device => command.args(["thaw-one", device, &one.mount_point]),
    };
    command.process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// Its exit code; nothing when it has not ended by then.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<u8>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(
                status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED),
            ));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(PAUSE);
    }
}

/// Thaws one file system, as long as that takes.
pub(super) fn thaw_one(dev: &str, path: &Path) -> ExitCode {
    let directory = Dev::parse(dev).and_then(|dev| open(path, dev));
    let code = match directory {
        None => NOT_THERE,
        Some(directory) => match kernel::thaw(directory.as_fd()) {
            Ok(()) => THAWED,
            Err(Errno::EINVAL) => NOT_FROZEN,
            Err(_) => FAILED,
        },
    };
    ExitCode::from(code)
}
