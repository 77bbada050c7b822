use ndarray::{ArrayView1, ArrayView2};
use prune_core::{Error, Result};

use crate::checks::{finite, same_shape};

/// How a block changes the hidden states that pass it, over calibration tokens: the cosine between
/// what enters and what leaves.
///
/// One accumulator gives ShortGPT's block influence and the layer input modification (LIM) of
/// layer-wise quantisation. Streaming and mergeable; sums are f64. A token of norm 0 on either side
/// counts as cosine 0.
///
/// ```
/// use ndarray::array;
/// use prune_importance::{HiddenChange, LimOver};
///
/// let mut change = HiddenChange::new();
/// let (before, after) = (array![[1.0, 0.0], [1.0, 1.0]], array![[0.0, 2.0], [3.0, 3.0]]);
/// change.update("block 0", before.view(), after.view())?;
/// // One token was turned by a right angle, the other only got longer.
/// assert!((change.block_influence()? - 0.5).abs() < 1e-12);
/// assert!((change.angular_distance()? - 0.25).abs() < 1e-12);
/// assert!((change.lim(LimOver::Tokens)? + 0.5).abs() < 1e-12);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct HiddenChange {
    tokens: u64,
    cosines: f64,
    angles: f64,
    dot: f64,
    before: f64,
    after: f64,
}

/// What the cosine of [`HiddenChange::lim`] is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LimOver {
    /// Every token, then the mean.
    #[default]
    Tokens,
    /// All hidden states as one vector.
    Everything,
}

/// Norms below which a vector has no direction.
const NO_DIRECTION: f64 = 1e-8;

impl HiddenChange {
    /// No tokens yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the hidden states `(tokens, width)` that enter and leave the block.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`], naming `what`; nothing is added then.
    pub fn update(
        &mut self,
        what: &str,
        before: ArrayView2<'_, f32>,
        after: ArrayView2<'_, f32>,
    ) -> Result<()> {
        same_shape(&format!("output of {what}"), before.shape(), after.shape())?;
        finite(&format!("input of {what}"), &before)?;
        finite(&format!("output of {what}"), &after)?;
        for (x, y) in before.outer_iter().zip(after.outer_iter()) {
            let (dot, xx, yy) = products(x, y);
            let cosine = cosine(dot, xx, yy);
            self.tokens += 1;
            self.cosines += cosine;
            self.angles += cosine.acos() / std::f64::consts::PI;
            self.dot += dot;
            self.before += xx;
            self.after += yy;
        }
        Ok(())
    }

    /// Adds what `other` saw.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.cosines += other.cosines;
        self.angles += other.angles;
        self.dot += other.dot;
        self.before += other.before;
        self.after += other.after;
    }

    /// Tokens seen.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The mean cosine between input and output of a token, −1 to 1.
    ///
    /// # Errors
    /// [`Error::NoStatistics`] when no token was seen.
    pub fn mean_cosine(&self) -> Result<f64> {
        self.mean(self.cosines)
    }

    /// ShortGPT's block influence, one minus the mean cosine, 0 to 2: the blocks of lowest
    /// influence can go first.
    ///
    /// # Errors
    /// [`Error::NoStatistics`].
    ///
    /// Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You
    /// Expect", 2024.
    pub fn block_influence(&self) -> Result<f64> {
        Ok(1.0 - self.mean_cosine()?)
    }

    /// The influence summed over tokens, as some code reports it.
    pub fn total_influence(&self) -> f64 {
        self.tokens as f64 - self.cosines
    }

    /// The mean angle between input and output, over π: 0 to 1.
    ///
    /// # Errors
    /// [`Error::NoStatistics`].
    ///
    /// Source: Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", 2024.
    pub fn angular_distance(&self) -> Result<f64> {
        self.mean(self.angles)
    }

    /// Layer input modification, the negative cosine, −1 to 1: a block of higher LIM changes its
    /// input more and deserves more bits. The paper does not say over what the cosine is taken; the
    /// two choices rank blocks differently.
    ///
    /// # Errors
    /// [`Error::NoStatistics`].
    ///
    /// Source: Dumitru et al., "Layer-Wise Quantization: A Pragmatic and Effective Method for
    /// Quantizing LLMs Beyond Integer Bit-Levels", 2024.
    pub fn lim(&self, over: LimOver) -> Result<f64> {
        let mean = self.mean_cosine()?;
        Ok(-match over {
            LimOver::Tokens => mean,
            LimOver::Everything => cosine(self.dot, self.before, self.after),
        })
    }

    fn mean(&self, sum: f64) -> Result<f64> {
        if self.tokens == 0 {
            return Err(Error::NoStatistics {
                layer: "block".to_string(),
                method: "a comparison of hidden states".to_string(),
                needed: "hidden states before and after",
            });
        }
        Ok(sum / self.tokens as f64)
    }
}

/// `x·y`, `x·x` and `y·y`.
fn products(x: ArrayView1<'_, f32>, y: ArrayView1<'_, f32>) -> (f64, f64, f64) {
    x.iter().zip(y).fold((0.0, 0.0, 0.0), |(dot, xx, yy), (x, y)| {
        let (x, y) = (f64::from(*x), f64::from(*y));
        (dot + x * y, xx + x * x, yy + y * y)
    })
}

fn cosine(dot: f64, xx: f64, yy: f64) -> f64 {
    let (x, y) = (xx.sqrt(), yy.sqrt());
    if x < NO_DIRECTION || y < NO_DIRECTION {
        return 0.0;
    }
    (dot / x / y).clamp(-1.0, 1.0)
}
