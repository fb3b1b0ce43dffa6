//! Which edges become integer, in which role, and which of them share a scale.

use std::collections::{BTreeMap, BTreeSet};

use vitc_ir::{Class, Def, Dim, Elem, ImageLayout, Module, Node, Op, Shape, ValueId};

use super::given;
use crate::clean::slices::is_elementwise;

/// How a value is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// `u8`, asymmetric: left operands of products, inputs of elementwise functions.
    Unsigned,
    /// `i8`, symmetric: right operands of products of two activations.
    Signed,
    /// `i16`, symmetric: sums, means, layernorm inputs.
    Wide,
}

impl Role {
    pub(crate) fn elem(self) -> Elem {
        match self {
            Role::Unsigned => Elem::U8,
            Role::Signed => Elem::I8,
            Role::Wide => Elem::I16,
        }
    }

    /// The word for it in reports.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Role::Unsigned => "unsigned",
            Role::Signed => "signed",
            Role::Wide => "wide",
        }
    }
}

/// What an operand must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Left as it is.
    Plain,
    /// Constant weights, `i8` with one scale for each index of an axis.
    Weights { axis: usize },
    /// An integer of this role.
    Integer(Role),
}

/// What `node`'s operand `i` must be.
pub(crate) fn demand(module: &Module, node: usize, i: usize) -> Demand {
    let node = &module.nodes[node];
    let v = node.operands[i];
    let constant = module.const_of(v).is_some();
    let weights = constant || given::integers(module, v).is_some();
    let integer = |role| if constant { Demand::Plain } else { Demand::Integer(role) };
    match (&node.op, i) {
        (Op::HardSwish {}, _) if is_fine_hardswish(module, node) => Demand::Integer(Role::Wide),
        (Op::Gelu { .. } | Op::Silu {} | Op::HardSwish {}, _) if is_gated(module, node) => Demand::Integer(Role::Wide),
        (Op::Mul {}, 0) if scales_channels(module, node) => Demand::Integer(Role::Wide),
        (Op::Mul {}, 1) if scales_channels(module, node) => Demand::Plain,
        (Op::Add {}, _) if only_biases_scores(module, node.result) || biases_pixels(module, node) => Demand::Plain,
        (Op::Mul {}, _) if only_scales_scores(module, node.result) => Demand::Plain,
        (op, _) if is_elementwise(op) && chain_source(module, node.result).is_some_and(|s| s != v) => Demand::Plain,
        (op, _) if is_elementwise(op) && chain_source(module, node.result).is_some() => Demand::Integer(Role::Unsigned),
        (Op::MatMul {} | Op::Conv2d { .. }, 0) if is_folded_normalize(module, v) => Demand::Plain,
        (Op::MatMul {} | Op::Conv2d { .. }, 0) => Demand::Integer(Role::Unsigned),
        (Op::MatMul {}, 1) if weights => Demand::Weights { axis: module.ty(v).shape.rank() - 1 },
        (Op::Conv2d { .. }, 1) if weights => Demand::Weights { axis: 0 },
        (Op::MatMul {} | Op::Conv2d { .. }, 1) => Demand::Integer(Role::Signed),
        (Op::MatMul {} | Op::Conv2d { .. }, _) => Demand::Plain,
        (Op::LayerNorm { .. }, 0) => Demand::Integer(Role::Wide),
        (Op::LinearAttention { .. }, _) => Demand::Integer(Role::Unsigned),
        (Op::Softmax {}, _) if !constant && !are_scores(module, v) => Demand::Integer(Role::Wide),
        (Op::LayerNorm { .. } | Op::Softmax {} | Op::Normalize { .. }, _) => Demand::Plain,
        (Op::Add {} | Op::Sub {}, _) => Demand::Integer(Role::Wide),
        (Op::ReduceMean { .. } | Op::ReduceSum { .. } | Op::ReduceMax { .. }, _) => integer(Role::Wide),
        (Op::Div {}, _) => Demand::Integer(Role::Wide),
        (Op::Min {} | Op::Max {}, _) => Demand::Integer(Role::Unsigned),
        (Op::Mul {}, _) if constant && module.ty(v).shape.count() != Some(Dim::fixed(1)) => {
            Demand::Integer(Role::Signed)
        }
        (op, _) if op.class() == Class::Float => integer(Role::Unsigned),
        _ => Demand::Plain,
    }
}

/// Whether HardSwish is computed in 16 bits, in the steps of what it reads: where it takes the accumulators of a product and
/// leaves them to other kernels. Trio-ViT keeps what is before the activation unquantized as well: in 8 bits it loses more than the result does.
/// A model that came quantized keeps the bytes it has.
pub(crate) fn is_fine_hardswish(module: &Module, node: &Node) -> bool {
    let weighted = |n: &Node| {
        let weights = || module.const_of(n.operands[1]).is_some();
        matches!(n.op, Op::MatMul {} | Op::Conv2d { .. }) && weights() || biases_pixels(module, n)
    };
    let mut users = module.nodes.iter().filter(|n| n.operands.contains(&node.result));
    matches!(node.op, Op::HardSwish {})
        && module.node_of(node.operands[0]).is_some_and(weighted)
        && users.all(|n| n.op.class() != Class::Quant && (!is_elementwise(&n.op) || moves_channels(module, n)))
}

/// Whether a model that came quantized leaves a value to us: it has it as floats, or in 16 bits.
fn is_island(module: &Module, v: ValueId) -> bool {
    super::is_quantized(module) && module.const_of(v).is_none() && !given::is_on_bytes(module, v)
}

/// Whether a function that is its operand times a gate is computed in 16 bits (`gated-function`): a model that came quantized
/// has no bytes before it. Our own would be a rounding that the model does not have.
fn is_gated(module: &Module, node: &Node) -> bool {
    let chained = |n: &&Node| is_elementwise(&n.op) && chain_source(module, n.result).is_some();
    let mut users = module.nodes.iter().filter(|n| n.operands.contains(&node.result));
    is_island(module, node.operands[0])
        && chain_source(module, node.result) == Some(node.operands[0])
        && !users.any(|n| chained(&n))
}

/// Whether a node multiplies a value of 16 bits by a positive factor for each channel: a requantize with a multiplier for each.
/// Such are what HardSwish yields, and what a model that came quantized leaves to us.
pub(crate) fn scales_channels(module: &Module, node: &Node) -> bool {
    let positive = |c: &vitc_ir::Const| c.values::<f32>().iter().all(|f| *f > 0.0);
    matches!(node.op, Op::Mul {})
        && per_channel(module, node).is_some_and(positive)
        && (is_island(module, node.operands[0])
            || is_stream(module, node.operands[0])
            || module
                .node_of(node.operands[0])
                .is_some_and(|n| n.op == (Op::HardSwish {}) || shifts_channels(module, n)))
}

/// Whether a node adds integers of 16 bits: no part of a table, and no bias that joins the scores of attention.
fn is_wide_sum(module: &Module, node: &Node) -> bool {
    matches!(node.op, Op::Add {} | Op::Sub {})
        && chain_source(module, node.result).is_none()
        && !only_biases_scores(module, node.result)
}

/// Whether a value of a float model has 16 bits: a sum of two activations, or a LayerNorm that is added to something.
pub(crate) fn is_stream(module: &Module, v: ValueId) -> bool {
    let sum = |v: ValueId| {
        let computed = |n: &Node| n.operands.iter().all(|&o| module.const_of(o).is_none());
        module.node_of(v).is_some_and(|n| is_wide_sum(module, n) && computed(n))
    };
    let is_added = |v: ValueId| module.nodes.iter().any(|n| n.operands.contains(&v) && sum(n.result));
    let norm = |v: ValueId| module.node_of(v).is_some_and(|n| matches!(n.op, Op::LayerNorm { .. }));
    !super::is_quantized(module)
        && origins(module, v).into_iter().all(|o| sum(o) || norm(o) && (is_added(o) || is_added(v)))
}

/// Whether a node adds a constant to each channel of what HardSwish yields.
fn shifts_channels(module: &Module, node: &Node) -> bool {
    matches!(node.op, Op::Add {})
        && per_channel(module, node).is_some()
        && module.node_of(node.operands[0]).is_some_and(|n| n.op == (Op::HardSwish {}))
}

fn moves_channels(module: &Module, node: &Node) -> bool {
    scales_channels(module, node) || shifts_channels(module, node)
}

/// The second operand, when it is a constant for each channel, the last dimension.
fn per_channel<'m>(module: &'m Module, node: &Node) -> Option<&'m vitc_ir::Const> {
    let channels = module.ty(node.result).shape.last_fixed()?;
    module.const_of(node.operands[1]).filter(|c| c.ty.elem == Elem::F32 && c.ty.shape == Shape::fixed(&[channels]))
}

/// Whether a value is the normalised image, which the convolution takes over.
pub(crate) fn is_folded_normalize(module: &Module, v: ValueId) -> bool {
    module.node_of(v).is_some_and(|n| matches!(n.op, Op::Normalize { .. }))
}

/// The value of which the result of an elementwise op is a function: what it and the elementwise ops around it, with
/// constants of one element, start from. Inside such a chain nothing is quantized, and all of it becomes one table. Chains
/// that only scale and shift are none: they keep the bits they have.
pub(crate) fn chain_source(module: &Module, v: ValueId) -> Option<ValueId> {
    source_within(module, v, 4).or_else(|| shifted_grid(module, v))
}

/// What a constant is added to, where a quantized model has both that and the sum on grids of bytes: between the two a table
/// is exact, and a sum of 16 bits would round to a step that holds both ranges.
fn shifted_grid(module: &Module, v: ValueId) -> Option<ValueId> {
    let node = module.node_of(v).filter(|n| matches!(n.op, Op::Add {} | Op::Sub {}))?;
    let x = match node.operands[..] {
        [x, c] | [c, x] if is_single(module, c) => x,
        _ => return None,
    };
    let alike = module.ty(x).shape == module.ty(v).shape && module.const_of(x).is_none();
    (alike && given::is_on_bytes(module, x) && given::is_read_as_bytes(module, v)).then_some(x)
}

/// Whether a value is a constant of one element.
fn is_single(module: &Module, v: ValueId) -> bool {
    module.const_of(v).and_then(|c| c.ty.shape.count()?.as_fixed()) == Some(1)
}

/// Looks for the curved op of a chain above a value, then below it: no further than `steps` and among few users.
fn source_within(module: &Module, v: ValueId, steps: usize) -> Option<ValueId> {
    const USERS: usize = 4;
    if let Some(source) = function_source(module, v) {
        return Some(source);
    }
    module.node_of(v).filter(|n| steps > 0 && is_elementwise(&n.op))?;
    let users: Vec<_> = module.nodes.iter().filter(|n| n.operands.contains(&v)).take(USERS + 1).collect();
    if users.len() > USERS || module.outputs.iter().any(|o| o.value == v) {
        return None;
    }
    let mut sources = users.into_iter().map(|n| source_within(module, n.result, steps - 1));
    let first = sources.next()??;
    (first != v && sources.all(|s| s == Some(first))).then_some(first)
}

/// What a value is a function of, by the elementwise ops above it, one of which at least is no affine one.
fn function_source(module: &Module, v: ValueId) -> Option<ValueId> {
    const LONGEST: usize = 32;
    let single = |v: ValueId| is_single(module, v);
    let shape = &module.ty(v).shape;
    let step = |v: ValueId| module.node_of(v).filter(|n| is_elementwise(&n.op) && module.ty(v).shape == *shape);
    let mut open = BTreeSet::from([v]);
    let (mut source, mut curved) = (None, false);
    // a result comes after its operands, so what was opened never comes back
    for _ in 0..LONGEST {
        let Some(node) = open.last().and_then(|&v| step(v)) else { break };
        open.remove(&node.result);
        let operands: Vec<_> = node.operands.iter().copied().filter(|&o| !single(o)).collect();
        curved |= !is_affine(&node.op, operands.len());
        open.extend(operands);
        if let (Some(&one), 1) = (open.first(), open.len())
            && module.const_of(one).is_none()
            && module.ty(one).shape == *shape
        {
            source = Some(one).filter(|_| curved).or(source);
        }
    }
    source
}

/// Whether an op of so many variable operands only scales and shifts.
fn is_affine(op: &Op, variables: usize) -> bool {
    match op {
        Op::Add {} | Op::Sub {} | Op::Neg {} => true,
        Op::Mul {} | Op::Div {} => variables < 2,
        _ => false,
    }
}

/// Whether an output needs a quantization of its own: what products and sums yield has one already.
pub(crate) fn is_output_quantized(module: &Module, v: ValueId) -> bool {
    let has_none = |&o: &ValueId| {
        module.node_of(o).is_some_and(|n| {
            n.op.class() == Class::Float
                && !matches!(
                    n.op,
                    Op::MatMul {}
                        | Op::Conv2d { .. }
                        | Op::Add {}
                        | Op::Sub {}
                        | Op::Min {}
                        | Op::Max {}
                        | Op::ReduceMean { .. }
                        | Op::ReduceSum { .. }
                )
        })
    };
    origins(module, v).iter().any(has_none)
}

/// A scalar factor between a product and softmax joins the exponent's multiplier, or the scale of what is added before softmax.
fn only_scales_scores(module: &Module, v: ValueId) -> bool {
    let scalar = |n: &vitc_ir::Node| {
        let count = module.const_of(n.operands[1]).and_then(|c| c.ty.shape.count());
        count.is_some_and(|c| c.as_fixed() == Some(1))
    };
    let mut users = module.nodes.iter().filter(|n| n.operands.contains(&v)).peekable();
    let reads_scores = |n: &vitc_ir::Node| {
        matches!(n.op, Op::Softmax {}) || matches!(n.op, Op::Add {}) && only_biases_scores(module, n.result)
    };
    module.node_of(v).is_some_and(scalar) && users.peek().is_some() && users.all(reads_scores)
}

/// Whether softmax can take the accumulators of a product themselves: they have one scale, and nothing but constants lies between.
fn are_scores(module: &Module, v: ValueId) -> bool {
    let Some(node) = module.node_of(v) else { return false };
    match node.op {
        Op::MatMul {} => node.operands.len() == 2 && module.const_of(node.operands[1]).is_none(),
        Op::Mul {} if !is_single(module, node.operands[1]) => false,
        Op::Add {} | Op::Mul {} => module.const_of(node.operands[1]).is_some() && are_scores(module, node.operands[0]),
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } => are_scores(module, node.operands[0]),
        _ => false,
    }
}

/// A constant added between a product of two activations and softmax (relative positions, masks) joins the accumulators.
fn only_biases_scores(module: &Module, v: ValueId) -> bool {
    let users = |v: ValueId| module.nodes.iter().filter(move |n| n.operands.contains(&v));
    let below = |v: ValueId| match users(v).collect::<Vec<_>>()[..] {
        [n] => Some(n),
        _ => None,
    };
    let is_bias = |n: &vitc_ir::Node| matches!(n.op, Op::Add {}) && module.const_of(n.operands[1]).is_some();
    let mut top = v;
    while let Some(node) = module.node_of(top).filter(|n| is_bias(n)) {
        top = node.operands[0];
    }
    let product = |n: &vitc_ir::Node| matches!(n.op, Op::MatMul {}) && module.const_of(n.operands[1]).is_none();
    let scaled = module.node_of(top).filter(|n| matches!(n.op, Op::Mul {}) && module.const_of(n.operands[1]).is_some());
    let source = scaled.map_or(top, |n| n.operands[0]);
    let mut bottom = below(v);
    while let Some(node) = bottom.filter(|n| is_bias(n)) {
        bottom = below(node.result);
    }
    top != v && module.node_of(source).is_some_and(product) && bottom.is_some_and(|n| matches!(n.op, Op::Softmax {}))
}

/// A constant for each pixel and channel, added to what alone a convolution with constant weights yields (the border of shifted
/// channels), joins the accumulators.
fn biases_pixels(module: &Module, node: &Node) -> bool {
    let of_pixels = || {
        let pixel = module.ty(node.result).shape.0.get(1..)?;
        module.const_of(node.operands[1]).filter(|c| pixel.len() == 3 && c.ty.shape.0 == pixel)
    };
    let is_conv = |n: &Node| {
        let last = matches!(n.op, Op::Conv2d { layout: ImageLayout::ChannelsLast, .. });
        last && (module.const_of(n.operands[1]).is_some() || given::integers(module, n.operands[1]).is_some())
    };
    let alone = || module.nodes.iter().filter(|n| n.operands.contains(&node.operands[0])).count() == 1;
    matches!(node.op, Op::Add {})
        && of_pixels().is_some()
        && module.node_of(node.operands[0]).is_some_and(is_conv)
        && alone()
        && module.outputs.iter().all(|o| o.value != node.operands[0])
}

/// A value in a role.
pub(crate) type Site = (ValueId, Role);

/// Every site, in groups that share a scale.
#[derive(Debug, Default)]
pub(crate) struct Sites {
    index: BTreeMap<Site, usize>,
    parent: Vec<usize>,
}

impl Sites {
    /// The sites of a module of stage `shape`, where everything that is connected by sums shares a scale.
    pub(crate) fn of(module: &Module) -> Sites {
        let mut sites = Sites::without_sums(module);
        Sites::sums(module).for_each(|node| sites.join_result(module, node, Role::Wide));
        sites
    }

    /// The sums whose operands and result are sites.
    pub(super) fn sums(module: &Module) -> impl Iterator<Item = &Node> {
        module.nodes.iter().filter(|n| is_wide_sum(module, n))
    }

    /// The sites of a module, of which sums and what they add may have scales of their own.
    pub(super) fn without_sums(module: &Module) -> Sites {
        let mut sites = Sites::default();
        for input in module.inputs.iter().filter(|i| module.ty(i.value).elem == Elem::F32) {
            sites.index_of((input.value, Role::Unsigned));
        }
        for (n, node) in module.nodes.iter().enumerate() {
            for (i, &v) in node.operands.iter().enumerate() {
                if let Demand::Integer(role) = demand(module, n, i) {
                    sites.join_origins(module, v, role);
                }
            }
            match node.op {
                Op::Min {} | Op::Max {} if chain_source(module, node.result).is_some() => {}
                Op::HardSwish {} if is_fine_hardswish(module, node) => sites.join_result(module, node, Role::Wide),
                Op::Min {} | Op::Max {} => sites.join_result(module, node, Role::Unsigned),
                _ => {}
            }
        }
        for output in module.outputs.iter().filter(|o| is_output_quantized(module, o.value)) {
            sites.join_origins(module, output.value, Role::Wide);
        }
        sites
    }

    fn join_origins(&mut self, module: &Module, v: ValueId, role: Role) {
        let origins = origins(module, v);
        for &o in &origins {
            self.join((origins[0], role), (o, role));
        }
    }

    /// Operands and result of a sum, of the smaller or larger of two, or of HardSwish in 16 bits have one scale.
    fn join_result(&mut self, module: &Module, node: &vitc_ir::Node, role: Role) {
        for &v in &node.operands {
            for o in origins(module, v) {
                self.join((node.result, role), (o, role));
            }
        }
    }

    pub(super) fn index_of(&mut self, site: Site) -> usize {
        let fresh = self.parent.len();
        let i = *self.index.entry(site).or_insert(fresh);
        if i == fresh {
            self.parent.push(fresh);
        }
        i
    }

    fn root(&self, mut i: usize) -> usize {
        while self.parent[i] != i {
            i = self.parent[i];
        }
        i
    }

    pub(super) fn join(&mut self, a: Site, b: Site) {
        let (a, b) = (self.index_of(a), self.index_of(b));
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b)] = a.min(b);
    }

    /// The group a site belongs to.
    pub(crate) fn group(&self, site: Site) -> Option<usize> {
        self.index.get(&site).map(|&i| self.root(i))
    }

    /// The members of every group, groups and members in order.
    pub(crate) fn groups(&self) -> BTreeMap<usize, Vec<Site>> {
        let mut groups: BTreeMap<usize, Vec<Site>> = BTreeMap::new();
        for (&site, &i) in &self.index {
            groups.entry(self.root(i)).or_default().push(site);
        }
        groups
    }

    /// Every site.
    pub(super) fn all(&self) -> impl Iterator<Item = Site> {
        self.index.keys().copied()
    }

    /// Every value of a site.
    pub(crate) fn values(&self) -> impl Iterator<Item = ValueId> {
        self.index.keys().map(|&(v, _)| v)
    }
}

/// The values whose elements a value holds: what movement started from.
pub(crate) fn origins(module: &Module, v: ValueId) -> Vec<ValueId> {
    let mut found = Vec::new();
    let mut work = vec![v];
    while let Some(v) = work.pop() {
        match module.values[v.0 as usize].def {
            Def::Node(n) if module.nodes[n].op.class() == Class::Move => {
                work.extend(module.nodes[n].operands.iter().rev());
            }
            _ if found.contains(&v) => {}
            _ => found.push(v),
        }
    }
    found
}
