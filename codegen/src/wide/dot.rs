//! Register tiles of `vpdpbusd`: the loop over k that all products of the wide tiers share, and the walk of a leaf over its
//! rows.
//!
//! ```text
//! for tile of 6 rows              a last tile of three to five rows starts earlier and computes some rows again
//!   for k in steps of 4           24 products of 6 rows x 4 vectors for 10 loads
//! ```
//!
//! Registers, of 32: 6 rows x 4 vectors of sixteen `i32` sums (zmm0-23), 4 vectors of b (zmm24-27: four k of sixteen columns
//! each), 2 that hold four k of a row of a in every lane (zmm28-29). b lies in panels of 64 columns: 256 bytes for four k.

use iced_x86::code_asm::registers::gpr64::{r10, r11, rax, rsi};
use iced_x86::code_asm::{AsmMemoryOperand, AsmRegister64, dword_ptr, ptr, zmmword_ptr};

use super::asm::{Asm, Assembled, at, z};
use super::lane::VECTORS;
use super::nibbles;

/// Rows of a register tile: with four vectors each, 24 of 32 registers.
pub(super) const TILE: usize = 6;
/// Rows behind the last whole tile that cost less one at a time than in a tile with some of those before: alone, a row takes a
/// step of four loads from the second-level cache, a tile one of 24 products.
pub(super) const FEW: usize = 2;
/// Steps of four k in one turn of the inner loop: enough that the loop's own instructions vanish.
const UNROLL: usize = 4;
/// The two registers that hold elements of a.
const SPLAT: [u8; 2] = [28, 29];
/// The first of four registers that hold b; those from here on are free once the sums are done.
pub(super) const RIGHT: u8 = 24;
/// Two more hold what unpacking needs, in a tile that does it.
const NIBBLES: nibbles::Constants = nibbles::Constants { mask: 30, signed: 31 };

/// How a tile of rows finds the right side.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// As it is multiplied.
    Bytes,
    /// Two elements to a byte; the tile leaves them unpacked where this register points, which moves on.
    Nibbles { to: AsmRegister64 },
}

impl Right {
    /// Bytes of four k of a panel.
    fn group_bytes(self) -> i64 {
        match self {
            Right::Bytes => nibbles::GROUP,
            Right::Nibbles { .. } => nibbles::PACKED_GROUP,
        }
    }
}

/// A tile of rows times vectors of a panel. The sums have started; the loop clobbers rax, r10 and r11.
pub(super) struct Tile {
    pub rows: usize,
    pub vectors: usize,
    /// Runs of four k side by side in a row of a.
    pub runs: Runs,
    /// First row of a, and bytes from row to row.
    pub a: (AsmRegister64, i64),
    /// Bytes of a row of a from the k of the first vector of b to those of each: none, but where groups lie side by side.
    pub offsets: [i64; VECTORS],
    /// First vector of b.
    pub b: AsmRegister64,
    pub right: Right,
    /// Walks lines that something later will want: one is fetched in every turn of the loop.
    pub fetch: Option<AsmRegister64>,
}

/// How the k of a row of a lie: `count` runs of `steps` times four bytes, `stride` bytes apart.
#[derive(Clone, Copy)]
pub(super) struct Runs {
    pub count: usize,
    pub steps: usize,
    pub stride: i64,
}

impl Runs {
    /// One run.
    pub(super) fn one(steps: usize) -> Runs {
        Runs { count: 1, steps, stride: 0 }
    }
}

/// The register of a tile's sums.
pub(super) fn sum(row: usize, vector: usize) -> u8 {
    (row * VECTORS + vector) as u8
}

impl Tile {
    /// Adds the products over all of k to the sums.
    pub(super) fn multiply(&self, asm: &mut Asm) -> Assembled {
        asm.c.mov(r10, self.a.0)?;
        asm.c.mov(r11, self.b)?;
        if self.right != Right::Bytes {
            NIBBLES.load(asm)?;
        }
        let rest = (self.runs.steps % UNROLL) as i64;
        for run in 0..self.runs.count {
            self.run(asm)?;
            if run + 1 < self.runs.count {
                // Turns have moved both, what was left over has not.
                asm.advance(r10, self.runs.stride - 4 * (self.runs.steps as i64 - rest))?;
                asm.advance(r11, self.right.group_bytes() * rest)?;
            }
        }
        Ok(())
    }

    /// Adds the products of a run.
    fn run(&self, asm: &mut Asm) -> Assembled {
        let (turns, rest) = (self.runs.steps / UNROLL, self.runs.steps % UNROLL);
        if turns > 0 {
            asm.c.mov(rax, turns as u64)?;
            asm.repeat(rax, |asm| {
                (0..UNROLL).try_for_each(|step| self.step(asm, step))?;
                self.turn(asm)
            })?;
        }
        (0..rest).try_for_each(|step| self.step(asm, step))
    }

    /// What a turn of the loop does besides its products.
    fn turn(&self, asm: &mut Asm) -> Assembled {
        if let Some(line) = self.fetch {
            asm.c.prefetcht0(ptr(line))?;
            asm.advance(line, 64)?;
        }
        asm.advance(r10, 4 * UNROLL as i64)?;
        if let Right::Nibbles { to } = self.right {
            asm.advance(to, nibbles::GROUP * UNROLL as i64)?;
        }
        asm.advance(r11, self.right.group_bytes() * UNROLL as i64)
    }

    /// Four k: `step` steps on from r10 and r11.
    fn step(&self, asm: &mut Asm, step: usize) -> Assembled {
        let from = self.right.group_bytes() * step as i64;
        match self.right {
            Right::Bytes => (0..self.vectors).try_for_each(|v| {
                let line = zmmword_ptr(at(r11, from + 64 * v as i64));
                asm.c.vmovdqu32(z(RIGHT + v as u8), line)
            })?,
            Right::Nibbles { to } => {
                let lines = std::array::from_fn(|v| RIGHT + v as u8);
                NIBBLES.group(asm, (r11, from), (to, nibbles::GROUP * step as i64), lines)?;
            }
        }
        let mut splats = SPLAT.into_iter().cycle();
        for row in 0..self.rows {
            let mut splat = SPLAT[0];
            for v in 0..self.vectors {
                if v == 0 || self.offsets[v] != self.offsets[v - 1] {
                    splat = splats.next().unwrap_or(splat);
                    let from = row as i64 * self.a.1 + 4 * step as i64 + self.offsets[v];
                    asm.c.vpbroadcastd(z(splat), dword_ptr(at(r10, from)))?;
                }
                asm.c.vpdpbusd(z(sum(row, v)), z(splat), z(RIGHT + v as u8))?;
            }
        }
        Ok(())
    }
}

/// Runs `tile` on the rows that rsi counts, [`TILE`] at a time and one at a time where there are fewer in `total` or few are left. The walkers
/// are registers that follow the rows, and bytes from row to row. Clobbers rax; `tile` keeps rsi.
pub(super) fn each_tile(
    asm: &mut Asm,
    total: AsmMemoryOperand,
    walkers: &[(AsmRegister64, i64)],
    tile: impl Fn(&mut Asm, usize) -> Assembled,
) -> Assembled {
    let (mut rows, mut tail, mut single, mut done) =
        (asm.c.create_label(), asm.c.create_label(), asm.c.create_label(), asm.c.create_label());
    let most = TILE as i32;
    asm.c.set_label(&mut rows)?;
    asm.c.cmp(rsi, most)?;
    asm.c.jl(tail)?;
    tile(asm, TILE)?;
    advance(asm, walkers, TILE as i64)?;
    asm.c.sub(rsi, most)?;
    asm.c.jmp(rows)?;

    asm.c.set_label(&mut tail)?;
    asm.c.test(rsi, rsi)?;
    asm.c.jz(done)?;
    asm.c.cmp(rsi, FEW as i32)?;
    asm.c.jle(single)?;
    asm.c.cmp(total, most)?;
    asm.c.jl(single)?;
    // Some rows again: then the last tile is whole.
    asm.c.sub(rsi, most)?;
    for &(register, stride) in walkers.iter().filter(|(_, stride)| *stride != 0) {
        asm.c.imul_3(rax, rsi, stride as i32)?;
        asm.c.add(register, rax)?;
    }
    asm.c.mov(rsi, TILE as u64)?;
    asm.c.jmp(rows)?;

    asm.c.set_label(&mut single)?;
    tile(asm, 1)?;
    advance(asm, walkers, 1)?;
    asm.c.dec(rsi)?;
    asm.c.jnz(single)?;
    asm.c.set_label(&mut done)?;
    asm.c.nop()?;
    Ok(())
}

/// Moves walkers on by `rows` rows.
pub(super) fn advance(asm: &mut Asm, walkers: &[(AsmRegister64, i64)], rows: i64) -> Assembled {
    walkers.iter().try_for_each(|&(register, stride)| asm.advance(register, rows * stride))
}
