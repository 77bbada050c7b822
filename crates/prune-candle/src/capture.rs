use ndarray::{Array2, Array3};
use prune_core::{BlockModel, TensorSource};
use prune_quant::kv::{AttentionSample, ErrorProfiler, KvErrors};

use crate::llama::LlamaBlock;
use crate::{LlamaModel, Result};

/// Queries, keys and values of one layer over one window, after the rotary embedding.
#[derive(Debug, Clone)]
pub struct AttentionCapture {
    /// The layer.
    pub layer: usize,
    /// The index of the window.
    pub window: usize,
    /// `(heads, tokens, head_dim)`.
    pub queries: Array3<f32>,
    /// `(kv_heads, tokens, head_dim)`.
    pub keys: Array3<f32>,
    /// `(kv_heads, tokens, head_dim)`.
    pub values: Array3<f32>,
}

impl LlamaModel {
    /// Shows the queries, keys and values of every layer over every window, in full precision: all
    /// windows of layer 0, then of layer 1 and so on. One block's weights and the hidden states of
    /// all windows are in memory.
    ///
    /// # Errors
    /// [`crate::Error::Core`] for a token id outside the vocabulary, a tensor that cannot be read,
    /// and what `show` gives.
    pub fn capture_attention(
        &self,
        weights: &dyn TensorSource,
        windows: &[Vec<u32>],
        show: &mut dyn FnMut(AttentionCapture) -> Result<()>,
    ) -> Result<()> {
        let embedded = windows.iter().map(|tokens| Ok(self.embed(weights, tokens)?));
        let mut hidden: Vec<Array2<f32>> = embedded.collect::<Result<_>>()?;
        for layer in 0..self.blocks() {
            let block = LlamaBlock::load(self, weights, layer)?;
            for (window, hidden) in hidden.iter_mut().enumerate() {
                let [queries, keys, values] = block.attention_heads(hidden.view())?;
                show(AttentionCapture { layer, window, queries, keys, values })?;
                if layer + 1 < self.blocks() {
                    *hidden = block.output(hidden.view())?;
                }
            }
        }
        Ok(())
    }

    /// KVTuner's errors of each layer over the windows, every `stride`-th query of them: what
    /// [`prune_quant::kv::SearchSpace::new`] takes.
    ///
    /// ```no_run
    /// # use prune_candle::LlamaModel;
    /// # use prune_checkpoint::Checkpoint;
    /// use prune_quant::kv::{Clustering, ErrorProfiler, KvScheme, SearchSpace};
    /// # let checkpoint = Checkpoint::open("model".as_ref())?;
    /// # let model = LlamaModel::new(&checkpoint.config()?, &checkpoint)?;
    /// # let windows: Vec<Vec<u32>> = vec![vec![1; 256]];
    /// let scheme = KvScheme::kivi();
    /// let profiler = ErrorProfiler::new(model.config().num_hidden_layers, scheme)?;
    /// let errors = model.kv_errors(&checkpoint, &windows, profiler, 4)?;
    /// let space = SearchSpace::new(&errors, scheme, &Clustering::default())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`LlamaModel::capture_attention`]; those of [`ErrorProfiler::add`] and
    /// [`ErrorProfiler::errors`].
    pub fn kv_errors(
        &self,
        weights: &dyn TensorSource,
        windows: &[Vec<u32>],
        mut profiler: ErrorProfiler,
        stride: usize,
    ) -> Result<Vec<KvErrors>> {
        self.capture_attention(weights, windows, &mut |capture| {
            let AttentionCapture { layer, queries, keys, values, .. } = capture;
            let sample = AttentionSample::causal(queries.view(), keys.view(), values.view())?;
            Ok(profiler.add(layer, &sample.every(stride)?)?)
        })?;
        Ok(profiler.errors()?)
    }
}
