use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use prune_core::{Error, Mask, Result};
use prune_linalg::{UpperFactor, add_product};
use rayon::prelude::*;

use crate::grid::{Coder, Params};

/// Rows that one thread rounds at a time: their columns of a block stay in the fastest cache.
const STRIP: usize = 64;

/// Rows that one thread multiplies at a time: enough for products to pay, few enough for all
/// threads to have some.
fn panel_rows(rows: usize) -> usize {
    rows.div_ceil(8).clamp(32, 256)
}

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
    /// `R` of `H = R Rᵀ`, the inverse of the `U` of `H⁻¹ = Uᵀ U`.
    pub(super) right: &'a UpperFactor,
    pub(super) coder: &'a Coder,
    pub(super) groups: Groups,
    pub(super) keep: Keep<'a>,
    /// The input channel of each column.
    pub(super) order: &'a [usize],
    /// Columns whose effect on those after them is gathered.
    pub(super) block: usize,
}

/// Some rows while they are solved.
struct Strip<'a> {
    first_row: usize,
    /// The weights of the block's window, row-major, as they are by now.
    window: &'a mut [f32],
    codes: &'a mut [u8],
    kept: &'a mut [bool],
    params: &'a mut [Params],
    losses: &'a mut [f64],
}

/// A run of columns that is solved before those after it hear of it.
struct Block<'a> {
    columns: std::ops::Range<usize>,
    /// Columns of the window: those of the block, and those after it that complete the groups that
    /// start in it.
    width: usize,
    /// Of all columns of the weight.
    cols: usize,
    /// U on the window.
    inverse: ArrayView2<'a, f32>,
    /// The diagonal of R on the block, and of U.
    pivots: &'a [f32],
    diagonal: &'a [f32],
    chosen: Option<&'a Mask>,
}

impl Solver<'_> {
    /// Rounds the columns of `weights` one after the other; what a column loses, those after it
    /// make up for.
    ///
    /// With e_c the error made at column c over `U_cc`, the weight that column c has when its turn
    /// comes is `w_c − Σ_{i<c} e_i U_ic`. Hence `ΔW = W − Ŵ = E U` and `E = ΔW R`, and the weights
    /// that a block b of columns after blocks a starts from are
    ///
    /// ```text
    /// W_b + (Σ_a ΔW_a R_ab) U_bb
    /// ```
    ///
    /// `carry` holds the sums in brackets.
    pub(super) fn solve(&self, weights: &Array2<f32>) -> Result<Solution> {
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
        let right = self.right.diagonal();
        let pivots: Vec<f32> = right.iter().map(|r| *r as f32).collect();
        let diagonal: Vec<f32> = right.iter().map(|r| (1.0 / r) as f32).collect();
        let panel = panel_rows(rows);
        let mut carry = Array2::<f32>::zeros((rows, cols));
        let mut windows = Vec::new();
        let mut first = 0;
        while first < cols {
            let last = self.block_end(first, cols);
            let end = match self.groups {
                Groups::Dynamic { size, .. } => (last.div_ceil(size) * size).min(cols),
                _ => last,
            };
            let width = end - first;
            let inverse = self.right.inverse_block(first..end);
            windows.clear();
            windows.resize(rows * width, 0.0f32);
            windows
                .par_chunks_mut(panel * width)
                .zip(weights.axis_chunks_iter(Axis(0), panel))
                .zip(carry.axis_chunks_iter(Axis(0), panel))
                .try_for_each(|((window, weights), carry)| {
                    enter(
                        window,
                        weights.slice(s![.., first..end]),
                        carry.slice(s![.., first..end]),
                        &inverse,
                    )
                })?;
            let chosen = match self.keep {
                Keep::Blocks(choose) => {
                    let window = ArrayView2::from_shape((rows, width), &windows).map_err(failed)?;
                    let block = window.slice(s![.., ..last - first]);
                    Some(choose(first, block, &diagonal[first..last])?)
                }
                _ => None,
            };
            let block = Block {
                columns: first..last,
                width,
                cols,
                inverse: inverse.view(),
                pivots: &pivots[first..last],
                diagonal: &diagonal[first..last],
                chosen: chosen.as_ref(),
            };
            let after = self.right.rows(first..last);
            let after = after.slice(s![.., last - first..]);
            let strips = strips(&mut windows, &mut out, &mut losses, &block, per_row);
            strips.into_par_iter().for_each(|strip| {
                pulp::Arch::new().dispatch(
                    #[inline(always)]
                    || self.solve_block(strip, &block),
                );
            });
            windows
                .par_chunks(panel * width)
                .zip(weights.axis_chunks_iter(Axis(0), panel))
                .zip(carry.axis_chunks_iter_mut(Axis(0), panel))
                .try_for_each(|((rounded, weights), mut carry)| {
                    let mut delta = weights.slice(s![.., first..last]).to_owned();
                    for (mut delta, rounded) in
                        delta.outer_iter_mut().zip(rounded.chunks_exact(width))
                    {
                        delta.iter_mut().zip(rounded).for_each(|(d, v)| *d -= v);
                    }
                    let later = carry.slice_mut(s![.., last..]);
                    add_product(1.0, delta.view(), after, later)
                })
                .map_err(failed)?;
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

    /// Solves the block for the rows of a strip, all rows of a column before the next column: their
    /// chains of dependent operations then overlap. The window then holds the rounded weights.
    /// Takes the strip by value, for a closure that can be called once only is compiled into its
    /// caller, for the processor's vectors.
    #[inline(always)]
    fn solve_block(&self, mut strip: Strip<'_>, block: &Block<'_>) {
        let Block { width, cols, .. } = *block;
        let (first, last) = (block.columns.start, block.columns.end);
        let rows = strip.window.len() / width.max(1);
        let mut params: Vec<Params> = vec![self.coder.params(&[]); rows];
        let mut group_bits = vec![u32::MAX; rows];
        let mut scratch = Vec::new();
        for c in first..last {
            let i = c - first;
            self.enter_column(&mut strip, block, c, &mut params, &mut group_bits, &mut scratch);
            let pivot = block.pivots[i];
            let factors = block.inverse.row(i);
            let factors = &factors.as_slice().unwrap_or_default()[i + 1..last - first];
            for (r, row) in strip.window.chunks_exact_mut(width).enumerate() {
                let kept = match (&self.keep, block.chosen) {
                    (Keep::All, _) => true,
                    (Keep::Mask(mask), _) => mask.is_kept(strip.first_row + r, self.order[c]),
                    (Keep::Blocks(_), mask) => {
                        mask.is_none_or(|m| m.is_kept(strip.first_row + r, i))
                    }
                    (Keep::Groups { m, .. }, _) => group_bits[r] >> (c % m) & 1 == 1,
                };
                let p = &params[r];
                let (code, value) = match kept {
                    true => {
                        let code = self.coder.code(p, row[i]);
                        (code, self.coder.value(p, code))
                    }
                    false => (self.coder.zero_code(p), 0.0),
                };
                strip.codes[r * cols + c] = code;
                strip.kept[r * cols + c] = kept;
                let e = (row[i] - value) * pivot;
                row[i] = value;
                strip.losses[r] += 0.5 * f64::from(e) * f64::from(e);
                for (w, u) in row[i + 1..last - first].iter_mut().zip(factors) {
                    *w -= e * u;
                }
            }
        }
    }

    /// Before column `c` is rounded: the parameters of the groups that start with it, and which of
    /// an N:M group are kept.
    #[inline(always)]
    fn enter_column(
        &self,
        strip: &mut Strip<'_>,
        block: &Block<'_>,
        c: usize,
        params: &mut [Params],
        group_bits: &mut [u32],
        scratch: &mut Vec<f32>,
    ) {
        let Block { width, cols, .. } = *block;
        let (first, last) = (block.columns.start, block.columns.end);
        let i = c - first;
        if let Keep::Groups { n, m } = self.keep
            && c.is_multiple_of(m)
        {
            let end = (i + m).min(last - first);
            for (bits, row) in group_bits.iter_mut().zip(strip.window.chunks_exact(width)) {
                *bits = dearest(&row[i..end], &block.diagonal[i..end], n);
            }
        }
        match &self.groups {
            Groups::Rows(of_row) if c == first => {
                params.copy_from_slice(&of_row[strip.first_row..][..params.len()]);
            }
            Groups::Rows(_) => {}
            Groups::Known { params: known, per_row, of_column } => {
                for (r, p) in params.iter_mut().enumerate() {
                    *p = known[(strip.first_row + r) * per_row + of_column[c]];
                }
            }
            Groups::Dynamic { size, stale } => {
                let starts = |c: usize| c.is_multiple_of(*size);
                // Groups whose parameters are taken now.
                let until = match (stale, c == first, starts(c)) {
                    (true, true, _) => last,
                    (false, _, true) => c + 1,
                    _ => c,
                };
                let per_row = cols.div_ceil(*size);
                for (r, p) in params.iter_mut().enumerate() {
                    let row = &strip.window[r * width..][..width];
                    for start in (c..until).filter(|c| starts(*c)) {
                        let end = (start + size).min(cols);
                        scratch.clear();
                        scratch.extend_from_slice(&row[start - first..end - first]);
                        self.retain_kept(strip.first_row + r, start, scratch);
                        strip.params[r * per_row + start / size] = self.coder.params(scratch);
                    }
                    *p = strip.params[r * per_row + c / size];
                }
            }
        }
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

/// The weights of a panel's window when its block is entered: `weights + carry · inverse`.
fn enter(
    window: &mut [f32],
    weights: ArrayView2<'_, f32>,
    carry: ArrayView2<'_, f32>,
    inverse: &Array2<f32>,
) -> Result<()> {
    let mut window = ArrayViewMut2::from_shape(weights.dim(), window).map_err(failed)?;
    window.assign(&weights);
    add_product(1.0, carry, inverse.view(), window).map_err(failed)
}

/// Shapes that do not fit each other, which the solver sees to.
fn failed(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::external("updates of GPTQ", e)
}

fn strips<'a>(
    windows: &'a mut [f32],
    out: &'a mut Solution,
    losses: &'a mut [f64],
    block: &Block<'_>,
    per_row: usize,
) -> Vec<Strip<'a>> {
    let size = STRIP * block.cols;
    let mut params = out.params.as_mut_slice();
    windows
        .chunks_mut(STRIP * block.width)
        .zip(out.codes.chunks_mut(size))
        .zip(out.kept.chunks_mut(size))
        .zip(losses.chunks_mut(STRIP))
        .enumerate()
        .map(|(i, (((window, codes), kept), losses))| {
            let (now, later) = std::mem::take(&mut params).split_at_mut(losses.len() * per_row);
            params = later;
            Strip { first_row: i * STRIP, window, codes, kept, params: now, losses }
        })
        .collect()
}
