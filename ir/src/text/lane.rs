//! Lane programs as text: the words of the instructions and the kinds of their arguments, one table for printer and
//! parser.

use super::print::symbol;
use crate::lane::{Access, Inst, Program, Reg, Width};

/// Kind of an argument of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `%3`, an earlier instruction.
    Reg,
    /// A number.
    Int,
}

/// Every instruction: its word and its arguments.
pub(super) const INSTS: [(&str, &[Kind]); 18] = {
    use Kind::{Int, Reg};
    [
        ("load", &[Int]),
        ("const32", &[Int]),
        ("const64", &[Int]),
        ("widen", &[Reg]),
        ("truncate", &[Reg]),
        ("add", &[Reg, Reg]),
        ("sub", &[Reg, Reg]),
        ("mul", &[Reg, Reg]),
        ("mulwide", &[Reg, Reg]),
        ("shl", &[Reg, Int]),
        ("shr", &[Reg, Int]),
        ("roundshr", &[Reg, Int]),
        ("min", &[Reg, Reg]),
        ("max", &[Reg, Reg]),
        ("select_less", &[Reg, Reg, Reg, Reg]),
        ("clamp", &[Reg, Int, Int]),
        ("mulhigh15", &[Reg, Reg]),
        ("table", &[Int, Reg, Int]),
    ]
};

/// The instruction of this word with these arguments (as many as the table says); `None` when a number is out of range.
pub(super) fn build(word: &str, args: &[i64]) -> Option<Inst> {
    let a = |i: usize| args.get(i).copied();
    let u = |i: usize| a(i).and_then(|v| u32::try_from(v).ok());
    Some(match word {
        "load" => Inst::Load(u(0)?),
        "const32" => Inst::Const(a(0)?, Width::W32),
        "const64" => Inst::Const(a(0)?, Width::W64),
        "widen" => Inst::Widen(u(0)?),
        "truncate" => Inst::Truncate(u(0)?),
        "add" => Inst::Add(u(0)?, u(1)?),
        "sub" => Inst::Sub(u(0)?, u(1)?),
        "mul" => Inst::Mul(u(0)?, u(1)?),
        "mulwide" => Inst::MulWide(u(0)?, u(1)?),
        "shl" => Inst::Shl(u(0)?, u(1)?),
        "shr" => Inst::Shr(u(0)?, u(1)?),
        "roundshr" => Inst::RoundShr(u(0)?, u(1)?),
        "min" => Inst::Min(u(0)?, u(1)?),
        "max" => Inst::Max(u(0)?, u(1)?),
        "select_less" => Inst::SelectLess(u(0)?, u(1)?, u(2)?, u(3)?),
        "clamp" => Inst::Clamp(u(0)?, a(1)?, a(2)?),
        "mulhigh15" => Inst::MulHigh15(u(0)?, u(1)?),
        "table" => Inst::Table { input: u(0)?, index: u(1)?, bias: a(2)? },
        _ => return None,
    })
}

/// A lane program as it stands in a module.
pub(super) fn print(name: &str, program: &Program) -> String {
    let inputs: Vec<_> = program.inputs.iter().map(|i| format!("{} {}", i.elem, access_word(i.access))).collect();
    let mut out = format!("  lane {} ({}) -> {} {{\n", symbol(name), inputs.join(", "), program.output);
    for (i, inst) in program.insts.iter().enumerate() {
        out.push_str(&format!("    %{i} = {}\n", inst_text(inst)));
    }
    out.push_str("  }\n");
    out
}

fn access_word(access: Access) -> &'static str {
    Access::WORDS.iter().find(|(a, _)| *a == access).map_or("", |(_, w)| w)
}

fn inst_text(inst: &Inst) -> String {
    let two = |word: &str, a: Reg, b: Reg| format!("{word} %{a}, %{b}");
    let by = |word: &str, a: Reg, amount: u32| format!("{word} %{a}, {amount}");
    match *inst {
        Inst::Load(n) => format!("load {n}"),
        Inst::Const(v, Width::W32) => format!("const32 {v}"),
        Inst::Const(v, Width::W64) => format!("const64 {v}"),
        Inst::Widen(a) => format!("widen %{a}"),
        Inst::Truncate(a) => format!("truncate %{a}"),
        Inst::Add(a, b) => two("add", a, b),
        Inst::Sub(a, b) => two("sub", a, b),
        Inst::Mul(a, b) => two("mul", a, b),
        Inst::MulWide(a, b) => two("mulwide", a, b),
        Inst::Shl(a, s) => by("shl", a, s),
        Inst::Shr(a, s) => by("shr", a, s),
        Inst::RoundShr(a, s) => by("roundshr", a, s),
        Inst::Min(a, b) => two("min", a, b),
        Inst::Max(a, b) => two("max", a, b),
        Inst::SelectLess(a, b, c, d) => format!("select_less %{a}, %{b}, %{c}, %{d}"),
        Inst::Clamp(a, lo, hi) => format!("clamp %{a}, {lo}, {hi}"),
        Inst::MulHigh15(a, b) => two("mulhigh15", a, b),
        Inst::Table { input, index, bias } => format!("table {input}, %{index}, {bias}"),
    }
}
