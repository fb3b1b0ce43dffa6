//! Slices move up: columns into constant weights (one product for q, k and v becomes three), rows through everything
//! that works row by row (only the class token's row is computed after the last attention).

use vitc_ir::{Dim, Op, ValueId};

use super::draft::Draft;
use super::given::is_weights;
use crate::shape::movement::slice_before;

/// Whether nothing but slices along this axis, which together take no more than all of it, use the value.
pub(crate) fn only_sliced(d: &Draft, v: ValueId, axis: usize) -> bool {
    let length = |&n: &usize| match d.node(n).op {
        Op::Slice { axis: a, len, .. } if a == axis => Some(len),
        _ => None,
    };
    let total: Option<usize> = d.users(v).iter().map(length).sum();
    !d.is_output(v) && total.zip(d.shape(v).0[axis].as_fixed()).is_some_and(|(total, size)| total <= size)
}

/// A slice of columns of a product with constant weights, possibly after movement, becomes a slice of the weights.
pub(crate) fn split_product(d: &mut Draft, n: usize) -> Option<ValueId> {
    let slice = d.node(n).op.clone();
    let Op::Slice { axis, .. } = slice else { return None };
    let v = d.node(n).operands[0];
    if !only_sliced(d, v, axis) {
        return None;
    }
    hoist(d, v, slice, n)
}

/// The slice of `v`, taken from the constant weights above it. Values on the way have no other use.
fn hoist(d: &mut Draft, v: ValueId, slice: Op, at: usize) -> Option<ValueId> {
    let producer = d.def(v)?;
    let (op, operands) = (d.node(producer).op.clone(), d.node(producer).operands.clone());
    let Op::Slice { axis, .. } = slice else { return None };
    match op {
        Op::MatMul {} if is_weights(d, operands[1]) && axis + 1 == d.shape(v).rank() => {
            let mut sliced = vec![operands[0]];
            for &weights in &operands[1..] {
                let (_, part) = slice_operand(d, weights, d.shape(v).rank(), &slice, at)?;
                sliced.push(part);
            }
            let loc = d.join_locs([producer, at]);
            d.push(op, &sliced, loc)
        }
        Op::Reshape { .. } | Op::Transpose { .. } => {
            if !d.used_once(operands[0]) {
                return None;
            }
            let (inner, movement) = slice_before(&op, d.shape(operands[0]), &slice)?;
            let x = hoist(d, operands[0], inner, at)?;
            d.push(movement, &[x], d.loc(producer))
        }
        _ => None,
    }
}

/// The slice of an operand that broadcasts to a result of `rank`: the operand itself where it has one element or none
/// along the axis. Says whether there was something to slice.
fn slice_operand(d: &mut Draft, v: ValueId, rank: usize, slice: &Op, at: usize) -> Option<(bool, ValueId)> {
    let Op::Slice { axis, start, len, step } = *slice else { return None };
    let own = (axis + d.shape(v).rank()).checked_sub(rank);
    match own.filter(|&a| d.shape(v).0[a] != Dim::fixed(1)) {
        None => Some((false, v)),
        Some(axis) => Some((true, d.push(Op::Slice { axis, start, len, step }, &[v], d.loc(at))?)),
    }
}

/// `slice(f(x))` to `f(slice(x))` for a value without other use and an `f` that works row by row along the axis.
pub(crate) fn sink_slice(d: &mut Draft, n: usize) -> Option<ValueId> {
    let slice = d.node(n).op.clone();
    let Op::Slice { axis, .. } = slice else { return None };
    let v = d.node(n).operands[0];
    if !d.used_once(v) {
        return None;
    }
    let producer = d.def(v)?;
    let (op, operands) = (d.node(producer).op.clone(), d.node(producer).operands.clone());
    let rank = d.shape(v).rank();
    let loc = d.loc(producer);
    let last = axis + 1 == rank;
    match op {
        Op::Reshape { .. } | Op::Transpose { .. } => {
            let (inner, movement) = slice_before(&op, d.shape(operands[0]), &slice)?;
            let x = d.push(inner, &operands, d.loc(n))?;
            d.push(movement, &[x], loc)
        }
        Op::Expand { shape } => {
            let (_, x) = slice_operand(d, operands[0], rank, &slice, n)?;
            let Op::Slice { len, .. } = slice else { return None };
            let mut shape = shape.clone();
            shape.0[axis] = Dim::fixed(len);
            d.push(Op::Expand { shape }, &[x], loc)
        }
        Op::LayerNorm { .. } | Op::Softmax {} if !last => {
            let x = d.push(slice, &operands[..1], d.loc(n))?;
            let operands: Vec<_> = [x].into_iter().chain(operands[1..].iter().copied()).collect();
            d.push(op, &operands, loc)
        }
        Op::MatMul {} => {
            let operands = slice_product(d, &operands, rank, &slice, n)?;
            d.push(op, &operands, loc)
        }
        _ if is_elementwise(&op) => {
            let sliced = |v| slice_operand(d, v, rank, &slice, n).map(|(_, v)| v);
            let operands: Vec<_> = operands.into_iter().map(sliced).collect::<Option<_>>()?;
            d.push(op, &operands, loc)
        }
        _ => None,
    }
}

fn slice_product(d: &mut Draft, operands: &[ValueId], rank: usize, slice: &Op, n: usize) -> Option<Vec<ValueId>> {
    let Op::Slice { axis, .. } = *slice else { return None };
    let mut sliced = operands.to_vec();
    if axis + 1 != rank {
        sliced[0] = slice_operand(d, operands[0], rank, slice, n)?.1;
    }
    if axis + 2 != rank {
        sliced[1] = slice_operand(d, operands[1], rank, slice, n)?.1;
    }
    if let (Some(&bias), true) = (operands.get(2), axis + 1 == rank) {
        let shape = d.shape(bias).clone();
        if shape.rank() != 1 {
            return None;
        }
        sliced[2] = slice_operand(d, bias, rank, slice, n)?.1;
    }
    Some(sliced)
}

/// Whether an op works element by element, broadcasting.
pub(crate) fn is_elementwise(op: &Op) -> bool {
    super::identity::is_broadcasting(op)
        || matches!(
            op,
            Op::Neg {}
                | Op::Abs {}
                | Op::Sqrt {}
                | Op::Reciprocal {}
                | Op::Exp {}
                | Op::Log {}
                | Op::Cos {}
                | Op::Sin {}
                | Op::Erf {}
                | Op::Tanh {}
                | Op::Sigmoid {}
                | Op::Relu {}
                | Op::Clip { .. }
                | Op::Gelu { .. }
                | Op::Silu {}
                | Op::HardSwish {}
                | Op::HardSigmoid { .. }
        )
}
