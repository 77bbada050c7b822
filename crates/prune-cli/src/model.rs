use std::path::{Path, PathBuf};

use prune_candle::{Tokenizer, Vit, load_model};
use prune_checkpoint::{ModelSource, open_model};
use prune_core::{BlockModel, ModelKind, Seed};
use prune_pipeline::{Calibration, Images, MemoryBudget, TokenWindows};

use crate::error::Error;

/// Opens a path or, with the feature `hub`, an `org/model` name.
pub(crate) fn open(model: &str) -> Result<Box<dyn ModelSource>, Error> {
    let path = PathBuf::from(model);
    if path.exists() {
        return Ok(open_model(&path)?);
    }
    #[cfg(feature = "hub")]
    if is_hub_name(model) {
        return Ok(open_model(&download(model)?)?);
    }
    Err(Error::Input { path, reason: "no such file or directory".into() })
}

#[cfg(feature = "hub")]
fn is_hub_name(model: &str) -> bool {
    let parts: Vec<&str> = model.split('/').collect();
    matches!(parts[..], [org, name] if !org.is_empty() && !name.is_empty())
        && !model.starts_with('.')
}

/// Downloads the weights, configuration and tokenizer of a Hub model into the shared cache.
#[cfg(feature = "hub")]
fn download(name: &str) -> Result<PathBuf, Error> {
    use hf_hub::api::sync::{ApiBuilder, ApiError};
    let failed = |source: ApiError| Error::Hub { name: name.into(), source: Box::new(source) };
    let repo = ApiBuilder::from_env().build().map_err(failed)?.model(name.into());
    let wanted = |file: &str| {
        !file.contains('/')
            && [".safetensors", ".json", ".txt", ".model", ".jinja"]
                .iter()
                .any(|end| file.ends_with(end))
    };
    let mut directory = None;
    for file in repo.info().map_err(failed)?.siblings {
        if wanted(&file.rfilename) {
            let path = repo.get(&file.rfilename).map_err(failed)?;
            directory = path.parent().map(Path::to_path_buf);
        }
    }
    directory.ok_or_else(|| Error::Input {
        path: name.into(),
        reason: "the repository has no safetensors files".into(),
    })
}

/// The model that a checkpoint holds.
pub(crate) fn load(checkpoint: &dyn ModelSource) -> Result<Box<dyn BlockModel>, Error> {
    Ok(load_model(&checkpoint.config()?, checkpoint)?)
}

/// What a run is calibrated on, and the model for it.
pub(crate) enum Data {
    /// Token windows, a block at a time.
    Tokens(Box<dyn BlockModel>, TokenWindows),
    /// Images, through the whole network.
    Images(Box<Vit>, Images),
}

impl Data {
    /// Windows of a text or `.npy` file.
    pub(crate) fn tokens(
        path: &Path,
        checkpoint: &dyn ModelSource,
        length: usize,
        wanted: &Wanted,
    ) -> Result<Self, Error> {
        let model = load(checkpoint)?;
        let windows = windows(path, checkpoint, &*model, length, wanted)?;
        Ok(Self::Tokens(model, windows))
    }

    /// The first `count` images of a `.safetensors` file, or all when there are fewer.
    pub(crate) fn images(
        path: &Path,
        checkpoint: &dyn ModelSource,
        count: usize,
    ) -> Result<Self, Error> {
        let vit = Vit::load(&checkpoint.config()?, checkpoint)?;
        Ok(Self::Images(Box::new(vit), Images::from_safetensors(path, Some(count))?))
    }

    pub(crate) fn calibration(&self, memory: MemoryBudget) -> Calibration<'_> {
        match self {
            Data::Tokens(model, windows) => Calibration::new(&**model, windows),
            Data::Images(model, images) => Calibration::on_images(&**model, images),
        }
        .memory(memory)
    }
}

/// Which windows of a text are wanted.
pub(crate) enum Wanted {
    /// The first ones, or all, in order.
    First(Option<usize>),
    /// A number of them, drawn by a seed.
    Drawn(usize, Seed),
}

/// Token windows of a `.npy` file, or of a text through the checkpoint's tokenizer.
pub(crate) fn windows(
    path: &Path,
    checkpoint: &dyn ModelSource,
    model: &dyn BlockModel,
    length: usize,
    wanted: &Wanted,
) -> Result<TokenWindows, Error> {
    if path.extension().is_some_and(|e| e == "npy") {
        let count = match wanted {
            Wanted::First(count) => *count,
            Wanted::Drawn(count, _) => Some(*count),
        };
        return Ok(TokenWindows::from_npy(path, count)?);
    }
    let invalid = |reason: String| Error::Input { path: path.into(), reason };
    let bytes = std::fs::read(path).map_err(|e| invalid(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|e| invalid(format!("is not UTF-8: {e}")))?;
    let json = checkpoint.tokenizer_json()?.ok_or_else(|| Error::Input {
        path: checkpoint.path().into(),
        reason: "has no tokenizer.json; give token ids as .npy instead of text".into(),
    })?;
    let tokenizer = Tokenizer::from_bytes(&json)?;
    tokenizer.check_fits(model.vocab_size())?;
    let tokens = tokenizer.encode(&text)?;
    let what = path.display().to_string();
    // An encoder reads a text between its special tokens, a decoder a piece of running text.
    let (before, after) = match model.kind() {
        ModelKind::Encoder => tokenizer.frame()?,
        ModelKind::Decoder => (Vec::new(), Vec::new()),
    };
    let length = length.saturating_sub(before.len() + after.len());
    let windows = match *wanted {
        Wanted::First(count) => TokenWindows::consecutive(&what, &tokens, length, count)?,
        Wanted::Drawn(count, seed) => TokenWindows::sampled(&what, &tokens, length, count, seed)?,
    };
    Ok(windows.framed(&before, &after))
}
