//! Cuts a graph into regions for saturation: a region ends where one quantized value is all that later nodes need. Codes belong
//! to what they round.

use std::collections::BTreeSet;

use vitc_ir::{Def, Module, Op, ValueId};

/// A run of nodes, saturated together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Node indices, ascending.
    pub nodes: Vec<usize>,
    /// Values that later regions or the outputs need.
    pub roots: Vec<ValueId>,
}

/// Cuts the graph. In a Vision Transformer the cuts fall on the residual stream, twice a block.
pub fn cut(module: &Module) -> Vec<Region> {
    let last_use = last_uses(module);
    let tables = module.nodes.iter().filter(|n| matches!(n.op, Op::IntTable {}));
    let coded: BTreeSet<ValueId> = tables.map(|n| n.operands[0]).collect();
    let mut regions = Vec::new();
    let mut live: BTreeSet<ValueId> = BTreeSet::new();
    let mut nodes = Vec::new();
    for (n, node) in module.nodes.iter().enumerate() {
        nodes.push(n);
        live.insert(node.result);
        live.retain(|v| last_use[v.0 as usize].is_some_and(|last| last > n));
        let quantized = matches!(node.op, Op::Quantize { .. } | Op::IntTable {}) && !coded.contains(&node.result);
        if quantized && live.len() == 1 && live.contains(&node.result) {
            regions.push(Region { nodes: std::mem::take(&mut nodes), roots: vec![node.result] });
        }
    }
    let mut roots: Vec<ValueId> = Vec::new();
    for output in &module.outputs {
        let computed = matches!(module.values[output.value.0 as usize].def, Def::Node(_));
        let earlier = regions.iter().any(|r| r.roots.contains(&output.value));
        if computed && !earlier && !roots.contains(&output.value) {
            roots.push(output.value);
        }
    }
    if !roots.is_empty() {
        regions.push(Region { nodes, roots });
    }
    regions
}

/// Index of the last node that uses each value; past the end for outputs. Inputs and constants are free to cross cuts.
fn last_uses(module: &Module) -> Vec<Option<usize>> {
    let mut last = vec![None; module.values.len()];
    for (n, node) in module.nodes.iter().enumerate() {
        for v in &node.operands {
            last[v.0 as usize] = Some(n);
        }
    }
    for output in &module.outputs {
        last[output.value.0 as usize] = Some(module.nodes.len());
    }
    last
}
