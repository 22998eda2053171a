//! Scenarios that need no wire: the engine in this process, over the model test's tiny pool.
//!
//! Invariants: each is deterministic, or races until the race would be lost many times over.
//! Absent: judging; `faults.rs` runs each with and without its guard.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use rowd::disk::lane::Lane;
use rowd::disk::read::Wait;
use rowd::disk::write::Op as Request;
use rowd::engine::api::DiskSpec;
use rowd::engine::{Engine, Target};
use rowd::error::ErrorKind;
use rowd::units::{BLOCK_SIZE, ByteRange};
use tempfile::TempDir;

use super::Outcome;
use crate::model::machine::{BY, Machine, POOL_BLOCKS, settings, text};
use crate::model::op::{Item, ItemKind, Op};

/// Where the data begins in a pool of the model test: superblocks and a 2 MiB journal are before it.
pub const DATA_START: usize = 3 << 20;
pub const BLOCK: usize = 4096;

pub fn pool(blocks: u64) -> Result<(TempDir, Arc<Engine>), String> {
    let dir = tempfile::Builder::new().prefix("rowd-fault-").tempdir_in("/dev/shm");
    let dir = dir.map_err(|e| e.to_string())?;
    let engine = Engine::open(settings(dir.path())).map_err(text)?;
    let spec = DiskSpec {
        name: "disk".to_owned(),
        size: Some(blocks * BLOCK_SIZE),
        ..DiskSpec::default()
    };
    engine.disk_create(BY, spec).map_err(text)?;
    Ok((dir, engine))
}

pub fn target(engine: &Arc<Engine>) -> Result<Target, String> {
    engine.open_export("disk", "fault", None, Box::new(|| {})).map_err(text)
}

pub fn write(lane: &mut Lane, offset: u64, data: &[u8]) -> rowd::error::Result<()> {
    let mut results = Vec::new();
    lane.submit(&[Request::Write { offset, data }], &mut results);
    results.pop().expect("one result")
}

pub fn read(lane: &mut Lane, offset: u64, length: usize) -> Result<Vec<u8>, String> {
    let mut out = vec![0; length];
    let range = ByteRange::new(offset, length as u64).expect("small");
    lane.read(range, &mut out).map_err(text)?;
    Ok(out)
}

fn is(what: &str, holds: bool) -> Outcome {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

/// H1: the journal's page reached the disk, the data it names did not. The write has not happened.
pub fn a_record_without_its_data_is_dropped() -> Outcome {
    let (dir, engine) = pool(16)?;
    let path = dir.path().join("pool");
    let one = target(&engine)?;
    let mut lane = Lane::new(&one.disk);
    write(&mut lane, 0, &[1; BLOCK]).map_err(text)?;
    lane.flush(true).map_err(text)?;
    let old = fs::read(&path).map_err(|e| e.to_string())?;
    write(&mut lane, 0, &[2; BLOCK]).map_err(text)?;
    let new = fs::read(&path).map_err(|e| e.to_string())?;
    drop((lane, one, engine));
    let cut = [&new[..DATA_START], &old[DATA_START..]].concat();
    fs::write(&path, cut).map_err(|e| e.to_string())?;
    let engine = Engine::open(settings(dir.path())).map_err(text)?;
    let one = target(&engine)?;
    let found = read(&mut Lane::new(&one.disk), 0, BLOCK)?;
    is("a write came back without its data", found == [1; BLOCK])
}

/// H2: on a full pool every write wants a block that was just freed; then the power goes.
pub fn power_cuts_on_a_full_pool() -> Outcome {
    let mut machine = Machine::new()?;
    let items = |at: u16, blocks: u16, count: u16| {
        let item = |n| Item { kind: ItemKind::Write, at: at + n * 61, blocks, skew: (0, 0) };
        Op::Data { disk: 0, items: (0..count).map(item).collect() }
    };
    machine.step(&Op::Resize { disk: 0, blocks: 590 })?;
    for at in 0..6 {
        machine.step(&items(at * 100, 100, 1))?;
    }
    for round in 0..40u16 {
        machine.step(&Op::Flush { disk: 0 })?;
        for again in 0..4 {
            machine.step(&items(round * 37 + again * 113, 12, 3))?;
        }
        machine.step(&Op::PowerCut { seed: u64::from(round) * 0x9E37 + 5 })?;
    }
    machine.finish()
}

/// H2: a reader has looked an address up and is slow; meanwhile the block is freed and wanted again.
pub fn a_slow_reader_on_a_full_pool() -> Outcome {
    let (_dir, engine) = pool(POOL_BLOCKS)?;
    let one = target(&engine)?;
    let (mut slow, mut busy) = (Lane::new(&one.disk), Lane::new(&one.disk));
    // Nearly full, or the writer would go on in fresh space.
    for block in 0..POOL_BLOCKS - 3 {
        write(&mut busy, block * BLOCK_SIZE, &[1; BLOCK]).map_err(text)?;
    }
    busy.flush(true).map_err(text)?;
    let range = ByteRange { start: 0, end: BLOCK_SIZE };
    slow.locate(range, Wait::Yes).map_err(text)?;
    for round in 0..200 {
        match write(&mut busy, round % 4 * BLOCK_SIZE, &[2; BLOCK]) {
            // Only what the reader holds up is left: so it should be.
            Err(error) if error.kind() == ErrorKind::NoSpace => break,
            other => other.map_err(text)?,
        }
        busy.flush(true).map_err(text)?;
    }
    let mut out = [0; BLOCK];
    slow.fetch(range, &mut out, Wait::Yes).map_err(text)?;
    is("a reader saw another block's bytes", out == [1; BLOCK])
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::create_dir_all(to).map_err(|e| e.to_string())?;
    for entry in fs::read_dir(from).map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| e.to_string())?;
        fs::copy(entry.path(), to.join(entry.file_name())).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// H3: the map's directory is restored from an older moment than the pool file.
pub fn an_older_map_is_refused() -> Outcome {
    let (dir, engine) = pool(16)?;
    let (map, kept) = (dir.path().join("map"), dir.path().join("kept"));
    engine.close().map_err(text)?;
    drop(engine);
    copy(&map, &kept)?;
    let engine = Engine::open(settings(dir.path())).map_err(text)?;
    let one = target(&engine)?;
    write(&mut Lane::new(&one.disk), 0, &[1; BLOCK]).map_err(text)?;
    engine.close().map_err(text)?;
    drop((one, engine));
    fs::remove_dir_all(&map).map_err(|e| e.to_string())?;
    copy(&kept, &map)?;
    match Engine::open(settings(dir.path())) {
        Err(error) if error.message().contains("older") => Ok(()),
        Err(error) => Err(format!("refused for another reason: {}", text(error))),
        Ok(_) => Err("an older map was opened".to_owned()),
    }
}

/// H4: whoever reads beside a writer sees old bytes or new ones, and no error.
pub fn a_reader_beside_a_writer() -> Outcome {
    let (_dir, engine) = pool(64)?;
    let one = target(&engine)?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut lane = Lane::new(&one.disk);
            while !done.load(Ordering::Relaxed) {
                let found = read(&mut lane, 0, 64 * BLOCK)?;
                let whole = found.iter().all(|byte| *byte == found[0]);
                is("a reader saw half a request", whole)?;
            }
            Ok(())
        });
        let mut lane = Lane::new(&one.disk);
        for round in 0..2000u32 {
            if round % 200 == 0 {
                engine.checkpoint().map_err(text)?;
            }
            let data = vec![u8::try_from(round % 251).expect("a byte"); 64 * BLOCK];
            write(&mut lane, 0, &data).map_err(text)?;
        }
        done.store(true, Ordering::Relaxed);
        reader.join().map_err(|_| "the reader panicked".to_owned())?
    })
}

/// H5: two connections write the two halves of one block; neither may lose the other's.
pub fn two_halves_of_a_block() -> Outcome {
    const HALF: usize = BLOCK / 2;
    let (_dir, engine) = pool(16)?;
    let one = target(&engine)?;
    let together = Barrier::new(2);
    let write_half = |half: u64| -> Outcome {
        let mut lane = Lane::new(&one.disk);
        let mut last = [0; HALF];
        together.wait();
        for round in 0..3000u32 {
            // Nobody else writes this half: what the other's write took away stays away until here.
            let found = read(&mut lane, half * HALF as u64, HALF)?;
            is("an acknowledged half block was lost", found == last)?;
            last = [u8::try_from(round % 251).expect("a byte"); HALF];
            write(&mut lane, half * HALF as u64, &last).map_err(text)?;
            if half == 0 && round % 100 == 0 {
                engine.checkpoint().map_err(text)?;
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| write_half(1));
        let mine = write_half(0);
        mine.and(other.join().map_err(|_| "a writer panicked".to_owned())?)
    })
}

/// H6: a flush on one connection covers what another wrote.
pub fn a_flush_covers_other_connections() -> Outcome {
    let (_dir, engine) = pool(16)?;
    let one = target(&engine)?;
    write(&mut Lane::new(&one.disk), 0, &[1; BLOCK]).map_err(text)?;
    let written = engine.status().last_seq;
    Lane::new(&one.disk).flush(false).map_err(text)?;
    is("a flush left another connection's write out", engine.status().durable_seq >= written)
}

/// H7: freeing a snapshot is cut in pieces by crashes; nothing is freed twice and nothing is forgotten.
pub fn a_reclaim_cut_in_pieces() -> Outcome {
    let mut machine = Machine::new()?;
    let item = |at| Item { kind: ItemKind::Write, at, blocks: 70, skew: (0, 0) };
    let fill = || Op::Data { disk: 0, items: vec![item(0), item(70), item(130)] };
    machine.step(&fill())?;
    machine.step(&Op::Snapshot { disk: 0 })?;
    machine.step(&fill())?;
    machine.step(&Op::DeleteSnapshot { snapshot: 0, force: false })?;
    machine.step(&Op::ReclaimStep { leaves: 1, steps: 1 })?;
    machine.step(&Op::CrashReopen)?;
    machine.step(&Op::Snapshot { disk: 0 })?;
    machine.step(&fill())?;
    machine.step(&Op::DeleteSnapshot { snapshot: 0, force: false })?;
    machine.step(&Op::ReclaimStep { leaves: 1, steps: 3 })?;
    machine.step(&Op::Checkpoint)?;
    machine.finish()
}

/// A disk is kept as a snapshot while it is filled, written to, and has all its contents then.
pub fn a_disk_that_is_kept_while_it_is_filled() -> Outcome {
    let mut machine = Machine::new()?;
    let write = |at| Item { kind: ItemKind::Write, at, blocks: 1, skew: (0, 0) };
    let writes = Op::Data { disk: 2, items: (0..4).map(|leaf| write(leaf * 64 + 3)).collect() };
    let lazy = Op::Lazy { blocks: 250, seed: 7 };
    let fetch = Op::Fetch { disk: 0, from: 0, chunks: 19 };
    for op in [lazy, Op::Snapshot { disk: 2 }, writes, Op::Checkpoint, fetch, Op::Verify] {
        machine.step(&op)?;
    }
    machine.finish()
}
