//! Integers that count images: what exporters of a dynamic batch make of a strided view are positions in the flat tensor, a first one
//! for each image and the same distances from it. They are followed to the `Gather` that takes from each image its own elements.

use std::rc::Rc;

use vitc_ir::{Dim, Op, Shape};

use super::arithmetic;
use crate::call::Call;
use crate::import::Slot;
use crate::known::{Kind, Known, Linear, count};
use crate::problem::{Fallible, Problem, unsupported};

/// `step * n + content` for image `n`. Dimension `axis`, which `content` has as 1, is the batch.
#[derive(Clone)]
pub(crate) struct Counted {
    content: Rc<Known>,
    axis: usize,
    step: f64,
}

impl Counted {
    /// Its shape.
    pub(crate) fn shape(&self) -> Shape {
        let dim = |(i, &d): (usize, &usize)| if i == self.axis { Dim::N } else { Dim::fixed(d) };
        Shape(self.content.dims.iter().enumerate().map(dim).collect())
    }

    /// Its elements as functions of the image, in place of the batch.
    fn of_image(&self) -> Known {
        let data = self.content.data.iter().map(|v| Linear { batch: self.step, ..*v }).collect();
        Known { data, ..Known::clone(&self.content) }
    }
}

fn give(call: &mut Call<'_, '_>, content: Known, axis: usize, step: f64) {
    let counted = Counted { content: Rc::new(content), axis, step };
    call.give(Slot { counted: Some(counted), ..Slot::default() });
}

fn beyond() -> Problem {
    unsupported("numbers that count the images of the batch")
        .help("vitc follows such to a Gather that takes each image's own elements; export with a batch of 1")
}

/// `Range` with one number for each image; says whether it is one.
pub(super) fn range(call: &mut Call<'_, '_>) -> Fallible<bool> {
    let mut ends = [Linear::from(0.0); 3];
    for (i, end) in ends.iter_mut().enumerate() {
        match call.known(i)? {
            Some(known) if known.kind == Kind::Int => *end = known.single().unwrap_or(*end),
            _ => return Ok(false),
        }
    }
    let [start, limit, step] = ends;
    let (Some(first), Some(step)) = (start.fixed(), step.fixed()) else { return Ok(false) };
    let span = limit.sub(start);
    if step == 0.0 || span != (Linear { batch: step, constant: 0.0 }) {
        return Ok(false);
    }
    give(call, Known::vector(Kind::Int, vec![first.into()]), 0, step);
    Ok(true)
}

/// An arithmetic op of which one operand counts images and the other is known; says whether it is one.
pub(super) fn binary(call: &mut Call<'_, '_>, f: impl Fn(Kind, Linear, Linear) -> Option<Linear>) -> Fallible<bool> {
    let (a, b) = (call.slot(0)?.counted, call.slot(1)?.counted);
    let (counted, other) = match (&a, &b) {
        (None, None) => return Ok(false),
        (Some(a), None) => (a, 1),
        (None, Some(b)) => (b, 0),
        (Some(_), Some(_)) => return Err(beyond()),
    };
    let known = call.known(other)?.ok_or_else(beyond)?;
    if known.data.iter().any(|v| v.fixed().is_none()) {
        return Err(beyond());
    }
    let behind = counted.content.dims.len() - counted.axis;
    let repeats = known.dims.len().checked_sub(behind).and_then(|i| known.dims.get(i)).is_some_and(|&d| d != 1);
    if repeats {
        return Err(beyond());
    }
    let own = counted.of_image();
    let (x, y) = if other == 1 { (&own, &*known) } else { (&*known, &own) };
    let result = arithmetic::zip(call, x, y, x.kind, |u, v| f(x.kind, u, v))?;
    let step = result.data.first().map_or(0.0, |v| v.batch);
    if result.data.iter().any(|v| v.batch != step) {
        return Err(beyond());
    }
    let axis = result.dims.len() - behind;
    let data = result.data.into_iter().map(|v| v.constant.into()).collect();
    give(call, Known { data, ..result }, axis, step);
    Ok(true)
}

/// Operand 0 with another shape, when it counts images; says whether it does.
pub(super) fn reshape(call: &mut Call<'_, '_>, shape: &Shape) -> Fallible<bool> {
    let Some(counted) = call.slot(0)?.counted else { return Ok(false) };
    let axis = shape.0.iter().position(|d| *d == Dim::N).ok_or_else(beyond)?;
    let dims: Vec<usize> = shape.0.iter().map(|d| if d.batch { 1 } else { d.size }).collect();
    let inner = |dims: &[usize], axis: usize| dims.get(axis + 1..).and_then(count);
    let alike = inner(&dims, axis) == inner(&counted.content.dims, counted.axis);
    if !alike || count(&dims) != Some(counted.content.data.len()) {
        return Err(beyond());
    }
    call.room(counted.content.data.len())?;
    give(call, counted.content.with_dims(dims), axis, counted.step);
    Ok(true)
}

/// `Gather` from the first dimension, in which the images lie one after another, of the same elements of each.
pub(super) fn gather(call: &mut Call<'_, '_>, index: &Counted) -> Fallible<()> {
    let shape = call.shape(0)?;
    let axis = call.axis(call.int_or("axis", 0)?, shape.rank())?;
    let (Some(&Dim { size, batch: true }), 0, 0) = (shape.0.first(), axis, index.axis) else { return Err(beyond()) };
    let own = |v: i64| usize::try_from(v).ok().filter(|&v| v < size);
    let positions: Option<Vec<usize>> = index.content.integers()?.into_iter().map(own).collect();
    let positions = positions.filter(|p| !p.is_empty() && index.step == size as f64).ok_or_else(beyond)?;
    let inner = shape.0.get(1..).unwrap_or_default();
    let x = call.tensor(0)?;
    let images = call.reshape(x, Shape([&[Dim::N, Dim::fixed(size)], inner].concat()))?;
    let taken = call.push(Op::Gather { axis: 1, index: positions }, &[images])?;
    let value = call.reshape(taken, Shape([&index.shape().0, inner].concat()))?;
    call.give_value(value);
    Ok(())
}
