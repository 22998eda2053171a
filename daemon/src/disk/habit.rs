//! Whether a client is about to ask for a flush, judged by what it did lately.
//!
//! Invariants: a guess changes when the device begins to write, never what is acknowledged or durable.
//! Absent: the flush, and what is begun before it (`lane.rs`).

/// Flushes in a row that came after as many writes as the one before make the next one likely.
const ENOUGH: u32 = 3;

/// How many writes a client makes between two flushes.
#[derive(Debug, Default)]
pub struct Habit {
    /// Batches of writes since the last flush.
    writes: u32,
    /// Batches of writes between the two flushes before.
    usual: u32,
    /// So many times in a row.
    times: u32,
}

impl Habit {
    /// Takes note of a batch of writes; returns whether a flush is likely to follow it.
    pub fn wrote(&mut self) -> bool {
        self.writes = self.writes.saturating_add(1);
        self.times >= ENOUGH && self.writes == self.usual
    }

    /// Takes note of a flush.
    pub fn flushed(&mut self) {
        let again = self.writes == self.usual;
        self.times = if again { self.times.saturating_add(1) } else { 0 };
        self.usual = self.writes;
        self.writes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(habit: &mut Habit, writes: usize) -> Vec<bool> {
        let guesses = (0..writes).map(|_| habit.wrote()).collect();
        habit.flushed();
        guesses
    }

    #[test]
    fn a_flush_is_likely_where_it_came_the_times_before() {
        let mut habit = Habit::default();
        for _ in 0..4 {
            assert_eq!(round(&mut habit, 2), [false, false]);
        }
        assert_eq!(round(&mut habit, 2), [false, true]);
        assert_eq!(round(&mut habit, 3), [false, true, false], "a guess may be wrong");
        assert_eq!(round(&mut habit, 3), [false, false, false], "then it learns anew");
    }

    #[test]
    fn who_never_flushes_is_never_expected_to() {
        let mut habit = Habit::default();
        assert!((0..100).all(|_| !habit.wrote()));
        for _ in 0..10 {
            habit.flushed();
        }
        assert!(!habit.wrote(), "flushes of nothing");
    }
}
