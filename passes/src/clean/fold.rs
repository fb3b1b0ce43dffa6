//! Constant folding: a node whose operands are all constants becomes a constant, computed by the reference evaluator.

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Const, ValueId};

use super::draft::Draft;
use super::given;

/// Largest result of folding in bytes.
const MAX_BYTES: usize = 256 << 20;
/// Largest growth of a folded result over its operands; small results are exempt.
const MAX_GROWTH: usize = 4;
const SMALL_BYTES: usize = 1 << 20;

/// Evaluates a node on constants, but for integer weights.
pub(crate) fn fold_constants(d: &mut Draft, n: usize) -> Option<ValueId> {
    if given::stays(d, n) { None } else { evaluate(d, n) }
}

/// Evaluates a node on constants.
pub(crate) fn evaluate(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    let operands: Vec<&Const> = node.operands.iter().map(|&v| d.constant_of(v)).collect::<Option<_>>()?;
    let ty = d.ty(node.result).clone();
    let bytes = ty.bytes()?.as_fixed()?;
    let given: usize = operands.iter().map(|c| c.data.len()).sum();
    if bytes > MAX_BYTES || (bytes > SMALL_BYTES && bytes > given.saturating_mul(MAX_GROWTH)) {
        return None;
    }
    let name = operands.iter().max_by_key(|c| c.data.len())?.name.clone();
    let types: Vec<_> = operands.iter().map(|c| &c.ty).collect();
    let tensors: Vec<Tensor> = operands.iter().map(|c| Tensor::from_const(c).ok()).collect::<Option<_>>()?;
    let tensors: Vec<&Tensor> = tensors.iter().collect();
    let result = eval::eval_op(&node.op, &tensors, &ty, &types, &d.module().lanes).ok()?;
    Some(d.constant(result.to_const(name, ty)))
}
