//! Healing: a block that is not what was written is stored anew at another place, for all who share it.
//!
//! Invariants: the same block, of the same birth, is at the new place in every version of its leaf, so it
//! belongs to whom it belonged, and no counter changes; the old place is freed once; the new one holds the block
//! durably before the record is appended.
//! Absent: where the contents come from (`engine/heal.rs`, `vault/heal.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustc_hash::FxHashMap;

use super::leaf::{Entry, Leaf};
use super::tree::Tree;
use super::view::Shared;
use crate::error::{Error, Result};
use crate::faults;
use crate::pool::allocator::Run;
use crate::pool::journal::Kind;
use crate::units::{Epoch, Lba, Pbn, Seq, TreeId};

/// One block, as the journal keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub tree: TreeId,
    pub lba: Lba,
    pub from: Pbn,
    pub to: Pbn,
    pub crc: u32,
    pub salt: u32,
}

impl Move {
    /// Length of an encoded one.
    pub const BYTES: usize = 36;

    /// The body of its record.
    #[must_use]
    pub fn encode(&self) -> [u8; Move::BYTES] {
        let mut body = [0; Move::BYTES];
        body[..4].copy_from_slice(&self.tree.0.to_le_bytes());
        body[4..12].copy_from_slice(&self.lba.0.to_le_bytes());
        body[12..20].copy_from_slice(&self.from.0.to_le_bytes());
        body[20..28].copy_from_slice(&self.to.0.to_le_bytes());
        body[28..32].copy_from_slice(&self.crc.to_le_bytes());
        body[32..].copy_from_slice(&self.salt.to_le_bytes());
        body
    }

    /// Reads the body of a record.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub fn decode(body: &[u8]) -> Result<Move> {
        let body: &[u8; Move::BYTES] =
            body.try_into().map_err(|_| Error::corrupt("a record of a move cannot be decoded"))?;
        let u32_at = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("8 bytes"));
        Ok(Move {
            tree: TreeId(u32_at(0)),
            lba: Lba(u64_at(4)),
            from: Pbn(u64_at(12)),
            to: Pbn(u64_at(20)),
            crc: u32_at(28),
            salt: u32_at(32),
        })
    }

    fn moved(&self, entry: Entry) -> Option<Entry> {
        match entry {
            Entry::Data { pbn, birth, .. } if pbn == self.from => {
                Some(Entry::Data { pbn: self.to, birth, crc: self.crc, salt: self.salt })
            }
            _ => None,
        }
    }
}

/// What the map says of a stored block, if some node has it.
///
/// # Errors
/// The store cannot be read.
pub fn find(shared: &Shared, tree: &Tree, lba: Lba, pbn: Pbn) -> Result<Option<Entry>> {
    let versions = versions(shared, tree, lba)?;
    let mut entries = versions.values().map(|version| version.leaf.get(lba.split().1));
    Ok(entries.find(|entry| matches!(entry, Entry::Data { pbn: p, .. } if *p == pbn)))
}

/// Moves a block whose contents are at its new place already. Returns whether anybody still has it at the
/// old one; if not, nothing has happened. The caller sees to it that no checkpoint runs.
///
/// # Errors
/// The pool has stopped, or the store cannot be read.
pub fn run(shared: &Shared, tree: &Tree, block: Move) -> Result<bool> {
    // Alone: neither a write nor a step of a reclaim may have looked at what changes here.
    let _alone = shared.barrier.write();
    if find(shared, tree, block.lba, block.from)?.is_none() {
        return Ok(false);
    }
    let versions = versions(shared, tree, block.lba)?;
    let seq = shared.pool.append(Kind::Move, &block.encode())?;
    faults::fail_point("heal.journaled");
    apply(shared, tree, seq, block, versions)
        .inspect_err(|error| shared.pool.file.stop(error.message()))?;
    Ok(true)
}

/// Applies a move again, at start.
///
/// # Errors
/// `Corrupt` when it does not fit the map.
pub fn replay(shared: &Shared, tree: &Tree, seq: Seq, block: Move) -> Result<()> {
    if find(shared, tree, block.lba, block.from)?.is_none() {
        return Err(Error::corrupt(format!("no node has block {} to move", block.from)));
    }
    apply(shared, tree, seq, block, versions(shared, tree, block.lba)?)
}

/// A version of a leaf.
struct Version {
    leaf: Arc<Leaf>,
    /// It is in the view of a head only.
    dirty: bool,
}

/// The versions of a block's leaf that some node owns, by their epochs.
fn versions(shared: &Shared, tree: &Tree, lba: Lba) -> Result<BTreeMap<Epoch, Version>> {
    let (index, _) = lba.split();
    let mut found = BTreeMap::new();
    for (epoch, leaf) in shared.meta.versions(tree.id, index)? {
        found.insert(epoch, Version { leaf: Arc::new(leaf), dirty: false });
    }
    for table in tree.frozen() {
        if let Some(leaf) = table.leaves.get(&index.0).cloned() {
            found.insert(table.owner, Version { leaf, dirty: false });
        }
    }
    // What the store has of the same epoch is out of date.
    for (epoch, leaf) in tree.views().iter().filter_map(|view| view.dirty_version(index.0)) {
        found.insert(epoch, Version { leaf, dirty: true });
    }
    let nodes = tree.nodes.lock();
    found.retain(|epoch, _| {
        nodes.all.values().any(|node| node.own.contains(*epoch))
            && !nodes.dropped.contains(&(index, *epoch))
    });
    Ok(found)
}

fn apply(
    shared: &Shared,
    tree: &Tree,
    seq: Seq,
    block: Move,
    versions: BTreeMap<Epoch, Version>,
) -> Result<()> {
    let (index, slot) = block.lba.split();
    // From the first that changes on all are put in front of what the store has, in order: the last one that
    // somebody sees counts.
    let mut changed = false;
    for (owner, Version { mut leaf, dirty }) in versions {
        if dirty {
            continue;
        }
        if let Some(entry) = block.moved(leaf.get(slot)) {
            Arc::make_mut(&mut leaf).set(slot, entry);
            changed = true;
        }
        if changed {
            shared.budget.dirty.fetch_add(1, Ordering::Relaxed);
            tree.freeze(owner, FxHashMap::from_iter([(index.0, leaf)]));
        }
    }
    // Who looked a leaf up before now must not keep it.
    tree.overtake();
    for view in tree.views() {
        view.revise(index.0, |leaf| {
            if let Some(entry) = block.moved(leaf.get(slot)) {
                leaf.set(slot, entry);
            }
        });
    }
    let era = shared.pool.readers.now();
    let taken = [Run { start: block.to, len: 1 }];
    shared.pool.with_allocator(|a| a.apply(seq, era, &taken, &[block.from]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_none_other_is_taken_for_one() {
        let (tree, lba) = (TreeId(7), Lba(1 << 33));
        let block = Move { tree, lba, from: Pbn(5), to: Pbn(1 << 35), crc: 9, salt: u32::MAX };
        assert_eq!(Move::decode(&block.encode()).unwrap(), block);
        assert!(Move::decode(&block.encode()[1..]).is_err());
    }
}
