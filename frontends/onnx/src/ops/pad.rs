//! Padding.

use vitc_ir::{Dim, Op, Real, ValueId};

use super::{Table, index, map};
use crate::call::Call;
use crate::import::shorten;
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[("Pad", pad)];

/// What the elements around the operand are.
#[derive(Clone, Copy, Debug)]
enum Around {
    Edge,
    Reflect,
    Wrap,
}

fn pad(call: &mut Call<'_, '_>) -> Fallible<()> {
    let rank = call.shape(0)?.rank();
    let amounts = call.integers_or_attr(1, "pads")?.ok_or_else(|| invalid("the amounts are missing"))?;
    let axes = match call.integers(3, "the axes")? {
        Some(axes) => call.axes(&axes, rank)?,
        None => (0..rank).collect(),
    };
    if amounts.iter().all(|&a| a == 0) {
        return call.give_operand(0);
    }
    if amounts.len() != 2 * axes.len() {
        return Err(invalid(format!("{} amounts for {} axes", amounts.len(), axes.len())));
    }
    let (before, after) = amounts.split_at_checked(axes.len()).ok_or_else(|| invalid("the amounts do not fit"))?;
    let (mut fronts, mut backs) = (vec![0i64; rank], vec![0i64; rank]);
    for ((&axis, &front), &back) in axes.iter().zip(before).zip(after) {
        if let (Some(f), Some(b)) = (fronts.get_mut(axis), backs.get_mut(axis)) {
            (*f, *b) = (front, back);
        }
    }
    let x = call.tensor(0)?;
    let x = crop(call, x, &fronts, &backs)?;
    let value = match call.word_or("mode", "constant")? {
        "constant" => filled(call, x, &fronts, &backs)?,
        "edge" => copied(call, x, &fronts, &backs, Around::Edge)?,
        "reflect" => copied(call, x, &fronts, &backs, Around::Reflect)?,
        "wrap" => copied(call, x, &fronts, &backs, Around::Wrap)?,
        other => return Err(invalid(format!("mode={:?}", shorten(other)))),
    };
    call.give_value(value);
    Ok(())
}

/// Padding with one value.
fn filled(call: &mut Call<'_, '_>, x: ValueId, fronts: &[i64], backs: &[i64]) -> Fallible<ValueId> {
    let value = call.number_or_attr(2, "value", "the padding value")?.unwrap_or(0.0);
    let positive = |list: &[i64]| list.iter().map(|&a| usize::try_from(a).unwrap_or(0)).collect::<Vec<_>>();
    let (before, after) = (positive(fronts), positive(backs));
    let grows = before.iter().chain(&after).any(|&a| a > 0);
    if grows { call.push(Op::Pad { before, after, value: Real(value) }, &[x]) } else { Ok(x) }
}

/// Padding with elements of the operand.
fn copied(call: &mut Call<'_, '_>, mut x: ValueId, fronts: &[i64], backs: &[i64], around: Around) -> Fallible<ValueId> {
    for (axis, (&front, &back)) in fronts.iter().zip(backs).enumerate().filter(|(_, (f, b))| **f > 0 || **b > 0) {
        let size = map::fixed_axis(call, x, axis)? as i64;
        let (front, back) = (front.max(0), back.max(0));
        let most = call.importer.limits.elements as i64;
        let total = front.checked_add(back).and_then(|p| p.checked_add(size)).filter(|&t| t <= most);
        let total = total.ok_or_else(|| invalid("the padding is too large").code("limit"))?;
        map::room(call, x, total as usize)?;
        let positions = (-front..size + back).map(|i| source(i, size, around));
        let positions: Option<Vec<usize>> = positions.map(|p| usize::try_from(p).ok()).collect();
        x = map::choose(call, x, axis, positions.ok_or_else(|| invalid("the operand is empty"))?)?;
    }
    Ok(x)
}

/// The element of a dimension of `size` that stands at position `i`, which may lie outside.
fn source(i: i64, size: i64, around: Around) -> i64 {
    match around {
        Around::Edge => i.clamp(0, (size - 1).max(0)),
        Around::Wrap => i.rem_euclid(size.max(1)),
        Around::Reflect if size <= 1 => 0,
        Around::Reflect => {
            let i = i.rem_euclid(2 * (size - 1));
            i.min(2 * (size - 1) - i)
        }
    }
}

/// Negative padding.
fn crop(call: &mut Call<'_, '_>, mut x: ValueId, fronts: &[i64], backs: &[i64]) -> Fallible<ValueId> {
    for (axis, (&front, &back)) in fronts.iter().zip(backs).enumerate() {
        let (cut_front, cut_back) = (front.min(0).unsigned_abs() as usize, back.min(0).unsigned_abs() as usize);
        if cut_front == 0 && cut_back == 0 {
            continue;
        }
        let size = call.shape_of(x).0.get(axis).copied().and_then(Dim::as_fixed);
        let left = size.and_then(|s| s.checked_sub(cut_front)?.checked_sub(cut_back));
        let len = left.ok_or_else(|| unsupported("negative padding larger than the dimension, or of the batch"))?;
        x = index::slice_axis(call, x, axis, cut_front, len, 1)?;
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_outside_are_elements_inside() {
        let around = |around| (-3..6).map(|i| source(i, 3, around)).collect::<Vec<_>>();
        assert_eq!(around(Around::Edge), [0, 0, 0, 0, 1, 2, 2, 2, 2]);
        assert_eq!(around(Around::Reflect), [1, 2, 1, 0, 1, 2, 1, 0, 1]);
        assert_eq!(around(Around::Wrap), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
        assert_eq!(source(-5, 1, Around::Reflect), 0);
    }
}
