//! A bitmap that grows, with searches by word.
//!
//! Invariants: bits beyond the length do not exist; ranges lie within it.
//! Absent: meaning of the bits.

/// Bits numbered from 0.
#[derive(Debug, Default)]
pub struct Bitmap {
    words: Vec<u64>,
}

impl Bitmap {
    /// Makes the bitmap at least `bits` long; new bits are 0. `bits` is a multiple of 64.
    pub fn grow(&mut self, bits: u64) {
        let words = index(bits.div_ceil(64));
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
    }

    /// Whether bit `at` is set; bits that do not exist are not.
    #[must_use]
    pub fn get(&self, at: u64) -> bool {
        self.words.get(index(at / 64)).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    /// Sets `len` bits from `at`.
    pub fn set_range(&mut self, at: u64, len: u64) {
        self.for_masks(at, len, |word, mask| *word |= mask);
    }

    /// Clears `len` bits from `at`.
    pub fn clear_range(&mut self, at: u64, len: u64) {
        self.for_masks(at, len, |word, mask| *word &= !mask);
    }

    /// Puts whole words in place of the bits from `at` on, a multiple of 64.
    pub fn load(&mut self, at: u64, words: &[u64]) {
        self.words[index(at / 64)..index(at / 64) + words.len()].copy_from_slice(words);
    }

    /// The words that hold `len` bits from `at`; both multiples of 64.
    #[must_use]
    pub fn words(&self, at: u64, len: u64) -> &[u64] {
        &self.words[index(at / 64)..index((at + len) / 64)]
    }

    /// The first run of at least `shortest` set bits in `from..end`, cut at `longest`.
    #[must_use]
    pub fn next_run(&self, from: u64, end: u64, longest: u32, shortest: u32) -> Option<(u64, u32)> {
        let mut at = from;
        loop {
            at = self.next_set(at, end)?;
            let stop = self.next_clear(at, end.min(at + u64::from(longest)));
            let len = u32::try_from(stop - at).expect("cut at `longest`");
            if len >= shortest {
                return Some((at, len));
            }
            at = stop;
        }
    }

    fn next_set(&self, from: u64, end: u64) -> Option<u64> {
        let mut at = from;
        while at < end {
            let word = self.words[index(at / 64)] >> (at % 64);
            if word != 0 {
                let found = at + u64::from(word.trailing_zeros());
                return (found < end).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    fn next_clear(&self, from: u64, end: u64) -> u64 {
        let mut at = from;
        while at < end {
            let word = !self.words[index(at / 64)] >> (at % 64);
            if word != 0 {
                return (at + u64::from(word.trailing_zeros())).min(end);
            }
            at = (at / 64 + 1) * 64;
        }
        end
    }

    fn for_masks(&mut self, at: u64, len: u64, mut change: impl FnMut(&mut u64, u64)) {
        let (mut at, end) = (at, at + len);
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - bits)) << (at % 64);
            change(&mut self.words[index(at / 64)], mask);
            at += bits;
        }
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("a bitmap fits in memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_and_runs_agree_with_a_vector_of_bools(
            changes in proptest::collection::vec((0u64..256, 0u64..90, any::<bool>()), 0..20),
            longest in 1u32..80, shortest in 1u32..6,
        ) {
            let mut bitmap = Bitmap::default();
            bitmap.grow(256);
            let mut model = vec![false; 256];
            for (at, len, set) in changes {
                let len = len.min(256 - at);
                if set { bitmap.set_range(at, len) } else { bitmap.clear_range(at, len) }
                model[index(at)..index(at + len)].fill(set);
            }
            let shortest = shortest.min(longest);
            let mut at = 0;
            let mut expected = None;
            while at < 256 {
                let len = model[at..].iter().take(longest as usize).take_while(|b| **b).count();
                if len >= shortest as usize { expected = Some((at as u64, u32::try_from(len).unwrap())); break; }
                at += len.max(1);
            }
            prop_assert_eq!(bitmap.next_run(0, 256, longest, shortest), expected);
        }
    }
}
