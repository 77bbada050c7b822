/// What one layer gets as a function of the common level `x`:
/// `clamp(at_zero + x · slope, least, most)`, with `slope >= 0` and `least <= most`.
pub(crate) struct Line {
    pub(crate) at_zero: f64,
    pub(crate) slope: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Line {
    fn at(&self, x: f64) -> f64 {
        (self.at_zero + x * self.slope).clamp(self.least, self.most)
    }
}

/// What every line gives at the level where they sum to `total`.
///
/// This is the saturation loop of ERK ("fix the layers that are full, solve for the others,
/// repeat") and of every allocator with bounds, in one sweep over the sorted levels at which lines
/// leave their `least` or reach their `most`: O(L log L). A total outside of what the lines can
/// sum to gives the nearest that they can.
pub(crate) fn fill(lines: &[Line], total: f64) -> Vec<f64> {
    // (level, line, whether it saturates there)
    let mut events: Vec<(f64, usize, bool)> = Vec::with_capacity(2 * lines.len());
    let mut sum = 0.0;
    for (l, line) in lines.iter().enumerate() {
        if line.slope > 0.0 {
            sum += line.least;
            events.push(((line.least - line.at_zero) / line.slope, l, false));
            events.push(((line.most - line.at_zero) / line.slope, l, true));
        } else {
            sum += line.at(0.0);
        }
    }
    // Stable: a line of no range leaves before it saturates.
    events.sort_by(|a, b| a.0.total_cmp(&b.0));
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        Least,
        Free,
        Most,
    }
    let mut state = vec![State::Least; lines.len()];
    let (mut level, mut slope) = (events.first().map_or(0.0, |e| e.0), 0.0);
    for &(x, l, saturates) in &events {
        sum += slope * (x - level);
        if sum >= total {
            break;
        }
        level = x;
        state[l] = if saturates { State::Most } else { State::Free };
        slope += if saturates { -lines[l].slope } else { lines[l].slope };
    }
    // The running sums only found the interval; within it the level is solved afresh, so that it
    // does not carry their rounding.
    let (mut fixed, mut slope) = (0.0, 0.0);
    for (line, state) in lines.iter().zip(&state) {
        match state {
            _ if line.slope <= 0.0 => fixed += line.at(0.0),
            State::Least => fixed += line.least,
            State::Most => fixed += line.most,
            State::Free => {
                fixed += line.at_zero;
                slope += line.slope;
            }
        }
    }
    let level = if slope > 0.0 { (total - fixed) / slope } else { 0.0 };
    lines
        .iter()
        .zip(&state)
        .map(|(line, state)| match state {
            State::Least if line.slope > 0.0 => line.least,
            State::Most => line.most,
            _ => line.at(level),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(at_zero: f64, slope: f64, least: f64, most: f64) -> Line {
        Line { at_zero, slope, least, most }
    }

    #[test]
    fn full_lines_leave_the_rest_to_the_others() {
        let lines = [line(0.0, 3.0, 0.0, 2.0), line(0.0, 1.0, 0.0, 9.0)];
        assert_eq!(fill(&lines, 6.0), [2.0, 4.0]);
        assert_eq!(fill(&lines, 2.0), [1.5, 0.5]);
    }

    #[test]
    fn totals_out_of_reach_give_the_bounds() {
        let lines = [line(0.0, 3.0, 1.0, 2.0), line(0.5, 0.0, 0.0, 9.0)];
        assert_eq!(fill(&lines, 0.0), [1.0, 0.5]);
        assert_eq!(fill(&lines, 100.0), [2.0, 0.5]);
        assert!(fill(&[], 1.0).is_empty());
    }

    proptest! {
        #[test]
        fn the_sum_is_met_within_the_bounds(
            parts in proptest::collection::vec(
                (-1.0f64..1.0, 0.01f64..9.0, 0.0f64..3.0, 0.0f64..3.0), 1..12),
            at in 0.0f64..=1.0,
        ) {
            let lines: Vec<Line> =
                parts.iter().map(|&(a, b, lo, width)| line(a, b, lo, lo + width)).collect();
            let least: f64 = lines.iter().map(|l| l.least).sum();
            let most: f64 = lines.iter().map(|l| l.most).sum();
            let total = least + at * (most - least);
            let got = fill(&lines, total);
            prop_assert!((got.iter().sum::<f64>() - total).abs() < 1e-9);
            // One level explains every line that is within its bounds.
            let levels: Vec<f64> = got
                .iter()
                .zip(&lines)
                .filter(|(g, l)| **g > l.least + 1e-9 && **g < l.most - 1e-9)
                .map(|(g, l)| (g - l.at_zero) / l.slope)
                .collect();
            prop_assert!(levels.windows(2).all(|w| (w[0] - w[1]).abs() < 1e-6));
            for ((g, l), x) in got.iter().zip(&lines).zip(levels.iter().cycle()) {
                prop_assert!((l.at(*x) - g).abs() < 1e-5);
            }
        }
    }
}
