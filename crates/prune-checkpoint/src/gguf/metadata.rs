use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::reader::Reader;
use crate::{Error, Result, limits};

/// The key-value part of a GGUF file.
#[derive(Debug)]
pub(super) struct Metadata {
    path: PathBuf,
    fields: HashMap<String, Value>,
}

#[derive(Debug)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    Numbers(Scalar, Vec<u8>),
}

#[derive(Debug, Clone, Copy)]
enum Scalar {
    Unsigned(u64),
    Signed(u64),
    F32,
    F64,
    Bool,
}

impl Scalar {
    /// The scalar that a GGUF file calls number `id`.
    fn from_id(id: u32) -> Option<Scalar> {
        Some(match id {
            0 => Scalar::Unsigned(1),
            1 => Scalar::Signed(1),
            2 => Scalar::Unsigned(2),
            3 => Scalar::Signed(2),
            4 => Scalar::Unsigned(4),
            5 => Scalar::Signed(4),
            6 => Scalar::F32,
            7 => Scalar::Bool,
            10 => Scalar::Unsigned(8),
            11 => Scalar::Signed(8),
            12 => Scalar::F64,
            _ => return None,
        })
    }

    fn size(self) -> u64 {
        match self {
            Scalar::Unsigned(size) | Scalar::Signed(size) => size,
            Scalar::F32 => 4,
            Scalar::F64 => 8,
            Scalar::Bool => 1,
        }
    }

    /// The value in `bytes`, which is as long as [`Scalar::size`] says.
    fn decode(self, bytes: &[u8]) -> Value {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(wide);
        match self {
            Scalar::Unsigned(_) => Value::Unsigned(unsigned),
            Scalar::Signed(size) => {
                let shift = 64 - 8 * size;
                Value::Signed((unsigned << shift) as i64 >> shift)
            }
            Scalar::F32 => Value::F32(f32::from_bits(unsigned as u32)),
            Scalar::F64 => Value::F64(f64::from_bits(unsigned)),
            Scalar::Bool => Value::Bool(unsigned != 0),
        }
    }
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

impl Value {
    fn describe(&self) -> String {
        match self {
            Value::Unsigned(v) => v.to_string(),
            Value::Signed(v) => v.to_string(),
            Value::F32(v) => v.to_string(),
            Value::F64(v) => v.to_string(),
            Value::Bool(v) => v.to_string(),
            Value::String(v) => format!("`{}`", v.chars().take(60).collect::<String>()),
            Value::Strings(v) => format!("a list of {} strings", v.len()),
            Value::Numbers(scalar, v) => {
                format!("a list of {} numbers", v.len() as u64 / scalar.size())
            }
        }
    }
}

impl Metadata {
    /// Reads `count` fields.
    pub(super) fn read(reader: &mut Reader<'_>, path: &Path, count: u64) -> Result<Self> {
        if count > limits::GGUF_FIELDS {
            return Err(Error::TooLarge {
                path: path.to_path_buf(),
                what: "the number of metadata fields".to_string(),
                found: count,
                limit: limits::GGUF_FIELDS,
            });
        }
        let mut fields = HashMap::new();
        for number in 0..count {
            let key = reader.string(&format!("the key of metadata field {number}"))?;
            let value = read_value(reader, path, &key)?;
            if fields.insert(key.clone(), value).is_some() {
                return Err(Error::Field {
                    path: path.to_path_buf(),
                    field: key,
                    found: "there twice".to_string(),
                    expected: "every key once".to_string(),
                });
            }
        }
        Ok(Metadata { path: path.to_path_buf(), fields })
    }

    /// An error about `key`.
    pub(super) fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        Error::Field {
            path: self.path.clone(),
            field: format!("metadata `{key}`"),
            found: self.fields.get(key).map_or("missing".to_string(), Value::describe),
            expected: expected.into(),
        }
    }

    /// A refusal of something this crate cannot express.
    pub(super) fn unsupported(&self, what: impl Into<String>, instead: impl Into<String>) -> Error {
        Error::Unsupported { path: self.path.clone(), what: what.into(), instead: instead.into() }
    }

    pub(super) fn integer(&self, key: &str) -> Result<Option<u64>> {
        match self.fields.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(v)) => Ok(Some(*v)),
            Some(Value::Signed(v)) if *v >= 0 => Ok(Some(*v as u64)),
            // Per-layer values that are all alike are the same as one value.
            Some(Value::Numbers(scalar @ (Scalar::Unsigned(_) | Scalar::Signed(_)), bytes)) => {
                let mut values = bytes.chunks_exact(scalar.size() as usize);
                let first = values.next();
                match first.map(|f| (values.all(|v| v == f), scalar.decode(f))) {
                    Some((true, Value::Unsigned(v))) => Ok(Some(v)),
                    Some((true, Value::Signed(v))) if v >= 0 => Ok(Some(v as u64)),
                    Some((false, _)) => Err(self.unsupported(
                        format!("metadata `{key}` that differs from layer to layer"),
                        "only models with the same value in every layer are read",
                    )),
                    _ => Err(self.wrong(key, "a whole number from 0 on")),
                }
            }
            Some(_) => Err(self.wrong(key, "a whole number from 0 on")),
        }
    }

    /// As [`Metadata::integer`], where absence is an error.
    pub(super) fn required(&self, key: &str) -> Result<u64> {
        self.integer(key)?.ok_or_else(|| self.wrong(key, "a whole number from 0 on"))
    }

    /// A finite number in its shortest decimal form: the f32 nearest to 1e-5 becomes 1e-5.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let value = match self.fields.get(key) {
            None => return Ok(None),
            Some(Value::F32(v)) => v.to_string().parse().ok(),
            Some(Value::F64(v)) => Some(*v),
            Some(Value::Unsigned(v)) => Some(*v as f64),
            Some(Value::Signed(v)) => Some(*v as f64),
            Some(_) => None,
        };
        match value {
            Some(v) if v.is_finite() => Ok(Some(v)),
            _ => Err(self.wrong(key, "a finite number")),
        }
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.fields.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.fields.get(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        match self.fields.get(key) {
            None => Ok(None),
            Some(Value::Strings(v)) => Ok(Some(v)),
            Some(_) => Err(self.wrong(key, "a list of strings")),
        }
    }

    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        match self.fields.get(key) {
            None => Ok(None),
            Some(Value::Numbers(scalar @ (Scalar::Unsigned(_) | Scalar::Signed(_)), bytes)) => {
                bytes
                    .chunks_exact(scalar.size() as usize)
                    .map(|b| match scalar.decode(b) {
                        Value::Signed(v) => Some(v),
                        Value::Unsigned(v) => i64::try_from(v).ok(),
                        _ => None,
                    })
                    .collect::<Option<_>>()
                    .map(Some)
                    .ok_or_else(|| self.wrong(key, "a list of whole numbers"))
            }
            Some(_) => Err(self.wrong(key, "a list of whole numbers")),
        }
    }

    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        match self.fields.get(key) {
            None => Ok(None),
            Some(Value::Numbers(Scalar::F32, bytes)) => {
                Ok(Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
            }
            Some(_) => Err(self.wrong(key, "a list of f32")),
        }
    }
}

fn read_value(reader: &mut Reader<'_>, path: &Path, key: &str) -> Result<Value> {
    let id = reader.u32(key)?;
    if id == STRING {
        return Ok(Value::String(reader.string(key)?));
    }
    if id != ARRAY {
        let scalar = Scalar::from_id(id).ok_or_else(|| unknown_type(path, key, id))?;
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..scalar.size() as usize];
        reader.fill(key, bytes)?;
        return Ok(scalar.decode(bytes));
    }
    let element = reader.u32(key)?;
    let count = reader.u64(key)?;
    match Scalar::from_id(element) {
        Some(scalar) => Ok(Value::Numbers(scalar, reader.bytes(key, count, scalar.size())?)),
        None if element == STRING => {
            // Eight bytes of length a string: a count beyond the file fails before it allocates.
            if count.saturating_mul(8) > reader.left() {
                reader.bytes(key, count, 8)?;
            }
            (0..count).map(|_| reader.string(key)).collect::<Result<_>>().map(Value::Strings)
        }
        None => Err(unknown_type(path, key, element)),
    }
}

fn unknown_type(path: &Path, key: &str, id: u32) -> Error {
    Error::Field {
        path: path.to_path_buf(),
        field: format!("the type of metadata `{key}`"),
        found: if id == ARRAY { "a list of lists".to_string() } else { format!("number {id}") },
        expected: "a number, a string, a bool or a list of one of them".to_string(),
    }
}
