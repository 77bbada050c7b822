use std::sync::Arc;

use candle_core::Tensor;
use ndarray::ArrayView2;
use prune_quant::kv::{KvStore, Side};

use super::block::Norm;
use crate::linear::Linear;
use crate::ops::causal_softmax;
use crate::rope::Rotary;
use crate::tensors::to_array;
use crate::{Error, KvOrder, Result};

/// Queries handled together: scores take `heads · TILE · tokens` floats, and keys that no query of
/// a tile can see are never multiplied.
pub(super) const TILE: usize = 128;

pub(super) struct Attention {
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) q_norm: Option<Norm>,
    pub(super) k_norm: Option<Norm>,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) rotary: Arc<Rotary>,
    pub(super) sliding_window: Option<usize>,
}

/// Outputs of the three projections, a row a token, all heads side by side, before the rotary
/// embedding.
pub(super) struct Projected {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Projected {
    pub(super) fn rows(&self, first: usize, count: usize) -> Result<Self> {
        let rows = |x: &Tensor| x.narrow(0, first, count);
        Ok(Self { q: rows(&self.q)?, k: rows(&self.k)?, v: rows(&self.v)? })
    }
}

/// Queries `(heads, tokens, head_dim)`, keys and values `(kv_heads, tokens, head_dim)`, as they are
/// multiplied.
pub(crate) struct Heads {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

/// The keys and values that queries see: those of a cache, then those beside the queries.
struct Seen<'a> {
    cache: Option<(&'a dyn KvStore, usize)>,
    own: Option<&'a Heads>,
    /// Position of the first query.
    first: usize,
}

impl Attention {
    pub(super) fn project(&self, x: &Tensor) -> Result<Projected> {
        Ok(Projected { q: self.q.forward(x)?, k: self.k.forward(x)?, v: self.v.forward(x)? })
    }

    /// Heads of consecutive tokens, the first at position `first`.
    pub(super) fn heads(&self, rows: &Projected, first: usize) -> Result<Heads> {
        let tokens = rows.q.dim(0)?;
        let (cos, sin) = self.rotary.tables(first, tokens)?;
        let heads = |x: &Tensor, n: usize| -> Result<Tensor> {
            Ok(x.reshape((tokens, n, self.head_dim))?.transpose(0, 1)?.contiguous()?)
        };
        let rotate = |x: Tensor, norm: &Option<Norm>| -> Result<Tensor> {
            let x = match norm {
                Some(norm) => norm.forward(&x)?,
                None => x,
            };
            Ok(candle_nn::rotary_emb::rope(&x.unsqueeze(0)?, &cos, &sin)?.squeeze(0)?)
        };
        Ok(Heads {
            q: rotate(heads(&rows.q, self.heads)?, &self.q_norm)?,
            k: rotate(heads(&rows.k, self.kv_heads)?, &self.k_norm)?,
            v: heads(&rows.v, self.kv_heads)?,
        })
    }

    /// The heads' outputs side by side, `(tokens, heads · head_dim)`, of a whole sequence: the
    /// input of `o_proj`.
    pub(super) fn mix(&self, x: &Tensor) -> Result<Tensor> {
        let heads = self.heads(&self.project(x)?, 0)?;
        self.attend(&heads.q, &Seen { cache: None, own: Some(&heads), first: 0 })
    }

    /// The same for the next tokens of a sequence whose earlier ones are in layer `layer` of
    /// `cache`, which takes the new ones up.
    pub(super) fn mix_cached(
        &self,
        rows: &Projected,
        layer: usize,
        cache: &mut dyn KvStore,
        order: KvOrder,
    ) -> Result<Tensor> {
        let first = cache.tokens(layer);
        let heads = self.heads(rows, first)?;
        let width = self.kv_heads * self.head_dim;
        let tokens = rows.q.dim(0)?;
        let keys = to_array(heads.k.transpose(0, 1)?.contiguous()?.reshape((tokens, width))?)?;
        let values = to_array(rows.v.clone())?;
        if order == KvOrder::StoreFirst {
            cache.append(layer, keys.view(), values.view())?;
            let seen = Seen { cache: Some((&*cache, layer)), own: None, first };
            return self.attend(&heads.q, &seen);
        }
        let seen = Seen { cache: Some((&*cache, layer)), own: Some(&heads), first };
        let mixed = self.attend(&heads.q, &seen)?;
        cache.append(layer, keys.view(), values.view())?;
        Ok(mixed)
    }

    fn attend(&self, q: &Tensor, seen: &Seen<'_>) -> Result<Tensor> {
        let tokens = q.dim(1)?;
        // The query heads of one key/value head are stacked as rows of one product.
        let group = self.heads / self.kv_heads;
        let q = q.reshape((self.kv_heads, group, tokens, self.head_dim))?;
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let mut tiles = Vec::with_capacity(tokens.div_ceil(TILE));
        for first in (0..tokens).step_by(TILE) {
            let queries = TILE.min(tokens - first);
            let end = seen.first + first + queries;
            let tile = q.narrow(2, first, queries)?.contiguous()?;
            let tile = tile.reshape((self.kv_heads, group * queries, self.head_dim))?;
            let mut scores = Vec::new();
            self.blocks(seen, Side::Key, end, &mut |_, keys| {
                scores.push(tile.matmul(&keys.t()?)?);
                Ok(())
            })?;
            let scores =
                if scores.len() == 1 { scores.remove(0) } else { Tensor::cat(&scores, 2)? };
            let weights = causal_softmax(&scores, queries, seen.first + first, scale)?;
            let mut mixed: Option<Tensor> = None;
            self.blocks(seen, Side::Value, end, &mut |at, values| {
                let part = weights.narrow(2, at, values.dim(1)?)?.matmul(&values)?;
                mixed = Some(match mixed.take() {
                    Some(sum) => (sum + part)?,
                    None => part,
                });
                Ok(())
            })?;
            let Some(mixed) = mixed else { continue };
            let mixed = mixed.reshape((self.heads, queries, self.head_dim))?.transpose(0, 1)?;
            tiles.push(mixed.reshape((queries, self.heads * self.head_dim))?);
        }
        Ok(Tensor::cat(&tiles, 0)?)
    }

    /// Shows the keys or values of the positions before `end`, `(kv_heads, tokens, head_dim)`, a
    /// block at a time, each with the position of its first token.
    fn blocks(
        &self,
        seen: &Seen<'_>,
        side: Side,
        end: usize,
        show: &mut dyn FnMut(usize, Tensor) -> Result<()>,
    ) -> Result<()> {
        if let Some((cache, layer)) = seen.cache {
            cache.read(layer, side, &mut |first, block| {
                let tokens = block.nrows().min(end.saturating_sub(first));
                if tokens > 0 {
                    show(first, self.split_heads(block, tokens)?)?;
                }
                Ok(())
            })?;
        }
        if let Some(own) = seen.own {
            let all = match side {
                Side::Key => &own.k,
                Side::Value => &own.v,
            };
            show(seen.first, all.narrow(1, 0, end - seen.first)?)?;
        }
        Ok(())
    }

    fn split_heads(&self, block: ArrayView2<'_, f32>, tokens: usize) -> Result<Tensor> {
        let shape = (tokens, self.kv_heads, self.head_dim);
        let count = tokens * self.kv_heads * self.head_dim;
        let device = &candle_core::Device::Cpu;
        let block = match block.as_slice() {
            Some(values) => Tensor::from_slice(&values[..count], shape, device)?,
            None => Tensor::from_vec(block.iter().take(count).copied().collect(), shape, device)?,
        };
        Ok(block.transpose(0, 1)?)
    }

    pub(super) fn check_length(&self, tokens: usize) -> Result<()> {
        match self.sliding_window {
            Some(window) if tokens > window => Err(Error::Config {
                field: "sliding_window",
                found: window.to_string(),
                expected: format!("at least the {tokens} tokens of a sample"),
            }),
            _ => Ok(()),
        }
    }
}
