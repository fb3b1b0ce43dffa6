//! What is recognised, what is not, and that the module computes the same.

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Const, Elem, Shape, Stage, TensorType, verify};

use super::*;
use crate::fuse;

/// Which part of the chain is bent out of shape.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bent {
    Nothing,
    /// The result is not transposed.
    Straight,
    /// The result is clamped before it is transposed.
    Clamped,
    /// The weights are an output as well.
    WeightsSeen,
    /// The result before the transpose is an output as well.
    ResultSeen,
    /// The sum runs over queries.
    OtherAxis,
    /// The values are multiplied with something else.
    OtherWeights,
}

fn module(bent: Bent) -> Module {
    let mut m = Module::new("attention", Stage::Integerize);
    let q = m.input("q", TensorType::new(Elem::U8, Shape::fixed(&[2, 5, 4])));
    let k = m.input("k", TensorType::new(Elem::I8, Shape::fixed(&[2, 4, 5])));
    let v = m.input("v", TensorType::new(Elem::I8, Shape::fixed(&[2, 5, 7])));
    let w = m.input("w", TensorType::new(Elem::U8, Shape::fixed(&[2, 5, 5])));
    let table: Vec<i32> = (0..64).map(|i| (255 << 16) - i * 130_000).collect();
    let table = m.constant(Const::new("table", TensorType::new(Elem::I32, Shape::fixed(&[64])), &table));
    let mut push = |op: Op, operands: &[ValueId]| m.push(op, operands, Some("/attn".into())).unwrap();
    let scores = push(Op::IntMatMul { a_zero: 99, b_zero: 0 }, &[q, k]);
    let e = push(Op::IntExp { limit: 300, multiplier: 400_000, shift: 21, table_bits: 16 }, &[scores, table]);
    let axis = if bent == Bent::OtherAxis { 1 } else { 2 };
    let mut sum = push(Op::IntReduceSum { axis, keep: true }, &[e]);
    if bent == Bent::OtherAxis {
        sum = push(Op::Transpose { perm: vec![0, 2, 1] }, &[sum]);
    }
    let r = push(Op::IntReciprocal { numerator: 255 << 29 }, &[sum]);
    let weights = if bent == Bent::OtherWeights { w } else { e };
    let p = push(Op::IntMatMul { a_zero: 0, b_zero: 0 }, &[weights, v]);
    let y = push(Op::IntRequantRows { shift: 37, zero_point: 128, to: Elem::U8 }, &[p, r]);
    let y = if bent == Bent::Clamped { push(Op::IntClamp { lo: 100, hi: 150 }, &[y]) } else { y };
    let z = if bent == Bent::Straight { y } else { push(Op::Transpose { perm: vec![1, 0, 2] }, &[y]) };
    m.output("z", z);
    match bent {
        Bent::WeightsSeen => m.output("seen", e),
        Bent::ResultSeen => m.output("seen", y),
        _ => {}
    }
    m
}

/// The permutation of the attention that comes out, if one does.
fn fused(bent: Bent) -> Option<Vec<usize>> {
    let before = module(bent);
    verify::verify(&before).unwrap();
    let (after, fired) = fuse::run(&before).unwrap();
    verify::verify(&after).unwrap();
    let tensor = |elem, dims: &[usize], step: i64| {
        let (lo, hi) = Elem::range(elem).unwrap();
        let count = dims.iter().product::<usize>() as i64;
        Tensor::ints(elem, dims, (0..count).map(|i| lo + (i * step + 13) % (hi - lo + 1)))
    };
    let inputs = [
        tensor(Elem::U8, &[2, 5, 4], 7919),
        tensor(Elem::I8, &[2, 4, 5], 611),
        tensor(Elem::I8, &[2, 5, 7], 353),
        tensor(Elem::U8, &[2, 5, 5], 97),
    ];
    assert_eq!(eval::run(&before, &inputs).unwrap(), eval::run(&after, &inputs).unwrap(), "{bent:?}");
    let found = after.nodes.iter().find_map(|n| match &n.op {
        Op::FusedAttention { perm, .. } => Some(perm.clone()),
        _ => None,
    });
    assert_eq!(fired.get("attention").copied(), found.as_ref().map(|_| 1));
    found
}

#[test]
fn attention_takes_its_transpose_along() {
    assert_eq!(fused(Bent::Nothing), Some(vec![1, 0, 2]));
    assert_eq!(fused(Bent::Clamped), Some(vec![1, 0, 2]));
    assert_eq!(fused(Bent::Straight), Some(vec![0, 1, 2]));
    assert_eq!(fused(Bent::ResultSeen), Some(vec![0, 1, 2]));
}

#[test]
fn what_only_looks_like_attention_stays() {
    for bent in [Bent::WeightsSeen, Bent::OtherAxis, Bent::OtherWeights] {
        assert_eq!(fused(bent), None, "{bent:?}");
    }
}
