//! The scheduler: a thread that makes what is due and removes what has had its time.
//!
//! Invariants: one thread does all of it, so that nothing is made or removed twice; a slot that is left out is told
//! as an event with the reason; what the clock or a mass of removals makes doubtful stands still until it is right
//! again or somebody agrees; after a restart it goes on from what the catalogue has.
//! Absent: what is due, which is a function (`due.rs`); what has had its time (`pruning.rs`).

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::clock::{Clock, Jump, behind};
use super::due::{Due, Missed, delay, due};
use super::pruning::Again;
use super::retention::has_room;
use super::schedule::Timetable;
use crate::engine::api::policy::{
    Automatic, AutomaticSpec, CLOCK, CopyOrder, Keep, LastRun, PolicyInfo, Schedule,
};
use crate::engine::api::{Actor, Consistency};
use crate::engine::{Engine, now, time_of_day};
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::freeze::{Freezer, Options};
use crate::units::{DiskId, PolicyId};

/// How often the scheduler looks at the clock.
const TICK: Duration = Duration::from_secs(1);
/// How often it looks for snapshots that have had their time, in seconds.
const PRUNE_EVERY: u64 = 60;
/// How often copies of policies are tried again that have failed, in seconds.
const RETRY_EVERY: u64 = 3600;
/// How long a disk waits for the freeze of another one to end.
const FREEZE_WAIT: Duration = Duration::from_secs(60);
const FREEZE_PAUSE: Duration = Duration::from_millis(200);
/// Whose clock starts with the host and goes on while it sleeps.
const STEADY: nix::time::ClockId = nix::time::ClockId::CLOCK_BOOTTIME;

/// Policies at work.
#[derive(Debug)]
pub struct Policies {
    pub(super) engine: Arc<Engine>,
    pub(super) freezer: Arc<Freezer>,
    wake: (Mutex<Wake>, Condvar),
    /// Held by whoever removes automatic snapshots.
    pub(super) pruning: Mutex<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Wake {
    /// Something changed: look again.
    changed: bool,
    /// Somebody says that the clock is right.
    trust: bool,
    closing: bool,
}

/// What the thread knows between two looks.
struct State {
    clock: Clock,
    /// The hold of the clock is its own: it ends it when the clock is right again.
    jumped: bool,
    tables: HashMap<PolicyId, (Schedule, String, Timetable)>,
    next_look: u64,
    next_prune: u64,
    next_retry: u64,
    again: Again,
    begun: u64,
}

/// How one slot of a policy went.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) made: u64,
    pub(super) skipped: u64,
}

impl Policies {
    /// Policies that do nothing yet.
    #[must_use]
    pub fn new(engine: &Arc<Engine>, freezer: &Arc<Freezer>) -> Arc<Policies> {
        Arc::new(Policies {
            engine: Arc::clone(engine),
            freezer: Arc::clone(freezer),
            wake: (Mutex::default(), Condvar::new()),
            pruning: Mutex::new(()),
            thread: Mutex::new(None),
        })
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(self: &Arc<Self>) -> Result<()> {
        let own = Arc::clone(self);
        let thread = std::thread::Builder::new().name("policies".to_owned());
        let thread =
            thread.spawn(move || own.run()).map_err(|e| Error::io("start a thread", &e))?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Ends the thread; a snapshot that is being made is made.
    pub fn close(&self) {
        self.wake.0.lock().closing = true;
        self.wake.1.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the scheduler of policies panicked");
        }
    }

    /// Lets the thread look again: something changed.
    pub(super) fn look_again(&self) {
        self.wake.0.lock().changed = true;
        self.wake.1.notify_all();
    }

    /// Takes the clock as it is.
    pub(super) fn trust_clock(&self) {
        self.wake.0.lock().trust = true;
        self.look_again();
    }

    fn run(&self) {
        let mut state = State::new();
        loop {
            let (changed, trust) = {
                let mut wake = self.wake.0.lock();
                if !wake.changed && !wake.closing {
                    self.wake.1.wait_for(&mut wake, TICK);
                }
                if wake.closing {
                    return;
                }
                (std::mem::take(&mut wake.changed), std::mem::take(&mut wake.trust))
            };
            if trust {
                let (wall, steady) = clocks();
                state.clock.trust(wall, steady);
                state.jumped = false;
                state.next_prune = state.next_prune.max(1);
            }
            if changed {
                state.next_look = 0;
            }
            if let Err(error) = self.round(&mut state) {
                tracing::error!(%error, "policies cannot go on");
                if error.kind() == ErrorKind::Stopped {
                    return;
                }
            }
        }
    }

    fn round(&self, state: &mut State) -> Result<()> {
        let (at, steady) = clocks();
        if !self.clock_is_right(at, steady, state)? {
            return Ok(());
        }
        let mut ran = false;
        if at >= state.next_look {
            let policies = self.engine.policies();
            state.tables.retain(|id, _| policies.iter().any(|policy| policy.id == *id));
            state.next_look = u64::MAX;
            for policy in policies {
                ran |= self.look_at(&policy, at, state)?;
            }
        }
        if ran || at >= state.next_prune {
            state.next_prune = at + PRUNE_EVERY;
            self.prune_all(at, &mut state.again)?;
        }
        if at >= state.next_retry {
            state.next_retry = at + RETRY_EVERY;
            self.engine.policy_copies_retry()?;
        }
        Ok(())
    }

    /// Whether the clock, which says `at`, can be trusted. If not, everything is held; if it can be again, no longer.
    ///
    /// What follows goes by the same `at`: the clock may be set while it is looked at.
    fn clock_is_right(&self, at: u64, steady: Duration, state: &mut State) -> Result<bool> {
        let mut jump = state.clock.watch(at, steady);
        if jump.is_none() && (state.jumped || state.next_prune == 0) {
            // Once after the start, and until it is over.
            jump = behind(at, self.engine.newest_automatic());
        }
        match jump {
            Some(Jump { seconds }) => {
                let way = if seconds < 0 { "back" } else { "ahead" };
                let why = format!(
                    "the clock went {way} by {} seconds: nothing is made or removed by policies until it is right \
                     again, or `rowctl policy resume` says that it is",
                    seconds.unsigned_abs()
                );
                state.jumped = true;
                self.engine.policy_hold(CLOCK, &why)?;
                Ok(false)
            }
            None if state.jumped => {
                state.jumped = false;
                state.next_look = 0;
                self.engine.policy_resume(Actor::DAEMON, CLOCK)?;
                Ok(true)
            }
            None => Ok(!self.engine.is_held(CLOCK)),
        }
    }

    /// Makes what a policy has due; whether anything was.
    fn look_at(&self, policy: &PolicyInfo, at: u64, state: &mut State) -> Result<bool> {
        let table = match state.table(policy) {
            Ok(table) => table,
            Err(error) => {
                // The zone has vanished from the host. It may come back.
                tracing::error!(%error, policy = policy.spec.name, "a policy cannot be run");
                state.next_look = state.next_look.min(at + PRUNE_EVERY);
                return Ok(false);
            }
        };
        let delay = delay(&policy.id, policy.spec.jitter);
        let at = at.saturating_sub(delay);
        let Due { run, missed, handled } = due(&table, policy.spec.catch_up, policy.handled, at);
        if let Some(next) = table.next(handled.max(at)) {
            state.next_look = state.next_look.min(next.saturating_add(delay));
        }
        if handled == policy.handled {
            return Ok(false);
        }
        let disks = self.engine.policy_disks(&policy.id);
        let mut instances = self.engine.policy_instances(&policy.id);
        instances.retain(|(id, ..)| !self.engine.disks_with(id).is_empty());
        let concerns = |slot: u64| {
            disks.iter().any(|(_, _, since)| *since < slot)
                || instances.iter().any(|(_, _, since)| *since < slot)
        };
        let told = missed.filter(|missed| concerns(missed.last));
        if let Some(missed) = told {
            let away = missed.first < state.begun;
            self.tell_missed(policy, &table, missed, away, run.is_some())?;
        }
        let Some(slot) = run.filter(|slot| concerns(*slot)) else {
            if told.is_some() {
                self.engine.policy_ran(&policy.id, handled, None)?;
            }
            return Ok(false);
        };
        let mut tally = Tally::default();
        for (disk, name, _) in disks.iter().filter(|(_, _, since)| *since < slot) {
            if self.wake.0.lock().closing {
                // The next start goes on with this slot.
                return Ok(true);
            }
            self.run_disk(policy, (&table, slot), (disk, name), &mut tally)?;
        }
        for (instance, name, _) in instances.iter().filter(|(_, _, since)| *since < slot) {
            if self.wake.0.lock().closing {
                return Ok(true);
            }
            self.run_instance(policy, (&table, slot), (instance, name), &mut tally)?;
        }
        let Tally { made, skipped } = tally;
        let run = LastRun { slot, at: now(), made, skipped };
        self.engine.policy_ran(&policy.id, handled, Some(run))?;
        Ok(true)
    }

    fn tell_missed(
        &self,
        policy: &PolicyInfo,
        table: &Timetable,
        missed: Missed,
        away: bool,
        runs: bool,
    ) -> Result<()> {
        let why = if away {
            "rowd was not running"
        } else {
            "the host slept, or the run before took too long"
        };
        let more = if missed.more { "more than " } else { "" };
        let time = |at| table.civil(at).strftime("%Y-%m-%d %H:%M").to_string();
        let times = match missed.count {
            1 => format!("{} was missed", time(missed.first)),
            count => format!(
                "{more}{count} times from {} to {} were missed",
                time(missed.first),
                time(missed.last)
            ),
        };
        let then = if runs { "; one run follows" } else { "" };
        let message = format!(
            "policy {}: {times} ({}), because {why}{then}",
            policy.spec.name, policy.spec.zone
        );
        self.engine.policy_note("policy.missed", policy.id.as_str(), message)
    }

    /// Makes the snapshot of one disk, or tells why not.
    fn run_disk(
        &self,
        policy: &PolicyInfo,
        (table, slot): (&Timetable, u64),
        (disk, name): (&DiskId, &str),
        tally: &mut Tally,
    ) -> Result<()> {
        let quota = self.engine.settings().quota_auto;
        let renewed = std::slice::from_ref(disk);
        let there = self.engine.automatics_when(disk, renewed).snapshots;
        let own = |automatic: &Automatic| automatic.policy == policy.id && automatic.slot == slot;
        if there.iter().any(|one| own(&one.automatic)) {
            // Made before the daemon was interrupted.
            tally.made += 1;
            return Ok(());
        }
        let made = match has_room(&there, quota) {
            true => self.make(policy, table, slot, disk),
            false => Err(Error::new(
                ErrorKind::Quota,
                format!(
                    "it has {} automatic snapshots, all of them in use; the quota is {quota}",
                    there.len()
                ),
            )),
        };
        match made {
            Ok(()) => {
                tally.made += 1;
                self.evict(name, &self.engine.automatics(disk).snapshots)
            }
            Err(error) if error.kind() == ErrorKind::Stopped => Err(error),
            Err(error) => {
                tally.skipped += 1;
                let message = format!(
                    "policy {} left {name} out at {}: {}",
                    policy.spec.name,
                    table.civil(slot).strftime("%Y-%m-%d %H:%M"),
                    error.message()
                );
                self.engine.policy_note("policy.skip", disk.as_str(), message)
            }
        }
    }

    fn make(&self, policy: &PolicyInfo, table: &Timetable, slot: u64, disk: &DiskId) -> Result<()> {
        let _making = self.engine.snapshot_begins(std::slice::from_ref(disk), true)?;
        let spec = automatic(policy, table, slot);
        let name = spec.name.clone();
        let by = Actor::DAEMON;
        if policy.spec.consistency == Consistency::Crash {
            return self.engine.automatic_create(by, disk, spec).map(drop);
        }
        in_turn(|| {
            let how = (policy.spec.consistency, &Options::default());
            let cut = || self.engine.automatic_create(by, disk, spec.clone());
            let of = (disk, Some(name.clone()));
            self.freezer.snapshot_around(&self.engine, by, of, how, cut).map(drop)
        })
    }
}

impl State {
    fn new() -> State {
        let (wall, steady) = clocks();
        State {
            clock: Clock::new(wall, steady),
            jumped: false,
            tables: HashMap::new(),
            next_look: 0,
            next_prune: 0,
            next_retry: wall + RETRY_EVERY,
            again: Again::default(),
            begun: wall,
        }
    }

    /// The timetable of a policy, made anew when it has changed.
    fn table(&mut self, policy: &PolicyInfo) -> Result<Timetable> {
        let (schedule, zone) = (&policy.spec.schedule, &policy.spec.zone);
        if let Some((old, old_zone, table)) = self.tables.get(&policy.id)
            && (old, old_zone) == (schedule, zone)
        {
            return Ok(table.clone());
        }
        let table = Timetable::new(schedule, zone)?;
        self.tables.insert(policy.id.clone(), (schedule.clone(), zone.clone(), table.clone()));
        Ok(table)
    }
}

/// Freezes something when nothing else is frozen: one at a time.
pub(super) fn in_turn<T>(mut freeze: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + FREEZE_WAIT;
    loop {
        match freeze() {
            Err(error) if error.kind() == ErrorKind::InUse && Instant::now() < deadline => {
                std::thread::sleep(FREEZE_PAUSE);
            }
            made => return made,
        }
    }
}

/// The snapshot that a policy makes at a slot.
pub(super) fn automatic(policy: &PolicyInfo, table: &Timetable, slot: u64) -> AutomaticSpec {
    let at = now();
    let end_of = |keep: &Keep| match keep {
        Keep::For { seconds } => (Some(at.saturating_add(*seconds)), None),
        Keep::Forever => (None, None),
        Keep::Counts(counts) => (None, Some(*counts)),
    };
    let (expires_at, counts) = end_of(&policy.spec.keep);
    let copy = policy.spec.copy.as_ref().map(|rule| {
        let (expires_at, counts) = end_of(&rule.keep);
        CopyOrder { repo: rule.repo.clone(), expires_at, counts }
    });
    let clock = table.civil(slot);
    AutomaticSpec {
        name: format!("auto2.0_{}_{}", clock.strftime("%Y%m%d"), policy.id),
        time: clock.strftime("%H%M").to_string(),
        tags: policy.spec.tags.clone(),
        expires_at,
        automatic: Automatic {
            policy: policy.id.clone(),
            slot,
            counts,
            zone: policy.spec.zone.clone(),
            group: None,
        },
        copy,
    }
}

/// The time of day and that of a clock that nobody sets and that does not stand still, of one moment.
fn clocks() -> (u64, Duration) {
    let shift = faults::clock();
    let since = nix::time::clock_gettime(STEADY).map_or(Duration::ZERO, Duration::from);
    (time_of_day(shift), since + Duration::from_secs(shift.steady))
}
