//! The leaf over rows of q on the tile unit: scores of a block of rows, then their softmax. The product of the weights with the
//! values follows when all rows of a chunk have theirs: a leaf of `WideGemm` does it.
//!
//! ```text
//! for block of 16 rows            the last one starts earlier and computes some rows again; fewer rows are one block
//!   for sixteen keys              a tile of sums, which starts with the keys' corrections
//!     for step over d             a tile of q, one of keys, a product
//!   softmax for row
//! ```
//!
//! Tiles: tmm0-3 sums of 16 rows x 16 keys in turn, each stored before it starts again, so that stores do not wait for
//! products; tmm4-5 q, loaded once for a block where two hold all of d; tmm6-7 keys. d is cut into equal steps, and rows and
//! groups of four d are those of the configuration: nothing is padded but the last four d. The unit multiplies signed bytes
//! of q as well as unsigned ones.
//!
//! Registers: rcx rows of q, r10 their stride; rbx keys, r11 the stride of their groups; r9 corrections, rax zero: one row of
//! them is for all; r12 scores, rdx their stride; r13 terms, r14 weights; rsi first row of the block, rbp rows of a block.

use iced_x86::code_asm::registers::gpr64::{r9, r10, r11, r12, r13, r14, rax, rbp, rbx, rcx, rdi, rdx, rsi};
use iced_x86::code_asm::registers::tmm::{tmm0, tmm1, tmm2, tmm3, tmm4, tmm5, tmm6, tmm7};
use iced_x86::code_asm::{AsmRegisterTmm, ptr};

use super::softmax::Softmax;
use super::{TAIL, slot};
use crate::wide::asm::{Asm, Assembled, at, set_mask};
use crate::wide::lane::{LANES, ROW, VECTORS};
use crate::wide::pack::Panels;

/// Rows of a block.
pub(super) const BLOCK: usize = 16;
/// Most groups of four k in a tile.
const GROUPS: usize = 16;

/// The leaf's block of values.
const Q: usize = 0;
const ROWS: usize = 1;
const KEYS: usize = 2;
const CORRECTIONS: usize = 3;
const SCORES: usize = 4;
const WEIGHTS: usize = 5;
const TERMS: usize = 6;
/// Room for the configuration: eight values.
const CONFIG: usize = 7;
/// Values that the kernel gives no content.
pub(super) const ROOM: usize = 8;
/// What is added to the scores, from here on.
pub(super) const BIASES: usize = CONFIG + ROOM;

const SUMS: [AsmRegisterTmm; 4] = [tmm0, tmm1, tmm2, tmm3];
const LEFT: [AsmRegisterTmm; 2] = [tmm4, tmm5];
const RIGHT: [AsmRegisterTmm; 2] = [tmm6, tmm7];

/// How d is cut: equal steps of as many groups of four.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub steps: usize,
    pub groups: usize,
}

impl Cut {
    pub(super) fn of(d: usize) -> Cut {
        let groups = d.div_ceil(4);
        let steps = groups.div_ceil(GROUPS);
        Cut { steps, groups: groups.div_ceil(steps) }
    }

    /// Groups of four of all steps.
    pub(super) fn all_groups(self) -> usize {
        self.steps * self.groups
    }
}

/// What the code depends on.
pub(super) struct Scores<'a> {
    pub softmax: Softmax<'a>,
    pub cut: Cut,
    pub q_stride: i64,
    pub q_is_signed: bool,
    pub packed_keys: Panels,
}

impl Scores<'_> {
    pub(super) fn assemble(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        set_mask(&mut asm, TAIL, (1u64 << (self.softmax.keys % ROW)) - 1)?;
        self.configure(&mut asm)?;
        asm.c.xor(rsi, rsi)?;
        let (mut block, mut done) = (asm.c.create_label(), asm.c.create_label());
        asm.c.set_label(&mut block)?;
        self.locate(&mut asm)?;
        self.products(&mut asm)?;
        asm.c.push(rbp)?;
        asm.c.mov(rax, rsi)?;
        self.softmax.emit(&mut asm)?;
        asm.c.pop(rbp)?;
        // The next block, or the last rows if they are fewer.
        asm.c.mov(rax, slot(ROWS))?;
        asm.c.sub(rax, rbp)?;
        asm.c.cmp(rsi, rax)?;
        asm.c.je(done)?;
        asm.c.add(rsi, rbp)?;
        asm.c.cmp(rsi, rax)?;
        asm.c.cmovg(rsi, rax)?;
        asm.c.jmp(block)?;
        asm.c.set_label(&mut done)?;
        asm.c.tilerelease()?;
        asm.finish()
    }

    /// Palette 1; sums and q have the rows of a block, keys the groups of a step.
    fn configure(&self, asm: &mut Asm) -> Assembled {
        let groups = self.cut.groups as u64;
        let widths: [u16; 8] = std::array::from_fn(|tile| if matches!(tile, 4 | 5) { 4 * groups as u16 } else { 64 });
        let four = |widths: &[u16]| widths.iter().rev().fold(0u64, |all, &w| all << 16 | u64::from(w));
        asm.c.mov(rbp, BLOCK as u64)?;
        asm.c.cmp(rbp, slot(ROWS))?;
        asm.c.cmovg(rbp, slot(ROWS))?;
        for (i, value) in [1, 0, four(&widths[..4]), four(&widths[4..]), 0, 0].into_iter().enumerate() {
            asm.c.mov(rax, value)?;
            asm.c.mov(slot(CONFIG + i), rax)?;
        }
        asm.c.mov(rax, 0x0101_0101_0101u64)?;
        asm.c.imul_2(rax, rbp)?;
        asm.c.mov(rdx, groups << 48 | groups << 56)?;
        asm.c.or(rax, rdx)?;
        asm.c.mov(slot(CONFIG + 6), rax)?;
        asm.c.mov(slot(CONFIG + 7), 0i32)?;
        Ok(asm.c.ldtilecfg(ptr(at(rdi, 8 * CONFIG as i64)))?)
    }

    /// Where the block at hand finds what it needs. The softmax has used some of the registers.
    fn locate(&self, asm: &mut Asm) -> Assembled {
        let rows = [(rcx, Q, self.q_stride), (r14, WEIGHTS, self.softmax.weight_bytes as i64), (r13, TERMS, 4)];
        for (register, from, stride) in rows {
            asm.c.imul_3(register, rsi, stride as i32)?;
            asm.c.add(register, slot(from))?;
        }
        for (register, from) in [(rbx, KEYS), (r9, CORRECTIONS), (r12, SCORES)] {
            asm.c.mov(register, slot(from))?;
        }
        asm.c.mov(r10, self.q_stride)?;
        asm.c.mov(r11, Panels::group(1))?;
        asm.c.mov(rdx, self.softmax.score_bytes as u64)?;
        asm.c.xor(rax, rax)?;
        Ok(())
    }

    /// Scores of the block.
    fn products(&self, asm: &mut Asm) -> Assembled {
        let vectors = self.softmax.keys.div_ceil(LANES);
        let stays = self.cut.steps <= LEFT.len();
        for step in 0..if stays { self.cut.steps } else { 0 } {
            self.load_left(asm, step)?;
        }
        let mut products = 0;
        for vector in 0..vectors {
            if vector >= SUMS.len() {
                self.store(asm, vector - SUMS.len())?;
            }
            let sums = SUMS[vector % SUMS.len()];
            asm.c.tileloadd(sums, ptr(r9 + rax + 64 * vector as i32))?;
            for step in 0..self.cut.steps {
                if !stays {
                    self.load_left(asm, step)?;
                }
                let right = RIGHT[products % RIGHT.len()];
                let panel = (vector / VECTORS) as i64 * self.packed_keys.bytes();
                let from = panel + Panels::group(step * self.cut.groups) + 64 * (vector % VECTORS) as i64;
                asm.c.tileloadd(right, ptr(rbx + r11 + from as i32))?;
                let left = LEFT[step % LEFT.len()];
                match self.q_is_signed {
                    true => asm.c.tdpbssd(sums, left, right)?,
                    false => asm.c.tdpbusd(sums, left, right)?,
                }
                products += 1;
            }
        }
        (vectors.saturating_sub(SUMS.len())..vectors).try_for_each(|vector| self.store(asm, vector))
    }

    fn load_left(&self, asm: &mut Asm, step: usize) -> Assembled {
        let from = 4 * self.cut.groups * step;
        Ok(asm.c.tileloadd(LEFT[step % LEFT.len()], ptr(rcx + r10 + from as i32))?)
    }

    fn store(&self, asm: &mut Asm, vector: usize) -> Assembled {
        Ok(asm.c.tilestored(ptr(r12 + rdx + 64 * vector as i32), SUMS[vector % SUMS.len()])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d_is_cut_into_equal_steps() {
        for d in 1..=1024 {
            let cut = Cut::of(d);
            let bytes = 4 * cut.all_groups();
            assert!(cut.groups <= GROUPS && bytes >= d && bytes < d + 4 * cut.steps + 4, "{d}");
        }
        let cut = |d| (Cut::of(d).steps, Cut::of(d).groups);
        assert_eq!([16, 32, 64, 80, 128, 10].map(cut), [(1, 4), (1, 8), (1, 16), (2, 10), (2, 16), (1, 3)]);
    }
}
