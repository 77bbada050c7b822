use std::collections::HashSet;

use super::metadata::Metadata;
use super::reader::Reader;
use super::types::GgufType;
use crate::ranged_file::RangedFile;
use crate::{Error, Result, limits};

/// Everything before the tensors of a GGUF file.
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<Stored>,
}

/// A tensor as the file describes it.
pub(super) struct Stored {
    /// The name in the file: `blk.0.attn_q.weight`.
    pub(super) name: String,
    pub(super) storage: GgufType,
    /// Outermost dimension first, the reverse of the order in the file.
    pub(super) shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub(super) start: u64,
    /// Length in bytes.
    pub(super) bytes: u64,
}

const DEFAULT_ALIGNMENT: u64 = 32;
/// Name length, dimension count, type and offset: the least that a tensor takes in the header.
const LEAST_ENTRY: u64 = 8 + 4 + 4 + 8;

impl Header {
    pub(super) fn read(file: &RangedFile) -> Result<Header> {
        let path = file.path();
        let field = |field: &str, found: String, expected: &str| Error::Field {
            path: path.to_path_buf(),
            field: field.to_string(),
            found,
            expected: expected.to_string(),
        };
        let mut reader = Reader::new(file);
        let magic: [u8; 4] = reader.array("the magic")?;
        if &magic != b"GGUF" {
            return Err(field("the magic", format!("{magic:02x?}"), "`GGUF`"));
        }
        let version = reader.u32("the version")?;
        if version.swap_bytes() == 2 || version.swap_bytes() == 3 {
            return Err(field("the byte order", "big-endian".to_string(), "little-endian"));
        }
        if version != 2 && version != 3 {
            return Err(field("the version", version.to_string(), "2 or 3"));
        }
        let count = reader.u64("the number of tensors")?;
        let fields = reader.u64("the number of metadata fields")?;
        if count > limits::TENSORS {
            return Err(Error::TooLarge {
                path: path.to_path_buf(),
                what: "the number of tensors".to_string(),
                found: count,
                limit: limits::TENSORS,
            });
        }
        let metadata = Metadata::read(&mut reader, path, fields)?;
        let alignment = match metadata.integer("general.alignment")? {
            None => DEFAULT_ALIGNMENT,
            Some(a) if a.is_power_of_two() && a <= 1 << 20 => a,
            Some(_) => {
                return Err(metadata.wrong("general.alignment", "a power of two up to 1048576"));
            }
        };
        if count * LEAST_ENTRY > reader.left() {
            return Err(Error::Truncated {
                path: path.to_path_buf(),
                what: format!("the list of {count} tensors"),
                needed: reader.position() + count * LEAST_ENTRY,
                available: file.len(),
            });
        }
        let mut tensors = Vec::new();
        let mut seen = HashSet::new();
        for number in 0..count {
            let tensor = read_tensor(&mut reader, file, number)?;
            if !seen.insert(tensor.name.clone()) {
                let path = path.to_path_buf();
                return Err(Error::DuplicateTensor { path, tensor: tensor.name });
            }
            tensors.push(tensor);
        }
        let data = reader.position().next_multiple_of(alignment);
        place(file, &mut tensors, data, alignment)?;
        Ok(Header { metadata, tensors })
    }
}

fn read_tensor(reader: &mut Reader<'_>, file: &RangedFile, number: u64) -> Result<Stored> {
    let name = reader.string(&format!("the name of tensor {number}"))?;
    let wrong = |field, found: String, expected: String| Error::Tensor {
        path: file.path().to_path_buf(),
        tensor: name.clone(),
        field,
        found,
        expected,
    };
    let dims = reader.u32(&name)?;
    if dims > limits::GGUF_DIMS {
        let expected = format!("at most {}", limits::GGUF_DIMS);
        return Err(wrong("the number of dimensions", dims.to_string(), expected));
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        let dim = reader.u64(&name)?;
        match usize::try_from(dim) {
            Ok(dim) if dim > 0 => shape.push(dim),
            _ => return Err(wrong("a dimension", dim.to_string(), "1 or more".to_string())),
        }
    }
    shape.reverse();
    let id = reader.u32(&name)?;
    let storage = GgufType::from_id(id).ok_or_else(|| {
        wrong(
            "the type",
            format!("number {id} ({})", GgufType::foreign_name(id)),
            "F32, F16, BF16, F64, I8 to I64, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4, NVFP4 or Q2_K to Q6_K"
                .to_string(),
        )
    })?;
    let offset = reader.u64(&name)?;

    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(storage.elements()) {
        return Err(wrong(
            "the row length",
            row.to_string(),
            format!("a multiple of {}, the block of {}", storage.elements(), storage.name()),
        ));
    }
    let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let bytes = elements.and_then(|n| {
        // What is delivered has to be addressable, and so has what is stored.
        n.checked_mul(storage.delivered().size())?;
        (n / storage.elements()).checked_mul(storage.bytes())
    });
    let Some(bytes) = bytes else {
        return Err(wrong("the shape", format!("{shape:?}"), "a size that fits memory".into()));
    };
    Ok(Stored { name, storage, shape, start: offset, bytes: bytes as u64 })
}

/// Turns offsets into positions in the file and checks that tensors follow one another.
fn place(file: &RangedFile, tensors: &mut [Stored], data: u64, alignment: u64) -> Result<()> {
    let path = || file.path().to_path_buf();
    tensors.sort_by(|a, b| (a.start, &a.name).cmp(&(b.start, &b.name)));
    let mut covered = 0u64;
    let mut previous = String::new();
    for tensor in tensors {
        let offset = tensor.start;
        if !offset.is_multiple_of(alignment) {
            return Err(Error::Tensor {
                path: path(),
                tensor: tensor.name.clone(),
                field: "the offset",
                found: offset.to_string(),
                expected: format!("a multiple of the alignment {alignment}"),
            });
        }
        let end = offset.saturating_add(tensor.bytes);
        if data.saturating_add(end) > file.len() {
            return Err(Error::Truncated {
                path: path(),
                what: format!("tensor `{}`", tensor.name),
                needed: data.saturating_add(end),
                available: file.len(),
            });
        }
        if offset < covered {
            return Err(Error::Overlap {
                path: path(),
                tensor: tensor.name.clone(),
                other: previous,
                start: offset,
                end: covered,
            });
        }
        if offset > covered.next_multiple_of(alignment) {
            return Err(Error::Hole {
                path: path(),
                tensor: tensor.name.clone(),
                start: covered,
                end: offset,
            });
        }
        covered = end;
        previous.clone_from(&tensor.name);
        tensor.start = data + offset;
    }
    Ok(())
}
