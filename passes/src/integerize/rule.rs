//! Rules: one line each, with a name, an exactness class, a pattern and a builder that is also the guard.

use std::sync::Arc;

use egg::{Applier, Id, Language, PatternAst, Rewrite, Subst, Symbol, Var};
use vitc_ir::{Const, Elem, Op, Quant, Shape, TensorType, ValueId};

use super::facts::{EGraph, Fact, Facts};
use super::report::{Error, Site};
use super::term::{Attrs, Term};

/// Which book a rule stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Book {
    /// Scale algebra.
    Qdq,
    /// Integer forms of float ops.
    Forms,
}

/// How far the right side may be from the left. Each rule is tested against its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exactness {
    /// The same reals, but for float rounding of the left side.
    Exact,
    /// The result, quantized, differs by at most one step (another rounding).
    Rounding,
    /// An approximation; its error is measured at every site and must stay within the budget.
    Approximate,
}

/// Builds the right side; `None` when the guard refuses.
pub type Build = fn(&mut Match<'_>) -> Option<Id>;

/// A rewrite rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Name, unique over all books.
    pub name: &'static str,
    /// Its book.
    pub book: Book,
    /// Its exactness class.
    pub exactness: Exactness,
    /// The left side.
    pub pattern: String,
    /// The right side and the guard.
    pub build: Build,
}

impl Rule {
    /// The rule as egg runs it.
    pub fn rewrite(&self) -> Rewrite<Term, Facts> {
        let pattern: egg::Pattern<Term> = self.pattern.parse().unwrap_or_else(|e| panic!("rule {}: {e}", self.name));
        Rewrite::new(self.name, pattern, self.clone()).unwrap_or_else(|e| panic!("rule {}: {e}", self.name))
    }
}

impl Applier<Term, Facts> for Rule {
    fn apply_one(
        &self,
        egraph: &mut EGraph,
        class: Id,
        subst: &Subst,
        _: Option<&PatternAst<Term>>,
        rule: Symbol,
    ) -> Vec<Id> {
        let mut m = Match { egraph, class, subst };
        let loc = m.loc();
        match (self.build)(&mut m) {
            Some(new) if m.egraph.union_trusted(class, new, rule) => {
                let at = (self.name.to_string(), loc.as_deref().unwrap_or("").to_string());
                *egraph.analysis.fired_at.entry(at).or_default() += 1;
                vec![class]
            }
            _ => vec![],
        }
    }
}

/// What integer ops are added to: the e-graph where a rule matched, or a module that is evaluated to learn a form's error.
pub trait Ops {
    /// A value there.
    type Value: Copy;

    /// Adds an op; `None` when it does not type.
    fn op(&mut self, op: Op, quant: Option<Quant>, operands: &[Self::Value]) -> Option<Self::Value>;

    /// Adds a constant of rank 1.
    fn vector(&mut self, what: &str, values: &[i32]) -> Self::Value;

    /// The same of 16 bits.
    fn halves(&mut self, what: &str, values: &[i16]) -> Self::Value;
}

impl Ops for Match<'_> {
    type Value = Id;

    fn op(&mut self, op: Op, quant: Option<Quant>, operands: &[Id]) -> Option<Id> {
        self.apply(op, quant, operands)
    }

    fn vector(&mut self, what: &str, values: &[i32]) -> Id {
        self.i32_vector(what, values)
    }

    fn halves(&mut self, what: &str, values: &[i16]) -> Id {
        self.i16_vector(what, values)
    }
}

/// A match of a rule's pattern, with what a builder needs.
pub struct Match<'a> {
    egraph: &'a mut EGraph,
    class: Id,
    subst: &'a Subst,
}

impl Match<'_> {
    /// The class bound to a pattern variable, given with its question mark.
    pub fn var(&self, name: &str) -> Option<Id> {
        self.subst.get(name.parse::<Var>().ok()?).copied()
    }

    /// Facts of a class.
    pub fn fact(&self, id: Id) -> &Fact {
        &self.egraph[id].data
    }

    /// Type of a variable.
    pub fn ty(&self, name: &str) -> Option<TensorType> {
        self.fact(self.var(name)?).ty.clone()
    }

    /// Type of the matched class.
    pub fn root_type(&self) -> Option<TensorType> {
        self.fact(self.class).ty.clone()
    }

    /// Name of the ONNX node matched; where the outermost term came from none (a `dequantize` does not), that of its operand.
    pub fn loc(&self) -> Option<Arc<str>> {
        const DEPTH: usize = 3;
        let mut open = vec![self.class];
        for _ in 0..DEPTH {
            if let Some(loc) = open.iter().find_map(|&c| self.fact(c).loc.clone()) {
                return Some(loc);
            }
            let terms = open.iter().flat_map(|&c| &self.egraph[c].nodes);
            open = terms.flat_map(|t| t.children()).copied().collect();
        }
        None
    }

    /// The attributes bound to a variable.
    pub fn attrs(&self, name: &str) -> Option<Attrs> {
        self.fact(self.var(name)?).attrs.as_deref().cloned()
    }

    /// The constant bound to a variable, if it is one.
    pub fn constant(&self, name: &str) -> Option<Const> {
        let v = self.fact(self.var(name)?).constant?;
        self.egraph.analysis.const_of(v).cloned()
    }

    /// The elementwise function of one 8-bit class that a variable is, as a table of what it quantizes to: the class and
    /// the 256 results. `None` when it is no such function, or one of a single op that has a rule of its own.
    pub fn function(&self, name: &str, to: Elem, target: &Quant) -> Option<(Id, Vec<i64>)> {
        super::function::table(self.egraph, self.var(name)?, to, target)
    }

    /// What the user asked for.
    pub fn options(&self) -> &super::Options {
        &self.egraph.analysis.options
    }

    /// Adds an application; `None` when it does not type.
    pub fn apply(&mut self, op: Op, quant: Option<Quant>, operands: &[Id]) -> Option<Id> {
        let name = op.name();
        let attrs = self.egraph.add(Term::Attrs(Box::new(Attrs { op, quant })));
        let children: Vec<Id> = std::iter::once(attrs).chain(operands.iter().copied()).collect();
        super::facts::applied_type(self.egraph, &children)?;
        let id = self.egraph.add(Term::Apply(name, children));
        let loc = self.loc();
        let data = &mut self.egraph[id].data;
        if data.loc.is_none() {
            data.loc = loc;
        }
        Some(id)
    }

    /// Adds `dequantize` of a class.
    pub fn dequantize(&mut self, x: Id) -> Option<Id> {
        self.apply(Op::Dequantize {}, None, &[x])
    }

    /// Adds a constant; an equal one is reused.
    pub fn constant_of<T: bytemuck::NoUninit>(&mut self, name: &str, ty: TensorType, values: &[T]) -> Id {
        let facts = &mut self.egraph.analysis;
        let new = Const::new(name, ty, values);
        let same = |c: &Const| c.data == new.data && c.ty == new.ty;
        let index = facts.consts.iter().position(same).unwrap_or_else(|| {
            facts.consts.push(new.clone());
            facts.consts.len() - 1
        });
        let value = ValueId((facts.module.values.len() + index) as u32);
        self.egraph.add(Term::Value(value))
    }

    /// Adds a rank-1 `i32` constant named after the matched node.
    pub fn i32_vector(&mut self, what: &str, values: &[i32]) -> Id {
        let name = format!("{}.{what}", self.loc().as_deref().unwrap_or("value"));
        let ty = TensorType::new(Elem::I32, Shape::fixed(&[values.len()]));
        self.constant_of(&name, ty, values)
    }

    /// Adds a rank-1 `i16` constant named after the matched node.
    pub fn i16_vector(&mut self, what: &str, values: &[i16]) -> Id {
        let name = format!("{}.{what}", self.loc().as_deref().unwrap_or("value"));
        self.constant_of(&name, TensorType::new(Elem::I16, Shape::fixed(&[values.len()])), values)
    }

    /// Notes a candidate form of a nonlinear site and says whether extraction may choose it. `auto` admits the closest form we
    /// have of each op always (else a model with an unusual site could not be compiled at all) and published forms within the
    /// error budget; a user who asked for the forms of one paper gets them whatever their error, where there is one.
    pub fn admit(&mut self, op: &'static str, form: &'static str, cost: u64, error: Error) -> bool {
        let options = &self.egraph.analysis.options;
        let (shift, ibert) = (form.starts_with("shift"), form.starts_with("ibert"));
        let allowed = match options.nonlinear {
            // there is no published form of the other functions: they keep their table
            super::Nonlinear::Shift => shift || !matches!(op, "gelu" | "softmax" | "layernorm" | "linear_attention"),
            super::Nonlinear::Ibert => ibert || !(shift || matches!(op, "gelu" | "softmax" | "layernorm")),
            super::Nonlinear::Auto if !shift && !ibert => true,
            super::Nonlinear::Auto => match error {
                Error::Steps(steps) => steps <= options.budget_steps,
                Error::Relative(share) => share <= options.budget_relative,
            },
        };
        let site = Site { loc: self.loc(), op, form, cost, error, allowed, chosen: false };
        let sites = &mut self.egraph.analysis.sites;
        if !sites.iter().any(|s| (&s.loc, s.op, s.form) == (&site.loc, site.op, site.form)) {
            sites.push(site);
        }
        allowed
    }
}
