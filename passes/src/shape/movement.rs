//! The normal form of movement: at most one reshape or transpose in a row where two can be one, transposes without
//! dimensions of one, above the reshapes that merge dimensions and below those that split them, gathers of a range as
//! slices.

use vitc_ir::{Dim, Op, Shape, ValueId};

use super::groups::{groups, parts};
use crate::clean::draft::{Draft, Rule};

/// The rules of this file.
pub(crate) const RULES: &[(&str, Rule)] = &[
    ("drop-movement", drop_movement),
    ("merge-reshapes", merge_reshapes),
    ("merge-transposes", merge_transposes),
    ("merge-slices", merge_slices),
    ("slice-of-concat", slice_of_concat),
    ("gather-to-slice", gather_to_slice),
    ("squeeze-transpose", squeeze_transpose),
    ("transpose-above-reshape", transpose_above_reshape),
    ("split-above-transpose", split_above_transpose),
];

/// Movement that moves nothing.
fn drop_movement(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    let x = *node.operands.first()?;
    let nothing = match &node.op {
        Op::Reshape { .. } | Op::Expand { .. } => d.shape(x) == d.shape(node.result),
        Op::Transpose { perm } => perm.iter().copied().eq(0..perm.len()),
        Op::Slice { axis, start: 0, len, step: 1 } => d.shape(x).0[*axis] == Dim::fixed(*len),
        Op::Concat { .. } => node.operands.len() == 1,
        Op::Pad { before, after, .. } => before.iter().chain(after).all(|&p| p == 0),
        _ => false,
    };
    nothing.then_some(x)
}

fn merge_reshapes(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Reshape { shape } = &d.node(n).op else { return None };
    let shape = shape.clone();
    let inner = d.def(d.node(n).operands[0])?;
    let Op::Reshape { .. } = d.node(inner).op else { return None };
    let x = d.node(inner).operands[0];
    let loc = d.join_locs([inner, n]);
    d.push(Op::Reshape { shape }, &[x], loc)
}

fn merge_transposes(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Transpose { perm: outer } = &d.node(n).op else { return None };
    let inner = d.def(d.node(n).operands[0])?;
    let Op::Transpose { perm } = &d.node(inner).op else { return None };
    let perm = outer.iter().map(|&p| perm[p]).collect();
    let x = d.node(inner).operands[0];
    let loc = d.join_locs([inner, n]);
    d.push(Op::Transpose { perm }, &[x], loc)
}

fn merge_slices(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Slice { axis, start, len, step } = d.node(n).op else { return None };
    let inner = d.def(d.node(n).operands[0])?;
    let Op::Slice { axis: a, start: s, step: t, .. } = d.node(inner).op else { return None };
    if a != axis {
        return None;
    }
    let first = usize::try_from(s as i64 + start as i64 * t).ok()?;
    let x = d.node(inner).operands[0];
    let loc = d.join_locs([inner, n]);
    d.push(Op::Slice { axis, start: first, len, step: step * t }, &[x], loc)
}

/// A slice that stays within one operand of a concat.
fn slice_of_concat(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Slice { axis, start, len, step } = d.node(n).op else { return None };
    let (Op::Concat { axis: joined }, parts) = d.op_of(d.node(n).operands[0])? else { return None };
    if *joined != axis {
        return None;
    }
    let last = usize::try_from(start as i64 + (len as i64 - 1) * step).ok()?;
    let mut offset = 0;
    for &part in parts {
        let size = d.shape(part).0[axis].as_fixed()?;
        let inside = |i: usize| (offset..offset + size).contains(&i);
        if inside(start) && inside(last) {
            return d.push(Op::Slice { axis, start: start - offset, len, step }, &[part], d.loc(n));
        }
        offset += size;
    }
    None
}

/// A gather whose positions are evenly spaced.
fn gather_to_slice(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Gather { axis, index } = &d.node(n).op else { return None };
    let step = index.get(1).map_or(1, |&i| i as i64 - index[0] as i64);
    let even = index.windows(2).all(|w| w[1] as i64 - w[0] as i64 == step);
    if step == 0 || !even {
        return None;
    }
    let slice = Op::Slice { axis: *axis, start: index[0], len: index.len(), step };
    d.push(slice, &d.node(n).operands.clone(), d.loc(n))
}

/// A transpose does not carry dimensions of one: they are dropped before it and put back after it by reshapes.
fn squeeze_transpose(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Transpose { perm } = &d.node(n).op else { return None };
    let x = d.node(n).operands[0];
    let keep: Vec<usize> = (0..perm.len()).filter(|&i| d.shape(x).0[i] != Dim::fixed(1)).collect();
    if keep.len() == perm.len() {
        return None;
    }
    let squeezed = Shape(keep.iter().map(|&i| d.shape(x).0[i]).collect());
    let order: Vec<usize> = perm.iter().filter_map(|p| keep.iter().position(|k| k == p)).collect();
    let shape = d.shape(d.node(n).result).clone();
    let loc = d.loc(n);
    let mut v = x;
    if !order.iter().copied().eq(0..order.len()) {
        v = d.push(Op::Reshape { shape: squeezed }, &[v], loc.clone())?;
        v = d.push(Op::Transpose { perm: order }, &[v], loc.clone())?;
    }
    d.push(Op::Reshape { shape }, &[v], loc)
}

/// `transpose(reshape(x))` where the reshape merges dimensions: the transpose goes first, in the dimensions that both sides of the
/// reshape are made of. Where the batch is not in front, the reshape may split others: so heads that were merged with a batch behind
/// the tokens are split off again.
/// Dimensions of one do not count, or this rule and `squeeze_transpose` would take turns for ever.
fn transpose_above_reshape(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Transpose { perm } = &d.node(n).op else { return None };
    let inner = d.def(d.node(n).operands[0])?;
    let Op::Reshape { shape: merged } = &d.node(inner).op else { return None };
    let x = d.node(inner).operands[0];
    let parts = parts(d.shape(x), merged)?;
    // a split that the operand has not is worth it where the batch has to come to the front
    let wide = || d.shape(x).0.iter().filter(|&&dim| dim != Dim::fixed(1));
    let splits = parts.len() > wide().count();
    if parts.len() <= merged.rank() || (splits && wide().next().is_some_and(|dim| dim.batch)) {
        return None;
    }
    let split = Shape(parts.iter().map(|part| part.dim).collect());
    let of = |p: usize| parts.iter().enumerate().filter(move |(_, part)| part.to == p).map(|(i, _)| i);
    let perm = perm.iter().flat_map(|&p| of(p)).collect();
    let shape = d.shape(d.node(n).result).clone();
    let (loc, reshape_loc) = (d.loc(n), d.loc(inner));
    let mut v = x;
    if split != *d.shape(x) {
        v = d.push(Op::Reshape { shape: split }, &[v], reshape_loc.clone())?;
    }
    v = d.push(Op::Transpose { perm }, &[v], loc)?;
    d.push(Op::Reshape { shape }, &[v], reshape_loc)
}

/// `reshape(transpose(x))` where the reshape only splits dimensions: they are split before the transpose. The number of
/// dimensions that are not one grows from the transpose's, so this ends.
fn split_above_transpose(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Reshape { shape } = &d.node(n).op else { return None };
    let shape = shape.clone();
    let v = d.node(n).operands[0];
    let inner = d.def(v)?;
    let Op::Transpose { perm } = &d.node(inner).op else { return None };
    let (perm, x) = (perm.clone(), d.node(inner).operands[0]);
    let groups = groups(d.shape(v), &shape)?;
    let sizes = |s: &Shape| s.0.iter().filter(|&&d| d != Dim::fixed(1)).count();
    if groups.len() != perm.len() || groups.iter().any(|g| g.from.len() != 1) || sizes(&shape) <= sizes(d.shape(v)) {
        return None;
    }
    let mut split = Shape(Vec::new());
    let mut starts = vec![0; groups.len()];
    for i in 0..perm.len() {
        let at = perm.iter().position(|&p| p == i)?;
        starts[at] = split.rank();
        split.0.extend_from_slice(&shape.0[groups[at].to.clone()]);
    }
    let perm = groups.iter().zip(&starts).flat_map(|(g, &start)| start..start + g.to.len()).collect();
    let (loc, transpose_loc) = (d.loc(n), d.loc(inner));
    let x = d.push(Op::Reshape { shape: split }, &[x], loc)?;
    d.push(Op::Transpose { perm }, &[x], transpose_loc)
}

/// A slice taken before a movement instead of after it: the slice of the operand, and the movement of what is left.
pub(crate) fn slice_before(op: &Op, from: &Shape, slice: &Op) -> Option<(Op, Op)> {
    let Op::Slice { axis, start, len, step } = *slice else { return None };
    match op {
        Op::Transpose { perm } => {
            let slice = Op::Slice { axis: perm[axis], start, len, step };
            Some((slice, op.clone()))
        }
        Op::Reshape { shape } => slice_before_reshape(from, shape, (axis, start, len, step)),
        _ => None,
    }
}

fn slice_before_reshape(from: &Shape, to: &Shape, slice: (usize, usize, usize, i64)) -> Option<(Op, Op)> {
    let (axis, start, len, step) = slice;
    let group = groups(from, to)?.into_iter().find(|g| g.to.contains(&axis))?;
    let fixed = |dims: &[Dim]| dims.iter().try_fold(1usize, |acc, d| Some(acc * d.as_fixed()?));
    if fixed(&to.0[group.to.start..axis])? != 1 {
        return None;
    }
    let inner = fixed(&to.0[axis + 1..group.to.end])?;
    let outer = (group.from.clone()).find(|&i| from.0[i] != Dim::fixed(1))?;
    let block = fixed(&from.0[outer + 1..group.from.end])?;
    let mut left = to.clone();
    left.0[axis] = Dim::fixed(len);
    let reshape = Op::Reshape { shape: left };
    if inner == block {
        return Some((Op::Slice { axis: outer, start, len, step }, reshape));
    }
    let (first, count) = (start * inner, len * inner);
    if step != 1 || !first.is_multiple_of(block) || !count.is_multiple_of(block) {
        return None;
    }
    Some((Op::Slice { axis: outer, start: first / block, len: count / block, step: 1 }, reshape))
}
