//! What holds for every layer that ARMOR decomposes, by every method.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_relative_eq;
use ndarray::{Array1, Array2, s};
use proptest::prelude::*;
use prune_core::{
    ColumnStats, Factoriser, LayerId, LayerStats, Pattern, Scope, Seed, SparseMatrix, Target,
};
use prune_unstructured::{
    AdamOptions, Armor, ArmorLayer, ArmorMethod, ArmorOptions, ArmorSolution, CoreRate,
    GroupChoice, Patience, Precision, Schedule, armor,
};

/// Normal weights, and importances that spread like those of language models.
fn random(rows: usize, cols: usize, seed: u64) -> (Array2<f64>, Vec<f64>) {
    let mut stream = Seed::new(seed).stream("layer");
    let mut normal = || {
        let radius = (-2.0 * (1.0 - stream.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * stream.uniform()).cos()
    };
    let weight = Array2::from_shape_simple_fn((rows, cols), &mut normal);
    let importance = (0..cols).map(|_| normal().exp()).collect();
    (weight, importance)
}

fn run<T: Precision>(
    weight: &Array2<T>,
    importance: &[f64],
    (n, m): (usize, usize),
    options: &ArmorOptions,
) -> prune_core::Result<ArmorSolution<T>> {
    let layer = LayerId::new("layer");
    let target = Target {
        layer: &layer,
        pattern: Pattern::NM { n, m },
        scope: Scope::PerRow,
        remove: weight.len() / m * (m - n),
        stream: Seed::new(1).stream("layer"),
    };
    armor(weight.view(), importance, options, &target)
}

/// The norms of the rows and columns that normalise a weight.
fn norms(weight: &Array2<f64>) -> (Vec<f64>, Vec<f64>) {
    let (rows, cols) = weight.dim();
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt() + 1e-5;
    let c: Vec<f64> = (0..cols).map(|j| norm(&mut weight.column(j).iter().copied())).collect();
    let r: Vec<f64> =
        (0..rows).map(|i| norm(&mut weight.row(i).iter().zip(&c).map(|(w, c)| w / c))).collect();
    (r, c)
}

/// The loss by its definition, from the dense weight that the factors make.
fn loss(weight: &Array2<f64>, found: &Array2<f64>, h: &[f64]) -> f64 {
    let (r, c) = norms(weight);
    let sum = |matrix: &Array2<f64>| -> f64 {
        matrix.indexed_iter().map(|((i, j), x)| h[j] * (x / (r[i] * c[j])).powi(2)).sum()
    };
    sum(&(weight - found)) / sum(weight)
}

/// The loss as the sum over all pairs of a block of A and a block of B of what that pair alone
/// makes of its part of the core.
fn loss_by_blocks(weight: &Array2<f64>, layer: &ArmorLayer<f64>, h: &[f64]) -> f64 {
    let (r, c) = norms(weight);
    let (a, b, core) = (layer.a(), layer.b(), layer.core().to_dense());
    let scaled = |((i, j), x): ((usize, usize), &f64)| h[j] * (x / (r[i] * c[j])).powi(2);
    let mut sum = 0.0;
    for j in 0..a.blocks() {
        for k in 0..b.blocks() {
            let (a, b) = (a.block(j), b.block(k));
            let (row, col) = (j * layer.a().block_size(), k * layer.b().block_size());
            let at = s![row..row + a.nrows(), col..col + b.nrows()];
            let rest = &weight.slice(at) - &a.dot(&core.slice(at)).dot(&b);
            sum +=
                rest.indexed_iter().map(|((i, j), x)| scaled(((row + i, col + j), x))).sum::<f64>();
        }
    }
    sum / weight.indexed_iter().map(scaled).sum::<f64>()
}

fn any_choice() -> impl Strategy<Value = GroupChoice> {
    prop_oneof![
        Just(GroupChoice::Random),
        Just(GroupChoice::GradientRandom),
        Just(GroupChoice::Greedy),
        Just(GroupChoice::Exhaustive),
    ]
}

fn any_method() -> impl Strategy<Value = ArmorMethod> {
    prop_oneof![
        Just(ArmorOptions::fast().method),
        Just(ArmorMethod::Sequential),
        Just(ArmorMethod::Exact { core_steps: 2 }),
    ]
}

/// Rows, columns, rows of a block of A and of B, and a pattern; ragged as often as not.
fn any_shape() -> impl Strategy<Value = (usize, usize, [usize; 2], (usize, usize))> {
    let pattern = prop_oneof![Just((2, 4)), Just((1, 4)), Just((3, 5)), Just((4, 8))];
    (1usize..20, 1usize..7, 1usize..9, 1usize..4, pattern)
        .prop_map(|(rows, groups, a, b, (n, m))| (rows, groups * m, [a, b * m], (n, m)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn groups_are_exact_and_the_factors_make_the_loss(
        (rows, cols, block, pattern) in any_shape(), method in any_method(),
        choice in any_choice(), seed in any::<u64>(),
    ) {
        let (weight, h) = random(rows, cols, seed);
        let options = ArmorOptions { block, method, choice, ..ArmorOptions::fast() }.iterations(4);
        let found = run(&weight, &h, pattern, &options).unwrap();
        let (n, m) = pattern;
        prop_assert_eq!(found.mask.kept(), weight.len() / m * n);
        found.mask.check(Pattern::NM { n, m }).unwrap();
        prop_assert_eq!(found.layer.core().mask(), found.mask);
        let dense = found.layer.to_dense();
        prop_assert!((loss(&weight, &dense, &h) - found.loss).abs() < 1e-10);
        prop_assert!(found.loss <= found.losses[0] * (1.0 + 1e-12));
        prop_assert!((found.layer.overhead() - options.overhead(rows, cols)).abs() < 1e-12);
        prop_assert!((loss_by_blocks(&weight, &found.layer, &h) - found.loss).abs() < 1e-10);

        let x = Array1::from_shape_fn(cols, |j| (j as f64).sin());
        let y = found.layer.matvec(x.view()).unwrap();
        for (y, want) in y.iter().zip(dense.dot(&x)) {
            prop_assert!((y - want).abs() < 1e-9 * (1.0 + want.abs()));
        }
        let columns = found.layer.matmul(x.view().insert_axis(ndarray::Axis(1))).unwrap();
        prop_assert_eq!(columns.column(0), y);
    }

    #[test]
    fn the_sequential_and_exact_methods_never_rise(
        (rows, cols, block, pattern) in any_shape(), exact in any::<bool>(),
        choice in any_choice(), seed in any::<u64>(),
    ) {
        let (weight, h) = random(rows, cols, seed);
        let method = match exact {
            true => ArmorMethod::Exact { core_steps: 3 },
            false => ArmorMethod::Sequential,
        };
        let options = ArmorOptions { block, method, choice, ..ArmorOptions::fast() }.iterations(12);
        let found = run(&weight, &h, pattern, &options).unwrap();
        for (i, pair) in found.losses.windows(2).enumerate() {
            prop_assert!(pair[1] <= pair[0] + 1e-13, "iteration {i}: {pair:?}");
        }
    }

    #[test]
    fn the_scale_of_the_importances_changes_nothing(
        (rows, cols, block, pattern) in any_shape(), method in any_method(), scale in -3i32..4,
        factor in 0.01f64..100.0, seed in any::<u64>(),
    ) {
        let (weight, h) = random(rows, cols, seed);
        let options = ArmorOptions { block, method, ..ArmorOptions::fast() }.iterations(3);
        let one = run(&weight, &h, pattern, &options).unwrap();
        // A power of 4, so that nothing rounds.
        let scaled: Vec<f64> = h.iter().map(|h| h * 4f64.powi(scale)).collect();
        let other = run(&weight, &scaled, pattern, &options).unwrap();
        prop_assert_eq!(&one.losses, &other.losses);
        prop_assert_eq!(one.layer, other.layer);
        // Any other factor rounds, which the first step of Adam, all but a sign, may blow up.
        let scaled: Vec<f64> = h.iter().map(|h| h * factor).collect();
        let other = run(&weight, &scaled, pattern, &options.iterations(0)).unwrap();
        prop_assert!((other.loss - one.losses[0]).abs() <= 1e-12 * one.losses[0]);
    }
}

#[test]
fn the_result_does_not_depend_on_threads() {
    let (weight, h) = random(200, 264, 3);
    let weight = weight.mapv(|w| w as f32);
    for method in
        [ArmorOptions::fast().method, ArmorMethod::Sequential, ArmorMethod::Exact { core_steps: 1 }]
    {
        let options = ArmorOptions::fast().block(12).iterations(4).method(method);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&weight, &h, (2, 4), &options)).unwrap()
        };
        let one = on(1);
        for threads in [2, 5] {
            let many = on(threads);
            assert_eq!(one.losses, many.losses);
            assert_eq!(one.layer, many.layer);
        }
    }
}

/// Layers and iterations of [`the_sequential_loss_never_rises`] and its like.
fn check_never_rises(method: &ArmorMethod, layers: u64, iterations: usize) {
    let patience = Patience { iterations, relative: 0.0, absolute: 0.0 };
    for seed in 0..layers {
        let block = [4, 8, 12, 16][seed as usize % 4];
        let (weight, h) = random(36 + seed as usize, 48, seed);
        let choice = [GroupChoice::GradientRandom, GroupChoice::Exhaustive][seed as usize / 2 % 2];
        let options = ArmorOptions { patience, choice, ..ArmorOptions::fast() };
        let options = options.block(block).method(method.clone()).iterations(iterations);
        let found = run(&weight, &h, (2, 4), &options).unwrap();
        assert_eq!(found.losses.len(), iterations + 1);
        for (i, pair) in found.losses.windows(2).enumerate() {
            assert!(pair[1] <= pair[0] * (1.0 + 1e-13), "layer {seed}, iteration {i}: {pair:?}");
        }
        assert!(found.loss < 0.9 * found.losses[0]);
    }
}

#[test]
fn the_sequential_loss_never_rises() {
    check_never_rises(&ArmorMethod::Sequential, 4, 50);
}

#[test]
fn the_loss_of_exact_steps_never_rises() {
    check_never_rises(&ArmorMethod::Exact { core_steps: 2 }, 4, 50);
}

/// `cargo test -p prune-unstructured --test armor_properties -- --ignored`
#[test]
#[ignore = "a minute; the short form runs always"]
fn the_sequential_loss_never_rises_over_500_iterations_on_20_layers() {
    check_never_rises(&ArmorMethod::Sequential, 20, 500);
}

#[test]
fn every_method_gets_well_below_nowag_p_and_near_the_reference() {
    // A reference (numpy, 48 x 48, Adam at 2e-2, groups drawn by gradient) takes a layer of this
    // kind from 0.079 to 0.029 with blocks of 4 and to 0.009 with blocks of 8 in 300 iterations.
    let (weight, h) = random(48, 48, 11);
    for (block, below) in [(4, 0.55), (8, 0.2)] {
        for method in [ArmorOptions::fast().method, ArmorMethod::Exact { core_steps: 2 }] {
            let options = ArmorOptions::fast().block(block).method(method);
            let found = run(&weight, &h, (2, 4), &options).unwrap();
            let ratio = found.loss / found.losses[0];
            assert!(ratio < below, "blocks of {block}, {:?}: {ratio}", options.method);
        }
    }
}

#[test]
fn losses_fall_as_fast_as_in_the_reference_at_every_learning_rate() {
    // A numpy version, on one layer of this kind whose loss starts at 0.07944, groups drawn by
    // gradient: the losses after 30, 100 and 300 iterations. Its draws are not ours: what is
    // compared is the part of the start that is left, in the mean over three layers.
    let start = 0.07944;
    for (block, rate, warm_up, want) in [
        (4, 1e-3, 0, [0.0705, 0.0547, 0.0393]),
        (4, 5e-3, 0, [0.0503, 0.0370, 0.0318]),
        (4, 2e-2, 0, [0.0374, 0.0298, 0.0293]),
        (8, 1e-3, 0, [0.0624, 0.0409, 0.0212]),
        (8, 5e-3, 0, [0.0366, 0.0189, 0.0126]),
        (8, 2e-2, 0, [0.0236, 0.0133, 0.0091]),
        // After sweeps that leave 0.0433 and 0.0350 there.
        (4, 2e-2, 10, [0.0361, 0.0328, 0.0323]),
        (8, 2e-2, 10, [0.0197, 0.0122, 0.0090]),
    ] {
        let mut left = [0.0; 3];
        for seed in 100..103 {
            let (weight, h) = random(48, 48, seed);
            let options = ArmorOptions {
                method: ArmorMethod::Adam(AdamOptions {
                    factor_rate: rate,
                    core_rate: CoreRate::Absolute(rate),
                    schedule: Schedule::Constant,
                    warm_up,
                }),
                patience: Patience { iterations: 1000, relative: 0.0, absolute: 0.0 },
                discrete_steps: 1,
                ..ArmorOptions::fast().block(block).choice(GroupChoice::GradientRandom)
            };
            let losses = run(&weight, &h, (2, 4), &options.iterations(300)).unwrap().losses;
            assert!((0.04..0.12).contains(&losses[0]));
            assert!(losses[..=warm_up].is_sorted_by(|before, after| before >= after));
            for (left, iteration) in left.iter_mut().zip([30, 100, 300]) {
                *left += losses[warm_up + iteration] / losses[0] / 3.0;
            }
        }
        for (left, want) in left.iter().zip(want) {
            assert_relative_eq!(*left, want / start, max_relative = 0.2);
        }
    }
}

#[test]
fn exact_steps_alone_end_no_higher_than_in_the_reference_and_above_adam() {
    // 30 sweeps of four changes of groups each; the reference takes one step on the core's values
    // where this takes conjugate gradients.
    for (block, stall) in [(4, 0.0364), (8, 0.0262)] {
        let (weight, h) = random(48, 48, 101);
        let exact = ArmorOptions {
            discrete_steps: 4,
            ..ArmorOptions::fast().block(block).choice(GroupChoice::GradientRandom)
        };
        let adam = run(&weight, &h, (2, 4), &ArmorOptions::fast().block(block)).unwrap();
        let method = ArmorMethod::Exact { core_steps: 10 };
        let exact = run(&weight, &h, (2, 4), &exact.method(method).iterations(30)).unwrap();
        assert!(exact.loss / exact.losses[0] < stall / 0.07944);
        assert!(exact.loss > adam.loss);
    }
}

#[test]
fn a_single_precision_run_ends_where_a_double_precision_run_does() {
    let (weight, h) = random(64, 96, 2);
    let options = ArmorOptions::fast().block(8).iterations(60);
    let double = run(&weight, &h, (2, 4), &options).unwrap();
    let single = run(&weight.mapv(|w| w as f32), &h, (2, 4), &options).unwrap();
    assert_relative_eq!(single.losses[1], double.losses[1], max_relative = 1e-3);
    assert_relative_eq!(single.loss, double.loss, max_relative = 0.05);
    let dense = single.layer.to_dense().mapv(f64::from);
    assert_relative_eq!(loss(&weight, &dense, &h), single.loss, max_relative = 1e-4);
}

#[test]
fn factors_survive_the_checkpoint_form() {
    let (weight, h) = random(10, 24, 4);
    let weight = weight.mapv(|w| w as f32);
    let options = ArmorOptions { block: [4, 8], ..ArmorOptions::fast() }.iterations(5);
    let layer = run(&weight, &h, (2, 4), &options).unwrap().layer;
    let factors = layer.factors();
    let shapes = factors.each_ref().map(|f| f.values.shape().to_vec());
    assert_eq!(shapes, [vec![3, 4, 4], vec![10, 24], vec![3, 8, 8]]);
    assert_eq!(ArmorLayer::from_factors(&factors, 2, 4).unwrap(), layer);

    let mut flat = factors.clone();
    flat[0].values = flat[0].values.clone().into_shape_with_order(vec![12, 4]).unwrap();
    let mut padded = factors.clone();
    padded[0].values[[2, 3, 3]] = 1.0;
    let mut dense = factors.clone();
    dense[1].values.fill(1.0);
    let mut swapped = factors.clone();
    swapped.swap(0, 2);
    for (broken, text) in [
        (flat, "armor_a (number of dimensions): found shape [2], expected [3]"),
        (padded, "the last block is not zero"),
        (dense, "the pattern 2:4 does not hold"),
        (swapped, "found 3 blocks of 8 for 10 rows"),
    ] {
        let error = ArmorLayer::from_factors(&broken, 2, 4).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let half: ArmorLayer<half::bf16> = layer.cast().unwrap();
    assert_eq!(half.nbytes() * 2 - 10 * 3, layer.nbytes());
    assert!(layer.cast::<half::f16>().is_ok());
}

#[test]
fn zeros_and_channels_without_input_are_no_obstacle() {
    let (mut weight, mut h) = random(12, 16, 6);
    weight.row_mut(3).fill(0.0);
    weight.column_mut(5).fill(0.0);
    h[2] = 0.0;
    h[7] = f64::NAN;
    for method in
        [ArmorOptions::fast().method, ArmorMethod::Sequential, ArmorMethod::Exact { core_steps: 2 }]
    {
        let options = ArmorOptions::fast().block(4).method(method).iterations(30);
        let found = run(&weight, &h, (2, 4), &options).unwrap();
        assert!(found.loss < found.losses[0]);
        let zeros = run(&Array2::<f64>::zeros((8, 8)), &[1.0; 8], (2, 4), &options).unwrap();
        assert_eq!((zeros.loss, zeros.layer.to_dense()), (0.0, Array2::zeros((8, 8))));
        let empty = |shape: (usize, usize)| {
            run(&Array2::<f64>::zeros(shape), &vec![1.0; shape.1], (2, 4), &options)
        };
        for shape in [(0, 8), (0, 0)] {
            assert_eq!(empty(shape).unwrap().layer.to_dense().dim(), shape);
        }
        assert!(empty((8, 0)).unwrap_err().to_string().contains("8 rows without columns"));
    }
}

#[test]
fn bad_input_is_refused_by_name() {
    let (mut weight, h) = random(8, 16, 1);
    let fast = ArmorOptions::fast;
    let text = |weight: &Array2<f64>, h: &[f64], pattern, options: &ArmorOptions| {
        run(weight, h, pattern, options).unwrap_err().to_string()
    };
    assert!(text(&weight, &h, (2, 5), &fast()).contains("16 columns are not a multiple of 5"));
    assert!(text(&weight, &h[1..], (2, 4), &fast()).contains("found shape [15], expected [16]"));
    assert!(text(&weight, &h, (2, 4), &fast().block(6)).contains("armor block is 6 x 6"));
    assert!(text(&weight, &h, (4, 4), &fast()).contains("1 <= n < m <= 16"));
    let none = ArmorOptions { continuous_steps: 0, ..fast() };
    assert!(text(&weight, &h, (2, 4), &none).contains("armor continuous_steps is 0"));
    let none = fast().method(ArmorMethod::Exact { core_steps: 0 });
    assert!(text(&weight, &h, (2, 4), &none).contains("armor core_steps is 0"));
    weight[[1, 3]] = f64::NAN;
    assert!(text(&weight, &h, (2, 4), &fast()).starts_with("layer.weight: element 19 is NaN"));
    weight[[1, 3]] = 1e300;
    assert!(text(&weight, &h, (2, 4), &fast()).contains("norm of a row or column"));
}

#[test]
fn the_factoriser_needs_statistics_and_an_n_m_pattern() {
    let (weight, _) = random(8, 16, 1);
    let weight = weight.mapv(|w| w as f32);
    let layer = LayerId::new("mlp.up_proj");
    let mut target = Target {
        layer: &layer,
        pattern: Pattern::NM { n: 2, m: 4 },
        scope: Scope::PerRow,
        remove: 64,
        stream: Seed::new(0).stream("x"),
    };
    let armor = Armor::default();
    let none = LayerStats::default();
    let text = |stats: &LayerStats, target: &Target<'_>| {
        armor.factorise(weight.view(), stats, target).unwrap_err().to_string()
    };
    assert!(text(&none, &target).contains("armor needs column statistics"));
    let mut columns = ColumnStats::new(16);
    columns.update("x", weight.view()).unwrap();
    let stats = LayerStats { columns: Some(columns), ..LayerStats::default() };
    target.remove = 65;
    assert!(text(&stats, &target).contains("expected 64, 2 of every 4"));
    target.pattern = Pattern::Unstructured;
    assert!(text(&stats, &target).contains("use a pattern such as `2:4`"));
    target.pattern = Pattern::NM { n: 2, m: 4 };
    target.remove = 64;
    let found = armor.factorise(weight.view(), &stats, &target).unwrap();
    assert_eq!((found.mask.removed(), found.factors.len()), (64, 3));
    let [start, end] = found.loss.unwrap();
    assert!(end < start);
}
