//! Imports a case, evaluates it and compares.
//!
//! What the compiler needs to know at import is made an initializer with the case's value: every operand that is not of a
//! float type, every empty one, and the float operands of [`CONSTANTS`]. What is not float in the end is cast to `float32` behind the graph.

use std::panic::{AssertUnwindSafe, catch_unwind};

use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, Message, ModelProto, NodeProto, TensorProto};
use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::{Def, Module, verify};
use vitc_onnx::{BatchMode, Options, import_bytes};

use crate::suite::{Case, numbers};

/// Float operands that must be constants.
const CONSTANTS: &[(&str, &[usize])] = &[
    ("Clip", &[1, 2]),
    ("Dropout", &[1, 2]),
    ("OneHot", &[0, 1, 2]),
    ("Pad", &[2]),
    ("Range", &[0, 1, 2]),
    ("Resize", &[1, 2]),
    ("ScatterND", &[0, 2]),
    ("Upsample", &[1]),
];
const FLOAT: i32 = 1;
const FLOATS: [i32; 4] = [FLOAT, 10, 11, BRAIN];
const BRAIN: i32 = 16;

/// What came of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Imported, evaluated, and right.
    Computed,
    /// Evaluated at import, the result a constant, and right.
    Folded,
    /// Not imported, for this reason.
    Refused(String),
    /// Wrong, in this way.
    Wrong(String),
}

pub fn attempt(case: &Case) -> Outcome {
    if case.outputs.iter().flatten().any(|t| t.data_type == BRAIN) {
        return Outcome::Refused("an output is bfloat16, to which nothing is rounded".into());
    }
    let Some(want) = case.outputs.iter().map(expected).collect::<Option<Vec<_>>>() else {
        return Outcome::Refused("an output is no tensor of numbers".into());
    };
    let (model, inputs) = match prepared(case) {
        Ok(prepared) => prepared,
        Err(why) => return Outcome::Refused(why),
    };
    let options = Options { batch: BatchMode::AsIs, ..Options::default() };
    let bytes = model.write_to_bytes().unwrap();
    let import = || import_bytes(bytes.into(), None, &options);
    let module = match catch_unwind(AssertUnwindSafe(import)) {
        Ok(Ok(module)) => module,
        Ok(Err(e)) => return Outcome::Refused(reason(&e.diagnostics().0[0].message)),
        Err(_) => return Outcome::Wrong(format!("{}: import panics", case.name)),
    };
    if module.meta.contains_key("onnx.ranks") {
        return Outcome::Refused("the numbers are an output instead of what ranks them".into());
    }
    let checked = || check(&module, &inputs, &want);
    match catch_unwind(AssertUnwindSafe(checked)) {
        Ok(Ok(())) if module.outputs.iter().all(|o| is_constant(&module, o)) => Outcome::Folded,
        Ok(Ok(())) => Outcome::Computed,
        Ok(Err(why)) => Outcome::Wrong(format!("{}: {why}", case.name)),
        Err(_) => Outcome::Wrong(format!("{}: evaluation panics", case.name)),
    }
}

fn is_constant(module: &Module, output: &vitc_ir::graph::Output) -> bool {
    matches!(module.values[output.value.0 as usize].def, Def::Const(_))
}

/// The message without `Op (opset 13) of [2, 3], none: ` in front.
fn reason(message: &str) -> String {
    let behind = message.split_once(" (opset ").and_then(|(_, rest)| rest.split_once(": "));
    behind.map_or(message, |(_, why)| why).to_owned()
}

/// Shape and elements.
type Numbers = (Vec<usize>, Vec<f64>);

fn expected(tensor: &Option<TensorProto>) -> Option<Numbers> {
    let tensor = tensor.as_ref()?;
    Some((tensor.dims.iter().map(|&d| d as usize).collect(), numbers(tensor)?))
}

/// The model as vitc takes it, and the inputs that are left.
fn prepared(case: &Case) -> Result<(ModelProto, Vec<Tensor>), String> {
    let mut model = case.model.clone();
    let graph = model.graph.as_mut().unwrap();
    let (mut left, mut inputs) = (Vec::new(), Vec::new());
    for (port, tensor) in std::mem::take(&mut graph.input).into_iter().zip(&case.inputs) {
        let tensor = tensor.as_ref().ok_or("an operand is no tensor of numbers")?;
        let empty = tensor.dims.contains(&0);
        if empty || !FLOATS.contains(&tensor.data_type) || is_parameter(&graph.node, &port.name) {
            graph.initializer.push(TensorProto { name: port.name.clone(), ..tensor.clone() });
            continue;
        }
        let data = Data::F32(numbers(tensor).unwrap_or_default().into_iter().map(|v| v as f32).collect());
        inputs.push(Tensor { shape: tensor.dims.iter().map(|&d| d as usize).collect(), data });
        left.push(port);
    }
    if left.is_empty() {
        // Something has to be the image.
        left.push(crate::common::info("nothing", FLOAT, &[crate::common::D::Is(2)]));
        inputs.push(Tensor { shape: vec![2], data: Data::F32(vec![0.0; 2]) });
    }
    graph.input = left;
    for port in &mut graph.output {
        if port.type_.tensor_type().elem_type != FLOAT {
            let float = format!("{}.as_float", port.name);
            let to = AttributeProto {
                name: "to".into(),
                i: FLOAT.into(),
                type_: AttributeType::INT.into(),
                ..Default::default()
            };
            graph.node.push(NodeProto {
                op_type: "Cast".into(),
                input: vec![port.name.clone()],
                output: vec![float.clone()],
                attribute: vec![to],
                ..Default::default()
            });
            port.name = float;
        }
    }
    Ok((model, inputs))
}

/// Whether a float operand must be known at import.
fn is_parameter(nodes: &[NodeProto], name: &str) -> bool {
    let listed = |node: &NodeProto| CONSTANTS.iter().find(|(op, _)| *op == node.op_type).map_or(&[][..], |(_, i)| *i);
    nodes.iter().any(|node| listed(node).iter().any(|&i| node.input.get(i).is_some_and(|n| n == name)))
}

fn check(module: &Module, inputs: &[Tensor], want: &[Numbers]) -> Result<(), String> {
    verify::verify(module).map_err(|d| d.to_string())?;
    let outputs = eval::run(module, inputs).map_err(|d| d.to_string())?;
    if outputs.len() != want.len() {
        return Err(format!("{} outputs instead of {}", outputs.len(), want.len()));
    }
    outputs.iter().zip(want).try_for_each(|(output, want)| compare(output, want))
}

fn compare(output: &Tensor, (shape, want): &Numbers) -> Result<(), String> {
    if output.shape != *shape {
        return Err(format!("shape {:?} instead of {shape:?}", output.shape));
    }
    let Data::F32(values) = &output.data else { return Err("the output is not float".into()) };
    match values.iter().zip(want).position(|(&v, &w)| !close(v.into(), w)) {
        Some(i) => Err(format!("element {i} is {} instead of {}", values[i], want[i])),
        None => Ok(()),
    }
}

fn close(v: f64, want: f64) -> bool {
    v == want || (v.is_nan() && want.is_nan()) || (v - want).abs() <= 1e-5 + 1e-3 * want.abs()
}
