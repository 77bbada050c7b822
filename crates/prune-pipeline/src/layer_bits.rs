use std::collections::BTreeMap;

use ndarray::{Array2, s};
use prune_allocate::{Choice, CostAllocator, ShareGroup, Solver};
use prune_checkpoint::GgufType;
use prune_core::{
    LayerId, LayerInfo, LayerStats, Mask, Needs, QuantTarget, TensorSource, ZeroPoint,
};
use prune_importance::{HiddenChange, LimOver, Tail, ZScoreDistribution};
use rayon::prelude::*;

use crate::calibrate::TokenCalibration;
use crate::measure::each_block;
use crate::output_error::output_error;
use crate::plan_quantized::{GGML, Work, quantizer};
use crate::quantize::rows_of;
use crate::schedule::measuring;
use crate::{Error, Result};

/// How bits are divided over layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// By what each block does to the hidden states.
    Lim(LimOver),
    /// By how many weights of each block are far above the mean.
    Zd,
    /// Blocks in a random order.
    Random,
    /// By the measured error of each layer at each width.
    Measured(Solver),
}

const METHODS: [(&str, Method); 6] = [
    ("lim", Method::Lim(LimOver::Tokens)),
    ("lim-all", Method::Lim(LimOver::Everything)),
    ("zd", Method::Zd),
    ("random", Method::Random),
    ("curve", Method::Measured(Solver::Lagrangian)),
    ("knapsack", Method::Measured(Solver::Exact)),
];

/// The bits of each layer of a rule with levels; on average over its weights never more than the
/// rule's `bits`.
pub(crate) fn layer_bits(work: &Work<'_>, layers: &[LayerInfo]) -> Result<Vec<Option<u8>>> {
    let name = work.rule.allocate.as_deref().ok_or_else(|| {
        work.refuse("allocate", "is missing: it says how bits are divided among `levels`")
    })?;
    let method = METHODS.iter().find(|(n, _)| *n == name).map(|(_, m)| *m).ok_or_else(|| {
        let known: Vec<&str> = METHODS.iter().map(|(n, _)| *n).collect();
        let known = known.join(", ");
        work.refuse("allocate", format!("`{name}` is unknown; bits are divided by {known}"))
    })?;
    let target = work.rule.bits.ok_or_else(|| work.refuse("bits", "are missing"))?;
    let levels = levels(work, target)?;
    let bits = match method {
        Method::Measured(solver) => measured_bits(work, layers, &levels, target, solver)?,
        _ => {
            let blocks = Blocks::of(layers)?;
            let order = match method {
                Method::Lim(over) => most_first(&lim(work, &blocks, over)?),
                Method::Zd => {
                    let scores = z_scores(work.source, &blocks)?;
                    most_first(&scores.iter().map(|z| -z).collect::<Vec<_>>())
                }
                _ => shuffled(work, blocks.0.len()),
            };
            let sizes: Vec<usize> = blocks.0.iter().map(|b| b.weights).collect();
            let of_block = ranked_bits(&order, &sizes, &levels, target);
            let mut bits = vec![0; layers.len()];
            for (block, width) in blocks.0.iter().zip(of_block) {
                for layer in &block.layers {
                    bits[*layer] = width;
                }
            }
            bits
        }
    };
    Ok(bits.into_iter().map(Some).collect())
}

/// The levels, widest first.
fn levels(work: &Work<'_>, target: f64) -> Result<Vec<u8>> {
    let mut levels = work.rule.levels.clone();
    levels.sort_unstable_by(|a, b| b.cmp(a));
    levels.dedup();
    if levels.len() < 2 || levels.iter().any(|l| !(2..=8).contains(l)) {
        let reason = format!("are {:?}; two or more different widths of 2 to 8", work.rule.levels);
        return Err(work.refuse("levels", reason));
    }
    let least = levels.last().copied().unwrap_or(0);
    if target.is_nan() || target < f64::from(least) {
        let reason = format!("are {target} on average; the lowest level is {least}");
        return Err(work.refuse("bits", reason));
    }
    Ok(levels)
}

/// The layers of one block, by their places in a list.
struct Block {
    index: usize,
    layers: Vec<usize>,
    ids: Vec<LayerId>,
    weights: usize,
}

struct Blocks(Vec<Block>);

impl Blocks {
    fn of(layers: &[LayerInfo]) -> Result<Self> {
        let mut blocks: BTreeMap<usize, Block> = BTreeMap::new();
        for (i, layer) in layers.iter().enumerate() {
            let index = layer
                .block
                .ok_or_else(|| Error::plan(layer.id.to_string(), "stands in no block"))?;
            let block = blocks.entry(index).or_insert_with(|| Block {
                index,
                layers: Vec::new(),
                ids: Vec::new(),
                weights: 0,
            });
            block.layers.push(i);
            block.ids.push(layer.id.clone());
            block.weights += layer.numel();
        }
        Ok(Self(blocks.into_values().collect()))
    }
}

/// Indices by falling score; of equals the lower index first.
fn most_first(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}

fn shuffled(work: &Work<'_>, count: usize) -> Vec<usize> {
    let mut stream = work.seed.stream("random bits");
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i, stream.below(i as u64 + 1) as usize);
    }
    order
}

/// The width of each block: all start at the widest level; from the least important on they go down
/// a level, until the average is at most `target`. Only when all have reached a level does the next
/// lower one begin.
fn ranked_bits(order: &[usize], sizes: &[usize], levels: &[u8], target: f64) -> Vec<u8> {
    let all: u128 = sizes.iter().map(|n| *n as u128).sum();
    let most = target * all as f64;
    let widest = levels.first().copied().unwrap_or(0);
    let mut bits = vec![widest; sizes.len()];
    let mut sum = u128::from(widest) * all;
    for pair in levels.windows(2) {
        for block in order.iter().rev() {
            // What is lost to rounding must not cost a block its level.
            if sum as f64 <= most * (1.0 + 1e-12) {
                return bits;
            }
            bits[*block] = pair[1];
            sum -= u128::from(pair[0] - pair[1]) * sizes[*block] as u128;
        }
    }
    bits
}

/// LIM of every block, on the dense model.
fn lim(work: &Work<'_>, blocks: &Blocks, over: LimOver) -> Result<Vec<f64>> {
    let calibration =
        work.calibration.ok_or_else(|| Error::NeedsCalibration { what: "LIM".into() })?;
    let of_block = hidden_changes(work.source, calibration.tokens("LIM")?)?;
    let score = |block: &Block| match of_block.get(block.index) {
        Some(change) => Ok(change.lim(over)?),
        None => Err(Error::plan("plan", format!("the model has no block {}", block.index))),
    };
    blocks.0.iter().map(score).collect()
}

fn hidden_changes(
    source: &dyn TensorSource,
    calibration: &TokenCalibration<'_>,
) -> Result<Vec<HiddenChange>> {
    let model = calibration.model;
    let (spills, at_once) = measuring(calibration, 0)?;
    let mut hidden = calibration.embed(source, spills)?;
    let mut changes = Vec::with_capacity(model.blocks());
    for index in 0..model.blocks() {
        let block = model.load_block(source, index)?;
        let mut change = HiddenChange::new();
        for first in (0..hidden.samples()).step_by(at_once.max(1)) {
            let last = (first + at_once.max(1)).min(hidden.samples());
            let parts: Vec<(Array2<f32>, HiddenChange)> = (first..last)
                .into_par_iter()
                .map(|i| {
                    let before = hidden.get(i)?;
                    let after = block.forward(before.view())?;
                    let mut change = HiddenChange::new();
                    change.update(&format!("block {index}"), before.view(), after.view())?;
                    Ok((after, change))
                })
                .collect::<Result<_>>()?;
            // Joined in the order of the samples.
            let (states, parts): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            parts.iter().for_each(|part| change.merge(part));
            hidden.replace(first, states)?;
        }
        changes.push(change);
    }
    Ok(changes)
}

/// ZD of every block.
fn z_scores(source: &dyn TensorSource, blocks: &Blocks) -> Result<Vec<f64>> {
    let score = |block: &Block| {
        let mut moments = ZScoreDistribution::new();
        for id in &block.ids {
            let name = id.weight_name();
            moments.observe(&name, source.read_matrix(&name)?.view())?;
        }
        let mut count = moments.second_pass(Tail::Upper);
        for id in &block.ids {
            let name = id.weight_name();
            count.observe(&name, source.read_matrix(&name)?.view())?;
        }
        Ok(count.share()?)
    };
    blocks.0.par_iter().map(score).collect()
}

/// The widths that lose least by the error of each layer when it alone is quantised, by the rule's
/// own method and on the dense model; without calibration, of the weights themselves.
fn measured_bits(
    work: &Work<'_>,
    layers: &[LayerInfo],
    levels: &[u8],
    target: f64,
    solver: Solver,
) -> Result<Vec<u8>> {
    let mut groups: BTreeMap<LayerId, ShareGroup<u8>> = BTreeMap::new();
    match work.calibration {
        None => {
            let none = LayerStats::default();
            let measured: Vec<_> = layers
                .par_iter()
                .map(|l| Ok((l.id.clone(), error_curve(work, l, &none, levels)?)))
                .collect::<Result<_>>()?;
            groups.extend(measured);
        }
        Some(calibration) => {
            let method = work.rule.method.as_deref().unwrap_or_default();
            let needs = if method == GGML { Needs::Columns } else { quantizer(method)?.needs() };
            let calibration = calibration.tokens("measured error curves")?;
            each_block(work.source, calibration, needs, &mut |_, stats| {
                for layer in layers.iter().filter(|l| stats.contains_key(&l.id)) {
                    let curve = error_curve(work, layer, &stats[&layer.id], levels)?;
                    groups.insert(layer.id.clone(), curve);
                }
                Ok(())
            })?;
        }
    }
    let ordered: Vec<ShareGroup<u8>> = layers
        .iter()
        .map(|l| {
            groups.remove(&l.id).ok_or_else(|| Error::NotObserved {
                layer: l.id.to_string(),
                method: work.rule.allocate.clone().unwrap_or_default(),
            })
        })
        .collect::<Result<_>>()?;
    let all: u64 = layers.iter().map(|l| l.numel() as u64).sum();
    let limit = (target * all as f64 * (1.0 + 1e-12)).floor() as u64;
    let chosen = CostAllocator::new(solver).allocate(&ordered, limit)?;
    let bits = |l: &LayerInfo| chosen.get(&l.id).copied().unwrap_or(0);
    Ok(layers.iter().map(bits).collect())
}

fn error_curve(
    work: &Work<'_>,
    layer: &LayerInfo,
    stats: &LayerStats,
    levels: &[u8],
) -> Result<ShareGroup<u8>> {
    let name = layer.id.weight_name();
    let weight = work.source.read_matrix(&name)?;
    let before =
        |first: usize, count: usize| Ok(weight.slice(s![first..first + count, ..]).to_owned());
    let mut choices = Vec::with_capacity(levels.len());
    for bits in levels {
        let error = if work.rule.method.as_deref() == Some(GGML) {
            let kind = work.kind(Some(*bits))?.fitting(weight.ncols());
            let GgufType::Blocks(block) = kind else {
                return Err(work.refuse("levels", format!("{kind} does not quantise")));
            };
            let values = weight.as_slice().unwrap_or_default();
            let values = block.decode(&name, &block.encode(&name, values)?)?;
            let after =
                Array2::from_shape_vec(weight.dim(), values).map_err(|e| Error::plan(&name, e))?;
            let rows =
                |first: usize, count: usize| after.slice(s![first..first + count, ..]).to_owned();
            output_error(&before, &rows, weight.dim(), stats)?
        } else {
            let scheme = work.scheme(Some(*bits))?;
            let mask = (work.rule.keep_zeros == Some(true) && scheme.zero != ZeroPoint::Float)
                .then(|| Mask::of_nonzeros(weight.view()));
            let target = QuantTarget { layer: &layer.id, scheme, keep: mask.as_ref() };
            let method = work.rule.method.as_deref().unwrap_or_default();
            let done = quantizer(method)?.quantize(weight.view(), stats, &target)?;
            let rows = |first: usize, count: usize| rows_of(&done.matrix, first, count);
            output_error(&before, &rows, weight.dim(), stats)?
        };
        choices.push(Choice {
            share: *bits,
            cost: u64::from(*bits) * weight.len() as u64,
            loss: error.written * weight.len() as f64,
        });
    }
    Ok(ShareGroup::new(layer.id.clone(), choices)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_the_paper_gives_ten_layers_two_bits() {
        let order: Vec<usize> = (0..40).collect();
        let bits = ranked_bits(&order, &[7; 40], &[4, 2], 3.5);
        assert_eq!(bits, [vec![4; 30], vec![2; 10]].concat());
    }

    #[test]
    fn ranks_decide_and_ties_go_to_the_earlier_block() {
        // Scores of four blocks computed in Python from sin(0.5 l + 1.3 t + 0.7 d) + [d = 0] 0.3 l.
        let per_token = [-0.877133, -0.915580, -0.932496, -0.912842];
        assert_eq!(most_first(&per_token), [0, 3, 1, 2]);
        let flattened = [-0.874659, -0.909991, -0.926797, -0.931549];
        assert_eq!(most_first(&flattened), [0, 1, 2, 3]);
        assert_eq!(ranked_bits(&[0, 3, 1, 2], &[1; 4], &[4, 2], 3.5), [4, 4, 2, 4]);
        assert_eq!(ranked_bits(&[0, 3, 1, 2], &[1; 4], &[4, 2], 3.25), [4, 2, 2, 4]);
        assert_eq!(most_first(&[1.0, 1.0, 2.0]), [2, 0, 1]);
    }

    #[test]
    fn the_lower_level_begins_when_all_have_reached_the_one_above() {
        let order = [0, 1, 2, 3];
        assert_eq!(ranked_bits(&order, &[1; 4], &[8, 4, 2], 5.0), [8, 4, 4, 4]);
        assert_eq!(ranked_bits(&order, &[1; 4], &[8, 4, 2], 4.0), [4; 4]);
        assert_eq!(ranked_bits(&order, &[1; 4], &[8, 4, 2], 3.5), [4, 4, 4, 2]);
        assert_eq!(ranked_bits(&order, &[1; 4], &[8, 4, 2], 2.0), [2; 4]);
        assert_eq!(ranked_bits(&order, &[1; 4], &[8, 4, 2], 9.0), [8; 4]);
        assert_eq!(ranked_bits(&[0], &[5], &[4, 2], 3.9), [2]);
    }

    proptest! {
        #[test]
        fn the_average_is_never_above_the_target_and_close_to_it(
            sizes in proptest::collection::vec(1usize..1000, 1..20),
            target in 2.0f64..8.0,
            three in any::<bool>(),
        ) {
            let levels: &[u8] = if three { &[8, 4, 2] } else { &[8, 2] };
            let order: Vec<usize> = (0..sizes.len()).rev().collect();
            let bits = ranked_bits(&order, &sizes, levels, target);
            let all: usize = sizes.iter().sum();
            let sum: usize = sizes.iter().zip(&bits).map(|(n, b)| n * usize::from(*b)).sum();
            let largest = sizes.iter().max().copied().unwrap_or(0) as f64;
            prop_assert!(sum as f64 <= target * all as f64 * (1.0 + 1e-9));
            // Less than the next step down away, which at most the largest block takes.
            let step = levels.windows(2).map(|l| l[0] - l[1]).max().unwrap_or(0);
            prop_assert!(sum as f64 > target * all as f64 - f64::from(step) * largest - 1e-6);
            // A more important block never has fewer bits.
            prop_assert!(order.windows(2).all(|o| bits[o[0]] >= bits[o[1]]));
            // More bits on average, more bits for each block.
            let more = ranked_bits(&order, &sizes, levels, target + 0.5);
            prop_assert!(bits.iter().zip(&more).all(|(a, b)| a <= b));
        }
    }
}
