//! What a linear layer becomes in each variant of the model.

use std::sync::Arc;

use half::f16;
use ndarray::Array2;
use prune_checkpoint::{BlockType, GgufType, GgufTypes};
use prune_core::{
    Bsr, LayerId, LayerStats, NmPacked, Pattern, Pruner, QuantScheme, QuantTarget, Quantizer,
    Scope, ScorePruner, Seed, Target, ZeroPoint, count_to_remove, round_to_pattern,
};
use prune_kernels::{
    Activations, ArmorKernel, BlockFormat, BsrKernel, DenseKernel, GgufKernel, GroupKernel,
    LinearOperator, NmKernel,
};
use prune_quant::Rtn;
use prune_unstructured::{ArmorOptions, Magnitude, armor};

use crate::Failure;

/// A way to store the linear layers of the blocks.
#[derive(Debug, Clone)]
pub(crate) enum Variant {
    Dense,
    /// The largest two of every four weights.
    TwoOfFour,
    /// Blocks of 16 x 16, the largest of them by the sum of their magnitudes.
    Blocks {
        sparsity: f64,
    },
    /// ARMOR without calibration data: every input channel counts the same.
    Armor {
        block: usize,
        iterations: usize,
    },
    /// Four bits with a scale and a zero point for each group.
    FourBits {
        group: usize,
        activations: Activations,
    },
    /// Blocks of a GGUF file, as llama.cpp multiplies them: with 8-bit inputs.
    Gguf {
        block: BlockType,
    },
}

/// The kernel of a weight, and the dense weight that it stands for.
pub(crate) type Compressed = (Arc<dyn LinearOperator>, Array2<f32>);

impl Variant {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Dense => "dense f32".to_string(),
            Self::TwoOfFour => "2:4".to_string(),
            Self::Blocks { sparsity } => format!("blocks 16x16, {:.0} %", 100.0 * sparsity),
            Self::Armor { block, .. } => format!("ARMOR 2:4, block {block}"),
            Self::FourBits { group, activations: Activations::F32 } => format!("4 bits g{group}"),
            Self::FourBits { group, .. } => format!("4 bits g{group}, 8-bit inputs"),
            Self::Gguf { block } => format!("{}, 8-bit inputs", GgufType::Blocks(*block)),
        }
    }

    pub(crate) fn apply(
        &self,
        layer: &LayerId,
        mut weight: Array2<f32>,
    ) -> Result<Compressed, Failure> {
        let (rows, cols) = weight.dim();
        let target = |pattern, remove| Target {
            layer,
            pattern,
            scope: Scope::PerLayer,
            remove,
            stream: Seed::new(0).stream(layer.as_str()),
        };
        let two_of_four = Pattern::nm(2, 4)?;
        let stats = LayerStats::default();
        Ok(match self {
            Self::Dense => (Arc::new(DenseKernel::new(weight.clone())?), weight),
            Self::TwoOfFour => {
                let target = target(two_of_four, rows * cols / 2);
                let pruned = ScorePruner(Magnitude).prune(weight.view_mut(), &stats, &target)?;
                let packed = NmPacked::from_dense_masked(weight.view(), &pruned.mask, 2, 4)?;
                (Arc::new(NmKernel::try_from(&packed)?), weight)
            }
            Self::Blocks { sparsity } => {
                let pattern = Pattern::block(16, 16)?;
                let remove = count_to_remove(rows * cols, *sparsity)?;
                let remove = round_to_pattern(layer.as_str(), pattern, rows, cols, remove)?;
                let target = target(pattern, remove);
                let pruned = ScorePruner(Magnitude).prune(weight.view_mut(), &stats, &target)?;
                let bsr = Bsr::from_dense_masked(weight.view(), &pruned.mask, 16, 16)?;
                (Arc::new(BsrKernel::from(bsr)), weight)
            }
            Self::Armor { block, iterations } => {
                let target = target(two_of_four, rows * cols / 2);
                let options = ArmorOptions::fast().block(*block).iterations(*iterations);
                let found = armor(weight.view(), &vec![1.0; cols], &options, &target)?;
                let dense = found.layer.to_dense();
                let (a, core, b) = found.layer.into_parts();
                (Arc::new(ArmorKernel::new(a, &core, b)?), dense)
            }
            Self::FourBits { group, activations } => {
                groups(layer, weight, 4, *group, *activations)?
            }
            Self::Gguf { block } => blocks(layer, weight, *block)?,
        })
    }

    /// The output matrix: in f32, but in 8 bits where the layers are quantised.
    pub(crate) fn head(&self, layer: &LayerId, weight: Array2<f32>) -> Result<Compressed, Failure> {
        match self {
            Self::FourBits { group, activations } => groups(layer, weight, 8, *group, *activations),
            Self::Gguf { block } => {
                let kind = gguf_types(*block).of("lm_head.weight", weight.ncols());
                let GgufType::Blocks(block) = kind else {
                    return Err(format!("{kind} does not divide the output matrix").into());
                };
                blocks(layer, weight, block)
            }
            _ => Ok((Arc::new(DenseKernel::new(weight.clone())?), weight)),
        }
    }
}

/// The types of the tensors of a GGUF file with layers of `block`.
pub(crate) fn gguf_types(block: BlockType) -> GgufTypes {
    GgufTypes::standard(GgufType::Blocks(block))
}

fn groups(
    layer: &LayerId,
    weight: Array2<f32>,
    bits: u8,
    group: usize,
    activations: Activations,
) -> Result<Compressed, Failure> {
    let scheme = QuantScheme::int(bits)?.group(group).zero(ZeroPoint::Integer);
    let target = QuantTarget { layer, scheme, keep: None };
    let done = Rtn::default().quantize(weight.view(), &LayerStats::default(), &target)?;
    let kernel = GroupKernel::<f16>::try_from(&done.matrix)?;
    Ok((Arc::new(kernel.with_activations(activations)), done.matrix.dequantize()))
}

fn blocks(layer: &LayerId, weight: Array2<f32>, block: BlockType) -> Result<Compressed, Failure> {
    let (rows, cols) = weight.dim();
    let bytes = block.encode(layer.as_str(), weight.as_slice().ok_or("rows are not in order")?)?;
    let decoded = Array2::from_shape_vec((rows, cols), block.decode(layer.as_str(), &bytes)?)?;
    let name = GgufType::Blocks(block).to_string();
    let format = BlockFormat::ALL
        .into_iter()
        .find(|format| format.name() == name)
        .ok_or_else(|| format!("no product for {name}"))?;
    let kernel = GgufKernel::from_bytes(format, rows, cols, bytes)?;
    Ok((Arc::new(kernel.with_activations(Activations::Q8)), decoded))
}
