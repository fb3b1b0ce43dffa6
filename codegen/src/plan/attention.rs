//! `fused.attention`: the parts of a head over scratch, and where the heads lie.

use cranelift_module::Module as Backend;
use vitc_ir::lane::{Access, Input, Inst, Program};
use vitc_ir::{Const, Dim, Elem, Node, Op, Shape, ValueId};
use vitc_runtime::Buffer;

use super::elementwise::{requantize_head, rounded};
use super::product::{bias_program, reading, single_stride, zero_points};
use super::{Call, Lowered, Planner, extent, joint, product_of};
use crate::attention::Attention;
use crate::cost::{Choice, Core, Offer, Unit};
use crate::gemm::{Gemm, Reading, Weights};
use crate::kernel::Spec;
use crate::operand::{Columns, Operand};
use crate::rows::{Rows, Work};
use crate::view::{Lin, View};
use crate::wide::attention::{LARGEST_BIAS, WideAttention};

/// One of q, k, v and the result: where its elements lie, over all heads.
struct Side {
    buffer: Buffer,
    view: View,
    elem: Elem,
}

/// Sizes of a head: q is [rows, d], k [d, keys], v [keys, columns].
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    d: usize,
    keys: usize,
    columns: usize,
}

impl<M: Backend> Planner<'_, M> {
    pub(super) fn attention(&mut self, node: &Node) -> Lowered {
        let Op::FusedAttention { q_zero, k_zero, v_zero, numerator, shift, zero_point, ref perm, to, .. } = node.op
        else {
            return Err("not attention".into());
        };
        let result = self.module.ty(node.result).shape.clone();
        let dims = unpermuted(&result.0, perm);
        let (lead, last) = dims.split_at(dims.len() - 2);
        let depth = |n: usize| self.module.ty(node.operands[n]).shape.last_fixed();
        let (Some(rows), Some(columns), Some(d), Some(keys)) =
            (last[0].as_fixed(), last[1].as_fixed(), depth(0), depth(1))
        else {
            return Err("the sizes of a head grow with the batch".into());
        };
        let size = Sizes { rows, d, keys, columns };
        let q = self.side(node.operands[0], lead, [rows, d])?;
        let k = self.side(node.operands[1], lead, [d, keys])?;
        let v = self.side(node.operands[2], lead, [keys, columns])?;
        let view = View::contiguous(&result).ok_or("the batch would be squared")?;
        let view = View { offset: view.offset, dims: unpermuted(&view.dims, perm) };
        let out = Side { buffer: self.buffer(node.result)?, view, elem: to };

        let mut args = vec![q.buffer, k.buffer, v.buffer, out.buffer];
        let mut table = Vec::new();
        let exp = self.work(node, &mut args, &mut table)?;
        let biases =
            node.operands[4..].iter().map(|&v| self.side(v, lead, [rows, keys])).collect::<Lowered<Vec<_>>>()?;
        args.extend(biases.iter().map(|b| b.buffer));
        let (mut sizes, heads, biases) = heads([&q, &k, &v, &out], &biases, lead)?;
        sizes.push(rows.into());
        let row = Operand { columns: Columns::Stride(0), ..scratch(Elem::I32, 1) };
        let weights = scratch(Elem::U8, keys);
        let over_rows = |work, operands| Rows { sizes: vec![rows.into()], c: keys, operands, work };
        let reciprocal = over_rows(Work::Reciprocal { numerator }, vec![row.clone(), row.clone()]);
        let zeros = zero_points(q.elem, q_zero, k.elem, k_zero)?;
        let value_zeros = zero_points(Elem::U8, 0, v.elem, v_zero)?;
        let spec = Attention {
            heads,
            scores: self.scores(&q, &k, &biases, size, zeros)?,
            biases,
            exp: over_rows(exp, [scratch(Elem::I32, keys), table.remove(0), weights.clone()].into()),
            sum: over_rows(Work::Sum, vec![weights, row]),
            reciprocal: Rows { c: 1, ..reciprocal },
            values: self.values(&v, &out, size, value_zeros, &requantize_rows(shift, zero_point, to, false))?,
            sizes: sizes.clone(),
        };
        let items = product_of(&sizes)?;
        let (name, macs) = (spec.name(), items.size as u64 * (keys * (d + columns)) as u64);
        let key = format!("{name}m{rows}");
        let choice = self.options.choices.of(&key);
        let unit = self.attention_unit(choice, size);
        let (spec, grain, unit) = match self.widened_attention(&spec, node, unit)? {
            Some(wide) => (Spec::WideAttention(Box::new(wide.clone())), wide.grain(), unit),
            None => (Spec::Attention(Box::new(spec)), 12, Unit::Portable),
        };
        let offer = self.units_but(unit).map(|others| {
            let other = |&unit| Choice { unit: Some(unit), ..Choice::default() };
            Offer { key, chosen: other(&unit), others: others.iter().map(other).collect() }
        });
        self.step_offering(Call { name, spec, args, items: extent(items), grain, macs }, offer)
    }

    fn attention_unit(&self, choice: Choice, Sizes { rows, d, keys, columns }: Sizes) -> Unit {
        let core = Core::of(self.tier);
        self.unit(choice, || core.attention_unit(rows, d, keys, columns))
    }

    /// The same as a kernel of the wide tiers, where that can do it.
    fn widened_attention(&mut self, narrow: &Attention, node: &Node, unit: Unit) -> Lowered<Option<WideAttention>> {
        if unit == Unit::Portable {
            return Ok(None);
        }
        let Op::FusedAttention { table_bits, shift, zero_point, to, .. } = node.op else { return Ok(None) };
        let tiled = if unit == Unit::Tiles {
            let starts = narrow.values.b_zero != 0;
            Some(self.lane(
                &requantize_rows(shift, zero_point, to, starts),
                &[None, None, None][..2 + usize::from(starts)],
            )?)
        } else {
            None
        };
        let within = |c: &Const| c.ints().iter().all(|v| v.abs() <= LARGEST_BIAS);
        if !node.operands[4..].iter().all(|&v| self.const_of(v).is_some_and(within)) {
            return Ok(None);
        }
        let table = self.const_of(node.operands[3]).map(Const::ints);
        let wide = table.and_then(|table| WideAttention::of(narrow, &table, table_bits, tiled.as_ref()));
        let Some(wide) = wide else { return Ok(None) };
        Ok(self.kernels.fits(&Spec::WideAttention(Box::new(wide.clone())))?.then_some(wide))
    }

    fn side(&mut self, v: ValueId, lead: &[Dim], last: [usize; 2]) -> Lowered<Side> {
        let ty = self.module.ty(v);
        let (buffer, view) = self.operand(v)?;
        let whole = Shape(lead.iter().copied().chain(last.map(Dim::fixed)).collect());
        Ok(Side { buffer, view: view.broadcast(&ty.shape, &whole), elem: ty.elem })
    }

    /// q times k of one head, plus its biases.
    fn scores(&self, q: &Side, k: &Side, biases: &[Operand], size: Sizes, zeros: (i64, i64)) -> Lowered<Gemm> {
        let rank = q.view.dims.len();
        let in_head =
            |o: &Operand| Operand { offset: Lin::ZERO, rows: o.rows[o.rows.len() - 1..].to_vec(), ..o.clone() };
        Ok(Gemm {
            sizes: vec![size.rows.into()],
            k: size.d,
            n: size.keys,
            a: q.in_head(Columns::Same)?,
            reading: reading(&q.view.flat(rank - 1..rank), size.d)?,
            order: None,
            weights: k.matrix()?,
            a_zero: zeros.0,
            b_zero: zeros.1,
            out: scratch(Elem::I32, size.keys),
            extras: biases.iter().map(in_head).collect(),
            lane: self.lane(&sum_program(biases.len()), &vec![None; biases.len() + 1])?,
        })
    }

    /// Weights times v of one head, then the lane program whose second input is the row's reciprocal.
    fn values(&self, v: &Side, out: &Side, size: Sizes, zeros: (i64, i64), lane: &Program) -> Lowered<Gemm> {
        let columns = Columns::of(&out.view.flat(out.view.dims.len() - 1..out.view.dims.len()))?;
        Ok(Gemm {
            sizes: vec![size.rows.into()],
            k: size.keys,
            n: size.columns,
            a: scratch(Elem::U8, size.keys),
            reading: Reading::Direct { segments: 1, run: size.keys, step: 0 },
            order: None,
            weights: v.matrix()?,
            a_zero: zeros.0,
            b_zero: zeros.1,
            out: out.in_head(columns)?,
            extras: vec![Operand { columns: Columns::Same, ..scratch(Elem::I32, 1) }],
            lane: self.lane(lane, &[None, None])?,
        })
    }
}

impl Side {
    /// The side of one head: its rows, as if the head began at its pointer.
    fn in_head(&self, columns: Columns) -> Lowered<Operand> {
        let rows = vec![Lin::fixed(single_stride(&self.view.dims[self.view.dims.len() - 2])?)];
        Ok(Operand { elem: self.elem, offset: Lin::ZERO, rows, columns })
    }

    /// A right side.
    fn matrix(&self) -> Lowered<Weights> {
        let rank = self.view.dims.len();
        let columns = Columns::of(&self.view.flat(rank - 1..rank))?;
        let operand = Operand { elem: self.elem, offset: Lin::ZERO, rows: vec![], columns };
        Ok(Weights::Matrix { operand, k_stride: single_stride(&self.view.dims[rank - 2])? })
    }
}

/// Rows of scratch one after another.
fn scratch(elem: Elem, columns: usize) -> Operand {
    Operand { elem, offset: Lin::ZERO, rows: vec![Lin::fixed(columns as i64)], columns: Columns::Stride(1) }
}

/// The loops over heads that all sides share, and where each side's and each bias's heads lie in them.
fn heads(sides: [&Side; 4], biases: &[Side], lead: &[Dim]) -> Lowered<(Vec<Dim>, [Operand; 4], Vec<Operand>)> {
    let all: Vec<&Side> = sides.into_iter().chain(biases).collect();
    let views: Vec<(&View, Elem)> = all.iter().map(|s| (&s.view, s.elem)).collect();
    let dims: Vec<usize> = (0..lead.len()).collect();
    let mut columns = vec![Columns::Same; 4];
    for bias in biases {
        let rank = bias.view.dims.len();
        columns.push(Columns::of(&bias.view.flat(rank - 1..rank))?);
    }
    let (sizes, mut operands) = joint(&views, &Shape(lead.to_vec()), &dims, &columns)?;
    for n in [0, 3].into_iter().chain(4..all.len()) {
        let row = single_stride(&all[n].view.dims[lead.len()])?;
        operands[n].rows.push(Lin::fixed(row));
        operands[n].check_rows()?;
    }
    let biases = operands.split_off(4);
    Ok((sizes, operands.try_into().map_err(|_| "four sides")?, biases))
}

/// Accumulators plus this many inputs.
fn sum_program(biases: usize) -> Program {
    let mut program = bias_program(&[]);
    for n in 1..=biases as u32 {
        program.inputs.push(Input { elem: Elem::I32, access: Access::Element });
        let sum = program.insts.len() as u32 - 1;
        program.insts.extend([Inst::Load(n), Inst::Add(sum, sum + 1)]);
    }
    program
}

/// `x` with `unpermuted(x, perm)[perm[i]] = x[i]`.
fn unpermuted<T: Clone>(x: &[T], perm: &[usize]) -> Vec<T> {
    let mut out = x.to_vec();
    perm.iter().zip(x).for_each(|(&p, x)| out[p] = x.clone());
    out
}

/// `int.requant_rows` of an accumulator, to which, if `starts`, the third input adds what is the same for a row.
fn requantize_rows(shift: u32, zero_point: i64, output: Elem, starts: bool) -> Program {
    let input = |access| Input { elem: Elem::I32, access };
    let mut inputs = vec![input(Access::Element), input(Access::Row)];
    let mut insts = requantize_head(Elem::I32, 0);
    if starts {
        inputs.push(input(Access::Row));
        insts = vec![Inst::Load(0), Inst::Load(2), Inst::Add(0, 1), Inst::Load(1), Inst::MulWide(2, 3)];
    }
    rounded(&mut insts, shift, zero_point);
    Program { inputs, insts, output }
}
