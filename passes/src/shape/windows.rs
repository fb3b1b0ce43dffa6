//! Windows: what shifted-window attention (Swin) does to the rows of a tensor, brought into one form.
//!
//! * A roll (slices put together in another order) is a `gather`.
//! * A run of movement that keeps rows whole and has a gather in it is `reshape`, `gather` of an image's rows, `reshape`: a product
//!   reads its left side through it.
//! * Heads are joined before the rows that come out of attention are gathered: attention stores them joined.
//! * What follows the projection behind attention moves before it, so that rows come out where the residual stream has them.
//! * The dimension of windows, split off the batch where a mask is added, stays split all through attention.

use std::collections::{BTreeMap, HashMap};

use vitc_ir::eval::{Data, Tensor, eval_op};
use vitc_ir::{Const, Dim, Elem, Op, Shape, TensorType, ValueId};

use crate::clean::draft::{Draft, Rule};

/// The rules of this file.
pub(crate) const RULES: &[(&str, Rule)] = &[
    ("roll-as-gather", roll_as_gather),
    ("merge-patches", merge_patches),
    ("rows-above-projection", rows_above_projection),
    ("gather-rows", gather_rows),
    ("heads-before-rows", heads_before_rows),
    ("split-above-sum", split_above_sum),
    ("split-above-product", split_above_product),
    ("merge-below-softmax", merge_below_softmax),
    ("merge-below-product", merge_below_product),
];

/// Slices of one value along one axis, concatenated along it.
fn roll_as_gather(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Concat { axis } = d.node(n).op else { return None };
    let mut source = None;
    let mut index = Vec::new();
    for &part in &d.node(n).operands {
        let (&Op::Slice { axis: a, start, len, step }, &[x]) = d.op_of(part)? else { return None };
        if a != axis || source.is_some_and(|s| s != x) {
            return None;
        }
        source = Some(x);
        index.extend((0..len as i64).map(|i| (start as i64 + i * step) as usize));
    }
    d.push(Op::Gather { axis, index }, &[source?], d.loc(n))
}

/// The four patches of each 2 x 2 square side by side, as slices with step 2 that are concatenated, to movement without
/// copies.
fn merge_patches(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Concat { axis: 3 } = d.node(n).op else { return None };
    let parts = d.node(n).operands.clone();
    let mut source = None;
    let mut order = Vec::new();
    for part in parts {
        let mut starts = [None; 2];
        let mut v = part;
        for _ in 0..2 {
            let (&Op::Slice { axis, start, step: 2, .. }, &[x]) = d.op_of(v)? else { return None };
            *starts.get_mut(axis.checked_sub(1)?)? = Some(start);
            v = x;
        }
        if source.is_some_and(|s| s != v) {
            return None;
        }
        source = Some(v);
        order.push((starts[0]?, starts[1]?));
    }
    let perm = match order[..] {
        [(0, 0), (1, 0), (0, 1), (1, 1)] => vec![0, 1, 3, 4, 2, 5],
        [(0, 0), (0, 1), (1, 0), (1, 1)] => vec![0, 1, 3, 2, 4, 5],
        _ => return None,
    };
    let shape = d.shape(source?).clone();
    let [b, h, w, c] = shape.0[..] else { return None };
    let half = |dim: Dim| dim.as_fixed().filter(|n| n % 2 == 0).map(|n| Dim::fixed(n / 2));
    let split = Shape(vec![b, half(h)?, 2.into(), half(w)?, 2.into(), c]);
    let (loc, merged) = (d.loc(n), d.shape(d.node(n).result).clone());
    let v = d.push(Op::Reshape { shape: split }, &[source?], loc.clone())?;
    let v = d.push(Op::Transpose { perm }, &[v], loc.clone())?;
    d.push(Op::Reshape { shape: merged }, &[v], loc)
}

/// Whether a node moves rows (all but the last dimension) and leaves each whole.
fn moves_rows(d: &Draft, n: usize) -> bool {
    let node = d.node(n);
    let Some(&x) = node.operands.first() else { return false };
    let rank = d.shape(x).rank();
    match &node.op {
        Op::Reshape { shape } => shape.rank() > 1 && shape.0.last() == d.shape(x).0.last(),
        Op::Transpose { perm } => perm.last() == Some(&(rank - 1)),
        Op::Gather { axis, .. } => axis + 1 < rank,
        _ => false,
    }
}

/// The nodes that end in node `n` and only move rows, first to last, when no such node follows.
fn chain(d: &Draft, n: usize) -> Option<Vec<usize>> {
    if !moves_rows(d, n) || d.users(d.node(n).result).iter().any(|&u| moves_rows(d, u)) {
        return None;
    }
    let mut nodes = vec![n];
    while let Some(before) = d.def(d.node(*nodes.last()?).operands[0]).filter(|&m| moves_rows(d, m)) {
        nodes.push(before);
    }
    nodes.reverse();
    Some(nodes)
}

/// The op of a node that moves rows, for rows of another length.
fn with_columns(op: &Op, columns: Dim) -> Op {
    match op {
        Op::Reshape { shape } => {
            let mut shape = shape.clone();
            *shape.0.last_mut().expect("rows have columns") = columns;
            Op::Reshape { shape }
        }
        op => op.clone(),
    }
}

/// Movement of rows behind the projection of an attention goes before it.
fn rows_above_projection(d: &mut Draft, n: usize) -> Option<ValueId> {
    let nodes = chain(d, n)?;
    if nodes.iter().all(|&m| matches!(d.node(m).op, Op::Reshape { .. })) {
        return None;
    }
    let y = d.node(nodes[0]).operands[0];
    let single = nodes[1..].iter().all(|&m| d.used_once(d.node(m).operands[0]));
    let product = d.def(y).filter(|_| single && d.used_once(y))?;
    let (op, operands) = (d.node(product).op.clone(), d.node(product).operands.clone());
    if op != (Op::MatMul {}) || !d.is_const(operands[1]) || d.shape(operands[1]).rank() != 2 {
        return None;
    }
    let mut v = operands[0];
    if !is_attended(d, v) {
        return None;
    }
    let columns = *d.shape(v).0.last()?;
    for m in nodes {
        let op = with_columns(&d.node(m).op, columns);
        v = d.push(op, &[v], d.loc(m))?;
    }
    let mut moved = operands;
    moved[0] = v;
    d.push(op, &moved, d.loc(product))
}

/// Whether movement alone lies between a value and a product of two activations.
fn is_attended(d: &Draft, v: ValueId) -> bool {
    match d.op_of(v) {
        Some((Op::MatMul {}, operands)) => !d.is_const(operands[1]),
        Some((Op::Reshape { .. } | Op::Transpose { .. } | Op::Gather { .. }, &[x])) => is_attended(d, x),
        _ => false,
    }
}

/// Movement of rows with a gather in it, as one gather of an image's rows.
fn gather_rows(d: &mut Draft, n: usize) -> Option<ValueId> {
    let nodes = chain(d, n)?;
    let ops: Vec<Op> = nodes.iter().map(|&m| d.node(m).op.clone()).collect();
    let is_reshape = |op: &Op| matches!(op, Op::Reshape { .. });
    let is_settled = |ops: &[Op]| match ops {
        [first, rest @ ..] if is_reshape(first) => {
            matches!(rest, [Op::Gather { axis: 1, .. }] | [Op::Gather { axis: 1, .. }, Op::Reshape { .. }])
        }
        [Op::Gather { axis: 1, .. }] => true,
        [Op::Gather { axis: 1, .. }, last] => is_reshape(last),
        _ => false,
    };
    let gathers = ops.iter().filter(|op| matches!(op, Op::Gather { .. })).count();
    let x = d.node(nodes[0]).operands[0];
    let (from, to) = (d.shape(x).clone(), d.shape(d.node(n).result).clone());
    let rank =
        nodes.iter().find(|&&m| matches!(d.node(m).op, Op::Gather { .. })).map(|&m| d.shape(d.node(m).result).rank());
    if gathers == 0 || (gathers == 1 && rank == Some(3) && is_settled(&ops)) {
        return None;
    }
    let rows = from.0[..from.rank() - 1].iter().try_fold(Dim::fixed(1), |all, d| all.times(*d)).filter(|d| d.batch)?;
    let index = row_order(d, &nodes, rows.size)?;
    let columns = *from.0.last()?;
    let loc = d.join_locs(nodes);
    let flat = |rows: usize| Shape(vec![Dim::N, rows.into(), columns]);
    let v = d.push(Op::Reshape { shape: flat(rows.size) }, &[x], loc.clone())?;
    let v = d.push(Op::Gather { axis: 1, index }, &[v], loc.clone())?;
    d.push(Op::Reshape { shape: to }, &[v], loc)
}

/// Which row of an image each row of the result is, found by moving row numbers; `None` when images mix.
fn row_order(d: &Draft, nodes: &[usize], rows: usize) -> Option<Vec<usize>> {
    const IMAGES: usize = 2;
    let narrow = |shape: &Shape| {
        let mut shape = shape.clone();
        *shape.0.last_mut()? = Dim::fixed(1);
        Some(TensorType::new(Elem::I32, shape))
    };
    let mut ty = narrow(d.shape(d.node(nodes[0]).operands[0]))?;
    let numbers = (0..(rows * IMAGES) as i32).collect();
    let mut numbers = Tensor { shape: ty.shape.at(IMAGES), data: Data::I32(numbers) };
    for &n in nodes {
        let result = narrow(d.shape(d.node(n).result))?;
        let op = with_columns(&d.node(n).op, Dim::fixed(1));
        numbers = eval_op(&op, &[&numbers], &result, &[&ty], &BTreeMap::new()).ok()?;
        ty = result;
    }
    let Data::I32(moved) = numbers.data else { return None };
    let (first, second) = moved.split_at(moved.len() / IMAGES);
    let alike = first.iter().zip(second).all(|(&a, &b)| (0..rows as i32).contains(&a) && b == a + rows as i32);
    alike.then(|| first.iter().map(|&i| i as usize).collect())
}

/// Where heads are joined and rows gathered behind a product of two activations, the heads come first, as attention can store them,
/// and all that moves rows is one gather.
fn heads_before_rows(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Gather { axis: 1, index } = &d.node(n).op else { return None };
    let (index, joined) = (index.clone(), d.node(n).operands[0]);
    let (mut nodes, mut x) = (Vec::new(), joined);
    while let Some(m) = d.def(x).filter(|&m| matches!(d.node(m).op, Op::Reshape { .. } | Op::Transpose { .. })) {
        if !d.used_once(x) {
            return None;
        }
        nodes.insert(0, m);
        x = d.node(m).operands[0];
    }
    let (Op::MatMul {}, operands) = d.op_of(x)? else { return None };
    let rank = d.shape(x).rank();
    if d.is_const(operands[1]) || rank < 4 || nodes.is_empty() {
        return None;
    }
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 3, rank - 2);
    let heads = Op::Transpose { perm };
    let join = Op::Reshape { shape: d.shape(joined).clone() };
    let ops: Vec<Op> = nodes.iter().map(|&m| d.node(m).op.clone()).collect();
    let (as_it_is, heads_first) = (elements(d, x, &ops)?, elements(d, x, &[heads.clone(), join.clone()])?);
    let columns = d.shape(joined).last_fixed()?;
    let place: HashMap<i32, usize> = heads_first.chunks(columns).enumerate().map(|(i, row)| (row[0], i)).collect();
    let rows: Vec<usize> = as_it_is.chunks(columns).map(|row| place.get(&row[0]).copied()).collect::<Option<_>>()?;
    let whole =
        rows.iter().zip(as_it_is.chunks(columns)).all(|(&i, row)| heads_first[i * columns..][..columns] == *row);
    let moved: Vec<usize> = index.iter().map(|&i| rows.get(i).copied()).collect::<Option<_>>()?;
    if !whole || moved == index {
        return None;
    }
    let loc = d.join_locs(nodes);
    let v = d.push(heads, &[x], loc.clone())?;
    let v = d.push(join, &[v], loc)?;
    d.push(Op::Gather { axis: 1, index: moved }, &[v], d.loc(n))
}

/// The elements of one image, numbered, after these ops; `None` when images mix.
fn elements(d: &Draft, x: ValueId, ops: &[Op]) -> Option<Vec<i32>> {
    const IMAGES: usize = 2;
    const MOST: usize = 1 << 24;
    let mut ty = TensorType::new(Elem::I32, d.shape(x).clone());
    let count = ty.shape.count().filter(|c| c.batch && c.size <= MOST)?.size;
    let mut numbers = Tensor { shape: ty.shape.at(IMAGES), data: Data::I32((0..(count * IMAGES) as i32).collect()) };
    for op in ops {
        let result = op.infer(&[&ty]).ok()?;
        numbers = eval_op(op, &[&numbers], &result, &[&ty], &BTreeMap::new()).ok()?;
        ty = result;
    }
    let Data::I32(mut moved) = numbers.data else { return None };
    let second = moved.split_off(count);
    let alike = moved.iter().zip(second).all(|(&a, b)| (0..count as i32).contains(&a) && b == a + count as i32);
    alike.then_some(moved)
}

/// Whether `to` is `from` with the first dimension split in two.
fn is_split(from: &Shape, to: &Shape) -> bool {
    to.rank() == from.rank() + 1 && to.0[0].times(to.0[1]) == Some(from.0[0]) && to.0[2..] == from.0[1..]
}

/// The operand of a reshape that splits (or the other way round, merges) the first dimension.
fn split_of(d: &Draft, n: usize) -> Option<(ValueId, Shape)> {
    let Op::Reshape { shape } = &d.node(n).op else { return None };
    let x = d.node(n).operands[0];
    (is_split(d.shape(x), shape) && d.used_once(x)).then(|| (x, shape.clone()))
}

fn merged(d: &Draft, v: ValueId) -> Option<ValueId> {
    let (Op::Reshape { .. }, &[x]) = d.op_of(v)? else { return None };
    is_split(d.shape(v), d.shape(x)).then_some(x)
}

/// A value with its first dimension split as in `like`.
fn split(d: &mut Draft, v: ValueId, like: &Shape, n: usize) -> Option<ValueId> {
    let shape = Shape([&like.0[..2], &d.shape(v).0[1..]].concat());
    d.push(Op::Reshape { shape }, &[v], d.loc(n))
}

/// `reshape(x + c)` to `reshape(x) + c`, and the same for a factor.
fn split_above_sum(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (sum, shape) = split_of(d, n)?;
    let (op @ (Op::Add {} | Op::Mul {}), &[x, c]) = d.op_of(sum)? else { return None };
    let (op, like) = (op.clone(), d.shape(x).clone());
    let c = d.constant_of(c)?.clone();
    let rank = c.ty.shape.rank();
    let spread = match rank == like.rank() {
        true if c.ty.shape.0[0] == Dim::fixed(1) => Shape([&[Dim::fixed(1)], &c.ty.shape.0[..]].concat()),
        true => return None,
        false => c.ty.shape.clone(),
    };
    if d.shape(sum) != &like {
        return None;
    }
    let loc = d.loc(d.def(sum)?);
    let c = d.constant(Const { ty: TensorType { shape: spread, ..c.ty }, ..c });
    let x = split(d, x, &shape, n)?;
    d.push(op, &[x, c], loc)
}

/// `reshape(a b)` of two activations to `reshape(a) reshape(b)`.
fn split_above_product(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (product, shape) = split_of(d, n)?;
    let (Op::MatMul {}, &[a, b]) = d.op_of(product)? else { return None };
    if d.is_const(b)
        || d.shape(a).0[0] != d.shape(b).0[0]
        || d.shape(a).rank() != d.shape(b).rank()
        || d.shape(a).rank() < 3
    {
        return None;
    }
    let loc = d.loc(d.def(product)?);
    let operands = [split(d, a, &shape, n)?, split(d, b, &shape, n)?];
    d.push(Op::MatMul {}, &operands, loc)
}

fn merge_below_softmax(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::Softmax {} = d.node(n).op else { return None };
    let x = merged(d, d.node(n).operands[0])?;
    let shape = d.shape(d.node(n).result).clone();
    let loc = d.loc(n);
    let y = d.push(Op::Softmax {}, &[x], loc.clone())?;
    d.push(Op::Reshape { shape }, &[y], loc)
}

fn merge_below_product(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (Op::MatMul {}, &[p, v]) = (&d.node(n).op, &d.node(n).operands[..]) else { return None };
    let x = merged(d, p)?;
    if d.is_const(v)
        || d.shape(p).rank() != d.shape(v).rank()
        || d.shape(p).0[0] != d.shape(v).0[0]
        || d.shape(p).rank() < 3
    {
        return None;
    }
    let shape = d.shape(d.node(n).result).clone();
    let like = d.shape(x).clone();
    let v = split(d, v, &like, n)?;
    let loc = d.loc(n);
    let y = d.push(Op::MatMul {}, &[x, v], loc.clone())?;
    d.push(Op::Reshape { shape }, &[y], loc)
}
