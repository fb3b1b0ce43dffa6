//! Integer ops, element by element and as products. Values are computed in `i64`; what must fit `i32` is checked.

use super::conv::{Conv, conv_int};
use super::float::zip;
use super::tensor::{Data, Slice, View, same_elem};
use super::{Call, Channels, Evaluated, Fault, gemm, linear_attention, misplaced, movement, rows};
use crate::op::Op;
use crate::types::Elem;

pub(super) fn eval(call: &Call) -> Evaluated {
    let x = call.operands[0];
    match call.op {
        Op::IntMatMul { .. } | Op::IntConv2d { .. } => product(call),
        Op::IntRequant { .. } | Op::IntRequant15 { .. } => requant(call),
        Op::IntRequantRows { shift, zero_point, to } => requant_rows(call, *shift, *zero_point, *to),
        Op::IntAdd { to } => add(call, *to),
        Op::IntMin {} => Ok(Data::narrow(x.elem(), pairs(call, i32::min)?)),
        Op::IntMax {} => Ok(Data::narrow(x.elem(), pairs(call, i32::max)?)),
        Op::IntMul { a_zero, b_zero } => mul(call, *a_zero, *b_zero),
        Op::IntRoundShift { shift } => {
            let sum = |&v: &i32| fit(i64::from(v) + (1 << (shift - 1)), "the sum before the shift");
            Ok(Data::I32(x.i32()?.iter().map(|v| Ok(sum(v)? >> shift)).collect::<Result<_, Fault>>()?))
        }
        Op::IntClamp { lo, hi } => {
            Ok(Data::from_ints(x.elem(), x.i32()?.iter().map(|&v| i64::from(v).clamp(*lo, *hi))))
        }
        Op::IntHardSwish { shift } => {
            Ok(Data::narrow(Elem::I16, x.i32()?.iter().map(|&v| hardswish(v, *shift)).collect()))
        }
        Op::IntTable {} => table(x, call.operands[1]),
        Op::IntReduceSum { axis, .. } => reduce_sum(x, *axis),
        Op::IntLinearAttention { .. } => linear_attention::int(call),
        Op::IntReciprocal { numerator } => reciprocal(x, *numerator),
        Op::IntShiftGelu { x_zero, one, n, bits } => {
            let exp = rows::ShiftExp { one: *one, n: *n };
            let values = x.i32()?;
            Ok(Data::I32(values.iter().map(|&v| exp.gelu(v, *x_zero, *bits)).collect::<Result<_, _>>()?))
        }
        _ => rows::eval(call),
    }
}

/// `v` as `i32`, or the error that it does not fit.
pub(super) fn fit(v: i64, what: &str) -> Result<i32, Fault> {
    i32::try_from(v).map_err(|_| Fault::overflow(format!("{what} is {v}, which does not fit i32")))
}

/// The range of an integer type of at most 32 bits.
pub(super) fn range(elem: Elem) -> Result<(i64, i64), Fault> {
    elem.range().filter(|_| elem != Elem::I64).ok_or_else(|| Fault::eval(format!("cannot yield {elem}")))
}

/// The accumulators of a product, as `int.matmul`, `int.conv2d` and the fused forms share them.
pub(super) fn accumulators(call: &Call, bias: Option<&[i32]>) -> Result<Vec<i32>, Fault> {
    let (a, b) = (&call.operands[0], &call.operands[1]);
    match call.op {
        Op::IntMatMul { a_zero, b_zero } | Op::FusedMatMul { a_zero, b_zero, .. } => {
            gemm::matmul_int(a, b, bias, [*a_zero, *b_zero], call.shape)
        }
        &Op::IntConv2d { strides, pads, dilations, groups, layout, x_zero }
        | &Op::FusedConv2d { strides, pads, dilations, groups, layout, x_zero, .. } => {
            let attrs = Conv { strides, pads, dilations, groups, layout };
            conv_int(attrs, a, b, bias, x_zero, call.shape)
        }
        _ => Err(Fault::eval(format!("`{}` is no product", call.op.name()))),
    }
}

fn product(call: &Call) -> Evaluated {
    let bias = call.operands.get(2).map(View::i32).transpose()?;
    accumulators(call, bias.as_deref()).map(Data::I32)
}

fn requant(call: &Call) -> Evaluated {
    let (x, m) = (call.operands[0].i32()?, call.operands[1].i32()?);
    match *call.op {
        Op::IntRequant { axis, x_zero, shift, zero_point, to } => {
            let (lo, hi) = range(to)?;
            let values = by_channel(&x, &m, Channels::of(call.shape, axis), |v, m| {
                let product = i64::from(v).checked_sub(x_zero).and_then(|v| v.checked_mul(m.into()));
                let rounded = product.and_then(|p| round_shift(p, shift));
                let y = rounded.ok_or_else(|| Fault::overflow(format!("{v} * {m} does not fit i64")))?;
                Ok(y.saturating_add(zero_point).clamp(lo, hi) as i32)
            })?;
            Ok(Data::narrow(to, values))
        }
        Op::IntRequant15 { axis, pre_shift, post_shift, zero_point, to } => {
            let (lo, hi) = range(to)?;
            let half = |shift: u32| if shift == 0 { 0 } else { 1i64 << (shift - 1) };
            let values = by_channel(&x, &m, Channels::of(call.shape, axis), |v, m| {
                let sum = fit(i64::from(v) + half(pre_shift), "the sum before the first shift")?;
                let t = i64::from((sum >> pre_shift).clamp(i16::MIN.into(), i16::MAX.into()));
                let y = (((t * i64::from(m) + (1 << 14)) >> 15) + half(post_shift)) >> post_shift;
                Ok(y.saturating_add(zero_point).clamp(lo, hi) as i32)
            })?;
            Ok(Data::narrow(to, values))
        }
        _ => misplaced(call),
    }
}

/// `x / 2^shift` rounded half up; `None` when the sum before the shift leaves `i64`. `shift` is at least 1.
fn round_shift(x: i64, shift: u32) -> Option<i64> {
    Some(x.checked_add(1 << (shift - 1))? >> shift)
}

/// `f(element, multiplier of its channel)`; a single multiplier serves all channels.
fn by_channel(
    x: &[i32],
    multiplier: &[i32],
    channels: Channels,
    f: impl Fn(i32, i32) -> Result<i32, Fault>,
) -> Result<Vec<i32>, Fault> {
    if let [one] = multiplier {
        return x.iter().map(|&v| f(v, *one)).collect();
    }
    let mut out = Vec::with_capacity(x.len());
    if channels.inner == 1 {
        for row in x.chunks_exact(multiplier.len()) {
            for (&v, &m) in row.iter().zip(multiplier) {
                out.push(f(v, m)?);
            }
        }
        return Ok(out);
    }
    for (i, chunk) in x.chunks_exact(channels.inner).enumerate() {
        let m = multiplier[i % channels.count];
        for &v in chunk {
            out.push(f(v, m)?);
        }
    }
    Ok(out)
}

fn requant_rows(call: &Call, shift: u32, zero_point: i64, to: Elem) -> Evaluated {
    let (lo, hi) = range(to)?;
    let one = |x: i32, m: i32| {
        let y = round_shift(i64::from(x) * i64::from(m), shift)?;
        Some(y.saturating_add(zero_point).clamp(lo, hi) as i32)
    };
    let values = pairs(call, one)?.into_iter().collect::<Option<_>>();
    Ok(Data::narrow(to, values.ok_or_else(|| Fault::overflow("a product does not fit i64"))?))
}

/// `f` over the two operands, broadcast.
fn pairs<R: Copy>(call: &Call, f: impl Fn(i32, i32) -> R + Copy) -> Result<Vec<R>, Fault> {
    let (x, y) = (call.operands[0], call.operands[1]);
    Ok(zip((x.shape, &x.i32()?), (y.shape, &y.i32()?), call.shape, f))
}

fn add(call: &Call, to: Elem) -> Evaluated {
    let (lo, hi) = range(to)?;
    Ok(Data::narrow(to, pairs(call, |x, y| (i64::from(x) + i64::from(y)).clamp(lo, hi) as i32)?))
}

/// Saturation keeps a product outside `i32` outside it, for zero points of any size.
fn mul(call: &Call, a_zero: i64, b_zero: i64) -> Evaluated {
    let difference = |x: i32, zero: i64| i64::from(x).saturating_sub(zero);
    let products = pairs(call, |x, y| difference(x, a_zero).saturating_mul(difference(y, b_zero)))?;
    Ok(Data::I32(products.into_iter().map(|p| fit(p, "a product")).collect::<Result<_, _>>()?))
}

/// One element of `int.hardswish`. The gate lies in 0..2^15, so the product fits.
fn hardswish(x: i32, shift: i64) -> i32 {
    let gate = if shift < 0 {
        (x >> -shift) + (1 << 14)
    } else {
        let three = 1i32 << (14 - shift);
        (x.clamp(-three, three - 1) + three) << shift
    };
    (x * gate + (1 << 14)) >> 15
}

fn table(x: View, table: View) -> Evaluated {
    let index: Vec<usize> = match x.data {
        Slice::U8(xs) => xs.iter().map(|&v| v.into()).collect(),
        Slice::I8(xs) => xs.iter().map(|&v| (i32::from(v) + 128) as usize).collect(),
        _ => return Err(Fault::eval("a table is indexed by 8 bits")),
    };
    Ok(same_elem!(table.data, entries => index.into_iter().map(|i| entries[i]).collect()))
}

fn reduce_sum(x: View, axis: usize) -> Evaluated {
    let moved = movement::bring_last(x, &[axis]);
    let values = match &moved {
        Some(data) => View { shape: x.shape, data: data.slice() }.i32()?,
        None => x.i32()?,
    };
    let sums = values.chunks_exact(x.shape[axis]).map(|row| fit(row.iter().map(|&v| i64::from(v)).sum(), "a sum"));
    Ok(Data::I32(sums.collect::<Result<_, _>>()?))
}

fn reciprocal(x: View, numerator: i64) -> Evaluated {
    let one = |&v: &i32| {
        let divisor = i64::from(v).abs().max(1);
        let quotient = (numerator + divisor / 2) / divisor;
        fit(if v < 0 { -quotient } else { quotient }, "a reciprocal")
    };
    Ok(Data::I32(x.i32()?.iter().map(one).collect::<Result<_, _>>()?))
}
