//! Helper threads: do what would keep a connection waiting, so that the requests behind it go on.
//!
//! Invariants: a connection has a bounded number of jobs here and does the rest itself; it ends only
//! after its last job has replied.
//! Absent: what hits memory. That never leaves the connection's thread.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};

/// Jobs of one connection at a time.
const JOBS_PER_CONNECTION: usize = 64;

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// The daemon's helpers.
#[derive(Default)]
pub struct Helpers {
    queue: Mutex<VecDeque<Job>>,
    filled: Condvar,
}

impl std::fmt::Debug for Helpers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Helpers({} queued)", self.queue.lock().len())
    }
}

impl Helpers {
    /// Starts `count` threads that live as long as the process.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(count: usize) -> Result<Arc<Helpers>> {
        let helpers = Arc::new(Helpers::default());
        for number in 0..count {
            let helpers = Arc::clone(&helpers);
            std::thread::Builder::new()
                .name(format!("helper-{number}"))
                .spawn(move || helpers.work())
                .map_err(|e| Error::io("start a helper thread", &e))?;
        }
        Ok(helpers)
    }

    /// Has a job done as soon as a helper is free.
    pub(super) fn push(&self, job: Job) {
        self.queue.lock().push_back(job);
        self.filled.notify_one();
    }

    fn work(&self) {
        loop {
            let mut queue = self.queue.lock();
            let job = loop {
                match queue.pop_front() {
                    Some(job) => break job,
                    None => self.filled.wait(&mut queue),
                }
            };
            drop(queue);
            job();
        }
    }
}

/// The jobs of one connection.
#[derive(Debug)]
pub struct Outstanding {
    helpers: Arc<Helpers>,
    count: Arc<(Mutex<usize>, Condvar)>,
}

struct Done(Arc<(Mutex<usize>, Condvar)>);

impl Drop for Done {
    fn drop(&mut self) {
        *self.0.0.lock() -= 1;
        self.0.1.notify_all();
    }
}

impl Outstanding {
    #[must_use]
    pub fn new(helpers: &Arc<Helpers>) -> Outstanding {
        Outstanding { helpers: Arc::clone(helpers), count: Arc::default() }
    }

    /// Hands `job` to a helper, or does it here when this connection has enough out already.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut count = self.count.0.lock();
        if *count >= JOBS_PER_CONNECTION {
            drop(count);
            return job();
        }
        *count += 1;
        drop(count);
        let done = Done(Arc::clone(&self.count));
        let job = move || {
            let _done = done;
            job();
        };
        self.helpers.push(Box::new(job));
    }

    /// Waits until every job has replied.
    pub fn drain(&self) {
        let mut count = self.count.0.lock();
        while *count > 0 {
            self.count.1.wait(&mut count);
        }
    }

    /// Number of jobs that are out.
    #[must_use]
    pub fn count(&self) -> usize {
        *self.count.0.lock()
    }
}
