//! Functions of one byte become tables of their own values.
//!
//! `requant -> shift_gelu -> requant` on an 8-bit input has 256 possible results; evaluating the three ops on all 256 bytes
//! gives a table with exactly their bits, so a published form costs what a table costs. I-BERT's GELU uses its input in several
//! places: what counts is that all of it depends on one byte alone.

use std::collections::{BTreeSet, HashMap};

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Const, Def, Diagnostic, Elem, Module, Node, Op, Shape, Stage, TensorType, ValueId};

use super::chain::is_constant;

/// Elementwise ops between an 8-bit value and another, one of which a lane cannot do.
struct Run {
    /// Node indices in order; the last one yields the result.
    nodes: Vec<usize>,
    /// The 8-bit value they start from.
    source: ValueId,
}

/// The module with every such run replaced by one `int.table`.
pub(super) fn run(module: &Module) -> Result<Module, Diagnostic> {
    let runs = find(module);
    if runs.is_empty() {
        return Ok(module.clone());
    }
    let mut out = module.clone();
    for r in &runs {
        let last = *r.nodes.last().unwrap_or(&0);
        let node = &module.nodes[last];
        let table = tabulate(module, r)?;
        let table = out.constant(table);
        out.nodes[last] = Node { op: Op::IntTable {}, operands: vec![r.source, table], ..node.clone() };
    }
    let gone = unused(&out);
    Ok(without(&out, &gone))
}

fn find(module: &Module) -> Vec<Run> {
    // the byte that each value is a function of, element by element
    let mut sources: Vec<Option<ValueId>> = vec![None; module.values.len()];
    let mut runs = Vec::new();
    for (n, node) in module.nodes.iter().enumerate() {
        let source = source_of(module, node, &sources);
        sources[node.result.0 as usize] = source;
        if let Some(source) = source.filter(|_| is_byte(module, node.result)) {
            let nodes = between(module, n, source);
            if nodes.iter().any(|&n| is_hard(&module.nodes[n].op)) {
                runs.push(Run { nodes, source });
            }
            // what follows starts from this byte
            sources[node.result.0 as usize] = None;
        }
    }
    runs
}

/// The one byte that an elementwise op's variable operands are functions of.
fn source_of(module: &Module, node: &Node, sources: &[Option<ValueId>]) -> Option<ValueId> {
    if !is_elementwise(module, node) {
        return None;
    }
    let mut found = None;
    for &v in node.operands.iter().filter(|&&v| module.const_of(v).is_none()) {
        let source = sources[v.0 as usize].or_else(|| is_byte(module, v).then_some(v))?;
        if found.is_some_and(|known| known != source) || module.ty(v).shape != module.ty(node.result).shape {
            return None;
        }
        found = Some(source);
    }
    found
}

/// What a lane cannot do, or not at once.
fn is_hard(op: &Op) -> bool {
    matches!(op, Op::IntShiftGelu { .. } | Op::IntMul { .. })
}

fn is_byte(module: &Module, v: ValueId) -> bool {
    matches!(module.ty(v).elem, Elem::U8 | Elem::I8)
}

/// Whether every element of the result is the same function of those of the variable operands.
fn is_elementwise(module: &Module, node: &Node) -> bool {
    let single = |v: &ValueId| module.const_of(*v).is_none_or(super::is_single);
    match node.op {
        Op::IntRequant { .. } | Op::IntRequant15 { .. } => {
            module.const_of(node.operands[1]).is_some_and(super::is_single)
        }
        Op::IntTable {} => is_constant(module, node.operands[1]),
        Op::IntClamp { .. } | Op::IntHardSwish { .. } | Op::IntShiftGelu { .. } => true,
        Op::IntMul { .. } | Op::IntAdd { .. } | Op::IntMin {} | Op::IntMax {} => node.operands.iter().all(single),
        _ => false,
    }
}

/// The nodes from a source to a node, in order.
fn between(module: &Module, last: usize, source: ValueId) -> Vec<usize> {
    let (mut found, mut open) = (BTreeSet::new(), vec![last]);
    while let Some(n) = open.pop() {
        if found.insert(n) {
            let before = module.nodes[n].operands.iter().filter(|&&v| v != source);
            open.extend(before.filter_map(|v| match module.values[v.0 as usize].def {
                Def::Node(n) => Some(n),
                _ => None,
            }));
        }
    }
    found.into_iter().collect()
}

fn tabulate(module: &Module, run: &Run) -> Result<Const, Diagnostic> {
    let elem = module.ty(run.source).elem;
    let shape = Shape::fixed(&[256]);
    let mut m = Module::new("table", Stage::Integerize);
    let mut values = HashMap::from([(run.source, m.input("x", TensorType::new(elem, shape.clone())))]);
    for node in run.nodes.iter().map(|&n| &module.nodes[n]) {
        let mut operands = Vec::with_capacity(node.operands.len());
        for &v in &node.operands {
            let copy = module.const_of(v).map(|c| m.constant(c.clone()));
            operands.extend(copy.or_else(|| values.get(&v).copied()));
        }
        let op = with_axis_0(node.op.clone());
        let result = m.push(op, &operands, node.loc.clone()).map_err(|e| Diagnostic::new("tabulate", e))?;
        values.insert(node.result, result);
    }
    if let Some(result) = run.nodes.last().and_then(|&n| values.get(&module.nodes[n].result)) {
        m.output("y", *result);
    }
    let (lo, hi) = elem.range().unwrap_or((0, 0));
    let bytes = Tensor::ints(elem, &[256], lo..=hi);
    let entries = eval::run(&m, &[bytes])?.remove(0);
    let loc = run.nodes.first().and_then(|&n| module.nodes[n].loc.clone());
    let name = format!("{}.table", loc.as_deref().unwrap_or("value"));
    Ok(entries.to_const(name, TensorType::new(entries.elem(), shape)))
}

fn with_axis_0(op: Op) -> Op {
    match op {
        Op::IntRequant { x_zero, shift, zero_point, to, .. } => {
            Op::IntRequant { axis: 0, x_zero, shift, zero_point, to }
        }
        Op::IntRequant15 { pre_shift, post_shift, zero_point, to, .. } => {
            Op::IntRequant15 { axis: 0, pre_shift, post_shift, zero_point, to }
        }
        other => other,
    }
}

/// The nodes that no output needs.
fn unused(module: &Module) -> Vec<bool> {
    let mut uses = module.use_counts();
    let mut gone = vec![false; module.nodes.len()];
    for (n, node) in module.nodes.iter().enumerate().rev() {
        gone[n] = uses[node.result.0 as usize] == 0;
        if gone[n] {
            node.operands.iter().for_each(|v| uses[v.0 as usize] -= 1);
        }
    }
    gone
}

/// The module without some nodes, and without constants that nothing uses.
fn without(module: &Module, gone: &[bool]) -> Module {
    let mut out = module.successor(module.stage);
    let mut map = HashMap::new();
    for input in &module.inputs {
        map.insert(input.value, out.input(input.name.clone(), module.ty(input.value).clone()));
    }
    for (_, node) in module.nodes.iter().enumerate().filter(|(n, _)| !gone[*n]) {
        let mut operands = Vec::with_capacity(node.operands.len());
        for v in &node.operands {
            let new = match (map.get(v), module.const_of(*v)) {
                (Some(&known), _) => known,
                (None, Some(c)) => out.constant(c.clone()),
                (None, None) => unreachable!("an operand is an input, a constant or an earlier node"),
            };
            map.insert(*v, new);
            operands.push(new);
        }
        let result = out.push_typed(node.op.clone(), &operands, module.ty(node.result).clone(), node.loc.clone());
        map.insert(node.result, result);
    }
    for output in &module.outputs {
        if let Some(&v) = map.get(&output.value) {
            out.output(output.name.clone(), v);
        }
    }
    out
}
