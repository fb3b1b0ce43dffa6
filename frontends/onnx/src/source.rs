//! Where bytes come from: model files and external data files, mapped or read, never larger than the limits.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;

/// Opens a model file the user named; links are followed, since the user chose the path.
pub(crate) fn open(path: &Path) -> Result<File, String> {
    let file = File::open(path).map_err(|e| format!("cannot open {}: {e}", path.display()))?;
    let metadata = file.metadata().map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    if metadata.is_file() { Ok(file) } else { Err(format!("{} is not a regular file", path.display())) }
}

/// The content of an open regular file: mapped, or read into memory.
pub(crate) fn content(file: File, limit: u64, read_into_memory: bool) -> Result<Bytes, String> {
    let len = file.metadata().map_err(|e| e.to_string())?.len();
    if len > limit {
        return Err(format!("it has {len} bytes, more than the limit of {limit}"));
    }
    if read_into_memory || len == 0 { read(file, limit) } else { map(&file) }
}

fn read(file: File, limit: u64) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    // One byte more than the limit shows that the file has grown since its size was read.
    let got = file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if got as u64 > limit { Err(format!("it has more bytes than the limit of {limit}")) } else { Ok(bytes.into()) }
}

#[allow(unsafe_code)]
fn map(file: &File) -> Result<Bytes, String> {
    // SAFETY: the mapping is private and read-only. What is left is that somebody else changes the file while it is
    // mapped: overwritten bytes would change under shared references, and a truncated file would end the process with
    // SIGBUS on access. No loader that maps can exclude this; `Options::read_into_memory` is there for files that other
    // programs may write to.
    let map = unsafe { memmap2::Mmap::map(file) }.map_err(|e| e.to_string())?;
    Ok(Bytes::from_owner(map))
}
