//! The exponential of softmax on 512-bit vectors, and rows of it whose softmax is no part of an attention.
//!
//! Sixteen bits wide: `t = min(d * multiplier >> shift, t(limit))`, where `d` and `multiplier` fit 16 bits by one high product.
//! With `T` the table shifted right until it fits 16 bits, its shift is `(T[t mod 2^f] >> (t >> f)) + dither >> 8`: right shifts
//! compose, so the bits that `T` has lost change nothing. That is `vpermi2w`, `vpsrlvw`, an addition and a shift.

use iced_x86::code_asm::registers::gpr64::{r8, r11, rax, rdi, rdx, rsi};
use iced_x86::code_asm::{AsmMemoryOperand, qword_ptr, ymmword_ptr, zmmword_ptr};
use vitc_ir::{Dim, Elem};

use super::asm::{Asm, Assembled, TAIL_HALVES, at, call_by_rows, each_vector, spread, tails, x, y, z};
use crate::emit::Emit;
use crate::operand::{Columns, Operand};
use crate::rows::{Rows, Work};

/// Elements of a vector.
const HALVES: usize = 32;

/// Registers of the exponential's numbers; the table has two.
const MULTIPLIER: u8 = 17;
const LIMIT: u8 = 18;
const LAST: u8 = 19;
const TABLE: u8 = 26;

/// Registers, beside 0 to 7, of the code for rows: the largest element of a row in every word, the least number, zero.
const MAX: u8 = 16;
const LOWEST: u8 = 20;
const NONE: u8 = 21;

/// The exponential as leaves compute it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Exp {
    limit: i64,
    multiplier: i64,
    shift: u32,
    /// The table in sixteen bits, repeated to 64 entries.
    table: Vec<u16>,
    /// Bits of an index into the table before it was repeated.
    bits: u32,
}

impl Exp {
    /// The exponential of a kernel over rows with this table, if it can be computed so.
    pub(crate) fn of(work: &Work, table: &[i64], table_bits: u32) -> Option<Exp> {
        let Work::Exp { limit, multiplier, shift, .. } = *work else { return None };
        let narrow =
            |v: i64| u16::try_from(if table_bits >= 8 { v >> (table_bits - 8) } else { v << (8 - table_bits) });
        let one: Vec<u16> = table.iter().map(|&v| narrow(v).ok()).collect::<Option<_>>()?;
        let fits = one.len().is_power_of_two() && one.len() <= 64 && limit <= i32::MAX.into();
        let bits = one.len().trailing_zeros();
        fits.then(|| Exp { limit, multiplier, shift, table: one.into_iter().cycle().take(64).collect(), bits })
    }

    /// Whether differences and multiplier fit 16 bits.
    pub(crate) fn is_short(&self) -> bool {
        self.limit <= 0xffff && self.multiplier <= 0xffff && (16..32).contains(&self.shift)
    }

    /// The largest `t`; beyond, the result is zero as well.
    fn last(&self) -> i64 {
        ((self.limit * self.multiplier) >> self.shift).min(60_000)
    }

    /// Loads its numbers.
    pub(crate) fn load(&self, asm: &mut Asm) -> Assembled {
        let words = |v: i64| v << 16 | v;
        let multiplier = if self.is_short() { words(self.multiplier) } else { self.multiplier };
        for (register, value) in [(MULTIPLIER, multiplier), (LIMIT, self.limit), (LAST, words(self.last()))] {
            spread(asm, z(register), value)?;
        }
        let table: Vec<u8> = self.table.iter().flat_map(|v| v.to_le_bytes()).collect();
        for (register, half) in [(TABLE, &table[..64]), (TABLE + 1, &table[64..])] {
            let half = zmmword_ptr(asm.bytes(half));
            asm.c.vmovdqu64(z(register), half)?;
        }
        Ok(())
    }

    /// From the differences in the double words of register `n` to their `t`, where they do not fit 16 bits.
    pub(crate) fn scale_long(&self, asm: &mut Asm, n: u8) -> Assembled {
        asm.c.vpminud(z(n), z(n), z(LIMIT))?;
        asm.c.vpmulld(z(n), z(n), z(MULTIPLIER))?;
        Ok(asm.c.vpsrld(z(n), z(n), self.shift)?)
    }

    /// The exponential of the words of register `n`, which are differences where those are short, `t` otherwise, in the words of
    /// register `to`. Rounded up by the words of `dither`.
    pub(crate) fn words(&self, asm: &mut Asm, n: u8, to: u8, dither: AsmMemoryOperand) -> Assembled {
        if self.is_short() {
            asm.c.vpmulhuw(z(n), z(n), z(MULTIPLIER))?;
            if self.shift > 16 {
                asm.c.vpsrlw(z(n), z(n), self.shift - 16)?;
            }
        }
        asm.c.vpminuw(z(n), z(n), z(LAST))?;
        asm.c.vmovdqa64(z(to), z(n))?;
        asm.c.vpermi2w(z(to), z(TABLE), z(TABLE + 1))?;
        asm.c.vpsrlw(z(n), z(n), self.bits)?;
        asm.c.vpsrlvw(z(to), z(to), z(n))?;
        asm.c.vpaddw(z(to), z(to), dither)?;
        Ok(asm.c.vpsrlw(z(to), z(to), 8)?)
    }
}

/// What 32 columns are rounded up by, as words in that order.
pub(crate) fn dither(columns: impl Iterator<Item = usize>) -> Vec<u8> {
    columns.flat_map(|column| u16::from(vitc_ir::dither(column)).to_le_bytes()).collect()
}

/// `int.exp` of rows of consecutive `i16`. Arguments: x, the composed table (not read), out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WideExp {
    sizes: Vec<Dim>,
    c: usize,
    /// As the arguments.
    operands: Vec<Operand>,
    exp: Exp,
}

impl WideExp {
    /// The same rows with a leaf, if there can be one.
    pub(crate) fn of(rows: &Rows, table: &[i64], table_bits: u32) -> Option<WideExp> {
        let exp = Exp::of(&rows.work, table, table_bits)?;
        let [from, _, out] = &rows.operands[..] else { return None };
        let fits = (from.elem, out.elem) == (Elem::I16, Elem::U8)
            && [from, out].iter().all(|o| o.columns == Columns::Stride(1))
            && rows.operands.iter().all(|o| o.check_rows().is_ok());
        fits.then(|| WideExp { sizes: rows.sizes.clone(), c: rows.c, operands: rows.operands.clone(), exp })
    }

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        call_by_rows(e, &self.sizes, &self.operands);
    }

    // ---- the leaf: rsi rows of x, r8 out, r11 rows

    /// The leaf's code.
    pub(crate) fn assemble(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        for (argument, register) in [(0, rsi), (2, r8), (3, r11)] {
            asm.c.mov(register, qword_ptr(at(rdi, 8 * argument)))?;
        }
        tails(&mut asm, self.c)?;
        self.exp.load(&mut asm)?;
        spread(&mut asm, z(LOWEST), 0x8000_8000)?;
        spread(&mut asm, z(NONE), 0)?;
        asm.repeat(r11, |asm| {
            self.maximum(asm)?;
            self.row(asm)?;
            asm.advance(rsi, self.operands[0].row_stride())?;
            asm.advance(r8, self.operands[2].row_stride())
        })?;
        asm.finish()
    }

    /// The largest element of the row at rsi, in every word of its register.
    fn maximum(&self, asm: &mut Asm) -> Assembled {
        asm.c.vmovdqa64(z(0), z(LOWEST))?;
        asm.c.mov(rdx, rsi)?;
        each_vector(asm, self.c, HALVES, &[(rdx, 2)], &mut |asm, i, part| {
            debug_assert_eq!(TAIL_HALVES, 1);
            let to = if part { z(0).k1() } else { z(0) };
            Ok(asm.c.vpmaxsw(to, z(0), zmmword_ptr(at(rdx, 64 * i as i64)))?)
        })?;
        asm.c.vextracti64x4(y(1), z(0), 1)?;
        asm.c.vpmaxsw(y(0), y(0), y(1))?;
        asm.c.vextracti128(x(1), y(0), 1)?;
        asm.c.vpmaxsw(x(0), x(0), x(1))?;
        // There is an instruction for the least of eight words without signs: that of the complements.
        asm.c.vpternlogd(x(1), x(1), x(1), 0xff)?;
        asm.c.vpxord(x(1), x(1), x(LOWEST))?;
        asm.c.vpxord(x(0), x(0), x(1))?;
        asm.c.vphminposuw(x(0), x(0))?;
        asm.c.vpxord(x(0), x(0), x(1))?;
        Ok(asm.c.vpbroadcastw(z(MAX), x(0))?)
    }

    /// The exponentials of the row at rsi.
    fn row(&self, asm: &mut Asm) -> Assembled {
        asm.c.mov(rdx, rsi)?;
        asm.c.mov(rax, r8)?;
        each_vector(asm, self.c, HALVES, &[(rdx, 2), (rax, 1)], &mut |asm, i, part| {
            // the distance of two `i16` fits a word without a sign
            let from = zmmword_ptr(at(rdx, 64 * i as i64));
            asm.c.vpsubw(if part { z(0).k1().z() } else { z(0) }, z(MAX), from)?;
            if !self.exp.is_short() {
                asm.c.vpunpckhwd(z(1), z(0), z(NONE))?;
                asm.c.vpunpcklwd(z(0), z(0), z(NONE))?;
                (0..2).try_for_each(|n| self.exp.scale_long(asm, n))?;
                asm.c.vpackusdw(z(0), z(0), z(1))?;
            }
            // Dithers repeat after 128 columns, which are the vectors between two moves of the walkers.
            let dither = zmmword_ptr(asm.bytes(&dither(HALVES * i..HALVES * (i + 1))));
            self.exp.words(asm, 0, 2, dither)?;
            let to = ymmword_ptr(at(rax, (HALVES * i) as i64));
            Ok(asm.c.vpmovwb(if part { to.k1() } else { to }, z(2))?)
        })
    }
}
