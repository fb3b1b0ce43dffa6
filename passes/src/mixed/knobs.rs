//! What can be chosen.

use std::collections::{BTreeMap, BTreeSet};

use vitc_ir::{Module, Op};

use super::cost::{Factor, Product};
use crate::quantize::{Width, Widths, narrow, widths};

/// Which operands of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Constant weights.
    Weights,
    /// What is computed: the left operand of a product, and the right one of a product of two activations.
    Inputs,
}

impl Kind {
    /// The bits there are, falling.
    pub fn widths(self) -> &'static [u32] {
        match self {
            Kind::Weights => &[8, 6, 5, 4, 3, 2],
            Kind::Inputs => &[8, 7, 6, 5, 4],
        }
    }

    /// `weights` or `inputs`.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Weights => "weights",
            Kind::Inputs => "inputs",
        }
    }
}

/// Operands of products that have one number of bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Knob {
    /// Which of the products' operands.
    pub kind: Kind,
    /// Names of the ONNX nodes.
    pub names: Vec<String>,
    /// Node and number of each operand.
    pub(crate) operands: Vec<(usize, usize)>,
}

/// All knobs of a module of stage `shape`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Knobs {
    /// In the order of the first product of each; the weights of a product come before what it reads.
    pub all: Vec<Knob>,
    /// What the bits are bits of.
    pub products: Vec<Product>,
}

impl Knobs {
    /// The knobs of a module of stage `shape`. Products without a name keep 8 bits: no option can name them.
    pub fn of(module: &Module) -> Knobs {
        let mut all: Vec<Knob> = weights(module).into_iter().chain(inputs(module)).collect();
        all.sort_by_key(|knob| (knob.operands[0].0, knob.kind));
        let at: BTreeMap<(usize, usize), usize> =
            all.iter().enumerate().flat_map(|(k, knob)| knob.operands.iter().map(move |&o| (o, k))).collect();
        let products = (0..module.nodes.len()).filter(|&n| widths::is_product(&module.nodes[n].op));
        let products = products.map(|n| product(module, n, &at)).collect();
        Knobs { all, products }
    }

    /// 8 bits everywhere.
    pub fn start(&self) -> Vec<u32> {
        vec![8; self.all.len()]
    }

    /// The fewest bits everywhere.
    pub fn least(&self) -> Vec<u32> {
        self.all.iter().map(|knob| knob.kind.widths().last().map_or(8, |&bits| bits)).collect()
    }

    /// A state as the bits of weights and those of what products read, by the names of nodes.
    pub fn widths(&self, state: &[u32]) -> (Widths, Widths) {
        let (mut weights, mut inputs) = (Widths::default(), Widths::default());
        for (knob, &bits) in self.all.iter().zip(state).filter(|(_, bits)| **bits < 8) {
            let (widths, width) = match knob.kind {
                Kind::Weights => (&mut weights, Width::of_weights(bits)),
                Kind::Inputs => (&mut inputs, Width::of_activations(bits)),
            };
            widths.of.extend(width.into_iter().flat_map(|w| knob.names.iter().map(move |name| (name.clone(), w))));
        }
        (weights, inputs)
    }
}

fn name(module: &Module, n: usize) -> &str {
    module.nodes[n].loc.as_deref().unwrap_or_default()
}

fn weights(module: &Module) -> Vec<Knob> {
    let mut by_name: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    for (n, _) in narrow::weighted(module) {
        by_name.entry(name(module, n)).or_default().push((n, 1));
    }
    let knob = |(name, operands): (&str, _)| Knob { kind: Kind::Weights, names: vec![name.to_string()], operands };
    by_name.into_iter().filter(|(name, _)| !name.is_empty()).map(knob).collect()
}

/// Operands that need one width.
struct Joined<'m> {
    names: BTreeSet<&'m str>,
    groups: BTreeSet<usize>,
    operands: Vec<(usize, usize)>,
}

impl<'m> Joined<'m> {
    fn add(&mut self, other: Joined<'m>) {
        self.names.extend(other.names);
        self.groups.extend(other.groups);
        self.operands.extend(other.operands);
    }
}

/// Operands are joined by what they read and by the name of the product that reads them.
fn inputs(module: &Module) -> Vec<Knob> {
    let mut sets: Vec<Joined<'_>> = Vec::new();
    for ((n, i), group) in narrow::lowerable(module) {
        let name = name(module, n);
        let mut set = Joined { names: [name].into(), groups: [group].into(), operands: vec![(n, i)] };
        let meets = |set: &Joined<'_>| set.names.contains(name) || set.groups.contains(&group);
        while let Some(at) = sets.iter().position(meets) {
            set.add(sets.swap_remove(at));
        }
        set.operands.sort_unstable();
        sets.push(set);
    }
    let named = sets.into_iter().filter(|set| !set.names.contains(""));
    let owned = |names: BTreeSet<&str>| names.into_iter().map(str::to_string).collect();
    named.map(|set| Knob { kind: Kind::Inputs, names: owned(set.names), operands: set.operands }).collect()
}

fn product(module: &Module, n: usize, knobs: &BTreeMap<(usize, usize), usize>) -> Product {
    let node = &module.nodes[n];
    let constant = narrow::weighted(module).iter().any(|&(m, _)| m == n);
    let elements = match constant {
        true => count(module, node.operands[1]),
        false => 0,
    };
    let factor = |i| knobs.get(&(n, i)).map_or(Factor::Fixed(8), |&k| Factor::Knob(k));
    let matrix = constant && matches!(node.op, Op::MatMul {});
    let factors = [factor(0), factor(1)];
    Product { name: name(module, n).to_string(), macs: macs(module, n), elements, matrix, factors }
}

/// Elements of a value at a batch of one.
fn count(module: &Module, v: vitc_ir::ValueId) -> u64 {
    module.ty(v).shape.at(1).iter().map(|&d| d as u64).product()
}

/// Multiply-accumulates for one image.
fn macs(module: &Module, n: usize) -> u64 {
    let node = &module.nodes[n];
    let size = |v, axis| module.ty(v).shape.at(1).get(axis).map_or(1, |&d| d as u64);
    let last = |v| module.ty(v).shape.at(1).last().map_or(1, |&d| d as u64);
    match node.op {
        Op::Conv2d { .. } => {
            count(module, node.result) * count(module, node.operands[1]) / size(node.operands[1], 0).max(1)
        }
        // keys with values, then queries with the outcome
        Op::LinearAttention { .. } => 2 * count(module, node.operands[0]) * last(node.operands[2]),
        _ => count(module, node.result) * last(node.operands[0]),
    }
}
