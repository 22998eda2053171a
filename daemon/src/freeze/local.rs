//! File systems of this host as something that can be frozen, by way of the helper process.
//!
//! Invariants: the helper runs and holds every file system before the first is frozen; the daemon holds
//! them too, and thaws them itself when the helper dies or does not keep the deadline; the record is
//! written before the first freeze and removed after the last thaw.
//! Absent: the choice of file systems (`discover.rs`); what the helper does (`helper/`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use parking_lot::Mutex;

use super::Busy;
use super::discover::Member;
use super::helpers::{millis, pair};
use super::hurry;
use super::kernel;
use super::provider::{Held, Provider, Target};
use super::record::{Record, Recorded, boot};
use super::wire::{self, Order, Report};
use crate::error::{Error, ErrorKind, Result};

/// The helper has nothing to do but to start.
const START_LIMIT: Duration = Duration::from_secs(5);
/// How long a thaw may take before it counts as failed; it goes on all the same.
const THAW_LIMIT: Duration = Duration::from_secs(10);
/// How late the helper may be with its deadline before the daemon steps in.
const GRACE: Duration = Duration::from_secs(1);
/// How often the daemon looks whether it has to.
const LOOK_MS: u16 = 250;

/// How to freeze.
#[derive(Debug)]
pub struct Setup {
    pub members: Vec<Member>,
    pub record: PathBuf,
    /// For the record: what it is for.
    pub what: String,
    pub limit: Duration,
}

/// What ended a freeze before its time.
#[derive(Clone, Copy, Debug)]
enum End {
    Expired(Instant),
    HelperGone,
    /// `freeze.thaw` by somebody.
    Broken,
}

#[derive(Debug, Default)]
struct Watch {
    /// Something may be frozen.
    frozen: bool,
    /// The helper may have put the kernel in a hurry.
    hurried: bool,
    /// The helper waits for a file system that does not answer.
    late: bool,
    /// When the helper must have thawed.
    deadline: Option<Instant>,
    end: Option<End>,
}

/// What the thread that listens to the helper needs.
#[derive(Debug)]
struct Monitor {
    socket: Arc<OwnedFd>,
    helper: Child,
    watch: Arc<Mutex<Watch>>,
    members: Arc<Vec<Member>>,
    record: PathBuf,
    reports: Sender<Report>,
    /// Nothing else is frozen until this has ended.
    _busy: Arc<Busy>,
}

/// File systems, and the helper that holds them.
#[derive(Debug)]
pub struct Local {
    socket: Arc<OwnedFd>,
    reports: Receiver<Report>,
    watch: Arc<Mutex<Watch>>,
    members: Arc<Vec<Member>>,
    record: PathBuf,
    what: String,
    limit: Duration,
    monitor: Option<JoinHandle<()>>,
}

impl Local {
    /// Starts the helper and gives it the file systems.
    ///
    /// # Errors
    /// `Condition` when there is no helper, or it is of another version.
    pub fn start(setup: Setup, busy: &Arc<Busy>) -> Result<Local> {
        let Setup { members, record, what, limit } = setup;
        let (ours, theirs) = pair().map_err(|e| system("make a socket pair", e))?;
        let program = helper_program()?;
        let mut command = Command::new(&program);
        command.arg("serve").env_clear().stdin(Stdio::from(theirs));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let helper =
            command.spawn().map_err(|e| Error::io(format!("start {}", program.display()), &e))?;
        // Or the helper's end would stay open here, and its death unseen.
        drop(command);
        let (sender, reports) = channel();
        let (socket, watch) = (Arc::new(ours), Arc::new(Mutex::new(Watch::default())));
        let members = Arc::new(members);
        let monitor = Monitor {
            socket: Arc::clone(&socket),
            helper,
            watch: Arc::clone(&watch),
            members: Arc::clone(&members),
            record: record.clone(),
            reports: sender,
            _busy: Arc::clone(busy),
        };
        let monitor = thread::Builder::new()
            .name("freeze".to_owned())
            .spawn(move || monitor.run())
            .map_err(|e| Error::io("start a thread", &e))?;
        let monitor = Some(monitor);
        let local = Local { socket, reports, watch, members, record, what, limit, monitor };
        local.greet(&program)?;
        Ok(local)
    }

    /// Waits for the helper and hands it the directories.
    fn greet(&self, program: &Path) -> Result<()> {
        let refuse = |why: &str| {
            let message = format!("{} {why}", program.display());
            Err(Error::new(ErrorKind::Condition, message)
                .hint("install rowd and rowd-freeze of the same version, and restart rowd"))
        };
        match self.next(START_LIMIT) {
            Some(Report::Ready { version, locked }) => {
                if version != env!("CARGO_PKG_VERSION") {
                    return refuse(&format!("is version {version}"));
                }
                if !locked {
                    tracing::warn!(
                        "the freeze helper could not lock its memory or leave the OOM list"
                    );
                }
            }
            _ => return refuse("does not start"),
        }
        let directories: Vec<_> = self.members.iter().map(|m| m.directory.as_fd()).collect();
        let depths = self.members.iter().map(|member| member.depth).collect();
        wire::send(&self.socket, &Order::Hold { depths }, &directories)
            .map_err(|e| system("talk to the freeze helper", e))?;
        match self.next(START_LIMIT) {
            Some(Report::Held { count }) if count == self.members.len() => Ok(()),
            _ => refuse("does not answer"),
        }
    }

    /// Writes out what can be written out before anything has to wait for it.
    ///
    /// # Errors
    /// `TimedOut` when a file system does not answer.
    pub fn sync(&self) -> Result<()> {
        self.order(Order::Sync { limit_ms: millis(self.limit) })?;
        match self.next(self.limit + GRACE) {
            Some(Report::Synced) => Ok(()),
            Some(Report::Late { member }) => Err(self.late(member, "written out")),
            Some(_) => Err(helper_gone()),
            None => Err(self.late(0, "written out")),
        }
    }

    /// Something that ends the freeze from another thread.
    #[must_use]
    pub fn breaker(&self) -> Breaker {
        Breaker { socket: Arc::clone(&self.socket), watch: Arc::clone(&self.watch) }
    }

    fn order(&self, order: Order) -> Result<()> {
        wire::send(&self.socket, &order, &[]).map_err(|_| helper_gone())
    }

    fn next(&self, limit: Duration) -> Option<Report> {
        self.reports.recv_timeout(limit).ok()
    }

    fn target(&self, member: usize) -> String {
        self.members.get(member).map_or_else(String::new, |member| member.target.to_string())
    }

    fn late(&self, member: usize, what: &str) -> Error {
        let (target, limit) = (self.target(member), self.limit.as_secs_f64());
        Error::new(ErrorKind::TimedOut, format!("{target} could not be {what} within {limit} s"))
            .hint("it is thawed as soon as it answers; see `rowctl freeze status`")
    }

    fn write_record(&self, hurried: bool) -> Result<()> {
        let one = |member: &Member| Recorded {
            device: member.dev.to_string(),
            mount_point: member.target.mount_point.clone(),
        };
        let members = self.members.iter().map(one).collect();
        let record = Record { boot: boot(), what: self.what.clone(), members, hurried };
        record
            .write(&self.record)
            .map_err(|e| Error::io(format!("write {}", self.record.display()), &e))
    }

    /// The result of a thaw from the errno of each file system.
    fn thawed(&self, errnos: &[i32]) -> Result<Held> {
        let bad = |wanted: fn(Errno) -> bool| {
            errnos.iter().position(|errno| *errno != 0 && wanted(Errno::from_raw(*errno)))
        };
        if let Some(member) = bad(|errno| errno != Errno::EINVAL) {
            let errno = Errno::from_raw(errnos[member]);
            return Err(thaw_failed(&self.target(member), errno.desc()));
        }
        match self.watch.lock().end {
            Some(End::Expired(at)) => return Ok(Held::Expired(at.elapsed())),
            Some(End::HelperGone) => {
                return Ok(Held::Interrupted("the freeze helper ended".to_owned()));
            }
            Some(End::Broken) => {
                return Ok(Held::Interrupted("somebody asked rowd to thaw".to_owned()));
            }
            None => {}
        }
        Ok(match bad(|errno| errno == Errno::EINVAL) {
            Some(member) => {
                Held::Interrupted(format!("somebody else thawed {}", self.target(member)))
            }
            None => Held::Throughout,
        })
    }
}

impl Provider for Local {
    fn targets(&self) -> Vec<Target> {
        self.members.iter().map(|member| member.target.clone()).collect()
    }

    fn freeze(&mut self) -> Result<()> {
        let hurried = hurry::is_off();
        self.write_record(hurried)?;
        {
            let mut watch = self.watch.lock();
            watch.hurried = hurried;
            watch.frozen = true;
            watch.deadline = Some(Instant::now() + self.limit);
        }
        self.order(Order::Freeze { limit_ms: millis(self.limit) })?;
        match self.next(self.limit + GRACE + THAW_LIMIT) {
            Some(Report::Frozen { .. }) => Ok(()),
            Some(Report::Refused { member, errno }) => {
                let target = self.target(member);
                let why = Errno::from_raw(errno);
                let error = Error::new(
                    ErrorKind::FreezeFailed,
                    format!("{target} cannot be frozen: {}", why.desc()),
                );
                // The others are thawed before anybody is told.
                let thawed = self.next(THAW_LIMIT);
                if !matches!(thawed, Some(Report::Thawed { .. })) {
                    tracing::error!("file systems do not answer to being thawed again");
                }
                Err(match why {
                    Errno::EBUSY => {
                        error.hint("somebody else has frozen it: `fsfreeze -u` thaws it")
                    }
                    _ => error,
                })
            }
            Some(Report::Late { member }) => Err(self.late(member, "frozen")),
            Some(Report::Thawed { .. }) | None if self.watch.lock().end.is_some() => {
                Err(Error::new(ErrorKind::FreezeFailed, "the freeze was ended while it began"))
            }
            Some(_) => Err(helper_gone()),
            None => Err(self.late(0, "frozen")),
        }
    }

    fn holds(&self) -> Result<()> {
        let watch = self.watch.lock();
        match watch.end {
            Some(End::HelperGone) => return Err(helper_gone()),
            Some(End::Broken) => {
                let message = "somebody asked rowd to thaw before the snapshot was made";
                return Err(Error::new(ErrorKind::Cancelled, message));
            }
            Some(End::Expired(_)) | None => {}
        }
        let expired = watch.end.is_some() || watch.deadline.is_some_and(|at| at <= Instant::now());
        if expired { Err(expired_before_cut(self.limit)) } else { Ok(()) }
    }

    fn thaw(&mut self) -> Result<Held> {
        // The helper may be gone: then the monitor thaws and tells so.
        let asked = self.order(Order::Thaw);
        let until = Instant::now() + THAW_LIMIT;
        loop {
            match self.reports.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Report::Thawed { errnos }) => return self.thawed(&errnos),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(thaw_failed(&self.target(0), "it does not answer"));
                }
                Err(RecvTimeoutError::Disconnected) if !self.watch.lock().frozen => {
                    return self.thawed(&[]);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(asked.err().unwrap_or_else(helper_gone));
                }
            }
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // The end of orders is the end of the helper, which thaws what is left.
        let _gone_before = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
        let settled = {
            let watch = self.watch.lock();
            !watch.frozen && !watch.late
        };
        if let Some(monitor) = self.monitor.take().filter(|_| settled)
            && monitor.join().is_err()
        {
            tracing::error!("the thread of a freeze panicked");
        }
    }
}

/// Ends a freeze early.
#[derive(Clone, Debug)]
pub struct Breaker {
    socket: Arc<OwnedFd>,
    watch: Arc<Mutex<Watch>>,
}

impl Breaker {
    /// For a helper that takes the same order.
    pub(super) fn of(socket: &Arc<OwnedFd>) -> Breaker {
        Breaker { socket: Arc::clone(socket), watch: Arc::default() }
    }

    /// Whether somebody has ended the freeze.
    pub(super) fn is_used(&self) -> bool {
        self.watch.lock().end.is_some()
    }

    /// Thaws now; the operation notices.
    pub fn thaw(&self) {
        let mut watch = self.watch.lock();
        watch.end.get_or_insert(End::Broken);
        // A helper that is gone has thawed.
        let _gone = wire::send(&self.socket, &Order::Thaw, &[]);
    }
}

impl Monitor {
    /// Listens until the helper has ended.
    fn run(mut self) {
        loop {
            match self.look() {
                Ok(Some(report)) => self.hear(report),
                Ok(None) => break,
                Err(Errno::EAGAIN) => self.step_in(),
                Err(errno) => {
                    tracing::error!(%errno, "the freeze helper is not understood");
                    break;
                }
            }
        }
        self.bury();
    }

    /// The next report; `EAGAIN` when there is none yet.
    fn look(&self) -> nix::Result<Option<Report>> {
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(LOOK_MS)) {
            Ok(0) | Err(Errno::EINTR) => return Err(Errno::EAGAIN),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
        Ok(wire::receive::<Report>(&self.socket)?.map(|(report, _)| report))
    }

    fn hear(&self, report: Report) {
        match &report {
            Report::Expired | Report::Late { .. } => {
                let mut watch = self.watch.lock();
                watch.late |= matches!(report, Report::Late { .. });
                watch.end.get_or_insert(End::Expired(Instant::now()));
            }
            Report::Thawed { errnos } => self.settle(errnos),
            _ => {}
        }
        // Nobody may wait for it any more.
        let _unheard = self.reports.send(report);
    }

    /// Nothing is frozen any more, unless a thaw failed.
    fn settle(&self, errnos: &[i32]) {
        let gone = |errno: &i32| *errno == 0 || *errno == Errno::EINVAL as i32;
        if errnos.iter().all(gone) {
            let mut watch = self.watch.lock();
            if watch.frozen {
                watch.frozen = false;
                if let Err(error) = Record::remove(&self.record) {
                    tracing::error!(%error, "the record of a freeze stays");
                }
            }
        }
    }

    /// Thaws in place of a helper that has not kept its deadline.
    fn step_in(&mut self) {
        let is_late = {
            let watch = self.watch.lock();
            let late = watch.deadline.is_some_and(|at| at + GRACE <= Instant::now());
            // A helper that waits for a freeze that hangs has said so, and goes on.
            watch.frozen && late && watch.end.is_none()
        };
        if is_late {
            self.watch.lock().end = Some(End::Expired(Instant::now()));
            self.kill();
        }
    }

    fn kill(&mut self) {
        if let Err(error) = self.helper.kill() {
            tracing::error!(%error, "the freeze helper cannot be killed");
        }
    }

    /// The helper has ended, or is not understood: thaws what it may have left frozen, and reaps it.
    fn bury(&mut self) {
        self.kill();
        if let Err(error) = self.helper.wait() {
            tracing::error!(%error, "the freeze helper cannot be reaped");
        }
        if !self.watch.lock().frozen {
            return;
        }
        let hurried = {
            let mut watch = self.watch.lock();
            watch.end.get_or_insert(End::HelperGone);
            watch.hurried
        };
        let errnos = thaw_all(&self.members);
        tracing::warn!(?errnos, "the freeze helper is gone; rowd has thawed");
        if hurried && let Err(error) = hurry::undo() {
            tracing::warn!(%error, "the kernel stays in the hurry of a freeze");
        }
        self.settle(&errnos);
        let _unheard = self.reports.send(Report::Thawed { errnos });
    }
}

/// Thaws each on a thread of its own, since one that hangs must not keep the others frozen.
fn thaw_all(members: &Arc<Vec<Member>>) -> Vec<i32> {
    let one = |at: usize| {
        let members = Arc::clone(members);
        thread::Builder::new().spawn(move || kernel::thaw(members[at].directory.as_fd()))
    };
    let started: Vec<io::Result<JoinHandle<nix::Result<()>>>> =
        (0..members.len()).map(one).collect();
    let ended = started.into_iter().map(|thread| match thread.map(JoinHandle::join) {
        Ok(Ok(Ok(()))) => 0,
        Ok(Ok(Err(errno))) => errno as i32,
        Ok(Err(_)) | Err(_) => Errno::EAGAIN as i32,
    });
    ended.collect()
}

/// `rowd-freeze`, beside this program.
pub(super) fn helper_program() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|e| Error::io("find the path of rowd", &e))?;
    let dir = own.parent().unwrap_or(Path::new("/"));
    let program = dir.join("rowd-freeze");
    if program.is_file() {
        return Ok(program);
    }
    let message = format!("the helper is not there: {}", program.display());
    Err(Error::new(ErrorKind::Condition, message).hint("install rowd-freeze beside rowd"))
}

/// Thaws what a record names, by the helper program.
///
/// # Errors
/// `ThawFailed`, with what the program says.
pub(super) fn thaw_recorded(record: &Path) -> Result<()> {
    let program = helper_program()?;
    let mut command = Command::new(&program);
    command.args(["thaw", "--recorded"]).arg(record).env_clear().stdin(Stdio::null());
    let done =
        command.output().map_err(|e| Error::io(format!("start {}", program.display()), &e))?;
    let said = String::from_utf8_lossy(&done.stdout).trim().replace('\n', "; ");
    tracing::info!(said, "thawed what an earlier freeze left");
    if done.status.success() {
        return Ok(());
    }
    let message = format!("what an earlier freeze left frozen is not thawed: {said}");
    Err(Error::new(ErrorKind::ThawFailed, message).hint("`rowctl freeze thaw` tries again"))
}

pub(super) fn helper_gone() -> Error {
    Error::new(ErrorKind::FreezeFailed, "the freeze helper ended; nothing stays frozen")
}

pub(super) fn expired_before_cut(limit: Duration) -> Error {
    let seconds = limit.as_secs_f64();
    let message = format!("the freeze was ended after {seconds} s, before the snapshot was made");
    Error::new(ErrorKind::TimedOut, message).hint("give it longer with --freeze-timeout")
}

fn thaw_failed(target: &str, why: &str) -> Error {
    Error::new(ErrorKind::ThawFailed, format!("{target} could not be thawed: {why}"))
        .hint("`rowctl freeze thaw` tries again; see `rowctl freeze status`")
}

pub(super) fn system(doing: &str, errno: Errno) -> Error {
    Error::io(doing, &io::Error::from(errno))
}
