//! Element-by-element arithmetic of two or more operands. Small constants and everything with integers in it is evaluated.

use std::rc::Rc;

use vitc_ir::{Op, ValueId};

use super::{Table, counted};
use crate::call::{Call, SMALL};
use crate::known::{Kind, Known, Linear, broadcast, broadcast_strides, count, walk};
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[
    ("Add", |c| binary(c, Op::Add {}, |_, a, b| Some(a.add(b)))),
    ("Div", |c| binary(c, Op::Div {}, divide)),
    ("Max", |c| variadic(c, &|| Op::Max {}, |a, b| pick(a, b, true))),
    ("Mean", mean),
    ("Min", |c| variadic(c, &|| Op::Min {}, |a, b| pick(a, b, false))),
    ("Mod", remainder),
    ("Mul", |c| binary(c, Op::Mul {}, |_, a, b| a.mul(b))),
    ("Pow", power),
    ("Sub", |c| binary(c, Op::Sub {}, |_, a, b| Some(a.sub(b)))),
    ("Sum", |c| variadic(c, &|| Op::Add {}, |a, b| Some(a.add(b)))),
];

fn divide(kind: Kind, a: Linear, b: Linear) -> Option<Linear> {
    if kind.is_float() { a.div(b) } else { a.div_int(b) }
}

/// The larger or the smaller, when it is the same one for every batch.
pub(super) fn pick(a: Linear, b: Linear, larger: bool) -> Option<Linear> {
    let first_is_larger = a.at_least(b).or_else(|| b.at_least(a).map(|v| !v))?;
    Some(if first_is_larger == larger { a } else { b })
}

/// Both operands' content, when both are known and the result should be evaluated: it is not a float tensor, or small.
pub(super) fn both(call: &mut Call<'_, '_>) -> Fallible<Option<(Rc<Known>, Rc<Known>)>> {
    let (Some(a), Some(b)) = (call.known(0)?, call.known(1)?) else { return Ok(None) };
    let small = a.data.len().max(b.data.len()) <= SMALL;
    Ok((small || !a.kind.is_float() || !b.kind.is_float()).then_some((a, b)))
}

fn binary(call: &mut Call<'_, '_>, op: Op, f: fn(Kind, Linear, Linear) -> Option<Linear>) -> Fallible<()> {
    if counted::binary(call, f)? {
        return Ok(());
    }
    if let Some((a, b)) = both(call)? {
        let result = zip(call, &a, &b, a.kind, |x, y| f(a.kind, x, y))?;
        call.give_known(result);
        return Ok(());
    }
    let operands = [call.tensor(0)?, call.tensor(1)?];
    let value = call.push(op, &operands)?;
    call.give_value(value);
    Ok(())
}

/// A function of two known operands, broadcast.
pub(super) fn zip(
    call: &mut Call<'_, '_>,
    a: &Known,
    b: &Known,
    kind: Kind,
    f: impl Fn(Linear, Linear) -> Option<Linear>,
) -> Fallible<Known> {
    let dims = broadcast(&a.dims, &b.dims)
        .ok_or_else(|| invalid(format!("shapes {:?} and {:?} do not broadcast", a.dims, b.dims)))?;
    let total = count(&dims).ok_or_else(|| invalid("too many elements"))?;
    call.room(total)?;
    let steps = |from: &[usize]| broadcast_strides(from, &dims).into_iter().map(|s| s as i64).collect::<Vec<_>>();
    let positions = walk(&dims, &steps(&a.dims), 0).zip(walk(&dims, &steps(&b.dims), 0));
    let value = |(i, j): (usize, usize)| f(*a.data.get(i)?, *b.data.get(j)?).map(|v| kind.round(v));
    let data = positions.map(value).collect::<Option<Vec<_>>>();
    let data = data.ok_or_else(|| unsupported("the result is undefined or is no linear function of the batch"))?;
    Ok(Known { kind, dims, data })
}

fn variadic(call: &mut Call<'_, '_>, op: &dyn Fn() -> Op, f: fn(Linear, Linear) -> Option<Linear>) -> Fallible<()> {
    let operands = call.node.input.len();
    let mut contents = Vec::new();
    for i in 0..operands {
        contents.extend(call.known(i)?);
    }
    if let Some((first, others)) = contents.split_first().filter(|_| contents.len() == operands) {
        let mut result = Known::clone(first);
        for other in others {
            result = zip(call, &result, other, first.kind, f)?;
        }
        call.give_known(result);
        return Ok(());
    }
    let value = chain(call, op)?;
    call.give_value(value);
    Ok(())
}

/// The operands joined one after another by a float op.
fn chain(call: &mut Call<'_, '_>, op: &dyn Fn() -> Op) -> Fallible<ValueId> {
    let mut result = call.tensor(0)?;
    for i in 1..call.node.input.len() {
        let operand = call.tensor(i)?;
        result = call.push(op(), &[result, operand])?;
    }
    Ok(result)
}

fn mean(call: &mut Call<'_, '_>) -> Fallible<()> {
    let sum = chain(call, &|| Op::Add {})?;
    let share = call.scalar(1.0 / call.node.input.len() as f64);
    let value = call.push(Op::Mul {}, &[sum, share])?;
    call.give_value(value);
    Ok(())
}

fn remainder(call: &mut Call<'_, '_>) -> Fallible<()> {
    let truncated = call.int_or("fmod", 0)? == 1;
    let Some((a, b)) = both(call)? else { return Err(unsupported("a remainder of computed floats is not supported")) };
    let fmod = |x: Linear, y: Linear| Some((x.fixed()? % y.fixed().filter(|&y| y != 0.0)?).into());
    let result = zip(call, &a, &b, a.kind, |x, y| if truncated { fmod(x, y) } else { x.rem(y) })?;
    call.give_known(result);
    Ok(())
}

fn power(call: &mut Call<'_, '_>) -> Fallible<()> {
    if let Some((a, b)) = both(call)? {
        let result = zip(call, &a, &b, a.kind, |x, y| Some(x.fixed()?.powf(y.fixed()?).into()))?;
        call.give_known(result);
        return Ok(());
    }
    let base = call.tensor(0)?;
    // The exponent may be an integer tensor.
    let exponent = match call.known(1)? {
        Some(known) => call.constant("exponent", &Known { kind: Kind::F32, ..Known::clone(&known) })?,
        None => call.tensor(1)?,
    };
    let value = call.push(Op::Pow {}, &[base, exponent])?;
    call.give_value(value);
    Ok(())
}
