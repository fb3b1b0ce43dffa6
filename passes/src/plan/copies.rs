//! What a plan copies: movement that is no view, with the reason.

use vitc_ir::{Class, Def, Module, Node, Op};

/// A copy: bytes that are moved without being computed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The node, as an index.
    pub node: usize,
    /// Bytes for each image.
    pub bytes: usize,
    /// Why it is not a view.
    pub reason: String,
}

/// The copies of a module of stage `plan`, in the order of its nodes.
pub fn copies(module: &Module) -> Vec<Copy> {
    let copied = |n: &usize| {
        let node = &module.nodes[*n];
        node.op.class() == Class::Move && node.place.is_some() && !shares_place(module, node)
    };
    let copy = |n: usize| {
        let bytes = module.ty(module.nodes[n].result).bytes().map_or(0, |b| b.size);
        Copy { node: n, bytes, reason: reason(module, n) }
    };
    (0..module.nodes.len()).filter(copied).map(copy).collect()
}

/// A reshape whose result lies where its operand does.
fn shares_place(module: &Module, node: &Node) -> bool {
    let under = node.operands.first().and_then(|&v| module.node_of(v));
    matches!(node.op, Op::Reshape { .. }) && under.is_some_and(|x| x.place == node.place)
}

fn reason(module: &Module, n: usize) -> String {
    let node = &module.nodes[n];
    match node.op {
        Op::Concat { .. } => return "its operands come from different kernels".into(),
        Op::Pad { .. } => return "a border is put around the operand".into(),
        _ => {}
    }
    if module.outputs.iter().any(|o| o.value == node.result) {
        return "it is an output of the model".into();
    }
    let users = module.nodes.iter().skip(n + 1).filter(|m| reads(module, m, n));
    let mut names: Vec<&str> = users.map(|m| m.op.name()).collect();
    names.dedup();
    match names[..] {
        [] => "nothing reads it".into(),
        _ => format!("{} reads whole rows, one after another", names.join(", ")),
    }
}

/// Whether a node reads the result of node `n`, in place or through views.
fn reads(module: &Module, node: &Node, n: usize) -> bool {
    node.operands.iter().any(|&operand| {
        let mut v = operand;
        while let Def::Node(m) = module.values[v.0 as usize].def {
            if m == n {
                return node.op.class() != Class::Move || node.place.is_some();
            }
            let under = &module.nodes[m];
            let view = under.op.class() == Class::Move && (under.place.is_none() || shares_place(module, under));
            let Some(&x) = under.operands.first().filter(|_| view) else { return false };
            v = x;
        }
        false
    })
}
