//! Clean leaves in memory: those the store has too, kept because they may be wanted again.
//!
//! Invariants: the leaves of all views together stay within the bound of the [`Budget`], but for a few that
//! each view keeps; a leaf that was used since the clock last passed it stays.
//! Absent: dirty leaves, which nothing but a checkpoint moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::leaf::Leaf;
use super::view::{Budget, State};
use crate::units::Epoch;

/// A view keeps at least this many leaves however full the cache is.
pub(super) const CLEAN_FLOOR: usize = 64;

#[derive(Debug)]
pub(super) struct Clean {
    pub(super) leaf: Arc<Leaf>,
    /// The epoch of the version; 0 when there is none.
    pub(super) epoch: Epoch,
    pub(super) recent: AtomicBool,
}

impl State {
    pub(super) fn remove_clean(&mut self, budget: &Budget, index: u64) -> Option<Clean> {
        let removed = self.clean.remove(&index)?;
        budget.clean.fetch_sub(1, Ordering::Relaxed);
        Some(removed)
    }

    pub(super) fn insert_clean(
        &mut self,
        budget: &Budget,
        index: u64,
        leaf: Arc<Leaf>,
        epoch: Epoch,
    ) {
        while budget.clean.load(Ordering::Relaxed) >= budget.clean_limit
            && self.clean.len() > CLEAN_FLOOR
            && self.evict_one(budget)
        {}
        budget.clean.fetch_add(1, Ordering::Relaxed);
        self.clean.insert(index, Clean { leaf, epoch, recent: AtomicBool::new(false) });
        self.clock.push_back(index);
        // Leaves that became dirty left their place behind: without this the clock grows for ever.
        if self.clock.len() > 2 * self.clean.len() + CLEAN_FLOOR {
            self.clock = self.clean.keys().copied().collect();
        }
    }

    /// Second chance: the oldest leaf goes unless it was used since it was last passed over.
    pub(super) fn evict_one(&mut self, budget: &Budget) -> bool {
        while let Some(index) = self.clock.pop_front() {
            let Some(clean) = self.clean.get(&index) else { continue };
            if clean.recent.swap(false, Ordering::Relaxed) {
                self.clock.push_back(index);
                continue;
            }
            return self.remove_clean(budget, index).is_some();
        }
        false
    }
}
