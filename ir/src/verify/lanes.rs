//! Lane programs, and how they sit on the ops that carry them.

use super::{Checker, brief_shape};
use crate::graph::Node;
use crate::infer::broadcast;
use crate::lane::{Access, Input, Program};
use crate::op::Op;
use crate::types::{Dim, Elem, Shape, TensorType};

impl Checker<'_> {
    /// Every lane program by itself.
    pub(super) fn lanes(&mut self) {
        let m = self.m;
        for (name, program) in &m.lanes {
            if let Err(e) = form(program) {
                self.report("lane-form", format!("lane {name:?}"), e);
            }
        }
    }

    /// The lane program of a node fits its operands and its result.
    pub(super) fn node_lane(&mut self, node: usize) {
        let (m, n) = (self.m, &self.m.nodes[node]);
        let Some(name) = n.op.lane() else { return };
        let Some(program) = m.lanes.get(&name.0) else {
            return self.at_node(node, "lane-missing", format!("there is no lane program {:?}", name.0));
        };
        let result = m.ty(n.result);
        if program.output != result.elem {
            let message = format!("the lane program yields {}, the op {}", program.output, result.elem);
            self.at_node(node, "lane-output", message);
        }
        let inputs = lane_inputs(self, n);
        if inputs.len() != program.inputs.len() {
            let message = format!("the lane program has {} inputs, the op {}", program.inputs.len(), inputs.len());
            return self.at_node(node, "lane-inputs", message);
        }
        let channel = n.op.lane_channel(result.shape.rank());
        let channels = result.shape.0.get(channel).and_then(|d| d.as_fixed());
        for (i, (given, wanted)) in inputs.iter().zip(&program.inputs).enumerate() {
            if let Err(e) = fits(given, wanted, &result.shape, channels) {
                self.at_node(node, "lane-input", format!("lane input {i}: {e}"));
            }
        }
    }
}

/// Inputs and output are integers, and the instructions are well-formed.
fn form(program: &Program) -> Result<(), String> {
    if let Some(i) = program.inputs.iter().position(|i| !i.elem.is_int()) {
        return Err(format!("input {i} is not an integer"));
    }
    if program.inputs.iter().any(|i| i.access == Access::Table && i.elem == Elem::I64) {
        return Err("a table of i64: entries have 32 bits at most".into());
    }
    if !program.output.is_int() {
        return Err(format!("a lane program cannot yield {}", program.output));
    }
    program.widths().map(|_| ())
}

/// What a lane program is given: the accumulator (`None`), then operands.
fn lane_inputs<'a>(checker: &Checker<'a>, n: &Node) -> Vec<Option<&'a TensorType>> {
    let m = checker.m;
    let operands = n.operands.iter().map(|&v| Some(m.ty(v)));
    match n.op {
        Op::FusedMap { .. } => operands.collect(),
        _ => std::iter::once(None).chain(operands.skip(2)).collect(),
    }
}

fn fits(given: &Option<&TensorType>, wanted: &Input, result: &Shape, channels: Option<usize>) -> Result<(), String> {
    let Some(ty) = given else {
        let accumulator = Input { elem: Elem::I32, access: Access::Element };
        return if *wanted == accumulator { Ok(()) } else { Err("the accumulator is `i32 element`".into()) };
    };
    if ty.elem != wanted.elem {
        return Err(format!("the operand is {}, the lane program wants {}", ty.elem, wanted.elem));
    }
    let count = ty.shape.count();
    let ok = match wanted.access {
        Access::Element => broadcast(&ty.shape, result).is_ok_and(|joint| joint == *result),
        Access::Channel => channels.is_some() && count.and_then(Dim::as_fixed) == channels,
        Access::Row => is_rows(&ty.shape, result),
        Access::Scalar => count == Some(Dim::fixed(1)),
        Access::Table => count == Some(Dim::fixed(256)),
    };
    let word = Access::WORDS.iter().find(|(a, _)| *a == wanted.access).map_or("", |(_, w)| w);
    let shapes = || format!("{} as `{word}` of {}", brief_shape(&ty.shape), brief_shape(result));
    if ok { Ok(()) } else { Err(shapes()) }
}

/// The result's shape with last dimension 1.
fn is_rows(shape: &Shape, result: &Shape) -> bool {
    match (shape.0.split_last(), result.0.split_last()) {
        (Some((last, lead)), Some((_, wanted))) => *last == Dim::fixed(1) && lead == wanted,
        _ => false,
    }
}
