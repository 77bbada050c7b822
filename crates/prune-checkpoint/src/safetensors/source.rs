use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use prune_core::TensorInfo;

use super::header::read_header;
use super::index::read_index;
use crate::ranged_file::RangedFile;
use crate::{Error, Result};

/// The tensors of one safetensors file or of all shards of an index.
#[derive(Debug)]
pub(crate) struct SafetensorsSource {
    files: Vec<RangedFile>,
    tensors: Vec<TensorInfo>,
    places: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    start: u64,
}

impl SafetensorsSource {
    /// One file with all tensors.
    pub(crate) fn open_file(path: &Path) -> Result<Self> {
        let file = RangedFile::open(path)?;
        let found = read_header(&file)?;
        let tensors = found.into_iter().map(|(info, start)| (info, Place { file: 0, start }));
        Ok(Self::sorted(vec![file], tensors.collect()))
    }

    /// The shards beside `index`. Index and shards have to agree on every tensor.
    pub(crate) fn open_index(index: &Path) -> Result<Self> {
        let map = read_index(index)?;
        let directory = index.parent().unwrap_or(Path::new(""));
        let shards: BTreeSet<&str> = map.values().map(String::as_str).collect();
        let mut files = Vec::with_capacity(shards.len());
        let mut tensors = Vec::with_capacity(map.len());
        let mut found: BTreeSet<String> = BTreeSet::new();
        let mut misplaced = None;
        for (number, shard) in shards.iter().enumerate() {
            let path = directory.join(shard);
            let file = RangedFile::open(&path).map_err(|e| match e {
                Error::Io { ref source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                    Error::MissingShard {
                        path: index.to_path_buf(),
                        shard: (*shard).to_string(),
                        tensor: first_of(&map, shard),
                    }
                }
                e => e,
            })?;
            for (info, start) in read_header(&file)? {
                match map.get(&info.name) {
                    None => return Err(Error::NotInIndex { path, tensor: info.name }),
                    Some(listed) if listed == shard => {
                        found.insert(info.name.clone());
                        tensors.push((info, Place { file: number, start }));
                    }
                    Some(listed) => misplaced = Some((info.name, listed, path.clone())),
                }
            }
            files.push(file);
        }
        if let Some((tensor, listed, second)) = misplaced
            && found.contains(&tensor)
        {
            return Err(Error::TwoShards { tensor, first: directory.join(listed), second });
        }
        if let Some((tensor, shard)) = map.iter().find(|(tensor, _)| !found.contains(*tensor)) {
            return Err(Error::NotInShard { path: directory.join(shard), tensor: tensor.clone() });
        }
        Ok(Self::sorted(files, tensors))
    }

    fn sorted(files: Vec<RangedFile>, mut tensors: Vec<(TensorInfo, Place)>) -> Self {
        tensors.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        let (tensors, places) = tensors.into_iter().unzip();
        SafetensorsSource { files, tensors, places }
    }

    pub(crate) fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(RangedFile::path)
    }

    pub(crate) fn files(&self) -> usize {
        self.files.len()
    }

    /// Fills `buf` from byte `offset` of the tensor numbered `index`; the range was checked.
    pub(crate) fn read_at(&self, index: usize, offset: usize, buf: &mut [u8]) -> Result<()> {
        let place = self.places[index];
        self.files[place.file].read_at(
            format_args!("tensor `{}`", self.tensors[index].name),
            place.start + offset as u64,
            buf,
        )
    }
}

fn first_of(map: &BTreeMap<String, String>, shard: &str) -> String {
    map.iter().find(|(_, s)| s.as_str() == shard).map_or_else(String::new, |(t, _)| t.clone())
}
