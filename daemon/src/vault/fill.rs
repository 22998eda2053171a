//! Filling a disk in the background while it is used.
//!
//! Invariants: the disk is an ordinary one only when no block of the copy is missing, durably; trouble with the
//! repository or a full pool ends nothing: it is tried again until it works or the disk is deleted. Who reads and
//! writes comes first.
//! Absent: what clients wait for (`origin.rs`); disks that are filled before they are used (`download.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Vault;
use super::index::Index;
use super::origin::{CopyOrigin, Opened, Place};
use super::work::Work;
use crate::disk::Disk;
use crate::disk::lazy::{Answer, Need, Origin, holes_of};
use crate::engine::FillTarget;
use crate::engine::api::JobInfo;
use crate::engine::copies::Filling;
use crate::engine::filling::FETCH;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;

/// Chunks under way while nobody reads or writes.
const AT_ONCE: usize = 3;
/// While somebody does, a pause of this many times what the last chunk cost follows it.
const GIVE_WAY: u32 = 4;
/// Records between two looks that are nobody's: of the daemon itself.
const OWN_ACTIVITY: u64 = 2;
/// How long a new disk is left to its first reader.
const HEAD_START: Duration = Duration::from_millis(200);
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long trouble is waited out, at first and at most.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

impl Vault {
    /// Connects a disk that is used while it is filled to its copy, and begins to fill it.
    pub(super) fn begin_lazy(
        self: &Arc<Self>,
        filling: &Filling,
        opened: Option<Opened>,
    ) -> Result<JobInfo> {
        let lazy = self.engine.lazy(filling)?;
        let Filling { repo, copy, snapshot, .. } = filling.clone();
        let place = Place { repo, copy, snapshot };
        let origin = CopyOrigin::new(self, place, Some(filling.clone()));
        if let Some(opened) = opened {
            origin.opened(opened);
        }
        lazy.connect(Arc::new(Arc::clone(&origin)));
        origin.prepare();
        let job = self.engine.job_begin(FETCH, filling.disk.as_str())?;
        let filling = filling.clone();
        self.spawn_idle(
            &job,
            move |work| fill_all(work, &filling, &origin),
            |_, result| result.map(|bytes| format!("{bytes} bytes")),
        )?;
        Ok(job.info())
    }
}

/// Fills the disk, however long that takes.
fn fill_all(work: &Work, filling: &Filling, origin: &Arc<CopyOrigin>) -> Result<u64> {
    let mut pause = FIRST_RETRY;
    // Whoever made the disk is likely to read something of it now.
    work.wait(async {
        tokio::time::sleep(HEAD_START).await;
        Ok(())
    })?;
    faults::hold_point("fill.begun");
    loop {
        let before = work.job.done.load(Ordering::Relaxed);
        let error = match pass(work, filling, origin) {
            Ok((bytes, target)) => {
                if work.vault.engine.fill_end(filling, &target)? {
                    return Ok(bytes);
                }
                // The disk was kept as a snapshot meanwhile, which may lack more than the disk does.
                continue;
            }
            Err(error) => error,
        };
        // Deleted, or the daemon goes down.
        if matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::ShuttingDown) {
            work.vault.engine.fill_target(filling)?;
            work.check()?;
        }
        if matches!(error.kind(), ErrorKind::Stopped | ErrorKind::Internal) {
            return Err(error);
        }
        tracing::debug!(%error, disk = %filling.disk, "filling is tried again");
        work.job.says(&error.to_string());
        if work.job.done.load(Ordering::Relaxed) > before {
            pause = FIRST_RETRY;
        }
        work.wait(async {
            tokio::time::sleep(pause).await;
            Ok(())
        })?;
        pause = (pause * 2).min(LAST_RETRY);
    }
}

/// Goes once over all chunks, and fetches those with blocks that the disk lacks.
fn pass(work: &Work, filling: &Filling, origin: &Arc<CopyOrigin>) -> Result<(u64, FillTarget)> {
    let target = work.vault.engine.fill_target(filling)?;
    let (told, mut answers) = mpsc::unbounded_channel();
    origin.ask(Need::Index, answer_to(&told, 0));
    let (_, known) = work.wait(next(&mut answers))?;
    known?;
    let index = origin.index().ok_or_else(|| Error::internal("no index"))?;
    work.job.total.store(index.raw_bytes(), Ordering::Relaxed);
    work.job.done.store(0, Ordering::Relaxed);
    let mut pass = Pass { work, filling, disk: &target.disk, index, under_way: 0 };
    let mut chunks = index.order().iter();
    let mut at_once = AT_ONCE;
    loop {
        while pass.under_way < at_once
            && let Some(chunk) = pass.next_lacking(&mut chunks)?
        {
            origin.ask_ahead(chunk, answer_to(&told, chunk));
            pass.under_way += 1;
        }
        if pass.under_way == 0 {
            break;
        }
        let before = work.vault.engine.activity();
        let (chunk, answer) = work.wait(next(&mut answers))?;
        let busy = is_busy(before, work.vault.engine.activity());
        at_once = if busy { 1 } else { AT_ONCE };
        pass.under_way -= 1;
        let began = Instant::now();
        pass.store(chunk, answer)?;
        if busy {
            let pause = (began.elapsed() * GIVE_WAY).clamp(PAUSE_MIN, PAUSE_MAX);
            work.wait(async {
                tokio::time::sleep(pause).await;
                Ok(())
            })?;
        }
    }
    Ok((index.raw_bytes(), target))
}

struct Pass<'a> {
    work: &'a Work,
    filling: &'a Filling,
    disk: &'a Arc<Disk>,
    index: &'a Index,
    under_way: usize,
}

impl Pass<'_> {
    /// The next chunk with blocks that the disk lacks.
    fn next_lacking(&self, chunks: &mut std::slice::Iter<'_, u32>) -> Result<Option<u32>> {
        for chunk in chunks {
            if !holes_of(self.disk, &self.index.spans(*chunk))?.is_empty() {
                return Ok(Some(*chunk));
            }
            self.count(*chunk);
            self.work.check()?;
        }
        Ok(None)
    }

    fn store(&mut self, chunk: u32, answer: Answer) -> Result<()> {
        let Some(fetched) = answer? else { return Err(Error::internal("a chunk without bytes")) };
        // Whoever deletes the disk is noticed here.
        self.work.vault.engine.adopt(self.filling, &fetched)?;
        faults::fail_point("fill.written");
        self.work.job.says("");
        self.count(chunk);
        Ok(())
    }

    fn count(&self, chunk: u32) {
        let bytes = u64::from(self.index.chunk(chunk).raw);
        self.work.job.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn is_busy(before: (u64, u64), after: (u64, u64)) -> bool {
    // Readers come and go, so the second number may also fall.
    after.0.abs_diff(before.0) > OWN_ACTIVITY || after.1 != before.1
}

type Told = (u32, Answer);

fn answer_to(told: &mpsc::UnboundedSender<Told>, chunk: u32) -> crate::disk::lazy::Wake {
    let told = told.clone();
    Box::new(move |answer| {
        if told.send((chunk, answer)).is_err() {
            tracing::debug!(chunk, "nobody waits for it any more");
        }
    })
}

async fn next(answers: &mut mpsc::UnboundedReceiver<Told>) -> Result<Told> {
    answers.recv().await.ok_or_else(|| Error::internal("answers ended"))
}
