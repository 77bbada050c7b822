use ndarray::ArrayView1;

/// What a row of logits says of the next token: the softmax distribution over the vocabulary.
///
/// The normaliser is summed in f64. Logits must be finite, and there must be at least one.
///
/// ```
/// use ndarray::array;
/// use prune_core::NextToken;
///
/// let (dense, pruned) = (array![2.0f32, 0.0, -1.0], array![1.0f32, 0.5, -1.0]);
/// let (dense, pruned) = (NextToken::new(dense.view()), NextToken::new(pruned.view()));
/// assert!(pruned.loss(0) > dense.loss(0));
/// assert!(pruned.divergence_from(&dense) > 0.0);
/// assert_eq!(dense.divergence_from(&dense), 0.0);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct NextToken<'a> {
    logits: ArrayView1<'a, f32>,
    log_sum: f64,
}

impl<'a> NextToken<'a> {
    /// The distribution that these logits stand for.
    pub fn new(logits: ArrayView1<'a, f32>) -> Self {
        let max = logits.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
        Self { logits, log_sum: f64::from(max) + sum.ln() }
    }

    /// The negative log-likelihood of a token, in nats.
    ///
    /// # Panics
    /// For a token outside the vocabulary.
    pub fn loss(&self, token: u32) -> f64 {
        self.log_sum - f64::from(self.logits[token as usize])
    }

    /// The Kullback-Leibler divergence of this distribution from `reference`, `Σ p (ln p − ln q)`
    /// with `p` the reference, in nats.
    ///
    /// # Panics
    /// In debug builds, when the vocabularies differ.
    pub fn divergence_from(&self, reference: &NextToken<'_>) -> f64 {
        debug_assert_eq!(self.logits.len(), reference.logits.len());
        reference
            .logits
            .iter()
            .zip(self.logits)
            .map(|(p, q)| {
                let log_p = f64::from(*p) - reference.log_sum;
                f64::from((log_p as f32).exp()) * (log_p - (f64::from(*q) - self.log_sum))
            })
            .sum()
    }
}
