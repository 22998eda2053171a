//! When a connection waits a moment for more requests before it does the ones it has.
//!
//! A client with a deep queue sends one request after the other. Doing each as it comes costs a receive,
//! a journal record and a send for every one, and the two sides fight for the locks of the socket; a dozen
//! at once cost little more than one. How deep the queue is shows only when replies are held back, so from
//! time to time a probe does that.
//!
//! Invariants: a client with a shallow queue pays for the probes alone; no request waits longer than
//! [`HOLD`] for others, or [`PROBE`] once in [`PROBE_EVERY`] batches.
//! Absent: receiving (`socket.rs`).

use std::time::Duration;

/// Requests that have to meet in a probe before gathering pays.
const DEEP: usize = 8;
/// Batches between two probes.
const PROBE_EVERY: u32 = 1024;
/// A probe ends after this time at the latest.
const PROBE: Duration = Duration::from_micros(120);
/// Requests are held back this long at most while others arrive.
const HOLD: Duration = Duration::from_micros(40);
/// When nothing has come for so long, the client waits for replies.
const SILENCE: Duration = Duration::from_micros(12);

/// How long to wait for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// In all.
    pub most: Duration,
    /// Since something came last.
    pub silence: Duration,
    /// Requests that are enough.
    pub enough: usize,
}

/// What is known about the client's queue.
#[derive(Debug, Default)]
pub struct Gather {
    /// Requests to wait for; 0 while the queue is shallow.
    enough: usize,
    until_probe: u32,
}

impl Gather {
    /// How to wait before the next batch is done; `None` not at all.
    pub fn plan(&self) -> Option<Hold> {
        if self.until_probe == 0 {
            return Some(Hold { most: PROBE, silence: SILENCE, enough: usize::MAX });
        }
        let hold = Hold { most: HOLD, silence: SILENCE, enough: self.enough };
        (self.enough > 0).then_some(hold)
    }

    /// Takes note of a batch that was received as planned.
    pub fn learn(&mut self, requests: usize) {
        if self.until_probe == 0 {
            // Half of what is on its way: the client sends the other half while this half is done.
            self.enough = if requests >= DEEP { requests / 2 } else { 0 };
            self.until_probe = PROBE_EVERY;
            return;
        }
        self.until_probe -= 1;
        if requests < self.enough.min(DEEP / 2) {
            self.enough = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shallow_queue_waits_for_probes_alone() {
        let mut gather = Gather::default();
        let mut waits = 0;
        for _ in 0..10 * (PROBE_EVERY + 1) {
            waits += u32::from(gather.plan().is_some());
            gather.learn(1);
        }
        assert_eq!(waits, 10);
    }

    #[test]
    fn a_deep_queue_is_gathered_by_halves_until_it_is_shallow() {
        let mut gather = Gather::default();
        gather.learn(32);
        assert_eq!(gather.plan().map(|hold| hold.enough), Some(16));
        gather.learn(16);
        assert_eq!(gather.plan().map(|hold| hold.enough), Some(16));
        gather.learn(1);
        assert_eq!(gather.plan(), None);
    }
}
