//! What a model that came quantized says: `dequantize` below movement and `quantize` above it, so that pairs meet and those
//! that change nothing go; weights stay the integers they are, whatever moves, slices or scales them.

use vitc_ir::{Class, Const, Op, Quant, TensorType, ValueId};

use super::draft::Draft;
use super::fold::evaluate;
use super::slices::only_sliced;

/// The constant behind a `dequantize`.
pub(crate) fn integers(d: &Draft, v: ValueId) -> Option<ValueId> {
    match d.op_of(v)? {
        (Op::Dequantize {}, &[x]) if d.is_const(x) => Some(x),
        _ => None,
    }
}

/// Whether a value is constant weights, as floats or as the model's integers.
pub(crate) fn is_weights(d: &Draft, v: ValueId) -> bool {
    d.is_const(v) || integers(d, v).is_some()
}

/// Whether a `dequantize` of a constant is to stay: a product takes its integers, or may once movement is out of the way.
pub(crate) fn stays(d: &Draft, n: usize) -> bool {
    let result = d.node(n).result;
    let takes = |&user: &usize| {
        let user = d.node(user);
        let product = matches!(user.op, Op::MatMul {} | Op::Conv2d { .. });
        user.op.class() == Class::Move || (product && user.operands[1] == result)
    };
    d.node(n).op == (Op::Dequantize {}) && d.users(result).iter().any(takes)
}

/// `move(dequantize(x))` to `dequantize(move(x))`.
pub(crate) fn sink_dequantize(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (op, operands) = (d.node(n).op.clone(), d.node(n).operands.clone());
    if op.class() != Class::Move {
        return None;
    }
    let inside = |&v: &ValueId| match d.op_of(v)? {
        (Op::Dequantize {}, &[x]) => Some(x),
        _ => None,
    };
    let integers: Vec<ValueId> = operands.iter().map(inside).collect::<Option<_>>()?;
    let first = d.ty(*integers.first()?).clone();
    let alike = |&x: &ValueId| (d.ty(x).elem, &d.ty(x).quant) == (first.elem, &first.quant);
    if !integers.iter().all(alike) {
        return None;
    }
    let loc = d.loc(n);
    let door = d.def(operands[0]).and_then(|m| d.loc(m));
    let op = match op {
        // zero is the integer that stands for it; other values may stand between two integers
        Op::Pad { before, after, value } if value.0 == 0.0 => {
            let value = f64::from(first.quant.as_ref()?.zero_point).into();
            Op::Pad { before, after, value }
        }
        Op::Pad { .. } => return None,
        other => other,
    };
    match d.push(op.clone(), &integers, loc) {
        Some(moved) => d.push(Op::Dequantize {}, &[moved], door),
        None => torn(d, &op, operands[0], integers[0]),
    }
}

/// Movement along the channels that have scales of their own: of constants the scales move along, or else they become floats.
fn torn(d: &mut Draft, op: &Op, real: ValueId, integers: ValueId) -> Option<ValueId> {
    let constant = d.constant_of(integers)?.clone();
    let quant = constant.ty.quant.clone()?;
    let Op::Slice { axis, start, len, step } = *op else {
        let n = d.def(real)?;
        let floats = evaluate(d, n)?;
        return d.push(op.clone(), &[floats], d.loc(n));
    };
    if quant.axis != Some(axis) {
        return None;
    }
    let at = |i: usize| start as i64 + i as i64 * step;
    let scale = (0..len).map(|i| quant.scale.get(usize::try_from(at(i)).ok()?).copied());
    let scale = scale.collect::<Option<Vec<_>>>()?;
    let plain = Const { ty: TensorType { quant: None, ..constant.ty.clone() }, ..constant };
    let plain = d.constant(plain);
    let moved = d.push(op.clone(), &[plain], None)?;
    let moved = evaluate(d, d.def(moved)?)?;
    let quant = Quant { scale: scale.into(), ..quant };
    with_quant(d, moved, quant)
}

/// `dequantize` of a constant with this quantization.
fn with_quant(d: &mut Draft, c: ValueId, quant: Quant) -> Option<ValueId> {
    let constant = d.constant_of(c)?.clone();
    let ty = TensorType { quant: Some(quant), ..constant.ty.clone() };
    let constant = d.constant(Const { ty, ..constant });
    d.push(Op::Dequantize {}, &[constant], None)
}

/// `quantize(dequantize(x))` on one grid is `x`.
pub(crate) fn drop_requantize(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Quantize { .. } = d.node(n).op else { return None };
    match d.op_of(d.node(n).operands[0])? {
        (Op::Dequantize {}, &[x]) if d.ty(x) == d.ty(d.node(n).result) => Some(x),
        _ => None,
    }
}

/// `quantize(move(x))` to `move(quantize(x))`, but for slices, which go up themselves.
pub(crate) fn hoist_quantize(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Quantize { .. } = d.node(n).op else { return None };
    let ty = d.ty(d.node(n).result).clone();
    let mover = d.def(d.node(n).operands[0])?;
    let (op, operands) = (d.node(mover).op.clone(), d.node(mover).operands.clone());
    let scale = ty.quant.as_ref()?.single()?;
    let op = match op {
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Expand { .. } | Op::Concat { .. } | Op::Gather { .. } => op,
        Op::Pad { before, after, value } => {
            let (low, high) = ty.elem.range()?;
            let steps = f64::from((value.0 as f32 / scale as f32).round_ties_even());
            let value = (steps + f64::from(ty.quant.as_ref()?.zero_point)).clamp(low as f64, high as f64);
            Op::Pad { before, after, value: value.into() }
        }
        _ => return None,
    };
    let quantized = |d: &mut Draft, v: ValueId| requantized(d, n, v, &ty);
    let parts = operands.into_iter().map(|v| quantized(d, v)).collect::<Option<Vec<_>>>()?;
    d.push(op, &parts, d.loc(mover))
}

fn requantized(d: &mut Draft, n: usize, v: ValueId, ty: &TensorType) -> Option<ValueId> {
    let ty = ty.with_shape(d.shape(v).clone());
    d.push_typed(d.node(n).op.clone(), &[v], ty, d.loc(n))
}

/// `slice(quantize(x))` to `quantize(slice(x))` where nothing but slices use it.
pub(crate) fn slice_quantized(d: &mut Draft, n: usize) -> Option<ValueId> {
    let op = d.node(n).op.clone();
    let Op::Slice { axis, .. } = op else { return None };
    let v = d.node(n).operands[0];
    let producer = d.def(v)?;
    let Op::Quantize { .. } = d.node(producer).op else { return None };
    let ty = d.ty(v).clone();
    if ty.quant.as_ref()?.axis.is_some() || !only_sliced(d, v, axis) {
        return None;
    }
    let sliced = d.push(op, &[d.node(producer).operands[0]], d.loc(n))?;
    requantized(d, producer, sliced, &ty)
}

/// Integer weights times positive factors, one for all or one for each index of `axis`: other scales.
pub(crate) fn scale_integers(d: &mut Draft, v: ValueId, factors: &[f32], axis: usize) -> Option<ValueId> {
    let integers = integers(d, v)?;
    let quant = d.ty(integers).quant.clone()?;
    let channels = factors.len().max(quant.scale.len());
    let fits = quant.axis.is_none_or(|a| a == axis) && factors.iter().all(|f| f.is_finite() && *f > 0.0);
    if !fits || (factors.len() != 1 && factors.len() != channels) {
        return None;
    }
    let factor = |c: usize| f64::from(factors[if factors.len() == 1 { 0 } else { c }]);
    let scaled = (0..channels).map(|c| quant.scale_at(c) * factor(c));
    let scaled = if channels == 1 {
        Quant::per_tensor(quant.scale_at(0) * factor(0), quant.zero_point)
    } else {
        Quant::per_axis(scaled, axis, quant.zero_point)
    };
    with_quant(d, integers, scaled)
}
