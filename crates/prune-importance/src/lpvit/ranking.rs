use ndarray::{Array2, ArrayView2, s};
use prune_core::{Error, LayerId, Mask, Pattern, Result, check_finite};

/// What ranks the blocks of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BlockScore {
    /// The mean of `|w · g|` over the weights of the block.
    #[default]
    Taylor,
    /// The mean of `|w|`. The released code of LPViT computes its curves with
    /// [`BlockScore::Taylor`] but its final masks, by a misspelt argument, with this.
    Magnitude,
}

/// Which terms of the Taylor series make the loss of removed blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TaylorOrder {
    /// `Σ (w g)²`: never falls as blocks go.
    First,
    /// That and `½ (Σ w g)² + ½ λ Σ w²`, for the Hessian `g gᵀ + λ I`. May fall as more blocks go,
    /// where signed terms cancel.
    Second {
        /// λ.
        damping: f64,
    },
}

impl Default for TaylorOrder {
    /// The second order, λ = 1e-7 as released.
    fn default() -> Self {
        TaylorOrder::Second { damping: 1e-7 }
    }
}

/// The blocks of one weight in the order in which they go, and what goes with them.
///
/// LPViT (Xu et al. 2024, arXiv 2407.02068) takes `g` as the gradient of the mean square of the
/// network's output over calibration images: no labels. Any gradient of the weight's shape will do.
/// A convolution is a matrix of `out_channels x (in_channels · kernel_h · kernel_w)`. Blocks at the
/// right and lower edge are smaller where the block does not divide the weight; one that is larger
/// than the weight is the weight.
///
/// The lowest score goes first, of equals the lower index, and one order serves curve and mask.
///
/// ```
/// use ndarray::array;
/// use prune_core::LayerId;
/// use prune_importance::{BlockRanking, BlockScore, TaylorOrder};
///
/// let weight = array![[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]];
/// let gradient = array![[0.1, 0.1, 0.2, -0.2], [0.1, 0.1, 0.2, -0.2]];
/// let layer = LayerId::new("fc");
/// let ranking =
///     BlockRanking::new(&layer, weight.view(), gradient.view(), (2, 2), BlockScore::Taylor)?;
/// assert_eq!(ranking.order(), [0, 1]);
/// // Removing the first block: four weights of (w g)² = 0.01, and half the square of 0.4.
/// let losses = ranking.losses(TaylorOrder::Second { damping: 0.0 });
/// assert!((losses[1] - (0.04 + 0.08)).abs() < 1e-7);
/// // The signed sum of the second block is 0.
/// assert!((losses[2] - (0.04 + 4.0 * 0.16 + 0.08)).abs() < 1e-7);
/// assert_eq!(ranking.mask(1)?.kept_per_row(), [2, 2]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BlockRanking {
    rows: usize,
    cols: usize,
    block: (usize, usize),
    scores: Array2<f64>,
    /// Row-major block indices, the first to go first.
    order: Vec<usize>,
    /// Sums over each block, in row-major order.
    sums: Vec<Sums>,
}

/// Sums over the weights of one block.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Sums {
    weights: usize,
    /// `Σ w g`.
    signed: f64,
    /// `Σ (w g)²`.
    squared: f64,
    /// `Σ w²`.
    norm: f64,
}

impl BlockRanking {
    /// Ranks the blocks of `rows x cols` of a weight. O(weights + blocks · log blocks), sums in
    /// f64.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a block of 0 rows or columns; [`Error::Shape`] when the gradient
    /// has another shape; [`Error::NotFinite`] naming weight or gradient.
    pub fn new(
        layer: &LayerId,
        weight: ArrayView2<'_, f32>,
        gradient: ArrayView2<'_, f32>,
        block: (usize, usize),
        by: BlockScore,
    ) -> Result<Self> {
        Pattern::block(block.0, block.1)?;
        if gradient.dim() != weight.dim() {
            return Err(Error::Shape {
                what: format!("gradient of {}", layer.weight_name()),
                found: gradient.shape().to_vec(),
                expected: weight.shape().to_vec(),
            });
        }
        for (what, values) in [("", &weight), ("gradient of ", &gradient)] {
            let values = values.as_standard_layout();
            let what = format!("{what}{}", layer.weight_name());
            check_finite(&what, values.as_slice().unwrap_or_default())?;
        }
        let (rows, cols) = weight.dim();
        let grid = (rows.div_ceil(block.0), cols.div_ceil(block.1));
        let mut sums = Vec::with_capacity(grid.0 * grid.1);
        let scores = Array2::from_shape_fn(grid, |(i, j)| {
            let down = i * block.0..((i + 1) * block.0).min(rows);
            let along = j * block.1..((j + 1) * block.1).min(cols);
            let at = s![down, along];
            let (sum, score) = measure(weight.slice(at), gradient.slice(at), by);
            sums.push(sum);
            score / sum.weights as f64
        });
        let mut order: Vec<usize> = (0..sums.len()).collect();
        let flat: Vec<f64> = scores.iter().copied().collect();
        // Stable: of equals the lower index goes first.
        order.sort_by(|a, b| flat[*a].total_cmp(&flat[*b]));
        Ok(Self { rows, cols, block, scores, order, sums })
    }

    /// The score of every block.
    pub fn scores(&self) -> ArrayView2<'_, f64> {
        self.scores.view()
    }

    /// The number of blocks.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is no block: the weight is empty.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Row-major indices of the blocks, the first to go first.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// What the network's output loses when the first `k` blocks go, for every `k` from 0 to
    /// [`BlockRanking::len`]. O(blocks).
    pub fn losses(&self, order: TaylorOrder) -> Vec<f64> {
        let mut total = Sums::default();
        self.prefixes(|sums| {
            total.squared += sums.squared;
            total.signed += sums.signed;
            total.norm += sums.norm;
            total.squared + second_order(&total, order)
        })
    }

    /// How many weights go with the first `k` blocks, for every `k`: a multiple of the block, but
    /// for those at the edge.
    pub fn removed_weights(&self) -> Vec<usize> {
        let mut total = 0;
        self.prefixes(|sums| {
            total += sums.weights;
            total
        })
    }

    /// The mask without the first `removed` blocks. Holds [`Pattern::Block`] where the block divides
    /// the weight.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for more blocks than there are.
    pub fn mask(&self, removed: usize) -> Result<Mask> {
        if removed > self.len() {
            return Err(Error::OutOfRange {
                what: "blocks to remove".to_string(),
                found: removed.to_string(),
                expected: format!("at most all {} blocks", self.len()),
            });
        }
        let wide = self.cols.div_ceil(self.block.1);
        let mut gone = vec![false; self.len()];
        self.order[..removed].iter().for_each(|b| gone[*b] = true);
        Ok(Mask::from_fn(self.rows, self.cols, |r, c| {
            !gone[r / self.block.0 * wide + c / self.block.1]
        }))
    }

    /// The curve that the released code draws: the fraction to prune and the loss there, in `steps`
    /// equal steps from 0 to 1.
    ///
    /// Its first-order term is the *mean* of `(w g)²` over all weights where the second-order term
    /// is a sum, and it keeps `⌊(1 − α) n⌋` blocks in floating point, which drops one too many at
    /// some α. For comparisons; [`BlockRanking::losses`] is what to allocate by.
    pub fn released_curve(&self, steps: usize, order: TaylorOrder) -> Vec<(f64, f64)> {
        let weights = (self.rows * self.cols).max(1) as f64;
        let mut total = Sums::default();
        let losses = self.prefixes(|sums| {
            total.squared += sums.squared;
            total.signed += sums.signed;
            total.norm += sums.norm;
            total.squared / weights + second_order(&total, order)
        });
        (0..=steps)
            .map(|d| {
                let fraction = d as f64 / steps.max(1) as f64;
                let kept = ((1.0 - fraction) * self.len() as f64) as usize;
                (fraction, losses[self.len() - kept.min(self.len())])
            })
            .collect()
    }

    /// `value` after each block that goes, with its default before the first.
    fn prefixes<T: Default>(&self, mut value: impl FnMut(&Sums) -> T) -> Vec<T> {
        let after = self.order.iter().map(|b| value(&self.sums[*b]));
        std::iter::once(T::default()).chain(after).collect()
    }
}

fn second_order(total: &Sums, order: TaylorOrder) -> f64 {
    match order {
        TaylorOrder::First => 0.0,
        TaylorOrder::Second { damping } => {
            0.5 * total.signed * total.signed + 0.5 * damping * total.norm
        }
    }
}

/// The sums over one block, and the sum of what ranks it.
fn measure(
    weight: ArrayView2<'_, f32>,
    gradient: ArrayView2<'_, f32>,
    by: BlockScore,
) -> (Sums, f64) {
    let mut sums = Sums { weights: weight.len(), ..Sums::default() };
    let mut score = 0.0;
    for (w, g) in weight.iter().zip(gradient) {
        let w = f64::from(*w);
        let change = w * f64::from(*g);
        sums.signed += change;
        sums.squared += change * change;
        sums.norm += w * w;
        score += match by {
            BlockScore::Taylor => change.abs(),
            BlockScore::Magnitude => w.abs(),
        };
    }
    (sums, score)
}
