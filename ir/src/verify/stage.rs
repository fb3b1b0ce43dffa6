//! Which ops a stage accepts, and that floats stay at the doors once the graph is integer.

use super::Checker;
use crate::graph::{Def, Stage, ValueId};
use crate::op::{Class, Op};
use crate::types::Elem;

/// Whether a stage accepts an op.
fn accepts(stage: Stage, op: &Op) -> bool {
    match op.class() {
        Class::Move => true,
        Class::Float if matches!(op, Op::Normalize { .. }) => (Stage::Clean..=Stage::Quantize).contains(&stage),
        Class::Float => stage <= Stage::Quantize,
        Class::Quant => true,
        // which levels of a byte are used stands between `quantize` and `dequantize`
        Class::Int if matches!(op, Op::IntTable {}) => stage >= Stage::Quantize,
        Class::Int => stage >= Stage::Integerize,
        Class::Fused => stage >= Stage::Fuse,
    }
}

impl Checker<'_> {
    /// Every op belongs to the stage.
    pub(super) fn ops(&mut self) {
        let m = self.m;
        for (i, node) in m.nodes.iter().enumerate() {
            if !accepts(m.stage, &node.op) {
                self.at_node(i, "stage-op", format!("`{}` in stage `{}`", node.op.name(), m.stage.word()));
            }
        }
    }

    /// From `integerize` on: `quantize` only directly on a graph input, `dequantize` and movement of its result only on
    /// the way to an output.
    pub(super) fn doors(&mut self) {
        if self.m.stage < Stage::Integerize {
            return;
        }
        let leaving = self.leaving();
        let mut from_node = vec![false; self.m.values.len()];
        for (i, node) in self.m.nodes.iter().enumerate() {
            let result = node.result.0 as usize;
            from_node[result] = true;
            match node.op {
                Op::Quantize { .. } => self.entry_door(i),
                Op::Dequantize {} if !leaving[result] => {
                    self.at_node(i, "float-inside", "its result does not go to an output by movement alone");
                }
                _ => {}
            }
            // Floats that a node made are either dequantized or reported at that node.
            let outside = node.operands.iter().any(|o| !from_node[o.0 as usize]);
            if node.op.class() == Class::Move && self.m.values[result].ty.elem == Elem::F32 && outside {
                self.at_node(i, "float-inside", "moves floats that no `dequantize` made");
            }
        }
    }

    fn entry_door(&mut self, node: usize) {
        let m = self.m;
        let direct = |v: &ValueId| matches!(m.values[v.0 as usize].def, Def::Input(_));
        if !m.nodes[node].operands.iter().all(direct) {
            self.at_node(node, "float-inside", "quantizes what is not a graph input");
        }
    }

    /// Values that are outputs, or go to one by movement alone.
    fn leaving(&self) -> Vec<bool> {
        let m = self.m;
        let mut leaving = vec![false; m.values.len()];
        m.outputs.iter().for_each(|o| leaving[o.value.0 as usize] = true);
        for node in m.nodes.iter().rev() {
            if node.op.class() == Class::Move && leaving[node.result.0 as usize] {
                node.operands.iter().for_each(|o| leaving[o.0 as usize] = true);
            }
        }
        leaving
    }
}
