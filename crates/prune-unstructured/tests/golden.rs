//! Masks, scores and reconstruction errors against a numpy version of the released code of Wanda,
//! RIA and NoWag and of magnitude pruning, in f64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod layers;

use approx::assert_relative_eq;
use layers::{Fixture, TWO_FOUR, removed_text};
use ndarray::{Array1, Array2, s};
use prune_core::{LayerId, Mask, Pattern, Scope, ScorePruner, Seed, Target, WeightScorer};
use prune_unstructured::{
    PermuteOptions, Refinement, Ria, Wanda, WandaShare, permute_channels, prune_permuted, pruner,
};

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
        assert_relative_eq!(error(&fixture, &found), lost, epsilon = 1e-6);
    }
}

#[test]
fn errors_of_the_correlated_fixture_match_the_reference() {
    let fixture = Fixture::correlated();
    let head = [-0.280555, 0.489097, 0.031695, -0.003458];
    for (found, want) in fixture.weight.slice(s![0, ..4]).iter().zip(head) {
        assert_relative_eq!(*found, want, epsilon = 1e-6);
    }
    assert_relative_eq!(fixture.inputs[[127, 31]], 0.306347, epsilon = 1e-6);
    for (method, pattern, scope, lost) in [
        ("magnitude", TWO_FOUR, Scope::PerRow, 1307.770181),
        ("magnitude", Pattern::Unstructured, Scope::PerRow, 721.609572),
        ("magnitude", Pattern::Unstructured, Scope::PerLayer, 533.510861),
        ("wanda", TWO_FOUR, Scope::PerRow, 246.982103),
        ("wanda", Pattern::Unstructured, Scope::PerRow, 170.278320),
        ("wanda", Pattern::Unstructured, Scope::PerLayer, 169.193642),
        ("ria", TWO_FOUR, Scope::PerRow, 253.714166),
        ("ria", Pattern::Unstructured, Scope::PerRow, 211.929197),
        ("ria", Pattern::Unstructured, Scope::PerLayer, 200.825133),
        ("nowag", TWO_FOUR, Scope::PerRow, 262.685678),
    ] {
        let found = mask(&fixture, method, pattern, scope);
        assert_eq!(found.removed(), 256);
        assert_relative_eq!(error(&fixture, &found), lost, max_relative = 1e-8);
    }
}

#[test]
fn scores_match_the_reference_up_to_the_scale_of_the_statistics() {
    let fixture = Fixture::small();
    // The reference divides the sum over 16 tokens by 2 sequences, not by the tokens.
    let scale = 8f64.sqrt();
    let wanda = [0.0, 0.287637, 0.804178, 1.007395, 1.274784, 1.524369, 1.745922, 1.940242];
    for (found, want) in scores(&fixture, &Wanda).row(0).iter().zip(wanda) {
        assert_relative_eq!(found * scale, want, epsilon = 1.5e-6);
    }
    let ria = [0.0, 0.134797, 0.315937, 0.432874, 0.567002, 0.706176, 0.794837, 0.872770];
    for (found, want) in scores(&fixture, &Ria::default()).row(0).iter().zip(ria) {
        assert_relative_eq!(found * scale.sqrt(), want, epsilon = 1.5e-6);
    }
}

#[test]
fn statistics_match_those_of_the_released_codes() {
    let fixture = Fixture::small();
    let stats = fixture.stats().columns.unwrap();
    let nowag = [1.238593, 1.038607, 2.070824, 1.493810, 1.411093, 1.373754, 1.351216, 1.344493];
    for (found, want) in stats.squared_norm().iter().zip(nowag) {
        assert_relative_eq!(found / 8.0, want, epsilon = 1.5e-6);
    }
    let sums =
        [-0.312256, -0.313930, -0.315609, -0.317295, -0.318990, -0.320698, -0.322424, -0.324172];
    for (found, want) in stats.mean().iter().zip(sums) {
        assert_relative_eq!(found * 8.0, want, epsilon = 1.5e-6);
    }
    let within = [0.079641, 0.515426, 0.955648, 0.744020, 0.669353, 0.684780, 0.653327, 0.670586];
    for (found, want) in fixture.variance_within(8).iter().zip(within) {
        assert_relative_eq!(*found, want, epsilon = 1.5e-6);
    }
}

#[test]
fn an_equal_share_of_every_row_is_what_the_released_variant_of_wanda_bisects_for() {
    let fixture = Fixture::correlated();
    let wanda = ScorePruner(WandaShare);
    let (found, _) = fixture.prune(&wanda, Pattern::Unstructured, Scope::PerLayer).unwrap();
    let removed: Vec<usize> = found.mask.kept_per_row().into_iter().map(|k| 32 - k).collect();
    assert_eq!(removed, [17, 18, 16, 15, 18, 13, 17, 14, 16, 15, 13, 14, 17, 17, 17, 19]);
    assert_relative_eq!(error(&fixture, &found.mask), 187.899019, max_relative = 1e-8);
    // The share at which the bisection stops lies between what goes and what stays.
    let shares = scores(&fixture, &WandaShare);
    for ((r, c), share) in shares.indexed_iter() {
        assert_eq!(found.mask.is_kept(r, c), *share > 0.209375);
    }
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
        assert_relative_eq!(found * scale, want, max_relative = 1e-6);
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
    assert_relative_eq!(error(&fixture, &found.pruned.mask), 245.514935, max_relative = 1e-8);
    let stored = Mask::of_nonzeros(found.permutation.apply(weight.view()).unwrap().view());
    stored.check(TWO_FOUR).unwrap();
    assert!(found.pruned.mask.check(TWO_FOUR).is_err());
}
