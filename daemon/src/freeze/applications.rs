//! The applications of one snapshot: which scripts and hooks take part, and how far they have come.
//!
//! Invariants: the thaw script runs whenever the freeze script ran, however that ended; hooks are released
//! in the opposite order; what makes scripts unusable lowers the level and is told, what makes them fail
//! is an error.
//! Absent: what a script or a hook is (`script.rs`, `hook.rs`).

use std::path::PathBuf;
use std::time::Duration;

use super::hook::{Held, Hook, discover};
use super::script::{Pair, Surroundings};
use crate::error::{Error, ErrorKind, Result};

/// Where scripts and hooks may come from.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    pub pre: Option<PathBuf>,
    pub post: Option<PathBuf>,
    /// The directory of hooks.
    pub hooks: PathBuf,
    /// For each script or hook.
    pub limit: Duration,
}

/// Applications that can be made quiet.
#[derive(Debug)]
pub(super) struct Applications {
    pair: Option<Pair>,
    hooks: Vec<Hook>,
    surroundings: Surroundings,
    limit: Duration,
    /// The freeze script was started.
    begun: bool,
    held: Vec<Held>,
}

impl Applications {
    /// The usable scripts and hooks, if any, and what there is to tell of the others.
    pub fn choose(
        sources: Sources,
        surroundings: Surroundings,
    ) -> (Option<Applications>, Vec<String>) {
        let Sources { pre, post, hooks: dir, limit } = sources;
        let pair = match (&pre, &post) {
            (None, None) => None,
            (Some(pre), Some(post)) => match Pair::check(pre, post) {
                Ok(pair) => Some(pair),
                Err(unusable) => return (None, vec![unusable.to_string()]),
            },
            (Some(alone), None) => {
                let why =
                    format!("there is no thaw script to the freeze script {}", alone.display());
                return (None, vec![why]);
            }
            (None, Some(alone)) => {
                let why =
                    format!("there is no freeze script to the thaw script {}", alone.display());
                return (None, vec![why]);
            }
        };
        let (hooks, skipped) = discover(&dir);
        let told =
            |one: super::hook::Skipped| format!("the hook {} is skipped: {}", one.name, one.reason);
        let mut notes: Vec<String> = skipped.into_iter().map(told).collect();
        if pair.is_none() && hooks.is_empty() {
            notes.push(format!(
                "no scripts are given, and no usable hooks are in {}",
                dir.display()
            ));
            return (None, notes);
        }
        let (begun, held) = (false, Vec::new());
        (Some(Applications { pair, hooks, surroundings, limit, begun, held }), notes)
    }

    pub fn has_scripts(&self) -> bool {
        self.pair.is_some()
    }

    pub fn has_hooks(&self) -> bool {
        !self.hooks.is_empty()
    }

    /// What takes part, for the log.
    pub fn names(&self) -> Vec<String> {
        let script = self.pair.iter().map(|pair| pair.pre.path().display().to_string());
        script.chain(self.hooks.iter().map(|hook| hook.name().to_owned())).collect()
    }

    /// Runs the freeze script.
    pub fn freeze_script(&mut self) -> Result<()> {
        let Some(pair) = &self.pair else { return Ok(()) };
        self.begun = true;
        pair.pre.run(&self.surroundings, self.limit).map(drop)
    }

    /// Begins the hooks in their order.
    pub fn begin_hooks(&mut self) -> Result<()> {
        for hook in &self.hooks {
            let held = hook.begin(&self.surroundings, self.limit)?;
            self.held.push(held);
        }
        Ok(())
    }

    /// Whether all are quiet still; asked right before the cut.
    pub fn are_quiet(&self) -> Result<()> {
        match self.held.iter().find(|held| !held.is_holding()) {
            None => Ok(()),
            Some(gone) => {
                let message =
                    format!("the hook {} ended before the snapshot was made", gone.name());
                Err(Error::new(ErrorKind::FreezeScript, message))
            }
        }
    }

    /// Releases the hooks, the last first; all of them, also when one fails.
    pub fn release_hooks(&mut self, result: &str) -> Result<()> {
        let mut ended = Ok(());
        while let Some(mut held) = self.held.pop() {
            held.tell(result);
            ended = ended.and(held.release(self.limit).map(drop));
        }
        ended
    }

    /// Runs the thaw script, if the freeze script was started.
    pub fn thaw_script(&mut self, result: &str) -> Result<()> {
        if !std::mem::take(&mut self.begun) {
            return Ok(());
        }
        let Some(pair) = &self.pair else { return Ok(()) };
        let surroundings =
            Surroundings { result: Some(result.to_owned()), ..self.surroundings.clone() };
        pair.post.run(&surroundings, self.limit).map(drop)
    }
}
