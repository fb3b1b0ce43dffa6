//! Comparisons and logic: known content only.

use super::{Table, arithmetic};
use crate::call::Call;
use crate::known::{Kind, Known, Linear};
use crate::problem::{Fallible, unsupported};

pub(super) const OPS: Table = &[
    ("And", |c| truth(c, |a, b| a && b)),
    ("Equal", |c| compare(c, equal)),
    ("Greater", |c| compare(c, |a, b| b.at_least(a).map(|v| !v))),
    ("GreaterOrEqual", |c| compare(c, |a, b| a.at_least(b))),
    ("Less", |c| compare(c, |a, b| a.at_least(b).map(|v| !v))),
    ("LessOrEqual", |c| compare(c, |a, b| b.at_least(a))),
    ("Not", not),
    ("Or", |c| truth(c, |a, b| a || b)),
    ("Xor", |c| truth(c, |a, b| a != b)),
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

fn compare(call: &mut Call<'_, '_>, f: fn(Linear, Linear) -> Option<bool>) -> Fallible<()> {
    pair(call, f)
}

fn truth(call: &mut Call<'_, '_>, f: fn(bool, bool) -> bool) -> Fallible<()> {
    pair(call, |a, b| Some(f(a.fixed()? != 0.0, b.fixed()? != 0.0)))
}

fn not(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (x, repeated) = call.content_of_image(0, "the operand")?;
    call.room(x.data.len())?;
    let data = x.data.iter().map(|v| v.fixed().map(|v| flag(v == 0.0))).collect::<Option<Vec<_>>>();
    let data = data.ok_or_else(|| unsupported("the operand depends on the batch"))?;
    give(call, Known { kind: Kind::Bool, dims: x.dims.clone(), data }, repeated, 1)
}
