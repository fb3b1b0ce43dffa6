//! The walk over a module: batch, liveness, errors, constants.

use std::time::Instant;

use super::*;
use crate::attr::{GeluForm, ImageLayout};
use crate::layout::Layout;
use crate::types::{Dim, Real};

fn relu_module(shape: Shape) -> Module {
    let mut m = Module::new("relu", Stage::Import);
    let x = m.input("x", TensorType::f32(shape));
    let y = m.push(Op::Relu {}, &[x], Some("blocks.0/Relu".into())).unwrap();
    m.output("y", y);
    m
}

#[test]
fn the_batch_is_read_off_the_inputs() {
    let m = relu_module(Shape(vec![Dim { size: 2, batch: true }, 3.into()]));
    let out = run(&m, &[wave(&[6, 3])]).unwrap();
    assert_eq!(out[0].shape, [6, 3]);
    for wrong in [&[5, 3][..], &[6, 2], &[6], &[0, 3]] {
        assert_eq!(run(&m, &[wave(wrong)]).unwrap_err().code, "input-shape", "{wrong:?}");
    }
}

#[test]
fn inputs_must_agree_on_the_batch_and_have_their_types() {
    let mut m = relu_module(Shape(vec![Dim::N, 3.into()]));
    m.input("z", TensorType::f32(Shape(vec![Dim::N])));
    assert!(run(&m, &[wave(&[2, 3]), wave(&[2])]).is_ok());
    let error = run(&m, &[wave(&[2, 3]), wave(&[3])]).unwrap_err();
    assert_eq!((error.code, error.place.as_deref()), ("input-shape", Some("z")));
    assert_eq!(run(&m, &[wave(&[2, 3])]).unwrap_err().code, "input-count");
    assert_eq!(run(&m, &[wave(&[2, 3]), spread(Elem::I32, &[2])]).unwrap_err().code, "input-type");
    let torn = Tensor { shape: vec![2], data: Data::F32(vec![0.0]) };
    assert_eq!(run(&m, &[wave(&[2, 3]), torn]).unwrap_err().code, "input-type");
}

#[test]
fn a_batch_beyond_the_limit_is_an_error() {
    let mut m = relu_module(Shape(vec![Dim::N]));
    let x = m.inputs[0].value;
    let y = m.push(Op::Expand { shape: Shape(vec![(1 << 31).into(), Dim::N]) }, &[x], None).unwrap();
    m.output("huge", y);
    assert_eq!(run(&m, &[wave(&[2])]).unwrap_err().code, "too-large");
}

#[test]
fn every_value_is_observed_and_outputs_may_repeat() {
    let mut m = relu_module(Shape::fixed(&[4]));
    let (x, y) = (m.inputs[0].value, m.outputs[0].value);
    let flat = m.push(Op::Reshape { shape: Shape::fixed(&[2, 2]) }, &[y], None).unwrap();
    let c = m.constant(Const::new("c", TensorType::f32(Shape::fixed(&[1])), &[5f32]));
    for (name, v) in [("x", x), ("again", y), ("flat", flat), ("c", c)] {
        m.output(name, v);
    }
    let mut seen = Vec::new();
    let out = trace(&m, &[wave(&[4])], &mut |v, t| seen.push((v, t.shape.clone()))).unwrap();
    assert_eq!(seen, [(x, vec![4]), (y, vec![4]), (flat, vec![2, 2])]);
    assert_eq!(out[0], out[2]);
    assert_eq!(out[1], wave(&[4]));
    assert_eq!((out[3].shape.as_slice(), &out[3].data), (&[2, 2][..], &out[0].data));
    assert_eq!(out[4], Tensor::f32(&[1], vec![5.0]));
}

#[test]
fn a_wrong_declaration_is_an_error_at_its_node() {
    let mut m = relu_module(Shape::fixed(&[4]));
    let y = m.outputs[0].value;
    m.values[y.0 as usize].ty = TensorType::f32(Shape::fixed(&[5]));
    let error = run(&m, &[wave(&[4])]).unwrap_err();
    assert_eq!((error.code, error.place.as_deref()), ("eval", Some("blocks.0/Relu")));
}

#[test]
fn packed_and_unaligned_constants_are_read() {
    let plain: Vec<u8> = (1..=30).collect();
    let layout = Layout::Dot4 { columns: 8 };
    let packed: Vec<u8> = plain.chunks(15).flat_map(|matrix| layout.pack(5, 3, matrix)).collect();
    let ty = TensorType::new(Elem::I8, Shape::fixed(&[2, 5, 3]));
    let c = Const { name: "w".into(), ty, layout: Some(layout), data: packed.into() };
    assert_eq!(Tensor::from_const(&c).unwrap().to_ints(), (1..=30).collect::<Vec<_>>());
    assert!(Tensor::from_const(&Const { data: bytes::Bytes::from(vec![0; 7]), ..c.clone() }).is_err());
    let halves = Layout::Dot4Nibbles { columns: 8 };
    let small: Vec<i64> = (0..30).map(|i| i * 11 % 16 - 8).collect();
    let bytes: Vec<u8> = small.iter().map(|&v| v as u8).collect();
    let packed: Vec<u8> = bytes.chunks(15).flat_map(|matrix| halves.pack(5, 3, matrix)).collect();
    let nibbles = Const { layout: Some(halves), data: packed.into(), ..c.clone() };
    assert_eq!(Tensor::from_const(&nibbles).unwrap().to_ints(), small);
    let wide = Const { ty: TensorType::new(Elem::I16, Shape::fixed(&[2, 5, 3])), ..c };
    assert!(Tensor::from_const(&wide).is_err());

    let bytes: Vec<u8> = [0u8].into_iter().chain(1.5f32.to_le_bytes()).collect();
    let data = bytes::Bytes::from(bytes).slice(1..);
    let c = Const { name: "f".into(), ty: TensorType::f32(Shape::fixed(&[])), layout: None, data };
    assert_eq!(Tensor::from_const(&c).unwrap(), Tensor::f32(&[], vec![1.5]));
}

#[test]
fn eval_op_wants_the_batch_from_an_operand() {
    let one = Tensor::f32(&[1], vec![1.0]);
    let op = Op::Expand { shape: Shape(vec![Dim::N]) };
    let ty = TensorType::f32(Shape(vec![Dim::N]));
    assert!(eval_op(&op, &[&one], &ty, &[&type_of(&one)], &BTreeMap::new()).is_err());
}

/// The float graph of DeiT-tiny with made-up weights.
fn deit_tiny() -> Module {
    fn weight(m: &mut Module, shape: &[usize]) -> ValueId {
        let count = elements(shape).unwrap();
        let values: Vec<f32> = (0..count).map(|i| ((i * 31 % 101) as f32 - 50.0) * 1e-3).collect();
        m.constant(Const::new("w", TensorType::f32(Shape::fixed(shape)), &values))
    }
    let batched = |dims: &[usize]| Shape([Dim::N].into_iter().chain(dims.iter().map(|&d| d.into())).collect());
    let mut m = Module::new("deit", Stage::Clean);
    let image = m.input("image", TensorType::f32(batched(&[3, 224, 224])));
    let (w, b) = (weight(&mut m, &[192, 3, 16, 16]), weight(&mut m, &[192]));
    let layout = ImageLayout::ChannelsFirst;
    let patches = Op::Conv2d { strides: [16, 16], pads: [0; 4], dilations: [1, 1], groups: 1, layout };
    let push = |m: &mut Module, op: Op, operands: &[ValueId]| m.push(op, operands, None).unwrap();
    let x = push(&mut m, patches, &[image, w, b]);
    let x = push(&mut m, Op::Reshape { shape: batched(&[192, 196]) }, &[x]);
    let x = push(&mut m, Op::Transpose { perm: vec![0, 2, 1] }, &[x]);
    let class = weight(&mut m, &[1, 1, 192]);
    let class = push(&mut m, Op::Expand { shape: batched(&[1, 192]) }, &[class]);
    let x = push(&mut m, Op::Concat { axis: 1 }, &[class, x]);
    let position = weight(&mut m, &[1, 197, 192]);
    let mut x = push(&mut m, Op::Add {}, &[x, position]);
    let linear = |m: &mut Module, x: ValueId, from: usize, to: usize| {
        let (w, b) = (weight(m, &[from, to]), weight(m, &[to]));
        push(m, Op::MatMul {}, &[x, w, b])
    };
    let norm = |m: &mut Module, x: ValueId| {
        let (g, b) = (weight(m, &[192]), weight(m, &[192]));
        push(m, Op::LayerNorm { epsilon: Real(1e-6), centred: true }, &[x, g, b])
    };
    for _ in 0..12 {
        let y = norm(&mut m, x);
        let heads = [vec![0, 2, 1, 3], vec![0, 2, 3, 1], vec![0, 2, 1, 3]].map(|perm| {
            let part = linear(&mut m, y, 192, 192);
            let part = push(&mut m, Op::Reshape { shape: batched(&[197, 3, 64]) }, &[part]);
            push(&mut m, Op::Transpose { perm }, &[part])
        });
        let scores = push(&mut m, Op::MatMul {}, &[heads[0], heads[1]]);
        let map = push(&mut m, Op::Softmax {}, &[scores]);
        let y = push(&mut m, Op::MatMul {}, &[map, heads[2]]);
        let y = push(&mut m, Op::Transpose { perm: vec![0, 2, 1, 3] }, &[y]);
        let y = push(&mut m, Op::Reshape { shape: batched(&[197, 192]) }, &[y]);
        let y = linear(&mut m, y, 192, 192);
        x = push(&mut m, Op::Add {}, &[x, y]);
        let y = norm(&mut m, x);
        let y = linear(&mut m, y, 192, 768);
        let y = push(&mut m, Op::Gelu { form: GeluForm::Erf }, &[y]);
        let y = linear(&mut m, y, 768, 192);
        x = push(&mut m, Op::Add {}, &[x, y]);
    }
    let y = norm(&mut m, x);
    m.output("y", y);
    m
}

/// Where the time goes; run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn time_of_one_deit_tiny_image() {
    let m = deit_tiny();
    let image = wave(&[1, 3, 224, 224]);
    let mut best: BTreeMap<&str, f64> = BTreeMap::new();
    for _ in 0..5 {
        let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
        let start = Instant::now();
        let mut last = start;
        trace(&m, std::slice::from_ref(&image), &mut |v, _| {
            let now = Instant::now();
            *sums.entry(m.node_of(v).map_or("input", |n| n.op.name())).or_default() += (now - last).as_secs_f64();
            last = now;
        })
        .unwrap();
        *sums.entry("all").or_default() += start.elapsed().as_secs_f64();
        for (name, time) in sums {
            let entry = best.entry(name).or_insert(f64::MAX);
            *entry = entry.min(time * 1e3);
        }
    }
    println!("milliseconds: {best:#.2?}");
}
