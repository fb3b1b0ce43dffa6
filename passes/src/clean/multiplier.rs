//! Convolutions that make several outputs of each channel by itself (a depth multiplier).
//!
//! Kernels go by channels, each with its own weights: one output of every channel is what they compute. So such a convolution is
//! as many of that kind, whose results are put in turn.

use vitc_ir::{Const, ImageLayout, Op, Shape, TensorType, ValueId};

use super::draft::Draft;

/// A convolution with one channel a group and several outputs of each.
pub(crate) fn split_multiplier(d: &mut Draft, n: usize) -> Option<ValueId> {
    let (op, operands, loc) = (d.node(n).op.clone(), d.node(n).operands.clone(), d.loc(n));
    let Op::Conv2d { groups, layout: ImageLayout::ChannelsFirst, .. } = op else { return None };
    let [channels, outputs] = [operands[0], d.node(n).result].map(|v| d.shape(v).0[1].as_fixed());
    let times = outputs? / groups;
    if channels != Some(groups) || groups == 1 || times == 1 {
        return None;
    }
    let part = |d: &mut Draft, j: usize| {
        let mut part = vec![operands[0]];
        for &constant in &operands[1..] {
            part.push(every(d, constant, times, j)?);
        }
        d.push(op.clone(), &part, loc.clone())
    };
    let parts = (0..times).map(|j| part(d, j)).collect::<Option<Vec<_>>>()?;
    let joined = d.push(Op::Concat { axis: 1 }, &parts, loc.clone())?;
    let index = (0..groups).flat_map(|channel| (0..times).map(move |j| j * groups + channel)).collect();
    d.push(Op::Gather { axis: 1, index }, &[joined], loc)
}

/// Every `step`-th row of a float constant, from row `first` on.
fn every(d: &mut Draft, v: ValueId, step: usize, first: usize) -> Option<ValueId> {
    let c = d.constant_of(v).filter(|c| c.layout.is_none() && c.ty == TensorType::f32(c.ty.shape.clone()))?;
    let mut dims = c.ty.shape.as_fixed()?;
    let row: usize = dims[1..].iter().product();
    let (name, values) = (c.name.clone(), c.values::<f32>());
    let rows: Vec<f32> = values.chunks_exact(row).skip(first).step_by(step).flatten().copied().collect();
    dims[0] = rows.len() / row;
    let c = Const::new(name, TensorType::f32(Shape::fixed(&dims)), &rows);
    Some(d.constant(c))
}
