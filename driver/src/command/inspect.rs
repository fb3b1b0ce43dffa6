//! `vitc inspect`: what a model contains and whether it can be compiled, without compiling it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vitc_ir::{Diagnostic, Diagnostics, Module, Node, Op, Stage, TensorType, text};
use vitc_passes::quantize;

use super::source::{self, Kind};
use super::{Global, say};
use crate::artifact;
use crate::calibrate::Calibration;
use crate::compiler::Compiler;
use crate::error::Failure;
use crate::io::table::{Cell, Record, Table};
use crate::walk::preprocess_of;

/// Options of `vitc inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitc inspect deit.onnx             inputs, outputs, ops, and everything that is not supported
  vitc inspect deit.onnx --support   lower it too, on noise: finds ops that import but have no integer form
  vitc inspect deit.vitc             preprocessing, constants and content hash of an artifact; bits and bytes of its weights

Exit status: 0 when the model can be compiled, 2 when it uses something unsupported, 1 when it cannot be read.")]
pub struct Args {
    /// An ONNX model, a `.vir` text or a `.vitc` artifact.
    model: PathBuf,
    /// Also lower an ONNX model to integers, calibrated on noise, to find what has no integer form.
    #[arg(long, visible_alias = "support")]
    deep: bool,
}

/// Runs the verb; the exit status.
pub fn run(args: Args, global: Global) -> Result<u8> {
    let facts = match source::kind_of(&args.model)? {
        Kind::Onnx => of_onnx(&args.model, args.deep)?,
        kind => of_module(&args.model, kind)?,
    };
    say(facts.render(global.json).trim_end())?;
    Ok(if facts.unsupported.0.is_empty() { 0 } else { 2 })
}

/// What there is to tell of a model.
struct Facts {
    record: Record,
    ports: Table,
    ops: BTreeMap<String, usize>,
    /// Weights of products and convolutions.
    layers: Table,
    unsupported: Diagnostics,
}

impl Facts {
    fn new() -> Facts {
        Facts {
            record: Record::new(),
            ports: Table::new(&["direction", "name", "type", "shape"]),
            ops: BTreeMap::new(),
            layers: Table::new(&["layer", "op", "weights", "bits", "bytes"]),
            unsupported: Diagnostics::default(),
        }
    }

    fn port(&mut self, direction: &str, name: &str, elem: &str, shape: String) {
        self.ports.row([direction.into(), name.into(), elem.into(), shape.into()]);
    }

    /// Notes the weights of a node that has some: their bits are those that the layout stores, their bytes those of the file.
    fn layer(&mut self, module: &Module, node: &Node) {
        let product = matches!(
            node.op,
            Op::IntMatMul { .. } | Op::FusedMatMul { .. } | Op::IntConv2d { .. } | Op::FusedConv2d { .. }
        );
        let Some(weights) = node.operands.get(1).and_then(|&w| module.const_of(w)).filter(|_| product) else { return };
        let bits = weights.layout.map_or(8.0 * weights.ty.elem.bytes() as f64, |layout| layout.mean_bits());
        let name = node.loc.as_deref().unwrap_or(&weights.name);
        self.layers.row([
            name.into(),
            node.op.name().into(),
            shape_text(&weights.ty).into(),
            Cell::number(bits, if bits.fract() == 0.0 { 0 } else { 2 }),
            weights.data.len().into(),
        ]);
    }

    fn histogram(&self) -> Table {
        let mut table = Table::new(&["op", "count"]);
        for (op, count) in &self.ops {
            table.row([op.as_str().into(), (*count).into()]);
        }
        table
    }

    fn render(&self, as_json: bool) -> String {
        if as_json { format!("{:#}\n", self.to_json()) } else { self.to_text() }
    }

    fn to_json(&self) -> Value {
        let problem = |d: &Diagnostic| json!({ "code": d.code, "message": d.message, "node": d.place, "help": d.help });
        let mut object = self.record.to_json();
        object["ports"] = self.ports.to_json();
        object["ops"] = json!(self.ops);
        object["layers"] = self.layers.to_json();
        object["unsupported"] = self.unsupported.0.iter().map(problem).collect();
        object
    }

    fn to_text(&self) -> String {
        let mut text = format!("{}\n\n{}\n\n{}\n", self.record, self.ports, self.histogram());
        if !self.layers.is_empty() {
            text += &format!("\n{}\n", self.layers);
        }
        if !self.unsupported.0.is_empty() {
            text += &format!(
                "\n{} problems keep this model from being compiled:\n{}\n",
                self.unsupported.0.len(),
                self.unsupported
            );
        }
        text
    }
}

fn of_onnx(path: &Path, deep: bool) -> Result<Facts> {
    let found = vitc_onnx::inspect_file(path, &vitc_onnx::Options::default())
        .with_context(|| format!("cannot inspect {}", path.display()))?;
    let mut facts = Facts::new();
    facts
        .record
        .field("format", "onnx")
        .field("opset", found.opset.max(0) as u64)
        .field("ir_version", found.ir_version.max(0) as u64)
        .field("producer", found.producer.as_str())
        .field("parameter_bytes", found.initializer_bytes);
    for (direction, ports) in [("input", &found.inputs), ("output", &found.outputs)] {
        for p in ports {
            facts.port(direction, &p.name, p.elem, format!("[{}]", p.dims.join(", ")));
        }
    }
    facts.ops = found.op_histogram;
    facts.unsupported = found.unsupported;
    if facts.unsupported.0.is_empty() {
        facts.unsupported = beyond_import(path, deep, &mut facts.record)?;
    }
    Ok(facts)
}

/// Notes where the quantization of a quantized model comes from, and which outputs the model has that the module has not.
fn notes(module: &Module, record: &mut Record) {
    if let Some(ranks) = module.meta.get("onnx.ranks") {
        record.field("not_ranked", ranks.as_str());
    }
    if let Some(counts) = quantize::counts_of(module) {
        record.field("quantization_given", counts.given).field("quantization_calibrated", counts.calibrated);
    }
}

/// What a model that imports still lacks: the float rooms need no calibration; `deep` lowers it on noise.
fn beyond_import(path: &Path, deep: bool, record: &mut Record) -> Result<Diagnostics> {
    let compiler = Compiler::new().calibration(Calibration::Synthetic { images: 1 });
    let to = if deep { Stage::Plan } else { Stage::Shape };
    match compiler.advance(compiler.import(path)?, to) {
        Ok((module, _)) => {
            notes(&module, record);
            Ok(Diagnostics::default())
        }
        Err(e) => match e.downcast::<Failure>()? {
            Failure::Unsupported(found) => Ok(found),
            other => Err(other.into()),
        },
    }
}

fn of_module(path: &Path, kind: Kind) -> Result<Facts> {
    let module = source::read(path)?;
    let mut facts = Facts::new();
    facts
        .record
        .field("format", if kind == Kind::Artifact { "vitc artifact" } else { "vir text" })
        .field("name", module.name.as_str())
        .field("stage", module.stage.word())
        .field("constant_bytes", module.consts.iter().map(|c| c.data.len()).sum::<usize>())
        .field("arena_bytes_per_image", module.arena)
        .field("content_hash", content_hash(&module)?);
    let preprocess = preprocess_of(&module)?.map_or("none".to_owned(), |p| p.to_string());
    facts.record.field("preprocessing", preprocess);
    notes(&module, &mut facts.record);
    let ports = module.inputs.iter().map(|i| ("input", &i.name, i.value));
    for (direction, name, value) in ports.chain(module.outputs.iter().map(|o| ("output", &o.name, o.value))) {
        let ty = module.ty(value);
        facts.port(direction, name, ty.elem.name(), shape_text(ty));
    }
    for node in &module.nodes {
        *facts.ops.entry(node.op.name().to_owned()).or_default() += 1;
        facts.layer(&module, node);
    }
    Ok(facts)
}

/// The hash of an artifact with this content; for earlier stages, of text and constants.
fn content_hash(module: &Module) -> Result<String> {
    if module.stage == Stage::Plan {
        return artifact::content_hash(&artifact::to_bytes(module)?).context("an artifact has a content hash");
    }
    let printed = text::print(module);
    Ok(blake3::Hasher::new().update(printed.text.as_bytes()).update(&printed.blob).finalize().to_hex().to_string())
}

fn shape_text(ty: &TensorType) -> String {
    let dims: Vec<String> = ty.shape.0.iter().map(|d| d.to_string()).collect();
    format!("[{}]", dims.join(", "))
}
