//! The vault: copies of snapshots in object stores, which outlive this host.
//!
//! Invariants: nothing here is on the path of a read or a write of what is in the pool; a repository is what its format file says,
//! and another one at the same place is refused; what a caller waits for has a time-out.
//! Absent: what the engine keeps (`engine/repos.rs`), and secrets beyond the time they are used.

mod address;
mod chunk;
mod collect;
pub mod copies;
mod courtesy;
mod credentials;
mod download;
mod fill;
mod format;
mod header;
mod heal;
pub mod images;
mod index;
mod kept;
mod leaving;
mod origin;
mod partial;
mod parts;
mod relay;
pub mod returning;
mod reuse;
mod seal;
mod store;
mod sweep;
mod table;
mod upload;
mod work;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Semaphore, watch};

use crate::engine::api::Actor;
use crate::engine::copies::CopyRecord;
use crate::engine::jobs::Job;
use crate::engine::repos::RepoRecord;
use crate::engine::{Engine, now};
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::units::{CopyId, RepoId};
use address::Address;
use courtesy::Courtesy;
use credentials::Source;
use format::{FORMAT_KEY, Format, RECORD_MAX};
use origin::{Fetching, Readers};
use store::Store;
use work::Pacer;

/// How long somebody may wait for an answer from a repository.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// How long requests under way may take when the daemon goes down.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// Copies, fillings and the like that run at a time.
const JOBS_AT_ONCE: usize = 3;
/// Keys of objects that `repo check` makes and deletes again.
const CHECK_PREFIX: &str = "check";

/// A repository to add.
#[derive(Clone, Debug, Default)]
pub struct RepoSpec {
    pub name: String,
    pub url: String,
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub credentials: String,
    pub allow_http: bool,
    /// Bytes per second; 0 is no limit.
    pub bandwidth: u64,
    /// Make no new repository.
    pub existing: bool,
}

/// What `repo check` found.
#[derive(Clone, Debug)]
pub struct Checked {
    pub id: RepoId,
    pub version: u32,
    /// What was tried, and the milliseconds it took.
    pub steps: Vec<(&'static str, u64)>,
}

/// The vault.
#[derive(Debug)]
pub struct Vault {
    engine: Arc<Engine>,
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
    closing: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Who holds one, works; the others wait.
    permits: Arc<Semaphore>,
    /// The jobs of copies under way.
    jobs: Mutex<HashMap<CopyId, Arc<Job>>>,
    pacers: Mutex<HashMap<RepoId, Arc<Pacer>>>,
    /// When it was last looked for what killed writers have left.
    swept: Mutex<HashMap<RepoId, Instant>>,
    /// How uploads share the host with clients.
    courtesy: Courtesy,
    /// What disks that are used while they are filled wait for.
    fetching: Fetching,
    /// Whether everything ends, and who waits for a store on a thread that may block.
    ended: watch::Sender<bool>,
    attended: RwLock<()>,
}

impl Vault {
    /// A vault with threads of its own, which do nothing yet.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn new(engine: &Arc<Engine>) -> Result<Arc<Vault>> {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("TLS has its crypto provider already");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("vault")
            .enable_all()
            .build()
            .map_err(|e| Error::io("start the threads of the vault", &e))?;
        let handle = runtime.handle().clone();
        let runtime = Mutex::new(Some(runtime));
        let allowed = engine.settings().copy_cost;
        let vault = Arc::new(Vault {
            engine: Arc::clone(engine),
            handle,
            runtime,
            closing: AtomicBool::new(false),
            threads: Mutex::default(),
            permits: Arc::new(Semaphore::new(JOBS_AT_ONCE)),
            jobs: Mutex::default(),
            pacers: Mutex::default(),
            swept: Mutex::default(),
            courtesy: Courtesy::new(allowed, upload::PARALLEL, Instant::now()),
            fetching: Fetching::default(),
            ended: watch::Sender::new(false),
            attended: RwLock::default(),
        });
        engine.set_origins(Box::new(Readers(Arc::downgrade(&vault))));
        Ok(vault)
    }

    /// Ends the jobs under way, which go on at the next start. What clients wait for is fetched until
    /// [`Vault::end`].
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.engine.damages_end();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // One that looks now and then does not wait for its time.
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a thread of the vault panicked");
            }
        }
    }

    /// Ends everything else.
    pub fn end(&self) {
        if !faults::seeded("h12-runtime-ends-first") {
            self.ended.send_replace(true);
            // A thread that still waited for the runtime when that goes would panic.
            drop(self.attended.write());
        }
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_timeout(DRAIN_LIMIT);
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Makes a repository known; makes its format file if it has none.
    ///
    /// # Errors
    /// The name is taken, an option does not fit, or the store does not take objects as it has to.
    pub fn repo_add(&self, by: Actor, spec: RepoSpec) -> Result<RepoRecord> {
        self.engine.repo_check_new(&spec.name)?;
        Address::parse(&spec.url)?;
        Source::parse(&spec.credentials)?;
        let existing = spec.existing;
        let mut repo = RepoRecord {
            name: spec.name,
            url: spec.url,
            id: RepoId::from(""),
            endpoint: spec.endpoint,
            region: spec.region,
            credentials: spec.credentials,
            allow_http: spec.allow_http,
            bandwidth: spec.bandwidth,
            added_at: now(),
            default: false,
        };
        let store = Store::open(&repo)?;
        let format = self.wait(&repo.name, async move {
            let format = found_or_made(&store, existing).await?;
            tried(&store).await?;
            Ok(format)
        })?;
        repo.id = format.id;
        self.engine.repo_add(by, repo.clone())?;
        Ok(repo)
    }

    /// Forgets a repository; what is in it stays.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn repo_remove(&self, by: Actor, name: &str) -> Result<()> {
        let uses = |copy: &CopyRecord| {
            copy.repo == name || copy.from.as_ref().is_some_and(|from| from.repo == name)
        };
        let copy = self.engine.copies().into_iter().find(uses);
        let filling = self.engine.fillings().into_iter().find(|filling| filling.repo == name);
        let user = copy.map(|copy| format!("copy {}", copy.id));
        let user = user.or(filling.map(|filling| format!("disk {}", filling.disk)));
        let snapshot = self.engine.snapshot_in_repo(name);
        let user = user.or(snapshot.map(|snapshot| format!("snapshot {snapshot}")));
        let policy = self.engine.policy_copying_to(name);
        let user = user.or(policy.map(|policy| format!("policy {policy}")));
        if let Some(user) = user {
            let message = format!("repository {name} is in use by {user}");
            return Err(Error::new(ErrorKind::InUse, message).hint("wait for it, or delete it"));
        }
        if let Ok(repo) = self.engine.repo(name) {
            self.pacers.lock().remove(&repo.id);
        }
        self.engine.repo_remove(by, name)
    }

    /// Tries out all that is needed of a repository.
    ///
    /// # Errors
    /// What does not work.
    pub fn repo_check(&self, name: &str) -> Result<Checked> {
        let repo = self.engine.repo(name)?;
        self.wait(name, async move {
            let began = Instant::now();
            let (store, format) = open_repo(&repo).await?;
            let mut steps = vec![("read the format", millis(began))];
            steps.extend(tried(&store).await?);
            Ok(Checked { id: format.id, version: format.version, steps })
        })
    }

    /// What limits the bandwidth of a repository.
    fn pacer(&self, repo: &RepoRecord) -> Arc<Pacer> {
        let mut pacers = self.pacers.lock();
        Arc::clone(
            pacers.entry(repo.id.clone()).or_insert_with(|| Arc::new(Pacer::new(repo.bandwidth))),
        )
    }

    /// Waits for an answer of a repository, not for ever.
    fn wait<T>(&self, name: &str, answer: impl Future<Output = Result<T>>) -> Result<T> {
        self.attend(async {
            tokio::time::timeout(ANSWER_LIMIT, answer).await.unwrap_or_else(|_| {
                let limit = ANSWER_LIMIT.as_secs();
                let message = format!("repository {name} did not answer within {limit} s");
                Err(Error::new(ErrorKind::TimedOut, message).hint("see the daemon's log"))
            })
        })
    }

    /// Waits for something on a thread that may block, until everything ends.
    fn attend<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let _attended = self.attended.read();
        let mut ended = self.ended.subscribe();
        let going_down = || Error::new(ErrorKind::ShuttingDown, "the daemon is going down");
        if *ended.borrow() {
            return Err(going_down());
        }
        self.handle.block_on(async {
            tokio::select! {
                biased;
                _ = ended.wait_for(|ended| *ended) => Err(going_down()),
                done = work => done,
            }
        })
    }
}

/// Opens a repository that is known, and makes sure that it still is the same one.
async fn open_repo(repo: &RepoRecord) -> Result<(Store, Format)> {
    let store = Store::open(repo)?;
    let bytes = match store.get(FORMAT_KEY, RECORD_MAX).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let message = format!("there is no repository at {} any more", repo.url);
            return Err(Error::corrupt(message).hint("is the right file system mounted there?"));
        }
        found => found?,
    };
    let format =
        Format::decode(&bytes).map_err(|e| e.context(format!("repository {}", repo.name)))?;
    if format.id != repo.id {
        return Err(Error::corrupt(format!(
            "repository {} is {}, but at {} is {} now",
            repo.name, repo.id, repo.url, format.id
        ))
        .hint("remove the repository and add it again, if that is meant"));
    }
    Ok((store, format))
}

/// The format file of a repository, new if there was none.
async fn found_or_made(store: &Store, existing: bool) -> Result<Format> {
    match store.get(FORMAT_KEY, RECORD_MAX).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        found => return Format::decode(&found?),
    }
    if existing {
        return Err(Error::not_found("there is no repository at this URL")
            .hint("leave --existing out to make one"));
    }
    if let Some(other) = store.any().await? {
        // A prefix of something else is most likely a slip.
        let message = format!("the place is not empty: there is {other}");
        return Err(Error::new(ErrorKind::Exists, message)
            .hint("name an empty directory or a prefix that is not used"));
    }
    let format = Format::new(now())?;
    match store.put_new(FORMAT_KEY, format::seal(&format)?).await {
        // Another daemon was faster.
        Err(error) if error.kind() == ErrorKind::Exists => {
            Format::decode(&store.get(FORMAT_KEY, RECORD_MAX).await?)
        }
        done => done.map(|()| format),
    }
}

/// Tries what copies need: an object as new only, reading it back, listing, deleting.
async fn tried(store: &Store) -> Result<Vec<(&'static str, u64)>> {
    let mut steps = Vec::new();
    let key = format!("{CHECK_PREFIX}/{}", RepoId::random()?);
    let bytes = b"rowd repo check".to_vec();
    let began = Instant::now();
    store.put_new(&key, bytes.clone()).await?;
    steps.push(("write a new object", millis(began)));
    let began = Instant::now();
    if store.get(&key, RECORD_MAX).await? != bytes {
        return Err(Error::corrupt("the store returns something else than was written"));
    }
    steps.push(("read it", millis(began)));
    let began = Instant::now();
    let again = store.put_new(&key, b"another".to_vec()).await;
    if again.as_ref().map_err(Error::kind) != Err(ErrorKind::Exists) {
        store.delete(&key).await?;
        return again.and(Err(Error::new(
            ErrorKind::Unsupported,
            "the store overwrites an object that was to be written as new only",
        )
        .hint("rowd needs conditional writes (If-None-Match), or copies could be lost")));
    }
    steps.push(("refuse to overwrite it", millis(began)));
    let began = Instant::now();
    store.put(&key, b"again".to_vec()).await?;
    if store.get(&key, RECORD_MAX).await? != b"again" {
        return Err(Error::new(ErrorKind::Unsupported, "the store returns what was replaced"));
    }
    steps.push(("replace it", millis(began)));
    let began = Instant::now();
    if !store.list(CHECK_PREFIX).await?.contains(&key) {
        return Err(Error::new(ErrorKind::Unsupported, "the store does not list a new object"));
    }
    steps.push(("list it", millis(began)));
    let began = Instant::now();
    store.delete(&key).await?;
    if store.exists(&key).await? {
        return Err(Error::new(ErrorKind::Unsupported, "the store keeps a deleted object"));
    }
    steps.push(("delete it", millis(began)));
    Ok(steps)
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
