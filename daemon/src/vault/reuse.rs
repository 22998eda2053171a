//! What a disk has got from a copy and has not changed since: it is in the repository already and is not sent again.
//!
//! After a return the map says of fetched blocks what it says of written ones. So those that may be fetched ones are
//! compared with the copy they came from, by its own sums where a chunk is here as a whole, else block by block.
//!
//! Invariants: a block is only taken for sent when its contents are those in the chunk; who is not sure sends.
//! Absent: blocks that are equal by chance, and those at other places of the disk.

use std::collections::BTreeMap;

use super::chunk::{OBJECT_MAX, pack, unpack};
use super::format::sha256;
use super::header::{self, Header, missing};
use super::index::Index;
use super::seal::{Seal, Sealing};
use super::store::Store;
use super::table::{Chunk, Piece, Table};
use super::work::{Pacer, Work};
use crate::disk::lane::Lane;
use crate::disk::lazy::Span;
use crate::engine::api::Change;
use crate::engine::copies::{Base, CopyRecord};
use crate::engine::filled::Filled;
use crate::error::Result;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, BlockRange, ByteRange};

/// Looks for what need not be sent.
pub struct Reuse<'a> {
    pub work: &'a Work,
    pub store: &'a Store,
    pub pacer: &'a Pacer,
    pub sealing: &'a Sealing,
}

impl Reuse<'_> {
    /// The blocks among the changes since `base` that the disk has from a copy in this repository, as a table. The
    /// lane reads the snapshot, which has `size` bytes.
    ///
    /// # Errors
    /// The disk or the store cannot be read.
    pub fn find(
        &self,
        copy: &CopyRecord,
        base: Option<&Base>,
        changes: &[Change],
        (lane, size): (&mut Lane, u64),
    ) -> Result<Table> {
        let engine = &self.work.vault.engine;
        let Some(filled) = engine.filled(&copy.snapshot, base) else { return Ok(Table::default()) };
        if filled.repo != copy.repo {
            return Ok(Table::default());
        }
        let candidates = engine.born_in(filled.at, &copy.snapshot, changes)?;
        if candidates.is_empty() {
            return Ok(Table::default());
        }
        match self.table_of(&filled)? {
            Some(table) => self.same(table, &candidates, lane, size),
            None => Ok(Table::default()),
        }
    }

    /// The table of the copy, if it still serves.
    fn table_of(&self, filled: &Filled) -> Result<Option<Table>> {
        let key = header::key(&filled.copy, &filled.snapshot);
        let found = self.work.wait(async {
            let header = Header::read(self.store, &key).await?;
            let table = header.table(self.store).await?;
            Ok((header, table))
        });
        match found {
            Ok((header, table)) if self.sealing.fits(&header, &table) => Ok(Some(table)),
            Ok(_) => Ok(None),
            Err(error) if header::is_passed_over(&error) => {
                tracing::debug!(%error, copy = %filled.copy, "nothing of it is used again");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Those of some blocks that are what a table says of them.
    fn same(
        &self,
        table: Table,
        candidates: &[BlockRange],
        lane: &mut Lane,
        size: u64,
    ) -> Result<Table> {
        let mut wanted: BTreeMap<u32, Vec<Span>> = BTreeMap::new();
        for range in candidates {
            let first = table.pieces.partition_point(|piece| piece.end() <= range.start);
            for piece in table.pieces[first..].iter().take_while(|p| p.start < range.end) {
                wanted.entry(piece.chunk).or_default().push(within(piece, *range));
            }
        }
        let chunks = table.chunks.clone();
        let index = Index::new(table);
        let mut pieces = Vec::new();
        for (number, spans) in wanted {
            self.work.check()?;
            let _ticket = self.work.ticket()?;
            let chunk = index.chunk(number);
            let same = match self.is_whole(lane, size, chunk, &index.spans(number))? {
                true => spans,
                false => self.compare(lane, chunk, &spans)?,
            };
            let piece = |span: Span| {
                let Span { start, blocks, at } = span;
                Piece { start, blocks, chunk: number, at }
            };
            pieces.extend(same.into_iter().map(piece));
        }
        pieces.sort_unstable_by_key(|piece: &Piece| piece.start);
        Ok(Table { chunks, pieces })
    }

    /// Whether the disk has all of a chunk, block by block, as its sum says.
    fn is_whole(&self, lane: &mut Lane, size: u64, chunk: &Chunk, spans: &[Span]) -> Result<bool> {
        let blocks: u64 = spans.iter().map(|span| u64::from(span.blocks)).sum();
        let inside = |span: &Span| (span.start + u64::from(span.blocks)) * BLOCK_SIZE <= size;
        if blocks * BLOCK_SIZE != u64::from(chunk.raw) || !spans.iter().all(inside) {
            return Ok(false);
        }
        let mut bytes = vec![0; chunk.raw as usize];
        for span in spans {
            let at = span.at as usize * BLOCK_BYTES;
            let part = &mut bytes[at..at + span.blocks as usize * BLOCK_BYTES];
            lane.read(range_of(span), part)?;
        }
        Ok(match &self.sealing.seal {
            Seal::Plain => sha256(&bytes) == chunk.sum,
            // The same contents make the same object.
            seal => pack(&chunk.owner, &bytes, seal)?.0.sum == chunk.sum,
        })
    }

    /// Those of some blocks that are what the chunk holds, which is read for that.
    fn compare(&self, lane: &mut Lane, chunk: &Chunk, spans: &[Span]) -> Result<Vec<Span>> {
        let key = chunk.key();
        let got = self.work.wait(async {
            self.pacer.pass(chunk.stored as usize).await;
            self.store.get(&key, OBJECT_MAX).await.map_err(|error| missing(&key, error))
        });
        let held = match got.and_then(|bytes| unpack(chunk, &bytes, &self.sealing.seal)) {
            Ok(held) => held,
            Err(error) if header::is_passed_over(&error) => {
                tracing::warn!(%error, "nothing of it is used again");
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let mut same: Vec<Span> = Vec::new();
        for span in spans {
            let mut bytes = vec![0; span.blocks as usize * BLOCK_BYTES];
            lane.read(range_of(span), &mut bytes)?;
            for (number, block) in (0u32..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
                let (start, at) = (span.start + u64::from(number), span.at + number);
                let held = held.get(at as usize * BLOCK_BYTES..(at as usize + 1) * BLOCK_BYTES);
                if held != Some(block) {
                    continue;
                }
                match same.last_mut() {
                    Some(last)
                        if last.start + u64::from(last.blocks) == start
                            && last.at + last.blocks == at =>
                    {
                        last.blocks += 1;
                    }
                    _ => same.push(Span { start, blocks: 1, at }),
                }
            }
        }
        Ok(same)
    }
}

fn range_of(span: &Span) -> ByteRange {
    let start = span.start * BLOCK_SIZE;
    ByteRange { start, end: start + u64::from(span.blocks) * BLOCK_SIZE }
}

/// The blocks of a piece that are in a range, of which it has some.
fn within(piece: &Piece, range: BlockRange) -> Span {
    let (start, end) = (piece.start.max(range.start), piece.end().min(range.end));
    let number = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let at = piece.at + number(start - piece.start);
    Span { start, blocks: number(end - start), at }
}

/// Changes without the blocks of a table; both are in order.
pub(super) fn without(changes: &[Change], table: &Table) -> Vec<Change> {
    let mut left = Vec::with_capacity(changes.len());
    let mut first = 0;
    for change in changes {
        let (mut at, end) = (change.offset, change.offset + change.length);
        while table.pieces.get(first).is_some_and(|piece| piece.end() * BLOCK_SIZE <= at) {
            first += 1;
        }
        for piece in table.pieces[first..].iter().take_while(|p| p.start * BLOCK_SIZE < end) {
            let start = piece.start * BLOCK_SIZE;
            if start > at {
                left.push(Change { offset: at, length: start - at, zero: change.zero });
            }
            at = at.max(piece.end() * BLOCK_SIZE);
        }
        if at < end {
            left.push(Change { offset: at, length: end - at, zero: change.zero });
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blocks(changes: &[Change]) -> Vec<(u64, bool)> {
        let of = |change: &Change| {
            let (first, count) = (change.offset / BLOCK_SIZE, change.length / BLOCK_SIZE);
            let zero = change.zero;
            (first..first + count).map(move |block| (block, zero))
        };
        changes.iter().flat_map(of).collect()
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_is_not_in_the_table(
            lengths in prop::collection::vec((1u64..6, 0u64..3, any::<bool>()), 0..12),
            cuts in prop::collection::vec((1u32..5, 0u64..9), 0..12),
        ) {
            let mut at = 0;
            let change = |(length, gap, zero): (u64, u64, bool)| {
                let offset = (at + gap) * BLOCK_SIZE;
                at += gap + length;
                Change { offset, length: length * BLOCK_SIZE, zero }
            };
            let changes: Vec<Change> = lengths.into_iter().map(change).collect();
            let mut table = Table::default();
            let mut at = 0;
            for (blocks, gap) in cuts {
                table.pieces.push(Piece { start: at + gap, blocks, chunk: 0, at: 0 });
                at += gap + u64::from(blocks);
            }
            let mut expected = blocks(&changes);
            let is_in = |block: &u64| table.pieces.iter().any(|p| (p.start..p.end()).contains(block));
            expected.retain(|(block, _)| !is_in(block));
            prop_assert_eq!(blocks(&without(&changes, &table)), expected);
        }
    }
}
