//! Reductions.

use vitc_ir::{Dim, Op, Shape, ValueId};

use super::index::slice_axis;
use super::{Table, arithmetic, map};
use crate::call::Call;
use crate::known::{Known, Linear, broadcast_strides, count, strides, walk};
use crate::problem::{Fallible, invalid, unsupported};

/// An op made from axes and whether they are kept.
type Reduction = fn(Vec<usize>, bool) -> Op;

const MAX: Reduction = |axes, keep| Op::ReduceMax { axes, keep };
const MEAN: Reduction = |axes, keep| Op::ReduceMean { axes, keep };
const SUM: Reduction = |axes, keep| Op::ReduceSum { axes, keep };

pub(super) const OPS: Table = &[
    ("CumSum", running_sum),
    ("ReduceL1", |c| reduce(c, |c, x| c.push(Op::Abs {}, &[x]), SUM, same)),
    ("ReduceL2", |c| reduce(c, square, SUM, |c, x| c.push(Op::Sqrt {}, &[x]))),
    ("ReduceLogSum", |c| reduce(c, same, SUM, |c, x| c.push(Op::Log {}, &[x]))),
    ("ReduceLogSumExp", log_sum_exp),
    ("ReduceMax", |c| known_or(c, larger, same, MAX, same)),
    ("ReduceMean", |c| reduce(c, same, MEAN, same)),
    ("ReduceMin", |c| known_or(c, smaller, negated, MAX, negated)),
    ("ReduceProd", product),
    ("ReduceSum", |c| known_or(c, |a, b| Some(a.add(b)), same, SUM, same)),
    ("ReduceSumSquare", |c| reduce(c, square, SUM, same)),
];

fn larger(a: Linear, b: Linear) -> Option<Linear> {
    arithmetic::pick(a, b, true)
}

fn smaller(a: Linear, b: Linear) -> Option<Linear> {
    arithmetic::pick(a, b, false)
}

/// A step before or after a reduction.
type Step = fn(&mut Call<'_, '_>, ValueId) -> Fallible<ValueId>;

fn same(_: &mut Call<'_, '_>, x: ValueId) -> Fallible<ValueId> {
    Ok(x)
}

fn square(call: &mut Call<'_, '_>, x: ValueId) -> Fallible<ValueId> {
    call.push(Op::Mul {}, &[x, x])
}

fn negated(call: &mut Call<'_, '_>, x: ValueId) -> Fallible<ValueId> {
    call.push(Op::Neg {}, &[x])
}

/// The reduced axes; `None` when nothing is reduced.
fn axes(call: &mut Call<'_, '_>, rank: usize) -> Fallible<Option<Vec<usize>>> {
    let given = call.integers_or_attr(1, "axes")?.unwrap_or_default();
    if !given.is_empty() {
        return call.axes(&given, rank).map(Some);
    }
    let nothing = call.int_or("noop_with_empty_axes", 0)? != 0;
    Ok(if nothing { None } else { Some((0..rank).collect()) })
}

fn reduce(call: &mut Call<'_, '_>, before: Step, op: Reduction, after: Step) -> Fallible<()> {
    let x = call.tensor(0)?;
    let keep = call.int_or("keepdims", 1)? != 0;
    let axes = axes(call, call.shape_of(x).rank())?;
    let x = before(call, x)?;
    let x = match axes {
        Some(axes) => call.push(op(axes, keep), &[x])?,
        None => x,
    };
    let value = after(call, x)?;
    call.give_value(value);
    Ok(())
}

/// Shape arithmetic reduces whole integer vectors; everything else is a float op.
fn known_or(
    call: &mut Call<'_, '_>,
    f: fn(Linear, Linear) -> Option<Linear>,
    before: Step,
    op: Reduction,
    after: Step,
) -> Fallible<()> {
    match call.known(0)? {
        Some(x) if !x.kind.is_float() => fold(call, &x, f),
        _ => reduce(call, before, op, after),
    }
}

fn product(call: &mut Call<'_, '_>) -> Fallible<()> {
    if let Some(x) = call.known(0)?.filter(|x| !x.kind.is_float()) {
        return fold(call, &x, Linear::mul);
    }
    let x = call.tensor(0)?;
    let shape = call.shape_of(x);
    let keep = call.int_or("keepdims", 1)? != 0;
    let Some(axes) = axes(call, shape.rank())? else {
        call.give_value(x);
        return Ok(());
    };
    let (kept, reduced): (Vec<usize>, Vec<usize>) = (0..shape.rank()).partition(|a| !axes.contains(a));
    let dims = |list: &[usize]| list.iter().filter_map(|&a| shape.0.get(a)).copied().collect::<Vec<Dim>>();
    let len = Shape(dims(&reduced)).as_fixed().and_then(|d| count(&d));
    let len = len.ok_or_else(|| unsupported("a product over the batch"))?;
    let turned = call.transpose(x, [kept.clone(), reduced].concat())?;
    let rows = call.reshape(turned, Shape([dims(&kept), vec![Dim::fixed(len)]].concat()))?;
    let product = halved(call, rows, kept.len(), len)?;
    let result = shape.0.iter().enumerate().filter(|(a, _)| keep || kept.contains(a));
    let result = result.map(|(a, &d)| if kept.contains(&a) { d } else { Dim::fixed(1) }).collect();
    let value = call.reshape(product, Shape(result))?;
    call.give_value(value);
    Ok(())
}

/// The product along `axis`, of `len` elements: the first half times the second until one is left.
fn halved(call: &mut Call<'_, '_>, mut x: ValueId, axis: usize, mut len: usize) -> Fallible<ValueId> {
    while len > 1 {
        let half = len / 2;
        let first = slice_axis(call, x, axis, 0, half, 1)?;
        let second = slice_axis(call, x, axis, half, half, 1)?;
        let product = call.push(Op::Mul {}, &[first, second])?;
        x = if len.is_multiple_of(2) {
            product
        } else {
            let odd = slice_axis(call, x, axis, len - 1, 1, 1)?;
            call.push(Op::Concat { axis }, &[product, odd])?
        };
        len = half + len % 2;
    }
    Ok(x)
}

/// `ln sum exp(x)` as `max x + ln sum exp(x - max x)`, which no `x` overflows.
fn log_sum_exp(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = call.tensor(0)?;
    let keep = call.int_or("keepdims", 1)? != 0;
    let Some(axes) = axes(call, call.shape_of(x).rank())? else {
        call.give_value(x);
        return Ok(());
    };
    let most = call.push(MAX(axes.clone(), true), &[x])?;
    let below = call.push(Op::Sub {}, &[x, most])?;
    let power = call.push(Op::Exp {}, &[below])?;
    let sum = call.push(SUM(axes.clone(), keep), &[power])?;
    let log = call.push(Op::Log {}, &[sum])?;
    let shape = call.shape_of(log);
    let most = call.reshape(most, shape)?;
    let value = call.push(Op::Add {}, &[log, most])?;
    call.give_value(value);
    Ok(())
}

/// Sums up to each element: a product with a triangle of ones.
fn running_sum(call: &mut Call<'_, '_>) -> Fallible<()> {
    let rank = call.shape(0)?.rank();
    let axis = call.content(1, "the axis")?.integers()?;
    let &[axis] = axis.as_slice() else { return Err(invalid("the axis is not one number")) };
    let axis = call.axis(axis, rank)?;
    let (exclusive, reverse) = (call.int_or("exclusive", 0)? != 0, call.int_or("reverse", 0)? != 0);
    let counts = |o: usize, i: usize| {
        let before = if reverse { i > o } else { i < o };
        before || (i == o && !exclusive)
    };
    if let Some(x) = call.known(0)?.filter(|x| !x.kind.is_float()) {
        return running_known(call, &x, axis, counts);
    }
    let x = call.tensor(0)?;
    let size = map::fixed_axis(call, x, axis)?;
    let value = map::linear(call, x, axis, size, |o, i| f64::from(u8::from(counts(o, i))))?;
    call.give_value(value);
    Ok(())
}

fn running_known(
    call: &mut Call<'_, '_>,
    x: &Known,
    axis: usize,
    counts: impl Fn(usize, usize) -> bool,
) -> Fallible<()> {
    let (size, step) = match (x.dims.get(axis), strides(&x.dims).get(axis)) {
        (Some(&size), Some(&step)) => (size, step),
        _ => return Err(invalid("the axis is out of range")),
    };
    // Every sum is made anew, which is dear for long rows.
    call.room(x.data.len().saturating_mul(size))?;
    let sum = |at: usize| {
        let (o, first) = (at / step % size, at - at / step % size * step);
        let terms = (0..size).filter(|&i| counts(o, i)).filter_map(|i| x.data.get(first + i * step));
        terms.fold(Linear::from(0.0), |acc, &v| acc.add(v))
    };
    let data = (0..x.data.len()).map(sum).collect();
    call.give_known(Known { kind: x.kind, dims: x.dims.clone(), data });
    Ok(())
}

/// Known content reduced over some or all axes.
fn fold(call: &mut Call<'_, '_>, x: &Known, f: fn(Linear, Linear) -> Option<Linear>) -> Fallible<()> {
    let keep = call.int_or("keepdims", 1)? != 0;
    let Some(axes) = axes(call, x.dims.len())? else { return call.give_operand(0) };
    if x.data.is_empty() {
        return Err(invalid("nothing to reduce"));
    }
    let reduced = |a: usize| axes.contains(&a);
    let full: Vec<usize> = x.dims.iter().enumerate().map(|(a, &d)| if reduced(a) { 1 } else { d }).collect();
    let steps = broadcast_strides(&full, &x.dims).into_iter().map(|s| s as i64).collect::<Vec<_>>();
    let mut totals: Vec<Option<Linear>> = vec![None; count(&full).ok_or_else(|| invalid("too many elements"))?];
    for (at, &v) in walk(&x.dims, &steps, 0).zip(&x.data) {
        let total = totals.get_mut(at).ok_or_else(|| invalid("an index is out of range"))?;
        let joined = total.map_or(Some(v), |t| f(t, v));
        *total = Some(joined.ok_or_else(|| unsupported("the result is no linear function of the batch"))?);
    }
    call.room(totals.len())?;
    let dims = if keep { full } else { (0..).zip(&x.dims).filter(|(a, _)| !reduced(*a)).map(|(_, &d)| d).collect() };
    let data = totals.into_iter().flatten().map(|v| x.kind.round(v)).collect();
    call.give_known(Known { kind: x.kind, dims, data });
    Ok(())
}
