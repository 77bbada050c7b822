mod product;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Zip};

use crate::{Error, Result, check_finite};
use product::CHUNK;

/// The Gram matrix `XᵀX` over calibration tokens, `channels x channels`, summed in f64.
///
/// Streaming and mergeable. Memory 8·channels² bytes. SparseGPT's Hessian is twice this divided by
/// the number of sequences; ALPS and ADMM take it as it is.
///
/// ```
/// use ndarray::array;
/// use prune_core::GramAccumulator;
///
/// let mut gram = GramAccumulator::new(2);
/// gram.update("x", array![[1.0, 2.0], [3.0, 4.0]].view())?;
/// assert_eq!(gram.matrix(), array![[10.0, 14.0], [14.0, 20.0]]);
///
/// // Its parts are all there is to store.
/// let stored = (gram.count(), gram.matrix().to_owned());
/// assert_eq!(GramAccumulator::from_parts(stored.0, stored.1)?, gram);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GramAccumulator {
    count: u64,
    sum: Array2<f64>,
}

impl GramAccumulator {
    /// No tokens yet, `channels` input channels.
    pub fn new(channels: usize) -> Self {
        Self { count: 0, sum: Array2::zeros((channels, channels)) }
    }

    /// Rebuilds an accumulator from its parts, as a file or another framework gives them.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the matrix is square; [`Error::NotFinite`]; [`Error::OutOfRange`]
    /// for a matrix that is not symmetric or has a negative diagonal.
    pub fn from_parts(count: u64, matrix: Array2<f64>) -> Result<Self> {
        let what = "Gram matrix";
        let (rows, cols) = matrix.dim();
        if rows != cols {
            return Err(Error::Shape {
                what: what.to_string(),
                found: vec![rows, cols],
                expected: vec![rows, rows],
            });
        }
        if let Some((index, value)) = matrix.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            let value = value.to_string();
            return Err(Error::NotFinite { what: what.to_string(), index, value });
        }
        for i in 0..rows {
            if matrix[[i, i]] < 0.0 {
                let place = format!("{what} ({i}, {i})");
                return Err(Error::out_of_range(place, matrix[[i, i]], "at least 0"));
            }
            for j in 0..i {
                let (low, high) = (matrix[[i, j]], matrix[[j, i]]);
                if low != high {
                    let place = format!("{what} ({i}, {j})");
                    return Err(Error::out_of_range(place, low, format!("{high}, as ({j}, {i})")));
                }
            }
        }
        // `update` takes rows as slices.
        let standard = matrix.is_standard_layout();
        let sum = if standard { matrix } else { matrix.as_standard_layout().into_owned() };
        Ok(Self { count, sum })
    }

    /// Adds the rows of `inputs` (`tokens x channels`), on all threads with the same bits for any
    /// number of them.
    ///
    /// Chunks of 128 tokens are multiplied in f32 and summed in f64, so that an entry is off by
    /// less than 1e-5, typically 5e-7, of the sum of its absolute products. Costs tokens · channels² operations: the
    /// triangle above the diagonal is computed and mirrored. Packs the inputs meanwhile, at most
    /// 16 MiB or 128 tokens at a time.
    ///
    /// # Errors
    /// [`Error::Shape`] when the channels differ; [`Error::NotFinite`] naming `what`, also for
    /// inputs so large that their products overflow f32. Nothing is added then.
    pub fn update(&mut self, what: &str, inputs: ArrayView2<'_, f32>) -> Result<()> {
        self.update_all(what, &[inputs])
    }

    /// [`update`](Self::update) with each of `inputs`, with the same bits in less time.
    ///
    /// # Errors
    /// As there; nothing of any of the inputs is added then.
    pub fn update_all(&mut self, what: &str, inputs: &[ArrayView2<'_, f32>]) -> Result<()> {
        let n = self.channels();
        for inputs in inputs {
            if inputs.ncols() != n {
                return Err(Error::Shape {
                    what: what.to_string(),
                    found: vec![inputs.nrows(), inputs.ncols()],
                    expected: vec![inputs.nrows(), n],
                });
            }
            let inputs = inputs.as_standard_layout();
            if let Some(values) = inputs.as_slice() {
                check_finite(what, values)?;
                check_products(what, values)?;
            }
        }
        product::add_upper(&mut self.sum, inputs);
        mirror(self.sum.view_mut());
        self.count += inputs.iter().map(|inputs| inputs.nrows() as u64).sum::<u64>();
        Ok(())
    }

    /// Adds what `other` saw.
    ///
    /// # Errors
    /// [`Error::Shape`] when the channels differ.
    pub fn merge(&mut self, other: &GramAccumulator) -> Result<()> {
        if self.sum.dim() != other.sum.dim() {
            return Err(Error::Shape {
                what: "Gram matrix".to_string(),
                found: other.sum.shape().to_vec(),
                expected: self.sum.shape().to_vec(),
            });
        }
        Zip::from(&mut self.sum).and(&other.sum).par_for_each(|a, b| *a += b);
        self.count += other.count;
        Ok(())
    }

    /// Tokens seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Input channels.
    pub fn channels(&self) -> usize {
        self.sum.nrows()
    }

    /// `XᵀX`, symmetric to the bit.
    pub fn matrix(&self) -> ArrayView2<'_, f64> {
        self.sum.view()
    }

    /// Tokens seen and `XᵀX`, without a copy.
    pub fn into_parts(self) -> (u64, Array2<f64>) {
        (self.count, self.sum)
    }
}

/// Refuses inputs whose products could overflow f32 within a chunk.
fn check_products(what: &str, values: &[f32]) -> Result<()> {
    let limit = (f32::MAX / CHUNK as f32).sqrt();
    match values.iter().position(|x| x.abs() > limit) {
        None => Ok(()),
        Some(index) => Err(Error::NotFinite {
            what: format!("{what} (squares)"),
            index,
            value: values[index].to_string(),
        }),
    }
}

/// Sides from which on halves of a matrix go to threads of their own.
const SHARED: usize = 256;

/// Copies the triangle above the diagonal below it.
fn mirror(matrix: ArrayViewMut2<'_, f64>) {
    let n = matrix.nrows();
    if n < 2 {
        return;
    }
    let (top, bottom) = matrix.split_at(Axis(0), n / 2);
    let (first, above) = top.split_at(Axis(1), n / 2);
    let (below, last) = bottom.split_at(Axis(1), n / 2);
    let copy = || transpose(above.view(), below);
    if n < SHARED {
        copy();
        mirror(first);
        mirror(last);
    } else {
        rayon::join(copy, || rayon::join(|| mirror(first), || mirror(last)));
    }
}

/// Copies `from`, turned, in tiles that stay in cache.
fn transpose(from: ArrayView2<'_, f64>, mut to: ArrayViewMut2<'_, f64>) {
    const SIDE: usize = 16;
    let (rows, cols) = to.dim();
    if rows.max(cols) <= SIDE {
        for (mut to, from) in to.rows_mut().into_iter().zip(from.columns()) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
        return;
    }
    let axis = if rows >= cols { 0 } else { 1 };
    let half = rows.max(cols) / 2;
    let (first, last) = to.split_at(Axis(axis), half);
    let (from_first, from_last) = from.split_at(Axis(1 - axis), half);
    if half < SHARED {
        transpose(from_first, first);
        transpose(from_last, last);
    } else {
        rayon::join(|| transpose(from_first, first), || transpose(from_last, last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use ndarray::s;
    use proptest::prelude::*;

    /// Fixture S of the reference oracle: `X[t,j] = sin(0.37 (t+1)(j+1)) + 0.5 cos(t+1)`.
    fn fixture() -> Array2<f32> {
        Array2::from_shape_fn((16, 8), |(t, j)| {
            let (t, j) = (t as f64 + 1.0, j as f64 + 1.0);
            ((0.37 * t * j).sin() + 0.5 * t.cos()) as f32
        })
    }

    /// Correlated inputs with a loud channel.
    fn inputs(tokens: usize, channels: usize, seed: u64) -> Array2<f32> {
        let mut stream = crate::Seed::new(seed).stream("inputs");
        Array2::from_shape_fn((tokens, channels), |(t, j)| {
            let shared = ((t * 7 + j) % 5) as f32 - 2.0;
            let loud = if j == 1 { 50.0 } else { 1.0 };
            loud * (shared + stream.uniform() as f32)
        })
    }

    #[test]
    fn gram_matches_the_reference() {
        let mut gram = GramAccumulator::new(8);
        gram.update("x", fixture().view()).unwrap();
        // H = 2 G / sequences with two sequences is G.
        let row = [9.908745, 0.617795, 4.745966, 2.436556, 2.103271, 1.949367, 1.848526, 1.768046];
        for (got, want) in gram.matrix().row(0).iter().zip(row) {
            assert_relative_eq!(*got, want, epsilon = 2e-6);
        }
    }

    #[test]
    fn wide_layers_agree_with_a_product_in_double_precision() {
        let x = inputs(300, 270, 1);
        let mut gram = GramAccumulator::new(270);
        gram.update("x", x.view()).unwrap();
        let wide = x.mapv(f64::from);
        let (exact, scale) = (wide.t().dot(&wide), wide.mapv(f64::abs));
        let scale = scale.t().dot(&scale);
        for ((got, want), scale) in gram.matrix().iter().zip(&exact).zip(&scale) {
            assert!((got - want).abs() <= 1e-6 * scale, "{got} {want}");
        }
        assert_eq!(gram.matrix(), gram.matrix().t());
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_layout() {
        let x = inputs(150, 300, 2);
        let turned = x.t().as_standard_layout().into_owned().reversed_axes();
        let sum = |threads, x: ArrayView2<'_, f32>| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut gram = GramAccumulator::new(300);
            pool.install(|| gram.update("x", x)).unwrap();
            gram
        };
        let one = sum(1, x.view());
        assert_eq!(one, sum(3, x.view()));
        assert_eq!(one, sum(4, turned.view()));

        let mut apart = one.clone();
        apart.update("x", x.slice(s![..70, ..])).unwrap();
        apart.update("x", x.slice(s![3.., ..])).unwrap();
        let mut at_once = one;
        at_once.update_all("x", &[x.slice(s![..70, ..]), x.slice(s![3.., ..])]).unwrap();
        assert_eq!(at_once, apart);

        let by_columns = apart.matrix().to_owned().reversed_axes();
        let mut restored = GramAccumulator::from_parts(apart.count(), by_columns).unwrap();
        restored.update("x", x.view()).unwrap();
        apart.update("x", x.view()).unwrap();
        assert_eq!(restored, apart);
    }

    #[test]
    fn bad_inputs_and_parts_are_refused_and_leave_no_trace() {
        let mut gram = GramAccumulator::new(2);
        let bad = ndarray::array![[1.0, f32::NAN]];
        assert!(matches!(gram.update("x", bad.view()), Err(Error::NotFinite { index: 1, .. })));
        let loud = ndarray::array![[1.0, 1e30]];
        assert!(gram.update("x", loud.view()).unwrap_err().to_string().contains("x (squares)"));
        let wide = ndarray::array![[1.0, 2.0, 3.0]];
        assert!(matches!(gram.update("x", wide.view()), Err(Error::Shape { .. })));
        assert_eq!(gram, GramAccumulator::new(2));

        let text = |m| GramAccumulator::from_parts(1, m).unwrap_err().to_string();
        assert!(text(ndarray::array![[1.0, 2.0]]).contains("found shape [1, 2]"));
        let uneven = ndarray::array![[1.0, 2.0], [3.0, 1.0]];
        assert_eq!(text(uneven), "Gram matrix (1, 0) is 3; expected 2, as (0, 1)");
        assert!(text(ndarray::array![[-1.0]]).contains("at least 0"));
        assert!(text(ndarray::array![[f64::INFINITY]]).contains("inf"));
    }

    proptest! {
        #[test]
        fn merging_parts_equals_one_pass(cut in 0usize..=40, seed in any::<u64>()) {
            let x = inputs(40, 9, seed);
            let mut whole = GramAccumulator::new(9);
            whole.update("x", x.view()).unwrap();
            let mut left = GramAccumulator::new(9);
            left.update("x", x.slice(s![..cut, ..])).unwrap();
            let mut right = GramAccumulator::new(9);
            right.update("x", x.slice(s![cut.., ..])).unwrap();
            left.merge(&right).unwrap();
            prop_assert_eq!(left.count(), 40);
            for (a, b) in left.matrix().iter().zip(whole.matrix()) {
                // Both are off by f32 roundings of at most 40 products of 52² each.
                prop_assert!((a - b).abs() < 1e-6 * 40.0 * 2704.0);
            }
        }
    }
}
