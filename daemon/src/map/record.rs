//! The body of a data record: block changes of one head, as the journal keeps them.
//!
//! Invariants: what was staged is what is applied, live and at replay: both walk these bytes. A record
//! names the tree and the epoch of one head; the epoch is filled in under the head's lock.
//! Absent: other kinds of records (`engine/ops.rs`). Bytes are described in FORMAT.md.

use crate::error::{Error, Result};
use crate::pool::allocator::Run;
use crate::pool::journal::{HEADER_BYTES, MAX_RECORD};
use crate::units::{BlockRange, Epoch, Lba, Pbn, TreeId};

const TREE_BYTES: usize = 8;
const WRITE: u32 = 1;
const ZERO: u32 = 2;
const HOLE: u32 = 3;
/// As `WRITE`, with a salt.
const SEALED: u32 = 4;
/// As `ZERO`, also where nothing is mapped.
const BLANK: u32 = 5;
/// Bytes of the head of a write: kind and count, block of the disk, block of the pool, salt.
const WRITE_BYTES: usize = 24;
const COUNT_BITS: u32 = 28;
const COUNT_MASK: u32 = (1 << COUNT_BITS) - 1;

/// Blocks that one change can cover at most.
pub const MAX_COUNT: u64 = COUNT_MASK as u64;

/// One change, borrowed from a record.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// Blocks from `lba` on are now at `pbn` and following, with these checksums; encrypted with `salt`
    /// unless that is zero.
    Write { lba: Lba, pbn: Pbn, salt: u32, crcs: &'a [[u8; 4]] },
    /// The blocks read as zeros and are known to be zero.
    Zero(BlockRange),
    /// The blocks are trimmed.
    Hole(BlockRange),
    /// As `Zero`, and blocks that nothing maps become known to be zero too.
    Blank(BlockRange),
}

impl Change<'_> {
    /// The blocks it covers.
    #[must_use]
    pub fn range(&self) -> BlockRange {
        match self {
            Change::Write { lba, crcs, .. } => BlockRange::new(lba.0, lba.0 + crcs.len() as u64),
            Change::Zero(range) | Change::Hole(range) | Change::Blank(range) => *range,
        }
    }
}

/// A record being put together.
#[derive(Debug)]
pub struct Staged {
    body: Vec<u8>,
}

impl Default for Staged {
    fn default() -> Self {
        Staged { body: vec![0; TREE_BYTES] }
    }
}

impl Staged {
    /// Forgets what was staged and keeps the memory.
    pub fn clear(&mut self) {
        self.body.truncate(TREE_BYTES);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.body.len() == TREE_BYTES
    }

    /// Whether `blocks` more written blocks in `runs` runs still fit the record.
    #[must_use]
    pub fn has_room(&self, blocks: usize, runs: usize) -> bool {
        HEADER_BYTES + self.body.len() + blocks * 4 + runs * WRITE_BYTES <= MAX_RECORD
    }

    /// Adds blocks written to the pool; `salt` is zero for those that are not encrypted.
    pub fn write(&mut self, lba: Lba, pbn: Pbn, salt: u32, crcs: &[u32]) {
        let kind = if salt == 0 { WRITE } else { SEALED };
        self.head(kind, crcs.len() as u64, lba.0);
        self.body.extend_from_slice(&pbn.0.to_le_bytes());
        if salt != 0 {
            self.body.extend_from_slice(&salt.to_le_bytes());
        }
        for crc in crcs {
            self.body.extend_from_slice(&crc.to_le_bytes());
        }
    }

    /// Adds blocks that become zero.
    pub fn zero(&mut self, range: BlockRange) {
        self.head(ZERO, range.len(), range.start);
    }

    /// Adds blocks that are trimmed.
    pub fn hole(&mut self, range: BlockRange) {
        self.head(HOLE, range.len(), range.start);
    }

    /// Adds blocks that become zero, also where nothing is mapped: of a disk that is being filled.
    pub fn blank(&mut self, range: BlockRange) {
        self.head(BLANK, range.len(), range.start);
    }

    /// The finished body, addressed to a head.
    pub fn addressed(&mut self, tree: TreeId, epoch: Epoch) -> &[u8] {
        self.body[..4].copy_from_slice(&tree.0.to_le_bytes());
        self.body[4..8].copy_from_slice(&epoch.0.to_le_bytes());
        &self.body
    }

    /// The body as it is; its address is only valid after [`Staged::addressed`].
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.body
    }

    /// The runs of the pool that the staged writes name.
    #[must_use]
    pub fn runs(&self) -> Vec<Run> {
        let written = changes(&self.body).filter_map(|change| match change {
            Ok(Change::Write { pbn, crcs, .. }) => {
                Some(Run { start: pbn, len: u32::try_from(crcs.len()).ok()? })
            }
            _ => None,
        });
        written.collect()
    }

    fn head(&mut self, kind: u32, count: u64, lba: u64) {
        let count = u32::try_from(count).expect("callers split longer ranges");
        assert!(count <= COUNT_MASK, "callers split longer ranges");
        self.body.extend_from_slice(&(kind << COUNT_BITS | count).to_le_bytes());
        self.body.extend_from_slice(&lba.to_le_bytes());
    }
}

/// The tree and the head that a record is addressed to.
///
/// # Errors
/// `Corrupt` when the body is too short.
pub fn address(body: &[u8]) -> Result<(TreeId, Epoch)> {
    let (tree, rest) = body.split_first_chunk::<4>().ok_or_else(broken)?;
    let (epoch, _) = rest.split_first_chunk::<4>().ok_or_else(broken)?;
    Ok((TreeId(u32::from_le_bytes(*tree)), Epoch(u32::from_le_bytes(*epoch))))
}

/// The changes in a record, in order.
///
/// # Errors
/// `Corrupt` at the first thing that is no change.
pub fn changes(body: &[u8]) -> impl Iterator<Item = Result<Change<'_>>> {
    let mut rest = body.get(TREE_BYTES..).unwrap_or(&[]);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let next = parse(&mut rest).ok_or_else(broken);
        if next.is_err() {
            rest = &[];
        }
        Some(next)
    })
}

fn parse<'a>(rest: &mut &'a [u8]) -> Option<Change<'a>> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    let (lba, tail) = tail.split_first_chunk::<8>()?;
    let (head, lba) = (u32::from_le_bytes(*head), u64::from_le_bytes(*lba));
    let count = head & COUNT_MASK;
    let range = BlockRange::new(lba, lba.checked_add(u64::from(count))?);
    *rest = tail;
    match head >> COUNT_BITS {
        kind @ (WRITE | SEALED) => {
            let (pbn, mut tail) = tail.split_first_chunk::<8>()?;
            let mut salt = 0;
            if kind == SEALED {
                let (found, rest) = tail.split_first_chunk::<4>()?;
                (salt, tail) = (u32::from_le_bytes(*found), rest);
            }
            let (crcs, tail) = tail.split_at_checked(count as usize * 4)?;
            *rest = tail;
            let pbn = Pbn(u64::from_le_bytes(*pbn));
            Some(Change::Write { lba: Lba(lba), pbn, salt, crcs: crcs.as_chunks::<4>().0 })
        }
        ZERO => Some(Change::Zero(range)),
        HOLE => Some(Change::Hole(range)),
        BLANK => Some(Change::Blank(range)),
        _ => None,
    }
}

fn broken() -> Error {
    Error::corrupt("a data record of the journal cannot be decoded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_read_back_in_order() {
        let mut staged = Staged::default();
        staged.write(Lba(5), Pbn(77), 0, &[1, 2]);
        staged.write(Lba(8), Pbn(90), 6, &[3]);
        staged.zero(BlockRange::new(9, 12));
        staged.hole(BlockRange::new(0, 1 << 20));
        staged.blank(BlockRange::new(64, 70));
        let body = staged.addressed(TreeId(3), Epoch(4)).to_vec();
        assert_eq!(address(&body).unwrap(), (TreeId(3), Epoch(4)));
        let back: Vec<_> = changes(&body).collect::<Result<_>>().unwrap();
        assert_eq!(back.len(), 5);
        assert!(matches!(back[0], Change::Write { lba: Lba(5), pbn: Pbn(77), salt: 0, crcs }
            if crcs == [1u32.to_le_bytes(), 2u32.to_le_bytes()]));
        assert!(matches!(back[1], Change::Write { lba: Lba(8), pbn: Pbn(90), salt: 6, crcs }
            if crcs == [3u32.to_le_bytes()]));
        assert_eq!(back[2].range(), BlockRange::new(9, 12));
        assert_eq!(back[3].range(), BlockRange::new(0, 1 << 20));
        assert!(matches!(back[4], Change::Blank(BlockRange { start: 64, end: 70 })));
    }

    #[test]
    fn a_cut_record_is_an_error_not_a_panic() {
        let mut staged = Staged::default();
        staged.write(Lba(5), Pbn(77), 9, &[1, 2, 3]);
        let body = staged.addressed(TreeId(3), Epoch(4));
        for cut in 9..body.len() {
            assert!(changes(&body[..cut]).any(|c| c.is_err()), "cut at {cut}");
        }
    }
}
