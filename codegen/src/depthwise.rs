//! Depthwise convolutions with channels last, vectorised over channels.
//!
//! ```text
//! for item = output row
//!   for input row that is new        copied into a ring of padded rows in scratch; outside the image: the zero point
//!   for group of 8 channels          a leaf instead on the wide tiers
//!     for pixel
//!       for four taps                bytes interleaved so that each channel's four lie together, then a dot product
//!       lane program
//! ```
//!
//! The ring makes borders like the rest of a row, and holds each row while the taps of several output rows read it: a copy of
//! one byte for each KH*KW multiplied. With the zero point where the image ends, its share of the sums is the same everywhere
//! and part of what they start with. Signed inputs become unsigned on the way, as the dot product wants them.

use cranelift_codegen::ir::types::{I8X16, I32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
use vitc_ir::Elem;

use crate::emit::{Addr, Emit};
use crate::lane::{GROUP, LaneSpec, Lanes};
use crate::operand::{Operand, RowGroup, run_group};
use crate::view::Lin;

/// Channels whose weights lie together, tap by tap.
pub(crate) const LANES: usize = 16;
/// Taps of a dot product.
pub(crate) const QUAD: usize = 4;
/// Bytes behind a row of the ring that kernels may read.
const SLACK: usize = 64;

/// A depthwise convolution. Arguments: x, weights, out, what the sums start with, then the lane program's inputs from the
/// second on.
///
/// Weights are bytes in the order [channels / 16, taps / 4, 16, 4], both rounded up; what the sums start with is `i32` for each channel.
/// Operands have the rows [images, output rows, pixels].
///
/// A row of few channels may be given as one of 64: `pixels` are then stretches of 64 elements, and the taps are as many
/// elements apart as there are channels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Depthwise {
    pub x: Elem,
    pub x_offset: Lin,
    /// Zero point of x as the dot product sees it, a byte.
    pub x_zero: u8,
    /// Rows of an input image and bytes of one.
    pub input: [usize; 2],
    /// Rows of an output image, pixels of one, channels.
    pub output: [usize; 3],
    pub kernel: [usize; 2],
    /// Input rows from output row to output row, and from tap to tap.
    pub rows: [usize; 2],
    /// Bytes from pixel to pixel, and from tap to tap.
    pub columns: [usize; 2],
    /// Rows above the image, and bytes before a row.
    pub pads: [usize; 2],
    /// Bytes of a padded row that any tap of a whole pixel reads.
    pub row_bytes: usize,
    pub out: Operand,
    pub extras: Vec<Operand>,
    pub lane: LaneSpec,
}

impl Depthwise {
    pub(crate) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    pub(crate) fn quads(&self) -> usize {
        self.taps().div_ceil(QUAD)
    }

    /// Padded rows that one output row reads, and those from the first to the last of an image.
    fn span(&self) -> usize {
        (self.kernel[0] - 1) * self.rows[1] + 1
    }

    fn padded_rows(&self) -> usize {
        (self.output[0] - 1) * self.rows[0] + self.span()
    }

    /// Bytes of a row of the ring.
    fn slot_bytes(&self) -> usize {
        (self.row_bytes + SLACK).next_multiple_of(64)
    }

    /// Bytes of an input row that are copied.
    fn copied(&self) -> usize {
        self.input[1].min(self.row_bytes.saturating_sub(self.pads[1]))
    }

    pub(crate) fn scratch_bytes(&self) -> usize {
        self.span() * self.slot_bytes()
    }

    /// `conv_depthwise_u8s8_<lane>__k3x3c64`.
    pub(crate) fn name(&self, lane: &str) -> String {
        let ([high, wide], x) = (self.kernel, self.x.name().replace('i', "s"));
        format!("conv_depthwise_{x}s8{lane}__k{high}x{wide}c{}", self.output[2])
    }

    /// Items of a step: output rows. A thread reads again what its first row shares with those of another.
    pub(crate) fn grain(&self) -> usize {
        self.kernel[0].min(self.output[0])
    }

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        self.emit_with(e, |e, rows, at| self.pixels(e, rows, at));
    }

    /// The kernel around `body`, which gets the rows of the taps, and image and output row.
    pub(crate) fn emit_with(&self, e: &mut Emit<'_>, mut body: impl FnMut(&mut Emit<'_>, &[Value], [Value; 2])) {
        self.clear_borders(e);
        let (begin, end, x) = (e.begin, e.end, e.arg(0));
        let never = e.iconst(0);
        e.for_range(begin, end, 1, &[never], |e, item, next| {
            let rows = e.iconst(self.output[0] as i64);
            let image = e.b.ins().udiv(item, rows);
            let before = e.b.ins().imul(image, rows);
            let row = e.b.ins().isub(item, before);
            // Rows are counted through all images, so that those of the one before are not taken for this one's.
            let padded = e.mul_imm(image, self.padded_rows() as i64);
            let first = e.at(padded, row, self.rows[0] as i64);
            let past = e.add_imm(first, self.span() as i64);
            let fresh = e.b.ins().smax(next[0], first);
            let source = self.image(e, x, image);
            e.for_range(fresh, past, 1, &[], |e, at, _| {
                let within = e.b.ins().isub(at, padded);
                self.fill(e, source, within, at);
                Vec::new()
            });
            let taps: Vec<Value> = (0..self.kernel[0])
                .map(|k| {
                    let at = e.add_imm(first, (k * self.rows[1]) as i64);
                    self.slot(e, at)
                })
                .collect();
            body(e, &taps, [image, row]);
            vec![past]
        });
    }

    fn image(&self, e: &mut Emit<'_>, x: Value, image: Value) -> Value {
        let offset = e.lin(self.x_offset);
        let x = e.add(x, offset);
        e.at(x, image, (self.input[0] * self.input[1]) as i64)
    }

    /// Where row `at` lies.
    fn slot(&self, e: &mut Emit<'_>, at: Value) -> Value {
        let span = e.iconst(self.span() as i64);
        let slot = e.b.ins().urem(at, span);
        e.at(e.scratch, slot, self.slot_bytes() as i64)
    }

    /// The zero point where no row of the image lies.
    fn clear_borders(&self, e: &mut Emit<'_>) {
        let after = self.pads[1] + self.copied();
        for slot in 0..self.span() {
            let slot = e.add_imm(e.scratch, (slot * self.slot_bytes()) as i64);
            self.set(e, slot, 0, self.pads[1]);
            self.set(e, slot, after, self.row_bytes);
        }
    }

    /// Sets the bytes `from..to` of a row, and perhaps some of those behind, to the zero point.
    fn set(&self, e: &mut Emit<'_>, slot: Value, from: usize, to: usize) {
        if from >= to {
            return;
        }
        let zero = e.constant(I8X16, self.x_zero.into());
        let at = e.add_imm(slot, from as i64);
        e.repeat((to - from).div_ceil(16), &[at], |e, p| {
            e.store(zero, Addr { base: p[0], disp: 0 });
            vec![e.add_imm(p[0], 16)]
        });
    }

    /// Brings row `within` of the padded image into the ring as row `at`.
    fn fill(&self, e: &mut Emit<'_>, image: Value, within: Value, at: Value) {
        let slot = self.slot(e, at);
        let row = e.add_imm(within, -(self.pads[0] as i64));
        let inside = |e: &mut Emit<'_>| {
            let from = e.at(image, row, self.input[1] as i64);
            let to = e.add_imm(slot, self.pads[1] as i64);
            crate::copy::copy_run(e, self.copied(), from, to);
            if self.x == Elem::I8 {
                crate::wide::gemm::flip_signs(e, to, self.copied());
            }
        };
        let outside = |e: &mut Emit<'_>| self.set(e, slot, self.pads[1], self.row_bytes);
        e.if_less(row, 0, outside, |e| e.if_less(row, self.input[0] as i64, inside, outside));
    }

    // ---- without a leaf

    /// All pixels of a row.
    fn pixels(&self, e: &mut Emit<'_>, taps: &[Value], outer: [Value; 2]) {
        let channels = self.output[2];
        let (weights, starts) = (e.arg(1), e.arg(3));
        let out_arg = e.arg(2);
        let mut bases = vec![self.out.base(e, out_arg, &outer)];
        for (i, o) in self.extras.iter().enumerate() {
            let pointer = e.arg(4 + i);
            bases.push(o.base(e, pointer, &outer));
        }
        let group_bytes = (self.quads() * LANES * QUAD) as i64;
        let (zero, end) = (e.iconst(0), e.iconst(channels as i64));
        let (rest, _) = e.while_room(zero, end, GROUP as i64, GROUP as i64, &[], |e, channel, _| {
            self.group(e, taps, &bases, [weights, starts, channel], group_bytes, GROUP);
            Vec::new()
        });
        if !channels.is_multiple_of(GROUP) {
            self.group(e, taps, &bases, [weights, starts, rest], group_bytes, channels % GROUP);
        }
    }

    /// All pixels of up to eight channels.
    fn group(
        &self,
        e: &mut Emit<'_>,
        taps: &[Value],
        bases: &[Value],
        [weights, starts, channel]: [Value; 3],
        group_bytes: i64,
        count: usize,
    ) {
        let lanes = e.iconst(LANES as i64);
        let group = e.b.ins().udiv(channel, lanes);
        let half = e.b.ins().urem(channel, lanes);
        let weights = e.at(weights, group, group_bytes);
        let weights = e.at(weights, half, QUAD as i64);
        let starts = e.at(starts, channel, 4);
        let first = [0, 16].map(|disp| e.load(I32X4, Addr { base: starts, disp }));
        let operands: Vec<&Operand> = std::iter::once(&self.out).chain(&self.extras).collect();
        let mut carried: Vec<Value> = taps.iter().map(|&t| e.add(t, channel)).collect();
        carried.extend(bases.iter().zip(&operands).map(|(&b, o)| e.at(b, channel, o.column_stride())));
        e.repeat(self.output[1], &carried, |e, p| {
            let (taps, places) = p.split_at(self.kernel[0]);
            let sums = self.sums(e, taps, weights, first);
            let at: Vec<Addr> = places.iter().map(|&base| Addr { base, disp: 0 }).collect();
            let inputs: Vec<Operand> = operands.iter().map(|&o| o.clone()).collect();
            let mut group = RowGroup { inputs: &inputs, at: &at, first: Some(Lanes::I32(sums)), count };
            run_group(e, &self.lane, &mut group, &self.out, at[0]);
            let mut next: Vec<Value> = taps.iter().map(|&t| e.add_imm(t, self.columns[0] as i64)).collect();
            next.extend(places.iter().zip(&operands).map(|(&p, o)| e.add_imm(p, o.row_stride())));
            next
        });
    }

    /// The sums of eight channels of one pixel.
    fn sums(&self, e: &mut Emit<'_>, taps: &[Value], weights: Value, first: [Value; 2]) -> [Value; 2] {
        let mut sums = first;
        for quad in 0..self.quads() {
            let bytes: Vec<Value> = (quad * QUAD..(quad + 1) * QUAD)
                .map(|tap| {
                    if tap >= self.taps() {
                        return e.constant(I8X16, 0);
                    }
                    let (row, column) = (tap / self.kernel[1], tap % self.kernel[1]);
                    // Eight bytes count; the ring has room behind its rows.
                    e.load(I8X16, Addr { base: taps[row], disp: (column * self.columns[1]) as i32 })
                })
                .collect();
            let pairs = [interleave(e, bytes[0], bytes[1], 1, 0), interleave(e, bytes[2], bytes[3], 1, 0)];
            for (half, sum) in sums.iter_mut().enumerate() {
                let x = interleave(e, pairs[0], pairs[1], 2, half);
                let at = quad * LANES * QUAD + half * 16;
                let w = e.load(I8X16, Addr { base: weights, disp: at as i32 });
                *sum = e.dot(*sum, x, w);
            }
        }
        sums
    }
}

/// Pieces of `size` bytes of the low (or high) halves of two vectors, taken in turn.
fn interleave(e: &mut Emit<'_>, a: Value, b: Value, size: usize, half: usize) -> Value {
    let mask: Vec<u8> = (0..16)
        .map(|i| {
            let (piece, byte) = (i / size, i % size);
            let from = half * 8 + piece / 2 * size + byte;
            (from + piece % 2 * 16) as u8
        })
        .collect();
    let mask = e.b.func.dfg.immediates.push(mask.as_slice().into());
    e.b.ins().shuffle(a, b, mask)
}

/// Weights [channels, taps] in the order in which kernels read them.
pub(crate) fn pack_weights(weights: &[u8], channels: usize, taps: usize) -> Vec<u8> {
    let quads = taps.div_ceil(QUAD);
    let mut packed = vec![0; channels.div_ceil(LANES) * quads * LANES * QUAD];
    for (i, &w) in weights.iter().enumerate() {
        let (channel, tap) = (i / taps, i % taps);
        let line = channel / LANES * quads + tap / QUAD;
        packed[(line * LANES + channel % LANES) * QUAD + tap % QUAD] = w;
    }
    packed
}
