use std::fmt::Write;

use prune_core::TensorSource;
use sha2::{Digest, Sha256};

/// Bytes read and hashed at a time.
const PIECE: usize = 4 << 20;

/// The SHA-256 of `bytes` as `sha256:` and 64 hexadecimal digits.
///
/// ```
/// // FIPS 180-4 test vector.
/// assert_eq!(
///     prune_checkpoint::digest(b"abc"),
///     "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
/// );
/// ```
pub fn digest(bytes: &[u8]) -> String {
    text(Sha256::digest(bytes).as_slice())
}

/// The [`digest`] of bytes that come in parts.
///
/// ```
/// let mut hasher = prune_checkpoint::Hasher::default();
/// hasher.update(b"a");
/// hasher.update(b"bc");
/// assert_eq!(hasher.finish(), prune_checkpoint::digest(b"abc"));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes so far.
    pub fn finish(self) -> String {
        text(self.0.finalize().as_slice())
    }
}

/// The SHA-256 of the bytes of tensor `name` as `source` delivers them, in the form of [`digest`].
///
/// Reads 4 MiB at a time, so memory does not grow with the tensor. Name, dtype and shape are not
/// part of it.
///
/// # Errors
/// Those of [`TensorSource::read_at`].
///
/// ```
/// use prune_checkpoint::{Checkpoint, digest, tensor_digest};
///
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("w.safetensors");
/// let header = br#"{"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}} "#;
/// std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), &header[..], b"abc"].concat())?;
/// assert_eq!(tensor_digest(&Checkpoint::open(&path)?, "w")?, digest(b"abc"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn tensor_digest(source: &dyn TensorSource, name: &str) -> prune_core::Result<String> {
    let size = source.info(name)?.nbytes();
    let mut piece = vec![0; size.min(PIECE)];
    let mut hash = Hasher::default();
    let mut offset = 0;
    while offset < size {
        let part = &mut piece[..PIECE.min(size - offset)];
        source.read_at(name, offset, part)?;
        hash.update(&*part);
        offset += part.len();
    }
    Ok(hash.finish())
}

fn text(hash: &[u8]) -> String {
    hash.iter().fold("sha256:".to_string(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
