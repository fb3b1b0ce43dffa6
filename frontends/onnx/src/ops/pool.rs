//! Pooling.

use vitc_ir::{Dim, Op};

use super::Table;
use super::linear::{as_image, conv_op, from_image, spatial, window};
use crate::call::Call;
use crate::problem::{Fallible, invalid, unsupported};

pub(super) const OPS: Table = &[
    ("AveragePool", average),
    ("GlobalAveragePool", |c| global(c, |axes| Op::ReduceMean { axes, keep: true })),
    ("GlobalMaxPool", |c| global(c, |axes| Op::ReduceMax { axes, keep: true })),
];

fn global(call: &mut Call<'_, '_>, op: fn(Vec<usize>) -> Op) -> Fallible<()> {
    let x = call.tensor(0)?;
    let rank = call.shape_of(x).rank();
    if rank < 3 {
        return Err(invalid("there are no spatial dimensions"));
    }
    let value = call.push(op((2..rank).collect()), &[x])?;
    call.give_value(value);
    Ok(())
}

/// A depthwise convolution with equal weights.
fn average(call: &mut Call<'_, '_>) -> Fallible<()> {
    let x = call.tensor(0)?;
    let shape = call.shape_of(x);
    let sizes = spatial(&shape)?;
    let kernel = call.counts("kernel_shape")?.ok_or_else(|| invalid("`kernel_shape` is missing"))?;
    let window = window(call, &sizes, &kernel)?;
    let padded = window.pads.iter().any(|&p| p != (0, 0));
    if padded && call.int_or("count_include_pad", 0)? == 0 {
        return Err(unsupported("padding that does not count in the average"));
    }
    if call.int_or("ceil_mode", 0)? != 0 && !comes_out_even(&sizes, &kernel, &window) {
        return Err(unsupported("ceil_mode=1 with windows that leave the image"));
    }
    let channels = shape.0.get(1).copied().and_then(Dim::as_fixed).ok_or_else(|| unsupported("channels"))?;
    let (height, width) = match *kernel.as_slice() {
        [w] => (1, w),
        [h, w] => (h, w),
        _ => return Err(invalid("`kernel_shape` does not fit")),
    };
    let share = 1.0 / (height as f32 * width as f32);
    let weights = call.filled("average", share, &[channels, 1, height, width])?;
    let op = conv_op(&window, channels)?;
    let image = as_image(call, x)?;
    let result = call.push(op, &[image, weights])?;
    let value = from_image(call, result, shape.rank())?;
    call.give_value(value);
    Ok(())
}

fn comes_out_even(sizes: &[usize], kernel: &[usize], window: &super::linear::Window) -> bool {
    let each = sizes.iter().zip(kernel).zip(&window.strides).zip(&window.dilations).zip(&window.pads);
    each.into_iter().all(|((((&size, &k), &stride), &dilation), &(before, after))| {
        let room = size.saturating_add(before).saturating_add(after).saturating_sub((k - 1) * dilation + 1);
        room.is_multiple_of(stride)
    })
}
