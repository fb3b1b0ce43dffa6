//! External data: tensors whose bytes lie in files beside the model.
//!
//! The location is text from the model, so it is treated as hostile: it is resolved component by component beneath the
//! model's directory, no link is followed at any component, and only regular files are read.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::import::shorten;
use crate::limits::Limits;
use crate::problem::{Fallible, invalid};
use crate::proto;
use crate::source;

/// The external data files of one model.
pub(crate) struct External {
    base: Option<PathBuf>,
    files: HashMap<String, Result<Bytes, String>>,
    remaining: u64,
    read_into_memory: bool,
}

impl External {
    pub(crate) fn new(base: Option<&Path>, limits: &Limits, read_into_memory: bool) -> External {
        let base = base.map(Path::to_path_buf);
        External { base, files: HashMap::new(), remaining: limits.external_bytes, read_into_memory }
    }

    /// The bytes of a tensor of `len` bytes.
    pub(crate) fn bytes(&mut self, tensor: &proto::Tensor, len: usize) -> Fallible<Bytes> {
        let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let refused = |why: String| invalid(format!("external data: {why}")).code("external-data");
        let location = entry("location").ok_or_else(|| refused("there is no location".into()))?;
        let offset = number(entry("offset"), "offset").map_err(refused)?.unwrap_or(0);
        let stated = number(entry("length"), "length").map_err(refused)?;
        if stated.is_some_and(|l| l != len as u64) {
            let why = format!("the length is {} bytes, the tensor has {len}", stated.unwrap_or(0));
            return Err(refused(why));
        }
        let file = self.file(location).map_err(|e| {
            refused(format!("{:?}: {e}", shorten(location))).help("keep external data as plain files beside the model")
        })?;
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some((start, start.checked_add(len)?)));
        match range {
            Some((start, end)) if end <= file.len() => Ok(file.slice(start..end)),
            _ => Err(refused(format!(
                "{len} bytes from offset {offset} of {:?} leave its {} bytes",
                shorten(location),
                file.len()
            ))),
        }
    }

    fn file(&mut self, location: &str) -> Result<Bytes, String> {
        if let Some(known) = self.files.get(location) {
            return known.clone();
        }
        let opened = self.open(location);
        if let Ok(bytes) = &opened {
            self.remaining = self.remaining.saturating_sub(bytes.len() as u64);
        }
        self.files.insert(location.to_string(), opened.clone());
        opened
    }

    fn open(&self, location: &str) -> Result<Bytes, String> {
        let components = components(location)?;
        let base = self.base.as_deref().ok_or("the model has no directory, so nothing lies beside it")?;
        let file = open_beneath(base, &components)?;
        if !file.metadata().map_err(|e| e.to_string())?.is_file() {
            return Err("this is not a regular file".into());
        }
        source::content(file, self.remaining, self.read_into_memory)
    }
}

/// An unsigned decimal number, when given.
fn number(text: Option<&str>, what: &str) -> Result<Option<u64>, String> {
    let Some(text) = text else { return Ok(None) };
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let value = digits.then(|| text.parse().ok()).flatten();
    value.map(Some).ok_or_else(|| format!("the {what} {:?} is not an unsigned number", shorten(text)))
}

/// The components of a relative location, or why it is refused. The same rules on every system, so that a model is either
/// fine everywhere or nowhere.
fn components(location: &str) -> Result<Vec<&str>, String> {
    let refuse = |why: &str| Err(why.to_string());
    if location.is_empty() {
        return refuse("the location is empty");
    }
    if location.len() > 4096 {
        return refuse("the location is too long");
    }
    if location.contains('\0') {
        return refuse("the location contains NUL");
    }
    if location.starts_with('/') {
        return refuse("absolute locations are refused");
    }
    if location.contains('\\') {
        return refuse("locations with a backslash (drive and network paths) are refused");
    }
    if location.contains(':') {
        return refuse("locations with a colon (drives, streams, URLs) are refused");
    }
    let mut parts = Vec::new();
    for part in location.split('/') {
        match part {
            "" => return refuse("empty path components are refused"),
            "." => {}
            ".." => return refuse("`..` is refused"),
            _ => parts.push(part),
        }
    }
    if parts.is_empty() { refuse("the location names no file") } else { Ok(parts) }
}

/// Opens a file beneath `base` without following a link at any component.
#[cfg(unix)]
fn open_beneath(base: &Path, components: &[&str]) -> Result<File, String> {
    use rustix::fs::{Mode, OFlags, open, openat};
    let text = |e: rustix::io::Errno| match e {
        rustix::io::Errno::LOOP => "links are not followed".to_string(),
        e => e.to_string(),
    };
    let base = if base.as_os_str().is_empty() { Path::new(".") } else { base };
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = open(base, directory, Mode::empty()).map_err(text)?;
    let (name, parents) = components.split_last().ok_or("the location names no file")?;
    for parent in parents {
        at = openat(&at, *parent, directory | OFlags::NOFOLLOW, Mode::empty()).map_err(text)?;
    }
    // Without NONBLOCK, opening a FIFO would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(&at, *name, flags, Mode::empty()).map(File::from).map_err(text)
}

/// Opens a file beneath `base`, refusing links at every component (checked before opening on these systems).
#[cfg(not(unix))]
fn open_beneath(base: &Path, components: &[&str]) -> Result<File, String> {
    let mut path = base.to_path_buf();
    for part in components {
        path.push(part);
        let metadata = std::fs::symlink_metadata(&path).map_err(|e| e.to_string())?;
        if metadata.file_type().is_symlink() {
            return Err("links are not followed".into());
        }
    }
    File::open(&path).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_locations_have_components() {
        assert_eq!(components("weights.bin"), Ok(vec!["weights.bin"]));
        assert_eq!(components("./data/weights.bin"), Ok(vec!["data", "weights.bin"]));
        for hostile in
            ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "C:\\x", "C:x", "\\\\host\\x", "a\0b"]
        {
            assert!(components(hostile).is_err(), "{hostile:?}");
        }
    }

    #[test]
    fn numbers_are_unsigned_decimals() {
        assert_eq!(number(Some("12"), "offset"), Ok(Some(12)));
        assert_eq!(number(None, "offset"), Ok(None));
        for bad in ["", "-1", "+1", " 1", "1e3", "0x10", "18446744073709551616"] {
            assert!(number(Some(bad), "offset").is_err(), "{bad:?}");
        }
    }
}
