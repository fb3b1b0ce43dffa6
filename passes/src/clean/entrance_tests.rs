//! Normalisations of a graph's own: what they tell of its input, and that they join the door.

use vitc_ir::{Elem, ImageLayout, Module, Op, Quant, TensorType, ValueId};

use super::testing::{Build, batched, count, difference, inputs, outputs};
use super::{CleanOptions, Counts, Pixels, counts_in, run};
use crate::quantize::is_quantized;

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

fn patches(b: &mut Build, x: ValueId, pads: [usize; 4]) -> ValueId {
    let (w, bias) = (b.weights(&[6, 3, 4, 4], 0.2), b.weights(&[6], 0.3));
    let conv = Op::Conv2d { strides: [4, 4], pads, dilations: [1, 1], groups: 1, layout: ImageLayout::ChannelsFirst };
    b.op(conv, &[x, w, bias])
}

/// `(x / whole - mean) / std`, the constants of this shape.
fn normalised(b: &mut Build, x: ValueId, whole: f32, dims: &[usize]) -> ValueId {
    let (whole, mean, std) = (b.scalar(whole), b.values(dims, &MEAN), b.values(dims, &STD));
    let x = b.op(Op::Div {}, &[x, whole]);
    let x = b.op(Op::Sub {}, &[x, mean]);
    b.op(Op::Div {}, &[x, std])
}

/// An input of pixels as their type says, as floats.
fn bytes(b: &mut Build, dims: &[usize]) -> ValueId {
    let ty = TensorType::new(Elem::U8, batched(dims)).with_quant(Quant::per_tensor(1.0, 0));
    let x = b.m.input("x", ty);
    b.op(Op::Dequantize {}, &[x])
}

fn plain(axis: usize, std: f32) -> CleanOptions {
    CleanOptions { pixels: Some(Pixels { mean: vec![0.0; 3], std: vec![std; 3], axis }) }
}

/// Cleaned for images, and what both make of the same pixels, given to the float graph as `of_pixel` says.
fn opened(m: &Module, options: &CleanOptions, of_pixel: Option<f32>) -> Module {
    let cleaned = run(m, options).unwrap().module;
    vitc_ir::verify::verify(&cleaned).unwrap();
    assert_eq!(cleaned.meta["input.kind"], "pixels");
    let x = inputs(&cleaned, 3);
    let floats = |x: &vitc_ir::eval::Tensor, factor: f32| {
        let values: Vec<f32> = x.to_ints().iter().map(|&v| v as f32 * factor).collect();
        vitc_ir::eval::Tensor::f32(&x.shape, values)
    };
    let given = match of_pixel {
        Some(factor) => x.iter().map(|x| floats(x, factor)).collect(),
        None => x.clone(),
    };
    let d = difference(&outputs(m, &given), &outputs(&cleaned, &x));
    assert!(d < 2e-5, "differs by {d}");
    cleaned
}

#[test]
fn the_graphs_own_normalisation_joins_the_door() {
    for (whole, counts, std) in [(255.0, Counts::Pixels, 1.0 / 255.0), (1.0, Counts::Fractions, 1.0)] {
        let mut b = Build::new(30);
        let x = b.input(&[3, 8, 8]);
        let x = normalised(&mut b, x, whole, &[3, 1, 1]);
        let y = patches(&mut b, x, [0; 4]);
        let m = b.done(y);
        assert_eq!(counts_in(&m, 1), counts);
        let cleaned = opened(&m, &plain(1, std), Some(1.0 / (255.0 * std)));
        assert_eq!((count(&cleaned, "normalize"), cleaned.nodes.len()), (1, 2));
    }
}

#[test]
fn channels_come_last_and_in_another_order() {
    let mut b = Build::new(31);
    let x = b.input(&[8, 8, 3]);
    let x = b.op(Op::Slice { axis: 3, start: 2, len: 3, step: -1 }, &[x]);
    let x = normalised(&mut b, x, 255.0, &[3]);
    let x = b.transpose(x, &[0, 3, 1, 2]);
    let y = patches(&mut b, x, [0; 4]);
    let m = b.done(y);
    assert_eq!((counts_in(&m, 3), counts_in(&m, 1)), (Counts::Pixels, Counts::Normalised));
    let cleaned = opened(&m, &plain(3, 1.0 / 255.0), Some(1.0));
    let image = cleaned.ty(cleaned.inputs[0].value);
    assert_eq!((image.elem, &image.shape), (Elem::U8, &batched(&[8, 8, 3])));
    assert_eq!((count(&cleaned, "normalize"), count(&cleaned, "mul"), count(&cleaned, "add")), (1, 0, 0));
    // What comes before the graph is of the channels as they come in.
    let mut b = Build::new(31);
    let x = b.input(&[8, 8, 3]);
    let x = b.op(Op::Gather { axis: 3, index: vec![2, 0, 1] }, &[x]);
    let x = b.transpose(x, &[0, 3, 1, 2]);
    let y = patches(&mut b, x, [0; 4]);
    let pixels = Pixels { mean: MEAN.to_vec(), std: STD.to_vec(), axis: 3 };
    let cleaned = run(&b.done(y), &CleanOptions { pixels: Some(pixels) }).unwrap().module;
    let normalize = cleaned.nodes.iter().find(|n| matches!(n.op, Op::Normalize { .. })).unwrap();
    let Op::Normalize { mean, .. } = &normalize.op else { panic!() };
    assert_eq!(mean.iter().map(|m| m.0 as f32).collect::<Vec<_>>(), [0.406, 0.485, 0.456]);
}

#[test]
fn declared_pixels_stay_pixels() {
    for pads in [[0; 4], [1; 4]] {
        let mut b = Build::new(32);
        let x = bytes(&mut b, &[8, 8, 3]);
        let x = b.transpose(x, &[0, 3, 1, 2]);
        let x = normalised(&mut b, x, 255.0, &[1, 3, 1, 1]);
        let y = patches(&mut b, x, pads);
        let m = b.done(y);
        assert_eq!(counts_in(&m, 3), Counts::Pixels);
        assert!(!is_quantized(&m), "pixels are no quantization");
        let cleaned = opened(&m, &plain(3, 1.0 / 255.0), None);
        assert_eq!(count(&cleaned, "normalize"), usize::from(pads == [0; 4]));
        opened(&m, &CleanOptions::default(), None);
        let twice = Pixels { mean: MEAN.to_vec(), std: STD.to_vec(), axis: 3 };
        let error = run(&m, &CleanOptions { pixels: Some(twice) }).unwrap_err();
        assert!(error.0[0].message.contains("uint8"), "{error}");
    }
}

/// Numbers that are normalised before, a mean in pixels alone, and a normalisation computed from constants.
#[test]
fn what_an_input_counts_in() {
    let of = |make: &dyn Fn(&mut Build, ValueId) -> ValueId| {
        let mut b = Build::new(33);
        let x = b.input(&[3, 8, 8]);
        let x = make(&mut b, x);
        let y = patches(&mut b, x, [0; 4]);
        counts_in(&b.done(y), 1)
    };
    assert_eq!(of(&|_, x| x), Counts::Normalised);
    assert_eq!(of(&|b, x| b.shift(x, -0.5)), Counts::Fractions);
    assert_eq!(of(&|b, x| b.shift(x, -123.7)), Counts::Pixels);
    assert_eq!(of(&|b, x| b.scale(x, 1.0 / 127.5)), Counts::Pixels);
    assert_eq!(of(&|b, x| b.op(Op::Tanh {}, &[x])), Counts::Normalised);
    let computed = |b: &mut Build, x: ValueId| {
        let std = b.values(&[3], &STD);
        let std = b.op(Op::Reshape { shape: vitc_ir::Shape::fixed(&[3, 1, 1]) }, &[std]);
        b.op(Op::Div {}, &[x, std])
    };
    assert_eq!(of(&computed), Counts::Fractions);
}

/// Positions computed for every image are a constant; the batch comes back where it is asked for.
#[test]
fn what_is_computed_for_every_image_is_constant() {
    let mut b = Build::new(34);
    let x = b.input(&[4, 3]);
    let ones = b.values(&[1, 1, 1], &[1.0]);
    let ones = b.op(Op::Expand { shape: batched(&[4, 3]) }, &[ones]);
    let steps = b.weights(&[3, 3], 1.0);
    let positions = b.op(Op::MatMul {}, &[ones, steps]);
    let waves = b.op(Op::Sin {}, &[positions]);
    let flat = b.reshape(waves, &[12]);
    let back = b.reshape(flat, &[4, 3]);
    let y = b.add(x, back);
    b.m.output("positions", flat);
    let m = b.done(y);
    let cleaned = run(&m, &CleanOptions::default()).unwrap().module;
    vitc_ir::verify::verify(&cleaned).unwrap();
    let x = inputs(&m, 2);
    assert!(difference(&outputs(&m, &x), &outputs(&cleaned, &x)) < 1e-6);
    assert_eq!((count(&cleaned, "add"), count(&cleaned, "expand"), cleaned.nodes.len()), (1, 1, 2));
}
