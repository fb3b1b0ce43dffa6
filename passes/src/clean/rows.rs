//! Products with constant weights work on rows; where an exporter put the tokens before the batch (as
//! `nn.MultiheadAttention` does) the rows are brought back into the order of the batch, so that the movement around
//! attention is that of every other model.

use vitc_ir::{Dim, Op, Shape, ValueId};

use super::draft::Draft;
use super::given::is_weights;
use super::slices::is_elementwise;

/// `reshape(x w)`, where the reshape leaves the columns alone, to `reshape(x) w`.
pub(crate) fn reshape_rows_first(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Reshape { shape } = &d.node(n).op else { return None };
    let shape = shape.clone();
    let v = d.node(n).operands[0];
    let producer = d.def(v)?;
    let (op, operands) = (d.node(producer).op.clone(), d.node(producer).operands.clone());
    if op != (Op::MatMul {}) || !is_weights(d, operands[1]) || d.shape(operands[1]).rank() != 2 || !d.used_once(v) {
        return None;
    }
    // only towards what was above: a reshape of the operand, of which the rows were merged
    let Some((Op::Reshape { .. }, &[x])) = d.op_of(operands[0]) else { return None };
    let columns = *shape.0.last()?;
    if d.shape(v).0.last() != Some(&columns) || shape.rank() <= d.shape(v).rank() || d.shape(x).rank() < shape.rank() {
        return None;
    }
    let mut rows = Shape(shape.0[..shape.rank() - 1].to_vec());
    rows.0.push(*d.shape(operands[0]).0.last()?);
    let loc = d.loc(n);
    let mut moved = vec![d.push(Op::Reshape { shape: rows }, &[operands[0]], loc)?];
    moved.extend(&operands[1..]);
    d.push(op, &moved, d.loc(producer))
}

/// `x w` of an `x` whose rows are not in the order of the batch to `transpose(transpose(x) w)`.
pub(crate) fn batch_first(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    let (op, operands) = (node.op.clone(), node.operands.clone());
    if op != (Op::MatMul {}) || !is_weights(d, operands[1]) || d.shape(operands[1]).rank() != 2 {
        return None;
    }
    // a bias or factor that is still to join the weights goes first
    let joins = |&user: &usize| {
        let user = d.node(user);
        matches!(user.op, Op::Add {} | Op::Mul {}) && user.operands.iter().any(|&v| d.is_const(v))
    };
    if d.users(d.node(n).result).iter().any(joins) {
        return None;
    }
    let x = operands[0];
    let rank = d.shape(x).rank();
    let at = d.shape(x).0.iter().position(|dim| dim.batch).filter(|&at| at > 0 && at + 1 < rank)?;
    let perm: Vec<usize> = [at].into_iter().chain((0..rank).filter(|&i| i != at)).collect();
    let back: Vec<usize> = (0..rank).map(|i| perm.iter().position(|&p| p == i)).collect::<Option<_>>()?;
    let loc = d.loc(n);
    let mut moved = vec![d.push(Op::Transpose { perm }, &[x], loc.clone())?];
    moved.extend(&operands[1..]);
    let product = d.push(op, &moved, loc.clone())?;
    d.push(Op::Transpose { perm: back }, &[product], loc)
}

/// What works element by element, row by row or along other dimensions, on values that do not have the batch first, as the
/// transposition of the same on values that do: so a stream of [tokens, N, channels] becomes one of [N, tokens, channels].
pub(crate) fn batch_first_stream(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (op, operands) = (d.node(n).op.clone(), d.node(n).operands.clone());
    let stream = operands.iter().find(|&&v| d.shape(v).0.iter().any(|dim| dim.batch)).copied()?;
    let rank = d.shape(stream).rank();
    let at = d.shape(stream).0.iter().position(|dim| dim.batch).filter(|&at| at > 0 && at + 1 < rank)?;
    let perm: Vec<usize> = [at].into_iter().chain((0..rank).filter(|&i| i != at)).collect();
    let place = |axis: usize| perm.iter().position(|&p| p == axis);
    // the dimensions of the result, as those of the stream
    let mut left: Vec<usize> = (0..rank).collect();
    let moved = match &op {
        op if is_elementwise(op) => op.clone(),
        Op::LayerNorm { .. } | Op::Softmax {} => op.clone(),
        Op::Concat { axis } if *axis != at => Op::Concat { axis: place(*axis)? },
        Op::ReduceMean { axes, keep } | Op::ReduceSum { axes, keep } | Op::ReduceMax { axes, keep } => {
            left.retain(|i| *keep || !axes.contains(i));
            let mut turned = axes.iter().map(|&a| place(a).filter(|_| a != at)).collect::<Option<Vec<_>>>()?;
            turned.sort_unstable();
            match &op {
                Op::ReduceMean { .. } => Op::ReduceMean { axes: turned, keep: *keep },
                Op::ReduceSum { .. } => Op::ReduceSum { axes: turned, keep: *keep },
                _ => Op::ReduceMax { axes: turned, keep: *keep },
            }
        }
        _ => return None,
    };
    if left.len() == rank && d.shape(d.node(n).result).rank() != rank {
        return None;
    }
    let loc = d.loc(n);
    let turned = operands.into_iter().map(|v| in_batch_order(d, v, at, &perm)).collect::<Option<Vec<_>>>()?;
    let result = d.push(moved, &turned, loc.clone())?;
    let kept: Vec<usize> = perm.iter().copied().filter(|p| left.contains(p)).collect();
    let back = left.iter().map(|i| kept.iter().position(|k| k == i)).collect::<Option<_>>()?;
    d.push(Op::Transpose { perm: back }, &[result], loc)
}

/// An operand with dimension `at`, the batch, first; what has neither it nor one before it stays.
fn in_batch_order(d: &mut Draft, v: ValueId, at: usize, perm: &[usize]) -> Option<ValueId> {
    let shape = d.shape(v).clone();
    let missing = perm.len().checked_sub(shape.rank())?;
    if missing > at {
        return Some(v);
    }
    let has_batch = shape.0.iter().any(|dim| dim.batch);
    if has_batch != shape.0[at - missing].batch || !has_batch && shape.0[at - missing] != Dim::fixed(1) {
        return None;
    }
    let whole = Shape([vec![Dim::fixed(1); missing], shape.0].concat());
    let v = d.push(Op::Reshape { shape: whole }, &[v], None)?;
    d.push(Op::Transpose { perm: perm.to_vec() }, &[v], None)
}

/// A sum over the axis along which single pieces were concatenated (`stack` and `sum`) as additions.
pub(crate) fn sum_of_stack(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::ReduceSum { axes, .. } = &d.node(n).op else { return None };
    let &[axis] = &axes[..] else { return None };
    let (Op::Concat { axis: joined }, parts) = d.op_of(d.node(n).operands[0])? else { return None };
    if *joined != axis || parts.iter().any(|&p| d.shape(p).0[axis].as_fixed() != Some(1)) {
        return None;
    }
    let (parts, loc) = (parts.to_vec(), d.loc(n));
    let shape = d.shape(d.node(n).result).clone();
    let mut sum = None;
    for part in parts {
        let part = d.push(Op::Reshape { shape: shape.clone() }, &[part], loc.clone())?;
        sum = Some(match sum {
            Some(sum) => d.push(Op::Add {}, &[sum, part], loc.clone())?,
            None => part,
        });
    }
    sum
}
