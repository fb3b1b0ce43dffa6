//! Depthwise convolutions on 512-bit vectors: 64 channels of some pixels at a time.
//!
//! ```text
//! for output row, new input rows     Cranelift: a ring of padded rows, see `crate::depthwise`
//!   leaf
//!     for block of 64 channels       its weights stay in the first-level cache
//!       for turn of P pixels         as many as make the most of what they read together: 2 of 3x3, 4 of 5x5
//!         for tap row, four pixels   4 loads, 8 interleaves; a dot product for each vector and pixel that reads them
//!         lane program on 64 outputs of each pixel
//! ```
//!
//! Four neighbouring pixels of a row are interleaved once for all outputs that have taps among them: the weights of an output
//! lie where its taps are among the four, with zeros elsewhere. Interleaving leaves vector `v` with channels `16l + 4v..` in
//! its part `l`, and packing results puts them into order again, so nothing else is shuffled ([`Arrangement::Interleaved`]).
//!
//! Registers, of 32: 4 sums for each of up to 4 pixels, 4 vectors of 64 channels as they are loaded, 4 between. What the lane
//! program reads for every pixel alike has the rest.

use cranelift_codegen::ir::Value;
use iced_x86::code_asm::registers::gpr64::{r8, r9, r10, rbx, rcx, rdi, rdx, rsi};
use iced_x86::code_asm::{AsmRegister64, qword_ptr, zmmword_ptr};

use super::asm::{Asm, Assembled, at, z};
use super::gemm::EXTRAS;
use super::lane::{
    Arrangement, Feed, Group, LANES, Pins, ROW, VECTORS, can_interleave, emit_rows, feed, is_supported, masks, pin,
};
use crate::depthwise::{Depthwise, QUAD};
use crate::emit::Emit;
use crate::operand::{Columns, Operand};
use crate::view::Lin;

/// Most pixels of a turn.
const MOST: usize = 4;

/// The leaf's block of 64-bit values.
#[derive(Clone, Copy)]
enum Slot {
    Weights,
    Starts,
    Out,
    Extra(usize),
    /// The row of a tap row.
    Row(usize),
}

/// A depthwise convolution with a leaf.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WideDepthwise {
    of: Depthwise,
    /// Which of the lane program's inputs from the second on are constants; the pool has room behind each.
    constants: Vec<bool>,
    /// In which order the lane program has its columns.
    arrangement: Arrangement,
}

impl WideDepthwise {
    /// The same convolution with a leaf, if there can be one; its code has still to fit the registers.
    pub(crate) fn of(d: &Depthwise, constants: Vec<bool>) -> Option<WideDepthwise> {
        let straight = |o: &Operand| matches!(o.columns, Columns::Same | Columns::Table | Columns::Stride(1));
        let fits = d.out.columns == Columns::Stride(1)
            && d.extras.len() <= EXTRAS.len()
            && d.extras.iter().all(straight)
            && is_supported(&d.lane);
        let still = |o: &Operand| o.rows.iter().all(|&s| s == Lin::ZERO);
        let alike =
            d.extras.iter().zip(&constants).all(|(o, &constant)| still(o) && (constant || o.columns == Columns::Same));
        let interleave = d.output[2].is_multiple_of(ROW) && can_interleave(&d.lane, alike);
        let arrangement = if interleave { Arrangement::Interleaved } else { Arrangement::Rows };
        fits.then(|| WideDepthwise { of: d.clone(), constants, arrangement })
    }

    /// Whether constants of channels must be [`interleaved`](super::lane::interleaved).
    pub(crate) fn is_interleaved(&self) -> bool {
        self.arrangement == Arrangement::Interleaved
    }

    /// Pixels from the first tap of an output to that of the next one, when taps of both are the same pixels.
    fn step(&self) -> Option<usize> {
        let [outputs, taps] = self.of.columns;
        outputs.is_multiple_of(taps).then_some(outputs / taps)
    }

    /// Fours of pixels of a tap row that so many outputs read.
    fn quads(&self, pixels: usize) -> usize {
        ((pixels - 1) * self.step().unwrap_or(0) + self.of.kernel[1]).div_ceil(QUAD)
    }

    /// Whether an output of a turn has taps among a four.
    fn overlap(&self, pixel: usize, quad: usize) -> bool {
        let first = pixel * self.step().unwrap_or(0);
        first < (quad + 1) * QUAD && quad * QUAD < first + self.of.kernel[1]
    }

    /// Pixels of a turn: those with the least work for each, of interleaving and products, and of fetching weights once a row
    /// where those of all channels do not stay in the first-level cache.
    fn pixels(&self) -> usize {
        const CACHE: usize = 16 << 10;
        const CYCLES_A_LINE: usize = 4;
        let [high, width, channels] = [self.of.kernel[0], self.of.output[1], self.of.output[2]];
        let cost = |pixels: usize| {
            let quads = self.quads(pixels);
            let products = (0..pixels).map(|p| (0..quads).filter(|&q| self.overlap(p, q)).count()).sum::<usize>();
            let bytes = self.bytes_for(pixels);
            let fetched = if bytes * channels.div_ceil(ROW) > CACHE { bytes / 64 * CYCLES_A_LINE } else { 0 };
            (2 * quads + products) * VECTORS * high * width / pixels + fetched
        };
        let most = if self.step().is_some() { MOST.min(width) } else { 1 };
        (1..=most).min_by_key(|&pixels| (cost(pixels), pixels)).unwrap_or(1)
    }

    /// Bytes of the weights of a block of 64 channels.
    fn block_bytes(&self) -> usize {
        self.bytes_for(self.pixels())
    }

    fn bytes_for(&self, pixels: usize) -> usize {
        pixels * self.of.kernel[0] * self.quads(pixels) * ROW * QUAD
    }

    /// Weights [channels, taps] in the order [channels / 64, pixel of a turn, tap row, four, channel, 4], channels interleaved.
    pub(crate) fn pack_weights(&self, weights: &[u8]) -> Vec<u8> {
        let ([high, wide], channels, pixels) = (self.of.kernel, self.of.output[2], self.pixels());
        let (quads, step) = (self.quads(pixels), self.step().unwrap_or(0));
        let mut packed = Vec::with_capacity(channels.div_ceil(ROW) * self.block_bytes());
        for block in (0..channels).step_by(ROW) {
            for (pixel, row, quad) in
                (0..pixels).flat_map(|p| (0..high).flat_map(move |r| (0..quads).map(move |q| (p, r, q))))
            {
                for lane in 0..ROW {
                    let channel = block + lane % LANES / 4 * LANES + lane / LANES * 4 + lane % 4;
                    let weight = |i: usize| {
                        let tap = (quad * QUAD + i).checked_sub(pixel * step).filter(|&tap| tap < wide)?;
                        weights.get(channel * high * wide + row * wide + tap).copied()
                    };
                    packed.extend((0..QUAD).map(|i| weight(i).unwrap_or(0)));
                }
            }
        }
        packed
    }

    pub(crate) fn scratch_bytes(&self) -> usize {
        self.of.scratch_bytes()
    }

    fn slot(&self, s: Slot) -> iced_x86::code_asm::AsmMemoryOperand {
        let index = match s {
            Slot::Weights => 0,
            Slot::Starts => 1,
            Slot::Out => 2,
            Slot::Extra(i) => 3 + i,
            Slot::Row(i) => 3 + self.of.extras.len() + i,
        };
        qword_ptr(at(rdi, 8 * index as i64))
    }

    // ---- the kernel around the leaf

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        self.of.emit_with(e, |e, rows, outer| {
            let (weights, starts, out) = (e.arg(1), e.arg(3), e.arg(2));
            let mut block = vec![weights, starts, self.of.out.base(e, out, &outer)];
            for (i, o) in self.of.extras.iter().enumerate() {
                let pointer = e.arg(4 + i);
                block.push(o.base(e, pointer, &outer));
            }
            block.extend::<Vec<Value>>(rows.to_vec());
            e.call_leaf(0, &block);
        });
    }

    // ---- the leaf

    /// The leaf's code.
    pub(crate) fn assemble(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        let channels = self.of.output[2];
        masks(&mut asm, channels % ROW)?;
        if channels >= ROW {
            asm.c.mov(rcx, (channels / ROW) as u64)?;
            asm.repeat(rcx, |asm| {
                self.block(asm, ROW)?;
                self.next_block(asm)
            })?;
        }
        if !channels.is_multiple_of(ROW) {
            self.block(&mut asm, channels % ROW)?;
        }
        asm.finish()
    }

    /// All pixels of up to 64 channels: rdx weights, r9 starts, r8 out, rsi bytes into the rows, rbx turns to do.
    fn block(&self, asm: &mut Asm, channels: usize) -> Assembled {
        for (register, slot) in [(rdx, Slot::Weights), (r9, Slot::Starts), (r8, Slot::Out)] {
            asm.c.mov(register, self.slot(slot))?;
        }
        for (i, &register) in EXTRAS.iter().enumerate().take(self.of.extras.len()) {
            asm.c.mov(register, self.slot(Slot::Extra(i)))?;
        }
        let (pixels, all) = (self.pixels(), self.of.output[1]);
        let pins = self.pin(asm, channels, pixels)?;
        asm.c.xor(rsi, rsi)?;
        asm.c.mov(rbx, (all / pixels) as u64)?;
        asm.repeat(rbx, |asm| {
            self.turn(asm, channels, pixels, &pins)?;
            asm.advance(rsi, (pixels * self.of.columns[0]) as i64)?;
            self.walkers().try_for_each(|(register, o)| asm.advance(register, pixels as i64 * o.row_stride()))
        })?;
        match all % pixels {
            0 => Ok(()),
            rest => self.turn(asm, channels, rest, &pins),
        }
    }

    fn walkers(&self) -> impl Iterator<Item = (AsmRegister64, &Operand)> {
        [(r8, &self.of.out)].into_iter().chain(EXTRAS.into_iter().zip(&self.of.extras))
    }

    /// Moves the block on to the next 64 channels.
    fn next_block(&self, asm: &mut Asm) -> Assembled {
        let columns = ROW as i64;
        let mut steps = vec![(Slot::Weights, self.block_bytes() as i64), (Slot::Starts, 4 * columns)];
        steps.push((Slot::Out, self.of.out.column_stride() * columns));
        steps.extend(self.of.extras.iter().enumerate().map(|(i, o)| (Slot::Extra(i), o.column_stride() * columns)));
        steps.extend((0..self.of.kernel[0]).map(|i| (Slot::Row(i), columns)));
        for (slot, bytes) in steps {
            if bytes != 0 {
                asm.c.add(self.slot(slot), bytes as i32)?;
            }
        }
        Ok(())
    }

    /// So many pixels: their sums, then the lane program on each.
    fn turn(&self, asm: &mut Asm, channels: usize, pixels: usize, pins: &Pins) -> Assembled {
        for (pixel, v) in (0..pixels).flat_map(|p| (0..VECTORS).map(move |v| (p, v))) {
            asm.c.vmovdqu32(z(sum(pixel, v)), zmmword_ptr(at(r9, 64 * v as i64)))?;
        }
        for row in 0..self.of.kernel[0] {
            asm.c.mov(r10, self.slot(Slot::Row(row)))?;
            (0..self.quads(pixels)).try_for_each(|quad| self.quad(asm, row, quad, pixels))?;
        }
        if self.arrangement == Arrangement::Rows {
            (0..pixels).try_for_each(|pixel| self.rearrange(asm, pixel, pixels))?;
        }
        self.with_rows(channels, pixels, |rows| emit_rows(asm, &self.of.lane, rows, pins))
    }

    /// Four pixels of a tap row, or as many as are left, the last one repeated: its other weights are zero.
    fn quad(&self, asm: &mut Asm, row: usize, quad: usize, pixels: usize) -> Assembled {
        let bytes = (pixels * VECTORS) as u8;
        let pairs = bytes + QUAD as u8;
        let last = (pixels - 1) * self.step().unwrap_or(0) + self.of.kernel[1] - 1;
        let count = (last + 1 - quad * QUAD).min(QUAD);
        for i in 0..count {
            let from = (quad * QUAD + i) * self.of.columns[1];
            asm.c.vmovdqu64(z(bytes + i as u8), zmmword_ptr(r10 + rsi + from as i32))?;
        }
        let loaded = |i: usize| z(bytes + i.min(count - 1) as u8);
        for pair in 0..2 {
            let (a, b, to) = (loaded(2 * pair), loaded(2 * pair + 1), pairs + 2 * pair as u8);
            asm.c.vpunpcklbw(z(to), a, b)?;
            asm.c.vpunpckhbw(z(to + 1), a, b)?;
        }
        for v in 0..VECTORS as u8 {
            let (a, b, to) = (z(pairs + v / 2), z(pairs + 2 + v / 2), z(bytes + v));
            match v % 2 {
                0 => asm.c.vpunpcklwd(to, a, b)?,
                _ => asm.c.vpunpckhwd(to, a, b)?,
            }
        }
        let quads = self.quads(self.pixels());
        for pixel in (0..pixels).filter(|&pixel| self.overlap(pixel, quad)) {
            let weights = ((pixel * self.of.kernel[0] + row) * quads + quad) * ROW * QUAD;
            for v in 0..VECTORS {
                let line = zmmword_ptr(at(rdx, (weights + v * LANES * QUAD) as i64));
                asm.c.vpdpbusd(z(sum(pixel, v)), z(bytes + v as u8), line)?;
            }
        }
        Ok(())
    }

    /// Brings the interleaved sums of a pixel into the order of channels: the parts of four vectors change places with the vectors.
    fn rearrange(&self, asm: &mut Asm, pixel: usize, pixels: usize) -> Assembled {
        let [a, b, c, d] = std::array::from_fn(|v| z(sum(pixel, v)));
        let [t0, t1, t2, t3] = std::array::from_fn(|i| z((pixels * VECTORS + i) as u8));
        for (to, x, y, parts) in [(t0, a, b, 0x44), (t1, c, d, 0x44), (t2, a, b, 0xee), (t3, c, d, 0xee)] {
            asm.c.vshufi32x4(to, x, y, parts)?;
        }
        for (to, x, y, parts) in [(a, t0, t1, 0x88), (b, t0, t1, 0xdd), (c, t2, t3, 0x88), (d, t2, t3, 0xdd)] {
            asm.c.vshufi32x4(to, x, y, parts)?;
        }
        Ok(())
    }

    /// Holds what all pixels of these channels share in the registers that are left.
    fn pin(&self, asm: &mut Asm, channels: usize, pixels: usize) -> Assembled<Pins> {
        let still = |(_, o): &(AsmRegister64, &Operand)| o.row_stride() == 0;
        let fixed: Vec<AsmRegister64> =
            EXTRAS.into_iter().zip(&self.of.extras).filter(still).map(|(register, _)| register).collect();
        let room: Vec<u8> = ((pixels * VECTORS + 2 * QUAD) as u8..32).collect();
        self.with_rows(channels, pixels, |rows| pin(asm, &self.of.lane, rows, &room, &fixed))
    }

    /// The rows of the lane program: the pixels of a turn.
    fn with_rows<T>(&self, channels: usize, pixels: usize, run: impl FnOnce(&[Group<'_>]) -> T) -> T {
        let inputs: Vec<Vec<Feed>> = (0..pixels).map(|pixel| self.feeds(pixel)).collect();
        let free: Vec<Vec<u8>> = (0..pixels)
            .map(|pixel| (0..(pixel * VECTORS) as u8).chain((pixels * VECTORS) as u8..32).collect())
            .collect();
        let group = |pixel: usize| Group {
            inputs: &inputs[pixel],
            columns: channels,
            out: (r8, pixel as i64 * self.of.out.row_stride()),
            free: &free[pixel],
            arrangement: self.arrangement,
        };
        run(&(0..pixels).map(group).collect::<Vec<_>>())
    }

    fn feeds(&self, pixel: usize) -> Vec<Feed> {
        let extras = self.of.extras.iter().zip(EXTRAS).zip(&self.constants);
        let extras = extras.map(|((o, base), &constant)| feed(o, base, pixel as i64 * o.row_stride(), constant));
        [Feed::Registers(std::array::from_fn(|v| sum(pixel, v)))].into_iter().chain(extras).collect()
    }
}

/// The register of a pixel's sums.
fn sum(pixel: usize, vector: usize) -> u8 {
    (pixel * VECTORS + vector) as u8
}
