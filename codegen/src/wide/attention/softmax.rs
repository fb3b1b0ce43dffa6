//! The softmax of rows of scores: maximum; weights, 64 at a time, and their sum; the sum's reciprocal.
//!
//! ```text
//! for group of 4 rows             then 2, then 1; of many keys one at a time
//!   maxima                        the last steps for all rows of the group at once: each row has a part of a register
//!   for row
//!     for 64 keys                 weights, and their sums
//!   sums                          like the maxima
//!   for row                       one division
//! ```
//!
//! The exponential is that of [`crate::wide::exp`].

use iced_x86::code_asm::registers::gpr64::{r9, r10, r11, r12, r13, r14, rax, rbp, rbx, rdx};
use iced_x86::code_asm::{AsmRegister64, AsmRegisterZmm, dword_ptr, registers, zmmword_ptr};

use super::slot;
use crate::wide::asm::{Asm, Assembled, at, set_mask, spread, x, z};
use crate::wide::dot;
use crate::wide::exp::{Exp, dither};
use crate::wide::lane::{LANES, ROW};
use crate::wide::pack::transposed;

/// The registers that are combined with.
const OTHER: [u8; 2] = [8, 9];
/// Registers, beside 0 to 9: what is combined of up to four rows, and of all of them; orders of double words, bytes of ones; the
/// exponential's numbers.
const ROWS: [u8; 4] = [10, 11, 12, 13];
const MAXIMA: u8 = 14;
const SUMS: u8 = 15;
const MAX: u8 = 16;
const ORDER: u8 = 22;
const ONES: u8 = 23;
const ZERO: u8 = 25;
/// The mask of the last keys' scores, set when rows begin: lane programs use the register as well.
const LAST_KEYS: u8 = 1;
/// Most keys of rows that are handled in groups: their code is laid out row by row.
const GROUPED_KEYS: usize = 256;

/// What the code for rows depends on. The mask `TAIL` has the last keys' bytes.
pub(super) struct Softmax<'e> {
    pub exp: &'e Exp,
    pub keys: usize,
    /// Bytes of a row of scores, and of a row of weights, which is padded with zeros.
    pub score_bytes: usize,
    pub weight_bytes: usize,
    /// Zero point of the values: what the sums of a row start with follows from it, this far behind the row's reciprocal.
    pub v_zero: i64,
    pub starts: i64,
    pub numerator: i64,
    /// What is added to the scores.
    pub biases: Biases,
}

/// Rows that are added to rows of scores: bytes from row to row of each. In the leaf's block lie, from value `at` on, the
/// first row of each and then, while the leaf runs, the row at hand of each.
#[derive(Clone, Debug, Default)]
pub(super) struct Biases {
    pub strides: Vec<i64>,
    pub at: usize,
}

impl Biases {
    pub(super) fn are_some(&self) -> bool {
        !self.strides.is_empty()
    }

    /// Goes to row rax of each, of so many keys. Clobbers rax and rdx.
    pub(super) fn seek(&self, asm: &mut Asm, keys: usize) -> Assembled {
        for (n, &stride) in self.strides.iter().enumerate() {
            asm.c.imul_3(rdx, rax, stride as i32)?;
            asm.c.add(rdx, slot(self.at + n))?;
            asm.c.mov(slot(self.at + self.strides.len() + n), rdx)?;
        }
        if self.are_some() {
            set_mask(asm, LAST_KEYS, (1u64 << (keys % LANES)) - 1)?;
        }
        Ok(())
    }

    /// Starts sums of a tile with the biases of vectors `vectors` of its rows, this many bytes on from the first, beside what they have
    /// started with. Clobbers rdx.
    pub(super) fn start(
        &self,
        asm: &mut Asm,
        (rows, vectors): (usize, usize),
        from: AsmRegister64,
        is_last: impl Fn(usize) -> bool,
    ) -> Assembled {
        for (n, &stride) in self.strides.iter().enumerate() {
            asm.c.mov(rdx, slot(self.at + self.strides.len() + n))?;
            for (row, v) in (0..rows).flat_map(|row| (0..vectors).map(move |v| (row, v))) {
                let (bias, to) = (row as i64 * stride + 64 * v as i64, z(dot::sum(row, v)));
                let bias = zmmword_ptr(rdx + from + i32::try_from(bias).expect("rows of biases are short"));
                asm.c.vpaddd(if is_last(v) { to.k1() } else { to }, to, bias)?;
            }
        }
        Ok(())
    }

    /// Adds the row at hand to the `keys` scores at r10, which are row `row` of those, and then goes on to the next. Clobbers rdx.
    fn add(&self, asm: &mut Asm, keys: usize, scores: i64) -> Assembled {
        for (n, &stride) in self.strides.iter().enumerate() {
            let row = self.at + self.strides.len() + n;
            asm.c.mov(rdx, slot(row))?;
            for first in (0..keys).step_by(LANES) {
                let (to, bias) =
                    (zmmword_ptr(at(r10, scores + 4 * first as i64)), zmmword_ptr(at(rdx, 4 * first as i64)));
                asm.c.vmovdqu32(z(0), to)?;
                let sum = if keys - first < LANES { z(0).k1() } else { z(0) };
                asm.c.vpaddd(sum, z(0), bias)?;
                asm.c.vmovdqu32(to, z(0))?;
            }
            asm.c.add(rdx, stride as i32)?;
            asm.c.mov(slot(row), rdx)?;
        }
        Ok(())
    }
}

impl Softmax<'_> {
    /// Rows of scores at r12, the first of which is row rax, become weights at r14 and terms at r13; rbp counts them. Clobbers
    /// rax, rbx, rdx, r9, r10 and r11.
    pub(super) fn emit(&self, asm: &mut Asm) -> Assembled {
        self.biases.seek(asm, self.keys)?;
        self.load_exp(asm)?;
        for (register, from) in [(r10, r12), (r11, r14), (rbx, r13)] {
            asm.c.mov(register, from)?;
        }
        let groups: &[usize] = if self.keys <= GROUPED_KEYS { &[4, 2, 1] } else { &[1] };
        groups.iter().try_for_each(|&rows| self.groups(asm, rows))
    }

    /// Groups of so many rows while as many are left.
    fn groups(&self, asm: &mut Asm, rows: usize) -> Assembled {
        let (mut head, mut done) = (asm.c.create_label(), asm.c.create_label());
        asm.c.set_label(&mut head)?;
        asm.c.cmp(rbp, rows as i32)?;
        asm.c.jl(done)?;
        self.group(asm, rows)?;
        asm.c.sub(rbp, rows as i32)?;
        asm.c.jmp(head)?;
        asm.c.set_label(&mut done)?;
        Ok(asm.c.nop()?)
    }

    fn group(&self, asm: &mut Asm, rows: usize) -> Assembled {
        for (row, &to) in ROWS[..rows].iter().enumerate() {
            let scores = (row * self.score_bytes) as i64;
            self.biases.add(asm, self.keys, scores)?;
            self.maximum(asm, to, scores)?;
        }
        fold(asm, &ROWS[..rows], MAXIMA, |asm, to, x, y| Ok(asm.c.vpmaxsd(to, x, y)?))?;
        for (row, &sum) in ROWS[..rows].iter().enumerate() {
            part(asm, MAX, MAXIMA, row)?;
            asm.c.vpxord(z(sum), z(sum), z(sum))?;
            let (scores, weights) = ((row * self.score_bytes) as i64, (row * self.weight_bytes) as i64);
            (0..self.keys).step_by(ROW).try_for_each(|first| self.weights(asm, first, (scores, weights), sum))?;
            for none in (self.keys.next_multiple_of(ROW)..self.weight_bytes).step_by(ROW) {
                asm.c.vmovdqu32(zmmword_ptr(at(r11, weights + none as i64)), z(ZERO))?;
            }
        }
        fold(asm, &ROWS[..rows], SUMS, |asm, to, x, y| Ok(asm.c.vpaddd(to, x, y)?))?;
        (0..rows).try_for_each(|row| self.terms(asm, row))?;
        asm.advance(r10, (rows * self.score_bytes) as i64)?;
        asm.advance(r11, (rows * self.weight_bytes) as i64)?;
        asm.advance(rbx, 4 * rows as i64)
    }

    /// The largest scores of a row in the lanes of a register.
    fn maximum(&self, asm: &mut Asm, to: u8, scores: i64) -> Assembled {
        let vectors = self.keys.div_ceil(LANES);
        let chains = vectors.min(4);
        for v in 0..vectors {
            let (to, from) = (z((v % 4) as u8), zmmword_ptr(at(r10, scores + 64 * v as i64)));
            if v < chains { asm.c.vmovdqu32(to, from)? } else { asm.c.vpmaxsd(to, to, from)? }
        }
        for v in 1..chains - 1 {
            asm.c.vpmaxsd(z(0), z(0), z(v as u8))?;
        }
        // The last step, or a copy, leaves it where it belongs.
        Ok(asm.c.vpmaxsd(z(to), z(0), z(chains as u8 - 1))?)
    }

    /// What the exponential keeps in registers.
    fn load_exp(&self, asm: &mut Asm) -> Assembled {
        self.exp.load(asm)?;
        for (register, value) in [(ONES, 0x0101_0101), (ZERO, 0)] {
            spread(asm, z(register), value)?;
        }
        let order = asm.dwords(transposed());
        asm.c.vmovdqu32(z(ORDER), order)?;
        Ok(())
    }

    /// The weights of up to 64 keys of the row whose scores and weights lie so far on, and their sum.
    fn weights(&self, asm: &mut Asm, first: usize, (scores, weights): (i64, i64), sum: u8) -> Assembled {
        let keys = (self.keys - first).min(ROW);
        let vectors = keys.div_ceil(LANES);
        for v in 0..vectors {
            let from = zmmword_ptr(at(r10, scores + (4 * first + 64 * v) as i64));
            asm.c.vpsubd(z(v as u8), z(MAX), from)?;
            if !self.exp.is_short() {
                self.exp.scale_long(asm, v as u8)?;
            }
        }
        // Vectors that are missing repeat others; the mask takes their keys out.
        let other = |v: usize| z(v.min(vectors - 1) as u8);
        asm.c.vpackusdw(z(4), other(0), other(1))?;
        asm.c.vpackusdw(z(5), other(2), other(3))?;
        (4..6).try_for_each(|n| self.exponential(asm, n, first + 32 * (n as usize - 4)))?;
        asm.c.vpackuswb(z(6), z(6), z(7))?;
        asm.c.vpermd(z(6), z(ORDER), z(6))?;
        if keys < ROW {
            asm.c.vmovdqu8(z(6).k2().z(), z(6))?;
        }
        asm.c.vmovdqu32(zmmword_ptr(at(r11, weights + first as i64)), z(6))?;
        asm.c.vpdpbusd(z(sum), z(6), z(ONES))?;
        Ok(())
    }

    /// The exponential of the words of register `n`, keys `first` and on, in register `n + 2`.
    fn exponential(&self, asm: &mut Asm, n: u8, first: usize) -> Assembled {
        let dither = zmmword_ptr(asm.bytes(&packed_dither(first)));
        self.exp.words(asm, n, n + 2, dither)
    }

    /// The reciprocal of the sum of a row of the group, and what its sums of values start with.
    fn terms(&self, asm: &mut Asm, row: usize) -> Assembled {
        use registers::gpr32;
        let terms = 4 * row as i64;
        match row {
            0 => asm.c.vmovd(gpr32::r9d, x(SUMS))?,
            _ => {
                asm.c.vextracti32x4(x(OTHER[0]), z(SUMS), row as u32)?;
                asm.c.vmovd(gpr32::r9d, x(OTHER[0]))?;
            }
        }
        if self.v_zero != 0 {
            asm.c.imul_3(gpr32::eax, gpr32::r9d, -self.v_zero as i32)?;
            asm.c.mov(dword_ptr(at(rbx, self.starts + terms)), gpr32::eax)?;
        }
        // A row that the evaluator refuses must not trap here.
        asm.c.mov(rax, 1u64)?;
        asm.c.cmp(r9, rax)?;
        asm.c.cmovb(r9, rax)?;
        asm.c.mov(rax, self.numerator as u64)?;
        asm.c.mov(rdx, r9)?;
        asm.c.shr(rdx, 1)?;
        asm.c.add(rax, rdx)?;
        asm.c.xor(rdx, rdx)?;
        asm.c.div(r9)?;
        asm.c.mov(dword_ptr(at(rbx, terms)), gpr32::eax)?;
        Ok(())
    }
}

/// What the words of 32 keys are rounded up by, in the order of two vectors packed together: four of one, four of the other.
fn packed_dither(first: usize) -> Vec<u8> {
    let key = |word: usize| first + 4 * (word / 8) + word % 4 + if word % 8 < 4 { 0 } else { LANES };
    dither((0..32).map(key))
}

/// Part `n` of a register, of 128 bits, in all parts of another.
fn part(asm: &mut Asm, to: u8, from: u8, n: usize) -> Assembled {
    Ok(asm.c.vshufi64x2(z(to), z(from), z(from), 0x55 * n as u32)?)
}

/// Combines the double words of each of up to four registers with one another; part `n` of the result holds in every double word what
/// comes of register `n`.
fn fold(
    asm: &mut Asm,
    rows: &[u8],
    to: u8,
    combine: impl Fn(&mut Asm, AsmRegisterZmm, AsmRegisterZmm, AsmRegisterZmm) -> Assembled,
) -> Assembled {
    let row = |n: usize| z(rows[n.min(rows.len() - 1)]);
    let (first, second) = (z(OTHER[0]), z(OTHER[1]));
    // Halves of two registers, then quarters of four.
    let join = |asm: &mut Asm, to: AsmRegisterZmm, x: AsmRegisterZmm, y: AsmRegisterZmm, [even, odd]: [u32; 2]| {
        asm.c.vshufi64x2(first, x, y, even)?;
        asm.c.vshufi64x2(second, x, y, odd)?;
        combine(asm, to, first, second)
    };
    join(asm, row(0), row(0), row(1), [0x44, 0xee])?;
    if rows.len() > 2 {
        join(asm, row(2), row(2), row(3), [0x44, 0xee])?;
    }
    let other = if rows.len() > 2 { row(2) } else { row(0) };
    join(asm, z(to), row(0), other, [0x88, 0xdd])?;
    for swap in [0x4e, 0xb1] {
        asm.c.vpshufd(first, z(to), swap)?;
        combine(asm, z(to), z(to), first)?;
    }
    Ok(())
}
