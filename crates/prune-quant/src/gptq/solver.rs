use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use prune_core::{Mask, Result};
use rayon::prelude::*;

use crate::grid::{Coder, Params};

/// Rows that one thread works on at a time. Part of the definition of the result.
const PANEL: usize = 64;

/// The weights that are kept.
#[derive(Clone, Copy)]
pub(super) enum Keep<'a> {
    /// All of them.
    All,
    /// Those of a mask, whose columns are input channels.
    Mask(&'a Mask),
    /// Chosen for all rows when a block is entered.
    Blocks(&'a ChooseBlock<'a>),
    /// The `n` of every `m` that cost most to remove, chosen in each row when it gets there.
    Groups { n: usize, m: usize },
}

/// The mask of a block from its first column, its weights as they are when it is entered, and the
/// diagonal of the factor there.
pub(super) type ChooseBlock<'a> =
    dyn Fn(usize, ArrayView2<'_, f32>, &[f32]) -> Result<Mask> + Sync + 'a;

/// Where scales come from.
pub(super) enum Groups {
    /// One set of parameters for each row, known beforehand.
    Rows(Vec<Params>),
    /// The parameters of each row and group, known beforehand, and the group of each column.
    Known { params: Vec<Params>, per_row: usize, of_column: Vec<usize> },
    /// Groups of this many columns in the solver's order, whose parameters are taken when the
    /// solver reaches them: from the weights as they are or, `stale`, as they were when the block
    /// was entered.
    Dynamic { size: usize, stale: bool },
}

/// The result, in the solver's order of columns.
pub(super) struct Solution {
    /// Row-major.
    pub(super) codes: Vec<u8>,
    /// Whether each weight was kept, row-major.
    pub(super) kept: Vec<bool>,
    /// Of each row and group, for [`Groups::Dynamic`].
    pub(super) params: Vec<Params>,
    /// `½ Σ e²` over all rows.
    pub(super) loss: f64,
}

/// What the panels share.
pub(super) struct Solver<'a> {
    /// `H⁻¹ = Uᵀ U`.
    pub(super) upper: &'a Array2<f32>,
    pub(super) coder: &'a Coder,
    pub(super) groups: Groups,
    pub(super) keep: Keep<'a>,
    /// The input channel of each column.
    pub(super) order: &'a [usize],
    /// Columns whose effect on those after them is gathered.
    pub(super) block: usize,
}

/// Some rows while they are solved.
struct Panel<'a> {
    first_row: usize,
    weights: ArrayViewMut2<'a, f32>,
    codes: &'a mut [u8],
    kept: &'a mut [bool],
    params: &'a mut [Params],
    losses: &'a mut [f64],
}

impl Solver<'_> {
    /// Rounds the columns of `weights` one after the other; what a column loses, those after it
    /// make up for. Leaves `weights` in no useful state.
    pub(super) fn solve(&self, weights: &mut Array2<f32>) -> Result<Solution> {
        let (rows, cols) = weights.dim();
        let per_row = match self.groups {
            Groups::Dynamic { size, .. } => cols.div_ceil(size),
            _ => 0,
        };
        let mut out = Solution {
            codes: vec![0; rows * cols],
            kept: vec![true; rows * cols],
            params: vec![self.coder.params(&[]); rows * per_row],
            loss: 0.0,
        };
        let mut losses = vec![0.0f64; rows];
        let diagonal: Vec<f32> = self.upper.diag().to_vec();
        let mut first = 0;
        while first < cols {
            let last = self.block_end(first, cols);
            let chosen = match self.keep {
                Keep::Blocks(choose) => {
                    let block = weights.slice(s![.., first..last]);
                    Some(choose(first, block, &diagonal[first..last])?)
                }
                _ => None,
            };
            panels(weights, &mut out, &mut losses, per_row).into_par_iter().for_each(
                |mut panel| {
                    self.solve_block(&mut panel, first..last, &diagonal, chosen.as_ref());
                },
            );
            first = last;
        }
        out.loss = losses.iter().sum();
        Ok(out)
    }

    /// Where the block that starts at `first` ends. A group whose parameters have to be up to date
    /// must lie in one block, or start it; N:M groups must lie in one block.
    fn block_end(&self, first: usize, cols: usize) -> usize {
        let mut block = self.block.max(1);
        if let Keep::Groups { m, .. } = self.keep {
            block = block.max(m);
        }
        let mut end = (first + block).min(cols);
        let mut align = |unit: usize| {
            let aligned = end / unit * unit;
            if end < cols && aligned > first {
                end = aligned;
            }
        };
        if let Groups::Dynamic { size, stale: false } = self.groups {
            align(size);
        }
        if let Keep::Groups { m, .. } = self.keep {
            align(m);
        }
        end
    }

    fn solve_block(
        &self,
        panel: &mut Panel<'_>,
        block: std::ops::Range<usize>,
        diagonal: &[f32],
        chosen: Option<&Mask>,
    ) {
        let (rows, cols) = panel.weights.dim();
        let (first, last) = (block.start, block.end);
        let mut errors = Array2::<f32>::zeros((rows, block.len()));
        let mut current = Vec::with_capacity(block.len());
        let mut scratch = Vec::new();
        for r in 0..rows {
            let row = panel.first_row + r;
            current.clear();
            current.extend(panel.weights.slice(s![r, first..last]));
            let mut group_bits = u32::MAX;
            let mut loss = 0.0f64;
            for i in 0..current.len() {
                let c = first + i;
                if let Keep::Groups { n, m } = self.keep
                    && c.is_multiple_of(m)
                {
                    let end = (i + m).min(current.len());
                    group_bits = dearest(&current[i..end], &diagonal[c..], n);
                }
                let kept = match (&self.keep, chosen) {
                    (Keep::All, _) => true,
                    (Keep::Mask(mask), _) => mask.is_kept(row, self.order[c]),
                    (Keep::Blocks(_), mask) => mask.is_none_or(|m| m.is_kept(row, i)),
                    (Keep::Groups { m, .. }, _) => group_bits >> (c % m) & 1 == 1,
                };
                let p = match &self.groups {
                    Groups::Rows(params) => params[row],
                    Groups::Known { params, per_row, of_column } => {
                        params[row * per_row + of_column[c]]
                    }
                    Groups::Dynamic { size, stale } => {
                        let per_row = cols.div_ceil(*size);
                        let at = r * per_row + c / size;
                        if c.is_multiple_of(*size) {
                            let end = (c + size).min(cols);
                            let fresh = if *stale { i } else { last.min(end) - first };
                            scratch.clear();
                            scratch.extend_from_slice(&current[i..fresh]);
                            scratch.extend(panel.weights.slice(s![r, first + fresh..end]));
                            self.retain_kept(row, c, &mut scratch);
                            panel.params[at] = self.coder.params(&scratch);
                        }
                        panel.params[at]
                    }
                };
                let (code, value) = match kept {
                    true => {
                        let code = self.coder.code(&p, current[i]);
                        (code, self.coder.value(&p, code))
                    }
                    false => (self.coder.zero_code(&p), 0.0),
                };
                panel.codes[r * cols + c] = code;
                panel.kept[r * cols + c] = kept;
                let e = (current[i] - value) / diagonal[c];
                errors[[r, i]] = e;
                loss += f64::from(e) * f64::from(e);
                if let Some(factors) = self.upper.slice(s![c, c + 1..last]).as_slice() {
                    for (w, u) in current[i + 1..].iter_mut().zip(factors) {
                        *w -= e * u;
                    }
                }
            }
            panel.losses[r] += 0.5 * loss;
        }
        let mut later = panel.weights.slice_mut(s![.., last..]);
        general_mat_mul(-1.0, &errors, &self.upper.slice(s![first..last, last..]), 1.0, &mut later);
    }

    /// Drops the weights of a group, which starts at column `first`, that a mask removes.
    fn retain_kept(&self, row: usize, first: usize, group: &mut Vec<f32>) {
        if let Keep::Mask(mask) = self.keep {
            let mut c = first;
            group.retain(|_| {
                c += 1;
                mask.is_kept(row, self.order[c - 1])
            });
        }
    }
}

/// One bit for each of the `n` weights of a group that cost most to remove, `w² / U_cc²`; of equal
/// ones the first.
fn dearest(weights: &[f32], diagonal: &[f32], n: usize) -> u32 {
    let cost = |i: usize| {
        let (w, d) = (f64::from(weights[i]), f64::from(diagonal[i]));
        w * w / (d * d)
    };
    let mut by_cost: Vec<usize> = (0..weights.len()).collect();
    by_cost.sort_by(|a, b| cost(*b).total_cmp(&cost(*a)));
    by_cost.iter().take(n).fold(0, |bits, i| bits | 1 << i)
}

fn panels<'a>(
    weights: &'a mut Array2<f32>,
    out: &'a mut Solution,
    losses: &'a mut [f64],
    per_row: usize,
) -> Vec<Panel<'a>> {
    let size = (PANEL * weights.ncols()).max(1);
    let mut params = out.params.as_mut_slice();
    weights
        .axis_chunks_iter_mut(Axis(0), PANEL)
        .zip(out.codes.chunks_mut(size))
        .zip(out.kept.chunks_mut(size))
        .zip(losses.chunks_mut(PANEL))
        .enumerate()
        .map(|(i, (((weights, codes), kept), losses))| {
            let (now, later) = std::mem::take(&mut params).split_at_mut(weights.nrows() * per_row);
            params = later;
            Panel { first_row: i * PANEL, weights, codes, kept, params: now, losses }
        })
        .collect()
}
