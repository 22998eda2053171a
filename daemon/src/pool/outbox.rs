//! Journal records on their way to the file, in direct mode, which writes whole pages.
//!
//! Invariants: what is taken out begins at the page of the first record that has not been taken before,
//! and repeats the earlier records of that page as they were, so that a torn write of the page cannot
//! hurt them; a page that was closed is never taken again, since the next record begins behind it.
//! Absent: the writing, and who waits for it (`journal.rs`).

use super::aligned::Pages;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE};

/// Bytes that a new outbox has room for. It grows if many threads bring large records at once.
const ROOM: usize = 512 << 10;

/// Records that are not in the file yet, behind those of their page that are.
#[derive(Debug)]
pub struct Outbox {
    pages: Pages,
    /// Position of the first byte in `pages`: a multiple of 4096.
    base: u64,
    /// Bytes of `pages` that count.
    len: usize,
    /// Position of the first record that is not in the file, if there is one.
    fresh: Option<u64>,
}

/// Pages to be written.
#[derive(Debug, Default)]
pub struct Parcel {
    pages: Pages,
    /// Position of the first page to write.
    pub position: u64,
    range: std::ops::Range<usize>,
}

impl Parcel {
    /// The pages, in one piece. Their positions may pass the end of the ring.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.pages[self.range.clone()]
    }
}

impl Outbox {
    /// An outbox whose first record will begin at `position`, a multiple of 4096.
    #[must_use]
    pub fn new(position: u64) -> Outbox {
        debug_assert!(position.is_multiple_of(BLOCK_SIZE), "an opening begins a page");
        Outbox { pages: Pages::zeroed(ROOM), base: position, len: 0, fresh: None }
    }

    /// Bytes that are not in the file.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.fresh.map_or(0, |fresh| self.base + self.len as u64 - fresh)
    }

    /// Puts a record at `position`, behind all others. What lies between becomes zeros.
    pub fn put(&mut self, position: u64, record: &[u8]) {
        let page = position / BLOCK_SIZE * BLOCK_SIZE;
        if self.fresh.is_none() && page != self.base {
            // The page begun before was closed, or the ring begins again: it stays as it is.
            debug_assert_eq!(page, position, "only a new page leaves the one before");
            (self.base, self.len) = (page, 0);
        }
        let at = usize::try_from(position - self.base).expect("records follow each other closely");
        let end = at + record.len();
        self.pages.grow(end);
        self.pages[self.len..at].fill(0);
        self.pages[at..end].copy_from_slice(record);
        self.len = end;
        self.fresh.get_or_insert(position);
    }

    /// Takes out the pages with fresh records, in exchange for an old parcel's memory. The last page, if
    /// it is not full, stays here too, for the records to come.
    pub fn take(&mut self, old: Parcel) -> Option<Parcel> {
        let fresh = self.fresh.take()?;
        let last = self.len / BLOCK_BYTES * BLOCK_BYTES;
        let end = self.len.next_multiple_of(BLOCK_BYTES);
        self.pages[self.len..end].fill(0);
        let mut next = old.pages;
        next.grow(ROOM);
        next[..self.len - last].copy_from_slice(&self.pages[last..self.len]);
        let pages = std::mem::replace(&mut self.pages, next);
        let first = usize::try_from(fresh - self.base).expect("within") / BLOCK_BYTES * BLOCK_BYTES;
        let parcel = Parcel { pages, position: self.base + first as u64, range: first..end };
        self.base += last as u64;
        self.len -= last;
        Some(parcel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_written_again_with_its_earlier_records_until_it_is_closed() {
        let mut outbox = Outbox::new(8192);
        outbox.put(8192, &[1; 100]);
        let one = outbox.take(Parcel::default()).unwrap();
        assert_eq!((one.position, one.bytes().len()), (8192, 4096));
        assert!(one.bytes()[..100].iter().all(|b| *b == 1) && one.bytes()[100] == 0);
        assert!(outbox.take(Parcel::default()).is_none(), "nothing is fresh");
        outbox.put(8292, &[2; 5000]);
        assert_eq!(outbox.waiting(), 5000);
        let two = outbox.take(one).unwrap();
        assert_eq!((two.position, two.bytes().len()), (8192, 8192));
        assert_eq!((two.bytes()[99], two.bytes()[100], two.bytes()[5099]), (1, 2, 2));
        assert_eq!(two.bytes()[5100], 0);
        // Closed: the next record begins a page, and the page before is left alone.
        outbox.put(16384, &[3; 10]);
        let three = outbox.take(two).unwrap();
        assert_eq!((three.position, three.bytes().len()), (16384, 4096));
        assert_eq!((three.bytes()[9], three.bytes()[10]), (3, 0));
    }

    #[test]
    fn records_before_and_behind_a_closed_page_leave_together() {
        let mut outbox = Outbox::new(0);
        outbox.put(0, &[1; 10]);
        outbox.put(4096, &[2; 10]);
        let parcel = outbox.take(Parcel::default()).unwrap();
        assert_eq!((parcel.position, parcel.bytes().len()), (0, 8192));
        assert_eq!((parcel.bytes()[9], parcel.bytes()[10], parcel.bytes()[4096]), (1, 0, 2));
        outbox.put(4106, &[3; 10]);
        let parcel = outbox.take(parcel).unwrap();
        assert_eq!(parcel.position, 4096);
        assert_eq!((parcel.bytes()[9], parcel.bytes()[10], parcel.bytes()[20]), (2, 3, 0));
    }

    #[test]
    fn memory_that_was_used_before_shows_nothing_of_it() {
        let mut outbox = Outbox::new(0);
        outbox.put(0, &[9; 40_000]);
        let full = outbox.take(Parcel::default()).unwrap();
        outbox.put(40_960, &[1; 10]);
        let small = outbox.take(full).unwrap();
        assert_eq!(small.position, 40_960);
        outbox.put(45_056, &[2; 10]);
        outbox.put(49_152, &[2; 10]);
        let parcel = outbox.take(small).unwrap();
        assert!(!parcel.bytes().contains(&9));
    }
}
