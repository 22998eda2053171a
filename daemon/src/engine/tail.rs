//! The tail of the journal: how much of what no record knows durable is really there.
//!
//! Invariants: the answer is the state after one record, and in that state every block that a record of
//! the tail wrote and none replaced holds what was written. A block that a later record of the tail
//! replaced does not count from there on: it may have been reused, and the reuse may have reached the
//! disk without its own record (`pool/allocator.rs`). To count it would drop flushed writes.
//! Absent: the journal's own chain and its checksums (`pool/journal.rs`).

use std::collections::BTreeMap;

use crate::error::Result;
use crate::faults;
use crate::map::record::{Change, address, changes};
use crate::pool::crc32c;
use crate::pool::file::PoolFile;
use crate::pool::journal::{Kind, Record};
use crate::units::{BlockRange, Epoch, Pbn, Seq, TreeId};

/// A block of one head.
type Place = (TreeId, Epoch, u64);

/// A block as one record wrote it, needed from that record on until another replaced it.
struct Written {
    pbn: Pbn,
    crc: u32,
    from: Seq,
    until: Seq,
}

/// What the records that are not known durable have written.
#[derive(Default)]
pub(super) struct Tail {
    written: Vec<Written>,
    /// The newest of `written` at each place.
    newest: BTreeMap<Place, usize>,
}

impl Tail {
    /// Adds the next record.
    pub(super) fn add(&mut self, record: &Record) -> Result<()> {
        let writes = matches!(record.kind, Kind::Data | Kind::Fill);
        if !writes || faults::seeded("h1-replay-skips-data-check") {
            return Ok(());
        }
        let (tree, epoch) = address(&record.body)?;
        for change in changes(&record.body) {
            let change = change?;
            self.replace(tree, epoch, change.range(), record.seq);
            let Change::Write { lba, pbn, crcs, .. } = change else { continue };
            for ((crc, pbn), lba) in crcs.iter().zip(pbn.0..).zip(lba.0..) {
                self.newest.insert((tree, epoch, lba), self.written.len());
                let (pbn, crc) = (Pbn(pbn), u32::from_le_bytes(*crc));
                self.written.push(Written { pbn, crc, from: record.seq, until: Seq(u64::MAX) });
            }
        }
        Ok(())
    }

    fn replace(&mut self, tree: TreeId, epoch: Epoch, range: BlockRange, seq: Seq) {
        let places = (tree, epoch, range.start)..(tree, epoch, range.end);
        let gone: Vec<Place> = self.newest.range(places).map(|(place, _)| *place).collect();
        for place in gone {
            if let Some(at) = self.newest.remove(&place) {
                self.written[at].until = seq;
            }
        }
    }

    /// The largest record, up to `end`, after which everything is there. The file has room for blocks
    /// below `limit`; a record that names one beyond cannot have been synced, needed or not, because
    /// the sync would have covered the growth.
    pub(super) fn last_whole(mut self, file: &PoolFile, limit: Pbn, end: Seq) -> Seq {
        for block in self.written.iter_mut().filter(|block| block.pbn >= limit) {
            block.until = Seq(u64::MAX);
        }
        self.written.retain(|block| block.from < block.until);
        self.written.sort_unstable_by_key(|block| block.pbn);
        let mut found = Vec::with_capacity(self.written.len());
        let offsets = self.written.iter().map(|block| block.pbn.offset());
        file.read_each(offsets, |page| found.push(page.ok().map(crc32c)));
        let mut found = found.into_iter();
        self.written.retain(|block| found.next().flatten() != Some(block.crc));
        // From the newest on: going back before one record cannot make a newer one needed again.
        self.written.sort_unstable_by_key(|block| std::cmp::Reverse(block.from));
        self.written.iter().fold(end, |last, lost| {
            if (lost.from..lost.until).contains(&last) { Seq(lost.from.0 - 1) } else { last }
        })
    }
}
