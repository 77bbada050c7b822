use prune_core::{DType, Error, Pattern, Result, TensorInfo, TensorSource, Violation};

/// A tensor and its little-endian bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Name, element type and shape.
    pub info: TensorInfo,
    /// As many as the shape needs.
    pub data: Vec<u8>,
}

/// A sparse format of compressed-tensors.
///
/// A module's `weight` becomes tensors whose bits follow numpy's `packbits(bitorder="little")`: bit
/// `b` of byte `q` of a row is column `8q + b`. Values stand in the order of columns. `-0.0` counts
/// as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SparseFormat {
    /// `sparse-bitmask`: `shape` (int64, 2), `compressed` (values, one after the other), `bitmask`
    /// (u8, rows x ⌈columns / 8⌉) and `row_offsets` (int64, the values before each row).
    Bitmask,
    /// `sparse-24-bitmask`: `shape` (int64, 2 x 1), `compressed` (rows x columns / 2) and `bitmask`,
    /// with exactly two of every four columns.
    Bitmask24,
}

impl SparseFormat {
    /// The name in `sparsity_config`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bitmask => "sparse-bitmask",
            Self::Bitmask24 => "sparse-24-bitmask",
        }
    }
}

/// Under which names a module's compressed tensors stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum CompressedKeys {
    /// `module.compressed`: compressed-tensors from 0.9 on.
    #[default]
    Current,
    /// `module.weight.compressed`: up to 0.8.
    Weight,
}

impl CompressedKeys {
    fn of(self, module: &str, part: &str) -> String {
        match self {
            Self::Current => format!("{module}.{part}"),
            Self::Weight => format!("{module}.weight.{part}"),
        }
    }
}

const WEIGHT: &str = ".weight";

/// The tensors that stand for `weight`, the matrix `module.weight` of any element type.
///
/// In [`SparseFormat::Bitmask24`] a group with fewer than two nonzeros keeps zeros at its first free
/// columns. The library's own writer takes the two largest and drops the others without a word;
/// here a third nonzero is an error.
///
/// # Errors
/// [`Error::Shape`] for what is no matrix; [`Error::OutOfRange`] for another name or a length of
/// data that does not fit; [`Error::NotFinite`]; [`Error::PatternShape`] and
/// [`Error::PatternBroken`] for a matrix that is not 2:4 where it should be.
///
/// ```
/// use prune_checkpoint::{CompressedKeys, NamedTensor, SparseFormat, compress};
/// use prune_core::{DType, TensorInfo, encode_f32};
///
/// let info =
///     TensorInfo { name: "up.weight".to_string(), dtype: DType::F32, shape: vec![2, 4] };
/// let data = encode_f32("up.weight", DType::F32, &[0.0, 5.0, 0.0, 4.0, 1.0, 0.0, 2.0, 0.0])?;
/// let weight = NamedTensor { info, data };
/// let tensors = compress(&weight, SparseFormat::Bitmask, CompressedKeys::Current)?;
/// let names: Vec<_> = tensors.iter().map(|t| t.info.name.as_str()).collect();
/// assert_eq!(names, ["up.shape", "up.compressed", "up.bitmask", "up.row_offsets"]);
/// assert_eq!(tensors[2].data, [0b1010, 0b0101]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn compress(
    weight: &NamedTensor,
    format: SparseFormat,
    keys: CompressedKeys,
) -> Result<Vec<NamedTensor>> {
    let NamedTensor { info, data } = weight;
    let (rows, cols) = info.matrix_shape()?;
    let Some(module) = info.name.strip_suffix(WEIGHT) else {
        return Err(out_of_range(&info.name, "its name", "a name that ends in `.weight`"));
    };
    let size = info.dtype.size();
    if Some(data.len()) != rows.checked_mul(cols).and_then(|n| n.checked_mul(size)) {
        let found = format!("{} bytes long", data.len());
        return Err(out_of_range(&info.name, &found, "as many bytes as its shape needs"));
    }
    check_finite_bytes(info, data)?;
    let stride = cols.div_ceil(8);
    let mut bitmask = vec![0u8; rows * stride];
    let (mut values, mut offsets) = (Vec::new(), Vec::with_capacity(rows));
    if format == SparseFormat::Bitmask24 {
        Pattern::nm(2, 4)?.check_shape(&info.name, rows, cols)?;
    }
    for row in 0..rows {
        let bits = &mut bitmask[row * stride..(row + 1) * stride];
        let values_of_row = &data[row * cols * size..(row + 1) * cols * size];
        let mut kept: Vec<bool> =
            values_of_row.chunks_exact(size).map(|v| !is_zero(info.dtype, v)).collect();
        if format == SparseFormat::Bitmask24 {
            fill_up(row, &mut kept)?;
        }
        offsets.push((values.len() / size) as i64);
        for (c, value) in values_of_row.chunks_exact(size).enumerate().filter(|(c, _)| kept[*c]) {
            bits[c / 8] |= 1 << (c % 8);
            values.extend_from_slice(value);
        }
    }
    let tensor = |part, dtype, shape, data| NamedTensor {
        info: TensorInfo { name: keys.of(module, part), dtype, shape },
        data,
    };
    let longs = |values: &[i64]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let shape = longs(&[rows as i64, cols as i64]);
    let count = values.len() / size;
    Ok(match format {
        SparseFormat::Bitmask => vec![
            tensor("shape", DType::I64, vec![2], shape),
            tensor("compressed", info.dtype, vec![count], values),
            tensor("bitmask", DType::U8, vec![rows, stride], bitmask),
            tensor("row_offsets", DType::I64, vec![rows], longs(&offsets)),
        ],
        SparseFormat::Bitmask24 => vec![
            tensor("shape", DType::I64, vec![2, 1], shape),
            tensor("compressed", info.dtype, vec![rows, cols / 2], values),
            tensor("bitmask", DType::U8, vec![rows, stride], bitmask),
        ],
    })
}

/// Keeps exactly two of every four.
fn fill_up(row: usize, kept: &mut [bool]) -> Result<()> {
    for (group, kept) in kept.chunks_exact_mut(4).enumerate() {
        let count = kept.iter().filter(|k| **k).count();
        if count > 2 {
            let violation = Violation { row, group, kept: count, allowed: 2 };
            return Err(Error::PatternBroken { pattern: Pattern::nm(2, 4)?, violation });
        }
        kept.iter_mut().filter(|k| !**k).take(2 - count).for_each(|k| *k = true);
    }
    Ok(())
}

/// The modules of `source` with compressed weights, in its order, and the format of each.
///
/// ```
/// use prune_checkpoint::{Checkpoint, compressed_modules, decompress};
/// # fn convert(source: &Checkpoint) -> prune_core::Result<()> {
/// for (module, _) in compressed_modules(source) {
///     let weight = decompress(source, &module)?;
///     println!("{} {:?}", weight.info.name, weight.info.shape);
/// }
/// # Ok(())
/// # }
/// ```
pub fn compressed_modules(source: &dyn TensorSource) -> Vec<(String, SparseFormat)> {
    let modules = source.tensors().iter().filter_map(|t| t.name.strip_suffix(".bitmask"));
    modules
        .filter(|m| source.info(&format!("{m}.compressed")).is_ok())
        .map(|m| {
            let format = match source.info(&format!("{m}.row_offsets")) {
                Ok(_) => SparseFormat::Bitmask,
                Err(_) => SparseFormat::Bitmask24,
            };
            (m.strip_suffix(WEIGHT).unwrap_or(m).to_string(), format)
        })
        .collect()
}

/// The matrix `module.weight` that the compressed tensors of `module` stand for, under whichever of
/// the [`CompressedKeys`] they are.
///
/// # Errors
/// [`Error::UnknownTensor`] naming the part that is missing; [`Error::DType`], [`Error::Shape`] and
/// [`Error::OutOfRange`] naming the part that contradicts another; [`Error::NotFinite`].
pub fn decompress(source: &dyn TensorSource, module: &str) -> Result<NamedTensor> {
    let keys = match source.info(&CompressedKeys::Weight.of(module, "bitmask")) {
        Ok(_) => CompressedKeys::Weight,
        Err(_) => CompressedKeys::Current,
    };
    let key = |part| keys.of(module, part);
    let shape_key = key("shape");
    let shape = longs(source, &shape_key)?;
    let [rows, cols] = shape[..] else {
        return Err(wrong_shape(&shape_key, &[shape.len()], &[2]));
    };
    let (bitmask, values) = (source.info(&key("bitmask"))?, source.info(&key("compressed"))?);
    // What is stored bounds the size of the matrix: no shape makes this allocate beyond it.
    let sizes = (usize::try_from(rows), usize::try_from(cols));
    let (rows, cols) = match sizes {
        (Ok(rows), Ok(cols))
            if bitmask.shape == [rows, cols.div_ceil(8)] && (cols > 0 || rows == 0) =>
        {
            (rows, cols)
        }
        _ => {
            let found = format!("{rows} x {cols}");
            let expected = format!("the shape of a bitmask of {:?}", bitmask.shape);
            return Err(out_of_range(&shape_key, &found, &expected));
        }
    };
    if bitmask.dtype != DType::U8 {
        return Err(wrong_dtype(bitmask, "U8"));
    }
    let bits = source.read(&bitmask.name)?;
    let stride = cols.div_ceil(8);
    let padded = if cols.is_multiple_of(8) { 0 } else { 0xffu8 << (cols % 8) };
    // A matrix without columns has no rows.
    let rows_of_bits = || bits.chunks_exact(stride.max(1));
    let counts: Vec<usize> =
        rows_of_bits().map(|row| row.iter().map(|b| b.count_ones() as usize).sum()).collect();
    if let Some(row) = rows_of_bits().position(|row| row[stride - 1] & padded != 0) {
        let found = format!("set beyond column {} in row {row}", cols - 1);
        return Err(out_of_range(&bitmask.name, &found, "zero there"));
    }
    let count = counts.iter().sum::<usize>();
    if values.numel() != count {
        return Err(wrong_shape(&values.name, &values.shape, &[count]));
    }
    check_rows(source, &key("row_offsets"), &counts)?;

    let size = values.dtype.size();
    let stored = source.read(&values.name)?;
    let name = format!("{module}{WEIGHT}");
    let info = TensorInfo { name, dtype: values.dtype, shape: vec![rows, cols] };
    check_finite_bytes(&info, &stored)?;
    let mut stored = stored.chunks_exact(size);
    let mut data = vec![0u8; rows * cols * size];
    for row in 0..rows {
        for c in 0..cols {
            if bits[row * stride + c / 8] >> (c % 8) & 1 == 1
                && let Some(value) = stored.next()
            {
                data[(row * cols + c) * size..][..size].copy_from_slice(value);
            }
        }
    }
    Ok(NamedTensor { info, data })
}

/// `row_offsets` where there are any; otherwise two values for every four columns.
fn check_rows(source: &dyn TensorSource, key: &str, counts: &[usize]) -> Result<()> {
    if source.info(key).is_err() {
        return match counts.iter().position(|c| *c != counts[0]) {
            None => Ok(()),
            Some(row) => {
                let found = format!("missing, and row {row} has {} values", counts[row]);
                Err(out_of_range(key, &found, &format!("{} in every row", counts[0])))
            }
        };
    }
    let offsets = longs(source, key)?;
    if offsets.len() != counts.len() {
        return Err(wrong_shape(key, &[offsets.len()], &[counts.len()]));
    }
    let mut before = 0;
    for (row, (offset, count)) in offsets.iter().zip(counts).enumerate() {
        if *offset != before {
            let found = format!("{offset} for row {row}");
            return Err(out_of_range(key, &found, &format!("{before} by the bitmask")));
        }
        before += *count as i64;
    }
    Ok(())
}

fn longs(source: &dyn TensorSource, key: &str) -> Result<Vec<i64>> {
    let info = source.info(key)?;
    let bytes = match info.dtype {
        DType::I64 => source.read(key)?,
        _ => return Err(wrong_dtype(info, "I64")),
    };
    Ok(bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
}

/// The bits that are zero in a zero of either sign.
fn is_zero(dtype: DType, value: &[u8]) -> bool {
    let Some((last, rest)) = value.split_last() else { return true };
    let sign = match dtype {
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E5M2 => 0x7f,
        _ => 0xff,
    };
    rest.iter().all(|b| *b == 0) && last & sign == 0
}

/// NaN and infinity by their bits.
fn check_finite_bytes(info: &TensorInfo, data: &[u8]) -> Result<()> {
    // The bits of the two highest bytes that are all set in what is not finite.
    let mask: u16 = match info.dtype {
        DType::F64 => 0x7ff0,
        DType::F32 | DType::BF16 => 0x7f80,
        DType::F16 => 0x7c00,
        DType::F8E4M3 => 0x7f00,
        DType::F8E5M2 => 0x7c00,
        _ => return Ok(()),
    };
    let high = |value: &[u8]| match value {
        [.., low, high] => u16::from_le_bytes([*low, *high]),
        [only] => u16::from(*only) << 8,
        [] => 0,
    };
    let bad = data.chunks_exact(info.dtype.size()).position(|v| high(v) & mask == mask);
    match bad {
        None => Ok(()),
        Some(index) => Err(Error::NotFinite {
            what: info.name.clone(),
            index,
            value: "NaN or infinite".to_string(),
        }),
    }
}

fn out_of_range(tensor: &str, found: &str, expected: &str) -> Error {
    Error::OutOfRange {
        what: format!("tensor `{tensor}`"),
        found: found.to_string(),
        expected: expected.to_string(),
    }
}

fn wrong_shape(tensor: &str, found: &[usize], expected: &[usize]) -> Error {
    Error::Shape { what: tensor.to_string(), found: found.to_vec(), expected: expected.to_vec() }
}

fn wrong_dtype(info: &TensorInfo, expected: &str) -> Error {
    Error::DType {
        tensor: info.name.clone(),
        found: info.dtype.to_string(),
        expected: expected.to_string(),
    }
}
