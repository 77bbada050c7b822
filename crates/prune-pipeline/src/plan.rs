use std::collections::BTreeMap;

use prune_core::{
    Budget, DType, FactorKind, LayerInfo, LayerKind, Needs, Pattern, QuantScheme, Scope, Seed,
    TensorInfo, TensorSource, round_to_pattern,
};
use prune_importance::BlockTaylor;
use serde::{Deserialize, Serialize};

use crate::coverage::{check_calibration, claim};
use crate::lpvit;
use crate::measure::Measurement;
use crate::method::Method;
use crate::plan_quantized::{GGML, KEEP, Work, is_quantizing, plan_quantized, quantizer};
use crate::recipe::{Recipe, Rule, scalars};
use crate::store::Store;
use crate::{Calibration, Error, Result, Targets};

/// What will be done to every tensor of a checkpoint. Readable, stable, and executed exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The version of this format: `prune-plan/1`.
    pub format: String,
    /// The recipe that it came from.
    pub recipe: Recipe,
    /// How much calibration data there was; absent for data-free work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationShape>,
    /// Totals.
    pub totals: Totals,
    /// Every tensor, by name.
    pub tensors: Vec<PlannedTensor>,
}

/// How much calibration data a plan uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum CalibrationShape {
    /// Token windows.
    Tokens {
        /// Windows.
        samples: usize,
        /// Tokens of a window.
        seqlen: usize,
    },
    /// Images.
    Images {
        /// Their number.
        images: usize,
        /// Channels, height and width.
        size: [usize; 3],
    },
}

/// Sums over a plan.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Elements of all tensors.
    pub parameters: usize,
    /// Weights of the tensors that will be pruned or factorised.
    pub planned_weights: usize,
    /// Weights that will be removed, from the weight or from its sparse factor.
    pub removed: usize,
    /// `removed / planned_weights`.
    pub sparsity: f64,
    /// Multiplications for one image of the layers that `lpvit` prunes, whose budget is in them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub multiplications: usize,
    /// Those that go.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub removed_multiplications: usize,
    /// Bytes of the tensors that will be written, factors included.
    pub bytes: usize,
    /// Weights of the tensors that will be quantised.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub quantized_weights: usize,
    /// Bytes that these will take, with scales and zero points.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub quantized_bytes: usize,
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// One tensor of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The dtype that will be written; of a tensor that will be stored as codes, the source's.
    pub dtype: String,
    /// What will be done.
    pub action: Action,
}

/// What will be done to a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Copied byte for byte.
    Copy,
    /// Pruned.
    Prune {
        /// The pruner.
        method: String,
        /// The pattern, as text.
        pattern: String,
        /// The scope, as text.
        scope: String,
        /// How many weights are removed; exact.
        remove: usize,
    },
    /// Replaced by the product of factors, which are written beside the model.
    Factorise {
        /// The factoriser.
        method: String,
        /// Its options.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "scalars")]
        options: BTreeMap<String, String>,
        /// The pattern of the sparse factor, as text.
        pattern: String,
        /// Its scope, as text.
        scope: String,
        /// How many weights of the sparse factor are removed; exact.
        remove: usize,
        /// The factors that are written to [`FACTORS`](crate::FACTORS).
        factors: Vec<PlannedFactor>,
    },
    /// Quantised by a method, and stored in the format of the recipe.
    Quantize {
        /// The quantizer, or `keep` for the codes of the source.
        method: String,
        /// The scheme, as text.
        scheme: String,
        /// Whether weights that are zero stay zero.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keep_zeros: bool,
    },
    /// A norm that is divided by what the layers after it are multiplied by before they are
    /// quantised.
    Fold {
        /// The quantizer that finds the scales.
        method: String,
    },
    /// Stored in a GGUF file, by the rules of llama.cpp where that quantises.
    Encode {
        /// The type, as ggml calls it.
        kind: String,
    },
}

/// A factor of a planned tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedFactor {
    /// The name of its tensor.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The dtype that will be written.
    pub dtype: String,
}

impl Action {
    /// How many weights go, from the tensor or from its sparse factor; `None` where none are meant
    /// to.
    pub fn removed(&self) -> Option<usize> {
        match self {
            Action::Prune { remove, .. } | Action::Factorise { remove, .. } => Some(*remove),
            Action::Copy
            | Action::Quantize { .. }
            | Action::Fold { .. }
            | Action::Encode { .. } => None,
        }
    }

    /// The factors that will be written.
    pub fn factors(&self) -> &[PlannedFactor] {
        match self {
            Action::Factorise { factors, .. } => factors,
            _ => &[],
        }
    }

    /// The statistics that the work reads.
    pub(crate) fn needs(&self) -> Result<Needs> {
        match self {
            Action::Copy | Action::Encode { .. } => Ok(Needs::Nothing),
            Action::Prune { .. } | Action::Factorise { .. } => {
                Ok(Method::of(self)?.map_or(Needs::Nothing, |m| m.needs()))
            }
            Action::Quantize { method, .. } if method == KEEP => Ok(Needs::Nothing),
            Action::Fold { method } | Action::Quantize { method, .. } => {
                Ok(quantizer(method)?.needs())
            }
        }
    }
}

impl Plan {
    /// The plan of a recipe for a checkpoint. Data-free unless the recipe allocates by a measured
    /// score (`owl`), which runs the dense model over the calibration windows; `global` scope
    /// reads the weights twice.
    ///
    /// # Errors
    /// [`Error::Recipe`], [`Error::NoMatch`], [`Error::NeedsCalibration`],
    /// [`Error::NotObserved`], [`Error::Core`].
    pub fn new(
        source: &dyn TensorSource,
        recipe: &Recipe,
        calibration: Option<&Calibration<'_>>,
    ) -> Result<Self> {
        recipe.check()?;
        let claims: Vec<(usize, Vec<LayerInfo>)> = claim(recipe, source)?
            .into_iter()
            .filter(|(rule, _)| !recipe.rules[*rule].skip)
            .collect();
        if claims.is_empty() {
            return Err(Error::recipe("rules", "every layer is skipped: nothing to do"));
        }
        check_coverage(source, recipe, &claims, calibration)?;
        let store = Store::of(recipe)?;
        let mut actions = BTreeMap::new();
        for (rule, layers) in claims {
            let (number, rule) = (rule + 1, &recipe.rules[rule]);
            let seed = Seed::new(recipe.seed);
            let work = Work { source, number, rule, seed, store: &store, calibration };
            let planned = match rule.method.as_deref() {
                Some(method) if is_quantizing(method) => plan_quantized(&work, layers)?,
                _ => plan_rule(source, number, rule, seed, layers, calibration)?,
            };
            actions.extend(planned);
        }
        store.complete(source, recipe, &mut actions)?;
        let dtype = match &recipe.dtype {
            None => None,
            Some(text) => {
                Some(text.parse().ok().filter(|d: &prune_core::DType| d.is_float()).ok_or_else(
                    || Error::recipe("dtype", format!("`{text}`; expected F32, F16, BF16 or F64")),
                )?)
            }
        };
        let mut tensors = Vec::new();
        let mut totals = Totals::default();
        for info in source.tensors() {
            let mut action = actions.remove(&info.name).unwrap_or(Action::Copy);
            let mut out = info.clone();
            let changed = action.removed().is_some()
                || matches!((&store, &action), (Store::Dense, Action::Quantize { .. }));
            if let (Some(dtype), true) = (dtype, changed) {
                out.dtype = dtype;
            }
            for factor in factors_of(&out, &action)? {
                totals.bytes += factor.nbytes();
                if let Action::Factorise { factors, .. } = &mut action {
                    factors.push(PlannedFactor {
                        name: factor.name,
                        shape: factor.shape,
                        dtype: factor.dtype.name().into(),
                    });
                }
            }
            let tensor = PlannedTensor {
                name: info.name.clone(),
                shape: info.shape.clone(),
                dtype: out.dtype.name().into(),
                action,
            };
            let stored: usize = store.outputs(&tensor)?.iter().map(TensorInfo::nbytes).sum();
            totals.parameters += info.numel();
            totals.bytes += stored;
            match &tensor.action {
                Action::Copy | Action::Fold { .. } => {}
                Action::Prune { remove, .. } | Action::Factorise { remove, .. } => {
                    totals.planned_weights += info.numel();
                    totals.removed += remove;
                    let positions = positions(&tensor, calibration)?;
                    totals.multiplications += positions * info.numel();
                    totals.removed_multiplications += positions * remove;
                }
                Action::Quantize { scheme, .. } => {
                    let scheme: QuantScheme = scheme.parse()?;
                    let (rows, cols) = info.matrix_shape()?;
                    totals.quantized_weights += info.numel();
                    totals.quantized_bytes += match &store {
                        Store::Dense => scheme.nbytes(rows, cols),
                        _ => stored,
                    };
                }
                Action::Encode { .. } if info.shape.len() == 2 => {
                    totals.quantized_weights += info.numel();
                    totals.quantized_bytes += stored;
                }
                Action::Encode { .. } => {}
            }
            tensors.push(tensor);
        }
        totals.sparsity = totals.removed as f64 / totals.planned_weights.max(1) as f64;
        Ok(Self {
            format: "prune-plan/1".into(),
            recipe: recipe.clone(),
            calibration: calibration.map(Calibration::shape),
            totals,
            tensors,
        })
    }

    /// The plan that a JSON text states.
    ///
    /// # Errors
    /// [`Error::Plan`].
    pub fn from_json(text: &str) -> Result<Self> {
        let plan: Self = serde_json::from_str(text).map_err(|e| Error::plan("plan", e))?;
        if plan.format != "prune-plan/1" {
            return Err(Error::plan("plan", format!("format `{}` is unknown", plan.format)));
        }
        Ok(plan)
    }

    /// The plan as indented JSON.
    ///
    /// # Errors
    /// [`Error::Plan`] when a number cannot be written.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| Error::plan("plan", e))
    }
}

/// How often the weights of a tensor are used for one image, where the budget counts that; else 0.
fn positions(tensor: &PlannedTensor, calibration: Option<&Calibration<'_>>) -> Result<usize> {
    let Some(calibration) =
        calibration.filter(|_| matches!(tensor.action.needs(), Ok(Needs::Gradient)))
    else {
        return Ok(0);
    };
    let name = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
    let layer = LayerInfo::from_name(name, LayerKind::Linear, tensor.shape.clone());
    Ok(calibration.images(BlockTaylor::NAME)?.model.positions(&layer))
}

/// The factors that a tensor is replaced by, as they are stored: in its own dtype, but for indices.
pub(crate) fn factors_of(info: &TensorInfo, action: &Action) -> Result<Vec<TensorInfo>> {
    let Some(Method::Factoriser(factoriser)) = Method::of(action)? else { return Ok(Vec::new()) };
    let (rows, cols) = info.matrix_shape()?;
    let layer = prune_core::LayerId::from_tensor(&info.name);
    let stored = |factor: prune_core::FactorInfo| TensorInfo {
        name: factor.tensor_name(&layer),
        dtype: if factor.kind == FactorKind::Indices { DType::I32 } else { info.dtype },
        shape: factor.shape,
    };
    Ok(factoriser.factors(rows, cols).into_iter().map(stored).collect())
}

/// Refuses a plan whose calibrated layers would not see enough data.
fn check_coverage(
    source: &dyn TensorSource,
    recipe: &Recipe,
    claims: &[(usize, Vec<LayerInfo>)],
    calibration: Option<&Calibration<'_>>,
) -> Result<()> {
    let mut calibrated = BTreeMap::new();
    for (rule, layers) in claims {
        let rule = &recipe.rules[*rule];
        let method = rule.method.as_deref().unwrap_or_default();
        let needs = match method {
            KEEP | GGML => Needs::Nothing,
            _ if is_quantizing(method) => quantizer(method)?.needs(),
            _ => Method::new(method, &rule.options)?.needs(),
        };
        match (needs, calibration) {
            (Needs::Nothing, _) => {}
            (_, None) => return Err(Error::NeedsCalibration { what: method.into() }),
            (Needs::Gradient, Some(calibration)) => {
                calibration.images(method)?.check(layers, method)?;
            }
            (Needs::Columns | Needs::Gram, Some(calibration)) => {
                calibration.tokens(method)?;
                calibrated.extend(layers.iter().map(|l| (l.id.clone(), method.to_string())));
            }
        }
    }
    match calibration {
        Some(calibration) if recipe.targets == Targets::Dense && calibration.is_routed() => {
            let reason = "`dense` compares inputs token by token, but this model routes tokens to \
                          other experts once it is compressed";
            Err(Error::recipe("targets", reason))
        }
        Some(calibration) if !calibrated.is_empty() => {
            let tokens = calibration.tokens("this recipe")?;
            check_calibration(source, tokens, &calibrated, recipe.min_tokens)
        }
        _ => Ok(()),
    }
}

fn plan_rule(
    source: &dyn TensorSource,
    number: usize,
    rule: &Rule,
    seed: Seed,
    layers: Vec<LayerInfo>,
    calibration: Option<&Calibration<'_>>,
) -> Result<Vec<(String, Action)>> {
    let field = |name: &str| format!("rule {number}, {name}");
    let method = rule.method.as_deref().unwrap_or_default();
    let made = Method::new(method, &rule.options)?;
    let text = rule.pattern.as_deref().unwrap_or("unstructured");
    let pattern: Pattern = text.parse().map_err(|e| Error::recipe(field("pattern"), e))?;
    let scope = match &rule.scope {
        Some(text) => text.parse().map_err(|e| Error::recipe(field("scope"), e))?,
        None if pattern == Pattern::Unstructured => made.default_scope(),
        None => Scope::PerLayer,
    };
    let global = scope == Scope::Global;
    if global
        && (made.needs() != Needs::Nothing
            || pattern != Pattern::Unstructured
            || method != "magnitude")
    {
        return Err(Error::recipe(field("scope"), "`global` is for unstructured magnitude only"));
    }
    if !global {
        made.supports(pattern, scope)?;
    }
    let removed = match (pattern.fixed_sparsity(), rule.sparsity) {
        (Some(fixed), Some(asked)) if (fixed - asked).abs() > 1e-9 => {
            return Err(Error::recipe(
                field("sparsity"),
                format!("is {asked}; the pattern {pattern} fixes it at {fixed}"),
            ));
        }
        (Some(_), _) if rule.allocate.as_deref().is_some_and(|a| a != "uniform") => {
            return Err(Error::recipe(
                field("allocate"),
                format!("the pattern {pattern} fixes every layer's sparsity: nothing to allocate"),
            ));
        }
        (Some(_), _) => vec![0; layers.len()],
        (None, None) => return Err(Error::recipe(field("sparsity"), "is missing")),
        (None, Some(sparsity)) => {
            let budget =
                Budget::sparsity(sparsity).map_err(|e| Error::recipe(field("sparsity"), e))?;
            if global {
                if rule.allocate.is_some() {
                    return Err(Error::recipe(
                        field("allocate"),
                        "scope `global` is an allocation",
                    ));
                }
                let total = layers.iter().map(LayerInfo::numel).sum();
                let all = budget.remove_total(total);
                prune_unstructured::global_magnitude_counts(source, &layers, all)?.removed
            } else {
                let Method::Pruner(pruner) = &made else {
                    return Err(Error::recipe(field("pattern"), "leaves nothing to allocate"));
                };
                if made.needs() == Needs::Gradient {
                    let field = field("allocate");
                    let name = rule.allocate.as_deref().unwrap_or(BlockTaylor::NAME);
                    let named = named(name, &field)?;
                    let images = calibration
                        .ok_or_else(|| Error::NeedsCalibration { what: method.into() })?
                        .images(method)?;
                    lpvit::allocate(source, &field, named, &layers, pattern, &budget, images)?
                } else {
                    let name = rule.allocate.as_deref().unwrap_or("uniform");
                    let measurement = Measurement {
                        allocator: name,
                        pruner: &**pruner,
                        pattern,
                        scope,
                        seed,
                        calibration,
                    };
                    allocate(source, name, &field("allocate"), &layers, &budget, &measurement)?
                }
            }
        }
    };
    let scope = if global { Scope::PerLayer } else { scope };
    layers
        .iter()
        .zip(removed)
        .map(|(layer, removed)| {
            let name = layer.id.weight_name();
            let [rows, cols] = layer.shape[..] else {
                return Err(Error::plan(name, "is no matrix"));
            };
            pattern.check_shape(&name, rows, cols)?;
            let remove = round_to_pattern(&name, pattern, rows, cols, removed)?;
            let (method, pattern) = (method.to_string(), pattern.to_string());
            let scope = scope.to_string();
            let action = match &made {
                Method::Pruner(_) => Action::Prune { method, pattern, scope, remove },
                Method::Factoriser(_) => Action::Factorise {
                    method,
                    options: rule.options.clone(),
                    pattern,
                    scope,
                    remove,
                    factors: Vec::new(),
                },
            };
            Ok((name, action))
        })
        .collect()
}

/// The name of an allocator and its parameter.
fn named<'n>(text: &'n str, field: &str) -> Result<(&'n str, Option<f64>)> {
    let Some((name, value)) = text.split_once('=') else { return Ok((text, None)) };
    match value.trim().parse::<f64>() {
        Ok(value) => Ok((name.trim(), Some(value))),
        Err(_) => {
            let reason = format!("`{value}` is no number; expected such as `owl=0.08`");
            Err(Error::recipe(field, reason))
        }
    }
}

/// Weights to remove from each layer.
fn allocate(
    source: &dyn TensorSource,
    name: &str,
    field: &str,
    layers: &[LayerInfo],
    budget: &Budget,
    measurement: &Measurement<'_>,
) -> Result<Vec<usize>> {
    let (name, parameter) = named(name, field)?;
    if lpvit::divides_blocks(name) {
        let reason = format!("`{name}` divides the blocks that the method `lpvit` removes");
        return Err(Error::recipe(field, reason));
    }
    let entry = prune_allocate::allocator(name).ok_or_else(|| {
        let known: Vec<&str> = prune_allocate::allocators().iter().map(|e| e.name).collect();
        Error::recipe(field, format!("`{name}` is unknown; known are {}", known.join(", ")))
    })?;
    let entry = match (parameter, entry.parameter) {
        (None, _) => *entry,
        (Some(value), Some(_)) => entry.with_parameter(value),
        (Some(_), None) => {
            return Err(Error::recipe(field, format!("`{name}` has no parameter")));
        }
    };
    let measured = measurement.measure(entry.score, source, layers, budget)?;
    let kept = entry.allocate(layers, &measured, budget)?;
    Ok(layers.iter().map(|l| kept.get(&l.id).map_or(0, |k| l.numel() - k)).collect())
}
