use prune_core::{Seed, SeedStream};

use crate::{Error, Model, Result, Tally};

/// Samples that can be had in batches.
pub trait Dataset {
    /// What [`Model::gradients`] takes.
    type Batch;

    /// The number of samples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples of these numbers, each below [`Dataset::len`], for training: what is random
    /// about it (crops, flips) comes from `stream`.
    ///
    /// # Errors
    /// What reading reports.
    fn batch(&self, samples: &[usize], stream: &mut SeedStream) -> Result<Self::Batch>;

    /// The samples of these numbers as they are, for evaluation.
    ///
    /// # Errors
    /// What reading reports.
    fn plain(&self, samples: &[usize]) -> Result<Self::Batch>;
}

/// The order in which training sees samples: a new permutation every epoch; a last batch that is
/// not full is left out.
///
/// A batch depends on the seed and its number alone, so that training can stop and go on anywhere.
///
/// ```
/// use prune_core::Seed;
/// use prune_train::Order;
/// let mut order = Order::new(10, 4, Seed::new(1))?;
/// assert_eq!(order.batches(), 2);
/// let (first, third) = (order.batch(0).to_vec(), order.batch(2).to_vec());
/// assert_ne!(first, third);
/// assert_eq!(order.batch(0), first);
/// # Ok::<(), prune_train::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Order {
    samples: Vec<usize>,
    epoch: Option<usize>,
    batch: usize,
    seed: Seed,
}

impl Order {
    /// The order of `samples` samples in batches of `batch`.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] for a batch of 0 or of more than there are.
    pub fn new(samples: usize, batch: usize, seed: Seed) -> Result<Self> {
        if batch == 0 || batch > samples {
            let expected = format!("1 to {samples}, the number of samples");
            return Err(Error::out_of_range("samples of a batch", batch, expected));
        }
        Ok(Self { samples: (0..samples).collect(), epoch: None, batch, seed })
    }

    /// Batches of an epoch.
    pub fn batches(&self) -> usize {
        self.samples.len() / self.batch
    }

    /// The samples of batch `number`, counted from the start of training.
    pub fn batch(&mut self, number: usize) -> &[usize] {
        let (epoch, at) = (number / self.batches(), number % self.batches());
        if self.epoch != Some(epoch) {
            let mut stream = self.seed.stream(&format!("order of epoch {epoch}"));
            self.samples = (0..self.samples.len()).collect();
            for i in (1..self.samples.len()).rev() {
                self.samples.swap(i, stream.below(i as u64 + 1) as usize);
            }
            self.epoch = Some(epoch);
        }
        &self.samples[at * self.batch..(at + 1) * self.batch]
    }
}

/// The loss and accuracy of a model on all samples, in evaluation mode.
///
/// # Errors
/// What the model and the data report.
pub fn evaluate<M: Model, D: Dataset<Batch = M::Batch>>(
    model: &M,
    data: &D,
    batch: usize,
) -> Result<Tally> {
    let all: Vec<usize> = (0..data.len()).collect();
    all.chunks(batch.max(1)).map(|samples| model.evaluate(&data.plain(samples)?)).sum()
}
