//! The superblock: two copies at the start of the pool file, written in turn.
//!
//! Invariants: the copy with the higher generation and a good checksum counts; generation `g` is written
//! to copy `g % 2`, so a torn write loses the newer copy only. It names the state that the metadata store
//! must have reached: an older store is refused (hazard H3).
//! Absent: anything that changes with each write. Bytes are described in FORMAT.md.

use super::file::PoolFile;
use crate::error::{Error, Result};
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Seq};

/// `ROWDPOOL`, the first bytes of each copy.
pub const MAGIC: [u8; 8] = *b"ROWDPOOL";
/// The format of a new pool.
pub const VERSION: u32 = 1;
/// The same, with encrypted blocks in it.
pub const SEALED_VERSION: u32 = 2;
/// That of pools in which a disk was made that is filled while it is used.
pub const LAZY_VERSION: u32 = 3;
/// That of pools in which a disk returned to a snapshot that was only in a repository.
pub const RETURN_VERSION: u32 = 4;
/// That of pools in which a disk was kept as a snapshot that lacked blocks.
pub const FAMILY_VERSION: u32 = 5;
/// Where the journal begins: the first MiB is left for superblocks and what may come.
pub const JOURNAL_START: u64 = 1 << 20;

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The oldest format that has all that is in the pool.
    pub version: u32,
    pub uuid: [u8; 16],
    /// Grows by one with each write of a superblock.
    pub generation: u64,
    /// Grows by one with each opening of the pool; records carry it.
    pub opening: u32,
    /// Blocks per segment of the allocator.
    pub segment_blocks: u32,
    /// Length of the journal ring in bytes.
    pub journal_bytes: u64,
    /// Data blocks the pool may grow to.
    pub max_blocks: u64,
    /// All records up to this one are in the metadata store.
    pub checkpoint: Seq,
    /// Journal position (never wrapped) of the record after the checkpoint.
    pub tail: u64,
    /// The opening that set the tail: records behind it are of this opening or a later one, others are
    /// leftovers of a tail that was dropped.
    pub tail_opening: u32,
}

impl Superblock {
    /// The first block of data.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        (JOURNAL_START + self.journal_bytes) / BLOCK_SIZE
    }

    /// Reads both copies and returns the one that counts.
    ///
    /// # Errors
    /// `Corrupt` when neither copy is whole; `Invalid` when it is another version's.
    pub fn load(file: &PoolFile) -> Result<Superblock> {
        let mut best: Option<Superblock> = None;
        let mut trouble = Vec::new();
        for copy in 0..2u64 {
            let mut page = vec![0u8; BLOCK_BYTES];
            match file.read(copy * BLOCK_SIZE, &mut page).and_then(|()| decode(&page)) {
                Ok(found) if best.as_ref().is_none_or(|b| b.generation < found.generation) => {
                    best = Some(found);
                }
                Ok(_) => {}
                Err(error) => trouble.push(format!("copy {copy}: {}", error.message())),
            }
        }
        best.ok_or_else(|| {
            Error::corrupt(format!("no valid superblock ({})", trouble.join("; ")))
                .hint("this is not a rowd pool file, or its first blocks were overwritten")
        })
    }

    /// Writes the next generation and makes it, and everything written before, durable.
    ///
    /// # Errors
    /// The pool stops on any error.
    pub fn store(&mut self, file: &PoolFile) -> Result<()> {
        self.generation += 1;
        file.write((self.generation % 2) * BLOCK_SIZE, &encode(self))?;
        file.sync()
    }
}

fn encode(sb: &Superblock) -> Vec<u8> {
    let mut page = Vec::with_capacity(BLOCK_BYTES);
    page.extend_from_slice(&MAGIC);
    page.extend_from_slice(&sb.version.to_le_bytes());
    page.extend_from_slice(&sb.segment_blocks.to_le_bytes());
    page.extend_from_slice(&sb.uuid);
    page.extend_from_slice(&sb.generation.to_le_bytes());
    page.extend_from_slice(&u64::from(sb.opening).to_le_bytes());
    page.extend_from_slice(&sb.journal_bytes.to_le_bytes());
    page.extend_from_slice(&sb.max_blocks.to_le_bytes());
    page.extend_from_slice(&sb.checkpoint.0.to_le_bytes());
    page.extend_from_slice(&sb.tail.to_le_bytes());
    page.extend_from_slice(&u64::from(sb.tail_opening).to_le_bytes());
    page.resize(BLOCK_BYTES - 4, 0);
    let crc = super::crc32c(&page);
    page.extend_from_slice(&crc.to_le_bytes());
    page
}

fn decode(page: &[u8]) -> Result<Superblock> {
    let u64_at = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("8 bytes"));
    let u32_at = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().expect("4 bytes"));
    if page[..8] != MAGIC {
        return Err(Error::corrupt("no superblock magic"));
    }
    if u32_at(BLOCK_BYTES - 4) != super::crc32c(&page[..BLOCK_BYTES - 4]) {
        return Err(Error::corrupt("bad superblock checksum"));
    }
    let version = u32_at(8);
    if !(VERSION..=FAMILY_VERSION).contains(&version) {
        return Err(Error::invalid(format!(
            "pool format {version}, this rowd knows {VERSION} to {FAMILY_VERSION}"
        )));
    }
    let sb = Superblock {
        version,
        segment_blocks: u32_at(12),
        uuid: page[16..32].try_into().expect("16 bytes"),
        generation: u64_at(32),
        opening: u32::try_from(u64_at(40)).map_err(|_| Error::corrupt("opening count"))?,
        journal_bytes: u64_at(48),
        max_blocks: u64_at(56),
        checkpoint: Seq(u64_at(64)),
        tail: u64_at(72),
        tail_opening: u32::try_from(u64_at(80)).map_err(|_| Error::corrupt("opening count"))?,
    };
    let sane = sb.segment_blocks >= 64
        && sb.segment_blocks.is_multiple_of(64)
        && sb.journal_bytes >= super::journal::MIN_BYTES
        && sb.journal_bytes.is_multiple_of(BLOCK_SIZE);
    if sane { Ok(sb) } else { Err(Error::corrupt("impossible sizes in the superblock")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::file::IoMode;

    fn sample() -> Superblock {
        Superblock {
            version: VERSION,
            uuid: *b"0123456789abcdef",
            generation: 7,
            opening: 3,
            segment_blocks: 16384,
            journal_bytes: 64 << 20,
            max_blocks: 1 << 30,
            checkpoint: Seq(99),
            tail: 12345,
            tail_opening: 3,
        }
    }

    #[test]
    fn a_superblock_reads_back_as_written() {
        assert_eq!(decode(&encode(&sample())).unwrap(), sample());
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let page = encode(&sample());
        for at in [0, 9, 20, 33, 64, 75, 2000, 4093] {
            let mut bad = page.clone();
            bad[at] ^= 4;
            assert!(decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn the_older_copy_serves_when_the_newer_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let file = PoolFile::open(&dir.path().join("pool"), true, IoMode::Buffered).unwrap();
        file.grow(8192).unwrap();
        let mut sb = sample();
        sb.store(&file).unwrap();
        sb.checkpoint = Seq(100);
        sb.store(&file).unwrap();
        assert_eq!(Superblock::load(&file).unwrap().checkpoint, Seq(100));
        file.write((sb.generation % 2) * BLOCK_SIZE + 512, &[1; 512]).unwrap();
        assert_eq!(Superblock::load(&file).unwrap().checkpoint, Seq(99));
    }
}
