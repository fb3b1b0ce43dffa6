//! Ops that take some elements: slices, splits, gathers.

use std::rc::Rc;

use vitc_ir::{Dim, Op, Shape, ValueId};

use super::{Table, counted, layout};
use crate::call::Call;
use crate::known::{Kind, Known, Linear, count, pick, strides};
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[("Gather", gather), ("Slice", slice), ("Split", split)];

/// Ends of slices: operands from opset 10 on, attributes before.
type Ends = Rc<Known>;

fn ends(call: &mut Call<'_, '_>, i: usize, attr: &str, what: &str) -> Fallible<Ends> {
    match call.ints(attr)? {
        Some(list) if call.importer.opset < 10 => {
            let data = list.iter().map(|&v| (v as f64).into()).collect();
            Ok(Rc::new(Known::vector(Kind::Int, data)))
        }
        _ => call.content(i, what),
    }
}

/// Elements `start, start + step, ...` of one axis.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    start: usize,
    len: usize,
    step: i64,
}

/// Adds a slice, unless it takes everything.
pub(super) fn slice_axis(
    call: &mut Call<'_, '_>,
    x: ValueId,
    axis: usize,
    start: usize,
    len: usize,
    step: i64,
) -> Fallible<ValueId> {
    if len == 0 {
        return Err(unsupported("the result is empty"));
    }
    let all = call.shape_of(x).0.get(axis) == Some(&Dim::fixed(len)) && start == 0 && step == 1;
    if all { Ok(x) } else { call.push(Op::Slice { axis, start, len, step }, &[x]) }
}

/// ONNX `Slice` of a dimension of `size`: negative ends count from behind, all are clamped.
fn clamped(size: usize, start: i64, end: i64, step: i64) -> Option<Run> {
    if size == 0 {
        return (step != 0).then_some(Run { start: 0, len: 0, step });
    }
    let size = size as i64;
    let from_behind = |v: i64| if v < 0 { v.saturating_add(size) } else { v };
    let (start, end) = (from_behind(start), from_behind(end));
    let (start, span) = if step > 0 {
        let start = start.clamp(0, size);
        (start, end.clamp(0, size) - start)
    } else {
        let start = start.clamp(0, size - 1);
        (start, start - end.clamp(-1, size - 1))
    };
    let stride = i64::try_from(step.unsigned_abs()).ok().filter(|&s| s > 0).or((step != 0).then_some(i64::MAX))?;
    let len = if span <= 0 { 0 } else { (span - 1) / stride + 1 };
    Some(Run { start: start as usize, len: len as usize, step })
}

/// What to take of a dimension; `None` when it is everything of a batched one.
fn run_of(call: &Call<'_, '_>, dim: Dim, start: Linear, end: Linear, step: i64) -> Fallible<Option<Run>> {
    if let Some(size) = dim.as_fixed() {
        let (Some(start), Some(end)) = (start.fixed(), end.fixed()) else {
            return Err(unsupported("the ends of the slice depend on the batch"));
        };
        let run = clamped(size, start as i64, end as i64, step);
        return run.map(Some).ok_or_else(|| invalid("the step is 0"));
    }
    let beyond = if call.importer.rebatch { dim.size as f64 } else { f64::from(i32::MAX) };
    let to_the_end = end == Linear::from(dim) || end.fixed().is_some_and(|e| e >= beyond);
    if start == Linear::from(0.0) && to_the_end && step == 1 {
        return Ok(None);
    }
    Err(unsupported("only a part of the batch is taken")
        .help("the images of a batch must be independent of each other"))
}

fn slice(call: &mut Call<'_, '_>) -> Fallible<()> {
    let shape = call.shape(0)?;
    let (starts, ends) = (ends(call, 1, "starts", "the start")?, ends(call, 2, "ends", "the end")?);
    let given = call.integers_or_attr(3, "axes")?;
    let axes = match given {
        Some(axes) => call.axes(&axes, shape.rank())?,
        None => (0..starts.data.len()).collect(),
    };
    let steps = call.integers(4, "the steps")?.unwrap_or_else(|| vec![1; axes.len()]);
    let n = axes.len();
    if n > shape.rank() || starts.data.len() != n || ends.data.len() != n || steps.len() != n {
        return Err(invalid("starts, ends, axes and steps do not fit together"));
    }
    let mut runs = Vec::with_capacity(n);
    for (((&axis, &start), &end), &step) in axes.iter().zip(&starts.data).zip(&ends.data).zip(&steps) {
        let dim = shape.0.get(axis).copied().ok_or_else(|| invalid("an axis is out of range"))?;
        runs.extend(run_of(call, dim, start, end, step)?.map(|run| (axis, run)));
    }
    if let Some(x) = call.known(0)? {
        let result = take(call, &x, &runs)?;
        call.give_known(result);
        return Ok(());
    }
    let lens: Vec<(usize, usize)> = runs.iter().map(|(axis, run)| (*axis, run.len)).collect();
    if give_empty(call, &shape, &lens) {
        return Ok(());
    }
    let mut x = call.tensor(0)?;
    for (axis, Run { start, len, step }) in runs {
        x = slice_axis(call, x, axis, start, len, step)?;
    }
    call.give_value(x);
    Ok(())
}

/// Gives a part without elements as known content, which `Concat` leaves out; says whether it is one.
fn give_empty(call: &mut Call<'_, '_>, shape: &Shape, lens: &[(usize, usize)]) -> bool {
    if lens.iter().all(|(_, len)| *len != 0) {
        return false;
    }
    // of no elements for each image the batch does not matter
    let mut dims: Vec<usize> = shape.0.iter().map(|d| if d.batch { 1 } else { d.size }).collect();
    for &(axis, len) in lens {
        if let Some(dim) = dims.get_mut(axis) {
            *dim = len;
        }
    }
    call.give_known(Known { kind: Kind::F32, dims, data: Vec::new() });
    true
}

/// Slices of known content.
fn take(call: &mut Call<'_, '_>, x: &Known, runs: &[(usize, Run)]) -> Fallible<Known> {
    let mut dims = x.dims.clone();
    let mut steps: Vec<i64> = strides(&x.dims).into_iter().map(|s| s as i64).collect();
    let mut offset = 0i64;
    for &(axis, run) in runs {
        if let (Some(dim), Some(step)) = (dims.get_mut(axis), steps.get_mut(axis)) {
            offset = offset.saturating_add((run.start as i64).saturating_mul(*step));
            *dim = run.len;
            // A single element is never stepped from.
            *step = if run.len > 1 { step.saturating_mul(run.step) } else { 0 };
        }
    }
    layout::moved(call, x, dims, &steps, offset)
}

fn split(call: &mut Call<'_, '_>) -> Fallible<()> {
    let shape = call.shape(0)?;
    let axis = call.axis(call.int_or("axis", 0)?, shape.rank())?;
    let dim = shape.0.get(axis).copied().and_then(Dim::as_fixed);
    let size = dim.ok_or_else(|| unsupported("the batch is split"))?;
    let outputs = call.node.output.len();
    let sizes = match call.integers_or_attr(1, "split")? {
        Some(sizes) => sizes.iter().map(|&s| usize::try_from(s).ok()).collect::<Option<Vec<_>>>(),
        None => equal_parts(size, usize::try_from(call.int_or("num_outputs", outputs as i64)?).unwrap_or(0)),
    };
    let sizes =
        sizes.filter(|s| s.len() == outputs && s.iter().try_fold(0usize, |a, &b| a.checked_add(b)) == Some(size));
    let sizes = sizes.ok_or_else(|| invalid(format!("the parts do not make up the dimension of {size}")))?;
    let known = call.known(0)?;
    let mut start = 0;
    for len in sizes {
        if let Some(x) = &known {
            let part = take(call, x, &[(axis, Run { start, len, step: 1 })])?;
            call.give_known(part);
        } else if !give_empty(call, &shape, &[(axis, len)]) {
            let x = call.tensor(0)?;
            let part = slice_axis(call, x, axis, start, len, 1)?;
            call.give_value(part);
        }
        start += len;
    }
    Ok(())
}

/// Equal parts, the last one smaller where it does not come out even.
fn equal_parts(size: usize, parts: usize) -> Option<Vec<usize>> {
    if parts == 0 || parts > size {
        return None;
    }
    let each = size.div_ceil(parts);
    let last = size.checked_sub(each.checked_mul(parts - 1)?)?;
    Some((0..parts).map(|i| if i + 1 == parts { last } else { each }).collect())
}

fn gather(call: &mut Call<'_, '_>) -> Fallible<()> {
    let shape = call.shape(0)?;
    let axis = call.axis(call.int_or("axis", 0)?, shape.rank())?;
    if let Some(index) = call.slot(1)?.counted {
        return counted::gather(call, &index);
    }
    let index = call.content(1, "the index")?;
    let dim = shape.0.get(axis).copied().and_then(Dim::as_fixed);
    let size = dim.ok_or_else(|| unsupported("images of the batch are gathered"))?;
    let positions = positions(&index.integers()?, size)?;
    let (outer, rest) = shape.0.split_at_checked(axis).ok_or_else(|| invalid("axis"))?;
    let inner = rest.get(1..).unwrap_or_default();
    if let Some(x) = call.known(0)? {
        let result = gather_known(call, &x, axis, &positions, &index.dims)?;
        call.give_known(result);
        return Ok(());
    }
    let joined = outer.iter().copied().chain(index.dims.iter().map(|&d| Dim::fixed(d))).chain(inner.iter().copied());
    let joined = Shape(joined.collect());
    call.importer.check_shape(&joined)?;
    let x = call.tensor(0)?;
    let taken = match positions.as_slice() {
        [] => return Err(unsupported("the result is empty")),
        &[one] => slice_axis(call, x, axis, one, 1, 1)?,
        _ => call.push(Op::Gather { axis, index: positions }, &[x])?,
    };
    let value = call.reshape(taken, joined)?;
    call.give_value(value);
    Ok(())
}

/// Indices that may count from the end.
fn positions(index: &[i64], size: usize) -> Fallible<Vec<usize>> {
    let resolve = |&i: &i64| {
        let i = if i < 0 { i.checked_add(size as i64)? } else { i };
        usize::try_from(i).ok().filter(|&i| i < size)
    };
    let all: Option<Vec<usize>> = index.iter().map(resolve).collect();
    all.ok_or_else(|| invalid(format!("an index is outside a dimension of {size}")))
}

fn gather_known(
    call: &mut Call<'_, '_>,
    x: &Known,
    axis: usize,
    positions: &[usize],
    index_dims: &[usize],
) -> Fallible<Known> {
    let (outer, rest) = x.dims.split_at_checked(axis).ok_or_else(|| invalid("axis"))?;
    let (size, inner) = rest.split_first().ok_or_else(|| invalid("axis"))?;
    let dims: Vec<usize> = outer.iter().chain(index_dims).chain(inner).copied().collect();
    call.importer.check_shape(&Shape::fixed(&dims))?;
    let too_many = || invalid("too many elements");
    let total = count(&dims).ok_or_else(too_many)?;
    call.room(total)?;
    if total == 0 {
        // The other dimensions may be huge.
        return Ok(Known { kind: x.kind, dims, data: Vec::new() });
    }
    let (runs, run) = (count(outer).ok_or_else(too_many)?, count(inner).ok_or_else(too_many)?);
    let flat = (0..runs).flat_map(|o| positions.iter().map(move |p| (o * size + p) * run));
    let data = pick(x, flat.flat_map(|start| start..start + run))?;
    Ok(Known { kind: x.kind, dims, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_clamped_as_onnx_says() {
        let run = |start, len, step| Some(Run { start, len, step });
        assert_eq!(clamped(10, 2, i64::MAX, 1), run(2, 8, 1));
        assert_eq!(clamped(10, -3, -1, 1), run(7, 2, 1));
        assert_eq!(clamped(10, 0, 10, 3), run(0, 4, 3));
        assert_eq!(clamped(10, -1, i64::MIN, -1), run(9, 10, -1));
        assert_eq!(clamped(10, 8, 1, -3), run(8, 3, -3));
        assert_eq!(clamped(10, 5, 5, 1), run(5, 0, 1));
        assert_eq!(clamped(10, 0, 5, 0), None);
        assert_eq!(clamped(0, 0, 5, -1), run(0, 0, -1));
        assert_eq!(clamped(3, 2, i64::MIN, i64::MIN), run(2, 1, i64::MIN));
    }

    #[test]
    fn uneven_parts_end_with_a_smaller_one() {
        assert_eq!(equal_parts(9, 3), Some(vec![3, 3, 3]));
        assert_eq!(equal_parts(10, 4), Some(vec![3, 3, 3, 1]));
        assert_eq!(equal_parts(5, 4), None);
        assert_eq!(equal_parts(5, 0), None);
    }
}
