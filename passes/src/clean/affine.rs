//! Scales and biases: constants that multiply or are added move into the constant weights they belong to.
//!
//! `absorb` walks up from a product by a scalar through movement, and through products of two activations into their
//! left or right operand, until it finds weights; so the attention scale, wherever an exporter put it (on q, on q and k
//! as two square roots, after the product), ends in the weights of the projection of q or k.

use vitc_ir::{Const, Dim, Op, Shape, TensorType, ValueId};

use super::draft::Draft;
use super::given::{integers, is_weights, scale_integers};

/// The constant as a vector of `channels` elements, when it is a scalar or varies along dimension `axis` of `shape` only.
fn per_channel(d: &mut Draft, c: ValueId, shape: &Shape, axis: usize) -> Option<ValueId> {
    let channels = shape.0[axis].as_fixed()?;
    let (count, rank) = (d.shape(c).count()?.as_fixed()?, d.shape(c).rank());
    if count != 1 {
        let at = (axis + rank).checked_sub(shape.rank())?;
        if rank > shape.rank() || count != channels || d.shape(c).0[at].as_fixed() != Some(channels) {
            return None;
        }
    }
    let constant = d.constant_of(c).filter(|c| c.layout.is_none())?;
    let values = constant.values::<f32>();
    let values = if count == 1 { vec![values[0]; channels] } else { values.into_owned() };
    let name = constant.name.clone();
    Some(d.floats(&name, &[channels], &values))
}

/// Elementwise function of two constants, the second broadcast.
pub(super) fn combine(d: &mut Draft, op: Op, a: ValueId, b: ValueId) -> Option<ValueId> {
    let loc = None;
    let v = d.push(op, &[a, b], loc)?;
    let n = d.def(v)?;
    super::fold::fold_constants(d, n)
}

fn with_shape(d: &mut Draft, c: ValueId, dims: &[usize]) -> Option<ValueId> {
    let shape = Shape::fixed(dims);
    let constant = d.constant_of(c).filter(|c| c.ty.shape.count() == shape.count())?.clone();
    let ty = TensorType { shape, ..constant.ty.clone() };
    Some(d.constant(Const { ty, ..constant }))
}

/// The dimension of a product's or convolution's result that its bias runs along, when its weights are constant.
fn channel_axis(d: &Draft, v: ValueId) -> Option<usize> {
    match d.op_of(v)? {
        (Op::MatMul {}, operands) if is_weights(d, operands[1]) => Some(d.shape(v).rank() - 1),
        (Op::Conv2d { layout, .. }, operands) if is_weights(d, operands[1]) => Some(layout.channel()),
        (Op::LayerNorm { .. }, operands) if d.is_const(operands[1]) && d.is_const(operands[2]) => {
            Some(d.shape(v).rank() - 1)
        }
        _ => None,
    }
}

/// Whether a constant may join `v`: nothing else uses it, or it is a layernorm, of which each user may have its own (blocks
/// in parallel normalise one value with parameters of their own).
fn may_take(d: &Draft, v: ValueId) -> bool {
    d.used_once(v) || matches!(d.op_of(v), Some((Op::LayerNorm { .. }, _)))
}

/// `x w + c` to `matmul(x, w, bias)`, likewise for convolutions and the beta of a layernorm.
pub(crate) fn absorb_bias(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::Add {}, &[v, c]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    let axis = channel_axis(d, v).filter(|_| d.is_const(c) && may_take(d, v))?;
    let shape = d.shape(d.node(n).result).clone();
    if &shape != d.shape(v) {
        return None;
    }
    let added = per_channel(d, c, &shape, axis)?;
    let producer = d.def(v)?;
    let (op, mut operands) = (d.node(producer).op.clone(), d.node(producer).operands.clone());
    let bias = match operands.get(2).copied() {
        Some(known) => {
            let known = per_channel_vector(d, known, shape.0[axis].as_fixed()?)?;
            combine(d, Op::Add {}, known, added)?
        }
        None => added,
    };
    operands.truncate(2);
    operands.push(bias);
    let loc = d.join_locs([producer, n]);
    d.push(op, &operands, loc)
}

/// A bias of one element or one per channel as a vector.
fn per_channel_vector(d: &mut Draft, c: ValueId, channels: usize) -> Option<ValueId> {
    let count = d.shape(c).count()?.as_fixed()?;
    if count == 1 { per_channel(d, c, &Shape::fixed(&[channels]), 0) } else { with_shape(d, c, &[channels]) }
}

/// `(x w + b) * c` to `x (w c) + b c`, for a scalar or one factor a channel; likewise for convolutions and layernorms.
fn scale_weights(d: &mut Draft, v: ValueId, factor: ValueId, at: usize) -> Option<ValueId> {
    let axis = channel_axis(d, v)?;
    let producer = d.def(v)?;
    let (op, operands) = (d.node(producer).op.clone(), d.node(producer).operands.clone());
    let shape = d.shape(v).clone();
    let channels = shape.0[axis].as_fixed()?;
    let factor = per_channel(d, factor, &shape, axis)?;
    let mut scaled = vec![operands[0]];
    let weights_factor =
        if matches!(op, Op::Conv2d { .. }) { with_shape(d, factor, &[channels, 1, 1, 1])? } else { factor };
    let weights = match integers(d, operands[1]) {
        Some(_) => {
            let factors = d.constant_of(factor)?.values::<f32>().into_owned();
            let axis = if matches!(op, Op::Conv2d { .. }) { 0 } else { d.shape(operands[1]).rank() - 1 };
            scale_integers(d, operands[1], &factors, axis)?
        }
        None => combine(d, Op::Mul {}, operands[1], weights_factor)?,
    };
    scaled.push(weights);
    if let Some(&bias) = operands.get(2) {
        let bias = per_channel_vector(d, bias, channels)?;
        scaled.push(combine(d, Op::Mul {}, bias, factor)?);
    }
    let loc = d.join_locs([producer, at]);
    d.push(op, &scaled, loc)
}

/// `v * factor` for a scalar, without a product: the factor goes into constant weights above `v`, through values that
/// have no other use.
fn absorb(d: &mut Draft, v: ValueId, factor: ValueId, at: usize) -> Option<ValueId> {
    if !d.used_once(v) {
        return None;
    }
    if let Some(scaled) = scale_weights(d, v, factor, at) {
        return Some(scaled);
    }
    let producer = d.def(v)?;
    let (op, operands) = (d.node(producer).op.clone(), d.node(producer).operands.clone());
    let loc = d.loc(producer);
    match op {
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } => {
            let x = absorb(d, operands[0], factor, at)?;
            d.push(op, &[x], loc)
        }
        Op::MatMul {} if operands.len() == 2 => {
            if let Some(a) = absorb(d, operands[0], factor, at) {
                return d.push(op, &[a, operands[1]], loc);
            }
            let b = absorb(d, operands[1], factor, at)?;
            d.push(op, &[operands[0], b], loc)
        }
        Op::Mul {} if d.is_const(operands[1]) => {
            let product = combine(d, Op::Mul {}, operands[1], factor)?;
            let loc = d.join_locs([producer, at]);
            d.push(op, &[operands[0], product], loc)
        }
        _ => None,
    }
}

/// `x * c` where the weights above `x` can take `c`.
pub(crate) fn absorb_scale(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::Mul {}, &[v, c]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    if !d.is_const(c) || d.shape(v) != d.shape(d.node(n).result) || !may_take(d, v) {
        return None;
    }
    match d.scalar(c) {
        Some(factor) => {
            let factor = d.floats("scale", &[], &[factor as f32]);
            absorb(d, v, factor, n)
        }
        None => scale_weights(d, v, c, n).or_else(|| {
            let (factor, axis) = along_one_axis(d, c, v)?;
            scale_above(d, v, factor, axis, n)
        }),
    }
}

/// A constant that varies along one dimension of `v` only, as a vector, and that dimension.
fn along_one_axis(d: &mut Draft, c: ValueId, v: ValueId) -> Option<(ValueId, usize)> {
    let (own, shape) = (d.shape(c).clone(), d.shape(v).clone());
    let mut varying = (0..own.rank()).filter(|&i| own.0[i] != 1.into());
    let (axis, None) = (varying.next()?, varying.next()) else { return None };
    let axis = (axis + shape.rank()).checked_sub(own.rank())?;
    Some((per_channel(d, c, &shape, axis)?, axis))
}

/// `v * factor` for one factor for each index of a dimension, which goes into the weights that make those indices, through movement
/// that keeps the dimension and values that have no other use.
fn scale_above(d: &mut Draft, v: ValueId, factor: ValueId, axis: usize, at: usize) -> Option<ValueId> {
    let producer = d.def(v).filter(|_| d.used_once(v))?;
    if channel_axis(d, v) == Some(axis) {
        let mut dims = vec![1; d.shape(v).rank() - axis];
        dims[0] = d.shape(v).0[axis].as_fixed()?;
        let factor = with_shape(d, factor, &dims)?;
        return scale_weights(d, v, factor, at);
    }
    let (op, x, loc) = (d.node(producer).op.clone(), *d.node(producer).operands.first()?, d.loc(producer));
    let above = match &op {
        Op::Transpose { perm } => perm[axis],
        Op::Reshape { .. } => same_axis(d.shape(x), d.shape(v), axis)?,
        _ => return None,
    };
    let scaled = scale_above(d, x, factor, above, at)?;
    d.push(op, &[scaled], loc)
}

/// The dimension of `from` that a reshape leaves as dimension `axis` of `to`.
fn same_axis(from: &Shape, to: &Shape, axis: usize) -> Option<usize> {
    let outer = |shape: &Shape, axis: usize| shape.0[..axis].iter().try_fold(Dim::fixed(1), |all, &dim| all.times(dim));
    let wanted = (outer(to, axis)?, to.0[axis]);
    (0..from.rank()).find(|&i| outer(from, i).map(|outer| (outer, from.0[i])) == Some(wanted))
}

/// `(x * c) w` to `x (c w)` for constant weights and a scalar or one factor a channel.
pub(crate) fn absorb_scale_below(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    if node.op != (Op::MatMul {}) {
        return None;
    }
    let (v, w) = (node.operands[0], node.operands[1]);
    let (Op::Mul {}, &[x, c]) = d.op_of(v)? else { return None };
    if !is_weights(d, w) || !d.is_const(c) || d.shape(x) != d.shape(v) || !d.used_once(v) {
        return None;
    }
    let bias = node.operands.get(2).copied();
    let shape = d.shape(v).clone();
    let rows = shape.last_fixed()?;
    let factor = per_channel(d, c, &shape, shape.rank() - 1)?;
    let weights = match (integers(d, w), d.scalar(c)) {
        (None, _) => {
            let factor = with_shape(d, factor, &[rows, 1])?;
            combine(d, Op::Mul {}, w, factor)?
        }
        (Some(_), Some(factor)) => scale_integers(d, w, &[factor as f32], d.shape(w).rank() - 1)?,
        (Some(_), None) => return None,
    };
    let loc = d.join_locs(d.def(v).into_iter().chain([n]));
    let operands: Vec<_> = [x, weights].into_iter().chain(bias).collect();
    d.push(Op::MatMul {}, &operands, loc)
}

/// `(a * c) b` and `a (b * c)` to `(a b) * c` for a scalar that no weights above could take.
pub(crate) fn sink_scale(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::MatMul {}, &[a, b]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    let scaled = |v: ValueId| match d.op_of(v) {
        Some((Op::Mul {}, &[x, c])) if d.scalar(c).is_some() && d.shape(x) == d.shape(v) && d.used_once(v) => {
            Some((x, c))
        }
        _ => None,
    };
    let (left, right, c, from) = match (scaled(a), scaled(b)) {
        (Some((x, c)), _) => (x, b, c, a),
        (_, Some((x, c))) => (a, x, c, b),
        _ => return None,
    };
    let loc = d.loc(n);
    let product = d.push(Op::MatMul {}, &[left, right], loc)?;
    let scale_loc = d.def(from).and_then(|m| d.loc(m));
    d.push(Op::Mul {}, &[product, c], scale_loc)
}

/// `(a b) * c` to `(a * c) b` for a factor of each head, as cosine attention has it: scores then are a product and biases, and become
/// one op with the softmax behind them. An error of a score weighs the same in every head, so one scale serves `a * c` of all.
pub(crate) fn lift_head_scale(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::Mul {}, &[v, c]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    let (Op::MatMul {}, &[a, b]) = d.op_of(v)? else { return None };
    let whole = |v: ValueId| d.shape(v).0.len() == d.shape(d.node(n).result).0.len();
    let heads = d.is_const(c) && d.scalar(c).is_none() && d.shape(c).0.iter().rev().take(2).all(|&s| s == 1.into());
    if !heads || d.is_const(a) || d.is_const(b) || !d.used_once(v) || !whole(a) || !whole(v) {
        return None;
    }
    let from = d.def(v)?;
    let scaled = d.push(Op::Mul {}, &[a, c], d.loc(n))?;
    let same = d.shape(scaled) == d.shape(a);
    same.then(|| d.push(Op::MatMul {}, &[scaled, b], d.loc(from)))?
}

/// `(x * a) * b` to `x * (a b)` for scalars.
pub(crate) fn merge_scales(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::Mul {}, &[v, b]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    let (Op::Mul {}, &[x, a]) = d.op_of(v)? else { return None };
    if !d.is_const(a) || !d.is_const(b) || d.scalar(a).is_none() || !d.used_once(v) {
        return None;
    }
    let product = combine(d, Op::Mul {}, b, a)?;
    let loc = d.join_locs(d.def(v).into_iter().chain([n]));
    d.push(Op::Mul {}, &[x, product], loc)
}
