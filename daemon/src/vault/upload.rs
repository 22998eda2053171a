//! Making a copy: read what changed, pack it, send it, and commit it with one object.
//!
//! Invariants: nothing is a copy before its header is written, and that is the last thing; the mark of an
//! upload is there before anything is relied on that others sent; what was sent before the daemon ended is
//! not sent again.
//! Absent: deleting (`collect.rs`).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::chunk::{CHUNK_BYTES, pack};
use super::format::{VERSION, hex, seal};
use super::header::{self, COPIES, Header, UPLOADS, Upload};
use super::reuse::{Reuse, without};
use super::seal::{Seal, Sealing};
use super::store::Store;
use super::table::{Chunk, Piece, Table};
use super::work::{Pacer, Ticket, Work};
use super::{open_repo, parts};
use crate::disk::lane::Lane;
use crate::engine::api::{Change, SnapshotInfo};
use crate::engine::copies::{Base, CopyRecord};
use crate::engine::presence::Standing;
use crate::engine::{Pin, Target, now};
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::units::{BLOCK_SIZE, ByteRange, CopyId};

/// Chunks that are packed or sent at a time.
pub const PARALLEL: usize = 6;
/// The mark of an upload is written again so often; others take it for abandoned after days.
pub const MARK_EVERY: Duration = Duration::from_secs(3600);

/// How often it is looked whether a snapshot has all its contents.
const CONTENTS_EVERY: Duration = Duration::from_millis(500);

/// How long chunks under way may take once the copy has failed.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// What a copy is made of.
struct Contents {
    base: Option<(Header, Table)>,
    changes: Vec<Change>,
    /// What was sent.
    new: Table,
    /// What was there before, though it is not in the base.
    reused: Table,
    sealing: Sealing,
}

struct Sender<'a> {
    work: &'a Work,
    store: Store,
    seal: Seal,
    pacer: Arc<Pacer>,
    id: CopyId,
    /// Keys that are there from an earlier attempt.
    there: Arc<HashSet<String>>,
    under_way: JoinSet<Result<(usize, Chunk)>>,
    chunks: Vec<Option<Chunk>>,
    pieces: Vec<Piece>,
    marked: Instant,
}

/// Makes a copy, or goes on with one.
///
/// # Errors
/// `Cancelled`; the snapshot or the store cannot be read or written.
pub(super) fn run(work: &Work, copy: &CopyRecord) -> Result<Header> {
    let engine = &work.vault.engine;
    let repo = engine.repo(&copy.repo)?;
    work.arrive();
    let target = pinned(work, copy)?;
    let info = engine.snapshot(&copy.snapshot)?;
    let (store, _) = work.wait(open_repo(&repo))?;
    let key = header::key(&copy.id, &copy.snapshot);
    match work.wait(Header::read(&store, &key)) {
        // It was complete when the daemon ended.
        Ok(done) => return work.wait(unmark(&store, &copy.id)).map(|()| done),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    work.wait(mark(work, &store, &copy.id, None))?;
    faults::fail_point("copy.marked");
    let sealing = Sealing::of_snapshot(engine, &copy.snapshot)?;
    let (base, changes) = base_and_changes(work, &store, copy, &sealing)?;
    let pacer = work.vault.pacer(&repo);
    let mut lane = Lane::new(&target.disk);
    let reuse = Reuse { work, store: &store, pacer: &pacer, sealing: &sealing };
    let since = base.as_ref().map(|(base, _)| base);
    let reused = reuse.find(copy, since, &changes, (&mut lane, info.size))?;
    let to_send = without(&changes, &reused);
    let own = format!("chunks/{}", copy.id);
    let there: HashSet<String> = work.wait(store.list(&own))?.into_iter().collect();
    let mut sender = Sender {
        work,
        store: store.clone(),
        seal: sealing.seal.clone(),
        pacer,
        id: copy.id.clone(),
        there: Arc::new(there),
        under_way: JoinSet::new(),
        chunks: Vec::new(),
        pieces: Vec::new(),
        marked: Instant::now(),
    };
    let new = sender.send(&mut lane, &to_send, info.size);
    if new.is_err() {
        drain(work, &copy.id, &mut sender.under_way);
    }
    let new = new?;
    let base = base.map(|(_, found)| found);
    let contents = Contents { base, changes, new, reused, sealing };
    let header = commit(work, &store, copy, &info, contents)?;
    work.wait(unmark(&store, &copy.id))?;
    Ok(header)
}

/// The snapshot, kept as long as it is copied.
fn pinned(work: &Work, copy: &CopyRecord) -> Result<Target> {
    let engine = &work.vault.engine;
    let job = Arc::clone(&work.job);
    let user = format!("copy {} to {}", copy.id, copy.repo);
    // Of a snapshot that goes, its own copy goes too.
    let pin = match engine.copy_standing(&copy.id) {
        Standing::Own => Pin::Yields,
        Standing::Beside => Pin::Held,
        Standing::Leaving => return Err(Error::new(ErrorKind::Cancelled, "cancelled")),
    };
    engine.pin_snapshot(&copy.snapshot, &user, pin, Box::new(move || job.cancel()))
}

/// Waits until a snapshot has all its contents, of which a hole may be anything before.
///
/// # Errors
/// `Cancelled`; the snapshot is gone.
pub(super) fn wait_for_contents(work: &Work, copy: &CopyRecord) -> Result<()> {
    let _kept = pinned(work, copy)?;
    while let Some(why) = work.vault.engine.snapshot_waits(&copy.snapshot) {
        work.job.says(&format!("waits: {why}"));
        work.wait(async {
            tokio::time::sleep(CONTENTS_EVERY).await;
            Ok(())
        })?;
    }
    work.job.says("");
    Ok(())
}

impl Sender<'_> {
    /// Sends all blocks that changed; says where they are.
    fn send(&mut self, lane: &mut Lane, changes: &[Change], size: u64) -> Result<Table> {
        let stored = changes.iter().filter(|change| !change.zero && change.offset < size);
        let total = stored.clone().map(|change| change.length).sum();
        self.work.job.total.store(total, Ordering::Relaxed);
        let mut blocks = Vec::with_capacity(CHUNK_BYTES);
        let mut ticket = None;
        for change in stored {
            let (mut at, end) = (change.offset, (change.offset + change.length).min(size));
            while at < end {
                if ticket.is_none() {
                    ticket = Some(self.next()?);
                }
                let room = CHUNK_BYTES - blocks.len();
                let length = usize::try_from(end - at).unwrap_or(room).min(room);
                let first = blocks.len();
                blocks.resize(first + length, 0);
                let range = ByteRange { start: at, end: at + length as u64 };
                lane.read(range, &mut blocks[first..])?;
                self.piece(at, length, first)?;
                at = range.end;
                if blocks.len() == CHUNK_BYTES
                    && let Some(ticket) = ticket.take()
                {
                    let full = std::mem::replace(&mut blocks, Vec::with_capacity(CHUNK_BYTES));
                    self.begin(ticket, full)?;
                }
            }
        }
        if let Some(ticket) = ticket {
            self.begin(ticket, blocks)?;
        }
        while !self.under_way.is_empty() {
            self.one_done()?;
        }
        let chunks = std::mem::take(&mut self.chunks).into_iter().collect::<Option<Vec<_>>>();
        let chunks = chunks.ok_or_else(|| Error::internal("a chunk was not sent"))?;
        Ok(Table { chunks, pieces: std::mem::take(&mut self.pieces) })
    }

    fn piece(&mut self, offset: u64, length: usize, at: usize) -> Result<()> {
        let number = |count: usize| {
            u32::try_from(count).map_err(|_| Error::invalid("the disk is too large to be copied"))
        };
        let block = usize::try_from(BLOCK_SIZE).unwrap_or(usize::MAX);
        self.pieces.push(Piece {
            start: offset / BLOCK_SIZE,
            blocks: number(length / block)?,
            chunk: number(self.chunks.len())?,
            at: number(at / block)?,
        });
        Ok(())
    }

    /// Waits until there is room for another chunk, and it is its turn.
    fn next(&mut self) -> Result<Ticket> {
        self.work.check()?;
        while self.under_way.len() >= PARALLEL {
            self.one_done()?;
        }
        self.work.ticket()
    }

    /// Begins to send a chunk.
    fn begin(&mut self, ticket: Ticket, blocks: Vec<u8>) -> Result<()> {
        if self.marked.elapsed() > MARK_EVERY {
            self.work.wait(mark(self.work, &self.store, &self.id, None))?;
            self.marked = Instant::now();
        }
        let index = self.chunks.len();
        self.chunks.push(None);
        let (store, pacer, id) = (self.store.clone(), Arc::clone(&self.pacer), self.id.clone());
        let (there, seal) = (Arc::clone(&self.there), self.seal.clone());
        let work = self.work.clone();
        let send = move || {
            let (chunk, bytes) = pack(&id, &blocks, &seal)?;
            let key = chunk.key();
            if there.contains(&key) {
                drop(ticket);
            } else {
                // What waits for its turn is given up with the copy; what is being written is waited for.
                let _ticket = work.pace(ticket, &pacer, bytes.len())?;
                work.vault.attend(store.put(&key, bytes))?;
            }
            Ok((index, chunk))
        };
        self.work.aside(&mut self.under_way, send)
    }

    /// Waits for one of the chunks under way.
    fn one_done(&mut self) -> Result<()> {
        let under_way = &mut self.under_way;
        let done = self.work.wait(async {
            match under_way.join_next().await {
                Some(done) => done.map_err(|e| Error::internal(e.to_string()))?.map(Some),
                None => Ok(None),
            }
        })?;
        if let Some((index, chunk)) = done {
            self.work.job.done.fetch_add(u64::from(chunk.raw), Ordering::Relaxed);
            self.chunks[index] = Some(chunk);
            faults::fail_point("copy.sent");
        }
        Ok(())
    }
}

/// Waits a while for chunks under way: none should arrive after the copy is given up.
pub(super) fn drain<T: 'static>(work: &Work, id: &CopyId, under_way: &mut JoinSet<T>) {
    let all = async { while under_way.join_next().await.is_some() {} };
    let limited = async { tokio::time::timeout(DRAIN_LIMIT, all).await };
    if work.vault.handle.block_on(limited).is_err() {
        tracing::warn!(copy = %id, "chunks are still under way");
    }
}

/// A copy to build on, and what changed since then.
type Since = (Option<(Base, (Header, Table))>, Vec<Change>);

fn base_and_changes(
    work: &Work,
    store: &Store,
    copy: &CopyRecord,
    sealing: &Sealing,
) -> Result<Since> {
    use ErrorKind::{NotFound, ShuttingDown, WrongState};
    loop {
        let found = find_base(work, store, copy, sealing)?;
        let base = found.as_ref().map(|(base, _)| base);
        match work.vault.engine.changes(base, &copy.snapshot) {
            // The snapshot of the base went this instant: another one serves, or none.
            Err(e)
                if base.is_some() && matches!(e.kind(), NotFound | WrongState | ShuttingDown) =>
            {
                tracing::debug!(error = %e, "not compared");
                work.check()?;
            }
            changes => return Ok((found, changes?)),
        }
    }
}

/// The copy in the repository that has most in common with the snapshot, and its table. One that is damaged
/// is passed over: a copy must not be built on it.
fn find_base(
    work: &Work,
    store: &Store,
    copy: &CopyRecord,
    sealing: &Sealing,
) -> Result<Option<(Base, (Header, Table))>> {
    let keys = work.wait(store.list(COPIES))?;
    let mut known: Vec<_> = keys.iter().filter_map(|key| header::parse_key(key)).collect();
    loop {
        let among: Vec<_> = known.iter().map(|(_, snapshot)| snapshot.clone()).collect();
        let Some(base) = work.vault.engine.copy_base(&copy.snapshot, &among) else {
            return Ok(None);
        };
        let Some(at) = known.iter().position(|(_, other)| *other == base.snapshot) else {
            return Ok(None);
        };
        let (id, snapshot) = known.swap_remove(at);
        let found = work.wait(async {
            let header = Header::read(store, &header::key(&id, &snapshot)).await?;
            let table = header.table(store).await?;
            Ok((header, table))
        });
        match found {
            Ok((header, table)) if sealing.fits(&header, &table) => {
                return Ok(Some((base, (header, table))));
            }
            Ok(_) => tracing::warn!(copy = %id, "not used as a base: its key is another one"),
            Err(e) if header::is_passed_over(&e) => {
                tracing::warn!(error = %e, copy = %id, "not used as a base");
            }
            Err(error) => return Err(error),
        }
    }
}

/// Writes the table and then the header, which makes it a copy.
fn commit(
    work: &Work,
    store: &Store,
    copy: &CopyRecord,
    info: &SnapshotInfo,
    contents: Contents,
) -> Result<Header> {
    let Contents { base, changes, new, reused, sealing } = contents;
    let mut ranges: Vec<(u64, u64)> = changes
        .iter()
        .map(|change| (change.offset / BLOCK_SIZE, (change.offset + change.length) / BLOCK_SIZE))
        .collect();
    // A base that was larger ends here.
    ranges.push((info.size / BLOCK_SIZE, u64::MAX));
    let (base, old) = base.map_or((None, Table::default()), |(h, table)| (Some(h.id), table));
    let table = old.with(&ranges, &new).join(reused);
    let mut header = Header {
        version: VERSION,
        id: copy.id.clone(),
        snapshot: info.id.clone(),
        snapshot_name: copy.name.clone().unwrap_or_else(|| info.name.clone()),
        disk: info.disk_id.clone(),
        disk_name: work.vault.engine.name_of_disk(&info.disk_id),
        size: info.size,
        created_at: info.created_at,
        copied_at: now(),
        writer: work.vault.engine.status().uuid,
        consistency: info.consistency,
        description: copy.description.clone(),
        tags: copy.tags.clone(),
        base,
        // What the table says is added to it.
        table_sum: String::new(),
        table_stored: 0,
        table_raw: 0,
        parts: None,
        owners: Vec::new(),
        data_bytes: table.pieces.iter().map(|p| u64::from(p.blocks) * BLOCK_SIZE).sum(),
        new_bytes: new.chunks.iter().map(|chunk| u64::from(chunk.raw)).sum(),
        new_stored: new.chunks.iter().map(|chunk| u64::from(chunk.stored)).sum(),
        source: None,
        sealed: None,
    };
    let bytes = header.set_table(&table, parts::rows_of(&table))?;
    header.sealed = sealing.sign(&header, &table)?;
    header.version = header.right_version();
    let needed: HashSet<String> = new
        .chunks
        .iter()
        .map(|chunk| format!("chunks/{}/{}", chunk.owner, hex(&chunk.sum)))
        .collect();
    publish(work, store, &header, bytes, &needed)?;
    Ok(header)
}

/// Writes a table and then its header, which makes it a copy. `needed` are the chunks of its own.
pub(super) fn publish(
    work: &Work,
    store: &Store,
    header: &Header,
    table: Vec<u8>,
    needed: &HashSet<String>,
) -> Result<()> {
    let id = &header.id;
    work.wait(async {
        // An earlier attempt may have packed otherwise.
        for key in store.list(&format!("chunks/{id}")).await? {
            if !needed.contains(&key) {
                store.delete(&key).await?;
            }
        }
        store.put(&header.table_key(), table).await?;
        faults::fail_point("copy.table");
        if !store.exists(&format!("{UPLOADS}/{id}")).await? {
            return Err(Error::new(
                ErrorKind::WrongState,
                "another daemon has taken this upload for abandoned",
            )
            .hint(format!("begin again: `rowctl copy retry {id}`")));
        }
        store.put_new(&header.key(), seal(header)?).await
    })?;
    faults::fail_point("copy.committed");
    Ok(())
}

/// Marks an upload as under way. `of` is the source of a copy of a copy, in its target.
pub(super) async fn mark(
    work: &Work,
    store: &Store,
    id: &CopyId,
    of: Option<&Header>,
) -> Result<()> {
    let writer = work.vault.engine.status().uuid;
    let of = of.cloned().map(Box::new);
    let mark = Upload { id: id.clone(), writer, at: now(), of };
    store.put(&format!("{UPLOADS}/{id}"), seal(&mark)?).await
}

pub(super) async fn unmark(store: &Store, id: &CopyId) -> Result<()> {
    store.delete(&format!("{UPLOADS}/{id}")).await
}
