//! Clients: who is connected to which export, and how to be alone with a disk.
//!
//! Invariants: whoever excludes clients from a disk sees none connected until the exclusion ends; a
//! connection counts until its guard is dropped, that is until its last request is done.
//! Absent: the connections themselves (`nbd/`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::api::ClientInfo;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DiskId, SnapshotId};

/// How long a disconnected client may take to end its last requests.
const HANGUP_WAIT: Duration = Duration::from_secs(10);
/// How long a refusal waits for clients to end by themselves. One that has just closed its connection
/// is noticed within this, so that scripts may disconnect and roll back in one breath.
const GOING_WAIT: Duration = Duration::from_millis(100);

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Disk(DiskId),
    Snapshot(SnapshotId),
}

/// Ends a connection from outside; the session sees its socket close.
pub type Hangup = Box<dyn Fn() + Send>;

/// How firmly somebody holds on to a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Who wants to be alone is refused, or disconnects it by force.
    Held,
    /// It ends when somebody wants to be alone, and is no reason for a refusal.
    Yields,
}

struct Connected {
    subject: Subject,
    info: ClientInfo,
    pin: Pin,
    hangup: Hangup,
}

#[derive(Default)]
struct State {
    next: u64,
    connected: HashMap<u64, Connected>,
    excluded: HashSet<Subject>,
}

/// All connections.
#[derive(Default)]
pub struct Clients {
    state: Arc<(Mutex<State>, Condvar)>,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clients({})", self.state.0.lock().connected.len())
    }
}

/// A connection in the list; leaves it when dropped.
pub struct ClientGuard {
    id: u64,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl std::fmt::Debug for ClientGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientGuard({})", self.id)
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        self.state.0.lock().connected.remove(&self.id);
        self.state.1.notify_all();
    }
}

/// While this lives, nobody connects to the subject.
pub struct Exclusion {
    subject: Subject,
    state: Arc<(Mutex<State>, Condvar)>,
    /// Who was disconnected.
    pub ended: Vec<ClientInfo>,
}

impl Drop for Exclusion {
    fn drop(&mut self) {
        self.state.0.lock().excluded.remove(&self.subject);
    }
}

impl Clients {
    /// Adds a connection.
    pub(super) fn add(
        &self,
        subject: Subject,
        info: ClientInfo,
        pin: Pin,
        hangup: Hangup,
    ) -> Result<ClientGuard> {
        let mut state = self.state.0.lock();
        if state.excluded.contains(&subject) {
            return Err(Error::new(
                ErrorKind::ShuttingDown,
                format!("{} is being rolled back or deleted", info.export),
            ));
        }
        state.next += 1;
        let id = state.next;
        state.connected.insert(id, Connected { subject, info, pin, hangup });
        Ok(ClientGuard { id, state: Arc::clone(&self.state) })
    }

    /// The clients of a disk or snapshot.
    pub(super) fn of(&self, subject: &Subject) -> Vec<ClientInfo> {
        let state = self.state.0.lock();
        let mut found: Vec<_> = holding(&state, subject).map(|c| c.info.clone()).collect();
        found.sort_by_key(|info| info.connected_at);
        found
    }

    /// How many clients each disk has, those of its snapshots not counted.
    pub(super) fn connected(&self) -> HashMap<DiskId, u64> {
        let mut counts = HashMap::new();
        for connected in self.state.0.lock().connected.values() {
            if let Subject::Disk(id) = &connected.subject {
                *counts.entry(id.clone()).or_default() += 1;
            }
        }
        counts
    }

    pub(super) fn count(&self) -> u64 {
        self.state.0.lock().connected.len() as u64
    }

    /// Ends all connections; they answer what they have received.
    pub(super) fn hang_up_all(&self) {
        self.state.0.lock().connected.values().for_each(|connected| (connected.hangup)());
    }

    /// Keeps clients away from a disk; with `force` those connected are disconnected.
    pub(super) fn exclude(&self, id: &DiskId, name: &str, force: bool) -> Result<Exclusion> {
        self.exclude_subject(Subject::Disk(id.clone()), name, force)
    }

    /// Keeps clients away from a snapshot's export.
    pub(super) fn exclude_snapshot(
        &self,
        id: &SnapshotId,
        name: &str,
        force: bool,
    ) -> Result<Exclusion> {
        self.exclude_subject(Subject::Snapshot(id.clone()), name, force)
    }

    fn exclude_subject(&self, subject: Subject, name: &str, force: bool) -> Result<Exclusion> {
        let mut state = self.state.0.lock();
        let noticed = Instant::now() + GOING_WAIT;
        while !force && holding(&state, &subject).next().is_some() {
            if self.state.1.wait_until(&mut state, noticed).timed_out() {
                break;
            }
        }
        let holders: Vec<ClientInfo> = holding(&state, &subject).map(|c| c.info.clone()).collect();
        if !holders.is_empty() && !force {
            let list = describe(&holders);
            return Err(Error::new(ErrorKind::InUse, format!("{name} is in use by {list}")).hint(
                "end these clients (unmount, disconnect), or use --force to disconnect them",
            ));
        }
        state.excluded.insert(subject.clone());
        // From here on dropping the exclusion lets clients in again.
        let exclusion =
            Exclusion { subject: subject.clone(), state: Arc::clone(&self.state), ended: holders };
        for (_, connected) in of(&state, &subject) {
            (connected.hangup)();
        }
        let deadline = Instant::now() + HANGUP_WAIT;
        while of(&state, &subject).next().is_some() {
            if self.state.1.wait_until(&mut state, deadline).timed_out() {
                drop(state);
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("clients of {name} did not end within 10 s of being disconnected"),
                ));
            }
        }
        drop(state);
        Ok(exclusion)
    }
}

fn of<'a>(state: &'a State, subject: &Subject) -> impl Iterator<Item = (&'a u64, &'a Connected)> {
    state.connected.iter().filter(move |(_, connected)| connected.subject == *subject)
}

/// Those that do not yield.
fn holding<'a>(state: &'a State, subject: &Subject) -> impl Iterator<Item = &'a Connected> {
    of(state, subject).map(|(_, connected)| connected).filter(|one| one.pin == Pin::Held)
}

/// Who they are, each process once: many clients open several connections.
fn describe(holders: &[ClientInfo]) -> String {
    let mut counts: BTreeMap<(&str, Option<i32>, &str), usize> = BTreeMap::new();
    for info in holders {
        *counts.entry((&info.peer, info.pid, &info.export)).or_default() += 1;
    }
    let one = |((peer, pid, export), count): ((&str, Option<i32>, &str), usize)| {
        let pid = pid.map(|pid| format!("pid {pid}, ")).unwrap_or_default();
        let times = if count == 1 { String::new() } else { format!(", {count} connections") };
        format!("{peer} ({pid}export {export}{times})")
    };
    counts.into_iter().map(one).collect::<Vec<_>>().join(", ")
}
