//! Lane programs as vector code, eight elements at a time.
//!
//! ```text
//! value      registers of eight elements        chosen when the value's interval
//! I16        1 x i16x8                          fits 16 bits and costs no detour
//! I32        2 x i32x4                          fits 32 bits
//! I64        4 x i64x2                          otherwise
//! ```
//!
//! A lane's width in the language (32 or 64 bits) says what the arithmetic means; how a value is held follows from its
//! interval, which is tracked from the inputs (element types, and the largest magnitude of constants). So the usual
//! requantize, `(acc * multiplier + half) >> shift` in 64 bits, is held in 64 bits only between the multiply and the shift:
//! for shifts of 32 and more the high halves are gathered with one shuffle and shifted by the rest as 32-bit lanes; for
//! smaller shifts, the low 32 bits of a logical shift are those of the arithmetic one.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8X16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, Value};
use vitc_ir::Elem;
use vitc_ir::lane::{Access, Inst, Program, Reg, Width};

use crate::emit::{Addr, Emit, flags};

/// Elements that lane code handles at a time.
pub(crate) const GROUP: usize = 8;

/// Eight elements.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lanes {
    /// The same constant in every lane, in registers only where used.
    Const(i64),
    /// 16-bit lanes.
    I16(Value),
    /// 32-bit lanes.
    I32([Value; 2]),
    /// 64-bit lanes.
    I64([Value; 4]),
}

/// Smallest and largest value.
pub(crate) type Interval = (i128, i128);

const I16_RANGE: Interval = (-(1 << 15), (1 << 15) - 1);
pub(crate) const I32_RANGE: Interval = (-(1 << 31), (1 << 31) - 1);
const I64_RANGE: Interval = (-(1 << 63), (1 << 63) - 1);

fn within(a: Interval, b: Interval) -> bool {
    a.0 >= b.0 && a.1 <= b.1
}

pub(crate) fn meet(a: Interval, b: Interval) -> Interval {
    (a.0.clamp(b.0, b.1), a.1.clamp(b.0, b.1))
}

/// A lane program with what is known about its inputs; equal specs give equal code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LaneSpec {
    /// The program.
    pub program: Program,
    /// For each input, bits that hold its values (sign included) and their opposites, when it is known.
    pub bits: Vec<Option<u32>>,
}

impl LaneSpec {
    /// The identity on a 32-bit accumulator.
    #[cfg(test)]
    pub(crate) fn identity() -> LaneSpec {
        let inputs = vec![vitc_ir::lane::Input { elem: Elem::I32, access: Access::Element }];
        LaneSpec { program: Program { inputs, insts: vec![Inst::Load(0)], output: Elem::I32 }, bits: vec![None] }
    }

    fn input_interval(&self, n: usize) -> Interval {
        let (lo, hi) = self.program.inputs[n].elem.range().expect("lane inputs are integers");
        match self.bits.get(n).copied().flatten() {
            Some(bits) => meet((1 - (1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1), (lo.into(), hi.into())),
            None => (lo.into(), hi.into()),
        }
    }

    /// Drops the inputs from the second on that the program's result does not depend on; which of them stay.
    pub(crate) fn drop_unread(&mut self) -> Vec<bool> {
        let program = &mut self.program;
        let widths = program.widths().expect("the verifier accepted the lane program");
        let mut live = vec![false; program.insts.len()];
        live.iter_mut().last().into_iter().for_each(|last| *last = true);
        for i in (0..live.len()).rev() {
            if live[i] {
                program.insts[i].operands().into_iter().for_each(|r| live[r as usize] = true);
            }
        }
        let mut read = vec![false; program.inputs.len()];
        for ((inst, live), width) in program.insts.iter_mut().zip(live).zip(widths) {
            match *inst {
                Inst::Load(n) if n > 0 && !live => *inst = Inst::Const(0, width),
                Inst::Load(input) | Inst::Table { input, .. } => read[input as usize] = true,
                _ => {}
            }
        }
        read[0] = true;
        let place = |n: u32| read[..n as usize].iter().filter(|read| **read).count() as u32;
        for inst in &mut program.insts {
            match inst {
                Inst::Load(input) | Inst::Table { input, .. } => *input = place(*input),
                _ => {}
            }
        }
        let (mut stays, mut known) = (read.iter(), read.iter());
        program.inputs.retain(|_| stays.next() == Some(&true));
        self.bits.retain(|_| known.next() == Some(&true));
        read.split_off(1)
    }

    /// Whether the program only passes its first input on.
    pub(crate) fn is_identity(&self) -> bool {
        self.program.insts == [Inst::Load(0)] && self.program.inputs[0].elem == self.program.output
    }

    /// The table that gives the result, when the program ends in a look-up of bytes that are stored as they are.
    pub(crate) fn last_table(&self) -> Option<usize> {
        match self.program.insts.last() {
            Some(&Inst::Table { input, .. }) => {
                let elem = self.program.inputs[input as usize].elem;
                (elem == self.program.output && elem.bytes() == 1).then_some(input as usize)
            }
            _ => None,
        }
    }

    /// The interval of each instruction's value.
    pub(crate) fn intervals(&self, widths: &[Width]) -> Vec<Interval> {
        let mut known: Vec<Interval> = Vec::with_capacity(widths.len());
        for (inst, width) in self.program.insts.iter().zip(widths) {
            let range = if *width == Width::W32 { I32_RANGE } else { I64_RANGE };
            let interval = self.interval_of(inst, &known);
            known.push(meet(interval, range));
        }
        known
    }

    fn interval_of(&self, inst: &Inst, known: &[Interval]) -> Interval {
        let r = |r: Reg| known[r as usize];
        match *inst {
            Inst::Load(n) => self.input_interval(n as usize),
            Inst::Const(v, _) => (v.into(), v.into()),
            Inst::Widen(a) | Inst::Truncate(a) => r(a),
            Inst::Add(a, b) => (r(a).0 + r(b).0, r(a).1 + r(b).1),
            Inst::Sub(a, b) => (r(a).0 - r(b).1, r(a).1 - r(b).0),
            Inst::Mul(a, b) | Inst::MulWide(a, b) => product(r(a), r(b)),
            Inst::Shl(a, s) => (r(a).0 << s, r(a).1 << s),
            Inst::Shr(a, s) => (r(a).0 >> s, r(a).1 >> s),
            Inst::RoundShr(a, s) => ((r(a).0 + (1 << (s - 1))) >> s, (r(a).1 + (1 << (s - 1))) >> s),
            Inst::Min(a, b) => (r(a).0.min(r(b).0), r(a).1.min(r(b).1)),
            Inst::Max(a, b) => (r(a).0.max(r(b).0), r(a).1.max(r(b).1)),
            Inst::SelectLess(_, _, c, d) => (r(c).0.min(r(d).0), r(c).1.max(r(d).1)),
            Inst::Clamp(a, lo, hi) => meet(r(a), (lo.into(), hi.into())),
            Inst::MulHigh15(a, b) => {
                let (least, most) = product(r(a), r(b));
                meet(((least + (1 << 14)) >> 15, (most + (1 << 14)) >> 15), I16_RANGE)
            }
            Inst::Table { input, .. } => self.input_interval(input as usize),
        }
    }
}

fn product(a: Interval, b: Interval) -> Interval {
    let corners = [a.0 * b.0, a.0 * b.1, a.1 * b.0, a.1 * b.1];
    (corners.into_iter().min().unwrap_or(0), corners.into_iter().max().unwrap_or(0))
}

/// Where a lane program gets its elements from.
pub(crate) trait Source {
    /// Eight elements of input `n`; lanes from the group's count on may hold anything.
    fn load(&mut self, e: &mut Emit<'_>, n: usize) -> Lanes;
    /// First entry of table input `n`.
    fn table(&mut self, e: &mut Emit<'_>, n: usize) -> Value;
}

/// Emits the program for `count` (1 to 8) elements and returns them saturated to the output's element type: bytes in the
/// low half of an `i8x16` count as [`Lanes::I16`] with the bytes packed.
pub(crate) fn emit(e: &mut Emit<'_>, spec: &LaneSpec, count: usize, source: &mut dyn Source) -> Packed {
    let mut code = Code::run(e, spec, count, spec.program.insts.len(), source);
    let last = code.values.len() - 1;
    let (value, interval) = (code.values[last], code.intervals[last]);
    code.saturate(value, interval, spec.program.output)
}

/// Emits all of a program but the look-up at its end; returns the indices as bytes.
pub(crate) fn emit_indices(e: &mut Emit<'_>, spec: &LaneSpec, count: usize, source: &mut dyn Source) -> Packed {
    let Some(&Inst::Table { index, bias, .. }) = spec.program.insts.last() else {
        unreachable!("asked for only when the program ends in a look-up")
    };
    let mut code = Code::run(e, spec, count, spec.program.insts.len() - 1, source);
    Packed::Bytes(code.indices(index, bias))
}

/// Eight elements in their stored form.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Packed {
    /// Eight bytes, low half of an `i8x16`.
    Bytes(Value),
    /// `i16x8`.
    Halves(Value),
    /// Two `i32x4`.
    Words([Value; 2]),
    /// Four `i64x2`.
    Longs([Value; 4]),
}

struct Code<'c, 'a> {
    e: &'c mut Emit<'a>,
    spec: &'c LaneSpec,
    count: usize,
    intervals: Vec<Interval>,
    values: Vec<Lanes>,
}

/// Which registers hold a value, narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Held {
    /// 16-bit lanes.
    I16,
    /// 32-bit lanes.
    I32,
    /// 64-bit lanes.
    I64,
}

/// The narrowest registers for an interval.
pub(crate) fn fit(interval: Interval) -> Held {
    if within(interval, I16_RANGE) {
        Held::I16
    } else if within(interval, I32_RANGE) {
        Held::I32
    } else {
        Held::I64
    }
}

impl<'c, 'a> Code<'c, 'a> {
    /// The first `insts` instructions of the program.
    fn run(
        e: &'c mut Emit<'a>,
        spec: &'c LaneSpec,
        count: usize,
        insts: usize,
        source: &mut dyn Source,
    ) -> Code<'c, 'a> {
        let widths = spec.program.widths().expect("the verifier accepted the lane program");
        let intervals = spec.intervals(&widths);
        let mut code = Code { e, spec, count, intervals, values: Vec::new() };
        for (i, inst) in spec.program.insts[..insts].iter().enumerate() {
            let value = code.inst(i, inst, &widths, source);
            let value = code.settle(value, code.intervals[i]);
            code.values.push(value);
        }
        code
    }

    fn inst(&mut self, i: usize, inst: &Inst, widths: &[Width], source: &mut dyn Source) -> Lanes {
        let result = self.intervals[i];
        match *inst {
            Inst::Load(n) => source.load(self.e, n as usize),
            Inst::Const(v, _) => Lanes::Const(v),
            Inst::Widen(a) | Inst::Truncate(a) => self.value(a),
            Inst::Add(a, b) if self.is_saturated(i, [a, b]) => {
                self.intervals[i] = meet(result, I16_RANGE);
                self.zip(self.value(a), self.value(b), Held::I16, |e, x, y| e.b.ins().sadd_sat(x, y))
            }
            Inst::Add(a, b) => self.binary(a, b, result, |e, x, y| e.b.ins().iadd(x, y)),
            Inst::Sub(a, b) => self.binary(a, b, result, |e, x, y| e.b.ins().isub(x, y)),
            Inst::Min(a, b) => self.binary(a, b, result, |e, x, y| e.b.ins().smin(x, y)),
            Inst::Max(a, b) => self.binary(a, b, result, |e, x, y| e.b.ins().smax(x, y)),
            Inst::Mul(a, b) | Inst::MulWide(a, b) => self.multiply(a, b, result),
            Inst::Shl(a, s) => self.shift_left(a, s, result),
            Inst::Shr(a, s) => self.shift_right(a, s, result),
            Inst::RoundShr(a, s) => self.round_shift(a, s, widths[a as usize], result),
            Inst::SelectLess(a, b, c, d) => self.select(a, b, c, d),
            Inst::Clamp(a, lo, hi) => self.clamp(a, lo, hi),
            Inst::MulHigh15(a, b) => {
                let apart = [a, b].iter().any(|&r| self.intervals[r as usize].0 > I16_RANGE.0);
                let (a, b) = (self.value(a), self.value(b));
                let (a, b) = (self.as_i16(a), self.as_i16(b));
                Lanes::I16(self.e.multiply_high(a, b, apart))
            }
            Inst::Table { input, index, bias } => self.look_up(input as usize, index, bias, source),
        }
    }

    /// Whether a sum of two values of 16 bits has more, and all that reads it saturates to 16 bits or fewer.
    fn is_saturated(&self, i: usize, operands: [Reg; 2]) -> bool {
        let insts = &self.spec.program.insts;
        let narrow = |(lo, hi): (i64, i64)| within((lo.into(), hi.into()), I16_RANGE);
        let mut users = insts[i + 1..].iter().filter(|u| u.operands().contains(&(i as Reg)));
        let stored = i + 1 < insts.len() || self.spec.program.output.range().is_some_and(narrow);
        fit(self.intervals[i]) != Held::I16
            && operands.iter().all(|&r| self.held(r) == Held::I16)
            && stored
            && users.all(|u| matches!(*u, Inst::Clamp(_, lo, hi) if narrow((lo, hi))))
    }

    fn value(&self, r: Reg) -> Lanes {
        self.values[r as usize]
    }

    fn held(&self, r: Reg) -> Held {
        match self.value(r) {
            Lanes::Const(_) => fit(self.intervals[r as usize]),
            Lanes::I16(_) => Held::I16,
            Lanes::I32(_) => Held::I32,
            Lanes::I64(_) => Held::I64,
        }
    }

    /// Leaves 64-bit registers as soon as 32 bits suffice.
    fn settle(&mut self, v: Lanes, interval: Interval) -> Lanes {
        match v {
            Lanes::I64(_) if fit(interval) != Held::I64 => Lanes::I32(self.as_i32(v)),
            _ => v,
        }
    }

    fn as_i16(&mut self, v: Lanes) -> Value {
        match v {
            Lanes::Const(c) => self.e.constant(I16X8, c),
            Lanes::I16(v) => v,
            _ => {
                let [lo, hi] = self.as_i32(v);
                self.e.b.ins().snarrow(lo, hi)
            }
        }
    }

    fn as_i32(&mut self, v: Lanes) -> [Value; 2] {
        match v {
            Lanes::Const(c) => [self.e.constant(I32X4, c); 2],
            Lanes::I16(v) => [self.e.b.ins().swiden_low(v), self.e.b.ins().swiden_high(v)],
            Lanes::I32(v) => v,
            Lanes::I64([a, b, c, d]) => [self.low_halves(a, b), self.low_halves(c, d)],
        }
    }

    fn as_i64(&mut self, v: Lanes) -> [Value; 4] {
        match v {
            Lanes::Const(c) => [self.e.constant(I64X2, c); 4],
            Lanes::I64(v) => v,
            _ => {
                let [lo, hi] = self.as_i32(v);
                let ins = |e: &mut Emit<'_>, v| [e.b.ins().swiden_low(v), e.b.ins().swiden_high(v)];
                let ([a, b], [c, d]) = (ins(self.e, lo), ins(self.e, hi));
                [a, b, c, d]
            }
        }
    }

    fn low_halves(&mut self, a: Value, b: Value) -> Value {
        self.halves(a, b, [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27])
    }

    fn high_halves(&mut self, a: Value, b: Value) -> Value {
        self.halves(a, b, [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31])
    }

    fn halves(&mut self, a: Value, b: Value, mask: [u8; 16]) -> Value {
        let (a, b) = (self.e.cast(I8X16, a), self.e.cast(I8X16, b));
        let mask = self.e.b.func.dfg.immediates.push(mask.to_vec().into());
        let v = self.e.b.ins().shuffle(a, b, mask);
        self.e.cast(I32X4, v)
    }

    fn map(&mut self, v: Lanes, held: Held, mut f: impl FnMut(&mut Emit<'_>, Value) -> Value) -> Lanes {
        match held {
            Held::I16 => {
                let v = self.as_i16(v);
                Lanes::I16(f(self.e, v))
            }
            Held::I32 => {
                let v = self.as_i32(v);
                Lanes::I32(v.map(|v| f(self.e, v)))
            }
            Held::I64 => {
                let v = self.as_i64(v);
                Lanes::I64(v.map(|v| f(self.e, v)))
            }
        }
    }

    fn zip(&mut self, a: Lanes, b: Lanes, held: Held, f: impl Fn(&mut Emit<'_>, Value, Value) -> Value) -> Lanes {
        match held {
            Held::I16 => {
                let (a, b) = (self.as_i16(a), self.as_i16(b));
                Lanes::I16(f(self.e, a, b))
            }
            Held::I32 => {
                let (a, b) = (self.as_i32(a), self.as_i32(b));
                Lanes::I32([0, 1].map(|i| f(self.e, a[i], b[i])))
            }
            Held::I64 => {
                let (a, b) = (self.as_i64(a), self.as_i64(b));
                Lanes::I64([0, 1, 2, 3].map(|i| f(self.e, a[i], b[i])))
            }
        }
    }

    fn binary(&mut self, a: Reg, b: Reg, result: Interval, f: impl Fn(&mut Emit<'_>, Value, Value) -> Value) -> Lanes {
        let held = self.held(a).max(self.held(b)).max(fit(result));
        self.zip(self.value(a), self.value(b), held, f)
    }

    fn multiply(&mut self, a: Reg, b: Reg, result: Interval) -> Lanes {
        let operands = self.held(a).max(self.held(b));
        let (x, y) = (self.value(a), self.value(b));
        if fit(result) != Held::I64 || operands == Held::I64 {
            return self.zip(x, y, operands.max(fit(result)), |e, x, y| e.b.ins().imul(x, y));
        }
        let (x, y) = (self.as_i32(x), self.as_i32(y));
        let mut wide = |i: usize| {
            let (xl, yl) = (self.e.b.ins().swiden_low(x[i]), self.e.b.ins().swiden_low(y[i]));
            let (xh, yh) = (self.e.b.ins().swiden_high(x[i]), self.e.b.ins().swiden_high(y[i]));
            [self.e.b.ins().imul(xl, yl), self.e.b.ins().imul(xh, yh)]
        };
        let ([p, q], [r, s]) = (wide(0), wide(1));
        Lanes::I64([p, q, r, s])
    }

    fn shift_left(&mut self, a: Reg, s: u32, result: Interval) -> Lanes {
        let held = self.held(a).max(fit(result));
        let by = self.e.b.ins().iconst(I32, i64::from(s));
        self.map(self.value(a), held, |e, v| e.b.ins().ishl(v, by))
    }

    fn shift_right(&mut self, a: Reg, s: u32, result: Interval) -> Lanes {
        let (v, held) = (self.value(a), self.held(a));
        if let Lanes::I64(v) = v {
            return self.shift_right_long(v, s, result);
        }
        let bits = if held == Held::I16 { 16 } else { 32 };
        let by = self.e.b.ins().iconst(I32, i64::from(s.min(bits - 1)));
        self.map(v, held, |e, v| e.b.ins().sshr(v, by))
    }

    fn shift_right_long(&mut self, v: [Value; 4], s: u32, result: Interval) -> Lanes {
        let [a, b, c, d] = v;
        if fit(result) == Held::I64 {
            let by = self.e.b.ins().iconst(I32, i64::from(s));
            return Lanes::I64(v.map(|v| self.e.b.ins().sshr(v, by)));
        }
        if s >= 32 {
            let high = [self.high_halves(a, b), self.high_halves(c, d)];
            if s == 32 {
                return Lanes::I32(high);
            }
            let by = self.e.b.ins().iconst(I32, i64::from(s - 32));
            return Lanes::I32(high.map(|v| self.e.b.ins().sshr(v, by)));
        }
        let by = self.e.b.ins().iconst(I32, i64::from(s));
        let [a, b, c, d] = v.map(|v| self.e.b.ins().ushr(v, by));
        Lanes::I32([self.low_halves(a, b), self.low_halves(c, d)])
    }

    fn round_shift(&mut self, a: Reg, s: u32, width: Width, result: Interval) -> Lanes {
        let x = self.intervals[a as usize];
        if let (Lanes::I16(v), 1..=15) = (self.value(a), s) {
            // A high product with a power of two.
            let power = self.e.constant(I16X8, 1 << (15 - s));
            return Lanes::I16(self.e.multiply_high(v, power, true));
        }
        let high = (x.0 >> 32, (x.1 >> 32) + (1 << s.saturating_sub(33)));
        if let (Lanes::I64([a, b, c, d]), 33..) = (self.value(a), s)
            && fit(result) != Held::I64
            && fit(high) != Held::I64
        {
            // The rounding half has no low bits: it is added to the high halves.
            let (half, by) = (self.e.constant(I32X4, 1 << (s - 33)), self.e.b.ins().iconst(I32, i64::from(s - 32)));
            let high = [self.high_halves(a, b), self.high_halves(c, d)];
            let raised = high.map(|v| self.e.add(v, half));
            return Lanes::I32(raised.map(|v| self.e.b.ins().sshr(v, by)));
        }
        let sum = (x.0 + (1 << (s - 1)), x.1 + (1 << (s - 1)));
        // In 32-bit lanes the language rules a wrapping sum out.
        let sum = if width == Width::W32 { meet(sum, I32_RANGE) } else { sum };
        let held = self.held(a).max(fit(sum)).max(fit((0, 1 << (s - 1))));
        let half = Lanes::Const(1 << (s - 1));
        let raised = self.zip(self.value(a), half, held, |e, x, y| e.b.ins().iadd(x, y));
        if let Lanes::I64(v) = raised {
            return self.shift_right_long(v, s, result);
        }
        let by = self.e.b.ins().iconst(I32, i64::from(s));
        self.map(raised, held, |e, v| e.b.ins().sshr(v, by))
    }

    fn select(&mut self, a: Reg, b: Reg, c: Reg, d: Reg) -> Lanes {
        let held = [a, b, c, d].into_iter().map(|r| self.held(r)).max().unwrap_or(Held::I64);
        let less = self.zip(self.value(a), self.value(b), held, |e, x, y| e.b.ins().icmp(IntCC::SignedLessThan, x, y));
        let (c, d) = (self.value(c), self.value(d));
        let kept = self.zip(less, c, held, |e, mask, v| e.b.ins().band(mask, v));
        let other = self.zip(less, d, held, |e, mask, v| e.b.ins().band_not(v, mask));
        self.zip(kept, other, held, |e, x, y| e.b.ins().bor(x, y))
    }

    fn clamp(&mut self, a: Reg, lo: i64, hi: i64) -> Lanes {
        let (mut v, mut x) = (self.value(a), self.intervals[a as usize]);
        let bounds = (i128::from(lo), i128::from(hi));
        let mut held = self.held(a);
        if held == Held::I32 && within(bounds, I16_RANGE) {
            v = Lanes::I16(self.as_i16(v));
            x = meet(x, I16_RANGE);
            held = Held::I16;
        }
        // A bound may lie outside the registers' range; then the value cannot reach it.
        if x.0 < bounds.0 {
            v = self.zip(v, Lanes::Const(lo), held, |e, x, y| e.b.ins().smax(x, y));
        }
        if x.1 > bounds.1 {
            v = self.zip(v, Lanes::Const(hi), held, |e, x, y| e.b.ins().smin(x, y));
        }
        v
    }

    /// Eight scalar loads from the table.
    fn look_up(&mut self, input: usize, index: Reg, bias: i64, source: &mut dyn Source) -> Lanes {
        let elem = self.spec.program.inputs[input].elem;
        let table = source.table(self.e, input);
        let bytes = self.indices(index, bias);
        let longs = self.e.cast(I64X2, bytes);
        let packed = self.e.b.ins().extractlane(longs, 0);
        let entries: Vec<Value> = (0..self.count).map(|lane| self.entry(packed, lane)).collect();
        gather(self.e, elem, &entries.iter().map(|&i| (table, i)).collect::<Vec<_>>())
    }

    /// Indices of a look-up as bytes, in the low half of an `i8x16`.
    fn indices(&mut self, index: Reg, bias: i64) -> Value {
        let mut v = self.value(index);
        if bias != 0 {
            let x = self.intervals[index as usize];
            let held = self.held(index).max(fit((x.0 - i128::from(bias), x.1 - i128::from(bias))));
            v = self.zip(v, Lanes::Const(bias), held, |e, x, y| e.b.ins().isub(x, y));
        }
        let halves = self.as_i16(v);
        self.e.b.ins().unarrow(halves, halves)
    }

    /// Index of `lane` within the table.
    fn entry(&mut self, packed: Value, lane: usize) -> Value {
        let by = self.e.iconst(8 * lane as i64);
        let shifted = self.e.b.ins().ushr(packed, by);
        let mask = self.e.iconst(255);
        self.e.b.ins().band(shifted, mask)
    }

    fn saturate(&mut self, v: Lanes, x: Interval, output: Elem) -> Packed {
        let (lo, hi) = output.range().expect("results are integers");
        let mut v = v;
        if let Lanes::I64(_) = v
            && output != Elem::I64
        {
            v = self.zip(v, Lanes::Const(lo), Held::I64, |e, x, y| e.b.ins().smax(x, y));
            v = self.zip(v, Lanes::Const(hi), Held::I64, |e, x, y| e.b.ins().smin(x, y));
            v = Lanes::I32(self.as_i32(v));
        }
        if let Lanes::Const(c) = v {
            v = Lanes::Const(c.clamp(lo, hi));
        }
        debug_assert!(x.0 <= x.1);
        match output {
            Elem::I64 => Packed::Longs(self.as_i64(v)),
            Elem::I32 => Packed::Words(self.as_i32(v)),
            Elem::I16 => Packed::Halves(self.as_i16(v)),
            Elem::I8 => {
                let v = self.as_i16(v);
                Packed::Bytes(self.e.b.ins().snarrow(v, v))
            }
            _ => {
                let v = self.as_i16(v);
                Packed::Bytes(self.e.b.ins().unarrow(v, v))
            }
        }
    }
}

/// Elements at `pointer + index * size`, one for each pair, widened into lanes.
fn gather(e: &mut Emit<'_>, elem: Elem, places: &[(Value, Value)]) -> Lanes {
    let addrs: Vec<Addr> = places
        .iter()
        .map(|&(p, i)| {
            let base = e.at(p, i, elem.bytes() as i64);
            Addr { base, disp: 0 }
        })
        .collect();
    load_each(e, elem, &addrs)
}

/// One element from each address (at most eight), widened into lanes; the other lanes are zero.
pub(crate) fn load_each(e: &mut Emit<'_>, elem: Elem, addrs: &[Addr]) -> Lanes {
    let ty = match elem {
        Elem::U8 | Elem::I8 | Elem::Bool => I8X16,
        Elem::I16 => I16X8,
        Elem::I32 | Elem::F32 => I32X4,
        Elem::I64 => I64X2,
    };
    let lanes = ty.lane_count() as usize;
    let registers: Vec<Value> = (0..GROUP.div_ceil(lanes))
        .map(|r| {
            let mut v = e.constant(ty, 0);
            for (lane, &a) in addrs.iter().skip(r * lanes).take(lanes).enumerate() {
                let x = e.load(ty.lane_type(), a);
                v = e.b.ins().insertlane(v, x, lane as u8);
            }
            v
        })
        .collect();
    widen(e, elem, &registers)
}

/// Registers as loaded, widened by the element type.
fn widen(e: &mut Emit<'_>, elem: Elem, r: &[Value]) -> Lanes {
    match elem {
        Elem::U8 | Elem::Bool => Lanes::I16(e.b.ins().uwiden_low(r[0])),
        Elem::I8 => Lanes::I16(e.b.ins().swiden_low(r[0])),
        Elem::I16 => Lanes::I16(r[0]),
        Elem::I32 | Elem::F32 => Lanes::I32([r[0], r[1]]),
        Elem::I64 => Lanes::I64([r[0], r[1], r[2], r[3]]),
    }
}

/// `count` consecutive elements widened into lanes. Touches nothing past them.
pub(crate) fn load(e: &mut Emit<'_>, elem: Elem, a: Addr, count: usize) -> Lanes {
    if count < GROUP {
        let addrs: Vec<Addr> = (0..count).map(|i| a.plus((i * elem.bytes()) as i64)).collect();
        return load_each(e, elem, &addrs);
    }
    match elem {
        Elem::U8 | Elem::Bool => Lanes::I16(e.b.ins().uload8x8(flags(), a.base, a.disp)),
        Elem::I8 => Lanes::I16(e.b.ins().sload8x8(flags(), a.base, a.disp)),
        Elem::I16 => Lanes::I16(e.load(I16X8, a)),
        Elem::I32 | Elem::F32 => Lanes::I32([e.load(I32X4, a), e.load(I32X4, a.plus(16))]),
        Elem::I64 => Lanes::I64([0, 16, 32, 48].map(|d| e.load(I64X2, a.plus(d)))),
    }
}

/// One element in every lane.
pub(crate) fn load_splat(e: &mut Emit<'_>, elem: Elem, a: Addr) -> Lanes {
    match elem {
        Elem::I64 => {
            let x = e.load(I64, a);
            Lanes::I64([e.b.ins().splat(I64X2, x); 4])
        }
        Elem::I32 | Elem::F32 => {
            let x = e.load(I32, a);
            Lanes::I32([e.b.ins().splat(I32X4, x); 2])
        }
        _ => {
            let x = e.load_elem(elem, a);
            let x = e.b.ins().ireduce(I32, x);
            Lanes::I32([e.b.ins().splat(I32X4, x); 2])
        }
    }
}

/// Stores the first `count` elements one after another.
pub(crate) fn store(e: &mut Emit<'_>, v: Packed, a: Addr, count: usize) {
    if count < GROUP {
        let size = match v {
            Packed::Bytes(_) => 1,
            Packed::Halves(_) => 2,
            Packed::Words(_) => 4,
            Packed::Longs(_) => 8,
        };
        let addrs: Vec<Addr> = (0..count).map(|i| a.plus(i as i64 * size)).collect();
        return store_each(e, v, &addrs);
    }
    match v {
        Packed::Bytes(v) => {
            let v = e.cast(I64X2, v);
            let low = e.b.ins().extractlane(v, 0);
            e.store(low, a);
        }
        Packed::Halves(v) => e.store(v, a),
        Packed::Words(v) => v.into_iter().zip([0, 16]).for_each(|(v, d)| e.store(v, a.plus(d))),
        Packed::Longs(v) => v.into_iter().zip([0, 16, 32, 48]).for_each(|(v, d)| e.store(v, a.plus(d))),
    }
}

/// Stores one element to each address (at most eight).
pub(crate) fn store_each(e: &mut Emit<'_>, v: Packed, addrs: &[Addr]) {
    let registers: Vec<Value> = match v {
        Packed::Bytes(v) | Packed::Halves(v) => vec![v],
        Packed::Words(v) => v.to_vec(),
        Packed::Longs(v) => v.to_vec(),
    };
    let lanes = match v {
        Packed::Bytes(_) => 16,
        _ => GROUP / registers.len(),
    };
    for (i, &a) in addrs.iter().enumerate() {
        let x = e.b.ins().extractlane(registers[i / lanes], (i % lanes) as u8);
        e.store(x, a);
    }
}

/// Whether every access that a program uses is one of `known`.
pub(crate) fn check_access(program: &Program, known: &[Access]) -> Result<(), String> {
    match program.inputs.iter().find(|i| !known.contains(&i.access)) {
        Some(i) => Err(format!("a lane input accessed by {:?} does not belong here", i.access)),
        None => Ok(()),
    }
}
