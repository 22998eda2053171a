//! Data requests of the model test: written through a lane, read back at once.
//!
//! Invariants: a request that fails for want of space leaves nothing behind, or, where it is several
//! effects by contract (zeroing with ragged edges), a prefix of them; want of space has to be true.
//! Absent: concurrency (`threads.rs`).

use rowd::disk::write::Op as Request;
use rowd::error::ErrorKind;
use rowd::units::{BLOCK_SIZE, BlockRange, ByteRange};

use super::machine::{Machine, Outcome, POOL_BLOCKS, SEGMENT_BLOCKS, text};
use super::op::{Item, ItemKind};
use super::reference::Effect;

/// Stored zeros are written in pieces that end at multiples of this.
const ZERO_PIECE: u64 = 1 << 20;

/// A request, and what it does, effect by effect.
struct Planned {
    kind: ItemKind,
    range: ByteRange,
    data: Vec<u8>,
    effects: Vec<Effect>,
}

impl Machine {
    pub fn data(&mut self, disk: usize, items: &[Item]) -> Outcome {
        let planned: Vec<Planned> = items.iter().filter_map(|i| self.plan(disk, *i)).collect();
        // A request of several effects goes alone, so that a failure in its middle can be told.
        let mut rest = &planned[..];
        while !rest.is_empty() {
            let single = rest.iter().take_while(|p| p.effects.len() == 1).count().max(1);
            let (batch, behind) = rest.split_at(single);
            self.submit(disk, batch)?;
            rest = behind;
        }
        self.compare_disk(disk)
    }

    fn plan(&mut self, disk: usize, item: Item) -> Option<Planned> {
        let blocks = self.reference.disks[disk].size / BLOCK_SIZE;
        let first = u64::from(item.at) % blocks;
        let last = blocks.min(first + u64::from(item.blocks));
        let start = first * BLOCK_SIZE + u64::from(item.skew.0);
        let end = last * BLOCK_SIZE - u64::from(item.skew.1);
        let range = ByteRange { start, end: end.max(start) };
        if range.is_empty() {
            return None;
        }
        let data = self.fill(range.len());
        let effects = effects(item.kind, range, &data);
        Some(Planned { kind: item.kind, range, data, effects })
    }

    /// Bytes that no other request has.
    fn fill(&mut self, length: u64) -> Vec<u8> {
        self.stamp += 1;
        let words = (0..length.div_ceil(8)).map(|at| self.stamp << 24 | at);
        let mut data: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        data.truncate(usize::try_from(length).expect("small"));
        data
    }

    fn submit(&mut self, disk: usize, batch: &[Planned]) -> Outcome {
        let leaves = batch.iter().map(|p| p.range.outer_blocks().leaves().count() as u64).sum();
        self.dirties(leaves)?;
        let need: u64 = batch.iter().map(|p| p.range.outer_blocks().len()).sum();
        let is_short = self.may_be_short_of(need);
        let requests: Vec<Request<'_>> = batch.iter().map(Planned::request).collect();
        let mut results = Vec::new();
        self.session(disk)?;
        let before = self.engine().status().last_seq;
        self.session(disk)?.lane.submit(&requests, &mut results);
        let records = self.engine().status().last_seq - before;
        if results.len() != batch.len() {
            return Err(format!("{} results for {} requests", results.len(), batch.len()));
        }
        let mut failed = None;
        for (planned, result) in batch.iter().zip(results) {
            match result {
                Ok(()) => planned.effects.iter().for_each(|effect| self.effect(disk, effect)),
                Err(error) if error.kind() != ErrorKind::NoSpace => return Err(text(error)),
                Err(error) if planned.kind == ItemKind::Trim || !is_short => {
                    let used = self.engine().status();
                    return Err(format!("{error}, but {need} blocks should fit: {used:?}"));
                }
                Err(_) if planned.effects.len() == 1 => failed = Some(planned),
                Err(_) => self.settle_prefix(disk, &planned.effects, records)?,
            }
        }
        failed.map_or(Ok(()), |planned| self.ask_again(disk, planned))
    }

    /// Asks for what failed once more with nobody else holding a lease: now it is decided to the block.
    fn ask_again(&mut self, disk: usize, planned: &Planned) -> Outcome {
        let id = self.reference.disks[disk].id.clone();
        self.sessions.retain(|other, _| *other == id);
        let used = self.engine().status().used_bytes / BLOCK_SIZE;
        let fits = used + planned.range.outer_blocks().len() <= POOL_BLOCKS;
        let mut results = Vec::new();
        self.session(disk)?.lane.submit(&[planned.request()], &mut results);
        match results.pop() {
            Some(Ok(())) if fits => self.effect(disk, &planned.effects[0]),
            Some(Err(error)) if !fits && error.kind() == ErrorKind::NoSpace => {}
            other => return Err(format!("{used} blocks in use, fits: {fits}, yet {other:?}")),
        }
        Ok(())
    }

    pub fn effect(&mut self, disk: usize, effect: &Effect) {
        self.reference.apply(disk, effect);
        self.image.states.push(self.reference.clone());
    }

    /// Whether so many blocks may fail to be found: the pool's free ones and what lanes have leased.
    pub fn may_be_short_of(&self, need: u64) -> bool {
        let used = self.engine().status().used_bytes / BLOCK_SIZE;
        let leased = (self.sessions.len() as u64 + 1) * SEGMENT_BLOCKS;
        POOL_BLOCKS < used + need + leased
    }

    /// As many of the effects happened before the space ran out as there are records. What is stored does not
    /// tell: a stored zero that is replaced by another one looks the same.
    fn settle_prefix(&mut self, disk: usize, effects: &[Effect], records: u64) -> Outcome {
        let done = usize::try_from(records).map_err(|e| e.to_string())?;
        if done >= effects.len() {
            return Err(format!("{done} records of {} effects that failed", effects.len()));
        }
        effects[..done].iter().for_each(|effect| self.effect(disk, effect));
        self.compare_stored(disk).map_err(|e| format!("after want of space: {e}"))
    }
}

impl Planned {
    fn request(&self) -> Request<'_> {
        let range = self.range;
        match self.kind {
            ItemKind::Write => Request::Write { offset: range.start, data: &self.data },
            ItemKind::Zero => Request::Zero { range },
            ItemKind::ZeroStored => Request::ZeroStored { range },
            ItemKind::Trim => Request::Trim { range },
        }
    }
}

fn effects(kind: ItemKind, range: ByteRange, data: &[u8]) -> Vec<Effect> {
    let inner = range.inner_blocks();
    match kind {
        ItemKind::Write => vec![Effect::Write { offset: range.start, data: data.to_vec() }],
        ItemKind::Trim => vec![Effect::Clear(inner)],
        ItemKind::Zero if inner.is_empty() => vec![zeros(range.start, range.end)],
        ItemKind::Zero => {
            let edges =
                [(range.start, inner.start * BLOCK_SIZE), (inner.end * BLOCK_SIZE, range.end)];
            let edges = edges.into_iter().filter(|(start, end)| start < end);
            let clear = Effect::Clear(BlockRange::new(inner.start, inner.end));
            std::iter::once(clear).chain(edges.map(|(start, end)| zeros(start, end))).collect()
        }
        ItemKind::ZeroStored => {
            let mut pieces = Vec::new();
            let mut start = range.start;
            while start < range.end {
                let end = range.end.min((start / ZERO_PIECE + 1) * ZERO_PIECE);
                pieces.push(zeros(start, end));
                start = end;
            }
            pieces
        }
    }
}

fn zeros(start: u64, end: u64) -> Effect {
    let length = usize::try_from(end - start).expect("small");
    Effect::Write { offset: start, data: vec![0; length] }
}
