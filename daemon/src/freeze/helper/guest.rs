//! Freezing in a virtual machine: `rowd-freeze guest SOCKET`, which holds the connection to the guest agent.
//!
//! Invariants: what was frozen is thawed on an order, at the deadline, and when the daemon is gone,
//! whichever comes first; after a freeze that failed or did not answer a thaw is sent all the same, since
//! the agent has no deadline of its own.
//! Absent: several machines; each has a process of its own.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::qga::{Agent, SYNC_LIMIT, Trouble};
use super::wire::{self, GuestReport, GuestTarget, Order};

/// How often a thaw is tried before it counts as failed, and the pause between. Ten minutes: a machine may be
/// stopped by its user for a while.
const THAW_TRIES: u32 = 600;
const THAW_PAUSE: Duration = Duration::from_secs(1);
/// Exit codes as those of one file system (`recorded.rs`).
const THAWED: u8 = 0;
const NOT_FROZEN: u8 = 1;
const FAILED: u8 = 12;

struct Guest<'a> {
    path: &'a Path,
    /// None after it failed: the next call connects anew.
    agent: Option<Agent>,
    socket: OwnedFd,
    frozen: bool,
    deadline: Option<Instant>,
}

/// Serves the daemon at the other end of `socket`.
pub fn serve(path: &Path, socket: OwnedFd) -> ExitCode {
    let mut guest = Guest { path, agent: None, socket, frozen: false, deadline: None };
    match guest.meet() {
        Ok(targets) => guest.tell(&GuestReport::Ready { targets }),
        Err(why) => {
            guest.tell(&GuestReport::Failed { why: why.to_string(), late: false });
            return ExitCode::FAILURE;
        }
    }
    guest.run();
    ExitCode::SUCCESS
}

impl Guest<'_> {
    /// Looks whether the agent can do what will be asked of it.
    fn meet(&mut self) -> Result<Vec<GuestTarget>, Trouble> {
        let mut agent = Agent::connect(self.path)?;
        if agent.is_frozen()? {
            return Err(Trouble::Refused("its file systems are frozen already".to_owned()));
        }
        // Not every agent tells; the freeze does not depend on it.
        let found = match agent.file_systems() {
            Ok(found) => found,
            Err(Trouble::Refused(_)) => Vec::new(),
            Err(trouble) => return Err(trouble),
        };
        self.agent = Some(agent);
        let target = |one: super::qga::Mounted| GuestTarget {
            mount_point: one.mount_point,
            file_system: one.file_system,
            device: one.device,
        };
        Ok(found.into_iter().map(target).collect())
    }

    fn run(&mut self) {
        loop {
            match self.next_order() {
                Ok(Some(Order::Freeze { limit_ms })) => {
                    self.freeze(Duration::from_millis(limit_ms));
                }
                Ok(Some(Order::Thaw)) => self.thaw_and_tell(),
                Ok(Some(Order::Hold { .. } | Order::Sync { .. })) => {}
                Err(Errno::ETIMEDOUT) => {
                    self.tell(&GuestReport::Expired);
                    self.thaw_and_tell();
                }
                Ok(None) | Err(_) => {
                    // The daemon is gone: nobody to tell, but there may be something to thaw.
                    let _nobody_to_tell = self.thaw(THAW_TRIES);
                    return;
                }
            }
        }
    }

    /// The next order; `ETIMEDOUT` at the deadline, nothing when the daemon is gone.
    fn next_order(&self) -> nix::Result<Option<Order>> {
        loop {
            let left = match self.deadline {
                None => PollTimeout::NONE,
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Errno::ETIMEDOUT);
                    }
                    PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
                }
            };
            let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, left) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(wire::receive::<Order>(&self.socket)?.map(|(order, _)| order)),
                Err(errno) => return Err(errno),
            }
        }
    }

    fn freeze(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        // From here on something may be frozen, whatever the answer.
        self.frozen = true;
        let done = match &mut self.agent {
            Some(agent) => agent.freeze(limit),
            None => Err(Trouble::Gone),
        };
        let (why, late) = match done {
            Ok(0) => ("it froze nothing: no file system in the machine can be".to_owned(), false),
            Ok(count) => {
                self.deadline = Some(deadline);
                return self.tell(&GuestReport::Frozen { count });
            }
            Err(trouble) => {
                if !matches!(trouble, Trouble::Refused(_)) {
                    self.agent = None;
                }
                (trouble.to_string(), matches!(trouble, Trouble::Silent(_)))
            }
        };
        self.tell(&GuestReport::Failed { why, late });
        self.thaw_and_tell();
    }

    fn thaw_and_tell(&mut self) {
        let report = match self.thaw(1) {
            Ok(count) => GuestReport::Thawed { count },
            Err(trouble) => GuestReport::NotThawed { why: trouble.to_string() },
        };
        self.tell(&report);
        if self.frozen && self.thaw(THAW_TRIES).is_ok() {
            self.tell(&GuestReport::Thawed { count: 0 });
        }
    }

    /// Thaws what may be frozen; how many file systems were.
    fn thaw(&mut self, tries: u32) -> Result<u64, Trouble> {
        self.deadline = None;
        if !self.frozen {
            return Ok(0);
        }
        let mut tried = 1;
        loop {
            let agent = match self.agent.take() {
                Some(agent) => Ok(agent),
                None => Agent::connect(self.path),
            };
            let done = agent.and_then(|mut agent| {
                let count = agent.thaw(SYNC_LIMIT)?;
                self.agent = Some(agent);
                Ok(count)
            });
            match done {
                Ok(count) => {
                    self.frozen = false;
                    return Ok(count);
                }
                Err(trouble) if tried >= tries => return Err(trouble),
                Err(_) => {
                    tried += 1;
                    thread::sleep(THAW_PAUSE);
                }
            }
        }
    }

    fn tell(&self, report: &GuestReport) {
        // A daemon that is gone is noticed with the next order.
        let _sent = wire::send(&self.socket, report, &[]);
    }
}

/// Thaws one machine, for a record; the exit codes are those of one file system.
pub fn thaw_one(path: &Path) -> ExitCode {
    let thawed = Agent::connect(path).and_then(|mut agent| agent.thaw(SYNC_LIMIT));
    ExitCode::from(match thawed {
        Ok(0) => NOT_FROZEN,
        Ok(_) => THAWED,
        Err(_) => FAILED,
    })
}
