//! Programs that stay while something is measured.
//!
//! Invariants: a program is ended by its pid when its owner goes, also in a panic; Ctrl-C and SIGTERM
//! become a panic at the next wait, so that owners clean up.
//! Absent: waiting itself (`rowd_tests::wait`).

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use rowd_tests::wait;

/// After this a program that was asked to end is killed. A daemon with gigabytes of dirty pages
/// needs a while for its last flush.
const END_LIMIT: Duration = Duration::from_secs(120);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C and SIGTERM end the program at the next wait.
pub fn watch_signals() {
    let signals = watched();
    // Blocked everywhere, they are left for the thread that waits for them.
    signals.thread_block().expect("block signals");
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::SeqCst);
        }
    });
}

fn watched() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM].into_iter().collect()
}

/// Waits until there is something to see.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let seen = wait::try_until(limit, || {
        check_interrupted();
        look()
    });
    seen.unwrap_or_else(|| panic!("{what}: not within {} s", limit.as_secs()))
}

/// Goes on after a while.
pub fn pause(length: Duration) {
    let ended = wait::try_until(length, || INTERRUPTED.load(Ordering::SeqCst).then_some(()));
    assert!(ended.is_none(), "interrupted");
}

fn check_interrupted() {
    assert!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
}

/// A child that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts a command; what it prints goes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Running {
        check_interrupted();
        let out = File::options().create(true).append(true).open(log).expect("open a log");
        let both = out.try_clone().expect("share a log");
        command.stdin(Stdio::null()).stdout(out).stderr(both);
        // A child inherits what is blocked, and could not be asked to end.
        watched().thread_unblock().expect("unblock signals");
        let child = command.spawn();
        watched().thread_block().expect("block signals");
        let child = child.unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Running { child, log: log.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails when it has ended by itself.
    pub fn check_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("ask for the state of a child") {
            panic!("it ended with {status}:\n{}", self.log());
        }
    }

    /// Waits until it has ended by itself, with one of these exit codes.
    pub fn wait_done(mut self, limit: Duration, codes: &[i32]) {
        let status = wait_for("the end of a program", limit, || {
            self.child.try_wait().expect("ask for the state of a child")
        });
        let well = status.code().is_some_and(|code| codes.contains(&code));
        assert!(well, "it ended with {status}:\n{}", self.log());
    }

    /// Sends SIGINT.
    pub fn interrupt(&self) {
        send(self.pid(), Signal::SIGINT);
    }

    /// Ends it in order.
    pub fn stop(mut self) {
        send(self.pid(), Signal::SIGTERM);
        wait_for("the end of a server", END_LIMIT, || {
            self.child.try_wait().expect("ask for the state of a child")
        });
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.end();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn end(&mut self) {
        // Neither can fail for a child that was not reaped, and then there is nothing left to end.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// A server that puts itself into the background and leaves its pid in a file.
#[derive(Debug)]
pub struct Detached(u32);

impl Detached {
    /// Waits for the pid.
    pub fn from_pid_file(path: &Path) -> Detached {
        Detached(wait_for("a pid file", wait::PATIENCE, || {
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        }))
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        send(self.0, Signal::SIGTERM);
        let gone = || (!Path::new(&format!("/proc/{}", self.0)).exists()).then_some(());
        if wait::try_until(END_LIMIT, gone).is_none() {
            send(self.0, Signal::SIGKILL);
        }
    }
}

/// Waits until somebody listens on a Unix socket.
pub fn wait_listening(socket: &Path) {
    wait_for(&format!("a server on {}", socket.display()), wait::PATIENCE, || {
        UnixStream::connect(socket).ok()
    });
}

fn send(pid: u32, kind: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    // A process that is gone already is what was wanted.
    kill(pid, kind).ok();
}
