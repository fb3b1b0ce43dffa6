//! Attention without softmax (EfficientViT, MIT's) from the two spellings that its exporters write, and from the quadratic one:
//!
//! ```text
//! rows     o = q (k^T [v 1]);        o[.., :E] / (o[.., E:] + epsilon)            timm: tokens are rows
//! columns  o = ([v; 1] k^T) q;       o[:E] / (o[E:] + epsilon)                    tokens are columns
//! map      a = k^T q;                v (a / (sum of a's columns + epsilon))      few tokens, tokens are columns
//! ```
//!
//! The column or row of ones is a `pad` by one element of value 1. The transpose of the keys may have gone up into what made them.

use vitc_ir::{Op, Real, ValueId};

use super::draft::Draft;

/// Where tokens run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tokens {
    Rows,
    Columns,
}

/// q, k and v as they were found, the keys with their last two dimensions exchanged.
struct Found {
    q: ValueId,
    keys: ValueId,
    v: ValueId,
    epsilon: f64,
    tokens: Tokens,
}

/// A quotient that normalises linear attention to `linear_attention`.
pub(crate) fn recover_linear_attention(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    let (op, operands) = (node.op.clone(), node.operands.clone());
    let found = match op {
        Op::Div {} => with_ones(d, operands[0], operands[1])?,
        Op::MatMul {} if operands.len() == 2 => by_map(d, operands[0], operands[1])?,
        _ => return None,
    };
    if !is_never_negative(d, found.q) || !is_never_negative(d, found.keys) {
        return None;
    }
    let loc = d.loc(n);
    let columns = found.tokens == Tokens::Columns;
    let k = match unswapped(d, found.keys) {
        Some(k) => k,
        None => swapped(d, found.keys, loc.clone())?,
    };
    let mut rows = [found.q, k, found.v];
    if columns {
        for v in &mut rows {
            *v = swapped(d, *v, loc.clone())?;
        }
    }
    let y = d.push(Op::LinearAttention { epsilon: Real(found.epsilon) }, &rows, loc.clone())?;
    if columns { swapped(d, y, loc) } else { Some(y) }
}

/// The last two dimensions exchanged.
fn swapped(d: &mut Draft, v: ValueId, loc: Option<std::sync::Arc<str>>) -> Option<ValueId> {
    let mut perm: Vec<usize> = (0..d.shape(v).rank()).collect();
    let last = perm.len().checked_sub(1)?;
    perm.swap(last.checked_sub(1)?, last);
    d.push(Op::Transpose { perm }, &[v], loc)
}

/// The operand of a transpose of the last two dimensions.
fn unswapped(d: &Draft, v: ValueId) -> Option<ValueId> {
    let (Op::Transpose { perm }, &[x]) = d.op_of(v)? else { return None };
    let (&[a, b], outer) = perm.split_last_chunk().map(|(outer, last)| (last, outer))?;
    let swap = outer.iter().copied().eq(0..outer.len()) && [a, b] == [outer.len() + 1, outer.len()];
    swap.then_some(x)
}

/// `sum + epsilon`, where there is one.
fn and_epsilon(d: &Draft, v: ValueId) -> Option<(ValueId, f64)> {
    match d.op_of(v)? {
        (Op::Add {}, &[x, epsilon]) => Some((x, d.scalar(epsilon).filter(|e| *e >= 0.0)?)),
        _ => Some((v, 0.0)),
    }
}

/// The operand of a slice along `axis` from `start` for `len`.
fn sliced(d: &Draft, v: ValueId, axis: usize, start: usize, len: usize) -> Option<ValueId> {
    match d.op_of(v)? {
        (&Op::Slice { axis: a, start: s, len: l, step: 1 }, &[x]) if (a, s, l) == (axis, start, len) => Some(x),
        _ => None,
    }
}

/// The operand of a pad by one element of value one behind `axis`.
fn without_ones(d: &Draft, v: ValueId, axis: usize) -> Option<ValueId> {
    let (Op::Pad { before, after, value: Real(1.0) }, &[x]) = d.op_of(v)? else { return None };
    let only = after.iter().enumerate().all(|(i, &p)| p == usize::from(i == axis));
    (only && before.iter().all(|&p| p == 0)).then_some(x)
}

fn with_ones(d: &Draft, top: ValueId, bottom: ValueId) -> Option<Found> {
    let last = d.shape(top).rank().checked_sub(1)?;
    let above = last.checked_sub(1)?;
    let (divisor, epsilon) = and_epsilon(d, bottom)?;
    let split = |axis: usize| {
        let size = d.shape(top).0[axis].as_fixed()?;
        let o = sliced(d, top, axis, 0, size)?;
        (sliced(d, divisor, axis, size, 1) == Some(o)).then_some(o)
    };
    let product = |v: ValueId| match d.op_of(v)? {
        (Op::MatMul {}, &[a, b]) => Some((a, b)),
        _ => None,
    };
    if let Some(o) = split(last) {
        let (q, sums) = product(o)?;
        let (keys, v) = product(sums)?;
        return Some(Found { q, keys, v: without_ones(d, v, last)?, epsilon, tokens: Tokens::Rows });
    }
    let (sums, q) = product(split(above)?)?;
    let (v, keys) = product(sums)?;
    Some(Found { q, keys, v: without_ones(d, v, above)?, epsilon, tokens: Tokens::Columns })
}

/// `v (a / (sum of a's columns + epsilon))` with `a = k^T q`.
fn by_map(d: &Draft, v: ValueId, map: ValueId) -> Option<Found> {
    let (Op::Div {}, &[a, bottom]) = d.op_of(map)? else { return None };
    let (divisor, epsilon) = and_epsilon(d, bottom)?;
    let (Op::ReduceSum { axes, keep: true }, &[summed]) = d.op_of(divisor)? else { return None };
    let (Op::MatMul {}, &[keys, q]) = d.op_of(a)? else { return None };
    if summed != a || axes[..] != [d.shape(a).rank() - 2] {
        return None;
    }
    Some(Found { q, keys, v, epsilon, tokens: Tokens::Columns })
}

/// Whether a value is a ReLU, or some of one.
fn is_never_negative(d: &Draft, v: ValueId) -> bool {
    match d.op_of(v) {
        Some((Op::Relu {} | Op::Sigmoid {} | Op::Exp {}, _)) => true,
        Some((Op::Clip { lo, .. }, _)) => lo.0 >= 0.0,
        Some((Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. }, &[x])) => is_never_negative(d, x),
        _ => false,
    }
}
