//! What `fused.attention` stands for: the chain of ops it replaces. Its type rule and its evaluation are this chain over types
//! and over tensors, so that neither can say anything else than the parts do.

use crate::op::Op;
use crate::types::Elem;

/// Applies the parts of a `fused.attention` one after another to its operands `q`, `k`, `v`, `table` and the biases of the scores.
///
/// # Panics
/// When `op` is another op, or there are fewer operands.
pub fn unfold<V, E>(op: &Op, operands: &[V], mut apply: impl FnMut(Op, &[&V]) -> Result<V, E>) -> Result<V, E> {
    let Op::FusedAttention {
        q_zero,
        k_zero,
        v_zero,
        limit,
        multiplier,
        exp_shift,
        table_bits,
        numerator,
        shift,
        zero_point,
        ref perm,
        to,
    } = *op
    else {
        unreachable!("asked for only of attention")
    };
    let [q, k, v, table, biases @ ..] = operands else { unreachable!("attention has four operands and more") };
    let columns = perm.len().saturating_sub(1);
    let mut scores = apply(Op::IntMatMul { a_zero: q_zero, b_zero: k_zero }, &[q, k])?;
    for bias in biases {
        scores = apply(Op::IntAdd { to: Elem::I32 }, &[&scores, bias])?;
    }
    let e = apply(Op::IntExp { limit, multiplier, shift: exp_shift, table_bits }, &[&scores, table])?;
    let sum = apply(Op::IntReduceSum { axis: columns, keep: true }, &[&e])?;
    let reciprocal = apply(Op::IntReciprocal { numerator }, &[&sum])?;
    let product = apply(Op::IntMatMul { a_zero: 0, b_zero: v_zero }, &[&e, v])?;
    let y = apply(Op::IntRequantRows { shift, zero_point, to }, &[&product, &reciprocal])?;
    apply(Op::Transpose { perm: perm.clone() }, &[&y])
}
