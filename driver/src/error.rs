//! Errors of the driver that a program may want to tell apart; everything else is an `anyhow::Error` with context.

use vitc_ir::Diagnostics;

/// A failure with the exit status that the command gives it.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The model uses something that vitc does not support; every such place is listed.
    #[error("the model cannot be compiled:\n{0}")]
    Unsupported(Diagnostics),
    /// Input that is not what it should be.
    #[error("{what}:\n{problems}")]
    Invalid {
        /// What was being read or checked.
        what: String,
        /// Everything wrong with it.
        problems: Diagnostics,
    },
}

impl Failure {
    /// Exit status: 2 for an unsupported model, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Unsupported(_) => 2,
            Failure::Invalid { .. } => 1,
        }
    }

    /// An [`Failure::Invalid`] of that.
    pub fn invalid(what: impl Into<String>, problems: Diagnostics) -> Failure {
        Failure::Invalid { what: what.into(), problems }
    }
}
