//! Attention: the two products of a head with the softmax between them, as one `fused.attention`.
//!
//! ```text
//! scores = int.matmul(q, k)         one use; then any number of int.add with constants, one use each
//! e      = int.exp(scores, table)   two uses: the sum and the product
//! sum    = int.reduce_sum(e)        one use
//! r      = int.reciprocal(sum)      one use
//! p      = int.matmul(e, v)         one use
//! y      = int.requant_rows(p, r)
//! z      = transpose(y)             taken along when it is the only use of y
//! ```
//!
//! The transpose that brings heads and their columns together costs nothing when the result is stored in its order.

use vitc_ir::{Def, Elem, Module, Node, Op, ValueId};

use super::chain::users;

/// The nodes of an attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attention {
    /// Node indices; the last one computes the result.
    pub nodes: Vec<usize>,
    /// `q`, `k`, `v`, `table` and what is added to the scores.
    pub operands: Vec<ValueId>,
    /// The op that replaces them.
    pub op: Op,
}

/// Every attention of the module.
pub(super) fn find(module: &Module) -> Vec<Attention> {
    let finder = Finder { module, uses: module.use_counts(), users: users(module) };
    (0..module.nodes.len()).filter_map(|n| finder.ending_at(n)).collect()
}

struct Finder<'m> {
    module: &'m Module,
    uses: Vec<usize>,
    users: Vec<Option<usize>>,
}

impl<'m> Finder<'m> {
    /// The attention whose requantize is node `n`.
    fn ending_at(&self, n: usize) -> Option<Attention> {
        let last = &self.module.nodes[n];
        let Op::IntRequantRows { shift, zero_point, to } = last.op else { return None };
        let (p, product) = self.made(last.operands[0], 1)?;
        let Op::IntMatMul { a_zero: 0, b_zero: v_zero } = product.op else { return None };
        let (r, reciprocal) = self.made(last.operands[1], 1)?;
        let Op::IntReciprocal { numerator } = reciprocal.op else { return None };
        let (s, sum) = self.made(reciprocal.operands[0], 1)?;
        let Op::IntReduceSum { axis, keep: true } = sum.op else { return None };
        let (e, exp) = self.made(sum.operands[0], 2)?;
        let Op::IntExp { limit, multiplier, shift: exp_shift, table_bits } = exp.op else { return None };
        let (mut sums, mut biases, mut scores) = (Vec::new(), Vec::new(), exp.operands[0]);
        while let Some((n, bias)) = self.bias(scores) {
            sums.insert(0, n);
            biases.insert(0, bias);
            scores = self.module.nodes[n].operands[0];
        }
        let (x, scores) = self.made(scores, 1)?;
        let Op::IntMatMul { a_zero: q_zero, b_zero: k_zero } = scores.op else { return None };
        let rank = self.module.ty(exp.result).shape.rank();
        let [q, k] = scores.operands[..] else { return None };
        let [weights, v] = product.operands[..] else { return None };
        if weights != exp.result || axis + 1 != rank || self.module.const_of(exp.operands[1]).is_none() {
            return None;
        }
        let moved = self.transposed(last);
        let perm = moved.map_or_else(|| (0..rank).collect(), |(_, perm)| perm.to_vec());
        let op = Op::FusedAttention {
            q_zero,
            k_zero,
            v_zero,
            limit,
            multiplier,
            exp_shift,
            table_bits,
            numerator,
            shift,
            zero_point,
            perm,
            to,
        };
        let nodes = [x].into_iter().chain(sums).chain([e, s, r, p, n]).chain(moved.map(|(t, _)| t)).collect();
        Some(Attention { nodes, operands: [vec![q, k, v, exp.operands[1]], biases].concat(), op })
    }

    /// The node that adds a constant to scores, and the constant.
    fn bias(&self, v: ValueId) -> Option<(usize, ValueId)> {
        let (n, node) = self.made(v, 1)?;
        let constant =
            matches!(node.op, Op::IntAdd { to: Elem::I32 }) && self.module.const_of(node.operands[1]).is_some();
        constant.then(|| (n, node.operands[1]))
    }

    /// The node that makes a value with this many uses.
    fn made(&self, v: ValueId, uses: usize) -> Option<(usize, &'m Node)> {
        match self.module.values[v.0 as usize].def {
            Def::Node(n) if self.uses[v.0 as usize] == uses => Some((n, &self.module.nodes[n])),
            _ => None,
        }
    }

    /// The transpose that alone uses the result of a node.
    fn transposed(&self, node: &Node) -> Option<(usize, &'m [usize])> {
        let user = self.users[node.result.0 as usize].filter(|_| self.uses[node.result.0 as usize] == 1)?;
        match &self.module.nodes[user].op {
            Op::Transpose { perm } => Some((user, perm)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
