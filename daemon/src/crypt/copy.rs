//! Encryption of what leaves this host: the objects that copies of encrypted disks are made of.
//!
//! A family of disks has one key for its copies, derived from its own, so that whoever can read a copy cannot
//! read the pool. Each object has a mark in front, an HMAC of its contents and of a salt; the mark gives the
//! AES-256-GCM key of this object alone. So the same contents with the same salt make the same object, which a
//! copy that is begun again relies on, and no key ever encrypts two different things.
//!
//! Invariants: an object is opened wholly or not at all; nothing here prints a key.
//! Absent: compression, which comes before (`vault/chunk.rs`), and where keys are kept (`engine/keys.rs`).

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::hmac::{self, Context, HMAC_SHA256};
use zeroize::Zeroizing;

use super::locked::Locked;
use super::{DiskKey, KEY_BYTES};
use crate::error::{Error, Result};

/// Bytes of the mark in front of an object.
const MARK_BYTES: usize = 32;
/// What an object is longer than its contents: the mark, and the tag of GCM.
pub const OVERHEAD: usize = MARK_BYTES + 16;
/// What keys of copies are derived with, so that they are no other keys.
const PURPOSE: &[u8] = b"rowd copies 1";

/// What is signed is told apart by its first byte.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Domain {
    Mark = 0,
    Sum = 1,
    Id = 2,
}

struct Keys {
    /// Marks, and sums of what is not encrypted.
    mac: hmac::Key,
    /// The keys of objects, by their marks.
    objects: hmac::Key,
}

/// The key of the copies of a family of disks.
pub struct CopyKey {
    keys: Locked<Keys>,
    id: String,
}

impl fmt::Debug for CopyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CopyKey({})", self.id)
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// What is kept of a [`CopyKey`], wrapped: derived from the key of the disks.
///
/// # Errors
/// None; the length is one that can be derived.
pub fn derive(disk: &DiskKey) -> Result<DiskKey> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    let pseudorandom = Salt::new(HKDF_SHA256, PURPOSE).extract(&**disk);
    let derived = pseudorandom.expand(&[PURPOSE], Length(KEY_BYTES));
    let filled = derived.and_then(|okm| okm.fill(&mut *key));
    filled.map_err(|_| Error::internal("a key of copies cannot be derived"))?;
    Ok(key)
}

impl CopyKey {
    /// # Errors
    /// There is no memory for it.
    pub fn new(raw: &DiskKey) -> Result<CopyKey> {
        let (mac, objects) = raw.split_at(KEY_BYTES / 2);
        let keys = Locked::new(|| Keys {
            mac: hmac::Key::new(HMAC_SHA256, mac),
            objects: hmac::Key::new(HMAC_SHA256, objects),
        })?;
        let id = hmac::sign(&keys.mac, &[Domain::Id as u8]);
        let id = id.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(CopyKey { keys, id })
    }

    /// Tells keys apart and says nothing about the key.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Encrypts the contents of an object. With another salt the same contents make another object.
    ///
    /// # Errors
    /// None; contents have a length that can be encrypted.
    pub fn seal(&self, salt: &str, contents: &[u8]) -> Result<Vec<u8>> {
        let mut context = Context::with_key(&self.keys.mac);
        context.update(&[Domain::Mark as u8]);
        context.update(&(salt.len() as u64).to_le_bytes());
        context.update(salt.as_bytes());
        context.update(contents);
        let mark = context.sign();
        let mut object = Vec::with_capacity(contents.len() + OVERHEAD);
        object.extend_from_slice(mark.as_ref());
        object.extend_from_slice(contents);
        let tag = self
            .of_object(mark.as_ref())?
            .seal_in_place_separate_tag(nonce(), Aad::empty(), &mut object[MARK_BYTES..])
            .map_err(|_| Error::internal("an object cannot be encrypted"))?;
        object.extend_from_slice(tag.as_ref());
        Ok(object)
    }

    /// The contents of an object that [`CopyKey::seal`] made; nothing when it is not such an object.
    #[must_use]
    pub fn open(&self, object: &[u8]) -> Option<Vec<u8>> {
        let (mark, sealed) = object.split_at_checked(MARK_BYTES)?;
        let mut contents = sealed.to_vec();
        let key = self.of_object(mark).ok()?;
        let length = key.open_in_place(nonce(), Aad::empty(), &mut contents).ok()?.len();
        contents.truncate(length);
        Some(contents)
    }

    /// A sum that only who has the key can make.
    #[must_use]
    pub fn sum(&self, text: &[u8]) -> [u8; 32] {
        let mut context = Context::with_key(&self.keys.mac);
        context.update(&[Domain::Sum as u8]);
        context.update(text);
        let mut sum = [0; 32];
        sum.copy_from_slice(context.sign().as_ref());
        sum
    }

    /// Whether this is the sum of a text.
    #[must_use]
    pub fn is_sum(&self, text: &[u8], sum: &[u8]) -> bool {
        let signed = [&[Domain::Sum as u8], text].concat();
        hmac::verify(&self.keys.mac, &signed, sum).is_ok()
    }

    /// The key of one object.
    fn of_object(&self, mark: &[u8]) -> Result<LessSafeKey> {
        let derived = hmac::sign(&self.keys.objects, mark);
        UnboundKey::new(&AES_256_GCM, derived.as_ref())
            .map(LessSafeKey::new)
            .map_err(|_| Error::internal("an HMAC is no key"))
    }
}

/// A key encrypts one object, so all have the same.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fill: u8) -> CopyKey {
        CopyKey::new(&derive(&Zeroizing::new([fill; KEY_BYTES])).unwrap()).unwrap()
    }

    #[test]
    fn an_object_comes_back_and_any_change_of_it_is_found() {
        let contents: Vec<u8> = (0..1000u32).flat_map(u32::to_le_bytes).collect();
        let object = key(1).seal("c-1", &contents).unwrap();
        assert_eq!(object.len(), contents.len() + OVERHEAD);
        assert_eq!(key(1).open(&object).unwrap(), contents);
        for at in (0..object.len()).step_by(97).chain([0, object.len() - 1]) {
            let mut bad = object.clone();
            bad[at] ^= 1;
            assert!(key(1).open(&bad).is_none(), "byte {at}");
        }
        assert!(key(2).open(&object).is_none());
        assert!(key(1).open(&object[..20]).is_none() && key(1).open(b"").is_none());
        assert!(key(1).open(&key(1).seal("", b"").unwrap()).unwrap().is_empty());
    }

    #[test]
    fn the_same_again_is_the_same_and_all_else_differs() {
        let object = |salt: &str, contents: &[u8]| key(1).seal(salt, contents).unwrap();
        assert_eq!(object("c-1", b"same"), object("c-1", b"same"));
        let (one, two) = (object("c-1", b"same"), object("c-2", b"same"));
        assert!(one.chunks(16).zip(two.chunks(16)).all(|(one, two)| one != two));
        let (one, two) = (object("c-1", &[0; 64]), object("c-1", &[1; 64]));
        assert_ne!(one[MARK_BYTES], two[MARK_BYTES] ^ 1, "the same stream for two contents");
        assert_ne!(object("c-1", b"2same"), object("c-12", b"same"));
    }

    #[test]
    fn a_sum_needs_the_key() {
        let sum = key(1).sum(b"text");
        assert!(key(1).is_sum(b"text", &sum));
        assert!(!key(1).is_sum(b"texts", &sum) && !key(2).is_sum(b"text", &sum));
        assert_ne!(key(1).id(), key(2).id());
    }
}
