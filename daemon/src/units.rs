//! Units and names: the numbers of the engine as types, so that blocks, bytes and epochs cannot be mixed.
//!
//! Invariants: a [`ByteRange`] never overflows `u64`; a [`BlockRange`] is half-open; ids are a prefix
//! and sixteen random lower-case letters or digits, never reused.
//! Absent: anything that knows what a unit is used for.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Bytes in a block, the unit of the map and of checksums.
pub const BLOCK_SIZE: u64 = 4096;
/// The same, as a buffer length.
pub const BLOCK_BYTES: usize = 4096;
/// Consecutive blocks that share one map entry in the metadata store (256 KiB of disk).
pub const LEAF_BLOCKS: u64 = 64;

/// The index of a block within a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lba(pub u64);

impl Lba {
    /// The leaf that maps this block, and the slot within it.
    #[must_use]
    pub fn split(self) -> (LeafIndex, usize) {
        let slot = (self.0 % LEAF_BLOCKS) as usize;
        (LeafIndex(self.0 / LEAF_BLOCKS), slot)
    }
}

/// The index of a leaf within a disk: `LEAF_BLOCKS` blocks each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeafIndex(pub u64);

impl LeafIndex {
    /// The first block of the leaf.
    #[must_use]
    pub fn first(self) -> Lba {
        Lba(self.0 * LEAF_BLOCKS)
    }

    /// The blocks of the leaf.
    #[must_use]
    pub fn blocks(self) -> BlockRange {
        BlockRange { start: self.first().0, end: self.first().0 + LEAF_BLOCKS }
    }
}

/// The index of a block in the pool file; its byte offset is 4096 times this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pbn(pub u64);

impl Pbn {
    /// The byte offset in the pool file.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.0 * BLOCK_SIZE
    }
}

/// A point in the life of one tree: each snapshot, rollback and clone takes the next. At most 24 bits.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u32);

/// One family of disks and snapshots that share blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TreeId(pub u32);

/// The position of a record in the order of effects; grows by one with each journal record.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Seq(pub u64);

impl Seq {
    /// The sequence number after this one.
    #[must_use]
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

/// A half-open range of blocks of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRange {
    pub start: u64,
    pub end: u64,
}

impl BlockRange {
    #[must_use]
    pub fn new(start: u64, end: u64) -> Self {
        debug_assert!(start <= end, "a range runs forwards");
        BlockRange { start, end }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    #[must_use]
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// The leaves that hold these blocks.
    #[must_use]
    pub fn leaves(&self) -> Range<u64> {
        if self.is_empty() {
            return 0..0;
        }
        self.start / LEAF_BLOCKS..self.end.div_ceil(LEAF_BLOCKS)
    }

    /// The part of this range that lies in `other`.
    #[must_use]
    pub fn clip(&self, other: BlockRange) -> BlockRange {
        let start = self.start.max(other.start);
        BlockRange { start, end: self.end.min(other.end).max(start) }
    }
}

/// A range of bytes of a disk that has been checked against overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub start: u64,
    pub end: u64,
}

impl ByteRange {
    /// The range `offset .. offset + length`, or `None` when it leaves 64 bits.
    #[must_use]
    pub fn new(offset: u64, length: u64) -> Option<Self> {
        Some(ByteRange { start: offset, end: offset.checked_add(length)? })
    }

    #[must_use]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The blocks that lie wholly inside.
    #[must_use]
    pub fn inner_blocks(&self) -> BlockRange {
        let start = self.start.div_ceil(BLOCK_SIZE);
        BlockRange { start, end: (self.end / BLOCK_SIZE).max(start) }
    }

    /// The blocks that are touched at all.
    #[must_use]
    pub fn outer_blocks(&self) -> BlockRange {
        BlockRange { start: self.start / BLOCK_SIZE, end: self.end.div_ceil(BLOCK_SIZE) }
    }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// What every id of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// A fresh random id.
            ///
            /// # Errors
            /// The system's random source does not answer.
            pub fn random() -> Result<Self> {
                random_suffix().map(|suffix| $name(format!("{}{suffix}", $prefix)))
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                $name(text.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id_type!(
    /// The id of a disk, `d-…`.
    DiskId, "d-"
);
id_type!(
    /// The id of a snapshot, `s-…`.
    SnapshotId, "s-"
);
id_type!(
    /// The id of a group of snapshots, `ssg-…`.
    GroupId, "ssg-"
);
id_type!(
    /// The id of an instance, `i-…`.
    InstanceId, "i-"
);
id_type!(
    /// The id of an image, `m-…`.
    ImageId, "m-"
);
id_type!(
    /// The id of a job, `j-…`.
    JobId, "j-"
);
id_type!(
    /// The id of a repository, `r-…`, which its format file has.
    RepoId, "r-"
);
id_type!(
    /// The id of a policy, `sp-…`.
    PolicyId, "sp-"
);
id_type!(
    /// The id of a copy of a snapshot, `c-…`.
    CopyId, "c-"
);

fn random_suffix() -> Result<String> {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghijkmnpqrstuvwx";
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|e| Error::internal(format!("no random numbers: {e}")))?;
    Ok(bytes.iter().map(|b| char::from(ALPHABET[usize::from(b % 32)])).collect())
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Pbn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_range_that_overflows_is_refused() {
        assert!(ByteRange::new(u64::MAX, 1).is_none());
        assert!(ByteRange::new(u64::MAX - 1, 1).is_some());
    }

    #[test]
    fn inner_and_outer_blocks_differ_by_the_ragged_edges() {
        let range = ByteRange::new(100, 8192).unwrap();
        assert_eq!(range.inner_blocks(), BlockRange::new(1, 2));
        assert_eq!(range.outer_blocks(), BlockRange::new(0, 3));
        let small = ByteRange::new(100, 10).unwrap();
        assert!(small.inner_blocks().is_empty());
        assert_eq!(small.outer_blocks(), BlockRange::new(0, 1));
    }

    #[test]
    fn ids_carry_their_prefix_and_differ() {
        let (a, b) = (DiskId::random().unwrap(), DiskId::random().unwrap());
        assert!(a.as_str().starts_with("d-") && a.as_str().len() == 18);
        assert_ne!(a, b);
    }
}
