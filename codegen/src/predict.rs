//! How long a plan should take: the cost model's figures summed over its nodes. A forecast for reports, from sizes alone; `vitc
//! bench` measures.
//!
//! Products cost what [`Core`] says. Everything else is bound by work on elements: so many cycles for each, by kind ([`Rates`]).
//! What a plan only views costs nothing.

use vitc_ir::{Class, Dim, Module, Node, Op, TensorType, ValueId};

use crate::cost::{Core, Sizes, Unit};
use crate::isa::Tier;

/// What a node is expected to cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// Name of the ONNX node, or of the op where there is none.
    pub node: String,
    /// The op.
    pub op: &'static str,
    /// Cycles of one core for one image.
    pub cycles: f64,
}

/// What a plan is expected to cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Every node that computes or copies, in the order of the plan.
    pub nodes: Vec<Predicted>,
    /// Clock of the core that the figures are of, in GHz.
    pub clock_ghz: f64,
}

impl Prediction {
    /// Cycles of one core for one image.
    pub fn cycles(&self) -> f64 {
        self.nodes.iter().map(|n| n.cycles).sum()
    }

    /// Milliseconds of one core for one image.
    pub fn ms(&self) -> f64 {
        self.cycles() / (1e6 * self.clock_ghz)
    }
}

/// Predicts a module of stage `plan` on one core for one image.
pub fn predict(module: &Module, tier: Tier) -> Prediction {
    let model = Model { module, core: Core::of(tier), tier, rates: Rates::of(tier) };
    let predicted = |node: &Node| {
        let name = node.loc.as_deref().unwrap_or(node.op.name());
        Predicted { node: name.to_string(), op: node.op.name(), cycles: model.node(node) }
    };
    let nodes = module.nodes.iter().map(predicted).filter(|p| p.cycles > 0.0).collect();
    Prediction { nodes, clock_ghz: model.core.clock_ghz }
}

/// Cycles for an element, from profiles of DeiT-T and the demo on Zen 4.
struct Rates {
    /// Rows that are normalised.
    norm: f64,
    /// Scores that become a map of attention.
    softmax: f64,
    /// A lane program or a table.
    map: f64,
    /// Movement.
    copy: f64,
    /// A multiply-accumulate of a depthwise convolution.
    depthwise: f64,
}

impl Rates {
    fn of(tier: Tier) -> Rates {
        match tier.is_wide() {
            true => Rates { norm: 0.9, softmax: 0.9, map: 0.3, copy: 0.5, depthwise: 0.05 },
            false => Rates { norm: 4.0, softmax: 8.0, map: 1.2, copy: 0.6, depthwise: 0.5 },
        }
    }
}

struct Model<'m> {
    module: &'m Module,
    core: &'static Core,
    tier: Tier,
    rates: Rates,
}

impl Model<'_> {
    fn node(&self, node: &Node) -> f64 {
        let result = self.module.ty(node.result);
        match &node.op {
            Op::FusedMatMul { .. } | Op::IntMatMul { .. } => self.product(node),
            Op::FusedConv2d { groups, .. } | Op::IntConv2d { groups, .. } => self.conv(node, *groups),
            Op::FusedAttention { perm, .. } => self.attention(node, perm),
            Op::IntLinearAttention { .. } => 2.0 * self.rates.map * elements(result),
            Op::IntLayerNorm { .. } | Op::IntShiftLayerNorm { .. } => self.rates.norm * elements(result),
            Op::IntExp { .. } | Op::IntShiftmax { .. } => self.rates.softmax * elements(result),
            op => match op.class() {
                Class::Quant => 0.0,
                Class::Move if self.is_view(node) => 0.0,
                Class::Move => self.rates.copy * elements(result),
                _ => self.rates.map * self.widest(node),
            },
        }
    }

    /// Whether nothing is moved: what is without a place, or in its operand's.
    fn is_view(&self, node: &Node) -> bool {
        let place = |v: &ValueId| self.module.node_of(*v).and_then(|n| n.place);
        node.place.is_none()
            || (matches!(node.op, Op::Reshape { .. }) && node.operands.first().and_then(place) == node.place)
    }

    /// Elements of a node's result or largest operand: what a reduction walks over.
    fn widest(&self, node: &Node) -> f64 {
        let values = node.operands.iter().filter(|v| self.module.const_of(**v).is_none()).chain([&node.result]);
        values.map(|&v| elements(self.module.ty(v))).fold(0.0, f64::max)
    }

    fn product(&self, node: &Node) -> f64 {
        let (result, b) = (&self.module.ty(node.result).shape, self.module.ty(node.operands[1]));
        let [.., rows, columns] = result.0.as_slice() else { return 0.0 };
        let [.., k, _] = b.shape.0.as_slice() else { return 0.0 };
        let lead = size(&result.0[..result.0.len() - 2]);
        let (rows, k, n) = (rows.size, k.size, columns.size);
        match self.module.const_of(node.operands[1]).is_some() {
            true => self.pass(Sizes { rows: lead * rows, k, n }),
            false => lead as f64 * self.pass(Sizes { rows, k, n }),
        }
    }

    /// A dense convolution is a product over windows.
    fn conv(&self, node: &Node, groups: usize) -> f64 {
        let (result, w) = (elements(self.module.ty(node.result)), &self.module.ty(node.operands[1]).shape.0);
        let (columns, k) = (w.first().map_or(1, |d| d.size), size(w.get(1..).unwrap_or_default()));
        if groups == columns {
            return self.rates.depthwise * result * k as f64;
        }
        let (rows, n) = ((result / columns.max(1) as f64) as usize, columns / groups.max(1));
        groups as f64 * self.pass(Sizes { rows, k, n })
    }

    /// Both products of every head, and the softmax between them.
    fn attention(&self, node: &Node, perm: &[usize]) -> f64 {
        let result = &self.module.ty(node.result).shape;
        let last = |n: usize| node.operands.get(n).and_then(|&v| self.module.ty(v).shape.last_fixed());
        let rows = perm.iter().position(|&p| p + 2 == perm.len()).and_then(|i| result.0.get(i)).map(|d| d.size);
        let (Some(rows), Some(d), Some(keys), Some(columns)) = (rows, last(0), last(1), last(2)) else { return 0.0 };
        let heads = elements(self.module.ty(node.result)) / (rows * columns).max(1) as f64;
        let scores = Sizes { rows, k: d, n: keys };
        let values = Sizes { rows, k: keys, n: columns };
        heads * (self.pass(scores) + self.pass(values) + self.rates.softmax * (rows * keys) as f64)
    }

    fn pass(&self, sizes: Sizes) -> f64 {
        let unit = if self.tier.is_wide() { self.core.unit(sizes) } else { Unit::Portable };
        self.core.pass(unit, sizes, 1)
    }
}

/// Elements of one image.
fn elements(ty: &TensorType) -> f64 {
    size(&ty.shape.0) as f64
}

fn size(dims: &[Dim]) -> usize {
    dims.iter().fold(1, |all, d| all.saturating_mul(d.size))
}
