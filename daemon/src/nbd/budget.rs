//! The memory that requests in flight may take, over all connections of the daemon.
//!
//! Invariants: a connection takes its share before it reads a payload or allocates for a reply, and gives
//! it back when the request is done; who waits for a share holds none.
//! Absent: the small fixed buffers that every connection has.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::pool::aligned::Pages;

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

/// Buffers of this size and less are kept for the next request: fresh memory costs a fault per page.
const KEPT_BYTES: usize = 1 << 20;
/// Buffers that are kept at most.
const KEPT_MAX: usize = 16;

/// Buffers for large payloads, used again and again. Aligned, so that direct I/O needs no copy.
#[derive(Debug, Default)]
pub struct Buffers {
    free: Mutex<Vec<Pages>>,
}

/// A buffer for one request, with its share of the budget.
#[derive(Debug)]
pub struct Buffer {
    bytes: Pages,
    len: usize,
    home: Arc<Buffers>,
    _share: Share,
}

impl Buffers {
    /// A buffer of `len` bytes with undefined contents, once the budget allows.
    #[must_use]
    pub fn take(self: &Arc<Self>, budget: &Arc<Budget>, len: usize) -> Buffer {
        let share = budget.take(len);
        let mut bytes = self.free.lock().pop().unwrap_or_default();
        bytes.grow(len);
        Buffer { bytes, len, home: Arc::clone(self), _share: share }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.home.free.lock();
        if self.bytes.len() <= KEPT_BYTES && free.len() < KEPT_MAX {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}
