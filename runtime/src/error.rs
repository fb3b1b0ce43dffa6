//! Every way in which the runtime refuses, with the tensor or step it refuses named.

use std::io;

use crate::tensor::Elem;

/// An error of the runtime. Nothing has been run when one is returned, and the session stays usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The operating system gave no pages.
    #[error("cannot map {len} bytes of memory: {source}")]
    Map {
        /// Bytes asked for.
        len: usize,
        /// The system's reason.
        source: io::Error,
    },
    /// The operating system did not change the protection of a region.
    #[error("cannot change the protection of {len} bytes of memory: {source}")]
    Protect {
        /// Bytes of the region.
        len: usize,
        /// The system's reason.
        source: io::Error,
    },
    /// A file could not be opened or mapped.
    #[error("cannot map file '{path}': {source}")]
    File {
        /// Path as given.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A worker thread could not be started.
    #[error("cannot start a worker thread: {source}")]
    Spawn {
        /// The system's reason.
        source: io::Error,
    },
    /// A session was asked to run on zero threads.
    #[error("a session needs at least one thread")]
    ZeroThreads,

    /// A step of a program is malformed.
    #[error("step {step} ({name}): {fault}")]
    InvalidStep {
        /// Index of the step.
        step: usize,
        /// Kernel name of the step.
        name: String,
        /// What is wrong.
        fault: String,
    },
    /// The declaration of an input or output is malformed.
    #[error("tensor '{tensor}': {fault}")]
    InvalidSpec {
        /// Name of the tensor.
        tensor: String,
        /// What is wrong.
        fault: String,
    },
    /// A program-wide figure is malformed.
    #[error("invalid program: {fault}")]
    InvalidProgram {
        /// What is wrong.
        fault: &'static str,
    },

    /// The number of bytes does not match shape and element type.
    #[error("a {elem} tensor of shape {} takes {expected} bytes, {given} given", shape_text(.dims))]
    BufferLength {
        /// Element type of the tensor.
        elem: Elem,
        /// Shape of the tensor.
        dims: Vec<usize>,
        /// Bytes that shape and element type ask for.
        expected: usize,
        /// Bytes given.
        given: usize,
    },
    /// The shape has more elements than memory has addresses.
    #[error("a {elem} tensor of shape {} is larger than the address space", shape_text(.dims))]
    ShapeOverflow {
        /// Element type of the tensor.
        elem: Elem,
        /// Shape of the tensor.
        dims: Vec<usize>,
    },
    /// A tensor was read as another element type than its own.
    #[error("the tensor holds {given} elements, not {expected}")]
    ElemMismatch {
        /// Element type asked for.
        expected: Elem,
        /// Element type of the tensor.
        given: Elem,
    },

    /// The number of input tensors differs from the program's.
    #[error("the program takes {expected} inputs, {given} given")]
    InputCount {
        /// Inputs of the program.
        expected: usize,
        /// Inputs given.
        given: usize,
    },
    /// The number of output tensors differs from the program's.
    #[error("the program gives {expected} outputs, {given} asked for")]
    OutputCount {
        /// Outputs of the program.
        expected: usize,
        /// Outputs given.
        given: usize,
    },
    /// The element type is neither the declared one nor one that is converted at the door.
    #[error("tensor '{tensor}': expected {expected} elements, given {given}")]
    DtypeMismatch {
        /// Name of the tensor.
        tensor: String,
        /// Declared element type.
        expected: Elem,
        /// Element type given.
        given: Elem,
    },
    /// The shape differs from the declared one; `0` stands for the batch.
    #[error("tensor '{tensor}': expected shape {}, given {}", shape_text(.expected), shape_text(.given))]
    ShapeMismatch {
        /// Name of the tensor.
        tensor: String,
        /// Declared shape, with `0` for the batch.
        expected: Vec<usize>,
        /// Shape given.
        given: Vec<usize>,
    },
    /// The batch differs from that of the other tensors or from the program's fixed batch.
    #[error("tensor '{tensor}': expected batch {expected}, given {given}")]
    BatchMismatch {
        /// Name of the tensor.
        tensor: String,
        /// Batch of the run.
        expected: usize,
        /// Batch of this tensor.
        given: usize,
    },
    /// A batch of zero images.
    #[error("tensor '{tensor}': the batch is empty")]
    EmptyBatch {
        /// Name of the tensor.
        tensor: String,
    },
    /// The batch needs more memory than the session may use, or its sizes do not fit machine words.
    #[error("a batch of {batch} exceeds the memory limit of {limit} bytes")]
    BatchTooLarge {
        /// Batch asked for.
        batch: usize,
        /// Limit of the session.
        limit: usize,
    },
    /// An output without a scale was asked for as `f32`.
    #[error("tensor '{tensor}': the output declares no scale and cannot be given as f32")]
    NoScale {
        /// Name of the tensor.
        tensor: String,
    },
}

/// `[N, 3, 224, 224]`, where a leading zero is the batch.
fn shape_text(dims: &[usize]) -> String {
    let words: Vec<String> = dims.iter().enumerate().map(|(axis, &dim)| dim_text(axis, dim)).collect();
    format!("[{}]", words.join(", "))
}

fn dim_text(axis: usize, dim: usize) -> String {
    if axis == 0 && dim == 0 { "N".to_owned() } else { dim.to_string() }
}
