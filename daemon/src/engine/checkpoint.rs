//! The checkpoint: moves the map from memory to the store, so that the journal can advance.
//!
//! Invariants: everything it writes is the state after one record, cut while nobody changes anything;
//! that record is durable before the store is (hazard H1); the superblock names the record only after
//! the store holds it; journal space is used again only after the superblock does.
//! Absent: when (`engine/background.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::Engine;
use super::catalogue::encode;
use crate::error::Result;
use crate::faults;
use crate::map::leaf::Leaf;
use crate::map::tree::{Frozen, Tree};
use crate::meta::{Changes, State};
use crate::units::{Epoch, LeafIndex, Seq};

/// Leaves put into a view's cache under one lock.
const KEEP_AT_ONCE: usize = 512;

/// What was cut from memory, to be written.
struct Cut {
    seq: Seq,
    position: u64,
    changes: Changes,
    trees: Vec<TreeCut>,
}

struct TreeCut {
    tree: Arc<Tree>,
    tables: Vec<Arc<Frozen>>,
    /// Nodes without a parent at the instant of the cut; a reclaim makes new ones while we write.
    roots: BTreeSet<Epoch>,
}

impl Engine {
    /// Writes a checkpoint if anything changed since the last.
    ///
    /// # Errors
    /// The pool stops on any error.
    pub fn checkpoint(&self) -> Result<()> {
        let _one_at_a_time = self.checkpointing.lock();
        let pool = &self.shared.pool;
        pool.file.check_running()?;
        if pool.journal.last() == pool.superblock().checkpoint {
            return Ok(());
        }
        self.checkpoint_now()
    }

    /// Writes a checkpoint even if no record came since the last: the check has repaired something.
    pub(super) fn force_checkpoint(&self) -> Result<()> {
        let _one_at_a_time = self.checkpointing.lock();
        self.checkpoint_now()
    }

    fn checkpoint_now(&self) -> Result<()> {
        let began = Instant::now();
        let pool = &self.shared.pool;
        // Most of the data goes out before the cut, so that little is left for the sync after it. What is held back is
        // replaced soon, and would only have to be written twice.
        if !pool.holds_back() {
            pool.sync_unasked()?;
        }
        let cut = self.cut().inspect_err(|e| pool.file.stop(e.message()))?;
        faults::fail_point("checkpoint.cut");
        pool.sync_unasked()?;
        self.write(cut).inspect_err(|e| pool.file.stop(e.message()))?;
        self.meters.checkpointed(began.elapsed());
        Ok(())
    }

    fn cut(&self) -> Result<Cut> {
        let pool = &self.shared.pool;
        let _nobody_else = self.shared.barrier.write();
        let (seq, position) = (pool.journal.last(), pool.journal.position());
        let mut changes = Changes::default();
        let mut trees = Vec::new();
        for tree in self.all_trees() {
            for view in tree.views().iter().filter(|view| view.writable) {
                let mut state = view.lock();
                if !state.is_closed() {
                    view.cut(&mut state);
                    view.store_counters(&state);
                }
            }
            cut_nodes(&tree, &mut changes)?;
            let tables = tree.frozen();
            if !tables.is_empty() {
                let roots = roots(&tree);
                trees.push(TreeCut { tree, tables, roots });
            }
        }
        changes.bits = pool.with_allocator(|a| a.take_dirty());
        changes.catalogue.append(&mut self.catalogue.write().take_changes()?);
        Ok(Cut { seq, position, changes, trees })
    }

    fn write(&self, mut cut: Cut) -> Result<()> {
        for TreeCut { tree, tables, roots } in &cut.trees {
            for table in tables {
                let is_root = roots.contains(&table.owner);
                for (index, leaf) in &table.leaves {
                    let value = (!is_root || !leaf.is_empty()).then(|| Arc::clone(leaf));
                    cut.changes.leaves.push((tree.id, LeafIndex(*index), table.owner, value));
                }
            }
        }
        let pool = &self.shared.pool;
        let superblock = pool.superblock();
        let state = State {
            pool: super::hex(&superblock.uuid),
            opening: superblock.opening,
            applied: cut.seq,
        };
        self.shared.meta.commit(&cut.changes, &state)?;
        faults::fail_point("checkpoint.written");
        pool.store_superblock(|sb| {
            sb.checkpoint = cut.seq;
            sb.tail = cut.position;
            sb.tail_opening = sb.opening;
        })?;
        faults::fail_point("checkpoint.superblock");
        pool.journal.advance_tail(cut.position);
        for TreeCut { tree, tables, .. } in &cut.trees {
            self.retire(tree, tables);
        }
        Ok(())
    }

    /// Forgets tables that are in the store and keeps their leaves at hand.
    fn retire(&self, tree: &Arc<Tree>, tables: &[Arc<Frozen>]) {
        tree.retire(tables);
        let leaves: usize = tables.iter().map(|table| table.leaves.len()).sum();
        self.shared.budget.cleaned(leaves);
        let views = tree.views();
        for table in tables.iter().rev() {
            let Some(view) = views.iter().find(|view| view.is_open_head(table.owner)) else {
                continue;
            };
            let all: Vec<(u64, Arc<Leaf>)> =
                table.leaves.iter().map(|(index, leaf)| (*index, Arc::clone(leaf))).collect();
            for some in all.chunks(KEEP_AT_ONCE) {
                view.keep_clean(table.owner, some);
            }
        }
    }
}

fn cut_nodes(tree: &Tree, changes: &mut Changes) -> Result<()> {
    let mut nodes = tree.nodes.lock();
    for (leaf, epoch) in std::mem::take(&mut nodes.dropped) {
        changes.dropped.push((tree.id, leaf, epoch));
    }
    for epoch in std::mem::take(&mut nodes.touched) {
        let key = format!("node/{}/{}", tree.id, epoch);
        let value = nodes.all.get(&epoch).map(encode).transpose()?;
        changes.catalogue.push((key, value));
    }
    if nodes.next != nodes.kept_next {
        nodes.kept_next = nodes.next;
        let next = nodes.next.to_string().into_bytes();
        changes.catalogue.push((format!("tree/{}", tree.id), Some(next)));
    }
    Ok(())
}

/// The nodes without a parent: an empty leaf of theirs need not be kept, nothing shows through it.
fn roots(tree: &Tree) -> BTreeSet<Epoch> {
    let nodes = tree.nodes.lock();
    let roots = nodes.all.iter().filter(|(_, node)| node.parent.is_none());
    roots.map(|(epoch, _)| *epoch).collect()
}
