//! Type rules of the ops that compute.

use super::{Inferred, broadcast, check_axis, ensure};
use crate::attention::unfold;
use crate::attr::ImageLayout;
use crate::op::Op;
use crate::types::{Dim, Elem, Shape, TensorType};

fn want_elem(x: &TensorType, allowed: &[Elem], what: &str) -> Result<(), String> {
    ensure(allowed.contains(&x.elem), || {
        let names: Vec<_> = allowed.iter().map(|e| e.name()).collect();
        format!("{what} is {}, wants {}", x.elem, names.join(" or "))
    })
}

fn want_float(operands: &[&TensorType]) -> Result<(), String> {
    operands.iter().try_for_each(|x| want_elem(x, &[Elem::F32], "an operand"))
}

const NARROW: &[Elem] = &[Elem::U8, Elem::I8, Elem::I16];
const INTS: &[Elem] = &[Elem::U8, Elem::I8, Elem::I16, Elem::I32];

/// A constant along the last dimension: one element or as many as the dimension.
fn want_channels(v: &TensorType, channels: Option<usize>, what: &str) -> Result<(), String> {
    let count = v.shape.count().and_then(Dim::as_fixed);
    ensure(count.is_some() && (count == Some(1) || count == channels), || {
        format!("{what} has shape [{}], wants one element or one per channel ({channels:?})", v.shape)
    })
}

// ---- float

pub(crate) fn unary_float(_: &Op, operands: &[&TensorType]) -> Inferred {
    want_float(operands)?;
    Ok(TensorType::f32(operands[0].shape.clone()))
}

pub(crate) fn binary_float(_: &Op, operands: &[&TensorType]) -> Inferred {
    want_float(operands)?;
    Ok(TensorType::f32(broadcast(&operands[0].shape, &operands[1].shape)?))
}

pub(crate) fn select_float(_: &Op, operands: &[&TensorType]) -> Inferred {
    want_float(operands)?;
    let cases = broadcast(&operands[1].shape, &operands[2].shape)?;
    Ok(TensorType::f32(broadcast(&operands[0].shape, &cases)?))
}

pub(crate) fn round_rows(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::RoundRows { step, levels, codes, .. } = op else { unreachable!() };
    ensure(step.0 > 0.0 && step.0.is_finite(), || format!("step {} is not positive", step.0))?;
    want_float(operands)?;
    ensure((1..=255).contains(levels), || format!("{levels} levels are outside 1..=255"))?;
    ensure(codes.is_sorted_by(|a, b| a < b) && codes.last().is_none_or(|&c| c <= 255), || {
        format!("codes {codes:?} do not ascend to 255 at most")
    })?;
    ensure(operands[0].shape.last_fixed().is_some(), || "rows want a fixed last dimension".into())?;
    Ok(TensorType::f32(operands[0].shape.clone()))
}

fn matmul_shape(operands: &[&TensorType]) -> Result<Shape, String> {
    let (a, b) = (&operands[0].shape, &operands[1].shape);
    let misfit = || format!("matmul of [{a}] and [{b}]");
    ensure(a.rank() >= 2 && b.rank() >= 2, misfit)?;
    let (ra, rb) = (a.rank(), b.rank());
    ensure(a.0[ra - 1] == b.0[rb - 2] && a.0[ra - 1].as_fixed().is_some(), misfit)?;
    let mut shape = broadcast(&Shape(a.0[..ra - 2].to_vec()), &Shape(b.0[..rb - 2].to_vec()))?;
    shape.0.extend([a.0[ra - 2], b.0[rb - 1]]);
    shape.count().ok_or_else(misfit)?;
    if let Some(bias) = operands.get(2) {
        want_channels(bias, shape.last_fixed(), "bias")?;
    }
    Ok(shape)
}

pub(crate) fn matmul_float(_: &Op, operands: &[&TensorType]) -> Inferred {
    want_float(operands)?;
    Ok(TensorType::f32(matmul_shape(operands)?))
}

struct Conv<'a> {
    strides: &'a [usize; 2],
    pads: &'a [usize; 4],
    dilations: &'a [usize; 2],
    groups: usize,
    layout: ImageLayout,
}

fn conv_shape(conv: Conv<'_>, operands: &[&TensorType]) -> Result<Shape, String> {
    let (x, w) = (&operands[0].shape, &operands[1].shape);
    ensure(x.rank() == 4 && w.rank() == 4, || format!("conv2d of [{x}] with [{w}]: both want rank 4"))?;
    let fixed = |d: Dim| d.as_fixed().ok_or("conv2d: only the first dimension may depend on the batch");
    let (channel, plane) = (conv.layout.channel(), conv.layout.plane());
    let [c, h, width] = [fixed(x.0[channel])?, fixed(x.0[plane[0]])?, fixed(x.0[plane[1]])?];
    let [o, wc, kh, kw] = [fixed(w.0[0])?, fixed(w.0[1])?, fixed(w.0[2])?, fixed(w.0[3])?];
    let groups = conv.groups;
    ensure(groups > 0 && o.is_multiple_of(groups) && wc.checked_mul(groups) == Some(c), || {
        format!("conv2d: {c} channels, {groups} groups and weights [{w}] do not fit")
    })?;
    ensure(kh > 0 && kw > 0, || "conv2d: empty kernel".into())?;
    let out = |size: usize, k: usize, stride: usize, dilation: usize, before: usize, after: usize| {
        let span = (k - 1).checked_mul(dilation)?.checked_add(1)?;
        let room = size.checked_add(before)?.checked_add(after)?.checked_sub(span)?;
        Some(room.checked_div(stride)? + 1)
    };
    let oh = out(h, kh, conv.strides[0], conv.dilations[0], conv.pads[0], conv.pads[2]);
    let ow = out(width, kw, conv.strides[1], conv.dilations[1], conv.pads[1], conv.pads[3]);
    let (Some(oh), Some(ow)) = (oh, ow) else {
        return Err(format!("conv2d: a kernel of {kh}x{kw} does not fit an input of {h}x{width}"));
    };
    if let Some(bias) = operands.get(2) {
        want_channels(bias, Some(o), "bias")?;
    }
    let mut shape = x.clone();
    (shape.0[channel], shape.0[plane[0]], shape.0[plane[1]]) = (o.into(), oh.into(), ow.into());
    shape.count().ok_or("the result has too many elements")?;
    Ok(shape)
}

pub(crate) fn conv_float(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::Conv2d { strides, pads, dilations, groups, layout } = op else { unreachable!() };
    want_float(operands)?;
    Ok(TensorType::f32(conv_shape(Conv { strides, pads, dilations, groups: *groups, layout: *layout }, operands)?))
}

pub(crate) fn layernorm_float(_: &Op, operands: &[&TensorType]) -> Inferred {
    want_float(operands)?;
    let x = operands[0];
    ensure(x.shape.last_fixed().is_some_and(|c| c > 0), || {
        format!("layernorm over the last dimension of [{}]", x.shape)
    })?;
    want_channels(operands[1], x.shape.last_fixed(), "gamma")?;
    want_channels(operands[2], x.shape.last_fixed(), "beta")?;
    Ok(TensorType::f32(x.shape.clone()))
}

fn reduced(shape: &Shape, axes: &[usize], keep: bool) -> Result<Shape, String> {
    for (i, &a) in axes.iter().enumerate() {
        check_axis(a, shape)?;
        ensure(!axes[..i].contains(&a), || format!("axis {a} is given twice"))?;
        ensure(shape.0[a].as_fixed().is_some_and(|n| n > 0), || "cannot reduce over the batch".into())?;
    }
    let dims = shape.0.iter().enumerate();
    Ok(Shape(if keep {
        dims.map(|(i, &d)| if axes.contains(&i) { Dim::fixed(1) } else { d }).collect()
    } else {
        dims.filter(|(i, _)| !axes.contains(i)).map(|(_, &d)| d).collect()
    }))
}

pub(crate) fn reduce_float(op: &Op, operands: &[&TensorType]) -> Inferred {
    let (Op::ReduceMean { axes, keep } | Op::ReduceSum { axes, keep } | Op::ReduceMax { axes, keep }) = op else {
        unreachable!()
    };
    want_float(operands)?;
    Ok(TensorType::f32(reduced(&operands[0].shape, axes, *keep)?))
}

pub(crate) fn normalize(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::Normalize { mean, std } = op else { unreachable!() };
    let x = operands[0];
    want_elem(x, &[Elem::U8], "the image")?;
    let channels = (x.shape.rank() == 4).then(|| x.shape.0[1].as_fixed()).flatten();
    ensure(channels == Some(mean.len()) && mean.len() == std.len(), || {
        format!("normalize with {} means and {} deviations of an image [{}]", mean.len(), std.len(), x.shape)
    })?;
    Ok(TensorType::f32(x.shape.clone()))
}

// ---- between floats and integers

pub(crate) fn quantize(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::Quantize { to } = op else { unreachable!() };
    want_float(operands)?;
    ensure(to.is_int(), || format!("quantize to {to}"))?;
    Ok(TensorType::new(*to, operands[0].shape.clone()))
}

pub(crate) fn dequantize(_: &Op, operands: &[&TensorType]) -> Inferred {
    want_elem(operands[0], INTS, "the operand")?;
    ensure(operands[0].quant.is_some(), || "the operand has no quantization".into())?;
    Ok(TensorType::f32(operands[0].shape.clone()))
}

// ---- integer

pub(crate) fn matmul_int(_: &Op, operands: &[&TensorType]) -> Inferred {
    want_elem(operands[0], NARROW, "a")?;
    want_elem(operands[1], NARROW, "b")?;
    if let Some(bias) = operands.get(2) {
        want_elem(bias, &[Elem::I32], "bias")?;
    }
    Ok(TensorType::new(Elem::I32, matmul_shape(operands)?))
}

pub(crate) fn conv_int(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntConv2d { strides, pads, dilations, groups, layout, .. } = op else { unreachable!() };
    want_elem(operands[0], NARROW, "x")?;
    want_elem(operands[1], NARROW, "w")?;
    if let Some(bias) = operands.get(2) {
        want_elem(bias, &[Elem::I32], "bias")?;
    }
    Ok(TensorType::new(
        Elem::I32,
        conv_shape(Conv { strides, pads, dilations, groups: *groups, layout: *layout }, operands)?,
    ))
}

pub(crate) fn requant(op: &Op, operands: &[&TensorType]) -> Inferred {
    let x = operands[0];
    let (axis, to) = match op {
        Op::IntRequant { axis, shift, to, .. } => {
            want_elem(x, INTS, "x")?;
            want_elem(operands[1], &[Elem::I32], "multiplier")?;
            ensure((1..=62).contains(shift), || format!("shift {shift} is outside 1..=62"))?;
            (*axis, *to)
        }
        Op::IntRequant15 { axis, pre_shift, post_shift, to, .. } => {
            want_elem(x, &[Elem::I32, Elem::I16], "x")?;
            want_elem(operands[1], &[Elem::I16], "multiplier")?;
            ensure(*pre_shift <= 31, || format!("pre_shift {pre_shift} is outside 0..=31"))?;
            ensure(*post_shift <= 15, || format!("post_shift {post_shift} is outside 0..=15"))?;
            (*axis, *to)
        }
        _ => unreachable!(),
    };
    ensure(INTS.contains(&to), || format!("cannot requantize to {to}"))?;
    check_axis(axis, &x.shape)?;
    want_channels(operands[1], x.shape.0[axis].as_fixed(), "multiplier")?;
    Ok(TensorType::new(to, x.shape.clone()))
}

pub(crate) fn add_int(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntAdd { to } = op else { unreachable!() };
    operands.iter().try_for_each(|x| want_elem(x, INTS, "an operand"))?;
    ensure(INTS.contains(to), || format!("cannot add in {to}"))?;
    Ok(TensorType::new(*to, broadcast(&operands[0].shape, &operands[1].shape)?))
}

pub(crate) fn mul_int(_: &Op, operands: &[&TensorType]) -> Inferred {
    operands.iter().try_for_each(|x| want_elem(x, INTS, "an operand"))?;
    Ok(TensorType::new(Elem::I32, broadcast(&operands[0].shape, &operands[1].shape)?))
}

pub(crate) fn extremum_int(_: &Op, operands: &[&TensorType]) -> Inferred {
    let [a, b] = [operands[0], operands[1]];
    operands.iter().try_for_each(|x| want_elem(x, INTS, "an operand"))?;
    ensure(a.elem == b.elem, || format!("operands of {} and {}", a.elem, b.elem))?;
    Ok(TensorType::new(a.elem, broadcast(&a.shape, &b.shape)?))
}

pub(crate) fn same_int(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntClamp { lo, hi } = op else { unreachable!() };
    want_elem(operands[0], INTS, "x")?;
    ensure(lo <= hi, || format!("clamp to the empty range {lo}..={hi}"))?;
    Ok(TensorType::new(operands[0].elem, operands[0].shape.clone()))
}

pub(crate) fn hardswish_int(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntHardSwish { shift } = op else { unreachable!() };
    want_elem(operands[0], &[Elem::I16], "x")?;
    ensure((-14..=14).contains(shift), || format!("shift {shift} is outside -14..=14"))?;
    Ok(TensorType::new(Elem::I16, operands[0].shape.clone()))
}

pub(crate) fn round_shift(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntRoundShift { shift } = op else { unreachable!() };
    want_elem(operands[0], &[Elem::I32], "x")?;
    ensure((1..=31).contains(shift), || format!("shift {shift} is outside 1..=31"))?;
    Ok(TensorType::new(Elem::I32, operands[0].shape.clone()))
}

pub(crate) fn table(_: &Op, operands: &[&TensorType]) -> Inferred {
    want_elem(operands[0], &[Elem::U8, Elem::I8], "x")?;
    want_elem(operands[1], INTS, "table")?;
    ensure(operands[1].shape.count() == Some(Dim::fixed(256)), || "a table has 256 entries".into())?;
    Ok(TensorType::new(operands[1].elem, operands[0].shape.clone()))
}

pub(crate) fn exp_int(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntExp { limit, multiplier, shift, table_bits } = op else { unreachable!() };
    want_elem(operands[0], &[Elem::I32, Elem::I16, Elem::I8], "x")?;
    want_elem(operands[1], &[Elem::I32], "table")?;
    let len = operands[1].shape.count().and_then(Dim::as_fixed).unwrap_or(0);
    ensure(len.is_power_of_two() && len <= 4096, || "the table's length is a power of two up to 4096".into())?;
    ensure(operands[0].shape.last_fixed().is_some(), || "exp wants a fixed last dimension".into())?;
    ensure((1..=22).contains(table_bits) && *shift <= 31, || "table_bits is 1..=22, shift 0..=31".into())?;
    let product = limit.checked_mul(*multiplier);
    ensure(*limit >= 0 && *multiplier > 0 && product.is_some_and(|p| p <= i32::MAX.into()), || {
        "limit * multiplier must fit i32".into()
    })?;
    Ok(TensorType::new(Elem::U8, operands[0].shape.clone()))
}

pub(crate) fn reduce_int(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntReduceSum { axis, keep } = op else { unreachable!() };
    want_elem(operands[0], NARROW, "x")?;
    Ok(TensorType::new(Elem::I32, reduced(&operands[0].shape, &[*axis], *keep)?))
}

pub(crate) fn reciprocal(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntReciprocal { numerator } = op else { unreachable!() };
    want_elem(operands[0], &[Elem::I32, Elem::I16], "x")?;
    ensure((1..1 << 62).contains(numerator), || format!("numerator {numerator} is outside 1..2^62"))?;
    Ok(TensorType::new(Elem::I32, operands[0].shape.clone()))
}

/// `q` [.., T, D], `k` [.., U, D], `v` [.., U, E] to [.., T, E].
fn linear_attention_shape(operands: &[&TensorType]) -> Result<Shape, String> {
    let [q, k, v] = [0, 1, 2].map(|i| &operands[i].shape);
    let misfit = || format!("linear attention of [{q}], [{k}] and [{v}]");
    ensure(q.rank() >= 2 && k.rank() == q.rank() && v.rank() == q.rank(), misfit)?;
    let (lead, last) = (q.rank() - 2, q.rank() - 1);
    ensure(q.0[..lead] == k.0[..lead] && q.0[..lead] == v.0[..lead], misfit)?;
    ensure(q.0[last] == k.0[last] && k.0[lead] == v.0[lead], misfit)?;
    ensure([q.0[lead], q.0[last], k.0[lead], v.0[last]].iter().all(|d| d.as_fixed().is_some()), misfit)?;
    let mut shape = q.clone();
    shape.0[last] = v.0[last];
    shape.count().ok_or_else(misfit)?;
    Ok(shape)
}

pub(crate) fn linear_attention_float(_: &Op, operands: &[&TensorType]) -> Inferred {
    want_float(operands)?;
    Ok(TensorType::f32(linear_attention_shape(operands)?))
}

/// Sizes and attributes at which no sum of `int.linear_attention` leaves its width: with `|v - v_zero| < 2^9` and `u8` q and k,
/// `|s| <= 2^9 n < 2^31` for fewer than 2^13 tokens, `|a| < 2^8 D 2^14`, and `|a| <= (2^9/2^h + 1/2) g`, so that `a*r` is
/// below `2^9 (numerator + g)`.
pub(crate) fn linear_attention_int(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntLinearAttention { q_zero, k_zero, v_zero, epsilon, numerator, shift, to, .. } = op else {
        unreachable!()
    };
    let shape = linear_attention_shape(operands)?;
    want_elem(operands[0], &[Elem::U8], "q")?;
    want_elem(operands[1], &[Elem::U8], "k")?;
    want_elem(operands[2], &[Elem::U8, Elem::I8], "v")?;
    want_elem(&TensorType::new(*to, shape.clone()), NARROW, "the result")?;
    let (tokens, depth) = (operands[1].shape.0[shape.rank() - 2].size, operands[1].shape.0[shape.rank() - 1].size);
    ensure((1..1 << 13).contains(&tokens), || format!("{tokens} tokens are outside 1..2^13"))?;
    ensure((1..=256).contains(&depth), || format!("rows of {depth} are outside 1..=256"))?;
    for zero in [q_zero, k_zero] {
        ensure((0..=255).contains(zero), || format!("zero point {zero} is outside 0..=255"))?;
    }
    ensure((-128..=255).contains(v_zero), || format!("zero point {v_zero} is outside -128..=255"))?;
    ensure((0..1 << 38).contains(epsilon), || format!("epsilon {epsilon} is outside 0..2^38"))?;
    ensure((1..1 << 53).contains(numerator), || format!("numerator {numerator} is outside 1..2^53"))?;
    ensure((24..=62).contains(shift), || format!("shift {shift} is outside 24..=62"))?;
    Ok(TensorType::new(*to, shape))
}

pub(crate) fn requant_rows(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntRequantRows { shift, to, .. } = op else { unreachable!() };
    want_elem(operands[0], &[Elem::I32, Elem::I16], "x")?;
    want_elem(operands[1], &[Elem::I32], "multiplier")?;
    ensure((1..=62).contains(shift), || format!("shift {shift} is outside 1..=62"))?;
    ensure(INTS.contains(to), || format!("cannot requantize to {to}"))?;
    let shape = broadcast(&operands[0].shape, &operands[1].shape)?;
    ensure(shape == operands[0].shape, || "multiplier does not broadcast to x".into())?;
    Ok(TensorType::new(*to, shape))
}

pub(crate) fn row_peak(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntRowPeak { shift } = op else { unreachable!() };
    ensure(*shift <= 15, || format!("shift {shift} is outside 0..=15"))?;
    elements_of_rows(operands)?;
    let last = operands[0].shape.rank().checked_sub(1).ok_or("a scalar has no rows")?;
    Ok(TensorType::new(Elem::I32, reduced(&operands[0].shape, &[last], true)?))
}

/// `i16`, or `u8` that stand for the entries of a table.
fn elements_of_rows(operands: &[&TensorType]) -> Result<(), String> {
    let Some(table) = operands.get(1) else { return want_elem(operands[0], &[Elem::I16], "x") };
    want_elem(operands[0], &[Elem::U8], "x")?;
    want_elem(table, &[Elem::I16], "table")?;
    ensure(table.shape.count() == Some(Dim::fixed(256)), || "a table has 256 entries".into())
}

pub(crate) fn row_codes(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntRowCodes { levels, zero_point, shift } = op else { unreachable!() };
    elements_of_rows(operands)?;
    ensure((1..=255).contains(levels), || format!("{levels} levels are outside 1..=255"))?;
    ensure(*shift <= 15, || format!("shift {shift} is outside 0..=15"))?;
    ensure((0..=255).contains(zero_point), || format!("zero point {zero_point} is outside 0..=255"))?;
    ensure(operands[0].shape.last_fixed().is_some(), || "rows want a fixed last dimension".into())?;
    Ok(TensorType::new(Elem::U8, operands[0].shape.clone()))
}

/// The longest row of an integer LayerNorm: a product with the number of its elements of 16 bits, less their sum, fits 32 bits.
pub const LONGEST_NORM: usize = 32768;

pub(crate) fn layernorm_int(op: &Op, operands: &[&TensorType]) -> Inferred {
    let (to, beta) = match op {
        Op::IntLayerNorm { guard, norm_bits, recip_bits, shift, to, .. } => {
            ensure(*guard <= 16 && *norm_bits <= 24 && (1..=30).contains(recip_bits) && *shift <= 31, || {
                "guard <= 16, norm_bits <= 24, recip_bits 1..=30, shift <= 31".into()
            })?;
            (*to, Elem::I32)
        }
        Op::IntShiftLayerNorm { shift, to, .. } => {
            ensure(*shift <= 62, || format!("shift {shift} is outside 0..=62"))?;
            (*to, Elem::I64)
        }
        _ => unreachable!(),
    };
    let x = operands[0];
    want_elem(x, NARROW, "x")?;
    want_elem(operands[1], &[Elem::I32], "gamma")?;
    want_elem(operands[2], &[beta], "beta")?;
    ensure(NARROW.contains(&to), || format!("cannot normalise to {to}"))?;
    let channels = x.shape.last_fixed();
    let fits = channels.is_some_and(|c| (1..=LONGEST_NORM).contains(&c));
    ensure(fits, || format!("the last dimension is 1..={LONGEST_NORM}"))?;
    want_channels(operands[1], channels, "gamma")?;
    want_channels(operands[2], channels, "beta")?;
    Ok(TensorType::new(to, x.shape.clone()))
}

fn want_shift_exp(one: i64, n: u32, bits: u32) -> Result<(), String> {
    ensure((1..=1 << 24).contains(&one) && n <= 30 && (2..=16).contains(&bits), || {
        "one is 1..=2^24, n <= 30, bits 2..=16".into()
    })?;
    ensure(one << n <= i64::from(i32::MAX), || "one << n must fit i32".into())
}

pub(crate) fn shiftmax(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntShiftmax { one, n, bits } = op else { unreachable!() };
    want_elem(operands[0], &[Elem::I8, Elem::I16, Elem::I32], "x")?;
    want_shift_exp(*one, *n, *bits)?;
    ensure(operands[0].shape.last_fixed().is_some(), || "shiftmax wants a fixed last dimension".into())?;
    Ok(TensorType::new(Elem::I16, operands[0].shape.clone()))
}

pub(crate) fn shift_gelu(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::IntShiftGelu { one, n, bits, .. } = op else { unreachable!() };
    want_elem(operands[0], NARROW, "x")?;
    want_shift_exp(*one, *n, *bits)?;
    ensure(one << (n + 1) <= i64::from(i32::MAX), || "2 * one << n must fit i32".into())?;
    Ok(TensorType::new(Elem::I32, operands[0].shape.clone()))
}

// ---- fused

pub(crate) fn fused_matmul(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::FusedMatMul { to, .. } = op else { unreachable!() };
    want_elem(operands[0], NARROW, "a")?;
    want_elem(operands[1], NARROW, "b")?;
    ensure(to.is_int(), || format!("a lane program cannot yield {to}"))?;
    Ok(TensorType::new(*to, matmul_shape(&operands[..2])?))
}

pub(crate) fn fused_conv(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::FusedConv2d { strides, pads, dilations, groups, layout, to, .. } = op else { unreachable!() };
    want_elem(operands[0], NARROW, "x")?;
    want_elem(operands[1], NARROW, "w")?;
    ensure(to.is_int(), || format!("a lane program cannot yield {to}"))?;
    Ok(TensorType::new(
        *to,
        conv_shape(Conv { strides, pads, dilations, groups: *groups, layout: *layout }, &operands[..2])?,
    ))
}

pub(crate) fn fused_map(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::FusedMap { shape, to, .. } = op else { unreachable!() };
    ensure(!operands.is_empty(), || "a map needs an operand".into())?;
    ensure(to.is_int() && shape.count().is_some(), || format!("a lane program cannot yield {to}"))?;
    Ok(TensorType::new(*to, shape.clone()))
}

pub(crate) fn fused_attention(op: &Op, operands: &[&TensorType]) -> Inferred {
    let operands: Vec<TensorType> = operands.iter().map(|&ty| ty.clone()).collect();
    unfold(op, &operands, |part, types| {
        let ty = part.infer(types).map_err(|e| format!("`{}` within: {e}", part.name()))?;
        Ok(TensorType::new(ty.elem, ty.shape))
    })
}
