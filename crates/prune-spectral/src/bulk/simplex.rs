/// The minimum near `start` by the simplex search of Nelder and Mead in one dimension, with the
/// steps and tolerances of SciPy's `fmin`.
///
/// The residual of a bulk fit jumps where an edge of the law leaves the data, so that the minimum
/// that is found depends on the path: the path is SciPy's.
pub(super) fn minimise(f: impl Fn(f64) -> f64, start: f64) -> f64 {
    const TOLERANCE: f64 = 1e-4;
    const STEPS: usize = 200;
    let second = if start == 0.0 { 0.000_25 } else { 1.05 * start };
    let (mut best, mut worst) = ((start, f(start)), (second, f(second)));
    let mut calls = 2;
    let mut step = 1;
    loop {
        if worst.1 < best.1 {
            std::mem::swap(&mut best, &mut worst);
        }
        let close = (worst.0 - best.0).abs() <= TOLERANCE && (worst.1 - best.1).abs() <= TOLERANCE;
        if close || calls >= STEPS || step >= STEPS {
            return best.0;
        }
        let mut at = |x: f64| {
            calls += 1;
            (x, f(x))
        };
        let reflected = at(2.0 * best.0 - worst.0);
        worst = if reflected.1 < best.1 {
            let expanded = at(3.0 * best.0 - 2.0 * worst.0);
            if expanded.1 < reflected.1 { expanded } else { reflected }
        } else {
            // With two points, a reflection that is no better than the best is a failure.
            let (contracted, needed) = if reflected.1 < worst.1 {
                (at(1.5 * best.0 - 0.5 * worst.0), reflected.1.next_up())
            } else {
                (at(0.5 * best.0 + 0.5 * worst.0), worst.1)
            };
            if contracted.1 < needed { contracted } else { at(best.0 + 0.5 * (worst.0 - best.0)) }
        };
        step += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::minimise;

    #[test]
    fn agrees_with_scipy() {
        // scipy.optimize.fmin, SciPy 1.17, default options.
        let found = minimise(|x| (x - 1.234).powi(2), 1.0);
        assert!((found - 1.234).abs() < 1e-4);
        let found = minimise(|x| if x > 0.7 { 1e6 } else { (x - 1.0).powi(2) }, 0.65);
        assert!((0.699..=0.7).contains(&found));
    }
}
