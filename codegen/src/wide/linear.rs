//! Attention without softmax on 512-bit vectors: one leaf for a head whose keys and values are packed.
//!
//! ```text
//! for head                           Cranelift
//!   leaf
//!     for four tokens                k and v with four tokens of a column side by side
//!     for 16 columns of v, 16 of k   s = k^T v, and n = k^T 1: four tokens a step, 16 sums in registers
//!     w = s >> h                     h from the largest |s|; pairs of d as i16 pairs
//!     for four rows of q             a = q w, all columns at once, and q n in two parts of 14 bits
//!       r = numerator / (q n)        one 64-bit division a row, beside the products of the rows around
//!       out = a r >> shift           8 columns at a time
//! ```
//!
//! Products take bytes without a sign from v and with one from k. Keys that can be 128 and more are taken less 128; what that and the
//! zero point of v make of `s` follows from the columns' sums of v and from `n`.
//!
//! Registers: z0-z15 sums of phase one, z16 counts, z17 four rows of v, z18 the largest, z19 sums of v; in the rows z0-z15 sums, z16-z19
//! the parts of the divisors, z20-z23 weights and then reciprocals, z24 parts of counts; constants and what passes from z25 on.

use cranelift_codegen::ir::Value;
use iced_x86::code_asm::registers::gpr64::{r8, r9, r10, r11, r12, r13, r14, rax, rbp, rbx, rcx, rdi, rdx, rsi};
use iced_x86::code_asm::registers::{gpr8, gpr32};
use iced_x86::code_asm::{AsmMemoryOperand, dword_bcst, dword_ptr, qword_ptr, xmmword_ptr, ymmword_ptr, zmmword_ptr};
use vitc_ir::Elem;

use super::asm::{Asm, Assembled, at, k, x, y, z};
use super::lane::LANES;
use crate::emit::Emit;
use crate::linear::LinearAttention;
use crate::operand::Columns;

/// Most columns of k and of v: a row's sums stay in four registers, and the code is laid out without loops over them.
const MOST: usize = 64;
/// Bits of the lower part of a count, so that both parts fit `i16`: counts are below 2^21.
const LOW_BITS: u32 = 14;
/// Bytes of the parts of a pair of counts: the least vector, of which the first two double words count.
const PARTS: usize = 16;
/// Bytes of a row of q as words.
const ROW_BYTES: usize = 2 * MOST;
/// Rows of q whose sums are in registers at once.
const ROWS: usize = 4;

const SUM: u8 = 0;
const COUNT: u8 = 16;
const ROWS_OF_V: u8 = 17;
const LARGEST: u8 = 18;
const SUMS_OF_V: u8 = 19;
/// Of the first row.
const DIVISOR: u8 = 16;
const WEIGHTS: u8 = 20;
const RECIPROCAL: u8 = 20;
const PARTS_OF_COUNTS: u8 = 24;
const ONES: u8 = 24;
const FLIP: u8 = 20;
const K_ZERO: u8 = 21;
const ORDER: u8 = 22;
const LOW: u8 = 25;
const RESULT: u8 = 25;
const HALF: u8 = 26;
const Q_ZERO: u8 = 27;
const ZERO_POINT: u8 = 28;
const NOTHING: u8 = 29;
const SHIFT: u8 = 30;
/// Masks of the last bytes of a row of q, of the last columns of the result, of the last bytes of a row that is packed, and of the tokens
/// of the last four, and of the last columns of v among sums.
const LAST_Q: u8 = 1;
const LAST_COLUMNS: u8 = 2;
const LAST_BYTES: u8 = 3;
const LAST_TOKENS: u8 = 4;
const LAST_SUMS: u8 = 5;
/// Tokens of a step.
const TOKENS: usize = 4;

/// The leaf's block of 64-bit values.
#[derive(Clone, Copy)]
enum Slot {
    Keys,
    Values,
    Sums,
    Counts,
    /// Of each of d the zero point of v, times its count.
    Lacks,
    Weights,
    Parts,
    Row,
    /// Sums of two blocks of rows.
    Held,
    Q,
    K,
    V,
    Out,
}

/// Sets a mask of so many bits. Clobbers rax.
fn set_mask(asm: &mut Asm, mask: u8, bits: usize) -> Assembled {
    asm.c.mov(rax, (1u64 << bits) - 1)?;
    Ok(asm.c.kmovq(k(mask), rax)?)
}

fn slot(s: Slot) -> AsmMemoryOperand {
    qword_ptr(at(rdi, 8 * s as i64))
}

/// Linear attention with a leaf.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WideLinear {
    of: LinearAttention,
}

impl WideLinear {
    /// The same attention with a leaf, if there can be one.
    pub(crate) fn of(l: &LinearAttention) -> Option<WideLinear> {
        let straight = |n: usize, columns: usize| l.sides[n].columns == Columns::Stride(1) || columns == 1;
        let [d, e] = l.columns;
        let in_order = straight(0, d) && straight(1, d) && straight(2, e) && straight(3, e);
        let fits = d <= MOST && e <= MOST && in_order && !l.log2;
        fits.then(|| WideLinear { of: l.clone() })
    }

    /// Columns of k and of v in whole vectors.
    fn widths(&self) -> [usize; 2] {
        self.of.columns.map(|n| n.next_multiple_of(LANES))
    }

    /// Steps of four tokens.
    fn fours(&self) -> usize {
        self.of.tokens[1].div_ceil(TOKENS)
    }

    /// What is taken off keys, so that they have a sign.
    fn key_offset(&self) -> i64 {
        if self.of.k_zero >= 128 { 0 } else { 128 }
    }

    /// Whether v has a sign, which is taken from it.
    fn flips_values(&self) -> bool {
        self.of.sides[2].elem == Elem::I8
    }

    /// Pairs of columns of k.
    fn steps(&self) -> usize {
        self.of.columns[0].div_ceil(2)
    }

    fn scratch_parts(&self) -> [usize; 9] {
        let ([d, e], fours, steps) = (self.widths(), self.fours(), self.steps());
        let counts = d * 4;
        [
            fours * d * TOKENS,
            fours * e * TOKENS,
            2 * steps * e * 4,
            counts,
            counts,
            steps * e * 4,
            steps * PARTS,
            ROWS * ROW_BYTES,
            2 * ROWS * self.held_bytes(),
        ]
        .map(|bytes| bytes.next_multiple_of(64))
    }

    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch_parts().iter().sum()
    }

    // ---- the kernel around the leaf

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let mut next = e.scratch;
        let parts = self.scratch_parts().map(|bytes| {
            let part = next;
            next = e.add_imm(next, bytes as i64);
            part
        });
        self.of.each_head(e, |e, sides| {
            let block: Vec<Value> = parts.into_iter().chain(sides).collect();
            e.call_leaf(0, &block);
        });
    }

    // ---- the leaf

    /// The leaf's code.
    pub(crate) fn assemble(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        self.constants(&mut asm)?;
        self.pack(&mut asm)?;
        self.sums(&mut asm)?;
        self.halvings(&mut asm)?;
        self.weights(&mut asm)?;
        self.parts(&mut asm)?;
        self.rows(&mut asm)?;
        asm.finish()
    }

    fn constants(&self, asm: &mut Asm) -> Assembled {
        let bytes = |byte: i64| byte * 0x0101_0101;
        let words = [
            (ONES, bytes(1)),
            (FLIP, bytes(0x80)),
            (K_ZERO, bytes(self.of.k_zero)),
            (LOW, 0xffff),
            (Q_ZERO, self.of.q_zero * 0x0001_0001),
        ];
        for (register, value) in words {
            let from = dword_ptr(asm.bytes(&(value as u32).to_le_bytes()));
            asm.c.vpbroadcastd(z(register), from)?;
        }
        asm.c.mov(rax, self.of.zero_point)?;
        asm.c.vpbroadcastq(z(ZERO_POINT), rax)?;
        asm.c.vpxord(z(NOTHING), z(NOTHING), z(NOTHING))?;
        asm.c.vpxord(z(LARGEST), z(LARGEST), z(LARGEST))?;
        let [d, e] = self.of.columns;
        let lanes = 4 * (self.of.tokens[1] % TOKENS);
        for (mask, count) in [(LAST_Q, d % 32), (LAST_COLUMNS, e % 8), (LAST_TOKENS, lanes), (LAST_SUMS, e % LANES)] {
            set_mask(asm, mask, count)?;
        }
        Ok(())
    }

    /// Keys and values with four tokens of a column side by side.
    fn pack(&self, asm: &mut Asm) -> Assembled {
        let order: Vec<u8> = (0..64).map(|i| (i % TOKENS * LANES + i / TOKENS) as u8).collect();
        let order = zmmword_ptr(asm.bytes(&order));
        asm.c.vmovdqu32(z(ORDER), order)?;
        for (n, from, to) in [(0, Slot::K, Slot::Keys), (1, Slot::V, Slot::Values)] {
            set_mask(asm, LAST_BYTES, self.of.columns[n] % LANES)?;
            asm.c.mov(rax, slot(from))?;
            asm.c.mov(rdx, slot(to))?;
            let (whole, rest) = (self.of.tokens[1] / TOKENS, self.of.tokens[1] % TOKENS);
            if whole > 0 {
                asm.c.mov(rcx, whole as u64)?;
                asm.repeat(rcx, |asm| self.pack_four(asm, n, TOKENS))?;
            }
            if rest > 0 {
                self.pack_four(asm, n, rest)?;
            }
        }
        Ok(())
    }

    /// Four tokens of k (`n` 0) or v, of which so many exist.
    fn pack_four(&self, asm: &mut Asm, n: usize, present: usize) -> Assembled {
        const ALL: u8 = 0;
        const ONE: u8 = 1;
        let (columns, stride) = (self.of.columns[n], self.of.sides[1 + n].row_stride());
        for first in (0..columns).step_by(LANES) {
            let part = columns - first < LANES;
            for token in 0..present {
                let from = xmmword_ptr(at(rax, token as i64 * stride + first as i64));
                let to = if token == 0 { ALL } else { ONE };
                match part {
                    true => asm.c.vmovdqu8(x(to).k3().z(), from)?,
                    false if token == 0 => asm.c.vmovdqu32(x(to), from)?,
                    false => {}
                }
                match (token, part) {
                    (0, _) => {}
                    (_, true) => asm.c.vinserti32x4(z(ALL), z(ALL), x(ONE), token as u32)?,
                    (_, false) => asm.c.vinserti32x4(z(ALL), z(ALL), from, token as u32)?,
                }
            }
            let is_key = n == 0;
            if is_key && self.of.k_zero != 0 {
                asm.c.vpsubusb(z(ALL), z(ALL), z(K_ZERO))?;
            }
            if if is_key { self.key_offset() != 0 } else { self.flips_values() } {
                // Tokens that do not exist stay nothing.
                let to = if present < TOKENS { z(ALL).k4().z() } else { z(ALL) };
                asm.c.vpxord(to, z(ALL), z(FLIP))?;
            }
            asm.c.vpermb(z(ALL), z(ORDER), z(ALL))?;
            asm.c.vmovdqu32(zmmword_ptr(at(rdx, (TOKENS * first) as i64)), z(ALL))?;
        }
        asm.advance(rax, TOKENS as i64 * stride)?;
        asm.advance(rdx, (TOKENS * self.widths()[n]) as i64)
    }

    /// `s` [d, e], the largest `|s|`, and `n`.
    fn sums(&self, asm: &mut Asm) -> Assembled {
        let ([_, e_width], d) = (self.widths(), self.of.columns[0]);
        for columns in (0..e_width).step_by(LANES) {
            for first in (0..d).step_by(LANES) {
                let rows = (d - first).min(LANES);
                self.sum(asm, columns, first, rows)?;
                self.complete(asm, columns, first, rows)?;
                asm.c.mov(rax, slot(Slot::Sums))?;
                for i in 0..rows {
                    let sum = z(SUM + i as u8);
                    asm.c.vmovdqu32(zmmword_ptr(at(rax, 4 * ((first + i) * e_width + columns) as i64)), sum)?;
                    asm.c.vpabsd(sum, sum)?;
                    asm.c.vpmaxsd(z(LARGEST), z(LARGEST), sum)?;
                }
            }
            if d % 2 == 1 {
                asm.c.mov(rax, slot(Slot::Sums))?;
                asm.c.vmovdqu32(zmmword_ptr(at(rax, 4 * (d * e_width + columns) as i64)), z(NOTHING))?;
            }
        }
        Ok(())
    }

    /// Products of sixteen columns of v and up to sixteen of k, the counts of these beside the first columns of v, the sums of v beside
    /// the first columns of k.
    fn sum(&self, asm: &mut Asm, columns: usize, first: usize, rows: usize) -> Assembled {
        let [d_width, e_width] = self.widths();
        let sums_of_v = first == 0 && self.key_offset() != 0;
        for n in (0..rows as u8).chain([COUNT]).chain(sums_of_v.then_some(SUMS_OF_V)) {
            asm.c.vpxord(z(SUM + n), z(SUM + n), z(SUM + n))?;
        }
        asm.c.mov(rax, slot(Slot::Keys))?;
        asm.c.mov(rdx, slot(Slot::Values))?;
        asm.c.mov(rcx, self.fours() as u64)?;
        asm.repeat(rcx, |asm| {
            asm.c.vmovdqu32(z(ROWS_OF_V), zmmword_ptr(at(rdx, (TOKENS * columns) as i64)))?;
            for i in 0..rows {
                let key = dword_bcst(at(rax, (TOKENS * (first + i)) as i64));
                asm.c.vpdpbusd(z(SUM + i as u8), z(ROWS_OF_V), key)?;
            }
            if columns == 0 {
                asm.c.vpdpbusd(z(COUNT), z(ONES), zmmword_ptr(at(rax, (TOKENS * first) as i64)))?;
            }
            if sums_of_v {
                asm.c.vpdpbusd(z(SUMS_OF_V), z(ROWS_OF_V), z(ONES))?;
            }
            asm.advance(rax, (TOKENS * d_width) as i64)?;
            asm.advance(rdx, (TOKENS * e_width) as i64)
        })
    }

    /// Makes the sums those of keys and values about their zero points.
    fn complete(&self, asm: &mut Asm, columns: usize, first: usize, rows: usize) -> Assembled {
        let offset = self.key_offset();
        let zero = self.of.v_zero + if self.flips_values() { 128 } else { 0 };
        let here = 4 * first as i64;
        if columns == 0 {
            if offset != 0 {
                let lacking = asm.dword(offset * self.of.tokens[1] as i64);
                asm.c.vpaddd(z(COUNT), z(COUNT), lacking)?;
            }
            asm.c.mov(rax, slot(Slot::Counts))?;
            asm.c.vmovdqu32(zmmword_ptr(at(rax, here)), z(COUNT))?;
            let zero = asm.dword(zero);
            asm.c.vpmulld(z(COUNT), z(COUNT), zero)?;
            asm.c.mov(rax, slot(Slot::Lacks))?;
            asm.c.vmovdqu32(zmmword_ptr(at(rax, here)), z(COUNT))?;
        }
        if first == 0 && offset != 0 {
            asm.c.vpslld(z(SUMS_OF_V), z(SUMS_OF_V), offset.ilog2())?;
        }
        asm.c.mov(rax, slot(Slot::Lacks))?;
        for i in 0..rows {
            let sum = z(SUM + i as u8);
            if zero != 0 {
                asm.c.vpsubd(sum, sum, dword_bcst(at(rax, here + 4 * i as i64)))?;
            }
            if offset != 0 {
                asm.c.vpaddd(sum, sum, z(SUMS_OF_V))?;
            }
            if self.of.columns[1] - columns < LANES {
                // Columns that do not exist are none of the largest.
                asm.c.vmovdqa32(sum.k5().z(), sum)?;
            }
        }
        Ok(())
    }

    /// `h` in rcx and as a count of shifts, and half of what it divides by.
    fn halvings(&self, asm: &mut Asm) -> Assembled {
        // In low registers, which every encoding reaches.
        let (all, other) = (z(0), z(1));
        asm.c.vextracti64x4(y(1), z(LARGEST), 1)?;
        asm.c.vpmaxsd(all, other, z(LARGEST))?;
        asm.c.vextracti32x4(x(1), y(0), 1)?;
        asm.c.vpmaxsd(all, all, other)?;
        for swap in [0x4e, 0xb1] {
            asm.c.vpshufd(other, all, swap)?;
            asm.c.vpmaxsd(all, all, other)?;
        }
        asm.c.vmovd(gpr32::eax, x(0))?;
        asm.c.lzcnt(gpr32::eax, gpr32::eax)?;
        // bits - 14, or none
        asm.c.mov(gpr32::ecx, 32 - 14)?;
        asm.c.sub(gpr32::ecx, gpr32::eax)?;
        asm.c.xor(gpr32::eax, gpr32::eax)?;
        asm.c.cmp(gpr32::ecx, gpr32::eax)?;
        asm.c.cmovl(gpr32::ecx, gpr32::eax)?;
        asm.c.mov(gpr32::eax, 1)?;
        asm.c.shl(gpr32::eax, gpr8::cl)?;
        asm.c.shr(gpr32::eax, 1)?;
        asm.c.vpbroadcastd(z(HALF), gpr32::eax)?;
        Ok(asm.c.vpbroadcastd(z(SHIFT), gpr32::ecx)?)
    }

    /// `w`, pairs of d.
    fn weights(&self, asm: &mut Asm) -> Assembled {
        let e_width = self.widths()[1];
        asm.c.mov(r8, slot(Slot::Sums))?;
        asm.c.mov(r9, slot(Slot::Weights))?;
        asm.c.mov(rbx, self.steps() as u64)?;
        asm.repeat(rbx, |asm| {
            for columns in (0..e_width).step_by(LANES) {
                for n in 0..2u8 {
                    let from = at(r8, 4 * (usize::from(n) * e_width + columns) as i64);
                    asm.c.vpaddd(z(n), z(HALF), zmmword_ptr(from))?;
                    asm.c.vpsravd(z(n), z(n), z(SHIFT))?;
                }
                asm.c.vpandd(z(0), z(0), z(LOW))?;
                asm.c.vpslld(z(1), z(1), 16)?;
                asm.c.vpord(z(0), z(0), z(1))?;
                asm.c.vmovdqu32(zmmword_ptr(at(r9, 4 * columns as i64)), z(0))?;
            }
            asm.advance(r8, 8 * e_width as i64)?;
            asm.advance(r9, 4 * e_width as i64)
        })
    }

    /// Counts in two parts, pairs of d: the lower parts first.
    fn parts(&self, asm: &mut Asm) -> Assembled {
        asm.c.mov(r8, slot(Slot::Counts))?;
        asm.c.mov(r9, slot(Slot::Parts))?;
        asm.c.mov(rbx, self.steps() as u64)?;
        asm.repeat(rbx, |asm| {
            asm.c.xor(gpr32::eax, gpr32::eax)?;
            asm.c.xor(gpr32::edx, gpr32::edx)?;
            for n in [1, 0] {
                asm.c.mov(gpr32::r10d, dword_ptr(at(r8, 4 * n)))?;
                asm.c.mov(gpr32::r11d, gpr32::r10d)?;
                asm.c.and(gpr32::r10d, (1 << LOW_BITS) - 1)?;
                asm.c.shr(gpr32::r11d, LOW_BITS)?;
                asm.c.shl(gpr32::eax, 16)?;
                asm.c.or(gpr32::eax, gpr32::r10d)?;
                asm.c.shl(gpr32::edx, 16)?;
                asm.c.or(gpr32::edx, gpr32::r11d)?;
            }
            asm.c.mov(dword_ptr(at(r9, 0)), gpr32::eax)?;
            asm.c.mov(dword_ptr(at(r9, 4)), gpr32::edx)?;
            asm.advance(r8, 8)?;
            asm.advance(r9, PARTS as i64)
        })
    }

    /// Rows of q, block by block; the results of a block follow the products of the next, which hide how long its divisions take. r8 q,
    /// r9 out, r10 blocks left, r11 rows as words, r12 weights, r13 parts of counts, r14 the numerator; sums of the block at hand at rbx, of
    /// the one before at rbp.
    fn rows(&self, asm: &mut Asm) -> Assembled {
        self.last_shift(asm)?;
        let from = [
            (r8, Slot::Q),
            (r9, Slot::Out),
            (r11, Slot::Row),
            (r12, Slot::Weights),
            (r13, Slot::Parts),
            (rbx, Slot::Held),
        ];
        for (register, s) in from {
            asm.c.mov(register, slot(s))?;
        }
        asm.c.lea(rbp, at(rbx, (ROWS * self.held_bytes()) as i64))?;
        asm.c.mov(r14, self.of.numerator)?;
        // The upper registers as short vectors.
        asm.c.set_prefer_vex(false);
        let (blocks, rest) = (self.of.tokens[0] / ROWS, self.of.tokens[0] % ROWS);
        if blocks > 0 {
            self.sums_of_block(asm, ROWS)?;
        }
        if blocks > 1 {
            asm.c.mov(r10, blocks as u64 - 1)?;
            asm.repeat(r10, |asm| {
                self.sums_of_block(asm, ROWS)?;
                self.results_of_block(asm, ROWS)
            })?;
        }
        if rest > 0 {
            self.sums_of_block(asm, rest)?;
        }
        if blocks > 0 && rest > 0 {
            self.results_of_block(asm, ROWS)?;
        }
        asm.c.xchg(rbx, rbp)?;
        self.results_of_block(asm, if rest > 0 { rest } else { ROWS })?;
        asm.c.set_prefer_vex(true);
        Ok(())
    }

    /// What is left of the shift, of rcx halvings, and half of what it divides by, with the zero point where it has room beside it.
    fn last_shift(&self, asm: &mut Asm) -> Assembled {
        asm.c.mov(rax, u64::from(self.of.shift))?;
        asm.c.sub(rax, rcx)?;
        asm.c.mov(rcx, rax)?;
        asm.c.vpbroadcastq(z(SHIFT), rax)?;
        asm.c.mov(rdx, 1u64)?;
        asm.c.shl(rdx, gpr8::cl)?;
        asm.c.shr(rdx, 1)?;
        if self.joins_zero_point() {
            asm.c.mov(rax, self.of.zero_point)?;
            asm.c.shl(rax, gpr8::cl)?;
            asm.c.add(rdx, rax)?;
        }
        Ok(asm.c.vpbroadcastq(z(HALF), rdx)?)
    }

    /// Whether the zero point can be added before the shift: products are below 2^62.
    fn joins_zero_point(&self) -> bool {
        self.of.shift <= 53 && self.of.zero_point.abs() <= 255
    }

    /// Bytes of what is held of a row: its sums and the parts of its divisor.
    fn held_bytes(&self) -> usize {
        64 * self.vectors() + PARTS
    }

    /// Sums and divisors of so many rows at rbx, which trades places with rbp.
    fn sums_of_block(&self, asm: &mut Asm, rows: usize) -> Assembled {
        (0..rows).try_for_each(|row| self.widen(asm, row))?;
        self.products(asm, rows)?;
        let vectors = self.vectors();
        for row in 0..rows {
            let to = row * self.held_bytes();
            for v in 0..vectors {
                asm.c.vmovdqu32(zmmword_ptr(at(rbx, (to + 64 * v) as i64)), z((row * vectors + v) as u8))?;
            }
            asm.c.vmovdqu32(xmmword_ptr(at(rbx, (to + 64 * vectors) as i64)), x(DIVISOR + row as u8))?;
        }
        asm.advance(r8, rows as i64 * self.of.sides[0].row_stride())?;
        Ok(asm.c.xchg(rbx, rbp)?)
    }

    /// Results of so many rows whose sums are at rbx, where the block before has left them.
    fn results_of_block(&self, asm: &mut Asm, rows: usize) -> Assembled {
        for row in 0..rows {
            self.reciprocal(asm, row)?;
            (0..self.of.columns[1]).step_by(8).try_for_each(|first| self.results(asm, row, first))?;
        }
        asm.advance(r9, rows as i64 * self.of.sides[3].row_stride())
    }

    /// A row of q as words above its zero point, zeros behind it.
    fn widen(&self, asm: &mut Asm, row: usize) -> Assembled {
        let d = self.of.columns[0];
        let words = z(RESULT);
        for first in (0..d).step_by(32) {
            let from = ymmword_ptr(at(r8, row as i64 * self.of.sides[0].row_stride() + first as i64));
            match d - first < 32 {
                true => asm.c.vpmovzxbw(words.k1().z(), from)?,
                false => asm.c.vpmovzxbw(words, from)?,
            }
            if self.of.q_zero != 0 {
                asm.c.vpsubusw(words, words, z(Q_ZERO))?;
            }
            asm.c.vmovdqu32(zmmword_ptr(at(r11, (row * ROW_BYTES + 2 * first) as i64)), words)?;
        }
        Ok(())
    }

    /// Vectors of a row's sums.
    fn vectors(&self) -> usize {
        self.widths()[1] / LANES
    }

    fn products(&self, asm: &mut Asm, rows: usize) -> Assembled {
        let vectors = self.vectors();
        for n in (0..rows * vectors).chain(DIVISOR.into()..usize::from(DIVISOR) + rows) {
            asm.c.vpxord(z(n as u8), z(n as u8), z(n as u8))?;
        }
        for step in 0..self.steps() {
            asm.c.vmovdqu32(x(PARTS_OF_COUNTS), xmmword_ptr(at(r13, (PARTS * step) as i64)))?;
            for v in 0..vectors {
                let weights = zmmword_ptr(at(r12, 64 * (step * vectors + v) as i64));
                asm.c.vmovdqu32(z(WEIGHTS + v as u8), weights)?;
            }
            for row in 0..rows {
                let pair = dword_bcst(at(r11, (row * ROW_BYTES + 4 * step) as i64));
                asm.c.vpdpwssd(x(DIVISOR + row as u8), x(PARTS_OF_COUNTS), pair)?;
                for v in 0..vectors {
                    asm.c.vpdpwssd(z((row * vectors + v) as u8), z(WEIGHTS + v as u8), pair)?;
                }
            }
        }
        Ok(())
    }

    fn reciprocal(&self, asm: &mut Asm, row: usize) -> Assembled {
        let divisor = (row * self.held_bytes() + 64 * self.vectors()) as i64;
        asm.c.mov(gpr32::esi, dword_ptr(at(rbx, divisor)))?;
        asm.c.mov(gpr32::eax, dword_ptr(at(rbx, divisor + 4)))?;
        asm.c.shl(rax, LOW_BITS)?;
        asm.c.add(rsi, rax)?;
        if self.of.epsilon == 0 {
            // At least one: what the comparison with one borrows.
            asm.c.cmp(rsi, 1)?;
            asm.c.adc(rsi, 0)?;
        } else {
            asm.c.mov(rax, self.of.epsilon)?;
            asm.c.add(rsi, rax)?;
        }
        asm.c.mov(rax, rsi)?;
        asm.c.shr(rax, 1)?;
        asm.c.add(rax, r14)?;
        asm.c.xor(gpr32::edx, gpr32::edx)?;
        asm.c.div(rsi)?;
        Ok(asm.c.vpbroadcastq(z(RECIPROCAL + row as u8), rax)?)
    }

    /// Eight columns of a row, fewer at its end.
    fn results(&self, asm: &mut Asm, row: usize, first: usize) -> Assembled {
        let sums = (row * self.held_bytes() + 4 * first) as i64;
        let part = self.of.columns[1] - first < 8;
        let wide = z(RESULT);
        asm.c.vpmovsxdq(wide, ymmword_ptr(at(rbx, sums)))?;
        asm.c.vpmullq(wide, wide, z(RECIPROCAL + row as u8))?;
        asm.c.vpaddq(wide, wide, z(HALF))?;
        asm.c.vpsravq(wide, wide, z(SHIFT))?;
        if !self.joins_zero_point() {
            asm.c.vpaddq(wide, wide, z(ZERO_POINT))?;
        }
        let out = &self.of.sides[3];
        let at = at(r9, row as i64 * out.row_stride() + (first * out.elem.bytes()) as i64);
        let masked = |m: AsmMemoryOperand| if part { m.k2() } else { m };
        match out.elem {
            Elem::U8 => {
                asm.c.vpmaxsq(wide, wide, z(NOTHING))?;
                asm.c.vpmovusqb(masked(qword_ptr(at)), wide)?;
            }
            Elem::I8 => asm.c.vpmovsqb(masked(qword_ptr(at)), wide)?,
            _ => asm.c.vpmovsqw(masked(xmmword_ptr(at)), wide)?,
        }
        Ok(())
    }
}
