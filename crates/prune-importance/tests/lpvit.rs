//! LPViT's block scores and curves against a numpy reference, which gives the same block masks as
//! the authors' code (commit 0759ff4).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use ndarray::Array2;
use proptest::prelude::*;
use prune_core::{Error, LayerId, LayerStats, Pattern, Pruner, Scope, Seed, Target};
use prune_importance::{BlockRanking, BlockScore, BlockTaylor, TaylorOrder};

const SECOND: TaylorOrder = TaylorOrder::Second { damping: 1e-7 };

fn sine(rows: usize, cols: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(i, j)| (7.0 * i as f64 + 3.0 * j as f64).sin() as f32)
}

/// An 8 x 8 and an 8 x 16 layer with gradients.
fn layers() -> [(Array2<f32>, Array2<f32>); 2] {
    let g1 = |(i, j)| 0.1 * (i as f64 + 2.0 * j as f64).cos();
    let g2 = |(i, j)| 0.2 * (2.0 * i as f64 + j as f64 + 1.0).sin();
    [
        (sine(8, 8), Array2::from_shape_fn((8, 8), |at| g1(at) as f32)),
        (0.5 * sine(8, 16), Array2::from_shape_fn((8, 16), |at| g2(at) as f32)),
    ]
}

fn rank(
    (weight, gradient): &(Array2<f32>, Array2<f32>),
    block: (usize, usize),
    by: BlockScore,
) -> BlockRanking {
    let layer = LayerId::new("layer");
    BlockRanking::new(&layer, weight.view(), gradient.view(), block, by).unwrap()
}

#[test]
fn block_scores_match_the_reference() {
    let [one, two] = layers();
    let scores = [
        vec![0.041335, 0.033803, 0.040055, 0.038703],
        vec![0.040627, 0.041425, 0.039261, 0.039774, 0.040055, 0.035605, 0.038577, 0.041219],
    ];
    for (layer, want) in [one, two].iter().zip(scores) {
        let ranking = rank(layer, (4, 4), BlockScore::Taylor);
        assert_eq!(ranking.scores().dim(), (2, layer.0.ncols() / 4));
        for (found, want) in ranking.scores().iter().zip(want) {
            assert_abs_diff_eq!(*found, want, epsilon = 5.5e-7);
        }
    }
}

#[test]
fn smaller_blocks_at_the_edge_count_by_their_mean() {
    let layer = (sine(5, 6), sine(5, 6));
    let ranking = rank(&layer, (4, 4), BlockScore::Magnitude);
    for (found, want) in ranking.scores().iter().zip([0.633722, 0.595434, 0.461891, 0.788444]) {
        assert_abs_diff_eq!(*found, want, epsilon = 5.5e-7);
    }
    // The two best of the four blocks stay: the first and the last.
    let mask = ranking.mask(2).unwrap();
    assert_eq!(mask.kept_per_row(), [4, 4, 4, 4, 2]);
    assert!(mask.is_kept(0, 0) && mask.is_kept(4, 5));
    assert_eq!(ranking.removed_weights(), [0, 4, 12, 28, 30]);
    let whole = rank(&layer, (64, 64), BlockScore::Taylor);
    assert_eq!((whole.len(), whole.mask(1).unwrap().kept()), (1, 0));
}

#[test]
fn released_curves_match_the_reference() {
    let [one, _] = layers();
    let ranking = rank(&one, (4, 4), BlockScore::Taylor);
    // How many blocks are gone at each tenth.
    let blocks = [0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4];
    let first = [0.0, 0.000484447, 0.001047604, 0.001708070, 0.002348926];
    let second = [0.0, 0.063119464, 0.196165126, 0.220657305, 0.065367034];
    for (order, want) in [(TaylorOrder::First, first), (SECOND, second)] {
        let curve = ranking.released_curve(10, order);
        for (d, (fraction, loss)) in curve.iter().enumerate() {
            assert_abs_diff_eq!(*fraction, d as f64 / 10.0, epsilon = 1e-15);
            assert_abs_diff_eq!(*loss, want[blocks[d]], epsilon = 1e-8);
        }
    }
}

#[test]
fn the_second_order_sum_in_finer_blocks_matches_the_reference_before_smoothing() {
    let [one, _] = layers();
    let curve = rank(&one, (2, 2), BlockScore::Taylor).released_curve(20, SECOND);
    let want = [
        0.0,
        0.001875489150,
        0.000100264468,
        0.001194973462,
        0.000180211778,
        0.000180211778,
        0.003904605426,
        0.014464236710,
        0.003891804418,
        0.004058653351,
        0.004058653351,
        0.004069850820,
        0.002425024813,
        0.036638140185,
        0.002842211721,
        0.002842211721,
        0.037402641549,
        0.064675488840,
        0.006328615731,
        0.065367034443,
        0.065367034443,
    ];
    for ((_, loss), want) in curve.iter().zip(want) {
        assert_abs_diff_eq!(*loss, want, epsilon = 1e-8);
    }
}

#[test]
fn adding_up_the_second_order_as_the_released_code_does_ends_far_from_the_sum() {
    // Step by step the released code adds (ΔΔ + 2 Δ)ᵀ H ΔΔ / 2 with the change Δ *after* the step;
    // with the change before it the sum telescopes to Δᵀ H Δ / 2.
    let [one, _] = layers();
    let ranking = rank(&one, (2, 2), BlockScore::Taylor);
    let product = |removed: usize| -> f64 {
        let mask = ranking.mask(removed).unwrap();
        let gone =
            one.0.indexed_iter().zip(&one.1).filter(|((at, _), _)| !mask.is_kept(at.0, at.1));
        gone.map(|((_, w), g)| -f64::from(*w) * f64::from(*g)).sum()
    };
    let (mut after, mut before, mut last) = (0.0, 0.0, 0.0);
    for d in 0..=20 {
        let kept = ((1.0 - f64::from(d) / 20.0) * ranking.len() as f64) as usize;
        let now = product(ranking.len() - kept);
        let step = now - last;
        after += 0.5 * (step + 2.0 * now) * step;
        before += 0.5 * (step + 2.0 * last) * step;
        last = now;
    }
    let (_, end) = ranking.released_curve(20, TaylorOrder::First)[20];
    assert_abs_diff_eq!(after + end, 0.395917, epsilon = 5.5e-7);
    // What is missing is the damping of 1e-7.
    let (_, want) = ranking.released_curve(20, SECOND)[20];
    assert_abs_diff_eq!(want, 0.065367, epsilon = 5.5e-7);
    assert_abs_diff_eq!(before + end, want, epsilon = 2e-6);
}

#[test]
fn first_order_losses_match_the_reference() {
    let [one, two] = layers();
    let losses = |layer| rank(layer, (2, 2), BlockScore::Taylor).losses(TaylorOrder::First);
    let (f1, f2) = (losses(&one), losses(&two));
    for (found, want) in [
        (f1[1], 0.003224640),
        (f1[2], 0.006408504),
        (f1[3], 0.008873821),
        (f1[4], 0.011386367),
        (f1[16], 0.150331284),
        (f2[1], 0.001945724),
        (f2[8], 0.021302760),
        (f2[32], 0.307959982),
    ] {
        assert_abs_diff_eq!(found, want, epsilon = 1e-8);
    }
}

#[test]
fn equal_blocks_go_by_index_and_bad_input_is_refused() {
    let ones = Array2::<f32>::ones((4, 8));
    let zeros = Array2::<f32>::zeros((4, 8));
    let ranking = rank(&(ones.clone(), zeros.clone()), (2, 2), BlockScore::Taylor);
    assert_eq!(ranking.order(), (0..8).collect::<Vec<_>>());
    assert!(ranking.losses(TaylorOrder::First).iter().all(|l| *l == 0.0));
    assert!(ranking.mask(9).unwrap_err().to_string().contains("at most all 8 blocks"));

    let layer = LayerId::new("fc");
    let error = |gradient: &Array2<f32>, block| {
        BlockRanking::new(&layer, ones.view(), gradient.view(), block, BlockScore::Taylor)
            .unwrap_err()
            .to_string()
    };
    assert!(
        error(&Array2::zeros((4, 7)), (2, 2)).starts_with("gradient of fc.weight: found shape")
    );
    assert!(error(&Array2::from_elem((4, 8), f32::NAN), (2, 2)).contains("element 0 is NaN"));
    assert!(error(&zeros, (0, 2)).contains("at least 1x1"));
    let empty = rank(&(Array2::zeros((0, 4)), Array2::zeros((0, 4))), (2, 2), BlockScore::Taylor);
    assert!(empty.is_empty() && empty.losses(SECOND) == [0.0]);
}

proptest! {
    #[test]
    fn curve_and_mask_tell_of_the_same_blocks(
        rows in 1usize..20, cols in 1usize..20, block in (1usize..6, 1usize..6), part in 0.0..=1.0,
        seed in any::<u64>(),
    ) {
        let mut stream = Seed::new(seed).stream("layer");
        let mut random = || (stream.uniform() - 0.5) as f32;
        let weight = Array2::from_shape_simple_fn((rows, cols), &mut random);
        let gradient = Array2::from_shape_simple_fn((rows, cols), &mut random);
        let layer = (weight, gradient);
        let ranking = rank(&layer, block, BlockScore::Taylor);
        let removed = (part * ranking.len() as f64) as usize;
        let mask = ranking.mask(removed).unwrap();
        prop_assert_eq!(mask.removed(), ranking.removed_weights()[removed]);

        // By definition: Δᵀ (g gᵀ + λ I) Δ / 2 of the change that the mask makes.
        let changes: Vec<(f64, f64)> = layer.0.indexed_iter().zip(&layer.1)
            .filter(|(((r, c), _), _)| !mask.is_kept(*r, *c))
            .map(|((_, w), g)| (f64::from(*w), f64::from(*g)))
            .collect();
        let signed: f64 = changes.iter().map(|(w, g)| w * g).sum();
        let squared: f64 = changes.iter().map(|(w, g)| (w * g).powi(2)).sum();
        let norm: f64 = changes.iter().map(|(w, _)| w * w).sum();
        let want = squared + 0.5 * signed * signed + 0.5 * 0.3 * norm;
        let losses = ranking.losses(TaylorOrder::Second { damping: 0.3 });
        prop_assert!((losses[removed] - want).abs() < 1e-12 * (1.0 + want));
        let first = ranking.losses(TaylorOrder::First);
        prop_assert!(first[0] == 0.0 && first.is_sorted());
        prop_assert_eq!(first.len(), ranking.len() + 1);
        // Whole blocks go or stay.
        let kept_at = |r: usize, c: usize| mask.is_kept(r, c);
        for r in 0..rows {
            for c in 0..cols {
                prop_assert_eq!(kept_at(r, c), kept_at(r / block.0 * block.0, c / block.1 * block.1));
            }
        }
    }

    #[test]
    fn the_pruner_removes_the_blocks_that_the_ranking_names(
        tall in 1usize..5, wide in 1usize..5, block in (1usize..5, 1usize..5), part in 0.0..=1.0,
        seed in any::<u64>(),
    ) {
        let mut stream = Seed::new(seed).stream("layer");
        let shape = (tall * block.0, wide * block.1);
        let mut random = || stream.uniform() as f32 - 0.5;
        let weight = Array2::from_shape_simple_fn(shape, &mut random);
        let gradient = Array2::from_shape_simple_fn(shape, &mut random);
        let layer = LayerId::new("fc");
        let ranking = rank(&(weight.clone(), gradient.clone()), block, BlockScore::Taylor);
        let removed = (part * ranking.len() as f64) as usize;
        let target = Target {
            layer: &layer,
            pattern: Pattern::Block { rows: block.0, cols: block.1 },
            scope: Scope::PerLayer,
            remove: removed * block.0 * block.1,
            stream: Seed::new(0).stream("fc"),
        };
        let stats = LayerStats { gradient: Some(gradient), ..LayerStats::default() };
        let mut left = weight.clone();
        let pruned = BlockTaylor.prune(left.view_mut(), &stats, &target).unwrap();
        prop_assert_eq!(&pruned.mask, &ranking.mask(removed).unwrap());
        pruned.mask.check(target.pattern).unwrap();
        let mut masked = weight.clone();
        pruned.mask.apply(masked.view_mut()).unwrap();
        prop_assert_eq!(left, masked);
    }
}

#[test]
fn the_pruner_refuses_what_it_cannot_do_and_leaves_the_weight() {
    let layer = LayerId::new("fc");
    let whole = sine(8, 8);
    let mut weight = whole.clone();
    let mut refused = |pattern: &str, remove, gradient: Option<Array2<f32>>| {
        let stats = LayerStats { gradient, ..LayerStats::default() };
        let target = Target {
            layer: &layer,
            pattern: pattern.parse().unwrap(),
            scope: Scope::PerLayer,
            remove,
            stream: Seed::new(0).stream("fc"),
        };
        let error = BlockTaylor.prune(weight.view_mut(), &stats, &target).unwrap_err();
        assert_eq!(weight, whole);
        error
    };
    let good = || Some(sine(8, 8));
    assert!(matches!(refused("unstructured", 4, good()), Error::Unsupported { .. }));
    assert!(matches!(refused("block 4x4", 4, good()), Error::OutOfRange { .. }));
    assert!(matches!(refused("block 3x4", 12, good()), Error::PatternShape { .. }));
    assert!(matches!(refused("block 4x4", 16, None), Error::NoStatistics { .. }));
    assert!(matches!(refused("block 4x4", 16, Some(sine(8, 4))), Error::Shape { .. }));
    let broken = sine(8, 8) / 0.0;
    assert!(matches!(refused("block 4x4", 16, Some(broken)), Error::NotFinite { .. }));
}
