//! What can be wrong with one node or one tensor, before it is known where.

use vitc_ir::Diagnostic;

/// Whether vitc lacks something or the model is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unsupported,
    Invalid,
}

/// One problem, still without its place.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub kind: Kind,
    pub code: &'static str,
    pub message: String,
    pub help: Option<String>,
}

/// What a step of import returns.
pub(crate) type Fallible<T> = Result<T, Problem>;

impl Problem {
    pub(crate) fn help(mut self, help: impl Into<String>) -> Problem {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn code(mut self, code: &'static str) -> Problem {
        self.code = code;
        self
    }

    /// The diagnostic, with the place and a description of where (`Conv (opset 17) of [..]`) in front.
    pub(crate) fn diagnostic(self, place: &str, what: &str) -> Diagnostic {
        let message = if what.is_empty() { self.message } else { format!("{what}: {}", self.message) };
        let diagnostic = Diagnostic::new(self.code, message).at(place);
        match self.help {
            Some(help) => diagnostic.help(help),
            None => diagnostic,
        }
    }
}

/// vitc cannot do this.
pub(crate) fn unsupported(message: impl Into<String>) -> Problem {
    Problem { kind: Kind::Unsupported, code: "unsupported", message: message.into(), help: None }
}

/// The model contradicts itself or the ONNX specification.
pub(crate) fn invalid(message: impl Into<String>) -> Problem {
    Problem { kind: Kind::Invalid, code: "invalid-model", message: message.into(), help: None }
}
