//! The kill test: rounds of traffic, `kill -9`, restart and a look at everything, on an ageing pool.
//!
//! Invariants: the pool of a round is what the round before left; it is small, so that growth, reuse,
//! full journals and checkpoints happen all the time; nothing is looked at by a daemon that has not
//! recovered.
//! Absent: cuts of power: the page cache survives here, so every answered write has to be there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use rowd::faults::FAIL_POINTS;
use rowd_proto::DiskCreate;
use serde::Serialize;

use super::actor::{Actor, Deeds};
use super::control::Control;
use super::load::{Done, Lane, Style};
use super::rng::Rng;
use super::stamp::SECTOR;
use super::verify::verify;
use super::world::World;
use super::{Modes, with_mode};
use crate::client::Client;
use crate::process::{Daemon, Setup};
use crate::{tool, wait};

/// A pool that is full, fragmented and short of journal after seconds.
pub const CONFIG: &str = r#"
[pool]
segment = "1MiB"
journal = "2MiB"
max_size = "64MiB"
host_reserve = "0B"

[background]
checkpoint_s = 1
flush_ms = 50
"#;

/// Size of the disks under load.
const BUSY_BYTES: u64 = 4 << 20;
/// Disks under load, and the connections to each.
const BUSY: [(&str, usize); 2] = [("busy1", 2), ("busy2", 1)];
/// The disk of rollbacks: its leaves are more than one step of reclaim frees, so that kills come
/// between steps.
const QUIET: (&str, u64) = ("quiet", 20 << 20);
/// Of these disks, those that are encrypted: one under load, and the one that is cloned and rolled back.
const ENCRYPTED: [&str; 2] = ["busy2", QUIET.0];
/// How long a fail point may take to be reached before the daemon is killed all the same.
const REACH: Duration = Duration::from_millis(1500);
/// Rounds on one pool.
const ROUNDS_PER_POOL: u64 = 25;
/// Rounds between two offline checks.
const CHECK_EVERY: u64 = 5;

/// What a run has done.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    pub seed: u64,
    pub starts: BTreeMap<String, u64>,
    pub kills: u64,
    pub kills_at_random: u64,
    pub kills_while_starting: u64,
    pub kills_at_fail_points: BTreeMap<String, u64>,
    pub requests_answered: u64,
    pub requests_refused_full: u64,
    pub snapshots: u64,
    pub snapshot_deletes: u64,
    pub rollbacks: u64,
    pub groups: u64,
    pub group_deletes: u64,
    pub group_returns: u64,
    pub templates: u64,
    pub template_deletes: u64,
    pub refusals: u64,
    pub clones: u64,
    pub disk_deletes: u64,
    pub sectors_verified: u64,
    pub offline_checks: u64,
}

/// How a round ends.
#[derive(Clone, Debug)]
enum End {
    After(Duration),
    At(&'static str, u64),
}

/// A run of rounds.
struct Campaign {
    program: PathBuf,
    modes: Modes,
    rng: Rng,
    totals: Totals,
    /// Fail points are taken in turn.
    next_point: usize,
}

/// Kills the daemon `program`, in one of `modes` at each start, at least `kills` times.
///
/// # Panics
/// A promise is broken. The seed and the pool are printed.
#[must_use]
pub fn run(program: PathBuf, modes: Modes, seed: u64, kills: u64) -> Totals {
    let totals = Totals { seed, ..Totals::default() };
    let mut campaign = Campaign { program, modes, rng: Rng::new(seed), totals, next_point: 0 };
    while campaign.totals.kills < kills {
        let left = kills - campaign.totals.kills;
        campaign.pool(left.min(ROUNDS_PER_POOL));
    }
    campaign.totals
}

impl Campaign {
    fn pool(&mut self, kills: u64) {
        let mut daemon = self.setup(CONFIG).prepare();
        let mut world = World::default();
        daemon.start();
        make_disks(&daemon, &mut world);
        daemon.stop();
        let end = self.totals.kills + kills;
        let mut round = 0;
        while self.totals.kills < end {
            self.round(&mut daemon, &mut world, round);
            round += 1;
            if round.is_multiple_of(CHECK_EVERY) {
                self.check_offline(&daemon, round);
            }
        }
        self.start(&mut daemon, None);
        self.look(&daemon, &mut world, round);
        daemon.stop();
        self.check_offline(&daemon, round);
    }

    /// One life of the daemon: start, look, traffic, kill.
    fn round(&mut self, daemon: &mut Daemon, world: &mut World, round: u64) {
        if self.rng.chance(15) {
            self.kill_while_starting(daemon);
        }
        // One without a fail point: looking takes time, in which background work would reach it.
        assert!(self.start(daemon, None), "round {round}: the daemon did not start");
        self.look(daemon, world, round);
        let end = self.choose_end(round);
        if let End::At(name, count) = end {
            daemon.kill();
            if !self.start(daemon, Some((name, count))) {
                return self.reached(name);
            }
        }
        self.traffic(daemon, world, &end, round);
    }

    fn setup(&self, config: &str) -> Setup {
        Setup::default().program(&self.program).config(config).master_key(&"5a".repeat(32))
    }

    /// Starts the daemon, to end at a fail point if one is given; `false` when it ended at once.
    fn start(&mut self, daemon: &mut Daemon, point: Option<(&str, u64)>) -> bool {
        let mode = *self.rng.pick(self.modes);
        *self.totals.starts.entry(mode.name().to_owned()).or_default() += 1;
        let setup = self.setup(&with_mode(CONFIG, mode));
        let setup = match point {
            Some((name, count)) => setup.env("ROWD_FAIL_POINT", &format!("{name}:{count}")),
            None => setup,
        };
        daemon.change_setup(|_| setup);
        if point.is_some() {
            return daemon.try_start();
        }
        daemon.start();
        true
    }

    fn choose_end(&mut self, round: u64) -> End {
        // Growth ends when the pool has its full size: early rounds are its only chance.
        if round < 2 {
            return End::At("grow.allocated", self.rng.between(1, 10));
        }
        if self.rng.chance(30) {
            return End::After(Duration::from_millis(self.rng.between(5, 400)));
        }
        let name = FAIL_POINTS[self.next_point % FAIL_POINTS.len()];
        self.next_point += 1;
        let most = match name {
            "write.staged" | "write.journaled" | "write.applied" => 600,
            "flush.synced" => 80,
            "snapshot.journaled" | "reclaim.step" => 5,
            "rollback.journaled" => 2,
            "recovery.replayed" | "recovery.opened" => 1,
            _ => 4,
        };
        End::At(name, self.rng.between(1, most))
    }

    /// Kills a daemon somewhere in its recovery.
    fn kill_while_starting(&mut self, daemon: &Daemon) {
        let mut child = daemon.command().spawn().expect("start the daemon");
        let moment = Duration::from_micros(self.rng.between(500, 60_000));
        wait::try_until(moment, || child.try_wait().expect("ask for the state of a child"));
        child.kill().expect("kill a child");
        let status = child.wait().expect("reap a child");
        assert!(status.code().is_none(), "the daemon ended by itself while starting: {status}");
        self.totals.kills += 1;
        self.totals.kills_while_starting += 1;
    }

    /// Looks at everything, the log included: background work that fails is told nowhere else.
    fn look(&mut self, daemon: &Daemon, world: &mut World, round: u64) {
        if let Some(line) = daemon.log().lines().find(|line| line.contains(" ERROR ")) {
            self.fail(daemon, round, line);
        }
        match verify(world, &daemon.control_socket(), &daemon.nbd_socket()) {
            Ok(sectors) => self.totals.sectors_verified += sectors,
            Err(error) => self.fail(daemon, round, &error),
        }
    }

    fn traffic(&mut self, daemon: &mut Daemon, world: &mut World, end: &End, round: u64) {
        let (nbd, control) = (daemon.nbd_socket(), daemon.control_socket());
        let Some(control) = Control::connect(&control) else {
            return self.ended(daemon.ended(), end, round);
        };
        let logs = BUSY.map(|(name, _)| Arc::clone(&world.disks[name].log));
        let mut lanes = Vec::new();
        // The clock is read beside the actor, who owns the rest of the world.
        let clock = Arc::clone(&world.clock);
        for ((name, connections), log) in BUSY.iter().zip(&logs) {
            for _ in 0..*connections {
                let style = Style {
                    depth: usize::try_from(self.rng.between(1, 32)).expect("small"),
                    requests: None,
                    ragged: true,
                    flushes: self.rng.between(1, 6),
                };
                lanes.push((*name, Lane::new(log, &clock, style, self.rng.fork())));
            }
        }
        let actor =
            Actor { world, nbd: &nbd, control, rng: self.rng.fork(), deeds: Deeds::default() };
        let socket = &nbd;
        let (status, done, deeds) = std::thread::scope(|scope| {
            let writers: Vec<_> = lanes
                .into_iter()
                .map(|(name, lane)| {
                    scope.spawn(move || match Client::try_connect(socket, name, true, &[]) {
                        Ok(mut client) => lane.run(&mut client),
                        Err(_) => Done { cut_off: true, ..Done::default() },
                    })
                })
                .collect();
            let actor = scope.spawn(move || actor.run());
            let over = || writers.iter().any(|w| w.is_finished()) || actor.is_finished();
            let status = watch(daemon, end, over);
            daemon.kill();
            let done: Vec<Done> = writers.into_iter().map(joined).collect();
            (status, done, joined(actor))
        });
        self.ended(status, end, round);
        self.count(&done, &deeds);
    }

    /// The daemon has reached its fail point, or was killed.
    fn ended(&mut self, status: Option<ExitStatus>, end: &End, round: u64) {
        match (status, end) {
            (Some(status), End::At(name, _)) => {
                assert!(status.code().is_none(), "round {round}: the daemon ended: {status}");
                self.reached(name);
            }
            (Some(status), End::After(_)) => {
                panic!("round {round}: the daemon ended by itself: {status}")
            }
            (None, _) => {
                self.totals.kills += 1;
                self.totals.kills_at_random += 1;
            }
        }
    }

    fn reached(&mut self, name: &str) {
        self.totals.kills += 1;
        *self.totals.kills_at_fail_points.entry(name.to_owned()).or_default() += 1;
    }

    fn count(&mut self, done: &[Done], deeds: &Deeds) {
        let totals = &mut self.totals;
        totals.requests_answered += done.iter().map(|d| d.answered).sum::<u64>() + deeds.writes;
        totals.requests_refused_full += done.iter().map(|d| d.refused).sum::<u64>();
        totals.snapshots += deeds.snapshots;
        totals.snapshot_deletes += deeds.snapshot_deletes;
        totals.rollbacks += deeds.rollbacks;
        totals.groups += deeds.groups;
        totals.group_deletes += deeds.group_deletes;
        totals.group_returns += deeds.group_returns;
        totals.templates += deeds.templates;
        totals.template_deletes += deeds.template_deletes;
        totals.refusals += deeds.refusals;
        totals.clones += deeds.clones;
        totals.disk_deletes += deeds.disk_deletes;
    }

    /// `rowd check` walks the killed pool, and finds nothing.
    fn check_offline(&mut self, daemon: &Daemon, round: u64) {
        let mut command = daemon.command();
        let outcome = tool::finish(command.env_remove("ROWD_FAIL_POINT").arg("check"));
        if outcome.code != 0 {
            self.fail(daemon, round, &outcome.to_string());
        }
        self.totals.offline_checks += 1;
    }

    /// Keeps the corpse and fails.
    fn fail(&self, daemon: &Daemon, round: u64, error: &str) -> ! {
        let kept = std::env::temp_dir().join(format!("rowd-corpse-{}", self.totals.seed));
        let copied = tool::finish(tool::command("cp").arg("-a").arg(daemon.file("")).arg(&kept));
        let seed = self.totals.seed;
        let kept = kept.display();
        panic!("seed {seed}, round {round}: {error}\nthe pool is kept in {kept} ({})", copied.code);
    }
}

/// Waits for the moment of a kill; how the daemon ended, if it did by itself.
fn watch(daemon: &mut Daemon, end: &End, over: impl Fn() -> bool) -> Option<ExitStatus> {
    let limit = if let End::After(time) = end { *time } else { REACH };
    let mut status = None;
    wait::try_until(limit, || {
        status = daemon.ended();
        (status.is_some() || over()).then_some(())
    });
    if status.is_none() && over() {
        // A connection noticed before we did; if the daemon lives, it has no reason to end.
        status = wait::try_until(REACH, || daemon.ended());
        assert!(status.is_some(), "a connection ended while the daemon was running");
    }
    status
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn make_disks(daemon: &Daemon, world: &mut World) {
    let mut control = Control::connect(&daemon.control_socket()).expect("the daemon answers");
    for (name, bytes) in BUSY.map(|(name, _)| (name, BUSY_BYTES)).into_iter().chain([QUIET]) {
        let params = DiskCreate {
            name: name.to_owned(),
            size: Some(bytes),
            encrypted: ENCRYPTED.contains(&name),
            ..Default::default()
        };
        let disk = control.call(&params).expect("a new disk");
        world.add_disk(name, &disk.id, usize::try_from(bytes).expect("small") / SECTOR, None);
        let model = world.disks.get_mut(name).expect("just added");
        model.busy = name != QUIET.0;
    }
}
