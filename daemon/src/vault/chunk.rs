//! Chunks: blocks packed into objects, compressed, and named by the SHA-256 of what they hold. Those of
//! encrypted disks are encrypted after they are compressed, and named by the SHA-256 of the object, so that
//! nobody needs a key to tell whether it is whole.
//!
//! Invariants: nothing of a chunk is used before its length and its sum are right.
//! Absent: which blocks of a disk they are (`table.rs`).

use super::format::sha256;
use super::seal::Seal;
use super::table::Chunk;
use crate::error::{Error, Result};
use crate::units::CopyId;

/// Bytes of blocks in a chunk: few requests for a large disk, and little to send again after a failure.
pub const CHUNK_BYTES: usize = 4 << 20;
/// The longest object of a chunk: what does not compress grows a little.
pub const OBJECT_MAX: u64 = (CHUNK_BYTES + (64 << 10)) as u64;
/// Faster levels save nothing where the network is slower than a core.
const LEVEL: i32 = 1;

/// Blocks as a chunk, and the bytes of its object.
///
/// # Errors
/// They cannot be compressed, which is a fault of ours; there is no key.
pub fn pack(owner: &CopyId, blocks: &[u8], seal: &Seal) -> Result<(Chunk, Vec<u8>)> {
    let bytes = zstd::bulk::compress(blocks, LEVEL)
        .map_err(|e| Error::internal(format!("compress a chunk: {e}")))?;
    let length = |bytes: &[u8]| {
        u32::try_from(bytes.len()).map_err(|e| Error::internal(format!("a chunk is too long: {e}")))
    };
    let (sum, bytes) = match seal.key()? {
        None => (sha256(blocks), bytes),
        Some(key) => {
            let sealed = key.seal(owner.as_str(), &bytes)?;
            (sha256(&sealed), sealed)
        }
    };
    let (raw, stored) = (length(blocks)?, length(&bytes)?);
    Ok((Chunk { owner: owner.clone().into(), sum, raw, stored }, bytes))
}

/// The blocks in the object of a chunk.
///
/// # Errors
/// `Corrupt`, naming the object; `Condition` when there is no key.
pub fn unpack(chunk: &Chunk, bytes: &[u8], seal: &Seal) -> Result<Vec<u8>> {
    let length = chunk.raw as usize;
    if length > CHUNK_BYTES {
        return Err(damaged(chunk, "it would be too long"));
    }
    let opened = match seal.key()? {
        None => None,
        Some(key) => {
            check_object(chunk, bytes)?;
            Some(key.open(bytes).ok_or_else(|| damaged(chunk, "it is not of the copy's key"))?)
        }
    };
    let packed = opened.as_deref().unwrap_or(bytes);
    let blocks =
        zstd::bulk::decompress(packed, length).map_err(|e| damaged(chunk, &e.to_string()))?;
    let is_whole = opened.is_some() || sha256(&blocks) == chunk.sum;
    if blocks.len() != length || !is_whole {
        return Err(damaged(chunk, "it is not what was written"));
    }
    Ok(blocks)
}

/// Whether the object of a chunk is whole, also when there is no key to read it.
///
/// # Errors
/// `Corrupt`, naming the object.
pub fn check(chunk: &Chunk, bytes: &[u8], seal: &Seal) -> Result<()> {
    match seal {
        Seal::Plain => unpack(chunk, bytes, seal).map(drop),
        Seal::Sealed(_) | Seal::Locked(_) => check_object(chunk, bytes),
    }
}

/// The sum of an encrypted chunk.
fn check_object(chunk: &Chunk, bytes: &[u8]) -> Result<()> {
    match bytes.len() == chunk.stored as usize && sha256(bytes) == chunk.sum {
        true => Ok(()),
        false => Err(damaged(chunk, "it is not what was written")),
    }
}

fn damaged(chunk: &Chunk, why: &str) -> Error {
    Error::corrupt(format!("{} in the repository is damaged: {why}", chunk.key()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::copy::CopyKey;
    use crate::error::ErrorKind;

    #[test]
    fn a_chunk_comes_back_and_any_damage_is_named() {
        let blocks: Vec<u8> =
            (0..8192u32).flat_map(|n| (n.wrapping_mul(n) >> 5).to_le_bytes()).collect();
        let raw = crate::crypt::new_key().unwrap();
        let sealed = Seal::Sealed(CopyKey::new(&raw).unwrap().into());
        for seal in [Seal::Plain, sealed] {
            let (chunk, bytes) = pack(&CopyId::from("c-1"), &blocks, &seal).unwrap();
            assert_eq!(unpack(&chunk, &bytes, &seal).unwrap(), blocks);
            check(&chunk, &bytes, &seal).unwrap();
            for at in (0..bytes.len()).step_by(7) {
                let mut bad = bytes.clone();
                bad[at] ^= 0x10;
                // Bits of a frame's header that mean nothing change nothing.
                if let Ok(same) = unpack(&chunk, &bad, &seal) {
                    assert_eq!(same, blocks);
                    assert!(matches!(seal, Seal::Plain), "byte {at}");
                }
            }
            let error = unpack(&chunk, &bytes[..bytes.len() / 2], &seal).unwrap_err();
            assert!(error.message().contains("chunks/c-1/"), "{error}");
        }
    }

    #[test]
    fn an_encrypted_chunk_is_checked_without_its_key_and_read_only_with_it() {
        let key = || Seal::Sealed(CopyKey::new(&crate::crypt::new_key().unwrap()).unwrap().into());
        let (chunk, bytes) = pack(&CopyId::from("c-1"), &[7; 8192], &key()).unwrap();
        assert!(unpack(&chunk, &bytes, &key()).unwrap_err().message().contains("key"));
        let locked = Seal::Locked(Error::new(ErrorKind::Condition, "no master key"));
        check(&chunk, &bytes, &locked).unwrap();
        assert_eq!(unpack(&chunk, &bytes, &locked).unwrap_err().kind(), ErrorKind::Condition);
        assert_eq!(check(&chunk, &bytes[1..], &locked).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
