//! Depthwise convolutions over a stream, and convolutions behind LayerNorm, with channels of uneven ranges.

use vitc_ir::attr::ImageLayout;
use vitc_ir::{Elem, Module, Op, ValueId};

use super::tests::{float_error, only, quantized, transformed};
use super::{Choice, Transform};
use crate::clean;
use crate::clean::testing::{Build, batched};
use crate::quantize::tests::pixel_options;

const CHANNELS: usize = 24;

fn conv(
    b: &mut Build,
    x: ValueId,
    inputs: usize,
    outputs: usize,
    (side, stride, groups): (usize, usize, usize),
) -> ValueId {
    let each = inputs / groups;
    let (w, bias) = (b.weights(&[outputs, each, side, side], 0.4), b.weights(&[outputs], 0.2));
    let pad = if stride == 1 { side / 2 } else { 0 };
    let layout = ImageLayout::ChannelsFirst;
    let op = Op::Conv2d { strides: [stride; 2], pads: [pad; 4], dilations: [1, 1], groups, layout };
    b.op(op, &[x, w, bias])
}

/// A positive factor for each channel, from 1 up to `most`.
fn uneven(most: f32) -> Vec<f32> {
    (0..CHANNELS).map(|c| most.powf((c * 5 % CHANNELS) as f32 / (CHANNELS - 1) as f32)).collect()
}

fn norm(b: &mut Build, x: ValueId, most: f32) -> ValueId {
    let (gamma, beta) = (b.values(&[CHANNELS], &uneven(most)), b.weights(&[CHANNELS], 0.2));
    b.op(Op::LayerNorm { epsilon: 1e-5.into(), centred: true }, &[x, gamma, beta])
}

fn done(b: Build, y: ValueId) -> Module {
    let cleaned = clean::run(&b.done(y), &pixel_options()).unwrap().module;
    crate::shape::run(&cleaned).unwrap()
}

/// A depthwise convolution reads the stream of tokens as an image, and brings its channels to one range; a LayerNorm reads it as well.
fn over_a_stream() -> Module {
    const MOST: f32 = 60.0;
    let mut b = Build::new(31);
    let x = b.m.input("pixels", vitc_ir::TensorType::f32(batched(&[3, 16, 16])));
    let x = conv(&mut b, x, 3, CHANNELS, (2, 2, 1));
    let x = b.reshape(x, &[CHANNELS, 64]);
    let x = b.transpose(x, &[0, 2, 1]);
    let y = b.linear(x, CHANNELS);
    let parts = [x, y].map(|v| norm(&mut b, v, MOST));
    let x = b.add(parts[0], parts[1]);
    let image = b.transpose(x, &[0, 2, 1]);
    let image = b.reshape(image, &[CHANNELS, 8, 8]);
    let taps = b.random.normals(CHANNELS * 9, 0.4);
    let taps: Vec<f32> = taps.iter().enumerate().map(|(i, w)| w / uneven(MOST)[i / 9]).collect();
    let w = b.values(&[CHANNELS, 1, 3, 3], &taps);
    let layout = ImageLayout::ChannelsFirst;
    let depthwise = Op::Conv2d { strides: [1; 2], pads: [1; 4], dilations: [1, 1], groups: CHANNELS, layout };
    let y = b.op(depthwise, &[image, w]);
    let y = b.reshape(y, &[CHANNELS, 64]);
    let y = b.transpose(y, &[0, 2, 1]);
    let ends = [x, y].map(|v| norm(&mut b, v, 1.0));
    let y = b.op(Op::Concat { axis: 1 }, &ends);
    let y = b.linear(y, 5);
    done(b, y)
}

/// Patches merged behind a LayerNorm, as between the stages of ConvNeXt, and keys of fewer pixels, as in PVT.
fn behind_a_norm(product_reads_too: bool) -> Module {
    let mut b = Build::new(32);
    let x = b.m.input("pixels", vitc_ir::TensorType::f32(batched(&[3, 16, 16])));
    let x = conv(&mut b, x, 3, CHANNELS, (2, 2, 1));
    let x = b.reshape(x, &[CHANNELS, 64]);
    let x = b.transpose(x, &[0, 2, 1]);
    let n = norm(&mut b, x, 40.0);
    let image = b.transpose(n, &[0, 2, 1]);
    let image = b.reshape(image, &[CHANNELS, 8, 8]);
    let y = conv(&mut b, image, CHANNELS, 12, (2, 2, 1));
    let y = b.reshape(y, &[12, 16]);
    let y = if product_reads_too {
        let rows = b.linear(n, 16);
        let y = b.transpose(y, &[0, 2, 1]);
        b.op(Op::MatMul {}, &[rows, y])
    } else {
        b.transpose(y, &[0, 2, 1])
    };
    let y = b.linear(y, 5);
    done(b, y)
}

#[test]
fn channels_of_a_stream_have_scales_of_their_own_for_a_depthwise_convolution() {
    let m = over_a_stream();
    let (t, applied) = transformed(&m, &only(Transform::Migrate));
    vitc_ir::verify::verify(&t).unwrap();
    assert_eq!((applied.len(), t.nodes.len()), (1, m.nodes.len() + 1), "{applied:?}");
    assert!(float_error(&m, &t) > 90.0, "exact in float");
    let [plain, found] = [&m, &t].map(|m| float_error(m, &quantized(m)));
    assert!(found > plain + 3.0, "{plain} dB plain, {found} dB with a scale for each channel");
    // the factor is the requantize that was there before
    let (integers, _) = crate::integerize::run(&quantized(&t), &Default::default()).unwrap();
    let by_channel = |n: &vitc_ir::Node| {
        let fine = matches!(n.op, Op::IntRequant15 { .. } | Op::IntRequant { .. });
        let multipliers = n.operands.get(1).and_then(|&m| integers.const_of(m)).map(|c| c.ints().len());
        let [from, to] = [n.operands[0], n.result].map(|v| integers.ty(v).elem);
        fine && (from, to, multipliers) == (Elem::I16, Elem::U8, Some(CHANNELS))
    };
    assert_eq!(integers.nodes.iter().filter(|n| by_channel(n)).count(), 1);
    assert!(integers.nodes.iter().all(|n| n.op.class() != vitc_ir::Class::Float));
}

#[test]
fn channels_migrate_from_a_norm_to_convolutions() {
    for product_reads_too in [false, true] {
        let m = behind_a_norm(product_reads_too);
        let (t, applied) = transformed(&m, &only(Transform::Migrate));
        vitc_ir::verify::verify(&t).unwrap();
        let norms = applied.iter().filter(|a| a.node.starts_with("layernorm"));
        assert_eq!((norms.count(), t.nodes.len()), (1, m.nodes.len()), "{applied:?}");
        assert!(float_error(&m, &t) > 90.0, "exact in float");
        let [plain, found] = [&m, &t].map(|m| float_error(m, &quantized(m)));
        assert!(found > plain + 1.0, "{plain} dB plain, {found} dB migrated");
        assert!(transformed(&m, &Choice::none()).1.is_empty());
    }
}
