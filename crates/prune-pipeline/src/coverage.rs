use std::collections::{BTreeMap, BTreeSet};

use prune_core::{LayerId, LayerInfo, LayerKind, Needs, TensorInfo, TensorSource, block_of};

use crate::calibrate::{TokenCalibration, forward, observe};
use crate::recipe::{LayerMatcher, Recipe};
use crate::schedule::measuring;
use crate::{Error, Result};

/// The linear layers of a checkpoint's blocks, by name and shape alone: every float matrix
/// `*.weight` whose name has a block index. Embeddings, norms and the output matrix have none.
pub fn linear_layers(source: &dyn TensorSource) -> Vec<LayerInfo> {
    let is_linear = |t: &&TensorInfo| t.dtype.is_float() && t.name.ends_with(".weight");
    source
        .tensors()
        .iter()
        .filter(is_linear)
        .filter_map(|t| {
            let (rows, cols) = t.matrix_shape().ok()?;
            let layer = LayerInfo::linear(t.name.strip_suffix(".weight")?, rows, cols);
            layer.block.is_some().then_some(layer)
        })
        .collect()
}

/// Float tensors of three dimensions in a block: the weights of several experts in one, as far as
/// names and shapes tell.
fn fused_experts(source: &dyn TensorSource) -> Vec<LayerInfo> {
    source
        .tensors()
        .iter()
        .filter(|t| t.dtype.is_float() && t.shape.len() == 3 && block_of(&t.name).is_some())
        .map(|t| {
            let name = t.name.strip_suffix(".weight").unwrap_or(&t.name);
            LayerInfo::from_name(name, LayerKind::Linear, t.shape.clone())
        })
        .collect()
}

/// The linear layers that each rule decides, by the number of the rule from 0: the last match wins.
///
/// # Errors
/// [`Error::NoMatch`] for a rule that matches nothing; [`Error::Uncovered`] for a layer that no
/// rule matches; [`Error::FusedExperts`] for a tensor that only looks as if it could be left alone.
pub(crate) fn claim(
    recipe: &Recipe,
    source: &dyn TensorSource,
) -> Result<BTreeMap<usize, Vec<LayerInfo>>> {
    let mut layers = linear_layers(source);
    let linear = layers.len();
    layers.extend(fused_experts(source));
    let mut winner = vec![None; layers.len()];
    for (r, rule) in recipe.rules.iter().enumerate() {
        let matcher = LayerMatcher::new(&rule.layers)
            .map_err(|e| Error::recipe(format!("rule {}, layers", r + 1), e))?;
        let mut matched = false;
        for (layer, winner) in layers.iter().zip(&mut winner) {
            if matcher.matches(layer.id.as_str()) {
                *winner = Some(r);
                matched = true;
            }
        }
        if !matched {
            return Err(Error::NoMatch {
                rule: r + 1,
                pattern: rule.layers.clone(),
                layers: linear,
                example: layers.first().map_or("(none)".into(), |l| l.id.to_string()),
            });
        }
    }
    let is_skipped = |winner: &Option<usize>| winner.is_some_and(|r| recipe.rules[r].skip);
    for (layer, winner) in layers.iter().zip(&winner).skip(linear) {
        if !is_skipped(winner) {
            return Err(Error::FusedExperts {
                tensor: layer.id.to_string(),
                shape: layer.shape.clone(),
            });
        }
    }
    let mut uncovered = layers.iter().zip(&winner).filter(|(_, winner)| winner.is_none());
    if let Some((layer, _)) = uncovered.next() {
        let count = 1 + uncovered.count();
        return Err(Error::Uncovered { layer: layer.id.to_string(), count });
    }
    let mut claims: BTreeMap<usize, Vec<LayerInfo>> = BTreeMap::new();
    for (layer, winner) in layers.into_iter().zip(winner).take(linear) {
        if let Some(rule) = winner {
            claims.entry(rule).or_default().push(layer);
        }
    }
    Ok(claims)
}

/// Checks that every layer which is to be calibrated will see enough tokens. Where the model sends
/// tokens to some layers only, the dense model is run once to count them.
///
/// # Errors
/// [`Error::NotObserved`] for a layer that the model does not run; [`Error::TooShort`];
/// [`Error::Starved`].
pub(crate) fn check_calibration(
    source: &dyn TensorSource,
    calibration: &TokenCalibration<'_>,
    layers: &BTreeMap<LayerId, String>,
    min_tokens: u64,
) -> Result<()> {
    let model = calibration.model;
    let known: BTreeSet<&LayerId> = model.layers().iter().map(|l| &l.id).collect();
    if let Some((layer, method)) = layers.iter().find(|(id, _)| !known.contains(id)) {
        return Err(Error::NotObserved { layer: layer.to_string(), method: method.clone() });
    }
    let found = calibration.samples() * calibration.windows.length();
    if (found as u64) < min_tokens {
        let (what, needed) = ("the calibration data".to_string(), min_tokens as usize);
        return Err(Error::TooShort { what, found, needed });
    }
    if !model.is_routed() {
        return Ok(());
    }
    let (spills, at_once) = measuring(calibration, 0)?;
    let mut hidden = calibration.embed(source, spills)?;
    let go_on = || Ok(());
    for index in 0..model.blocks() {
        let block = model.load_block(source, index)?;
        let wanted: BTreeMap<LayerId, Needs> = model
            .layers()
            .iter()
            .filter(|l| l.block == Some(index) && layers.contains_key(&l.id))
            .map(|l| (l.id.clone(), Needs::Columns))
            .collect();
        let seen = observe(&*block, &hidden, None, &wanted, at_once, &go_on)?;
        for layer in wanted.keys() {
            let columns = seen.iter().find(|o| o.layers.contains(layer));
            let found = columns.and_then(|o| o.stats.columns.as_ref()).map_or(0, |c| c.count());
            if found < min_tokens {
                let layer = layer.to_string();
                return Err(Error::Starved { layer, found, needed: min_tokens });
            }
        }
        if index + 1 < model.blocks() {
            forward(&*block, &mut hidden, at_once, &go_on)?;
        }
    }
    Ok(())
}
