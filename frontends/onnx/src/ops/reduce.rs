//! Reductions.

use vitc_ir::{Op, ValueId};

use super::{Table, arithmetic};
use crate::call::Call;
use crate::known::{Known, Linear};
use crate::problem::{Fallible, invalid, unsupported};

/// An op made from axes and whether they are kept.
type Reduction = fn(Vec<usize>, bool) -> Op;

const MAX: Reduction = |axes, keep| Op::ReduceMax { axes, keep };
const MEAN: Reduction = |axes, keep| Op::ReduceMean { axes, keep };
const SUM: Reduction = |axes, keep| Op::ReduceSum { axes, keep };

pub(super) const OPS: Table = &[
    ("ReduceL2", |c| reduce(c, square, SUM, |c, x| c.push(Op::Sqrt {}, &[x]))),
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
    let x = call.known(0)?.ok_or_else(|| unsupported("a product of computed floats"))?;
    fold(call, &x, Linear::mul)
}

fn fold(call: &mut Call<'_, '_>, x: &Known, f: fn(Linear, Linear) -> Option<Linear>) -> Fallible<()> {
    let keep = call.int_or("keepdims", 1)? != 0;
    let all = axes(call, x.dims.len())?.is_some_and(|a| a.len() == x.dims.len());
    if !all {
        return Err(unsupported("a reduction of integers over some axes only"));
    }
    let (first, others) = x.data.split_first().ok_or_else(|| invalid("nothing to reduce"))?;
    let total = others.iter().try_fold(*first, |acc, &v| f(acc, v));
    let total = total.ok_or_else(|| unsupported("the result is no linear function of the batch"))?;
    let dims = if keep { vec![1; x.dims.len()] } else { Vec::new() };
    call.give_known(Known { kind: x.kind, dims, data: vec![x.kind.round(total)] });
    Ok(())
}
