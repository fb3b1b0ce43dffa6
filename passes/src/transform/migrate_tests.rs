//! Migration and shifting on two inverted bottlenecks, one with HardSwish and one with ReLU, whose channels were made uneven:
//! exactly in float, so that plain quantization loses what the transforms bring back.

use vitc_ir::attr::ImageLayout;
use vitc_ir::{Module, Op, ValueId};

use super::tests::{float_error, only, quantized, transformed};
use super::*;
use crate::clean;
use crate::clean::testing::{Build, batched, inputs, outputs};
use crate::quantize::tests::pixel_options;

/// Channels of the stream, of what is between, and how much wider some are made than others.
const NARROW: usize = 8;
const WIDE: usize = 24;

/// Factors of channels, from 1 up to `most`.
fn uneven(channels: usize, most: f32) -> Vec<f32> {
    (0..channels).map(|c| most.powf((c * 5 % channels) as f32 / (channels - 1) as f32)).collect()
}

/// A convolution of single pixels whose filters are multiplied and whose inputs are divided.
fn pointwise(b: &mut Build, x: ValueId, inputs: &[f32], outputs: &[f32]) -> ValueId {
    let i = inputs.len();
    let w = b.random.normals(i * outputs.len(), (i as f32).powf(-0.5));
    let w: Vec<f32> = w.iter().enumerate().map(|(k, w)| w / inputs[k % i] * outputs[k / i]).collect();
    convolution(b, x, &w, outputs, (i, 1))
}

fn depthwise(b: &mut Build, x: ValueId, inputs: &[f32], outputs: &[f32]) -> ValueId {
    let w = b.random.normals(inputs.len() * 9, 0.4);
    let w: Vec<f32> = w.iter().enumerate().map(|(k, w)| w / inputs[k / 9] * outputs[k / 9]).collect();
    convolution(b, x, &w, outputs, (1, 3))
}

/// Filters of so many inputs and so many taps a side, with a bias as wide as each.
fn convolution(b: &mut Build, x: ValueId, w: &[f32], outputs: &[f32], (depth, side): (usize, usize)) -> ValueId {
    let bias: Vec<f32> = b.random.normals(outputs.len(), 0.5).iter().zip(outputs).map(|(b, c)| b * c).collect();
    let (w, bias) = (b.values(&[outputs.len(), depth, side, side], w), b.values(&[outputs.len()], &bias));
    let groups = if depth == 1 { outputs.len() } else { 1 };
    let layout = ImageLayout::ChannelsFirst;
    b.op(
        Op::Conv2d { strides: [1, 1], pads: [usize::from(depth == 1); 4], dilations: [1, 1], groups, layout },
        &[x, w, bias],
    )
}

/// `x + project(f(depthwise(f(expand(x)))))`. Scales can go through ReLU before the rewriting, not through HardSwish.
fn bottleneck(b: &mut Build, x: ValueId, f: Op, stream: &[f32], most: f32) -> ValueId {
    let through = uneven(WIDE, if f == (Op::Relu {}) { most } else { 1.0 });
    let y = pointwise(b, x, stream, &through);
    let y = b.op(f.clone(), &[y]);
    let y = depthwise(b, y, &through, &through);
    let y = b.op(f, &[y]);
    let y = pointwise(b, y, &through, stream);
    b.add(y, x)
}

/// Two bottlenecks; the wider `most`, the more uneven.
fn network(first: Op, second: Op, most: f32) -> Module {
    let mut b = Build::new(3);
    let x = b.m.input("pixels", vitc_ir::TensorType::f32(batched(&[3, 8, 8])));
    let stream = uneven(NARROW, most);
    let w = b.random.normals(NARROW * 27, 0.3);
    let x = convolution(&mut b, x, &w, &[1.0; NARROW], (3, 3));
    let x = pointwise(&mut b, x, &[1.0; NARROW], &stream);
    let x = bottleneck(&mut b, x, first, &stream, most);
    let x = bottleneck(&mut b, x, second, &stream, most);
    let y = pointwise(&mut b, x, &stream, &[1.0; 5]);
    let cleaned = clean::run(&b.done(y), &pixel_options()).unwrap().module;
    crate::shape::run(&cleaned).unwrap()
}

fn count(m: &Module, f: impl Fn(&Op) -> bool) -> usize {
    m.nodes.iter().filter(|n| f(&n.op)).count()
}

#[test]
fn hostile_channels_are_recovered() {
    let even = network(Op::Relu {}, Op::Relu {}, 1.0);
    let hostile = network(Op::Relu {}, Op::Relu {}, 400.0);
    assert!(float_error(&even, &hostile) > 80.0, "the same function");
    let kept = float_error(&even, &quantized(&even));
    let lost = float_error(&hostile, &quantized(&hostile));
    let (t, applied) = transformed(&hostile, &only(Transform::Migrate));
    assert!(float_error(&hostile, &t) > 80.0, "exact in float");
    let found = float_error(&hostile, &quantized(&t));
    assert!(applied.iter().any(|a| a.transform == Transform::Migrate), "{applied:?}");
    assert!(lost < kept - 15.0 && found > kept - 3.0, "even {kept} dB, hostile {lost} dB, migrated {found} dB");
}

/// A network with HardSwish some of whose channels are wider than others, and some further from zero.
fn curved() -> Module {
    let mut m = network(Op::HardSwish {}, Op::HardSwish {}, 1.0);
    for n in 0..m.nodes.len() {
        let result = m.nodes[n].result;
        if !m.nodes.iter().any(|u| u.op == (Op::HardSwish {}) && u.operands[0] == result) {
            continue;
        }
        if let Some(mut f) = edit::Filters::of(&m, n) {
            let offsets: Vec<f64> = (0..WIDE).map(|c| -4.0 * (c % 4) as f64).collect();
            f.give_output(&[1.0; WIDE], &offsets);
            f.store(&mut m);
        } else if let Some(mut p) = edit::Product::of(&m, n) {
            uneven(WIDE, 12.0).iter().enumerate().for_each(|(c, &by)| p.scale_column(c, by.into()));
            p.store(&mut m);
        }
    }
    m
}

#[test]
fn factors_and_centres_behind_hardswish() {
    let m = curved();
    let (migrated, applied) = transformed(&m, &only(Transform::Migrate));
    let (both, shifted) = transformed(&m, &Choice::default());
    for t in [&migrated, &both] {
        vitc_ir::verify::verify(t).unwrap();
        let exact = float_error(&m, t);
        assert!(exact > 90.0, "{exact} dB");
    }
    assert_eq!(count(&migrated, |op| matches!(op, Op::Mul {})), 4, "{applied:?}");
    assert_eq!(count(&both, |op| matches!(op, Op::Add {})), 4, "two sums and two centres: {shifted:?}");
    let plain = float_error(&m, &quantized(&m));
    let [one, two] = [&migrated, &both].map(|t| float_error(&m, &quantized(t)));
    assert!(one > plain + 1.0 && two > plain + 1.0, "{plain} dB plain, {one} dB migrated, {two} dB shifted too");
}

/// What is put behind a curve becomes integers: one multiplier for each channel.
#[test]
fn factors_behind_curves_are_multipliers() {
    let (t, _) = transformed(&curved(), &Choice::default());
    let (integers, report) = crate::integerize::run(&quantized(&t), &Default::default()).unwrap();
    assert!(
        report.fired.contains_key("gated-hardswish") && report.fired.contains_key("sink-scale"),
        "{:?}",
        report.fired
    );
    let by_channel = |n: &vitc_ir::Node| {
        let fine = matches!(n.op, Op::IntRequant15 { .. } | Op::IntRequant { .. });
        let from = integers.ty(n.operands[0]).elem;
        fine && from == vitc_ir::Elem::I16 && integers.const_of(n.operands[1]).is_some_and(|c| c.ints().len() == WIDE)
    };
    assert!(integers.nodes.iter().any(by_channel));
    assert!(integers.nodes.iter().all(|n| n.op.class() != vitc_ir::Class::Float));
}

/// Strides, pads, dilations, groups, and taps a side of a convolution.
type Geometry = ([usize; 2], [usize; 4], [usize; 2], usize, usize);

/// A convolution of what a product of pixels yields, whose channels lie further from zero than they are wide.
fn off_centre((strides, pads, dilations, groups, side): Geometry, f: Option<Op>) -> Module {
    let mut b = Build::new(11);
    let x = b.m.input("pixels", vitc_ir::TensorType::f32(batched(&[3, 9, 10])));
    let w = b.random.normals(NARROW * 27, 0.3);
    let x = convolution(&mut b, x, &w, &[1.0; NARROW], (3, 3));
    let x = b.op(Op::Relu {}, &[x]);
    let w = b.weights(&[WIDE, NARROW, 1, 1], 0.4);
    let offsets: Vec<f32> = (0..WIDE).map(|c| 6.0 * ((c * 7 % WIDE) as f32 - 11.0)).collect();
    let offsets = b.values(&[WIDE], &offsets);
    let pixelwise =
        Op::Conv2d { strides: [1, 1], pads: [0; 4], dilations: [1, 1], groups: 1, layout: ImageLayout::ChannelsFirst };
    let x = b.op(pixelwise, &[x, w, offsets]);
    let (w, bias) = (b.weights(&[WIDE, WIDE / groups, side, side], 0.3), b.weights(&[WIDE], 0.5));
    let x = b.op(Op::Conv2d { strides, pads, dilations, groups, layout: ImageLayout::ChannelsFirst }, &[x, w, bias]);
    let x = f.map_or(x, |f| b.op(f, &[x]));
    let y = pointwise(&mut b, x, &[1.0; WIDE], &[1.0; 5]);
    let cleaned = clean::run(&b.done(y), &pixel_options()).unwrap().module;
    crate::shape::run(&cleaned).unwrap()
}

/// Dense, grouped, depthwise; strided, dilated, with borders on some sides, wider than the image, or none.
const WINDOWS: [Geometry; 7] = [
    ([1, 1], [1; 4], [1, 1], 1, 3),
    ([2, 2], [1; 4], [1, 1], WIDE, 3),
    ([1, 1], [2; 4], [1, 1], WIDE, 5),
    ([1, 2], [0, 2, 1, 0], [1, 2], 4, 3),
    ([2, 1], [2, 0, 0, 3], [2, 1], WIDE, 3),
    ([1, 1], [12; 4], [11, 11], 1, 3),
    ([1, 1], [0; 4], [1, 1], WIDE, 3),
];

#[test]
fn borders_of_shifted_channels_are_mended() {
    for window in WINDOWS {
        let m = off_centre(window, None);
        let (t, applied) = transformed(&m, &only(Transform::Shift));
        vitc_ir::verify::verify(&t).unwrap();
        assert!(applied.iter().any(|a| a.transform == Transform::Shift), "{window:?}: {applied:?}");
        let exact = float_error(&m, &t);
        assert!(exact > 100.0, "{window:?}: {exact} dB");
        let maps = count(&t, |op| matches!(op, Op::Add {})) - count(&m, |op| matches!(op, Op::Add {}));
        assert_eq!(maps, usize::from(window.1 != [0; 4]), "{window:?}");
        let [plain, shifted] = [&m, &t].map(|m| float_error(m, &quantized(m)));
        assert!(shifted > plain + 0.5, "{window:?}: {plain} dB plain, {shifted} dB shifted");
    }
}

/// What is behind the convolution may move its channels as well, before or after its border is mended.
#[test]
fn mended_borders_follow_the_channels_behind() {
    for f in [Some(Op::HardSwish {}), Some(Op::Relu {}), None] {
        let m = off_centre(WINDOWS[1], f.clone());
        let (t, applied) = transformed(&m, &Choice::default());
        assert!(applied.len() > 1, "{f:?}: {applied:?}");
        let exact = float_error(&m, &t);
        assert!(exact > 100.0, "{f:?}: {exact} dB");
    }
}

/// A map of border corrections becomes integers of the accumulators: no value of 16 bits stands before or behind it.
#[test]
fn mended_borders_join_the_accumulators() {
    for (window, f) in [(WINDOWS[0], None), (WINDOWS[1], Some(Op::HardSwish {}))] {
        let m = off_centre(window, f);
        let (t, _) = transformed(&m, &only(Transform::Shift));
        let simulated = quantized(&t);
        let (integers, report) = crate::integerize::run(&simulated, &Default::default()).unwrap();
        vitc_ir::verify::verify(&integers).unwrap();
        assert!(report.fired.contains_key("bias-accumulators"), "{:?}", report.fired);
        let is_conv = |v: ValueId| integers.node_of(v).is_some_and(|n| matches!(n.op, Op::IntConv2d { .. }));
        let mends = |n: &vitc_ir::Node| n.op == Op::IntAdd { to: vitc_ir::Elem::I32 } && is_conv(n.operands[0]);
        assert_eq!(integers.nodes.iter().filter(|n| mends(n)).count(), 1);
        assert!(float_error(&simulated, &integers) > 35.0, "{} dB", float_error(&simulated, &integers));
        let (fused, _) = crate::fuse::run(&integers).unwrap();
        assert!(!count_op(&fused, "int.add") && !count_op(&fused, "fused.map"), "part of the convolution");
        let x = inputs(&m, 30);
        assert_eq!(outputs(&integers, &x), outputs(&fused, &x));
    }
}

fn count_op(m: &Module, op: &str) -> bool {
    m.nodes.iter().any(|n| n.op.name() == op)
}
