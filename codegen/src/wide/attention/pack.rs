//! The leaf that packs the keys and values of a head as right sides: panels of 64 columns, four k of a column side by side.
//! That is what `vpdpbusd` multiplies, vector by vector, and sixteen groups of four k are a tile of the tile unit.
//!
//! ```text
//! keys      for sixteen keys, for sixteen d    sixteen loads, a transpose of double words in the lanes, four stores
//! values    for four keys, for 64 columns      four loads, interleaved byte by byte, four stores
//! ```

use iced_x86::code_asm::registers::gpr64::{r9, rax, rcx, rdx, rsi};
use iced_x86::code_asm::{xmmword_ptr, zmmword_ptr};

use super::{NOTHING, Panels, TAIL, set_mask, slot, transposed};
use crate::wide::asm::{Asm, Assembled, at, spread, x, z};
use crate::wide::lane::{LANES, ROW, VECTORS};

/// The leaf's block.
const K: usize = 0;
const V: usize = 1;
const KEYS: usize = 2;
const VALUES: usize = 3;
const CORRECTIONS: usize = 4;

/// The mask of lanes that have no key.
const LAST_KEYS: u8 = 3;
/// Registers beside 0 to 7: a row on its way, sums of keys, bytes of signs and of ones, an order of double words.
const LOADED: u8 = 8;
const SUM: u8 = 9;
const FLIP: u8 = 20;
const ORDER: u8 = 22;
const ONES: u8 = 23;

/// What the code depends on.
pub(super) struct Pack {
    pub d: usize,
    pub keys: usize,
    pub columns: usize,
    /// Bytes from key to key of k, and of v.
    pub strides: [i64; 2],
    /// Whether k, and v, are unsigned: they become signed.
    pub flips: [bool; 2],
    /// Zero point of q: what the sums of a key start with follows from it.
    pub q_zero: i64,
    pub packed_keys: Panels,
    pub packed_values: Panels,
}

impl Pack {
    pub(super) fn assemble(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        self.pack_keys(&mut asm)?;
        self.pack_values(&mut asm)?;
        asm.finish()
    }

    /// Sixteen keys at a time: rcx the first one, rdx its vectors, r9 its corrections.
    fn pack_keys(&self, asm: &mut Asm) -> Assembled {
        for (register, from) in [(rcx, K), (rdx, KEYS), (r9, CORRECTIONS)] {
            asm.c.mov(register, slot(from))?;
        }
        let rest = (self.d % 16) as u32;
        set_mask(asm, TAIL, (0..4).map(|lane| ((1u64 << rest) - 1) << (16 * lane)).sum())?;
        set_mask(asm, LAST_KEYS, (u64::MAX << (self.keys % LANES)) & 0xffff)?;
        spread(asm, z(FLIP), 0x8080_8080)?;
        spread(asm, z(ONES), 0x0101_0101)?;
        let (panels, vectors) = (self.keys / ROW, self.keys % ROW / LANES);
        if panels > 0 {
            asm.c.mov(rsi, panels as u64)?;
            asm.repeat(rsi, |asm| {
                self.pack_vectors_of_keys(asm, VECTORS)?;
                asm.advance(rdx, self.packed_keys.bytes() - ROW as i64 * 4)
            })?;
        }
        if vectors > 0 {
            self.pack_vectors_of_keys(asm, vectors)?;
        }
        match self.keys % LANES {
            0 => Ok(()),
            present => self.pack_vector_of_keys(asm, present),
        }
    }

    fn pack_vectors_of_keys(&self, asm: &mut Asm, vectors: usize) -> Assembled {
        asm.c.mov(rax, vectors as u64)?;
        asm.repeat(rax, |asm| self.pack_vector_of_keys(asm, LANES))
    }

    fn pack_vector_of_keys(&self, asm: &mut Asm, present: usize) -> Assembled {
        asm.c.vpxord(z(SUM), z(SUM), z(SUM))?;
        for first in (0..self.d).step_by(16) {
            self.pack_sixteen(asm, present, first)?;
        }
        // Minus zero point times the sums of the keys.
        let zero_point = asm.dword(-self.q_zero);
        asm.c.vpmulld(z(SUM), z(SUM), zero_point)?;
        if present < LANES {
            spread(asm, z(SUM).k3(), NOTHING)?;
        }
        asm.c.vmovdqu32(zmmword_ptr(at(r9, 0)), z(SUM))?;
        asm.advance(rcx, LANES as i64 * self.strides[0])?;
        asm.advance(rdx, 64)?;
        asm.advance(r9, 64)
    }

    /// Bytes `first..first + 16` of sixteen keys: register `i` takes those of keys `4*l + i` into lane `l`, then the four
    /// registers are transposed by double words within their lanes.
    fn pack_sixteen(&self, asm: &mut Asm, present: usize, first: usize) -> Assembled {
        let bytes = (self.d - first).min(16);
        for key in 0..LANES {
            let (to, lane) = (z((key % 4) as u8), (key / 4) as u32);
            let from = xmmword_ptr(at(rcx, key as i64 * self.strides[0] + first as i64));
            match (key < present, lane, bytes) {
                (false, 0, _) => asm.c.vpxord(to, to, to)?,
                (false, ..) => {}
                (true, 0, 16) => asm.c.vmovdqu32(x((key % 4) as u8), from)?,
                (true, _, 16) => asm.c.vinserti32x4(to, to, from, lane)?,
                (true, 0, _) => asm.c.vmovdqu8(x((key % 4) as u8).k2().z(), from)?,
                (true, ..) => {
                    asm.c.vmovdqu8(x(LOADED).k2().z(), from)?;
                    asm.c.vinserti32x4(to, to, x(LOADED), lane)?;
                }
            }
        }
        if self.flips[0] {
            for n in 0..4 {
                // What is beyond d stays zero.
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

    /// Four rows of v at a time: rcx the first one, rdx its vectors.
    fn pack_values(&self, asm: &mut Asm) -> Assembled {
        asm.c.mov(rcx, slot(V))?;
        asm.c.mov(rdx, slot(VALUES))?;
        let rest = self.columns % ROW;
        set_mask(asm, TAIL, (1u64 << rest) - 1)?;
        let order = asm.dwords(transposed());
        asm.c.vmovdqu32(z(ORDER), order)?;
        if self.keys >= 4 {
            asm.c.mov(rsi, (self.keys / 4) as u64)?;
            asm.repeat(rsi, |asm| self.pack_four_values(asm, 4))?;
        }
        match self.keys % 4 {
            0 => Ok(()),
            present => self.pack_four_values(asm, present),
        }
    }

    /// Bytes of four rows in turn. Double words are moved first, so that what the four interleavings leave in their lanes are
    /// columns in order.
    fn pack_four_values(&self, asm: &mut Asm, present: usize) -> Assembled {
        for panel in (0..self.columns).step_by(ROW) {
            let columns = (self.columns - panel).min(ROW);
            for n in 0..4u8 {
                let from = zmmword_ptr(at(rcx, i64::from(n) * self.strides[1] + panel as i64));
                if usize::from(n) >= present {
                    asm.c.vpxord(z(n), z(n), z(n))?;
                    continue;
                } else if columns == ROW {
                    asm.c.vmovdqu32(z(n), from)?;
                } else {
                    asm.c.vmovdqu8(z(n).k2().z(), from)?;
                }
                if self.flips[1] {
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
                let to = (panel / ROW) as i64 * self.packed_values.bytes() + 64 * n as i64;
                asm.c.vmovdqu32(zmmword_ptr(at(rdx, to)), z(n as u8))?;
            }
        }
        asm.advance(rcx, 4 * self.strides[1])?;
        asm.advance(rdx, Panels::group(1))
    }
}
