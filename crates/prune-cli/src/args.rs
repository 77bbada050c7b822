use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use prune_pipeline::MemoryBudget;

/// Makes model checkpoints smaller and proves what it did.
#[derive(Debug, Parser)]
#[command(name = "prune", version, about, long_about = None)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the linear layers of a model and how many of their weights are zero.
    Inspect {
        /// A Hugging Face directory, a .safetensors or .gguf file, or an org/model name.
        model: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what `compress` or `quantize` would do, without writing anything.
    Plan {
        /// The model to compress.
        model: String,
        #[command(flatten)]
        recipe: RecipeArgs,
        #[command(flatten)]
        prune: PruneArgs,
        #[command(flatten)]
        quant: QuantArgs,
        #[command(flatten)]
        calibration: CalibrationArgs,
        /// The most memory that the run may take: 2GiB, 800MB.
        #[arg(long)]
        memory: Option<MemoryBudget>,
        /// Print the plan as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Compress a model into a new directory, and verify it from disk.
    Compress {
        /// The model to compress; never written to.
        model: String,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        recipe: RecipeArgs,
        #[command(flatten)]
        prune: PruneArgs,
        #[command(flatten)]
        calibration: CalibrationArgs,
    },
    /// Quantise a model into a new directory or GGUF file, and verify it from disk.
    Quantize {
        /// The model to quantise; never written to.
        model: String,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        recipe: RecipeArgs,
        #[command(flatten)]
        quant: QuantArgs,
        #[command(flatten)]
        calibration: CalibrationArgs,
    },
    /// Store a model in another format, with the codes that it has where the format holds them.
    Convert {
        /// The model to convert; never written to.
        model: String,
        #[command(flatten)]
        output: OutputArgs,
        /// dense, compressed-tensors, gptq, gptq-p, gptq-v1, awq or gguf.
        #[arg(long)]
        format: String,
        /// The GGUF type of layers whose codes have none: f16, q8_0, q4_k and others.
        #[arg(long = "type", default_value = "f16")]
        kind: String,
        /// The GGUF type of embeddings and output matrix; llama.cpp's own choice by default.
        #[arg(long)]
        embeddings: Option<String>,
    },
    /// Check a compressed model on disk against its manifest.
    Verify {
        /// The directory or file that `compress`, `quantize` or `convert` wrote.
        directory: PathBuf,
        /// Run the recipe again on `--source` and compare every tensor.
        #[arg(long, requires = "source")]
        rederive: bool,
        /// The model that it was made from.
        #[arg(long)]
        source: Option<String>,
        /// The text, .npy or images that the run was calibrated on.
        #[arg(long)]
        calibration: Option<PathBuf>,
        /// The most memory that the derivation may take: 2GiB, 800MB.
        #[arg(long)]
        memory: Option<MemoryBudget>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Measure the spectra of the linear layers: how heavy their tails are.
    Diagnose(DiagnoseArgs),
    /// Show, tensor by tensor, what changed between two models.
    Diff {
        /// The model before.
        before: String,
        /// The model after.
        after: String,
        /// Show equal tensors too.
        #[arg(long)]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Find out how many bits the KV cache of each layer needs (KVTuner).
    KvTune(KvTuneArgs),
    /// Measure perplexity on a text, and the divergence from a baseline.
    Eval(EvalArgs),
}

/// What `eval` measures, and on what.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// The model.
    pub(crate) model: String,
    /// A text file, or a .npy of token-id windows.
    #[arg(long)]
    pub(crate) text: PathBuf,
    /// Tokens of a window; a .npy brings its own.
    #[arg(long, default_value_t = 512)]
    pub(crate) seqlen: usize,
    /// Use only the first windows.
    #[arg(long)]
    pub(crate) windows: Option<usize>,
    /// The dense model, for the KL divergence.
    #[arg(long, conflicts_with = "kv")]
    pub(crate) baseline: Option<String>,
    /// Predict the last quarter of each window through a KV cache of this configuration, beside
    /// one in full precision: a file of `kv-tune`, or one in YAML of the KVTuner repository.
    #[arg(long)]
    pub(crate) kv: Option<PathBuf>,
    /// Round the inputs of all linear layers to 8 bits in blocks of so many values, as programs
    /// do that multiply integers; llama.cpp takes 32.
    #[arg(long, conflicts_with = "kv")]
    pub(crate) input_block: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is to be done: a recipe file, or flags that stand for a recipe of one rule.
#[derive(Debug, Args)]
pub(crate) struct RecipeArgs {
    /// A recipe in YAML, in place of flags.
    #[arg(long)]
    pub(crate) recipe: Option<PathBuf>,
    /// The method: magnitude, wanda, ria, sparsegpt, alps, armor and others prune; lpvit prunes
    /// blocks of vision transformers; rtn, gptq, awq, hqq, ggml and others quantise; a wrong name
    /// lists all.
    #[arg(long, required_unless_present = "recipe", conflicts_with = "recipe")]
    pub(crate) method: Option<String>,
    /// How the budget is divided over layers: uniform, erk, owl, farms, alphapruning, ecoflap, curve
    /// and others for sparsity; lpvit, lpvit-hull and uniform for the method lpvit; lim, zd, curve,
    /// knapsack and random for bits; a wrong name lists all.
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) allocate: Option<String>,
    /// From which all random numbers come.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, such as block=32")?;
    Ok((key.trim().into(), value.trim().into()))
}

/// Flags of pruners.
#[derive(Debug, Args, Default)]
pub(crate) struct PruneArgs {
    /// The fraction of weights to remove; fixed by N:M patterns. For lpvit, of the multiplications
    /// that an image takes.
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) sparsity: Option<f64>,
    /// unstructured, 2:4, "block 16x16" or channels.
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) pattern: Option<String>,
    /// What competes: row, layer or global.
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) scope: Option<String>,
    /// An option of the method: preset=paper, block=32. Can be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, conflicts_with = "recipe")]
    pub(crate) option: Vec<(String, String)>,
    /// What methods that fit weights fit the outputs of a layer to: own, its own before it was
    /// pruned, or dense, those of the dense model.
    #[arg(long, value_parser = ["own", "dense"], conflicts_with = "recipe")]
    pub(crate) targets: Option<String>,
}

/// Flags of quantizers.
#[derive(Debug, Args, Default)]
pub(crate) struct QuantArgs {
    /// Bits of a code; with --levels, on average and never more.
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) bits: Option<f64>,
    /// The widths among which each layer gets one: 4,2.
    #[arg(long, value_delimiter = ',', conflicts_with = "recipe")]
    pub(crate) levels: Vec<u8>,
    /// Consecutive input channels that share a scale, or `channel` or `tensor`; 128 unless the
    /// output is GGUF, which has 32.
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) group: Option<String>,
    /// Where zero lies: sym, asym or float. By default float for hqq, sym for
    /// compressed-tensors, gptq-v1 and GGUF, else asym.
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) zero: Option<String>,
    /// How scales are stored: f16, bf16 or f32.
    #[arg(long, default_value = "f16", conflicts_with = "recipe")]
    pub(crate) scales: String,
    /// The whole scheme in place of the flags above: "nf4 flat64 double", "int4 g64 asym bf16",
    /// nvfp4, mxfp4.
    #[arg(long, conflicts_with_all = ["recipe", "bits", "levels", "group", "zero"])]
    pub(crate) scheme: Option<String>,
    /// The GGUF type for the method ggml: q4_0, q8_0, q4_k, q6_k and others.
    #[arg(long = "type", conflicts_with_all = ["recipe", "bits", "levels", "group", "zero", "scheme"])]
    pub(crate) kind: Option<String>,
    /// Whether weights that are zero stay zero; they do by default where the manifest of the model
    /// says that it was pruned.
    #[arg(long, conflicts_with_all = ["recipe", "kind"])]
    pub(crate) keep_zeros: Option<bool>,
    /// dense, compressed-tensors, gptq, gptq-p, gptq-v1, awq or gguf.
    #[arg(long)]
    pub(crate) format: Option<String>,
    /// The GGUF type of embeddings and output matrix; llama.cpp's own choice by default.
    #[arg(long)]
    pub(crate) embeddings: Option<String>,
}

/// Where and how a model is written.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// The directory to write, or the .gguf file.
    pub(crate) out: PathBuf,
    /// Bytes of a shard of the output.
    #[arg(long, default_value_t = 5_000_000_000)]
    pub(crate) shard_size: u64,
    /// Replace an existing output, and throw away what an interrupted run left.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Go on with an interrupted run of the same command.
    #[arg(long)]
    pub(crate) resume: bool,
    /// The most memory that the run may take: 2GiB, 800MB.
    #[arg(long)]
    pub(crate) memory: Option<MemoryBudget>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The data that calibrated methods run the model on.
#[derive(Debug, Args)]
pub(crate) struct CalibrationArgs {
    /// A text file, a .npy of token-id windows or, for lpvit, a .safetensors file of images: a
    /// tensor `images` or `pixel_values` of (batch, channels, height, width), normalised.
    #[arg(long)]
    pub(crate) calibration: Option<PathBuf>,
    /// Windows to use: drawn by the seed from a text, the first ones of a .npy. At most as many
    /// images, the first ones.
    #[arg(long, default_value_t = 128)]
    pub(crate) samples: usize,
    /// Tokens of a window; a .npy brings its own.
    #[arg(long, default_value_t = 512)]
    pub(crate) seqlen: usize,
}

/// How spectra are measured.
#[derive(Debug, Args)]
pub(crate) struct DiagnoseArgs {
    /// A Hugging Face directory, a .safetensors or .gguf file, or an org/model name.
    pub(crate) model: String,
    /// The whole weight, or windows of one aspect ratio.
    #[arg(long, value_enum, default_value_t = SpectralMethod::Weightwatcher)]
    pub(crate) method: SpectralMethod,
    /// Rows of a window of farms, clamped to the weight.
    #[arg(long, default_value_t = 128)]
    pub(crate) window: usize,
    /// Rows of a window of farms over its columns.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) aspect: f64,
    /// Windows of farms along each side; as many as cover it by default.
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Compute what the released code computes, where that differs.
    #[arg(long)]
    pub(crate) released: bool,
    /// Compare with the spectrum of the shuffled weight.
    #[arg(long)]
    pub(crate) randomise: bool,
    /// Bootstrap replicates for an interval of alpha; 0 for none.
    #[arg(long, default_value_t = 0)]
    pub(crate) interval: usize,
    /// Seed of shuffles and replicates.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Draw alpha by depth and each layer's density into this directory.
    #[arg(long)]
    pub(crate) plot: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What spectra are taken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SpectralMethod {
    /// The whole weight, with WeightWatcher's metrics.
    Weightwatcher,
    /// Windows of one aspect ratio (FARMS).
    Farms,
}

/// How the bits of a KV cache are tuned.
#[derive(Debug, Args)]
pub(crate) struct KvTuneArgs {
    /// A Hugging Face directory, dense or quantised, or a .gguf file, of a Llama-family model.
    pub(crate) model: String,
    /// A text file, or a .npy of token-id windows: its first windows are profiled, those after them
    /// judge.
    #[arg(long)]
    pub(crate) text: PathBuf,
    /// The file to write: the most accurate configuration within --max-bits.
    #[arg(short, long)]
    pub(crate) out: PathBuf,
    /// Where keys and values share scales.
    #[arg(long, value_enum, default_value_t = KvLayout::Kivi)]
    pub(crate) layout: KvLayout,
    /// Mean bits of a number that the configuration may have, scales not counted.
    #[arg(long, default_value_t = 4.0)]
    pub(crate) max_bits: f64,
    /// Configurations to measure.
    #[arg(long, default_value_t = 100)]
    pub(crate) evaluations: usize,
    /// Tokens of a window; a .npy brings its own.
    #[arg(long, default_value_t = 384)]
    pub(crate) seqlen: usize,
    /// Windows of the error profile.
    #[arg(long, default_value_t = 4)]
    pub(crate) profile: usize,
    /// Windows that judge a configuration, by their last quarter.
    #[arg(long, default_value_t = 8)]
    pub(crate) windows: usize,
    /// What makes one configuration better than another.
    #[arg(long, value_enum, default_value_t = JudgeArg::Divergence)]
    pub(crate) judge: JudgeArg,
    /// Windows after those, on which the configuration is measured at the end beside uniform ones.
    #[arg(long, default_value_t = 8)]
    pub(crate) check: usize,
    /// Seed of the search.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print everything that was measured as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a search for KV bits calls better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum JudgeArg {
    /// Predictions nearer to those in full precision.
    Divergence,
    /// Likelier text.
    Likelihood,
}

/// Where the scales of a KV cache are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvLayout {
    /// Keys by channel, values by token, groups of 32, the newest 32 tokens not quantised.
    Kivi,
    /// By token.
    PerToken,
}
