//! The table of a copy the other way round: from a block to its chunk, and from a chunk to its blocks.
//!
//! Invariants: chunks are in the order in which the disk meets them first.
//! Absent: fetching (`origin.rs`).

use std::ops::Range;

use super::table::{Chunk, Piece, Table};
use crate::disk::lazy::Span;
use crate::units::{BlockRange, Lba};

/// A table, indexed.
#[derive(Debug)]
pub struct Index {
    table: Table,
    /// Pieces by chunk, in the order of the disk within each.
    by_chunk: Vec<u32>,
    /// Where the pieces of a chunk begin in `by_chunk`.
    first: Vec<u32>,
    /// Chunks in the order of the disk, and the place of each.
    order: Vec<u32>,
    place: Vec<u32>,
}

impl Index {
    #[must_use]
    pub fn new(table: Table) -> Index {
        let mut first = vec![0u32; table.chunks.len() + 1];
        table.pieces.iter().for_each(|piece| first[piece.chunk as usize + 1] += 1);
        for at in 1..first.len() {
            first[at] += first[at - 1];
        }
        let mut next = first.clone();
        let mut by_chunk = vec![0u32; table.pieces.len()];
        let mut order = Vec::with_capacity(table.chunks.len());
        let mut place = vec![u32::MAX; table.chunks.len()];
        for (number, piece) in (0u32..).zip(&table.pieces) {
            let chunk = piece.chunk as usize;
            by_chunk[next[chunk] as usize] = number;
            next[chunk] += 1;
            if place[chunk] == u32::MAX {
                place[chunk] = u32::try_from(order.len()).unwrap_or(u32::MAX);
                order.push(piece.chunk);
            }
        }
        Index { table, by_chunk, first, order, place }
    }

    #[must_use]
    pub fn chunk(&self, number: u32) -> &Chunk {
        &self.table.chunks[number as usize]
    }

    /// The chunks that the disk needs, in its order.
    #[must_use]
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// Bytes of all chunks that the disk needs.
    #[must_use]
    pub fn raw_bytes(&self) -> u64 {
        self.order.iter().map(|chunk| u64::from(self.chunk(*chunk).raw)).sum()
    }

    /// The chunks that follow another one on the disk.
    pub fn behind(&self, chunk: u32, count: usize) -> impl Iterator<Item = u32> + '_ {
        let from = self.place[chunk as usize] as usize + 1;
        self.order.iter().skip(from).take(count).copied()
    }

    /// How many chunks `chunk` comes behind `other` on the disk, if it does.
    #[must_use]
    pub fn distance(&self, other: u32, chunk: u32) -> Option<u32> {
        self.place[chunk as usize].checked_sub(self.place[other as usize])
    }

    /// The chunk that a block of the disk is in.
    #[must_use]
    pub fn chunk_of(&self, lba: Lba) -> Option<u32> {
        let piece = self.table.pieces.get(self.piece_from(lba.0))?;
        (piece.start <= lba.0).then_some(piece.chunk)
    }

    /// The first blocks at or behind `from` that the copy has.
    #[must_use]
    pub fn next(&self, from: u64) -> Option<BlockRange> {
        let piece = self.table.pieces.get(self.piece_from(from))?;
        Some(BlockRange::new(piece.start.max(from), piece.end()))
    }

    /// The blocks of the disk in a chunk.
    #[must_use]
    pub fn spans(&self, chunk: u32) -> Vec<Span> {
        let chunk = chunk as usize;
        let pieces =
            Range { start: self.first[chunk] as usize, end: self.first[chunk + 1] as usize };
        let pieces =
            self.by_chunk[pieces].iter().map(|number| &self.table.pieces[*number as usize]);
        pieces
            .map(|Piece { start, blocks, at, .. }| Span { start: *start, blocks: *blocks, at: *at })
            .collect()
    }

    /// The first piece that ends behind a block.
    fn piece_from(&self, block: u64) -> usize {
        self.table.pieces.partition_point(|piece| piece.end() <= block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::CopyId;

    fn piece(start: u64, blocks: u32, chunk: u32, at: u32) -> Piece {
        Piece { start, blocks, chunk, at }
    }

    #[test]
    fn blocks_chunks_and_pieces_find_each_other() {
        let chunk =
            Chunk { owner: CopyId::from("c-1").into(), sum: [0; 32], raw: 1 << 20, stored: 1 };
        let pieces =
            vec![piece(2, 3, 1, 0), piece(5, 1, 0, 9), piece(9, 4, 1, 3), piece(20, 1, 2, 0)];
        let index = Index::new(Table { chunks: vec![chunk; 3], pieces });
        assert_eq!(index.order(), [1, 0, 2]);
        assert_eq!(index.raw_bytes(), 3 << 20);
        assert_eq!(index.behind(1, 5).collect::<Vec<_>>(), [0, 2]);
        assert_eq!((index.distance(1, 2), index.distance(2, 1)), (Some(2), None));
        let chunks = [1, 2, 4, 5, 6, 12, 13, 20, 21].map(|lba| index.chunk_of(Lba(lba)));
        let none = None;
        assert_eq!(chunks, [none, Some(1), Some(1), Some(0), none, Some(1), none, Some(2), none]);
        assert_eq!(index.next(0), Some(BlockRange::new(2, 5)));
        assert_eq!(index.next(3), Some(BlockRange::new(3, 5)));
        assert_eq!(index.next(6), Some(BlockRange::new(9, 13)));
        assert_eq!(index.next(21), None);
        let spans = [Span { start: 2, blocks: 3, at: 0 }, Span { start: 9, blocks: 4, at: 3 }];
        assert_eq!(index.spans(1), spans);
        let empty = Index::new(Table::default());
        assert_eq!((empty.next(0), empty.order().len()), (None, 0));
    }
}
