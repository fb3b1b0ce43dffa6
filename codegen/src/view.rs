//! Where the elements of a value lie: movement nodes without a place are views, and a view is an affine map from logical
//! indices to elements of the value that really lies in memory.
//!
//! A logical dimension is a list of *factors*: its index is split, outermost factor first, and each part has a stride. So
//! `[N, heads, tokens, d]` read as `[N, tokens, heads*d]` is a map whose last dimension has two factors. Reshape regroups
//! factors (splitting one where a boundary falls inside), transpose permutes dimensions, slice moves the offset and scales
//! strides, expand adds factors of stride zero.

use vitc_ir::{Def, Dim, Module, Op, Shape, ValueId};

/// A number that may grow with the batch: `fixed + per_batch * N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lin {
    /// Part that does not depend on the batch.
    pub fixed: i64,
    /// Factor of the batch.
    pub per_batch: i64,
}

impl Lin {
    pub(crate) const ZERO: Lin = Lin { fixed: 0, per_batch: 0 };

    pub(crate) fn fixed(fixed: i64) -> Lin {
        Lin { fixed, per_batch: 0 }
    }

    pub(crate) fn scaled(self, by: i64) -> Lin {
        Lin { fixed: self.fixed * by, per_batch: self.per_batch * by }
    }

    pub(crate) fn plus(self, other: Lin) -> Lin {
        Lin { fixed: self.fixed + other.fixed, per_batch: self.per_batch + other.per_batch }
    }

    /// Product with a dimension; `None` when the batch would be squared.
    pub(crate) fn times(self, d: Dim) -> Option<Lin> {
        match (d.batch, self.per_batch) {
            (false, _) => Some(self.scaled(d.size as i64)),
            (true, 0) => Some(Lin { fixed: 0, per_batch: self.fixed * d.size as i64 }),
            (true, _) => None,
        }
    }

    /// The number, when it does not depend on the batch.
    pub(crate) fn as_fixed(self) -> Option<i64> {
        (self.per_batch == 0).then_some(self.fixed)
    }
}

/// A part of a logical index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Factor {
    /// How many values the part takes.
    pub size: Dim,
    /// Elements from one value to the next.
    pub stride: Lin,
}

/// An affine map from logical indices to elements of a materialised value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct View {
    /// Element of logical index zero.
    pub offset: Lin,
    /// The factors of each logical dimension, outermost first.
    pub dims: Vec<Vec<Factor>>,
}

impl View {
    /// The map of a row-major tensor.
    pub(crate) fn contiguous(shape: &Shape) -> Option<View> {
        let mut stride = Lin::fixed(1);
        let mut dims = Vec::new();
        for &size in shape.0.iter().rev() {
            dims.push(factor_list(size, stride));
            stride = stride.times(size)?;
        }
        dims.reverse();
        Some(View { offset: Lin::ZERO, dims })
    }

    /// The map after a movement op, or why it has none.
    pub(crate) fn then(&self, op: &Op, from: &Shape, to: &Shape) -> Result<View, String> {
        match op {
            Op::Reshape { .. } => self.reshape(to),
            Op::Transpose { perm } => {
                Ok(View { offset: self.offset, dims: perm.iter().map(|&p| self.dims[p].clone()).collect() })
            }
            Op::Slice { axis, start, len, step } => self.slice(*axis, *start, *len, *step),
            Op::Expand { .. } => Ok(self.expand(from, to)),
            _ => Err(format!("`{}` rearranges elements and cannot be a view", op.name())),
        }
    }

    fn reshape(&self, to: &Shape) -> Result<View, String> {
        let mut flat = merge(self.dims.iter().flatten().copied());
        let mut dims = Vec::with_capacity(to.rank());
        for &size in to.0.iter().rev() {
            dims.push(take(&mut flat, size).ok_or_else(|| format!("a reshape to [{to}] of this view is not affine"))?);
        }
        dims.reverse();
        Ok(View { offset: self.offset, dims })
    }

    fn slice(&self, axis: usize, start: usize, len: usize, step: i64) -> Result<View, String> {
        let mut view = self.clone();
        let not_affine = || "a slice inside a split dimension is not affine".to_string();
        match view.dims[axis][..] {
            [] => {}
            [f] => {
                view.offset = view.offset.plus(f.stride.scaled(start as i64));
                view.dims[axis] = factor_list(Dim::fixed(len), f.stride.scaled(step));
            }
            [outer, ref inner @ ..] if step == 1 => {
                let inner = inner.to_vec();
                let period = product(&inner).and_then(Dim::as_fixed).ok_or_else(not_affine)?;
                if !start.is_multiple_of(period) || !len.is_multiple_of(period) {
                    return Err(not_affine());
                }
                view.offset = view.offset.plus(outer.stride.scaled((start / period) as i64));
                view.dims[axis] = factor_list(Dim::fixed(len / period), outer.stride);
                view.dims[axis].extend(inner);
            }
            _ => return Err(not_affine()),
        }
        Ok(view)
    }

    fn expand(&self, from: &Shape, to: &Shape) -> View {
        self.broadcast(from, to)
    }

    /// The map of this view repeated as in numpy to a larger shape.
    pub(crate) fn broadcast(&self, from: &Shape, to: &Shape) -> View {
        let added = to.rank() - from.rank();
        let dims = to.0.iter().enumerate().map(|(i, &size)| match i.checked_sub(added) {
            Some(j) if from.0[j] == size => self.dims[j].clone(),
            _ => factor_list(size, Lin::ZERO),
        });
        View { offset: self.offset, dims: dims.collect() }
    }

    /// The factors of some dimensions as one flattened index.
    pub(crate) fn flat(&self, dims: std::ops::Range<usize>) -> Vec<Factor> {
        merge(self.dims[dims].iter().flatten().copied())
    }
}

fn factor_list(size: Dim, stride: Lin) -> Vec<Factor> {
    if size == Dim::fixed(1) { Vec::new() } else { vec![Factor { size, stride }] }
}

fn product(factors: &[Factor]) -> Option<Dim> {
    factors.iter().try_fold(Dim::fixed(1), |acc, f| acc.times(f.size))
}

/// Joins neighbours that continue each other and drops factors of size one.
pub(crate) fn merge(factors: impl Iterator<Item = Factor>) -> Vec<Factor> {
    let mut list: Vec<Factor> = Vec::new();
    for f in factors.filter(|f| f.size != Dim::fixed(1)) {
        if let Some(last) = list.last_mut()
            && f.stride.times(f.size) == Some(last.stride)
            && let Some(size) = last.size.times(f.size)
        {
            *last = Factor { size, stride: f.stride };
            continue;
        }
        list.push(f);
    }
    list
}

/// Takes factors worth `size` from the inner end of `flat`, splitting one where needed.
fn take(flat: &mut Vec<Factor>, size: Dim) -> Option<Vec<Factor>> {
    let mut left = size;
    let mut taken = Vec::new();
    while left != Dim::fixed(1) {
        let f = flat.pop()?;
        if let Some(rest) = left.div_exact(f.size) {
            taken.push(f);
            left = rest;
            continue;
        }
        let outer = f.size.div_exact(left)?;
        flat.push(Factor { size: outer, stride: f.stride.times(left)? });
        taken.push(Factor { size: left, stride: f.stride });
        left = Dim::fixed(1);
    }
    taken.reverse();
    Some(taken)
}

/// A loop nest that several operands walk together: sizes, outermost first, and each operand's stride in each loop.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Nest {
    /// Trips of each loop.
    pub sizes: Vec<Dim>,
    /// `strides[operand][loop]`.
    pub strides: Vec<Vec<Lin>>,
}

impl Nest {
    /// The coarsest nest in which every operand is affine. All lists cover the same number of elements.
    pub(crate) fn joint(lists: &[Vec<Factor>]) -> Result<Nest, String> {
        let mut left: Vec<Vec<Factor>> = lists.iter().map(|l| merge(l.iter().copied())).collect();
        let mut nest = Nest { sizes: Vec::new(), strides: vec![Vec::new(); lists.len()] };
        while left.iter().any(|l| !l.is_empty()) {
            let size = common_size(&left)?;
            nest.sizes.push(size);
            for (list, strides) in left.iter_mut().zip(&mut nest.strides) {
                let part = take(list, size).ok_or("operands are split at different places")?;
                let [f] = part[..] else { return Err("operands are split at different places".into()) };
                strides.push(f.stride);
            }
        }
        nest.sizes.reverse();
        nest.strides.iter_mut().for_each(|s| s.reverse());
        Ok(nest.merged())
    }

    /// Where columns do not lie together for all operands, those of the longest loop: the order of elements that are only
    /// moved does not matter, and each row costs something.
    pub(crate) fn with_long_columns(mut self) -> Nest {
        let is = |i: usize, strides: &[Vec<Lin>]| strides.iter().all(|s| s[i].as_fixed().is_some());
        let Some(last) = self.sizes.len().checked_sub(1) else { return self };
        if self.strides.iter().all(|s| s[last] == Lin::fixed(1)) {
            return self;
        }
        let candidates = (0..=last).filter(|&i| !self.sizes[i].batch && is(i, &self.strides));
        if let Some(longest) = candidates.max_by_key(|&i| (self.sizes[i].size, i)) {
            self.sizes.swap(longest, last);
            self.strides.iter_mut().for_each(|s| s.swap(longest, last));
        }
        self
    }

    fn merged(self) -> Nest {
        let mut out = Nest { sizes: Vec::new(), strides: vec![Vec::new(); self.strides.len()] };
        for (i, &size) in self.sizes.iter().enumerate() {
            let continues = out.sizes.last().is_some_and(|outer| outer.times(size).is_some())
                && self
                    .strides
                    .iter()
                    .zip(&out.strides)
                    .all(|(s, o)| s[i].times(size).is_some_and(|t| o.last() == Some(&t)));
            if continues && let Some(outer) = out.sizes.last_mut() {
                *outer = outer.times(size).expect("checked above");
                out.strides.iter_mut().zip(&self.strides).for_each(|(o, s)| *o.last_mut().expect("not empty") = s[i]);
            } else {
                out.sizes.push(size);
                out.strides.iter_mut().zip(&self.strides).for_each(|(o, s)| o.push(s[i]));
            }
        }
        out
    }
}

/// The largest size that ends at a boundary of no operand's innermost factor but divides them all.
fn common_size(left: &[Vec<Factor>]) -> Result<Dim, String> {
    let mut innermost =
        left.iter().map(|l| l.last().map(|f| f.size).ok_or("operands differ in their number of elements"));
    let mut size = innermost.next().ok_or("no operands")??;
    for other in innermost {
        let other = other?;
        size = if other.div_exact(size).is_some() {
            size
        } else if size.div_exact(other).is_some() {
            other
        } else {
            return Err(format!("dimensions of {size} and {other} do not nest"));
        };
    }
    Ok(size)
}

/// The materialised value behind `value` and the map to it: through every movement node without a place.
pub(crate) fn resolve(module: &Module, value: ValueId) -> Result<(ValueId, View), String> {
    resolve_through(module, value, &|n| is_view_node(module, &module.nodes[n]))
}

/// The same through the nodes that `is_view` names.
fn resolve_through(
    module: &Module,
    value: ValueId,
    is_view: &dyn Fn(usize) -> bool,
) -> Result<(ValueId, View), String> {
    let mut chain = Vec::new();
    let mut at = value;
    while let Def::Node(n) = module.values[at.0 as usize].def
        && is_view(n)
    {
        chain.push(&module.nodes[n]);
        at = module.nodes[n].operands[0];
    }
    let mut view = View::contiguous(&module.ty(at).shape).ok_or("the batch would be squared")?;
    for node in chain.into_iter().rev() {
        view = view.then(&node.op, &module.ty(node.operands[0]).shape, &module.ty(node.result).shape)?;
    }
    Ok((at, view))
}

/// Rows of a materialised value in another order: of those of each image, row `i` is row `index[i]`.
pub(crate) struct RowOrder<'m> {
    pub base: ValueId,
    pub index: &'m [usize],
}

/// The order of a value's rows, when a gather of whole rows without a place leads to it: `reshape`, `gather`, `reshape`.
pub(crate) fn row_order(module: &Module, value: ValueId) -> Option<RowOrder<'_>> {
    row_order_through(module, value, &|n| is_view_node(module, &module.nodes[n]))
}

fn row_order_through<'m>(module: &'m Module, value: ValueId, is_view: &dyn Fn(usize) -> bool) -> Option<RowOrder<'m>> {
    let shape = |v: ValueId| &module.ty(v).shape;
    let mut at = value;
    loop {
        let Def::Node(n) = module.values[at.0 as usize].def else { return None };
        let node = &module.nodes[n];
        let x = *node.operands.first().filter(|_| is_view(n))?;
        match &node.op {
            Op::Reshape { .. } if shape(x).0.last() == shape(at).0.last() => at = x,
            Op::Gather { axis: 1, index } => {
                let (base, view) = resolve_through(module, x, is_view).ok()?;
                let [Dim { size: 1, batch: true }, ..] = shape(x).0[..] else { return None };
                let straight = shape(x).rank() == 3 && View::contiguous(shape(x)).as_ref() == Some(&view);
                let all = shape(x).0[1].as_fixed() == Some(index.len());
                return (straight && all).then_some(RowOrder { base, index });
            }
            _ => return None,
        }
    }
}

/// Movement without a place, or a reshape that shares its operand's.
pub(crate) fn is_view_node(module: &Module, node: &vitc_ir::Node) -> bool {
    let shared = || module.node_of(node.operands[0]).is_some_and(|x| x.place == node.place);
    match node.op {
        Op::Reshape { .. } => node.place.is_none() || shared(),
        Op::Transpose { .. } | Op::Slice { .. } | Op::Expand { .. } | Op::Gather { .. } => node.place.is_none(),
        _ => false,
    }
}

/// Whether movement node `node` can read its operand through those of the nodes `views` that lead to it, be it as a view itself or as
/// a copy.
///
/// A kernel that consumes a view may still ask for more (one stride along its columns, say) and then refuses with a
/// reason.
pub fn is_view_supported(module: &Module, node: usize, views: &[bool]) -> bool {
    let (itself, node) = (views[node], &module.nodes[node]);
    let shape = |v: ValueId| &module.ty(v).shape;
    let is_view = |n: usize| views[n];
    node.operands.iter().all(|&x| {
        // only products read rows in another order: a copy of them would have to be the gather itself
        let whole = itself && matches!(node.op, Op::Reshape { .. }) && shape(x).0.last() == shape(node.result).0.last();
        if whole && row_order_through(module, x, &is_view).is_some() {
            return true;
        }
        let read = |(_, view): (ValueId, View)| {
            let (from, to) = (shape(x), shape(node.result));
            match &node.op {
                Op::Concat { .. } | Op::Pad { .. } => true,
                Op::Gather { axis, .. } => view.dims[*axis].len() <= 1,
                op => view.then(op, from, to).is_ok(),
            }
        };
        resolve_through(module, x, &is_view).is_ok_and(read)
    })
}

/// Whether node `node`, a product or attention, can read operand `operand` in place through those of the nodes `views` that lead to it:
/// a left side row by row, each row by a pattern of its own; a right side of two activations with one stride along either dimension.
pub fn is_operand_view_supported(module: &Module, node: usize, operand: usize, views: &[bool]) -> bool {
    let node = &module.nodes[node];
    let value = node.operands[operand];
    let straight = |dims: usize| is_straight(module, value, views, dims);
    match (&node.op, operand) {
        (Op::FusedMatMul { .. }, 0) if module.const_of(node.operands[1]).is_some() => is_row_view(module, value, views),
        (Op::FusedMatMul { .. }, 0) => true,
        (Op::FusedMatMul { .. }, 1) => module.const_of(node.operands[1]).is_none() && straight(2),
        (Op::FusedAttention { .. }, 0) => straight(1),
        (Op::FusedAttention { .. } | Op::IntLinearAttention { .. }, 0..3) => straight(2),
        _ => false,
    }
}

/// Whether `value`, seen through the nodes `views`, has one stride along each of its matrices' two dimensions, or (`dims` 1) from row
/// to row of them.
fn is_straight(module: &Module, value: ValueId, views: &[bool], dims: usize) -> bool {
    let one = |factors: &Vec<Factor>| factors.len() <= 1 && factors.iter().all(|f| f.stride.as_fixed().is_some());
    let matrix = |view: &View| view.dims[view.dims.len() - 2..].iter().take(dims).all(one);
    resolve_through(module, value, &|n| views[n]).is_ok_and(|(_, view)| matrix(&view))
}

/// Whether a product with weights can read `value`, seen through the nodes `views`, row by row.
fn is_row_view(module: &Module, value: ValueId, views: &[bool]) -> bool {
    let readable = || -> Option<bool> {
        let (_, view) = resolve_through(module, value, &|n| views[n]).ok()?;
        let (columns, rows) = view.dims.split_last()?;
        let sizes = module.ty(value).shape.0.split_last()?.1.to_vec();
        let ours: Vec<Factor> = rows.iter().flatten().copied().collect();
        let straight: Vec<Factor> = View::contiguous(&Shape(sizes))?.dims.into_iter().flatten().collect();
        let nest = Nest::joint(&[ours, straight]).ok()?;
        let last = nest.strides[0].last().copied().unwrap_or(Lin::ZERO);
        Some(last.as_fixed().is_some() && columns.iter().all(|f| f.stride.as_fixed().is_some() && !f.size.batch))
    };
    readable().unwrap_or(false) || row_order_through(module, value, &|n| views[n]).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(view: &View, index: &[usize], n: i64) -> i64 {
        let lin = |l: Lin| l.fixed + l.per_batch * n;
        let mut at = lin(view.offset);
        for (dim, &i) in view.dims.iter().zip(index) {
            let mut i = i as i64;
            for f in dim.iter().rev() {
                let size = f.size.at(n as usize) as i64;
                at += (i % size) * lin(f.stride);
                i /= size;
            }
        }
        at
    }

    #[test]
    fn heads_split_transposed_and_joined_again() {
        let shape = Shape(vec![Dim::N, 5.into(), 12.into()]);
        let split = Shape(vec![Dim::N, 5.into(), 3.into(), 4.into()]);
        let heads = Shape(vec![Dim::N, 3.into(), 5.into(), 4.into()]);
        let v = View::contiguous(&shape).unwrap();
        let v = v.then(&Op::Reshape { shape: split.clone() }, &shape, &split).unwrap();
        let v = v.then(&Op::Transpose { perm: vec![0, 2, 1, 3] }, &split, &heads).unwrap();
        assert_eq!(address(&v, &[1, 2, 3, 1], 2), 60 + 3 * 12 + 2 * 4 + 1);
        let c = View::contiguous(&heads).unwrap();
        let c = c.then(&Op::Transpose { perm: vec![0, 2, 1, 3] }, &heads, &split).unwrap();
        let c = c.then(&Op::Reshape { shape: shape.clone() }, &split, &shape).unwrap();
        assert_eq!(c.dims[2].len(), 2);
        assert_eq!(address(&c, &[1, 3, 9], 2), 60 + 2 * 20 + 3 * 4 + 1);
    }

    #[test]
    fn slices_move_the_offset_and_may_run_backwards() {
        let shape = Shape::fixed(&[4, 6]);
        let v = View::contiguous(&shape).unwrap();
        let to = Shape::fixed(&[4, 2]);
        let v = v.then(&Op::Slice { axis: 1, start: 5, len: 2, step: -3 }, &shape, &to).unwrap();
        assert_eq!((address(&v, &[1, 0], 1), address(&v, &[1, 1], 1)), (11, 8));
    }

    #[test]
    fn a_joint_nest_splits_where_operands_differ() {
        let a = View::contiguous(&Shape(vec![Dim::N, 5.into(), 8.into()])).unwrap();
        let pos = View::contiguous(&Shape::fixed(&[1, 5, 8])).unwrap();
        let pos = pos.broadcast(&Shape::fixed(&[1, 5, 8]), &Shape(vec![Dim::N, 5.into(), 8.into()]));
        let nest = Nest::joint(&[a.flat(0..3), pos.flat(0..3)]).unwrap();
        assert_eq!(nest.sizes, [Dim::N, Dim::fixed(40)]);
        assert_eq!(nest.strides[1], [Lin::ZERO, Lin::fixed(1)]);
    }
}
