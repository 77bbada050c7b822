/// A seed from which every named thing gets its own stream of random numbers.
///
/// Numbers depend on the seed and the name alone, never on the order in which layers are visited
/// or on threads. The generator is SplitMix64 (Steele, Lea, Flood 2014) started at a hash of the
/// name (FNV-1a, finalised): small, documented, the same everywhere, and not for cryptography.
///
/// ```
/// use prune_core::Seed;
/// let mut a = Seed::new(7).stream("model.layers.0.mlp.up_proj");
/// let mut b = Seed::new(7).stream("model.layers.0.mlp.up_proj");
/// let mut c = Seed::new(7).stream("model.layers.1.mlp.up_proj");
/// let first = a.next_u64();
/// assert_eq!(first, b.next_u64());
/// assert_ne!(first, c.next_u64());
/// assert!(a.below(10) < 10);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seed(u64);

impl Seed {
    /// A seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The number it was made from.
    pub fn value(self) -> u64 {
        self.0
    }

    /// The stream that belongs to `name`.
    pub fn stream(self, name: &str) -> SeedStream {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for b in name.bytes() {
            hash = (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let mut stream = SeedStream { state: finalise(hash ^ finalise(self.0)) };
        stream.next_u64();
        stream
    }
}

/// Pseudo-random numbers of one name; see [`Seed`].
#[derive(Debug, Clone)]
pub struct SeedStream {
    state: u64,
}

impl SeedStream {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        finalise(self.state)
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An unbiased integer in `0..bound` (0 for `bound` 0), by Lemire's multiplication with
    /// rejection.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(bound);
            if wide as u64 >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }
}

fn finalise(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_matches_the_published_generator() {
        // First outputs of SplitMix64 with state 1234567, from the reference C program.
        let mut s = SeedStream { state: 1_234_567 };
        assert_eq!(s.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(s.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let mut s = Seed::new(1).stream("x");
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[s.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|c| (9_600..10_400).contains(c)), "{counts:?}");
    }
}
