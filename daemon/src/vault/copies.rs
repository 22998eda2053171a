//! The verbs of copies: begin, list, show, verify, delete, retry, make a disk of one; and going on after a start.
//!
//! Invariants: what a repository says about finished copies is what counts, what the catalogue says about those
//! under way; a copy that is damaged is listed as such, with what is wrong.
//! Absent: how it is done (`upload.rs`, `download.rs`, `collect.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use super::header::Header;
use super::header::{self, COPIES};
use super::leaving::UPLOAD;
use super::origin::Opened;
use super::seal::Seal;
use super::store::Store;
use super::work::Work;
use super::{Vault, collect, download, heal, open_repo, relay, upload};
use crate::engine::api::{Actor, DiskInfo, DiskSpec, JobInfo, Tags};
use crate::engine::copies::{CopyRecord, Filling, Place, Source};
use crate::engine::filling::FILL;
use crate::engine::jobs::Job;
use crate::engine::now;
use crate::engine::presence::Standing;
use crate::engine::repos::RepoRecord;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{CopyId, InstanceId, SnapshotId};

/// How a copy is.
#[derive(Clone, Debug)]
pub enum CopyState {
    /// Under way, in its job.
    Progressing(Option<JobInfo>),
    Accomplished(Box<Header>),
    /// It stopped, and why.
    Failed(String),
    /// It was complete; now something is wrong with it.
    Damaged(String),
}

/// A copy as it is told.
#[derive(Clone, Debug)]
pub struct CopyInfo {
    pub id: CopyId,
    pub repo: String,
    pub snapshot: SnapshotId,
    pub state: CopyState,
}

/// What to copy.
#[derive(Clone, Debug)]
pub enum CopyOf {
    /// A snapshot that is here.
    Snapshot(SnapshotId),
    /// A copy in another repository, by its id or that of its snapshot, or the beginning of one.
    Copy { name: String, repo: Option<String> },
}

/// A copy to make.
#[derive(Clone, Debug)]
pub struct CopySpec {
    pub of: CopyOf,
    /// The name of the repository it goes to.
    pub repo: String,
    pub name: Option<String>,
    pub description: String,
    pub tags: Tags,
}

/// A disk to make of a copy.
#[derive(Clone, Debug)]
pub struct RestoreSpec {
    pub name: String,
    pub size: Option<u64>,
    pub description: String,
    pub tags: Tags,
    pub instance: Option<InstanceId>,
    /// Store the disk as ciphertext, as is done anyway with a copy of an encrypted disk.
    pub encrypted: bool,
    /// Fill it before it can be used.
    pub full: bool,
}

impl Vault {
    /// Goes on with what was under way when the daemon ended, and begins to heal what is found damaged.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn resume(self: &Arc<Self>) -> Result<()> {
        self.look(true)?;
        for filling in self.engine.fillings() {
            match filling.lazy {
                true => self.begin_lazy(&filling, None)?,
                false => self.begin_fill(filling)?,
            };
        }
        self.keep_looking()?;
        heal::start(self)
    }

    /// Begins to copy a snapshot, or a copy, to a repository.
    ///
    /// # Errors
    /// It is being copied there, or is there; there is no such snapshot, copy or repository.
    pub fn copy_create(self: &Arc<Self>, by: Actor, spec: CopySpec) -> Result<CopyInfo> {
        let CopySpec { of, repo, name, description, tags } = spec;
        self.engine.repo(&repo)?;
        let (snapshot, from) = match of {
            CopyOf::Snapshot(snapshot) => (snapshot, None),
            CopyOf::Copy { name, repo: among } => {
                let source = self.source(&name, among.as_deref(), &repo)?;
                (source.snapshot, Some(Place { repo: source.repo, copy: source.id }))
            }
        };
        let (id, started_at) = (CopyId::random()?, now());
        let copy = CopyRecord {
            id,
            snapshot,
            repo,
            from,
            name,
            description,
            tags,
            started_at,
            failed: None,
            deleting: false,
        };
        self.engine.copy_begin(by, copy.clone())?;
        self.begin_upload(copy.clone())?;
        Ok(self.under_way(copy))
    }

    /// The complete copy that another one is to be made of.
    fn source(&self, name: &str, among: Option<&str>, to: &str) -> Result<CopyInfo> {
        let info = match name.starts_with(SnapshotId::PREFIX) {
            false => self.copy(name, among)?,
            true => {
                let fits = |info: &CopyInfo| info.snapshot.as_str().starts_with(name);
                let mut all = self.copies(among)?;
                all.retain(|info| fits(info) && matches!(info.state, CopyState::Accomplished(_)));
                if all.iter().any(|info| info.snapshot != all[0].snapshot) {
                    return Err(Error::invalid(format!("several snapshots begin with {name}")));
                }
                let elsewhere = all.iter().position(|info| info.repo != to).unwrap_or(0);
                if all.is_empty() {
                    let message = format!("no snapshot {name} here, nor a copy of one");
                    return Err(Error::not_found(message).hint("see `rowctl copy list`"));
                }
                all.swap_remove(elsewhere)
            }
        };
        refuse_unfinished(&info)?;
        if info.repo == to {
            let message = format!("copy {} is in {to} already", info.id);
            return Err(Error::invalid(message).hint("name another repository"));
        }
        Ok(info)
    }

    /// The copies in a repository, or in all, those under way included.
    ///
    /// # Errors
    /// A repository does not answer.
    pub fn copies(&self, repo: Option<&str>) -> Result<Vec<CopyInfo>> {
        let mut all = Vec::new();
        for repo in self.repos_named(repo)? {
            let known = self.engine.copies().into_iter().filter(|copy| copy.repo == repo.name);
            let known: Vec<CopyInfo> = known.map(|copy| self.under_way(copy)).collect();
            let found = self.wait(&repo.name, async {
                let (store, _) = open_repo(&repo).await?;
                let mut found = Vec::new();
                for (id, snapshot) in keys(&store).await? {
                    if let Some(info) = told(&store, &repo.name, id, snapshot).await? {
                        found.push(info);
                    }
                }
                Ok(found)
            })?;
            let leaving = self.engine.copies_leaving();
            let is_new = |info: &CopyInfo| {
                known.iter().all(|other| other.id != info.id)
                    && leaving.iter().all(|other| other.id != info.id)
            };
            all.extend(found.into_iter().filter(is_new));
            all.extend(known);
        }
        Ok(all)
    }

    /// The copy of that id, or the only one whose id begins so.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when several begin so; a repository does not answer.
    pub fn copy(&self, name: &str, repo: Option<&str>) -> Result<CopyInfo> {
        let leaving = self.engine.copies_leaving();
        let fits = |id: &CopyId| {
            name.len() > CopyId::PREFIX.len()
                && id.as_str().starts_with(name)
                && leaving.iter().all(|other| other.id != *id)
        };
        let mut found: Vec<(String, CopyId, SnapshotId)> = Vec::new();
        let mut trouble = None;
        for copy in self.engine.copies().into_iter().filter(|copy| fits(&copy.id)) {
            if repo.is_none_or(|repo| repo == copy.repo) {
                return Ok(self.under_way(copy));
            }
        }
        for repo in self.repos_named(repo)? {
            let listed = self.wait(&repo.name, async {
                let (store, _) = open_repo(&repo).await?;
                keys(&store).await
            });
            match listed {
                Ok(listed) => {
                    let fitting = listed.into_iter().filter(|(id, _)| fits(id));
                    found.extend(fitting.map(|(id, snapshot)| (repo.name.clone(), id, snapshot)));
                }
                Err(error) => trouble = Some(error),
            }
        }
        match (found.pop(), found.is_empty(), trouble) {
            (Some((repo, id, snapshot)), true, _) => {
                let repo = self.engine.repo(&repo)?;
                let info = self.wait(&repo.name, async {
                    let (store, _) = open_repo(&repo).await?;
                    told(&store, &repo.name, id, snapshot).await
                })?;
                info.ok_or_else(|| no_copy(name))
            }
            (Some(_), false, _) => Err(Error::invalid(format!("several copies begin with {name}"))),
            (None, _, Some(error)) => Err(error),
            (None, ..) => Err(no_copy(name)),
        }
    }

    /// Tries a copy that failed again.
    ///
    /// # Errors
    /// `WrongState` when it has not failed.
    pub fn copy_retry(self: &Arc<Self>, by: Actor, name: &str) -> Result<CopyInfo> {
        let info = self.copy(name, None)?;
        if !matches!(info.state, CopyState::Failed(_)) {
            let message = format!("copy {} has not failed", info.id);
            return Err(Error::new(ErrorKind::WrongState, message));
        }
        let copy = self.engine.copy_failed(by, &info.id, None)?;
        self.begin_upload(copy.clone())?;
        Ok(self.under_way(copy))
    }

    /// Reads a copy back, as a job.
    ///
    /// # Errors
    /// `WrongState` while it is under way.
    pub fn copy_verify(self: &Arc<Self>, name: &str, repo: Option<&str>) -> Result<JobInfo> {
        let info = self.copy(name, repo)?;
        refuse_unfinished(&info)?;
        let repo = self.engine.repo(&info.repo)?;
        let job = self.engine.job_begin("verify", info.id.as_str())?;
        let key = header::key(&info.id, &info.snapshot);
        self.spawn(
            &job,
            move |work| download::verify(work, &repo, &key),
            |_, result| {
                let (header, locked) = result?;
                let read = format!("{} bytes read, no damage", header.data_bytes);
                Ok(locked.map_or(read.clone(), |why| format!("{read}; not decrypted: {why}")))
            },
        )?;
        Ok(job.info())
    }

    /// Deletes a copy; one that is under way is cancelled.
    ///
    /// # Errors
    /// `InUse` while a disk is filled from it.
    pub fn copy_delete(
        self: &Arc<Self>,
        by: Actor,
        name: &str,
        repo: Option<&str>,
    ) -> Result<CopyId> {
        let info = self.copy(name, repo)?;
        if let Some(filling) = self.engine.fillings().into_iter().find(|f| f.copy == info.id) {
            let message = format!("disk {} is being filled from copy {}", filling.disk, info.id);
            return Err(Error::new(ErrorKind::InUse, message)
                .hint("wait, or delete the disk and the snapshots of it that lack blocks"));
        }
        if self.engine.snapshot_stay(by, &info.id)? {
            self.cancel(&info.id);
            self.look_after_copies()?;
            return Ok(info.id);
        }
        if let CopyState::Progressing(Some(_)) = info.state
            && let Some(job) = self.jobs.lock().get(&info.id)
        {
            job.cancel();
            return Ok(info.id);
        }
        let repo = self.engine.repo(&info.repo)?;
        self.wait(&repo.name, async {
            let (store, _) = open_repo(&repo).await?;
            collect::delete(&store, &info.id, Some(&info.snapshot)).await
        })?;
        let message = format!("copy {} in {} deleted", info.id, repo.name);
        match info.state {
            CopyState::Failed(_) | CopyState::Progressing(_) => {
                let copies = self.engine.copies();
                self.engine.copy_end(by, &info.id, "copy.delete", message)?;
                if let Some(copy) = copies.iter().find(|copy| copy.id == info.id) {
                    relay::release(self, copy);
                }
            }
            _ => self.engine.copy_deleted(by, &info.id, message)?,
        }
        self.begin_collect(repo)?;
        Ok(info.id)
    }

    /// Makes a disk of a copy: it can be used at once, or with `full` when the job is done.
    ///
    /// # Errors
    /// The copy is not complete; the name or the size will not do.
    pub fn copy_restore(
        self: &Arc<Self>,
        by: Actor,
        name: &str,
        repo: Option<&str>,
        spec: RestoreSpec,
    ) -> Result<(DiskInfo, JobInfo)> {
        let info = self.copy(name, repo)?;
        refuse_unfinished(&info)?;
        let CopyState::Accomplished(header) = info.state else {
            return Err(Error::internal("a copy is neither complete nor not"));
        };
        let known = self.engine.repo(&info.repo)?;
        let (store, seal) = self.wait(&info.repo, async {
            let (store, _) = open_repo(&known).await?;
            let seal = Seal::of(&self.engine, &store, &header).await?;
            Ok((store, seal))
        })?;
        let encrypted = spec.encrypted || seal.key()?.is_some();
        let size = spec.size.unwrap_or(header.size);
        if size < header.size {
            let message =
                format!("the copy has {} bytes, a disk of {size} is too small", header.size);
            return Err(Error::invalid(message).hint("leave the size out"));
        }
        let RestoreSpec { name, description, tags, instance, full, .. } = spec;
        let size = Some(size);
        let disk =
            DiskSpec { name, size, description, tags, instance, encrypted, ..DiskSpec::default() };
        let (repo, copy, snapshot) = (info.repo, info.id, info.snapshot);
        let source = Source { repo, copy, snapshot, lazy: !full };
        let made = self.engine.fill_begin(by, disk, source)?;
        let found = self.engine.fillings().into_iter().find(|filling| filling.disk == made.id);
        let filling = found.ok_or_else(|| Error::not_found("the disk was deleted meanwhile"))?;
        let job = match filling.lazy {
            true => self.begin_lazy(&filling, Some(Opened::Header(store, header, seal)))?,
            false => self.begin_fill(filling)?,
        };
        Ok((self.engine.disk(&made.id)?, job))
    }

    pub(super) fn begin_upload(self: &Arc<Self>, copy: CopyRecord) -> Result<()> {
        let Some(job) = self.only_job(UPLOAD, &copy)? else { return Ok(()) };
        let told = copy.clone();
        let waits = copy.from.is_none() && self.engine.snapshot_waits(&copy.snapshot).is_some();
        let make = move |work: &Work| match &copy.from {
            Some(from) => relay::run(work, &copy, from),
            None if waits => {
                upload::wait_for_contents(work, &copy)?;
                let _turn = work.turn_among_jobs()?;
                upload::run(work, &copy)
            }
            None => upload::run(work, &copy),
        };
        let ended = move |work: &Work, result| {
            let outcome = uploaded(work, &told, result);
            work.vault.jobs.lock().remove(&told.id);
            work.vault.look_after_copies().and(outcome)
        };
        // Who waits for a disk to be filled must not keep others from their turn, that disk least of all.
        if waits { self.spawn_idle(&job, make, ended) } else { self.spawn(&job, make, ended) }
    }

    fn begin_fill(self: &Arc<Self>, filling: Filling) -> Result<JobInfo> {
        let job = self.engine.job_begin(FILL, filling.disk.as_str())?;
        let told = filling.clone();
        let work = move |work: &Work| download::fill(work, &filling);
        self.spawn(&job, work, move |work, result| match result {
            Ok(header) => Ok(format!("{} bytes", header.data_bytes)),
            Err(error) => {
                // Half a disk is of no use to anybody.
                match work.vault.engine.disk_delete(Actor::DAEMON, &told.disk, true) {
                    Err(other) if other.kind() != ErrorKind::NotFound => {
                        tracing::warn!(error = %other, disk = %told.disk, "not deleted");
                    }
                    _ => {}
                }
                Err(error)
            }
        })?;
        Ok(job.info())
    }

    /// Frees in the background what deleted copies have left.
    pub(super) fn begin_collect(self: &Arc<Self>, repo: RepoRecord) -> Result<()> {
        let job = self.engine.job_begin("collect", &repo.name)?;
        self.spawn(
            &job,
            move |work| {
                let done = work.wait(async {
                    let (store, _) = open_repo(&repo).await?;
                    collect::collect(&store).await
                })?;
                // After it was seen that the right repository is there.
                let left_files = work.vault.sweep(work, &repo)?;
                Ok(collect::Collected { left_files, ..done })
            },
            |_, result| result.map(in_words),
        )
    }

    fn under_way(&self, copy: CopyRecord) -> CopyInfo {
        let job = self.jobs.lock().get(&copy.id).map(|job: &Arc<Job>| job.info());
        let state = match copy.failed {
            Some(why) => CopyState::Failed(why),
            None => CopyState::Progressing(job),
        };
        CopyInfo { id: copy.id, repo: copy.repo, snapshot: copy.snapshot, state }
    }

    fn repos_named(&self, name: Option<&str>) -> Result<Vec<RepoRecord>> {
        match name {
            Some(name) => Ok(vec![self.engine.repo(name)?]),
            None => Ok(self.engine.repos()),
        }
    }
}

/// What came of an upload, in the catalogue and in the repository.
fn uploaded(work: &Work, copy: &CopyRecord, result: Result<Header>) -> Result<String> {
    let engine = &work.vault.engine;
    let told = match result {
        Ok(header) => {
            let sent = work.job.done.load(Ordering::Relaxed);
            let message = format!(
                "copy {} of {}@{} to {} complete: {sent} bytes of blocks, {} sent",
                copy.id, header.disk_name, header.snapshot_name, copy.repo, header.new_stored
            );
            engine.copy_done(&copy.id, message.clone())?;
            Ok(message)
        }
        Err(error) => {
            match (engine.copy_standing(&copy.id), error.kind()) {
                // It is deleted next, on a job of its own.
                (Standing::Leaving, _) => {}
                (Standing::Beside, ErrorKind::Cancelled) => {
                    give_up(work, copy)?;
                    relay::release(&work.vault, copy);
                    let message = format!("copy {} to {} cancelled", copy.id, copy.repo);
                    engine.copy_end(Actor::DAEMON, &copy.id, "copy.cancel", message)?;
                }
                _ => drop(engine.copy_failed(Actor::DAEMON, &copy.id, Some(error.to_string()))?),
            }
            Err(error)
        }
    };
    // What others had to leave because of this upload.
    if let Ok(repo) = engine.repo(&copy.repo) {
        work.vault.begin_collect(repo)?;
    }
    told
}

/// Takes back what a cancelled upload has sent.
fn give_up(work: &Work, copy: &CopyRecord) -> Result<()> {
    let repo = work.vault.engine.repo(&copy.repo)?;
    work.vault.wait(&repo.name, async {
        let (store, _) = open_repo(&repo).await?;
        collect::delete(&store, &copy.id, Some(&copy.snapshot)).await
    })
}

pub(super) fn in_words(done: collect::Collected) -> String {
    let freed = match done.later {
        true => "left for later: an upload is under way".to_owned(),
        false => format!("{} chunks freed", done.chunks),
    };
    match done.left_files {
        0 => freed,
        count => format!("{freed}; {count} unfinished files of killed writers removed"),
    }
}

fn no_copy(name: &str) -> Error {
    Error::not_found(format!("no copy {name}")).hint("see `rowctl copy list`")
}

pub(super) fn refuse_unfinished(info: &CopyInfo) -> Result<()> {
    match &info.state {
        CopyState::Accomplished(_) => Ok(()),
        CopyState::Damaged(why) => Err(Error::corrupt(why.clone())),
        CopyState::Progressing(_) | CopyState::Failed(_) => {
            let message = format!("copy {} is not complete", info.id);
            Err(Error::new(ErrorKind::WrongState, message)
                .hint(format!("`rowctl copy show {}` says why", info.id)))
        }
    }
}

pub(super) async fn keys(store: &Store) -> Result<Vec<(CopyId, SnapshotId)>> {
    let keys = store.list(COPIES).await?;
    Ok(keys.iter().filter_map(|key| header::parse_key(key)).collect())
}

/// What a header says; nothing when it was deleted this instant.
async fn told(
    store: &Store,
    repo: &str,
    id: CopyId,
    snapshot: SnapshotId,
) -> Result<Option<CopyInfo>> {
    let state = match Header::read(store, &header::key(&id, &snapshot)).await {
        Ok(header) => CopyState::Accomplished(Box::new(header)),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if header::is_passed_over(&error) => CopyState::Damaged(error.to_string()),
        Err(error) => return Err(error),
    };
    Ok(Some(CopyInfo { id, repo: repo.to_owned(), snapshot, state }))
}
