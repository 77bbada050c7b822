use ndarray::{Array2, ArrayView2, CowArray, Ix2};
use prune_core::{
    Error, Granularity, LayerId, Mask, QuantScheme, QuantTarget, QuantizedMatrix, QuantizedParts,
    Result, ScaleFormat, ZeroPoint, check_finite,
};
use rayon::prelude::*;

use super::{Coder, Params};
use crate::double::double_quantize;

/// A weight that has been checked, and what is asked of it.
pub(crate) struct Input<'a> {
    pub(crate) layer: &'a LayerId,
    pub(crate) scheme: QuantScheme,
    pub(crate) keep: Option<&'a Mask>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    weight: CowArray<'a, f32, Ix2>,
}

impl<'a> Input<'a> {
    /// Refuses values that are not finite, masks of another shape, and masks under a scheme that
    /// has no code for zero.
    pub(crate) fn new(
        method: &str,
        weight: &'a ArrayView2<'_, f32>,
        target: &QuantTarget<'a>,
    ) -> Result<Self> {
        let (rows, cols) = weight.dim();
        target.scheme.check()?;
        let weight = weight.as_standard_layout();
        let name = target.layer.weight_name();
        check_finite(&name, weight.as_slice().unwrap_or_default())?;
        if let Some(keep) = target.keep {
            if (keep.rows(), keep.cols()) != (rows, cols) {
                return Err(Error::Shape {
                    what: format!("{name} (mask)"),
                    found: vec![keep.rows(), keep.cols()],
                    expected: vec![rows, cols],
                });
            }
            if target.scheme.zero == ZeroPoint::Float {
                return Err(Error::UnsupportedScheme {
                    method: method.to_string(),
                    scheme: target.scheme,
                    reason: "a float zero point has no code for weights that were pruned; use \
                             `sym` or `asym`"
                        .to_string(),
                });
            }
        }
        Ok(Self {
            layer: target.layer,
            scheme: target.scheme,
            keep: target.keep,
            rows,
            cols,
            weight,
        })
    }

    /// The weights, row-major.
    pub(crate) fn values(&self) -> &[f32] {
        // `as_standard_layout` made it contiguous.
        self.weight.as_slice().unwrap_or_default()
    }

    /// The largest magnitude among the weights that are kept.
    pub(crate) fn absmax(&self) -> f32 {
        let cols = self.cols.max(1);
        let max = |(row, values): (usize, &[f32])| {
            let kept = values.iter().enumerate().filter(|(c, _)| self.is_kept(row, *c));
            kept.fold(0.0f32, |m, (_, x)| m.max(x.abs()))
        };
        self.values().par_chunks(cols).enumerate().map(max).reduce(|| 0.0, f32::max)
    }

    pub(crate) fn is_kept(&self, row: usize, col: usize) -> bool {
        self.keep.is_none_or(|m| m.is_kept(row, col))
    }

    /// Appends the kept ones of `values`, which start at weight `start` in row-major order.
    pub(crate) fn kept_of(&self, start: usize, values: &[f32], into: &mut Vec<f32>) {
        into.clear();
        match self.keep {
            None => into.extend_from_slice(values),
            Some(mask) => into.extend(values.iter().enumerate().filter_map(|(i, x)| {
                let at = start + i;
                mask.is_kept(at / self.cols, at % self.cols).then_some(*x)
            })),
        }
    }
}

/// Every group rounded by itself.
pub(crate) fn round_matrix(coder: &Coder, input: &Input<'_>) -> Result<QuantizedMatrix> {
    let (rows, cols) = (input.rows, input.cols);
    let shape = input.scheme.granularity.scales_shape(rows, cols);
    let values = input.values();
    let params = all_params(coder, input);
    let mut codes = vec![0u8; values.len()];
    // Runs of weights of one group: pieces of rows.
    let run = match input.scheme.granularity {
        Granularity::Group(n) => n,
        _ => cols,
    };
    let group_of = |row: usize, col: usize| match input.scheme.granularity {
        Granularity::PerTensor => 0,
        Granularity::PerChannel => row,
        Granularity::Group(n) => row * shape.1 + col / n,
        Granularity::Flat(n) => (row * cols + col) / n,
    };
    let flat = matches!(input.scheme.granularity, Granularity::Flat(_));
    codes.par_chunks_mut(cols.max(1)).zip(values.par_chunks(cols.max(1))).enumerate().for_each(
        |(row, (codes, values))| {
            let pieces = codes.chunks_mut(run.max(1)).zip(values.chunks(run.max(1)));
            for (piece, (codes, values)) in pieces.enumerate() {
                let first = piece * run;
                let mut p = params[group_of(row, first)];
                if !flat && input.keep.is_none() {
                    // On vectors that have an instruction for rounding.
                    pulp::Arch::new().dispatch(
                        #[inline(always)]
                        || codes.iter_mut().zip(values).for_each(|(c, x)| *c = coder.code(&p, *x)),
                    );
                    continue;
                }
                for (i, (code, x)) in codes.iter_mut().zip(values).enumerate() {
                    if flat {
                        p = params[group_of(row, first + i)];
                    }
                    *code = match input.is_kept(row, first + i) {
                        true => coder.code(&p, *x),
                        false => coder.zero_code(&p),
                    };
                }
            }
        },
    );
    assemble(coder, input, codes, shape, &params, None)
}

/// Scale and zero point of every group, in the order of the matrix of scales.
fn all_params(coder: &Coder, input: &Input<'_>) -> Vec<Params> {
    let values = input.values();
    let one = |start: usize, group: &[f32]| {
        let mut kept = Vec::new();
        input.kept_of(start, group, &mut kept);
        coder.params(&kept)
    };
    let cols = input.cols.max(1);
    let chunks = |n: usize| -> Vec<Params> {
        values.par_chunks(n).enumerate().map(|(i, group)| one(i * n, group)).collect()
    };
    let mut params = match input.scheme.granularity {
        Granularity::PerTensor => vec![one(0, values)],
        Granularity::PerChannel if input.cols == 0 => vec![one(0, &[]); input.rows],
        Granularity::PerChannel => chunks(cols),
        Granularity::Flat(n) => chunks(n),
        Granularity::Group(n) => values
            .par_chunks(cols)
            .enumerate()
            .flat_map_iter(|(row, values)| {
                let one = &one;
                values.chunks(n).enumerate().map(move |(i, g)| one(row * cols + i * n, g))
            })
            .collect(),
    };
    if input.scheme.scale == ScaleFormat::Double {
        let scales: Vec<f32> = params.iter().map(|p| p.scale).collect();
        for (p, scale) in params.iter_mut().zip(double_quantize(&scales).values()) {
            *p = coder.with_scale(p, scale);
        }
    }
    params
}

/// The matrix of these codes and parameters.
pub(crate) fn assemble(
    coder: &Coder,
    input: &Input<'_>,
    codes: Vec<u8>,
    shape: (usize, usize),
    params: &[Params],
    group_index: Option<Vec<u32>>,
) -> Result<QuantizedMatrix> {
    let name = input.layer.weight_name();
    let array = |values: Vec<f32>| to_matrix(&name, shape, values);
    let scales = array(params.iter().map(|p| p.scale).collect())?;
    let zeros = match input.scheme.zero {
        ZeroPoint::Symmetric => None,
        _ => Some(array(params.iter().map(|p| p.zero).collect())?),
    };
    let parts = QuantizedParts {
        scheme: input.scheme,
        codes: to_matrix(&name, (input.rows, input.cols), codes)?,
        scales,
        zeros,
        global_scale: coder.global(),
        group_index,
        column_scales: None,
    };
    QuantizedMatrix::from_parts(&name, parts)
}

fn to_matrix<T>(name: &str, shape: (usize, usize), values: Vec<T>) -> Result<Array2<T>> {
    let found = vec![values.len()];
    Array2::from_shape_vec(shape, values).map_err(|_| Error::Shape {
        what: name.to_string(),
        found,
        expected: vec![shape.0, shape.1],
    })
}
