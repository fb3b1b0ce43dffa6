//! The lane language: what happens to one element between a load and a store.
//!
//! A lane program is a short straight line of integer operations in SSA form on 32- and 64-bit lanes. Requantize, the
//! table look-up, the residual add are lane programs; every backend compiles them, and [`Program::eval`] is what they mean.
//! Inputs narrower than 32 bits are widened on load (sign- or zero-extended by their element type).

use crate::types::Elem;

/// How an input is indexed by the element being computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Its own element: same shape as the result (or broadcast to it as in numpy).
    Element,
    /// By the channel: one value for each index of the last dimension (of dimension 1 for a convolution).
    Channel,
    /// By the row: one value for each index of all dimensions but the last.
    Row,
    /// One value for the whole tensor.
    Scalar,
    /// Not loaded: 256 entries that [`Inst::Table`] looks up.
    Table,
}

impl Access {
    /// Every access with its word in the text form.
    pub const WORDS: [(Access, &'static str); 5] = [
        (Access::Element, "element"),
        (Access::Channel, "channel"),
        (Access::Row, "row"),
        (Access::Scalar, "scalar"),
        (Access::Table, "table"),
    ];
}

/// An input of a lane program. Input 0 of a program fused into a matrix product is the `i32` accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Input {
    /// Stored element type.
    pub elem: Elem,
    /// How it is indexed.
    pub access: Access,
}

/// Width of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Width {
    /// 32 bits.
    W32,
    /// 64 bits.
    W64,
}

/// Index of an earlier instruction.
pub type Reg = u32;

/// One instruction. Arithmetic is two's complement; the compiler proves that `i32` arithmetic does not wrap and the
/// evaluator reports an error if it would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Inst {
    /// The element of input `n`, widened to 32 bits (64 for `i64` inputs).
    Load(u32),
    /// A constant of that width.
    Const(i64, Width),
    /// Sign extension to 64 bits.
    Widen(Reg),
    /// The low 32 bits; the value must fit.
    Truncate(Reg),
    /// Sum; operands of one width.
    Add(Reg, Reg),
    /// Difference.
    Sub(Reg, Reg),
    /// Product in the operands' width.
    Mul(Reg, Reg),
    /// Product of two 32-bit lanes in 64 bits.
    MulWide(Reg, Reg),
    /// Left shift by a constant.
    Shl(Reg, u32),
    /// Arithmetic right shift by a constant, towards minus infinity.
    Shr(Reg, u32),
    /// Rounding right shift, half up: `(x + 2^(s-1)) >> s`; the sum must not wrap. `s` is at least 1.
    RoundShr(Reg, u32),
    /// Smaller of two.
    Min(Reg, Reg),
    /// Larger of two.
    Max(Reg, Reg),
    /// `a < b ? c : d`; `a`, `b` of one width, `c`, `d` of one width.
    SelectLess(Reg, Reg, Reg, Reg),
    /// Clamp to constants.
    Clamp(Reg, i64, i64),
    /// `(a*b + 2^14) >> 15` for values within `i16`, saturated to `i16` (`vpmulhrsw`, `sqrdmulh`).
    MulHigh15(Reg, Reg),
    /// Entry `x - bias` of table input `n`; the index must lie in 0..256.
    Table {
        /// Which input is the table.
        input: u32,
        /// Register with the value looked up.
        index: Reg,
        /// Value of the first entry (-128 for `i8`, 0 for `u8`).
        bias: i64,
    },
}

impl Inst {
    /// The registers this instruction reads.
    pub fn operands(&self) -> Vec<Reg> {
        use Inst::*;
        match *self {
            Load(_) | Const(..) => vec![],
            Widen(a) | Truncate(a) | Shl(a, _) | Shr(a, _) | RoundShr(a, _) | Clamp(a, ..) => vec![a],
            Table { index, .. } => vec![index],
            Add(a, b) | Sub(a, b) | Mul(a, b) | MulWide(a, b) | Min(a, b) | Max(a, b) | MulHigh15(a, b) => vec![a, b],
            SelectLess(a, b, c, d) => vec![a, b, c, d],
        }
    }
}

/// A lane program. The value of the last instruction, saturated to `output`, is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Program {
    /// Inputs in operand order.
    pub inputs: Vec<Input>,
    /// Instructions; operands refer to earlier ones.
    pub insts: Vec<Inst>,
    /// Element type stored (values outside its range saturate).
    pub output: Elem,
}

impl Program {
    /// Widths of all instructions, or what is ill-formed (an operand out of range or of the wrong width).
    pub fn widths(&self) -> Result<Vec<Width>, String> {
        let mut widths: Vec<Width> = Vec::with_capacity(self.insts.len());
        for (i, inst) in self.insts.iter().enumerate() {
            let width = self.width_of(inst, &widths).map_err(|e| format!("instruction {i}: {e}"))?;
            widths.push(width);
        }
        if widths.is_empty() { Err("a lane program needs an instruction".into()) } else { Ok(widths) }
    }

    fn width_of(&self, inst: &Inst, widths: &[Width]) -> Result<Width, String> {
        let w = |r: Reg| widths.get(r as usize).copied().ok_or_else(|| format!("%{r} is not defined yet"));
        let same = |a: Reg, b: Reg| if w(a)? == w(b)? { w(a) } else { Err("operands of different widths".to_string()) };
        let want =
            |r: Reg, width: Width| if w(r)? == width { Ok(()) } else { Err(format!("%{r} has the wrong width")) };
        match *inst {
            Inst::Load(n) => match self.inputs.get(n as usize) {
                Some(Input { access: Access::Table, .. }) => Err(format!("input {n} is a table")),
                Some(input) if input.elem == Elem::I64 => Ok(Width::W64),
                Some(input) if input.elem.is_int() => Ok(Width::W32),
                _ => Err(format!("input {n} is missing or not an integer")),
            },
            Inst::Const(v, Width::W32) if i32::try_from(v).is_err() => Err(format!("{v} does not fit 32 bits")),
            Inst::Const(_, width) => Ok(width),
            Inst::Widen(a) => want(a, Width::W32).map(|()| Width::W64),
            Inst::Truncate(a) => want(a, Width::W64).map(|()| Width::W32),
            Inst::Add(a, b) | Inst::Sub(a, b) | Inst::Mul(a, b) | Inst::Min(a, b) | Inst::Max(a, b) => same(a, b),
            Inst::MulWide(a, b) => want(a, Width::W32).and(want(b, Width::W32)).map(|()| Width::W64),
            Inst::MulHigh15(a, b) => want(a, Width::W32).and(want(b, Width::W32)).map(|()| Width::W32),
            Inst::Shl(a, s) | Inst::Shr(a, s) => check_shift(w(a)?, s, 0),
            Inst::RoundShr(a, s) => check_shift(w(a)?, s, 1),
            Inst::Clamp(a, lo, hi) if lo <= hi => w(a),
            Inst::Clamp(..) => Err("clamp to an empty range".into()),
            Inst::SelectLess(a, b, c, d) => same(a, b).and(same(c, d)),
            Inst::Table { input, index, .. } => match self.inputs.get(input as usize) {
                Some(Input { access: Access::Table, .. }) => want(index, Width::W32).map(|()| Width::W32),
                _ => Err(format!("input {input} is not a table")),
            },
        }
    }

    /// The meaning: the stored value for these input elements. `load(n)` is the element of input `n`, `table(n, i)` entry
    /// `i` of table `n`. Errors when a value does not fit where the language says it must.
    pub fn eval(
        &self,
        mut load: impl FnMut(u32) -> i64,
        mut table: impl FnMut(u32, usize) -> i64,
    ) -> Result<i64, String> {
        let widths = self.widths()?;
        let mut regs: Vec<i64> = Vec::with_capacity(self.insts.len());
        for (i, (inst, width)) in self.insts.iter().zip(&widths).enumerate() {
            let value = step(inst, *width, &regs, &mut load, &mut table)
                .filter(|v| *width == Width::W64 || i32::try_from(*v).is_ok())
                .ok_or_else(|| format!("lane instruction {i} ({inst:?}) overflows"))?;
            regs.push(value);
        }
        let (lo, hi) = self.output.range().ok_or("a lane program cannot yield a float")?;
        regs.last().map(|v| (*v).clamp(lo, hi)).ok_or_else(|| "a lane program needs an instruction".into())
    }
}

fn check_shift(width: Width, amount: u32, least: u32) -> Result<Width, String> {
    let most = if width == Width::W32 { 31 } else { 63 };
    if (least..=most).contains(&amount) { Ok(width) } else { Err(format!("shift by {amount}")) }
}

fn step(
    inst: &Inst,
    width: Width,
    regs: &[i64],
    load: &mut impl FnMut(u32) -> i64,
    table: &mut impl FnMut(u32, usize) -> i64,
) -> Option<i64> {
    let r = |i: Reg| regs[i as usize];
    Some(match *inst {
        Inst::Load(n) => load(n),
        Inst::Const(v, _) => v,
        Inst::Widen(a) | Inst::Truncate(a) => r(a),
        Inst::Add(a, b) => r(a).checked_add(r(b))?,
        Inst::Sub(a, b) => r(a).checked_sub(r(b))?,
        Inst::Mul(a, b) | Inst::MulWide(a, b) => r(a).checked_mul(r(b))?,
        Inst::Shl(a, s) => i64::try_from(i128::from(r(a)) << s).ok()?,
        Inst::Shr(a, s) => r(a) >> s,
        Inst::RoundShr(a, s) => {
            let sum = r(a).checked_add(1 << (s - 1))?;
            if width == Width::W32 && i32::try_from(sum).is_err() {
                return None;
            }
            sum >> s
        }
        Inst::Min(a, b) => r(a).min(r(b)),
        Inst::Max(a, b) => r(a).max(r(b)),
        Inst::SelectLess(a, b, c, d) => {
            if r(a) < r(b) {
                r(c)
            } else {
                r(d)
            }
        }
        Inst::Clamp(a, lo, hi) => r(a).clamp(lo, hi),
        Inst::MulHigh15(a, b) => {
            let fits = |v: i64| i16::try_from(v).is_ok();
            if !fits(r(a)) || !fits(r(b)) {
                return None;
            }
            ((r(a) * r(b) + (1 << 14)) >> 15).min(i16::MAX.into())
        }
        Inst::Table { input, index, bias } => {
            let i = usize::try_from(r(index).checked_sub(bias)?).ok().filter(|i| *i < 256)?;
            table(input, i)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requant(shift: u32) -> Program {
        let acc = Input { elem: Elem::I32, access: Access::Element };
        let multiplier = Input { elem: Elem::I32, access: Access::Channel };
        Program {
            inputs: vec![acc, multiplier],
            insts: vec![Inst::Load(0), Inst::Load(1), Inst::MulWide(0, 1), Inst::RoundShr(2, shift)],
            output: Elem::I8,
        }
    }

    #[test]
    fn requantize_rounds_half_up_and_saturates() {
        let p = requant(4);
        let run = |x: i64, m: i64| p.eval(|n| if n == 0 { x } else { m }, |_, _| 0).unwrap();
        assert_eq!(
            (run(8, 1), run(-8, 1), run(7, 1), run(1 << 20, 1 << 20), run(-(1 << 20), 99)),
            (1, 0, 0, 127, -128)
        );
    }

    #[test]
    fn a_sum_that_leaves_32_bits_is_an_error() {
        let mut p = requant(1);
        p.insts = vec![Inst::Load(0), Inst::Add(0, 0)];
        assert!(p.eval(|_| i64::from(i32::MAX), |_, _| 0).is_err());
    }

    #[test]
    fn ill_formed_programs_are_refused() {
        let mut p = requant(0);
        assert!(p.widths().is_err());
        p.insts = vec![Inst::Add(0, 1)];
        assert!(p.widths().is_err());
        p.insts.clear();
        assert!(p.widths().is_err());
    }
}
