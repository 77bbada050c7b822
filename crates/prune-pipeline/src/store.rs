use std::collections::BTreeMap;
use std::ops::ControlFlow;

use prune_checkpoint::{
    BlockType, GgufType, GgufTypes, QUANT_FORMATS, QuantFormat, decode_layer, quant_format,
};
use prune_core::{
    DType, Granularity, LayerId, QuantScheme, QuantizedMatrix, TensorInfo, TensorSource, block_of,
    decode_f32,
};
use serde_json::Value;

use crate::plan::{Action, Plan, PlannedTensor};
use crate::recipe::Recipe;
use crate::schedule::PIECE;
use crate::{Error, Result};

/// How the tensors of an output are stored.
#[derive(Debug)]
pub(crate) enum Store {
    /// Floats in a Hugging Face directory; quantised weights as what their codes stand for.
    Dense,
    /// A Hugging Face directory in which quantised layers are codes.
    Packed(Box<dyn QuantFormat>),
    /// A GGUF file.
    Gguf,
}

/// Fills a buffer with stored bytes of an output tensor.
pub(crate) type ReadPart<'a> = dyn Fn(&TensorInfo, usize, &mut [u8]) -> Result<()> + Sync + 'a;

impl Store {
    /// The store that a recipe asks for.
    pub(crate) fn of(recipe: &Recipe) -> Result<Self> {
        match recipe.format.as_deref() {
            None | Some("dense") => Ok(Store::Dense),
            Some("gguf") => Ok(Store::Gguf),
            Some(name) => quant_format(name).map(Store::Packed).ok_or_else(|| {
                let known: Vec<&str> = QUANT_FORMATS.iter().map(|(n, _)| *n).collect();
                let known = format!("known are dense, {}, gguf", known.join(", "));
                Error::recipe("format", format!("`{name}` is unknown; {known}"))
            }),
        }
    }

    /// Refuses a quantised layer that cannot be stored.
    pub(crate) fn check(
        &self,
        layer: &LayerId,
        rows: usize,
        cols: usize,
        method: &str,
        scheme: &QuantScheme,
    ) -> Result<()> {
        let refuse = |reason: &str| Err(Error::plan(layer.weight_name(), reason));
        match self {
            Store::Dense => return Ok(()),
            Store::Packed(format) => {
                format.plan(layer, rows, cols, scheme)?;
            }
            Store::Gguf => {
                if gguf_kind(scheme).is_none() || !cols.is_multiple_of(32) {
                    return Err(Error::plan(
                        layer.weight_name(),
                        format!(
                            "`{scheme}` of {rows} x {cols} has no type in GGUF; symmetric 4, 5 or \
                             8 bits, 4 or 5 bits with zero points and `fp4 s-e8m0` have, in groups \
                             of multiples of 32; or use the method `ggml`"
                        ),
                    ));
                }
            }
        }
        let grouped = matches!(scheme.granularity, Granularity::Group(_));
        let keeps_order =
            matches!(self, Store::Packed(format) if format.name().starts_with("gptq"));
        match method {
            "gptq-act" if grouped && !keeps_order => refuse(
                "gptq-act makes groups in the order of activations, which only the format gptq \
                 holds; use gptq-static",
            ),
            _ => Ok(()),
        }
    }

    /// Says what is done to the tensors that no rule mentions.
    pub(crate) fn complete(
        &self,
        source: &dyn TensorSource,
        recipe: &Recipe,
        actions: &mut BTreeMap<String, Action>,
    ) -> Result<()> {
        if !matches!(self, Store::Gguf) {
            if recipe.embeddings.is_some() {
                return Err(Error::recipe("embeddings", "is a type of GGUF; say `format: gguf`"));
            }
            return Ok(());
        }
        if let Some((name, _)) = actions.iter().find(|(_, a)| a.removed().is_some()) {
            let reason = "cannot be pruned on the way to GGUF; compress first and convert then";
            return Err(Error::plan(name, reason));
        }
        let mut kinds: Vec<(GgufType, usize)> = Vec::new();
        for action in actions.values() {
            let Some(kind) = gguf_kind_of(action)? else { continue };
            match kinds.iter_mut().find(|(k, _)| *k == kind) {
                Some((_, n)) => *n += 1,
                None => kinds.push((kind, 1)),
            }
        }
        let main = kinds.iter().rev().max_by_key(|(_, n)| *n).map(|(k, _)| *k);
        let types = GgufTypes::standard(main.unwrap_or(GgufType::Plain(DType::F32)));
        let given = match &recipe.embeddings {
            None => None,
            Some(text) => {
                Some(text.parse::<GgufType>().map_err(|e| Error::recipe("embeddings", e))?)
            }
        };
        let tied = source.info("lm_head.weight").is_err();
        for info in source.tensors() {
            let kind = match info.shape[..] {
                [_, cols] if block_of(&info.name).is_none() => {
                    let output = info.name == "lm_head.weight" || tied;
                    let kind = if output { types.output } else { types.embedding };
                    given.unwrap_or(kind).fitting(cols)
                }
                [_, _] if info.dtype.is_float() && info.dtype != DType::F64 => {
                    GgufType::Plain(info.dtype)
                }
                _ => GgufType::Plain(DType::F32),
            };
            actions
                .entry(info.name.clone())
                .or_insert_with(|| Action::Encode { kind: kind.to_string() });
        }
        Ok(())
    }

    /// The tensors that are written for a planned one.
    pub(crate) fn outputs(&self, tensor: &PlannedTensor) -> Result<Vec<TensorInfo>> {
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        match (self, &tensor.action) {
            (Store::Packed(format), Action::Quantize { scheme, .. }) => {
                let [rows, cols] = shape[..] else { return Err(Error::plan(name, "is no matrix")) };
                Ok(format.plan(&LayerId::from_tensor(&name), rows, cols, &scheme.parse()?)?)
            }
            (Store::Gguf, action) => {
                let kind = gguf_kind_of(action)?
                    .ok_or_else(|| Error::plan(&name, "has no type in the GGUF file"))?;
                let bytes = shape.iter().product::<usize>() / kind.elements() * kind.bytes();
                Ok(vec![TensorInfo { name, dtype: DType::U8, shape: vec![bytes] }])
            }
            (_, Action::Encode { .. }) => Err(Error::plan(
                name,
                "is planned for a GGUF file, which the recipe does not ask for",
            )),
            _ => Ok(vec![TensorInfo { name, dtype: tensor.dtype.parse()?, shape }]),
        }
    }

    /// The values of a planned tensor, from the stored bytes of its outputs.
    pub(crate) fn decode(&self, tensor: &PlannedTensor, read: &ReadPart<'_>) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(tensor.shape.iter().product());
        self.decode_pieces(tensor, read, &mut |values| {
            all.extend_from_slice(values);
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    /// Hands the values of a planned tensor to `visit`, in order and a piece at a time, until it
    /// breaks. Holds a piece; of a packed tensor all codes.
    pub(crate) fn decode_pieces(
        &self,
        tensor: &PlannedTensor,
        read: &ReadPart<'_>,
        visit: &mut dyn FnMut(&[f32]) -> ControlFlow<()>,
    ) -> Result<()> {
        let outputs = self.outputs(tensor)?;
        if let (Store::Packed(format), Action::Quantize { scheme, .. }) = (self, &tensor.action) {
            let layer = LayerId::from_tensor(&tensor.name);
            let parts = Parts::new(outputs, read);
            let matrix = decode_layer(&**format, &layer, &scheme.parse()?, &parts)?;
            let mut values = vec![0.0; matrix.cols()];
            for row in 0..matrix.rows() {
                matrix.dequantize_row(row, &mut values);
                if visit(&values).is_break() {
                    break;
                }
            }
            return Ok(());
        }
        let Some(info) = outputs.first() else {
            return Err(Error::plan(&tensor.name, "is not stored"));
        };
        let kind = match self {
            Store::Gguf => gguf_kind_of(&tensor.action)?
                .ok_or_else(|| Error::plan(&tensor.name, "has no type in the GGUF file"))?,
            _ => GgufType::Plain(info.dtype),
        };
        let count: usize = tensor.shape.iter().product();
        let step = (PIECE / 4 / kind.elements()).max(1) * kind.elements();
        let mut bytes = Vec::new();
        for first in (0..count).step_by(step) {
            bytes.resize(step.min(count - first) / kind.elements() * kind.bytes(), 0);
            read(info, first / kind.elements() * kind.bytes(), &mut bytes)?;
            let values = match kind {
                GgufType::Blocks(block) => block.decode(&tensor.name, &bytes)?,
                GgufType::Plain(dtype) => decode_f32(&tensor.name, dtype, &bytes)?,
            };
            if visit(&values).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The stored bytes of a quantised layer, in the order of [`Store::outputs`].
    pub(crate) fn encode(
        &self,
        tensor: &PlannedTensor,
        matrix: &QuantizedMatrix,
    ) -> Result<Vec<(TensorInfo, Vec<u8>)>> {
        match self {
            Store::Packed(format) => {
                Ok(format.encode(&LayerId::from_tensor(&tensor.name), matrix)?)
            }
            Store::Gguf => match gguf_kind_of(&tensor.action)? {
                Some(GgufType::Blocks(block)) => {
                    let bytes = prune_checkpoint::transcode(&tensor.name, matrix, block)?;
                    Ok(self
                        .outputs(tensor)?
                        .into_iter()
                        .take(1)
                        .map(|i| (i, bytes.clone()))
                        .collect())
                }
                _ => Err(Error::plan(&tensor.name, "has no block type in the GGUF file")),
            },
            Store::Dense => Err(Error::plan(&tensor.name, "is stored as floats")),
        }
    }

    /// What `config.json` and further files say of the quantised layers of a plan.
    pub(crate) fn description(&self, plan: &Plan) -> Result<Option<Description>> {
        let Store::Packed(format) = self else { return Ok(None) };
        let (mut layers, mut dense) = (Vec::new(), Vec::new());
        for tensor in &plan.tensors {
            let layer = LayerId::from_tensor(&tensor.name);
            match &tensor.action {
                Action::Quantize { scheme, .. } => layers.push((layer, scheme.parse()?)),
                _ if tensor.shape.len() == 2
                    && tensor.name.ends_with(".weight")
                    && !tensor.name.contains("embed") =>
                {
                    dense.push(layer);
                }
                _ => {}
            }
        }
        if layers.is_empty() {
            return Ok(None);
        }
        // Where it shares the embedding it has no tensor, and is a linear layer all the same.
        let head = LayerId::new("lm_head");
        if !dense.contains(&head) {
            dense.push(head);
        }
        let files = format.files(&layers)?;
        Ok(Some(Description { config: format.config(&layers, &dense)?, files }))
    }

    /// The types of a GGUF file.
    pub(crate) fn types(plan: &Plan) -> Result<GgufTypes> {
        let mut types = GgufTypes::uniform(GgufType::Plain(DType::F32));
        let mut counts: BTreeMap<String, (usize, GgufType)> = BTreeMap::new();
        for tensor in &plan.tensors {
            let Some(kind) = gguf_kind_of(&tensor.action)? else { continue };
            types.single.insert(tensor.name.clone(), kind);
            if block_of(&tensor.name).is_some() && tensor.shape.len() == 2 {
                counts.entry(kind.to_string()).or_insert((0, kind)).0 += 1;
            }
        }
        if let Some((_, kind)) = counts.into_values().max_by_key(|(n, _)| *n) {
            types.linear = kind;
        }
        Ok(types)
    }
}

/// What a packed output says of its quantised layers.
pub(crate) struct Description {
    /// `quantization_config`.
    pub(crate) config: Value,
    /// Files of their own.
    pub(crate) files: Vec<(&'static str, Value)>,
}

fn gguf_kind(scheme: &QuantScheme) -> Option<GgufType> {
    BlockType::of_scheme(scheme).map(GgufType::Blocks)
}

/// The type in a GGUF file of what an action makes.
pub(crate) fn gguf_kind_of(action: &Action) -> Result<Option<GgufType>> {
    Ok(match action {
        Action::Encode { kind } => Some(kind.parse()?),
        Action::Quantize { scheme, .. } => gguf_kind(&scheme.parse()?),
        Action::Fold { .. } => Some(GgufType::Plain(DType::F32)),
        Action::Copy | Action::Prune { .. } | Action::Factorise { .. } => None,
    })
}

/// Stored tensors of one layer as a source.
struct Parts<'a> {
    tensors: Vec<TensorInfo>,
    read: &'a ReadPart<'a>,
}

impl<'a> Parts<'a> {
    fn new(mut tensors: Vec<TensorInfo>, read: &'a ReadPart<'a>) -> Self {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Self { tensors, read }
    }
}

impl TensorSource for Parts<'_> {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        let info = self.info(name)?;
        (self.read)(info, offset, buf).map_err(|e| prune_core::Error::external(name, e))
    }
}
