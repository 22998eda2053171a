//! What the connections of an export did: requests, bytes, failures and latencies.
//!
//! Invariants: each connection counts in a place of its own, so that counting never contends; what an ended
//! connection counted stays counted; nothing here is asked on the path of a request.
//! Absent: what counts as a request (`nbd/tally.rs`), and where the numbers are shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::histogram::{Counted, Histogram};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    /// Trims and zeros: no data comes with them.
    Discard,
    Flush,
}

impl Operation {
    /// In the order of the counters.
    pub const ALL: [Operation; 4] =
        [Operation::Read, Operation::Write, Operation::Discard, Operation::Flush];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Discard => "discard",
            Operation::Flush => "flush",
        }
    }
}

/// One operation, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    pub bytes: u64,
    /// Requests that were answered with an error; those that were refused before they ran have no latency.
    pub errors: u64,
    pub took: Counted,
}

/// All operations, in the order of [`Operation::ALL`].
pub type Totals = [Done; 4];

/// The counters of an export.
#[derive(Debug, Default)]
pub struct Meter {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    open: Vec<Arc<Counters>>,
    /// Of the connections that have ended.
    past: Totals,
}

/// The counters of one connection, on cache lines that no other has.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counters([Counter; 4]);

#[derive(Debug, Default)]
struct Counter {
    bytes: AtomicU64,
    errors: AtomicU64,
    took: Histogram,
}

/// A connection's place to count, shared with the helpers that work for it.
#[derive(Debug)]
pub struct Tap {
    counters: Arc<Counters>,
    meter: Arc<Meter>,
}

impl Meter {
    /// A place for one more connection.
    #[must_use]
    pub fn tap(self: &Arc<Self>) -> Arc<Tap> {
        let counters = Arc::new(Counters::default());
        self.inner.lock().open.push(Arc::clone(&counters));
        Arc::new(Tap { counters, meter: Arc::clone(self) })
    }

    /// What all connections did so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let inner = self.inner.lock();
        let mut totals = inner.past;
        inner.open.iter().for_each(|counters| counters.add_to(&mut totals));
        totals
    }
}

impl Counters {
    fn add_to(&self, totals: &mut Totals) {
        for (total, counter) in totals.iter_mut().zip(&self.0) {
            total.bytes += counter.bytes.load(Ordering::Relaxed);
            total.errors += counter.errors.load(Ordering::Relaxed);
            total.took.merge(&counter.took.counted());
        }
    }
}

impl Tap {
    /// Counts `count` requests with `bytes` in all that took so long each.
    pub fn did(&self, operation: Operation, count: u64, bytes: u64, each: Duration) {
        let counter = &self.counters.0[operation as usize];
        counter.took.add(count, each);
        if bytes > 0 {
            counter.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Counts failures.
    pub fn failed(&self, operation: Operation, count: u64) {
        self.counters.0[operation as usize].errors.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts one request, whole.
    pub fn one(&self, operation: Operation, bytes: u64, took: Duration, ok: bool) {
        self.did(operation, 1, if ok { bytes } else { 0 }, took);
        if !ok {
            self.failed(operation, 1);
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let mut inner = self.meter.inner.lock();
        self.counters.add_to(&mut inner.past);
        inner.open.retain(|other| !Arc::ptr_eq(other, &self.counters));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_counted_stays_when_it_ends() {
        let meter = Arc::new(Meter::default());
        let (one, other) = (meter.tap(), meter.tap());
        one.did(Operation::Read, 10, 40_960, Duration::from_micros(80));
        other.one(Operation::Write, 512, Duration::from_millis(2), true);
        other.one(Operation::Write, 512, Duration::from_millis(2), false);
        let before = meter.totals();
        drop(one);
        assert_eq!(meter.totals(), before);
        let [read, write, discard, flush] = before;
        assert_eq!((read.took.count(), read.bytes, read.errors), (10, 40_960, 0));
        assert_eq!((write.took.count(), write.bytes, write.errors), (2, 512, 1));
        assert_eq!((discard, flush), (Done::default(), Done::default()));
    }

    #[test]
    fn the_names_are_in_the_order_of_the_counters() {
        for (place, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, place, "{}", operation.name());
        }
    }
}
