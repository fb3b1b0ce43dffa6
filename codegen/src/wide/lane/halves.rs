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

impl Code<'_> {
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

    /// What an instruction reads, when 16-bit lanes can do it: the result has 16 bits, and so has all in between.
    fn in_halves(&self, i: usize, cut: usize, source: usize) -> Option<Vec<usize>> {
        let inst = &self.spec.program.insts[i];
        let fits = |(lo, hi): Interval| lo >= I16.0.into() && hi <= I16.1.into();
        let known = match *inst {
            Inst::Load(n) => {
                let feed = self.group.inputs[n as usize];
                let placed = matches!(feed, Feed::Row(..) | Feed::Padded(..) | Feed::One(..));
                placed && self.spec.program.inputs[n as usize].elem == Elem::I16
            }
            Inst::Const(..) | Inst::Add(..) | Inst::Sub(..) | Inst::Min(..) | Inst::Max(..) | Inst::Clamp(..) => true,
            Inst::Truncate(_) => true, // what was saturated in 64-bit lanes
            Inst::Shl(_, s) | Inst::RoundShr(_, s) => s <= 15,
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

    /// Emits the program with its tail and stores the row.
    pub(super) fn run_tail(&mut self, tail: &Tail) -> Assembled {
        let words = self.stage(tail.source, I16, false)?;
        let mut halves = Vec::new();
        for pair in words.chunks(2) {
            halves.push(self.pack_halves(pair)?);
        }
        for (i, half) in halves.iter_mut().enumerate() {
            *half = self.tail_half(tail, i, *half)?;
        }
        match self.spec.program.output {
            Elem::I16 => self.store_found_halves(&halves),
            elem => {
                let bytes = self.join_halves(&halves, elem == Elem::I8)?;
                self.store_bytes(bytes)
            }
        }
    }

    /// Two vectors of words as one of halves, saturated and in order; the second becomes free.
    fn pack_halves(&mut self, pair: &[u8]) -> Assembled<u8> {
        let (first, second) = (pair[0], pair[pair.len() - 1]);
        self.asm.c.vpackssdw(z(first), z(first), z(second))?;
        self.in_order(first)?;
        if pair.len() > 1 {
            self.free.push(second);
        }
        Ok(first)
    }

    /// Brings 64-bit parts into order that a pack of two registers has interleaved.
    fn in_order(&mut self, n: u8) -> Assembled {
        let order = [0u64, 2, 4, 6, 1, 3, 5, 7].map(|i| i.to_le_bytes()).concat();
        let order = zmmword_ptr(self.asm.bytes(&order));
        let index = self.take()?;
        self.asm.c.vmovdqu64(z(index), order)?;
        self.asm.c.vpermq(z(n), z(index), z(n))?;
        self.free.push(index);
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
        self.in_order(first)?;
        Ok(first)
    }

    /// The tail of thirty-two elements, of which `packed` holds the saturated values.
    fn tail_half(&mut self, tail: &Tail, half: usize, packed: u8) -> Assembled<u8> {
        let count = self.spec.program.insts.len();
        let mut left = tail.uses.clone();
        let mut held: Vec<Option<u8>> = vec![None; count];
        held[tail.cut] = Some(packed);
        for i in (0..count).filter(|&i| i != tail.cut && tail.uses[i] > 0) {
            let inst = self.spec.program.insts[i];
            if matches!(inst, Inst::Const(..)) {
                continue;
            }
            let operands = self.in_halves(i, tail.cut, tail.source).ok_or(Fault::Registers)?;
            let to = self.take()?;
            match inst {
                Inst::Load(n) => self.load_halves(n as usize, half, to)?,
                _ => self.half_inst(&inst, &operands, &held, to)?,
            }
            held[i] = Some(to);
            for r in operands {
                left[r] -= 1;
                if let (0, Some(n)) = (left[r], held[r]) {
                    self.free.push(n);
                }
            }
        }
        held[count - 1].ok_or(Fault::Registers)
    }

    /// An instruction on registers of halves and constants.
    fn half_inst(&mut self, inst: &Inst, operands: &[usize], held: &[Option<u8>], to: u8) -> Assembled {
        // a constant goes second; only sums and products have one first
        let swap = held[operands[0]].is_none() && operands.len() > 1;
        let (first, second) =
            if swap { (operands[1], operands[0]) } else { (operands[0], operands[operands.len() - 1]) };
        let x = z(held[first].ok_or(Fault::Registers)?);
        let (to, y) = (z(to), self.half_source(second, held));
        match *inst {
            Inst::Sub(..) if swap => return Err(Fault::Registers),
            Inst::Add(..) => op!(self.asm, vpaddsw, to, x, y)?,
            Inst::Sub(..) => op!(self.asm, vpsubw, to, x, y)?,
            Inst::Min(..) => op!(self.asm, vpminsw, to, x, y)?,
            Inst::Max(..) => op!(self.asm, vpmaxsw, to, x, y)?,
            Inst::MulHigh15(..) => op!(self.asm, vpmulhrsw, to, x, y)?,
            Inst::RoundShr(_, s) => {
                let power = self.half_constant(1 << (15 - s));
                self.asm.c.vpmulhrsw(to, x, power)?;
            }
            Inst::Shl(_, s) => self.asm.c.vpsllw(to, x, s)?,
            Inst::Clamp(_, lo, hi) => {
                // what has saturated already is within
                let interval = meet(self.intervals[first], (I16.0.into(), I16.1.into()));
                self.clamp_halves((to, x), interval, (lo, hi))?;
            }
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
            let lo = self.half_constant(lo);
            self.asm.c.vpmaxsw(to, from, lo)?;
            from = to;
        }
        if interval.1 > hi.into() {
            let hi = self.half_constant(hi);
            self.asm.c.vpminsw(to, from, hi)?;
            from = to;
        }
        if from == x {
            self.asm.c.vmovdqa64(to, x)?;
        }
        Ok(())
    }

    fn half_source(&mut self, r: usize, held: &[Option<u8>]) -> Source {
        match (held[r], self.spec.program.insts[r]) {
            (None, Inst::Const(c, _)) => Source::Memory(self.half_constant(c)),
            (n, _) => Source::Register(z(n.unwrap_or_default())),
        }
    }

    fn half_constant(&mut self, c: i64) -> AsmMemoryOperand {
        zmmword_ptr(self.asm.bytes(&(c as i16).to_le_bytes().repeat(HALVES)))
    }

    /// Thirty-two `i16` of an input.
    fn load_halves(&mut self, n: usize, half: usize, to: u8) -> Assembled {
        match self.group.inputs[n] {
            Feed::Row(base, disp) | Feed::Padded(base, disp) => {
                let from = zmmword_ptr(at(base, disp + 64 * half as i64));
                debug_assert_eq!(TAIL_HALVES, 3);
                match self.group.columns < (half + 1) * HALVES {
                    true => self.asm.c.vmovdqu16(z(to).k3().z(), from)?,
                    false => self.asm.c.vmovdqu64(z(to), from)?,
                }
            }
            Feed::One(base, disp) => self.asm.c.vpbroadcastw(z(to), word_ptr(at(base, disp)))?,
            Feed::Registers(_) | Feed::Table(_) => return Err(Fault::Registers),
        }
        Ok(())
    }
}
