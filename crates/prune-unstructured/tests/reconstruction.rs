//! Methods that fit weights to outputs: masks, weights, errors and iteration counts against a numpy
//! version (f64) of the released code of SparseGPT, ALPS, ADMM and DSnoT, itself checked against
//! that code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod layers;

use approx::{assert_abs_diff_eq, assert_relative_eq};
use layers::{Fixture, TWO_FOUR, removed_text};
use ndarray::{Array2, ArrayView1};
use prune_core::{
    ColumnStats, Fidelity, LayerId, Pattern, Pruner, Scope, ScorePruner, Seed, Target,
};
use prune_unstructured::{
    Admm, Alps, Compensated, Dsnot, Magnitude, Refit, SignCheck, Solver, SparseGpt, Wanda, pruner,
};

const UNSTRUCTURED: Pattern = Pattern::Unstructured;

/// Weights are found in f32; the reference values are printed to eight digits.
const SINGLE: f64 = 3e-7;

fn close(found: ArrayView1<'_, f64>, want: &[f64]) {
    assert_eq!(found.len(), want.len());
    for (f, w) in found.iter().zip(want) {
        assert_abs_diff_eq!(*f, *w, epsilon = 1e-6);
    }
}

fn least_squares(base: Box<dyn Pruner>) -> Refit {
    Refit::over(base).with_damping(0.0).unwrap().with_solver(Solver::Exact).unwrap()
}

#[test]
fn the_fixtures_are_those_of_the_reference() {
    let small = Fixture::small();
    let row = [9.908745, 0.617795, 4.745966, 2.436556, 2.103271, 1.949367, 1.848526, 1.768046];
    close(small.gram().row(0), &row);
    let correlated = Fixture::correlated();
    assert_abs_diff_eq!(correlated.gram().diag().sum(), 5151.147985, epsilon = 6e-7);
    let nothing = Array2::zeros((16, 32));
    assert_abs_diff_eq!(correlated.error(nothing.view()), 5973.119398, epsilon = 6e-7);
    assert_abs_diff_eq!(correlated.weight[[15, 31]], 0.172778, epsilon = 6e-7);
    let condition = |gram: Array2<f64>| {
        let values = prune_linalg::eigenvalues_symmetric(gram.view()).unwrap();
        values[values.len() - 1] / values[0]
    };
    assert_abs_diff_eq!(condition(small.gram()), 6.334724, epsilon = 6e-7);
    assert_abs_diff_eq!(condition(correlated.gram()), 7123.596, epsilon = 6e-4);
    let head = [0.690971, 1.073444, -0.170712, 0.685721, -0.930015, -4.743519];
    close(correlated.inputs.row(0).slice(ndarray::s![..6]), &head);
}

#[test]
fn sparsegpt_2_of_4_matches_the_reference_weight_by_weight() {
    let fixture = Fixture::small();
    let (pruned, weight) = fixture.prune(&SparseGpt::default(), TWO_FOUR, Scope::PerLayer).unwrap();
    assert_eq!(removed_text(&pruned.mask), "11001100/00110110/01010011/11000101");
    close(weight.row(1), &[0.656987, -0.544021, 0.0, 0.0, 0.220880, 0.0, 0.0, 0.348361]);
    close(weight.row(2), &[0.990607, 0.0, 0.680046, 0.0, 0.611806, -0.795144, 0.0, 0.0]);
    close(weight.row(3), &[0.0, 0.0, 0.924950, -0.963050, 1.032895, 0.0, 0.827078, 0.0]);
    assert_relative_eq!(fixture.error(weight.view()), 60.707109, max_relative = SINGLE);
    // Two sequences: the reference's H is 2/2 of the Gram matrix, and its loss half of ours.
    assert_relative_eq!(pruned.report.loss.unwrap() / 2.0, 30.727610, max_relative = SINGLE);
    assert_eq!((pruned.report.damping, pruned.report.damping_raised), (Some(0.01), 0));
}

#[test]
fn sparsegpt_released_prunes_up_to_the_threshold_as_the_official_code_does() {
    let released = SparseGpt::default().with_fidelity(Fidelity::Released);
    let fixture = Fixture::small();
    let (pruned, weight) = fixture.prune(&released, UNSTRUCTURED, Scope::PerLayer).unwrap();
    assert_eq!(pruned.mask.kept(), 15);
    assert_relative_eq!(pruned.report.loss.unwrap() / 2.0, 14.231488, max_relative = SINGLE);
    close(weight.row(0), &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -0.744263, 0.840463]);
    let narrow = released.with_block_size(4).unwrap();
    let (pruned, weight) = fixture.prune(&narrow, UNSTRUCTURED, Scope::PerLayer).unwrap();
    assert_eq!(pruned.mask.kept(), 14);
    assert_relative_eq!(pruned.report.loss.unwrap() / 2.0, 17.217473, max_relative = SINGLE);
    assert_relative_eq!(fixture.error(weight.view()), 34.009594, max_relative = SINGLE);

    let fixture = Fixture::correlated();
    for (block, kept, error) in [(128, 255, 58.244407), (8, 252, 64.826157)] {
        let released = released.with_block_size(block).unwrap();
        let (pruned, weight) = fixture.prune(&released, UNSTRUCTURED, Scope::PerLayer).unwrap();
        assert_eq!(pruned.mask.kept(), kept);
        assert_relative_eq!(fixture.error(weight.view()), error, max_relative = SINGLE);
        if block == 128 {
            assert_relative_eq!(
                pruned.report.loss.unwrap() / 4.0,
                19.975034,
                max_relative = SINGLE
            );
        }
    }
}

#[test]
fn reconstruction_errors_of_the_correlated_fixture_match_the_reference() {
    let fixture = Fixture::correlated();
    let wanda = || Box::new(ScorePruner(Wanda));
    let obs = || Box::new(Compensated::new(wanda(), SparseGpt::default()));
    let released = Admm::default().with_fidelity(Fidelity::Released);
    type Case = (&'static str, Box<dyn Pruner>, Pattern, Scope, f64);
    let cases: Vec<Case> = vec![
        ("obs", obs(), TWO_FOUR, Scope::PerRow, 118.368701),
        ("obs", obs(), UNSTRUCTURED, Scope::PerRow, 88.621503),
        ("obs", obs(), UNSTRUCTURED, Scope::PerLayer, 91.236884),
        ("sparsegpt", Box::new(SparseGpt::default()), TWO_FOUR, Scope::PerLayer, 85.410920),
        ("sparsegpt", Box::new(SparseGpt::default()), UNSTRUCTURED, Scope::PerLayer, 56.230884),
        ("refit", Box::new(least_squares(wanda())), TWO_FOUR, Scope::PerRow, 28.923016),
        ("refit", Box::new(least_squares(wanda())), UNSTRUCTURED, Scope::PerRow, 22.274578),
        ("refit", Box::new(least_squares(wanda())), UNSTRUCTURED, Scope::PerLayer, 22.942114),
        ("admm", Box::new(Admm::default()), TWO_FOUR, Scope::PerLayer, 26.280229),
        ("admm", Box::new(Admm::default()), UNSTRUCTURED, Scope::PerLayer, 16.980996),
        ("admm released", Box::new(released), UNSTRUCTURED, Scope::PerLayer, 18.985739),
        ("alps", Box::new(Alps::default()), TWO_FOUR, Scope::PerLayer, 22.800376),
        ("alps", Box::new(Alps::default()), UNSTRUCTURED, Scope::PerLayer, 15.158937),
    ];
    for (name, method, pattern, scope, error) in cases {
        let (pruned, weight) = fixture.prune(&*method, pattern, scope).unwrap();
        assert_eq!(pruned.mask.removed(), 256, "{name}");
        pruned.mask.check(pattern).unwrap();
        let found = fixture.error(weight.view());
        // Ten steps of conjugate gradients in f32 are where ALPS ends.
        let tolerance = if name == "alps" { 5e-6 } else { SINGLE };
        assert_relative_eq!(found, error, max_relative = tolerance);
    }
    let (pruned, _) = fixture.prune(&SparseGpt::default(), TWO_FOUR, Scope::PerLayer).unwrap();
    // Four sequences: H is 2/4 of the Gram matrix, and the loss is half of Σ e².
    assert_relative_eq!(pruned.report.loss.unwrap() / 4.0, 28.527810, max_relative = SINGLE);
}

#[test]
fn reconstruction_errors_of_the_small_fixture_match_the_reference() {
    let fixture = Fixture::small();
    let released = Admm::default().with_fidelity(Fidelity::Released);
    let magnitude = least_squares(Box::new(ScorePruner(Magnitude)));
    let cases: Vec<(Box<dyn Pruner>, Pattern, f64)> = vec![
        (Box::new(Alps::default()), UNSTRUCTURED, 21.123304),
        (Box::new(Alps::default()), TWO_FOUR, 46.059042),
        (Box::new(released), UNSTRUCTURED, 21.128057),
        (Box::new(Admm::default()), UNSTRUCTURED, 21.129362),
        (Box::new(Admm::default()), TWO_FOUR, 50.239168),
        (Box::new(magnitude), TWO_FOUR, 52.467195),
    ];
    for (method, pattern, error) in cases {
        let (_, weight) = fixture.prune(&*method, pattern, Scope::PerLayer).unwrap();
        assert_relative_eq!(fixture.error(weight.view()), error, max_relative = SINGLE);
    }
    let (_, weight) = fixture.prune(&Alps::default(), TWO_FOUR, Scope::PerLayer).unwrap();
    close(weight.row(1), &[0.732131, -0.441240, 0.0, 0.0, 0.200697, 0.0, 0.0, 0.331544]);
}

#[test]
fn alps_takes_as_many_iterations_as_the_reference() {
    let iterations = |fixture: &Fixture, pattern| {
        let (pruned, _) = fixture.prune(&Alps::default(), pattern, Scope::PerLayer).unwrap();
        pruned.report.iterations.unwrap()
    };
    assert_eq!(iterations(&Fixture::small(), UNSTRUCTURED), 30);
    assert_eq!(iterations(&Fixture::correlated(), UNSTRUCTURED), 18);
    assert_eq!(iterations(&Fixture::correlated(), TWO_FOUR), 21);
}

#[test]
fn least_squares_on_the_mask_of_alps_is_the_best_of_all() {
    let fixture = Fixture::correlated();
    for (pattern, error) in [(TWO_FOUR, 22.275605), (UNSTRUCTURED, 14.735391)] {
        let best = least_squares(Box::new(Alps::default()));
        let (_, weight) = fixture.prune(&best, pattern, Scope::PerLayer).unwrap();
        assert_relative_eq!(fixture.error(weight.view()), error, max_relative = SINGLE);
        // Conjugate gradients get there too.
        let solver = Solver::ConjugateGradient { steps: 200, tolerance: 1e-6 };
        let iterative = Refit::over(Box::new(Alps::default()));
        let iterative = iterative.with_damping(0.0).unwrap().with_solver(solver).unwrap();
        let (_, weight) = fixture.prune(&iterative, pattern, Scope::PerLayer).unwrap();
        assert_relative_eq!(fixture.error(weight.view()), error, max_relative = 1e-3);
    }
}

#[test]
fn dsnot_matches_the_reference_with_and_without_the_sign_check() {
    let mut fixture = Fixture::correlated_wide(256);
    fixture.inputs += 0.05;
    let wanda = pruner("wanda").unwrap();
    let (pruned, _) = fixture.prune(&*wanda, UNSTRUCTURED, Scope::PerRow).unwrap();
    let masked = fixture.masked(&pruned.mask);
    assert_abs_diff_eq!(fixture.error(masked.view()), 1593.313943, epsilon = 6e-7);

    let mut stats = fixture.stats();
    let columns = stats.columns.take().unwrap();
    // The variance of the released code, through statistics that have it.
    let m2 = fixture.variance_within(32).into_iter().map(|v| v * 128.0).collect();
    let (mean, squares) = (columns.mean().to_vec(), columns.squared_norm().to_vec());
    let (sum, max) = (columns.abs_sum().to_vec(), columns.abs_max().to_vec());
    stats.columns = Some(ColumnStats::from_parts(128, mean, m2, squares, sum, max).unwrap());
    let layer = LayerId::new("layer");
    let target = Target {
        layer: &layer,
        pattern: UNSTRUCTURED,
        scope: Scope::PerRow,
        remove: 2048,
        stream: Seed::new(0).stream("layer"),
    };
    let dense = fixture.weight.mapv(|w| w as f32);
    for (check, error) in [(SignCheck::Ignore, 1605.263852), (SignCheck::Stop, 1548.908033)] {
        let dsnot = Dsnot::default().with_tokens(32).unwrap().with_sign_check(check);
        let refined = dsnot.refine(dense.view(), &stats, &pruned.mask, &target).unwrap();
        assert_eq!(refined.kept_per_row(), pruned.mask.kept_per_row());
        let found = fixture.error(fixture.masked(&refined).view());
        assert_abs_diff_eq!(found, error, epsilon = 6e-7);
    }
}
