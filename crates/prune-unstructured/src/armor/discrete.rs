use ndarray::{Array1, ArrayView2, s};

use super::Precision;
use super::group::{Group, GroupStep, MOST, Proposal};
use super::options::GroupChoice;
use super::state::{Place, Products, Tile};
use ndarray::Array2;
use prune_core::SeedStream;

/// The discrete step of a tile: in each pair of blocks one group of the core is chosen and solved.
pub(super) struct Discrete<'a, T> {
    pub(super) step: &'a GroupStep,
    pub(super) choice: GroupChoice,
    /// Columns of a group.
    pub(super) m: usize,
    /// `Q` of every group of columns of the layer.
    pub(super) grams: &'a [f64],
    /// `h / L0` of every column of the layer.
    pub(super) importance: &'a [f64],
    /// The blocks of A of the strip, and `‖a‖²` of their columns.
    pub(super) a: &'a [Array2<T>],
    pub(super) norms: &'a [Vec<f64>],
    pub(super) b: &'a [Array2<T>],
}

/// A pair of blocks within a tile.
struct Pair<'a> {
    a: usize,
    b: usize,
    rows: &'a std::ops::Range<usize>,
    cols: &'a std::ops::Range<usize>,
    first_col: usize,
}

impl<T: Precision> Discrete<'_, T> {
    /// Changes one group in every pair of blocks of the tile and what `products` says of it; the
    /// change of the loss.
    ///
    /// All products follow by updates of rank one: `A C` in `m` columns, the others by
    /// `a ⊗ (Δv B)` and what it becomes on its way through Bᵀ and Aᵀ. That is `b²` multiplications a
    /// pair where rebuilding takes `b³`.
    pub(super) fn change_groups(
        &self,
        tile: &mut Tile<T>,
        place: &Place,
        products: &mut Products<T>,
    ) -> f64 {
        let mut change = 0.0;
        let mut pair_index = 0;
        for (a, rows) in &place.rows {
            for (b, cols) in &place.cols {
                let pair = Pair { a: *a, b: *b, rows, cols, first_col: place.first_col };
                let stream = &mut tile.streams[pair_index];
                pair_index += 1;
                let chosen = match self.choice {
                    GroupChoice::Exhaustive => self.best(&pair, &tile.core, products),
                    _ => self.pick(&pair, products.core.view(), stream).and_then(|(row, col)| {
                        let group = self.group(&pair, &tile.core, products, row, col);
                        Some((row, col, self.step.propose(&group)?))
                    }),
                };
                if let Some((row, col, proposal)) = chosen {
                    self.apply(&pair, tile, products, (row, col), &proposal);
                    change += proposal.change;
                }
            }
        }
        change
    }

    /// The group whose first weight is `(row, col)` of the tile.
    fn group(
        &self,
        pair: &Pair<'_>,
        core: &Array2<T>,
        products: &Products<T>,
        row: usize,
        col: usize,
    ) -> Group<'_> {
        let m = self.m;
        let (mut values, mut slope) = ([0.0; MOST], [0.0; MOST]);
        for i in 0..m {
            values[i] = core[[row, col + i]].wide();
            slope[i] = 0.5 * products.core[[row, col + i]].wide();
        }
        let gram = (pair.first_col + col) / m * m * m;
        Group {
            norm: self.norms[pair.a][row - pair.rows.start],
            gram: &self.grams[gram..gram + m * m],
            values,
            slope,
        }
    }

    /// A group by its gradient, or at random; `None` where no gradient is left.
    fn pick(
        &self,
        pair: &Pair<'_>,
        gradient: ArrayView2<'_, T>,
        stream: &mut SeedStream,
    ) -> Option<(usize, usize)> {
        let groups = pair.cols.len() / self.m;
        let place =
            |g: usize| (pair.rows.start + g / groups, pair.cols.start + g % groups * self.m);
        if self.choice == GroupChoice::Random {
            return Some(place(stream.below((groups * pair.rows.len()) as u64) as usize));
        }
        let block = gradient.slice(s![pair.rows.clone(), pair.cols.clone()]);
        let norm = |group: &[T]| group.iter().fold(T::zero(), |s, g| s + g.abs()).wide();
        let rows = block.outer_iter().enumerate().flat_map(|(r, row)| {
            let row = row.to_slice().unwrap_or_default();
            row.chunks_exact(self.m).enumerate().map(move |(q, g)| (r * groups + q, norm(g)))
        });
        if self.choice == GroupChoice::Greedy {
            let largest = rows.fold((0, 0.0), |best, g| if g.1 > best.1 { g } else { best });
            return (largest.1 > 0.0).then(|| place(largest.0));
        }
        let norms: Vec<f64> = rows.map(|(_, n)| n).collect();
        let drawn = stream.uniform() * norms.iter().sum::<f64>();
        let mut sum = 0.0;
        let hit = norms.iter().position(|n| {
            sum += n;
            *n > 0.0 && sum > drawn
        });
        hit.map(place)
    }

    /// The group that can take most off the loss.
    fn best(
        &self,
        pair: &Pair<'_>,
        core: &Array2<T>,
        products: &Products<T>,
    ) -> Option<(usize, usize, Proposal)> {
        let mut best: Option<(usize, usize, Proposal)> = None;
        for row in pair.rows.clone() {
            for col in pair.cols.clone().step_by(self.m) {
                let group = self.group(pair, core, products, row, col);
                if let Some(found) = self.step.propose(&group)
                    && best.as_ref().is_none_or(|(.., b)| found.change < b.change)
                {
                    best = Some((row, col, found));
                }
            }
        }
        best
    }

    fn apply(
        &self,
        pair: &Pair<'_>,
        tile: &mut Tile<T>,
        products: &mut Products<T>,
        (row, col): (usize, usize),
        proposal: &Proposal,
    ) {
        let m = self.m;
        let steps: Vec<T> =
            (0..m).map(|i| T::of(proposal.values[i]) - tile.core[[row, col + i]]).collect();
        for i in 0..m {
            tile.kept[[row, col + i]] = false;
            tile.core[[row, col + i]] = T::zero();
        }
        for i in self.step.kept(proposal) {
            tile.kept[[row, col + i]] = true;
            tile.core[[row, col + i]] = T::of(proposal.values[i]);
        }
        let (a, b) = (&self.a[pair.a], &self.b[pair.b]);
        let column = a.column(row - pair.rows.start);
        let mut ac = products.ac.slice_mut(s![pair.rows.clone(), col..col + m]);
        for (mut out, a) in ac.outer_iter_mut().zip(&column) {
            out.iter_mut().zip(&steps).for_each(|(out, step)| *out += *a * *step);
        }
        // What one unit of `a` adds to the gradient, and that times Bᵀ.
        let rows = col - pair.cols.start..col - pair.cols.start + m;
        let importance = &self.importance[pair.first_col + pair.cols.start..];
        let mut unit = Array1::from(steps).dot(&b.slice(s![rows, ..]));
        unit.iter_mut().zip(importance).for_each(|(u, h)| *u *= T::of(2.0 * h));
        let back = b.dot(&unit);
        let inner = a.t().dot(&column);
        let at = s![pair.rows.clone(), pair.cols.clone()];
        add_outer(products.gradient.slice_mut(at), column, &unit);
        add_outer(products.rb.slice_mut(at), column, &back);
        add_outer(products.core.slice_mut(at), inner.view(), &back);
    }
}

/// `out += x ⊗ y`.
fn add_outer<T: Precision>(
    mut out: ndarray::ArrayViewMut2<'_, T>,
    x: ndarray::ArrayView1<'_, T>,
    y: &Array1<T>,
) {
    for (mut row, x) in out.outer_iter_mut().zip(x) {
        row.scaled_add(*x, y);
    }
}
