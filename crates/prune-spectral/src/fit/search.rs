use std::ops::Range;

use super::tail::{Scratch, Tail};

/// The best start of a tail.
#[derive(Debug, Clone, Copy)]
pub(super) struct Best {
    pub(super) start: usize,
    pub(super) alpha: f64,
    pub(super) distance: f64,
}

/// How many candidates the first, coarsest pass looks at.
const COARSE: usize = 64;

/// The candidate with the least D, the first of them on ties; `None` when none has a finite α.
///
/// Candidates are visited from coarse to fine strides, so that a good D is known early and almost
/// all others are refused by a look at one or two eigenvalues. In the order of the spectrum, every
/// start on the way down to the minimum would be the best so far, and its D would be computed in
/// full.
pub(super) fn search(
    tail: &Tail<'_>,
    candidates: Range<usize>,
    alpha: impl Fn(usize) -> Option<f64>,
) -> Option<Best> {
    let mut best: Option<Best> = None;
    let mut scratch = Scratch::default();
    let mut visit = |start: usize| {
        let Some(alpha) = alpha(start) else { return };
        let refuse =
            |d: f64| best.is_some_and(|b| d > b.distance || (d == b.distance && start > b.start));
        if let Some(distance) = tail.distance_below(start, alpha, refuse, &mut scratch) {
            best = Some(Best { start, alpha, distance });
        }
    };
    let mut stride = (candidates.len() / COARSE).max(1).next_power_of_two();
    candidates.clone().step_by(stride).for_each(&mut visit);
    while stride > 1 {
        stride /= 2;
        // The candidates halfway between those that are done.
        (candidates.start + stride..candidates.end).step_by(2 * stride).for_each(&mut visit);
    }
    best
}
