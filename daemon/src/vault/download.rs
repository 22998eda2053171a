//! Reading copies back: to verify them, and to fill disks.
//!
//! Invariants: no byte of a chunk is used before its sum is right; a disk is filled completely or cannot be used.
//! Absent: fetching on demand; a disk has to be filled first.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::JoinSet;

use super::chunk::{OBJECT_MAX, check, unpack};
use super::header::{self, Header, missing};
use super::open_repo;
use super::seal::Seal;
use super::store::Store;
use super::table::{Chunk, Piece, Table};
use super::upload::PARALLEL;
use super::work::Work;
use crate::disk::lane::Lane;
use crate::disk::write::Op;
use crate::engine::copies::Filling;
use crate::engine::repos::RepoRecord;
use crate::error::{Error, Result};
use crate::faults;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE};

/// A copy that can be read.
struct Copy {
    store: Store,
    header: Header,
    table: Table,
    seal: Seal,
}

/// Reads all of a copy and checks it. Returns its header, and why it was not decrypted, if there was no key:
/// what is stored is checked all the same.
///
/// # Errors
/// `Corrupt`, naming the first object that is damaged or missing.
pub(super) fn verify(work: &Work, repo: &RepoRecord, key: &str) -> Result<(Header, Option<Error>)> {
    let copy = open_copy(work, repo, key)?;
    fetch(
        work,
        repo,
        &copy,
        |chunk, bytes, seal| match seal {
            Seal::Locked(_) => check(chunk, bytes, seal).map(|()| Vec::new()),
            _ => unpack(chunk, bytes, seal),
        },
        |_, _| Ok(()),
    )?;
    Ok((copy.header, copy.seal.key().err()))
}

/// Writes all of a copy to a disk, which can be used from then on.
///
/// # Errors
/// As [`verify`]; the pool is full; the disk was deleted.
pub(super) fn fill(work: &Work, filling: &Filling) -> Result<Header> {
    let engine = &work.vault.engine;
    let repo = engine.repo(&filling.repo)?;
    let key = header::key(&filling.copy, &filling.snapshot);
    let copy = open_copy(work, &repo, &key)?;
    copy.seal.key()?;
    let target = engine.fill_target(filling)?;
    let mut lane = Lane::new(&target.disk);
    let mut results = Vec::new();
    fetch(work, &repo, &copy, unpack, |pieces, blocks| {
        for piece in pieces {
            let at = piece.at as usize * BLOCK_BYTES;
            let data = &blocks[at..at + piece.blocks as usize * BLOCK_BYTES];
            lane.submit(&[Op::Write { offset: piece.start * BLOCK_SIZE, data }], &mut results);
        }
        results.drain(..).collect::<Result<()>>()?;
        faults::fail_point("fill.written");
        // Nobody can be connected, so whoever deletes the disk is noticed here.
        engine.fill_target(filling).map(|_| ())
    })?;
    drop(lane);
    engine.fill_end(filling, &target)?;
    Ok(copy.header)
}

fn open_copy(work: &Work, repo: &RepoRecord, key: &str) -> Result<Copy> {
    work.wait(async {
        let (store, _) = open_repo(repo).await?;
        let header = Header::read(&store, key).await.map_err(|error| missing(key, error))?;
        let table = header.table(&store).await?;
        let seal = Seal::of(&work.vault.engine, &store, &header).await?;
        seal.check(&header, &table)?;
        Ok(Copy { store, header, table, seal })
    })
}

/// Reads all chunks of a table, several at a time, and passes on each with its pieces.
fn fetch(
    work: &Work,
    repo: &RepoRecord,
    copy: &Copy,
    read: fn(&Chunk, &[u8], &Seal) -> Result<Vec<u8>>,
    mut take: impl FnMut(&[Piece], &[u8]) -> Result<()>,
) -> Result<()> {
    let Copy { store, table, seal, .. } = copy;
    let mut pieces: Vec<Vec<Piece>> = vec![Vec::new(); table.chunks.len()];
    table.pieces.iter().for_each(|piece| pieces[piece.chunk as usize].push(*piece));
    let total = table.chunks.iter().map(|chunk| u64::from(chunk.raw)).sum();
    work.job.total.store(total, Ordering::Relaxed);
    let pacer = work.vault.pacer(repo);
    let mut under_way: JoinSet<Result<(usize, u32, Vec<u8>)>> = JoinSet::new();
    let mut next = 0;
    while next < table.chunks.len() || !under_way.is_empty() {
        while next < table.chunks.len() && under_way.len() < PARALLEL {
            let (store, pacer, seal) = (store.clone(), Arc::clone(&pacer), seal.clone());
            let (index, chunk) = (next, table.chunks[next].clone());
            let own = work.clone();
            let get = move || {
                let key = chunk.key();
                own.turn(&pacer, chunk.stored as usize)?;
                let bytes = own.vault.attend(store.get(&key, OBJECT_MAX));
                let bytes = bytes.map_err(|error| missing(&key, error))?;
                Ok((index, chunk.raw, read(&chunk, &bytes, &seal)?))
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
        if let Some((index, raw, blocks)) = done {
            take(&pieces[index], &blocks)?;
            work.job.done.fetch_add(u64::from(raw), Ordering::Relaxed);
        }
    }
    Ok(())
}
