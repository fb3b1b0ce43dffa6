//! Depthwise convolutions on 512-bit vectors: 64 channels of a pixel at a time.
//!
//! ```text
//! for output row, new input rows     Cranelift: a ring of padded rows, see `crate::depthwise`
//!   leaf
//!     for block of 64 channels       its weights, 256 bytes for four taps, stay in the first-level cache
//!       for pixel
//!         for four taps              4 loads, 8 interleaves, 4 dot products; a last tap alone is widened by its loads
//!         lane program on 64 outputs
//! ```
//!
//! Registers, of 32: 4 sums, 4 vectors of 64 channels as they are loaded and four times a quarter of the channels with four
//! taps each, 4 between, 1 that says how loads are ordered: dword `4i + j` from `4j + i`, so that after interleaving within
//! quarters vector `i` holds channels `16i..16i+16` in order. The lane program has the rest.

use cranelift_codegen::ir::Value;
use iced_x86::code_asm::registers::gpr64::{r8, r9, r10, rbx, rcx, rdi, rdx, rsi};
use iced_x86::code_asm::{AsmRegister64, qword_ptr, xmmword_ptr, zmmword_ptr};

use super::asm::{Asm, Assembled, at, z};
use super::gemm::EXTRAS;
use super::lane::{Feed, Group, LANES, ROW, VECTORS, emit as emit_lane, is_supported, masks};
use crate::depthwise::{Depthwise, QUAD};
use crate::emit::Emit;
use crate::operand::{Columns, Operand};

/// The order of loads.
const ORDER: u8 = 31;
/// The first of four sums, of four vectors of bytes, of four of pairs.
const SUMS: u8 = 0;
const BYTES: u8 = 4;
const PAIRS: u8 = 8;

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
}

impl WideDepthwise {
    /// The same convolution with a leaf, if there can be one; its code has still to fit the registers.
    pub(crate) fn of(d: &Depthwise, constants: Vec<bool>) -> Option<WideDepthwise> {
        let straight = |o: &Operand| matches!(o.columns, Columns::Same | Columns::Table | Columns::Stride(1));
        let fits = d.out.columns == Columns::Stride(1)
            && d.extras.len() <= EXTRAS.len()
            && d.extras.iter().all(straight)
            && is_supported(&d.lane);
        fits.then(|| WideDepthwise { of: d.clone(), constants })
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
        let order = asm.dwords(std::array::from_fn(|i| (i % 4 * 4 + i / 4) as u32));
        asm.c.vmovdqu32(z(ORDER), order)?;
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

    /// All pixels of up to 64 channels: rdx weights, r9 starts, r8 out, rsi bytes into the rows, rbx pixels to do.
    fn block(&self, asm: &mut Asm, channels: usize) -> Assembled {
        for (register, slot) in [(rdx, Slot::Weights), (r9, Slot::Starts), (r8, Slot::Out)] {
            asm.c.mov(register, self.slot(slot))?;
        }
        for (i, &register) in EXTRAS.iter().enumerate().take(self.of.extras.len()) {
            asm.c.mov(register, self.slot(Slot::Extra(i)))?;
        }
        asm.c.xor(rsi, rsi)?;
        asm.c.mov(rbx, self.of.output[1] as u64)?;
        asm.repeat(rbx, |asm| {
            self.sums(asm, channels.div_ceil(LANES))?;
            self.outputs(asm, channels)?;
            asm.advance(rsi, self.of.columns[0] as i64)?;
            self.walkers().try_for_each(|(register, o)| asm.advance(register, o.row_stride()))
        })
    }

    fn walkers(&self) -> impl Iterator<Item = (AsmRegister64, &Operand)> {
        [(r8, &self.of.out)].into_iter().chain(EXTRAS.into_iter().zip(&self.of.extras))
    }

    /// Moves the block on to the next 64 channels.
    fn next_block(&self, asm: &mut Asm) -> Assembled {
        let columns = ROW as i64;
        let weights = (self.of.quads() * ROW * QUAD) as i64;
        let mut steps = vec![(Slot::Weights, weights), (Slot::Starts, 4 * columns)];
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

    /// The sums of a pixel.
    fn sums(&self, asm: &mut Asm, vectors: usize) -> Assembled {
        for v in 0..vectors {
            asm.c.vmovdqu32(z(SUMS + v as u8), zmmword_ptr(at(r9, 64 * v as i64)))?;
        }
        let mut row = usize::MAX;
        for quad in 0..self.of.quads() {
            let taps: Vec<usize> = (quad * QUAD..self.of.taps().min((quad + 1) * QUAD)).collect();
            match taps[..] {
                [tap] => self.single(asm, quad, tap, vectors, &mut row)?,
                _ => self.quad(asm, quad, &taps, vectors, &mut row)?,
            }
        }
        Ok(())
    }

    /// Makes r10 the row of a tap; returns the tap's bytes into it.
    fn find(&self, asm: &mut Asm, tap: usize, row: &mut usize) -> Assembled<i64> {
        let (down, across) = (tap / self.of.kernel[1], tap % self.of.kernel[1]);
        if *row != down {
            asm.c.mov(r10, self.slot(Slot::Row(down)))?;
            *row = down;
        }
        Ok((across * self.of.columns[1]) as i64)
    }

    /// One tap: each vector's bytes widened.
    fn single(&self, asm: &mut Asm, quad: usize, tap: usize, vectors: usize, row: &mut usize) -> Assembled {
        let from = self.find(asm, tap, row)?;
        for v in 0..vectors {
            let bytes = xmmword_ptr(r10 + rsi + (from + 16 * v as i64) as i32);
            asm.c.vpmovzxbd(z(BYTES + v as u8), bytes)?;
            self.dot(asm, quad, v, BYTES + v as u8)?;
        }
        Ok(())
    }

    /// Two to four taps; missing ones repeat the last, and have weights of zero.
    fn quad(&self, asm: &mut Asm, quad: usize, taps: &[usize], vectors: usize, row: &mut usize) -> Assembled {
        let mut loaded = [BYTES; QUAD];
        for (i, to) in loaded.iter_mut().enumerate() {
            *to = BYTES + i.min(taps.len() - 1) as u8;
            if let Some(&tap) = taps.get(i) {
                let from = self.find(asm, tap, row)?;
                asm.c.vpermd(z(*to), z(ORDER), zmmword_ptr(r10 + rsi + from as i32))?;
            }
        }
        for (i, pair) in loaded.chunks(2).enumerate() {
            let to = PAIRS + 2 * i as u8;
            asm.c.vpunpcklbw(z(to), z(pair[0]), z(pair[1]))?;
            if vectors > 2 {
                asm.c.vpunpckhbw(z(to + 1), z(pair[0]), z(pair[1]))?;
            }
        }
        for v in 0..vectors {
            let (a, b, to) = (PAIRS + v as u8 / 2, PAIRS + 2 + v as u8 / 2, BYTES + v as u8);
            match v % 2 {
                0 => asm.c.vpunpcklwd(z(to), z(a), z(b))?,
                _ => asm.c.vpunpckhwd(z(to), z(a), z(b))?,
            }
            self.dot(asm, quad, v, to)?;
        }
        Ok(())
    }

    fn dot(&self, asm: &mut Asm, quad: usize, v: usize, x: u8) -> Assembled {
        let line = (v * self.of.quads() + quad) * LANES * QUAD;
        Ok(asm.c.vpdpbusd(z(SUMS + v as u8), z(x), zmmword_ptr(at(rdx, line as i64)))?)
    }

    /// The lane program on the sums of a pixel.
    fn outputs(&self, asm: &mut Asm, channels: usize) -> Assembled {
        let mut inputs = vec![Feed::Registers(std::array::from_fn(|v| SUMS + v.min(VECTORS) as u8))];
        inputs.extend(self.of.extras.iter().zip(EXTRAS).zip(&self.constants).map(|((o, base), &constant)| {
            match o.columns {
                Columns::Stride(_) if constant => Feed::Padded(base, 0),
                Columns::Stride(_) => Feed::Row(base, 0),
                Columns::Same => Feed::One(base, 0),
                Columns::Table => Feed::Table(base),
            }
        }));
        let free: Vec<u8> = (BYTES..ORDER).collect();
        emit_lane(asm, &self.of.lane, &Group { inputs: &inputs, columns: channels, out: (r8, 0), free: &free })
    }
}
