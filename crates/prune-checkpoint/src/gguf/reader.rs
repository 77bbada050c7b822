use crate::ranged_file::RangedFile;
use crate::{Error, Result, limits};

/// Reads the little-endian values at the head of a GGUF file one after the other.
///
/// Every length is compared with what is left of the file before memory is asked for.
pub(super) struct Reader<'f> {
    file: &'f RangedFile,
    end: u64,
    position: u64,
    buffer: Vec<u8>,
    buffer_start: u64,
}

const BUFFER: u64 = 1 << 16;

impl<'f> Reader<'f> {
    pub(super) fn new(file: &'f RangedFile) -> Self {
        let end = file.len().min(limits::GGUF_HEADER_BYTES);
        Reader { file, end, position: 0, buffer: Vec::new(), buffer_start: 0 }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The bytes left for the head of the file.
    pub(super) fn left(&self) -> u64 {
        self.end - self.position
    }

    pub(super) fn fill(&mut self, what: &str, out: &mut [u8]) -> Result<()> {
        let wanted = out.len() as u64;
        if wanted > self.left() {
            return Err(self.too_long(what, wanted));
        }
        if wanted > BUFFER {
            self.file.read_at(what, self.position, out)?;
        } else {
            let buffered = self.buffer_start + self.buffer.len() as u64;
            if self.position < self.buffer_start || self.position + wanted > buffered {
                self.buffer.resize(BUFFER.min(self.left()) as usize, 0);
                self.buffer_start = self.position;
                self.file.read_at(what, self.position, &mut self.buffer)?;
            }
            let start = (self.position - self.buffer_start) as usize;
            out.copy_from_slice(&self.buffer[start..start + out.len()]);
        }
        self.position += wanted;
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// `count` values of `size` bytes.
    pub(super) fn bytes(&mut self, what: &str, count: u64, size: u64) -> Result<Vec<u8>> {
        let wanted = count.saturating_mul(size);
        if wanted > self.left() {
            return Err(self.too_long(what, wanted));
        }
        let mut bytes = vec![0; wanted as usize];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    /// A string: its length, then its UTF-8.
    pub(super) fn string(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        if length > limits::GGUF_STRING_BYTES && length <= self.left() {
            return Err(Error::TooLarge {
                path: self.file.path().to_path_buf(),
                what: format!("the length of {what}"),
                found: length,
                limit: limits::GGUF_STRING_BYTES,
            });
        }
        let bytes = self.bytes(what, length, 1)?;
        String::from_utf8(bytes).map_err(|e| Error::Field {
            path: self.file.path().to_path_buf(),
            field: what.to_string(),
            found: format!("not UTF-8 at its byte {}", e.utf8_error().valid_up_to()),
            expected: "UTF-8".to_string(),
        })
    }

    fn too_long(&self, what: &str, wanted: u64) -> Error {
        let path = self.file.path().to_path_buf();
        let needed = self.position.saturating_add(wanted);
        if needed > self.file.len() {
            Error::Truncated { path, what: what.to_string(), needed, available: self.file.len() }
        } else {
            Error::TooLarge {
                path,
                what: format!("the end of {what} in the GGUF header"),
                found: needed,
                limit: self.end,
            }
        }
    }
}
