//! A service manager with a descriptor store, as much of systemd as a restart needs: it is told `READY=1`,
//! keeps what it is given with `FDSTORE=1`, and starts the next daemon with it (sd_notify(3),
//! sd_listen_fds(3)).
//!
//! Invariants: what it is told is dealt with in order; a barrier is answered after what came before it;
//! the daemon is killed and reaped when its owner goes.
//! Absent: socket units, and restarts by itself: the test says when.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;

use crate::process::{Daemon, Setup};
use crate::wait;

/// The first inherited descriptor, fixed by the protocol.
const FIRST_FD: RawFd = 3;
/// Out of the way of the numbers that the next daemon gets.
const HIGH_FD: RawFd = 600;

/// What the daemon has told.
#[derive(Debug, Default)]
struct Told {
    ready: bool,
    store: Vec<(String, OwnedFd)>,
    stored_in_all: usize,
}

/// The manager, with its one service.
#[derive(Debug)]
pub struct Manager {
    daemon: Daemon,
    child: Option<Child>,
    told: Arc<Mutex<Told>>,
}

impl Manager {
    /// Starts a daemon.
    ///
    /// # Panics
    /// It does not start.
    #[track_caller]
    #[must_use]
    pub fn start(setup: Setup) -> Manager {
        let daemon = setup.prepare();
        let socket = UnixDatagram::bind(daemon.file("notify")).expect("a socket");
        let told = Arc::new(Mutex::new(Told::default()));
        let for_thread = Arc::clone(&told);
        // Ends with the test program: it waits for messages of daemons to come.
        thread::spawn(move || while hear(&socket, &for_thread).is_ok() {});
        let mut manager = Manager { daemon, child: None, told };
        manager.launch();
        manager
    }

    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Descriptors stored since the beginning, those that were taken out included.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn stored_in_all(&self) -> usize {
        self.told.lock().expect("a lock").stored_in_all
    }

    /// Descriptors in the store now.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn stored(&self) -> usize {
        self.told.lock().expect("a lock").store.len()
    }

    /// Ends the daemon in order and starts the next, as `systemctl restart`.
    ///
    /// # Panics
    /// It does not end well, or the next does not start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.ask_to_end();
        self.start_next();
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    /// The daemon does not run.
    pub fn ask_to_end(&self) {
        let pid = self.child.as_ref().expect("the daemon runs").id();
        let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("signal a child");
    }

    /// Waits for the end of the daemon, and starts the next.
    ///
    /// # Panics
    /// It does not end well, or the next does not start.
    #[track_caller]
    pub fn start_next(&mut self) {
        let child = self.child.as_mut().expect("the daemon runs");
        let ended = wait::until("the end of the daemon", || child.try_wait().expect("a child"));
        assert!(ended.success(), "the daemon ended with {ended}\n{}", self.daemon.log());
        self.launch();
    }

    /// `kill -9`, and the next start, as `Restart=always` does it.
    ///
    /// # Panics
    /// The next does not start.
    #[track_caller]
    pub fn crash(&mut self) {
        self.end();
        self.launch();
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait()).expect("kill and reap a child");
        }
    }

    #[track_caller]
    fn launch(&mut self) {
        let (names, fds) = {
            let mut told = self.told.lock().expect("a lock");
            told.ready = false;
            // The manager keeps its own until the daemon says that it has taken them.
            let copy = |(name, fd): &(String, OwnedFd)| {
                let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(HIGH_FD)).expect("a descriptor");
                (name.clone(), copy)
            };
            told.store.iter().map(copy).unzip::<_, _, Vec<_>, Vec<_>>()
        };
        let wanted = self.daemon.command();
        let mut command = Command::new("sh");
        // Only the process itself can know its number before it executes the daemon.
        command.args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"]);
        command.arg(wanted.get_program()).args(wanted.get_args());
        command.env("LISTEN_FDS", fds.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        command.env("NOTIFY_SOCKET", self.daemon.file("notify"));
        let log = self.daemon.file("rowd.log");
        let log = std::fs::File::options().create(true).append(true).open(log);
        command.stderr(log.expect("open the log"));
        pass(&mut command, fds.clone());
        self.child = Some(command.spawn().expect("start the daemon"));
        for fd in fds {
            // SAFETY: the copies made above, which nobody else knows; the child has its own.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        let told = Arc::clone(&self.told);
        wait::until("a daemon that is ready", || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().expect("a child"));
            assert!(ended.is_none(), "the daemon ended while starting\n{}", self.daemon.log());
            told.lock().expect("a lock").ready.then_some(())
        });
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.end();
        if thread::panicking() {
            eprintln!("{}", self.daemon.log());
        }
    }
}

/// Has a child begin with these descriptors, from number 3 on.
fn pass(command: &mut Command, fds: Vec<RawFd>) {
    let rename = move || {
        for (to, from) in (FIRST_FD..).zip(&fds) {
            // SAFETY: dup2 is async-signal-safe; the numbers below HIGH_FD are free to be replaced, since
            // the child executes another program next.
            if unsafe { libc::dup2(*from, to) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(rename) };
}

/// Takes one message.
fn hear(socket: &UnixDatagram, told: &Mutex<Told>) -> nix::Result<()> {
    let mut text = [0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just made these descriptors for this process.
            fds.extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    let text = String::from_utf8_lossy(&text[..length]).into_owned();
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    };
    let mut told = told.lock().expect("a lock");
    told.ready |= value("READY").is_some();
    let name = value("FDNAME").unwrap_or_default();
    if value("FDSTORE").is_some() {
        assert_eq!(value("FDPOLL").as_deref(), Some("0"), "or a hang-up takes it out of the store");
        told.stored_in_all += fds.len();
        told.store.extend(fds.drain(..).map(|fd| (name.clone(), fd)));
    } else if value("FDSTOREREMOVE").is_some() {
        told.store.retain(|(stored, _)| *stored != name);
    }
    // What is left is the end of a barrier: closing it is the answer.
    Ok(())
}
