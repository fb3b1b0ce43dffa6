//! Lifts ONNX models into the vitc graph IR.
//!
//! [`import_file`] reads a float Vision Transformer as exporters write it (opsets 7 to 25) and yields a [`Module`] of
//! stage `import`: movement and float ops only, the exporter's shape arithmetic evaluated away, the batch as the symbol
//! `N`, every node with the name of the ONNX node it came from. Weights stay in the memory map of the file.
//!
//! A model is hostile until proven otherwise: everything is bounded by [`Limits`], nothing panics, and all problems are
//! reported at once.
#![deny(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

mod batch;
mod call;
mod computed;
mod external;
mod import;
mod inspect;
mod known;
mod limits;
mod ops;
mod problem;
mod proto;
mod ranks;
mod scan;
mod source;
mod tensor;

use std::path::Path;

use bytes::Bytes;
use prost::Message;

use vitc_ir::{Diagnostic, Diagnostics, Module};

pub use inspect::{Inspection, Port, inspect_file};
pub use limits::Limits;

/// What to do with a model whose batch is fixed to 1 in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BatchMode {
    /// The symbol N where the graph allows it, else as the file says.
    #[default]
    Auto,
    /// As the file says: a fixed batch stays fixed.
    AsIs,
    /// The symbol N, or an error.
    Symbolic,
}

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Bounds on what the model may ask for.
    pub limits: Limits,
    /// What becomes of a fixed batch of 1.
    pub batch: BatchMode,
    /// Read files into memory instead of mapping them. Slower, but a file that another program truncates meanwhile cannot
    /// end the process.
    pub read_into_memory: bool,
}

/// Why a model was not imported. Each variant holds every problem found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(Diagnostics),
    /// The model is damaged, contradicts itself, or passes a limit.
    #[error("{0}")]
    Invalid(Diagnostics),
    /// The model is fine, but vitc lacks something it needs.
    #[error("{0}")]
    Unsupported(Diagnostics),
}

impl ImportError {
    /// Every problem found.
    pub fn diagnostics(&self) -> &Diagnostics {
        let (ImportError::Io(d) | ImportError::Invalid(d) | ImportError::Unsupported(d)) = self;
        d
    }

    /// Every problem found, owned.
    pub fn into_diagnostics(self) -> Diagnostics {
        let (ImportError::Io(d) | ImportError::Invalid(d) | ImportError::Unsupported(d)) = self;
        d
    }

    /// Exit status of a command that ends with this error: 2 for an unsupported model, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, ImportError::Unsupported(_)) { 2 } else { 1 }
    }
}

/// Every ONNX op that import reads, in alphabetical order.
pub fn supported_ops() -> Vec<&'static str> {
    ops::supported()
}

/// Every op of `com.microsoft` that import reads, in alphabetical order.
pub fn supported_contrib_ops() -> Vec<&'static str> {
    ops::supported_contrib()
}

/// Imports a model file; external data is looked for beside it.
pub fn import_file(path: impl AsRef<Path>, options: &Options) -> Result<Module, ImportError> {
    let path = path.as_ref();
    let model = load(path, options)?;
    import_model(&model, path.parent(), options)
}

/// Imports a model from bytes; external data is looked for in `base_dir`, and refused without one.
pub fn import_bytes(bytes: Bytes, base_dir: Option<&Path>, options: &Options) -> Result<Module, ImportError> {
    let model = decode(bytes, &options.limits)?;
    import_model(&model, base_dir, options)
}

fn load(path: &Path, options: &Options) -> Result<proto::Model, ImportError> {
    let place = path.display().to_string();
    let io = |message: String| ImportError::Io(Diagnostic::new("io", message).at(&place).into());
    let file = source::open(path).map_err(io)?;
    let bytes = source::content(file, options.limits.file_bytes, options.read_into_memory)
        .map_err(|e| io(format!("cannot read the model: {e}")))?;
    decode(bytes, &options.limits)
}

fn decode(bytes: Bytes, limits: &Limits) -> Result<proto::Model, ImportError> {
    let invalid = |message: String| ImportError::Invalid(Diagnostic::new("invalid-model", message).into());
    if bytes.is_empty() {
        return Err(invalid("the file is empty".into()));
    }
    if bytes.len() as u64 > limits.file_bytes {
        return Err(invalid(format!(
            "the model has {} bytes, more than the limit of {}",
            bytes.len(),
            limits.file_bytes
        )));
    }
    scan::check(&bytes, limits).map_err(invalid)?;
    proto::Model::decode(bytes).map_err(|e| invalid(format!("not a readable ONNX file: {e}")))
}

fn import_model(model: &proto::Model, base: Option<&Path>, options: &Options) -> Result<Module, ImportError> {
    let attempt = |rebatch: bool| {
        import::import(model, base, options, rebatch).map_err(|problems| match problems.invalid {
            true => ImportError::Invalid(problems.list),
            false => ImportError::Unsupported(problems.list),
        })
    };
    if options.batch == BatchMode::AsIs || !import::has_one_image(model) {
        return attempt(false);
    }
    match attempt(true) {
        Err(_) if options.batch == BatchMode::Auto => attempt(false),
        result => result,
    }
}
