//! What holds for every pruner, pattern and scope.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ndarray::{Array2, ArrayView2};
use proptest::prelude::*;
use prune_core::{
    ColumnStats, GramAccumulator, LayerId, LayerStats, Mask, Pattern, Pruned, Result, Scope, Seed,
    Target, round_to_pattern, row_share,
};
use prune_unstructured::{PRUNERS, pruner};

/// Weights on a coarse grid, so that ties are common, and statistics with a dead channel.
fn layer(rows: usize, cols: usize, seed: u64) -> (Array2<f32>, LayerStats) {
    let mut stream = Seed::new(seed).stream("weights");
    let weight = Array2::from_shape_simple_fn((rows, cols), || stream.below(9) as f32 - 4.0);
    let inputs = Array2::from_shape_fn((3, cols), |(_, j)| match j {
        1 => 0.0,
        _ => stream.below(3) as f32 + 1.0,
    });
    let mut columns = ColumnStats::new(cols);
    columns.update("x", inputs.view()).unwrap();
    let mut gram = GramAccumulator::new(cols);
    gram.update("x", inputs.view()).unwrap();
    (weight, LayerStats { columns: Some(columns), gram: Some(gram), ..LayerStats::default() })
}

fn prune(
    method: &str,
    weight: &mut Array2<f32>,
    stats: &LayerStats,
    (pattern, scope, remove): (Pattern, Scope, usize),
) -> Result<Pruned> {
    let layer = LayerId::new("model.layers.0.mlp.up_proj");
    let stream = Seed::new(11).stream(layer.as_str());
    let target = Target { layer: &layer, pattern, scope, remove, stream };
    pruner(method).unwrap().prune(weight.view_mut(), stats, &target)
}

fn any_method() -> impl Strategy<Value = &'static str> {
    (0..PRUNERS.len()).prop_map(|i| PRUNERS[i].0)
}

/// Whether a method moves the weights that stay.
fn fits_weights(method: &str) -> bool {
    ["sparsegpt", "admm", "alps", "refit"].contains(&method)
}

fn any_pattern() -> impl Strategy<Value = (Pattern, Scope, usize, usize)> {
    let scope = prop_oneof![Just(Scope::PerRow), Just(Scope::PerLayer)];
    let unstructured = (scope.clone(), 1usize..20, 2usize..90)
        .prop_map(|(scope, rows, cols)| (Pattern::Unstructured, scope, rows, cols));
    let groups = (scope.clone(), 2usize..=16, 1usize..16, 1usize..12, 1usize..9).prop_map(
        |(scope, m, n, rows, groups)| (Pattern::NM { n: n.min(m - 1), m }, scope, rows, groups * m),
    );
    let blocks = (scope, 1usize..5, 1usize..5, 1usize..6, 2usize..9).prop_map(
        |(scope, rows, cols, high, wide)| {
            (Pattern::Block { rows, cols }, scope, rows * high, cols * wide)
        },
    );
    let channels = (1usize..150, 2usize..40)
        .prop_map(|(rows, cols)| (Pattern::Channels, Scope::PerLayer, rows, cols));
    prop_oneof![unstructured, groups, blocks, channels]
}

/// `Σ ΔW² · ‖X_j‖²`, which Wanda minimises.
fn proxy(weight: ArrayView2<'_, f32>, stats: &LayerStats, mask: &Mask) -> f64 {
    let norms = stats.columns.as_ref().unwrap().squared_norm();
    let lost = |((i, j), w): ((usize, usize), &f32)| match mask.is_kept(i, j) {
        true => 0.0,
        false => f64::from(*w).powi(2) * norms[j],
    };
    weight.indexed_iter().map(lost).sum()
}

proptest! {
    #[test]
    fn counts_are_exact_and_patterns_hold(
        method in any_method(), (pattern, scope, rows, cols) in any_pattern(),
        part in 0.0..=1.0f64, seed in any::<u64>(),
    ) {
        prop_assume!(pruner(method).unwrap().supports(pattern, scope).is_ok());
        let (mut weight, stats) = layer(rows, cols, seed);
        let before = weight.clone();
        let asked = (part * weight.len() as f64) as usize;
        let remove = round_to_pattern("w", pattern, rows, cols, asked).unwrap();
        let mask = prune(method, &mut weight, &stats, (pattern, scope, remove)).unwrap().mask;

        prop_assert_eq!(mask.removed(), remove);
        prop_assert!(mask.check(pattern).is_ok());
        if let (Pattern::Unstructured, Scope::PerRow) = (pattern, scope) {
            for (r, kept) in mask.kept_per_row().into_iter().enumerate() {
                prop_assert_eq!(cols - kept, row_share(rows, remove, r));
            }
        }
        if let (Pattern::Block { rows: h, cols: w }, Scope::PerRow) = (pattern, scope) {
            for (b, kept) in mask.kept_per_row().into_iter().step_by(h).enumerate() {
                prop_assert_eq!(cols - kept, w * row_share(rows / h, remove / (h * w), b));
            }
        }
        for ((i, w), old) in weight.indexed_iter().zip(&before) {
            let kept = mask.is_kept(i.0, i.1);
            if !(kept && fits_weights(method)) {
                prop_assert_eq!(w.to_bits(), if kept { *old } else { 0.0 }.to_bits());
            }
            prop_assert!(w.is_finite());
        }
    }

    #[test]
    fn masks_do_not_depend_on_threads_or_on_layout(
        method in any_method(), (pattern, scope, rows, cols) in any_pattern(),
        part in 0.0..=1.0f64, seed in any::<u64>(),
    ) {
        prop_assume!(pruner(method).unwrap().supports(pattern, scope).is_ok());
        let (weight, stats) = layer(rows, cols, seed);
        let asked = (part * weight.len() as f64) as usize;
        let remove = round_to_pattern("w", pattern, rows, cols, asked).unwrap();
        let mut first: Option<(Mask, Array2<u32>)> = None;
        for threads in [1, 2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut pruned = weight.clone();
            if threads == 4 {
                pruned = weight.t().as_standard_layout().into_owned().reversed_axes();
            }
            let mask = pool
                .install(|| prune(method, &mut pruned, &stats, (pattern, scope, remove)))
                .unwrap()
                .mask;
            let pruned = pruned.mapv(f32::to_bits);
            match &first {
                None => first = Some((mask, pruned)),
                Some((one, weights)) => {
                    prop_assert_eq!(one, &mask);
                    prop_assert_eq!(weights, &pruned);
                }
            }
        }
    }

    #[test]
    fn magnitude_removes_the_lower_index_of_equals(
        rows in 1usize..9, cols in 2usize..80, part in 0.0..=1.0f64, seed in any::<u64>(),
    ) {
        let (weight, stats) = layer(rows, cols, seed);
        let remove = (part * weight.len() as f64) as usize;
        for scope in [Scope::PerRow, Scope::PerLayer] {
            let target = (Pattern::Unstructured, scope, remove);
            let mask = prune("magnitude", &mut weight.clone(), &stats, target).unwrap().mask;
            let pools: Vec<(Vec<(usize, usize)>, usize)> = match scope {
                Scope::PerRow => (0..rows)
                    .map(|r| ((0..cols).map(|c| (r, c)).collect(), row_share(rows, remove, r)))
                    .collect(),
                _ => vec![(weight.indexed_iter().map(|(i, _)| i).collect(), remove)],
            };
            for (mut pool, k) in pools {
                pool.sort_by(|a, b| weight[*a].abs().total_cmp(&weight[*b].abs()));
                for (rank, (r, c)) in pool.into_iter().enumerate() {
                    prop_assert_eq!(mask.is_kept(r, c), rank >= k);
                }
            }
        }
    }

    #[test]
    fn no_mask_of_the_same_structure_loses_less_than_wanda_by_its_own_measure(
        other in any_method(), rows in 1usize..9, groups in 1usize..12, part in 0.0..=1.0f64,
        nm in any::<bool>(), seed in any::<u64>(),
    ) {
        let (weight, stats) = layer(rows, 4 * groups, seed);
        let target = match nm {
            true => (Pattern::NM { n: 2, m: 4 }, Scope::PerRow, weight.len() / 2),
            false => {
                let remove = (part * weight.len() as f64) as usize;
                (Pattern::Unstructured, Scope::PerRow, remove)
            }
        };
        prop_assume!(pruner(other).unwrap().supports(target.0, target.1).is_ok());
        let lost = |method| {
            let mask = prune(method, &mut weight.clone(), &stats, target).unwrap().mask;
            proxy(weight.view(), &stats, &mask)
        };
        // Scores are compared in f32: equal ones may differ by a rounding in f64.
        prop_assert!(lost("wanda") <= lost(other) * (1.0 + 1e-6));
    }
}

#[test]
fn a_dead_channel_goes_first_under_wanda() {
    let (weight, stats) = layer(6, 10, 3);
    let weight = weight.mapv(|w| w.abs() + 1.0);
    let target = (Pattern::Unstructured, Scope::PerRow, 6);
    let mask = prune("wanda", &mut weight.clone(), &stats, target).unwrap().mask;
    assert!((0..6).all(|r| !mask.is_kept(r, 1)));
}

#[test]
fn random_masks_differ_by_layer_and_by_row_and_cover_evenly() {
    let stats = LayerStats::default();
    let target = (Pattern::Unstructured, Scope::PerLayer, 50_000);
    let mask = prune("random", &mut Array2::ones((100, 1000)), &stats, target).unwrap().mask;
    // Half of each row, give or take five standard deviations of a fair coin.
    assert!(mask.kept_per_row().iter().all(|kept| kept.abs_diff(500) < 79));
    let by_column = |c| (0..100).filter(|r| mask.is_kept(*r, c)).count();
    assert!((0..1000).all(|c| by_column(c).abs_diff(50) < 26));
    let mut columns: Vec<Vec<usize>> = (0..100).map(|r| mask.kept_in_row(r).collect()).collect();
    columns.sort();
    columns.dedup();
    assert_eq!(columns.len(), 100);
}

#[test]
fn errors_name_the_tensor_and_leave_the_weight_alone() {
    let (mut weight, stats) = layer(40, 64, 5);
    let half = (Pattern::Unstructured, Scope::PerRow, 1280);
    let text = |method, weight: &mut Array2<f32>, stats: &LayerStats, target| {
        let before = weight.mapv(f32::to_bits);
        let error = prune(method, weight, stats, target).unwrap_err().to_string();
        assert_eq!(weight.mapv(f32::to_bits), before);
        error
    };
    assert_eq!(
        text("wanda", &mut weight, &LayerStats::default(), half),
        "model.layers.0.mlp.up_proj: wanda needs column statistics, but no calibration data \
         reached this layer"
    );
    let narrow = layer(1, 63, 0).1;
    for method in ["wanda", "wanda-share", "ria", "nowag", "dsnot", "sparsegpt", "admm", "alps"] {
        let error = text(method, &mut weight, &narrow, half);
        assert!(error.contains("found shape [63], expected [64]"), "{error}");
    }
    assert_eq!(
        text("alps", &mut weight, &LayerStats::default(), half),
        "model.layers.0.mlp.up_proj: alps needs a Gram matrix, but no calibration data reached \
         this layer"
    );
    let wanda_only = LayerStats { gram: None, ..stats.clone() };
    assert!(text("wanda+obs", &mut weight, &wanda_only, half).contains("needs a Gram matrix"));
    let silent = GramAccumulator::from_parts(9, Array2::zeros((64, 64))).unwrap();
    let silent = LayerStats { gram: Some(silent), ..stats.clone() };
    assert!(text("sparsegpt", &mut weight, &silent, half).contains("that is not all 0"));
    let mut indefinite = Array2::eye(64);
    (indefinite[[0, 1]], indefinite[[1, 0]]) = (100.0, 100.0);
    let indefinite = GramAccumulator::from_parts(9, indefinite).unwrap();
    let indefinite = LayerStats { gram: Some(indefinite), ..stats.clone() };
    assert!(text("sparsegpt", &mut weight, &indefinite, half).contains("no Cholesky factor"));
    let blocks = (Pattern::Block { rows: 4, cols: 4 }, Scope::PerLayer, 100);
    assert_eq!(
        text("magnitude", &mut weight, &stats, blocks),
        "model.layers.0.mlp.up_proj (weights to remove) is 100; expected a multiple of 16 for the \
         pattern block 4x4"
    );
    let too_many = (Pattern::Unstructured, Scope::PerLayer, 2561);
    assert!(text("magnitude", &mut weight, &stats, too_many).contains("at most all 2560 weights"));
    let groups = (Pattern::NM { n: 1, m: 4 }, Scope::PerRow, 1280);
    assert!(text("random", &mut weight, &stats, groups).contains("expected 1920, 3 of every 4"));
    let none = (Pattern::NM { n: 3, m: 2 }, Scope::PerRow, 1280);
    assert!(text("random", &mut weight, &stats, none).contains("1 <= n < m <= 16"));
    let uneven = (Pattern::NM { n: 1, m: 5 }, Scope::PerRow, 1280);
    assert!(text("random", &mut weight, &stats, uneven).contains("not a multiple of 5"));
    let global = (Pattern::Unstructured, Scope::Global, 1280);
    assert!(text("magnitude", &mut weight, &stats, global).contains("does not support"));

    weight[[30, 2]] = f32::MAX;
    let loud = LayerStats { columns: Some(loud()), ..LayerStats::default() };
    let error = text("wanda", &mut weight, &loud, half);
    assert!(error.starts_with("model.layers.0.mlp.up_proj (scores): element 1922 is inf"));
    assert!(text("sparsegpt", &mut weight, &stats, half).contains("must be finite"));
    weight[[39, 63]] = f32::NAN;
    weight[[30, 1]] = f32::INFINITY;
    for scope in [Scope::PerRow, Scope::PerLayer] {
        for (method, _) in PRUNERS {
            assert_eq!(
                text(method, &mut weight, &stats, (Pattern::Unstructured, scope, 0)),
                "model.layers.0.mlp.up_proj.weight: element 1921 is inf; every value must be finite"
            );
        }
    }
}

/// Inputs so large that a score overflows.
fn loud() -> ColumnStats {
    let mut columns = ColumnStats::new(64);
    columns.update("x", Array2::from_elem((1, 64), 4.0).view()).unwrap();
    columns
}

#[test]
fn layers_without_weights_are_pruned_to_themselves() {
    for (rows, cols) in [(0, 8), (8, 0), (0, 0)] {
        for pattern in [
            Pattern::Unstructured,
            Pattern::NM { n: 2, m: 4 },
            Pattern::Block { rows: 4, cols: 4 },
            Pattern::Channels,
        ] {
            let target = (pattern, Scope::PerLayer, 0);
            let mut weight = Array2::zeros((rows, cols));
            for (method, _) in PRUNERS {
                if pruner(method).unwrap().supports(pattern, Scope::PerLayer).is_ok() {
                    let stats = layer(1, cols, 0).1;
                    let pruned = prune(method, &mut weight, &stats, target);
                    assert_eq!(pruned.unwrap().mask.removed(), 0, "{method}");
                }
            }
        }
    }
}
