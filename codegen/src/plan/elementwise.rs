//! Elementwise nodes: `fused.map`, and single integer ops as the lane program that they are.

use cranelift_module::Module as Backend;
use vitc_ir::lane::{Access, Input, Inst, Program, Width};
use vitc_ir::{Elem, Node, Op, ValueId};

use super::movement::{operand_of, split};
use super::{Call, Lowered, Planner, extent, flat_over, lane_word, product_of, spread};
use crate::kernel::Spec;
use crate::map::Map;
use crate::operand::Columns;
use crate::view::{Factor, Nest, View};
use crate::wide::map::WideMap;

impl<M: Backend> Planner<'_, M> {
    pub(super) fn elementwise(&mut self, node: &Node) -> Lowered {
        let (program, channel) = self.program_of(node)?;
        self.map(node, &program, channel)
    }

    fn map(&mut self, node: &Node, program: &Program, channel: usize) -> Lowered {
        let result = self.module.ty(node.result).clone();
        if program.inputs.len() != node.operands.len() {
            return Err("the lane program has another number of inputs".into());
        }
        let mut args = Vec::new();
        let mut views: Vec<View> = Vec::new();
        for (&v, input) in node.operands.iter().zip(&program.inputs) {
            let (buffer, view) = self.operand(v)?;
            views.push(spread(&view, &self.module.ty(v).shape, input.access, &result.shape, channel)?);
            args.push(buffer);
        }
        args.push(self.buffer(node.result)?);
        views.push(View::contiguous(&result.shape).ok_or("the batch would be squared")?);
        let all: Vec<usize> = (0..result.shape.rank()).collect();
        let lists: Vec<Vec<Factor>> = views.iter().map(|v| flat_over(v, &result.shape, &all)).collect();
        let nest = Nest::joint(&lists)?;
        let (sizes, columns) = split(&nest)?;
        let elems = program.inputs.iter().map(|i| i.elem).chain([program.output]);
        let mut operands = Vec::new();
        for (i, elem) in elems.enumerate() {
            let mut operand = operand_of(&nest, i, elem, views[i].offset)?;
            if program.inputs.get(i).is_some_and(|i| i.access == Access::Table) {
                operand.columns = Columns::Table;
            }
            operands.push(operand);
        }
        let out = operands.pop().ok_or("no result")?;
        let inputs: Vec<Option<ValueId>> = node.operands.iter().map(|&v| Some(v)).collect();
        let lane = self.lane(program, &inputs)?;
        let map = Map { sizes: sizes.clone(), columns, inputs: operands, out, lane };
        let items = if columns.is_none() { nest.sizes[0] } else { product_of(&sizes)? };
        let name = format!("map{}{}", lane_word(program), columns.map_or(String::new(), |n| format!("__n{n}")));
        let grain = map.grain();
        let spec = self.widest(WideMap::of(&map).map(Spec::WideMap), Spec::Map(map))?;
        self.step(Call { spec, name, args, items: extent(items), grain, macs: 0 })
    }

    /// The lane program of an elementwise node, and the dimension of its channels.
    fn program_of(&self, node: &Node) -> Lowered<(Program, usize)> {
        let last = self.module.ty(node.result).shape.rank().saturating_sub(1);
        let elem = |i: usize| self.module.ty(node.operands[i]).elem;
        let input = |i: usize, access| Input { elem: elem(i), access };
        let element = |i: usize| input(i, Access::Element);
        let program = |inputs, insts, output| Program { inputs, insts, output };
        Ok(match &node.op {
            Op::FusedMap { .. } => (self.named_lane(node)?, last),
            Op::IntRequant { axis, x_zero, shift, zero_point, to } => {
                let mut insts = requantize_head(elem(0), *x_zero);
                rounded(&mut insts, *shift, *zero_point);
                (program(vec![element(0), input(1, Access::Channel)], insts, *to), *axis)
            }
            Op::IntRequantRows { shift, zero_point, to } => {
                let mut insts = requantize_head(elem(0), 0);
                rounded(&mut insts, *shift, *zero_point);
                (program(vec![element(0), element(1)], insts, *to), last)
            }
            Op::IntRequant15 { axis, pre_shift, post_shift, zero_point, to } => {
                let insts = requantize15(*pre_shift, *post_shift, *zero_point);
                (program(vec![element(0), input(1, Access::Channel)], insts, *to), *axis)
            }
            Op::IntAdd { to } => {
                let mut insts = wide(elem(0), 0);
                let a = insts.len() as u32 - 1;
                wide_into(&mut insts, elem(1), 1);
                let b = insts.len() as u32 - 1;
                insts.push(Inst::Add(a, b));
                (program(vec![element(0), element(1)], insts, *to), last)
            }
            Op::IntMul { a_zero, b_zero } => {
                let insts = vec![
                    Inst::Load(0),
                    Inst::Const(*a_zero, Width::W32),
                    Inst::Sub(0, 1),
                    Inst::Load(1),
                    Inst::Const(*b_zero, Width::W32),
                    Inst::Sub(3, 4),
                    Inst::Mul(2, 5),
                ];
                (program(vec![element(0), element(1)], insts, Elem::I32), last)
            }
            Op::IntMin {} => (
                program(vec![element(0), element(1)], vec![Inst::Load(0), Inst::Load(1), Inst::Min(0, 1)], elem(0)),
                last,
            ),
            Op::IntMax {} => (
                program(vec![element(0), element(1)], vec![Inst::Load(0), Inst::Load(1), Inst::Max(0, 1)], elem(0)),
                last,
            ),
            Op::IntRoundShift { shift } => {
                (program(vec![element(0)], vec![Inst::Load(0), Inst::RoundShr(0, *shift)], Elem::I32), last)
            }
            Op::IntClamp { lo, hi } => {
                (program(vec![element(0)], vec![Inst::Load(0), Inst::Clamp(0, *lo, *hi)], elem(0)), last)
            }
            Op::IntHardSwish { shift } => (program(vec![element(0)], hardswish(*shift), Elem::I16), last),
            Op::IntTable {} => {
                let bias = elem(0).range().map_or(0, |r| r.0);
                let insts = vec![Inst::Load(0), Inst::Table { input: 1, index: 0, bias }];
                (program(vec![element(0), input(1, Access::Table)], insts, elem(1)), last)
            }
            op => return Err(format!("`{}` is not elementwise", op.name()).into()),
        })
    }
}

fn wide(elem: Elem, n: u32) -> Vec<Inst> {
    let mut insts = Vec::new();
    wide_into(&mut insts, elem, n);
    insts
}

/// Load of input `n` in 64 bits.
fn wide_into(insts: &mut Vec<Inst>, elem: Elem, n: u32) {
    insts.push(Inst::Load(n));
    if elem != Elem::I64 {
        insts.push(Inst::Widen(insts.len() as u32 - 1));
    }
}

/// `(x - x_zero) * multiplier` in 64 bits.
pub(super) fn requantize_head(elem: Elem, x_zero: i64) -> Vec<Inst> {
    if x_zero == 0 && elem != Elem::I64 {
        return vec![Inst::Load(0), Inst::Load(1), Inst::MulWide(0, 1)];
    }
    let mut insts = wide(elem, 0);
    let x = insts.len() as u32 - 1;
    insts.extend([Inst::Const(x_zero, Width::W64), Inst::Sub(x, x + 1), Inst::Load(1), Inst::Widen(x + 3)]);
    insts.push(Inst::Mul(x + 2, x + 4));
    insts
}

/// The product so far, rounded and shifted, with the zero point.
pub(super) fn rounded(insts: &mut Vec<Inst>, shift: u32, zero_point: i64) {
    let product = insts.len() as u32 - 1;
    insts.push(Inst::RoundShr(product, shift));
    insts.extend([Inst::Const(zero_point, Width::W64), Inst::Add(product + 1, product + 2)]);
}

/// The product is not `MulHigh15`: that one saturates `-2^15 * -2^15`, the op does so only after the zero point.
fn requantize15(pre_shift: u32, post_shift: u32, zero_point: i64) -> Vec<Inst> {
    let mut insts = vec![Inst::Load(0)];
    if pre_shift > 0 {
        insts.push(Inst::RoundShr(0, pre_shift));
    }
    let t = insts.len() as u32;
    insts.extend([
        Inst::Clamp(t - 1, i16::MIN.into(), i16::MAX.into()),
        Inst::Load(1),
        Inst::Mul(t, t + 1),
        Inst::RoundShr(t + 2, 15),
    ]);
    if post_shift > 0 {
        insts.push(Inst::RoundShr(t + 3, post_shift));
    }
    let y = insts.len() as u32 - 1;
    insts.extend([Inst::Const(zero_point, Width::W32), Inst::Add(y, y + 1)]);
    insts
}

/// The element times its gate.
fn hardswish(shift: i64) -> Vec<Inst> {
    let by = shift.unsigned_abs() as u32;
    if shift < 0 {
        let half = Inst::Const(1 << 14, Width::W32);
        return vec![Inst::Load(0), Inst::Shr(0, by), half, Inst::Add(1, 2), Inst::MulHigh15(0, 3)];
    }
    let three = 1 << (14 - shift);
    let gate = [Inst::Clamp(0, -three, three - 1), Inst::Const(three, Width::W32), Inst::Add(1, 2), Inst::Shl(3, by)];
    [Inst::Load(0)].into_iter().chain(gate).chain([Inst::MulHigh15(0, 4)]).collect()
}
