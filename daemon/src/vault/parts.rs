//! A large table in parts: who looks for one block reads the root and the parts that block is in, and no more.
//!
//! The rows of chunks and of pieces are cut into parts of the same number of rows, each compressed for itself. The
//! root, which comes first in the object, says where each part is and what it has to be.
//!
//! Invariants: nothing of a part is used before its sum is right, and nothing of a root before that in the header
//! is; what a part holds is what the whole table holds at that place; the sum that the key of an encrypted copy
//! makes covers what the root says of all parts.
//! Absent: which parts somebody has read (`partial.rs`). FORMAT-VAULT.md has the bytes.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::format::{sha256, sha256_hex};
use super::table::{
    CHUNK_ROW, Chunk, PIECE_ROW, Piece, Reader, TABLE_MAX, Table, pack, put_chunks, read_chunks,
    read_head, read_pieces, unpack,
};
use crate::error::{Error, Result};
use crate::units::{BLOCK_SIZE, CopyId, Lba};

const MAGIC: &[u8; 8] = b"ROWDTAB2";
/// Rows of a part that is written: two parts are read faster than a chunk, and a root of them is short.
const ROWS: u32 = 4096;

/// What a header says of a table in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Chunks or pieces in a part.
    pub rows: u32,
    /// Bytes of the root, and their SHA-256.
    pub root: u64,
    pub root_sum: String,
}

/// Which part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartId {
    Chunks(u32),
    Pieces(u32),
}

/// What the root says of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// Where it is in the object.
    at: u64,
    stored: u32,
    /// SHA-256 of it as it is stored.
    sum: [u8; 32],
    /// SHA-256 of its rows, of chunks without their owners.
    contents: [u8; 32],
    /// Of pieces: the first block.
    first: u64,
}

/// The root.
#[derive(Debug)]
pub struct Root {
    key: String,
    rows: u32,
    /// Blocks of the disk.
    blocks: u64,
    owners: Vec<Arc<CopyId>>,
    chunks: usize,
    pieces: usize,
    of_chunks: Vec<Part>,
    of_pieces: Vec<Part>,
}

/// How many rows the parts of a table have; nothing when it stays in one piece.
#[must_use]
pub fn rows_of(table: &Table) -> Option<u32> {
    (table.chunks.len().max(table.pieces.len()) > ROWS as usize).then_some(ROWS)
}

/// A table as bytes, in parts of so many rows.
///
/// # Errors
/// It is too large.
pub fn encode(table: &Table, rows: u32) -> Result<(Vec<u8>, Parts)> {
    let owners = table.owners();
    let (mut root, mut packed) = (table.head(MAGIC, &owners)?, Vec::new());
    let mut raw = Vec::new();
    for chunks in table.chunks.chunks(rows.max(1) as usize) {
        raw.clear();
        put_chunks(&mut raw, &owners, chunks)?;
        add(&mut root, &mut packed, &raw, contents_of(chunks))?;
    }
    for pieces in table.pieces.chunks(rows.max(1) as usize) {
        raw.clear();
        pieces.iter().for_each(|piece| piece.put(&mut raw));
        root.extend_from_slice(&pieces.first().map_or(0, |piece| piece.start).to_le_bytes());
        add(&mut root, &mut packed, &raw, sha256(&raw))?;
    }
    let parts = Parts { rows, root: root.len() as u64, root_sum: sha256_hex(&root) };
    root.append(&mut packed);
    Ok((root, parts))
}

fn add(root: &mut Vec<u8>, packed: &mut Vec<u8>, raw: &[u8], contents: [u8; 32]) -> Result<()> {
    let mut part = pack(raw)?;
    let stored = u32::try_from(part.len())
        .map_err(|e| Error::internal(format!("a part of a table is too long: {e}")))?;
    root.extend_from_slice(&stored.to_le_bytes());
    root.extend_from_slice(&sha256(&part));
    root.extend_from_slice(&contents);
    packed.append(&mut part);
    Ok(())
}

fn contents_of(chunks: &[Chunk]) -> [u8; 32] {
    let mut raw = Vec::with_capacity(chunks.len() * CHUNK_ROW);
    chunks.iter().for_each(|chunk| chunk.put(&mut raw));
    sha256(&raw)
}

/// A sum of all that a table holds, whoever sent the chunks: made of those of its parts.
#[must_use]
pub fn contents_sum(table: &Table, rows: u32) -> String {
    let in_part = rows.max(1) as usize;
    let mut raw = Vec::new();
    let of_pieces = table.pieces.chunks(in_part).map(|pieces| {
        raw.clear();
        pieces.iter().for_each(|piece| piece.put(&mut raw));
        (pieces[0].start, sha256(&raw))
    });
    let of_pieces: Vec<_> = of_pieces.collect();
    let of_chunks = table.chunks.chunks(in_part).map(contents_of);
    sum_of((table.chunks.len(), table.pieces.len(), rows), of_chunks, of_pieces.into_iter())
}

fn sum_of(
    (chunks, pieces, rows): (usize, usize, u32),
    of_chunks: impl Iterator<Item = [u8; 32]>,
    of_pieces: impl Iterator<Item = (u64, [u8; 32])>,
) -> String {
    let mut all = Vec::new();
    for number in [chunks as u64, pieces as u64, u64::from(rows)] {
        all.extend_from_slice(&number.to_le_bytes());
    }
    of_chunks.for_each(|contents| all.extend_from_slice(&contents));
    for (first, contents) in of_pieces {
        all.extend_from_slice(&first.to_le_bytes());
        all.extend_from_slice(&contents);
    }
    sha256_hex(&all)
}

/// Reads a whole table that is in parts, of a disk of `size` bytes.
///
/// # Errors
/// `Corrupt`, naming `key`.
pub fn decode(key: &str, bytes: &[u8], parts: &Parts, size: u64) -> Result<Table> {
    let length = usize::try_from(parts.root).unwrap_or(usize::MAX);
    let root = bytes.get(..length).unwrap_or(bytes);
    let root = Root::read(key, root, parts, bytes.len() as u64, size)?;
    let mut table = Table::default();
    let part = |id: PartId| {
        let range = root.range(id)?;
        let at = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        bytes.get(at(range.start)..at(range.end)).ok_or_else(|| root.damaged("it is cut short"))
    };
    for (number, _) in (0u32..).zip(&root.of_chunks) {
        table.chunks.extend(root.chunks(number, part(PartId::Chunks(number))?)?);
    }
    for (number, _) in (0u32..).zip(&root.of_pieces) {
        table.pieces.extend(root.pieces(number, part(PartId::Pieces(number))?)?);
    }
    table.check(root.blocks).map_err(|why| root.damaged(why))?;
    Ok(table)
}

impl Root {
    /// Reads the root of a table whose object has `stored` bytes, of a disk of `size` bytes.
    ///
    /// # Errors
    /// `Corrupt`, naming `key`.
    pub fn read(key: &str, bytes: &[u8], parts: &Parts, stored: u64, size: u64) -> Result<Root> {
        let damaged = |why: &str| damaged(key, why);
        if bytes.len() as u64 != parts.root || sha256_hex(bytes) != parts.root_sum {
            return Err(damaged("it does not begin with what was written"));
        }
        if parts.rows == 0 {
            return Err(damaged("its parts have no rows"));
        }
        let mut reader = Reader { rest: bytes };
        let mut root = read_root(&mut reader, parts).ok_or_else(|| damaged("it is cut short"))?;
        if !reader.rest.is_empty() {
            return Err(damaged("its root is too long"));
        }
        (root.key, root.blocks) = (key.to_owned(), size / BLOCK_SIZE);
        if (root.chunks * CHUNK_ROW + root.pieces * PIECE_ROW) as u64 > TABLE_MAX {
            return Err(damaged("it would be too long"));
        }
        let behind = root.of_pieces.last().or(root.of_chunks.last());
        if behind.map_or(parts.root, |last| last.at + u64::from(last.stored)) != stored {
            return Err(damaged("its parts are not all that it has"));
        }
        let firsts = || root.of_pieces.iter().map(|part| part.first);
        let in_order = firsts().zip(firsts().skip(1)).all(|(one, next)| one < next);
        if !in_order || firsts().next_back().is_some_and(|last| last >= root.blocks) {
            return Err(damaged("its parts overlap or are beyond the disk"));
        }
        Ok(root)
    }

    /// As [`contents_sum`], of what is known by the root alone.
    #[must_use]
    pub fn contents_sum(&self) -> String {
        sum_of(
            (self.chunks, self.pieces, self.rows),
            self.of_chunks.iter().map(|part| part.contents),
            self.of_pieces.iter().map(|part| (part.first, part.contents)),
        )
    }

    /// The part with the piece that a block is in, if there is such a piece.
    #[must_use]
    pub fn pieces_of(&self, lba: Lba) -> Option<u32> {
        let behind = self.of_pieces.partition_point(|part| part.first <= lba.0);
        u32::try_from(behind.checked_sub(1)?).ok()
    }

    /// The part with a chunk.
    #[must_use]
    pub fn part_of(&self, chunk: u32) -> u32 {
        chunk / self.rows
    }

    /// The chunk of that number among those of its part.
    #[must_use]
    pub fn within(&self, chunk: u32) -> usize {
        (chunk % self.rows) as usize
    }

    /// Where a part is in the object.
    ///
    /// # Errors
    /// There is no such part.
    pub fn range(&self, id: PartId) -> Result<Range<u64>> {
        self.part(id).map(|part| part.at..part.at + u64::from(part.stored))
    }

    /// The chunks in a part.
    ///
    /// # Errors
    /// `Corrupt`, naming the table.
    pub fn chunks(&self, number: u32, bytes: &[u8]) -> Result<Vec<Chunk>> {
        let (raw, count) = self.unpack(PartId::Chunks(number), bytes)?;
        let chunks = read_chunks(&mut Reader { rest: &raw }, &self.owners, count);
        let chunks = chunks.ok_or_else(|| self.damaged("a chunk is of nobody"))?;
        let contents = contents_of(&chunks);
        self.check_contents(PartId::Chunks(number), &contents).map(|()| chunks)
    }

    /// The pieces in a part, in order.
    ///
    /// # Errors
    /// `Corrupt`, naming the table.
    pub fn pieces(&self, number: u32, bytes: &[u8]) -> Result<Vec<Piece>> {
        let id = PartId::Pieces(number);
        let (raw, count) = self.unpack(id, bytes)?;
        self.check_contents(id, &sha256(&raw))?;
        let pieces = read_pieces(&mut Reader { rest: &raw }, count);
        let pieces = pieces.ok_or_else(|| self.damaged("a part is cut short"))?;
        let next = self.of_pieces.get(number as usize + 1);
        let limit = next.map_or(self.blocks, |next| next.first);
        if pieces.first().map(|piece| piece.start) != Some(self.part(id)?.first) {
            return Err(self.damaged("a part begins elsewhere"));
        }
        let mut end = 0;
        for piece in &pieces {
            if piece.chunk as usize >= self.chunks || piece.blocks == 0 {
                return Err(self.damaged("a piece is in no chunk"));
            }
            // Sums below 2^64: a start is less than the disk's blocks, or this ends here.
            if piece.start < end || piece.start >= limit || piece.end() > limit {
                return Err(self.damaged("its pieces overlap or are beyond the disk"));
            }
            end = piece.end();
        }
        Ok(pieces)
    }

    /// The rows of a part, and how many there are.
    fn unpack(&self, id: PartId, bytes: &[u8]) -> Result<(Vec<u8>, usize)> {
        let part = self.part(id)?;
        if bytes.len() as u64 != u64::from(part.stored) || sha256(bytes) != part.sum {
            return Err(self.damaged("a part is not what was written"));
        }
        let (number, all, row) = match id {
            PartId::Chunks(number) => (number, self.chunks, CHUNK_ROW),
            PartId::Pieces(number) => (number, self.pieces, PIECE_ROW),
        };
        let rows = self.rows as usize;
        let count = (all - number as usize * rows).min(rows);
        let raw = unpack(bytes, count * row).map_err(|why| self.damaged(&why))?;
        match raw.len() == count * row {
            true => Ok((raw, count)),
            false => Err(self.damaged("a part is cut short")),
        }
    }

    fn check_contents(&self, id: PartId, contents: &[u8; 32]) -> Result<()> {
        match self.part(id)?.contents == *contents {
            true => Ok(()),
            false => Err(self.damaged("a part does not hold what its root says")),
        }
    }

    fn part(&self, id: PartId) -> Result<&Part> {
        let part = match id {
            PartId::Chunks(number) => self.of_chunks.get(number as usize),
            PartId::Pieces(number) => self.of_pieces.get(number as usize),
        };
        part.ok_or_else(|| self.damaged("a part is not there"))
    }

    fn damaged(&self, why: &str) -> Error {
        damaged(&self.key, why)
    }
}

fn damaged(key: &str, why: &str) -> Error {
    Error::corrupt(format!("{key} in the repository is damaged: {why}"))
}

fn read_root(reader: &mut Reader<'_>, parts: &Parts) -> Option<Root> {
    let head = read_head(reader, MAGIC)?;
    let (rows, mut at) = (parts.rows as usize, parts.root);
    let mut read = |count: usize, with_first: bool| {
        let mut all = Vec::new();
        for _ in 0..count.div_ceil(rows) {
            let first = if with_first { reader.long()? } else { 0 };
            let stored = reader.number()?;
            let sum = reader.take(32)?.try_into().ok()?;
            let contents = reader.take(32)?.try_into().ok()?;
            all.push(Part { at, stored, sum, contents, first });
            at = at.checked_add(u64::from(stored))?;
        }
        Some(all)
    };
    let of_chunks = read(head.chunks, false)?;
    let of_pieces = read(head.pieces, true)?;
    Some(Root {
        key: String::new(),
        rows: parts.rows,
        blocks: 0,
        owners: head.owners,
        chunks: head.chunks,
        pieces: head.pieces,
        of_chunks,
        of_pieces,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    const BLOCKS: u64 = 1 << 16;
    const SIZE: u64 = BLOCKS * BLOCK_SIZE;

    /// Chunks of several owners, and pieces with gaps; `seed` says which.
    fn table(chunks: u32, pieces: u32, seed: u32) -> Table {
        let chunk = |number: u32| {
            let owner = CopyId::from(format!("c-{}", number.wrapping_mul(seed) % 3).as_str());
            let sum = sha256(&(number ^ seed).to_le_bytes());
            Chunk { owner: owner.into(), sum, raw: 64 << 12, stored: number }
        };
        let mut start = u64::from(seed % 5);
        let piece = |number: u32| {
            let one =
                Piece { start, blocks: 1 + number % 3, chunk: number % chunks, at: number % 60 };
            start = one.end() + u64::from(number.wrapping_mul(seed) % 4);
            one
        };
        Table { chunks: (0..chunks).map(chunk).collect(), pieces: (0..pieces).map(piece).collect() }
    }

    fn root(bytes: &[u8], parts: &Parts) -> Result<Root> {
        let length = usize::try_from(parts.root).unwrap();
        Root::read("tables/c-9", &bytes[..length], parts, bytes.len() as u64, SIZE)
    }

    fn part<'a>(root: &Root, bytes: &'a [u8], id: PartId) -> &'a [u8] {
        let range = root.range(id).unwrap();
        &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    }

    proptest! {
        #[test]
        fn a_table_comes_back_from_its_parts_as_a_whole_and_block_by_block(
            chunks in 1u32..40, pieces in 0u32..90, rows in 1u32..30, seed in any::<u32>(),
        ) {
            let table = table(chunks, pieces, seed);
            let (bytes, parts) = encode(&table, rows).unwrap();
            prop_assert_eq!(&decode("t", &bytes, &parts, SIZE).unwrap(), &table);
            let root = root(&bytes, &parts).unwrap();
            prop_assert_eq!(root.contents_sum(), contents_sum(&table, rows));
            for lba in 0..table.pieces.last().map_or(9, |last| last.end() + 3) {
                let expected = table.pieces.iter().find(|p| p.start <= lba && lba < p.end());
                let found = root.pieces_of(Lba(lba)).and_then(|number| {
                    let pieces = root.pieces(number, part(&root, &bytes, PartId::Pieces(number)));
                    pieces.unwrap().into_iter().find(|p| p.start <= lba && lba < p.end())
                });
                prop_assert_eq!(found.as_ref(), expected);
                if let Some(Piece { chunk, .. }) = found {
                    let number = root.part_of(chunk);
                    let some = root.chunks(number, part(&root, &bytes, PartId::Chunks(number)));
                    let expected = &table.chunks[chunk as usize];
                    prop_assert_eq!(&some.unwrap()[root.within(chunk)], expected);
                }
            }
        }
    }

    #[test]
    fn the_sum_of_the_contents_does_not_depend_on_who_sent_the_chunks_but_on_all_else() {
        let one = table(9, 30, 7);
        let sum = contents_sum(&one, 8);
        let mut other = one.clone();
        other.chunks[3].owner = CopyId::from("c-other").into();
        assert_eq!(contents_sum(&other, 8), sum);
        other.chunks[3].stored += 1;
        assert_ne!(contents_sum(&other, 8), sum);
        let mut other = one.clone();
        other.pieces[29].blocks += 1;
        assert_ne!(contents_sum(&other, 8), sum);
        assert_ne!(contents_sum(&one, 9), sum);
    }

    #[test]
    fn any_flipped_bit_is_found_by_who_reads_all_and_by_who_reads_a_part() {
        let table = table(20, 40, 11);
        let (bytes, parts) = encode(&table, 16).unwrap();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            let error = decode("tables/c-9", &bad, &parts, SIZE).unwrap_err();
            assert!(error.message().contains("tables/c-9"), "{error}");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}");
            let Ok(root) = root(&bad, &parts) else { continue };
            let chunks =
                (0..2).map(|n| root.chunks(n, part(&root, &bad, PartId::Chunks(n))).is_err());
            let pieces =
                (0..3).map(|n| root.pieces(n, part(&root, &bad, PartId::Pieces(n))).is_err());
            assert_eq!(chunks.chain(pieces).filter(|bad| *bad).count(), 1, "byte {at}");
        }
        assert!(root(&bytes, &Parts { rows: 0, ..parts.clone() }).is_err());
        assert!(decode("t", &bytes[..bytes.len() - 1], &parts, SIZE).is_err());
        assert!(decode("t", &bytes, &parts, 8 * BLOCK_SIZE).is_err(), "another size");
        assert!(decode("t", b"junk", &parts, SIZE).is_err());
    }

    #[test]
    fn a_root_that_was_made_to_fit_is_believed_no_more_than_its_parts() {
        let table = table(5, 40, 3);
        let (bytes, parts) = encode(&table, 16).unwrap();
        let length = usize::try_from(parts.root).unwrap();
        // The first block of the second part of pieces, one less: a block before it would be found nowhere.
        let at = length - 2 * (8 + 4 + 32 + 32);
        let mut bad = bytes.clone();
        bad[at] -= 1;
        let parts = Parts { root_sum: sha256_hex(&bad[..length]), ..parts };
        let found = root(&bad, &parts).unwrap();
        assert_ne!(found.contents_sum(), contents_sum(&table, 16));
        assert!(found.pieces(1, part(&found, &bad, PartId::Pieces(1))).is_err());
        assert!(decode("t", &bad, &parts, SIZE).is_err());
    }
}
