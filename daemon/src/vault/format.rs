//! What a repository is made of: the keys of its objects, its format file, and small records with a sum.
//!
//! Invariants: a repository says itself what it is; a version that is not known is refused, never guessed at;
//! a record that is not what was written is named as damaged.
//! Absent: the objects with data (`table.rs`, `chunk.rs`). FORMAT-VAULT.md describes all of them.

use ring::digest::{SHA256, digest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::units::RepoId;

/// The version of the format that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// The version of the header of a copy that is encrypted.
pub const SEALED_VERSION: u32 = 2;
/// The version of the header of a copy whose table is in parts, encrypted or not.
pub const PARTS_VERSION: u32 = 3;
/// The object that says what a repository is.
pub const FORMAT_KEY: &str = "rowd-vault";
/// What the format file says first.
const FORMAT_NAME: &str = "rowd-vault";
/// No record is longer: descriptions and tags have bounds of their own.
pub const RECORD_MAX: u64 = 1 << 20;
/// Characters of a SHA-256 in hexadecimal.
const SUM_LENGTH: usize = 64;

/// The format file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    pub format: String,
    pub version: u32,
    pub id: RepoId,
    /// Seconds since 1970.
    pub created_at: u64,
    /// What chunks are named by.
    pub hash: String,
    /// How objects with data are compressed.
    pub compression: String,
}

impl Format {
    /// A new repository.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn new(now: u64) -> Result<Format> {
        Ok(Format {
            format: FORMAT_NAME.to_owned(),
            version: VERSION,
            id: RepoId::random()?,
            created_at: now,
            hash: "sha256".to_owned(),
            compression: "zstd".to_owned(),
        })
    }

    /// Reads a format file.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` when another version wrote it.
    pub fn decode(bytes: &[u8]) -> Result<Format> {
        let format: Format = open(FORMAT_KEY, bytes)?;
        let same = format.format == FORMAT_NAME
            && format.hash == "sha256"
            && format.compression == "zstd"
            && format.version == VERSION;
        if same {
            return Ok(format);
        }
        let message = format!(
            "the repository has format {:?} version {} ({}, {}); this rowd knows version {VERSION} of {FORMAT_NAME:?}",
            format.format, format.version, format.hash, format.compression
        );
        Err(Error::new(ErrorKind::Unsupported, message).hint("use a newer rowd"))
    }
}

/// A record as an object: one line of JSON, and a line with its SHA-256.
///
/// # Errors
/// It cannot be encoded, which is a fault of ours.
pub fn seal<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(record)
        .map_err(|e| Error::internal(format!("encode a record of a repository: {e}")))?;
    let sum = sha256_hex(&bytes);
    bytes.push(b'\n');
    bytes.extend_from_slice(sum.as_bytes());
    bytes.push(b'\n');
    Ok(bytes)
}

/// The bytes that hexadecimal digits mean; nothing when they are none.
#[must_use]
pub fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

/// The record in an object that [`seal`] made.
///
/// # Errors
/// `Corrupt`, naming the object.
pub fn open<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    let damaged = |why: &str| Error::corrupt(format!("{key} in the repository is damaged: {why}"));
    let at = bytes.len().checked_sub(SUM_LENGTH + 2).ok_or_else(|| damaged("too short"))?;
    let (json, tail) = bytes.split_at(at);
    if tail[0] != b'\n' || tail[SUM_LENGTH + 1] != b'\n' {
        return Err(damaged("it has no sum"));
    }
    if sha256_hex(json).as_bytes() != &tail[1..=SUM_LENGTH] {
        return Err(damaged("its sum is wrong"));
    }
    serde_json::from_slice(json).map_err(|e| damaged(&e.to_string()))
}

/// SHA-256 of some bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}

/// The same in hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_any_flipped_bit_is_found() {
        let format = Format::new(7).unwrap();
        let bytes = seal(&format).unwrap();
        assert_eq!(Format::decode(&bytes).unwrap(), format);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            let error = Format::decode(&bad).unwrap_err();
            assert!(error.message().contains("rowd-vault"), "{error}");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}");
        }
        assert!(Format::decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(Format::decode(b"").is_err());
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        let format = Format { version: 2, ..Format::new(7).unwrap() };
        let error = Format::decode(&seal(&format).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("version 2"), "{error}");
    }
}
