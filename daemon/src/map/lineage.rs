//! Lineage: which epochs a head or snapshot can see, and which node owns each.
//!
//! Invariants: spans are sorted and disjoint; an ancestor's epochs are all smaller than a descendant's.
//! Absent: the nodes themselves (`tree.rs`).

use serde::{Deserialize, Serialize};

use crate::units::Epoch;

/// The epochs that one node owns: its own and those of deleted nodes merged into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EpochSet(Vec<(u32, u32)>);

impl EpochSet {
    /// The set of one epoch.
    #[must_use]
    pub fn one(epoch: Epoch) -> EpochSet {
        EpochSet(vec![(epoch.0, epoch.0)])
    }

    #[must_use]
    pub fn contains(&self, epoch: Epoch) -> bool {
        let at = self.0.partition_point(|(_, high)| *high < epoch.0);
        self.0.get(at).is_some_and(|(low, _)| *low <= epoch.0)
    }

    /// The largest epoch in the set.
    #[must_use]
    pub fn newest(&self) -> Epoch {
        Epoch(self.0.last().map_or(0, |(_, high)| *high))
    }

    /// Adds another set.
    pub fn absorb(&mut self, other: &EpochSet) {
        let mut all = std::mem::take(&mut self.0);
        all.extend_from_slice(&other.0);
        all.sort_unstable();
        for (low, high) in all {
            match self.0.last_mut() {
                Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
                _ => self.0.push((low, high)),
            }
        }
    }

    /// Each epoch, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Epoch> + '_ {
        self.0.iter().flat_map(|(low, high)| (*low..=*high).map(Epoch))
    }

    fn spans(&self) -> &[(u32, u32)] {
        &self.0
    }
}

/// All epochs a view sees, with their owners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// `(low, high, owner)`, ascending.
    spans: Vec<(u32, u32, Epoch)>,
}

impl Lineage {
    /// The lineage made of these nodes and the epochs they own, in any order.
    pub fn new<'a>(nodes: impl Iterator<Item = (Epoch, &'a EpochSet)>) -> Lineage {
        let mut spans: Vec<_> = nodes
            .flat_map(|(node, own)| own.spans().iter().map(move |(l, h)| (*l, *h, node)))
            .collect();
        spans.sort_unstable();
        Lineage { spans }
    }

    /// The node that owns an epoch, if the view sees it.
    #[must_use]
    pub fn owner(&self, epoch: Epoch) -> Option<Epoch> {
        let at = self.spans.partition_point(|(_, high, _)| *high < epoch.0);
        self.spans.get(at).filter(|(low, _, _)| *low <= epoch.0).map(|(_, _, node)| *node)
    }

    /// The epochs after one that the view sees.
    #[must_use]
    pub fn after(&self, epoch: Epoch) -> EpochSet {
        let later = self.spans.iter().filter(|(_, high, _)| *high > epoch.0);
        EpochSet(later.map(|(low, high, _)| ((*low).max(epoch.0 + 1), *high)).collect())
    }

    /// The largest epoch the view sees.
    #[must_use]
    pub fn newest(&self) -> Epoch {
        Epoch(self.spans.last().map_or(0, |(_, high, _)| *high))
    }
}

/// A test of epochs: what a look-up of a leaf version asks.
pub trait Sees {
    /// Whether versions of this epoch are visible.
    fn sees(&self, epoch: Epoch) -> bool;
    /// No visible epoch is larger.
    fn newest(&self) -> Epoch;
}

impl Sees for Lineage {
    fn sees(&self, epoch: Epoch) -> bool {
        self.owner(epoch).is_some()
    }

    fn newest(&self) -> Epoch {
        Lineage::newest(self)
    }
}

impl Sees for EpochSet {
    fn sees(&self, epoch: Epoch) -> bool {
        self.contains(epoch)
    }

    fn newest(&self) -> Epoch {
        EpochSet::newest(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge_and_gaps_stay() {
        let mut set = EpochSet::one(Epoch(4));
        set.absorb(&EpochSet::one(Epoch(2)));
        assert!(set.contains(Epoch(2)) && !set.contains(Epoch(3)) && set.contains(Epoch(4)));
        set.absorb(&EpochSet::one(Epoch(3)));
        assert_eq!(set, EpochSet(vec![(2, 4)]));
        assert_eq!(set.iter().count(), 3);
    }

    #[test]
    fn owners_are_found_and_other_branches_are_not() {
        let (a, b) = (EpochSet(vec![(1, 1)]), EpochSet(vec![(2, 2), (5, 6)]));
        let lineage = Lineage::new([(Epoch(6), &b), (Epoch(1), &a)].into_iter());
        assert_eq!(lineage.owner(Epoch(1)), Some(Epoch(1)));
        assert_eq!(lineage.owner(Epoch(5)), Some(Epoch(6)));
        assert_eq!(lineage.owner(Epoch(3)), None);
        assert_eq!(lineage.newest(), Epoch(6));
        assert_eq!(lineage.after(Epoch(1)), b);
        assert_eq!(lineage.after(Epoch(5)), EpochSet::one(Epoch(6)));
        assert_eq!(lineage.after(Epoch(6)).iter().count(), 0);
    }
}
