//! Regions of a plan: runs of steps through which each thread carries its own rows without waiting for the others.
//!
//! The *rows* of a value are all its dimensions but the last, in row-major order. Every step of a region computes a value
//! of as many rows as the region has, threads share the rows of all these steps alike, and they meet after the last one
//! only. So what a step of a region makes may be read inside the region by nothing but the same row of a later step;
//! what was made before the region may be read anywhere. And since one thread may be at the end of the region while
//! another is at its start, whatever is used in a region stays in use to its end.

use std::collections::HashMap;

use crate::graph::{Def, Module, Node, ValueId};
use crate::lane::Access;
use crate::op::Op;
use crate::types::{Dim, Shape};

/// All dimensions but the last as one; `None` for a scalar, on overflow or when the batch would be squared.
pub fn rows(shape: &Shape) -> Option<Dim> {
    let (_, rows) = shape.0.split_last()?;
    rows.iter().try_fold(Dim::fixed(1), |acc, &d| acc.times(d))
}

/// For each node, the last node of its region, which is itself where there is none.
pub fn ends(module: &Module) -> Vec<usize> {
    let regions = || module.nodes.iter().enumerate().filter_map(|(i, n)| n.region.map(|r| (r, i)));
    let last: HashMap<usize, usize> = regions().collect();
    let mut ends: Vec<usize> = (0..module.nodes.len()).collect();
    regions().for_each(|(region, i)| ends[i] = last[&region]);
    ends
}

/// Which steps of a module may follow each other without waiting.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'m> {
    module: &'m Module,
    /// For each node, whether it is no step: its users read its operand in place.
    views: &'m [bool],
}

impl<'m> Rules<'m> {
    /// The rules for a module in which the nodes of `views` take no step.
    pub fn new(module: &'m Module, views: &'m [bool]) -> Self {
        Rules { module, views }
    }

    /// Rows of a step that could be part of a region; `None` for other nodes.
    pub fn rows(&self, node: usize) -> Option<Dim> {
        let n = &self.module.nodes[node];
        (!self.views[node] && goes_by_rows(self.module, n)).then(|| rows(&self.module.ty(n.result).shape)).flatten()
    }

    /// Whether a step of `rows` rows may run in a region after the steps that `inside` holds for, or what it reads that
    /// another thread may not have made yet.
    pub fn admits(&self, node: usize, rows: Dim, inside: impl Fn(usize) -> bool) -> Result<(), String> {
        if self.rows(node) != Some(rows) {
            return Err(format!("does not compute {rows} rows one by one"));
        }
        let operands = &self.module.nodes[node].operands;
        match (0..operands.len()).find(|&i| self.made_by(operands[i]).is_some_and(&inside) && !self.own_row(node, i)) {
            Some(i) => Err(format!("reads other rows of operand {i} than the one it computes")),
            None => Ok(()),
        }
    }

    /// The step that makes a value, through views.
    pub fn made_by(&self, value: ValueId) -> Option<usize> {
        let mut value = value;
        loop {
            let Def::Node(node) = self.module.values[value.0 as usize].def else { return None };
            if !self.views[node] {
                return Some(node);
            }
            value = *self.module.nodes[node].operands.first()?;
        }
    }

    /// Whether a step reads of operand `i` only the row that it computes.
    fn own_row(&self, node: usize, i: usize) -> bool {
        let n = &self.module.nodes[node];
        let (shape, result) = (self.shape(n.operands[i]), self.shape(n.result));
        let by_row = match (&n.op, i) {
            (Op::FusedMatMul { .. }, 2..) => self.lane_reads_own_row(n, i - 1, shape, result),
            (Op::FusedMap { .. }, _) => self.lane_reads_own_row(n, i, shape, result),
            (Op::IntAdd { .. } | Op::IntMul { .. } | Op::IntMin {} | Op::IntMax {}, _) => shape == result,
            (Op::IntRequantRows { .. }, 1) => true,
            (op, 0) => !is_movement(op),
            _ => false,
        };
        by_row && same_rows(shape, result) && self.in_order(n.operands[i])
    }

    /// Whether the rows of a value lie as the step that makes it writes them: no view but a change of shape between.
    fn in_order(&self, value: ValueId) -> bool {
        let mut at = value;
        while let Def::Node(n) = self.module.values[at.0 as usize].def
            && self.views[n]
        {
            let node = &self.module.nodes[n];
            let Some(&under) = node.operands.first() else { return false };
            if !matches!(node.op, Op::Reshape { .. }) || !same_rows(self.shape(under), self.shape(at)) {
                return false;
            }
            at = under;
        }
        true
    }

    fn shape(&self, value: ValueId) -> &'m Shape {
        &self.module.ty(value).shape
    }

    /// Whether a lane program reads input `i` by the element or by the row.
    fn lane_reads_own_row(&self, node: &Node, i: usize, shape: &Shape, result: &Shape) -> bool {
        let program = node.op.lane().and_then(|name| self.module.lanes.get(&name.0));
        match program.and_then(|p| p.inputs.get(i)).map(|input| input.access) {
            Some(Access::Element) => shape == result,
            Some(Access::Row) => true,
            _ => false,
        }
    }
}

/// Whether the kernel of a node computes rows of its result one by one. What rearranges does, reading any row of its
/// operand.
fn goes_by_rows(module: &Module, node: &Node) -> bool {
    match node.op {
        Op::IntReduceSum { axis, keep } => keep && axis + 1 == module.ty(node.result).shape.rank(),
        Op::FusedMatMul { .. }
        | Op::IntMatMul { .. }
        | Op::FusedMap { .. }
        | Op::IntRequant { .. }
        | Op::IntRequant15 { .. }
        | Op::IntRequantRows { .. }
        | Op::IntAdd { .. }
        | Op::IntMul { .. }
        | Op::IntMin {}
        | Op::IntMax {}
        | Op::IntClamp { .. }
        | Op::IntRoundShift { .. }
        | Op::IntTable {}
        | Op::IntHardSwish { .. }
        | Op::IntExp { .. }
        | Op::IntRowPeak { .. }
        | Op::IntRowCodes { .. }
        | Op::IntReciprocal { .. }
        | Op::IntLayerNorm { .. }
        | Op::IntShiftmax { .. }
        | Op::IntShiftGelu { .. }
        | Op::IntShiftLayerNorm { .. } => true,
        ref op => is_movement(op),
    }
}

fn same_rows(a: &Shape, b: &Shape) -> bool {
    rows(a).is_some() && rows(a) == rows(b)
}

/// Rearrangement that one copy does.
fn is_movement(op: &Op) -> bool {
    matches!(op, Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } | Op::Expand { .. })
}
