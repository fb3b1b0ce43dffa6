//! Float ops, and the two between floats and integers.

use super::conv::{Conv, conv};
use super::tensor::{Data, Slice, View, with_ints};
use super::{Call, Channels, Evaluated, Fault, gemm, linear_attention, math, misplaced, movement, rows};
use crate::attr::GeluForm;
use crate::op::Op;
use crate::types::{Elem, Quant, Real};

pub(super) fn eval(call: &Call) -> Evaluated {
    match call.op {
        Op::MatMul {} => gemm::matmul(call.operands, call.shape),
        &Op::Conv2d { strides, pads, dilations, groups, layout } => {
            let attrs = Conv { strides, pads, dilations, groups, layout };
            conv(attrs, call.operands, call.shape)
        }
        Op::Add {} | Op::Sub {} | Op::Mul {} | Op::Div {} | Op::Pow {} | Op::Min {} | Op::Max {} => binary(call),
        Op::Select {} => select(call),
        Op::LayerNorm { epsilon, centred } => rows::layernorm(call, *epsilon, *centred),
        Op::LinearAttention { epsilon } => linear_attention::float(call, epsilon.0),
        Op::Softmax {} => rows::softmax(call.operands[0]),
        Op::RoundRows { lowest, step, levels, signed, codes } => {
            rows::round_rows(call.operands[0], [*lowest, *step], (*levels, *signed), codes)
        }
        Op::ReduceMean { axes, .. } => reduce(call.operands[0], axes, |row| math::sum(row) / row.len() as f32),
        Op::ReduceSum { axes, .. } => reduce(call.operands[0], axes, math::sum),
        Op::ReduceMax { axes, .. } => reduce(call.operands[0], axes, math::max),
        Op::Normalize { mean, std } => normalize(call.operands[0], mean, std),
        _ => unary(call),
    }
}

fn map(x: &[f32], f: impl Fn(f32) -> f32) -> Evaluated {
    Ok(Data::F32(x.iter().map(|&v| f(v)).collect()))
}

fn unary(call: &Call) -> Evaluated {
    let x = call.operands[0].f32()?;
    match call.op {
        Op::Neg {} => map(x, |v| -v),
        Op::Abs {} => map(x, f32::abs),
        Op::Sqrt {} => map(x, f32::sqrt),
        Op::Reciprocal {} => map(x, |v| 1.0 / v),
        Op::Exp {} => map(x, math::exp),
        Op::Log {} => map(x, f32::ln),
        Op::Cos {} => map(x, f32::cos),
        Op::Sin {} => map(x, f32::sin),
        Op::Erf {} => map(x, math::erf),
        Op::Tanh {} => map(x, f32::tanh),
        Op::Sigmoid {} => map(x, math::sigmoid),
        Op::Relu {} => map(x, |v| v.max(0.0)),
        Op::Clip { lo, hi } => {
            let (lo, hi) = (lo.0 as f32, hi.0 as f32);
            map(x, |v| v.max(lo).min(hi))
        }
        Op::Gelu { form: GeluForm::Erf } => map(x, math::gelu),
        Op::Gelu { form: GeluForm::Tanh } => map(x, math::gelu_tanh),
        Op::Silu {} => map(x, |v| v * math::sigmoid(v)),
        Op::HardSwish {} => map(x, |v| v * (v / 6.0 + 0.5).clamp(0.0, 1.0)),
        Op::HardSigmoid { alpha, beta } => {
            let (alpha, beta) = (alpha.0 as f32, beta.0 as f32);
            map(x, |v| (alpha * v + beta).clamp(0.0, 1.0))
        }
        _ => misplaced(call),
    }
}

fn binary(call: &Call) -> Evaluated {
    let (x, y) = (call.operands[0], call.operands[1]);
    let (a, b) = ((x.shape, x.f32()?), (y.shape, y.f32()?));
    let shape = call.shape;
    Ok(Data::F32(match call.op {
        Op::Add {} => zip(a, b, shape, |x, y| x + y),
        Op::Sub {} => zip(a, b, shape, |x, y| x - y),
        Op::Mul {} => zip(a, b, shape, |x, y| x * y),
        Op::Div {} => zip(a, b, shape, |x, y| x / y),
        Op::Pow {} if b.1 == [2.0] => zip(a, b, shape, |x, _| x * x),
        Op::Pow {} if b.1 == [0.5] => zip(a, b, shape, |x, _| x.sqrt()),
        Op::Pow {} => zip(a, b, shape, f32::powf),
        Op::Min {} => zip(a, b, shape, f32::min),
        Op::Max {} => zip(a, b, shape, f32::max),
        _ => return misplaced(call),
    }))
}

fn select(call: &Call) -> Evaluated {
    let &[c, a, b] = call.operands else { return misplaced(call) };
    let chosen = zip((c.shape, c.f32()?), (a.shape, a.f32()?), call.shape, |c, a| (c > 0.0).then_some(a));
    Ok(Data::F32(zip((call.shape, &chosen), (b.shape, b.f32()?), call.shape, |a, b| a.unwrap_or(b))))
}

/// A shape with its elements.
type Sized<'a, T> = (&'a [usize], &'a [T]);

/// `f` over two operands broadcast to `shape`.
pub(super) fn zip<A: Copy, B: Copy, R: Copy>(
    (a_shape, a): Sized<A>,
    (b_shape, b): Sized<B>,
    shape: &[usize],
    f: impl Fn(A, B) -> R + Copy,
) -> Vec<R> {
    let (a_strides, b_strides) = (broadcast_strides(a_shape, shape), broadcast_strides(b_shape, shape));
    let mut dims: Vec<(usize, usize, usize)> = Vec::new();
    for ((&size, a), b) in shape.iter().zip(a_strides).zip(b_strides).filter(|((size, _), _)| **size != 1) {
        match dims.last_mut() {
            Some(last) if last.1 == a * size && last.2 == b * size => *last = (last.0 * size, a, b),
            _ => dims.push((size, a, b)),
        }
    }
    let mut out = Vec::with_capacity(shape.iter().product());
    zip_walk(a, b, &dims, f, &mut out);
    out
}

fn zip_walk<A: Copy, B: Copy, R>(
    a: &[A],
    b: &[B],
    dims: &[(usize, usize, usize)],
    f: impl Fn(A, B) -> R + Copy,
    out: &mut Vec<R>,
) {
    match *dims {
        [] => out.push(f(a[0], b[0])),
        [(n, 0, _)] => {
            let x = a[0];
            out.extend(b[..n].iter().map(|&y| f(x, y)));
        }
        [(n, _, 0)] => {
            let y = b[0];
            out.extend(a[..n].iter().map(|&x| f(x, y)));
        }
        [(n, ..)] => out.extend(a[..n].iter().zip(&b[..n]).map(|(&x, &y)| f(x, y))),
        [(n, sa, sb), ref inner @ ..] => (0..n).for_each(|i| zip_walk(&a[i * sa..], &b[i * sb..], inner, f, out)),
    }
}

/// Strides of `from` broadcast to `to`: 0 along repeated dimensions.
pub(super) fn broadcast_strides(from: &[usize], to: &[usize]) -> Vec<usize> {
    let own = movement::strides(from);
    let added = to.len() - from.len();
    (0..to.len()).map(|i| i.checked_sub(added).filter(|&j| from[j] != 1).map_or(0, |j| own[j] as usize)).collect()
}

/// `f` over all elements along `axes`, for every index of the other dimensions.
fn reduce(x: View, axes: &[usize], f: impl Fn(&[f32]) -> f32) -> Evaluated {
    let moved = movement::bring_last(x, axes);
    let xs = match &moved {
        Some(Data::F32(v)) => v,
        _ => x.f32()?,
    };
    let len = axes.iter().map(|&a| x.shape[a]).product();
    Ok(Data::F32(xs.chunks_exact(len).map(f).collect()))
}

fn normalize(x: View, mean: &[Real], std: &[Real]) -> Evaluated {
    let Slice::U8(pixels) = x.data else { return Err(Fault::eval("an image is u8")) };
    let level = |c: usize, v: u8| ((f64::from(v) / 255.0 - mean[c].0) / std[c].0) as f32;
    let levels: Vec<[f32; 256]> = (0..mean.len()).map(|c| std::array::from_fn(|v| level(c, v as u8))).collect();
    let mut out = Vec::with_capacity(pixels.len());
    Channels::of(x.shape, 1).for_each(pixels, |c, plane| {
        let levels = &levels[c];
        out.extend(plane.iter().map(|&v| levels[usize::from(v)]));
    });
    Ok(Data::F32(out))
}

// ---- between floats and integers

pub(super) fn convert(call: &Call) -> Evaluated {
    match call.op {
        Op::Quantize { to } => quantize(call, *to),
        Op::Dequantize {} => dequantize(call),
        _ => misplaced(call),
    }
}

/// The quantization of a type with the channels it runs over, when it fits the shape.
fn checked_quant<'a>(quant: &'a Option<Quant>, shape: &[usize]) -> Result<(&'a Quant, Channels), Fault> {
    let quant = quant.as_ref().ok_or_else(|| Fault::eval("the type has no quantization"))?;
    let wanted = match quant.axis {
        None => Some(1),
        Some(axis) => shape.get(axis).copied(),
    };
    if wanted != Some(quant.scale.len()) {
        return Err(Fault::eval(format!("a quantization of {} scales does not fit {shape:?}", quant.scale.len())));
    }
    let whole = Channels { count: 1, inner: shape.iter().product() };
    Ok((quant, quant.axis.map_or(whole, |axis| Channels::of(shape, axis))))
}

fn quantize(call: &Call, to: Elem) -> Evaluated {
    let x = call.operands[0].f32()?;
    let (quant, channels) = checked_quant(&call.ty.quant, call.shape)?;
    macro_rules! quantized {
        ($variant:ident, $ty:ty, $one:ident) => {{
            let mut out: Vec<$ty> = Vec::with_capacity(x.len());
            channels.for_each(x, |c, chunk| {
                let (scale, zero) = (quant.scale_at(c) as f32, quant.zero_point);
                out.extend(chunk.iter().map(|&v| $one(v / scale, zero) as $ty));
            });
            Data::$variant(out)
        }};
    }
    let (lo, hi) = to.range().ok_or_else(|| Fault::eval("quantize to a float"))?;
    let small = |v: f32, zero: i32| quantize_small(v, zero, lo as i32, hi as i32);
    let any = |v: f32, zero: i32| (v.round_ties_even() as i64).saturating_add(zero.into()).clamp(lo, hi);
    let near = quant.zero_point.unsigned_abs() <= 1 << 16;
    Ok(match to {
        Elem::U8 if near => quantized!(U8, u8, small),
        Elem::I8 if near => quantized!(I8, i8, small),
        Elem::I16 if near => quantized!(I16, i16, small),
        Elem::U8 => quantized!(U8, u8, any),
        Elem::I8 => quantized!(I8, i8, any),
        Elem::I16 => quantized!(I16, i16, any),
        Elem::I32 => quantized!(I32, i32, any),
        _ => quantized!(I64, i64, any),
    })
}

/// The general rule for at most 16 bits and a zero point of at most 2^16: what is clamped first would saturate anyway.
#[inline(always)]
fn quantize_small(v: f32, zero: i32, lo: i32, hi: i32) -> i32 {
    const FAR: f32 = 1_048_576.0;
    let v = if v < FAR {
        v
    } else if v >= FAR {
        FAR
    } else {
        0.0
    };
    let v = if v > -FAR { v } else { -FAR };
    let rounded = (v + math::ROUNDER).to_bits().wrapping_sub(math::ROUNDER.to_bits()) as i32;
    (rounded + zero).clamp(lo, hi)
}

#[allow(clippy::useless_conversion)] // the macro's i64 arm
fn dequantize(call: &Call) -> Evaluated {
    let x = call.operands[0];
    let (quant, channels) = checked_quant(&call.types[0].quant, x.shape)?;
    let mut out = Vec::with_capacity(x.len());
    with_ints!(x.data, xs => channels.for_each(xs, |c, chunk| {
        let (scale, zero) = (quant.scale_at(c), i64::from(quant.zero_point));
        out.extend(chunk.iter().map(|&q| (scale * (i64::from(q).wrapping_sub(zero)) as f64) as f32));
    }))?;
    Ok(Data::F32(out))
}
