//! Segments whose blocks were written and freed again since the last sync began.
//!
//! Their pages are in memory and not on their way to the device: who writes there again needs no memory and gives the device
//! nothing more to do, while elsewhere both what was freed and what is new would have to be written.
//!
//! Invariants: what is told here decides where is written next, never what is available.
//! Absent: the segments (`allocator.rs`).

use std::collections::{BTreeMap, VecDeque};

/// What was freed young, by segment.
#[derive(Debug, Default)]
pub struct Recycling {
    freed: BTreeMap<u32, u32>,
    ready: VecDeque<u32>,
}

impl Recycling {
    /// Takes note of blocks of a segment that became available. With `enough` of them it is worth going back to.
    pub fn freed(&mut self, segment: u32, blocks: u32, enough: u32) {
        let before = self.freed.entry(segment).or_default();
        let now = *before + blocks;
        if *before < enough && now >= enough {
            self.ready.push_back(segment);
        }
        *before = now;
    }

    /// The segment to go back to first.
    pub fn next(&mut self) -> Option<u32> {
        let segment = self.ready.pop_front()?;
        self.freed.remove(&segment);
        Some(segment)
    }

    /// A sync begins: it writes what is there.
    pub fn forget(&mut self) {
        self.freed.clear();
        self.ready.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_ready_once_when_enough_of_it_was_freed() {
        let mut recycling = Recycling::default();
        recycling.freed(7, 2, 4);
        assert_eq!(recycling.next(), None);
        recycling.freed(3, 5, 4);
        recycling.freed(7, 2, 4);
        recycling.freed(7, 9, 4);
        assert_eq!(
            [recycling.next(), recycling.next(), recycling.next()],
            [Some(3), Some(7), None]
        );
        recycling.freed(7, 4, 4);
        assert_eq!(recycling.next(), Some(7), "it was written to in between");
        recycling.freed(7, 4, 4);
        recycling.forget();
        assert_eq!(recycling.next(), None);
    }
}
