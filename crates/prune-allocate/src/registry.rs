use prune_core::{Allocation, Allocator, Budget, Error, LayerInfo, Result, ScoredLayer};

use crate::{
    AlphaPruning, Ecoflap, Er, Erk, ErkPlus, ErrorCurve, Granularity, Owl, Sensitivity, Solver,
    Survivors, Uniform, UniformPlus,
};

/// What has to be measured of each layer before an allocator can divide a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScoreKind {
    /// Nothing: [`Measured::Nothing`].
    Unused,
    /// The outlier percentage of the layer's block, as `prune_importance::OutlierDistribution`
    /// measures it on calibration data: [`Measured::Scores`].
    OutlierDistribution,
    /// The power-law exponent of the spectrum of the whole weight; data-free:
    /// [`Measured::Exponents`].
    Alpha,
    /// The power-law exponent of the spectra of windows of one aspect ratio (FARMS); data-free:
    /// [`Measured::Exponents`].
    WindowedAlpha,
    /// How much the loss moves when the layer's weights are perturbed, as
    /// `prune_importance::ZerothOrder` measures it by forward passes: [`Measured::Scores`].
    ZerothOrder,
    /// The same with all weights of a block perturbed at once, shared evenly by its layers: two
    /// forward passes a block instead of two a layer; [`Measured::Scores`].
    JointZerothOrder,
    /// How many of the layer's weights are among those that the budget keeps of the whole network
    /// when the weights of highest saliency stay, as [`survivors`](crate::survivors) counts:
    /// [`Measured::Scores`].
    Survivors(Saliency),
    /// The layer's error at several sparsities: [`Measured::Curves`].
    ErrorCurve,
}

/// What ranks the weights of a whole network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Saliency {
    /// The absolute value.
    Magnitude,
    /// |g · w| of the loss.
    Snip,
    /// What the removal of a weight does to the norm of the gradient.
    GraSp,
    /// Synaptic flow, after its rounds.
    SynFlow,
}

impl Saliency {
    /// The name of the allocator that keeps its ratios.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Saliency::Magnitude => "global",
            Saliency::Snip => "snip",
            Saliency::GraSp => "grasp",
            Saliency::SynFlow => "synflow",
        }
    }
}

/// What was measured of each layer, in the order of the layers.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Measured {
    /// Nothing.
    #[default]
    Nothing,
    /// A score a layer.
    Scores(Vec<f64>),
    /// A power-law exponent a layer; `None` for a layer with too few singular values for a fit.
    Exponents(Vec<Option<f64>>),
    /// An error curve a layer.
    Curves(Vec<ErrorCurve>),
}

impl Measured {
    fn name(&self) -> &'static str {
        match self {
            Measured::Nothing => "nothing",
            Measured::Scores(_) => "scores",
            Measured::Exponents(_) => "exponents",
            Measured::Curves(_) => "error curves",
        }
    }
}

/// The one number that an allocator can be tuned by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// Its value unless set.
    pub default: f64,
}

/// One allocator that can be chosen by name.
///
/// ```
/// use prune_allocate::{Measured, ScoreKind, allocator};
/// use prune_core::{Budget, LayerInfo};
///
/// let layers = [0, 1].map(|b| LayerInfo::linear(format!("layers.{b}.fc"), 10, 10));
/// let owl = allocator("owl").expect("it is in the list");
/// // The name of the score says what to measure; the rest is the same for all allocators.
/// let measured = match owl.score {
///     ScoreKind::OutlierDistribution => Measured::Scores(vec![3.0, 1.0]),
///     _ => Measured::Nothing,
/// };
/// let kept = owl.allocate(&layers, &measured, &Budget::sparsity(0.5)?)?;
/// assert_eq!(kept.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [58, 42]);
/// let wider = owl.with_parameter(0.2).allocate(&layers, &measured, &Budget::sparsity(0.5)?)?;
/// assert_eq!(wider.iter().map(|(_, k)| *k).collect::<Vec<_>>(), [70, 30]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct AllocatorEntry {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// What the caller has to measure first.
    pub score: ScoreKind,
    /// What it can be tuned by.
    pub parameter: Option<Parameter>,
    value: Option<f64>,
    make: Make,
}

/// How an allocator is made of its parameter.
#[derive(Debug, Clone, Copy)]
enum Make {
    Shapes(fn() -> Box<dyn Allocator<Share = usize>>),
    Counts(Saliency),
    Tuned(fn(f64) -> Result<Box<dyn Allocator<Share = usize>>>),
    Exponents(fn(f64) -> Result<AlphaPruning>),
    Curves(Solver),
}

impl AllocatorEntry {
    /// The same allocator with another value of its parameter, which is checked when it allocates.
    /// An allocator without a parameter ignores it.
    #[must_use]
    pub fn with_parameter(self, value: f64) -> Self {
        Self { value: Some(value), ..self }
    }

    /// The kept weights of each layer; they sum to what the budget keeps.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when `measured` is not what [`AllocatorEntry::score`] asks for, or for
    /// a parameter out of range; [`Error::Shape`] when it has another number of layers; what the
    /// allocator gives.
    pub fn allocate(
        &self,
        layers: &[LayerInfo],
        measured: &Measured,
        budget: &Budget,
    ) -> Result<Allocation<usize>> {
        let value = self.value.or(self.parameter.map(|p| p.default)).unwrap_or(0.0);
        let (scores, allocator) = match (self.make, measured) {
            (Make::Shapes(make), Measured::Nothing) => (vec![0.0; layers.len()], make()),
            (Make::Counts(saliency), Measured::Scores(counts)) => {
                (counts.clone(), boxed(Survivors::new(saliency)))
            }
            (Make::Tuned(make), Measured::Scores(scores)) => (scores.clone(), make(value)?),
            (Make::Exponents(make), Measured::Exponents(alphas)) => {
                let map = make(value)?;
                (map.complete(layers, alphas)?, boxed(map))
            }
            (Make::Curves(solver), Measured::Curves(curves)) => {
                (vec![0.0; layers.len()], boxed(Sensitivity::new(curves.clone(), solver)))
            }
            _ => {
                return Err(Error::OutOfRange {
                    what: format!("what was measured for the allocator `{}`", self.name),
                    found: measured.name().to_string(),
                    expected: format!("{:?}", self.score),
                });
            }
        };
        if scores.len() != layers.len() {
            return Err(Error::Shape {
                what: format!("scores for the allocator `{}`", self.name),
                found: vec![scores.len()],
                expected: vec![layers.len()],
            });
        }
        let scored = layers.iter().cloned().zip(scores);
        let scored: Vec<_> = scored.map(|(info, score)| ScoredLayer { info, score }).collect();
        allocator.allocate(&scored, budget)
    }
}

fn boxed(allocator: impl Allocator<Share = usize> + 'static) -> Box<dyn Allocator<Share = usize>> {
    Box::new(allocator)
}

const fn shapes(
    name: &'static str,
    summary: &'static str,
    make: fn() -> Box<dyn Allocator<Share = usize>>,
) -> AllocatorEntry {
    let (score, make) = (ScoreKind::Unused, Make::Shapes(make));
    AllocatorEntry { name, summary, score, parameter: None, value: None, make }
}

const fn counts(saliency: Saliency, summary: &'static str) -> AllocatorEntry {
    let (name, score) = (saliency.name(), ScoreKind::Survivors(saliency));
    AllocatorEntry {
        name,
        summary,
        score,
        parameter: None,
        value: None,
        make: Make::Counts(saliency),
    }
}

const fn tuned(
    name: &'static str,
    summary: &'static str,
    score: ScoreKind,
    parameter: Parameter,
    make: Make,
) -> AllocatorEntry {
    AllocatorEntry { name, summary, score, parameter: Some(parameter), value: None, make }
}

const fn curves(name: &'static str, summary: &'static str, solver: Solver) -> AllocatorEntry {
    let (score, make) = (ScoreKind::ErrorCurve, Make::Curves(solver));
    AllocatorEntry { name, summary, score, parameter: None, value: None, make }
}

const LAMBDA: Parameter = Parameter {
    name: "lambda",
    summary: "half the span of densities, 0 to 0.5",
    default: Owl::LAMBDA,
};

const EPSILON: Parameter = Parameter {
    name: "epsilon",
    summary: "the sparsest layer is to the densest as 1 + epsilon to 1 - epsilon, 0 to 1",
    default: AlphaPruning::EPSILON,
};

const MARGIN: Parameter = Parameter {
    name: "margin",
    summary: "how far above the budget's a layer's sparsity may go, 0 to 1",
    default: Ecoflap::MARGIN,
};

static ALLOCATORS: [AllocatorEntry; 19] = [
    shapes("uniform", "the same sparsity for every layer", || Box::new(Uniform)),
    shapes(
        "uniform+",
        "uniform, but the first convolution stays dense, the last linear layer 20 %",
        || Box::<UniformPlus>::default(),
    ),
    shapes("er", "density falls with the number of input and output channels", || Box::new(Er)),
    shapes("erk", "as er, and the size of convolution kernels counts", || Box::new(Erk)),
    shapes("erk+", "as erk, but the last linear layer stays dense", || Box::<ErkPlus>::default()),
    tuned(
        "owl",
        "transformer blocks with more outliers keep more; needs calibration data",
        ScoreKind::OutlierDistribution,
        LAMBDA,
        Make::Tuned(|lambda| Ok(Box::new(Owl::new(lambda)?))),
    ),
    tuned(
        "alphapruning",
        "transformer blocks whose spectra have heavier tails keep more; data-free",
        ScoreKind::Alpha,
        EPSILON,
        Make::Exponents(AlphaPruning::new),
    ),
    tuned(
        "alphapruning-layer",
        "as alphapruning, every layer by itself",
        ScoreKind::Alpha,
        EPSILON,
        Make::Exponents(|e| Ok(AlphaPruning::new(e)?.with_granularity(Granularity::Layer))),
    ),
    tuned(
        "farms",
        "as alphapruning, with spectra of windows of one aspect ratio; data-free",
        ScoreKind::WindowedAlpha,
        EPSILON,
        Make::Exponents(|e| Ok(AlphaPruning::new(e)?.farms())),
    ),
    tuned(
        "farms-layer",
        "as farms, every layer by itself",
        ScoreKind::WindowedAlpha,
        EPSILON,
        Make::Exponents(|e| Ok(AlphaPruning::new(e)?.farms().with_granularity(Granularity::Layer))),
    ),
    tuned(
        "ecoflap",
        "transformer blocks whose weights move the loss more keep more; needs calibration data",
        ScoreKind::ZerothOrder,
        MARGIN,
        Make::Tuned(|margin| Ok(Box::new(Ecoflap::new(margin)?))),
    ),
    tuned(
        "ecoflap-layer",
        "as ecoflap, every layer by itself",
        ScoreKind::ZerothOrder,
        MARGIN,
        Make::Tuned(|m| Ok(Box::new(Ecoflap::new(m)?.with_granularity(Granularity::Layer)))),
    ),
    tuned(
        "ecoflap-joint",
        "as ecoflap, with the layers of a block perturbed at once: a few times cheaper",
        ScoreKind::JointZerothOrder,
        MARGIN,
        Make::Tuned(|margin| Ok(Box::new(Ecoflap::new(margin)?))),
    ),
    counts(Saliency::Magnitude, "what one magnitude threshold over all layers keeps; data-free"),
    counts(Saliency::Snip, "what SNIP keeps of each layer; needs gradients of the loss"),
    counts(Saliency::GraSp, "what GraSP keeps of each layer; needs second derivatives of the loss"),
    counts(Saliency::SynFlow, "what SynFlow keeps of each layer; needs gradients, but no data"),
    curves(
        "curve",
        "the least sum of the layers' measured errors, by one price for a weight",
        Solver::Lagrangian,
    ),
    curves(
        "knapsack",
        "the least sum of the layers' measured errors over the measured sparsities, exactly",
        Solver::Exact,
    ),
];

/// All allocators of kept weights that can be chosen by name.
pub fn allocators() -> &'static [AllocatorEntry] {
    &ALLOCATORS
}

/// The allocator of this name; `None` for a name not in [`allocators`].
///
/// ```
/// use prune_allocate::{Measured, ScoreKind, allocator, allocators};
/// use prune_core::{Budget, LayerInfo};
///
/// let layers = [LayerInfo::linear("a", 8, 8), LayerInfo::linear("b", 4, 4)];
/// let budget = Budget::sparsity(0.5)?;
/// for entry in allocators().iter().filter(|e| e.score == ScoreKind::Unused) {
///     let kept = entry.allocate(&layers, &Measured::Nothing, &budget)?;
///     assert_eq!(kept.total(), 40, "{}: {}", entry.name, entry.summary);
/// }
/// assert!(allocator("erk").is_some());
/// assert!(allocator("magic").is_none());
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn allocator(name: &str) -> Option<&'static AllocatorEntry> {
    ALLOCATORS.iter().find(|e| e.name == name)
}
