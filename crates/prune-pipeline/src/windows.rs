use std::fs::File;
use std::io::Read;
use std::path::Path;

use prune_core::Seed;

use crate::{Error, Result};

/// Token ids in windows of one length: calibration samples or an evaluation text.
///
/// ```
/// use prune_pipeline::TokenWindows;
/// let text: Vec<u32> = (0..10).collect();
/// let windows = TokenWindows::consecutive("text", &text, 4, None)?;
/// assert_eq!(windows.windows(), [[0, 1, 2, 3], [4, 5, 6, 7]]);
/// assert!(TokenWindows::consecutive("text", &text, 11, None).is_err());
/// # Ok::<(), prune_pipeline::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenWindows {
    windows: Vec<Vec<u32>>,
    length: usize,
}

impl TokenWindows {
    /// The text cut into windows of `length`, without overlap, in order; a rest is dropped. At
    /// most `count` windows when given.
    ///
    /// # Errors
    /// [`Error::TooShort`] when `count` windows, or one, do not fit.
    pub fn consecutive(
        what: &str,
        tokens: &[u32],
        length: usize,
        count: Option<usize>,
    ) -> Result<Self> {
        let needed = count.unwrap_or(1).max(1).saturating_mul(length.max(1));
        if tokens.len() < needed {
            return Err(Error::TooShort { what: what.into(), found: tokens.len(), needed });
        }
        let cut = tokens.chunks_exact(length.max(1)).take(count.unwrap_or(usize::MAX));
        Ok(Self { windows: cut.map(<[u32]>::to_vec).collect(), length })
    }

    /// `count` different windows of the text, drawn by `seed`.
    ///
    /// # Errors
    /// [`Error::TooShort`].
    pub fn sampled(
        what: &str,
        tokens: &[u32],
        length: usize,
        count: usize,
        seed: Seed,
    ) -> Result<Self> {
        let mut all = Self::consecutive(what, tokens, length, None)?;
        if all.windows.len() < count {
            let needed = count.saturating_mul(length);
            return Err(Error::TooShort { what: what.into(), found: tokens.len(), needed });
        }
        let mut stream = seed.stream("calibration");
        for i in 0..count {
            let j = i + stream.below((all.windows.len() - i) as u64) as usize;
            all.windows.swap(i, j);
        }
        all.windows.truncate(count);
        Ok(all)
    }

    /// The rows of a two-dimensional integer `.npy` file: the first `count` when given.
    ///
    /// # Errors
    /// [`Error::Windows`] for any other file; [`Error::TooShort`]; [`Error::Io`].
    pub fn from_npy(path: &Path, count: Option<usize>) -> Result<Self> {
        let (rows, cols, tokens) = read_npy(path)?;
        let count = count.unwrap_or(rows);
        Self::consecutive(&path.display().to_string(), &tokens, cols, Some(count))
    }

    /// The windows with the same tokens before and after each: an encoder reads a text between
    /// its special tokens.
    ///
    /// ```
    /// use prune_pipeline::TokenWindows;
    /// let windows = TokenWindows::consecutive("text", &[5, 6, 7, 8], 2, None)?.framed(&[1], &[2]);
    /// assert_eq!((windows.windows(), windows.length()), (&[vec![1, 5, 6, 2], vec![1, 7, 8, 2]][..], 4));
    /// # Ok::<(), prune_pipeline::Error>(())
    /// ```
    #[must_use]
    pub fn framed(mut self, before: &[u32], after: &[u32]) -> Self {
        for window in &mut self.windows {
            *window = [before, window, after].concat();
        }
        self.length += before.len() + after.len();
        self
    }

    /// The windows.
    pub fn windows(&self) -> &[Vec<u32>] {
        &self.windows
    }

    /// The windows in batches of `count`, in order.
    pub(crate) fn batches(&self, count: usize) -> Vec<Self> {
        let batch = |windows: &[Vec<u32>]| Self { windows: windows.to_vec(), length: self.length };
        self.windows.chunks(count.max(1)).map(batch).collect()
    }

    /// Tokens of a window.
    pub fn length(&self) -> usize {
        self.length
    }

    /// All ids as little-endian bytes, for a digest.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.windows.iter().flatten().flat_map(|t| t.to_le_bytes()).collect()
    }
}

/// Files of token ids are small; a larger one is not what was meant.
const LIMIT: u64 = 1 << 30;

fn read_npy(path: &Path) -> Result<(usize, usize, Vec<u32>)> {
    let io = |source| Error::Io { path: path.into(), source };
    let bad = |reason: String| Error::Windows { path: path.into(), reason };
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    if size > LIMIT {
        return Err(bad(format!("{size} bytes; token windows take at most {LIMIT}")));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes).map_err(io)?;
    let header_error = || bad("is no .npy file of version 1 or 2".into());
    if bytes.get(..6) != Some(b"\x93NUMPY".as_slice()) {
        return Err(header_error());
    }
    let (start, length) = match bytes.get(6..12) {
        Some([1, _, a, b, ..]) => (10, usize::from(u16::from_le_bytes([*a, *b]))),
        Some([2, _, a, b, c, d]) => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
        _ => return Err(header_error()),
    };
    let header = bytes.get(start..start + length).ok_or_else(header_error)?;
    let header = std::str::from_utf8(header).map_err(|_| header_error())?;
    let value =
        |key: &str| header.split_once(key).map(|(_, rest)| rest.trim_start_matches([':', ' ']));
    if value("'fortran_order'").is_none_or(|v| !v.starts_with("False")) {
        return Err(bad("is stored by columns; expected rows (C order)".into()));
    }
    let shape = value("'shape'").and_then(|v| v.strip_prefix('(')?.split_once(')'));
    let shape: Vec<usize> = shape
        .map(|(inner, _)| inner.split(',').filter_map(|n| n.trim().parse().ok()).collect())
        .unwrap_or_default();
    let [rows, cols] = shape[..] else {
        return Err(bad(format!("has shape {shape:?}; expected (windows, tokens)")));
    };
    let descr = value("'descr'").unwrap_or_default();
    let data = &bytes[start + length..];
    let token = |v: i64| {
        u32::try_from(v).map_err(|_| bad(format!("holds {v}; a token id is between 0 and 2^32")))
    };
    let tokens: Vec<u32> = if descr.starts_with("'<i4'") || descr.starts_with("'<u4'") {
        let signed = descr.starts_with("'<i4'");
        let read = |b: &[u8; 4]| match signed {
            true => i64::from(i32::from_le_bytes(*b)),
            false => i64::from(u32::from_le_bytes(*b)),
        };
        data.as_chunks::<4>().0.iter().map(|b| token(read(b))).collect::<Result<_>>()?
    } else if descr.starts_with("'<i8'") {
        data.as_chunks::<8>()
            .0
            .iter()
            .map(|b| token(i64::from_le_bytes(*b)))
            .collect::<Result<_>>()?
    } else if descr.starts_with("'<u2'") {
        data.as_chunks::<2>().0.iter().map(|b| u32::from(u16::from_le_bytes(*b))).collect()
    } else {
        return Err(bad("holds no integers; expected <i4, <u4, <i8 or <u2".into()));
    };
    if rows.checked_mul(cols) != Some(tokens.len()) || tokens.is_empty() {
        return Err(bad(format!("holds {} ids; its shape says {rows} x {cols}", tokens.len())));
    }
    Ok((rows, cols, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(descr: &str, shape: &str, data: &[u8]) -> tempfile::NamedTempFile {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn npy_windows_are_read_and_bad_ones_named() {
        let data: Vec<u8> = (0..6i32).flat_map(i32::to_le_bytes).collect();
        let good = npy("<i4", "(2, 3)", &data);
        let windows = TokenWindows::from_npy(good.path(), None).unwrap();
        assert_eq!(windows.windows(), [[0, 1, 2], [3, 4, 5]]);
        for (file, says) in [
            (npy("<f4", "(2, 3)", &data), "holds no integers"),
            (npy("<i4", "(6,)", &data), "expected (windows, tokens)"),
            (npy("<i4", "(3, 3)", &data), "its shape says 3 x 3"),
            (npy("<i4", "(99999999999, 99999999999)", &data), "its shape says"),
            (npy("<i4", "(1, 1)", &(-1i32).to_le_bytes()), "holds -1"),
        ] {
            let err = TokenWindows::from_npy(file.path(), None).unwrap_err().to_string();
            assert!(err.contains(says), "{err}");
        }
        let err = TokenWindows::from_npy(good.path(), Some(4)).unwrap_err().to_string();
        assert!(err.contains("6 tokens are too few: 12 are needed, 6 more"), "{err}");
    }

    #[test]
    fn samples_are_different_windows_and_depend_on_the_seed() {
        let text: Vec<u32> = (0..64).collect();
        let draw = |seed| TokenWindows::sampled("t", &text, 4, 8, Seed::new(seed)).unwrap();
        let mut first: Vec<u32> = draw(1).windows().iter().map(|w| w[0]).collect();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 8);
    }
}
