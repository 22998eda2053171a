//! A flag that somebody waits for.
//!
//! Invariants: a flag that was set, or a call to look, before the wait ends it at once.
//! Absent: several who wait for one flag, each of whom is to see it.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// A flag that somebody waits for.
#[derive(Debug, Default)]
pub struct Signal {
    call: Mutex<Call>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Call {
    set: bool,
    /// Who waits is to look, though the flag is not set.
    look: bool,
}

impl Signal {
    /// Sets the flag and wakes who waits.
    pub fn raise(&self) {
        self.call.lock().set = true;
        self.changed.notify_all();
    }

    /// Ends a wait without setting the flag.
    pub fn wake(&self) {
        self.call.lock().look = true;
        self.changed.notify_all();
    }

    /// Waits until the flag is set, somebody wakes us, or the time is over; returns the flag and clears it.
    pub fn wait(&self, timeout: Duration) -> bool {
        let mut call = self.call.lock();
        if !call.set && !call.look {
            self.changed.wait_for(&mut call, timeout);
        }
        std::mem::take(&mut *call).set
    }
}
