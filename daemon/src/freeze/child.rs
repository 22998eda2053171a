//! A program of the user as a process: started from an open file, watched to its end or to its limit.
//!
//! Invariants: what was opened and checked is what runs, whatever its path names meanwhile; a process group
//! is signalled only while its leader is not reaped, so that its number cannot be somebody else's; no output
//! of a program fills memory, blocks it, or is waited for once it ended; what background children of a
//! program that ended do is their own affair, they are neither waited for nor killed.
//! Absent: SIGCHLD, signal handlers and `fork` (a daemon with much memory mapped is stopped by it for
//! milliseconds); who may be started and when, which is `script` and `hook`.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::Pid;
use rustix::process::{
    PidfdFlags, WaitId, WaitIdOptions, configure_io_flusher_behavior, is_io_flusher, pidfd_open,
    waitid,
};

use crate::memory;

/// What runs a script that does not say what runs it.
const SHELL: &str = "/bin/bash";
/// Where programs look for others: nothing of the daemon's own environment is passed on.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// As much of the first line as the kernel looks at.
const FIRST_LINE_MAX: usize = 256;
/// The end of an output that is kept, to quote from.
const TAIL_BYTES: usize = 4096;
/// Lines quoted in a message, and characters of each.
const QUOTED_LINES: usize = 5;
const QUOTED_CHARS: usize = 200;
/// What one read takes: a pipe holds no more.
const PIPE_BYTES: usize = 65_536;
/// A killed process that waits for a device ends only when that answers.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// Threads that empty the pipes of background children. Beyond it a pipe is closed instead.
const ORPHANS_MAX: usize = 64;
/// Enough for a thread that only reads and forgets.
const SMALL_STACK: usize = 65_536;

static ORPHANS: AtomicUsize = AtomicUsize::new(0);

/// An executable file that has been opened; the open file is what is looked at and executed.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    file: File,
}

impl Program {
    /// Opens it, without waiting should it be a FIFO. `flags` may add `O_NOFOLLOW`.
    pub(super) fn open(path: &Path, flags: OFlag) -> io::Result<Program> {
        let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
        Ok(Program { path: path.to_owned(), file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// The open file under a name that interpreters can open too. It is that of this process, so that the
    /// descriptor itself need not be inherited, by this child or by others that start at the same time.
    fn descriptor(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    fn first_line(&self) -> io::Result<Vec<u8>> {
        let mut start = [0; FIRST_LINE_MAX];
        let count = self.file.read_at(&mut start, 0)?;
        Ok(start[..count].split(|byte| *byte == b'\n').next().unwrap_or_default().to_owned())
    }

    fn command(&self) -> io::Result<Command> {
        let line = self.first_line()?;
        if line.ends_with(b"\r") && !line.starts_with(b"\x7fELF") {
            let path = self.path.display();
            let why = format!("its lines end as on DOS, CR LF: sed -i 's/\\r$//' {path}");
            return Err(io::Error::other(why));
        }
        if line.starts_with(b"#!") || line.starts_with(b"\x7fELF") {
            return Ok(Command::new(self.descriptor()));
        }
        let mut command = Command::new(SHELL);
        command.arg(self.descriptor());
        Ok(command)
    }

    /// What the kernel meant by refusing to execute it.
    fn explain(&self, error: &io::Error) -> String {
        let line = self.first_line().unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let interpreter = line.strip_prefix("#!").and_then(|rest| rest.split_whitespace().next());
        if let Some(interpreter) = interpreter {
            let is_program = |found: &Metadata| found.is_file() && found.mode() & 0o111 != 0;
            match Path::new(interpreter).metadata() {
                Err(why) => return format!("its first line asks for {interpreter}: {why}"),
                Ok(found) if !is_program(&found) => {
                    return format!("its first line asks for {interpreter}, which is no program");
                }
                Ok(_) => {}
            }
        }
        let noexec = |found: nix::sys::statvfs::Statvfs| found.flags().contains(FsFlags::ST_NOEXEC);
        if error.raw_os_error() == Some(libc::EACCES) && fstatvfs(&self.file).is_ok_and(noexec) {
            return "its file system is mounted noexec; a script without a #! line would run"
                .into();
        }
        if error.raw_os_error() == Some(libc::ETXTBSY) {
            return "somebody has it open for writing".to_owned();
        }
        error.to_string()
    }
}

/// What a program is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wiring {
    /// Nothing to read; both outputs together.
    Quiet,
    /// Its input stays open until it is to let go, and its output is listened to for `READY`.
    Coprocess,
}

/// What a watch ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The leader of the group has ended and is not reaped yet.
    Ended,
    /// It has said `READY`.
    Ready,
    /// It can no longer say `READY`.
    Mute,
    Late,
}

/// A running program. Dropped, it and its group are killed.
#[derive(Debug)]
pub(super) struct Running {
    path: PathBuf,
    /// What its own messages call it, and the reader does not know.
    descriptor: String,
    child: Option<Child>,
    pidfd: OwnedFd,
    input: Option<PipeWriter>,
    /// Of a coprocess the output, then the errors; else one for both.
    outputs: Vec<Output>,
}

impl Running {
    /// Starts it in a process group of its own, in `/`, with these variables and a search path only.
    pub(super) fn start(
        program: &Program,
        wiring: Wiring,
        variables: &[(&str, String)],
    ) -> Result<Running, String> {
        let failed =
            |error: io::Error| format!("could not be started: {}", program.explain(&error));
        let mut command = program.command().map_err(failed)?;
        command.process_group(0).current_dir("/").env_clear().env("PATH", SEARCH_PATH);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let (output, write) = Output::new().map_err(failed)?;
        let mut outputs = vec![output];
        let mut input = None;
        if wiring == Wiring::Coprocess {
            let (errors, write_errors) = Output::new().map_err(failed)?;
            let (read, kept) = io::pipe().map_err(failed)?;
            outputs.push(errors);
            input = Some(kept);
            command.stdin(read).stderr(write_errors);
        } else {
            command.stdin(Stdio::null()).stderr(write.try_clone().map_err(failed)?);
        }
        command.stdout(write);
        let mut child = spawn_ordinary(command).map_err(failed)?;
        let pidfd = match open_pidfd(&child) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                let ended = child.kill().and_then(|()| child.wait());
                return Err(format!("could not be watched: {error} (then {ended:?})"));
            }
        };
        let (path, descriptor) = (program.path.clone(), program.descriptor());
        Ok(Running { path, descriptor, child: Some(child), pidfd, input, outputs })
    }

    /// Whether the leader has ended.
    pub(super) fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    pub(super) fn said_ready(&self) -> bool {
        self.outputs[0].ready
    }

    /// Takes what it says until it ends or the time is over.
    pub(super) fn watch_end(&mut self, deadline: Instant) -> Event {
        self.watch(deadline, false)
    }

    /// As [`Running::watch_end`], and until it says `READY`.
    pub(super) fn watch_ready(&mut self, deadline: Instant) -> Event {
        self.watch(deadline, true)
    }

    fn watch(&mut self, deadline: Instant, for_ready: bool) -> Event {
        loop {
            if for_ready && self.said_ready() {
                return Event::Ready;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = self.round(left);
            if ended {
                // It may have said something between the look at its output and its end.
                self.outputs.iter_mut().for_each(Output::empty);
                return Event::Ended;
            }
            if for_ready && !self.said_ready() && self.outputs[0].pipe.is_none() {
                return Event::Mute;
            }
            if left.is_zero() {
                return Event::Late;
            }
        }
    }

    /// Waits for its end or for output, and takes that; whether it has ended.
    fn round(&mut self, limit: Duration) -> bool {
        // One more, so that the last round is not a busy one; longer waits come in pieces.
        let milliseconds = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX - 1);
        let extra = i32::from(!limit.is_zero());
        let timeout = PollTimeout::try_from(milliseconds.saturating_add(extra));
        let pipes = self.outputs.iter().filter_map(|output| output.pipe.as_ref());
        let mut fds = vec![PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        fds.extend(pipes.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        if let Err(error) = poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX))
            && error != nix::Error::EINTR
        {
            tracing::error!(%error, "poll failed while a program was watched");
            // There is no way to go on; what it has to do with the program is the caller's move.
            return self.has_ended();
        }
        drop(fds);
        self.outputs.iter_mut().for_each(Output::take);
        self.has_ended()
    }

    /// Closes its input, which tells a coprocess to let go.
    pub(super) fn close_input(&mut self) {
        self.input = None;
    }

    /// Kills it and all it has started that did not leave its group.
    pub(super) fn kill_group(&self) {
        let Some(child) = &self.child else { return };
        // Not reaped: nobody else has this number.
        if let Err(error) = killpg(group_of(child), Signal::SIGKILL) {
            tracing::error!(path = %self.path.display(), %error, "a process group cannot be killed");
        }
    }

    /// Kills the group and reaps the leader. A leader that does not end even so, because a device does not
    /// answer it, is left to a thread.
    pub(super) fn kill(&mut self) {
        self.kill_group();
        let deadline = Instant::now() + KILL_PATIENCE;
        if self.child.is_some() && self.watch_end(deadline) == Event::Late {
            tracing::error!(path = %self.path.display(), "a killed program does not end");
            let child = self.child.take();
            spawn_small("rowd-reap", move || {
                if let Some(Err(error)) = child.map(|mut child| child.wait()) {
                    tracing::error!(%error, "a killed program cannot be waited for");
                }
            });
            return;
        }
        if let Err(error) = self.reap() {
            tracing::error!(path = %self.path.display(), %error, "a killed program cannot be waited for");
        }
    }

    /// Whether it has ended with exit code 0. It is not reaped by this.
    pub(super) fn ended_well(&self) -> bool {
        let how = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), how);
        status.is_ok_and(|status| status.and_then(|s| s.exit_status()) == Some(0))
    }

    /// How it ended, which it has. What its background children still write is read and forgotten.
    pub(super) fn reap(&mut self) -> io::Result<ExitStatus> {
        self.input = None;
        for output in &mut self.outputs {
            if let Some(pipe) = output.pipe.take().filter(is_still_held) {
                adopt(pipe);
            }
        }
        match self.child.take() {
            Some(mut child) => child.wait(),
            None => Err(io::Error::other("it has been reaped already")),
        }
    }

    /// The last lines of what it said, on one line, to be put behind a message; empty if it said nothing.
    pub(super) fn last_words(&self) -> String {
        let tails = self.outputs.iter().flat_map(|output| output.tail.iter().copied());
        let tail: Vec<u8> = tails.collect();
        let text = String::from_utf8_lossy(&tail);
        let path = self.path.display().to_string();
        let text = text.replace(&self.descriptor, &path);
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let clean = |line: &&str| -> String {
            line.chars().filter(|c| !c.is_control()).take(QUOTED_CHARS).collect()
        };
        let last = &lines[lines.len().saturating_sub(QUOTED_LINES)..];
        let quoted: Vec<String> = last.iter().map(clean).collect();
        if quoted.is_empty() { String::new() } else { format!("; it said: {}", quoted.join(" | ")) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

/// How a program ended, in words.
pub(super) fn describe(status: ExitStatus) -> String {
    let signal = |number: i32| Signal::try_from(number).map_or("", Signal::as_str);
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(number)) => format!("was ended by signal {number} {}", signal(number)),
        (None, None) => format!("ended: {status}"),
    }
}

/// One output of a program: its end is kept, and whether one of its lines is `READY`.
#[derive(Debug)]
struct Output {
    /// None once it is closed.
    pipe: Option<PipeReader>,
    tail: Vec<u8>,
    /// The line that is being said, as far as it matters.
    line: Vec<u8>,
    ready: bool,
}

impl Output {
    fn new() -> io::Result<(Output, PipeWriter)> {
        let (read, write) = io::pipe()?;
        set_blocking(&read, false)?;
        let output = Output { pipe: Some(read), tail: Vec::new(), line: Vec::new(), ready: false };
        Ok((output, write))
    }

    /// Takes what is there, up to a pipe full; never waits.
    fn take(&mut self) {
        let mut buffer = [0; PIPE_BYTES];
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.read(&mut buffer) {
            Ok(0) => self.pipe = None,
            Ok(count) => self.heard(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "the output of a program cannot be read");
                self.pipe = None;
            }
        }
    }

    /// Takes what was written until now. Background children may write on without an end; a pipe holds
    /// no more than two reads take.
    fn empty(&mut self) {
        self.take();
        self.take();
    }

    fn heard(&mut self, bytes: &[u8]) {
        const READY: &[u8] = b"READY";
        for byte in bytes {
            if *byte == b'\n' {
                self.ready |= self.line.trim_ascii() == READY;
                self.line.clear();
            } else if self.line.len() <= QUOTED_CHARS {
                self.line.push(*byte);
            }
        }
        self.tail.extend_from_slice(bytes);
        let over = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..over);
    }
}

/// Starts an ordinary process. The daemon may be marked as an I/O flusher, and never to be ended when memory
/// is short, and children inherit both; the first is a mark of threads, so it is taken off one that exists
/// for that. The other ends of the pipes go with the command.
fn spawn_ordinary(mut command: Command) -> io::Result<Child> {
    let start = move || {
        // Who may not ask cannot be marked.
        if is_io_flusher().unwrap_or(false) {
            configure_io_flusher_behavior(false)?;
        }
        let child = command.spawn()?;
        memory::spare_not(child.id());
        Ok(child)
    };
    let thread = thread::Builder::new().name("rowd-start".to_owned()).spawn(start)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts it panicked")))
}

fn open_pidfd(child: &Child) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_child(child);
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn group_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a pid is an i32"))
}

fn set_blocking(pipe: &PipeReader, blocking: bool) -> io::Result<()> {
    let flags = if blocking { OFlag::empty() } else { OFlag::O_NONBLOCK };
    fcntl(pipe, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// Whether somebody can still write to it.
fn is_still_held(pipe: &PipeReader) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    let hung_up = fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
    polled.is_ok() && !hung_up
}

/// Empties a pipe until nobody holds its other end: closing it would kill who writes to it, and leaving it
/// full would stop them.
fn adopt(mut pipe: PipeReader) {
    if ORPHANS.fetch_add(1, Ordering::Relaxed) >= ORPHANS_MAX {
        ORPHANS.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!(
            "too many background children of scripts write; the output of one is closed"
        );
        return;
    }
    let started = spawn_small("rowd-orphan", move || {
        if let Err(error) = set_blocking(&pipe, true).and_then(|()| read_and_forget(&mut pipe)) {
            tracing::warn!(%error, "the output of a background child cannot be read");
        }
        ORPHANS.fetch_sub(1, Ordering::Relaxed);
    });
    if !started {
        ORPHANS.fetch_sub(1, Ordering::Relaxed);
    }
}

fn read_and_forget(pipe: &mut PipeReader) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
}

fn spawn_small(name: &str, work: impl FnOnce() + Send + 'static) -> bool {
    let thread = thread::Builder::new().name(name.to_owned()).stack_size(SMALL_STACK).spawn(work);
    if let Err(error) = &thread {
        tracing::error!(%error, name, "no thread");
    }
    thread.is_ok()
}
