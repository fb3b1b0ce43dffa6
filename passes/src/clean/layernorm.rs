//! LayerNorm from the chains that exporters before opset 17 and people write:
//! `m = mean(x); d = x - m; d / sqrt(mean(d^2) + epsilon)`, then gamma and beta; and RMSNorm, the same without the mean:
//! `x / sqrt(mean(x^2) + epsilon)`, also as a product with `(mean(x^2) + epsilon)^(-1/2)`.
//!
//! A sum in place of the second mean, `n/(n-1)` of an unbiased deviation, and a factor behind the root (a norm of vectors) are one
//! factor of the variance, which goes into gamma. An epsilon that is added to the root, or is its least value, becomes the square of
//! itself below the root; it is taken where it is so small that the two differ for no row of numbers that integers tell apart.

use vitc_ir::{Op, Real, ValueId};

use super::draft::Draft;

/// Largest epsilon outside of the root.
const LARGEST_OUTSIDE: f64 = 1e-5;
/// What stands for no epsilon: rows of one number are zeros then.
const LEAST: f64 = 1e-12;

/// The operand of a mean over one dimension that keeps it, and the dimension.
fn mean_of(d: &Draft, v: ValueId) -> Option<(ValueId, usize)> {
    match d.op_of(v)? {
        (Op::ReduceMean { axes, keep: true }, &[x]) if axes.len() == 1 => Some((x, axes[0])),
        _ => None,
    }
}

/// A value less its mean over a dimension, or itself.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Rows {
    x: ValueId,
    /// The dimension of the mean that was taken off.
    centred: Option<usize>,
}

impl Rows {
    fn of(d: &Draft, v: ValueId) -> Rows {
        let centred = match d.op_of(v) {
            Some((Op::Sub {}, &[x, m])) => mean_of(d, m).filter(|&(y, _)| y == x),
            _ => None,
        };
        centred.map_or(Rows { x: v, centred: None }, |(x, axis)| Rows { x, centred: Some(axis) })
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

/// `factor * mean(rows^2) + epsilon`, the mean over `axis`; or the root of it.
#[derive(Clone, Copy)]
struct Variance {
    rows: Rows,
    axis: usize,
    factor: f64,
    epsilon: f64,
}

impl Variance {
    /// A second moment without an epsilon.
    fn moment(d: &Draft, v: ValueId) -> Option<Variance> {
        let of = |square: ValueId, axis: usize, factor: f64| {
            let rows = Rows::of(d, squared(d, square)?);
            let one_axis = rows.centred.is_none_or(|centred| centred == axis);
            one_axis.then_some(Variance { rows, axis, factor, epsilon: 0.0 })
        };
        match d.op_of(v)? {
            (Op::ReduceMean { axes, keep: true }, &[square]) if axes.len() == 1 => of(square, axes[0], 1.0),
            (Op::ReduceSum { axes, keep: true }, &[square]) if axes.len() == 1 => {
                of(square, axes[0], d.shape(square).0[axes[0]].as_fixed()? as f64)
            }
            (Op::Mul {}, &[v, c]) => Variance::moment(d, v)?.scaled(d.scalar(c)?),
            // mean(x^2) - mean(x)^2
            (Op::Sub {}, &[squares, square]) => {
                let (x, axis) = mean_of(d, squared(d, square)?)?;
                let whole = Variance::moment(d, squares)?;
                let plain = Variance { rows: Rows { x, centred: None }, axis, factor: 1.0, epsilon: 0.0 };
                let same = whole.rows == plain.rows && whole.axis == axis && whole.factor == 1.0;
                same.then_some(Variance { rows: Rows { x, centred: Some(axis) }, ..plain })
            }
            _ => None,
        }
    }

    fn scaled(self, by: f64) -> Option<Variance> {
        let sound = by.is_finite() && by > 0.0;
        sound.then_some(Variance { factor: self.factor * by, epsilon: self.epsilon * by, ..self })
    }

    /// A moment and its epsilon.
    fn of(d: &Draft, v: ValueId) -> Option<Variance> {
        match d.op_of(v)? {
            (Op::Add {}, &[moment, epsilon]) if d.scalar(epsilon).is_some() => {
                let epsilon = d.scalar(epsilon).filter(|e| *e >= 0.0)?;
                Some(Variance { epsilon, ..Variance::moment(d, moment)? })
            }
            _ => match floor(d, v) {
                Some((moment, least)) => Some(Variance { epsilon: least, ..Variance::moment(d, moment)? }),
                None => Variance::moment(d, v),
            },
        }
    }

    /// The variance that `v` is the root of.
    fn rooted(d: &Draft, v: ValueId) -> Option<Variance> {
        let outside = |root: ValueId, e: f64| {
            let inside = Variance::rooted(d, root).filter(|_| (0.0..=LARGEST_OUTSIDE).contains(&e))?;
            Some(Variance { epsilon: inside.epsilon + e * e, ..inside })
        };
        match d.op_of(v)? {
            (Op::Sqrt {}, &[x]) => Variance::of(d, x),
            (Op::Pow {}, &[x, half]) if d.scalar(half) == Some(0.5) => Variance::of(d, x),
            (Op::Mul {}, &[root, c]) => Variance::rooted(d, root)?.scaled(d.scalar(c)?.powi(2)),
            (Op::Add {}, &[root, e]) => outside(root, d.scalar(e)?),
            _ => floor(d, v).and_then(|(root, least)| outside(root, least)),
        }
    }

    /// The variance that `v` is the reciprocal root of. The reciprocal of a deviation became a quotient before.
    fn under(d: &Draft, v: ValueId) -> Option<Variance> {
        match d.op_of(v)? {
            (Op::Pow {}, &[x, half]) if d.scalar(half) == Some(-0.5) => Variance::of(d, x),
            _ => Variance::rooted(d, one_over(d, v)?),
        }
    }
}

/// `(v, least)` of the larger of `v` and a small number.
fn floor(d: &Draft, v: ValueId) -> Option<(ValueId, f64)> {
    let (v, least) = match d.op_of(v)? {
        (Op::Clip { lo, hi }, &[v]) if hi.0 > 1e30 => (v, lo.0),
        (Op::Max {}, &[v, c]) => (v, d.scalar(c)?),
        _ => return None,
    };
    (0.0..=LARGEST_OUTSIDE).contains(&least).then_some((v, least))
}

/// `(x - mean) / sqrt(var + epsilon)` to `layernorm(x, 1, 0)`, and `x / sqrt(mean(x^2) + epsilon)` to one that is not centred;
/// gamma and beta join by the affine rules. What is normed along another dimension than the last one is turned before and after.
pub(crate) fn recover_layernorm(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (top, bottom, variance) = normalised(d, n)?;
    let Variance { rows: Rows { x, centred }, axis, factor, epsilon } = variance;
    let (shape, rank) = (d.shape(x).clone(), d.shape(x).rank());
    let channels = shape.0[axis].as_fixed()?;
    let loc = d.join_locs(chain(d, top, bottom, n));
    let gamma = d.floats("ones", &[channels], &vec![factor.sqrt().recip() as f32; channels]);
    let beta = d.floats("zeros", &[channels], &vec![0.0; channels]);
    let epsilon = if epsilon > 0.0 { epsilon / factor } else { LEAST };
    let norm = Op::LayerNorm { epsilon: Real(epsilon), centred: centred.is_some() };
    if axis + 1 == rank {
        return d.push(norm, &[x, gamma, beta], loc);
    }
    let last: Vec<usize> = (0..rank).filter(|&i| i != axis).chain([axis]).collect();
    let back: Vec<usize> = (0..rank).map(|i| last.iter().position(|&p| p == i).unwrap_or(i)).collect();
    let turned = d.push(Op::Transpose { perm: last }, &[x], loc.clone())?;
    let normed = d.push(norm, &[turned, gamma, beta], loc.clone())?;
    d.push(Op::Transpose { perm: back }, &[normed], loc)
}

/// `(v, divisor or factor, variance)` of `v` over its root mean square.
fn normalised(d: &Draft, n: usize) -> Option<(ValueId, ValueId, Variance)> {
    let (a, b) = match (&d.node(n).op, &d.node(n).operands[..]) {
        (Op::Div {} | Op::Mul {}, &[a, b]) => (a, b),
        _ => return None,
    };
    let pair = |top: ValueId, bottom: ValueId, found: Option<Variance>| {
        found.filter(|v| v.rows == Rows::of(d, top)).map(|variance| (top, bottom, variance))
    };
    if matches!(d.node(n).op, Op::Div {}) {
        return pair(a, b, Variance::rooted(d, b));
    }
    pair(a, b, Variance::under(d, b)).or_else(|| pair(b, a, Variance::under(d, a)))
}

/// The nodes of the chain in the order of computation.
fn chain(d: &Draft, top: ValueId, bottom: ValueId, root: usize) -> Vec<usize> {
    let mut nodes: Vec<usize> = vec![root];
    let mut v = bottom;
    while let Some(n) = d.def(v).filter(|_| v != top && nodes.len() < 8) {
        nodes.push(n);
        v = d.node(n).operands[0];
    }
    if Rows::of(d, top).centred.is_some() {
        let centre = d.def(top);
        nodes.extend(centre);
        nodes.extend(centre.and_then(|n| d.def(d.node(n).operands[1])));
    }
    nodes.reverse();
    nodes
}

/// `(x * gamma) / deviation(x)` to `(x / deviation(x)) * gamma`, likewise with a factor below: a norm whose gamma comes first.
pub(crate) fn gamma_after_norm(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (op @ (Op::Div {} | Op::Mul {}), &[a, b]) = (d.node(n).op.clone(), &d.node(n).operands[..]) else {
        return None;
    };
    let found = |d: &Draft, scaled: ValueId, below: ValueId| {
        let (Op::Mul {}, &[x, gamma]) = d.op_of(scaled)? else { return None };
        let is_quotient = matches!(op, Op::Div {});
        let variance = if is_quotient { Variance::rooted(d, below) } else { Variance::under(d, below) }?;
        let fits = d.is_const(gamma) && d.used_once(scaled) && variance.rows == Rows::of(d, x);
        fits.then_some((scaled, x, gamma, below))
    };
    let commutes = matches!(op, Op::Mul {});
    let (scaled, x, gamma, below) = found(d, a, b).or_else(|| if commutes { found(d, b, a) } else { None })?;
    let (loc, gamma_loc) = (d.loc(n), d.def(scaled).and_then(|m| d.loc(m)));
    let norm = d.push(op, &[x, below], loc)?;
    d.push(Op::Mul {}, &[norm, gamma], gamma_loc)
}

/// `x * inv + (beta - mean(x) * inv)` with `inv = gamma / deviation(x)`, as Keras has it, to `(x - mean(x)) / deviation(x) * gamma + beta`.
pub(crate) fn affine_by_inverse(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::Add {}, &[a, b]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    let (x, m, inverse, beta) = inverse_of(d, a, b).or_else(|| inverse_of(d, b, a))?;
    let (of, axis) = mean_of(d, m)?;
    let (root, gamma) = match d.op_of(inverse)? {
        (Op::Mul {}, &[one, gamma]) if d.is_const(gamma) => (one_over(d, one)?, Some(gamma)),
        (Op::Div {}, &[gamma, root]) if d.is_const(gamma) => (root, Some(gamma)),
        _ => (one_over(d, inverse)?, None),
    };
    let rows = Variance::rooted(d, root)?.rows;
    if of != x || rows != (Rows { x, centred: Some(axis) }) {
        return None;
    }
    let loc = d.loc(n);
    let centred = d.push(Op::Sub {}, &[x, m], loc.clone())?;
    let mut y = d.push(Op::Div {}, &[centred, root], d.def(root).and_then(|r| d.loc(r)))?;
    if let Some(gamma) = gamma {
        y = d.push(Op::Mul {}, &[y, gamma], d.def(inverse).and_then(|i| d.loc(i)))?;
    }
    d.push(Op::Add {}, &[y, beta], loc)
}

/// `x` of `1 / x`.
fn one_over(d: &Draft, v: ValueId) -> Option<ValueId> {
    match d.op_of(v)? {
        (Op::Reciprocal {}, &[x]) => Some(x),
        (Op::Div {}, &[one, x]) if d.scalar(one) == Some(1.0) => Some(x),
        _ => None,
    }
}

/// `(x, mean, inv, beta)` of `x * inv` and `beta - mean * inv`.
fn inverse_of(d: &Draft, scaled: ValueId, offset: ValueId) -> Option<(ValueId, ValueId, ValueId, ValueId)> {
    let (Op::Mul {}, &[p, q]) = d.op_of(scaled)? else { return None };
    let (Op::Sub {}, &[beta, moved]) = d.op_of(offset)? else { return None };
    let (Op::Mul {}, &[r, s]) = d.op_of(moved)? else { return None };
    let pairs = [(p, q), (q, p)].into_iter().flat_map(|left| [(r, s), (s, r)].map(|right| (left, right)));
    pairs.filter(|(left, right)| left.1 == right.1).find_map(|((x, inverse), (m, _))| {
        mean_of(d, m).filter(|(y, _)| *y == x && d.is_const(beta)).map(|_| (x, m, inverse, beta))
    })
}

/// `transpose(norm) * c` and `transpose(norm) + c` to `transpose(norm * c)`, for one number a channel of the norm: gamma and beta of
/// one that is turned.
pub(crate) fn affine_before_turn(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (op, &[turned, c]) = (d.node(n).op.clone(), &d.node(n).operands[..]) else { return None };
    if !matches!(op, Op::Mul {} | Op::Add {}) || d.shape(turned) != d.shape(d.node(n).result) || !d.used_once(turned) {
        return None;
    }
    let (Op::Transpose { perm }, &[normed]) = d.op_of(turned)? else { return None };
    if !matches!(d.op_of(normed)?.0, Op::LayerNorm { .. }) || !d.used_once(normed) {
        return None;
    }
    let perm = perm.clone();
    let axis = perm.iter().position(|&p| p + 1 == perm.len())?;
    let channels = d.shape(normed).last_fixed()?;
    let constant = d.constant_of(c).filter(|c| c.layout.is_none())?;
    let (dims, count) = (&constant.ty.shape.0, constant.ty.shape.count()?.as_fixed()?);
    let at = (axis + dims.len()).checked_sub(perm.len());
    let runs_along = count == 1 || (count == channels && dims.get(at?)?.as_fixed() == Some(channels));
    let (name, values) = (constant.name.clone(), constant.values::<f32>().into_owned());
    if !runs_along {
        return None;
    }
    let dims: &[usize] = if count == 1 { &[] } else { &[channels] };
    let c = d.floats(&name, dims, &values);
    let loc = d.loc(n);
    let turn = d.def(turned).and_then(|m| d.loc(m));
    let affine = d.push(op, &[normed, c], loc)?;
    d.push(Op::Transpose { perm }, &[affine], turn)
}
