//! Encryption of disks: what turns blocks into ciphertext and back, and the keys for it.
//!
//! Each family of disks that share blocks has one random key. It is kept wrapped by the master key, which is
//! never in the pool, and is in memory only while its disks are.
//!
//! Invariants: no two contents of one place of the pool are sealed alike, since each sealing takes a salt of
//! its own; keys live in locked memory that is no part of a core dump and is zeroed when they go; nothing
//! here prints a key.
//! Absent: which disks are encrypted (`engine/keys.rs`), where the salt is kept (`map/leaf.rs`), and proof
//! against somebody who writes to the pool: the checksums of the map tell accidents, not forgeries.

pub mod copy;
mod locked;
pub mod master;
mod xts;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::units::{Lba, Pbn};
pub use xts::Cipher;

/// Bytes of a disk's key: two AES-256 keys, one for the data and one for the tweak.
pub const KEY_BYTES: usize = 64;

/// The key of a family of disks, before it is wrapped or after it was unwrapped.
pub type DiskKey = Zeroizing<[u8; KEY_BYTES]>;

/// A new random key.
///
/// # Errors
/// The system's random source does not answer.
pub fn new_key() -> Result<DiskKey> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(&mut *key).map_err(|e| Error::internal(format!("no random numbers: {e}")))?;
    Ok(key)
}

/// What makes the sealing of one block differ from every other: its place on the disk and in the pool, and a
/// number that differs from one write to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub lba: Lba,
    pub pbn: Pbn,
    pub salt: u32,
}

/// How the blocks of a disk are stored.
#[derive(Clone, Debug, Default)]
pub enum Sealing {
    /// As they are.
    #[default]
    Plain,
    /// Encrypted.
    Sealed(Arc<Cipher>),
    /// Encrypted, and there is no key: why.
    Locked(Error),
}

impl Sealing {
    /// The cipher, if there is one.
    ///
    /// # Errors
    /// The blocks are encrypted, and there is no key.
    pub fn cipher(&self) -> Result<Option<&Arc<Cipher>>> {
        match self {
            Sealing::Plain => Ok(None),
            Sealing::Sealed(cipher) => Ok(Some(cipher)),
            Sealing::Locked(why) => Err(why.clone()),
        }
    }
}

/// Numbers for salts, never zero, which marks what is not sealed. They begin anywhere and go up, so that a
/// number comes again after four thousand million sealings, and not before.
#[derive(Debug)]
pub struct Salts(AtomicU32);

impl Salts {
    /// # Errors
    /// The system's random source does not answer.
    pub fn new() -> Result<Salts> {
        let mut first = [0; 4];
        getrandom::fill(&mut first)
            .map_err(|e| Error::internal(format!("no random numbers: {e}")))?;
        Ok(Salts(AtomicU32::new(u32::from_le_bytes(first))))
    }

    /// The next salt.
    #[must_use]
    pub fn next(&self) -> u32 {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => self.next(),
            salt => salt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn salts_skip_the_mark_of_plain_blocks() {
        let salts = Salts(AtomicU32::new(u32::MAX));
        assert_eq!([salts.next(), salts.next(), salts.next()], [u32::MAX, 1, 2]);
    }

    #[test]
    fn two_keys_differ() {
        assert_ne!(*new_key().unwrap(), *new_key().unwrap());
    }
}
