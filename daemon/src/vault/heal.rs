//! Healing from copies: a damaged block of the pool is read from a copy that has it, and stored anew.
//!
//! Invariants: nothing waits for it, least of all the read that found the damage; the engine judges whether what
//! a copy has is what was written (`engine/heal.rs`).
//! Absent: healing of copies from the pool or from each other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::chunk::{OBJECT_MAX, unpack};
use super::copies::keys;
use super::header::{self, Header, missing};
use super::seal::Seal;
use super::store::Store;
use super::table::Table;
use super::work::Work;
use super::{Vault, open_repo};
use crate::engine::api::JobState;
use crate::engine::heal::{Damage, Healed, Sharers};
use crate::engine::repos::RepoRecord;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BLOCK_BYTES, CopyId, SnapshotId};

/// A block that no copy had is not looked for again before.
const AGAIN: Duration = Duration::from_secs(60);

/// Damaged blocks, and who else may have them.
type Damages = Vec<(Damage, Sharers)>;

/// Heals damaged blocks, as they are found, on a thread of its own.
pub(super) fn start(vault: &Arc<Vault>) -> Result<()> {
    let healer = Arc::clone(vault);
    let run = move || {
        let mut tried: HashMap<Damage, Instant> = HashMap::new();
        while let Some(mut found) = healer.engine.damages() {
            tried.retain(|_, at| at.elapsed() < AGAIN);
            found.retain(|damage| !tried.contains_key(damage));
            if found.is_empty() || healer.engine.repos().is_empty() {
                continue;
            }
            tried.extend(found.iter().map(|damage| (*damage, Instant::now())));
            if let Err(error) = job(&healer, found) {
                tracing::warn!(%error, "damaged blocks could not be healed");
            }
        }
    };
    let thread = std::thread::Builder::new().name("vault-heal".to_owned()).spawn(run);
    let thread = thread.map_err(|e| Error::io("start a thread", &e))?;
    vault.threads.lock().push(thread);
    Ok(())
}

fn job(vault: &Arc<Vault>, found: Vec<Damage>) -> Result<()> {
    let job = vault.engine.job_begin("heal", "pool")?;
    let work = Work { vault: Arc::clone(vault), job: Arc::clone(&job) };
    let count = found.len();
    let left = match heal(&work, found) {
        Ok(left) => left,
        Err(error) => {
            let state = match error.kind() {
                ErrorKind::Cancelled => JobState::Cancelled,
                _ => JobState::Failed,
            };
            job.finish(state, error.to_string());
            return Err(error);
        }
    };
    let healed = count - left;
    let message = format!("{healed} damaged blocks healed, {left} that no copy has");
    tracing::warn!("{message}");
    job.finish(JobState::Done, message);
    Ok(())
}

/// Heals what copies have; returns how many blocks no copy had.
fn heal(work: &Work, found: Vec<Damage>) -> Result<usize> {
    let engine = &work.vault.engine;
    work.job.total.store((found.len() * BLOCK_BYTES) as u64, Ordering::Relaxed);
    let mut left: Damages = Vec::with_capacity(found.len());
    for damage in found {
        left.push((damage, engine.sharers(&damage)?));
    }
    for repo in engine.repos() {
        if left.is_empty() {
            break;
        }
        match from_repo(work, &repo, &mut left) {
            Ok(()) => {}
            Err(error) => {
                work.check()?;
                tracing::warn!(%error, repo = repo.name, "nothing more is healed from it");
            }
        }
    }
    Ok(left.len())
}

fn from_repo(work: &Work, repo: &RepoRecord, left: &mut Damages) -> Result<()> {
    let (store, _) = work.wait(open_repo(repo))?;
    let mut copies = work.wait(keys(&store))?;
    // First those that have the very blocks, as the map here says.
    let shares = |snapshot: &SnapshotId, left: &Damages| {
        left.iter().any(|(_, sharers)| sharers.snapshots.contains(snapshot))
    };
    copies.sort_by_key(|(_, snapshot)| !shares(snapshot, left));
    for (id, snapshot) in copies {
        if left.is_empty() {
            return Ok(());
        }
        match from_copy(work, repo, &store, (&id, &snapshot), left) {
            Err(error)
                if header::is_passed_over(&error) || error.kind() == ErrorKind::Condition =>
            {
                tracing::warn!(%error, copy = %id, "nothing is healed from it");
            }
            done => done?,
        }
    }
    Ok(())
}

fn from_copy(
    work: &Work,
    repo: &RepoRecord,
    store: &Store,
    (id, snapshot): (&CopyId, &SnapshotId),
    left: &mut Damages,
) -> Result<()> {
    let engine = &work.vault.engine;
    let header = work.wait(Header::read(store, &header::key(id, snapshot)))?;
    let ours = header.writer == engine.status().uuid;
    // A snapshot that is no longer here may have the block too: its checksum tells.
    let may_have = |sharers: &Sharers| {
        sharers.snapshots.contains(snapshot) || (ours && sharers.disks.contains(&header.disk))
    };
    if !left.iter().any(|(_, sharers)| may_have(sharers)) {
        return Ok(());
    }
    let table = work.wait(header.table(store))?;
    let seal = work.wait(Seal::of(engine, store, &header))?;
    seal.check(&header, &table)?;
    let pacer = work.vault.pacer(repo);
    for (number, blocks) in wanted(&table, left, may_have) {
        let chunk = &table.chunks[number];
        let key = chunk.key();
        let bytes = work.wait(async {
            pacer.pass(chunk.stored as usize).await;
            store.get(&key, OBJECT_MAX).await.map_err(|error| missing(&key, error))
        })?;
        let contents = unpack(chunk, &bytes, &seal)?;
        for (damage, at) in blocks {
            let block = &contents[at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES];
            let from = format!("copy {id} in {}", repo.name);
            if engine.heal(&damage, block, &from)? != Healed::Differs {
                left.retain(|(other, _)| *other != damage);
                work.job.done.fetch_add(BLOCK_BYTES as u64, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// The damaged blocks that a copy holds: by its chunks, with the number of the block in the chunk.
fn wanted(
    table: &Table,
    left: &Damages,
    may_have: impl Fn(&Sharers) -> bool,
) -> BTreeMap<usize, Vec<(Damage, usize)>> {
    let mut found: BTreeMap<usize, Vec<(Damage, usize)>> = BTreeMap::new();
    for (damage, _) in left.iter().filter(|(_, sharers)| may_have(sharers)) {
        let lba = damage.lba.0;
        let at = table.pieces.partition_point(|piece| piece.end() <= lba);
        let Some(piece) = table.pieces.get(at).filter(|piece| piece.start <= lba) else { continue };
        let inside = usize::try_from(lba - piece.start).unwrap_or(usize::MAX);
        let block = (*damage, piece.at as usize + inside);
        found.entry(piece.chunk as usize).or_default().push(block);
    }
    found
}
