use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use prune_core::{Seed, TensorSource};
use prune_train::{
    Gradients, Init, Model, ParameterKind, Parameters, Tally, cross_entropy_in_place, with_values,
};

use super::attention::{Heads, attend};
use super::linear::{self, linear};
use super::lora::LoraOptions;
use super::norm::rms_norm;
use super::rotary::rotate;
use super::swiglu::swiglu;
use super::tokens::TokenBatch;
use crate::error::as_training;
use crate::llama::{EMBEDDING, HEAD, LAST_NORM};
use crate::rope::Rotary;
use crate::{Error, LlamaConfig, LlamaModel, Result};

/// What is kept of the forward pass for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activations {
    /// The inputs of the blocks; everything within a block is computed a second time. A third more
    /// work, and memory for the insides of one block.
    #[default]
    Recompute,
    /// All.
    Keep,
}

/// Logits that are in memory at once.
const LOGITS: usize = 1 << 23;

/// A Llama-family model that can be trained: all of it, a few blocks at a time, or low-rank
/// adapters.
///
/// Weights are f32 on the CPU, under the names of the checkpoint. Gradients of frozen weights are
/// not computed, and back-propagation ends where nothing below is trained; logits of a long batch
/// exist a part at a time.
///
/// ```no_run
/// use prune_candle::{Activations, TokenWindows, TrainableLlama};
/// use prune_checkpoint::Checkpoint;
/// use prune_train::{AdamW, AdamWOptions, TrainOptions, Trainer};
///
/// let checkpoint = Checkpoint::open("SmolLM2-135M-Instruct".as_ref())?;
/// let model = TrainableLlama::load(&checkpoint.config()?, &checkpoint, Activations::Recompute)?;
/// let text = TokenWindows::new((0..4097).collect(), 256)?;
/// let options = TrainOptions { steps: 10, batch: 4, ..TrainOptions::default() };
/// let optimizer = AdamW::new(AdamWOptions { rate: 1e-5, ..AdamWOptions::default() })?;
/// Trainer::new(&model, optimizer, options)?.run(&text, None::<&TokenWindows>)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TrainableLlama {
    config: LlamaConfig,
    parameters: Parameters,
    rotary: Arc<Rotary>,
    activations: Activations,
    lora: Option<LoraOptions>,
}

impl TrainableLlama {
    /// The model of a checkpoint, all of whose weights are read and trained.
    ///
    /// # Errors
    /// As [`LlamaModel::new`]; [`Error::Core`] naming a tensor that cannot be read or is not finite.
    pub fn load(
        config: &serde_json::Value,
        weights: &dyn TensorSource,
        activations: Activations,
    ) -> Result<Self> {
        // Checks every name and shape.
        let model = LlamaModel::new(config, weights)?;
        let config = model.config().clone();
        let mut parameters = Parameters::default();
        let mut push = |name: &str| -> Result<()> {
            let shape = weights.info(name)?.shape.clone();
            let kind = match (name, shape.len()) {
                (EMBEDDING | HEAD, _) => ParameterKind::Embedding,
                (_, 2) => ParameterKind::Weight,
                _ => ParameterKind::Vector,
            };
            Ok(parameters.push(name, kind, &shape, weights.read_f32(name)?).map(|_| ())?)
        };
        push(EMBEDDING)?;
        let in_blocks = weights.tensors().iter().map(|t| t.name.as_str());
        let in_blocks: Vec<&str> = in_blocks.filter(|n| n.starts_with("model.layers.")).collect();
        for block in 0..config.num_hidden_layers {
            let prefix = format!("model.layers.{block}.");
            let own = in_blocks.iter().filter(|n| n.starts_with(&prefix));
            // Buffers that some checkpoints carry, such as rotary frequencies, are left out.
            let weights_of = own.filter(|n| n.ends_with(".weight") || n.ends_with(".bias"));
            weights_of.copied().try_for_each(&mut push)?;
        }
        push(LAST_NORM)?;
        if !config.tie_word_embeddings {
            push(HEAD)?;
        }
        let rotary = Arc::new(Rotary::new(&config)?);
        Ok(Self { config, parameters, rotary, activations, lora: None })
    }

    /// The same model with everything frozen but new adapters.
    ///
    /// # Errors
    /// [`Error::Core`]: `OutOfRange` for a rank of 0 or when no layer has such a name.
    pub fn with_lora(mut self, options: LoraOptions, seed: Seed) -> Result<Self> {
        let out_of_range = |what: &str, found: String, expected: &str| {
            Error::Core(prune_core::Error::OutOfRange {
                what: what.to_string(),
                found,
                expected: expected.to_string(),
            })
        };
        if options.rank == 0 {
            return Err(out_of_range("rank of an adapter", "0".to_string(), "at least 1"));
        }
        self.parameters.iter().for_each(|p| p.freeze(true));
        let mut adapted = 0;
        for layer in self.parameters.layers() {
            let name = layer.id.as_str();
            if !options.layers.iter().any(|l| name.ends_with(l.as_str())) {
                continue;
            }
            let [outputs, inputs] = layer.shape[..] else { continue };
            let (kind, rank) = (ParameterKind::Adapter, options.rank);
            let init = Init::Uniform(1.0 / (inputs as f64).sqrt());
            self.parameters.init(&format!("{name}.lora_a"), kind, &[rank, inputs], init, seed)?;
            let zero = Init::Constant(0.0);
            self.parameters.init(&format!("{name}.lora_b"), kind, &[outputs, rank], zero, seed)?;
            adapted += 1;
        }
        if adapted == 0 {
            let found = options.layers.join(", ");
            return Err(out_of_range("layers to adapt", found, "the end of a layer's name"));
        }
        self.lora = Some(options);
        Ok(self)
    }

    /// Adds the adapters to the weights that they belong to; the adapters are 0 afterwards.
    ///
    /// # Errors
    /// What candle reports.
    pub fn merge_lora(&self) -> Result<()> {
        let Some(lora) = &self.lora else { return Ok(()) };
        for layer in self.parameters.layers() {
            let name = layer.id.as_str();
            let Ok(a) = self.parameters.get(&format!("{name}.lora_a")) else { continue };
            let b = self.parameters.get(&format!("{name}.lora_b"))?;
            let product = b.var().detach().matmul(&a.var().detach())?;
            let weight = self.parameters.get(&layer.id.weight_name())?;
            let merged = (weight.var().detach() + (product * (lora.alpha / lora.rank as f64))?)?;
            self.parameters.set(weight.name(), &merged)?;
            self.parameters.set(b.name(), &b.var().zeros_like()?)?;
        }
        Ok(())
    }

    /// The configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    fn get(&self, name: &str) -> Result<Tensor> {
        Ok(self.parameters.get(name)?.tensor())
    }

    fn trained(&self, name: &str) -> bool {
        self.parameters.get(name).is_ok_and(|p| p.is_trained())
    }

    /// The lowest block with a trained parameter.
    fn lowest_trained(&self) -> usize {
        let trained = self.parameters.iter().filter(|p| p.is_trained());
        let blocks = trained.filter_map(|p| prune_core::block_of(p.name()).map(|(b, _)| b));
        blocks.min().unwrap_or(self.config.num_hidden_layers)
    }

    /// The name of the output matrix.
    fn head_name(&self) -> &'static str {
        if self.config.tie_word_embeddings { EMBEDDING } else { HEAD }
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let width = self.config.hidden_size;
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
            return Err(Error::Core(prune_core::Error::OutOfRange {
                what: "token id".to_string(),
                found: id.to_string(),
                expected: format!("below the vocabulary size {}", self.config.vocab_size),
            }));
        }
        let rows = with_values(self.parameters.get(EMBEDDING)?.var(), |table| {
            let row = |id: &u32| &table[*id as usize * width..][..width];
            Ok(ids.iter().flat_map(row).copied().collect::<Vec<f32>>())
        })?;
        Ok(Tensor::from_vec(rows, (ids.len(), width), &Device::Cpu)?)
    }

    /// A linear layer by its name, with what bias and adapters it has.
    fn layer(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let mut y = linear(x, &self.get(&format!("{name}.weight"))?)?;
        if let Ok(bias) = self.parameters.get(&format!("{name}.bias")) {
            y = y.broadcast_add(&bias.tensor())?;
        }
        if let (Some(lora), Ok(a)) = (&self.lora, self.parameters.get(&format!("{name}.lora_a"))) {
            let b = self.parameters.get(&format!("{name}.lora_b"))?;
            let low = linear(&linear(x, &a.tensor())?, &b.tensor())?;
            y = (y + (low * (lora.alpha / lora.rank as f64))?)?;
        }
        Ok(y)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        Ok(rms_norm(x, &self.get(&format!("{name}.weight"))?, self.config.rms_norm_eps)?)
    }

    /// One block on `(sequences · tokens, width)`.
    fn block(&self, x: &Tensor, index: usize, tokens: usize) -> Result<Tensor> {
        let c = &self.config;
        let name = |role: &str| format!("model.layers.{index}.{role}");
        let normed = self.norm(x, &name("input_layernorm"))?;
        let (cos, sin) = self.rotary.tables(0, tokens)?;
        let turned = |role: &str, heads: usize, norm: &str| -> Result<Tensor> {
            let mut y = self.layer(&normed, &name(role))?;
            if c.qk_norm {
                let rows = y.dim(0)?;
                y = y.reshape((rows * heads, c.head_dim))?;
                y = self.norm(&y, &name(norm))?.reshape((rows, heads * c.head_dim))?;
            }
            Ok(rotate(&y, &cos, &sin)?)
        };
        let q = turned("self_attn.q_proj", c.num_attention_heads, "self_attn.q_norm")?;
        let k = turned("self_attn.k_proj", c.num_key_value_heads, "self_attn.k_norm")?;
        let v = self.layer(&normed, &name("self_attn.v_proj"))?;
        let heads = Heads {
            tokens,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
        };
        let mixed = attend(&q, &k, &v, heads)?;
        let x = (x + self.layer(&mixed, &name("self_attn.o_proj"))?)?;
        let normed = self.norm(&x, &name("post_attention_layernorm"))?;
        let gate = self.layer(&normed, &name("mlp.gate_proj"))?;
        let up = self.layer(&normed, &name("mlp.up_proj"))?;
        let inner = swiglu(&gate, &up)?;
        Ok((x + self.layer(&inner, &name("mlp.down_proj"))?)?)
    }

    /// The loss of normed hidden states; with `gradients`, those of the output matrix go there and
    /// those of the hidden states are returned.
    fn head(
        &self,
        normed: &Tensor,
        targets: &[u32],
        mut gradients: Option<&mut Gradients>,
    ) -> Result<(Tally, Vec<f32>)> {
        let (width, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let name = self.head_name();
        let rows = (LOGITS / vocab.max(1)).max(1);
        let mut dw = match gradients.is_some() && self.trained(name) {
            true => vec![0f32; vocab * width],
            false => Vec::new(),
        };
        let mut dx = Vec::new();
        let mut sum = Tally::default();
        let weight = self.parameters.get(name)?.var();
        let differentiate = gradients.is_some();
        with_values(weight, |weight| {
            with_values(normed, |normed| {
                for (x, part) in normed.chunks(rows * width).zip(targets.chunks(rows)) {
                    let mut logits = linear::forward(x, weight, width);
                    let count = targets.len();
                    let tally = cross_entropy_in_place(&mut logits, vocab, part, 0.0, count)?;
                    sum = sum + tally;
                    if !differentiate {
                        continue;
                    }
                    dx.extend(linear::by_input(&logits, weight, width));
                    if !dw.is_empty() {
                        linear::by_weight(&logits, x, width, &mut dw);
                    }
                }
                Ok(())
            })
        })?;
        if let (Some(gradients), false, Some(number)) =
            (&mut gradients, dw.is_empty(), self.parameters.number(name))
        {
            gradients.add(number, Tensor::from_vec(dw, (vocab, width), &Device::Cpu)?)?;
        }
        Ok((sum, dx))
    }

    fn check_batch(&self, batch: &TokenBatch) -> Result<()> {
        if batch.time > 0 && !batch.ids.is_empty() && batch.ids.len().is_multiple_of(batch.time + 1)
        {
            return match self.config.sliding_window {
                Some(window) if batch.time > window => Err(Error::Config {
                    field: "sliding_window",
                    found: window.to_string(),
                    expected: format!("at least the {} tokens of a window", batch.time),
                }),
                _ => Ok(()),
            };
        }
        Err(Error::Core(prune_core::Error::Shape {
            what: "token ids of a batch".to_string(),
            found: vec![batch.ids.len()],
            expected: vec![batch.windows().max(1), batch.time + 1],
        }))
    }

    fn differentiate(&self, batch: &TokenBatch) -> Result<(Tally, Gradients)> {
        self.check_batch(batch)?;
        let blocks = self.config.num_hidden_layers;
        let (ids, targets) = (batch.inputs(), batch.targets());
        let embedded = self.trained(EMBEDDING);
        let lowest = if embedded { 0 } else { self.lowest_trained() };
        let mut gradients = Gradients::new(self.parameters.len());

        // The hidden states before each block that gradients reach.
        let mut inputs = Vec::new();
        let mut x = self.embed(&ids)?;
        let mut graph = None;
        for block in 0..blocks {
            if block >= lowest {
                match self.activations {
                    Activations::Recompute => inputs.push(x.clone()),
                    Activations::Keep if block == lowest => {
                        let var = Var::from_tensor(&x)?;
                        x = var.as_tensor().clone();
                        graph = Some(var);
                    }
                    Activations::Keep => {}
                }
            }
            x = self.block(&x, block, batch.time)?;
            if graph.is_none() {
                // Without this, a trained block would keep its insides.
                x = x.detach();
            }
        }

        // The last norm and the output matrix.
        let top = Var::from_tensor(&x.detach())?;
        let normed = self.norm(top.as_tensor(), "model.norm")?;
        let (tally, dx) = self.head(&normed, &targets, Some(&mut gradients))?;
        let dx = Tensor::from_vec(dx, normed.shape(), &Device::Cpu)?;
        let mut store = (normed * dx)?.sum_all()?.backward()?;
        let mut dx = store.remove(top.as_tensor());
        gradients.add_all(Gradients::take(&mut store, &self.parameters)?)?;
        drop(store);

        if let (Some(var), Some(upstream)) = (&graph, &dx) {
            let mut store = (&x * upstream)?.sum_all()?.backward()?;
            dx = store.remove(var.as_tensor());
            gradients.add_all(Gradients::take(&mut store, &self.parameters)?)?;
        }
        drop(x);
        for block in (lowest..blocks).rev() {
            let (Some(input), Some(upstream)) = (inputs.pop(), &dx) else { continue };
            let var = Var::from_tensor(&input)?;
            drop(input);
            let y = self.block(var.as_tensor(), block, batch.time)?;
            let mut store = (y * upstream)?.sum_all()?.backward()?;
            dx = store.remove(var.as_tensor());
            gradients.add_all(Gradients::take(&mut store, &self.parameters)?)?;
        }
        if let (true, Some(dx), Some(number)) = (embedded, dx, self.parameters.number(EMBEDDING)) {
            self.add_embedding(&mut gradients, number, &ids, &dx)?;
        }
        Ok((tally, gradients))
    }

    /// Adds the gradients of hidden states to the rows of their tokens.
    fn add_embedding(
        &self,
        gradients: &mut Gradients,
        number: usize,
        ids: &[u32],
        dx: &Tensor,
    ) -> Result<()> {
        let (vocab, width) = (self.config.vocab_size, self.config.hidden_size);
        if gradients.get(number).is_none() {
            let zeros = Tensor::from_vec(vec![0f32; vocab * width], (vocab, width), &Device::Cpu)?;
            gradients.add(number, zeros)?;
        }
        if let Some(table) = gradients.get(number) {
            with_values(dx, |dx| {
                prune_train::change(table, |table| {
                    for (id, dx) in ids.iter().zip(dx.chunks(width)) {
                        let row = &mut table[*id as usize * width..][..width];
                        row.iter_mut().zip(dx).for_each(|(r, d)| *r += d);
                    }
                    Ok(())
                })
            })?;
        }
        Ok(())
    }

    fn loss(&self, batch: &TokenBatch) -> Result<Tally> {
        self.check_batch(batch)?;
        let mut x = self.embed(&batch.inputs())?;
        for block in 0..self.config.num_hidden_layers {
            x = self.block(&x, block, batch.time)?.detach();
        }
        let normed = self.norm(&x, "model.norm")?.detach();
        Ok(self.head(&normed, &batch.targets(), None)?.0)
    }
}

impl Model for TrainableLlama {
    type Batch = TokenBatch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn gradients(&self, batch: &TokenBatch) -> prune_train::Result<(Tally, Gradients)> {
        self.differentiate(batch).map_err(as_training)
    }

    fn evaluate(&self, batch: &TokenBatch) -> prune_train::Result<Tally> {
        self.loss(batch).map_err(as_training)
    }
}
