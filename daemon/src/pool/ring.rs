//! Several transfers at once: an io_uring for each thread that has more than one to make.
//!
//! Invariants: a call returns only when none of its transfers is in flight, whatever happened, for the
//! memory is the caller's; every transfer is whole at the end, or the call fails; a single transfer is a
//! plain system call, which costs no more and is over when a killed process is; where the system grants
//! no ring, the transfers are made one after the other, and the reason is logged once.
//! Absent: alignment (`direct.rs`), and rings shared by threads: nobody waits for another's device.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// Transfers of one thread in flight at a time.
const DEPTH: usize = 64;
/// The smallest unit of any device.
const SECTOR: usize = 512;

/// Why the system grants no ring, once it has refused one.
static REFUSED: OnceLock<String> = OnceLock::new();

thread_local! {
    static RING: RefCell<Option<IoUring>> = const { RefCell::new(None) };
}

/// One piece of I/O: an offset in the file, and whole blocks of memory.
#[derive(Debug)]
pub enum Transfer<'a> {
    Read(u64, &'a mut [u8]),
    Write(u64, &'a [u8]),
}

/// Makes all transfers, in no order.
///
/// # Errors
/// The device refuses one of them, or the file ends within it.
pub fn transfer(file: &File, list: &mut [Transfer<'_>]) -> io::Result<()> {
    if list.len() > 1 && REFUSED.get().is_none() {
        return RING.with_borrow_mut(|kept| match granted(kept) {
            Some(ring) => {
                list.chunks_mut(DEPTH).try_for_each(|some| side_by_side(ring, file, some))
            }
            None => one_by_one(file, list),
        });
    }
    one_by_one(file, list)
}

/// Asks the system for a ring, so that the first client does not have to find out.
pub fn probe() {
    RING.with_borrow_mut(|kept| granted(kept).is_some());
}

fn granted(kept: &mut Option<IoUring>) -> Option<&mut IoUring> {
    if kept.is_none() {
        let entries = u32::try_from(DEPTH).expect("a small number");
        match IoUring::new(entries) {
            Ok(ring) => *kept = Some(ring),
            Err(error) => {
                let reason = match error.raw_os_error() {
                    Some(libc::ENOSYS) => "the kernel has no io_uring".to_owned(),
                    Some(libc::EPERM | libc::EACCES) => {
                        "io_uring is not permitted (kernel.io_uring_disabled, seccomp)".to_owned()
                    }
                    _ => error.to_string(),
                };
                if REFUSED.set(reason.clone()).is_ok() {
                    tracing::warn!(reason, "no io_uring: direct I/O goes one transfer at a time");
                }
            }
        }
    }
    kept.as_mut()
}

fn one_by_one(file: &File, list: &mut [Transfer<'_>]) -> io::Result<()> {
    list.iter_mut().try_for_each(|one| rest(file, one, 0))
}

/// Makes what is left of a transfer after `done` bytes.
fn rest(file: &File, one: &mut Transfer<'_>, done: usize) -> io::Result<()> {
    let (offset, out) = match one {
        Transfer::Read(offset, out) => (*offset, out),
        Transfer::Write(offset, data) => {
            return file.write_all_at(&data[done..], *offset + done as u64);
        }
    };
    let mut done = done;
    while done < out.len() {
        // Direct reads end within a sector at the end of the file only, and cannot go on from there.
        if !done.is_multiple_of(SECTOR) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match file.read_at(&mut out[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => done += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn entry(file: &File, number: usize, one: &mut Transfer<'_>) -> squeue::Entry {
    let fd = types::Fd(file.as_raw_fd());
    let length = |bytes: usize| u32::try_from(bytes).expect("a transfer is below 4 GiB");
    let entry = match one {
        Transfer::Read(offset, out) => {
            opcode::Read::new(fd, out.as_mut_ptr(), length(out.len())).offset(*offset).build()
        }
        Transfer::Write(offset, data) => {
            opcode::Write::new(fd, data.as_ptr(), length(data.len())).offset(*offset).build()
        }
    };
    entry.user_data(number as u64)
}

/// Makes up to [`DEPTH`] transfers at the same time.
fn side_by_side(ring: &mut IoUring, file: &File, list: &mut [Transfer<'_>]) -> io::Result<()> {
    if let [one] = list {
        return rest(file, one, 0);
    }
    for (number, one) in list.iter_mut().enumerate() {
        let entry = entry(file, number, one);
        // SAFETY: the file and the memory outlive this call, and this call does not return before the
        // completion of each entry has been seen.
        let queued = unsafe { ring.submission().push(&entry) };
        assert!(queued.is_ok(), "the ring is empty between calls and has DEPTH entries");
    }
    let mut results = [0i32; DEPTH];
    wait_all(ring, list.len(), |done| {
        let number = usize::try_from(done.user_data()).expect("as submitted");
        results[number] = done.result();
    });
    for (one, result) in list.iter_mut().zip(results) {
        match usize::try_from(result) {
            // Short at most, as any system call: what is left is made here.
            Ok(done) => rest(file, one, done)?,
            Err(_) if [-libc::EAGAIN, -libc::EINTR].contains(&result) => rest(file, one, 0)?,
            Err(_) => return Err(io::Error::from_raw_os_error(-result)),
        }
    }
    Ok(())
}

fn wait_all(ring: &mut IoUring, count: usize, mut take: impl FnMut(cqueue::Entry)) {
    let mut left = count;
    while left > 0 {
        if let Err(error) = ring.submit_and_wait(1) {
            let again = [libc::EINTR, libc::EAGAIN, libc::EBUSY];
            if !error.raw_os_error().is_some_and(|number| again.contains(&number)) {
                // The kernel may still write to the memory, or read it: there is no way to go on.
                tracing::error!(%error, "io_uring cannot be waited for");
                std::process::abort();
            }
        }
        for done in ring.completion() {
            take(done);
            left -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_of_more_than_a_ring_all_arrive_at_their_places() {
        let file = tempfile::tempfile().unwrap();
        let blocks: Vec<Vec<u8>> = (0..150u8).map(|n| vec![n; 512]).collect();
        let place = |n: usize| (n as u64 * 7 % 150) * 512;
        let write = |(n, block): (usize, &'static [u8])| Transfer::Write(place(n), block);
        let data: &'static [Vec<u8>] = Vec::leak(blocks);
        let mut list: Vec<_> = data.iter().map(Vec::as_slice).enumerate().map(write).collect();
        transfer(&file, &mut list).unwrap();
        let mut found = vec![vec![0u8; 512]; 150];
        let read = |(n, out)| Transfer::Read(place(n), out);
        let mut list: Vec<_> =
            found.iter_mut().map(Vec::as_mut_slice).enumerate().map(read).collect();
        transfer(&file, &mut list).unwrap();
        assert_eq!(found, data);
        assert!(REFUSED.get().is_none(), "this machine has io_uring: {:?}", REFUSED.get());
    }

    #[test]
    fn a_read_beyond_the_end_fails_and_the_ring_serves_on() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let (mut one, mut two) = (vec![1u8; 4096], vec![1u8; 4096]);
        let mut list = [Transfer::Read(0, &mut one), Transfer::Read(4096, &mut two)];
        let error = transfer(&file, &mut list).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let mut list = [Transfer::Read(0, &mut one), Transfer::Read(0, &mut two)];
        transfer(&file, &mut list).unwrap();
        assert_eq!((one, two), (vec![0; 4096], vec![0; 4096]));
    }
}
