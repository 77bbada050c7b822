//! What must hold of methods that fit weights to outputs, on random layers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod layers;

use approx::assert_relative_eq;
use layers::TWO_FOUR;
use ndarray::{Array2, ArrayView2, Axis, s};
use proptest::prelude::*;
use prune_core::{
    ColumnStats, Fidelity, GramAccumulator, LayerId, LayerStats, Mask, Pattern, Pruned, Pruner,
    Result, Scope, ScorePruner, Seed, SeedStream, Target,
};
use prune_unstructured::{
    Alps, ChannelImportance, ColumnOrder, Dsnot, Magnitude, PermuteOptions, Refinement, Refit,
    Solver, SparseGpt, Wanda, permute_channels, pruner,
};

const UNSTRUCTURED: Pattern = Pattern::Unstructured;

/// A number of about normal distribution.
fn normal(stream: &mut SeedStream) -> f64 {
    (0..12).map(|_| stream.uniform()).sum::<f64>() - 6.0
}

/// How the inputs of a layer are distributed.
#[derive(Debug, Clone, Copy)]
struct Inputs {
    /// What the channels share: this much of a mixture of a quarter as many signals, the rest noise.
    shared: f64,
    /// How much louder every 16th channel is.
    outlier: f32,
}

/// Normal weights, and what calibration would see.
struct Layer {
    weight: Array2<f32>,
    stats: LayerStats,
}

impl Layer {
    /// Correlated inputs, every 16th ten times as loud.
    fn random(rows: usize, cols: usize, tokens: usize, seed: u64) -> Self {
        Self::over(Inputs { shared: 0.9, outlier: 10.0 }, (rows, cols, tokens), seed)
    }

    fn over(
        Inputs { shared, outlier }: Inputs,
        (rows, cols, tokens): (usize, usize, usize),
        seed: u64,
    ) -> Self {
        let noise = (1.0 - shared * shared).sqrt();
        let signals = cols.div_ceil(4);
        let shared = shared / (signals as f64).sqrt();
        let mut stream = Seed::new(seed).stream("layer");
        let weight = Array2::from_shape_simple_fn((rows, cols), || normal(&mut stream) as f32);
        let mut draw = |shape| Array2::from_shape_simple_fn(shape, || normal(&mut stream));
        let mixture = draw((tokens, signals)).dot(&draw((signals, cols)));
        let mut inputs = (mixture * shared + draw((tokens, cols)) * noise).mapv(|x| x as f32);
        inputs.columns_mut().into_iter().skip(5).step_by(16).for_each(|mut x| x *= outlier);
        let (mut columns, mut gram) = (ColumnStats::new(cols), GramAccumulator::new(cols));
        columns.update("x", inputs.view()).unwrap();
        gram.update("x", inputs.view()).unwrap();
        Self {
            weight,
            stats: LayerStats { columns: Some(columns), gram: Some(gram), ..LayerStats::default() },
        }
    }

    /// The same layer with inputs `2^power` times as large: nothing rounds.
    fn louder(&self, power: i32) -> Self {
        let (root, scale) = (2f64.powi(power), 4f64.powi(power));
        let by = |v: &[f64], s: f64| v.iter().map(|x| x * s).collect::<Vec<_>>();
        let columns = self.stats.columns.as_ref().unwrap();
        let columns = ColumnStats::from_parts(
            columns.count(),
            by(columns.mean(), root),
            by(columns.m2(), scale),
            by(columns.squared_norm(), scale),
            by(columns.abs_sum(), root),
            by(columns.abs_max(), root),
        );
        let tokens = self.stats.gram.as_ref().unwrap().count();
        let gram = GramAccumulator::from_parts(tokens, self.gram().mapv(|v| v * scale));
        let stats = LayerStats {
            columns: Some(columns.unwrap()),
            gram: Some(gram.unwrap()),
            ..LayerStats::default()
        };
        Self { weight: self.weight.clone(), stats }
    }

    fn gram(&self) -> ArrayView2<'_, f64> {
        self.stats.gram.as_ref().unwrap().matrix()
    }

    fn mean_diagonal(&self) -> f64 {
        self.gram().diag().sum() / self.weight.ncols() as f64
    }

    fn prune(
        &self,
        method: &dyn Pruner,
        (pattern, scope, remove): (Pattern, Scope, usize),
    ) -> Result<(Pruned, Array2<f32>)> {
        let layer = LayerId::new("fc");
        let stream = Seed::new(0).stream("fc");
        let target = Target { layer: &layer, pattern, scope, remove, stream };
        let mut weight = self.weight.clone();
        let pruned = method.prune(weight.view_mut(), &self.stats, &target)?;
        Ok((pruned, weight))
    }

    /// `tr(ΔW (G + λI) ΔWᵀ)`, λ over the mean diagonal.
    fn loss(&self, weight: &Array2<f32>, damping: f64) -> f64 {
        let change = (&self.weight - weight).mapv(f64::from);
        let ridge = damping * self.mean_diagonal() * change.mapv(|d| d * d).sum();
        (change.dot(&self.gram()) * &change).sum() + ridge
    }

    fn error(&self, method: &dyn Pruner, target: (Pattern, Scope, usize)) -> f64 {
        self.loss(&self.prune(method, target).unwrap().1, 0.0)
    }
}

fn random_mask(rows: usize, cols: usize, seed: u64) -> Mask {
    let mut stream = Seed::new(seed).stream("mask");
    Mask::from_fn(rows, cols, |_, _| stream.uniform() < 0.5)
}

fn wanda() -> Box<dyn Pruner> {
    Box::new(ScorePruner(Wanda))
}

fn half(layer: &Layer, pattern: Pattern) -> (Pattern, Scope, usize) {
    (pattern, Scope::PerLayer, layer.weight.len() / 2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_loss_of_sparsegpt_is_the_damped_change_of_the_outputs(
        rows in 1usize..12, groups in 1usize..14, part in 0.0..0.9f64, seed in any::<u64>(),
        nm in any::<bool>(), loudest_first in any::<bool>(), block in 1usize..40,
    ) {
        let layer = Layer::random(rows, 4 * groups, 64, seed);
        let order = if loudest_first { ColumnOrder::LoudestFirst } else { ColumnOrder::Stored };
        let method = SparseGpt::default().with_order(order).with_block_size(block).unwrap();
        let target = match nm {
            true => half(&layer, TWO_FOUR),
            false => {
                let remove = (part * layer.weight.len() as f64) as usize;
                (UNSTRUCTURED, Scope::PerLayer, remove)
            }
        };
        let (pruned, weight) = layer.prune(&method, target).unwrap();
        let (found, want) = (pruned.report.loss.unwrap(), layer.loss(&weight, 0.01));
        prop_assert!((found - want).abs() <= 2e-5 * want + 1e-9, "{found} {want}");
    }

    #[test]
    fn the_block_size_changes_nothing_but_rounding_for_groups_and_given_masks(
        rows in 1usize..10, groups in 2usize..20, block in 1usize..60, seed in any::<u64>(),
    ) {
        let layer = Layer::random(rows, 4 * groups, 64, seed);
        let whole = SparseGpt::default().with_block_size(1000).unwrap();
        let parts = SparseGpt::default().with_block_size(block).unwrap();
        let target = half(&layer, TWO_FOUR);
        let (a, one) = layer.prune(&whole, target).unwrap();
        let (b, other) = layer.prune(&parts, target).unwrap();
        prop_assert_eq!(a.mask, b.mask);
        prop_assert!((&one - &other).iter().all(|d| d.abs() < 1e-4));

        let mask = random_mask(rows, 4 * groups, seed);
        let id = LayerId::new("fc");
        let (mut one, mut other) = (layer.weight.clone(), layer.weight.clone());
        whole.compensate(one.view_mut(), &layer.stats, &mask, &id).unwrap();
        parts.compensate(other.view_mut(), &layer.stats, &mask, &id).unwrap();
        prop_assert!((&one - &other).iter().all(|d| d.abs() < 1e-4));
    }

    #[test]
    fn rows_are_independent_in_groups_and_under_a_given_mask(
        rows in 2usize..80, groups in 1usize..12, seed in any::<u64>(),
    ) {
        let layer = Layer::random(rows, 4 * groups, 64, seed);
        let method = SparseGpt::default().with_block_size(12).unwrap();
        let (all, together) = layer.prune(&method, half(&layer, TWO_FOUR)).unwrap();
        let r = rows / 2;
        let alone = Layer {
            weight: layer.weight.slice(s![r..r + 1, ..]).to_owned(),
            stats: layer.stats.clone(),
        };
        let (one, weight) = alone.prune(&method, half(&alone, TWO_FOUR)).unwrap();
        prop_assert_eq!(weight.row(0), together.row(r));
        prop_assert!((0..4 * groups).all(|c| one.mask.is_kept(0, c) == all.mask.is_kept(r, c)));
    }

    #[test]
    fn removing_one_weight_costs_its_square_over_the_inverse_hessian(
        cols in 2usize..20, part in 0.0..1.0f64, seed in any::<u64>(),
    ) {
        let layer = Layer::random(1, cols, 64, seed);
        let id = LayerId::new("fc");
        let mut damped = layer.gram().to_owned();
        damped.diag_mut().mapv_inplace(|d| d + 0.01 * layer.mean_diagonal());
        let lower = prune_linalg::cholesky(damped.view()).unwrap();
        let inverse = prune_linalg::cholesky_inverse(lower.view()).unwrap();
        let cost = |q: usize| f64::from(layer.weight[[0, q]]).powi(2) / inverse[[q, q]];
        let without = |q: usize| Mask::from_fn(1, cols, |_, c| c != q);

        // All columns make up for the first in a pass from left to right,
        let mut weight = layer.weight.clone();
        let report =
            SparseGpt::default().compensate(weight.view_mut(), &layer.stats, &without(0), &id);
        prop_assert!((report.unwrap().loss.unwrap() - cost(0)).abs() <= 1e-5 * cost(0));
        // and for any column in the best fit.
        let q = (part * cols as f64) as usize;
        let refit = Refit::default().with_solver(Solver::Exact).unwrap();
        let mut weight = layer.weight.clone();
        refit
            .refit(layer.weight.view(), weight.view_mut(), &without(q), &layer.stats, &id)
            .unwrap();
        let found = layer.loss(&weight, 0.01);
        prop_assert!((found - cost(q)).abs() <= 1e-4 * cost(q) + 1e-9, "{found} {}", cost(q));
    }

    #[test]
    fn least_squares_is_never_worse_on_the_same_mask_and_conjugate_gradients_approach_it(
        rows in 1usize..40, cols in 2usize..48, seed in any::<u64>(),
    ) {
        let layer = Layer::random(rows, cols, 96, seed);
        let mask = random_mask(rows, cols, seed);
        let id = LayerId::new("fc");
        let mut obs = layer.weight.clone();
        SparseGpt::default().compensate(obs.view_mut(), &layer.stats, &mask, &id).unwrap();
        let fit = |solver| {
            let refit = Refit::default().with_solver(solver).unwrap();
            let mut weight = obs.clone();
            let dense = layer.weight.view();
            refit.refit(dense, weight.view_mut(), &mask, &layer.stats, &id).unwrap();
            prop_assert!(weight.indexed_iter().all(|((r, c), w)| mask.is_kept(r, c) || *w == 0.0));
            Ok(layer.loss(&weight, 0.01))
        };
        let best = fit(Solver::Exact)?;
        let mut last = layer.loss(&obs, 0.01);
        let slack = 1e-5 * last + 1e-6;
        prop_assert!(best <= last + slack);
        for steps in [1, 2, 4, 8, 200] {
            let found = fit(Solver::ConjugateGradient { steps, tolerance: 0.0 })?;
            prop_assert!(found <= last + slack && best <= found + slack, "{best} {found} {last}");
            last = found;
        }
        prop_assert!(last <= 1.01 * best + slack, "{last} {best}");
    }

    #[test]
    fn the_scale_of_the_calibration_data_changes_nothing(
        rows in 1usize..8, groups in 2usize..8, power in -8i32..9, seed in any::<u64>(),
    ) {
        let layer = Layer::random(rows, 4 * groups, 64, seed);
        let scaled = layer.louder(power);
        for method in
            ["magnitude", "wanda", "ria", "nowag", "sparsegpt", "admm", "alps", "refit"]
        {
            let method = pruner(method).unwrap();
            for pattern in [TWO_FOUR, UNSTRUCTURED] {
                let (a, one) = layer.prune(&*method, half(&layer, pattern)).unwrap();
                let (b, other) = scaled.prune(&*method, half(&layer, pattern)).unwrap();
                prop_assert_eq!(a.mask, b.mask, "{}", method.name());
                prop_assert_eq!(one, other, "{}", method.name());
            }
        }
    }

    #[test]
    fn dsnot_swaps_by_the_scale_of_the_calibration_data_over_its_threshold(
        rows in 1usize..8, groups in 4usize..16, power in -8i32..9, nm in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let layer = Layer::random(rows, 4 * groups, 64, seed);
        let target = half(&layer, if nm { TWO_FOUR } else { UNSTRUCTURED });
        let target = (target.0, Scope::PerRow, target.2);
        let threshold = 0.1;
        let dsnot = |threshold| Dsnot::default().with_threshold(threshold).unwrap();
        let (a, _) = layer.prune(&dsnot(threshold), target).unwrap();
        let louder = threshold * 2f64.powi(power);
        let (b, _) = layer.louder(power).prune(&dsnot(louder), target).unwrap();
        prop_assert_eq!(&a.mask, &b.mask);
        // With no threshold the scale does not matter.
        let (a, _) = layer.prune(&dsnot(0.0), target).unwrap();
        let (b, _) = layer.louder(power).prune(&dsnot(0.0), target).unwrap();
        prop_assert_eq!(&a.mask, &b.mask);
    }

    #[test]
    fn assignments_of_channels_never_lose_score(
        rows in 1usize..9, groups in 1usize..7, m in 2usize..6, n in 1usize..5,
        parts in any::<bool>(), by_row in any::<bool>(), seed in any::<u64>(),
    ) {
        let n = n.min(m - 1);
        let mut stream = Seed::new(seed).stream("scores");
        let scores =
            Array2::from_shape_simple_fn((rows, groups * m), || stream.uniform() as f32);
        let scope = if by_row { Scope::PerRow } else { Scope::PerLayer };
        let options = PermuteOptions {
            importance: ChannelImportance::Retained(scope),
            refinement: if parts { Refinement::Parts(groups) } else { Refinement::Whole },
        };
        let found = permute_channels(scores.view(), n, m, &options).unwrap();
        prop_assert_eq!(found.kept().len(), 2 + m);
        prop_assert!(found.kept()[1..].windows(2).all(|k| k[1] >= k[0] * (1.0 - 1e-6)));
        let mut all = found.order().to_vec();
        all.sort_unstable();
        prop_assert_eq!(all, (0..groups * m).collect::<Vec<_>>());
        let permuted = found.apply(scores.view()).unwrap();
        let sum: f64 = permuted
            .axis_chunks_iter(Axis(1), m)
            .flat_map(|group| group.outer_iter().map(|row| {
                let mut row = row.to_vec();
                row.sort_by(f32::total_cmp);
                row[m - n..].iter().map(|v| f64::from(*v)).sum::<f64>()
            }).collect::<Vec<_>>())
            .sum();
        prop_assert!((sum - found.kept()[1 + m]).abs() < 1e-9 * sum.abs());
    }

    #[test]
    fn swaps_bring_rows_towards_their_mean_output(
        rows in 1usize..8, groups in 4usize..20, nm in any::<bool>(), seed in any::<u64>(),
    ) {
        let mut layer = Layer::random(rows, 4 * groups, 64, seed);
        // Inputs with a mean, as after a ReLU.
        let columns = layer.stats.columns.take().unwrap();
        let mean = columns.squared_norm().iter().map(|s| (s / 64.0).sqrt()).collect();
        let part = |v: &[f64]| v.to_vec();
        let columns = ColumnStats::from_parts(
            64, mean, part(columns.m2()), part(columns.squared_norm()), part(columns.abs_sum()),
            part(columns.abs_max()),
        );
        layer.stats.columns = Some(columns.unwrap());
        let mean = layer.stats.columns.as_ref().unwrap().mean();
        let pattern = if nm { TWO_FOUR } else { UNSTRUCTURED };
        let target = (pattern, Scope::PerRow, layer.weight.len() / 2);
        let bias = |weight: &Array2<f32>| -> Vec<f64> {
            let lost = &layer.weight - weight;
            lost.outer_iter()
                .map(|row| row.iter().zip(mean).map(|(w, m)| f64::from(*w) * m).sum::<f64>())
                .collect()
        };
        let (base, before) = layer.prune(&*wanda(), target).unwrap();
        let (pruned, after) = layer.prune(&Dsnot::default(), target).unwrap();
        pruned.mask.check(pattern).unwrap();
        prop_assert_eq!(base.mask.kept_per_row(), pruned.mask.kept_per_row());
        for (row, (b, a)) in bias(&before).into_iter().zip(bias(&after)).enumerate() {
            // The sign never turns, and outside N:M each swap moves towards 0.
            prop_assert!(b * a >= 0.0 || a.abs() < 1e-5);
            if !nm {
                prop_assert!(a.abs() <= b.abs() + 1e-5, "row {row}: {b} {a}");
            }
        }
    }
}

#[test]
fn methods_rank_as_in_the_reference_whatever_the_inputs() {
    // Layers this small are no work to share among threads.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(check_ranks);
}

fn check_ranks() {
    for (shared, outlier) in [(0.0, 1.0), (0.9, 1.0), (0.0, 10.0), (0.9, 10.0)] {
        for (pattern, trials) in [(TWO_FOUR, 30), (UNSTRUCTURED, 10)] {
            let mut mean = [0.0; 7];
            let mut wanda_wins = 0.0;
            for seed in 0..trials {
                let layer = Layer::over(Inputs { shared, outlier }, (32, 64, 512), seed);
                let target = half(&layer, pattern);
                let all = layer.loss(&Array2::zeros((32, 64)), 0.0);
                let error = |name: &str| layer.error(&*pruner(name).unwrap(), target) / all;
                let refit = Refit::over(Box::new(ScorePruner(Wanda)));
                let refit = refit.with_damping(0.0).unwrap().with_solver(Solver::Exact).unwrap();
                let [magnitude, wanda, ria, sparsegpt, admm, alps] =
                    ["magnitude", "wanda", "ria", "sparsegpt", "admm", "alps"].map(error);
                assert!(sparsegpt <= wanda && alps <= sparsegpt && admm <= sparsegpt);
                wanda_wins += f64::from(u8::from(wanda <= magnitude)) / trials as f64;
                let least_squares = layer.error(&refit, target) / all;
                let errors = [magnitude, wanda, ria, sparsegpt, least_squares, admm, alps];
                mean.iter_mut().zip(errors).for_each(|(m, e)| *m += e / trials as f64);
            }
            let [.., sparsegpt, least_squares, _, _] = mean;
            match (shared > 0.0, outlier > 1.0) {
                (_, true) => assert_relative_eq!(wanda_wins, 1.0, epsilon = 1e-9),
                // The reference: 87 % to 97 % of its trials.
                (true, false) => assert!(wanda_wins > 0.7, "{wanda_wins}"),
                // 70 % to 73 %: channels that are all alike tell little.
                (false, false) => assert!((0.5..0.95).contains(&wanda_wins), "{wanda_wins}"),
            }
            if shared > 0.0 {
                // One greedy pass is worse than a plain fit on Wanda's mask.
                assert!(least_squares < 0.75 * sparsegpt);
            } else if pattern == TWO_FOUR {
                assert_relative_eq!(least_squares, sparsegpt, max_relative = 0.02);
            }
            if (shared, outlier, pattern) == (0.9, 10.0, TWO_FOUR) {
                // The reference's means over 30 trials of its own draws.
                let want = [0.1325, 0.0216, 0.0265, 0.0098, 0.0068, 0.0059, 0.0053];
                for (mean, want) in mean.iter().zip(want) {
                    assert_relative_eq!(*mean, want, max_relative = 0.05);
                }
            }
        }
    }
}

#[test]
fn the_threshold_of_dsnot_does_not_follow_the_scale_of_the_calibration_data() {
    let layer = Layer::random(16, 64, 64, 1);
    let target = (UNSTRUCTURED, Scope::PerRow, layer.weight.len() / 2);
    let base = layer.prune(&*wanda(), target).unwrap().0.mask;
    assert_ne!(layer.prune(&Dsnot::default(), target).unwrap().0.mask, base);
    assert_eq!(layer.louder(-40).prune(&Dsnot::default(), target).unwrap().0.mask, base);
}

#[test]
fn blocks_and_channels_are_fitted_too() {
    let layer = Layer::random(32, 64, 256, 3);
    for pattern in [Pattern::Block { rows: 4, cols: 8 }, Pattern::Channels] {
        let target = half(&layer, pattern);
        let magnitude = layer.error(&ScorePruner(Magnitude), target);
        for name in ["sparsegpt", "admm", "alps", "refit"] {
            let (pruned, weight) = layer.prune(&*pruner(name).unwrap(), target).unwrap();
            pruned.mask.check(pattern).unwrap();
            assert_eq!(pruned.mask.removed(), 1024, "{name}");
            assert!(layer.loss(&weight, 0.0) < magnitude, "{name} {pattern}");
        }
    }
}

#[test]
fn loud_channels_first_keeps_groups_and_blocks_whole() {
    let layer = Layer::random(16, 48, 128, 5);
    let method = SparseGpt::default().with_order(ColumnOrder::LoudestFirst);
    let block = Pattern::Block { rows: 2, cols: 6 };
    for pattern in [TWO_FOUR, Pattern::NM { n: 1, m: 3 }, block] {
        let remove = match pattern {
            Pattern::NM { n, m } => layer.weight.len() / m * (m - n),
            _ => 384,
        };
        let (pruned, _) = layer.prune(&method, (pattern, Scope::PerRow, remove)).unwrap();
        pruned.mask.check(pattern).unwrap();
        assert_eq!(pruned.mask.removed(), remove);
    }
}

#[test]
fn dead_channels_go_first_and_the_released_code_empties_them() {
    let mut layer = Layer::random(8, 24, 64, 7);
    let mut gram = layer.gram().to_owned();
    for dead in [3, 17] {
        gram.row_mut(dead).fill(0.0);
        gram.column_mut(dead).fill(0.0);
    }
    layer.stats.gram = Some(GramAccumulator::from_parts(64, gram).unwrap());
    let all_dead = |mask: &Mask| (0..8).all(|r| !mask.is_kept(r, 3) && !mask.is_kept(r, 17));
    for name in ["sparsegpt", "admm"] {
        let method = pruner(name).unwrap();
        let (pruned, _) = layer.prune(&*method, half(&layer, UNSTRUCTURED)).unwrap();
        assert_eq!(pruned.report.dead_columns, 2);
        assert!(all_dead(&pruned.mask), "{name}");
        // With fewer to remove than there are dead weights, what is left of them stays.
        let few = (UNSTRUCTURED, Scope::PerLayer, 12);
        let (pruned, weight) = layer.prune(&*method, few).unwrap();
        assert_eq!(pruned.mask.removed(), 12);
        for r in 0..8 {
            for c in [3, 17] {
                if pruned.mask.is_kept(r, c) {
                    assert_relative_eq!(weight[[r, c]], layer.weight[[r, c]], max_relative = 1e-5);
                }
            }
        }
    }
    let released = SparseGpt::default().with_fidelity(Fidelity::Released);
    let (_, weight) = layer.prune(&released, (UNSTRUCTURED, Scope::PerLayer, 0)).unwrap();
    assert!((0..8).all(|r| weight[[r, 3]] == 0.0 && weight[[r, 17]] == 0.0));
}

#[test]
fn a_gram_matrix_of_few_tokens_is_damped_and_an_indefinite_one_more_and_reported() {
    // Two tokens for 24 channels: rank 2.
    let layer = Layer::random(8, 24, 2, 9);
    for name in ["sparsegpt", "admm", "alps", "wanda+refit", "wanda+obs"] {
        let method = pruner(name).unwrap();
        let (pruned, weight) = layer.prune(&*method, half(&layer, TWO_FOUR)).unwrap();
        assert_eq!(pruned.report.damping_raised, 0, "{name}");
        assert!(weight.iter().all(|w| w.is_finite()));
    }
    let exact = Refit::default().with_damping(0.0).unwrap().with_solver(Solver::Exact).unwrap();
    let (pruned, _) = layer.prune(&exact, half(&layer, TWO_FOUR)).unwrap();
    assert!(pruned.report.damping_raised > 0);

    let mut layer = Layer::random(8, 24, 64, 9);
    let mut gram = layer.gram().to_owned();
    let shift = 0.05 * layer.mean_diagonal();
    let (values, vectors) = prune_linalg::eigh(gram.view()).unwrap();
    let lowest = vectors.column(0).insert_axis(Axis(1));
    gram.scaled_add(-(values[0] + shift), &lowest.dot(&lowest.t()));
    let gram = (&gram + &gram.t()) / 2.0;
    layer.stats.gram = Some(GramAccumulator::from_parts(64, gram).unwrap());
    let (pruned, _) = layer.prune(&SparseGpt::default(), half(&layer, TWO_FOUR)).unwrap();
    assert_eq!(pruned.report.damping_raised, 1);
    assert_relative_eq!(pruned.report.damping.unwrap(), 0.1, max_relative = 1e-12);
}

#[test]
fn options_out_of_range_are_refused() {
    let text = |e: prune_core::Error| e.to_string();
    let gpt = SparseGpt::default();
    assert!(text(gpt.with_damping(-1.0).unwrap_err()).contains("damping of SparseGPT is -1"));
    assert!(text(gpt.with_damping(f64::NAN).unwrap_err()).contains("NaN"));
    assert!(text(gpt.with_block_size(0).unwrap_err()).contains("at least 1 column"));
    assert!(text(Alps::default().with_rho(0.0).unwrap_err()).contains("rho of ALPS is 0"));
    let solver = Solver::ConjugateGradient { steps: 1, tolerance: -1.0 };
    assert!(Refit::default().with_solver(solver).is_err());
    assert!(Dsnot::default().with_threshold(f64::INFINITY).is_err());
    assert!(Dsnot::default().with_tokens(0).is_err());
    let scores = Array2::zeros((2, 8));
    let options = PermuteOptions { refinement: Refinement::Parts(3), ..Default::default() };
    let error = permute_channels(scores.view(), 2, 4, &options).unwrap_err();
    assert!(text(error).contains("a divisor of the number of groups, 2"));
    assert!(permute_channels(scores.view(), 2, 3, &PermuteOptions::default()).is_err());
}
