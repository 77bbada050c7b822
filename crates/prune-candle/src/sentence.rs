use ndarray::{Array1, Array2, ArrayView2, Axis};
use prune_core::{BlockModel, TensorSource};
use rayon::prelude::*;

use crate::{Error, Result, Tokenizer};

/// How [`SentenceEncoder`] makes one vector of a text. The default is that of all-MiniLM-L6-v2 and
/// most sentence encoders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SentenceOptions {
    /// How the hidden states of the tokens are joined.
    pub pooling: Pooling,
    /// What is done to the joined vector.
    pub scaling: Scaling,
    /// Cuts texts to this many tokens, special ones included; a text longer than the model takes
    /// is an error otherwise. Sentence encoders are trained with a limit (`max_seq_length`) that
    /// is below what the model takes.
    pub max_tokens: Option<usize>,
}

/// How the hidden states of the tokens of a text are joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean, special tokens included.
    #[default]
    Mean,
    /// That of the first token (`[CLS]`).
    First,
}

/// What is done to the vector of a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scaling {
    /// Scaled to length 1, so that the scalar product of two is their cosine.
    #[default]
    Unit,
    /// Left as it is.
    None,
}

/// Turns texts into vectors with an encoder, one block's weights in memory at a time.
///
/// ```no_run
/// use prune_candle::{BertModel, SentenceEncoder, Tokenizer};
/// use prune_checkpoint::Checkpoint;
///
/// let checkpoint = Checkpoint::open("all-MiniLM-L6-v2".as_ref())?;
/// let model = BertModel::new(&checkpoint.config()?, &checkpoint)?;
/// let tokenizer =
///     Tokenizer::from_bytes(&checkpoint.tokenizer_json()?.ok_or("no tokenizer.json")?)?;
/// let encoder = SentenceEncoder::new(&model, &checkpoint, &tokenizer)?;
/// let vectors = encoder.encode(&["A cat sleeps.", "The kitten is asleep.", "Shares fell."])?;
/// let cosine = |a: usize, b: usize| vectors.row(a).dot(&vectors.row(b));
/// assert!(cosine(0, 1) > cosine(0, 2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SentenceEncoder<'a> {
    model: &'a dyn BlockModel,
    weights: &'a dyn TensorSource,
    tokenizer: &'a Tokenizer,
    options: SentenceOptions,
    /// The special tokens before and after a text.
    frame: (Vec<u32>, Vec<u32>),
}

impl<'a> SentenceEncoder<'a> {
    /// An encoder with the default [`SentenceOptions`].
    ///
    /// # Errors
    /// [`Error::TokenizerTooLarge`] when the tokenizer has ids that the model has not;
    /// [`Error::Tokenizer`] when it does not say which special tokens it puts around a text.
    pub fn new(
        model: &'a dyn BlockModel,
        weights: &'a dyn TensorSource,
        tokenizer: &'a Tokenizer,
    ) -> Result<Self> {
        tokenizer.check_fits(model.vocab_size())?;
        let frame = tokenizer.frame()?;
        Ok(Self { model, weights, tokenizer, options: SentenceOptions::default(), frame })
    }

    /// With other options.
    #[must_use]
    pub fn options(mut self, options: SentenceOptions) -> Self {
        self.options = options;
        self
    }

    /// The vectors of `texts`, `(texts, width)`. Each text is run by itself, so its vector does
    /// not depend on the others. Memory holds one block and the hidden states of all tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; [`Error::Core`] when a text has more tokens than the model takes.
    pub fn encode(&self, texts: &[&str]) -> Result<Array2<f32>> {
        let embed = |text: &&str| Ok(self.model.embed(self.weights, &self.tokens(text)?)?);
        let mut hidden: Vec<Array2<f32>> = texts.iter().map(embed).collect::<Result<_>>()?;
        for index in 0..self.model.blocks() {
            let block = self.model.load_block(self.weights, index)?;
            hidden.par_iter_mut().try_for_each(|h| {
                *h = block.forward(h.view())?;
                Ok::<(), Error>(())
            })?;
        }
        let mut vectors = Array2::zeros((texts.len(), self.model.width()));
        for (mut vector, hidden) in vectors.outer_iter_mut().zip(&hidden) {
            vector.assign(&self.join(hidden.view()));
        }
        Ok(vectors)
    }

    /// The token ids of a text, cut and framed.
    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let (before, after) = &self.frame;
        let mut tokens = self.tokenizer.encode(text)?;
        if let Some(most) = self.options.max_tokens {
            tokens.truncate(most.saturating_sub(before.len() + after.len()));
        }
        Ok([before, &tokens[..], after].concat())
    }

    /// One vector of the hidden states of a text.
    fn join(&self, hidden: ArrayView2<'_, f32>) -> Array1<f32> {
        let mut vector = match self.options.pooling {
            Pooling::Mean => {
                // Sums in f64: a text may have hundreds of tokens.
                let sum = hidden.mapv(f64::from).sum_axis(Axis(0));
                sum / hidden.nrows().max(1) as f64
            }
            Pooling::First => hidden
                .outer_iter()
                .next()
                .map_or_else(|| Array1::zeros(hidden.ncols()), |row| row.mapv(f64::from)),
        };
        let length = vector.dot(&vector).sqrt();
        if self.options.scaling == Scaling::Unit && length > 0.0 {
            vector /= length;
        }
        vector.mapv(|x| x as f32)
    }
}
