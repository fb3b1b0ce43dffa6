//! `--against reference.npz`: values recorded elsewhere, named after ONNX values, nodes or outputs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use vitc_ir::graph::Input;
use vitc_ir::{Module, Stage};

use super::trace::{self, Measure, Traced};
use super::{Args, DIFFERENT, input};
use crate::command::{Global, say, source};
use crate::io::image::Preprocess;
use crate::io::npy::{self, Array};
use crate::io::table::{Cell, Table};
use crate::walk::preprocess_of;

type Arrays = BTreeMap<String, Array>;

/// Compares the float graph as imported, and the integer graph, with the arrays of the file.
pub(super) fn against_file(path: &Path, args: &Args, global: Global) -> Result<u8> {
    let arrays = npy::read_npz(path)?;
    let module = source::read(&args.model)?;
    let (float, integer) = match module.stage < Stage::Integerize {
        true => {
            let integer = args.compile.compiler(&module, global)?.advance(module.clone(), Stage::Integerize)?.0;
            (Some(module), integer)
        }
        false => (None, module),
    };
    let inputs = inputs_of(&integer, &arrays, args)?;
    let mut rows = Vec::new();
    if let Some(float) = &float {
        compare_graph("float", float, &inputs, &arrays, &mut rows)?;
    }
    compare_graph("integer", &integer, &inputs, &arrays, &mut rows)?;
    ensure!(!rows.is_empty(), "none of the {} arrays is named after a node or output of the model", arrays.len());
    let first = rows.iter().find(|r| r.differs(args.tolerance));
    let (table, unseen) = (table(&rows, args.tolerance), unseen(&arrays, &rows, &integer));
    let verdict = match first {
        Some(r) => format!("DIFFERENT: the float graph first leaves the tolerance at '{}' ({})", r.array, r.place),
        None => "The float graph stays within the tolerance wherever the reference says something.".into(),
    };
    let text = if global.json {
        let first = first.map(|r| r.array.as_str());
        format!("{:#}\n", json!({ "first_divergence": first, "values": table.to_json(), "not_found": unseen }))
    } else {
        let missed =
            if unseen.is_empty() { String::new() } else { format!("\nNot in the graph: {}\n", unseen.join(", ")) };
        format!("{verdict}\n\n{table}\n{missed}")
    };
    say(text.trim_end())?;
    Ok(if first.is_some() { DIFFERENT } else { 0 })
}

/// One array beside the value of a graph.
struct Row {
    graph: &'static str,
    array: String,
    place: String,
    /// Nothing when the shapes differ.
    measure: Option<Measure>,
}

impl Row {
    /// Whether it is a float value that must be the reference's and is not.
    fn differs(&self, tolerance: f64) -> bool {
        self.graph == "float" && self.measure.is_none_or(|m| m.max_abs > tolerance * m.rms)
    }
}

fn compare_graph(
    graph: &'static str,
    module: &Module,
    inputs: &Inputs,
    arrays: &Arrays,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let tensors = input::bind_all(module, &inputs.arrays, inputs.preprocess.as_ref())?;
    trace::real_values(module, &tensors, &mut |traced| {
        let named = arrays.iter().filter(|(name, _)| is_named(&traced, name));
        rows.extend(named.map(|(name, array)| row(graph, &traced, name, array)));
    })
}

fn row(graph: &'static str, traced: &Traced, name: &str, array: &Array) -> Row {
    let same = array.shape == traced.shape;
    let measure = same.then(|| Measure::of(&array.elements.to_f32(), &traced.values));
    Row { graph, array: name.to_owned(), place: traced.place.clone(), measure }
}

/// What both graphs are run on.
struct Inputs {
    arrays: Vec<Array>,
    preprocess: Option<Preprocess>,
}

/// Arrays of the file for the inputs, else what the flags say.
fn inputs_of(module: &Module, arrays: &Arrays, args: &Args) -> Result<Inputs> {
    let preprocess = preprocess_of(module)?;
    if args.input.given() {
        return Ok(Inputs { arrays: args.input.arrays(module, preprocess.as_ref())?, preprocess });
    }
    let find = |port: &Input| match arrays.get(&port.name) {
        Some(array) => Ok(array.clone()),
        None => bail!("the reference has no array for input '{}'; save it too, or give --input or --image", port.name),
    };
    Ok(Inputs { arrays: module.inputs.iter().map(find).collect::<Result<_>>()?, preprocess })
}

/// Exporters derive the names of values from those of nodes: `/a/MatMul_output_0` (TorchScript), `linear_3` of
/// `node_linear_3` (dynamo).
fn is_named(traced: &Traced, name: &str) -> bool {
    let place = traced.place.as_str();
    traced.output.as_deref() == Some(name)
        || place == name
        || name.strip_suffix("_output_0") == Some(place)
        || place.strip_prefix("node_") == Some(name)
}

fn table(rows: &[Row], tolerance: f64) -> Table {
    let mut table = Table::new(&["graph", "array", "node", "sqnr_db", "max_abs", "verdict"]);
    for r in rows {
        let verdict = match (r.graph, r.measure) {
            (_, None) => "another shape",
            ("float", Some(_)) if r.differs(tolerance) => "DIFFERENT",
            ("float", Some(_)) => "same",
            _ => "quantized",
        };
        let number = |cell: fn(&Measure) -> Cell| r.measure.as_ref().map_or(Cell::none(), cell);
        table.row([
            r.graph.into(),
            r.array.as_str().into(),
            r.place.as_str().into(),
            number(Measure::sqnr_cell),
            number(Measure::max_abs_cell),
            verdict.into(),
        ]);
    }
    table
}

fn unseen<'a>(arrays: &'a Arrays, rows: &[Row], module: &Module) -> Vec<&'a str> {
    let found = |name: &str| rows.iter().any(|r| r.array == name) || module.inputs.iter().any(|i| i.name == name);
    arrays.keys().map(String::as_str).filter(|name| !found(name)).collect()
}
