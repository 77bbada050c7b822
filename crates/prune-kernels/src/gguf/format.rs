use std::fmt;

/// A quantised block format of GGUF files.
///
/// ```
/// use prune_kernels::BlockFormat;
/// let q4_k: BlockFormat = BlockFormat::Q4K;
/// assert_eq!((q4_k.elements(), q4_k.bytes(), q4_k.to_string()), (256, 144, "Q4_K".to_string()));
/// assert_eq!(8.0 * q4_k.bytes() as f64 / q4_k.elements() as f64, 4.5); // bits a weight
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, non_camel_case_types)]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockFormat {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    fn row(self) -> (&'static str, usize, usize) {
        match self {
            Self::Q4_0 => ("Q4_0", 32, 18),
            Self::Q4_1 => ("Q4_1", 32, 20),
            Self::Q5_0 => ("Q5_0", 32, 22),
            Self::Q5_1 => ("Q5_1", 32, 24),
            Self::Q8_0 => ("Q8_0", 32, 34),
            Self::Q2K => ("Q2_K", 256, 84),
            Self::Q3K => ("Q3_K", 256, 110),
            Self::Q4K => ("Q4_K", 256, 144),
            Self::Q5K => ("Q5_K", 256, 176),
            Self::Q6K => ("Q6_K", 256, 210),
        }
    }

    /// The name in GGUF: `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Weights of a block.
    pub fn elements(self) -> usize {
        self.row().1
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        self.row().2
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
