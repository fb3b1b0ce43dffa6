//! Attention written out as products and a softmax, and the rotation of queries and keys by position.

use vitc_ir::{Dim, Op, Shape, ValueId};

use super::index::slice_axis;
use super::{Table, scatter};
use crate::call::Call;
use crate::known::{Kind, Known};
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[("Attention", attention), ("RotaryEmbedding", rotary)];

/// Which intermediate result the fourth output is.
const AFTER_MASK: i64 = 1;
const AFTER_CAP: i64 = 2;
const AFTER_SOFTMAX: i64 = 3;

fn attention(call: &mut Call<'_, '_>) -> Fallible<()> {
    if call.name(6).is_some() {
        return Err(unsupported("nonpad_kv_seqlen").help("export the model without a key-value cache"));
    }
    let window = |name| Ok(call.int_or(name, -1)? != -1);
    if window("left_window_size")? || window("right_window_size")? {
        return Err(unsupported("a sliding window"));
    }
    let flat = call.shape(0)?.rank() == 3;
    let q = heads(call, 0, "q_num_heads")?;
    let (k, v) = (heads(call, 1, "kv_num_heads")?, heads(call, 2, "kv_num_heads")?);
    let past = call.optional(4)?.map(|past| call.shape_of(past));
    let (k, v) = (behind(call, 4, k)?, behind(call, 5, v)?);
    let count = |call: &Call<'_, '_>, x| call.shape_of(x).0.get(1).copied().and_then(Dim::as_fixed);
    let (q_heads, kv_heads) = (count(call, q), count(call, k));
    let repeats = match (q_heads, kv_heads) {
        (Some(q), Some(kv)) if kv > 0 && q.is_multiple_of(kv) => q / kv,
        _ => return Err(invalid("the heads of the keys do not divide those of the queries")),
    };
    let (each_k, each_v) = (repeated(call, k, repeats)?, repeated(call, v, repeats)?);
    let past = past.and_then(|s| s.0.get(2).copied()).map_or(Some(0), Dim::as_fixed).unwrap_or(0);
    let (weights, shown) = weights(call, q, each_k, past)?;
    let y = call.push(Op::MatMul {}, &[weights, each_v])?;
    let y = if flat { joined(call, y)? } else { y };
    for value in [y, k, v, shown] {
        call.give_value(value);
    }
    Ok(())
}

/// Operand `i` as [batch, heads, tokens, size].
fn heads(call: &mut Call<'_, '_>, i: usize, attr: &str) -> Fallible<ValueId> {
    let x = call.tensor(i)?;
    let shape = call.shape_of(x);
    match *shape.0.as_slice() {
        [_, _, _, _] => Ok(x),
        [batch, tokens, width] => {
            let heads = usize::try_from(call.int_or(attr, 0)?).ok().filter(|&h| h > 0);
            let heads = Dim::fixed(heads.ok_or_else(|| invalid(format!("`{attr}` is missing")))?);
            let size = width.div_exact(heads).ok_or_else(|| invalid(format!("`{attr}` does not divide {width}")))?;
            let split = call.reshape(x, Shape(vec![batch, tokens, heads, size]))?;
            call.transpose(split, vec![0, 2, 1, 3])
        }
        _ => Err(invalid("queries, keys and values have 3 or 4 dimensions")),
    }
}

/// The reverse of [`heads`] for 3 dimensions.
fn joined(call: &mut Call<'_, '_>, y: ValueId) -> Fallible<ValueId> {
    let y = call.transpose(y, vec![0, 2, 1, 3])?;
    let &[batch, tokens, heads, size] = call.shape_of(y).0.as_slice() else { return Err(invalid("rank")) };
    let width = heads.times(size).ok_or_else(|| invalid("too many elements"))?;
    call.reshape(y, Shape(vec![batch, tokens, width]))
}

/// `x` behind the tokens of operand `i`, when that is given.
fn behind(call: &mut Call<'_, '_>, i: usize, x: ValueId) -> Fallible<ValueId> {
    match call.optional(i)? {
        Some(past) => call.push(Op::Concat { axis: 2 }, &[past, x]),
        None => Ok(x),
    }
}

/// Each head `times` times, one after another.
fn repeated(call: &mut Call<'_, '_>, x: ValueId, times: usize) -> Fallible<ValueId> {
    if times == 1 {
        return Ok(x);
    }
    let &[batch, heads, tokens, size] = call.shape_of(x).0.as_slice() else { return Err(invalid("rank")) };
    let lifted = call.reshape(x, Shape(vec![batch, heads, Dim::fixed(1), tokens, size]))?;
    let shape = Shape(vec![batch, heads, Dim::fixed(times), tokens, size]);
    let wide = call.push(Op::Expand { shape }, &[lifted])?;
    let heads = heads.times(Dim::fixed(times)).ok_or_else(|| invalid("too many elements"))?;
    call.reshape(wide, Shape(vec![batch, heads, tokens, size]))
}

/// Softmax of the scaled products, and what the fourth output shows.
fn weights(call: &mut Call<'_, '_>, q: ValueId, k: ValueId, past: usize) -> Fallible<(ValueId, ValueId)> {
    let size = call.shape_of(q).last_fixed().ok_or_else(|| unsupported("the size of a head is not fixed"))?;
    let scale = match call.float_or("scale", 0.0)? {
        0.0 => 1.0 / (size as f64).sqrt(),
        scale => scale.into(),
    };
    let mode = call.int_or("qk_matmul_output_mode", 0)?;
    let factor = call.scalar(scale);
    let q = call.push(Op::Mul {}, &[q, factor])?;
    let k = call.transpose(k, vec![0, 1, 3, 2])?;
    let mut x = call.push(Op::MatMul {}, &[q, k])?;
    let mut shown = x;
    let causal = call.int_or("is_causal", 0)? != 0;
    let cap = f64::from(call.float_or("softcap", 0.0)?);
    if cap != 0.0 && (causal || call.name(3).is_some()) {
        return Err(unsupported("softcap with a mask: versions of ONNX differ in which comes first"));
    }
    if call.name(3).is_some() {
        let mask = mask(call)?;
        x = call.push(Op::Add {}, &[x, mask])?;
    }
    if causal {
        let mask = causal_mask(call, x, past)?;
        x = call.push(Op::Add {}, &[x, mask])?;
    }
    shown = if mode == AFTER_MASK { x } else { shown };
    x = capped(call, x, cap)?;
    shown = if mode == AFTER_CAP { x } else { shown };
    x = call.push(Op::Softmax {}, &[x])?;
    Ok((x, if mode == AFTER_SOFTMAX { x } else { shown }))
}

fn capped(call: &mut Call<'_, '_>, x: ValueId, cap: f64) -> Fallible<ValueId> {
    if cap == 0.0 {
        return Ok(x);
    }
    let (share, cap) = (call.scalar(1.0 / cap), call.scalar(cap));
    let x = call.push(Op::Mul {}, &[x, share])?;
    let x = call.push(Op::Tanh {}, &[x])?;
    call.push(Op::Mul {}, &[x, cap])
}

/// What the mask adds: booleans say who is seen.
fn mask(call: &mut Call<'_, '_>) -> Fallible<ValueId> {
    match call.known(3)?.filter(|m| m.kind == Kind::Bool) {
        None => call.tensor(3),
        Some(seen) => {
            call.room(seen.data.len())?;
            let bias = |&seen: &f64| if seen == 0.0 { f64::NEG_INFINITY } else { 0.0 };
            let data = seen.numbers()?.iter().map(|v| bias(v).into()).collect();
            call.constant("mask", &Known { kind: Kind::F32, dims: seen.dims.clone(), data })
        }
    }
}

/// A query sees the keys up to its own position, behind `past` others.
fn causal_mask(call: &mut Call<'_, '_>, x: ValueId, past: usize) -> Fallible<ValueId> {
    let shape = call.shape_of(x);
    let &[.., queries, keys] = shape.0.as_slice() else { return Err(invalid("rank")) };
    let (Some(queries), Some(keys)) = (queries.as_fixed(), keys.as_fixed()) else {
        return Err(unsupported("the number of tokens depends on the batch"));
    };
    let count = queries.checked_mul(keys).ok_or_else(|| invalid("too many elements"))?;
    super::map::room(call, x, count)?;
    let seen = |i: usize| if i % keys <= i / keys + past { 0.0 } else { f32::NEG_INFINITY };
    let bias: Vec<f32> = (0..count).map(seen).collect();
    Ok(call.floats("causal", &[queries, keys], &bias))
}

/// Pairs of elements of a head turned by an angle for each token: `(a cos - b sin, a sin + b cos)`.
fn rotary(call: &mut Call<'_, '_>) -> Fallible<()> {
    let flat = call.shape(0)?.rank() == 3;
    let x = heads(call, 0, "num_heads")?;
    let size = call.shape_of(x).last_fixed().ok_or_else(|| unsupported("the size of a head is not fixed"))?;
    let turned = match call.int_or("rotary_embedding_dim", 0)? {
        0 => Some(size),
        some => usize::try_from(some).ok().filter(|&t| t <= size),
    };
    let turned = turned.filter(|t| t.is_multiple_of(2) && *t > 0);
    let turned = turned.ok_or_else(|| invalid("`rotary_embedding_dim` does not fit the heads"))?;
    let (cos, sin) = (angles(call, 1)?, angles(call, 2)?);
    let interleaved = call.int_or("interleaved", 0)? != 0;
    let (half, step) = (turned / 2, if interleaved { 2 } else { 1 });
    let a = slice_axis(call, x, 3, 0, half, step)?;
    let b = slice_axis(call, x, 3, if interleaved { 1 } else { half }, half, step)?;
    let product = |call: &mut Call<'_, '_>, x, y| call.push(Op::Mul {}, &[x, y]);
    let (a_cos, b_sin) = (product(call, a, cos)?, product(call, b, sin)?);
    let (a_sin, b_cos) = (product(call, a, sin)?, product(call, b, cos)?);
    let real = call.push(Op::Sub {}, &[a_cos, b_sin])?;
    let imaginary = call.push(Op::Add {}, &[a_sin, b_cos])?;
    let mut y = if interleaved {
        paired(call, real, imaginary)?
    } else {
        call.push(Op::Concat { axis: 3 }, &[real, imaginary])?
    };
    if turned < size {
        let rest = slice_axis(call, x, 3, turned, size - turned, 1)?;
        y = call.push(Op::Concat { axis: 3 }, &[y, rest])?;
    }
    let value = if flat { joined(call, y)? } else { y };
    call.give_value(value);
    Ok(())
}

/// Cosines or sines as [batch, 1, tokens, pairs]: a table with the positions to take, or those of each token.
fn angles(call: &mut Call<'_, '_>, i: usize) -> Fallible<ValueId> {
    let mut table = call.tensor(i)?;
    if call.name(3).is_some() {
        let ids = call.content(3, "the positions")?;
        let shape = call.shape_of(table);
        let &[rows, pairs] = shape.0.as_slice() else { return Err(invalid("the table must have 2 dimensions")) };
        let rows = rows.as_fixed().ok_or_else(|| unsupported("a table that depends on the batch"))?;
        let index: Option<Vec<usize>> = ids.integers()?.into_iter().map(|id| scatter::resolve(id, rows)).collect();
        let index = index.ok_or_else(|| invalid("a position is outside the table"))?;
        let taken = call.push(Op::Gather { axis: 0, index }, &[table])?;
        let dims = ids.dims.iter().map(|&d| Dim::fixed(d)).chain([pairs]).collect();
        table = call.reshape(taken, Shape(dims))?;
    }
    let &[batch, tokens, pairs] = call.shape_of(table).0.as_slice() else {
        return Err(invalid("the angles must have 3 dimensions"));
    };
    call.reshape(table, Shape(vec![batch, Dim::fixed(1), tokens, pairs]))
}

/// Elements of both in turn, along the last dimension.
fn paired(call: &mut Call<'_, '_>, a: ValueId, b: ValueId) -> Fallible<ValueId> {
    let shape = call.shape_of(a);
    let single = Shape([shape.0.clone(), vec![Dim::fixed(1)]].concat());
    let (a, b) = (call.reshape(a, single.clone())?, call.reshape(b, single)?);
    let pairs = call.push(Op::Concat { axis: shape.rank() }, &[a, b])?;
    let mut joined = shape;
    if let Some(last) = joined.0.last_mut() {
        *last = last.times(Dim::fixed(2)).ok_or_else(|| invalid("too many elements"))?;
    }
    call.reshape(pairs, joined)
}
