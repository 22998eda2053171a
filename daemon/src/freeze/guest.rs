//! A virtual machine as something that can be frozen, by way of its guest agent and the helper process.
//!
//! Invariants: the helper has the agent's connection, and the agent has answered, before anything is frozen;
//! the record is written before the freeze and removed after the thaw; when the helper dies the daemon
//! thaws itself.
//! Absent: choosing file systems in the machine: the agent freezes all of them. On Windows that is a shadow
//! copy, which is limited to ten seconds by the system.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};

use super::discover::DiskUse;
use super::helpers::{millis, pair};
use super::local::{Breaker, expired_before_cut, helper_gone, helper_program, system};
use super::provider::{Held, Provider, Target};
use super::qga::{Agent, SYNC_LIMIT};
use super::record::{AGENT, Record, Recorded, boot};
use super::wire::{self, GuestReport, Order};
use crate::engine::api::Consistency;
use crate::error::{Error, ErrorKind, Result};

/// The agent is asked three things before the helper is ready, each with its own limit.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How long a thaw may take before it counts as failed: the helper goes on trying.
const THAW_LIMIT: Duration = Duration::from_secs(15);
const GRACE: Duration = Duration::from_secs(1);

/// A machine to freeze.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The name of the instance.
    pub name: String,
    /// The socket of its guest agent.
    pub agent: PathBuf,
}

/// How to freeze it.
#[derive(Debug)]
pub struct Setup {
    pub machine: Machine,
    /// A file of its own; `Record::guests` names it.
    pub record: PathBuf,
    pub what: String,
    pub limit: Duration,
}

/// A machine, and the helper that has its agent.
#[derive(Debug)]
pub struct Guest {
    setup: Setup,
    socket: Arc<OwnedFd>,
    helper: Child,
    breaker: Breaker,
    targets: Vec<Target>,
    /// Something in it may be frozen.
    frozen: bool,
    deadline: Option<Instant>,
    expired: bool,
}

impl Guest {
    /// Starts the helper, which looks whether the agent answers.
    ///
    /// # Errors
    /// `Condition` when there is no helper, no agent, or none that answers.
    pub fn start(setup: Setup) -> Result<Guest> {
        let (ours, theirs) = pair().map_err(|e| system("make a socket pair", e))?;
        let program = helper_program()?;
        let mut command = Command::new(&program);
        command.arg("guest").arg(&setup.machine.agent).env_clear().stdin(Stdio::from(theirs));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let helper =
            command.spawn().map_err(|e| Error::io(format!("start {}", program.display()), &e))?;
        // Or the helper's end would stay open here, and its death unseen.
        drop(command);
        let socket = Arc::new(ours);
        let breaker = Breaker::of(&socket);
        let (targets, frozen, deadline) = (Vec::new(), false, None);
        let mut guest =
            Guest { setup, socket, helper, breaker, targets, frozen, deadline, expired: false };
        match guest.next(READY_LIMIT) {
            Some(GuestReport::Ready { targets }) => {
                let name = &guest.setup.machine.name;
                let target = |one: wire::GuestTarget| Target {
                    mount_point: format!("{name}:{}", one.mount_point),
                    file_system: one.file_system,
                    device: one.device,
                };
                guest.targets = targets.into_iter().map(target).collect();
                Ok(guest)
            }
            Some(GuestReport::Failed { why, .. }) => Err(guest.no_agent(&why)),
            _ => Err(guest.no_agent("the freeze helper does not answer")),
        }
    }

    /// Something that ends the freeze from another thread.
    #[must_use]
    pub fn breaker(&self) -> Breaker {
        self.breaker.clone()
    }

    fn no_agent(&self, why: &str) -> Error {
        let Machine { name, agent } = &self.setup.machine;
        let message = format!("file systems in {name} cannot be frozen: {why}");
        Error::new(ErrorKind::Condition, message).hint(format!(
            "run qemu-guest-agent in {name}, with its socket at {} and no other client on it",
            agent.display()
        ))
    }

    /// The next report; nothing when there is none in time or the helper is gone.
    fn next(&self, limit: Duration) -> Option<GuestReport> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
            let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, left) {
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => return None,
                Ok(_) => return wire::receive(&self.socket).ok()?.map(|(report, _)| report),
            }
        }
    }

    fn order(&self, order: Order) -> Result<()> {
        wire::send(&self.socket, &order, &[]).map_err(|_| helper_gone())
    }

    fn write_record(&self) -> Result<()> {
        let Setup { machine, record, what, .. } = &self.setup;
        let one =
            Recorded { device: AGENT.to_owned(), mount_point: machine.agent.display().to_string() };
        let mut all = match Record::read(record) {
            Ok(found) => found.map(|found| found.members).unwrap_or_default(),
            Err(error) => return Err(Error::io(format!("read {}", record.display()), &error)),
        };
        all.push(one);
        let kept = Record { boot: boot(), what: what.clone(), members: all, hurried: false };
        kept.write(record).map_err(|e| Error::io(format!("write {}", record.display()), &e))
    }

    /// Nothing in it is frozen any more.
    fn settle(&mut self) {
        self.frozen = false;
        let socket = self.setup.machine.agent.display().to_string();
        let left = match Record::read(&self.setup.record) {
            Ok(found) => found,
            Err(error) => return tracing::error!(%error, "the record of a freeze stays"),
        };
        let Some(mut left) = left else { return };
        left.members.retain(|member| member.mount_point != socket);
        let done = match left.members.is_empty() {
            true => Record::remove(&self.setup.record),
            false => left.write(&self.setup.record),
        };
        if let Err(error) = done {
            tracing::error!(%error, "the record of a freeze stays");
        }
    }

    /// Thaws without the helper, which has died.
    fn thaw_alone(&mut self) -> Result<Held> {
        let thawed =
            Agent::connect(&self.setup.machine.agent).and_then(|mut agent| agent.thaw(SYNC_LIMIT));
        match thawed {
            Ok(_) => {
                self.settle();
                Ok(Held::Interrupted("the freeze helper ended".to_owned()))
            }
            Err(trouble) => Err(self.thaw_failed(&trouble.to_string())),
        }
    }

    fn thaw_failed(&self, why: &str) -> Error {
        let name = &self.setup.machine.name;
        let message = format!("the file systems in {name} could not be thawed: {why}");
        Error::new(ErrorKind::ThawFailed, message)
            .hint("it is tried again; `rowctl freeze thaw` tries too; see `rowctl freeze status`")
    }

    /// How well it held, once everything is thawed.
    fn held(&self, count: u64) -> Held {
        if self.breaker.is_used() {
            Held::Interrupted("somebody asked rowd to thaw".to_owned())
        } else if self.expired {
            Held::Expired(self.deadline.map_or(Duration::ZERO, |at| at.elapsed()))
        } else if count == 0 {
            let name = &self.setup.machine.name;
            Held::Interrupted(format!("somebody else thawed the file systems in {name}"))
        } else {
            Held::Throughout
        }
    }
}

impl Provider for Guest {
    fn targets(&self) -> Vec<Target> {
        self.targets.clone()
    }

    fn freeze(&mut self) -> Result<()> {
        self.write_record()?;
        self.frozen = true;
        let limit = self.setup.limit;
        self.deadline = Some(Instant::now() + limit);
        self.order(Order::Freeze { limit_ms: millis(limit) })?;
        let name = self.setup.machine.name.clone();
        match self.next(limit + GRACE) {
            Some(GuestReport::Frozen { .. }) => Ok(()),
            Some(GuestReport::Failed { why, late }) => {
                let kind = if late { ErrorKind::TimedOut } else { ErrorKind::FreezeFailed };
                let message = format!("the file systems in {name} could not be frozen: {why}");
                // A thaw is sent in any case; the record goes when it is answered.
                if let Some(GuestReport::Thawed { .. }) = self.next(THAW_LIMIT) {
                    self.settle();
                }
                Err(Error::new(kind, message)
                    .hint("see the log of qemu-guest-agent in the machine"))
            }
            _ => {
                let thawed = self.thaw_alone();
                let end = thawed.err().map_or(String::new(), |error| format!("; {error}"));
                let message = format!("{}{end}", helper_gone().message());
                Err(Error::new(ErrorKind::FreezeFailed, message))
            }
        }
    }

    fn holds(&self) -> Result<()> {
        if self.breaker.is_used() {
            let message = "somebody asked rowd to thaw before the snapshot was made";
            return Err(Error::new(ErrorKind::Cancelled, message));
        }
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let said = poll(&mut ready, PollTimeout::ZERO).is_ok_and(|count| count > 0);
        let over = self.deadline.is_some_and(|at| at <= Instant::now());
        match (over, said) {
            (true, _) => Err(expired_before_cut(self.setup.limit)),
            // Before the deadline it says nothing of itself: it is gone.
            (false, true) => Err(helper_gone()),
            (false, false) => Ok(()),
        }
    }

    fn thaw(&mut self) -> Result<Held> {
        if !self.frozen {
            return Ok(self.held(1));
        }
        if self.order(Order::Thaw).is_err() {
            return self.thaw_alone();
        }
        let until = Instant::now() + THAW_LIMIT;
        loop {
            match self.next(until.saturating_duration_since(Instant::now())) {
                Some(GuestReport::Thawed { count }) => {
                    self.settle();
                    return Ok(self.held(count));
                }
                Some(GuestReport::NotThawed { why }) => return Err(self.thaw_failed(&why)),
                Some(GuestReport::Expired) => self.expired = true,
                Some(_) => {}
                None if Instant::now() >= until => {
                    return Err(self.thaw_failed("the agent does not answer"));
                }
                None => return self.thaw_alone(),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The end of orders is the end of the helper, which thaws what is left.
        let _gone_before = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
        if self.frozen {
            // It may go on for minutes: init takes it over when the daemon ends, and reaps it.
            let waited = self.helper.try_wait();
            return tracing::warn!(?waited, "the freeze helper goes on trying to thaw");
        }
        if let Err(error) = self.helper.wait() {
            tracing::error!(%error, "the freeze helper cannot be reaped");
        }
    }
}

/// The machines that have some of these disks, each once.
pub(super) fn machines(disks: &[DiskUse]) -> Result<Vec<Machine>> {
    let mut found: Vec<Machine> = Vec::new();
    for (name, agent) in disks.iter().filter_map(|disk| disk.instance.clone()) {
        let Some(agent) = agent else {
            let message = format!("{name} has no guest agent: nothing in it can be frozen");
            return Err(Error::new(ErrorKind::Condition, message).hint(format!(
                "`rowctl instance set {name} --qga SOCKET`, or leave the level out"
            )));
        };
        if found.iter().all(|machine| machine.name != name) {
            found.push(Machine { name, agent: agent.into() });
        }
    }
    Ok(found)
}

/// Applications stand still for the disks of one instance: who would say when those of another do?
pub(super) fn check_one_instance(wanted: Consistency, disks: &[DiskUse]) -> Result<()> {
    let mut names = disks.iter().map(|disk| disk.instance.as_ref().map(|(name, _)| name));
    let first = names.next();
    if wanted == Consistency::App && names.any(|other| Some(other) != first) {
        let message = "the level app is for the disks of one instance";
        return Err(Error::invalid(message)
            .hint("make a group for each instance, or one for all at the level fs or crash"));
    }
    Ok(())
}
