//! The artifact: one file with the plan as text and its constants as aligned bytes, under one content hash.
//!
//! Layout (integers little-endian): magic `VITCART\0`; version u32; zero u32; text length u64; blob length u64; BLAKE3 of everything
//! after the header (32 bytes); the plan's text; zeros up to the next multiple of 64; the blob. It holds no machine code: the
//! kernels are emitted when it is loaded, so a file can never bring instructions with it, and one file serves every machine.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use vitc_ir::{Module, Stage, text, verify};

use crate::error::Failure;
use crate::io::atomic::write_atomically;

const MAGIC: &[u8; 8] = b"VITCART\0";
/// Version of the format. A reader accepts its own version only.
pub const VERSION: u32 = 3;
const HEADER: usize = 64;
const ALIGN: usize = 64;

/// Writes a module of stage `plan`, all or nothing.
pub fn save(module: &Module, path: &Path) -> Result<()> {
    let bytes = to_bytes(module)?;
    write_atomically(path, |w| Ok(w.write_all(&bytes)?))
}

/// The artifact's bytes; equal modules give equal bytes.
pub fn to_bytes(module: &Module) -> Result<Vec<u8>> {
    if module.stage != Stage::Plan {
        bail!("an artifact holds a plan; this module is at stage {}", module.stage.word());
    }
    let printed = text::print(module);
    let blob_at = (HEADER + printed.text.len()).next_multiple_of(ALIGN);
    let mut bytes = Vec::with_capacity(blob_at + printed.blob.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(printed.text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&(printed.blob.len() as u64).to_le_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend_from_slice(printed.text.as_bytes());
    bytes.resize(blob_at, 0);
    bytes.extend_from_slice(&printed.blob);
    let hash = blake3::hash(&bytes[HEADER..]);
    bytes[32..HEADER].copy_from_slice(hash.as_bytes());
    Ok(bytes)
}

/// Whether these are the first bytes of an artifact.
pub fn is_artifact(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Opens an artifact by memory map, checks its hash and verifies the plan.
pub fn open(path: &Path) -> Result<Module> {
    let map = vitc_runtime::MappedRegion::open_file(path)?;
    from_bytes(Bytes::from_owner(map)).with_context(|| format!("cannot load {}", path.display()))
}

/// The content hash of an artifact, in hexadecimal, as its header has it.
pub fn content_hash(bytes: &[u8]) -> Option<String> {
    let hash: [u8; 32] = bytes.get(32..HEADER)?.try_into().ok()?;
    is_artifact(bytes).then(|| blake3::Hash::from_bytes(hash).to_hex().to_string())
}

/// Reads an artifact; constants are views into `bytes`.
pub fn from_bytes(bytes: Bytes) -> Result<Module> {
    let sections = sections(&bytes)?;
    let hash = blake3::hash(&bytes[HEADER..]);
    if hash.as_bytes()[..] != bytes[32..HEADER] {
        bail!("its content does not match its hash: the file is damaged; compile the model again");
    }
    let plan = std::str::from_utf8(&bytes[sections.text]).context("its plan is not text")?;
    let module =
        text::parse(plan, bytes.slice(sections.blob)).map_err(|d| Failure::invalid("its plan does not parse", d))?;
    if module.stage != Stage::Plan {
        bail!("it holds a module of stage {}, not a plan", module.stage.word());
    }
    verify::verify(&module).map_err(|d| Failure::invalid("its plan is not well-formed", d))?;
    Ok(module)
}

struct Sections {
    text: std::ops::Range<usize>,
    blob: std::ops::Range<usize>,
}

fn sections(bytes: &[u8]) -> Result<Sections> {
    if bytes.len() < HEADER || !is_artifact(bytes) {
        bail!("it is not a vitc artifact; make one with `vitc compile MODEL.onnx --calibrate DIR -o FILE.vitc`");
    }
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let version = word(8);
    if version != u64::from(VERSION) {
        bail!("it has format version {}, this vitc reads {VERSION}; compile the model again", version as u32);
    }
    let truncated = || anyhow::anyhow!("it is truncated or has a damaged header; compile the model again");
    let end_of =
        |start: usize, len: u64| usize::try_from(len).ok().and_then(|l| start.checked_add(l)).ok_or_else(truncated);
    let text_end = end_of(HEADER, word(16))?;
    let blob_at = text_end.checked_next_multiple_of(ALIGN).ok_or_else(truncated)?;
    let end = end_of(blob_at, word(24))?;
    // the header is not hashed: what lies behind a text cut short is not zero
    let padded = bytes.get(text_end..blob_at).is_some_and(|gap| gap.iter().all(|&b| b == 0));
    if end != bytes.len() || !padded {
        return Err(truncated());
    }
    Ok(Sections { text: HEADER..text_end, blob: blob_at..end })
}

/// Bytes shared by reference, for constants of a program.
pub(crate) struct Shared(pub Bytes);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Bytes as the runtime wants its constants.
#[allow(dead_code)] // used where codegen takes an owner of constants
pub(crate) fn owner(bytes: Bytes) -> Arc<dyn AsRef<[u8]> + Send + Sync> {
    Arc::new(Shared(bytes))
}
