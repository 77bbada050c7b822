use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array2, ArrayView2};
use prune_core::{
    ColumnStats, GramAccumulator, LayerId, LayerInfo, LayerStats, QuantScheme, Quantizer,
    TensorSource,
};
use prune_quant::{Awq, Clip, Rtn, ScaleSearch, smooth_scales};

use crate::calibrate::Observed;
use crate::{Error, Result};

/// Methods that scale input channels: what is multiplied into a layer is divided out of the layer
/// before, where the format has no place for it.
pub(crate) fn scales_channels(method: &str) -> bool {
    matches!(method, "awq" | "smoothquant")
}

/// SmoothQuant's α.
const ALPHA: f64 = 0.5;

/// The tensor whose outputs are the input channels of a layer, as far as names tell: a norm, or the
/// rows of the linear layer before a product by channel.
fn producer(layer: &LayerId) -> Option<String> {
    let name = layer.as_str();
    let before = |role: &str, other: &str| {
        name.strip_suffix(role).map(|prefix| format!("{prefix}{other}.weight"))
    };
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        .iter()
        .find_map(|role| before(role, "input_layernorm"))
        .or_else(|| before("mlp.gate_proj", "post_attention_layernorm"))
        .or_else(|| before("mlp.up_proj", "post_attention_layernorm"))
        .or_else(|| before("mlp.down_proj", "mlp.up_proj"))
}

/// The norms that take the scales of planned layers.
///
/// # Errors
/// [`Error::Plan`] when some of the layers that share an input are not among `layers`, or when a
/// bias would have to be scaled too.
pub(crate) fn folded_norms(
    source: &dyn TensorSource,
    layers: &[LayerInfo],
) -> Result<BTreeSet<String>> {
    let mut norms = BTreeSet::new();
    for layer in layers {
        let Some(tensor) = producer(&layer.id) else { continue };
        let info = source.info(&tensor)?;
        let bias = format!("{}.bias", tensor.trim_end_matches(".weight"));
        if source.info(&bias).is_ok() {
            let reason = "has a bias, into which scales of channels are not folded; use the \
                          format dense";
            return Err(Error::plan(tensor, reason));
        }
        let sharing = linear_sharing(source, &layer.id);
        if let Some(other) = sharing.iter().find(|id| layers.iter().all(|l| l.id != **id)) {
            let reason = format!("shares its input with {other}; the same rule must cover both");
            return Err(Error::plan(layer.id.weight_name(), reason));
        }
        if info.shape.len() == 1 {
            norms.insert(tensor);
        }
    }
    Ok(norms)
}

/// The layers of the source with the same producer.
fn linear_sharing(source: &dyn TensorSource, layer: &LayerId) -> Vec<LayerId> {
    let wanted = producer(layer);
    let all = crate::coverage::linear_layers(source).into_iter().map(|l| l.id);
    all.filter(|id| producer(id) == wanted).collect()
}

/// The scales of one block.
#[derive(Default)]
pub(crate) struct Folding {
    /// What the columns of a layer are multiplied by.
    pub(crate) columns: BTreeMap<LayerId, Vec<f32>>,
    /// What the rows of a tensor, or the elements of a norm, are divided by.
    pub(crate) rows: BTreeMap<String, Vec<f32>>,
}

/// A layer of the block with what is planned for it.
pub(crate) struct Planned<'a> {
    pub(crate) layer: LayerId,
    pub(crate) method: &'a str,
    pub(crate) scheme: QuantScheme,
}

impl Folding {
    /// The scales of the layers that share an input, for each such input of the block.
    pub(crate) fn find(
        source: &dyn TensorSource,
        planned: &[Planned<'_>],
        seen: &[Observed],
    ) -> Result<Self> {
        let mut folding = Self::default();
        for observed in seen {
            let here: Vec<&Planned<'_>> =
                planned.iter().filter(|p| observed.layers.contains(&p.layer)).collect();
            let Some(first) = here.first().filter(|p| scales_channels(p.method)) else { continue };
            let Some(tensor) = producer(&first.layer) else { continue };
            let weights: Vec<Array2<f32>> = here
                .iter()
                .map(|p| Ok(source.read_matrix(&p.layer.weight_name())?))
                .collect::<Result<_>>()?;
            let views: Vec<ArrayView2<'_, f32>> = weights.iter().map(|w| w.view()).collect();
            let scales = match first.method {
                "awq" => {
                    let search = ScaleSearch::default();
                    let found = search.find(&first.layer, &views, &observed.stats, first.scheme)?;
                    if found.ratio.is_none() {
                        continue;
                    }
                    found.scales
                }
                method => {
                    let columns = observed.stats.require_columns(&first.layer, method)?;
                    smooth_scales(&first.layer, &views, columns, ALPHA)?
                }
            };
            for p in here {
                folding.columns.insert(p.layer.clone(), scales.clone());
            }
            folding.rows.insert(tensor, scales);
        }
        Ok(folding)
    }
}

/// What quantises a layer whose scales are folded: the method without a search of its own.
pub(crate) fn without_scales(method: &str, layer: &LayerId) -> Box<dyn Quantizer> {
    if method != "awq" {
        return Box::<Rtn>::default();
    }
    // With one step only the identity is tried. Queries and keys are not clipped, as in AutoAWQ:
    // their product is what counts.
    let clips = !layer.as_str().ends_with("q_proj") && !layer.as_str().ends_with("k_proj");
    Box::new(Awq {
        search: ScaleSearch { steps: 1, ..ScaleSearch::default() },
        clip: if clips { Clip::Search } else { Clip::Never },
    })
}

/// Multiplies columns and divides rows.
pub(crate) fn scale(weight: &mut Array2<f32>, columns: Option<&[f32]>, rows: Option<&[f32]>) {
    for (r, mut row) in weight.outer_iter_mut().enumerate() {
        if let Some(rows) = rows {
            row /= rows[r % rows.len().max(1)];
        }
        if let Some(columns) = columns {
            row.iter_mut().zip(columns).for_each(|(w, s)| *w *= s);
        }
    }
}

/// The statistics of inputs divided by `scales`.
pub(crate) fn scaled_stats(stats: &LayerStats, scales: &[f32]) -> Result<LayerStats> {
    let by = |values: &[f64], power: i32| -> Vec<f64> {
        values.iter().zip(scales).map(|(v, s)| v / f64::from(*s).powi(power)).collect()
    };
    let columns = match &stats.columns {
        None => None,
        Some(c) => Some(ColumnStats::from_parts(
            c.count(),
            by(c.mean(), 1),
            by(c.m2(), 2),
            by(c.squared_norm(), 2),
            by(c.abs_sum(), 1),
            by(c.abs_max(), 1),
        )?),
    };
    let gram = match &stats.gram {
        None => None,
        Some(gram) => {
            let mut matrix = gram.matrix().to_owned();
            for ((i, j), g) in matrix.indexed_iter_mut() {
                // Symmetric to the bit: the product of the scales first.
                *g /= f64::from(scales[i]) * f64::from(scales[j]);
            }
            Some(GramAccumulator::from_parts(gram.count(), matrix)?)
        }
    };
    Ok(LayerStats { columns, gram, ..LayerStats::default() })
}
