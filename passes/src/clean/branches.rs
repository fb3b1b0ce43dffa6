//! Branches that read one value and are added up again, as networks are trained that are to be one convolution afterwards
//! (RepVGG, Ding et al. 2021, section 3; MobileOne, RepViT and FastViT do the same): they become that convolution here, whether or not
//! the exporter was asked to.
//!
//! Residuals stay what they are: a stream of 16 bits loses by going through weights of 8.

use vitc_ir::{Const, ImageLayout, Op, Shape, TensorType, ValueId};

use super::affine::combine;
use super::draft::Draft;

/// `conv(x, v) + conv(x, w)` to `conv(x, v + w)`, for kernels of which one covers the other; likewise of a difference.
pub(crate) fn join_convolutions(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (op, &[a, b]) = (d.node(n).op.clone(), &d.node(n).operands[..]) else { return None };
    if !matches!(op, Op::Add {} | Op::Sub {}) || a == b {
        return None;
    }
    let (left, right) = (Branch::of(d, a)?, Branch::of(d, b)?);
    if left.x != right.x || left.steps() != right.steps() {
        return None;
    }
    let wide = if left.covers(&right) {
        &left
    } else if right.covers(&left) {
        &right
    } else {
        return None;
    };
    let [v, w] = [&left, &right].map(|branch| branch.over(d, wide));
    let weights = combine(d, op.clone(), v?, w?)?;
    let mut operands = vec![left.x, weights];
    match (left.bias, right.bias) {
        (None, None) => {}
        (Some(bias), None) => operands.push(bias),
        (left, Some(right)) => {
            let left = left.unwrap_or_else(|| d.floats("none", &[1], &[0.0]));
            operands.push(combine(d, op, left, right)?);
        }
    }
    let loc = d.join_locs([d.def(a)?, d.def(b)?, n]);
    d.push(wide.op.clone(), &operands, loc)
}

/// A convolution with constant weights that nothing else reads.
struct Branch {
    x: ValueId,
    weights: ValueId,
    bias: Option<ValueId>,
    op: Op,
    /// Outputs, channels of a group, height and width.
    kernel: [usize; 4],
}

impl Branch {
    fn of(d: &Draft, v: ValueId) -> Option<Branch> {
        let (op, operands) = d.op_of(v).filter(|_| d.used_once(v))?;
        let Op::Conv2d { dilations: [1, 1], .. } = op else { return None };
        let weights = d.constant_of(operands[1]).filter(|w| w.layout.is_none() && w.ty == plain(&w.ty.shape))?;
        let kernel: [usize; 4] = weights.ty.shape.as_fixed()?.try_into().ok()?;
        let bias = operands.get(2).copied();
        let constant = |b: &ValueId| d.constant_of(*b).is_some_and(|b| b.ty == plain(&Shape::fixed(&kernel[..1])));
        if !bias.iter().all(constant) {
            return None;
        }
        Some(Branch { x: operands[0], weights: operands[1], bias, op: op.clone(), kernel })
    }

    /// What both branches have in common: strides, groups and layout.
    fn steps(&self) -> ([usize; 2], usize, ImageLayout, [usize; 2]) {
        let Op::Conv2d { strides, groups, layout, .. } = self.op else { unreachable!("a branch is a convolution") };
        (strides, groups, layout, [self.kernel[0], self.kernel[1]])
    }

    /// Rows and columns before the first pixel.
    fn before(&self) -> [usize; 2] {
        let Op::Conv2d { pads, .. } = self.op else { unreachable!("a branch is a convolution") };
        [pads[0], pads[1]]
    }

    /// Where the other kernel begins in this one, along each axis.
    fn offset(&self, other: &Branch) -> Option<[usize; 2]> {
        let [high, wide] = [0, 1].map(|i| {
            let offset = self.before()[i].checked_sub(other.before()[i])?;
            (offset + other.kernel[2 + i] <= self.kernel[2 + i]).then_some(offset)
        });
        Some([high?, wide?])
    }

    fn covers(&self, other: &Branch) -> bool {
        self.offset(other).is_some()
    }

    /// The weights as part of the kernel of another branch.
    fn over(&self, d: &mut Draft, wide: &Branch) -> Option<ValueId> {
        if self.kernel == wide.kernel {
            return Some(self.weights);
        }
        let [top, left] = wide.offset(self)?;
        let ([.., high, across], [outputs, channels, rows, columns]) = (self.kernel, wide.kernel);
        let weights = d.constant_of(self.weights)?;
        let (name, values) = (weights.name.clone(), weights.values::<f32>().into_owned());
        let mut all = vec![0.0; outputs * channels * rows * columns];
        for (plane, row) in (0..outputs * channels).flat_map(|plane| (0..high).map(move |row| (plane, row))) {
            let to = (plane * rows + top + row) * columns + left;
            all[to..to + across].copy_from_slice(&values[(plane * high + row) * across..][..across]);
        }
        Some(d.constant(Const::new(name, plain(&Shape::fixed(&wide.kernel)), &all)))
    }
}

fn plain(shape: &Shape) -> TensorType {
    TensorType::f32(shape.clone())
}

/// A convolution of single pixels, each channel by itself, to `x * w + b`.
pub(crate) fn pointwise_by_channel(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (op, operands) = (&d.node(n).op, d.node(n).operands.clone());
    let Op::Conv2d { strides: [1, 1], pads: [0, 0, 0, 0], groups, layout, .. } = *op else { return None };
    let weights = d.constant_of(operands[1]).filter(|w| w.layout.is_none() && w.ty == plain(&w.ty.shape))?;
    if weights.ty.shape != Shape::fixed(&[groups, 1, 1, 1]) {
        return None;
    }
    let dims: &[usize] = match layout {
        ImageLayout::ChannelsFirst => &[groups, 1, 1],
        ImageLayout::ChannelsLast => &[groups],
    };
    let along = |d: &mut Draft, v: ValueId| {
        let c = d.constant_of(v).filter(|c| c.ty.shape.count() == Some(groups.into()))?;
        let (name, values) = (c.name.clone(), c.values::<f32>().into_owned());
        Some(d.floats(&name, dims, &values))
    };
    let factor = along(d, operands[1])?;
    let loc = d.loc(n);
    let scaled = d.push(Op::Mul {}, &[operands[0], factor], loc.clone())?;
    let Some(&bias) = operands.get(2) else { return Some(scaled) };
    let bias = along(d, bias)?;
    d.push(Op::Add {}, &[scaled, bias], loc)
}

/// `(x * a + b) + (x * c + e)` to `x * (a + c) + (b + e)`, also with another summand between them; likewise of differences.
pub(crate) fn join_scaled(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (op, &[u, v]) = (d.node(n).op.clone(), &d.node(n).operands[..]) else { return None };
    if !matches!(op, Op::Add {} | Op::Sub {}) || u == v {
        return None;
    }
    let right = Scaled::of(d, v)?;
    if let Some(left) = Scaled::of(d, u) {
        return left.join(d, op, &right, n);
    }
    let (Op::Add {}, &[p, q]) = d.op_of(u).filter(|_| d.used_once(u))? else { return None };
    let (left, other) = match (Scaled::of(d, p), Scaled::of(d, q)) {
        (Some(left), _) if left.x == right.x => (left, q),
        (_, Some(left)) if left.x == right.x => (left, p),
        _ => return None,
    };
    let joined = left.join(d, op, &right, n)?;
    let loc = d.join_locs([d.def(u)?, n]);
    d.push(Op::Add {}, &[other, joined], loc)
}

/// `x * factor + offset`, whose constants are float, which nothing else reads.
struct Scaled {
    x: ValueId,
    factor: ValueId,
    offset: Option<ValueId>,
    nodes: Vec<usize>,
}

impl Scaled {
    fn of(d: &Draft, v: ValueId) -> Option<Scaled> {
        let constant = |c: ValueId| d.constant_of(c).is_some_and(|c| c.layout.is_none() && c.ty == plain(&c.ty.shape));
        let made = |v: ValueId| d.op_of(v).filter(|_| d.used_once(v));
        let (product, offset) = match made(v)? {
            (Op::Add {}, &[product, offset]) if constant(offset) => (product, Some(offset)),
            _ => (v, None),
        };
        let (Op::Mul {}, &[x, factor]) = made(product)? else { return None };
        let same = d.shape(x) == d.shape(v) && constant(factor) && !d.is_const(x);
        let nodes = [product, v].into_iter().filter_map(|v| d.def(v)).collect();
        same.then_some(Scaled { x, factor, offset, nodes })
    }

    /// The sum or difference of two that scale one value.
    fn join(&self, d: &mut Draft, op: Op, other: &Scaled, n: usize) -> Option<ValueId> {
        if self.x != other.x {
            return None;
        }
        let factor = combine(d, op.clone(), self.factor, other.factor)?;
        let offset = match (self.offset, other.offset) {
            (None, None) => None,
            (Some(offset), None) => Some(offset),
            (left, Some(right)) => {
                let left = left.unwrap_or_else(|| d.floats("none", &[1], &[0.0]));
                Some(combine(d, op, left, right)?)
            }
        };
        let loc = d.join_locs(self.nodes.iter().chain(&other.nodes).copied().chain([n]));
        let scaled = d.push(Op::Mul {}, &[self.x, factor], loc.clone())?;
        match offset {
            Some(offset) => d.push(Op::Add {}, &[scaled, offset], loc),
            None => Some(scaled),
        }
    }
}
