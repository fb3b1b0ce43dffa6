//! Softmax from the quotient that people write: `e = exp(x - max(x)); e / sum(e)`, also without the maximum, which changes nothing,
//! and with a small number added to the sum, which is 1 at least where the maximum was taken off; and from the difference of
//! logarithms, `exp(x - log(sum(exp(x))))`.

use vitc_ir::{Op, ValueId};

use super::draft::Draft;

/// Largest number added to the sum that changes no weight to speak of.
const LARGEST_EPSILON: f64 = 1e-5;

/// `exp(x) / sum(exp(x))` to `softmax(x)`.
pub(crate) fn recover_softmax(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::Div {}, &[e, below]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    let (Op::Exp {}, &[difference]) = d.op_of(e)? else { return None };
    let largest = match d.op_of(difference) {
        Some((Op::Sub {}, &[x, m])) if is_row(d, m, x, |op| matches!(op, Op::ReduceMax { .. })) => Some((x, m)),
        _ => None,
    };
    let sum = match d.op_of(below)? {
        (Op::Add {}, &[sum, epsilon]) if largest.is_some() => {
            d.scalar(epsilon).filter(|e| (0.0..=LARGEST_EPSILON).contains(e))?;
            sum
        }
        _ => below,
    };
    if !is_row(d, sum, e, |op| matches!(op, Op::ReduceSum { .. })) {
        return None;
    }
    let x = largest.map_or(difference, |(x, _)| x);
    let inner = largest.iter().flat_map(|&(_, m)| [m, difference]).chain([e, sum, below]);
    let nodes: Vec<usize> = inner.filter_map(|v| d.def(v)).chain([n]).collect();
    let loc = d.join_locs(nodes);
    d.push(Op::Softmax {}, &[x], loc)
}

/// `exp(x - log_sum_exp(x))` to `softmax(x)`.
pub(crate) fn recover_softmax_of_logarithms(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::Exp {}, &[difference]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    let mut used = vec![difference];
    let (x, log) = match d.op_of(difference)? {
        (Op::Sub {}, &[x, log]) => (x, log),
        (Op::Add {}, &[x, minus]) => match d.op_of(minus)? {
            (Op::Neg {}, &[log]) => {
                used.push(minus);
                (x, log)
            }
            _ => return None,
        },
        _ => return None,
    };
    if log_sum_exp(d, log, &mut used)? != x {
        return None;
    }
    let nodes: Vec<usize> = used.into_iter().filter_map(|v| d.def(v)).chain([n]).collect();
    let loc = d.join_locs(nodes);
    d.push(Op::Softmax {}, &[less_largest(d, x).unwrap_or(x)], loc)
}

/// The `y` where `x` is `y - max(y)`.
fn less_largest(d: &Draft, x: ValueId) -> Option<ValueId> {
    match d.op_of(x)? {
        (Op::Sub {}, &[y, m]) if is_row(d, m, y, |op| matches!(op, Op::ReduceMax { .. })) => Some(y),
        _ => None,
    }
}

/// The `x` of which `v` is `log(sum(exp(x)))`, or `m + log(sum(exp(x - m)))`.
fn log_sum_exp(d: &Draft, v: ValueId, used: &mut Vec<ValueId>) -> Option<ValueId> {
    used.push(v);
    match d.op_of(v)? {
        (Op::Log {}, &[sum]) => log_of_sum(d, sum, used),
        (Op::Add {}, &[a, b]) => [(a, b), (b, a)].into_iter().find_map(|(log, m)| {
            let (Op::Log {}, &[sum]) = d.op_of(log)? else { return None };
            let difference = log_of_sum(d, sum, used)?;
            let (Op::Sub {}, &[x, taken]) = d.op_of(difference)? else { return None };
            used.extend([log, m, difference]);
            (taken == m).then_some(x)
        }),
        _ => None,
    }
}

/// The `x` of which `v` is `sum(exp(x))`. Where the largest element is 0, bounds of 1 and the number of elements change nothing.
fn log_of_sum(d: &Draft, v: ValueId, used: &mut Vec<ValueId>) -> Option<ValueId> {
    let (sum, bounds) = match d.op_of(v)? {
        (&Op::Clip { lo, hi }, &[sum]) => (sum, Some((lo.0, hi.0))),
        _ => (v, None),
    };
    let (Op::ReduceSum { .. }, &[e]) = d.op_of(sum)? else { return None };
    let (Op::Exp {}, &[x]) = d.op_of(e)? else { return None };
    if let Some((lo, hi)) = bounds {
        less_largest(d, x).filter(|_| lo <= 1.0)?;
        d.shape(x).last_fixed().filter(|&elements| hi >= elements as f64)?;
    }
    used.extend([v, sum, e]);
    is_row(d, sum, e, |op| matches!(op, Op::ReduceSum { .. })).then_some(x)
}

/// Whether `v` is a reduction of the rows of `x` that keeps their dimension.
fn is_row(d: &Draft, v: ValueId, x: ValueId, kind: fn(&Op) -> bool) -> bool {
    match d.op_of(v) {
        Some((op @ (Op::ReduceSum { axes, keep: true } | Op::ReduceMax { axes, keep: true }), &[y])) => {
            kind(op) && y == x && axes[..] == [d.shape(x).rank() - 1]
        }
        _ => false,
    }
}
