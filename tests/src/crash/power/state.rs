//! States: what the recorded device may hold when the power goes at a number.
//!
//! Invariants: everything up to the last flush before the cut is there; later writes are kept, torn at
//! a sector or lost, each by itself; the choices follow from the seed.
//! Absent: bits that flip in what was durable.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::DEVICE_BYTES;
use super::device::{Change, Entry};
use crate::crash::rng::Rng;
use crate::crash::stamp::SECTOR;

/// Per cent of the writes after the last flush that are kept, and that are torn; the rest is lost.
const KEPT: u64 = 40;
const TORN: u64 = 20;
/// Bytes looked at when an image is written as a file with holes.
const PIECE: usize = 64 << 10;

/// The device, going forwards from cut to cut.
#[derive(Debug)]
pub struct Durable<'a> {
    entries: &'a [Entry],
    /// Entries that `image` holds.
    done: usize,
    image: Vec<u8>,
}

impl<'a> Durable<'a> {
    #[must_use]
    pub fn new(entries: &'a [Entry]) -> Durable<'a> {
        let image = vec![0; usize::try_from(DEVICE_BYTES).expect("a small device")];
        Durable { entries, done: 0, image }
    }

    /// Writes a state at `cut` to a file. Cuts come in ascending order.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn state(&mut self, cut: u64, rng: &mut Rng, path: &Path) -> io::Result<()> {
        let end = self.entries.partition_point(|entry| entry.at <= cut);
        let is_flush = |entry: &Entry| matches!(entry.change, Change::Flush);
        let durable = self.entries[..end].iter().rposition(is_flush).unwrap_or(0).max(self.done);
        for entry in &self.entries[self.done..durable] {
            apply(&mut self.image, &entry.change, None);
        }
        self.done = durable;
        let mut image = self.image.clone();
        for entry in &self.entries[durable..end] {
            match rng.below(100) {
                ..KEPT => apply(&mut image, &entry.change, None),
                choice if choice < KEPT + TORN => apply(&mut image, &entry.change, Some(rng)),
                _ => {}
            }
        }
        write_sparse(&image, path)
    }
}

/// Does a change, or with `torn` to some of its sectors only.
fn apply(image: &mut [u8], change: &Change, mut torn: Option<&mut Rng>) {
    let (offset, length, data) = match change {
        Change::Flush => return,
        Change::Write { offset, data } => (*offset, data.len() as u64, Some(data)),
        Change::Zero { offset, length } => (*offset, *length, None),
    };
    // Most torn writes end early; in some each sector has a fate of its own.
    let scattered = torn.as_mut().is_some_and(|rng| rng.chance(50));
    let sectors = length / SECTOR as u64;
    let kept = torn.as_mut().map_or(sectors, |rng| rng.below(sectors + 1));
    for at in 0..sectors {
        let keep = match torn.as_mut() {
            Some(rng) if scattered => rng.chance(50),
            _ => at < kept,
        };
        if !keep {
            continue;
        }
        let from = usize::try_from(at).expect("fits") * SECTOR;
        let to = usize::try_from(offset).expect("fits") + from;
        let sector = &mut image[to..to + SECTOR];
        match data {
            Some(data) => sector.copy_from_slice(&data[from..from + SECTOR]),
            None => sector.fill(0),
        }
    }
}

fn write_sparse(image: &[u8], path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(image.len() as u64)?;
    for (at, piece) in image.chunks(PIECE).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(piece, (at * PIECE) as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(at: u64, offset: u64, byte: u8) -> Entry {
        Entry { at, change: Change::Write { offset, data: vec![byte; 4 * SECTOR] } }
    }

    #[test]
    fn what_a_flush_covers_is_there_and_the_rest_may_be_lost() {
        let flush = Entry { at: 2, change: Change::Flush };
        let entries = [write(1, 0, 1), flush, write(3, 4096, 2), write(5, 8192, 3)];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..100 {
            Durable::new(&entries).state(4, &mut Rng::new(seed), &path).unwrap();
            let image = std::fs::read(&path).unwrap();
            assert!(image[..2048].iter().all(|byte| *byte == 1), "covered by the flush");
            assert!(image[8192..].iter().all(|byte| *byte == 0), "written after the cut");
            match image[4096..4096 + 2048].iter().filter(|byte| **byte == 2).count() {
                2048 => kept += 1,
                0 => lost += 1,
                _ => torn += 1,
            }
        }
        assert!(kept > 20 && lost > 20 && torn > 3, "{kept} {lost} {torn}");
    }
}
