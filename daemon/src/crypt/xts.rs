//! AES-256 in XTS mode (IEEE 1619) over blocks of 4 KiB.
//!
//! Invariants: sealing is undone by opening at the same place, and by nothing else; a block keeps its length.
//! The first half of a key encrypts the data, the second the tweak.
//! Absent: authentication, and blocks of other sizes. The mode is written out here because the crates that
//! have it encrypt sixteen bytes at a time, which is twenty times slower than the processor is.

use aes::Aes256;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use std::fmt;

use super::locked::Locked;
use super::{DiskKey, Place, Salts};
use crate::error::{Error, Result};
use crate::units::BLOCK_BYTES;

/// Bytes that AES encrypts at a time.
const UNIT: usize = 16;
const UNITS: usize = BLOCK_BYTES / UNIT;
/// Tweaks that are computed side by side.
const LANES: usize = 8;

/// Encrypts and decrypts the blocks of a family of disks.
pub struct Cipher {
    keys: Locked<Keys>,
    /// For what is written from now on.
    pub salts: Salts,
}

struct Keys {
    data: Aes256,
    tweak: Aes256,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

impl Cipher {
    /// # Errors
    /// There is no memory for the key, or its halves are the same, which XTS does not allow.
    pub fn new(key: &DiskKey) -> Result<Cipher> {
        let (data, tweak) = key.split_at(key.len() / 2);
        if data == tweak {
            return Err(Error::corrupt("the two halves of a disk's key are the same"));
        }
        let expand = |half: &[u8]| Aes256::new_from_slice(half).expect("32 bytes");
        let keys = Locked::new(|| Keys { data: expand(data), tweak: expand(tweak) })?;
        Ok(Cipher { keys, salts: Salts::new()? })
    }

    /// Encrypts one block.
    pub fn seal(&self, place: Place, plain: &[u8], out: &mut [u8]) {
        let tweaks = self.tweaks(place);
        let (plain, out) = (plain.as_chunks::<UNIT>().0, units(out));
        for ((unit, plain), tweak) in out.iter_mut().zip(plain).zip(&tweaks) {
            unit.0 = mix(*plain, *tweak);
        }
        self.keys.data.encrypt_blocks(out);
        for (unit, tweak) in out.iter_mut().zip(&tweaks) {
            unit.0 = mix(unit.0, *tweak);
        }
    }

    /// Decrypts one block where it is.
    pub fn open(&self, place: Place, block: &mut [u8]) {
        let tweaks = self.tweaks(place);
        let block = units(block);
        for (unit, tweak) in block.iter_mut().zip(&tweaks) {
            unit.0 = mix(unit.0, *tweak);
        }
        self.keys.data.decrypt_blocks(block);
        for (unit, tweak) in block.iter_mut().zip(&tweaks) {
            unit.0 = mix(unit.0, *tweak);
        }
    }

    /// The tweak of each unit of a block: the encrypted place, times 2 in GF(2^128) for each unit before it.
    fn tweaks(&self, place: Place) -> [u128; UNITS] {
        let mut first = aes::Block::from(bytes_of(place));
        self.keys.tweak.encrypt_block(&mut first);
        let mut next = [u128::from_le_bytes(first.0); LANES];
        for lane in 1..LANES {
            next[lane] = double(next[lane - 1]);
        }
        let mut all = [0; UNITS];
        for some in all.as_chunks_mut::<LANES>().0 {
            *some = next;
            next = next.map(times_256);
        }
        all
    }
}

/// A place as the sixteen bytes that are its tweak: block of the disk, block of the pool, salt. The first two
/// have less than 48 bits (FORMAT.md), so no two places have the same.
fn bytes_of(Place { lba, pbn, salt }: Place) -> [u8; UNIT] {
    let mut bytes = [0; UNIT];
    bytes[..6].copy_from_slice(&lba.0.to_le_bytes()[..6]);
    bytes[6..12].copy_from_slice(&pbn.0.to_le_bytes()[..6]);
    bytes[12..].copy_from_slice(&salt.to_le_bytes());
    bytes
}

fn units(block: &mut [u8]) -> &mut [aes::Block] {
    assert_eq!(block.len(), BLOCK_BYTES, "a block is sealed as a whole");
    aes::Block::slice_as_chunks_mut(block).0
}

fn mix(unit: [u8; UNIT], tweak: u128) -> [u8; UNIT] {
    (u128::from_le_bytes(unit) ^ tweak).to_le_bytes()
}

fn double(tweak: u128) -> u128 {
    tweak << 1 ^ reduced(tweak >> 127)
}

/// As often doubled as there are lanes.
fn times_256(tweak: u128) -> u128 {
    tweak << LANES ^ reduced(tweak >> (128 - LANES))
}

/// What bits beyond the 128th come to: x^128 is x^7 + x^2 + x + 1.
fn reduced(over: u128) -> u128 {
    over ^ over << 1 ^ over << 2 ^ over << 7
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Lba, Pbn};
    use zeroize::Zeroizing;

    const HERE: Place = Place { lba: Lba(5), pbn: Pbn(1 << 39), salt: 7 };

    fn cipher(fill: u8) -> Cipher {
        let mut key = Zeroizing::new([fill; 64]);
        key[32..].fill(!fill);
        Cipher::new(&key).unwrap()
    }

    fn sealed(cipher: &Cipher, place: Place, plain: &[u8]) -> Vec<u8> {
        let mut out = vec![0; BLOCK_BYTES];
        cipher.seal(place, plain, &mut out);
        out
    }

    fn sample() -> Vec<u8> {
        (0..=250).cycle().take(BLOCK_BYTES).collect()
    }

    /// The definition of the standard, one unit after the other.
    #[test]
    fn a_block_is_sealed_as_the_standard_says() {
        let (cipher, plain) = (cipher(0x3c), sample());
        let mut tweak = aes::Block::from(bytes_of(HERE));
        cipher.keys.tweak.encrypt_block(&mut tweak);
        let mut tweak: Vec<u8> = tweak.to_vec();
        let mut expected = plain.clone();
        for unit in expected.chunks_exact_mut(UNIT) {
            unit.iter_mut().zip(&tweak).for_each(|(byte, tweak)| *byte ^= tweak);
            let mut block = aes::Block::try_from(&*unit).unwrap();
            cipher.keys.data.encrypt_block(&mut block);
            unit.copy_from_slice(&block);
            unit.iter_mut().zip(&tweak).for_each(|(byte, tweak)| *byte ^= tweak);
            let mut carry = 0;
            for byte in &mut tweak {
                (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
            }
            tweak[0] ^= 0x87 * carry;
        }
        assert_eq!(sealed(&cipher, HERE, &plain), expected);
    }

    /// Vector 10 of IEEE 1619-2007 (AES-256), as far as it reaches: its data unit has 512 bytes, and units
    /// of the standard do not depend on those behind them.
    #[test]
    fn the_vector_of_the_standard_comes_out() {
        let hex = |text: &str| -> Vec<u8> {
            let pairs = text.as_bytes().chunks_exact(2);
            pairs
                .map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap())
                .collect()
        };
        let key = hex(concat!(
            "2718281828459045235360287471352662497757247093699959574966967627",
            "3141592653589793238462643383279502884197169399375105820974944592"
        ));
        let key = Zeroizing::new(<[u8; 64]>::try_from(key).unwrap());
        let cipher = Cipher::new(&key).unwrap();
        let plain: Vec<u8> = (0..=255).cycle().take(BLOCK_BYTES).collect();
        let place = Place { lba: Lba(0xff), pbn: Pbn(0), salt: 0 };
        let start = "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b";
        assert_eq!(sealed(&cipher, place, &plain)[..32], hex(start));
    }

    #[test]
    fn opening_undoes_sealing_at_the_same_place_only() {
        let (cipher, plain) = (cipher(1), sample());
        let stored = sealed(&cipher, HERE, &plain);
        let open = |cipher: &Cipher, place| {
            let mut block = stored.clone();
            cipher.open(place, &mut block);
            block
        };
        assert_eq!(open(&cipher, HERE), plain);
        for place in [
            Place { lba: Lba(6), ..HERE },
            Place { pbn: Pbn(1), ..HERE },
            Place { salt: 8, ..HERE },
        ] {
            assert_ne!(open(&cipher, place), plain, "{place:?}");
        }
        assert_ne!(open(&super::tests::cipher(2), HERE), plain);
    }

    #[test]
    fn a_key_with_equal_halves_is_refused() {
        assert!(Cipher::new(&Zeroizing::new([9; 64])).is_err());
    }
}
