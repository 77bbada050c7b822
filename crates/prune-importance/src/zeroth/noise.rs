use prune_core::{Seed, SeedStream};

/// Random directions for tensors, computed when asked for and never stored.
pub trait Noise: Send + Sync {
    /// Fills `out` with elements `first..` of direction number `draw` for a tensor. The same
    /// arguments always give the same numbers, whatever part of a tensor is asked for.
    fn fill(&self, tensor: &str, draw: u64, first: usize, out: &mut [f64]);
}

/// What the elements of a direction are drawn from; all have mean 0 and variance 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Distribution {
    /// The normal distribution.
    #[default]
    Gaussian,
    /// +1 or −1 with equal chance.
    Rademacher,
}

/// Directions that follow from a seed, the name of the tensor and the number of the draw alone.
///
/// ```
/// use prune_core::Seed;
/// use prune_importance::{Distribution, Noise, SeededNoise};
///
/// let noise = SeededNoise::new(Seed::new(1), Distribution::Gaussian);
/// let (mut whole, mut part) = ([0.0; 5000], [0.0; 10]);
/// noise.fill("up_proj.weight", 0, 0, &mut whole);
/// noise.fill("up_proj.weight", 0, 2000, &mut part);
/// assert_eq!(part, whole[2000..2010]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeededNoise {
    seed: Seed,
    distribution: Distribution,
}

/// Elements that come from one stream; an even number, as normal numbers come in pairs.
const CHUNK: usize = 1024;

impl SeededNoise {
    /// Directions of this seed.
    pub fn new(seed: Seed, distribution: Distribution) -> Self {
        Self { seed, distribution }
    }
}

impl Noise for SeededNoise {
    fn fill(&self, tensor: &str, draw: u64, first: usize, out: &mut [f64]) {
        let (mut at, mut out) = (first, out);
        let mut buffer = [0.0; CHUNK];
        while !out.is_empty() {
            let (chunk, skip) = (at / CHUNK, at % CHUNK);
            let mut stream = self.seed.stream(&format!("{tensor}/{draw}/{chunk}"));
            match self.distribution {
                Distribution::Gaussian => gaussian(&mut stream, &mut buffer),
                Distribution::Rademacher => rademacher(&mut stream, &mut buffer),
            }
            let count = out.len().min(CHUNK - skip);
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(&buffer[skip..skip + count]);
            out = later;
            at += count;
        }
    }
}

/// Box and Muller's pairs.
fn gaussian(stream: &mut SeedStream, out: &mut [f64; CHUNK]) {
    for pair in out.chunks_exact_mut(2) {
        // 1 − u is never 0.
        let radius = (-2.0 * (1.0 - stream.uniform()).ln()).sqrt();
        let (sin, cos) = (2.0 * std::f64::consts::PI * stream.uniform()).sin_cos();
        (pair[0], pair[1]) = (radius * cos, radius * sin);
    }
}

fn rademacher(stream: &mut SeedStream, out: &mut [f64; CHUNK]) {
    for part in out.chunks_mut(64) {
        let bits = stream.next_u64();
        for (i, x) in part.iter_mut().enumerate() {
            *x = if bits >> i & 1 == 1 { 1.0 } else { -1.0 };
        }
    }
}
