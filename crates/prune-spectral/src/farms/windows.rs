use prune_linalg::Real;

use super::options::{ConvAverage, Farms, Spacing};
use crate::{Error, Result, Weight};

/// Where windows lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Placement {
    /// Evenly from the first row and column to the last, at most one window apart, so that every
    /// element is seen.
    #[default]
    Covering,
    /// Where the released code puts them. Steps are rounded down, so that the last rows and
    /// columns may not be seen; a window wider than the layer is cut as Python cuts a slice; of a
    /// convolution only the first `rows / cols` bands, and the first columns, are seen.
    Released,
}

/// A window of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// First row.
    pub row: usize,
    /// First column.
    pub col: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

/// The windows of a weight.
///
/// ```
/// use ndarray::Array2;
/// use prune_spectral::Farms;
/// let weight = Array2::<f32>::zeros((300, 1000));
/// let plan = Farms::default().plan(weight.view())?;
/// assert_eq!((plan.windows().len(), plan.eigenvalues()), (100, 12800));
/// let last = plan.windows()[99];
/// assert_eq!((last.row + last.rows, last.col + last.cols), (300, 1000));
/// # Ok::<(), prune_spectral::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowPlan {
    /// All of one shape.
    windows: Vec<Window>,
    /// Whether each matrix is transposed first.
    pub(super) transposed: bool,
    /// The number of matrices that every window is cut from.
    pub(super) matrices: usize,
    /// Whether every window is a group of its own, with a fit of its own.
    pub(super) separate: bool,
}

impl WindowPlan {
    pub(super) fn new<T: Real>(farms: &Farms, weight: &Weight<'_, T>) -> Result<Self> {
        weight.check()?;
        let (rows, cols) = weight.sides();
        let plan = match weight {
            Weight::Linear(_) => Self {
                windows: linear(farms, rows, cols),
                transposed: false,
                matrices: 1,
                separate: false,
            },
            Weight::Conv2d(_) => Self {
                windows: conv(farms, rows.max(cols), rows.min(cols)),
                transposed: rows < cols,
                matrices: weight.receptive_field(),
                separate: farms.conv == ConvAverage::Exponents,
            },
        };
        if plan.eigenvalues() < 2 {
            return Err(Error::TooFewEigenvalues {
                found: plan.eigenvalues(),
                dropped: 0,
                needed: 2,
            });
        }
        Ok(plan)
    }

    /// The windows, row by row; a convolution has them in each of its slices.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// The number of eigenvalues of all windows together.
    pub fn eigenvalues(&self) -> usize {
        self.matrices * self.windows.iter().map(|w| w.rows.min(w.cols)).sum::<usize>()
    }
}

/// Windows of a linear layer, which is cut as it is stored.
fn linear(farms: &Farms, rows: usize, cols: usize) -> Vec<Window> {
    match farms.placement {
        Placement::Covering => {
            let height = farms.window.min(rows).min(fraction(cols as f64 / farms.aspect));
            let width = fraction(height as f64 * farms.aspect).min(cols);
            let (down, across) = match farms.spacing {
                Spacing::Count(n) => (spread(rows, height, n), spread(cols, width, n)),
                Spacing::Stride(s) => (strides(rows, height, s), strides(cols, width, s)),
            };
            grid(&down, &across, height, width)
        }
        Placement::Released => {
            // Only windows of a given number are clamped to the layer.
            let height = match farms.spacing {
                Spacing::Count(_) => farms.window.min(rows).min(cols),
                Spacing::Stride(_) => farms.window,
            };
            let width = (height as f64 * farms.aspect) as usize;
            let down = released_starts(rows, height, farms.spacing);
            let across = released_starts(cols, width, farms.spacing);
            let mut windows = Vec::with_capacity(down.len() * across.len());
            for row in &down {
                for col in &across {
                    let (row, rows) = python_slice(*row, height, rows);
                    let (col, cols) = python_slice(*col, width, cols);
                    windows.push(Window { row, col, rows, cols });
                }
            }
            windows
        }
    }
}

/// Windows of the slices of a convolution, whose longer side are the rows.
fn conv(farms: &Farms, rows: usize, cols: usize) -> Vec<Window> {
    match farms.placement {
        Placement::Covering => {
            let height = fraction(cols as f64 / farms.aspect).min(cols);
            let width = fraction(height as f64 * farms.aspect).min(cols);
            grid(&spread(rows, height, 1), &spread(cols, width, 1), height, width)
        }
        Placement::Released => {
            let (height, width) = if farms.aspect > 1.0 {
                (floor_divide(cols as f64, farms.aspect), cols)
            } else {
                (cols, floor_divide(cols as f64, 1.0 / farms.aspect))
            };
            (0..rows / cols)
                .map(|band| Window { row: band * height, col: 0, rows: height, cols: width })
                .collect()
        }
    }
}

/// At least 1; a hair below a whole number counts as that number.
fn fraction(x: f64) -> usize {
    ((x + 1e-9) as usize).max(1)
}

/// Python's `a // b` of floats, at least 1.
fn floor_divide(a: f64, b: f64) -> usize {
    (((a - a % b) / b).round() as usize).max(1)
}

/// `count` starts or as many as cover, evenly from 0 to `length - window`.
fn spread(length: usize, window: usize, count: usize) -> Vec<usize> {
    let room = length - window;
    let count = count.max(length.div_ceil(window)).min(room + 1);
    if count == 1 {
        return vec![0];
    }
    (0..count).map(|a| a * room / (count - 1)).collect()
}

/// A start every `stride`, at most a window, and one that ends with the last element.
fn strides(length: usize, window: usize, stride: usize) -> Vec<usize> {
    let room = length - window;
    let mut starts: Vec<usize> = (0..=room).step_by(stride.min(window)).collect();
    if starts.last() != Some(&room) {
        starts.push(room);
    }
    starts
}

/// The starts of the released code; negative where the window is longer than the dimension.
fn released_starts(length: usize, window: usize, spacing: Spacing) -> Vec<i64> {
    let room = length as i64 - window as i64;
    match spacing {
        // The released code divides by zero.
        Spacing::Count(1) => vec![0.min(room)],
        Spacing::Count(count) => {
            let step = room.div_euclid(count as i64 - 1).max(1);
            let starts = (room.div_euclid(step) + 1).clamp(1, count as i64);
            (0..starts).map(|a| (a * step).min(room)).collect()
        }
        Spacing::Stride(stride) => {
            let starts = (room.div_euclid(stride as i64) + 1).max(1);
            (0..starts).map(|a| a * stride as i64).collect()
        }
    }
}

/// First index and length of `[start : start + window]` of `length` elements in Python.
fn python_slice(start: i64, window: usize, length: usize) -> (usize, usize) {
    let length = length as i64;
    let index = |i: i64| (if i < 0 { i + length } else { i }).clamp(0, length);
    let (from, to) = (index(start), index(start + window as i64));
    (from as usize, (to - from).max(0) as usize)
}

fn grid(down: &[usize], across: &[usize], rows: usize, cols: usize) -> Vec<Window> {
    down.iter()
        .flat_map(|row| across.iter().map(move |col| Window { row: *row, col: *col, rows, cols }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn released_windows_lie_where_the_released_code_puts_them() {
        // Ten rows, windows of four, five of them: rows 8 and 9 are not seen.
        assert_eq!(released_starts(10, 4, Spacing::Count(5)), [0, 1, 2, 3, 4]);
        // LLaMA-7B: the last of 15 windows ends at 4086 of 4096 and at 11002 of 11008.
        let last = |n| released_starts(n, 2000, Spacing::Count(15)).last().map(|s| s + 2000);
        assert_eq!((last(4096), last(11008)), (Some(4086), Some(11002)));
        // A window of twenty columns in ten: start -10, which Python clips to all ten.
        assert_eq!(released_starts(10, 20, Spacing::Count(10)), [-10]);
        assert_eq!(python_slice(-10, 20, 10), (0, 10));
        assert_eq!(python_slice(-5, 15, 10), (5, 5));
        assert_eq!(released_starts(100, 30, Spacing::Stride(40)), [0, 40]);
        assert_eq!(released_starts(100, 30, Spacing::Count(1)), [0]);
    }

    proptest! {
        #[test]
        fn covering_windows_see_every_element(
            length in 1usize..200,
            window in 1usize..200,
            n in 1usize..30,
        ) {
            let window = window.min(length);
            for starts in [spread(length, window, n), strides(length, window, n)] {
                prop_assert_eq!(starts[0], 0);
                prop_assert_eq!(starts[starts.len() - 1] + window, length);
                prop_assert!(starts.windows(2).all(|s| s[0] < s[1] && s[1] - s[0] <= window));
            }
        }
    }
}
