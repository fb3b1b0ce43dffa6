//! Matrix products and convolutions.

use vitc_ir::{Dim, ImageLayout, Op, Shape, ValueId};

use super::Table;
use crate::call::Call;
use crate::import::{listed, shorten};
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[("Conv", conv), ("Gemm", gemm), ("MatMul", matmul)];

fn matmul(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (a, b) = (call.tensor(0)?, call.tensor(1)?);
    let value = matmul_of(call, a, b)?;
    call.give_value(value);
    Ok(())
}

/// The product of two values as numpy has it.
pub(super) fn matmul_of(call: &mut Call<'_, '_>, a: ValueId, b: ValueId) -> Fallible<ValueId> {
    let (a_shape, b_shape) = (call.shape_of(a), call.shape_of(b));
    let one = Dim::fixed(1);
    // A vector is a row on the left and a column on the right, and its 1 disappears from the result.
    let (row, column) = (a_shape.rank() == 1, b_shape.rank() == 1);
    let a = if row { call.reshape(a, Shape([vec![one], a_shape.0].concat()))? } else { a };
    let b = if column { call.reshape(b, Shape([b_shape.0, vec![one]].concat()))? } else { b };
    let product = call.push(Op::MatMul {}, &[a, b])?;
    let mut shape = call.shape_of(product);
    if column {
        shape.0.pop();
    }
    if row {
        let at = shape.rank().saturating_sub(if column { 1 } else { 2 });
        shape.0.remove(at);
    }
    call.reshape(product, shape)
}

fn scaled(call: &mut Call<'_, '_>, x: ValueId, by: f32) -> Fallible<ValueId> {
    if by == 1.0 {
        return Ok(x);
    }
    let factor = call.scalar(by.into());
    call.push(Op::Mul {}, &[x, factor])
}

fn transposed(call: &mut Call<'_, '_>, x: ValueId, flag: &str) -> Fallible<ValueId> {
    if call.int_or(flag, 0)? == 0 { Ok(x) } else { call.push(Op::Transpose { perm: vec![1, 0] }, &[x]) }
}

fn gemm(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (a, b, c) = (call.tensor(0)?, call.tensor(1)?, call.optional(2)?);
    let value = gemm_of(call, a, b, c)?;
    call.give_value(value);
    Ok(())
}

/// `alpha a b + beta c` of values with the attributes of the node.
pub(super) fn gemm_of(call: &mut Call<'_, '_>, a: ValueId, b: ValueId, c: Option<ValueId>) -> Fallible<ValueId> {
    if call.shape_of(a).rank() != 2 || call.shape_of(b).rank() != 2 {
        return Err(invalid("both operands must be matrices"));
    }
    let a = transposed(call, a, "transA")?;
    let b = transposed(call, b, "transB")?;
    let b = scaled(call, b, call.float_or("alpha", 1.0)?)?;
    let c = match c {
        Some(c) => Some(scaled(call, c, call.float_or("beta", 1.0)?)?),
        None => None,
    };
    let columns = call.shape_of(b).0.last().copied();
    let is_bias = |shape: &Shape| shape.count() == columns && shape.0.last().copied() == columns;
    match c {
        None => call.push(Op::MatMul {}, &[a, b]),
        Some(c) if is_bias(&call.shape_of(c)) => call.push(Op::MatMul {}, &[a, b, c]),
        Some(c) => {
            let product = call.push(Op::MatMul {}, &[a, b])?;
            call.push(Op::Add {}, &[product, c])
        }
    }
}

/// Spatial attributes of a convolution or pooling, for one or two spatial dimensions.
#[derive(Debug, PartialEq)]
pub(super) struct Window {
    pub(super) strides: Vec<usize>,
    pub(super) dilations: Vec<usize>,
    /// Before and after, dimension by dimension.
    pub(super) pads: Vec<(usize, usize)>,
}

/// Reads the window attributes for these spatial sizes and kernel sizes.
pub(super) fn window(call: &Call<'_, '_>, sizes: &[usize], kernel: &[usize]) -> Fallible<Window> {
    let rank = sizes.len();
    let list = |name: &str, default: usize| -> Fallible<Vec<usize>> {
        let list = call.counts(name)?.unwrap_or_else(|| vec![default; rank]);
        let fits = list.len() == rank && list.iter().all(|&v| v > 0 && v <= 1 << 20);
        if fits { Ok(list) } else { Err(invalid(format!("`{name}` is {}", listed(&list)))) }
    };
    let (strides, dilations) = (list("strides", 1)?, list("dilations", 1)?);
    if kernel.len() != rank || kernel.iter().any(|&k| k == 0 || k > 1 << 20) {
        return Err(invalid(format!("the kernel is {}", listed(kernel))));
    }
    let pads = match call.word_or("auto_pad", "NOTSET")? {
        "NOTSET" => explicit_pads(call, rank)?,
        "VALID" => vec![(0, 0); rank],
        mode @ ("SAME_UPPER" | "SAME_LOWER") => {
            let each = sizes.iter().zip(kernel).zip(&strides).zip(&dilations);
            each.map(|(((&size, &k), &s), &d)| same_pads(size, (k - 1) * d + 1, s, mode == "SAME_UPPER")).collect()
        }
        other => return Err(invalid(format!("auto_pad={:?}", shorten(other)))),
    };
    Ok(Window { strides, dilations, pads })
}

fn explicit_pads(call: &Call<'_, '_>, rank: usize) -> Fallible<Vec<(usize, usize)>> {
    let list = call.counts("pads")?.unwrap_or_else(|| vec![0; 2 * rank]);
    match list.split_at_checked(rank) {
        Some((before, after)) if after.len() == rank => Ok(before.iter().copied().zip(after.iter().copied()).collect()),
        _ => Err(invalid(format!("`pads` is {}", listed(&list)))),
    }
}

/// Padding that makes `ceil(size / stride)` results.
fn same_pads(size: usize, span: usize, stride: usize, upper: bool) -> (usize, usize) {
    let results = size.div_ceil(stride);
    let total = (results.saturating_sub(1).saturating_mul(stride) + span).saturating_sub(size);
    let (small, large) = (total / 2, total - total / 2);
    if upper { (small, large) } else { (large, small) }
}

/// Spatial sizes of an image-like operand, all fixed.
pub(super) fn spatial(shape: &Shape) -> Fallible<Vec<usize>> {
    let sizes = shape.0.get(2..).ok_or_else(|| invalid("the operand has no spatial dimensions"))?;
    let fixed: Option<Vec<usize>> = sizes.iter().map(|d| d.as_fixed()).collect();
    match fixed {
        Some(sizes) if (1..=2).contains(&sizes.len()) => Ok(sizes),
        Some(sizes) => Err(unsupported(format!("{} spatial dimensions; 1 and 2 are supported", sizes.len()))),
        None => Err(unsupported("a spatial dimension depends on the batch")),
    }
}

/// A value with one spatial dimension as an image of height 1; one with two as it is.
pub(super) fn as_image(call: &mut Call<'_, '_>, x: ValueId) -> Fallible<ValueId> {
    let shape = call.shape_of(x);
    match shape.0.as_slice() {
        &[n, c, l] => call.reshape(x, Shape(vec![n, c, Dim::fixed(1), l])),
        _ => Ok(x),
    }
}

/// The reverse of [`as_image`].
pub(super) fn from_image(call: &mut Call<'_, '_>, x: ValueId, rank: usize) -> Fallible<ValueId> {
    let shape = call.shape_of(x);
    match (rank, shape.0.as_slice()) {
        (3, &[n, c, _, l]) => call.reshape(x, Shape(vec![n, c, l])),
        _ => Ok(x),
    }
}

/// The attributes of `conv2d` for a window over one or two dimensions.
pub(super) fn conv_op(window: &Window, groups: usize) -> Fallible<Op> {
    let pair = |list: &[usize], first: usize| match *list {
        [w] => Ok([first, w]),
        [h, w] => Ok([h, w]),
        _ => Err(unsupported("only one or two spatial dimensions are supported")),
    };
    let pads = match *window.pads.as_slice() {
        [(left, right)] => [0, left, 0, right],
        [(top, bottom), (left, right)] => [top, left, bottom, right],
        _ => return Err(unsupported("only one or two spatial dimensions are supported")),
    };
    Ok(Op::Conv2d {
        strides: pair(&window.strides, 1)?,
        pads,
        dilations: pair(&window.dilations, 1)?,
        groups,
        layout: ImageLayout::ChannelsFirst,
    })
}

fn conv(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (x, w, bias) = (call.tensor(0)?, call.tensor(1)?, call.optional(2)?);
    let value = conv_of(call, x, w, bias)?;
    call.give_value(value);
    Ok(())
}

/// The convolution of values with the attributes of the node.
pub(super) fn conv_of(call: &mut Call<'_, '_>, x: ValueId, w: ValueId, bias: Option<ValueId>) -> Fallible<ValueId> {
    let (x_shape, w_shape) = (call.shape_of(x), call.shape_of(w));
    let (sizes, kernel) = (spatial(&x_shape)?, spatial(&w_shape)?);
    if call.counts("kernel_shape")?.is_some_and(|k| k != kernel) {
        return Err(invalid(format!("`kernel_shape` is not that of the weights, {kernel:?}")));
    }
    let groups = usize::try_from(call.int_or("group", 1)?).map_err(|_| invalid("`group` is negative"))?;
    let op = conv_op(&window(call, &sizes, &kernel)?, groups)?;
    let (x, w) = (as_image(call, x)?, as_image(call, w)?);
    let operands: Vec<ValueId> = [x, w].into_iter().chain(bias).collect();
    let result = call.push(op, &operands)?;
    from_image(call, result, x_shape.rank())
}

#[cfg(test)]
mod tests {
    use super::same_pads;

    #[test]
    fn same_padding_splits_as_onnx_says() {
        assert_eq!(same_pads(5, 3, 1, true), (1, 1));
        assert_eq!(same_pads(224, 3, 2, true), (0, 1));
        assert_eq!(same_pads(224, 3, 2, false), (1, 0));
        assert_eq!(same_pads(4, 2, 2, true), (0, 0));
    }
}
