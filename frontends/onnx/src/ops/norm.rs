//! Normalisations and softmax.

use vitc_ir::{Dim, Op, Real, Shape, ValueId};

use super::Table;
use crate::call::Call;
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[
    ("BatchNormalization", batch_norm),
    ("GroupNormalization", group_norm),
    ("InstanceNormalization", instance_norm),
    ("LayerNormalization", layer_norm),
    ("LpNormalization", lp_norm),
    ("LogSoftmax", |c| softmax(c, true)),
    ("RMSNormalization", rms_norm),
    // what onnxruntime calls it, in the domain of ONNX
    ("SimplifiedLayerNormalization", rms_norm),
    ("Softmax", |c| softmax(c, false)),
];

fn fixed_count(dims: &[Dim]) -> Fallible<usize> {
    let count = dims.iter().try_fold(1usize, |acc, d| acc.checked_mul(d.as_fixed()?));
    count.ok_or_else(|| unsupported("a normalised dimension depends on the batch"))
}

/// What a normalisation does besides scale and bias.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether the mean is subtracted.
    pub centred: bool,
}

impl Norm {
    /// Of a layer normalisation.
    pub(super) fn layer(epsilon: f32) -> Norm {
        Norm { epsilon, centred: true }
    }

    /// Of a normalisation by the root mean square.
    pub(super) fn rms(epsilon: f32) -> Norm {
        Norm { epsilon, centred: false }
    }
}

/// `layernorm` over the dimensions of `x` from `axis` on, with the scale and bias that are there.
pub(super) fn normalise(
    call: &mut Call<'_, '_>,
    x: ValueId,
    axis: usize,
    scale: Option<ValueId>,
    bias: Option<ValueId>,
    Norm { epsilon, centred }: Norm,
) -> Fallible<ValueId> {
    let shape = call.shape_of(x);
    let (outer, inner) = shape.0.split_at_checked(axis).ok_or_else(|| invalid("axis"))?;
    let channels = fixed_count(inner)?;
    let rows = Shape([outer, &[Dim::fixed(channels)]].concat());
    let gamma = match scale {
        Some(scale) => whole(call, scale, inner)?,
        None => call.filled("gamma", 1.0, &[1])?,
    };
    let beta = match bias {
        Some(bias) => whole(call, bias, inner)?,
        None => call.filled("beta", 0.0, &[1])?,
    };
    let x = call.reshape(x, rows)?;
    let result = call.push(Op::LayerNorm { epsilon: Real(epsilon.into()), centred }, &[x, gamma, beta])?;
    call.reshape(result, shape)
}

/// A scale or bias with a value for each normalised element, or one for all.
fn whole(call: &mut Call<'_, '_>, v: ValueId, inner: &[Dim]) -> Fallible<ValueId> {
    let (own, all) = (call.shape_of(v), Shape(inner.to_vec()));
    if own.count() == all.count() || own.count() == Some(Dim::fixed(1)) || own.rank() > all.rank() {
        return Ok(v);
    }
    call.push(Op::Expand { shape: all }, &[v])
}

fn layer_norm(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (x, scale, bias) = (call.tensor(0)?, call.tensor(1)?, call.optional(2)?);
    let axis = call.axis(call.int_or("axis", -1)?, call.shape_of(x).rank())?;
    let epsilon = call.float_or("epsilon", 1e-5)?;
    let value = normalise(call, x, axis, Some(scale), bias, Norm::layer(epsilon))?;
    call.give_value(value);
    if call.only_outputs(1).is_err() {
        moments(call, x, axis, epsilon)?;
    }
    Ok(())
}

/// The mean and the reciprocal deviation over the dimensions from `axis` on, as outputs.
fn moments(call: &mut Call<'_, '_>, x: ValueId, axis: usize, epsilon: f32) -> Fallible<()> {
    let axes: Vec<usize> = (axis..call.shape_of(x).rank()).collect();
    let mean = call.push(Op::ReduceMean { axes: axes.clone(), keep: true }, &[x])?;
    let distance = call.push(Op::Sub {}, &[x, mean])?;
    let deviation = root_mean_square(call, distance, axes, epsilon)?;
    let share = call.push(Op::Reciprocal {}, &[deviation])?;
    call.give_value(mean);
    call.give_value(share);
    Ok(())
}

/// `sqrt(mean(x^2) + epsilon)` over these axes, which stay as 1.
fn root_mean_square(call: &mut Call<'_, '_>, x: ValueId, axes: Vec<usize>, epsilon: f32) -> Fallible<ValueId> {
    let epsilon = call.scalar(epsilon.into());
    let square = call.push(Op::Mul {}, &[x, x])?;
    let mean = call.push(Op::ReduceMean { axes, keep: true }, &[square])?;
    let mean = call.push(Op::Add {}, &[mean, epsilon])?;
    call.push(Op::Sqrt {}, &[mean])
}

/// `x / sqrt(mean(x^2) + epsilon) * scale` over the dimensions from `axis` on.
fn rms_norm(call: &mut Call<'_, '_>) -> Fallible<()> {
    call.only_outputs(1)?;
    let (x, scale) = (call.tensor(0)?, call.tensor(1)?);
    let axis = call.axis(call.int_or("axis", -1)?, call.shape_of(x).rank())?;
    let norm = Norm::rms(call.float_or("epsilon", 1e-5)?);
    let value = normalise(call, x, axis, Some(scale), None, norm)?;
    call.give_value(value);
    Ok(())
}

/// `x` divided by its norm along an axis.
fn lp_norm(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = call.tensor(0)?;
    let axis = call.axis(call.int_or("axis", -1)?, call.shape_of(x).rank())?;
    let sum = |call: &mut Call<'_, '_>, x| call.push(Op::ReduceSum { axes: vec![axis], keep: true }, &[x]);
    let norm = match call.int_or("p", 2)? {
        1 => {
            let size = call.push(Op::Abs {}, &[x])?;
            sum(call, size)?
        }
        2 => {
            let square = call.push(Op::Mul {}, &[x, x])?;
            let sum = sum(call, square)?;
            call.push(Op::Sqrt {}, &[sum])?
        }
        other => return Err(unsupported(format!("p={other}"))),
    };
    let value = call.push(Op::Div {}, &[x, norm])?;
    call.give_value(value);
    Ok(())
}

fn softmax(call: &mut Call<'_, '_>, log: bool) -> Fallible<()> {
    let x = call.tensor(0)?;
    let value = softmax_of(call, x, log)?;
    call.give_value(value);
    Ok(())
}

/// The softmax of a value along the axis of the node, or its logarithm.
pub(super) fn softmax_of(call: &mut Call<'_, '_>, x: ValueId, log: bool) -> Fallible<ValueId> {
    let shape = call.shape_of(x);
    let rank = shape.rank();
    let old = call.importer.opset < 13;
    let axis = call.axis(call.int_or("axis", if old { 1 } else { -1 })?, rank)?;
    if old && axis + 1 != rank {
        return flat_softmax(call, x, axis, log);
    }
    if shape.0.get(axis).is_none_or(|d| d.batch) {
        return Err(unsupported("softmax over the batch"));
    }
    // Other axes trade places with the last.
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(axis, rank - 1);
    let x = call.transpose(x, perm.clone())?;
    let y = softmax_of_rows(call, x, log)?;
    call.transpose(y, perm)
}

/// Softmax over the last dimension, or its logarithm: `d - ln sum exp d` for the distances `d` from the largest element, a sum of
/// which one element is 1. A logarithm of small weights would need more digits than they have.
fn softmax_of_rows(call: &mut Call<'_, '_>, x: ValueId, log: bool) -> Fallible<ValueId> {
    if !log {
        return call.push(Op::Softmax {}, &[x]);
    }
    let shape = call.shape_of(x);
    let last = shape.rank().checked_sub(1).ok_or_else(|| invalid("axis"))?;
    let most = call.push(Op::ReduceMax { axes: vec![last], keep: true }, &[x])?;
    let below = call.push(Op::Sub {}, &[x, most])?;
    let power = call.push(Op::Exp {}, &[below])?;
    let sum = call.push(Op::ReduceSum { axes: vec![last], keep: true }, &[power])?;
    let elements = shape.last_fixed().ok_or_else(|| unsupported("softmax over the batch"))?;
    let sum = call.push(Op::Clip { lo: 1.0.into(), hi: (elements as f64).into() }, &[sum])?;
    let log = call.push(Op::Log {}, &[sum])?;
    // added, as what an output may be is a sum
    let minus = call.push(Op::Neg {}, &[log])?;
    call.push(Op::Add {}, &[below, minus])
}

/// Softmax as it was before opset 13: over all dimensions from `axis` on together.
fn flat_softmax(call: &mut Call<'_, '_>, x: ValueId, axis: usize, log: bool) -> Fallible<ValueId> {
    let shape = call.shape_of(x);
    let (outer, inner) = shape.0.split_at_checked(axis).ok_or_else(|| invalid("axis"))?;
    let flat = Shape([outer, &[Dim::fixed(fixed_count(inner)?)]].concat());
    let rows = call.reshape(x, flat)?;
    let y = softmax_of_rows(call, rows, log)?;
    call.reshape(y, shape)
}

/// A vector over the channels, dimension 1 of a value of `rank` dimensions.
fn along_channels(call: &mut Call<'_, '_>, v: ValueId, rank: usize) -> Fallible<ValueId> {
    let channels = call.shape_of(v).count().ok_or_else(|| invalid("too many channels"))?;
    let ones = vec![Dim::fixed(1); rank.saturating_sub(2)];
    call.reshape(v, Shape([vec![channels], ones].concat()))
}

/// `(x - mean) / sqrt(var + epsilon) * scale + bias` with constants, as one product and one sum.
fn batch_norm(call: &mut Call<'_, '_>) -> Fallible<()> {
    call.only_outputs(1)?;
    if call.int_or("training_mode", 0)? != 0 {
        // Standardised weights are written as a batch of one that is normalised by itself.
        if call.shape(0)?.0.first() == Some(&Dim::fixed(1)) {
            return instance_norm(call);
        }
        return Err(unsupported("training_mode=1").help("export the model in evaluation mode (model.eval())"));
    }
    if call.int_or("spatial", 1)? == 0 {
        return Err(unsupported("spatial=0"));
    }
    let x = call.tensor(0)?;
    let (scale, bias) = (call.tensor(1)?, call.tensor(2)?);
    let (mean, variance) = (call.tensor(3)?, call.tensor(4)?);
    let epsilon = call.scalar(call.float_or("epsilon", 1e-5)?.into());
    let variance = call.push(Op::Add {}, &[variance, epsilon])?;
    let deviation = call.push(Op::Sqrt {}, &[variance])?;
    let factor = call.push(Op::Div {}, &[scale, deviation])?;
    let shift = call.push(Op::Mul {}, &[mean, factor])?;
    let shift = call.push(Op::Sub {}, &[bias, shift])?;
    let value = affine(call, x, factor, shift)?;
    call.give_value(value);
    Ok(())
}

/// `x * scale[c] + bias[c]`.
fn affine(call: &mut Call<'_, '_>, x: ValueId, scale: ValueId, bias: ValueId) -> Fallible<ValueId> {
    let rank = call.shape_of(x).rank();
    let scale = along_channels(call, scale, rank)?;
    let bias = along_channels(call, bias, rank)?;
    let x = call.push(Op::Mul {}, &[x, scale])?;
    call.push(Op::Add {}, &[x, bias])
}

fn instance_norm(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (x, scale, bias) = (call.tensor(0)?, call.tensor(1)?, call.tensor(2)?);
    let epsilon = call.float_or("epsilon", 1e-5)?;
    let normal = normalise(call, x, 2, None, None, Norm::layer(epsilon))?;
    let value = affine(call, normal, scale, bias)?;
    call.give_value(value);
    Ok(())
}

fn group_norm(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (x, scale, bias) = (call.tensor(0)?, call.tensor(1)?, call.tensor(2)?);
    let shape = call.shape_of(x);
    let &[n, channels, ref spatial @ ..] = shape.0.as_slice() else {
        return Err(invalid("at least 2 dimensions are needed"));
    };
    let groups = usize::try_from(call.int_or("num_groups", 0)?).unwrap_or(0);
    let channels = channels.as_fixed().filter(|c| groups > 0 && c.is_multiple_of(groups));
    let channels = channels.ok_or_else(|| invalid("`num_groups` does not divide the channels"))?;
    let inner = fixed_count(spatial)?.checked_mul(channels / groups).ok_or_else(|| invalid("too many elements"))?;
    let grouped = call.reshape(x, Shape(vec![n, groups.into(), inner.into()]))?;
    let epsilon = call.float_or("epsilon", 1e-5)?;
    let normal = normalise(call, grouped, 2, None, None, Norm::layer(epsilon))?;
    // From opset 21 on there is one scale a channel; before, one a group.
    let per_group = call.shape_of(scale).count() == Some(Dim::fixed(groups)) && channels != groups;
    let value = if per_group {
        let scaled = affine(call, normal, scale, bias)?;
        call.reshape(scaled, shape.clone())?
    } else {
        let back = call.reshape(normal, shape.clone())?;
        affine(call, back, scale, bias)?
    };
    call.give_value(value);
    Ok(())
}
