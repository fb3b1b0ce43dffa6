//! Elementwise functions of one 8-bit value, of however many ops, as tables.

use std::collections::BTreeMap;

use egg::{Id, Language};
use vitc_ir::{Elem, Module, Op, Quant, ValueId};

use super::facts::EGraph;
use super::sample;
use super::term::Term;
use crate::clean::slices::is_elementwise;

/// Longest chain that is followed.
const LONGEST: usize = 32;

/// The 8-bit class that `y` is an elementwise function of, by two ops or more or by adding a constant, and what each of its
/// 256 values yields when quantized.
pub(super) fn table(egraph: &EGraph, y: Id, to: Elem, target: &Quant) -> Option<(Id, Vec<i64>)> {
    let mut chain = Chain { egraph, shape: egraph[y].data.ty.clone()?.shape, source: None, steps: Vec::new() };
    chain.visit(y)?;
    if let [(_, op, _)] = &chain.steps[..]
        && !matches!(op, Op::Add {} | Op::Sub {})
    {
        return None; // it has a rule of its own
    }
    if chain.steps.is_empty() {
        return None;
    }
    let x = egraph[chain.source?].data.ty.clone()?;
    let entries = sample::table_of_function(&x, to, target, |m, real| chain.build(m, real))?;
    Some((chain.source?, entries))
}

struct Chain<'a> {
    egraph: &'a EGraph,
    shape: vitc_ir::Shape,
    source: Option<Id>,
    /// Classes in the order of computation, each with its op and its operands.
    steps: Vec<(Id, Op, Vec<Id>)>,
}

impl Chain<'_> {
    fn is_single(&self, id: Id) -> bool {
        let constant = self.egraph[id].data.constant.and_then(|v| self.egraph.analysis.const_of(v));
        constant.is_some_and(|c| c.ty.elem == Elem::F32 && c.values::<f32>().len() == 1)
    }

    /// Takes the elementwise op of a class, or else its `dequantize`, which must be of the one source.
    fn visit(&mut self, id: Id) -> Option<()> {
        let id = self.egraph.find(id);
        if self.is_single(id) || self.steps.iter().any(|(known, ..)| *known == id) {
            return Some(());
        }
        if self.egraph[id].data.ty.as_ref()?.shape != self.shape || self.steps.len() >= LONGEST {
            return None;
        }
        let terms: Vec<&Term> = self.egraph[id].nodes.iter().filter(|t| matches!(t, Term::Apply(..))).collect();
        let op_of = |t: &Term| Some(self.egraph[*t.children().first()?].data.attrs.as_ref()?.op.clone());
        for term in &terms {
            let Some(op) = op_of(term).filter(is_elementwise) else { continue };
            let operands: Vec<Id> = term.children()[1..].iter().map(|&c| self.egraph.find(c)).collect();
            let (length, source) = (self.steps.len(), self.source);
            if operands.iter().try_for_each(|&o| self.visit(o)).is_some() {
                self.steps.push((id, op, operands));
                return Some(());
            }
            self.steps.truncate(length);
            self.source = source;
        }
        let doors = terms.iter().filter(|t| matches!(op_of(t), Some(Op::Dequantize {})));
        let narrow = |x: &Id| {
            let ty = self.egraph[*x].data.ty.as_ref();
            ty.is_some_and(|t| {
                matches!(t.elem, Elem::U8 | Elem::I8) && t.quant.as_ref().is_some_and(|q| q.axis.is_none())
            })
        };
        let x = doors.map(|t| self.egraph.find(t.children()[1])).find(narrow)?;
        if self.source.is_some_and(|s| s != x) {
            return None;
        }
        self.source = Some(x);
        Some(())
    }

    fn build(&self, m: &mut Module, real: ValueId) -> Option<ValueId> {
        let mut known: BTreeMap<Id, ValueId> = BTreeMap::new();
        let mut last = real;
        for (id, op, operands) in &self.steps {
            let operands: Vec<ValueId> =
                operands.iter().map(|o| self.operand(m, &known, *o, real)).collect::<Option<_>>()?;
            last = m.push(op.clone(), &operands, None).ok()?;
            known.insert(*id, last);
        }
        Some(last)
    }

    fn operand(&self, m: &mut Module, known: &BTreeMap<Id, ValueId>, id: Id, real: ValueId) -> Option<ValueId> {
        if let Some(&v) = known.get(&id) {
            return Some(v);
        }
        if !self.is_single(id) {
            return Some(real);
        }
        let constant = self.egraph.analysis.const_of(self.egraph[id].data.constant?)?;
        let ty = vitc_ir::TensorType::f32(vitc_ir::Shape::fixed(&[]));
        Some(m.constant(vitc_ir::Const::new("c", ty, &[constant.values::<f32>()[0]])))
    }
}
