//! Calibration and quantization on small transformer blocks by hand.

use vitc_ir::eval::{Data, Tensor};
use vitc_ir::{Diagnostic, Elem, ImageLayout, Module, Op, Stage, ValueId};

use super::{
    Calibration, Codes, CodesOf, Observer, QuantOptions, Rounding, Width, Widths, observe, observe_products, run,
    wants_products,
};
use crate::clean::testing::{Build, batched, count, inputs, outputs, sqnr};
use crate::clean::{self, CleanOptions, Pixels};

const WIDTH: usize = 32;
const TOKENS: usize = 10;
const HEADS: usize = 2;

fn heads(b: &mut Build, x: ValueId) -> ValueId {
    let x = b.linear(x, WIDTH);
    let x = b.reshape(x, &[TOKENS, HEADS, WIDTH / HEADS]);
    b.transpose(x, &[0, 2, 1, 3])
}

fn block(b: &mut Build, x: ValueId) -> ValueId {
    let n = b.layernorm(x);
    let (q, k, v) = (heads(b, n), heads(b, n), heads(b, n));
    let q = b.scale(q, (WIDTH as f32 / HEADS as f32).powf(-0.5));
    let k = b.transpose(k, &[0, 1, 3, 2]);
    let scores = b.op(Op::MatMul {}, &[q, k]);
    let map = b.softmax(scores);
    let mixed = b.op(Op::MatMul {}, &[map, v]);
    let mixed = b.transpose(mixed, &[0, 2, 1, 3]);
    let mixed = b.reshape(mixed, &[TOKENS, WIDTH]);
    let mixed = b.linear(mixed, WIDTH);
    let x = b.add(x, mixed);
    let n = b.layernorm(x);
    let h = b.linear(n, 3 * WIDTH);
    let h = b.gelu(h);
    let h = b.linear(h, WIDTH);
    b.add(x, h)
}

/// A small Vision Transformer of two blocks over nine patches and a class token.
pub(crate) fn transformer(options: &CleanOptions, pads: [usize; 4]) -> Module {
    let mut b = Build::new(5);
    let size = 12 - pads[0] - pads[2];
    let image = b.m.input("pixels", vitc_ir::TensorType::f32(batched(&[3, size, size])));
    let (w, bias) = (b.weights(&[WIDTH, 3, 4, 4], 0.15), b.weights(&[WIDTH], 0.1));
    let conv = Op::Conv2d { strides: [4, 4], pads, dilations: [1, 1], groups: 1, layout: ImageLayout::ChannelsFirst };
    let x = b.op(conv, &[image, w, bias]);
    let x = b.reshape(x, &[WIDTH, TOKENS - 1]);
    let x = b.transpose(x, &[0, 2, 1]);
    let token = b.weights(&[1, 1, WIDTH], 0.5);
    let token = b.op(Op::Expand { shape: batched(&[1, WIDTH]) }, &[token]);
    let x = b.op(Op::Concat { axis: 1 }, &[token, x]);
    let positions = b.weights(&[1, TOKENS, WIDTH], 0.5);
    let x = b.add(x, positions);
    let x = block(&mut b, x);
    let x = block(&mut b, x);
    let x = b.layernorm(x);
    let x = b.slice(x, 1, 0, 1);
    let x = b.reshape(x, &[WIDTH]);
    let y = b.linear(x, 20);
    let cleaned = clean::run(&b.done(y), options).unwrap().module;
    crate::shape::run(&cleaned).unwrap()
}

pub(crate) fn pixel_options() -> CleanOptions {
    CleanOptions { pixels: Some(Pixels { mean: vec![0.5, 0.45, 0.4], std: vec![0.23, 0.22, 0.24], axis: 1 }) }
}

/// One scale for all rows.
fn without_rows() -> QuantOptions {
    QuantOptions { without_rows: vec!["*".into()], ..QuantOptions::default() }
}

pub(crate) fn calibrate(m: &Module, options: &QuantOptions) -> Calibration {
    let images = (0..9).map(|seed| Ok(inputs(m, seed)));
    observe(m, images, options, &mut |_| {}).unwrap()
}

#[test]
fn threads_do_not_change_the_calibration() {
    let m = transformer(&CleanOptions::default(), [0; 4]);
    for observer in [Observer::MinMax, Observer::Percentile(99.9), Observer::Mse] {
        let of = |threads| calibrate(&m, &QuantOptions { observer, threads, ..QuantOptions::default() });
        let one = of(1);
        assert_eq!(one.inputs, 9);
        for threads in [2, 3, 7, 16] {
            assert_eq!(one, of(threads), "{observer:?}, {threads} threads");
        }
    }
}

#[test]
fn progress_counts_every_input() {
    let m = transformer(&CleanOptions::default(), [0; 4]);
    let mut seen = Vec::new();
    let images = (0..5).map(|seed| Ok(inputs(&m, seed)));
    observe(&m, images, &QuantOptions { threads: 2, ..QuantOptions::default() }, &mut |n| seen.push(n)).unwrap();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
}

#[test]
fn no_input_and_faulty_inputs_are_errors() {
    let m = transformer(&CleanOptions::default(), [0; 4]);
    let options = QuantOptions { threads: 2, ..QuantOptions::default() };
    let none = observe(&m, std::iter::empty(), &options, &mut |_| {});
    assert_eq!(none.unwrap_err().0[0].code, "calibration");
    let wrong = [Ok(inputs(&m, 0)), Ok(vec![Tensor { shape: vec![1], data: Data::F32(vec![0.0]) }])];
    assert!(observe(&m, wrong.into_iter(), &options, &mut |_| {}).is_err());
    let broken = [Ok(inputs(&m, 0)), Err(Diagnostic::new("image", "cannot be read"))];
    assert_eq!(observe(&m, broken.into_iter(), &options, &mut |_| {}).unwrap_err().0[0].code, "image");
}

/// Inputs of a float module as a quantized one takes them.
fn entering(q: &Module, x: &[Tensor]) -> Vec<Tensor> {
    match (&x[0].data, &q.ty(q.inputs[0].value).quant) {
        (Data::F32(values), Some(quant)) => {
            let one = |&v: &f32| (f64::from(v) / quant.scale_at(0)).round_ties_even() + f64::from(quant.zero_point);
            let ints = values.iter().map(|v| one(v).clamp(0.0, 255.0) as u8).collect();
            vec![Tensor { shape: x[0].shape.clone(), data: Data::U8(ints) }]
        }
        _ => x.to_vec(),
    }
}

/// The quantized module's output on its own inputs, beside the float one's.
pub(crate) fn compare(m: &Module, q: &Module) -> f64 {
    let x = inputs(m, 100);
    sqnr(&outputs(m, &x), &outputs(q, &entering(q, &x)))
}

#[test]
fn the_simulation_is_close_to_float() {
    for (clean_options, pads) in [(pixel_options(), [0; 4]), (CleanOptions::default(), [1, 1, 1, 1])] {
        let m = transformer(&clean_options, pads);
        for observer in [Observer::MinMax, Observer::Percentile(99.99), Observer::Mse] {
            let options = QuantOptions { observer, threads: 2, ..QuantOptions::default() };
            let q = run(&m, &calibrate(&m, &options), &options).unwrap();
            assert_eq!(q.stage, Stage::Quantize);
            vitc_ir::verify::verify(&q).unwrap();
            let db = compare(&m, &q);
            assert!(db > 21.0, "{observer:?}: {db} dB");
        }
    }
}

#[test]
fn every_edge_has_the_type_of_its_role() {
    let m = transformer(&pixel_options(), [0; 4]);
    let options = without_rows();
    let q = run(&m, &calibrate(&m, &options), &options).unwrap();
    assert_eq!(count(&q, "normalize"), 0);
    assert_eq!(q.ty(q.inputs[0].value).elem, Elem::U8);
    let mut residual = std::collections::BTreeSet::new();
    for node in &q.nodes {
        let elem = |i: usize| q.ty(source(&q, node.operands[i])).elem;
        match node.op {
            Op::MatMul {} if q.const_of(source(&q, node.operands[1])).is_some() => {
                assert_eq!((elem(0), elem(1)), (Elem::U8, Elem::I8));
                let weights = q.ty(source(&q, node.operands[1])).quant.clone().unwrap();
                assert_eq!((weights.axis, weights.zero_point), (Some(1), 0));
            }
            Op::MatMul {} | Op::Conv2d { .. } => assert_eq!((elem(0), elem(1)), (Elem::U8, Elem::I8)),
            Op::LayerNorm { .. } | Op::Add {} => {
                for &v in &node.operands[..if node.op == (Op::Add {}) { 2 } else { 1 }] {
                    let ty = q.ty(source(&q, v));
                    assert_eq!(ty.elem, Elem::I16);
                    residual.insert(ty.quant.clone().unwrap());
                }
            }
            Op::Gelu { .. } => assert_eq!(elem(0), Elem::U8),
            Op::Softmax {} => assert_eq!(elem(0), Elem::F32),
            _ => {}
        }
    }
    assert_eq!(residual.len(), 1, "the residual stream has one scale");
    let softmax = |n: &&vitc_ir::Node| q.node_of(n.operands[0]).is_some_and(|p| p.op == Op::Softmax {});
    for node in q.nodes.iter().filter(softmax) {
        let quant = q.ty(node.result).quant.clone().unwrap();
        assert_eq!((quant.single(), quant.zero_point), (Some(1.0 / 255.0), 0));
    }
    let quantized: Vec<_> = q.nodes.iter().filter(|n| matches!(n.op, Op::Quantize { .. })).collect();
    let keys: std::collections::BTreeSet<_> = quantized.iter().map(|n| (n.operands[0], n.op.clone())).collect();
    assert_eq!(keys.len(), quantized.len(), "a value is quantized once in a role");
}

/// A map that is mixed over heads before it weighs values, of scores that all count alike.
#[test]
fn flat_maps_that_something_else_reads_have_finer_steps() {
    let mut b = Build::new(31);
    let x = b.input(&[TOKENS, WIDTH]);
    let (q, k, v) = (heads(&mut b, x), heads(&mut b, x), heads(&mut b, x));
    let q = b.scale(q, 0.01);
    let k = b.transpose(k, &[0, 1, 3, 2]);
    let scores = b.op(Op::MatMul {}, &[q, k]);
    let map = b.softmax(scores);
    let map = b.transpose(map, &[0, 2, 3, 1]);
    let map = b.linear(map, HEADS);
    let map = b.transpose(map, &[0, 3, 1, 2]);
    let y = b.op(Op::MatMul {}, &[map, v]);
    let m = clean::run(&b.done(y), &CleanOptions::default()).unwrap().module;
    let m = crate::shape::run(&m).unwrap();
    let q = run(&m, &calibrate(&m, &without_rows()), &without_rows()).unwrap();
    let softmax = |n: &&vitc_ir::Node| q.node_of(n.operands[0]).is_some_and(|p| p.op == Op::Softmax {});
    let quant = q.ty(q.nodes.iter().find(softmax).unwrap().result).quant.clone().unwrap();
    // a tenth each: a quarter of one holds twice that
    assert_eq!(quant.single(), Some(0.25 / 255.0));
    let noise = compare(&q, &lowers(&q));
    assert!(noise > 30.0, "{noise} dB from the simulation");
}

/// What a product reads is far larger in one token than in the others.
fn loud_tokens(width: usize) -> Module {
    let mut b = Build::new(77);
    let x = b.input(&[TOKENS, WIDTH]);
    let gains: Vec<f32> = (0..TOKENS).map(|t| if t == 1 { 30.0 } else { 1.0 }).collect();
    let gains = b.values(&[TOKENS, 1], &gains);
    let x = b.linear(x, width);
    let x = b.gelu(x);
    let x = b.mul(x, gains);
    let y = b.linear(x, 4 * WIDTH);
    let m = clean::run(&b.done(y), &CleanOptions::default()).unwrap().module;
    crate::shape::run(&m).unwrap()
}

/// Rows with scales of their own: chosen where rows differ, closer by far, left out by name, the same whatever the threads.
#[test]
fn loud_rows_have_scales_of_their_own() {
    let m = loud_tokens(WIDTH);
    let quantized = |options: &QuantOptions| run(&m, &calibrate(&m, options), options).unwrap();
    let plain = quantized(&without_rows());
    assert_eq!(count(&plain, "round_rows"), 0);
    let by_rows = quantized(&QuantOptions::default());
    assert_eq!(count(&by_rows, "round_rows"), 1);
    let errors = |q: &Module| {
        let (want, found) = (outputs(&m, &inputs(&m, 100)), outputs(q, &entering(q, &inputs(&m, 100))));
        let rows = want.iter().zip(&found).enumerate().filter(|(i, _)| i / (4 * WIDTH) % TOKENS != 1);
        rows.map(|(_, (w, f))| (w - f).powi(2)).sum::<f32>()
    };
    assert!(errors(&by_rows) < errors(&plain), "{} and {}", errors(&by_rows), errors(&plain));
    let print = |threads| vitc_ir::text::print(&quantized(&QuantOptions { threads, ..QuantOptions::default() })).text;
    assert_eq!(print(1), print(3));
    let lowered = lowers(&by_rows);
    assert_eq!((count(&lowered, "int.row_codes"), count(&lowered, "int.row_peak")), (1, 1));
    assert!(compare(&by_rows, &lowered) > 40.0, "{} dB from the simulation", compare(&by_rows, &lowered));
}

/// Of few bits, rows with scales of their own have the codes that fit them: fewer than those of 8 bits, closer than fitted levels
/// for all rows, found by a table in integers, which agree with the simulation.
#[test]
fn rows_of_few_bits_have_fitted_codes() {
    let m = loud_tokens(8 * WIDTH);
    // what the last product reads keeps 8 bits where it is not named
    let last = m.nodes.iter().rev().find(|n| n.op == Op::MatMul {}).and_then(|n| n.loc.clone()).unwrap();
    let width = Width::of_activations(4).unwrap();
    let four = |codes, without_rows| QuantOptions {
        activations: Widths { of: vec![(last.to_string(), width)], ..Widths::all(width) },
        codes: CodesOf::all(codes),
        without_rows,
        ..QuantOptions::default()
    };
    let quantized = |options: &QuantOptions| run(&m, &calibrate(&m, options), options).unwrap();
    let used = |q: &Module| {
        q.nodes.iter().find_map(|n| match &n.op {
            Op::RoundRows { codes, .. } => Some(codes.len()),
            _ => None,
        })
    };
    let [fitted, even, for_all] =
        [four(Codes::Auto, vec![]), four(Codes::Uniform, vec![]), four(Codes::Auto, vec!["*".into()])]
            .map(|options| quantized(&options));
    assert_eq!([&fitted, &even, &for_all].map(used), [Some(16), Some(0), None]);
    let quiet = |q: &Module| {
        let (want, found) = (outputs(&m, &inputs(&m, 100)), outputs(q, &entering(q, &inputs(&m, 100))));
        let rows = want.iter().zip(&found).enumerate().filter(|(i, _)| i / (4 * WIDTH) % TOKENS != 1);
        rows.map(|(_, (w, f))| (w - f).powi(2)).sum::<f32>()
    };
    let errors = [&fitted, &even, &for_all].map(quiet);
    assert!(errors[0] < errors[1] && errors[0] < errors[2], "{errors:?}");
    let lowered = lowers(&fitted);
    assert_eq!((count(&lowered, "int.row_codes"), count(&lowered, "int.row_peak")), (1, 1));
    assert!(compare(&fitted, &lowered) > 30.0, "{} dB from the simulation", compare(&fitted, &lowered));
    let print = |threads| vitc_ir::text::print(&quantized(&QuantOptions { threads, ..four(Codes::Auto, vec![]) })).text;
    assert_eq!(print(1), print(3));
}

/// Activations of few bits use the levels of their width, in the simulation and in integers, which agree.
#[test]
fn narrow_activations_keep_to_their_levels() {
    let m = transformer(&pixel_options(), [0; 4]);
    let mut last = f64::INFINITY;
    for bits in [8, 6, 4] {
        let activations = Widths::all(Width::of_activations(bits).unwrap());
        let options = QuantOptions { activations, codes: CodesOf::all(Codes::Uniform), ..without_rows() };
        let q = run(&m, &calibrate(&m, &options), &options).unwrap();
        let reads = |n: &vitc_ir::Node, i: usize| q.ty(source(&q, n.operands[i])).elem;
        let mut seen = std::collections::BTreeMap::new();
        let x = inputs(&m, 100);
        vitc_ir::eval::trace(&q, &x, &mut |v, tensor| {
            if q.node_of(v).is_some_and(|n| matches!(n.op, Op::Quantize { .. })) {
                let ints = tensor.to_ints();
                seen.insert(v, (*ints.iter().min().unwrap(), *ints.iter().max().unwrap()));
            }
        })
        .unwrap();
        let products: Vec<_> = q.nodes.iter().filter(|n| n.op == (Op::MatMul {})).collect();
        let classifier = products.last().unwrap().result;
        for node in products {
            for i in [0, 1] {
                let Some(&(low, high)) = seen.get(&source(&q, node.operands[i])) else { continue };
                let levels = match reads(node, i) {
                    _ if node.result == classifier => (0, 255),
                    Elem::U8 => (0, (1 << bits) - 1),
                    _ => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
                };
                assert!(levels.0 <= low && high <= levels.1, "{low}..={high} of {bits} bits");
            }
        }
        let simulated = compare(&m, &q);
        assert!(simulated < last + 0.5 && simulated > 2.0, "{bits} bits: {simulated} dB");
        last = simulated;
        let (lowered, _) = crate::integerize::run(&q, &Default::default()).unwrap();
        let db = sqnr(&outputs(&q, &x), &outputs(&lowered, &x));
        // a map of few bits is relative to each row's maximum in integers, and to one in the simulation
        assert!(db > if bits > 4 { 15.0 } else { 8.0 }, "{bits} bits: integers are {db} dB from their simulation");
    }
}

/// Codes have as many levels as bits allow, in the simulation and in integers, which agree.
#[test]
fn codes_have_as_many_levels_as_their_bits() {
    let m = transformer(&pixel_options(), [0; 4]);
    let x = inputs(&m, 100);
    for (codes, bits) in [Codes::OptM, Codes::Lloyd, Codes::Auto].into_iter().flat_map(|c| [(c, 4), (c, 5)]) {
        let activations = Widths::all(Width::of_activations(bits).unwrap());
        let options = QuantOptions { activations, codes: CodesOf::all(codes), ..QuantOptions::default() };
        let q = run(&m, &calibrate(&m, &options), &options).unwrap();
        let mut coded = 0;
        vitc_ir::eval::trace(&q, &x, &mut |v, tensor| {
            if q.node_of(v).is_some_and(|n| matches!(n.op, Op::IntTable {})) {
                coded += 1;
                let levels: std::collections::BTreeSet<i64> = tensor.to_ints().into_iter().collect();
                assert!(levels.len() <= 1 << bits, "{codes:?} of {bits} bits: {levels:?}");
            }
        })
        .unwrap();
        assert!(coded >= 8, "{codes:?}: {coded} of the values of two blocks have codes");
        let simulated = compare(&m, &q);
        let (lowered, _) = crate::integerize::run(&q, &Default::default()).unwrap();
        let integers = compare(&m, &lowered);
        assert!(
            simulated > 3.0 && integers > 3.0,
            "{codes:?} of {bits} bits: {simulated} dB, {integers} dB in integers"
        );
    }
}

/// A product that a pattern names decides for what it reads, and one that wants more for what both read.
#[test]
fn activation_bits_follow_their_readers() {
    let m = transformer(&pixel_options(), [0; 4]);
    let products: Vec<_> = m.nodes.iter().filter(|n| n.op == (Op::MatMul {})).collect();
    let alike = products.iter().filter(|n| n.operands[0] == products[0].operands[0]);
    let qkv: Vec<String> = alike.filter_map(|n| n.loc.as_deref().map(String::from)).collect();
    let classifier = products.last().and_then(|n| n.loc.as_deref()).unwrap();
    let grids = |of: &[(&str, u32)]| {
        let of = of.iter().map(|(name, bits)| (name.to_string(), Width::of_activations(*bits).unwrap())).collect();
        let activations = Widths { default: Width::EIGHT, of };
        let options = QuantOptions { activations, codes: CodesOf::all(Codes::Uniform), ..without_rows() };
        count(&run(&m, &calibrate(&m, &options), &options).unwrap(), "clip")
    };
    assert_eq!(grids(&[]), 0);
    assert_eq!(grids(&[(&qkv[0], 4)]), 0, "k and v read the same and want 8");
    assert_eq!(grids(&[(&qkv[0], 4), (&qkv[1], 5), (&qkv[2], 4)]), 1);
    assert_eq!(grids(&[(classifier, 4)]), 1, "the classifier, by its name");
}

/// Rounding by what weights multiply: the same whatever the threads, and closer to the float model than to nearest.
#[test]
fn rounding_by_moments_is_closer_and_does_not_depend_on_threads() {
    let m = transformer(&pixel_options(), [0; 4]);
    let module = |rounding, threads| {
        let weights = Widths::all(Width::of_weights(3).unwrap());
        let options = QuantOptions { weights, rounding, threads, ..QuantOptions::default() };
        let mut calibration = calibrate(&m, &options);
        if wants_products(&m, &options) {
            let images = (0..9).map(|seed| Ok(inputs(&m, seed)));
            observe_products(&m, &mut calibration, images, &options, &mut |_| {}).unwrap();
        }
        run(&m, &calibration, &options).unwrap()
    };
    let one = module(Rounding::Auto, 1);
    for threads in [2, 5] {
        assert_eq!(vitc_ir::text::print(&one).blob, vitc_ir::text::print(&module(Rounding::Auto, threads)).blob);
    }
    let mean = |q: &Module| {
        let db = (200..220).map(|seed| {
            let x = inputs(&m, seed);
            sqnr(&outputs(&m, &x), &outputs(q, &x))
        });
        db.sum::<f64>() / 20.0
    };
    let (nearest, gptq) = (mean(&module(Rounding::Nearest, 1)), mean(&one));
    assert!(gptq > nearest + 1.0, "{gptq} dB, {nearest} dB to nearest");
    let options = QuantOptions { rounding: Rounding::Gptq, ..QuantOptions::default() };
    let unseen = run(&m, &calibrate(&m, &options), &options).unwrap_err();
    assert_eq!(unseen.0[0].code, "rounding");
}

/// What a dequantized value was before, through movement.
fn source(q: &Module, v: ValueId) -> ValueId {
    match q.node_of(v) {
        Some(n) if n.op == (Op::Dequantize {}) || n.op.class() == vitc_ir::Class::Move => source(q, n.operands[0]),
        _ => v,
    }
}

#[test]
fn ranges_without_numbers_name_the_node() {
    let mut b = Build::new(6);
    let x = b.input(&[3, 8]);
    let zero = b.values(&[8], &[0.0; 8]);
    let broken = b.op(Op::Div {}, &[x, zero]);
    let y = b.linear(broken, 4);
    let mut m = b.done(y);
    m.stage = Stage::Shape;
    let options = QuantOptions::default();
    let problem = run(&m, &calibrate(&m, &options), &options).unwrap_err();
    assert_eq!((problem.0[0].code, problem.0[0].place.as_deref()), ("calibration-range", Some("div_0")));
}

#[test]
fn ranges_of_zero_are_harmless() {
    let mut b = Build::new(7);
    let x = b.input(&[3, 8]);
    let x = b.scale(x, 0.0);
    let n = b.layernorm(x);
    let y = b.linear(n, 4);
    let mut m = b.done(y);
    m.stage = Stage::Shape;
    let options = QuantOptions::default();
    let q = run(&m, &calibrate(&m, &options), &options).unwrap();
    assert!(compare(&m, &q) > 25.0);
}

/// A chain of elementwise ops on one value is one function: nothing is quantized inside it, though it starts by shifting.
#[test]
fn a_function_is_quantized_at_its_ends() {
    let mut b = Build::new(31);
    let x = b.input(&[TOKENS, WIDTH]);
    let x = b.linear(x, WIDTH);
    let s = b.shift(x, 0.5);
    let s = b.scale(s, 1.7);
    let s = b.op(Op::Sigmoid {}, &[s]);
    let y = b.mul(x, s);
    let y = b.linear(y, WIDTH);
    let m = clean::run(&b.done(y), &CleanOptions::default()).unwrap().module;
    let m = crate::shape::run(&m).unwrap();
    let options = without_rows();
    let q = run(&m, &calibrate(&m, &options), &options).unwrap();
    let quantized: Vec<Elem> =
        q.nodes.iter().filter(|n| matches!(n.op, Op::Quantize { .. })).map(|n| q.ty(n.result).elem).collect();
    assert_eq!(quantized, [Elem::U8, Elem::U8], "the function's operand and its result");
    lowers(&q);
}

/// An output that is no product has no integers of its own: features leave in 16 bits.
#[test]
fn features_are_quantized_as_outputs() {
    for last in ["layernorm", "tanh", "both"] {
        let mut b = Build::new(32);
        let x = b.input(&[TOKENS, WIDTH]);
        let x = b.linear(x, WIDTH);
        let n = b.layernorm(x);
        let y = if last == "layernorm" {
            n
        } else {
            let h = b.linear(n, 8);
            b.op(Op::Tanh {}, &[h])
        };
        if last == "both" {
            b.m.output("features", n);
        }
        let m = clean::run(&b.done(y), &CleanOptions::default()).unwrap().module;
        let m = crate::shape::run(&m).unwrap();
        let options = QuantOptions::default();
        let q = run(&m, &calibrate(&m, &options), &options).unwrap();
        for output in &q.outputs {
            let v = q.node_of(output.value).unwrap().operands[0];
            assert_eq!(q.ty(v).elem, Elem::I16, "{last}");
        }
        let db = compare(&m, &q);
        assert!(db > 25.0, "{last}: {db} dB");
        lowers(&q);
    }
}

/// Queries and keys behind a ReLU keep the steps of what it reads, so that attention can do the ReLU as it reads.
#[test]
fn relu_before_linear_attention_costs_no_pass() {
    let mut b = Build::new(37);
    let x = b.input(&[TOKENS, WIDTH]);
    let [q, k, v] = [(); 3].map(|()| heads(&mut b, x));
    let (q, k) = (b.op(Op::Relu {}, &[q]), b.op(Op::Relu {}, &[k]));
    let y = b.op(Op::LinearAttention { epsilon: vitc_ir::Real(1e-5) }, &[q, k, v]);
    let y = b.transpose(y, &[0, 2, 1, 3]);
    let y = b.reshape(y, &[TOKENS, WIDTH]);
    let y = b.linear(y, 8);
    let (m, q) = quantized(&b.done(y));
    assert!(compare(&m, &q) > 20.0, "{} dB", compare(&m, &q));
    let lowered = lowers(&q);
    let (fused, fired) = crate::fuse::run(&lowered).unwrap();
    assert_eq!(fired.get("relu-into-linear-attention"), Some(&1));
    assert!(!fused.nodes.iter().any(|n| matches!(n.op, Op::FusedMap { .. })));
    let x = entering(&q, &inputs(&m, 100));
    assert_eq!(outputs(&lowered, &x), outputs(&fused, &x));
}

/// The gate of a gated layer is a product of two activations.
#[test]
fn gates_lower() {
    let mut b = Build::new(33);
    let x = b.input(&[TOKENS, WIDTH]);
    let (g, h) = (b.linear(x, WIDTH), b.linear(x, WIDTH));
    let g = b.op(Op::Silu {}, &[g]);
    let y = b.mul(g, h);
    let y = b.linear(y, 8);
    let m = clean::run(&b.done(y), &CleanOptions::default()).unwrap().module;
    let m = crate::shape::run(&m).unwrap();
    let options = QuantOptions::default();
    lowers(&run(&m, &calibrate(&m, &options), &options).unwrap());
}

/// A quotient keeps the 16 bits of what it divides and of what it divides by.
#[test]
fn quotients_lower() {
    for rows in [false, true] {
        let mut b = Build::new(34);
        let x = b.input(&[TOKENS, WIDTH]);
        let (top, bottom) = (b.linear(x, WIDTH), b.linear(x, if rows { 1 } else { WIDTH }));
        let bottom = b.op(Op::Abs {}, &[bottom]);
        let bottom = b.shift(bottom, 0.3);
        let y = b.op(Op::Div {}, &[top, bottom]);
        let y = b.linear(y, 8);
        let (m, q) = quantized(&b.done(y));
        assert!(compare(&m, &q) > 25.0, "{} dB", compare(&m, &q));
        let lowered = lowers(&q);
        assert_eq!(lowered.nodes.iter().filter(|n| matches!(n.op, Op::IntReciprocal { .. })).count(), 1);
        assert!(compare(&q, &lowered) > 45.0, "{} dB", compare(&q, &lowered));
    }
}

/// The largest of several values is taken on one grid: nothing is rounded between.
#[test]
fn the_largest_of_windows_lowers_without_rounding() {
    let mut b = Build::new(35);
    let x = b.input(&[TOKENS, WIDTH]);
    let x = b.linear(x, WIDTH);
    let window =
        |b: &mut Build, x: ValueId, index: [usize; 4]| b.op(Op::Gather { axis: 1, index: index.to_vec() }, &[x]);
    let (p, q, r) = (window(&mut b, x, [0, 2, 4, 6]), window(&mut b, x, [1, 3, 5, 7]), window(&mut b, x, [2, 4, 6, 8]));
    let y = b.op(Op::Max {}, &[p, q]);
    let y = b.op(Op::Max {}, &[y, r]);
    let least = b.weights(&[WIDTH], 0.2);
    let y = b.op(Op::Min {}, &[y, least]);
    let y = b.linear(y, 8);
    let (m, q) = quantized(&b.done(y));
    assert!(compare(&m, &q) > 20.0, "{} dB", compare(&m, &q));
    let lowered = lowers(&q);
    let count = |lowered: &Module, is: fn(&Op) -> bool| lowered.nodes.iter().filter(|n| is(&n.op)).count();
    assert_eq!(count(&lowered, |op| matches!(op, Op::IntMax {})), 2);
    assert_eq!(count(&lowered, |op| matches!(op, Op::IntMin {})), 1);
    assert_eq!(count(&lowered, |op| matches!(op, Op::IntRequant { .. })), 1, "that of the first product");
}

#[test]
fn norms_without_mean_lower() {
    let mut b = Build::new(36);
    let x = b.input(&[TOKENS, WIDTH]);
    let x = b.linear(x, WIDTH);
    let square = b.mul(x, x);
    let mean = b.op(Op::ReduceMean { axes: vec![2], keep: true }, &[square]);
    let sum = b.shift(mean, 1e-5);
    let deviation = b.op(Op::Sqrt {}, &[sum]);
    let y = b.op(Op::Div {}, &[x, deviation]);
    let y = b.linear(y, 8);
    let (m, q) = quantized(&b.done(y));
    assert!(compare(&m, &q) > 25.0, "{} dB", compare(&m, &q));
    let lowered = lowers(&q);
    assert!(lowered.nodes.iter().any(|n| matches!(n.op, Op::IntLayerNorm { centred: false, .. })));
    assert!(compare(&q, &lowered) > 40.0, "{} dB", compare(&q, &lowered));
}

/// Between two grids of bytes of the model's own, what adds a constant is a table.
#[test]
fn a_constant_between_grids_of_bytes_is_a_table() {
    let mut b = Build::new(37);
    let x = b.input(&[TOKENS, WIDTH]);
    let x = b.linear(x, WIDTH);
    let x = pair(&mut b, x, 0.05, 120);
    let y = b.shift(x, 0.7);
    let y = pair(&mut b, y, 0.03, 90);
    let y = b.linear(y, 8);
    let (_, q) = quantized(&b.done(y));
    let lowered = lowers(&q);
    assert!(lowered.nodes.iter().any(|n| matches!(n.op, Op::IntTable {})));
    assert!(!lowered.nodes.iter().any(|n| matches!(n.op, Op::IntAdd { .. })));
    assert!(compare(&q, &lowered) > 45.0, "{} dB", compare(&q, &lowered));
}

/// What a quantized model leaves to us has 16 bits before a gate and before factors of channels; a float model has bytes.
#[test]
fn islands_keep_16_bits() {
    for came_quantized in [true, false] {
        let mut b = Build::new(38);
        let x = b.input(&[TOKENS, WIDTH]);
        let x = b.linear(x, WIDTH);
        let x = if came_quantized { pair(&mut b, x, 0.05, 120) } else { x };
        let x = b.linear(x, WIDTH);
        let y = b.gelu(x);
        let y = b.linear(y, 8);
        let (m, q) = quantized(&b.done(y));
        let gelu = q.nodes.iter().find(|n| matches!(n.op, Op::Gelu { .. })).unwrap();
        let elem = q.ty(source(&q, gelu.operands[0])).elem;
        assert_eq!(elem, if came_quantized { Elem::I16 } else { Elem::U8 });
        let lowered = lowers(&q);
        assert_eq!(lowered.nodes.iter().any(|n| matches!(n.op, Op::IntMul { .. })), came_quantized);
        assert!(compare(&m, &q) > 30.0, "{} dB", compare(&m, &q));
        assert!(compare(&q, &lowered) > 40.0, "{} dB", compare(&q, &lowered));
    }
}

/// Factors of channels between a value of the model's floats and its next grid are multipliers of one requantize.
#[test]
fn channels_of_islands_are_scaled_in_16_bits() {
    let mut b = Build::new(39);
    let x = b.input(&[TOKENS, WIDTH]);
    let x = b.linear(x, WIDTH);
    let x = b.gelu(x);
    let factors: Vec<f32> = (0..WIDTH).map(|c| 0.5 + c as f32 / 8.0).collect();
    let factors = b.values(&[WIDTH], &factors);
    let x = b.mul(x, factors);
    let x = pair(&mut b, x, 0.1, 10);
    let y = b.linear(x, 8);
    let (_, q) = quantized(&b.done(y));
    let scaled = q.nodes.iter().find(|n| matches!(n.op, Op::Mul {})).unwrap();
    assert_eq!(q.ty(source(&q, scaled.operands[0])).elem, Elem::I16);
    assert!(compare(&q, &lowers(&q)) > 40.0);
}

/// A grid of 16 bits whose zero lies at one end has no room in accumulators; one around zero has, and keeps 15 of them.
#[test]
fn a_map_of_16_bits_keeps_them() {
    let mut b = Build::new(40);
    const DEPTH: usize = 512;
    let x = b.input(&[TOKENS, DEPTH]);
    let x = b.softmax(x);
    let x = grid(&mut b, x, Elem::I16, 1.0 / 65535.0, -32768);
    let w = b.weights(&[DEPTH, 8], 30.0);
    let w = grid(&mut b, w, Elem::I8, 0.5, 0);
    let y = b.op(Op::MatMul {}, &[x, w]);
    let (m, q) = quantized(&b.done(y));
    let product = q.nodes.iter().find(|n| n.op == Op::MatMul {}).unwrap();
    let ty = q.ty(source(&q, product.operands[0]));
    assert_eq!((ty.elem, ty.quant.as_ref().unwrap().zero_point), (Elem::I16, 0));
    assert!(compare(&m, &q) > 35.0, "{} dB", compare(&m, &q));
    lowers(&q);
}

/// What ReLU leaves of a grid of bytes stays on its steps.
#[test]
fn relu_keeps_the_steps_of_bytes() {
    let mut b = Build::new(41);
    let x = b.input(&[TOKENS, WIDTH]);
    let x = b.linear(x, WIDTH);
    let x = pair(&mut b, x, 0.05, 120);
    let x = b.op(Op::Relu {}, &[x]);
    let y = b.linear(x, 8);
    let (_, q) = quantized(&b.done(y));
    let product = q.nodes.iter().rfind(|n| n.op == Op::MatMul {}).unwrap();
    let quant = q.ty(source(&q, product.operands[0])).quant.clone().unwrap();
    assert_eq!((quant.scale_at(0), quant.zero_point), (0.05, 0));
    lowers(&q);
}

/// A value brought to a grid of bytes and back.
fn pair(b: &mut Build, x: ValueId, scale: f64, zero_point: i32) -> ValueId {
    grid(b, x, Elem::U8, scale, zero_point)
}

/// A value brought to a grid and back.
fn grid(b: &mut Build, x: ValueId, to: Elem, scale: f64, zero_point: i32) -> ValueId {
    let quant = vitc_ir::Quant::per_tensor(scale, zero_point);
    let q = b.m.push_quant(Op::Quantize { to }, &[x], quant, None).unwrap();
    b.op(Op::Dequantize {}, &[q])
}

/// A module of stage `shape`, and the same quantized.
fn quantized(m: &Module) -> (Module, Module) {
    let m = clean::run(m, &CleanOptions::default()).unwrap().module;
    let m = crate::shape::run(&m).unwrap();
    let options = QuantOptions::default();
    let q = run(&m, &calibrate(&m, &options), &options).unwrap();
    (m, q)
}

fn lowers(m: &Module) -> Module {
    vitc_ir::verify::verify(m).unwrap();
    let (lowered, _) = crate::integerize::run(m, &Default::default()).unwrap_or_else(|e| panic!("{e}"));
    vitc_ir::verify::verify(&lowered).unwrap();
    lowered
}

/// What dies on its way through a network that was not trained is below a LayerNorm's epsilon: its result is next to nothing, and has integer
/// forms all the same.
#[test]
fn a_layernorm_of_next_to_nothing_has_an_integer_form() {
    for small in [1e-5, 1e-7, 1e-9, 1e-12, 1e-35, 0.0] {
        let mut b = Build::new(8);
        let x = b.m.input("x", vitc_ir::TensorType::f32(batched(&[6, 8])));
        let x = b.linear(x, 16);
        let x = b.scale(x, small);
        let (gamma, beta) = (b.weights(&[16], 1.0), b.values(&[16], &[0.0; 16]));
        let x = b.op(Op::LayerNorm { epsilon: 1e-5.into(), centred: true }, &[x, gamma, beta]);
        let mut x = b.linear(x, 16);
        for _ in 0..4 {
            let y = b.gelu(x);
            let y = b.linear(y, 16);
            let y = b.scale(y, 1e-4);
            x = b.add(x, y);
        }
        let y = b.linear(x, 4);
        let cleaned = clean::run(&b.done(y), &CleanOptions::default()).unwrap().module;
        let m = crate::shape::run(&cleaned).unwrap();
        let options = QuantOptions::default();
        let q = run(&m, &calibrate(&m, &options), &options).unwrap();
        crate::integerize::run(&q, &Default::default()).unwrap_or_else(|e| panic!("{small}: {e}"));
    }
}
