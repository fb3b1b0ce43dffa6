//! Migration and shifting on two inverted bottlenecks, one with HardSwish and one with ReLU, whose channels were made uneven:
//! exactly in float, so that plain quantization loses what the transforms bring back.

use vitc_ir::attr::ImageLayout;
use vitc_ir::{Module, Op, ValueId};

use super::tests::{float_error, only, quantized, transformed};
use super::*;
use crate::clean;
use crate::clean::testing::{Build, batched};
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
