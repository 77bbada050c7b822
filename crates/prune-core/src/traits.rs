use ndarray::{Array2, ArrayView2, ArrayView4, ArrayViewMut2};

use crate::{
    Allocation, Budget, ColumnStats, Error, GramAccumulator, LayerId, LayerInfo, Pattern, Pruned,
    Result, Scope, SeedStream, TensorSource,
};

/// What calibration knows of one layer: what it saw at its input, or the gradient in its weight.
/// Empty for data-free work.
#[derive(Debug, Clone, Default)]
pub struct LayerStats {
    /// Per input channel.
    pub columns: Option<ColumnStats>,
    /// `X^T X`.
    pub gram: Option<GramAccumulator>,
    /// The gradient of the mean square of the network's outputs in the layer's weight, of the
    /// weight's shape.
    pub gradient: Option<Array2<f32>>,
}

impl LayerStats {
    /// The column statistics, or the error that says which layer lacks them.
    ///
    /// # Errors
    /// [`Error::NoStatistics`] when there are none or they saw no token.
    pub fn require_columns(&self, layer: &LayerId, method: &str) -> Result<&ColumnStats> {
        self.columns.as_ref().filter(|c| c.count() > 0).ok_or_else(|| Error::NoStatistics {
            layer: layer.to_string(),
            method: method.to_string(),
            needed: "column statistics",
        })
    }

    /// The Gram matrix, or the error that says which layer lacks it.
    ///
    /// # Errors
    /// [`Error::NoStatistics`] when there is none or it saw no token.
    pub fn require_gram(&self, layer: &LayerId, method: &str) -> Result<&GramAccumulator> {
        self.gram.as_ref().filter(|g| g.count() > 0).ok_or_else(|| Error::NoStatistics {
            layer: layer.to_string(),
            method: method.to_string(),
            needed: "a Gram matrix",
        })
    }

    /// The gradient, or the error that says which layer lacks it.
    ///
    /// # Errors
    /// [`Error::NoStatistics`] when there is none.
    pub fn require_gradient(&self, layer: &LayerId, method: &str) -> Result<&Array2<f32>> {
        self.gradient.as_ref().ok_or_else(|| Error::NoStatistics {
            layer: layer.to_string(),
            method: method.to_string(),
            needed: "a gradient",
        })
    }
}

/// The calibration statistics that a method reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Needs {
    /// None: data-free.
    #[default]
    Nothing,
    /// [`ColumnStats`].
    Columns,
    /// [`GramAccumulator`], and column statistics with it.
    Gram,
    /// [`LayerStats::gradient`], alone: of the whole network, where the others are of one layer's
    /// input.
    Gradient,
}

/// Writes the scores of one row: `(row, weights, scores)`, where `weights` is row `row` of the
/// layer and both slices are `in_features` long. The same row always gets the same scores.
pub type RowScorer = Box<dyn Fn(usize, &[f32], &mut [f32]) + Send + Sync>;

/// Scores every weight of a linear layer; higher is more important.
///
/// Scores are finite; only their order counts, except that blocks and columns of weights are
/// ranked by the sum of their scores. [`ScorePruner`](crate::ScorePruner) makes a pruner of any
/// scorer.
pub trait WeightScorer: Send + Sync {
    /// A short name: `wanda`.
    fn name(&self) -> &str;

    /// The statistics that [`WeightScorer::prepare`] reads.
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    /// The scope that the method's authors use for unstructured pruning.
    fn default_scope(&self) -> Scope {
        Scope::PerLayer
    }

    /// Called once a layer: takes what it needs of the weight and the statistics, and returns the
    /// function that scores the rows. Rows are scored on many threads, in any order, some of them
    /// more than once.
    ///
    /// # Errors
    /// [`Error::NoStatistics`], [`Error::Shape`].
    fn prepare(
        &self,
        target: &Target<'_>,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
    ) -> Result<RowScorer>;
}

/// What a pruner has to do to one layer.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// The layer, for errors and for the random stream.
    pub layer: &'a LayerId,
    /// The shape of what goes.
    pub pattern: Pattern,
    /// What competes with what.
    pub scope: Scope,
    /// How many weights go; exact. For N:M it must be `(m - n) / m` of all weights.
    pub remove: usize,
    /// The layer's own random numbers.
    pub stream: SeedStream,
}

/// Removes weights of one layer in place; may change those that stay.
pub trait Pruner: Send + Sync {
    /// A short name: `wanda`.
    fn name(&self) -> &str;

    /// The statistics that [`Pruner::prune`] reads.
    fn needs(&self) -> Needs;

    /// The scope that the method's authors use for unstructured pruning.
    fn default_scope(&self) -> Scope {
        Scope::PerLayer
    }

    /// Bytes that [`Pruner::prune`] takes for a weight of `rows x cols` besides the weight itself
    /// and the statistics, for estimates.
    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        // A mask, the scores of a few rows and the histograms of a layer-wide selection.
        rows * cols / 8 + 64 * cols + (8 << 20)
    }

    /// Whether the pruner can do this pattern at this scope.
    ///
    /// # Errors
    /// [`Error::Unsupported`] saying what to use instead.
    fn supports(&self, pattern: Pattern, scope: Scope) -> Result<()>;

    /// Prunes `weight` (`out_features x in_features`) to `target` and returns the mask. Removed
    /// weights are `+0.0`. On error the weight is left as it was.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::NoStatistics`], [`Error::Shape`], [`Error::PatternShape`],
    /// [`Error::Unsupported`], [`Error::OutOfRange`].
    fn prune(
        &self,
        weight: ArrayViewMut2<'_, f32>,
        stats: &LayerStats,
        target: &Target<'_>,
    ) -> Result<Pruned>;
}

/// A layer and its score, as allocators take them.
#[derive(Debug, Clone)]
pub struct ScoredLayer {
    /// The layer.
    pub info: LayerInfo,
    /// Its score; the meaning is the allocator's. 0 where the allocator ignores scores.
    pub score: f64,
}

impl From<LayerInfo> for ScoredLayer {
    /// A layer of score 0, for allocators that ignore scores.
    fn from(info: LayerInfo) -> Self {
        Self { info, score: 0.0 }
    }
}

/// Divides one budget over layers.
pub trait Allocator: Send + Sync {
    /// What each layer is given: kept weights, bits, channels.
    type Share;

    /// A short name: `erk`.
    fn name(&self) -> &str;

    /// The share of each layer, in the order of `layers`; the budget is met exactly.
    ///
    /// # Errors
    /// [`Error::Infeasible`], [`Error::OutOfRange`], [`Error::NotFinite`] (naming the layer).
    fn allocate(&self, layers: &[ScoredLayer], budget: &Budget) -> Result<Allocation<Self::Share>>;
}

/// A scalar that depends on the weights, by forward passes alone: a calibration loss.
pub trait Objective {
    /// The value for these weights.
    ///
    /// # Errors
    /// Whatever reading the weights or running the model gives.
    fn loss(&mut self, weights: &dyn TensorSource) -> Result<f64>;
}

/// What a [`BlockModel`] is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ModelKind {
    /// Predicts the next token: a token sees those before it, and there is a [`Head`].
    #[default]
    Decoder,
    /// Makes hidden states of a text: every token sees every other, the text has its special
    /// tokens around it, and there is no [`Head`].
    Encoder,
}

/// A transformer that runs one block at a time, with the inputs of its linear layers visible.
///
/// Hidden states are `(tokens, width)` matrices of one sample, owned by the caller, so that it
/// decides where they live. Weights come from the [`TensorSource`] that each call is given: the
/// same model runs dense and pruned.
pub trait BlockModel: Send + Sync {
    /// Whether the model predicts tokens or makes hidden states of a text.
    fn kind(&self) -> ModelKind {
        ModelKind::Decoder
    }

    /// The linear layers of every block that can be observed, in checkpoint order.
    fn layers(&self) -> &[LayerInfo];

    /// The number of blocks.
    fn blocks(&self) -> usize;

    /// The number of token ids: valid ids are `0..vocab_size`.
    fn vocab_size(&self) -> usize;

    /// Width of the hidden states.
    fn width(&self) -> usize;

    /// Bytes of the weights of one block as [`BlockModel::load_block`] holds them, the largest
    /// block of the model, for estimates.
    fn block_bytes(&self) -> usize;

    /// Bytes that the forward pass of one sample of `tokens` tokens through a block takes besides
    /// the weights, for estimates.
    fn sample_bytes(&self, tokens: usize) -> usize;

    /// Whether some layers see only the tokens that the model sends to them, as the experts of a
    /// mixture do. Calibration then counts beforehand what each layer will see.
    fn is_routed(&self) -> bool {
        false
    }

    /// The hidden states that enter block 0.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a token id outside the vocabulary; [`Error::External`].
    fn embed(&self, weights: &dyn TensorSource, tokens: &[u32]) -> Result<Array2<f32>>;

    /// Block `index` with its weights in memory.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`], [`Error::Shape`], [`Error::NotFinite`], [`Error::External`].
    fn load_block(&self, weights: &dyn TensorSource, index: usize) -> Result<Box<dyn Block>>;

    /// What turns the last hidden states into logits, with its weights in memory.
    ///
    /// # Errors
    /// As [`BlockModel::load_block`]; [`Error::NoHead`] for a [`ModelKind::Encoder`].
    fn load_head(&self, weights: &dyn TensorSource) -> Result<Box<dyn Head>>;
}

/// Is shown the input of linear layers: the layers that share it, and the `(tokens, in_features)`
/// matrix.
pub type Observer<'a> = dyn FnMut(&[LayerId], ArrayView2<'_, f32>) -> Result<()> + 'a;

/// One block of a [`BlockModel`], loaded. Deterministic: the same bits for any number of threads.
pub trait Block: Send + Sync {
    /// Shows the input of every linear layer to `observer` without computing the block's output
    /// where that saves work.
    ///
    /// # Errors
    /// What the observer or the framework gives.
    fn observe(&self, hidden: ArrayView2<'_, f32>, observer: &mut Observer<'_>) -> Result<()>;

    /// The block's output, same shape as `hidden`.
    ///
    /// # Errors
    /// What the framework gives; [`Error::NotFinite`] when the output overflows.
    fn forward(&self, hidden: ArrayView2<'_, f32>) -> Result<Array2<f32>>;
}

/// The last norm and the output matrix of a [`BlockModel`], loaded.
pub trait Head: Send + Sync {
    /// Logits `(tokens, vocab_size)` of hidden states `(tokens, width)`.
    ///
    /// # Errors
    /// What the framework gives.
    fn logits(&self, hidden: ArrayView2<'_, f32>) -> Result<Array2<f32>>;
}

/// A network on images, with its weights in memory, whose output has a gradient in them.
pub trait ImageModel: Send + Sync {
    /// The layers whose gradients there are, in the order in which they run.
    fn layers(&self) -> &[LayerInfo];

    /// How often each weight of a layer is used for one image. Times the layer's weights, that is
    /// its number of multiplications.
    fn positions(&self, layer: &LayerInfo) -> usize;

    /// Channels, height and width of an image.
    fn image_shape(&self) -> [usize; 3];

    /// Bytes of all weights, for estimates.
    fn weight_bytes(&self) -> usize;

    /// Bytes that the gradients of a batch of `images` images take on the way, besides the weights
    /// and the gradients themselves, for estimates.
    fn batch_bytes(&self, images: usize) -> usize;

    /// The gradient of the mean square of the outputs in the weight of every layer, in the order of
    /// [`ImageModel::layers`], as matrices of `out_features x in_features`. Images are `(batch,
    /// channels, height, width)`, normalised as the model was trained. Deterministic: the same bits
    /// for any number of threads.
    ///
    /// # Errors
    /// [`Error::Shape`] for images of another shape; [`Error::External`].
    fn gradients(&self, images: ArrayView4<'_, f32>) -> Result<Vec<Array2<f32>>>;
}
