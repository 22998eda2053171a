//! Faults that the model test or a review found, each as a short history of its own.
//!
//! Invariants: one fault per test; each says what went wrong before its repair.
//! Absent: the histories as the model test found them; it finds them again by itself.

use std::fs;

use rowd::disk::lane::Lane;
use rowd::engine::Engine;
use rowd::engine::api::DiskSpec;
use rowd::error::ErrorKind;
use rowd::units::BLOCK_SIZE;
use rowd_tests::client::Client;
use rowd_tests::process::Daemon;

use super::Outcome;
use super::engine::{BLOCK, DATA_START, pool, read, target, write};
use crate::model::machine::{BY, Machine, settings, text};
use crate::model::op::{Item, ItemKind, Op};

fn block(number: u64) -> Vec<u8> {
    vec![u8::try_from(number % 251).expect("a byte"); BLOCK]
}

/// A block that the journal's tail frees and takes again was put up for lease while in use: after
/// kill -9 the next writer overwrote somebody's data.
#[test]
fn a_block_freed_and_taken_again_before_a_crash_stays_taken() -> Outcome {
    let mut machine = Machine::new()?;
    machine.step(&Op::Resize { disk: 0, blocks: 256 })?;
    let write = |at, blocks| {
        let item = Item { kind: ItemKind::Write, at, blocks, skew: (0, 0) };
        Op::Data { disk: 0, items: vec![item] }
    };
    for round in 0..12 {
        machine.step(&write(round * 16 % 256, 130))?;
        machine.step(&Op::Flush { disk: 0 })?;
    }
    machine.step(&Op::CrashReopen)?;
    machine.step(&write(0, 140))?;
    machine.finish()
}

/// A block written, replaced and reused, with the reuse on disk and its record not, made recovery drop
/// records that a flush had covered.
#[test]
fn a_flush_covers_records_whose_replaced_blocks_were_reused() -> Outcome {
    let (dir, engine) = pool(560)?;
    let path = dir.path().join("pool");
    let one = target(&engine)?;
    let mut lane = Lane::new(&one.disk);
    for number in 0..560 {
        write(&mut lane, number * BLOCK_SIZE, &block(number)).map_err(text)?;
    }
    engine.checkpoint().map_err(text)?;
    // Written and replaced before one flush: no record says that the first of the two was durable.
    for round in 1..4 {
        for number in 0..40 {
            let data = block(number + round);
            write(&mut lane, number * BLOCK_SIZE, &data).map_err(text)?;
        }
    }
    lane.flush(true).map_err(text)?;
    let flushed = fs::read(&path).map_err(|e| e.to_string())?;
    let durable = engine.status().durable_seq;
    for number in 100..140 {
        write(&mut lane, number * BLOCK_SIZE, &block(7)).map_err(text)?;
        if engine.status().durable_seq != durable {
            break;
        }
    }
    let later = fs::read(&path).map_err(|e| e.to_string())?;
    drop((lane, one, engine));
    let cut = [&flushed[..DATA_START], &later[DATA_START..]].concat();
    fs::write(&path, cut).map_err(|e| e.to_string())?;
    let engine = Engine::open(settings(dir.path())).map_err(text)?;
    let one = target(&engine)?;
    let mut lane = Lane::new(&one.disk);
    for number in 0..560 {
        let truth = block(if number < 40 { number + 3 } else { number });
        let found = read(&mut lane, number * BLOCK_SIZE, BLOCK)?;
        if found != truth {
            return Err(format!("block {number} lost what a flush had covered"));
        }
    }
    Ok(())
}

/// The file's growth was lost with the power, the records that name blocks there were not: the pool did
/// not open.
#[test]
fn lost_growth_drops_the_records_that_need_it() -> Outcome {
    let (dir, engine) = pool(16)?;
    let path = dir.path().join("pool");
    let short = fs::metadata(&path).map_err(|e| e.to_string())?.len();
    let one = target(&engine)?;
    let mut lane = Lane::new(&one.disk);
    write(&mut lane, 0, &block(1)).map_err(text)?;
    write(&mut lane, 0, &block(2)).map_err(text)?;
    drop((lane, one, engine));
    let file = fs::File::options().write(true).open(&path).map_err(|e| e.to_string())?;
    file.set_len(short).map_err(|e| e.to_string())?;
    let engine = Engine::open(settings(dir.path())).map_err(text)?;
    let one = target(&engine)?;
    let found = read(&mut Lane::new(&one.disk), 0, BLOCK)?;
    if found == [0; BLOCK] { Ok(()) } else { Err("what was never synced came back".to_owned()) }
}

/// An unaligned write on a full pool kept the space it needed from itself: it counted as a reader from
/// before the blocks were freed.
#[test]
fn an_unaligned_write_finds_space_that_was_just_freed() -> Outcome {
    let (_dir, engine) = pool(700)?;
    let one = target(&engine)?;
    let mut lane = Lane::new(&one.disk);
    let full = (0..700).find(|number| {
        let outcome = write(&mut lane, number * BLOCK_SIZE, &block(*number));
        outcome.is_err_and(|error| error.kind() == ErrorKind::NoSpace)
    });
    full.ok_or("the pool never filled")?;
    lane.flush(true).map_err(text)?;
    let mut results = Vec::new();
    let range = rowd::units::ByteRange { start: 0, end: 8 * BLOCK_SIZE };
    lane.submit(&[rowd::disk::write::Op::Trim { range }], &mut results);
    write(&mut lane, 20 * BLOCK_SIZE + 100, &[9; 50]).map_err(text)
}

/// A description longer than a record stopped the daemon with a panic.
#[test]
fn a_description_that_fits_no_record_is_refused() -> Outcome {
    let (_dir, engine) = pool(16)?;
    let spec = DiskSpec {
        name: "second".to_owned(),
        size: Some(BLOCK_SIZE),
        description: "x".repeat(300 << 10),
        ..DiskSpec::default()
    };
    match engine.disk_create(BY, spec) {
        Err(error) if error.kind() == ErrorKind::Invalid => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// Cutting off the end of a very large disk with little in it made one change of more blocks than a
/// record can count, and a panic.
#[test]
fn the_far_end_of_a_huge_disk_is_cut_off() -> Outcome {
    const HUGE: u64 = 1 << 30;
    let (_dir, engine) = pool(HUGE)?;
    let one = target(&engine)?;
    let mut lane = Lane::new(&one.disk);
    for number in [10, HUGE / 2, HUGE - 1] {
        write(&mut lane, number * BLOCK_SIZE, &block(1)).map_err(text)?;
    }
    drop((lane, one));
    let id = engine.find_disk("disk").map_err(text)?;
    let disk = engine.disk_resize(BY, &id, BLOCK_SIZE, true).map_err(text)?;
    if disk.mapped_bytes == 0 { Ok(()) } else { Err("something stayed mapped".to_owned()) }
}

/// The map's manifest ended in a record of which the power had left some sectors: RocksDB refused to open.
/// Damage to what had been synced is refused as before.
#[test]
fn a_torn_end_of_the_maps_manifest_is_dropped() {
    let mut daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    Client::connect(&daemon.nbd_socket(), "disk").write(0, &[5; BLOCK]);
    daemon.stop();
    let map = daemon.dir().join("map");
    let manifest = || {
        let current = fs::read_to_string(map.join("CURRENT")).expect("read CURRENT");
        map.join(current.trim())
    };
    let whole = fs::read(manifest()).expect("read the manifest");
    // A record of 300 bytes with a wrong sum, as if a sector in the middle were missing.
    let mut torn = whole.clone();
    torn.extend([0xff, 0xff, 0xff, 0xff, 44, 1, 1]);
    torn.extend([9; 300]);
    fs::write(manifest(), &torn).expect("tear the manifest");
    daemon.start();
    let data = Client::connect(&daemon.nbd_socket(), "disk").read(0, 4096);
    assert_eq!(data, [5; BLOCK], "nothing that counted is gone");
    assert_eq!(fs::read(map.join("torn-manifest")).expect("it is kept"), torn);
    daemon.stop();
    let mut damaged = fs::read(manifest()).expect("read the manifest");
    damaged[60] ^= 1;
    fs::write(manifest(), &damaged).expect("damage the manifest");
    let files = || {
        let names = fs::read_dir(&map).expect("list the map").map(|entry| entry.expect("an entry"));
        let tables = names
            .map(|entry| entry.file_name())
            .filter(|name| name.to_string_lossy().ends_with(".sst"));
        tables.collect::<std::collections::BTreeSet<_>>()
    };
    let before = files();
    assert!(!daemon.try_start(), "a map that lost what was synced must not open");
    assert_eq!(fs::read(manifest()).expect("read the manifest"), damaged, "it is as it was");
    assert_eq!(files(), before, "no table was removed");
}

/// Where the pool file is missing (not mounted, say), a map with a damaged manifest could pass for that of a
/// pool that was never finished, which is removed.
#[test]
fn a_damaged_map_without_its_pool_is_left_alone() {
    let mut daemon = Daemon::new();
    daemon.ctl(&["disk", "create", "disk", "--size", "64MiB"]);
    daemon.stop();
    let map = daemon.dir().join("map");
    let current = fs::read_to_string(map.join("CURRENT")).expect("read CURRENT");
    let manifest = map.join(current.trim());
    let whole = fs::read(&manifest).expect("read the manifest");
    fs::rename(daemon.dir().join("pool"), daemon.file("elsewhere")).expect("move the pool");
    for at in (0..whole.len()).step_by(61) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&manifest, &damaged).expect("damage the manifest");
        assert!(!daemon.try_start(), "damage at {at}: the pool was made anew");
        let left = fs::read(&manifest).expect("read the manifest");
        assert_eq!(left, damaged, "damage at {at}: the manifest was changed");
    }
}
