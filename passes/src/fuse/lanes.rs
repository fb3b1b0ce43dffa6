//! The third rule book: strength reduction inside lane programs, by equality saturation over their instructions.
//!
//! All rules are exact on values for which the left side does not overflow, which the interval analysis has proved.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use egg::{
    Applier, CostFunction, EGraph, Extractor, FromOp, Id, Language, PatternAst, RecExpr, Rewrite, Runner,
    SimpleScheduler, Subst, Symbol, Var,
};
use vitc_ir::lane::{Inst, Program, Reg, Width};

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

type Lanes = EGraph<LaneTerm, ()>;

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

/// Runs a builder on every instruction of a class.
impl Applier<LaneTerm, ()> for LaneRule {
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

/// Rough instruction counts of the portable tier; 64-bit lanes need two vectors, tables are scalar.
struct Cost;

impl CostFunction<LaneTerm> for Cost {
    type Cost = u64;

    fn cost<C: FnMut(Id) -> u64>(&mut self, term: &LaneTerm, mut costs: C) -> u64 {
        let own = match term.inst {
            Inst::Load(_) | Inst::Const(..) => 1,
            Inst::Mul(..) | Inst::MulWide(..) => 4,
            Inst::RoundShr(..) => 4,
            Inst::Clamp(..) => 3,
            Inst::Table { .. } => 12,
            _ => 2,
        };
        term.children.iter().fold(own, |sum, &c| sum + costs(c))
    }
}

/// The cheapest equal program. What a final clamp does that the store's saturation does anyway is left out.
pub fn optimize(program: &Program, fired: &mut BTreeMap<String, usize>) -> Result<Program, String> {
    program.widths()?;
    let mut expr: RecExpr<LaneTerm> = RecExpr::default();
    for inst in &program.insts {
        let children = inst.operands().into_iter().map(|r| Id::from(r as usize)).collect();
        expr.add(LaneTerm::new(inst, children));
    }
    let any = egg::Pattern::<LaneTerm>::new(any_class());
    let rewrites: Vec<Rewrite<LaneTerm, ()>> = rules()
        .into_iter()
        .map(|r| Rewrite::new(r.name, any.clone(), r).map_err(|e| e.to_string()))
        .collect::<Result<_, _>>()?;
    let runner = Runner::<LaneTerm, (), ()>::new(())
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
    let (_, best) = Extractor::new(&runner.egraph, Cost).find_best(runner.roots[0]);
    let optimized = Program { insts: instructions(&best), ..program.clone() };
    Ok(drop_stored_clamp(optimized))
}

fn any_class() -> PatternAst<LaneTerm> {
    let mut ast = PatternAst::default();
    ast.add(egg::ENodeOrVar::Var(Var::from_u32(0)));
    ast
}

/// Instructions of an expression, equal ones once.
fn instructions(expr: &RecExpr<LaneTerm>) -> Vec<Inst> {
    let mut insts: Vec<Inst> = Vec::new();
    let mut known: HashMap<Inst, Reg> = HashMap::new();
    let mut regs: Vec<Reg> = Vec::new();
    for term in expr.as_ref() {
        let operands: Vec<Reg> = term.children.iter().map(|c| regs[usize::from(*c)]).collect();
        let inst = with_operands(&term.inst, &pad(&operands));
        let reg = *known.entry(inst).or_insert_with(|| {
            insts.push(inst);
            (insts.len() - 1) as Reg
        });
        regs.push(reg);
    }
    insts
}

fn pad(operands: &[Reg]) -> [Reg; 4] {
    std::array::from_fn(|i| operands.get(i).copied().unwrap_or(0))
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
            other => panic!("no instance for {other}"),
        }
    }

    #[test]
    fn every_rule_fires_and_changes_no_value() {
        for rule in rules() {
            for seed in 0..64 {
                let (a, b) = (1 + seed % 8, 1 + seed / 8);
                let input = Input { elem: Elem::I16, access: Access::Element };
                let program = Program { inputs: vec![input], insts: instance(rule.name, a, b), output: Elem::I32 };
                let mut fired = BTreeMap::new();
                let better = optimize(&program, &mut fired).unwrap();
                assert!(fired.contains_key(rule.name), "{} did not fire on {:?}", rule.name, program.insts);
                for x in [-32768, -1000, -129, -128, -1, 0, 1, 7, 127, 128, 255, 4096, 32767] {
                    let run = |p: &Program| p.eval(|_| x, |_, _| 0);
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
        let better = optimize(&program, &mut BTreeMap::new()).unwrap();
        assert_eq!(better.insts, vec![Inst::Load(0)]);
    }
}
