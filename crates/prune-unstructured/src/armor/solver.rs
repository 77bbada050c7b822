use ndarray::{Array2, Array3, ArrayView2, s};
use prune_core::{BlockDiagonal, Error, Mask, NmPacked, Pattern, Result, Scope, Target};

use super::adam::Adam;
use super::grid::{Axis, Grid};
use super::group::GroupStep;
use super::normalise::{Normalised, normalise, valid_importance};
use super::options::{AdamOptions, ArmorMethod, ArmorOptions, Keep};
use super::snapshot::Snapshot;
use super::state::{Place, Products, State};
use super::sweep::{Move, sweep};
use super::{ArmorLayer, Precision};

/// Rows and columns of a tile where blocks allow: what a thread touches at once, six matrices of
/// this size, fits its second-level cache.
const TILE: [usize; 2] = [64, 128];

/// A layer that ARMOR decomposed, and how the loss fell.
#[derive(Debug, Clone)]
pub struct ArmorSolution<T> {
    /// The factors, norms folded in.
    pub layer: ArmorLayer<T>,
    /// What the core keeps: exactly `n` of every group.
    pub mask: Mask,
    /// The loss at the start, where it is that of NoWag-P, after each sweep of a warm-up and after
    /// each iteration:
    /// `Σ h (W̄ − A S B)² / Σ h W̄²`.
    pub losses: Vec<f64>,
    /// The loss of the result, computed from it.
    pub loss: f64,
}

/// The ARMOR decomposition of `weight` (`out_features x in_features`) with the N:M core that
/// `target` asks for.
///
/// `importance` is what the squared error of each column of the normalised weight counts:
/// `h_j = 2 · mean x_j²` of the layer's inputs for the authors, any scale of it here; a number that
/// is not finite and above 0 is replaced by the mean of those that are. Random choices come from
/// `target.stream`. In f32 for use, in f64 to follow a trajectory.
///
/// Liu, Zhao, Wu, Tang (2025), "ARMOR: High-Performance Semi-Structured Pruning via Adaptive
/// Matrix Factorization", arXiv 2510.05528. Parallel over strips of blocks; the result does not
/// depend on the number of threads. An iteration of Adam costs
/// `3 · rows · cols · (block of A + block of B)` multiplications; weight, core, moments and the best
/// core so far are five numbers a weight.
///
/// # Errors
/// [`Error::Unsupported`] for a pattern other than N:M; [`Error::PatternShape`] when the columns
/// are no multiple of `m`; [`Error::NotFinite`] for the weight, or a loss that overflowed;
/// [`Error::OutOfRange`] for options that do not fit, a wrong `target.remove` or weights beyond
/// what can be squared; [`Error::Shape`] for another number of importances than columns;
/// [`Error::NoStatistics`] when none of them is above 0; [`Error::External`] when a decomposition of
/// the exact methods fails.
///
/// ```
/// use ndarray::Array2;
/// use prune_core::{LayerId, Pattern, Scope, Seed, Target};
/// use prune_unstructured::{ArmorOptions, armor};
///
/// let weight = Array2::from_shape_fn((32, 32), |(i, j)| ((7 * i + 3 * j * j) as f32).sin());
/// let importance: Vec<f64> = (0..32).map(|j| 1.0 + f64::from(j % 5)).collect();
/// let layer = LayerId::new("mlp.up_proj");
/// let target = Target {
///     layer: &layer,
///     pattern: Pattern::NM { n: 2, m: 4 },
///     scope: Scope::PerRow,
///     remove: 512,
///     stream: Seed::new(0).stream("mlp.up_proj"),
/// };
/// let options = ArmorOptions::fast().block(8).iterations(100);
/// let found = armor(weight.view(), &importance, &options, &target)?;
/// assert!(found.loss < 0.5 * found.losses[0]);
/// found.mask.check(target.pattern)?;
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn armor<T: Precision>(
    weight: ArrayView2<'_, T>,
    importance: &[f64],
    options: &ArmorOptions,
    target: &Target<'_>,
) -> Result<ArmorSolution<T>> {
    let (rows, cols) = weight.dim();
    let layer = target.layer;
    let (n, m) = check_target(target, rows, cols)?;
    options.check(m)?;
    if let Some((index, w)) = weight.iter().enumerate().find(|(_, w)| !w.is_finite()) {
        return Err(Error::NotFinite { what: layer.weight_name(), index, value: w.to_string() });
    }
    let h = valid_importance(importance, cols, layer)?;
    let axis = |i: usize, size: usize| Axis::new(size, options.block[i].min(size.max(1)), TILE[i]);
    let grid = Grid { rows: axis(0, rows), cols: axis(1, cols), n, m };
    let normal = normalise(weight);
    if normal.rows.iter().chain(&normal.columns).any(|norm| !norm.is_finite()) {
        return Err(Error::OutOfRange {
            what: format!("{layer} (norm of a row or column)"),
            found: "infinity".to_string(),
            expected: "weights whose squares can be summed in f64".to_string(),
        });
    }
    let mut state = State::new(grid, normal.weight.view(), &h, target.stream.clone());
    // A layer of zeros is its own decomposition.
    let losses = match state.total > 0.0 {
        true => solve(&mut state, options).map_err(|e| Error::external(layer.as_str(), e))?,
        false => vec![0.0],
    };
    let loss = loss(&state);
    if !loss.is_finite() {
        return Err(Error::NotFinite {
            what: format!("{layer} (armor loss; lower the learning rates)"),
            index: losses.len() - 1,
            value: loss.to_string(),
        });
    }
    finish(&state, &normal, losses, loss)
}

/// The `n` and `m` of the core, once it is clear that the layer can carry it.
fn check_target(target: &Target<'_>, rows: usize, cols: usize) -> Result<(usize, usize)> {
    supports(target.pattern, target.scope)?;
    let Pattern::NM { n, m } = target.pattern else { return Ok((0, 1)) };
    Pattern::nm(n, m)?.check_shape(&target.layer.weight_name(), rows, cols)?;
    let remove = rows * cols / m * (m - n);
    if target.remove != remove {
        return Err(Error::OutOfRange {
            what: format!("{} (weights to remove)", target.layer),
            found: target.remove.to_string(),
            expected: format!("{remove}, {} of every {m}", m - n),
        });
    }
    Ok((n, m))
}

/// Whether the core can have this pattern.
pub(super) fn supports(pattern: Pattern, scope: Scope) -> Result<()> {
    let reason = match (pattern, scope) {
        (Pattern::NM { .. }, Scope::PerRow | Scope::PerLayer) => return Ok(()),
        (Pattern::NM { .. }, _) => "every group removes the same number; use scope `row`",
        _ => "the core is N:M; use a pattern such as `2:4`",
    };
    Err(Error::Unsupported { method: "armor".into(), pattern, scope, reason: reason.into() })
}

/// Runs the iterations and leaves the state that is kept; the losses.
fn solve<T: Precision>(
    state: &mut State<T>,
    options: &ArmorOptions,
) -> prune_linalg::Result<Vec<f64>> {
    let step = GroupStep::new(&state.grid, options.fidelity, state.total);
    let groups = (&step, options.choice, options.discrete_steps);
    let motion = match &options.method {
        ArmorMethod::Adam(adam) => {
            let core_steps = AdamOptions::WARM_UP_CORE_STEPS;
            let mut losses = vec![loss(state)];
            for _ in 0..adam.warm_up {
                losses.push(sweep(state, Move::Minimum { core_steps }, groups)?);
            }
            let mut adam = Adam::new(*adam, state);
            // Adam's own losses begin where the sweeps ended.
            losses.pop();
            let first = adam.start(state, &step);
            losses.extend(adam_iterations(state, options, &mut adam, &step, first));
            return Ok(losses);
        }
        ArmorMethod::Sequential => Move::Gradient,
        ArmorMethod::Exact { core_steps } => Move::Minimum { core_steps: *core_steps },
    };
    let mut progress = Progress::new(loss(state), options);
    for _ in 0..options.iterations {
        for _ in 1..options.continuous_steps {
            sweep(state, motion, (&step, options.choice, 0))?;
        }
        if progress.stops_after(sweep(state, motion, groups)?) {
            break;
        }
    }
    Ok(progress.losses)
}

fn adam_iterations<T: Precision>(
    state: &mut State<T>,
    options: &ArmorOptions,
    adam: &mut Adam<T>,
    step: &GroupStep,
    first: f64,
) -> Vec<f64> {
    let mut progress = Progress::new(first, options);
    let mut best = match options.keep {
        Keep::Best => Some(Snapshot::new(state)),
        Keep::Last => None,
    };
    let mut best_loss = first;
    // Whether `best` holds the state of `best_loss`, which may still be the current one.
    let mut stored = true;
    let last = options.iterations.saturating_sub(1).max(1) as f64;
    for iteration in 0..options.iterations {
        let fraction = iteration as f64 / last;
        let mut loss = f64::NAN;
        for continuous in 0..options.continuous_steps {
            let groups = match continuous + 1 == options.continuous_steps {
                true => options.discrete_steps,
                false => 0,
            };
            let before = best.as_mut().filter(|_| !stored && continuous == 0);
            loss = adam.iterate(state, fraction, (step, options.choice, groups), before);
        }
        stored = true;
        if loss < best_loss {
            best_loss = loss;
            stored = false;
        }
        if progress.stops_after(loss) {
            break;
        }
    }
    if let Some(best) = best.filter(|_| stored) {
        best.restore(state);
    }
    progress.losses
}

/// The losses so far, and the patience that is left.
struct Progress<'a> {
    losses: Vec<f64>,
    options: &'a ArmorOptions,
    failures: usize,
}

impl<'a> Progress<'a> {
    fn new(first: f64, options: &'a ArmorOptions) -> Self {
        Self { losses: vec![first], options, failures: 0 }
    }

    /// Notes a loss; whether to give up.
    fn stops_after(&mut self, loss: f64) -> bool {
        let patience = &self.options.patience;
        let before = self.losses.last().copied().unwrap_or(loss);
        self.losses.push(loss);
        let improved =
            loss <= before * (1.0 - patience.relative) && loss <= before - patience.absolute;
        self.failures = if improved { 0 } else { self.failures + 1 };
        self.failures >= patience.iterations || !loss.is_finite()
    }
}

/// The loss, from scratch.
fn loss<T: Precision>(state: &State<T>) -> f64 {
    use rayon::prelude::*;
    let per_strip = state.grid.rows.block_range(0).len().max(1);
    let strips = state.strips.par_iter().zip(state.a.par_chunks(per_strip)).enumerate();
    let losses = strips.map_init(Products::empty, |products, (i, (tiles, a))| {
        let tile_loss = |(j, tile)| {
            let place = Place::new(&state.grid, i, j);
            products.forward(tile, &place, a, &state.b, &state.importance)
        };
        tiles.iter().enumerate().map(tile_loss).sum::<f64>()
    });
    losses.collect::<Vec<f64>>().iter().sum()
}

/// Folds the norms into A and B and packs the core.
fn finish<T: Precision>(
    state: &State<T>,
    normal: &Normalised<T>,
    losses: Vec<f64>,
    loss: f64,
) -> Result<ArmorSolution<T>> {
    let grid = &state.grid;
    let (rows, cols) = (grid.rows.size, grid.cols.size);
    let mut core = Array2::zeros((rows, cols));
    let mut mask = Mask::all_removed(rows, cols);
    for (i, tiles) in state.strips.iter().enumerate() {
        for (j, tile) in tiles.iter().enumerate() {
            let (r, c) = (grid.rows.tile(i), grid.cols.tile(j));
            core.slice_mut(s![r.clone(), c.clone()]).assign(&tile.core);
            for ((y, x), kept) in tile.kept.indexed_iter() {
                if *kept {
                    mask.keep(r.start + y, c.start + x);
                }
            }
        }
    }
    let core = NmPacked::from_dense_masked(core.view(), &mask, grid.n, grid.m)?;
    let a = folded(&grid.rows, &state.a, |row, _| normal.rows[row])?;
    let b = folded(&grid.cols, &state.b, |_, col| normal.columns[col])?;
    Ok(ArmorSolution { layer: ArmorLayer::new(a, core, b)?, mask, losses, loss })
}

/// The blocks with each number multiplied by `scale(row, column)` of the whole matrix.
fn folded<T: Precision>(
    axis: &Axis,
    blocks: &[Array2<T>],
    scale: impl Fn(usize, usize) -> f64,
) -> Result<BlockDiagonal<T>> {
    let mut data = Array3::zeros((blocks.len(), axis.block, axis.block));
    for (i, block) in blocks.iter().enumerate() {
        let first = axis.block(i).start;
        for ((r, c), x) in block.indexed_iter() {
            data[[i, r, c]] = T::of(x.wide() * scale(first + r, first + c));
        }
    }
    BlockDiagonal::from_parts(axis.size, data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Fixture;
    use crate::{CoreRate, Fidelity, GroupChoice, Schedule};
    use approx::assert_abs_diff_eq;
    use proptest::prelude::*;
    use prune_core::Seed;

    const RATE: AdamOptions = AdamOptions {
        factor_rate: 1e-2,
        core_rate: CoreRate::Absolute(1e-2),
        schedule: Schedule::Constant,
        warm_up: 0,
    };

    fn start(weight: &Array2<f64>, h: &[f64], block: [usize; 2]) -> (State<f64>, Normalised<f64>) {
        let axis = |i: usize, size: usize| Axis::new(size, block[i], TILE[i]);
        let (rows, cols) = weight.dim();
        let grid = Grid { rows: axis(0, rows), cols: axis(1, cols), n: 2, m: 4 };
        let normal = normalise(weight.view());
        let state = State::new(grid, normal.weight.view(), h, Seed::new(3).stream("state"));
        (state, normal)
    }

    #[test]
    fn losses_of_a_core_of_zeros_match_the_reference_before_they_are_scaled_to_one() {
        for (fixture, block, total) in
            [(Fixture::square(), 4, 11.170786239), (Fixture::correlated(), 8, 40.747204)]
        {
            let (state, _) = start(&fixture.weight, &fixture.importance(), [block; 2]);
            assert_abs_diff_eq!(state.total, total, epsilon = total * 1e-8);
        }
    }

    #[test]
    fn losses_between_the_step_of_adam_and_the_change_of_groups_match_the_reference() {
        let fixture = Fixture::square();
        for (iteration, want) in [
            (1, 0.311478593),
            (2, 0.287320625),
            (3, 0.263817149),
            (10, 0.130364064),
            (50, 0.003825967),
        ] {
            let (mut state, _) = start(&fixture.weight, &fixture.importance(), [4, 4]);
            let step = GroupStep::new(&state.grid, Fidelity::Released, state.total);
            let mut adam = Adam::new(RATE, &state);
            adam.start(&mut state, &step);
            for _ in 1..iteration {
                adam.iterate(&mut state, 0.0, (&step, GroupChoice::Greedy, 1), None);
            }
            let half = adam.iterate(&mut state, 0.0, (&step, GroupChoice::Greedy, 0), None);
            assert_abs_diff_eq!(half, want, epsilon = 6e-10);
        }
    }

    proptest! {
        #[test]
        fn norms_folded_into_the_factors_are_norms_around_their_product(
            rows in 1usize..20, groups in 1usize..7, a in 1usize..9, b in 1usize..4,
            seed in any::<u64>(),
        ) {
            let mut stream = Seed::new(seed).stream("layer");
            let weight =
                Array2::from_shape_simple_fn((rows, 4 * groups), || 2.0 * stream.uniform() - 1.0);
            let h: Vec<f64> = (0..4 * groups).map(|_| 0.1 + stream.uniform()).collect();
            let (mut state, normal) = start(&weight, &h, [a, 4 * b]);
            for block in state.a.iter_mut().chain(&mut state.b) {
                block.mapv_inplace(|x| x + stream.uniform() - 0.5);
            }
            let bare = Normalised {
                weight: normal.weight.clone(),
                rows: vec![1.0; rows],
                columns: vec![1.0; 4 * groups],
            };
            let folded = finish(&state, &normal, vec![], 0.0).unwrap().layer.to_dense();
            let plain = finish(&state, &bare, vec![], 0.0).unwrap().layer.to_dense();
            for ((at, folded), plain) in folded.indexed_iter().zip(&plain) {
                let want = normal.rows[at.0] * plain * normal.columns[at.1];
                prop_assert!((folded - want).abs() < 1e-12, "{folded} {want}");
            }
        }
    }
}
