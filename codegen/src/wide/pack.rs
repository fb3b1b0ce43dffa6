//! Right sides of products that are computed: a matrix is packed into panels of 64 columns, four k of a column side by side.
//! That is what `vpdpbusd` multiplies, vector by vector, and sixteen groups of four k are a tile of the tile unit.
//!
//! ```text
//! turned     each column's k lie together     for sixteen columns, for sixteen k    sixteen loads, a transpose of double words
//!            (the keys of attention)                                                in the lanes, four stores
//! straight   each k's columns lie together    for four k, for 64 columns            four loads, interleaved byte by byte, four
//!            (its values)                                                           stores
//! ```

use iced_x86::code_asm::registers::gpr64::{r9, rax, rcx, rdx, rsi};
use iced_x86::code_asm::{AsmMemoryOperand, xmmword_ptr, zmmword_ptr};

use super::asm::{Asm, Assembled, at, set_mask, spread, x, z};
use super::lane::{LANES, ROW, VECTORS};

/// Most of what the code is laid out for without loops: k of a turned matrix, columns of a straight one.
pub(crate) const MOST: usize = 1024;
/// Where the sums of columns that do not exist start: below any sum of [`MOST`] products of bytes, with room to subtract.
const NOTHING: i64 = -(1 << 30);

/// The masks of the last bytes of a load and of lanes that have no column.
const TAIL: u8 = 2;
const LAST_COLUMNS: u8 = 3;
/// Registers beside 0 to 7: a row on its way, sums of columns, bytes of signs and of ones, an order of double words.
const LOADED: u8 = 8;
const SUM: u8 = 9;
const FLIP: u8 = 20;
const ORDER: u8 = 22;
const ONES: u8 = 23;

/// A right side in panels of 64 columns: for each so many steps of four k, 256 bytes each.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    pub steps: usize,
}

impl Panels {
    /// Bytes of a panel.
    pub(crate) fn bytes(self) -> i64 {
        Panels::group(self.steps)
    }

    /// Where group `n` of four k lies in a panel.
    pub(crate) fn group(n: usize) -> i64 {
        (4 * ROW * n) as i64
    }

    /// Bytes of so many columns.
    pub(crate) fn bytes_of(self, columns: usize) -> usize {
        columns.div_ceil(ROW) * self.bytes() as usize
    }
}

/// A matrix of bytes to pack.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    pub k: usize,
    pub columns: usize,
    /// Bytes from column to column of a turned matrix, from k to k of a straight one.
    pub stride: i64,
    /// Whether it is unsigned: its bytes become signed.
    pub flips: bool,
    pub panels: Panels,
}

/// Where the leaf's block has the first byte of the matrix, and of its panels.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    pub from: AsmMemoryOperand,
    pub to: AsmMemoryOperand,
}

/// The order in which four lanes of four double words become their transpose.
pub(crate) fn transposed() -> [u32; LANES] {
    std::array::from_fn(|i| (i % 4 * 4 + i / 4) as u32)
}

impl Matrix {
    /// Packs a turned matrix, sixteen columns at a time, and puts what sums of each column start with, minus `zero` times the sum of the
    /// column, into `corrections`.
    pub(crate) fn pack_turned(&self, asm: &mut Asm, at: Places, corrections: AsmMemoryOperand, zero: i64) -> Assembled {
        for (register, from) in [(rcx, at.from), (rdx, at.to), (r9, corrections)] {
            asm.c.mov(register, from)?;
        }
        let rest = (self.k % 16) as u32;
        set_mask(asm, TAIL, (0..4).map(|lane| ((1u64 << rest) - 1) << (16 * lane)).sum())?;
        set_mask(asm, LAST_COLUMNS, (u64::MAX << (self.columns % LANES)) & 0xffff)?;
        spread(asm, z(FLIP), 0x8080_8080)?;
        spread(asm, z(ONES), 0x0101_0101)?;
        let (panels, vectors) = (self.columns / ROW, self.columns % ROW / LANES);
        if panels > 0 {
            asm.c.mov(rsi, panels as u64)?;
            asm.repeat(rsi, |asm| {
                self.turned_vectors(asm, VECTORS, zero)?;
                asm.advance(rdx, self.panels.bytes() - ROW as i64 * 4)
            })?;
        }
        if vectors > 0 {
            self.turned_vectors(asm, vectors, zero)?;
        }
        match self.columns % LANES {
            0 => Ok(()),
            present => self.turned_vector(asm, present, zero),
        }
    }

    fn turned_vectors(&self, asm: &mut Asm, vectors: usize, zero: i64) -> Assembled {
        asm.c.mov(rax, vectors as u64)?;
        asm.repeat(rax, |asm| self.turned_vector(asm, LANES, zero))
    }

    fn turned_vector(&self, asm: &mut Asm, present: usize, zero: i64) -> Assembled {
        asm.c.vpxord(z(SUM), z(SUM), z(SUM))?;
        for first in (0..self.k).step_by(16) {
            self.turned_sixteen(asm, present, first)?;
        }
        let zero = asm.dword(-zero);
        asm.c.vpmulld(z(SUM), z(SUM), zero)?;
        if present < LANES {
            spread(asm, z(SUM).k3(), NOTHING)?;
        }
        asm.c.vmovdqu32(zmmword_ptr(at(r9, 0)), z(SUM))?;
        asm.advance(rcx, LANES as i64 * self.stride)?;
        asm.advance(rdx, 64)?;
        asm.advance(r9, 64)
    }

    /// Bytes `first..first + 16` of sixteen columns: register `i` takes those of columns `4*l + i` into lane `l`, then the four
    /// registers are transposed by double words within their lanes.
    fn turned_sixteen(&self, asm: &mut Asm, present: usize, first: usize) -> Assembled {
        let bytes = (self.k - first).min(16);
        for column in 0..LANES {
            let (to, lane) = (z((column % 4) as u8), (column / 4) as u32);
            let from = xmmword_ptr(at(rcx, column as i64 * self.stride + first as i64));
            match (column < present, lane, bytes) {
                (false, 0, _) => asm.c.vpxord(to, to, to)?,
                (false, ..) => {}
                (true, 0, 16) => asm.c.vmovdqu32(x((column % 4) as u8), from)?,
                (true, _, 16) => asm.c.vinserti32x4(to, to, from, lane)?,
                (true, 0, _) => asm.c.vmovdqu8(x((column % 4) as u8).k2().z(), from)?,
                (true, ..) => {
                    asm.c.vmovdqu8(x(LOADED).k2().z(), from)?;
                    asm.c.vinserti32x4(to, to, x(LOADED), lane)?;
                }
            }
        }
        if self.flips {
            for n in 0..4 {
                // What is beyond k stays zero.
                if bytes == 16 {
                    asm.c.vpxord(z(n), z(n), z(FLIP))?;
                } else {
                    asm.c.vpaddb(z(n).k2().z(), z(n), z(FLIP))?;
                }
            }
        }
        asm.c.vpunpckldq(z(4), z(0), z(1))?;
        asm.c.vpunpckhdq(z(5), z(0), z(1))?;
        asm.c.vpunpckldq(z(6), z(2), z(3))?;
        asm.c.vpunpckhdq(z(7), z(2), z(3))?;
        asm.c.vpunpcklqdq(z(0), z(4), z(6))?;
        asm.c.vpunpckhqdq(z(1), z(4), z(6))?;
        asm.c.vpunpcklqdq(z(2), z(5), z(7))?;
        asm.c.vpunpckhqdq(z(3), z(5), z(7))?;
        for n in 0..bytes.div_ceil(4) {
            asm.c.vmovdqu32(zmmword_ptr(at(rdx, Panels::group(first / 4 + n))), z(n as u8))?;
            asm.c.vpdpbusd(z(SUM), z(ONES), z(n as u8))?;
        }
        Ok(())
    }

    /// Packs a straight matrix, four k at a time.
    pub(crate) fn pack_straight(&self, asm: &mut Asm, at: Places) -> Assembled {
        asm.c.mov(rcx, at.from)?;
        asm.c.mov(rdx, at.to)?;
        set_mask(asm, TAIL, (1u64 << (self.columns % ROW)) - 1)?;
        spread(asm, z(FLIP), 0x8080_8080)?;
        let order = asm.dwords(transposed());
        asm.c.vmovdqu32(z(ORDER), order)?;
        if self.k >= 4 {
            asm.c.mov(rsi, (self.k / 4) as u64)?;
            asm.repeat(rsi, |asm| self.straight_four(asm, 4))?;
        }
        match self.k % 4 {
            0 => Ok(()),
            present => self.straight_four(asm, present),
        }
    }

    /// Bytes of four rows in turn. Double words are moved first, so that what the four interleavings leave in their lanes are
    /// columns in order.
    fn straight_four(&self, asm: &mut Asm, present: usize) -> Assembled {
        for panel in (0..self.columns).step_by(ROW) {
            let columns = (self.columns - panel).min(ROW);
            for n in 0..4u8 {
                let from = zmmword_ptr(at(rcx, i64::from(n) * self.stride + panel as i64));
                if usize::from(n) >= present {
                    asm.c.vpxord(z(n), z(n), z(n))?;
                    continue;
                } else if columns == ROW {
                    asm.c.vmovdqu32(z(n), from)?;
                } else {
                    asm.c.vmovdqu8(z(n).k2().z(), from)?;
                }
                if self.flips {
                    asm.c.vpxord(z(n), z(n), z(FLIP))?;
                }
                asm.c.vpermd(z(n), z(ORDER), z(n))?;
            }
            asm.c.vpunpcklbw(z(4), z(0), z(1))?;
            asm.c.vpunpckhbw(z(5), z(0), z(1))?;
            asm.c.vpunpcklbw(z(6), z(2), z(3))?;
            asm.c.vpunpckhbw(z(7), z(2), z(3))?;
            asm.c.vpunpcklwd(z(0), z(4), z(6))?;
            asm.c.vpunpckhwd(z(1), z(4), z(6))?;
            asm.c.vpunpcklwd(z(2), z(5), z(7))?;
            asm.c.vpunpckhwd(z(3), z(5), z(7))?;
            for n in 0..columns.div_ceil(LANES) {
                let to = (panel / ROW) as i64 * self.panels.bytes() + 64 * n as i64;
                asm.c.vmovdqu32(zmmword_ptr(at(rdx, to)), z(n as u8))?;
            }
        }
        asm.advance(rcx, 4 * self.stride)?;
        asm.advance(rdx, Panels::group(1))
    }

    /// What sums of the columns packed at `panels` start with, minus `zero` times the sum of each, into `corrections`.
    pub(crate) fn correct(
        &self,
        asm: &mut Asm,
        panels: AsmMemoryOperand,
        corrections: AsmMemoryOperand,
        zero: i64,
    ) -> Assembled {
        asm.c.mov(rdx, panels)?;
        asm.c.mov(r9, corrections)?;
        spread(asm, z(ONES), 0x0101_0101)?;
        asm.c.mov(rsi, self.columns.div_ceil(ROW) as u64)?;
        let (steps, vectors) = (self.k.div_ceil(4), 0..VECTORS as u8);
        asm.repeat(rsi, |asm| {
            vectors.clone().try_for_each(|v| asm.c.vpxord(z(v), z(v), z(v)))?;
            asm.c.mov(rax, steps as u64)?;
            asm.repeat(rax, |asm| {
                for v in vectors.clone() {
                    asm.c.vmovdqu32(z(LOADED), zmmword_ptr(at(rdx, 64 * i64::from(v))))?;
                    asm.c.vpdpbusd(z(v), z(ONES), z(LOADED))?;
                }
                asm.advance(rdx, Panels::group(1))
            })?;
            let zero = asm.dword(-zero);
            for v in vectors.clone() {
                asm.c.vpmulld(z(v), z(v), zero)?;
                asm.c.vmovdqu32(zmmword_ptr(at(r9, 64 * i64::from(v))), z(v))?;
            }
            asm.advance(rdx, self.panels.bytes() - Panels::group(steps))?;
            asm.advance(r9, 4 * ROW as i64)
        })
    }
}
