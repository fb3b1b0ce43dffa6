//! Images with channels last: convolutions are brought to [N, H, W, C], where a pixel is a row as a token is, pointwise ones
//! become matrix products, and the transpositions that this costs sink until they meet and cancel.
//!
//! Only the permutation that a convolution leaves, [`FIRST`], sinks, always downwards, so this ends.

use vitc_ir::{Class, Const, Dim, ImageLayout, Op, Shape, TensorType, ValueId};

use super::groups::groups;
use crate::clean::draft::{Draft, Rule};

/// The rules of this file.
pub(crate) const RULES: &[(&str, Rule)] = &[
    ("channels-last", channels_last),
    ("pointwise-product", pointwise_product),
    ("sink-channels-first", sink_channels_first),
    ("transpose-above-regroup", transpose_above_regroup),
];

/// Of a result with channels first, the dimensions of a value with channels last.
const FIRST: [usize; 4] = [0, 3, 1, 2];
/// The inverse.
const LAST: [usize; 4] = [0, 2, 3, 1];

/// `conv(x)` as the transposition of the convolution of the transposed.
///
/// Images from outside have their channels first: a convolution that cuts one into patches reads it as it lies, and one that
/// takes the normalisation of pixels over stays beside it.
fn channels_last(d: &mut Draft, n: usize) -> Option<ValueId> {
    let op = d.node(n).op.clone();
    let Op::Conv2d { strides, pads, dilations, groups, layout: ImageLayout::ChannelsFirst } = op else { return None };
    let operands = d.node(n).operands.clone();
    let kernel: Vec<usize> = d.shape(operands[1]).0[2..].iter().map(|s| s.size).collect();
    let cuts = kernel[..] == strides && kernel[..] != [1, 1] && pads == [0; 4] && groups == 1;
    match d.op_of(operands[0]) {
        Some((Op::Normalize { .. }, _)) => return None,
        None if cuts => return None,
        _ => {}
    }
    let loc = d.loc(n);
    let x = d.push(Op::Transpose { perm: LAST.to_vec() }, &operands[..1], loc.clone())?;
    let conv = Op::Conv2d { strides, pads, dilations, groups, layout: ImageLayout::ChannelsLast };
    let operands: Vec<ValueId> = [x].into_iter().chain(operands[1..].iter().copied()).collect();
    let y = d.push(conv, &operands, loc.clone())?;
    d.push(Op::Transpose { perm: FIRST.to_vec() }, &[y], loc)
}

/// A convolution of single pixels is a matrix product over them, of every other one where it has strides.
fn pointwise_product(d: &mut Draft, n: usize) -> Option<ValueId> {
    let op = d.node(n).op.clone();
    let Op::Conv2d { strides, pads: [0, 0, 0, 0], groups: 1, layout: ImageLayout::ChannelsLast, .. } = op else {
        return None;
    };
    let operands = d.node(n).operands.clone();
    let w = d.constant_of(operands[1]).filter(|w| w.layout.is_none())?;
    let [outputs, channels, 1, 1] = w.ty.shape.as_fixed()?[..] else { return None };
    let values = w.values::<f32>();
    let turned: Vec<f32> = (0..outputs * channels).map(|i| values[i % outputs * channels + i / outputs]).collect();
    let w = Const::new(w.name.clone(), TensorType::f32(Shape::fixed(&[channels, outputs])), &turned);
    let (loc, result) = (d.loc(n), d.shape(d.node(n).result).clone());
    let mut x = operands[0];
    for (axis, stride) in [1, 2].into_iter().zip(strides).filter(|&(_, s)| s != 1) {
        let slice = Op::Slice { axis, start: 0, len: result.0[axis].as_fixed()?, step: stride as i64 };
        x = d.push(slice, &[x], loc.clone())?;
    }
    let w = d.constant(w);
    let operands: Vec<ValueId> = [x, w].into_iter().chain(operands[2..].iter().copied()).collect();
    d.push(Op::MatMul {}, &operands, loc)
}

/// The value with channels last of which `v` is the transposition.
fn turned(d: &Draft, v: ValueId) -> Option<ValueId> {
    match d.op_of(v)? {
        (Op::Transpose { perm }, operands) if perm[..] == FIRST => Some(operands[0]),
        _ => None,
    }
}

/// What works element by element, over dimensions, or along one, works on the value with channels last as well.
fn sink_channels_first(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (op, operands) = (d.node(n).op.clone(), d.node(n).operands.clone());
    let first = operands.iter().find_map(|&v| turned(d, v))?;
    let shape = d.shape(d.node(n).result).clone();
    let loc = d.loc(n);
    let op = match op {
        Op::ReduceMean { axes, .. } => {
            return sink_reduction(d, n, first, &axes, |axes| Op::ReduceMean { axes, keep: true });
        }
        Op::ReduceSum { axes, .. } => {
            return sink_reduction(d, n, first, &axes, |axes| Op::ReduceSum { axes, keep: true });
        }
        Op::ReduceMax { axes, .. } => {
            return sink_reduction(d, n, first, &axes, |axes| Op::ReduceMax { axes, keep: true });
        }
        Op::Slice { axis, start, len, step } => Op::Slice { axis: FIRST[axis], start, len, step },
        Op::Gather { axis, index } => Op::Gather { axis: FIRST[axis], index },
        Op::Concat { axis } => Op::Concat { axis: FIRST[axis] },
        Op::Pad { before, after, value } => {
            let moved = |v: Vec<usize>| LAST.map(|i| v[i]).to_vec();
            Op::Pad { before: moved(before), after: moved(after), value }
        }
        op if is_elementwise(&op) && shape == *d.shape(operands.iter().copied().find(|&v| turned(d, v).is_some())?) => {
            op
        }
        _ => return None,
    };
    let whole = matches!(op.class(), Class::Move);
    let operands = operands.into_iter().map(|v| last(d, v, whole)).collect::<Option<Vec<_>>>()?;
    let y = d.push(op, &operands, loc.clone())?;
    d.push(Op::Transpose { perm: FIRST.to_vec() }, &[y], loc)
}

/// An operand with channels last: a transposed one as it was, a constant or one whose elements need not move turned. Of
/// operands that are `whole` none is repeated.
fn last(d: &mut Draft, v: ValueId, whole: bool) -> Option<ValueId> {
    if let Some(x) = turned(d, v) {
        return Some(x);
    }
    let shape = d.shape(v).clone();
    if whole || shape.rank() > 4 {
        return None;
    }
    let mut full = Shape(vec![Dim::fixed(1); 4 - shape.rank()]);
    full.0.extend_from_slice(&shape.0);
    let moved = Shape(LAST.map(|i| full.0[i]).to_vec());
    let lies_alike = full.0[1..].iter().filter(|&&d| d != Dim::fixed(1)).count() <= 1;
    match d.constant_of(v) {
        _ if lies_alike => d.push(Op::Reshape { shape: moved }, &[v], None),
        Some(c) if c.ty.elem == vitc_ir::Elem::F32 => {
            let c = turned_constant(c, &full.as_fixed()?)?;
            Some(d.constant(c))
        }
        _ => None,
    }
}

/// A constant of that shape with channels last.
fn turned_constant(c: &Const, shape: &[usize]) -> Option<Const> {
    let &[n, channels, high, wide] = shape else { return None };
    let values = c.values::<f32>();
    let at = |i: usize| {
        let (pixel, channel) = (i / channels, i % channels);
        let (image, pixel) = (pixel / (high * wide), pixel % (high * wide));
        values[(image * channels + channel) * high * wide + pixel]
    };
    let moved: Vec<f32> = (0..values.len()).map(at).collect();
    Some(Const::new(c.name.clone(), TensorType::f32(Shape::fixed(&[n, high, wide, channels])), &moved))
}

/// A reduction over dimensions of the transposed; those that go leave nothing to transpose.
fn sink_reduction(
    d: &mut Draft,
    n: usize,
    x: ValueId,
    axes: &[usize],
    op: impl Fn(Vec<usize>) -> Op,
) -> Option<ValueId> {
    let mut axes: Vec<usize> = axes.iter().map(|&a| FIRST[a]).collect();
    axes.sort_unstable();
    let (loc, shape) = (d.loc(n), d.shape(d.node(n).result).clone());
    let y = d.push(op(axes), &[x], loc.clone())?;
    let y = d.push(Op::Transpose { perm: FIRST.to_vec() }, &[y], loc.clone())?;
    d.push(Op::Reshape { shape }, &[y], loc)
}

/// Whether the op computes each element of its result from those of its operands at the same place.
fn is_elementwise(op: &Op) -> bool {
    let joins = matches!(
        op,
        Op::MatMul {}
            | Op::Conv2d { .. }
            | Op::LayerNorm { .. }
            | Op::Softmax {}
            | Op::ReduceMean { .. }
            | Op::ReduceSum { .. }
            | Op::ReduceMax { .. }
            | Op::Normalize { .. }
    );
    op.class() == Class::Float && !joins
}

/// `transpose(reshape(x))` where the reshape merges some dimensions and splits others (heads from channels, pixels from rows
/// and columns): split first, transposed, merged last.
fn transpose_above_regroup(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Transpose { perm } = d.node(n).op.clone() else { return None };
    let inner = d.def(d.node(n).operands[0])?;
    let Op::Reshape { shape: regrouped } = d.node(inner).op.clone() else { return None };
    let x = d.node(inner).operands[0];
    let from = d.shape(x).clone();
    if from.0.iter().chain(&regrouped.0).any(|&d| d == Dim::fixed(1)) {
        return None;
    }
    let groups = groups(&from, &regrouped)?;
    let merges = groups.iter().any(|g| g.from.len() > 1 && g.to.len() == 1);
    let splits = groups.iter().any(|g| g.from.len() == 1 && g.to.len() > 1);
    if !merges || !splits || groups.iter().any(|g| g.from.len() > 1 && g.to.len() > 1) {
        return None;
    }
    // The fine dimensions, and for each dimension of the reshape's result those that it has of them.
    let (mut fine, mut parts) = (Shape(Vec::new()), Vec::new());
    for g in &groups {
        if g.to.len() == 1 {
            parts.push(fine.rank()..fine.rank() + g.from.len());
            fine.0.extend_from_slice(&from.0[g.from.clone()]);
        } else {
            parts.extend((0..g.to.len()).map(|i| fine.rank() + i..fine.rank() + i + 1));
            fine.0.extend_from_slice(&regrouped.0[g.to.clone()]);
        }
    }
    let perm = perm.iter().flat_map(|&p| parts[p].clone()).collect();
    let (loc, reshape_loc, shape) = (d.loc(n), d.loc(inner), d.shape(d.node(n).result).clone());
    let v = d.push(Op::Reshape { shape: fine }, &[x], reshape_loc.clone())?;
    let v = d.push(Op::Transpose { perm }, &[v], loc)?;
    d.push(Op::Reshape { shape }, &[v], reshape_loc)
}

#[cfg(test)]
mod tests {
    use vitc_ir::{ImageLayout, Op, ValueId};

    use crate::clean::testing::{Build, count, difference, inputs, outputs};

    fn conv(b: &mut Build, x: ValueId, w: &[usize; 4], stride: usize, groups: usize) -> ValueId {
        let weights = b.weights(w, 0.2);
        let op = Op::Conv2d {
            strides: [stride; 2],
            pads: [w[2] / 2; 4],
            dilations: [1, 1],
            groups,
            layout: ImageLayout::ChannelsFirst,
        };
        b.op(op, &[x, weights])
    }

    #[test]
    fn only_the_image_is_transposed() {
        let mut b = Build::new(3);
        let x = b.input(&[3, 8, 10]);
        let stem = conv(&mut b, x, &[16, 3, 3, 3], 2, 1);
        let stem = b.op(Op::HardSwish {}, &[stem]);
        let y = conv(&mut b, stem, &[16, 1, 3, 3], 1, 16);
        let offset = b.weights(&[1, 16, 1, 1], 1.0);
        let y = b.add(y, offset);
        let y = b.add(y, stem);
        let y = conv(&mut b, y, &[32, 16, 1, 1], 2, 1);
        let (a, c) = (b.slice(y, 1, 0, 8), b.slice(y, 1, 16, 8));
        let y = b.op(Op::Concat { axis: 1 }, &[a, c]);
        let heads = b.reshape(y, &[2, 8, 6]);
        let heads = b.transpose(heads, &[0, 1, 3, 2]);
        let pooled = b.op(Op::ReduceMean { axes: vec![2, 3], keep: false }, &[y]);
        b.m.output("heads", heads);
        b.m.output("pooled", pooled);
        let after = super::super::run(&b.m).unwrap();
        let images = inputs(&b.m, 5);
        assert!(difference(&outputs(&b.m, &images), &outputs(&after, &images)) < 1e-5);
        let transposes = |m: &vitc_ir::Module| count(m, "transpose");
        // The image, and the heads from channels.
        assert_eq!((transposes(&after), count(&after, "conv2d"), count(&after, "matmul")), (2, 2, 1));
    }
}
