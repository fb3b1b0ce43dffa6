//! `Col2Im`: patches back in their places. What overlaps adds up.
//!
//! Pixel `i` of all patches is an image of its own, whose elements lie a stride apart. So the pixels that come to lie on the same places
//! of each stride are moved against one another and added, and the sums interleave.

use vitc_ir::{Dim, Op, Real, Shape, ValueId};

use super::Table;
use super::index::slice_axis;
use super::layout::rearranged;
use crate::call::Call;
use crate::import::listed;
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[("Col2Im", col2im)];

/// Most pixels of a patch, each of which becomes a few nodes.
const MOST_PIXELS: usize = 1024;

/// One spatial dimension.
#[derive(Clone, Copy, Debug)]
struct Axis {
    image: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    /// What lies before the image, and before, in and after it.
    before: usize,
    padded: usize,
    /// Patches.
    places: usize,
}

impl Axis {
    fn new([image, kernel, stride, dilation, before, after]: [usize; 6]) -> Option<Axis> {
        let padded = image.checked_add(before)?.checked_add(after)?;
        let reach = kernel.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)?;
        let places = padded.checked_sub(reach)?.checked_div(stride)?.checked_add(1)?;
        (image > 0).then_some(Axis { image, kernel, stride, dilation, before, padded, places })
    }

    /// Whether patches lie side by side and make up the image.
    fn tiles(self) -> bool {
        self.stride == self.kernel
            && self.dilation == 1
            && self.padded == self.image
            && self.image.is_multiple_of(self.kernel)
    }

    /// Places of one residue.
    fn steps(self) -> usize {
        self.padded.div_ceil(self.stride)
    }

    /// The residue that a pixel of the patches falls on, and the step that its first one falls on.
    fn falls(self, pixel: usize) -> (usize, usize) {
        let place = pixel * self.dilation;
        (place % self.stride, place / self.stride)
    }
}

/// [N, C * kernels, places] to [N, C, images].
fn col2im(call: &mut Call<'_, '_>) -> Fallible<()> {
    let axes = axes(call)?;
    let &[n, columns, places] = call.shape(0)?.0.as_slice() else {
        return Err(invalid("the operand must have 3 dimensions"));
    };
    let product = |of: fn(&Axis) -> usize| axes.iter().map(of).try_fold(1usize, |all, v| all.checked_mul(v));
    let fits = product(|a| a.places).map(Dim::fixed) == Some(places);
    let misfit = || invalid("the patches do not make up the image");
    let pixels = product(|a| a.kernel).filter(|_| fits).ok_or_else(misfit)?;
    let channels = columns.div_exact(Dim::fixed(pixels)).ok_or_else(misfit)?;
    let dims = |of: fn(&Axis) -> usize| axes.iter().map(of).map(Dim::fixed).collect::<Vec<_>>();
    let image = [vec![n, channels], dims(|a| a.image)].concat();
    call.importer.check_shape(&Shape(image.clone()))?;
    if axes.iter().all(|a| a.tiles()) {
        let (split, perm) = ([vec![n, channels], dims(|a| a.kernel), dims(|a| a.places)].concat(), interleaved(&axes));
        return rearranged(call, split, perm, image);
    }
    if pixels > MOST_PIXELS {
        return Err(unsupported(format!("patches of more than {MOST_PIXELS} pixels that overlap")));
    }
    let x = call.tensor(0)?;
    let x = call.reshape(x, Shape([vec![n, channels, Dim::fixed(pixels)], dims(|a| a.places)].concat()))?;
    let strides = product(|a| a.stride).filter(|&s| s <= MOST_PIXELS);
    let strides = strides.ok_or_else(|| unsupported(format!("strides of more than {MOST_PIXELS} pixels")))?;
    let sums = (0..strides).map(|residue| sum(call, x, &axes, residue)).collect::<Fallible<Vec<_>>>()?;
    let mut y = match *sums.as_slice() {
        [only] => only,
        _ => {
            let sums = call.push(Op::Concat { axis: 2 }, &sums)?;
            let split = [vec![n, channels], dims(|a| a.stride), dims(|a| a.steps())].concat();
            let sums = call.reshape(sums, Shape(split))?;
            call.transpose(sums, interleaved(&axes))?
        }
    };
    y = call.reshape(y, Shape([vec![n, channels], dims(|a| a.steps() * a.stride)].concat()))?;
    for (i, axis) in axes.iter().enumerate() {
        y = slice_axis(call, y, 2 + i, axis.before, axis.image, 1)?;
    }
    call.give_value(y);
    Ok(())
}

fn axes(call: &mut Call<'_, '_>) -> Fallible<Vec<Axis>> {
    let image = call.integers(1, "the image's size")?.unwrap_or_default();
    let rank = image.len();
    if !(1..=3).contains(&rank) {
        return Err(unsupported(format!("images of {rank} dimensions")));
    }
    let counts = |list: Vec<i64>, what: &str, count: usize| {
        let counts: Option<Vec<usize>> =
            list.iter().map(|&v| usize::try_from(v).ok().filter(|&v| v <= 1 << 20)).collect();
        counts.filter(|c| c.len() == count).ok_or_else(|| invalid(format!("{what} is {}", listed(&list))))
    };
    let kernel = call.integers(2, "the patch's size")?.unwrap_or_default();
    let attribute = |name: &str, default: i64, count: usize| {
        counts(call.ints(name)?.map_or_else(|| vec![default; count], <[i64]>::to_vec), &format!("`{name}`"), count)
    };
    let (strides, dilations) = (attribute("strides", 1, rank)?, attribute("dilations", 1, rank)?);
    let pads = attribute("pads", 0, 2 * rank)?;
    let (image, kernel) = (counts(image, "the image's size", rank)?, counts(kernel, "the patch's size", rank)?);
    let (before, after) = pads.split_at_checked(rank).ok_or_else(|| invalid("`pads`"))?;
    let lists = [&image, &kernel, &strides, &dilations, before, after];
    let axis = |i: usize| Axis::new(lists.map(|list: &[usize]| list.get(i).copied().unwrap_or(0)));
    (0..rank).map(axis).collect::<Option<_>>().ok_or_else(|| invalid("the patches do not make up the image"))
}

/// The permutation from [N, C, all inner, all outer] to [N, C, each outer and inner].
fn interleaved(axes: &[Axis]) -> Vec<usize> {
    let rank = axes.len();
    [0, 1].into_iter().chain((0..rank).flat_map(|i| [2 + rank + i, 2 + i])).collect()
}

/// Digits of a number, the last axis first to change.
fn digits(mut number: usize, axes: &[Axis], base: fn(&Axis) -> usize) -> Vec<usize> {
    let mut digits: Vec<usize> = axes
        .iter()
        .rev()
        .map(|axis| {
            let digit = number % base(axis);
            number /= base(axis);
            digit
        })
        .collect();
    digits.reverse();
    digits
}

/// The sum of all pixels that fall on one residue, from `x` of [N, C, kernels, places...]: [N, C, 1, steps...].
fn sum(call: &mut Call<'_, '_>, x: ValueId, axes: &[Axis], residue: usize) -> Fallible<ValueId> {
    let wanted = digits(residue, axes, |a| a.stride);
    let pixels: usize = axes.iter().map(|a| a.kernel).product();
    let mut sum = None;
    for pixel in 0..pixels {
        let falls: Vec<(usize, usize)> =
            digits(pixel, axes, |a| a.kernel).iter().zip(axes).map(|(&digit, axis)| axis.falls(digit)).collect();
        if !falls.iter().map(|(residue, _)| residue).eq(&wanted) {
            continue;
        }
        let part = slice_axis(call, x, 2, pixel, 1, 1)?;
        let first = falls.iter().map(|&(_, step)| step);
        let before: Vec<usize> = [0; 3].into_iter().chain(first).collect();
        let rest = axes.iter().zip(&falls).map(|(axis, (_, step))| axis.steps() - axis.places - step);
        let after: Vec<usize> = [0; 3].into_iter().chain(rest).collect();
        let part = match before.iter().chain(&after).all(|&v| v == 0) {
            true => part,
            false => call.push(Op::Pad { before, after, value: Real(0.0) }, &[part])?,
        };
        sum = Some(match sum {
            Some(sum) => call.push(Op::Add {}, &[sum, part])?,
            None => part,
        });
    }
    if let Some(sum) = sum {
        return Ok(sum);
    }
    let mut shape = call.shape_of(x);
    shape.0.truncate(2);
    shape.0.extend([1].into_iter().chain(axes.iter().map(|a| a.steps())).map(Dim::fixed));
    let none = call.scalar(0.0);
    call.push(Op::Expand { shape }, &[none])
}
