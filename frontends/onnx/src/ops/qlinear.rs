//! Ops on integers with their scales beside them. Each is the float op between `dequantize` and `quantize`, which is what
//! it means up to rounding; so one mechanism lowers both ways of writing a quantized model.
//!
//! What is quantized image by image (`DynamicQuantizeLinear`) becomes a float operand that calibration gives a range.

use vitc_ir::{Op, ValueId};

use super::Table;
use super::activation::leaky_relu_of;
use super::layout::concat_of;
use super::linear::{conv_of, gemm_of, matmul_of};
use super::norm::softmax_of;
use super::pool::average_of;
use super::quantized::{At, read, read_bias, write};
use crate::call::Call;
use crate::known::{Kind, Known};
use crate::problem::{Fallible, invalid, unsupported};

/// Of the default domain.
pub(super) const OPS: Table = &[
    ("ConvInteger", conv_integer),
    ("DynamicQuantizeLinear", dynamic_quantize),
    ("MatMulInteger", matmul_integer),
    ("QLinearConv", qlinear_conv),
    ("QLinearMatMul", qlinear_matmul),
];

/// Of `com.microsoft`.
pub(super) const CONTRIB: Table = &[
    ("DynamicQuantizeMatMul", dynamic_matmul),
    ("MatMulIntegerToFloat", matmul_integer_to_float),
    ("QGemm", qgemm),
    ("QLinearAdd", |c| binary(c, Op::Add {})),
    ("QLinearAveragePool", |c| pool(c, average_of)),
    ("QLinearConcat", concat),
    ("QLinearGlobalAveragePool", |c| pool(c, global_average)),
    ("QLinearLeakyRelu", |c| unary(c, leaky_relu_of)),
    ("QLinearMul", |c| binary(c, Op::Mul {})),
    ("QLinearReduceMean", reduce_mean),
    ("QLinearSigmoid", |c| unary(c, |c, x| c.push(Op::Sigmoid {}, &[x]))),
    ("QLinearSoftmax", softmax),
];

/// The result as integers of the grid that two operands give.
fn give(call: &mut Call<'_, '_>, value: ValueId, scale: usize, zero: usize) -> Fallible<()> {
    let integers = write(call, value, scale, zero)?;
    call.give_value(integers);
    Ok(())
}

fn qlinear_matmul(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (a, b) = (read(call, At::row(0))?, read(call, At::row(3))?);
    let value = matmul_of(call, a, b)?;
    give(call, value, 6, 7)
}

fn qlinear_conv(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (x, w) = (read(call, At::row(0))?, read(call, At::row(3).along(0))?);
    let bias = match call.name(8) {
        Some(_) => Some(read_bias(call, 8, [1, 4], 1.0)?),
        None => None,
    };
    let value = conv_of(call, x, w, bias)?;
    give(call, value, 6, 7)
}

fn qgemm(call: &mut Call<'_, '_>) -> Fallible<()> {
    let columns = if call.int_or("transB", 0)? == 0 { 1 } else { 0 };
    let (a, b) = (read(call, At::row(0))?, read(call, At::row(3).along(columns))?);
    let alpha = call.float_or("alpha", 1.0)?.into();
    let bias = match call.name(6) {
        Some(_) => Some(read_bias(call, 6, [1, 4], alpha)?),
        None => None,
    };
    let value = gemm_of(call, a, b, bias)?;
    match call.name(7) {
        Some(_) => give(call, value, 7, 8),
        None => {
            call.give_value(value);
            Ok(())
        }
    }
}

fn binary(call: &mut Call<'_, '_>, op: Op) -> Fallible<()> {
    let operands = [read(call, At::row(0))?, read(call, At::row(3))?];
    let value = call.push(op, &operands)?;
    give(call, value, 6, 7)
}

fn unary(call: &mut Call<'_, '_>, f: fn(&mut Call<'_, '_>, ValueId) -> Fallible<ValueId>) -> Fallible<()> {
    let x = read(call, At::row(0))?;
    let value = f(call, x)?;
    give(call, value, 3, 4)
}

fn softmax(call: &mut Call<'_, '_>) -> Fallible<()> {
    if call.int_or("opset", 13)? < 13 {
        return Err(unsupported("softmax of an opset before 13").help("convert the model to opset 13 or later first"));
    }
    unary(call, |call, x| softmax_of(call, x, false))
}

fn global_average(call: &mut Call<'_, '_>, x: ValueId) -> Fallible<ValueId> {
    let rank = call.shape_of(x).rank();
    if rank < 3 {
        return Err(invalid("there are no spatial dimensions"));
    }
    call.push(Op::ReduceMean { axes: (2..rank).collect(), keep: true }, &[x])
}

fn pool(call: &mut Call<'_, '_>, f: fn(&mut Call<'_, '_>, ValueId) -> Fallible<ValueId>) -> Fallible<()> {
    if call.int_or("channels_last", 0)? != 0 {
        return Err(unsupported("channels_last=1").help("quantize the model before its layout is optimized"));
    }
    unary(call, f)
}

fn reduce_mean(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = read(call, At::row(0))?;
    let rank = call.shape_of(x).rank();
    let axes = match call.ints("axes")? {
        Some(axes) => call.axes(axes, rank)?,
        None => (0..rank).collect(),
    };
    let keep = call.int_or("keepdims", 1)? != 0;
    let value = call.push(Op::ReduceMean { axes, keep }, &[x])?;
    give(call, value, 3, 4)
}

/// Scale and zero point of the result come first, then three operands for each part.
fn concat(call: &mut Call<'_, '_>) -> Fallible<()> {
    let operands = call.node.input.len();
    if operands < 5 || operands % 3 != 2 {
        return Err(invalid(format!("{operands} operands; two and three for each part are needed")));
    }
    let parts: Vec<ValueId> = (2..operands).step_by(3).map(|i| read(call, At::row(i))).collect::<Fallible<_>>()?;
    let axis = call.int("axis")?.ok_or_else(|| invalid("attribute `axis` is missing"))?;
    let rank = parts.first().map_or(0, |&p| call.shape_of(p).rank());
    let axis = call.axis(axis, rank)?;
    let value = concat_of(call, parts, axis)?;
    give(call, value, 0, 1)
}

/// The integers of `x` stand for `x` itself, at scale 1 and zero point 0: as if the grid were infinitely fine. What is
/// computed from them and multiplied by the scale is then what the float model computes, and calibration finds the range
/// of `x` as it does there.
fn dynamic_quantize(call: &mut Call<'_, '_>) -> Fallible<()> {
    let value = call.tensor(0)?;
    call.give(crate::import::Slot { value: Some(value), dynamic: true, ..Default::default() });
    call.give_known(Known::scalar(Kind::F32, 1.0));
    call.give_known(Known::scalar(Kind::Int, 0.0));
    Ok(())
}

fn matmul_integer(call: &mut Call<'_, '_>) -> Fallible<()> {
    let a = read(call, At { x: 0, scale: None, zero: 2, axis: -2 })?;
    let b = read(call, At { x: 1, scale: None, zero: 3, axis: -1 })?;
    let value = matmul_of(call, a, b)?;
    call.give_value(value);
    Ok(())
}

fn conv_integer(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = read(call, At { x: 0, scale: None, zero: 2, axis: 1 })?;
    let w = read(call, At { x: 1, scale: None, zero: 3, axis: 0 })?;
    let value = conv_of(call, x, w, None)?;
    call.give_value(value);
    Ok(())
}

fn matmul_integer_to_float(call: &mut Call<'_, '_>) -> Fallible<()> {
    let a = read(call, At { x: 0, scale: Some(2), zero: 4, axis: -2 })?;
    let b = read(call, At { x: 1, scale: Some(3), zero: 5, axis: -1 })?;
    give_product(call, a, b, 6)
}

fn dynamic_matmul(call: &mut Call<'_, '_>) -> Fallible<()> {
    let a = call.tensor(0)?;
    let b = read(call, At { x: 1, scale: Some(2), zero: 3, axis: -1 })?;
    give_product(call, a, b, 4)
}

/// A product with the float bias that operand `i` may be.
fn give_product(call: &mut Call<'_, '_>, a: ValueId, b: ValueId, i: usize) -> Fallible<()> {
    let mut value = matmul_of(call, a, b)?;
    if let Some(bias) = call.optional(i)? {
        value = call.push(Op::Add {}, &[value, bias])?;
    }
    call.give_value(value);
    Ok(())
}
