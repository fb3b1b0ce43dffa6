//! Integers that count images: what exporters of a dynamic batch make of a strided view are positions in the flat tensor, a first one
//! for each image and the same distances from it. They are followed to the `Gather` that takes from each image its own elements, or to the
//! `ScatterND` that puts them there.

use std::rc::Rc;

use vitc_ir::{Dim, Op, Shape};

use super::arithmetic;
use super::layout::spread;
use crate::call::Call;
use crate::import::{Repeated, Slot};
use crate::known::{Kind, Known, Linear, count};
use crate::problem::{Fallible, Problem, unsupported};

/// Numbers of each image `n`: the batch of an element, which counts images here, times `n`, and its constant. Dimension `axis`,
/// which `content` has as 1, is the batch.
#[derive(Clone)]
pub(crate) struct Counted {
    content: Rc<Known>,
    axis: usize,
}

impl Counted {
    /// Its shape.
    pub(crate) fn shape(&self) -> Shape {
        let dim = |(i, &d): (usize, &usize)| if i == self.axis { Dim::N } else { Dim::fixed(d) };
        Shape(self.content.dims.iter().enumerate().map(dim).collect())
    }

    /// Its numbers, as functions of the image.
    pub(crate) fn content(&self) -> &Rc<Known> {
        &self.content
    }

    /// Operand `i`, when it counts images or is the same integers for each.
    fn of(call: &mut Call<'_, '_>, i: usize) -> Fallible<Option<Counted>> {
        let slot = call.slot(i)?;
        let Some(Repeated { content, shape }) = slot.repeated.filter(|r| r.content.kind == Kind::Int) else {
            return Ok(slot.counted);
        };
        let Some(axis) = shape.0.iter().position(|d| *d == Dim::N) else { return Ok(None) };
        let whole = spread(call, &content, &shape)?;
        Ok(Some(Counted { content: Rc::new(whole), axis }))
    }

    /// Indices into images that lie one after another along dimension 0 of a tensor, of which each image has its own: those of
    /// image 0.
    pub(super) fn of_own_image(&self) -> Option<Known> {
        let depth = *self.content.dims.last()?;
        let own = |(i, v): (usize, &Linear)| {
            let first = i % depth == 0;
            (v.batch == f64::from(u8::from(first)) && (!first || v.constant == 0.0)).then(|| v.constant.into())
        };
        let data = self.content.data.iter().enumerate().map(own).collect::<Option<_>>().filter(|_| self.axis == 0)?;
        Some(Known { data, ..Known::clone(&self.content) })
    }
}

fn give(call: &mut Call<'_, '_>, content: Known, axis: usize) {
    let counted = Counted { content: Rc::new(content), axis };
    call.give(Slot { counted: Some(counted), ..Slot::default() });
}

fn beyond() -> Problem {
    unsupported("numbers that count the images of the batch")
        .help("vitc follows such to a Gather or ScatterND of each image's own elements; export with a batch of 1")
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
    give(call, Known::vector(Kind::Int, vec![Linear { batch: step, constant: first }]), 0);
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
    let own = &*counted.content;
    let (x, y) = if other == 1 { (own, &*known) } else { (&*known, own) };
    let result = arithmetic::zip(call, x, y, x.kind, |u, v| f(x.kind, u, v))?;
    let axis = result.dims.len() - behind;
    give(call, result, axis);
    Ok(true)
}

/// Operand 0 with another shape, when it counts images or is the same integers for each; says whether it is one.
pub(super) fn reshape(call: &mut Call<'_, '_>, shape: &Shape) -> Fallible<bool> {
    let counts = call.slot(0)?.counted.is_some();
    let Some(counted) = Counted::of(call, 0)? else { return Ok(false) };
    let axis = shape.0.iter().position(|d| *d == Dim::N).ok_or_else(beyond)?;
    let dims: Vec<usize> = shape.0.iter().map(|d| if d.batch { 1 } else { d.size }).collect();
    let inner = |dims: &[usize], axis: usize| dims.get(axis + 1..).and_then(count);
    let alike = inner(&dims, axis) == inner(&counted.content.dims, counted.axis);
    if !alike || count(&dims) != Some(counted.content.data.len()) {
        return Err(beyond());
    }
    call.room(counted.content.data.len())?;
    let content = counted.content.with_dims(dims);
    match counts {
        true => give(call, content, axis),
        false => call.give_repeated(content, shape.clone()),
    }
    Ok(true)
}

/// Operand 0 repeated to a shape, when it counts images; says whether it does.
pub(super) fn expand(call: &mut Call<'_, '_>, shape: &Shape) -> Fallible<bool> {
    let Some(counted) = call.slot(0)?.counted else { return Ok(false) };
    let added = shape.rank().checked_sub(counted.content.dims.len()).ok_or_else(beyond)?;
    let axis = counted.axis + added;
    let batches = shape.0.iter().enumerate().filter(|(_, d)| d.batch);
    if batches.map(|(i, d)| (i, d.size)).ne([(axis, 1)]) {
        return Err(beyond());
    }
    let content = spread(call, &counted.content, shape)?;
    give(call, content, axis);
    Ok(true)
}

/// All operands along an axis, when one of them counts images; says whether one does.
pub(super) fn concat(call: &mut Call<'_, '_>, axis: usize) -> Fallible<bool> {
    let operands = call.node.input.len();
    let mut counts = false;
    for i in 0..operands {
        counts |= call.slot(i)?.counted.is_some();
    }
    if !counts {
        return Ok(false);
    }
    let parts = (0..operands).map(|i| Counted::of(call, i)?.ok_or_else(beyond)).collect::<Fallible<Vec<_>>>()?;
    let batch = parts.first().map_or(0, |first| first.axis);
    if axis == batch || parts.iter().any(|part| part.axis != batch) {
        return Err(beyond());
    }
    let contents: Vec<_> = parts.into_iter().map(|part| part.content).collect();
    let content = super::layout::join(call, &contents, axis)?;
    give(call, content, batch);
    Ok(true)
}

/// `Gather` from the first dimension, in which the images lie one after another, of the same elements of each.
pub(super) fn gather(call: &mut Call<'_, '_>, index: &Counted) -> Fallible<()> {
    let shape = call.shape(0)?;
    let axis = call.axis(call.int_or("axis", 0)?, shape.rank())?;
    let (Some(&Dim { size, batch: true }), 0, 0) = (shape.0.first(), axis, index.axis) else { return Err(beyond()) };
    let own = |v: i64| usize::try_from(v).ok().filter(|&v| v < size);
    let first = |v: &Linear| (v.batch == size as f64).then(|| own(v.constant as i64))?;
    let positions: Option<Vec<usize>> = index.content.data.iter().map(first).collect();
    let positions = positions.filter(|p| !p.is_empty()).ok_or_else(beyond)?;
    let inner = shape.0.get(1..).unwrap_or_default();
    let x = call.tensor(0)?;
    let images = call.reshape(x, Shape([&[Dim::N, Dim::fixed(size)], inner].concat()))?;
    let taken = call.push(Op::Gather { axis: 1, index: positions }, &[images])?;
    let value = call.reshape(taken, Shape([&index.shape().0, inner].concat()))?;
    call.give_value(value);
    Ok(())
}
