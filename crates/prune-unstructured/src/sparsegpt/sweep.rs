use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use prune_core::{Fidelity, Mask, Pattern, Result};
use rayon::prelude::*;

use super::factor::Factor;
use super::removal::{Columns, Removal, choose_group};
use crate::unit_layer::panel_rows;

/// One pass over the columns of a weight.
pub(super) struct Sweep<'a> {
    pub(super) factor: &'a Factor,
    /// Column indices in the order in which they are pruned.
    pub(super) order: &'a [usize],
    pub(super) dead: &'a [bool],
    pub(super) removal: &'a Removal<'a>,
    /// Columns of a block.
    pub(super) block: usize,
}

/// The weights that stay and `Σ e²`.
pub(super) struct Swept {
    pub(super) kept: Mask,
    pub(super) loss: f64,
}

impl Sweep<'_> {
    /// Prunes `weight` in place.
    ///
    /// In the order of the columns, with e_j the error that is made at column j over `U_jj`, the
    /// weight that column j has when its turn comes is `w_j − Σ_{i<j} e_i U_ij`. Since
    /// `ΔW = W − Ŵ = E U`, also `E = ΔW R`, and for a block b of columns after blocks a
    ///
    /// ```text
    /// W_b + (Σ_a ΔW_a R_ab) U_bb
    /// ```
    ///
    /// are the weights that it starts from. `carry` holds the sums in brackets. Rows do not
    /// interact but through the choice of what goes.
    pub(super) fn run(&self, mut weight: ArrayViewMut2<'_, f32>) -> Result<Swept> {
        let (rows, cols) = weight.dim();
        let panel = panel_rows(rows);
        let diagonal = self.factor.diagonal();
        let sensitivity: Vec<f32> = self
            .order
            .iter()
            .zip(&diagonal)
            .map(|(&c, r)| if self.dead[c] { 0.0 } else { *r })
            .collect();
        let mut carry = Array2::<f32>::zeros((rows, cols));
        let mut work = Array2::<f32>::zeros((rows, self.block.min(cols)));
        let mut kept = Array2::from_elem((rows, cols), true);
        let mut loss = 0.0;
        for start in (0..cols).step_by(self.block) {
            let end = (start + self.block).min(cols);
            let columns = &self.order[start..end];
            let inverse = self.factor.inverse(start, end);
            let mut work = work.slice_mut(s![.., ..end - start]);
            work.axis_chunks_iter_mut(Axis(0), panel)
                .into_par_iter()
                .zip(weight.axis_chunks_iter(Axis(0), panel))
                .zip(carry.axis_chunks_iter(Axis(0), panel))
                .for_each(|((mut work, weight), carry)| {
                    let carry = carry.slice(s![.., start..end]);
                    general_mat_mul(1.0, &carry, &inverse, 0.0, &mut work);
                    for (mut work, weight) in work.outer_iter_mut().zip(weight.outer_iter()) {
                        work.iter_mut().zip(columns).for_each(|(w, &c)| *w += weight[c]);
                    }
                });

            let chosen = self.chosen(Columns {
                weights: work.view(),
                sensitivity: &sensitivity[start..end],
                start,
                total: cols,
            })?;
            let block = Block {
                columns,
                dead: self.dead,
                sensitivity: &sensitivity[start..end],
                inverse: inverse.view(),
                pivots: &diagonal[start..end],
                chosen,
            };
            let right = self.factor.rows(start, end);
            let right = right.slice(s![.., end - start..]);
            let losses: Vec<f64> = work
                .axis_chunks_iter_mut(Axis(0), panel)
                .into_par_iter()
                .zip(weight.axis_chunks_iter_mut(Axis(0), panel))
                .zip(carry.axis_chunks_iter_mut(Axis(0), panel))
                .zip(kept.axis_chunks_iter_mut(Axis(0), panel))
                .enumerate()
                .map(|(p, (((work, weight), mut carry), kept))| {
                    let (delta, loss) = block.prune(p * panel, work, weight, kept);
                    general_mat_mul(1.0, &delta, &right, 1.0, &mut carry.slice_mut(s![.., end..]));
                    loss
                })
                .collect();
            loss += losses.iter().sum::<f64>();
        }
        let kept = Mask::from_fn(rows, cols, |r, c| kept[[r, c]]);
        Ok(Swept { kept, loss })
    }

    fn chosen(&self, block: Columns<'_>) -> Result<Chosen<'_>> {
        Ok(match self.removal {
            Removal::Fixed(mask) => Chosen::Stored(mask),
            Removal::Adaptive { target, fidelity } => {
                let zero_dead = *fidelity == Fidelity::Released;
                match target.pattern {
                    Pattern::NM { n, m } => Chosen::Groups { n, m, zero_dead },
                    _ => Chosen::Block { kept: block.choose(target, *fidelity)?, zero_dead },
                }
            }
        })
    }
}

/// What stays in a block of columns.
enum Chosen<'a> {
    /// What a mask over the stored columns says.
    Stored(&'a Mask),
    /// What a mask over the columns of the block says.
    Block { kept: Mask, zero_dead: bool },
    /// `n` of each group of `m`, chosen when its first column is reached.
    Groups { n: usize, m: usize, zero_dead: bool },
}

struct Block<'a> {
    columns: &'a [usize],
    dead: &'a [bool],
    sensitivity: &'a [f32],
    inverse: ArrayView2<'a, f32>,
    /// `R_jj = 1 / U_jj`.
    pivots: &'a [f32],
    chosen: Chosen<'a>,
}

impl Block<'_> {
    /// Prunes the columns of a panel whose first row is `first`: writes the weights that are left,
    /// returns what they lost and the sum of squared errors.
    fn prune(
        &self,
        first: usize,
        mut work: ArrayViewMut2<'_, f32>,
        mut weight: ArrayViewMut2<'_, f32>,
        mut kept: ArrayViewMut2<'_, bool>,
    ) -> (Array2<f32>, f64) {
        let mut delta = Array2::zeros(work.dim());
        let mut gone = vec![false; self.columns.len()];
        let mut loss = 0.0;
        for r in 0..work.nrows() {
            let mut row = work.row_mut(r);
            let Some(values) = row.as_slice_mut() else { continue };
            self.mark(first + r, &mut gone);
            loss += self.sweep(values, &mut gone);
            let zero_dead = match self.chosen {
                Chosen::Stored(_) => false,
                Chosen::Block { zero_dead, .. } | Chosen::Groups { zero_dead, .. } => zero_dead,
            };
            for (i, &c) in self.columns.iter().enumerate() {
                let left = if gone[i] || (zero_dead && self.dead[c]) { 0.0 } else { values[i] };
                delta[[r, i]] = weight[[r, c]] - left;
                weight[[r, c]] = left;
                kept[[r, c]] = !gone[i];
            }
        }
        (delta, loss)
    }

    /// Marks what goes, where that is known before the sweep.
    fn mark(&self, row: usize, gone: &mut [bool]) {
        match &self.chosen {
            Chosen::Stored(mask) => {
                gone.iter_mut().zip(self.columns).for_each(|(g, &c)| *g = !mask.is_kept(row, c));
            }
            Chosen::Block { kept, .. } => {
                gone.iter_mut().enumerate().for_each(|(i, g)| *g = !kept.is_kept(row, i));
            }
            Chosen::Groups { .. } => {}
        }
    }

    /// Removes one weight after the other and lets the rest of the block make up for it.
    fn sweep(&self, values: &mut [f32], gone: &mut [bool]) -> f64 {
        let mut loss = 0.0;
        for i in 0..values.len() {
            if let Chosen::Groups { n, m, .. } = self.chosen
                && i % m == 0
            {
                let group = i..i + m;
                let sensitivity = &self.sensitivity[group.clone()];
                choose_group(&values[group.clone()], sensitivity, n, &mut gone[group]);
            }
            // A dead channel touches no other: nothing is lost and nothing made up for.
            if gone[i] && !self.dead[self.columns[i]] {
                let error = values[i] * self.pivots[i];
                loss += f64::from(error) * f64::from(error);
                let row = self.inverse.row(i);
                let row = row.as_slice().unwrap_or_default();
                for (v, u) in values[i..].iter_mut().zip(&row[i..]) {
                    *v -= error * u;
                }
            }
        }
        loss
    }
}
