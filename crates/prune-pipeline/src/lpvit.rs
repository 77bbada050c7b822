use prune_allocate::{BlockCurve, BlockSolver, Lpvit, multiplications};
use prune_core::{Budget, LayerInfo, LayerStats, Pattern, TensorSource};
use prune_importance::{BlockRanking, BlockScore, BlockTaylor, TaylorOrder};

use crate::gradients::ImageCalibration;
use crate::{Error, Result};

/// How the method's budget can be divided, by name.
const SOLVERS: [(&str, BlockSolver); 3] = [
    (BlockTaylor::NAME, BlockSolver::Exact),
    ("lpvit-hull", BlockSolver::Hull),
    ("uniform", BlockSolver::Uniform),
];

/// Whether an allocator is one for blocks alone.
pub(crate) fn divides_blocks(allocator: &str) -> bool {
    SOLVERS.iter().any(|(name, solver)| *name == allocator && *solver != BlockSolver::Uniform)
}

/// Weights that each layer loses, whole blocks of them, so that what is left of the layers takes at
/// most the budget's part of their multiplications: LPViT's division, by what the output's energy
/// loses. The parameter of the allocator is the part of its blocks that every layer keeps at least.
pub(crate) fn allocate(
    source: &dyn TensorSource,
    field: &str,
    (name, min_keep): (&str, Option<f64>),
    layers: &[LayerInfo],
    pattern: Pattern,
    budget: &Budget,
    images: &ImageCalibration<'_>,
) -> Result<Vec<usize>> {
    let solver = SOLVERS.iter().find(|(known, _)| *known == name).map(|(_, solver)| *solver);
    let solver = solver.ok_or_else(|| {
        let known: Vec<&str> = SOLVERS.iter().map(|(name, _)| *name).collect();
        let known = known.join(", ");
        Error::recipe(field, format!("`{name}` does not divide blocks; those that do: {known}"))
    })?;
    let allocator = Lpvit::new(solver).with_min_keep(min_keep.unwrap_or(Lpvit::MIN_KEEP))?;
    let Pattern::Block { rows: down, cols: along } = pattern else {
        return Err(Error::recipe(field, format!("the pattern {pattern} has no blocks")));
    };
    let (stats, none) = (images.stats(&|| Ok(()))?, LayerStats::default());
    let curve = |layer: &LayerInfo| -> Result<BlockCurve> {
        let name = layer.id.weight_name();
        let weight = source.read_matrix(&name)?;
        pattern.check_shape(&name, weight.nrows(), weight.ncols())?;
        let gradient =
            stats.get(&layer.id).unwrap_or(&none).require_gradient(&layer.id, BlockTaylor::NAME)?;
        let (block, by) = ((down, along), BlockScore::Taylor);
        let ranking = BlockRanking::new(&layer.id, weight.view(), gradient.view(), block, by)?;
        let positions = images.model.positions(layer) as u64;
        let costs = multiplications(layer.numel(), &ranking.removed_weights(), positions);
        Ok(BlockCurve::new(layer.id.clone(), ranking.losses(TaylorOrder::default()), costs)?)
    };
    let curves: Vec<BlockCurve> = layers.iter().map(curve).collect::<Result<_>>()?;
    let dense: u64 = curves.iter().map(|c| c.costs()[0]).sum();
    let limit = budget.keep_total(dense as usize) as u64;
    let removed = allocator.allocate(&curves, limit).map_err(|e| match (solver, e) {
        (BlockSolver::Exact, e @ prune_core::Error::OutOfRange { .. }) => {
            Error::recipe(field, format!("{e}: `lpvit-hull` takes a problem of any size"))
        }
        (_, e) => Error::Core(e),
    })?;
    Ok(removed.iter().map(|(_, blocks)| blocks * down * along).collect())
}
