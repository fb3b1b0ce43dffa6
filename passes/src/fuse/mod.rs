//! Room 5: elementwise integer ops become lane programs attached to the kernel that produces their input.
//!
//! A chain is a value and the elementwise ops that alone consume it, one after another. A chain that starts at a matrix product
//! or a convolution becomes `fused.matmul` or `fused.conv2d`; any other becomes one `fused.map`. Functions of a single byte
//! that need more than a lane can do (ShiftGELU divides) first become tables of their own values (`tabulate`). An attention
//! becomes one `fused.attention`, before chains are looked for.

mod attention;
mod borders;
mod chain;
mod clamps;
pub mod lanes;
mod patches;
mod relu;
mod rows;
mod tabulate;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use vitc_ir::attr::LaneName;
use vitc_ir::lane::{Access, Input, Inst, Program, Width};
use vitc_ir::{Const, Def, Diagnostic, Diagnostics, Elem, ImageLayout, Module, Node, Op, Stage, ValueId};

use crate::clean::draft::{Draft, Fired, Rule};
use crate::clean::given;
use crate::integerize::intervals::{self, Interval};
use crate::shape::concats;
use attention::Attention;
use chain::{Chain, Epilogue};

/// The module of stage `fuse`, and how often each lane rule fired.
pub fn run(module: &Module) -> Result<(Module, BTreeMap<String, usize>), Diagnostics> {
    let mut moved = Fired::new();
    let module = around_movement(tabulate::run(module).map_err(Diagnostics::from)?, &mut moved);
    let groups = groups(&module);
    let mut fuse = Fuse {
        source: &module,
        known: intervals::of(&module),
        target: module.successor(Stage::Fuse),
        map: HashMap::new(),
        fired: BTreeMap::new(),
    };
    for input in &module.inputs {
        let value = fuse.target.input(input.name.clone(), module.ty(input.value).clone());
        fuse.map.insert(input.value, value);
    }
    let mut member: Vec<Option<&Group>> = vec![None; module.nodes.len()];
    for group in &groups {
        group.nodes().iter().for_each(|&n| member[n] = Some(group));
    }
    for (n, node) in module.nodes.iter().enumerate() {
        let result = match member[n] {
            Some(group) if group.nodes().last() != Some(&n) => continue, // computed with the end of its group
            Some(Group::Attention(attention)) => Ok(fuse.attention(attention)),
            Some(Group::Chain(chain)) => fuse.chain(chain),
            None => Ok(fuse.plain(node)),
        };
        let value = result.map_err(|e| Diagnostics::from(place(Diagnostic::new("fuse", e), node)))?;
        fuse.map.insert(node.result, value);
    }
    for output in &module.outputs {
        let value = fuse.value(output.value);
        fuse.target.output(output.name.clone(), value);
    }
    let mut fired = fuse.fired;
    fired.extend(moved.into_iter().map(|(name, n)| (name.to_string(), n)));
    Ok((prepare_convolutions(fuse.target, &mut fired), fired))
}

/// The module with what is done element by element, or row by row, on the side of movement where it costs less.
fn around_movement(module: Module, fired: &mut Fired) -> Module {
    let mut counts = Fired::new();
    let mut draft = Draft::new(module);
    // what is moved on the way to an output is integers; the runtime makes numbers of them last
    let doors: &[(&str, Rule)] = &[("door-behind-movement", given::sink_dequantize)];
    draft.saturate(&[clamps::RULES, rows::RULES, relu::RULES, concats::MERGE, doors].concat(), usize::MAX, &mut counts);
    if counts.is_empty() {
        return draft.into_module();
    }
    fired.extend(counts);
    draft.finish(Stage::Integerize)
}

/// Convolutions over patches as matrix products, others without borders.
fn prepare_convolutions(module: Module, fired: &mut BTreeMap<String, usize>) -> Module {
    let mut counts = Fired::new();
    let mut draft = Draft::new(module);
    draft.saturate(&[patches::RULES, borders::RULES].concat(), usize::MAX, &mut counts);
    if counts.is_empty() {
        return draft.into_module();
    }
    fired.extend(counts.into_iter().map(|(name, n)| (name.to_string(), n)));
    draft.finish(Stage::Fuse)
}

/// Nodes that become one.
enum Group {
    Attention(Attention),
    Chain(Chain),
}

impl Group {
    fn nodes(&self) -> &[usize] {
        match self {
            Group::Attention(a) => &a.nodes,
            Group::Chain(c) => &c.nodes,
        }
    }
}

/// What is fused; no node belongs to two groups.
fn groups(module: &Module) -> Vec<Group> {
    let attentions = attention::find(module);
    let mut taken = vec![false; module.nodes.len()];
    attentions.iter().flat_map(|a| &a.nodes).for_each(|&n| taken[n] = true);
    let chains = chain::find(module, taken).into_iter().map(Group::Chain);
    attentions.into_iter().map(Group::Attention).chain(chains).collect()
}

fn place(d: Diagnostic, node: &Node) -> Diagnostic {
    match &node.loc {
        Some(loc) => d.at(loc.to_string()),
        None => d,
    }
}

struct Fuse<'a> {
    source: &'a Module,
    /// What is known of the integers of each of its values.
    known: Vec<Interval>,
    target: Module,
    map: HashMap<ValueId, ValueId>,
    fired: BTreeMap<String, usize>,
}

impl Fuse<'_> {
    fn value(&mut self, v: ValueId) -> ValueId {
        if let Some(&new) = self.map.get(&v) {
            return new;
        }
        let Def::Const(c) = self.source.values[v.0 as usize].def else {
            unreachable!("nodes are in topological order, so an operand is an input, a constant or done");
        };
        let new = self.target.constant(self.source.consts[c].clone());
        self.map.insert(v, new);
        new
    }

    fn plain(&mut self, node: &Node) -> ValueId {
        let operands: Vec<ValueId> = node.operands.iter().map(|&v| self.value(v)).collect();
        self.target.push_typed(node.op.clone(), &operands, self.source.ty(node.result).clone(), node.loc.clone())
    }

    /// Emits an attention as one op.
    fn attention(&mut self, attention: &Attention) -> ValueId {
        let nodes = || attention.nodes.iter().map(|&n| &self.source.nodes[n]);
        let loc = join_locs(nodes().map(|n| n.loc.as_ref()));
        let result = nodes().next_back().map(|n| self.source.ty(n.result).clone()).expect("an attention has nodes");
        let operands: Vec<ValueId> = attention.operands.iter().map(|&v| self.value(v)).collect();
        *self.fired.entry("attention".into()).or_default() += 1;
        self.target.push_typed(attention.op.clone(), &operands, result, loc)
    }

    /// Emits a chain as one fused op.
    fn chain(&mut self, chain: &Chain) -> Result<ValueId, String> {
        let source = self.source;
        let head = &source.nodes[chain.nodes[0]];
        let tail = &source.nodes[chain.nodes[chain.nodes.len() - 1]];
        let result = source.ty(tail.result).clone();
        let to = result.elem;
        let loc = join_locs(chain.nodes.iter().map(|&n| source.nodes[n].loc.as_ref()));
        let (mut epilogue, rest) = match &head.op {
            Op::IntMatMul { .. } | Op::IntConv2d { .. } => {
                let mut epilogue = Epilogue::new(Elem::I32);
                epilogue.channels_last = !matches!(head.op, Op::IntConv2d { layout: ImageLayout::ChannelsFirst, .. });
                if let Some(&bias) = head.operands.get(2) {
                    epilogue.add_bias(bias, source.ty(bias));
                }
                (epilogue, &chain.nodes[1..])
            }
            _ => (Epilogue::new(source.ty(chain.start).elem), &chain.nodes[..]),
        };
        let mut current =
            if matches!(head.op, Op::IntMatMul { .. } | Op::IntConv2d { .. }) { head.result } else { chain.start };
        for &n in rest {
            epilogue.append(source, &source.nodes[n], current, &self.known)?;
            current = source.nodes[n].result;
        }
        let (program, extras) = epilogue.finish(to);
        let program = lanes::optimize(&program, &scalars(source, &program, &extras), &mut self.fired)?;
        let base = format!("{}_{}", if current == head.result { "store" } else { "rq" }, to.name());
        let lane = LaneName(self.target.lane(&base, program));
        let op = match &head.op {
            Op::IntMatMul { a_zero, b_zero } => Op::FusedMatMul { a_zero: *a_zero, b_zero: *b_zero, lane, to },
            Op::IntConv2d { strides, pads, dilations, groups, layout, x_zero } => Op::FusedConv2d {
                strides: *strides,
                pads: *pads,
                dilations: *dilations,
                groups: *groups,
                layout: *layout,
                x_zero: *x_zero,
                lane,
                to,
            },
            _ => Op::FusedMap { shape: result.shape.clone(), lane, to },
        };
        let mut operands = match &head.op {
            Op::IntMatMul { .. } | Op::IntConv2d { .. } => head.operands[..2].to_vec(),
            _ => vec![chain.start],
        };
        operands.extend(extras);
        let operands: Vec<ValueId> = operands.into_iter().map(|v| self.value(v)).collect();
        Ok(self.target.push_typed(op, &operands, result, loc))
    }
}

/// The distinct names of several nodes, joined by ` + `.
pub(crate) fn join_locs<'a>(locs: impl Iterator<Item = Option<&'a Arc<str>>>) -> Option<Arc<str>> {
    let mut names: Vec<&str> = Vec::new();
    for part in locs.flatten().flat_map(|l| l.split(" + ")) {
        if !names.contains(&part) {
            names.push(part);
        }
    }
    (!names.is_empty()).then(|| names.join(" + ").into())
}

/// The value of each input of a lane program that is one constant for all elements; the first input is the chain's.
fn scalars(module: &Module, program: &Program, extras: &[ValueId]) -> Vec<Option<i64>> {
    let value = |(input, &v): (&Input, &ValueId)| match input.access {
        Access::Scalar => module.const_of(v)?.ints().first().copied(),
        _ => None,
    };
    std::iter::once(None).chain(program.inputs[1..].iter().zip(extras).map(value)).collect()
}

/// A constant of 32-bit lanes, for chains.
fn lane_const(value: i64) -> Inst {
    Inst::Const(value, Width::W32)
}

/// Whether a constant holds one element.
fn is_single(c: &Const) -> bool {
    c.ty.shape.count().and_then(|d| d.as_fixed()) == Some(1)
}

/// How an extra of that type is indexed beside a result of `shape`; channels are the last dimension here.
fn channel_access(c: &Const) -> Access {
    if is_single(c) { Access::Scalar } else { Access::Channel }
}
