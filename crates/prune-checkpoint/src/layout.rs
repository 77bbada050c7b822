use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};

use prune_core::{DType, TensorInfo};
use serde::{Serialize, Serializer};

use crate::{Error, Result, limits};

/// The name of the file that says which shard holds which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Which shard every tensor goes to and where in it, decided before the first byte is written.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) shards: Vec<Shard>,
    /// How many of the shards, from the first on, make up the model; what follows is beside it.
    indexed: usize,
}

/// One safetensors file of a [`Layout`].
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) name: String,
    /// Length prefix and padded header.
    pub(crate) head: Vec<u8>,
    /// Tensors in file order, each with its first byte in the file.
    pub(crate) tensors: Vec<(TensorInfo, u64)>,
    /// The length of the file.
    pub(crate) size: u64,
}

impl Layout {
    /// The layout of `plan` in shards of at most `shard_size` bytes of tensors (a larger tensor
    /// gets a shard of its own).
    ///
    /// Depends on nothing but its arguments: tensors go into shards in natural order of their
    /// names, so that block 2 comes before block 10, and within a shard they are sorted as the
    /// reference implementation sorts them, widest dtype first, which aligns all of them.
    ///
    /// `beside` is one more file of that name, with tensors that the index does not list.
    pub(crate) fn new(
        mut plan: Vec<TensorInfo>,
        shard_size: u64,
        metadata: &BTreeMap<String, String>,
        beside: Option<(String, Vec<TensorInfo>)>,
    ) -> Result<Layout> {
        let plan_error =
            |what: &str, reason: String| Error::Plan { what: what.to_string(), reason };
        if shard_size == 0 {
            return Err(plan_error("shard_size", "it is 0; expected 1 byte or more".to_string()));
        }
        let others = beside.iter().flat_map(|(_, tensors)| tensors);
        let count = plan.len() + others.clone().count();
        if count as u64 > limits::TENSORS {
            let reason = format!("{count}; expected at most {}", limits::TENSORS);
            return Err(plan_error("the number of tensors", reason));
        }
        let mut seen = HashSet::new();
        for info in plan.iter().chain(others) {
            let what = format!("tensor `{}`", info.name);
            if info.name.is_empty() || info.name == "__metadata__" {
                return Err(plan_error(&what, "the name is reserved".to_string()));
            }
            if !seen.insert(&info.name) {
                return Err(plan_error(&what, "it is planned twice".to_string()));
            }
            if info.shape.len() > limits::DIMS {
                let reason = format!("{} dimensions; at most {}", info.shape.len(), limits::DIMS);
                return Err(plan_error(&what, reason));
            }
            let bytes = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
            if bytes.and_then(|n| n.checked_mul(info.dtype.size())).is_none() {
                return Err(plan_error(&what, format!("shape {:?} overflows", info.shape)));
            }
        }

        plan.sort_by(|a, b| natural(&a.name, &b.name));
        let mut packed: Vec<Vec<TensorInfo>> = Vec::new();
        let mut filled = 0u64;
        for info in plan {
            let bytes = info.nbytes() as u64;
            match packed.last_mut() {
                Some(shard) if filled.saturating_add(bytes) <= shard_size => {
                    filled += bytes;
                    shard.push(info);
                }
                _ => {
                    filled = bytes;
                    packed.push(vec![info]);
                }
            }
        }
        if packed.is_empty() {
            packed.push(Vec::new());
        }
        let count = packed.len();
        let mut shards: Vec<Shard> = packed
            .into_iter()
            .enumerate()
            .map(|(i, tensors)| {
                let name = match count {
                    1 => "model.safetensors".to_string(),
                    _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
                };
                Shard::new(name, tensors, metadata)
            })
            .collect::<Result<_>>()?;
        if let Some((name, tensors)) = beside {
            shards.push(Shard::new(name, tensors, metadata)?);
        }
        Ok(Layout { shards, indexed: count })
    }

    /// The index JSON, as transformers formats it; `None` for a single file.
    pub(crate) fn index(&self) -> Option<Vec<u8>> {
        if self.indexed == 1 {
            return None;
        }
        let tensors = self.shards[..self.indexed]
            .iter()
            .flat_map(|s| s.tensors.iter().map(move |(t, _)| (s, t)));
        let index = Index {
            metadata: IndexMetadata {
                total_size: tensors.clone().map(|(_, t)| t.nbytes() as u64).sum(),
            },
            weight_map: tensors.map(|(s, t)| (t.name.as_str(), s.name.as_str())).collect(),
        };
        // Strings and numbers always serialise.
        let mut json = serde_json::to_vec_pretty(&index).unwrap_or_default();
        json.push(b'\n');
        Some(json)
    }
}

#[derive(Serialize)]
struct Index<'a> {
    metadata: IndexMetadata,
    weight_map: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct IndexMetadata {
    total_size: u64,
}

impl Shard {
    fn new(
        name: String,
        mut tensors: Vec<TensorInfo>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Shard> {
        tensors.sort_by(|a, b| rank(b.dtype).cmp(&rank(a.dtype)).then_with(|| a.name.cmp(&b.name)));
        let mut offset = 0u64;
        let mut placed = Vec::with_capacity(tensors.len());
        for info in tensors {
            let end = offset.checked_add(info.nbytes() as u64).ok_or_else(|| Error::Plan {
                what: format!("shard `{name}`"),
                reason: "its size overflows".to_string(),
            })?;
            placed.push((info, offset));
            offset = end;
        }
        let mut json = serde_json::to_vec(&Header { metadata, tensors: &placed }).map_err(|e| {
            Error::Plan { what: format!("the header of `{name}`"), reason: e.to_string() }
        })?;
        json.resize(json.len().next_multiple_of(8), b' ');
        if json.len() as u64 > limits::HEADER_BYTES {
            return Err(Error::Plan {
                what: format!("the header of `{name}`"),
                reason: format!(
                    "it takes {} bytes, readers accept {}; use smaller shards",
                    json.len(),
                    limits::HEADER_BYTES
                ),
            });
        }
        let mut head = (json.len() as u64).to_le_bytes().to_vec();
        head.append(&mut json);
        let start = head.len() as u64;
        for (_, at) in &mut placed {
            *at += start;
        }
        Ok(Shard { name, head, tensors: placed, size: start + offset })
    }
}

struct Header<'a> {
    metadata: &'a BTreeMap<String, String>,
    tensors: &'a [(TensorInfo, u64)],
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("__metadata__", self.metadata)?;
        for (info, start) in self.tensors {
            map.serialize_entry(
                &info.name,
                &Entry {
                    dtype: info.dtype.name(),
                    shape: &info.shape,
                    data_offsets: (*start, start + info.nbytes() as u64),
                },
            )?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Entry<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: (u64, u64),
}

/// The place of a dtype in the order of the reference implementation, which never decreases in
/// size.
fn rank(dtype: DType) -> usize {
    [
        DType::Bool,
        DType::U8,
        DType::I8,
        DType::F8E5M2,
        DType::F8E4M3,
        DType::I16,
        DType::U16,
        DType::F16,
        DType::BF16,
        DType::I32,
        DType::U32,
        DType::F32,
        DType::F64,
        DType::I64,
        DType::U64,
    ]
    .iter()
    .position(|d| *d == dtype)
    .unwrap_or(0)
}

/// Compares names with their digits taken as numbers; names that differ in leading zeros only are
/// compared as text.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    loop {
        let (n, m) = (digits(x), digits(y));
        let order = if n > 0 && m > 0 {
            let value = |s: &[u8]| s.iter().position(|d| *d != b'0').unwrap_or(s.len());
            let (p, q) = (&x[value(&x[..n])..n], &y[value(&y[..m])..m]);
            let order = p.len().cmp(&q.len()).then_with(|| p.cmp(q));
            (x, y) = (&x[n..], &y[m..]);
            order
        } else {
            match (x.split_first(), y.split_first()) {
                (Some((p, rest_x)), Some((q, rest_y))) => {
                    (x, y) = (rest_x, rest_y);
                    p.cmp(q)
                }
                // One is a prefix of the other, or they are equal up to leading zeros.
                _ => return x.len().cmp(&y.len()).then_with(|| a.cmp(b)),
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|b| b.is_ascii_digit()).count()
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::natural;

    #[test]
    fn numbers_in_names_are_compared_as_numbers() {
        let mut names = [
            "l.10.b",
            "l.2.b",
            "l.2.a",
            "l",
            "l.02.a",
            "m",
            "l.1",
            "",
            "l.100000000000000000000000",
        ];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(
            names,
            [
                "",
                "l",
                "l.1",
                "l.02.a",
                "l.2.a",
                "l.2.b",
                "l.10.b",
                "l.100000000000000000000000",
                "m"
            ]
        );
        assert_eq!(natural("a1", "a01"), natural("a01", "a1").reverse());
        assert_eq!(natural("a1", "a1"), Ordering::Equal);
    }
}
