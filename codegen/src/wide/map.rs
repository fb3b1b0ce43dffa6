//! Elementwise kernels on 512-bit vectors: a lane program over rows, 64 elements at a time.
//!
//! ```text
//! for lead                       Cranelift: outer loops in which some operand is not affine
//!   leaf
//!     for row                    of a fixed number of columns; of 64 where everything runs straight through memory
//!       for group of 64          the last one under masks
//! rest of a straight run         Cranelift, fewer than 64 elements
//! ```

use cranelift_codegen::ir::{InstBuilder, Value};
use iced_x86::code_asm::registers::gpr64::{r8, r12, r13, r14, r15, rbp, rcx, rdi, rsi};
use iced_x86::code_asm::{AsmRegister64, qword_ptr};
use vitc_ir::Dim;

use super::asm::{Asm, Assembled, at};
use super::lane::{Arrangement, Feed, Group, ROW, emit as emit_lane, feed, is_supported, masks};
use crate::emit::Emit;
use crate::map::Map;
use crate::operand::{Columns, Operand, split_index};

/// The registers that walk the inputs, and the one that walks the results.
const INPUTS: [AsmRegister64; 5] = [r12, r13, r14, r15, rbp];
const OUT: AsmRegister64 = r8;

/// A lane program over all elements of a result. Arguments: the inputs, then the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WideMap(Map);

impl WideMap {
    /// The same map with a leaf, if there can be one; its code has still to fit the registers.
    pub(crate) fn of(map: &Map) -> Option<WideMap> {
        let straight = |o: &Operand| matches!(o.columns, Columns::Same | Columns::Table | Columns::Stride(1));
        let fits = map.inputs.len() <= INPUTS.len()
            && map.inputs.iter().all(|o| straight(o) && o.check_rows().is_ok())
            && map.out.columns == Columns::Stride(1)
            && map.out.check_rows().is_ok()
            && is_supported(&map.lane);
        fits.then(|| WideMap(map.clone()))
    }

    /// Columns of a row as the leaf sees it.
    fn columns(&self) -> usize {
        self.0.columns.unwrap_or(ROW)
    }

    /// The operands and the registers that walk them.
    fn walkers(&self) -> impl Iterator<Item = (AsmRegister64, &Operand)> {
        INPUTS.into_iter().zip(&self.0.inputs).chain([(OUT, &self.0.out)])
    }

    // ---- the kernel around the leaf

    pub(crate) fn emit(&self, e: &mut Emit<'_>) {
        if self.0.columns.is_none() {
            return self.straight(e);
        }
        let (inner, outer) = match self.0.sizes.split_last() {
            Some((&inner, outer)) => (inner, outer),
            None => (Dim::fixed(1), &[][..]),
        };
        e.each_turn(inner, |e, turn, from, count| {
            let indices = split_index(e, turn, outer);
            let bases = self.bases(e, &indices);
            let strides = self.walkers().map(|(_, o)| o.row_stride());
            let mut block: Vec<Value> = bases.into_iter().zip(strides).map(|(p, s)| e.at(p, from, s)).collect();
            block.push(count);
            e.call_leaf(0, &block);
        });
    }

    /// Items are elements: whole groups, then the rest.
    fn straight(&self, e: &mut Emit<'_>) {
        let (begin, end) = (e.begin, e.end);
        let count = e.b.ins().isub(end, begin);
        let bits = e.iconst(i64::from(ROW.trailing_zeros()));
        let groups = e.b.ins().ushr(count, bits);
        let bases = self.bases(e, &[]);
        let strides = self.walkers().map(|(_, o)| o.column_stride());
        let mut block: Vec<Value> = bases.iter().zip(strides).map(|(&p, s)| e.at(p, begin, s)).collect();
        block.push(groups);
        e.call_leaf(0, &block);
        let done = e.mul_imm(groups, ROW as i64);
        let rest = e.add(begin, done);
        let (out, inputs) = bases.split_last().expect("there is a result");
        self.0.columns(e, rest, end, inputs, *out);
    }

    /// Where each operand begins for these indices of the outer loops.
    fn bases(&self, e: &mut Emit<'_>, outer: &[Value]) -> Vec<Value> {
        let base = |(n, (_, operand)): (usize, (AsmRegister64, &Operand))| {
            let pointer = e.arg(n);
            operand.base(e, pointer, outer)
        };
        self.walkers().enumerate().map(base).collect()
    }

    // ---- the leaf: rsi rows, rcx groups

    /// The leaf's code.
    pub(crate) fn assemble(&self) -> Assembled<Vec<u8>> {
        let mut asm = Asm::leaf()?;
        let registers: Vec<AsmRegister64> = self.walkers().map(|(register, _)| register).chain([rsi]).collect();
        for (i, register) in registers.into_iter().enumerate() {
            asm.c.mov(register, qword_ptr(at(rdi, 8 * i as i64)))?;
        }
        let (groups, rest) = (self.columns() / ROW, self.columns() % ROW);
        masks(&mut asm, rest)?;
        let (mut row, mut done) = (asm.c.create_label(), asm.c.create_label());
        asm.c.test(rsi, rsi)?;
        asm.c.jz(done)?;
        asm.c.set_label(&mut row)?;
        if groups > 0 {
            asm.c.mov(rcx, groups as u64)?;
            asm.repeat(rcx, |asm| {
                self.group(asm, ROW)?;
                self.walkers().try_for_each(|(register, o)| asm.advance(register, group_bytes(o)))
            })?;
        }
        if rest > 0 {
            self.group(&mut asm, rest)?;
        }
        for (register, operand) in self.walkers() {
            let row = if self.0.columns.is_none() { group_bytes(operand) } else { operand.row_stride() };
            asm.advance(register, row - groups as i64 * group_bytes(operand))?;
        }
        asm.c.dec(rsi)?;
        asm.c.jnz(row)?;
        asm.c.set_label(&mut done)?;
        asm.finish()
    }

    fn group(&self, asm: &mut Asm, columns: usize) -> Assembled {
        let inputs: Vec<Feed> =
            INPUTS.into_iter().zip(&self.0.inputs).map(|(base, o)| feed(o, base, 0, false)).collect();
        let free: Vec<u8> = (0..32).collect();
        emit_lane(
            asm,
            &self.0.lane,
            &Group { inputs: &inputs, columns, out: (OUT, 0), free: &free, arrangement: Arrangement::Rows },
        )
    }
}

/// Bytes from group to group.
fn group_bytes(o: &Operand) -> i64 {
    match o.columns {
        Columns::Stride(_) => o.column_stride() * ROW as i64,
        Columns::Same | Columns::Table => 0,
    }
}
