use ndarray::ArrayView2;
use prune_core::{
    Error, LayerStats, Mask, Pattern, QuantTarget, Quantized, Result, Scope, Target, select,
};

use super::quantizer::Run;
use super::solver::Keep;
use super::{ColumnOrder, Gptq};
use crate::grid::Input;

/// Prunes and quantises in one pass: SparseGPT with rounding (Frantar, Alistarh 2023,
/// arXiv 2301.00774, section 3.4).
///
/// Where [`Gptq`] rounds every weight, this one removes some: those of least `w² / U_cc²`, chosen
/// when their block of columns is reached and, for N:M, when their group is. The weights that
/// follow make up for what is removed and for what is rounded alike, which two passes cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SparseGptq {
    /// How the weights that stay are rounded. The order of the columns has to be natural for N:M.
    pub gptq: Gptq,
}

/// What [`SparseGptq`] made of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct SparseQuantized {
    /// The codes; those of removed weights stand for exactly 0.
    pub quantized: Quantized,
    /// The weights that were kept.
    pub mask: Mask,
}

impl SparseGptq {
    /// The codes of `weight` (`out_features x in_features`) with `prune.remove` weights removed.
    ///
    /// `quant.keep` must be `None`. The count is met exactly: each block of columns removes its
    /// share of what the columns so far have to, which is how SparseGPT spreads it.
    ///
    /// # Errors
    /// As [`Gptq`](prune_core::Quantizer::quantize) and [`select`]; [`Error::Unsupported`] for
    /// whole columns, blocks and global scope, and for N:M in the order of activations.
    ///
    /// ```
    /// use ndarray::Array2;
    /// use prune_core::{
    ///     GramAccumulator, LayerId, LayerStats, Pattern, QuantTarget, Scope, Seed, Target,
    /// };
    /// use prune_quant::SparseGptq;
    ///
    /// let value = |(i, j): (usize, usize)| ((7 * i + 3 * j) as f32).sin();
    /// let mut gram = GramAccumulator::new(8);
    /// gram.update("x", Array2::from_shape_fn((16, 8), value).view())?;
    /// let stats = LayerStats { gram: Some(gram), ..LayerStats::default() };
    /// let layer = LayerId::new("up_proj");
    /// let quant = QuantTarget { layer: &layer, scheme: "int4 g4".parse()?, keep: None };
    /// let prune = Target {
    ///     layer: &layer,
    ///     pattern: Pattern::NM { n: 2, m: 4 },
    ///     scope: Scope::PerRow,
    ///     remove: 16,
    ///     stream: Seed::new(0).stream("up_proj"),
    /// };
    /// let weight = Array2::from_shape_fn((4, 8), value);
    /// let done = SparseGptq::default().run(weight.view(), &stats, &quant, &prune)?;
    /// done.mask.check(prune.pattern)?;
    /// let zeros = done.quantized.matrix.dequantize().iter().filter(|w| **w == 0.0).count();
    /// assert!(zeros >= 16);
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn run(
        &self,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
        quant: &QuantTarget<'_>,
        prune: &Target<'_>,
    ) -> Result<SparseQuantized> {
        const METHOD: &str = "sparse-gptq";
        self.gptq.check(METHOD, &quant.scheme)?;
        let (rows, cols) = weight.dim();
        self.check_pattern(METHOD, prune)?;
        check_count(prune, rows, cols)?;
        // Only for the check that removed weights can be 0.
        let all = Mask::all_kept(rows, cols);
        let target = QuantTarget { keep: Some(&all), ..*quant };
        let mut input = Input::new(METHOD, &weight, &target)?;
        input.keep = None;
        let due = |columns: usize| {
            (prune.remove as u128 * columns as u128 / cols.max(1) as u128) as usize
        };
        let choose = |first: usize, block: ArrayView2<'_, f32>, diagonal: &[f32]| {
            let remove = due(first + block.ncols()) - due(first);
            let block_target = Target { remove, ..prune.clone() };
            select(&block_target, block.dim(), &|row, scores| {
                for ((s, w), d) in scores.iter_mut().zip(block.row(row)).zip(diagonal) {
                    let ratio = w / d;
                    *s = ratio * ratio;
                }
                Ok(())
            })
        };
        let Run { matrix, kept, report } = self.gptq.run(
            METHOD,
            &input,
            stats,
            match prune.pattern {
                Pattern::NM { n, m } => Keep::Groups { n, m },
                _ => Keep::Blocks(&choose),
            },
        )?;
        let mask = Mask::from_fn(rows, cols, |r, c| kept[r * cols + c]);
        Ok(SparseQuantized { quantized: Quantized { matrix, report }, mask })
    }

    fn check_pattern(&self, method: &str, prune: &Target<'_>) -> Result<()> {
        let reason = match (prune.pattern, prune.scope) {
            (_, Scope::Global) => "layers are done one by one; give each its own count",
            (Pattern::NM { .. }, _) if self.gptq.order == ColumnOrder::Activation => {
                "N:M groups are runs of input channels; use the natural order of columns"
            }
            (Pattern::Unstructured | Pattern::NM { .. }, _) => return Ok(()),
            _ => "use `unstructured` or `n:m`",
        };
        Err(Error::Unsupported {
            method: method.to_string(),
            pattern: prune.pattern,
            scope: prune.scope,
            reason: reason.to_string(),
        })
    }
}

/// Refuses counts that the pattern cannot remove.
fn check_count(prune: &Target<'_>, rows: usize, cols: usize) -> Result<()> {
    prune.pattern.check_shape(prune.layer.as_str(), rows, cols)?;
    let all = rows * cols;
    let (good, expected) = match prune.pattern {
        Pattern::NM { n, m } => {
            let exact = all / m * (m - n);
            (prune.remove == exact, format!("{exact}, which the pattern fixes"))
        }
        _ => (prune.remove <= all, format!("at most the {all} there are")),
    };
    if good {
        return Ok(());
    }
    Err(Error::OutOfRange {
        what: format!("{} (weights to remove)", prune.layer),
        found: prune.remove.to_string(),
        expected,
    })
}
