use ndarray::ArrayView1;

use super::Precision;
use super::grid::Grid;

/// Groups that are computed side by side.
const LANES: usize = 8;

/// The six supports of 2:4.
const SUPPORTS: [(usize, usize); 6] = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];

/// What the loss can lose by changing each 2:4 group of a tile, for the whole tile at once.
///
/// Only a ranking: it is computed in the precision of the layer, and whoever takes a group computes
/// its step anew.
pub(super) struct Scan<T> {
    chunks: Vec<Chunk<T>>,
}

/// The matrices of [`LANES`] groups of columns, element by element.
struct Chunk<T> {
    /// `Q`, `m · m`.
    gram: [[T; LANES]; 16],
    /// `Q_ss⁻¹` of each support: first diagonal element, twice the off-diagonal, second.
    inverses: [[[T; LANES]; 3]; 6],
}

impl<T: Precision> Scan<T> {
    /// For the columns of tile `j`; `None` for another pattern than 2:4. `grams` are those of the
    /// layer.
    pub(super) fn new(grid: &Grid, grams: &[f64], j: usize) -> Option<Self> {
        if (grid.n, grid.m) != (2, 4) {
            return None;
        }
        let cols = grid.cols.tile(j);
        let grams = grams[cols.start * 4..cols.end * 4].chunks(16 * LANES);
        Some(Self { chunks: grams.map(Chunk::new).collect() })
    }

    /// Writes what each group of one row of the tile can lose, for `‖a‖²` of 1: multiply by it.
    /// `gradient` is that of the loss in the core.
    pub(super) fn row(
        &self,
        norm: f64,
        core: ArrayView1<'_, T>,
        gradient: ArrayView1<'_, T>,
        falls: &mut Vec<T>,
    ) {
        falls.clear();
        let (core, gradient) =
            (core.to_slice().unwrap_or_default(), gradient.to_slice().unwrap_or_default());
        let scale = T::of(0.5 / norm);
        let parts = core.chunks(4 * LANES).zip(gradient.chunks(4 * LANES));
        for (chunk, (core, gradient)) in self.chunks.iter().zip(parts) {
            let found = chunk.falls(&spread(core), &spread(gradient), scale);
            falls.extend_from_slice(&found[..core.len() / 4]);
        }
    }
}

/// The values of up to [`LANES`] groups of four, element by element.
fn spread<T: Precision>(values: &[T]) -> [[T; LANES]; 4] {
    let mut out = [[T::zero(); LANES]; 4];
    for (lane, group) in values.as_chunks::<4>().0.iter().enumerate() {
        for (out, value) in out.iter_mut().zip(group) {
            out[lane] = *value;
        }
    }
    out
}

impl<T: Precision> Chunk<T> {
    fn new(grams: &[f64]) -> Self {
        let mut chunk =
            Self { gram: [[T::zero(); LANES]; 16], inverses: [[[T::zero(); LANES]; 3]; 6] };
        for (lane, gram) in grams.as_chunks::<16>().0.iter().enumerate() {
            for (out, value) in chunk.gram.iter_mut().zip(gram) {
                out[lane] = T::of(*value);
            }
            for (out, (i, j)) in chunk.inverses.iter_mut().zip(SUPPORTS) {
                let (p, q, r) = (gram[5 * i], gram[4 * i + j], gram[5 * j]);
                let determinant = p * r - q * q;
                // A singular pair of columns can do no more than either of them.
                if determinant > 1e-12 * p * r {
                    out[0][lane] = T::of(r / determinant);
                    out[1][lane] = T::of(-2.0 * q / determinant);
                    out[2][lane] = T::of(p / determinant);
                }
            }
        }
        chunk
    }

    /// With `f` as in [`GroupStep`](super::group::GroupStep), over `‖a‖²`: the largest
    /// `f_sᵀ Q_ss⁻¹ f_s`, less what the present values take off the loss already.
    // An index runs through several arrays at once.
    #[allow(clippy::needless_range_loop)]
    fn falls(&self, core: &[[T; LANES]; 4], gradient: &[[T; LANES]; 4], scale: T) -> [T; LANES] {
        let mut f = [[T::zero(); LANES]; 4];
        let mut present = [T::zero(); LANES];
        for i in 0..4 {
            for l in 0..LANES {
                let slope = gradient[i][l] * scale;
                let mut image = self.gram[4 * i][l] * core[0][l];
                for j in 1..4 {
                    image += self.gram[4 * i + j][l] * core[j][l];
                }
                f[i][l] = slope - image;
                present[l] += core[i][l] * (f[i][l] + slope);
            }
        }
        let mut best = [T::zero(); LANES];
        for (inverse, (i, j)) in self.inverses.iter().zip(SUPPORTS) {
            for l in 0..LANES {
                let (x, y) = (f[i][l], f[j][l]);
                let gain = x * (inverse[0][l] * x + inverse[1][l] * y) + inverse[2][l] * y * y;
                best[l] = if gain > best[l] { gain } else { best[l] };
            }
        }
        for l in 0..LANES {
            best[l] += present[l];
        }
        best
    }
}
