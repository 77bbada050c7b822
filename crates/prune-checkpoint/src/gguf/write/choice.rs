use std::collections::BTreeMap;

use prune_core::DType;

use super::super::types::{BlockType, GgufType};

/// How the tensors of a GGUF file are to be stored.
///
/// Norms and biases are F32 whatever is chosen, as llama.cpp wants them. Where the rows of a matrix
/// do not divide into the blocks of its type, the nearest type of blocks of 32 takes its place
/// (NVFP4, Q2_K and Q3_K become Q4_0, Q4_K Q5_0, Q5_K Q5_1, Q6_K Q8_0), and F16 where those do not
/// divide either.
///
/// ```
/// use prune_checkpoint::{BlockType, GgufType, GgufTypes};
/// let types = GgufTypes::uniform(GgufType::Blocks(BlockType::Q4K));
/// let kind = |name| types.of(name, 576).to_string();
/// assert_eq!(kind("model.layers.0.mlp.up_proj.weight"), "Q5_0"); // 576 is not 256 · n
/// assert_eq!(types.of("model.layers.0.mlp.down_proj.weight", 1536).to_string(), "Q4_K");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTypes {
    /// Of the linear layers of the blocks.
    pub linear: GgufType,
    /// Of the table of token embeddings.
    pub embedding: GgufType,
    /// Of the output matrix, and of the embeddings where they serve as one.
    pub output: GgufType,
    /// Of single tensors, by their Hugging Face names.
    pub single: BTreeMap<String, GgufType>,
}

impl GgufTypes {
    /// One type for everything.
    pub fn uniform(kind: GgufType) -> Self {
        Self { linear: kind, embedding: kind, output: kind, single: BTreeMap::new() }
    }

    /// One type for everything but the output matrix (or the embeddings that serve as one), which
    /// gets Q6_K unless `kind` has 8 bits or more: llama.cpp's choice for its `Q4_0` and the like.
    pub fn standard(kind: GgufType) -> Self {
        let output = match kind {
            GgufType::Plain(_) | GgufType::Blocks(BlockType::Q8_0) => kind,
            _ => GgufType::Blocks(BlockType::Q6K),
        };
        Self { output, ..Self::uniform(kind) }
    }

    /// llama.cpp's `Q4_K_M` for a model of `blocks` blocks: Q4_K, with Q6_K for values and
    /// down-projections of the first and last eighth and of every third block between them.
    ///
    /// ```
    /// use prune_checkpoint::GgufTypes;
    /// let types = GgufTypes::q4_k_m(32);
    /// let down = |i: usize| types.of(&format!("model.layers.{i}.mlp.down_proj.weight"), 256);
    /// assert_eq!([0, 4, 6, 28].map(|i| down(i).to_string()), ["Q6_K", "Q4_K", "Q6_K", "Q6_K"]);
    /// ```
    pub fn q4_k_m(blocks: usize) -> Self {
        let mut types = Self::standard(GgufType::Blocks(BlockType::Q4K));
        let more = |i: usize| {
            let eighth = blocks / 8;
            i < eighth || i >= 7 * blocks / 8 || (i - eighth) % 3 == 2
        };
        for i in (0..blocks).filter(|i| more(*i)) {
            for layer in ["self_attn.v_proj", "mlp.down_proj"] {
                let name = format!("model.layers.{i}.{layer}.weight");
                types.single.insert(name, GgufType::Blocks(BlockType::Q6K));
            }
        }
        types
    }

    /// The type of a matrix with rows of `cols` elements, by its Hugging Face name; of an embedding
    /// as if it were only that.
    pub fn of(&self, name: &str, cols: usize) -> GgufType {
        let kind = match name {
            "model.embed_tokens.weight" => self.embedding,
            "lm_head.weight" => self.output,
            _ => self.linear,
        };
        fitting(self.single.get(name).copied().unwrap_or(kind), cols)
    }

    /// The type of embeddings that serve as the output matrix too.
    pub(super) fn of_tied(&self, name: &str, cols: usize) -> GgufType {
        fitting(self.single.get(name).copied().unwrap_or(self.output), cols)
    }

    /// `general.file_type`, which tells people what is in the file.
    pub(super) fn file_type(&self) -> u32 {
        use BlockType::*;
        match self.linear {
            GgufType::Plain(DType::F32) => 0,
            GgufType::Plain(DType::BF16) => 32,
            GgufType::Plain(_) => 1,
            GgufType::Blocks(Q4_0) => 2,
            GgufType::Blocks(Q4_1) => 3,
            GgufType::Blocks(Q8_0) => 7,
            GgufType::Blocks(Q5_0) => 8,
            GgufType::Blocks(Q5_1) => 9,
            GgufType::Blocks(Q2K) => 10,
            GgufType::Blocks(Q3K) => 12,
            GgufType::Blocks(Q4K) if self.single.is_empty() => 14,
            GgufType::Blocks(Q4K) => 15,
            GgufType::Blocks(Q5K) => 16,
            GgufType::Blocks(Q6K) => 18,
            GgufType::Blocks(Mxfp4) => 38,
            GgufType::Blocks(Nvfp4) => 39,
        }
    }
}

impl GgufType {
    /// This type, or what takes its place where rows of `cols` elements do not divide into its
    /// blocks; see [`GgufTypes`].
    ///
    /// ```
    /// use prune_checkpoint::GgufType;
    /// let kind: GgufType = "q6_k".parse()?;
    /// assert_eq!(kind.fitting(576).to_string(), "Q8_0");
    /// # Ok::<(), prune_checkpoint::Error>(())
    /// ```
    pub fn fitting(self, cols: usize) -> GgufType {
        fitting(self, cols)
    }
}

/// `kind`, or what takes its place where rows of `cols` elements do not divide into its blocks.
fn fitting(kind: GgufType, cols: usize) -> GgufType {
    use BlockType::*;
    let GgufType::Blocks(block) = kind else { return kind };
    if cols.is_multiple_of(block.elements()) {
        return kind;
    }
    let smaller = match block {
        Nvfp4 | Q2K | Q3K => Q4_0,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        _ => return GgufType::Plain(DType::F16),
    };
    fitting(GgufType::Blocks(smaller), cols)
}
