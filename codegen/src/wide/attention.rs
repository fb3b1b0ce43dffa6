//! Attention on 512-bit vectors: one leaf packs the keys and values of a head, another runs its rows, six at a time, through
//! both products and the softmax between them; a tile's scores and weights stay in the first-level cache.
//!
//! ```text
//! for head                        Cranelift; copies rows of q first where they are signed or not whole steps
//!   leaf: keys, values            into vectors: four d of sixteen keys; four keys of sixteen columns
//!   leaf: for tile of 6 rows      the last tile of fewer rows starts earlier and computes some rows again
//!     scores  for panel of 64 keys, for four d: 24 products
//!     softmax for row: maximum; weights, 64 at a time, and their sum; the sum's reciprocal
//!     values  for panel of 64 columns, for four keys: 24 products, then requantize by the row's reciprocal
//! ```
//!
//! What a score has that is the same for a whole row (zero point of k) cancels in `max - score` and is never added. The
//! corrections for q's zero point start the sums; for keys that do not exist they start so low that no row's maximum is there.
//!
//! The exponential, sixteen bits wide: `t = min(d * multiplier >> shift, t(limit))`, where `d` and `multiplier` fit 16 bits by
//! one high product. With `T` the table shifted right until it fits 16 bits, its rounded shift is
//! `(T[t mod 2^f] >> 7 + (t >> f)) + 1 >> 1`: right shifts compose, so the bits that `T` has lost change nothing. That is
//! `vpermi2w`, `vpsrlvw` and an average with zero.

use cranelift_codegen::ir::Value;
use iced_x86::code_asm::registers::gpr64::{r8, r9, r10, r11, r12, r13, r14, r15, rax, rbp, rbx, rcx, rdi, rdx, rsi};
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister64, AsmRegisterZmm, dword_ptr, qword_ptr, registers, xmmword_ptr, zmmword_ptr,
};
use vitc_ir::{Dim, Elem};

use super::asm::{Asm, Assembled, at, k, x, z};
use super::gemm::{clear, flip_signs};
use super::lane::{Feed, Group, LANES, ROW, VECTORS, emit as emit_lane, is_supported, masks};
use crate::attention::Attention;
use crate::copy::copy_factors;
use crate::emit::Emit;
use crate::gemm::{Reading, Weights};
use crate::lane::LaneSpec;
use crate::operand::{Columns, Operand, split_index};
use crate::rows::Work;
use crate::view::{Factor, Lin, merge};

/// Rows of a register tile.
const TILE: usize = 6;
/// Steps of four k in one turn of an inner loop.
const UNROLL: usize = 4;
/// Most keys and most columns of a head: the code for them is laid out without loops.
const MOST: usize = 1024;
/// Where the sums of keys that do not exist start: below any score of [`MOST`] products of bytes, with room to subtract.
const NOTHING: i64 = -(1 << 30);
/// The first of four registers of right sides, and the two for elements of left ones.
const RIGHT: u8 = 24;
const SPLAT: [u8; 2] = [28, 29];
/// The mask of the last keys' bytes, and in the packing leaf of the last columns' and of the last d's.
const TAIL: u8 = 2;
const LAST_KEYS: u8 = 3;

/// The exponential as the leaf computes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Exp {
    limit: i64,
    multiplier: i64,
    shift: u32,
    /// The table in sixteen bits, repeated to 64 entries.
    table: Vec<u16>,
    /// Bits of an index into the table before it was repeated.
    bits: u32,
}

impl Exp {
    fn of(work: &Work, table: &[i64], table_bits: u32) -> Option<Exp> {
        let Work::Exp { limit, multiplier, shift, .. } = *work else { return None };
        let narrow =
            |v: i64| u16::try_from(if table_bits >= 8 { v >> (table_bits - 8) } else { v << (8 - table_bits) });
        let one: Vec<u16> = table.iter().map(|&v| narrow(v).ok()).collect::<Option<_>>()?;
        let fits = one.len().is_power_of_two() && one.len() <= 64 && limit <= i32::MAX.into();
        let bits = one.len().trailing_zeros();
        fits.then(|| Exp { limit, multiplier, shift, table: one.into_iter().cycle().take(64).collect(), bits })
    }

    /// Whether differences and multiplier fit 16 bits.
    fn is_short(&self) -> bool {
        self.limit <= 0xffff && self.multiplier <= 0xffff && (16..32).contains(&self.shift)
    }

    /// The largest `t`; beyond, the result is zero as well.
    fn last(&self) -> i64 {
        ((self.limit * self.multiplier) >> self.shift).min(60_000)
    }
}

/// Attention of heads. Arguments as those of [`Attention`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WideAttention {
    sizes: Vec<Dim>,
    heads: [Operand; 4],
    reading: Reading,
    d: usize,
    keys: usize,
    columns: usize,
    /// Zero points as the dot product sees them.
    q_zero: i64,
    v_zero: i64,
    /// Bytes from key to key of k, and of v.
    strides: [i64; 2],
    exp: Exp,
    numerator: i64,
    lane: LaneSpec,
}

/// The packing leaf's block.
const PACK_K: usize = 0;
const PACK_V: usize = 1;
const PACK_KEYS: usize = 2;
const PACK_VALUES: usize = 3;
const PACK_CORRECTIONS: usize = 4;

/// The row leaf's block.
const Q: usize = 0;
const OUT: usize = 1;
const ROWS: usize = 2;
const KEYS: usize = 3;
const VALUES: usize = 4;
const CORRECTIONS: usize = 5;
const SCORES: usize = 6;
const WEIGHTS: usize = 7;
/// Of each row of the tile the reciprocal, then of each what its sums of values start with.
const TERMS: usize = 8;

fn slot(n: usize) -> AsmMemoryOperand {
    qword_ptr(at(rdi, 8 * n as i64))
}

/// A matrix in vectors for the dot product: each holds sixteen columns of four k.
#[derive(Clone, Copy)]
struct Packed {
    steps: usize,
}

impl Packed {
    /// Bytes from sixteen columns to the next.
    fn stride(self) -> i64 {
        64 * self.steps as i64
    }
}

impl WideAttention {
    /// The same attention with leaves, if there can be some; `table` is that of the exponential.
    pub(crate) fn of(a: &Attention, table: &[i64], table_bits: u32) -> Option<WideAttention> {
        let (Weights::Matrix { operand: k, k_stride: d_stride }, Weights::Matrix { operand: v, k_stride }) =
            (&a.scores.weights, &a.values.weights)
        else {
            return None;
        };
        let Work::Reciprocal { numerator } = a.reciprocal.work else { return None };
        let (d, keys, columns) = (a.scores.k, a.scores.n, a.values.n);
        let bytes = |o: &Operand| o.elem.bytes() == 1;
        let fits = bytes(&a.heads[0])
            && bytes(k)
            && bytes(v)
            && [d, keys, columns].iter().all(|&n| n <= MOST)
            && (*d_stride == 1 || d == 1)
            && (v.columns == Columns::Stride(1) || columns == 1)
            && a.values.out.columns == Columns::Stride(1)
            && !matches!(a.scores.reading, Reading::Direct { segments, run, .. } if segments * run != d)
            && is_supported(&a.values.lane);
        let exp = Exp::of(&a.exp.work, table, table_bits)?;
        fits.then(|| WideAttention {
            sizes: a.sizes.clone(),
            heads: a.heads.clone(),
            reading: a.scores.reading.clone(),
            d,
            keys,
            columns,
            q_zero: a.scores.a_zero,
            v_zero: a.values.b_zero,
            strides: [k.column_stride(), *k_stride],
            exp,
            numerator,
            lane: a.values.lane.clone(),
        })
    }

    fn keys_packed(&self) -> Packed {
        Packed { steps: self.d.div_ceil(4) }
    }

    fn values_packed(&self) -> Packed {
        Packed { steps: self.keys.div_ceil(4) }
    }

    /// Vectors of sixteen keys.
    fn key_vectors(&self) -> usize {
        self.keys.div_ceil(LANES)
    }

    fn value_vectors(&self) -> usize {
        self.columns.div_ceil(LANES)
    }

    /// Bytes of a row of scores.
    fn score_bytes(&self) -> usize {
        64 * self.key_vectors()
    }

    /// Bytes of a row of weights.
    fn weight_bytes(&self) -> usize {
        self.keys.next_multiple_of(ROW)
    }

    /// Rows of q that are not consecutive unsigned bytes in whole steps are copied first.
    fn is_copied(&self) -> bool {
        let in_place = matches!(self.reading, Reading::Direct { segments: 1, run, .. } if run == self.d);
        !in_place || !self.d.is_multiple_of(4) || self.heads[0].elem == Elem::I8
    }

    /// Bytes from row to row of q as the leaf sees it.
    fn q_stride(&self) -> i64 {
        if self.is_copied() { 4 * self.keys_packed().steps as i64 } else { self.heads[0].row_stride() }
    }

    /// Scratch: packed keys, packed values, corrections, scores and weights of a tile, terms of its rows, rows of q.
    fn scratch_parts(&self) -> [usize; 7] {
        let rows = self.sizes.last().map_or(1, |d| d.size);
        let parts = [
            self.key_vectors() * self.keys_packed().stride() as usize,
            self.value_vectors() * self.values_packed().stride() as usize,
            self.score_bytes(),
            TILE * self.score_bytes(),
            TILE * self.weight_bytes(),
            TILE * 8,
            if self.is_copied() { rows * self.q_stride() as usize } else { 0 },
        ];
        parts.map(|bytes| bytes.next_multiple_of(64))
    }

    /// Bytes of scratch the kernel uses.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch_parts().iter().sum()
    }

    /// Items of a step: rows. Threads share them at whole tiles.
    pub(crate) fn grain(&self) -> usize {
        2 * TILE
    }

    // ---- the kernel around the leaves

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        let (&rows, heads) = self.sizes.split_last().expect("at least the rows of a head");
        let mut next = e.scratch;
        let [keys, values, corrections, scores, weights, terms, copies] = self.scratch_parts().map(|bytes| {
            let part = next;
            next = e.add_imm(next, bytes as i64);
            part
        });
        e.each_turn(rows, |e, head, from, count| {
            let lead = split_index(e, head, heads);
            let [q, k, v, out] = std::array::from_fn(|n| {
                let pointer = e.arg(n);
                self.heads[n].base(e, pointer, &lead)
            });
            let mut q = e.at(q, from, self.heads[0].row_stride());
            let out = e.at(out, from, self.heads[3].row_stride());
            e.call_leaf(0, &[k, v, keys, values, corrections]);
            if self.is_copied() {
                self.copy_rows(e, q, copies, count);
                q = copies;
            }
            e.call_leaf(1, &[q, out, count, keys, values, corrections, scores, weights, terms]);
        });
    }

    /// Copies rows of q to scratch: consecutive, unsigned, padded with zeros to whole steps.
    fn copy_rows(&self, e: &mut Emit<'_>, from: Value, to: Value, count: Value) {
        let factor = |size: usize, stride: i64| Factor { size: size.into(), stride: Lin::fixed(stride) };
        let factors = match &self.reading {
            Reading::Gathered(factors) => factors.clone(),
            Reading::Direct { segments, run, step } => merge([factor(*segments, *step), factor(*run, 1)].into_iter()),
        };
        let zero = e.iconst(0);
        e.for_range(zero, count, 1, &[from, to], |e, _, p| {
            copy_factors(e, &factors, 1, p[0], p[1]);
            if self.heads[0].elem == Elem::I8 {
                flip_signs(e, p[1], self.d);
            }
            clear(e, p[1], self.d, self.q_stride() as usize);
            vec![e.add_imm(p[0], self.heads[0].row_stride()), e.add_imm(p[1], self.q_stride())]
        });
    }

    /// The code of both leaves.
    pub(crate) fn leaves(&self) -> Assembled<Vec<Vec<u8>>> {
        Ok(vec![self.pack()?, self.rows()?])
    }

    // ---- the packing leaf

    fn pack(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        self.pack_keys(&mut asm)?;
        self.pack_values(&mut asm)?;
        asm.finish()
    }

    /// Sixteen keys at a time: rcx the first one, rdx its vectors, r9 its corrections.
    fn pack_keys(&self, asm: &mut Asm) -> Assembled {
        for (register, from) in [(rcx, PACK_K), (rdx, PACK_KEYS), (r9, PACK_CORRECTIONS)] {
            asm.c.mov(register, slot(from))?;
        }
        let rest = (self.d % 16) as u32;
        set_mask(asm, TAIL, (0..4).map(|lane| ((1u64 << rest) - 1) << (16 * lane)).sum())?;
        set_mask(asm, LAST_KEYS, (u64::MAX << (self.keys % LANES)) & 0xffff)?;
        spread(asm, z(FLIP), 0x8080_8080)?;
        spread(asm, z(ONES), 0x0101_0101)?;
        if self.keys >= LANES {
            asm.c.mov(rsi, (self.keys / LANES) as u64)?;
            asm.repeat(rsi, |asm| self.pack_vector_of_keys(asm, LANES))?;
        }
        match self.keys % LANES {
            0 => Ok(()),
            present => self.pack_vector_of_keys(asm, present),
        }
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
        asm.advance(rdx, self.keys_packed().stride())?;
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
        if self.heads[1].elem == Elem::U8 {
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
            asm.c.vmovdqu32(zmmword_ptr(at(rdx, (16 * first + 64 * n) as i64)), z(n as u8))?;
            asm.c.vpdpbusd(z(SUM), z(ONES), z(n as u8))?;
        }
        Ok(())
    }

    /// Four rows of v at a time: rcx the first one, rdx its vectors.
    fn pack_values(&self, asm: &mut Asm) -> Assembled {
        asm.c.mov(rcx, slot(PACK_V))?;
        asm.c.mov(rdx, slot(PACK_VALUES))?;
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
                if self.heads[2].elem == Elem::U8 {
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
                let to = at(rdx, (panel / LANES + n) as i64 * self.values_packed().stride());
                asm.c.vmovdqu32(zmmword_ptr(to), z(n as u8))?;
            }
        }
        asm.advance(rcx, 4 * self.strides[1])?;
        asm.advance(rdx, 64)
    }

    // ---- the leaf over rows

    /// rcx rows of q, r8 out, rsi rows left, r12 scores, r13 terms, r14 weights.
    fn rows(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        masks(&mut asm, self.columns % ROW)?;
        set_mask(&mut asm, TAIL, (1u64 << (self.keys % ROW)) - 1)?;
        for (register, from) in [(rcx, Q), (r8, OUT), (rsi, ROWS), (r12, SCORES), (r13, TERMS), (r14, WEIGHTS)] {
            asm.c.mov(register, slot(from))?;
        }
        let (mut rows, mut tail, mut single, mut done) =
            (asm.c.create_label(), asm.c.create_label(), asm.c.create_label(), asm.c.create_label());
        let tile = TILE as i32;
        asm.c.set_label(&mut rows)?;
        asm.c.cmp(rsi, tile)?;
        asm.c.jl(tail)?;
        self.tile(&mut asm, TILE)?;
        self.advance_rows(&mut asm, TILE as i64)?;
        asm.c.sub(rsi, tile)?;
        asm.c.jmp(rows)?;

        asm.c.set_label(&mut tail)?;
        asm.c.test(rsi, rsi)?;
        asm.c.jz(done)?;
        asm.c.cmp(slot(ROWS), tile)?;
        asm.c.jl(single)?;
        // Some rows again: then the last tile is whole.
        asm.c.sub(rsi, tile)?;
        for (register, stride) in self.walkers() {
            asm.c.imul_3(rax, rsi, stride as i32)?;
            asm.c.add(register, rax)?;
        }
        asm.c.mov(rsi, tile as u64)?;
        asm.c.jmp(rows)?;

        asm.c.set_label(&mut single)?;
        self.tile(&mut asm, 1)?;
        self.advance_rows(&mut asm, 1)?;
        asm.c.dec(rsi)?;
        asm.c.jnz(single)?;
        asm.c.set_label(&mut done)?;
        asm.c.nop()?;
        asm.finish()
    }

    fn walkers(&self) -> [(AsmRegister64, i64); 2] {
        [(rcx, self.q_stride()), (r8, self.heads[3].row_stride())]
    }

    fn advance_rows(&self, asm: &mut Asm, rows: i64) -> Assembled {
        self.walkers().into_iter().try_for_each(|(register, stride)| asm.advance(register, rows * stride))
    }

    fn tile(&self, asm: &mut Asm, rows: usize) -> Assembled {
        self.scores(asm, rows)?;
        self.softmax(asm, rows)?;
        self.values(asm, rows)
    }

    /// Panel by panel of keys: rbx its vectors, rbp its place in the rows of scores and corrections.
    fn scores(&self, asm: &mut Asm, rows: usize) -> Assembled {
        asm.c.mov(rbx, slot(KEYS))?;
        asm.c.mov(r9, slot(CORRECTIONS))?;
        asm.c.xor(rbp, rbp)?;
        let (panels, rest) = (self.key_vectors() / VECTORS, self.key_vectors() % VECTORS);
        let bytes = 64 * VECTORS as i32;
        if panels > 0 {
            let mut panel = asm.c.create_label();
            asm.c.set_label(&mut panel)?;
            self.panel_of_scores(asm, rows, VECTORS)?;
            asm.advance(rbx, VECTORS as i64 * self.keys_packed().stride())?;
            asm.c.add(rbp, bytes)?;
            asm.c.cmp(rbp, bytes * panels as i32)?;
            asm.c.jne(panel)?;
        }
        if rest > 0 { self.panel_of_scores(asm, rows, rest) } else { Ok(()) }
    }

    fn panel_of_scores(&self, asm: &mut Asm, rows: usize, vectors: usize) -> Assembled {
        for v in 0..vectors {
            asm.c.vmovdqu32(z(sum(0, v)), zmmword_ptr(r9 + rbp + 64 * v as i32))?;
            for row in 1..rows {
                asm.c.vmovdqa64(z(sum(row, v)), z(sum(0, v)))?;
            }
        }
        multiply(asm, [rows, vectors], self.keys_packed(), (rcx, self.q_stride()), rbx)?;
        for row in 0..rows {
            for v in 0..vectors {
                let to = r12 + rbp + (row * self.score_bytes() + 64 * v) as i32;
                asm.c.vmovdqu32(zmmword_ptr(to), z(sum(row, v)))?;
            }
        }
        Ok(())
    }

    /// Row by row: r10 its scores, r11 its weights, rbx its terms.
    fn softmax(&self, asm: &mut Asm, rows: usize) -> Assembled {
        self.load_exp(asm)?;
        for (register, from) in [(r10, r12), (r11, r14), (rbx, r13)] {
            asm.c.mov(register, from)?;
        }
        asm.c.mov(rbp, rows as u64)?;
        asm.repeat(rbp, |asm| {
            self.maximum(asm)?;
            asm.c.vpxord(z(SUM), z(SUM), z(SUM))?;
            (0..self.keys).step_by(ROW).try_for_each(|first| self.weights(asm, first))?;
            self.terms(asm)?;
            asm.advance(r10, self.score_bytes() as i64)?;
            asm.advance(r11, self.weight_bytes() as i64)?;
            asm.advance(rbx, 4)
        })
    }

    /// The row's largest score, in every lane.
    fn maximum(&self, asm: &mut Asm) -> Assembled {
        let vectors = self.key_vectors();
        let chains = vectors.min(4);
        for v in 0..vectors {
            let (to, from) = (z((v % 4) as u8), zmmword_ptr(at(r10, 64 * v as i64)));
            if v < chains { asm.c.vmovdqu32(to, from)? } else { asm.c.vpmaxsd(to, to, from)? }
        }
        (1..chains).try_for_each(|v| asm.c.vpmaxsd(z(0), z(0), z(v as u8)))?;
        fold(asm, 0, |asm, all, other| Ok(asm.c.vpmaxsd(all, all, other)?))?;
        asm.c.vmovdqa64(z(MAX), z(0))?;
        Ok(())
    }

    /// What the exponential keeps in registers.
    fn load_exp(&self, asm: &mut Asm) -> Assembled {
        let e = &self.exp;
        let words = |v: i64| v << 16 | v;
        let multiplier = if e.is_short() { words(e.multiplier) } else { e.multiplier };
        for (register, value) in [
            (MULTIPLIER, multiplier),
            (LIMIT, e.limit),
            (LAST, words(e.last())),
            (SEVEN, words(7)),
            (ONES, 0x0101_0101),
            (ZERO, 0),
        ] {
            spread(asm, z(register), value)?;
        }
        let table: Vec<u8> = e.table.iter().flat_map(|v| v.to_le_bytes()).collect();
        for (register, half) in [(TABLE, &table[..64]), (TABLE + 1, &table[64..])] {
            let half = zmmword_ptr(asm.bytes(half));
            asm.c.vmovdqu64(z(register), half)?;
        }
        let order = asm.dwords(transposed());
        asm.c.vmovdqu32(z(ORDER), order)?;
        Ok(())
    }

    /// The weights of up to 64 keys, and their sum.
    fn weights(&self, asm: &mut Asm, first: usize) -> Assembled {
        let keys = (self.keys - first).min(ROW);
        let vectors = keys.div_ceil(LANES);
        for v in 0..vectors {
            let from = zmmword_ptr(at(r10, (4 * first + 64 * v) as i64));
            asm.c.vpsubd(z(v as u8), z(MAX), from)?;
            if !self.exp.is_short() {
                asm.c.vpminud(z(v as u8), z(v as u8), z(LIMIT))?;
                asm.c.vpmulld(z(v as u8), z(v as u8), z(MULTIPLIER))?;
                asm.c.vpsrld(z(v as u8), z(v as u8), self.exp.shift)?;
            }
        }
        // Vectors that are missing repeat others; the mask takes their keys out.
        let other = |v: usize| z(v.min(vectors - 1) as u8);
        asm.c.vpackusdw(z(4), other(0), other(1))?;
        asm.c.vpackusdw(z(5), other(2), other(3))?;
        (4..6).try_for_each(|n| self.exponential(asm, n))?;
        asm.c.vpackuswb(z(6), z(6), z(7))?;
        asm.c.vpermd(z(6), z(ORDER), z(6))?;
        if keys < ROW {
            asm.c.vmovdqu8(z(6).k2().z(), z(6))?;
        }
        asm.c.vmovdqu32(zmmword_ptr(at(r11, first as i64)), z(6))?;
        asm.c.vpdpbusd(z(SUM), z(6), z(ONES))?;
        Ok(())
    }

    /// The exponential of the words of register `n`, in register `n + 2`.
    fn exponential(&self, asm: &mut Asm, n: u8) -> Assembled {
        if self.exp.is_short() {
            asm.c.vpmulhuw(z(n), z(n), z(MULTIPLIER))?;
            if self.exp.shift > 16 {
                asm.c.vpsrlw(z(n), z(n), self.exp.shift - 16)?;
            }
        }
        asm.c.vpminuw(z(n), z(n), z(LAST))?;
        asm.c.vmovdqa64(z(n + 2), z(n))?;
        asm.c.vpermi2w(z(n + 2), z(TABLE), z(TABLE + 1))?;
        asm.c.vpsrlw(z(n), z(n), self.exp.bits)?;
        asm.c.vpaddw(z(n), z(n), z(SEVEN))?;
        asm.c.vpsrlvw(z(n + 2), z(n + 2), z(n))?;
        asm.c.vpavgw(z(n + 2), z(n + 2), z(ZERO))?;
        Ok(())
    }

    /// The reciprocal of the row's sum, and what its sums of values start with.
    fn terms(&self, asm: &mut Asm) -> Assembled {
        use registers::gpr32;
        fold(asm, SUM, |asm, all, other| Ok(asm.c.vpaddd(all, all, other)?))?;
        asm.c.vmovd(gpr32::r9d, x(SUM))?;
        if self.v_zero != 0 {
            asm.c.imul_3(gpr32::eax, gpr32::r9d, -self.v_zero as i32)?;
            asm.c.mov(dword_ptr(at(rbx, 4 * TILE as i64)), gpr32::eax)?;
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
        asm.c.mov(dword_ptr(at(rbx, 0)), gpr32::eax)?;
        Ok(())
    }

    fn values(&self, asm: &mut Asm, rows: usize) -> Assembled {
        asm.c.mov(r15, slot(VALUES))?;
        for panel in (0..self.columns).step_by(ROW) {
            let columns = (self.columns - panel).min(ROW);
            self.panel_of_values(asm, rows, panel, columns)?;
            asm.advance(r15, VECTORS as i64 * self.values_packed().stride())?;
        }
        Ok(())
    }

    fn panel_of_values(&self, asm: &mut Asm, rows: usize, panel: usize, columns: usize) -> Assembled {
        let vectors = columns.div_ceil(LANES);
        for (row, v) in (0..rows).flat_map(|row| (0..vectors).map(move |v| (row, v))) {
            let sum = z(sum(row, v));
            if self.v_zero == 0 {
                asm.c.vpxord(sum, sum, sum)?;
            } else {
                asm.c.vpbroadcastd(sum, dword_ptr(at(r13, 4 * (TILE + row) as i64)))?;
            }
        }
        multiply(asm, [rows, vectors], self.values_packed(), (r14, self.weight_bytes() as i64), r15)?;
        for row in 0..rows {
            let sums = std::array::from_fn(|v| sum(row, v));
            let inputs = [Feed::Registers(sums), Feed::One(r13, 4 * row as i64)];
            let free: Vec<u8> = (0..(row * VECTORS) as u8).chain(RIGHT..32).collect();
            let out = &self.heads[3];
            let to = (r8, row as i64 * out.row_stride() + (panel * out.elem.bytes()) as i64);
            emit_lane(asm, &self.lane, &Group { inputs: &inputs, columns, out: to, free: &free })?;
        }
        Ok(())
    }
}

/// Registers of both leaves, beside 0 to 7: one to combine with, bytes of signs and of ones, sums, an order of double words.
const LOADED: u8 = 8;
const FLIP: u8 = 20;
const SUM: u8 = 9;
const ORDER: u8 = 22;
const ONES: u8 = 23;
/// Registers of the softmax.
const MAX: u8 = 16;
const MULTIPLIER: u8 = 17;
const LIMIT: u8 = 18;
const LAST: u8 = 19;
const SEVEN: u8 = 24;
const ZERO: u8 = 25;
const TABLE: u8 = 26;

/// The register of a tile's sums.
fn sum(row: usize, vector: usize) -> u8 {
    (row * VECTORS + vector) as u8
}

/// The order in which four lanes of four double words become their transpose.
fn transposed() -> [u32; LANES] {
    std::array::from_fn(|i| (i % 4 * 4 + i / 4) as u32)
}

/// A constant in every double word.
fn spread(asm: &mut Asm, to: AsmRegisterZmm, v: i64) -> Assembled {
    let from = dword_ptr(asm.bytes(&(v as i32).to_le_bytes()));
    Ok(asm.c.vpbroadcastd(to, from)?)
}

/// Sets a mask register. Clobbers rax.
fn set_mask(asm: &mut Asm, n: u8, bits: u64) -> Assembled {
    asm.c.mov(rax, bits)?;
    Ok(asm.c.kmovq(k(n), rax)?)
}

/// Combines all double words of a register with one another; each then holds the whole.
fn fold(asm: &mut Asm, n: u8, combine: impl Fn(&mut Asm, AsmRegisterZmm, AsmRegisterZmm) -> Assembled) -> Assembled {
    let (all, other) = (z(n), z(LOADED));
    for swap in [0x4e, 0xb1] {
        asm.c.vshufi64x2(other, all, all, swap)?;
        combine(asm, all, other)?;
    }
    for swap in [0x4e, 0xb1] {
        asm.c.vpshufd(other, all, swap)?;
        combine(asm, all, other)?;
    }
    Ok(())
}

/// Adds to a tile's sums the products of rows at `a` (a register and the bytes from row to row) with vectors at `b`. Clobbers
/// rax, r10 and r11.
fn multiply(
    asm: &mut Asm,
    [rows, vectors]: [usize; 2],
    packed: Packed,
    (a, a_stride): (AsmRegister64, i64),
    b: AsmRegister64,
) -> Assembled {
    let step = |asm: &mut Asm, step: usize| -> Assembled {
        for v in 0..vectors {
            let from = at(r11, v as i64 * packed.stride() + 64 * step as i64);
            asm.c.vmovdqu32(z(RIGHT + v as u8), zmmword_ptr(from))?;
        }
        for row in 0..rows {
            let splat = z(SPLAT[row % 2]);
            asm.c.vpbroadcastd(splat, dword_ptr(at(r10, row as i64 * a_stride + 4 * step as i64)))?;
            for v in 0..vectors {
                asm.c.vpdpbusd(z(sum(row, v)), splat, z(RIGHT + v as u8))?;
            }
        }
        Ok(())
    };
    let (turns, rest) = (packed.steps / UNROLL, packed.steps % UNROLL);
    asm.c.mov(r10, a)?;
    asm.c.mov(r11, b)?;
    if turns > 0 {
        asm.c.mov(rax, turns as u64)?;
        asm.repeat(rax, |asm| {
            (0..UNROLL).try_for_each(|n| step(asm, n))?;
            asm.advance(r10, 4 * UNROLL as i64)?;
            asm.advance(r11, 64 * UNROLL as i64)
        })?;
    }
    (0..rest).try_for_each(|n| step(asm, n))
}
