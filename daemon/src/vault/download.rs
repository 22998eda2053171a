//! Reading copies back: to verify them, and to fill disks.
//!
//! Invariants: no byte of a chunk is used before its sum is right; a disk is filled completely or cannot be used.
//! Absent: fetching on demand; a disk has to be filled first.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::JoinSet;

use super::chunk::{OBJECT_MAX, unpack};
use super::header::{self, Header, missing};
use super::open_repo;
use super::store::Store;
use super::table::{Piece, Table};
use super::upload::PARALLEL;
use super::work::Work;
use crate::disk::lane::Lane;
use crate::disk::write::Op;
use crate::engine::copies::Filling;
use crate::engine::repos::RepoRecord;
use crate::error::{Error, Result};
use crate::faults;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE};

/// Reads all of a copy and checks it. Returns its header.
///
/// # Errors
/// `Corrupt`, naming the first object that is damaged or missing.
pub(super) fn verify(work: &Work, repo: &RepoRecord, key: &str) -> Result<Header> {
    let (store, header, table) = open_copy(work, repo, key)?;
    fetch(work, repo, &store, &table, |_, _| Ok(()))?;
    Ok(header)
}

/// Writes all of a copy to a disk, which can be used from then on.
///
/// # Errors
/// As [`verify`]; the pool is full; the disk was deleted.
pub(super) fn fill(work: &Work, filling: &Filling) -> Result<Header> {
    let engine = &work.vault.engine;
    let repo = engine.repo(&filling.repo)?;
    let key = header::key(&filling.copy, &filling.snapshot);
    let (store, header, table) = open_copy(work, &repo, &key)?;
    let disk = engine.fill_target(&filling.disk)?;
    let mut lane = Lane::new(&disk);
    let mut results = Vec::new();
    fetch(work, &repo, &store, &table, |pieces, blocks| {
        for piece in pieces {
            let at = piece.at as usize * BLOCK_BYTES;
            let data = &blocks[at..at + piece.blocks as usize * BLOCK_BYTES];
            lane.submit(&[Op::Write { offset: piece.start * BLOCK_SIZE, data }], &mut results);
        }
        results.drain(..).collect::<Result<()>>()?;
        faults::fail_point("fill.written");
        // Nobody can be connected, so whoever deletes the disk is noticed here.
        engine.fill_target(&filling.disk).map(|_| ())
    })?;
    drop(lane);
    engine.fill_end(&filling.disk)?;
    Ok(header)
}

fn open_copy(work: &Work, repo: &RepoRecord, key: &str) -> Result<(Store, Header, Table)> {
    work.wait(async {
        let (store, _) = open_repo(repo).await?;
        let header = Header::read(&store, key).await.map_err(|error| missing(key, error))?;
        let table = header.table(&store).await?;
        Ok((store, header, table))
    })
}

/// Reads all chunks of a table, several at a time, and passes on each with its pieces.
fn fetch(
    work: &Work,
    repo: &RepoRecord,
    store: &Store,
    table: &Table,
    mut take: impl FnMut(&[Piece], &[u8]) -> Result<()>,
) -> Result<()> {
    let mut pieces: Vec<Vec<Piece>> = vec![Vec::new(); table.chunks.len()];
    table.pieces.iter().for_each(|piece| pieces[piece.chunk as usize].push(*piece));
    let total = table.chunks.iter().map(|chunk| u64::from(chunk.raw)).sum();
    work.job.total.store(total, Ordering::Relaxed);
    let pacer = work.vault.pacer(repo);
    let mut under_way: JoinSet<Result<(usize, Vec<u8>)>> = JoinSet::new();
    let mut next = 0;
    while next < table.chunks.len() || !under_way.is_empty() {
        while next < table.chunks.len() && under_way.len() < PARALLEL {
            let (store, pacer) = (store.clone(), Arc::clone(&pacer));
            let (index, chunk) = (next, table.chunks[next].clone());
            let handle = work.vault.handle.clone();
            let get = move || {
                let key = chunk.key();
                let bytes = handle.block_on(async {
                    pacer.pass(chunk.stored as usize).await;
                    store.get(&key, OBJECT_MAX).await.map_err(|error| missing(&key, error))
                })?;
                Ok((index, unpack(&chunk, &bytes)?))
            };
            under_way.spawn_blocking_on(get, &work.vault.handle);
            next += 1;
        }
        let done = work.wait(async {
            match under_way.join_next().await {
                Some(done) => done.map_err(|e| Error::internal(e.to_string()))?.map(Some),
                None => Ok(None),
            }
        })?;
        if let Some((index, blocks)) = done {
            take(&pieces[index], &blocks)?;
            work.job.done.fetch_add(blocks.len() as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}
