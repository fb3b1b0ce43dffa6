//! `int.linear_attention`: where the heads of its operands lie.

use cranelift_module::Module as Backend;
use vitc_ir::{Elem, Node, Op, Shape};

use super::product::single_stride;
use super::{Call, Lowered, Planner, extent, joint, product_of};
use crate::kernel::Spec;
use crate::linear::LinearAttention;
use crate::operand::Columns;
use crate::view::{Lin, View};
use crate::wide::linear::WideLinear;

impl<M: Backend> Planner<'_, M> {
    pub(super) fn linear_attention(&mut self, node: &Node) -> Lowered {
        let Op::IntLinearAttention { q_zero, k_zero, v_zero, epsilon, numerator, shift, log2, zero_point, to } =
            node.op
        else {
            return Err("not linear attention".into());
        };
        let result = self.module.ty(node.result).shape.clone();
        let rank = result.rank();
        let (lead, rows): (Vec<usize>, usize) = ((0..rank - 2).collect(), rank - 2);
        let mut views: Vec<(View, Elem)> = Vec::new();
        let mut args = Vec::new();
        for &v in &node.operands {
            let (buffer, view) = self.operand(v)?;
            args.push(buffer);
            views.push((view, self.module.ty(v).elem));
        }
        views.push((View::contiguous(&result).ok_or("the batch would be squared")?, to));
        args.push(self.buffer(node.result)?);
        let columns: Vec<Columns> =
            views.iter().map(|(v, _)| Columns::of(&v.flat(rank - 1..rank))).collect::<Result<_, _>>()?;
        let borrowed: Vec<(&View, Elem)> = views.iter().map(|(v, elem)| (v, *elem)).collect();
        let (sizes, mut sides) = joint(&borrowed, &Shape(result.0[..rank - 2].to_vec()), &lead, &columns)?;
        for (side, (view, _)) in sides.iter_mut().zip(&views) {
            side.rows.push(Lin::fixed(single_stride(&view.dims[rows])?));
            side.check_rows()?;
        }
        let size = |operand: usize, dim: usize| {
            self.module.ty(node.operands[operand]).shape.0[dim].as_fixed().ok_or("a size grows with the batch")
        };
        let spec = LinearAttention {
            sides: sides.try_into().map_err(|_| "four sides")?,
            tokens: [size(0, rows)?, size(1, rows)?],
            columns: [size(0, rows + 1)?, size(2, rows + 1)?],
            q_zero,
            k_zero,
            v_zero,
            epsilon,
            numerator,
            shift,
            log2,
            zero_point,
            sizes: sizes.clone(),
        };
        let heads = product_of(&sizes)?;
        let ([t, u], [d, e]) = (spec.tokens, spec.columns);
        let macs = (heads.size * (t + u) * d * e) as u64;
        let name = spec.name();
        let widened = WideLinear::of(&spec).map(|wide| Spec::WideLinear(Box::new(wide)));
        let spec = self.widest(widened, Spec::Linear(Box::new(spec)))?;
        self.step(Call { spec, name, args, items: extent(heads), grain: 1, macs })
    }
}
