//! Masks, scores and reconstruction errors against a numpy version of the released code of Wanda,
//! RIA and NoWag and of magnitude pruning, in f64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod layers;

use approx::{assert_abs_diff_eq, assert_relative_eq};
use layers::{Fixture, TWO_FOUR, removed_text};
use ndarray::{Array1, Array2, s};
use prune_core::{
    LayerId, LayerStats, Mask, Pattern, Pruner, Scope, ScorePruner, Seed, Target, WeightScorer,
    count_to_remove,
};
use prune_unstructured::{
    Magnitude, PermuteOptions, Refinement, Ria, Wanda, WandaShare, permute_channels,
    prune_permuted, pruner,
};

/// Half a unit of the sixth decimal, to which the reference values are printed, and rounding.
const PRINTED: f64 = 6e-7;

/// The mask of a method at half sparsity, which leaves the other weights as they are.
fn mask(fixture: &Fixture, method: &str, pattern: Pattern, scope: Scope) -> Mask {
    let (pruned, weight) = fixture.prune(&*pruner(method).unwrap(), pattern, scope).unwrap();
    for (w, old) in weight.iter().zip(&fixture.masked(&pruned.mask)) {
        assert_eq!(*w, f64::from(*old as f32));
    }
    pruned.mask
}

fn error(fixture: &Fixture, mask: &Mask) -> f64 {
    fixture.error(fixture.masked(mask).view())
}

/// The scores of a layer.
fn scores(fixture: &Fixture, scorer: &dyn WeightScorer) -> Array2<f64> {
    let layer = LayerId::new("layer");
    let target = Target {
        layer: &layer,
        pattern: Pattern::Unstructured,
        scope: Scope::PerRow,
        remove: 0,
        stream: Seed::new(0).stream("layer"),
    };
    let weight = fixture.weight.mapv(|w| w as f32);
    let score = scorer.prepare(&target, weight.view(), &fixture.stats()).unwrap();
    let mut all = Array2::zeros(weight.dim());
    for (r, weights) in weight.outer_iter().enumerate() {
        let mut row = Array1::zeros(weights.len());
        score(r, weights.as_slice().unwrap(), row.as_slice_mut().unwrap());
        all.row_mut(r).assign(&row.mapv(f64::from));
    }
    all
}

#[test]
fn masks_and_errors_of_the_small_fixture_match_the_reference() {
    let fixture = Fixture::small();
    let unstructured = Pattern::Unstructured;
    for (method, pattern, scope, removed, lost) in [
        (
            "magnitude",
            unstructured,
            Scope::PerLayer,
            "11111100/11111111/00000011/00000000",
            23.715196,
        ),
        (
            "magnitude",
            unstructured,
            Scope::PerRow,
            "11110000/00001111/00001111/11100001",
            43.919384,
        ),
        ("magnitude", TWO_FOUR, Scope::PerRow, "11001100/00110110/00110011/11000011", 54.715163),
        ("wanda", unstructured, Scope::PerRow, "11110000/00001111/00001111/11000011", 44.143590),
        ("wanda", TWO_FOUR, Scope::PerRow, "11001100/01010110/01010011/11000011", 60.842314),
        ("ria", unstructured, Scope::PerLayer, "11111000/01111111/00000111/10000000", 26.139299),
        ("ria", TWO_FOUR, Scope::PerRow, "11001100/00110110/01010011/11000011", 58.621124),
    ] {
        let found = mask(&fixture, method, pattern, scope);
        assert_eq!(removed_text(&found), removed, "{method} {pattern} by {scope}");
        assert_abs_diff_eq!(error(&fixture, &found), lost, epsilon = PRINTED);
    }
}

#[test]
fn the_released_threshold_of_magnitude_takes_one_weight_more_and_its_equals() {
    let fixture = Fixture::small();
    // Released: everything up to and including the score at index ⌊N · s⌋ goes.
    let mut scores: Vec<f64> = fixture.weight.iter().map(|w| w.abs()).collect();
    scores.sort_by(f64::total_cmp);
    let threshold = scores[16];
    let inclusive = Mask::from_fn(4, 8, |r, c| fixture.weight[[r, c]].abs() > threshold);
    assert_eq!(removed_text(&inclusive), "11111100/11111111/00000111/00000000");
    assert_abs_diff_eq!(error(&fixture, &inclusive), 28.123289, epsilon = PRINTED);
    // No two weights of this layer are equal: it is what asking for 17 gives.
    let layer = LayerId::new("layer");
    let target = Target {
        layer: &layer,
        pattern: Pattern::Unstructured,
        scope: Scope::PerLayer,
        remove: 17,
        stream: Seed::new(0).stream("layer"),
    };
    let mut weight = fixture.weight.mapv(|w| w as f32);
    let exact = ScorePruner(Magnitude);
    let found = exact.prune(weight.view_mut(), &LayerStats::default(), &target).unwrap();
    assert_eq!(found.mask, inclusive);
}

#[test]
fn sparsities_that_are_no_binary_fractions_remove_what_they_say() {
    // In floating point 0.19999999999999996 of 10 is 1, 0.09999999999999998 of 10 is 0.
    assert_eq!(((1.0 - 0.8) * 10.0) as usize, 1);
    assert_eq!(((1.0 - 0.9) * 10.0) as usize, 0);
    assert_eq!(count_to_remove(10, 1.0 - 0.8).unwrap(), 2);
    assert_eq!(count_to_remove(10, 1.0 - 0.9).unwrap(), 1);
}

#[test]
fn of_equal_weights_in_a_group_the_lower_indices_go() {
    let fixture = Fixture { weight: Array2::ones((2, 8)), inputs: Array2::ones((4, 8)) };
    for method in ["magnitude", "wanda", "ria", "nowag"] {
        let found = mask(&fixture, method, TWO_FOUR, Scope::PerRow);
        assert_eq!(removed_text(&found), "11001100/11001100", "{method}");
    }
}

#[test]
fn errors_of_the_correlated_fixture_match_the_reference() {
    let fixture = Fixture::correlated();
    let head = [-0.280555, 0.489097, 0.031695, -0.003458];
    for (found, want) in fixture.weight.slice(s![0, ..4]).iter().zip(head) {
        assert_abs_diff_eq!(*found, want, epsilon = PRINTED);
    }
    assert_abs_diff_eq!(fixture.inputs[[127, 31]], 0.306347, epsilon = PRINTED);
    let nothing = Mask::from_fn(16, 32, |_, _| false);
    let everything = error(&fixture, &nothing);
    assert_abs_diff_eq!(everything, 5973.119398, epsilon = PRINTED);
    let (row, layer, unstructured) = (Scope::PerRow, Scope::PerLayer, Pattern::Unstructured);
    // The errors, and over the error of a layer of zeros.
    for (method, pattern, scope, lost, part) in [
        ("magnitude", TWO_FOUR, row, 1307.770181, 0.218943),
        ("magnitude", unstructured, row, 721.609572, 0.120810),
        ("magnitude", unstructured, layer, 533.510861, 0.089319),
        ("wanda", TWO_FOUR, row, 246.982103, 0.041349),
        ("wanda", unstructured, row, 170.278320, 0.028507),
        ("wanda", unstructured, layer, 169.193642, 0.028326),
        ("ria", TWO_FOUR, row, 253.714166, 0.042476),
        ("ria", unstructured, row, 211.929197, 0.035480),
        ("ria", unstructured, layer, 200.825133, 0.033621),
        ("nowag", TWO_FOUR, row, 262.685678, 0.043978),
    ] {
        let found = mask(&fixture, method, pattern, scope);
        assert_eq!(found.removed(), 256);
        let error = error(&fixture, &found);
        assert_abs_diff_eq!(error, lost, epsilon = PRINTED);
        assert_abs_diff_eq!(error / everything, part, epsilon = PRINTED);
    }
}

#[test]
fn scores_match_the_reference_up_to_the_scale_of_the_statistics() {
    let fixture = Fixture::small();
    // The reference divides the sum over 16 tokens by 2 sequences, not by the tokens.
    let scale = 8f64.sqrt();
    let wanda = [0.0, 0.287637, 0.804178, 1.007395, 1.274784, 1.524369, 1.745922, 1.940242];
    for (found, want) in scores(&fixture, &Wanda).row(0).iter().zip(wanda) {
        assert_abs_diff_eq!(found * scale, want, epsilon = PRINTED);
    }
    let ria = [0.0, 0.134797, 0.315937, 0.432874, 0.567002, 0.706176, 0.794837, 0.872770];
    for (found, want) in scores(&fixture, &Ria::default()).row(0).iter().zip(ria) {
        assert_abs_diff_eq!(found * scale.sqrt(), want, epsilon = PRINTED);
    }
}

#[test]
fn a_row_or_column_of_zeros_has_no_importance_under_ria() {
    let mut fixture = Fixture::small();
    fixture.weight.row_mut(1).fill(0.0);
    fixture.weight.column_mut(2).fill(0.0);
    let scores = scores(&fixture, &Ria::default());
    assert!(scores.iter().all(|s| s.is_finite()));
    assert!(scores.row(1).iter().chain(scores.column(2)).all(|s| *s == 0.0));
}

#[test]
fn statistics_match_those_of_the_released_codes() {
    let fixture = Fixture::small();
    let stats = fixture.stats().columns.unwrap();
    let nowag = [1.238593, 1.038607, 2.070824, 1.493810, 1.411093, 1.373754, 1.351216, 1.344493];
    for (found, want) in stats.squared_norm().iter().zip(nowag) {
        assert_abs_diff_eq!(found / 8.0, want, epsilon = PRINTED);
    }
    // Wanda divides by the number of sequences; SparseGPT doubles that on its diagonal.
    let wanda = [4.954373, 4.154426, 8.283296, 5.975242, 5.644371, 5.495017, 5.404863, 5.377972];
    let gram = fixture.stats().gram.unwrap();
    for ((found, gram), want) in stats.squared_norm().iter().zip(gram.matrix().diag()).zip(wanda) {
        assert_abs_diff_eq!(found / 2.0, want, epsilon = PRINTED);
        assert_abs_diff_eq!(gram / 2.0, want, epsilon = PRINTED);
    }
    let sums =
        [-0.312256, -0.313930, -0.315609, -0.317295, -0.318990, -0.320698, -0.322424, -0.324172];
    for (found, want) in stats.mean().iter().zip(sums) {
        assert_abs_diff_eq!(found * 8.0, want, epsilon = PRINTED);
    }
    let within = [0.079641, 0.515426, 0.955648, 0.744020, 0.669353, 0.684780, 0.653327, 0.670586];
    for (found, want) in fixture.variance_within(8).iter().zip(within) {
        assert_abs_diff_eq!(*found, want, epsilon = PRINTED);
    }
}

#[test]
fn an_equal_share_of_every_row_is_what_the_released_variant_of_wanda_bisects_for() {
    let fixture = Fixture::correlated();
    let wanda = ScorePruner(WandaShare);
    let (found, _) = fixture.prune(&wanda, Pattern::Unstructured, Scope::PerLayer).unwrap();
    let removed: Vec<usize> = found.mask.kept_per_row().into_iter().map(|k| 32 - k).collect();
    assert_eq!(removed, [17, 18, 16, 15, 18, 13, 17, 14, 16, 15, 13, 14, 17, 17, 17, 19]);
    assert_abs_diff_eq!(error(&fixture, &found.mask), 187.899019, epsilon = PRINTED);
    // The share at which the bisection stops lies between what goes and what stays.
    let shares = scores(&fixture, &WandaShare);
    for ((r, c), share) in shares.indexed_iter() {
        assert_eq!(found.mask.is_kept(r, c), *share > 0.209375);
    }
    // The released bisection of the share, until the sparsity is within 0.001 of a half.
    let sparsity = |alpha: f64| shares.iter().filter(|s| **s <= alpha).count() as f64 / 512.0;
    let (mut low, mut high, mut alpha, mut iterations) = (0.0, 0.8, 0.4, 0);
    while (sparsity(alpha) - 0.5).abs() > 0.001 && high - low >= 0.001 {
        if sparsity(alpha) > 0.5 {
            high = alpha
        } else {
            low = alpha
        }
        alpha = 0.5 * (low + high);
        iterations += 1;
    }
    assert_eq!((iterations, sparsity(alpha)), (7, 0.5));
    assert_abs_diff_eq!(alpha, 0.209375, epsilon = 1e-12);
}

#[test]
fn permuted_channels_keep_what_the_reference_keeps() {
    let fixture = Fixture::correlated();
    let scores = scores(&fixture, &Ria::default()).mapv(|s| s as f32);
    let found = permute_channels(scores.view(), 2, 4, &PermuteOptions::default()).unwrap();
    // Sums over 128 tokens are divided by 4 sequences in the reference.
    let scale = 32f64.powf(0.25);
    let kept = [61.948463, 62.057859, 62.731912, 62.934311, 63.101373, 63.404821];
    for (found, want) in found.kept().iter().zip(kept) {
        assert_relative_eq!(found * scale, want, max_relative = 1e-7);
    }

    let layer = LayerId::new("layer");
    let target = Target {
        layer: &layer,
        pattern: TWO_FOUR,
        scope: Scope::PerRow,
        remove: 256,
        stream: Seed::new(0).stream("layer"),
    };
    let mut weight = fixture.weight.mapv(|w| w as f32);
    let dealt = PermuteOptions { refinement: Refinement::None, ..PermuteOptions::default() };
    let stats = fixture.stats();
    let found =
        prune_permuted(&Ria::default(), weight.view_mut(), &stats, &target, &dealt).unwrap();
    assert_abs_diff_eq!(error(&fixture, &found.pruned.mask), 245.514935, epsilon = PRINTED);
    let stored = Mask::of_nonzeros(found.permutation.apply(weight.view()).unwrap().view());
    stored.check(TWO_FOUR).unwrap();
    assert!(found.pruned.mask.check(TWO_FOUR).is_err());
}
