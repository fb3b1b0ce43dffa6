//! Chains of elementwise ops, and the lane program that a chain is.

use vitc_ir::lane::{Access, Input, Inst, Program, Reg, Width};
use vitc_ir::{Def, Elem, ImageLayout, Module, Node, Op, Shape, TensorType, ValueId};

use super::{channel_access, lane_const};
use crate::integerize::intervals::Interval;

/// Nodes computed as one: a matrix product or convolution, or nothing, and the elementwise ops after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// Node indices in order; each consumes the result of the one before, which nothing else uses.
    pub nodes: Vec<usize>,
    /// The value that flows through: the first node's operand when it is elementwise, else unused.
    pub start: ValueId,
}

/// Every chain of the module, in order of their first nodes; nodes that are `taken` belong to none.
pub(super) fn find(module: &Module, mut taken: Vec<bool>) -> Vec<Chain> {
    let uses = module.use_counts();
    let users = users(module);
    let mut chains = Vec::new();
    for (n, node) in module.nodes.iter().enumerate() {
        if taken[n] {
            continue;
        }
        let Some(start) = head(module, node) else { continue };
        let mut nodes = vec![n];
        let mut value = node.result;
        while uses[value.0 as usize] == 1
            && let Some(next) = users[value.0 as usize]
            && !taken[next]
            && continues(module, node, &module.nodes[next], value)
        {
            nodes.push(next);
            value = module.nodes[next].result;
        }
        nodes.iter().for_each(|&n| taken[n] = true);
        chains.push(Chain { nodes, start });
    }
    chains
}

/// The last node that uses each value.
pub(super) fn users(module: &Module) -> Vec<Option<usize>> {
    let mut users = vec![None; module.values.len()];
    for (n, node) in module.nodes.iter().enumerate() {
        node.operands.iter().for_each(|v| users[v.0 as usize] = Some(n));
    }
    users
}

/// The value that flows into a chain beginning at this node, when one can begin here.
fn head(module: &Module, node: &Node) -> Option<ValueId> {
    match node.op {
        Op::IntMatMul { .. } | Op::IntConv2d { .. } => Some(node.operands[0]),
        _ => node
            .operands
            .iter()
            .copied()
            .find(|&v| module.ty(v).shape == module.ty(node.result).shape && elementwise(module, node, v, None)),
    }
}

/// Whether `next` may follow in a chain that began at `first`, consuming `value`.
fn continues(module: &Module, first: &Node, next: &Node, value: ValueId) -> bool {
    let convolution = match first.op {
        Op::IntConv2d { layout, .. } => Some(layout),
        _ => None,
    };
    module.ty(value).shape == module.ty(next.result).shape && elementwise(module, next, value, convolution)
}

/// Whether the op works element by element on `value`, with extras that a lane program can index. `convolution`: what the
/// value is a convolution's sums in; its channels need not be the last dimension.
fn elementwise(module: &Module, node: &Node, value: ValueId, convolution: Option<ImageLayout>) -> bool {
    let shape = &module.ty(value).shape;
    let channel_axis = convolution.map_or(shape.rank().saturating_sub(1), ImageLayout::channel);
    let constant = |i: usize| module.const_of(node.operands[i]);
    match &node.op {
        Op::IntRequant { axis, .. } | Op::IntRequant15 { axis, .. } => {
            let fits = constant(1).is_some_and(|c| channel_access(c) == Access::Scalar || *axis == channel_axis);
            // the 16-bit high product saturates -2^15 * -2^15 before the zero point is added, the op only after
            let high = matches!(node.op, Op::IntRequant15 { .. });
            let exact = !high || constant(1).is_some_and(|c| c.ints().iter().all(|&m| m != i16::MIN.into()));
            fits && exact && node.operands[0] == value
        }
        Op::IntRequantRows { .. } => convolution.is_none() && node.operands[0] == value,
        Op::IntMul { a_zero: 0, b_zero: 0 } => {
            let by_row = || row_access(&module.ty(node.operands[1]).shape, shape) == Access::Row;
            let by_row = convolution.is_none() && module.ty(value).elem == Elem::I32 && by_row();
            (by_row && node.operands[0] == value) || by_element(module, node, value)
        }
        Op::IntTable {} => node.operands[0] == value && constant(1).is_some(),
        Op::IntClamp { .. } | Op::IntHardSwish { .. } | Op::IntRoundShift { .. } => true,
        Op::IntAdd { .. } | Op::IntMin {} | Op::IntMax {} => node.operands.contains(&value),
        _ => false,
    }
}

/// Whether a node multiplies a value with another of its shape, none of which has more than 16 bits.
fn by_element(module: &Module, node: &Node, value: ValueId) -> bool {
    let is_half = |v: &ValueId| module.ty(*v).shape == module.ty(value).shape && module.ty(*v).elem.bytes() <= 2;
    node.operands.contains(&value) && node.operands.iter().all(is_half)
}

/// A lane program being built from a chain.
pub(super) struct Epilogue {
    inputs: Vec<Input>,
    insts: Vec<Inst>,
    extras: Vec<ValueId>,
    current: Reg,
    /// Element type of the current value.
    elem: Elem,
    /// Whether channels are the last dimension, as everywhere but in convolutions that have them first.
    pub channels_last: bool,
}

impl Epilogue {
    /// Starts with input 0, an element of that type.
    pub fn new(elem: Elem) -> Epilogue {
        let input = Input { elem, access: Access::Element };
        Epilogue {
            inputs: vec![input],
            insts: vec![Inst::Load(0)],
            extras: Vec::new(),
            current: 0,
            elem,
            channels_last: true,
        }
    }

    fn push(&mut self, inst: Inst) -> Reg {
        self.insts.push(inst);
        (self.insts.len() - 1) as Reg
    }

    fn step(&mut self, inst: Inst) {
        self.current = self.push(inst);
    }

    fn extra(&mut self, value: ValueId, elem: Elem, access: Access) -> u32 {
        let input = Input { elem, access };
        if let Some(i) = self.extras.iter().zip(&self.inputs[1..]).position(|(v, i)| *v == value && *i == input) {
            return i as u32 + 1;
        }
        self.extras.push(value);
        self.inputs.push(input);
        self.extras.len() as u32
    }

    fn load(&mut self, value: ValueId, elem: Elem, access: Access) -> Reg {
        let input = self.extra(value, elem, access);
        self.push(Inst::Load(input))
    }

    /// The operand of a symmetric op that is not the chain's value, or that value again.
    fn other(&mut self, module: &Module, node: &Node, value: ValueId) -> Reg {
        match node.operands.iter().copied().find(|&v| v != value) {
            Some(other) => {
                let (ty, channels) = (module.ty(other), module.ty(value).shape.last_fixed());
                let by_channel = self.channels_last
                    && ty.shape.rank() == 1
                    && is_constant(module, other)
                    && ty.shape.last_fixed() == channels;
                self.load(other, ty.elem, if by_channel { Access::Channel } else { Access::Element })
            }
            None => self.current,
        }
    }

    /// Adds the accumulator's bias.
    pub fn add_bias(&mut self, bias: ValueId, ty: &TensorType) {
        let single = ty.shape.count().and_then(|d| d.as_fixed()) == Some(1);
        let access = if single { Access::Scalar } else { Access::Channel };
        let b = self.load(bias, ty.elem, access);
        self.step(Inst::Add(self.current, b));
    }

    fn add_constant(&mut self, value: i64) {
        if value != 0 {
            let c = self.push(lane_const(value));
            self.step(Inst::Add(self.current, c));
        }
    }

    fn saturate(&mut self, to: Elem) {
        if let Some((lo, hi)) = to.range()
            && to != Elem::I32
        {
            self.step(Inst::Clamp(self.current, lo, hi));
        }
        self.elem = to;
    }

    /// Appends one op of the chain that consumes `value`.
    pub fn append(&mut self, module: &Module, node: &Node, value: ValueId, known: &[Interval]) -> Result<(), String> {
        match &node.op {
            Op::IntRequant { x_zero, shift, zero_point, to, .. } => {
                self.add_constant(-x_zero);
                let c = module.const_of(node.operands[1]).ok_or("a multiplier is a constant")?;
                let m = self.load(node.operands[1], Elem::I32, channel_access(c));
                let x = known[value.0 as usize];
                if *shift < 32 && x.product_fits(*x_zero, c, *shift) {
                    self.step(Inst::Mul(self.current, m));
                    self.step(Inst::RoundShr(self.current, *shift));
                    self.add_constant(*zero_point);
                    self.saturate(*to);
                } else {
                    self.dyadic(m, *shift, *zero_point, *to, x.room(*x_zero));
                }
            }
            Op::IntRequantRows { shift, zero_point, to } => {
                let access = row_access(&module.ty(node.operands[1]).shape, &module.ty(value).shape);
                let m = self.load(node.operands[1], Elem::I32, access);
                self.dyadic(m, *shift, *zero_point, *to, known[value.0 as usize].room(0));
            }
            Op::IntMul { .. } if by_element(module, node, value) => {
                let b = self.other(module, node, value);
                self.step(Inst::Mul(self.current, b));
                self.elem = Elem::I32;
            }
            Op::IntMul { .. } => {
                let m = self.load(node.operands[1], Elem::I32, Access::Row);
                self.step(Inst::Mul(self.current, m));
            }
            Op::IntRequant15 { pre_shift, post_shift, zero_point, to, .. } => {
                let c = module.const_of(node.operands[1]).ok_or("a multiplier is a constant")?;
                if *pre_shift > 0 {
                    self.step(Inst::RoundShr(self.current, *pre_shift));
                }
                self.step(Inst::Clamp(self.current, i16::MIN.into(), i16::MAX.into()));
                let m = self.load(node.operands[1], Elem::I16, channel_access(c));
                self.step(Inst::MulHigh15(self.current, m));
                if *post_shift > 0 {
                    self.step(Inst::RoundShr(self.current, *post_shift));
                }
                self.add_constant(*zero_point);
                self.saturate(*to);
            }
            Op::IntTable {} => {
                let ty = module.ty(node.operands[1]);
                let input = self.extra(node.operands[1], ty.elem, Access::Table);
                let bias = self.elem.range().ok_or("a table of floats")?.0;
                self.step(Inst::Table { input, index: self.current, bias });
                self.elem = ty.elem;
            }
            Op::IntClamp { lo, hi } => self.step(Inst::Clamp(self.current, *lo, *hi)),
            Op::IntHardSwish { shift } => self.hardswish(*shift),
            Op::IntRoundShift { shift } => self.step(Inst::RoundShr(self.current, *shift)),
            Op::IntAdd { to } => {
                let b = self.other(module, node, value);
                self.step(Inst::Add(self.current, b));
                self.saturate(*to);
            }
            Op::IntMin {} => {
                let b = self.other(module, node, value);
                self.step(Inst::Min(self.current, b));
            }
            Op::IntMax {} => {
                let b = self.other(module, node, value);
                self.step(Inst::Max(self.current, b));
            }
            op => return Err(format!("`{}` is not elementwise", op.name())),
        }
        Ok(())
    }

    /// `((x * m + half) >> shift) + zero_point`, saturated. From 32 shifts on, the quotient of a 62-bit product fits 31 bits, so
    /// the rest happens in 32-bit lanes; a value with room for it is shifted left first, to get there.
    fn dyadic(&mut self, multiplier: Reg, shift: u32, zero_point: i64, to: Elem, room: u32) {
        let left = 32u32.saturating_sub(shift);
        let shift = if left > 0 && left <= room {
            self.step(Inst::Shl(self.current, left));
            32
        } else {
            shift
        };
        self.step(Inst::MulWide(self.current, multiplier));
        self.step(Inst::RoundShr(self.current, shift));
        if shift >= 32 {
            self.step(Inst::Truncate(self.current));
            self.add_constant(zero_point);
        } else {
            if zero_point != 0 {
                let c = self.push(Inst::Const(zero_point, Width::W64));
                self.step(Inst::Add(self.current, c));
            }
            let (lo, hi) = to.range().unwrap_or((i32::MIN.into(), i32::MAX.into()));
            self.step(Inst::Clamp(self.current, lo, hi));
            self.step(Inst::Truncate(self.current));
        }
        self.saturate(to);
    }

    /// The value times `min(max(x + 3, 0), 6) / 6` in 15 bits.
    fn hardswish(&mut self, shift: i64) {
        let x = self.current;
        if shift < 0 {
            self.step(Inst::Shr(x, shift.unsigned_abs() as u32));
            self.add_constant(1 << 14);
        } else {
            let three = 1 << (14 - shift);
            self.step(Inst::Clamp(x, -three, three - 1));
            self.add_constant(three);
        }
        if shift > 0 {
            self.step(Inst::Shl(self.current, shift as u32));
        }
        self.step(Inst::MulHigh15(x, self.current));
    }

    /// The program and its extras in operand order.
    pub fn finish(mut self, output: Elem) -> (Program, Vec<ValueId>) {
        if self.current as usize + 1 != self.insts.len() {
            // the last instruction is what is stored
            self.step(Inst::Clamp(self.current, i32::MIN.into(), i32::MAX.into()));
        }
        (Program { inputs: self.inputs, insts: self.insts, output }, self.extras)
    }
}

/// How an extra of that shape, which broadcasts to `shape`, is indexed.
fn row_access(extra: &Shape, shape: &Shape) -> Access {
    match (extra.0.split_last(), shape.0.split_last()) {
        (Some((last, outer)), Some((_, rows))) if last.as_fixed() == Some(1) && outer == rows => Access::Row,
        _ => Access::Element,
    }
}

/// Whether a value is a constant of the module.
pub(super) fn is_constant(module: &Module, v: ValueId) -> bool {
    matches!(module.values[v.0 as usize].def, Def::Const(_))
}
