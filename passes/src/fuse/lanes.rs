//! The third rule book: strength reduction inside lane programs, by equality saturation over their instructions.
//!
//! All rules are exact on values for which the left side does not overflow, which the interval analysis has proved. Which program is
//! taken the cost decides, of each value once however often it is read.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use egg::{
    Analysis, Applier, DidMerge, EGraph, FromOp, Id, Language, PatternAst, RecExpr, Rewrite, Runner, SimpleScheduler,
    Subst, Symbol, Var,
};
use vitc_ir::lane::{Inst, Program, Reg, Width};

use crate::extract;

/// An instruction as a term: operands are children, immediates stay in the instruction (whose own operands are zeroed).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneTerm {
    inst: Inst,
    children: Vec<Id>,
}

fn mnemonic(inst: &Inst) -> &'static str {
    match inst {
        Inst::Load(_) => "load",
        Inst::Const(..) => "const",
        Inst::Widen(_) => "widen",
        Inst::Truncate(_) => "truncate",
        Inst::Add(..) => "add",
        Inst::Sub(..) => "sub",
        Inst::Mul(..) => "mul",
        Inst::MulWide(..) => "mulwide",
        Inst::Shl(..) => "shl",
        Inst::Shr(..) => "shr",
        Inst::RoundShr(..) => "roundshr",
        Inst::Min(..) => "min",
        Inst::Max(..) => "max",
        Inst::SelectLess(..) => "selectless",
        Inst::Clamp(..) => "clamp",
        Inst::MulHigh15(..) => "mulhigh15",
        Inst::Table { .. } => "table",
    }
}

/// The instruction with these operands.
fn with_operands(inst: &Inst, r: &[Reg]) -> Inst {
    match *inst {
        Inst::Load(_) | Inst::Const(..) => *inst,
        Inst::Widen(_) => Inst::Widen(r[0]),
        Inst::Truncate(_) => Inst::Truncate(r[0]),
        Inst::Add(..) => Inst::Add(r[0], r[1]),
        Inst::Sub(..) => Inst::Sub(r[0], r[1]),
        Inst::Mul(..) => Inst::Mul(r[0], r[1]),
        Inst::MulWide(..) => Inst::MulWide(r[0], r[1]),
        Inst::Shl(_, s) => Inst::Shl(r[0], s),
        Inst::Shr(_, s) => Inst::Shr(r[0], s),
        Inst::RoundShr(_, s) => Inst::RoundShr(r[0], s),
        Inst::Min(..) => Inst::Min(r[0], r[1]),
        Inst::Max(..) => Inst::Max(r[0], r[1]),
        Inst::SelectLess(..) => Inst::SelectLess(r[0], r[1], r[2], r[3]),
        Inst::Clamp(_, lo, hi) => Inst::Clamp(r[0], lo, hi),
        Inst::MulHigh15(..) => Inst::MulHigh15(r[0], r[1]),
        Inst::Table { input, bias, .. } => Inst::Table { input, index: r[0], bias },
    }
}

impl LaneTerm {
    fn new(inst: &Inst, children: Vec<Id>) -> LaneTerm {
        LaneTerm { inst: with_operands(inst, &[0; 4]), children }
    }
}

impl Language for LaneTerm {
    /// Patterns match by mnemonic and arity; immediates are read by the appliers.
    type Discriminant = (&'static str, usize);

    fn discriminant(&self) -> Self::Discriminant {
        (mnemonic(&self.inst), self.children.len())
    }

    fn matches(&self, other: &Self) -> bool {
        self.inst == other.inst && self.children.len() == other.children.len()
    }

    fn children(&self) -> &[Id] {
        &self.children
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

impl FromOp for LaneTerm {
    type Error = String;

    fn from_op(op: &str, _: Vec<Id>) -> Result<LaneTerm, String> {
        Err(format!("lane rules are written on instructions, not as `{op}`"))
    }
}

impl fmt::Display for LaneTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", mnemonic(&self.inst))
    }
}

/// What is known of a program beside its instructions.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The value of each input that is one constant for all elements.
    scalars: Vec<Option<i64>>,
}

impl Analysis<LaneTerm> for Known {
    type Data = ();

    fn make(_: &mut EGraph<LaneTerm, Known>, _: &LaneTerm, _: Id) {}

    fn merge(&mut self, (): &mut (), (): ()) -> DidMerge {
        DidMerge(false, false)
    }
}

type Lanes = EGraph<LaneTerm, Known>;

/// Builds the right side from a class's instruction and the instructions of its operands; `None` when the guard refuses.
type Build = fn(&mut Lanes, &LaneTerm) -> Option<Id>;

/// A lane rule.
#[derive(Clone)]
pub struct LaneRule {
    /// Name.
    pub name: &'static str,
    build: Build,
}

#[rustfmt::skip]
/// The book. Every rule is exact.
pub fn rules() -> Vec<LaneRule> {
    let rule = |name, build: Build| LaneRule { name, build };
    vec![
        // name                        left side                                 right side and guard
        rule("add-zero",               add_zero),                            //  x + 0                        -> x
        rule("add-constants",          add_constants),                       //  (x + a) + b                  -> x + (a+b)
        rule("multiply-by-power",      multiply_by_power),                   //  x * 2^k                      -> x << k
        rule("shift-zero",             shift_zero),                          //  x << 0, x >> 0               -> x
        rule("merge-shifts",           merge_shifts),                        //  (x >> a) >> b                -> x >> (a+b)
        rule("merge-round-shift",      merge_round_shift),                   //  roundshr(x << a, b), a >= b  -> x << (a-b)
        rule("truncate-widen",         truncate_widen),                      //  truncate(widen x)            -> x
        rule("merge-clamps",           merge_clamps),                        //  clamp(clamp(x, a, b), c, d)  -> clamp(x, ..)
        rule("clamp-full-range",       clamp_full_range),                    //  clamp(x32, -2^31, 2^31-1)    -> x
        rule("clamp-then-truncate",    clamp_then_truncate),                 //  clamp32(truncate(clamp64 x)) -> truncate(clamp64 x), merged
        rule("few-levels",             few_levels),                          //  clamp(requantize x, lo, hi)  -> x < t ? lo : ... : hi, up to 16 levels
    ]
}

fn constant(g: &Lanes, id: Id) -> Option<(i64, Width)> {
    g[id].nodes.iter().find_map(|t| match t.inst {
        Inst::Const(v, w) => Some((v, w)),
        _ => None,
    })
}

/// The operand of the first instruction of that class that `pick` accepts.
fn operand<T>(g: &Lanes, id: Id, pick: impl Fn(&LaneTerm) -> Option<T>) -> Option<T> {
    g[id].nodes.iter().find_map(pick)
}

fn add(g: &mut Lanes, inst: Inst, children: &[Id]) -> Id {
    g.add(LaneTerm::new(&inst, children.to_vec()))
}

fn sum_with_constant(g: &Lanes, t: &LaneTerm) -> Option<(Id, i64, Width)> {
    let Inst::Add(..) = t.inst else { return None };
    let (a, b) = (t.children[0], t.children[1]);
    let right = constant(g, b).map(|(v, w)| (a, v, w));
    right.or_else(|| constant(g, a).map(|(v, w)| (b, v, w)))
}

fn add_zero(g: &mut Lanes, t: &LaneTerm) -> Option<Id> {
    sum_with_constant(g, t).filter(|(_, v, _)| *v == 0).map(|(x, ..)| x)
}

fn add_constants(g: &mut Lanes, t: &LaneTerm) -> Option<Id> {
    let (inner, b, width) = sum_with_constant(g, t)?;
    let (x, a, _) = operand(g, inner, |t| sum_with_constant(g, t))?;
    let total = a.checked_add(b).filter(|s| width == Width::W64 || i32::try_from(*s).is_ok())?;
    let c = add(g, Inst::Const(total, width), &[]);
    Some(add(g, Inst::Add(0, 0), &[x, c]))
}

fn multiply_by_power(g: &mut Lanes, t: &LaneTerm) -> Option<Id> {
    let Inst::Mul(..) = t.inst else { return None };
    let (x, (v, _)) = match (constant(g, t.children[1]), constant(g, t.children[0])) {
        (Some(c), _) => (t.children[0], c),
        (None, Some(c)) => (t.children[1], c),
        _ => return None,
    };
    (v > 0 && v & (v - 1) == 0).then(|| add(g, Inst::Shl(0, v.trailing_zeros()), &[x]))
}

fn shift_zero(_: &mut Lanes, t: &LaneTerm) -> Option<Id> {
    matches!(t.inst, Inst::Shl(_, 0) | Inst::Shr(_, 0)).then(|| t.children[0])
}

fn merge_shifts(g: &mut Lanes, t: &LaneTerm) -> Option<Id> {
    let Inst::Shr(_, b) = t.inst else { return None };
    let (x, a) = operand(g, t.children[0], |t| match t.inst {
        Inst::Shr(_, a) => Some((t.children[0], a)),
        _ => None,
    })?;
    (a + b <= 31).then(|| add(g, Inst::Shr(0, a + b), &[x]))
}

fn merge_round_shift(g: &mut Lanes, t: &LaneTerm) -> Option<Id> {
    let Inst::RoundShr(_, b) = t.inst else { return None };
    let (x, a) = operand(g, t.children[0], |t| match t.inst {
        Inst::Shl(_, a) => Some((t.children[0], a)),
        _ => None,
    })?;
    (a >= b).then(|| add(g, Inst::Shl(0, a - b), &[x]))
}

fn truncate_widen(g: &mut Lanes, t: &LaneTerm) -> Option<Id> {
    let Inst::Truncate(_) = t.inst else { return None };
    operand(g, t.children[0], |t| matches!(t.inst, Inst::Widen(_)).then(|| t.children[0]))
}

fn clamp_of(t: &LaneTerm) -> Option<(Id, i64, i64)> {
    match t.inst {
        Inst::Clamp(_, lo, hi) => Some((t.children[0], lo, hi)),
        _ => None,
    }
}

fn merge_clamps(g: &mut Lanes, t: &LaneTerm) -> Option<Id> {
    let (inner, c, d) = clamp_of(t)?;
    let (x, a, b) = operand(g, inner, clamp_of)?;
    Some(add(g, Inst::Clamp(0, a.clamp(c, d), b.clamp(c, d)), &[x]))
}

fn clamp_full_range(_: &mut Lanes, t: &LaneTerm) -> Option<Id> {
    // on a 64-bit lane the same bounds do narrow; then the class holds a 64-bit value and the rule below handles it
    let (x, lo, hi) = clamp_of(t)?;
    (lo == i64::MIN && hi == i64::MAX).then_some(x)
}

fn clamp_then_truncate(g: &mut Lanes, t: &LaneTerm) -> Option<Id> {
    let (inner, c, d) = clamp_of(t)?;
    let wide = operand(g, inner, |t| matches!(t.inst, Inst::Truncate(_)).then(|| t.children[0]))?;
    let (x, a, b) = operand(g, wide, clamp_of)?;
    let clamped = add(g, Inst::Clamp(0, a.clamp(c, d), b.clamp(c, d)), &[x]);
    Some(add(g, Inst::Truncate(0), &[clamped]))
}

/// A requantize by one multiplier: `roundshr(x * multiplier, shift) + zero_point`.
#[derive(Clone, Copy)]
struct Dyadic {
    x: Id,
    multiplier: i64,
    shift: u32,
    zero_point: i64,
}

impl Dyadic {
    /// The requantize that yields a class; `narrow` tells whether its result has 32 bits.
    fn of(g: &Lanes, id: Id, narrow: bool) -> Option<Dyadic> {
        operand(g, id, |t| match t.inst {
            Inst::Truncate(_) if narrow => Dyadic::of(g, t.children[0], false),
            Inst::RoundShr(_, shift) if !narrow => {
                let (x, multiplier) = operand(g, t.children[0], |t| scaled(g, t))?;
                Some(Dyadic { x, multiplier, shift, zero_point: 0 })
            }
            _ => {
                // a sum with zero may be of the class itself
                let (x, z, _) = sum_with_constant(g, t).filter(|(_, z, _)| *z != 0)?;
                let inner = Dyadic::of(g, x, narrow)?;
                (inner.zero_point == 0).then_some(Dyadic { zero_point: z, ..inner })
            }
        })
    }

    fn of_value(self, x: i32) -> i128 {
        let product = i128::from(x) * i128::from(self.multiplier);
        ((product + (1 << (self.shift - 1))) >> self.shift) + i128::from(self.zero_point)
    }

    /// The least 32-bit value from which on the result is that level or more: the function never falls.
    fn threshold(self, level: i64) -> Option<i32> {
        let reaches = |x: i64| self.of_value(x as i32) >= level.into();
        let (mut below, mut from) = (i64::from(i32::MIN) - 1, i64::from(i32::MAX) + 1);
        while from - below > 1 {
            let middle = (below + from).div_euclid(2);
            if reaches(middle) { from = middle } else { below = middle }
        }
        i32::try_from(from).ok()
    }
}

/// The operand of a 64-bit product with one positive number for all elements, and that number.
fn scaled(g: &Lanes, t: &LaneTerm) -> Option<(Id, i64)> {
    let Inst::MulWide(..) = t.inst else { return None };
    let number = |id: Id| {
        let scalar = |t: &LaneTerm| match t.inst {
            Inst::Load(n) => g.analysis.scalars.get(n as usize).copied().flatten(),
            Inst::Const(v, _) => Some(v),
            _ => None,
        };
        operand(g, id, scalar).filter(|m| *m > 0)
    };
    let (a, b) = (t.children[0], t.children[1]);
    number(b).map(|m| (a, m)).or_else(|| number(a).map(|m| (b, m)))
}

/// A requantize of few levels as comparisons (the comparator quantizers of Low-Bit Integerization): the level is the one
/// before the first threshold that the value does not reach.
fn few_levels(g: &mut Lanes, t: &LaneTerm) -> Option<Id> {
    /// More levels are never cheaper.
    const LEVELS: i64 = 16;
    let (clamped, lo, hi) = match t.inst {
        Inst::Truncate(_) => operand(g, t.children[0], clamp_of)?,
        _ => clamp_of(t)?,
    };
    if hi.saturating_sub(lo) >= LEVELS || lo < i32::MIN.into() || hi > i32::MAX.into() {
        return None;
    }
    let quantizer = Dyadic::of(g, clamped, !matches!(t.inst, Inst::Truncate(_)))?;
    let mut level = add(g, Inst::Const(hi, Width::W32), &[]);
    for next in (lo + 1..=hi).rev() {
        let below = add(g, Inst::Const(next - 1, Width::W32), &[]);
        level = match quantizer.threshold(next) {
            Some(threshold) => {
                let threshold = add(g, Inst::Const(threshold.into(), Width::W32), &[]);
                add(g, Inst::SelectLess(0, 0, 0, 0), &[quantizer.x, threshold, below, level])
            }
            None => below,
        };
    }
    Some(level)
}

/// Runs a builder on every instruction of a class.
impl Applier<LaneTerm, Known> for LaneRule {
    fn apply_one(
        &self,
        g: &mut Lanes,
        class: Id,
        _: &Subst,
        _: Option<&PatternAst<LaneTerm>>,
        rule: Symbol,
    ) -> Vec<Id> {
        let terms = g[class].nodes.clone();
        let mut changed = false;
        for term in &terms {
            if let Some(new) = (self.build)(g, term) {
                changed |= g.union_trusted(class, new, rule);
            }
        }
        if changed { vec![class] } else { vec![] }
    }
}

/// Rough instruction counts of the portable tier; 64-bit lanes need two vectors, tables are scalar. A comparison counts for what it is
/// beside a requantize on 512 bits, where products cost less: three levels are faster by comparisons, four are slower. On 128 bits six
/// still would be faster (docs/accuracy.md).
fn cost(inst: &Inst) -> u64 {
    match inst {
        Inst::Load(_) | Inst::Const(..) => 1,
        Inst::Mul(..) | Inst::MulWide(..) => 4,
        Inst::RoundShr(..) | Inst::SelectLess(..) => 4,
        Inst::Clamp(..) => 3,
        Inst::Table { .. } => 12,
        _ => 2,
    }
}

/// The cheapest equal program. What a final clamp does that the store's saturation does anyway is left out. `scalars` holds the
/// values of inputs that are one constant.
pub fn optimize(
    program: &Program,
    scalars: &[Option<i64>],
    fired: &mut BTreeMap<String, usize>,
) -> Result<Program, String> {
    program.widths()?;
    let mut expr: RecExpr<LaneTerm> = RecExpr::default();
    for inst in &program.insts {
        let children = inst.operands().into_iter().map(|r| Id::from(r as usize)).collect();
        expr.add(LaneTerm::new(inst, children));
    }
    let any = egg::Pattern::<LaneTerm>::new(any_class());
    let rewrites: Vec<Rewrite<LaneTerm, Known>> = rules()
        .into_iter()
        .map(|r| Rewrite::new(r.name, any.clone(), r).map_err(|e| e.to_string()))
        .collect::<Result<_, _>>()?;
    let runner = Runner::<LaneTerm, Known, ()>::new(Known { scalars: scalars.to_vec() })
        .with_expr(&expr)
        .with_scheduler(SimpleScheduler)
        .with_time_limit(Duration::MAX)
        .with_node_limit(2_000)
        .with_iter_limit(12)
        .run(&rewrites);
    for iteration in &runner.iterations {
        for (rule, count) in &iteration.applied {
            *fired.entry(rule.to_string()).or_default() += count;
        }
    }
    let (egraph, root) = (&runner.egraph, runner.egraph.find(runner.roots[0]));
    let chosen = extract::extract(egraph, &[root], |_, term| cost(&term.inst)).ok_or("saturation lost the program")?;
    let (depths, registers, insts) = Default::default();
    let mut schedule = Schedule { egraph, chosen: &chosen, depths, registers, insts };
    schedule.push(root);
    let optimized = Program { insts: schedule.insts, ..program.clone() };
    Ok(drop_stored_clamp(optimized))
}

fn any_class() -> PatternAst<LaneTerm> {
    let mut ast = PatternAst::default();
    ast.add(egg::ENodeOrVar::Var(Var::from_u32(0)));
    ast
}

/// The chosen terms as a program.
struct Schedule<'e> {
    egraph: &'e Lanes,
    chosen: &'e HashMap<Id, LaneTerm>,
    /// How many instructions a value goes through at most.
    depths: HashMap<Id, usize>,
    registers: HashMap<Id, Reg>,
    insts: Vec<Inst>,
}

impl Schedule<'_> {
    fn depth(&mut self, class: Id) -> usize {
        let class = self.egraph.find(class);
        if let Some(&known) = self.depths.get(&class) {
            return known;
        }
        let children = self.chosen[&class].children.iter();
        let depth = children.map(|&c| 1 + self.depth(c)).max().unwrap_or(0);
        self.depths.insert(class, depth);
        depth
    }

    /// Appends the instructions of a class after those that it reads, of which the longest come first: so what is loaded or
    /// constant is there right before it is used, and holds no register until then.
    fn push(&mut self, class: Id) -> Reg {
        let class = self.egraph.find(class);
        if let Some(&known) = self.registers.get(&class) {
            return known;
        }
        let term = &self.chosen[&class];
        let mut order: Vec<usize> = (0..term.children.len()).collect();
        order.sort_by_cached_key(|&i| std::cmp::Reverse(self.depth(term.children[i])));
        let mut operands = [0; 4];
        order.into_iter().for_each(|i| operands[i] = self.push(term.children[i]));
        let register = self.insts.len() as Reg;
        self.insts.push(with_operands(&term.inst, &operands));
        self.registers.insert(class, register);
        register
    }
}

/// The store saturates to the output type: a last clamp to that range or a wider one does nothing more.
fn drop_stored_clamp(mut program: Program) -> Program {
    let range = program.output.range();
    if let (Some(Inst::Clamp(x, lo, hi)), Some((least, most))) = (program.insts.last().copied(), range)
        && lo <= least
        && hi >= most
        && x as usize + 2 == program.insts.len()
    {
        program.insts.pop();
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitc_ir::Elem;
    use vitc_ir::lane::{Access, Input};

    /// A program in which the rule fires.
    fn instance(rule: &str, a: u32, b: u32) -> Vec<Inst> {
        use Inst::*;
        let (wa, wb) = (i64::from(a) + 2, -i64::from(b) - 20);
        let w32 = Width::W32;
        match rule {
            "add-zero" => vec![Load(0), Const(0, w32), Add(0, 1)],
            "add-constants" => vec![Load(0), Const(wa, w32), Const(wb, w32), Add(0, 1), Add(2, 3)],
            "multiply-by-power" => vec![Load(0), Const(1 << a, w32), Mul(1, 0)],
            "shift-zero" => vec![Load(0), Shr(0, 0), Shl(1, 0)],
            "merge-shifts" => vec![Load(0), Shr(0, a), Shr(1, b)],
            "merge-round-shift" => vec![Load(0), Shl(0, a.max(b)), RoundShr(1, a.min(b).max(1))],
            "truncate-widen" => vec![Load(0), Widen(0), Truncate(1)],
            "merge-clamps" => vec![Load(0), Clamp(0, -9 * wa, 70), Clamp(1, -20, -5 * wb)],
            "clamp-full-range" => vec![Load(0), Clamp(0, i64::MIN, i64::MAX)],
            "clamp-then-truncate" => {
                vec![Load(0), Widen(0), Clamp(1, -50 * wa, 60), Truncate(2), Clamp(3, -20, -5 * wb)]
            }
            // an input that is a scalar, and a constant; 32 and 64 bits after the shift
            "few-levels" if a.is_multiple_of(2) => vec![
                Load(0),
                Load(1),
                MulWide(0, 1),
                RoundShr(2, 33 + b % 12),
                Truncate(3),
                Const(wa, w32),
                Add(4, 5),
                Clamp(6, wa - 1, wa + 1),
            ],
            "few-levels" => vec![
                Load(0),
                Const(wa * 0x0100_0001, w32),
                MulWide(1, 0),
                RoundShr(2, 20 + b % 12),
                Clamp(3, -1, i64::from(b)),
                Truncate(4),
            ],
            other => panic!("no instance for {other}"),
        }
    }

    /// The value of input 1 where it is a scalar.
    const SCALAR: i64 = 0x5a31_0007;

    #[test]
    fn every_rule_fires_and_changes_no_value() {
        for rule in rules() {
            for seed in 0..64 {
                let (a, b) = (1 + seed % 8, 1 + seed / 8);
                let inputs = vec![
                    Input { elem: Elem::I16, access: Access::Element },
                    Input { elem: Elem::I32, access: Access::Scalar },
                ];
                let program = Program { inputs, insts: instance(rule.name, a, b), output: Elem::I32 };
                let mut fired = BTreeMap::new();
                let better = optimize(&program, &[None, Some(SCALAR)], &mut fired).unwrap();
                assert!(fired.contains_key(rule.name), "{} did not fire on {:?}", rule.name, program.insts);
                for x in [-32768, -1000, -129, -128, -1, 0, 1, 7, 127, 128, 255, 4096, 32767] {
                    let run = |p: &Program| p.eval(|n| if n == 0 { x } else { SCALAR }, |_, _| 0);
                    // a rule may remove an overflow, never add one
                    if let Ok(value) = run(&program) {
                        assert_eq!(
                            run(&better),
                            Ok(value),
                            "{} on {x}: {:?} became {:?}",
                            rule.name,
                            program.insts,
                            better.insts
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_store_saturates_so_the_last_clamp_goes() {
        let input = Input { elem: Elem::I32, access: Access::Element };
        let insts = vec![Inst::Load(0), Inst::Clamp(0, -128, 127)];
        let program = Program { inputs: vec![input], insts, output: Elem::I8 };
        let better = optimize(&program, &[], &mut BTreeMap::new()).unwrap();
        assert_eq!(better.insts, vec![Inst::Load(0)]);
    }

    /// A requantize of accumulators to so many levels, and what became of it.
    fn levels(count: i64, shift: u32, zero_point: i64, known: bool) -> (Program, Program) {
        let input = |access| Input { elem: Elem::I32, access };
        let mut insts = vec![Inst::Load(0), Inst::Load(1), Inst::MulWide(0, 1), Inst::RoundShr(2, shift)];
        if shift >= 32 {
            insts.push(Inst::Truncate(3));
            insts.extend([Inst::Const(zero_point, Width::W32), Inst::Add(4, 5), Inst::Clamp(6, -1, count - 2)]);
        } else {
            insts.extend([Inst::Const(zero_point, Width::W64), Inst::Add(3, 4), Inst::Clamp(5, -1, count - 2)]);
            insts.push(Inst::Truncate(6));
        }
        let program = Program { inputs: vec![input(Access::Element), input(Access::Scalar)], insts, output: Elem::I32 };
        let mut fired = BTreeMap::new();
        let better = optimize(&program, &[None, known.then_some(SCALAR)], &mut fired).unwrap();
        assert_eq!(fired.contains_key("few-levels"), known && count <= 16);
        (program, better)
    }

    const MODULE: &str = r#"
module "levels" stage integerize {
  const @m : tensor<1xi32> = [1518403591]
  graph (%x: tensor<Nx5xi32, q(0x1p-8, 0)>) -> (%1 "y") {
    %0 = int.requant %x, @m {axis = 1, x_zero = 0, shift = 40, zero_point = 1, to = i8} : tensor<Nx5xi8, q(0x1p0, 1)>
    %1 = int.clamp %0 {lo = 0, hi = 2} : tensor<Nx5xi8, q(0x1p0, 1)>
  }
}
"#;

    /// From the ops of a module: a multiplier that is one constant is known to be one.
    #[test]
    fn a_clamp_to_three_levels_compares() {
        use vitc_ir::eval::{self, Data, Tensor};
        let before = vitc_ir::text::parse(MODULE, Default::default()).unwrap();
        let (after, fired) = crate::fuse::run(&before).unwrap();
        assert!(fired.contains_key("few-levels") && after.lanes.iter().any(|(_, program)| is_compared(program)));
        let x =
            Tensor { shape: vec![2, 5], data: Data::I32(vec![0, 362, 363, -362, -363, 1086, 1087, -9, 9, i32::MIN]) };
        let run = |m| format!("{:?}", eval::run(m, std::slice::from_ref(&x)).unwrap());
        assert_eq!(run(&before), run(&after));
    }

    fn is_compared(program: &Program) -> bool {
        program.insts.iter().any(|i| matches!(i, Inst::SelectLess(..)))
    }

    /// Comparisons are exact at every threshold, on both sides of it, and at the ends of 32 bits.
    #[test]
    fn few_levels_change_at_the_same_values() {
        for (shift, zero_point) in [(20, 0), (31, 3), (32, -7), (33, 0), (47, 1), (61, 0), (62, -1), (63, 2)] {
            for count in 1..=3 {
                let (program, better) = levels(count, shift, zero_point, true);
                assert!(is_compared(&better) || count == 1 || shift > 61, "{count} levels, {:?}", better.insts);
                let run = |p: &Program, x: i64| p.eval(|n| if n == 0 { x } else { SCALAR }, |_, _| 0).unwrap();
                let step = (1i128 << shift) / i128::from(SCALAR);
                let edges = (-9..=9).flat_map(|level| [(2 * level - 1) * step / 2, level * step]);
                let ends = [i32::MIN, i32::MAX, 0, 1 << 30, -(1 << 30)].map(i128::from);
                for edge in edges.chain(ends) {
                    for x in edge - 3..=edge + 3 {
                        let Ok(x) = i32::try_from(x) else { continue };
                        let (want, found) = (run(&program, x.into()), run(&better, x.into()));
                        assert_eq!(want, found, "{x}, shift {shift}, zero {zero_point}: {:?}", better.insts);
                    }
                }
            }
        }
    }

    /// Thresholds one by one, over the whole of a small shift: nothing is skipped between them.
    #[test]
    fn thresholds_are_the_least_values_of_their_levels() {
        for multiplier in [1, 3, 77, 1 << 16, 0x7fff_ffff] {
            for shift in [1, 17, 31, 40, 62] {
                let quantizer = Dyadic { x: Id::from(0), multiplier, shift, zero_point: 5 };
                for level in -20..20 {
                    match quantizer.threshold(level) {
                        Some(x) => {
                            assert!(quantizer.of_value(x) >= level.into());
                            assert!(x == i32::MIN || quantizer.of_value(x - 1) < level.into());
                        }
                        None => assert!(quantizer.of_value(i32::MAX) < level.into()),
                    }
                }
            }
        }
    }

    /// More than three levels, such as the sixteen that activations have at least, and multipliers that differ from channel to channel, stay a requantize.
    #[test]
    fn many_levels_and_unknown_multipliers_stay_a_requantize() {
        for (count, known) in [(4, true), (16, true), (17, true), (256, true), (3, false)] {
            for shift in [28, 40] {
                assert!(!is_compared(&levels(count, shift, 0, known).1), "{count} levels");
            }
        }
    }
}
