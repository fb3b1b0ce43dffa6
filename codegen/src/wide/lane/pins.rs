//! What is loaded once for several rows: constants, multipliers, tables, orders of shuffles.
//!
//! Which these are comes from a trial: the code is emitted once for nothing, which tells what it asks for and how many
//! registers it leaves. What is asked for most often then gets those registers.

use super::*;

/// Something that can be held in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pin {
    /// A constant in all lanes of 32, 64 or 16 bits.
    Dword(i64),
    Qword(i64),
    Half(i64),
    /// The index that brings 64-bit parts into order after packs of two registers, or 32-bit parts after packs of four.
    PairOrder,
    QuadOrder,
    /// The one that does to 64-bit parts what packs of two registers do.
    PackOrder,
    /// Those that take 128-bit parts of two registers in turn, the first and the last two of each.
    FirstParts,
    LastParts,
    /// 64 bytes of memory, and the same in pack order.
    Words(AsmRegister64, i64),
    Packed(AsmRegister64, i64),
    /// An element of memory in all lanes of 32 bits, or one of `i16` in all lanes of 16.
    One(AsmRegister64, i64, Elem),
    HalfOne(AsmRegister64, i64),
}

impl Pin {
    /// Where it lies, to be the last operand of an instruction; not for a single element.
    fn memory(self, asm: &mut Asm) -> AsmMemoryOperand {
        match self {
            Pin::Dword(c) => asm.dword(c),
            Pin::Qword(c) => asm.qword(c),
            Pin::Half(c) => zmmword_ptr(asm.bytes(&(c as i16).to_le_bytes().repeat(2 * LANES))),
            Pin::PairOrder => parts(asm, [0, 2, 4, 6, 1, 3, 5, 7]),
            Pin::PackOrder => parts(asm, [0, 4, 1, 5, 2, 6, 3, 7]),
            Pin::FirstParts => parts(asm, [0, 1, 8, 9, 2, 3, 10, 11]),
            Pin::LastParts => parts(asm, [4, 5, 12, 13, 6, 7, 14, 15]),
            Pin::QuadOrder => asm.dwords(std::array::from_fn(|i| (i % 4 * 4 + i / 4) as u32)),
            Pin::Words(base, disp) | Pin::Packed(base, disp) => zmmword_ptr(at(base, disp)),
            Pin::One(base, disp, _) | Pin::HalfOne(base, disp) => word_ptr(at(base, disp)),
        }
    }

    /// Loads it. Clobbers rax.
    pub(super) fn load(self, asm: &mut Asm, n: u8) -> Assembled {
        use iced_x86::code_asm::{byte_ptr, dword_ptr, qword_ptr};
        let eax = registers::gpr32::eax;
        match self {
            Pin::Dword(c) => {
                let from = asm.bytes(&(c as i32).to_le_bytes());
                asm.c.vpbroadcastd(z(n), dword_ptr(from))?;
            }
            Pin::Qword(c) => {
                let from = asm.bytes(&c.to_le_bytes());
                asm.c.vpbroadcastq(z(n), qword_ptr(from))?;
            }
            Pin::Packed(base, disp) => {
                let order = Pin::PackOrder.memory(asm);
                asm.c.vmovdqu64(z(n), order)?;
                asm.c.vpermq(z(n), z(n), zmmword_ptr(at(base, disp)))?;
            }
            Pin::HalfOne(base, disp) => asm.c.vpbroadcastw(z(n), word_ptr(at(base, disp)))?,
            Pin::One(base, disp, Elem::I32) => asm.c.vpbroadcastd(z(n), dword_ptr(at(base, disp)))?,
            Pin::One(base, disp, elem) => {
                match elem {
                    Elem::I16 => asm.c.movsx(eax, word_ptr(at(base, disp)))?,
                    Elem::I8 => asm.c.movsx(eax, byte_ptr(at(base, disp)))?,
                    _ => asm.c.movzx(eax, byte_ptr(at(base, disp)))?,
                }
                asm.c.vpbroadcastd(z(n), eax)?;
            }
            _ => {
                let from = self.memory(asm);
                asm.c.vmovdqu32(z(n), from)?;
            }
        }
        Ok(())
    }

    /// Whether it is the same in every row, when only these registers stay where they are.
    fn is_fixed(self, fixed: &[AsmRegister64]) -> bool {
        match self {
            Pin::Words(base, _) | Pin::Packed(base, _) | Pin::One(base, ..) | Pin::HalfOne(base, _) => {
                fixed.contains(&base)
            }
            _ => true,
        }
    }
}

/// An index of 64-bit parts.
fn parts(asm: &mut Asm, order: [u64; 8]) -> AsmMemoryOperand {
    zmmword_ptr(asm.bytes(&order.map(u64::to_le_bytes).concat()))
}

/// What is held, and in which registers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins(Vec<(Pin, u8)>);

impl Pins {
    pub(super) fn holds(&self, n: u8) -> bool {
        self.0.iter().any(|(_, held)| *held == n)
    }
}

/// Loads what the program asks for into registers of `room` that it leaves free, for turns of these rows one after another in
/// which only inputs at the registers `fixed` are the same. Nothing where the rows do not fit side by side. Clobbers rax.
pub(crate) fn pin(
    asm: &mut Asm,
    spec: &LaneSpec,
    rows: &[Group<'_>],
    room: &[u8],
    fixed: &[AsmRegister64],
) -> Assembled<Pins> {
    let mut trial = Asm::leaf()?;
    let mut code = Code::new(&mut trial, spec, rows, &Pins::default());
    code.shares = false;
    match code.run() {
        Err(Fault::Registers) if rows.len() > 1 => return Ok(Pins::default()),
        done => done?,
    }
    let spare = code.spare;
    let mut wanted = code.by_demand(1);
    wanted.retain(|p| p.is_fixed(fixed));
    let pins: Vec<(Pin, u8)> = wanted.into_iter().zip(room.iter().copied()).take(spare).collect();
    pins.iter().try_for_each(|(pin, n)| pin.load(asm, *n))?;
    Ok(Pins(pins))
}

impl<'c> Code<'_, 'c> {
    /// The register that holds it, if one does.
    pub(super) fn pinned(&mut self, pin: Pin) -> Option<u8> {
        let held = self.pins.0.iter().find(|(held, _)| *held == pin).map(|(_, n)| *n);
        if held.is_none() {
            self.wanted.push(pin);
        }
        held
    }

    pub(super) fn pin_or_memory(&mut self, pin: Pin) -> Source {
        match self.pinned(pin) {
            Some(n) => Source::Register(z(n)),
            None => Source::Memory(pin.memory(self.asm)),
        }
    }

    /// The register that holds it, or one that does for now and is the second value then.
    pub(super) fn pin_or_load(&mut self, pin: Pin) -> Assembled<(u8, Option<u8>)> {
        if let Some(n) = self.pinned(pin) {
            return Ok((n, None));
        }
        let n = self.take()?;
        pin.load(self.asm, n)?;
        Ok((n, Some(n)))
    }

    /// What was asked for so many times and more, the most wanted first.
    fn by_demand(&self, least: usize) -> Vec<Pin> {
        let mut counts: Vec<(Pin, usize)> = Vec::new();
        for &pin in &self.wanted {
            match counts.iter_mut().find(|(p, _)| *p == pin) {
                Some((_, count)) => *count += 1,
                None => counts.push((pin, 1)),
            }
        }
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts.into_iter().filter(|(_, count)| *count >= least).map(|(pin, _)| pin).collect()
    }

    /// `body` for every row, with what several of them ask for in the registers that they leave.
    pub(super) fn each_row<T>(&mut self, body: impl Fn(&mut Code<'_, 'c>, usize) -> Assembled<T>) -> Assembled<Vec<T>> {
        let before = self.pins.0.len();
        if self.shares && self.rows.len() > 1 {
            let mut trial = Asm::leaf()?;
            let mut code = self.copy(&mut trial);
            code.rows_of(&body)?;
            let shared = code.by_demand(2).into_iter().take(code.spare).collect::<Vec<_>>();
            for pin in shared {
                let n = self.take()?;
                pin.load(self.asm, n)?;
                self.pins.0.push((pin, n));
            }
        }
        let results = self.rows_of(&body)?;
        self.free.extend(self.pins.0.drain(before..).map(|(_, n)| n));
        Ok(results)
    }

    fn rows_of<T>(&mut self, body: impl Fn(&mut Code<'_, 'c>, usize) -> Assembled<T>) -> Assembled<Vec<T>> {
        let rows = self.rows;
        (0..rows.len())
            .map(|row| {
                (self.row, self.group) = (row, &rows[row]);
                body(self, row)
            })
            .collect()
    }

    /// The state as it is, over another assembler.
    fn copy<'t>(&self, asm: &'t mut Asm) -> Code<'t, 'c> {
        Code {
            asm,
            spec: self.spec,
            rows: self.rows,
            group: self.group,
            row: self.row,
            intervals: self.intervals.clone(),
            free: self.free.clone(),
            spare: self.free.len(),
            pins: self.pins.clone(),
            wanted: Vec::new(),
            shares: self.shares,
            looked_up: self.looked_up.clone(),
            joined: self.joined.clone(),
            slots: self.slots.clone(),
            alias: self.alias.clone(),
        }
    }
}
