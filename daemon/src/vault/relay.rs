//! A copy of a copy: from one repository to another, chunk by chunk, as they are stored.
//!
//! Invariants: what is read is checked before it is sent; a mark in the source keeps its chunks from being freed,
//! and a mark in the target says what the source was, so that the copy is completed even when the source is
//! deleted meanwhile; a copy of an encrypted disk is taken along without its key, and stays encrypted.
//! Absent: packing blocks anew. A chunk goes as a whole even if few of its blocks are still needed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::task::JoinSet;

use super::chunk::{OBJECT_MAX, check};
use super::format::{RECORD_MAX, open};
use super::header::{self, COPIES, Header, Origin, UPLOADS, Upload, missing};
use super::seal::Seal;
use super::store::Store;
use super::table::{Chunk, Table};
use super::upload::{MARK_EVERY, PARALLEL, drain, mark, publish, unmark};
use super::work::{Pacer, Work};
use super::{Vault, open_repo, parts};
use crate::engine::copies::{CopyRecord, Place};
use crate::engine::now;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::units::CopyId;

/// Copies in the target whose tables are looked through for chunks that are there already.
const TABLES_READ: usize = 16;

/// Chunks that are in the target, by their sums.
type Known = HashMap<[u8; 32], Chunk>;

/// One end of the way.
struct End {
    store: Store,
    pacer: Arc<Pacer>,
}

/// What is needed to send chunks.
struct Way<'a> {
    work: &'a Work,
    copy: &'a CopyRecord,
    source: End,
    target: End,
    header: Header,
    seal: Seal,
    marked: Instant,
}

/// Makes a copy of a copy, or goes on with one.
///
/// # Errors
/// `Cancelled`; `NotFound` when the source was deleted before this began; a store does not answer.
pub(super) fn run(work: &Work, copy: &CopyRecord, from: &Place) -> Result<Header> {
    let engine = &work.vault.engine;
    work.arrive();
    let end = |name: &str| -> Result<End> {
        let repo = engine.repo(name)?;
        let (store, _) = work.wait(open_repo(&repo))?;
        Ok(End { store, pacer: work.vault.pacer(&repo) })
    };
    let target = end(&copy.repo)?;
    match work.wait(Header::read(&target.store, &header::key(&copy.id, &copy.snapshot))) {
        // It was complete when the daemon ended.
        Ok(done) => {
            work.wait(unmark(&target.store, &copy.id))?;
            release(&work.vault, copy);
            return Ok(done);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let source = end(&from.repo)?;
    // Before the header is read: from here on nothing that it needs is freed.
    work.wait(mark(work, &source.store, &copy.id, None))?;
    let header = work.wait(source_header(&source.store, &target.store, copy, from))?;
    work.wait(mark(work, &target.store, &copy.id, Some(&header)))?;
    faults::fail_point("relay.marked");
    let table = work.wait(header.table(&source.store))?;
    let seal = work.wait(Seal::of(engine, &source.store, &header))?;
    seal.check(&header, &table)?;
    let mut way = Way { work, copy, source, target, header, seal, marked: Instant::now() };
    let done = way.go(table, from)?;
    work.wait(unmark(&way.target.store, &copy.id))?;
    release(&work.vault, copy);
    Ok(done)
}

/// Takes the mark of a copy of a copy out of its source. It may not answer any more; then others find the mark
/// abandoned after a time.
pub(super) fn release(vault: &Arc<Vault>, copy: &CopyRecord) {
    let Some(from) = &copy.from else { return };
    let released = vault.engine.repo(&from.repo).and_then(|repo| {
        vault.wait(&repo.name, async {
            let (store, _) = open_repo(&repo).await?;
            unmark(&store, &copy.id).await
        })?;
        vault.begin_collect(repo)
    });
    if let Err(error) = released {
        tracing::warn!(%error, copy = %copy.id, repo = from.repo, "its mark is left in the source");
    }
}

/// The header of the source; when it was deleted since this began, as the mark in the target has it.
async fn source_header(
    source: &Store,
    target: &Store,
    copy: &CopyRecord,
    from: &Place,
) -> Result<Header> {
    let key = header::key(&from.copy, &copy.snapshot);
    let gone = match Header::read(source, &key).await {
        Err(error) if error.kind() == ErrorKind::NotFound => error,
        found => return found,
    };
    let mark = format!("{UPLOADS}/{}", copy.id);
    let known = match target.get(&mark, RECORD_MAX).await {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        found => open::<Upload>(&mark, &found?)?.of,
    };
    known.map(|header| *header).ok_or_else(|| {
        gone.context(format!("copy {} was deleted before it could be copied", from.copy))
    })
}

impl Way<'_> {
    /// Sends what the target does not have, and makes it a copy.
    fn go(&mut self, table: Table, from: &Place) -> Result<Header> {
        let wanted: HashSet<[u8; 32]> = table.chunks.iter().map(|chunk| chunk.sum).collect();
        let (known, base) = self.known(&wanted)?;
        let new: Vec<Chunk> = {
            let mut seen = HashSet::new();
            let missing = |chunk: &&Chunk| !known.contains_key(&chunk.sum);
            let once = |chunk: &&Chunk| seen.insert(chunk.sum);
            table.chunks.iter().filter(missing).filter(once).cloned().collect()
        };
        self.send(&new)?;
        let own = Arc::new(self.copy.id.clone());
        let chunks = table.chunks.iter().map(|chunk| match known.get(&chunk.sum) {
            Some(there) => there.clone(),
            None => Chunk { owner: Arc::clone(&own), ..chunk.clone() },
        });
        let table = Table { chunks: chunks.collect(), pieces: table.pieces };
        let needed: HashSet<String> =
            table.chunks.iter().filter(|chunk| chunk.owner == own).map(Chunk::key).collect();
        let old = &self.header;
        let mut header = Header {
            id: self.copy.id.clone(),
            snapshot_name: self.copy.name.clone().unwrap_or_else(|| old.snapshot_name.clone()),
            copied_at: now(),
            description: self.copy.description.clone(),
            tags: self.copy.tags.clone(),
            base,
            new_bytes: new.iter().map(|chunk| u64::from(chunk.raw)).sum(),
            new_stored: new.iter().map(|chunk| u64::from(chunk.stored)).sum(),
            source: Some(Origin {
                repo: self.work.vault.engine.repo(&from.repo)?.id,
                copy: from.copy.clone(),
            }),
            ..old.clone()
        };
        if let Some(sealed) = &mut header.sealed
            && let Some(wrapped) = self.work.vault.engine.rewrap_copy_key(&sealed.wrapped)
        {
            sealed.wrapped = wrapped;
        }
        // The sum of an encrypted copy is made over parts of that size, or over the whole.
        let rows = match (&header.sealed, &header.parts) {
            (None, _) => parts::rows_of(&table),
            (Some(_), parts) => parts.as_ref().map(|parts| parts.rows),
        };
        let bytes = header.set_table(&table, rows)?;
        header.version = header.right_version();
        publish(self.work, &self.target.store, &header, bytes, &needed)?;
        Ok(header)
    }

    /// The chunks among those wanted that copies of the same disk have in the target, and the copy that has most
    /// of them.
    fn known(&self, wanted: &HashSet<[u8; 32]>) -> Result<(Known, Option<CopyId>)> {
        let store = &self.target.store;
        let key_of = |header: &Header| header.sealed.as_ref().map(|sealed| sealed.key_id.clone());
        let mut others = Vec::new();
        for key in self.work.wait(store.list(COPIES))? {
            match self.work.wait(Header::read(store, &key)) {
                Ok(other) => others.push(other),
                Err(error) if header::is_passed_over(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let ours = &self.header;
        others.retain(|other| other.disk == ours.disk && key_of(other) == key_of(ours));
        others.sort_by_key(|other| other.created_at.abs_diff(ours.created_at));
        let (mut known, mut base) = (Known::new(), None);
        for other in others.into_iter().take(TABLES_READ) {
            if known.len() == wanted.len() {
                break;
            }
            match self.work.wait(other.table(store)) {
                Ok(table) => {
                    let fitting = table.chunks.into_iter().filter(|c| wanted.contains(&c.sum));
                    let before = known.len();
                    fitting.for_each(|chunk| {
                        known.entry(chunk.sum).or_insert(chunk);
                    });
                    if known.len() > before && base.is_none() {
                        base = Some(other.id);
                    }
                }
                Err(error) if header::is_passed_over(&error) => {
                    tracing::warn!(%error, copy = %other.id, "not used as a base");
                }
                Err(error) => return Err(error),
            }
        }
        Ok((known, base))
    }

    /// Sends chunks, several at a time; those that are there from an earlier attempt are not sent again.
    fn send(&mut self, chunks: &[Chunk]) -> Result<()> {
        let own = format!("chunks/{}", self.copy.id);
        let there: HashSet<String> =
            self.work.wait(self.target.store.list(&own))?.into_iter().collect();
        let job = &self.work.job;
        job.total.store(chunks.iter().map(|chunk| u64::from(chunk.raw)).sum(), Ordering::Relaxed);
        let mut under_way = JoinSet::new();
        let sent = self.send_all(&mut under_way, chunks, &there);
        if sent.is_err() {
            drain(self.work, &self.copy.id, &mut under_way);
        }
        sent
    }

    fn send_all(
        &mut self,
        under_way: &mut JoinSet<Result<u32>>,
        chunks: &[Chunk],
        there: &HashSet<String>,
    ) -> Result<()> {
        let job = &self.work.job;
        let own = Arc::new(self.copy.id.clone());
        let mut rest = chunks.iter();
        loop {
            while under_way.len() < PARALLEL
                && let Some(chunk) = rest.next()
            {
                let to = Chunk { owner: Arc::clone(&own), ..chunk.clone() }.key();
                if there.contains(&to) {
                    job.done.fetch_add(u64::from(chunk.raw), Ordering::Relaxed);
                } else {
                    self.begin(under_way, chunk, to)?;
                }
            }
            if under_way.is_empty() {
                return Ok(());
            }
            let done = self.work.wait(async {
                match under_way.join_next().await {
                    Some(done) => done.map_err(|e| Error::internal(e.to_string()))?,
                    None => Ok(0),
                }
            })?;
            job.done.fetch_add(u64::from(done), Ordering::Relaxed);
            faults::fail_point("relay.sent");
            self.mark_again()?;
        }
    }

    /// Begins to send a chunk, when it is its turn: read, check, write.
    fn begin(&self, under_way: &mut JoinSet<Result<u32>>, chunk: &Chunk, to: String) -> Result<()> {
        let (from_store, from_pacer) = (self.source.store.clone(), Arc::clone(&self.source.pacer));
        let (to_store, to_pacer) = (self.target.store.clone(), Arc::clone(&self.target.pacer));
        let (chunk, seal) = (chunk.clone(), self.seal.clone());
        let work = self.work.clone();
        let ticket = self.work.ticket()?;
        let move_it = move || {
            let key = chunk.key();
            let ticket = work.pace(ticket, &from_pacer, chunk.stored as usize)?;
            let bytes = work.vault.attend(from_store.get(&key, OBJECT_MAX));
            let bytes = bytes.map_err(|error| missing(&key, error))?;
            check(&chunk, &bytes, &seal)?;
            let _ticket = work.pace(ticket, &to_pacer, bytes.len())?;
            work.vault.attend(to_store.put(&to, bytes))?;
            Ok(chunk.raw)
        };
        self.work.aside(under_way, move_it)
    }

    fn mark_again(&mut self) -> Result<()> {
        if self.marked.elapsed() > MARK_EVERY {
            let (work, id) = (self.work, &self.copy.id);
            work.wait(mark(work, &self.source.store, id, None))?;
            work.wait(mark(work, &self.target.store, id, Some(&self.header)))?;
            self.marked = Instant::now();
        }
        Ok(())
    }
}
