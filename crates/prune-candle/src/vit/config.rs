use prune_core::TensorSource;
use serde_json::Value;

use super::VitNaming;
use crate::{Error, Result};

/// The hyper-parameters of a ViT or DeiT.
///
/// What shapes tell is read from the checkpoint's tensors; `config.json` gives the rest: the
/// number of heads and the epsilon of the norms.
#[derive(Debug, Clone, PartialEq)]
pub struct VitConfig {
    /// Height and width of an image.
    pub image_size: usize,
    /// Height and width of a patch; divides the image.
    pub patch_size: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the multilayer perceptron.
    pub intermediate_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads; divides the width.
    pub heads: usize,
    /// Classes.
    pub classes: usize,
    /// Added to the variance in every norm.
    pub norm_eps: f64,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether there is a distillation token beside the class token.
    pub distilled: bool,
    /// How the tensors are called.
    pub naming: VitNaming,
}

impl VitConfig {
    /// The configuration of a checkpoint: transformers' `config.json` (`model_type` `vit` or
    /// `deit`) or timm's (`architecture`), with the checkpoint's tensors. timm's does not state the
    /// number of heads: unless there is a field `num_heads`, heads are 64 wide, as in every
    /// published ViT and DeiT.
    ///
    /// # Errors
    /// [`Error::Config`] naming a field that is missing or cannot be honoured (`model_type` for
    /// another model); [`Error::Core`] for a tensor that is missing or of another number of
    /// dimensions.
    pub fn read(json: &Value, weights: &dyn TensorSource) -> Result<Self> {
        let naming = naming(json, weights)?;
        let patches = dims::<4>(weights, &format!("{}.weight", naming.patches()))?;
        let [_, positions, hidden_size] = dims::<3>(weights, naming.positions())?;
        let has = |name: &str| weights.info(name).is_ok();
        let distilled = has(naming.distillation_token());
        let tokens = 1 + usize::from(distilled);
        let side = positions.saturating_sub(tokens).isqrt();
        if side * side + tokens != positions || side == 0 || patches[2] != patches[3] {
            return Err(field("image_size", positions, "a square of square patches"));
        }
        let layers = (0..).take_while(|i| has(&format!("{}.weight", naming.norms(*i)[0]))).count();
        let [first, second] = naming.heads();
        let head = if has(&format!("{}.weight", first.0)) { first.0 } else { second.0 };
        let [classes, _] = dims::<2>(weights, &format!("{head}.weight"))?;
        let inner = naming.layer(0, super::names::Role::Expand);
        let [intermediate_size, _] = dims::<2>(weights, &format!("{inner}.weight"))?;
        let query = naming.layer(0, naming.roles()[0]);
        let config = Self {
            image_size: side.saturating_mul(patches[2]),
            patch_size: patches[2],
            channels: patches[1],
            hidden_size,
            intermediate_size,
            layers,
            heads: heads(json, naming, hidden_size)?,
            classes,
            norm_eps: norm_eps(json, naming)?,
            qkv_bias: has(&format!("{query}.bias")),
            distilled,
            naming,
        };
        config.agree(json)?;
        Ok(config)
    }

    /// Patches of an image.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size.max(1)).pow(2)
    }

    /// Tokens of an image: its patches and the class token, and the distillation token if there is
    /// one.
    pub fn tokens(&self) -> usize {
        self.patches() + 1 + usize::from(self.distilled)
    }

    /// Refuses numbers of `config.json` that the tensors contradict.
    fn agree(&self, json: &Value) -> Result<()> {
        for (name, value) in [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("num_channels", self.channels),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.layers),
            ("num_classes", self.classes),
        ] {
            if let Some(stated) = json.get(name).and_then(Value::as_u64)
                && stated != value as u64
            {
                return Err(field(name, stated, format!("{value}, as the tensors have it")));
            }
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<()> {
        let bad = |name, found: usize, expected: &str| Err(field(name, found, expected));
        for (name, value) in [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("num_channels", self.channels),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_classes", self.classes),
        ] {
            // Sizes whose products could overflow are no model.
            if value == 0 || value > 1 << 20 {
                return bad(name, value, "between 1 and 2^20");
            }
        }
        if !self.image_size.is_multiple_of(self.patch_size) {
            return bad("patch_size", self.patch_size, "a divisor of image_size");
        }
        if !self.hidden_size.is_multiple_of(self.heads) {
            return bad("num_attention_heads", self.heads, "a divisor of hidden_size");
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return Err(field("layer_norm_eps", self.norm_eps, "finite and above 0"));
        }
        Ok(())
    }
}

fn naming(json: &Value, weights: &dyn TensorSource) -> Result<VitNaming> {
    let text = |name: &str| json.get(name).and_then(Value::as_str);
    match (text("model_type"), text("architecture")) {
        (Some("vit"), _) => Ok(VitNaming::Vit),
        (Some("deit"), _) => Ok(VitNaming::Deit),
        (None, Some(_)) if weights.info(VitNaming::Timm.class_token()).is_ok() => {
            Ok(VitNaming::Timm)
        }
        (found, architecture) => Err(field(
            "model_type",
            found.or(architecture).unwrap_or("missing"),
            "`vit` or `deit`, or none and timm's `architecture` over timm's tensors",
        )),
    }
}

fn heads(json: &Value, naming: VitNaming, width: usize) -> Result<usize> {
    let stated = |name: &str| json.get(name).and_then(Value::as_u64).map(|n| n as usize);
    match naming {
        VitNaming::Timm => match stated("num_heads") {
            Some(heads) => Ok(heads),
            None if width.is_multiple_of(64) => Ok(width / 64),
            None => Err(field("num_heads", "missing", "the number of attention heads")),
        },
        VitNaming::Vit | VitNaming::Deit => {
            if let Some(act) = json.get("hidden_act").and_then(Value::as_str)
                && act != "gelu"
            {
                return Err(field("hidden_act", act, "gelu"));
            }
            stated("num_attention_heads")
                .ok_or_else(|| field("num_attention_heads", "missing", "a number"))
        }
    }
}

fn norm_eps(json: &Value, naming: VitNaming) -> Result<f64> {
    match (json.get("layer_norm_eps"), naming) {
        (Some(eps), _) => {
            eps.as_f64().ok_or_else(|| field("layer_norm_eps", eps, "a number above 0"))
        }
        (None, VitNaming::Timm) => Ok(1e-6),
        (None, _) => Ok(1e-12),
    }
}

fn field(field: &'static str, found: impl std::fmt::Display, expected: impl Into<String>) -> Error {
    Error::Config { field, found: found.to_string(), expected: expected.into() }
}

/// The shape of a tensor of `N` dimensions.
fn dims<const N: usize>(weights: &dyn TensorSource, name: &str) -> Result<[usize; N]> {
    let shape = &weights.info(name)?.shape;
    <[usize; N]>::try_from(shape.as_slice()).map_err(|_| {
        Error::Core(prune_core::Error::Shape {
            what: format!("{name} (number of dimensions)"),
            found: vec![shape.len()],
            expected: vec![N],
        })
    })
}
