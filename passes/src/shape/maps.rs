//! The map of attention on the left of its product, where it is bytes with a divisor for each row: an attention that has its tokens
//! last (of convolutions, in LeViT) multiplies the values by the map's transposition.

use vitc_ir::{Op, ValueId};

use crate::clean::draft::{Draft, Rule};

/// The rule of this file.
pub(crate) const RULES: &[(&str, Rule)] = &[("map-on-the-left", map_on_the_left)];

/// `v @ map^T` as `(map @ v^T)^T`.
fn map_on_the_left(d: &mut Draft, n: usize) -> Option<ValueId> {
    let Op::MatMul {} = d.node(n).op else { return None };
    let &[left, right] = d.node(n).operands.as_slice() else { return None };
    if is_map(d, left) || !is_map(d, right) {
        return None;
    }
    let loc = d.loc(n);
    let turned = |d: &mut Draft, v| {
        let rank = d.shape(v).rank();
        let perm = (0..rank.checked_sub(2)?).chain([rank - 1, rank - 2]).collect();
        d.push(Op::Transpose { perm }, &[v], loc.clone())
    };
    let operands = [turned(d, right)?, turned(d, left)?];
    let product = d.push(Op::MatMul {}, &operands, d.loc(n))?;
    turned(d, product)
}

/// Whether a value is what softmax yields, moved about at most.
fn is_map(d: &Draft, v: ValueId) -> bool {
    match d.op_of(v) {
        Some((Op::Softmax {}, _)) => true,
        Some((Op::Transpose { .. } | Op::Reshape { .. }, operands)) => is_map(d, operands[0]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use vitc_ir::Op;

    use crate::clean::testing::{Build, difference, inputs, outputs};

    #[test]
    fn values_before_the_map_come_behind_it() {
        let mut b = Build::new(3);
        let x = b.input(&[2, 8, 6]);
        let (q, k) = (b.slice(x, 2, 0, 4), b.slice(x, 2, 4, 4));
        let q = b.transpose(q, &[0, 1, 3, 2]);
        let scores = b.op(Op::MatMul {}, &[q, k]);
        let map = b.softmax(scores);
        let map = b.transpose(map, &[0, 1, 3, 2]);
        let y = b.op(Op::MatMul {}, &[x, map]);
        b.m.output("y", y);
        let after = super::super::run(&b.m).unwrap();
        let images = inputs(&b.m, 5);
        assert!(difference(&outputs(&b.m, &images), &outputs(&after, &images)) < 1e-5);
        let left = |n: &vitc_ir::Node| after.node_of(n.operands[0]).is_some_and(|n| n.op == Op::Softmax {});
        assert!(after.nodes.iter().any(|n| n.op == Op::MatMul {} && left(n)));
    }
}
