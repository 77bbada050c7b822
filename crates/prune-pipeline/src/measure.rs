use std::collections::BTreeMap;

use ndarray::ArrayView2;
use prune_allocate::{ErrorCurve, Measured, Saliency, ScoreKind};
use prune_core::{
    Budget, LayerId, LayerInfo, LayerStats, Needs, Pattern, Pruner, Scope, Seed, Target,
    TensorSource, round_to_pattern,
};
use prune_importance::{OutlierDistribution, Together, ZerothOrder};
use prune_spectral::{Farms, Spectrum, TailFit};
use rayon::prelude::*;

use crate::calibrate::{TokenCalibration, forward, observe};
use crate::output_error::output_error;
use crate::quantize::rows_in;
use crate::schedule::{measuring, statistics_bytes};
use crate::{Calibration, CalibrationLoss, Error, Result, Targets};

/// What an allocator wants measured, and what there is to measure it with.
pub(crate) struct Measurement<'a> {
    pub(crate) allocator: &'a str,
    pub(crate) pruner: &'a dyn Pruner,
    pub(crate) pattern: Pattern,
    pub(crate) scope: Scope,
    pub(crate) seed: Seed,
    pub(crate) calibration: Option<&'a Calibration<'a>>,
}

/// Rows and columns of the windows of FARMS: small enough to lie many times in the layers of models
/// that a CPU runs.
const FARMS_WINDOW: usize = 128;

/// Batches of calibration windows on which the loss is perturbed, one draw each, and windows of a
/// batch: what the released code of ECoFLaP uses.
const LOSS_BATCHES: usize = 4;
const LOSS_WINDOWS: usize = 8;

/// Sparsities at which error curves are measured.
const SPARSITIES: [f64; 11] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0];

impl Measurement<'_> {
    /// What `kind` says, of each layer.
    pub(crate) fn measure(
        &self,
        kind: ScoreKind,
        source: &dyn TensorSource,
        layers: &[LayerInfo],
        budget: &Budget,
    ) -> Result<Measured> {
        match kind {
            ScoreKind::Unused => Ok(Measured::Nothing),
            ScoreKind::OutlierDistribution => {
                let of_block = outlier_scores(source, self.tokens(self.calibration()?)?)?;
                let score = |layer: &LayerInfo| {
                    let score = layer.block.and_then(|b| of_block.get(b)).copied();
                    score.ok_or_else(|| self.not_observed(layer))
                };
                Ok(Measured::Scores(layers.iter().map(score).collect::<Result<_>>()?))
            }
            ScoreKind::Survivors(Saliency::Magnitude) => {
                let total = layers.iter().map(LayerInfo::numel).sum();
                let remove = budget.remove_total(total);
                let counts = prune_unstructured::global_magnitude_counts(source, layers, remove)?;
                let kept = layers.iter().zip(counts.removed).map(|(l, r)| (l.numel() - r) as f64);
                Ok(Measured::Scores(kept.collect()))
            }
            ScoreKind::ErrorCurve => self.error_curves(source, layers),
            ScoreKind::Alpha => exponents(source, layers, |weight| {
                Ok(TailFit::peak().fit(&Spectrum::of(weight)?)?.alpha)
            }),
            ScoreKind::WindowedAlpha => {
                let farms = Farms::new(FARMS_WINDOW, 1.0).map_err(|e| self.spectral(e))?;
                let farms = farms.fit(TailFit::peak());
                exponents(source, layers, |weight| Ok(farms.measure(weight)?.alpha))
            }
            ScoreKind::ZerothOrder => self.loss_changes(source, layers, Together::Layer),
            ScoreKind::JointZerothOrder => self.loss_changes(source, layers, Together::Block),
            other => Err(Error::recipe(
                format!("the allocator `{}`", self.allocator),
                format!("needs a measurement ({other:?}) that takes gradients; use it from Rust"),
            )),
        }
    }

    fn calibration(&self) -> Result<&Calibration<'_>> {
        let what =
            || Error::NeedsCalibration { what: format!("the allocator `{}`", self.allocator) };
        self.calibration.ok_or_else(what)
    }

    fn tokens<'c>(&self, calibration: &'c Calibration<'c>) -> Result<&'c TokenCalibration<'c>> {
        calibration.tokens(&format!("the allocator `{}`", self.allocator))
    }

    fn spectral(&self, error: prune_spectral::Error) -> Error {
        Error::Core(prune_core::Error::external(self.allocator, error))
    }

    fn not_observed(&self, layer: &LayerInfo) -> Error {
        Error::NotObserved { layer: layer.id.to_string(), method: self.allocator.into() }
    }

    /// How much the calibration loss moves when the weights of each layer (or block) do. Two passes
    /// a layer and batch through its block and those after it; what enters the block is computed
    /// once. Batches follow each other, so that the hidden states of one are in memory.
    fn loss_changes(
        &self,
        source: &dyn TensorSource,
        layers: &[LayerInfo],
        together: Together,
    ) -> Result<Measured> {
        let calibration = self.calibration()?;
        let mut losses = CalibrationLoss::batches(calibration, LOSS_WINDOWS)?;
        losses.truncate(LOSS_BATCHES);
        let blocks = self.tokens(calibration)?.model.blocks();
        let batches = losses.len() as f64;
        let one_draw =
            ZerothOrder::default().with_seed(self.seed).with_together(together).with_draws(1)?;
        let of_block = |block| -> Vec<usize> {
            (0..layers.len()).filter(|&l| layers[l].block == Some(block)).collect()
        };
        let mut scores: Vec<Option<f64>> = vec![None; layers.len()];
        for (batch, mut loss) in losses.into_iter().enumerate() {
            let score = one_draw.with_first_draw(batch);
            for block in 0..blocks {
                let here = of_block(block);
                if here.is_empty() {
                    continue;
                }
                loss.start_at(block, source)?;
                let infos: Vec<LayerInfo> = here.iter().map(|&l| layers[l].clone()).collect();
                let found = score.scores(&infos, source, &mut [&mut loss], &mut |_, _| ())?;
                for (&l, found) in here.iter().zip(found) {
                    *scores[l].get_or_insert(0.0) += found / batches;
                }
            }
        }
        let score = |(layer, score): (&LayerInfo, Option<f64>)| {
            score.ok_or_else(|| self.not_observed(layer))
        };
        Ok(Measured::Scores(layers.iter().zip(scores).map(score).collect::<Result<_>>()?))
    }

    /// The output error of each layer when it alone is pruned, at several sparsities, by the very
    /// method of the rule and on the dense model; without calibration, of the weights themselves.
    /// An error is relative to the layer's output, since the next blocks normalise what they read,
    /// times the number of weights: where all curves are alike, all layers get the same sparsity,
    /// whatever their size.
    fn error_curves(&self, source: &dyn TensorSource, layers: &[LayerInfo]) -> Result<Measured> {
        let mut curves: BTreeMap<LayerId, ErrorCurve> = BTreeMap::new();
        match self.calibration {
            None => {
                let none = LayerStats::default();
                let measured: Vec<_> = layers
                    .par_iter()
                    .map(|l| Ok((l.id.clone(), self.error_curve(source, l, &none)?)))
                    .collect::<Result<_>>()?;
                curves.extend(measured);
            }
            Some(calibration) => {
                let calibration = self.tokens(calibration)?;
                each_block(source, calibration, self.pruner.needs(), &mut |_, stats| {
                    let here = layers.iter().filter(|l| stats.contains_key(&l.id));
                    for layer in here {
                        let curve = self.error_curve(source, layer, &stats[&layer.id])?;
                        curves.insert(layer.id.clone(), curve);
                    }
                    Ok(())
                })?;
            }
        }
        let curve = |l: &LayerInfo| curves.remove(&l.id).ok_or_else(|| self.not_observed(l));
        Ok(Measured::Curves(layers.iter().map(curve).collect::<Result<_>>()?))
    }

    fn error_curve(
        &self,
        source: &dyn TensorSource,
        layer: &LayerInfo,
        stats: &LayerStats,
    ) -> Result<ErrorCurve> {
        let name = layer.id.weight_name();
        let dense = source.read_matrix(&name)?;
        let (rows, cols) = dense.dim();
        let before = |first: usize, count: usize| {
            Ok(dense.slice(ndarray::s![first..first + count, ..]).to_owned())
        };
        let mut points = vec![(0.0, 0.0)];
        for sparsity in SPARSITIES {
            let wanted = (sparsity * dense.len() as f64).round() as usize;
            let remove = round_to_pattern(&name, self.pattern, rows, cols, wanted)?;
            let mut weight = dense.clone();
            if remove == dense.len() {
                weight.fill(0.0);
            } else {
                let target = Target {
                    layer: &layer.id,
                    pattern: self.pattern,
                    scope: self.scope,
                    remove,
                    stream: self.seed.stream(layer.id.as_str()),
                };
                self.pruner.prune(weight.view_mut(), stats, &target)?;
            }
            let error = output_error(&before, &rows_in(weight.view()), weight.dim(), stats)?;
            points.push((sparsity, error.written * dense.len() as f64));
        }
        Ok(ErrorCurve::new(points)?)
    }
}

/// An exponent of each layer's spectrum, layers side by side; none for a layer with too few
/// eigenvalues.
fn exponents(
    source: &dyn TensorSource,
    layers: &[LayerInfo],
    alpha: impl Fn(ArrayView2<'_, f32>) -> Result<f64, prune_spectral::Error> + Sync,
) -> Result<Measured> {
    let one = |layer: &LayerInfo| {
        let weight = source.read_matrix(&layer.id.weight_name())?;
        match alpha(weight.view()) {
            Ok(alpha) => Ok(Some(alpha)),
            Err(prune_spectral::Error::TooFewEigenvalues { .. }) => Ok(None),
            Err(e) => Err(Error::Core(prune_core::Error::external(layer.id.as_str(), e))),
        }
    };
    Ok(Measured::Exponents(layers.par_iter().map(one).collect::<Result<_>>()?))
}

/// OWL's outlier percentage of every block, on the dense model.
pub(crate) fn outlier_scores(
    source: &dyn TensorSource,
    calibration: &TokenCalibration<'_>,
) -> Result<Vec<f64>> {
    const MULTIPLIER: f64 = 5.0;
    let mut scores = Vec::new();
    each_block(source, calibration, Needs::Columns, &mut |layers, stats| {
        let mut first = OutlierDistribution::new(MULTIPLIER)?;
        for id in layers {
            if let Some(columns) = stats.get(id).and_then(|s| s.columns.as_ref()) {
                first.observe(id, source.read_matrix(&id.weight_name())?.view(), columns)?;
            }
        }
        let mut second = first.second_pass()?;
        for id in layers {
            if let Some(columns) = stats.get(id).and_then(|s| s.columns.as_ref()) {
                second.observe(id, source.read_matrix(&id.weight_name())?.view(), columns)?;
            }
        }
        scores.push(second.percent()?);
        Ok(())
    })?;
    Ok(scores)
}

/// Is shown the layers of a block and the statistics of their inputs.
type Visit<'a> = dyn FnMut(&[LayerId], &BTreeMap<LayerId, LayerStats>) -> Result<()> + 'a;

/// Shows the layers of each block of the dense model in turn, with the statistics of their inputs.
pub(crate) fn each_block(
    source: &dyn TensorSource,
    calibration: &TokenCalibration<'_>,
    needs: Needs,
    visit: &mut Visit<'_>,
) -> Result<()> {
    let model = calibration.model;
    let go_on = || Ok(());
    let needs = needs.max(Needs::Columns);
    // A weight, two copies of it, and the statistics of a block.
    let weights = model.layers().iter().map(|l| 12 * l.numel() as u64).max().unwrap_or(0);
    let statistics = |block: usize| -> u64 {
        let here = model.layers().iter().filter(|l| l.block == Some(block));
        here.map(|l| statistics_bytes(needs, l.shape[1], Targets::Own)).sum()
    };
    let statistics = (0..model.blocks()).map(statistics).max().unwrap_or(0);
    let (spills, at_once) = measuring(calibration, weights + statistics)?;
    let mut hidden = calibration.embed(source, spills)?;
    for index in 0..model.blocks() {
        let layers: Vec<LayerId> = model
            .layers()
            .iter()
            .filter(|l| l.block == Some(index))
            .map(|l| l.id.clone())
            .collect();
        let wanted = layers.iter().map(|id| (id.clone(), needs)).collect();
        let block = model.load_block(source, index)?;
        let seen = observe(&*block, &hidden, None, &wanted, at_once, &go_on)?;
        let stats = seen
            .into_iter()
            .flat_map(|o| o.layers.into_iter().map(move |id| (id, o.stats.clone())))
            .collect();
        visit(&layers, &stats)?;
        if index + 1 < model.blocks() {
            forward(&*block, &mut hidden, at_once, &go_on)?;
        }
    }
    Ok(())
}
