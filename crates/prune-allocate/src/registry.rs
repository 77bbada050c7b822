use prune_core::Allocator;

use crate::{Er, Erk, Owl, Uniform, UniformPlus};

/// What an allocator reads from [`ScoredLayer::score`](prune_core::ScoredLayer::score).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScoreKind {
    /// Nothing.
    Unused,
    /// The outlier percentage of the layer's block, as `prune_importance::OutlierDistribution`
    /// measures it.
    OutlierDistribution,
}

/// One allocator that can be chosen by name.
#[derive(Debug, Clone, Copy)]
pub struct AllocatorEntry {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// What the caller has to measure first.
    pub score: ScoreKind,
    make: fn() -> Box<dyn Allocator<Share = usize>>,
}

impl AllocatorEntry {
    /// The allocator with its default options.
    pub fn make(&self) -> Box<dyn Allocator<Share = usize>> {
        (self.make)()
    }
}

static ALLOCATORS: [AllocatorEntry; 5] = [
    AllocatorEntry {
        name: "uniform",
        summary: "the same sparsity for every layer",
        score: ScoreKind::Unused,
        make: || Box::new(Uniform),
    },
    AllocatorEntry {
        name: "uniform+",
        summary: "uniform, but the first convolution stays dense, the last linear layer 20 %",
        score: ScoreKind::Unused,
        make: || Box::new(UniformPlus),
    },
    AllocatorEntry {
        name: "er",
        summary: "density falls with the number of input and output channels",
        score: ScoreKind::Unused,
        make: || Box::new(Er),
    },
    AllocatorEntry {
        name: "erk",
        summary: "as er, and the size of convolution kernels counts",
        score: ScoreKind::Unused,
        make: || Box::new(Erk),
    },
    AllocatorEntry {
        name: "owl",
        summary: "transformer blocks with more outliers keep more; needs calibration data",
        score: ScoreKind::OutlierDistribution,
        make: || Box::<Owl>::default(),
    },
];

/// All allocators of kept weights that can be chosen by name.
pub fn allocators() -> &'static [AllocatorEntry] {
    &ALLOCATORS
}

/// The allocator of this name with its default options; `None` for a name not in [`allocators`].
///
/// ```
/// use prune_allocate::{allocator, allocators};
/// use prune_core::{Budget, LayerInfo, ScoredLayer};
///
/// let layers: [ScoredLayer; 1] = [LayerInfo::linear("a", 4, 4).into()];
/// let budget = Budget::sparsity(0.5)?;
/// for entry in allocators() {
///     let kept = entry.make().allocate(&layers, &budget)?;
///     assert_eq!(kept.total(), 8, "{}: {}", entry.name, entry.summary);
/// }
/// assert!(allocator("erk").is_some());
/// assert!(allocator("magic").is_none());
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn allocator(name: &str) -> Option<Box<dyn Allocator<Share = usize>>> {
    ALLOCATORS.iter().find(|e| e.name == name).map(AllocatorEntry::make)
}
