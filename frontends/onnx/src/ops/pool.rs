//! Pooling.

use vitc_ir::{Dim, Op, ValueId};

use super::linear::{Window, as_image, conv_op, from_image, window};
use super::{Table, map};
use crate::call::Call;
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[
    ("AveragePool", average),
    ("GlobalAveragePool", |c| global(c, |axes| Op::ReduceMean { axes, keep: true })),
    ("GlobalMaxPool", |c| global(c, |axes| Op::ReduceMax { axes, keep: true })),
    ("MaxPool", largest),
];

fn global(call: &mut Call<'_, '_>, op: fn(Vec<usize>) -> Op) -> Fallible<()> {
    let x = call.tensor(0)?;
    let rank = call.shape_of(x).rank();
    if rank < 3 {
        return Err(invalid("there are no spatial dimensions"));
    }
    let value = call.push(op((2..rank).collect()), &[x])?;
    call.give_value(value);
    Ok(())
}

/// One spatial dimension of a pooling.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    size: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    pads: (usize, usize),
    results: usize,
}

impl Axis {
    /// Those places of result `o`'s window that lie in the operand.
    fn inside(self, o: usize) -> std::ops::Range<usize> {
        let start = o * self.stride;
        let first = self.pads.0.saturating_sub(start).div_ceil(self.dilation);
        let end = (self.size + self.pads.0).saturating_sub(start).div_ceil(self.dilation).min(self.kernel);
        first.min(end)..end
    }

    /// The element of the operand at place `k`, which lies in it.
    fn element(self, o: usize, k: usize) -> usize {
        (o * self.stride + k * self.dilation).saturating_sub(self.pads.0)
    }

    /// How many elements share the average of result `o`: those in the operand, or in its declared padding too.
    fn sharing(self, o: usize, count_padding: bool) -> f64 {
        let end = self.size + self.pads.0 + self.pads.1;
        let padded = end.saturating_sub(o * self.stride).div_ceil(self.dilation).min(self.kernel);
        let count = if count_padding { padded } else { self.inside(o).len() };
        count.max(1) as f64
    }
}

/// The spatial dimensions of a pooling of `x`, with the window as its attributes say.
fn axes(call: &Call<'_, '_>, x: ValueId) -> Fallible<(Vec<Axis>, Window)> {
    let shape = call.shape_of(x);
    let sizes: Option<Vec<usize>> = shape.0.iter().skip(2).map(|d| d.as_fixed()).collect();
    let sizes = sizes.filter(|s| !s.is_empty()).ok_or_else(|| invalid("there are no fixed spatial dimensions"))?;
    let kernel = call.counts("kernel_shape")?.ok_or_else(|| invalid("`kernel_shape` is missing"))?;
    let window = window(call, &sizes, &kernel)?;
    let ceil = call.int_or("ceil_mode", 0)? != 0;
    let mut axes = Vec::new();
    let each = sizes.iter().zip(&kernel).zip(&window.strides).zip(&window.dilations).zip(&window.pads);
    for ((((&size, &kernel), &stride), &dilation), &pads) in each {
        let too_large = || invalid("the window is larger than the padded operand");
        let padded = size.checked_add(pads.0).and_then(|s| s.checked_add(pads.1)).ok_or_else(too_large)?;
        let span = (kernel - 1).checked_mul(dilation).and_then(|s| s.checked_add(1)).ok_or_else(too_large)?;
        let mut results = match padded.checked_sub(span).filter(|&r| r <= call.importer.limits.elements) {
            Some(room) if ceil => room.div_ceil(stride) + 1,
            Some(room) => room / stride + 1,
            None if ceil && span.saturating_sub(padded) < stride => 1,
            None => return Err(too_large()),
        };
        // A window that begins in the padding behind the operand is none.
        if ceil && (results - 1) * stride >= size + pads.0 {
            results -= 1;
        }
        axes.push(Axis { size, kernel, stride, dilation, pads, results });
    }
    Ok((axes, window))
}

/// Along one axis after the other the largest of the elements at each place of the window; where a place lies in the
/// padding, another element of the window stands in, so that the range of values stays what it is.
fn largest(call: &mut Call<'_, '_>) -> Fallible<()> {
    call.only_outputs(1)?;
    let mut x = call.tensor(0)?;
    let (mut axes, _) = axes(call, x)?;
    if let Some(inner) = without_border(call, x, &mut axes) {
        x = inner;
    }
    for (i, axis) in axes.into_iter().enumerate() {
        let places = (0..axis.results).map(|o| axis.inside(o).len()).max().unwrap_or(0);
        let total = axis.results.checked_mul(places).ok_or_else(|| invalid("too many elements"))?;
        map::room(call, x, total)?;
        let mut best = None;
        for k in 0..places {
            let place = |o: usize| {
                let inside = axis.inside(o);
                Some(axis.element(o, (inside.start + k).min(inside.end.checked_sub(1)?)))
            };
            let positions: Option<Vec<usize>> = (0..axis.results).map(place).collect();
            let positions = positions.ok_or_else(|| unsupported("a window lies in the padding alone"))?;
            let taken = map::choose(call, x, i + 2, positions)?;
            best = Some(match best {
                Some(best) => call.push(Op::Max {}, &[best, taken])?,
                None => taken,
            });
        }
        x = best.ok_or_else(|| invalid("the kernel is empty"))?;
    }
    call.give_value(x);
    Ok(())
}

/// What a border of numbers that are never the largest was put around, the border being padding of the pooling as well.
fn without_border(call: &Call<'_, '_>, x: ValueId, axes: &mut [Axis]) -> Option<ValueId> {
    const NEVER: f64 = -1e30;
    let node = call.importer.module.node_of(x)?;
    let (Op::Pad { before, after, value }, &[inner]) = (&node.op, node.operands.as_slice()) else { return None };
    let (before, after) = (before.split_at_checked(2)?, after.split_at_checked(2)?);
    let kept = [before.0, after.0].concat().iter().all(|&p| p == 0);
    if value.0 > NEVER || !kept || before.1.len() != axes.len() {
        return None;
    }
    for (axis, (&before, &after)) in axes.iter_mut().zip(before.1.iter().zip(after.1)) {
        axis.size -= before + after;
        axis.pads = (axis.pads.0 + before, axis.pads.1 + after);
    }
    Some(inner)
}

fn average(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = call.tensor(0)?;
    let value = average_of(call, x)?;
    call.give_value(value);
    Ok(())
}

/// The average of a value over windows with the attributes of the node: the mean of everything, or a depthwise convolution
/// with equal weights; for more than two dimensions a product with a constant matrix along each.
pub(super) fn average_of(call: &mut Call<'_, '_>, x: ValueId) -> Fallible<ValueId> {
    let (axes, mut window) = axes(call, x)?;
    let count_padding = call.int_or("count_include_pad", 0)? != 0;
    if axes.len() > 2 {
        return average_by_axis(call, x, &axes, count_padding);
    }
    // with ceil_mode the window may be as large as one likes
    let whole = |a: &Axis| a.results == 1 && a.kernel >= a.size && a.dilation == 1 && a.pads == (0, 0);
    if axes.iter().all(whole) {
        return call.push(Op::ReduceMean { axes: (2..axes.len() + 2).collect(), keep: true }, &[x]);
    }
    // Windows that reach beyond the padding, which ceil_mode allows, see zeros there.
    for (pads, axis) in window.pads.iter_mut().zip(&axes) {
        let reach = (axis.results - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1;
        pads.1 = reach.saturating_sub(axis.size + axis.pads.0).max(pads.1);
    }
    let shape = call.shape_of(x);
    let channels = shape.0.get(1).copied().and_then(Dim::as_fixed).ok_or_else(|| unsupported("channels"))?;
    let (height, width) = match *axes.as_slice() {
        [w] => (1, w.kernel),
        [h, w] => (h.kernel, w.kernel),
        _ => return Err(invalid("`kernel_shape` does not fit")),
    };
    let share = 1.0 / (height as f32 * width as f32);
    let count = height.checked_mul(width).and_then(|c| c.checked_mul(channels));
    let count = count.ok_or_else(|| invalid("too many elements"))?;
    map::room(call, x, count)?;
    let weights = call.floats("average", &[channels, 1, height, width], &vec![share; count]);
    let op = conv_op(&window, channels)?;
    let image = as_image(call, x)?;
    let result = call.push(op, &[image, weights])?;
    let result = from_image(call, result, shape.rank())?;
    corrected(call, result, &axes, count_padding)
}

/// Averages over whole windows made averages over what counts.
fn corrected(call: &mut Call<'_, '_>, mut x: ValueId, axes: &[Axis], count_padding: bool) -> Fallible<ValueId> {
    for (i, &axis) in axes.iter().enumerate() {
        map::room(call, x, axis.results)?;
        let factor = |o: usize| (axis.kernel as f64 / axis.sharing(o, count_padding)) as f32;
        let factors: Vec<f32> = (0..axis.results).map(factor).collect();
        if factors.iter().all(|&f| f == 1.0) {
            continue;
        }
        let mut dims = vec![1; axes.len()];
        if let Some(dim) = dims.get_mut(i) {
            *dim = axis.results;
        }
        let factors = call.floats("counts", &dims, &factors);
        x = call.push(Op::Mul {}, &[x, factors])?;
    }
    Ok(x)
}

fn average_by_axis(call: &mut Call<'_, '_>, mut x: ValueId, axes: &[Axis], count_padding: bool) -> Fallible<ValueId> {
    for (i, &axis) in axes.iter().enumerate() {
        let weight = |o: usize, i: usize| {
            let offset = (i + axis.pads.0).checked_sub(o * axis.stride).filter(|d| d.is_multiple_of(axis.dilation));
            let inside = offset.is_some_and(|d| axis.inside(o).contains(&(d / axis.dilation)));
            if inside { 1.0 / axis.sharing(o, count_padding) } else { 0.0 }
        };
        x = map::linear(call, x, i + 2, axis.results, weight)?;
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_the_padding_are_not_inside() {
        let axis = Axis { size: 5, kernel: 3, stride: 2, dilation: 1, pads: (1, 1), results: 3 };
        assert_eq!((0..3).map(|o| axis.inside(o)).collect::<Vec<_>>(), [1..3, 0..3, 0..2]);
        assert_eq!((0..3).map(|o| axis.sharing(o, false)).collect::<Vec<_>>(), [2.0, 3.0, 2.0]);
        assert_eq!(axis.sharing(2, true), 3.0);
        assert_eq!(axis.element(1, 0), 1);
        let wide = Axis { dilation: 2, ..axis };
        assert_eq!((0..3).map(|o| wide.inside(o)).collect::<Vec<_>>(), [1..3, 0..2, 0..1]);
    }
}
