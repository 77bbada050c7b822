use ndarray::{Array2, s};
use prune_core::{Seed, SeedStream};
use prune_quant::kv::{DenseKv, KvStore};
use rayon::prelude::*;
use serde::Serialize;

use crate::kv_text::{BATCH, predictions, run_prompt, views};
use crate::{Decoder, Error, Feed, KvKind, KvOrder, Result, Tokenizer};

/// The shape of a [`RecallTask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecallOptions {
    /// Prompts, each with pairs of its own.
    pub prompts: usize,
    /// Pairs in a prompt, at most 256.
    pub pairs: usize,
    /// Questions about each prompt, at most `pairs`, spread over its length.
    pub questions: usize,
    /// What is recalled.
    pub answers: RecallAnswers,
    /// Where names and values come from.
    pub seed: Seed,
}

impl Default for RecallOptions {
    /// 8 prompts of 24 pairs with 8 questions each, whose answers are words: 64 questions.
    fn default() -> Self {
        Self {
            prompts: 8,
            pairs: 24,
            questions: 8,
            answers: RecallAnswers::Words,
            seed: Seed::default(),
        }
    }
}

/// What a [`RecallTask`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecallAnswers {
    /// One of 32 common nouns, mostly a token each. Models of 100 million parameters recall some.
    Words,
    /// A number of so many digits, 1 to 12: harder, for models that read digits one by one.
    Digits(usize),
}

impl RecallAnswers {
    fn draw(self, stream: &mut SeedStream) -> String {
        match self {
            Self::Words => WORDS[stream.below(WORDS.len() as u64) as usize].to_string(),
            Self::Digits(count) => (0..count).map(|_| digit(stream)).collect(),
        }
    }
}

/// A synthetic long-range recall task: pairs of a name and a word or number in a prompt, one of
/// which is asked for at the end.
///
/// ```text
/// The code of the red fox is winter.
/// The code of the old lamp is bottle.
/// ...
/// The code of the red fox is
/// ```
///
/// The answer stands once, as far back as the pair is, and no other part of the text helps: what is
/// measured is whether attention finds it through the cache. An answer is right when every token of
/// it is the likeliest, which is when greedy generation gives it word for word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecallTask {
    prompts: Vec<Prompt>,
}

/// The token ids of a question and of its answer.
type Asked = (Vec<u32>, Vec<u32>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Prompt {
    context: Vec<u32>,
    /// Question and answer.
    asked: Vec<Asked>,
}

const ADJECTIVES: [&str; 16] = [
    "red", "old", "small", "dark", "green", "cold", "blue", "young", "white", "warm", "black",
    "tall", "quiet", "bright", "long", "new",
];
const NOUNS: [&str; 16] = [
    "fox", "lamp", "house", "river", "table", "horse", "garden", "letter", "door", "tree", "ship",
    "road", "book", "chair", "stone", "bird",
];

const WORDS: [&str; 32] = [
    "apple", "music", "winter", "silver", "doctor", "castle", "yellow", "summer", "window",
    "dinner", "forest", "ocean", "market", "pepper", "iron", "cotton", "rocket", "tiger", "bottle",
    "candle", "bridge", "mirror", "coffee", "button", "island", "engine", "guitar", "pillow",
    "basket", "carpet", "thunder", "lemon",
];

impl RecallTask {
    /// The task in the tokens of a model.
    ///
    /// # Errors
    /// [`Error::Core`] with `OutOfRange` for options outside their range; [`Error::Tokenizer`].
    pub fn new(tokenizer: &Tokenizer, options: &RecallOptions) -> Result<Self> {
        let RecallOptions { prompts, pairs, questions, answers, seed } = *options;
        let digits = match answers {
            RecallAnswers::Words => 1,
            RecallAnswers::Digits(count) => count,
        };
        let names = ADJECTIVES.len() * NOUNS.len();
        for (what, value, most) in [
            ("prompts of a recall task", prompts, usize::MAX),
            ("pairs of a recall prompt", pairs, names),
            ("questions about a recall prompt", questions, pairs),
            ("digits of a recalled value", digits, 12),
        ] {
            if value == 0 || value > most {
                return Err(Error::Core(prune_core::Error::OutOfRange {
                    what: what.into(),
                    found: value.to_string(),
                    expected: format!("between 1 and {most}"),
                }));
            }
        }
        let mut stream = seed.stream("recall");
        let prompts = (0..prompts).map(|_| {
            let named = shuffled(names, &mut stream).into_iter().take(pairs);
            let mut context = Vec::new();
            let mut lines = Vec::with_capacity(pairs);
            for name in named {
                let (adjective, noun) = (ADJECTIVES[name / 16], NOUNS[name % 16]);
                let question = format!("The code of the {adjective} {noun} is");
                let value = answers.draw(&mut stream);
                // Encoded in parts, so that the answer has the same tokens everywhere.
                let question = tokenizer.encode(&question)?;
                let answer = tokenizer.encode(&format!(" {value}"))?;
                if question.is_empty() || answer.is_empty() {
                    let reason = format!("no tokens for `{value}` or for the question after it");
                    return Err(Error::Tokenizer(reason));
                }
                context.extend(&question);
                context.extend(&answer);
                context.extend(tokenizer.encode(".\n")?);
                lines.push((question, answer));
            }
            let step = pairs as f64 / questions as f64;
            let asked = (0..questions).map(|i| lines[(i as f64 * step) as usize].clone());
            Ok(Prompt { context, asked: asked.collect() })
        });
        Ok(Self { prompts: prompts.collect::<Result<_>>()? })
    }

    /// Questions in all.
    pub fn questions(&self) -> usize {
        self.prompts.iter().map(|p| p.asked.len()).sum()
    }

    /// The questions, each with the index of its prompt.
    fn asked(&self) -> Vec<(usize, &Asked)> {
        let prompts = self.prompts.iter().enumerate();
        prompts.flat_map(|(prompt, p)| p.asked.iter().map(move |a| (prompt, a))).collect()
    }

    /// Tokens of the longest prompt.
    pub fn longest(&self) -> usize {
        self.prompts.iter().map(|p| p.context.len()).max().unwrap_or(0)
    }

    /// The task with its prompts run once, in full precision.
    ///
    /// # Errors
    /// Those of [`Decoder::forward`].
    pub fn prepare<'a>(&'a self, decoder: &'a Decoder) -> Result<RecallBench<'a>> {
        let prompts = self.prompts.iter().map(|p| run_prompt(decoder, &p.context));
        let prompts: Vec<DenseKv> = prompts.collect::<Result<_>>()?;
        let mut bench = RecallBench { decoder, task: self, prompts, reference: Vec::new() };
        let filled = bench.filled(&KvKind::Dense)?;
        let asked = self.asked();
        let batches = asked.chunks(BATCH).map(|batch| bench.hidden(&filled, batch));
        bench.reference = batches.collect::<Result<Vec<_>>>()?.concat();
        Ok(bench)
    }
}

fn shuffled(count: usize, stream: &mut SeedStream) -> Vec<usize> {
    let mut all: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        all.swap(i, stream.below(i as u64 + 1) as usize);
    }
    all
}

fn digit(stream: &mut SeedStream) -> char {
    char::from(b'0' + stream.below(10) as u8)
}

/// How much a model recalls through a cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RecallScore {
    /// Fraction of answers that were right in every token.
    pub exact: f64,
    /// Questions.
    pub questions: usize,
    /// Mean negative log-likelihood of a token of the answers, in nats: tells configurations
    /// apart that answer equally well.
    pub answer_loss: f64,
    /// Mean Kullback-Leibler divergence of the distributions that predict the answers from those in
    /// full precision, in nats a token.
    pub divergence: f64,
    /// Bytes of the caches of all prompts before the first question, allocated.
    pub cache_bytes: usize,
}

/// A [`RecallTask`] that is ready for many caches.
///
/// ```no_run
/// # use prune_candle::{Decoder, KvKind, LlamaModel, RecallOptions, RecallTask, Tokenizer};
/// # use prune_checkpoint::Checkpoint;
/// # use prune_quant::kv::{KvConfig, KvScheme};
/// # let checkpoint = Checkpoint::open("model".as_ref())?;
/// # let model = LlamaModel::new(&checkpoint.config()?, &checkpoint)?;
/// # let tokenizer = Tokenizer::from_bytes(&std::fs::read("model/tokenizer.json")?)?;
/// let decoder = Decoder::load(&model, &checkpoint)?;
/// let task = RecallTask::new(&tokenizer, &RecallOptions::default())?;
/// let bench = task.prepare(&decoder)?;
/// let config = KvConfig::uniform(decoder.kv_shape().layers, "KV4".parse()?, KvScheme::kivi())?;
/// let score = bench.evaluate(&KvKind::Quantized(config))?;
/// println!("{:.1} % recalled", 100.0 * score.exact);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RecallBench<'a> {
    decoder: &'a Decoder,
    task: &'a RecallTask,
    /// Keys and values of each prompt.
    prompts: Vec<DenseKv>,
    /// Of each question the last hidden states that predict its answer, in full precision.
    reference: Vec<Array2<f32>>,
}

impl RecallBench<'_> {
    /// What is recalled through caches of this kind. A prompt goes into the cache once, each of
    /// its questions continues a copy of it: question and answer in one pass, the prompt seen
    /// through the cache.
    ///
    /// # Errors
    /// Those of [`Decoder::forward`].
    pub fn evaluate(&self, kind: &KvKind) -> Result<RecallScore> {
        let filled = self.filled(kind)?;
        let asked = self.task.asked();
        let (mut right, mut loss, mut divergence, mut tokens) = (0, 0.0, 0.0, 0);
        for (batch, reference) in asked.chunks(BATCH).zip(self.reference.chunks(BATCH)) {
            let hidden = self.hidden(&filled, batch)?;
            let targets: Vec<u32> =
                batch.iter().flat_map(|(_, (_, answer))| answer).copied().collect();
            let mut predicted =
                predictions(self.decoder, &views(&hidden), &views(reference), &targets)?
                    .into_iter();
            for (_, (_, answer)) in batch {
                let mut all = true;
                for prediction in predicted.by_ref().take(answer.len()) {
                    all &= prediction.correct;
                    loss += prediction.loss;
                    divergence += prediction.divergence;
                    tokens += 1;
                }
                right += usize::from(all);
            }
        }
        Ok(RecallScore {
            exact: right as f64 / asked.len() as f64,
            questions: asked.len(),
            answer_loss: loss / tokens as f64,
            divergence: divergence / tokens as f64,
            cache_bytes: filled.iter().map(|c| c.bytes()).sum(),
        })
    }

    fn filled(&self, kind: &KvKind) -> Result<Vec<Box<dyn KvStore>>> {
        self.prompts.par_iter().map(|p| kind.filled(p)).collect()
    }

    /// Of each question of a batch the last hidden states that predict its answer.
    fn hidden(
        &self,
        filled: &[Box<dyn KvStore>],
        batch: &[(usize, &Asked)],
    ) -> Result<Vec<Array2<f32>>> {
        let mut caches: Vec<Box<dyn KvStore>> = Vec::with_capacity(batch.len());
        let mut texts = Vec::with_capacity(batch.len());
        for (prompt, (question, answer)) in batch {
            caches.push(filled[*prompt].boxed_clone());
            let mut text = question.clone();
            text.extend(&answer[..answer.len() - 1]);
            texts.push(text);
        }
        let mut feeds: Vec<Feed<'_>> = texts
            .iter()
            .zip(&mut caches)
            .map(|(tokens, cache)| Feed { tokens, cache: &mut **cache })
            .collect();
        let hidden = self.decoder.forward(&mut feeds, KvOrder::default())?;
        let answers = batch.iter().zip(&hidden).map(|((_, (question, _)), hidden)| {
            hidden.slice(s![question.len() - 1.., ..]).to_owned()
        });
        Ok(answers.collect())
    }
}
