use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, Axis, s};
use prune_linalg::{Error, Result, cholesky, cholesky_solve, eigenvalues_symmetric};
use rayon::prelude::*;

use super::Precision;
use super::discrete::{Discrete, scans};
use super::group::{GroupStep, column_norms, grams_of_b};
use super::options::GroupChoice;
use super::state::{Place, Products, State, Tile, sum, zeros_like};

/// How one factor of three moves while the other two stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    /// Against the gradient, as far as the largest curvature allows.
    Gradient,
    /// To the minimum; the core by this many conjugate gradient steps.
    Minimum { core_steps: usize },
}

/// One iteration: A, then B, then the core's values, then `groups` changes of groups in every pair
/// of blocks. Returns the loss after it.
///
/// With `w = h / L0`, the loss of A alone is `tr(A N Aᵀ) − 2 tr(A Mᵀ) + const` a block, where
/// `N = Σ_k C B diag(w) Bᵀ Cᵀ` and `M = Σ_k W̄ diag(w) Bᵀ Cᵀ`: the gradient is `2 (A N − M)`, its
/// largest curvature `2 λmax(N)`, and the minimum `M N⁻¹`. For B with `N = Σ_j (A C)ᵀ A C` and
/// `M = Σ_j (A C)ᵀ W̄` they are `2 (N B − M) diag(w)`, `2 λmax(N) max w` and `N⁻¹ M`.
///
/// # Errors
/// [`Error::NoConvergence`] of an eigenvalue; [`Error::NotFinite`] when the state overflows.
pub(super) fn sweep<T: Precision>(
    state: &mut State<T>,
    motion: Move,
    discrete: (&GroupStep, GroupChoice, usize),
) -> Result<f64> {
    let mut scaled = weighted(state);
    let inner = gram_of_b(&state.b, &scaled);
    let (n, m) = move_a(state, motion, &scaled, &inner)?;
    let blocks = state.b.par_iter_mut().zip(&n).zip(&m).enumerate();
    let (grid, importance) = (state.grid, &state.importance);
    blocks.try_for_each(|(k, ((b, n), m))| match motion {
        Move::Gradient => {
            let h = &importance[grid.cols.block(k)];
            let curvature = largest_eigenvalue(n)? * h.iter().fold(0.0, |m, h| h.max(m));
            if curvature > 0.0 {
                let step = n.dot(b) - m;
                for (mut column, (step, h)) in
                    b.axis_iter_mut(Axis(1)).zip(step.axis_iter(Axis(1)).zip(h))
                {
                    column.scaled_add(T::of(-h / curvature), &step);
                }
            }
            Ok(())
        }
        Move::Minimum { .. } => {
            if let Some(best) = minimum(n, m, b)? {
                *b = best;
            }
            Ok(())
        }
    })?;
    scaled = weighted(state);
    let inner = gram_of_b(&state.b, &scaled);
    move_core(state, motion, &inner, discrete)
}

/// `B diag(w)`, block by block.
fn weighted<T: Precision>(state: &State<T>) -> Vec<Array2<T>> {
    let scale = |(k, b): (usize, &Array2<T>)| {
        let h = &state.importance[state.grid.cols.block(k)];
        let mut scaled = b.clone();
        for mut row in scaled.outer_iter_mut() {
            row.iter_mut().zip(h).for_each(|(x, h)| *x *= T::of(*h));
        }
        scaled
    };
    state.b.par_iter().enumerate().map(scale).collect()
}

/// `B diag(w) Bᵀ`, block by block.
fn gram_of_b<T: Precision>(b: &[Array2<T>], scaled: &[Array2<T>]) -> Vec<Array2<T>> {
    b.par_iter().zip(scaled).map(|(b, scaled)| scaled.dot(&b.t())).collect()
}

/// Moves A; returns N and M of every block of B.
#[allow(clippy::type_complexity)]
fn move_a<T: Precision>(
    state: &mut State<T>,
    motion: Move,
    scaled: &[Array2<T>],
    inner: &[Array2<T>],
) -> Result<(Vec<Array2<T>>, Vec<Array2<T>>)> {
    let grid = state.grid;
    let per_strip = grid.rows.block_range(0).len().max(1);
    let per_task = state.strips_per_task();
    let b = &state.b;
    let tasks = state
        .strips
        .par_chunks(per_task)
        .zip(state.a.par_chunks_mut(per_task * per_strip))
        .enumerate()
        .map_init(Products::empty, |products, (task, (strips, a))| {
            let (mut b_n, mut b_m) = (zeros_like(b), zeros_like(b));
            for (s, (tiles, a)) in strips.iter().zip(a.chunks_mut(per_strip)).enumerate() {
                let places: Vec<Place> =
                    (0..tiles.len()).map(|j| Place::new(&grid, task * per_task + s, j)).collect();
                let (mut n, mut m) = (zeros_like(a), zeros_like(a));
                for (tile, place) in tiles.iter().zip(&places) {
                    products.add_normal_equations_of_a(tile, place, scaled, inner, &mut n, &mut m);
                }
                for ((a, n), m) in a.iter_mut().zip(&n).zip(&m) {
                    move_block_of_a(a, n, m, motion)?;
                }
                for (tile, place) in tiles.iter().zip(&places) {
                    products.add_normal_equations_of_b(tile, place, a, &mut b_n, &mut b_m);
                }
            }
            Ok((b_n, b_m))
        });
    let tasks: Vec<_> = tasks.collect::<Result<_>>()?;
    let (n, m) = tasks.into_iter().unzip();
    Ok((sum(n), sum(m)))
}

fn move_block_of_a<T: Precision>(
    a: &mut Array2<T>,
    n: &Array2<T>,
    m: &Array2<T>,
    motion: Move,
) -> Result<()> {
    match motion {
        Move::Gradient => {
            let curvature = largest_eigenvalue(n)?;
            if curvature > 0.0 {
                let step = a.dot(n) - m;
                a.scaled_add(T::of(-1.0 / curvature), &step);
            }
        }
        Move::Minimum { .. } => {
            let (transposed, target) = (a.t().to_owned(), m.t().to_owned());
            if let Some(best) = minimum(n, &target, &transposed)? {
                *a = best.reversed_axes().as_standard_layout().into_owned();
            }
        }
    }
    Ok(())
}

/// The largest eigenvalue of a symmetric matrix with no negative ones.
fn largest_eigenvalue<T: Precision>(a: &Array2<T>) -> Result<f64> {
    let wide = a.mapv(T::wide);
    Ok(eigenvalues_symmetric(wide.view())?.last().map_or(0.0, |l| l.max(0.0)))
}

/// `X` with `(N + ρ I) X = M + ρ X₀`: the least-squares solution, drawn a little to where it was so
/// that directions without data stay. `None` where N is not positive definite in spite of it.
fn minimum<T: Precision>(
    n: &Array2<T>,
    m: &Array2<T>,
    before: &Array2<T>,
) -> Result<Option<Array2<T>>> {
    let trace: f64 = n.diag().iter().map(|x| x.wide()).sum();
    if trace <= 0.0 {
        return Ok(None);
    }
    // What an f32 sum of products may be off by is more than what f64 may.
    let mut ridge = trace / n.nrows() as f64 * T::epsilon().wide().max(1e-10);
    for _ in 0..4 {
        let mut system = n.mapv(T::wide);
        system.diag_mut().mapv_inplace(|x| x + ridge);
        match cholesky(system.view()) {
            Ok(l) => {
                let target = m.mapv(T::wide) + before.mapv(T::wide) * ridge;
                let x = cholesky_solve(l.view(), target.view())?;
                return Ok(Some(x.mapv(T::of)));
            }
            Err(Error::NotPositiveDefinite { .. }) => ridge *= 100.0,
            Err(other) => return Err(other),
        }
    }
    Ok(None)
}

/// Moves the core's values, then changes groups; the loss.
fn move_core<T: Precision>(
    state: &mut State<T>,
    motion: Move,
    inner: &[Array2<T>],
    (group_step, choice, groups): (&GroupStep, GroupChoice, usize),
) -> Result<f64> {
    let grid = state.grid;
    let grams = grams_of_b(&grid, &state.b, &state.importance);
    let scans = scans(state, &grams, choice);
    let per_strip = grid.rows.block_range(0).len().max(1);
    let b_curvatures = match motion {
        Move::Gradient => inner.par_iter().map(largest_eigenvalue).collect::<Result<Vec<_>>>()?,
        Move::Minimum { .. } => Vec::new(),
    };
    let (b, importance) = (&state.b, &state.importance);
    let strips = state.strips.par_iter_mut().zip(state.a.par_chunks(per_strip)).enumerate();
    let losses = strips.map_init(Products::empty, |products, (i, (tiles, a))| {
        let norms = column_norms(a);
        let outer: Vec<Array2<T>> = a.iter().map(|a| a.t().dot(a)).collect();
        let a_curvatures = match motion {
            Move::Gradient => outer.iter().map(largest_eigenvalue).collect::<Result<_>>()?,
            Move::Minimum { .. } => Vec::new(),
        };
        let discrete = Discrete {
            step: group_step,
            choice,
            m: grid.m,
            grams: &grams,
            scans: &scans,
            importance,
            a,
            norms: &norms,
            b,
        };
        let mut loss = 0.0;
        for (j, tile) in tiles.iter_mut().enumerate() {
            let place = Place::new(&grid, i, j);
            let mut at = products.forward(tile, &place, a, b, importance);
            products.backward(&place, a, b);
            match motion {
                Move::Gradient => {
                    step_core(tile, &place, products, &a_curvatures, &b_curvatures);
                    at = products.forward(tile, &place, a, b, importance);
                    products.backward(&place, a, b);
                }
                Move::Minimum { core_steps } => {
                    at -= minimise_core(tile, &place, products, &outer, inner, core_steps);
                }
            }
            loss += at + discrete.change_groups(tile, &place, products, groups);
        }
        Ok(loss)
    });
    Ok(losses.collect::<Result<Vec<f64>>>()?.iter().sum())
}

/// A gradient step on the kept values, of length 1/β in each pair of blocks:
/// `β = 2 λmax(AᵀA) λmax(B diag(w) Bᵀ)`.
fn step_core<T: Precision>(
    tile: &mut Tile<T>,
    place: &Place,
    products: &Products<T>,
    a_curvatures: &[f64],
    b_curvatures: &[f64],
) {
    for (a, rows) in &place.rows {
        for (b, cols) in &place.cols {
            let curvature = 2.0 * a_curvatures[*a] * b_curvatures[*b];
            if curvature <= 0.0 {
                continue;
            }
            let rate = T::of(1.0 / curvature);
            let at = s![rows.clone(), cols.clone()];
            ndarray::Zip::from(tile.core.slice_mut(at))
                .and(products.core.slice(at))
                .and(tile.kept.slice(at))
                .for_each(|x, g, kept| {
                    if *kept {
                        *x -= rate * *g;
                    }
                });
        }
    }
}

/// Conjugate gradient steps on the kept values of each pair of blocks, scaled by the diagonal of
/// their system; keeps `products.core` up to date and returns what the loss loses.
fn minimise_core<T: Precision>(
    tile: &mut Tile<T>,
    place: &Place,
    products: &mut Products<T>,
    outer: &[Array2<T>],
    inner: &[Array2<T>],
    steps: usize,
) -> f64 {
    let mut lost = 0.0;
    for (a, rows) in &place.rows {
        for (b, cols) in &place.cols {
            let at = s![rows.clone(), cols.clone()];
            let (outer, inner) = (&outer[*a], &inner[*b]);
            let kept = tile.kept.slice(at);
            let mut gradient = products.core.slice_mut(at);
            let mut core = tile.core.slice_mut(at);
            // 1 / diagonal of the system, 0 where nothing is kept.
            let scale = Array2::from_shape_fn(kept.dim(), |(r, c)| {
                let diagonal = 2.0 * outer[[r, r]].wide() * inner[[c, c]].wide();
                let free = kept[[r, c]] && diagonal > 0.0;
                T::of(if free { 1.0 / diagonal } else { 0.0 })
            });
            let mut direction = -(&scale * &gradient);
            let mut fall = -dot(direction.view(), gradient.view());
            let mut half = Array2::zeros(kept.dim());
            let mut image = Array2::zeros(kept.dim());
            for _ in 0..steps {
                general_mat_mul(T::of(2.0), outer, &direction, T::zero(), &mut half);
                general_mat_mul(T::one(), &half, inner, T::zero(), &mut image);
                let curvature = dot(direction.view(), image.view());
                // Not above zero where rounding is all that is left.
                if !(curvature > 0.0 && fall > 0.0) {
                    break;
                }
                let length = fall / curvature;
                core.scaled_add(T::of(length), &direction);
                gradient.scaled_add(T::of(length), &image);
                lost += 0.5 * length * fall;
                half = -(&scale * &gradient);
                let next = -dot(half.view(), gradient.view());
                let keep = T::of(next / fall);
                ndarray::Zip::from(&mut direction).and(&half).for_each(|d, z| *d = *z + keep * *d);
                fall = next;
            }
        }
    }
    lost
}

fn dot<T: Precision>(x: ArrayView2<'_, T>, y: ArrayView2<'_, T>) -> f64 {
    x.iter().zip(y).map(|(x, y)| x.wide() * y.wide()).sum()
}

impl<T: Precision> Products<T> {
    /// Adds the tile's part of N and M of A; see [`sweep`]. Four products.
    fn add_normal_equations_of_a(
        &mut self,
        tile: &Tile<T>,
        place: &Place,
        scaled: &[Array2<T>],
        inner: &[Array2<T>],
        n: &mut [Array2<T>],
        m: &mut [Array2<T>],
    ) {
        self.fit(tile.weight.dim());
        for (block, at) in &place.cols {
            let core = tile.core.slice(s![.., at.clone()]);
            let weight = tile.weight.slice(s![.., at.clone()]);
            let mut out = self.ac.slice_mut(s![.., at.clone()]);
            general_mat_mul(T::one(), &core, &inner[*block], T::zero(), &mut out);
            let mut out = self.rb.slice_mut(s![.., at.clone()]);
            general_mat_mul(T::one(), &weight, &scaled[*block].t(), T::zero(), &mut out);
        }
        for (block, at) in &place.rows {
            let core = tile.core.slice(s![at.clone(), ..]);
            let left = self.ac.slice(s![at.clone(), ..]);
            general_mat_mul(T::one(), &left, &core.t(), T::one(), &mut n[*block]);
            let left = self.rb.slice(s![at.clone(), ..]);
            general_mat_mul(T::one(), &left, &core.t(), T::one(), &mut m[*block]);
        }
    }

    /// Adds the tile's part of N and M of B. Three products.
    fn add_normal_equations_of_b(
        &mut self,
        tile: &Tile<T>,
        place: &Place,
        a: &[Array2<T>],
        n: &mut [Array2<T>],
        m: &mut [Array2<T>],
    ) {
        self.fit(tile.weight.dim());
        for (block, at) in &place.rows {
            let core = tile.core.slice(s![at.clone(), ..]);
            let mut out = self.ac.slice_mut(s![at.clone(), ..]);
            general_mat_mul(T::one(), &a[*block], &core, T::zero(), &mut out);
        }
        for (block, at) in &place.cols {
            let ac = self.ac.slice(s![.., at.clone()]);
            let weight = tile.weight.slice(s![.., at.clone()]);
            general_mat_mul(T::one(), &ac.t(), &ac, T::one(), &mut n[*block]);
            general_mat_mul(T::one(), &ac.t(), &weight, T::one(), &mut m[*block]);
        }
    }
}
