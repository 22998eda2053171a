//! Self-describing sectors: whose write they are, where they belong, and whether they are whole.
//!
//! Invariants: a sector is all zeros (write 0), or everything in it follows from its write and its
//! place; a mixture of two writes, a sector from elsewhere, or other bytes are told apart.
//! Absent: which write should be where (`judge`).

use super::rng::mix;

/// The unit a disk may tear at, and that requests are made of here.
pub const SECTOR: usize = 512;
/// Sectors in a block of the map.
pub const BLOCK_SECTORS: u32 = 8;

const MAGIC: u64 = u64::from_le_bytes(*b"ROWSTAMP");
/// The top bits of a write's number name the disk it was for.
const DISK_SHIFT: u32 = 40;

/// A write: its disk and its number there. 0 is the absence of any: zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(u64);

impl Value {
    /// What was never written, or was zeroed.
    pub const ZERO: Value = Value(0);

    #[must_use]
    pub fn new(disk: u32, number: u64) -> Value {
        Value(u64::from(disk) << DISK_SHIFT | number)
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Value::ZERO {
            return f.write_str("zeros");
        }
        let number = self.0 & ((1 << DISK_SHIFT) - 1);
        write!(f, "write {number} of disk {}", self.0 >> DISK_SHIFT)
    }
}

/// The bytes of a write that begins at sector `first`.
///
/// # Panics
/// The buffer is not made of sectors.
pub fn fill(out: &mut [u8], first: u32, value: Value) {
    let (sectors, rest) = out.as_chunks_mut::<SECTOR>();
    assert!(rest.is_empty(), "whole sectors");
    for (at, sector) in (first..).zip(sectors) {
        for (index, word) in sector.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = content(at, value, index as u64).to_le_bytes();
        }
    }
}

/// Whose write a sector is.
///
/// # Errors
/// It is nobody's: torn, from another place, or foreign bytes.
pub fn parse(sector: &[u8], at: u32) -> Result<Value, String> {
    if sector.iter().all(|byte| *byte == 0) {
        return Ok(Value::ZERO);
    }
    let words: Vec<u64> =
        sector.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
    if words[0] != MAGIC {
        return Err(format!("sector {at} holds bytes that nobody wrote"));
    }
    let value = Value(words[1]);
    if words[2] != u64::from(at) {
        return Err(format!("sector {at} holds {value} meant for sector {}", words[2]));
    }
    let whole = words.iter().zip(0..).all(|(word, index)| *word == content(at, value, index));
    if whole { Ok(value) } else { Err(format!("sector {at} holds a part of {value}")) }
}

/// The write of each sector of a disk.
///
/// # Errors
/// As [`parse`].
pub fn parse_all(bytes: &[u8]) -> Result<Vec<Value>, String> {
    bytes.chunks_exact(SECTOR).zip(0..).map(|(sector, at)| parse(sector, at)).collect()
}

fn content(at: u32, value: Value, index: u64) -> u64 {
    match index {
        0 => MAGIC,
        1 => value.0,
        2 => u64::from(at),
        _ => mix(value.0 ^ u64::from(at) << 20 ^ index << 56),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_tells_its_write_and_nothing_else_passes_for_one() {
        let (a, b) = (Value::new(1, 7), Value::new(2, 7));
        let mut bytes = vec![0; 4 * SECTOR];
        fill(&mut bytes[SECTOR..3 * SECTOR], 1, a);
        assert_eq!(parse_all(&bytes).unwrap(), [Value::ZERO, a, a, Value::ZERO]);
        assert!(parse(&bytes[SECTOR..2 * SECTOR], 9).unwrap_err().contains("meant for sector 1"));
        let mut other = vec![0; SECTOR];
        fill(&mut other, 1, b);
        bytes[SECTOR + 256..2 * SECTOR].copy_from_slice(&other[256..]);
        assert!(parse(&bytes[SECTOR..2 * SECTOR], 1).unwrap_err().contains("a part of"));
        assert!(parse(&[1; SECTOR], 0).unwrap_err().contains("nobody wrote"));
    }
}
