//! The requests of one batch, counted where they are answered and handed on together.
//!
//! Invariants: each answered request is counted once, by the connection or by the helper that answers it; the clock
//! is read twice for a batch, not for each request in it.
//! Absent: the counters (`disk/meter.rs`). Commands that move no data of the disk, such as block status, are not
//! counted.

use std::sync::Arc;
use std::time::Instant;

use super::wire::{Request, command};
use crate::disk::meter::{Operation, Tap};

/// What a command counts as.
pub(super) fn operation(command: u16) -> Option<Operation> {
    match command {
        command::READ => Some(Operation::Read),
        command::WRITE => Some(Operation::Write),
        command::WRITE_ZEROES | command::TRIM => Some(Operation::Discard),
        command::FLUSH => Some(Operation::Flush),
        _ => None,
    }
}

/// The batch that a connection is at. Its requests count with the time from its receipt to the sending of the
/// replies: that is what the client waited here.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) tap: Arc<Tap>,
    pub(super) began: Instant,
    done: [Tallied; 4],
}

#[derive(Clone, Copy, Debug, Default)]
struct Tallied {
    count: u64,
    bytes: u64,
    errors: u64,
}

impl Tally {
    pub(super) fn new(tap: Arc<Tap>) -> Tally {
        Tally { tap, began: Instant::now(), done: Default::default() }
    }

    /// A batch has been received.
    pub(super) fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// A request was carried out by the connection itself.
    pub(super) fn did(&mut self, request: &Request, ok: bool) {
        let Some(operation) = operation(request.command) else { return };
        let done = &mut self.done[operation as usize];
        done.count += 1;
        if ok {
            done.bytes += u64::from(request.length);
        } else {
            done.errors += 1;
        }
    }

    /// A request was refused before it ran.
    pub(super) fn refused(&mut self, request: &Request) {
        if let Some(operation) = operation(request.command) {
            self.done[operation as usize].errors += 1;
        }
    }

    /// A request that a helper is to answer.
    pub(super) fn errand(&self, request: &Request) -> Errand {
        let tap = operation(request.command).map(|operation| (operation, Arc::clone(&self.tap)));
        Errand { tap, bytes: u64::from(request.length), began: self.began }
    }

    /// The replies of the batch are sent.
    pub(super) fn end(&mut self) {
        let took = self.began.elapsed();
        for (operation, done) in Operation::ALL.into_iter().zip(&mut self.done) {
            let Tallied { count, bytes, errors } = std::mem::take(done);
            if count > 0 {
                self.tap.did(operation, count, bytes, took);
            }
            if errors > 0 {
                self.tap.failed(operation, errors);
            }
        }
    }
}

/// A request in the hands of a helper.
#[derive(Debug)]
pub(super) struct Errand {
    tap: Option<(Operation, Arc<Tap>)>,
    bytes: u64,
    began: Instant,
}

impl Errand {
    /// It is answered.
    pub(super) fn end(self, ok: bool) {
        if let Some((operation, tap)) = self.tap {
            tap.one(operation, self.bytes, self.began.elapsed(), ok);
        }
    }
}
