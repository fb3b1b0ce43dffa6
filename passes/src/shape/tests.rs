//! Windows of shifted-window attention: every spelling settles to the same few nodes, and the result means the same.

use vitc_ir::{Const, Dim, Module, Op, Shape, Stage, TensorType, ValueId};

use super::run;
use crate::clean::testing::{Build, batched, count, difference, inputs, outputs};

/// Settles, and checks that the meaning stays.
fn settle(mut m: Module) -> Module {
    m.stage = Stage::Clean;
    let settled = run(&m).unwrap();
    vitc_ir::verify::verify(&settled).unwrap();
    let inputs = inputs(&m, 1);
    let d = difference(&outputs(&m, &inputs), &outputs(&settled, &inputs));
    assert!(d < 1e-5, "differs by {d}");
    settled
}

/// `[windows N, tokens, c]` of an image of 8 x 8 in windows of 4 x 4.
fn cut(b: &mut Build, x: ValueId, c: usize) -> ValueId {
    let x = b.reshape(x, &[2, 4, 2, 4, c]);
    let x = b.transpose(x, &[0, 1, 3, 2, 4, 5]);
    let windows = Shape(vec![Dim { size: 4, batch: true }, 16.into(), c.into()]);
    b.op(Op::Reshape { shape: windows }, &[x])
}

fn join(b: &mut Build, x: ValueId, c: usize) -> ValueId {
    let x = b.reshape(x, &[2, 2, 4, 4, c]);
    let x = b.transpose(x, &[0, 1, 3, 2, 4, 5]);
    b.reshape(x, &[8, 8, c])
}

/// `torch.roll` along the two axes of an image.
fn roll(b: &mut Build, x: ValueId, by: usize) -> ValueId {
    [1, 2].into_iter().fold(x, |x, axis| {
        let parts = [b.slice(x, axis, by, 8 - by), b.slice(x, axis, 0, by)];
        b.op(Op::Concat { axis }, &parts)
    })
}

/// Heads of 4 columns of `[windows N, tokens, 8]`.
fn heads(b: &mut Build, x: ValueId, perm: &[usize]) -> ValueId {
    let split = Shape(vec![Dim { size: 4, batch: true }, 16.into(), 2.into(), 4.into()]);
    let x = b.op(Op::Reshape { shape: split }, &[x]);
    b.transpose(x, perm)
}

fn project(b: &mut Build, x: ValueId) -> ValueId {
    let w = b.weights(&[8, 8], 0.3);
    b.op(Op::MatMul {}, &[x, w])
}

/// A block of shifted-window attention with residual, as timm exports it.
fn shifted_block(b: &mut Build, masked: bool) -> ValueId {
    let x = b.input(&[8, 8, 8]);
    let n = b.layernorm(x);
    let rolled = roll(b, n, 2);
    let w = cut(b, rolled, 8);
    let [q, k, v] = [0; 3].map(|_| project(b, w));
    let (q, k, v) = (heads(b, q, &[0, 2, 1, 3]), heads(b, k, &[0, 2, 3, 1]), heads(b, v, &[0, 2, 1, 3]));
    let mut scores = b.op(Op::MatMul {}, &[q, k]);
    let positions = b.weights(&[1, 2, 16, 16], 0.5);
    scores = b.add(scores, positions);
    if masked {
        let merged = b.m.ty(scores).shape.clone();
        scores = b.reshape(scores, &[4, 2, 16, 16]);
        let mask = b.weights(&[1, 4, 1, 16, 16], 5.0);
        scores = b.add(scores, mask);
        scores = b.op(Op::Reshape { shape: merged }, &[scores]);
    }
    let map = b.softmax(scores);
    let y = b.op(Op::MatMul {}, &[map, v]);
    let y = b.transpose(y, &[0, 2, 1, 3]);
    let merged = Shape(vec![Dim { size: 4, batch: true }, 16.into(), 8.into()]);
    let y = b.op(Op::Reshape { shape: merged }, &[y]);
    let y = project(b, y);
    let y = join(b, y, 8);
    let y = roll(b, y, 6);
    b.add(x, y)
}

#[test]
fn a_shifted_block_gathers_rows_once_on_each_side() {
    for masked in [false, true] {
        let mut b = Build::new(7);
        let y = shifted_block(&mut b, masked);
        let settled = settle(b.done(y));
        let counts = ["slice", "concat", "gather"].map(|op| count(&settled, op));
        assert_eq!(counts, [0, 0, 2]);
        // nothing but a sum follows the projection
        let last = settled.nodes.last().unwrap();
        let projected = settled.node_of(last.operands[1]).unwrap();
        assert_eq!(projected.op, Op::MatMul {});
        // nothing but the heads is transposed between attention and the gather
        let gather = settled.nodes.iter().rfind(|n| matches!(n.op, Op::Gather { .. })).unwrap();
        let joined = settled.node_of(gather.operands[0]).unwrap();
        let heads = settled.node_of(joined.operands[0]).unwrap();
        let swap = if masked { vec![0, 1, 3, 2, 4] } else { vec![0, 2, 1, 3] };
        assert_eq!(heads.op, Op::Transpose { perm: swap });
        assert_eq!(settled.node_of(heads.operands[0]).unwrap().op, Op::MatMul {});
        let softmax = settled.nodes.iter().find(|n| n.op == Op::Softmax {}).unwrap();
        assert_eq!(settled.ty(softmax.result).shape.rank(), if masked { 5 } else { 4 });
        let sums: Vec<_> = settled.nodes.iter().filter(|n| n.op == Op::Add {}).collect();
        let scores = settled.node_of(sums[0].operands[0]).unwrap();
        assert!(matches!(scores.op, Op::MatMul {}), "a sum of scores lies right below their product");
    }
}

/// Patch merging as slices with step two, in both orders.
#[test]
fn merged_patches_need_no_slices() {
    for order in [[(0, 0), (1, 0), (0, 1), (1, 1)], [(0, 0), (0, 1), (1, 0), (1, 1)]] {
        let mut b = Build::new(3);
        let x = b.input(&[8, 6, 4]);
        let parts = order.map(|(row, column)| {
            let part = b.op(Op::Slice { axis: 1, start: row, len: 4, step: 2 }, &[x]);
            b.op(Op::Slice { axis: 2, start: column, len: 3, step: 2 }, &[part])
        });
        let y = b.op(Op::Concat { axis: 3 }, &parts);
        let y = b.layernorm(y);
        let settled = settle(b.done(y));
        assert_eq!(["slice", "concat", "transpose"].map(|op| count(&settled, op)), [0, 0, 1]);
    }
}

#[test]
fn a_factor_stays_with_its_split_scores() {
    let mut b = Build::new(5);
    let x = b.input(&[4, 6]);
    let merged = Shape(vec![Dim { size: 4, batch: true }, 6.into()]);
    let x = b.op(Op::Reshape { shape: merged }, &[x]);
    let factor = b.m.constant(Const::new("c", TensorType::f32(Shape::fixed(&[1, 6])), &[2.0f32; 6]));
    let y = b.mul(x, factor);
    let y = b.reshape(y, &[4, 6]);
    let settled = settle(b.done(y));
    assert_eq!(count(&settled, "reshape"), 0);
    assert_eq!(settled.ty(settled.nodes[0].result).shape, batched(&[4, 6]));
}

/// Tokens before the batch, and heads merged with it, as `nn.MultiheadAttention` does: the heads of every other model.
#[test]
fn heads_that_were_merged_with_the_batch() {
    let mut b = Build::new(9);
    let x = b.input(&[16, 8]);
    let x = project(&mut b, x);
    let merged = |batch_at: usize, dims: &[usize]| {
        let mut shape = Shape::fixed(dims);
        shape.0[batch_at].batch = true;
        shape
    };
    let t = b.transpose(x, &[1, 0, 2]);
    let t = b.op(Op::Reshape { shape: merged(1, &[16, 2, 4]) }, &[t]);
    let q = b.transpose(t, &[1, 0, 2]);
    let k = b.transpose(t, &[1, 2, 0]);
    let scores = b.op(Op::MatMul {}, &[q, k]);
    let mixed = b.op(Op::MatMul {}, &[scores, q]);
    let t = b.transpose(mixed, &[1, 0, 2]);
    let t = b.op(Op::Reshape { shape: merged(1, &[16, 1, 8]) }, &[t]);
    let y = b.transpose(t, &[1, 0, 2]);
    let m = settle(b.done(y));
    for node in m.nodes.iter().filter(|n| n.op.name() == "transpose") {
        let shape = &m.ty(node.operands[0]).shape;
        assert!(shape.0[0].batch && shape.rank() == 4, "a transpose of [{shape}]");
    }
    assert_eq!(count(&m, "transpose"), 3);
}
