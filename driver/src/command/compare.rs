//! `vitc compare`: the compiled model against the evaluator, bit for bit, and the integer graph against the float graph or
//! recorded values, node by node.

mod input;
mod machine;
mod reference;
mod trace;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vitc_ir::eval::Tensor;
use vitc_ir::{Module, Stage};

use super::source::{self, CompileFlags};
use super::{Global, say};
use crate::compiler::Compiler;
use crate::io::progress::Progress;
use crate::io::table::{Cell, Table};
use crate::walk::preprocess_of;
use trace::Measure;

/// Exit status when the two sides differ where they must not.
const DIFFERENT: u8 = 3;
/// Nodes marked as the worst.
const WORST: usize = 10;

/// Options of `vitc compare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitc compare deit.vitc --against eval                                      is the machine code right, bit for bit?
  vitc compare deit.onnx --calibrate images/ --against eval --image cat.jpg  and which node loses precision?
  vitc compare deit.onnx --calibrate images/ --against reference.npz         arrays named after ONNX values or nodes

Exit status: 3 when the compiled code differs from the evaluator in any bit, or the float graph from the reference.")]
pub struct Args {
    /// An ONNX model, a `.vir` text or a `.vitc` artifact.
    model: PathBuf,
    /// `eval` for the evaluator of vitc, or a `.npz` file of recorded values.
    #[arg(long, value_name = "eval|FILE.npz")]
    against: String,
    #[command(flatten)]
    input: input::InputFlags,
    /// Largest difference of a float value from the reference, as a share of the reference's root mean square.
    #[arg(long, value_name = "SHARE", default_value_t = 1e-3)]
    tolerance: f64,
    #[command(flatten)]
    compile: CompileFlags,
}

/// Runs the verb; the exit status.
pub fn run(args: Args, global: Global) -> Result<u8> {
    ensure!(args.tolerance >= 0.0, "--tolerance {} is negative", args.tolerance);
    match args.against.as_str() {
        "eval" => against_eval(&args, global),
        file => reference::against_file(Path::new(file), &args, global),
    }
}

/// A model at the stages that are compared.
struct Stages {
    /// The float graph, when the model was read early enough.
    float: Option<Module>,
    /// The integer graph before fusion, when the model was read early enough.
    integer: Option<Module>,
    plan: Module,
}

impl Stages {
    fn read(args: &Args, global: Global) -> Result<Stages> {
        let module = source::read(&args.model)?;
        if module.stage == Stage::Plan {
            return Ok(Stages { float: None, integer: None, plan: module });
        }
        let compiler = args.compile.compiler(&module, global)?;
        Stages::walk(module, &compiler)
    }

    fn walk(module: Module, compiler: &Compiler) -> Result<Stages> {
        let advance = |module: Module, to| compiler.advance(module, to).map(|(module, _)| module);
        let (module, float) = match module.stage <= Stage::Shape {
            true => advance(module, Stage::Shape).map(|m| (m.clone(), Some(m)))?,
            false => (module, None),
        };
        let (module, integer) = match module.stage <= Stage::Integerize {
            true => advance(module, Stage::Integerize).map(|m| (m.clone(), Some(m)))?,
            false => (module, None),
        };
        Ok(Stages { float, integer, plan: advance(module, Stage::Plan)? })
    }
}

fn against_eval(args: &Args, global: Global) -> Result<u8> {
    let stages = Stages::read(args, global)?;
    let p = preprocess_of(&stages.plan)?;
    let arrays = args.input.arrays(&stages.plan, p.as_ref())?;
    let inputs = input::bind_all(&stages.plan, &arrays, p.as_ref())?;
    let threads = args.compile.thread_count();
    let divergence = machine::first_divergence(&stages.plan, &inputs, threads)?;
    let node = match &divergence {
        Some(_) => machine::first_divergent_node(&stages.plan, &inputs, threads, &progress(&stages.plan, global))?,
        None => None,
    };
    let nodes = match (&stages.float, &stages.integer) {
        (Some(float), Some(integer)) => {
            Some(node_noise((float, &input::bind_all(float, &arrays, p.as_ref())?), (integer, &inputs))?)
        }
        _ => None,
    };
    let report = Report { divergence, node, nodes, outputs: stages.plan.outputs.len() };
    say(report.render(global.json).trim_end())?;
    Ok(if report.divergence.is_some() { DIFFERENT } else { 0 })
}

fn progress(plan: &Module, global: Global) -> Progress {
    Progress::new("looking for the first divergent node", plan.nodes.len(), global.quiet || global.json)
}

/// One integer value beside the float value of the same ONNX node.
struct NodeNoise {
    place: String,
    op: &'static str,
    measure: Measure,
}

/// Evaluates both graphs and compares every computed integer value that has a float counterpart of the same shape.
///
/// Several values may come from one ONNX node (the parts of a `Split`); of those the nearest is the counterpart.
fn node_noise(float: (&Module, &[Tensor]), integer: (&Module, &[Tensor])) -> Result<Vec<NodeNoise>> {
    let mut truths: HashMap<String, Vec<trace::Traced>> = HashMap::new();
    trace::real_values(float.0, float.1, &mut |t| truths.entry(t.place.clone()).or_default().push(t))
        .context("the float graph cannot be evaluated")?;
    let mut nodes = Vec::new();
    trace::real_values(integer.0, integer.1, &mut |t| {
        let twins = truths.get(&t.place).into_iter().flatten().filter(|f| !t.moves && f.shape == t.shape);
        let measures = twins.map(|f| Measure::of(&f.values, &t.values));
        if let Some(measure) = measures.max_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db)) {
            nodes.push(NodeNoise { measure, place: t.place, op: t.op });
        }
    })
    .context("the integer graph cannot be evaluated")?;
    Ok(nodes)
}

/// What `--against eval` found.
struct Report {
    divergence: Option<machine::Divergence>,
    node: Option<String>,
    nodes: Option<Vec<NodeNoise>>,
    outputs: usize,
}

impl Report {
    fn render(&self, as_json: bool) -> String {
        if as_json {
            return format!("{:#}\n", self.to_json());
        }
        let nodes = match &self.nodes {
            Some(nodes) => format!(
                "\nNoise of each integer value against the float graph (* = the worst {WORST})\n\n{}\n",
                table(nodes)
            ),
            None => "\nThe model is past the float graph, so there is nothing to compare its nodes with.\n".into(),
        };
        format!("{}\n{nodes}", self.verdict())
    }

    fn verdict(&self) -> String {
        match (&self.divergence, &self.node) {
            (None, _) => {
                let outputs = if self.outputs == 1 { "its output" } else { "all outputs" };
                format!("The compiled code equals the evaluator bit for bit, in {outputs}.")
            }
            (Some(d), Some(node)) => format!("DIFFERENT: {d}\nFirst divergent node: {node}"),
            (Some(d), None) => format!("DIFFERENT: {d}\nNo single node differs on its own."),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "identical": self.divergence.is_none(),
            "outputs": self.outputs,
            "divergence": self.divergence.as_ref().map(machine::Divergence::to_json),
            "first_divergent_node": self.node,
            "nodes": self.nodes.as_ref().map(|n| table(n).to_json()),
        })
    }
}

fn table(nodes: &[NodeNoise]) -> Table {
    let mut ranked: Vec<f64> = nodes.iter().map(|n| n.measure.sqnr_db).collect();
    ranked.sort_by(f64::total_cmp);
    let limit = ranked.get(WORST.min(ranked.len()).wrapping_sub(1)).copied().unwrap_or(f64::NEG_INFINITY);
    let mut table = Table::new(&["worst", "node", "op", "sqnr_db", "max_abs"]);
    for n in nodes {
        let worst = n.measure.sqnr_db <= limit;
        table.row([
            Cell::shown_as(if worst { "*" } else { "" }, worst),
            n.place.as_str().into(),
            n.op.into(),
            n.measure.sqnr_cell(),
            n.measure.max_abs_cell(),
        ]);
    }
    table
}
