use std::fs::File;
use std::io;

/// Fills `buf` from byte `offset` of `file`; the position of the file does not matter, so that many
/// threads can share it.
///
/// # Errors
/// What the system gives; `UnexpectedEof` when the file ends before.
///
/// ```
/// let file = tempfile::tempfile()?;
/// prune_checkpoint::write_all_at(&file, b"abc", 4)?;
/// let mut buf = [0; 2];
/// prune_checkpoint::read_exact_at(&file, &mut buf, 5)?;
/// assert_eq!(&buf, b"bc");
/// # Ok::<(), std::io::Error>(())
/// ```
#[cfg(unix)]
pub fn read_exact_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

/// Writes `bytes` at byte `offset` of `file`; the position of the file does not matter, so that many
/// threads can share it. See [`read_exact_at`].
///
/// # Errors
/// What the system gives.
#[cfg(unix)]
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Fills `buf` from byte `offset` of `file`; each call moves the position, none depends on it.
///
/// # Errors
/// What the system gives; `UnexpectedEof` when the file ends before.
#[cfg(windows)]
pub fn read_exact_at(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buf.is_empty() {
        match file.seek_read(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes `bytes` at byte `offset` of `file`; each call moves the position, none depends on it.
///
/// # Errors
/// What the system gives; `UnexpectedEof` when the file ends before.
#[cfg(windows)]
pub fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        match file.seek_write(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
