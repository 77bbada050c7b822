use ndarray::ArrayView1;

/// The order in which columns are pruned.
///
/// Later columns make up for what earlier ones lose, so that the first have the most freedom left
/// and the last none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ColumnOrder {
    /// As they stand: what the authors do.
    #[default]
    Stored,
    /// Loud input channels first. N:M groups and blocks keep their columns together and go by the
    /// sum of theirs.
    LoudestFirst,
}

impl ColumnOrder {
    /// Column indices in this order; runs of `group` columns stay together.
    pub(super) fn of(self, diagonal: ArrayView1<'_, f64>, group: usize) -> Vec<usize> {
        let columns: Vec<usize> = (0..diagonal.len()).collect();
        match self {
            ColumnOrder::Stored => columns,
            ColumnOrder::LoudestFirst => {
                let mut groups: Vec<(f64, &[usize])> = columns
                    .chunks(group)
                    .map(|g| (g.iter().map(|&c| diagonal[c]).sum(), g))
                    .collect();
                groups.sort_by(|a, b| b.0.total_cmp(&a.0));
                groups.into_iter().flat_map(|(_, g)| g).copied().collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn groups_stay_together() {
        let diagonal = array![1.0, 2.0, 9.0, 0.0, 3.0, 3.0];
        assert_eq!(ColumnOrder::LoudestFirst.of(diagonal.view(), 1), [2, 4, 5, 1, 0, 3]);
        assert_eq!(ColumnOrder::LoudestFirst.of(diagonal.view(), 2), [2, 3, 4, 5, 0, 1]);
        assert_eq!(ColumnOrder::Stored.of(diagonal.view(), 2), [0, 1, 2, 3, 4, 5]);
    }
}
