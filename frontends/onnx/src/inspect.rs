//! What a model is, without importing it whole.

use std::collections::BTreeMap;
use std::path::Path;

use vitc_ir::Diagnostics;

use crate::import::{Problems, check_header, is_default_domain};
use crate::proto::{self, dtype};
use crate::{ImportError, Options};

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Element type, `float32`.
    pub elem: &'static str,
    /// Dimensions as declared: numbers, names of dynamic ones, `?`.
    pub dims: Vec<String>,
}

/// What a model is.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Inputs, without initializers.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// Opset of the default domain, 0 when none is declared.
    pub opset: i64,
    /// Version of the file format.
    pub ir_version: i64,
    /// Producer with its version.
    pub producer: String,
    /// How often each op occurs; ops of other domains as `domain.Op`.
    pub op_histogram: BTreeMap<String, usize>,
    /// Bytes of all initializers.
    pub initializer_bytes: u64,
    /// Everything that keeps the model from being imported; empty when it can be.
    pub unsupported: Diagnostics,
}

/// Reads a model and says what it is and what of it is unsupported. Only files that cannot be read are errors.
pub fn inspect_file(path: impl AsRef<Path>, options: &Options) -> Result<Inspection, ImportError> {
    let path = path.as_ref();
    let model = crate::load(path, options)?;
    let mut inspection = describe(&model);
    if let Err(e) = crate::import_model(&model, path.parent(), options) {
        inspection.unsupported = e.into_diagnostics();
    }
    Ok(inspection)
}

fn describe(model: &proto::Model) -> Inspection {
    let empty = proto::Graph::default();
    let graph = model.graph.as_ref().unwrap_or(&empty);
    let mut problems = Problems::default();
    let weights: std::collections::HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let mut op_histogram = BTreeMap::new();
    for node in &graph.node {
        let domain = if is_default_domain(&node.domain) { String::new() } else { format!("{}.", node.domain) };
        *op_histogram.entry(format!("{domain}{}", node.op_type)).or_insert(0) += 1;
    }
    Inspection {
        inputs: graph.input.iter().filter(|i| !weights.contains(i.name.as_str())).map(port).collect(),
        outputs: graph.output.iter().map(port).collect(),
        opset: check_header(model, &mut problems),
        ir_version: model.ir_version,
        producer: format!("{} {}", model.producer_name, model.producer_version).trim().to_string(),
        op_histogram,
        initializer_bytes: graph.initializer.iter().map(tensor_bytes).fold(0, u64::saturating_add),
        unsupported: Diagnostics::default(),
    }
}

fn port(info: &proto::ValueInfo) -> Port {
    let tensor = info.ty.as_ref().and_then(|t| t.tensor.as_ref());
    let dims = tensor.and_then(|t| t.shape.as_ref()).map(|s| s.dim.as_slice()).unwrap_or_default();
    let dim = |d: &proto::Dimension| match (d.value, &d.param) {
        (Some(v), _) => v.to_string(),
        (None, Some(name)) if !name.is_empty() => name.clone(),
        _ => "?".into(),
    };
    Port {
        name: info.name.clone(),
        elem: dtype::name(tensor.map_or(0, |t| t.elem_type)),
        dims: dims.iter().map(dim).collect(),
    }
}

fn tensor_bytes(tensor: &proto::Tensor) -> u64 {
    let size = match tensor.data_type {
        dtype::UINT8 | dtype::INT8 | dtype::BOOL => 1,
        dtype::UINT16 | dtype::INT16 | dtype::FLOAT16 | 16 => 2,
        dtype::INT64 | dtype::DOUBLE | 13 => 8,
        _ => 4,
    };
    let dims = tensor.dims.iter().map(|&d| u64::try_from(d).unwrap_or(0));
    dims.fold(size, u64::saturating_mul)
}
