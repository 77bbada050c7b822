use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView2, s};
use prune_core::SeedStream;

use super::Precision;
use super::group::{Group, GroupStep, MOST, Proposal};
use super::options::GroupChoice;
use super::scan::Scan;
use super::state::{Place, Products, State, Tile};

/// The discrete step of a tile: in each pair of blocks one group of the core is chosen and solved.
pub(super) struct Discrete<'a, T> {
    pub(super) step: &'a GroupStep,
    pub(super) choice: GroupChoice,
    /// Columns of a group.
    pub(super) m: usize,
    /// `Q` of every group of columns of the layer.
    pub(super) grams: &'a [f64],
    /// How to rank the groups of each column of tiles; `None` where each is solved instead.
    pub(super) scans: &'a [Option<Scan<T>>],
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
    rows: &'a Range<usize>,
    cols: &'a Range<usize>,
    first_col: usize,
}

/// The scans of every column of tiles, if the choice of groups needs them.
pub(super) fn scans<T: Precision>(
    state: &State<T>,
    grams: &[f64],
    choice: GroupChoice,
) -> Vec<Option<Scan<T>>> {
    let scan = |j| match choice {
        GroupChoice::Exhaustive => Scan::new(&state.grid, grams, j),
        _ => None,
    };
    (0..state.grid.cols.tiles()).map(scan).collect()
}

impl Place {
    /// The pairs of blocks, in row-major order.
    fn pairs(&self) -> impl Iterator<Item = Pair<'_>> {
        self.rows.iter().flat_map(move |(a, rows)| {
            self.cols.iter().map(move |(b, cols)| Pair {
                a: *a,
                b: *b,
                rows,
                cols,
                first_col: self.first_col,
            })
        })
    }
}

impl<T: Precision> Discrete<'_, T> {
    /// Changes `count` groups in every pair of blocks of the tile, one after the other, and what
    /// `products` says of it; the change of the loss.
    ///
    /// All products follow by updates of rank one: `A C` in `m` columns, the others by
    /// `a ⊗ (Δv B)` and what it becomes on its way through Bᵀ and Aᵀ. That is `b²` multiplications a
    /// pair where rebuilding takes `b³`.
    pub(super) fn change_groups(
        &self,
        tile: &mut Tile<T>,
        place: &Place,
        products: &mut Products<T>,
        count: usize,
    ) -> f64 {
        let mut change = 0.0;
        if self.choice == GroupChoice::Exhaustive && count > 0 {
            let best = self.best(tile, place, products, count);
            for (pair, groups) in place.pairs().zip(best) {
                for (_, row, col) in groups {
                    change += self.change(&pair, tile, products, row, col);
                }
            }
            return change;
        }
        for (index, pair) in place.pairs().enumerate() {
            for _ in 0..count {
                let gradient = products.core.view();
                if let Some((row, col)) = self.pick(&pair, gradient, &mut tile.streams[index]) {
                    change += self.change(&pair, tile, products, row, col);
                }
            }
        }
        change
    }

    /// Solves one group and puts the result in its place; the change of the loss.
    fn change(
        &self,
        pair: &Pair<'_>,
        tile: &mut Tile<T>,
        products: &mut Products<T>,
        row: usize,
        col: usize,
    ) -> f64 {
        let group = self.group(pair, &tile.core, products, row, col);
        match self.step.propose(&group) {
            Some(proposal) => {
                self.apply(pair, tile, products, (row, col), &proposal);
                proposal.change
            }
            None => 0.0,
        }
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

    /// In every pair of blocks, the `count` groups that can take most off the loss, the first
    /// among equals first: `(fall, row, column)`.
    fn best(
        &self,
        tile: &Tile<T>,
        place: &Place,
        products: &Products<T>,
        count: usize,
    ) -> Vec<Vec<(f64, usize, usize)>> {
        let mut best: Vec<Vec<(f64, usize, usize)>> = vec![Vec::new(); tile.streams.len()];
        let mut falls = Vec::new();
        for (i, (a, rows)) in place.rows.iter().enumerate() {
            for row in rows.clone() {
                let norm = self.norms[*a][row - rows.start];
                if norm <= 0.0 {
                    continue;
                }
                self.falls(tile, place, products, (*a, rows, row), &mut falls);
                for (j, (_, cols)) in place.cols.iter().enumerate() {
                    let list = &mut best[i * place.cols.len() + j];
                    for col in cols.clone().step_by(self.m) {
                        let fall = falls[col / self.m].wide() * norm;
                        let enough = list.len() < count || list[count - 1].0 < fall;
                        if fall > 0.0 && enough {
                            let at = list.partition_point(|(other, ..)| *other >= fall);
                            list.insert(at, (fall, row, col));
                            list.truncate(count);
                        }
                    }
                }
            }
        }
        best
    }

    /// Writes what each group of a row can take off the loss, over `‖a‖²`.
    fn falls(
        &self,
        tile: &Tile<T>,
        place: &Place,
        products: &Products<T>,
        (a, rows, row): (usize, &Range<usize>, usize),
        falls: &mut Vec<T>,
    ) {
        let norm = self.norms[a][row - rows.start];
        if let Some(scan) = &self.scans[place.col_tile] {
            scan.row(norm, tile.core.row(row), products.core.row(row), falls);
            return;
        }
        falls.clear();
        for (b, cols) in &place.cols {
            let pair = Pair { a, b: *b, rows, cols, first_col: place.first_col };
            for col in cols.clone().step_by(self.m) {
                let group = self.group(&pair, &tile.core, products, row, col);
                let fall = self.step.propose(&group).map_or(0.0, |p| -p.change);
                falls.push(T::of(fall / norm));
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::armor::grid::{Axis, Grid};
    use crate::armor::group::{column_norms, grams_of_b};
    use crate::armor::normalise::normalise;
    use crate::armor::options::Fidelity;
    use crate::layers::Fixture;
    use approx::assert_abs_diff_eq;
    use proptest::prelude::*;
    use prune_core::Seed;

    const CHOICES: [GroupChoice; 4] = [
        GroupChoice::Random,
        GroupChoice::GradientRandom,
        GroupChoice::Greedy,
        GroupChoice::Exhaustive,
    ];

    fn state(weight: &Array2<f64>, h: &[f64], block: usize, pattern: (usize, usize)) -> State<f64> {
        state_of(weight, h, [block, block], pattern)
    }

    fn state_of(
        weight: &Array2<f64>,
        h: &[f64],
        block: [usize; 2],
        (n, m): (usize, usize),
    ) -> State<f64> {
        let grid = Grid {
            rows: Axis::new(weight.nrows(), block[0], 2 * block[0]),
            cols: Axis::new(weight.ncols(), block[1], 3 * block[1]),
            n,
            m,
        };
        State::new(grid, normalise(weight.view()).weight.view(), h, Seed::new(3).stream("state"))
    }

    /// `sin(7i + 3j)` and the importances of the reference's sine inputs.
    fn sine() -> (Array2<f64>, Vec<f64>) {
        let fixture = Fixture::square();
        let h = fixture.importance();
        (fixture.weight, h)
    }

    fn random(rows: usize, cols: usize, seed: u64) -> (Array2<f64>, Vec<f64>) {
        let mut stream = Seed::new(seed).stream("layer");
        let weight = Array2::from_shape_simple_fn((rows, cols), || stream.uniform() - 0.5);
        let h = (0..cols).map(|_| (4.0 * stream.uniform() - 2.0).exp()).collect();
        (weight, h)
    }

    /// Moves A, B and the kept values away from where they start.
    fn disturb(state: &mut State<f64>, stream: &mut SeedStream) {
        let mut noise = |x: &mut f64| *x += 0.3 * (stream.uniform() - 0.5);
        state
            .a
            .iter_mut()
            .chain(&mut state.b)
            .for_each(|block| block.iter_mut().for_each(&mut noise));
        for tile in state.strips.iter_mut().flatten() {
            tile.core.iter_mut().zip(&tile.kept).filter(|(_, k)| **k).for_each(|(x, _)| noise(x));
        }
    }

    /// Changes groups all over the layer; the changes of the loss and the losses, before and after.
    fn sweep(
        state: &mut State<f64>,
        choice: GroupChoice,
        fidelity: Fidelity,
        count: usize,
    ) -> (f64, [f64; 2]) {
        let grid = state.grid;
        let step = GroupStep::new(&grid, fidelity, state.total);
        let grams = grams_of_b(&grid, &state.b, &state.importance);
        let scans = scans(state, &grams, choice);
        let per_strip = grid.rows.block_range(0).len();
        let (mut change, mut losses) = (0.0, [0.0; 2]);
        let State { strips, a, b, importance, .. } = state;
        for (i, (tiles, a)) in strips.iter_mut().zip(a.chunks(per_strip)).enumerate() {
            let norms = column_norms(a);
            let discrete = Discrete {
                step: &step,
                choice,
                m: grid.m,
                grams: &grams,
                scans: &scans,
                importance,
                a,
                norms: &norms,
                b,
            };
            for (j, tile) in tiles.iter_mut().enumerate() {
                let place = Place::new(&grid, i, j);
                let mut products = Products::empty();
                losses[0] += products.forward(tile, &place, a, b, importance);
                products.backward(&place, a, b);
                change += discrete.change_groups(tile, &place, &mut products, count);
                let mut fresh = Products::empty();
                losses[1] += fresh.forward(tile, &place, a, b, importance);
                fresh.backward(&place, a, b);
                for (updated, fresh) in [
                    (&products.ac, &fresh.ac),
                    (&products.gradient, &fresh.gradient),
                    (&products.rb, &fresh.rb),
                    (&products.core, &fresh.core),
                ] {
                    for (x, y) in updated.iter().zip(fresh) {
                        assert_abs_diff_eq!(*x, *y, epsilon = 1e-12);
                    }
                }
                assert!(tile.core.iter().zip(&tile.kept).all(|(x, kept)| *kept || *x == 0.0));
                for row in tile.kept.outer_iter() {
                    let row = row.to_vec();
                    assert!(row.chunks(grid.m).all(|g| g.iter().filter(|k| **k).count() == grid.n));
                }
            }
        }
        (change, losses)
    }

    #[test]
    fn gradients_of_the_groups_match_the_reference() {
        let (weight, h) = sine();
        let state = state(&weight, &h, 4, (2, 4));
        let scores = [
            (0.016728, 0.196786),
            (0.171089, 0.034186),
            (0.181321, 0.109866),
            (0.127455, 0.173496),
            (0.065297, 0.199350),
            (0.069510, 0.107906),
            (0.188398, 0.066120),
            (0.144657, 0.152939),
        ];
        let (place, tile) = (Place::new(&state.grid, 0, 0), &state.strips[0][0]);
        let mut products = Products::empty();
        products.forward(tile, &place, &state.a, &state.b, &state.importance);
        products.backward(&place, &state.a, &state.b);
        for (row, want) in products.core.outer_iter().zip(scores) {
            let sum = |cols: Range<usize>| row.slice(s![cols]).iter().map(|g| g.abs()).sum::<f64>();
            assert_abs_diff_eq!(sum(0..4), want.0, epsilon = 6e-7);
            assert_abs_diff_eq!(sum(4..8), want.1, epsilon = 6e-7);
        }
        let discrete = Discrete {
            step: &GroupStep::new(&state.grid, Fidelity::Corrected, state.total),
            choice: GroupChoice::Greedy,
            m: 4,
            grams: &[],
            scans: &[],
            importance: &state.importance,
            a: &state.a,
            norms: &[],
            b: &state.b,
        };
        let mut stream = Seed::new(0).stream("unused");
        let picks: Vec<_> = place
            .pairs()
            .map(|pair| discrete.pick(&pair, products.core.view(), &mut stream).unwrap())
            .collect();
        assert_eq!(picks, [(2, 0), (0, 4), (6, 0), (4, 4)]);
    }

    fn cores(state: &State<f64>) -> Vec<f64> {
        state.strips.iter().flatten().flat_map(|t| t.core.iter().copied()).collect()
    }

    #[test]
    fn the_released_guards_move_the_start_by_as_much_as_in_the_reference() {
        let (weight, h) = sine();
        let mut state = state(&weight, &h, 4, (2, 4));
        let before = cores(&state);
        let (_, losses) = sweep(&mut state, GroupChoice::Greedy, Fidelity::Released, 1);
        assert_abs_diff_eq!(losses[0], losses[1], epsilon = 1e-15);
        let moved = cores(&state).into_iter().zip(before).map(|(x, y)| (x - y).abs());
        assert_abs_diff_eq!(moved.fold(0.0, f64::max), 6.0e-9, epsilon = 5e-11);
    }

    #[test]
    fn no_group_changes_at_the_start() {
        for ((weight, h), block) in [(sine(), 4), (random(24, 40, 1), 8)] {
            for choice in CHOICES {
                let mut state = state(&weight, &h, block, (2, 4));
                let before = cores(&state);
                let (_, losses) = sweep(&mut state, choice, Fidelity::Released, 1);
                assert_abs_diff_eq!(losses[0], losses[1], epsilon = 1e-12);
                for (x, y) in cores(&state).iter().zip(&before) {
                    // The absolute guards move what is at its best already.
                    assert_abs_diff_eq!(*x, *y, epsilon = 1e-8);
                }
                let (change, losses) = sweep(&mut state, choice, Fidelity::Corrected, 3);
                assert!(change <= 0.0 && losses[1] <= losses[0]);
            }
        }
    }

    fn any_shape() -> impl Strategy<Value = ((usize, usize), usize, (usize, usize))> {
        prop_oneof![
            Just(((24, 40), 8, (2, 4))),
            Just(((10, 12), 4, (2, 4))),
            Just(((9, 24), 8, (1, 4))),
            Just(((16, 16), 8, (4, 8))),
            Just(((7, 10), 5, (3, 5))),
        ]
    }

    proptest! {
        #[test]
        fn changing_groups_never_raises_the_loss_and_knows_by_how_much_it_falls(
            (shape, block, pattern) in any_shape(), choice in 0usize..4, count in 1usize..4,
            seed in any::<u64>(),
        ) {
            let (weight, h) = random(shape.0, shape.1, seed);
            let mut state = state(&weight, &h, block, pattern);
            disturb(&mut state, &mut Seed::new(seed).stream("noise"));
            let (change, losses) = sweep(&mut state, CHOICES[choice], Fidelity::Corrected, count);
            prop_assert!(change <= 0.0, "{change}");
            prop_assert!((losses[1] - losses[0] - change).abs() < 1e-12);
        }

        #[test]
        fn diagonal_factors_only_scale_and_end_where_nowag_p_starts(
            rows in 1usize..12, groups in 1usize..8, seed in any::<u64>(),
        ) {
            let (weight, h) = random(rows, 4 * groups, seed);
            let mut state = state_of(&weight, &h, [1, 4], (2, 4));
            let start = cores(&state);
            let kept: Vec<bool> = start.iter().map(|x| *x != 0.0).collect();
            let (_, [nowag, _]) = sweep(&mut state, GroupChoice::Greedy, Fidelity::Corrected, 0);
            let mut stream = Seed::new(seed).stream("scales");
            let mut scale = || 0.5 + stream.uniform();
            state.a.iter_mut().chain(&mut state.b).for_each(|block| {
                block.diag_mut().mapv_inplace(|_| scale());
            });
            // From any values, each group on its own finds the weights that NoWag-P keeps.
            for tile in state.strips.iter_mut().flatten() {
                tile.core.mapv_inplace(|x| x * scale());
            }
            let count = 4 * groups;
            let (_, losses) = sweep(&mut state, GroupChoice::Exhaustive, Fidelity::Corrected, count);
            prop_assert!(losses[0] > nowag && (losses[1] - nowag).abs() < 1e-12);
            prop_assert_eq!(cores(&state).iter().map(|x| *x != 0.0).collect::<Vec<_>>(), kept);
        }
    }

    #[test]
    fn groups_of_zeros_and_rows_that_a_does_not_read_stay_as_they_are() {
        let (mut weight, h) = random(8, 16, 2);
        weight.slice_mut(s![3, 4..8]).fill(0.0);
        let mut state = state(&weight, &h, 8, (2, 4));
        // Nothing of row 5 of the core reaches the output.
        state.a[0].column_mut(5).fill(0.0);
        let masks = |state: &State<f64>| -> Vec<bool> {
            let tile = &state.strips[0][0];
            let zeros = tile.kept.slice(s![3, 4..8]).to_vec();
            [zeros, tile.kept.slice(s![5, ..]).to_vec()].concat()
        };
        let (before, core) = (masks(&state), state.strips[0][0].core.row(5).to_owned());
        for choice in CHOICES {
            sweep(&mut state, choice, Fidelity::Corrected, 32);
        }
        assert_eq!(masks(&state), before);
        assert_eq!(state.strips[0][0].core.row(5), core);
        assert!(state.strips[0][0].core.slice(s![3, 4..8]).iter().all(|x| *x == 0.0));
    }

    #[test]
    fn the_scan_of_two_in_four_ranks_groups_by_what_solving_them_gives() {
        let (weight, h) = random(16, 48, 5);
        let mut state = state(&weight, &h, 8, (2, 4));
        disturb(&mut state, &mut Seed::new(9).stream("noise"));
        let grid = state.grid;
        let step = GroupStep::new(&grid, Fidelity::Corrected, state.total);
        let grams = grams_of_b(&grid, &state.b, &state.importance);
        let norms = column_norms(&state.a);
        let scans = scans(&state, &grams, GroupChoice::Exhaustive);
        let solved = vec![None, None];
        let discrete = |scans| Discrete {
            step: &step,
            choice: GroupChoice::Exhaustive,
            m: 4,
            grams: &grams,
            scans,
            importance: &state.importance,
            a: &state.a,
            norms: &norms,
            b: &state.b,
        };
        let mut falls = [Vec::new(), Vec::new()];
        let mut products = Products::empty();
        for j in 0..2 {
            let (place, tile) = (Place::new(&grid, 0, j), &state.strips[0][j]);
            products.forward(tile, &place, &state.a, &state.b, &state.importance);
            products.backward(&place, &state.a, &state.b);
            for (a, rows) in &place.rows {
                for row in rows.clone() {
                    for (discrete, falls) in
                        [discrete(&scans), discrete(&solved)].iter().zip(&mut falls)
                    {
                        discrete.falls(tile, &place, &products, (*a, rows, row), falls);
                    }
                    assert_eq!(falls[0].len(), tile.core.ncols() / 4);
                    for (scanned, solved) in falls[0].iter().zip(&falls[1]) {
                        assert_abs_diff_eq!(*scanned, *solved, epsilon = 1e-12);
                    }
                }
            }
        }
    }
}
