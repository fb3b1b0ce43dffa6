//! LayerNorm from the chain that exporters before opset 17 write:
//! `m = mean(x); d = x - m; d / sqrt(mean(d^2) + epsilon)`, then gamma and beta; and RMSNorm, the same without the mean:
//! `x / sqrt(mean(x^2) + epsilon)`, also as a product with `(mean(x^2) + epsilon)^(-1/2)`.

use vitc_ir::{Op, Real, ValueId};

use super::draft::Draft;

/// The operand of a mean over the last dimension that keeps it.
fn mean_of(d: &Draft, v: ValueId) -> Option<ValueId> {
    match d.op_of(v)? {
        (Op::ReduceMean { axes, keep: true }, &[x]) if axes[..] == [d.shape(x).rank() - 1] => Some(x),
        _ => None,
    }
}

/// `x` of `x - mean(x)`.
fn centred(d: &Draft, v: ValueId) -> Option<ValueId> {
    match d.op_of(v)? {
        (Op::Sub {}, &[x, m]) if mean_of(d, m) == Some(x) => Some(x),
        _ => None,
    }
}

/// `v` of `v^2`.
fn squared(d: &Draft, v: ValueId) -> Option<ValueId> {
    match d.op_of(v)? {
        (Op::Pow {}, &[x, two]) if d.scalar(two) == Some(2.0) => Some(x),
        (Op::Mul {}, &[x, y]) if x == y => Some(x),
        _ => None,
    }
}

/// `(v, epsilon)` of `sqrt(mean(v^2) + epsilon)` or `(mean(v^2) + epsilon)^(1/2)`.
fn deviation(d: &Draft, v: ValueId) -> Option<(ValueId, f64)> {
    match d.op_of(v)? {
        (Op::Sqrt {}, &[x]) => variance(d, x),
        (Op::Pow {}, &[x, half]) if d.scalar(half) == Some(0.5) => variance(d, x),
        _ => None,
    }
}

/// `(v, epsilon)` of `(mean(v^2) + epsilon)^(-1/2)`. The reciprocal of a deviation became a quotient before.
fn reciprocal_deviation(d: &Draft, v: ValueId) -> Option<(ValueId, f64)> {
    match d.op_of(v)? {
        (Op::Pow {}, &[x, half]) if d.scalar(half) == Some(-0.5) => variance(d, x),
        (Op::Reciprocal {}, &[x]) => deviation(d, x),
        (Op::Div {}, &[one, x]) if d.scalar(one) == Some(1.0) => deviation(d, x),
        _ => None,
    }
}

/// `(v, epsilon)` of `mean(v^2) + epsilon`.
fn variance(d: &Draft, sum: ValueId) -> Option<(ValueId, f64)> {
    let (Op::Add {}, &[variance, epsilon]) = d.op_of(sum)? else { return None };
    Some((squared(d, mean_of(d, variance)?)?, d.scalar(epsilon)?))
}

/// `(x - mean) / sqrt(var + epsilon)` to `layernorm(x, 1, 0)`, and `x / sqrt(mean(x^2) + epsilon)` to one that is not centred;
/// gamma and beta join by the affine rules.
pub(crate) fn recover_layernorm(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (top, bottom, epsilon) = normalised(d, n)?;
    let (x, centred) = match centred(d, top) {
        Some(x) => (x, true),
        None => (top, false),
    };
    let channels = d.shape(x).last_fixed()?;
    let loc = d.join_locs(chain(d, top, bottom, n));
    let gamma = d.floats("ones", &[channels], &vec![1.0; channels]);
    let beta = d.floats("zeros", &[channels], &vec![0.0; channels]);
    d.push(Op::LayerNorm { epsilon: Real(epsilon), centred }, &[x, gamma, beta], loc)
}

/// `(v, divisor or factor, epsilon)` of `v` over its root mean square.
fn normalised(d: &Draft, n: usize) -> Option<(ValueId, ValueId, f64)> {
    let (a, b) = match (&d.node(n).op, &d.node(n).operands[..]) {
        (Op::Div {} | Op::Mul {}, &[a, b]) => (a, b),
        _ => return None,
    };
    let same =
        |top: ValueId, square: ValueId| top == square || centred(d, top).is_some_and(|x| centred(d, square) == Some(x));
    let pair = |top: ValueId, found: Option<(ValueId, f64)>| {
        found.filter(|&(square, _)| same(top, square)).map(|(_, epsilon)| epsilon)
    };
    if matches!(d.node(n).op, Op::Div {}) {
        return pair(a, deviation(d, b)).map(|epsilon| (a, b, epsilon));
    }
    let right = pair(a, reciprocal_deviation(d, b)).map(|epsilon| (a, b, epsilon));
    right.or_else(|| pair(b, reciprocal_deviation(d, a)).map(|epsilon| (b, a, epsilon)))
}

/// The nodes of the chain in the order of computation.
fn chain(d: &Draft, top: ValueId, bottom: ValueId, root: usize) -> Vec<usize> {
    let mut nodes: Vec<usize> = vec![root];
    let mut v = bottom;
    while let Some(n) = d.def(v).filter(|_| v != top && nodes.len() < 8) {
        nodes.push(n);
        v = d.node(n).operands[0];
    }
    if centred(d, top).is_some() {
        let centre = d.def(top);
        nodes.extend(centre);
        nodes.extend(centre.and_then(|n| d.def(d.node(n).operands[1])));
    }
    nodes.reverse();
    nodes
}
