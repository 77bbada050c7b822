//! A Llama that generates a token at a time, on plain slices and the products of prune-kernels.

use std::sync::Arc;

use ndarray::{Array2, ArrayView2, s};
use prune_candle::{LlamaConfig, RopeScaling};
use prune_core::TensorSource;
use prune_kernels::LinearOperator;

use crate::Failure;

/// A linear layer: any kernel, and a bias where the model has one.
pub(crate) struct Linear {
    weight: Arc<dyn LinearOperator>,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// `(tokens, in)` to `(tokens, out)`.
    fn forward(&self, x: ArrayView2<'_, f32>) -> prune_core::Result<Array2<f32>> {
        let mut y = Array2::zeros((x.nrows(), self.weight.rows()));
        match (x.nrows(), x.as_slice(), y.as_slice_mut()) {
            (1, Some(x), Some(y)) => self.weight.matvec_into(x, y)?,
            _ => self.weight.matmul_into(x.t(), y.view_mut().reversed_axes())?,
        }
        if let Some(bias) = &self.bias {
            y.outer_iter_mut().for_each(|mut y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
        Ok(y)
    }
}

struct Block {
    input_norm: Vec<f32>,
    post_norm: Vec<f32>,
    /// Queries, keys, values, output, gate, up, down.
    layers: [Linear; 7],
    /// Of queries and of keys, where the model has them.
    head_norms: Option<[Vec<f32>; 2]>,
}

/// The names of the layers of a block, in the order of [`Model::load`]'s callback.
pub(crate) const ROLES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

pub(crate) struct Model {
    config: LlamaConfig,
    blocks: Vec<Block>,
    norm: Vec<f32>,
    /// One row a token.
    embedding: Arc<Array2<f32>>,
    head: Arc<dyn LinearOperator>,
    frequencies: Vec<f32>,
}

/// Embedding and head.
pub(crate) struct Vocabulary {
    pub(crate) embedding: Arc<Array2<f32>>,
    pub(crate) head: Arc<dyn LinearOperator>,
}

/// Keys and values of the tokens so far, each block's `tokens x (key-value heads · head width)`.
#[derive(Default)]
pub(crate) struct Cache {
    blocks: Vec<[Vec<f32>; 2]>,
    tokens: usize,
}

impl Model {
    /// The model of `weights`, with what `kernel(layer name)` makes of each linear layer.
    pub(crate) fn load(
        config: &LlamaConfig,
        weights: &dyn TensorSource,
        vocabulary: Vocabulary,
        mut kernel: impl FnMut(&str) -> Result<Arc<dyn LinearOperator>, Failure>,
    ) -> Result<Self, Failure> {
        if config.rope_scaling != RopeScaling::None {
            return Err("this example does not scale rotary frequencies".into());
        }
        let mut blocks = Vec::new();
        for index in 0..config.num_hidden_layers {
            let name = |role: &str| format!("model.layers.{index}.{role}");
            let vector = |role: &str| weights.read_f32(&name(&format!("{role}.weight")));
            let mut layers = Vec::with_capacity(ROLES.len());
            for role in ROLES {
                let bias = name(&format!("{role}.bias"));
                let bias = match weights.info(&bias) {
                    Ok(_) => Some(weights.read_f32(&bias)?),
                    Err(_) => None,
                };
                layers.push(Linear { weight: kernel(&name(role))?, bias });
            }
            let layers = layers.try_into().map_err(|_| "a block has seven layers")?;
            let head_norms = match config.qk_norm {
                true => Some([vector("self_attn.q_norm")?, vector("self_attn.k_norm")?]),
                false => None,
            };
            blocks.push(Block {
                input_norm: vector("input_layernorm")?,
                post_norm: vector("post_attention_layernorm")?,
                layers,
                head_norms,
            });
        }
        let half = config.head_dim / 2;
        let frequencies =
            (0..half).map(|i| config.rope_theta.powf(-(i as f64) / half as f64) as f32).collect();
        Ok(Self {
            config: config.clone(),
            blocks,
            norm: weights.read_f32("model.norm.weight")?,
            embedding: vocabulary.embedding,
            head: vocabulary.head,
            frequencies,
        })
    }

    /// Bytes that the products of one token read: those of the blocks, and with the head.
    pub(crate) fn nbytes(&self) -> (usize, usize) {
        let layers = self.blocks.iter().flat_map(|b| &b.layers);
        let blocks = layers.map(|l| l.weight.nbytes()).sum();
        (blocks, blocks + self.head.nbytes())
    }

    /// The logits after each of `tokens`, which follow those in `cache`; the last alone where
    /// `last` says so.
    pub(crate) fn forward(
        &self,
        tokens: &[u32],
        cache: &mut Cache,
        last: bool,
    ) -> Result<Array2<f32>, Failure> {
        cache.blocks.resize_with(self.blocks.len(), Default::default);
        let mut x = Array2::zeros((tokens.len(), self.config.hidden_size));
        for (mut x, token) in x.outer_iter_mut().zip(tokens) {
            x.assign(&self.embedding.row(*token as usize));
        }
        for (block, cache_of_block) in self.blocks.iter().zip(&mut cache.blocks) {
            let [q, k, v, o, gate, up, down] = &block.layers;
            let normed = self.rms_norm(&x, &block.input_norm);
            let mut queries = q.forward(normed.view())?;
            let mut keys = k.forward(normed.view())?;
            let values = v.forward(normed.view())?;
            if let Some([of_q, of_k]) = &block.head_norms {
                self.norm_heads(&mut queries, of_q);
                self.norm_heads(&mut keys, of_k);
            }
            self.rotate(&mut queries, cache.tokens);
            self.rotate(&mut keys, cache.tokens);
            cache_of_block[0].extend(keys.iter());
            cache_of_block[1].extend(values.iter());
            let mixed = self.attend(&queries, cache_of_block, cache.tokens);
            x += &o.forward(mixed.view())?;
            let normed = self.rms_norm(&x, &block.post_norm);
            let mut inner = gate.forward(normed.view())?;
            inner.zip_mut_with(&up.forward(normed.view())?, |g, u| *g *= u / (1.0 + (-*g).exp()));
            x += &down.forward(inner.view())?;
        }
        cache.tokens += tokens.len();
        let from = if last { tokens.len().saturating_sub(1) } else { 0 };
        let x = self.rms_norm(&x.slice(s![from.., ..]).to_owned(), &self.norm);
        let head = Linear { weight: Arc::clone(&self.head), bias: None };
        Ok(head.forward(x.view())?)
    }

    fn rms_norm(&self, x: &Array2<f32>, weight: &[f32]) -> Array2<f32> {
        let mut y = x.clone();
        let eps = self.config.rms_norm_eps as f32;
        y.outer_iter_mut().filter_map(|y| y.into_slice()).for_each(|y| normalise(y, weight, eps));
        y
    }

    fn norm_heads(&self, x: &mut Array2<f32>, weight: &[f32]) {
        let eps = self.config.rms_norm_eps as f32;
        for row in x.outer_iter_mut().filter_map(|x| x.into_slice()) {
            row.chunks_exact_mut(self.config.head_dim).for_each(|x| normalise(x, weight, eps));
        }
    }

    /// Rotates the two halves of each head by the position of its token.
    fn rotate(&self, x: &mut Array2<f32>, first: usize) {
        let half = self.frequencies.len();
        for (t, row) in x.outer_iter_mut().filter_map(|x| x.into_slice()).enumerate() {
            let turns: Vec<(f32, f32)> =
                self.frequencies.iter().map(|f| ((first + t) as f32 * f).sin_cos()).collect();
            for head in row.chunks_exact_mut(2 * half) {
                let (low, high) = head.split_at_mut(half);
                for ((a, b), (sin, cos)) in low.iter_mut().zip(high).zip(&turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }

    /// Causal attention of `queries`, the first of which is token `first`.
    fn attend(&self, queries: &Array2<f32>, cache: &[Vec<f32>; 2], first: usize) -> Array2<f32> {
        let LlamaConfig { num_attention_heads, num_key_value_heads, head_dim, .. } = self.config;
        let width = num_key_value_heads * head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut out = Array2::zeros(queries.dim());
        let heads = queries.as_slice().unwrap_or_default().chunks_exact(head_dim);
        let outs = out.as_slice_mut().unwrap_or_default().chunks_exact_mut(head_dim);
        for (i, (q, out)) in heads.zip(outs).enumerate() {
            let (seen, head) = (first + i / num_attention_heads + 1, i % num_attention_heads);
            let kv = head / (num_attention_heads / num_key_value_heads) * head_dim;
            let mut weights: Vec<f32> = (0..seen)
                .map(|i| scale * dot(q, &cache[0][i * width + kv..][..head_dim]))
                .collect();
            let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            weights.iter_mut().for_each(|w| *w = (*w - largest).exp());
            let total = weights.iter().sum::<f32>();
            for (i, w) in weights.iter().enumerate() {
                let value = &cache[1][i * width + kv..][..head_dim];
                out.iter_mut().zip(value).for_each(|(o, v)| *o += w / total * v);
            }
        }
        out
    }
}

fn normalise(x: &mut [f32], weight: &[f32], eps: f32) {
    let mean = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    x.iter_mut().zip(weight).for_each(|(x, w)| *x *= scale * w);
}

/// Eight sums side by side.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, last_a) = a.as_chunks::<8>();
    let (b, last_b) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let last = last_a.iter().zip(last_b).map(|(a, b)| a * b).sum::<f32>();
    sums.iter().sum::<f32>() + last
}
