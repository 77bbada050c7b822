//! Masks, scores and reconstruction errors against a numpy version of the released code of Wanda
//! (Sun et al. 2023) and of magnitude pruning, in f64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_relative_eq;
use ndarray::{Array1, Array2, s};
use prune_core::{
    ColumnStats, LayerId, LayerStats, Mask, Pattern, Scope, Seed, Target, WeightScorer,
    count_to_remove,
};
use prune_unstructured::{Wanda, pruner};

/// A layer with its calibration inputs.
struct Fixture {
    weight: Array2<f64>,
    inputs: Array2<f64>,
}

impl Fixture {
    /// `W[i,j] = sin(7i+3j)`, `X[t,j] = sin(0.37(t+1)(j+1)) + 0.5 cos(t+1)`.
    fn small() -> Self {
        let weight =
            Array2::from_shape_fn((4, 8), |(i, j)| (7.0 * i as f64 + 3.0 * j as f64).sin());
        let inputs = Array2::from_shape_fn((16, 8), |(t, j)| {
            let (t, j) = (t as f64 + 1.0, j as f64 + 1.0);
            (0.37 * t * j).sin() + 0.5 * t.cos()
        });
        Self { weight, inputs }
    }

    /// Correlated inputs of rank 8 and noise, two channels ten times as loud.
    fn correlated() -> Self {
        let p = |i: usize, j: usize, s: f64| {
            let v = (12.9898 * i as f64 + 78.233 * j as f64 + 37.719 * s).sin().abs() * 43758.5453;
            v.fract() - 0.5
        };
        let weight = Array2::from_shape_fn((16, 32), |(i, j)| p(i, j, 1.0));
        let inputs = Array2::from_shape_fn((128, 32), |(t, j)| {
            let scale = if j % 16 == 5 { 10.0 } else { 1.0 };
            let shared: f64 = (0..8).map(|k| p(t, k, 2.0) * p(k, j, 3.0)).sum();
            scale * (2.0 * shared + 0.4 * p(t, j, 4.0))
        });
        Self { weight, inputs }
    }

    fn stats(&self) -> LayerStats {
        let mut columns = ColumnStats::new(self.inputs.ncols());
        columns.update("x", self.inputs.mapv(|x| x as f32).view()).unwrap();
        LayerStats { columns: Some(columns), gram: None }
    }

    /// The mask of a method at half sparsity.
    fn prune(&self, method: &str, pattern: Pattern, scope: Scope) -> Mask {
        let layer = LayerId::new("layer");
        let target = Target {
            layer: &layer,
            pattern,
            scope,
            remove: count_to_remove(self.weight.len(), 0.5).unwrap(),
            stream: Seed::new(0).stream("layer"),
        };
        let mut weight = self.weight.mapv(|w| w as f32);
        let before = weight.clone();
        let mask = pruner(method).unwrap().prune(weight.view_mut(), &self.stats(), &target);
        let mask = mask.unwrap().mask;
        for ((i, w), old) in weight.indexed_iter().zip(&before) {
            let want = if mask.is_kept(i.0, i.1) { *old } else { 0.0 };
            assert_eq!(w.to_bits(), want.to_bits());
        }
        mask
    }

    /// `tr((W − Ŵ) XᵀX (W − Ŵ)ᵀ)`.
    fn error(&self, mask: &Mask) -> f64 {
        let change = Array2::from_shape_fn(self.weight.dim(), |(i, j)| {
            if mask.is_kept(i, j) { 0.0 } else { self.weight[[i, j]] }
        });
        self.inputs.dot(&change.t()).mapv(|v| v * v).sum()
    }
}

/// Rows of `1` for a removed weight.
fn removed_text(mask: &Mask) -> String {
    let row = |r| (0..mask.cols()).map(|c| if mask.is_kept(r, c) { '0' } else { '1' }).collect();
    (0..mask.rows()).map(row).collect::<Vec<String>>().join("/")
}

const TWO_FOUR: Pattern = Pattern::NM { n: 2, m: 4 };

#[test]
fn masks_and_errors_of_the_small_fixture_match_the_reference() {
    let fixture = Fixture::small();
    let unstructured = Pattern::Unstructured;
    for (method, pattern, scope, mask, error) in [
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
    ] {
        let found = fixture.prune(method, pattern, scope);
        assert_eq!(removed_text(&found), mask, "{method} {pattern} by {scope}");
        assert_relative_eq!(fixture.error(&found), error, epsilon = 1e-6);
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
    for (method, pattern, scope, error) in [
        ("magnitude", TWO_FOUR, Scope::PerRow, 1307.770181),
        ("magnitude", Pattern::Unstructured, Scope::PerRow, 721.609572),
        ("magnitude", Pattern::Unstructured, Scope::PerLayer, 533.510861),
        ("wanda", TWO_FOUR, Scope::PerRow, 246.982103),
        ("wanda", Pattern::Unstructured, Scope::PerRow, 170.278320),
        ("wanda", Pattern::Unstructured, Scope::PerLayer, 169.193642),
    ] {
        let mask = fixture.prune(method, pattern, scope);
        assert_eq!(mask.removed(), 256);
        assert_relative_eq!(fixture.error(&mask), error, max_relative = 1e-8);
    }
}

#[test]
fn scores_of_wanda_match_the_reference_up_to_the_scale_of_the_statistics() {
    let fixture = Fixture::small();
    let layer = LayerId::new("layer");
    let target = Target {
        layer: &layer,
        pattern: Pattern::Unstructured,
        scope: Scope::PerRow,
        remove: 16,
        stream: Seed::new(0).stream("layer"),
    };
    let weight = fixture.weight.mapv(|w| w as f32);
    let score = Wanda.prepare(&target, weight.view(), &fixture.stats()).unwrap();
    let mut scores = Array1::zeros(8);
    score(0, &weight.row(0).to_vec(), scores.as_slice_mut().unwrap());
    // The reference divides the sum over 16 tokens by 2 sequences.
    let scale = (16.0f32 / 2.0).sqrt();
    let reference = [0.0, 0.287637, 0.804178, 1.007395, 1.274784, 1.524369, 1.745922, 1.940242];
    for (found, want) in scores.iter().zip(reference) {
        assert_relative_eq!(found * scale, want, epsilon = 1.5e-6);
    }
}
