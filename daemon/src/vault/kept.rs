//! Chunks that were fetched, and may be asked for again before they are stored or because they never are.
//!
//! Invariants: they are bounded, for all disks together.
//! Absent: fetching them (`origin.rs`).

use std::collections::VecDeque;
use std::sync::Arc;

use super::parts::PartId;
use crate::disk::lazy::Fetched;

/// Bytes of chunks kept in memory, of all disks together.
const KEPT_BYTES: usize = 64 << 20;

/// What is fetched for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    Part(PartId),
    /// A chunk: of its blocks those that this part of the table tells of, or all.
    Chunk(u32, Option<u32>),
}

/// The chunks used last, by the number of the origin and what they are for it.
#[derive(Debug, Default)]
pub struct Kept {
    list: VecDeque<((u64, Wanted), Arc<Fetched>)>,
    bytes: usize,
}

impl Kept {
    /// Something that is kept.
    pub fn get(&mut self, key: (u64, Wanted)) -> Option<Arc<Fetched>> {
        let at = self.list.iter().position(|(other, _)| *other == key)?;
        let found = self.list.remove(at)?;
        self.list.push_back(found);
        self.list.back().map(|(_, fetched)| Arc::clone(fetched))
    }

    /// Keeps something, and drops what was not used for longest.
    pub fn put(&mut self, key: (u64, Wanted), fetched: &Arc<Fetched>) {
        if self.get(key).is_some() {
            return;
        }
        self.bytes += fetched.bytes.len();
        self.list.push_back((key, Arc::clone(fetched)));
        while self.bytes > KEPT_BYTES
            && let Some((_, old)) = self.list.pop_front()
        {
            self.bytes -= old.bytes.len();
        }
    }

    /// Drops what is kept for an origin.
    pub fn forget(&mut self, serial: u64) {
        self.list.retain(|((other, _), _)| *other != serial);
        self.bytes = self.list.iter().map(|(_, fetched)| fetched.bytes.len()).sum();
    }
}
