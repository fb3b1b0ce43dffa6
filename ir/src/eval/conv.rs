//! Convolutions as matrix products of the weights with unfolded images; depthwise ones tap by tap.

use std::ops::{AddAssign, Mul};

use ndarray::LinalgScalar;

use super::gemm::{Centred, Exact, accumulate, narrow};
use super::tensor::{Data, Slice, View};
use super::{Evaluated, Fault, movement};
use crate::attr::ImageLayout;

/// Attributes of a convolution.
#[derive(Clone, Copy)]
pub(super) struct Conv {
    pub strides: [usize; 2],
    pub pads: [usize; 4],
    pub dilations: [usize; 2],
    pub groups: usize,
    pub layout: ImageLayout,
}

/// Dimensions of a tensor with channels last, brought to the front, and back.
const FIRST: [usize; 4] = [0, 3, 1, 2];
const LAST: [usize; 4] = [0, 2, 3, 1];

impl Conv {
    fn is_last(self) -> bool {
        self.layout == ImageLayout::ChannelsLast
    }

    /// A shape with its channels first.
    fn first(self, shape: &[usize]) -> Vec<usize> {
        if self.is_last() && shape.len() == 4 { FIRST.map(|d| shape[d]).to_vec() } else { shape.to_vec() }
    }

    /// The elements of `x` with channels first, where they are not so already.
    fn moved(self, x: &View) -> Option<Data> {
        (self.is_last() && x.shape.len() == 4).then(|| movement::transpose(*x, &FIRST))
    }

    /// A result of this shape, computed with channels first, as the op yields it.
    fn restored(self, result: Data, shape: &[usize]) -> Data {
        if !self.is_last() {
            return result;
        }
        movement::transpose(View { shape: &self.first(shape), data: result.slice() }, &LAST)
    }
}

/// All sizes of a convolution.
struct Geometry {
    conv: Conv,
    images: usize,
    /// Channels of a group, in and out.
    channels: usize,
    outputs: usize,
    input: [usize; 2],
    kernel: [usize; 2],
    output: [usize; 2],
}

impl Geometry {
    fn new(conv: Conv, x: &[usize], w: &[usize], result: &[usize]) -> Result<Geometry, Fault> {
        let (&[images, _, h, width], &[o, channels, kh, kw], &[_, _, oh, ow]) = (x, w, result) else {
            return Err(Fault::eval("a convolution wants rank 4"));
        };
        let outputs = o / conv.groups;
        Ok(Geometry { conv, images, channels, outputs, input: [h, width], kernel: [kh, kw], output: [oh, ow] })
    }

    fn pixels(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Depth of the product.
    fn depth(&self) -> usize {
        self.channels * self.kernel[0] * self.kernel[1]
    }

    /// Elements of one group of one image.
    fn block(&self) -> usize {
        self.channels * self.input[0] * self.input[1]
    }

    fn depthwise(&self) -> bool {
        self.channels == 1 && self.outputs == 1
    }

    /// Whether the unfolded image is the image.
    fn pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.conv.strides == [1, 1] && self.conv.pads == [0; 4]
    }

    /// The outputs `first..end` along dimension `d` whose tap `k` lies inside the input, and the input of the first.
    fn inside(&self, d: usize, k: usize) -> (usize, usize, usize) {
        let (stride, pad) = (self.conv.strides[d], self.conv.pads[d]);
        let tap = k * self.conv.dilations[d];
        let first = pad.saturating_sub(tap).div_ceil(stride).min(self.output[d]);
        let end = match (self.input[d] + pad).checked_sub(tap + 1) {
            Some(room) => (room / stride + 1).min(self.output[d]),
            None => 0,
        };
        if first >= end { (0, 0, 0) } else { (first, end, first * stride + tap - pad) }
    }

    /// Calls `f(output offset, input offset, run length)` for each run of taps (`ky`, `kx`) inside a channel.
    fn for_each_run(&self, ky: usize, kx: usize, mut f: impl FnMut(usize, usize, usize)) {
        let (y0, y1, top) = self.inside(0, ky);
        let (x0, x1, left) = self.inside(1, kx);
        if x0 == x1 {
            return;
        }
        for y in y0..y1 {
            let row = top + (y - y0) * self.conv.strides[0];
            f(y * self.output[1] + x0, row * self.input[1] + left, x1 - x0);
        }
    }

    /// The image of one group as [depth, pixels], padding as zeros.
    fn unfold<T: Copy>(&self, x: &[T], zero: T, unfolded: &mut [T]) {
        unfolded.fill(zero);
        let plane = self.input[0] * self.input[1];
        let taps = self.kernel[0] * self.kernel[1];
        let stride = self.conv.strides[1];
        for (i, row) in unfolded.chunks_exact_mut(self.pixels()).enumerate() {
            let channel = &x[i / taps * plane..][..plane];
            let (ky, kx) = (i % taps / self.kernel[1], i % taps % self.kernel[1]);
            self.for_each_run(ky, kx, |to, from, len| {
                if stride == 1 {
                    row[to..to + len].copy_from_slice(&channel[from..from + len]);
                } else {
                    let source = channel[from..].iter().step_by(stride);
                    row[to..to + len].iter_mut().zip(source).for_each(|(r, &v)| *r = v);
                }
            });
        }
    }

    /// One channel of a depthwise convolution, added to `out`.
    fn channelwise<T: Copy + AddAssign + Mul<Output = T>>(&self, x: &[T], w: &[T], out: &mut [T]) {
        let stride = self.conv.strides[1];
        for (i, &weight) in w.iter().enumerate() {
            self.for_each_run(i / self.kernel[1], i % self.kernel[1], |to, from, len| {
                let out = &mut out[to..to + len];
                if stride == 1 {
                    out.iter_mut().zip(&x[from..from + len]).for_each(|(o, &v)| *o += weight * v);
                } else {
                    out.iter_mut().zip(x[from..].iter().step_by(stride)).for_each(|(o, &v)| *o += weight * v);
                }
            });
        }
    }
}

/// `conv2d`.
pub(super) fn conv(conv: Conv, operands: &[View], shape: &[usize]) -> Evaluated {
    let moved = conv.moved(&operands[0]);
    let x = moved.as_ref().map_or(operands[0].data, Data::slice);
    let (Slice::F32(x), w) = (x, operands[1].f32()?) else { return Err(Fault::eval("a convolution of no floats")) };
    let g = Geometry::new(conv, &conv.first(operands[0].shape), operands[1].shape, &conv.first(shape))?;
    let mut out = bias_planes(&g, operands.get(2).map(View::f32).transpose()?);
    let mut unfolded = vec![0.0; if g.pointwise() || g.depthwise() { 0 } else { g.depth() * g.pixels() }];
    for (block, out) in out.chunks_exact_mut(g.outputs * g.pixels()).enumerate() {
        let image = &x[block * g.block()..][..g.block()];
        let group = block % conv.groups;
        let weights = &w[group * g.outputs * g.depth()..][..g.outputs * g.depth()];
        if g.depthwise() {
            g.channelwise(image, weights, out);
        } else {
            product(&g, image, weights, &mut unfolded, out);
        }
    }
    Ok(conv.restored(Data::F32(out), shape))
}

fn product<T: LinalgScalar>(g: &Geometry, image: &[T], weights: &[T], unfolded: &mut [T], out: &mut [T]) {
    let sizes = [g.outputs, g.depth(), g.pixels()];
    if g.pointwise() {
        accumulate(sizes, weights, image, out);
    } else {
        g.unfold(image, T::zero(), unfolded);
        accumulate(sizes, weights, unfolded, out);
    }
}

fn bias_planes(g: &Geometry, bias: Option<&[f32]>) -> Vec<f32> {
    let planes = g.conv.groups * g.outputs;
    let mut out = Vec::with_capacity(g.images * planes * g.pixels());
    for plane in 0..g.images * planes {
        let start = bias.map_or(0.0, |b| b[if b.len() == 1 { 0 } else { plane % planes }]);
        out.resize(out.len() + g.pixels(), start);
    }
    out
}

/// `int.conv2d` on `x - x_zero`: the `i32` accumulators.
pub(super) fn conv_int(
    conv: Conv,
    x: &View,
    w: &View,
    bias: Option<&[i32]>,
    x_zero: i64,
    shape: &[usize],
) -> Result<Vec<i32>, Fault> {
    let g = Geometry::new(conv, &conv.first(x.shape), w.shape, &conv.first(shape))?;
    let moved = conv.moved(x);
    let x = View { data: moved.as_ref().map_or(x.data, Data::slice), ..*x };
    let (x, w) = (Centred::new(&x, x_zero)?, Centred::new(w, 0)?);
    let planes = conv.groups * g.outputs;
    let mut out = Vec::with_capacity(g.images * planes * g.pixels());
    let mut unfolded = vec![0; g.depth() * g.pixels()];
    for block in 0..g.images * conv.groups {
        let image = &x.values()[block * g.block()..][..g.block()];
        let group = block % conv.groups;
        let weights = &w.values()[group * g.outputs * g.depth()..][..g.outputs * g.depth()];
        let sums = if g.depthwise() {
            channel_sums(&g, image, weights)
        } else {
            g.unfold(image, 0, &mut unfolded);
            let product = Exact::of(weights, &unfolded, w.most() * x.most());
            product.run([g.outputs, g.depth(), g.pixels()], 0..weights.len(), 0..unfolded.len())
        };
        let channel = |i: usize| group * g.outputs + i / g.pixels();
        narrow(&sums, |i| bias.map_or(0, |b| b[if b.len() == 1 { 0 } else { channel(i) }]), &mut out)?;
    }
    match conv.restored(Data::I32(out), shape) {
        Data::I32(out) => Ok(out),
        _ => Err(Fault::eval("a transposition changed the type")),
    }
}

fn channel_sums(g: &Geometry, image: &[i32], weights: &[i32]) -> Vec<i64> {
    let wide = |v: &[i32]| v.iter().map(|&v| i64::from(v)).collect::<Vec<_>>();
    let mut sums = vec![0; g.pixels()];
    g.channelwise(&wide(image), &wide(weights), &mut sums);
    sums
}
