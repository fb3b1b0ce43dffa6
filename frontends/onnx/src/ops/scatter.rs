//! Gathers with an index for each element or each block, and `ScatterND` of constants or into boxes.

use vitc_ir::{Dim, Op, Shape, ValueId};

use super::Table;
use super::index::slice_axis;
use super::layout::concat_of;
use crate::call::Call;
use crate::import::shorten;
use crate::known::{Known, Linear, count, pick, strides};
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table =
    &[("GatherElements", gather_elements), ("GatherND", gather_nd), ("ScatterND", scatter_nd)];

/// An index that may count from the end.
pub(super) fn resolve(i: i64, size: usize) -> Option<usize> {
    let i = if i < 0 { i.checked_add(size as i64)? } else { i };
    usize::try_from(i).ok().filter(|&i| i < size)
}

/// The fixed dimensions of operand 0.
fn fixed_dims(call: &Call<'_, '_>) -> Fallible<Vec<usize>> {
    call.shape(0)?.as_fixed().ok_or_else(|| unsupported("elements of the batch are gathered"))
}

/// Operand 0 as `blocks` of equal size, those at `positions` taken, with the shape `dims`.
fn taken(call: &mut Call<'_, '_>, positions: Vec<usize>, block: usize, dims: Vec<usize>) -> Fallible<()> {
    if let Some(x) = call.known(0)? {
        call.room(count(&dims).ok_or_else(|| invalid("too many elements"))?)?;
        let data = pick(&x, positions.iter().flat_map(|p| p * block..(p + 1) * block))?;
        call.give_known(Known { kind: x.kind, dims, data });
        return Ok(());
    }
    let total = call.shape(0)?.as_fixed().and_then(|d| count(&d)).filter(|_| block > 0);
    let blocks = total.ok_or_else(|| invalid("too many elements"))? / block;
    if positions.is_empty() {
        return Err(unsupported("the result is empty"));
    }
    let x = call.tensor(0)?;
    let rows = call.reshape(x, Shape::fixed(&[blocks, block]))?;
    let chosen = call.push(Op::Gather { axis: 0, index: positions }, &[rows])?;
    let value = call.reshape(chosen, Shape::fixed(&dims))?;
    call.give_value(value);
    Ok(())
}

fn gather_elements(call: &mut Call<'_, '_>) -> Fallible<()> {
    let dims = fixed_dims(call)?;
    let axis = call.axis(call.int_or("axis", 0)?, dims.len())?;
    let index = call.content(1, "the index")?;
    let fits = index.dims.iter().zip(&dims).enumerate().all(|(a, (i, d))| a == axis || i <= d);
    if index.dims.len() != dims.len() || !fits {
        return Err(invalid(format!("an index of {:?} into {dims:?}", index.dims)));
    }
    let size = dims.get(axis).copied().unwrap_or(0);
    let (steps, own) = (strides(&dims), strides(&index.dims));
    call.room(index.data.len())?;
    let position = |(flat, i): (usize, &i64)| {
        let coordinates = own.iter().zip(&index.dims).map(|(&step, &d)| flat / step % d).enumerate();
        let chosen = resolve(*i, size)?;
        Some(coordinates.zip(&steps).map(|((a, c), step)| if a == axis { chosen * step } else { c * step }).sum())
    };
    let positions: Option<Vec<usize>> = index.integers()?.iter().enumerate().map(position).collect();
    let positions = positions.ok_or_else(|| invalid("an index is out of range"))?;
    taken(call, positions, 1, index.dims.clone())
}

/// `GatherND` by leading dimensions that are fixed, of what has the batch behind them: whole blocks are gathered.
fn gather_before_batch(call: &mut Call<'_, '_>) -> Fallible<()> {
    let index = call.content(1, "the index")?;
    let shape = call.shape(0)?;
    let misfit = || invalid(format!("an index of {:?} into [{shape}]", index.dims));
    let (&depth, outer) = index.dims.split_last().ok_or_else(misfit)?;
    let (leading, rest) = shape.0.split_at_checked(depth).filter(|_| depth > 0).ok_or_else(misfit)?;
    let sizes: Option<Vec<usize>> = leading.iter().map(|d| d.as_fixed()).collect();
    let sizes = sizes.ok_or_else(|| unsupported("elements of the batch are gathered"))?;
    let (steps, blocks) = (strides(&sizes), count(&sizes).ok_or_else(misfit)?);
    call.room(index.data.len())?;
    let position = |at: &[i64]| {
        let each = at.iter().zip(&sizes).zip(&steps);
        each.map(|((&i, &size), step)| Some(resolve(i, size)? * step)).sum::<Option<usize>>()
    };
    let positions: Option<Vec<usize>> = index.integers()?.chunks(depth).map(position).collect();
    let positions = positions.ok_or_else(|| invalid("an index is out of range"))?;
    if positions.is_empty() {
        return Err(unsupported("the result is empty"));
    }
    // with the batch in front, as the passes have everything
    let at = rest.iter().position(|d| d.batch).ok_or_else(misfit)?;
    let others = || (0..rest.len()).filter(|&i| i != at);
    let front = [depth + at].into_iter().chain(0..depth).chain(others().map(|i| depth + i)).collect();
    let of = |middle: &[usize]| {
        let batch = rest.get(at).copied();
        let others = others().filter_map(|i| rest.get(i).copied());
        Shape(batch.into_iter().chain(middle.iter().copied().map(Dim::fixed)).chain(others).collect())
    };
    let x = call.tensor(0)?;
    let x = call.transpose(x, front)?;
    let rows = call.reshape(x, of(&[blocks]))?;
    let chosen = call.push(Op::Gather { axis: 1, index: positions }, &[rows])?;
    let chosen = call.reshape(chosen, of(outer))?;
    let behind = |i: usize| if i == at { 0 } else { outer.len() + i + usize::from(i < at) };
    let back = (1..=outer.len()).chain((0..rest.len()).map(behind)).collect();
    let value = call.transpose(chosen, back)?;
    call.give_value(value);
    Ok(())
}

fn gather_nd(call: &mut Call<'_, '_>) -> Fallible<()> {
    if call.shape(0)?.as_fixed().is_none() && call.int_or("batch_dims", 0)? == 0 {
        return gather_before_batch(call);
    }
    let dims = fixed_dims(call)?;
    let index = call.content(1, "the index")?;
    let batch = usize::try_from(call.int_or("batch_dims", 0)?).map_err(|_| invalid("`batch_dims` is negative"))?;
    let misfit = || invalid(format!("an index of {:?} into {dims:?}", index.dims));
    let (&depth, outer) = index.dims.split_last().ok_or_else(misfit)?;
    let end = batch.checked_add(depth).filter(|&e| depth > 0 && e <= dims.len()).ok_or_else(misfit)?;
    if outer.get(..batch).is_none_or(|o| Some(o) != dims.get(..batch)) {
        return Err(misfit());
    }
    let block = count(dims.get(end..).unwrap_or_default()).ok_or_else(misfit)?;
    let inner = count(dims.get(batch..end).unwrap_or_default()).ok_or_else(misfit)?;
    let each = count(outer.get(batch..).unwrap_or_default()).ok_or_else(misfit)?;
    let numbers = index.integers()?;
    call.room(numbers.len())?;
    let sizes = dims.get(batch..end).unwrap_or_default();
    let position = |(n, at): (usize, &[i64])| {
        let within = at.iter().zip(sizes).try_fold(0usize, |acc, (&i, &size)| Some(acc * size + resolve(i, size)?))?;
        Some(n.checked_div(each)? * inner + within)
    };
    let positions: Option<Vec<usize>> = numbers.chunks_exact(depth).enumerate().map(position).collect();
    let positions = positions.ok_or_else(|| invalid("an index is out of range"))?;
    let dims = outer.iter().chain(dims.get(end..).unwrap_or_default()).copied().collect();
    taken(call, positions, block, dims)
}

/// How an update joins what is there.
type Join = fn(Linear, Linear) -> Option<Linear>;

fn join(call: &Call<'_, '_>) -> Fallible<Join> {
    Ok(match call.word_or("reduction", "none")? {
        "none" => |_, new| Some(new),
        "add" => |old, new| Some(old.add(new)),
        "mul" => Linear::mul,
        "max" => |old, new| super::arithmetic::pick(old, new, true),
        "min" => |old, new| super::arithmetic::pick(old, new, false),
        other => return Err(invalid(format!("reduction={:?}", shorten(other)))),
    })
}

fn scatter_nd(call: &mut Call<'_, '_>) -> Fallible<()> {
    let Some(x) = call.known_up_to(0, 1 << 20)?.filter(|x| !x.kind.is_float() || is_known(call, 2)) else {
        return assign(call);
    };
    let index = call.content(1, "the index")?;
    let updates = call.content(2, "the updates")?;
    let join = join(call)?;
    if x.data.is_empty() {
        return Err(unsupported("the tensor is empty"));
    }
    let depth = index.dims.last().copied().filter(|&d| d > 0 && d <= x.dims.len());
    let depth = depth.ok_or_else(|| invalid("the index does not fit"))?;
    let steps = strides(&x.dims);
    let run = count(x.dims.get(depth..).unwrap_or_default()).unwrap_or(0);
    let numbers = index.integers()?;
    let rows = numbers.len() / depth;
    call.room(x.data.len())?;
    let mut data = x.data.clone();
    if rows.checked_mul(run) != Some(updates.data.len()) {
        return Err(invalid("the updates do not fit the index"));
    }
    for (k, at) in numbers.chunks_exact(depth).enumerate() {
        let start = at
            .iter()
            .zip(&x.dims)
            .zip(&steps)
            .try_fold(0usize, |acc, ((&i, &size), &step)| Some(acc + resolve(i, size)? * step));
        let target = start.and_then(|s| data.get_mut(s..s + run));
        let source = updates.data.get(k * run..(k + 1) * run);
        let (Some(target), Some(source)) = (target, source) else { return Err(invalid("an index is out of range")) };
        for (old, &new) in target.iter_mut().zip(source) {
            *old = join(*old, new).ok_or_else(|| unsupported("the result is no linear function of the batch"))?;
        }
    }
    call.give_known(Known { kind: x.kind, dims: x.dims.clone(), data });
    Ok(())
}

/// Whether the content of an operand is known, or can be.
fn is_known(call: &mut Call<'_, '_>, i: usize) -> bool {
    call.known_up_to(i, 1 << 20).is_ok_and(|known| known.is_some())
}

/// `x[a:b, c:d] = updates`, as exporters write it: an index for each element, which together make up a box.
fn assign(call: &mut Call<'_, '_>) -> Fallible<()> {
    if call.word_or("reduction", "none")? != "none" {
        return Err(unsupported("updates that join what is computed"));
    }
    let shape = call.shape(0)?;
    let counted = call.slot(1)?.counted;
    // of a batch that is made free, image 0 stands for every image
    let own_image = counted.is_some() || call.importer.rebatch;
    let index = match counted {
        Some(counted) => counted.of_own_image().ok_or_else(|| unsupported("updates of other images of the batch"))?,
        None => Known::clone(&*call.content(1, "the index")?),
    };
    let sizes: Vec<usize> = shape.0.iter().map(|d| d.size).collect();
    let beyond = || unsupported("updates of computed elements that are no box").help("assign to slices of step 1");
    let starts = starts(&index, &sizes).ok_or_else(beyond)?;
    let mut of_batch = shape.0.iter().take(starts.len()).enumerate().filter(|(_, d)| d.batch);
    if of_batch.any(|(i, d)| !own_image || i > 0 || d.size != 1) {
        return Err(unsupported("updates of some images of the batch"));
    }
    let extents: Vec<usize> = index.dims.iter().take(starts.len()).copied().collect();
    let mut part = call.tensor(2)?;
    let mut expected = shape.clone();
    for (dim, &extent) in expected.0.iter_mut().zip(&extents) {
        dim.size = extent;
    }
    if call.shape_of(part) != expected {
        return Err(invalid("the updates do not fit the index"));
    }
    // from the last axis on: what lies before and behind the box, as wide as the box along the axes before
    for axis in (0..starts.len()).rev() {
        let bounds = |list: &[usize]| list.get(axis).copied().unwrap_or(0);
        let (start, extent, size) = (bounds(&starts), bounds(&extents), bounds(&sizes));
        if extent == size {
            continue;
        }
        let mut rows = call.tensor(0)?;
        for outer in 0..axis {
            let (start, extent) = (starts.get(outer), extents.get(outer));
            if let (Some(&start), Some(&extent)) = (start, extent) {
                rows = sliced(call, rows, outer, start, extent)?;
            }
        }
        let mut parts = Vec::new();
        if start > 0 {
            parts.push(sliced(call, rows, axis, 0, start)?);
        }
        parts.push(part);
        let behind = start + extent;
        if behind < size {
            parts.push(sliced(call, rows, axis, behind, size - behind)?);
        }
        part = concat_of(call, parts, axis)?;
    }
    call.give_value(part);
    Ok(())
}

/// A slice of an axis, which is all of it where that is the batch.
fn sliced(call: &mut Call<'_, '_>, x: ValueId, axis: usize, start: usize, len: usize) -> Fallible<ValueId> {
    let whole = call.shape_of(x).0.get(axis).is_some_and(|d| d.size == len);
    if whole { Ok(x) } else { slice_axis(call, x, axis, start, len, 1) }
}

/// The first corner of the box that indices make up, in order.
fn starts(index: &Known, sizes: &[usize]) -> Option<Vec<usize>> {
    let (&depth, extents) = index.dims.split_last()?;
    if extents.len() != depth || depth == 0 || depth > sizes.len() || index.data.is_empty() {
        return None;
    }
    let numbers = index.integers().ok()?;
    let rows = numbers.chunks_exact(depth);
    let resolved = |row: &[i64]| row.iter().zip(sizes).map(|(&i, &size)| resolve(i, size)).collect::<Option<Vec<_>>>();
    let first = resolved(rows.clone().next()?)?;
    let steps = strides(extents);
    let in_order = |(flat, row): (usize, &[i64])| {
        let coordinates = steps.iter().zip(extents).map(|(&step, &extent)| flat / step % extent);
        resolved(row).is_some_and(|row| {
            row.iter().zip(&first).map(|(at, start)| at.checked_sub(*start)).eq(coordinates.map(Some))
        })
    };
    rows.enumerate().all(in_order).then_some(first)
}
