//! A leaf: where 64 consecutive blocks of a disk are, since when, and their checksums.
//!
//! Invariants: an encoded leaf decodes to itself and to nothing else; physical block numbers have 40
//! bits, births 24. A leaf is complete: holes in it do not show the leaf of an ancestor.
//! Absent: which leaf is valid for whom (`lineage.rs`). Bytes are described in FORMAT.md.

use crate::error::{Error, Result};
use crate::units::{Epoch, LEAF_BLOCKS, Pbn};

const SLOTS: usize = 64;
const _: () = assert!(SLOTS as u64 == LEAF_BLOCKS, "a leaf has a slot for each of its blocks");
const BIRTH_BITS: u32 = 24;
const BIRTH_MASK: u64 = (1 << BIRTH_BITS) - 1;
/// A slot that was never written, or was trimmed.
const HOLE: u64 = 0;
/// A slot that was written with zeros and takes no space.
const ZERO: u64 = u64::MAX;

/// Marks the length of a run that has a salt.
const SALTED: u8 = 0x80;

/// The largest epoch a leaf can name.
pub const MAX_EPOCH: u32 = (1 << BIRTH_BITS) - 1;
/// Memory that one cached leaf takes, with its place in a table; that of an encrypted disk a third more.
pub const LEAF_MEMORY: usize = SLOTS * 12 + 104;

/// What one block of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Never written, or trimmed: reads as zeros.
    Hole,
    /// Zeroed on purpose: reads as zeros.
    Zero,
    /// Stored in the pool. `salt` is zero unless the block is encrypted.
    Data { pbn: Pbn, birth: Epoch, crc: u32, salt: u32 },
}

/// 64 entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    places: [u64; SLOTS],
    crcs: [u32; SLOTS],
    /// Only where a block is encrypted.
    salts: Option<Box<[u32; SLOTS]>>,
}

impl Default for Leaf {
    fn default() -> Self {
        Leaf { places: [HOLE; SLOTS], crcs: [0; SLOTS], salts: None }
    }
}

impl Leaf {
    /// The entry of a slot.
    #[must_use]
    pub fn get(&self, slot: usize) -> Entry {
        match self.places[slot] {
            HOLE => Entry::Hole,
            ZERO => Entry::Zero,
            place => Entry::Data {
                pbn: Pbn(place >> BIRTH_BITS),
                birth: birth_of(place),
                crc: self.crcs[slot],
                salt: self.salt(slot),
            },
        }
    }

    /// Changes the entry of a slot and returns what it was.
    pub fn set(&mut self, slot: usize, entry: Entry) -> Entry {
        let old = self.get(slot);
        let salt;
        (self.places[slot], self.crcs[slot], salt) = match entry {
            Entry::Hole => (HOLE, 0, 0),
            Entry::Zero => (ZERO, 0, 0),
            Entry::Data { pbn, birth, crc, salt } => {
                (pbn.0 << BIRTH_BITS | u64::from(birth.0), crc, salt)
            }
        };
        if salt != 0 || self.salts.is_some() {
            self.salts.get_or_insert_with(|| Box::new([0; SLOTS]))[slot] = salt;
        }
        old
    }

    fn salt(&self, slot: usize) -> u32 {
        self.salts.as_ref().map_or(0, |salts| salts[slot])
    }

    /// Whether no slot holds anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.iter().all(|place| *place == HOLE)
    }

    /// The slots that hold data, with their block, birth and checksum.
    pub fn data(&self) -> impl Iterator<Item = (usize, Pbn, Epoch, u32)> + '_ {
        (0..SLOTS).filter_map(|slot| match self.get(slot) {
            Entry::Data { pbn, birth, crc, .. } => Some((slot, pbn, birth, crc)),
            Entry::Hole | Entry::Zero => None,
        })
    }

    /// Encodes as runs of alike neighbours.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        let mut slot = 0;
        while slot < SLOTS {
            let len = self.run_at(slot);
            let salt = self.salt(slot);
            let mark = if salt == 0 { 0 } else { SALTED };
            out.push(u8::try_from(len).expect("at most 64") | mark);
            out.extend_from_slice(&self.places[slot].to_le_bytes());
            if salt != 0 {
                out.extend_from_slice(&salt.to_le_bytes());
            }
            if self.places[slot] != HOLE && self.places[slot] != ZERO {
                for crc in &self.crcs[slot..slot + len] {
                    out.extend_from_slice(&crc.to_le_bytes());
                }
            }
            slot += len;
        }
        out
    }

    /// Decodes what [`Leaf::encode`] wrote.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no leaf.
    pub fn decode(bytes: &[u8]) -> Result<Leaf> {
        decode(bytes).ok_or_else(|| Error::corrupt("a leaf of the map cannot be decoded"))
    }

    fn run_at(&self, slot: usize) -> usize {
        let first = self.places[slot];
        let step = if first == HOLE || first == ZERO { 0 } else { 1 << BIRTH_BITS };
        let mut expected = first;
        let rest = self.places[slot..].iter().zip(slot..);
        rest.take_while(|(place, at)| {
            let alike = **place == expected && self.salt(*at) == self.salt(slot);
            expected = expected.wrapping_add(step);
            alike
        })
        .count()
    }
}

fn birth_of(place: u64) -> Epoch {
    Epoch(u32::try_from(place & BIRTH_MASK).expect("24 bits"))
}

fn decode(mut bytes: &[u8]) -> Option<Leaf> {
    let mut leaf = Leaf::default();
    let mut slot = 0;
    while slot < SLOTS {
        let (len, rest) = bytes.split_first()?;
        let (place, rest) = rest.split_first_chunk::<8>()?;
        let (mark, mut place) = (len & SALTED, u64::from_le_bytes(*place));
        let len = usize::from(len & !SALTED);
        if len == 0 || slot + len > SLOTS {
            return None;
        }
        bytes = rest;
        let mut salt = 0;
        if mark != 0 {
            let (found, rest) = bytes.split_first_chunk::<4>()?;
            (salt, bytes) = (u32::from_le_bytes(*found), rest);
            if salt == 0 || place == HOLE || place == ZERO {
                return None;
            }
        }
        for at in slot..slot + len {
            leaf.places[at] = place;
            if salt != 0 {
                leaf.salts.get_or_insert_with(|| Box::new([0; SLOTS]))[at] = salt;
            }
            if place != HOLE && place != ZERO {
                let (crc, rest) = bytes.split_first_chunk::<4>()?;
                leaf.crcs[at] = u32::from_le_bytes(*crc);
                bytes = rest;
                place = place.checked_add(1 << BIRTH_BITS)?;
            }
        }
        slot += len;
    }
    bytes.is_empty().then_some(leaf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry() -> impl Strategy<Value = Entry> {
        prop_oneof![
            Just(Entry::Hole),
            Just(Entry::Zero),
            (1u64..1 << 39, 1u32..1 << 24, any::<u32>(), 0u32..3).prop_map(|(p, b, crc, salt)| {
                Entry::Data { pbn: Pbn(p), birth: Epoch(b), crc, salt }
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_leaf_reads_back_as_written(entries in proptest::collection::vec(entry(), 64)) {
            let mut leaf = Leaf::default();
            for (slot, entry) in entries.iter().enumerate() {
                leaf.set(slot, *entry);
            }
            let back = Leaf::decode(&leaf.encode()).unwrap();
            prop_assert_eq!(&back, &leaf);
            for (slot, entry) in entries.iter().enumerate() {
                prop_assert_eq!(back.get(slot), *entry);
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _leaf_or_error = Leaf::decode(&bytes).is_ok();
        }
    }

    #[test]
    fn a_sequential_leaf_is_one_run() {
        let mut leaf = Leaf::default();
        for slot in 0..64 {
            let pbn = Pbn(1000 + slot as u64);
            leaf.set(slot, Entry::Data { pbn, birth: Epoch(3), crc: 9, salt: 0 });
        }
        assert_eq!(leaf.encode().len(), 9 + 64 * 4);
        for slot in 0..64 {
            let pbn = Pbn(1000 + slot as u64);
            leaf.set(slot, Entry::Data { pbn, birth: Epoch(3), crc: 9, salt: 5 });
        }
        assert_eq!(leaf.encode().len(), 9 + 4 + 64 * 4);
        assert_eq!(Leaf::decode(&leaf.encode()).unwrap(), leaf);
    }
}
