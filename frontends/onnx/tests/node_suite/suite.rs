//! Finds the suite and reads its cases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use onnx_protobuf::{Message, ModelProto, TensorProto};

/// Asks the package where its data is.
const WHERE: &str = "import onnx, os; print(os.path.join(os.path.dirname(onnx.__file__), 'backend/test/data/node'))";

/// One case: a model with the tensors that go in and come out. A port that is no tensor (a sequence, an optional) has none.
pub struct Case {
    pub name: String,
    /// The op that it tests, also when the model has it written out as other ops.
    pub op: String,
    /// The op is written out as other ops: its body as a function.
    pub expanded: bool,
    pub model: ModelProto,
    pub inputs: Vec<Option<TensorProto>>,
    pub outputs: Vec<Option<TensorProto>>,
}

/// The folder of the suite, or why there is none.
pub fn folder() -> Result<PathBuf, String> {
    if let Some(folder) = std::env::var_os("VITC_ONNX_NODE_TESTS").map(PathBuf::from) {
        let there = folder.is_dir();
        return if there { Ok(folder) } else { Err("VITC_ONNX_NODE_TESTS names no folder".into()) };
    }
    let python = std::env::var("VITC_PYTHON").unwrap_or_else(|_| "python3".into());
    let output = Command::new(&python).args(["-c", WHERE]).output().map_err(|e| format!("{python}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{python} has no package `onnx`, and VITC_ONNX_NODE_TESTS is not set"));
    }
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if folder.is_dir() {
        Ok(folder)
    } else {
        Err("this version of the package `onnx` comes without its node tests".into())
    }
}

/// Every case, by name.
pub fn cases(folder: &Path) -> BTreeMap<String, Case> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut cases: BTreeMap<String, Case> =
        entries.filter(|p| p.join("model.onnx").is_file()).map(|p| case(&p)).map(|c| (c.name.clone(), c)).collect();
    let ops: BTreeMap<String, String> = cases.values().map(|c| (c.name.clone(), c.op.clone())).collect();
    for case in cases.values_mut() {
        if let Some((original, _)) = case.name.split_once("_expanded") {
            case.expanded = true;
            case.op = ops.get(original).cloned().unwrap_or_default();
        }
    }
    cases
}

fn case(folder: &Path) -> Case {
    let model = ModelProto::parse_from_bytes(&std::fs::read(folder.join("model.onnx")).unwrap()).unwrap();
    let (inputs, outputs): (Vec<bool>, Vec<bool>) = {
        let is_tensor = |v: &onnx_protobuf::ValueInfoProto| v.type_.has_tensor_type();
        (model.graph.input.iter().map(is_tensor).collect(), model.graph.output.iter().map(is_tensor).collect())
    };
    let data = folder.join("test_data_set_0");
    let read = |what: &str, tensors: Vec<bool>| {
        let one = |(i, is_tensor)| if is_tensor { tensor(&data.join(format!("{what}_{i}.pb"))) } else { None };
        tensors.into_iter().enumerate().map(one).collect()
    };
    Case {
        name: folder.file_name().unwrap().to_string_lossy().into_owned(),
        op: model.graph.node.first().map_or(String::new(), |n| n.op_type.clone()),
        expanded: false,
        inputs: read("input", inputs),
        outputs: read("output", outputs),
        model,
    }
}

fn tensor(file: &Path) -> Option<TensorProto> {
    TensorProto::parse_from_bytes(&std::fs::read(file).ok()?).ok()
}

/// The elements of a tensor as numbers, when its type has a number for each.
pub fn numbers(t: &TensorProto) -> Option<Vec<f64>> {
    fn each<const SIZE: usize>(bytes: &[u8], f: impl Fn([u8; SIZE]) -> f64) -> Vec<f64> {
        bytes.as_chunks::<SIZE>().0.iter().map(|&c| f(c)).collect()
    }
    let raw = &t.raw_data;
    let small = || t.int32_data.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    Some(match (t.data_type, raw.is_empty()) {
        (1, false) => each(raw, |b| f32::from_le_bytes(b).into()),
        (1, true) => t.float_data.iter().map(|&v| v.into()).collect(),
        (11, false) => each(raw, f64::from_le_bytes),
        (11, true) => t.double_data.clone(),
        (7, false) => each(raw, |b| i64::from_le_bytes(b) as f64),
        (7, true) => t.int64_data.iter().map(|&v| v as f64).collect(),
        (6, false) => each(raw, |b| i32::from_le_bytes(b).into()),
        (2 | 9, false) => raw.iter().map(|&v| v.into()).collect(),
        (3, false) => raw.iter().map(|&v| f64::from(v as i8)).collect(),
        (4, false) => each(raw, |b| u16::from_le_bytes(b).into()),
        (5, false) => each(raw, |b| i16::from_le_bytes(b).into()),
        (10, false) => each(raw, |b| half(u16::from_le_bytes(b))),
        (10, true) => t.int32_data.iter().map(|&v| half(v as u16)).collect(),
        (16, false) => each(raw, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16).into()),
        (12, false) => each(raw, |b| u32::from_le_bytes(b).into()),
        (13, false) => each(raw, |b| u64::from_le_bytes(b) as f64),
        (12 | 13, true) => t.uint64_data.iter().map(|&v| v as f64).collect(),
        (2..=6 | 9, true) => small(),
        _ => return None,
    })
}

/// The value of an IEEE half.
fn half(bits: u16) -> f64 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
    sign * match exponent {
        0 => fraction * 2f64.powi(-14),
        31 if fraction > 0.0 => f64::NAN,
        31 => f64::INFINITY,
        e => (1.0 + fraction) * 2f64.powi(e - 15),
    }
}
