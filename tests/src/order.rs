//! The order of writes on several disks, seen in groups that are made under load.
//!
//! Each writer writes a rising number to its block of one disk after the other, each when the one before was
//! answered. So in every exact cut the numbers of a writer fall by at most one along the disks.
//!
//! Invariants: every group is looked at, then deleted; one that is not such a cut fails.
//! Absent: crashes (`crash`).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rowd_proto::{GroupCreate, GroupDelete};
use serde::Serialize;

use crate::client::Client;
use crate::crash::control::Control;
use crate::process::Daemon;

const BLOCK: usize = 4096;
/// From one writer's block to the next one's.
const PLACE: u64 = 1 << 20;

/// When to stop, and how much to do at a time.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub disks: usize,
    pub writers: u64,
    pub groups: u64,
    pub time: Duration,
}

/// What a run has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    pub disks: usize,
    pub writers: u64,
    pub groups: u64,
    /// Answered writes.
    pub writes: u64,
    /// Groups, counted once for each writer, that show more than the one before.
    pub moved: u64,
    /// Groups, counted so too, that fall between two disks of a writer's round.
    pub between: u64,
    pub seconds: u64,
}

/// Makes groups under load until one of the limits of the shape is reached.
///
/// # Panics
/// A group is not an exact cut.
#[must_use]
pub fn run(daemon: &Daemon, shape: Shape) -> Totals {
    let disks: Vec<String> = (0..shape.disks).map(|number| format!("order{number}")).collect();
    for disk in &disks {
        daemon.ctl(&["disk", "create", disk, "--size", "1GiB"]);
    }
    let (socket, stop) = (daemon.nbd_socket(), AtomicBool::new(false));
    thread::scope(|scope| {
        let (disks, socket, stop) = (&disks, &socket, &stop);
        let start = |writer| scope.spawn(move || write(socket, disks, writer * PLACE, stop));
        let writers: Vec<_> = (0..shape.writers).map(start).collect();
        // Also when a group is not what it should be: the writers would go on for ever.
        let ended = Stop(stop);
        let mut totals = look(daemon, disks, shape);
        drop(ended);
        totals.writes = writers.into_iter().map(|writer| writer.join().expect("a writer")).sum();
        totals
    })
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn write(socket: &Path, disks: &[String], at: u64, stop: &AtomicBool) -> u64 {
    let mut clients: Vec<Client> = disks.iter().map(|disk| Client::connect(socket, disk)).collect();
    let (mut number, mut writes) = (0u64, 0);
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let mut block = [0; BLOCK];
        block[..8].copy_from_slice(&number.to_le_bytes());
        for client in &mut clients {
            client.write(at, &block);
            writes += 1;
        }
    }
    writes
}

fn look(daemon: &Daemon, disks: &[String], shape: Shape) -> Totals {
    let mut control = Control::connect(&daemon.control_socket()).expect("the daemon answers");
    let mut totals = Totals { disks: shape.disks, writers: shape.writers, ..Totals::default() };
    let mut before = vec![0; usize::try_from(shape.writers).expect("a few writers")];
    let began = Instant::now();
    while totals.groups < shape.groups && began.elapsed() < shape.time {
        let params = GroupCreate { disks: disks.to_vec(), ..GroupCreate::default() };
        let group = control.call(&params).expect("a group").group;
        let mut exports: Vec<Client> = disks
            .iter()
            .map(|disk| Client::connect(&daemon.nbd_socket(), &format!("{disk}@{}", group.name)))
            .collect();
        for (writer, before) in before.iter_mut().enumerate() {
            let at = writer as u64 * PLACE;
            let seen: Vec<u64> = exports.iter_mut().map(|export| number(export, at)).collect();
            let (first, last) = (seen[0], seen[seen.len() - 1]);
            let falls = seen.windows(2).all(|pair| pair[0] >= pair[1]);
            assert!(falls && first - last <= 1, "{} at {at}: {seen:?}", group.name);
            assert!(first >= *before, "{} at {at} is older than the one before", group.name);
            totals.moved += u64::from(first > *before);
            totals.between += u64::from(first > last);
            *before = first;
        }
        exports.into_iter().for_each(Client::disconnect);
        control.call(&GroupDelete { group: group.id, force: true }).expect("a deleted group");
        totals.groups += 1;
    }
    totals.seconds = began.elapsed().as_secs();
    totals
}

fn number(export: &mut Client, at: u64) -> u64 {
    let data = export.read(at, 4096);
    u64::from_le_bytes(data[..8].try_into().expect("8 bytes"))
}
