//! What was written and is not on its way to the device yet, and when it should be.
//!
//! The rule is early: a flush or a snapshot then finds little to wait for. The exception is data that does not live long.
//! While clients replace most of what they wrote a moment ago, and nobody but the daemon itself asks for a sync, writeback
//! is left to that sync: what was replaced before need never reach the device.
//!
//! Invariants: when the device begins changes, never what is acknowledged or durable; nothing is held back longer than
//! until the next sync, nor more than [`HELD_MAX`] blocks; who has to wait for what was held back ends that for [`PAUSE`].
//! Absent: the system calls (`file.rs`), the sync, and which block is young (`allocator.rs`).

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Ranges that wait for writeback at most; a sync finds the rest.
const RANGES_MAX: usize = 1 << 12;
/// Blocks of a window (64 MiB) that tell enough about how long data lives.
const ENOUGH: u64 = 1 << 14;
/// A window must last that long to tell anything: nobody replaces much in less.
const LONG_ENOUGH: Duration = Duration::from_millis(400);
/// Blocks held back at most (1 GiB).
const HELD_MAX: u64 = 1 << 18;
/// How long a sync of what was held back may take: two in a row have to be over within the second that a loss of power may
/// cost.
pub const LONGEST_SYNC: Duration = Duration::from_millis(500);
/// How long nothing is held back after somebody had to wait for it.
const PAUSE: Duration = Duration::from_secs(60);

/// What became of blocks between the beginnings of two syncs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Blocks written.
    pub written: u64,
    /// Those of them that were freed again.
    pub replaced: u64,
}

impl Window {
    /// Whether so little of it is left that it pays to hold data back. Once it is held back windows are shorter, and see
    /// less of what becomes of it.
    fn is_short_lived(self, held: bool) -> bool {
        let percent = if held { 25 } else { 40 };
        self.written >= ENOUGH && self.replaced * 100 >= self.written * percent
    }

    fn is_full(self) -> bool {
        self.written - self.replaced > HELD_MAX
    }
}

/// Offset and length in the pool file, in bytes.
type Span = (u64, u64);

/// The written ranges of a pool.
#[derive(Debug, Default)]
pub struct Behind {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ranges: Vec<Span>,
    ended: bool,
    /// The ranges wait for a sync.
    held: bool,
    /// So did those that the running sync writes.
    syncing_held: bool,
    /// When this window began.
    began: Option<Instant>,
    /// Somebody asked for a sync in it.
    asked: bool,
    /// Until then nothing is held back.
    early_until: Option<Instant>,
}

impl Behind {
    /// Takes note of written data. `window` is asked for only while data is held back.
    pub fn wrote(&self, range: Span, window: impl FnOnce() -> Window) {
        let mut state = self.state.lock();
        if state.ranges.len() < RANGES_MAX {
            state.ranges.push(range);
        }
        let held = state.held;
        drop(state);
        if held {
            if !window().is_full() {
                return;
            }
            self.state.lock().held = false;
        }
        self.changed.notify_one();
    }

    /// The ranges to write back now; waits up to `timeout` for some.
    pub fn take(&self, timeout: Duration) -> Vec<Span> {
        let mut state = self.state.lock();
        if state.nothing_to_do() && !state.ended {
            self.changed.wait_for(&mut state, timeout);
        }
        if state.nothing_to_do() { Vec::new() } else { std::mem::take(&mut state.ranges) }
    }

    /// Nobody waits in [`Behind::take`] any more.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// Whether data waits for the next sync.
    pub fn is_held(&self) -> bool {
        self.state.lock().held
    }

    /// Somebody asks for a sync and will wait for it.
    pub fn asked(&self, now: Instant) {
        let mut state = self.state.lock();
        state.asked = true;
        if state.held || state.syncing_held {
            state.hold(false);
            state.early_until = Some(now + PAUSE);
        }
    }

    /// A sync begins: it ends this window and writes all that was held back.
    pub fn sync_begins(&self, window: Window, now: Instant) {
        let mut state = self.state.lock();
        let began = state.began.replace(now);
        let may = !state.asked && state.early_until.is_none_or(|until| until <= now);
        let tells = began.is_none_or(|began| now - began >= LONG_ENOUGH);
        let should = if tells { window.is_short_lived(state.held) } else { state.held };
        state.asked = false;
        state.syncing_held = state.held;
        state.hold(may && should);
    }

    /// The sync that began last is done.
    pub fn sync_ended(&self, took: Duration, now: Instant) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.syncing_held) && took > LONGEST_SYNC {
            state.early_until = Some(now + PAUSE);
        }
    }
}

impl State {
    fn nothing_to_do(&self) -> bool {
        self.held || self.ranges.is_empty()
    }

    /// What was held back until now is the sync's, which would only be slower with a second writer beside it.
    fn hold(&mut self, held: bool) {
        if self.held || held {
            self.ranges.clear();
        }
        self.held = held;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT_LIVED: Window = Window { written: 5 * ENOUGH, replaced: 2 * ENOUGH };
    /// Enough to go on holding data back, not to begin with it.
    const MIDDLING: Window = Window { written: 4 * ENOUGH, replaced: ENOUGH };
    const LONG_LIVED: Window = Window { written: 4 * ENOUGH, replaced: ENOUGH - 1 };
    const RANGE: Span = (4096, 1 << 20);

    /// What the thread for writeback gets at once of a range written now.
    fn early(behind: &Behind) -> bool {
        behind.wrote(RANGE, || SHORT_LIVED);
        behind.take(Duration::ZERO) == [RANGE]
    }

    /// Syncs of the daemon's own, a second apart.
    struct Syncs<'a>(&'a Behind, Instant);

    impl Syncs<'_> {
        fn next(&mut self, window: Window) {
            self.taking(Duration::ZERO, window);
        }

        fn taking(&mut self, took: Duration, window: Window) {
            self.1 += Duration::from_secs(1);
            self.0.sync_begins(window, self.1);
            self.0.sync_ended(took, self.1);
        }
    }

    fn new() -> Behind {
        let behind = Behind::default();
        behind.sync_begins(LONG_LIVED, Instant::now());
        behind
    }

    #[test]
    fn data_is_held_back_while_most_of_it_is_replaced_before_a_sync() {
        let behind = new();
        let mut syncs = Syncs(&behind, Instant::now());
        assert!(early(&behind), "nothing is known yet");
        syncs.next(MIDDLING);
        assert!(early(&behind));
        syncs.next(SHORT_LIVED);
        assert!(!early(&behind));
        syncs.next(MIDDLING);
        assert!(!early(&behind));
        syncs.next(LONG_LIVED);
        assert!(early(&behind));
        syncs.next(Window { written: ENOUGH - 1, replaced: ENOUGH - 1 });
        assert!(early(&behind), "too little to tell");
    }

    #[test]
    fn a_sync_soon_after_another_tells_nothing() {
        let behind = new();
        let mut syncs = Syncs(&behind, Instant::now());
        syncs.next(SHORT_LIVED);
        behind.sync_begins(LONG_LIVED, syncs.1 + LONG_ENOUGH / 2);
        assert!(!early(&behind));
        behind.sync_begins(LONG_LIVED, syncs.1 + LONG_ENOUGH * 3 / 2);
        assert!(early(&behind));
    }

    #[test]
    fn who_flushes_finds_nothing_held_back_for_a_while() {
        let behind = new();
        let mut syncs = Syncs(&behind, Instant::now());
        behind.asked(syncs.1);
        syncs.next(SHORT_LIVED);
        assert!(early(&behind), "somebody asked in the window before");
        syncs.next(SHORT_LIVED);
        assert!(!early(&behind));
        behind.asked(syncs.1);
        for second in 1..60 {
            syncs.next(SHORT_LIVED);
            assert!(early(&behind), "it had to wait {second} s ago");
        }
        syncs.next(SHORT_LIVED);
        assert!(!early(&behind));
    }

    #[test]
    fn who_waits_for_the_sync_of_what_was_held_back_counts_too() {
        let behind = new();
        let mut syncs = Syncs(&behind, Instant::now());
        syncs.next(SHORT_LIVED);
        behind.sync_begins(LONG_LIVED, syncs.1 + Duration::from_secs(1));
        behind.asked(syncs.1 + Duration::from_secs(1));
        behind.sync_ended(Duration::ZERO, syncs.1 + Duration::from_secs(1));
        for _ in 0..3 {
            syncs.next(SHORT_LIVED);
            assert!(early(&behind));
        }
    }

    #[test]
    fn a_device_that_takes_long_for_it_gets_data_early_for_a_while() {
        let behind = new();
        let mut syncs = Syncs(&behind, Instant::now());
        let long = LONGEST_SYNC + Duration::from_millis(1);
        syncs.taking(long, SHORT_LIVED);
        assert!(!early(&behind), "that sync wrote nothing that was held back");
        syncs.taking(long, SHORT_LIVED);
        for _ in 0..59 {
            syncs.next(SHORT_LIVED);
            assert!(early(&behind));
        }
        syncs.next(SHORT_LIVED);
        assert!(!early(&behind));
    }

    #[test]
    fn more_than_is_allowed_is_written_back_at_once() {
        let behind = new();
        Syncs(&behind, Instant::now()).next(SHORT_LIVED);
        behind.wrote(RANGE, || Window { written: HELD_MAX, replaced: 0 });
        assert!(behind.take(Duration::ZERO).is_empty());
        behind.wrote(RANGE, || Window { written: HELD_MAX + 1, replaced: 0 });
        assert_eq!(behind.take(Duration::ZERO), [RANGE, RANGE]);
        assert!(early(&behind), "until the next sync");
    }
}
