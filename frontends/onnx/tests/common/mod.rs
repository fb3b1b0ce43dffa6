//! Builds ONNX models with onnx-protobuf, an implementation of the schema that shares nothing with the reader under test.
#![allow(dead_code)]

use bytes::Bytes;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};

/// A dimension of an input: a number, or a name when it is dynamic.
#[derive(Clone, Copy, Debug)]
pub enum D {
    Is(i64),
    Named(&'static str),
}

/// A model being built.
#[derive(Clone)]
pub struct Build(pub ModelProto);

impl Build {
    pub fn new(opset: i64) -> Build {
        let mut model = ModelProto { ir_version: 8, producer_name: "test".into(), ..Default::default() };
        model.opset_import.push(OperatorSetIdProto { version: opset, ..Default::default() });
        model.graph = Some(GraphProto { name: "g".into(), ..Default::default() }).into();
        Build(model)
    }

    pub fn graph(&mut self) -> &mut GraphProto {
        self.0.graph.as_mut().unwrap()
    }

    /// A float input.
    pub fn input(mut self, name: &str, dims: &[D]) -> Build {
        self.graph().input.push(info(name, 1, dims));
        self
    }

    pub fn output(mut self, name: &str) -> Build {
        self.graph().output.push(info(name, 1, &[]));
        self
    }

    pub fn floats(self, name: &str, dims: &[i64], values: &[f32]) -> Build {
        self.tensor(floats(name, dims, values))
    }

    pub fn ints(self, name: &str, dims: &[i64], values: &[i64]) -> Build {
        self.tensor(ints(name, dims, values))
    }

    pub fn bools(self, name: &str, dims: &[i64], values: &[i32]) -> Build {
        let tensor = TensorProto { name: name.into(), dims: dims.to_vec(), data_type: 9, ..Default::default() };
        self.tensor(TensorProto { int32_data: values.to_vec(), ..tensor })
    }

    pub fn tensor(mut self, tensor: TensorProto) -> Build {
        self.graph().initializer.push(tensor);
        self
    }

    pub fn node(mut self, op: &str, inputs: &[&str], outputs: &[&str], attrs: Vec<AttributeProto>) -> Build {
        let text = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let mut node =
            NodeProto { op_type: op.into(), input: text(inputs), output: text(outputs), ..Default::default() };
        node.name = format!("/{op}_{}", self.graph().node.len());
        node.attribute = attrs;
        self.graph().node.push(node);
        self
    }

    pub fn bytes(&self) -> Bytes {
        self.0.write_to_bytes().unwrap().into()
    }
}

pub fn info(name: &str, elem: i32, dims: &[D]) -> ValueInfoProto {
    let dim = |d: &D| {
        let mut dim = tensor_shape_proto::Dimension::new();
        match *d {
            D::Is(size) => dim.set_dim_value(size),
            D::Named(name) => dim.set_dim_param(name.into()),
        }
        dim
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect(), ..Default::default() };
    let mut ty = TypeProto::new();
    ty.set_tensor_type(type_proto::Tensor { elem_type: elem, shape: Some(shape).into(), ..Default::default() });
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..Default::default() }
}

pub fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorProto { name: name.into(), dims: dims.to_vec(), data_type: 1, raw_data, ..Default::default() }
}

pub fn ints(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    let int64_data = values.to_vec();
    TensorProto { name: name.into(), dims: dims.to_vec(), data_type: 7, int64_data, ..Default::default() }
}

/// A float tensor whose bytes are elsewhere.
pub fn external(name: &str, dims: &[i64], entries: &[(&str, &str)]) -> TensorProto {
    let entry =
        |(k, v): &(&str, &str)| StringStringEntryProto { key: (*k).into(), value: (*v).into(), ..Default::default() };
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: 1,
        external_data: entries.iter().map(entry).collect(),
        data_location: DataLocation::EXTERNAL.into(),
        ..Default::default()
    }
}

fn attr(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.into(), type_: kind.into(), ..Default::default() }
}

pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i, ..attr(name, AttributeType::INT) }
}

pub fn int_list(name: &str, list: &[i64]) -> AttributeProto {
    AttributeProto { ints: list.to_vec(), ..attr(name, AttributeType::INTS) }
}

pub fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f, ..attr(name, AttributeType::FLOAT) }
}

pub fn float_list(name: &str, list: &[f32]) -> AttributeProto {
    AttributeProto { floats: list.to_vec(), ..attr(name, AttributeType::FLOATS) }
}

pub fn word(name: &str, s: &str) -> AttributeProto {
    AttributeProto { s: s.as_bytes().to_vec(), ..attr(name, AttributeType::STRING) }
}

pub fn tensor_attr(name: &str, t: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(t).into(), ..attr(name, AttributeType::TENSOR) }
}

/// A small transformer block as an exporter with dynamic batch writes it: shape arithmetic, attention, layer norm, GELU.
pub fn small_vit(opset: i64, batch: D) -> Build {
    let ramp = |n: usize, s: f32| (0..n).map(|i| ((i * 37 % 19) as f32 - 9.0) * s).collect::<Vec<f32>>();
    Build::new(opset)
        .input("x", &[batch, D::Is(1), D::Is(8), D::Is(8)])
        .floats("patch.w", &[8, 1, 4, 4], &ramp(128, 0.02))
        .floats("patch.b", &[8], &ramp(8, 0.01))
        .floats("cls", &[1, 1, 8], &ramp(8, 0.1))
        .floats("pos", &[1, 5, 8], &ramp(40, 0.05))
        .floats("g", &[8], &[1.0; 8])
        .floats("b", &[8], &[0.0; 8])
        .floats("qkv.w", &[8, 24], &ramp(192, 0.03))
        .floats("head.w", &[3, 8], &ramp(24, 0.1))
        .floats("head.b", &[3], &ramp(3, 0.1))
        .floats("sqrt2", &[], &[std::f32::consts::SQRT_2])
        .floats("one", &[], &[1.0])
        .floats("half", &[], &[0.5])
        .ints("i0", &[], &[0])
        .ints("v0", &[1], &[0])
        .ints("v1", &[1], &[1])
        .ints("v2", &[1], &[2])
        .ints("vm1", &[1], &[-1])
        .ints("v8", &[1], &[8])
        .ints("v5", &[1], &[5])
        .ints("heads", &[3], &[3, 2, 4])
        .ints("flat", &[3], &[0, 8, -1])
        .ints("max", &[1], &[i64::MAX])
        .node(
            "Conv",
            &["x", "patch.w", "patch.b"],
            &["p0"],
            vec![int_list("strides", &[4, 4]), int_list("kernel_shape", &[4, 4])],
        )
        .node("Reshape", &["p0", "flat"], &["p1"], vec![])
        .node("Transpose", &["p1"], &["p2"], vec![int_list("perm", &[0, 2, 1])])
        .node("Shape", &["p2"], &["s0"], vec![])
        .node("Gather", &["s0", "i0"], &["s1"], vec![int("axis", 0)])
        .node("Unsqueeze", &["s1", "v0"], &["s2"], vec![])
        .node("Concat", &["s2", "vm1", "vm1"], &["s3"], vec![int("axis", 0)])
        .node("ConstantOfShape", &["v3shape"], &["s4"], vec![tensor_attr("value", ints("", &[1], &[1]))])
        .node("Equal", &["s3", "vm1"], &["s5"], vec![])
        .node("Where", &["s5", "s4", "s3"], &["s6"], vec![])
        .node("Expand", &["cls", "s6"], &["c0"], vec![])
        .node("Concat", &["c0", "p2"], &["t0"], vec![int("axis", 1)])
        .node("Add", &["t0", "pos"], &["t1"], vec![])
        .ints("v3shape", &[1], &[3])
        .node("LayerNormalization", &["t1", "g", "b"], &["t2"], vec![float("epsilon", 1e-6)])
        .node("MatMul", &["t2", "qkv.w"], &["t3"], vec![])
        .node("Concat", &["s2", "v5", "heads"], &["s7"], vec![int("axis", 0)])
        .node("Reshape", &["t3", "s7"], &["t4"], vec![])
        .node("Transpose", &["t4"], &["t5"], vec![int_list("perm", &[2, 0, 3, 1, 4])])
        .node("Split", &["t5"], &["q0", "k0", "w0"], vec![int("axis", 0)])
        .node("Squeeze", &["q0", "v0"], &["q"], vec![])
        .node("Squeeze", &["k0", "v0"], &["k"], vec![])
        .node("Squeeze", &["w0", "v0"], &["w"], vec![])
        .node("Shape", &["q"], &["a0"], vec![])
        .node("Slice", &["a0", "vm1", "max"], &["a1"], vec![])
        .node("Cast", &["a1"], &["a2"], vec![int("to", 1)])
        .node("Sqrt", &["a2"], &["a3"], vec![])
        .node("Div", &["one", "a3"], &["a4"], vec![])
        .node("Sqrt", &["a4"], &["a5"], vec![])
        .node("Mul", &["q", "a5"], &["qs"], vec![])
        .node("Transpose", &["k"], &["kt"], vec![int_list("perm", &[0, 1, 3, 2])])
        .node("Mul", &["kt", "a5"], &["ks"], vec![])
        .node("MatMul", &["qs", "ks"], &["l"], vec![])
        .node("Softmax", &["l"], &["e"], vec![int("axis", -1)])
        .node("MatMul", &["e", "w"], &["o0"], vec![])
        .node("Transpose", &["o0"], &["o1"], vec![int_list("perm", &[0, 2, 1, 3])])
        .node("Concat", &["s2", "v5", "v8"], &["s8"], vec![int("axis", 0)])
        .node("Reshape", &["o1", "s8"], &["o2"], vec![])
        .node("Add", &["t1", "o2"], &["r"], vec![])
        .node("Div", &["r", "sqrt2"], &["g0"], vec![])
        .node("Erf", &["g0"], &["g1"], vec![])
        .node("Add", &["g1", "one"], &["g2"], vec![])
        .node("Mul", &["r", "g2"], &["g3"], vec![])
        .node("Mul", &["g3", "half"], &["g4"], vec![])
        .node("Gather", &["g4", "i0"], &["h"], vec![int("axis", 1)])
        .node("Gemm", &["h", "head.w", "head.b"], &["logits"], vec![int("transB", 1)])
        .output("logits")
}
