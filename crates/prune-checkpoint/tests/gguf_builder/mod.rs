//! Builds GGUF files field by field, right or wrong.

/// A metadata value.
#[allow(dead_code)]
pub(crate) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(&'static str),
    Strs(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// Type number and bytes.
    Raw(u32, Vec<u8>),
}

pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Innermost dimension first, as in the file.
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
    /// In place of the right offset.
    pub(crate) offset: Option<u64>,
}

pub(crate) struct Gguf {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) alignment: u64,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) field_count: Option<u64>,
    pub(crate) fields: Vec<(String, Meta)>,
    pub(crate) tensors: Vec<Tensor>,
}

pub(crate) const F32: u32 = 0;
#[allow(dead_code)]
pub(crate) const Q4_0: u32 = 2;

impl Gguf {
    /// A complete model of architecture `architecture`: one block, two heads of four rows.
    pub(crate) fn model(architecture: &'static str) -> Gguf {
        let mut gguf = Gguf {
            magic: *b"GGUF",
            version: 3,
            alignment: 32,
            tensor_count: None,
            field_count: None,
            fields: vec![("general.architecture".into(), Meta::Str(architecture))],
            tensors: Vec::new(),
        };
        for (key, value) in [
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", 8),
            ("feed_forward_length", 16),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            gguf.set(&format!("{architecture}.{key}"), Meta::U32(value));
        }
        gguf.set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Meta::F32(1e-6));
        gguf.tensor("token_embd.weight", &[8, 3], 24);
        gguf.tensor("blk.0.attn_q.weight", &[8, 8], 64);
        gguf
    }

    pub(crate) fn set(&mut self, key: &str, value: Meta) {
        self.fields.retain(|(k, _)| k != key);
        self.fields.push((key.into(), value));
    }

    #[allow(dead_code)]
    pub(crate) fn unset(&mut self, key: &str) {
        self.fields.retain(|(k, _)| k != key);
    }

    /// Adds an F32 tensor that counts up from 0.
    pub(crate) fn tensor(&mut self, name: &str, dims: &[u64], count: usize) {
        let data = (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let name = name.to_string();
        self.tensors.push(Tensor { name, dims: dims.to_vec(), kind: F32, data, offset: None });
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.field_count.unwrap_or(self.fields.len() as u64).to_le_bytes());
        for (key, value) in &self.fields {
            string(&mut out, key);
            match value {
                Meta::U32(v) => scalar(&mut out, 4, &v.to_le_bytes()),
                Meta::F32(v) => scalar(&mut out, 6, &v.to_le_bytes()),
                Meta::Bool(v) => scalar(&mut out, 7, &[u8::from(*v)]),
                Meta::Raw(kind, bytes) => scalar(&mut out, *kind, bytes),
                Meta::Str(v) => {
                    out.extend(8u32.to_le_bytes());
                    string(&mut out, v);
                }
                Meta::Strs(v) => {
                    list(&mut out, 8, v.len());
                    v.iter().for_each(|s| string(&mut out, s));
                }
                Meta::I32s(v) => {
                    list(&mut out, 5, v.len());
                    v.iter().for_each(|n| out.extend(n.to_le_bytes()));
                }
                Meta::F32s(v) => {
                    list(&mut out, 6, v.len());
                    v.iter().for_each(|n| out.extend(n.to_le_bytes()));
                }
            }
        }
        let mut offset = 0;
        let mut data = Vec::new();
        for tensor in &self.tensors {
            string(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset).to_le_bytes());
            data.extend(&tensor.data);
            pad(&mut data, self.alignment);
            offset = data.len() as u64;
        }
        pad(&mut out, self.alignment);
        out.extend(data);
        out
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn scalar(out: &mut Vec<u8>, kind: u32, bytes: &[u8]) {
    out.extend(kind.to_le_bytes());
    out.extend(bytes);
}

fn list(out: &mut Vec<u8>, kind: u32, count: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((count as u64).to_le_bytes());
}

fn pad(out: &mut Vec<u8>, alignment: u64) {
    out.resize(out.len().next_multiple_of(alignment.max(1) as usize), 0);
}
