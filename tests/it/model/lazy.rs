//! Disks that are filled while they are used, in the model test: made, written to, fetched in pieces.
//!
//! Invariants: what the copy holds is decided by a seed, so that it is the same after every end; what a disk is
//! refused for because it is not filled, it is refused for that reason, and nothing changes.
//! Absent: repositories (`vault/`); here the copy is in memory and answers at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use rowd::disk::lazy::{Fetched, Need, Origin, Span, Wake};
use rowd::engine::api::DiskSpec;
use rowd::engine::copies::Source;
use rowd::error::ErrorKind;
use rowd::units::{BLOCK_BYTES, BLOCK_SIZE, BlockRange, CopyId, Lba, SnapshotId};

use super::compare::equal;
use super::machine::{BY, DISKS_MAX, Machine, Outcome, text};
use super::power::Random;
use super::reference::Effect;

/// Blocks of the disk that one chunk may hold some of.
const CHUNK: u64 = 24;
/// Blocks of the disk that a part of the table tells of.
const PART: u64 = 100;

/// A copy in memory.
#[derive(Debug)]
pub struct Copied {
    pub blocks: BTreeMap<u64, Vec<u8>>,
    /// The parts of its table that somebody has asked for; nothing when all of it is known.
    parts: Mutex<Option<BTreeSet<u64>>>,
}

impl Copied {
    /// Some of the blocks of a disk; each has a stamp that no write has.
    fn new(blocks: u64, seed: u64, stamp: u64) -> Copied {
        let mut random = Random::new(seed);
        let mut chosen = BTreeMap::new();
        let mut at = random.below(blocks);
        while at < blocks {
            for lba in at..blocks.min(at + 1 + random.below(12)) {
                let words = (0..BLOCK_SIZE / 8).map(|word| stamp << 24 | lba << 10 | word);
                chosen.insert(lba, words.flat_map(u64::to_le_bytes).collect());
            }
            at += 12 + random.below(90);
        }
        Copied::of(chosen)
    }

    /// Of these blocks; nobody knows yet which they are.
    pub fn of(blocks: BTreeMap<u64, Vec<u8>>) -> Copied {
        Copied { blocks, parts: Mutex::new(Some(BTreeSet::new())) }
    }

    /// The chunk that a block is in.
    fn chunk(&self, lba: u64) -> Fetched {
        let first = lba / CHUNK * CHUNK;
        let mut fetched = Fetched { spans: Vec::new(), bytes: Vec::new() };
        for (lba, block) in self.blocks.range(first..first + CHUNK) {
            let at = u32::try_from(fetched.bytes.len() / BLOCK_BYTES).expect("few");
            fetched.bytes.extend_from_slice(block);
            fetched.spans.push(Span { start: *lba, blocks: 1, at });
        }
        fetched
    }
}

impl Origin for Copied {
    fn is_known(&self) -> bool {
        self.parts.lock().unwrap().is_none()
    }

    fn has(&self, lba: Lba) -> Option<bool> {
        let parts = self.parts.lock().unwrap();
        let known = parts.as_ref().is_none_or(|parts| parts.contains(&(lba.0 / PART)));
        known.then(|| self.blocks.contains_key(&lba.0))
    }

    fn next(&self, from: u64) -> Option<BlockRange> {
        assert!(self.is_known(), "nobody asks what is next before it is known");
        let (first, _) = self.blocks.range(from..).next()?;
        Some(BlockRange::new(*first, first + 1))
    }

    fn ask(&self, need: Need, wake: Wake) {
        let mut parts = self.parts.lock().unwrap();
        let found = match need {
            Need::Index => {
                *parts = None;
                None
            }
            // First the part that tells of it; who is told to look again asks again.
            Need::Block(lba) => {
                let is_new = parts.as_mut().is_some_and(|parts| parts.insert(lba.0 / PART));
                (!is_new).then(|| Arc::new(self.chunk(lba.0)))
            }
        };
        drop(parts);
        wake(Ok(found));
    }
}

impl Machine {
    /// Makes a disk that is filled while it is used.
    pub fn make_lazy(&mut self, blocks: u64, seed: u64) -> Outcome {
        if self.reference.disks.len() >= DISKS_MAX {
            return Ok(());
        }
        let name = self.new_name();
        self.stamp += 1;
        let copied = Arc::new(Copied::new(blocks, seed, self.stamp));
        let spec = DiskSpec {
            name: name.clone(),
            size: Some(blocks * BLOCK_SIZE),
            encrypted: seed.is_multiple_of(2),
            ..DiskSpec::default()
        };
        let source = Source {
            repo: "model".to_owned(),
            copy: CopyId::from("c-model"),
            snapshot: SnapshotId::from("s-model"),
            lazy: true,
        };
        let made = self.engine().fill_begin(BY, spec, source).map_err(text)?;
        self.reference.create_disk(made.id.clone(), &name, made.size, None);
        let last = self.reference.disks.len() - 1;
        self.reference.promise(last, &copied.blocks);
        self.origins.insert(made.id, copied);
        self.connect()?;
        self.compare_disk(last)
    }

    /// Connects the disks that are being filled with their copies.
    pub fn connect(&mut self) -> Outcome {
        for filling in self.engine().fillings() {
            let origin = self.origins.get(&filling.disk).cloned();
            let origin = origin.ok_or("a disk is filled from nowhere")?;
            let lazy = self.engine().lazy(&filling).map_err(text)?;
            lazy.connect(origin);
        }
        Ok(())
    }

    /// Fetches some chunks for what lacks them, as the background does. What has all blocks is ordinary then.
    pub fn fetch(&mut self, number: u8, from: u16, chunks: u8) -> Outcome {
        let count = self.reference.fillings.len().max(1);
        let found = self.reference.fillings.get(usize::from(number) % count).cloned();
        let Some(truth) = found else { return Ok(()) };
        let (id, node) = (truth.disk.clone(), self.reference.to_fill(&truth));
        let copied = Arc::clone(&self.origins[&id]);
        let filling = self.engine().fillings().into_iter().find(|filling| filling.disk == id);
        let filling = filling.ok_or("a disk is filled and is not")?;
        let last = copied.blocks.keys().next_back().map_or(0, |last| last / CHUNK + 1);
        for number in 0..u64::from(chunks).min(last) {
            let chunk = copied.chunk((u64::from(from) + number) % last * CHUNK);
            // Every version of two leaves.
            self.dirties(2 * self.reference.nodes.len() as u64)?;
            let lacking = self.reference.lacking(node, &chunk.spans);
            let short = self.may_be_short_of(lacking.len() as u64);
            let stored = self.engine().adopt(&filling, &chunk);
            match stored {
                Ok(stored) if stored == lacking.len() as u64 => {}
                Err(error) if error.kind() == ErrorKind::NoSpace && short => return Ok(()),
                other => return Err(format!("{} blocks lack, yet {other:?}", lacking.len())),
            }
            self.effect(0, &Effect::Fetch(node, lacking));
        }
        if self.reference.is_whole(node) {
            let target = self.engine().fill_target(&filling).map_err(text)?;
            equal("ended", self.engine().fill_end(&filling, &target).map_err(text)?, true)?;
            self.reference.fillings.retain(|filling| filling.disk != id);
        }
        match self.reference.disks.iter().position(|disk| disk.id == id) {
            Some(at) => self.compare_stored(at),
            None => Ok(()),
        }
    }

    /// Whether a disk lacks blocks.
    pub fn is_lazy(&self, disk: usize) -> bool {
        self.reference.lacks(self.reference.disks[disk].head).is_some()
    }

    /// Whether it does, and nothing else does with it: it was not kept as a snapshot meanwhile.
    pub fn is_alone(&self, disk: usize) -> bool {
        let id = &self.reference.disks[disk].id;
        self.reference.fillings.iter().any(|filling| filling.disk == *id && filling.root.is_none())
    }
}
