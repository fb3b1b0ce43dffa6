//! Functions of one byte become tables of their own values.
//!
//! `requant -> shift_gelu -> requant` on an 8-bit input has 256 possible results; evaluating the three ops on all 256 bytes
//! gives a table with exactly their bits, so the published form costs what a table costs.

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Const, Diagnostic, Elem, Module, Node, Op, Shape, Stage, TensorType, ValueId};

use super::chain::is_constant;

/// A run of unary ops from an 8-bit value, one of which a lane cannot do.
struct Run {
    /// Node indices in order.
    nodes: Vec<usize>,
    /// The 8-bit value it starts from.
    source: ValueId,
}

/// The module with every such run replaced by one `int.table`.
pub(super) fn run(module: &Module) -> Result<Module, Diagnostic> {
    let runs = find(module);
    if runs.is_empty() {
        return Ok(module.clone());
    }
    let mut out = module.clone();
    // the table takes the place of the run's last node; the others go
    let mut gone = vec![false; module.nodes.len()];
    for r in &runs {
        let last = *r.nodes.last().unwrap_or(&0);
        let node = &module.nodes[last];
        let table = tabulate(module, r)?;
        let table = out.constant(table);
        out.nodes[last] = Node { op: Op::IntTable {}, operands: vec![r.source, table], ..node.clone() };
        r.nodes[..r.nodes.len() - 1].iter().for_each(|&n| gone[n] = true);
    }
    Ok(without(&out, &gone))
}

fn find(module: &Module) -> Vec<Run> {
    let uses = module.use_counts();
    let mut runs = Vec::new();
    for (n, node) in module.nodes.iter().enumerate() {
        if !matches!(node.op, Op::IntShiftGelu { .. }) {
            continue;
        }
        let mut nodes = vec![n];
        let mut source = node.operands[0];
        while !is_byte(module, source) {
            let Some(before) = index_of(module, source).filter(|&b| unary(module, b) && uses[source.0 as usize] == 1)
            else {
                break;
            };
            nodes.insert(0, before);
            source = module.nodes[before].operands[0];
        }
        let mut last = node.result;
        while !is_byte(module, last) && uses[last.0 as usize] == 1 {
            let after = module.nodes.iter().position(|u| u.operands.first() == Some(&last));
            let Some(after) = after.filter(|&a| unary(module, a)) else { break };
            nodes.push(after);
            last = module.nodes[after].result;
        }
        if is_byte(module, source) {
            runs.push(Run { nodes, source });
        }
    }
    runs
}

fn is_byte(module: &Module, v: ValueId) -> bool {
    matches!(module.ty(v).elem, Elem::U8 | Elem::I8)
}

fn index_of(module: &Module, v: ValueId) -> Option<usize> {
    match module.values[v.0 as usize].def {
        vitc_ir::Def::Node(n) => Some(n),
        _ => None,
    }
}

/// A function of its first operand alone, the same for every element.
fn unary(module: &Module, n: usize) -> bool {
    let node = &module.nodes[n];
    let single = |v: ValueId| module.const_of(v).is_some_and(super::is_single);
    match node.op {
        Op::IntRequant { .. } | Op::IntRequant15 { .. } => single(node.operands[1]),
        Op::IntTable {} => is_constant(module, node.operands[1]),
        Op::IntClamp { .. } | Op::IntHardSwish { .. } | Op::IntShiftGelu { .. } => true,
        _ => false,
    }
}

fn tabulate(module: &Module, run: &Run) -> Result<Const, Diagnostic> {
    let elem = module.ty(run.source).elem;
    let shape = Shape::fixed(&[256]);
    let mut m = Module::new("table", Stage::Integerize);
    let mut value = m.input("x", TensorType::new(elem, shape.clone()));
    for &n in &run.nodes {
        let node = &module.nodes[n];
        let mut operands = vec![value];
        operands.extend(node.operands[1..].iter().filter_map(|&v| module.const_of(v).cloned()).map(|c| m.constant(c)));
        let op = with_axis_0(node.op.clone());
        value = m.push(op, &operands, node.loc.clone()).map_err(|e| Diagnostic::new("tabulate", e))?;
    }
    m.output("y", value);
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

/// The module without some nodes, and without constants that nothing uses.
fn without(module: &Module, gone: &[bool]) -> Module {
    let mut out = module.successor(module.stage);
    let mut map = std::collections::HashMap::new();
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
