//! Random choices that a seed repeats.
//!
//! Invariants: the same seed gives the same choices on every machine.
//! Absent: secrets; this is SplitMix64, good for tests only.

/// A stream of choices.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    #[must_use]
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// A stream of its own for a part of the work, the same for the same seed and name.
    #[must_use]
    pub fn fork(&mut self) -> Rng {
        Rng(self.bits())
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// A number from `low` to `high`, both possible.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of several.
    ///
    /// # Panics
    /// There is none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = self.below(from.len() as u64);
        &from[usize::try_from(at).expect("an index")]
    }
}

/// Scrambles 64 bits; each input has its own output.
#[must_use]
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The seed of a run: from `ROWD_TEST_SEED`, or from the clock. Printed with the command to replay.
///
/// # Panics
/// The variable is no number.
#[must_use]
pub fn seed(replay: &str) -> u64 {
    let seed = match std::env::var("ROWD_TEST_SEED") {
        Ok(text) => text.parse().expect("ROWD_TEST_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            u64::from(now.map_or(0, |since| since.subsec_nanos())) % 1_000_000
        }
    };
    println!("seed {seed}; replay: ROWD_TEST_SEED={seed} {replay}");
    seed
}
