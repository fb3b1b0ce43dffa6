//! Convolutions: as matrix products over a window of the image, channel by channel, or one element at a time.

use cranelift_module::Module as Backend;
use vitc_ir::lane::Access;
use vitc_ir::{Const, Elem, ImageLayout, Node, Op, Shape};
use vitc_runtime::Buffer;

use super::product::{Numbers, Product, Right, reading, single, zero_points};
use super::{Call, Lowered, Planner, Refusal, extent, flat_over, lane_word, product_of, spread};
use crate::conv::Conv;
use crate::depthwise::Depthwise;
use crate::kernel::Spec;
use crate::operand::{Columns, Operand};
use crate::view::{Factor, Lin, View, merge};
use crate::wide::depthwise::WideDepthwise;
use crate::wide::gemm::WideGemm;
use crate::wide::lane::{ROW, interleaved};

/// An input of a lane program: where it lies, or elements of so many bytes, one for each channel.
enum Given {
    Buffer(Buffer),
    Channels(Vec<u8>, usize),
}

/// Attributes of a convolution node.
pub(super) struct Geometry {
    pub strides: [usize; 2],
    pub pads: [usize; 4],
    pub dilations: [usize; 2],
    pub groups: usize,
    pub layout: ImageLayout,
    pub x_zero: i64,
}

impl<M: Backend> Planner<'_, M> {
    pub(super) fn conv(&mut self, node: &Node) -> Lowered {
        let g = match node.op {
            Op::FusedConv2d { strides, pads, dilations, groups, layout, x_zero, .. }
            | Op::IntConv2d { strides, pads, dilations, groups, layout, x_zero } => {
                Geometry { strides, pads, dilations, groups, layout, x_zero }
            }
            _ => return Err("not a convolution".into()),
        };
        if self.is_depthwise(node, &g) {
            return self.depthwise(node, &g);
        }
        let bytes = self.const_of(node.operands[1]).is_some_and(|c| c.ty.elem != Elem::I16);
        let grouped = g.groups > 1 && g.layout == ImageLayout::ChannelsFirst;
        let panels = bytes && g.groups > 1 && g.pads == [0; 4] && !grouped && self.tier.is_wide();
        if panels {
            match self.grouped_panels(node, &g) {
                Err(Refusal::Reason(_)) => {}
                done => return done,
            }
        }
        if bytes && g.pads == [0; 4] && !grouped {
            return self.window_product(node, &g);
        }
        self.direct_conv(node, &g)
    }

    /// A convolution of single pixels whose groups panels of a wide product hold side by side.
    fn grouped_panels(&mut self, node: &Node, g: &Geometry) -> Lowered {
        let parts = self.parts(node)?;
        let result = self.module.ty(node.result).clone();
        let x = self.module.ty(node.operands[0]).clone();
        let w = self.const_of(node.operands[1]).ok_or("weights are not constant")?.clone();
        let [outputs, k, 1, 1] = w.ty.shape.as_fixed().ok_or("weights grow with the batch")?[..] else {
            return Err("a window of more than one pixel".into());
        };
        let columns = outputs / g.groups;
        if !WideGemm::holds_groups(k, columns) || g.strides != [1, 1] {
            return Err("groups that do not fit panels".into());
        }
        let (a_buffer, a) = self.operand(node.operands[0])?;
        single(&a.dims[3])?;
        let out = View::contiguous(&result.shape).ok_or("the batch would be squared")?;
        let mut builder = Product::new(&result.shape, &[0, 1, 2], 3, 1);
        builder.push(&a, x.elem, Columns::Same);
        builder.push(&out, result.elem, Columns::of(&out.flat(3..4))?);
        let plain: Vec<u8> = (0..k * outputs).map(|i| w.data[i % outputs * k + i / outputs]).collect();
        let right = Right::Weights { bytes: plain.into(), layout: None, elem: w.ty.elem, nibbles: false };
        let macs = result.shape.count().map_or(0, |d| d.size as u64) * k as u64;
        let zeros = zero_points(x.elem, g.x_zero, w.ty.elem, 0)?;
        let numbers = Numbers { k, n: outputs, zeros, macs, channel: 3, group: Some(columns) };
        let reading = reading(&[Factor { size: k.into(), stride: single(&a.dims[3])? }], k)?;
        self.gemm(node, parts, builder, (a_buffer, right), numbers, (reading, None))
    }

    /// A product, or one for each group: rows are output positions, k runs over the window.
    fn window_product(&mut self, node: &Node, g: &Geometry) -> Lowered {
        let parts = self.parts(node)?;
        let result = self.module.ty(node.result).clone();
        let x = self.module.ty(node.operands[0]).clone();
        let w = self.const_of(node.operands[1]).ok_or("weights are not constant")?.clone();
        let sizes: [usize; 4] = w.ty.shape.as_fixed().and_then(|s| s.try_into().ok()).ok_or("weights of rank 4")?;
        let [outputs, channels, high, wide] = sizes;
        let (a_buffer, view) = self.operand(node.operands[0])?;
        let (channel, plane) = (g.layout.channel(), g.layout.plane());
        let step = |axis: usize, by: usize| -> Lowered<Lin> { Ok(single(&view.dims[axis])?.scaled(by as i64)) };
        let mut a = view.clone();
        for (&axis, &stride) in plane.iter().zip(&g.strides) {
            a.dims[axis] = vec![Factor { size: result.shape.0[axis], stride: step(axis, stride)? }];
        }
        let down = Factor { size: high.into(), stride: step(plane[0], g.dilations[0])? };
        let across = Factor { size: wide.into(), stride: step(plane[1], g.dilations[1])? };
        let depth = match g.groups {
            1 => view.dims[channel].clone(),
            _ => vec![Factor { size: channels.into(), stride: single(&view.dims[channel])? }],
        };
        let window: Vec<Factor> = match g.layout {
            ImageLayout::ChannelsFirst => depth.into_iter().chain([down, across]).collect(),
            ImageLayout::ChannelsLast => [down, across].into_iter().chain(depth).collect(),
        };
        let window = merge(window.into_iter());
        let zeros = zero_points(x.elem, g.x_zero, w.ty.elem, 0)?;
        let (k, n) = (channels * high * wide, outputs / g.groups);
        let plain = row_major(&w, g);
        let mut builder = Product::new(&result.shape, &[0, plane[0], plane[1]], channel, g.groups);
        if g.groups > 1 {
            let group = Factor { size: g.groups.into(), stride: step(channel, channels)? };
            a.dims[channel] = vec![group];
            a.dims.push(Vec::new());
        }
        let out = builder.divided(View::contiguous(&result.shape).ok_or("the batch would be squared")?)?;
        let columns = Columns::of(&out.flat(builder.columns..builder.columns + 1))?;
        builder.push(&a, x.elem, Columns::Same);
        builder.push(&out, result.elem, columns);
        let right = if g.groups == 1 {
            Right::Weights { bytes: plain.into(), layout: None, elem: w.ty.elem, nibbles: false }
        } else {
            let matrix = Factor { size: g.groups.into(), stride: Lin::fixed((k * n) as i64) };
            let mut rows = View { offset: Lin::ZERO, dims: vec![Vec::new(); 5] };
            rows.dims[channel] = vec![matrix];
            builder.push(&rows, w.ty.elem, if n == 1 { Columns::Same } else { Columns::Stride(1) });
            Right::Activation { buffer: self.pool(plain), k_stride: n as i64 }
        };
        let macs = result.shape.count().map_or(0, |d| d.size as u64) * k as u64;
        let reading = reading(&window, k)?;
        let numbers = Numbers { k, n, zeros, macs, channel, group: None };
        self.gemm(node, parts, builder, (a_buffer, right), numbers, (reading, None))
    }

    /// Whether each channel is convolved by itself, in bytes that lie pixel by pixel.
    fn is_depthwise(&self, node: &Node, g: &Geometry) -> bool {
        let (x, w) = (self.module.ty(node.operands[0]), self.const_of(node.operands[1]));
        let fits = |w: &Const| w.ty.elem == Elem::I8 && w.ty.shape.0[1] == 1.into();
        let rows = View::contiguous(&x.shape);
        let lies = crate::view::resolve(self.module, node.operands[0])
            .is_ok_and(|(_, v)| rows.is_some_and(|r| r.dims == v.dims));
        g.layout == ImageLayout::ChannelsLast
            && x.shape.0[3] == g.groups.into()
            && self.module.ty(node.result).shape.0[3] == g.groups.into()
            && matches!(x.elem, Elem::U8 | Elem::I8)
            && x.elem.range().is_some_and(|(lo, hi)| (lo..=hi).contains(&g.x_zero))
            && w.is_some_and(fits)
            && lies
    }

    fn depthwise(&mut self, node: &Node, g: &Geometry) -> Lowered {
        let mut parts = self.parts(node)?;
        let result = self.module.ty(node.result).clone();
        let x = self.module.ty(node.operands[0]).clone();
        let w = self.const_of(node.operands[1]).ok_or("weights are not constant")?.clone();
        let fixed = |s: &Shape, i: usize| s.0[i].as_fixed().ok_or("only the first dimension may be the batch");
        let [high, wide] = [fixed(&x.shape, 1)?, fixed(&x.shape, 2)?];
        let [down, across, channels] = [fixed(&result.shape, 1)?, fixed(&result.shape, 2)?, g.groups];
        let kernel = [fixed(&w.ty.shape, 2)?, fixed(&w.ty.shape, 3)?];
        let taps = kernel[0] * kernel[1];
        // Few channels: the same taps of neighbouring pixels lie together, as if they were channels.
        let wider = if g.strides[1] == 1 && ROW.is_multiple_of(channels) && (across * channels).is_multiple_of(ROW) {
            ROW / channels
        } else {
            1
        };
        let (x_zero, _) = zero_points(x.elem, g.x_zero, Elem::I8, 0)?;
        let bias = self.take_bias(&mut parts.program, &parts.extras, channels).unwrap_or_else(|| vec![0; channels]);
        let weights: Vec<u8> = w.data.repeat(wider);
        let sum = |c: usize| weights[c * taps..][..taps].iter().map(|&w| i64::from(w as i8)).sum::<i64>();
        let starts = (0..channels * wider).map(|c| (bias[c % channels] - x_zero * sum(c)) as i32);
        let mut starts: Vec<u8> = starts.flat_map(i32::to_le_bytes).collect();
        starts.resize(starts.len().next_multiple_of(4 * ROW), 0);
        let shape = Shape(vec![result.shape.0[0], down.into(), (across / wider).into(), (channels * wider).into()]);
        let laid = |view: &View, elem: Elem, columns: Option<Columns>| -> Lowered<Operand> {
            let dims = (0..4).map(|d| flat_over(view, &result.shape, &[d])).collect();
            let view = View { offset: view.offset, dims };
            let view = view.then(&Op::Reshape { shape: shape.clone() }, &result.shape, &shape)?;
            let rows = view.dims[..3].iter().map(|d| single(d)).collect::<Lowered<_>>()?;
            let columns = columns.map_or_else(|| Columns::of(&view.dims[3]), Ok)?;
            Ok(Operand { elem, offset: view.offset, rows, columns })
        };
        let (a_buffer, view) = self.operand(node.operands[0])?;
        let out = laid(&View::contiguous(&result.shape).ok_or("the batch would be squared")?, result.elem, None)?;
        let (mut extras, mut given) = (Vec::new(), Vec::new());
        for (&v, input) in parts.extras.iter().zip(&parts.program.inputs[1..]) {
            let single = self.module.ty(v).shape.count() == Some(1.into());
            let (buffer, operand) = match (input.access, self.const_of(v)) {
                (Access::Channel, Some(c)) if !single => {
                    let repeated = Given::Channels(c.data.repeat(wider), input.elem.bytes());
                    let operand = Operand {
                        elem: input.elem,
                        offset: Lin::ZERO,
                        rows: vec![Lin::ZERO; 3],
                        columns: Columns::Stride(1),
                    };
                    (repeated, operand)
                }
                _ => {
                    let (buffer, view) = self.operand(v)?;
                    let view = spread(&view, &self.module.ty(v).shape, input.access, &result.shape, 3)?;
                    let table = (input.access == Access::Table).then_some(Columns::Table);
                    (Given::Buffer(buffer), laid(&view, input.elem, table)?)
                }
            };
            given.push(buffer);
            extras.push(operand);
        }
        let depthwise = Depthwise {
            x: x.elem,
            x_offset: view.offset,
            x_zero: x_zero as u8,
            input: [high, wide * channels],
            output: [down, across / wider, channels * wider],
            kernel,
            rows: [g.strides[0], g.dilations[0]],
            columns: [g.strides[1] * channels * wider, g.dilations[1] * channels],
            pads: [g.pads[0], g.pads[1] * channels],
            row_bytes: ((across - 1) * g.strides[1] + (kernel[1] - 1) * g.dilations[1] + 1) * channels,
            out,
            extras,
            lane: self.lane(&parts.program, &parts.inputs())?,
        };
        let (name, grain) = (depthwise.name(&lane_word(&parts.program)), depthwise.grain());
        let constants = parts.extras.iter().map(|&v| self.const_of(v).is_some()).collect();
        let widened = WideDepthwise::of(&depthwise, constants).map(Spec::WideDepthwise);
        let spec = self.widest(widened, Spec::Depthwise(depthwise))?;
        let is_interleaved = matches!(&spec, Spec::WideDepthwise(wide) if wide.is_interleaved());
        let (packed, starts) = match &spec {
            Spec::WideDepthwise(wide) => (wide.pack_weights(&weights), interleaved(&starts, 4)),
            _ => (crate::depthwise::pack_weights(&weights, channels * wider, taps), starts),
        };
        let mut args = vec![a_buffer, self.pool(packed), self.buffer(node.result)?, self.pool(starts)];
        args.extend(given.into_iter().map(|given| match given {
            Given::Buffer(buffer) => buffer,
            Given::Channels(elements, bytes) if is_interleaved => self.pool(interleaved(&elements, bytes)),
            Given::Channels(elements, _) => self.pool(elements),
        }));
        let items = extent(product_of(&result.shape.0[..2])?);
        let macs = result.shape.count().map_or(0, |d| d.size as u64) * taps as u64;
        self.step(Call { spec, name, args, items, grain, macs })
    }

    fn direct_conv(&mut self, node: &Node, g: &Geometry) -> Lowered {
        let parts = self.parts(node)?;
        let result = self.module.ty(node.result).clone();
        let (x, w) = (self.module.ty(node.operands[0]).clone(), self.module.ty(node.operands[1]).clone());
        let fixed = |s: &Shape, i: usize| s.0[i].as_fixed().ok_or("only the first dimension may be the batch");
        let (a_buffer, view) = self.operand(node.operands[0])?;
        let (b_buffer, w_view) = self.operand(node.operands[1])?;
        if View::contiguous(&w.shape) != Some(w_view) {
            return Err("weights of a convolution must be row-major".into());
        }
        let (channel, [down, across]) = (g.layout.channel(), g.layout.plane());
        let first = [0, channel, down, across];
        let mut x_strides = [Lin::ZERO; 4];
        for (s, d) in x_strides.iter_mut().zip(first) {
            *s = single(&view.dims[d])?;
        }
        let to = self.buffer(node.result)?;
        let mut args = vec![a_buffer, b_buffer, to, to];
        let laid = |view: &View, elem: Elem, table: bool| -> Lowered<Operand> {
            let rows = first[..3].iter().map(|&d| single(&view.dims[d])).collect::<Lowered<_>>()?;
            let columns = if table { Columns::Table } else { Columns::of(&view.flat(across..across + 1))? };
            Ok(Operand { elem, offset: view.offset, rows, columns })
        };
        let out = View::contiguous(&result.shape).ok_or("the batch would be squared")?;
        let out = laid(&out, result.elem, false)?;
        let mut extras = Vec::new();
        for (&v, input) in parts.extras.iter().zip(&parts.program.inputs[1..]) {
            let (buffer, view) = self.operand(v)?;
            let view = spread(&view, &self.module.ty(v).shape, input.access, &result.shape, channel)?;
            extras.push(laid(&view, input.elem, input.access == Access::Table)?);
            args.push(buffer);
        }
        let kernel = [fixed(&w.shape, 1)?, fixed(&w.shape, 2)?, fixed(&w.shape, 3)?];
        let conv = Conv {
            x: x.elem,
            w: w.elem,
            x_offset: view.offset,
            x_strides,
            input: [fixed(&x.shape, down)?, fixed(&x.shape, across)?],
            output: [fixed(&result.shape, channel)?, fixed(&result.shape, down)?, fixed(&result.shape, across)?],
            kernel,
            strides: g.strides,
            pads: [g.pads[0], g.pads[1]],
            dilations: g.dilations,
            groups: g.groups,
            x_zero: g.x_zero,
            out,
            extras,
            lane: self.lane(&parts.program, &parts.inputs())?,
        };
        let name = format!("conv_direct{}__k{}x{}x{}", lane_word(&parts.program), kernel[0], kernel[1], kernel[2]);
        let macs = result.shape.count().map_or(0, |d| d.size as u64) * kernel.iter().product::<usize>() as u64;
        let items = extent(product_of(&[result.shape.0[0], result.shape.0[channel]])?);
        self.step(Call { spec: Spec::Conv(conv), name, args, items, grain: 1, macs })
    }
}

/// Weights [O, C, KH, KW] as the right sides of products, one for each group: rows in the order of the window.
fn row_major(w: &Const, g: &Geometry) -> Vec<u8> {
    let s: Vec<usize> = w.ty.shape.0.iter().map(|d| d.size).collect();
    let (k, n) = (s[1] * s[2] * s[3], s[0] / g.groups);
    let source = |i: usize| match g.layout {
        ImageLayout::ChannelsFirst => i,
        ImageLayout::ChannelsLast => i % s[1] * s[2] * s[3] + i / s[1],
    };
    (0..g.groups * k * n).map(|i| w.data[(i / (k * n) * n + i % n) * k + source(i / n % k)]).collect()
}
