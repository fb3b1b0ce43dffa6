//! The verifier: collects everything that is wrong with a module of a stage.
//!
//! Codes of the violations, by the file that finds them:
//!
//! * `structure`: `value-id`, `value-def`, `order`, `duplicate-name`, `limit-nodes`, `limit-consts`, `limit-name`
//! * `types`: `operand-count`, `type-rule`, `result-type`, `movement-quant`, `missing-quant`, `quant-elem`,
//!   `quant-scale`, `quant-axis`, `quant-zero-point`, `const-data`, `limit-rank`, `limit-elements`
//! * `lanes`: `lane-form`, `lane-missing`, `lane-inputs`, `lane-input`, `lane-output`
//! * `stage`: `stage-op`, `float-inside`
//! * `plan`: `place-early`, `no-place`, `place-range`, `place-overlap`, `limit-arena`, `region-early`,
//!   `region`

pub mod limits;

mod lanes;
mod plan;
mod stage;
mod structure;
#[cfg(test)]
mod tests;
mod types;

use crate::diag::{Diagnostic, Diagnostics};
use crate::graph::{Def, Module, ValueId};
use crate::layout::Layout;
use crate::types::{Elem, Shape, TensorType};

/// Checks structure, types, stage, lane programs and plan; reports every violation at once.
///
/// What follows the values through the graph (stage, plan) is checked only when the structure is sound, and an op's
/// type rule only when its operands' types are.
pub fn verify(module: &Module) -> Result<(), Diagnostics> {
    let mut checker = Checker { m: module, found: Diagnostics::default() };
    checker.names();
    let before = checker.found.0.len();
    let sound = checker.structure();
    let structured = checker.found.0.len() == before;
    let typed = checker.types();
    checker.lanes();
    checker.ops();
    for (i, node) in module.nodes.iter().enumerate().filter(|(i, _)| sound[*i]) {
        if node.operands.iter().all(|v| typed[v.0 as usize]) {
            checker.node_type(i);
        }
        checker.node_lane(i);
    }
    if structured {
        checker.doors();
        checker.plan();
    }
    checker.found.or(())
}

/// A module being checked and what was found so far.
struct Checker<'m> {
    m: &'m Module,
    found: Diagnostics,
}

impl Checker<'_> {
    fn report(&mut self, code: &'static str, place: String, message: impl Into<String>) {
        self.found.push(Diagnostic::new(code, message).at(place));
    }

    fn at_node(&mut self, node: usize, code: &'static str, message: impl Into<String>) {
        let place = self.node_place(node);
        self.report(code, place, message);
    }

    /// `%7 int.matmul (/blocks.0/mlp/fc1/MatMul)`.
    fn node_place(&self, node: usize) -> String {
        let Some(n) = self.m.nodes.get(node) else { return format!("%{node}") };
        let loc = n.loc.as_ref().map(|l| format!(" ({l})")).unwrap_or_default();
        format!("%{node} {}{loc}", n.op.name())
    }

    fn value_place(&self, v: ValueId) -> String {
        match self.m.values.get(v.0 as usize).map(|value| value.def) {
            Some(Def::Node(n)) => self.node_place(n),
            Some(Def::Input(i)) => self.m.inputs.get(i).map_or("an input".into(), |i| format!("input {:?}", i.name)),
            Some(Def::Const(c)) => self.m.consts.get(c).map_or("a constant".into(), |c| format!("const {:?}", c.name)),
            None => format!("value {}", v.0),
        }
    }
}

/// Element type and shape, for messages.
fn brief(ty: &TensorType) -> String {
    format!("tensor<{}{}>", ty.shape, ty.elem)
}

fn brief_shape(shape: &Shape) -> String {
    let dims: Vec<_> = shape.0.iter().map(|d| d.to_string()).collect();
    format!("[{}]", dims.join(", "))
}

/// Bytes of a constant of this type in this layout, or why there is no such constant. Leading dimensions of a packed
/// constant are separate matrices.
pub(crate) fn stored_len(ty: &TensorType, layout: Option<Layout>) -> Result<usize, String> {
    let many = || "a constant with too many elements".to_string();
    let dims = ty.shape.as_fixed().ok_or("a constant's shape cannot depend on the batch")?;
    let plain = ty.bytes().and_then(|d| d.as_fixed()).ok_or_else(many)?;
    let Some(layout) = layout else { return Ok(plain) };
    let few = layout.bits() < 8;
    if few && ty.elem != Elem::I8 {
        return Err(format!("elements of less than a byte are of i8, not of {}", ty.elem));
    }
    if ty.elem.bytes() != 1 || !(1..=limits::PANEL).contains(&layout.columns()) {
        return Err(format!("dot4 packs bytes in panels of 1 to {} columns", limits::PANEL));
    }
    if !(1..=8).contains(&layout.bits()) || !layout.is_panels() && !few {
        return Err(format!("elements of 1 to 7 bits are packed, not of {}", layout.bits()));
    }
    if let Layout::Groups { rows: 0, .. } = layout {
        return Err("a group has at least one row".into());
    }
    let (matrices, k, n) = layout.matrices(&dims).ok_or("a packed constant has at least two dimensions")?;
    layout.checked_len(k, n).and_then(|len| len.checked_mul(matrices)).ok_or_else(many)
}
