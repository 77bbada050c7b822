use prune_core::{DType, Error, Result, TensorInfo, TensorSource, decode_f32};
use rayon::prelude::*;

use super::noise::Noise;

/// A checkpoint in which some tensors read as `w + step · z`, the rest as they are.
///
/// The direction z is computed while a tensor is read, so that nothing is stored: memory is that of
/// reading the checkpoint. The perturbed tensors are delivered as F32 (F64 where they are stored
/// so), since a small step would vanish in F16 or BF16.
///
/// ```
/// use prune_core::{DType, Error, Result, Seed, TensorInfo, TensorSource};
/// use prune_importance::{Distribution, Perturbed, SeededNoise};
///
/// struct Zeros([TensorInfo; 1]);
/// impl TensorSource for Zeros {
///     fn tensors(&self) -> &[TensorInfo] {
///         &self.0
///     }
///     fn read_at(&self, _name: &str, _offset: usize, buf: &mut [u8]) -> Result<()> {
///         buf.fill(0);
///         Ok(())
///     }
/// }
/// let zeros =
///     Zeros([TensorInfo { name: "w.weight".into(), dtype: DType::F16, shape: vec![2, 3] }]);
/// let noise = SeededNoise::new(Seed::new(0), Distribution::Rademacher);
/// let up = Perturbed::new(&zeros, &["w.weight"], &noise, 0, 0.25)?;
/// assert!(up.read_f32("w.weight")?.iter().all(|w| w.abs() == 0.25));
/// # Ok::<(), prune_core::Error>(())
/// ```
pub struct Perturbed<'a> {
    base: &'a dyn TensorSource,
    infos: Vec<TensorInfo>,
    /// Perturbed tensors and the name under which each draws its direction; sorted.
    targets: Vec<(String, String)>,
    noise: &'a dyn Noise,
    draw: u64,
    step: f64,
}

/// Elements that are read and moved together.
const BLOCK: usize = 1 << 14;

impl<'a> Perturbed<'a> {
    /// `base` with the named tensors moved by `step` along direction `draw` of `noise`.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`]; [`Error::DType`] for a tensor that is not of floats;
    /// [`Error::OutOfRange`] for a step that is NaN or infinite.
    pub fn new(
        base: &'a dyn TensorSource,
        tensors: &[&str],
        noise: &'a dyn Noise,
        draw: u64,
        step: f64,
    ) -> Result<Self> {
        let targets = tensors.iter().map(|t| (t.to_string(), t.to_string())).collect();
        Self::along(base, targets, noise, draw, step)
    }

    /// As [`Perturbed::new`], with the name under which each tensor draws its direction: copies of
    /// one weight move together.
    pub(super) fn along(
        base: &'a dyn TensorSource,
        mut targets: Vec<(String, String)>,
        noise: &'a dyn Noise,
        draw: u64,
        step: f64,
    ) -> Result<Self> {
        if !step.is_finite() {
            return Err(Error::OutOfRange {
                what: "perturbation".to_string(),
                found: step.to_string(),
                expected: "a finite step".to_string(),
            });
        }
        targets.sort();
        targets.dedup_by(|a, b| a.0 == b.0);
        let mut infos = base.tensors().to_vec();
        for (name, _) in &targets {
            let place = infos.binary_search_by(|t| t.name.as_str().cmp(name));
            let info = match place {
                Ok(place) => &mut infos[place],
                Err(_) => return Err(Error::UnknownTensor(name.clone())),
            };
            if !info.dtype.is_float() {
                return Err(Error::DType {
                    tensor: name.clone(),
                    found: info.dtype.to_string(),
                    expected: "F64, F32, F16 or BF16".to_string(),
                });
            }
            if info.dtype != DType::F64 {
                info.dtype = DType::F32;
            }
        }
        Ok(Self { base, infos, targets, noise, draw, step })
    }

    /// The same checkpoint moved the other way.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { step: -self.step, ..self }
    }

    /// Writes elements `first..` as they are delivered.
    fn elements(
        &self,
        name: &str,
        direction: &str,
        delivered: DType,
        first: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let stored = self.base.info(name)?.dtype;
        let size = delivered.size();
        let count = out.len() / size;
        let mut bytes = vec![0; count * stored.size()];
        self.base.read_at(name, first * stored.size(), &mut bytes)?;
        let mut z = vec![0.0; count];
        self.noise.fill(direction, self.draw, first, &mut z);
        if delivered == DType::F64 {
            let (from, _) = bytes.as_chunks::<8>();
            let (to, _) = out.as_chunks_mut::<8>();
            for ((to, from), z) in to.iter_mut().zip(from).zip(&z) {
                *to = (f64::from_le_bytes(*from) + self.step * z).to_le_bytes();
            }
        } else {
            let values = decode_f32(name, stored, &bytes)?;
            let (to, _) = out.as_chunks_mut::<4>();
            for ((to, w), z) in to.iter_mut().zip(values).zip(&z) {
                *to = ((f64::from(w) + self.step * z) as f32).to_le_bytes();
            }
        }
        Ok(())
    }
}

impl TensorSource for Perturbed<'_> {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> Result<()> {
        let target = self.targets.binary_search_by(|t| t.0.as_str().cmp(name));
        let Ok(target) = target else { return self.base.read_at(name, offset, buf) };
        let direction = &self.targets[target].1;
        let info = self.info(name)?;
        let size = info.dtype.size();
        let end = offset.checked_add(buf.len()).filter(|end| *end <= info.nbytes());
        let Some(end) = end else {
            return Err(Error::OutOfRange {
                what: format!("bytes of `{name}`"),
                found: format!("{} from {offset} on", buf.len()),
                expected: format!("a part of its {}", info.nbytes()),
            });
        };
        if offset.is_multiple_of(size) && end.is_multiple_of(size) {
            let first = offset / size;
            return buf.par_chunks_mut(BLOCK * size).enumerate().try_for_each(|(i, part)| {
                self.elements(name, direction, info.dtype, first + i * BLOCK, part)
            });
        }
        // A part that begins or ends within an element: whole elements around it.
        let (first, last) = (offset / size, end.div_ceil(size));
        let mut whole = vec![0; (last - first) * size];
        self.read_at(name, first * size, &mut whole)?;
        let skip = offset - first * size;
        buf.copy_from_slice(&whole[skip..skip + buf.len()]);
        Ok(())
    }
}
