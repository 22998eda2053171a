//! Memory that begins at a page boundary, as direct I/O wants it, and the buffers that stand in for
//! memory that does not.
//!
//! Invariants: [`Pages`] begin at a multiple of 4096 and hold whole pages; at most [`BOUNCE_MAX`] bounce
//! buffers exist, and who holds one waits for nothing but the device, so everybody gets one in the end.
//! Absent: I/O.

use std::ops::{Deref, DerefMut};

use parking_lot::{Condvar, Mutex};

use crate::units::BLOCK_BYTES;

/// Bytes in a bounce buffer: larger transfers of unaligned memory go in pieces.
pub const BOUNCE_BYTES: usize = 256 << 10;
/// Bounce buffers that exist at most (8 MiB): more would not make a device faster.
const BOUNCE_MAX: usize = 32;

/// Any device takes memory that is aligned to this.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
struct Page([u8; BLOCK_BYTES]);

const ZERO: Page = Page([0; BLOCK_BYTES]);

/// Bytes in whole pages. Once it has its size it is reused, never allocated again.
#[derive(Debug, Default)]
pub struct Pages {
    pages: Vec<Page>,
}

impl Pages {
    /// Zeros, at least `bytes` of them.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Pages {
        Pages { pages: vec![ZERO; bytes.div_ceil(BLOCK_BYTES)] }
    }

    /// Grows with zeros to at least `bytes`; what it holds stays.
    pub fn grow(&mut self, bytes: usize) {
        let pages = bytes.div_ceil(BLOCK_BYTES);
        if pages > self.pages.len() {
            self.pages.resize(pages, ZERO);
        }
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = self.pages.len() * BLOCK_BYTES;
        // SAFETY: a page is 4096 bytes without padding, any value of which is valid, and the pages of a
        // vector lie one behind the other; the borrow is that of `self`.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), bytes) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        let bytes = self.pages.len() * BLOCK_BYTES;
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), bytes) }
    }
}

/// Whether memory begins and ends at multiples of `unit`.
#[must_use]
pub fn is_aligned(memory: &[u8], unit: usize) -> bool {
    memory.as_ptr().addr().is_multiple_of(unit) && memory.len().is_multiple_of(unit)
}

/// The bounce buffers of a pool.
#[derive(Debug, Default)]
pub struct Bounce {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Pages>,
    made: usize,
}

/// A bounce buffer; goes back when dropped.
#[derive(Debug)]
pub struct Borrowed<'a> {
    pages: Pages,
    home: &'a Bounce,
}

impl Bounce {
    /// A buffer of [`BOUNCE_BYTES`] with undefined contents. Waits while all are out.
    #[must_use]
    pub fn take(&self) -> Borrowed<'_> {
        let mut state = self.state.lock();
        loop {
            if let Some(pages) = state.free.pop() {
                return Borrowed { pages, home: self };
            }
            if state.made < BOUNCE_MAX {
                state.made += 1;
                drop(state);
                return Borrowed { pages: Pages::zeroed(BOUNCE_BYTES), home: self };
            }
            self.returned.wait(&mut state);
        }
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        self.home.state.lock().free.push(std::mem::take(&mut self.pages));
        self.home.returned.notify_one();
    }
}

impl Deref for Borrowed<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages
    }
}

impl DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_begin_at_a_page_and_keep_what_they_hold_when_they_grow() {
        let mut pages = Pages::zeroed(5000);
        assert_eq!(pages.len(), 8192);
        assert!(is_aligned(&pages, 4096));
        pages[8191] = 7;
        pages.grow(100_000);
        assert!(is_aligned(&pages, 4096) && pages.len() >= 100_000);
        assert_eq!((pages[8190], pages[8191], pages[8192]), (0, 7, 0));
    }

    #[test]
    fn the_last_bounce_buffer_is_waited_for() {
        let bounce = Bounce::default();
        let mut held: Vec<_> = (0..BOUNCE_MAX).map(|_| bounce.take()).collect();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| bounce.take().len());
            held.pop();
            assert_eq!(waiter.join().unwrap(), BOUNCE_BYTES);
        });
        drop(held);
        assert_eq!(bounce.state.lock().made, BOUNCE_MAX);
    }
}
