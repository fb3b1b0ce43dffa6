//! Quantized models: every op with scales of its own, imported and evaluated, against the arithmetic written out here; and
//! what is wrong with scales and zero points, all said at once.

mod common;

use std::collections::BTreeSet;

use common::{Build, D, float, int, int_list};
use onnx_protobuf::TensorProto;
use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::{Elem, Module, Op};
use vitc_onnx::{BatchMode, ImportError, Options, import_bytes, supported_contrib_ops, supported_ops};

const U8: i32 = 2;
const I8: i32 = 3;
const U16: i32 = 4;
const I16: i32 = 5;
const I32: i32 = 6;
const U4: i32 = 21;
const I4: i32 = 22;

/// A tensor of integers of an ONNX type.
fn integers(name: &str, data_type: i32, dims: &[i64], values: &[i32]) -> TensorProto {
    let packed = |v: &[i32]| (v[0] & 15) | (v.get(1).copied().unwrap_or(0) & 15) << 4;
    let int32_data = match data_type {
        U4 | I4 => values.chunks(2).map(packed).collect(),
        _ => values.to_vec(),
    };
    TensorProto { name: name.into(), dims: dims.to_vec(), data_type, int32_data, ..Default::default() }
}

/// Integers with their grid, as this file computes with them.
#[derive(Clone, Debug)]
struct Grid {
    scale: f64,
    zero: i64,
    low: i64,
    high: i64,
}

fn u8_grid(scale: f32, zero: i64) -> Grid {
    Grid { scale: scale.into(), zero, low: 0, high: 255 }
}

impl Grid {
    fn quantize(&self, x: f64) -> i64 {
        let q = f64::from((x as f32) / self.scale as f32).round_ties_even() as i64;
        (q + self.zero).clamp(self.low, self.high)
    }

    fn real(&self, q: i64) -> f64 {
        self.scale * (q - self.zero) as f64
    }

    /// What is left of a real on this grid.
    fn keep(&self, x: f64) -> f64 {
        self.real(self.quantize(x))
    }
}

const X: [f32; 6] = [-1.3, 0.7, 2.1, -0.2, 0.05, 1.9];

fn x_grid() -> Grid {
    u8_grid(0.02, 70)
}

fn y_grid() -> Grid {
    u8_grid(0.05, 100)
}

/// X on its grid.
fn x() -> Vec<f64> {
    X.iter().map(|&v| x_grid().keep(v.into())).collect()
}

/// A model of an input `x` of those dimensions, quantized as `xq` on [`x_grid`], with the result's grid as `ys` and `yz`.
fn start(dims: &[i64]) -> Build {
    let dims: Vec<D> = dims.iter().map(|&d| D::Is(d)).collect();
    Build::new(19)
        .input("x", &dims)
        .floats("xs", &[], &[0.02])
        .tensor(integers("xz", U8, &[], &[70]))
        .floats("ys", &[], &[0.05])
        .tensor(integers("yz", U8, &[], &[100]))
        .node("QuantizeLinear", &["x", "xs", "xz"], &["xq"], vec![])
}

/// The result, integers `yq` on [`y_grid`], as reals.
fn finish(build: Build) -> Build {
    build.node("DequantizeLinear", &["yq", "ys", "yz"], &["y"], vec![]).output("y")
}

fn contrib(mut build: Build) -> Build {
    let node = build.graph().node.last_mut().unwrap();
    node.domain = "com.microsoft".into();
    build
}

fn as_is() -> Options {
    Options { batch: BatchMode::AsIs, ..Options::default() }
}

fn import(build: &Build) -> Module {
    let module = import_bytes(build.bytes(), None, &as_is()).unwrap_or_else(|e| panic!("{e}"));
    vitc_ir::verify::verify(&module).unwrap();
    module
}

fn run(build: &Build, input: &[f32]) -> Vec<f64> {
    let module = import(build);
    let shape = module.ty(module.inputs[0].value).shape.at(1);
    let output = eval::run(&module, &[Tensor { shape, data: Data::F32(input.to_vec()) }]).unwrap().remove(0);
    let Data::F32(values) = output.data else { panic!("not floats") };
    values.into_iter().map(f64::from).collect()
}

/// The model's results are these, up to one step of a grid where a sum falls between two integers.
#[track_caller]
fn check(build: Build, expected: &[f64]) {
    let have = run(&build, &X);
    assert_eq!(have.len(), expected.len());
    for (a, b) in have.iter().zip(expected) {
        assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{have:?} instead of {expected:?}");
    }
}

#[track_caller]
fn check_kept(build: Build, expected: &[f64]) {
    let kept: Vec<f64> = expected.iter().map(|&v| y_grid().keep(v)).collect();
    check(finish(build), &kept);
}

/// `w` [3, 2] with a scale for each column, as `w`, `ws` and `wz`; and its reals.
fn weights(build: Build) -> (Build, [[f64; 2]; 3]) {
    let build = build.tensor(integers("w", I8, &[3, 2], &[10, -20, 30, 40, -50, 60])).floats("ws", &[2], &[0.01, 0.02]);
    let build = build.tensor(integers("wz", I8, &[2], &[0, 0]));
    (build, [[0.1, -0.4], [0.3, 0.8], [-0.5, 1.2]])
}

fn product(x: &[f64], w: &[[f64; 2]; 3]) -> Vec<f64> {
    x.chunks(3).flat_map(|row| (0..2).map(move |c| (0..3).map(|k| row[k] * w[k][c]).sum())).collect()
}

#[test]
fn grids_of_every_type() {
    for (data_type, low, high, zero, scale) in [
        (U8, 0, 255, 128, 0.01f32),
        (I8, -128, 127, 3, 0.02),
        (U16, 0, 65535, 32768, 1e-4),
        (I16, -32768, 32767, -5, 1e-4),
        (U4, 0, 15, 7, 0.2),
        (I4, -8, 7, -1, 0.2),
    ] {
        let build = Build::new(21)
            .input("x", &[D::Is(1), D::Is(6)])
            .floats("s", &[], &[scale])
            .tensor(integers("z", data_type, &[], &[zero]))
            .node("QuantizeLinear", &["x", "s", "z"], &["q"], vec![])
            .node("DequantizeLinear", &["q", "s", "z"], &["y"], vec![])
            .output("y");
        let grid = Grid { scale: scale.into(), zero: zero.into(), low, high };
        let expected: Vec<f64> = X.iter().map(|&v| grid.keep(v.into())).collect();
        check(build, &expected);
    }
}

#[test]
fn constants_keep_their_integers() {
    let cases: [(i32, Vec<i32>, Vec<i32>, Elem); 5] = [
        (U8, vec![1, 200, 255, 0, 7, 128], vec![128], Elem::U8),
        (I8, vec![1, -100, 127, -128, 7, 0], vec![0], Elem::I8),
        (U16, vec![1, 200, 65535, 0, 7, 32768], vec![32768], Elem::I16),
        (I4, vec![1, -8, 7, 0, 5, -1], vec![0], Elem::I8),
        // zero points that differ go into the integers where they fit
        (U8, vec![120, 120, 128, 0, 7, 255], vec![120, 1, 128], Elem::I8),
    ];
    for (data_type, values, zeros, elem) in cases {
        let scales: Vec<f32> = zeros.iter().enumerate().map(|(i, _)| 0.1 + i as f32).collect();
        let along = if zeros.len() == 1 { vec![] } else { vec![int("axis", -1)] };
        let dims: &[i64] = if zeros.len() == 1 { &[] } else { &[3] };
        let build = Build::new(21)
            .input("x", &[D::Is(2), D::Is(3)])
            .tensor(integers("c", data_type, &[2, 3], &values))
            .floats("s", dims, &scales)
            .tensor(integers("z", data_type, dims, &zeros))
            .node("DequantizeLinear", &["c", "s", "z"], &["r"], along)
            .node("Add", &["x", "r"], &["y"], vec![])
            .output("y");
        let at = |i: usize| if zeros.len() == 1 { 0 } else { i % 3 };
        let real = |i: usize| f64::from(scales[at(i)]) * f64::from(values[i] - zeros[at(i)]);
        check(build.clone(), &(0..6).map(|i| f64::from(X[i]) + real(i)).collect::<Vec<_>>());
        let module = import(&build);
        let held = module.consts.iter().find(|c| c.ty.quant.is_some()).unwrap();
        assert_eq!(held.ty.elem, elem);
    }
}

#[test]
fn blocks_have_scales_of_their_own() {
    // along rows three elements make two blocks of two, the last one short; along columns two make one
    for (data_type, axis, scales, zeros) in [
        (I4, 0, vec![0.1f32, 0.2, 0.3, 0.4], vec![0, 1, -1, 2]),
        (U8, 0, vec![0.1, 0.2, 0.3, 0.4], vec![1, 2, 3, 4]),
        (I8, 1, vec![0.5, 0.25, 0.125], vec![0, 1, 2]),
    ] {
        let values = [1, 2, 3, 4, 5, 6];
        let dims: &[i64] = if axis == 0 { &[2, 2] } else { &[3, 1] };
        let build = Build::new(21)
            .input("x", &[D::Is(2), D::Is(3)])
            .tensor(integers("w", data_type, &[3, 2], &values))
            .floats("s", dims, &scales)
            .tensor(integers("z", data_type, dims, &zeros))
            .node("DequantizeLinear", &["w", "s", "z"], &["r"], vec![int("axis", axis), int("block_size", 2)])
            .node("MatMul", &["x", "r"], &["y"], vec![])
            .output("y");
        let block = |row: usize, column: usize| if axis == 0 { row / 2 * 2 + column } else { row };
        let real = |row: usize, column: usize| {
            let b = block(row, column);
            f64::from(values[2 * row + column] - zeros[b]) * f64::from(scales[b])
        };
        let w: [[f64; 2]; 3] = std::array::from_fn(|row| std::array::from_fn(|column| real(row, column)));
        check(build.clone(), &product(&X.map(f64::from), &w));
        assert_eq!(import(&build).meta.get("onnx.blocks_quantized_anew").map(String::as_str), Some("1"));
    }
}

#[test]
fn integers_read_on_another_grid() {
    let build = start(&[1, 6])
        .floats("s", &[], &[0.04])
        .tensor(integers("z", U8, &[], &[60]))
        .node("DequantizeLinear", &["xq", "s", "z"], &["y"], vec![])
        .output("y");
    let other = u8_grid(0.04, 60);
    check(build, &X.map(|v| other.real(x_grid().quantize(v.into()))));
}

/// A cast of integers is their numbers, not what they stand for.
#[test]
fn integers_cast_to_floats() {
    let build = start(&[1, 6]).node("Cast", &["xq"], &["y"], vec![int("to", 1)]).output("y");
    check(build, &X.map(|v| x_grid().quantize(v.into()) as f64));
}

#[test]
fn products() {
    let (build, w) = weights(start(&[2, 3]));
    let y = product(&x(), &w);
    let row = ["xq", "xs", "xz", "w", "ws", "wz", "ys", "yz"];
    check_kept(build.clone().node("QLinearMatMul", &row, &["yq"], vec![]), &y);
    let biased: Vec<f64> = y.iter().enumerate().map(|(i, v)| v + [2000.0 * 2e-4, -1000.0 * 4e-4][i % 2]).collect();
    let build = build.tensor(integers("b", I32, &[2], &[2000, -1000]));
    let row = ["xq", "xs", "xz", "w", "ws", "wz", "b", "ys", "yz"];
    check_kept(contrib(build.clone().node("QGemm", &row, &["yq"], vec![])), &biased);
    check(contrib(build.node("QGemm", &row[..7], &["y"], vec![])).output("y"), &biased);
}

#[test]
fn integer_products() {
    let (build, w) = weights(start(&[2, 3]));
    let build = build.floats("b", &[2], &[0.5, -0.5]);
    let y = product(&x(), &w);
    let biased: Vec<f64> = y.iter().enumerate().map(|(i, v)| v + [0.5, -0.5][i % 2]).collect();
    let row = ["xq", "w", "xs", "ws", "xz", "wz", "b"];
    check(contrib(build.node("MatMulIntegerToFloat", &row, &["y"], vec![])).output("y"), &biased);
    // what is quantized image by image is not rounded at import
    let (build, w) = weights(Build::new(19).input("x", &[D::Is(2), D::Is(3)]).floats("b", &[2], &[0.5, -0.5]));
    let plain = product(&X.map(f64::from), &w);
    let biased: Vec<f64> = plain.iter().enumerate().map(|(i, v)| v + [0.5, -0.5][i % 2]).collect();
    let chain = build
        .clone()
        .node("DynamicQuantizeLinear", &["x"], &["q", "s", "z"], vec![])
        .node("MatMulInteger", &["q", "w", "z", "wz"], &["i"], vec![])
        .node("Cast", &["i"], &["f"], vec![int("to", 1)])
        .node("Mul", &["s", "ws"], &["both"], vec![])
        .node("Mul", &["f", "both"], &["y"], vec![])
        .output("y");
    check(chain, &plain);
    let fused = build.node("DynamicQuantizeMatMul", &["x", "w", "ws", "wz", "b"], &["y"], vec![]);
    check(contrib(fused).output("y"), &biased);
}

/// A 2x2 window over the 2x3 image.
fn windows(x: &[f64], f: impl Fn([f64; 4]) -> f64) -> Vec<f64> {
    (0..2).map(|c| f([x[c], x[c + 1], x[c + 3], x[c + 4]])).collect()
}

#[test]
fn convolutions() {
    let kernel = [10, -20, 30, 40];
    let build = start(&[1, 1, 2, 3])
        .tensor(integers("w", I8, &[1, 1, 2, 2], &kernel))
        .floats("ws", &[1], &[0.01])
        .tensor(integers("wz", I8, &[1], &[0]))
        .tensor(integers("b", I32, &[1], &[5000]));
    let sum = |v: [f64; 4]| v.iter().zip(kernel).map(|(x, k)| x * 0.01 * f64::from(k)).sum::<f64>();
    let row = ["xq", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"];
    check_kept(build.clone().node("QLinearConv", &row, &["yq"], vec![]), &windows(&x(), |v| sum(v) + 5000.0 * 2e-4));
    let chain = build
        .node("ConvInteger", &["xq", "w", "xz", "wz"], &["i"], vec![])
        .node("Cast", &["i"], &["f"], vec![int("to", 1)])
        .node("Mul", &["xs", "ws"], &["both"], vec![])
        .node("Mul", &["f", "both"], &["y"], vec![])
        .output("y");
    check(chain, &windows(&x(), sum));
}

#[test]
fn elementwise() {
    let other = [5, 250, 128, 0, 77, 130];
    let build = start(&[1, 6]).tensor(integers("c", U8, &[1, 6], &other)).floats("cs", &[], &[0.01]).tensor(integers(
        "cz",
        U8,
        &[],
        &[128],
    ));
    let c = |i: usize| 0.01 * f64::from(other[i] - 128);
    let row = ["xq", "xs", "xz", "c", "cs", "cz", "ys", "yz"];
    let two = |op: &str, f: fn(f64, f64) -> f64| {
        let expected: Vec<f64> = x().iter().enumerate().map(|(i, &v)| f(v, c(i))).collect();
        check_kept(contrib(build.clone().node(op, &row, &["yq"], vec![])), &expected);
    };
    two("QLinearAdd", |a, b| a + b);
    two("QLinearMul", |a, b| a * b);
    let row = ["xq", "xs", "xz", "ys", "yz"];
    let sigmoid: Vec<f64> = x().iter().map(|v| 1.0 / (1.0 + (-v).exp())).collect();
    check_kept(contrib(build.clone().node("QLinearSigmoid", &row, &["yq"], vec![])), &sigmoid);
    let leaky: Vec<f64> = x().iter().map(|&v| if v < 0.0 { 0.25 * v } else { v }).collect();
    check_kept(contrib(build.node("QLinearLeakyRelu", &row, &["yq"], vec![float("alpha", 0.25)])), &leaky);
}

#[test]
fn rows_and_images() {
    let row = ["xq", "xs", "xz", "ys", "yz"];
    let sum: f64 = x().iter().map(|v| v.exp()).sum();
    let softmax: Vec<f64> = x().iter().map(|v| v.exp() / sum).collect();
    check_kept(contrib(start(&[1, 6]).node("QLinearSoftmax", &row, &["yq"], vec![int("opset", 17)])), &softmax);
    let mean = [x().iter().sum::<f64>() / 6.0];
    let image = || start(&[1, 1, 2, 3]);
    check_kept(contrib(image().node("QLinearGlobalAveragePool", &row, &["yq"], vec![])), &mean);
    let axes = vec![int_list("axes", &[2, 3])];
    check_kept(contrib(image().node("QLinearReduceMean", &row, &["yq"], axes)), &mean);
    let average = windows(&x(), |v| v.iter().sum::<f64>() / 4.0);
    let window = vec![int_list("kernel_shape", &[2, 2])];
    check_kept(contrib(image().node("QLinearAveragePool", &row, &["yq"], window)), &average);
    let parts = ["ys", "yz", "xq", "xs", "xz", "c", "cs", "cz"];
    let build = start(&[1, 6])
        .tensor(integers("c", U8, &[1, 2], &[3, 140]))
        .floats("cs", &[], &[0.01])
        .tensor(integers("cz", U8, &[], &[128]));
    let joined = [x(), vec![-1.25, 0.12]].concat();
    check_kept(contrib(build.node("QLinearConcat", &parts, &["yq"], vec![int("axis", 1)])), &joined);
}

/// Of a float input, the reference being written here.
#[track_caller]
fn check_contrib(op: &str, operands: &[&str], attrs: Vec<onnx_protobuf::AttributeProto>, expected: &[f64]) {
    let build = Build::new(17).input("x", &[D::Is(2), D::Is(3)]).floats("b", &[3], &[0.1, -0.2, 0.3]).floats(
        "g",
        &[3],
        &[1.0, 2.0, 0.5],
    );
    check(contrib(build.node(op, operands, &["y"], attrs)).output("y"), expected);
}

/// The error function by its series, for small arguments.
fn erf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for n in 1..60 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn float_ops_of_the_optimizer() {
    let erf_gelu = |v: f64| v * 0.5 * (1.0 + erf(v / std::f64::consts::SQRT_2));
    let tanh_gelu =
        |v: f64| 0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3))).tanh());
    let plain = X.map(f64::from);
    let bias = [0.1f32, -0.2, 0.3].map(f64::from);
    let biased: Vec<f64> = plain.iter().enumerate().map(|(i, v)| v + bias[i % 3]).collect();
    let of = |x: &[f64], f: &dyn Fn(f64) -> f64| x.iter().map(|&v| f(v)).collect::<Vec<_>>();
    check_contrib("Gelu", &["x"], vec![], &of(&plain, &erf_gelu));
    check_contrib("BiasGelu", &["x", "b"], vec![], &of(&biased, &erf_gelu));
    check_contrib("FastGelu", &["x", "b"], vec![], &of(&biased, &tanh_gelu));
    check_contrib("QuickGelu", &["x"], vec![float("alpha", 1.5)], &of(&plain, &|v| v / (1.0 + (-1.5 * v).exp())));
    let gram = |i: usize, j: usize| (0..3).map(|k| plain[3 * i + k] * plain[3 * j + k]).sum::<f64>() * 0.5;
    let attrs = vec![int("transB", 1), float("alpha", 0.5)];
    check_contrib("FusedMatMul", &["x", "x"], attrs, &[gram(0, 0), gram(0, 1), gram(1, 0), gram(1, 1)]);
    let norm = |row: &[f64]| {
        let sum: Vec<f64> = row.iter().enumerate().map(|(c, v)| 2.0 * v + bias[c]).collect();
        let mean = sum.iter().sum::<f64>() / 3.0;
        let deviation = (sum.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 3.0 + 1e-5).sqrt();
        (0..3).map(|c| (sum[c] - mean) / deviation * [1.0, 2.0, 0.5][c] + bias[c]).collect::<Vec<_>>()
    };
    let rows: Vec<f64> = plain.chunks(3).flat_map(norm).collect();
    check_contrib("SkipLayerNormalization", &["x", "x", "g", "b", "b"], vec![float("epsilon", 1e-5)], &rows);
    let by_size = |row: &[f64]| {
        let size = (row.iter().map(|v| v * v).sum::<f64>() / 3.0 + 1e-5).sqrt();
        (0..3).map(|c| row[c] / size * [1.0, 2.0, 0.5][c]).collect::<Vec<_>>()
    };
    let doubled: Vec<f64> = biased.iter().zip(&plain).map(|(a, b)| a + b).collect();
    let rows: Vec<f64> = doubled.chunks(3).flat_map(by_size).collect();
    check_contrib("SkipSimplifiedLayerNormalization", &["x", "x", "g", "b"], vec![float("epsilon", 1e-5)], &rows);
}

#[test]
fn attention_of_one_product() {
    let weight: Vec<i32> = (0..54).map(|i| i * 37 % 101 - 50).collect();
    let real: Vec<f32> = weight.iter().map(|&w| w as f32 * 0.02).collect();
    let common = |b: Build| b.floats("bias", &[18], &[0.05; 18]).floats("w", &[3, 18], &real);
    let heads = || vec![int("num_heads", 2)];
    let expected = |x: &[f64]| {
        let at = |row: usize, column: usize| {
            (0..3).map(|k| x[3 * row + k] * f64::from(real[18 * k + column])).sum::<f64>() + 0.05
        };
        let mut y = vec![0.0; 12];
        for (head, row) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let score = |other: usize| {
                (0..3).map(|c| at(row, 3 * head + c) * at(other, 6 + 3 * head + c)).sum::<f64>() / 3f64.sqrt()
            };
            let e = [score(0).exp(), score(1).exp()];
            for c in 0..3 {
                let sum = e[0] * at(0, 12 + 3 * head + c) + e[1] * at(1, 12 + 3 * head + c);
                y[6 * row + 3 * head + c] = sum / (e[0] + e[1]);
            }
        }
        y
    };
    let float = common(Build::new(17).input("x", &[D::Is(1), D::Is(2), D::Is(3)]));
    let float = contrib(float.node("Attention", &["x", "w", "bias"], &["y"], heads())).output("y");
    check(float, &expected(&X.map(f64::from)));
    let build = common(start(&[1, 2, 3])).tensor(integers("wq", I8, &[3, 18], &weight)).floats("ws", &[], &[0.02]);
    let build = build.tensor(integers("wz", I8, &[], &[0]));
    let operands = ["xq", "wq", "bias", "xs", "ws", "", "xz", "wz"];
    check(contrib(build.node("QAttention", &operands, &["y"], heads())).output("y"), &expected(&x()));
}

#[test]
fn every_quantized_op_is_in_a_test() {
    let source = include_str!("quantized.rs");
    let written = |op: &str| source.contains(&format!("\"{op}\""));
    let here: BTreeSet<&str> = supported_ops()
        .into_iter()
        .filter(|op| op.contains("QLinear") || op.contains("Integer") || op.contains("QuantizeLinear"))
        .chain(supported_contrib_ops())
        .collect();
    let missing: Vec<_> = here.into_iter().filter(|op| !written(op)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// The messages of a model that must not be imported.
fn refused(build: Build) -> (bool, String) {
    let error = import_bytes(build.output("y").bytes(), None, &as_is()).unwrap_err();
    (matches!(error, ImportError::Invalid(_)), error.to_string())
}

#[test]
fn wrong_grids_are_all_told_at_once() {
    let mut build = start(&[2, 3])
        .floats("zero", &[], &[0.0])
        .floats("nan", &[3], &[1.0, f32::NAN, -1.0])
        .floats("two", &[2], &[0.1, 0.2])
        .floats("none", &[0], &[])
        .tensor(integers("i8", I8, &[], &[3]))
        .tensor(integers("three", U8, &[3], &[1, 2, 3]))
        .tensor(integers("b", I32, &[2], &[1, 2]))
        .tensor(integers("bz", I32, &[], &[1]))
        .tensor(integers("w", I8, &[3, 2], &[1, 2, 3, 4, 5, 6]));
    let wrong: [(&[&str], i64, &[&str]); 9] = [
        (&["xq", "zero", "xz"], 1, &["scale 0 is 0"]),
        (&["w", "nan"], 0, &["scale 1 is NaN, scales are finite and above 0 (and 1 more)"]),
        (&["w", "two"], 0, &["2 scales or zero points for axis 0 of [3x2"]),
        (&["w", "two"], 7, &["axis 7 is outside a shape of rank 2"]),
        (&["xq", "xs", "i8"], 1, &["the zero point is int8, the integers are uint8"]),
        (&["xq", "zero", "i8"], 1, &["scale 0 is 0", "; the zero point is int8"]),
        (&["w", "two", "three"], 1, &["2 scales, but 3 zero points"]),
        (&["b", "xs", "bz"], 1, &["integers of 32 bits have zero point 0"]),
        (&["w", "none"], 1, &["there is no scale"]),
    ];
    for (i, (operands, axis, _)) in wrong.iter().enumerate() {
        build = build.node("DequantizeLinear", operands, &[&format!("d{i}")], vec![int("axis", *axis)]);
    }
    build = build
        .node("QuantizeLinear", &["x", "two"], &["several"], vec![int("axis", 0)])
        .node("DequantizeLinear", &["x", "xs"], &["floats"], vec![])
        .node("QLinearMatMul", &["xq", "zero", "xz", "w", "nan", "i8", "ys", "yz"], &["m"], vec![])
        .node("DequantizeLinear", &["w", "xs"], &["blocks"], vec![int("block_size", 16)]);
    let (invalid, text) = refused(build.node("Identity", &["x"], &["y"], vec![]));
    assert!(invalid);
    let others = ["several scales", "float32 where integers are needed", "blocks"];
    for expected in wrong.iter().flat_map(|(.., e)| e.iter()).chain(&others) {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
    for place in 1..=13 {
        assert!(text.contains(&format!("_{place}\n")) || text.contains(&format!("_{place}")), "node {place}\n{text}");
    }
}

#[test]
fn nothing_quantized_panics() {
    // operands left out, of other types, of other shapes, in every order
    let names = ["xq", "x", "w", "xs", "xz", "two", "three", "", "b"];
    for op in supported_ops()
        .into_iter()
        .filter(|op| op.contains("Linear") || op.contains("Integer"))
        .chain(supported_contrib_ops())
    {
        for first in 0..names.len() {
            for step in 1..4 {
                let operands: Vec<&str> = (0..9).map(|i| names[(first + i * step) % names.len()]).collect();
                let build = start(&[2, 3])
                    .floats("two", &[2], &[0.1, 0.2])
                    .tensor(integers("three", U8, &[3], &[1, 2, 3]))
                    .tensor(integers("b", I32, &[2], &[1, 2]))
                    .tensor(integers("w", I8, &[3, 2], &[1, 2, 3, 4, 5, 6]));
                let mut build = build.node(op, &operands, &["y", "y2", "y3"], vec![]).output("y");
                if supported_contrib_ops().contains(&op) {
                    build = contrib(build);
                }
                if let Ok(module) = import_bytes(build.bytes(), None, &Options::default()) {
                    vitc_ir::verify::verify(&module).unwrap();
                    assert!(module.nodes.iter().all(|n| !matches!(n.op, Op::IntMatMul { .. })));
                }
            }
        }
    }
}
