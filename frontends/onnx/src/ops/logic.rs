//! Comparisons and logic, of known content and of what is computed: there a condition is that a value is positive, or that it is
//! not, for a choice between two cases to read ([`Positive`]).

use vitc_ir::{Op, ValueId};

use super::{Table, arithmetic};
use crate::call::Call;
use crate::import::{Positive, Slot};
use crate::known::{Kind, Known, Linear};
use crate::problem::{Fallible, unsupported};

pub(super) const OPS: Table = &[
    ("And", |c| join(c, |a, b| a && b, Join::And)),
    ("Equal", |c| pair(c, equal)),
    ("Greater", |c| compare(c, [0, 1], true)),
    ("GreaterOrEqual", |c| compare(c, [1, 0], false)),
    ("Less", |c| compare(c, [1, 0], true)),
    ("LessOrEqual", |c| compare(c, [0, 1], false)),
    ("Not", not),
    ("Or", |c| join(c, |a, b| a || b, Join::Or)),
    ("Xor", |c| pair(c, |a, b| Some((a.fixed()? != 0.0) != (b.fixed()? != 0.0)))),
];

fn equal(a: Linear, b: Linear) -> Option<bool> {
    let difference = a.sub(b);
    if difference.batch == 0.0 {
        return Some(a.constant == b.constant);
    }
    // Equal for one batch at most; never, when that is no batch.
    let batch = -difference.constant / difference.batch;
    (batch < 1.0 || batch.fract() != 0.0).then_some(false)
}

fn flag(v: bool) -> Linear {
    f64::from(u8::from(v)).into()
}

fn pair(call: &mut Call<'_, '_>, f: impl Fn(Linear, Linear) -> Option<bool>) -> Fallible<()> {
    let (a, a_repeated) = call.content_of_image(0, "the comparison")?;
    let (b, b_repeated) = call.content_of_image(1, "the comparison")?;
    let result = arithmetic::zip(call, &a, &b, Kind::Bool, |x, y| f(x, y).map(flag))?;
    give(call, result, a_repeated || b_repeated, 2)
}

/// The result of the first `operands` operands, repeated over the batch as one of them is.
fn give(call: &mut Call<'_, '_>, result: Known, repeated: bool, operands: usize) -> Fallible<()> {
    match repeated {
        true => {
            let shape = call.joint_shape(operands)?;
            call.give_repeated(result, shape);
        }
        false => call.give_known(result),
    }
    Ok(())
}

/// Whether operand `a` is larger than operand `b`, or (where that `holds` not) whether it is not.
fn compare(call: &mut Call<'_, '_>, [a, b]: [usize; 2], holds: bool) -> Fallible<()> {
    let computed = |call: &mut Call<'_, '_>, i| Ok(call.known_or_repeated(i, usize::MAX)?.is_none());
    if computed(call, a)? || computed(call, b)? {
        let (x, y) = (call.tensor(a)?, call.tensor(b)?);
        let value = call.push(Op::Sub {}, &[x, y])?;
        return give_positive(call, value, holds);
    }
    let larger = |x: Linear, y: Linear| y.at_least(x).map(|v| v != holds);
    match a < b {
        true => pair(call, larger),
        false => pair(call, |x, y| larger(y, x)),
    }
}

fn give_positive(call: &mut Call<'_, '_>, value: ValueId, holds: bool) -> Fallible<()> {
    call.give(Slot { positive: Some(Positive { value, holds }), ..Slot::default() });
    Ok(())
}

/// How two conditions are one.
#[derive(Clone, Copy)]
enum Join {
    And,
    Or,
}

fn join(call: &mut Call<'_, '_>, f: fn(bool, bool) -> bool, join: Join) -> Fallible<()> {
    let (Some(a), Some(b)) = (call.slot(0)?.positive, call.slot(1)?.positive) else {
        return pair(call, |a, b| Some(f(a.fixed()? != 0.0, b.fixed()? != 0.0)));
    };
    let b = if b.holds { b.value } else { choose(call, b, [1.0, -1.0])? };
    // where the first one decides alone, the second is not asked
    let decided = call.scalar(match join {
        Join::And => -1.0,
        Join::Or => 1.0,
    });
    let cases = if a.holds == matches!(join, Join::And) { [b, decided] } else { [decided, b] };
    let value = call.push(Op::Select {}, &[a.value, cases[0], cases[1]])?;
    give_positive(call, value, true)
}

/// One number where a condition is fulfilled, another elsewhere.
pub(super) fn choose(call: &mut Call<'_, '_>, on: Positive, [yes, no]: [f64; 2]) -> Fallible<ValueId> {
    let (yes, no) = (call.scalar(yes), call.scalar(no));
    select(call, on, [yes, no])
}

/// One value where a condition is fulfilled, another elsewhere.
pub(super) fn select(call: &mut Call<'_, '_>, on: Positive, [yes, no]: [ValueId; 2]) -> Fallible<ValueId> {
    let cases = if on.holds { [yes, no] } else { [no, yes] };
    call.push(Op::Select {}, &[on.value, cases[0], cases[1]])
}

fn not(call: &mut Call<'_, '_>) -> Fallible<()> {
    if let Some(Positive { value, holds }) = call.slot(0)?.positive {
        return give_positive(call, value, !holds);
    }
    let (x, repeated) = call.content_of_image(0, "the operand")?;
    call.room(x.data.len())?;
    let data = x.data.iter().map(|v| v.fixed().map(|v| flag(v == 0.0))).collect::<Option<Vec<_>>>();
    let data = data.ok_or_else(|| unsupported("the operand depends on the batch"))?;
    give(call, Known { kind: Kind::Bool, dims: x.dims.clone(), data }, repeated, 1)
}
