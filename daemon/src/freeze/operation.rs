//! One snapshot or group above the crash level: the phases in their order.
//!
//! Invariants: file systems are frozen last and thawed first; what was begun is ended, also when
//! something between fails; between the first freeze and the last thaw nothing is logged, started or
//! waited for but the cut; a cut that was not frozen from its beginning to its end is never called
//! consistent.
//! Absent: what the cut is (a snapshot or a group), and tags.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::Busy;
use super::applications::Applications;
use super::provider::{Held, Provider};
use super::report::{Phase, Report};
use crate::engine::api::Consistency;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;

/// Everything that is needed, checked and held.
#[derive(Debug)]
pub(super) struct Operation {
    pub busy: Arc<Busy>,
    pub applications: Option<Applications>,
    pub providers: Vec<Box<dyn Provider>>,
    pub report: Report,
}

/// What was made, and what went wrong after it was.
#[derive(Debug)]
pub(super) struct Made<T> {
    pub made: T,
    pub report: Report,
    pub trouble: Option<Error>,
}

impl Operation {
    /// Runs all phases around `cut`. `undo` takes back what was made too late.
    ///
    /// # Errors
    /// Nothing was made, or it was taken back; everything is thawed and released.
    pub fn run<T>(
        mut self,
        cut: impl FnOnce() -> Result<T>,
        undo: impl FnOnce(T) -> Result<()>,
    ) -> Result<Made<T>> {
        let quiet = self.begin();
        let made = quiet.and_then(|()| self.cut_frozen(cut, undo));
        let released = self.release(made.is_ok());
        let (made, trouble) = match (made, &released) {
            (Ok(made), _) => made,
            (Err(error), Ok(())) => return Err(error),
            (Err(error), Err(trouble)) => return Err(also(error, trouble)),
        };
        let frozen = self.report.reached == Consistency::Fs || self.providers.is_empty();
        if self.applications.is_some() && frozen && trouble.is_none() && released.is_ok() {
            self.report.reached = Consistency::App;
        }
        let trouble = match (trouble, released.err()) {
            (Some(first), Some(second)) => Some(also(first, &second)),
            (first, second) => first.or(second),
        };
        Ok(Made { made, trouble, report: self.report })
    }

    /// Makes the applications quiet.
    fn begin(&mut self) -> Result<()> {
        let Some(mut applications) = self.applications.take() else { return Ok(()) };
        let mut begun = Ok(());
        if applications.has_scripts() {
            begun = self.phase(Phase::Prescript, |_| applications.freeze_script());
        }
        if applications.has_hooks() && begun.is_ok() {
            begun = self.phase(Phase::Hooks, |_| applications.begin_hooks());
        }
        self.applications = Some(applications);
        begun.and_then(|()| self.busy.check())
    }

    /// Lets the applications go on, whatever happened.
    fn release(&mut self, made: bool) -> Result<()> {
        let Some(mut applications) = self.applications.take() else { return Ok(()) };
        let result = if made { "made" } else { "failed" };
        let (mut released, mut ended) = (Ok(()), Ok(()));
        if applications.has_hooks() {
            released = self.phase(Phase::Release, |_| applications.release_hooks(result));
        }
        if applications.has_scripts() {
            ended = self.phase(Phase::Postscript, |_| applications.thaw_script(result));
        }
        self.applications = Some(applications);
        match (released, ended) {
            (Err(first), Err(second)) => Err(also(first, &second)),
            (released, ended) => released.and(ended),
        }
    }

    /// Freezes, cuts, thaws.
    fn cut_frozen<T>(
        &mut self,
        cut: impl FnOnce() -> Result<T>,
        undo: impl FnOnce(T) -> Result<()>,
    ) -> Result<(T, Option<Error>)> {
        if self.providers.is_empty() {
            let made = self.phase(Phase::Cut, |this| this.holds().and_then(|()| cut()))?;
            return Ok((made, None));
        }
        faults::hold_point("freeze.prepared");
        self.report.frozen_at = Some(SystemTime::now());
        self.phase(Phase::Freeze, Operation::freeze)?;
        faults::hold_point("freeze.frozen");
        let made = self.phase(Phase::Cut, |this| this.holds().and_then(|()| cut()));
        let cut_at = Instant::now();
        faults::hold_point("freeze.cut");
        let thawed = self.phase(Phase::Thaw, Operation::thaw);
        self.report.thawed_at = Some(SystemTime::now());
        let made = match (made, &thawed) {
            (Ok(made), _) => made,
            (Err(error), Ok(_)) => return Err(error),
            (Err(error), Err(trouble)) => return Err(also(error, trouble)),
        };
        match thawed {
            Ok(Held::Throughout) => self.report.reached = Consistency::Fs,
            Ok(Held::Expired(ago)) if Instant::now().checked_sub(ago) > Some(cut_at) => {
                self.report.reached = Consistency::Fs;
            }
            Ok(Held::Expired(_)) => {
                let message = "the freeze was ended by its limit while the snapshot was made";
                let error = Error::new(ErrorKind::TimedOut, message)
                    .hint("give it longer with --freeze-timeout");
                return Err(match undo(made) {
                    Ok(()) => error,
                    Err(trouble) => also(error, &trouble),
                });
            }
            Ok(Held::Interrupted(why)) => {
                self.report.notes.push(format!("not consistent: {why} before the thaw"));
            }
            Err(trouble) => return Ok((made, Some(trouble))),
        }
        Ok((made, None))
    }

    /// Freezes what every provider has, or nothing.
    fn freeze(&mut self) -> Result<()> {
        for at in 0..self.providers.len() {
            if let Err(error) = self.providers[at].freeze() {
                let thawed = thaw_all(&mut self.providers[..at]);
                return Err(match thawed {
                    Ok(_) => error,
                    Err(trouble) => also(error, &trouble),
                });
            }
        }
        Ok(())
    }

    fn holds(&self) -> Result<()> {
        self.busy.check()?;
        self.applications.as_ref().map_or(Ok(()), Applications::are_quiet)?;
        self.providers.iter().try_for_each(|provider| provider.holds())
    }

    fn thaw(&mut self) -> Result<Held> {
        thaw_all(&mut self.providers)
    }

    /// Runs a phase and notes how long it took.
    fn phase<T>(
        &mut self,
        phase: Phase,
        step: impl FnOnce(&mut Operation) -> Result<T>,
    ) -> Result<T> {
        self.busy.enter(phase);
        let begun = Instant::now();
        let result = step(self);
        self.report.phases.push((phase, begun.elapsed()));
        result
    }
}

/// Thaws in the opposite order, whatever happens; the worst of what the providers say.
fn thaw_all(providers: &mut [Box<dyn Provider>]) -> Result<Held> {
    let mut worst = Held::Throughout;
    let mut failed = None;
    for provider in providers.iter_mut().rev() {
        match (provider.thaw(), &worst) {
            (Ok(Held::Throughout), _) => {}
            (Ok(Held::Expired(ago)), Held::Expired(other)) if ago <= *other => {}
            (Ok(held), _) => worst = held,
            (Err(error), _) => failed = Some(error),
        }
    }
    failed.map_or(Ok(worst), Err)
}

/// An error with the one that followed from it.
fn also(error: Error, trouble: &Error) -> Error {
    let message = format!("{}; and then: {}", error.message(), trouble.message());
    let both = Error::new(error.kind(), message);
    match error.advice().or(trouble.advice()) {
        Some(hint) => both.hint(hint),
        None => both,
    }
}
