//! Movement: elements of any type, rearranged.

use super::tensor::{Data, Slice, View, same_elem};
use super::{Call, Evaluated, Fault, misplaced};
use crate::op::Op;
use crate::types::Real;

pub(super) fn eval(call: &Call) -> Evaluated {
    let x = call.operands[0];
    match call.op {
        Op::Reshape { .. } => Ok(same_elem!(x.data, xs => xs.to_vec())),
        Op::Transpose { perm } => Ok(transpose(x, perm)),
        Op::Slice { axis, start, len, step } => Ok(slice(x, *axis, *start, *len, *step)),
        Op::Concat { axis } => concat(call, *axis),
        Op::Expand { .. } => Ok(expand(x, call.shape)),
        Op::Gather { axis, index } => Ok(gather(x, *axis, index)),
        Op::Pad { before, value, .. } => pad(x, call.shape, before, *value),
        _ => misplaced(call),
    }
}

/// Row-major strides of a shape.
pub(super) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i] as isize;
    }
    strides
}

/// The elements at `base + sum(index * stride)` for every index below the sizes of `dims`, outermost first.
fn strided<T: Copy>(src: &[T], base: usize, dims: &[(usize, isize)]) -> Vec<T> {
    let mut merged: Vec<(usize, isize)> = Vec::with_capacity(dims.len());
    for &(size, stride) in dims.iter().filter(|(size, _)| *size != 1) {
        match merged.last_mut() {
            Some(last) if last.1 == stride * size as isize => *last = (last.0 * size, stride),
            _ => merged.push((size, stride)),
        }
    }
    let mut out = Vec::with_capacity(dims.iter().map(|d| d.0).product());
    walk(src, base as isize, &merged, &mut out);
    out
}

fn walk<T: Copy>(src: &[T], base: isize, dims: &[(usize, isize)], out: &mut Vec<T>) {
    match *dims {
        [] => out.push(src[base as usize]),
        [(size, 1)] => out.extend_from_slice(&src[base as usize..base as usize + size]),
        [(size, 0)] => out.extend(std::iter::repeat_n(src[base as usize], size)),
        [(size, stride)] => out.extend((0..size as isize).map(|i| src[(base + i * stride) as usize])),
        [(size, stride), ref inner @ ..] => {
            for i in 0..size as isize {
                walk(src, base + i * stride, inner, out);
            }
        }
    }
}

pub(super) fn transpose(x: View, perm: &[usize]) -> Data {
    let strides = strides(x.shape);
    let dims: Vec<_> = perm.iter().map(|&p| (x.shape[p], strides[p])).collect();
    same_elem!(x.data, xs => strided(xs, 0, &dims))
}

/// `x` with `axes` (in their order in `x`) after all others; `None` when they are there already.
pub(super) fn bring_last(x: View, axes: &[usize]) -> Option<Data> {
    let (last, kept): (Vec<usize>, Vec<usize>) = (0..x.shape.len()).partition(|i| axes.contains(i));
    let order: Vec<usize> = kept.into_iter().chain(last).collect();
    (!order.is_sorted()).then(|| transpose(x, &order))
}

fn slice(x: View, axis: usize, start: usize, len: usize, step: i64) -> Data {
    let strides = strides(x.shape);
    let mut dims: Vec<_> = x.shape.iter().copied().zip(strides.iter().copied()).collect();
    dims[axis] = (len, strides[axis] * step as isize);
    same_elem!(x.data, xs => strided(xs, start * strides[axis] as usize, &dims))
}

pub(super) fn expand(x: View, shape: &[usize]) -> Data {
    let added = shape.len() - x.shape.len();
    let strides = strides(x.shape);
    let dims: Vec<_> = shape
        .iter()
        .enumerate()
        .map(|(i, &size)| match i.checked_sub(added) {
            Some(j) if x.shape[j] == size => (size, strides[j]),
            _ => (size, 0),
        })
        .collect();
    same_elem!(x.data, xs => strided(xs, 0, &dims))
}

fn gather(x: View, axis: usize, index: &[usize]) -> Data {
    let inner: usize = x.shape[axis + 1..].iter().product();
    let block = x.shape[axis] * inner;
    same_elem!(x.data, xs => {
        let blocks = xs.chunks_exact(block);
        blocks.flat_map(|b| index.iter().flat_map(move |&i| b[i * inner..(i + 1) * inner].iter().copied())).collect()
    })
}

fn concat(call: &Call, axis: usize) -> Evaluated {
    let outer: usize = call.shape[..axis].iter().product();
    let inner: usize = call.shape[axis + 1..].iter().product();
    let block = |x: &View| x.shape[axis] * inner;
    macro_rules! joined {
        ($variant:ident) => {{
            let mut parts = Vec::with_capacity(call.operands.len());
            for x in call.operands {
                let Slice::$variant(xs) = x.data else { return Err(Fault::eval("concat of different types")) };
                parts.push((xs, block(x)));
            }
            Data::$variant(interleave(&parts, outer))
        }};
    }
    Ok(match call.operands[0].data {
        Slice::F32(_) => joined!(F32),
        Slice::Bool(_) => joined!(Bool),
        Slice::U8(_) => joined!(U8),
        Slice::I8(_) => joined!(I8),
        Slice::I16(_) => joined!(I16),
        Slice::I32(_) => joined!(I32),
        Slice::I64(_) => joined!(I64),
    })
}

/// A block of each part in turn, `outer` times.
fn interleave<T: Copy>(parts: &[(&[T], usize)], outer: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(parts.iter().map(|p| p.0.len()).sum());
    for i in 0..outer {
        for (xs, block) in parts {
            out.extend_from_slice(&xs[i * block..(i + 1) * block]);
        }
    }
    out
}

fn pad(x: View, shape: &[usize], before: &[usize], value: Real) -> Evaluated {
    let count = shape.iter().product();
    let int = || {
        let (lo, hi) = x.elem().range().unwrap_or((0, 0));
        let v = value.0 as i64;
        let exact = v as f64 == value.0 && (lo..=hi).contains(&v);
        exact.then_some(v).ok_or_else(|| Fault::eval(format!("padding of {} with {}", x.elem(), value.0)))
    };
    macro_rules! padded {
        ($variant:ident, $xs:expr, $fill:expr) => {{
            let mut out = vec![$fill; count];
            place(x.shape, $xs, shape, before, &mut out);
            Data::$variant(out)
        }};
    }
    Ok(match x.data {
        Slice::F32(xs) => padded!(F32, xs, value.0 as f32),
        Slice::Bool(xs) => padded!(Bool, xs, int()? as u8),
        Slice::U8(xs) => padded!(U8, xs, int()? as u8),
        Slice::I8(xs) => padded!(I8, xs, int()? as i8),
        Slice::I16(xs) => padded!(I16, xs, int()? as i16),
        Slice::I32(xs) => padded!(I32, xs, int()? as i32),
        Slice::I64(xs) => padded!(I64, xs, int()?),
    })
}

/// Copies `xs` of `from` sizes into `out` of `to` sizes, `before` elements in.
fn place<T: Copy>(from: &[usize], xs: &[T], to: &[usize], before: &[usize], out: &mut [T]) {
    let (Some((&from_n, from)), Some((&to_n, to))) = (from.split_first(), to.split_first()) else {
        out.copy_from_slice(xs);
        return;
    };
    if xs.is_empty() {
        return;
    }
    if from == to && before[1..].iter().all(|&b| b == 0) {
        let block = out.len() / to_n;
        out[before[0] * block..before[0] * block + xs.len()].copy_from_slice(xs);
        return;
    }
    let (source, target) = (xs.len() / from_n, out.len() / to_n);
    for (row, out) in xs.chunks_exact(source).zip(out.chunks_exact_mut(target).skip(before[0])) {
        place(from, row, to, &before[1..], out);
    }
}
