//! Neutral elements and canonical order: `x+0`, `x*1`, constants as second operands, quotients by constants as products.

use vitc_ir::{Const, Op, ValueId};

use super::draft::Draft;

fn same_shape(d: &Draft, a: ValueId, n: usize) -> bool {
    d.shape(a) == d.shape(d.node(n).result)
}

/// `x+0`, `x-0`, `x*1`, `x/1`, `x^1` to `x`.
pub(crate) fn drop_neutral(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    let neutral = match node.op {
        Op::Add {} | Op::Sub {} => 0.0,
        Op::Mul {} | Op::Div {} | Op::Pow {} => 1.0,
        _ => return None,
    };
    let x = node.operands[0];
    (d.uniform(node.operands[1]) == Some(neutral) && same_shape(d, x, n)).then_some(x)
}

/// `c+x` to `x+c`, `c*x` to `x*c`.
pub(crate) fn constant_second(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    let op = match node.op {
        Op::Add {} | Op::Mul {} | Op::Min {} | Op::Max {} => node.op.clone(),
        _ => return None,
    };
    let (a, b) = (node.operands[0], node.operands[1]);
    if !d.is_const(a) || d.is_const(b) {
        return None;
    }
    d.push(op, &[b, a], d.loc(n))
}

fn mapped(d: &mut Draft, v: ValueId, f: impl Fn(f64) -> f64) -> Option<ValueId> {
    let c = d.constant_of(v).filter(|c| c.layout.is_none())?;
    let values: Vec<f32> = c.values::<f32>().iter().map(|&x| f(f64::from(x)) as f32).collect();
    let (name, ty) = (c.name.clone(), c.ty.clone());
    values.iter().all(|x| x.is_finite()).then(|| d.constant(Const::new(name, ty, &values)))
}

/// `x/c` to `x*(1/c)`.
pub(crate) fn divide_by_constant(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    let (Op::Div {}, &[x, c]) = (&node.op, &node.operands[..]) else { return None };
    let inverse = mapped(d, c, |v| 1.0 / v)?;
    d.push(Op::Mul {}, &[x, inverse], d.loc(n))
}

/// `x-c` to `x+(-c)`.
pub(crate) fn subtract_constant(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    let (Op::Sub {}, &[x, c]) = (&node.op, &node.operands[..]) else { return None };
    let negated = mapped(d, c, |v| -v)?;
    d.push(Op::Add {}, &[x, negated], d.loc(n))
}

/// `x^2` to `x*x`.
pub(crate) fn square(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::Pow {}, &[x, two]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    if d.uniform(two) != Some(2.0) || !same_shape(d, x, n) {
        return None;
    }
    d.push(Op::Mul {}, &[x, x], d.loc(n))
}

/// `a*(1/b)` to `a/b`.
pub(crate) fn reciprocal_product(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    let (Op::Mul {}, &[a, b]) = (&node.op, &node.operands[..]) else { return None };
    let inverse = |v: ValueId| match d.op_of(v) {
        Some((Op::Reciprocal {}, &[x])) if d.used_once(v) => Some(x),
        _ => None,
    };
    let (top, bottom) = match (inverse(b), inverse(a)) {
        (Some(x), _) => (a, x),
        (_, Some(x)) => (b, x),
        _ => return None,
    };
    d.push(Op::Div {}, &[top, bottom], d.loc(n))
}

/// `f(x, expand(y))` to `f(x, y)` where broadcasting expands anyway.
pub(crate) fn drop_expand(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    if !is_broadcasting(&node.op) {
        return None;
    }
    let op = node.op.clone();
    let mut operands = node.operands.clone();
    let slot = operands.iter().position(|&v| matches!(d.op_of(v), Some((Op::Expand { .. }, _))))?;
    operands[slot] = d.op_of(operands[slot])?.1[0];
    d.push(op, &operands, d.loc(n))
}

/// A constant of equal elements as one element, where that is all that a choice, a bound or a factor of each head is: what is a
/// function of one value and numbers is one of few kernels, and a factor of one element moves furthest.
pub(crate) fn one_number(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    let heads = |v: ValueId| d.shape(v).0.last() == Some(&1.into());
    let fits = |v: ValueId| match node.op {
        Op::Min {} | Op::Max {} | Op::Select {} => true,
        Op::Mul {} => heads(v),
        _ => false,
    };
    let (op, mut operands, shape) = (node.op.clone(), node.operands.clone(), d.shape(node.result).clone());
    let slot = operands.iter().position(|&v| fits(v) && d.scalar(v).is_none() && d.uniform(v).is_some())?;
    let (name, value) = (d.constant_of(operands[slot])?.name.clone(), d.uniform(operands[slot])? as f32);
    operands[slot] = d.floats(&name, &[1], &[value]);
    let result = d.push(op, &operands, d.loc(n))?;
    (*d.shape(result) == shape).then_some(result)
}

/// Whether an op is a broadcasting function of more than one operand.
pub(crate) fn is_broadcasting(op: &Op) -> bool {
    matches!(
        op,
        Op::Add {} | Op::Sub {} | Op::Mul {} | Op::Div {} | Op::Pow {} | Op::Min {} | Op::Max {} | Op::Select {}
    )
}

/// `reshape(mean(x))` that puts back the dimensions of the mean to a mean that keeps them; likewise of sums and maxima, and with a
/// factor between.
pub(crate) fn keep_dimension(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::Reshape { shape }, &[moved]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    let (reduced, factor) = match d.op_of(moved)? {
        (Op::Mul {}, &[v, c]) if d.scalar(c).is_some() && d.shape(v) == d.shape(moved) => (v, Some(c)),
        _ => (moved, None),
    };
    let (op, &[x]) = d.op_of(reduced)? else { return None };
    let (kept, axes) = match op.clone() {
        Op::ReduceMean { axes, keep: false } => (Op::ReduceMean { axes: axes.clone(), keep: true }, axes),
        Op::ReduceSum { axes, keep: false } => (Op::ReduceSum { axes: axes.clone(), keep: true }, axes),
        Op::ReduceMax { axes, keep: false } => (Op::ReduceMax { axes: axes.clone(), keep: true }, axes),
        _ => return None,
    };
    let mut dims = d.shape(x).0.clone();
    axes.iter().for_each(|&axis| dims[axis] = vitc_ir::Dim::fixed(1));
    if dims != shape.0 || !d.used_once(reduced) || !d.used_once(moved) {
        return None;
    }
    let loc = d.join_locs(d.def(reduced).into_iter().chain([n]));
    let factor_loc = d.def(moved).and_then(|m| d.loc(m));
    let kept = d.push(kept, &[x], loc)?;
    match factor {
        Some(c) => d.push(Op::Mul {}, &[kept, c], factor_loc),
        None => Some(kept),
    }
}

/// `sum(x) * (1/n)` over `n` elements to `mean(x)`.
pub(crate) fn mean_of_sum(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::Mul {}, &[sum, c]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    let (Op::ReduceSum { axes, keep }, &[x]) = d.op_of(sum)? else { return None };
    let (axes, keep) = (axes.clone(), *keep);
    let count = axes.iter().try_fold(1, |all, &axis| Some(all * d.shape(x).0[axis].as_fixed()?))?;
    // as close to it as floats are
    let is_share = (d.scalar(c)? * count as f64 - 1.0).abs() < 1e-6;
    if !is_share || d.shape(sum) != d.shape(d.node(n).result) || !d.used_once(sum) {
        return None;
    }
    let loc = d.join_locs(d.def(sum).into_iter().chain([n]));
    d.push(Op::ReduceMean { axes, keep }, &[x], loc)
}
