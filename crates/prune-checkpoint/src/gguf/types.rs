use std::fmt;
use std::str::FromStr;

use prune_core::DType;

use super::{block, encode};
use crate::{Error, Result};

/// How a GGUF tensor is stored.
///
/// Written and parsed as ggml calls it: `F16`, `Q4_K`.
///
/// ```
/// use prune_checkpoint::{BlockType, GgufType};
/// let kind: GgufType = "q4_k".parse()?;
/// assert_eq!(kind, GgufType::Blocks(BlockType::Q4K));
/// assert_eq!(kind.to_string(), "Q4_K");
/// # Ok::<(), prune_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgufType {
    /// Elements as they are, delivered unchanged.
    Plain(DType),
    /// Quantised blocks, delivered as f32.
    Blocks(BlockType),
}

/// A quantised block type of ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// 32 elements in 4 bits and a scale; 4.5 bits an element.
    Q4_0,
    /// 32 elements in 4 bits, a scale and a minimum; 5.
    Q4_1,
    /// 32 elements in 5 bits and a scale; 5.5.
    Q5_0,
    /// 32 elements in 5 bits, a scale and a minimum; 6.
    Q5_1,
    /// 32 elements in 8 bits and a scale; 8.5.
    Q8_0,
    /// 32 elements in FP4 (E2M1) and a power of two; 4.25.
    Mxfp4,
    /// 64 elements in FP4 (E2M1), scales of 16 in FP8 (UE4M3); 4.5. Elements up to 2688.
    Nvfp4,
    /// 256 elements in 2 bits, scales and minima of 16 in 4 bits; 2.625.
    Q2K,
    /// 256 elements in 3 bits, scales of 16 in 6 bits; 3.4375.
    Q3K,
    /// 256 elements in 4 bits, scales and minima of 32 in 6 bits; 4.5.
    Q4K,
    /// 256 elements in 5 bits, scales and minima of 32 in 6 bits; 5.5.
    Q5K,
    /// 256 elements in 6 bits, scales of 16 in 8 bits; 6.5625.
    Q6K,
}

impl GgufType {
    /// The storage that a GGUF file calls number `id`.
    pub(super) fn from_id(id: u32) -> Option<GgufType> {
        use BlockType::*;
        Some(match id {
            0 => GgufType::Plain(DType::F32),
            1 => GgufType::Plain(DType::F16),
            2 => GgufType::Blocks(Q4_0),
            3 => GgufType::Blocks(Q4_1),
            6 => GgufType::Blocks(Q5_0),
            7 => GgufType::Blocks(Q5_1),
            8 => GgufType::Blocks(Q8_0),
            10 => GgufType::Blocks(Q2K),
            11 => GgufType::Blocks(Q3K),
            12 => GgufType::Blocks(Q4K),
            13 => GgufType::Blocks(Q5K),
            14 => GgufType::Blocks(Q6K),
            24 => GgufType::Plain(DType::I8),
            25 => GgufType::Plain(DType::I16),
            26 => GgufType::Plain(DType::I32),
            27 => GgufType::Plain(DType::I64),
            28 => GgufType::Plain(DType::F64),
            30 => GgufType::Plain(DType::BF16),
            39 => GgufType::Blocks(Mxfp4),
            40 => GgufType::Blocks(Nvfp4),
            _ => return None,
        })
    }

    /// The number by which a GGUF file calls it; `None` for element types that ggml lacks.
    pub(super) fn id(self) -> Option<u32> {
        (0..64).find(|id| GgufType::from_id(*id) == Some(self))
    }

    /// What ggml calls number `id`, for messages about types that cannot be read.
    pub(super) fn foreign_name(id: u32) -> &'static str {
        match id {
            9 => "Q8_1",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            _ => "unknown",
        }
    }

    /// The element type delivered.
    pub(super) fn delivered(self) -> DType {
        match self {
            GgufType::Plain(dtype) => dtype,
            GgufType::Blocks(_) => DType::F32,
        }
    }

    /// Elements of a block; 1 where there are none.
    pub fn elements(self) -> usize {
        match self {
            GgufType::Plain(_) => 1,
            GgufType::Blocks(block) => block.elements(),
        }
    }

    /// Stored bytes of a block, or of an element.
    pub fn bytes(self) -> usize {
        match self {
            GgufType::Plain(dtype) => dtype.size(),
            GgufType::Blocks(block) => block.bytes(),
        }
    }

    /// The name: `Q4_K`, `F16`.
    pub(super) fn name(self) -> &'static str {
        match self {
            GgufType::Plain(dtype) => dtype.name(),
            GgufType::Blocks(block) => block.name(),
        }
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for GgufType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = (0..64).filter_map(GgufType::from_id);
        let mut floats_and_blocks = all.filter(|k| match k {
            GgufType::Plain(dtype) => dtype.is_float() && *dtype != DType::F64,
            GgufType::Blocks(_) => true,
        });
        floats_and_blocks.find(|k| k.name().eq_ignore_ascii_case(text.trim())).ok_or_else(|| {
            Error::Plan {
                what: "type of a GGUF tensor".to_string(),
                reason: format!(
                    "found `{text}`, expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4, \
                     NVFP4, Q2_K, Q3_K, Q4_K, Q5_K or Q6_K"
                ),
            }
        })
    }
}

impl BlockType {
    /// The bytes of `values` in blocks, as the scalar code of ggml quantises them; on all threads.
    /// `what` names them in errors.
    ///
    /// # Errors
    /// [`Error::Tensor`] when `values` do not divide into blocks, when one of them is NaN, infinite
    /// or above 3e8 (2688 in NVFP4), and when a scale is beyond f16.
    ///
    /// ```
    /// use prune_checkpoint::BlockType;
    /// let values: Vec<f32> = (0..32).map(|i| i as f32 - 16.0).collect();
    /// let bytes = BlockType::Q8_0.encode("w", &values)?;
    /// assert_eq!(bytes.len(), 34);
    /// let back = BlockType::Q8_0.decode("w", &bytes)?;
    /// assert!((back[3] + 13.0).abs() < 0.1);
    /// # Ok::<(), prune_checkpoint::Error>(())
    /// ```
    pub fn encode(self, what: &str, values: &[f32]) -> Result<Vec<u8>> {
        let wrong = |field, found: String, expected: String| Error::Tensor {
            path: Default::default(),
            tensor: what.to_string(),
            field,
            found,
            expected,
        };
        if !values.len().is_multiple_of(self.elements()) {
            let expected = format!("a multiple of {}", self.elements());
            return Err(wrong("the number of elements", values.len().to_string(), expected));
        }
        let most = match self {
            // The largest code under the largest scale; ggml cuts off what is above.
            BlockType::Nvfp4 => 6.0 * 448.0,
            // No block holds more, and the sums of the searches would overflow.
            _ => 3e8f32,
        };
        if let Some(at) = values.iter().position(|v| v.is_nan() || v.abs() > most) {
            let found = format!("{} at {at}", values[at]);
            return Err(wrong("an element", found, format!("magnitudes of at most {most:e}")));
        }
        let bytes = encode::quantize(self, values);
        match encode::first_overflow(self, &bytes) {
            None => Ok(bytes),
            Some(at) => {
                let found = format!("beyond f16 in block {at}");
                Err(wrong("a scale", found, "at most 65504".to_string()))
            }
        }
    }

    /// The elements of the blocks in `bytes`, with the bits that the reference gives.
    ///
    /// # Errors
    /// [`Error::Tensor`] unless `bytes` are whole blocks.
    pub fn decode(self, what: &str, bytes: &[u8]) -> Result<Vec<f32>> {
        if !bytes.len().is_multiple_of(self.bytes()) {
            return Err(Error::Tensor {
                path: Default::default(),
                tensor: what.to_string(),
                field: "the number of bytes",
                found: bytes.len().to_string(),
                expected: format!("a multiple of {}", self.bytes()),
            });
        }
        let mut out = vec![0; bytes.len() / self.bytes() * self.elements() * 4];
        block::dequantize(self, bytes, 0, &mut out);
        Ok(out.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// Elements of a block: 32, 64 or 256.
    pub fn elements(self) -> usize {
        use BlockType::*;
        match self {
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Mxfp4 => 32,
            Nvfp4 => 64,
            Q2K | Q3K | Q4K | Q5K | Q6K => 256,
        }
    }

    /// Stored bytes of a block.
    pub fn bytes(self) -> usize {
        use BlockType::*;
        match self {
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Mxfp4 => 17,
            Nvfp4 => 36,
            Q2K => 84,
            Q3K => 110,
            Q4K => 144,
            Q5K => 176,
            Q6K => 210,
        }
    }

    fn name(self) -> &'static str {
        use BlockType::*;
        match self {
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Mxfp4 => "MXFP4",
            Nvfp4 => "NVFP4",
            Q2K => "Q2_K",
            Q3K => "Q3_K",
            Q4K => "Q4_K",
            Q5K => "Q5_K",
            Q6K => "Q6_K",
        }
    }
}
