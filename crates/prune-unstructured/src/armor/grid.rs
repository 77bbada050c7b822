use std::ops::Range;

/// How a layer is cut: into blocks, which are what the factors know, and into tiles of whole
/// blocks, which are what one thread works on while they stay in its cache. The last of each is
/// smaller where sizes do not divide.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) rows: Axis,
    pub(super) cols: Axis,
    /// Kept of every group.
    pub(super) n: usize,
    /// Consecutive columns of a group.
    pub(super) m: usize,
}

/// One dimension of a [`Grid`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub(super) size: usize,
    pub(super) block: usize,
    /// A multiple of `block`.
    tile: usize,
}

impl Axis {
    /// `size` cut into blocks of `block >= 1` and tiles of about `tile`.
    pub(super) fn new(size: usize, block: usize, tile: usize) -> Self {
        Self { size, block, tile: block * (tile / block).max(1) }
    }

    pub(super) fn blocks(&self) -> usize {
        self.size.div_ceil(self.block)
    }

    pub(super) fn tiles(&self) -> usize {
        self.size.div_ceil(self.tile)
    }

    /// Where a block lies.
    pub(super) fn block(&self, index: usize) -> Range<usize> {
        index * self.block..((index + 1) * self.block).min(self.size)
    }

    /// Where a tile lies.
    pub(super) fn tile(&self, index: usize) -> Range<usize> {
        index * self.tile..((index + 1) * self.tile).min(self.size)
    }

    /// The blocks of a tile: index and place within the tile.
    pub(super) fn blocks_of(
        &self,
        tile: usize,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let (size, block) = (self.size, self.block);
        let all = self.tile(tile);
        (all.start / block..all.end.div_ceil(block)).map(move |i| {
            let end = ((i + 1) * block).min(size);
            (i, i * block - all.start..end - all.start)
        })
    }

    /// The blocks of a tile, as indices.
    pub(super) fn block_range(&self, tile: usize) -> Range<usize> {
        let all = self.tile(tile);
        all.start / self.block..all.end.div_ceil(self.block)
    }
}
