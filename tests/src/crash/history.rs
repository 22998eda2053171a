//! What a client asked for and when it was answered.
//!
//! Invariants: one clock orders everything in a run; an operation is noted before its first byte leaves
//! and completed after the last byte of its answer came; operations in flight on a disk do not overlap,
//! so those of one sector are in order.
//! Absent: what may be seen after a crash (`judge`).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::stamp::Value;

/// Numbers for everything that happens, in order.
#[derive(Debug, Default)]
pub struct Clock(AtomicU64);

impl Clock {
    /// The next number.
    pub fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// A change of a range: a write, or a zeroing or trim.
#[derive(Clone, Debug)]
pub struct Op {
    /// [`Value::ZERO`] for zeroing and trimming.
    pub value: Value,
    pub sectors: Range<u32>,
    pub invoked: u64,
    pub completed: Option<u64>,
    /// Asked to be durable when answered.
    pub fua: bool,
}

/// The history of one disk since a known state.
#[derive(Debug)]
pub struct Log {
    /// Names the disk in its stamps.
    pub disk: u32,
    /// What every sector held at the start.
    pub base: Vec<Value>,
    /// Refused operations are not among them: they change nothing.
    pub ops: Vec<Op>,
    /// When each answered flush was asked for and when it was answered.
    pub flushes: Vec<(u64, u64)>,
    current: Vec<Value>,
    /// Ranges in flight, reads included.
    busy: Vec<(u64, Range<u32>)>,
    next: u64,
}

impl Log {
    #[must_use]
    pub fn new(disk: u32, base: Vec<Value>) -> Log {
        let current = base.clone();
        Log { disk, base, ops: Vec::new(), flushes: Vec::new(), current, busy: Vec::new(), next: 1 }
    }

    /// Forgets the past: this is the state now.
    pub fn collapse(&mut self, base: Vec<Value>) {
        self.current.clone_from(&base);
        self.base = base;
        self.ops.clear();
        self.flushes.clear();
        self.busy.clear();
    }

    /// Length of the disk.
    #[must_use]
    pub fn sectors(&self) -> u32 {
        u32::try_from(self.base.len()).expect("a small disk")
    }

    /// What every sector holds, where nothing is in flight.
    #[must_use]
    pub fn current(&self) -> &[Value] {
        &self.current
    }

    /// A name for a write to come.
    pub fn new_value(&mut self) -> Value {
        self.next += 1;
        Value::new(self.disk, self.next)
    }

    /// Keeps a range to one operation; `false` when another is there.
    pub fn try_lock(&mut self, token: u64, range: &Range<u32>) -> bool {
        let free = self.busy.iter().all(|(_, r)| r.end <= range.start || range.end <= r.start);
        if free {
            self.busy.push((token, range.clone()));
        }
        free
    }

    /// Lets a range go.
    pub fn unlock(&mut self, token: u64) {
        self.busy.retain(|(other, _)| *other != token);
    }

    /// Notes a change that is about to be asked for; its index.
    pub fn invoke(&mut self, clock: &Clock, value: Value, sectors: Range<u32>, fua: bool) -> usize {
        let op = Op { value, sectors, invoked: clock.tick(), completed: None, fua };
        self.ops.push(op);
        self.ops.len() - 1
    }

    /// Notes that a change was answered.
    pub fn complete(&mut self, clock: &Clock, index: usize) {
        let op = &mut self.ops[index];
        op.completed = Some(clock.tick());
        self.current[op.sectors.start as usize..op.sectors.end as usize].fill(op.value);
    }

    /// Notes that a change was refused: it touches no sector.
    pub fn refuse(&mut self, clock: &Clock, index: usize) {
        let op = &mut self.ops[index];
        op.completed = Some(clock.tick());
        op.sectors.end = op.sectors.start;
    }
}
