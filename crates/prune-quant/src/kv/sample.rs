use ndarray::{Array3, ArrayView3, Axis};
use prune_core::{Error, Result};

use super::out_of_range;

/// Queries, keys and values of one layer over one prompt, as attention multiplies them: after the
/// rotary embedding and any norm of queries and keys.
#[derive(Debug, Clone)]
pub struct AttentionSample {
    queries: Array3<f64>,
    keys: Array3<f64>,
    values: Array3<f64>,
    visible: Vec<usize>,
}

impl AttentionSample {
    /// A sample where every query sees every key.
    ///
    /// Shapes: queries `(heads, queries, head_dim)`, keys and values `(kv_heads, tokens,
    /// head_dim)`; `kv_heads` divides `heads`, and neighbouring query heads share a key head.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::NotFinite`].
    pub fn unmasked(
        queries: ArrayView3<'_, f64>,
        keys: ArrayView3<'_, f64>,
        values: ArrayView3<'_, f64>,
    ) -> Result<Self> {
        let (heads, count, head_dim) = queries.dim();
        let (kv_heads, tokens, _) = keys.dim();
        let whole = [heads, kv_heads, count, tokens, head_dim].iter().all(|n| *n > 0);
        if !whole || !heads.is_multiple_of(kv_heads) || keys.dim().2 != head_dim {
            return Err(Error::Shape {
                what: "keys of an attention sample".to_string(),
                found: keys.shape().to_vec(),
                expected: vec![heads, tokens.max(1), head_dim],
            });
        }
        if values.dim() != keys.dim() {
            return Err(Error::Shape {
                what: "values of an attention sample".to_string(),
                found: values.shape().to_vec(),
                expected: keys.shape().to_vec(),
            });
        }
        for (what, array) in [("queries", &queries), ("keys", &keys), ("values", &values)] {
            if let Some((index, x)) = array.iter().enumerate().find(|(_, x)| !x.is_finite()) {
                return Err(Error::NotFinite {
                    what: format!("{what} of an attention sample"),
                    index,
                    value: x.to_string(),
                });
            }
        }
        Ok(Self {
            queries: queries.to_owned(),
            keys: keys.to_owned(),
            values: values.to_owned(),
            visible: vec![tokens; count],
        })
    }

    /// A sample of a causal model from its f32 activations: query `i` sees the keys `0..=i`, of as
    /// many queries as keys. Shapes as in [`AttentionSample::unmasked`].
    ///
    /// # Errors
    /// As [`AttentionSample::unmasked`]; [`Error::Shape`] when queries and keys differ in number.
    pub fn causal(
        queries: ArrayView3<'_, f32>,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
    ) -> Result<Self> {
        let (queries, keys) = (queries.mapv(f64::from), keys.mapv(f64::from));
        let mut sample =
            Self::unmasked(queries.view(), keys.view(), values.mapv(f64::from).view())?;
        if queries.dim().1 != keys.dim().1 {
            return Err(Error::Shape {
                what: "queries of a causal attention sample".to_string(),
                found: queries.shape().to_vec(),
                expected: vec![queries.dim().0, keys.dim().1, keys.dim().2],
            });
        }
        sample.visible = (1..=keys.dim().1).collect();
        Ok(sample)
    }

    /// The sample with every `stride`-th query only, the last among them. Measuring costs in
    /// proportion to the queries, and neighbouring ones tell much the same.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for 0.
    pub fn every(self, stride: usize) -> Result<Self> {
        if stride == 0 {
            return Err(out_of_range("stride of queries", stride, "at least 1"));
        }
        let count = self.visible.len();
        let kept: Vec<usize> = ((count - 1) % stride..count).step_by(stride).collect();
        Ok(Self {
            queries: self.queries.select(Axis(1), &kept),
            visible: kept.iter().map(|i| self.visible[*i]).collect(),
            ..self
        })
    }

    pub(crate) fn queries(&self) -> ArrayView3<'_, f64> {
        self.queries.view()
    }

    pub(crate) fn keys(&self) -> ArrayView3<'_, f64> {
        self.keys.view()
    }

    pub(crate) fn values(&self) -> ArrayView3<'_, f64> {
        self.values.view()
    }

    /// Keys that each query sees.
    pub(crate) fn visible(&self) -> &[usize] {
        &self.visible
    }
}
