//! Branches that become one convolution, and convolutions with several outputs of each channel.

use vitc_ir::{ImageLayout, Op, ValueId};

use super::testing::{Build, clean, count};

/// A square kernel, padded so that the image keeps its size at stride 1.
fn conv(b: &mut Build, x: ValueId, outputs: usize, kernel: usize, groups: usize, stride: usize) -> ValueId {
    padded_conv(b, x, outputs, (kernel, [kernel / 2; 4]), groups, stride)
}

fn padded_conv(
    b: &mut Build,
    x: ValueId,
    outputs: usize,
    (kernel, pads): (usize, [usize; 4]),
    groups: usize,
    stride: usize,
) -> ValueId {
    let channels = b.m.ty(x).shape.0[1].size;
    let (weights, bias) = (b.weights(&[outputs, channels / groups, kernel, kernel], 0.3), b.weights(&[outputs], 0.3));
    let op = Op::Conv2d { strides: [stride; 2], pads, dilations: [1, 1], groups, layout: ImageLayout::ChannelsFirst };
    b.op(op, &[x, weights, bias])
}

fn scaled(b: &mut Build, x: ValueId, channels: usize) -> ValueId {
    let (factor, offset) = (b.weights(&[channels, 1, 1], 1.0), b.weights(&[channels, 1, 1], 1.0));
    let y = b.mul(x, factor);
    b.add(y, offset)
}

#[test]
fn convolutions_of_one_value_are_one() {
    for (groups, stride, kernels) in [(1, 2, [1, 3]), (1, 1, [5, 3]), (6, 2, [7, 3]), (6, 1, [3, 3])] {
        for op in [Op::Add {}, Op::Sub {}] {
            let mut b = Build::new(50);
            let x = b.input(&[6, 9, 9]);
            let [left, right] = kernels.map(|k| conv(&mut b, x, 6, k, groups, stride));
            let y = b.op(op.clone(), &[left, right]);
            let m = clean(&b.done(y)).module;
            assert_eq!(["conv2d", op.name()].map(|name| count(&m, name)), [1, 0], "{kernels:?} {}", op.name());
        }
    }
}

#[test]
fn kernels_that_lie_beside_each_other_stay() {
    let mut b = Build::new(54);
    let x = b.input(&[4, 8, 8]);
    let [left, right] = [[0, 0, 2, 2], [1, 1, 1, 1]].map(|pads| padded_conv(&mut b, x, 4, (3, pads), 1, 1));
    let y = b.add(left, right);
    assert_eq!(count(&clean(&b.done(y)).module, "conv2d"), 2);
}

#[test]
fn what_else_is_read_or_strided_otherwise_stays() {
    let mut b = Build::new(51);
    let x = b.input(&[4, 8, 8]);
    let (left, right) = (conv(&mut b, x, 4, 3, 1, 1), conv(&mut b, x, 4, 1, 1, 1));
    let sum = b.add(left, right);
    let y = b.mul(sum, left);
    assert_eq!(count(&clean(&b.done(y)).module, "conv2d"), 2);
}

/// Three branches of RepMixer: a depthwise convolution, one of single pixels and a batch norm alone, less another norm.
#[test]
fn scaled_branches_are_one() {
    let mut b = Build::new(52);
    let x = b.input(&[4, 8, 8]);
    let x = b.gelu(x);
    let (pixels, norm) = (conv(&mut b, x, 4, 1, 4, 1), scaled(&mut b, x, 4));
    let sum = b.add(pixels, norm);
    let wide = conv(&mut b, x, 4, 3, 4, 1);
    let sum = b.add(sum, wide);
    let other = scaled(&mut b, x, 4);
    let y = b.op(Op::Sub {}, &[sum, other]);
    let m = clean(&b.done(y)).module;
    let found = ["conv2d", "mul", "sub"].map(|name| count(&m, name));
    assert_eq!(found, [1, 1, 0]);
    let conv = m.nodes.iter().find(|n| n.op.name() == "conv2d").unwrap();
    assert_eq!(m.ty(conv.operands[1]).shape, vitc_ir::Shape::fixed(&[4, 1, 3, 3]));
}

#[test]
fn several_outputs_of_a_channel_are_convolutions_in_turn() {
    for times in [2, 3] {
        let mut b = Build::new(53);
        let x = b.input(&[5, 8, 8]);
        let y = conv(&mut b, x, 5 * times, 3, 5, 2);
        let m = clean(&b.done(y)).module;
        assert_eq!((count(&m, "conv2d"), count(&m, "concat"), count(&m, "gather")), (times, 1, 1));
    }
}
