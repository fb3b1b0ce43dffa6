//! Grids of rows on 512-bit vectors: the largest magnitude of each row, and the row in steps of it.
//!
//! ```text
//! for lead                       Cranelift: outer loops over rows in which some operand is not affine
//!   leaf
//!     for row
//!       peak                     32 elements at a time
//!       codes                    one division, then 16 elements at a time
//! ```
//!
//! Elements that stand for entries of a table (GELU) are bytes: the peak is that of the least or of the largest byte, as magnitudes
//! of entries fall and then rise, and the codes of all 256 entries are made for each row and looked up, 64 elements at a time.
//!
//! The codes find the peak once more instead of reading it: the row comes to the first-level cache by that, and an op
//! depends on nothing but its operand.

use iced_x86::code_asm::registers::gpr32::{eax, ecx, edx};
use iced_x86::code_asm::registers::gpr64::{r8, r9, r11, rax, rdi, rdx, rsi};
use iced_x86::code_asm::{dword_ptr, qword_ptr, word_ptr, xmmword_ptr, ymmword_ptr, zmmword_ptr};
use vitc_ir::{Dim, Elem};

use super::asm::{Asm, Assembled, TAIL_HALVES, TAIL_WORDS, at, call_by_rows, each_vector, k, tails, x, y, z};
use crate::emit::Emit;
use crate::operand::{Columns, Operand};
use crate::rows::{Elements, Rows, Work, code_shift};

/// Elements of a vector of the first pass and of the second, and of bytes that stand for entries.
const HALVES: usize = 32;
const WORDS: usize = 16;
const BYTES: usize = 64;

/// Vector registers that hold a constant.
const ONES: u8 = 31;
const ALL: u8 = 30;
const HALF: u8 = 29;
const ZERO_POINT: u8 = 28;
const NONE: u8 = 27;

/// Mask registers of the last bytes of a row, and of bytes of the upper half of the table.
const TAIL_BYTES: u8 = 3;
const UPPER: u8 = 4;

/// The codes of all entries of a table, 64 in a register.
const TABLE: u8 = 20;

/// `int.row_peak` or `int.row_codes` of rows of consecutive `i16`, or of bytes that stand for entries of a table. Arguments: x, the
/// table if there is one, out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WidePeak {
    sizes: Vec<Dim>,
    c: usize,
    /// As the arguments.
    operands: Vec<Operand>,
    /// Steps of peaks, as a shift.
    shift: u32,
    /// Levels and zero point of the codes, if they are wanted.
    codes: Option<(i32, i32)>,
}

impl WidePeak {
    /// The same rows with a leaf, if there can be one.
    pub(crate) fn of(rows: &Rows) -> Option<WidePeak> {
        let (shift, codes, of) = match rows.work {
            Work::Peak { shift, of } => (shift, None, of),
            Work::Codes { levels, zero_point, shift, of } => {
                (shift, Some((i32::try_from(levels).ok()?, i32::try_from(zero_point).ok()?)), of)
            }
            _ => return None,
        };
        let (x, out) = (rows.operands.first()?, rows.operands.last()?);
        let elem = match of {
            Elements::Plain => Elem::I16,
            Elements::Entries { valley: true } => Elem::U8,
            Elements::Entries { valley: false } => return None,
        };
        let fits = x.elem == elem
            && x.columns == Columns::Stride(1)
            && (codes.is_none() || out.columns == Columns::Stride(1))
            && rows.operands.iter().all(|o| o.check_rows().is_ok());
        let operands = rows.operands.clone();
        fits.then(|| WidePeak { sizes: rows.sizes.clone(), c: rows.c, operands, shift, codes })
    }

    fn has_table(&self) -> bool {
        self.operands.len() > 2
    }

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        call_by_rows(e, &self.sizes, &self.operands);
    }

    // ---- the leaf: rsi rows of x, r9 the table, r8 out, r11 rows

    /// The leaf's code.
    pub(crate) fn assemble(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        let registers = if self.has_table() { &[rsi, r9, r8, r11][..] } else { &[rsi, r8, r11] };
        for (i, &register) in registers.iter().enumerate() {
            asm.c.mov(register, qword_ptr(at(rdi, 8 * i as i64)))?;
        }
        self.constants(&mut asm)?;
        asm.repeat(r11, |asm| {
            if self.has_table() {
                self.peak_of_entries(asm)?
            } else {
                self.peak(asm)?
            }
            self.rounded_peak(asm)?;
            match self.codes {
                None => asm.c.mov(dword_ptr(r8), eax)?,
                Some((levels, zero_point)) => {
                    self.reciprocal(asm, levels)?;
                    if self.has_table() {
                        self.codes_of_entries(asm, levels, zero_point)?;
                    } else {
                        self.codes(asm, levels, zero_point)?;
                    }
                }
            }
            asm.advance(rsi, self.operands[0].row_stride())?;
            asm.advance(r8, self.operands[self.operands.len() - 1].row_stride())
        })?;
        asm.finish()
    }

    fn constants(&self, asm: &mut Asm) -> Assembled {
        tails(asm, self.c)?;
        if self.has_table() {
            asm.c.mov(rax, (1u64 << (self.c % BYTES)) - 1)?;
            asm.c.kmovq(k(TAIL_BYTES), rax)?;
        }
        let ones = asm.bytes(&0x0001_0001u32.to_le_bytes());
        asm.c.vpbroadcastd(z(ONES), dword_ptr(ones))?;
        asm.c.vpternlogd(x(ALL), x(ALL), x(ALL), 0xff)?;
        let Some((levels, zero_point)) = self.codes else { return Ok(()) };
        let half = 1 << (code_shift(levels.into()) - 1);
        for (register, value) in [(HALF, half), (ZERO_POINT, zero_point)] {
            let label = asm.bytes(&value.to_le_bytes());
            asm.c.vpbroadcastd(z(register), dword_ptr(label))?;
        }
        Ok(asm.c.vpxord(z(NONE), z(NONE), z(NONE))?)
    }

    /// The largest magnitude of the row at rsi in eax, 1 at least.
    fn peak(&self, asm: &mut Asm) -> Assembled {
        asm.c.vmovdqa32(z(0), z(ONES))?;
        asm.c.mov(rdx, rsi)?;
        each_vector(asm, self.c, HALVES, &[(rdx, 2)], &mut |asm, i, part| {
            let to = if part { z(1).k1().z() } else { z(1) };
            // the magnitude of -2^15 counts as unsigned
            asm.c.vpabsw(to, zmmword_ptr(at(rdx, 64 * i as i64)))?;
            Ok(asm.c.vpmaxuw(z(0), z(0), z(1))?)
        })?;
        debug_assert_eq!(TAIL_HALVES, 1);
        asm.c.vextracti64x4(y(1), z(0), 1)?;
        asm.c.vpmaxuw(y(0), y(0), y(1))?;
        asm.c.vextracti128(x(1), y(0), 1)?;
        asm.c.vpmaxuw(x(0), x(0), x(1))?;
        // There is an instruction for the least of eight: that of the complements.
        asm.c.vpxord(x(0), x(0), x(ALL))?;
        asm.c.vphminposuw(x(0), x(0))?;
        asm.c.vpxord(x(0), x(0), x(ALL))?;
        Ok(asm.c.vpextrw(eax, x(0), 0)?)
    }

    /// The largest magnitude of the entries that the row at rsi stands for, in eax, 1 at least: that of its least or of its
    /// largest byte. The largest is found as the least complement.
    fn peak_of_entries(&self, asm: &mut Asm) -> Assembled {
        asm.c.vpternlogd(z(0), z(0), z(0), 0xff)?;
        asm.c.vmovdqa32(z(1), z(0))?;
        asm.c.mov(rdx, rsi)?;
        each_vector(asm, self.c, BYTES, &[(rdx, 1)], &mut |asm, i, part| {
            let from = zmmword_ptr(at(rdx, 64 * i as i64));
            asm.c.vmovdqu8(if part { z(2).k3().z() } else { z(2) }, from)?;
            asm.c.vpternlogd(z(3), z(2), z(2), 0x55)?;
            asm.c.vpminub(if part { z(0).k3() } else { z(0) }, z(0), z(2))?;
            Ok(asm.c.vpminub(if part { z(1).k3() } else { z(1) }, z(1), z(3))?)
        })?;
        for n in [0, 1] {
            asm.c.vextracti64x4(y(2), z(n), 1)?;
            asm.c.vpminub(y(n), y(n), y(2))?;
            asm.c.vextracti128(x(2), y(n), 1)?;
            asm.c.vpminub(x(n), x(n), x(2))?;
            // of sixteen bytes the lesser one of each pair, as a word
            asm.c.vpsrlw(x(2), x(n), 8)?;
            asm.c.vpminub(x(n), x(n), x(2))?;
            asm.c.vphminposuw(x(n), x(n))?;
        }
        asm.c.vpextrb(eax, x(0), 0)?;
        asm.c.vpextrb(edx, x(1), 0)?;
        asm.c.xor(edx, 0xff)?;
        for register in [rax, rdx] {
            asm.c.movsx(register, word_ptr(r9 + 2 * register))?;
        }
        for register in [eax, edx] {
            asm.c.mov(ecx, register)?;
            asm.c.neg(ecx)?;
            asm.c.cmovns(register, ecx)?;
        }
        asm.c.cmp(edx, eax)?;
        asm.c.cmovg(eax, edx)?;
        asm.c.mov(ecx, 1)?;
        asm.c.cmp(eax, ecx)?;
        Ok(asm.c.cmovl(eax, ecx)?)
    }

    /// The peak in eax, in its steps.
    fn rounded_peak(&self, asm: &mut Asm) -> Assembled {
        if self.shift > 0 {
            asm.c.add(eax, (1 << self.shift) - 1)?;
            asm.c.shr(eax, self.shift)?;
        }
        Ok(())
    }

    /// Levels over the peak in eax, in every lane of z0.
    fn reciprocal(&self, asm: &mut Asm, levels: i32) -> Assembled {
        if self.shift > 0 {
            asm.c.shl(eax, self.shift)?;
        }
        asm.c.mov(ecx, eax)?;
        asm.c.shr(eax, 1)?;
        asm.c.add(eax, levels << code_shift(levels.into()))?;
        asm.c.xor(edx, edx)?;
        asm.c.div(ecx)?;
        Ok(asm.c.vpbroadcastd(z(0), eax)?)
    }

    /// From 16 elements as words to their codes, not yet cut off above.
    fn code(&self, asm: &mut Asm, n: u8, levels: i32, zero_point: i32) -> Assembled {
        let v = z(n);
        asm.c.vpmulld(v, v, z(0))?;
        asm.c.vpaddd(v, v, z(HALF))?;
        asm.c.vpsrad(v, v, code_shift(levels.into()))?;
        if zero_point != 0 {
            asm.c.vpaddd(v, v, z(ZERO_POINT))?;
        }
        Ok(asm.c.vpmaxsd(v, v, z(NONE))?)
    }

    /// The codes of the row at rsi.
    fn codes(&self, asm: &mut Asm, levels: i32, zero_point: i32) -> Assembled {
        asm.c.mov(rdx, rsi)?;
        asm.c.mov(rax, r8)?;
        each_vector(asm, self.c, WORDS, &[(rdx, 2), (rax, 1)], &mut |asm, i, part| {
            let (n, step) = (1 + i as u8, (i * WORDS) as i64);
            asm.c.vpmovsxwd(if part { z(n).k2().z() } else { z(n) }, ymmword_ptr(at(rdx, 2 * step)))?;
            self.code(asm, n, levels, zero_point)?;
            let to = xmmword_ptr(at(rax, step));
            debug_assert_eq!(TAIL_WORDS, 2);
            Ok(asm.c.vpmovusdb(if part { to.k2() } else { to }, z(n))?)
        })
    }

    /// The codes of the row at rsi: those of all entries in four registers, then each byte's.
    fn codes_of_entries(&self, asm: &mut Asm, levels: i32, zero_point: i32) -> Assembled {
        for quarter in 0..4 {
            let table = TABLE + quarter;
            for part in 0..4 {
                let n = 1 + part;
                asm.c.vpmovsxwd(z(n), ymmword_ptr(at(r9, 128 * i64::from(quarter) + 32 * i64::from(part))))?;
                self.code(asm, n, levels, zero_point)?;
                match part {
                    0 => asm.c.vpmovusdb(x(table), z(n))?,
                    _ => {
                        asm.c.vpmovusdb(x(n), z(n))?;
                        asm.c.vinserti32x4(z(table), z(table), x(n), u32::from(part))?;
                    }
                }
            }
        }
        asm.c.mov(rdx, rsi)?;
        asm.c.mov(rax, r8)?;
        each_vector(asm, self.c, BYTES, &[(rdx, 1), (rax, 1)], &mut |asm, i, part| {
            let step = (i * BYTES) as i64;
            asm.c.vmovdqu8(if part { z(1).k3().z() } else { z(1) }, zmmword_ptr(at(rdx, step)))?;
            asm.c.vmovdqa32(z(2), z(1))?;
            asm.c.vpmovb2m(k(UPPER), z(1))?;
            asm.c.vpermi2b(z(1), z(TABLE), z(TABLE + 1))?;
            asm.c.vpermi2b(z(2), z(TABLE + 2), z(TABLE + 3))?;
            asm.c.vpblendmb(z(1).k4(), z(1), z(2))?;
            let to = zmmword_ptr(at(rax, step));
            Ok(asm.c.vmovdqu8(if part { to.k3() } else { to }, z(1))?)
        })
    }
}
