//! Borders of dense and grouped convolutions as movement: they are matrix products over windows of an image, which then all
//! lie inside it. Depthwise ones need no copy of the image: their kernel pads a few rows at a time.

use vitc_ir::{Const, Elem, ImageLayout, Op, Shape, TensorType, ValueId};

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
    let weights = if *groups == 1 { d.constant_of(operands[1]).and_then(with_whole_words) } else { None };
    let more = weights.as_ref().map_or(0, |(_, more)| *more);
    let (before, after) = (vec![0, top, left, 0], vec![0, bottom, right, more]);
    let pad = Op::Pad { before, after, value: (*x_zero as f64).into() };
    let (loc, result) = (d.loc(n), d.ty(d.node(n).result).clone());
    if let Some((weights, _)) = weights {
        operands[1] = d.constant(weights);
    }
    operands[0] = d.push(pad, &operands[..1], loc.clone())?;
    d.push_typed(op, &operands, result, loc)
}

/// Weights `[depth, channels, height, width]` in bytes with channels of nothing behind the others, and how many: so many that a
/// pixel has whole words of four, as the products read them. A window then needs no copy. Not where there would be half as many products again.
fn with_whole_words(w: &Const) -> Option<(Const, usize)> {
    let [depth, channels, height, width] = w.ty.shape.as_fixed()?[..] else { return None };
    let whole = channels.next_multiple_of(4);
    if w.ty.elem != Elem::I8 || whole == channels || 2 * whole >= 3 * channels {
        return None;
    }
    let plane = height * width;
    let padded = |filter: &[u8]| [filter, &vec![0; (whole - channels) * plane]].concat();
    let data: Vec<i8> = w.data.chunks(channels * plane).flat_map(padded).map(|b| b as i8).collect();
    let ty = TensorType { shape: Shape::fixed(&[depth, whole, height, width]), ..w.ty.clone() };
    Some((Const::new(w.name.clone(), ty, &data), whole - channels))
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

    /// The module with three channels instead of two: windows of words of four.
    fn with_three_channels() -> String {
        let weights: Vec<String> = (0..36).map(|i| (i * 29 % 51 - 25).to_string()).collect();
        let start = MODULE.find("= [1, -2").unwrap();
        let end = start + MODULE[start..].find(']').unwrap() + 1;
        let text = format!("{}= [{}]{}", &MODULE[..start], weights.join(", "), &MODULE[end..]);
        text.replace("2x2x2x3xi8", "2x3x2x3xi8").replace("4x5x2xu8", "4x5x3xu8")
    }

    fn run(text: &str, channels: usize) -> vitc_ir::Module {
        let before = text::parse(text, Default::default()).unwrap();
        let (after, fired) = crate::fuse::run(&before).unwrap();
        assert_eq!(fired.get("borders"), Some(&1));
        assert!(after.nodes.iter().any(|n| matches!(n.op, Op::FusedConv2d { pads: [0, 0, 0, 0], .. })));
        let pixels = (0..40 * channels).map(|i| (i * 37 % 256) as u8).collect();
        let x = Tensor { shape: vec![2, 4, 5, channels], data: Data::U8(pixels) };
        let run = |m| format!("{:?}", eval::run(m, std::slice::from_ref(&x)).unwrap());
        assert_eq!(run(&before), run(&after));
        after
    }

    #[test]
    fn the_padded_image_is_convolved_alike() {
        run(MODULE, 2);
    }

    #[test]
    fn three_channels_become_words_of_four() {
        let after = run(&with_three_channels(), 3);
        let pads = after.nodes.iter().filter_map(|n| match &n.op {
            Op::Pad { after, .. } => Some(after[3]),
            _ => None,
        });
        assert_eq!(pads.collect::<Vec<_>>(), [1]);
    }
}
