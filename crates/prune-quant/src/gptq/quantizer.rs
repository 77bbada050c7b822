use ndarray::{Array2, ArrayView2};
use prune_core::{
    Error, Fidelity, Granularity, LayerStats, Needs, QuantReport, QuantScheme, QuantTarget,
    Quantized, QuantizedMatrix, Quantizer, Result, ScaleFormat,
};
use rayon::prelude::*;

use super::hessian::Hessian;
use super::solver::{Groups, Keep, Solver};
use crate::grid::{Coder, Input, Params, Rules, assemble};
use crate::rtn::two_bits_or_more;
use crate::{Family, MxScale, Range};

/// The order in which [`Gptq`] rounds the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ColumnOrder {
    /// From the first to the last.
    #[default]
    Natural,
    /// Loudest input channel first (`desc_act`, "act-order"): it has the most columns after it to
    /// make up for its error. With [`GroupParams::Dynamic`] groups are runs of this order, and the
    /// matrix needs a group index.
    Activation,
}

/// When [`Gptq`] takes the scale and zero point of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum GroupParams {
    /// When its first column is reached, from the weights as they are by then.
    #[default]
    Dynamic,
    /// Before the first column, from the original weights (`static_groups`); groups are then runs
    /// of input channels in any order of rounding.
    Static,
}

/// Rounds one column after the other and lets those that follow make up for the error, to keep the
/// layer's output on calibration data: GPTQ (Frantar, Ashkboos, Hoefler, Alistarh 2022,
/// arXiv 2210.17323).
///
/// With `H = 2 XᵀX / tokens + λI` and `H⁻¹ = UᵀU` it minimises, column by column,
/// `½ tr((W − Ŵ) H (W − Ŵ)ᵀ)`, which is the `loss` it reports:
///
/// ```text
/// e = (w_c − ŵ_c) / U_cc        w_j −= e · U_cj   for all j > c
/// ```
///
/// Takes the schemes of [`Rtn`](crate::Rtn) but those whose groups cross rows. A mask is kept to:
/// the weights it removes are 0, and the others make up for them too. λ is `damping` times the mean
/// of the diagonal of H; where H is still singular it is raised tenfold until it is not, and
/// reported. Channels that were always 0 get weights of 0, as in the released code.
///
/// Costs `in³ / 3` operations in f64 for the factor and `out · in²` in f32, on all threads with the
/// same bits for any number of them; memory `20 in²` bytes besides four copies of the weight.
///
/// It is not a theorem that the loss is below that of rounding to nearest (one row of 16 weights
/// fails in one case of nine), but for matrices of any size it is.
///
/// ```
/// use ndarray::array;
/// use prune_core::{GramAccumulator, LayerId, LayerStats, QuantTarget, Quantizer};
/// use prune_quant::Gptq;
///
/// let mut gram = GramAccumulator::new(2);
/// gram.update("x", array![[1.0, 0.9], [-1.0, -1.1], [0.5, 0.5]].view())?;
/// let stats = LayerStats { gram: Some(gram), ..LayerStats::default() };
/// let layer = LayerId::new("up_proj");
/// let target = QuantTarget { layer: &layer, scheme: "int2 asym f32".parse()?, keep: None };
/// let weight = array![[0.4, 1.0]];
/// let done = Gptq::default().quantize(weight.view(), &stats, &target)?;
/// // 0.4 became 0.333; the other weight, nearly the same input, stays above.
/// assert_eq!(done.matrix.codes(), array![[1, 3]]);
/// assert_eq!(done.report.damping, Some(0.01));
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gptq {
    /// λ over the mean of the diagonal of H, from 0; where it starts.
    pub damping: f64,
    /// The order of the columns.
    pub order: ColumnOrder,
    /// When groups get their parameters.
    pub groups: GroupParams,
    /// Columns whose effect on later ones is gathered into one product, at least 1. Only a matter
    /// of speed, except for [`Fidelity::Released`].
    pub block: usize,
    /// The convention for integer codes.
    pub family: Family,
    /// The part of a group's values that its codes span.
    pub range: Range,
    /// The rule for scales that are powers of two.
    pub mx_scale: MxScale,
    /// What [`Fidelity::Released`] does as the code of gptq, AutoGPTQ and GPTQModel: a group that
    /// starts within a block takes its parameters from weights that lack the updates of that
    /// block; parameters of whole rows also count the weights of dead channels; symmetric groups
    /// without negative weights are halved.
    pub fidelity: Fidelity,
}

impl Default for Gptq {
    fn default() -> Self {
        Self {
            damping: 0.01,
            order: ColumnOrder::Natural,
            groups: GroupParams::Dynamic,
            block: 128,
            family: Family::Gptq,
            range: Range::MinMax,
            mx_scale: MxScale::Floor,
            fidelity: Fidelity::Exact,
        }
    }
}

impl Gptq {
    /// The same with columns in another order.
    #[must_use]
    pub fn order(mut self, order: ColumnOrder) -> Self {
        self.order = order;
        self
    }

    /// The same with parameters taken at another time.
    #[must_use]
    pub fn groups(mut self, groups: GroupParams) -> Self {
        self.groups = groups;
        self
    }

    pub(super) fn check(&self, method: &str, scheme: &QuantScheme) -> Result<()> {
        two_bits_or_more(method, scheme)?;
        let refuse = |reason: &str| {
            let (method, reason) = (method.to_string(), reason.to_string());
            Err(Error::UnsupportedScheme { method, scheme: *scheme, reason })
        };
        if matches!(scheme.granularity, Granularity::Flat(_)) {
            return refuse("groups have to lie within rows; use `gN`");
        }
        if scheme.scale == ScaleFormat::Double {
            return refuse("scales in a byte depend on each other; use `f16` or `f32`");
        }
        Ok(())
    }

    pub(super) fn coder(&self, scheme: QuantScheme, absmax: f32) -> Result<Coder> {
        let Gptq { family, range, mx_scale, fidelity, .. } = *self;
        Coder::new(scheme, Rules { family, range, mx_scale, fidelity }, absmax)
    }

    /// Everything but the choice of what is kept, for one layer.
    pub(super) fn run(
        &self,
        method: &str,
        input: &Input<'_>,
        stats: &LayerStats,
        keep: Keep<'_>,
    ) -> Result<Run> {
        let (rows, cols) = (input.rows, input.cols);
        let coder = self.coder(input.scheme, input.absmax())?;
        let by_activation = self.order == ColumnOrder::Activation;
        let hessian = Hessian::new(method, input.layer, stats, cols, by_activation)?;
        let (order, dead) = (hessian.order.clone(), hessian.dead.clone());

        let mut natural = input.values().to_vec();
        let zero_dead = |weights: &mut [f32]| {
            weights.par_chunks_mut(cols.max(1)).for_each(|row| {
                dead.iter().for_each(|j| row[*j] = 0.0);
            });
        };
        let released = self.fidelity == Fidelity::Released;
        if !released {
            zero_dead(&mut natural);
        }
        let rows_known = self.row_params(&coder, input, &natural);
        if released {
            zero_dead(&mut natural);
        }
        let (groups, index) = match (rows_known, input.scheme.granularity) {
            (Some(params), _) => (Groups::Rows(params), None),
            (None, Granularity::Group(size)) if self.groups == GroupParams::Static => {
                let params = group_params(&coder, input, &natural, size);
                let of_column = order.iter().map(|j| j / size).collect();
                (Groups::Known { params, per_row: cols.div_ceil(size), of_column }, None)
            }
            (None, granularity) => {
                let size = match granularity {
                    Granularity::Group(n) => n,
                    _ => cols.max(1),
                };
                let mut index = vec![0u32; cols];
                order.iter().enumerate().for_each(|(i, j)| index[*j] = (i / size) as u32);
                let stale = self.fidelity == Fidelity::Released;
                (Groups::Dynamic { size, stale }, by_activation.then_some(index))
            }
        };
        let factor = hessian.factor(input.layer, self.damping)?;
        let weights = in_order(natural, (rows, cols), &order)
            .map_err(|e| Error::external(input.layer.as_str(), e))?;
        let solver = Solver {
            right: &factor.right,
            coder: &coder,
            groups,
            keep,
            order: &order,
            block: self.block,
        };
        let solution = solver.solve(&weights)?;
        let params = match solver.groups {
            Groups::Dynamic { .. } => solution.params.clone(),
            Groups::Rows(params) => match input.scheme.granularity {
                Granularity::PerTensor => params.into_iter().take(1).collect(),
                _ => params,
            },
            Groups::Known { params, .. } => params,
        };
        let codes = unpermute(solution.codes, &order);
        let kept = unpermute(solution.kept, &order);
        let shape = input.scheme.granularity.scales_shape(rows, cols);
        let params = match (input.scheme.granularity, params.is_empty()) {
            // A matrix without rows has a scale all the same.
            (Granularity::PerTensor, true) => vec![coder.params(&[])],
            _ => params,
        };
        let matrix = assemble(&coder, input, codes, shape, &params, index)?;
        Ok(Run {
            matrix,
            kept,
            report: QuantReport {
                loss: Some(solution.loss),
                damping: Some(factor.damping),
                damping_raised: factor.raised,
                dead_columns: dead.len(),
                notes: Vec::new(),
            },
        })
    }

    /// Parameters of whole rows, where the scheme has no groups.
    fn row_params(&self, coder: &Coder, input: &Input<'_>, weights: &[f32]) -> Option<Vec<Params>> {
        let cols = input.cols;
        match input.scheme.granularity {
            Granularity::PerChannel => Some(group_params(coder, input, weights, cols.max(1))),
            Granularity::PerTensor => {
                let mut kept = Vec::new();
                input.kept_of(0, weights, &mut kept);
                Some(vec![coder.params(&kept); input.rows])
            }
            _ => None,
        }
    }
}

/// What [`Gptq::run`] gives.
pub(super) struct Run {
    pub(super) matrix: QuantizedMatrix,
    /// Row-major.
    pub(super) kept: Vec<bool>,
    pub(super) report: QuantReport,
}

/// The parameters of each row's groups of `size` input channels.
fn group_params(coder: &Coder, input: &Input<'_>, weights: &[f32], size: usize) -> Vec<Params> {
    let cols = input.cols;
    if cols == 0 {
        return vec![coder.params(&[]); input.rows];
    }
    let of_row = |(row, values): (usize, &[f32])| {
        let mut kept = Vec::new();
        let one = |(i, group): (usize, &[f32])| {
            input.kept_of(row * cols + i * size, group, &mut kept);
            coder.params(&kept)
        };
        values.chunks(size).enumerate().map(one).collect::<Vec<_>>()
    };
    weights.par_chunks(cols).enumerate().flat_map_iter(of_row).collect()
}

/// Whether the order is that of the input channels.
fn is_natural(order: &[usize]) -> bool {
    order.iter().enumerate().all(|(i, j)| i == *j)
}

/// Columns of a row-major matrix in `order`.
fn in_order(
    values: Vec<f32>,
    shape: (usize, usize),
    order: &[usize],
) -> std::result::Result<Array2<f32>, ndarray::ShapeError> {
    if is_natural(order) {
        return Array2::from_shape_vec(shape, values);
    }
    let cols = order.len().max(1);
    let mut out = vec![0.0; values.len()];
    out.par_chunks_mut(cols).zip(values.par_chunks(cols)).for_each(|(out, row)| {
        out.iter_mut().zip(order).for_each(|(v, j)| *v = row[*j]);
    });
    Array2::from_shape_vec(shape, out)
}

/// Columns back in the order of input channels.
fn unpermute<T: Copy + Default + Send + Sync>(values: Vec<T>, order: &[usize]) -> Vec<T> {
    if is_natural(order) {
        return values;
    }
    let cols = order.len().max(1);
    let mut out = vec![T::default(); values.len()];
    out.par_chunks_mut(cols).zip(values.par_chunks(cols)).for_each(|(out, row)| {
        for (v, j) in row.iter().zip(order) {
            out[*j] = *v;
        }
    });
    out
}

impl Quantizer for Gptq {
    fn name(&self) -> &str {
        "gptq"
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        20 * cols * cols + 18 * rows * cols + (1 << 20)
    }

    fn supports(&self, scheme: &QuantScheme) -> Result<()> {
        self.check(self.name(), scheme)
    }

    /// # Errors
    /// [`Error::NoStatistics`] without a Gram matrix; [`Error::Shape`] for one of another size;
    /// [`Error::OutOfRange`] for a damping that is negative, and when no damping makes H
    /// invertible.
    fn quantize(
        &self,
        weight: ArrayView2<'_, f32>,
        stats: &LayerStats,
        target: &QuantTarget<'_>,
    ) -> Result<Quantized> {
        self.supports(&target.scheme)?;
        let input = Input::new(self.name(), &weight, target)?;
        let Run { matrix, report, .. } =
            self.run(self.name(), &input, stats, target.keep.map_or(Keep::All, Keep::Mask))?;
        Ok(Quantized { matrix, report })
    }
}
