//! Room 6: packed weights, views, regions, and a place in the arena for every value that is materialised.
//!
//! The plan is made per image: at batch N every place and size is multiplied by N, so one plan serves every batch and what
//! does not overlap for one image does not overlap for N.

mod arena;
pub mod copies;
mod regions;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use arena::Storage;
use bytes::Bytes;
use vitc_ir::layout::Layout;
use vitc_ir::{Class, Const, Def, Diagnostic, Diagnostics, Elem, Module, Node, Op, Stage, ValueId};

/// Whether a node can read that operand through those nodes before it that are views.
type IsOperandView = dyn Fn(&Module, usize, usize, &[bool]) -> bool;

/// What the planner must know of the code generator.
pub struct Target<'a> {
    /// Layout in which the weights [k, n] of a matrix product are streamed when they take whole bytes.
    pub weight_layout: &'a dyn Fn(usize, usize) -> Layout,
    /// Whether that movement node can read its operand through those nodes before it that are views.
    pub is_view: &'a dyn Fn(&Module, usize, &[bool]) -> bool,
    /// Whether that product or attention can read that operand through those nodes before it that are views.
    pub is_operand_view: &'a IsOperandView,
}

/// Alignment of places in the arena, one cache line.
pub const ALIGN: usize = 64;

/// The module of stage `plan`.
pub fn run(module: &Module, target: &Target<'_>) -> Result<Module, Diagnostics> {
    let packed = pack(module, target);
    let storage = arena::storage(&packed, &views(&packed, target));
    let not_steps: Vec<bool> = storage.iter().map(|s| *s != Storage::Own).collect();
    let arranged = regions::arrange(packed, &not_steps);
    let storage = arena::storage(&arranged, &views(&arranged, target));
    arena::place(arranged, &storage).map_err(|e| Diagnostic::new("plan", e).into())
}

/// Which movement nodes need no copy: those whose every user can address through them. Begins with all that could be and
/// takes away what some user cannot read, until all can.
fn views(module: &Module, target: &Target<'_>) -> Vec<bool> {
    let strided = |op: &Op| {
        matches!(
            op,
            Op::Reshape { .. }
                | Op::Transpose { .. }
                | Op::Slice { .. }
                | Op::Expand { .. }
                | Op::Gather { axis: 1, .. }
        )
    };
    let is_output = |v: ValueId| module.outputs.iter().any(|o| o.value == v);
    let mut views: Vec<bool> = module.nodes.iter().map(|n| strided(&n.op) && !is_output(n.result)).collect();
    loop {
        let before = views.clone();
        for n in 0..module.nodes.len() {
            for (i, &v) in module.nodes[n].operands.iter().enumerate() {
                if let Def::Node(m) = module.values[v.0 as usize].def
                    && views[m]
                {
                    views[m] = reads_through(module, n, i, &views, target);
                }
            }
        }
        if views == before {
            return views;
        }
    }
}

/// Whether node `n` can read its operand `i` through views. Products and attention can, since they walk the left side row by
/// row and pack the right side of two activations; copies can too.
fn reads_through(module: &Module, n: usize, i: usize, views: &[bool], target: &Target<'_>) -> bool {
    match module.nodes[n].op.class() {
        Class::Move => (target.is_view)(module, n, views),
        _ => (target.is_operand_view)(module, n, i, views),
    }
}

/// The module with the weights of matrix products packed, and a copy for each other use.
fn pack(module: &Module, target: &Target<'_>) -> Module {
    let mut out = module.successor(Stage::Plan);
    out.lanes = module.lanes.clone();
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    let mut packed: HashMap<ValueId, ValueId> = HashMap::new();
    for input in &module.inputs {
        map.insert(input.value, out.input(input.name.clone(), module.ty(input.value).clone()));
    }
    for node in &module.nodes {
        let operands: Vec<ValueId> = node
            .operands
            .iter()
            .enumerate()
            .map(|(i, &v)| match weights(module, node, i) {
                Some(c) => *packed.entry(v).or_insert_with(|| out.constant(pack_const(node, c, target))),
                None => *map.entry(v).or_insert_with(|| out.constant(constant(module, v))),
            })
            .collect();
        let result = out.push_typed(node.op.clone(), &operands, module.ty(node.result).clone(), node.loc.clone());
        map.insert(node.result, result);
    }
    for output in &module.outputs {
        let value = *map.entry(output.value).or_insert_with(|| out.constant(constant(module, output.value)));
        out.output(output.name.clone(), value);
    }
    out
}

fn constant(module: &Module, v: ValueId) -> Const {
    match module.values[v.0 as usize].def {
        Def::Const(c) => module.consts[c].clone(),
        _ => unreachable!("an operand that is neither an input nor an earlier node is a constant"),
    }
}

/// The weights of a product, when operand `i` of the node is that.
fn weights<'a>(module: &'a Module, node: &Node, i: usize) -> Option<&'a Const> {
    let packable = |c: &&Const| c.ty.elem == Elem::I8 && c.layout.is_none();
    let constant = module.const_of(*node.operands.get(1)?).filter(packable).filter(|_| i == 1);
    match node.op {
        Op::FusedMatMul { b_zero: 0, .. } => constant.filter(|c| c.ty.shape.rank() == 2),
        Op::FusedConv2d { .. } | Op::IntConv2d { .. } => constant.filter(|c| Layout::few_bits(&c.data).is_some()),
        _ => None,
    }
}

/// Weights in the fewest bits that hold all of them, whatever they come from: fewer bytes of the artifact, and to stream.
fn pack_const(of: &Node, c: &Const, target: &Target<'_>) -> Const {
    let packed = |layout: Layout, k, n| {
        let data = Bytes::from(layout.pack(k, n, &c.data));
        Const { name: c.name.clone(), ty: c.ty.clone(), layout: Some(layout), data }
    };
    if let Op::FusedMatMul { .. } = of.op {
        let (k, n) = (c.ty.shape.0[0].size, c.ty.shape.0[1].size);
        let columns = (target.weight_layout)(k, n).columns();
        return packed(Layout::narrowest(columns, (k, n), &c.data), k, n);
    }
    match Layout::few_bits(&c.data) {
        Some(layout) => packed(layout, 1, c.data.len()),
        None => c.clone(),
    }
}
