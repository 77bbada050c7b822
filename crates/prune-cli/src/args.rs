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
    /// Show what `compress` would do, without writing anything.
    Plan {
        /// The model to compress.
        model: String,
        #[command(flatten)]
        recipe: RecipeArgs,
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
        /// The directory to write.
        out: PathBuf,
        #[command(flatten)]
        recipe: RecipeArgs,
        #[command(flatten)]
        calibration: CalibrationArgs,
        /// Bytes of a shard of the output.
        #[arg(long, default_value_t = 5_000_000_000)]
        shard_size: u64,
        /// Replace an existing output, and throw away what an interrupted run left.
        #[arg(long)]
        overwrite: bool,
        /// Go on with an interrupted run of the same command.
        #[arg(long)]
        resume: bool,
        /// The most memory that the run may take: 2GiB, 800MB.
        #[arg(long)]
        memory: Option<MemoryBudget>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check a compressed model on disk against its manifest.
    Verify {
        /// The directory that `compress` wrote.
        directory: PathBuf,
        /// Run the recipe again on `--source` and compare every tensor.
        #[arg(long, requires = "source")]
        rederive: bool,
        /// The model that was compressed.
        #[arg(long)]
        source: Option<String>,
        /// The text or .npy that the run was calibrated on.
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
    /// Measure perplexity on a text, and the divergence from a baseline.
    Eval {
        /// The model.
        model: String,
        /// A text file, or a .npy of token-id windows.
        #[arg(long)]
        text: PathBuf,
        /// Tokens of a window; a .npy brings its own.
        #[arg(long, default_value_t = 512)]
        seqlen: usize,
        /// Use only the first windows.
        #[arg(long)]
        windows: Option<usize>,
        /// The dense model, for the KL divergence.
        #[arg(long)]
        baseline: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What is to be done: a recipe file, or flags that stand for a recipe of one rule.
#[derive(Debug, Args)]
pub(crate) struct RecipeArgs {
    /// A recipe in YAML, in place of the flags below.
    #[arg(long, conflicts_with_all = [
        "method", "sparsity", "pattern", "scope", "allocate", "option", "targets",
    ])]
    pub(crate) recipe: Option<PathBuf>,
    /// The method: magnitude, wanda, ria, sparsegpt, alps, armor and others; a wrong name lists all.
    #[arg(long, required_unless_present = "recipe")]
    pub(crate) method: Option<String>,
    /// An option of the method: preset=paper, block=32. Can be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) option: Vec<(String, String)>,
    /// The fraction of weights to remove; fixed by N:M patterns.
    #[arg(long)]
    pub(crate) sparsity: Option<f64>,
    /// unstructured, 2:4, "block 16x16" or channels.
    #[arg(long)]
    pub(crate) pattern: Option<String>,
    /// What competes: row, layer or global.
    #[arg(long)]
    pub(crate) scope: Option<String>,
    /// How the budget is divided over layers: uniform, erk, owl, farms, alphapruning, ecoflap, curve
    /// and others; a wrong name lists all.
    #[arg(long)]
    pub(crate) allocate: Option<String>,
    /// What methods that fit weights fit the outputs of a layer to: own, its own before it was
    /// pruned, or dense, those of the dense model.
    #[arg(long, value_parser = ["own", "dense"])]
    pub(crate) targets: Option<String>,
    /// From which all random numbers come.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, such as block=32")?;
    Ok((key.trim().into(), value.trim().into()))
}

/// The text that calibrated methods run the model on.
#[derive(Debug, Args)]
pub(crate) struct CalibrationArgs {
    /// A text file, or a .npy of token-id windows.
    #[arg(long)]
    pub(crate) calibration: Option<PathBuf>,
    /// Windows to use: drawn by the seed from a text, the first ones of a .npy.
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
