//! The hourly sample of usage: asks the repositories, which the engine does not know, and has the engine write it down.
//!
//! Invariants: a repository that does not answer is left out of the sample and delays nothing else; whoever asks for
//! usage meanwhile gets the last sample.
//! Absent: the numbers of the pool (`engine/usage.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use crate::engine::Engine;
use crate::engine::usage::Stored;
use crate::vault::Vault;
use crate::vault::copies::CopyState;

/// How often it is looked whether an hour has begun; the first look is at the start.
const LOOK_EVERY: Duration = Duration::from_secs(20);

/// Samples until `shutdown` becomes true.
pub async fn sample(engine: Arc<Engine>, vault: Arc<Vault>, mut shutdown: watch::Receiver<bool>) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            _ = ticks.tick() => {}
        }
        if !engine.usage_due() {
            continue;
        }
        let (engine, vault) = (Arc::clone(&engine), Arc::clone(&vault));
        let sampled = spawn_blocking(move || engine.usage_sample(repositories(&engine, &vault)));
        // One that hangs on a repository does not hold up the end of the daemon.
        let outcome = tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            outcome = sampled => outcome,
        };
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "usage is not sampled"),
            Err(error) => tracing::error!(%error, "usage is not sampled"),
        }
    }
}

/// What each repository holds, of those that answer.
fn repositories(engine: &Engine, vault: &Vault) -> BTreeMap<String, Stored> {
    let mut all = BTreeMap::new();
    for repo in engine.repos() {
        match vault.copies(Some(&repo.name)) {
            Ok(copies) => {
                let mut stored = Stored::default();
                for copy in copies {
                    if let CopyState::Accomplished(header) = copy.state {
                        stored.copies += 1;
                        stored.bytes += header.new_stored;
                    }
                }
                all.insert(repo.name, stored);
            }
            Err(error) => tracing::warn!(%error, repo = repo.name, "usage of a repository"),
        }
    }
    all
}
