use prune_core::{
    Error, GlobalSelection, GlobalSelector, LayerInfo, Result, TensorSource, decode_f32,
};

/// How many weights each of `layers` gives up, and the threshold, when exactly `remove` of all
/// their weights go: those of smallest absolute value, earlier layers and lower indices first among
/// equals.
///
/// A layer that then removes its count by magnitude at scope `layer` removes just the weights that
/// one threshold over the model would. Weights are compared as they are stored, read three times a
/// chunk of 4 million at a time and never held. A layer that shares the weight of another
/// ([`LayerInfo::tie`]) counts as often as it is listed: list it once.
///
/// # Errors
/// [`Error::OutOfRange`] when `remove` is more than all weights; [`Error::Shape`] when a stored
/// tensor differs from its [`LayerInfo`]; [`Error::NotFinite`] naming the tensor;
/// [`Error::UnknownTensor`], [`Error::DType`], and what reading gives.
///
/// ```
/// # use prune_core::{DType, Result, TensorInfo, TensorSource, encode_f32};
/// # struct Model(Vec<TensorInfo>);
/// # impl TensorSource for Model {
/// #     fn tensors(&self) -> &[TensorInfo] { &self.0 }
/// #     fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> Result<()> {
/// #         let w = if name == "a.weight" { [0.1, -3.0] } else { [0.2, 0.3] };
/// #         let bytes = encode_f32(name, DType::F32, &w)?;
/// #         buf.copy_from_slice(&bytes[offset..offset + buf.len()]);
/// #         Ok(())
/// #     }
/// # }
/// # let info = |n: &str| TensorInfo { name: n.into(), dtype: DType::F32, shape: vec![1, 2] };
/// # let source = Model(vec![info("a.weight"), info("b.weight")]);
/// use prune_core::LayerInfo;
/// use prune_unstructured::global_magnitude_counts;
/// // Layer `a` holds 0.1 and -3, layer `b` 0.2 and 0.3.
/// let layers = [LayerInfo::linear("a", 1, 2), LayerInfo::linear("b", 1, 2)];
/// let found = global_magnitude_counts(&source, &layers, 3)?;
/// assert_eq!((found.removed, found.threshold), (vec![1, 2], Some(0.3)));
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn global_magnitude_counts(
    source: &dyn TensorSource,
    layers: &[LayerInfo],
    remove: usize,
) -> Result<GlobalSelection> {
    count(source, layers, remove, CHUNK)
}

/// Weights read at a time.
const CHUNK: usize = 1 << 22;

fn count(
    source: &dyn TensorSource,
    layers: &[LayerInfo],
    remove: usize,
    chunk: usize,
) -> Result<GlobalSelection> {
    for layer in layers {
        let info = source.info(&layer.id.weight_name())?;
        if info.shape != layer.shape {
            return Err(Error::Shape {
                what: info.name.clone(),
                found: info.shape.clone(),
                expected: layer.shape.clone(),
            });
        }
    }
    let sizes = layers.iter().map(|layer| (layer.id.clone(), layer.numel())).collect();
    let mut selector = GlobalSelector::new(sizes, remove)?;
    while !selector.is_done() {
        for (i, layer) in layers.iter().enumerate() {
            feed(source, layer, chunk, &mut |values| selector.feed(i, values))?;
        }
        selector.end_pass()?;
    }
    selector.finish()
}

/// Reads a layer's weight in chunks and hands on the absolute values.
fn feed(
    source: &dyn TensorSource,
    layer: &LayerInfo,
    chunk: usize,
    take: &mut dyn FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    let name = layer.id.weight_name();
    let info = source.info(&name)?;
    let (len, width) = (info.numel(), info.dtype.size());
    let mut bytes = vec![0; len.min(chunk) * width];
    for first in (0..len).step_by(chunk) {
        let part = &mut bytes[..(len - first).min(chunk) * width];
        source.read_at(&name, first * width, part)?;
        let mut values = decode_f32(&name, info.dtype, part)?;
        values.iter_mut().for_each(|v| *v = v.abs());
        take(&values).map_err(|e| in_tensor(e, &name))?;
    }
    Ok(())
}

fn in_tensor(error: Error, name: &str) -> Error {
    match error {
        Error::NotFinite { index, value, .. } => {
            Error::NotFinite { what: name.to_string(), index, value }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use prune_core::{
        DType, LayerId, LayerStats, Pattern, Pruner, Scope, ScorePruner, Seed, Target, TensorInfo,
        encode_f32,
    };

    struct Memory(Vec<(TensorInfo, Vec<u8>)>, Vec<TensorInfo>);

    impl Memory {
        fn new(tensors: &[(&str, &Array2<f32>)]) -> Self {
            let encode = |(name, w): &(&str, &Array2<f32>)| {
                let info = TensorInfo {
                    name: name.to_string(),
                    dtype: DType::F32,
                    shape: w.shape().to_vec(),
                };
                (info, encode_f32(name, DType::F32, w.as_slice().unwrap()).unwrap())
            };
            let all: Vec<_> = tensors.iter().map(encode).collect();
            let infos = all.iter().map(|(info, _)| info.clone()).collect();
            Self(all, infos)
        }
    }

    impl TensorSource for Memory {
        fn tensors(&self) -> &[TensorInfo] {
            &self.1
        }

        fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> Result<()> {
            let found = self.0.iter().find(|(info, _)| info.name == name);
            let (_, bytes) = found.ok_or_else(|| Error::UnknownTensor(name.to_string()))?;
            buf.copy_from_slice(&bytes[offset..offset + buf.len()]);
            Ok(())
        }
    }

    fn fixture() -> (Array2<f32>, Array2<f32>) {
        let wave =
            |scale: f64| move |(i, j)| (scale * (7.0 * i as f64 + 3.0 * j as f64).sin()) as f32;
        (Array2::from_shape_fn((4, 8), wave(1.0)), Array2::from_shape_fn((8, 4), wave(0.5)))
    }

    #[test]
    fn half_of_the_fixture_takes_more_from_the_layer_of_half_the_scale() {
        let (a, b) = fixture();
        let source = Memory::new(&[("a.weight", &a), ("b.weight", &b)]);
        let layers = [LayerInfo::linear("a", 4, 8), LayerInfo::linear("b", 8, 4)];
        let expected = [32 - 21, 32 - 11];
        for chunk in [1, 7, 32, CHUNK] {
            assert_eq!(count(&source, &layers, 32, chunk).unwrap().removed, expected);
        }
    }

    #[test]
    fn pruning_each_layer_by_its_count_equals_one_sort_over_the_model() {
        let (a, b) = fixture();
        let source = Memory::new(&[("a.weight", &a), ("b.weight", &b)]);
        let layers = [LayerInfo::linear("a", 4, 8), LayerInfo::linear("b", 8, 4)];
        for remove in 0..=64 {
            let found = global_magnitude_counts(&source, &layers, remove).unwrap();
            let mut order: Vec<(f32, usize)> =
                a.iter().chain(&b).enumerate().map(|(i, w)| (w.abs(), i)).collect();
            order.sort_by(|x, y| x.0.total_cmp(&y.0));
            let mut want: Vec<usize> = order[..remove].iter().map(|(_, i)| *i).collect();
            want.sort_unstable();

            let mut got = Vec::new();
            for (l, (mut w, id)) in [(a.clone(), "a"), (b.clone(), "b")].into_iter().enumerate() {
                let layer = LayerId::new(id);
                let target = Target {
                    layer: &layer,
                    pattern: Pattern::Unstructured,
                    scope: Scope::PerLayer,
                    remove: found.removed[l],
                    stream: Seed::new(0).stream(id),
                };
                let magnitude = ScorePruner(crate::Magnitude);
                let pruned =
                    magnitude.prune(w.view_mut(), &LayerStats::default(), &target).unwrap();
                got.extend(pruned.mask.complement().kept_indices().map(|i| l * 32 + i));
            }
            assert_eq!(got, want, "{remove} removed");
        }
    }

    #[test]
    fn bad_models_are_refused_by_tensor_name() {
        let (mut a, b) = fixture();
        a[[1, 2]] = f32::NAN;
        let source = Memory::new(&[("a.weight", &a), ("b.weight", &b)]);
        let text = |layers: &[LayerInfo], remove| {
            count(&source, layers, remove, 3).unwrap_err().to_string()
        };
        assert_eq!(
            text(&[LayerInfo::linear("a", 4, 8)], 3),
            "a.weight: element 10 is NaN; every value must be finite"
        );
        assert_eq!(
            text(&[LayerInfo::linear("b", 4, 8)], 3),
            "b.weight: found shape [8, 4], expected [4, 8]"
        );
        assert_eq!(text(&[LayerInfo::linear("c", 4, 8)], 3), "no tensor named `c.weight`");
        assert!(text(&[LayerInfo::linear("b", 8, 4)], 33).contains("at most all weights (32)"));
    }
}
