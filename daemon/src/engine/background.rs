//! Background work: regular flushes, checkpoints, freeing of deleted nodes, and housekeeping.
//!
//! Invariants: acknowledged writes stay without a flush for `flush_every` at most; freeing gives way to
//! clients; a thread ends when the engine is closed or gone.
//! Absent: the work itself (`checkpoint.rs`, `map/reclaim.rs`, `snapshots.rs`).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Engine;
use super::api::{Actor, JobState};
use super::jobs::Job;
use crate::error::Result;
use crate::map::reclaim::{next_node, run_step};
use crate::map::tree::Tree;
use crate::pool::behind::LONGEST_SYNC;
use crate::pool::journal::Kind;
use crate::units::{Epoch, Seq};

/// The kind of job that freeing a node is.
pub const RECLAIM: &str = "reclaim";
/// Leaves freed in one step: about a millisecond under the child's lock at most.
const RECLAIM_LEAVES: usize = 64;
/// While clients read or write, a step is followed by a pause of this many times its length.
const RECLAIM_GIVE_WAY: u32 = 19;
/// With fewer blocks to write to than this (256 MiB), freeing does not pause.
const RECLAIM_HURRY: u64 = 1 << 16;
/// How often the checkpointer looks whether it is time, while there are writes.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a thread waits that is told when there is something to do. It then looks all the same.
const REST: Duration = Duration::from_secs(10);
/// How often expired snapshots are looked for, and other rare chores done.
const CHORES_EVERY: Duration = Duration::from_secs(5);

impl Engine {
    pub(super) fn start_background(self: &Arc<Self>) {
        if !self.settings.background {
            return;
        }
        spawn(self, "flush", |engine, state: &mut FlushState| engine.flush_round(state));
        spawn(self, "writeback", |engine, (): &mut ()| {
            engine.shared.pool.write_back(REST);
            Ok(())
        });
        spawn(self, "checkpoint", |engine, state: &mut CheckpointState| {
            engine.checkpoint_round(state)
        });
        spawn(self, "reclaim", |engine, job: &mut Option<Arc<Job>>| engine.reclaim_round(job));
    }

    /// Frees everything that can be freed now. For tests, and before a check.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn reclaim_all(&self) -> Result<()> {
        for tree in self.all_trees() {
            while let Some((node, child)) = next_node(&tree) {
                while !run_step(&self.shared, &tree, node, child, RECLAIM_LEAVES)? {}
            }
        }
        Ok(())
    }

    /// Frees up to `leaves` leaves' worth of one node; `false` when there is nothing to free. For tests.
    ///
    /// # Errors
    /// The pool has stopped.
    pub fn reclaim_once(&self, leaves: usize) -> Result<bool> {
        let next = |tree: Arc<Tree>| next_node(&tree).map(|(node, child)| (tree, node, child));
        let Some((tree, node, child)) = self.all_trees().into_iter().find_map(next) else {
            return Ok(false);
        };
        run_step(&self.shared, &tree, node, child, leaves).map(|_| true)
    }

    fn flush_round(&self, state: &mut FlushState) -> Result<()> {
        if self.stopping.wait(pause(
            self.settings.flush_every,
            state.took,
            self.shared.pool.holds_back(),
        )) {
            self.stopping.raise();
            return Ok(());
        }
        let pool = &self.shared.pool;
        let last = pool.journal.last();
        state.took = Duration::ZERO;
        if last > state.marked && last > pool.journal.durable() {
            let began = Instant::now();
            pool.sync_unasked()?;
            state.took = began.elapsed();
        } else if last > state.marked {
            // Everything is durable, but no record says so yet: without one, damage to the last
            // records would pass for a torn tail.
            let _room = self.shared.reserve(0)?;
            let _whole = self.shared.barrier.read();
            state.marked = pool.append(Kind::Mark, &[])?;
        }
        self.tell_corrupt_blocks()?;
        self.give_up_trash()?;
        if state.chores.elapsed() > CHORES_EVERY {
            state.chores = Instant::now();
            self.chores()?;
        }
        Ok(())
    }

    fn chores(&self) -> Result<()> {
        self.expire()?;
        self.leave_all_due()?;
        self.empty_trash()?;
        self.shared.pool.with_allocator(|a| a.block_growth(false));
        self.shared.pool.punch_free_segments()?;
        let budget = &self.shared.budget;
        let over = budget.clean.load(Ordering::Relaxed) > budget.clean_limit;
        if over {
            // Inserting evicts within a view only: views nobody uses are trimmed here.
            let views = self.all_trees().iter().flat_map(|tree| tree.views()).collect::<Vec<_>>();
            for view in views.into_iter().chain(self.views_of_no_tree()) {
                view.shrink(view.clean_count() / 2);
            }
        }
        Ok(())
    }

    fn tell_corrupt_blocks(&self) -> Result<()> {
        let untold = std::mem::take(&mut *self.corrupt.untold.lock());
        for (disk, lba, pbn) in untold {
            let _shape = self.shape.lock();
            let message = format!("block {lba} of {disk} (pool block {pbn}) is damaged");
            self.note(Actor::DAEMON, "pool.corrupt-block", &disk, message)?;
        }
        Ok(())
    }

    fn checkpoint_round(&self, state: &mut CheckpointState) -> Result<()> {
        let journal = &self.shared.pool.journal;
        let budget = &self.shared.budget;
        let every = self.settings.checkpoint_every;
        let seen = journal.last();
        // Where nothing is written, only the time brings a checkpoint nearer.
        let still = std::mem::replace(&mut state.seen, seen) == seen;
        let rest = state.last.map_or(LOOK_EVERY, |last| every.saturating_sub(last.elapsed()));
        self.shared.resting.store(still, Ordering::Relaxed);
        let wait = if still { rest.clamp(LOOK_EVERY, REST) } else { LOOK_EVERY };
        let wanted = self.shared.checkpoint_wanted.wait(wait);
        self.shared.resting.store(false, Ordering::Relaxed);
        let due = state.last.is_none_or(|last| last.elapsed() > every);
        let full = journal.used() > journal.capacity() / 4
            || budget.dirty.load(Ordering::Relaxed) > budget.dirty_limit / 2;
        if wanted || due || full {
            self.checkpoint()?;
            state.last = Some(Instant::now());
        }
        Ok(())
    }

    fn reclaim_round(&self, job: &mut Option<Arc<Job>>) -> Result<()> {
        let next = self.all_trees().into_iter().find_map(|tree| {
            let (node, child) = next_node(&tree)?;
            Some((tree, node, child))
        });
        let Some((tree, node, child)) = next else {
            if let Some(job) = job.take() {
                job.finish(JobState::Done, "all blocks freed".to_owned());
            }
            self.reclaim_wanted.wait(REST);
            return Ok(());
        };
        if job.is_none() {
            *job = Some(self.jobs.begin(RECLAIM, "pool", false)?);
        }
        self.reclaim_step(&tree, node, child, job.as_deref())
    }

    fn reclaim_step(
        &self,
        tree: &Tree,
        node: Epoch,
        child: Option<Epoch>,
        job: Option<&Job>,
    ) -> Result<()> {
        let pool = &self.shared.pool;
        let (last, reads) = (pool.journal.last(), pool.readers.entries());
        let began = Instant::now();
        run_step(&self.shared, tree, node, child, RECLAIM_LEAVES)?;
        self.meters.reclaim_steps.fetch_add(1, Ordering::Relaxed);
        if let Some(job) = job {
            job.done.fetch_add(RECLAIM_LEAVES as u64, Ordering::Relaxed);
        }
        let busy = pool.journal.last() > last.next() || pool.readers.entries() != reads;
        // Who waits for space is not helped by patience.
        if busy && pool.with_allocator(|a| a.room()) > RECLAIM_HURRY {
            std::thread::sleep(began.elapsed() * RECLAIM_GIVE_WAY);
        }
        Ok(())
    }
}

#[derive(Default)]
struct CheckpointState {
    /// When the last one was written, or was found needless.
    last: Option<Instant>,
    /// The last record of the journal at the last look.
    seen: Seq,
}

struct FlushState {
    /// The last record when it was a mark.
    marked: Seq,
    /// How long the sync of this round took.
    took: Duration,
    chores: Instant,
}

impl Default for FlushState {
    fn default() -> Self {
        FlushState { marked: Seq(0), took: Duration::ZERO, chores: Instant::now() }
    }
}

/// How long to wait for the next round when the sync of the last one took `took`. What was written just after that sync began
/// is durable at the end of the next one, which is to be within `every`; with data `held` back, even the first such sync takes
/// its time.
fn pause(every: Duration, took: Duration, held: bool) -> Duration {
    let next = if held { took.max(LONGEST_SYNC / 2) + LONGEST_SYNC / 4 } else { took };
    every.saturating_sub(took + next).max(every / 10)
}

/// Runs `round` over and over on a thread of its own until the engine closes or the pool stops.
fn spawn<S: Default + 'static>(
    engine: &Arc<Engine>,
    name: &'static str,
    round: impl Fn(&Engine, &mut S) -> Result<()> + Send + 'static,
) {
    let weak: Weak<Engine> = Arc::downgrade(engine);
    let work = move || {
        let mut state = S::default();
        while let Some(engine) = weak.upgrade().filter(|engine| !engine.is_closing()) {
            if let Err(error) = round(&engine, &mut state) {
                tracing::error!(%error, thread = name, "background work failed");
                if engine.shared.pool.file.stopped().is_some() {
                    return;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    match thread {
        Ok(thread) => engine.threads.lock().push(thread),
        Err(error) => engine.shared.pool.file.stop(&format!("no thread for {name}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_syncs_and_the_pause_between_them_fit_into_a_second() {
        let (second, ms) = (Duration::from_secs(1), Duration::from_millis);
        for (took, next, held) in
            [(0, 0, false), (40, 40, false), (3, 370, true), (250, 370, true), (300, 420, true)]
        {
            let pause = pause(second, ms(took), held);
            assert!(ms(took) + pause + ms(next) <= second, "{took} ms, then {next} ms");
            assert!(pause >= second / 10);
        }
    }
}
