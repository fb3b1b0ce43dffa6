//! Room 4: from explicit quantize/dequantize to integers only, by equality saturation.
//!
//! The graph is cut into regions wherever a single integer value (the residual stream) is all that later nodes need; each
//! region is saturated with the rule books ([`books`]), the cheapest integer computation is extracted, and the result is put
//! together again. No clock decides anything: saturation ends by itself or at a node or iteration limit, and says which.

pub(crate) mod arith;
pub mod books;
mod cost;
mod facts;
mod function;
pub(crate) mod intervals;
mod regions;
pub mod report;
pub mod rule;
pub(crate) mod sample;
mod term;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use egg::{Id, Language, Runner, SimpleScheduler, StopReason};
use vitc_ir::{Class, Diagnostic, Diagnostics, Elem, Module, Op, Shape, Stage, TensorType, ValueId};

pub use report::Report;

use crate::extract;
use facts::{EGraph, Facts};
use term::{Attrs, Term};

/// Which integer forms the nonlinear ops may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nonlinear {
    /// Whatever is cheapest within the error budget.
    #[default]
    Auto,
    /// The published shift forms (I-ViT).
    Shift,
    /// The published polynomial forms (I-BERT).
    Ibert,
}

/// Options of the pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Which forms are allowed.
    pub nonlinear: Nonlinear,
    /// Error budget of published forms of elementwise ops and LayerNorm: steps of the output beyond correct rounding.
    pub budget_steps: f64,
    /// Error budget of published forms of softmax: relative error of the attention map.
    pub budget_relative: f64,
    /// E-nodes at which saturation of a region stops.
    pub node_limit: usize,
    /// Iterations at which saturation of a region stops.
    pub iteration_limit: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            nonlinear: Nonlinear::Auto,
            budget_steps: 1.0,
            budget_relative: 0.03,
            node_limit: 20_000,
            iteration_limit: 30,
        }
    }
}

/// Lowers a module of stage `quantize` to integers.
pub fn run(module: &Module, options: &Options) -> Result<(Module, Report), Diagnostics> {
    let rewrites: Vec<_> = books::all().iter().map(|r| r.rewrite()).collect();
    let shared = Arc::new(module.clone());
    let mut lowering = Lowering {
        source: module,
        target: module.successor(Stage::Integerize),
        map: HashMap::new(),
        report: Report::default(),
        problems: Diagnostics::default(),
    };
    for input in &module.inputs {
        let value = lowering.target.input(input.name.clone(), module.ty(input.value).clone());
        lowering.map.insert(input.value, value);
    }
    for region in regions::cut(module) {
        let facts = Facts::new(shared.clone(), options.clone());
        lowering.region(&region, facts, &rewrites, options);
    }
    lowering.finish()
}

struct Lowering<'a> {
    source: &'a Module,
    target: Module,
    /// Values of the source that the target has.
    map: HashMap<ValueId, ValueId>,
    report: Report,
    problems: Diagnostics,
}

impl Lowering<'_> {
    fn region(
        &mut self,
        region: &regions::Region,
        facts: Facts,
        rewrites: &[egg::Rewrite<Term, Facts>],
        options: &Options,
    ) {
        let mut egraph = EGraph::new(facts);
        let classes = load(self.source, region, &mut egraph);
        let runner = Runner::<Term, Facts, ()>::new(egraph.analysis.clone())
            .with_egraph(egraph)
            .with_scheduler(SimpleScheduler)
            .with_time_limit(Duration::MAX)
            .with_node_limit(options.node_limit)
            .with_iter_limit(options.iteration_limit)
            .run(rewrites);
        self.note(region, &runner);
        let egraph = runner.egraph;
        let roots: Vec<Id> = region.roots.iter().map(|v| egraph.find(classes[v])).collect();
        let Some(chosen) = extract::extract(&egraph, &roots, |class, term| own_cost(&egraph, class, term)) else {
            self.problems.push(Diagnostic::new("no-extraction", "equality saturation lost a value of this region"));
            return;
        };
        let before = self.target.nodes.len();
        let mut rebuild = Rebuild {
            egraph: &egraph,
            chosen: &chosen,
            target: &mut self.target,
            map: &mut self.map,
            done: HashMap::new(),
        };
        for (value, root) in region.roots.iter().zip(&roots) {
            if let Some(new) = rebuild.class(*root) {
                rebuild.map.insert(*value, new);
            }
        }
        let computed = classes.iter().filter_map(|(v, id)| Some((*v, *rebuild.done.get(&egraph.find(*id))?)));
        self.report.values.extend(computed);
        self.mark_chosen(&egraph, before);
    }

    fn note(&mut self, region: &regions::Region, runner: &Runner<Term, Facts, ()>) {
        for iteration in &runner.iterations {
            for (rule, count) in &iteration.applied {
                *self.report.fired.entry(rule.to_string()).or_default() += count;
            }
        }
        for (at, count) in &runner.egraph.analysis.fired_at {
            *self.report.fired_at.entry(at.clone()).or_default() += count;
        }
        let stop = match &runner.stop_reason {
            Some(StopReason::Saturated) => "saturated",
            Some(StopReason::NodeLimit(_)) => "node limit",
            Some(StopReason::IterationLimit(_)) => "iteration limit",
            _ => "stopped",
        };
        self.report.regions.push(report::Region {
            nodes: region.nodes.len(),
            enodes: runner.egraph.total_size(),
            classes: runner.egraph.number_of_classes(),
            iterations: runner.iterations.len(),
            stop: stop.into(),
        });
    }

    /// A site's form was chosen when the target has its ops at that place.
    fn mark_chosen(&mut self, egraph: &EGraph, from: usize) {
        for site in &egraph.analysis.sites {
            let is = |op: &Op| match (site.op, site.form) {
                ("softmax", "deferred" | "fine" | "ibert") => matches!(op, Op::IntExp { .. }),
                ("linear_attention", "reciprocal") => matches!(op, Op::IntLinearAttention { log2: false, .. }),
                ("linear_attention", "shift") => matches!(op, Op::IntLinearAttention { log2: true, .. }),
                ("softmax", "shift") => matches!(op, Op::IntShiftmax { .. }),
                ("layernorm" | "rmsnorm", "moments") => matches!(op, Op::IntLayerNorm { .. }),
                ("layernorm", "shift" | "ibert") => matches!(op, Op::IntShiftLayerNorm { .. }),
                ("div", "reciprocal") => matches!(op, Op::IntReciprocal { .. }),
                ("gelu", "shift") => matches!(op, Op::IntShiftGelu { .. }),
                ("hardswish", "gate") => matches!(op, Op::IntHardSwish { .. }),
                ("gelu", "ibert") => matches!(op, Op::IntMul { .. }),
                (_, "gated") => matches!(op, Op::IntMul { .. }),
                (_, "table") => matches!(op, Op::IntTable { .. }),
                _ => false,
            };
            let chosen = self.target.nodes[from..].iter().any(|n| is(&n.op) && n.loc == site.loc);
            self.report.sites.push(report::Site { chosen, ..site.clone() });
        }
    }

    fn finish(mut self) -> Result<(Module, Report), Diagnostics> {
        for output in &self.source.outputs {
            match self.map.get(&output.value) {
                Some(&value) => self.target.output(output.name.clone(), value),
                None if self.problems.0.is_empty() => {
                    self.problems.push(Diagnostic::new("no-extraction", format!("output `{}` was lost", output.name)));
                }
                None => {}
            }
        }
        let floats = self
            .target
            .nodes
            .iter()
            .filter(|n| matches!(n.op.class(), Class::Float) || matches!(n.op, Op::Quantize { .. }));
        for node in floats {
            self.problems.push(no_integer_form(&self.target, node));
        }
        if !self.problems.0.is_empty() {
            return Err(self.problems);
        }
        self.report.accumulators = intervals::prove(&self.target)?;
        Ok((self.target, self.report))
    }
}

fn no_integer_form(module: &Module, node: &vitc_ir::Node) -> Diagnostic {
    let types: Vec<String> = node.operands.iter().map(|&v| module.ty(v).to_string()).collect();
    let message = format!("`{}` of {} has no integer form", node.op.name(), types.join(", "));
    let d = Diagnostic::new("no-integer-form", message)
        .help("no rule lowers this op here; docs/ops.md lists what can be lowered, `vitc dump --after quantize` shows the graph");
    match &node.loc {
        Some(loc) => d.at(loc.to_string()),
        None => d,
    }
}

/// Puts the nodes of a region into an e-graph.
fn load(module: &Module, region: &regions::Region, egraph: &mut EGraph) -> HashMap<ValueId, Id> {
    let mut classes: HashMap<ValueId, Id> = HashMap::new();
    for &n in &region.nodes {
        let node = &module.nodes[n];
        let quant = module.ty(node.result).quant.clone();
        let quant = if node.op.class() == Class::Move { None } else { quant };
        let attrs = egraph.add(Term::Attrs(Box::new(Attrs { op: node.op.clone(), quant })));
        let mut children = vec![attrs];
        for v in &node.operands {
            let class = *classes.entry(*v).or_insert_with(|| egraph.add(Term::Value(*v)));
            children.push(class);
        }
        let class = egraph.add(Term::Apply(node.op.name(), children));
        let data = &mut egraph[class].data;
        data.loc = data.loc.take().or(node.loc.clone());
        classes.insert(node.result, class);
    }
    for root in &region.roots {
        classes.entry(*root).or_insert_with(|| egraph.add(Term::Value(*root)));
    }
    egraph.rebuild();
    classes
}

/// The cost of a term, without its operands.
fn own_cost(egraph: &EGraph, class: Id, term: &Term) -> u64 {
    let Term::Apply(_, children) = term else { return 0 };
    let fact = |id: Id| &egraph[id].data;
    let operands: Vec<&TensorType> = children[1..].iter().filter_map(|&c| fact(c).ty.as_ref()).collect();
    match (fact(children[0]).attrs.as_ref(), fact(class).ty.as_ref()) {
        (Some(attrs), Some(ty)) => cost::of(&attrs.op, &operands, ty),
        _ => cost::FLOAT,
    }
}

/// Builds the chosen terms as nodes.
struct Rebuild<'a> {
    egraph: &'a EGraph,
    chosen: &'a HashMap<Id, Term>,
    target: &'a mut Module,
    map: &'a mut HashMap<ValueId, ValueId>,
    done: HashMap<Id, ValueId>,
}

impl Rebuild<'_> {
    fn class(&mut self, id: Id) -> Option<ValueId> {
        let id = self.egraph.find(id);
        if let Some(&value) = self.done.get(&id) {
            return Some(value);
        }
        let value = match self.chosen.get(&id)? {
            Term::Value(v) => self.value(*v)?,
            Term::Attrs(_) => return None,
            term @ Term::Apply(..) => self.application(id, term)?,
        };
        self.done.insert(id, value);
        Some(value)
    }

    fn value(&mut self, v: ValueId) -> Option<ValueId> {
        if let Some(&new) = self.map.get(&v) {
            return Some(new);
        }
        let constant = self.egraph.analysis.const_of(v)?.clone();
        let own = (v.0 as usize) < self.egraph.analysis.module.values.len();
        let new = self.target.constant(constant);
        if own {
            self.map.insert(v, new); // constants of rules are numbered region by region, so only the module's are shared
        }
        Some(new)
    }

    fn application(&mut self, id: Id, term: &Term) -> Option<ValueId> {
        let children = term.children();
        let attrs = self.egraph[children[0]].data.attrs.clone()?;
        let operands = children[1..].iter().map(|&c| self.class(c)).collect::<Option<Vec<_>>>()?;
        let fact = &self.egraph[id].data;
        let ty = fact.ty.clone()?;
        if let (Op::Reshape { shape }, Some(quant)) = (&attrs.op, &attrs.quant)
            && *shape == self.target.ty(operands[0]).shape
        {
            return Some(self.relabel(operands[0], quant));
        }
        match attrs.op.class() {
            // what it moves may have another meaning here than where it was made
            Class::Move => self.target.push(attrs.op.clone(), &operands, fact.loc.clone()).ok(),
            Class::Quant => {
                let meant = self.egraph[children[1]].data.ty.clone()?;
                let x = self.meaning(operands[0], meant)?;
                Some(self.target.push_typed(attrs.op.clone(), &[x], ty, fact.loc.clone()))
            }
            _ => Some(self.target.push_typed(attrs.op.clone(), &operands, ty, fact.loc.clone())),
        }
    }

    /// Another meaning for the same integers: ops take their constants from the rule that built them, so only the annotation
    /// on the value changes, where nothing has read it yet.
    fn relabel(&mut self, v: ValueId, quant: &vitc_ir::Quant) -> ValueId {
        let own = self.target.node_of(v).is_some_and(|n| n.op.class() == Class::Int);
        if own && self.target.nodes.iter().all(|n| !n.operands.contains(&v)) {
            self.target.values[v.0 as usize].ty.quant = Some(quant.clone());
        }
        v
    }

    /// The integers `v` with the meaning that a `dequantize` reads from their type.
    fn meaning(&mut self, v: ValueId, meant: TensorType) -> Option<ValueId> {
        let ty = self.target.ty(v).clone();
        if ty.quant == meant.quant || !meant.elem.is_int() {
            return Some(v);
        }
        let two = vitc_ir::Const::new("two", TensorType::new(Elem::I32, Shape::fixed(&[1])), &[2i32]);
        let two = self.target.constant(two);
        let (axis, to) = (ty.shape.rank().checked_sub(1)?, ty.elem);
        let same = Op::IntRequant { axis, x_zero: 0, shift: 1, zero_point: 0, to };
        self.target.push_quant(same, &[v, two], meant.quant?, None).ok()
    }
}
