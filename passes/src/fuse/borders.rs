//! Borders of dense and grouped convolutions as movement: they are matrix products over windows of an image, which then all
//! lie inside it. Depthwise ones need no copy of the image: their kernel pads a few rows at a time.

use vitc_ir::{ImageLayout, Op, ValueId};

use crate::clean::draft::{Draft, Rule};

/// The rules of this file.
pub(super) const RULES: &[(&str, Rule)] = &[("borders", borders)];

/// `fused.conv2d` with pads as one without, of the padded image. What counts as nothing there is the zero point.
fn borders(d: &mut Draft, n: usize) -> Option<ValueId> {
    let mut op = d.node(n).op.clone();
    let Op::FusedConv2d { pads, groups, layout: ImageLayout::ChannelsLast, x_zero, .. } = &mut op else { return None };
    let mut operands = d.node(n).operands.clone();
    let (x, w) = (d.ty(operands[0]), d.shape(operands[1]));
    let is_depthwise = w.0[1] == 1.into() && w.0[0] == (*groups).into();
    let holds = x.elem.range().is_some_and(|(lo, hi)| (lo..=hi).contains(x_zero));
    if *pads == [0; 4] || is_depthwise || !holds {
        return None;
    }
    let [top, left, bottom, right] = std::mem::take(pads);
    let pad =
        Op::Pad { before: vec![0, top, left, 0], after: vec![0, bottom, right, 0], value: (*x_zero as f64).into() };
    let (loc, result) = (d.loc(n), d.ty(d.node(n).result).clone());
    operands[0] = d.push(pad, &operands[..1], loc.clone())?;
    d.push_typed(op, &operands, result, loc)
}

#[cfg(test)]
mod tests {
    use vitc_ir::Op;
    use vitc_ir::eval::{self, Data, Tensor};
    use vitc_ir::text;

    const MODULE: &str = r#"
module "borders" stage integerize {
  const @w : tensor<2x2x2x3xi8, q(0x1p-6, 0)> = [1, -2, 3, -4, 5, -6, 7, -8, 9, -10, 11, -12, 13, -14, 15, -16, 17, -18, 19, -20, 21, -22, 23, -24]
  const @m : tensor<2xi32> = [1073741824, 1610612736]
  graph (%x: tensor<Nx4x5x2xu8, q(0x1p-5, 3)>) -> (%1 "y") {
    %0 = int.conv2d %x, @w {strides = [1, 2], pads = [1, 0, 2, 1], dilations = [1, 1], groups = 1, layout = nhwc, x_zero = 3} : tensor<Nx6x2x2xi32, q(0x1p-11, 0)>
    %1 = int.requant %0, @m {axis = 3, x_zero = 0, shift = 35, zero_point = 0, to = i16} : tensor<Nx6x2x2xi16, q(0x1p-6, 0)>
  }
}
"#;

    #[test]
    fn the_padded_image_is_convolved_alike() {
        let before = text::parse(MODULE, Default::default()).unwrap();
        let (after, fired) = crate::fuse::run(&before).unwrap();
        assert_eq!(fired.get("borders"), Some(&1));
        assert!(after.nodes.iter().any(|n| matches!(n.op, Op::FusedConv2d { pads: [0, 0, 0, 0], .. })));
        let pixels = (0..2 * 40).map(|i| (i * 37 % 256) as u8).collect();
        let x = Tensor { shape: vec![2, 4, 5, 2], data: Data::U8(pixels) };
        let run = |m| format!("{:?}", eval::run(m, std::slice::from_ref(&x)).unwrap());
        assert_eq!(run(&before), run(&after));
    }
}
