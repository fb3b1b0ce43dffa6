//! Matrix products with constant weights on the tile unit: the leaf that takes the place of the `vpdpbusd` one for 16 rows
//! and more.
//!
//! ```text
//! for panel of 64 columns
//!   for chunk of k                    a panel's chunk stays in L1 while all rows pass; mostly there is one. Weights that
//!                                     lie two to a byte are unpacked for it
//!     for block of 16 rows            the last one starts earlier and computes some rows again
//!       for step of 64 k              a tile of a, four of b, four products
//! ```
//!
//! Tiles: tmm0-3 sums of 16 rows x 16 columns each, tmm4-5 a, tmm6-7 b; the first step alone, then two at a time. A tile of
//! b is 16 groups of four k, 256 bytes apart in the panel.
//!
//! The loop over blocks is pipelined. In its first step a block stores the sums of the block before, tile by tile, each just
//! before it starts its own; stored at the end of a block they would wait for the products. Between its later products a
//! block runs the lane program on the rows that were just stored. So outputs and inputs of the lane program follow one block
//! behind. Three lines of the next chunk of weights are fetched with every two products.
//!
//! With several chunks the sums of every block lie in scratch between them, and are loaded instead of started.
//!
//! Registers: rcx rows of a, r10 their stride, rdx weights, r11 the stride of weights and sums, rbx the line to fetch next;
//! rsi and rax where the sums start and with what stride; of the block before: r9 sums, r8 outputs, and the inputs.

use iced_x86::code_asm::registers::gpr64::{r8, r9, r10, r11, rax, rbx, rcx, rdi, rdx, rsi};
use iced_x86::code_asm::registers::tmm::{tmm0, tmm1, tmm2, tmm3, tmm4, tmm5, tmm6, tmm7};
use iced_x86::code_asm::{AsmMemoryOperand, AsmRegister64, AsmRegisterTmm, CodeLabel, ptr, qword_ptr};

use super::asm::{Asm, Assembled, at};
use super::gemm::{EXTRAS, PANEL, Slot, WideGemm, slot};
use super::lane::{Feed, masks};
use super::nibbles;

/// Rows of a block.
pub(super) const BLOCK: usize = 16;
/// Bytes from row to row of sums, and from group to group of weights.
const STRIDE: usize = 4 * PANEL;
/// Bytes of a block's sums.
const SUMS: usize = BLOCK * STRIDE;
/// K of a product of tiles.
const STEP: usize = 64;
/// Most steps of a chunk: 32 KB of weights.
const MOST_STEPS: usize = 8;
/// Steps of a chunk when there are several, best first.
const CHUNKS: [usize; 6] = [6, 8, 7, 5, 4, 3];

const TILES: [AsmRegisterTmm; 4] = [tmm0, tmm1, tmm2, tmm3];
const LEFT: [AsmRegisterTmm; 2] = [tmm4, tmm5];
const RIGHT: [AsmRegisterTmm; 2] = [tmm6, tmm7];

/// What the leaf keeps in its block of values, behind what every leaf has there.
#[derive(Clone, Copy)]
enum State {
    /// Scratch for sums; given by the kernel.
    Sums,
    /// First row of the block at hand.
    Row,
    /// Chunks after the one at hand.
    Chunks,
    /// Sums of the block at hand.
    Block,
    /// What the next block does with the sums of the one at hand.
    Then,
    /// Weights at hand in memory, where they lie two to a byte.
    Packed,
}

/// Values that the leaf's block has behind those of every leaf: scratch for sums, and room.
pub(super) const STATES: usize = 6;

fn state(s: State) -> AsmMemoryOperand {
    qword_ptr(at(rdi, Slot::Extra(EXTRAS.len()).offset() + 8 * s as i64))
}

/// What a block does with the sums of the block before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Stores them; there are more chunks to add.
    Keep = 0,
    /// Stores them and runs the lane program on whole rows.
    Whole = 1,
    /// The same for rows of the last panel, which has fewer columns.
    Narrow = 2,
}

/// How K is cut: chunks of as many steps.
#[derive(Clone, Copy)]
struct Cut {
    chunks: usize,
    steps: usize,
}

impl Cut {
    fn of(k: usize) -> Cut {
        let needed = k.div_ceil(STEP);
        if needed <= MOST_STEPS {
            return Cut { chunks: 1, steps: needed };
        }
        let cut = |all: usize| CHUNKS.into_iter().find(|&s| all.is_multiple_of(s));
        let (all, steps) = (needed..).find_map(|all| cut(all).map(|s| (all, s))).expect("every sixth number");
        Cut { chunks: all / steps, steps }
    }

    /// K of a chunk.
    fn depth(self) -> usize {
        self.steps * STEP
    }
}

/// K as the tile unit takes it, padded with zeros.
pub(super) fn depth(k: usize) -> usize {
    let cut = Cut::of(k);
    cut.chunks * cut.depth()
}

/// Most rows at a time for the sums to stay near, where they lie in scratch between chunks.
pub(super) fn most_rows(k: usize) -> Option<usize> {
    (Cut::of(k).chunks > 1).then_some(512)
}

/// Bytes of scratch for the sums of so many rows.
pub(super) fn sums_bytes(k: usize, rows: usize) -> usize {
    if Cut::of(k).chunks > 1 { rows.div_ceil(BLOCK) * SUMS } else { SUMS }
}

/// The leaf's code.
pub(super) fn assemble(g: &WideGemm) -> Assembled<Vec<u8>> {
    let mut asm = Asm::leaf()?;
    let leaf = Leaf { g, cut: Cut::of(g.k) };
    leaf.emit(&mut asm)?;
    asm.finish()
}

struct Leaf<'g> {
    g: &'g WideGemm,
    cut: Cut,
}

impl Leaf<'_> {
    fn is_chunked(&self) -> bool {
        self.cut.chunks > 1
    }

    /// Bytes of a chunk of weights in memory.
    fn chunk_bytes(&self) -> i64 {
        self.g.layout().packed_len(self.cut.depth(), PANEL) as i64
    }

    /// What can come of a block's sums, in this product.
    fn cases(&self) -> Vec<Then> {
        let whole = (self.g.n >= PANEL).then_some(Then::Whole);
        let narrow = (!self.g.n.is_multiple_of(PANEL)).then_some(Then::Narrow);
        [Some(Then::Keep), whole, narrow].into_iter().flatten().collect()
    }

    fn columns(&self, then: Then) -> usize {
        match then {
            Then::Keep => 0,
            Then::Whole => PANEL,
            Then::Narrow => self.g.n % PANEL,
        }
    }

    fn emit(&self, asm: &mut Asm) -> Assembled {
        let cases: Vec<(Then, CodeLabel)> = self.cases().into_iter().map(|then| (then, asm.c.create_label())).collect();
        let (mut next, mut drain) = (asm.c.create_label(), asm.c.create_label());
        self.start(asm)?;
        // The first block stores the zeros that the tiles hold.
        asm.c.jmp(cases[0].1)?;
        for &(then, mut label) in &cases {
            asm.c.set_label(&mut label)?;
            self.block(asm, then)?;
            asm.c.jmp(next)?;
        }
        asm.c.set_label(&mut next)?;
        self.follow(asm)?;
        self.advance(asm, drain)?;
        self.locate(asm)?;
        self.dispatch(asm, &cases)?;
        asm.c.set_label(&mut drain)?;
        self.finish(asm)
    }

    /// The last block: where threads share columns, of a whole panel or of the narrow one.
    fn finish(&self, asm: &mut Asm) -> Assembled {
        let cases = self.cases();
        let [_, others @ .., last] = &cases[..] else { unreachable!("there are columns") };
        if let (true, [other]) = (self.g.by_columns, others) {
            let (mut narrow, mut done) = (asm.c.create_label(), asm.c.create_label());
            asm.c.cmp(state(State::Then), *last as i32)?;
            asm.c.je(narrow)?;
            self.drain(asm, *other)?;
            asm.c.jmp(done)?;
            asm.c.set_label(&mut narrow)?;
            self.drain(asm, *last)?;
            asm.c.set_label(&mut done)?;
            return Ok(asm.c.nop()?);
        }
        self.drain(asm, *last)
    }

    fn start(&self, asm: &mut Asm) -> Assembled {
        masks(asm, self.g.n % PANEL)?;
        let config = asm.bytes(&config());
        asm.c.ldtilecfg(ptr(config))?;
        asm.c.mov(r10, self.g.a_stride())?;
        asm.c.mov(r11, STRIDE as u64)?;
        asm.c.mov(r9, state(State::Sums))?;
        asm.c.mov(state(State::Block), r9)?;
        asm.c.mov(state(State::Row), 0i32)?;
        asm.c.mov(state(State::Chunks), self.cut.chunks as i32 - 1)?;
        if self.g.by_columns {
            asm.c.mov(rax, slot(Slot::Panels))?;
            asm.c.add(rax, slot(Slot::Narrow))?;
            asm.c.dec(rax)?;
            asm.c.mov(slot(Slot::Panels), rax)?;
        } else {
            asm.c.mov(slot(Slot::Panels), self.g.n.div_ceil(PANEL) as i32 - 1)?;
        }
        asm.c.mov(rdx, slot(Slot::B))?;
        asm.c.lea(rbx, ptr(at(rdx, self.chunk_bytes())))?;
        if self.g.nibbles {
            asm.c.mov(state(State::Packed), rdx)?;
            asm.c.mov(rdx, slot(Slot::Unpacked))?;
            self.unpack(asm)?;
        }
        self.locate(asm)
    }

    /// The chunk at hand, from memory to scratch.
    fn unpack(&self, asm: &mut Asm) -> Assembled {
        asm.c.mov(nibbles::FROM, state(State::Packed))?;
        asm.c.mov(nibbles::TO, rdx)?;
        nibbles::unpack(asm, self.cut.depth())
    }

    // ---- one block

    /// The products of the block at hand, and what is left to do for the block before.
    fn block(&self, asm: &mut Asm, then: Then) -> Assembled {
        let later: Vec<usize> = (1..self.cut.steps).collect();
        let mut products = 0;
        self.group(asm, &[0], &mut products, |_| Ok(()))?;
        let pieces = TILES.len() * later.len().div_ceil(2);
        let rows = if then == Then::Keep { 0 } else { BLOCK };
        let (mut piece, mut row) = (0, 0);
        for steps in later.chunks(2) {
            self.group(asm, steps, &mut products, |asm| {
                piece += 1;
                (row..rows * piece / pieces).try_for_each(|row| self.outputs(asm, then, row))?;
                row = rows * piece / pieces;
                Ok(())
            })?;
        }
        (row..rows).try_for_each(|row| self.outputs(asm, then, row))
    }

    /// One or two steps of 64 k; `between` the products of one tile of sums and the next.
    fn group(
        &self,
        asm: &mut Asm,
        steps: &[usize],
        products: &mut usize,
        mut between: impl FnMut(&mut Asm) -> Assembled,
    ) -> Assembled {
        for (i, step) in steps.iter().enumerate() {
            asm.c.tileloadd(LEFT[i], ptr(rcx + r10 + (STEP * step) as i32))?;
        }
        for (column, sums) in TILES.into_iter().enumerate() {
            if steps[0] == 0 {
                self.turn_over(asm, column)?;
            }
            for (i, step) in steps.iter().enumerate() {
                let right = RIGHT[if steps.len() == 1 { column % 2 } else { i }];
                let weights = STEP * PANEL * step + 64 * column;
                asm.c.tileloadd(right, ptr(rdx + r11 + weights as i32))?;
                asm.c.tdpbusd(sums, LEFT[i], right)?;
                *products += 1;
                if products.is_multiple_of(2) {
                    self.fetch(asm, *products / 2 - 1)?;
                }
            }
            between(asm)?;
        }
        Ok(())
    }

    /// Stores a tile of the block before and starts that of the block at hand.
    fn turn_over(&self, asm: &mut Asm, column: usize) -> Assembled {
        let (sums, part) = (TILES[column], 64 * column as i32);
        asm.c.tilestored(ptr(r9 + r11 + part), sums)?;
        match self.g.started || self.is_chunked() {
            true => asm.c.tileloadd(sums, ptr(rsi + rax + part))?,
            false => asm.c.tilezero(sums)?,
        }
        Ok(())
    }

    fn fetch(&self, asm: &mut Asm, pair: usize) -> Assembled {
        for line in 3 * pair..3 * pair + 3 {
            asm.c.prefetcht0(ptr(at(rbx, 64 * line as i64)))?;
        }
        Ok(())
    }

    /// Bytes of the next chunk that a block fetches: three lines for every two products.
    fn fetched(&self) -> i64 {
        (self.cut.steps * TILES.len() / 2 * 3 * 64) as i64
    }

    /// The lane program on a row of the block before.
    fn outputs(&self, asm: &mut Asm, then: Then, row: usize) -> Assembled {
        let sums = Feed::Row(r9, (STRIDE * row) as i64);
        let free: Vec<u8> = (0..32).collect();
        self.g.outputs(asm, sums, row, self.columns(then), &free)
    }

    // ---- from block to block

    /// The block at hand becomes the block before.
    fn follow(&self, asm: &mut Asm) -> Assembled {
        let mut done = asm.c.create_label();
        if self.is_chunked() {
            asm.c.mov(r9, state(State::Block))?;
            asm.c.mov(state(State::Then), Then::Keep as i32)?;
            asm.c.cmp(state(State::Chunks), 0i32)?;
            asm.c.jne(done)?;
        }
        asm.c.mov(state(State::Then), Then::Whole as i32)?;
        asm.c.mov(rsi, state(State::Row))?;
        for (register, from, stride) in self.walkers() {
            asm.c.mov(register, slot(from))?;
            if stride != 0 {
                asm.c.imul_3(rax, rsi, stride as i32)?;
                asm.c.add(register, rax)?;
            }
        }
        if !self.g.n.is_multiple_of(PANEL) {
            asm.c.cmp(slot(Slot::Panels), 0i32)?;
            asm.c.jne(done)?;
            if self.g.by_columns {
                asm.c.cmp(slot(Slot::Narrow), 0i32)?;
                asm.c.je(done)?;
            }
            asm.c.mov(state(State::Then), Then::Narrow as i32)?;
        }
        asm.c.set_label(&mut done)?;
        asm.c.nop()?;
        Ok(())
    }

    /// Outputs and inputs of the lane program: registers, where a panel has its first row, and bytes from row to row.
    fn walkers(&self) -> Vec<(AsmRegister64, Slot, i64)> {
        let out = (r8, Slot::Out, self.g.out.row_stride());
        let extras = self.g.extras.iter().enumerate();
        std::iter::once(out).chain(extras.map(|(i, o)| (EXTRAS[i], Slot::Extra(i), o.row_stride()))).collect()
    }

    /// Moves on to the next block; to `end` from the last one.
    fn advance(&self, asm: &mut Asm, end: CodeLabel) -> Assembled {
        let (mut chunk, mut done) = (asm.c.create_label(), asm.c.create_label());
        self.advance_fetching(asm)?;
        asm.c.mov(rax, state(State::Row))?;
        asm.c.mov(rsi, slot(Slot::Rows))?;
        asm.c.sub(rsi, BLOCK as i32)?;
        asm.c.cmp(rax, rsi)?;
        asm.c.je(chunk)?;
        asm.c.add(rax, BLOCK as i32)?;
        asm.c.cmp(rax, rsi)?;
        asm.c.cmovg(rax, rsi)?;
        asm.c.mov(state(State::Row), rax)?;
        if self.is_chunked() {
            asm.c.add(state(State::Block), SUMS as i32)?;
        }
        asm.c.jmp(done)?;
        asm.c.set_label(&mut chunk)?;
        self.advance_chunk(asm, end)?;
        asm.c.set_label(&mut done)?;
        asm.c.nop()?;
        Ok(())
    }

    /// Further lines of the next chunk, or again its last ones: what lies behind it would displace it.
    fn advance_fetching(&self, asm: &mut Asm) -> Assembled {
        let last = 2 * self.chunk_bytes() - self.fetched();
        if self.g.nibbles {
            asm.c.mov(rax, state(State::Packed))?;
            asm.advance(rax, last)?;
        } else {
            asm.c.lea(rax, ptr(at(rdx, last)))?;
        }
        asm.advance(rbx, self.fetched())?;
        asm.c.cmp(rbx, rax)?;
        asm.c.cmova(rbx, rax)?;
        Ok(())
    }

    /// The first block of the next chunk; its weights follow those of this one, in the next panel as well.
    fn advance_chunk(&self, asm: &mut Asm, end: CodeLabel) -> Assembled {
        let mut same_panel = asm.c.create_label();
        asm.c.mov(state(State::Row), 0i32)?;
        self.advance_weights(asm)?;
        if self.is_chunked() {
            asm.c.mov(rax, state(State::Sums))?;
            asm.c.mov(state(State::Block), rax)?;
            asm.c.dec(state(State::Chunks))?;
            asm.c.jns(same_panel)?;
            asm.c.mov(state(State::Chunks), self.cut.chunks as i32 - 1)?;
        }
        asm.c.dec(slot(Slot::Panels))?;
        asm.c.js(end)?;
        self.g.next_panel(asm)?;
        asm.c.set_label(&mut same_panel)?;
        if self.g.nibbles { self.unpack(asm) } else { Ok(asm.c.nop()?) }
    }

    /// The weights at hand are those of the next chunk; what is fetched are those behind them.
    fn advance_weights(&self, asm: &mut Asm) -> Assembled {
        let bytes = self.chunk_bytes();
        if self.g.nibbles {
            asm.c.mov(rbx, state(State::Packed))?;
            asm.advance(rbx, bytes)?;
            asm.c.mov(state(State::Packed), rbx)?;
            return asm.advance(rbx, bytes);
        }
        asm.advance(rdx, bytes)?;
        Ok(asm.c.lea(rbx, ptr(at(rdx, bytes)))?)
    }

    /// Where the block at hand finds its rows of a, and what its sums start with.
    fn locate(&self, asm: &mut Asm) -> Assembled {
        asm.c.imul_3(rcx, state(State::Row), self.g.a_stride() as i32)?;
        asm.c.add(rcx, slot(Slot::A))?;
        if self.is_chunked() {
            let bytes = self.cut.depth() as i64;
            asm.c.imul_3(rax, state(State::Chunks), -bytes as i32)?;
            asm.c.lea(rcx, ptr(rcx + rax + ((self.cut.chunks as i64 - 1) * bytes) as i32))?;
        }
        if self.g.started {
            asm.c.mov(rsi, slot(Slot::Corrections))?;
        } else if self.is_chunked() {
            let zeros = asm.bytes(&[0; STRIDE]);
            asm.c.lea(rsi, ptr(zeros))?;
        }
        // One row for all.
        asm.c.mov(rax, 0u64)?;
        if self.is_chunked() {
            let mut first = asm.c.create_label();
            asm.c.cmp(state(State::Chunks), self.cut.chunks as i32 - 1)?;
            asm.c.je(first)?;
            asm.c.mov(rsi, state(State::Block))?;
            asm.c.mov(rax, r11)?;
            asm.c.set_label(&mut first)?;
        }
        asm.c.nop()?;
        Ok(())
    }

    fn dispatch(&self, asm: &mut Asm, cases: &[(Then, CodeLabel)]) -> Assembled {
        let [others @ .., (_, last)] = cases else { unreachable!("there is always something to do") };
        for &(then, label) in others.iter().filter(|(then, _)| *then != Then::Keep || self.is_chunked()) {
            asm.c.cmp(state(State::Then), then as i32)?;
            asm.c.je(label)?;
        }
        Ok(asm.c.jmp(*last)?)
    }

    /// The lane program on the last block.
    fn drain(&self, asm: &mut Asm, then: Then) -> Assembled {
        for (column, sums) in TILES.into_iter().enumerate() {
            asm.c.tilestored(ptr(r9 + r11 + 64 * column as i32), sums)?;
        }
        asm.c.tilerelease()?;
        asm.c.mov(rsi, BLOCK as u64)?;
        asm.repeat(rsi, |asm| {
            self.outputs(asm, then, 0)?;
            asm.advance(r9, STRIDE as i64)?;
            self.walkers().into_iter().try_for_each(|(register, _, stride)| asm.advance(register, stride))
        })
    }
}

/// Palette 1, every tile 16 rows of 64 bytes.
fn config() -> [u8; 64] {
    let mut config = [0; 64];
    config[0] = 1;
    for tile in 0..8 {
        (config[16 + 2 * tile], config[48 + tile]) = (64, BLOCK as u8);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_is_cut_into_chunks_that_fit_the_first_level_cache() {
        for k in 1..6000 {
            let cut = Cut::of(k);
            assert!(cut.steps <= MOST_STEPS && depth(k) >= k && depth(k) == cut.chunks * cut.steps * STEP);
            assert!(depth(k) <= k.next_multiple_of(STEP) + 2 * STEP, "{k}");
        }
        let cut = |k| (Cut::of(k).chunks, Cut::of(k).steps);
        assert_eq!([192, 384, 768, 1536, 3072].map(cut), [(1, 3), (1, 6), (2, 6), (4, 6), (8, 6)]);
    }
}
