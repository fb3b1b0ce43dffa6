//! Arithmetic of lane programs: on 32-bit lanes where the intervals allow it, on even and odd 64-bit lanes otherwise.

use super::*;

impl Code<'_, '_> {
    pub(super) fn binary(
        &mut self,
        a: Reg,
        b: Reg,
        result: Interval,
        words: Emitter<'_>,
        longs: Emitter<'_>,
    ) -> Assembled<Value> {
        if self.held(a).max(self.held(b)).max(fit(result)) != Held::I64 {
            let x = self.word(a)?;
            let y = self.source(b)?;
            self.done(a);
            self.done(b);
            let to = self.take()?;
            words(self.asm, z(to), z(x.n), y)?;
            return Ok(temporary(to));
        }
        let (x, x_held) = self.long(a)?;
        let (y, y_held) = self.long(b)?;
        let to = [self.take()?, self.take()?];
        for i in 0..2 {
            let first = match x[i] {
                Source::Register(r) => r,
                Source::Memory(m) => {
                    self.asm.c.vpbroadcastq(z(to[i]), m)?;
                    z(to[i])
                }
            };
            longs(self.asm, z(to[i]), first, y[i])?;
        }
        self.free.extend(x_held.into_iter().chain(y_held).flatten());
        self.done(a);
        self.done(b);
        self.settle(to, result)
    }

    /// Leaves 64-bit lanes as soon as 32 bits suffice.
    pub(super) fn settle(&mut self, [e, o]: [u8; 2], result: Interval) -> Assembled<Value> {
        if fit(result) == Held::I64 {
            return Ok(Value::Long(Vector { n: e, temporary: true }, Vector { n: o, temporary: true }));
        }
        let n = self.narrow(e, o, 0)?;
        self.free.push(o);
        Ok(temporary(n))
    }

    /// Bits `s .. s + 32` of even and odd 64-bit lanes, in place of the even ones.
    pub(super) fn narrow(&mut self, e: u8, o: u8, s: u32) -> Assembled<u8> {
        if s > 0 {
            self.asm.c.vpsrlq(z(e), z(e), s)?;
        }
        self.asm.c.vpsllq(z(o), z(o), 32 - s)?;
        self.asm.c.vmovdqa32(z(e).k7(), z(o))?;
        debug_assert_eq!(ODD, 7);
        Ok(e)
    }

    pub(super) fn multiply(&mut self, a: Reg, b: Reg, result: Interval) -> Assembled<Value> {
        let operands = self.held(a).max(self.held(b));
        if operands == Held::I64 || fit(result) != Held::I64 {
            return self
                .binary(a, b, result, &|c, d, x, y| op!(c, vpmulld, d, x, y), &|c, d, x, y| op!(c, vpmullq, d, x, y));
        }
        // A constant or memory goes second.
        let (a, b) = if matches!(self.slot(a).value, Value::Word(_)) { (a, b) } else { (b, a) };
        let x = self.word(a)?.n;
        let (even, odd) = (self.take()?, self.take()?);
        self.asm.c.vpsrlq(z(odd), z(x), 32)?;
        match self.slot(b).value {
            Value::Const(c) => {
                let c = self.pin_or_memory(Pin::Qword(c));
                op!(self.asm, vpmuldq, z(even), z(x), c)?;
                op!(self.asm, vpmuldq, z(odd), z(odd), c)?;
            }
            Value::Memory(base, disp) if self.is_padded(b) => {
                let (evens, odds) =
                    (self.pin_or_memory(Pin::Words(base, disp)), self.pin_or_memory(Pin::Words(base, disp + 4)));
                op!(self.asm, vpmuldq, z(even), z(x), evens)?;
                op!(self.asm, vpmuldq, z(odd), z(odd), odds)?;
            }
            _ => {
                let y = self.source(b)?;
                let shifted = self.take()?;
                op!(self.asm, vpmuldq, z(even), z(x), y)?;
                match y {
                    Source::Register(r) => self.asm.c.vpsrlq(z(shifted), r, 32)?,
                    Source::Memory(m) => self.asm.c.vpsrlq(z(shifted), m, 32)?,
                }
                self.asm.c.vpmuldq(z(odd), z(odd), z(shifted))?;
                self.free.push(shifted);
            }
        }
        self.done(a);
        self.done(b);
        Ok(Value::Long(Vector { n: even, temporary: true }, Vector { n: odd, temporary: true }))
    }

    /// Whether a value in memory may be read four bytes on.
    pub(super) fn is_padded(&self, r: Reg) -> bool {
        let root = self.alias[r as usize];
        matches!(self.spec.program.insts[root], Inst::Load(n) if matches!(self.group.inputs[n as usize], Feed::Padded(..)))
    }

    fn dword(&mut self, c: i64) -> Source {
        self.pin_or_memory(Pin::Dword(c))
    }

    /// `(a*b + 2^14) >> 15`, at most 32767.
    pub(super) fn multiply_high(&mut self, a: Reg, b: Reg) -> Assembled<Value> {
        let (x, y) = (self.word(a)?, self.source(b)?);
        self.done(a);
        self.done(b);
        let to = self.take()?;
        op!(self.asm, vpmulld, z(to), z(x.n), y)?;
        let (half, most) = (self.dword(1 << 14), self.dword(i64::from(i16::MAX)));
        op!(self.asm, vpaddd, z(to), z(to), half)?;
        self.asm.c.vpsrad(z(to), z(to), 15)?;
        op!(self.asm, vpminsd, z(to), z(to), most)?;
        Ok(temporary(to))
    }

    pub(super) fn shift_left(&mut self, a: Reg, s: u32, result: Interval) -> Assembled<Value> {
        if self.held(a).max(fit(result)) != Held::I64 {
            let x = self.word(a)?;
            self.done(a);
            let to = self.take()?;
            self.asm.c.vpslld(z(to), z(x.n), s)?;
            return Ok(temporary(to));
        }
        let to = self.long_copy(a)?;
        for n in to {
            self.asm.c.vpsllq(z(n), z(n), s)?;
        }
        self.settle(to, result)
    }

    pub(super) fn shift_word(&mut self, a: Reg, s: u32) -> Assembled<Value> {
        let x = self.word(a)?;
        self.done(a);
        let to = self.take()?;
        self.asm.c.vpsrad(z(to), z(x.n), s.min(31))?;
        Ok(temporary(to))
    }

    pub(super) fn round_shift(&mut self, a: Reg, s: u32, result: Interval) -> Assembled<Value> {
        let half = 1i128 << (s - 1);
        let x = self.intervals[a as usize];
        // A value that fits may leave 32 bits with its rounding half, in a 64-bit lane of the language.
        if fit((x.0, x.1 + half)) == Held::I64 && self.spec.program.widths().is_ok_and(|w| is_long(&w, a)) {
            let to = self.long_copy(a)?;
            self.add_to_longs(to, 1 << (s - 1))?;
            return self.finish_shift(to, s, result);
        }
        let x = self.word(a)?;
        self.done(a);
        let to = self.take()?;
        let half = self.dword(1 << (s - 1));
        op!(self.asm, vpaddd, z(to), z(x.n), half)?;
        self.asm.c.vpsrad(z(to), z(to), s.min(31))?;
        Ok(temporary(to))
    }

    /// The value in 64-bit lanes, in registers that may be changed; counts as a use.
    pub(super) fn long_copy(&mut self, a: Reg) -> Assembled<[u8; 2]> {
        if let Value::Long(e, o) = self.slot(a).value
            && self.is_last_use(a)
            && e.temporary
            && o.temporary
        {
            self.slots[self.alias[a as usize]] = None;
            return Ok([e.n, o.n]);
        }
        let (sources, held) = self.long(a)?;
        let to = match held {
            Some(held) => held,
            None => {
                let to = [self.take()?, self.take()?];
                for (n, s) in to.into_iter().zip(sources) {
                    match s {
                        Source::Register(r) => self.asm.c.vmovdqa64(z(n), r)?,
                        Source::Memory(m) => self.asm.c.vpbroadcastq(z(n), m)?,
                    }
                }
                to
            }
        };
        self.done(a);
        Ok(to)
    }

    /// A rounding shift of 64-bit lanes, with the constant that joins it.
    pub(super) fn round_long(&mut self, i: usize, a: Reg, s: u32, result: Interval) -> Assembled<Value> {
        let plus = self.joined.iter().find(|j| j.shift == i).map(|j| j.constant);
        let x = self.intervals[a as usize];
        let high = ((x.0 >> 32) - 1, (x.1 >> 32) + (1i128 << s.saturating_sub(33)));
        let to = self.long_copy(a)?;
        if s >= 33 && fit(result) != Held::I64 && (plus.is_some() || fit(high) != Held::I64) {
            let n = self.high_halves(to)?;
            let half = (1i64 << (s - 33)) + (plus.unwrap_or(0) << (s - 32));
            let half = self.dword(half);
            op!(self.asm, vpaddd, z(n), z(n), half)?;
            self.asm.c.vpsrad(z(n), z(n), s - 32)?;
            return Ok(temporary(n));
        }
        self.add_to_longs(to, 1 << (s - 1))?;
        self.finish_shift(to, s, result)
    }

    fn add_to_longs(&mut self, to: [u8; 2], constant: i64) -> Assembled {
        let constant = self.pin_or_memory(Pin::Qword(constant));
        for n in to {
            op!(self.asm, vpaddq, z(n), z(n), constant)?;
        }
        Ok(())
    }

    /// The high halves of even and odd 64-bit lanes; those of odd elements lie where they belong.
    pub(super) fn high_halves(&mut self, [e, o]: [u8; 2]) -> Assembled<u8> {
        self.asm.c.vpshufd(z(o).k6(), z(e), 0xf5)?;
        debug_assert_eq!(EVEN, 6);
        self.free.push(e);
        Ok(o)
    }

    pub(super) fn finish_shift(&mut self, to: [u8; 2], s: u32, result: Interval) -> Assembled<Value> {
        let [e, o] = to;
        if fit(result) == Held::I64 {
            for n in to {
                self.asm.c.vpsraq(z(n), z(n), s)?;
            }
            return Ok(Value::Long(Vector { n: e, temporary: true }, Vector { n: o, temporary: true }));
        }
        if s < 32 {
            let n = self.narrow(e, o, s)?;
            self.free.push(o);
            return Ok(temporary(n));
        }
        let n = self.high_halves(to)?;
        if s > 32 {
            self.asm.c.vpsrad(z(n), z(n), s - 32)?;
        }
        Ok(temporary(n))
    }

    pub(super) fn select(&mut self, a: Reg, b: Reg, c: Reg, d: Reg) -> Assembled<Value> {
        if [a, b, c, d].into_iter().any(|r| self.held(r) == Held::I64) {
            // No form of ours selects in 64 bits.
            return Err(Fault::Registers);
        }
        let (x, y) = (self.word(a)?, self.source(b)?);
        // Predicate 1: less than, signed.
        match y {
            Source::Register(r) => self.asm.c.vpcmpd(k(COMPARED), z(x.n), r, 1)?,
            Source::Memory(m) => self.asm.c.vpcmpd(k(COMPARED), z(x.n), m, 1)?,
        }
        self.done(a);
        self.done(b);
        let (other, chosen) = (self.word(d)?, self.source(c)?);
        self.done(c);
        self.done(d);
        let to = self.take()?;
        match chosen {
            Source::Register(r) => self.asm.c.vpblendmd(z(to).k1(), z(other.n), r)?,
            Source::Memory(m) => self.asm.c.vpblendmd(z(to).k1(), z(other.n), m)?,
        }
        Ok(temporary(to))
    }

    pub(super) fn clamp(&mut self, a: Reg, lo: i64, hi: i64) -> Assembled<Value> {
        let interval = self.intervals[a as usize];
        if self.held(a) == Held::I64 {
            self.bound_long(a, lo, hi)?;
            let to = self.long_copy(a)?;
            return self.settle(to, (lo.into(), hi.into()));
        }
        let x = self.word(a)?;
        let (below, above) = (interval.0 < lo.into(), interval.1 > hi.into());
        if !below && !above && !self.is_last_use(a) {
            let to = self.take()?;
            self.asm.c.vmovdqa64(z(to), z(x.n))?;
            self.done(a);
            return Ok(temporary(to));
        }
        self.done(a);
        let to = self.take()?;
        let mut from = x.n;
        if below {
            let lo = self.dword(lo);
            op!(self.asm, vpmaxsd, z(to), z(from), lo)?;
            from = to;
        }
        if above {
            let hi = self.dword(hi);
            op!(self.asm, vpminsd, z(to), z(from), hi)?;
            from = to;
        }
        if from != to {
            self.asm.c.vmovdqa64(z(to), z(from))?;
        }
        Ok(temporary(to))
    }

    /// Clamps the 64-bit lanes of a value that has them, for this and all later uses.
    pub(super) fn bound_long(&mut self, a: Reg, lo: i64, hi: i64) -> Assembled {
        let uses = self.slot(a).uses;
        let to = self.long_copy(a)?;
        let (lo, hi) = (self.pin_or_memory(Pin::Qword(lo)), self.pin_or_memory(Pin::Qword(hi)));
        for n in to {
            op!(self.asm, vpmaxsq, z(n), z(n), lo)?;
            op!(self.asm, vpminsq, z(n), z(n), hi)?;
        }
        if uses > 1 {
            return Err(Fault::Registers);
        }
        let value = Value::Long(Vector { n: to[0], temporary: true }, Vector { n: to[1], temporary: true });
        self.slots[self.alias[a as usize]] = Some(Slot { value, uses });
        Ok(())
    }
}
