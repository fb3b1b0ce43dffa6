//! Selection by masks.

use vitc_ir::{Op, ValueId};

use super::Table;
use crate::call::Call;
use crate::known::{Kind, Known, Linear, broadcast, broadcast_strides, count, strides, walk};
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[("ScatterND", scatter), ("Trilu", trilu), ("Where", choose)];

fn choose(call: &mut Call<'_, '_>) -> Fallible<()> {
    // The condition may be unknown when both cases are the same; nothing else can be done without it.
    let mask = call.content(0, "the condition")?;
    let (a, b) = (call.known_up_to(1, 1 << 20)?, call.known_up_to(2, 1 << 20)?);
    if let (Some(a), Some(b)) = (&a, &b) {
        let result = choose_known(call, &mask, a, b)?;
        call.give_known(result);
        return Ok(());
    }
    let value = match (a, b) {
        (None, Some(b)) => bounded(call, 1, &mask, &b, true)?,
        (Some(a), None) => bounded(call, 2, &mask, &a, false)?,
        _ => blended(call, &mask)?,
    };
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
    let upper = bounds(call, "upper", f64::INFINITY)?;
    let x = call.tensor(i)?;
    let x = call.push(Op::Min {}, &[x, upper])?;
    let least = f64::NEG_INFINITY;
    if other.data.iter().all(|v| v.fixed().is_some_and(|v| v <= f64::from(f32::MIN))) {
        return Ok(x);
    }
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

fn trilu(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = call.known_up_to(0, 1 << 20)?.ok_or_else(|| unsupported("only constants are supported"))?;
    let diagonal = call.integers(1, "k")?.and_then(|k| k.first().copied()).unwrap_or(0);
    let upper = call.int_or("upper", 1)? != 0;
    let &[.., rows, columns] = x.dims.as_slice() else { return Err(invalid("a matrix is needed")) };
    call.room(x.data.len())?;
    let keep = |i: usize| {
        let (row, column) = ((i / columns % rows) as i64, (i % columns) as i64);
        let offset = column - row;
        if upper { offset >= diagonal } else { offset <= diagonal }
    };
    let data = x.data.iter().enumerate().map(|(i, &v)| if keep(i) { v } else { Linear::from(0.0) }).collect();
    call.give_known(Known { kind: x.kind, dims: x.dims.clone(), data });
    Ok(())
}

fn scatter(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = call.known_up_to(0, 1 << 20)?.ok_or_else(|| unsupported("only constants are supported"))?;
    let index = call.content(1, "the index")?;
    let updates = call.content(2, "the updates")?;
    if call.word_or("reduction", "none")? != "none" {
        return Err(unsupported("a reduction other than none"));
    }
    if x.data.is_empty() {
        return Err(unsupported("the tensor is empty"));
    }
    let depth = index.dims.last().copied().filter(|&d| d > 0 && d <= x.dims.len());
    let depth = depth.ok_or_else(|| invalid("the index does not fit"))?;
    let steps = strides(&x.dims);
    let run = count(x.dims.get(depth..).unwrap_or_default()).unwrap_or(0);
    let numbers = index.integers()?;
    let rows = numbers.len() / depth;
    call.room(x.data.len())?;
    let mut data = x.data.clone();
    if rows.checked_mul(run) != Some(updates.data.len()) {
        return Err(invalid("the updates do not fit the index"));
    }
    for (k, at) in numbers.chunks_exact(depth).enumerate() {
        let start = at.iter().zip(&x.dims).zip(&steps).try_fold(0usize, |acc, ((&i, &size), &step)| {
            let i = if i < 0 { i.checked_add(size as i64)? } else { i };
            let i = usize::try_from(i).ok().filter(|&i| i < size)?;
            Some(acc + i * step)
        });
        let target = start.and_then(|s| data.get_mut(s..s + run));
        let source = updates.data.get(k * run..(k + 1) * run);
        match (target, source) {
            (Some(target), Some(source)) => target.copy_from_slice(source),
            _ => return Err(invalid("an index is out of range")),
        }
    }
    call.give_known(Known { kind: x.kind, dims: x.dims.clone(), data });
    Ok(())
}
