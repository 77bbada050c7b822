use prune_core::SeedStream;
use prune_train::{Dataset, Error, Result};

/// Windows of token ids that run together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    /// The windows one after the other, each of `time + 1` ids: inputs and, moved by one, targets.
    pub ids: Vec<u32>,
    /// Predictions of a window.
    pub time: usize,
}

impl TokenBatch {
    /// The number of windows.
    pub fn windows(&self) -> usize {
        self.ids.len() / (self.time + 1)
    }

    pub(super) fn inputs(&self) -> Vec<u32> {
        self.ids.chunks(self.time + 1).flat_map(|w| &w[..self.time]).copied().collect()
    }

    pub(super) fn targets(&self) -> Vec<u32> {
        self.ids.chunks(self.time + 1).flat_map(|w| &w[1..]).copied().collect()
    }
}

/// A text as windows of tokens that do not overlap, but for the token that the last of one and the
/// first of the next share.
///
/// ```
/// use prune_candle::TokenWindows;
/// use prune_train::Dataset;
/// let text = TokenWindows::new((0..10).collect(), 4)?;
/// assert_eq!(text.len(), 2);
/// assert_eq!(text.plain(&[1])?.ids, [4, 5, 6, 7, 8]);
/// # Ok::<(), prune_train::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TokenWindows {
    ids: Vec<u32>,
    time: usize,
}

impl TokenWindows {
    /// Windows of `time` predictions.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] for a time of 0 or more than the text has.
    pub fn new(ids: Vec<u32>, time: usize) -> Result<Self> {
        if time == 0 || time >= ids.len() {
            return Err(Error::Core(prune_core::Error::OutOfRange {
                what: "predictions of a window".to_string(),
                found: time.to_string(),
                expected: format!(
                    "1 to {}, one less than the text has tokens",
                    ids.len().max(1) - 1
                ),
            }));
        }
        Ok(Self { ids, time })
    }

    /// The first `count` windows.
    pub fn first(mut self, count: usize) -> Self {
        self.ids.truncate(count.max(1) * self.time + 1);
        self
    }
}

impl Dataset for TokenWindows {
    type Batch = TokenBatch;

    fn len(&self) -> usize {
        (self.ids.len() - 1) / self.time
    }

    fn batch(&self, samples: &[usize], _: &mut SeedStream) -> Result<TokenBatch> {
        self.plain(samples)
    }

    fn plain(&self, samples: &[usize]) -> Result<TokenBatch> {
        let mut ids = Vec::with_capacity(samples.len() * (self.time + 1));
        for sample in samples {
            let window = self.ids.get(sample * self.time..=(sample + 1) * self.time);
            ids.extend_from_slice(window.ok_or_else(|| {
                Error::Core(prune_core::Error::OutOfRange {
                    what: "number of a window".to_string(),
                    found: sample.to_string(),
                    expected: format!("below {}", self.len()),
                })
            })?);
        }
        Ok(TokenBatch { ids, time: self.time })
    }
}
