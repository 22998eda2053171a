//! Samples of usage, in the catalogue.
//!
//! Invariants: samples are in the order of their times, one for each; those too old go when a new one comes.
//! Absent: what is sampled (`engine/usage.rs`).

use super::Catalogue;
use crate::engine::usage::{KEPT, UsageRecord};

impl Catalogue {
    /// Adds a sample and lets old ones go.
    pub fn put_usage(&mut self, sample: UsageRecord) {
        let end = sample.at;
        self.dirty.insert(key(end));
        self.usage.retain(|old| old.at != end);
        self.usage.push_back(sample);
        while let Some(old) = self.usage.front().map(|old| old.at).filter(|at| at + KEPT < end) {
            self.usage.pop_front();
            self.dirty.insert(key(old));
        }
    }

    /// The sample of this time, as its key has it.
    pub(super) fn usage_at(&self, at: &str) -> Option<&UsageRecord> {
        let at: u64 = at.parse().ok()?;
        self.usage.iter().find(|sample| sample.at == at)
    }
}

fn key(at: u64) -> String {
    format!("usage/{at:020}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::usage::EVERY;

    fn sample(at: u64) -> UsageRecord {
        UsageRecord { at, used: at, ..UsageRecord::default() }
    }

    /// A year of samples leaves those of fifteen days, in memory and in the store.
    #[test]
    fn history_is_bounded() {
        let mut catalogue = Catalogue::default();
        let mut kept = std::collections::BTreeSet::new();
        for hour in 0..24 * 365 {
            catalogue.put_usage(sample(hour * EVERY));
            for (key, value) in catalogue.take_changes().unwrap() {
                if value.is_some() {
                    kept.insert(key)
                } else {
                    kept.remove(&key)
                };
            }
        }
        assert_eq!(catalogue.usage.len(), 361);
        assert_eq!(kept.len(), 361);
        assert_eq!(catalogue.usage.front().unwrap().at, (24 * 365 - 361) * EVERY);
    }

    /// Replay applies a record again that a checkpoint has already.
    #[test]
    fn a_sample_that_is_applied_twice_is_there_once() {
        let mut catalogue = Catalogue::default();
        for at in [0, EVERY, EVERY] {
            catalogue.put_usage(sample(at));
        }
        assert_eq!(catalogue.usage.iter().map(|one| one.at).collect::<Vec<_>>(), [0, EVERY]);
    }
}
