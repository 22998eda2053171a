//! A copy as the origin of a disk: chunks are fetched when a block of them is asked for, and some ahead.
//!
//! Invariants: no byte is passed on before the sum of its chunk is right; a chunk is fetched once for all who
//! wait for it; who asks is answered within [`FETCH_LIMIT`] of the repository having nothing older to do, and at
//! once after it has failed those before; what was fetched and is not stored is kept in memory within a bound.
//! Absent: filling in the background (`fill.rs`).

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::chunk::{OBJECT_MAX, unpack};
use super::header::{self, Header, missing};
use super::index::Index;
use super::seal::Seal;
use super::store::Store;
use super::{Vault, open_repo};
use crate::disk::Disk;
use crate::disk::lane::Lane;
use crate::disk::lazy::{Fetched, Need, Origin, Wake};
use crate::engine::Origins;
use crate::engine::copies::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockRange, CopyId, DiskId, SnapshotId};

/// How long a client waits for one object of a repository that does not answer.
const FETCH_LIMIT: Duration = Duration::from_secs(20);
/// Objects fetched at a time that somebody waits for, and that nobody waits for yet; of all disks together.
const URGENT_AT_ONCE: usize = 8;
const AHEAD_AT_ONCE: usize = 3;
/// Chunks fetched ahead of a client that reads on and on.
const AHEAD_MAX: usize = 4;
/// Bytes of chunks kept in memory, of all disks together.
const KEPT_BYTES: usize = 64 << 20;

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

/// The chunks used last, by the number of the origin and that of the chunk.
#[derive(Debug, Default)]
struct Kept {
    list: VecDeque<((u64, u32), Arc<Fetched>)>,
    bytes: usize,
}

impl Kept {
    fn get(&mut self, key: (u64, u32)) -> Option<Arc<Fetched>> {
        let at = self.list.iter().position(|(other, _)| *other == key)?;
        let found = self.list.remove(at)?;
        self.list.push_back(found);
        self.list.back().map(|(_, fetched)| Arc::clone(fetched))
    }

    fn put(&mut self, key: (u64, u32), fetched: &Arc<Fetched>) {
        if self.get(key).is_some() {
            return;
        }
        self.bytes += fetched.bytes.len();
        self.list.push_back((key, Arc::clone(fetched)));
        while self.bytes > KEPT_BYTES
            && let Some((_, old)) = self.list.pop_front()
        {
            self.bytes -= old.bytes.len();
        }
    }

    fn forget(&mut self, serial: u64) {
        self.list.retain(|((other, _), _)| *other != serial);
        self.bytes = self.list.iter().map(|(_, fetched)| fetched.bytes.len()).sum();
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

/// A chunk that is being fetched, or waits for its turn.
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
    /// The disk to tell events of, and to store blocks in.
    disk: Option<(DiskId, Weak<Disk>)>,
    serial: u64,
    known: OnceLock<Known>,
    state: Mutex<State>,
}

/// What has to be read before the first chunk.
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

#[derive(Default)]
struct State {
    /// Who waits for the index, which somebody is reading if this is not `None`.
    indexing: Option<Vec<Wake>>,
    under_way: HashMap<u32, UnderWay>,
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
    /// The origin that a copy is, for a disk to store its blocks in, if there is one.
    #[must_use]
    pub fn new(
        vault: &Arc<Vault>,
        place: Place,
        disk: Option<(DiskId, Weak<Disk>)>,
    ) -> Arc<CopyOrigin> {
        let serial = vault.fetching.serial.fetch_add(1, Ordering::Relaxed);
        let (known, state) = (OnceLock::new(), Mutex::default());
        Arc::new(CopyOrigin { vault: Arc::downgrade(vault), place, disk, serial, known, state })
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

    /// Begins to read the index, so that the first who asks need not wait for all of it.
    pub fn prepare(self: &Arc<Self>) {
        self.ask_index(Box::new(|_| {}));
    }

    /// Which blocks are in which chunks, once it is known.
    #[must_use]
    pub fn index(&self) -> Option<&Index> {
        self.known.get().map(|known| &known.index)
    }

    /// As [`Origin::ask`] for a chunk that nobody waits for yet.
    pub fn ask_ahead(self: &Arc<Self>, chunk: u32, wake: Wake) {
        self.fetch(chunk, wake, false);
    }

    fn ask_index(self: &Arc<Self>, wake: Wake) {
        let mut state = self.state.lock();
        if self.known.get().is_some() {
            drop(state);
            return wake(Ok(None));
        }
        if let Some(waiting) = &mut state.indexing {
            waiting.push(wake);
            return;
        }
        let Some(vault) = self.vault.upgrade() else {
            drop(state);
            return wake(Err(closing()));
        };
        state.indexing = Some(vec![wake]);
        drop(state);
        let origin = Arc::clone(self);
        vault.handle.clone().spawn_blocking(move || {
            let read = vault.attend(within(origin.read_index(&vault)));
            let read = read.map(|known| drop(origin.known.set(known)));
            origin.note(&vault, read.as_ref().err());
            let waiting = origin.state.lock().indexing.take().unwrap_or_default();
            let answer = read.map_err(|error| told(&error));
            waiting.into_iter().for_each(|wake| wake(answer.clone().map(|()| None)));
        });
    }

    async fn read_index(&self, vault: &Arc<Vault>) -> Result<Known> {
        let store = self.store(vault).await?;
        let opened = self.state.lock().header.take();
        let (header, seal) = match opened {
            Some(opened) => opened,
            None => {
                let key = header::key(&self.place.copy, &self.place.snapshot);
                let header = Header::read(&store, &key).await;
                let header = header.map_err(|error| missing(&key, error))?;
                let seal = Seal::of(&vault.engine, &store, &header).await?;
                (header, seal)
            }
        };
        Known::read(&store, &header, seal).await
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

    /// Has a chunk fetched, unless it is there or under way.
    fn fetch(self: &Arc<Self>, chunk: u32, wake: Wake, urgent: bool) {
        let Some(vault) = self.vault.upgrade() else { return wake(Err(closing())) };
        let mut state = self.state.lock();
        if let Some(fetched) = vault.fetching.kept.lock().get((self.serial, chunk)) {
            drop(state);
            return wake(Ok(Some(fetched)));
        }
        if let Some(under_way) = state.under_way.get_mut(&chunk) {
            under_way.waiting.push(wake);
            if urgent {
                under_way.hurry.notify_one();
            }
            return;
        }
        let hurry = Arc::new(Notify::new());
        let under_way = UnderWay { waiting: vec![wake], hurry: Arc::clone(&hurry) };
        state.under_way.insert(chunk, under_way);
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
                    let got = origin.get(&vault, chunk, asked);
                    drop(permit);
                    got
                });
                origin.done(&vault, chunk, got);
            });
        });
    }

    fn get(
        self: &Arc<Self>,
        vault: &Arc<Vault>,
        chunk: u32,
        asked: Instant,
    ) -> Result<Arc<Fetched>> {
        let failed = self.state.lock().failed.clone();
        if let Some((_, error)) = failed.filter(|(at, _)| *at > asked) {
            return Err(error);
        }
        let got = vault.attend(within(self.get_now(vault, chunk)));
        self.note(vault, got.as_ref().err());
        got
    }

    async fn get_now(&self, vault: &Arc<Vault>, chunk: u32) -> Result<Arc<Fetched>> {
        let known = self.known.get().ok_or_else(|| Error::internal("no index"))?;
        let (wanted, spans) = (known.index.chunk(chunk).clone(), known.index.spans(chunk));
        let store = self.store(vault).await?;
        let pacer = vault.pacer(&vault.engine.repo(&self.place.repo)?);
        let key = wanted.key();
        let mut again = true;
        loop {
            pacer.pass(wanted.stored as usize).await;
            let bytes = store.get(&key, OBJECT_MAX).await;
            let bytes = bytes.map_err(|error| missing(&key, error))?;
            match unpack(&wanted, &bytes, &known.seal) {
                Ok(bytes) => return Ok(Arc::new(Fetched { spans, bytes })),
                // Damaged on the way, perhaps.
                Err(_) if again => again = false,
                Err(error) => return Err(error),
            }
        }
    }

    /// Passes on what came, and stores it. The thread may wait.
    fn done(self: &Arc<Self>, vault: &Arc<Vault>, chunk: u32, got: Result<Arc<Fetched>>) {
        let waiting = {
            let mut state = self.state.lock();
            if let Ok(fetched) = &got {
                vault.fetching.kept.lock().put((self.serial, chunk), fetched);
            }
            state.under_way.remove(&chunk).map(|one| one.waiting).unwrap_or_default()
        };
        let answer = got.as_ref().map(|got| Some(Arc::clone(got))).map_err(told);
        waiting.into_iter().for_each(|wake| wake(answer.clone()));
        let disk = self.disk.as_ref().and_then(|(_, disk)| disk.upgrade());
        if let (Ok(fetched), Some(disk)) = (got, disk)
            && let Err(error) = Lane::new(&disk).adopt(&fetched)
        {
            // It is read all the same; the fill tells of it.
            tracing::debug!(%error, disk = disk.label, "blocks of a copy are not stored");
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
        let Some((id, _)) = self.disk.clone() else { return };
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
            self.fetch(next, Box::new(|_| {}), false);
        }
    }
}

impl Origin for Arc<CopyOrigin> {
    fn is_known(&self) -> bool {
        self.known.get().is_some()
    }

    fn next(&self, from: u64) -> Option<BlockRange> {
        self.index()?.next(from)
    }

    fn ask(&self, need: Need, wake: Wake) {
        let (Need::Block(lba), Some(index)) = (need, self.index()) else {
            return self.ask_index(wake);
        };
        let Some(chunk) = index.chunk_of(lba) else { return wake(Ok(None)) };
        self.fetch(chunk, wake, true);
        self.look_ahead(index, chunk);
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
