//! The compiled code beside the evaluator: both must give the same integers.

use std::collections::HashMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use vitc_codegen::Tier;
use vitc_ir::eval::{self, Data, Tensor};
use vitc_ir::graph::{Def, Output};
use vitc_ir::{Class, Elem, Module, Op, ValueId};
use vitc_runtime::{OutputForm, Session, SessionOptions, TensorView};

use crate::io::progress::Progress;
use crate::model::Emitted;

/// Where an output of the compiled code first differs from the evaluator's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Divergence {
    output: String,
    element: usize,
    compiled: i64,
    evaluated: i64,
}

impl Divergence {
    /// The lowest bit that differs.
    fn bit(&self) -> u32 {
        (self.compiled ^ self.evaluated).trailing_zeros()
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "output": self.output,
            "element": self.element,
            "bit": self.bit(),
            "compiled": self.compiled,
            "evaluated": self.evaluated,
        })
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Divergence { output, element, compiled, evaluated } = self;
        write!(
            f,
            "element {element} of output '{output}' is {compiled}, the evaluator says {evaluated} (bit {})",
            self.bit()
        )
    }
}

/// The first difference in the integers of the outputs, before they are dequantized at the door.
pub(super) fn first_divergence(plan: &Module, inputs: &[Tensor], threads: usize) -> Result<Option<Divergence>> {
    let wanted: Vec<ValueId> = plan.outputs.iter().map(|o| integer_of(plan, o.value)).collect();
    let mut evaluated = HashMap::new();
    let outputs = eval::trace(plan, inputs, &mut |value, tensor| {
        if wanted.contains(&value) {
            evaluated.insert(value, tensor.clone());
        }
    })
    .context("the plan cannot be evaluated")?;
    let compiled = execute(plan, inputs, threads)?;
    for (((output, value), found), real) in plan.outputs.iter().zip(&wanted).zip(&compiled).zip(&outputs) {
        let truth = evaluated.get(value).filter(|t| t.elem() == found.elem()).unwrap_or(real);
        ensure!(truth.data.len() == found.data.len(), "output '{}' has another size than the evaluator's", output.name);
        if let Some(element) = first_difference(truth, found) {
            let (compiled, evaluated) = (bits(found)[element], bits(truth)[element]);
            return Ok(Some(Divergence { output: output.name.clone(), element, compiled, evaluated }));
        }
    }
    Ok(None)
}

/// The integers behind an output: the operand of the `dequantize` at the door.
fn integer_of(plan: &Module, value: ValueId) -> ValueId {
    match plan.node_of(value) {
        Some(node) if matches!(node.op, Op::Dequantize {}) => node.operands[0],
        _ => value,
    }
}

fn first_difference(a: &Tensor, b: &Tensor) -> Option<usize> {
    bits(a).iter().zip(&bits(b)).position(|(a, b)| a != b)
}

/// Elements as integers; those of floats are their bits.
fn bits(tensor: &Tensor) -> Vec<i64> {
    match &tensor.data {
        Data::F32(values) => values.iter().map(|v| i64::from(v.to_bits())).collect(),
        _ => tensor.to_ints(),
    }
}

/// The node whose result first differs, found by ending the plan after each kernel in turn. Slow, and only needed when
/// something is wrong.
pub(super) fn first_divergent_node(
    plan: &Module,
    inputs: &[Tensor],
    threads: usize,
    progress: &Progress,
) -> Result<Option<String>> {
    let mut known = HashMap::new();
    eval::trace(plan, inputs, &mut |value, tensor| {
        known.insert(value, tensor.clone());
    })?;
    for (n, node) in plan.nodes.iter().enumerate() {
        progress.advance(1);
        if node.place.is_none() || matches!(node.op.class(), Class::Quant) {
            continue;
        }
        // a value that cannot be an output is judged by those after it
        let Ok(found) = execute(&cut(plan, n), inputs, threads) else { continue };
        if known.get(&node.result).is_some_and(|truth| first_difference(truth, &found[0]).is_some()) {
            let loc = node.loc.as_deref().unwrap_or("no ONNX node");
            return Ok(Some(format!("%{n} {} ({loc})", node.op.name())));
        }
    }
    Ok(None)
}

/// The plan up to and with node `last`, whose result is its only output. Values and constants are numbered in the order in
/// which they were made, so what comes later can be cut off.
fn cut(plan: &Module, last: usize) -> Module {
    let value = plan.nodes[last].result;
    let mut part = plan.clone();
    part.nodes.truncate(last + 1);
    part.values.truncate(value.0 as usize + 1);
    let consts = part.values.iter().filter(|v| matches!(v.def, Def::Const(_))).count();
    part.consts.truncate(consts);
    part.outputs = vec![Output { name: "cut".into(), value }];
    part
}

/// Runs the compiled plan; outputs in the program's own element types.
pub(super) fn execute(plan: &Module, inputs: &[Tensor], threads: usize) -> Result<Vec<Tensor>> {
    let program = Emitted::of(plan, Tier::best())?.program;
    let mut session = Session::new(program, SessionOptions { threads, ..SessionOptions::default() })?;
    let views: Vec<TensorView<'_>> = inputs.iter().map(view).collect::<Result<_>>()?;
    session.run(&views, OutputForm::Raw)?.iter().map(tensor_of).collect()
}

fn view(tensor: &Tensor) -> Result<TensorView<'_>> {
    use vitc_runtime::Elem as Run;
    let elem = match tensor.elem() {
        Elem::F32 => Run::F32,
        Elem::U8 => Run::U8,
        Elem::I8 => Run::I8,
        Elem::I16 => Run::I16,
        Elem::I32 => Run::I32,
        Elem::I64 => Run::I64,
        Elem::Bool => bail!("a compiled model takes no booleans"),
    };
    Ok(TensorView::new(elem, &tensor.shape, tensor.data.as_bytes())?)
}

fn tensor_of(tensor: &vitc_runtime::Tensor) -> Result<Tensor> {
    use vitc_runtime::Elem as Run;
    let data = match tensor.elem() {
        Run::F32 => Data::F32(tensor.to_vec()?),
        Run::U8 => Data::U8(tensor.to_vec()?),
        Run::I8 => Data::I8(tensor.to_vec()?),
        Run::I16 => Data::I16(tensor.to_vec()?),
        Run::I32 => Data::I32(tensor.to_vec()?),
        Run::I64 => Data::I64(tensor.to_vec()?),
        Run::U16 => bail!("no op yields u16"),
    };
    Tensor::new(tensor.dims(), data).context("the runtime's tensor is not whole")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::Calibration;
    use crate::compiler::Compiler;

    #[test]
    fn a_plan_cut_after_a_kernel_gives_what_the_evaluator_saw_there() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/model.onnx");
        let plan =
            Compiler::new().calibration(Calibration::Synthetic { images: 1 }).compile_file(model).unwrap().module;
        let shape = plan.ty(plan.inputs[0].value).shape.at(1);
        let bytes = (0..shape.iter().product()).map(|i: usize| (i * 37 % 256) as i64);
        let input = [Tensor::ints(Elem::U8, &shape, bytes)];
        let mut known = HashMap::new();
        eval::trace(&plan, &input, &mut |value, tensor| drop(known.insert(value, tensor.clone()))).unwrap();
        let placed = |n: &usize| plan.nodes[*n].place.is_some();
        for n in (0..plan.nodes.len()).filter(placed).step_by(7) {
            let found = execute(&cut(&plan, n), &input, 1).unwrap();
            assert_eq!(first_difference(&known[&plan.nodes[n].result], &found[0]), None, "node {n}");
        }
        assert_eq!(first_divergence(&plan, &input, 2).unwrap(), None);
        assert_eq!(first_divergent_node(&cut(&plan, 12), &input, 1, &Progress::new("", 0, true)).unwrap(), None);
    }

    #[test]
    fn a_divergence_names_the_lowest_bit() {
        let d = Divergence { output: "y".into(), element: 3, compiled: 0b1100, evaluated: 0b1000 };
        assert_eq!(d.to_string(), "element 3 of output 'y' is 12, the evaluator says 8 (bit 2)");
        let (a, b) = (Tensor::f32(&[2], vec![0.0, 0.0]), Tensor::f32(&[2], vec![0.0, -0.0]));
        assert_eq!(first_difference(&a, &b), Some(1));
    }
}
