use std::borrow::Cow;
use std::marker::PhantomData;

use half::f16;
use ndarray::{ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis, s};
use prune_core::{Error, Result};

use super::BlockFormat;
use super::blocks::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Small};
use super::rows::{Block, FloatRows, IntegerRows, TOGETHER, Weights};
use super::super_blocks::{Q2K, Q3K, Q4K, Q5K, Q6K, Super};
use crate::activations::Activations;
use crate::dense::multiply_panels;
use crate::operator::{
    LinearOperator, check_matrices, check_vectors, for_row_panels, rows_per_task,
};
use crate::pages::Pages;
use crate::simd::{KernelPath, Selected};
use crate::tiles::columns;

/// A matrix in a block format of GGUF, multiplied from its bytes.
///
/// Rows are whole blocks, one after the other, as they lie in the file. With [`Activations::Q8`] the
/// right-hand side is rounded to 8 bits in blocks of 32, of 256 for the K formats, and multiplied as
/// integers, as llama.cpp and candle do.
///
/// ```
/// use prune_kernels::{Activations, BlockFormat, GgufKernel, LinearOperator};
///
/// // One block of Q8_0: the scale 0.5 in half precision, then 32 signed bytes.
/// let mut block = vec![0x00, 0x38];
/// block.extend([2u8; 32]);
/// let a = GgufKernel::from_bytes(BlockFormat::Q8_0, 1, 32, block)?;
/// assert_eq!(a.matvec(&[1.0; 32])?, [32.0]);
/// assert_eq!(a.with_activations(Activations::Q8).matvec(&[127.0; 32])?, [32.0 * 127.0]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GgufKernel {
    format: BlockFormat,
    rows: usize,
    cols: usize,
    data: Pages<u8>,
    activations: Activations,
    selected: Selected,
}

/// Right-hand sides from which rows are expanded to f32 and multiplied as dense ones.
const MANY: usize = 16;

/// Calls a method with the types of a format.
macro_rules! by_format {
    ($self:ident.$method:ident($($arg:expr),*)) => {
        match $self.format {
            BlockFormat::Q4_0 => $self.$method::<Small<Q4_0>, 18, 32>($($arg),*),
            BlockFormat::Q4_1 => $self.$method::<Small<Q4_1>, 20, 32>($($arg),*),
            BlockFormat::Q5_0 => $self.$method::<Small<Q5_0>, 22, 32>($($arg),*),
            BlockFormat::Q5_1 => $self.$method::<Small<Q5_1>, 24, 32>($($arg),*),
            BlockFormat::Q8_0 => $self.$method::<Small<Q8_0>, 34, 32>($($arg),*),
            BlockFormat::Q2K => $self.$method::<Super<Q2K>, 84, 256>($($arg),*),
            BlockFormat::Q3K => $self.$method::<Super<Q3K>, 110, 256>($($arg),*),
            BlockFormat::Q4K => $self.$method::<Super<Q4K>, 144, 256>($($arg),*),
            BlockFormat::Q5K => $self.$method::<Super<Q5K>, 176, 256>($($arg),*),
            BlockFormat::Q6K => $self.$method::<Super<Q6K>, 210, 256>($($arg),*),
        }
    };
}

impl GgufKernel {
    /// The operator of `rows x cols` weights in `data`, with [`Activations::F32`].
    ///
    /// # Errors
    /// [`Error::InvalidQuantized`] naming the part at fault: columns that are no whole blocks, another
    /// number of bytes, a block whose scale or minimum is NaN or infinite.
    pub fn from_bytes(
        format: BlockFormat,
        rows: usize,
        cols: usize,
        data: Vec<u8>,
    ) -> Result<Self> {
        let invalid = |field, reason: String| {
            Err(Error::InvalidQuantized { field, reason: format!("{format}: {reason}") })
        };
        if !cols.is_multiple_of(format.elements()) {
            let elements = format.elements();
            return invalid("shape", format!("{cols} columns are no whole blocks of {elements}"));
        }
        let expected = (cols / format.elements() * format.bytes()).checked_mul(rows);
        if expected != Some(data.len()) {
            return invalid(
                "data",
                format!("found {} bytes, expected those of {rows} x {cols} weights", data.len()),
            );
        }
        let halves: &[usize] = match format {
            BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
            BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[0, 2],
            BlockFormat::Q2K => &[80, 82],
            BlockFormat::Q3K => &[108],
            BlockFormat::Q6K => &[208],
        };
        for (i, block) in data.chunks_exact(format.bytes()).enumerate() {
            for at in halves {
                let half = f16::from_le_bytes([block[*at], block[*at + 1]]);
                if !half.is_finite() {
                    return invalid("data", format!("block {i} has the scale {half}"));
                }
            }
        }
        let (activations, selected) = (Activations::F32, Selected::best());
        Ok(Self { format, rows, cols, data: data.into(), activations, selected })
    }

    /// The same matrix with another treatment of the right-hand side.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// The same matrix on another path.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when this processor does not have it.
    pub fn with_path(self, path: KernelPath) -> Result<Self> {
        Ok(Self { selected: Selected::new(path)?, ..self })
    }

    /// The format of its blocks.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    fn row_data(&self, first: usize, rows: usize) -> &[u8] {
        let bytes = self.cols / self.format.elements() * self.format.bytes();
        &self.data[first * bytes..(first + rows) * bytes]
    }

    /// Writes the product with the right-hand sides that are one after the other in `x`, as many as
    /// `y` has columns.
    fn write<B: Block<BYTES, ELEMENTS>, const BYTES: usize, const ELEMENTS: usize>(
        &self,
        x: &[f32],
        mut y: ArrayViewMut2<'_, f32>,
    ) {
        let rows = rows_per_task(self, 1, y.ncols());
        for first in (0..y.ncols()).step_by(TOGETHER) {
            let count = TOGETHER.min(y.ncols() - first);
            let y = y.slice_mut(s![.., first..first + count]);
            let x = &x[first * self.cols..(first + count) * self.cols];
            if self.activations == Activations::F32 {
                for_row_panels(y, rows, |first, y| {
                    let data = self.row_data(first, y.nrows());
                    let format = PhantomData::<B>;
                    let cols = self.cols;
                    self.selected.run(FloatRows::<B, BYTES, ELEMENTS> { format, data, x, cols, y });
                });
                continue;
            }
            let inputs: Vec<_> = (0..count)
                .map(|j| {
                    let x = &x[j * self.cols..(j + 1) * self.cols];
                    B::input(self.selected, x, self.activations)
                })
                .collect();
            for_row_panels(y, rows, |first, y| {
                let data = self.row_data(first, y.nrows());
                let inputs = &inputs[..];
                self.selected.run(IntegerRows::<B, BYTES, ELEMENTS> { data, inputs, y });
            });
        }
    }

    fn weights<B: Block<BYTES, ELEMENTS>, const BYTES: usize, const ELEMENTS: usize>(
        &self,
        first: usize,
        rows: usize,
    ) -> Vec<f32> {
        let mut w = vec![0.0; rows * self.cols];
        let data = self.row_data(first, rows);
        let format = PhantomData::<B>;
        self.selected.run(Weights::<B, BYTES, ELEMENTS> { format, data, w: &mut w });
        w
    }
}

impl LinearOperator for GgufKernel {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn nbytes(&self) -> usize {
        self.data.len()
    }

    fn path(&self) -> KernelPath {
        self.selected.path()
    }

    fn matvec_into(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        check_vectors(self, x, y)?;
        let y = ArrayViewMut1::from(y).insert_axis(Axis(1));
        by_format!(self.write(x, y));
        Ok(())
    }

    fn matmul_into(&self, x: ArrayView2<'_, f32>, y: ArrayViewMut2<'_, f32>) -> Result<()> {
        check_matrices(self, &x, &y)?;
        if self.activations == Activations::F32 && x.ncols() >= MANY {
            let rows = rows_per_task(self, 1, y.ncols());
            multiply_panels(x, y, rows, |first, rows| {
                Cow::Owned(by_format!(self.weights(first, rows)))
            });
            return Ok(());
        }
        let x = columns(x, self.cols);
        by_format!(self.write(&x, y));
        Ok(())
    }
}
