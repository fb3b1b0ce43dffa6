//! Selection by masks.

use vitc_ir::{Op, ValueId};

use super::Table;
use crate::call::Call;
use crate::known::{Kind, Known, Linear, broadcast, broadcast_strides, count, walk};
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[("IsNaN", is_nan), ("Trilu", trilu), ("Where", choose)];

/// Exporters guard a softmax against rows that are masked throughout: `Where(IsNaN(p), 0, p)`. A row that a model computes with has
/// a key, so the guard is `p`; nothing else can be asked of what is computed.
fn is_nan(call: &mut Call<'_, '_>) -> Fallible<()> {
    let value = call.tensor(0)?;
    if !call.importer.module.node_of(value).is_some_and(|n| matches!(n.op, Op::Softmax {})) {
        return Err(unsupported("whether a computed value is a number is known of a softmax only"));
    }
    call.give(crate::import::Slot { nan_of: Some(value), ..Default::default() });
    Ok(())
}

fn choose(call: &mut Call<'_, '_>) -> Fallible<()> {
    if let Some(guarded) = call.slot(0)?.nan_of {
        if call.slot(2)?.value != Some(guarded) {
            return Err(unsupported("a guard against what is not a number stands for another value"));
        }
        call.give_value(guarded);
        return Ok(());
    }
    if let Some(condition) = call.slot(0)?.positive {
        let cases = [call.tensor(1)?, call.tensor(2)?];
        let value = super::logic::select(call, condition, cases)?;
        call.give_value(value);
        return Ok(());
    }
    // The condition may be unknown when both cases are the same; nothing else can be done without it.
    let (mask, _) = call.content_of_image(0, "the condition")?;
    let (a, b) = (call.known_or_repeated(1, 1 << 20)?, call.known_or_repeated(2, 1 << 20)?);
    let shape = call.joint_shape(3)?;
    if let (Some(a), Some(b)) = (&a, &b) {
        let result = choose_known(call, &mask, a, b)?;
        match shape.as_fixed() {
            Some(_) => call.give_known(result),
            None => call.give_repeated(result, shape),
        }
        return Ok(());
    }
    let value = match (a, b) {
        (None, Some(b)) => bounded(call, 1, &mask, &b, true)?,
        (Some(a), None) => bounded(call, 2, &mask, &a, false)?,
        _ => blended(call, &mask)?,
    };
    // what is repeated over the batch may be all that has it
    let value = if call.shape_of(value) == shape { value } else { call.push(Op::Expand { shape }, &[value])? };
    call.give_value(value);
    Ok(())
}

fn choose_known(call: &mut Call<'_, '_>, mask: &Known, a: &Known, b: &Known) -> Fallible<Known> {
    let dims = broadcast(&a.dims, &b.dims).and_then(|d| broadcast(&d, &mask.dims));
    let dims = dims.ok_or_else(|| invalid("the shapes do not broadcast"))?;
    if a.kind != b.kind {
        return Err(invalid("the two cases have different types"));
    }
    call.room(count(&dims).ok_or_else(|| invalid("too many elements"))?)?;
    let steps = |k: &Known| broadcast_strides(&k.dims, &dims).into_iter().map(|s| s as i64).collect::<Vec<_>>();
    let (mask_at, a_at, b_at) = (walk(&dims, &steps(mask), 0), walk(&dims, &steps(a), 0), walk(&dims, &steps(b), 0));
    let value = |((m, i), j): ((usize, usize), usize)| {
        let (x, y) = (*a.data.get(i)?, *b.data.get(j)?);
        if x == y {
            return Some(x);
        }
        Some(if mask.data.get(m)?.fixed()? != 0.0 { x } else { y })
    };
    let data = mask_at.zip(a_at).zip(b_at).map(value).collect::<Option<Vec<_>>>();
    let data = data.ok_or_else(|| unsupported("the condition depends on the batch"))?;
    Ok(Known { kind: a.kind, dims, data })
}

/// `mask as f32` times `yes` where the mask is set, `no` elsewhere.
fn mask_constant(call: &mut Call<'_, '_>, what: &str, mask: &Known, yes: f64, no: f64) -> Fallible<ValueId> {
    call.room(mask.data.len())?;
    let value = |&m: &f64| if m != 0.0 { yes } else { no };
    let data = mask.numbers()?.iter().map(|m| value(m).into()).collect();
    call.constant(what, &Known { kind: Kind::F32, dims: mask.dims.clone(), data })
}

/// A number to which no score makes a difference: half of its last digit is more than 1e23.
const ABSORBS: f32 = -1e31;

/// A computed tensor (operand `i`) where the mask says so, else a constant: the tensor is clamped to the constant there and
/// to the whole range elsewhere, which is exact.
fn bounded(call: &mut Call<'_, '_>, i: usize, mask: &Known, other: &Known, keep: bool) -> Fallible<ValueId> {
    let bounds = |call: &mut Call<'_, '_>, what: &str, free: f64| {
        let kept = Known::scalar(Kind::F32, free);
        let bounds = match keep {
            true => choose_known(call, mask, &kept, other)?,
            false => choose_known(call, mask, other, &kept)?,
        };
        call.constant(what, &bounds)
    };
    // what masks scores absorbs them in a sum, and a sum is what becomes integers
    if other.data.iter().all(|v| v.fixed().is_some_and(|v| v <= f64::from(ABSORBS))) {
        let mask = bounds(call, "mask", 0.0)?;
        let x = call.tensor(i)?;
        return call.push(Op::Add {}, &[x, mask]);
    }
    // bounds that are infinite have no integers either; of numbers, a product with nothing is nothing
    if other.data.iter().all(|v| v.fixed() == Some(0.0)) {
        let (yes, no) = if keep { (1.0, 0.0) } else { (0.0, 1.0) };
        let mask = mask_constant(call, "mask", mask, yes, no)?;
        let x = call.tensor(i)?;
        return call.push(Op::Mul {}, &[x, mask]);
    }
    let upper = bounds(call, "upper", f64::INFINITY)?;
    let x = call.tensor(i)?;
    let x = call.push(Op::Min {}, &[x, upper])?;
    let least = f64::NEG_INFINITY;
    let lower = bounds(call, "lower", least)?;
    call.push(Op::Max {}, &[x, lower])
}

/// Both cases computed: `a * mask + b * (1 - mask)`, right for finite values.
fn blended(call: &mut Call<'_, '_>, mask: &Known) -> Fallible<ValueId> {
    let (a, b) = (call.tensor(1)?, call.tensor(2)?);
    let yes = mask_constant(call, "mask", mask, 1.0, 0.0)?;
    let no = mask_constant(call, "unmask", mask, 0.0, 1.0)?;
    let a = call.push(Op::Mul {}, &[a, yes])?;
    let b = call.push(Op::Mul {}, &[b, no])?;
    call.push(Op::Add {}, &[a, b])
}

/// The triangle of constants is evaluated, that of computed floats is selected.
fn trilu(call: &mut Call<'_, '_>) -> Fallible<()> {
    let diagonal = call.integers(1, "k")?.and_then(|k| k.first().copied()).unwrap_or(0);
    let upper = call.int_or("upper", 1)? != 0;
    let shape = call.shape(0)?;
    let &[.., rows, columns] = shape.0.as_slice() else { return Err(invalid("a matrix is needed")) };
    let (Some(rows), Some(columns)) = (rows.as_fixed(), columns.as_fixed()) else {
        return Err(unsupported("a triangle over the batch"));
    };
    let keep = |i: usize| {
        let (row, column) = ((i / columns % rows) as i64, (i % columns) as i64);
        let offset = column - row;
        if upper { offset >= diagonal } else { offset <= diagonal }
    };
    if let Some(x) = call.known_up_to(0, 1 << 20)? {
        call.room(x.data.len())?;
        let data = x.data.iter().enumerate().map(|(i, &v)| if keep(i) { v } else { Linear::from(0.0) }).collect();
        call.give_known(Known { kind: x.kind, dims: x.dims.clone(), data });
        return Ok(());
    }
    let total = rows.checked_mul(columns).ok_or_else(|| invalid("too many elements"))?;
    let x = call.tensor(0)?;
    super::map::room(call, x, total)?;
    let data = (0..total).map(|i| f64::from(u8::from(keep(i))).into()).collect();
    let mask = Known { kind: Kind::Bool, dims: vec![rows, columns], data };
    let value = bounded(call, 0, &mask, &Known::scalar(Kind::F32, 0.0), true)?;
    call.give_value(value);
    Ok(())
}
