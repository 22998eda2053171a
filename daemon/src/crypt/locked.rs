//! Memory for keys: never swapped out, no part of a core dump, zeroed before it is given back.
//!
//! Invariants: what is in it is dropped, and its bytes zeroed, before the memory is unmapped; it lies in
//! pages of its own.
//! Absent: a guarantee where the system refuses to lock memory: that is told once, and the daemon goes on.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Once;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use std::num::NonZeroUsize;
use zeroize::Zeroize;

use crate::error::{Error, Result};

/// The unit in which memory is locked.
const PAGE: usize = 4096;

static REFUSED: Once = Once::new();

/// A value in locked memory.
pub(super) struct Locked<T> {
    value: NonNull<T>,
    bytes: usize,
}

// SAFETY: it owns its value, as a box does; the pointer is not shared with anybody.
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: as above; a shared reference gives shared references to the value only.
unsafe impl<T: Sync> Sync for Locked<T> {}

impl<T> Locked<T> {
    /// Puts what `make` returns into locked memory.
    pub(super) fn new(make: impl FnOnce() -> T) -> Result<Locked<T>> {
        const { assert!(align_of::<T>() <= PAGE, "a page is aligned enough") };
        let bytes = size_of::<T>().max(1).next_multiple_of(PAGE);
        let length = NonZeroUsize::new(bytes).expect("at least a page");
        let flags = MapFlags::MAP_PRIVATE;
        // SAFETY: new memory of our own; nothing that exists is touched.
        let memory = unsafe {
            mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags)
        }
        .map_err(|e| Error::io("memory for a key", &e.into()))?;
        // SAFETY: the range was mapped above, whole.
        let kept = unsafe { mlock(memory, bytes) };
        // SAFETY: as above; the advice changes no contents.
        let hidden = unsafe { madvise(memory, bytes, MmapAdvise::MADV_DONTDUMP) };
        if let Err(error) = kept.and(hidden) {
            REFUSED.call_once(|| {
                tracing::warn!(%error, "keys may be swapped out: raise LimitMEMLOCK= of the service");
            });
        }
        let value = memory.cast::<T>();
        // SAFETY: the memory is ours, large and aligned enough, and holds no value yet.
        unsafe { value.write(make()) };
        Ok(Locked { value, bytes })
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: a value was written when this was made, and is there until it is dropped.
        unsafe { self.value.as_ref() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        let memory = self.value.cast::<u8>();
        // SAFETY: the value is there, and nobody uses it after this; then its bytes are ours to write.
        unsafe {
            self.value.drop_in_place();
            std::slice::from_raw_parts_mut(memory.as_ptr(), self.bytes).zeroize();
        }
        // SAFETY: mapped in `new` with this length, and nothing points into it any more. Unmapping unlocks.
        if let Err(error) = unsafe { munmap(memory.cast(), self.bytes) } {
            tracing::error!(%error, "memory of a key was zeroed but not given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_kept_and_dropped() {
        let seen = std::sync::Arc::new(());
        let locked = Locked::new(|| (7u8, std::sync::Arc::clone(&seen))).unwrap();
        assert_eq!(locked.0, 7);
        assert_eq!(std::sync::Arc::strong_count(&seen), 2);
        drop(locked);
        assert_eq!(std::sync::Arc::strong_count(&seen), 1);
    }
}
