//! Every recovery on graphs by hand: it fires, leaves nothing of the pattern, and the result means the same.

use vitc_ir::attr::GeluForm;
use vitc_ir::{Elem, ImageLayout, Module, Op, Real, ValueId};

use super::testing::{Build, batched, clean, count, difference, erf_part, inputs, outputs, projections};
use super::{CleanOptions, Pixels, run};

fn mean(b: &mut Build, x: ValueId) -> ValueId {
    let last = b.m.ty(x).shape.rank() - 1;
    b.op(Op::ReduceMean { axes: vec![last], keep: true }, &[x])
}

#[test]
fn layernorm_chains() {
    for variant in 0..3 {
        let mut b = Build::new(variant);
        let x = b.input(&[5, 8]);
        let m = mean(&mut b, x);
        let centred = b.op(Op::Sub {}, &[x, m]);
        let again = b.op(Op::Sub {}, &[x, m]);
        let two = b.scalar(2.0);
        let square = if variant == 0 { b.op(Op::Pow {}, &[again, two]) } else { b.mul(again, again) };
        let variance = mean(&mut b, square);
        let sum = b.shift(variance, 1e-5);
        let deviation = b.op(Op::Sqrt {}, &[sum]);
        let normal = match variant {
            2 => {
                let r = b.op(Op::Reciprocal {}, &[deviation]);
                b.mul(centred, r)
            }
            _ => b.op(Op::Div {}, &[centred, deviation]),
        };
        let (gamma, beta) = (b.weights(&[8], 1.0), b.weights(&[8], 1.0));
        let scaled = b.mul(normal, gamma);
        let y = b.add(beta, scaled);
        let cleaned = clean(&b.done(y));
        assert_eq!(cleaned.module.nodes.len(), 1, "variant {variant}");
        assert_eq!(cleaned.fired["layernorm"], 1);
        let Op::LayerNorm { epsilon, centred: true } = cleaned.module.nodes[0].op else { panic!() };
        assert!((epsilon.0 - 1e-5).abs() < 1e-9);
        let loc = cleaned.module.nodes[0].loc.as_deref().unwrap();
        assert!(
            loc.starts_with("reduce_mean_0 + ")
                && loc.contains("sqrt")
                && loc.contains("sqrt_")
                && !loc.contains("+ reduce_mean_0"),
            "{loc}"
        );
    }
}

#[test]
fn rmsnorm_chains() {
    for variant in 0..5 {
        let mut b = Build::new(variant);
        let x = b.input(&[5, 8]);
        let two = b.scalar(2.0);
        let square = if variant == 0 { b.op(Op::Pow {}, &[x, two]) } else { b.mul(x, x) };
        let variance = mean(&mut b, square);
        let sum = b.shift(variance, 1e-5);
        let normal = match variant {
            0 => {
                let deviation = b.op(Op::Sqrt {}, &[sum]);
                b.op(Op::Div {}, &[x, deviation])
            }
            1 => {
                let deviation = b.op(Op::Sqrt {}, &[sum]);
                let r = b.op(Op::Reciprocal {}, &[deviation]);
                b.mul(r, x)
            }
            4 => {
                // as the TorchScript exporter writes `rsqrt`
                let deviation = b.op(Op::Sqrt {}, &[sum]);
                let one = b.scalar(1.0);
                let r = b.op(Op::Div {}, &[one, deviation]);
                b.mul(x, r)
            }
            _ => {
                let half = b.scalar(-0.5);
                let r = b.op(Op::Pow {}, &[sum, half]);
                if variant == 2 { b.mul(r, x) } else { b.mul(x, r) }
            }
        };
        let gamma = b.weights(&[8], 1.0);
        let y = b.mul(normal, gamma);
        let cleaned = clean(&b.done(y));
        assert_eq!(cleaned.module.nodes.len(), 1, "variant {variant}");
        let Op::LayerNorm { epsilon, centred: false } = cleaned.module.nodes[0].op else { panic!() };
        assert!((epsilon.0 - 1e-5).abs() < 1e-9);
    }
}

/// Another value over a root mean square is no norm.
#[test]
fn a_quotient_by_another_deviation_stays() {
    let mut b = Build::new(1);
    let x = b.input(&[5, 8]);
    let y = b.op(Op::Tanh {}, &[x]);
    let square = b.mul(y, y);
    let variance = mean(&mut b, square);
    let sum = b.shift(variance, 1e-5);
    let deviation = b.op(Op::Sqrt {}, &[sum]);
    let y = b.op(Op::Div {}, &[x, deviation]);
    assert!(!clean(&b.done(y)).fired.contains_key("layernorm"));
}

/// Where an exporter puts the attention scale.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scale {
    OnQ,
    OnBoth,
    After,
    DivideAfter,
    /// One factor for each head, as in cosine attention.
    OfHeads([f32; HEADS]),
}

const TOKENS: usize = 5;
const HEADS: usize = 3;
const DEPTH: usize = 4;
const WIDTH: usize = HEADS * DEPTH;

fn attention(b: &mut Build, q: ValueId, k: ValueId, v: ValueId, scale: Scale) -> ValueId {
    let factor = (DEPTH as f32 + 1.0).powf(-0.5);
    let mut kt = b.transpose(k, &[0, 1, 3, 2]);
    let mut q = q;
    if scale == Scale::OnQ {
        q = b.scale(q, factor);
    }
    if scale == Scale::OnBoth {
        q = b.scale(q, factor.sqrt());
        kt = b.scale(kt, factor.sqrt());
    }
    let mut scores = b.op(Op::MatMul {}, &[q, kt]);
    if scale == Scale::After {
        scores = b.scale(scores, factor);
    }
    if scale == Scale::DivideAfter {
        let c = b.scalar(1.0 / factor);
        scores = b.op(Op::Div {}, &[scores, c]);
    }
    if let Scale::OfHeads(factors) = scale {
        let c = b.values(&[HEADS, 1, 1], &factors);
        scores = b.mul(scores, c);
    }
    let map = b.softmax(scores);
    let mixed = b.op(Op::MatMul {}, &[map, v]);
    let joined = b.transpose(mixed, &[0, 2, 1, 3]);
    let joined = b.reshape(joined, &[TOKENS, WIDTH]);
    b.linear(joined, WIDTH)
}

fn heads(b: &mut Build, x: ValueId) -> ValueId {
    let split = b.reshape(x, &[TOKENS, HEADS, DEPTH]);
    b.transpose(split, &[0, 2, 1, 3])
}

/// Attention with one product for q, k and v, taken apart by slices.
fn joint_attention(b: &mut Build, x: ValueId, scale: Scale) -> ValueId {
    let qkv = b.linear(x, 3 * WIDTH);
    let qkv = b.reshape(qkv, &[TOKENS, 3, HEADS, DEPTH]);
    let qkv = b.transpose(qkv, &[2, 0, 3, 1, 4]);
    let part = |b: &mut Build, i: usize| {
        let s = b.slice(qkv, 0, i, 1);
        b.reshape(s, &[HEADS, TOKENS, DEPTH])
    };
    let (q, k, v) = (part(b, 0), part(b, 1), part(b, 2));
    attention(b, q, k, v, scale)
}

#[test]
fn attention_from_one_product_with_any_scale() {
    for scale in [Scale::OnQ, Scale::OnBoth, Scale::After, Scale::DivideAfter, Scale::OfHeads([0.3; HEADS])] {
        let mut b = Build::new(11);
        let x = b.input(&[TOKENS, WIDTH]);
        let y = joint_attention(&mut b, x, scale);
        let cleaned = clean(&b.done(y));
        let m = &cleaned.module;
        assert_eq!((projections(m), count(m, "matmul")), (4, 6), "{scale:?}");
        assert_eq!(count(m, "mul") + count(m, "slice") + count(m, "add"), 0, "{scale:?}");
        assert_eq!((count(m, "transpose"), count(m, "reshape")), (4, 4), "{scale:?}");
    }
}

/// A factor of each head is one of q, so that scores are a product.
#[test]
fn a_factor_of_each_head_leaves_the_scores() {
    let mut b = Build::new(14);
    let x = b.input(&[TOKENS, WIDTH]);
    let y = joint_attention(&mut b, x, Scale::OfHeads([0.3, 1.0, 4.0]));
    let m = clean(&b.done(y)).module;
    assert_eq!((projections(&m), count(&m, "matmul"), count(&m, "mul")), (4, 6, 1));
    let softmax = m.nodes.iter().find(|n| n.op == Op::Softmax {}).unwrap();
    let scores = m.node_of(softmax.operands[0]).unwrap();
    let q = m.node_of(scores.operands[0]).unwrap();
    assert_eq!((scores.op.name(), q.op.name()), ("matmul", "mul"));
    assert_eq!(m.ty(q.result).shape, batched(&[HEADS, TOKENS, DEPTH]));
}

#[test]
fn attention_from_three_products() {
    let mut b = Build::new(12);
    let x = b.input(&[TOKENS, WIDTH]);
    let parts: Vec<_> = (0..3).map(|_| b.linear(x, WIDTH)).collect();
    let parts: Vec<_> = parts.into_iter().map(|p| heads(&mut b, p)).collect();
    let y = attention(&mut b, parts[0], parts[1], parts[2], Scale::After);
    let m = clean(&b.done(y)).module;
    assert_eq!((projections(&m), count(&m, "matmul"), count(&m, "mul")), (4, 6, 0));
}

#[test]
fn the_dynamo_detour_of_k_through_three_dimensions() {
    let mut b = Build::new(13);
    let x = b.input(&[TOKENS, WIDTH]);
    let k = b.linear(x, WIDTH);
    let k = heads(&mut b, k);
    let merged = vitc_ir::Shape(vec![
        vitc_ir::Dim { size: HEADS, batch: true },
        vitc_ir::Dim::fixed(TOKENS),
        vitc_ir::Dim::fixed(DEPTH),
    ]);
    let flat = b.op(Op::Reshape { shape: merged }, &[k]);
    let turned = b.transpose(flat, &[0, 2, 1]);
    let y = b.reshape(turned, &[HEADS, DEPTH, TOKENS]);
    let m = clean(&b.done(y)).module;
    assert_eq!((count(&m, "reshape"), count(&m, "transpose")), (1, 1));
}

#[test]
fn a_scale_without_weights_stands_once_after_the_product() {
    let mut b = Build::new(14);
    let x = b.input(&[3, 4]);
    let q = b.scale(x, 0.5);
    let t = b.transpose(x, &[0, 2, 1]);
    let k = b.scale(t, 0.25);
    let y = b.op(Op::MatMul {}, &[q, k]);
    let m = clean(&b.done(y)).module;
    assert_eq!(m.nodes.iter().map(|n| n.op.name()).collect::<Vec<_>>(), ["transpose", "matmul", "mul"]);
}

#[test]
fn biases_and_channel_scales_join_the_weights() {
    let mut b = Build::new(15);
    let x = b.input(&[3, 4]);
    let y = b.linear(x, 6);
    let gamma = b.weights(&[6], 1.0);
    let y = b.mul(gamma, y);
    let more = b.weights(&[1, 1, 6], 1.0);
    let y = b.op(Op::Sub {}, &[y, more]);
    let m = clean(&b.done(y)).module;
    assert_eq!(m.nodes.len(), 1);
    assert_eq!(m.nodes[0].loc.as_deref(), Some("matmul_0 + add_1 + mul_2 + sub_3"));
}

#[test]
fn a_batchnorm_after_a_convolution_joins_it() {
    let mut b = Build::new(16);
    let x = b.input(&[3, 8, 8]);
    let (w, bias) = (b.weights(&[6, 3, 2, 2], 0.3), b.weights(&[6], 0.3));
    let conv = Op::Conv2d {
        strides: [2, 2],
        pads: [1, 0, 1, 0],
        dilations: [1, 1],
        groups: 1,
        layout: ImageLayout::ChannelsFirst,
    };
    let y = b.op(conv, &[x, w, bias]);
    let (scale, shift) = (b.weights(&[1, 6, 1, 1], 1.0), b.weights(&[6, 1, 1], 1.0));
    let y = b.mul(y, scale);
    let y = b.add(y, shift);
    assert_eq!(clean(&b.done(y)).module.nodes.len(), 1);
}

/// LayerScale behind an image that has become tokens (XCiT), and behind rows that have come apart: the factors follow their channels.
#[test]
fn channel_scales_find_their_weights_through_movement() {
    for depthwise in [false, true] {
        let mut b = Build::new(23);
        let x = b.input(&[6, 4, 4]);
        let (groups, each) = if depthwise { (6, 1) } else { (1, 6) };
        let w = b.weights(&[6, each, 3, 3], 0.3);
        let conv =
            Op::Conv2d { strides: [1, 1], pads: [1; 4], dilations: [1, 1], groups, layout: ImageLayout::ChannelsFirst };
        let y = b.op(conv, &[x, w]);
        let y = b.reshape(y, &[6, 16]);
        let y = b.transpose(y, &[0, 2, 1]);
        let scale = b.weights(&[6], 1.0);
        let y = b.mul(y, scale);
        let m = clean(&b.done(y)).module;
        assert_eq!((count(&m, "mul"), m.nodes.len()), (0, 3));
    }
    // channels that are split into heads are no dimension of the product
    let mut b = Build::new(24);
    let x = b.input(&[5, 8]);
    let y = b.linear(x, 12);
    let y = b.reshape(y, &[5, 3, 4]);
    let scale = b.weights(&[4], 1.0);
    let y = b.mul(y, scale);
    assert_eq!(count(&clean(&b.done(y)).module, "mul"), 1);
}

#[test]
fn values_with_other_uses_are_left_alone() {
    let mut b = Build::new(17);
    let x = b.input(&[3, 4]);
    let y = b.linear(x, 4);
    let z = b.scale(y, 3.0);
    let sum = b.add(y, z);
    let m = clean(&b.done(sum)).module;
    assert_eq!((count(&m, "matmul"), count(&m, "mul"), count(&m, "add")), (1, 1, 1));
}

#[test]
fn only_the_class_token_is_computed_after_the_last_attention() {
    let mut b = Build::new(18);
    let x = b.input(&[TOKENS, WIDTH]);
    let n = b.layernorm(x);
    let a = joint_attention(&mut b, n, Scale::OnQ);
    let x = b.add(x, a);
    let n = b.layernorm(x);
    let h = b.linear(n, 2 * WIDTH);
    let h = b.gelu(h);
    let h = b.linear(h, WIDTH);
    let x = b.add(h, x);
    let n = b.layernorm(x);
    let token = b.slice(n, 1, 0, 1);
    let token = b.reshape(token, &[WIDTH]);
    let y = b.linear(token, 7);
    let m = clean(&b.done(y)).module;
    let rows = |n: &vitc_ir::Node| m.ty(n.result).shape.0[1].as_fixed() == Some(1);
    let short = |name: &str| m.nodes.iter().filter(|n| n.op.name() == name && rows(n)).count();
    assert_eq!((short("gelu"), short("add"), short("layernorm")), (1, 2, 2));
    let scores = m.nodes.iter().find(|n| n.op == Op::Softmax {}).unwrap();
    assert_eq!(m.ty(scores.result).shape, batched(&[HEADS, 1, TOKENS]));
}

#[test]
fn constants_fold_and_debris_goes() {
    let mut b = Build::new(19);
    let x = b.input(&[3, 4]);
    let (w, one, zero) = (b.weights(&[5, 4], 1.0), b.values(&[4], &[1.0; 4]), b.scalar(0.0));
    let wt = b.transpose(w, &[1, 0]);
    let y = b.op(Op::MatMul {}, &[x, wt]);
    let y = b.add(zero, y);
    let z = b.mul(x, one);
    let dead = b.op(Op::Exp {}, &[y]);
    let _ = b.op(Op::Sqrt {}, &[dead]);
    let z = b.op(Op::MatMul {}, &[z, wt]);
    let y = b.add(y, z);
    let m = clean(&b.done(y)).module;
    assert_eq!((count(&m, "matmul"), count(&m, "add"), m.nodes.len()), (1, 1, 2));
}

fn patches(b: &mut Build, pads: [usize; 4]) -> ValueId {
    let x = b.m.input("pixels", vitc_ir::TensorType::f32(batched(&[3, 8, 8])));
    patches_of(b, x, pads)
}

fn patches_of(b: &mut Build, x: ValueId, pads: [usize; 4]) -> ValueId {
    let (w, bias) = (b.weights(&[6, 3, 4, 4], 0.2), b.weights(&[6], 0.3));
    let conv = Op::Conv2d { strides: [4, 4], pads, dilations: [1, 1], groups: 1, layout: ImageLayout::ChannelsFirst };
    b.op(conv, &[x, w, bias])
}

#[test]
fn pixels_enter_where_normalisation_folds() {
    let pixels = Pixels { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225], axis: 1 };
    let options = CleanOptions { pixels: Some(pixels) };
    let mut b = Build::new(20);
    let y = patches(&mut b, [0; 4]);
    let cleaned = run(&b.done(y), &options).unwrap();
    let m = &cleaned.module;
    assert_eq!(m.ty(m.inputs[0].value).elem, Elem::U8);
    assert_eq!((m.inputs[0].name.as_str(), count(m, "normalize")), ("pixels", 1));
    assert_eq!((m.meta["input.kind"].as_str(), m.meta["input.mean"].as_str()), ("pixels", "0.485,0.456,0.406"));
    vitc_ir::verify::verify(m).unwrap();

    let mut b = Build::new(20);
    let y = patches(&mut b, [1; 4]);
    let m = run(&b.done(y), &options).unwrap().module;
    assert_eq!((m.ty(m.inputs[0].value).elem, m.meta["input.kind"].as_str()), (Elem::F32, "quantized"));
}

/// A pair of 16 bits at the door goes where it changes no pixel: where its steps are fine and its range holds all of them.
#[test]
fn pixels_enter_through_fine_pairs() {
    let pixels = Pixels { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225], axis: 1 };
    let options = CleanOptions { pixels: Some(pixels) };
    for (elem, scale, goes) in [(Elem::I16, 1e-4, true), (Elem::I16, 6e-5, false), (Elem::U8, 0.02, false)] {
        let mut b = Build::new(20);
        let x = b.m.input("pixels", vitc_ir::TensorType::f32(batched(&[3, 8, 8])));
        let quant = vitc_ir::Quant::per_tensor(scale, 0);
        let q = b.m.push_quant(Op::Quantize { to: elem }, &[x], quant, Some("q".into())).unwrap();
        let x = b.op(Op::Dequantize {}, &[q]);
        let y = patches_of(&mut b, x, [0; 4]);
        let m = run(&b.done(y), &options).unwrap().module;
        vitc_ir::verify::verify(&m).unwrap();
        assert_eq!((count(&m, "normalize"), count(&m, "quantize")), (usize::from(goes), usize::from(!goes)), "{scale}");
    }
}

#[test]
fn bad_preprocessing_is_an_error() {
    let mut b = Build::new(21);
    let y = patches(&mut b, [0; 4]);
    let options = CleanOptions { pixels: Some(Pixels { mean: vec![0.5; 3], std: vec![0.5, 0.0, 0.5], axis: 1 }) };
    assert_eq!(run(&b.done(y), &options).unwrap_err().0[0].code, "preprocessing");
}

/// A random graph of float and movement ops over [N, a, b, c] tensors.
fn random_graph(seed: u64) -> Module {
    let mut b = Build::new(seed);
    let x = b.input(&[4, 6]);
    let mut live = vec![x];
    for _ in 0..3 + b.random.below(14) {
        let pick = b.random.below(live.len());
        let x = live[pick];
        let dims: Vec<usize> = b.m.ty(x).shape.0[1..].iter().map(|d| d.size).collect();
        let last = *dims.last().unwrap();
        let rowless = b.m.ty(x).shape.last_fixed().is_none();
        let v = match b.random.below(16) {
            14 if b.m.ty(x).shape.0[dims.len() - 1].batch => b.op(Op::Neg {}, &[x]),
            0 | 1 | 4 | 5 | 8 | 14 if rowless => b.op(Op::Tanh {}, &[x]),
            0 => b.linear(x, last),
            1 => b.layernorm(x),
            2 => b.scale(x, 0.5),
            3 => b.shift(x, 0.25),
            4 => {
                let c = b.weights(&[last], 0.5);
                b.mul(x, c)
            }
            5 => {
                let c = b.weights(&[last], 0.5);
                b.add(c, x)
            }
            6 => {
                let other = live.iter().rev().copied().find(|&o| b.m.ty(o) == b.m.ty(x)).unwrap();
                b.add(x, other)
            }
            7 => b.gelu(x),
            8 => b.softmax(x),
            9 => {
                let mut perm: Vec<usize> = (0..=dims.len()).collect();
                let (i, j) = (b.random.below(perm.len()), b.random.below(perm.len()));
                perm.swap(i, j);
                b.transpose(x, &perm)
            }
            10 => random_reshape(&mut b, x),
            11 | 12 => random_slice(&mut b, x),
            13 => {
                let e = erf_part(&mut b, x, true);
                let h = b.scale(e, 0.5);
                b.mul(x, h)
            }
            14 => {
                let t = b.transpose(x, &swapped(dims.len() + 1));
                let p = b.op(Op::MatMul {}, &[x, t]);
                b.scale(p, 0.125)
            }
            _ => {
                let axis = random_axis(&mut b, x);
                match axis {
                    Some(axis) => b.op(Op::Concat { axis }, &[x, x]),
                    None => b.op(Op::Tanh {}, &[x]),
                }
            }
        };
        if b.m.ty(v).shape.count().unwrap().size < 4000 {
            live.push(v);
        }
    }
    let y = *live.last().unwrap();
    b.done(y)
}

/// Tokens before the batch, as the layers of torch have them by default: the whole stream comes to have the batch first.
#[test]
fn a_stream_of_tokens_first_gets_the_batch_first() {
    let mut b = Build::new(7);
    let x = b.input(&[6, 8]);
    let x = b.transpose(x, &[1, 0, 2]);
    let token = b.weights(&[1, 1, 8], 1.0);
    let token = b.op(Op::Expand { shape: vitc_ir::Shape(vec![1.into(), vitc_ir::Dim::N, 8.into()]) }, &[token]);
    let x = b.op(Op::Concat { axis: 0 }, &[token, x]);
    let position = b.weights(&[7, 1, 8], 1.0);
    let x = b.add(x, position);
    let (gamma, beta) = (b.weights(&[8], 1.0), b.weights(&[8], 1.0));
    let y = b.op(Op::LayerNorm { epsilon: vitc_ir::Real::from(1e-5), centred: true }, &[x, gamma, beta]);
    let w = b.weights(&[8, 8], 0.3);
    let y = b.op(Op::MatMul {}, &[y, w]);
    let y = b.op(Op::Relu {}, &[y]);
    let x = b.add(x, y);
    let mean = b.op(Op::ReduceMean { axes: vec![0], keep: false }, &[x]);
    let m = b.done(mean);
    let after = run(&m, &CleanOptions::default()).unwrap().module;
    let computed = after.nodes.iter().filter(|n| n.op.class() == vitc_ir::Class::Float);
    assert!(computed.clone().all(|n| after.ty(n.result).shape.0[0].batch), "{:?}", computed.collect::<Vec<_>>());
    let x = inputs(&m, 5);
    assert!(difference(&outputs(&m, &x), &outputs(&after, &x)) < 1e-5);
}

fn swapped(rank: usize) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 1, rank - 2);
    perm
}

fn random_axis(b: &mut Build, x: ValueId) -> Option<usize> {
    let fixed: Vec<usize> = (0..b.m.ty(x).shape.rank()).filter(|&i| !b.m.ty(x).shape.0[i].batch).collect();
    (!fixed.is_empty()).then(|| fixed[b.random.below(fixed.len())])
}

fn random_slice(b: &mut Build, x: ValueId) -> ValueId {
    let Some(axis) = random_axis(b, x) else { return b.op(Op::Tanh {}, &[x]) };
    let size = b.m.ty(x).shape.0[axis].size;
    let start = b.random.below(size);
    let len = 1 + b.random.below(size - start);
    b.slice(x, axis, start, len)
}

/// Merges two neighbouring dimensions or splits one.
fn random_reshape(b: &mut Build, x: ValueId) -> ValueId {
    let mut dims = b.m.ty(x).shape.0.clone();
    let i = b.random.below(dims.len());
    if b.random.below(2) == 0 && dims.len() > 3 && i + 1 < dims.len() {
        let merged = dims[i].times(dims[i + 1]).unwrap();
        dims.splice(i..=i + 1, [merged]);
    } else if dims.len() < 6 {
        let factor = [1, 2, 3][b.random.below(3)];
        if dims[i].size.is_multiple_of(factor) {
            let rest = vitc_ir::Dim { size: dims[i].size / factor, batch: dims[i].batch };
            let pair = if dims[i].batch { [rest, vitc_ir::Dim::fixed(factor)] } else { [factor.into(), rest] };
            dims.splice(i..=i, pair);
        }
    }
    b.op(Op::Reshape { shape: vitc_ir::Shape(dims) }, &[x])
}

#[test]
fn random_graphs_keep_their_meaning() {
    for seed in 0..1500 {
        let m = random_graph(seed);
        let x = inputs(&m, seed);
        let wanted = outputs(&m, &x);
        let cleaned = run(&m, &CleanOptions::default()).unwrap().module;
        let shaped = crate::shape::run(&cleaned).unwrap();
        for after in [&cleaned, &shaped] {
            vitc_ir::verify::verify(after).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            let d = difference(&wanted, &outputs(after, &x));
            assert!(d < 1e-4, "seed {seed} differs by {d}");
        }
        let again = run(&cleaned, &CleanOptions::default()).unwrap();
        assert!(again.fired.is_empty(), "seed {seed}: not a fixed point {:?}", again.fired);
    }
}

/// Attention as `nn.MultiheadAttention` writes it: tokens before the batch, heads merged with the batch, one product for q, k
/// and v whose parts are taken by position.
#[test]
fn tokens_before_the_batch() {
    let dims = |dims: &[(usize, bool)]| Op::Reshape {
        shape: vitc_ir::Shape(dims.iter().map(|&(size, batch)| vitc_ir::Dim { size, batch }).collect()),
    };
    let mut b = Build::new(21);
    let x = b.input(&[TOKENS, WIDTH]);
    let n = b.layernorm(x);
    let n = b.transpose(n, &[1, 0, 2]);
    let qkv = b.linear(n, 3 * WIDTH);
    let qkv = b.op(dims(&[(TOKENS, false), (1, true), (3, false), (WIDTH, false)]), &[qkv]);
    let qkv = b.op(dims(&[(1, false), (TOKENS, false), (1, true), (3, false), (WIDTH, false)]), &[qkv]);
    let qkv = b.transpose(qkv, &[3, 1, 2, 0, 4]);
    let parts: Vec<ValueId> = (0..3)
        .map(|i| {
            let part = b.op(Op::Gather { axis: 0, index: vec![i] }, &[qkv]);
            let part = b.op(dims(&[(TOKENS, false), (HEADS, true), (DEPTH, false)]), &[part]);
            let part = b.transpose(part, &[1, 0, 2]);
            b.op(dims(&[(1, true), (HEADS, false), (TOKENS, false), (DEPTH, false)]), &[part])
        })
        .collect();
    let q = b.scale(parts[0], 0.5);
    let k = b.transpose(parts[1], &[0, 1, 3, 2]);
    let scores = b.op(Op::MatMul {}, &[q, k]);
    let map = b.softmax(scores);
    let mixed = b.op(Op::MatMul {}, &[map, parts[2]]);
    let mixed = b.transpose(mixed, &[2, 0, 1, 3]);
    let mixed = b.op(dims(&[(TOKENS, true), (WIDTH, false)]), &[mixed]);
    let mixed = b.linear(mixed, WIDTH);
    let mixed = b.op(dims(&[(TOKENS, false), (1, true), (WIDTH, false)]), &[mixed]);
    let mixed = b.transpose(mixed, &[1, 0, 2]);
    let y = b.add(x, mixed);
    let cleaned = clean(&b.done(y)).module;
    assert_eq!((projections(&cleaned), count(&cleaned, "transpose")), (4, 4), "q, k, v and the result");
    for node in &cleaned.nodes {
        let shape = &cleaned.ty(node.result).shape;
        assert_eq!(shape.0[0], vitc_ir::Dim::N, "{} of {shape:?}", node.op.name());
    }
}

/// Blocks in parallel: one value normalised twice with parameters of its own each time, and the branches stacked and summed.
#[test]
fn branches_in_parallel() {
    let mut b = Build::new(22);
    let x = b.input(&[5, 8]);
    let m = mean(&mut b, x);
    let centred = b.op(Op::Sub {}, &[x, m]);
    let square = b.mul(centred, centred);
    let variance = mean(&mut b, square);
    let sum = b.shift(variance, 1e-5);
    let deviation = b.op(Op::Sqrt {}, &[sum]);
    let normal = b.op(Op::Div {}, &[centred, deviation]);
    let stack: Vec<ValueId> = (0..3)
        .map(|_| {
            let (gamma, beta) = (b.weights(&[8], 1.0), b.weights(&[8], 1.0));
            let scaled = b.mul(normal, gamma);
            let branch = b.add(scaled, beta);
            let branch = b.op(Op::Gelu { form: GeluForm::Erf }, &[branch]);
            let shape = vitc_ir::Shape([vitc_ir::Dim::fixed(1)].into_iter().chain(batched(&[5, 8]).0).collect());
            b.op(Op::Reshape { shape }, &[branch])
        })
        .collect();
    let stacked = b.op(Op::Concat { axis: 0 }, &stack);
    let y = b.op(Op::ReduceSum { axes: vec![0], keep: false }, &[stacked]);
    let cleaned = clean(&b.done(y)).module;
    let found = (count(&cleaned, "layernorm"), count(&cleaned, "add"), count(&cleaned, "gelu"));
    assert_eq!((found, cleaned.nodes.len()), ((3, 2, 3), 8), "{}", vitc_ir::text::print(&cleaned).text);
}

/// Attention without softmax as timm (tokens are rows) and MIT (tokens are columns) write it, and the form for few tokens.
#[test]
fn linear_attention_in_three_spellings() {
    let pad = |b: &mut Build, v, after: &[usize]| {
        let (before, after) = (vec![0; after.len()], after.to_vec());
        b.op(Op::Pad { before, after, value: Real(1.0) }, &[v])
    };
    for (spelling, gone_up) in [(0, false), (1, false), (2, false), (0, true), (1, true), (2, true)] {
        let mut b = Build::new(spelling);
        let columns = b.input(&[2, 12, 9]); // heads, q k v of 4, tokens
        let x = columns;
        let x = if spelling == 0 { b.transpose(x, &[0, 1, 3, 2]) } else { x };
        let axis = if spelling == 0 { 3 } else { 2 };
        let [q, k, v] = [0, 4, 8].map(|start| b.slice(x, axis, start, 4));
        let [q, k] = [q, k].map(|v| b.op(Op::Relu {}, &[v]));
        // the transpose of the keys where they are written, or far up
        let turned = if spelling == 0 { columns } else { b.transpose(columns, &[0, 1, 3, 2]) };
        let k = match gone_up {
            true => {
                let k = b.slice(turned, 5 - axis, 4, 4);
                b.op(Op::Relu {}, &[k])
            }
            false => b.transpose(k, &[0, 1, 3, 2]),
        };
        let y = if spelling == 2 {
            let map = b.op(Op::MatMul {}, &[k, q]);
            let sum = b.op(Op::ReduceSum { axes: vec![2], keep: true }, &[map]);
            let sum = b.shift(sum, 1e-3);
            let map = b.op(Op::Div {}, &[map, sum]);
            b.op(Op::MatMul {}, &[v, map])
        } else {
            let (after, ends) = if spelling == 0 { ([0, 0, 0, 1], [k, v]) } else { ([0, 0, 1, 0], [v, k]) };
            let ones = pad(&mut b, v, &after);
            let ends = ends.map(|e| if e == v { ones } else { e });
            let sums = b.op(Op::MatMul {}, &ends);
            let o = b.op(Op::MatMul {}, &if spelling == 0 { [q, sums] } else { [sums, q] });
            let (top, bottom) = (b.slice(o, axis, 0, 4), b.slice(o, axis, 4, 1));
            let bottom = b.shift(bottom, 1e-3);
            b.op(Op::Div {}, &[top, bottom])
        };
        let cleaned = clean(&b.done(y));
        assert_eq!(cleaned.fired["linear-attention"], 1, "spelling {spelling}");
        let left = ["div", "matmul", "pad"].map(|op| count(&cleaned.module, op));
        assert_eq!((count(&cleaned.module, "linear_attention"), left), (1, [0; 3]), "spelling {spelling}");
    }
}
