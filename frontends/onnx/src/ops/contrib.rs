//! Float ops of `com.microsoft` that onnxruntime's optimizer and quantizer leave in a model, written out in ops of our own.

use vitc_ir::attr::GeluForm;
use vitc_ir::{Dim, Op, Shape, ValueId};

use super::Table;
use super::norm::{Norm, normalise};
use super::quantized::{At, read};
use crate::call::Call;
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[
    ("Attention", attention),
    ("BiasGelu", |c| biased_gelu(c, GeluForm::Erf)),
    ("FastGelu", |c| biased_gelu(c, GeluForm::Tanh)),
    ("FusedMatMul", fused_matmul),
    ("Gelu", |c| biased_gelu(c, GeluForm::Erf)),
    ("QAttention", quantized_attention),
    ("QuickGelu", quick_gelu),
    ("SkipLayerNormalization", skip_layer_norm),
    ("SkipSimplifiedLayerNormalization", skip_rms_norm),
];

/// GELU of the operand, with the bias that the second one may be.
fn biased_gelu(call: &mut Call<'_, '_>, form: GeluForm) -> Fallible<()> {
    let mut x = call.tensor(0)?;
    if let Some(bias) = call.optional(1)? {
        x = call.push(Op::Add {}, &[x, bias])?;
    }
    let value = call.push(Op::Gelu { form }, &[x])?;
    call.give_value(value);
    Ok(())
}

/// `x sigmoid(alpha x)`.
fn quick_gelu(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = call.tensor(0)?;
    let alpha = call.scalar(call.float_or("alpha", 1.702)?.into());
    let gate = call.push(Op::Mul {}, &[x, alpha])?;
    let gate = call.push(Op::Sigmoid {}, &[gate])?;
    let value = call.push(Op::Mul {}, &[x, gate])?;
    call.give_value(value);
    Ok(())
}

/// Operands: x, skip, gamma, beta, bias.
fn skip_layer_norm(call: &mut Call<'_, '_>) -> Fallible<()> {
    let beta = call.optional(3)?;
    let bias = call.optional(4)?;
    skip_norm(call, Norm::layer, beta, bias)
}

/// Operands: x, skip, gamma, bias.
fn skip_rms_norm(call: &mut Call<'_, '_>) -> Fallible<()> {
    let bias = call.optional(3)?;
    skip_norm(call, Norm::rms, None, bias)
}

/// The norm of `x + skip + bias`; the sum is the fourth output.
fn skip_norm(
    call: &mut Call<'_, '_>,
    norm: impl Fn(f32) -> Norm,
    beta: Option<ValueId>,
    bias: Option<ValueId>,
) -> Fallible<()> {
    let (x, skip, gamma) = (call.tensor(0)?, call.tensor(1)?, call.tensor(2)?);
    let mut sum = call.push(Op::Add {}, &[x, skip])?;
    if let Some(bias) = bias {
        sum = call.push(Op::Add {}, &[sum, bias])?;
    }
    let axis = call.shape_of(sum).rank().checked_sub(1).ok_or_else(|| invalid("there is no dimension"))?;
    let epsilon = call.float_or("epsilon", 1e-12)?;
    let value = normalise(call, sum, axis, Some(gamma), beta, norm(epsilon))?;
    call.give_value(value);
    call.outputs.extend([None, None]); // mean and deviation, for training
    call.give_value(sum);
    Ok(())
}

/// `alpha a b` of operands whose last two dimensions may be exchanged.
fn fused_matmul(call: &mut Call<'_, '_>) -> Fallible<()> {
    if call.int_or("transBatchA", 0)? != 0 || call.int_or("transBatchB", 0)? != 0 {
        return Err(unsupported("exchange of batch dimensions"));
    }
    let (a, b) = (exchanged(call, 0, "transA")?, exchanged(call, 1, "transB")?);
    let mut value = super::linear::matmul_of(call, a, b)?;
    let alpha = call.float_or("alpha", 1.0)?;
    if alpha != 1.0 {
        let alpha = call.scalar(alpha.into());
        value = call.push(Op::Mul {}, &[value, alpha])?;
    }
    call.give_value(value);
    Ok(())
}

fn exchanged(call: &mut Call<'_, '_>, i: usize, flag: &str) -> Fallible<ValueId> {
    let x = call.tensor(i)?;
    let rank = call.shape_of(x).rank();
    if call.int_or(flag, 0)? == 0 || rank < 2 {
        return Ok(x);
    }
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 1, rank - 2);
    call.transpose(x, perm)
}

fn attention(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (x, weights) = (call.tensor(0)?, call.tensor(1)?);
    let bias = call.optional(2)?;
    refuse_others(call, 3)?;
    attend(call, x, weights, bias)
}

/// Operands: integers of x, of the weights, float bias, both scales, mask, both zero points, past.
fn quantized_attention(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = read(call, At { x: 0, scale: Some(3), zero: 6, axis: -1 })?;
    let weights = read(call, At { x: 1, scale: Some(4), zero: 7, axis: -1 })?;
    let bias = call.optional(2)?;
    if call.name(5).is_some() {
        return Err(unsupported("a mask of attention"));
    }
    refuse_others(call, 8)?;
    attend(call, x, weights, bias)
}

/// Masks, past keys and biases of scores have no place in a Vision Transformer's encoder.
fn refuse_others(call: &Call<'_, '_>, from: usize) -> Fallible<()> {
    let plain = call.int_or("unidirectional", 0)? == 0 && call.int_or("do_rotary", 0)? == 0;
    if (from..call.node.input.len()).any(|i| call.name(i).is_some())
        || !plain
        || call.ints("qkv_hidden_sizes")?.is_some()
    {
        return Err(unsupported("attention with a mask, past keys or heads of several sizes"));
    }
    call.only_outputs(1)
}

/// Self-attention of `[batch, rows, columns]`, q, k and v being thirds of one product.
fn attend(call: &mut Call<'_, '_>, x: ValueId, weights: ValueId, bias: Option<ValueId>) -> Fallible<()> {
    let heads = usize::try_from(call.int_or("num_heads", 0)?).unwrap_or(0);
    let mut qkv = super::linear::matmul_of(call, x, weights)?;
    if let Some(bias) = bias {
        qkv = call.push(Op::Add {}, &[qkv, bias])?;
    }
    let shape = call.shape_of(qkv);
    let &[batch, rows, columns] = shape.0.as_slice() else {
        return Err(invalid("three dimensions are needed"));
    };
    let size = columns.as_fixed().filter(|c| heads > 0 && c.is_multiple_of(3 * heads)).map(|c| c / (3 * heads));
    let size = size.ok_or_else(|| invalid(format!("{heads} heads do not divide {columns} columns")))?;
    let third = |call: &mut Call<'_, '_>, part: usize| {
        let len = heads * size;
        let piece = call.push(Op::Slice { axis: 2, start: part * len, len, step: 1 }, &[qkv])?;
        let piece = call.reshape(piece, Shape(vec![batch, rows, heads.into(), size.into()]))?;
        call.transpose(piece, if part == 1 { vec![0, 2, 3, 1] } else { vec![0, 2, 1, 3] })
    };
    let (q, k, v) = (third(call, 0)?, third(call, 1)?, third(call, 2)?);
    let given = f64::from(call.float_or("scale", 0.0)?);
    let scale = if given == 0.0 { (size as f64).sqrt().recip() } else { given };
    let scores = call.push(Op::MatMul {}, &[q, k])?;
    let scale = call.scalar(scale);
    let scores = call.push(Op::Mul {}, &[scores, scale])?;
    let map = call.push(Op::Softmax {}, &[scores])?;
    let heads_out = call.push(Op::MatMul {}, &[map, v])?;
    let joined = call.transpose(heads_out, vec![0, 2, 1, 3])?;
    let value = call.reshape(joined, Shape(vec![batch, rows, Dim::fixed(heads * size)]))?;
    call.give_value(value);
    Ok(())
}
