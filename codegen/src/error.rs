//! Why a plan could not be compiled.

use vitc_runtime::RuntimeError;

/// An error of code generation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodegenError {
    /// The module is not in stage `plan`.
    #[error("code is generated from stage plan, the module is in stage {stage}")]
    Stage {
        /// The module's stage.
        stage: &'static str,
    },
    /// A node cannot be compiled.
    #[error("{op} ({node}): {reason}")]
    Node {
        /// Name of the op.
        op: &'static str,
        /// Name of the ONNX node it came from, or its index.
        node: String,
        /// What is missing.
        reason: String,
    },
    /// Nodes cannot be compiled, each with its reason.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Nodes(Vec<CodegenError>),
    /// A graph input or output cannot be bound.
    #[error("tensor '{tensor}': {reason}")]
    Tensor {
        /// Name of the input or output.
        tensor: String,
        /// What is missing.
        reason: String,
    },
    /// This machine cannot run the tier that was asked for.
    #[error("the tier {tier} is not available here: {why}; available: {available}")]
    Tier {
        /// The word for the tier.
        tier: &'static str,
        /// What the machine lacks.
        why: String,
        /// The tiers it can run, the fastest first.
        available: String,
    },
    /// This machine is not supported.
    #[error("no code for this machine: {0}")]
    Target(String),
    /// Cranelift refused a kernel; always a bug of vitc.
    #[error("kernel {kernel}: {reason}")]
    Backend {
        /// Name of the kernel.
        kernel: String,
        /// Cranelift's reason.
        reason: String,
    },
    /// The runtime refused the memory or the program.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}
