//! A table that is not read whole: its root, and the parts that somebody has needed so far.
//!
//! Invariants: what is told of a block is what the whole table says of it; what is not known yet is never told as
//! not there.
//! Absent: reading parts (`origin.rs`), and what they have to be (`parts.rs`).

use std::collections::HashMap;
use std::ops::Range;

use parking_lot::RwLock;

use super::header::Header;
use super::parts::{PartId, Root};
use super::seal::Seal;
use super::table::{Chunk, Piece};
use crate::disk::lazy::Span;
use crate::error::{Error, Result};
use crate::units::{BLOCK_SIZE, Lba};

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The copy does not have it.
    Nowhere,
    /// This part says more.
    Behind(PartId),
    /// In the chunk of that number, as this part of the pieces says.
    In { chunk: u32, part: u32 },
}

/// A copy whose table is read in parts.
#[derive(Debug)]
pub struct Partial {
    pub header: Header,
    pub seal: Seal,
    root: Root,
    rows: RwLock<Rows>,
}

#[derive(Debug, Default)]
struct Rows {
    pieces: HashMap<u32, Vec<Piece>>,
    chunks: HashMap<u32, Vec<Chunk>>,
}

impl Partial {
    /// # Errors
    /// There is no key; `Corrupt` when the root is not what its key was used for.
    pub fn new(header: Header, seal: Seal, root: Root) -> Result<Partial> {
        seal.key()?;
        seal.check_root(&header, &root)?;
        Ok(Partial { header, seal, root, rows: RwLock::default() })
    }

    /// Where a block is, as far as it is known.
    #[must_use]
    pub fn place(&self, lba: Lba) -> Place {
        let Some(part) = self.root.pieces_of(lba) else { return Place::Nowhere };
        let rows = self.rows.read();
        let Some(pieces) = rows.pieces.get(&part) else {
            return Place::Behind(PartId::Pieces(part));
        };
        let at = pieces.partition_point(|piece| piece.end() <= lba.0);
        let Some(piece) = pieces.get(at).filter(|piece| piece.start <= lba.0) else {
            return Place::Nowhere;
        };
        let of_chunk = self.root.part_of(piece.chunk);
        match rows.chunks.contains_key(&of_chunk) {
            true => Place::In { chunk: piece.chunk, part },
            false => Place::Behind(PartId::Chunks(of_chunk)),
        }
    }

    /// Whether the copy has a block, if that is known.
    #[must_use]
    pub fn has(&self, lba: Lba) -> Option<bool> {
        match self.place(lba) {
            Place::Nowhere => Some(false),
            Place::Behind(PartId::Pieces(_)) => None,
            Place::Behind(PartId::Chunks(_)) | Place::In { .. } => Some(true),
        }
    }

    /// Where a part is in the object with the table.
    ///
    /// # Errors
    /// There is no such part.
    pub fn range(&self, part: PartId) -> Result<Range<u64>> {
        self.root.range(part)
    }

    /// Takes note of what a part says.
    ///
    /// # Errors
    /// `Corrupt`, naming the table.
    pub fn put(&self, part: PartId, bytes: &[u8]) -> Result<()> {
        match part {
            PartId::Chunks(number) => {
                let chunks = self.root.chunks(number, bytes)?;
                self.rows.write().chunks.insert(number, chunks);
            }
            PartId::Pieces(number) => {
                let pieces = self.root.pieces(number, bytes)?;
                self.rows.write().pieces.insert(number, pieces);
            }
        }
        Ok(())
    }

    /// A chunk, and those of its blocks that one part of the pieces tells of; nothing when these are not known.
    ///
    /// # Errors
    /// `Corrupt`, naming the table: they are not within the chunk.
    pub fn chunk(&self, number: u32, part: u32) -> Result<Option<(Chunk, Vec<Span>)>> {
        let rows = self.rows.read();
        let chunks = rows.chunks.get(&self.root.part_of(number));
        let (Some(chunks), Some(pieces)) = (chunks, rows.pieces.get(&part)) else {
            return Ok(None);
        };
        let damaged = || {
            let key = self.header.table_key();
            Error::corrupt(format!(
                "{key} in the repository is damaged: a piece is not within its chunk"
            ))
        };
        let chunk = chunks.get(self.root.within(number)).ok_or_else(damaged)?.clone();
        let mut spans = Vec::new();
        for Piece { start, blocks, at, .. } in pieces.iter().filter(|piece| piece.chunk == number) {
            if (u64::from(*at) + u64::from(*blocks)) * BLOCK_SIZE > u64::from(chunk.raw) {
                return Err(damaged());
            }
            spans.push(Span { start: *start, blocks: *blocks, at: *at });
        }
        Ok(Some((chunk, spans)))
    }

    /// Forgets all parts: the whole table is known.
    pub fn clear(&self) {
        *self.rows.write() = Rows::default();
    }
}
