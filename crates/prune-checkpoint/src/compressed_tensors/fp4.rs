use ndarray::Array2;
use prune_core::{
    DType, LayerId, NibbleOrder, QuantScheme, QuantizedMatrix, QuantizedParts, TensorInfo,
    decode_e4m3, decode_e8m0, encode_e4m3, encode_e8m0,
};

use super::format::NAME;
use super::reader::{GLOBAL_SCALE, PACKED, SCALE};
use crate::Result;
use crate::quantized::{
    LayerReader, LayerTensors, QuantizedLayer, check_column_scales, check_extras, refuse,
};

/// The formats of FP4 (E2M1) codes, which lie two to a byte along the inputs, the even one in the
/// low nibble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fp4 {
    /// Groups of 16 with FP8 E4M3 scales, which are divided by one f32 of the matrix.
    Nvfp4,
    /// Groups of 32 with powers of two as scales.
    Mxfp4,
}

impl Fp4 {
    pub(super) const ALL: [Fp4; 2] = [Fp4::Nvfp4, Fp4::Mxfp4];

    pub(super) fn name(self) -> &'static str {
        match self {
            Fp4::Nvfp4 => "nvfp4-pack-quantized",
            Fp4::Mxfp4 => "mxfp4-pack-quantized",
        }
    }

    /// The only scheme that the format holds.
    fn scheme(self) -> QuantScheme {
        match self {
            Fp4::Nvfp4 => QuantScheme::nvfp4(),
            Fp4::Mxfp4 => QuantScheme::mxfp4(),
        }
    }

    pub(super) fn of_scheme(scheme: &QuantScheme) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.scheme() == *scheme)
    }

    /// Input channels of a group.
    pub(super) fn group(self) -> usize {
        match self {
            Fp4::Nvfp4 => 16,
            Fp4::Mxfp4 => 32,
        }
    }

    /// What the configuration calls the grouping.
    pub(super) fn strategy(self) -> &'static str {
        match self {
            Fp4::Nvfp4 => "tensor_group",
            Fp4::Mxfp4 => "group",
        }
    }

    fn scale_dtype(self) -> DType {
        match self {
            Fp4::Nvfp4 => DType::F8E4M3,
            Fp4::Mxfp4 => DType::U8,
        }
    }

    /// The dtype of the scales as the configuration calls it.
    pub(super) fn scale_dtype_name(self) -> &'static str {
        match self {
            Fp4::Nvfp4 => "torch.float8_e4m3fn",
            Fp4::Mxfp4 => "torch.uint8",
        }
    }

    fn decode_scale(self, code: u8) -> f32 {
        match self {
            Fp4::Nvfp4 => decode_e4m3(code),
            Fp4::Mxfp4 => decode_e8m0(code),
        }
    }

    /// The code of exactly this scale.
    fn encode_scale(self, scale: f32) -> Option<u8> {
        let code = match self {
            Fp4::Nvfp4 => encode_e4m3(scale),
            Fp4::Mxfp4 => encode_e8m0(scale),
        };
        (self.decode_scale(code) == scale).then_some(code)
    }

    pub(super) fn plan(self, layer: &LayerId, rows: usize, cols: usize) -> Result<Vec<TensorInfo>> {
        if !cols.is_multiple_of(self.group()) {
            let found = format!("`{}` of {rows} x {cols}", self.scheme());
            let expected = "groups that divide the input channels, without a rest";
            return Err(refuse(NAME, layer, found, expected));
        }
        let tensor = |ending: &str, dtype, shape| TensorInfo {
            name: format!("{layer}.{ending}"),
            dtype,
            shape,
        };
        let mut plan = vec![
            tensor(PACKED, DType::U8, vec![rows, cols / 2]),
            tensor(SCALE, self.scale_dtype(), vec![rows, cols / self.group()]),
        ];
        if self == Fp4::Nvfp4 {
            plan.push(tensor(GLOBAL_SCALE, DType::F32, vec![1]));
        }
        Ok(plan)
    }

    pub(super) fn encode(
        self,
        layer: &LayerId,
        matrix: &QuantizedMatrix,
    ) -> Result<Vec<(TensorInfo, Vec<u8>)>> {
        let plan = self.plan(layer, matrix.rows(), matrix.cols())?;
        match self {
            Fp4::Nvfp4 => check_column_scales(NAME, layer, matrix)?,
            Fp4::Mxfp4 => check_extras(NAME, layer, matrix)?,
        }
        let mut packed = Vec::with_capacity(plan[0].nbytes());
        for row in matrix.codes().outer_iter() {
            packed.extend(NibbleOrder::EvenLow.pack(row.as_slice().unwrap_or_default()));
        }
        let scale = |scale: &f32| {
            self.encode_scale(*scale).ok_or_else(|| {
                let expected = match self {
                    Fp4::Nvfp4 => "scales that are FP8 E4M3 numbers",
                    Fp4::Mxfp4 => "scales that are powers of two",
                };
                refuse(NAME, layer, format!("a scale of {scale}"), expected)
            })
        };
        let mut bytes = vec![packed, matrix.scales().iter().map(scale).collect::<Result<_>>()?];
        bytes.extend(matrix.global_scale().map(|global| global.to_le_bytes().to_vec()));
        Ok(plan.into_iter().zip(bytes).collect())
    }

    /// Checks the shapes of a stored layer.
    pub(super) fn layer(self, tensors: &LayerTensors<'_>) -> Result<Fp4Layer> {
        let packed = tensors.require(PACKED)?;
        tensors.check_dtype(packed, PACKED, DType::U8)?;
        let (rows, bytes) = tensors.matrix(packed, PACKED)?;
        let cols = bytes.checked_mul(2).filter(|cols| *cols > 0 && cols % self.group() == 0);
        let (Some(cols), true) = (cols, rows > 0) else {
            let expected = format!("rows of {} bytes or a multiple of it", self.group() / 2);
            return Err(tensors.wrong(PACKED, "shape", format!("{:?}", packed.shape), expected));
        };
        let scale = tensors.require(SCALE)?;
        tensors.check_dtype(scale, SCALE, self.scale_dtype())?;
        tensors.check_shape(scale, SCALE, &[rows, cols / self.group()])?;
        if self == Fp4::Nvfp4 {
            let global = tensors.require(GLOBAL_SCALE)?;
            tensors.check_dtype(global, GLOBAL_SCALE, DType::F32)?;
            if global.numel() != 1 {
                tensors.check_shape(global, GLOBAL_SCALE, &[1])?;
            }
        }
        let info = QuantizedLayer { id: tensors.layer.clone(), rows, cols, scheme: self.scheme() };
        Ok(Fp4Layer { kind: self, info })
    }
}

/// A stored layer of FP4 codes, its shapes checked.
#[derive(Debug)]
pub(super) struct Fp4Layer {
    kind: Fp4,
    info: QuantizedLayer,
}

impl LayerReader for Fp4Layer {
    fn info(&self) -> &QuantizedLayer {
        &self.info
    }

    fn read(&self, tensors: &LayerTensors<'_>) -> Result<QuantizedMatrix> {
        let QuantizedLayer { rows, cols, scheme, .. } = self.info;
        let codes = NibbleOrder::EvenLow
            .unpack(&tensors.read(PACKED)?, rows * cols)
            .map_err(|e| tensors.invalid(PACKED, e))?;
        let array = |ending: &str, shape: (usize, usize), found: usize| {
            tensors.wrong(ending, "shape", format!("{found} numbers"), format!("{shape:?}"))
        };
        let bytes = tensors.read(SCALE)?;
        if let Some(at) = bytes.iter().position(|b| self.kind.decode_scale(*b).is_nan()) {
            let found = format!("{:#04x}, which is NaN, at {at}", bytes[at]);
            return Err(tensors.wrong(SCALE, "contents", found, "finite scales".to_string()));
        }
        let (shape, count) = (scheme.granularity.scales_shape(rows, cols), bytes.len());
        let scales = bytes.into_iter().map(|b| self.kind.decode_scale(b)).collect();
        let global_scale = match self.kind {
            Fp4::Mxfp4 => None,
            Fp4::Nvfp4 => {
                let stored = tensors.read_f32(GLOBAL_SCALE)?;
                match stored[..] {
                    [global] if global.is_finite() && global != 0.0 => Some(global),
                    _ => {
                        let expected = "one finite number but 0".to_string();
                        let found = format!("{stored:?}");
                        return Err(tensors.wrong(GLOBAL_SCALE, "contents", found, expected));
                    }
                }
            }
        };
        let parts = QuantizedParts {
            scheme,
            codes: Array2::from_shape_vec((rows, cols), codes)
                .map_err(|_| array(PACKED, (rows, cols), rows * cols))?,
            scales: Array2::from_shape_vec(shape, scales)
                .map_err(|_| array(SCALE, shape, count))?,
            zeros: None,
            global_scale,
            group_index: None,
            column_scales: None,
        };
        QuantizedMatrix::from_parts(tensors.layer.as_str(), parts)
            .map_err(|e| tensors.invalid(PACKED, e))
    }
}
