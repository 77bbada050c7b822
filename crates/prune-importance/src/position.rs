use prune_core::{Error, Result};

/// How much the place of a block in the network counts when blocks are chosen for removal.
///
/// With B blocks, block i and the loss of quality ΔP that its removal causes, the prunability is
/// `−ΔP · weight(i)`; the highest go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PositionWeight {
    /// `exp((B − i) / B)`: among blocks that lose alike, later ones go first. This is what
    /// HierarchicalPrune sets out to do, and agrees with the blocks that its authors removed.
    #[default]
    Falling,
    /// `exp((i − B) / B)`, as the paper prints it, with the absolute value of ΔP: earlier blocks go
    /// first.
    AsPrinted,
    /// 1: the measurement alone.
    None,
}

impl PositionWeight {
    /// The weight of block `block` of `blocks`.
    ///
    /// ```
    /// use prune_importance::PositionWeight;
    /// assert_eq!(PositionWeight::None.of(3, 8), 1.0);
    /// assert!(PositionWeight::Falling.of(0, 8) > PositionWeight::Falling.of(7, 8));
    /// ```
    pub fn of(self, block: usize, blocks: usize) -> f64 {
        let depth = (block as f64 - blocks as f64) / blocks.max(1) as f64;
        match self {
            PositionWeight::Falling => (-depth).exp(),
            PositionWeight::AsPrinted => depth.exp(),
            PositionWeight::None => 1.0,
        }
    }

    /// The prunability of every block, at most 0, from what its removal costs in quality; a removal
    /// that improves the quality costs 0 (but counts like a loss in
    /// [`PositionWeight::AsPrinted`]).
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the index of the block.
    ///
    /// Source: "HierarchicalPrune: Position-Aware Compression for Large-Scale Diffusion Models",
    /// 2025.
    ///
    /// ```
    /// use prune_importance::PositionWeight;
    /// // Three blocks that cost the same: the last goes first.
    /// let prunability = PositionWeight::Falling.prunability(&[1.0, 1.0, 1.0])?;
    /// assert!(prunability[2] > prunability[1] && prunability[1] > prunability[0]);
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn prunability(self, cost: &[f64]) -> Result<Vec<f64>> {
        if let Some(index) = cost.iter().position(|c| !c.is_finite()) {
            return Err(Error::NotFinite {
                what: "quality lost without each block".to_string(),
                index,
                value: cost[index].to_string(),
            });
        }
        let counted = |c: f64| match self {
            PositionWeight::AsPrinted => c.abs(),
            _ => c.max(0.0),
        };
        let blocks = cost.len();
        Ok(cost.iter().enumerate().map(|(i, &c)| -counted(c) * self.of(i, blocks)).collect())
    }
}
