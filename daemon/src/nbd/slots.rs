//! Places for connections, of which there are only so many.
//!
//! Invariants: a place is free again when its holder is dropped, and who waits for that is woken.
//! Absent: queueing for a place. Who finds none is refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The places of a server.
#[derive(Debug)]
pub struct Slots {
    most: usize,
    taken: Arc<(Mutex<usize>, Condvar)>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Slot(Arc<(Mutex<usize>, Condvar)>);

impl Slots {
    #[must_use]
    pub fn new(most: usize) -> Slots {
        Slots { most, taken: Arc::default() }
    }

    /// A place, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<Slot> {
        let mut taken = self.taken.0.lock();
        if *taken >= self.most {
            return None;
        }
        *taken += 1;
        Some(Slot(Arc::clone(&self.taken)))
    }

    /// Waits until all are free; `false` when the time is over.
    #[must_use]
    pub fn wait_free(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut taken = self.taken.0.lock();
        while *taken > 0 {
            if self.taken.1.wait_until(&mut taken, deadline).timed_out() {
                return *taken == 0;
            }
        }
        true
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.0.lock() -= 1;
        self.0.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_only_so_many_places_and_each_comes_back() {
        let slots = Slots::new(2);
        let (one, two) = (slots.take().unwrap(), slots.take().unwrap());
        assert!(slots.take().is_none());
        assert!(!slots.wait_free(Duration::ZERO));
        drop(one);
        assert!(slots.take().is_some());
        drop(two);
        assert!(slots.wait_free(Duration::ZERO));
    }

    #[test]
    fn who_waits_for_the_last_one_is_woken() {
        let slots = Slots::new(1);
        let one = slots.take().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| slots.wait_free(Duration::from_secs(60)));
            drop(one);
            assert!(waiting.join().unwrap());
        });
    }
}
