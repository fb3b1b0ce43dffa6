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
//! The codes find the peak once more instead of reading it: the row comes to the first-level cache by that, and an op
//! depends on nothing but its operand.

use iced_x86::code_asm::registers::gpr32::{eax, ecx, edx};
use iced_x86::code_asm::registers::gpr64::{r8, r11, rax, rdi, rdx, rsi};
use iced_x86::code_asm::{dword_ptr, qword_ptr, xmmword_ptr, ymmword_ptr, zmmword_ptr};
use vitc_ir::{Dim, Elem};

use super::asm::{Asm, Assembled, TAIL_HALVES, TAIL_WORDS, at, call_by_rows, each_vector, tails, x, y, z};
use crate::emit::Emit;
use crate::operand::{Columns, Operand};
use crate::rows::{Rows, Work, code_shift};

/// Elements of a vector of the first pass and of the second.
const HALVES: usize = 32;
const WORDS: usize = 16;

/// Vector registers that hold a constant.
const ONES: u8 = 31;
const ALL: u8 = 30;
const HALF: u8 = 29;
const ZERO_POINT: u8 = 28;
const NONE: u8 = 27;

/// `int.row_peak` or `int.row_codes` of rows of consecutive `i16`. Arguments: x, out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WidePeak {
    sizes: Vec<Dim>,
    c: usize,
    /// x, out.
    operands: [Operand; 2],
    /// Steps of peaks, as a shift.
    shift: u32,
    /// Levels and zero point of the codes, if they are wanted.
    codes: Option<(i32, i32)>,
}

impl WidePeak {
    /// The same rows with a leaf, if there can be one.
    pub(crate) fn of(rows: &Rows) -> Option<WidePeak> {
        let (shift, codes) = match rows.work {
            Work::Peak { shift } => (shift, None),
            Work::Codes { levels, zero_point, shift } => {
                (shift, Some((i32::try_from(levels).ok()?, i32::try_from(zero_point).ok()?)))
            }
            _ => return None,
        };
        let operands = <[Operand; 2]>::try_from(rows.operands.clone()).ok()?;
        let fits = operands[0].elem == Elem::I16
            && operands[0].columns == Columns::Stride(1)
            && (codes.is_none() || operands[1].columns == Columns::Stride(1))
            && operands.iter().all(|o| o.check_rows().is_ok());
        fits.then(|| WidePeak { sizes: rows.sizes.clone(), c: rows.c, operands, shift, codes })
    }

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        call_by_rows(e, &self.sizes, &self.operands);
    }

    // ---- the leaf: rsi rows of x, r8 out, r11 rows

    /// The leaf's code.
    pub(crate) fn assemble(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        for (i, register) in [rsi, r8, r11].into_iter().enumerate() {
            asm.c.mov(register, qword_ptr(at(rdi, 8 * i as i64)))?;
        }
        self.constants(&mut asm)?;
        asm.repeat(r11, |asm| {
            self.peak(asm)?;
            match self.codes {
                None => asm.c.mov(dword_ptr(r8), eax)?,
                Some((levels, zero_point)) => self.codes(asm, levels, zero_point)?,
            }
            asm.advance(rsi, self.operands[0].row_stride())?;
            asm.advance(r8, self.operands[1].row_stride())
        })?;
        asm.finish()
    }

    fn constants(&self, asm: &mut Asm) -> Assembled {
        tails(asm, self.c)?;
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

    /// The peak of the row at rsi in eax, in its steps.
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
        asm.c.vpextrw(eax, x(0), 0)?;
        if self.shift > 0 {
            asm.c.add(eax, (1 << self.shift) - 1)?;
            asm.c.shr(eax, self.shift)?;
        }
        Ok(())
    }

    /// The codes of the row at rsi, whose peak is in eax.
    fn codes(&self, asm: &mut Asm, levels: i32, zero_point: i32) -> Assembled {
        let shift = code_shift(levels.into());
        if self.shift > 0 {
            asm.c.shl(eax, self.shift)?;
        }
        asm.c.mov(ecx, eax)?;
        asm.c.shr(eax, 1)?;
        asm.c.add(eax, levels << shift)?;
        asm.c.xor(edx, edx)?;
        asm.c.div(ecx)?;
        asm.c.vpbroadcastd(z(0), eax)?;
        asm.c.mov(rdx, rsi)?;
        asm.c.mov(rax, r8)?;
        each_vector(asm, self.c, WORDS, &[(rdx, 2), (rax, 1)], &mut |asm, i, part| {
            let (v, step) = (z(1 + i as u8), (i * WORDS) as i64);
            asm.c.vpmovsxwd(if part { v.k2().z() } else { v }, ymmword_ptr(at(rdx, 2 * step)))?;
            asm.c.vpmulld(v, v, z(0))?;
            asm.c.vpaddd(v, v, z(HALF))?;
            asm.c.vpsrad(v, v, shift)?;
            if zero_point != 0 {
                asm.c.vpaddd(v, v, z(ZERO_POINT))?;
            }
            asm.c.vpmaxsd(v, v, z(NONE))?;
            let to = xmmword_ptr(at(rax, step));
            debug_assert_eq!(TAIL_WORDS, 2);
            Ok(asm.c.vpmovusdb(if part { to.k2() } else { to }, v)?)
        })
    }
}
