use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use prune_core::{DType, TensorInfo};
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::ranged_file::RangedFile;
use crate::{Error, Result, limits};

/// Every tensor of a safetensors file with the byte of the file where it starts.
///
/// The data section is checked to be covered by the tensors exactly: no overlap, no hole, nothing
/// left at the end.
pub(super) fn read_header(file: &RangedFile) -> Result<Vec<(TensorInfo, u64)>> {
    let path = file.path();
    let mut prefix = [0; 8];
    file.read_at("the header length", 0, &mut prefix)?;
    let length = u64::from_le_bytes(prefix);
    if length > limits::HEADER_BYTES {
        return Err(Error::TooLarge {
            path: path.to_path_buf(),
            what: "the header length".to_string(),
            found: length,
            limit: limits::HEADER_BYTES,
        });
    }
    let start = 8 + length;
    if start > file.len() {
        return Err(Error::Truncated {
            path: path.to_path_buf(),
            what: "the header".to_string(),
            needed: start,
            available: file.len(),
        });
    }
    let mut bytes = vec![0; length as usize];
    file.read_at("the header", 8, &mut bytes)?;
    let json = |reason: String| Error::Json { path: path.to_path_buf(), what: "header", reason };
    if bytes.first() != Some(&b'{') {
        return Err(json(match bytes.first() {
            None => "it is empty; expected a JSON object".to_string(),
            Some(b) => format!("it starts with byte {b:#04x}; expected `{{`"),
        }));
    }
    if let Err(e) = std::str::from_utf8(&bytes) {
        return Err(json(format!("byte {} is not UTF-8", e.valid_up_to())));
    }

    let progress = RefCell::new(Progress::default());
    let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
    let parsed = HeaderSeed { progress: &progress }
        .deserialize(&mut deserializer)
        .and_then(|entries| deserializer.end().map(|()| entries));
    let entries = parsed.map_err(|e| progress.into_inner().error(path, e))?;
    drop(bytes);
    lay_out(file, start, entries)
}

/// Checks every entry against its own shape, its neighbours and the file.
fn lay_out(file: &RangedFile, start: u64, entries: Vec<Entry>) -> Result<Vec<(TensorInfo, u64)>> {
    let path = file.path();
    let available = file.len() - start;
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in entries {
        let wrong = |field, found: String, expected: String| Error::Tensor {
            path: path.to_path_buf(),
            tensor: entry.name.clone(),
            field,
            found,
            expected,
        };
        let dtype =
            entry.dtype.parse::<DType>().ok().filter(|d| d.name() == entry.dtype).ok_or_else(
                || {
                    wrong(
                        "dtype",
                        format!("`{}`", entry.dtype),
                        "F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64 to I8, U64 to U8 or BOOL"
                            .into(),
                    )
                },
            )?;
        let too_big =
            || wrong("shape", format!("{:?}", entry.shape), "a size that fits memory".into());
        let mut shape = Vec::with_capacity(entry.shape.len());
        let mut bytes = 1usize;
        for dim in &entry.shape {
            let dim = usize::try_from(*dim).map_err(|_| too_big())?;
            bytes = bytes.checked_mul(dim).ok_or_else(too_big)?;
            shape.push(dim);
        }
        let bytes = bytes.checked_mul(dtype.size()).ok_or_else(too_big)? as u64;
        let (begin, end) = entry.offsets;
        if end.checked_sub(begin) != Some(bytes) {
            return Err(wrong(
                "data_offsets",
                format!("[{begin}, {end}]"),
                format!("{bytes} bytes for shape {shape:?} of {dtype}"),
            ));
        }
        if end > available {
            return Err(Error::Truncated {
                path: path.to_path_buf(),
                what: format!("tensor `{}`", entry.name),
                needed: start.saturating_add(end),
                available: file.len(),
            });
        }
        tensors.push((TensorInfo { name: entry.name, dtype, shape }, begin, end));
    }

    tensors.sort_by(|a, b| (a.1, a.2, &a.0.name).cmp(&(b.1, b.2, &b.0.name)));
    let mut covered = 0;
    let mut previous = "";
    for (info, begin, end) in &tensors {
        if *begin < covered {
            return Err(Error::Overlap {
                path: path.to_path_buf(),
                tensor: info.name.clone(),
                other: previous.to_string(),
                start: *begin,
                end: covered,
            });
        }
        if *begin > covered {
            return Err(Error::Hole {
                path: path.to_path_buf(),
                tensor: info.name.clone(),
                start: covered,
                end: *begin,
            });
        }
        covered = *end;
        previous = &info.name;
    }
    if covered != available {
        return Err(Error::TrailingBytes {
            path: path.to_path_buf(),
            found: file.len(),
            expected: start + covered,
        });
    }
    Ok(tensors.into_iter().map(|(info, begin, _)| (info, start + begin)).collect())
}

struct Entry {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    offsets: (u64, u64),
}

/// Where the parser is, so that its errors can name the tensor and the field.
#[derive(Default)]
struct Progress {
    tensor: Option<String>,
    field: Option<&'static str>,
    duplicate: bool,
    count: u64,
}

impl Progress {
    fn error(self, path: &std::path::Path, e: serde_json::Error) -> Error {
        let path = path.to_path_buf();
        if self.count > limits::TENSORS {
            return Error::TooLarge {
                path,
                what: "the number of tensors".to_string(),
                found: self.count,
                limit: limits::TENSORS,
            };
        }
        match (self.tensor, self.field) {
            (tensor, _) if !e.is_data() => Error::Json {
                path,
                what: "header",
                reason: tensor.map_or_else(|| e.to_string(), |t| format!("in tensor `{t}`: {e}")),
            },
            (Some(tensor), _) if self.duplicate => Error::DuplicateTensor { path, tensor },
            (Some(tensor), Some(field)) => Error::Tensor {
                path,
                tensor,
                field,
                found: format!("wrong ({e})"),
                expected: match field {
                    "dtype" => "a string".to_string(),
                    "shape" => format!("at most {} whole numbers from 0 on", limits::DIMS),
                    "data_offsets" => "two whole numbers from 0 on".to_string(),
                    _ => "an object of dtype, shape and data_offsets, each once".to_string(),
                },
            },
            _ => Error::Json { path, what: "header", reason: e.to_string() },
        }
    }
}

struct HeaderSeed<'p> {
    progress: &'p RefCell<Progress>,
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Vec<Entry>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Vec<Entry>, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Vec<Entry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry a tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Entry>, A::Error> {
        let mut seen = HashSet::new();
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            {
                let mut progress = self.progress.borrow_mut();
                progress.tensor = Some(name.clone());
                progress.field = Some("entry");
                progress.count += 1;
                progress.duplicate = !seen.insert(name.clone());
                if progress.duplicate || progress.count > limits::TENSORS {
                    return Err(de::Error::custom("see above"));
                }
            }
            if name == "__metadata__" {
                map.next_value_seed(MetadataSeed)?;
            } else {
                entries.push(map.next_value_seed(EntrySeed { progress: self.progress, name })?);
            }
            let mut progress = self.progress.borrow_mut();
            progress.tensor = None;
            progress.field = None;
        }
        Ok(entries)
    }
}

/// Checks that `__metadata__` is absent, null or maps strings to strings, and drops it.
struct MetadataSeed;

impl<'de> DeserializeSeed<'de> for MetadataSeed {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<String, String>()?.is_some() {}
        Ok(())
    }
}

struct EntrySeed<'p> {
    progress: &'p RefCell<Progress>,
    name: String,
}

impl<'de> DeserializeSeed<'de> for EntrySeed<'_> {
    type Value = Entry;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Entry, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_> {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let at = |field| self.progress.borrow_mut().field = Some(field);
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let repeated = match key.as_str() {
                "dtype" => {
                    at("dtype");
                    dtype.replace(map.next_value::<String>()?).is_some()
                }
                "shape" => {
                    at("shape");
                    shape.replace(map.next_value_seed(Numbers::<{ limits::DIMS }>)?).is_some()
                }
                "data_offsets" => {
                    at("data_offsets");
                    let pair = map.next_value_seed(Numbers::<2>)?;
                    let [begin, end] = pair[..] else {
                        return Err(de::Error::custom(format!("{} offsets", pair.len())));
                    };
                    offsets.replace((begin, end)).is_some()
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            at("entry");
            if repeated {
                return Err(de::Error::custom(format!("`{key}` twice")));
            }
        }
        let missing = |field| {
            at(field);
            de::Error::missing_field(field)
        };
        Ok(Entry {
            name: self.name,
            dtype: dtype.ok_or_else(|| missing("dtype"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
            offsets: offsets.ok_or_else(|| missing("data_offsets"))?,
        })
    }
}

/// At most `MAX` numbers: a header of 100 MB must not become a list of fifty million dimensions.
struct Numbers<const MAX: usize>;

impl<'de, const MAX: usize> DeserializeSeed<'de> for Numbers<MAX> {
    type Value = Vec<u64>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Vec<u64>, D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de, const MAX: usize> Visitor<'de> for Numbers<MAX> {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} whole numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
        let mut numbers = Vec::new();
        while let Some(n) = seq.next_element()? {
            if numbers.len() == MAX {
                return Err(de::Error::custom(format!("more than {MAX} numbers")));
            }
            numbers.push(n);
        }
        Ok(numbers)
    }
}
