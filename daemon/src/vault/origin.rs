//! A copy as the origin of a disk: chunks are fetched when a block of them is asked for, and some ahead.
//!
//! Of a table in parts only those are read that tell of a block somebody waits for, until somebody needs all of it:
//! who fills the disk, who looks ahead, who asks what is stored.
//!
//! Invariants: no byte is passed on before the sum of its chunk is right; a chunk is fetched once for all who
//! wait for it; who asks is answered within [`FETCH_LIMIT`] of the repository having nothing older to do, and at
//! once after it has failed those before; what was fetched and is not stored is kept in memory within a bound.
//! Absent: filling in the background (`fill.rs`).

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::chunk::{OBJECT_MAX, unpack};
use super::header::{self, Header, missing};
use super::index::Index;
use super::kept::{Kept, Wanted};
use super::partial::{Partial, Place as Found};
use super::parts::PartId;
use super::seal::Seal;
use super::store::Store;
use super::table::Chunk;
use super::{Vault, open_repo};
use crate::disk::lazy::{Answer, Fetched, Need, Origin, Span, Wake};
use crate::engine::Origins;
use crate::engine::copies::{Filling, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockRange, CopyId, Lba, SnapshotId};

/// How long a client waits for one object of a repository that does not answer.
const FETCH_LIMIT: Duration = Duration::from_secs(20);
/// Objects fetched at a time that somebody waits for, and that nobody waits for yet; of all disks together.
const URGENT_AT_ONCE: usize = 8;
const AHEAD_AT_ONCE: usize = 3;
/// Chunks fetched ahead of a client that reads on and on.
const AHEAD_MAX: usize = 4;
/// How long an export that nothing fills is left to its first readers before all of its table is read.
const WHOLE_AFTER: Duration = Duration::from_millis(200);

/// What all origins share.
#[derive(Debug)]
pub struct Fetching {
    urgent: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    kept: Mutex<Kept>,
    serial: AtomicU64,
}

impl Default for Fetching {
    fn default() -> Self {
        Fetching {
            urgent: Arc::new(Semaphore::new(URGENT_AT_ONCE)),
            ahead: Arc::new(Semaphore::new(AHEAD_AT_ONCE)),
            kept: Mutex::default(),
            serial: AtomicU64::new(0),
        }
    }
}

/// Which copy.
#[derive(Clone, Debug)]
pub struct Place {
    /// The name of the repository.
    pub repo: String,
    pub copy: CopyId,
    pub snapshot: SnapshotId,
}

/// What is being fetched, or waits for its turn.
struct UnderWay {
    waiting: Vec<Wake>,
    /// Somebody waits for it who did not when it was begun.
    hurry: Arc<Notify>,
}

/// A copy that blocks are asked of.
#[derive(Debug)]
pub struct CopyOrigin {
    vault: Weak<Vault>,
    place: Place,
    /// What blocks are stored for, and events are told of.
    filling: Option<Filling>,
    serial: u64,
    known: OnceLock<Known>,
    /// Of a table in parts, before that.
    partial: OnceLock<Partial>,
    state: Mutex<State>,
}

/// All that is to be known of the copy before its chunks.
#[derive(Debug)]
pub struct Known {
    index: Index,
    seal: Seal,
}

/// What somebody has read already.
#[derive(Debug)]
pub enum Opened {
    Header(Store, Box<Header>, Seal),
    Whole(Store, Known),
}

impl Known {
    /// Reads and checks the table of a copy.
    ///
    /// # Errors
    /// `Corrupt`, naming it; there is no key for it.
    pub async fn read(store: &Store, header: &Header, seal: Seal) -> Result<Known> {
        let table = header.table(store).await?;
        seal.key()?;
        seal.check(header, &table)?;
        Ok(Known { index: Index::new(table), seal })
    }
}

/// Who waits until it is known where blocks are: of any of them, or of all.
#[derive(Default)]
struct Reading {
    any: Vec<Wake>,
    all: Vec<Wake>,
}

#[derive(Default)]
struct State {
    /// Somebody is reading the header and the table, for those.
    reading: Option<Reading>,
    under_way: HashMap<Wanted, UnderWay>,
    store: Option<Store>,
    /// The first attempt may use what somebody else has read.
    header: Option<(Header, Seal)>,
    /// When the repository failed last, and how, since it did not.
    failed: Option<(Instant, Error)>,
    last: Option<u32>,
    window: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({} under way)", self.under_way.len())
    }
}

impl CopyOrigin {
    /// The origin that a copy is, for what is filled from it, if anything is.
    #[must_use]
    pub fn new(vault: &Arc<Vault>, place: Place, filling: Option<Filling>) -> Arc<CopyOrigin> {
        let serial = vault.fetching.serial.fetch_add(1, Ordering::Relaxed);
        let (vault, state) = (Arc::downgrade(vault), Mutex::default());
        let (known, partial) = (OnceLock::new(), OnceLock::new());
        Arc::new(CopyOrigin { vault, place, filling, serial, known, partial, state })
    }

    /// Takes over what is known of the copy, so that it need not be read again.
    pub fn opened(&self, opened: Opened) {
        let mut state = self.state.lock();
        match opened {
            Opened::Header(store, header, seal) => {
                state.store = Some(store);
                state.header = Some((*header, seal));
            }
            Opened::Whole(store, known) => {
                state.store = Some(store);
                self.known.get_or_init(|| known);
            }
        }
    }

    /// Begins to read what the first who asks would wait for.
    pub fn prepare(self: &Arc<Self>) {
        self.learn(Box::new(|_| {}), false);
    }

    /// Has the whole table read after a while, unless nobody uses this any more.
    fn prepare_all(self: &Arc<Self>, vault: &Arc<Vault>) {
        let weak = Arc::downgrade(self);
        vault.handle.spawn(async move {
            tokio::time::sleep(WHOLE_AFTER).await;
            if let Some(origin) = weak.upgrade() {
                origin.learn(Box::new(|_| {}), true);
            }
        });
    }

    /// Which blocks are in which chunks, once it is known.
    #[must_use]
    pub fn index(&self) -> Option<&Index> {
        self.known.get().map(|known| &known.index)
    }

    /// As [`Origin::ask`] for a chunk that nobody waits for yet.
    pub fn ask_ahead(self: &Arc<Self>, chunk: u32, wake: Wake) {
        self.fetch(Wanted::Chunk(chunk, None), wake, false);
    }

    /// Has it found out where blocks are: all of them, or as much as it takes to look for one.
    fn learn(self: &Arc<Self>, wake: Wake, all: bool) {
        let mut state = self.state.lock();
        if self.has_learnt(all) {
            drop(state);
            return wake(Ok(None));
        }
        let begun = state.reading.is_some();
        let Some(vault) = self.vault.upgrade() else {
            drop(state);
            return wake(Err(closing()));
        };
        let reading = state.reading.get_or_insert_default();
        if all {
            reading.all.push(wake)
        } else {
            reading.any.push(wake)
        }
        drop(state);
        if begun {
            return;
        }
        let origin = Arc::clone(self);
        vault.handle.clone().spawn_blocking(move || {
            while let Some(all) = origin.next_to_learn() {
                let read = vault.attend(within(origin.read(&vault, all)));
                origin.note(&vault, read.as_ref().err());
                origin.learnt(read.map_err(|error| told(&error)));
            }
        });
    }

    fn has_learnt(&self, all: bool) -> bool {
        self.known.get().is_some() || (!all && self.partial.get().is_some())
    }

    /// Whether anybody waits for more, and whether for all.
    fn next_to_learn(&self) -> Option<bool> {
        let mut state = self.state.lock();
        let reading = state.reading.as_ref()?;
        let all = reading.any.is_empty();
        if all && reading.all.is_empty() {
            state.reading = None;
            return None;
        }
        Some(all)
    }

    /// Tells those who waited for what is known now, or all that it cannot be had.
    fn learnt(&self, read: Result<()>) {
        let waiting = {
            let mut state = self.state.lock();
            let Some(reading) = &mut state.reading else { return };
            let mut waiting = std::mem::take(&mut reading.any);
            if read.is_err() || self.has_learnt(true) {
                waiting.append(&mut reading.all);
            }
            waiting
        };
        waiting.into_iter().for_each(|wake| wake(read.clone().map(|()| None)));
    }

    /// Reads all of the table, or its root if it has one.
    async fn read(&self, vault: &Arc<Vault>, all: bool) -> Result<()> {
        if self.has_learnt(all) {
            return Ok(());
        }
        let store = self.store(vault).await?;
        let (header, seal) = match self.partial.get() {
            Some(partial) => (partial.header.clone(), partial.seal.clone()),
            None => self.header(vault, &store).await?,
        };
        if !all && let Some(root) = header.root(&store).await? {
            let partial = Partial::new(header, seal, root)?;
            self.partial.get_or_init(|| partial);
            return Ok(());
        }
        let known = Known::read(&store, &header, seal).await?;
        self.known.get_or_init(|| known);
        if let Some(partial) = self.partial.get() {
            partial.clear();
        }
        Ok(())
    }

    async fn header(&self, vault: &Arc<Vault>, store: &Store) -> Result<(Header, Seal)> {
        if let Some(opened) = self.state.lock().header.take() {
            return Ok(opened);
        }
        let key = header::key(&self.place.copy, &self.place.snapshot);
        let header = Header::read(store, &key).await.map_err(|error| missing(&key, error))?;
        let seal = Seal::of(&vault.engine, store, &header).await?;
        Ok((header, seal))
    }

    /// The store, made sure of once until it fails.
    async fn store(&self, vault: &Arc<Vault>) -> Result<Store> {
        if let Some(store) = self.state.lock().store.clone() {
            return Ok(store);
        }
        let repo = vault.engine.repo(&self.place.repo)?;
        let (store, _) = open_repo(&repo).await?;
        self.state.lock().store = Some(store.clone());
        Ok(store)
    }

    /// Has something fetched, unless it is there or under way.
    fn fetch(self: &Arc<Self>, wanted: Wanted, wake: Wake, urgent: bool) {
        let Some(vault) = self.vault.upgrade() else { return wake(Err(closing())) };
        let mut state = self.state.lock();
        if let Some(fetched) = vault.fetching.kept.lock().get((self.serial, wanted)) {
            drop(state);
            return wake(Ok(Some(fetched)));
        }
        if let Some(under_way) = state.under_way.get_mut(&wanted) {
            under_way.waiting.push(wake);
            if urgent {
                under_way.hurry.notify_one();
            }
            return;
        }
        let hurry = Arc::new(Notify::new());
        let under_way = UnderWay { waiting: vec![wake], hurry: Arc::clone(&hurry) };
        state.under_way.insert(wanted, under_way);
        drop(state);
        if urgent {
            hurry.notify_one();
        }
        let origin = Arc::clone(self);
        vault.handle.clone().spawn(async move {
            let asked = Instant::now();
            let (ahead, urgent) = (&vault.fetching.ahead, &vault.fetching.urgent);
            let permit = tokio::select! {
                permit = Arc::clone(ahead).acquire_owned() => permit,
                permit = async {
                    hurry.notified().await;
                    Arc::clone(urgent).acquire_owned().await
                } => permit,
            };
            let handle = vault.handle.clone();
            handle.spawn_blocking(move || {
                let got = permit.map_err(|_| closing()).and_then(|permit| {
                    let got = origin.get(&vault, wanted, asked);
                    drop(permit);
                    got
                });
                origin.done(&vault, wanted, got);
            });
        });
    }

    fn get(self: &Arc<Self>, vault: &Arc<Vault>, wanted: Wanted, asked: Instant) -> Answer {
        let failed = self.state.lock().failed.clone();
        if let Some((_, error)) = failed.filter(|(at, _)| *at > asked) {
            return Err(error);
        }
        let got = vault.attend(within(self.get_now(vault, wanted)));
        self.note(vault, got.as_ref().err());
        got
    }

    async fn get_now(&self, vault: &Arc<Vault>, wanted: Wanted) -> Answer {
        let Some(errand) = self.errand(wanted)? else { return Ok(None) };
        let store = self.store(vault).await?;
        let pacer = vault.pacer(&vault.engine.repo(&self.place.repo)?);
        let mut again = true;
        loop {
            let (key, bytes) = match &errand {
                Errand::Part(partial, id) => {
                    let key = partial.header.table_key();
                    let bytes = store.get_range(&key, partial.range(*id)?).await;
                    (key, bytes)
                }
                Errand::Chunk(chunk, ..) => {
                    pacer.pass(chunk.stored as usize).await;
                    let bytes = store.get(&chunk.key(), OBJECT_MAX).await;
                    (chunk.key(), bytes)
                }
            };
            match errand.end(&bytes.map_err(|error| missing(&key, error))?) {
                // Damaged on the way, perhaps.
                Err(_) if again => again = false,
                got => return got,
            }
        }
    }

    /// What has to be read; nothing when all of the table has been read meanwhile.
    fn errand(&self, wanted: Wanted) -> Result<Option<Errand<'_>>> {
        let partial = self.partial.get().filter(|_| self.known.get().is_none());
        match (wanted, partial) {
            (Wanted::Part(id), partial) => Ok(partial.map(|partial| Errand::Part(partial, id))),
            (Wanted::Chunk(number, Some(part)), Some(partial)) => {
                match partial.chunk(number, part)? {
                    Some((chunk, spans)) => Ok(Some(Errand::Chunk(chunk, spans, &partial.seal))),
                    None => self.errand(Wanted::Chunk(number, None)),
                }
            }
            (Wanted::Chunk(number, _), _) => {
                let known = self.known.get().ok_or_else(|| Error::internal("no index"))?;
                let (chunk, spans) = (known.index.chunk(number).clone(), known.index.spans(number));
                Ok(Some(Errand::Chunk(chunk, spans, &known.seal)))
            }
        }
    }

    /// Passes on what came, and stores it. The thread may wait.
    fn done(self: &Arc<Self>, vault: &Arc<Vault>, wanted: Wanted, got: Answer) {
        let waiting = {
            let mut state = self.state.lock();
            if let Ok(Some(fetched)) = &got {
                vault.fetching.kept.lock().put((self.serial, wanted), fetched);
            }
            state.under_way.remove(&wanted).map(|one| one.waiting).unwrap_or_default()
        };
        let answer = got.clone().map_err(|error| told(&error));
        waiting.into_iter().for_each(|wake| wake(answer.clone()));
        if let (Ok(Some(fetched)), Some(filling)) = (got, &self.filling)
            && let Err(error) = vault.engine.adopt(filling, &fetched)
        {
            // It is read all the same; the fill tells of it.
            tracing::debug!(%error, disk = %filling.disk, "blocks of a copy are not stored");
        }
    }

    /// Takes note of how the repository is; the first failure and the recovery are events.
    fn note(self: &Arc<Self>, vault: &Arc<Vault>, failed: Option<&Error>) {
        let was = {
            let mut state = self.state.lock();
            if failed.is_some() {
                state.store = None;
            }
            let now = failed.map(|error| (Instant::now(), error.clone()));
            std::mem::replace(&mut state.failed, now)
        };
        let Some(Filling { disk: id, .. }) = self.filling.clone() else { return };
        let what = format!("copy {} in repository {}", self.place.copy, self.place.repo);
        let (kind, message) = match (was, failed) {
            (None, Some(error)) => {
                ("fill.trouble", format!("blocks cannot be fetched from {what}: {error}"))
            }
            (Some(_), None) => ("fill.recover", format!("blocks come from {what} again")),
            _ => return,
        };
        tracing::warn!(disk = %id, "{message}");
        let engine = Arc::clone(&vault.engine);
        vault.handle.spawn_blocking(move || {
            if let Err(error) = engine.filling_note(&id, kind, message) {
                tracing::warn!(%error, "an event is lost");
            }
        });
    }

    /// Fetches what a client is likely to ask for next.
    fn look_ahead(self: &Arc<Self>, index: &Index, chunk: u32) {
        let count = {
            let mut state = self.state.lock();
            let step = state.last.and_then(|last| index.distance(last, chunk));
            state.window = match step {
                Some(0) => state.window,
                Some(step) if step as usize <= AHEAD_MAX + 1 => {
                    (state.window * 2).clamp(1, AHEAD_MAX)
                }
                _ => 0,
            };
            state.last = Some(chunk);
            if step == Some(0) { 0 } else { state.window }
        };
        for next in index.behind(chunk, count) {
            self.fetch(Wanted::Chunk(next, None), Box::new(|_| {}), false);
        }
    }
}

/// What is read of the repository for somebody.
enum Errand<'a> {
    Part(&'a Partial, PartId),
    Chunk(Chunk, Vec<Span>, &'a Seal),
}

impl Errand<'_> {
    /// Makes use of what was read.
    fn end(&self, bytes: &[u8]) -> Answer {
        match self {
            Errand::Part(partial, id) => partial.put(*id, bytes).map(|()| None),
            Errand::Chunk(chunk, spans, seal) => {
                let bytes = unpack(chunk, bytes, seal)?;
                Ok(Some(Arc::new(Fetched { spans: spans.clone(), bytes })))
            }
        }
    }
}

impl Origin for Arc<CopyOrigin> {
    fn is_known(&self) -> bool {
        self.known.get().is_some()
    }

    fn has(&self, lba: Lba) -> Option<bool> {
        match (self.index(), self.partial.get()) {
            (Some(index), _) => Some(index.chunk_of(lba).is_some()),
            (None, Some(partial)) => partial.has(lba),
            (None, None) => None,
        }
    }

    fn next(&self, from: u64) -> Option<BlockRange> {
        self.index()?.next(from)
    }

    fn ask(&self, need: Need, wake: Wake) {
        let Need::Block(lba) = need else { return self.learn(wake, true) };
        if let Some(index) = self.index() {
            let Some(chunk) = index.chunk_of(lba) else { return wake(Ok(None)) };
            self.fetch(Wanted::Chunk(chunk, None), wake, true);
            return self.look_ahead(index, chunk);
        }
        let Some(partial) = self.partial.get() else { return self.learn(wake, false) };
        match partial.place(lba) {
            Found::Nowhere => wake(Ok(None)),
            Found::Behind(part) => self.fetch(Wanted::Part(part), wake, true),
            Found::In { chunk, part } => self.fetch(Wanted::Chunk(chunk, Some(part)), wake, true),
        }
    }
}

/// Makes origins of copies that nothing is stored of: of snapshots that are read where they are.
#[derive(Debug)]
pub struct Readers(pub Weak<Vault>);

impl Origins for Readers {
    fn origin(&self, source: &Source) -> Result<Arc<dyn Origin>> {
        let vault = self.0.upgrade().ok_or_else(closing)?;
        let Source { repo, copy, snapshot, .. } = source.clone();
        let origin = CopyOrigin::new(&vault, Place { repo, copy, snapshot }, None);
        origin.prepare();
        origin.prepare_all(&vault);
        Ok(Arc::new(origin))
    }
}

impl Drop for CopyOrigin {
    fn drop(&mut self) {
        if let Some(vault) = self.vault.upgrade() {
            vault.fetching.kept.lock().forget(self.serial);
        }
    }
}

/// What a client is told: that there is an I/O error, whatever the repository says.
fn told(error: &Error) -> Error {
    match error.kind() {
        ErrorKind::Corrupt | ErrorKind::ShuttingDown => error.clone(),
        _ => Error::new(ErrorKind::Io, error.to_string()),
    }
}

fn closing() -> Error {
    Error::new(ErrorKind::ShuttingDown, "the daemon is going down")
}

async fn within<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(FETCH_LIMIT, work).await.unwrap_or_else(|_| {
        let limit = FETCH_LIMIT.as_secs();
        Err(Error::new(ErrorKind::TimedOut, format!("no answer within {limit} s")))
    })
}
