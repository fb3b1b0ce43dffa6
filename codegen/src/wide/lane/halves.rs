//! The end of a program in 16-bit lanes: what follows a saturation to `i16` and stays within it, thirty-two elements to a register.
//! A product of 16 bits rounded to its high half is one instruction there, and so is a rounding shift, which is such a product
//! with a power of two.

use super::*;

/// Elements of a register of halves.
const HALVES: usize = 2 * LANES;
const I16: (i64, i64) = (i16::MIN as i64, i16::MAX as i64);

/// Where a program goes over to 16-bit lanes.
#[derive(Clone, Debug)]
pub(super) struct Tail {
    /// The saturation: the first value in 16 bits.
    cut: usize,
    /// What is saturated; a clamp of it to less is one of the saturated value.
    source: usize,
    /// How often each value is read from there on.
    uses: Vec<usize>,
}

impl Code<'_, '_> {
    /// The tail of the program, when it has a product that is cheaper in 16 bits.
    pub(super) fn tail(&self) -> Option<Tail> {
        let insts = &self.spec.program.insts;
        let has_product = |from: usize| insts[from..].iter().any(|i| matches!(i, Inst::MulHigh15(..)));
        let cut = |i: usize| match insts[i] {
            Inst::Clamp(source, lo, hi) if (lo, hi) == I16 => self.tail_from(i, source as usize),
            _ => None,
        };
        (0..insts.len()).filter(|&i| has_product(i)).find_map(cut)
    }

    fn tail_from(&self, cut: usize, source: usize) -> Option<Tail> {
        let mut uses = vec![0; self.spec.program.insts.len()];
        *uses.last_mut()? = 1;
        for i in (0..uses.len()).rev().filter(|&i| i != cut) {
            if uses[i] == 0 {
                continue;
            }
            for r in self.in_halves(i, cut, source)? {
                uses[r] += 1;
            }
        }
        (uses[cut] > 0).then_some(Tail { cut, source, uses })
    }

    /// What an instruction reads, when 16-bit lanes can do it: the result has 16 bits, and so has all in between, but for a product that
    /// is shifted.
    fn in_halves(&self, i: usize, cut: usize, source: usize) -> Option<Vec<usize>> {
        let inst = &self.spec.program.insts[i];
        if let Some(product) = self.long_product(i) {
            return Some(vec![product.x]);
        }
        let fits = |(lo, hi): Interval| lo >= I16.0.into() && hi <= I16.1.into();
        let known = match *inst {
            Inst::Load(n) => {
                let feed = self.group.inputs[n as usize];
                let placed = matches!(feed, Feed::Row(..) | Feed::Padded(..) | Feed::One(..));
                placed && self.spec.program.inputs[n as usize].elem == Elem::I16
            }
            Inst::Const(..) | Inst::Add(..) | Inst::Sub(..) | Inst::Min(..) | Inst::Max(..) | Inst::Clamp(..) => true,
            Inst::Truncate(_) => true, // what was saturated in 64-bit lanes
            Inst::Shl(_, s) | Inst::Shr(_, s) | Inst::RoundShr(_, s) => s <= 15,
            // the instruction wraps where both are -2^15
            Inst::MulHigh15(a, b) => [a, b].iter().any(|&r| self.intervals[r as usize].0 > I16.0.into()),
            _ => false,
        };
        let clamped = |r: Reg| match inst {
            Inst::Clamp(..) if r as usize == source => cut,
            _ => r as usize,
        };
        let whole = matches!(inst, Inst::Clamp(_, lo, hi) if *lo < I16.0 || *hi > I16.1);
        (known && !whole && (fits(self.intervals[i]) || self.is_saturated(i)))
            .then(|| inst.operands().into_iter().map(clamped).collect())
    }

    /// A product of 16 bits and multipliers of the channels, all of 32 bits, that nothing reads but the rounding shift at `i`; the result is
    /// saturated to 16 bits. Two multiplications of pairs, the second factors of which are zero.
    fn long_product(&self, i: usize) -> Option<LongProduct> {
        let insts = &self.spec.program.insts;
        let Inst::RoundShr(product, shift @ 1..=31) = insts[i] else { return None };
        let Inst::Mul(a, b) = insts[product as usize] else { return None };
        let narrow =
            |r: Reg| meet(self.intervals[r as usize], (I16.0.into(), I16.1.into())) == self.intervals[r as usize];
        let multiplier = |r: Reg| match insts[r as usize] {
            Inst::Load(n) if self.spec.program.inputs[n as usize].elem == Elem::I32 => self.row_of(n as usize),
            _ => None,
        };
        let (x, row) = match (multiplier(a), multiplier(b)) {
            (_, Some(row)) => (a, row),
            (Some(row), _) => (b, row),
            _ => return None,
        };
        let is_stored = i + 1 == insts.len() && self.spec.program.output == Elem::I16;
        let alone = insts.iter().filter(|u| u.operands().contains(&product)).count() == 1;
        let fits = narrow(a) && narrow(b) && alone && (is_stored || narrow(i as Reg));
        (fits && self.group.columns.is_multiple_of(HALVES)).then_some(LongProduct { x: x as usize, row, shift })
    }

    /// Where the elements of an input that walks with columns lie.
    fn row_of(&self, n: usize) -> Option<(AsmRegister64, i64)> {
        match self.group.inputs[n] {
            Feed::Row(base, disp) | Feed::Padded(base, disp) => Some((base, disp)),
            _ => None,
        }
    }

    /// Emits a product of that kind on the halves of register `x`.
    fn multiply_long(&mut self, x: u8, product: &LongProduct, half: usize) -> Assembled<Vector> {
        let (zero, held) = self.pin_or_load(Pin::Dword(0))?;
        let words = [self.take()?, self.take()?];
        self.asm.c.vpunpcklwd(z(words[0]), z(x), z(zero))?;
        self.asm.c.vpunpckhwd(z(words[1]), z(x), z(zero))?;
        self.free.extend(held);
        let (base, disp) = product.row;
        for (v, &n) in words.iter().enumerate() {
            let multipliers = self.pin_or_memory(Pin::Words(base, disp + 64 * (2 * half + v) as i64));
            op!(self.asm, vpmaddwd, z(n), z(n), multipliers)?;
            let rounding = self.pin_or_memory(Pin::Dword(1 << (product.shift - 1)));
            op!(self.asm, vpaddd, z(n), z(n), rounding)?;
            self.asm.c.vpsrad(z(n), z(n), product.shift)?;
        }
        self.asm.c.vpackssdw(z(words[0]), z(words[0]), z(words[1]))?;
        self.free.push(words[1]);
        Ok(Vector { n: words[0], temporary: true })
    }

    /// Whether a value is a sum of two values of 16 bits that nothing reads before it is saturated: one instruction.
    fn is_saturated(&self, i: usize) -> bool {
        let insts = &self.spec.program.insts;
        let Inst::Add(a, b) = insts[i] else { return false };
        let narrow = |r: Reg| {
            let (lo, hi) = self.intervals[r as usize];
            lo >= I16.0.into() && hi <= I16.1.into()
        };
        let mut users = insts.iter().filter(|u| u.operands().contains(&(i as Reg)));
        narrow(a) && narrow(b) && users.all(|u| matches!(u, Inst::Clamp(_, lo, hi) if (*lo, *hi) == I16))
    }

    /// Emits the program with its tail and stores the rows.
    pub(super) fn run_tail(&mut self, tail: &Tail) -> Assembled {
        let words = self.stage(tail.source, I16, false)?;
        let mut halves = self.each_row(|code, row| {
            words[row].chunks(2).map(|pair| code.pack_halves(pair)).collect::<Assembled<Vec<u8>>>()
        })?;
        for half in 0..halves[0].len() {
            let done = self.each_row(|code, row| code.tail_half(tail, half, halves[row][half]))?;
            halves.iter_mut().zip(done).for_each(|(of, n)| of[half] = n);
        }
        self.each_row(|code, row| match code.spec.program.output {
            Elem::I16 => {
                code.halves_in_order(&halves[row])?;
                code.store_found_halves(&halves[row])
            }
            elem => {
                let bytes = code.join_halves(&halves[row], elem == Elem::I8)?;
                code.store_bytes(bytes)
            }
        })?;
        Ok(())
    }

    /// Two vectors of words as one of halves, saturated and interleaved; the second becomes free.
    pub(super) fn pack_halves(&mut self, pair: &[u8]) -> Assembled<u8> {
        let (first, second) = (pair[0], pair[pair.len() - 1]);
        self.asm.c.vpackssdw(z(first), z(first), z(second))?;
        if pair.len() > 1 {
            self.free.push(second);
        }
        Ok(first)
    }

    /// Brings columns into order that packs of two registers have interleaved.
    pub(super) fn halves_in_order(&mut self, halves: &[u8]) -> Assembled {
        if let (Arrangement::Interleaved, &[first, second]) = (self.group.arrangement, halves) {
            // Parts of the first and of the second in turn.
            let (low, high) = (self.take()?, self.take()?);
            for (to, pin) in [(low, Pin::FirstParts), (high, Pin::LastParts)] {
                pin.load(self.asm, to)?;
                self.asm.c.vpermi2q(z(to), z(first), z(second))?;
            }
            self.asm.c.vmovdqa64(z(first), z(low))?;
            self.asm.c.vmovdqa64(z(second), z(high))?;
            self.free.extend([low, high]);
            return Ok(());
        }
        let (order, held) = self.pin_or_load(Pin::PairOrder)?;
        for &n in halves {
            self.asm.c.vpermq(z(n), z(order), z(n))?;
        }
        self.free.extend(held);
        Ok(())
    }

    /// Saturates halves to bytes, in order; all but one register become free.
    fn join_halves(&mut self, halves: &[u8], signed: bool) -> Assembled<u8> {
        let (first, second) = (halves[0], halves[halves.len() - 1]);
        match signed {
            true => self.asm.c.vpacksswb(z(first), z(first), z(second))?,
            false => self.asm.c.vpackuswb(z(first), z(first), z(second))?,
        }
        if halves.len() > 1 {
            self.free.push(second);
        }
        self.bytes_in_order(first)?;
        Ok(first)
    }

    /// The tail of thirty-two elements, of which `packed` holds the saturated values.
    fn tail_half(&mut self, tail: &Tail, half: usize, packed: u8) -> Assembled<u8> {
        let count = self.spec.program.insts.len();
        let mut held = Halves { of: (0..count).collect(), values: vec![None; count], left: tail.uses.clone() };
        held.values[tail.cut] = Some(Vector { n: packed, temporary: true });
        for i in (0..count).filter(|&i| i != tail.cut && tail.uses[i] > 0) {
            let inst = self.spec.program.insts[i];
            if matches!(inst, Inst::Const(..)) {
                continue;
            }
            let operands = self.in_halves(i, tail.cut, tail.source).ok_or(Fault::Registers)?;
            if self.passes_on(i, &operands, tail) {
                held.pass_on(i, operands[0], tail.uses[i]);
                continue;
            }
            let value = match (inst, self.long_product(i)) {
                (Inst::Load(n), _) => self.load_halves(n as usize, half)?,
                (_, Some(product)) => {
                    let x = held.value(product.x).ok_or(Fault::Registers)?.n;
                    self.multiply_long(x, &product, half)?
                }
                _ => {
                    let to = self.take()?;
                    self.half_inst(i, &operands, &held, to)?;
                    Vector { n: to, temporary: true }
                }
            };
            held.values[i] = Some(value);
            for r in operands {
                if let Some(v) = held.done(r) {
                    self.give(v);
                }
            }
        }
        let result = held.value(count - 1).ok_or(Fault::Registers)?;
        if result.temporary {
            return Ok(result.n);
        }
        let to = self.take()?;
        self.asm.c.vmovdqa64(z(to), z(result.n))?;
        Ok(to)
    }

    /// Whether an instruction leaves its operand as it is: a clamp to what it is within, or one that a saturating sum does.
    fn passes_on(&self, i: usize, operands: &[usize], tail: &Tail) -> bool {
        let insts = &self.spec.program.insts;
        if i + 1 == insts.len() && operands.iter().any(|&r| self.joined_zero_point(r).is_some()) {
            return true;
        }
        let Inst::Clamp(_, lo, hi) = insts[i] else { return false };
        let (least, most) = self.saturated(operands[0]);
        let summed = || {
            let mut users = (0..insts.len()).filter(|&u| tail.uses[u] > 0 && insts[u].operands().contains(&(i as Reg)));
            users.all(|u| self.saturating_sum(u).is_some_and(|(clamp, ..)| clamp == i))
        };
        (least >= lo.into() && most <= hi.into()) || summed()
    }

    /// Of a sum of a constant and a value clamped so that it reaches `i16`'s end: the clamp, the constant, and the least sum.
    /// Saturating does what the clamp does above, so only the least is left to see to.
    fn saturating_sum(&self, i: usize) -> Option<(usize, i64, i64)> {
        let insts = &self.spec.program.insts;
        let Inst::Add(a, b) = insts[i] else { return None };
        let (clamp, c) = match (insts[a as usize], insts[b as usize]) {
            (_, Inst::Const(c, _)) => (a as usize, c),
            (Inst::Const(c, _), _) => (b as usize, c),
            _ => return None,
        };
        let Inst::Clamp(_, lo, hi) = insts[clamp] else { return None };
        (c >= 0 && hi + c == I16.1 && lo + c >= I16.0).then_some((clamp, c, lo + c))
    }

    /// Of a rounding shift whose result gets a zero point and is then saturated to bytes: the zero point. Both can be added before the
    /// shift, as what saturates there does so in a byte as well.
    fn joined_zero_point(&self, i: usize) -> Option<i64> {
        let insts = &self.spec.program.insts;
        let (Inst::RoundShr(_, shift), Inst::Add(a, b)) = (insts[i], *insts.last()?) else { return None };
        let Inst::Const(c, _) = insts[b as usize] else { return None };
        let alone = insts.iter().filter(|u| u.operands().contains(&(i as Reg))).count() == 1;
        let (_, most) = self.spec.program.output.range()?;
        let joined = shift <= 15 && c >= 0 && rounding_sum(c, shift) <= I16.1 && most <= 255 && I16.1 >> shift >= most;
        (a as usize == i && alone && joined).then_some(c)
    }

    /// The interval of a value once it is saturated to 16 bits.
    fn saturated(&self, r: usize) -> Interval {
        meet(self.intervals[r], (I16.0.into(), I16.1.into()))
    }

    /// An instruction on registers of halves and constants.
    fn half_inst(&mut self, i: usize, operands: &[usize], held: &Halves, to: u8) -> Assembled {
        // a constant goes second; only sums and products have one first
        let swap = held.value(operands[0]).is_none() && operands.len() > 1;
        let (first, second) =
            if swap { (operands[1], operands[0]) } else { (operands[0], operands[operands.len() - 1]) };
        let x = z(held.value(first).ok_or(Fault::Registers)?.n);
        let (to, y) = (z(to), self.half_source(second, held));
        match self.spec.program.insts[i] {
            Inst::Sub(..) if swap => return Err(Fault::Registers),
            Inst::Add(..) if self.saturating_sum(i).is_some_and(|(_, _, least)| least > I16.0) => {
                let least = self.saturating_sum(i).map_or(0, |(_, _, least)| least);
                op!(self.asm, vpaddsw, to, x, y)?;
                let least = self.pin_or_memory(Pin::Half(least));
                op!(self.asm, vpmaxsw, to, to, least)?;
            }
            Inst::Add(..) => op!(self.asm, vpaddsw, to, x, y)?,
            Inst::Sub(..) => op!(self.asm, vpsubw, to, x, y)?,
            Inst::Min(..) => op!(self.asm, vpminsw, to, x, y)?,
            Inst::Max(..) => op!(self.asm, vpmaxsw, to, x, y)?,
            Inst::MulHigh15(..) => op!(self.asm, vpmulhrsw, to, x, y)?,
            Inst::RoundShr(_, s) if self.joined_zero_point(i).is_some() => {
                let sum = rounding_sum(self.joined_zero_point(i).unwrap_or(0), s);
                let sum = self.pin_or_memory(Pin::Half(sum));
                op!(self.asm, vpaddsw, to, x, sum)?;
                self.asm.c.vpsraw(to, to, s)?;
            }
            Inst::RoundShr(_, s) => {
                let power = self.pin_or_memory(Pin::Half(1 << (15 - s)));
                op!(self.asm, vpmulhrsw, to, x, power)?;
            }
            Inst::Shl(_, s) => self.asm.c.vpsllw(to, x, s)?,
            Inst::Shr(_, s) => self.asm.c.vpsraw(to, x, s)?,
            Inst::Clamp(_, lo, hi) => self.clamp_halves((to, x), self.saturated(first), (lo, hi))?,
            _ => self.asm.c.vmovdqa64(to, x)?,
        }
        Ok(())
    }

    /// Clamps on the sides where a value of that interval can be beyond.
    fn clamp_halves(
        &mut self,
        (to, x): (AsmRegisterZmm, AsmRegisterZmm),
        interval: Interval,
        (lo, hi): (i64, i64),
    ) -> Assembled {
        let mut from = x;
        if interval.0 < lo.into() {
            let lo = self.pin_or_memory(Pin::Half(lo));
            op!(self.asm, vpmaxsw, to, from, lo)?;
            from = to;
        }
        if interval.1 > hi.into() {
            let hi = self.pin_or_memory(Pin::Half(hi));
            op!(self.asm, vpminsw, to, from, hi)?;
        }
        Ok(())
    }

    fn half_source(&mut self, r: usize, held: &Halves) -> Source {
        match (held.value(r), self.spec.program.insts[r]) {
            (None, Inst::Const(c, _)) => self.pin_or_memory(Pin::Half(c)),
            (v, _) => Source::Register(z(v.map_or(0, |v| v.n))),
        }
    }

    /// Thirty-two `i16` of an input, interleaved as packs leave them.
    fn load_halves(&mut self, n: usize, half: usize) -> Assembled<Vector> {
        debug_assert_eq!(TAIL_HALVES, 3);
        let pin = match self.group.inputs[n] {
            Feed::Row(base, disp) | Feed::Padded(base, disp) => {
                let disp = disp + 64 * half as i64;
                if self.group.columns < (half + 1) * HALVES {
                    let n = self.take()?;
                    self.asm.c.vmovdqu16(z(n).k3().z(), zmmword_ptr(at(base, disp)))?;
                    let (order, held) = self.pin_or_load(Pin::PackOrder)?;
                    self.asm.c.vpermq(z(n), z(order), z(n))?;
                    self.free.extend(held);
                    return Ok(Vector { n, temporary: true });
                }
                Pin::Packed(base, disp)
            }
            Feed::One(base, disp) => Pin::HalfOne(base, disp),
            Feed::Registers(_) | Feed::Table(_) => return Err(Fault::Registers),
        };
        if let (Pin::Packed(base, disp), None) = (pin, self.pinned(pin)) {
            let n = self.take()?;
            let (order, held) = self.pin_or_load(Pin::PackOrder)?;
            self.asm.c.vpermq(z(n), z(order), zmmword_ptr(at(base, disp)))?;
            self.free.extend(held);
            return Ok(Vector { n, temporary: true });
        }
        let (n, held) = self.pin_or_load(pin)?;
        Ok(Vector { n, temporary: held.is_some() })
    }
}

/// What is added before a rounding shift for a constant to be added after it.
fn rounding_sum(c: i64, shift: u32) -> i64 {
    (c << shift) + (1 << (shift - 1))
}

/// See [`Code::long_product`].
struct LongProduct {
    x: usize,
    /// Where the multipliers lie.
    row: (AsmRegister64, i64),
    shift: u32,
}

/// The values of a tail in registers.
struct Halves {
    /// The instruction whose value an instruction passes on.
    of: Vec<usize>,
    values: Vec<Option<Vector>>,
    /// How often each is still read.
    left: Vec<usize>,
}

impl Halves {
    fn value(&self, r: usize) -> Option<Vector> {
        self.values[self.of[r]]
    }

    fn pass_on(&mut self, i: usize, operand: usize, uses: usize) {
        let root = self.of[operand];
        self.of[i] = root;
        self.left[root] += uses - 1;
    }

    /// One use less; after the last one, what is free then.
    fn done(&mut self, r: usize) -> Option<Vector> {
        let root = self.of[r];
        self.left[root] = self.left[root].saturating_sub(1);
        self.values[root].filter(|_| self.left[root] == 0)
    }
}
