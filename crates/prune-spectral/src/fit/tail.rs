use crate::{Hill, KsSteps};

/// The ascending eigenvalues of a fit, with what every candidate start needs of them.
pub(super) struct Tail<'a> {
    pub(super) values: &'a [f64],
    /// ln(λ / λ_max): relative, so that scaling the spectrum changes no bit of the sums' size.
    pub(super) ln: Vec<f64>,
    /// `suffix[i]` is the sum of `ln[i..]`.
    suffix: Vec<f64>,
    hill: Hill,
    steps: KsSteps,
}

/// A stretch of the tail whose ends are known: indices within the tail and the law there.
struct Stretch {
    from: usize,
    to: usize,
    law_from: f64,
    law_to: f64,
}

/// Memory that outlives one candidate.
#[derive(Default)]
pub(super) struct Scratch {
    stack: Vec<Stretch>,
    /// The eigenvalue at which the last candidate failed; the next often fails there too.
    witness: usize,
}

impl<'a> Tail<'a> {
    pub(super) fn new(values: &'a [f64], hill: Hill, steps: KsSteps) -> Self {
        let top = values.last().copied().unwrap_or(1.0).ln();
        let ln: Vec<f64> = values.iter().map(|v| v.ln() - top).collect();
        let mut suffix = vec![0.0; ln.len() + 1];
        for i in (0..ln.len()).rev() {
            suffix[i] = suffix[i + 1] + ln[i];
        }
        Self { values, ln, suffix, hill, steps }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Index of the eigenvalue that is the threshold of the tail from `start`, if there is one.
    fn threshold_index(&self, start: usize) -> Option<usize> {
        match self.hill {
            Hill::Released => Some(start),
            Hill::Textbook => start.checked_sub(1),
        }
    }

    /// The threshold of the tail from `start`.
    pub(super) fn threshold(&self, start: usize) -> f64 {
        self.values[self.threshold_index(start).unwrap_or(start)]
    }

    /// Σ ln(λ_j / threshold) over the tail; `None` when it is not a number above 0.
    pub(super) fn log_sum(&self, start: usize) -> Option<f64> {
        let n = (self.len() - start) as f64;
        let sum = self.suffix[start] - n * self.ln[self.threshold_index(start)?];
        (sum.is_finite() && sum > 0.0).then_some(sum)
    }

    /// α of the tail from `start`; `None` where it is not finite.
    pub(super) fn alpha(&self, start: usize) -> Option<f64> {
        let n = (self.len() - start) as f64;
        let alpha = 1.0 + n / self.log_sum(start)?;
        (alpha.is_finite() && alpha > 1.0).then_some(alpha)
    }

    /// D of the tail from `start` for this exponent.
    pub(super) fn distance(&self, start: usize, alpha: f64) -> f64 {
        self.distance_below(start, alpha, |_| false, &mut Scratch::default()).unwrap_or(1.0)
    }

    /// D, or `None` as soon as some eigenvalue alone is at a distance that `refuse` refuses.
    ///
    /// The law and the empirical distribution both grow along the tail, so between two known
    /// points their distance is at most what the opposite ends give. Stretches that cannot hold
    /// the maximum are never looked into: a candidate costs a few evaluations, seldom hundreds.
    pub(super) fn distance_below(
        &self,
        start: usize,
        alpha: f64,
        refuse: impl Fn(f64) -> bool,
        scratch: &mut Scratch,
    ) -> Option<f64> {
        let tail = &self.ln[start..];
        let ln_threshold = self.ln[self.threshold_index(start)?];
        let (n, last) = (tail.len() as f64, tail.len() - 1);
        let step = match self.steps {
            KsSteps::Below => 0.0,
            KsSteps::Both => 1.0,
        };
        let law = |t: usize| 1.0 - ((1.0 - alpha) * (tail[t] - ln_threshold)).exp();
        let distance = |t: usize, law: f64| {
            let below = t as f64 / n;
            (law - below).abs().max((law - (t as f64 + step) / n).abs())
        };
        if scratch.witness > start {
            let t = scratch.witness - start;
            if refuse(distance(t, law(t))) {
                return None;
            }
        }
        let (law_from, law_to) = (law(0), law(last));
        let mut largest = 0.0;
        for (t, law) in [(0, law_from), (last, law_to)] {
            let d = distance(t, law);
            if refuse(d) {
                scratch.witness = start + t;
                return None;
            }
            largest = f64::max(largest, d);
        }
        let bound = |s: &Stretch| {
            let above = s.law_to - (s.from + 1) as f64 / n;
            let below = (s.to as f64 - 1.0 + step) / n - s.law_from;
            above.max(below)
        };
        scratch.stack.clear();
        scratch.stack.push(Stretch { from: 0, to: last, law_from, law_to });
        while let Some(s) = scratch.stack.pop() {
            if s.to - s.from < 2 || bound(&s) <= largest {
                continue;
            }
            let middle = s.from + (s.to - s.from) / 2;
            let law_middle = law(middle);
            let d = distance(middle, law_middle);
            if refuse(d) {
                scratch.witness = start + middle;
                return None;
            }
            if d > largest {
                largest = d;
            }
            let left = Stretch { to: middle, law_to: law_middle, ..s };
            let right = Stretch { from: middle, law_from: law_middle, ..s };
            // The more promising half on top.
            if bound(&left) > bound(&right) {
                scratch.stack.push(right);
                scratch.stack.push(left);
            } else {
                scratch.stack.push(left);
                scratch.stack.push(right);
            }
        }
        Some(largest)
    }
}
