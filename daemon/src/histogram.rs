//! A histogram of durations that many threads add to.
//!
//! Invariants: adding is a few relaxed additions and takes no lock; the bounds are the same for every histogram of
//! the daemon, so that they can be added up; counters only grow.
//! Absent: quantiles, which whoever shows them works out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds; one more bucket has what is longer.
pub const BOUNDS_US: [u64; 15] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    5_000_000, 30_000_000,
];
/// The buckets, with the last.
pub const BUCKETS: usize = BOUNDS_US.len() + 1;

/// Durations, counted.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

/// A histogram at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Not cumulative: each bucket has what no smaller one has.
    pub buckets: [u64; BUCKETS],
    pub nanos: u64,
}

impl Histogram {
    /// Adds `count` things that took so long each.
    pub fn add(&self, count: u64, each: Duration) {
        let bucket = BOUNDS_US.partition_point(|bound| u128::from(*bound) < each.as_micros());
        self.buckets[bucket].fetch_add(count, Ordering::Relaxed);
        let nanos = u64::try_from(each.as_nanos()).unwrap_or(u64::MAX).saturating_mul(count);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What has been added so far. Buckets and sum are read one after the other, so that an addition at this
    /// moment may be in one of them only.
    #[must_use]
    pub fn counted(&self) -> Counted {
        let mut counted =
            Counted { nanos: self.nanos.load(Ordering::Relaxed), ..Counted::default() };
        for (to, from) in counted.buckets.iter_mut().zip(&self.buckets) {
            *to = from.load(Ordering::Relaxed);
        }
        counted
    }
}

impl Counted {
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Seconds in all.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        Duration::from_nanos(self.nanos).as_secs_f64()
    }

    pub fn merge(&mut self, other: &Counted) {
        for (to, from) in self.buckets.iter_mut().zip(&other.buckets) {
            *to += from;
        }
        self.nanos = self.nanos.saturating_add(other.nanos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_bucket_it_ends() {
        let histogram = Histogram::default();
        histogram.add(3, Duration::from_micros(50));
        histogram.add(1, Duration::from_micros(51));
        histogram.add(1, Duration::from_secs(3600));
        let counted = histogram.counted();
        assert_eq!(
            (counted.buckets[0], counted.buckets[1], counted.buckets[BUCKETS - 1]),
            (3, 1, 1)
        );
        assert_eq!(counted.count(), 5);
        assert!((counted.seconds() - 3_600.000_201).abs() < 1e-9, "{}", counted.seconds());
    }

    #[test]
    fn merged_histograms_have_what_both_have() {
        let (one, other) = (Histogram::default(), Histogram::default());
        one.add(2, Duration::from_millis(1));
        other.add(5, Duration::from_millis(7));
        let mut both = one.counted();
        both.merge(&other.counted());
        assert_eq!((both.count(), both.nanos), (7, 37_000_000));
    }
}
