//! A run of the power-cut test: recordings, and states of each.
//!
//! Invariants: cuts are spread over the whole recording, the making of the pool included.
//! Absent: what a state is and what it must show.

use std::path::Path;

use serde::Serialize;
use tempfile::TempDir;

use super::check::{check, scratch};
use super::record::{Recording, record};
use super::state::Durable;
use crate::crash::Modes;
use crate::crash::rng::Rng;

/// States from one recording: more of them find less that is new.
const STATES_PER_RECORDING: u64 = 150;
/// Per cent of the cuts that fall into the making of the pool.
const EARLY: u64 = 10;

/// What a run has done.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    pub seed: u64,
    pub states: u64,
    pub recordings: u64,
    pub device_writes: u64,
    pub device_flushes: u64,
    pub requests: u64,
    pub snapshots: u64,
    pub records_replayed: u64,
}

/// Judges `states` states of daemons in `modes`.
///
/// # Panics
/// A promise is broken. The seed is printed, and the state is kept.
#[must_use]
pub fn run(program: &Path, modes: Modes, seed: u64, states: u64) -> Totals {
    let mut totals = Totals { seed, ..Totals::default() };
    let mut rng = Rng::new(seed);
    while totals.states < states {
        let recording = record(program, modes, &mut rng);
        totals.note(&recording);
        let count = (states - totals.states).min(STATES_PER_RECORDING);
        judge_states(&recording, modes, count, &mut rng, &mut totals);
    }
    totals
}

fn judge_states(
    recording: &Recording,
    modes: Modes,
    count: u64,
    rng: &mut Rng,
    totals: &mut Totals,
) {
    let home = TempDir::with_prefix_in("rowd-states-", scratch()).expect("a temporary directory");
    let (image, point) = (home.path().join("image"), home.path().join("mnt"));
    std::fs::create_dir(&point).expect("a mount point");
    let mut durable = Durable::new(&recording.entries);
    for cut in choose_cuts(recording, count, rng) {
        let choices = rng.fork();
        durable.state(cut, &mut choices.clone(), &image).expect("write a state");
        match check(recording, cut, &image, &point, *rng.pick(modes)) {
            Ok(records) => totals.records_replayed += records,
            Err(error) => {
                let number = totals.states;
                // The check has changed the image: the same state once more, to look at.
                let kept = std::env::temp_dir().join(format!("rowd-state-{}", totals.seed));
                durable.state(cut, &mut choices.clone(), &kept).expect("keep the state");
                panic!(
                    "seed {}, state {number}, cut at {cut} of {}: {error}\nkept as {}",
                    totals.seed,
                    recording.end,
                    kept.display()
                );
            }
        }
        totals.states += 1;
    }
}

fn choose_cuts(recording: &Recording, count: u64, rng: &mut Rng) -> Vec<u64> {
    let mut cut = || match rng.chance(EARLY) {
        true => rng.between(recording.begin, recording.ready),
        false => rng.between(recording.ready, recording.end),
    };
    let mut cuts: Vec<u64> = (0..count).map(|_| cut()).collect();
    cuts.sort_unstable();
    cuts
}

impl Totals {
    fn note(&mut self, recording: &Recording) {
        use super::device::Change;
        let flushes =
            recording.entries.iter().filter(|e| matches!(e.change, Change::Flush)).count();
        self.recordings += 1;
        self.device_flushes += flushes as u64;
        self.device_writes += (recording.entries.len() - flushes) as u64;
        self.snapshots += recording.snapshots.len() as u64;
        let logs = recording.disks.iter().map(|disk| crate::crash::load::lock(&disk.log).ops.len());
        self.requests += logs.sum::<usize>() as u64;
    }
}
