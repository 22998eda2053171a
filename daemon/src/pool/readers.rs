//! Who is reading: eras that keep a freed block from being reused under a reader that holds its address.
//!
//! Invariants: a reader enters before it looks an address up and leaves after its last use; a block freed
//! in era `e` may be reused once every active reader entered in an era later than `e`.
//! Absent: the freed blocks themselves (`allocator.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

const IDLE: u64 = u64::MAX;

/// All readers of a pool.
#[derive(Debug, Default)]
pub struct Readers {
    era: AtomicU64,
    slots: Mutex<Vec<Arc<Slot>>>,
}

#[derive(Debug)]
struct Slot {
    /// The era its reader is in, or [`IDLE`].
    era: AtomicU64,
    /// How often its reader entered.
    entries: AtomicU64,
}

/// The place of one reader; each connection keeps one.
#[derive(Debug)]
pub struct Reader {
    slot: Arc<Slot>,
}

/// While this lives, no block freed since is reused.
#[derive(Debug)]
#[must_use]
pub struct Reading {
    slot: Arc<Slot>,
}

impl Readers {
    /// Registers a reader.
    pub fn register(&self) -> Reader {
        let slot = Arc::new(Slot { era: AtomicU64::new(IDLE), entries: AtomicU64::new(0) });
        self.slots.lock().push(Arc::clone(&slot));
        Reader { slot }
    }

    /// The era in which something is freed now.
    pub fn now(&self) -> u64 {
        self.era.load(Ordering::SeqCst)
    }

    /// Starts a new era and returns the oldest one an active reader is still in; blocks freed in earlier
    /// eras are out of reach.
    pub fn oldest(&self) -> u64 {
        let now = self.era.fetch_add(1, Ordering::SeqCst) + 1;
        let mut slots = self.slots.lock();
        // A slot only we hold belongs to a reader that is gone.
        slots.retain(|slot| Arc::strong_count(slot) > 1);
        slots.iter().map(|slot| slot.era.load(Ordering::SeqCst)).min().unwrap_or(IDLE).min(now)
    }

    /// A number that changes whenever somebody reads.
    pub fn entries(&self) -> u64 {
        let slots = self.slots.lock();
        slots.iter().map(|slot| slot.entries.load(Ordering::Relaxed)).sum()
    }
}

impl Reader {
    /// Enters the present era.
    pub fn enter(&self, readers: &Readers) -> Reading {
        self.enter_era(readers.now())
    }

    /// Begins an era and enters it: for a reader that goes on to allocate, and must not keep from
    /// itself what was freed before it came.
    pub fn enter_new(&self, readers: &Readers) -> Reading {
        self.enter_era(readers.era.fetch_add(1, Ordering::SeqCst) + 1)
    }

    fn enter_era(&self, era: u64) -> Reading {
        self.slot.era.store(era, Ordering::SeqCst);
        // Only its own reader counts: no need for an atomic addition.
        let entries = self.slot.entries.load(Ordering::Relaxed) + 1;
        self.slot.entries.store(entries, Ordering::Relaxed);
        Reading { slot: Arc::clone(&self.slot) }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.slot.era.store(IDLE, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_freed_under_a_reader_stays_out_of_reach_until_it_leaves() {
        let readers = Readers::default();
        let reader = readers.register();
        let reading = reader.enter(&readers);
        let freed_in = readers.now();
        assert!(readers.oldest() <= freed_in);
        assert!(readers.oldest() <= freed_in, "asking again changes nothing");
        drop(reading);
        assert!(readers.oldest() > freed_in);
    }

    #[test]
    fn reading_is_noticed() {
        let readers = Readers::default();
        let reader = readers.register();
        let before = readers.entries();
        drop(reader.enter(&readers));
        assert_ne!(readers.entries(), before);
    }

    #[test]
    fn a_reader_that_enters_later_does_not_hold_it_back() {
        let readers = Readers::default();
        let freed_in = readers.now();
        assert!(readers.oldest() > freed_in);
        let reader = readers.register();
        let _reading = reader.enter(&readers);
        assert!(readers.oldest() > freed_in);
    }
}
