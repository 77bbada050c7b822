use prune_core::DType;

/// How a GGUF tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Storage {
    /// Elements as they are, delivered unchanged.
    Plain(DType),
    /// Quantised blocks, delivered as f32.
    Blocks(BlockType),
}

/// A quantised block type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockType {
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

impl Storage {
    /// The storage that a GGUF file calls number `id`.
    pub(super) fn from_id(id: u32) -> Option<Storage> {
        use BlockType::*;
        Some(match id {
            0 => Storage::Plain(DType::F32),
            1 => Storage::Plain(DType::F16),
            2 => Storage::Blocks(Q4_0),
            3 => Storage::Blocks(Q4_1),
            6 => Storage::Blocks(Q5_0),
            7 => Storage::Blocks(Q5_1),
            8 => Storage::Blocks(Q8_0),
            10 => Storage::Blocks(Q2K),
            11 => Storage::Blocks(Q3K),
            12 => Storage::Blocks(Q4K),
            13 => Storage::Blocks(Q5K),
            14 => Storage::Blocks(Q6K),
            24 => Storage::Plain(DType::I8),
            25 => Storage::Plain(DType::I16),
            26 => Storage::Plain(DType::I32),
            27 => Storage::Plain(DType::I64),
            28 => Storage::Plain(DType::F64),
            30 => Storage::Plain(DType::BF16),
            _ => return None,
        })
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
            39 => "MXFP4",
            40 => "NVFP4",
            _ => "unknown",
        }
    }

    /// The element type delivered.
    pub(super) fn delivered(self) -> DType {
        match self {
            Storage::Plain(dtype) => dtype,
            Storage::Blocks(_) => DType::F32,
        }
    }

    /// Elements of a block (1 where there are none).
    pub(super) fn elements(self) -> usize {
        match self {
            Storage::Plain(_) => 1,
            Storage::Blocks(block) => block.elements(),
        }
    }

    /// Stored bytes of a block.
    pub(super) fn bytes(self) -> usize {
        match self {
            Storage::Plain(dtype) => dtype.size(),
            Storage::Blocks(block) => block.bytes(),
        }
    }

    /// The name: `Q4_K`, `F16`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Storage::Plain(dtype) => dtype.name(),
            Storage::Blocks(block) => block.name(),
        }
    }
}

impl BlockType {
    pub(super) fn elements(self) -> usize {
        use BlockType::*;
        match self {
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 => 32,
            Q2K | Q3K | Q4K | Q5K | Q6K => 256,
        }
    }

    pub(super) fn bytes(self) -> usize {
        use BlockType::*;
        match self {
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
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
            Q2K => "Q2_K",
            Q3K => "Q3_K",
            Q4K => "Q4_K",
            Q5K => "Q5_K",
            Q6K => "Q6_K",
        }
    }
}
