//! The engine under threads: writers, snapshots, clones, rollbacks, checkpoints and reclaim at once.
//!
//! Invariants: a writer writes its stamp to one block, then to another in a different leaf, and waits
//! for each; so in every exact cut the second is the first or one behind it.
//! Absent: a full model. What no order of effects can explain is looked for, and the engine's check.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rowd::disk::lane::Lane;
use rowd::disk::write::Op as Request;
use rowd::engine::api::{DiskSpec, SnapshotSpec, Tags};
use rowd::engine::{Engine, Settings};
use rowd::error::ErrorKind;
use rowd::pool::file::IoMode;
use rowd::units::{BLOCK_SIZE, ByteRange, DiskId, SnapshotId};
use rowd_tests::wait;

use super::compare::equal;
use super::machine::{BY, Outcome, settings, text};
use super::power::Random;

const BLOCKS: u64 = 1024;
const FIRST: u64 = 3;
const SECOND: u64 = 700;
const TIME: Duration = Duration::from_secs(8);
const SEED: u64 = 7;
const KEPT: usize = 4;
/// Deleted nodes that may wait to be freed.
const BACKLOG_MAX: u64 = 50;

fn make(engine: &Engine, name: &str, from: Option<SnapshotId>) -> Result<DiskId, String> {
    let size = from.is_none().then_some(BLOCKS * BLOCK_SIZE);
    let (description, tags) = (String::new(), Tags::new());
    let name = name.to_owned();
    let spec = DiskSpec { name, size, from, description, tags, ..DiskSpec::default() };
    Ok(engine.disk_create(BY, spec).map_err(text)?.id)
}

fn snapshot(engine: &Engine, disk: &DiskId, name: String) -> Result<SnapshotId, String> {
    let (disk, name, description) = (disk.clone(), Some(name), String::new());
    let spec = SnapshotSpec { disk, name, description, tags: Tags::new(), copy: None };
    Ok(engine.snapshot_create(BY, spec).map_err(text)?.id)
}

fn stamp(lane: &mut Lane, block: u64) -> Result<u64, String> {
    let mut out = vec![0; 4096];
    let range = ByteRange { start: block * BLOCK_SIZE, end: (block + 1) * BLOCK_SIZE };
    lane.read(range, &mut out).map_err(text)?;
    Ok(u64::from_le_bytes(out[..8].try_into().expect("8 bytes")))
}

fn write(lane: &mut Lane, block: u64, stamp: u64) -> Outcome {
    let data = stamp.to_le_bytes().repeat(512);
    let request = Request::Write { offset: block * BLOCK_SIZE, data: &data };
    // Deleted snapshots are freed in the background: the pool may be full for a moment.
    let done = wait::try_until(wait::PATIENCE, || {
        let mut results = Vec::new();
        lane.submit(&[request], &mut results);
        let result = results.pop().expect("one result");
        let full = result.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace);
        (!full).then_some(result)
    });
    done.ok_or("the pool stays full")?.map_err(text)
}

/// Writes stamps until told to stop, and reads its own back.
fn writer(engine: &Arc<Engine>, name: &str, acked: &AtomicU64, stop: &AtomicBool) -> Outcome {
    let target = engine.open_export(name, "writer", None, Box::new(|| {})).map_err(text)?;
    let mut lane = Lane::new(&target.disk);
    let mut random = Random::new(SEED + name.len() as u64);
    for now in 1.. {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        write(&mut lane, FIRST, now)?;
        write(&mut lane, SECOND, now)?;
        acked.store(now, Ordering::SeqCst);
        let other = 10 + random.below(600);
        write(&mut lane, other, now)?;
        equal(&format!("block {other} of {name}"), stamp(&mut lane, other)?, now)?;
        equal(&format!("first block of {name}"), stamp(&mut lane, FIRST)?, now)?;
        if random.below(50) == 0 {
            let range = ByteRange { start: 10 * BLOCK_SIZE, end: 610 * BLOCK_SIZE };
            lane.submit(&[Request::Trim { range }], &mut Vec::new());
            lane.flush(true).map_err(text)?;
        }
    }
    Ok(())
}

/// Both stamps of an export; an error where they are no cut.
fn cut(engine: &Arc<Engine>, name: &str) -> Result<(u64, u64), String> {
    let target = engine.open_export(name, "cut", None, Box::new(|| {})).map_err(text)?;
    let mut lane = Lane::new(&target.disk);
    let (first, second) = (stamp(&mut lane, FIRST)?, stamp(&mut lane, SECOND)?);
    if second > first || first > second + 1 {
        return Err(format!("{name} has stamps {first} and {second}: no exact cut"));
    }
    Ok((first, second))
}

/// Takes, verifies, clones and deletes snapshots of the writers' disks, and rolls the clones back.
fn keeper(engine: &Arc<Engine>, disks: &[(DiskId, Arc<AtomicU64>)]) -> Outcome {
    let mut random = Random::new(SEED);
    let mut kept: Vec<(SnapshotId, String, (u64, u64))> = Vec::new();
    let end = Instant::now() + TIME;
    for round in 0u64.. {
        let (disk, acked) = &disks[usize::try_from(round % 2).expect("0 or 1")];
        let before = acked.load(Ordering::SeqCst);
        let id = snapshot(engine, disk, format!("cut-{round}"))?;
        let name = format!("{disk}@cut-{round}");
        let stamps = cut(engine, &name)?;
        if stamps.1 < before {
            return Err(format!("{name} lacks stamp {before}, which was acknowledged before"));
        }
        kept.push((id.clone(), name, stamps));
        if random.below(3) == 0 {
            let clone = make(engine, &format!("clone-{round}"), Some(id.clone()))?;
            equal("stamps of a clone", cut(engine, &format!("clone-{round}"))?, stamps)?;
            let own = snapshot(engine, &clone, "own".to_owned())?;
            engine.disk_rollback(BY, &clone, &own, false).map_err(text)?;
            engine.snapshot_delete(BY, &own, true).map_err(text)?;
            engine.disk_delete(BY, &clone, false).map_err(text)?;
        }
        if random.below(4) == 0 {
            engine.checkpoint().map_err(text)?;
        }
        if kept.len() > KEPT {
            let at = usize::try_from(random.below(kept.len() as u64)).expect("few");
            let (id, name, stamps) = kept.swap_remove(at);
            equal(&format!("stamps of {name} before it goes"), cut(engine, &name)?, stamps)?;
            engine.snapshot_delete(BY, &id, true).map_err(text)?;
        }
        // Reclaim gives way to the writers; thousands of snapshots a second would outrun it.
        let behind = || engine.status().reclaiming > BACKLOG_MAX;
        wait::until("reclaim to catch up", || (!behind()).then_some(()));
        if Instant::now() > end {
            return Ok(());
        }
    }
    Ok(())
}

/// Promise: a snapshot under live writes is one exact instant, and nothing that runs beside it loses,
/// leaks or mixes a block.
#[test]
fn snapshots_under_writers_are_exact_cuts() -> Outcome {
    run_beside_each_other(IoMode::Buffered, "/dev/shm")
}

/// Promise: the same holds past the page cache, where a change is seen before its record is written.
#[test]
fn snapshots_under_writers_in_direct_mode_are_exact_cuts() -> Outcome {
    run_beside_each_other(IoMode::Direct, "/var/tmp")
}

fn run_beside_each_other(io: IoMode, place: &str) -> Outcome {
    println!("seed {SEED}; the threads' order is the machine's");
    let dir = tempfile::Builder::new().prefix("rowd-threads-").tempdir_in(place);
    let dir = dir.map_err(|e| e.to_string())?;
    let settings = Settings {
        io,
        background: true,
        max_bytes: 64 << 20,
        quota_manual: 64,
        flush_every: Duration::from_millis(50),
        checkpoint_every: Duration::from_millis(150),
        ..settings(dir.path())
    };
    let engine = Engine::open(settings.clone()).map_err(text)?;
    let mut disks = Vec::new();
    for name in ["one", "other"] {
        disks.push((make(&engine, name, None)?, Arc::new(AtomicU64::new(0))));
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let start = |name: &'static str, at: usize| {
            let (engine, acked, stop) = (&engine, &disks[at].1, &stop);
            scope.spawn(move || writer(engine, name, acked, stop))
        };
        let writers = [start("one", 0), start("other", 1)];
        let kept = keeper(&engine, &disks);
        stop.store(true, Ordering::Relaxed);
        let ended = writers.map(|thread| thread.join().expect("a writer panicked"));
        ended.into_iter().fold(kept, Result::and)
    })?;
    engine.close().map_err(text)?;
    drop(engine);
    let engine = Engine::open(Settings { background: false, ..settings }).map_err(text)?;
    engine.reclaim_all().map_err(text)?;
    equal("findings", engine.check(true, false).map_err(text)?.findings, Vec::new())
}
