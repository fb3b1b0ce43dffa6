//! Type rules of movement: the element type and a per-tensor quantization pass through.

use super::{Inferred, check_axis, ensure};
use crate::op::Op;
use crate::types::{Dim, Quant, Shape, TensorType};

fn moved(x: &TensorType, shape: Shape, axis_map: impl Fn(usize) -> Option<usize>) -> Inferred {
    shape.count().ok_or("the result has too many elements")?;
    let quant = match &x.quant {
        Some(Quant { axis: Some(axis), scale, zero_point }) => {
            let axis = axis_map(*axis).ok_or("this movement would tear apart the axis of per-channel scales")?;
            Some(Quant { axis: Some(axis), scale: scale.clone(), zero_point: *zero_point })
        }
        other => other.clone(),
    };
    Ok(TensorType { elem: x.elem, shape, quant })
}

pub(crate) fn reshape(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::Reshape { shape } = op else { unreachable!() };
    let x = operands[0];
    ensure(shape.count().is_some() && shape.count() == x.shape.count(), || {
        format!("cannot reshape [{}] to [{shape}]: the element counts differ", x.shape)
    })?;
    let last = (x.shape.0.last() == shape.0.last()).then(|| shape.rank().saturating_sub(1));
    moved(x, shape.clone(), |axis| if axis + 1 == x.shape.rank() { last } else { None })
}

pub(crate) fn transpose(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::Transpose { perm } = op else { unreachable!() };
    let x = operands[0];
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    ensure(sorted.iter().copied().eq(0..x.shape.rank()), || {
        format!("{perm:?} is not a permutation of {} dimensions", x.shape.rank())
    })?;
    let shape = Shape(perm.iter().map(|&p| x.shape.0[p]).collect());
    moved(x, shape, |axis| perm.iter().position(|&p| p == axis))
}

pub(crate) fn slice(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::Slice { axis, start, len, step } = op else { unreachable!() };
    let x = operands[0];
    check_axis(*axis, &x.shape)?;
    let size = x.shape.0[*axis].as_fixed().ok_or("the batch cannot be sliced")?;
    ensure(*step != 0 && *len > 0, || "a slice needs a step other than 0 and at least one element".into())?;
    let last =
        i64::try_from(*len - 1).ok().and_then(|n| n.checked_mul(*step)).and_then(|d| d.checked_add(*start as i64));
    ensure(*start < size && last.is_some_and(|l| (0..size as i64).contains(&l)), || {
        format!("slice {start}..(+{len} by {step}) leaves a dimension of {size}")
    })?;
    let mut shape = x.shape.clone();
    shape.0[*axis] = Dim::fixed(*len);
    moved(x, shape, |a| (a != *axis).then_some(a))
}

pub(crate) fn concat(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::Concat { axis } = op else { unreachable!() };
    let first = operands.first().ok_or("concat needs an operand")?;
    check_axis(*axis, &first.shape)?;
    let mut shape = first.shape.clone();
    let mut total = 0usize;
    for x in operands {
        ensure(x.elem == first.elem && x.quant == first.quant, || "concat of different types".into())?;
        ensure(x.shape.rank() == shape.rank(), || "concat of different ranks".into())?;
        let same = (0..shape.rank()).all(|i| i == *axis || x.shape.0[i] == shape.0[i]);
        ensure(same, || format!("cannot concat [{}] with [{}] along axis {axis}", x.shape, first.shape))?;
        let size = x.shape.0[*axis].as_fixed().ok_or("cannot concat along the batch")?;
        total = total.checked_add(size).ok_or("the result has too many elements")?;
    }
    shape.0[*axis] = Dim::fixed(total);
    moved(first, shape, |a| (a != *axis).then_some(a))
}

pub(crate) fn expand(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::Expand { shape } = op else { unreachable!() };
    let x = operands[0];
    let joint = super::broadcast(&x.shape, shape)?;
    ensure(&joint == shape, || format!("[{}] does not expand to [{shape}]", x.shape))?;
    let added = shape.rank() - x.shape.rank();
    moved(x, shape.clone(), |a| Some(a + added))
}

pub(crate) fn gather(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::Gather { axis, index } = op else { unreachable!() };
    let x = operands[0];
    check_axis(*axis, &x.shape)?;
    let size = x.shape.0[*axis].as_fixed().ok_or("the batch cannot be gathered")?;
    ensure(!index.is_empty() && index.iter().all(|&i| i < size), || {
        format!("an index is outside a dimension of {size}")
    })?;
    let mut shape = x.shape.clone();
    shape.0[*axis] = Dim::fixed(index.len());
    moved(x, shape, |a| (a != *axis).then_some(a))
}

pub(crate) fn pad(op: &Op, operands: &[&TensorType]) -> Inferred {
    let Op::Pad { before, after, .. } = op else { unreachable!() };
    let x = operands[0];
    let rank = x.shape.rank();
    ensure(before.len() == rank && after.len() == rank, || format!("pad wants {rank} amounts before and after"))?;
    let mut shape = x.shape.clone();
    for (i, dim) in shape.0.iter_mut().enumerate() {
        let extra = before[i].checked_add(after[i]).ok_or("the result has too many elements")?;
        if extra > 0 {
            let size = dim.as_fixed().ok_or("the batch cannot be padded")?;
            *dim = Dim::fixed(size.checked_add(extra).ok_or("the result has too many elements")?);
        }
    }
    moved(x, shape, |a| (before.get(a) == Some(&0) && after.get(a) == Some(&0)).then_some(a))
}
