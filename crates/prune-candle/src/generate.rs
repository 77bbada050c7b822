use prune_core::{Seed, SeedStream};
use prune_quant::kv::KvStore;

use crate::{Decoder, Error, Feed, KvOrder, Result};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Sampling {
    /// The most likely one; of equals the one of the smallest id.
    #[default]
    Greedy,
    /// Drawn from the distribution of `logits / temperature`, cut to the likeliest tokens.
    Random {
        /// Above 0; below 1 the likely tokens gain.
        temperature: f64,
        /// Only the smallest set of tokens that together have this probability; between 0
        /// (exclusive) and 1.
        top_p: f64,
        /// Where the random numbers come from.
        seed: Seed,
    },
}

/// How text is generated.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Generation {
    /// Tokens to generate, at most.
    pub max_tokens: usize,
    /// Tokens that end the text; not returned.
    pub stop: Vec<u32>,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Tokens of the prompt in one pass; all when absent. Smaller passes take less memory and see
    /// the earlier ones through the cache.
    pub prompt_chunk: Option<usize>,
    /// What the tokens of one pass see of one another.
    pub order: KvOrder,
}

impl Decoder {
    /// The tokens that follow `prompt`, a token at a time through `cache`, which may hold earlier
    /// text. The same input gives the same tokens, for any number of threads.
    ///
    /// ```no_run
    /// # use prune_candle::{Decoder, Generation, LlamaModel};
    /// # use prune_checkpoint::Checkpoint;
    /// # use prune_quant::kv::DenseKv;
    /// let checkpoint = Checkpoint::open("SmolLM2-135M-Instruct".as_ref())?;
    /// let model = LlamaModel::new(&checkpoint.config()?, &checkpoint)?;
    /// let decoder = Decoder::load(&model, &checkpoint)?;
    /// let mut cache = DenseKv::new(decoder.kv_shape())?;
    /// let options = Generation { max_tokens: 20, ..Generation::default() };
    /// let tokens = decoder.generate(&[1, 2, 3], &mut cache, &options)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Decoder::forward`]; [`Error::Core`] with `OutOfRange` for an empty prompt, a chunk of
    /// 0, a temperature or `top_p` outside its range.
    pub fn generate(
        &self,
        prompt: &[u32],
        cache: &mut dyn KvStore,
        options: &Generation,
    ) -> Result<Vec<u32>> {
        let mut choice = Choice::new(options.sampling)?;
        if options.prompt_chunk == Some(0) || prompt.is_empty() {
            return Err(out_of_range("prompt, and tokens in a pass of it", 0, "at least 1"));
        }
        let mut out = Vec::new();
        if options.max_tokens == 0 {
            return Ok(out);
        }
        let mut logits = Vec::new();
        for tokens in prompt.chunks(options.prompt_chunk.unwrap_or(prompt.len())) {
            logits = self.next(tokens, cache, options.order)?;
        }
        loop {
            let token = choice.of(&logits);
            if options.stop.contains(&token) {
                return Ok(out);
            }
            out.push(token);
            if out.len() == options.max_tokens {
                return Ok(out);
            }
            logits = self.next(&[token], cache, options.order)?;
        }
    }

    /// The logits after `tokens`.
    fn next(&self, tokens: &[u32], cache: &mut dyn KvStore, order: KvOrder) -> Result<Vec<f32>> {
        let hidden = self.forward(&mut [Feed { tokens, cache }], order)?;
        let last = ndarray::s![tokens.len() - 1.., ..];
        Ok(self.logits(hidden[0].slice(last))?.into_raw_vec_and_offset().0)
    }
}

fn out_of_range(what: &str, found: impl ToString, expected: &str) -> Error {
    Error::Core(prune_core::Error::OutOfRange {
        what: what.into(),
        found: found.to_string(),
        expected: expected.into(),
    })
}

enum Choice {
    Greedy,
    Random { temperature: f64, top_p: f64, stream: SeedStream },
}

impl Choice {
    fn new(sampling: Sampling) -> Result<Self> {
        let Sampling::Random { temperature, top_p, seed } = sampling else {
            return Ok(Choice::Greedy);
        };
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(out_of_range("temperature", temperature, "finite and above 0"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(out_of_range("top_p", top_p, "above 0 and at most 1"));
        }
        Ok(Choice::Random { temperature, top_p, stream: seed.stream("generate") })
    }

    fn of(&mut self, logits: &[f32]) -> u32 {
        match self {
            Choice::Greedy => argmax(logits),
            Choice::Random { temperature, top_p, stream } => {
                sample(logits, *temperature, *top_p, stream.uniform())
            }
        }
    }
}

/// The index of the largest; the first of equals.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// The token where the cumulated probability of the likeliest tokens reaches `uniform` of `top_p`.
fn sample(logits: &[f32], temperature: f64, top_p: f64, uniform: f64) -> u32 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let mut weights: Vec<(u32, f64)> = (0..)
        .zip(logits)
        .map(|(id, x)| (id, ((f64::from(*x) - max) / temperature).exp()))
        .collect();
    weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let total: f64 = weights.iter().map(|w| w.1).sum();
    let mut kept = 0.0;
    let count = weights.iter().take_while(|w| {
        let wanted = kept < top_p * total;
        kept += w.1;
        wanted
    });
    let count = count.count().max(1);
    let kept: f64 = weights[..count].iter().map(|w| w.1).sum();
    let mut left = uniform * kept;
    for (id, weight) in &weights[..count] {
        if left < *weight {
            return *id;
        }
        left -= weight;
    }
    weights[count - 1].0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_follows_the_distribution_and_the_cut() {
        // Probabilities 0.5, 0.3, 0.2.
        let logits: Vec<f32> = [0.3f32, 0.5, 0.2].map(f32::ln).into();
        let draw = |top_p, u| sample(&logits, 1.0, top_p, u);
        assert_eq!((draw(1.0, 0.0), draw(1.0, 0.49), draw(1.0, 0.51)), (1, 1, 0));
        assert_eq!((draw(1.0, 0.79), draw(1.0, 0.81), draw(1.0, 0.999)), (0, 2, 2));
        // A cut at 0.4 leaves the likeliest alone, one at 0.6 two.
        assert_eq!((draw(0.4, 0.99), draw(0.6, 0.99)), (1, 0));
        // A low temperature is greedy.
        assert_eq!(sample(&logits, 0.01, 1.0, 0.999), 1);
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
    }
}
