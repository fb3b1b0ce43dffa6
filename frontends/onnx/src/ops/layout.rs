//! Ops that change the shape or the order of elements and repeat them.

use vitc_ir::{Dim, Op, Shape, ValueId};

use super::{Table, counted};
use crate::batch;
use crate::call::{Call, SMALL, resolve_axis};
use crate::import::shorten;
use crate::known::{Kind, Known, Linear, broadcast_strides, count, pick, strides, walk};
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[
    ("Concat", concat),
    ("DepthToSpace", depth_to_space),
    ("Expand", expand),
    ("Flatten", flatten),
    ("Reshape", reshape),
    ("SpaceToDepth", space_to_depth),
    ("Squeeze", squeeze),
    ("Tile", tile),
    ("Transpose", transpose),
    ("Unsqueeze", unsqueeze),
];

/// Known content read with other dimensions and strides.
pub(super) fn moved(
    call: &mut Call<'_, '_>,
    x: &Known,
    dims: Vec<usize>,
    steps: &[i64],
    offset: i64,
) -> Fallible<Known> {
    let total = count(&dims).ok_or_else(|| invalid("too many elements"))?;
    call.room(total)?;
    let data = pick(x, walk(&dims, steps, offset))?;
    Ok(Known { kind: x.kind, dims, data })
}

/// Known content as one image has it of a shape that it broadcasts to.
pub(super) fn spread(call: &mut Call<'_, '_>, x: &Known, shape: &Shape) -> Fallible<Known> {
    let dims: Vec<usize> = shape.0.iter().map(|d| if d.batch { 1 } else { d.size }).collect();
    let steps: Vec<i64> = broadcast_strides(&x.dims, &dims).into_iter().map(|s| s as i64).collect();
    moved(call, x, dims, &steps, 0)
}

/// Operand 0 with another shape of as many elements.
fn reshape_to(call: &mut Call<'_, '_>, shape: Shape) -> Fallible<()> {
    call.importer.check_shape(&shape)?;
    if counted::reshape(call, &shape)? {
        return Ok(());
    }
    if let Some(x) = call.known(0)? {
        let dims = shape.as_fixed().ok_or_else(|| unsupported("a constant reshaped to the batch"))?;
        if count(&dims) != Some(x.data.len()) {
            return Err(invalid(format!("{} elements reshaped to {dims:?}", x.data.len())));
        }
        call.room(x.data.len())?;
        call.give_known(x.with_dims(dims));
        return Ok(());
    }
    let x = call.tensor(0)?;
    let value = call.reshape(x, shape)?;
    call.give_value(value);
    Ok(())
}

fn reshape(call: &mut Call<'_, '_>) -> Fallible<()> {
    let from = call.shape(0)?;
    let target = call.content(1, "the shape")?;
    let allow_zero = call.int_or("allowzero", 0)? != 0;
    let shape = batch::reshaped(&from, &target.data, allow_zero, call.importer.rebatch)?;
    reshape_to(call, shape)
}

fn product(dims: &[Dim]) -> Fallible<Dim> {
    let product = dims.iter().try_fold(Dim::fixed(1), |acc, &d| acc.times(d));
    product.ok_or_else(|| unsupported("too many elements, or the batch twice"))
}

fn flatten(call: &mut Call<'_, '_>) -> Fallible<()> {
    let from = call.shape(0)?;
    let axis = call.int_or("axis", 1)?;
    let axis = if axis == from.rank() as i64 { from.rank() } else { resolve_axis(axis, from.rank())? };
    let (outer, inner) = from.0.split_at_checked(axis).ok_or_else(|| invalid("axis"))?;
    reshape_to(call, Shape(vec![product(outer)?, product(inner)?]))
}

fn squeeze(call: &mut Call<'_, '_>) -> Fallible<()> {
    let from = call.shape(0)?;
    let one = Dim::fixed(1);
    let axes = match call.integers_or_attr(1, "axes")? {
        Some(axes) => call.axes(&axes, from.rank())?,
        None if call.importer.rebatch && from.0.contains(&Dim::N) => {
            return Err(unsupported("squeezing all dimensions of 1 would remove the batch"));
        }
        None => (0..from.rank()).filter(|&a| from.0.get(a) == Some(&one)).collect(),
    };
    if let Some(axis) = axes.iter().find(|&&a| from.0.get(a) != Some(&one)) {
        let batch = from.0.get(*axis).is_some_and(|d| d.batch);
        let message = format!("dimension {axis} is not 1");
        return Err(if batch { unsupported(message) } else { invalid(message) });
    }
    let kept = from.0.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &d)| d).collect();
    reshape_to(call, Shape(kept))
}

fn unsqueeze(call: &mut Call<'_, '_>) -> Fallible<()> {
    let from = call.shape(0)?;
    let axes = call.integers_or_attr(1, "axes")?.ok_or_else(|| invalid("the axes are missing"))?;
    let rank = from.rank().saturating_add(axes.len());
    if rank > call.importer.limits.rank {
        return Err(invalid(format!("{rank} dimensions, more than the limit")).code("limit"));
    }
    let axes = call.axes(&axes, rank)?;
    let mut old = from.0.iter().copied();
    let new = |i| if axes.contains(&i) { Some(Dim::fixed(1)) } else { old.next() };
    let dims: Option<Vec<Dim>> = (0..rank).map(new).collect();
    reshape_to(call, Shape(dims.ok_or_else(|| invalid("the axes do not fit"))?))
}

fn transpose(call: &mut Call<'_, '_>) -> Fallible<()> {
    let rank = call.shape(0)?.rank();
    let perm = match call.ints("perm")? {
        Some(perm) => call.axes(perm, rank)?,
        None => (0..rank).rev().collect(),
    };
    if perm.len() != rank {
        return Err(invalid(format!("{perm:?} is not a permutation of {rank} dimensions")));
    }
    if let Some(x) = call.known(0)? {
        let from = strides(&x.dims);
        let dims = perm.iter().filter_map(|&p| x.dims.get(p)).copied().collect();
        let steps: Vec<i64> = perm.iter().filter_map(|&p| from.get(p)).map(|&s| s as i64).collect();
        let result = moved(call, &x, dims, &steps, 0)?;
        call.give_known(result);
        return Ok(());
    }
    let x = call.tensor(0)?;
    let value = call.transpose(x, perm)?;
    call.give_value(value);
    Ok(())
}

/// A float value, or known content that is not float or the same for every image, of one repeated value.
pub(super) fn filled(call: &mut Call<'_, '_>, kind: Kind, value: Linear, target: &[Linear]) -> Fallible<()> {
    let shape = Shape(batch::dims(target)?);
    call.importer.check_shape(&shape)?;
    let total = shape.count().and_then(Dim::as_fixed);
    if let (Some(dims), Some(total)) = (shape.as_fixed(), total.filter(|&t| kind != Kind::F32 || t <= SMALL)) {
        call.room(total)?;
        call.give_known(Known { kind, dims, data: vec![value; total] });
        return Ok(());
    }
    if shape.as_fixed().is_none() {
        call.give_repeated(Known { kind, dims: vec![1; shape.rank()], data: vec![value] }, shape);
        return Ok(());
    }
    let one = call.constant("fill", &Known::scalar(kind, value))?;
    let value = call.push(Op::Expand { shape }, &[one])?;
    call.give_value(value);
    Ok(())
}

fn expand(call: &mut Call<'_, '_>) -> Fallible<()> {
    let from = call.shape(0)?;
    let target = call.content(1, "the shape")?;
    let target = Shape(batch::dims(&target.data)?);
    let shape = vitc_ir::infer::broadcast(&from, &target).map_err(invalid)?;
    call.importer.check_shape(&shape)?;
    if from.0.contains(&Dim::fixed(0)) {
        // of no tokens for each image, which `Concat` leaves out, the batch does not matter
        let dims = shape.0.iter().map(|d| if d.batch { 1 } else { d.size }).collect();
        call.give_known(Known { kind: Kind::F32, dims, data: Vec::new() });
        return Ok(());
    }
    if counted::expand(call, &shape)? {
        return Ok(());
    }
    if let (Some(x), Some(dims)) = (call.known(0)?, shape.as_fixed()) {
        let small = count(&dims).is_some_and(|c| c <= SMALL);
        if small || !x.kind.is_float() {
            let result = spread(call, &x, &shape)?;
            call.give_known(result);
            return Ok(());
        }
    }
    let stays_known = |x: &Known| !x.kind.is_float() || (x.data.len() == 1 && shape.as_fixed().is_none());
    if let Some(x) = call.known_or_repeated(0, SMALL)?.filter(|x| stays_known(x)) {
        let result = spread(call, &x, &shape)?;
        call.give_repeated(result, shape);
        return Ok(());
    }
    let x = call.tensor(0)?;
    let value = if from == shape { x } else { call.push(Op::Expand { shape }, &[x])? };
    call.give_value(value);
    Ok(())
}

fn concat(call: &mut Call<'_, '_>) -> Fallible<()> {
    let operands = call.node.input.len();
    let axis = call.int("axis")?.ok_or_else(|| invalid("attribute `axis` is missing"))?;
    let axis = call.axis(axis, call.shape(0)?.rank())?;
    if counted::concat(call, axis)? {
        return Ok(());
    }
    let mut contents = Vec::new();
    for i in 0..operands {
        contents.extend(call.known(i)?);
    }
    if contents.len() == operands {
        let result = join(call, &contents, axis)?;
        call.give_known(result);
        return Ok(());
    }
    let mut values = Vec::new();
    for i in 0..operands {
        if call.shape(i)?.0.get(axis) != Some(&Dim::fixed(0)) {
            values.push(call.tensor(i)?);
        }
    }
    let value = concat_of(call, values, axis)?;
    call.give_value(value);
    Ok(())
}

/// Values one after another along an axis.
pub(super) fn concat_of(call: &mut Call<'_, '_>, mut values: Vec<ValueId>, axis: usize) -> Fallible<ValueId> {
    if call.importer.rebatch {
        give_batch(call, &mut values, axis)?;
    }
    match values.as_slice() {
        [one] => Ok(*one),
        many => call.push(Op::Concat { axis }, many),
    }
}

pub(super) fn join(call: &mut Call<'_, '_>, parts: &[std::rc::Rc<Known>], axis: usize) -> Fallible<Known> {
    let misfit = || invalid("the operands' shapes do not fit");
    let first = parts.first().ok_or_else(|| invalid("there are no operands"))?;
    let outer_of = |k: &Known| k.dims.get(..axis).map(<[usize]>::to_vec);
    let inner_of = |k: &Known| k.dims.get(axis + 1..).map(<[usize]>::to_vec);
    if parts.iter().any(|p| outer_of(p) != outer_of(first) || inner_of(p) != inner_of(first) || p.kind != first.kind) {
        return Err(misfit());
    }
    call.room(parts.iter().map(|p| p.data.len()).sum())?;
    let outer = outer_of(first).and_then(|d| count(&d)).ok_or_else(misfit)?;
    let mut data = Vec::new();
    let empty = parts.iter().all(|p| p.data.is_empty());
    for i in 0..if empty { 0 } else { outer } {
        for part in parts {
            let run = part.data.len() / outer;
            data.extend_from_slice(part.data.get(i * run..(i + 1) * run).ok_or_else(misfit)?);
        }
    }
    let mut dims = first.dims.clone();
    let total = parts.iter().filter_map(|p| p.dims.get(axis)).sum();
    *dims.get_mut(axis).ok_or_else(misfit)? = total;
    Ok(Known { kind: first.kind, dims, data })
}

/// Repeats operands made for one image where the others have the batch.
fn give_batch(call: &mut Call<'_, '_>, values: &mut [ValueId], axis: usize) -> Fallible<()> {
    let shapes: Vec<Shape> = values.iter().map(|&v| call.shape_of(v)).collect();
    let rank = shapes.iter().map(Shape::rank).max().unwrap_or(0);
    let batched = |i| i != axis && shapes.iter().any(|s| s.0.get(i) == Some(&Dim::N));
    let batched: Vec<bool> = (0..rank).map(batched).collect();
    for (value, own) in values.iter_mut().zip(&shapes) {
        let mut shape = own.clone();
        for (dim, _) in shape.0.iter_mut().zip(&batched).filter(|(d, b)| **b && **d == Dim::fixed(1)) {
            *dim = Dim::N;
        }
        if shape != *own {
            *value = call.push(Op::Expand { shape }, &[*value])?;
        }
    }
    Ok(())
}

fn tile(call: &mut Call<'_, '_>) -> Fallible<()> {
    let from = call.shape(0)?;
    let repeats = &call.content(1, "the repeats")?.data;
    if repeats.len() != from.rank() {
        return Err(invalid(format!("{} repeats of {} dimensions", repeats.len(), from.rank())));
    }
    let mut x = call.tensor(0)?;
    for (axis, &times) in repeats.iter().enumerate().filter(|(_, r)| **r != Linear::from(1.0)) {
        let times = times.dim().filter(|t| t.size > 0);
        let times = times.ok_or_else(|| unsupported("repeats that are not positive"))?;
        x = repeat(call, x, axis, times)?;
    }
    call.give_value(x);
    Ok(())
}

/// `x` repeated along one axis, which may be as often as there are images: an outer dimension of 1 is put before it and expanded.
fn repeat(call: &mut Call<'_, '_>, x: ValueId, axis: usize, times: Dim) -> Fallible<ValueId> {
    let shape = call.shape_of(x);
    let split = shape.0.split_at_checked(axis).and_then(|(outer, rest)| Some((outer, rest.split_first()?)));
    let (outer, (own, inner)) = split.ok_or_else(|| invalid("axis"))?;
    let (before, behind) = (product(outer)?, product(inner)?);
    let lifted = call.reshape(x, Shape(vec![before, Dim::fixed(1), *own, behind]))?;
    let wide = Shape(vec![before, times, *own, behind]);
    let wide = call.push(Op::Expand { shape: wide }, &[lifted])?;
    let mut result = shape.clone();
    if let Some(dim) = result.0.get_mut(axis) {
        *dim = product(&[*dim, times])?;
    }
    call.reshape(wide, result)
}

/// The four dimensions of an image tensor, the last three fixed, and the block size.
fn blocks(call: &Call<'_, '_>) -> Fallible<(Dim, [usize; 3], usize)> {
    let shape = call.shape(0)?;
    let &[n, c, h, w] = shape.0.as_slice() else { return Err(invalid("the operand must have 4 dimensions")) };
    let (Some(c), Some(h), Some(w)) = (c.as_fixed(), h.as_fixed(), w.as_fixed()) else {
        return Err(unsupported("only dimension 0 may be the batch"));
    };
    let block = usize::try_from(call.int_or("blocksize", 0)?).ok().filter(|b| (1..=4096).contains(b));
    Ok((n, [c, h, w], block.ok_or_else(|| invalid("`blocksize` is missing or out of range"))?))
}

pub(super) fn rearranged(call: &mut Call<'_, '_>, split: Vec<Dim>, perm: Vec<usize>, joined: Vec<Dim>) -> Fallible<()> {
    let x = call.tensor(0)?;
    let x = call.reshape(x, Shape(split))?;
    let x = call.transpose(x, perm)?;
    let value = call.reshape(x, Shape(joined))?;
    call.give_value(value);
    Ok(())
}

fn depth_to_space(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (n, [c, h, w], b) = blocks(call)?;
    let inner = c / (b * b);
    let fixed = |list: &[usize]| std::iter::once(n).chain(list.iter().map(|&d| Dim::fixed(d))).collect::<Vec<_>>();
    let joined = fixed(&[inner, h.saturating_mul(b), w.saturating_mul(b)]);
    match call.word_or("mode", "DCR")? {
        "DCR" => rearranged(call, fixed(&[b, b, inner, h, w]), vec![0, 3, 4, 1, 5, 2], joined),
        "CRD" => rearranged(call, fixed(&[inner, b, b, h, w]), vec![0, 1, 4, 2, 5, 3], joined),
        other => Err(invalid(format!("mode={:?}", shorten(other)))),
    }
}

fn space_to_depth(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (n, [c, h, w], b) = blocks(call)?;
    let fixed = |list: &[usize]| std::iter::once(n).chain(list.iter().map(|&d| Dim::fixed(d))).collect::<Vec<_>>();
    let joined = fixed(&[c.saturating_mul(b * b), h / b, w / b]);
    let split = fixed(&[c, h / b, b, w / b, b]);
    match call.word_or("mode", "DCR")? {
        "DCR" => rearranged(call, split, vec![0, 3, 5, 1, 2, 4], joined),
        "CRD" => rearranged(call, split, vec![0, 1, 3, 5, 2, 4], joined),
        other => Err(invalid(format!("mode={:?}", shorten(other)))),
    }
}
