//! Before a replay: the leaves that the journal touches, loaded in the order in which the store keeps them.
//!
//! A record at a time they would be looked up in random order, each in a block of the store of its own.
//! Invariants: what is loaded is what a look-up would find; leaving any of it out costs time only.
//! Absent: the replay itself (`recovery.rs`).

use std::collections::{BTreeMap, BTreeSet};

use super::Engine;
use crate::error::Result;
use crate::map::record::{Change, address, changes};
use crate::pool::journal::{Kind, Record};
use crate::units::{Epoch, LeafIndex, TreeId};

/// The leaves that writes of the journal touch, by the head they are addressed to.
#[derive(Default)]
pub(super) struct Touched(BTreeMap<(TreeId, Epoch), BTreeSet<u64>>);

impl Touched {
    /// Adds the next record.
    pub(super) fn add(&mut self, record: &Record) -> Result<()> {
        if record.kind != Kind::Data {
            return Ok(());
        }
        let leaves = self.0.entry(address(&record.body)?).or_default();
        for change in changes(&record.body) {
            if let change @ Change::Write { .. } = change? {
                leaves.extend(change.range().leaves());
            }
        }
        Ok(())
    }

    /// Those of a head. One that the journal makes is not known yet: its records are addressed to a node
    /// that does not exist, and with a single head in the tree can be no other's.
    fn of(&self, tree: TreeId, node: Epoch, single: bool) -> BTreeSet<u64> {
        let all = self.0.range((tree, Epoch(0))..=(tree, Epoch(u32::MAX)));
        let own = all.filter(|((_, other), _)| single || *other == node);
        own.flat_map(|(_, leaves)| leaves.iter().copied()).collect()
    }
}

impl Engine {
    /// Loads what a replay is going to need, at most half of what the cache holds.
    pub(super) fn warm(&self, touched: &Touched) -> Result<()> {
        let heads = self.heads();
        let mut room = self.shared.budget.clean_limit / 2;
        for ((tree, node), view) in &heads {
            let single = heads.keys().filter(|(other, _)| other == tree).count() == 1;
            for leaf in touched.of(*tree, *node, single).into_iter().take(room) {
                view.look_up(&self.shared, LeafIndex(leaf).blocks(), |_, _| {})?;
                room -= 1;
            }
        }
        Ok(())
    }
}
