//! Ratios of a global selection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ndarray::{ArrayD, IxDyn, array};
use proptest::collection::vec;
use proptest::prelude::*;
use prune_allocate::{Saliency, Survivors, survivors};
use prune_core::{Allocator, Budget, Error, LayerId, LayerInfo, ScoredLayer};

fn layers(sizes: &[usize], counts: &[f64]) -> Vec<ScoredLayer> {
    let parts = sizes.iter().zip(counts).enumerate();
    parts
        .map(|(l, (&n, &score))| ScoredLayer {
            info: LayerInfo::linear(format!("fc{l}"), n, 1),
            score,
        })
        .collect()
}

const SNIP: Saliency = Saliency::Snip;

#[test]
fn counts_of_any_shape_and_layout_are_those_of_one_threshold() {
    let conv = ArrayD::from_shape_fn(IxDyn(&[2, 2, 1, 2]), |i| (i[0] * 4 + i[1] * 2 + i[3]) as f32);
    let linear = array![[2.5, 6.5], [9.0, -3.0]];
    let all = [(LayerId::new("conv"), conv.view()), (LayerId::new("fc"), linear.t().into_dyn())];
    assert_eq!(survivors(&all, 4).unwrap(), [2, 2]);
    assert_eq!(survivors(&all, 0).unwrap(), [0, 0]);
    assert_eq!(survivors(&all, 12).unwrap(), [8, 4]);
    assert!(matches!(survivors(&all, 13), Err(Error::OutOfRange { .. })));
    let bad = array![1.0, f32::NAN].into_dyn();
    let e = survivors(&[(LayerId::new("b"), bad.view())], 1).unwrap_err().to_string();
    assert!(e.contains('b') && e.contains("element 1"), "{e}");
}

#[test]
fn counts_that_meet_the_budget_are_kept_and_an_emptied_layer_is_lifted() {
    let budget = Budget::sparsity(0.5).unwrap();
    let run = |counts: &[f64]| -> Vec<usize> {
        let kept = Survivors::new(SNIP).allocate(&layers(&[100, 100, 100], counts), &budget);
        kept.unwrap().iter().map(|(_, k)| *k).collect()
    };
    assert_eq!(run(&[90.0, 45.0, 15.0]), [90, 45, 15]);
    assert_eq!(run(&[90.0, 60.0, 0.0]), [89, 60, 1]);
    assert_eq!(run(&[0.0, 0.0, 0.0]), [50, 50, 50]);
}

#[test]
fn what_is_no_count_is_refused_by_name() {
    let budget = Budget::sparsity(0.5).unwrap();
    for bad in [-1.0, 11.0, f64::NAN] {
        let e = Survivors::new(SNIP).allocate(&layers(&[10, 10], &[1.0, bad]), &budget);
        assert!(e.unwrap_err().to_string().contains("`fc1`"));
    }
}

proptest! {
    #[test]
    fn a_global_threshold_and_its_ratios_agree(
        scores in vec(vec(0.0f32..1.0, 1..40), 1..6), density in 0.05f64..1.0,
    ) {
        let arrays: Vec<ArrayD<f32>> =
            scores.iter().map(|s| ndarray::Array1::from(s.clone()).into_dyn()).collect();
        let views: Vec<_> = arrays
            .iter()
            .enumerate()
            .map(|(l, a)| (LayerId::new(format!("fc{l}")), a.view()))
            .collect();
        let total: usize = scores.iter().map(Vec::len).sum();
        let budget = Budget::sparsity(1.0 - density).unwrap().with_min_keep(0);
        let keep = budget.keep_total(total);
        let counts = survivors(&views, keep).unwrap();
        prop_assert_eq!(counts.iter().sum::<usize>(), keep);
        let sizes: Vec<usize> = scores.iter().map(Vec::len).collect();
        let as_scores: Vec<f64> = counts.iter().map(|&c| c as f64).collect();
        let budget = budget.with_max_layer_sparsity(1.0).unwrap();
        let kept = Survivors::new(SNIP).allocate(&layers(&sizes, &as_scores), &budget).unwrap();
        prop_assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), counts);
    }
}
