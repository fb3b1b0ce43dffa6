//! The reference evaluator: what every op means, in plain code.

use crate::diag::Diagnostic;
use crate::graph::{Module, ValueId};

/// Elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Data {
    F32(Vec<f32>),
    Bool(Vec<u8>),
    U8(Vec<u8>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
}

/// A concrete tensor: sizes (the batch is a number here) and row-major elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Data,
}

/// Evaluates the module: one tensor for each input in, one for each output out. The batch is read off the inputs.
pub fn run(module: &Module, inputs: &[Tensor]) -> Result<Vec<Tensor>, Diagnostic> {
    trace(module, inputs, &mut |_, _| {})
}

/// [`run`] that shows every input and every node's result to `observe` as soon as it is known; values are dropped after
/// their last use.
pub fn trace(
    _module: &Module,
    _inputs: &[Tensor],
    _observe: &mut dyn FnMut(ValueId, &Tensor),
) -> Result<Vec<Tensor>, Diagnostic> {
    Err(Diagnostic::new("not-built", "the evaluator is being written"))
}
