//! Each rule on random instances: it fires, and both sides agree within its exactness class (T10).

use std::collections::BTreeSet;

use vitc_ir::attr::GeluForm;
use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::{Const, Elem, ImageLayout, Module, Op, Quant, Real, Shape, Stage, TensorType, ValueId};

use super::rule::Exactness;
use super::sample::Normal;
use super::{Nonlinear, Options, books, run};

/// Random instances for each rule.
const INSTANCES: u64 = 100;

/// Random choices of one instance.
struct Dice(Normal);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        ((self.0.next().abs() * 1e6) as usize) % n
    }

    fn between(&mut self, lo: usize, hi: usize) -> usize {
        lo + self.below(hi - lo + 1)
    }

    fn scale(&mut self) -> f64 {
        0.02 * (1.0 + self.0.next().abs())
    }

    fn bytes(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| (self.0.next() * 40.0).clamp(-127.0, 127.0) as i8).collect()
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.0.next() as f32).collect()
    }
}

/// A module under construction, and its choices.
struct Bench {
    m: Module,
    dice: Dice,
}

impl Bench {
    fn input(&mut self, elem: Elem, dims: &[usize], quant: Quant) -> ValueId {
        let name = format!("x{}", self.m.inputs.len());
        let ty = TensorType::new(elem, Shape::fixed(dims)).with_quant(quant);
        let x = self.m.input(name, ty);
        self.op(Op::Dequantize {}, &[x])
    }

    /// An asymmetric byte input.
    fn bytes(&mut self, dims: &[usize]) -> ValueId {
        let quant = Quant::per_tensor(self.dice.scale(), self.dice.between(100, 150) as i32);
        self.input(Elem::U8, dims, quant)
    }

    /// A symmetric signed input.
    fn signed(&mut self, elem: Elem, dims: &[usize], scale: f64) -> ValueId {
        self.input(elem, dims, Quant::per_tensor(scale, 0))
    }

    /// Weights with a scale for each index of `axis`.
    fn weights(&mut self, dims: &[usize], axis: usize) -> ValueId {
        let values = self.dice.bytes(dims.iter().product());
        let scales: Vec<f64> = (0..dims[axis]).map(|_| self.dice.scale()).collect();
        let ty = TensorType::new(Elem::I8, Shape::fixed(dims)).with_quant(Quant::per_axis(scales, axis, 0));
        let w = self.m.constant(Const::new("w", ty, &values));
        self.op(Op::Dequantize {}, &[w])
    }

    fn floats(&mut self, name: &str, n: usize) -> ValueId {
        let values = self.dice.floats(n);
        self.m.constant(Const::new(name, TensorType::f32(Shape::fixed(&[n])), &values))
    }

    fn op(&mut self, op: Op, operands: &[ValueId]) -> ValueId {
        self.m.push(op, operands, Some("node".into())).unwrap()
    }

    fn quantize(&mut self, to: Elem, x: ValueId, scale: f64, zero_point: i32) -> ValueId {
        self.m.push_quant(Op::Quantize { to }, &[x], Quant::per_tensor(scale, zero_point), Some("node".into())).unwrap()
    }
}

impl Bench {
    /// Bytes rounded to the nearest of some levels.
    fn coded(&mut self, x: ValueId, levels: &[i64]) -> ValueId {
        let near = |q: i64| levels.iter().copied().min_by_key(|level| level.abs_diff(q)).unwrap() as u8;
        let entries: Vec<u8> = (0..256).map(near).collect();
        let table = self.m.constant(Const::new("levels", TensorType::new(Elem::U8, shape(&[256])), &entries));
        let quant = self.m.ty(x).quant.clone().unwrap();
        self.m.push_quant(Op::IntTable {}, &[x, table], quant, Some("node".into())).unwrap()
    }
}

fn shape(dims: &[usize]) -> Shape {
    Shape::fixed(dims)
}

fn unary(name: &str) -> Op {
    match name {
        "gelu" => Op::Gelu { form: GeluForm::Erf },
        "relu" => Op::Relu {},
        "silu" => Op::Silu {},
        "hardswish" => Op::HardSwish {},
        "hardsigmoid" => Op::HardSigmoid { alpha: Real(1.0 / 6.0), beta: Real(0.5) },
        "sigmoid" => Op::Sigmoid {},
        "tanh" => Op::Tanh {},
        "erf" => Op::Erf {},
        "exp" => Op::Exp {},
        "clip" => Op::Clip { lo: Real(-1.0), hi: Real(1.5) },
        "neg" => Op::Neg {},
        "abs" => Op::Abs {},
        "sqrt" => Op::Sqrt {},
        "reciprocal" => Op::Reciprocal {},
        other => panic!("no instance for {other}"),
    }
}

/// A module in which the rule fires. Most end in a `quantize`, as real graphs do.
fn instance(rule: &str, b: &mut Bench) -> ValueId {
    let (rows, k, n) = (b.dice.between(1, 5), b.dice.between(1, 24), b.dice.between(1, 9));
    let movement = |b: &mut Bench, op: Op| {
        let x = b.bytes(&[rows, 4, 6]);
        b.op(op, &[x])
    };
    let hoisted = |b: &mut Bench, op: Op| {
        let (x, w) = (b.bytes(&[rows, k]), b.weights(&[k, 24], 1));
        let y = b.op(Op::MatMul {}, &[x, w]);
        let y = b.op(Op::Reshape { shape: shape(&[rows, 4, 6]) }, &[y]);
        let y = b.op(op, &[y]);
        b.quantize(Elem::I8, y, 0.3, 0)
    };
    match rule {
        "sink-matmul-rows" | "sink-matmul-rows-bias" => {
            let signed = b.dice.between(0, 1) == 1;
            let zero = if signed { 0 } else { b.dice.between(0, 900) as i32 };
            let scale = b.dice.scale() / 200.0;
            let x = b.input(Elem::I16, &[rows, k], Quant::per_tensor(scale, zero));
            let (lowest, step) = ((-scale * f64::from(zero)).into(), (32.0 * scale).into());
            let few = b.dice.between(0, 1) == 1;
            let levels = if signed && !few {
                7
            } else if signed {
                127
            } else {
                255
            };
            let codes = if few { vec![1, 60, 100, 120, 128, 135, 150, 190, 250] } else { Vec::new() };
            let x = b.op(Op::RoundRows { lowest, step, levels, signed, codes }, &[x]);
            let w = b.weights(&[k, n], 1);
            let bias = rule.ends_with("bias").then(|| b.floats("bias", n));
            let y = b.op(Op::MatMul {}, &[vec![x, w], bias.into_iter().collect()].concat());
            b.quantize(Elem::I8, y, 2.0, 3)
        }
        "sink-matmul" | "fold-zero-point" => {
            let (x, w) = (b.bytes(&[rows, k]), b.weights(&[k, n], 1));
            b.op(Op::MatMul {}, &[x, w])
        }
        "sink-matmul-bias" | "fold-zero-point-bias" => {
            let (x, w) = (b.bytes(&[rows, k]), b.weights(&[k, n], 1));
            let bias = b.floats("bias", n);
            b.op(Op::MatMul {}, &[x, w, bias])
        }
        "sink-conv2d" | "sink-conv2d-bias" => {
            let (x, w) = (b.bytes(&[1, 3, 8, 8]), b.weights(&[n, 3, 3, 3], 0));
            let op = Op::Conv2d {
                strides: [2, 2],
                pads: [1, 1, 0, 1],
                dilations: [1, 1],
                groups: 1,
                layout: ImageLayout::ChannelsFirst,
            };
            let mut operands = vec![x, w];
            if rule.ends_with("bias") {
                operands.push(b.floats("bias", n));
            }
            b.op(op, &operands)
        }
        "sink-reshape" => movement(b, Op::Reshape { shape: shape(&[rows * 2, 12]) }),
        "sink-transpose" => movement(b, Op::Transpose { perm: vec![2, 0, 1] }),
        "sink-slice" => movement(b, Op::Slice { axis: 1, start: 3, len: 2, step: -2 }),
        "sink-expand" => {
            let x = b.bytes(&[1, 4, 6]);
            b.op(Op::Expand { shape: shape(&[3, 4, 6]) }, &[x])
        }
        "sink-gather" => movement(b, Op::Gather { axis: 2, index: vec![5, 0, 0] }),
        "sink-pad" => movement(b, Op::Pad { before: vec![0, 1, 0], after: vec![0, 0, 2], value: Real(0.0) }),
        "sink-concat-2" | "sink-concat-3" | "sink-concat-4" => {
            let quant = Quant::per_tensor(0.1, 7);
            let count = rule.chars().last().and_then(|c| c.to_digit(10)).unwrap_or(2) as usize;
            let parts: Vec<ValueId> = (0..count).map(|i| b.input(Elem::U8, &[rows, 2 + i], quant.clone())).collect();
            b.op(Op::Concat { axis: 1 }, &parts)
        }
        "sink-sum" => movement(b, Op::ReduceSum { axes: vec![1], keep: false }),
        "sink-mean" => {
            let axes = if rows > 2 { vec![2] } else { vec![2, 1] };
            movement(b, Op::ReduceMean { axes, keep: rows == 1 })
        }
        "sink-add" => {
            let (x, y) = (b.signed(Elem::I16, &[rows, k], 0.001), b.signed(Elem::I16, &[1, k], 0.001));
            b.op(Op::Add {}, &[x, y])
        }
        "sink-scale" | "sink-scale-left" | "sink-divisor" => {
            let x = b.bytes(&[rows, k]);
            let channels = if rows % 2 == 0 { k } else { 1 };
            let values: Vec<f32> = (0..channels).map(|c| 0.37 + c as f32).collect();
            let c = b.m.constant(Const::new("c", TensorType::f32(shape(&[channels])), &values));
            match rule {
                "sink-scale" => b.op(Op::Mul {}, &[x, c]),
                "sink-scale-left" => b.op(Op::Mul {}, &[c, x]),
                _ => b.op(Op::Div {}, &[x, c]),
            }
        }
        "gated-hardswish" => {
            let x = b.signed(Elem::I16, &[rows, k], 24.0 / 32768.0);
            let y = b.op(Op::HardSwish {}, &[x]);
            b.quantize(Elem::U8, y, 0.06, 8)
        }
        "gated-gelu" | "gated-silu" | "byte-gated-hardswish" => {
            let x = b.signed(Elem::I16, &[rows, k], 8.0 / 32768.0);
            let y = b.op(unary(rule.rsplit('-').next().unwrap()), &[x]);
            b.quantize(Elem::U8, y, 0.03, 20)
        }
        "requantize-halves" => {
            let x = b.signed(Elem::I16, &[rows, k], 0.001);
            let factors: Vec<f32> = (0..k).map(|c| 1.0 + c as f32 / 8.0).collect();
            let factors = b.m.constant(Const::new("f", TensorType::f32(shape(&[k])), &factors));
            let y = b.op(Op::Mul {}, &[x, factors]);
            b.quantize(Elem::U8, y, 0.2, 100)
        }
        "hoist-reshape" => hoisted(b, Op::Reshape { shape: shape(&[rows * 4, 6]) }),
        "hoist-transpose" => hoisted(b, Op::Transpose { perm: vec![1, 0, 2] }),
        "hoist-slice" => hoisted(b, Op::Slice { axis: 2, start: 1, len: 3, step: 1 }),
        "hoist-expand" => hoisted(b, Op::Expand { shape: shape(&[2, rows, 4, 6]) }),
        "hoist-gather" => hoisted(b, Op::Gather { axis: 1, index: vec![2, 1] }),
        "hoist-concat-2" => {
            let quant = Quant::per_tensor(0.1, 7);
            let (x, y) = (
                b.input(Elem::U8, &[rows, 3], quant.clone()),
                b.input(Elem::U8, &[rows, 4], Quant::per_tensor(0.2, 9)),
            );
            let y = b.op(Op::Concat { axis: 1 }, &[x, y]);
            b.quantize(Elem::U8, y, 0.2, 9)
        }
        // Channel by channel, to steps that are finer: no halves.
        "requantize" if rows % 2 == 0 => {
            let x = b.signed(Elem::I16, &[rows, k], 0.001);
            let factors: Vec<f32> = (0..k).map(|c| 4.0 + c as f32 / 8.0).collect();
            let factors = b.m.constant(Const::new("f", TensorType::f32(shape(&[k])), &factors));
            let y = b.op(Op::Mul {}, &[x, factors]);
            b.quantize(Elem::I16, y, 0.0013, 0)
        }
        "requantize" => {
            let x = b.bytes(&[rows, k]);
            b.quantize(Elem::I8, x, 0.11, -3)
        }
        "quantize-clip" => {
            let (x, w) = (b.bytes(&[rows, k]), b.weights(&[k, n], 1));
            let x = b.op(Op::MatMul {}, &[x, w]);
            let y = b.op(Op::Clip { lo: Real(-0.4), hi: Real(0.7) }, &[x]);
            b.quantize(Elem::U8, y, 0.1, 5)
        }
        "requantize-add" | "requantize-sub" => {
            let (x, y) = (b.signed(Elem::I16, &[rows, k], 0.001), b.signed(Elem::I16, &[rows, k], 0.0007));
            let y = b.op(if rule.ends_with("sub") { Op::Sub {} } else { Op::Add {} }, &[x, y]);
            if rows % 2 == 0 { b.quantize(Elem::U8, y, 0.13, 101) } else { b.quantize(Elem::I16, y, 0.0012, 0) }
        }
        "sink-product" => {
            let (x, y) = (b.bytes(&[rows, k]), b.bytes(&[rows, k]));
            b.op(Op::Mul {}, &[x, y])
        }
        "bias-accumulators" if rows % 2 == 0 => {
            let (x, w) = (b.bytes(&[2, rows, k, 3]), b.weights(&[n, 3, 1, 1], 0));
            let layout = ImageLayout::ChannelsLast;
            let conv = Op::Conv2d { strides: [1, 1], pads: [0; 4], dilations: [1, 1], groups: 1, layout };
            let sums = b.op(conv, &[x, w]);
            let values = b.dice.floats(rows * k * n);
            let map = b.m.constant(Const::new("map", TensorType::f32(shape(&[rows, k, n])), &values));
            b.op(Op::Add {}, &[sums, map])
        }
        "bias-accumulators" => {
            let (q, key) = (b.bytes(&[2, rows, k]), b.signed(Elem::I8, &[2, k, n], 0.01));
            let scores = b.op(Op::MatMul {}, &[q, key]);
            let values = b.dice.floats(rows * n);
            let bias = b.m.constant(Const::new("bias", TensorType::f32(shape(&[1, rows, n])), &values));
            b.op(Op::Add {}, &[scores, bias])
        }
        "linear-attention" | "shift-attention" => {
            let positive = Quant::per_tensor(0.02, 0);
            let (q, key) =
                (b.input(Elem::U8, &[2, rows, k], positive.clone()), b.input(Elem::U8, &[2, n, k], positive));
            let v = b.bytes(&[2, n, 5]);
            let y = b.op(Op::LinearAttention { epsilon: Real(1e-5) }, &[q, key, v]);
            b.quantize(Elem::U8, y, 0.03, 128)
        }
        "quotient" => {
            let divisor = [[rows, k], [rows, 1], [1, k]][b.dice.below(3)];
            let dividend = if b.dice.below(4) == 0 { [1, 1] } else { [rows, k] };
            let x = b.signed(Elem::I16, &dividend, 0.001);
            let y = b.signed(Elem::I16, &divisor, 0.0004);
            let y = b.op(Op::Div {}, &[x, y]);
            b.quantize(Elem::U8, y, 0.1, 120)
        }
        "table-function" => {
            let x = b.bytes(&[rows, k]);
            let steeper = b.m.constant(Const::new("c", TensorType::f32(Shape::fixed(&[])), &[1.702f32]));
            let s = b.op(Op::Mul {}, &[x, steeper]);
            let s = b.op(Op::Sigmoid {}, &[s]);
            let y = b.op(Op::Mul {}, &[x, s]);
            b.quantize(Elem::U8, y, 0.03, 20)
        }
        "shift-gelu" | "ibert-gelu" => {
            let x = b.bytes(&[rows, k]);
            let y = b.op(unary("gelu"), &[x]);
            b.quantize(Elem::U8, y, 0.03, 10)
        }
        "sink-min" | "sink-max" => {
            let quant = Quant::per_tensor(0.1, 7);
            let x = b.input(Elem::U8, &[rows, k], quant.clone());
            let y = b.input(Elem::U8, &[1, k], quant);
            b.op(if rule == "sink-min" { Op::Min {} } else { Op::Max {} }, &[x, y])
        }
        "moments-layernorm" | "shift-layernorm" | "ibert-layernorm" => {
            let channels = b.dice.between(8, 64);
            let x = b.signed(Elem::I16, &[rows, channels], 0.001);
            let (gamma, beta) = (b.floats("gamma", channels), b.floats("beta", channels));
            let y = b.op(
                Op::LayerNorm { epsilon: Real(1e-6), centred: rule != "moments-layernorm" || rows % 2 == 0 },
                &[x, gamma, beta],
            );
            b.quantize(Elem::U8, y, 0.05, 128)
        }
        "deferred-softmax" | "shift-softmax" | "ibert-softmax" => {
            let (q, key) = (b.bytes(&[2, rows, k]), b.signed(Elem::I8, &[2, k, n], 0.01));
            let v = b.signed(Elem::I8, &[2, n, 5], 0.02);
            let scores = b.op(Op::MatMul {}, &[q, key]);
            let map = b.op(Op::Softmax {}, &[scores]);
            let map = b.quantize(Elem::U8, map, 1.0 / 255.0, 0);
            let map = b.op(Op::Dequantize {}, &[map]);
            let y = b.op(Op::MatMul {}, &[map, v]);
            b.quantize(Elem::U8, y, 0.02, 128)
        }
        "coded-softmax" | "shift-softmax-codes" | "ibert-softmax-codes" => {
            let (q, key) = (b.bytes(&[2, rows, k]), b.signed(Elem::I8, &[2, k, n], 0.01));
            let v = b.signed(Elem::I8, &[2, n, 5], 0.02);
            let scores = b.op(Op::MatMul {}, &[q, key]);
            let map = b.op(Op::Softmax {}, &[scores]);
            let map = b.quantize(Elem::U8, map, 1.0 / 255.0, 0);
            let levels = if rows % 2 == 0 { crate::quantize::logarithmic(8) } else { (0..=255).step_by(5).collect() };
            let map = b.coded(map, &levels);
            let map = b.op(Op::Dequantize {}, &[map]);
            let y = b.op(Op::MatMul {}, &[map, v]);
            b.quantize(Elem::U8, y, 0.02, 128)
        }
        "merge-tables" => {
            let x = b.bytes(&[rows, k]);
            let y = b.op(unary("gelu"), &[x]);
            let y = b.quantize(Elem::U8, y, 0.03, 20);
            b.coded(y, &[0, 17, 20, 31, 60, 255])
        }
        "alone-softmax" => {
            let (q, key) = (b.bytes(&[rows, k]), b.signed(Elem::I8, &[k, n], 0.01));
            let scores = b.op(Op::MatMul {}, &[q, key]);
            let map = b.op(Op::Softmax {}, &[scores]);
            b.quantize(Elem::U8, map, 1.0 / 255.0, 0)
        }
        "fine-softmax" => {
            let x = b.bytes(&[rows, k]);
            let map = b.op(Op::Softmax {}, &[x]);
            b.quantize(Elem::U8, map, 1.0 / 256.0, 0)
        }
        table => {
            let op = unary(table.strip_prefix("table-").unwrap());
            let positive = matches!(op, Op::Sqrt {} | Op::Reciprocal {});
            let x =
                if positive { b.input(Elem::U8, &[rows, k], Quant::per_tensor(0.05, 0)) } else { b.bytes(&[rows, k]) };
            let y = b.op(op, &[x]);
            b.quantize(Elem::I8, y, 0.03, -5)
        }
    }
}

fn inputs_of(b: &mut Bench) -> Vec<Tensor> {
    let types: Vec<TensorType> = b.m.inputs.iter().map(|i| b.m.ty(i.value).clone()).collect();
    let make = |ty: &TensorType, dice: &mut Dice| {
        let dims = ty.shape.at(1);
        let (lo, hi) = ty.elem.range().unwrap();
        let (middle, spread) =
            ((lo + hi) as f64 / 2.0, (hi - lo) as f64 / if ty.elem == Elem::I16 { 20.0 } else { 8.0 });
        let count: usize = dims.iter().product();
        let values = (0..count).map(|_| ((middle + spread * dice.0.next()) as i64).clamp(lo, hi));
        Tensor::ints(ty.elem, &dims, values.collect::<Vec<_>>())
    };
    types.iter().map(|ty| make(ty, &mut b.dice)).collect()
}

fn reals(module: &Module, t: &Tensor) -> Vec<f64> {
    match &t.data {
        Data::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
        _ => {
            let q = module.ty(module.outputs[0].value).quant.clone().unwrap();
            t.to_ints().into_iter().map(|v| q.scale_at(0) * (v as f64 - f64::from(q.zero_point))).collect()
        }
    }
}

fn check(rule: &super::rule::Rule, seed: u64) {
    let mut b = Bench { m: Module::new("instance", Stage::Quantize), dice: Dice(Normal::new(seed)) };
    let y = instance(rule.name, &mut b);
    b.m.output("y", y);
    let inputs = inputs_of(&mut b);
    let nonlinear = match rule.name.split_once('-') {
        Some(("shift", _)) => Nonlinear::Shift,
        Some(("ibert", _)) => Nonlinear::Ibert,
        _ => Nonlinear::Auto,
    };
    let options = Options { nonlinear, budget_relative: 1.0, ..Options::default() };
    let (lowered, report) = run(&b.m, &options).unwrap_or_else(|e| panic!("{} (seed {seed}): {e}", rule.name));
    assert!(report.fired.contains_key(rule.name), "{} did not fire: {:?}", rule.name, report.fired);
    later_rooms_keep_the_bits(rule.name, &lowered, &inputs);
    let before = reals(&b.m, &eval::run(&b.m, &inputs).unwrap()[0]);
    let after = reals(&lowered, &eval::run(&lowered, &inputs).unwrap()[0]);
    let step = b.m.ty(y).quant.as_ref().map(|q| q.scale_at(0));
    let magnitude = before.iter().fold(1e-3f64, |a, v| a.max(v.abs()));
    let allowed = match (rule.exactness, step) {
        // the bias is rounded to accumulator steps, which are products of two scales
        (_, None) if rule.name.ends_with("bias") || rule.name == "bias-accumulators" => 4e-3,
        // the divisor is rounded to a power of two
        (_, step) if rule.name == "shift-attention" => 0.5 * magnitude + step.unwrap_or(0.0),
        (Exactness::Exact | Exactness::Rounding, None) => 1e-5 * magnitude,
        // an exact rule in front of a quantize: rounding may fall the other way on a tie
        (Exactness::Exact | Exactness::Rounding, Some(step)) => 1.001 * step,
        (Exactness::Approximate, step) => 0.12 * magnitude + 2.0 * step.unwrap_or(0.0),
    };
    for (i, (x, y)) in before.iter().zip(&after).enumerate() {
        assert!(
            (x - y).abs() <= allowed,
            "{} (seed {seed}), element {i}: {x} became {y}, allowed {allowed}",
            rule.name
        );
    }
}

/// `fuse` and `plan` change no bit, and the verifier accepts every stage.
fn later_rooms_keep_the_bits(rule: &str, lowered: &Module, inputs: &[Tensor]) {
    let layout = |_, _| vitc_ir::layout::Layout::Dot4 { columns: 8 };
    let target =
        crate::plan::Target { weight_layout: &layout, is_view: &|_, _, _| false, is_operand_view: &|_, _, _, _| false };
    let expected = eval::run(lowered, inputs).unwrap();
    let (fused, _) = crate::fuse::run(lowered).unwrap_or_else(|e| panic!("{rule}: {e}"));
    let planned = crate::plan::run(&fused, &target).unwrap();
    for module in [lowered, &fused, &planned] {
        vitc_ir::verify::verify(module).unwrap_or_else(|e| panic!("{rule} at {}: {e}", module.stage.word()));
        assert_eq!(eval::run(module, inputs).unwrap(), expected, "{rule} at {}", module.stage.word());
    }
}

#[test]
fn every_rule_keeps_its_exactness_class() {
    for rule in books::all() {
        (0..INSTANCES).for_each(|seed| check(&rule, seed + 1));
    }
}

#[test]
fn rule_names_are_unique() {
    let names: Vec<&str> = books::all().iter().map(|r| r.name).collect();
    assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len());
}

#[test]
fn lowering_is_deterministic() {
    let build = || {
        let mut b = Bench { m: Module::new("instance", Stage::Quantize), dice: Dice(Normal::new(3)) };
        let y = instance("deferred-softmax", &mut b);
        b.m.output("y", y);
        let (lowered, _) = run(&b.m, &Options::default()).unwrap();
        vitc_ir::text::print(&lowered)
    };
    assert_eq!(build(), build());
}

/// Published forms are of GELU, softmax and layernorm; other functions keep their table, or a model with a ReLU had no form.
#[test]
fn functions_without_a_published_form_keep_their_table() {
    for rule in ["table-relu", "table-tanh", "table-function"] {
        let mut b = Bench { m: Module::new("instance", Stage::Quantize), dice: Dice(Normal::new(4)) };
        let y = instance(rule, &mut b);
        b.m.output("y", y);
        for nonlinear in [Nonlinear::Shift, Nonlinear::Ibert] {
            let options = Options { nonlinear, ..Options::default() };
            let (lowered, _) = run(&b.m, &options).unwrap_or_else(|e| panic!("{rule}: {e}"));
            assert!(lowered.nodes.iter().any(|n| matches!(n.op, Op::IntTable {})), "{rule}");
        }
    }
}

#[test]
fn forms_of_a_paper_are_all_that_is_taken() {
    for (rule, form) in [("ibert-gelu", "ibert"), ("ibert-layernorm", "ibert"), ("ibert-softmax", "ibert")] {
        let mut b = Bench { m: Module::new("instance", Stage::Quantize), dice: Dice(Normal::new(4)) };
        let y = instance(rule, &mut b);
        b.m.output("y", y);
        let options = Options { nonlinear: Nonlinear::Ibert, ..Options::default() };
        let (_, report) = run(&b.m, &options).unwrap();
        let forms: Vec<&str> = report.sites.iter().filter(|s| s.allowed).map(|s| s.form).collect();
        assert_eq!(forms, [form], "{rule}");
    }
}

#[test]
fn a_float_op_without_an_integer_form_is_named() {
    let mut b = Bench { m: Module::new("instance", Stage::Quantize), dice: Dice(Normal::new(1)) };
    let x = b.bytes(&[2, 3]);
    let y = b.op(Op::Log {}, &[x]);
    b.m.output("y", y);
    let error = run(&b.m, &Options::default()).unwrap_err().to_string();
    assert!(error.contains("log") && error.contains("node"), "{error}");
}
