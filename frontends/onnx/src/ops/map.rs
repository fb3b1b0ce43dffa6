//! Constant maps along one axis: a matrix (resizing, running sums), or a choice of positions (padding, nearest neighbours).

use vitc_ir::{Dim, Op, Shape, ValueId};

use super::index::slice_axis;
use crate::call::Call;
use crate::problem::{Fallible, invalid, unsupported};

/// The size of an axis, which must not be the batch.
pub(super) fn fixed_axis(call: &Call<'_, '_>, x: ValueId, axis: usize) -> Fallible<usize> {
    let dim = call.shape_of(x).0.get(axis).copied().ok_or_else(|| invalid("an axis is out of range"))?;
    dim.as_fixed().ok_or_else(|| unsupported("the batch itself would be changed"))
}

/// Accounts for `count` numbers made for the map of an axis of `x`, before they are made.
pub(super) fn room(call: &mut Call<'_, '_>, x: ValueId, count: usize) -> Fallible<()> {
    let elements = call.shape_of(x).count().map_or(0, |c| c.size);
    call.importer.grow(count, elements)
}

/// `y[.., o, ..] = sum over i of matrix[o][i] * x[.., i, ..]` along `axis`: a product with a constant right operand, the axis
/// brought last. The matrix has `results` rows.
pub(super) fn linear(
    call: &mut Call<'_, '_>,
    x: ValueId,
    axis: usize,
    results: usize,
    weight: impl Fn(usize, usize) -> f64,
) -> Fallible<ValueId> {
    let size = fixed_axis(call, x, axis)?;
    let count = results.checked_mul(size).ok_or_else(|| invalid("too many elements"))?;
    room(call, x, count)?;
    if results == 0 {
        return Err(unsupported("the result is empty"));
    }
    let weights: Vec<f32> =
        (0..size).flat_map(|i| (0..results).map(move |o| (o, i))).map(|(o, i)| weight(o, i) as f32).collect();
    let weights = call.floats("weights", &[size, results], &weights);
    let rank = call.shape_of(x).rank();
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(axis, rank - 1);
    let turned = call.transpose(x, perm.clone())?;
    // A vector is a row.
    let shape = call.shape_of(turned);
    let row = if rank == 1 { call.reshape(turned, Shape([vec![Dim::fixed(1)], shape.0].concat()))? } else { turned };
    let product = call.push(Op::MatMul {}, &[row, weights])?;
    let product = if rank == 1 { call.reshape(product, Shape::fixed(&[results]))? } else { product };
    call.transpose(product, perm)
}

/// Elements at these positions along `axis`: nothing, a slice, or a gather.
pub(super) fn choose(call: &mut Call<'_, '_>, x: ValueId, axis: usize, positions: Vec<usize>) -> Fallible<ValueId> {
    let size = fixed_axis(call, x, axis)?;
    let Some((&first, rest)) = positions.split_first() else { return Err(unsupported("the result is empty")) };
    let step = rest.first().map_or(1, |&next| next as i64 - first as i64);
    let in_step = |pair: &[usize]| matches!(pair, [a, b] if *b as i64 - *a as i64 == step);
    if step != 0 && positions.iter().all(|&p| p < size) && positions.windows(2).all(in_step) {
        return slice_axis(call, x, axis, first, positions.len(), step);
    }
    call.push(Op::Gather { axis, index: positions }, &[x])
}
