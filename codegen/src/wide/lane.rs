//! Lane programs as zmm code: a row of up to 64 outputs at a time, sixteen lanes to a register.
//!
//! ```text
//! value   registers of sixteen elements          chosen when the value's interval
//! Word    1 zmm of 32-bit lanes                  fits 32 bits
//! Long    2 zmm of 64-bit lanes: those of even   otherwise
//!         and those of odd elements
//! ```
//!
//! Even and odd, because `vpmuldq` multiplies even lanes as they lie and odd ones after one shift, and because one masked
//! shuffle or shift brings the halves together again. A look-up of bytes wants all 64 elements in one register, so a
//! program is cut at its look-ups into stages; each stage runs vector by vector, which keeps few registers alive.
//!
//! What saves instructions, each exact for all values that the intervals allow:
//! * a rounding shift by 33 and more takes the high halves first and rounds in 32 bits: the rounding half has no low bits;
//! * a constant added after a rounding shift (a zero point) joins the rounding half;
//! * clamps to what a saturating pack does anyway (before a look-up, before a 16-bit residual add) are left to the pack;
//! * multipliers of odd lanes are read four bytes on instead of shifted;
//! * what follows a saturation to 16 bits and stays within them runs in 16-bit lanes (`halves`);
//! * several rows run side by side, vector by vector, so that what they share (constants, multipliers, tables) is loaded once
//!   into what registers are left (`pins`).

/// One instruction with a register or memory as its last operand.
macro_rules! op {
    ($asm:expr, $name:ident, $to:expr, $x:expr, $y:expr) => {
        match $y {
            Source::Register(r) => $asm.c.$name($to, $x, r),
            Source::Memory(m) => $asm.c.$name($to, $x, m),
        }
    };
}

mod arith;
mod bytes;
mod halves;
mod pins;

use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister64, AsmRegisterZmm, registers, word_ptr, xmmword_ptr, ymmword_ptr, zmmword_ptr,
};
use vitc_ir::Elem;
use vitc_ir::lane::{Inst, Reg};

use super::asm::{Asm, Assembled, Fault, at, k, x, y, z};
use crate::lane::{Held, I32_RANGE, Interval, LaneSpec, fit, meet};
use pins::Pin;
pub(crate) use pins::{Pins, pin};

use crate::operand::{Columns, Operand};

/// Elements of a vector.
pub(crate) const LANES: usize = 16;
/// Vectors of a row, and elements of a row.
pub(crate) const VECTORS: usize = 4;
/// Elements that one run of a program handles.
pub(crate) const ROW: usize = LANES * VECTORS;

/// Mask registers: lanes of a comparison; elements of a narrow row as 16, 32 and 64 lanes; even and odd lanes.
const COMPARED: u8 = 1;
const TAIL_HALVES: u8 = 3;
const TAIL_BYTES: u8 = 4;
const TAIL_WORDS: u8 = 5;
const EVEN: u8 = 6;
const ODD: u8 = 7;

/// Where a program finds an input.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Feed {
    /// In registers, one for each vector, which are free afterwards.
    Registers([u8; VECTORS]),
    /// Consecutive elements.
    Row(AsmRegister64, i64),
    /// Consecutive elements, with four more bytes behind them that may be read.
    Padded(AsmRegister64, i64),
    /// One element for the whole row.
    One(AsmRegister64, i64),
    /// 256 entries.
    Table(AsmRegister64),
}

/// Where an input that walks with rows lies, so many bytes on from its register; of a constant the pool has room behind it.
pub(crate) fn feed(operand: &Operand, base: AsmRegister64, disp: i64, is_constant: bool) -> Feed {
    match operand.columns {
        Columns::Stride(_) if is_constant => Feed::Padded(base, disp),
        Columns::Stride(_) => Feed::Row(base, disp),
        Columns::Same => Feed::One(base, disp),
        Columns::Table => Feed::Table(base),
    }
}

/// Which columns a program's registers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Arrangement {
    /// Vector `v` holds columns `16v..16v + 16`.
    Rows,
    /// 128-bit part `l` of vector `v` holds columns `16l + 4v..16l + 4v + 4`, which is what packs bring into order; inputs lie in
    /// memory vector by vector ([`interleaved`]).
    Interleaved,
}

/// Whether a program can run on interleaved columns: nothing but constants of columns beside the sums, and a result that is
/// packed.
pub(crate) fn can_interleave(spec: &LaneSpec, are_constants: bool) -> bool {
    let insts = &spec.program.insts;
    let looks_up = |i: &Inst| matches!(i, Inst::Table { .. });
    let inner =
        insts[..insts.len() - 1].iter().any(looks_up) || (insts.iter().any(looks_up) && spec.last_table().is_none());
    are_constants && !inner && spec.program.output.bytes() <= 2
}

/// Elements of so many bytes for whole rows of columns, in the order in which interleaved programs load them.
pub(crate) fn interleaved(elements: &[u8], bytes: usize) -> Vec<u8> {
    let row = |row: &[u8]| {
        let column = |at: usize| at % LANES / 4 * LANES + at / LANES * 4 + at % 4;
        (0..ROW).flat_map(|at| row[column(at) * bytes..][..bytes].to_vec()).collect::<Vec<u8>>()
    };
    elements.chunks_exact(ROW * bytes).flat_map(row).collect()
}

/// A row of outputs.
pub(crate) struct Group<'g> {
    /// The program's inputs.
    pub inputs: &'g [Feed],
    /// Elements of the row, 1 to 64; fewer than 64 only after [`masks`] for as many.
    pub columns: usize,
    /// Where the results go.
    pub out: (AsmRegister64, i64),
    /// Vector registers that hold nothing.
    pub free: &'g [u8],
    /// Which columns are where; interleaved only for 64 of them.
    pub arrangement: Arrangement,
}

/// Whether the compiler knows all that the program does.
pub(crate) fn is_supported(spec: &LaneSpec) -> bool {
    let known = |e: Elem| matches!(e, Elem::U8 | Elem::I8 | Elem::I16 | Elem::I32);
    let narrow_tables = spec.program.insts.iter().all(|i| match *i {
        Inst::Table { input, .. } => spec.program.inputs[input as usize].elem.bytes() <= 2,
        _ => true,
    });
    narrow_tables && known(spec.program.output) && spec.program.inputs.iter().all(|i| known(i.elem))
}

/// Sets the mask registers up: the fixed ones, and those of rows of `columns` elements. Clobbers rax.
pub(crate) fn masks(asm: &mut Asm, columns: usize) -> Assembled {
    let eax = registers::gpr32::eax;
    for (mask, bits) in [(EVEN, 0x5555), (ODD, 0xaaaa)] {
        asm.c.mov(eax, bits)?;
        asm.c.kmovw(k(mask), eax)?;
    }
    let tail = |width: usize| {
        let left = columns % width;
        if left == 0 { u64::MAX } else { (1 << left) - 1 }
    };
    asm.c.mov(eax, tail(LANES) as u32 as i32)?;
    asm.c.kmovw(k(TAIL_WORDS), eax)?;
    asm.c.mov(eax, tail(32) as u32 as i32)?;
    asm.c.kmovd(k(TAIL_HALVES), eax)?;
    asm.c.mov(registers::gpr64::rax, tail(ROW))?;
    asm.c.kmovq(k(TAIL_BYTES), registers::gpr64::rax)?;
    Ok(())
}

/// Emits the program for one row. Clobbers rax.
pub(crate) fn emit(asm: &mut Asm, spec: &LaneSpec, group: &Group<'_>) -> Assembled {
    emit_rows(asm, spec, std::slice::from_ref(group), &Pins::default())
}

/// Emits the program for several rows of as many columns: side by side where the registers suffice that are free beside all of
/// their inputs, else one after the other, each with those that are free by then. Some may hold something already. Clobbers rax.
pub(crate) fn emit_rows(asm: &mut Asm, spec: &LaneSpec, rows: &[Group<'_>], pins: &Pins) -> Assembled {
    let singly = |asm: &mut Asm| rows.chunks(1).try_for_each(|row| Code::new(asm, spec, row, pins).run());
    if rows.len() < 2 {
        return singly(asm);
    }
    match Code::new(&mut Asm::leaf()?, spec, rows, pins).run() {
        Ok(()) => Code::new(asm, spec, rows, pins).run(),
        Err(Fault::Registers) => singly(asm),
        fault => fault,
    }
}

/// A vector register; a temporary one becomes free after its last use.
#[derive(Clone, Copy, Debug)]
struct Vector {
    n: u8,
    temporary: bool,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Const(i64),
    /// Sixteen `i32` in memory, used where they lie.
    Memory(AsmRegister64, i64),
    Word(Vector),
    Long(Vector, Vector),
}

/// A second operand.
#[derive(Clone, Copy)]
enum Source {
    Register(AsmRegisterZmm),
    Memory(AsmMemoryOperand),
}

/// Emits an instruction on two operands.
type Emitter<'e> = &'e dyn Fn(&mut Asm, AsmRegisterZmm, AsmRegisterZmm, Source) -> Result<(), IcedError>;

/// The registers of 64 entries of a table, in the order of the elements: all of them, or two halves.
#[derive(Clone, Copy, Debug)]
enum Found {
    Bytes(u8),
    Halves([u8; 2]),
}

/// The value of an instruction and how often it is still read.
#[derive(Clone, Copy, Debug)]
struct Slot {
    value: Value,
    uses: usize,
}

/// A constant added to the result of a rounding shift.
#[derive(Clone, Copy, Debug)]
struct Joined {
    shift: usize,
    sum: usize,
    constant: i64,
}

struct Code<'a, 'c> {
    asm: &'a mut Asm,
    spec: &'c LaneSpec,
    /// All rows, and the one at hand with its index.
    rows: &'c [Group<'c>],
    group: &'c Group<'c>,
    row: usize,
    intervals: Vec<Interval>,
    free: Vec<u8>,
    /// The fewest registers that were ever free.
    spare: usize,
    /// What is held in registers for several uses, and everything that was asked for.
    pins: Pins,
    wanted: Vec<Pin>,
    /// Whether rows may hold for each other what several of them ask for.
    shares: bool,
    /// What a look-up gave, row by row.
    looked_up: Vec<Vec<Option<Found>>>,
    /// Of the stage at hand: constants that join the rounding half of a shift, and the sums they make superfluous.
    joined: Vec<Joined>,
    /// Values of the stage and vector at hand.
    slots: Vec<Option<Slot>>,
    /// The instruction whose value an instruction passes on.
    alias: Vec<usize>,
}

impl<'a, 'c> Code<'a, 'c> {
    /// The registers that are free for the first row are so for all.
    fn new(asm: &'a mut Asm, spec: &'c LaneSpec, rows: &'c [Group<'c>], pins: &Pins) -> Code<'a, 'c> {
        let widths = spec.program.widths().expect("the verifier accepted the lane program");
        let free: Vec<u8> = rows[0].free.iter().copied().filter(|&n| !pins.holds(n)).collect();
        Code {
            asm,
            spec,
            rows,
            group: &rows[0],
            row: 0,
            intervals: spec.intervals(&widths),
            spare: free.len(),
            free,
            pins: pins.clone(),
            shares: true,
            wanted: Vec::new(),
            looked_up: vec![vec![None; spec.program.insts.len()]; rows.len()],
            joined: Vec::new(),
            slots: Vec::new(),
            alias: Vec::new(),
        }
    }
}

impl Code<'_, '_> {
    fn run(&mut self) -> Assembled {
        let insts = &self.spec.program.insts;
        let last = insts.len() - 1;
        for (i, inst) in insts.iter().enumerate() {
            let &Inst::Table { input, index, bias } = inst else { continue };
            let index = self.unclamped(index, (bias, bias + 255));
            let words = self.stage(index as usize, (bias, bias + 255), self.reads_registers_after(i))?;
            let found = self.each_row(|code, row| {
                let bytes = code.index_bytes(&words[row], bias)?;
                Ok(match code.spec.program.inputs[input as usize].elem {
                    Elem::I16 => Found::Halves(code.look_up_halves(input as usize, bytes)?),
                    _ => Found::Bytes(code.look_up(input as usize, bytes)?),
                })
            })?;
            self.looked_up.iter_mut().zip(found).for_each(|(of, found)| of[i] = Some(found));
        }
        match self.looked_up[0][last] {
            Some(Found::Bytes(_)) if self.spec.last_table().is_some() => self.store_looked_up(last),
            Some(Found::Halves(_)) if self.spec.program.output == Elem::I16 => self.store_looked_up(last),
            _ => self.run_end(last),
        }
    }

    fn store_looked_up(&mut self, i: usize) -> Assembled {
        self.each_row(|code, row| match code.looked_up[row][i] {
            Some(Found::Bytes(bytes)) => code.store_bytes(bytes),
            Some(Found::Halves(halves)) => code.store_found_halves(&halves),
            None => Ok(()),
        })?;
        Ok(())
    }

    /// What comes after the last look-up.
    fn run_end(&mut self, last: usize) -> Assembled {
        let range = self.spec.program.output.range().expect("results are integers");
        if self.residual().is_some() {
            let value = self.residual().map_or(last, |(value, _)| value as usize);
            let words = self.stage(value, range, false)?;
            self.each_row(|code, row| code.store_halves(&words[row], code.residual().map(|(_, at)| at)))?;
            return Ok(());
        }
        if let Some(tail) = self.tail() {
            return self.run_tail(&tail);
        }
        let words = self.stage(last, range, false)?;
        self.each_row(|code, row| code.store(&words[row]))?;
        Ok(())
    }

    /// What a clamp to `range` clamps, where a saturating pack to it follows.
    fn unclamped(&self, r: Reg, range: (i64, i64)) -> Reg {
        match self.spec.program.insts[r as usize] {
            Inst::Clamp(a, lo, hi) if (lo, hi) == range && matches!(lo, 0 | -128) => a,
            _ => r,
        }
    }

    /// The value and the row of a program that ends in adding `i16` elements to a value clamped to 16 bits.
    fn residual(&self) -> Option<(Reg, (AsmRegister64, i64))> {
        let insts = &self.spec.program.insts;
        let &Inst::Add(a, b) = insts.last()? else { return None };
        let parts = |a: Reg, b: Reg| match (insts[a as usize], insts[b as usize]) {
            (Inst::Clamp(x, -0x8000, 0x7fff), Inst::Load(n)) => {
                let elem = self.spec.program.inputs[n as usize].elem;
                match self.group.inputs[n as usize] {
                    Feed::Row(base, disp) | Feed::Padded(base, disp) if elem == Elem::I16 => Some((x, (base, disp))),
                    _ => None,
                }
            }
            _ => None,
        };
        if self.spec.program.output != Elem::I16 {
            return None;
        }
        parts(a, b).or_else(|| parts(b, a))
    }

    fn vectors(&self) -> usize {
        self.group.columns.div_ceil(LANES)
    }

    fn is_partial(&self, vector: usize) -> bool {
        self.group.columns < (vector + 1) * LANES
    }

    // ---- registers

    fn take(&mut self) -> Assembled<u8> {
        let n = self.free.pop().ok_or(Fault::Registers)?;
        self.spare = self.spare.min(self.free.len());
        Ok(n)
    }

    fn give(&mut self, v: Vector) {
        if v.temporary {
            self.free.push(v.n);
        }
    }

    fn slot(&self, r: Reg) -> Slot {
        self.slots[self.alias[r as usize]].expect("operands come first")
    }

    fn is_last_use(&self, r: Reg) -> bool {
        self.slot(r).uses == 1
    }

    /// One use less; after the last one the registers are free.
    fn done(&mut self, r: Reg) {
        let slot = self.slots[self.alias[r as usize]].as_mut().expect("operands come first");
        slot.uses -= 1;
        if slot.uses > 0 {
            return;
        }
        match slot.value {
            Value::Word(v) => self.give(v),
            Value::Long(e, o) => {
                self.give(e);
                self.give(o);
            }
            Value::Const(_) | Value::Memory(..) => {}
        }
    }

    fn held(&self, r: Reg) -> Held {
        match self.slot(r).value {
            Value::Const(_) => fit(self.intervals[r as usize]).max(Held::I32),
            Value::Long(..) => Held::I64,
            Value::Memory(..) | Value::Word(_) => Held::I32,
        }
    }

    // ---- stages

    /// Instructions that `root` needs in this stage, and how often each value is read.
    fn needed(&self, root: usize) -> Vec<usize> {
        let mut uses = vec![0; root + 1];
        uses[root] = 1;
        for i in (0..=root).rev() {
            let inst = &self.spec.program.insts[i];
            if uses[i] > 0 && !matches!(inst, Inst::Table { .. }) {
                inst.operands().into_iter().for_each(|r| uses[r as usize] += 1);
            }
        }
        uses
    }

    /// Whether a stage after the look-up at `i` reads an input that is in registers.
    fn reads_registers_after(&self, i: usize) -> bool {
        let insts = &self.spec.program.insts;
        let indices = insts[i + 1..].iter().filter_map(|inst| match *inst {
            Inst::Table { index, .. } => Some(index as usize),
            _ => None,
        });
        let in_registers = |n: u32| matches!(self.group.inputs[n as usize], Feed::Registers(_));
        indices.chain([insts.len() - 1]).any(|root| {
            let uses = self.needed(root);
            (0..=root).any(|i| uses[i] > 0 && matches!(insts[i], Inst::Load(n) if in_registers(n)))
        })
    }

    /// The value of `root` in 32-bit lanes, row by row one register for each vector; saturated to `range` where it has more bits.
    /// `again` keeps inputs in registers for later.
    fn stage(&mut self, root: usize, range: (i64, i64), again: bool) -> Assembled<Vec<Vec<u8>>> {
        let mut words = vec![Vec::new(); self.rows.len()];
        for v in 0..self.vectors() {
            let found = self.each_row(|code, _| code.stage_vector(root, range, v, again))?;
            words.iter_mut().zip(found).for_each(|(row, n)| row.push(n));
        }
        Ok(words)
    }

    fn stage_vector(&mut self, root: usize, range: (i64, i64), vector: usize, again: bool) -> Assembled<u8> {
        let uses = self.needed(root);
        self.joined = self.join_constants(&uses);
        self.slots = vec![None; root + 1];
        self.alias = (0..=root).collect();
        for (i, uses) in uses.into_iter().enumerate().filter(|(_, uses)| *uses > 0) {
            let inst = self.spec.program.insts[i];
            match inst {
                Inst::Widen(a) => self.pass_on(i, a, uses),
                Inst::Truncate(a) if self.held(a) != Held::I64 => self.pass_on(i, a, uses),
                Inst::Add(a, b) if self.joined.iter().any(|j| j.sum == i) => {
                    let (value, constant) = if self.is_constant(b) { (a, b) } else { (b, a) };
                    self.done(constant);
                    self.pass_on(i, value, uses);
                }
                _ => {
                    let value = self.inst(i, &inst, vector, again)?;
                    self.slots[i] = Some(Slot { value, uses });
                }
            }
        }
        self.result(root as Reg, range)
    }

    fn is_constant(&self, r: Reg) -> bool {
        matches!(self.spec.program.insts[r as usize], Inst::Const(..))
    }

    /// The sums of a stage whose constant can join a rounding shift.
    fn join_constants(&self, uses: &[usize]) -> Vec<Joined> {
        let insts = &self.spec.program.insts;
        let join = |i: usize| -> Option<Joined> {
            let Inst::Add(a, b) = insts[i] else { return None };
            let (mut value, constant) = match (insts[a as usize], insts[b as usize]) {
                (_, Inst::Const(c, _)) => (a as usize, c),
                (Inst::Const(c, _), _) => (b as usize, c),
                _ => return None,
            };
            while let (Inst::Truncate(x), 1) = (insts[value], uses[value]) {
                value = x as usize;
            }
            let Inst::RoundShr(x, s @ 33..) = insts[value] else { return None };
            let x = self.intervals[x as usize];
            let added = (1i128 << (s - 33)) + (i128::from(constant) << (s - 32));
            let sums = ((x.0 >> 32) + added, (x.1 >> 32) + added);
            let fits = uses[value] == 1 && fit(x) == Held::I64 && fit(sums) != Held::I64;
            fits.then_some(Joined { shift: value, sum: i, constant })
        };
        (0..uses.len()).filter(|&i| uses[i] > 0).filter_map(join).collect()
    }

    fn pass_on(&mut self, i: usize, a: Reg, uses: usize) {
        let root = self.alias[a as usize];
        self.alias[i] = root;
        self.slots[root].as_mut().expect("operands come first").uses += uses - 1;
    }

    /// The stage's result in a register of its own.
    fn result(&mut self, root: Reg, (lo, hi): (i64, i64)) -> Assembled<u8> {
        if self.held(root) == Held::I64 {
            self.bound_long(root, lo, hi)?;
            let Value::Long(e, o) = self.slot(root).value else { unreachable!("bounded in 64-bit lanes") };
            self.free.push(o.n);
            return self.narrow(e.n, o.n, 0);
        }
        let v = self.word(root)?;
        if v.temporary {
            return Ok(v.n);
        }
        let to = self.take()?;
        self.asm.c.vmovdqa64(z(to), z(v.n))?;
        Ok(to)
    }

    fn inst(&mut self, i: usize, inst: &Inst, vector: usize, again: bool) -> Assembled<Value> {
        if let Some(found) = self.looked_up[self.row][i] {
            return self.looked_up_words(i, found, vector);
        }
        let result = self.intervals[i];
        match *inst {
            Inst::Load(n) => self.load(n as usize, vector, again),
            Inst::Const(v, _) => Ok(Value::Const(v)),
            Inst::Widen(_) => unreachable!("passed on"),
            Inst::Truncate(a) => {
                let to = self.long_copy(a)?;
                self.finish_shift(to, 0, I32_RANGE)
            }
            Inst::Add(a, b) => {
                self.binary(a, b, result, &|c, d, x, y| op!(c, vpaddd, d, x, y), &|c, d, x, y| op!(c, vpaddq, d, x, y))
            }
            Inst::Sub(a, b) => {
                self.binary(a, b, result, &|c, d, x, y| op!(c, vpsubd, d, x, y), &|c, d, x, y| op!(c, vpsubq, d, x, y))
            }
            Inst::Min(a, b) => self
                .binary(a, b, result, &|c, d, x, y| op!(c, vpminsd, d, x, y), &|c, d, x, y| op!(c, vpminsq, d, x, y)),
            Inst::Max(a, b) => self
                .binary(a, b, result, &|c, d, x, y| op!(c, vpmaxsd, d, x, y), &|c, d, x, y| op!(c, vpmaxsq, d, x, y)),
            Inst::Mul(a, b) | Inst::MulWide(a, b) => self.multiply(a, b, result),
            Inst::MulHigh15(a, b) => self.multiply_high(a, b),
            Inst::Shl(a, s) => self.shift_left(a, s, result),
            Inst::Shr(a, s) if self.held(a) == Held::I64 => {
                let to = self.long_copy(a)?;
                self.finish_shift(to, s, result)
            }
            Inst::RoundShr(a, s) if self.held(a) == Held::I64 => self.round_long(i, a, s, result),
            Inst::Shr(a, s) => self.shift_word(a, s),
            Inst::RoundShr(a, s) => self.round_shift(a, s, result),
            Inst::SelectLess(a, b, c, d) => self.select(a, b, c, d),
            Inst::Clamp(a, lo, hi) => self.clamp(a, lo, hi),
            Inst::Table { .. } => unreachable!("looked up before the stage"),
        }
    }

    // ---- inputs

    fn load(&mut self, n: usize, vector: usize, again: bool) -> Assembled<Value> {
        let elem = self.spec.program.inputs[n].elem;
        match self.group.inputs[n] {
            Feed::Registers(r) => Ok(Value::Word(Vector { n: r[vector], temporary: !again })),
            Feed::Row(base, disp) | Feed::Padded(base, disp) => {
                let disp = disp + (vector * LANES * elem.bytes()) as i64;
                if elem == Elem::I32 && !self.is_partial(vector) {
                    return Ok(Value::Memory(base, disp));
                }
                self.load_row(elem, at(base, disp), self.is_partial(vector))
            }
            Feed::One(base, disp) => match self.pinned(Pin::One(base, disp, elem)) {
                Some(n) => Ok(Value::Word(Vector { n, temporary: false })),
                None => {
                    let n = self.take()?;
                    Pin::One(base, disp, elem).load(self.asm, n)?;
                    Ok(temporary(n))
                }
            },
            Feed::Table(_) => unreachable!("tables are not loaded"),
        }
    }

    fn load_row(&mut self, elem: Elem, at: AsmMemoryOperand, partial: bool) -> Assembled<Value> {
        let n = self.take()?;
        let to = if partial { z(n).k5().z() } else { z(n) };
        match elem {
            Elem::I32 => self.asm.c.vmovdqu32(to, zmmword_ptr(at))?,
            Elem::I16 => self.asm.c.vpmovsxwd(to, ymmword_ptr(at))?,
            Elem::I8 => self.asm.c.vpmovsxbd(to, xmmword_ptr(at))?,
            _ => self.asm.c.vpmovzxbd(to, xmmword_ptr(at))?,
        }
        Ok(temporary(n))
    }

    /// The value as a register of 32-bit lanes; what had to be loaded stays loaded for later uses.
    fn word(&mut self, r: Reg) -> Assembled<Vector> {
        let pin = match self.slot(r).value {
            Value::Word(v) => return Ok(v),
            Value::Const(c) => Pin::Dword(c),
            Value::Memory(base, disp) => Pin::Words(base, disp),
            Value::Long(..) => unreachable!("asked for only where 32 bits suffice"),
        };
        let v = match self.pinned(pin) {
            Some(n) => Vector { n, temporary: false },
            None => {
                let n = self.take()?;
                pin.load(self.asm, n)?;
                Vector { n, temporary: true }
            }
        };
        self.slots[self.alias[r as usize]].as_mut().expect("operands come first").value = Value::Word(v);
        Ok(v)
    }

    /// The value as the last operand of an instruction on 32-bit lanes.
    fn source(&mut self, r: Reg) -> Assembled<Source> {
        Ok(match self.slot(r).value {
            Value::Const(c) => self.pin_or_memory(Pin::Dword(c)),
            Value::Memory(base, disp) => self.pin_or_memory(Pin::Words(base, disp)),
            _ => Source::Register(z(self.word(r)?.n)),
        })
    }

    /// The value in 64-bit lanes as last operands, and the registers that hold them only for now.
    fn long(&mut self, r: Reg) -> Assembled<([Source; 2], Option<[u8; 2]>)> {
        match self.slot(r).value {
            Value::Const(c) => Ok(([self.pin_or_memory(Pin::Qword(c)); 2], None)),
            Value::Long(e, o) => Ok(([e, o].map(|v| Source::Register(z(v.n))), None)),
            Value::Word(_) | Value::Memory(..) => {
                let v = self.word(r)?;
                let (e, o) = (self.take()?, self.take()?);
                self.asm.c.vpsllq(z(e), z(v.n), 32)?;
                self.asm.c.vpsraq(z(e), z(e), 32)?;
                self.asm.c.vpsraq(z(o), z(v.n), 32)?;
                Ok(([e, o].map(|n| Source::Register(z(n))), Some([e, o])))
            }
        }
    }
}

fn temporary(n: u8) -> Value {
    Value::Word(Vector { n, temporary: true })
}

/// Whether a value has 64 bits in the language.
fn is_long(widths: &[vitc_ir::lane::Width], r: Reg) -> bool {
    widths[r as usize] == vitc_ir::lane::Width::W64
}
