//! Trains the small Llama that ships in `assets/tiny-llama`.
//!
//! The model is a Hugging Face `LlamaForCausalLM` of 0.8 million parameters (4 blocks of width 128,
//! 4 query heads on 2 key/value heads, byte-level BPE of 1,536 tokens, embeddings tied to the
//! output). It reads `assets/tiny-llama/text/train.txt` and is judged on
//! `assets/tiny-llama/text/heldout.txt`, chapters of the same two novels that it never sees.
//!
//! ```text
//! RAYON_NUM_THREADS=1 CANDLE_NUM_THREADS=1 cargo run --release --example train_tiny_llama
//! ```
//!
//! It computes the parts of a step side by side; with the two variables candle does not split each
//! operation once more, and a step takes half the time.
//!
//! The shipped run (seed 0, 2,000 steps of 4,096 tokens, 8 minutes on two cores) reached a held-out
//! perplexity of 28.1 a token; a unigram model has 472.8. Its log is `assets/tiny-llama/train.log`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::silu;
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
use clap::Parser;
use prune_examples as _;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// The one special token: it begins every chapter of the training stream, and is `bos` and `eos`.
const END_OF_TEXT: &str = "<|endoftext|>";
const END_OF_TEXT_ID: u32 = 0;
/// Tokens of a batch that go through the model at once.
const PART_TOKENS: usize = 1024;
/// Gradients longer than this are scaled down to it.
const CLIP_NORM: f64 = 1.0;
const INIT_STD: f64 = 0.04;

/// Train the tiny Llama of `assets/`. The defaults are the shipped run.
#[derive(Parser, Debug)]
struct Args {
    /// Folder that receives the checkpoint, the tokenizer and `train.log`.
    #[arg(long, default_value = "out/tiny-llama")]
    out: PathBuf,
    /// Folder with `train.txt` and `heldout.txt`.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/tiny-llama/text"))]
    text: PathBuf,
    /// Seed of the initial weights and of the order of the training windows.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Optimiser steps.
    #[arg(long, default_value_t = 2000)]
    steps: usize,
    /// Tokens in one step, over all threads.
    #[arg(long, default_value_t = 4096)]
    step_tokens: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 8e-3)]
    lr: f64,
    /// Weight decay of the matrices (the norms have none).
    #[arg(long, default_value_t = 0.1)]
    weight_decay: f64,
    /// How many times faster than the matrices the gains of the norms learn: channels then come to
    /// differ in scale, as they do in large models.
    #[arg(long, default_value_t = 20.0)]
    gain_lr: f64,
    /// Share of the values that training drops on their way into the residual stream.
    #[arg(long, default_value_t = 0.1)]
    dropout: f64,
    /// Steps of linear warm-up before the cosine.
    #[arg(long, default_value_t = 100)]
    warmup: usize,
    /// Steps between measurements on the held-out text; the best one is kept.
    #[arg(long, default_value_t = 100)]
    eval_every: usize,
    /// Equal parts of a step computed side by side; the result does not depend on their timing.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// The shape of the model, in the words of a Hugging Face `config.json`.
#[derive(Clone, Copy, Debug)]
struct Shape {
    vocab: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    positions: usize,
    rope_theta: f64,
    norm_eps: f64,
}

const SHAPE: Shape = Shape {
    vocab: 1536,
    hidden: 128,
    layers: 4,
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    intermediate: 256,
    positions: 512,
    rope_theta: 10_000.0,
    norm_eps: 1e-5,
};

fn main() -> Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.out)?;
    let mut log = Log::create(&args.out.join("train.log"))?;
    let device = Device::Cpu;

    let train_text = fs::read_to_string(args.text.join("train.txt"))?;
    let heldout_text = fs::read_to_string(args.text.join("heldout.txt"))?;
    let tokenizer = train_tokenizer(&train_text, SHAPE.vocab)?;
    let train = encode_chapters(&tokenizer, &train_text)?;
    let heldout = encode(&tokenizer, &heldout_text)?;

    let model = Llama::init(SHAPE, args.seed, &device)?;
    log.line(&format!(
        "seed {}, {} steps of {} tokens, lr {} ({} times that for gains), weight decay {}, dropout {}, warm-up {}",
        args.seed,
        args.steps,
        args.step_tokens,
        args.lr,
        args.gain_lr,
        args.weight_decay,
        args.dropout,
        args.warmup
    ))?;
    log.line(&format!(
        "{} parameters; {} training and {} held-out tokens; held-out unigram perplexity {:.2}",
        model.parameters(),
        train.len(),
        heldout.len(),
        unigram_perplexity(&train, &heldout, SHAPE.vocab)
    ))?;

    run(&args, &model, &train, &heldout, &mut log)?;

    model.round_to_bf16()?;
    let perplexity = |ids: &[u32]| model.perplexity(ids, SHAPE.positions, args.threads);
    log.line(&format!(
        "in bf16: train perplexity {:.3}, held-out perplexity {:.3}",
        perplexity(&train)?,
        perplexity(&heldout)?
    ))?;
    save_tokenizer(&tokenizer, &args.out)?;
    save_config(&model.shape, &args.out)?;
    save_weights(&model, &args.out.join("model.safetensors"))
}

// ---------------------------------------------------------------------------------------------
// Text and tokenizer

/// Byte-level BPE: id 0 is the special token, then the 256 bytes, then the merges.
fn train_tokenizer(text: &str, vocab: usize) -> Result<Tokenizer> {
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = Tokenizer::new(ModelWrapper::from(BPE::default()));
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), text.lines())?;
    Ok(tokenizer)
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(tokenizer.encode(text, false)?.get_ids().to_vec())
}

/// The training stream: every chapter behind one [`END_OF_TEXT`].
fn encode_chapters(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for chapter in text.trim_start_matches("Chapter ").split("\n\nChapter ") {
        ids.push(END_OF_TEXT_ID);
        ids.extend(encode(tokenizer, &format!("Chapter {chapter}"))?);
    }
    Ok(ids)
}

/// Perplexity of add-one token frequencies of `train` on `heldout`: what a model that ignores its
/// context reaches.
fn unigram_perplexity(train: &[u32], heldout: &[u32], vocab: usize) -> f64 {
    let mut counts = vec![1.0_f64; vocab];
    for &id in train {
        counts[id as usize] += 1.0;
    }
    let total: f64 = counts.iter().sum();
    let nll: f64 = heldout.iter().map(|&id| -(counts[id as usize] / total).ln()).sum();
    (nll / heldout.len() as f64).exp()
}

// ---------------------------------------------------------------------------------------------
// Model

/// Weights under their Hugging Face names; a linear layer is `[out, in]`.
struct Llama {
    shape: Shape,
    weights: BTreeMap<String, Var>,
    device: Device,
}

/// The rotary tables of one batch shape and the causal mask: constants of a forward pass.
struct Constants {
    cos_q: Tensor,
    sin_q: Tensor,
    cos_k: Tensor,
    sin_k: Tensor,
    rotate_half: Tensor,
    mask: Tensor,
}

impl Llama {
    /// Normal weights of deviation [`INIT_STD`], the projections back into the residual stream scaled down
    /// by their number, norms at one: all from one ChaCha stream.
    fn init(shape: Shape, seed: u64, device: &Device) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let residual_scale = 1.0 / (2.0 * shape.layers as f64).sqrt();
        let mut weights = BTreeMap::new();
        for (name, dims) in weight_shapes(&shape) {
            let count = dims.iter().product();
            let values = if dims.len() == 1 {
                vec![1.0; count]
            } else if name.contains("o_proj") || name.contains("down_proj") {
                normal(&mut rng, count, INIT_STD * residual_scale)
            } else {
                normal(&mut rng, count, INIT_STD)
            };
            weights.insert(name, Var::from_vec(values, dims, device)?);
        }
        Ok(Self { shape, weights, device: device.clone() })
    }

    fn weight(&self, name: &str) -> Result<&Tensor> {
        let weight = self.weights.get(name).ok_or_else(|| format!("no weight {name}"))?;
        Ok(weight.as_tensor())
    }

    fn parameters(&self) -> usize {
        self.weights.values().map(|weight| weight.elem_count()).sum()
    }

    /// Logits `[batch * time, vocab]` of ids `[batch, time]`.
    fn forward(&self, ids: &Tensor, dropout: &mut Dropout) -> Result<Tensor> {
        let (batch, time) = ids.dims2()?;
        let constants = Constants::new(&self.shape, batch, time, &self.device)?;
        let embeddings = self.weight("model.embed_tokens.weight")?;
        let mut x = dropout.apply(embeddings.index_select(&ids.flatten_all()?, 0)?)?;
        for layer in 0..self.shape.layers {
            let prefix = format!("model.layers.{layer}");
            let normed = self.norm(&x, &format!("{prefix}.input_layernorm"))?;
            let mixed = self.attention(&normed, &prefix, &constants, batch, time)?;
            x = (x + dropout.apply(mixed)?)?;
            let normed = self.norm(&x, &format!("{prefix}.post_attention_layernorm"))?;
            x = (x + dropout.apply(self.mlp(&normed, &prefix)?)?)?;
        }
        let x = self.norm(&x, "model.norm")?;
        Ok(x.matmul(&embeddings.t()?)?)
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        Ok(x.matmul(&self.weight(&format!("{name}.weight"))?.t()?)?)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + self.shape.norm_eps)?.sqrt()?.recip()?;
        Ok(x.broadcast_mul(&scale)?.broadcast_mul(self.weight(&format!("{name}.weight"))?)?)
    }

    fn mlp(&self, x: &Tensor, prefix: &str) -> Result<Tensor> {
        let gate = silu(&self.linear(x, &format!("{prefix}.mlp.gate_proj"))?)?;
        let up = self.linear(x, &format!("{prefix}.mlp.up_proj"))?;
        self.linear(&(gate * up)?, &format!("{prefix}.mlp.down_proj"))
    }

    fn attention(
        &self,
        x: &Tensor,
        prefix: &str,
        constants: &Constants,
        batch: usize,
        time: usize,
    ) -> Result<Tensor> {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let project = |name: &str, heads: usize| -> Result<Tensor> {
            let x = self.linear(x, &format!("{prefix}.self_attn.{name}"))?;
            Ok(x.reshape((batch, time, heads, head_dim))?)
        };
        let q = constants.rotate(&project("q_proj", heads)?, &constants.cos_q, &constants.sin_q)?;
        let k =
            constants.rotate(&project("k_proj", kv_heads)?, &constants.cos_k, &constants.sin_k)?;
        let v = project("v_proj", kv_heads)?.transpose(1, 2)?.contiguous()?;
        let k = k.transpose(1, 2)?.contiguous()?;

        // The query heads of one key/value head are stacked along time: one product per kv head.
        let stacked = (batch, kv_heads, heads / kv_heads * time, head_dim);
        let q = (q.transpose(1, 2)?.contiguous()? * (head_dim as f64).powf(-0.5))?;
        let scores = q.reshape(stacked)?.matmul(&k.t()?)?;
        let scores = scores.reshape((batch, heads, time, time))?.broadcast_add(&constants.mask)?;
        let attention = softmax(&scores)?.reshape((batch, kv_heads, (), time))?;
        let mixed = attention.matmul(&v)?.reshape((batch, heads, time, head_dim))?;
        let mixed = mixed.transpose(1, 2)?.reshape((batch * time, heads * head_dim))?;
        self.linear(&mixed, &format!("{prefix}.self_attn.o_proj"))
    }

    /// Mean negative log-likelihood of `windows` (rows of `time + 1` ids).
    fn loss(&self, windows: &[Vec<u32>], dropout: &mut Dropout) -> Result<Tensor> {
        let time = windows.first().map_or(0, Vec::len).saturating_sub(1);
        let rows = windows.len();
        let ids: Vec<u32> = windows.iter().flat_map(|w| w[..time].iter().copied()).collect();
        let targets: Vec<u32> = windows.iter().flat_map(|w| w[1..].iter().copied()).collect();
        let ids = Tensor::from_vec(ids, (rows, time), &self.device)?;
        let targets = Tensor::from_vec(targets, (rows * time, 1), &self.device)?;
        let logits = self.forward(&ids, dropout)?;
        let max = logits.detach().max_keepdim(D::Minus1)?;
        let shifted = logits.broadcast_sub(&max)?;
        let log_norm = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
        Ok((log_norm - shifted.gather(&targets, 1)?)?.mean_all()?)
    }

    /// Perplexity of non-overlapping windows of `window` tokens; each predicts its tokens after the
    /// first, the last partial window is left out.
    fn perplexity(&self, ids: &[u32], window: usize, threads: usize) -> Result<f64> {
        let windows: Vec<Vec<u32>> = ids.chunks_exact(window).map(<[u32]>::to_vec).collect();
        let parts: Vec<_> = windows.chunks(part_len(&windows)).collect();
        let losses = on_threads(&parts, threads, |part| {
            Ok(f64::from(self.loss(part, &mut Dropout::Off)?.to_scalar::<f32>()?)
                * part.len() as f64)
        })?;
        let nll: f64 = losses.iter().sum();
        Ok((nll / windows.len() as f64).exp())
    }

    fn snapshot(&self) -> Result<Vec<Tensor>> {
        self.weights.values().map(|weight| Ok(weight.as_tensor().copy()?)).collect()
    }

    fn restore(&self, snapshot: &[Tensor]) -> Result<()> {
        for (weight, saved) in self.weights.values().zip(snapshot) {
            weight.set(saved)?;
        }
        Ok(())
    }

    fn round_to_bf16(&self) -> Result<()> {
        for weight in self.weights.values() {
            weight.set(&weight.to_dtype(DType::BF16)?.to_dtype(DType::F32)?)?;
        }
        Ok(())
    }
}

impl Constants {
    fn new(shape: &Shape, batch: usize, time: usize, device: &Device) -> Result<Self> {
        let half = shape.head_dim / 2;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in 0..time {
            for i in 0..shape.head_dim {
                let exponent = (i % half) as f64 / half as f64;
                let angle = position as f64 * shape.rope_theta.powf(-exponent);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        let cos = Tensor::from_vec(cos, (1, time, 1, shape.head_dim), device)?;
        let sin = Tensor::from_vec(sin, (1, time, 1, shape.head_dim), device)?;
        let spread = |table: &Tensor, heads: usize| {
            table.broadcast_as((batch, time, heads, shape.head_dim))?.contiguous()
        };
        // rotate_half(x) = [-x2, x1] as a product with a signed permutation.
        let mut rotate_half = vec![0.0_f32; shape.head_dim * shape.head_dim];
        for i in 0..half {
            rotate_half[(i + half) * shape.head_dim + i] = -1.0;
            rotate_half[i * shape.head_dim + i + half] = 1.0;
        }
        let mask = (0..time * time)
            .map(|at| if at % time > at / time { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        Ok(Self {
            cos_q: spread(&cos, shape.heads)?,
            sin_q: spread(&sin, shape.heads)?,
            cos_k: spread(&cos, shape.kv_heads)?,
            sin_k: spread(&sin, shape.kv_heads)?,
            rotate_half: Tensor::from_vec(rotate_half, (shape.head_dim, shape.head_dim), device)?,
            mask: Tensor::from_vec(mask, (time, time), device)?,
        })
    }

    fn rotate(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let dims = x.shape();
        let rotated = x.reshape(((), x.dim(D::Minus1)?))?.matmul(&self.rotate_half)?;
        Ok(((x * cos)? + (rotated.reshape(dims)? * sin)?)?)
    }
}

/// Names and dimensions of all weights, in a fixed order.
fn weight_shapes(shape: &Shape) -> Vec<(String, Vec<usize>)> {
    let &Shape { vocab, hidden, heads, kv_heads, head_dim, intermediate, .. } = shape;
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for layer in 0..shape.layers {
        let linears = [
            ("self_attn.q_proj", vec![heads * head_dim, hidden]),
            ("self_attn.k_proj", vec![kv_heads * head_dim, hidden]),
            ("self_attn.v_proj", vec![kv_heads * head_dim, hidden]),
            ("self_attn.o_proj", vec![hidden, heads * head_dim]),
            ("mlp.gate_proj", vec![intermediate, hidden]),
            ("mlp.up_proj", vec![intermediate, hidden]),
            ("mlp.down_proj", vec![hidden, intermediate]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ];
        let named = |(name, dims)| (format!("model.layers.{layer}.{name}.weight"), dims);
        all.extend(linears.into_iter().map(named));
    }
    all.push(("model.norm.weight".to_owned(), vec![hidden]));
    all
}

/// `count` normal values of deviation `std`, by Box and Muller.
fn normal(rng: &mut ChaCha8Rng, count: usize, std: f64) -> Vec<f32> {
    (0..count)
        .map(|_| {
            let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
            let angle = std::f64::consts::TAU * rng.random::<f64>();
            (std * radius * angle.cos()) as f32
        })
        .collect()
}

/// Dropout with a seeded mask, so that a run can be repeated.
enum Dropout {
    Off,
    On { rate: f64, rng: Box<ChaCha8Rng> },
}

impl Dropout {
    /// The dropout of one part of one step: a stream of its own.
    fn seeded(args: &Args, step: usize, part: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
        rng.set_stream(((step as u64) << 32) | part as u64);
        Self::On { rate: args.dropout, rng: Box::new(rng) }
    }

    fn apply(&mut self, x: Tensor) -> Result<Tensor> {
        let Self::On { rate, rng } = self else { return Ok(x) };
        let keep = (1.0 / (1.0 - *rate)) as f32;
        let mask: Vec<f32> =
            (0..x.elem_count()).map(|_| if rng.random_bool(*rate) { 0.0 } else { keep }).collect();
        Ok((&x * Tensor::from_vec(mask, x.shape(), x.device())?)?)
    }
}

/// Softmax over the last dimension; the maximum only guards the exponential, no gradient goes
/// through it.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    let norm = exp.sum_keepdim(D::Minus1)?.recip()?;
    Ok(exp.broadcast_mul(&norm)?)
}

// ---------------------------------------------------------------------------------------------
// Training

/// Trains `model` and leaves the weights of the best held-out perplexity in it.
fn run(args: &Args, model: &Llama, train: &[u32], heldout: &[u32], log: &mut Log) -> Result<()> {
    let mut optimizers = optimizers(model, args)?;
    let mut order = Windows::new(train, args.seed);
    let mut best = (f64::INFINITY, 0, Vec::new());
    let mut recent = Vec::new();
    let start = Instant::now();
    for step in 1..=args.steps {
        let time = window(step, args.steps);
        let windows = order.take(args.step_tokens / time, time);
        recent.push(train_step(args, model, &mut optimizers, &windows, step)?);
        if step % 50 == 0 || step == args.steps {
            let loss = recent.iter().sum::<f64>() / recent.len() as f64;
            recent.clear();
            log.line(&format!(
                "step {step:>5}  tokens {:>9}  window {time:>3}  lr {:.2e}  loss {loss:.4}  {:>5.0} s",
                step * args.step_tokens,
                learning_rate(args, step),
                start.elapsed().as_secs_f64()
            ))?;
        }
        if step % args.eval_every == 0 || step == args.steps {
            let perplexity = model.perplexity(heldout, SHAPE.positions, args.threads)?;
            log.line(&format!("step {step:>5}  held-out perplexity {perplexity:.3}"))?;
            if perplexity < best.0 {
                best = (perplexity, step, model.snapshot()?);
            }
        }
    }
    log.line(&format!("best held-out perplexity {:.3} at step {}", best.0, best.1))?;
    model.restore(&best.2)
}

/// One optimiser for the matrices, with weight decay, and one for the norms, without.
fn optimizers(model: &Llama, args: &Args) -> Result<[AdamW; 2]> {
    let build = |rank: usize, weight_decay: f64| {
        let vars = model.weights.values().filter(|var| var.rank() == rank).cloned().collect();
        let params = ParamsAdamW { lr: args.lr, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay };
        AdamW::new(vars, params)
    };
    Ok([build(2, args.weight_decay)?, build(1, 0.0)?])
}

/// Linear warm-up, then a cosine down to a twentieth of the peak.
fn learning_rate(args: &Args, step: usize) -> f64 {
    if step < args.warmup {
        return args.lr * step as f64 / args.warmup as f64;
    }
    let progress = (step - args.warmup) as f64 / (args.steps - args.warmup).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
    args.lr * (0.05 + 0.95 * cosine)
}

/// Short windows first, for they cost least; the last tenth covers all positions of the config.
fn window(step: usize, steps: usize) -> usize {
    match step * 10 / steps.max(1) {
        0..6 => SHAPE.positions / 4,
        6..9 => SHAPE.positions / 2,
        _ => SHAPE.positions,
    }
}

/// Gradients of `windows`, clipped, then one step of every optimiser. The loss before the step.
fn train_step(
    args: &Args,
    model: &Llama,
    optimizers: &mut [AdamW],
    windows: &[Vec<u32>],
    step: usize,
) -> Result<f64> {
    let parts: Vec<_> = windows.chunks(part_len(windows)).enumerate().collect();
    let results = on_threads(&parts, args.threads, |(index, part)| {
        let share = part.len() as f64 / windows.len() as f64;
        let mut dropout = Dropout::seeded(args, step, index);
        let loss = (model.loss(part, &mut dropout)? * share)?;
        let grads = loss.backward()?;
        Ok((f64::from(loss.to_scalar::<f32>()?), grads))
    })?;
    let loss = results.iter().map(|(loss, _)| loss).sum();
    let grads = results.into_iter().map(|(_, grads)| grads).collect();
    let grads = clipped_sum(model, grads)?;
    for (optimizer, faster) in optimizers.iter_mut().zip([1.0, args.gain_lr]) {
        optimizer.set_learning_rate(faster * learning_rate(args, step));
        optimizer.step(&grads)?;
    }
    Ok(loss)
}

/// The sum of `parts`, always in the same order, scaled to a norm of at most [`CLIP_NORM`].
fn clipped_sum(model: &Llama, mut parts: Vec<GradStore>) -> Result<GradStore> {
    let mut total = parts.pop().ok_or("a step without windows")?;
    let mut sums = Vec::new();
    let mut square = 0.0;
    for var in model.weights.values() {
        let mut sum = total.get(var).ok_or("a weight without a gradient")?.clone();
        for part in &parts {
            sum = (sum + part.get(var).ok_or("a weight without a gradient")?)?;
        }
        square += f64::from(sum.sqr()?.sum_all()?.to_scalar::<f32>()?);
        sums.push(sum);
    }
    let scale = (CLIP_NORM / square.sqrt()).min(1.0);
    for (var, sum) in model.weights.values().zip(sums) {
        total.insert(var, (sum * scale)?);
    }
    Ok(total)
}

/// Windows in one part of a batch: about [`PART_TOKENS`] tokens, so that the buffers of a part
/// stay small enough for the allocator to reuse.
fn part_len(windows: &[Vec<u32>]) -> usize {
    let tokens = windows.first().map_or(1, Vec::len).max(1);
    (PART_TOKENS / (tokens - 1).max(1)).max(1)
}

/// `work` on each of `parts`, dealt out over `threads`; the results in the order of `parts`.
fn on_threads<P, R, F>(parts: &[P], threads: usize, work: F) -> Result<Vec<R>>
where
    P: Copy + Sync,
    R: Send,
    F: Fn(P) -> Result<R> + Sync,
{
    let deal = |first: usize| -> Result<Vec<R>> {
        parts.iter().skip(first).step_by(threads.max(1)).map(|&part| work(part)).collect()
    };
    let deal = &deal;
    let hands: Vec<Vec<R>> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads.max(1)).map(|first| scope.spawn(move || deal(first))).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| "a worker died")?)
            .collect::<Result<_>>()
    })?;
    let mut hands: Vec<_> = hands.into_iter().map(Vec::into_iter).collect();
    let turns = hands.len();
    Ok((0..parts.len()).filter_map(|part| hands[part % turns].next()).collect())
}

/// Training windows in a seeded order: every pass over the text cuts it at a new offset and
/// shuffles the cuts.
struct Windows<'a> {
    stream: &'a [u32],
    rng: ChaCha8Rng,
    queue: Vec<Vec<u32>>,
}

impl<'a> Windows<'a> {
    fn new(stream: &'a [u32], seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(1);
        Self { stream, rng, queue: Vec::new() }
    }

    /// The next `count` windows of `time` inputs and the token after them.
    fn take(&mut self, count: usize, time: usize) -> Vec<Vec<u32>> {
        if self.queue.last().is_some_and(|window| window.len() != time + 1) {
            self.queue.clear();
        }
        while self.queue.len() < count {
            let offset = self.rng.random_range(0..time);
            let starts = (offset..self.stream.len() - time).step_by(time);
            let mut pass: Vec<_> =
                starts.map(|start| self.stream[start..=start + time].to_vec()).collect();
            pass.shuffle(&mut self.rng);
            pass.append(&mut self.queue);
            self.queue = pass;
        }
        self.queue.split_off(self.queue.len() - count)
    }
}

/// Lines that go to standard output and into a file.
struct Log(BufWriter<fs::File>);

impl Log {
    fn create(path: &Path) -> Result<Self> {
        Ok(Self(BufWriter::new(fs::File::create(path)?)))
    }

    fn line(&mut self, line: &str) -> Result<()> {
        println!("{line}");
        writeln!(self.0, "{line}")?;
        Ok(self.0.flush()?)
    }
}

// ---------------------------------------------------------------------------------------------
// Files

fn save_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    Ok(fs::write(path, format!("{value:#}\n"))?)
}

fn save_tokenizer(tokenizer: &Tokenizer, out: &Path) -> Result<()> {
    tokenizer.save(out.join("tokenizer.json"), true)?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": false,
        "model_max_length": SHAPE.positions,
    });
    save_json(&out.join("tokenizer_config.json"), &config)
}

fn save_config(shape: &Shape, out: &Path) -> Result<()> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.positions,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "use_cache": true,
    });
    save_json(&out.join("config.json"), &config)?;
    let generation = json!({ "bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID });
    save_json(&out.join("generation_config.json"), &generation)
}

/// Writes a safetensors file: the length of the header, the header, the tensors in bf16. The
/// weights are rounded to bf16 already, so the upper half of each f32 is the value.
fn save_weights(model: &Llama, path: &Path) -> Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut data = Vec::new();
    for (name, weight) in &model.weights {
        let begin = data.len();
        for value in weight.flatten_all()?.to_vec1::<f32>()? {
            data.extend(((value.to_bits() >> 16) as u16).to_le_bytes());
        }
        header.insert(
            name.clone(),
            json!({ "dtype": "BF16", "shape": weight.dims(), "data_offsets": [begin, data.len()] }),
        );
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::new(fs::File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.write_all(&data)?;
    Ok(file.flush()?)
}
