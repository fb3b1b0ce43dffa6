//! Softmax from the quotient that people write: `e = exp(x - max(x)); e / sum(e)`, also without the maximum, which changes nothing,
//! and with a small number added to the sum, which is 1 at least where the maximum was taken off.

use vitc_ir::{Op, ValueId};

use super::draft::Draft;

/// Largest number added to the sum that changes no weight to speak of.
const LARGEST_EPSILON: f64 = 1e-5;

/// `exp(x) / sum(exp(x))` to `softmax(x)`.
pub(crate) fn recover_softmax(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::Div {}, &[e, below]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    let (Op::Exp {}, &[difference]) = d.op_of(e)? else { return None };
    let largest = match d.op_of(difference) {
        Some((Op::Sub {}, &[x, m])) if is_row(d, m, x, |op| matches!(op, Op::ReduceMax { .. })) => Some((x, m)),
        _ => None,
    };
    let sum = match d.op_of(below)? {
        (Op::Add {}, &[sum, epsilon]) if largest.is_some() => {
            d.scalar(epsilon).filter(|e| (0.0..=LARGEST_EPSILON).contains(e))?;
            sum
        }
        _ => below,
    };
    if !is_row(d, sum, e, |op| matches!(op, Op::ReduceSum { .. })) {
        return None;
    }
    let x = largest.map_or(difference, |(x, _)| x);
    let inner = largest.iter().flat_map(|&(_, m)| [m, difference]).chain([e, sum, below]);
    let nodes: Vec<usize> = inner.filter_map(|v| d.def(v)).chain([n]).collect();
    let loc = d.join_locs(nodes);
    d.push(Op::Softmax {}, &[x], loc)
}

/// Whether `v` is a reduction of the rows of `x` that keeps their dimension.
fn is_row(d: &Draft, v: ValueId, x: ValueId, kind: fn(&Op) -> bool) -> bool {
    match d.op_of(v) {
        Some((op @ (Op::ReduceSum { axes, keep: true } | Op::ReduceMax { axes, keep: true }), &[y])) => {
            kind(op) && y == x && axes[..] == [d.shape(x).rank() - 1]
        }
        _ => false,
    }
}
