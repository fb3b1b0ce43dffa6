//! One-node models with what comes out of them.

use onnx_protobuf::AttributeProto;
use vitc_ir::Module;
use vitc_ir::eval::{Data, Tensor};
use vitc_onnx::{BatchMode, Options, import_bytes};

use super::common::{Build, D, floats, ints};

/// A one-node model: the op, its operands (`x` is the input), constants, attributes, and what comes out for what.
pub struct Case {
    pub op: &'static str,
    pub opset: i64,
    pub operands: &'static str,
    pub consts: Vec<onnx_protobuf::TensorProto>,
    pub attrs: Vec<AttributeProto>,
    pub x: (&'static [usize], Vec<f32>),
    pub y: (&'static [usize], Vec<f32>),
}

pub fn case(
    op: &'static str,
    operands: &'static str,
    x: (&'static [usize], Vec<f32>),
    y: (&'static [usize], Vec<f32>),
) -> Case {
    Case { op, opset: 18, operands, consts: vec![], attrs: vec![], x, y }
}

impl Case {
    pub fn opset(mut self, opset: i64) -> Case {
        self.opset = opset;
        self
    }

    pub fn floats(mut self, name: &str, dims: &[i64], values: &[f32]) -> Case {
        self.consts.push(floats(name, dims, values));
        self
    }

    pub fn operands(mut self, operands: &'static str) -> Case {
        self.operands = operands;
        self
    }

    pub fn result(mut self, y: (&'static [usize], Vec<f32>)) -> Case {
        self.y = y;
        self
    }

    pub fn ints(mut self, name: &str, dims: &[i64], values: &[i64]) -> Case {
        self.consts.push(ints(name, dims, values));
        self
    }

    pub fn attr(mut self, attr: AttributeProto) -> Case {
        self.attrs.push(attr);
        self
    }

    pub fn model(&self) -> Build {
        let dims: Vec<D> = self.x.0.iter().map(|&d| D::Is(d as i64)).collect();
        let operands: Vec<&str> = self.operands.split(' ').map(|o| if o == "-" { "" } else { o }).collect();
        let mut build = Build::new(self.opset).input("x", &dims);
        for tensor in &self.consts {
            build = build.tensor(tensor.clone());
        }
        build.node(self.op, &operands, &["y"], self.attrs.clone()).output("y")
    }
}

pub fn seq(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

pub fn evaluate(module: &Module, x: (&[usize], Vec<f32>)) -> (Vec<usize>, Vec<f32>) {
    vitc_ir::verify::verify(module).unwrap();
    let input = Tensor { shape: x.0.to_vec(), data: Data::F32(x.1) };
    let output = vitc_ir::eval::run(module, &[input]).unwrap().remove(0);
    let Data::F32(values) = output.data else { panic!("not floats") };
    (output.shape, values)
}

pub fn as_is() -> Options {
    Options { batch: BatchMode::AsIs, ..Options::default() }
}

pub fn check(case: &Case) {
    let module = import_bytes(case.model().bytes(), None, &as_is()).unwrap_or_else(|e| panic!("{}: {e}", case.op));
    let (shape, values) = evaluate(&module, (case.x.0, case.x.1.clone()));
    assert_eq!(shape, case.y.0, "{}", case.op);
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
    assert!(values.iter().zip(&case.y.1).all(close), "{}: {values:?} instead of {:?}", case.op, case.y.1);
    assert_eq!(values.len(), case.y.1.len(), "{}", case.op);
}
