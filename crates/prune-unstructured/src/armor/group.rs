use ndarray::Array2;
use rayon::prelude::*;

use super::Precision;
use super::grid::Grid;
use super::options::Fidelity;

/// The most columns of a group that a pattern allows.
pub(super) const MOST: usize = 16;

/// The exact minimiser of the loss over the position and the values of one group of the core, all
/// else fixed.
///
/// With `a` the column of A that meets the row of the group, `b` its `m` rows of B times `√h`, and
/// R the weighted residual without the group, the loss of values `v` is
/// `‖R‖² + 2 vᵀ f + ‖a‖² vᵀ Q v`, where `f = b Rᵀ a` and `Q = b bᵀ`. Of every support s the best
/// values are `−Q_ss⁻¹ f_s / ‖a‖²`; they take `f_sᵀ Q_ss⁻¹ f_s / ‖a‖²` off the loss.
pub(super) struct GroupStep {
    n: usize,
    m: usize,
    guards: Guards,
    /// Every choice of `n` of `0..m`, ascending, in reverse lexicographic order: of equal supports
    /// the one that removes lower indices comes first.
    supports: Vec<[u8; MOST]>,
}

/// What keeps a division from a zero.
#[derive(Clone, Copy)]
enum Guards {
    /// Rounding of Q and of the change of the loss; a step that does not lower the loss is not
    /// taken.
    Relative,
    /// Those of the released code: added to the diagonal of Q and to `‖a‖²`.
    Absolute { damping: f64, floor: f64 },
}

/// `Q` of every group of columns, `m · m` numbers each.
pub(super) fn grams_of_b<T: Precision>(
    grid: &Grid,
    b: &[Array2<T>],
    importance: &[f64],
) -> Vec<f64> {
    let m = grid.m;
    let blocks = b.par_iter().enumerate().map(|(k, b)| {
        let h = &importance[grid.cols.block(k)];
        let mut grams = vec![0.0; b.nrows() * m];
        for (gram, first) in grams.chunks_mut(m * m).zip((0..b.nrows()).step_by(m)) {
            for i in 0..m {
                for j in 0..=i {
                    let rows = b.row(first + i).into_iter().zip(b.row(first + j));
                    let dot: f64 = rows.zip(h).map(|((x, y), h)| x.wide() * y.wide() * h).sum();
                    gram[i * m + j] = dot;
                    gram[j * m + i] = dot;
                }
            }
        }
        grams
    });
    blocks.collect::<Vec<_>>().concat()
}

/// `‖a‖²` of every column of each block of A.
pub(super) fn column_norms<T: Precision>(a: &[Array2<T>]) -> Vec<Vec<f64>> {
    let norms = |a: &Array2<T>| {
        let mut norms = vec![0.0; a.ncols()];
        for row in a.outer_iter() {
            norms.iter_mut().zip(row).for_each(|(n, x)| *n += x.wide() * x.wide());
        }
        norms
    };
    a.iter().map(norms).collect()
}

/// A group as a step sees it.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    /// `‖a‖²`.
    pub(super) norm: f64,
    pub(super) gram: &'a [f64],
    pub(super) values: [f64; MOST],
    /// Half the gradient of the loss in the group's values: `f + ‖a‖² Q v`.
    pub(super) slope: [f64; MOST],
}

/// What a step would do to a group.
#[derive(Clone, Copy)]
pub(super) struct Proposal {
    support: usize,
    pub(super) values: [f64; MOST],
    /// What it adds to the loss; below 0 but for rounding.
    pub(super) change: f64,
}

impl GroupStep {
    /// `total` is the loss of a core of zeros before it is scaled to 1.
    pub(super) fn new(grid: &Grid, fidelity: Fidelity, total: f64) -> Self {
        let (n, m) = (grid.n, grid.m);
        let mut supports = Vec::new();
        let mut support = [0u8; MOST];
        (0..n).for_each(|i| support[i] = i as u8);
        loop {
            supports.push(support);
            let Some(i) = (0..n).rev().find(|&i| usize::from(support[i]) < m - n + i) else {
                break;
            };
            support[i] += 1;
            (i + 1..n).for_each(|k| support[k] = support[k - 1] + 1);
        }
        let guards = match fidelity {
            Fidelity::Corrected => Guards::Relative,
            Fidelity::Released => Guards::Absolute { damping: 1e-9 / total, floor: 1e-8 },
        };
        // The released code takes the first of equals.
        if fidelity == Fidelity::Corrected {
            supports.reverse();
        }
        Self { n, m, guards, supports }
    }

    /// The columns of the group that a proposal keeps.
    pub(super) fn kept(&self, proposal: &Proposal) -> impl Iterator<Item = usize> + '_ {
        self.supports[proposal.support][..self.n].iter().map(|c| usize::from(*c))
    }

    /// What the loss can lose by changing this group, and how. `None` where nothing is gained.
    pub(super) fn propose(&self, group: &Group<'_>) -> Option<Proposal> {
        let (n, m) = (self.n, self.m);
        if group.norm <= 0.0 {
            return None;
        }
        let times_gram = |v: &[f64; MOST], i: usize| -> f64 {
            (0..m).map(|j| group.gram[i * m + j] * v[j]).sum()
        };
        let mut f = [0.0; MOST];
        for (i, f) in f.iter_mut().enumerate().take(m) {
            *f = group.slope[i] - group.norm * times_gram(&group.values, i);
        }
        let (damping, floor) = match self.guards {
            Guards::Relative => (0.0, 0.0),
            Guards::Absolute { damping, floor } => (damping, floor),
        };
        let mut best: Option<(usize, f64, [f64; MOST])> = None;
        for (index, support) in self.supports.iter().enumerate() {
            let Some(x) = solve(group.gram, m, &support[..n], damping, &f) else { continue };
            let gain: f64 = (0..n).map(|i| f[usize::from(support[i])] * x[i]).sum();
            if best.as_ref().is_none_or(|(_, most, _)| gain > *most) {
                best = Some((index, gain, x));
            }
        }
        let (support, gain, x) = best?;
        if gain <= 0.0 {
            return None;
        }
        let mut values = [0.0; MOST];
        for i in 0..n {
            values[usize::from(self.supports[support][i])] = -x[i] / (group.norm + floor);
        }
        let mut change = 0.0;
        for i in 0..m {
            let step = values[i] - group.values[i];
            let mut delta = [0.0; MOST];
            (0..m).for_each(|j| delta[j] = values[j] - group.values[j]);
            change += step * (2.0 * group.slope[i] + group.norm * times_gram(&delta, i));
        }
        let accepted = change < 0.0 || matches!(self.guards, Guards::Absolute { .. });
        accepted.then_some(Proposal { support, values, change })
    }
}

/// `(Q_ss + damping I)⁻¹ f_s`, by Cholesky; `None` where Q_ss is not positive definite.
fn solve(
    gram: &[f64],
    m: usize,
    support: &[u8],
    damping: f64,
    f: &[f64; MOST],
) -> Option<[f64; MOST]> {
    let n = support.len();
    let at = |i: usize, j: usize| gram[usize::from(support[i]) * m + usize::from(support[j])];
    let mut x = [0.0; MOST];
    if let [i, j] = *support {
        let (p, q, r) = (at(0, 0) + damping, at(0, 1), at(1, 1) + damping);
        let determinant = p * r - q * q;
        // Below this, what is left of the determinant is rounding.
        if determinant <= 1e-14 * p * r {
            return None;
        }
        let (f, g) = (f[usize::from(i)], f[usize::from(j)]);
        x[0] = (r * f - q * g) / determinant;
        x[1] = (p * g - q * f) / determinant;
        return Some(x);
    }
    let mut l = [[0.0; MOST]; MOST];
    for i in 0..n {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| l[i][k] * l[j][k]).sum();
            if i == j {
                let pivot = at(i, i) + damping - known;
                if pivot <= 1e-14 * at(i, i) {
                    return None;
                }
                l[i][i] = pivot.sqrt();
            } else {
                l[i][j] = (at(i, j) - known) / l[j][j];
            }
        }
    }
    for i in 0..n {
        let known: f64 = (0..i).map(|k| l[i][k] * x[k]).sum();
        x[i] = (f[usize::from(support[i])] - known) / l[i][i];
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|k| l[k][i] * x[k]).sum();
        x[i] = (x[i] - known) / l[i][i];
    }
    Some(x)
}
