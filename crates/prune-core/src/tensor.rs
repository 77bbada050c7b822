use std::fmt;
use std::str::FromStr;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ndarray::Array2;

use crate::{Error, Result, check_finite};

/// The element type of a stored tensor, named as safetensors names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

const DTYPES: [(DType, &str, usize); 15] = [
    (DType::F64, "F64", 8),
    (DType::F32, "F32", 4),
    (DType::F16, "F16", 2),
    (DType::BF16, "BF16", 2),
    (DType::F8E4M3, "F8_E4M3", 1),
    (DType::F8E5M2, "F8_E5M2", 1),
    (DType::I64, "I64", 8),
    (DType::I32, "I32", 4),
    (DType::I16, "I16", 2),
    (DType::I8, "I8", 1),
    (DType::U64, "U64", 8),
    (DType::U32, "U32", 4),
    (DType::U16, "U16", 2),
    (DType::U8, "U8", 1),
    (DType::Bool, "BOOL", 1),
];

impl DType {
    fn row(self) -> &'static (DType, &'static str, usize) {
        // The table lists every variant in declaration order.
        &DTYPES[self as usize]
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        self.row().2
    }

    /// The safetensors name: `BF16`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Whether [`decode_f32`] and [`encode_f32`] take it: F64, F32, F16 or BF16.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        DTYPES
            .iter()
            .find(|(_, name, _)| name.eq_ignore_ascii_case(text))
            .map(|(d, _, _)| *d)
            .ok_or_else(|| {
                Error::out_of_range(
                    "dtype",
                    format!("`{text}`"),
                    "F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64..I8, U64..U8 or BOOL",
                )
            })
    }
}

/// Name, element type and shape of one stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the checkpoint.
    pub name: String,
    /// The element type as stored (or as delivered, for a source that dequantises).
    pub dtype: DType,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// The number of bytes.
    pub fn nbytes(&self) -> usize {
        self.numel() * self.dtype.size()
    }

    /// `(rows, cols)` of a matrix.
    pub fn matrix_shape(&self) -> Result<(usize, usize)> {
        match self.shape[..] {
            [r, c] => Ok((r, c)),
            _ => Err(Error::Shape {
                what: self.name.clone(),
                found: self.shape.clone(),
                expected: vec![0, 0],
            }),
        }
    }
}

/// A checkpoint to read from, a tensor or a part of one at a time.
///
/// Implementations hold at most headers in memory. Readable from many threads.
pub trait TensorSource: Send + Sync {
    /// Every tensor, in a fixed order that does not depend on sharding (sorted by name).
    fn tensors(&self) -> &[TensorInfo];

    /// Fills `buf` with the little-endian bytes of tensor `name` from byte `offset` on.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`]; [`Error::OutOfRange`] when the range leaves the tensor;
    /// [`Error::External`] when the file cannot be read.
    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> Result<()>;

    /// What is known of tensor `name`.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`].
    fn info(&self, name: &str) -> Result<&TensorInfo> {
        let all = self.tensors();
        all.binary_search_by(|t| t.name.as_str().cmp(name))
            .map(|i| &all[i])
            .map_err(|_| Error::UnknownTensor(name.to_string()))
    }

    /// All bytes of tensor `name`.
    ///
    /// # Errors
    /// As [`TensorSource::read_at`].
    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let mut buf = vec![0; self.info(name)?.nbytes()];
        self.read_at(name, 0, &mut buf)?;
        Ok(buf)
    }

    /// Tensor `name` as f32, flattened row-major. Costs 4 bytes an element and a few megabytes: the
    /// stored bytes are read and decoded in parts.
    ///
    /// # Errors
    /// As [`TensorSource::read_at`]; [`Error::DType`] for integers; [`Error::NotFinite`].
    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        /// Elements of a part.
        const PART: usize = 1 << 19;
        let info = self.info(name)?;
        let (size, end) = (info.dtype.size(), info.nbytes());
        let mut bytes = vec![0; end.min(PART * size)];
        let mut values = Vec::with_capacity(end / size);
        for start in (0..end).step_by(PART * size) {
            let part = bytes.len().min(end - start);
            self.read_at(name, start, &mut bytes[..part])?;
            values.extend(decode_f32(name, info.dtype, &bytes[..part])?);
        }
        check_finite(name, &values)?;
        Ok(values)
    }

    /// Matrix `name` as f32.
    ///
    /// # Errors
    /// As [`TensorSource::read_f32`]; [`Error::Shape`] when it is no matrix.
    fn read_matrix(&self, name: &str) -> Result<Array2<f32>> {
        let info = self.info(name)?;
        let shape = info.matrix_shape()?;
        let found = info.shape.clone();
        Array2::from_shape_vec(shape, self.read_f32(name)?).map_err(|_| Error::Shape {
            what: name.to_string(),
            found,
            expected: vec![shape.0, shape.1],
        })
    }
}

/// A checkpoint being written, a tensor at a time.
///
/// Nothing that a reader could take for a finished checkpoint exists before
/// [`TensorSink::finish`] returns.
pub trait TensorSink: Send {
    /// Writes the little-endian bytes of one tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] when the byte count does not fit `info`; [`Error::External`].
    fn write(&mut self, info: &TensorInfo, bytes: &[u8]) -> Result<()>;

    /// Completes the checkpoint.
    ///
    /// # Errors
    /// [`Error::External`].
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Little-endian `bytes` of a float `dtype` as f32 (F64 is rounded).
///
/// # Errors
/// [`Error::DType`] for an integer dtype; [`Error::Shape`] when the bytes are no whole number of
/// elements.
///
/// ```
/// use prune_core::{DType, decode_f32, encode_f32};
/// let bytes = encode_f32("w", DType::BF16, &[1.0, -0.5])?;
/// assert_eq!(bytes, [0x80, 0x3f, 0x00, 0xbf]);
/// assert_eq!(decode_f32("w", DType::BF16, &bytes)?, [1.0, -0.5]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn decode_f32(tensor: &str, dtype: DType, bytes: &[u8]) -> Result<Vec<f32>> {
    if !bytes.len().is_multiple_of(dtype.size()) {
        return Err(Error::Shape {
            what: format!("{tensor} (bytes)"),
            found: vec![bytes.len()],
            expected: vec![bytes.len() / dtype.size() * dtype.size()],
        });
    }
    match dtype {
        DType::F32 => {
            let (c, _) = bytes.as_chunks::<4>();
            Ok(c.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        DType::F64 => {
            let (c, _) = bytes.as_chunks::<8>();
            Ok(c.iter().map(|b| f64::from_le_bytes(*b) as f32).collect())
        }
        DType::F16 => Ok(decode_f16(bytes.as_chunks::<2>().0)),
        DType::BF16 => {
            let (c, _) = bytes.as_chunks::<2>();
            Ok(c.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect())
        }
        other => Err(not_float(tensor, other)),
    }
}

/// A block at a time, which the crate `half` converts by the processor's own instruction.
fn decode_f16(bytes: &[[u8; 2]]) -> Vec<f32> {
    const BLOCK: usize = 1024;
    let mut out = vec![0.0; bytes.len()];
    let mut halves = [f16::ZERO; BLOCK];
    for (out, bytes) in out.chunks_mut(BLOCK).zip(bytes.chunks(BLOCK)) {
        let halves = &mut halves[..bytes.len()];
        halves.iter_mut().zip(bytes).for_each(|(half, b)| *half = f16::from_le_bytes(*b));
        halves.convert_to_f32_slice(out);
    }
    out
}

/// `values` as little-endian bytes of a float `dtype`, rounded to nearest even.
///
/// # Errors
/// [`Error::DType`] for an integer dtype; [`Error::NotFinite`] when a finite value overflows the
/// target type.
pub fn encode_f32(tensor: &str, dtype: DType, values: &[f32]) -> Result<Vec<u8>> {
    let overflow = |index: usize, v: f32| Error::NotFinite {
        what: format!("{tensor} as {dtype}"),
        index,
        value: format!("{v} (out of range)"),
    };
    let mut out = Vec::with_capacity(values.len() * dtype.size());
    match dtype {
        DType::F32 => values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        DType::F64 => {
            values.iter().for_each(|v| out.extend_from_slice(&f64::from(*v).to_le_bytes()))
        }
        DType::F16 => {
            for (i, v) in values.iter().enumerate() {
                let h = f16::from_f32(*v);
                if v.is_finite() && !h.is_finite() {
                    return Err(overflow(i, *v));
                }
                out.extend_from_slice(&h.to_le_bytes());
            }
        }
        DType::BF16 => {
            for (i, v) in values.iter().enumerate() {
                let h = bf16::from_f32(*v);
                if v.is_finite() && !h.is_finite() {
                    return Err(overflow(i, *v));
                }
                out.extend_from_slice(&h.to_le_bytes());
            }
        }
        other => return Err(not_float(tensor, other)),
    }
    Ok(out)
}

fn not_float(tensor: &str, found: DType) -> Error {
    Error::DType {
        tensor: tensor.to_string(),
        found: found.to_string(),
        expected: "F64, F32, F16 or BF16".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_decoded_as_by_itself() -> Result<()> {
        let codes: Vec<u16> = (0..=u16::MAX).chain(0..=700).collect();
        let bytes: Vec<u8> = codes.iter().flat_map(|c| c.to_le_bytes()).collect();
        for (found, code) in decode_f32("w", DType::F16, &bytes)?.iter().zip(&codes) {
            let want = f16::from_bits(*code).to_f32();
            assert!(found.to_bits() == want.to_bits() || (found.is_nan() && want.is_nan()));
        }
        assert!(decode_f32("w", DType::F16, &bytes[1..]).is_err());
        Ok(())
    }
}
