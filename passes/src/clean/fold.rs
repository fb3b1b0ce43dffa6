//! Constant folding: a node whose operands are all constants becomes a constant, computed by the reference evaluator.

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Const, Op, Shape, ValueId};

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

/// An op of constants that are repeated over the batch is a constant repeated over it: positions that an exporter computes for every
/// image. The op is evaluated for one.
pub(crate) fn fold_repeated(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (op, operands) = (d.node(n).op.clone(), d.node(n).operands.clone());
    let shape = d.shape(d.node(n).result).clone();
    if matches!(op, Op::Expand { .. }) || !operands.iter().any(|&v| is_repeated(d, v)) {
        return None;
    }
    // the constant is repeated along a dimension that is the batch and nothing else
    let has_batch = shape.0.iter().any(|dim| dim.batch);
    if !has_batch || shape.0.iter().any(|dim| dim.batch && dim.size != 1) {
        return None;
    }
    let parts = operands.iter().map(|&v| of_one_image(d, v)).collect::<Option<Vec<_>>>()?;
    let op = match op {
        Op::Reshape { .. } => Op::Reshape { shape: one_image(&shape) },
        other => other,
    };
    let loc = d.loc(n);
    let one = d.push(op, &parts, loc.clone())?;
    let one = evaluate(d, d.def(one)?)?;
    d.push(Op::Expand { shape }, &[one], loc)
}

fn one_image(shape: &Shape) -> Shape {
    Shape::fixed(&shape.at(1))
}

fn is_repeated(d: &Draft, v: ValueId) -> bool {
    matches!(d.op_of(v), Some((Op::Expand { shape }, &[x])) if d.is_const(x) && shape.0.iter().any(|dim| dim.batch))
}

/// What a constant, or one that is repeated over the batch, is for one image.
fn of_one_image(d: &mut Draft, v: ValueId) -> Option<ValueId> {
    if d.is_const(v) {
        return Some(v);
    }
    if !is_repeated(d, v) {
        return None;
    }
    let (Op::Expand { shape }, &[x]) = d.op_of(v)? else { return None };
    let shape = one_image(shape);
    let whole = d.push(Op::Expand { shape }, &[x], None)?;
    evaluate(d, d.def(whole)?)
}
