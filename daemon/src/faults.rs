//! Fail points and seeded faults: where the crash tests kill the daemon, and which guards they remove.
//!
//! Invariants: without the cargo feature `faults` every function here is a constant and compiles to
//! nothing. A fail point ends the process as `kill -9` does. A seeded fault removes one guard of section
//! "Hazards" in ARCHITECTURE.md, and the suite has to notice.
//! Absent: error injection at the system calls; the tests do that from outside.

/// Every fail point, in the order in which a pool meets them.
pub const FAIL_POINTS: &[&str] = &[
    "write.staged",
    "write.journaled",
    "write.applied",
    "flush.synced",
    "snapshot.journaled",
    "rollback.journaled",
    "reclaim.step",
    "checkpoint.cut",
    "checkpoint.written",
    "checkpoint.superblock",
    "recovery.replayed",
    "recovery.opened",
    "grow.allocated",
];

/// Fail points of the vault, in the order in which a copy meets them. Other tests never pass them.
pub const VAULT_FAIL_POINTS: &[&str] = &[
    "copy.marked",
    "copy.sent",
    "copy.table",
    "copy.committed",
    "relay.marked",
    "relay.sent",
    "fill.written",
    "fill.journaled",
    "delete.marked",
    "collect.step",
    "heal.written",
    "heal.journaled",
    "life.copied",
    "life.left",
    "life.deleted",
    "return.journaled",
    "return.step",
    "return.cleared",
    "return.ready",
    "return.abandoned",
];

/// Seconds by which the clocks of this process differ from those of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockShift {
    /// Of the time of day.
    pub wall: i64,
    /// Of the clock that nobody sets.
    pub steady: u64,
}

/// Every hold point: places where a thread waits for a test, in the order in which a daemon, its freeze and a disk
/// that is filled meet them.
pub const HOLD_POINTS: &[&str] =
    &["daemon.ready", "freeze.prepared", "freeze.frozen", "freeze.cut", "fill.begun"];

/// Every seeded fault: the hazard and the guard it removes.
pub const SEEDED_FAULTS: &[&str] = &[
    "h1-replay-skips-data-check",
    "h1-flush-skips-sync",
    "h2-reuse-before-durable",
    "h2-reuse-under-reader",
    "h3-ignore-older-map",
    "h4-map-before-data",
    "h5-no-recheck-of-merged-block",
    "h6-flush-own-connection-only",
    "h7-reclaim-forgets-cursor",
    "h8-reply-with-last-cookie",
    "h9-retry-after-failed-sync",
    "h10-directory-not-synced",
    "h11-retry-overtakes",
    "h12-runtime-ends-first",
    "h13-turn-is-never-given-up",
    "h14-fill-leaves-holes-below",
];

#[cfg(feature = "faults")]
mod enabled {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
    use std::sync::{Once, OnceLock};
    use std::time::Duration;

    static SEEDED: AtomicUsize = AtomicUsize::new(usize::MAX);
    static FROM_ENV: Once = Once::new();
    static HOLD: OnceLock<Option<(String, PathBuf)>> = OnceLock::new();
    static POINT: OnceLock<Option<(String, AtomicI64)>> = OnceLock::new();

    /// How far the clocks are moved: `ROWD_CLOCK` names a file with one number, for both of them, or two, for the
    /// time of day and for the clock that nobody sets.
    #[must_use]
    pub fn clock() -> super::ClockShift {
        static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
        let file = FILE.get_or_init(|| std::env::var_os("ROWD_CLOCK").map(PathBuf::from));
        let Some(text) = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()) else {
            return super::ClockShift::default();
        };
        let mut numbers = text
            .split_whitespace()
            .map(|number| number.parse::<i64>().expect("the file of ROWD_CLOCK has numbers"));
        let wall = numbers.next().unwrap_or(0);
        let steady = numbers.next().unwrap_or(wall);
        super::ClockShift { wall, steady: steady.unsigned_abs() }
    }

    /// Removes a guard in this process, by its name in [`super::SEEDED_FAULTS`]; `None` restores all.
    pub fn seed(name: Option<&str>) {
        FROM_ENV.call_once(|| {});
        let index = name.map_or(usize::MAX, |name| {
            super::SEEDED_FAULTS
                .iter()
                .position(|n| *n == name)
                .unwrap_or_else(|| panic!("no seeded fault is called {name}"))
        });
        SEEDED.store(index, Ordering::SeqCst);
    }

    /// Whether the guard of this name is removed. `ROWD_SEEDED_FAULT` seeds a daemon from outside.
    #[must_use]
    pub fn seeded(name: &str) -> bool {
        FROM_ENV.call_once(|| {
            if let Ok(name) = std::env::var("ROWD_SEEDED_FAULT") {
                let index = super::SEEDED_FAULTS.iter().position(|n| *n == name);
                SEEDED.store(index.expect("ROWD_SEEDED_FAULT names a fault"), Ordering::SeqCst);
            }
        });
        super::SEEDED_FAULTS.get(SEEDED.load(Ordering::Relaxed)).is_some_and(|n| *n == name)
    }

    /// Waits here when `ROWD_HOLD_POINT=NAME:FILE` says so: makes FILE, and goes on when it is removed.
    pub fn hold_point(name: &str) {
        let point = HOLD.get_or_init(|| {
            let text = std::env::var("ROWD_HOLD_POINT").ok()?;
            let (name, file) = text.split_once(':').expect("ROWD_HOLD_POINT is NAME:FILE");
            assert!(super::HOLD_POINTS.contains(&name), "no hold point is called {name}");
            Some((name.to_owned(), PathBuf::from(file)))
        });
        let Some((_, file)) = point.as_ref().filter(|(wanted, _)| wanted == name) else { return };
        std::fs::write(file, name).expect("the file of ROWD_HOLD_POINT can be made");
        while file.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the process here when `ROWD_FAIL_POINT=NAME:N` says so and this is the Nth passage.
    pub fn fail_point(name: &str) {
        let point = POINT.get_or_init(|| {
            let text = std::env::var("ROWD_FAIL_POINT").ok()?;
            let (name, count) = text.split_once(':').expect("ROWD_FAIL_POINT is NAME:N");
            let known =
                super::FAIL_POINTS.contains(&name) || super::VAULT_FAIL_POINTS.contains(&name);
            assert!(known, "no fail point is called {name}");
            Some((name.to_owned(), AtomicI64::new(count.parse().expect("N is a number"))))
        });
        let Some((wanted, left)) = point else { return };
        if wanted == name && left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _gone =
                nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

#[cfg(feature = "faults")]
pub use enabled::{clock, fail_point, hold_point, seed, seeded};

/// Whether a guard is removed: never, in a build without faults.
#[cfg(not(feature = "faults"))]
#[inline(always)]
#[must_use]
pub const fn seeded(_name: &str) -> bool {
    false
}

/// How far the clocks are moved: not at all, in a build without faults.
#[cfg(not(feature = "faults"))]
#[inline(always)]
#[must_use]
pub const fn clock() -> ClockShift {
    ClockShift { wall: 0, steady: 0 }
}

/// A place where the crash tests may end the process: nothing, in a build without faults.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub const fn fail_point(_name: &str) {}

/// A place where a test may hold a thread up: nothing, in a build without faults.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub const fn hold_point(_name: &str) {}
