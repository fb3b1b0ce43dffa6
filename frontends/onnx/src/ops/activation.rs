//! Element-by-element functions of one operand.

use vitc_ir::attr::GeluForm;
use vitc_ir::{Op, Real, ValueId};

use super::Table;
use crate::call::{Call, SMALL};
use crate::import::shorten;
use crate::known::{Known, Linear};
use crate::problem::{Fallible, unsupported};

pub(super) const OPS: Table = &[
    ("Abs", |c| unary(c, Op::Abs {}, |v| number(v, f64::abs))),
    ("Celu", celu),
    ("Ceil", |c| rounding(c, f64::ceil)),
    ("Clip", clip),
    ("Cos", |c| unary(c, Op::Cos {}, |v| number(v, f64::cos))),
    ("Elu", |c| elu(c, 1.0)),
    ("Erf", |c| float(c, Op::Erf {})),
    ("Exp", |c| unary(c, Op::Exp {}, |v| number(v, f64::exp))),
    ("Floor", |c| rounding(c, f64::floor)),
    ("Gelu", gelu),
    ("HardSigmoid", hard_sigmoid),
    ("HardSwish", |c| float(c, Op::HardSwish {})),
    ("LeakyRelu", leaky_relu),
    ("Log", |c| unary(c, Op::Log {}, |v| number(v, f64::ln))),
    ("Mish", mish),
    ("Neg", |c| unary(c, Op::Neg {}, |v| Some(v.scale(-1.0)))),
    ("PRelu", prelu),
    ("Reciprocal", |c| unary(c, Op::Reciprocal {}, |v| number(v, f64::recip))),
    ("Relu", |c| float(c, Op::Relu {})),
    ("Round", |c| rounding(c, f64::round_ties_even)),
    ("Selu", |c| elu(c, SELU_ALPHA)),
    ("Sigmoid", |c| float(c, Op::Sigmoid {})),
    ("Sign", |c| rounding(c, |v| if v == 0.0 { 0.0 } else { v.signum() })),
    ("Sin", |c| unary(c, Op::Sin {}, |v| number(v, f64::sin))),
    ("Softplus", softplus),
    ("Softsign", softsign),
    ("Sqrt", |c| unary(c, Op::Sqrt {}, |v| number(v, f64::sqrt))),
    ("Swish", swish),
    ("Tanh", |c| float(c, Op::Tanh {})),
    ("ThresholdedRelu", thresholded_relu),
];

fn number(v: Linear, f: fn(f64) -> f64) -> Option<Linear> {
    v.fixed().map(|v| f(v).into())
}

fn float(call: &mut Call<'_, '_>, op: Op) -> Fallible<()> {
    let x = call.tensor(0)?;
    let value = call.push(op, &[x])?;
    call.give_value(value);
    Ok(())
}

fn unary(call: &mut Call<'_, '_>, op: Op, f: fn(Linear) -> Option<Linear>) -> Fallible<()> {
    match call.known(0)? {
        Some(x) if x.data.len() <= SMALL || !x.kind.is_float() => evaluate(call, &x, f),
        _ => float(call, op),
    }
}

fn evaluate(call: &mut Call<'_, '_>, x: &Known, f: impl Fn(Linear) -> Option<Linear>) -> Fallible<()> {
    call.room(x.data.len())?;
    let data = x.data.iter().map(|&v| f(v).map(|v| x.kind.round(v))).collect::<Option<Vec<_>>>();
    let data = data.ok_or_else(|| unsupported("the result is no linear function of the batch"))?;
    call.give_known(Known { kind: x.kind, dims: x.dims.clone(), data });
    Ok(())
}

fn rounding(call: &mut Call<'_, '_>, f: fn(f64) -> f64) -> Fallible<()> {
    match call.known(0)? {
        Some(x) => evaluate(call, &x, |v| v.round(f)),
        None => Err(unsupported("rounding of computed floats is not supported")),
    }
}

fn gelu(call: &mut Call<'_, '_>) -> Fallible<()> {
    let form = match call.word_or("approximate", "none")? {
        "none" => GeluForm::Erf,
        "tanh" => GeluForm::Tanh,
        other => return Err(unsupported(format!("approximate={:?}", shorten(other)))),
    };
    float(call, Op::Gelu { form })
}

fn hard_sigmoid(call: &mut Call<'_, '_>) -> Fallible<()> {
    let alpha = Real(call.float_or("alpha", 0.2)?.into());
    let beta = Real(call.float_or("beta", 0.5)?.into());
    float(call, Op::HardSigmoid { alpha, beta })
}

/// `max(x, 0) + alpha min(x, 0)`, as `max(x, alpha x)` where that is the same.
fn leaky_relu(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = call.tensor(0)?;
    let value = leaky_relu_of(call, x)?;
    call.give_value(value);
    Ok(())
}

/// The leaky ReLU of a value with the slope of the node.
pub(super) fn leaky_relu_of(call: &mut Call<'_, '_>, x: ValueId) -> Fallible<ValueId> {
    let alpha = f64::from(call.float_or("alpha", 0.01)?);
    let factor = call.scalar(alpha);
    let scaled = call.push(Op::Mul {}, &[x, factor])?;
    let larger = if alpha <= 1.0 { Op::Max {} } else { Op::Min {} };
    call.push(larger, &[x, scaled])
}

/// `gamma (max(x, 0) + alpha (exp(min(x, 0)) - 1))`; only `Selu` has a `gamma`.
fn elu(call: &mut Call<'_, '_>, alpha: f32) -> Fallible<()> {
    let alpha = f64::from(call.float_or("alpha", alpha)?);
    let gamma = if call.node.op_type == "Selu" { call.float_or("gamma", SELU_GAMMA)? } else { 1.0 };
    let x = call.tensor(0)?;
    let value = elu_of(call, x, 1.0, alpha)?;
    let value = if gamma == 1.0 {
        value
    } else {
        let gamma = call.scalar(gamma.into());
        call.push(Op::Mul {}, &[value, gamma])?
    };
    call.give_value(value);
    Ok(())
}

const SELU_ALPHA: f32 = 1.673_263_2;
const SELU_GAMMA: f32 = 1.050_701;

/// `max(x, 0) + alpha (exp(min(x, 0) / width) - 1)`.
fn elu_of(call: &mut Call<'_, '_>, x: ValueId, width: f64, alpha: f64) -> Fallible<ValueId> {
    let (zero, minus_one, alpha) = (call.scalar(0.0), call.scalar(-1.0), call.scalar(alpha));
    let mut below = call.push(Op::Min {}, &[x, zero])?;
    if width != 1.0 {
        let share = call.scalar(1.0 / width);
        below = call.push(Op::Mul {}, &[below, share])?;
    }
    let power = call.push(Op::Exp {}, &[below])?;
    let tail = call.push(Op::Add {}, &[power, minus_one])?;
    let tail = call.push(Op::Mul {}, &[tail, alpha])?;
    let above = call.push(Op::Relu {}, &[x])?;
    call.push(Op::Add {}, &[above, tail])
}

/// `max(x, 0) + min(alpha (exp(x / alpha) - 1), 0)`, which is an ELU of width `alpha` for positive `alpha`.
fn celu(call: &mut Call<'_, '_>) -> Fallible<()> {
    let alpha = f64::from(call.float_or("alpha", 1.0)?);
    if alpha <= 0.0 {
        return Err(unsupported(format!("alpha={alpha}")));
    }
    let x = call.tensor(0)?;
    let value = elu_of(call, x, alpha, alpha)?;
    call.give_value(value);
    Ok(())
}

/// `max(x, 0) + slope min(x, 0)`.
fn prelu(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (x, slope) = (call.tensor(0)?, call.tensor(1)?);
    let zero = call.scalar(0.0);
    let below = call.push(Op::Min {}, &[x, zero])?;
    let below = call.push(Op::Mul {}, &[below, slope])?;
    let above = call.push(Op::Relu {}, &[x])?;
    let value = call.push(Op::Add {}, &[above, below])?;
    call.give_value(value);
    Ok(())
}

/// `x / (1 + |x|)`.
fn softsign(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = call.tensor(0)?;
    let one = call.scalar(1.0);
    let size = call.push(Op::Abs {}, &[x])?;
    let size = call.push(Op::Add {}, &[size, one])?;
    let value = call.push(Op::Div {}, &[x, size])?;
    call.give_value(value);
    Ok(())
}

/// `x sigmoid(alpha x)`.
fn swish(call: &mut Call<'_, '_>) -> Fallible<()> {
    let alpha = call.float_or("alpha", 1.0)?;
    if alpha == 1.0 {
        return float(call, Op::Silu {});
    }
    let x = call.tensor(0)?;
    let factor = call.scalar(alpha.into());
    let gate = call.push(Op::Mul {}, &[x, factor])?;
    let gate = call.push(Op::Sigmoid {}, &[gate])?;
    let value = call.push(Op::Mul {}, &[x, gate])?;
    call.give_value(value);
    Ok(())
}

/// `x` where it is larger than `alpha`, else 0. The step is a ramp so steep that no two floats lie on it.
fn thresholded_relu(call: &mut Call<'_, '_>) -> Fallible<()> {
    let alpha = f64::from(call.float_or("alpha", 1.0)?);
    let x = call.tensor(0)?;
    let (threshold, steep) = (call.scalar(alpha), call.scalar(2f64.powi(126)));
    let above = call.push(Op::Sub {}, &[x, threshold])?;
    let above = call.push(Op::Mul {}, &[above, steep])?;
    let step = call.push(Op::Clip { lo: Real(0.0), hi: Real(1.0) }, &[above])?;
    let value = call.push(Op::Mul {}, &[x, step])?;
    call.give_value(value);
    Ok(())
}

fn softplus(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = call.tensor(0)?;
    let value = softplus_of(call, x)?;
    call.give_value(value);
    Ok(())
}

/// `ln(1 + exp x)` as `max(x, 0) + ln(1 + exp(-|x|))`, which no `x` overflows.
fn softplus_of(call: &mut Call<'_, '_>, x: ValueId) -> Fallible<ValueId> {
    let one = call.scalar(1.0);
    let size = call.push(Op::Abs {}, &[x])?;
    let size = call.push(Op::Neg {}, &[size])?;
    let power = call.push(Op::Exp {}, &[size])?;
    let sum = call.push(Op::Add {}, &[power, one])?;
    let tail = call.push(Op::Log {}, &[sum])?;
    let above = call.push(Op::Relu {}, &[x])?;
    call.push(Op::Add {}, &[above, tail])
}

/// `x tanh(softplus x)`.
fn mish(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = call.tensor(0)?;
    let gate = softplus_of(call, x)?;
    let gate = call.push(Op::Tanh {}, &[gate])?;
    let value = call.push(Op::Mul {}, &[x, gate])?;
    call.give_value(value);
    Ok(())
}

fn clip(call: &mut Call<'_, '_>) -> Fallible<()> {
    if let Some(x) = call.known(0)? {
        let (lo, hi) = (bound(call, 1, "min", f64::NEG_INFINITY)?, bound(call, 2, "max", f64::INFINITY)?);
        return evaluate(call, &x, |v| v.fixed().map(|v| v.max(lo).min(hi).into()));
    }
    let (least, most) = (f64::from(f32::MIN), f64::from(f32::MAX));
    let (lo, hi) = (bound(call, 1, "min", least)?.max(least), bound(call, 2, "max", most)?.min(most));
    let x: ValueId = call.tensor(0)?;
    let value = match (lo == least, hi == most) {
        (true, true) => x,
        (false, true) if lo == 0.0 => call.push(Op::Relu {}, &[x])?,
        // ONNX: an empty range yields its maximum.
        _ => call.push(Op::Clip { lo: Real(lo.min(hi)), hi: Real(hi) }, &[x])?,
    };
    call.give_value(value);
    Ok(())
}

/// A bound of `Clip`: an operand from opset 11 on, an attribute before.
fn bound(call: &mut Call<'_, '_>, i: usize, attr: &str, default: f64) -> Fallible<f64> {
    let bound = call.number_or_attr(i, attr, "a bound")?.unwrap_or(default);
    if bound.is_nan() { Err(unsupported("a bound that is not one number")) } else { Ok(bound) }
}
