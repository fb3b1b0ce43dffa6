//! Nodes over the last dimension (or, for sums, any axis).

use cranelift_module::Module as Backend;
use vitc_ir::table::falls_and_rises;
use vitc_ir::{Elem, Node, Op, Shape};

use super::{Call, Lowered, Planner, extent, joint, product_of};
use crate::kernel::Spec;
use crate::operand::{Columns, Operand};
use crate::rows::{Elements, Rows, Work, exp_table};
use crate::sum::AxisSum;
use crate::view::{Lin, View};
use crate::wide::exp::WideExp;
use crate::wide::norm::WideNorm;
use crate::wide::peak::WidePeak;

impl<M: Backend> Planner<'_, M> {
    pub(super) fn over_rows(&mut self, node: &Node) -> Lowered {
        let x = self.module.ty(node.operands[0]).clone();
        if let Op::IntReduceSum { axis, .. } = node.op
            && axis + 1 != x.shape.rank()
        {
            return self.axis_sum(node, axis);
        }
        let (x_buffer, view) = self.operand(node.operands[0])?;
        let (c, rank) = (x.shape.last_fixed().ok_or("the last dimension grows with the batch")?, x.shape.rank());
        let mut args = vec![x_buffer];
        let mut extra: Vec<Operand> = Vec::new();
        let work = self.work(node, &mut args, &mut extra)?;
        let result = self.module.ty(node.result);
        let single = matches!(work, Work::Sum | Work::Peak { .. });
        let out_shape = if single { Shape(x.shape.0[..rank - 1].to_vec()) } else { x.shape.clone() };
        let mut out = View::contiguous(&out_shape).ok_or("the batch would be squared")?;
        if single {
            out.dims.push(Vec::new());
        }
        // A repeated element is still loaded once for each column: sums must not see more columns than there are.
        let columns = |v: &View| match Columns::of(&v.flat(rank - 1..rank)) {
            Ok(Columns::Same) => Ok(Columns::Stride(0)),
            other => other,
        };
        let (x_columns, out_columns) = (columns(&view)?, columns(&out)?);
        let rows: Vec<usize> = (0..rank - 1).collect();
        let views = [(&view, x.elem), (&out, result.elem)];
        let (sizes, mut operands) = joint(&views, &x.shape, &rows, &[x_columns, out_columns])?;
        let last = operands.pop().ok_or("no result")?;
        operands.extend(extra);
        operands.push(last);
        args.push(self.buffer(node.result)?);
        let items = extent(product_of(&sizes)?);
        let name = format!("{}_{}__c{c}", node.op.name().trim_start_matches("int."), x.elem.name());
        let rows = Rows { sizes, c, operands, work };
        let wide = match node.op {
            Op::IntExp { table_bits, .. } => {
                let table = self.const_of(node.operands[1]).ok_or("the table is not constant")?.ints();
                WideExp::of(&rows, &table, table_bits).map(Spec::WideExp)
            }
            Op::IntLayerNorm { .. } => WideNorm::of(&rows).map(Spec::WideNorm),
            _ => WidePeak::of(&rows).map(Spec::WidePeak),
        };
        let spec = self.widest(wide, Spec::Rows(rows))?;
        self.step(Call { spec, name, args, items, grain: 1, macs: 0 })
    }

    /// The work (of attention, the exponential), with the arguments and operands between x and the result.
    pub(super) fn work(
        &mut self,
        node: &Node,
        args: &mut Vec<vitc_runtime::Buffer>,
        extra: &mut Vec<Operand>,
    ) -> Lowered<Work> {
        match node.op {
            Op::IntExp { limit, multiplier, shift, table_bits }
            | Op::FusedAttention { limit, multiplier, exp_shift: shift, table_bits, .. } => {
                let table = node.operands[if matches!(node.op, Op::FusedAttention { .. }) { 3 } else { 1 }];
                let table = self.const_of(table).ok_or("the table is not constant")?.ints();
                let composed = exp_table(&table, table_bits, (limit * multiplier) >> shift)?;
                let entries = composed.len();
                args.push(self.pool(composed.iter().flat_map(|v| v.to_le_bytes()).collect()));
                extra.push(Operand { elem: Elem::U8, offset: Lin::ZERO, rows: vec![], columns: Columns::Table });
                Ok(Work::Exp { limit, multiplier, shift, entries })
            }
            Op::IntLayerNorm { epsilon, centred, guard, norm_bits, recip_bits, shift, zero_point, .. } => {
                self.channels(node, args, extra)?;
                Ok(Work::LayerNorm { epsilon, centred, guard, norm_bits, recip_bits, shift, zero_point })
            }
            Op::IntShiftLayerNorm { shift, zero_point, .. } => {
                self.channels(node, args, extra)?;
                Ok(Work::ShiftLayerNorm { shift, zero_point })
            }
            Op::IntReduceSum { .. } => Ok(Work::Sum),
            Op::IntRowPeak { shift } => Ok(Work::Peak { shift, of: self.entries(node, args, extra)? }),
            Op::IntRowCodes { levels, zero_point, shift } => {
                Ok(Work::Codes { levels, zero_point, shift, of: self.entries(node, args, extra)? })
            }
            Op::IntReciprocal { numerator } => Ok(Work::Reciprocal { numerator }),
            Op::IntShiftmax { one, n, bits } => Ok(Work::Shiftmax { one, n, bits }),
            Op::IntShiftGelu { x_zero, one, n, bits } => Ok(Work::ShiftGelu { x_zero, one, n, bits }),
            ref op => Err(format!("`{}` has no row kernel", op.name()).into()),
        }
    }

    /// What the elements of a row with a grid of its own are, with the table of their entries.
    fn entries(
        &mut self,
        node: &Node,
        args: &mut Vec<vitc_runtime::Buffer>,
        extra: &mut Vec<Operand>,
    ) -> Lowered<Elements> {
        let Some(&table) = node.operands.get(1) else { return Ok(Elements::Plain) };
        let entries = self.const_of(table).ok_or("the table is not constant")?.ints();
        let (buffer, _) = self.operand(table)?;
        args.push(buffer);
        extra.push(Operand { elem: Elem::I16, offset: Lin::ZERO, rows: vec![], columns: Columns::Table });
        Ok(Elements::Entries { valley: falls_and_rises(&entries) })
    }

    /// Gamma and beta.
    fn channels(&mut self, node: &Node, args: &mut Vec<vitc_runtime::Buffer>, extra: &mut Vec<Operand>) -> Lowered {
        for &v in &node.operands[1..3] {
            let (buffer, view) = self.operand(v)?;
            let columns = Columns::of(&view.flat(0..view.dims.len()))?;
            extra.push(Operand { elem: self.module.ty(v).elem, offset: view.offset, rows: vec![], columns });
            args.push(buffer);
        }
        Ok(())
    }

    fn axis_sum(&mut self, node: &Node, axis: usize) -> Lowered {
        let x = self.module.ty(node.operands[0]).clone();
        let (buffer, view) = self.operand(node.operands[0])?;
        let (len, stride) = match view.dims[axis][..] {
            [] => (1, 0),
            [f] => (f.size.size, f.stride.as_fixed().ok_or("an axis whose stride grows with the batch")?),
            _ => return Err("a sum over a split dimension".into()),
        };
        let last = x.shape.rank() - 1;
        let columns = match (view.dims[last][..].as_ref(), x.shape.0[last].as_fixed()) {
            ([f], Some(n)) if f.stride == Lin::fixed(1) && axis != last => Some(n),
            _ => None,
        };
        let kept: Vec<usize> = (0..=last).filter(|&d| d != axis && (d != last || columns.is_none())).collect();
        let mut shape = x.shape.clone();
        shape.0[axis] = 1.into();
        let out = View::contiguous(&shape).ok_or("the batch would be squared")?;
        let views = [(&view, x.elem), (&out, Elem::I32)];
        let (sizes, operands) = joint(&views, &shape, &kept, &[Columns::Same; 2])?;
        let [from, to] = <[Operand; 2]>::try_from(operands).map_err(|_| "two operands")?;
        let args = vec![buffer, self.buffer(node.result)?];
        let name = format!("reduce_sum_axis_{}__k{len}", x.elem.name());
        let rows = product_of(&sizes)?;
        let sum = AxisSum { sizes, columns: columns.unwrap_or(1), x: from, out: to, axis: (len, stride) };
        let items = extent(rows.times(sum.blocks().into()).ok_or("too many results")?);
        let grain = if columns.is_some() { 1 } else { 64 };
        self.step(Call { spec: Spec::AxisSum(sum), name, args, items, grain, macs: 0 })
    }
}
