//! Power cuts: the pool file as the last sync left it, with an arbitrary part of what was written since.
//!
//! Invariants: the image is never older than the last sync; pieces of 512 bytes are old or new each for
//! itself; the map is as it is, since a checkpoint makes it durable before the pool relies on it.
//! Absent: cuts inside the map's own files; the crash tests record those at the system calls.

use std::fs;

use super::machine::{Machine, Outcome, text};
use super::reference::Reference;

/// What a device writes whole.
const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// What is certain to survive, and all states that may come back.
#[derive(Default)]
pub struct Image {
    bytes: Vec<u8>,
    synced: (u64, u64),
    /// Oldest first: the state of the last sync, and that after each effect since.
    pub states: Vec<Reference>,
}

impl Machine {
    /// Takes a new image if there was a sync since the last one.
    pub fn observe(&mut self) -> Outcome {
        let mut status = self.engine().status();
        // An operation may have gone on after a checkpoint within it: that is not certain to survive.
        let synced = (status.durable_seq, status.checkpoint_seq);
        if synced != self.image.synced && status.durable_seq < status.last_seq {
            match self.reference.disks.is_empty() {
                true => self.checkpoint()?,
                false => self.session(0)?.lane.flush(true).map_err(text)?,
            }
            status = self.engine().status();
        }
        let synced = (status.durable_seq, status.checkpoint_seq);
        if synced != self.image.synced {
            let bytes = fs::read(self.dir.path().join("pool")).map_err(|e| e.to_string())?;
            self.image = Image { bytes, synced, states: vec![self.reference.clone()] };
        }
        Ok(())
    }

    /// Cuts the power: what comes back has to be one of the states since the last sync.
    pub fn power_cut(&mut self, seed: u64) -> Outcome {
        let path = self.dir.path().join("pool");
        let new = fs::read(&path).map_err(|e| e.to_string())?;
        self.shut()?;
        fs::write(&path, mix(&self.image.bytes, &new, seed)).map_err(|e| e.to_string())?;
        self.open().map_err(|e| format!("after a power cut: {e}"))?;
        let mut trouble = String::new();
        for state in self.image.states.iter().rev() {
            match self.compare_with(state) {
                Ok(()) => {
                    self.reference = state.clone();
                    self.reference.collapse();
                    self.image.synced = (0, 0);
                    return Ok(());
                }
                Err(why) => trouble = why,
            }
        }
        let count = self.image.states.len();
        Err(format!("after a power cut none of {count} states is there; not the oldest: {trouble}"))
    }
}

/// A small generator, so that a cut depends on its seed alone.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0x9E37_79B9);
        (self.0 >> 33) % limit
    }
}

/// `new`, with some of its pages or sectors as they were in `old`.
fn mix(old: &[u8], new: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let keep = [0, 10, 50, 90, 100][usize::try_from(random.below(5)).expect("below 5")];
    let torn = random.below(3) == 0;
    // Growth that was not synced may be lost, and then all that lies behind.
    let long = old.len() == new.len() || random.below(2) == 0;
    let length = if long { new.len() } else { old.len() };
    let mut mixed = vec![0; length];
    let unit = if torn { SECTOR } else { PAGE };
    for (at, piece) in mixed.chunks_mut(unit).enumerate() {
        let place = at * unit..at * unit + piece.len();
        let source = match old.get(place.clone()) {
            Some(before) if before == &new[place.clone()] || random.below(100) >= keep => before,
            None if random.below(100) >= keep => continue,
            _ => &new[place],
        };
        piece.copy_from_slice(source);
    }
    mixed
}
