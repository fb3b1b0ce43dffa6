//! Small graphs by hand, for the tests of the first three rooms.

use std::sync::Arc;

use vitc_ir::attr::GeluForm;
use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::{Const, Dim, Elem, Module, Op, Real, Shape, Stage, TensorType, ValueId};

use super::{CleanOptions, Cleaned, run};

/// Pseudo-random numbers, the same everywhere.
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }

    /// Roughly normal with deviation one.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5).sum::<f32>() * std::f32::consts::SQRT_2
    }

    pub(crate) fn normals(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * deviation).collect()
    }
}

/// A graph being built.
pub(crate) struct Build {
    pub(crate) m: Module,
    pub(crate) random: Random,
}

/// A shape whose first dimension is the batch.
pub(crate) fn batched(dims: &[usize]) -> Shape {
    Shape([Dim::N].into_iter().chain(dims.iter().map(|&d| Dim::fixed(d))).collect())
}

impl Build {
    pub(crate) fn new(seed: u64) -> Build {
        Build { m: Module::new("test", Stage::Import), random: Random::new(seed) }
    }

    /// A float input [N, dims...].
    pub(crate) fn input(&mut self, dims: &[usize]) -> ValueId {
        self.m.input("x", TensorType::f32(batched(dims)))
    }

    pub(crate) fn op(&mut self, op: Op, operands: &[ValueId]) -> ValueId {
        let loc: Arc<str> = format!("{}_{}", op.name(), self.m.nodes.len()).into();
        self.m.push(op, operands, Some(loc)).unwrap()
    }

    pub(crate) fn values(&mut self, dims: &[usize], values: &[f32]) -> ValueId {
        self.m.constant(Const::new("c", TensorType::f32(Shape::fixed(dims)), values))
    }

    pub(crate) fn scalar(&mut self, v: f32) -> ValueId {
        self.values(&[], &[v])
    }

    /// A random constant.
    pub(crate) fn weights(&mut self, dims: &[usize], deviation: f32) -> ValueId {
        let values = self.random.normals(dims.iter().product(), deviation);
        self.values(dims, &values)
    }

    pub(crate) fn reshape(&mut self, x: ValueId, dims: &[usize]) -> ValueId {
        self.op(Op::Reshape { shape: batched(dims) }, &[x])
    }

    pub(crate) fn transpose(&mut self, x: ValueId, perm: &[usize]) -> ValueId {
        self.op(Op::Transpose { perm: perm.to_vec() }, &[x])
    }

    pub(crate) fn slice(&mut self, x: ValueId, axis: usize, start: usize, len: usize) -> ValueId {
        self.op(Op::Slice { axis, start, len, step: 1 }, &[x])
    }

    pub(crate) fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.op(Op::Add {}, &[a, b])
    }

    pub(crate) fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.op(Op::Mul {}, &[a, b])
    }

    pub(crate) fn scale(&mut self, a: ValueId, factor: f32) -> ValueId {
        let c = self.scalar(factor);
        self.mul(a, c)
    }

    pub(crate) fn shift(&mut self, a: ValueId, term: f32) -> ValueId {
        let c = self.scalar(term);
        self.add(a, c)
    }

    /// `x w + b` as exporters write it.
    pub(crate) fn linear(&mut self, x: ValueId, outputs: usize) -> ValueId {
        let inputs = self.m.ty(x).shape.last_fixed().unwrap();
        let w = self.weights(&[inputs, outputs], (inputs as f32).powf(-0.5));
        let b = self.weights(&[outputs], 0.1);
        let y = self.op(Op::MatMul {}, &[x, w]);
        self.add(b, y)
    }

    pub(crate) fn layernorm(&mut self, x: ValueId) -> ValueId {
        let channels = self.m.ty(x).shape.last_fixed().unwrap();
        let beta = self.weights(&[channels], 0.1);
        let gamma = self.random.normals(channels, 0.2).iter().map(|g| 1.0 + g).collect::<Vec<_>>();
        let gamma = self.values(&[channels], &gamma);
        self.op(Op::LayerNorm { epsilon: Real(1e-6), centred: true }, &[x, gamma, beta])
    }

    pub(crate) fn softmax(&mut self, x: ValueId) -> ValueId {
        self.op(Op::Softmax {}, &[x])
    }

    pub(crate) fn gelu(&mut self, x: ValueId) -> ValueId {
        self.op(Op::Gelu { form: GeluForm::Erf }, &[x])
    }

    pub(crate) fn done(mut self, output: ValueId) -> Module {
        self.m.output("y", output);
        self.m
    }
}

/// How many nodes of an op a module has.
pub(crate) fn count(m: &Module, op: &str) -> usize {
    m.nodes.iter().filter(|n| n.op.name() == op).count()
}

/// Products with constant weights.
pub(crate) fn projections(m: &Module) -> usize {
    m.nodes.iter().filter(|n| n.op == Op::MatMul {} && m.const_of(n.operands[1]).is_some()).count()
}

/// Random inputs of a module, for a batch of two; images in full range.
pub(crate) fn inputs(m: &Module, seed: u64) -> Vec<Tensor> {
    let mut random = Random::new(seed + 1000);
    let one = |v: ValueId| {
        let shape = m.ty(v).shape.at(2);
        let n: usize = shape.iter().product();
        match m.ty(v).elem {
            Elem::F32 => Tensor { shape, data: Data::F32(random.normals(n, 1.0)) },
            _ => Tensor { shape, data: Data::U8((0..n).map(|_| random.below(256) as u8).collect()) },
        }
    };
    m.inputs.iter().map(|i| i.value).map(one).collect()
}

/// The outputs of a module.
pub(crate) fn outputs(m: &Module, inputs: &[Tensor]) -> Vec<f32> {
    let tensors = eval::run(m, inputs).unwrap_or_else(|e| panic!("{e}"));
    tensors.iter().flat_map(|t| t.as_f32().unwrap().to_vec()).collect()
}

/// Largest difference of two results relative to their largest value.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(1f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / largest
}

/// Signal to noise in decibels.
pub(crate) fn sqnr(signal: &[f32], approximate: &[f32]) -> f64 {
    let power: f64 = signal.iter().map(|x| f64::from(*x).powi(2)).sum();
    let noise: f64 = signal.iter().zip(approximate).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    10.0 * (power / noise.max(1e-30)).log10()
}

/// Cleans, and checks that the meaning stays and that every node has its place in the model.
pub(crate) fn clean(m: &Module) -> Cleaned {
    let cleaned = run(m, &CleanOptions::default()).unwrap();
    vitc_ir::verify::verify(&cleaned.module).unwrap();
    let x = inputs(m, 1);
    let d = difference(&outputs(m, &x), &outputs(&cleaned.module, &x));
    assert!(d < 3e-5, "differs by {d}");
    assert!(cleaned.module.nodes.iter().all(|n| n.loc.is_some()), "a node lost its place");
    cleaned
}

/// One plus erf of `x/sqrt 2`.
pub(crate) fn erf_part(b: &mut Build, x: ValueId, divide: bool) -> ValueId {
    let scaled = if divide {
        let c = b.scalar(std::f32::consts::SQRT_2);
        b.op(Op::Div {}, &[x, c])
    } else {
        b.scale(x, 0.707_106_77)
    };
    let erf = b.op(Op::Erf {}, &[scaled]);
    b.shift(erf, 1.0)
}
