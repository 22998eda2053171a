//! Requests that wait for something far away, without a thread.
//!
//! Invariants: a request that is parked is resumed once, on a helper: when what it waits for is there or cannot be
//! had, or when its connection is over; a connection ends only after its last one has replied, or has been written
//! down for the process that goes on with the connection.
//! Absent: what they wait for (`disk/lazy.rs`), and what they do then (`remote.rs`).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::helpers::Helpers;
use super::socket::Socket;
use super::wire::{REQUEST_LEN, Request};
use crate::disk::lazy::{Answer, Wake};
use crate::error::{Error, ErrorKind};

/// Requests of one connection that wait at a time; then its next one waits until one is done.
const PARKED_MAX: usize = 256;
/// How long a connection that is handed over waits for what is nearly there.
const GRACE: Duration = Duration::from_millis(200);
/// Bytes of requests that go along with a connection: all that fit into [`PARKED_MAX`] places, but for payloads.
const ALONG_MAX: usize = 16 << 10;
/// How often somebody who waits for the last ones looks whether the client is still there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a parked request does when it goes on.
type Job = Box<dyn FnOnce(Answer) + Send>;

/// The parked requests of one connection.
pub struct Parking {
    helpers: Arc<Helpers>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    next: u64,
    jobs: HashMap<u64, Job>,
    /// Requests that have not replied yet.
    places: usize,
    over: bool,
    /// The requests that go to another process with the connection, if they may.
    along: Option<Vec<u8>>,
}

/// How a connection ends, for those of its requests that still wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nobody is there for the answers.
    Gone,
    /// The client waits for all of them.
    Stays,
    /// Another process goes on with the connection, and answers what is left.
    HandedOver,
}

impl fmt::Debug for Parking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parking({})", self.state.lock().places)
    }
}

/// What a request has until it has replied.
#[derive(Debug)]
pub struct Place(Arc<Parking>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.state.lock().places -= 1;
        self.0.changed.notify_all();
    }
}

/// Resumes one request; at the latest when it is dropped.
struct Ticket {
    parking: Arc<Parking>,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.parking.resume(self.number, Err(gone()));
    }
}

impl Parking {
    #[must_use]
    pub fn new(helpers: &Arc<Helpers>) -> Arc<Parking> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Parking { helpers: Arc::clone(helpers), state, changed })
    }

    /// A place for a request, as soon as there is one.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Place {
        let mut state = self.state.lock();
        while state.places >= PARKED_MAX {
            self.changed.wait(&mut state);
        }
        state.places += 1;
        drop(state);
        Place(Arc::clone(self))
    }

    /// Does something on a helper.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.helpers.push(Box::new(job));
    }

    /// Parks a request that has a place; whoever gets the wake resumes it.
    pub fn park(self: &Arc<Self>, job: impl FnOnce(Answer) + Send + 'static) -> Wake {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        let over = state.over;
        state.jobs.insert(number, Box::new(job));
        drop(state);
        let ticket = Ticket { parking: Arc::clone(self), number };
        if over {
            drop(ticket);
            return Box::new(|_| {});
        }
        Box::new(move |answer| ticket.parking.resume(ticket.number, answer))
    }

    fn resume(&self, number: u64, answer: Answer) {
        let job = self.state.lock().jobs.remove(&number);
        if let Some(job) = job {
            self.run(move || job(answer));
        }
    }

    /// Takes over a request that cannot be answered here, as it came, if the next process can do so.
    #[must_use]
    pub fn takes_along(&self, request: &Request, payload: &[u8]) -> bool {
        let mut state = self.state.lock();
        let Some(along) = &mut state.along else { return false };
        if along.len() + REQUEST_LEN + payload.len() > ALONG_MAX {
            return false;
        }
        along.extend_from_slice(&request.encode());
        along.extend_from_slice(payload);
        true
    }

    /// Waits until all have replied. When the client is gone, or was sent away, nobody waits for what is far
    /// away any more. Returns the requests that another process has to answer.
    #[must_use]
    pub fn drain(&self, socket: &Socket, ending: Ending) -> Vec<u8> {
        let began = Instant::now();
        let mut state = self.state.lock();
        while state.places > 0 {
            let nobody = ending == Ending::Gone || socket.is_half_closed();
            let handed_over = ending == Ending::HandedOver && began.elapsed() >= GRACE;
            if !state.over && (nobody || handed_over) {
                state.over = true;
                state.along = (!nobody).then(Vec::new);
                let jobs: Vec<Job> = state.jobs.drain().map(|(_, job)| job).collect();
                drop(state);
                jobs.into_iter().for_each(|job| self.run(move || job(Err(gone()))));
                state = self.state.lock();
                continue;
            }
            self.changed.wait_for(&mut state, LOOK_EVERY);
        }
        state.along.take().unwrap_or_default()
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::ShuttingDown, "the connection ends")
}
