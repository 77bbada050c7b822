use std::ops::Range;

/// The order in which a GGUF file of architecture `llama` stores the rows of its query and key
/// projections.
///
/// Hugging Face keeps the two halves of each rotary pair half a head apart; llama.cpp keeps them
/// next to one another. Row `2 j + s` of a stored head is row `s head_rows / 2 + j` of the same
/// head in Hugging Face order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeadOrder {
    head_rows: usize,
}

impl HeadOrder {
    /// The order for `rows` rows in `heads` heads; `None` where they do not divide evenly.
    pub(super) fn new(rows: usize, heads: usize) -> Option<Self> {
        let head_rows = rows.checked_div(heads)?;
        (head_rows > 0 && head_rows.is_multiple_of(2) && rows.is_multiple_of(heads))
            .then_some(HeadOrder { head_rows })
    }

    pub(super) fn head_rows(self) -> usize {
        self.head_rows
    }

    /// The stored row that holds row `row` of the delivered matrix.
    pub(super) fn stored_row(self, row: usize) -> usize {
        let (head, row) = (row / self.head_rows, row % self.head_rows);
        let half = self.head_rows / 2;
        head * self.head_rows + 2 * (row % half) + row / half
    }

    /// Calls `visit` with the stored offset of each piece of a row in the `len` bytes from `offset`
    /// on, and its place among them; rows have `row_bytes` bytes.
    pub(super) fn pieces<E>(
        self,
        offset: usize,
        len: usize,
        row_bytes: usize,
        mut visit: impl FnMut(usize, Range<usize>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = 0;
        while at < len && row_bytes > 0 {
            let (row, skip) = ((offset + at) / row_bytes, (offset + at) % row_bytes);
            let take = (row_bytes - skip).min(len - at);
            visit(self.stored_row(row) * row_bytes + skip, at..at + take)?;
            at += take;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::HeadOrder;

    #[test]
    fn pairs_are_pulled_apart_to_the_halves_of_their_head() {
        // Twelve rows in two heads: `arange(12).reshape(2, 3, 2).swapaxes(1, 2).ravel()`.
        let order = HeadOrder::new(12, 2).unwrap();
        let rows: Vec<_> = (0..12).map(|r| order.stored_row(r)).collect();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    #[test]
    fn rows_that_do_not_fit_the_heads_are_refused() {
        assert!(HeadOrder::new(12, 0).is_none());
        assert!(HeadOrder::new(12, 5).is_none());
        assert!(HeadOrder::new(6, 2).is_none());
        assert!(HeadOrder::new(0, 2).is_none());
    }
}
