/// The column assigned to each row such that the sum of `value(row, column)` is largest, for a
/// square matrix of `n` rows.
///
/// Shortest augmenting paths with potentials (Jonker and Volgenant 1987); O(n³) time, O(n) memory
/// besides the values. Ties go to the lower column.
pub(super) fn maximise(n: usize, value: impl Fn(usize, usize) -> f64) -> Vec<usize> {
    // Index 0 is a dummy column; rows and columns count from 1.
    let mut row_potential = vec![0.0; n + 1];
    let mut column_potential = vec![0.0; n + 1];
    let mut row_of = vec![0usize; n + 1];
    for row in 1..=n {
        row_of[0] = row;
        let mut column = 0;
        let mut distance = vec![f64::INFINITY; n + 1];
        let mut previous = vec![0usize; n + 1];
        let mut done = vec![false; n + 1];
        while row_of[column] != 0 {
            done[column] = true;
            let from = row_of[column];
            let (mut nearest, mut step) = (0, f64::INFINITY);
            for c in (1..=n).filter(|&c| !done[c]) {
                let cost = -value(from - 1, c - 1) - row_potential[from] - column_potential[c];
                if cost < distance[c] {
                    distance[c] = cost;
                    previous[c] = column;
                }
                if distance[c] < step {
                    step = distance[c];
                    nearest = c;
                }
            }
            for c in 0..=n {
                if done[c] {
                    row_potential[row_of[c]] += step;
                    column_potential[c] -= step;
                } else {
                    distance[c] -= step;
                }
            }
            column = nearest;
        }
        while column != 0 {
            row_of[column] = row_of[previous[column]];
            column = previous[column];
        }
    }
    let mut assigned = vec![0; n];
    for (column, row) in row_of.into_iter().enumerate().skip(1) {
        assigned[row - 1] = column - 1;
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn best_by_trying(values: &[Vec<f64>], row: usize, used: &mut Vec<bool>) -> f64 {
        if row == values.len() {
            return 0.0;
        }
        let mut best = f64::NEG_INFINITY;
        for c in 0..values.len() {
            if !used[c] {
                used[c] = true;
                best = best.max(values[row][c] + best_by_trying(values, row + 1, used));
                used[c] = false;
            }
        }
        best
    }

    proptest! {
        #[test]
        fn no_other_assignment_is_better(
            n in 0usize..7, entries in proptest::collection::vec(-5i32..20, 36),
        ) {
            let values: Vec<Vec<f64>> =
                (0..n).map(|i| (0..n).map(|j| f64::from(entries[i * 6 + j])).collect()).collect();
            let assigned = maximise(n, |i, j| values[i][j]);
            let mut columns = assigned.clone();
            columns.sort_unstable();
            prop_assert_eq!(columns, (0..n).collect::<Vec<_>>());
            let found: f64 = assigned.iter().enumerate().map(|(i, &j)| values[i][j]).sum();
            prop_assert_eq!(found, best_by_trying(&values, 0, &mut vec![false; n]));
        }
    }
}
