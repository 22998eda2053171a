//! The table of a copy: which blocks of the disk it holds, and in which chunks they are.
//!
//! Invariants: pieces are in order, do not overlap, and lie within the disk and within their chunks; a table is
//! complete in itself, also when most of its chunks were sent with earlier copies.
//! Absent: the data (`chunk.rs`); large tables, which are cut into parts (`parts.rs`). FORMAT-VAULT.md has the bytes.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::units::{BLOCK_SIZE, CopyId};

use super::format::{hex, sha256_hex};

const MAGIC: &[u8; 8] = b"ROWDTAB1";
pub const CHUNK_ROW: usize = 44;
pub const PIECE_ROW: usize = 20;
const LEVEL: i32 = 3;
/// Bytes of an encoded table before compression: 25 million pieces.
pub const TABLE_MAX: u64 = 512 << 20;

/// A chunk: an object with blocks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// The copy it was sent with. Shared: a large disk has a quarter of a million chunks for each TiB.
    pub owner: Arc<CopyId>,
    /// SHA-256 of its blocks; of an encrypted copy, of its object.
    pub sum: [u8; 32],
    /// Bytes of its blocks.
    pub raw: u32,
    /// Bytes of the object.
    pub stored: u32,
}

impl Chunk {
    /// The key of its object.
    #[must_use]
    pub fn key(&self) -> String {
        format!("chunks/{}/{}", self.owner, hex(&self.sum))
    }

    /// Its row without its owner.
    pub fn put(&self, raw: &mut Vec<u8>) {
        raw.extend_from_slice(&self.sum);
        raw.extend_from_slice(&self.raw.to_le_bytes());
        raw.extend_from_slice(&self.stored.to_le_bytes());
    }
}

/// A stretch of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The first block of the disk.
    pub start: u64,
    pub blocks: u32,
    /// Index of the chunk.
    pub chunk: u32,
    /// The first block within the chunk.
    pub at: u32,
}

impl Piece {
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + u64::from(self.blocks)
    }

    /// Its row.
    pub fn put(&self, raw: &mut Vec<u8>) {
        raw.extend_from_slice(&self.start.to_le_bytes());
        for field in [self.blocks, self.chunk, self.at] {
            raw.extend_from_slice(&field.to_le_bytes());
        }
    }
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub chunks: Vec<Chunk>,
    pub pieces: Vec<Piece>,
}

impl Table {
    /// This table without the blocks in `changed` (in order, by first and end), and with `new` in it. Chunks
    /// that nothing needs any more are left out.
    #[must_use]
    pub fn with(&self, changed: &[(u64, u64)], new: &Table) -> Table {
        let mut pieces = Vec::with_capacity(self.pieces.len() + new.pieces.len());
        let mut ranges = changed.iter().copied().peekable();
        for piece in &self.pieces {
            let mut rest = *piece;
            while ranges.peek().is_some_and(|(_, end)| *end <= rest.start) {
                ranges.next();
            }
            let mut seen = ranges.clone();
            let mut whole = true;
            while let Some((start, end)) = seen.next().filter(|(start, _)| *start < piece.end()) {
                if start > rest.start {
                    let (before, _) = cut(rest, start);
                    pieces.push(before);
                }
                if end >= rest.end() {
                    whole = false;
                    break;
                }
                if end > rest.start {
                    rest = cut(rest, end).1;
                }
            }
            if whole {
                pieces.push(rest);
            }
        }
        let moved = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        let added = new.pieces.iter().map(|p| Piece { chunk: p.chunk + moved, ..*p });
        pieces.extend(added);
        pieces.sort_unstable_by_key(|piece| piece.start);
        let chunks = self.chunks.iter().chain(&new.chunks).cloned().collect();
        Table { chunks, pieces }.without_unused()
    }

    /// This table with the blocks of another one in it, which it does not have.
    #[must_use]
    pub fn join(mut self, other: Table) -> Table {
        if other.pieces.is_empty() {
            return self;
        }
        let numbers = (0u32..).zip(&self.chunks).map(|(number, chunk)| (chunk.clone(), number));
        let mut place: HashMap<Chunk, u32> = numbers.collect();
        for piece in other.pieces {
            let chunk = &other.chunks[piece.chunk as usize];
            let number = *place.entry(chunk.clone()).or_insert_with(|| {
                self.chunks.push(chunk.clone());
                u32::try_from(self.chunks.len() - 1).unwrap_or(u32::MAX)
            });
            self.pieces.push(Piece { chunk: number, ..piece });
        }
        self.pieces.sort_unstable_by_key(|piece| piece.start);
        self.without_unused()
    }

    fn without_unused(mut self) -> Table {
        let mut place: Vec<Option<u32>> = vec![None; self.chunks.len()];
        let mut chunks = Vec::new();
        for piece in &mut self.pieces {
            let old = piece.chunk as usize;
            piece.chunk = *place[old].get_or_insert_with(|| {
                chunks.push(self.chunks[old].clone());
                u32::try_from(chunks.len() - 1).unwrap_or(u32::MAX)
            });
        }
        Table { chunks, pieces: self.pieces }
    }

    /// The copies whose chunks it needs, each once, in order.
    #[must_use]
    pub fn owners(&self) -> Vec<CopyId> {
        let mut all: Vec<&CopyId> = self.chunks.iter().map(|chunk| &*chunk.owner).collect();
        all.sort_unstable();
        all.dedup();
        all.into_iter().cloned().collect()
    }

    /// A sum of all that it holds, whoever sent the chunks.
    #[must_use]
    pub fn contents_sum(&self) -> String {
        let rows = self.chunks.len() * CHUNK_ROW + self.pieces.len() * PIECE_ROW;
        let mut all = Vec::with_capacity(rows + 8);
        all.extend_from_slice(&(self.chunks.len() as u64).to_le_bytes());
        for chunk in &self.chunks {
            chunk.put(&mut all);
        }
        self.pieces.iter().for_each(|piece| piece.put(&mut all));
        sha256_hex(&all)
    }

    /// Bytes of the table before they are compressed.
    #[must_use]
    pub fn encoded_bytes(&self) -> u64 {
        let owners: usize = self.owners().iter().map(|owner| 4 + owner.as_str().len()).sum();
        let rows = self.chunks.len() * CHUNK_ROW + self.pieces.len() * PIECE_ROW;
        (MAGIC.len() + 12 + owners + rows) as u64
    }

    /// The table as bytes, in one piece.
    ///
    /// # Errors
    /// It is too large.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let owners = self.owners();
        let mut raw = self.head(MAGIC, &owners)?;
        put_chunks(&mut raw, &owners, &self.chunks)?;
        self.pieces.iter().for_each(|piece| piece.put(&mut raw));
        pack(&raw)
    }

    /// What a table begins with: what it is, how much of everything there is, and the owners.
    ///
    /// # Errors
    /// It is too large.
    pub fn head(&self, magic: &[u8; 8], owners: &[CopyId]) -> Result<Vec<u8>> {
        if self.encoded_bytes() > TABLE_MAX {
            return Err(too_large());
        }
        let mut raw = magic.to_vec();
        for count in [owners.len(), self.chunks.len(), self.pieces.len()] {
            raw.extend_from_slice(&number(count)?.to_le_bytes());
        }
        for owner in owners {
            raw.extend_from_slice(&number(owner.as_str().len())?.to_le_bytes());
            raw.extend_from_slice(owner.as_str().as_bytes());
        }
        Ok(raw)
    }

    /// Reads a table of a disk of `size` bytes.
    ///
    /// # Errors
    /// `Corrupt`, naming `key`.
    pub fn decode(key: &str, bytes: &[u8], raw_bytes: u64, size: u64) -> Result<Table> {
        let damaged =
            |why: &str| Error::corrupt(format!("{key} in the repository is damaged: {why}"));
        let room = usize::try_from(raw_bytes.min(TABLE_MAX)).unwrap_or(0);
        let raw = unpack(bytes, room).map_err(|why| damaged(&why))?;
        let mut reader = Reader { rest: &raw };
        let table = read(&mut reader).ok_or_else(|| damaged("it is cut short"))?;
        if !reader.rest.is_empty() {
            return Err(damaged("it is too long"));
        }
        table.check(size / BLOCK_SIZE).map_err(damaged)?;
        Ok(table)
    }

    /// Whether its pieces are as they have to be, on a disk of so many blocks.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, blocks: u64) -> Result<(), &'static str> {
        let mut end = 0;
        for piece in &self.pieces {
            let Some(chunk) = self.chunks.get(piece.chunk as usize) else {
                return Err("a piece is in no chunk");
            };
            let inside = (u64::from(piece.at) + u64::from(piece.blocks)) * BLOCK_SIZE;
            if inside > u64::from(chunk.raw) || piece.blocks == 0 {
                return Err("a piece is not within its chunk");
            }
            // Sums below 2^64: a start is less than the disk's blocks, or this ends here.
            if piece.start < end || piece.start >= blocks || piece.end() > blocks {
                return Err("its pieces overlap or are beyond the disk");
            }
            end = piece.end();
        }
        Ok(())
    }
}

/// A piece cut in two at a block within it.
fn cut(piece: Piece, block: u64) -> (Piece, Piece) {
    let first = u32::try_from(block - piece.start).unwrap_or(u32::MAX);
    let before = Piece { blocks: first, ..piece };
    let behind =
        Piece { start: block, blocks: piece.blocks - first, at: piece.at + first, ..piece };
    (before, behind)
}

fn number(count: usize) -> Result<u32> {
    u32::try_from(count).map_err(|_| too_large())
}

fn too_large() -> Error {
    Error::invalid("the disk is too fragmented to be copied")
}

/// Rows of chunks, whose owners are among those.
///
/// # Errors
/// There are too many.
pub fn put_chunks(raw: &mut Vec<u8>, owners: &[CopyId], chunks: &[Chunk]) -> Result<()> {
    for chunk in chunks {
        let owner = owners.binary_search(&chunk.owner).unwrap_or_default();
        raw.extend_from_slice(&number(owner)?.to_le_bytes());
        chunk.put(raw);
    }
    Ok(())
}

/// Compresses a table, or a part of one.
///
/// # Errors
/// It cannot be compressed, which is a fault of ours.
pub fn pack(raw: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(raw, LEVEL).map_err(|e| Error::internal(format!("compress: {e}")))
}

/// What [`pack`] made smaller: at most `room` bytes.
///
/// # Errors
/// What is wrong with it.
pub fn unpack(bytes: &[u8], room: usize) -> Result<Vec<u8>, String> {
    zstd::bulk::decompress(bytes, room).map_err(|e| e.to_string())
}

/// What is in front of the rows.
pub struct Head {
    pub owners: Vec<Arc<CopyId>>,
    pub chunks: usize,
    pub pieces: usize,
}

/// Reads what [`Table::head`] wrote; nothing when it is not that.
pub fn read_head(reader: &mut Reader<'_>, magic: &[u8; 8]) -> Option<Head> {
    if reader.take(magic.len())? != magic {
        return None;
    }
    let (count, chunks, pieces) = (reader.count()?, reader.count()?, reader.count()?);
    let mut owners = Vec::new();
    for _ in 0..count {
        let length = reader.count()?;
        let name = std::str::from_utf8(reader.take(length)?).ok()?;
        owners.push(Arc::new(CopyId::from(name)));
    }
    Some(Head { owners, chunks, pieces })
}

/// Reads so many rows of chunks.
pub fn read_chunks(
    reader: &mut Reader<'_>,
    owners: &[Arc<CopyId>],
    count: usize,
) -> Option<Vec<Chunk>> {
    let mut rows = Reader { rest: reader.take(count.checked_mul(CHUNK_ROW)?)? };
    let mut chunks = Vec::with_capacity(count);
    for _ in 0..count {
        let owner = owners.get(rows.count()?)?.clone();
        let sum = rows.take(32)?.try_into().ok()?;
        chunks.push(Chunk { owner, sum, raw: rows.number()?, stored: rows.number()? });
    }
    Some(chunks)
}

/// Reads so many rows of pieces.
pub fn read_pieces(reader: &mut Reader<'_>, count: usize) -> Option<Vec<Piece>> {
    let mut rows = Reader { rest: reader.take(count.checked_mul(PIECE_ROW)?)? };
    let mut pieces = Vec::with_capacity(count);
    for _ in 0..count {
        let start = rows.long()?;
        let (blocks, chunk, at) = (rows.number()?, rows.number()?, rows.number()?);
        pieces.push(Piece { start, blocks, chunk, at });
    }
    Some(pieces)
}

fn read(reader: &mut Reader<'_>) -> Option<Table> {
    let head = read_head(reader, MAGIC)?;
    let chunks = read_chunks(reader, &head.owners, head.chunks)?;
    Some(Table { chunks, pieces: read_pieces(reader, head.pieces)? })
}

/// Bytes that are read from their beginning on.
pub struct Reader<'a> {
    pub rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    pub fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub fn long(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn count(&mut self) -> Option<usize> {
        self.number().and_then(|number| usize::try_from(number).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 64;

    fn chunk(owner: &str, first: u8) -> Chunk {
        let raw = u32::try_from(BLOCKS * BLOCK_SIZE).unwrap();
        Chunk { owner: CopyId::from(owner).into(), sum: [first; 32], raw, stored: 7 }
    }

    /// A table whose piece for each marked block tells its place by `at`.
    fn table(owner: &str, marked: &[bool]) -> Table {
        let mut pieces: Vec<Piece> = Vec::new();
        for (block, _) in marked.iter().enumerate().filter(|(_, is)| **is) {
            let at = u32::try_from(block).unwrap();
            match pieces.last_mut().filter(|last| last.end() == block as u64) {
                Some(last) => last.blocks += 1,
                None => pieces.push(Piece { start: block as u64, blocks: 1, chunk: 0, at }),
            }
        }
        let chunks =
            if pieces.is_empty() { vec![] } else { vec![chunk(owner, owner.as_bytes()[0])] };
        Table { chunks, pieces }
    }

    /// Whose chunk each block is in.
    fn owners(table: &Table) -> Vec<Option<String>> {
        let mut all = vec![None; usize::try_from(BLOCKS).unwrap()];
        for piece in &table.pieces {
            for block in 0..piece.blocks {
                let lba = usize::try_from(piece.start).unwrap() + block as usize;
                assert_eq!(piece.at as usize + block as usize, lba, "the right block of the chunk");
                assert!(all[lba].is_none(), "block {lba} is there twice");
                all[lba] = Some(table.chunks[piece.chunk as usize].owner.to_string());
            }
        }
        all
    }

    fn ranges(marked: &[bool]) -> Vec<(u64, u64)> {
        table("x", marked).pieces.iter().map(|p| (p.start, p.end())).collect()
    }

    proptest! {
        #[test]
        fn changes_lie_over_what_was_there(
            old in prop::collection::vec(any::<bool>(), 64),
            new in prop::collection::vec(any::<bool>(), 64),
            zero in prop::collection::vec(any::<bool>(), 64),
        ) {
            let changed: Vec<bool> = new.iter().zip(&zero).map(|(n, z)| *n || *z).collect();
            let merged = table("a", &old).with(&ranges(&changed), &table("b", &new));
            let expected: Vec<Option<String>> = (0..64)
                .map(|at| match (new[at], changed[at], old[at]) {
                    (true, ..) => Some("b".to_owned()),
                    (false, false, true) => Some("a".to_owned()),
                    _ => None,
                })
                .collect();
            prop_assert_eq!(owners(&merged), expected);
            let (mut rest, mut again) = (merged.clone(), merged.clone());
            rest.pieces.retain(|piece| piece.start % 2 == 0);
            again.pieces.retain(|piece| piece.start % 2 == 1);
            prop_assert_eq!(rest.join(again), merged.clone());
            let bytes = merged.encode().unwrap();
            let again = Table::decode("t", &bytes, 1 << 20, BLOCKS * BLOCK_SIZE).unwrap();
            prop_assert_eq!(again, merged);
        }

        #[test]
        fn nothing_in_a_damaged_table_is_believed(at in 0usize..400, bit in 0u8..8) {
            let marked: Vec<bool> = (0..64).map(|n| n % 3 == 0).collect();
            let raw = zstd::bulk::decompress(&table("a", &marked).encode().unwrap(), 1 << 20).unwrap();
            let mut bad = raw.clone();
            let at = at % bad.len();
            bad[at] ^= 1 << bit;
            let packed = zstd::bulk::compress(&bad, 1).unwrap();
            if let Ok(found) = Table::decode("t", &packed, 1 << 20, BLOCKS * BLOCK_SIZE) {
                // A flipped bit of a sum or a place is found by the sum of the table; here nothing may panic.
                prop_assert!(found.pieces.iter().all(|piece| piece.end() <= BLOCKS));
            }
        }
    }

    #[test]
    fn a_table_for_another_size_is_refused() {
        let table = table("a", &[true; 64]);
        let bytes = table.encode().unwrap();
        let error = Table::decode("tables/x", &bytes, 1 << 20, 63 * BLOCK_SIZE).unwrap_err();
        assert!(error.message().contains("tables/x"), "{error}");
        assert!(Table::decode("t", b"junk", 1 << 20, 1 << 20).is_err());
    }
}
