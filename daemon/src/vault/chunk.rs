//! Chunks: blocks packed into objects, compressed, and named by the SHA-256 of what they hold.
//!
//! Invariants: nothing of a chunk is used before its length and its sum are right.
//! Absent: which blocks of a disk they are (`table.rs`).

use super::format::sha256;
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
/// They cannot be compressed, which is a fault of ours.
pub fn pack(owner: &CopyId, blocks: &[u8]) -> Result<(Chunk, Vec<u8>)> {
    let bytes = zstd::bulk::compress(blocks, LEVEL)
        .map_err(|e| Error::internal(format!("compress a chunk: {e}")))?;
    let length = |bytes: &[u8]| {
        u32::try_from(bytes.len()).map_err(|e| Error::internal(format!("a chunk is too long: {e}")))
    };
    let (raw, stored) = (length(blocks)?, length(&bytes)?);
    Ok((Chunk { owner: owner.clone(), sum: sha256(blocks), raw, stored }, bytes))
}

/// The blocks in the object of a chunk.
///
/// # Errors
/// `Corrupt`, naming the object.
pub fn unpack(chunk: &Chunk, bytes: &[u8]) -> Result<Vec<u8>> {
    let damaged =
        |why: &str| Error::corrupt(format!("{} in the repository is damaged: {why}", chunk.key()));
    let length = chunk.raw as usize;
    if length > CHUNK_BYTES {
        return Err(damaged("it would be too long"));
    }
    let blocks = zstd::bulk::decompress(bytes, length).map_err(|e| damaged(&e.to_string()))?;
    if blocks.len() != length || sha256(&blocks) != chunk.sum {
        return Err(damaged("it is not what was written"));
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_comes_back_and_any_damage_is_named() {
        let blocks: Vec<u8> =
            (0..8192u32).flat_map(|n| (n.wrapping_mul(n) >> 5).to_le_bytes()).collect();
        let (chunk, bytes) = pack(&CopyId::from("c-1"), &blocks).unwrap();
        assert_eq!(unpack(&chunk, &bytes).unwrap(), blocks);
        for at in (0..bytes.len()).step_by(7) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            // Bits of a frame's header that mean nothing change nothing.
            if let Ok(same) = unpack(&chunk, &bad) {
                assert_eq!(same, blocks);
            }
        }
        let error = unpack(&chunk, &bytes[..bytes.len() / 2]).unwrap_err();
        assert!(error.message().contains("chunks/c-1/"), "{error}");
    }
}
