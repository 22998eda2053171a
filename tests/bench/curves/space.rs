//! Bytes on the device per byte written, and work that must not depend on the size of a disk.
//!
//! Invariants: device bytes are those of the block device below the file system, up to the checkpoint that
//! covers the last write; other programs that write at the same time only make them more.
//! Absent: `write_bytes` of the process: the kernel counts a whole large folio when 4 KiB of it become
//! dirty, two to eight times what is written back.

use std::time::Instant;

use rowd_proto::DiskShow;
use serde_json::json;

use super::{Bench, FLAT, Finding, human};
use crate::daemon::Daemon;
use crate::fio::{self, Length, Load};
use crate::machine;
use crate::nbd::Ask;
use crate::report::{median, ms};

/// How often a disk is overwritten: once to reach the steady state, then so often measured.
const OVERWRITES: u64 = 4;
/// Snapshots of each of two empty disks, in turn.
const EMPTY_SNAPSHOTS: usize = 50;
const PIECE: u32 = 256 << 10;

pub fn amplification(bench: Bench<'_>) -> Vec<Finding> {
    let size = bench.options.disk;
    let mut daemon = Daemon::start(&bench.options.rowd, bench.dir);
    daemon.full_disk("worn", size);
    overwrite(&mut daemon, size, 1);
    let before = (machine::device_bytes(bench.dir), daemon.written());
    overwrite(&mut daemon, size, OVERWRITES);
    let after = (machine::device_bytes(bench.dir), daemon.written());
    daemon.note_memory();
    let client = (size * OVERWRITES) as f64;
    let (device, passed) = (after.0 - before.0, after.1 - before.1);
    let ratio = device as f64 / client;
    let text = format!("{ratio:.2}; {:.2} passed to write()", passed as f64 / client);
    let what = format!("device bytes per byte of 4K random overwrite, {} disk", human(size));
    let numbers = json!({ "ratio": ratio, "device_bytes": device, "passed_bytes": passed });
    vec![Finding::told(what, text, numbers).target("≤ 1.5", ratio <= 1.5)]
}

fn overwrite(daemon: &mut Daemon, size: u64, times: u64) {
    let load = Load::random("randwrite", 32);
    fio::run(daemon.files(), &daemon.uri("worn"), load, size, Length::Bytes(size * times));
    daemon.connect("worn").drive(1, [Ask::Flush]);
    daemon.wait_checkpointed();
    machine::settle(daemon.files());
}

/// The mapped blocks lie all over the disk, where a walk over its whole map would find them late.
pub fn trim(bench: Bench<'_>) -> Vec<Finding> {
    let (size, mapped) = (2u64 << 40, bench.options.disk);
    let mut daemon = Daemon::start(&bench.options.rowd, bench.dir);
    daemon.disk("huge", size);
    let count = mapped / u64::from(PIECE);
    let mut client = daemon.connect("huge");
    client.drive(16, (0..count).map(|at| Ask::Write(size / count * at, PIECE, at)));
    client.drive(1, [Ask::Flush]);
    machine::settle(daemon.files());
    let began = Instant::now();
    client.trim_all(size);
    let took = began.elapsed().as_secs_f64();
    let left = daemon.control.call(&DiskShow { disk: "huge".to_owned() }).mapped_bytes;
    assert_eq!(left, 0, "bytes are mapped after the whole disk was trimmed");
    daemon.note_memory();
    let what = format!("TRIM of a whole 2 TiB disk with {} mapped", human(mapped));
    let finding = Finding::told(what, format!("{took:.2} s"), json!({ "seconds": took }));
    vec![finding.target("≤ 1 s", took <= 1.0)]
}

pub fn empty(bench: Bench<'_>) -> Vec<Finding> {
    let mut daemon = Daemon::start(&bench.options.rowd, bench.dir);
    let sizes = [1u64 << 30, 1 << 40];
    for size in sizes {
        daemon.disk(&format!("empty-{size}"), size);
    }
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..EMPTY_SNAPSHOTS {
        for (size, times) in sizes.iter().zip(&mut times) {
            times.push(ms(daemon.snapshot(&format!("empty-{size}")).1));
        }
    }
    daemon.note_memory();
    let [small, large] = times.each_ref().map(|times| median(times));
    let ratio = large / small;
    let text = format!("{small:.2} ms and {large:.2} ms: {ratio:.2}");
    let numbers = json!({ "small_ms": times[0], "large_ms": times[1] });
    let what = "snapshot of an empty disk, 1 GiB and 1 TiB";
    vec![Finding::told(what, text, numbers).target(format!("≤ {FLAT}"), ratio <= FLAT)]
}
