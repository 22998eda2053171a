//! The allocator by itself: what is leased when, and what comes back.
//!
//! Absent: the pool around it (`pool/mod.rs`).

use super::*;

fn allocator() -> Allocator {
    let geometry = Geometry { start: 100, segment_blocks: 64, max_segments: 2 };
    let mut allocator = Allocator::new(geometry);
    allocator.grown(1);
    allocator
}

fn leased(allocator: &mut Allocator, want: u32) -> Run {
    match allocator.lease(want) {
        Lease::Run { run, .. } => run,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_freed_block_waits_for_its_record_and_for_readers() {
    let mut a = allocator();
    let run = leased(&mut a, 64);
    a.apply(Seq(1), 0, &[run], &[]).unwrap();
    a.apply(Seq(2), 5, &[], &[run.start]).unwrap();
    a.set_max_segments(1);
    assert_eq!(a.lease(1), Lease::Full);
    a.reuse(Seq(1), 6);
    assert_eq!(a.lease(1), Lease::Full, "the record is not durable yet");
    a.reuse(Seq(2), 5);
    assert_eq!(a.lease(1), Lease::Full, "a reader is still in era 5");
    a.reuse(Seq(2), 6);
    assert_eq!(leased(&mut a, 1), Run { start: run.start, len: 1 });
}

#[test]
fn a_young_freed_block_waits_until_its_record_is_written() {
    let mut a = allocator();
    a.grown(1);
    a.capture(Seq(0));
    let run = leased(&mut a, 4);
    a.apply(Seq(1), 5, &[run], &[]).unwrap();
    a.apply(Seq(2), 5, &[], &[run.start]).unwrap();
    assert!(a.has_young_pending());
    a.reuse_young(Seq(1), 6);
    assert_eq!(a.pending_blocks(), 1, "a killed process would keep record 1 without record 2");
    a.reuse_young(Seq(2), 6);
    assert_eq!(a.pending_blocks(), 0);
}

#[test]
fn writers_go_back_first_to_what_was_freed_since_the_last_sync() {
    let mut a = allocator();
    a.grown(2);
    a.capture(Seq(0));
    let run = leased(&mut a, 64);
    a.apply(Seq(1), 0, &[run], &[]).unwrap();
    let freed: Vec<Pbn> = (0..48).map(|block| Pbn(run.start.0 + block)).collect();
    a.apply(Seq(2), 0, &[], &freed).unwrap();
    assert_eq!(a.window(), Window { written: 64, replaced: 48 });
    a.reuse_young(Seq(2), 1);
    assert_eq!(leased(&mut a, 48), Run { start: run.start, len: 48 }, "the other is all free");
}

#[test]
fn growth_is_asked_for_before_fragments_are_used() {
    let mut a = allocator();
    let run = leased(&mut a, 60);
    a.apply(Seq(1), 0, &[run], &[]).unwrap();
    assert_eq!(leased(&mut a, 8).len, 4);
    assert_eq!(a.lease(8), Lease::Grow(2));
    a.grown(2);
    assert_eq!(leased(&mut a, 8), Run { start: Pbn(164), len: 8 });
}

#[test]
fn a_double_free_is_noticed() {
    let mut a = allocator();
    let run = leased(&mut a, 1);
    a.apply(Seq(1), 0, &[run], &[]).unwrap();
    assert!(a.apply(Seq(2), 0, &[], &[run.start, run.start]).is_err());
}

#[test]
fn kept_bitmaps_bring_the_same_state_back() {
    let mut a = allocator();
    let run = leased(&mut a, 10);
    a.apply(Seq(1), 0, &[run], &[Pbn(run.start.0 + 3)]).unwrap();
    let dirty = a.take_dirty();
    let mut b = Allocator::new(a.geometry());
    for (segment, words) in &dirty {
        b.load(*segment, words).unwrap();
    }
    assert_eq!(b.used_blocks(), 9);
    assert!(!b.is_used(Pbn(run.start.0 + 3)) && b.is_used(run.start));
    assert!(b.take_dirty().is_empty());
}
