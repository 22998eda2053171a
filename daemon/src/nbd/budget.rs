//! The memory that requests in flight may take, over all connections of the daemon.
//!
//! Invariants: a connection takes its share before it reads a payload or allocates for a reply, and gives
//! it back when the request is done; who waits for a share holds none.
//! Absent: the small fixed buffers that every connection has.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// Bytes for large requests: sixteen of the largest, whatever the number of clients.
const TOTAL_BYTES: usize = 512 << 20;

/// The daemon's budget.
#[derive(Debug)]
pub struct Budget {
    left: Mutex<usize>,
    freed: Condvar,
}

/// A share of the budget.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { left: Mutex::new(TOTAL_BYTES), freed: Condvar::new() }
    }
}

impl Budget {
    /// Waits for `bytes`, which is at most the size of one request.
    #[must_use]
    pub fn take(self: &Arc<Self>, bytes: usize) -> Share {
        let mut left = self.left.lock();
        while *left < bytes {
            self.freed.wait(&mut left);
        }
        *left -= bytes;
        Share { budget: Arc::clone(self), bytes }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *self.budget.left.lock() += self.bytes;
        self.budget.freed.notify_all();
    }
}
