use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use crate::ranged_file::RangedFile;
use crate::{Error, Result, limits};

/// The `weight_map` of a safetensors index: tensor to shard, every shard a plain file name.
pub(super) fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let bytes = RangedFile::open(path)?.read_all("index", limits::JSON_BYTES)?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| Error::Json {
        path: path.to_path_buf(),
        what: "index",
        reason: e.to_string(),
    })?;
    let WeightMap { map, duplicates } = index.weight_map.ok_or_else(|| Error::Field {
        path: path.to_path_buf(),
        field: "weight_map".to_string(),
        found: "missing".to_string(),
        expected: "an object of tensor names and shard names".to_string(),
    })?;
    if let Some(tensor) = duplicates.into_iter().next() {
        return Err(Error::DuplicateTensor { path: path.to_path_buf(), tensor });
    }
    if map.is_empty() {
        return Err(Error::Field {
            path: path.to_path_buf(),
            field: "weight_map".to_string(),
            found: "empty".to_string(),
            expected: "at least one tensor".to_string(),
        });
    }
    for (tensor, shard) in &map {
        if !is_shard_name(shard) {
            return Err(Error::ShardName {
                path: path.to_path_buf(),
                tensor: tensor.clone(),
                shard: shard.clone(),
            });
        }
    }
    Ok(map)
}

/// Whether `name` stays in its directory on every platform.
fn is_shard_name(name: &str) -> bool {
    name.len() > ".safetensors".len()
        && name.ends_with(".safetensors")
        && !name.contains(['/', '\\', ':', '\0'])
}

#[derive(Deserialize)]
struct Index {
    weight_map: Option<WeightMap>,
}

struct WeightMap {
    map: BTreeMap<String, String>,
    duplicates: BTreeSet<String>,
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct MapVisitor;

        impl<'de> Visitor<'de> for MapVisitor {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensor names and shard names as `weight_map`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<WeightMap, A::Error> {
                let mut map = BTreeMap::new();
                let mut duplicates = BTreeSet::new();
                while let Some(tensor) = access.next_key::<String>()? {
                    let shard = access.next_value::<String>().map_err(|e| {
                        de::Error::custom(format!("weight_map, tensor `{tensor}`: {e}"))
                    })?;
                    if map.insert(tensor.clone(), shard).is_some() {
                        duplicates.insert(tensor);
                    }
                    if map.len() as u64 > limits::TENSORS {
                        return Err(de::Error::custom(format!(
                            "weight_map has more than {} tensors",
                            limits::TENSORS
                        )));
                    }
                }
                Ok(WeightMap { map, duplicates })
            }
        }

        d.deserialize_map(MapVisitor)
    }
}
