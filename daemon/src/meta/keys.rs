//! Keys of the metadata store: one place that knows their bytes.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `map` | tree (4) leaf (5) inverted epoch (4) | an encoded leaf |
//! | `own` | tree (4) epoch (4) leaf (5) | nothing: the leaf was touched in that epoch |
//! | `bits` | segment (4) | bitmap of used blocks, little-endian words |
//! | `catalogue` | `kind/id` as text | JSON |
//! | `default` | `state` | JSON: pool, opening, last applied record |
//!
//! Invariants: all numbers are big-endian, so that keys sort by number, newest epoch first within a leaf.
//! Absent: values.

use crate::units::{Epoch, LeafIndex, TreeId};

/// Tree and leaf: what all versions of one leaf share.
pub const LEAF_PREFIX: usize = 9;

/// The key of a version of a leaf.
#[must_use]
pub fn version(tree: TreeId, leaf: LeafIndex, epoch: Epoch) -> [u8; 13] {
    let mut key = [0; 13];
    key[..LEAF_PREFIX].copy_from_slice(&leaf_prefix(tree, leaf));
    key[LEAF_PREFIX..].copy_from_slice(&(!epoch.0).to_be_bytes());
    key
}

/// What the keys of all versions of a leaf begin with.
#[must_use]
pub fn leaf_prefix(tree: TreeId, leaf: LeafIndex) -> [u8; LEAF_PREFIX] {
    let mut key = [0; LEAF_PREFIX];
    key[..4].copy_from_slice(&tree.0.to_be_bytes());
    key[4..].copy_from_slice(&leaf.0.to_be_bytes()[3..]);
    key
}

/// Tree, leaf and epoch of a key of the map, or `None` when it is not one.
#[must_use]
pub fn parse_version(key: &[u8]) -> Option<(TreeId, LeafIndex, Epoch)> {
    let key: &[u8; 13] = key.try_into().ok()?;
    let (tree, rest) = key.split_first_chunk::<4>()?;
    let (leaf, rest) = rest.split_first_chunk::<5>()?;
    let epoch = !u32::from_be_bytes(rest.try_into().ok()?);
    Some((TreeId(u32::from_be_bytes(*tree)), leaf_from(*leaf), Epoch(epoch)))
}

/// The key that says a leaf was touched in an epoch.
#[must_use]
pub fn touched(tree: TreeId, epoch: Epoch, leaf: LeafIndex) -> [u8; 13] {
    let mut key = [0; 13];
    key[..4].copy_from_slice(&tree.0.to_be_bytes());
    key[4..8].copy_from_slice(&epoch.0.to_be_bytes());
    key[8..].copy_from_slice(&leaf.0.to_be_bytes()[3..]);
    key
}

/// Tree, epoch and leaf of a key of the touched index.
#[must_use]
pub fn parse_touched(key: &[u8]) -> Option<(TreeId, Epoch, LeafIndex)> {
    let key: &[u8; 13] = key.try_into().ok()?;
    let (tree, rest) = key.split_first_chunk::<4>()?;
    let (epoch, rest) = rest.split_first_chunk::<4>()?;
    let leaf = leaf_from(rest.try_into().ok()?);
    Some((TreeId(u32::from_be_bytes(*tree)), Epoch(u32::from_be_bytes(*epoch)), leaf))
}

fn leaf_from(bytes: [u8; 5]) -> LeafIndex {
    let mut wide = [0; 8];
    wide[3..].copy_from_slice(&bytes);
    LeafIndex(u64::from_be_bytes(wide))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_read_back_and_sort_newest_first(
            tree in any::<u32>(), leaf in 0u64..1 << 40, a in 0u32..1 << 24, b in 0u32..1 << 24,
        ) {
            let (tree, leaf) = (TreeId(tree), LeafIndex(leaf));
            let key = version(tree, leaf, Epoch(a));
            prop_assert_eq!(parse_version(&key), Some((tree, leaf, Epoch(a))));
            prop_assert_eq!(key.cmp(&version(tree, leaf, Epoch(b))), b.cmp(&a));
            let key = touched(tree, Epoch(a), leaf);
            prop_assert_eq!(parse_touched(&key), Some((tree, Epoch(a), leaf)));
        }
    }
}
