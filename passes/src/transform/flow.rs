//! Where the channels of a value go: through movement to the products that sum over them.

use std::collections::BTreeMap;

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Class, Elem, Module, Op, TensorType, ValueId};

/// A product with constant weights that sums over the channels of some value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reader {
    /// The product's node.
    pub(crate) node: usize,
    /// For every row of its weights, the channel that the row multiplies.
    pub(crate) channel: Vec<usize>,
}

/// The products that read a value whose last dimension are its channels. `None` when anything else reads it as well, or a
/// product mixes channels: then they cannot be rescaled behind its back.
pub(crate) fn readers(module: &Module, v: ValueId) -> Option<Vec<Reader>> {
    let walk = Walk::from(module, v)?;
    (walk.partners.is_empty() && !walk.readers.is_empty()).then_some(walk.readers)
}

/// Where a value meets another one in a product of two activations that sums over the channels of both.
#[derive(Clone, Debug)]
pub(crate) struct Partner {
    /// The product's node.
    pub(crate) node: usize,
    /// The channel of every element of its left operand, at a batch of one.
    pub(crate) tags: Tensor,
}

/// The one product whose left side a value is, when nothing else reads it.
pub(crate) fn partner(module: &Module, v: ValueId) -> Option<Partner> {
    let walk = Walk::from(module, v)?;
    let [partner] = <[Partner; 1]>::try_from(walk.partners).ok()?;
    walk.readers.is_empty().then_some(partner)
}

/// The channel of every element of a value where it arrives as a product's right side through movement alone, and nowhere else.
pub(crate) fn arrives(module: &Module, v: ValueId, node: usize) -> Option<Tensor> {
    let right = module.nodes[node].operands[1];
    let mut walk = Walk::at(module, v)?;
    for n in 0..node {
        walk.node(n)?;
    }
    let later = || module.nodes.iter().skip(node).enumerate();
    let alone = |v: &ValueId| {
        later().all(|(n, m)| n == 0 || !m.operands.contains(v)) && module.outputs.iter().all(|o| o.value != *v)
    };
    let is_mine = walk.partners.is_empty() && walk.readers.is_empty() && walk.tags.keys().all(alone);
    walk.tags.remove(&right).filter(|_| is_mine)
}

struct Walk<'a> {
    module: &'a Module,
    /// For each value that holds channels, the channel of every element, at a batch of one.
    tags: BTreeMap<ValueId, Tensor>,
    readers: Vec<Reader>,
    partners: Vec<Partner>,
}

impl<'a> Walk<'a> {
    /// The walk before its first step: every channel of `v` has its number.
    fn at(module: &'a Module, v: ValueId) -> Option<Walk<'a>> {
        let channels = module.ty(v).shape.last_fixed()?;
        let shape = module.ty(v).shape.at(1);
        let count: usize = shape.iter().product();
        let tags = Tensor::f32(&shape, (0..count).map(|i| (i % channels) as f32).collect());
        Some(Walk { module, tags: BTreeMap::from([(v, tags)]), readers: Vec::new(), partners: Vec::new() })
    }

    /// The whole walk; `None` when a value with channels goes where it must not.
    fn from(module: &'a Module, v: ValueId) -> Option<Walk<'a>> {
        let mut walk = Walk::at(module, v)?;
        for n in 0..module.nodes.len() {
            walk.node(n)?;
        }
        let escapes = module.outputs.iter().any(|o| walk.tags.contains_key(&o.value));
        (!escapes).then_some(walk)
    }

    fn node(&mut self, n: usize) -> Option<()> {
        let node = &self.module.nodes[n];
        let tagged: Vec<usize> =
            (0..node.operands.len()).filter(|&i| self.tags.contains_key(&node.operands[i])).collect();
        match (&node.op, tagged.as_slice()) {
            (_, []) => {}
            (Op::MatMul {}, [0]) if float_matrix(self.module, node.operands[1]) => {
                let channel = columns(&self.tags[&node.operands[0]])?;
                self.readers.push(Reader { node: n, channel });
            }
            (Op::MatMul {}, [0]) if self.module.const_of(node.operands[1]).is_none() => {
                self.partners.push(Partner { node: n, tags: self.tags[&node.operands[0]].clone() });
            }
            (Op::MatMul {}, [1]) if node.operands.len() == 2 => {
                let tags = self.averaged(node.operands[1], node.result)?;
                self.tags.insert(node.result, tags);
            }
            (op, [0]) if op.class() == Class::Move && node.operands.len() == 1 => {
                let tags = self.moved(op, node.operands[0], node.result)?;
                self.tags.insert(node.result, tags);
            }
            _ => return None,
        }
        Some(())
    }

    fn moved(&self, op: &Op, from: ValueId, to: ValueId) -> Option<Tensor> {
        if matches!(op, Op::Pad { .. }) {
            return None; // the padding belongs to no channel
        }
        let (from_ty, to_ty) = (self.module.ty(from), self.module.ty(to));
        eval::eval_op(op, &[&self.tags[&from]], to_ty, &[from_ty], &self.module.lanes).ok()
    }

    /// A product with activations on its left averages rows: columns stay what they are.
    fn averaged(&self, right: ValueId, result: ValueId) -> Option<Tensor> {
        let tags = &self.tags[&right];
        let (&columns, rows) = (tags.shape.last()?, tags.shape[tags.shape.len().checked_sub(2)?]);
        let values = tags.as_f32()?;
        let matrices = values.chunks_exact(rows * columns);
        let same = |m: &[f32]| m.chunks_exact(columns).all(|row| row == &m[..columns]);
        if !matrices.clone().all(same) {
            return None;
        }
        let mut shape = tags.shape.clone();
        *shape.iter_mut().rev().nth(1)? = 1;
        let first = Tensor::f32(&shape, matrices.flat_map(|m| m[..columns].iter().copied()).collect());
        let to = self.module.ty(result).shape.at(1);
        let ty = |shape: &[usize]| TensorType::f32(vitc_ir::Shape::fixed(shape));
        let op = Op::Expand { shape: vitc_ir::Shape::fixed(&to) };
        eval::eval_op(&op, &[&first], &ty(&to), &[&ty(&shape)], &self.module.lanes).ok()
    }
}

/// The channel of each column, when every row agrees.
fn columns(tags: &Tensor) -> Option<Vec<usize>> {
    let (values, columns) = (tags.as_f32()?, *tags.shape.last()?);
    let first = values.get(..columns)?;
    values.chunks_exact(columns).all(|row| row == first).then(|| first.iter().map(|&c| c as usize).collect())
}

/// Whether a value is a constant matrix of floats: weights that can be rescaled.
pub(crate) fn float_matrix(module: &Module, v: ValueId) -> bool {
    module.const_of(v).is_some_and(|c| c.ty.elem == Elem::F32 && c.ty.shape.rank() == 2)
}
