//! Transposed convolution: zeros are put between the elements, then it is a convolution with the kernel turned round.

use vitc_ir::{Dim, ImageLayout, Op, Real, Shape, ValueId};

use super::Table;
use super::index::slice_axis;
use super::linear::{as_image, from_image, spatial};
use crate::call::Call;
use crate::import::{listed, shorten};
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[("ConvTranspose", conv_transpose)];

/// One spatial dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    size: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    /// Results cut off before and after; a negative number adds zeros after.
    cut: (i64, i64),
}

impl Axis {
    /// Distance from the first to the last tap.
    fn reach(self) -> i64 {
        (self.dilation as i64).saturating_mul(self.kernel as i64 - 1)
    }

    /// Results before any are cut off.
    fn whole(self) -> i64 {
        (self.stride as i64).saturating_mul(self.size as i64 - 1).saturating_add(self.reach()).saturating_add(1)
    }
}

fn conv_transpose(call: &mut Call<'_, '_>) -> Fallible<()> {
    let (x, w, bias) = (call.tensor(0)?, call.tensor(1)?, call.optional(2)?);
    let rank = call.shape_of(x).rank();
    let axes = axes(call, &spatial(&call.shape_of(x))?, &spatial(&call.shape_of(w))?)?;
    let groups = usize::try_from(call.int_or("group", 1)?).ok().filter(|&g| g > 0);
    let groups = groups.ok_or_else(|| invalid("`group` is not positive"))?;
    let (x, w) = (as_image(call, x)?, as_image(call, w)?);
    let mut axes = axes;
    if let [only] = *axes.as_slice() {
        axes = vec![Axis { size: 1, kernel: 1, stride: 1, dilation: 1, cut: (0, 0) }, only];
    }
    let mut x = spread(call, x, &axes)?;
    let w = turned(call, w, groups)?;
    let mut pads = [0usize; 4];
    for (i, axis) in axes.iter().enumerate() {
        let (before, after) = (axis.reach() - axis.cut.0, axis.reach() - axis.cut.1);
        x = cropped(call, x, 2 + i, (-before).max(0), (-after).max(0))?;
        for (place, pad) in [(i, before), (i + 2, after)] {
            if let Some(p) = pads.get_mut(place) {
                *p = usize::try_from(pad.max(0)).unwrap_or(0);
            }
        }
    }
    let dilations = match *axes.as_slice() {
        [h, w] => [h.dilation, w.dilation],
        _ => return Err(unsupported("only one or two spatial dimensions are supported")),
    };
    let operands: Vec<ValueId> = [x, w].into_iter().chain(bias).collect();
    let y = call
        .push(Op::Conv2d { strides: [1, 1], pads, dilations, groups, layout: ImageLayout::ChannelsFirst }, &operands)?;
    let value = from_image(call, y, rank)?;
    call.give_value(value);
    Ok(())
}

fn axes(call: &Call<'_, '_>, sizes: &[usize], kernel: &[usize]) -> Fallible<Vec<Axis>> {
    let rank = sizes.len();
    let list = |name: &str, default: usize, count: usize| -> Fallible<Vec<usize>> {
        let list = call.counts(name)?.unwrap_or_else(|| vec![default; count]);
        let fits = list.len() == count && list.iter().all(|&v| (default..=1 << 20).contains(&v));
        if fits { Ok(list) } else { Err(invalid(format!("`{name}` is {}", listed(&list)))) }
    };
    let (strides, dilations) = (list("strides", 1, rank)?, list("dilations", 1, rank)?);
    let added = list("output_padding", 0, rank)?;
    let pads = list("pads", 0, 2 * rank)?;
    if call.counts("kernel_shape")?.is_some_and(|k| k != kernel) || kernel.len() != rank || kernel.contains(&0) {
        return Err(invalid(format!("`kernel_shape` is not that of the weights, {kernel:?}")));
    }
    let wanted = call.counts("output_shape")?;
    let mode = call.word_or("auto_pad", "NOTSET")?;
    if !["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"].contains(&mode) {
        return Err(invalid(format!("auto_pad={:?}", shorten(mode))));
    }
    let at = |list: &[usize], i: usize| list.get(i).copied().unwrap_or(0);
    let mut axes = Vec::new();
    for i in 0..rank {
        let (size, stride) = (at(sizes, i), at(&strides, i));
        let mut axis = Axis { size, kernel: at(kernel, i), stride, dilation: at(&dilations, i), cut: (0, 0) };
        if axis.reach() > 1 << 30 {
            return Err(invalid("the kernel is too large"));
        }
        let extra = at(&added, i) as i64;
        if wanted.is_none() && mode.starts_with("SAME") && axis.reach() + 1 < stride as i64 {
            return Err(unsupported("SAME padding with a kernel smaller than the stride: runtimes differ"));
        }
        let results = match &wanted {
            // Some writers count the batch and the channels too.
            Some(list) => list.len().checked_sub(rank).and_then(|skip| list.get(skip + i)).copied(),
            None if mode.starts_with("SAME") => size.checked_mul(stride),
            None => None,
        };
        axis.cut = match results.and_then(|r| i64::try_from(r).ok()) {
            Some(results) => shared(axis.whole().saturating_add(extra).saturating_sub(results), extra, mode),
            None if mode == "NOTSET" => (at(&pads, i) as i64, at(&pads, i + rank) as i64 - extra),
            None => (0, -extra),
        };
        axes.push(axis);
    }
    Ok(axes)
}

/// What is cut off before and after when `total` is to be cut off behind `extra` added zeros.
fn shared(total: i64, extra: i64, mode: &str) -> (i64, i64) {
    if total < 0 {
        return (0, total - extra); // more results are wanted than there are
    }
    let small = total / 2;
    if mode == "SAME_UPPER" { (small, total - small - extra) } else { (total - small, small - extra) }
}

/// `stride - 1` zeros between the elements of both spatial dimensions.
fn spread(call: &mut Call<'_, '_>, x: ValueId, axes: &[Axis]) -> Fallible<ValueId> {
    let &[rows, columns] = axes else { return Err(invalid("rank")) };
    if rows.stride == 1 && columns.stride == 1 {
        return Ok(x);
    }
    let &[n, c, h, w] = call.shape_of(x).0.as_slice() else { return Err(invalid("rank")) };
    let one = Dim::fixed(1);
    let apart = call.reshape(x, Shape(vec![n, c, h, one, w, one]))?;
    let after = vec![0, 0, 0, rows.stride - 1, 0, columns.stride - 1];
    let padded = call.push(Op::Pad { before: vec![0; 6], after, value: Real(0.0) }, &[apart])?;
    let wide = |d: Dim, stride: usize| d.times(Dim::fixed(stride)).ok_or_else(|| invalid("too many elements"));
    let joined = call.reshape(padded, Shape(vec![n, c, wide(h, rows.stride)?, wide(w, columns.stride)?]))?;
    // Nothing follows the last element.
    let joined = cropped(call, joined, 2, 0, rows.stride as i64 - 1)?;
    cropped(call, joined, 3, 0, columns.stride as i64 - 1)
}

/// `x` without the first and last elements of an axis.
fn cropped(call: &mut Call<'_, '_>, x: ValueId, axis: usize, before: i64, after: i64) -> Fallible<ValueId> {
    if before == 0 && after == 0 {
        return Ok(x);
    }
    let size = super::map::fixed_axis(call, x, axis)? as i64;
    let len = size.saturating_sub(before).saturating_sub(after);
    let len = usize::try_from(len).ok().filter(|&l| l > 0).ok_or_else(|| unsupported("the result is empty"))?;
    slice_axis(call, x, axis, before as usize, len, 1)
}

/// Weights [I, O/groups, KH, KW] as those of the convolution, [O, I/groups, KH, KW], with both spatial dimensions reversed.
fn turned(call: &mut Call<'_, '_>, w: ValueId, groups: usize) -> Fallible<ValueId> {
    let shape = call.shape_of(w);
    let &[inputs, outputs, h, k] = shape.0.as_slice() else {
        return Err(invalid("the weights must have 4 dimensions"));
    };
    let groups = Dim::fixed(groups);
    let each = inputs.div_exact(groups).ok_or_else(|| invalid("`group` does not divide the channels"))?;
    let split = call.reshape(w, Shape(vec![groups, each, outputs, h, k]))?;
    let swapped = call.transpose(split, vec![0, 2, 1, 3, 4])?;
    let all = groups.times(outputs).ok_or_else(|| invalid("too many elements"))?;
    let mut w = call.reshape(swapped, Shape(vec![all, each, h, k]))?;
    for (axis, size) in [(2, h.size), (3, k.size)] {
        if size > 1 {
            w = call.push(Op::Slice { axis, start: size - 1, len: size, step: -1 }, &[w])?;
        }
    }
    Ok(w)
}
