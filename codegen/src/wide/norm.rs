//! Layer normalisation on 512-bit vectors, in integers throughout.
//!
//! ```text
//! for lead                       Cranelift: outer loops over rows in which some operand is not affine
//!   leaf
//!     for group of 8 rows
//!       for row                  moments, 32 elements at a time; then square root and reciprocal, scalars
//!       for row                  results, 16 elements at a time
//! ```
//!
//! Two passes, because the scalars of a row are one chain of some hundred cycles: in a row of chains they run beside each
//! other and beside the moments of the rows around. What a row's scalars find waits in the red zone, which holds 8 records.
//!
//! The square root: `v` is shifted up by an even number of bits to 62 and more, its top byte looks up a root within 1/256,
//! two steps of Newton's method (which never fall below the floor of the root) bring it to the floor or one more, the root is
//! shifted down again, and one comparison decides.

use iced_x86::code_asm::registers::gpr32;
use iced_x86::code_asm::registers::gpr64::{
    r8, r9, r10, r11, r12, r13, r14, r15, rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp,
};
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegisterZmm, dword_ptr, ptr, qword_ptr, xmmword_ptr, ymmword_ptr, zmmword_ptr,
};
use vitc_ir::{Dim, Elem};

use super::asm::{Asm, Assembled, TAIL_HALVES, TAIL_WORDS, at, call_by_rows, each_vector, tails, x, z};
use crate::emit::Emit;
use crate::operand::{Columns, Operand};
use crate::rows::{Rows, Work};

/// Rows of a group; each has a record in the red zone below the stack.
const GROUP: i32 = 8;
/// Bytes of a record: reciprocal, offset, shift.
const RECORD: i32 = 16;
/// Elements of a vector of moments and of a vector of results.
const HALVES: usize = 32;
const WORDS: usize = 16;
/// Columns up to which a product with their number fits `vpmaddwd`.
const MOST_COLUMNS: usize = i16::MAX as usize;

/// Vector registers that hold a constant.
const ONES: u8 = 31;
const EVEN: u8 = 30;
const COUNT: u8 = 29;
const HALF: u8 = 28;
const ZERO_POINT: u8 = 27;
const LEAST: u8 = 26;
const MOST: u8 = 25;

/// `int.layernorm` of rows of consecutive `i16`. Arguments: x, gamma, beta, out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WideNorm {
    sizes: Vec<Dim>,
    c: usize,
    /// x, gamma, beta, out.
    operands: [Operand; 4],
    epsilon: i64,
    centred: bool,
    guard: u32,
    norm_bits: u32,
    recip_bits: u32,
    shift: u32,
    zero_point: i32,
}

impl WideNorm {
    /// The same rows with a leaf, if there can be one.
    pub(crate) fn of(rows: &Rows) -> Option<WideNorm> {
        let Work::LayerNorm { epsilon, centred, guard, norm_bits, recip_bits, shift, zero_point } = rows.work else {
            return None;
        };
        let operands = <[Operand; 4]>::try_from(rows.operands.clone()).ok()?;
        let elems = operands.each_ref().map(|o| o.elem);
        let fits = elems[..3] == [Elem::I16, Elem::I32, Elem::I32]
            && matches!(elems[3], Elem::U8 | Elem::I8 | Elem::I16)
            && operands.iter().all(|o| o.columns == Columns::Stride(1) && o.check_rows().is_ok())
            && rows.c <= MOST_COLUMNS
            && zero_point.abs() <= 1 << 16;
        let zero_point = i32::try_from(zero_point).ok()?;
        let sizes = rows.sizes.clone();
        fits.then_some(WideNorm {
            sizes,
            c: rows.c,
            operands,
            epsilon,
            centred,
            guard,
            norm_bits,
            recip_bits,
            shift,
            zero_point,
        })
    }

    // ---- the kernel around the leaf

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        call_by_rows(e, &self.sizes, &self.operands);
    }

    // ---- the leaf: rsi and rbx rows of x, r8 gamma, r9 beta, r10 out, r11 rows, r13 those of a group

    /// The leaf's code.
    pub(crate) fn assemble(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        for (i, register) in [rsi, r8, r9, r10, r11].into_iter().enumerate() {
            asm.c.mov(register, qword_ptr(at(rdi, 8 * i as i64)))?;
        }
        asm.c.mov(rbx, rsi)?;
        self.constants(&mut asm)?;
        let mut group = asm.c.create_label();
        asm.c.set_label(&mut group)?;
        asm.c.mov(gpr32::r13d, GROUP)?;
        asm.c.cmp(r11, r13)?;
        asm.c.cmovl(r13, r11)?;
        self.each_record(&mut asm, |asm| {
            self.moments(asm)?;
            self.scalars(asm)?;
            asm.advance(rsi, self.operands[0].row_stride())
        })?;
        self.each_record(&mut asm, |asm| {
            self.results(asm)?;
            asm.advance(rbx, self.operands[0].row_stride())?;
            asm.advance(r10, self.operands[3].row_stride())
        })?;
        asm.c.sub(r11, r13)?;
        asm.c.jnz(group)?;
        asm.finish()
    }

    fn constants(&self, asm: &mut Asm) -> Assembled {
        let (low, high) = self.operands[3].elem.range().expect("results are integers");
        let zero = i64::from(self.zero_point);
        for (register, value) in [
            (ONES, 0x0001_0001),
            (COUNT, self.c as i64),
            (HALF, 1 << (self.recip_bits - 1)),
            (ZERO_POINT, zero),
            (LEAST, low - zero),
            (MOST, high - zero),
        ] {
            let label = asm.bytes(&(value as i32).to_le_bytes());
            asm.c.vpbroadcastd(z(register), dword_ptr(label))?;
        }
        let even = asm.bytes(&0xffff_ffffu64.to_le_bytes());
        asm.c.vpbroadcastq(z(EVEN), qword_ptr(even))?;
        tails(asm, self.c)
    }

    /// `body` for each row of the group, with its record at [`record`].
    fn each_record(&self, asm: &mut Asm, body: impl FnOnce(&mut Asm) -> Assembled) -> Assembled {
        asm.c.imul_3(r14, r13, -RECORD)?;
        let mut row = asm.c.create_label();
        asm.c.set_label(&mut row)?;
        body(asm)?;
        asm.c.add(r14, RECORD)?;
        Ok(asm.c.jnz(row)?)
    }

    // ---- moments

    /// The sum of the row at rsi in rbp, zero where the mean counts as zero, and that of its squares in rcx.
    fn moments(&self, asm: &mut Asm) -> Assembled {
        const SUM: u8 = 0;
        const EVEN_SQUARES: u8 = 1;
        const ODD_SQUARES: u8 = 2;
        for n in [SUM, EVEN_SQUARES, ODD_SQUARES] {
            asm.c.vpxord(z(n), z(n), z(n))?;
        }
        asm.c.mov(rdx, rsi)?;
        let walkers = [(rdx, 2)];
        each_vector(asm, self.c, HALVES, &walkers, &mut |asm, i, part| {
            let to = if part { z(3).k1().z() } else { z(3) };
            asm.c.vmovdqu16(to, zmmword_ptr(at(rdx, 64 * i as i64)))?;
            asm.c.vpdpwssd(z(SUM), z(3), z(ONES))?;
            // Two squares of -2^15 make 2^31: the pairs count as unsigned.
            asm.c.vpmaddwd(z(4), z(3), z(3))?;
            asm.c.vpandq(z(5), z(4), z(EVEN))?;
            asm.c.vpsrlq(z(4), z(4), 32)?;
            asm.c.vpaddq(z(EVEN_SQUARES), z(EVEN_SQUARES), z(5))?;
            Ok(asm.c.vpaddq(z(ODD_SQUARES), z(ODD_SQUARES), z(4))?)
        })?;
        debug_assert_eq!(TAIL_HALVES, 1);
        asm.c.vpaddq(z(1), z(1), z(2))?;
        let add = |asm: &mut Asm, n: u8, shuffle: Shuffle, order: u32| -> Assembled {
            match shuffle {
                Shuffle::Quarters => asm.c.vshufi64x2(z(3), z(n), z(n), order)?,
                Shuffle::Words => asm.c.vpshufd(z(3), z(n), order)?,
            }
            match n {
                SUM => Ok(asm.c.vpaddd(z(n), z(n), z(3))?),
                _ => Ok(asm.c.vpaddq(z(n), z(n), z(3))?),
            }
        };
        for n in [SUM, EVEN_SQUARES] {
            add(asm, n, Shuffle::Quarters, 0x4e)?;
            add(asm, n, Shuffle::Quarters, 0xb1)?;
            add(asm, n, Shuffle::Words, 0x4e)?;
        }
        add(asm, SUM, Shuffle::Words, 0xb1)?;
        if self.centred {
            asm.c.vmovd(gpr32::ebp, x(SUM))?;
            asm.c.movsxd(rbp, gpr32::ebp)?;
        } else {
            asm.c.xor(gpr32::ebp, gpr32::ebp)?;
        }
        Ok(asm.c.vmovq(rcx, x(EVEN_SQUARES))?)
    }

    // ---- scalars

    /// From the sum in rbp and the sum of squares in rcx to the row's record.
    fn scalars(&self, asm: &mut Asm) -> Assembled {
        let bits = |n: u32| i32::try_from(n).expect("shifts are small");
        asm.c.imul_3(r12, rcx, self.c as i32)?;
        asm.c.mov(rax, rbp)?;
        asm.c.imul_2(rax, rax)?;
        asm.c.sub(r12, rax)?;
        asm.c.mov(rax, self.epsilon)?;
        asm.c.add(r12, rax)?;
        asm.c.mov(gpr32::eax, 1)?;
        asm.c.cmp(r12, rax)?;
        asm.c.cmovl(r12, rax)?;
        self.square_root(asm)?;
        // The shift that leaves 16 bits and the guard bits.
        asm.c.lzcnt(rax, r15)?;
        asm.c.mov(gpr32::ecx, 64 - 16 + bits(self.guard))?;
        asm.c.xor(gpr32::edx, gpr32::edx)?;
        asm.c.sub(rcx, rax)?;
        asm.c.cmovl(rcx, rdx)?;
        // (2^(shift + bits) + sigma/2) / sigma
        asm.c.mov(gpr32::edi, 1)?;
        asm.c.lea(rdx, ptr(rcx + bits(self.norm_bits + self.recip_bits)))?;
        asm.c.shlx(rax, rdi, rdx)?;
        asm.c.mov(rdx, r15)?;
        asm.c.shr(rdx, 1)?;
        asm.c.add(rax, rdx)?;
        asm.c.xor(gpr32::edx, gpr32::edx)?;
        asm.c.div(r15)?;
        // 2^(shift-1), and 0 for no shift, less the sum.
        asm.c.shlx(rdi, rdi, rcx)?;
        asm.c.shr(rdi, 1)?;
        asm.c.sub(rdi, rbp)?;
        asm.c.mov(dword_ptr(record(0)), gpr32::eax)?;
        asm.c.mov(dword_ptr(record(4)), gpr32::edi)?;
        Ok(asm.c.mov(qword_ptr(record(8)), rcx)?)
    }

    /// The floor of the root of r12 (1 to 2^63 - 1) in r15.
    fn square_root(&self, asm: &mut Asm) -> Assembled {
        let table: Vec<u8> = (64..256u64).flat_map(first_root).collect();
        let table = asm.bytes(&table);
        asm.c.lzcnt(rcx, r12)?;
        asm.c.and(rcx, -2)?;
        asm.c.shlx(rdi, r12, rcx)?;
        asm.c.mov(rax, rdi)?;
        asm.c.shr(rax, 56)?;
        asm.c.lea(rdx, ptr(table))?;
        asm.c.mov(gpr32::r15d, dword_ptr(rdx + rax * 4 - 64 * 4))?;
        for _ in 0..2 {
            asm.c.mov(rax, rdi)?;
            asm.c.xor(gpr32::edx, gpr32::edx)?;
            asm.c.div(r15)?;
            asm.c.add(r15, rax)?;
            asm.c.shr(r15, 1)?;
        }
        asm.c.shr(rcx, 1)?;
        asm.c.shrx(r15, r15, rcx)?;
        asm.c.mov(rax, r15)?;
        asm.c.imul_2(rax, r15)?;
        asm.c.cmp(r12, rax)?;
        Ok(asm.c.sbb(r15, 0)?)
    }

    // ---- results

    fn results(&self, asm: &mut Asm) -> Assembled {
        asm.c.vpbroadcastd(z(0), dword_ptr(record(0)))?;
        asm.c.vpbroadcastd(z(1), dword_ptr(record(4)))?;
        asm.c.vmovq(x(2), qword_ptr(record(8)))?;
        for (walker, start) in [(rdx, rbx), (rax, r8), (rcx, r9), (rdi, r10)] {
            asm.c.mov(walker, start)?;
        }
        let bytes = self.operands[3].elem.bytes() as i64;
        each_vector(asm, self.c, WORDS, &[(rdx, 2), (rax, 4), (rcx, 4), (rdi, bytes)], &mut |asm, i, part| {
            let step = (i * WORDS) as i64;
            self.normalise(asm, 3 + i as u8, [at(rdx, 2 * step), at(rax, 4 * step), at(rcx, 4 * step)], part)?;
            self.store(asm, 3 + i as u8, at(rdi, bytes * step), part)
        })
    }

    /// Sixteen results, before saturation, in register `n`.
    fn normalise(&self, asm: &mut Asm, n: u8, [x_at, gamma, beta]: [AsmMemoryOperand; 3], part: bool) -> Assembled {
        let v = z(n);
        let masked = |v: AsmRegisterZmm| if part { v.k2().z() } else { v };
        // The upper halves of the lanes are zero, so that each pair of products is one.
        asm.c.vpmovzxwd(masked(v), ymmword_ptr(x_at))?;
        asm.c.vpmaddwd(v, v, z(COUNT))?;
        asm.c.vpaddd(v, v, z(1))?;
        asm.c.vpsrad(v, v, x(2))?;
        asm.c.vpmulld(v, v, z(0))?;
        asm.c.vpaddd(v, v, z(HALF))?;
        asm.c.vpsrad(v, v, self.recip_bits)?;
        asm.c.vpmulld(masked(v), v, zmmword_ptr(gamma))?;
        asm.c.vpaddd(masked(v), v, zmmword_ptr(beta))?;
        debug_assert_eq!(TAIL_WORDS, 2);
        Ok(asm.c.vpsrad(v, v, self.shift)?)
    }

    /// Adds the zero point, saturates and stores. A value is bounded before the zero point is added, or it could wrap; what
    /// is at least the lower bound can then count as unsigned.
    fn store(&self, asm: &mut Asm, n: u8, to: AsmMemoryOperand, part: bool) -> Assembled {
        let (elem, v) = (self.operands[3].elem, z(n));
        let unsigned = elem == Elem::U8;
        if unsigned || self.zero_point != 0 {
            asm.c.vpmaxsd(v, v, z(LEAST))?;
            if !unsigned {
                asm.c.vpminsd(v, v, z(MOST))?;
            }
            asm.c.vpaddd(v, v, z(ZERO_POINT))?;
        }
        let masked = |m: AsmMemoryOperand| if part { m.k2() } else { m };
        match elem {
            Elem::U8 => asm.c.vpmovusdb(masked(xmmword_ptr(to)), v)?,
            Elem::I8 => asm.c.vpmovsdb(masked(xmmword_ptr(to)), v)?,
            _ => asm.c.vpmovsdw(masked(ymmword_ptr(to)), v)?,
        }
        Ok(())
    }
}

/// How elements are brought together to be added.
#[derive(Clone, Copy)]
enum Shuffle {
    Quarters,
    Words,
}

/// Byte `n` of the record of the row at hand.
fn record(n: i32) -> AsmMemoryOperand {
    rsp + r14 + n
}

/// Four bytes: about the root of numbers with this top byte, of 64 bits.
fn first_root(top: u64) -> [u8; 4] {
    u32::try_from(((2 * top + 1) << 55).isqrt()).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use crate::{Tier, testing};

    /// The root of `v` by the leaf's own code.
    fn roots(values: &[u64]) -> Vec<u64> {
        let (mut leaf, norm) = (Asm::leaf().unwrap(), norm());
        leaf.c.mov(r12, qword_ptr(rdi)).unwrap();
        leaf.c.mov(rbx, rdi).unwrap();
        norm.square_root(&mut leaf).unwrap();
        leaf.c.mov(qword_ptr(rbx), r15).unwrap();
        let code = vitc_runtime::CodeMemory::new(&leaf.finish().unwrap()).unwrap();
        // SAFETY: the code is a leaf, which has less to ask for than a kernel.
        let leaf = unsafe { code.kernel(0) }.unwrap();
        let root = |&v: &u64| {
            let mut block = [testing::Guarded::of(&[v])];
            // SAFETY: the block is the one value that this leaf reads and writes.
            unsafe { leaf(block[0].ptr().cast(), 0, 0, 0, std::ptr::null_mut()) };
            block[0].values::<u64>()[0]
        };
        values.iter().map(root).collect()
    }

    fn norm() -> WideNorm {
        let operand =
            |elem| Operand { elem, offset: crate::view::Lin::ZERO, rows: vec![], columns: Columns::Stride(1) };
        let operands = [Elem::I16, Elem::I32, Elem::I32, Elem::U8].map(operand);
        let work = Work::LayerNorm {
            epsilon: 1,
            centred: true,
            guard: 5,
            norm_bits: 9,
            recip_bits: 12,
            shift: 8,
            zero_point: 0,
        };
        WideNorm::of(&Rows { sizes: vec![], c: 192, operands: operands.into(), work }).unwrap()
    }

    #[test]
    fn roots_are_floors() {
        if !Tier::available().into_iter().any(Tier::is_wide) {
            return;
        }
        let mut values: Vec<u64> = (1..300).chain([i64::MAX as u64, 1 << 62, (1 << 62) - 1]).collect();
        let mut random = Random(1);
        for bits in 1..32 {
            for _ in 0..8 {
                let root = (1 << (bits - 1)) + random.next() % (1 << (bits - 1));
                values.extend([root * root - 1, root * root, root * root + 1, root * root + 2 * root]);
            }
        }
        values.retain(|&v| v > 0);
        let want: Vec<u64> = values.iter().map(|v| v.isqrt()).collect();
        assert_eq!(roots(&values), want);
    }
}
