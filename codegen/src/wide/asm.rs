//! A leaf under construction: iced-x86's assembler, registers by number, and a pool of constants behind the code.
//!
//! A leaf is a function of one argument in `rdi`, a block of pointers and counts that the kernel around it filled and that
//! the leaf may change. It keeps the callee-saved registers, uses any vector and mask register, and leaves the upper
//! halves zero for the 128-bit code that called it.

use std::collections::BTreeMap;

use cranelift_codegen::ir::Value;
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister64, AsmRegisterK, AsmRegisterXmm, AsmRegisterYmm, AsmRegisterZmm, CodeAssembler,
    CodeLabel, dword_ptr, registers,
};
use iced_x86::{IcedError, Register};
use vitc_ir::Dim;

use crate::emit::Emit;
use crate::operand::{Operand, split_index};

/// What assembling gives.
pub(crate) type Assembled<T = ()> = Result<T, Fault>;

/// Why there is no leaf.
#[derive(Debug)]
pub(crate) enum Fault {
    /// A lane program needs more registers (or a wider choice) than the leaf has: another kernel does the work.
    Registers,
    /// The generator wrote an instruction that does not exist.
    Assembler(IcedError),
}

impl From<IcedError> for Fault {
    fn from(e: IcedError) -> Fault {
        Fault::Assembler(e)
    }
}

/// Registers that a function must give back as it found them.
const CALLEE_SAVED: [AsmRegister64; 6] = [
    registers::gpr64::rbx,
    registers::gpr64::rbp,
    registers::gpr64::r12,
    registers::gpr64::r13,
    registers::gpr64::r14,
    registers::gpr64::r15,
];

/// An assembler with constants.
pub(crate) struct Asm {
    pub c: CodeAssembler,
    pool: BTreeMap<Vec<u8>, CodeLabel>,
}

impl Asm {
    /// A leaf after its prologue.
    pub(crate) fn leaf() -> Assembled<Asm> {
        let mut c = CodeAssembler::new(64)?;
        for r in CALLEE_SAVED {
            c.push(r)?;
        }
        Ok(Asm { c, pool: BTreeMap::new() })
    }

    /// The epilogue, the constants, and the bytes of it all.
    pub(crate) fn finish(mut self) -> Assembled<Vec<u8>> {
        self.c.vzeroupper()?;
        for r in CALLEE_SAVED.iter().rev() {
            self.c.pop(*r)?;
        }
        self.c.ret()?;
        // Larger first, so that each lies at a multiple of its own size from the first.
        let mut pool: Vec<(Vec<u8>, CodeLabel)> = std::mem::take(&mut self.pool).into_iter().collect();
        pool.sort_by_key(|(bytes, _)| std::cmp::Reverse(bytes.len()));
        for (bytes, mut label) in pool {
            self.c.set_label(&mut label)?;
            self.c.db(&bytes)?;
        }
        Ok(self.c.assemble(0)?)
    }

    /// Where these constant bytes lie.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> CodeLabel {
        match self.pool.get(bytes) {
            Some(&label) => label,
            None => {
                let label = self.c.create_label();
                self.pool.insert(bytes.to_vec(), label);
                label
            }
        }
    }

    /// A 32-bit constant, to be broadcast.
    pub(crate) fn dword(&mut self, v: i64) -> AsmMemoryOperand {
        let label = self.bytes(&(v as i32).to_le_bytes());
        iced_x86::code_asm::dword_bcst(label)
    }

    /// A 64-bit constant, to be broadcast.
    pub(crate) fn qword(&mut self, v: i64) -> AsmMemoryOperand {
        let label = self.bytes(&v.to_le_bytes());
        iced_x86::code_asm::qword_bcst(label)
    }

    /// A vector of 32-bit constants.
    pub(crate) fn dwords(&mut self, v: [u32; 16]) -> AsmMemoryOperand {
        let bytes: Vec<u8> = v.iter().flat_map(|v| v.to_le_bytes()).collect();
        iced_x86::code_asm::zmmword_ptr(self.bytes(&bytes))
    }

    /// `body` until the count in `counter` (at least one) is used up.
    pub(crate) fn repeat(&mut self, counter: AsmRegister64, body: impl FnOnce(&mut Asm) -> Assembled) -> Assembled {
        let mut head = self.c.create_label();
        self.c.set_label(&mut head)?;
        body(self)?;
        self.c.dec(counter)?;
        Ok(self.c.jnz(head)?)
    }

    /// `register += bytes`.
    pub(crate) fn advance(&mut self, register: AsmRegister64, bytes: i64) -> Assembled {
        match i32::try_from(bytes).expect("strides stay below 2 GiB") {
            0 => Ok(()),
            bytes => Ok(self.c.add(register, bytes)?),
        }
    }
}

/// Vector register `n`.
pub(crate) fn z(n: u8) -> AsmRegisterZmm {
    registers::zmm::get_zmm(Register::ZMM0 + u32::from(n)).expect("one of 32")
}

/// The low half of vector register `n`.
pub(crate) fn y(n: u8) -> AsmRegisterYmm {
    registers::ymm::get_ymm(Register::YMM0 + u32::from(n)).expect("one of 32")
}

/// The low quarter of vector register `n`.
pub(crate) fn x(n: u8) -> AsmRegisterXmm {
    registers::xmm::get_xmm(Register::XMM0 + u32::from(n)).expect("one of 32")
}

/// Mask register `n`.
pub(crate) fn k(n: u8) -> AsmRegisterK {
    registers::k::get_k(Register::K0 + u32::from(n)).expect("one of 8")
}

/// Memory at a register and a displacement.
pub(crate) fn at(base: AsmRegister64, disp: i64) -> AsmMemoryOperand {
    base + i32::try_from(disp).expect("displacements stay below 2 GiB")
}

/// Calls the kernel's first leaf for every turn of the outer loops, with where each operand's rows begin and how many there are.
pub(crate) fn call_by_rows(e: &mut Emit<'_>, sizes: &[Dim], operands: &[Operand]) {
    let (inner, outer) = match sizes.split_last() {
        Some((&inner, outer)) => (inner, outer),
        None => (Dim::fixed(1), &[][..]),
    };
    e.each_turn(inner, |e, turn, from, count| {
        let indices = split_index(e, turn, outer);
        let start = |(n, operand): (usize, &Operand)| {
            let pointer = e.arg(n);
            let base = operand.base(e, pointer, &indices);
            e.at(base, from, operand.row_stride())
        };
        let mut block: Vec<Value> = operands.iter().enumerate().map(start).collect();
        block.push(count);
        e.call_leaf(0, &block);
    });
}

/// A constant in every double word.
pub(crate) fn spread(asm: &mut Asm, to: AsmRegisterZmm, v: i64) -> Assembled {
    let from = dword_ptr(asm.bytes(&(v as i32).to_le_bytes()));
    Ok(asm.c.vpbroadcastd(to, from)?)
}

/// Sets a mask register. Clobbers rax.
pub(crate) fn set_mask(asm: &mut Asm, n: u8, bits: u64) -> Assembled {
    asm.c.mov(registers::gpr64::rax, bits)?;
    Ok(asm.c.kmovq(k(n), registers::gpr64::rax)?)
}

/// Mask registers of the last columns of a row, in vectors of 32 elements and of 16.
pub(crate) const TAIL_HALVES: u8 = 1;
pub(crate) const TAIL_WORDS: u8 = 2;

/// Sets the masks of the last columns. Clobbers rax.
pub(crate) fn tails(asm: &mut Asm, columns: usize) -> Assembled {
    for (mask, width) in [(TAIL_HALVES, 32), (TAIL_WORDS, 16)] {
        let bits = (1u64 << (columns % width)) - 1;
        asm.c.mov(registers::gpr32::eax, bits as u32 as i32)?;
        asm.c.kmovd(k(mask), registers::gpr32::eax)?;
    }
    Ok(())
}

/// The body for all vectors of a row, with its number among those between two moves of the walkers and whether it is the
/// rest of a row. Walkers move by so many bytes an element. Clobbers r12.
pub(crate) fn each_vector(
    asm: &mut Asm,
    columns: usize,
    width: usize,
    walkers: &[(AsmRegister64, i64)],
    body: &mut dyn FnMut(&mut Asm, usize, bool) -> Assembled,
) -> Assembled {
    /// Vectors of one turn.
    const UNROLL: usize = 4;
    let (turns, rest) = (columns / width / UNROLL, columns / width % UNROLL);
    if turns > 0 {
        asm.c.mov(registers::gpr32::r12d, turns as i32)?;
        asm.repeat(registers::gpr64::r12, |asm| {
            (0..UNROLL).try_for_each(|i| body(asm, i, false))?;
            walkers.iter().try_for_each(|&(walker, bytes)| asm.advance(walker, bytes * (width * UNROLL) as i64))
        })?;
    }
    (0..rest).try_for_each(|i| body(asm, i, false))?;
    if columns.is_multiple_of(width) { Ok(()) } else { body(asm, rest, true) }
}
