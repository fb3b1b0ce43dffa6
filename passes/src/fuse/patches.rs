//! Convolutions over patches that do not overlap become matrix products: the embedding of a vision transformer cuts the image
//! into patches, and what it computes from a patch is a row of tokens.
//!
//! The product yields channels last, which is what tokens are, so the transposition behind the convolution goes; the patches
//! are an index map that the product reads through. The same integers are multiplied and added, so not a bit changes.

use vitc_ir::lane::Access;
use vitc_ir::{Const, Dim, Elem, ImageLayout, Op, Quant, Shape, TensorType, ValueId};

use crate::clean::draft::{Draft, Rule};

/// The rules of this file.
pub(super) const RULES: &[(&str, Rule)] = &[("patches", patches)];

/// `transpose(fused.conv2d(x, w), channels last)` with strides as large as the kernel.
fn patches(d: &mut Draft, n: usize) -> Option<ValueId> {
    let node = d.node(n);
    let Op::Transpose { perm } = &node.op else { return None };
    let conv = d.def(node.operands[0]).filter(|_| perm[..] == [0, 2, 3, 1] && d.used_once(node.operands[0]))?;
    let Op::FusedConv2d { strides, pads: [0, 0, 0, 0], dilations: [1, 1], groups: 1, layout, x_zero, lane, to } =
        d.node(conv).op.clone()
    else {
        return None;
    };
    let operands = d.node(conv).operands.clone();
    let program = d.module().lanes.get(&lane.0)?;
    if program.inputs.iter().skip(1).any(|i| matches!(i.access, Access::Element | Access::Row)) {
        return None;
    }
    let w = d.constant_of(operands[1]).filter(|c| c.ty.elem == Elem::I8)?;
    let [depth, channels, height, width] = w.ty.shape.as_fixed()?[..] else { return None };
    let x = d.shape(operands[0]).0.clone();
    let (rows, columns) = (whole(x[2], height)?, whole(x[3], width)?);
    if strides != [height, width] || layout != ImageLayout::ChannelsFirst {
        return None;
    }
    let weights = transposed(w, depth, channels * height * width);
    let result = d.ty(d.node(n).result).clone();
    let loc = d.join_locs([conv, n]);
    let cut = [x[0], channels.into(), rows.into(), height.into(), columns.into(), width.into()];
    let cut = d.push(Op::Reshape { shape: Shape(cut.to_vec()) }, &operands[..1], loc.clone())?;
    let cut = d.push(Op::Transpose { perm: vec![0, 2, 4, 1, 3, 5] }, &[cut], loc.clone())?;
    let flat = Shape(vec![x[0], rows.into(), columns.into(), (channels * height * width).into()]);
    let cut = d.push(Op::Reshape { shape: flat }, &[cut], loc.clone())?;
    let weights = d.constant(weights);
    let operands: Vec<ValueId> = [cut, weights].into_iter().chain(operands[2..].iter().copied()).collect();
    d.push_typed(Op::FusedMatMul { a_zero: x_zero, b_zero: 0, lane, to }, &operands, result, loc)
}

/// How often `part` goes into a dimension, if it does so exactly.
fn whole(d: Dim, part: usize) -> Option<usize> {
    let size = d.as_fixed()?;
    size.is_multiple_of(part).then_some(size / part)
}

/// Weights `[depth, k]` as `[k, depth]`.
fn transposed(w: &Const, depth: usize, k: usize) -> Const {
    let data: Vec<i8> = (0..k * depth).map(|i| w.data[(i % depth) * k + i / depth] as i8).collect();
    let mut ty = TensorType::new(w.ty.elem, Shape::fixed(&[k, depth]));
    ty.quant = w.ty.quant.clone().map(|q| Quant { axis: q.axis.map(|_| 1), ..q });
    Const::new(w.name.clone(), ty, &data)
}

#[cfg(test)]
mod tests {
    use vitc_ir::eval::{self, Data, Tensor};
    use vitc_ir::text;

    const MODULE: &str = r#"
module "patches" stage integerize {
  const @w : tensor<3x2x2x3xi8, q(0x1p-6, 0)> = [1, -2, 3, -4, 5, -6, 7, -8, 9, -10, 11, -12, 13, -14, 15, -16, 17, -18, 19, -20, 21, -22, 23, -24, 25, -26, 27, -28, 29, -30, 31, -32, 127, -127, 35, -36]
  const @b : tensor<3xi32> = [100, -2000, 30]
  const @m : tensor<3xi32> = [1073741824, 1610612736, 1342177280]
  graph (%x: tensor<Nx2x4x6xu8, q(0x1p-5, 3)>) -> (%2 "y") {
    %0 = int.conv2d %x, @w, @b {strides = [2, 3], pads = [0, 0, 0, 0], dilations = [1, 1], groups = 1, layout = nchw, x_zero = 3} : tensor<Nx3x2x2xi32, q(0x1p-11, 0)>
    %1 = int.requant %0, @m {axis = 1, x_zero = 0, shift = 35, zero_point = 0, to = i16} : tensor<Nx3x2x2xi16, q(0x1p-6, 0)>
    %2 = transpose %1 {perm = [0, 2, 3, 1]} : tensor<Nx2x2x3xi16, q(0x1p-6, 0)>
  }
}
"#;

    #[test]
    fn the_product_computes_what_the_convolution_does() {
        let before = text::parse(MODULE, Default::default()).unwrap();
        let (after, fired) = crate::fuse::run(&before).unwrap();
        assert_eq!(fired.get("patches"), Some(&1));
        let pixels = (0..2 * 48).map(|i| (i * 37 % 256) as u8).collect();
        let x = Tensor { shape: vec![2, 2, 4, 6], data: Data::U8(pixels) };
        let run = |m| format!("{:?}", eval::run(m, std::slice::from_ref(&x)).unwrap());
        assert_eq!(run(&before), run(&after));
    }
}
