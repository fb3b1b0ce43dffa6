//! The leaf over rows of q on vectors: six rows at a time through both products and the softmax between them, so that a tile's
//! scores and weights stay in the first-level cache.
//!
//! ```text
//! for tile of 6 rows              the last tile of fewer rows starts earlier and computes some rows again
//!   scores  for panel of 64 keys  the products of a register tile, over d
//!   softmax for row
//!   values  for panel of 64 columns, over the keys; then requantize by the row's reciprocal
//! ```
//!
//! Registers: rcx rows of q, r8 out, rsi rows left, r12 scores, r13 terms, r14 weights.

use iced_x86::code_asm::registers::gpr64::{r8, r9, r12, r13, r14, r15, rax, rbp, rbx, rcx, rsi};
use iced_x86::code_asm::{dword_ptr, zmmword_ptr};

use super::softmax::{Biases, Softmax};
use super::{TAIL, slot};
use crate::lane::LaneSpec;
use crate::operand::Operand;
use crate::wide::asm::{Asm, Assembled, at, set_mask, z};
use crate::wide::dot::{self, RIGHT, Right, Runs, Tile, sum};
use crate::wide::lane::{Arrangement, Feed, Group, LANES, ROW, VECTORS, emit as emit_lane, masks};
use crate::wide::pack::Panels;

/// The leaf's block.
const Q: usize = 0;
const OUT: usize = 1;
const ROWS: usize = 2;
const KEYS: usize = 3;
const VALUES: usize = 4;
const CORRECTIONS: usize = 5;
const SCORES: usize = 6;
const WEIGHTS: usize = 7;
const TERMS: usize = 8;
/// What is added to the scores, from here on.
pub(super) const BIASES: usize = 9;

/// What the code depends on.
pub(super) struct Rows<'a> {
    pub softmax: Softmax<'a>,
    /// What the scores start with, beside the corrections.
    pub biases: Biases,
    pub q_stride: i64,
    /// Steps of four d, and of four keys.
    pub steps: [usize; 2],
    pub packed_keys: Panels,
    pub packed_values: Panels,
    pub columns: usize,
    pub out: &'a Operand,
    pub lane: &'a LaneSpec,
}

impl Rows<'_> {
    pub(super) fn assemble(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        masks(&mut asm, self.columns % ROW)?;
        set_mask(&mut asm, TAIL, (1u64 << (self.softmax.keys % ROW)) - 1)?;
        for (register, from) in [(rcx, Q), (r8, OUT), (rsi, ROWS), (r12, SCORES), (r13, TERMS), (r14, WEIGHTS)] {
            asm.c.mov(register, slot(from))?;
        }
        let walkers = [(rcx, self.q_stride), (r8, self.out.row_stride())];
        dot::each_tile(&mut asm, slot(ROWS), &walkers, |asm, rows| {
            asm.c.mov(rax, slot(ROWS))?;
            asm.c.sub(rax, rsi)?;
            self.biases.seek(asm, self.softmax.keys)?;
            self.scores(asm, rows)?;
            asm.c.mov(rbp, rows as u64)?;
            self.softmax.emit(asm)?;
            self.values(asm, rows)
        })?;
        asm.finish()
    }

    /// Panel by panel of keys: rbx its vectors, rbp its place in the rows of scores and corrections.
    fn scores(&self, asm: &mut Asm, rows: usize) -> Assembled {
        asm.c.mov(rbx, slot(KEYS))?;
        asm.c.mov(r9, slot(CORRECTIONS))?;
        asm.c.xor(rbp, rbp)?;
        // Whole panels, and the vectors of the one behind them.
        let (panels, rest) = (self.softmax.keys / ROW, (self.softmax.keys % ROW).div_ceil(LANES));
        let bytes = 64 * VECTORS as i32;
        if panels > 0 {
            let mut panel = asm.c.create_label();
            asm.c.set_label(&mut panel)?;
            self.panel_of_scores(asm, rows, VECTORS, false)?;
            asm.advance(rbx, self.packed_keys.bytes())?;
            asm.c.add(rbp, bytes)?;
            asm.c.cmp(rbp, bytes * panels as i32)?;
            asm.c.jne(panel)?;
        }
        if rest > 0 { self.panel_of_scores(asm, rows, rest, !self.softmax.keys.is_multiple_of(LANES)) } else { Ok(()) }
    }

    /// `partial`: whether the last vector has keys that do not exist.
    fn panel_of_scores(&self, asm: &mut Asm, rows: usize, vectors: usize, partial: bool) -> Assembled {
        for v in 0..vectors {
            asm.c.vmovdqu32(z(sum(0, v)), zmmword_ptr(r9 + rbp + 64 * v as i32))?;
            for row in 1..rows {
                asm.c.vmovdqa64(z(sum(row, v)), z(sum(0, v)))?;
            }
        }
        self.biases.start(asm, (rows, vectors), rbp, |v| partial && v + 1 == vectors)?;
        let (a, steps) = ((rcx, self.q_stride), self.steps[0]);
        Tile {
            rows,
            vectors,
            runs: Runs::one(steps),
            a,
            offsets: [0; VECTORS],
            b: rbx,
            right: Right::Bytes,
            fetch: None,
        }
        .multiply(asm)?;
        for row in 0..rows {
            for v in 0..vectors {
                let to = r12 + rbp + (row * self.softmax.score_bytes + 64 * v) as i32;
                asm.c.vmovdqu32(zmmword_ptr(to), z(sum(row, v)))?;
            }
        }
        Ok(())
    }

    /// Panel by panel of columns, whose vectors are at r15.
    fn values(&self, asm: &mut Asm, rows: usize) -> Assembled {
        asm.c.mov(r15, slot(VALUES))?;
        for panel in (0..self.columns).step_by(ROW) {
            let columns = (self.columns - panel).min(ROW);
            self.panel_of_values(asm, rows, panel, columns)?;
            asm.advance(r15, self.packed_values.bytes())?;
        }
        Ok(())
    }

    fn panel_of_values(&self, asm: &mut Asm, rows: usize, panel: usize, columns: usize) -> Assembled {
        let vectors = columns.div_ceil(LANES);
        for (row, v) in (0..rows).flat_map(|row| (0..vectors).map(move |v| (row, v))) {
            let sum = z(sum(row, v));
            if self.softmax.v_zero == 0 {
                asm.c.vpxord(sum, sum, sum)?;
            } else {
                asm.c.vpbroadcastd(sum, dword_ptr(at(r13, self.softmax.starts + 4 * row as i64)))?;
            }
        }
        let (a, steps) = ((r14, self.softmax.weight_bytes as i64), self.steps[1]);
        Tile {
            rows,
            vectors,
            runs: Runs::one(steps),
            a,
            offsets: [0; VECTORS],
            b: r15,
            right: Right::Bytes,
            fetch: None,
        }
        .multiply(asm)?;
        for row in 0..rows {
            let sums = std::array::from_fn(|v| sum(row, v));
            let inputs = [Feed::Registers(sums), Feed::One(r13, 4 * row as i64)];
            let free: Vec<u8> = (0..(row * VECTORS) as u8).chain(RIGHT..32).collect();
            let to = (r8, row as i64 * self.out.row_stride() + (panel * self.out.elem.bytes()) as i64);
            emit_lane(
                asm,
                self.lane,
                &Group { inputs: &inputs, columns, out: to, free: &free, arrangement: Arrangement::Rows },
            )?;
        }
        Ok(())
    }
}
